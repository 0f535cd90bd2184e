//! The host's clocks as samples for `tsc`, which alone computes with them.

use rustix::time::{ClockId, clock_gettime};
use tsc::Nanos;
use tsc::measure::HostSample;

/// Reads CLOCK_MONOTONIC_RAW, which nothing slews, and this CPU's TSC right after it.
pub(crate) fn sample() -> HostSample {
    let monotonic = monotonic_raw();
    HostSample {
        tsc: hypervisor::host::read_tsc(),
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

/// Nanoseconds of CLOCK_REALTIME since 1970, for the CMOS clock.
pub(crate) fn real_time() -> Nanos {
    let now = clock_gettime(ClockId::Realtime);
    nanos(now.tv_sec, now.tv_nsec)
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
