//! The hosts that are worth trying a policy on.

use super::host::{Clocksource, CpuModel, HPET, HostEvent};

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its CPUs; at least as many as the guest's vCPUs.
    pub cpus: Vec<CpuModel>,
    /// The rate that the host believes its counters to have, in kilohertz: the guest's rate.
    pub nominal_khz: u32,
    /// Whether the platform itself calls its TSC unstable.
    pub declared_unstable: bool,
    /// What its monotonic clock is made of.
    pub clocksource: Clocksource,
    /// Whether a CPU's counter stops while it has nothing to run.
    pub halts_in_idle: bool,
    /// What happens, at which true time in nanoseconds.
    pub events: Vec<(u64, HostEvent)>,
    /// The fastest and slowest way of a cache line between two CPUs, in nanoseconds.
    pub message_ns: (u64, u64),
}

/// How vCPUs are treated. Times in nanoseconds, shortest and longest; chances in a thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// How long a vCPU runs before something happens to it.
    pub slice_ns: (u64, u64),
    /// Chance that it is then moved at once, by the balancer; otherwise another task preempts it.
    pub direct_move: u32,
    /// How long a move at once takes.
    pub move_ns: (u64, u64),
    /// How long another task runs.
    pub preempted_ns: (u64, u64),
    /// Chance that a preempted vCPU goes on elsewhere.
    pub preempted_move: u32,
    /// From a halted vCPU's tick until it is loaded.
    pub wake_ns: (u64, u64),
    /// Chance that a vCPU wakes on another CPU than it halted on.
    pub wake_move: u32,
}

/// A host, a scheduler, and how long to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name, as on the command line.
    pub name: &'static str,
    /// What it is about.
    pub story: &'static str,
    /// The host.
    pub host: Host,
    /// The scheduler.
    pub scheduling: Scheduling,
    /// The guest's vCPUs: one or two.
    pub vcpus: usize,
    /// For how long a guest that boots is watched, in nanoseconds of true time.
    pub horizon_ns: u64,
    /// After how long a guest that has not booted is given up.
    pub patience_ns: u64,
}

impl Scenario {
    /// Whether it can be run: one to eight CPUs, one vCPU or two and no more than CPUs, rates above
    /// zero, ranges that begin before they end, events on CPUs that there are.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let (host, scheduling) = (&self.host, &self.scheduling);
        let cpus = host.cpus.len();
        let ranges = [
            scheduling.slice_ns,
            scheduling.move_ns,
            scheduling.preempted_ns,
            scheduling.wake_ns,
            host.message_ns,
        ];
        let exists = |event: &HostEvent| match *event {
            HostEvent::Rate { cpu, .. } | HostEvent::Write { cpu, .. } => cpu < cpus,
            HostEvent::Pause { .. } => true,
        };
        (1..=MAX_CPUS).contains(&cpus)
            && (1..=2).contains(&self.vcpus)
            && self.vcpus <= cpus
            && host.nominal_khz > 0
            && ranges
                .iter()
                .all(|(low, high)| low <= high && *high < u64::MAX)
            && scheduling.slice_ns.0 > 0
            && host.events.iter().all(|(_, event)| exists(event))
    }
}

/// The most CPUs that a scenario has. Ours, as are the delays and chances of this file: the outcomes are held
/// against changes of them by the tests.
pub(super) const MAX_CPUS: usize = 8;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// A host of 2010, at a round rate.
const KHZ: u32 = 2_400_000;
const HZ: u64 = 2_400_000_000;
/// Ticks in a microsecond of such a host.
const US: i64 = 2_400;

/// A busy host that balances eagerly: vCPUs wake up elsewhere nearly always.
const RESTLESS: Scheduling = Scheduling {
    slice_ns: (500_000, 4 * MS),
    direct_move: 600,
    move_ns: (1_500, 4_000),
    preempted_ns: (100_000, 3 * MS),
    preempted_move: 500,
    wake_ns: (5_000, 40_000),
    wake_move: 990,
};

fn host(offsets: [i64; 4]) -> Host {
    Host {
        cpus: offsets.map(|offset| CpuModel { offset, hz: HZ }).to_vec(),
        nominal_khz: KHZ,
        declared_unstable: false,
        clocksource: Clocksource::Tsc,
        halts_in_idle: false,
        events: Vec::new(),
        message_ns: (100, 400),
    }
}

fn on(name: &'static str, story: &'static str, host: Host) -> Scenario {
    Scenario {
        name,
        story,
        host,
        scheduling: RESTLESS,
        vcpus: 2,
        horizon_ns: 6 * SECOND,
        patience_ns: 30 * SECOND,
    }
}

/// All scenarios.
#[must_use]
pub fn scenarios() -> Vec<Scenario> {
    let unstable = |host: Host| Host {
        declared_unstable: true,
        clocksource: HPET,
        ..host
    };
    let drift = |hz: [i64; 4]| {
        let mut host = host([0; 4]);
        for (cpu, by) in host.cpus.iter_mut().zip(hz) {
            cpu.hz = HZ.saturating_add_signed(by);
        }
        host
    };
    let rate_drop = (0..40).flat_map(|i| {
        // Each CPU in turn runs at half its rate for 60 ms.
        let cpu = usize::try_from(i % 4).unwrap_or(0);
        let at = 100 * MS + i * 150 * MS;
        [
            (at, HostEvent::Rate { cpu, hz: HZ / 2 }),
            (at + 60 * MS, HostEvent::Rate { cpu, hz: HZ }),
        ]
    });
    vec![
        on(
            "seed",
            "the machine of the mail of 2011: a platform that calls its TSC stable, deltas of a \
             few microseconds between CPUs, an SMP guest that is moved and preempted",
            host([0, -6 * US, US, -3 * US]),
        ),
        on(
            "ideal",
            "a host without fault: no policy has anything to do",
            host([0; 4]),
        ),
        on(
            "declared-unstable",
            "a platform that calls its TSC unstable, with the same small deltas",
            unstable(host([0, -6 * US, US, -3 * US])),
        ),
        on(
            "large-deltas",
            "counters half a second and more apart, and a platform that says nothing of it",
            Host {
                clocksource: HPET,
                ..host([0, -500_000 * US, 2_000_000 * US, 700_000 * US])
            },
        ),
        on(
            "rate-drop",
            "CPUs that run at half their rate for a while, one after the other; the platform \
             calls its TSC unstable",
            Host {
                events: rate_drop.collect(),
                ..unstable(host([0; 4]))
            },
        ),
        on(
            "halted-tsc",
            "counters that stop while their CPU idles; the platform calls its TSC unstable",
            Host {
                halts_in_idle: true,
                ..unstable(host([0; 4]))
            },
        ),
        on(
            "skewed-cpu",
            "the laboratory's experiment: two seconds after the start somebody sets CPU 1 three \
             seconds ahead",
            Host {
                clocksource: HPET,
                events: vec![(
                    2 * SECOND,
                    HostEvent::Write {
                        cpu: 1,
                        by: 3_000_000 * US,
                    },
                )],
                ..host([0; 4])
            },
        ),
        on(
            "host-pause",
            "a host that is itself paused for a second and a half: its counters stand still, real \
             time does not",
            Host {
                clocksource: HPET,
                events: vec![(2 * SECOND, HostEvent::Pause { nanos: 1_500 * MS })],
                ..host([0; 4])
            },
        ),
        on(
            "drift",
            "counters that drift apart by up to 20 ppm; the platform calls its TSC unstable",
            unstable(drift([0, -48_000, -24_000, -12_000])),
        ),
    ]
}

/// The scenario of this name.
#[must_use]
pub fn scenario(name: &str) -> Option<Scenario> {
    scenarios()
        .into_iter()
        .find(|scenario| scenario.name == name)
}
