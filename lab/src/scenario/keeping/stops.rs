//! What three stops did to a guest's clocks.
//!
//! A stop is seen from both sides: the last look at the host's clock before it and the first one after it, and the
//! script's marks, between which the guest cannot have run.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Evidence, page};
use crate::guest::witness::{Look, Sum, Within};
use crate::scenario::Outcome;

/// What a guest's clocks may be off the policy by, by all that was read of them. As the users want it: databases
/// hold their leases by less than this. Seen of guests that keep time by the kvmclock, and are compared with their host
/// at one instant: 1 us for the clock on `svm-tsc` and 0.4 us on `vmx`. The TSC is known to half a kHz, on `vmx`
/// at 200 MHz to 2.5 ppm: 31 us in the twelve seconds between two looks, and no more than 43 us with the looks' width.
const ERROR_NS: i128 = 50_000;
/// The same of a guest that asks its host between two readings on a host that is slow to answer. On `svm-tsc` they are
/// 40 to 47 us apart at best, so that what lies between two looks is known to 87 us or so: no more than 66 us were seen.
const ERROR_OF_SLOW_READINGS_NS: i128 = 100_000;
/// What a frozen guest's clocks may move by.
const FROZEN_NS: i128 = 1_000_000;
/// How late a sleeper may wake on a host that has other work, too: 43 ms were seen on `svm-tsc` by itself and 439 ms
/// beside another emulated host, and 20 ms on `vmx`. A timer that a stop has lost, or that fires by another clock
/// than it should, is late by the stop's length.
const LATE_NS: i128 = 1_000_000_000;
/// The shortest time between two times that somebody sleeps until: see `period` in `lab/guests/witness.c`.
const PERIOD_NS: i128 = 100_000_000;
/// No stop of the script is as short, and no guest that runs is as long without a look.
const SHORTEST_STOP_NS: i128 = 4_000_000_000;

/// What a guest must show.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) clocksource: &'static str,
    /// What its clocks may be off the policy by.
    pub(super) error_ns: i128,
    /// The stops that nobody plans, by the names of the script's marks, after `freeze` and `advance`.
    pub(super) unplanned: &'static [Unplanned],
}

impl Terms {
    /// Three stops, and clocks that are read closely.
    pub(super) const fn close(clocksource: &'static str) -> Self {
        Self {
            clocksource,
            error_ns: ERROR_NS,
            unplanned: &[SIGSTOP],
        }
    }

    /// And a stop more.
    pub(super) const fn with_a_frozen_cgroup(self) -> Self {
        Self {
            unplanned: &[SIGSTOP, FROZEN_CGROUP],
            ..self
        }
    }

    /// And nothing that nobody planned.
    pub(super) const fn without_unplanned(self) -> Self {
        Self {
            unplanned: &[],
            ..self
        }
    }

    pub(super) const fn with_slow_readings(self) -> Self {
        Self {
            error_ns: ERROR_OF_SLOW_READINGS_NS,
            ..self
        }
    }
}

/// A stop that nobody planned.
#[derive(Clone, Copy)]
pub(super) struct Unplanned {
    pub(super) name: &'static str,
    /// That the report is to tell it as one by a signal.
    pub(super) by_signal: bool,
}

const SIGSTOP: Unplanned = Unplanned {
    name: "SIGSTOP",
    by_signal: true,
};
const FROZEN_CGROUP: Unplanned = Unplanned {
    name: "cgroup",
    by_signal: false,
};

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

    /// The look that was read most closely: of several the last, or the first.
    fn narrowest(&self, width: impl Fn(&Look) -> i128, last: bool) -> Result<Look> {
        let looks = self.looks.iter();
        let narrowest = if last {
            looks.rev().min_by_key(|look| width(look))
        } else {
            looks.min_by_key(|look| width(look))
        };
        narrowest
            .copied()
            .context("no look at the host between two stops")
    }

    fn lost(&self, next: &Self) -> Result<Lost> {
        let around = |width: &dyn Fn(&Look) -> i128| -> Result<_> {
            Ok((self.narrowest(width, true)?, next.narrowest(width, false)?))
        };
        let width = |look: &Look| look.ahead.at_most - look.ahead.at_least;
        let (before, after) = around(&width)?;
        let clock = before.ahead.change(after.ahead);
        // A look's TSC was read between two moments that a tick of the processor may lie between.
        let width = |look: &Look| {
            let ticks = look.tsc.at_most - look.tsc.at_least;
            width(look) + ticks * 1_000_000 / self.khz
        };
        let (before, after) = around(&width)?;
        let time = before.host_later().change(after.host_later());
        let run = self.nanoseconds(before.tsc.change(after.tsc));
        Ok(Lost {
            clock,
            tsc: run.change(time),
        })
    }
}

/// The two clocks lost `wanted`: whatever was read of them is within `error` of it.
fn expect_lost(name: &str, lost: &Lost, wanted: Within, error: i128) -> Result<()> {
    for (clock, lost) in [("CLOCK_REALTIME", lost.clock), ("TSC", lost.tsc)] {
        ensure!(
            lost.at_least >= wanted.at_least - error && lost.at_most <= wanted.at_most + error,
            "{name}: the guest's {clock} lost {} to {} ns against the host's, not {} to {} ns as it should, to within {error} ns",
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

pub(super) fn check(terms: &Terms, outcome: &Outcome) -> Result<()> {
    let evidence = Evidence::of(outcome)?;
    let testimony = &evidence.testimony;
    let found = evidence.report.value("clocksource")?;
    ensure!(
        found == terms.clocksource,
        "the guest's clocksource: {found}"
    );
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
    let runs_on =
        |a: &Look, b: &Look| a.host_later().change(b.host_later()).at_least < SHORTEST_STOP_NS;
    let phases = testimony.looks.chunk_by(runs_on);
    let phases: Vec<_> = phases.map(|looks| Phase { looks, khz }).collect();
    let stops = 2 + terms.unplanned.len();
    ensure!(
        phases.len() == stops + 1,
        "{} stops, not {stops}",
        phases.len().saturating_sub(1)
    );
    let pairs = phases.iter().zip(phases.iter().skip(1));
    let lost = pairs.map(|(before, after)| before.lost(after));
    let lost: Vec<_> = lost.collect::<Result<_>>()?;
    let looks: Vec<_> = phases.iter().map(|phase| phase.looks).collect();
    page::check_markers(&looks)?;
    let unplanned = terms.unplanned.iter().map(|stop| stop.name);
    let went_on = std::iter::once("advance").chain(unplanned);
    let went_on: Vec<_> = went_on
        .map(|name| evidence.stop(name))
        .collect::<Result<_>>()?;
    judge(&evidence, terms, &lost)
        .and_then(|()| sleepers(&testimony.sums, testimony.lost, &went_on))
        .with_context(|| format!("freeze, advance, and unplanned: {lost:?}"))?;
    outcome.expect_status(0)
}

fn judge(evidence: &Evidence, terms: &Terms, lost: &[Lost]) -> Result<()> {
    let time = &evidence.time;
    let [frozen, advanced, unplanned @ ..] = lost else {
        anyhow::bail!("only {} stops", lost.len());
    };
    let told = time["stops"].as_array().map(Vec::as_slice);
    let Some([freeze, advance]) = told else {
        anyhow::bail!("the report does not tell of two stops: {}", time["stops"]);
    };
    ensure!(
        freeze["policy"] == "freeze" && advance["policy"] == "advance",
        "the stops' policies"
    );

    let paused = evidence.stop("freeze")?.at_least;
    let withheld = nanoseconds(&freeze["withheld_ns"])?;
    let moved = nanoseconds(&freeze["advanced_ns"])?;
    for (clock, lost) in [("CLOCK_REALTIME", frozen.clock), ("TSC", frozen.tsc)] {
        ensure!(
            lost.at_least >= paused,
            "freeze: the guest's {clock} went on: it lost {} to {} ns in a pause of at least {paused} ns",
            lost.at_least,
            lost.at_most
        );
    }
    ensure!(
        (0..FROZEN_NS).contains(&moved),
        "freeze: the guest's clocks moved by {moved} ns"
    );
    let error = nanoseconds(&freeze["elapsed_error_ns"])?;
    let within = |ns: i128, error: i128| Within {
        at_least: ns - error,
        at_most: ns + error,
    };
    let adjusted = -nanoseconds(&freeze["adjusted_ns"])?;
    expect_lost("freeze", frozen, within(withheld, error), terms.error_ns)?;
    expect_lost("freeze", frozen, within(adjusted, 0), terms.error_ns)?;
    expect_lost("advance", advanced, NOTHING, terms.error_ns)?;
    for (stop, lost) in terms.unplanned.iter().zip(unplanned) {
        expect_lost(stop.name, lost, NOTHING, terms.error_ns)?;
        unplanned_stop(stop, evidence.stop(stop.name)?, &time["events"])?;
    }
    Ok(())
}

/// The report tells of a stop that nobody planned: once, and a time that the script's marks allow.
fn unplanned_stop(stop: &Unplanned, seen: Within, events: &Value) -> Result<()> {
    let Unplanned { name, by_signal } = stop;
    let mut found = Vec::new();
    for event in events["latest"].as_array().into_iter().flatten() {
        if event["what"] == "unplanned_stop" && event["by_signal"] == *by_signal {
            let told = Within {
                at_least: nanoseconds(&event["at_least_ns"])?,
                at_most: nanoseconds(&event["at_most_ns"])?,
            };
            // A host without a CPU for its guest may be told besides, as one that is not by a signal.
            if *by_signal || told.at_most >= SHORTEST_STOP_NS {
                found.push(told);
            }
        }
    }
    let &[told] = found.as_slice() else {
        anyhow::bail!("{name}: not one stop, by a signal: {by_signal}, but {found:?} in {events}");
    };
    ensure!(
        told.at_least <= seen.at_most && told.at_most >= seen.at_least,
        "{name}: the report tells of a stop of {told:?}, which was one of {seen:?} ns"
    );
    Ok(())
}

/// Those who slept through a stop wake when the policy says, and nobody before or never. `went_on`: how long the stops
/// were in which time passed.
fn sleepers(sums: &[Sum], lost: u64, went_on: &[Within]) -> Result<()> {
    let total = sums.last().context("no sum")?;
    ensure!(
        total.early == 0 && lost == 0,
        "{} sleepers woke early, {lost} never",
        total.early
    );
    // Frozen, no time passes for them, and no sum is apart from the one before it.
    let apart = |a: &Sum, b: &Sum| i128::from(b.at_ns) - i128::from(a.at_ns) < SHORTEST_STOP_NS;
    let phases: Vec<_> = sums.chunk_by(apart).collect();
    let Some((before, after)) = phases.split_first() else {
        anyhow::bail!("no sum");
    };
    ensure!(
        after.len() == went_on.len(),
        "time passed in {} stops, not {}",
        after.len(),
        went_on.len()
    );
    let latest = |sums: &[Sum]| {
        let latest = sums.iter().map(|sum| i128::from(sum.latest_ns));
        latest.max().unwrap_or(0)
    };
    ensure!(
        latest(before) <= LATE_NS,
        "a sleeper woke {} ns after its time, before a stop in which time passed",
        latest(before)
    );
    // Where time passes, those are late who should have woken meanwhile: the first of them soon after the beginning.
    for (sums, stop) in after.iter().zip(went_on) {
        let wanted = stop.at_least - PERIOD_NS..=stop.at_most + LATE_NS;
        ensure!(
            wanted.contains(&latest(sums)),
            "the latest sleeper woke {} ns after its time, in a stop of {stop:?} ns",
            latest(sums)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
