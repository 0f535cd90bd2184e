//! A regular beat, whose absence tells that nobody ran.

use crate::units::Nanos;

/// Somebody looks at the clock at least once in a period. When he comes late by more than a scheduler
/// makes him, the process was stopped, or the host was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    period: Nanos,
    slack: Nanos,
    last: Beat,
}

/// What he sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The host's time since its boot, its sleep included (`CLOCK_BOOTTIME`).
    pub boottime: Nanos,
    /// The same without its sleep (`CLOCK_MONOTONIC`).
    pub monotonic: Nanos,
    /// How often the process was told to go on after a stop (`SIGCONT`).
    pub continued: u32,
}

/// Nobody looked for longer than a period and its slack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// For how long at most: since the beat before.
    pub at_most: Nanos,
    /// For how long at least: since a beat was due.
    pub at_least: Nanos,
    /// For how much of that the host slept.
    pub host_slept: Nanos,
    /// Whether the process was stopped by a signal. If not, it was frozen, or had no CPU.
    pub by_signal: bool,
}

impl Beats {
    /// Beats at least every `period`; one may be late by `slack`.
    #[must_use]
    pub const fn begin(period: Nanos, slack: Nanos, first: Beat) -> Self {
        Self {
            period,
            slack,
            last: first,
        }
    }

    /// A beat.
    pub fn beat(&mut self, now: Beat) -> Option<Stop> {
        let last = core::mem::replace(&mut self.last, now);
        let at_most = now.boottime.saturating_sub(last.boottime);
        let at_least = at_most.saturating_sub(self.period);
        let awake = now.monotonic.saturating_sub(last.monotonic);
        (at_least > self.slack).then_some(Stop {
            at_most,
            at_least,
            host_slept: at_most.saturating_sub(awake),
            by_signal: now.continued != last.continued,
        })
    }

    /// The one who looks has been at work of his own since the beat: he does not come late for that. Whether nobody
    /// ran meanwhile is known only of what leaves traces, a signal to go on and the host's sleep.
    pub fn worked(&mut self, now: Beat) -> Option<Stop> {
        let last = core::mem::replace(&mut self.last, now);
        let at_most = now.boottime.saturating_sub(last.boottime);
        let awake = now.monotonic.saturating_sub(last.monotonic);
        let host_slept = at_most.saturating_sub(awake);
        let by_signal = now.continued != last.continued;
        (at_most > self.slack && (by_signal || host_slept > self.slack)).then_some(Stop {
            at_most,
            at_least: host_slept,
            host_slept,
            by_signal,
        })
    }

    /// Whether a beat is missing at `now`, when the last one was at `last`; both of `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn is_missing(period: Nanos, slack: Nanos, last: Nanos, now: Nanos) -> bool {
        now.saturating_sub(last).saturating_sub(period) > slack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Nanos = Nanos::new(1_000);
    const SLACK: Nanos = Nanos::new(500);

    fn beat(boottime: u64, asleep: u64, continued: u32) -> Beat {
        Beat {
            boottime: Nanos::new(boottime),
            monotonic: Nanos::new(boottime - asleep),
            continued,
        }
    }

    #[test]
    fn late_beat_is_a_stop_with_its_bounds_and_cause() {
        let mut beats = Beats::begin(PERIOD, SLACK, beat(10_000, 0, 0));
        assert_eq!(beats.beat(beat(11_500, 0, 0)), None);
        // Early ones move the next.
        assert_eq!(beats.beat(beat(11_600, 0, 0)), None);
        assert_eq!(beats.beat(beat(13_100, 0, 0)), None);
        let stop = |at_most, slept, by_signal| {
            Some(Stop {
                at_most: Nanos::new(at_most),
                at_least: Nanos::new(at_most - 1_000),
                host_slept: Nanos::new(slept),
                by_signal,
            })
        };
        assert_eq!(beats.beat(beat(14_601, 0, 0)), stop(1_501, 0, false));
        assert_eq!(beats.beat(beat(24_601, 0, 1)), stop(10_000, 0, true));
        assert_eq!(
            beats.beat(beat(44_601, 15_000, 1)),
            stop(20_000, 15_000, false)
        );
        // A signal to go on alone is no stop.
        assert_eq!(beats.beat(beat(45_601, 15_000, 2)), None);
    }

    #[test]
    fn work_between_beats_is_no_stop_but_for_its_traces() {
        let mut beats = Beats::begin(PERIOD, SLACK, beat(10_000, 0, 0));
        assert_eq!(beats.worked(beat(13_000, 0, 0)), None);
        // The next one is due a period after the work.
        assert_eq!(beats.beat(beat(14_500, 0, 0)), None);
        let stop = |at_most, slept, by_signal| {
            Some(Stop {
                at_most: Nanos::new(at_most),
                at_least: Nanos::new(slept),
                host_slept: Nanos::new(slept),
                by_signal,
            })
        };
        assert_eq!(beats.worked(beat(16_500, 0, 1)), stop(2_000, 0, true));
        assert_eq!(beats.worked(beat(18_500, 600, 1)), stop(2_000, 600, false));
        assert_eq!(beats.worked(beat(19_000, 600, 2)), None, "a signal alone");
    }

    #[test]
    fn beat_is_missing_after_the_slack() {
        let missing = |now| Beats::is_missing(PERIOD, SLACK, Nanos::new(7), Nanos::new(now));
        assert!(!missing(0) && !missing(1_507) && missing(1_508));
    }
}
