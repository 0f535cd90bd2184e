//! Boot protocols: from a kernel file to a guest that is ready to run.
//!
//! [`load`] recognises the protocol from the file itself, checks every field it uses before it
//! uses it, copies the kernel and its modules into guest memory, writes the tables that the
//! protocol wants, and returns the boot processor's state.
//!
//! | file | protocol |
//! | --- | --- |
//! | bzImage with a 64-bit entry (`XLF_KERNEL_64`) | [`Protocol::Linux64`], at the load address + 0x200 |
//! | bzImage without | [`Protocol::Linux32`], at the load address |
//! | ELF with the Xen note `PHYS32_ENTRY` | [`Protocol::Pvh`], at the note's address |
//! | ELF with a multiboot 1 header | [`Protocol::Multiboot1`], at `e_entry` or the header's entry |
//! | any other 64-bit ELF | [`Protocol::Linux64`], at `e_entry` |
//! | anything with a multiboot 1 header and its address fields | [`Protocol::Multiboot1`] |
//!
//! A 64-bit ELF that has both is a PVH kernel, a 32-bit one a multiboot kernel.
//!
//! Guest memory is taken to be zero, as fresh memory is: what a kernel expects to be cleared
//! (its `.bss`) is not written. The structures of the protocols come from the linux-loader crate.
//! Its loading functions are not used: they take a header that is cut short for a whole one,
//! load segments over whatever lies at their address, and do not say which field is wrong.

mod bzimage;
mod elf;
mod error;
mod image;
mod linux;
mod modules;
mod multiboot;
mod pvh;
mod state;

use std::fmt;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::layout::CMDLINE_ROOM;
use crate::regs::{GeneralRegisters, SystemRegisters};

pub use error::{LoadError, Subject};
pub use image::Image;

use image::{HEAD_SIZE, Source};
use state::EntryMode;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Linux, in 64-bit mode (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
    Linux64,
    /// Linux, in 32-bit protected mode (the same file, "32-bit boot protocol").
    Linux32,
    /// Xen's PVH start of day (xen/docs/misc/pvh.pandoc, xen/include/public/arch-x86/hvm/start_info.h).
    Pvh,
    /// Multiboot specification 0.6.96.
    Multiboot1,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux64 => "Linux 64-bit",
            Self::Linux32 => "Linux 32-bit",
            Self::Pvh => "PVH",
            Self::Multiboot1 => "multiboot 1",
        })
    }
}

/// A file to be loaded beside the kernel: the initrd, or a multiboot module.
#[derive(Debug)]
pub struct Module<'a, F> {
    /// Its bytes.
    pub image: &'a mut F,
    /// The string that a multiboot kernel gets with it; other protocols have none.
    pub command: &'a str,
}

/// What to boot.
#[derive(Debug)]
pub struct BootSource<'a, F> {
    /// The kernel.
    pub kernel: &'a mut F,
    /// At most one for Linux and PVH, the initrd; any number for multiboot.
    pub modules: Vec<Module<'a, F>>,
    /// The kernel's command line.
    pub cmdline: &'a str,
}

/// A kernel in guest memory, and the state that its boot processor starts in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// How it is entered.
    pub protocol: Protocol,
    /// The address of its first instruction.
    pub entry: GuestAddress,
    /// The first address above the memory that it occupies or unpacks itself into.
    pub kernel_end: GuestAddress,
    /// General purpose registers of the boot processor.
    pub registers: GeneralRegisters,
    mode: EntryMode,
}

impl Loaded {
    /// Segments, descriptor tables and control registers of the boot processor, from the
    /// `current` ones, of which it keeps what no boot protocol defines (the local APIC's base).
    #[must_use]
    pub fn system_registers(&self, current: SystemRegisters) -> SystemRegisters {
        self.mode.system_registers(current)
    }
}

/// Loads the kernel, its modules and command line into `memory`, and the tables that it expects.
///
/// The ACPI tables are not written here, but the kernel is told to find
/// them at [`crate::layout::RSDP`].
///
/// # Errors
/// When a file is not what it should be, or does not fit. Memory may then hold a part of it.
pub fn load<M, F>(memory: &M, source: BootSource<'_, F>) -> Result<Loaded, LoadError>
where
    M: GuestMemoryBackend,
    F: Image,
{
    let BootSource {
        kernel,
        modules,
        cmdline,
    } = source;
    check_cmdline(cmdline)?;
    let mut kernel = Source::new(kernel, Subject::Kernel)?;
    if kernel.size() == 0 {
        return Err(LoadError::Empty {
            subject: Subject::Kernel,
        });
    }
    let head = kernel.head()?;
    match image::recognise(&head, kernel.size())? {
        image::Format::BzImage => bzimage::load(memory, &mut kernel, &head, modules, cmdline),
        image::Format::Elf => {
            let elf = elf::Elf::parse(&mut kernel, &head)?;
            let header = multiboot::Header::find(&head)?;
            match (elf.pvh_entry(), header, elf.class()) {
                (_, Some(header), elf::Class::Elf32) | (None, Some(header), elf::Class::Elf64) => {
                    multiboot::load(memory, &mut kernel, &header, Some(&elf), modules, cmdline)
                }
                (Some(entry), ..) => pvh::load(memory, &mut kernel, &elf, entry, modules, cmdline),
                (None, None, elf::Class::Elf64) => {
                    linux::load_elf(memory, &mut kernel, &elf, modules, cmdline)
                }
                (None, None, elf::Class::Elf32) => Err(LoadError::NoEntryPoint),
            }
        }
        image::Format::Multiboot => {
            let header = multiboot::Header::find(&head)?.ok_or(LoadError::NoEntryPoint)?;
            multiboot::load(memory, &mut kernel, &header, None, modules, cmdline)
        }
    }
}

/// How many bytes at the start of a kernel file decide about its protocol, at most.
pub const KERNEL_HEAD_SIZE: usize = HEAD_SIZE;

fn check_cmdline(cmdline: &str) -> Result<(), LoadError> {
    if let Some(position) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(LoadError::CmdlineNul { position });
    }
    let max = CMDLINE_ROOM - 1;
    if cmdline.len() > max {
        return Err(LoadError::CmdlineTooLong {
            length: cmdline.len(),
            max,
        });
    }
    Ok(())
}
