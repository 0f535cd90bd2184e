//! Random hosts and schedules in the simulator: every policy keeps what it promises.

use arbitrary::Arbitrary;
use tsc::sim::{
    Boot, Clocksource, CpuModel, HPET, HostEvent, PolicyKind, Report, Scenario, Scheduling, run,
    scenario,
};

use crate::input::decode;

const MS: u64 = 1_000_000;
/// The rate of the hosts, and the highest that a CPU counts at.
const HZ: u64 = 2_400_000_000;
/// A reading of the HPET is right to its period, in nanoseconds.
const CLOCK_NS: u64 = 70;
/// The fastest of many round trips between two CPUs of these hosts, at most.
const ROUND_TRIP_NS: u64 = 300;
/// How long a run lasts, at most: what bounds the time of an input. The guest is then past
/// calibration (30 ms) and start of its second processor (10 ms more), and waits for ticks.
const HORIZON_NS: u64 = 60 * MS;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Happening {
    /// A CPU's rate becomes so many 65536ths of the highest.
    Rate { cpu: u8, share: u16 },
    /// A CPU's counter is set ahead. Not back: each counter by itself runs forwards.
    Ahead { cpu: u8, by: u32 },
    /// The host stands still for so many microseconds.
    Pause { micros: u16 },
}

#[derive(Arbitrary, Debug)]
struct Machine {
    seed: u64,
    policy: u8,
    /// Ticks, microseconds, milliseconds: the unit of the offsets.
    unit: u8,
    /// Offset in the unit, and so many 65536ths below the highest rate.
    cpus: [(i16, u16); 4],
    count: u8,
    one_vcpu: bool,
    declared_unstable: bool,
    halts_in_idle: bool,
    tsc_clock: bool,
    /// Chances in 256: direct, preempted, wake.
    moves: [u8; 3],
    /// Shortest slice, in microseconds beyond 50, and the range of it.
    slice: (u8, u16),
    /// How long another task runs at most, in microseconds.
    preempted: u16,
    happenings: Vec<(u16, Happening)>,
}

impl Machine {
    fn scenario(&self) -> Scenario {
        let mut scenario = scenario("ideal").expect("a scenario of this name");
        let count = usize::from(self.count % 4) + 1;
        let host = &mut scenario.host;
        let unit = [1, 2_400, 2_400_000][usize::from(self.unit % 3)];
        host.cpus = self.cpus[..count]
            .iter()
            .map(|&(offset, below)| CpuModel {
                offset: i64::from(offset) * unit,
                hz: HZ - HZ / 65_536 * u64::from(below) / 2,
            })
            .collect();
        host.declared_unstable = self.declared_unstable;
        host.halts_in_idle = self.halts_in_idle;
        host.clocksource = if self.tsc_clock {
            Clocksource::Tsc
        } else {
            HPET
        };
        host.events = self
            .happenings
            .iter()
            .take(8)
            .map(|&(at, happening)| (u64::from(at) * 1_000, happening.on(count)))
            .collect();
        let least = 50_000 + u64::from(self.slice.0) * 1_000;
        let chance = |chance: u8| u32::from(chance) * 1_000 / 255;
        scenario.scheduling = Scheduling {
            slice_ns: (least, least + u64::from(self.slice.1) * 1_000),
            direct_move: chance(self.moves[0]),
            preempted_ns: (1_000, 1_000 + u64::from(self.preempted) * 1_000),
            preempted_move: chance(self.moves[1]),
            wake_move: chance(self.moves[2]),
            ..scenario.scheduling
        };
        scenario.vcpus = if self.one_vcpu || count == 1 { 1 } else { 2 };
        scenario.horizon_ns = HORIZON_NS;
        scenario.patience_ns = HORIZON_NS;
        scenario
    }
}

impl Happening {
    fn on(self, cpus: usize) -> HostEvent {
        match self {
            Self::Rate { cpu, share } => HostEvent::Rate {
                cpu: usize::from(cpu) % cpus,
                hz: HZ / 2 + HZ / 131_070 * u64::from(share),
            },
            Self::Ahead { cpu, by } => HostEvent::Write {
                cpu: usize::from(cpu) % cpus,
                by: by.into(),
            },
            Self::Pause { micros } => HostEvent::Pause {
                nanos: u64::from(micros) * 1_000,
            },
        }
    }
}

/// A host, a scheduler and a policy: the policy's promises hold, and the report is one of such a
/// run.
pub fn tsc_simulator(data: &[u8]) {
    let Some(machine) = decode::<Machine>(data) else {
        return;
    };
    let scenario = machine.scenario();
    let policy = PolicyKind::SELECTABLE[usize::from(machine.policy) % PolicyKind::SELECTABLE.len()];
    let report = run(&scenario, policy, machine.seed);
    check_report(&report, &scenario);
    check_promises(&report, &scenario);
    if machine.seed % 8 == 0 {
        assert_eq!(report, run(&scenario, policy, machine.seed));
    }
}

/// What is so in every report.
fn check_report(report: &Report, scenario: &Scenario) {
    assert!(report.watched.get() <= HORIZON_NS);
    assert!(report.erased <= report.largest_lag);
    assert!(matches!(report.boot, Boot::Hung { .. } | Boot::Failed { .. }) || report.booted());
    assert!(!report.booted(), "waits of a second and more");
    for steps in [report.backwards, report.across] {
        assert_eq!(steps.count == 0, steps.largest.get() == 0);
    }
    assert!(
        report
            .points
            .iter()
            .all(|point| point.vcpu < scenario.vcpus)
    );
    if scenario.host.declared_unstable {
        assert!(report.host_mark.is_some());
    }
    if scenario.host.cpus.len() == 1 {
        assert_eq!(report.moves, 0);
    }
}

fn check_promises(report: &Report, scenario: &Scenario) {
    let host = &scenario.host;
    let promise = report.policy.guarantees();
    let unstable = host.declared_unstable;
    let name = report.policy.name();
    if promise.monotonic_across_moves.holds(unstable) {
        assert_eq!(report.backwards.count, 0, "{name}");
    }
    let constant =
        host.events.is_empty() && !host.halts_in_idle && host.cpus.iter().all(|cpu| cpu.hz == HZ);
    if !constant {
        return;
    }
    let targeted = report.policy.is_targeted();
    let equal = host
        .cpus
        .iter()
        .all(|cpu| cpu.offset == host.cpus[0].offset);
    if equal {
        if promise.keeps_elapsed_time.holds(unstable) {
            assert!(report.erased.get() <= CLOCK_NS, "{name}");
        }
        if promise.leaves_the_innocent_alone && !unstable {
            assert_eq!(report.offset_writes, 0, "{name}");
            assert!(report.marks.is_empty() && report.host_mark.is_none());
            assert_eq!(report.across.count, 0, "{name}");
        }
    }
    if targeted && host.clocksource == HPET {
        // Time is kept wherever counters only differ, to within two readings of the clock and the
        // skew that messages between CPUs cannot tell.
        assert!(
            report.erased.get() <= 2 * CLOCK_NS + ROUND_TRIP_NS,
            "{name}: {}",
            report.erased
        );
        assert!(
            report.host_mark.is_none() || unstable,
            "{:?}",
            report.host_mark
        );
    }
}
