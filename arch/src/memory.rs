//! Where a guest's RAM lies.

use std::fmt;

use thiserror::Error;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestUsize};

use crate::layout::{EBDA, EBDA_END, FIRMWARE_END, HIGH_RAM, MMIO_HOLE, MMIO_HOLE_END, RSDP};

const MIB: u64 = 1 << 20;

/// Where all memory must end: 2^40, the narrowest physical address space among the processors that Linux KVM runs on
/// in 64-bit mode.
pub const ADDRESS_END: u64 = 1 << 40;

/// An amount of guest memory: whole mebibytes, within [`MemorySize::MIN_MIB`] and
/// [`MemorySize::MAX_MIB`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemorySize(u64);

impl MemorySize {
    /// The least memory: what the boot tables below 1 MiB need.
    pub const MIN_MIB: u64 = 1;
    /// The most memory: RAM then ends at [`ADDRESS_END`] (the hole takes 1 GiB of it).
    pub const MAX_MIB: u64 = (1 << 20) - 1024;

    /// `mib` mebibytes.
    ///
    /// # Errors
    /// When `mib` is outside [`Self::MIN_MIB`]..=[`Self::MAX_MIB`].
    pub const fn from_mib(mib: u64) -> Result<Self, MemorySizeError> {
        if mib < Self::MIN_MIB || mib > Self::MAX_MIB {
            Err(MemorySizeError { mib })
        } else {
            Ok(Self(mib))
        }
    }

    /// The size in mebibytes.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.0
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        // At most 2^40 - 2^30: MAX_MIB * 2^20.
        self.0 * MIB
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A memory size out of bounds.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "a guest cannot have {mib} MiB of memory; give it between {min} and {max} MiB",
    min = MemorySize::MIN_MIB,
    max = MemorySize::MAX_MIB
)]
pub struct MemorySizeError {
    /// What was asked for, in mebibytes.
    pub mib: u64,
}

/// The regions of RAM for a guest with `size` of memory: one below the MMIO hole and, when that
/// is full, a second one above it.
///
/// ```
/// use arch::memory::{MemorySize, ram_regions};
/// use vm_memory::GuestAddress;
///
/// let regions = ram_regions(MemorySize::from_mib(4096)?);
/// assert_eq!(regions, [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 1 << 30)]);
/// # Ok::<(), arch::memory::MemorySizeError>(())
/// ```
#[must_use]
pub fn ram_regions(size: MemorySize) -> Vec<(GuestAddress, usize)> {
    // Both casts are of at most 2^40, and this crate is for 64-bit hosts only.
    let to_usize = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let low = size.bytes().min(MMIO_HOLE.raw_value());
    let high = size.bytes() - low;
    let mut regions = vec![(GuestAddress(0), to_usize(low))];
    if high > 0 {
        regions.push((MMIO_HOLE_END, to_usize(high)));
    }
    regions
}

/// Where memory lies that is not RAM, such as that of a device: pieces of these sizes, each from a multiple of
/// `alignment` on, a power of two. The first begins at the next whole GiB after RAM and the MMIO hole: a kernel manages
/// memory in sections of 128 MiB (`SECTION_SIZE_BITS`, arch/x86/include/asm/sparsemem.h), and none of them is to be
/// both. No memory map tells of them. `None` where they do not all end where RAM must end, too.
///
/// ```
/// use arch::memory::{MemorySize, places_after_ram};
/// use vm_memory::GuestAddress;
///
/// let places = places_after_ram(MemorySize::from_mib(128)?, 2 << 20, [1, 2 << 20]);
/// assert_eq!(places, Some(vec![GuestAddress(4 << 30), GuestAddress((4 << 30) + (2 << 20))]));
/// # Ok::<(), arch::memory::MemorySizeError>(())
/// ```
#[must_use]
pub fn places_after_ram(
    size: MemorySize,
    alignment: u64,
    sizes: impl IntoIterator<Item = u64>,
) -> Option<Vec<GuestAddress>> {
    let ram = ram_regions(size);
    // OK because RAM ends at 2^40 at most.
    let end = ram
        .last()
        .map_or(0, |(start, len)| start.raw_value() + *len as u64);
    let mut next = end
        .max(MMIO_HOLE_END.raw_value())
        .next_multiple_of(1024 * MIB);
    let place = |size: u64| {
        let start = next.checked_next_multiple_of(alignment)?;
        next = start.checked_add(size).filter(|end| *end <= ADDRESS_END)?;
        Some(GuestAddress(start))
    };
    sizes.into_iter().map(place).collect()
}

/// What a range of the guest's physical address space is, with the numbers that E820, PVH and
/// multiboot share (ACPI 6.5, table 15.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used by the guest's memory management.
    Reserved = 2,
}

impl RangeKind {
    /// The range's type in an E820 entry.
    #[must_use]
    pub const fn e820_type(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// An entry of the memory map that a boot protocol hands to its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: GuestAddress,
    /// Length in bytes; never 0.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The end of the RAM that is contiguous from address 0, at most the start of the MMIO hole.
pub(crate) fn low_ram_end<M: GuestMemoryBackend>(memory: &M) -> GuestAddress {
    let mut end: GuestUsize = 0;
    // Regions come in ascending order.
    for region in memory.iter() {
        if region.start_addr().raw_value() != end {
            break;
        }
        end = end.saturating_add(region.len());
    }
    GuestAddress(end.min(MMIO_HOLE.raw_value()))
}

/// The memory map of a guest with this `memory`, in ascending order.
pub(crate) fn memory_map<M: GuestMemoryBackend>(memory: &M) -> Vec<MapEntry> {
    let low_end = low_ram_end(memory);
    let mut map = Vec::new();
    let mut push = |start: GuestAddress, end: GuestAddress, kind| {
        if let Some(size) = end.checked_offset_from(start).filter(|size| *size > 0) {
            map.push(MapEntry { start, size, kind });
        }
    };
    push(GuestAddress(0), EBDA.min(low_end), RangeKind::Ram);
    push(EBDA, EBDA_END, RangeKind::Reserved);
    push(RSDP, FIRMWARE_END, RangeKind::Reserved);
    push(HIGH_RAM, low_end, RangeKind::Ram);
    for region in memory.iter() {
        let start = region.start_addr();
        if start >= MMIO_HOLE_END {
            push(start, start.unchecked_add(region.len()), RangeKind::Ram);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::layout::{VMCLOCK, VMGENID};

    #[test]
    fn places_after_ram_overlap_nothing_and_end_in_time() {
        let places = |mib, sizes: &[u64]| {
            let size = MemorySize::from_mib(mib).unwrap();
            let places = places_after_ram(size, 2 * MIB, sizes.iter().copied())?;
            Some(places.iter().map(|place| place.0 >> 20).collect::<Vec<_>>())
        };
        let end = ADDRESS_END;
        for (mib, sizes, expected) in [
            (128, &[][..], Some(vec![])),
            // Below 4 GiB there is the hole.
            (3072, &[MIB, 3 * MIB, 1], Some(vec![4096, 4098, 4102])),
            // 3 GiB below the hole, and 1 MiB from 4 GiB on.
            (3073, &[1], Some(vec![5120])),
            (4096, &[1], Some(vec![5120])),
            (4097, &[1], Some(vec![6144])),
            (128, &[end - (4 << 30)], Some(vec![4096])),
            (128, &[end - (4 << 30) + 1], None),
            (128, &[end - (4 << 30), 1], None),
            (128, &[u64::MAX], None),
            (128, &[1, u64::MAX - (4 << 30) - 2 * MIB], None),
            (MemorySize::MAX_MIB, &[1], None),
            (
                MemorySize::MAX_MIB - 1024,
                &[1024 * MIB],
                Some(vec![(1 << 20) - 1024]),
            ),
        ] {
            assert_eq!(places(mib, sizes), expected, "{mib} {sizes:?}");
        }
    }

    #[test]
    fn map_reserves_what_acpi_tells_of() {
        let regions = ram_regions(MemorySize::from_mib(1).unwrap());
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&regions).unwrap();
        let map = memory_map(&memory);
        for page in [RSDP, VMCLOCK, VMGENID, FIRMWARE_END.unchecked_sub(1)] {
            let mut holds = map.iter().filter(|entry| {
                entry.start <= page && page.raw_value() - entry.start.0 < entry.size
            });
            assert_eq!(holds.next().unwrap().kind, RangeKind::Reserved);
            assert_eq!(holds.next(), None);
        }
    }
}
