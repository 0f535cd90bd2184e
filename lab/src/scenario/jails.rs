//! Jailed microVMs: a stock guest with a disk and a network card, and many small ones side by side and one after
//! the other.

use anyhow::{Context, Result, ensure};

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
    let configuration = serde_json::json!({
        "boot-source": {
            "kernel_image_path": "kernel", "initrd_path": "initrd-tenant", "boot_args": COMMAND_LINE,
        },
        "machine-config": {"vcpu_count": 2, "mem_size_mib": MEMORY_MIB},
        "drives": [{"drive_id": "data", "path_on_host": "disk", "is_root_device": false}],
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}],
        "mmds-config": {"version": "V1", "network_interfaces": ["eth0"]},
    });
    Scenario::new(
        Place::Emulated(host),
        "jailed",
        format!("configuration='{configuration}'\n{SCRIPT}"),
    )
    .seconds(20, 120)
    .files(files)
    .check(check)
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let initramfs = linux::tenant_initramfs(&stock, MODULES)?;
    let metadata = serde_json::json!({"latest": {"meta-data": {"name": NAME}}});
    Ok(Files::from([
        ("kernel".to_owned(), file(&stock.image)),
        ("initrd-tenant".to_owned(), Source::Bytes(initramfs)),
        ("jailer".to_owned(), file(workshop.jailer()?)),
        (
            "metadata.json".to_owned(),
            Source::Bytes(metadata.to_string().into_bytes()),
        ),
    ]))
}

fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    let report = Report::parse(&outcome.stdout)?;
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
        ("cgroup", "0::/keeptime/tenant"),
        ("pids.max", "64"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.cpus.effective", "0-1"),
        // "vm-1" and "vm-2" take turns among domains of one CPU each.
        ("cpuset.cpus.effective of vm-1", "1"),
        ("cpuset.cpus.effective of vm-2", "0"),
        ("disk", report.value("made")?),
    ] {
        outcome.expect_line(&format!("host {key}: {wanted}"))?;
    }
    let output = outcome.stdout_text();
    ensure!(
        !output.contains("host: CPUs of two TSC domains are taken"),
        "a cpuset of two TSC domains was not refused"
    );
    let bare = output
        .lines()
        .find(|line| line.starts_with("host without a filter"));
    ensure!(bare.is_none(), "{}", bare.unwrap_or_default());
    Ok(())
}
