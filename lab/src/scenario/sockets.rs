//! A socket device, driven by the module of a stock kernel.

use anyhow::{Context, Result, ensure};

use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::guest::program;
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "vmw_vsock_virtio_transport"];

/// So many connections are open at once, first of the guest, then of the host.
const COUNT: u64 = 1_000;

/// The host's side.
const SCRIPT: &str = include_str!("sockets.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!(
        "./{LAUNCHER} run --kernel kernel --initrd initrd-sockets --cmdline '{COMMAND_LINE} count={COUNT}' --cpus 2 \
         --memory {MEMORY_MIB} --vsock 3,v </dev/null"
    );
    let script = format!("count={COUNT}\nlaunch() {{ {launch}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "vsock", script)
            .files(files)
            .check(check)
            .seconds(60, 300),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let mut files = Files::new();
    files.insert("kernel".to_owned(), file(&stock.image));
    let initramfs = linux::sockets_initramfs(&stock, MODULES)?;
    files.insert("initrd-sockets".to_owned(), Source::Bytes(initramfs));
    let program = program::build(program::SOCKETS, Kernel::Amd64)?;
    files.insert("sockets".to_owned(), Source::Bytes(program));
    Ok(files)
}

fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    let report = Report::parse(&outcome.stdout)?;
    let trouble: Vec<_> = report.all("trouble").collect();
    ensure!(trouble.is_empty(), "the guest met trouble: {trouble:?}");
    let output = outcome.stdout_text();
    let of_host = |key: &str| {
        let prefix = format!("host {key}: ");
        let mut lines = output.lines();
        lines
            .find_map(|line| line.strip_prefix(&prefix))
            .with_context(|| format!("the host's part has no line {key:?}: {output}"))
    };
    ensure!(of_host("left").is_err(), "the launcher left its socket");
    let driver = report.value("driver")?;
    ensure!(driver == "vmw_vsock_virtio_transport", "driver: {driver}");
    for (way, found) in [
        ("the guest called", report.value("called")?),
        ("the guest served", report.value("served")?),
        ("the host called", of_host("called")?),
        ("the host served", of_host("served")?),
    ] {
        ensure!(found == COUNT.to_string(), "{way} {found}, not {COUNT}");
    }
    Ok(())
}
