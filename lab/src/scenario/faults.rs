//! A host that takes away what is behind a guest's devices: its file system is full, an image is removed, a tap
//! deleted, the launcher killed after a flush. The guest sees errors where there are some, and only there.

use anyhow::{Result, ensure};

use crate::guest::HOST_FAULTS;
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario};

/// The disks, as the guest knows them: what they are full of in the end, and how long they are.
const FILLING: &[u8] = b"a sector";
const LEN: usize = 1 << 20;

/// What the guest does, and the host meanwhile.
const SCRIPT: &str = include_str!("faults.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!(
        "exec ./{LAUNCHER} run --kernel guest-faults --cpus 1 --memory 128 --disk small/image --disk other \
         --disk scant/image,async --net tap-faults --entropy"
    );
    vec![
        Scenario::new(
            Place::Emulated(host),
            "host-faults",
            format!("len={LEN}\nlaunch() {{ {launch}; }}\n{SCRIPT}"),
        )
        .files(|_| {
            let full = FILLING.iter().copied().cycle().take(LEN).collect();
            Ok(Files::from([
                (
                    "guest-faults".to_owned(),
                    Source::Bytes(HOST_FAULTS.build()?),
                ),
                ("full".to_owned(), Source::Bytes(full)),
            ]))
        })
        .check(check)
        .seconds(15, 120),
    ]
}

fn check(outcome: &Outcome) -> Result<()> {
    let text = outcome.stdout_text();
    for disk in [1, 3] {
        // While there was no room, and when there was.
        let writes = format!("disk {disk}: writes that failed: ");
        let failed: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&writes))
            .collect();
        // 512 of the 2,048 sectors had room, whole pages of them.
        ensure!(
            failed == ["1536", "0"],
            "writes to disk {disk} that failed without and with room: {failed:?}"
        );
    }
    for (line, times) in [
        ("disk 2: writes that failed: 0", 2),
        ("device 1: requests served: 100", 2),
        ("device 4: requests served: 100", 2),
        ("the launcher's status: 137", 1),
        ("nothing flushed is lost", 2),
    ] {
        let found = text.lines().filter(|found| *found == line).count();
        ensure!(
            found == times,
            "{line:?} is there {found} times, not {times}"
        );
    }
    for (what, reason) in [
        (
            "\"disk0\": the host cannot write",
            "No space left on device",
        ),
        (
            "\"disk2\": the host cannot write",
            "No space left on device",
        ),
        ("cannot send a frame", "File descriptor in bad state"),
    ] {
        let told: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("log: ") && line.contains(what))
            .collect();
        ensure!(
            told.len() == 1 && told.iter().all(|line| line.contains(reason)),
            "that the host {what} is to be told once, and was told as {told:?}"
        );
    }
    outcome.expect_status(0)
}
