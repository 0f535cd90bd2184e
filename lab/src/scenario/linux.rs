//! Stock Linux guests with two processors: the 64-bit kernel as bzImage and as an ELF file with the PVH
//! entry, the 32-bit kernels through the 32-bit boot protocol. On a host whose TSC is unstable they are
//! the guests that 2.6.37 could not boot.

use anyhow::{Context, Result, ensure};

use crate::guest::linux::{COMMAND_LINE, MEMORY_MIB, Report};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// The processors of each guest.
const PROCESSORS: u32 = 2;

/// In which form the kernel is given to the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    BzImage,
    Elf,
    /// As a bzImage, on a machine without an interval timer.
    BzImageWithoutPit,
}

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for tsc in [Tsc::Unstable, Tsc::Stable] {
        let nested = Host::Svm {
            tsc,
            paging: Paging::Nested,
        };
        // QEMU's nested paging hangs a guest that uses PAE, whatever launches it.
        let shadow = Host::Svm {
            tsc,
            paging: Paging::Shadow,
        };
        scenarios.push(boot(nested, Kernel::Amd64, Form::BzImage));
        // Nothing of how the kernel is given, or of the interval timer, is a matter of the host's TSC.
        if tsc == Tsc::Unstable {
            scenarios.push(boot(nested, Kernel::Amd64, Form::Elf));
            scenarios.push(boot(nested, Kernel::Amd64, Form::BzImageWithoutPit));
        }
        scenarios.push(boot(nested, Kernel::I386, Form::BzImage));
        scenarios.push(boot(shadow, Kernel::I386Pae, Form::BzImage));
    }
    // The guest needs some nine seconds of the host's clock.
    scenarios.push(boot(Host::Vmx, Kernel::Amd64, Form::BzImage).seconds(120, 30));
    scenarios
}

fn boot(host: Host, kernel: Kernel, form: Form) -> Scenario {
    let suffix = match form {
        Form::BzImage => "",
        Form::Elf => "-pvh",
        Form::BzImageWithoutPit => "-no-pit",
    };
    let option = match form {
        Form::BzImageWithoutPit => "--no-pit",
        Form::BzImage | Form::Elf => "",
    };
    let name = format!("{}{suffix}", kernel.name());
    let image = format!("kernel-{name}");
    let initrd = format!("initrd-{}", kernel.name());
    let script = format!(
        "exec ./{LAUNCHER} run --kernel {image} --initrd {initrd} --cmdline '{COMMAND_LINE}' \
         --cpus {PROCESSORS} --memory {MEMORY_MIB} {option}\n"
    );
    Scenario::new(Place::Emulated(host), name, script)
        .files(move |workshop: &Workshop| {
            let stock = workshop.stock(kernel)?;
            let contents = match form {
                Form::BzImage | Form::BzImageWithoutPit => file(&stock.image),
                Form::Elf => file(&stock.elf()?),
            };
            let initramfs = Source::Bytes(workshop.guest_initramfs(kernel)?);
            let mut files = Files::new();
            files.insert(image.clone(), contents);
            files.insert(initrd.clone(), initramfs);
            Ok(files)
        })
        .check(move |outcome| check(host, kernel, outcome))
}

/// The clocksource that a stock guest must choose. A guest that is told of an invariant TSC prefers the
/// TSC to kvmclock; KVM tells it so on the vmx host alone, whose processor has one.
fn clocksource(host: Host) -> &'static str {
    match host {
        Host::Svm { .. } | Host::Counted => "kvm-clock",
        Host::Vmx => "tsc",
    }
}

/// The driver that a stock kernel has for the machine's generation: Debian's kernel for clouds is built without.
fn generation(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Amd64 => "VMGENCTR",
        Kernel::I386 | Kernel::I386Pae => "VMGENCTR vmgenid",
    }
}

/// The clock's page says that it cannot be relied on (`VMCLOCK_STATUS_UNRELIABLE`) where KVM moves the guest's TSC
/// by itself, and nowhere else. How well the host's clock is kept is another matter: nobody keeps it.
fn check_clock_page(host: Host, report: &Report) -> Result<()> {
    const UNRELIABLE: &str = "4";
    let page = report.value("clock page")?;
    ensure!(
        page.starts_with("VCLK at "),
        "the guest's clock page: {page}"
    );
    let status = report.value("clock status")?;
    ensure!(
        matches!(status, "0" | "1" | "2" | "3" | UNRELIABLE),
        "the guest's clock status: {status}"
    );
    let moved = matches!(
        host,
        Host::Svm {
            tsc: Tsc::Unstable,
            ..
        }
    );
    ensure!(
        (status == UNRELIABLE) == moved,
        "the guest's clock status is {status}, and KVM moves its TSC: {moved}"
    );
    Ok(())
}

/// How far a guest came that did not report. Without a line it hardly got beyond its entry; status 0 is that
/// of a triple fault, and of the reset when its kernel panicked.
fn how_far(outcome: &Outcome) -> String {
    let lines = outcome.stdout_text().lines().count();
    match outcome.status {
        Some(status) => {
            format!("the launcher ended with status {status} after {lines} lines of its guest")
        }
        None => format!("the launcher did not end in time, after {lines} lines of its guest"),
    }
}

/// Whether the guest reached user space with all of its processors and the right clocksource, and met no trouble.
pub(super) fn check(host: Host, kernel: Kernel, outcome: &Outcome) -> Result<()> {
    let report = Report::parse(&outcome.stdout).with_context(|| how_far(outcome))?;
    let expect = |key: &str, wanted: &str| {
        let found = report.value(key).map(str::to_owned)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
        Ok(())
    };
    expect("processors online", &PROCESSORS.to_string())?;
    expect("clocksource", clocksource(host))?;
    // A later kernel may have the driver.
    let found = report.value("generation").map(str::trim)?;
    ensure!(
        found.starts_with(generation(kernel)),
        "the guest's generation: {found}, not {}",
        generation(kernel)
    );
    expect("event interrupts", "1")?;
    check_clock_page(host, &report)?;
    let machine = report.value("kernel").map(str::to_owned)?;
    let architecture = if kernel == Kernel::Amd64 {
        " x86_64"
    } else {
        " i686"
    };
    ensure!(
        machine.ends_with(architecture),
        "the guest is {machine}, not{architecture}"
    );
    if kernel == Kernel::I386Pae {
        expect("pae", "yes")?;
    }
    let troubles: Vec<&str> = report.all("trouble").collect();
    ensure!(
        troubles.is_empty(),
        "the guest's kernel met trouble: {}",
        troubles.join("; ")
    );
    outcome.expect_status(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "--- user space ---\r\nkernel: 6.1.0-50-cloud-amd64 x86_64\r\n\
                        processors online: 2\r\nclocksource: kvm-clock\r\ngeneration: VMGENCTR \r\n\
                        event interrupts: 1\r\nclock page: VCLK at 000fe000\r\nclock status: 4\r\n\
                        --- power off ---\r\n";

    fn judged(serial: &str, status: Option<u8>) -> Result<()> {
        judged_as(Kernel::Amd64, serial, status)
    }

    fn judged_as(kernel: Kernel, serial: &str, status: Option<u8>) -> Result<()> {
        let host = Host::Svm {
            tsc: Tsc::Unstable,
            paging: Paging::Nested,
        };
        let stdout = serial.as_bytes().to_vec();
        check(
            host,
            kernel,
            &Outcome {
                status,
                stdout,
                stderr: Vec::new(),
            },
        )
    }

    #[test]
    fn check_good_guest_passes() {
        judged(GOOD, Some(0)).unwrap();
    }

    #[test]
    fn check_pae_guest_without_pae_fails() {
        let good = GOOD
            .replace("x86_64", "i686")
            .replace("VMGENCTR", "VMGENCTR vmgenid")
            .replace("clocksource:", "pae: yes\r\nclocksource:");
        judged_as(Kernel::I386Pae, &good, Some(0)).unwrap();
        for text in [good.replace("yes", "no"), good.replace("pae", "")] {
            assert!(judged_as(Kernel::I386Pae, &text, Some(0)).is_err());
            judged_as(Kernel::I386, &text, Some(0)).unwrap();
        }
        let without = good.replace(" vmgenid", "");
        assert!(judged_as(Kernel::I386Pae, &without, Some(0)).is_err());
    }

    #[test]
    fn check_each_fault_fails() {
        // what is wrong, in place of what, and the word that the message must hold
        let rows = [
            ("online: 2", "online: 1", "processors"),
            ("kvm-clock", "jiffies", "clocksource"),
            ("VMGENCTR", "", "generation"),
            ("interrupts: 1", "interrupts: 0", "interrupts"),
            ("VCLK", "", "clock page"),
            ("status: 4", "status: 0", "moves its TSC"),
            ("x86_64", "i686", "x86_64"),
            (
                "--- power off ---",
                "trouble: BUG: soft lockup\r\n--- power off ---",
                "lockup",
            ),
            ("--- user space ---", "", "user space"),
        ];
        for (good, bad, word) in rows {
            let error = judged(&GOOD.replace(good, bad), Some(0)).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(word), "{bad}: {error}");
        }
        assert!(judged(GOOD, Some(2)).is_err());
        assert!(judged(GOOD, None).is_err());
        let error = judged("", Some(0)).unwrap_err().to_string();
        assert!(error.contains("status 0 after 0 lines"), "{error}");
        let error = judged("one\r\ntwo\r\n", None).unwrap_err().to_string();
        assert!(error.contains("after 2 lines"), "{error}");
    }
}
