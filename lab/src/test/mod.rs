//! `cargo lab test`: everything, side by side where it helps.

mod cargo_tests;
mod emulated;
mod tally;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::apt;
use crate::cli::Common;
use crate::host::Host;
use crate::native;
use crate::paths::Paths;
use crate::scenario::{self, Outcome, Place, Scenario};
use crate::workshop::Workshop;
use cargo_tests::Suite;
use tally::{End, Skip, Tally, Verdict};

/// Emulators and test builds that run at the same time.
const WORKERS: usize = 2;

/// Runs the workspace's tests and the scenarios on all hosts.
///
/// Prints a verdict for each as it ends, the end of the log for each failure, and closes with the line
/// "N passed, M failed, K skipped". Logs lie under target/lab/logs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo lab test                     everything
  cargo lab test --list              the names
  cargo lab test i386-pae            what has i386-pae in its name
  cargo lab test --host svm --host native")]
pub(crate) struct Arguments {
    /// Only what has this in its name
    filter: Option<String>,
    /// Only what runs there (repeatable)
    #[arg(long = "host")]
    hosts: Vec<Where>,
    /// Print the names and do nothing
    #[arg(long)]
    list: bool,
    /// Skip the vmx host, which takes minutes
    #[arg(long)]
    skip_vmx: bool,
    /// Count a skip as a failure where this laboratory could have run it; so does CI=true
    #[arg(long)]
    deny_skips: bool,
}

/// Where something runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Where {
    /// This machine's KVM
    Native,
    /// QEMU with AMD's SVM
    Svm,
    /// Bochs with Intel's VMX
    Vmx,
    /// The workspace's own tests
    Cargo,
}

impl Where {
    fn of(place: Place) -> Self {
        match place {
            Place::Native => Self::Native,
            Place::Emulated(Host::Svm { .. } | Host::Counted) => Self::Svm,
            Place::Emulated(Host::Vmx { .. }) => Self::Vmx,
        }
    }
}

/// What one worker does at a time.
enum Task {
    Cargo(Vec<Suite>),
    Native(Vec<Scenario>),
    Emulated(Host, Vec<Scenario>),
}

/// What there is to do.
struct Plan {
    /// The svm hosts, one after the other and before everything else. Each keeps two processors busy, so that
    /// company would save no time; and their emulator, kept from running for long, loses guests (see
    /// lab/README.md, "Traps").
    alone: Vec<(Host, Vec<Scenario>)>,
    /// What runs side by side, the longest first, so that no worker is left alone with it at the end. A Bochs host keeps
    /// one processor busy.
    shared: VecDeque<Task>,
}

impl Task {
    /// The estimated time, on two processors.
    fn cost(&self) -> Duration {
        let of = |scenarios: &[Scenario]| -> Duration {
            scenarios.iter().map(|scenario| scenario.cost).sum()
        };
        match self {
            Self::Cargo(suites) => suites.iter().map(|suite| suite.cost()).sum(),
            Self::Native(scenarios) => of(scenarios),
            Self::Emulated(host, scenarios) => host.start_cost() + of(scenarios),
        }
    }
}

impl Plan {
    fn new(
        suites: Vec<Suite>,
        native: Vec<Scenario>,
        emulated: BTreeMap<Host, Vec<Scenario>>,
    ) -> Self {
        let (alone, beside): (Vec<_>, Vec<_>) = emulated
            .into_iter()
            .partition(|(host, _)| matches!(host, Host::Svm { .. }));
        let mut shared: Vec<Task> = beside
            .into_iter()
            .map(|(host, scenarios)| Task::Emulated(host, scenarios))
            .collect();
        if !native.is_empty() {
            shared.push(Task::Native(native));
        }
        if !suites.is_empty() {
            shared.push(Task::Cargo(suites));
        }
        shared.sort_by_key(|task| std::cmp::Reverse(task.cost()));
        Self {
            alone,
            shared: shared.into(),
        }
    }
}

/// Runs everything that was asked for.
pub(crate) fn run(paths: Paths, common: &Common, arguments: &Arguments) -> Result<ExitCode> {
    let suites: Vec<Suite> = Suite::ALL
        .into_iter()
        .filter(|suite| arguments.wants(Where::Cargo, suite.name()))
        .collect();
    let scenarios: Vec<Scenario> = scenario::all()
        .into_iter()
        .filter(|scenario| arguments.wants(Where::of(scenario.place), &scenario.full_name()))
        .collect();
    if arguments.list {
        for name in suites.iter().map(|suite| suite.name()) {
            println!("{name}");
        }
        for scenario in &scenarios {
            println!("{}", scenario.full_name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        !suites.is_empty() || !scenarios.is_empty(),
        "nothing has such a name: see --list"
    );

    let start = Instant::now();
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    let tally = Tally::new(arguments.deny_skips || in_ci);
    let workshop = Workshop::new(paths, common);
    let plan = prepare(&workshop, suites, scenarios, arguments.skip_vmx, &tally)?;
    for (host, scenarios) in &plan.alone {
        emulated::run(&workshop, *host, scenarios, &tally)?;
    }
    work(&workshop, plan.shared, &tally)?;
    let counts = tally.counts();
    eprintln!("lab: {:.0} s in all", start.elapsed().as_secs_f64());
    for host in tally.restarts() {
        println!(
            "RESTARTED       {host}: its emulator may have lost it (lab/README.md, \"Traps\")"
        );
    }
    println!("{counts}");
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Arguments {
    fn wants(&self, place: Where, name: &str) -> bool {
        (self.hosts.is_empty() || self.hosts.contains(&place))
            && self
                .filter
                .as_ref()
                .is_none_or(|filter| name.contains(filter.as_str()))
    }
}

/// Installs and builds what the tasks need, and says at once what cannot run.
fn prepare(
    workshop: &Workshop,
    suites: Vec<Suite>,
    scenarios: Vec<Scenario>,
    skip_vmx: bool,
    tally: &Tally,
) -> Result<Plan> {
    let mut native = Vec::new();
    let mut emulated: BTreeMap<Host, Vec<Scenario>> = BTreeMap::new();
    let mut contract = false;
    for scenario in scenarios {
        let is_vmx = matches!(scenario.place, Place::Emulated(Host::Vmx { .. }));
        contract |= scenario.contract && !(skip_vmx && is_vmx);
        match scenario.place {
            Place::Native => native.push(scenario),
            Place::Emulated(Host::Vmx { .. }) if skip_vmx => {
                tally.add(&skipped(&scenario, "--skip-vmx".to_owned(), true));
            }
            Place::Emulated(host) => emulated.entry(host).or_default().push(scenario),
        }
    }
    let mut packages: BTreeSet<&str> = emulated
        .keys()
        .flat_map(|host| host.packages())
        .copied()
        .collect();
    if suites.contains(&Suite::Tests) {
        packages.extend(cargo_tests::PACKAGES);
    }
    apt::install(&packages.into_iter().collect::<Vec<_>>())?;
    if !native.is_empty() || !emulated.is_empty() {
        workshop.prepare_launcher()?;
        if contract {
            workshop.prepare_contract()?;
        }
    }
    Ok(Plan::new(suites, native, emulated))
}

/// Has workers do the tasks, side by side.
fn work(workshop: &Workshop, tasks: VecDeque<Task>, tally: &Tally) -> Result<()> {
    let tasks = Mutex::new(tasks);
    let next = || {
        tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    thread::scope(|scope| {
        let worker = || -> Result<()> {
            while let Some(task) = next() {
                match task {
                    Task::Cargo(suites) => {
                        for suite in suites {
                            tally.add(&suite.run(&workshop.paths)?);
                        }
                    }
                    Task::Native(scenarios) => {
                        for scenario in &scenarios {
                            tally.add(&run_native(workshop, scenario)?);
                        }
                    }
                    Task::Emulated(host, scenarios) => {
                        emulated::run(workshop, host, &scenarios, tally)?;
                    }
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn run_native(workshop: &Workshop, scenario: &Scenario) -> Result<Verdict> {
    if let Some(reason) = native::obstacle(scenario.needs) {
        return Ok(skipped(scenario, reason, native::has_kvm()));
    }
    let start = Instant::now();
    let outcome = native::run(workshop, scenario)?;
    verdict(&workshop.paths, scenario, start.elapsed(), &outcome)
}

fn skipped(scenario: &Scenario, reason: String, avoidable: bool) -> Verdict {
    let end = End::Skipped(Skip { reason, avoidable });
    Verdict {
        name: scenario.full_name(),
        elapsed: Duration::ZERO,
        end,
    }
}

/// Keeps what came out of `scenario` as logs, and judges it.
fn verdict(
    paths: &Paths,
    scenario: &Scenario,
    elapsed: Duration,
    outcome: &Outcome,
) -> Result<Verdict> {
    let folder = paths.folder("logs")?;
    let mut logs = Vec::new();
    for (kind, contents) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        let log: PathBuf =
            folder.join(format!("{}.{kind}", scenario.full_name().replace('/', "-")));
        fs::write(&log, contents).with_context(|| format!("cannot write {}", log.display()))?;
        if !contents.is_empty() {
            logs.push(log);
        }
    }
    let end = match scenario.judge(outcome) {
        Ok(()) => End::Passed,
        Err(error) => End::Failed {
            reason: format!("{error:#}"),
            logs,
        },
    };
    Ok(Verdict {
        name: scenario.full_name(),
        elapsed,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long `workers` take for tasks that take so long, in seconds, when whoever is free takes the next one.
    fn span(tasks: &[u64], workers: usize) -> u64 {
        let mut busy_until = vec![0; workers];
        for task in tasks {
            let first = busy_until.iter_mut().min();
            *first.expect("a worker") += task;
        }
        busy_until.into_iter().max().unwrap_or_default()
    }

    #[test]
    fn plan_of_everything_keeps_the_workers_busy_to_its_end() {
        let mut native = Vec::new();
        let mut emulated: BTreeMap<Host, Vec<Scenario>> = BTreeMap::new();
        for scenario in scenario::all() {
            match scenario.place {
                Place::Native => native.push(scenario),
                Place::Emulated(host) => emulated.entry(host).or_default().push(scenario),
            }
        }
        let hosts = emulated.len();
        let plan = Plan::new(Suite::ALL.to_vec(), native, emulated);
        let is_svm = |host: &Host| Where::of(Place::Emulated(*host)) == Where::Svm;
        assert!(plan.alone.iter().all(|(host, _)| is_svm(host)));
        let beside: Vec<Host> = plan
            .shared
            .iter()
            .filter_map(|task| match task {
                Task::Emulated(host, _) => Some(*host),
                Task::Cargo(_) | Task::Native(_) => None,
            })
            .collect();
        assert!(!beside.iter().any(is_svm), "{beside:?}");
        assert_eq!(plan.alone.len() + beside.len(), hosts);
        let costs: Vec<u64> = plan
            .shared
            .iter()
            .map(|task| task.cost().as_secs())
            .collect();
        assert!(costs.is_sorted_by(|one, next| one >= next), "{costs:?}");
        // With no gap: half of all, and at most a fifth more for what cannot be divided.
        let half = costs.iter().sum::<u64>() / 2;
        assert!(span(&costs, WORKERS) <= half + half / 5, "{costs:?}");
    }
}
