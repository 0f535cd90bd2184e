//! Disks, one of them by io_uring, a source of entropy and a balloon that hears of freed pages, driven by the modules of a stock kernel:
//! `virtio_mmio` finds them through ACPI.

use anyhow::{Context, Result, ensure};

use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "virtio_blk", "virtio-rng", "virtio_balloon"];

/// The host's side.
const SCRIPT: &str = concat!(include_str!("launcher.sh"), include_str!("block.sh"));

/// How much memory the guest fills and frees, in MiB.
const FILLED_MIB: u64 = 96;

/// Sectors of the disk that is written: 16 MiB.
const SECTORS: u64 = 16 << 11;

/// What the read-only disk begins with, and its sectors.
const READ_ONLY: &str = "read-only";
const READ_ONLY_SECTORS: usize = 8;

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!(
        "exec ./{LAUNCHER} run --kernel kernel --initrd initrd --cmdline '{COMMAND_LINE}' --cpus 2 \
         --memory {MEMORY_MIB} --disk disk,root --disk other,readonly --disk many,async --balloon 0,reporting \
         --entropy"
    );
    let script = format!("sectors={SECTORS}\nlaunch() {{ {launch}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "block", script)
            .files(files)
            .check(check)
            .seconds(20, 180),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let mut read_only = READ_ONLY.as_bytes().to_vec();
    read_only.resize(READ_ONLY_SECTORS * 512, 0);
    let mut files = Files::new();
    files.insert("kernel".to_owned(), file(&stock.image));
    let initramfs = linux::disk_initramfs(&stock, MODULES)?;
    files.insert("initrd".to_owned(), Source::Bytes(initramfs));
    files.insert("other".to_owned(), Source::Bytes(read_only));
    Ok(files)
}

fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    let report = Report::parse(&outcome.stdout)?;
    let trouble: Vec<_> = report.all("trouble").collect();
    ensure!(trouble.is_empty(), "the guest met trouble: {trouble:?}");
    let cmdline = report.value("command line")?;
    ensure!(
        cmdline.ends_with("root=/dev/vda rw"),
        "the guest's command line does not name the root device: {cmdline}"
    );
    for (key, wanted) in [
        ("vda", format!("{SECTORS} sectors, ro 0, disk0, write back")),
        (
            "vdb",
            format!("{READ_ONLY_SECTORS} sectors, ro 1, disk1, write back"),
        ),
        ("vdc", format!("{SECTORS} sectors, ro 0, disk2, write back")),
        ("flushed", "yes".to_owned()),
        ("flushed to vdc", "yes".to_owned()),
        ("read back from vdc", report.value("made")?.to_owned()),
        ("read back", report.value("made")?.to_owned()),
        ("read-only", READ_ONLY.to_owned()),
        ("written to vdb", "no".to_owned()),
        ("entropy from", "virtio_rng.0".to_owned()),
        ("entropy", "256 bytes".to_owned()),
        ("filled", format!("{FILLED_MIB} MiB")),
        ("freed", "yes".to_owned()),
        ("filled again", "yes".to_owned()),
    ] {
        let found = report.value(key)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    let output = outcome.stdout_text();
    let taken = |when: &str| -> Result<u64> {
        let prefix = format!("host {when}: ");
        let mut lines = output.lines();
        let line = lines.find_map(|line| line.strip_prefix(&prefix));
        let line = line.with_context(|| format!("the host's part has no line {when:?}"))?;
        Ok(line.parse()?)
    };
    let (filled, freed) = (taken("filled")?, taken("freed")?);
    ensure!(
        freed <= filled.saturating_sub(FILLED_MIB * 1024 / 2),
        "the guest's memory takes {filled} KiB of the host, and {freed} after {FILLED_MIB} MiB of it are freed"
    );
    outcome.expect_line(&format!("on the host: {}", report.value("made")?))?;
    outcome.expect_line(&format!("many on the host: {}", report.value("made")?))?;
    outcome.expect_line(&format!("other on the host: {READ_ONLY}"))
}
