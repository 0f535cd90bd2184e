//! `cargo lab fuzz`: every fuzz target for its share of a budget of time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::host::tail;
use crate::paths::{Paths, cargo};
use crate::process::{Running, capture, run_visibly, tied};

/// Targets that run at the same time.
const WORKERS: u64 = 2;

/// Runs every fuzz target for its share of the time, two at a time.
///
/// Installs cargo-fuzz when it is missing, and binutils' and LLVM's sanitizer come with Rust. Ends
/// with an error when a target crashed; the input lies under fuzz/artifacts then.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only targets with this in their name
    filter: Option<String>,
    /// The time for all targets together, in seconds
    #[arg(long, default_value_t = 600, conflicts_with = "hours")]
    seconds: u64,
    /// The same in hours
    #[arg(long)]
    hours: Option<u64>,
}

/// How one target fared.
#[derive(Debug)]
struct Fate {
    target: String,
    success: bool,
    elapsed: Duration,
    log: PathBuf,
}

/// Builds and runs the targets.
pub(crate) fn run(paths: &Paths, arguments: &Arguments) -> Result<ExitCode> {
    if capture(Command::new(cargo()).args(["fuzz", "--version"])).is_err() {
        eprintln!("lab: installing cargo-fuzz");
        run_visibly(Command::new(cargo()).args([
            "install",
            "--quiet",
            "--locked",
            "--debug",
            "cargo-fuzz",
        ]))?;
    }
    let mut targets = targets(&paths.workspace.join("fuzz/fuzz_targets"))?;
    if let Some(filter) = &arguments.filter {
        targets.retain(|target| target.contains(filter));
    }
    ensure!(!targets.is_empty(), "no fuzz target has such a name");
    let budget = arguments
        .hours
        .map_or(arguments.seconds, |hours| hours.saturating_mul(3600));
    let share = share(budget, targets.len());
    eprintln!("lab: building {} fuzz targets", targets.len());
    run_visibly(cargo_fuzz(paths, Command::new(cargo()))?.args(["build"]))?;
    eprintln!("lab: running each for {share} s");

    let next = AtomicUsize::new(0);
    let fates = Mutex::new(Vec::new());
    thread::scope(|scope| -> Result<()> {
        let worker = || -> Result<()> {
            while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                let fate = fuzz(paths, target, share)?;
                let word = if fate.success { "PASS" } else { "FAIL" };
                println!("{word} {:7.2} s  {target}", fate.elapsed.as_secs_f64());
                fates
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(fate);
            }
            Ok(())
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let fates = fates
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let failed: Vec<&Fate> = fates.iter().filter(|fate| !fate.success).collect();
    for fate in &failed {
        eprintln!(
            "lab: {}: {} ends:\n{}",
            fate.target,
            fate.log.display(),
            tail(&fate.log, 40)
        );
    }
    println!(
        "{} passed, {} failed, 0 skipped",
        fates.len() - failed.len(),
        failed.len()
    );
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Each target's seconds, when `targets` share `budget` seconds of real time and two run at a time.
fn share(budget: u64, targets: usize) -> u64 {
    // An odd one out leaves a worker idle: the number of turns counts.
    let turns = u64::try_from(targets)
        .unwrap_or(u64::MAX)
        .div_ceil(WORKERS)
        .max(1);
    (budget / turns).max(1)
}

/// The names of the targets: one file each.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", folder.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem()
        {
            targets.push(stem.to_string_lossy().into_owned());
        }
    }
    targets.sort_unstable();
    Ok(targets)
}

/// `cargo fuzz` on the stable toolchain.
fn cargo_fuzz(paths: &Paths, mut command: Command) -> Result<Command> {
    let build = paths.folder("fuzz")?;
    command
        .current_dir(&paths.workspace)
        // The sanitizers' flags are unstable; this lets the stable compiler take them.
        .env("RUSTC_BOOTSTRAP", "1")
        // Link-time optimization drops what the coverage instrumentation refers to.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        // Half the time to build: the product's one unit for each crate keeps one processor busy.
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        // Apart from the product's own release build, whose flags differ.
        .env("CARGO_TARGET_DIR", build)
        .arg("fuzz");
    Ok(command)
}

fn fuzz(paths: &Paths, target: &str, seconds: u64) -> Result<Fate> {
    let log = paths.folder("logs")?.join(format!("fuzz-{target}.log"));
    let file = fs::File::create(&log).context("cannot write the log")?;
    let errors = file.try_clone().context("cannot share the log")?;
    let mut command = cargo_fuzz(paths, tied(cargo()))?;
    // What the fuzzer finds interesting stays out of the seeds, which every test replays.
    let finds = paths.folder("fuzz-corpus")?.join(target);
    fs::create_dir_all(&finds).with_context(|| format!("cannot create {}", finds.display()))?;
    command.args(["run", target]).arg(&finds);
    command.arg(paths.workspace.join("fuzz/corpus").join(target));
    command.args(["--", &format!("-max_total_time={seconds}")]);
    command.stdin(Stdio::null()).stdout(file).stderr(errors);
    let start = Instant::now();
    let success = Running::spawn(&mut command)?.wait()?.success();
    Ok(Fate {
        target: target.to_owned(),
        success,
        elapsed: start.elapsed(),
        log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_targets_keeps_the_budget() {
        assert_eq!(share(600, 4), 300); // two turns of two
        assert_eq!(share(600, 5), 200); // three turns, the last of one
        assert_eq!(share(600, 1), 600);
        assert_eq!(share(1, 10), 1); // never 0, which libFuzzer takes for no limit
    }
}
