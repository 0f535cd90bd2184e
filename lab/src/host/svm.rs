//! The svm host: QEMU's software CPU, with AMD's SVM and nested paging, under Debian's kernel and its
//! `kvm-amd`. No TSC scaling. Its TSC is unstable, so that the kernel keeps time with the HPET, unless
//! the kernel is told `tsc=reliable` (QEMU's software CPU refuses to claim an invariant TSC).

use std::path::Path;
use std::process::Command;

use crate::host::image::Load;
use crate::process::tied;

/// Debian packages that the host needs, and curl, which is taken along into it.
pub(crate) const PACKAGES: &[&str] = &["qemu-system-x86", "seabios", "curl"];

/// The host's processor. Without XSAVE: QEMU before 8.1 does not intercept XSETBV, so KVM would not
/// learn of a guest's XCR0, and every guest would warn that the sizes in CPUID leaf 0xd are wrong. Without ERMS:
/// where kernels have it they copy by REP MOVSB, which QEMU executes byte by byte. 128 MiB through the host's loopback
/// took 3.4 s with it and 1.1 s without.
const CPU: &str = "EPYC-Milan,+svm,+npt,-xsave,-erms";

/// The same with XSAVE, without which Firecracker refuses to run: where the host counts, guests' warnings do not.
const CPU_COUNTED: &str = "EPYC-Milan,+svm,+npt";

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

/// The emulator's command; the console is its standard output. `counted`: with one processor, and a clock that counts
/// its instructions and leaps where it has none to execute.
pub(crate) fn command(kernel: &Path, initramfs: &Path, options: &str, counted: bool) -> Command {
    let mut command = tied("qemu-system-x86_64");
    command.args(["-machine", "q35"]);
    if counted {
        command.args(["-accel", "tcg", "-icount", "shift=0,sleep=off"]);
        command.args(["-cpu", CPU_COUNTED, "-smp", "1"]);
    } else {
        command.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2"]);
    }
    command
        .args(["-m", "2048", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", options]);
    command
}
