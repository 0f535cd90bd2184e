//! bzImage: the Linux boot protocol's own file format (Documentation/arch/x86/boot.rst).
//!
//! Field names and offsets are those of boot.rst, "The Real-Mode Kernel Header".

use linux_loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend};

use super::error::{Field, LoadError};
use super::image::{Fields, Image, Source};
use super::linux::{self, BOOT_FLAG, LOADED_HIGH};
use super::modules::{self, align_up};
use super::state::EntryMode;
use super::{Loaded, Module, Protocol};
use crate::layout::HIGH_RAM;
use crate::memory::low_ram_end;

/// Start of the setup header in the file and in the zero page.
const HEADER_START: usize = 0x1F1;
/// The byte here plus [`HEADER_END_BASE`] is the end of the setup header.
const HEADER_LENGTH: usize = 0x201;
const HEADER_END_BASE: usize = 0x202;

const SECTOR: u64 = 512;
/// `setup_sects` 0 stands for 4.
const DEFAULT_SETUP_SECTS: u8 = 4;
/// Unit of `syssize`.
const PARAGRAPH: u64 = 16;
/// Where the 64-bit entry is from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;

/// `cmdline_size` before protocol 2.06.
const OLD_CMDLINE_MAX: u32 = 255;
/// `initrd_addr_max` before protocol 2.03.
const OLD_INITRD_ADDR_MAX: u32 = 0x37FF_FFFF;
/// The largest `kernel_alignment` taken: a 1 GiB page.
const MAX_ALIGNMENT: u32 = 1 << 30;

/// The end of the last field that a protocol version defines, newest first: what the header's
/// own length must reach.
const FIELDS_BY_VERSION: [(u16, usize); 6] = [
    (0x020B, 0x268),
    (0x020A, 0x264),
    (0x0206, 0x23C),
    (0x0205, 0x235),
    (0x0203, 0x230),
    (0x0202, 0x22C),
];

/// What a setup header says, checked.
#[derive(Clone, Debug)]
pub(super) struct SetupHeader {
    raw: setup_header,
    /// Offset of the protected-mode code in the file.
    payload_offset: u64,
    /// Its size.
    payload_size: u64,
    /// Where it is loaded.
    load_address: u64,
    /// The first address above the memory that the kernel needs until it reads its memory map.
    end: u64,
    protocol: Protocol,
    cmdline_max: u32,
    /// The highest address that the initrd may occupy.
    initrd_addr_max: u32,
}

impl SetupHeader {
    pub(super) fn parse<F: Image>(kernel: &Source<'_, F>, head: &[u8]) -> Result<Self, LoadError> {
        let fields = Fields::new(head, 0);
        let boot_flag = fields.u16("boot_flag", 0x1FE)?;
        if boot_flag != BOOT_FLAG {
            let expected = "a bzImage has 0xaa55 there; give an intact one";
            return Err(fields.invalid("boot_flag", 0x1FE, boot_flag.into(), expected));
        }
        let version = fields.u16("version", 0x206)?;
        let Some(&(_, least_end)) = FIELDS_BY_VERSION.iter().find(|(v, _)| version >= *v) else {
            let expected = "boot protocol 2.02 or newer is needed; give a kernel from this century";
            return Err(fields.invalid("version", 0x206, version.into(), expected));
        };
        let length = fields.u8("the length of the setup header", HEADER_LENGTH)?;
        let header_end = HEADER_END_BASE + usize::from(length);
        if header_end < least_end {
            let expected = "too short for the header's version; give an intact bzImage";
            return Err(fields.invalid(
                "the length of the setup header",
                HEADER_LENGTH,
                length.into(),
                expected,
            ));
        }
        let loadflags = fields.u8("loadflags", 0x211)?;
        if loadflags & LOADED_HIGH == 0 {
            let expected = "LOADED_HIGH (bit 0) is clear, so this is a zImage; give a bzImage";
            return Err(fields.invalid("loadflags", 0x211, loadflags.into(), expected));
        }

        let (payload_offset, payload_size) = Self::payload(fields, version, kernel)?;
        let (load_address, end) = Self::placement(fields, version, payload_size)?;
        let has_64_bit_entry =
            version >= 0x020C && fields.u16("xloadflags", 0x236)? & XLF_KERNEL_64 != 0;
        if has_64_bit_entry && payload_size <= ENTRY_64 {
            return Err(LoadError::Truncated {
                field: Field::new("the 64-bit entry of the protected-mode code"),
                needed: payload_offset + ENTRY_64 + 1,
                size: kernel.size(),
            });
        }
        Ok(Self {
            raw: copy_header(head, header_end)?,
            payload_offset,
            payload_size,
            load_address,
            end,
            protocol: if has_64_bit_entry {
                Protocol::Linux64
            } else {
                Protocol::Linux32
            },
            cmdline_max: if version >= 0x0206 {
                fields.u32("cmdline_size", 0x238)?
            } else {
                OLD_CMDLINE_MAX
            },
            initrd_addr_max: if version >= 0x0203 {
                fields.u32("initrd_addr_max", 0x22C)?
            } else {
                OLD_INITRD_ADDR_MAX
            },
        })
    }

    /// Offset and size of the protected-mode code.
    fn payload<F: Image>(
        fields: Fields<'_>,
        version: u16,
        kernel: &Source<'_, F>,
    ) -> Result<(u64, u64), LoadError> {
        let setup_sects = match fields.u8("setup_sects", HEADER_START)? {
            0 => DEFAULT_SETUP_SECTS,
            sectors => sectors,
        };
        let offset = (u64::from(setup_sects) + 1) * SECTOR;
        let code = Field::new("the protected-mode code");
        kernel.check(code, offset, 1)?;
        let rest = kernel.size() - offset;
        let syssize = fields.u32("syssize", 0x1F4)?;
        if syssize == 0 {
            let expected = "the protected-mode code cannot be empty; give an intact bzImage";
            return Err(fields.invalid("syssize", 0x1F4, 0, expected));
        }
        if version < 0x0204 {
            // Only 16 bits of it count, which do not hold a bzImage's size.
            return Ok((offset, rest));
        }
        // What follows may be a signature. The last paragraph may be incomplete.
        let size = u64::from(syssize) * PARAGRAPH;
        kernel.check(code, offset, size - (PARAGRAPH - 1))?;
        Ok((offset, rest.min(size)))
    }

    /// Load address, and the end of the memory needed.
    ///
    /// A relocatable kernel is loaded where it wants to run, at its preferred address: below it,
    /// it would move itself there (boot.rst, "init_size": the runtime start address).
    fn placement(
        fields: Fields<'_>,
        version: u16,
        payload_size: u64,
    ) -> Result<(u64, u64), LoadError> {
        let relocatable = version >= 0x0205 && fields.u8("relocatable_kernel", 0x234)? != 0;
        let (pref_address, init_size) = if version >= 0x020A {
            (
                fields.u64("pref_address", 0x258)?,
                fields.u32("init_size", 0x260)?,
            )
        } else {
            (HIGH_RAM.0, 0)
        };
        let too_high = || {
            let expected = "no RAM is there; give an intact bzImage";
            fields.invalid("pref_address", 0x258, pref_address, expected)
        };
        if pref_address < HIGH_RAM.0 {
            let expected = "it must be 0x100000 or more; give an intact bzImage";
            return Err(fields.invalid("pref_address", 0x258, pref_address, expected));
        }
        let mut run_address = pref_address;
        if relocatable {
            let alignment = fields.u32("kernel_alignment", 0x230)?;
            if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
                let expected = "it must be a power of two, at most 1 GiB; give an intact bzImage";
                return Err(fields.invalid("kernel_alignment", 0x230, alignment.into(), expected));
            }
            run_address = align_up(pref_address, alignment.into()).ok_or_else(too_high)?;
        }
        let load_address = if relocatable { run_address } else { HIGH_RAM.0 };
        let run_end = run_address
            .checked_add(init_size.into())
            .ok_or_else(too_high)?;
        let load_end = load_address
            .checked_add(payload_size)
            .ok_or_else(too_high)?;
        Ok((load_address, run_end.max(load_end)))
    }
}

/// The setup header with zeros behind its declared end, where code follows in the file.
fn copy_header(head: &[u8], header_end: usize) -> Result<setup_header, LoadError> {
    let mut header = setup_header::default();
    let length = size_of::<setup_header>().min(header_end - HEADER_START);
    let end = HEADER_START + length;
    let bytes = head.get(HEADER_START..end).ok_or(LoadError::Truncated {
        field: Field::new("the Linux setup header"),
        needed: end as u64,
        size: head.len() as u64,
    })?;
    for (to, from) in header.as_mut_slice().iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(header)
}

pub(super) fn load<M: GuestMemoryBackend, F: Image>(
    memory: &M,
    kernel: &mut Source<'_, F>,
    head: &[u8],
    modules: Vec<Module<'_, F>>,
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    let header = SetupHeader::parse(kernel, head)?;
    let protocol = header.protocol;
    let ram_end = low_ram_end(memory);
    if header.end > ram_end.0 {
        return Err(LoadError::KernelTooLarge {
            end: header.end,
            ram_end: ram_end.0,
        });
    }
    let kernel_end = GuestAddress(header.end);
    linux::write_cmdline(
        memory,
        cmdline,
        header.cmdline_max.try_into().unwrap_or(usize::MAX),
    )?;
    let load_address = GuestAddress(header.load_address);
    kernel.copy(
        memory,
        load_address,
        header.payload_offset,
        header.payload_size,
    )?;

    let limit = ram_end.0.min(u64::from(header.initrd_addr_max) + 1);
    let initrd = modules::load_initrd(memory, protocol, modules, kernel_end, GuestAddress(limit))?;
    // OK: the load address is in low RAM, below 3 GiB.
    let raw = setup_header {
        code32_start: linux::low_word(load_address.0),
        ..header.raw
    };
    linux::write_zero_page(memory, raw, initrd)?;

    let (entry, mode) = match protocol {
        Protocol::Linux64 => (GuestAddress(load_address.0 + ENTRY_64), EntryMode::Long),
        _ => (load_address, EntryMode::Protected),
    };
    mode.write_tables(memory)?;
    Ok(Loaded {
        protocol,
        entry,
        kernel_end,
        registers: linux::registers(entry),
        mode,
    })
}
