//! Multiboot 1 (specification 0.6.96): header, machine state, boot information.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::elf::Elf;
use super::error::{Field, LoadError};
use super::image::{Fields, Image, Source};
use super::modules::{self, Placed};
use super::state::{self, EntryMode, RFLAGS_RESERVED};
use super::{Loaded, Module, Protocol};
use crate::layout::{EBDA, HIGH_RAM, MULTIBOOT_INFO, MULTIBOOT_INFO_END};
use crate::memory::{low_ram_end, memory_map};
use crate::regs::GeneralRegisters;

/// Section 3.1.2: what a header begins with, and what EAX holds at the kernel's entry (3.2).
const HEADER_MAGIC: u32 = 0x1BAD_B002;
const BOOT_MAGIC: u64 = 0x2BAD_B002;
/// Section 3.1: a header is aligned to 4 bytes; magic, flags and checksum are 12 bytes.
const HEADER_ALIGNMENT: usize = 4;
const HEADER_LEAST_SIZE: usize = 12;

/// Section 3.1.2, `flags`: modules page-aligned, and `mem_*` wanted. Both are always so.
const FLAGS_SUPPORTED: u32 = 1 << 0 | 1 << 1;
/// A video mode wanted.
const FLAG_VIDEO: u32 = 1 << 2;
/// The bits that a loader must understand or refuse.
const FLAGS_REQUIRED: u32 = 0xFFFF;
/// The address fields are valid.
const FLAG_ADDRESSES: u32 = 1 << 16;

/// Section 3.3, flags of the information: `mem_*`, `cmdline`, `mods_*`, `mmap_*`,
/// `boot_loader_name`.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// Size of the information structure up to and with the framebuffer fields.
const INFO_SIZE: usize = 116;
/// Size of a module's entry.
const MODULE_SIZE: usize = 16;
/// Size of a memory map entry, without its own `size` field.
const MAP_ENTRY_SIZE: u32 = 20;
const LOADER_NAME: &str = "Keeptime";

/// The address fields of a header (section 3.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

/// A multiboot header, as found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where in the file.
    offset: usize,
    flags: u32,
    addresses: Option<Addresses>,
}

impl Header {
    /// The first header with a right checksum; `None` when there is none.
    pub(super) fn find(head: &[u8]) -> Result<Option<Self>, LoadError> {
        let last = head.len().saturating_sub(HEADER_LEAST_SIZE - 1);
        for offset in (0..last).step_by(HEADER_ALIGNMENT) {
            let fields = Fields::new(head, 0);
            if fields.u32("multiboot magic", offset)? != HEADER_MAGIC {
                continue;
            }
            let flags = fields.u32("multiboot flags", offset + 4)?;
            let checksum = fields.u32("multiboot checksum", offset + 8)?;
            if HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) != 0 {
                continue;
            }
            let addresses = if flags & FLAG_ADDRESSES == 0 {
                None
            } else {
                Some(Addresses {
                    header: fields.u32("multiboot header_addr", offset + 12)?,
                    load: fields.u32("multiboot load_addr", offset + 16)?,
                    load_end: fields.u32("multiboot load_end_addr", offset + 20)?,
                    bss_end: fields.u32("multiboot bss_end_addr", offset + 24)?,
                    entry: fields.u32("multiboot entry_addr", offset + 28)?,
                })
            };
            return Ok(Some(Self {
                offset,
                flags,
                addresses,
            }));
        }
        Ok(None)
    }

    /// Whether the header says itself what to load where, so that the file needs no format.
    pub(super) fn has_addresses(&self) -> bool {
        self.addresses.is_some()
    }

    fn check_flags(&self) -> Result<(), LoadError> {
        let offset = self.offset as u64;
        if self.flags & FLAG_VIDEO != 0 {
            return Err(LoadError::MultibootVideo { offset });
        }
        let flags = self.flags & FLAGS_REQUIRED & !FLAGS_SUPPORTED;
        if flags != 0 {
            return Err(LoadError::MultibootFlags { offset, flags });
        }
        Ok(())
    }

    fn invalid(
        &self,
        name: &'static str,
        at: u64,
        value: u32,
        expected: &'static str,
    ) -> LoadError {
        LoadError::InvalidField {
            field: Field::new(name),
            offset: self.offset as u64 + at,
            value: value.into(),
            expected,
        }
    }
}

/// What the address fields make of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flat {
    /// Offset in the file.
    offset: u64,
    /// Bytes from the file.
    size: u64,
    load: u64,
    /// The end of what is loaded and cleared.
    end: u64,
    entry: u64,
}

impl Flat {
    fn new<F: Image>(
        header: &Header,
        addresses: Addresses,
        kernel: &Source<'_, F>,
    ) -> Result<Self, LoadError> {
        let Addresses {
            header: header_address,
            load,
            load_end,
            bss_end,
            entry,
        } = addresses;
        // The header itself is loaded, so the load address is this far before it.
        let before = header_address.checked_sub(load).ok_or_else(|| {
            let expected = "more than header_addr; give an intact kernel";
            header.invalid("multiboot load_addr", 16, load, expected)
        })?;
        let offset = (header.offset as u64)
            .checked_sub(before.into())
            .ok_or_else(|| {
                let expected = "that far from load_addr is before the file's start; \
                            give an intact kernel";
                header.invalid("multiboot header_addr", 12, header_address, expected)
            })?;
        if u64::from(load) < HIGH_RAM.0 {
            let what = Field::new("the multiboot kernel");
            let (address, floor) = (load.into(), HIGH_RAM.0);
            return Err(LoadError::LoadAddressTooLow {
                what,
                address,
                floor,
            });
        }
        // 0 stands for the whole file.
        let size = match load_end {
            0 => kernel.size() - offset,
            load_end => load_end.checked_sub(load).map(u64::from).ok_or_else(|| {
                let expected = "less than load_addr; give an intact kernel";
                header.invalid("multiboot load_end_addr", 20, load_end, expected)
            })?,
        };
        kernel.check(Field::new("what the multiboot header loads"), offset, size)?;
        let loaded_end = u64::from(load).saturating_add(size);
        // 0 stands for no memory to clear.
        if bss_end != 0 && u64::from(bss_end) < loaded_end {
            let expected = "less than the end of what is loaded; give an intact kernel";
            return Err(header.invalid("multiboot bss_end_addr", 24, bss_end, expected));
        }
        let end = loaded_end.max(bss_end.into());
        if !(u64::from(load)..loaded_end).contains(&entry.into()) {
            return Err(LoadError::EntryOutside {
                entry: entry.into(),
            });
        }
        Ok(Self {
            offset,
            size,
            load: load.into(),
            end,
            entry: entry.into(),
        })
    }
}

pub(super) fn load<M: GuestMemoryBackend, F: Image>(
    memory: &M,
    kernel: &mut Source<'_, F>,
    header: &Header,
    elf: Option<&Elf>,
    modules: Vec<Module<'_, F>>,
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    header.check_flags()?;
    let ram_end = low_ram_end(memory);
    // The address fields override the ELF headers (section 3.1.2, flag bit 16).
    let (entry, kernel_end) = match (header.addresses, elf) {
        (Some(addresses), _) => {
            let flat = Flat::new(header, addresses, kernel)?;
            if flat.end > ram_end.0 {
                return Err(LoadError::KernelTooLarge {
                    end: flat.end,
                    ram_end: ram_end.0,
                });
            }
            kernel.copy(memory, GuestAddress(flat.load), flat.offset, flat.size)?;
            (GuestAddress(flat.entry), GuestAddress(flat.end))
        }
        (None, Some(elf)) => {
            let entry = elf.entry()?;
            let end = elf.check_memory(ram_end)?;
            elf.load(memory, kernel)?;
            (entry, end)
        }
        (None, None) => return Err(LoadError::NoEntryPoint),
    };
    let commands: Vec<&str> = modules.iter().map(|module| module.command).collect();
    for command in &commands {
        if let Some(position) = command.bytes().position(|byte| byte == 0) {
            return Err(LoadError::CmdlineNul { position });
        }
    }
    let placed = modules::load_all(memory, modules, kernel_end, ram_end)?;
    let info = information(memory, cmdline, &placed, &commands)?;
    state::write(memory, "multiboot information", MULTIBOOT_INFO, &info)?;
    let mode = EntryMode::Protected;
    mode.write_tables(memory)?;
    let registers = GeneralRegisters {
        rip: entry.0,
        rax: BOOT_MAGIC,
        rbx: MULTIBOOT_INFO.0,
        rflags: RFLAGS_RESERVED,
        ..GeneralRegisters::default()
    };
    Ok(Loaded {
        protocol: Protocol::Multiboot1,
        entry,
        kernel_end,
        registers,
        mode,
    })
}

/// Room below 1 MiB that grows by appending, and knows the address of each part.
struct Block(Vec<u8>);

impl Block {
    fn append(&mut self, bytes: &[u8]) -> Result<u32, LoadError> {
        let room = MULTIBOOT_INFO_END.0 - MULTIBOOT_INFO.0;
        let needed = (self.0.len() as u64).saturating_add(bytes.len() as u64);
        if needed > room {
            return Err(LoadError::MultibootInfoTooLarge { needed, room });
        }
        let address = MULTIBOOT_INFO.0 + self.0.len() as u64;
        self.0.extend_from_slice(bytes);
        // OK because the room ends below 1 MiB.
        Ok(word(address))
    }

    fn append_string(&mut self, string: &str) -> Result<u32, LoadError> {
        let mut bytes = string.as_bytes().to_vec();
        bytes.push(0);
        self.append(&bytes)
    }

    fn set(&mut self, offset: usize, value: u32) {
        if let Some(field) = self.0.get_mut(offset..offset + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// An address or length below 4 GiB as a 32-bit field.
fn word(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The information structure of section 3.3 and what it points to.
fn information<M: GuestMemoryBackend>(
    memory: &M,
    cmdline: &str,
    modules: &[Placed],
    commands: &[&str],
) -> Result<Vec<u8>, LoadError> {
    let mut block = Block(vec![0; INFO_SIZE]);
    let mut map = Vec::new();
    for entry in memory_map(memory) {
        map.extend_from_slice(&MAP_ENTRY_SIZE.to_le_bytes());
        map.extend_from_slice(&entry.start.0.to_le_bytes());
        map.extend_from_slice(&entry.size.to_le_bytes());
        map.extend_from_slice(&entry.kind.e820_type().to_le_bytes());
    }
    let map_address = block.append(&map)?;
    // Checked before the list is made: the strings are longer still.
    let list_room = vec![0; modules.len().saturating_mul(MODULE_SIZE)];
    let list_address = block.append(&list_room)?;
    let list_offset = block.0.len() - list_room.len();
    for (index, (module, command)) in modules.iter().zip(commands).enumerate() {
        let string = block.append_string(command)?;
        let entry = list_offset + index * MODULE_SIZE;
        block.set(entry, word(module.start.0));
        block.set(entry + 4, word(module.start.0 + module.size));
        block.set(entry + 8, string);
    }
    let cmdline_address = block.append_string(cmdline)?;
    let name_address = block.append_string(LOADER_NAME)?;
    let upper = low_ram_end(memory).0.saturating_sub(HIGH_RAM.0);

    block.set(0, INFO_FLAGS);
    block.set(4, word(EBDA.0 >> 10));
    block.set(8, word(upper >> 10));
    block.set(16, cmdline_address);
    block.set(20, word(modules.len() as u64));
    block.set(24, list_address);
    block.set(44, word(map.len() as u64));
    block.set(48, map_address);
    block.set(64, name_address);
    Ok(block.0)
}
