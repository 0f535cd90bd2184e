//! The story of the seed, and what a policy must be in every scenario, as observed in simulation.

use proptest::prelude::*;
use tsc::Nanos;
use tsc::sim::{
    Boot, Clocksource, CpuModel, HPET, HostEvent, PolicyKind, Report, SLEW_BOUND, Scenario, Stage,
    run, run_all, run_led, scenario, scenarios, table,
};
use tsc::stability::{Cause, PlatformReport};

const SECOND: u64 = 1_000_000_000;

/// One reading of the monotonic clock of these hosts is right to the HPET's period.
const CLOCK_NS: u64 = 70;

fn named(name: &str) -> Scenario {
    scenario(name).unwrap()
}

fn lasting(nanos: u64) -> Nanos {
    Nanos::new(nanos)
}

fn of(reports: &[Report], policy: PolicyKind) -> &Report {
    reports
        .iter()
        .find(|report| report.policy == policy)
        .unwrap()
}

#[test]
fn seeds_machine_shows_the_story_of_the_mail() {
    for seed in 1..=5 {
        let reports = run_all(&named("seed"), seed);
        println!("{}", table(&reports));

        let svm = of(&reports, PolicyKind::Svm2010);
        assert!(svm.booted(), "AMD's code of 2010 boots the guest");
        assert!(svm.backwards_steps() > 0, "but shows it backwards steps");
        // The deltas: 6 us behind, 1 us ahead.
        assert!(svm.backwards.largest.max(svm.across.largest) <= Nanos::new(7_000));
        assert_eq!((svm.host_mark, svm.offset_writes), (None, 0));

        let unified = of(&reports, PolicyKind::Unified2010);
        assert!(
            matches!(unified.boot, Boot::Hung { at: Stage::Ticks }),
            "time stands still"
        );
        let mark = unified.host_mark.expect("and the host is condemned");
        assert_eq!(mark.cause, Cause::Platform(PlatformReport::KernelMark));
        // Of half a minute nine tenths and more were erased.
        assert!(unified.erased.get() > unified.watched.get() / 10 * 9);

        let catchup = of(&reports, PolicyKind::UnifiedCatchup2010);
        assert!(
            catchup.booted() && catchup.host_mark.is_some(),
            "boots on a condemned host"
        );
        assert!(catchup.erased <= lasting(CLOCK_NS));

        let targeted = of(&reports, PolicyKind::Targeted);
        assert!(
            targeted.keeps_time(lasting(CLOCK_NS)),
            "boots without a backwards step"
        );
        assert_eq!(targeted.host_mark, None, "and condemns no host");
        assert!(
            targeted
                .marks
                .iter()
                .all(|mark| matches!(mark.cause, Cause::Skew { .. }))
        );
    }
}

#[test]
fn deltas_below_the_time_of_a_move_condemn_nobody() {
    // The fastest move takes 1.5 us: a delta of 1 us is never met backwards.
    let mut small = named("seed");
    for (cpu, nanos) in small.host.cpus.iter_mut().zip([0, -600, 400, -300]) {
        cpu.offset = nanos * 24 / 10;
    }
    for seed in 1..=3 {
        let unified = run(&small, PolicyKind::Unified2010, seed);
        assert!(unified.booted() && unified.host_mark.is_none());
        assert_eq!(unified.offset_writes, 0);
        // A guest sees the delta nevertheless, from one vCPU to the other.
        assert!(unified.across.count > 0 && unified.across.largest <= Nanos::new(1_000));
        assert_eq!(run(&small, PolicyKind::Targeted, seed).backwards_steps(), 0);
    }
}

#[test]
fn moves_decide_how_much_time_is_erased() {
    let with_moves = |permille: u32| {
        let mut scenario = named("seed");
        scenario.scheduling.wake_move = permille;
        run(&scenario, PolicyKind::Unified2010, 7)
    };
    let (half, most) = (with_moves(500), with_moves(900));
    // Half of all waits erased: the boot takes about twice as long, and a tenth left: ten times.
    let (Boot::Booted { at: half_at }, Boot::Booted { at: most_at }) = (half.boot, most.boot)
    else {
        panic!("{} and {}", half.boot, most.boot);
    };
    assert!(
        (2 * SECOND..4 * SECOND).contains(&half_at.get()),
        "{half_at}"
    );
    assert!(
        (8 * SECOND..16 * SECOND).contains(&most_at.get()),
        "{most_at}"
    );
    assert!(matches!(with_moves(1_000).boot, Boot::Hung { .. }));

    // Without any move nobody notices anything, although the counters differ as before.
    let mut still = named("seed");
    still.scheduling.wake_move = 0;
    still.scheduling.direct_move = 0;
    still.scheduling.preempted_move = 0;
    let unified = run(&still, PolicyKind::Unified2010, 7);
    assert!(unified.booted() && unified.host_mark.is_none() && unified.backwards.count == 0);
}

#[test]
fn scenarios_of_the_list_are_valid_and_broken_ones_are_not() {
    assert!(scenarios().iter().all(Scenario::is_valid));
    let broken = |change: &dyn Fn(&mut Scenario)| {
        let mut scenario = named("seed");
        change(&mut scenario);
        !scenario.is_valid()
    };
    assert!(broken(&|s| s.host.cpus.truncate(1)));
    assert!(broken(&|s| s
        .host
        .cpus
        .resize(9, CpuModel { offset: 0, hz: 1 })));
    assert!(broken(&|s| s.vcpus = 3));
    assert!(broken(&|s| s.scheduling.move_ns = (2, 1)));
    assert!(broken(&|s| s
        .host
        .events
        .push((0, HostEvent::Write { cpu: 4, by: 1 }))));
    assert!(broken(&|s| s.host.nominal_khz = 0));
}

#[test]
fn ideal_host_is_left_alone_by_all() {
    for report in run_all(&named("ideal"), 3) {
        assert!(report.keeps_time(Nanos::ZERO), "{}", report.policy.name());
        assert_eq!(report.offset_writes, 0);
        assert!(report.host_mark.is_none() && report.marks.is_empty());
        assert_eq!(
            (report.largest_lag, report.largest_lead),
            (Nanos::ZERO, Nanos::ZERO)
        );
    }
}

/// A clock made of the one counter that there is has no error, only roundings: they are no fault.
#[test]
fn ideal_host_of_one_cpu_is_left_alone_by_all() {
    let mut one = named("ideal");
    one.host.cpus.truncate(1);
    one.vcpus = 1;
    one.horizon_ns = SECOND;
    one.patience_ns = SECOND;
    assert_eq!(one.host.clocksource, Clocksource::Tsc);
    for seed in 0..4 {
        for report in run_all(&one, seed) {
            let name = report.policy.name();
            assert_eq!(report.offset_writes, 0, "{name}");
            assert!(
                report.host_mark.is_none() && report.marks.is_empty(),
                "{name}"
            );
            assert_eq!(report.largest_lag, Nanos::ZERO, "{name}");
        }
    }
}

#[test]
fn experiment_of_the_laboratory_leaps_and_then_stands_still() {
    // A CPU set three seconds ahead under a running guest: on KVM's code the guest leaps forward,
    // and after the mark it stands still until real time has caught up.
    let reports = run_all(&named("skewed-cpu"), 1);
    let catchup = of(&reports, PolicyKind::UnifiedCatchup2010);
    assert!((2_999_000_000..=3_000_001_000).contains(&catchup.largest_lead.get()));
    assert!(catchup.host_mark.is_some());
    let targeted = of(&reports, PolicyKind::Targeted);
    assert!(targeted.keeps_time(lasting(2 * CLOCK_NS)) && targeted.host_mark.is_none());
    assert!(
        targeted.largest_lead <= Nanos::new(2 * CLOCK_NS),
        "{}",
        targeted.largest_lead
    );
    // CPU 1 is at fault with each of the other three, and nobody else is.
    assert_eq!(targeted.marks.len(), 3);
}

/// How far a guest's clock was from true time at any reading, to either side. A clock that leads is
/// wrong by as much as one that lags.
fn largest_error(report: &Report) -> Nanos {
    report.largest_lag.max(report.largest_lead)
}

/// What is claimed of the targeted policy, against each other one, in every scenario and for every
/// seed by itself, with no policy left out:
///
/// 1. No vCPU reads less than it read before.
/// 2. Its guest sees no more backwards steps, on one vCPU and from one to the other together, and none
///    that is larger.
/// 3. Its guest's clock is no further from true time at its worst reading ([`largest_error`]).
/// 4. No more time is erased for good.
/// 5. It lags no more; or the other one leads at some reading by a thousand times what ours lags. Such
///    a clock does not keep time: ahead of the truth there is always less to lag.
/// 6. It writes no more offsets; or the other one shows more backwards steps, or is further from true
///    time. So it writes the fewest of all that keep time as well.
///
/// Times are compared to within two readings of the hosts' clock, one for the line's anchor and one
/// for the correction; counts exactly. `steps_count` says whether the number of steps is compared.
fn hold_against_each(place: &str, reports: &[Report], steps_count: bool) {
    let slack = Nanos::new(2 * CLOCK_NS);
    let ours = of(reports, PolicyKind::Targeted);
    assert_eq!(ours.backwards.count, 0, "{place}");
    for other in reports {
        let who = format!("{} in {place}", other.policy.name());
        let (us, them) = (ours.backwards_steps(), other.backwards_steps());
        assert!(us <= them || !steps_count, "{who}: {us} steps and {them}");
        let (us, them) = (ours.across.largest, other.across.largest);
        assert!(us <= them, "{who}: back by {us} and {them}");
        let (us, them) = (largest_error(ours), largest_error(other));
        assert!(
            us <= them.saturating_add(slack),
            "{who}: wrong by {us} and {them}"
        );
        let (us, them) = (ours.erased, other.erased);
        assert!(
            us <= them.saturating_add(slack),
            "{who}: erased {us} and {them}"
        );
        let (us, them) = (ours.largest_lag, other.largest_lag);
        assert!(
            us <= them.saturating_add(slack) || other.largest_lead.get() >= us.get() * 1_000,
            "{who}: lags {us} and {them}, leads {}",
            other.largest_lead
        );
        let (us, them) = (ours.offset_writes, other.offset_writes);
        let worse = other.backwards_steps() > ours.backwards_steps()
            || largest_error(other) > largest_error(ours).saturating_add(slack);
        assert!(us <= them || worse, "{who}: {us} writes and {them}");
    }
}

/// Which vCPU read when, as far as it is plotted.
fn instants(report: &Report) -> Vec<(usize, u64)> {
    let points = report.points.iter();
    points.map(|point| (point.vcpu, point.true_ns)).collect()
}

/// Each scenario on a thread of its own.
fn in_every_scenario(check: impl Fn(&Scenario) + Sync) {
    let scenarios = scenarios();
    std::thread::scope(|scope| {
        for scenario in &scenarios {
            let check = &check;
            scope.spawn(move || check(scenario));
        }
    });
}

/// All policies on one and the same history of readings and moves ([`run_led`]): nothing is left to chance,
/// and nothing is excepted.
#[test]
fn targeted_is_at_least_as_good_as_any_on_one_history() {
    in_every_scenario(|scenario| {
        for seed in 0..64 {
            let reports: Vec<_> = PolicyKind::ALL
                .iter()
                .map(|&policy| run_led(scenario, policy, seed))
                .collect();
            assert!(
                reports
                    .iter()
                    .all(|report| report.moves == reports[0].moves)
            );
            hold_against_each(&format!("{} {seed}", scenario.name), &reports, true);
        }
    });
}

/// The same where CPUs drop their rate at any time of the host's tick, not at its beginning alone: in the
/// midst of a vCPU's stay nobody but a look finds out.
#[test]
fn targeted_is_at_least_as_good_as_any_whenever_a_rate_drops() {
    for shift in [100_000, 300_000, 900_000] {
        let scenario = rate_drop_later_by(shift);
        for seed in 0..12 {
            let reports: Vec<_> = PolicyKind::ALL
                .iter()
                .map(|&policy| run_led(&scenario, policy, seed))
                .collect();
            hold_against_each(&format!("rate-drop {shift} later {seed}"), &reports, true);
        }
    }
}

fn rate_drop_later_by(nanos: u64) -> Scenario {
    let mut scenario = named("rate-drop");
    for (at, _) in &mut scenario.host.events {
        *at += nanos;
    }
    scenario
}

/// The guest goes by what it reads here, so that each policy has a history of its own. All of the claim
/// holds nevertheless, but for the number of steps in `rate-drop`: see
/// [`number_of_steps_in_rate_drop_is_chance_unless_the_history_is_one`].
#[test]
fn targeted_is_at_least_as_good_as_any_on_histories_of_their_own() {
    in_every_scenario(|scenario| {
        for seed in 0..12 {
            let reports = run_all(scenario, seed);
            let place = format!("{} {seed}", scenario.name);
            assert!(of(&reports, PolicyKind::Targeted).booted(), "{place}");
            hold_against_each(&place, &reports, scenario.name != "rate-drop");
        }
    });
}

/// On a CPU that lost half its rate a vCPU falls behind the others until its offset is next written, under
/// every policy: an offset cannot change a rate. A reading there is a step when it lags by more than the other
/// vCPU's latest reading is old, so that there are steps while both are busy and a rate is low. How often
/// that is depends on when the guest sleeps: until its TSC has come so far, and then to the host's next
/// tick. Nanoseconds decide at which tick it wakes, and the scheduler's lots fall otherwise from there on:
/// two policies make two histories of one seed. From history to history the number of steps differs
/// more than tenfold under one and the same policy, so that two of them compare lots, not policies.
#[test]
fn number_of_steps_in_rate_drop_is_chance_unless_the_history_is_one() {
    let scenario = named("rate-drop");
    let policies = [PolicyKind::UnifiedCatchup2010, PolicyKind::Targeted];
    let (mut least, mut most, mut led_sums) = ([u64::MAX; 2], [0; 2], [0; 2]);
    for seed in 0..64 {
        let own = policies.map(|policy| run(&scenario, policy, seed));
        let led = policies.map(|policy| run_led(&scenario, policy, seed));
        assert!(instants(&own[0]) != instants(&own[1]), "{seed}: two");
        assert!(instants(&led[0]) == instants(&led[1]), "{seed}: one");
        for policy in 0..2 {
            let steps = own[policy].backwards_steps();
            least[policy] = least[policy].min(steps);
            most[policy] = most[policy].max(steps);
            led_sums[policy] += led[policy].backwards_steps();
        }
    }
    for policy in 0..2 {
        assert!(most[policy] > 10 * least[policy], "{least:?} {most:?}");
    }
    // README.md tells them.
    assert_eq!(led_sums, [88_530, 82_304]);
}

#[test]
fn targeted_keeps_time_wherever_counters_do_not_change_their_rate() {
    for scenario in scenarios()
        .into_iter()
        .filter(|scenario| scenario.name != "rate-drop")
    {
        for seed in 0..8 {
            let report = run(&scenario, PolicyKind::Targeted, seed);
            assert!(report.booted(), "{} {seed}: {}", scenario.name, report.boot);
            assert!(report.backwards.count == 0, "{} {seed}", scenario.name);
            assert!(
                report.erased <= lasting(2 * CLOCK_NS),
                "{} {seed}",
                scenario.name
            );
        }
    }
}

#[test]
fn guest_on_a_slowed_cpu_lags_by_no_more_than_between_two_looks() {
    // Half the rate for 50 us at a time: 25 us, and a reading of the clock.
    for (seed, shift) in (0..16).flat_map(|seed| [0, 300_000, 900_000].map(|shift| (seed, shift))) {
        let report = run(&rate_drop_later_by(shift), PolicyKind::Targeted, seed);
        assert!(report.booted() && report.backwards.count == 0);
        assert!(
            report.largest_lag <= Nanos::new(25_000 + 2 * CLOCK_NS),
            "{}",
            report.largest_lag
        );
        assert!(report.erased <= lasting(2 * CLOCK_NS), "{}", report.erased);
    }
}

/// CPUs that run at half their rate for a while, one after the other, and no more in the last three
/// seconds: time enough for a slew to give back what was lost.
fn recovering() -> Scenario {
    let mut scenario = named("rate-drop");
    scenario
        .host
        .events
        .retain(|(at, _)| *at < 29 * SECOND / 10);
    let last = scenario.host.events.last().expect("drops").1;
    assert!(matches!(last, HostEvent::Rate { hz, .. } if hz == 2_400_000_000));
    scenario
}

/// The most that the guest's clock gained on true time between two points, beyond the slew's share of
/// the time between them.
fn largest_gain_beyond_slew(report: &Report) -> i128 {
    let ppm = i128::from(SLEW_BOUND.get());
    (0..2)
        .map(|vcpu| {
            // The gain from a to b less the share of b - a is f(b) - f(a), so the lowest f yet counts.
            let (mut lowest, mut most) = (i128::MAX, 0);
            for point in report.points.iter().filter(|point| point.vcpu == vcpu) {
                let time = i128::from(point.true_ns);
                let f = i128::from(point.error.get()) - time * ppm / 1_000_000;
                lowest = lowest.min(f);
                most = most.max(f - lowest);
            }
            most
        })
        .max()
        .unwrap()
}

#[test]
fn slew_gives_time_back_within_its_slope() {
    for seed in 0..6 {
        let slew = run(&recovering(), PolicyKind::TargetedSlew, seed);
        assert!(slew.booted(), "{seed}: {}", slew.boot);
        assert_eq!(slew.backwards.count, 0, "{seed}");
        // It lagged by what a CPU lost, much more than a step would let it, and all came back.
        let step = run(&recovering(), PolicyKind::Targeted, seed);
        assert!(
            slew.largest_lag.get() > 10 * step.largest_lag.get(),
            "{seed}: {} and {}",
            slew.largest_lag,
            step.largest_lag
        );
        assert!(
            slew.erased <= lasting(2 * CLOCK_NS),
            "{seed}: {}",
            slew.erased
        );
        assert!(
            slew.largest_lead <= Nanos::new(2 * CLOCK_NS),
            "{seed}: {}",
            slew.largest_lead
        );
        // A tenth of the 50 us between two looks, and two readings of the clock.
        let slack = 5_000 + 2 * i128::from(CLOCK_NS);
        let gain = largest_gain_beyond_slew(&slew);
        assert!(gain <= slack, "{seed}: {gain} ns beyond");
    }
}

/// Where no counter loses time a slew has nothing to give back: it does what a step does, to the tick.
#[test]
fn slew_differs_from_a_step_only_where_time_is_lost() {
    for scenario in scenarios() {
        let keeps = ["seed", "ideal", "large-deltas", "skewed-cpu"].contains(&scenario.name);
        for seed in 0..3 {
            let slew = run(&scenario, PolicyKind::TargetedSlew, seed);
            let step = run(&scenario, PolicyKind::Targeted, seed);
            assert_eq!(slew.backwards.count, 0, "{} {seed}", scenario.name);
            let same = Report {
                policy: PolicyKind::Targeted,
                ..slew
            } == step;
            assert!(same || !keeps, "{} {seed}", scenario.name);
        }
    }
}

#[test]
fn runs_of_one_seed_are_equal_and_of_another_differ() {
    let seed = named("seed");
    let first = run(&seed, PolicyKind::UnifiedCatchup2010, 11);
    assert_eq!(first, run(&seed, PolicyKind::UnifiedCatchup2010, 11));
    assert_ne!(
        first.points,
        run(&seed, PolicyKind::UnifiedCatchup2010, 12).points
    );
}

fn any_scenario() -> impl Strategy<Value = Scenario> {
    let cpu = (
        -(1_i64 << 33)..1 << 33,
        prop_oneof![Just(2_400_000_000_u64), 1_000_000_000_u64..2_400_000_000],
    );
    let event = (
        0..SECOND,
        0_usize..4,
        1_000_000_000_u64..=2_400_000_000,
        0_i64..1 << 33,
        0_u8..3,
    );
    (
        prop::array::uniform4(cpu),
        prop::collection::vec(event, 0..6),
        any::<(bool, bool, bool)>(),
        (0_u32..=1000, 0_u32..=1000, 0_u32..=1000),
    )
        .prop_map(
            |(cpus, events, (unstable, halts, tsc), (direct, preempted, wake))| {
                let mut scenario = named("ideal");
                scenario.horizon_ns = SECOND;
                scenario.patience_ns = SECOND;
                scenario.host.cpus = cpus.map(|(offset, hz)| CpuModel { offset, hz }).to_vec();
                scenario.host.events = events
                    .into_iter()
                    .map(|(at, cpu, hz, by, kind)| {
                        let event = match kind {
                            0 => HostEvent::Rate { cpu, hz },
                            // Forwards only: each counter by itself runs forwards.
                            1 => HostEvent::Write { cpu, by },
                            _ => HostEvent::Pause { nanos: hz / 10 },
                        };
                        (at, event)
                    })
                    .collect();
                scenario.host.declared_unstable = unstable;
                scenario.host.halts_in_idle = halts;
                scenario.host.clocksource = if tsc { Clocksource::Tsc } else { HPET };
                scenario.scheduling.direct_move = direct;
                scenario.scheduling.preempted_move = preempted;
                scenario.scheduling.wake_move = wake;
                scenario
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the host, a vCPU that moves reads no less than before, where that is promised.
    #[test]
    fn policies_keep_their_promises_on_any_host(scenario in any_scenario(), seed in any::<u64>()) {
        for report in run_all(&scenario, seed) {
            let promise = report.policy.guarantees().monotonic_across_moves;
            if promise.holds(scenario.host.declared_unstable) {
                prop_assert_eq!(report.backwards.count, 0, "{}", report.policy.name());
            }
        }
    }

    /// On a host without fault, whatever it says of itself: no time is lost where that is promised,
    /// and offsets are left alone where that is.
    #[test]
    fn policies_keep_their_promises_on_hosts_without_fault(
        scenario in any_scenario(),
        seed in any::<u64>(),
    ) {
        let mut scenario = scenario;
        scenario.host.cpus.fill(CpuModel { offset: 0, hz: 2_400_000_000 });
        scenario.host.events.clear();
        scenario.host.halts_in_idle = false;
        let unstable = scenario.host.declared_unstable;
        for report in run_all(&scenario, seed) {
            let promise = report.policy.guarantees();
            if promise.keeps_elapsed_time.holds(unstable) {
                prop_assert!(report.erased <= lasting(CLOCK_NS), "{}", report.policy.name());
            }
            if promise.leaves_the_innocent_alone && !unstable {
                prop_assert_eq!(report.offset_writes, 0, "{}", report.policy.name());
            }
        }
    }
}
