//! Jailed microVMs side by side and one after the other, on this machine's KVM.

use anyhow::{Context, Result};

use crate::host::image::Files;
use crate::scenario::{LAUNCHER, Needs, Outcome, Place, Scenario, file};

/// MicroVMs at once.
const AT_ONCE: u32 = 20;
/// Launches.
const CYCLES: u32 = 500;

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let script = format!(
        "exec ./lab --launcher ./{LAUNCHER} soak --jailer ./jailer --vms {AT_ONCE} --cycles {CYCLES}\n"
    );
    let soak = Scenario::new(Place::Native, "soak", script)
        .seconds(30, 300)
        .needs(Needs::Root)
        .files(|workshop| {
            let own = std::env::current_exe().context("no program of our own")?;
            Ok(Files::from([
                ("lab".to_owned(), file(&own)),
                ("jailer".to_owned(), file(&workshop.jailer()?)),
            ]))
        })
        .check(check);
    vec![soak]
}

/// The soak judges itself; that it came to its end is ours to see.
fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    outcome.expect_line("nothing is left")
}
