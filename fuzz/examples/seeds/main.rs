//! Writes the seeds of the corpora: `cargo run -p fuzz --example seeds`.
//!
//! Synthetic kernels, small and complete, from the builders of arch's tests; hosts; histories of
//! guests' clocks; what drivers of virtio devices ask, and guests their metadata service.

mod clocks;
#[path = "../../../arch/tests/images/mod.rs"]
mod images;
mod metadata;
mod seed;
mod virtio;

use std::fs;
use std::io;
use std::path::Path;

use images::{BzImage, Elf, Flat};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    let kernels = [
        ("boot_bzimage", "linux64", BzImage::linux64().build()),
        ("boot_bzimage", "linux32", BzImage::linux32().build()),
        ("boot_bzimage", "old", BzImage::old().build()),
        (
            "boot_bzimage",
            "fixed",
            BzImage {
                relocatable: 0,
                ..BzImage::linux64()
            }
            .build(),
        ),
        ("boot_elf", "linux64", Elf::linux64().build()),
        ("boot_elf", "pvh64", Elf::pvh().build()),
        (
            "boot_elf",
            "pvh32",
            Elf {
                bits: 32,
                machine: 3,
                ..Elf::pvh()
            }
            .build(),
        ),
        ("boot_multiboot", "elf32", Elf::multiboot(3).build()),
        (
            "boot_multiboot",
            "elf64",
            Elf {
                bits: 64,
                machine: 62,
                ..Elf::multiboot(0)
            }
            .build(),
        ),
        ("boot_multiboot", "flat", Flat::new().build()),
        (
            "boot_multiboot",
            "flat-whole",
            Flat {
                load_end_addr: 0,
                bss_end_addr: 0,
                ..Flat::new()
            }
            .build(),
        ),
    ];
    for (target, name, kernel) in &kernels {
        write(target, name, kernel)?;
        // One module of 4096 bytes, a command line of 255.
        write(
            "boot_any",
            &format!("{target}-{name}"),
            &[&[0b0010_1001], &kernel[..]].concat(),
        )?;
    }
    for (name, magic) in [
        ("gzip", &[0x1F, 0x8B, 8][..]),
        ("pe", b"MZ"),
        ("arm64", &arm64()),
    ] {
        write("boot_any", name, &[&[0], magic].concat())?;
    }

    let leaf = |function: u32, index: u8, registers: [u32; 4]| {
        let mut bytes = function.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[index, 1, 0, 0]);
        bytes.extend(registers.map(u32::to_le_bytes).concat());
        bytes
    };
    let intel = [
        leaf(0, 0, [0x1F, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]),
        leaf(1, 0, [0x5_0654, 0x0640_0800, 0x0C20_8008, 0x178B_FBFF]),
        leaf(4, 3, [0x7C0F_C163, 1, 2, 3]),
        leaf(7, 0, [0, 2, 0x18, 0]),
        leaf(0xA, 0, [0x0730_0404, 0, 0, 0x603]),
        leaf(0xB, 1, [6, 64, 0x201, 6]),
        leaf(0xD, 0, [7, 0x340, 0x340, 0]),
        leaf(0x1F, 0, [1, 2, 0x100, 6]),
        leaf(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D],
        ),
        leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
    ];
    let amd = [
        leaf(0, 0, [0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65]),
        leaf(1, 0, [0xA0_0F11, 0x0840_0800, 0x0020_0001, 0x178B_FBFF]),
        leaf(0x8000_0001, 0, [0xA0_0F11, 0, 0x1140_0006, 0]),
        leaf(0x8000_0008, 0, [0x3030, 0, 0x703F, 0]),
        leaf(0x8000_001D, 3, [0x0003_C163, 0, 0, 0]),
        leaf(0x8000_001E, 0, [8, 0x104, 1, 0]),
    ];
    for (name, header, leaves) in [
        ("intel", [4, 2, 1], &intel[..]),
        ("amd", [3, 1, 0], &amd[..]),
    ] {
        let rate = 2_499_998_u32.to_le_bytes();
        write(
            "cpuid",
            name,
            &[&header[..], &rate, &leaves.concat()].concat(),
        )?;
    }

    let device = |base: u64, gsi: u32| {
        [
            &base.to_le_bytes()[..],
            &0x1000_u32.to_le_bytes(),
            &gsi.to_le_bytes(),
        ]
        .concat()
    };
    write("acpi", "small", &[1])?;
    let devices = [device(0xC000_1000, 5), device(0xC000_2000, 6)].concat();
    write("acpi", "devices", &[&[2], &devices[..]].concat())?;
    write("acpi", "largest", &[255])?;

    let kept = |cpus: &str, domains: &str, agree: &str| {
        format!(
            r#"{{"format":2,"key":{{"boot_id":"b","cpus":"{cpus}","clocksource":null,"slept_ns":0}},"#
        ) + &format!(r#""finding":{{"domains":[{domains}],"agree":"{agree}","largest":"#)
            + r#"{"a":0,"b":1,"at_least_ns":-131,"at_most_ns":241},"at_ns":1000000005}}"#
    };
    let one = kept("0-3", r#""0-3""#, "proven");
    let two = kept("0-3", r#""0,2","1,3""#, "refuted");
    let far = kept("0,64,1023", r#""0","64,1023""#, "refuted");
    for (name, text) in [("one", one), ("two", two), ("far", far)] {
        write("cache", name, text.as_bytes())?;
    }

    clocks::seeds()
        .into_iter()
        .chain(metadata::seeds())
        .chain(virtio::seeds())
        .try_for_each(|(target, name, seed)| write(target, name, &seed))
}

/// The head of an arm64 Image.
fn arm64() -> Vec<u8> {
    let mut image = Vec::new();
    images::put(&mut image, 56, b"ARM\x64");
    image
}
