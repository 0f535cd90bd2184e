//! What three stops did to a guest's clocks.
//!
//! A stop is seen from both sides: the last look at the host's clock before it and the first one after it, and the
//! script's marks, between which the guest cannot have run.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Evidence, page};
use crate::guest::witness::{Look, Sum, Within};
use crate::scenario::Outcome;

/// What a guest's clocks may be off the policy by. As the users want it: databases hold their leases by
/// less than this.
const ERROR_NS: i128 = 50_000;
/// How closely that must have been read. A guest that keeps time by the kvmclock and its host are compared at one
/// instant; one that keeps it by the TSC asks the host between two readings, and an emulated host takes some 50 us to
/// answer, more on a busy machine.
const WIDEST_NS: i128 = 300_000;
/// What a frozen guest's clocks may move by.
const FROZEN_NS: i128 = 1_000_000;
/// How late a sleeper may wake on a host that has other work, too. A timer that a stop has lost, or that fires by
/// another clock than it should, is late by the stop's length.
const LATE_NS: u64 = 3_000_000_000;
/// A stop of the script.
const STOP_NS: i128 = 10_000_000_000;

/// The looks between two stops, and the guest's rate.
struct Phase<'a> {
    looks: &'a [Look],
    khz: i128,
}

/// What the guest's clocks lost against the host's from one phase to the next.
#[derive(Debug, Clone, Copy)]
struct Lost {
    /// `CLOCK_REALTIME`.
    clock: Within,
    tsc: Within,
}

impl Phase<'_> {
    /// Nanoseconds of so many ticks. The kernels keep a rate in whole kHz: that of the clock is its, to within half
    /// of one.
    fn nanoseconds(&self, ticks: Within) -> Within {
        Within {
            at_least: ticks.at_least * 2_000_000 / (2 * self.khz + 1) - 1,
            at_most: ticks.at_most * 2_000_000 / (2 * self.khz - 1) + 1,
        }
    }

    fn narrowest(&self, width: impl Fn(&Look) -> i128) -> Result<Look> {
        let narrowest = self.looks.iter().min_by_key(|look| width(look));
        narrowest
            .copied()
            .context("no look at the host between two stops")
    }

    fn lost(&self, next: &Self) -> Result<Lost> {
        let width = |look: &Look| look.ahead.at_most - look.ahead.at_least;
        let (before, after) = (self.narrowest(width)?, next.narrowest(width)?);
        let clock = before.ahead.change(after.ahead);
        // A look's TSC was read between two moments that a tick of the processor may lie between.
        let width = |look: &Look| {
            let ticks = look.tsc.at_most - look.tsc.at_least;
            width(look) + ticks * 1_000_000 / self.khz
        };
        let (before, after) = (self.narrowest(width)?, next.narrowest(width)?);
        let time = before.host_later().change(after.host_later());
        let run = self.nanoseconds(before.tsc.change(after.tsc));
        Ok(Lost {
            clock,
            tsc: run.change(time),
        })
    }
}

/// The two clocks lost `wanted`, to within `ERROR_NS`.
fn expect_lost(name: &str, lost: &Lost, wanted: Within) -> Result<()> {
    for (clock, lost) in [("CLOCK_REALTIME", lost.clock), ("TSC", lost.tsc)] {
        let off = wanted.change(lost);
        let width = lost.at_most - lost.at_least;
        ensure!(
            width <= WIDEST_NS,
            "{name}: the guest's {clock} was held against the host's to {width} ns only"
        );
        ensure!(
            off.at_most >= -ERROR_NS && off.at_least <= ERROR_NS,
            "{name}: the guest's {clock} lost {} to {} ns against the host's, not {} to {} ns as it should",
            lost.at_least,
            lost.at_most,
            wanted.at_least,
            wanted.at_most,
        );
    }
    Ok(())
}

fn nanoseconds(value: &Value) -> Result<i128> {
    let number = value
        .as_i64()
        .with_context(|| format!("{value} is no number"))?;
    Ok(i128::from(number))
}

const NOTHING: Within = Within {
    at_least: 0,
    at_most: 0,
};

pub(super) fn check(clocksource: &str, outcome: &Outcome) -> Result<()> {
    let evidence = Evidence::of(outcome)?;
    let testimony = &evidence.testimony;
    let found = evidence.report.value("clocksource")?;
    ensure!(found == clocksource, "the guest's clocksource: {found}");
    let troubles: Vec<_> = evidence.report.all("trouble").collect();
    ensure!(
        troubles.is_empty(),
        "the guest's kernel met trouble: {}",
        troubles.join("; ")
    );
    let total = testimony.total()?;
    ensure!(
        testimony.processors == 2 && testimony.blind == 0,
        "the host could not be asked"
    );
    ensure!(total.readings > 100_000, "only {} readings", total.readings);
    total.ensure_time_went_on()?;

    page::check(&testimony.looks)?;

    let in_force = &evidence.time["guest"]["tsc_khz_in_force"];
    let khz = nanoseconds(in_force)?;
    let runs_on = |a: &Look, b: &Look| a.host_later().change(b.host_later()).at_least < STOP_NS / 2;
    let phases = testimony.looks.chunk_by(runs_on);
    let phases: Vec<_> = phases.map(|looks| Phase { looks, khz }).collect();
    let count = phases.len();
    let Ok(phases): Result<[Phase<'_>; 4], _> = phases.try_into() else {
        anyhow::bail!("{} stops, not 3", count.saturating_sub(1));
    };
    let [first, second, third, fourth] = &phases;
    let (frozen, advanced) = (first.lost(second)?, second.lost(third)?);
    let unplanned = third.lost(fourth)?;
    page::check_markers(&phases.each_ref().map(|phase| phase.looks))?;
    judge(&evidence, &frozen, &advanced, &unplanned)
        .and_then(|()| sleepers(&testimony.sums, testimony.lost))
        .with_context(|| {
            format!("frozen {frozen:?}, advanced {advanced:?}, unplanned {unplanned:?}")
        })?;
    outcome.expect_status(0)
}

fn judge(evidence: &Evidence, frozen: &Lost, advanced: &Lost, unplanned: &Lost) -> Result<()> {
    let time = &evidence.time;
    let told = time["stops"].as_array().map(Vec::as_slice);
    let Some([freeze, advance]) = told else {
        anyhow::bail!("the report does not tell of two stops: {}", time["stops"]);
    };
    ensure!(
        freeze["policy"] == "freeze" && advance["policy"] == "advance",
        "the stops' policies"
    );

    // By the script's marks: paused at least from here to there.
    let paused = evidence.mark("freeze-resuming")? - evidence.mark("freeze-paused")?;
    let withheld = nanoseconds(&freeze["withheld_ns"])?;
    let moved = nanoseconds(&freeze["advanced_ns"])?;
    for (clock, lost) in [("CLOCK_REALTIME", frozen.clock), ("TSC", frozen.tsc)] {
        ensure!(
            lost.at_most >= paused,
            "freeze: the guest's {clock} went on: it lost at most {} ns in a pause of at least {paused} ns",
            lost.at_most
        );
    }
    ensure!(
        (0..FROZEN_NS).contains(&moved),
        "freeze: the guest's clocks moved by {moved} ns"
    );
    let error = nanoseconds(&freeze["elapsed_error_ns"])?;
    let told = |ns: i128, error: i128| Within {
        at_least: ns - error,
        at_most: ns + error,
    };
    expect_lost("freeze", frozen, told(withheld, error))?;
    expect_lost(
        "freeze",
        frozen,
        told(-nanoseconds(&freeze["adjusted_ns"])?, 0),
    )?;
    expect_lost("advance", advanced, NOTHING)?;
    expect_lost("SIGSTOP", unplanned, NOTHING)?;

    unplanned_stop(evidence)
}

/// The report tells of the SIGSTOP: a time that the script's marks allow.
fn unplanned_stop(evidence: &Evidence) -> Result<()> {
    let events = &evidence.time["events"];
    // A host without a CPU for its guest may be told besides.
    let told = events["latest"].as_array().into_iter().flatten();
    let mut by_signal = told.filter(|event| event["by_signal"] == true);
    let event = by_signal.next();
    let event = event.with_context(|| format!("no stop by a signal in {events}"))?;
    ensure!(
        by_signal.next().is_none(),
        "two stops by a signal in {events}"
    );
    let told = Within {
        at_least: nanoseconds(&event["at_least_ns"])?,
        at_most: nanoseconds(&event["at_most_ns"])?,
    };
    let at_least = evidence.mark("stop-continuing")? - evidence.mark("stop-stopped")?;
    let at_most = evidence.mark("stop-after")? - evidence.mark("stop-before")?;
    ensure!(
        told.at_least <= at_most && told.at_most >= at_least,
        "the report tells of a stop of {told:?}, which was one of {at_least} to {at_most} ns"
    );
    Ok(())
}

/// Those who slept through a stop wake when the policy says, and nobody before or never.
fn sleepers(sums: &[Sum], lost: u64) -> Result<()> {
    let total = sums.last().context("no sum")?;
    ensure!(
        total.early == 0 && lost == 0,
        "{} sleepers woke early, {lost} never",
        total.early
    );
    // Frozen, no time passes for them. Where time passes, those are late who should have woken meanwhile, who may be
    // heard of a sum before the processors are, and work off the times that are over for some sums.
    let passed = |sum: &Sum| i128::from(sum.monotonic_gap_ns) > STOP_NS / 2;
    let first = sums.iter().position(passed);
    let first = first
        .context("no stop in which time passed")?
        .saturating_sub(1);
    let (before, after) = sums.split_at(first);
    let latest = |sums: &[Sum]| sums.iter().map(|sum| sum.latest_ns).max().unwrap_or(0);
    ensure!(
        latest(before) <= LATE_NS,
        "a sleeper woke {} ns after its time, before a stop in which time passed",
        latest(before)
    );
    let wanted = u64::try_from(STOP_NS)?;
    ensure!(
        (wanted - LATE_NS..wanted + LATE_NS).contains(&latest(after)),
        "the latest sleeper woke {} ns after its time, in stops of {wanted} ns",
        latest(after)
    );
    Ok(())
}
