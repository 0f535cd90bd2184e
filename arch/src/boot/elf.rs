//! ELF kernels, 32-bit and 64-bit (System V ABI, chapters 4 and 5): segments, entry, PVH note.
//!
//! Read by hand because linux-loader knows only the 64-bit form and takes segments unchecked.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::error::{Architecture, Field, LoadError};
use super::image::{Fields, Image, Source};
use crate::layout::HIGH_RAM;

/// `e_machine` (System V ABI, machine numbers).
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Names for the other ones that kernels are built for.
const MACHINES: [(u16, &str); 9] = [
    (8, "MIPS"),
    (20, "PowerPC"),
    (21, "PowerPC 64"),
    (22, "S/390"),
    (40, "ARM"),
    (43, "SPARC"),
    (183, "arm64"),
    (243, "RISC-V"),
    (258, "LoongArch"),
];
/// `e_ident[EI_DATA]`: little-endian.
const ELFDATA2LSB: u8 = 1;
/// `e_type`: executable, or shared object (a position-independent executable).
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
/// `p_type`.
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// More program headers than any kernel has; bounds what is read.
const MAX_PROGRAM_HEADERS: u16 = 256;
/// A larger note segment than any kernel has; bounds what is read.
const MAX_NOTES: u64 = 64 << 10;

/// `XEN_ELFNOTE_PHYS32_ENTRY` of owner "Xen" (xen/include/public/elfnote.h).
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_HEADER_SIZE: usize = 12;

/// `e_ident[EI_CLASS]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Elf32,
    Elf64,
}

/// A `PT_LOAD` program header with memory to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

/// An ELF kernel, checked: its segments are within the file, do not wrap, and lie at 1 MiB or
/// above.
#[derive(Clone, Debug)]
pub(super) struct Elf {
    class: Class,
    entry: u64,
    segments: Vec<Segment>,
    pvh_entry: Option<u32>,
}

impl Elf {
    pub(super) fn parse<F: Image>(
        kernel: &mut Source<'_, F>,
        head: &[u8],
    ) -> Result<Self, LoadError> {
        let fields = Fields::new(head, 0);
        let class = match fields.u8("e_ident[EI_CLASS]", 4)? {
            1 => Class::Elf32,
            2 => Class::Elf64,
            value => {
                let expected = "it must be 1 or 2; give an intact ELF file";
                return Err(fields.invalid("e_ident[EI_CLASS]", 4, value.into(), expected));
            }
        };
        if fields.u8("e_ident[EI_DATA]", 5)? != ELFDATA2LSB {
            let architecture = Architecture::Named("a big-endian machine");
            return Err(LoadError::Foreign { architecture });
        }
        let machine = fields.u16("e_machine", 18)?;
        if machine
            != (if class == Class::Elf64 {
                EM_X86_64
            } else {
                EM_386
            })
        {
            let architecture = match MACHINES.iter().find(|(number, _)| *number == machine) {
                Some((_, name)) => Architecture::Named(name),
                None => Architecture::ElfMachine(machine),
            };
            return Err(LoadError::Foreign { architecture });
        }
        let e_type = fields.u16("e_type", 16)?;
        if e_type != ET_EXEC && e_type != ET_DYN {
            let expected = "not an executable; give the linked kernel";
            return Err(fields.invalid("e_type", 16, e_type.into(), expected));
        }
        let (entry, table, entry_size, count_offset, least_size) = match class {
            Class::Elf32 => (
                u64::from(fields.u32("e_entry", 24)?),
                u64::from(fields.u32("e_phoff", 28)?),
                fields.u16("e_phentsize", 42)?,
                44,
                32,
            ),
            Class::Elf64 => (
                fields.u64("e_entry", 24)?,
                fields.u64("e_phoff", 32)?,
                fields.u16("e_phentsize", 54)?,
                56,
                56,
            ),
        };
        if entry_size != least_size {
            let offset = count_offset - 2;
            let expected = "not the size of a program header; give an intact ELF file";
            return Err(fields.invalid("e_phentsize", offset, entry_size.into(), expected));
        }
        let count = fields.u16("e_phnum", count_offset)?;
        if count > MAX_PROGRAM_HEADERS {
            let expected = "more than 256 program headers; give an intact ELF file";
            return Err(fields.invalid("e_phnum", count_offset, count.into(), expected));
        }
        let mut elf = Self {
            class,
            entry,
            segments: Vec::new(),
            pvh_entry: None,
        };
        for index in 0..count {
            let offset = u64::from(index) * u64::from(entry_size);
            elf.program_header(
                kernel,
                table.saturating_add(offset),
                entry_size,
                index.into(),
            )?;
        }
        if elf.segments.is_empty() {
            return Err(LoadError::NoSegments);
        }
        Ok(elf)
    }

    /// Reads the program header number `index` at `offset`, and the notes if it has some.
    fn program_header<F: Image>(
        &mut self,
        kernel: &mut Source<'_, F>,
        offset: u64,
        size: u16,
        index: usize,
    ) -> Result<(), LoadError> {
        kernel.check(
            Field::numbered("program header", index),
            offset,
            size.into(),
        )?;
        let header = kernel.read(offset, size.into())?;
        let fields = Fields::new(&header, offset);
        let kind = fields.u32("p_type", 0)?;
        let segment = match self.class {
            Class::Elf32 => Segment {
                offset: fields.u32("p_offset", 4)?.into(),
                vaddr: fields.u32("p_vaddr", 8)?.into(),
                paddr: fields.u32("p_paddr", 12)?.into(),
                filesz: fields.u32("p_filesz", 16)?.into(),
                memsz: fields.u32("p_memsz", 20)?.into(),
            },
            Class::Elf64 => Segment {
                offset: fields.u64("p_offset", 8)?,
                vaddr: fields.u64("p_vaddr", 16)?,
                paddr: fields.u64("p_paddr", 24)?,
                filesz: fields.u64("p_filesz", 32)?,
                memsz: fields.u64("p_memsz", 40)?,
            },
        };
        match kind {
            PT_LOAD => self.add_segment(kernel, segment, fields, index),
            PT_NOTE => {
                let align = match self.class {
                    Class::Elf32 => fields.u32("p_align", 28)?.into(),
                    Class::Elf64 => fields.u64("p_align", 48)?,
                };
                self.find_pvh_entry(kernel, segment, align, index)
            }
            _ => Ok(()),
        }
    }

    fn add_segment<F: Image>(
        &mut self,
        kernel: &Source<'_, F>,
        segment: Segment,
        fields: Fields<'_>,
        index: usize,
    ) -> Result<(), LoadError> {
        let filesz_offset = if self.class == Class::Elf64 { 32 } else { 16 };
        if segment.filesz > segment.memsz {
            let expected = "more than p_memsz; give an intact ELF file";
            return Err(fields.invalid("p_filesz", filesz_offset, segment.filesz, expected));
        }
        let what = Field::numbered("segment", index);
        kernel.check(what, segment.offset, segment.filesz)?;
        if segment.memsz == 0 {
            return Ok(());
        }
        if segment.paddr < HIGH_RAM.0 {
            let (address, floor) = (segment.paddr, HIGH_RAM.0);
            return Err(LoadError::LoadAddressTooLow {
                what,
                address,
                floor,
            });
        }
        if segment.paddr.checked_add(segment.memsz).is_none() {
            let expected = "p_paddr + p_memsz overflows; give an intact ELF file";
            return Err(fields.invalid("p_memsz", filesz_offset + 8, segment.memsz, expected));
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Looks for the PVH note; the first one counts.
    fn find_pvh_entry<F: Image>(
        &mut self,
        kernel: &mut Source<'_, F>,
        segment: Segment,
        align: u64,
        index: usize,
    ) -> Result<(), LoadError> {
        let field = Field::numbered("the notes of segment", index);
        kernel.check(field, segment.offset, segment.filesz)?;
        let malformed = |offset, value, expected| LoadError::InvalidField {
            field,
            offset,
            value,
            expected,
        };
        let size = match usize::try_from(segment.filesz) {
            Ok(size) if segment.filesz <= MAX_NOTES => size,
            _ => {
                let expected = "more than 64 KiB of notes; give an intact ELF file";
                return Err(malformed(segment.offset, segment.filesz, expected));
            }
        };
        // Notes are padded to 4 bytes; to 8 where the segment says so.
        let align = if align == 8 { 8 } else { 4 };
        let notes = kernel.read(segment.offset, size)?;
        let mut at = 0;
        while let Some(header) = notes
            .get(at..)
            .and_then(<[u8]>::first_chunk::<NOTE_HEADER_SIZE>)
        {
            let fields = Fields::new(header, segment.offset.saturating_add(at as u64));
            let name_size = fields.u32("n_namesz", 0)? as usize;
            let descriptor_size = fields.u32("n_descsz", 4)? as usize;
            let kind = fields.u32("n_type", 8)?;
            let name_start = at + NOTE_HEADER_SIZE;
            // OK: all terms are below 2^33.
            let descriptor_start = (name_start + name_size).next_multiple_of(align);
            let descriptor_end = descriptor_start + descriptor_size;
            let name = notes.get(name_start..name_start + name_size);
            let descriptor = notes.get(descriptor_start..descriptor_end);
            let (Some(name), Some(descriptor)) = (name, descriptor) else {
                let expected = "a note ends behind its segment; give an intact ELF file";
                return Err(malformed(
                    segment.offset.saturating_add(at as u64),
                    descriptor_end as u64,
                    expected,
                ));
            };
            if name == NOTE_OWNER && kind == NOTE_PHYS32_ENTRY && self.pvh_entry.is_none() {
                // 64-bit kernels store 8 bytes of which the upper 4 are zero.
                let (low, high) = descriptor.split_at_checked(4).unwrap_or((&[], &[]));
                match (<[u8; 4]>::try_from(low), high.iter().all(|byte| *byte == 0)) {
                    (Ok(low), true) => self.pvh_entry = Some(u32::from_le_bytes(low)),
                    _ => {
                        return Err(malformed(
                            segment.offset.saturating_add(descriptor_start as u64),
                            descriptor_size as u64,
                            "the PVH note has no 32-bit address; give an intact kernel",
                        ));
                    }
                }
            }
            at = descriptor_end.next_multiple_of(align);
        }
        Ok(())
    }

    pub(super) fn class(&self) -> Class {
        self.class
    }

    pub(super) fn pvh_entry(&self) -> Option<u32> {
        self.pvh_entry
    }

    /// Checks that an entry at this physical address is within a segment.
    pub(super) fn check_entry(&self, entry: u64) -> Result<GuestAddress, LoadError> {
        let holds = |s: &Segment| entry >= s.paddr && entry - s.paddr < s.memsz;
        if self.segments.iter().any(holds) {
            Ok(GuestAddress(entry))
        } else {
            Err(LoadError::EntryOutside { entry })
        }
    }

    /// `e_entry` as a physical address: kernels give either that or the virtual one.
    pub(super) fn entry(&self) -> Result<GuestAddress, LoadError> {
        self.check_entry(self.entry).or_else(|outside| {
            let holds = |s: &&Segment| self.entry >= s.vaddr && self.entry - s.vaddr < s.memsz;
            let segment = self.segments.iter().find(holds).ok_or(outside)?;
            // OK because the offset is below memsz, and paddr + memsz was checked.
            Ok(GuestAddress(segment.paddr + (self.entry - segment.vaddr)))
        })
    }

    /// Checks that all segments fit into RAM, and returns the highest segment's end.
    pub(super) fn check_memory(&self, ram_end: GuestAddress) -> Result<GuestAddress, LoadError> {
        // OK because each sum was checked when the segment was read.
        let end = self
            .segments
            .iter()
            .map(|s| s.paddr + s.memsz)
            .max()
            .unwrap_or(0);
        if end > ram_end.0 {
            return Err(LoadError::KernelTooLarge {
                end,
                ram_end: ram_end.0,
            });
        }
        // Segments over each other would have a small file copied again and again.
        let mut places: Vec<_> = self.segments.iter().map(|s| (s.paddr, s.memsz)).collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            if let &[(first, size), (second, _)] = pair
                && first + size > second
            {
                return Err(LoadError::OverlappingSegments { first, second });
            }
        }
        Ok(GuestAddress(end))
    }

    /// Copies the segments' bytes; [`Self::check_memory`] comes first.
    pub(super) fn load<M: GuestMemoryBackend, F: Image>(
        &self,
        memory: &M,
        kernel: &mut Source<'_, F>,
    ) -> Result<(), LoadError> {
        for segment in &self.segments {
            kernel.copy(
                memory,
                GuestAddress(segment.paddr),
                segment.offset,
                segment.filesz,
            )?;
        }
        Ok(())
    }
}
