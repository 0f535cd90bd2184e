//! `cargo lab bench io`: what a stock guest's devices cost, in instructions.
//!
//! On a host with one processor whose clock counts instructions (`Host::Counted`), stock Debian guests with their own
//! drivers load a disk, a network card and a socket device, one guest for each load, and read their TSC before and
//! after. A tick is one instruction, of the guest, the host's kernel and the launcher together, so that a busy machine changes nothing.
//! What it leaves out is what an instruction costs: caches, the hardware's entries and exits of guests, its interrupts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::apt;
use crate::cli::Common;
use crate::guest::linux::{self, COMMAND_LINE, MEMORY_MIB, Report};
use crate::guest::program;
use crate::host::image::{Files, Job, Output, Source, Step};
use crate::host::protocol::Event;
use crate::host::{Host, Lost, Run};
use crate::kernels::Kernel;
use crate::paths::Paths;
use crate::scenario::{LAUNCHER, Outcome, file};
use crate::workshop::Workshop;

/// The modules that the guest loads, and all that they need.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
];

/// The host's side, for a launcher of which it knows the file.
const SCRIPT: &str = include_str!("io/host.sh");

/// How often a host may be tried.
const ATTEMPTS: u8 = 5;

/// The file of the other launcher.
const PEER: &str = "peer";

/// The guests, what each calls its loads, and what the table does.
const LOADS: &[(&str, &str, &str)] = &[
    ("disk", "read 4096", "disk: read 4 KiB at random"),
    ("disk", "write 4096", "disk: write 4 KiB at random"),
    ("disk", "read 1048576", "disk: read 1 MiB in order"),
    ("disk", "write 1048576", "disk: write 1 MiB in order"),
    ("send", "send frames", "net: send 1,500 bytes"),
    ("receive", "receive frames", "net: receive 1,500 bytes"),
    ("streams", "send stream", "vsock: send 1 MiB"),
    ("streams", "receive stream", "vsock: receive 1 MiB"),
];

/// Measures what a guest's devices cost, in instructions of an emulated host.
///
/// Stock Debian guests with one vCPU, each for one of these: reads and writes of a disk past the page cache, frames sent
/// over a tap, frames received, and bytes over a vsock connection. Instructions of guest, launcher and host's kernel
/// count alike; what the hardware takes for an entry or an exit of the guest is not in it. Repeats within 0.2 %, loads of
/// vsock within 2.7 % and reads of 1 MiB within 11 %, whatever else the machine does.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only this guest's loads
    #[arg(value_parser = ["disk", "send", "receive", "streams"])]
    guest: Option<String>,
    /// Measure this Firecracker-compatible binary too, a static one, started with --no-api --config-file
    #[arg(long, value_name = "BINARY")]
    peer: Option<PathBuf>,
    /// How often the guest repeats each load
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
}

/// What the loads of one launcher's guest took: instructions for each operation, round by round.
type Costs = BTreeMap<&'static str, Vec<f64>>;

/// Measures and prints the table.
pub(crate) fn run(paths: Paths, common: &Common, arguments: &Arguments) -> Result<ExitCode> {
    let workshop = Workshop::new(paths, common);
    workshop.prepare_launcher()?;
    apt::install(Host::Counted.packages())?;
    let mut launchers = vec![(LAUNCHER, workshop.launcher()?.to_owned())];
    if let Some(peer) = &arguments.peer {
        ensure!(peer.is_file(), "--peer: {} is no file", peer.display());
        launchers.push((PEER, peer.clone()));
    }
    let wanted = |guest: &str| arguments.guest.as_ref().is_none_or(|only| only == guest);
    let mut guests: Vec<_> = LOADS.iter().map(|(guest, _, _)| *guest).collect();
    guests.retain(|guest| wanted(guest));
    guests.dedup();
    let mut all = Vec::new();
    for (name, launcher) in &launchers {
        let once = || measure(&workshop, name, launcher, &guests, arguments.rounds);
        let outcome = measure_again(once)?;
        let costs = costs(&outcome, &guests).with_context(|| {
            format!(
                "{name} (status {:?}):\n{}",
                outcome.status,
                outcome.stdout_text()
            )
        })?;
        all.push((*name, costs));
    }
    print!("{}", table(&all).context("nothing was measured")?);
    Ok(ExitCode::SUCCESS)
}

/// Measures, and again where the emulator lost the host: QEMU 7.2's counting thread may spin for ever without an
/// instruction.
fn measure_again(measure: impl Fn() -> Result<Outcome>) -> Result<Outcome> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match measure() {
            Err(error) if left > 0 && error.downcast_ref::<Lost>().is_some() => {
                eprintln!("lab: the emulator lost the host ({error:#}); once more");
            }
            result => return result,
        }
    }
}

/// Runs the guests under one launcher, in a boot of the host.
fn measure(
    workshop: &Workshop,
    name: &str,
    launcher: &Path,
    guests: &[&str],
    rounds: u8,
) -> Result<Outcome> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let step = Step {
        name: name.to_owned(),
        script: format!("launcher={name} loads='{}'\n{SCRIPT}", guests.join(" ")),
        limit: Duration::from_secs(120),
        output: Output::Live { silence: None },
    };
    let job = Job {
        files: files(workshop, name, launcher, rounds)?,
        steps: vec![step],
    };
    let log = workshop
        .paths
        .folder("logs")?
        .join(format!("bench-io-{name}.log"));
    eprintln!(
        "lab: {name} runs the guest on a host that counts instructions; this takes a minute or two"
    );
    let run = Run {
        paths: &workshop.paths,
        stock: &stock,
        host: Host::Counted,
        options: &[],
        job: &job,
        log,
    };
    let mut outcome = Outcome::default();
    let mut problem = None;
    run.run(&mut |event| match event {
        Event::Text(line) => {
            outcome.stdout.extend_from_slice(&line);
            outcome.stdout.push(b'\n');
        }
        Event::Exit { status, .. } => outcome.status = status,
        Event::Problem(words) => problem = Some(words),
        Event::Begin { .. } | Event::Ready(_) | Event::File { .. } | Event::Done => {}
    })?;
    if let Some(problem) = problem {
        bail!("the host says: {problem}");
    }
    Ok(outcome)
}

fn files(workshop: &Workshop, name: &str, launcher: &Path, rounds: u8) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let configuration = serde_json::json!({
        "boot-source": {
            "kernel_image_path": "kernel", "initrd_path": "initrd",
            "boot_args": format!("{COMMAND_LINE} reboot=k quiet rounds={rounds} load="),
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
        "drives": [{"drive_id": "disk", "is_root_device": false, "path_on_host": "disk"}],
        "network-interfaces": [{"iface_id": "net", "host_dev_name": "tap0"}],
        "vsock": {"guest_cid": 3, "uds_path": "v"},
    });
    let initramfs = linux::io_initramfs(&stock, MODULES)?;
    let io = program::build(program::IO, Kernel::Amd64)?;
    Ok(Files::from([
        (name.to_owned(), file(launcher)),
        ("kernel".to_owned(), file(&stock.image)),
        ("initrd".to_owned(), Source::Bytes(initramfs)),
        ("io".to_owned(), Source::Bytes(io)),
        (
            "io.json".to_owned(),
            Source::Bytes(configuration.to_string().into_bytes()),
        ),
    ]))
}

/// What the guest says of its loads.
fn costs(outcome: &Outcome, guests: &[&str]) -> Result<Costs> {
    let output = outcome.stdout_text();
    let parts = output.split_inclusive(linux::END);
    // Behind the last one's end there is nothing but what the launcher says.
    let parts = parts.filter(|part| part.contains(linux::END));
    let reports = parts.map(|guest| Report::parse(guest.as_bytes()));
    let reports: Vec<_> = reports.collect::<Result<_>>()?;
    let all = |key| {
        reports
            .iter()
            .flat_map(move |report: &Report| report.all(key))
    };
    let trouble: Vec<_> = all("trouble").collect();
    ensure!(trouble.is_empty(), "a guest met trouble: {trouble:?}");
    let cost = |line: &str| -> Result<f64> {
        let (ticks, count) = line.split_once(" of ").context("no count")?;
        let (ticks, count): (u32, u32) = (ticks.parse()?, count.parse()?);
        ensure!(count > 0, "nothing was done");
        Ok(f64::from(ticks) / f64::from(count))
    };
    let mut costs = Costs::new();
    for (_, load, _) in LOADS.iter().filter(|(guest, _, _)| guests.contains(guest)) {
        let rounds = all(load).map(cost).collect::<Result<Vec<_>>>();
        let rounds = rounds.with_context(|| format!("a guest's lines {load:?}"))?;
        ensure!(!rounds.is_empty(), "no guest's report has a line {load:?}");
        costs.insert(load, rounds);
    }
    Ok(costs)
}

/// The median, or the mean of the two in the middle.
fn median(rounds: &[f64]) -> Option<f64> {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// The table of all launchers, each beside the first.
fn table(all: &[(&'static str, Costs)]) -> Option<String> {
    let mut table = format!("{:<30}", "instructions each");
    for (at, (name, _)) in all.iter().enumerate() {
        table += &format!("{name:>12}");
        if at > 0 {
            table += &format!("{:>10}", "ratio");
        }
    }
    table += "   spread of the rounds\n";
    let ours = &all.first()?.1;
    for (_, load, title) in LOADS.iter().filter(|(_, load, _)| ours.contains_key(load)) {
        let first = median(ours.get(load)?)?;
        table += &format!("{title:<30}");
        let mut spread: f64 = 0.0;
        for (at, (_, costs)) in all.iter().enumerate() {
            let rounds = costs.get(load)?;
            let own = median(rounds)?;
            table += &format!("{own:>12.0}");
            if at > 0 {
                table += &format!("{:>9.2}x", first / own);
            }
            let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
            let most = rounds.iter().copied().fold(0.0, f64::max);
            spread = spread.max((most - least) / own);
        }
        table += &format!("   {:.1} %\n", 100.0 * spread);
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUESTS: &[&str] = &["disk", "send", "receive", "streams"];

    fn outcome(line: &str) -> Outcome {
        let lines: String = LOADS
            .iter()
            .map(|(_, load, _)| {
                format!("{load}: 3000 of 10\r\n{load}: 5000 of 10\r\n{load}: 4000 of 10\r\n")
            })
            .collect();
        Outcome {
            stdout: format!("--- user space ---\r\n{lines}{line}--- power off ---\r\n")
                .into_bytes(),
            ..Outcome::default()
        }
    }

    #[test]
    fn table_shows_medians_and_the_ratio_to_the_first() {
        let ours = costs(&outcome(""), GUESTS).unwrap();
        let mut theirs = ours.clone();
        theirs.insert("read 4096", vec![800.0]);
        let table = table(&[("a", ours), ("b", theirs)]).unwrap();
        let line = table.lines().nth(1).unwrap();
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            [
                "disk:", "read", "4", "KiB", "at", "random", "400", "800", "0.50x", "50.0", "%"
            ]
        );
    }

    #[test]
    fn report_with_trouble_or_without_a_load_is_none() {
        let costs = |outcome: &Outcome| super::costs(outcome, GUESTS);
        assert!(costs(&outcome("trouble: read: error 5\r\n")).is_err());
        assert!(costs(&outcome("send frames: 3 of 0\r\n")).is_err());
        let empty = b"--- user space ---\r\n--- power off ---\r\n".to_vec();
        let empty = Outcome {
            stdout: empty,
            ..Outcome::default()
        };
        assert!(costs(&empty).is_err());
    }

    #[test]
    fn median_of_an_even_number_is_between() {
        assert_eq!(median(&[1.0, 4.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }
}
