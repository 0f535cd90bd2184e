//! Hosts, schedulers and a guest, to try a policy on before a machine does.
//!
//! Nothing here decides an outcome. A host is counters that are functions of true time; a scheduler
//! puts, moves and wakes vCPUs; a small guest boots as Linux of 2010 did where time matters; the
//! policies of [`crate::policy`] see what they would see in a kernel and set offsets. Whether the
//! guest boots, what it reads and when, is observed. Everything follows from the scenario and one
//! seed.
//!
//! A backwards step is counted as the guest can see it: on one vCPU when a reading is less than the
//! reading before; across vCPUs when a reading is less than one that another vCPU made so long before
//! that the news of it could have arrived (a cache line's way between two cores).
#![expect(
    clippy::arithmetic_side_effects,
    reason = "plain integers of a few simulated minutes; an overflow here hurts nobody's guest"
)]

mod guest;
mod host;
mod observe;
mod plot;
mod report;
mod rng;
mod scenario;
mod world;

pub use guest::Stage;
pub use host::{Clocksource, CpuModel, HPET, HostEvent};
pub use plot::svg;
pub use report::{Boot, Point, PolicyKind, Report, SLEW_BOUND, Steps, table};
pub use scenario::{Host, Scenario, Scheduling, scenario, scenarios};

/// Runs `policy` in `scenario`; the same seed gives the same report.
///
/// ```
/// use tsc::sim::{PolicyKind, run, scenario};
/// let report = run(&scenario("ideal").unwrap(), PolicyKind::Targeted, 1);
/// assert!(report.booted());
/// assert_eq!(report.offset_writes, 0);
/// ```
///
/// # Panics
/// When the scenario is not valid ([`Scenario::is_valid`]).
#[must_use]
pub fn run(scenario: &Scenario, policy: PolicyKind, seed: u64) -> Report {
    world::World::new(scenario, policy, seed).run()
}

/// Runs each of the five policies in `scenario`.
///
/// # Panics
/// When the scenario is not valid ([`Scenario::is_valid`]).
#[must_use]
pub fn run_all(scenario: &Scenario, seed: u64) -> Vec<Report> {
    PolicyKind::ALL
        .iter()
        .map(|&policy| run(scenario, policy, seed))
        .collect()
}
