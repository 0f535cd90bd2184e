//! A guest that breaks the virtio protocol on every device, and in the end has each serve it honestly.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::guest::HOSTILE_DRIVER;
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, sum_of_metrics};

/// The first disk; the guest knows both its size and how it begins.
const IMAGE_LEN: usize = 1 << 20;
const FILLING: &[u8] = b"a sector";

/// Violations of a queue: of its place, of chains, of indirect tables, of the ring's index.
const OF_QUEUES: usize = 18 + 15 + 8 + 3;
/// Each device's: of a queue, of registers, at random, by a reset in a request.
const OF_EACH: usize = OF_QUEUES + 8 + 1 + 1;
/// A disk's own: requests without sense.
const OF_DISKS: usize = 10;
/// A network card's and a socket device's: packets without sense, buffers without sense for what is received, at random,
/// and not enough of them.
const OF_PACKETS: usize = 14 + 16 + 1 + 2;
/// A balloon's: pages without sense put in and taken out, two more, statistics, hints, and reports.
const OF_BALLOONS: usize = 18 * 2 + 2 + 8 + 6 + 8;

/// A persistent memory's: flushes that are none, or not whole.
const OF_MEMORIES: usize = 6;

/// The numbers of devices (5), as the guest has them.
const NET: u32 = 1;
const BLOCK: u32 = 2;
const ENTROPY: u32 = 4;
const BALLOON: u32 = 5;
const SOCKET: u32 = 19;
const PMEM: u32 = 27;

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    // A file beside the images, and one behind: what is nobody's stays as it is.
    let common = "cp image-1 image-2; cp image-1 beside; cp image-1 memory; size() { wc -c <$1; }\n\
         launch() { ./keeptime --no-api --config-file \"$1\" --metrics-path metrics-hostile; }\n";
    let after = "status=$?\ncmp image-2 beside && echo 'the read-only disk is as it was'\n\
         cmp memory beside && echo 'the persistent memory is as it was'\n\
         echo \"size: $(size image-1)\"\nsed 's/^/host metrics: /' metrics-hostile\nexit $status\n";
    let svm = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let places = [
        (Place::Native, "launch hostile.json\n", None),
        (
            Place::Emulated(svm),
            // What comes from there is what the guest asked for.
            "tunctl -t tap-hostile >/dev/null\necho 1 >/proc/sys/net/ipv6/conf/tap-hostile/disable_ipv6\n\
             ip link set tap-hostile up\nip addr add 172.16.9.1/24 dev tap-hostile\nlaunch hostile-with-card.json\n",
            Some(NET),
        ),
    ];
    let scenarios = places.map(|(place, launch, net)| {
        let devices: Vec<_> = [ENTROPY, BALLOON, BLOCK, BLOCK, SOCKET, PMEM]
            .into_iter()
            .chain(net)
            .collect();
        let script =
            format!("{common}{launch}{after}").replace("./keeptime", &format!("./{LAUNCHER}"));
        Scenario::new(place, "hostile-driver", script)
            .files(|_| {
                let image = FILLING.iter().copied().cycle().take(IMAGE_LEN).collect();
                let mut files = Files::from([
                    (
                        "guest-hostile".to_owned(),
                        Source::Bytes(HOSTILE_DRIVER.build()?),
                    ),
                    ("image-1".to_owned(), Source::Bytes(image)),
                ]);
                for (name, has_card) in [("hostile", false), ("hostile-with-card", true)] {
                    let text = configuration(has_card).to_string().into_bytes();
                    files.insert(format!("{name}.json"), Source::Bytes(text));
                }
                Ok(files)
            })
            .check(move |outcome| check(outcome, &devices))
            .seconds(30, 180)
    });
    scenarios.into()
}

/// A machine with all devices, each with all of its queues.
fn configuration(has_card: bool) -> Value {
    // By a ring the one to which most is done.
    let drive = |name: &str, is_read_only, engine| {
        json!({
            "drive_id": name, "path_on_host": name, "is_root_device": false, "is_read_only": is_read_only,
            "cache_type": "Writeback", "io_engine": engine,
        })
    };
    let cards = has_card.then(|| json!({"iface_id": "card", "host_dev_name": "tap-hostile"}));
    json!({
        "boot-source": {"kernel_image_path": "guest-hostile", "boot_args": "", "virtio_mmio_args": true},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "drives": [drive("image-1", false, "Async"), drive("image-2", true, "Sync")],
        "network-interfaces": cards.into_iter().collect::<Vec<_>>(),
        "pmem": [{"id": "memory", "path_on_host": "memory"}],
        "vsock": {"guest_cid": 3, "uds_path": "socket"},
        "balloon": {
            "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_reporting": true,
            "free_page_hinting": true,
        },
        "entropy": {},
    })
}

fn check(outcome: &Outcome, devices: &[u32]) -> Result<()> {
    let text = outcome.stdout_text();
    if let Some(failure) = text.lines().find(|line| line.starts_with("FAILED")) {
        anyhow::bail!("{failure}");
    }
    let wanted: usize = devices
        .iter()
        .map(|device| {
            OF_EACH
                + match *device {
                    BLOCK => OF_DISKS,
                    // Beside the queue that each has: one for what is received, and one for events.
                    NET => OF_PACKETS + OF_QUEUES,
                    SOCKET => OF_PACKETS + 2 * OF_QUEUES,
                    PMEM => OF_MEMORIES,
                    BALLOON => OF_BALLOONS + 4 * OF_QUEUES,
                    _ => 0,
                }
        })
        .sum();
    outcome.expect_line(&format!(
        "violations survived: {wanted}, devices: {}",
        devices.len()
    ))?;
    let seen: BTreeSet<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("device ")?.split_once(':'))
        .map(|(device, _)| device.parse().context("a device without a number"))
        .collect::<Result<_>>()?;
    let all: BTreeSet<u32> = devices.iter().copied().collect();
    ensure!(seen == all, "the devices {seen:?} were tried, not {all:?}");
    outcome.expect_line("the read-only disk is as it was")?;
    outcome.expect_line("the persistent memory is as it was")?;
    outcome.expect_line(&format!("size: {IMAGE_LEN}"))?;
    // A register of a device is read from memory, and the guest looks for none where there is none.
    let reads = sum_of_metrics(&text, "vcpu", "exit_mmio_read")?;
    ensure!(reads == 0, "{reads} reads of registers left the guest");
    outcome.expect_status(0)
}
