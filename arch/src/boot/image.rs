//! Reading a kernel file: its head, parts of it, and parts of it straight into guest memory.

use std::io::{ErrorKind, Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

use super::error::{Architecture, Field, LoadError, Subject};
use super::multiboot;

/// A file that a kernel or module is loaded from: a [`std::fs::File`], or a
/// [`std::io::Cursor`] over bytes.
pub trait Image: Read + Seek + ReadVolatile {}

impl<T: Read + Seek + ReadVolatile> Image for T {}

/// Bytes at the start of a file that are read at once. A multiboot header lies within the first
/// 8192 bytes (multiboot 0.6.96, 3.1); a Linux setup header ends before 0x300.
pub(super) const HEAD_SIZE: usize = 8192;

/// The file's format, as far as its head tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    BzImage,
    Elf,
    Multiboot,
}

/// "HdrS" at offset 0x202 of a bzImage (boot.rst, "header").
const HDRS_OFFSET: usize = 0x202;
const HDRS: &[u8] = b"HdrS";
/// 0xAA55 at offset 0x1FE of a bzImage (boot.rst, "boot_flag").
const BOOT_FLAG_OFFSET: usize = 0x1FE;
const BOOT_FLAG: &[u8] = &[0x55, 0xAA];
const ELF_MAGIC: &[u8] = b"\x7fELF";
/// DOS header of a PE executable, which kernels with an EFI stub are.
const MZ: &[u8] = b"MZ";

/// Magic numbers at offset 56: Documentation/arch/arm64/booting.rst, "magic", and
/// Documentation/arch/riscv/boot-image-header.rst, "magic2".
const FOREIGN_MAGIC_OFFSET: usize = 56;
const FOREIGN_MAGICS: [(&[u8], &str); 2] = [(b"ARM\x64", "arm64"), (b"RSC\x05", "RISC-V")];

/// Magic numbers of compressed files: RFC 1952, xz and lzma specifications, RFC 8878, bzip2,
/// and both LZ4 frames.
const COMPRESSED: [(&[u8], &str, &str); 7] = [
    (&[0x1F, 0x8B], "gzip", "gunzip"),
    (&[0xFD, b'7', b'z', b'X', b'Z', 0], "xz", "unxz"),
    (&[0x28, 0xB5, 0x2F, 0xFD], "zstd", "unzstd"),
    (b"BZh", "bzip2", "bunzip2"),
    (&[0x5D, 0, 0], "lzma", "unlzma"),
    (&[0x02, 0x21, 0x4C, 0x18], "LZ4", "unlz4"),
    (&[0x04, 0x22, 0x4D, 0x18], "LZ4", "unlz4"),
];

/// What the file is, from its first bytes.
pub(super) fn recognise(head: &[u8], size: u64) -> Result<Format, LoadError> {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|tail| tail.starts_with(magic))
    };
    if at(0, ELF_MAGIC) {
        return Ok(Format::Elf);
    }
    if at(HDRS_OFFSET, HDRS) {
        return Ok(Format::BzImage);
    }
    if multiboot::Header::find(head)?.is_some_and(|header| header.has_addresses()) {
        return Ok(Format::Multiboot);
    }
    for (magic, architecture) in FOREIGN_MAGICS {
        if at(FOREIGN_MAGIC_OFFSET, magic) {
            let architecture = Architecture::Named(architecture);
            return Err(LoadError::Foreign { architecture });
        }
    }
    for (magic, format, tool) in COMPRESSED {
        if at(0, magic) {
            return Err(LoadError::Compressed { format, tool });
        }
    }
    if ELF_MAGIC.starts_with(head) {
        return Err(LoadError::Truncated {
            field: Field::new("the ELF magic"),
            needed: 4,
            size,
        });
    }
    if at(0, MZ) || MZ.starts_with(head) || at(BOOT_FLAG_OFFSET, BOOT_FLAG) {
        let needed = HDRS_OFFSET + HDRS.len();
        if head.len() < needed {
            let field = Field::new("the Linux setup header");
            return Err(LoadError::Truncated {
                field,
                needed: needed as u64,
                size,
            });
        }
        if at(0, MZ) {
            return Err(LoadError::NotLinuxPe);
        }
    }
    Err(LoadError::Unrecognised {
        magic: head.iter().copied().take(8).collect(),
    })
}

/// A file with its size and what to call it.
pub(super) struct Source<'a, F> {
    file: &'a mut F,
    subject: Subject,
    size: u64,
}

impl<'a, F: Image> Source<'a, F> {
    pub(super) fn new(file: &'a mut F, subject: Subject) -> Result<Self, LoadError> {
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(|source| LoadError::Read {
                subject,
                offset: 0,
                source,
            })?;
        Ok(Self {
            file,
            subject,
            size,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn subject(&self) -> Subject {
        self.subject
    }

    /// The first [`HEAD_SIZE`] bytes, or the whole file when it is shorter.
    pub(super) fn head(&mut self) -> Result<Vec<u8>, LoadError> {
        let length = usize::try_from(self.size).map_or(HEAD_SIZE, |size| size.min(HEAD_SIZE));
        self.read(0, length)
    }

    /// Checks that `length` bytes at `offset`, called `field`, are within the file.
    pub(super) fn check(&self, field: Field, offset: u64, length: u64) -> Result<(), LoadError> {
        let needed = offset.saturating_add(length);
        if needed > self.size {
            return Err(LoadError::Truncated {
                field,
                needed,
                size: self.size,
            });
        }
        Ok(())
    }

    /// Reads `length` bytes at `offset`, which the caller has checked against the file's size.
    pub(super) fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, LoadError> {
        let subject = self.subject;
        let mut bytes = vec![0; length];
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|source| LoadError::Read {
                subject,
                offset,
                source,
            })?;
        Ok(bytes)
    }

    /// Copies `length` bytes at `offset` to guest memory at `address`; the caller has checked
    /// both ranges.
    ///
    /// `read_exact_volatile_from` of vm-memory 0.18 makes one `read` for a region and takes a
    /// short one (Linux: at most 0x7FFF_F000 bytes) for an error; this goes on.
    pub(super) fn copy<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        address: GuestAddress,
        offset: u64,
        length: u64,
    ) -> Result<(), LoadError> {
        let subject = self.subject;
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|source| LoadError::Read {
                subject,
                offset,
                source,
            })?;
        let mut done = 0;
        while done < length {
            let to = GuestAddress(address.0.saturating_add(done));
            let left = usize::try_from(length - done).unwrap_or(usize::MAX);
            match memory.read_volatile_from(to, self.file, left) {
                Ok(0) => {
                    return Err(LoadError::Shrunk {
                        subject,
                        read: done,
                        size: length,
                    });
                }
                Ok(count) => done = done.saturating_add(count as u64),
                Err(vm_memory::GuestMemoryError::IOError(error))
                    if error.kind() == ErrorKind::Interrupted => {}
                Err(vm_memory::GuestMemoryError::IOError(source)) => {
                    let offset = offset.saturating_add(done);
                    return Err(LoadError::Read {
                        subject,
                        offset,
                        source,
                    });
                }
                Err(source) => {
                    let what = "a file";
                    return Err(LoadError::Memory {
                        what,
                        address: to.0,
                        source,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Little-endian fields of a file's head, by offset.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    /// Offset of `bytes` in the file.
    base: u64,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, base }
    }

    fn array<const N: usize>(self, field: Field, offset: usize) -> Result<[u8; N], LoadError> {
        self.bytes
            .get(offset..)
            .and_then(|tail| tail.first_chunk::<N>())
            .copied()
            .ok_or(LoadError::Truncated {
                field,
                needed: self.base.saturating_add((offset + N) as u64),
                size: self.base.saturating_add(self.bytes.len() as u64),
            })
    }

    pub(super) fn u8(self, name: &'static str, offset: usize) -> Result<u8, LoadError> {
        self.array::<1>(Field::new(name), offset)
            .map(u8::from_le_bytes)
    }

    pub(super) fn u16(self, name: &'static str, offset: usize) -> Result<u16, LoadError> {
        self.array(Field::new(name), offset).map(u16::from_le_bytes)
    }

    pub(super) fn u32(self, name: &'static str, offset: usize) -> Result<u32, LoadError> {
        self.array(Field::new(name), offset).map(u32::from_le_bytes)
    }

    pub(super) fn u64(self, name: &'static str, offset: usize) -> Result<u64, LoadError> {
        self.array(Field::new(name), offset).map(u64::from_le_bytes)
    }

    /// A field that is wrong.
    pub(super) fn invalid(
        self,
        name: &'static str,
        offset: usize,
        value: u64,
        expected: &'static str,
    ) -> LoadError {
        LoadError::InvalidField {
            field: Field::new(name),
            offset: self.base.saturating_add(offset as u64),
            value,
            expected,
        }
    }
}
