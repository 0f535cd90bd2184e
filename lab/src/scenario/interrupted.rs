//! A launcher whose system calls are interrupted (EINTR, signal(7)), every other one, while its guest uses all of its
//! devices and its API is asked: nothing is lost, nobody notices, and nothing is said of it.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::apt;
use crate::guest::HOST_FAULTS;
use crate::host::image::{Files, Source};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Needs, Outcome, Place, Scenario, file};

/// The programs that it takes, by their Debian packages.
const PACKAGES: &[&str] = &["strace", "curl"];

/// The disks, as the guest knows them: what they are full of in the end, and how long they are.
const FILLING: &[u8] = b"a sector";
const LEN: usize = 1 << 20;

/// What may be interrupted of what a launcher does once its guest runs, and more that an implementation might choose.
/// Those that only set something up are not among them: they do not wait. Nor is futex: an interrupted waiter calls
/// again, but one that wakes others is never interrupted, and would not.
const CALLS: &[&str] = &[
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "preadv2",
    "pwritev2",
    "fsync",
    "fdatasync",
    "fallocate",
    "epoll_wait",
    "epoll_pwait",
    "poll",
    "ppoll",
    "accept4",
    "connect",
    "recvfrom",
    "sendto",
    "recvmsg",
    "sendmsg",
    "getrandom",
    "clock_nanosleep",
    "io_uring_enter",
];

/// Those that this launcher is known to make, each of which must have been interrupted.
const MADE: &[&str] = &[
    "read",
    "write",
    "readv",
    "writev",
    "fdatasync",
    "fallocate",
    "io_uring_enter",
    "epoll_wait",
    "ppoll",
    "accept4",
    "getrandom",
];

/// What happens.
const SCRIPT: &str = include_str!("interrupted.sh");

/// The scenarios. On this machine alone: a tracer is slow in an emulated host.
pub(super) fn all() -> Vec<Scenario> {
    // The filters of seccomp are left out: the tracer's own would have the last word over them.
    let launch = format!("./{LAUNCHER} --no-seccomp --api-sock api --config-file interrupted.json");
    let calls = CALLS.join(",");
    let script = format!("len={LEN} launch='{launch}' calls={calls}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Native, "interrupted", "exec sh ./interrupted\n")
            .needs(Needs::Root)
            .files(move |workshop| {
                apt::install(PACKAGES)?;
                let configuration = json!({
                    "boot-source": {"kernel_image_path": "guest-faults"},
                    "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
                    "drives": [
                        {"drive_id": "image", "is_root_device": false, "path_on_host": "image",
                         "cache_type": "Writeback", "io_engine": "Async"},
                        {"drive_id": "other", "is_root_device": false, "path_on_host": "other",
                         "cache_type": "Writeback"},
                    ],
                    "network-interfaces": [{"iface_id": "net", "host_dev_name": "tap-interrupted"}],
                    "pmem": [{"id": "memory", "path_on_host": "memory"}],
                    "vsock": {"guest_cid": 3, "uds_path": "socket"},
                    "balloon": {"amount_mib": 0, "deflate_on_oom": false},
                    "entropy": {},
                });
                let full = FILLING.iter().copied().cycle().take(LEN).collect();
                let text = |text: String| Source::Bytes(text.into_bytes());
                Ok(Files::from([
                    (
                        "guest-faults".to_owned(),
                        Source::Bytes(HOST_FAULTS.build()?),
                    ),
                    ("full".to_owned(), Source::Bytes(full)),
                    (
                        "interrupted.json".to_owned(),
                        text(configuration.to_string()),
                    ),
                    ("interrupted".to_owned(), text(script.clone())),
                    (
                        "busybox".to_owned(),
                        file(&workshop.stock(Kernel::Amd64)?.busybox),
                    ),
                ]))
            })
            .check(check)
            .seconds(15, 120),
    ]
}

fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    let text = outcome.stdout_text();
    for (line, times) in [
        ("disk 1: writes that failed: 0", 2),
        ("disk 2: writes that failed: 0", 2),
        ("device 1: requests served: 100", 2),
        ("device 4: requests served: 100", 2),
        ("device 5: requests served: 100", 2),
        ("device 19: requests served: 100", 2),
        ("device 27: requests served: 100", 2),
        ("paused: 3", 1),
        ("program 3: not served", 1),
        ("the launcher's status: 137", 1),
        ("nothing flushed is lost", 1),
    ] {
        let found = text.lines().filter(|found| *found == line).count();
        ensure!(
            found == times,
            "{line:?} is there {found} times, not {times}"
        );
    }
    let told: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("log: "))
        .filter(|line| line.contains("WARN") || line.contains("ERROR") || line.contains("lost"))
        .filter(|line| !line.contains("without seccomp filters"))
        .collect();
    ensure!(told.is_empty(), "the log says {told:?}");
    for call in MADE {
        let line = text.lines().find_map(|line| {
            let (count, name) = line.strip_prefix("interrupted: ")?.split_once(' ')?;
            (name == *call).then_some(count)
        });
        let count: u64 = line
            .with_context(|| format!("no {call} was interrupted"))?
            .parse()?;
        ensure!(count > 0, "no {call} was interrupted");
    }
    Ok(())
}
