//! `cargo lab boot`: a stock kernel in a microVM, from nothing.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::apt;
use crate::cli::Common;
use crate::guest::linux::{COMMAND_LINE, MEMORY_MIB, Report};
use crate::guest::{LOOP, LOOP_INSTRUCTIONS};
use crate::host::image::{Files, Job, Output, Source, Step};
use crate::host::protocol::Event;
use crate::host::{Host, Lost, Paging, Run, Tsc};
use crate::kernels::Kernel;
use crate::native;
use crate::paths::Paths;
use crate::scenario::{LAUNCHER, Needs, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// A processor runs the guest of the first trial in a few hundredths of a second, even in a machine that
/// is virtual itself; a software KVM interprets a few million instructions a second.
const LOOP_LIMIT: Duration = Duration::from_secs(4);
/// A processor boots the stock guest in a second or two.
const NATIVE_LIMIT: Duration = Duration::from_secs(60);
/// The same in an emulated host, on its clock: 10 to 15 s on svm and 9 s on vmx with two processors, and more with more.
const EMULATED_LIMIT: Duration = Duration::from_secs(120);
/// After how long without a line of the guest's, or of its launcher's, the svm host has lost one of them. A whole boot
/// takes 20 s there on an idle machine.
const EMULATED_SILENCE: Duration = Duration::from_secs(45);
/// How often a guest is booted at most where QEMU loses it.
const TRIES: u32 = 3;

/// Boots a stock Debian kernel in a Keeptime microVM and shows its serial console.
///
/// Installs and fetches what it needs, builds the launcher, boots the kernel with an initramfs that
/// reports the guest's clocks and powers off. Ends with status 0 only if the guest reached user space
/// and the launcher ended with status 0.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo lab boot
  cargo lab boot --guest i386-pae --host svm
  cargo lab boot --host vmx --cpus 4")]
pub(crate) struct Arguments {
    /// The guest's kernel
    #[arg(long, default_value = "amd64")]
    guest: Kernel,
    /// Where to boot it
    #[arg(long, default_value = "auto")]
    host: Choice,
    /// The guest's processors
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    cpus: u8,
}

/// Where to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// This machine's KVM
    Native,
    /// QEMU's software CPU with AMD's SVM
    Svm,
    /// Bochs with Intel's VMX; takes minutes
    Vmx,
    /// This machine's KVM if it can run the guest, which is tried; else svm
    Auto,
}

/// Boots and reports.
pub(crate) fn run(paths: Paths, common: &Common, arguments: &Arguments) -> Result<ExitCode> {
    let workshop = Workshop::new(paths, common);
    let start = Instant::now();
    workshop.prepare_launcher()?;
    let guest = arguments.guest;
    let stock = workshop.stock(guest)?;
    eprintln!(
        "lab: the guest is Debian's {} with {} processors",
        stock.release, arguments.cpus
    );

    // On this machine the folder of the run is the scenario's; in a host it is the job's.
    let script = format!(
        "exec ./{LAUNCHER} run --kernel vmlinuz --initrd initramfs --cmdline '{COMMAND_LINE}' \
         --cpus {} --memory {MEMORY_MIB}\n",
        arguments.cpus
    );
    let initramfs = Source::Bytes(workshop.guest_initramfs(guest)?);
    let files: Files = [
        ("vmlinuz".to_owned(), file(&stock.image)),
        ("initramfs".to_owned(), initramfs),
    ]
    .into();
    let scenario = Scenario::new(Place::Native, "boot", script)
        .files(move |_| Ok(files.clone()))
        .seconds(2, NATIVE_LIMIT.as_secs());

    let outcome = match arguments.host {
        Choice::Native => {
            if let Some(obstacle) = native::obstacle(Needs::Kvm) {
                bail!("the host native: {obstacle}");
            }
            shown(native::run(&workshop, &scenario)?)
        }
        Choice::Svm => emulated(&workshop, guest, true, &scenario)?,
        Choice::Vmx => emulated(&workshop, guest, false, &scenario)?,
        Choice::Auto => match try_native(&workshop, &scenario)? {
            Ok(outcome) => {
                eprintln!("lab: took the host native: this machine's KVM runs the guest");
                shown(outcome)
            }
            Err(reason) => {
                eprintln!("lab: took the host svm, since native cannot run the guest: {reason}");
                emulated(&workshop, guest, true, &scenario)?
            }
        },
    };
    let report = judged(&outcome, arguments.cpus)?;
    println!(
        "lab: the guest reached user space with {} processors, clocksource {}, and powered off \
         ({:.1} s in all)",
        report.value("processors online")?,
        report.value("clocksource")?,
        start.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

fn judged(outcome: &Outcome, cpus: u8) -> Result<Report> {
    let report = Report::parse(&outcome.stdout).with_context(|| evidence(outcome))?;
    let online = report.value("processors online").map(str::to_owned)?;
    ensure!(
        online == cpus.to_string(),
        "{online} of {cpus} processors are online"
    );
    outcome.expect_status(0).context("the launcher")?;
    Ok(report)
}

/// How the launcher ended and how far its guest had come, in one line.
fn evidence(outcome: &Outcome) -> String {
    let last = |text: &str| {
        text.lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .map(str::to_owned)
    };
    let guest = last(&outcome.stdout_text()).map_or_else(
        || "the guest wrote nothing".to_owned(),
        |line| format!("the guest's last line is {line:?}"),
    );
    match (outcome.status, last(&outcome.stderr_text())) {
        (None, _) => format!("the time was up; {guest}"),
        (Some(status), None) => format!("the launcher ended with status {status}; {guest}"),
        (Some(status), Some(words)) => {
            format!("the launcher ended with status {status} and the words {words:?}; {guest}")
        }
    }
}

/// Tries this machine's KVM, first with a loop, then with the stock guest: the outcome of a good boot, or
/// why there was none.
fn try_native(workshop: &Workshop, scenario: &Scenario) -> Result<Result<Outcome, String>> {
    if let Some(obstacle) = native::obstacle(Needs::Kvm) {
        return Ok(Err(obstacle));
    }
    eprintln!("lab: trying this machine's KVM with a loop of {LOOP_INSTRUCTIONS} instructions");
    let script = format!("exec ./{LAUNCHER} run --kernel loop\n");
    let trial = Scenario::new(Place::Native, "loop", script)
        .files(|_| {
            Ok(Files::from([(
                "loop".to_owned(),
                Source::Bytes(LOOP.build()?),
            )]))
        })
        .seconds(1, LOOP_LIMIT.as_secs());
    let outcome = native::run(workshop, &trial)?;
    if outcome.status.is_none() {
        return Ok(Err(format!(
            "a loop of {LOOP_INSTRUCTIONS} instructions did not end within {} s, so this KVM interprets \
             what a processor should run; a stock kernel needs some fifty times as many",
            LOOP_LIMIT.as_secs()
        )));
    }
    if outcome.status != Some(0) {
        return Ok(Err(evidence(&outcome)));
    }
    eprintln!(
        "lab: trying this machine's KVM with the stock guest, for at most {} s",
        NATIVE_LIMIT.as_secs()
    );
    let outcome = native::run(workshop, scenario)?;
    Ok(
        match Report::parse(&outcome.stdout).and_then(|_| outcome.expect_status(0)) {
            Ok(()) => Ok(outcome),
            Err(error) => Err(format!("{error:#}; {}", evidence(&outcome))),
        },
    )
}

/// Prints what a native launcher printed.
fn shown(outcome: Outcome) -> Outcome {
    // A closed pipe on our side changes nothing about the guest.
    let _ = std::io::stdout().write_all(&outcome.stdout);
    let _ = std::io::stderr().write_all(&outcome.stderr);
    outcome
}

/// Boots in an emulated host, and once more where QEMU lost the guest or the host, which it does at one boot of a dozen
/// (lab/README.md, "Traps").
fn emulated(workshop: &Workshop, guest: Kernel, svm: bool, scenario: &Scenario) -> Result<Outcome> {
    for _ in 1..TRIES {
        let outcome = emulated_once(workshop, guest, svm, scenario);
        let lost = match &outcome {
            Ok(outcome) => outcome.looks_lost(),
            Err(error) => error.downcast_ref::<Lost>().is_some(),
        };
        if !(svm && lost) {
            return outcome;
        }
        let reason = match outcome {
            Ok(outcome) => evidence(&outcome),
            Err(error) => format!("{error:#}"),
        };
        eprintln!("lab: the emulator may have lost the guest, which is booted once more: {reason}");
    }
    emulated_once(workshop, guest, svm, scenario)
}

/// Boots in an emulated host, and prints the guest's output as it comes.
fn emulated_once(
    workshop: &Workshop,
    guest: Kernel,
    svm: bool,
    scenario: &Scenario,
) -> Result<Outcome> {
    const STEP: &str = "boot";
    let host = match (svm, guest) {
        (false, _) => Host::Vmx,
        (true, Kernel::I386Pae) => Host::Svm {
            tsc: Tsc::Unstable,
            paging: Paging::Shadow,
        },
        (true, _) => Host::Svm {
            tsc: Tsc::Unstable,
            paging: Paging::Nested,
        },
    };
    apt::install(host.packages())?;
    let stock = workshop.stock(Kernel::Amd64)?;
    let step = Step {
        name: STEP.to_owned(),
        script: scenario.script.clone(),
        limit: EMULATED_LIMIT,
        output: Output::Live {
            silence: svm.then_some(EMULATED_SILENCE),
        },
    };
    let job = Job {
        files: scenario.all_files(workshop)?,
        steps: vec![step],
    };
    let log = workshop
        .paths
        .folder("logs")?
        .join(format!("boot-{}.log", host.name()));
    eprintln!(
        "lab: starting the host {}; its whole log is {}",
        host.name(),
        log.display()
    );
    let run = Run {
        paths: &workshop.paths,
        stock: &stock,
        host,
        options: &[],
        job: &job,
        log,
    };
    let mut outcome = Outcome::default();
    let mut running = false;
    let mut output = std::io::stdout().lock();
    let cost = run.run(&mut |event| match event {
        Event::Begin { .. } => running = true,
        Event::Text(line) if running => {
            outcome.stdout.extend_from_slice(&line);
            outcome.stdout.push(b'\n');
            let _ = output
                .write_all(&line)
                .and_then(|()| output.write_all(b"\n"));
            let _ = output.flush();
        }
        Event::Exit { status, .. } => {
            running = false;
            outcome.status = status;
        }
        Event::Problem(problem) => eprintln!("lab: the host says: {problem}"),
        Event::Text(_) | Event::Ready(_) | Event::File { .. } | Event::Done => {}
    })?;
    eprintln!("lab: {:.1} s to the host's shell", cost.ready.as_secs_f64());
    Ok(outcome)
}
