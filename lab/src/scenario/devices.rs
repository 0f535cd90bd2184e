//! A device of each kind, each used once by the modules of a stock kernel, on a host with Intel's VMX: what the svm hosts
//! do at length, where notifications and interrupts take another way through KVM.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::guest::linux::{self, COMMAND_LINE, Report};
use crate::guest::program;
use crate::host::Host;
use crate::host::image::{Files, Source};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file, sum_of_metrics};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need. The balloon's is the last: the guest waits for it at its
/// end.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_pmem",
    "nd_pmem",
    "virtio_net",
    "virtio-rng",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
];

/// How much of its memory the guest does without, in MiB.
const BALLOON_MIB: u64 = 4;

/// The pages in a request of the balloon's driver (`VIRTIO_BALLOON_ARRAY_PFNS_MAX` in drivers/virtio/virtio_balloon.c).
const PAGES_IN_REQUEST: u64 = 256;

/// The host's side.
const SCRIPT: &str = include_str!("devices.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Vmx;
    let launch = format!(
        "./{LAUNCHER} --no-api --config-file devices.json --metrics-path metrics-devices </dev/null"
    );
    let script = format!("launch() {{ {launch}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "devices", script)
            .files(files)
            .check(check)
            .seconds(140, 40),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let configuration = json!({
        "boot-source": {
            "kernel_image_path": "kernel", "initrd_path": "initrd-devices",
            // A character on the console costs that host an exit to the launcher.
            "boot_args": format!("{COMMAND_LINE} quiet balloon={BALLOON_MIB}"),
        },
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 128},
        "drives": [{"drive_id": "disk", "path_on_host": "disk-devices", "is_root_device": false}],
        "pmem": [{"id": "memory", "path_on_host": "memory-devices"}],
        "network-interfaces": [{"iface_id": "card", "host_dev_name": "tap-devices"}],
        "vsock": {"guest_cid": 3, "uds_path": "v-devices"},
        "entropy": {},
        "balloon": {"amount_mib": BALLOON_MIB, "deflate_on_oom": false},
    });
    let initramfs = linux::devices_initramfs(&stock, MODULES)?;
    let program = program::build(program::SOCKETS, Kernel::Amd64)?;
    Ok(Files::from([
        ("kernel".to_owned(), file(&stock.image)),
        ("initrd-devices".to_owned(), Source::Bytes(initramfs)),
        ("sockets".to_owned(), Source::Bytes(program)),
        (
            "devices.json".to_owned(),
            Source::Bytes(configuration.to_string().into_bytes()),
        ),
    ]))
}

fn check(outcome: &Outcome) -> Result<()> {
    let report = Report::parse(&outcome.stdout)?;
    let trouble: Vec<_> = report.all("trouble").collect();
    ensure!(trouble.is_empty(), "the guest met trouble: {trouble:?}");
    let pages = BALLOON_MIB * 256;
    for (key, wanted) in [
        ("processors online", "2"),
        ("vda", "disk-devi"),
        ("vda flushed", "yes"),
        ("pmem0", "memory-de"),
        ("pmem0 flushed", "yes"),
        ("entropy", "64 bytes"),
        ("pings", "1"),
        ("called", "1"),
        ("balloon", &format!("{pages} pages, and {pages} again")),
        ("alarm", "1 interrupt, seconds too early: 0"),
    ] {
        let found = report.value(key)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    for line in [
        "host served: 1",
        "host disk-devices: disk-devi",
        "host memory-devices: memory-de",
    ] {
        outcome.expect_line(line)?;
    }
    let output = outcome.stdout_text();
    let requests = pages / PAGES_IN_REQUEST;
    for (group, metric, wanted) in [
        ("balloon", "inflate_count", requests),
        ("balloon", "deflate_count", requests),
        ("balloon", "event_fails", 0),
        ("entropy", "entropy_event_fails", 0),
        ("net", "event_fails", 0),
        ("pmem", "event_fails", 0),
        ("vsock", "conns_added", 1),
        ("vsock", "muxer_event_fails", 0),
    ] {
        let found = sum_of_metrics(&output, group, metric)?;
        ensure!(found == wanted, "{group}.{metric}: {found}, not {wanted}");
    }
    outcome.expect_status(0)
}
