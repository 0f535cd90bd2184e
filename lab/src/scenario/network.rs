//! A network card on a tap, driven by the module of a stock kernel.

use anyhow::{Context, Result, ensure};

use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "virtio_net"];

/// How much goes each way, over IPv4 and over IPv6.
const MIB: u64 = 8;

/// The guest's address and its link's unit.
const MAC: &str = "aa:fc:00:00:00:01";
const MTU: u64 = 1_400;

/// The host's side. Who listens does so before the guest is there: `nc` is seen in the kernel's tables.
const SCRIPT: &str = include_str!("network.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!(
        "./{LAUNCHER} run --kernel kernel --initrd initrd-network --cmdline '{COMMAND_LINE} size={MIB}' --cpus 2 \
         --memory {MEMORY_MIB} --net tap0,mac={MAC},mtu={MTU}"
    );
    let script = format!("size={MIB}\nmtu={MTU}\nlaunch() {{ {launch}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "network", script)
            .files(files)
            .check(check)
            .seconds(25, 180),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let mut files = Files::new();
    files.insert("kernel".to_owned(), file(&stock.image));
    let initramfs = linux::network_initramfs(&stock, MODULES)?;
    files.insert("initrd-network".to_owned(), Source::Bytes(initramfs));
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
    let (given, made) = (of_host("gave")?, report.value("made")?);
    for (key, wanted) in [
        ("driver", "virtio_net"),
        ("address", MAC),
        ("mtu", &*MTU.to_string()),
        ("taken over IPv4", given),
        ("taken over IPv6", given),
        ("host had over IPv4", made),
        ("host had over IPv6", made),
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
    Ok(())
}
