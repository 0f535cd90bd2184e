//! `skew-bare`: a guest without a timekeeper leaps with the skew, and hardly goes on after it.

use anyhow::{Context, Result, ensure};

use super::moved::{LARGE, LARGE_NS, NOTICED_NS, Phase, UNSEEN, told};
use crate::guest::witness::Sum;
use crate::scenario::Outcome;

/// The phases of the script, and how many sums are told in each.
const PHASES: [(&str, usize); 4] = [("home", 2), ("far", 2), ("back", 4), ("settled", 3)];
/// By how much a vCPU's clock leaps at least. Who tells of it may be on the other vCPU, and by the next sum all of it may
/// be lost again: the witness's own largest gap is what shows it.
const LEAP_NS: u64 = 2_900_000_000;

pub(super) fn check(outcome: &Outcome) -> Result<()> {
    let stderr = outcome.stderr_text();
    let told = told(&stderr)?;
    let names: Vec<_> = told.iter().map(|phase| phase.name).collect();
    let wanted = PHASES
        .iter()
        .flat_map(|(name, sums)| std::iter::repeat_n(*name, *sums));
    ensure!(
        wanted.eq(names.iter().copied()),
        "the phases were {names:?}"
    );
    let last = |name: &str| {
        let last = told.iter().rfind(|phase| phase.name == name);
        last.with_context(|| format!("no phase {name}"))
    };
    let (home, far) = (last("home")?, last("far")?);
    let gained = |phase: &Phase<'_>| {
        difference(home.sum.at_ns, phase.sum.at_ns) - difference(home.host_ns, phase.host_ns)
    };
    check_steps(&home.sum, &far.sum)?;
    let leads: Vec<_> = told.iter().map(gained).collect();
    let leaps = |name: &str| {
        let sums = told.iter().filter(|phase| phase.name == name);
        sums.map(|phase| phase.sum.monotonic_gap_ns).max()
    };
    ensure!(
        leaps("home") < Some(LEAP_NS) && leaps("far") >= Some(LEAP_NS),
        "a vCPU's clock is to leap by the skew, and did by {:?} ns",
        leaps("far")
    );
    let noticed = NOTICED_NS.cast_signed();
    let lead = leads.iter().copied().max().context("no sum")?;
    ensure!(
        lead <= LARGE_NS.cast_signed() + noticed,
        "the guest's clock leapt by more than the skew: {leads:?}"
    );
    for name in ["back", "settled"] {
        let left = gained(last(name)?);
        ensure!(
            left.abs() <= noticed,
            "{name}: its clock is to lose that again, and is ahead of the host's by {left} ns: {leads:?}"
        );
    }
    // No vCPU's own clock went back: what it was ahead by is lost by standing still.
    let end = last("settled")?.sum;
    ensure!(
        (end.still, end.back) == (0, 0),
        "a vCPU's TSC went back, or was the same twice: {end:?}"
    );
    let first = told.first().map(gained).context("no sum")?;
    ensure!(
        first.abs() <= noticed,
        "home: the guest's clock departed from the host's by {first} ns"
    );
    let on = told.windows(2).all(|pair| {
        let [from, to] = pair else { return false };
        from.sum.at_ns < to.sum.at_ns
    });
    ensure!(on, "the guest's clock went backwards: {told:?}");
    let kernel = stderr
        .lines()
        .find_map(|line| line.strip_prefix("clocksource "));
    ensure!(
        kernel == Some("hpet"),
        "the host's clocksource at the end: {kernel:?}"
    );
    outcome.expect_status(0)
}

/// From one time to another, in nanoseconds.
fn difference(from: u64, to: u64) -> i64 {
    to.wrapping_sub(from).cast_signed()
}

/// Before the skew nobody reads less than another; then one vCPU does, by all of it.
fn check_steps(home: &Sum, far: &Sum) -> Result<()> {
    home.ensure_time_went_on()?;
    ensure!(
        (LARGE - UNSEEN..=LARGE).contains(&far.tsc_step),
        "one vCPU is to leap by {LARGE} ticks, and the other one to be behind: {far:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::fault_rows;

    /// What the guest said.
    const SAID: &str = "\
phase home bare w sum 222ec6dbd ad6d9 0 0 0 0 0 0 56f2de 15df768 50 0 104632e at 21.78
phase home bare w sum 25f208170 1019e1 0 0 0 0 0 0 51eff0 17afaf2 7a 0 17cd92b at 22.82
phase far bare w sum 340cd78d5 178c58 0 0 31d09 23c345f1 31d07 b2d05536 240eaa8c b3afc8ec 100 0 b1902da4 at 23.68
phase far bare w sum 37c682a9d 22eb03 0 0 8b3ed 23c345f1 8b3eb b2d05536 319ead f8197a 129 0 17764 at 24.68
phase back bare w sum 42eb88346 3a0ea1 0 0 d8b6c 23c382aa d8b6a b2d18375 1eefbb81 132bb0421 1ba 0 12d31b96e at 28.10
phase back bare w sum 46a538a4f 465087 0 0 13a4ab 23c382aa 13a4a2 b2d18375 3ed190 1312d00 1e3 0 106766e at 30.30
phase back bare w sum 4a6efa50b 5261e6 0 0 197676 23c382aa 19765e b2d18375 4cee19 1312d00 20b 0 124faee at 32.52
phase back bare w sum 4e210d0ab 579870 0 0 197676 23c382aa 19765e b2d18375 3f09ef 13b31c4 235 0 143a3b8 at 33.63
phase settled bare w sum 51d3c6230 5cdc4d 0 0 197676 23c382aa 19765e b2d18375 3d4a54 13273a4 260 0 ed0215 at 34.59
phase settled bare w sum 559130bd8 62364d 0 0 197676 23c382aa 19765e b2d18375 395418 11ea478 288 0 10996e6 at 35.55
phase settled bare w sum 595bf04b0 679689 0 0 197676 23c382aa 19765e b2d18375 346114 105e57d 2b1 0 ecc895 at 36.51
clocksource hpet
";

    /// The same where the vCPU that stays at home told it all.
    const SAID_AT_HOME: &str = "\
phase home bare w sum 225900534 af26b 0 0 0 0 0 0 589cd8 1bb1051 50 0 16a61d3 at 98.87
phase home bare w sum 2609de709 10325a 0 0 0 0 0 0 5b712e 1c935ff 78 0 120e2c9 at 99.91
phase far bare w sum 29be63bf4 1a2886 0 0 44fc2 23c345f1 44fc1 b2d05536 23d1b703 b2e2e944 ff 0 b2a38e9d at 101.01
phase far bare w sum 2d7813baa 25a072 0 0 9e87f 23c345f1 9e87e b2d0554f 31bd39 f8b21d 127 0 327f0d at 102.01
phase back bare w sum 470955e60 42d7c6 0 0 f1ee6 23c38160 f1ede b2d17cea 23b5c87d 163a09ec0 1e5 0 16395ed6d at 106.35
phase back bare w sum 4ac302860 4f5725 0 0 155ab8 23c38160 155aa5 b2d17cea 3d2e2a 1312d00 20d 0 578b6d at 108.68
phase back bare w sum 4e800480c 5ab784 0 0 1a9ed4 23c38160 1a9eba b2d17cea 344b94 1312d00 237 0 7b96bb at 110.76
phase back bare w sum 52368c6f3 601bfb 0 0 1a9ed4 23c38160 1a9eba b2d17cea 364ddf 10f855b 261 0 e67eb8 at 111.70
phase settled bare w sum 55f66fc38 657ab5 0 0 1a9ed4 23c38160 1a9eba b2d17cea 46247d 15eb68a 28a 0 d8ccbe at 112.82
phase settled bare w sum 59a9f141b 6ad3bc 0 0 1a9ed4 23c38160 1a9eba b2d17cea 3f1174 13aeb29 2b2 0 104fa82 at 113.78
phase settled bare w sum 5d66bec5d 703ff9 0 0 1a9ed4 23c38160 1a9eba b2d17cea 4aa084 1752294 2dc 0 162133e at 114.75
clocksource hpet
";

    fn judged(stderr: &str) -> Result<()> {
        check(&Outcome {
            status: Some(0),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        })
    }

    #[test]
    fn check_of_a_guest_without_a_timekeeper_passes_and_each_fault_fails() {
        let rows = [
            ("phase settled", "phase later", "the phases"),
            (" at 21.78", " at 18.78", "home: the guest's clock departed"),
            // Another time of the host: the guest did not lose its lead when it came back, or later, or lost more.
            (" at 33.63", " at 30.63", "back: its clock is to lose"),
            (" at 36.51", " at 33.51", "settled: its clock is to lose"),
            (" at 36.51", " at 39.51", "settled: its clock is to lose"),
            ("559130bd8", "51d3c6230", "went backwards"),
            ("1019e1 0 0 0 0", "1019e1 0 0 1 50", "go backwards"),
            ("8b3ed 23c345f1", "8b3ed 4e11", "one vCPU is to leap"),
            ("679689 0 0", "679689 0 1", "TSC went back"),
            ("hpet", "tsc", "clocksource"),
        ];
        fault_rows::each_fails(SAID, &rows, judged);
        let rows = [
            ("b2e2e944", "b2e2e94", "a vCPU's clock is to leap"),
            ("at 106.35", "at 104.35", "more than the skew"),
        ];
        fault_rows::each_fails(SAID_AT_HOME, &rows, judged);
    }
}
