//! Processors as CPUID tells of them: one package, one thread per core, APIC id = index.

use std::ops::Range;

use thiserror::Error;

use super::{CpuidConfig, CpuidEntry};

/// A number of processors, within [`CpuCount::MIN`] and [`CpuCount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuCount(u8);

impl CpuCount {
    /// The fewest processors.
    pub const MIN: u8 = 1;
    /// The most processors: 8-bit APIC ids are 0 to 254, and 255 is the broadcast (SDM vol. 3,
    /// 11.6.1).
    pub const MAX: u8 = 255;

    /// `count` processors.
    ///
    /// # Errors
    /// When `count` is outside [`Self::MIN`]..=[`Self::MAX`].
    pub fn new(count: u64) -> Result<Self, CpuCountError> {
        match u8::try_from(count) {
            Ok(count) if count >= Self::MIN => Ok(Self(count)),
            _ => Err(CpuCountError { count }),
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The processors' APIC ids, which are their indices.
    #[must_use]
    pub fn apic_ids(self) -> Range<u8> {
        0..self.0
    }

    /// The number of bits of an APIC id that tell the processors apart.
    fn id_bits(self) -> u32 {
        // OK because the logarithm of 256 is 8.
        u32::from(self.0).next_power_of_two().trailing_zeros()
    }

    /// The number of ids that these bits make, less one.
    fn last_addressable(self) -> u32 {
        (1 << self.id_bits()) - 1
    }
}

/// A number of processors out of bounds.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "a guest cannot have {count} processors; give it between {min} and {max}",
    min = CpuCount::MIN,
    max = CpuCount::MAX
)]
pub struct CpuCountError {
    /// What was asked for.
    pub count: u64,
}

/// Leaf 1 EBX: initial APIC id in bits 31:24, addressable logical processors in bits 23:16.
pub(super) fn features_ebx(ebx: u32, config: &CpuidConfig) -> u32 {
    let logical = (config.vcpus.last_addressable() + 1).min(255);
    (ebx & 0xFFFF) | logical << 16 | u32::from(config.index) << 24
}

/// A field `value` in bits `high:low` of `register`.
fn insert(register: u32, high: u32, low: u32, value: u32) -> u32 {
    let mask = (u32::MAX >> (31 - high)) & (u32::MAX << low);
    register & !mask | (value << low) & mask
}

/// Bits 7:5 of a cache leaf's EAX: the cache's level; bits 4:0: its type, 0 for none.
fn cache_level(eax: u32) -> Option<u32> {
    (eax & 0x1F != 0).then_some(eax >> 5 & 0x7)
}

/// How many logical processors share a cache of this level, less one: level 3 and up belong to
/// the package, the others to a core.
fn cache_sharing(level: u32, vcpus: CpuCount) -> u32 {
    if level >= 3 {
        vcpus.last_addressable()
    } else {
        0
    }
}

/// Leaf 4 EAX: cores per package less one in bits 31:26, sharing processors less one in 25:14.
pub(super) fn intel_caches_eax(eax: u32, vcpus: CpuCount) -> u32 {
    let Some(level) = cache_level(eax) else {
        return eax;
    };
    let shared = insert(eax, 25, 14, cache_sharing(level, vcpus));
    insert(shared, 31, 26, vcpus.last_addressable().min(63))
}

/// Leaf 0x8000_001D EAX: sharing processors less one in bits 25:14. Not a power of two here.
pub(super) fn amd_caches_eax(eax: u32, vcpus: CpuCount) -> u32 {
    match cache_level(eax) {
        Some(3..) => insert(eax, 25, 14, u32::from(vcpus.get()) - 1),
        Some(_) => insert(eax, 25, 14, 0),
        None => eax,
    }
}

/// Leaf 0x8000_0008 ECX: APIC id size in bits 15:12, threads less one in bits 7:0.
pub(super) fn amd_sizes_ecx(ecx: u32, vcpus: CpuCount) -> u32 {
    let sized = insert(ecx, 15, 12, vcpus.id_bits());
    insert(sized, 7, 0, u32::from(vcpus.get()) - 1)
}

/// Leaf 0x8000_001E: EAX the APIC id, EBX threads per core less one and the core's id, ECX nodes
/// less one and the node's id.
pub(super) fn amd_topology(entry: &mut CpuidEntry, config: &CpuidConfig) {
    entry.eax = config.index.into();
    entry.ebx = config.index.into();
    entry.ecx = 0;
    entry.edx = 0;
}

/// Leaves 0xB and 0x1F: a level of one thread per core, a level of cores, and the end.
///
/// EAX: how far to shift an APIC id for the next level's; EBX: logical processors at this level;
/// ECX: level type in bits 15:8 and its number in bits 7:0; EDX: the x2APIC id.
pub(super) fn extended(function: u32, config: &CpuidConfig) -> [CpuidEntry; 3] {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    let level = |index, kind: u32, shift, count| CpuidEntry {
        function,
        index,
        indexed: true,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: config.index.into(),
    };
    [
        level(0, SMT, 0, 1),
        level(1, CORE, config.vcpus.id_bits(), config.vcpus.get().into()),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_count_at_its_bounds() {
        assert_eq!(CpuCount::new(0), Err(CpuCountError { count: 0 }));
        assert_eq!(CpuCount::new(1).map(CpuCount::get), Ok(1));
        assert_eq!(CpuCount::new(255).map(CpuCount::get), Ok(255));
        assert_eq!(CpuCount::new(256), Err(CpuCountError { count: 256 }));
        assert_eq!(
            CpuCount::new(1 << 32),
            Err(CpuCountError { count: 1 << 32 })
        );
        assert_eq!(
            CpuCountError { count: 1000 }.to_string(),
            "a guest cannot have 1000 processors; give it between 1 and 255"
        );
    }

    #[test]
    fn id_bits_are_the_logarithm_rounded_up() {
        // (processors, bits): 2^bits is the least power of two not below the number.
        for (count, bits) in [
            (1, 0),
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 3),
            (32, 5),
            (33, 6),
            (255, 8),
        ] {
            assert_eq!(CpuCount(count).id_bits(), bits, "{count}");
        }
    }

    #[test]
    fn insert_replaces_only_its_bits() {
        assert_eq!(insert(u32::MAX, 25, 14, 0), 0xFC00_3FFF);
        assert_eq!(insert(0, 31, 26, u32::MAX), 0xFC00_0000);
        assert_eq!(insert(0, 7, 0, 0x1FF), 0xFF);
    }
}
