//! PVH: 32-bit protected mode, EBX points to `hvm_start_info`.
//!
//! xen/include/public/arch-x86/hvm/start_info.h, version 1 of the structure.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend};

use super::elf::{Class, Elf};
use super::error::LoadError;
use super::image::{Image, Source};
use super::linux::{self, ELF_CMDLINE_MAX};
use super::state::{self, EntryMode, RFLAGS_RESERVED};
use super::{Loaded, Module, Protocol, modules};
use crate::layout::{CMDLINE, PVH_START_INFO, RSDP};
use crate::memory::{low_ram_end, memory_map};
use crate::regs::GeneralRegisters;

/// The structure's version with a memory map.
const START_INFO_VERSION: u32 = 1;
/// Offsets in the page of the start info.
const MODULE_LIST: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x40);
const MEMORY_MAP: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x80);

/// 32-bit kernels reach 896 MiB of memory directly and want their initrd there, as protocols
/// without a field for it have it (boot.rst, "initrd_addr_max": 0x37FFFFFF).
const INITRD_END_32: u64 = 0x3800_0000;

pub(super) fn load<M: GuestMemoryBackend, F: Image>(
    memory: &M,
    kernel: &mut Source<'_, F>,
    elf: &Elf,
    entry: u32,
    modules: Vec<Module<'_, F>>,
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    let protocol = Protocol::Pvh;
    let entry = elf.check_entry(entry.into())?;
    let ram_end = low_ram_end(memory);
    let kernel_end = elf.check_memory(ram_end)?;
    linux::write_cmdline(memory, cmdline, ELF_CMDLINE_MAX)?;
    elf.load(memory, kernel)?;
    let limit = match elf.class() {
        Class::Elf32 => GuestAddress(ram_end.0.min(INITRD_END_32)),
        Class::Elf64 => ram_end,
    };
    let initrd = modules::load_initrd(memory, protocol, modules, kernel_end, limit)?;
    if let Some(initrd) = initrd {
        let entry = hvm_modlist_entry {
            paddr: initrd.start.0,
            size: initrd.size,
            ..hvm_modlist_entry::default()
        };
        state::write(memory, "the module list", MODULE_LIST, entry.as_slice())?;
    }
    let mut memmap_entries = 0;
    let mut map = Vec::new();
    for entry in memory_map(memory) {
        let entry = hvm_memmap_table_entry {
            addr: entry.start.0,
            size: entry.size,
            type_: entry.kind.e820_type(),
            reserved: 0,
        };
        map.extend_from_slice(entry.as_slice());
        memmap_entries += 1;
    }
    state::write(memory, "the memory map", MEMORY_MAP, &map)?;
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: START_INFO_VERSION,
        flags: 0,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULE_LIST.0 } else { 0 },
        cmdline_paddr: CMDLINE.0,
        rsdp_paddr: RSDP.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries,
        reserved: 0,
    };
    state::write(memory, "the start info", PVH_START_INFO, info.as_slice())?;
    let mode = EntryMode::Protected;
    mode.write_tables(memory)?;
    let registers = GeneralRegisters {
        rip: entry.0,
        rbx: PVH_START_INFO.0,
        rflags: RFLAGS_RESERVED,
        ..GeneralRegisters::default()
    };
    Ok(Loaded {
        protocol,
        entry,
        kernel_end,
        registers,
        mode,
    })
}
