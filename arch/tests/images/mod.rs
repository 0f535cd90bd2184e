//! Small synthetic kernels, one builder per file format, byte by byte after the specifications.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each user of this module takes what it needs"
)]

/// Writes `bytes` at `offset` of `image`, which grows if it must.
pub fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if image.len() < offset + bytes.len() {
        image.resize(offset + bytes.len(), 0);
    }
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// `length` bytes that are all different from zero and from their neighbours.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| u8::try_from(i % 251).unwrap() + 1)
        .collect()
}

/// A bzImage.
#[derive(Clone, Debug)]
pub struct BzImage {
    pub version: u16,
    pub setup_sects: u8,
    pub loadflags: u8,
    pub initrd_addr_max: u32,
    pub kernel_alignment: u32,
    pub relocatable: u8,
    pub xloadflags: u16,
    pub cmdline_size: u32,
    pub pref_address: u64,
    pub init_size: u32,
    pub payload: Vec<u8>,
}

impl BzImage {
    /// Like a 64-bit kernel of today, but small: 1 KiB of code that unpacks into 1 MiB.
    pub fn linux64() -> Self {
        Self {
            version: 0x020F,
            setup_sects: 4,
            loadflags: 1,
            initrd_addr_max: 0x7FFF_FFFF,
            kernel_alignment: 0x20_0000,
            relocatable: 1,
            xloadflags: 1,
            cmdline_size: 2047,
            pref_address: 0x100_0000,
            init_size: 0x10_0000,
            payload: pattern(1024),
        }
    }

    /// The same without the 64-bit entry.
    pub fn linux32() -> Self {
        Self {
            xloadflags: 0,
            ..Self::linux64()
        }
    }

    /// A kernel of protocol 2.02, before relocation and limits.
    pub fn old() -> Self {
        Self {
            version: 0x0202,
            ..Self::linux32()
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut image = vec![0x90; 0x26C];
        put(&mut image, 0x1F1, &[self.setup_sects]);
        let syssize = u32::try_from(self.payload.len().div_ceil(16)).unwrap();
        put(&mut image, 0x1F4, &syssize.to_le_bytes());
        put(&mut image, 0x1FE, &0xAA55_u16.to_le_bytes());
        // A short jump over the header; its displacement tells the header's end, 0x26C.
        put(&mut image, 0x200, &[0xEB, 0x6A]);
        put(&mut image, 0x202, b"HdrS");
        put(&mut image, 0x206, &self.version.to_le_bytes());
        put(&mut image, 0x211, &[self.loadflags]);
        put(&mut image, 0x214, &0x10_0000_u32.to_le_bytes());
        put(&mut image, 0x22C, &self.initrd_addr_max.to_le_bytes());
        put(&mut image, 0x230, &self.kernel_alignment.to_le_bytes());
        put(&mut image, 0x234, &[self.relocatable]);
        put(&mut image, 0x236, &self.xloadflags.to_le_bytes());
        put(&mut image, 0x238, &self.cmdline_size.to_le_bytes());
        put(&mut image, 0x258, &self.pref_address.to_le_bytes());
        put(&mut image, 0x260, &self.init_size.to_le_bytes());
        let sectors = if self.setup_sects == 0 {
            4
        } else {
            usize::from(self.setup_sects)
        };
        put(&mut image, (sectors + 1) * 512, &self.payload);
        image
    }
}

/// A loadable segment.
#[derive(Clone, Debug)]
pub struct Segment {
    pub vaddr: u64,
    pub paddr: u64,
    pub bytes: Vec<u8>,
    pub memsz: u64,
}

/// An ELF executable.
#[derive(Clone, Debug)]
pub struct Elf {
    pub bits: u8,
    pub machine: u16,
    pub entry: u64,
    pub segments: Vec<Segment>,
    /// Contents of a note segment.
    pub notes: Option<Vec<u8>>,
}

/// A note of owner `name` and type `kind`, padded to 4 bytes.
pub fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend_from_slice(&u32::try_from(name.len()).unwrap().to_le_bytes());
    note.extend_from_slice(&u32::try_from(descriptor.len()).unwrap().to_le_bytes());
    note.extend_from_slice(&kind.to_le_bytes());
    for part in [name, descriptor] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

impl Elf {
    /// A 64-bit kernel with one segment at 2 MiB: 512 bytes, 4 KiB in memory.
    pub fn linux64() -> Self {
        Self {
            bits: 64,
            machine: 62,
            entry: 0x20_0010,
            segments: vec![Segment {
                vaddr: 0xFFFF_FFFF_8020_0000,
                paddr: 0x20_0000,
                bytes: pattern(512),
                memsz: 0x1000,
            }],
            notes: None,
        }
    }

    /// The same with a PVH note among others, in the form of a 64-bit kernel's.
    pub fn pvh() -> Self {
        let mut notes = note(b"Linux\0", 0x100, &[0; 3]);
        notes.extend(note(b"Xen\0", 6, b"linux\0"));
        notes.extend(note(b"Xen\0", 18, &0x20_0020_u64.to_le_bytes()));
        Self {
            notes: Some(notes),
            ..Self::linux64()
        }
    }

    /// A 32-bit kernel with a multiboot header of these `flags`.
    pub fn multiboot(flags: u32) -> Self {
        let mut segment = Self::linux64().segments.remove(0);
        segment.vaddr = 0x20_0000;
        put(&mut segment.bytes, 0x100, &multiboot_header(flags));
        Self {
            bits: 32,
            machine: 3,
            segments: vec![segment],
            ..Self::linux64()
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let wide = self.bits == 64;
        let word = |value: u64| {
            let bytes = value.to_le_bytes();
            if wide {
                bytes.to_vec()
            } else {
                bytes[..4].to_vec()
            }
        };
        let (header_size, entry_size) = if wide { (64_u16, 56_u16) } else { (52, 32) };
        let count = u16::try_from(self.segments.len() + usize::from(self.notes.is_some())).unwrap();

        let mut image = vec![0x7F, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1];
        image.resize(16, 0);
        image.extend_from_slice(&2_u16.to_le_bytes());
        image.extend_from_slice(&self.machine.to_le_bytes());
        image.extend_from_slice(&1_u32.to_le_bytes());
        image.extend(word(self.entry));
        image.extend(word(header_size.into()));
        image.extend(word(0));
        image.extend_from_slice(&[0; 4]);
        for half in [header_size, entry_size, count, 0, 0, 0] {
            image.extend_from_slice(&half.to_le_bytes());
        }
        assert_eq!(image.len(), usize::from(header_size));

        let mut contents = Vec::new();
        let contents_at = u64::from(header_size) + u64::from(entry_size) * u64::from(count);
        let mut header = |kind: u32, vaddr, paddr, bytes: &[u8], memsz| {
            let offset = contents_at + contents.len() as u64;
            let filesz = bytes.len() as u64;
            let fields = if wide {
                let mut fields = kind.to_le_bytes().to_vec();
                fields.extend_from_slice(&7_u32.to_le_bytes());
                fields.extend(
                    [offset, vaddr, paddr, filesz, memsz, 4]
                        .map(u64::to_le_bytes)
                        .concat(),
                );
                fields
            } else {
                let kind = u64::from(kind);
                [kind, offset, vaddr, paddr, filesz, memsz, 7, 4]
                    .map(word)
                    .concat()
            };
            image.extend_from_slice(&fields);
            contents.extend_from_slice(bytes);
        };
        for s in &self.segments {
            header(1, s.vaddr, s.paddr, &s.bytes, s.memsz);
        }
        if let Some(notes) = &self.notes {
            header(4, 0, 0, notes, notes.len() as u64);
        }
        image.extend(contents);
        image
    }
}

/// Magic, flags and checksum.
pub fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1BAD_B002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum].map(u32::to_le_bytes).concat()
}

/// A multiboot kernel without a file format: address fields, loaded at 1 MiB, header at 0x40.
#[derive(Clone, Debug)]
pub struct Flat {
    pub flags: u32,
    pub header_addr: u32,
    pub load_addr: u32,
    pub load_end_addr: u32,
    pub bss_end_addr: u32,
    pub entry_addr: u32,
}

impl Flat {
    pub fn new() -> Self {
        Self {
            flags: 1 << 16 | 3,
            header_addr: 0x10_0040,
            load_addr: 0x10_0000,
            load_end_addr: 0x10_0200,
            bss_end_addr: 0x10_3000,
            entry_addr: 0x10_0080,
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut image = pattern(1024);
        put(&mut image, 0x40, &multiboot_header(self.flags));
        let fields = [
            self.header_addr,
            self.load_addr,
            self.load_end_addr,
            self.bss_end_addr,
            self.entry_addr,
        ];
        put(&mut image, 0x4C, &fields.map(u32::to_le_bytes).concat());
        image
    }
}
