//! The host's own time stamp counter.
#![expect(unsafe_code, reason = "RDTSC has no safe wrapper")]

use tsc::HostTsc;

/// Reads this CPU's TSC, after all earlier instructions have completed (SDM vol. 2, RDTSC: LFENCE
/// before it orders it).
#[must_use]
pub fn read_tsc() -> HostTsc {
    // SAFETY: both instructions exist on every x86-64 processor and touch no memory.
    let ticks = unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    };
    HostTsc::new(ticks)
}
