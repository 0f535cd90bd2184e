//! The boot processor's state at a kernel's entry: segments, descriptor table, page tables.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::error::LoadError;
use crate::layout::{GDT, PAGE_DIRECTORIES, PAGE_SIZE, PDPT, PML4};
use crate::regs::{DescriptorTable, Segment, SystemRegisters};

/// RFLAGS with nothing set but bit 1, which always is (SDM vol. 1, 3.4.3): interrupts off.
pub(super) const RFLAGS_RESERVED: u64 = 1 << 1;

/// `CR0.PE`, `CR0.ET`, `CR0.PG` (SDM vol. 3, 2.5).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// `CR4.PAE` (SDM vol. 3, 2.5).
const CR4_PAE: u64 = 1 << 5;
/// `EFER.LME`, `EFER.LMA` (SDM vol. 3, 2.2.1).
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Selectors: Linux demands `__BOOT_CS` 0x10 and `__BOOT_DS` 0x18 (boot.rst, "32-bit boot
/// protocol"); the others do not care.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Descriptor types (SDM vol. 3, tables 3-1 and 3-2), with the accessed and busy bits set, as
/// they are in a loaded segment.
const TYPE_CODE: u8 = 0xB;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TSS: u8 = 0xB;

/// Page table entry bits: present, writable, 2 MiB page (SDM vol. 3, 4.5.4).
const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITABLE: u64 = 1 << 1;
const PDE_LARGE: u64 = 1 << 7;
const LARGE_PAGE_SHIFT: u32 = 21;
const ENTRIES_PER_TABLE: u64 = 512;
/// 1 GiB each: the identity mapping covers the first 4 GiB.
const DIRECTORIES: u64 = 4;

/// The processor mode that a kernel is entered in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryMode {
    /// 64-bit mode with the first 4 GiB identity-mapped.
    Long,
    /// 32-bit protected mode, flat segments, no paging.
    Protected,
}

impl EntryMode {
    fn code(self) -> Segment {
        let long = self == Self::Long;
        Segment {
            base: 0,
            limit: u32::MAX,
            selector: CODE_SELECTOR,
            kind: TYPE_CODE,
            present: true,
            dpl: 0,
            db: !long,
            s: true,
            l: long,
            g: true,
            unusable: false,
        }
    }

    fn data() -> Segment {
        Segment {
            selector: DATA_SELECTOR,
            kind: TYPE_DATA,
            db: true,
            l: false,
            ..Self::Protected.code()
        }
    }

    fn task() -> Segment {
        Segment {
            base: 0,
            // A 32-bit TSS without I/O map, as PVH demands; enough for a 64-bit one too.
            limit: 0x67,
            selector: TASK_SELECTOR,
            kind: TYPE_BUSY_TSS,
            present: true,
            dpl: 0,
            db: false,
            s: false,
            l: false,
            g: false,
            unusable: false,
        }
    }

    fn descriptor_table(self) -> [u64; 6] {
        let task = descriptor(&Self::task());
        // A TSS descriptor has 16 bytes in 64-bit mode; the upper half of its base is 0.
        [
            0,
            0,
            descriptor(&self.code()),
            descriptor(&Self::data()),
            task,
            0,
        ]
    }

    /// The system registers of this mode; `current` keeps what is not defined by it.
    pub(super) fn system_registers(self, current: SystemRegisters) -> SystemRegisters {
        let data = Self::data();
        let gdt_size = size_of_val(&self.descriptor_table());
        let long = self == Self::Long;
        SystemRegisters {
            cs: self.code(),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Self::task(),
            ldt: Segment {
                unusable: true,
                ..Segment::default()
            },
            // OK because the table has 48 bytes.
            gdt: DescriptorTable {
                base: GDT.0,
                limit: u16::try_from(gdt_size - 1).unwrap_or(u16::MAX),
            },
            // No handlers: an exception before the kernel has its own is a triple fault.
            idt: DescriptorTable { base: 0, limit: 0 },
            cr0: if long {
                CR0_PE | CR0_ET | CR0_PG
            } else {
                CR0_PE | CR0_ET
            },
            cr2: 0,
            cr3: if long { PML4.0 } else { 0 },
            cr4: if long { CR4_PAE } else { 0 },
            cr8: 0,
            efer: if long { EFER_LME | EFER_LMA } else { 0 },
            apic_base: current.apic_base,
        }
    }

    /// Writes the tables that the mode needs.
    pub(super) fn write_tables<M: GuestMemoryBackend>(self, memory: &M) -> Result<(), LoadError> {
        let gdt: Vec<u8> = self
            .descriptor_table()
            .iter()
            .flat_map(|d| d.to_le_bytes())
            .collect();
        write(memory, "the descriptor table", GDT, &gdt)?;
        if self == Self::Long {
            write(memory, "page tables", PML4, &page_tables())?;
        }
        Ok(())
    }
}

/// PML4, PDPT and page directories, which are adjacent, as bytes.
fn page_tables() -> Vec<u8> {
    const _: () = assert!(PDPT.0 == PML4.0 + PAGE_SIZE && PAGE_DIRECTORIES.0 == PDPT.0 + PAGE_SIZE);
    let table = PTE_PRESENT | PTE_WRITABLE;
    let mut bytes = Vec::new();
    let mut push = |entry: u64| bytes.extend_from_slice(&entry.to_le_bytes());
    for i in 0..ENTRIES_PER_TABLE {
        push(if i == 0 { PDPT.0 | table } else { 0 });
    }
    for i in 0..ENTRIES_PER_TABLE {
        push(if i < DIRECTORIES {
            (PAGE_DIRECTORIES.0 + i * PAGE_SIZE) | table
        } else {
            0
        });
    }
    for i in 0..DIRECTORIES * ENTRIES_PER_TABLE {
        push((i << LARGE_PAGE_SHIFT) | PDE_LARGE | table);
    }
    bytes
}

/// A segment as an 8-byte descriptor (SDM vol. 3, figure 3-8).
fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.g {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let base = segment.base;
    let access = u64::from(segment.kind & 0xF)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl & 3) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xFFFF)
        | (base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (base >> 24 & 0xFF) << 56
}

/// Writes `bytes`, called `what`, at `address`.
pub(super) fn write<M: GuestMemoryBackend>(
    memory: &M,
    what: &'static str,
    address: GuestAddress,
    bytes: &[u8],
) -> Result<(), LoadError> {
    memory
        .write_slice(bytes, address)
        .map_err(|source| LoadError::Memory {
            what,
            address: address.0,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_flat_segments_match_the_well_known_values() {
        // Flat 32-bit code 0x00CF9B..., data 0x00CF93..., 64-bit code 0x00AF9B...: accessed set.
        assert_eq!(
            descriptor(&EntryMode::Protected.code()),
            0x00CF_9B00_0000_FFFF
        );
        assert_eq!(descriptor(&EntryMode::data()), 0x00CF_9300_0000_FFFF);
        assert_eq!(descriptor(&EntryMode::Long.code()), 0x00AF_9B00_0000_FFFF);
        assert_eq!(descriptor(&EntryMode::task()), 0x0000_8B00_0000_0067);
    }

    #[test]
    fn page_tables_walk_translates_identically() {
        let tables = page_tables();
        let read = |address: u64| {
            let offset = usize::try_from(address - PML4.0).unwrap();
            u64::from_le_bytes(*tables[offset..].first_chunk().unwrap())
        };
        let frame = |entry: u64| entry & 0x000F_FFFF_FFFF_F000;
        for address in [0, 0x20_0000, 0x7FFF_FFFF, 0xFEE0_0000, 0xFFFF_FFFF_u64] {
            let pml4e = read(PML4.0 + (address >> 39 & 511) * 8);
            let pdpte = read(frame(pml4e) + (address >> 30 & 511) * 8);
            let pde = read(frame(pdpte) + (address >> 21 & 511) * 8);
            assert_eq!(pde & 0x83, 0x83, "present, writable, large");
            assert_eq!((pde & !0x1F_FFFF) | (address & 0x1F_FFFF), address);
        }
        assert_eq!(read(PDPT.0 + 4 * 8), 0, "nothing above 4 GiB");
    }

    #[test]
    fn system_registers_keep_the_apic_base() {
        let current = SystemRegisters {
            apic_base: 0xFEE0_0900,
            cr0: !0,
            ..Default::default()
        };
        let long = EntryMode::Long.system_registers(current);
        assert_eq!(long.apic_base, 0xFEE0_0900);
        assert_eq!(long.cr0, 0x8000_0011);
        assert_eq!((long.efer, long.cr4), (0x500, 0x20));
        assert_eq!((long.cs.selector, long.ds.selector), (0x10, 0x18));
        let flat = EntryMode::Protected.system_registers(current);
        assert_eq!((flat.cr0, flat.cr3, flat.cr4, flat.efer), (0x11, 0, 0, 0));
        assert_eq!(
            flat.gdt,
            DescriptorTable {
                base: 0x500,
                limit: 47
            }
        );
    }
}
