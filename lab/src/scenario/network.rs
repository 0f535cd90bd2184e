//! Network cards on taps, driven by the module of a stock kernel: one that carries a load, and one through which a
//! guest reads its metadata.

use anyhow::{Context, Result, ensure};

use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::guest::program;
use crate::host::image::{Files, Source};
use crate::host::program::LOADER;
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file, sum_of_metrics};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "virtio_net"];

/// How much goes each way, over IPv4 and over IPv6.
const MIB: u64 = 512;

/// The guest's addresses, and the first card's unit.
const MAC: &str = "aa:fc:00:00:00:01";
const SECOND_MAC: &str = "aa:fc:00:00:00:02";
const MTU: u64 = 1_400;

/// The virtio header before each frame.
const HEADER: u64 = 12;

/// How much of the metadata is one string: many times what of an answer is on its way at once.
const LARGE: usize = 40_000;

/// The host's side. Who listens does so before the guest is there: `nc` is seen in the kernel's tables.
const SCRIPT: &str = include_str!("network.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!(
        "./{LAUNCHER} --no-api --config-file vm.json --metadata network-metadata.json --metrics-path metrics"
    );
    let script = format!("size={MIB}\nmtu={MTU}\nlaunch() {{ {launch}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "network", script)
            .files(files)
            .check(check)
            .seconds(45, 180),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let mut files = Files::new();
    files.insert("kernel".to_owned(), file(&stock.image));
    let initramfs = linux::network_initramfs(&stock, MODULES)?;
    files.insert("initrd-network".to_owned(), Source::Bytes(initramfs));
    let program = program::build(program::STREAM, Kernel::Amd64)?;
    files.insert("stream".to_owned(), Source::Bytes(program));
    let configuration = serde_json::json!({
        "boot-source": {
            "kernel_image_path": "kernel", "initrd_path": "initrd-network",
            "boot_args": format!("{COMMAND_LINE} size={MIB} loader={LOADER}"),
        },
        "machine-config": {"vcpu_count": 2, "mem_size_mib": MEMORY_MIB},
        "network-interfaces": [
            {"iface_id": "first", "host_dev_name": "tap0", "guest_mac": MAC, "mtu": MTU},
            {"iface_id": "second", "host_dev_name": "tap1", "guest_mac": SECOND_MAC},
        ],
        "mmds-config": {"version": "V2", "network_interfaces": ["second"]},
    });
    let large: String = ('a'..='z').cycle().take(LARGE).collect();
    let metadata = serde_json::json!({
        "latest": {"meta-data": {"large": large, "name": "a guest", "tags": {"a": "b"}}},
    });
    for (name, text) in [
        ("vm.json", configuration.to_string()),
        ("network-metadata.json", metadata.to_string()),
        ("large", large),
    ] {
        files.insert(name.to_owned(), Source::Bytes(text.into_bytes()));
    }
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
            .with_context(|| format!("the host's part has no line {key:?}"))
    };
    for (key, wanted) in [
        ("driver", "virtio_net"),
        ("address", MAC),
        ("mtu", &*MTU.to_string()),
        ("taken over IPv4", of_host("over IPv4 sent")?),
        ("taken over IPv6", of_host("over IPv6 sent")?),
        ("sent over IPv4", of_host("over IPv4 taken")?),
        ("sent over IPv6", of_host("over IPv6 taken")?),
        ("pings", "1"),
        ("rx_errors", "0"),
        ("rx_dropped", "0"),
        ("tx_errors", "0"),
        ("tx_dropped", "0"),
    ] {
        let found = report.value(key)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    let number = |text: &str| text.parse::<u64>().with_context(|| text.to_owned());
    // What the guest sent is what came.
    for count in ["packets", "bytes"] {
        let sent = number(report.value(&format!("tx_{count}"))?)?;
        let came = number(of_host(&format!("rx_{count}"))?)?;
        ensure!(
            sent == came,
            "the guest sent {sent} {count}, the host got {came}"
        );
        let got = number(report.value(&format!("rx_{count}"))?)?;
        let gone = number(of_host(&format!("tx_{count}"))?)?;
        // The host may have sent more after the guest had taken its card down.
        ensure!(
            got <= gone,
            "the guest got {got} {count}, the host sent {gone}"
        );
        ensure!(
            got >= MIB << 21 || count == "packets",
            "the guest got {got} bytes"
        );
    }
    // Segments are cut by whoever must, and that is nobody between a guest and its host: where TCP sent more of
    // them than there were frames, frames hold several. How many is a matter of load.
    for (who, segments, frames) in [
        (
            "guest",
            report.value("segments")?,
            report.value("tx_packets")?,
        ),
        ("host", of_host("segments")?, of_host("tx_packets")?),
    ] {
        let (segments, frames) = (number(segments)?, number(frames)?);
        ensure!(
            segments > frames,
            "the {who} sent {segments} segments in {frames} frames: large ones are cut"
        );
    }
    ensure!(
        of_host("rx_errors")? == "0" && of_host("rx_dropped")? == "0",
        "the host lost frames"
    );
    check_counts(&report, &output, of_host)?;
    check_metadata(&report, of_host)?;
    let frames = |count: &str| number(report.value(&format!("metadata's {count}"))?);
    // What the guest sent is what came, and what went to the service is nowhere else.
    let (taken, answered) = (
        sum_of_metrics(&output, "mmds", "rx_accepted")?,
        sum_of_metrics(&output, "mmds", "tx_count")?,
    );
    let (sent, came) = (
        number(report.value("metadata's tx_packets")?)?,
        number(of_host("metadata's rx_packets")?)?,
    );
    ensure!(
        taken > 30 && sent == came + taken,
        "of {sent} frames the host got {came} and the service {taken}"
    );
    for (count, answered) in [
        ("packets", answered),
        ("bytes", sum_of_metrics(&output, "mmds", "tx_bytes")?),
    ] {
        let (got, gone) = (
            frames(&format!("rx_{count}"))?,
            number(of_host(&format!("metadata's tx_{count}"))?)?,
        );
        ensure!(
            got <= gone + answered && got > answered,
            "the guest got {got} {count}, the host sent {gone} and the service {answered}"
        );
    }
    for metric in ["rx_accepted_err", "rx_bad_eth", "tx_errors"] {
        let count = sum_of_metrics(&output, "mmds", metric)?;
        ensure!(count == 0, "the service counts {count} {metric}");
    }
    ensure!(
        sum_of_metrics(&output, "mmds", "connections_created")?
            == sum_of_metrics(&output, "mmds", "connections_destroyed")?,
        "connections are left"
    );
    Ok(())
}

/// What the launcher counts of its cards is what the guest does, who does not count the virtio headers.
fn check_counts<'a>(
    report: &Report,
    output: &str,
    of_host: impl Fn(&str) -> Result<&'a str>,
) -> Result<()> {
    let of_guest = |key: &str| -> Result<u64> { Ok(report.value(key)?.parse()?) };
    let of_first = |field: &str| sum_of_metrics(output, "net_first", field);
    for (field, wanted) in [
        ("tx_packets_count", of_guest("tx_packets")?),
        (
            "tx_bytes_count",
            of_guest("tx_bytes")? + HEADER * of_guest("tx_packets")?,
        ),
        ("activate_fails", 0),
        ("event_fails", 0),
        ("rx_fails", 0),
        ("tap_read_fails", 0),
        ("tap_write_fails", 0),
        ("tx_malformed_frames", 0),
    ] {
        let found = of_first(field)?;
        ensure!(found == wanted, "net_first.{field}: {found}, not {wanted}");
    }
    // What the guest got, and at most what the host sent.
    let of_host = |key: &str| -> Result<u64> { Ok(of_host(key)?.parse()?) };
    let (got, gone) = (of_guest("rx_packets")?, of_host("tx_packets")?);
    for (field, least, most) in [
        ("rx_packets_count", got, gone),
        (
            "rx_bytes_count",
            of_guest("rx_bytes")? + HEADER * got,
            of_host("tx_bytes")? + HEADER * gone,
        ),
    ] {
        let found = of_first(field)?;
        ensure!(
            (least..=most).contains(&found),
            "net_first.{field}: {found}, where the guest got {least} and the host sent {most}"
        );
    }
    for field in ["tx_bytes_count", "rx_packets_count"] {
        let both = of_first(field)? + sum_of_metrics(output, "net_second", field)?;
        let sum = sum_of_metrics(output, "net", field)?;
        ensure!(sum == both, "net.{field}: {sum}, not {both}");
    }
    Ok(())
}

/// What the guest read through its second card, while the host answered its pings there.
fn check_metadata<'a>(report: &Report, of_host: impl Fn(&str) -> Result<&'a str>) -> Result<()> {
    for (key, wanted) in [
        ("metadata's card", SECOND_MAC),
        ("without a token", "HTTP/1.1 401"),
        ("with a wrong one", "HTTP/1.1 401"),
        ("names", "large name tags/"),
        ("as JSON", "{\"a\":\"b\"}"),
        ("nothing", "HTTP/1.1 404"),
        ("pings beside", "50"),
        ("metadata's rx_errors", "0"),
        ("metadata's rx_dropped", "0"),
        ("metadata's tx_errors", "0"),
        ("metadata's tx_dropped", "0"),
    ] {
        let found = report.value(key)?.trim();
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    let wanted = of_host("large")?;
    let large: Vec<_> = report.all("large").collect();
    ensure!(
        large == [wanted; 3],
        "the guest read {large:?}, not {wanted} three times"
    );
    Ok(())
}
