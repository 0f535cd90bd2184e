//! Model specific registers: numbers, boot values, and the order in which they are written.
//!
//! **Order.** A register that a write to another one depends on comes first:
//! the local APIC's state, then [`IA32_TSC`], then [`IA32_TSC_DEADLINE`]. The deadline is compared
//! with the TSC at the moment it is written, so that an old TSC arms a timer that fires at once or
//! in years, and it is dropped without an error while the local APIC's timer is not yet in
//! deadline mode (SDM vol. 3, 11.5.4.1). [`boot_msrs`] has neither: a new guest's TSC is the
//! timekeeper's, and no deadline is armed.

/// A model specific register and a value for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msr {
    /// The register's number: ECX of RDMSR and WRMSR.
    pub index: u32,
    /// Its value: EDX:EAX.
    pub value: u64,
}

// Numbers and meanings: SDM vol. 4, table 2-2; APM vol. 2, appendix A, for the SYSCALL registers.

/// The time stamp counter.
pub const IA32_TSC: u32 = 0x10;
/// What was added to the time stamp counter by writes to it.
pub const IA32_TSC_ADJUST: u32 = 0x3B;
/// Code segment of SYSENTER.
pub const IA32_SYSENTER_CS: u32 = 0x174;
/// Stack pointer of SYSENTER.
pub const IA32_SYSENTER_ESP: u32 = 0x175;
/// Instruction pointer of SYSENTER.
pub const IA32_SYSENTER_EIP: u32 = 0x176;
/// Miscellaneous features of the processor.
pub const IA32_MISC_ENABLE: u32 = 0x1A0;
/// The memory type of addresses that no other MTRR covers.
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2FF;
/// The TSC value at which the local APIC's timer fires.
pub const IA32_TSC_DEADLINE: u32 = 0x6E0;
/// Segments of SYSCALL and SYSRET.
pub const IA32_STAR: u32 = 0xC000_0081;
/// Instruction pointer of SYSCALL in 64-bit mode.
pub const IA32_LSTAR: u32 = 0xC000_0082;
/// Instruction pointer of SYSCALL in compatibility mode.
pub const IA32_CSTAR: u32 = 0xC000_0083;
/// The flags that SYSCALL clears.
pub const IA32_FMASK: u32 = 0xC000_0084;
/// The GS base that SWAPGS swaps in.
pub const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;

/// `IA32_MISC_ENABLE`: fast string operations on.
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
/// `IA32_MISC_ENABLE`: no branch trace storage, no precise event sampling. Performance
/// monitoring is not exposed (see [`crate::cpuid`]).
const MISC_ENABLE_BTS_UNAVAILABLE: u64 = 1 << 11;
const MISC_ENABLE_PEBS_UNAVAILABLE: u64 = 1 << 12;

/// `IA32_MTRR_DEF_TYPE`: MTRRs enabled, default type write-back (SDM vol. 3, 12.11.2.1).
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// The registers that every vCPU starts with, in the order to write them.
///
/// Memory is write-back by default, as firmware leaves it: after reset all of it would be
/// uncacheable as soon as a kernel turns MTRRs on. The SYSENTER and SYSCALL registers hold zero.
#[must_use]
pub fn boot_msrs() -> &'static [Msr] {
    &BOOT_MSRS
}

const fn msr(index: u32, value: u64) -> Msr {
    Msr { index, value }
}

static BOOT_MSRS: [Msr; 10] = [
    msr(IA32_SYSENTER_CS, 0),
    msr(IA32_SYSENTER_ESP, 0),
    msr(IA32_SYSENTER_EIP, 0),
    msr(IA32_STAR, 0),
    msr(IA32_CSTAR, 0),
    msr(IA32_KERNEL_GS_BASE, 0),
    msr(IA32_FMASK, 0),
    msr(IA32_LSTAR, 0),
    msr(
        IA32_MISC_ENABLE,
        MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE,
    ),
    msr(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_msrs_touch_no_clock() {
        let clocks = [IA32_TSC, IA32_TSC_ADJUST, IA32_TSC_DEADLINE];
        assert!(boot_msrs().iter().all(|msr| !clocks.contains(&msr.index)));
    }

    #[test]
    fn boot_msrs_make_memory_write_back() {
        let value = |index| {
            boot_msrs()
                .iter()
                .find(|msr| msr.index == index)
                .map(|msr| msr.value)
        };
        assert_eq!(value(IA32_MTRR_DEF_TYPE), Some(0x806));
        assert_eq!(value(IA32_MISC_ENABLE), Some(0x1801));
        assert_eq!(value(IA32_STAR), Some(0));
    }

    #[test]
    fn boot_msrs_are_each_written_once() {
        let mut indices: Vec<u32> = boot_msrs().iter().map(|msr| msr.index).collect();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), boot_msrs().len());
    }
}
