//! The host's clocks as samples for `tsc`, which alone computes with them.

use std::time::Duration;

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
