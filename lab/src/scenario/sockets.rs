//! A socket device, driven by the module of a stock kernel: with many programs of the host, and with one that is
//! stopped, and then killed, which is the matter of its own connection alone.

use anyhow::{Context, Result, ensure};

use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::guest::program;
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file, sum_of_metrics};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "vmw_vsock_virtio_transport"];

/// So many connections are open at once, first of the guest, then of the host.
const COUNT: u64 = 1_000;

/// For how long a kernel waits for an answer to a call that is not told otherwise.
const LONGEST_MS: u64 = 2_000;

/// The host's side.
const SCRIPT: &str = concat!(include_str!("launcher.sh"), include_str!("sockets.sh"));

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!(
        "./{LAUNCHER} --no-api --config-file sockets.json --metrics-path metrics-vsock </dev/null"
    );
    let script = format!("count={COUNT}\nlaunch() {{ {launch}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "vsock", script)
            .files(files)
            .check(check)
            .seconds(40, 180),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let mut files = Files::new();
    files.insert("kernel".to_owned(), file(&stock.image));
    let initramfs = linux::sockets_initramfs(&stock, MODULES)?;
    files.insert("initrd-sockets".to_owned(), Source::Bytes(initramfs));
    let configuration = serde_json::json!({
        "boot-source": {
            "kernel_image_path": "kernel", "initrd_path": "initrd-sockets",
            "boot_args": format!("{COMMAND_LINE} count={COUNT}"),
        },
        "machine-config": {"vcpu_count": 2, "mem_size_mib": MEMORY_MIB},
        "vsock": {"guest_cid": 3, "uds_path": "v"},
    });
    let text = configuration.to_string().into_bytes();
    files.insert("sockets.json".to_owned(), Source::Bytes(text));
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
    let longest: u64 = report.value("longest call ms")?.parse()?;
    ensure!(
        longest < LONGEST_MS,
        "a call of the guest waited for {longest} ms"
    );
    check_slow(&report)?;
    let log = outcome.stderr_text();
    let told: Vec<_> = log.lines().filter(|line| line.contains("vsock")).collect();
    ensure!(told.is_empty(), "the log says {told:?} of programs");
    // What either side sends comes back to it.
    let bytes = 2 * (COUNT * (100 + 6_000) + COUNT / 100 * 20 * 16_384);
    for (metric, wanted) in [
        ("activate_fails", 0),
        ("rx_queue_event_fails", 0),
        ("tx_queue_event_fails", 0),
        ("muxer_event_fails", 0),
    ] {
        let found = sum_of_metrics(&output, "vsock", metric)?;
        ensure!(found == wanted, "vsock.{metric}: {found}, not {wanted}");
    }
    // The program beside the one that takes nothing sends back what came, too; what that one's socket took has come to
    // a program, and is a part of what the guest could send.
    let steps: u64 = report.value("steps")?.parse()?;
    let stalled: u64 = report.value("stalled")?.parse()?;
    let back = bytes + 6_000 * steps;
    for (metric, wanted) in [
        ("rx_bytes_count", back..=back),
        ("tx_bytes_count", back + 1..=back + stalled),
    ] {
        let found = sum_of_metrics(&output, "vsock", metric)?;
        ensure!(
            wanted.contains(&found),
            "vsock.{metric}: {found}, not in {wanted:?}"
        );
    }
    // The program that is killed may be met once by each.
    for metric in ["rx_read_fails", "tx_write_fails", "tx_flush_fails"] {
        let found = sum_of_metrics(&output, "vsock", metric)?;
        ensure!(found <= 1, "vsock.{metric}: {found}");
    }
    // One that the host called before the guest served was added, too.
    let added = sum_of_metrics(&output, "vsock", "conns_added")?;
    ensure!(added >= 2 * COUNT, "there were {added} connections");
    for metric in ["rx_packets_count", "tx_packets_count"] {
        let packets = sum_of_metrics(&output, "vsock", metric)?;
        // A connection begins, speaks twice, and ends.
        ensure!(packets >= 8 * COUNT, "vsock.{metric}: {packets}");
    }
    Ok(())
}

/// What the guest saw of the program that took nothing and was killed, beside one that answered at all times.
fn check_slow(report: &Report) -> Result<()> {
    // What the driver may send ahead, and what the program's socket holds: 256 and 208 KiB.
    let stalled: u64 = report.value("stalled")?.parse()?;
    ensure!(
        (1..1 << 20).contains(&stalled),
        "a program that takes nothing took {stalled} bytes"
    );
    for (key, errors) in [
        // The end of what comes, or ECONNRESET; EPIPE or ECONNRESET; ECONNRESET.
        ("ended", &["0", "104"][..]),
        ("sent after", &["32", "104"]),
        ("called after", &["104"]),
    ] {
        let found = report.value(key)?;
        ensure!(
            errors.contains(&found),
            "{key}: the error {found}, not one of {errors:?}"
        );
    }
    report
        .value("steps")
        .map(|_| ())
        .context("the other connection did not go on")
}
