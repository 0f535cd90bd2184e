//! The host's own processor: its time stamp counter, and whose it is.
#![expect(unsafe_code, reason = "RDTSC and RDTSCP have no safe wrapper")]

use std::arch::x86_64::__cpuid;

use arch::cpuid::CpuidEntry;
use tsc::{CpuId, HostTsc};

use crate::tsc_control::Vendor;

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

/// Whose virtualization this host's processor has, by CPUID leaf 0. A processor of a vendor that we
/// do not know counts as Intel's when it says that it has VMX (CPUID leaf 1, ECX bit 5, SDM vol. 3,
/// 23.6), and as AMD's otherwise.
#[must_use]
pub fn vendor() -> Vendor {
    let leaf = __cpuid(0);
    let mut letters = [0; 12];
    for (part, register) in letters
        .chunks_exact_mut(4)
        .zip([leaf.ebx, leaf.edx, leaf.ecx])
    {
        part.copy_from_slice(&register.to_le_bytes());
    }
    Vendor::from_letters(&letters).unwrap_or_else(|| {
        if __cpuid(1).ecx & 1 << 5 != 0 {
            Vendor::Intel
        } else {
            Vendor::Amd
        }
    })
}

/// What CPUID answers to `function` and `index`; `None` for a leaf beyond the highest one of its range,
/// whose answer would be that of another leaf (SDM vol. 2, CPUID: EAX of leaves 0, 8000_0000H; the
/// hypervisor's range begins at 4000_0000H, Documentation/virt/kvm/x86/cpuid.rst).
#[must_use]
pub fn cpuid(function: u32, index: u32) -> Option<CpuidEntry> {
    let range = function & 0xffff_0000;
    let answer = |function, index| core::arch::x86_64::__cpuid_count(function, index);
    // Not every hypervisor tells the end of its range; its first leaf is there when the bit is set.
    let highest = match range {
        0x4000_0000 if answer(1, 0).ecx & 1 << 31 == 0 => return None,
        _ => answer(range, 0).eax.max(range),
    };
    if function > highest {
        return None;
    }
    let registers = answer(function, index);
    Some(CpuidEntry {
        function,
        index,
        indexed: false,
        eax: registers.eax,
        ebx: registers.ebx,
        ecx: registers.ecx,
        edx: registers.edx,
    })
}

/// RDTSCP, which this processor is known to have.
#[derive(Clone, Copy, Debug)]
pub struct Rdtscp(());

impl Rdtscp {
    /// Looks whether the processor has it (CPUID 8000_0001H, EDX bit 27: SDM vol. 2, CPUID).
    #[must_use]
    pub fn detect() -> Option<Self> {
        cpuid(0x8000_0001, 0)
            .is_some_and(|leaf| leaf.edx & 1 << 27 != 0)
            .then_some(Self(()))
    }

    /// Reads the TSC and, in the same instruction, which CPU it is of, after all earlier
    /// instructions have completed (SDM vol. 2, RDTSCP).
    ///
    /// The CPU is what the kernel wrote into `IA32_TSC_AUX`: Linux puts its number into the low 12
    /// bits (`VDSO_CPUNODE_BITS` in arch/x86/include/asm/segment.h). Other kernels write other things
    /// there, so compare it once with what the kernel says before you rely on it.
    #[must_use]
    pub fn read(self) -> (HostTsc, CpuId) {
        let mut aux = 0;
        // SAFETY: `detect` saw the instruction; it writes to `aux` alone.
        let ticks = unsafe { core::arch::x86_64::__rdtscp(&raw mut aux) };
        (HostTsc::new(ticks), CpuId::new(aux & 0xfff))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_beyond_a_range_is_none() {
        let highest = cpuid(0, 0).expect("leaf 0 always is").eax;
        assert!(cpuid(highest, 0).is_some());
        assert_eq!(cpuid(highest + 1, 0), None);
        assert_eq!(cpuid(0x8fff_ffff, 0), None);
    }

    #[test]
    fn rdtscp_does_not_run_backwards_on_one_cpu() {
        let Some(rdtscp) = Rdtscp::detect() else {
            return println!("skipped here: this processor has no RDTSCP");
        };
        let mut last = rdtscp.read();
        for _ in 0..1_000 {
            let next = rdtscp.read();
            assert!(next.1 != last.1 || !next.0.is_before(last.0));
            last = next;
        }
    }
}
