//! The host's clocks as samples for `tsc`, which alone computes with them.
#![expect(unsafe_code, reason = "adjtimex has no safe wrapper")]

use std::time::Duration;

use hypervisor::host::read_tsc;
use rustix::time::{ClockId, clock_gettime};
use tsc::measure::HostSample;
use tsc::vmclock::{Adjtimex, HostClock};
use tsc::{HostTsc, Nanos};

/// Reads CLOCK_MONOTONIC_RAW, which nothing slews, and this CPU's TSC right after it.
pub(crate) fn sample() -> HostSample {
    let monotonic = monotonic_raw();
    HostSample {
        tsc: read_tsc(),
        monotonic,
    }
}

/// CLOCK_MONOTONIC_RAW.
pub(crate) fn monotonic_raw() -> Nanos {
    let now = clock_gettime(ClockId::MonotonicRaw);
    nanos(now.tv_sec, now.tv_nsec)
}

/// CLOCK_BOOTTIME, which goes on while the host sleeps.
pub(crate) fn boottime() -> Nanos {
    let now = clock_gettime(ClockId::Boottime);
    nanos(now.tv_sec, now.tv_nsec)
}

/// CLOCK_MONOTONIC, which stands while the host sleeps.
pub(crate) fn monotonic() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    nanos(now.tv_sec, now.tv_nsec)
}

/// `CLOCK_MONOTONIC` at the latest tick, up to 10 ms old: for deadlines of threads that may be moved to a CPU
/// whose TSC disagrees. It is read from memory, not from the TSC of the CPU that asks (`clock_gettime(2)`).
pub(crate) fn monotonic_coarse() -> Nanos {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    nanos(now.tv_sec, now.tv_nsec)
}

/// How much time has passed since [`monotonic_coarse`] told `begun`.
pub(crate) fn elapsed_since(begun: Nanos) -> Duration {
    Duration::from_nanos(monotonic_coarse().get().saturating_sub(begun.get()))
}

/// What the host's kernel keeps time by.
pub(crate) fn clocksource() -> Option<String> {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let text = std::fs::read_to_string(path).ok()?;
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Nanoseconds of CLOCK_REALTIME since 1970, for the CMOS clock.
pub(crate) fn real_time() -> Nanos {
    let now = clock_gettime(ClockId::Realtime);
    nanos(now.tv_sec, now.tv_nsec)
}

/// CLOCK_REALTIME between two readings of this CPU's TSC: the closest of some. A thread that is moved meanwhile
/// reads two CPUs' TSCs.
pub(crate) fn real_time_between() -> (HostTsc, Nanos, HostTsc) {
    let once = || (read_tsc(), real_time(), read_tsc());
    let readings = [once(), once(), once(), once()];
    let [first, ..] = readings;
    let width = |reading: &(HostTsc, Nanos, HostTsc)| reading.2.wrapping_elapsed(reading.0);
    readings.into_iter().min_by_key(width).unwrap_or(first)
}

/// What the kernel says of CLOCK_REALTIME, which it is asked for and not told.
pub(crate) fn real_time_clock() -> HostClock {
    // SAFETY: all of its fields are integers.
    let mut answer: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is the kernel's to write, and lives until the call is over; modes is 0, so that nothing
    // is set (adjtimex(2)).
    let state = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut answer) };
    HostClock::from_kernel(Adjtimex {
        state,
        status: answer.status,
        maxerror: answer.maxerror,
        esterror: answer.esterror,
        tai: answer.tai,
    })
}

/// A timespec of the kernel's, whose fields are not negative for the clocks that are read here.
fn nanos(seconds: i64, nanoseconds: i64) -> Nanos {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    let nanoseconds = u64::try_from(nanoseconds).unwrap_or(0);
    // Saturates in the year 2554.
    Nanos::new(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_is_between_what_is_read_around_it() {
        let earlier = real_time();
        let (before, real, after) = real_time_between();
        let later = real_time();
        assert!(earlier <= real && real <= later);
        assert!(before.wrapping_elapsed(after).get() == 0 || before.is_before(after));
    }

    #[test]
    fn kernel_tells_of_its_clock() {
        let clock = real_time_clock();
        // A kernel that nobody keeps says 16 s (NTP_PHASE_LIMIT in include/linux/timex.h).
        assert!(clock.maximum_error > Nanos::ZERO, "{clock:?}");
    }
}
