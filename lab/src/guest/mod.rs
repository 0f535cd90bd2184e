//! Guests: stock Linux with an initramfs of ours, and small ones that consist of a few instructions.

pub(crate) mod linux;
pub(crate) mod program;
pub(crate) mod root;
pub(crate) mod witness;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;

/// A guest without an operating system, under `lab/guests`: in assembly, or one file in C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Small {
    source: &'static str,
    bits: Bits,
}

/// What the 64-bit guests include.
const SAY: &str = include_str!("../../guests/say.inc");
/// What those in C do.
const VIRTIO_DRIVER: &str = include_str!("../../guests/virtio-driver.h");
const HOSTILE_QUEUES: &str = include_str!("../../guests/hostile-queues.h");

#[derive(Debug, Clone, Copy)]
enum Bits {
    /// An ELF32, which the launcher enters in protected mode without paging.
    Protected,
    /// An ELF64, which the launcher enters in long mode.
    Long,
    /// The same, from C.
    LongFromC,
}

/// A multiboot 1 kernel that writes down all that it was given, then ends through the debug port with
/// the status 33, or by a reset where there is none.
pub(crate) const MULTIBOOT: Small = Small {
    source: include_str!("../../guests/multiboot.S"),
    bits: Bits::Protected,
};
/// Writes "reset guest" and resets through the keyboard controller.
pub(crate) const RESET: Small = Small {
    source: include_str!("../../guests/reset.S"),
    bits: Bits::Long,
};
/// Writes "power-off guest" and powers off through ACPI.
pub(crate) const POWER_OFF: Small = Small {
    source: include_str!("../../guests/power-off.S"),
    bits: Bits::Long,
};
/// Writes "triple fault guest" and shuts its processor down.
pub(crate) const TRIPLE_FAULT: Small = Small {
    source: include_str!("../../guests/triple-fault.S"),
    bits: Bits::Long,
};
/// Writes "debug exit guest" and ends through the debug port with the status 7.
pub(crate) const DEBUG_EXIT: Small = Small {
    source: include_str!("../../guests/debug-exit.S"),
    bits: Bits::Long,
};

/// Has the interval timer count, toggle and interrupt, writes a line for each, and resets.
pub(crate) const INTERVAL_TIMER: Small = Small {
    source: include_str!("../../guests/interval-timer.S"),
    bits: Bits::Long,
};

/// Writes "keyboard guest", waits for a key, such as those of Ctrl+Alt+Del, and resets.
pub(crate) const KEYBOARD: Small = Small {
    source: include_str!("../../guests/keyboard.S"),
    bits: Bits::Long,
};

/// Runs for ever.
pub(crate) const FOR_EVER: Small = Small {
    source: include_str!("../../guests/for-ever.S"),
    bits: Bits::Long,
};

/// Runs [`LOOP_INSTRUCTIONS`], writes "loop guest" and resets.
pub(crate) const LOOP: Small = Small {
    source: include_str!("../../guests/loop.S"),
    bits: Bits::Long,
};
/// The loop of [`LOOP`]: two instructions, 20 million times.
pub(crate) const LOOP_INSTRUCTIONS: u32 = 40_000_000;

/// Breaks the virtio protocol on each virtio device, writes a line for each violation that the device survived, and
/// their number, and resets.
pub(crate) const HOSTILE_DRIVER: Small = Small {
    source: include_str!("../../guests/hostile-driver.c"),
    bits: Bits::LongFromC,
};

/// Uses all virtio devices while the host takes away what is behind them; has its disks flushed, and waits.
pub(crate) const HOST_FAULTS: Small = Small {
    source: include_str!("../../guests/host-faults.c"),
    bits: Bits::LongFromC,
};

/// Has a persistent memory, waits until its file is cut short and its first byte 1, and touches what is gone.
pub(crate) const CUT_SHORT: Small = Small {
    source: include_str!("../../guests/cut-short.S"),
    bits: Bits::Long,
};

impl Small {
    /// The guest as an ELF file, loaded at 1 MiB. Needs GNU binutils, which Rust's linker needs too, and the C compiler
    /// that calls it.
    pub(crate) fn build(self) -> Result<Vec<u8>> {
        let linker_mode = match self.bits {
            Bits::Protected => "elf_i386",
            Bits::Long | Bits::LongFromC => "elf_x86_64",
        };
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let file = |name: &str| folder.path().join(name);
        for name in ["guest.S", "guest.c"] {
            fs::write(file(name), self.source).context("cannot write the guest's source")?;
        }
        for (name, source) in [
            ("say.inc", SAY),
            ("virtio-driver.h", VIRTIO_DRIVER),
            ("hostile-queues.h", HOSTILE_QUEUES),
        ] {
            fs::write(file(name), source).context("cannot write the guest's source")?;
        }
        let mut translator = match self.bits {
            Bits::Protected | Bits::Long => Command::new("as"),
            Bits::LongFromC => Command::new("cc"),
        };
        match self.bits {
            Bits::Protected => translator.args(["--32", "-I"]).arg(folder.path()),
            Bits::Long => translator.args(["--64", "-I"]).arg(folder.path()),
            // No red zone and no vector registers: nobody has set the processor up for either.
            Bits::LongFromC => translator
                .args([
                    "-c",
                    "-m64",
                    "-std=gnu11",
                    "-O2",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                ])
                .args([
                    "-ffreestanding",
                    "-fno-stack-protector",
                    "-fno-pic",
                    "-mno-red-zone",
                ])
                .args(["-mgeneral-regs-only", "-fno-asynchronous-unwind-tables"])
                .args(["-fcf-protection=none"]),
        };
        let source = match self.bits {
            Bits::Protected | Bits::Long => "guest.S",
            Bits::LongFromC => "guest.c",
        };
        translator.arg("-o").arg(file("guest.o")).arg(file(source));
        capture(&mut translator).context("install binutils and gcc, or mend the guest")?;
        let mut linker = Command::new("ld");
        // Segments aligned to 4 KiB keep a multiboot header within the file's first 8 KiB.
        linker
            .args([
                "-m",
                linker_mode,
                "--build-id=none",
                "-z",
                "max-page-size=4096",
            ])
            .args(["-z", "noexecstack", "--no-warn-rwx-segments"])
            .args(["-Ttext-segment", "0x100000", "-o"])
            .arg(file("guest"))
            .arg(file("guest.o"));
        capture(&mut linker)?;
        fs::read(file("guest")).context("cannot read the guest")
    }
}

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSegment};

    use super::*;

    #[test]
    fn small_guests_are_elf_files_at_one_mebibyte() {
        for small in [
            MULTIBOOT,
            RESET,
            POWER_OFF,
            TRIPLE_FAULT,
            DEBUG_EXIT,
            INTERVAL_TIMER,
            KEYBOARD,
            FOR_EVER,
            LOOP,
            HOSTILE_DRIVER,
            HOST_FAULTS,
        ] {
            let bytes = small.build().unwrap();
            let file = object::File::parse(bytes.as_slice()).unwrap();
            assert_eq!(file.is_64(), !matches!(small.bits, Bits::Protected));
            let first = file.segments().map(|segment| segment.address()).min();
            assert_eq!(first, Some(0x10_0000));
            assert!(file.segments().any(|segment| {
                (segment.address()..segment.address() + segment.size()).contains(&file.entry())
            }));
        }
    }

    #[test]
    fn multiboot_guest_has_its_header_within_8_kib() {
        let bytes = MULTIBOOT.build().unwrap();
        let words = bytes[..8192].chunks_exact(4);
        let at = words
            .into_iter()
            .position(|word| word == 0x1bad_b002_u32.to_le_bytes())
            .unwrap();
        let field = |index: usize| {
            let start = (at + index) * 4;
            u32::from_le_bytes(bytes[start..start + 4].try_into().unwrap())
        };
        assert_eq!(field(0).wrapping_add(field(1)).wrapping_add(field(2)), 0);
    }
}
