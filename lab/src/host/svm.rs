//! The svm host: QEMU's software CPU, with AMD's SVM and nested paging, under Debian's kernel and its
//! `kvm-amd`. No TSC scaling. Its TSC is unstable, so that the kernel keeps time with the HPET, unless
//! the kernel is told `tsc=reliable` (QEMU's software CPU refuses to claim an invariant TSC).
//!
//! QEMU is a newer one than bookworm's 7.2, under which a host or its guest is lost in one of ten boots
//! (lab/README.md, "Traps"). It is unpacked, not installed, and runs with the libraries of its own release.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::apt::{Archive, Release};
use crate::host::image::Load;
use crate::paths::Paths;
use crate::process::tied;

/// Debian packages that the host needs: curl, which is taken along into it.
pub(crate) const PACKAGES: &[&str] = &["curl"];

/// The packages of the emulator.
const EMULATOR: &[&str] = &["qemu-system-x86", "seabios"];

/// The emulator, unpacked in the cache.
#[derive(Debug)]
pub(crate) struct Emulator(PathBuf);

impl Emulator {
    /// Finds it in the cache, or fetches it.
    pub(crate) fn fetch(paths: &Paths) -> Result<Self> {
        let _lock = paths.lock_caches()?;
        let tree = paths.folder("packages")?.join("qemu");
        if !tree.exists() {
            let archive = Archive::open(paths, Release::Trixie)?;
            if !archive.has_lists() {
                archive.update()?;
            }
            archive.unpack_with_dependencies(EMULATOR, &tree)?;
        }
        Ok(Self(tree))
    }

    /// Its command without arguments of the machine: its own loader finds its own libraries (ld.so(8)).
    fn command(&self) -> Command {
        let at = |path: &str| self.0.join(path);
        let mut command = tied(at("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(at("usr/lib/x86_64-linux-gnu"))
            .arg(at("usr/bin/qemu-system-x86_64"));
        // Debian has taken parts of it into modules, which it looks for where it was installed.
        command.env("QEMU_MODULE_DIR", at("usr/lib/x86_64-linux-gnu/qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(at(firmware));
        }
        command
    }
}

/// The host's processor. Without XSAVE: QEMU before 8.1 does not intercept XSETBV, so KVM would not
/// learn of a guest's XCR0, and every guest would warn that the sizes in CPUID leaf 0xd are wrong.
const CPU: &str = "EPYC-Milan,+svm,+npt,-xsave";

/// The kernel's options. Without this one it looks whether the interval timer interrupts often enough within
/// ten ticks (arch/x86/kernel/apic/io_apic.c, `check_timer`), and panics when a busy machine kept the
/// emulator from it.
pub(crate) const OPTIONS: &str = "no_timer_check";
/// The same with a TSC that the kernel trusts.
pub(crate) const OPTIONS_STABLE: &str = "no_timer_check tsc=reliable";

/// What KVM shall use for a guest's physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Paging {
    /// Nested page tables, the processor's way.
    Nested,
    /// Shadow page tables. QEMU 7.2's nested paging hangs a guest that uses PAE.
    Shadow,
}

/// The modules to load.
pub(crate) fn loads(paging: Paging) -> Vec<Load> {
    let parameters = match paging {
        Paging::Nested => "",
        Paging::Shadow => "npt=0",
    };
    vec![
        Load {
            module: "kvm-amd",
            parameters,
        },
        // For taps.
        Load {
            module: "tun",
            parameters: "",
        },
        Load {
            module: "msr",
            parameters: "allow_writes=on",
        },
    ]
}

/// The emulator's command; the console is its standard output.
pub(crate) fn command(
    emulator: &Emulator,
    kernel: &Path,
    initramfs: &Path,
    options: &str,
) -> Command {
    let mut command = emulator.command();
    command
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU])
        .args([
            "-smp",
            "2",
            "-m",
            "2048",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", options]);
    command
}
