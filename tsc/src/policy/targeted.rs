//! The policy of ours: the one that the seed calls "a slightly more clever version".
//!
//! It acts only where something is known or seen against the CPUs at hand, and then it continues
//! the guest's clock instead of stopping it:
//!
//! - between two CPUs that are at fault, by the skew that is proven of them, or else by the time
//!   that passed on the monotonic clock;
//! - on a CPU that does not keep time, by the guest's line: forward to it when behind, and no
//!   further back than to what the guest has read when ahead (it can be, after a move);
//! - where the guest still runs behind by what a slew owes it, forward only, on whatever CPU;
//! - everywhere else not at all. An offset that nobody touched keeps KVM's master clock on, and
//!   with it the guest's fast clock.
//!
//! A vCPU on a CPU that is held not to keep time is looked at again soon, and for as long as it runs
//! there, whether or not it was behind at the look before: the guest lags by no more than such a CPU
//! loses between two looks, even when its rate drops in the midst of a stay. A CPU that nothing is held
//! against is found out at the next look that time brings.
//!
//! What it sees for itself it reports: a counter that moved otherwise than the monotonic clock says,
//! by more than that clock's own error, a tolerance for the rate, and what whole ticks and whole
//! nanoseconds are rounded by ([`Targeted::allowance`]). The tolerance is what separates
//! a rate that *dropped* from one that is merely not quite the nominal one: every real TSC is, and a
//! guest that disciplines its clock expects it to stay that way.
//!
//! Two cooks ruin a clock. When the offset is not the one that this policy left, somebody else (KVM
//! on a host that it condemned) compensates too, and from then on it only observes.

use super::{CatchUp, Decision, Entry, Fault, Guarantees, Line, Load, Policy, When};
use crate::offset::guest_unscaled;
use crate::rate::{TickRate, ticks_exact_floor};
use crate::stability::Cause;
use crate::units::{CpuId, GuestTsc, HostTsc, Khz, Nanos, Ppm, Ticks, TscDelta, TscOffset};
use crate::wide::Factor;

/// What [`Targeted`] goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetedConfig {
    /// What the guest's TSC should read.
    pub line: Line,
    /// How time is given back.
    pub catch_up: CatchUp,
    /// How wrong a reading of the monotonic clock can be: its resolution; and where that clock is
    /// itself made of the TSCs, the largest skew among them. That a reading is in whole nanoseconds
    /// is allowed for besides: a clock made of one counter has an error of 0.
    pub clock_error: Nanos,
    /// How far from nominal a counter's rate may be without being at fault.
    pub rate_tolerance: Ppm,
    /// How soon to look again at a vCPU on a CPU that is held not to keep time: what it lags meanwhile
    /// is at most this. A look is an exit, and so is paid for on such CPUs, and on no others.
    pub recheck: Nanos,
}

/// One vCPU's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targeted {
    config: TargetedConfig,
    /// `clock_error`, or 1 ns if that is more, in ticks: nobody is behind by less than the clock's
    /// last digit.
    clock_error: Ticks,
    /// What two readings of the clock and two of a counter can differ by while both keep time.
    allowance: Ticks,
    /// `rate_tolerance` as a factor; `None` for 0.
    tolerance: Option<Factor>,
    /// The last reading on the CPU that the vCPU runs on.
    last: Option<(CpuId, HostTsc, Nanos)>,
    /// When the guest was last brought forward, or seen to need none: what a slew's share counts
    /// from, so that good times save nothing up for a leap.
    forwarded_at: Option<Nanos>,
    /// The guest is still behind its line, because a slew gives time back little by little; on
    /// whatever CPU it runs next.
    owing: bool,
    /// The offset as this policy left it.
    left: Option<TscOffset>,
    observing: bool,
}

/// What a stretch of time looked like on the counter, against the monotonic clock.
struct Stretch {
    /// The ticks that should have been counted.
    expected: Ticks,
    /// Counted less expected, the known skew taken out; when that is more than can be innocent.
    error: Option<TscDelta>,
}

impl Targeted {
    /// What it promises.
    pub const GUARANTEES: Guarantees = Guarantees {
        monotonic_across_moves: When::Always,
        keeps_elapsed_time: When::Always,
        leaves_the_innocent_alone: true,
    };

    /// A vCPU under this policy.
    #[must_use]
    pub fn new(config: TargetedConfig) -> Self {
        let rate = config.line.rate();
        Self {
            config,
            clock_error: Self::patience(rate, config.clock_error),
            allowance: Self::allowance(rate.khz(), config.clock_error),
            tolerance: Factor::floor(u64::from(config.rate_tolerance.get()), 1_000_000),
            last: None,
            forwarded_at: None,
            owing: false,
            left: None,
            observing: false,
        }
    }

    /// Whether somebody else was found to move the offset, so that this policy only watches.
    #[must_use]
    pub const fn is_observing(&self) -> bool {
        self.observing
    }

    /// A CPU was seen to run at `khz`, more than any before: the line is bent to it.
    pub fn raise_rate(&mut self, now: Nanos, khz: Khz) {
        if khz > self.config.line.rate().khz() {
            let rate = TickRate::new(khz);
            self.config.line = self.config.line.bent(now, rate);
            self.clock_error = Self::patience(rate, self.config.clock_error);
            self.allowance = Self::allowance(khz, self.config.clock_error);
        }
    }

    /// One reading's error in ticks, at least that of a clock which tells whole nanoseconds.
    fn patience(rate: TickRate, clock_error: Nanos) -> Ticks {
        rate.ticks_floor(clock_error.max(Nanos::new(1)))
            .unwrap_or(Ticks::new(u64::MAX))
    }

    /// By how many ticks an innocent counter can differ from what the clock makes expected, rates
    /// apart: `ceil(r (2 E + 1)) + 2` at `r` ticks in a nanosecond and a clock error of `E`.
    ///
    /// With the true time `D` between two readings, and `passed` as the clock shows it:
    ///
    /// - each reading of the clock is wrong by at most `E`, and then rounded down to a nanosecond;
    ///   of two roundings the difference is less than 1: `|passed - D| < 2 E + 1`;
    /// - each reading of the counter is rounded down to a tick: `|counted - r D| < 1`;
    /// - what is expected is rounded down twice at most ([`TickRate::ticks_floor`]):
    ///   `r passed - 2 < expected <= r passed`.
    ///
    /// So `counted - expected < r (2 E + 1) + 3` and `expected - counted < r (2 E + 1) + 1`; both are
    /// whole, and a whole number below `x + 3` is at most `ceil(x) + 2`.
    fn allowance(khz: Khz, clock_error: Nanos) -> Ticks {
        let readings = clock_error
            .get()
            .checked_mul(2)
            .and_then(|e| e.checked_add(1));
        // The floor and one more are no less than the ceiling.
        readings
            .and_then(|nanos| ticks_exact_floor(Nanos::new(nanos), khz))
            .map_or(Ticks::new(u64::MAX), |ticks| {
                Ticks::new(ticks.get().saturating_add(3))
            })
    }

    /// Compares a counter's advance with the monotonic clock's.
    ///
    /// A counter whose rate is off by no more than the tolerance `p` adds `p r D` to the difference.
    /// `D` may be longer than the clock shows, so the share is one of `expected + allowance`, which is
    /// at least `r D`; and it is rounded down twice at most, hence 2 more.
    fn stretch(&self, from: (HostTsc, Nanos), to: (HostTsc, Nanos), skew: TscDelta) -> Stretch {
        let passed = to.1.saturating_sub(from.1);
        let expected = self
            .config
            .line
            .rate()
            .ticks_floor(passed)
            .unwrap_or(Ticks::ZERO);
        let longest = expected.get().saturating_add(self.allowance.get());
        let share = self.tolerance.map_or(0, |factor| {
            // A share of less than the whole has no more bits than the whole.
            factor
                .apply_floor(longest)
                .map_or(0, |share| share.saturating_add(2))
        });
        let tolerance = share.saturating_add(self.allowance.get());
        let counted = to.0.wrapping_since(from.0);
        // OK because all three are within 2^64 and i128 holds their sum.
        let error = i128::from(counted.get())
            .wrapping_sub(i128::from(skew.get()))
            .wrapping_sub(i128::from(expected.get()));
        let error = (error.unsigned_abs() > u128::from(tolerance))
            .then(|| TscDelta::new(i64::try_from(error).unwrap_or(i64::MIN)));
        Stretch { expected, error }
    }

    /// Whether another hand moved the offset; from the first time on, for ever.
    fn interfered(&mut self, offset: TscOffset) -> bool {
        self.observing |= self.left.is_some_and(|left| left != offset);
        self.observing
    }

    /// Notes where things stand after `decision`.
    fn leave(&mut self, at: (CpuId, HostTsc, Nanos), offset: TscOffset, decision: &Decision) {
        self.last = Some(at);
        self.left = Some(decision.adjust.map_or(offset, |by| offset.wrapping_add(by)));
        if decision.adjust.is_some() || !self.owing || self.forwarded_at.is_none() {
            self.forwarded_at = Some(at.2);
        }
    }

    /// Whether a guest that reads `reading` is behind its line by more than the clock's error.
    fn is_behind(&self, reading: GuestTsc, now: Nanos) -> bool {
        self.config
            .line
            .behind(reading, now)
            .is_some_and(|behind| behind > self.clock_error)
    }

    /// The reading of a vCPU on a CPU that does not keep time: forward to the line; or, when ahead
    /// of it, back towards the line as far as `seen` allows.
    fn on_line(&self, base: GuestTsc, seen: GuestTsc, now: Nanos) -> GuestTsc {
        let line = &self.config.line;
        let Some(target) = line.target_floor(now) else {
            return base;
        };
        if !base.is_before(target) {
            return later(target, seen);
        }
        let since = self.forwarded_at.unwrap_or(now);
        match self.config.catch_up.forward(line, base, now, since) {
            Some(by) => base.wrapping_add(by),
            None => base,
        }
    }
}

/// The later of two readings less than half the circle apart.
const fn later(a: GuestTsc, b: GuestTsc) -> GuestTsc {
    if a.is_before(b) { b } else { a }
}

/// What a counter's error on one CPU is called.
fn by_itself(cpu: CpuId, error: TscDelta) -> Cause {
    let by = error.magnitude();
    if error.is_negative() {
        Cause::FellBehind { cpu, by }
    } else {
        Cause::HostJump { by }
    }
}

impl Policy for Targeted {
    fn name(&self) -> &'static str {
        "targeted"
    }

    fn guarantees(&self) -> Guarantees {
        Self::GUARANTEES
    }

    fn load(&mut self, load: &Load) -> Decision {
        let place = (load.cpu, load.tsc, load.at);
        if self.interfered(load.offset) {
            return Decision::NOTHING;
        }
        let Some(left) = load.left else {
            self.leave(place, load.offset, &Decision::NOTHING);
            return Decision::NOTHING;
        };
        let (here, seen) = (
            guest_unscaled(load.tsc, load.offset),
            guest_unscaled(left.tsc, load.offset),
        );
        let moved = load.moved();
        let Fault {
            pair,
            mut lags,
            skew,
        } = load.fault;
        let known = if moved && pair { skew } else { None };
        let apart = known.unwrap_or(TscDelta::ZERO);

        let stretch = self.stretch((left.tsc, left.at), (load.tsc, load.at), apart);
        let backwards = here.is_before(seen) && known.is_none();
        let accuse = match stretch.error {
            Some(error) if !moved => Some(by_itself(load.cpu, error)),
            Some(error) if error.is_negative() => {
                let by = error.magnitude();
                Some(Cause::BackwardsStep {
                    from: left.cpu,
                    to: load.cpu,
                    by,
                })
            }
            Some(error) => {
                let by = error.magnitude();
                Some(Cause::ForwardLeap {
                    from: left.cpu,
                    to: load.cpu,
                    by,
                })
            }
            None if backwards => {
                let by = here.wrapping_since(seen).magnitude();
                Some(if moved {
                    Cause::BackwardsStep {
                        from: left.cpu,
                        to: load.cpu,
                        by,
                    }
                } else {
                    Cause::FellBehind { cpu: load.cpu, by }
                })
            }
            None => None,
        };
        lags |= !moved && accuse.is_some();
        let at_fault = lags || (moved && pair) || accuse.is_some();
        lags |= self.owing;
        if !at_fault && !self.owing {
            self.leave(place, load.offset, &Decision::NOTHING);
            return Decision::NOTHING;
        }

        // The guest's clock as if it had run on: by the proven skew as long as nothing contradicts
        // it, else by the monotonic clock; on one and the same CPU, by its counter.
        let continued = match (moved, known, accuse) {
            (false, ..) => here,
            (true, Some(_), None) => here.wrapping_add(apart.wrapping_neg()),
            (true, None, None) => here,
            (true, _, Some(_)) => seen.wrapping_advance(stretch.expected),
        };
        let base = later(continued, seen);
        let new = if lags {
            let on_line = self.on_line(base, seen, load.at);
            // What is owed is given. A counter that nothing is held against may have brought the guest
            // past its line meanwhile, and then nothing is owed and nothing taken.
            if at_fault {
                on_line
            } else {
                later(base, on_line)
            }
        } else {
            base
        };

        let by = new.wrapping_since(here);
        // The line is rounded down by what the clock cannot tell: ahead of it by that is on it.
        let on_line = lags
            && known.is_none()
            && accuse.is_none()
            && !here.is_before(seen)
            && by.is_negative()
            && by.magnitude() <= self.clock_error;
        let adjust = (by != TscDelta::ZERO && !on_line).then_some(by);
        let after = if on_line { here } else { new };
        self.owing = lags && self.is_behind(after, load.at);
        let ask_again = lags.then_some(self.config.recheck);
        let decision = Decision {
            adjust,
            accuse,
            ask_again,
            ..Decision::NOTHING
        };
        self.leave(place, load.offset, &decision);
        decision
    }

    fn entry(&mut self, entry: &Entry) -> Decision {
        let place = (entry.cpu, entry.tsc, entry.at);
        if self.interfered(entry.offset) {
            return Decision::NOTHING;
        }
        let last = self.last.filter(|last| last.0 == entry.cpu);
        let accuse = last.and_then(|last| {
            let stretch = self.stretch((last.1, last.2), (entry.tsc, entry.at), TscDelta::ZERO);
            stretch.error.map(|error| by_itself(entry.cpu, error))
        });
        let (mut adjust, mut ask_again) = (None, None);
        if entry.fault.lags || accuse.is_some() || self.owing {
            let here = guest_unscaled(entry.tsc, entry.offset);
            self.owing = self.is_behind(here, entry.at);
            if self.owing {
                let (line, since) = (&self.config.line, self.forwarded_at.unwrap_or(entry.at));
                adjust = self.config.catch_up.forward(line, here, entry.at, since);
                let after = adjust.map_or(here, |by| here.wrapping_add(by));
                self.owing = self.is_behind(after, entry.at);
            }
            ask_again = Some(self.config.recheck);
        }
        let decision = Decision {
            adjust,
            accuse,
            ask_again,
            ..Decision::NOTHING
        };
        self.leave(place, entry.offset, &decision);
        decision
    }
}

#[cfg(test)]
mod tests {
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
}
