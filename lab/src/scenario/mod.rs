//! Scenarios: a command with files, a place to run it, and what must come out.
//!
//! A scenario does not know how its place works. Its command is a script of `sh` that finds the
//! scenario's files in its working folder, on this machine as in an emulated host; what it must print
//! is checked here, afterwards. To add one, add a row to a module's `all`, or a module to [`all`], break
//! the product to see it fail, and say how in lab/README.md.

mod api;
mod block;
mod clients;
mod devices;
mod errors;
mod faults;
mod hostile;
mod interrupted;
mod jails;
mod keeping;
mod linux;
mod network;
mod packaging;
mod pmem;
mod rate;
mod root;
mod skew;
mod small;
mod sockets;
mod time;

#[cfg(test)]
mod fault_rows;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::guest::linux::END;
use crate::host::Host;
use crate::host::image::{Files, Source};
use crate::workshop::Workshop;

/// The name under which scripts find the launcher in their working folder.
pub(crate) const LAUNCHER: &str = "keeptime";
/// And the contract suite of TSC control, for scenarios with [`Scenario::with_contract`].
pub(crate) const CONTRACT: &str = "tsc_contract";

/// Where a scenario runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// This machine.
    Native,
    /// An emulated host. The scenarios of one host run in one boot of it, or two where they take long.
    Emulated(Host),
}

impl Place {
    /// The first part of a scenario's name.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Native => "native".to_owned(),
            Self::Emulated(host) => host.name(),
        }
    }
}

type MakeFiles = Box<dyn Fn(&Workshop) -> Result<Files> + Send + Sync>;
type Check = Box<dyn Fn(&Outcome) -> Result<()> + Send + Sync>;

/// One scenario.
pub(crate) struct Scenario {
    /// Letters, digits and dashes, unique in its place.
    pub(crate) name: String,
    /// Where it runs.
    pub(crate) place: Place,
    /// How long it takes there, without the host's start: decides what starts first.
    pub(crate) cost: Duration,
    /// After this time, on the place's clock, it has failed.
    pub(crate) limit: Duration,
    /// What `sh` runs.
    pub(crate) script: String,
    /// What a native scenario needs besides a machine; an emulated host has it.
    pub(crate) needs: Needs,
    /// Whether the script finds the contract suite.
    pub(crate) contract: bool,
    /// Whether its host is no good for others after it.
    pub(crate) last: bool,
    files: MakeFiles,
    check: Check,
}

/// What a native scenario needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A KVM that may be used.
    Kvm,
    /// The right to mount in a namespace of its own.
    MountNamespace,
    /// A KVM that may be used, and root's rights.
    Root,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("Scenario")
            .field(&self.full_name())
            .finish()
    }
}

impl Scenario {
    /// A scenario that runs `script` with the launcher at hand, and must end with status 0.
    pub(crate) fn new(place: Place, name: impl Into<String>, script: impl Into<String>) -> Self {
        let (cost, limit) = match place {
            Place::Native => (1, 30),
            Place::Emulated(_) => (10, 120),
        };
        Self {
            name: name.into(),
            place,
            cost: Duration::from_secs(cost),
            limit: Duration::from_secs(limit),
            script: script.into(),
            needs: Needs::Kvm,
            contract: false,
            last: false,
            files: Box::new(|_| Ok(Files::new())),
            check: Box::new(|outcome| outcome.expect_status(0)),
        }
    }

    /// The same with files besides the launcher.
    pub(crate) fn files(
        mut self,
        files: impl Fn(&Workshop) -> Result<Files> + Send + Sync + 'static,
    ) -> Self {
        self.files = Box::new(files);
        self
    }

    /// The same with another check than for status 0.
    pub(crate) fn check(
        mut self,
        check: impl Fn(&Outcome) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.check = Box::new(check);
        self
    }

    /// The same with the contract suite at hand.
    pub(crate) fn with_contract(mut self) -> Self {
        self.contract = true;
        self
    }

    /// The same, after which its host is no good for others.
    pub(crate) fn last_of_its_boot(mut self) -> Self {
        self.last = true;
        self
    }

    /// The same with another need than KVM.
    pub(crate) fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    /// The same with another cost and limit, in seconds.
    pub(crate) fn seconds(mut self, cost: u64, limit: u64) -> Self {
        self.cost = Duration::from_secs(cost);
        self.limit = Duration::from_secs(limit);
        self
    }

    /// The name with its place, as users see it and filter by it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.place.name(), self.name)
    }

    /// All files that the script finds, the launcher among them.
    pub(crate) fn all_files(&self, workshop: &Workshop) -> Result<Files> {
        let mut files = (self.files)(workshop)
            .with_context(|| format!("cannot make the files of {}", self.full_name()))?;
        files.insert(
            LAUNCHER.to_owned(),
            Source::Path(workshop.launcher()?.to_owned()),
        );
        if self.contract {
            files.insert(CONTRACT.to_owned(), file(workshop.contract()?));
        }
        Ok(files)
    }

    /// Judges what came out.
    pub(crate) fn judge(&self, outcome: &Outcome) -> Result<()> {
        (self.check)(outcome)
    }
}

/// What came out of a scenario's script.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// The status, or `None` when its time was up. As in the shell, 128 and more is a signal.
    pub(crate) status: Option<u8>,
    /// Standard output: for a launcher, the guest's serial port.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
}

/// What the launcher says of a guest that fell over. In its first second a Linux guest has written nothing by then.
const FALLEN: [&str; 2] = ["the guest triple-faulted", "KVM internal error"];

/// What is told of a guest that was waited for in vain (`src/host/autopsy.sh`).
const LATE: &str = "lab: late:";

impl Outcome {
    /// Whether it looks like that of a guest that its emulator has lost (lab/README.md, "Traps"): one that did not come
    /// to its end, in time or at all.
    pub(crate) fn looks_lost(&self) -> bool {
        let (output, log) = (self.stdout_text(), self.stderr_text());
        self.status.is_none()
            || log.contains(LATE)
            || FALLEN
                .iter()
                .any(|words| log.contains(words) || output.contains(words))
            || (output.contains("Linux version") && !output.contains(END))
    }

    /// Fails unless the script ended with `wanted`.
    pub(crate) fn expect_status(&self, wanted: u8) -> Result<()> {
        match self.status {
            Some(status) if status == wanted => Ok(()),
            Some(status) => bail!("the status is {status}, not {wanted}"),
            None => bail!("it did not end in time"),
        }
    }

    /// Fails unless standard output holds `line` as a whole line.
    pub(crate) fn expect_line(&self, line: &str) -> Result<()> {
        let text = self.stdout_text();
        ensure!(
            text.lines().any(|other| other == line),
            "the output has no line {line:?}"
        );
        Ok(())
    }

    /// Standard output, without carriage returns.
    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).replace('\r', "")
    }

    /// Standard error.
    pub(crate) fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Every scenario.
pub(crate) fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    scenarios.extend(linux::all());
    scenarios.extend(api::all());
    scenarios.extend(block::all());
    scenarios.extend(root::all());
    scenarios.extend(pmem::all());
    scenarios.extend(network::all());
    scenarios.extend(sockets::all());
    scenarios.extend(devices::all());
    scenarios.extend(rate::all());
    scenarios.extend(keeping::all());
    scenarios.extend(small::all());
    scenarios.extend(errors::all());
    scenarios.extend(faults::all());
    scenarios.extend(interrupted::all());
    scenarios.extend(hostile::all());
    scenarios.extend(time::all());
    scenarios.extend(clients::all());
    scenarios.extend(jails::all());
    scenarios.extend(packaging::all());
    // Last: their host does not trust its TSC any more.
    scenarios.extend(skew::all());
    scenarios
}

/// A source for the file at `path`.
pub(crate) fn file(path: &Path) -> Source {
    Source::Path(path.to_owned())
}

/// What a counter has come to, over all lines of metrics that a script has printed after "host metrics: ".
fn sum_of_metrics(output: &str, group: &str, name: &str) -> Result<u64> {
    let lines = output.lines();
    let lines: Vec<_> = lines
        .filter_map(|line| line.strip_prefix("host metrics: "))
        .collect();
    ensure!(!lines.is_empty(), "there are no metrics");
    lines.into_iter().try_fold(0, |sum, line| {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let count = line[group][name].as_u64();
        Ok(sum + count.with_context(|| format!("the metrics have no {group}.{name}"))?)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_scenarios_have_names_of_their_own_that_a_host_accepts() {
        let mut names = BTreeSet::new();
        for scenario in all() {
            let plain = |character: char| character.is_ascii_alphanumeric() || character == '-';
            assert!(scenario.name.chars().all(plain), "{}", scenario.name);
            assert!(
                names.insert(scenario.full_name()),
                "{} twice",
                scenario.full_name()
            );
        }
    }

    #[test]
    fn scenarios_after_which_a_host_does_not_trust_its_tsc_are_the_last_ones() {
        let lasts = all().into_iter().filter(|scenario| scenario.last);
        let lasts: Vec<_> = lasts.map(|scenario| scenario.full_name()).collect();
        assert_eq!(lasts, ["vmx/skew-moved", "vmx/skew-bare"]);
    }

    const HEADING: &str = "How each scenario was seen to fail";

    /// The names in the first column of the table under [`HEADING`], of rows whose other two say something.
    fn names_with_a_row() -> BTreeSet<String> {
        let (_, section) = include_str!("../../README.md")
            .split_once(&format!("\n## {HEADING}\n"))
            .expect("lab/README.md has the section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.flat_map(|row| {
            let columns: Vec<&str> = row.split('|').map(str::trim).collect();
            // The row begins and ends with a bar.
            let ["", names, broken, said, ""] = columns[..] else {
                panic!("lab/README.md: not three columns: {row}");
            };
            assert!(!broken.is_empty() && !said.is_empty(), "{row}");
            names.split('`').skip(1).step_by(2).map(str::to_owned)
        })
        .collect()
    }

    #[test]
    fn each_scenario_has_a_row_that_says_how_it_was_seen_to_fail() {
        let scenarios: BTreeSet<String> = all().iter().map(Scenario::full_name).collect();
        let rows = names_with_a_row();
        let missing: Vec<_> = scenarios.difference(&rows).collect();
        assert!(
            missing.is_empty(),
            "{missing:?} have no row in lab/README.md, \"{HEADING}\". A check that was never seen to fail \
             may be one that cannot. Break what the scenario is about in the product, by as little as a \
             mistake would (a constant, a check left out), run `cargo lab test NAME`, and see it fail with \
             a message that points at the break; if it passes, make it stricter. Undo the break, and add a \
             row: the scenario's name as `cargo lab test --list` has it, the break, what the scenario said."
        );
        let stale: Vec<_> = rows.difference(&scenarios).collect();
        assert!(
            stale.is_empty(),
            "lab/README.md, \"{HEADING}\", names {stale:?}, which `cargo lab test --list` does not have: \
             rename them there too, or remove them"
        );
    }

    #[test]
    fn outcome_of_a_late_script_has_no_status() {
        let outcome = Outcome::default();
        assert!(outcome.expect_status(0).is_err());
        assert!(
            Outcome {
                status: Some(1),
                ..Outcome::default()
            }
            .expect_status(0)
            .is_err()
        );
        assert!(
            Outcome {
                status: Some(0),
                ..Outcome::default()
            }
            .expect_status(0)
            .is_ok()
        );
    }

    #[test]
    fn outcome_line_is_found_whole_and_with_carriage_return() {
        let outcome = Outcome {
            stdout: b"a line\r\nb\n".to_vec(),
            ..Outcome::default()
        };
        assert!(outcome.expect_line("a line").is_ok());
        assert!(outcome.expect_line("a").is_err());
    }
}
