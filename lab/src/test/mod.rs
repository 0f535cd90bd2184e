//! `cargo lab test`: everything, side by side where it helps.

mod cargo_tests;
mod emulated;
mod tally;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, PoisonError};
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
use emulated::Batch;
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
            Place::Emulated(Host::Vmx) => Self::Vmx,
        }
    }
}

/// What one worker does at a time.
enum Task {
    Cargo(Vec<Suite>),
    Native(Vec<Scenario>),
    Emulated(Batch),
}

/// What there is to do.
struct Plan {
    /// The svm hosts, one after the other and before what else wants a processor at once: their emulator, kept from
    /// running for long, loses guests (see lab/README.md, "Traps"). What they leave of two processors, a Bochs host
    /// takes, as it takes whatever nobody else wants.
    first: Vec<Batch>,
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
            Self::Emulated(batch) => batch.host.start_cost() + of(&batch.scenarios),
        }
    }
}

impl Plan {
    fn new(
        suites: Vec<Suite>,
        native: Vec<Scenario>,
        emulated: BTreeMap<Host, Vec<Scenario>>,
    ) -> Self {
        let (first, beside): (Vec<_>, Vec<_>) = emulated
            .into_iter()
            .partition(|(host, _)| matches!(host, Host::Svm { .. }));
        let first = first.into_iter().map(|(host, scenarios)| Batch {
            host,
            number: 0,
            scenarios,
        });
        let mut shared: Vec<Task> = beside
            .into_iter()
            .flat_map(|(host, scenarios)| divide(host, scenarios))
            .map(Task::Emulated)
            .collect();
        if !native.is_empty() {
            shared.push(Task::Native(native));
        }
        if !suites.is_empty() {
            shared.push(Task::Cargo(suites));
        }
        shared.sort_by_key(|task| std::cmp::Reverse(task.cost()));
        Self {
            first: first.collect(),
            shared: shared.into(),
        }
    }
}

/// Of a host that is shared, so much is for one worker: then it is booted once more for another one.
const LONGEST: Duration = Duration::from_secs(800);

/// The scenarios of a host in so many boots as they need: two where they take too long for one, and one for each that no
/// other may follow. Within a boot their order stays.
fn divide(host: Host, scenarios: Vec<Scenario>) -> Vec<Batch> {
    if scenarios.is_empty() {
        return Vec::new();
    }
    let all: Duration = scenarios.iter().map(|scenario| scenario.cost).sum();
    let (lasts, mut others): (Vec<_>, Vec<_>) = scenarios
        .into_iter()
        .enumerate()
        .partition(|(_, scenario)| scenario.last);
    let by_cost = if all > LONGEST { 2 } else { 1 };
    let count = by_cost.min(lasts.len() + others.len()).max(lasts.len());
    let mut boots: Vec<(Duration, Vec<(usize, Scenario)>)> = Vec::new();
    boots.resize_with(count, Default::default);
    // The longest first, each to the boot that has least to do.
    for (boot, (index, last)) in boots.iter_mut().zip(lasts) {
        *boot = (last.cost, vec![(index, last)]);
    }
    others.sort_by_key(|(_, scenario)| std::cmp::Reverse(scenario.cost));
    for (index, scenario) in others {
        if let Some((cost, boot)) = boots.iter_mut().min_by_key(|(cost, _)| *cost) {
            *cost += scenario.cost;
            boot.push((index, scenario));
        }
    }
    let in_order = |(number, (_, mut boot)): (usize, (Duration, Vec<(usize, Scenario)>))| {
        boot.sort_by_key(|(index, scenario)| (scenario.last, *index));
        Batch {
            host,
            number,
            scenarios: boot.into_iter().map(|(_, scenario)| scenario).collect(),
        }
    };
    boots.into_iter().enumerate().map(in_order).collect()
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
    work(&workshop, plan, &tally)?;
    let counts = tally.counts();
    eprintln!("lab: {:.0} s in all", start.elapsed().as_secs_f64());
    for host in tally.restarts() {
        println!(
            "RESTARTED       {host}: its emulator may have lost it (lab/README.md, \"Traps\")"
        );
    }
    for failure in tally.failures() {
        println!("FAILED          {failure}");
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
        let is_vmx = matches!(scenario.place, Place::Emulated(Host::Vmx));
        contract |= scenario.contract && !(skip_vmx && is_vmx);
        match scenario.place {
            Place::Native => native.push(scenario),
            Place::Emulated(Host::Vmx) if skip_vmx => {
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

/// What is left to do, for workers side by side.
struct Queue {
    state: Mutex<State>,
    /// The svm hosts have ended.
    changed: Condvar,
}

struct State {
    tasks: VecDeque<Task>,
    /// An svm host is running, or will be.
    beside_svm: bool,
}

impl Queue {
    /// The next task, once there is one that may run now.
    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let may_run = |task: &Task| !state.beside_svm || matches!(task, Task::Emulated(_));
            if let Some(index) = state.tasks.iter().position(may_run) {
                return state.tasks.remove(index);
            }
            if state.tasks.is_empty() {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells the queue at its end, however that comes, that no svm host is left.
struct SvmEnd<'a>(&'a Queue);

impl Drop for SvmEnd<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.beside_svm = false;
        self.0.changed.notify_all();
    }
}

/// Has workers do what is planned, side by side.
fn work(workshop: &Workshop, plan: Plan, tally: &Tally) -> Result<()> {
    let queue = Queue {
        state: Mutex::new(State {
            tasks: plan.shared,
            beside_svm: !plan.first.is_empty(),
        }),
        changed: Condvar::new(),
    };
    let worker = |first: &[Batch]| -> Result<()> {
        if !first.is_empty() {
            let _end = SvmEnd(&queue);
            first
                .iter()
                .try_for_each(|batch| emulated::run(workshop, batch, tally))?;
        }
        while let Some(task) = queue.next() {
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
                Task::Emulated(batch) => emulated::run(workshop, &batch, tally)?,
            }
        }
        Ok(())
    };
    let worker = &worker;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let first = if number == 0 { &plan.first[..] } else { &[] };
                scope.spawn(move || worker(first))
            })
            .collect();
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
        assert!(plan.first.iter().all(|batch| is_svm(&batch.host)));
        let beside: Vec<(Host, usize)> = plan
            .shared
            .iter()
            .filter_map(|task| match task {
                Task::Emulated(batch) => Some((batch.host, batch.number)),
                Task::Cargo(_) | Task::Native(_) => None,
            })
            .collect();
        assert!(!beside.iter().any(|(host, _)| is_svm(host)), "{beside:?}");
        let hosts_beside = beside.iter().filter(|(_, number)| *number == 0).count();
        assert_eq!(plan.first.len() + hosts_beside, hosts);
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

    #[test]
    fn queue_gives_a_bochs_host_beside_svm_and_the_rest_at_its_end() {
        let batch = Batch {
            host: Host::Vmx,
            number: 0,
            scenarios: Vec::new(),
        };
        let queue = Queue {
            state: Mutex::new(State {
                tasks: [
                    Task::Cargo(Vec::new()),
                    Task::Emulated(batch),
                    Task::Native(Vec::new()),
                ]
                .into(),
                beside_svm: true,
            }),
            changed: Condvar::new(),
        };
        let svm = SvmEnd(&queue);
        assert!(matches!(queue.next(), Some(Task::Emulated(_))));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.next());
            drop(svm);
            let next = waiting.join().expect("no panic");
            assert!(matches!(next, Some(Task::Cargo(_))));
        });
        assert!(matches!(queue.next(), Some(Task::Native(_))));
        assert!(queue.next().is_none());
    }

    #[test]
    fn long_host_is_divided_and_a_short_one_is_not() {
        let host = Host::Vmx;
        let boots = |costs: &[u64], lasts: &[usize]| -> Vec<String> {
            let scenario = |(index, cost): (usize, &u64)| {
                let scenario = Scenario::new(Place::Emulated(host), index.to_string(), "");
                let scenario = scenario.seconds(*cost, 1);
                if lasts.contains(&index) {
                    scenario.last_of_its_boot()
                } else {
                    scenario
                }
            };
            let scenarios = costs.iter().enumerate().map(scenario).collect();
            let name = |batch: Batch| -> String {
                (batch.scenarios.into_iter())
                    .map(|scenario| scenario.name)
                    .collect()
            };
            let boots = divide(host, scenarios);
            let numbers: Vec<_> = boots.iter().map(|batch| batch.number).collect();
            assert!(numbers.into_iter().eq(0..boots.len()));
            boots.into_iter().map(name).collect()
        };
        assert!(boots(&[], &[]).is_empty());
        assert_eq!(boots(&[400, 400], &[]), ["01"]);
        assert_eq!(boots(&[100, 400, 300, 401], &[]), ["03", "12"]);
        assert_eq!(boots(&[1_300], &[]), ["0"]);
        assert_eq!(boots(&[100, 100, 1_300], &[]), ["2", "01"]);
        // Whom nobody may follow has a boot, however short, and is its last.
        assert_eq!(boots(&[10, 10, 10], &[0]), ["120"]);
        assert_eq!(boots(&[10, 30, 10], &[0, 1]), ["20", "1"]);
        assert_eq!(boots(&[10, 10, 10], &[0, 1, 2]), ["0", "1", "2"]);
        assert_eq!(boots(&[900, 300, 300, 300], &[1]), ["231", "0"]);
    }
}
