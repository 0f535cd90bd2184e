//! A stock guest whose root file system is on a disk, with a shell on its serial console, that writes a lot to another
//! disk; its launcher is killed as soon as all of it is flushed.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::guest::linux::{self, COMMAND_LINE, END, MEMORY_MIB, Report};
use crate::guest::{program, root};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need. Its kernel has ext4 built in.
const MODULES: &[&str] = &["virtio_mmio", "virtio_blk", "squashfs"];

/// How much is written, read and written again, in MiB: as much as the guest has memory.
const MIB: u32 = MEMORY_MIB;

/// What the second disk's file says.
const WORD: &str = "squashfs: read\n";

/// The host's side.
const SCRIPT: &str = concat!(include_str!("launcher.sh"), include_str!("root.sh"));

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    let launch = format!("exec ./{LAUNCHER} --no-api --config-file root.json");
    let script = format!("mib={MIB}\nend='{END}'\nlaunch() {{ {launch}; }}\n{SCRIPT}");
    vec![
        Scenario::new(Place::Emulated(host), "root", script)
            .files(files)
            .check(check)
            .seconds(40, 150),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let configuration = json!({
        "boot-source": {
            "kernel_image_path": "kernel", "initrd_path": "initrd-root", "boot_args": COMMAND_LINE,
        },
        "machine-config": {"vcpu_count": 2, "mem_size_mib": MEMORY_MIB},
        "drives": [
            {"drive_id": "squashfs", "path_on_host": "squashfs", "is_root_device": false, "is_read_only": true},
            {"drive_id": "data", "path_on_host": "disk-root-data", "is_root_device": false,
             "cache_type": "Writeback"},
            {"drive_id": "root", "path_on_host": "disk-root", "is_root_device": true,
             "partuuid": root::PARTUUID, "cache_type": "Writeback"},
        ],
    });
    let bytes = |bytes: Vec<u8>| Source::Bytes(bytes);
    Ok(Files::from([
        ("kernel".to_owned(), file(&stock.image)),
        (
            "initrd-root".to_owned(),
            bytes(linux::root_initramfs(&stock, MODULES)?),
        ),
        ("disk-root".to_owned(), bytes(root::disk(&stock)?)),
        ("squashfs".to_owned(), bytes(root::squashfs("word", WORD)?)),
        (
            "root.json".to_owned(),
            bytes(configuration.to_string().into_bytes()),
        ),
        (
            "stream".to_owned(),
            bytes(program::build(program::STREAM, Kernel::Amd64)?),
        ),
    ]))
}

fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    let report = Report::parse(&outcome.stdout)?;
    let trouble: Vec<_> = report.all("trouble").collect();
    ensure!(trouble.is_empty(), "the guest met trouble: {trouble:?}");
    outcome.expect_line("the launcher's status: 137")?;
    for (key, wanted) in [
        (
            "root device",
            format!("/dev/vda1, named PARTUUID={}", root::PARTUUID),
        ),
        ("root", "/dev/vda1 ext4 rw".to_owned()),
        ("answer", "42".to_owned()),
        ("squashfs", "read".to_owned()),
    ] {
        let found = report.value(key)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    let flushed: Vec<_> = report.all("flushed").collect();
    let [first, second] = flushed[..] else {
        anyhow::bail!("the guest flushed {} times", flushed.len());
    };
    ensure!(first != second, "the guest wrote the same twice");
    let read = report.value("read")?;
    ensure!(
        read == first,
        "the guest read {read} where it had written {first}"
    );
    let left = report.value("host read").context("the host's part")?;
    ensure!(
        left == second,
        "the image is {left}, and the guest had {second} flushed when its launcher was killed"
    );
    Ok(())
}
