//! The scenarios of one emulated host, in one boot of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::host::image::{Job, Source, Step};
use crate::host::protocol::Event;
use crate::host::{Host, Lost, Run};
use crate::kernels::Kernel;
use crate::scenario::{Outcome, Scenario};
use crate::test::tally::{End, Tally, Verdict};
use crate::test::verdict;
use crate::workshop::Workshop;

/// How often a host may be lost: a run of everything beside another emulator lost one host twice.
const RESTARTS: u32 = 2;

/// The processors of each emulated host.
const PROCESSORS: &str = "2";

/// Boots `host` once and has it run `scenarios`; verdicts go to `tally` as they come. When the host
/// itself fails, so do the scenarios that have none yet.
///
/// A host whose emulator has lost it (lab/README.md, "Traps") is booted again for what is left, [`RESTARTS`]
/// times at most: that says nothing about any scenario. A scenario that fails, or is late on a host that lives,
/// has failed.
pub(super) fn run(
    workshop: &Workshop,
    host: Host,
    scenarios: &[Scenario],
    tally: &Tally,
) -> Result<()> {
    let mut left: Vec<&Scenario> = scenarios.iter().collect();
    let mut restarts = 0;
    loop {
        let start = Instant::now();
        let Some((waiting, error)) = boot(workshop, host, &left, tally)? else {
            return Ok(());
        };
        if restarts < RESTARTS && error.downcast_ref::<Lost>().is_some() {
            eprintln!(
                "lab: the emulator lost the host {}, which is started again: {error:#}",
                host.name()
            );
            left.retain(|scenario| waiting.contains(&scenario.name));
            restarts += 1;
            let log = log(workshop, host)?;
            let kept = log.with_extension(format!("lost-{restarts}.log"));
            fs::rename(&log, &kept).with_context(|| format!("cannot keep {}", log.display()))?;
            tally.restarted(host.name());
            continue;
        }
        let reason = format!("{error:#}");
        for scenario in left.iter().filter(|left| waiting.contains(&left.name)) {
            let end = End::Failed {
                reason: reason.clone(),
                logs: Vec::new(),
            };
            tally.add(&Verdict {
                name: scenario.full_name(),
                elapsed: start.elapsed(),
                end,
            });
        }
        return Ok(());
    }
}

/// One boot of `host`. Returns the names of the scenarios that have no verdict, and why.
fn boot(
    workshop: &Workshop,
    host: Host,
    scenarios: &[&Scenario],
    tally: &Tally,
) -> Result<Option<(Vec<String>, anyhow::Error)>> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let job = job(workshop, scenarios)?;
    let run = Run {
        paths: &workshop.paths,
        stock: &stock,
        host,
        options: &[],
        job: &job,
        log: log(workshop, host)?,
    };
    let mut progress = Progress {
        workshop,
        host,
        waiting: BTreeMap::new(),
        current: None,
        fault: None,
        tally,
    };
    progress.waiting = scenarios
        .iter()
        .map(|scenario| (scenario.name.as_str(), *scenario))
        .collect();
    let result = run.run(&mut |event| progress.observe(event));
    let Progress { waiting, fault, .. } = progress;
    if waiting.is_empty() {
        return Ok(None);
    }
    let reason = match (result, fault) {
        (Ok(_), None) => anyhow::anyhow!("the host ended without running it"),
        (_, Some(fault)) => fault,
        (Err(error), None) => error,
    };
    Ok(Some((
        waiting.into_keys().map(str::to_owned).collect(),
        reason,
    )))
}

/// Where the console's output goes.
fn log(workshop: &Workshop, host: Host) -> Result<PathBuf> {
    let folder = workshop.paths.folder("logs")?;
    Ok(folder.join(format!("host-{}.log", host.name())))
}

/// One step for each scenario; files of the same name must be the same.
fn job(workshop: &Workshop, scenarios: &[&Scenario]) -> Result<Job> {
    let mut job = Job::default();
    for scenario in scenarios {
        for (name, source) in scenario.all_files(workshop)? {
            if let Some(other) = job.files.get(&name) {
                let same = match (other, &source) {
                    (Source::Path(one), Source::Path(two)) => one == two,
                    (Source::Bytes(one), Source::Bytes(two)) => one == two,
                    _ => false,
                };
                ensure!(
                    same,
                    "two scenarios of one host have different files {name}"
                );
            }
            job.files.insert(name, source);
        }
        job.steps.push(Step {
            name: scenario.name.clone(),
            script: scenario.script.clone(),
            limit: scenario.limit,
            live: false,
        });
    }
    Ok(job)
}

/// What has come from the host so far.
struct Progress<'a> {
    workshop: &'a Workshop,
    host: Host,
    waiting: BTreeMap<&'a str, &'a Scenario>,
    current: Option<(Instant, Outcome)>,
    fault: Option<anyhow::Error>,
    tally: &'a Tally,
}

impl Progress<'_> {
    fn observe(&mut self, event: Event) {
        if self.fault.is_some() {
            return;
        }
        if let Err(error) = self.take(event) {
            self.fault = Some(error);
        }
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Ready(facts) => self.check_host(&facts)?,
            Event::Begin { .. } => self.current = Some((Instant::now(), Outcome::default())),
            Event::File {
                step,
                name,
                contents,
            } => {
                if let Some((_, outcome)) = &mut self.current {
                    match name.as_str() {
                        "stdout" => outcome.stdout = contents,
                        _ => outcome.stderr = contents,
                    }
                } else {
                    // The host's own, after the last step.
                    let file = format!("{step}-{}.{name}", self.host.name());
                    let log = self.workshop.paths.folder("logs")?.join(file);
                    std::fs::write(&log, contents)
                        .with_context(|| format!("cannot write {}", log.display()))?;
                }
            }
            Event::Exit { step, status } => {
                let (start, mut outcome) = self.current.take().context("an end without a begin")?;
                let scenario = self
                    .waiting
                    .remove(step.as_str())
                    .with_context(|| format!("no step {step}"))?;
                outcome.status = status;
                self.tally.add(&verdict(
                    &self.workshop.paths,
                    scenario,
                    start.elapsed(),
                    &outcome,
                )?);
            }
            Event::Problem(problem) => anyhow::bail!("the host says: {problem}"),
            Event::Text(_) | Event::Done => {}
        }
        Ok(())
    }

    /// A scenario means something only on the host that it was written for.
    fn check_host(&self, facts: &BTreeMap<String, String>) -> Result<()> {
        let wanted = [
            ("kvm", "yes"),
            ("clocksource", self.host.clocksource()),
            ("cpus", PROCESSORS),
        ];
        for (key, value) in wanted {
            let found = facts.get(key).map_or("nothing", String::as_str);
            ensure!(
                found == value,
                "the host {} has {key}={found}, not {value}",
                self.host.name()
            );
        }
        Ok(())
    }
}
