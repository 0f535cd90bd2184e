//! Jailed microVMs: a stock guest with a disk and a network card, and many small ones side by side and one after
//! the other.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Needs, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// MicroVMs of the soak at once.
const AT_ONCE: u32 = 20;
/// Its launches.
const CYCLES: u32 = 500;

/// The modules that the stock guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "virtio_blk", "virtio_net"];

/// What the guest reads of its metadata.
const NAME: &str = "a jailed tenant";

/// The host's side of the stock guest.
const SCRIPT: &str = include_str!("jailed.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    vec![soak(), stock()]
}

fn soak() -> Scenario {
    let soak = format!("./lab --launcher ./{LAUNCHER} soak --jailer ./jailer --vms");
    // One that is ended at its begin first.
    let script = format!(
        "{soak} 1 --cycles 1000000 >ended 2>&1 &
soak=$!
until grep -q -e --seed ended; do
    kill -0 \"$soak\" || {{ cat ended; exit 1; }}
done
kill -TERM \"$soak\"
status=0
wait \"$soak\" || status=$?
echo \"ended with status $status\"
find /sys/fs/cgroup -name \"keeptime-soak-$soak\"
exec {soak} {AT_ONCE} --cycles {CYCLES}
"
    );
    Scenario::new(Place::Native, "soak", script)
        .seconds(30, 300)
        .needs(Needs::Root)
        .files(|workshop| {
            let own = std::env::current_exe().context("no program of our own")?;
            Ok(Files::from([
                ("lab".to_owned(), file(&own)),
                ("jailer".to_owned(), file(workshop.jailer()?)),
            ]))
        })
        // The soak judges itself; that it came to its end is ours to see.
        .check(|outcome| {
            outcome.expect_status(0)?;
            outcome.expect_line("ended with status 143")?;
            let output = outcome.stdout_text();
            let left = output.lines().find(|line| line.starts_with("/sys/"));
            ensure!(left.is_none(), "a soak that was ended has left {left:?}");
            outcome.expect_line("nothing is left")
        })
}

/// A stock guest in a jail with all that a jail has: a user, cgroups, a network namespace, and filters.
fn stock() -> Scenario {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let [boot, machine, drive, interface, service] = parts();
    let configuration = json!({
        "boot-source": boot, "machine-config": machine, "drives": [drive], "network-interfaces": [interface],
        "mmds-config": service,
    });
    Scenario::new(
        Place::Emulated(host),
        "jailed",
        format!("configuration='{configuration}'\n{SCRIPT}"),
    )
    .seconds(40, 240)
    .files(files)
    .check(check)
}

/// What the guest is: its kernel, its machine, its disk, its network card, and its metadata service.
fn parts() -> [Value; 5] {
    [
        json!({"kernel_image_path": "kernel", "initrd_path": "initrd-tenant", "boot_args": COMMAND_LINE}),
        json!({"vcpu_count": 2, "mem_size_mib": MEMORY_MIB}),
        json!({"drive_id": "data", "path_on_host": "disk", "is_root_device": false}),
        json!({"iface_id": "eth0", "host_dev_name": "tap0"}),
        json!({"version": "V1", "network_interfaces": ["eth0"]}),
    ]
}

fn metadata() -> Value {
    json!({"latest": {"meta-data": {"name": NAME}}})
}

/// The same as requests, a line each: what is put where.
fn requests() -> String {
    let paths = [
        "/boot-source",
        "/machine-config",
        "/drives/data",
        "/network-interfaces/eth0",
        "/mmds/config",
    ];
    let start = json!({"action_type": "InstanceStart"});
    let all = paths
        .into_iter()
        .zip(parts())
        .chain([("/mmds", metadata()), ("/actions", start)]);
    all.map(|(path, body)| format!("{path} {body}\n")).collect()
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let initramfs = linux::tenant_initramfs(&stock, MODULES)?;
    Ok(Files::from([
        ("kernel".to_owned(), file(&stock.image)),
        ("initrd-tenant".to_owned(), Source::Bytes(initramfs)),
        ("jailer".to_owned(), file(workshop.jailer()?)),
        (
            "metadata.json".to_owned(),
            Source::Bytes(metadata().to_string().into_bytes()),
        ),
        (
            "requests".to_owned(),
            Source::Bytes(requests().into_bytes()),
        ),
    ]))
}

fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    // "vm-1" and "vm-2" take turns among domains of one CPU each.
    for (id, cpu) in [("vm-1", "1"), ("vm-2", "0")] {
        outcome.expect_line(&format!("host cpuset.cpus.effective of {id}: {cpu}"))?;
    }
    let output = outcome.stdout_text();
    ensure!(
        !output.contains("host: CPUs of two TSC domains are taken"),
        "a cpuset of two TSC domains was not refused"
    );
    let (_, both) = output
        .split_once("host begins: file\n")
        .context("no guest by a file")?;
    let (by_file, by_api) = both
        .split_once("host begins: api\n")
        .context("no guest by the API")?;
    check_guest("file", by_file).context("the guest by a file")?;
    check_guest("api", by_api).context("the guest by the API")
}

/// What is told of one guest, in the jail `id`.
fn check_guest(id: &str, output: &str) -> Result<()> {
    let report = Report::parse(output.as_bytes())?;
    let trouble: Vec<_> = report.all("trouble").collect();
    ensure!(trouble.is_empty(), "the guest met trouble: {trouble:?}");
    for (key, wanted) in [
        ("processors online", "2"),
        ("pings", "1"),
        ("metadata", NAME),
    ] {
        let found = report.value(key)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    // Real, effective, saved and file system's: proc_pid_status(5).
    let user = "10001 10001 10001 10001";
    for (key, wanted) in [
        ("Uid", user),
        ("Gid", user),
        ("Groups", ""),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("cgroup", &format!("0::/keeptime/{id}")),
        ("pids.max", "64"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.cpus.effective", "0-1"),
        ("disk", report.value("made")?),
    ] {
        let line = format!("host {key}: {wanted}");
        let found = output.lines().any(|found| found == line);
        ensure!(found, "the output has no line {line:?}");
    }
    let bare = output
        .lines()
        .find(|line| line.starts_with("host without a filter"));
    ensure!(bare.is_none(), "{}", bare.unwrap_or_default());
    Ok(())
}
