//! What happened to a guest's time, for the time report.

use std::collections::VecDeque;
use std::fmt;

use serde::Serialize;
use tsc::Nanos;

use crate::logging::guest_info;

/// So many are remembered; older ones are only counted.
const REMEMBERED: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Nobody ran for a while, and nobody asked for it. The guest's clocks went on: a clock cannot be held
    /// by somebody who does not run. Its watchdogs were told.
    UnplannedStop {
        /// Between these bounds.
        at_least_ns: u64,
        at_most_ns: u64,
        /// For how much of it the host slept.
        host_slept_ns: u64,
        /// By SIGSTOP; otherwise the process was frozen, or had no CPU.
        by_signal: bool,
    },
    /// Two CPUs' counters were measured, and are apart.
    Skew {
        cpu: u32,
        home_cpu: u32,
        at_least_ticks: i64,
        at_most_ticks: i64,
    },
    /// The host's kernel does not keep time by the TSC any more: KVM compensates by itself from now on.
    KernelMark {
        /// What it keeps time by.
        clocksource: String,
    },
    /// The vCPUs' threads were confined to the CPUs whose counters agree with the home CPU's.
    Confined {
        cpus: Vec<u32>,
        /// Why they were not.
        error: Option<String>,
    },
    /// All vCPUs went on from a later reading.
    Restart {
        cause: RestartCause,
        /// How far each of them was taken forward.
        forward_ticks: Vec<i64>,
        forward_ns: Vec<i64>,
        /// Whether the offsets were seen in force; where KVM moves them by itself they are not.
        seen_in_force: bool,
    },
    /// It was to be so, and could not.
    RestartFailed { cause: RestartCause, reason: String },
    /// vCPUs that may run on CPUs that are apart are taken forward no more: what they meet there is left as it is.
    LeftApart {
        /// How far they were taken forward by then.
        forward_ticks: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnplannedStop {
                at_least_ns,
                at_most_ns,
                host_slept_ns,
                by_signal,
            } => {
                let how = if *by_signal {
                    "stopped by a signal"
                } else {
                    "frozen, or without a CPU"
                };
                write!(
                    f,
                    "the process was {how} for {at_least_ns} to {at_most_ns} ns"
                )?;
                match host_slept_ns {
                    0 => write!(f, "; the clocks went on"),
                    // The kvmclock counts from the host's boot on (`get_kvmclock_base_ns` in arch/x86/kvm/x86.c); a
                    // guest's TSC goes on from where it was where that of the host began anew
                    // (`kvm_arch_hardware_enable`).
                    slept => write!(
                        f,
                        ", of which the host slept {slept} ns; the kvmclock went on, and the guest's TSC by what the \
                         host slept only where the host's counted meanwhile"
                    ),
                }
            }
            Self::Skew {
                cpu,
                home_cpu,
                at_least_ticks,
                at_most_ticks,
            } => {
                let (side, from, to) = match (*at_least_ticks, *at_most_ticks) {
                    (least, most) if most < 0 => {
                        ("behind", most.saturating_neg(), least.saturating_neg())
                    }
                    (least, most) => ("ahead of", least, most),
                };
                write!(
                    f,
                    "the TSC of CPU {cpu} is {side} CPU {home_cpu}'s by {from} to {to} ticks"
                )
            }
            Self::KernelMark { clocksource } => write!(
                f,
                "the host's kernel does not trust the TSC any more: it keeps time by {clocksource}"
            ),
            Self::Confined { cpus, error: None } => {
                write!(f, "the vCPUs' threads are kept on CPUs {cpus:?}")
            }
            Self::Confined {
                cpus,
                error: Some(error),
            } => write!(
                f,
                "the vCPUs' threads cannot be kept on CPUs {cpus:?}: {error}"
            ),
            Self::Restart {
                cause,
                forward_ticks,
                ..
            } => write!(
                f,
                "the vCPUs went on from a later reading, by {forward_ticks:?} ticks, because of a {cause}"
            ),
            Self::RestartFailed { cause, reason } => write!(
                f,
                "the vCPUs could not go on from a later reading, because of a {cause}: {reason}"
            ),
            Self::LeftApart { forward_ticks } => write!(
                f,
                "the vCPUs may run on CPUs that are apart, and were taken forward by {forward_ticks} ticks already: what \
                 they meet from now on is left as it is"
            ),
        }
    }
}

/// Why all vCPUs of a guest went on from a later reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RestartCause {
    /// A vCPU was on a CPU whose counter is apart from the others'.
    Skew,
    /// On a host that KVM does not trust, a guest that is ahead of KVM's line stands still until that has
    /// caught up: the line is taken to the guest.
    Lead,
}

impl fmt::Display for RestartCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skew => "skew between CPUs",
            Self::Lead => "guest ahead of KVM's line",
        })
    }
}

/// An event and when it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    /// `CLOCK_BOOTTIME`.
    at_ns: u64,
    #[serde(flatten)]
    event: Event,
}

/// The latest events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Events {
    /// How many there have been; of these, stops that nobody planned, and restarts.
    pub(crate) count: u64,
    pub(crate) unplanned_stops: u64,
    pub(crate) restarts: u64,
    /// By how many ticks vCPUs were taken forward in restarts, all together.
    pub(crate) given_back_ticks: u64,
    pub(crate) given_back_ns: u64,
    /// Restarts that took a vCPU forward,
    pub(crate) catch_ups: u64,
    /// and vCPUs that they did that to, which stood behind what the guest had read.
    pub(crate) backwards_steps_prevented: u64,
    /// How often KVM moved an offset by itself, on a host whose TSC the kernel does not trust.
    pub(crate) kernel_compensations: u64,
    /// The latest, the last one last.
    pub(crate) latest: VecDeque<Entry>,
}

impl Entry {
    #[cfg(test)]
    pub(super) fn event(self) -> Event {
        self.event
    }
}

impl Events {
    pub(super) fn add(&mut self, at: Nanos, event: Event) {
        // A guest can cause most of them: on a host that KVM does not trust, by writing its TSC.
        guest_info!("guest time: {event}");
        if self.latest.len() == REMEMBERED {
            self.latest.pop_front();
        }
        self.count = self.count.saturating_add(1);
        match &event {
            Event::UnplannedStop { .. } => {
                self.unplanned_stops = self.unplanned_stops.saturating_add(1);
            }
            Event::Restart {
                forward_ticks,
                forward_ns,
                ..
            } => {
                self.restarts = self.restarts.saturating_add(1);
                let sum = |known: u64, added: &[i64]| {
                    let added = added.iter().map(|by| u64::try_from(*by).unwrap_or(0));
                    added.fold(known, u64::saturating_add)
                };
                self.given_back_ticks = sum(self.given_back_ticks, forward_ticks);
                self.given_back_ns = sum(self.given_back_ns, forward_ns);
                let taken = forward_ticks.iter().filter(|by| **by > 0).count() as u64;
                self.catch_ups = self.catch_ups.saturating_add(u64::from(taken > 0));
                self.backwards_steps_prevented =
                    self.backwards_steps_prevented.saturating_add(taken);
            }
            _ => {}
        }
        self.latest.push_back(Entry {
            at_ns: at.get(),
            event,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span;

    use super::*;

    /// Counts the lines that would be logged.
    struct Lines(Arc<AtomicUsize>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn skew_is_told_with_the_side_that_is_proven() {
        for (at_least_ticks, at_most_ticks, expected) in [
            (
                85,
                115,
                "the TSC of CPU 1 is ahead of CPU 0's by 85 to 115 ticks",
            ),
            (
                -115,
                -85,
                "the TSC of CPU 1 is behind CPU 0's by 85 to 115 ticks",
            ),
        ] {
            let event = Event::Skew {
                cpu: 1,
                home_cpu: 0,
                at_least_ticks,
                at_most_ticks,
            };
            assert_eq!(event.to_string(), expected);
        }
    }

    #[test]
    fn events_that_a_guest_causes_are_all_counted_and_few_of_them_logged() {
        let lines = Arc::new(AtomicUsize::new(0));
        let mut events = Events::default();
        tracing::subscriber::with_default(Lines(lines.clone()), || {
            for at in 0..1_000 {
                let restart = Event::Restart {
                    cause: RestartCause::Lead,
                    forward_ticks: vec![2, 0],
                    forward_ns: vec![1, 0],
                    seen_in_force: false,
                };
                events.add(Nanos::new(at), restart);
            }
        });
        assert_eq!((events.count, events.restarts), (1_000, 1_000));
        assert_eq!(events.latest.len(), REMEMBERED);
        // Ten at once, two more in each second that this takes, and what is told of those left out.
        let lines = lines.load(Ordering::Relaxed);
        assert!(lines < 100, "{lines} lines");
    }
}
