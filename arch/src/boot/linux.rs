//! Linux: the zero page and the command line, for bzImage and ELF kernels.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend};

use super::elf::Elf;
use super::error::LoadError;
use super::image::{Image, Source};
use super::modules::{self, Placed};
use super::state::{self, EntryMode, RFLAGS_RESERVED};
use super::{Loaded, Module, Protocol};
use crate::layout::{BOOT_STACK_TOP, CMDLINE, RSDP, ZERO_PAGE};
use crate::memory::{low_ram_end, memory_map};
use crate::regs::GeneralRegisters;

/// `COMMAND_LINE_SIZE` of x86 kernels, less the terminator (arch/x86/include/asm/setup.h). An ELF
/// kernel does not carry it, and cuts what is longer without a word.
pub(super) const ELF_CMDLINE_MAX: usize = 2047;

/// "HdrS" (boot.rst, "header").
pub(super) const HEADER_MAGIC: u32 = 0x5372_6448;
/// `boot_flag` (boot.rst).
pub(super) const BOOT_FLAG: u16 = 0xAA55;
/// `type_of_loader`: no assigned number (boot.rst).
const LOADER_UNDEFINED: u8 = 0xFF;
/// `loadflags`: the protected-mode code is at 1 MiB or above (boot.rst).
pub(super) const LOADED_HIGH: u8 = 1 << 0;
/// The protocol version that the synthetic header of an ELF kernel claims, 2.12: the first with
/// `xloadflags`, none of which apply to it.
const ELF_PROTOCOL_VERSION: u16 = 0x020C;

/// Writes the command line, checked against the longest that the kernel takes.
pub(super) fn write_cmdline<M: GuestMemoryBackend>(
    memory: &M,
    cmdline: &str,
    max: usize,
) -> Result<(), LoadError> {
    if cmdline.len() > max {
        return Err(LoadError::CmdlineTooLong {
            length: cmdline.len(),
            max,
        });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    state::write(memory, "the command line", CMDLINE, &bytes)
}

/// Writes the zero page with `header` completed by what a boot loader fills in (boot.rst, fields
/// of type "write" and "modify").
///
/// `heap_end_ptr` and `CAN_USE_HEAP` stay clear: they are for real-mode code, which is not run.
pub(super) fn write_zero_page<M: GuestMemoryBackend>(
    memory: &M,
    header: setup_header,
    initrd: Option<Placed>,
) -> Result<(), LoadError> {
    let mut params = boot_params {
        hdr: setup_header {
            type_of_loader: LOADER_UNDEFINED,
            loadflags: header.loadflags | LOADED_HIGH,
            // OK: CMDLINE is below 4 GiB.
            cmd_line_ptr: low_word(CMDLINE.0),
            // What the file has in the fields that a loader must write means nothing.
            ramdisk_image: 0,
            ramdisk_size: 0,
            setup_data: 0,
            hardware_subarch: 0,
            hardware_subarch_data: 0,
            ..header
        },
        acpi_rsdp_addr: RSDP.0,
        ..boot_params::default()
    };
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low_word(initrd.start.0);
        params.hdr.ramdisk_size = low_word(initrd.size);
        params.ext_ramdisk_image = high_word(initrd.start.0);
        params.ext_ramdisk_size = high_word(initrd.size);
    }
    let map = memory_map(memory);
    let mut entries = 0;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start.0,
            size: entry.size,
            r#type: entry.kind.e820_type(),
        };
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    state::write(memory, "boot_params", ZERO_PAGE, params.as_slice())
}

/// Bits 31:0.
pub(super) fn low_word(value: u64) -> u32 {
    // OK because the mask leaves 32 bits.
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// Bits 63:32.
fn high_word(value: u64) -> u32 {
    low_word(value >> 32)
}

/// The registers at a Linux entry in `protocol`'s mode: RSI points to the zero page, and the
/// 32-bit protocol wants EBP, EDI and EBX to be zero.
pub(super) fn registers(entry: GuestAddress) -> GeneralRegisters {
    GeneralRegisters {
        rip: entry.0,
        rsi: ZERO_PAGE.0,
        rsp: BOOT_STACK_TOP.0,
        rflags: RFLAGS_RESERVED,
        ..GeneralRegisters::default()
    }
}

/// Loads an ELF `vmlinux` without a PVH note, entered like the 64-bit entry of a bzImage.
pub(super) fn load_elf<M: GuestMemoryBackend, F: Image>(
    memory: &M,
    kernel: &mut Source<'_, F>,
    elf: &Elf,
    modules: Vec<Module<'_, F>>,
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    let protocol = Protocol::Linux64;
    let ram_end = low_ram_end(memory);
    let entry = elf.entry()?;
    let kernel_end = elf.check_memory(ram_end)?;
    write_cmdline(memory, cmdline, ELF_CMDLINE_MAX)?;
    elf.load(memory, kernel)?;
    let initrd = modules::load_initrd(memory, protocol, modules, kernel_end, ram_end)?;
    let header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: ELF_PROTOCOL_VERSION,
        // OK: 2047 fits.
        cmdline_size: u32::try_from(ELF_CMDLINE_MAX).unwrap_or(u32::MAX),
        ..setup_header::default()
    };
    write_zero_page(memory, header, initrd)?;
    EntryMode::Long.write_tables(memory)?;
    Ok(Loaded {
        protocol,
        entry,
        kernel_end,
        registers: registers(entry),
        mode: EntryMode::Long,
    })
}
