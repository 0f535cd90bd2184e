//! A guest that breaks the virtio protocol on every device, and in the end has each serve it honestly.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::guest::HOSTILE_DRIVER;
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario};

/// The first disk; the guest knows both its size and how it begins.
const IMAGE_LEN: usize = 1 << 20;
const FILLING: &[u8] = b"a sector";

/// Each device's violations: of queues' places, of chains, of indirect tables, of the ring's index, of registers, at
/// random, by a reset in a request.
const OF_EACH: usize = 16 + 14 + 8 + 3 + 8 + 1 + 1;
/// A disk's own: requests without sense; a network card's and a socket device's: packets without sense.
const OF_DISKS: usize = 10;
const OF_PACKETS: usize = 14;

/// The numbers of devices (5), as the guest has them.
const NET: u32 = 1;
const BLOCK: u32 = 2;
const ENTROPY: u32 = 4;
const SOCKET: u32 = 19;

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    // A file beside the images, and one behind: what is nobody's stays as it is.
    let common = "cp image-1 image-2; cp image-1 beside; size() { wc -c <$1; }\n\
         launch() { ./keeptime run --kernel guest-hostile --cpus 1 --memory 128 --entropy --vsock 3,$PWD/socket \
         --disk image-1 --disk image-2,readonly \"$@\"; }\n";
    let after = "status=$?\ncmp image-2 beside && echo 'the read-only disk is as it was'\n\
         echo \"size: $(size image-1)\"\nexit $status\n";
    let svm = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let places = [
        (Place::Native, "launch\n", None),
        (
            Place::Emulated(svm),
            "tunctl -t tap-hostile >/dev/null\nip link set tap-hostile up\nlaunch --net tap-hostile\n",
            Some(NET),
        ),
    ];
    let scenarios = places.map(|(place, launch, net)| {
        let devices: Vec<_> = [ENTROPY, BLOCK, BLOCK, SOCKET]
            .into_iter()
            .chain(net)
            .collect();
        let script =
            format!("{common}{launch}{after}").replace("./keeptime", &format!("./{LAUNCHER}"));
        Scenario::new(place, "hostile-driver", script)
            .files(|_| {
                let image = FILLING.iter().copied().cycle().take(IMAGE_LEN).collect();
                Ok(Files::from([
                    (
                        "guest-hostile".to_owned(),
                        Source::Bytes(HOSTILE_DRIVER.build()?),
                    ),
                    ("image-1".to_owned(), Source::Bytes(image)),
                ]))
            })
            .check(move |outcome| check(outcome, &devices))
            .seconds(15, 120)
    });
    scenarios.into()
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
                    NET | SOCKET => OF_PACKETS,
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
    outcome.expect_line(&format!("size: {IMAGE_LEN}"))?;
    outcome.expect_status(0)
}
