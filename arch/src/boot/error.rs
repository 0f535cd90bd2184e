//! What can be wrong with a kernel, its modules and its command line.

use std::fmt;
use std::io;

use thiserror::Error;

use super::Protocol;

/// Which input an error is about, so that a caller can name its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The kernel file.
    Kernel,
    /// The initrd or multiboot module with this index.
    Module(usize),
    /// The command line.
    Cmdline,
    /// Guest memory itself.
    Memory,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("the kernel"),
            Self::Module(index) => write!(f, "module {index}"),
            Self::Cmdline => f.write_str("the command line"),
            Self::Memory => f.write_str("guest memory"),
        }
    }
}

/// Why a kernel could not be loaded. Each message is one line and ends with the cure.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error(
        "cannot read {subject} at offset {offset:#x}; give a plain file that can be read there, on a disk \
         without errors"
    )]
    Read {
        /// Which file.
        subject: Subject,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("{subject} is an empty file; give one with content")]
    Empty {
        /// Which file.
        subject: Subject,
    },
    /// The file ends inside something that it must hold.
    #[error(
        "the kernel is cut short inside {field}: it needs {needed:#x} bytes and has {size:#x}; \
         get a complete copy"
    )]
    Truncated {
        /// What the file ends inside of.
        field: Field,
        /// The size that the file must have for it.
        needed: u64,
        /// The size that it has.
        size: u64,
    },
    /// A module shrank while it was read.
    #[error(
        "{subject} ended after {read:#x} of {size:#x} bytes; do not change it while a guest starts"
    )]
    Shrunk {
        /// Which file.
        subject: Subject,
        /// How much of it could be read.
        read: u64,
        /// How much there was at first.
        size: u64,
    },
    /// Not a kernel of any known format.
    #[error(
        "not a kernel of a known format (it begins with {}); give an x86 bzImage, ELF or \
         multiboot kernel",
        Hex(.magic)
    )]
    Unrecognised {
        /// Its first bytes, at most eight.
        magic: Vec<u8>,
    },
    /// A kernel of another architecture.
    #[error("the kernel is built for {architecture}; give one built for x86")]
    Foreign {
        /// The architecture.
        architecture: Architecture,
    },
    /// A compressed file, which Linux calls for unpacking.
    #[error("the kernel is a {format} file; unpack it first, for example with `{tool}`")]
    Compressed {
        /// The compression format.
        format: &'static str,
        /// A program that unpacks it.
        tool: &'static str,
    },
    /// A PE executable that is not a Linux kernel.
    #[error(
        "the kernel is a PE executable without a Linux setup header (no `HdrS` at offset 0x202); \
         give a bzImage"
    )]
    NotLinuxPe,
    /// A field of the file has a value that it must not have.
    #[error("{field} at offset {offset:#x} is {value:#x}: {expected}")]
    InvalidField {
        /// The field, as its specification names it.
        field: Field,
        /// Where it is in the file.
        offset: u64,
        /// What it holds.
        value: u64,
        /// What is wrong with it, and what to do.
        expected: &'static str,
    },
    /// A 32-bit ELF file with neither of the two ways to enter one.
    #[error(
        "a 32-bit ELF file with neither a multiboot header nor a PVH note has no known entry; \
         give the kernel's bzImage"
    )]
    NoEntryPoint,
    /// No segment to load.
    #[error("the ELF file has no loadable segment; give the linked kernel, not a part of it")]
    NoSegments,
    /// A segment where the boot tables are.
    #[error(
        "{what} is to be loaded at {address:#x}, below {floor:#x}, where the boot tables are; \
         link the kernel at {floor:#x} or above"
    )]
    LoadAddressTooLow {
        /// What is to be loaded.
        what: Field,
        /// Where.
        address: u64,
        /// The lowest address allowed.
        floor: u64,
    },
    /// The entry is outside what was loaded.
    #[error("the entry point {entry:#x} is outside what the kernel loads; give an intact kernel")]
    EntryOutside {
        /// The entry.
        entry: u64,
    },
    /// Two of the kernel's segments want the same memory.
    #[error(
        "the kernel's segments at {first:#x} and {second:#x} lie over each other; give a kernel as its build left it"
    )]
    OverlappingSegments {
        /// Where the one begins.
        first: u64,
        /// Where the other one does.
        second: u64,
    },
    /// The kernel does not fit into RAM.
    #[error(
        "the kernel needs RAM up to address {end:#x}, but RAM below the MMIO hole ends at \
         {ram_end:#x}; {}",
        KernelCure { end: *.end }
    )]
    KernelTooLarge {
        /// The first address above the kernel.
        end: u64,
        /// The first address above RAM.
        ram_end: u64,
    },
    /// A module does not fit into RAM.
    #[error(
        "{subject} has {size:#x} bytes, but only {room:#x} are free between the kernel's end and \
         {limit:#x}; give the guest more memory or make it smaller"
    )]
    ModuleTooLarge {
        /// Which module.
        subject: Subject,
        /// Its size in bytes.
        size: u64,
        /// The room for it in bytes.
        room: u64,
        /// The address that it must end at or below: the end of RAM or the kernel's own limit.
        limit: u64,
    },
    /// More modules than the protocol knows.
    #[error("{count} modules for a {protocol} kernel, which takes {max} at most; give fewer")]
    TooManyModules {
        /// How the kernel is entered.
        protocol: Protocol,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The command line is longer than the kernel's buffer.
    #[error("the command line has {length} bytes, but this kernel takes {max} at most; shorten it")]
    CmdlineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest possible.
        max: usize,
    },
    /// The command line, or a module's string, has a zero byte, at which kernels stop reading.
    #[error("the command line has a zero byte at position {position}; remove it")]
    CmdlineNul {
        /// Where.
        position: usize,
    },
    /// Command line and module strings do not fit into the room for multiboot information.
    #[error(
        "multiboot information needs {needed:#x} bytes, but has room for {room:#x}; give fewer \
         modules or shorter strings"
    )]
    MultibootInfoTooLarge {
        /// Size in bytes.
        needed: u64,
        /// Room in bytes.
        room: u64,
    },
    /// The multiboot header demands a video mode.
    #[error(
        "the multiboot header at offset {offset:#x} requires a video mode (flag bit 2), and there \
         is no display; build the kernel without it"
    )]
    MultibootVideo {
        /// Where the header is.
        offset: u64,
    },
    /// The multiboot header demands something unknown.
    #[error(
        "the multiboot header at offset {offset:#x} requires unknown features (flags {flags:#x}); \
         build the kernel for multiboot 1 with flags 0 and 1 only"
    )]
    MultibootFlags {
        /// Where the header is.
        offset: u64,
        /// The flags among bits 0 to 15 that are not supported.
        flags: u32,
    },
    /// Guest memory could not be written.
    #[error("cannot write {what} into guest memory at {address:#x}")]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// Where.
        address: u64,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
}

impl LoadError {
    /// Which input the error is about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        match self {
            Self::Read { subject, .. }
            | Self::Empty { subject }
            | Self::Shrunk { subject, .. }
            | Self::ModuleTooLarge { subject, .. } => *subject,
            Self::CmdlineTooLong { .. } | Self::CmdlineNul { .. } => Subject::Cmdline,
            Self::Memory { .. } => Subject::Memory,
            _ => Subject::Kernel,
        }
    }
}

/// A named part of a kernel file, with its index where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the specification.
    pub name: &'static str,
    /// Its position among several of that name.
    pub index: Option<usize>,
}

impl Field {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, index: None }
    }

    pub(crate) const fn numbered(name: &'static str, index: usize) -> Self {
        Self {
            name,
            index: Some(index),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            None => f.write_str(self.name),
            Some(index) => write!(f, "{} {index}", self.name),
        }
    }
}

/// An architecture other than x86.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Known by name.
    Named(&'static str),
    /// An ELF `e_machine` number.
    ElfMachine(u16),
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::ElfMachine(number) => write!(f, "ELF machine {number}"),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

struct KernelCure {
    end: u64,
}

impl fmt::Display for KernelCure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.end <= crate::layout::MMIO_HOLE.0 {
            write!(
                f,
                "give the guest at least {} MiB of memory",
                self.end.div_ceil(1 << 20)
            )
        } else {
            f.write_str("give a kernel that is linked lower")
        }
    }
}
