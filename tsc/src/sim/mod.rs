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

/// Runs `policy` in `scenario` beside a guest that is led by true time, whatever its TSC reads.
///
/// In [`run`] a guest waits until its TSC has come so far, and thus what it reads decides when it sleeps,
/// wakes and is moved: under another policy the scheduler draws other lots from the same seed, and two
/// policies are seen on two different histories. Here the history is one: the same vCPU reads at the
/// same instant on the same CPU under every policy. What the guest would read is all that differs, so that
/// two reports of one seed can be compared figure by figure. Whether the guest boots says nothing here.
///
/// ```
/// use tsc::sim::{PolicyKind, run_led, scenario};
/// let scenario = scenario("seed").unwrap();
/// let [ours, theirs] =
///     [PolicyKind::Targeted, PolicyKind::Unified2010].map(|policy| run_led(&scenario, policy, 1));
/// assert_eq!(ours.moves, theirs.moves);
/// ```
///
/// # Panics
/// When the scenario is not valid ([`Scenario::is_valid`]).
#[must_use]
pub fn run_led(scenario: &Scenario, policy: PolicyKind, seed: u64) -> Report {
    world::World::new(scenario, policy, seed)
        .led_by_true_time()
        .run()
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
