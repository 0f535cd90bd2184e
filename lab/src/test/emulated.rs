//! The scenarios of an emulated host, those of one boot of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::host::image::{Job, Output, Source, Step};
use crate::host::protocol::Event;
use crate::host::{Host, Lost, Run};
use crate::kernels::Kernel;
use crate::scenario::{Outcome, Scenario};
use crate::test::tally::{End, Tally, Verdict};
use crate::test::verdict;
use crate::workshop::Workshop;

/// How often a host is booted again. It has a dozen guests; four boots were lost in one run, none in others.
const RESTARTS: u32 = 10;

/// How often a scenario may lose its guest, or its host while it runs: one with which that happens again and again has a
/// fault of its own, and the other ones are not to wait for it.
const LOSSES: u32 = 4;

/// The processors of each emulated host.
const PROCESSORS: &str = "2";

/// Scenarios that run in one boot of a host.
pub(super) struct Batch {
    pub(super) host: Host,
    /// Which boot of this host it is: they may run side by side, and have logs of their own.
    pub(super) number: usize,
    pub(super) scenarios: Vec<Scenario>,
}

impl Batch {
    /// The name of the boot's logs.
    fn label(&self) -> String {
        match self.number {
            0 => self.host.name(),
            number => format!("{}-{}", self.host.name(), number + 1),
        }
    }
}

/// Boots the host and has it run the scenarios; verdicts go to `tally` as they come. When the host itself fails, so do
/// the scenarios that have none yet.
///
/// QEMU loses a host or a guest in it now and then (lab/README.md, "Traps"), which says nothing about any scenario:
/// the host is booted again for what is left, [`RESTARTS`] times at most and [`LOSSES`] for a scenario, and the tally tells
/// of each. Every other failure is one.
pub(super) fn run(workshop: &Workshop, batch: &Batch, tally: &Tally) -> Result<()> {
    let (host, label) = (batch.host, batch.label());
    let mut left: Vec<&Scenario> = batch.scenarios.iter().collect();
    let mut restarts = 0;
    let mut losses = Losses::default();
    loop {
        let may_restart = restarts < RESTARTS && matches!(host, Host::Svm { .. });
        let start = Instant::now();
        let booted = boot(workshop, host, &label, &left, may_restart, tally)?;
        let lost = match &booted.failure {
            None if booted.lost_guests.is_empty() => return Ok(()),
            None => true,
            Some(error) => error.downcast_ref::<Lost>().is_some(),
        };
        if may_restart && lost {
            restarts += 1;
            let again = |name: &str| {
                let guests = &booted.lost_guests;
                booted.waiting.iter().any(|other| other == name)
                    || guests.iter().any(|(other, _)| other == name)
            };
            left.retain(|scenario| again(&scenario.name));
            if let Some(error) = &booted.failure {
                keep(&log(workshop, &label)?, restarts)?;
                let current = left
                    .iter()
                    .position(|left| booted.waiting.contains(&left.name));
                match current {
                    Some(index) if losses.are_too_many(&left[index].name) => {
                        let scenario = left.remove(index);
                        tally.add(&failed(scenario, start.elapsed(), format!("{error:#}")));
                    }
                    _ => {
                        eprintln!(
                            "lab: the emulator lost the host {}, which is started again: {error:#}",
                            host.name()
                        );
                        tally.restarted(host.name());
                    }
                }
            }
            for (name, verdict) in &booted.lost_guests {
                if losses.are_too_many(name) {
                    left.retain(|scenario| scenario.name != *name);
                    tally.add(verdict);
                    continue;
                }
                tally.restarted(verdict.name.clone());
                if let End::Failed { logs, .. } = &verdict.end {
                    logs.iter().try_for_each(|log| keep(log, restarts))?;
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            continue;
        }
        for (_, verdict) in &booted.lost_guests {
            tally.add(verdict);
        }
        let reason = booted.failure.map(|error| format!("{error:#}"));
        for scenario in left
            .iter()
            .filter(|left| booted.waiting.contains(&left.name))
        {
            let reason = reason.clone().unwrap_or_default();
            tally.add(&failed(scenario, start.elapsed(), reason));
        }
        return Ok(());
    }
}

/// The verdict of a scenario that its host did not come to the end of.
fn failed(scenario: &Scenario, elapsed: Duration, reason: String) -> Verdict {
    let end = End::Failed {
        reason,
        logs: Vec::new(),
    };
    Verdict {
        name: scenario.full_name(),
        elapsed,
        end,
    }
}

/// How often each scenario has been met by the emulator's faults.
#[derive(Default)]
struct Losses(BTreeMap<String, u32>);

impl Losses {
    /// Counts one more; tells whether that is all that the scenario has.
    fn are_too_many(&mut self, scenario: &str) -> bool {
        let count = self.0.entry(scenario.to_owned()).or_default();
        *count += 1;
        *count == LOSSES
    }
}

/// Keeps a log of the boot that was lost as the `number`-th from being written again.
fn keep(log: &Path, number: u32) -> Result<()> {
    let kind = log.extension().unwrap_or_default().to_string_lossy();
    let kept = log.with_extension(format!("lost-{number}.{kind}"));
    fs::rename(log, kept).with_context(|| format!("cannot keep {}", log.display()))
}

/// What came of one boot.
struct Booted {
    /// Scenarios whose guest the emulator may have lost, and their verdicts, which are not in the tally.
    lost_guests: Vec<(String, Verdict)>,
    /// Scenarios that have no verdict.
    waiting: Vec<String>,
    /// Why they have none.
    failure: Option<anyhow::Error>,
}

/// One boot of `host`. Guests that the emulator may have lost are kept apart if they may be tried again.
fn boot(
    workshop: &Workshop,
    host: Host,
    label: &str,
    scenarios: &[&Scenario],
    may_restart: bool,
    tally: &Tally,
) -> Result<Booted> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let job = job(workshop, scenarios)?;
    let run = Run {
        paths: &workshop.paths,
        stock: &stock,
        host,
        options: &[],
        job: &job,
        log: log(workshop, label)?,
    };
    let mut progress = Progress {
        workshop,
        host,
        label,
        waiting: BTreeMap::new(),
        may_restart,
        lost_guests: Vec::new(),
        current: None,
        fault: None,
        tally,
    };
    progress.waiting = scenarios
        .iter()
        .map(|scenario| (scenario.name.as_str(), *scenario))
        .collect();
    let result = run.run(&mut |event| progress.observe(event));
    let Progress {
        waiting,
        fault,
        lost_guests,
        ..
    } = progress;
    let failure = match (waiting.is_empty(), result, fault) {
        (true, ..) => None,
        (_, Ok(_), None) => Some(anyhow::anyhow!("the host ended without running it")),
        (_, _, Some(fault)) => Some(fault),
        (_, Err(error), None) => Some(error),
    };
    Ok(Booted {
        lost_guests,
        waiting: waiting.into_keys().map(str::to_owned).collect(),
        failure,
    })
}

/// Where the console's output goes.
fn log(workshop: &Workshop, label: &str) -> Result<PathBuf> {
    let folder = workshop.paths.folder("logs")?;
    Ok(folder.join(format!("host-{label}.log")))
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
            output: Output::Files,
        });
    }
    Ok(job)
}

/// What has come from the host so far.
struct Progress<'a> {
    workshop: &'a Workshop,
    host: Host,
    label: &'a str,
    waiting: BTreeMap<&'a str, &'a Scenario>,
    may_restart: bool,
    lost_guests: Vec<(String, Verdict)>,
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
                    let file = format!("{step}-{}.{name}", self.label);
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
                let verdict = verdict(&self.workshop.paths, scenario, start.elapsed(), &outcome)?;
                match &verdict.end {
                    End::Failed { reason, .. } if self.may_restart && outcome.looks_lost() => {
                        eprintln!(
                            "lab: {} may have lost its guest, and is tried again later: {reason}",
                            verdict.name
                        );
                        self.lost_guests.push((step, verdict));
                    }
                    _ => self.tally.add(&verdict),
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_one_scenario_end_and_those_of_others_do_not() {
        let mut losses = Losses::default();
        let mut told = || ["a", "b"].map(|name| losses.are_too_many(name));
        for _ in 1..LOSSES {
            assert_eq!(told(), [false, false]);
        }
        assert_eq!(told(), [true, true]);
        let mut one = Losses::default();
        assert!((1..LOSSES).all(|_| !one.are_too_many("a")));
        assert!(!one.are_too_many("b"));
        assert!(one.are_too_many("a"));
    }
}
