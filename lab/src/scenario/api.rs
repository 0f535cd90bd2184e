//! A stock Linux guest that is configured, started, paused and resumed by requests to the API, and whose memory is
//! taken and given back by them: its own driver fills a balloon, tells its statistics, and names the pages that are
//! free.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::host::image::{Files, Source};
use crate::host::program::{CURL, LOADER, with_libraries};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// The processors of the guest.
const PROCESSORS: u32 = 2;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &["virtio_mmio", "virtio_balloon"];

/// How much of its memory the guest does without for a while, in MiB.
const BALLOON_MIB: u32 = 96;

/// The host's side.
const SCRIPT: &str = concat!(include_str!("launcher.sh"), include_str!("api.sh"));

/// The scenarios. What the API does does not depend on the host's TSC. On the stable host two of twenty such guests
/// stopped in mid-boot, as lab/README.md tells under "Traps".
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Svm {
        tsc: Tsc::Unstable,
        paging: Paging::Nested,
    };
    vec![
        Scenario::new(Place::Emulated(host), "amd64-api", script())
            .files(files)
            .check(move |outcome| check(host, outcome))
            .seconds(25, 180),
    ]
}

fn script() -> String {
    let boot_source = json!({
        "kernel_image_path": "kernel-amd64-api", "initrd_path": "initrd-amd64-api",
        "boot_args": format!("{COMMAND_LINE} balloon={BALLOON_MIB}"),
    });
    let machine = json!({"vcpu_count": PROCESSORS, "mem_size_mib": MEMORY_MIB});
    let script = SCRIPT
        .replace("./keeptime", &format!("./{LAUNCHER}"))
        .replace("./loader", &format!("./{LOADER}"));
    format!("boot_source='{boot_source}'\nmachine='{machine}'\nballoon={BALLOON_MIB}\n{script}")
}

fn files(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let mut files = with_libraries(Path::new(CURL))?;
    files.insert("kernel-amd64-api".to_owned(), file(&stock.image));
    let initramfs = linux::balloon_initramfs(&stock, MODULES)?;
    files.insert("initrd-amd64-api".to_owned(), Source::Bytes(initramfs));
    Ok(files)
}

/// A number of KiB, in a text that ends with the unit or not.
fn kib(text: &str) -> Result<u64> {
    let number = text.split(' ').next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("no number of KiB: {text:?}"))
}

fn check(host: Host, outcome: &Outcome) -> Result<()> {
    super::linux::check(host, Kernel::Amd64, outcome)?;
    let report = Report::parse(&outcome.stdout)?;
    let output = outcome.stdout_text();
    let of_host = |key: &str| {
        let prefix = format!("host {key}: ");
        (output.lines())
            .find_map(|line| line.strip_prefix(&prefix))
            .with_context(|| format!("the host's part has no line {key:?}"))
    };
    let balloon = u64::from(BALLOON_MIB) << 10;
    let (before, with) = (kib(of_host("before")?)?, kib(of_host("with a balloon")?)?);
    // Whatever else the guest does: what is in the balloon is not in the file, and nearly all was before.
    let most = (u64::from(MEMORY_MIB) << 10) - balloon;
    ensure!(
        with <= most,
        "with {BALLOON_MIB} MiB in the balloon, the guest's memory takes {with} KiB of the host, more than {most}"
    );
    ensure!(
        before >= with + balloon * 3 / 4,
        "the guest's memory takes {before} KiB of the host before, and {with} with a balloon"
    );
    // Of what is left to the guest nearly all is free, if not all in blocks as large as its driver names.
    let without = kib(of_host("without what is free")?)?;
    ensure!(
        with >= without + (32 << 10),
        "with a balloon, the guest's memory takes {with} KiB of the host, and {without} without what is free"
    );
    let hinting: Value = serde_json::from_str(of_host("hinting")?).context("no JSON")?;
    ensure!(
        hinting == json!({"host_cmd": 1, "guest_cmd": 0}),
        "hinting: {hinting}"
    );
    let touched = report.value("touched")?;
    let total = kib(touched.split(" of ").nth(1).unwrap_or_default())?;
    let smaller = kib(report.value("with a balloon")?)?;
    ensure!(
        smaller == total - balloon,
        "the guest has {smaller} KiB with a balloon, and {total} without"
    );
    for (key, wanted) in [
        ("without", format!("{total} kB")),
        ("filled again", "yes".to_owned()),
    ] {
        let found = report.value(key)?;
        ensure!(found == wanted, "the guest's {key}: {found}, not {wanted}");
    }
    let statistics = of_host("statistics")?;
    let told: Value = serde_json::from_str(statistics).context("no JSON")?;
    for (name, wanted) in [
        ("target_mib", BALLOON_MIB.into()),
        ("actual_pages", u64::from(BALLOON_MIB) * 256),
        ("total_memory", smaller << 10),
    ] {
        ensure!(told[name] == wanted, "{name}: not {wanted}: {statistics}");
    }
    for name in [
        "free_memory",
        "available_memory",
        "disk_caches",
        "minor_faults",
        "swap_in",
    ] {
        ensure!(told[name].is_u64(), "no {name}: {statistics}");
    }
    let free = told["free_memory"].as_u64().unwrap_or(0);
    ensure!(free <= smaller << 10, "free_memory: {statistics}");
    Ok(())
}
