//! Persistent memory, driven by the modules of a stock kernel (`virtio_pmem` and the kernel's NVDIMM drivers): what is
//! flushed is in the host's file when the launcher is killed; a memory that is read-only stays as it is; a file that is
//! cut short ends its guest.

use anyhow::{Result, ensure};

use crate::guest::CUT_SHORT;
use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "virtio_pmem", "nd_pmem"];

/// The host's side.
const SCRIPT: &str = concat!(include_str!("launcher.sh"), include_str!("pmem.sh"));

/// What the read-only memory begins with; of its 2 MiB the file has 1 KiB.
const READ_ONLY: &str = "read-only";

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!(
        "exec ./{LAUNCHER} run --kernel kernel --initrd initrd-pmem --cmdline '{COMMAND_LINE}' --cpus 2 \
         --memory {MEMORY_MIB} --pmem memory,root --pmem memory-other,readonly"
    );
    let cut_short = format!(
        "exec ./{LAUNCHER} run --kernel guest-cut-short --cpus 1 --memory 32 --pmem memory-cut"
    );
    let script = format!("launch() {{ {launch}; }}\ncut_short() {{ {cut_short}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "pmem", script)
            .files(files)
            .check(check)
            .seconds(15, 100),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let mut other = READ_ONLY.as_bytes().to_vec();
    other.resize(1024, 0);
    let initramfs = linux::pmem_initramfs(&stock, MODULES)?;
    Ok(Files::from([
        ("kernel".to_owned(), file(&stock.image)),
        ("initrd-pmem".to_owned(), Source::Bytes(initramfs)),
        ("memory-other".to_owned(), Source::Bytes(other)),
        (
            "guest-cut-short".to_owned(),
            Source::Bytes(CUT_SHORT.build()?),
        ),
    ]))
}

fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    outcome.expect_line("the launcher's status: 137")?;
    let report = Report::parse(&outcome.stdout)?;
    let trouble: Vec<_> = report.all("trouble").collect();
    ensure!(trouble.is_empty(), "the guest met trouble: {trouble:?}");
    let cmdline = report.value("command line")?;
    ensure!(
        cmdline.ends_with("root=/dev/pmem0 rw"),
        "the guest's command line does not name the root device: {cmdline}"
    );
    let made = report.value("made")?;
    for (key, wanted) in [
        ("pmem0", "32768 sectors"),
        ("pmem1", "4096 sectors"),
        ("flushed", "yes"),
        ("written to pmem1", "no"),
        ("read back", made),
        ("read-only", READ_ONLY),
    ] {
        let found = report.value(key)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    outcome.expect_line(&format!("on the host: {made}"))?;
    outcome.expect_line(&format!("other on the host: {READ_ONLY}"))?;
    outcome.expect_line("the status where a file was cut short: 2")?;
    let output = outcome.stdout_text();
    let said: Vec<_> = output
        .lines()
        .filter_map(|line| line.strip_prefix("cut short: "))
        .collect();
    ensure!(
        said.starts_with(&["ready", "cut"]),
        "the guest whose file is cut short: {said:?}"
    );
    for part in [
        "the host could not provide",
        "pmem \"pmem0\": \"memory-cut\" has 4096 bytes and had 2097152",
    ] {
        ensure!(
            said.iter().any(|line| line.contains(part)),
            "{part:?} is not told: {said:?}"
        );
    }
    Ok(())
}
