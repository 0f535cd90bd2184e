//! The policy's decisions, one at a time, and what holds of any.

use super::super::{Left, Slew};
use super::*;
use crate::wide;
use proptest::prelude::*;

/// 1 tick per ns; the guest's TSC is 0 at host TSC 0 and time 0; the clock is right to 10 ns.
fn policy(catch_up: CatchUp) -> Targeted {
    let rate = TickRate::new(Khz::new(1_000_000).unwrap());
    Targeted::new(TargetedConfig {
        line: Line::through(GuestTsc::new(0), Nanos::ZERO, rate),
        catch_up,
        clock_error: Nanos::new(10),
        rate_tolerance: Ppm::new(500).unwrap(),
        recheck: Nanos::new(50_000),
    })
}

/// A vCPU that left CPU 0 at 100,000 ns, when its counter read that, and comes to `cpu` at
/// 200,000 ns, when that one reads `tsc`.
fn load(cpu: u32, tsc: u64, fault: Fault) -> Load {
    Load {
        cpu: CpuId::new(cpu),
        tsc: HostTsc::new(tsc),
        at: Nanos::new(200_000),
        left: Some(Left {
            cpu: CpuId::new(0),
            tsc: HostTsc::new(100_000),
            at: Nanos::new(100_000),
            tsc_at_move: None,
        }),
        offset: TscOffset::ZERO,
        host_unstable: false,
        fault,
    }
}

const PAIR: Fault = Fault {
    pair: true,
    lags: false,
    skew: None,
};
const LAGS: Fault = Fault {
    pair: false,
    lags: true,
    skew: None,
};

fn skewed(by: i64) -> Fault {
    Fault {
        skew: Some(TscDelta::new(by)),
        ..PAIR
    }
}

/// The reading of the guest after a load, and what was said.
fn after(load: Load) -> (u64, Option<Cause>) {
    let decision = policy(CatchUp::Step).load(&load);
    let offset = decision
        .adjust
        .map_or(load.offset, |by| load.offset.wrapping_add(by));
    (guest_unscaled(load.tsc, offset).get(), decision.accuse)
}

#[test]
fn move_between_trusted_cpus_is_left_alone() {
    // 60 ticks of difference: within twice the clock's error and 500 ppm of 100,000 (20 + 50). The
    // roundings are worth 6 more: one for a nanosecond, one for its ceiling, two for whole ticks
    // and two for the share.
    for tsc in [200_000, 199_940, 200_060, 199_924, 200_076] {
        let decision = policy(CatchUp::Step).load(&load(1, tsc, Fault::default()));
        assert_eq!(decision, Decision::NOTHING);
    }
    for tsc in [199_923, 200_077] {
        let decision = policy(CatchUp::Step).load(&load(1, tsc, Fault::default()));
        assert!(decision.accuse.is_some(), "{tsc}");
    }
    // Even on a host that others condemned.
    let condemned = Load {
        host_unstable: true,
        ..load(1, 200_000, Fault::default())
    };
    assert_eq!(policy(CatchUp::Step).load(&condemned), Decision::NOTHING);
}

#[test]
fn move_across_a_proven_skew_continues_the_clock() {
    // CPU 1 is 6000 behind, or ahead: the guest reads what CPU 0 would have shown.
    assert_eq!(after(load(1, 194_000, skewed(-6_000))), (200_000, None));
    assert_eq!(after(load(1, 206_000, skewed(6_000))), (200_000, None));
    // A skew that took the counter behind the last reading.
    assert_eq!(after(load(1, 50_000, skewed(-150_000))), (200_000, None));
}

#[test]
fn move_onto_a_counter_never_seen_so_is_noticed_and_undone() {
    let (from, to) = (CpuId::new(0), CpuId::new(1));
    let by = Ticks::new(150_000);
    let (reading, accuse) = after(load(1, 50_000, Fault::default()));
    assert!((199_999..=200_000).contains(&reading), "{reading}");
    assert_eq!(
        accuse.map(Cause::scope),
        Some(Cause::BackwardsStep { from, to, by }.scope())
    );
    // The lab's experiment: three seconds ahead. The guest does not leap.
    let (reading, accuse) = after(load(1, 3_000_200_000, Fault::default()));
    assert!((199_999..=200_000).contains(&reading), "{reading}");
    assert!(matches!(accuse, Some(Cause::ForwardLeap { .. })));
    // A proven skew that is no longer true is not used.
    let (reading, accuse) = after(load(1, 150_000, skewed(-6_000)));
    assert!((199_999..=200_000).contains(&reading), "{reading}");
    assert!(accuse.is_some());
}

#[test]
fn small_backwards_step_is_removed_and_no_more() {
    // 5 ns after it was put the vCPU meets a counter 7 behind: too little to contradict the
    // clock, but backwards.
    let quick = Load {
        at: Nanos::new(100_005),
        ..load(1, 99_998, Fault::default())
    };
    let (reading, accuse) = after(quick);
    assert!((100_004..=100_005).contains(&reading), "{reading}");
    let (from, to, by) = (CpuId::new(0), CpuId::new(1), Ticks::new(2));
    assert_eq!(accuse, Some(Cause::BackwardsStep { from, to, by }));
}

#[test]
fn estimate_that_is_a_little_off_still_shows_no_step() {
    // The estimate is 0 and the truth -3: the counter reads 3 less than was read.
    let quick = Load {
        at: Nanos::new(100_000),
        ..load(1, 99_997, skewed(0))
    };
    assert_eq!(after(quick), (100_000, None));
}

#[test]
fn counter_that_halted_is_caught_up_to_the_line() {
    // The same CPU counted 40,000 of 100,000.
    let (reading, accuse) = after(load(0, 140_000, Fault::default()));
    assert!((199_999..=200_000).contains(&reading), "{reading}");
    assert!(matches!(accuse, Some(Cause::FellBehind { .. })));
    // Known before: no new accusation is needed to act, and none to leave it when it is right.
    let (reading, _) = after(load(0, 199_980, LAGS));
    assert!((199_999..=200_000).contains(&reading), "{reading}");
    assert_eq!(after(load(0, 200_005, LAGS)), (200_005, None));
}

#[test]
fn counter_ahead_of_the_line_goes_back_no_further_than_was_read() {
    let (reading, _) = after(load(0, 250_000, LAGS));
    assert!((199_999..=200_000).contains(&reading), "{reading}");
    // A lead that nothing is new about: 40,000 ahead since before it left, when it read 140,000.
    let leading = Load {
        offset: TscOffset::new(40_000),
        ..load(0, 200_000, LAGS)
    };
    let (reading, accuse) = after(leading);
    assert!((199_999..=200_000).contains(&reading), "{reading}");
    assert_eq!(accuse, None);
    // The guest read 300,000 already, when it was ahead.
    let ahead = Load {
        offset: TscOffset::new(200_000),
        ..load(0, 250_000, LAGS)
    };
    assert_eq!(after(ahead).0, 300_000);
}

#[test]
fn slew_gives_back_by_its_share_only() {
    let slew = CatchUp::Slew(Slew::new(Ppm::new(100_000).unwrap()).unwrap());
    let mut policy = policy(slew);
    let entry = |tsc: u64, at: u64, offset: TscOffset| Entry {
        cpu: CpuId::new(0),
        tsc: HostTsc::new(tsc),
        at: Nanos::new(at),
        offset,
        requested: false,
        fault: LAGS,
    };
    let mut offset = TscOffset::ZERO;
    policy.load(&Load {
        left: None,
        at: Nanos::ZERO,
        ..load(0, 0, LAGS)
    });
    // The counter stands still for 1 ms and then runs: a tenth of each further ms is given.
    for round in 1..=12_u64 {
        let decision = policy.entry(&entry((round - 1) * 1_000_000, round * 1_000_000, offset));
        let by = decision.adjust.map_or(0, TscDelta::get);
        let expected = if round <= 10 {
            99_990..=100_000
        } else {
            0..=100
        };
        assert!(expected.contains(&by), "{round}: {by}");
        offset = offset.wrapping_add(TscDelta::new(by));
    }
}

#[test]
fn slew_saves_nothing_up_in_good_times() {
    let slew = CatchUp::Slew(Slew::new(Ppm::new(100_000).unwrap()).unwrap());
    let mut policy = policy(slew);
    let entry = |tsc: u64, at: u64| Entry {
        cpu: CpuId::new(0),
        tsc: HostTsc::new(tsc),
        at: Nanos::new(at),
        offset: TscOffset::ZERO,
        requested: false,
        fault: LAGS,
    };
    policy.load(&Load {
        left: None,
        at: Nanos::ZERO,
        ..load(0, 0, LAGS)
    });
    // A second without a fault, looked at each millisecond; then the counter stands still for one.
    for ms in 1..=1_000 {
        let decision = policy.entry(&entry(ms * 1_000_000, ms * 1_000_000));
        assert_eq!(decision.adjust, None, "{ms}");
    }
    // A tenth of that millisecond, and not of the second.
    let decision = policy.entry(&entry(1_000_000_000, 1_001_000_000));
    let by = decision.adjust.unwrap().get();
    assert!((99_990..=100_000).contains(&by), "{by}");
}

#[test]
fn time_owed_is_given_back_on_whatever_cpu_the_guest_runs() {
    let slew = CatchUp::Slew(Slew::new(Ppm::new(100_000).unwrap()).unwrap());
    let mut policy = policy(slew);
    policy.load(&Load {
        left: None,
        at: Nanos::ZERO,
        ..load(0, 0, LAGS)
    });
    // CPU 0 counted half of 200,000 ns; the vCPU moves on to CPU 1, against which nothing is
    // held, and which goes on from there.
    let mut offset = TscOffset::ZERO;
    let mut owed = 100_000;
    let first = policy.load(&load(0, 100_000, LAGS));
    let given = first.adjust.unwrap().get();
    assert!((9_990..=20_000).contains(&given), "{given}");
    offset = offset.wrapping_add(TscDelta::new(given));
    owed -= given;
    for round in 1..=20_u64 {
        let entry = Entry {
            cpu: CpuId::new(1),
            tsc: HostTsc::new(100_000 + round * 100_000),
            at: Nanos::new(200_000 + round * 100_000),
            offset,
            requested: false,
            fault: Fault::default(),
        };
        let decision = policy.entry(&entry);
        let by = decision.adjust.map_or(0, TscDelta::get);
        // A tenth of 100,000 ns a round, until nothing is owed.
        assert!((0..=10_000).contains(&by), "{round}: {by}");
        offset = offset.wrapping_add(TscDelta::new(by));
        owed -= by;
    }
    assert!((0..=10).contains(&owed), "{owed}");
    assert!(!policy.owing);
}

#[test]
fn guest_that_owed_keeps_what_an_innocent_move_brought_it() {
    let slew = CatchUp::Slew(Slew::new(Ppm::new(1).unwrap()).unwrap());
    let mut policy = policy(slew);
    policy.load(&Load {
        left: None,
        at: Nanos::ZERO,
        ..load(0, 0, LAGS)
    });
    // 40 behind on a CPU that does not keep time, and next to nothing given back of it.
    let first = policy.load(&load(0, 199_960, LAGS));
    assert_eq!(first.adjust, None);
    assert!(policy.owing);
    // 100,000 ns later on a CPU that is 70 ahead of that one: not more than can be innocent, and
    // 30 past the line. The guest may have been told so much already.
    let moved = Load {
        at: Nanos::new(300_000),
        left: Some(Left {
            cpu: CpuId::new(0),
            tsc: HostTsc::new(199_960),
            at: Nanos::new(200_000),
            tsc_at_move: None,
        }),
        ..load(1, 300_030, Fault::default())
    };
    let decision = policy.load(&moved);
    assert_eq!((decision.adjust, decision.accuse), (None, None));
    assert!(!policy.owing);
}

#[test]
fn counter_held_to_be_slow_is_looked_at_even_while_it_keeps_time() {
    let mut policy = policy(CatchUp::Step);
    let loaded = policy.load(&load(0, 200_000, LAGS));
    assert_eq!(loaded.ask_again, Some(Nanos::new(50_000)));
    let entry = |tsc: u64, at: u64, offset: TscOffset| Entry {
        cpu: CpuId::new(0),
        tsc: HostTsc::new(tsc),
        at: Nanos::new(at),
        offset,
        requested: false,
        fault: LAGS,
    };
    // Half the rate for 50 us, and then the nominal one.
    let slow = policy.entry(&entry(225_000, 250_000, TscOffset::ZERO));
    let by = slow.adjust.unwrap().get();
    assert!((24_999..=25_000).contains(&by), "{by}");
    assert_eq!(slow.ask_again, Some(Nanos::new(50_000)));
    let offset = TscOffset::ZERO.wrapping_add(slow.adjust.unwrap());
    // Nothing to do, and yet it is not let out of sight: its rate can drop once more at any time.
    let keeps_time = Decision {
        ask_again: Some(Nanos::new(50_000)),
        ..Decision::NOTHING
    };
    for (tsc, at) in [(275_000, 300_000), (325_000, 350_000)] {
        assert_eq!(policy.entry(&entry(tsc, at, offset)), keeps_time);
    }
    let slow_again = policy.entry(&entry(350_000, 400_000, offset));
    let by = slow_again.adjust.unwrap().get();
    assert!((24_999..=25_000).contains(&by), "{by}");
    // On CPUs that nothing is held against nobody asks.
    let innocent = policy.load(&Load {
        offset,
        ..load(0, 200_000, Fault::default())
    });
    assert_eq!(innocent.ask_again, None);
}

#[test]
fn offset_moved_by_another_hand_ends_all_action() {
    let mut policy = policy(CatchUp::Step);
    policy.load(&load(0, 200_000, Fault::default()));
    assert!(!policy.is_observing());
    let mut at_entry = policy;
    let entry = Entry {
        cpu: CpuId::new(0),
        tsc: HostTsc::new(150_000),
        at: Nanos::new(300_000),
        offset: TscOffset::new(77),
        requested: false,
        fault: LAGS,
    };
    assert_eq!(at_entry.entry(&entry), Decision::NOTHING);
    assert!(at_entry.is_observing());
    let theirs = Load {
        offset: TscOffset::new(77),
        ..load(1, 50_000, PAIR)
    };
    assert_eq!(policy.load(&theirs), Decision::NOTHING);
    assert!(policy.is_observing());
    assert_eq!(
        policy.load(&Load {
            offset: TscOffset::ZERO,
            ..theirs
        }),
        Decision::NOTHING
    );
}

/// A guest on a host of one CPU whose clock is made of that CPU's counter, and so has no error of
/// its own: 2.4 ticks in a nanosecond, which were once taken for a jump of the host.
#[test]
fn rounding_of_an_exact_clock_is_nobodys_fault() {
    let mut policy = Targeted::new(TargetedConfig {
        line: Line::through(
            GuestTsc::new(0),
            Nanos::ZERO,
            TickRate::new(Khz::new(2_400_000).unwrap()),
        ),
        clock_error: Nanos::ZERO,
        rate_tolerance: Ppm::new(500).unwrap(),
        ..policy(CatchUp::Step).config
    });
    policy.load(&Load {
        left: None,
        at: Nanos::ZERO,
        ..load(0, 0, Fault::default())
    });
    for tsc in 1..=240 {
        let entry = Entry {
            cpu: CpuId::new(0),
            tsc: HostTsc::new(tsc),
            at: Nanos::new(tsc * 10 / 24),
            offset: TscOffset::ZERO,
            requested: false,
            fault: Fault::default(),
        };
        assert_eq!(policy.entry(&entry), Decision::NOTHING, "{tsc}");
    }
    // A jump that is more than rounding is one. Within one nanosecond of the clock nothing is
    // expected; 2.4 + 3 ticks, rounded down, are allowed for, and 2 for the share.
    let jump = |by: u64| {
        let entry = Entry {
            cpu: CpuId::new(0),
            tsc: HostTsc::new(240 + by),
            at: Nanos::new(100),
            offset: TscOffset::ZERO,
            requested: false,
            fault: Fault::default(),
        };
        policy.clone().entry(&entry).accuse
    };
    assert_eq!(jump(7), None);
    assert_eq!(jump(8), Some(Cause::HostJump { by: Ticks::new(8) }));
}

/// A history on a host without fault: true times in femtoseconds, what the clock is wrong by at
/// each, and where the vCPU is then.
#[derive(Clone, Debug)]
struct Innocent {
    khz: u32,
    /// The counters' rate less the nominal one, within the tolerance; in parts per million.
    off_ppm: i64,
    tolerance_ppm: u32,
    clock_error: u64,
    /// Femtoseconds between two moments, the clock's error in 1024ths of its bound, the CPU, and
    /// whether the vCPU was put.
    moments: Vec<(u64, i64, u32, bool)>,
    start: u64,
    counter: u64,
}

fn innocent() -> impl Strategy<Value = Innocent> {
    let wait = prop_oneof![
        0_u64..5_000_000,
        0_u64..10_000_000_000_000,
        0_u64..1_000_000_000_000_000_000
    ];
    let error = prop_oneof![Just(-1024_i64), Just(0), Just(1024), -1024_i64..=1024];
    let rate = prop_oneof![
        1_u32..=u32::MAX,
        500_000_u32..6_000_000,
        Just(1_000_000),
        Just(2_400_000)
    ];
    (
        rate,
        0_u32..=2_000,
        -2_000_i64..=2_000,
        prop_oneof![Just(0_u64), 0_u64..8, 0_u64..2_000],
        prop::collection::vec((wait, error, 0_u32..3, any::<bool>()), 1..40),
        any::<(u64, u64)>(),
    )
        .prop_map(
            |(khz, tolerance_ppm, off, clock_error, moments, (start, counter))| Innocent {
                khz,
                off_ppm: off.clamp(-i64::from(tolerance_ppm), tolerance_ppm.into()),
                tolerance_ppm,
                clock_error,
                moments,
                start: start % 1_000_000_000_000,
                counter,
            },
        )
}

impl Innocent {
    fn policy(&self, catch_up: CatchUp) -> Targeted {
        let rate = TickRate::new(Khz::new(self.khz).unwrap());
        Targeted::new(TargetedConfig {
            line: Line::through(GuestTsc::new(self.counter), Nanos::ZERO, rate),
            catch_up,
            clock_error: Nanos::new(self.clock_error),
            rate_tolerance: Ppm::new(self.tolerance_ppm).unwrap(),
            recheck: Nanos::new(50_000),
        })
    }

    /// The counters, all of which are equal.
    fn tsc(&self, fs: u64) -> HostTsc {
        // Ticks in 10^18 fs: kilohertz x 10^-12 x (10^6 + off) x 10^-6.
        let share = u128::try_from(1_000_000 + i128::from(self.off_ppm));
        let factor = u128::from(self.khz) * share.expect("a rate is not negative");
        let ticks = u128::from(fs) * factor / 10_u128.pow(18);
        // A counter wraps around.
        HostTsc::new(self.counter.wrapping_add(wide::low(ticks)))
    }

    /// The clock: wrong by its error, and rounded down to a nanosecond.
    fn clock(&self, fs: u64, error: i64) -> Nanos {
        let base = i128::from(self.start) * 1_000_000 + 2_000_000_000;
        let error = i128::from(error) * i128::from(self.clock_error) * 1_000_000 / 1_024;
        let shown = u64::try_from((base + i128::from(fs) + error) / 1_000_000);
        Nanos::new(shown.expect("the error is less than where the clock begins"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever the rate, the clock's error and the roundings: a host that keeps time is never
    /// accused, and nothing is done to its guests.
    #[test]
    fn host_that_keeps_time_is_left_alone(history in innocent(), slew in any::<bool>()) {
        let catch_up = if slew {
            CatchUp::Slew(Slew::new(Ppm::new(1_000).unwrap()).unwrap())
        } else {
            CatchUp::Step
        };
        let mut policy = history.policy(catch_up);
        let (mut now, mut left) = (0_u64, None);
        for &(wait, error, cpu, put) in &history.moments {
            now = now.saturating_add(wait).min(1 << 62);
            let (tsc, at) = (history.tsc(now), history.clock(now, error));
            let on = left.map_or(cpu, |left: Left| left.cpu.get());
            let decision = if put || left.is_none() {
                policy.load(&Load {
                    cpu: CpuId::new(cpu),
                    tsc,
                    at,
                    left,
                    offset: TscOffset::ZERO,
                    host_unstable: false,
                    fault: Fault::default(),
                })
            } else {
                policy.entry(&Entry {
                    cpu: CpuId::new(on),
                    tsc,
                    at,
                    offset: TscOffset::ZERO,
                    requested: false,
                    fault: Fault::default(),
                })
            };
            prop_assert_eq!(decision, Decision::NOTHING);
            let cpu = CpuId::new(if put || left.is_none() { cpu } else { on });
            left = Some(Left { cpu, tsc, at, tsc_at_move: None });
        }
    }
}
