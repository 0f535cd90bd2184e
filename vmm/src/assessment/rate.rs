//! The rate of the host's TSC, measured against `CLOCK_MONOTONIC_RAW`, and who claims what of it.

use std::thread;
use std::time::{Duration, Instant};

use tsc::measure::{self, DeviationBounds, GuestSample, RateBounds};
use tsc::{CpuId, GuestTsc, Khz, Nanos, assess};

use super::cpus::{self, Counter, CpuError};
use crate::host_clock;

/// Readings at either end, of which the most closely bracketed counts.
const READINGS: usize = 32;
/// The two ends are at least so far apart: a bracket of 50 ns is then half a millionth of it.
const APART: Duration = Duration::from_millis(100);

/// A measurement that has begun. What else is to be measured can be, until it ends.
#[derive(Debug)]
pub(crate) struct RateMeter {
    cpu: CpuId,
    first: GuestSample,
    since: Instant,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The bounds that the readings prove.
    pub(crate) rate: RateBounds,
    /// The time between them.
    pub(crate) over: Nanos,
}

/// A rate that somebody claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Who does.
    pub(crate) source: &'static str,
    /// The rate.
    pub(crate) khz: Khz,
}

impl Claim {
    /// By how much the measured rate differs from the claimed one.
    pub(crate) fn deviation(&self, measured: Option<Measured>) -> Option<DeviationBounds> {
        assess::deviation_from_claim(measured?.rate, self.khz)
    }
}

impl RateMeter {
    /// Reads the counter of `cpu` for the first time.
    pub(crate) fn start(cpu: CpuId) -> Result<Self, CpuError> {
        Ok(Self {
            cpu,
            first: bracketed(cpu)?,
            since: Instant::now(),
        })
    }

    /// Reads it for the second time, when enough time has passed. `None` when nothing is proven.
    pub(crate) fn finish(self) -> Result<Option<Measured>, CpuError> {
        thread::sleep(APART.saturating_sub(self.since.elapsed()));
        let last = bracketed(self.cpu)?;
        Ok(judge(&self.first, &last))
    }
}

fn judge(first: &GuestSample, last: &GuestSample) -> Option<Measured> {
    Some(Measured {
        rate: measure::guest_rate(first, last)?,
        over: last.before.monotonic.checked_sub(first.after.monotonic)?,
    })
}

/// A reading of the counter between two of the monotonic clock. It is bracketed as a guest's reading
/// is, and so is what follows from two of them.
fn bracketed(cpu: CpuId) -> Result<GuestSample, CpuError> {
    let read = |counter: &Counter| {
        let before = host_clock::sample();
        let ticks = counter.read()?.get();
        let after = host_clock::sample();
        Ok(GuestSample {
            before,
            guest: GuestTsc::new(ticks),
            after,
        })
    };
    cpus::measure_on(cpu, move |counter| {
        let mut best = read(counter)?;
        for _ in 1..READINGS {
            let next = read(counter)?;
            if next.uncertainty() < best.uncertainty() {
                best = next;
            }
        }
        Ok(best)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsc::HostTsc;
    use tsc::measure::HostSample;

    #[test]
    fn measured_rate_is_bounded_by_the_brackets() {
        let sample = |before, ticks, after| {
            let host = |monotonic| HostSample {
                tsc: HostTsc::new(ticks),
                monotonic: Nanos::new(monotonic),
            };
            GuestSample {
                before: host(before),
                guest: GuestTsc::new(ticks),
                after: host(after),
            }
        };
        // 200,000,000 ticks in 99,999,900 to 100,000,100 ns
        let (first, last) = (
            sample(0, 7, 50),
            sample(99_999_950, 200_000_007, 100_000_100),
        );
        let measured = judge(&first, &last).expect("apart");
        assert_eq!(measured.over, Nanos::new(99_999_900));
        // 2 x 10^17 / 100,000,100 = 1,999,998,000.002; / 99,999,900 = 2,000,002,000.002
        assert_eq!(measured.rate.at_least.get(), 1_999_998_000);
        assert_eq!(measured.rate.at_most.get(), 2_000_002_001);
        let claim = Claim {
            source: "somebody",
            khz: Khz::new(2_000_000).expect("a rate"),
        };
        let deviation = claim.deviation(Some(measured)).expect("in range");
        assert_eq!(
            (deviation.at_least.get(), deviation.at_most.get()),
            (-1_000, 1_001)
        );
        assert_eq!(claim.deviation(None), None);
        assert_eq!(judge(&last, &first), None);
    }

    #[test]
    fn meter_on_this_host_proves_a_rate() {
        let cpu = cpus::allowed().expect("Linux tells")[0];
        let meter = RateMeter::start(cpu).expect("allowed");
        let measured = meter.finish().expect("allowed").expect("100 ms apart");
        assert!(measured.rate.at_least <= measured.rate.at_most);
    }
}
