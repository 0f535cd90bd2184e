//! What each boot protocol leaves in guest memory and registers, with synthetic kernels.

mod images;

use std::io::Cursor;

use arch::boot::{self, BootSource, LoadError, Loaded, Module, Protocol, Subject};
use arch::layout;
use arch::regs::SystemRegisters;
use images::{BzImage, Elf, Flat, note, pattern};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: usize = 1 << 20;

fn memory(mib: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib * MIB)]).unwrap()
}

/// Loads `kernel` with `modules` (bytes and command).
fn load_with(
    memory: &GuestMemoryMmap,
    kernel: &[u8],
    modules: &[(&[u8], &str)],
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    let mut kernel = Cursor::new(kernel);
    let mut files: Vec<_> = modules
        .iter()
        .map(|(bytes, _)| Cursor::new(*bytes))
        .collect();
    let modules = files
        .iter_mut()
        .zip(modules)
        .map(|(image, (_, command))| Module { image, command })
        .collect();
    boot::load(
        memory,
        BootSource {
            kernel: &mut kernel,
            modules,
            cmdline,
        },
    )
}

fn load(memory: &GuestMemoryMmap, kernel: &[u8]) -> Result<Loaded, LoadError> {
    load_with(memory, kernel, &[], "")
}

fn error(kernel: &[u8]) -> String {
    load(&memory(64), kernel).unwrap_err().to_string()
}

fn bytes(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn u32_at(memory: &GuestMemoryMmap, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn u64_at(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn string_at(memory: &GuestMemoryMmap, address: u64) -> String {
    let bytes = bytes(memory, address, 256);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

/// The E820 map of a 64 MiB guest: (start, size, type).
const MAP_64_MIB: [(u64, u64, u32); 4] = [
    (0, 0x9_FC00, 1),
    (0x9_FC00, 0x400, 2),
    (0xE_0000, 0x2_0000, 2),
    (0x10_0000, 0x3F0_0000, 1),
];

#[test]
fn linux64_bzimage_is_loaded_at_its_preferred_address() {
    let memory = memory(64);
    let initrd = pattern(5000);
    let image = BzImage::linux64();
    let loaded = load_with(&memory, &image.build(), &[(&initrd, "")], "console=ttyS0").unwrap();

    assert_eq!(loaded.protocol, Protocol::Linux64);
    assert_eq!(loaded.entry, GuestAddress(0x100_0200));
    assert_eq!(loaded.kernel_end, GuestAddress(0x110_0000));
    assert_eq!(bytes(&memory, 0x100_0000, 1024), image.payload);
    assert_eq!(loaded.registers.rip, 0x100_0200);
    assert_eq!(loaded.registers.rsi, layout::ZERO_PAGE.0);
    assert_eq!(loaded.registers.rflags, 2);
    let system = loaded.system_registers(SystemRegisters::default());
    assert!(system.cs.l && !system.cs.db);
    assert_eq!(system.cr3, layout::PML4.0);

    let zero_page = layout::ZERO_PAGE.0;
    assert_eq!(
        u64_at(&memory, zero_page + 0x70),
        layout::RSDP.0,
        "acpi_rsdp_addr"
    );
    assert_eq!(bytes(&memory, zero_page + 0x1E8, 1), [4], "e820_entries");
    assert_eq!(bytes(&memory, zero_page + 0x1EF, 1), [0], "sentinel");
    assert_eq!(u32_at(&memory, zero_page + 0x202), 0x5372_6448, "header");
    assert_eq!(
        bytes(&memory, zero_page + 0x210, 2),
        [0xFF, 1],
        "type_of_loader, loadflags"
    );
    assert_eq!(
        u32_at(&memory, zero_page + 0x214),
        0x100_0000,
        "code32_start"
    );
    // 5000 bytes page-aligned below 64 MiB.
    assert_eq!(
        u32_at(&memory, zero_page + 0x218),
        0x3FF_E000,
        "ramdisk_image"
    );
    assert_eq!(u32_at(&memory, zero_page + 0x21C), 5000, "ramdisk_size");
    assert_eq!(bytes(&memory, 0x3FF_E000, 5000), initrd);
    let cmdline = u32_at(&memory, zero_page + 0x228);
    assert_eq!(string_at(&memory, cmdline.into()), "console=ttyS0");
    for (index, (start, size, kind)) in MAP_64_MIB.into_iter().enumerate() {
        let entry = zero_page + 0x2D0 + 20 * index as u64;
        assert_eq!(u64_at(&memory, entry), start);
        assert_eq!(u64_at(&memory, entry + 8), size);
        assert_eq!(u32_at(&memory, entry + 16), kind);
    }
}

#[test]
fn linux32_bzimage_is_entered_flat_at_its_start() {
    let memory = memory(64);
    let loaded = load(&memory, &BzImage::linux32().build()).unwrap();
    assert_eq!(loaded.protocol, Protocol::Linux32);
    assert_eq!(loaded.entry, GuestAddress(0x100_0000));
    let registers = loaded.registers;
    assert_eq!(registers.rsi, layout::ZERO_PAGE.0);
    assert_eq!((registers.rbp, registers.rdi, registers.rbx), (0, 0, 0));
    let system = loaded.system_registers(SystemRegisters::default());
    assert_eq!(
        (system.cs.selector, system.ds.selector, system.ss.selector),
        (0x10, 0x18, 0x18)
    );
    assert_eq!(
        (system.cs.base, system.cs.limit, system.cs.db),
        (0, u32::MAX, true)
    );
    assert_eq!((system.cr0, system.efer), (0x11, 0));
    // The descriptors behind the selectors, for a kernel that loads them again.
    assert_eq!(u64_at(&memory, layout::GDT.0 + 0x10), 0x00CF_9B00_0000_FFFF);
    assert_eq!(u64_at(&memory, layout::GDT.0 + 0x18), 0x00CF_9300_0000_FFFF);
}

#[test]
fn old_bzimage_is_loaded_at_one_mebibyte_with_old_limits() {
    let memory = memory(1024);
    let initrd = pattern(4096);
    let image = BzImage::old().build();
    let loaded = load_with(&memory, &image, &[(&initrd, "")], "").unwrap();
    assert_eq!(loaded.entry, GuestAddress(0x10_0000));
    // Below 0x3800_0000, the limit before protocol 2.03, although RAM ends at 1 GiB.
    assert_eq!(u32_at(&memory, layout::ZERO_PAGE.0 + 0x218), 0x37FF_F000);
    let cmdline = "x".repeat(256);
    let error = load_with(&memory, &image, &[], &cmdline).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::CmdlineTooLong {
                length: 256,
                max: 255
            }
        ),
        "{error}"
    );
}

#[test]
fn bzimage_header_behind_its_declared_end_is_zero() {
    let memory = memory(64);
    let mut image = BzImage {
        version: 0x0202,
        ..BzImage::linux64()
    }
    .build();
    image[0x201] = 0x2A; // Ends at 0x22C, behind cmd_line_ptr.
    load(&memory, &image).unwrap();
    let behind = bytes(&memory, layout::ZERO_PAGE.0 + 0x22C, 0x268 - 0x22C);
    assert!(behind.iter().all(|byte| *byte == 0));
}

#[test]
fn bzimage_without_initrd_is_told_of_none() {
    // The builder fills what the file has there with 0x90; found by fuzzing.
    let memory = memory(64);
    load(&memory, &BzImage::linux64().build()).unwrap();
    assert_eq!(
        bytes(&memory, layout::ZERO_PAGE.0 + 0x218, 8),
        [0; 8],
        "ramdisk_*"
    );
    assert_eq!(
        bytes(&memory, layout::ZERO_PAGE.0 + 0x23C, 12),
        [0; 12],
        "hardware_subarch*"
    );
    assert_eq!(
        bytes(&memory, layout::ZERO_PAGE.0 + 0x250, 8),
        [0; 8],
        "setup_data"
    );
}

#[test]
fn bzimage_not_relocatable_keeps_its_address_and_reserves_where_it_runs() {
    let image = BzImage {
        relocatable: 0,
        ..BzImage::linux64()
    };
    let loaded = load(&memory(64), &image.build()).unwrap();
    assert_eq!(loaded.entry, GuestAddress(0x10_0200));
    assert_eq!(loaded.kernel_end, GuestAddress(0x110_0000));
}

#[test]
fn bzimage_signature_behind_the_code_is_not_loaded() {
    let memory = memory(64);
    let mut image = BzImage::linux64().build();
    image.extend_from_slice(&[0xEE; 64]);
    load(&memory, &image).unwrap();
    assert_eq!(bytes(&memory, 0x100_0400, 64), [0; 64]);
}

#[test]
fn initrd_stays_below_the_kernels_limit() {
    let memory = memory(64);
    let image = BzImage {
        initrd_addr_max: 0x1FF_FFFF,
        ..BzImage::linux64()
    }
    .build();
    load_with(&memory, &image, &[(&[1; 10], "")], "").unwrap();
    assert_eq!(u32_at(&memory, layout::ZERO_PAGE.0 + 0x218), 0x1FF_F000);
}

#[test]
fn initrd_of_exactly_the_room_fits_and_one_byte_more_does_not() {
    // 64 MiB less the 17 MiB below the kernel's end.
    let memory = memory(64);
    let image = BzImage::linux64().build();
    let initrd = vec![1; 47 * MIB + 1];
    load_with(&memory, &image, &[(&initrd[1..], "")], "").unwrap();
    assert_eq!(u32_at(&memory, layout::ZERO_PAGE.0 + 0x218), 0x110_0000);
    let error = load_with(&memory, &image, &[(&initrd, "")], "").unwrap_err();
    assert_eq!(error.subject(), Subject::Module(0));
    assert_eq!(
        error.to_string(),
        "module 0 has 0x2f00001 bytes, but only 0x2f00000 are free between the kernel's end and \
         0x4000000; give the guest more memory or make it smaller"
    );
}

#[test]
fn kernel_of_exactly_the_room_fits_and_one_byte_more_does_not() {
    // RAM ends at 64 MiB; the kernel runs at 16 MiB.
    let image = BzImage {
        init_size: 0x300_0000,
        ..BzImage::linux64()
    };
    load(&memory(64), &image.build()).unwrap();
    let image = BzImage {
        init_size: 0x300_0001,
        ..image
    };
    let error = load(&memory(64), &image.build()).unwrap_err();
    assert!(matches!(
        error,
        LoadError::KernelTooLarge {
            end: 0x400_0001,
            ram_end: 0x400_0000
        }
    ));

    let mut elf = Elf::linux64();
    elf.segments[0].memsz = 0x3E0_0000;
    load(&memory(64), &elf.build()).unwrap();
    elf.segments[0].memsz += 1;
    let error = load(&memory(64), &elf.build()).unwrap_err();
    assert!(matches!(
        error,
        LoadError::KernelTooLarge {
            end: 0x400_0001,
            ram_end: 0x400_0000
        }
    ));
}

#[test]
fn segments_that_lie_over_each_other_are_refused_and_neighbours_are_not() {
    let mut elf = Elf::linux64();
    let (begin, size) = (elf.segments[0].paddr, elf.segments[0].memsz);
    let mut next = elf.segments[0].clone();
    next.paddr = begin + size;
    elf.segments.push(next);
    load(&memory(64), &elf.build()).unwrap();
    elf.segments[1].paddr -= 1;
    let error = load(&memory(64), &elf.build()).unwrap_err();
    let LoadError::OverlappingSegments { first, second } = error else {
        panic!("{error}");
    };
    assert_eq!((first, second), (begin, begin + size - 1));
}

#[test]
fn linux64_elf_is_entered_at_its_entry() {
    let memory = memory(64);
    let elf = Elf::linux64();
    let loaded = load_with(&memory, &elf.build(), &[(&[7; 100], "")], "quiet").unwrap();
    assert_eq!(loaded.protocol, Protocol::Linux64);
    assert_eq!(loaded.entry, GuestAddress(0x20_0010));
    assert_eq!(loaded.kernel_end, GuestAddress(0x20_1000));
    assert_eq!(bytes(&memory, 0x20_0000, 512), elf.segments[0].bytes);
    assert_eq!(u32_at(&memory, layout::ZERO_PAGE.0 + 0x218), 0x3FF_F000);
    assert_eq!(u32_at(&memory, layout::ZERO_PAGE.0 + 0x202), 0x5372_6448);
}

#[test]
fn linux64_elf_virtual_entry_is_translated() {
    let elf = Elf {
        entry: 0xFFFF_FFFF_8020_0030,
        ..Elf::linux64()
    };
    assert_eq!(
        load(&memory(64), &elf.build()).unwrap().entry,
        GuestAddress(0x20_0030)
    );
}

#[test]
fn pvh_elf_gets_start_info() {
    let memory = memory(64);
    let loaded = load_with(&memory, &Elf::pvh().build(), &[(&[7; 100], "")], "quiet").unwrap();
    assert_eq!(loaded.protocol, Protocol::Pvh);
    assert_eq!(loaded.entry, GuestAddress(0x20_0020));
    let info = loaded.registers.rbx;
    assert_eq!(info, layout::PVH_START_INFO.0);
    assert_eq!(u32_at(&memory, info), 0x336E_C578, "magic");
    assert_eq!(u32_at(&memory, info + 4), 1, "version");
    assert_eq!(u32_at(&memory, info + 12), 1, "nr_modules");
    let module = u64_at(&memory, info + 16);
    assert_eq!(u64_at(&memory, module), 0x3FF_F000);
    assert_eq!(u64_at(&memory, module + 8), 100);
    assert_eq!(string_at(&memory, u64_at(&memory, info + 24)), "quiet");
    assert_eq!(u64_at(&memory, info + 32), layout::RSDP.0);
    let map = u64_at(&memory, info + 40);
    assert_eq!(u32_at(&memory, info + 48), 4);
    for (index, (start, size, kind)) in MAP_64_MIB.into_iter().enumerate() {
        let entry = map + 24 * index as u64;
        assert_eq!(u64_at(&memory, entry), start);
        assert_eq!(u64_at(&memory, entry + 8), size);
        assert_eq!(u32_at(&memory, entry + 16), kind);
    }
    let system = loaded.system_registers(SystemRegisters::default());
    assert_eq!((system.cr0, system.cr4, system.efer), (0x11, 0, 0));
    assert_eq!(
        (system.tr.base, system.tr.limit, system.tr.kind),
        (0, 0x67, 0xB)
    );
}

#[test]
fn pvh_note_of_four_bytes_and_of_a_32_bit_file() {
    let notes = note(b"Xen\0", 18, &0x20_0040_u32.to_le_bytes());
    let wide = Elf {
        notes: Some(notes),
        ..Elf::linux64()
    };
    let narrow = Elf {
        bits: 32,
        machine: 3,
        ..wide.clone()
    };
    for elf in [wide, narrow] {
        let loaded = load(&memory(64), &elf.build()).unwrap();
        assert_eq!(
            (loaded.protocol, loaded.entry.0),
            (Protocol::Pvh, 0x20_0040)
        );
    }
}

#[test]
fn multiboot_elf_gets_information_and_modules() {
    let memory = memory(64);
    let modules: [(&[u8], &str); 2] = [(&[1; 5000], "first a=b"), (&[2; 10], "")];
    let loaded = load_with(&memory, &Elf::multiboot(3).build(), &modules, "test 1").unwrap();
    assert_eq!(loaded.protocol, Protocol::Multiboot1);
    assert_eq!(loaded.entry, GuestAddress(0x20_0010));
    assert_eq!(loaded.registers.rax, 0x2BAD_B002);
    let info = loaded.registers.rbx;
    assert_eq!(u32_at(&memory, info), 0b10_0100_1101, "flags");
    assert_eq!(u32_at(&memory, info + 4), 639, "mem_lower");
    assert_eq!(u32_at(&memory, info + 8), 63 * 1024, "mem_upper");
    assert_eq!(
        string_at(&memory, u32_at(&memory, info + 16).into()),
        "test 1"
    );
    assert_eq!(u32_at(&memory, info + 20), 2, "mods_count");
    let list = u64::from(u32_at(&memory, info + 24));
    // Page-aligned, one after the other above the kernel, which ends at 0x201000.
    let expected = [(0x20_1000, 5000, "first a=b"), (0x20_3000, 10, "")];
    for (index, (start, size, command)) in expected.into_iter().enumerate() {
        let entry = list + 16 * index as u64;
        assert_eq!(u32_at(&memory, entry), start);
        assert_eq!(u32_at(&memory, entry + 4), start + size);
        assert_eq!(
            string_at(&memory, u32_at(&memory, entry + 8).into()),
            command
        );
        assert_eq!(
            bytes(&memory, start.into(), size as usize),
            modules[index].0
        );
    }
    assert_eq!(u32_at(&memory, info + 44), 4 * 24, "mmap_length");
    let map = u64::from(u32_at(&memory, info + 48));
    for (index, (start, size, kind)) in MAP_64_MIB.into_iter().enumerate() {
        let entry = map + 24 * index as u64;
        assert_eq!(u32_at(&memory, entry), 20);
        assert_eq!(u64_at(&memory, entry + 4), start);
        assert_eq!(u64_at(&memory, entry + 12), size);
        assert_eq!(u32_at(&memory, entry + 20), kind);
    }
    assert_eq!(
        string_at(&memory, u32_at(&memory, info + 64).into()),
        "Keeptime"
    );
}

#[test]
fn multiboot_address_fields_replace_a_file_format() {
    let memory = memory(64);
    let image = Flat::new().build();
    let loaded = load(&memory, &image).unwrap();
    assert_eq!(loaded.entry, GuestAddress(0x10_0080));
    assert_eq!(loaded.kernel_end, GuestAddress(0x10_3000));
    assert_eq!(bytes(&memory, 0x10_0000, 0x200), image[..0x200]);
    assert_eq!(
        bytes(&memory, 0x10_0200, 0x200),
        [0; 0x200],
        "load_end_addr"
    );

    let whole = Flat {
        load_end_addr: 0,
        bss_end_addr: 0,
        ..Flat::new()
    };
    let loaded = load(&memory, &whole.build()).unwrap();
    assert_eq!(loaded.kernel_end, GuestAddress(0x10_0400));
}

#[test]
fn multiboot_header_with_a_wrong_checksum_is_none() {
    let mut image = Elf::multiboot(3).build();
    let header = image
        .windows(4)
        .position(|w| w == 0x1BAD_B002_u32.to_le_bytes())
        .unwrap();
    image[header + 8] ^= 1;
    assert!(matches!(
        load(&memory(64), &image),
        Err(LoadError::NoEntryPoint)
    ));
    // Nor is one that is not aligned to 4 bytes.
    let mut elf = Elf::multiboot(3);
    elf.segments[0].bytes.insert(0, 0);
    assert!(matches!(
        load(&memory(64), &elf.build()),
        Err(LoadError::NoEntryPoint)
    ));
}

#[test]
fn multiboot_wins_in_a_32_bit_file_and_pvh_in_a_64_bit_one() {
    let notes = Elf::pvh().notes;
    let narrow = Elf {
        notes: notes.clone(),
        ..Elf::multiboot(0)
    };
    assert_eq!(
        load(&memory(64), &narrow.build()).unwrap().protocol,
        Protocol::Multiboot1
    );
    let wide = Elf {
        bits: 64,
        machine: 62,
        notes,
        ..Elf::multiboot(0)
    };
    assert_eq!(
        load(&memory(64), &wide.build()).unwrap().protocol,
        Protocol::Pvh
    );
    let wide = Elf {
        notes: None,
        ..wide
    };
    assert_eq!(
        load(&memory(64), &wide.build()).unwrap().protocol,
        Protocol::Multiboot1
    );
}

#[test]
fn ram_above_four_gibibytes_is_in_the_map() {
    let regions = [
        (GuestAddress(0), 64 * MIB),
        (layout::MMIO_HOLE_END, 2 * MIB),
    ];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&regions).unwrap();
    load(&memory, &BzImage::linux64().build()).unwrap();
    assert_eq!(bytes(&memory, layout::ZERO_PAGE.0 + 0x1E8, 1), [5]);
    let entry = layout::ZERO_PAGE.0 + 0x2D0 + 20 * 4;
    assert_eq!(u64_at(&memory, entry), 1 << 32);
    assert_eq!(u64_at(&memory, entry + 8), 2 << 20);
}

#[test]
fn bad_kernels_name_the_field_and_the_cure() {
    let elf = Elf::linux64;
    let at = |mut image: Vec<u8>, offset: usize, value: &[u8]| {
        images::put(&mut image, offset, value);
        image
    };
    let linux64 = BzImage::linux64().build();
    // (what, file, message)
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "empty",
            vec![],
            "the kernel is an empty file; give one with content",
        ),
        (
            "text",
            b"hello".to_vec(),
            "not a kernel of a known format (it begins with 68 65 6c 6c 6f); give an x86 bzImage, \
             ELF or multiboot kernel",
        ),
        (
            "gzip",
            vec![0x1F, 0x8B, 8, 0],
            "the kernel is a gzip file; unpack it first, for example with `gunzip`",
        ),
        (
            "zstd",
            vec![0x28, 0xB5, 0x2F, 0xFD, 0],
            "the kernel is a zstd file; unpack it first, for example with `unzstd`",
        ),
        (
            "arm64 Image",
            at(vec![0; 4096], 56, b"ARM\x64"),
            "the kernel is built for arm64; give one built for x86",
        ),
        (
            "RISC-V Image",
            at(vec![0; 4096], 56, b"RSC\x05"),
            "the kernel is built for RISC-V; give one built for x86",
        ),
        (
            "arm64 ELF",
            Elf {
                machine: 183,
                ..elf()
            }
            .build(),
            "the kernel is built for arm64; give one built for x86",
        ),
        (
            "unknown ELF machine",
            Elf {
                machine: 9999,
                ..elf()
            }
            .build(),
            "the kernel is built for ELF machine 9999; give one built for x86",
        ),
        (
            "PE",
            at(b"MZ".to_vec(), 0x300, &[0]),
            "the kernel is a PE executable without a Linux setup header (no `HdrS` at offset \
             0x202); give a bzImage",
        ),
        (
            "boot_flag",
            at(linux64.clone(), 0x1FE, &[0, 0]),
            "boot_flag at offset 0x1fe is 0x0: a bzImage has 0xaa55 there; give an intact one",
        ),
        (
            "version",
            BzImage {
                version: 0x0201,
                ..BzImage::linux64()
            }
            .build(),
            "version at offset 0x206 is 0x201: boot protocol 2.02 or newer is needed; give a \
             kernel from this century",
        ),
        (
            "zImage",
            BzImage {
                loadflags: 0,
                ..BzImage::linux64()
            }
            .build(),
            "loadflags at offset 0x211 is 0x0: LOADED_HIGH (bit 0) is clear, so this is a zImage; \
             give a bzImage",
        ),
        (
            "kernel_alignment",
            BzImage {
                kernel_alignment: 3,
                ..BzImage::linux64()
            }
            .build(),
            "kernel_alignment at offset 0x230 is 0x3: it must be a power of two, at most 1 GiB; \
             give an intact bzImage",
        ),
        (
            "pref_address",
            BzImage {
                pref_address: u64::MAX,
                ..BzImage::linux64()
            }
            .build(),
            "pref_address at offset 0x258 is 0xffffffffffffffff: no RAM is there; give an intact \
             bzImage",
        ),
        (
            "setup header's length",
            at(linux64.clone(), 0x201, &[0x20]),
            "the length of the setup header at offset 0x201 is 0x20: too short for the header's \
             version; give an intact bzImage",
        ),
        (
            "larger than memory",
            BzImage {
                init_size: 0x400_0000,
                ..BzImage::linux64()
            }
            .build(),
            "the kernel needs RAM up to address 0x5000000, but RAM below the MMIO hole ends at \
             0x4000000; give the guest at least 80 MiB of memory",
        ),
        (
            "larger than any memory",
            BzImage {
                init_size: 0xFFFF_FFFF,
                ..BzImage::linux64()
            }
            .build(),
            "the kernel needs RAM up to address 0x100ffffff, but RAM below the MMIO hole ends at \
             0x4000000; give a kernel that is linked lower",
        ),
        (
            "code cut short",
            linux64[..linux64.len() - 16].to_vec(),
            "the kernel is cut short inside the protected-mode code: it needs 0xdf1 bytes and has \
             0xdf0; get a complete copy",
        ),
        (
            "segment below 1 MiB",
            {
                let mut elf = elf();
                elf.segments[0].paddr = 0x9000;
                elf.build()
            },
            "segment 0 is to be loaded at 0x9000, below 0x100000, where the boot tables are; link \
             the kernel at 0x100000 or above",
        ),
        (
            "p_filesz",
            {
                let mut elf = elf();
                elf.segments[0].memsz = 511;
                elf.build()
            },
            "p_filesz at offset 0x60 is 0x200: more than p_memsz; give an intact ELF file",
        ),
        (
            "p_memsz",
            {
                let mut elf = elf();
                elf.segments[0].paddr = u64::MAX - 0xFFE;
                elf.build()
            },
            "p_memsz at offset 0x68 is 0x1000: p_paddr + p_memsz overflows; give an intact ELF file",
        ),
        (
            "entry",
            Elf {
                entry: 0x30_0000,
                ..elf()
            }
            .build(),
            "the entry point 0x300000 is outside what the kernel loads; give an intact kernel",
        ),
        (
            "no segments",
            Elf {
                segments: vec![],
                ..elf()
            }
            .build(),
            "the ELF file has no loadable segment; give the linked kernel, not a part of it",
        ),
        (
            "relocatable object",
            at(elf().build(), 16, &[1]),
            "e_type at offset 0x10 is 0x1: not an executable; give the linked kernel",
        ),
        (
            "32-bit without an entry",
            Elf {
                bits: 32,
                machine: 3,
                ..elf()
            }
            .build(),
            "a 32-bit ELF file with neither a multiboot header nor a PVH note has no known entry; \
             give the kernel's bzImage",
        ),
        (
            "PVH note too short",
            Elf {
                notes: Some(note(b"Xen\0", 18, &[1, 2])),
                ..elf()
            }
            .build(),
            "the notes of segment 1 at offset 0x2c0 is 0x2: the PVH note has no 32-bit address; \
             give an intact kernel",
        ),
        (
            "multiboot video mode",
            Elf::multiboot(1 << 2).build(),
            "the multiboot header at offset 0x154 requires a video mode (flag bit 2), and there \
             is no display; build the kernel without it",
        ),
        (
            "multiboot unknown flags",
            Elf::multiboot(1 << 7 | 1).build(),
            "the multiboot header at offset 0x154 requires unknown features (flags 0x80); build \
             the kernel for multiboot 1 with flags 0 and 1 only",
        ),
        (
            "multiboot load address",
            Flat {
                load_addr: 0x10_0041,
                ..Flat::new()
            }
            .build(),
            "multiboot load_addr at offset 0x50 is 0x100041: more than header_addr; give an \
             intact kernel",
        ),
        (
            "multiboot entry",
            Flat {
                entry_addr: 0x10_0200,
                ..Flat::new()
            }
            .build(),
            "the entry point 0x100200 is outside what the kernel loads; give an intact kernel",
        ),
    ];
    for (what, image, message) in rows {
        assert_eq!(error(&image), message, "{what}");
    }
}

#[test]
fn cut_short_everywhere_never_loads_and_always_says_so() {
    let files = [
        ("linux64", BzImage::linux64().build()),
        ("linux32", BzImage::linux32().build()),
        ("elf", Elf::linux64().build()),
        ("multiboot elf", Elf::multiboot(3).build()),
        // Its notes come last, so that every byte of the file is needed.
        ("pvh", Elf::pvh().build()),
    ];
    let memory = memory(64);
    for (what, image) in files {
        assert!(load(&memory, &image).is_ok(), "{what}");
        // Up to 15 bytes of padding at the end of a bzImage may be missing.
        for length in 1..image.len() - 15 {
            match load(&memory, &image[..length]) {
                Err(LoadError::Truncated { needed, size, .. }) => {
                    assert_eq!(size, length as u64, "{what}");
                    assert!(needed > size, "{what} of {length} bytes");
                }
                // Before its magic number, a bzImage of this builder is like any file.
                Err(LoadError::Unrecognised { .. }) if length < 0x200 => {}
                other => panic!("{what} of {length} bytes: {other:?}"),
            }
        }
    }
}

#[test]
fn command_line_at_the_kernels_limit_fits_and_one_byte_more_does_not() {
    let memory = memory(64);
    let cmdline = "x".repeat(2048);
    for image in [
        BzImage::linux64().build(),
        Elf::linux64().build(),
        Elf::pvh().build(),
    ] {
        load_with(&memory, &image, &[], &cmdline[1..]).unwrap();
        let error = load_with(&memory, &image, &[], &cmdline).unwrap_err();
        assert_eq!(error.subject(), Subject::Cmdline);
        assert_eq!(
            error.to_string(),
            "the command line has 2048 bytes, but this kernel takes 2047 at most; shorten it"
        );
    }
    let error = load_with(&memory, &Elf::linux64().build(), &[], "a\0b").unwrap_err();
    assert!(matches!(error, LoadError::CmdlineNul { position: 1 }));
}

#[test]
fn modules_that_a_protocol_does_not_take_are_refused() {
    let memory = memory(64);
    let two: [(&[u8], &str); 2] = [(b"a", ""), (b"b", "")];
    let error = load_with(&memory, &BzImage::linux64().build(), &two, "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "2 modules for a Linux 64-bit kernel, which takes 1 at most; give fewer"
    );
    let error = load_with(&memory, &BzImage::linux64().build(), &[(b"", "")], "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "module 0 is an empty file; give one with content"
    );
    let large = vec![0; 62 * MIB];
    let modules: [(&[u8], &str); 2] = [(b"a", ""), (&large, "")];
    let error = load_with(&memory, &Elf::multiboot(0).build(), &modules, "").unwrap_err();
    assert_eq!(error.subject(), Subject::Module(1));
}

#[test]
fn multiboot_strings_beyond_their_room_are_refused() {
    let memory = memory(64);
    let long = "x".repeat(40_000);
    let modules: [(&[u8], &str); 2] = [(b"a", &long), (b"b", &long)];
    let error = load_with(&memory, &Elf::multiboot(0).build(), &modules, "").unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::MultibootInfoTooLarge { room: 0x1_0000, .. }
        ),
        "{error}"
    );
}
