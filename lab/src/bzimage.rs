//! Takes the ELF kernel out of a bzImage, for the tests of the PVH entry.
//!
//! `Documentation/x86/boot.rst`: the protected-mode part starts after the setup sectors; `payload_offset`
//! and `payload_length` name the compressed kernel in it. Debian's cloud kernel is compressed with LZ4
//! in its legacy frame format (`lib/decompress_unlz4.c`), followed by the uncompressed size.

use thiserror::Error;

/// Offsets in the setup header (boot.rst, "The Real-Mode Kernel Header").
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol with a payload's place (boot.rst: 2.08).
const VERSION_WITH_PAYLOAD: u16 = 0x208;
/// `ARCHIVE_MAGICNUMBER` and `LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE` in `lib/decompress_unlz4.c`.
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
const LZ4_CHUNK: usize = 8 << 20;

/// Why a bzImage yields no ELF kernel.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ExtractElf {
    /// The file ends before a field or a block that it announces.
    #[error("the file has {size} bytes, {what} would end at {end}")]
    Short {
        /// What was looked for.
        what: &'static str,
        /// Where it would end, in bytes.
        end: usize,
        /// The file's size in bytes.
        size: usize,
    },
    /// No `HdrS` or a protocol before 2.08.
    #[error("not a bzImage of boot protocol 2.08 or later")]
    NotBzImage,
    /// The payload is not LZ4.
    #[error(
        "the payload begins with {found:#010x}, not with LZ4's legacy magic {LZ4_LEGACY_MAGIC:#010x}"
    )]
    NotLz4 {
        /// The payload's first four bytes.
        found: u32,
    },
    /// A block that LZ4 cannot decompress.
    #[error("the LZ4 block at {offset} of the file is damaged: {reason}")]
    Damaged {
        /// Where the block begins in the file.
        offset: usize,
        /// What the decompressor says.
        reason: String,
    },
    /// The payload does not hold an ELF file.
    #[error("the payload decompressed to {size} bytes that are no ELF file")]
    NotElf {
        /// The decompressed size in bytes.
        size: usize,
    },
}

/// The ELF kernel inside `image`.
pub(crate) fn extract_elf(image: &[u8]) -> Result<Vec<u8>, ExtractElf> {
    let field = |at: usize, what| -> Result<u32, ExtractElf> {
        let bytes = slice(image, at, 4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let version = slice(image, VERSION, 2, "the protocol version")?;
    if slice(image, HEADER_MAGIC, 4, "the header's magic")? != b"HdrS"
        || u16::from_le_bytes([version[0], version[1]]) < VERSION_WITH_PAYLOAD
    {
        return Err(ExtractElf::NotBzImage);
    }
    // 0 stands for 4 (boot.rst, setup_sects); one more sector is the boot sector.
    let setup_sectors = match slice(image, SETUP_SECTS, 1, "the setup size")?[0] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let to_usize = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let start = ((setup_sectors + 1) * 512)
        .saturating_add(to_usize(field(PAYLOAD_OFFSET, "the payload's offset")?));
    let length = to_usize(field(PAYLOAD_LENGTH, "the payload's length")?);
    let end = start.saturating_add(slice(image, start, length, "the payload")?.len());
    let found = field(start, "the payload's magic")?;
    if found != LZ4_LEGACY_MAGIC {
        return Err(ExtractElf::NotLz4 { found });
    }
    let mut elf = Vec::new();
    let mut chunk = vec![0; LZ4_CHUNK];
    let mut at = start + 4;
    // The last four bytes are the uncompressed size (scripts/Makefile.lib, size_append).
    while at + 8 <= end {
        let size = to_usize(field(at, "a block's size")?);
        let block = slice(image, at + 4, size, "an LZ4 block")?;
        let written = lz4_flex::block::decompress_into(block, &mut chunk).map_err(|error| {
            ExtractElf::Damaged {
                offset: at,
                reason: error.to_string(),
            }
        })?;
        elf.extend_from_slice(&chunk[..written]);
        at = at.saturating_add(4).saturating_add(size);
    }
    if !elf.starts_with(b"\x7fELF") {
        return Err(ExtractElf::NotElf { size: elf.len() });
    }
    Ok(elf)
}

fn slice<'a>(
    image: &'a [u8],
    at: usize,
    size: usize,
    what: &'static str,
) -> Result<&'a [u8], ExtractElf> {
    let end = at.saturating_add(size);
    image.get(at..end).ok_or(ExtractElf::Short {
        what,
        end,
        size: image.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1; // the payload part starts at (1 + 1) * 512
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    fn lz4(blocks: &[&[u8]]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY_MAGIC.to_le_bytes().to_vec();
        let mut total = 0;
        for block in blocks {
            let packed = lz4_flex::block::compress(block);
            payload.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            payload.extend_from_slice(&packed);
            total += u32::try_from(block.len()).unwrap();
        }
        payload.extend_from_slice(&total.to_le_bytes());
        payload
    }

    #[test]
    fn extract_elf_two_blocks_are_joined() {
        let image = image(&lz4(&[b"\x7fELF first", b" second"]));
        assert_eq!(extract_elf(&image).unwrap(), b"\x7fELF first second");
    }

    #[test]
    fn extract_elf_every_truncation_is_an_error() {
        let image = image(&lz4(&[b"\x7fELF first", b" second"]));
        for size in 0..image.len() {
            assert!(
                matches!(extract_elf(&image[..size]), Err(ExtractElf::Short { .. })),
                "{size} bytes"
            );
        }
    }

    #[test]
    fn extract_elf_other_compression_is_named() {
        let found = u32::from_le_bytes([0xfd, b'7', b'z', b'X']);
        assert_eq!(
            extract_elf(&image(b"\xfd7zXZ\0")),
            Err(ExtractElf::NotLz4 { found })
        );
    }

    #[test]
    fn extract_elf_damaged_block_is_an_error() {
        let mut payload = lz4(&[b"\x7fELF abcabcabcabcabcabc"]);
        payload[8] = 0xff; // a literal run longer than the block
        assert!(matches!(
            extract_elf(&image(&payload)),
            Err(ExtractElf::Damaged { .. })
        ));
    }

    #[test]
    fn extract_elf_payload_of_something_else_is_an_error() {
        assert_eq!(
            extract_elf(&image(&lz4(&[b"text"]))),
            Err(ExtractElf::NotElf { size: 4 })
        );
    }
}
