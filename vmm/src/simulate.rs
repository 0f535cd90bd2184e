//! `keeptime simulate`: what a policy does to a guest's clock on a host that misbehaves.
//!
//! The simulator itself is `tsc::sim`; here are its command line and its output.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};
use tsc::sim::{self, Boot, PolicyKind, Report, Scenario};
use tsc::stability::Mark;

use crate::output::{self, OutputError};
use crate::whole_file;

/// What to simulate, and how to show it.
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// The scenario; see --list
    #[arg(required_unless_present = "list", value_parser = scenario_names())]
    scenario: Option<String>,
    /// List the scenarios and what each is about
    #[arg(long, exclusive = true)]
    list: bool,
    /// A policy, as often as needed; when none is given, all but targeted-slew, which is targeted with
    /// time given back little by little
    #[arg(long, value_name = "POLICY", value_parser = policies())]
    policy: Vec<PolicyKind>,
    /// The same seed gives the same run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Draw guest time against true time, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print JSON, for scripts, instead of the table
    #[arg(long)]
    json: bool,
}

/// The simulation's results could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulateError {
    /// There is no scenario of that name.
    #[error("there is no scenario {0:?}; keeptime simulate --list shows them")]
    NoScenario(String),
    /// The report could not be printed.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The plot could not be written.
    #[error("cannot write the plot {path:?}; check its folder and the room on its disk")]
    Plot {
        /// Where it was to be.
        path: PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
}

fn scenario_names() -> PossibleValuesParser {
    PossibleValuesParser::new(sim::scenarios().iter().map(|scenario| scenario.name))
}

fn policies() -> impl TypedValueParser<Value = PolicyKind> {
    PossibleValuesParser::new(PolicyKind::SELECTABLE.map(PolicyKind::name))
        .map(|name| PolicyKind::from_name(&name).expect("the parser admits only names of policies"))
}

impl Simulate {
    /// Simulates and prints.
    pub(crate) fn run(&self) -> Result<(), SimulateError> {
        let Some(name) = &self.scenario else {
            return Ok(output::print(&list())?);
        };
        let scenario =
            sim::scenario(name).ok_or_else(|| SimulateError::NoScenario(name.clone()))?;
        let policies = if self.policy.is_empty() {
            PolicyKind::ALL.to_vec()
        } else {
            self.policy.clone()
        };
        let reports: Vec<_> = policies
            .into_iter()
            .map(|policy| sim::run(&scenario, policy, self.seed))
            .collect();
        output::print(&if self.json {
            let reports: Vec<_> = reports.iter().map(report_json).collect();
            format!(
                "{:#}\n",
                json!({ "scenario": name, "seed": self.seed, "reports": reports })
            )
        } else {
            table(&scenario, &reports)
        })?;
        self.plot
            .as_deref()
            .map_or(Ok(()), |path| plot(path, &reports))
    }
}

fn list() -> String {
    let scenarios = sim::scenarios();
    let width = scenarios
        .iter()
        .map(|scenario| scenario.name.len())
        .max()
        .unwrap_or(0);
    let line = |Scenario { name, story, .. }: &Scenario| format!("{name:width$}  {story}\n");
    scenarios.iter().map(line).collect()
}

fn table(scenario: &Scenario, reports: &[Report]) -> String {
    let mut text = format!(
        "{}: {}\n\n{}\n",
        scenario.name,
        scenario.story,
        sim::table(reports)
    );
    for report in reports {
        for mark in report.host_mark.iter().chain(&report.marks) {
            text.push_str(&format!("{}: {}\n", report.policy.name(), told(mark)));
        }
    }
    text
}

fn plot(path: &Path, reports: &[Report]) -> Result<(), SimulateError> {
    whole_file::put(path, sim::svg(reports).as_bytes()).map_err(|source| SimulateError::Plot {
        path: path.to_owned(),
        source,
    })
}

/// A mark in words.
fn told(mark: &Mark) -> String {
    format!("at {}: {}", mark.at, mark.cause)
}

/// A report without its plot; all times in nanoseconds.
fn report_json(report: &Report) -> Value {
    let boot = match report.boot {
        Boot::Booted { at } => json!({ "booted": true, "at_ns": at.get() }),
        Boot::Failed { at } => json!({ "booted": false, "gave_up_at": format!("{at:?}") }),
        Boot::Hung { at } => json!({ "booted": false, "hangs_at": format!("{at:?}") }),
    };
    json!({
        "policy": report.policy.name(),
        "boot": boot,
        "backwards_steps": report.backwards.count,
        "largest_backwards_step_ns": report.backwards.largest.get(),
        "backwards_steps_across_vcpus": report.across.count,
        "largest_backwards_step_across_vcpus_ns": report.across.largest.get(),
        "largest_lag_ns": report.largest_lag.get(),
        "largest_lead_ns": report.largest_lead.get(),
        "erased_ns": report.erased.get(),
        "offset_writes": report.offset_writes,
        "moves": report.moves,
        "host_condemned": report.host_mark.as_ref().map(told),
        "marks": report.marks.iter().map(told).collect::<Vec<_>>(),
        "watched_ns": report.watched.get(),
    })
}
