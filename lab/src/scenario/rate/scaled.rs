//! Guests whose rate the hardware scales: what a guest finds its rate to be, what its TSC counts in a time of the
//! host's, and what its clock makes of it.

use anyhow::{Context, Result, ensure};

use super::{line, number};
use crate::guest::witness::{Look, Within};
use crate::scenario::keeping::Evidence;
use crate::scenario::{LAUNCHER, Outcome};

/// What a rate may be off by. A kernel keeps it in whole kHz, and rounds down what the kvmclock's page says
/// (`pvclock_tsc_khz` in arch/x86/kernel/pvclock.c).
const QUANTUM_KHZ: i128 = 1;
/// For how long each guest must have been held against its host: by its own looks, and by the launcher.
const HELD_NS: i64 = 10_000_000_000;
/// How far off its line a guest's clock may be proven at any time: by a whole kHz of the lower rate in ten seconds.
const OFF_LINE_NS: u64 = 100_000;

/// What a guest's rate is to be on a host with one.
type Rule = fn(i64) -> i64;

/// The two guests of the script, and what it makes of the host's rate for them, in whole kHz: a kernel finds a kHz more
/// or less at each boot.
const GUESTS: [(&str, Rule); 2] = [("half", |host| host / 2), ("fast", |host| host / 10 * 17)];

pub(super) fn check(outcome: &Outcome) -> Result<()> {
    let host = number(line(&outcome.stderr_text(), "host")?)?;
    for (name, rate) in GUESTS {
        let guest = of(name, outcome);
        let told = number(line(&guest.stderr_text(), "rate")?)?;
        ensure!(
            told == rate(host),
            "{name}: a rate of {told} kHz was asked for on a host of {host}"
        );
        judge(&guest, told).with_context(|| format!("the guest at {told} kHz"))?;
    }
    outcome.expect_status(0)
}

/// What came out of one of the guests.
fn of(name: &str, outcome: &Outcome) -> Outcome {
    let own = |text: String| {
        let lines = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix(' ')?;
            Some(format!("{rest}\n"))
        });
        lines.collect::<String>().into_bytes()
    };
    Outcome {
        status: outcome.status,
        stdout: own(outcome.stdout_text()),
        stderr: own(outcome.stderr_text()),
    }
}

fn judge(outcome: &Outcome, asked: i64) -> Result<()> {
    let evidence = Evidence::of(outcome)?;
    let troubles: Vec<_> = evidence.report.all("trouble").collect();
    ensure!(
        troubles.is_empty(),
        "its kernel met trouble: {}",
        troubles.join("; ")
    );
    let clocksource = evidence.report.value("clocksource")?;
    ensure!(clocksource == "tsc", "its clocksource: {clocksource}");
    let total = evidence.testimony.total()?;
    total.ensure_time_went_on()?;
    let found = calibrated(evidence.report.all("log"))?;
    let looks = &evidence.testimony.looks;
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        anyhow::bail!("no look at the host's clock");
    };
    let khz = i128::from(asked);
    ticked(first, last, khz)?;
    ensure!(
        (found - khz).abs() <= QUANTUM_KHZ,
        "its kernel found {found} kHz"
    );
    went_on(first, last, found - khz, found)?;
    report(&evidence.time, asked)
}

/// What the launcher says of it.
fn report(time: &serde_json::Value, asked: i64) -> Result<()> {
    let guest = &time["guest"];
    for key in ["tsc_khz_asked", "tsc_khz_in_force"] {
        ensure!(guest[key] == asked, "{key} is {}", guest[key]);
    }
    ensure!(
        guest["how"] == "scaled",
        "its rate is kept by {}",
        guest["how"]
    );
    let history = time["error_history"].as_array().map(Vec::as_slice);
    let Some([first, .., last]) = history else {
        anyhow::bail!("{LAUNCHER} did not watch its clock");
    };
    let [from, to] = [&first["from_ns"], &last["to_ns"]].map(|at| at.as_i64().unwrap_or(0));
    ensure!(
        to - from >= HELD_NS,
        "its clock was watched for {} ns only",
        to - from
    );
    let largest = guest["error"]["largest_ns"].as_i64();
    ensure!(
        largest.is_some_and(|largest| largest.unsigned_abs() <= OFF_LINE_NS),
        "its clock was off its line by {largest:?} ns"
    );
    Ok(())
}

/// The rate in kHz that a kernel says it has found.
fn calibrated<'a>(mut log: impl Iterator<Item = &'a str>) -> Result<i128> {
    let found = log.find_map(|line| {
        let (_, rest) = line.split_once("tsc: Detected ")?;
        let (mhz, _) = rest.split_once(" MHz")?;
        let (whole, thousandths) = mhz.split_once('.')?;
        let digits = format!("{whole}{thousandths}");
        digits.parse().ok().filter(|_| thousandths.len() == 3)
    });
    found.context("its kernel does not say which rate it found")
}

/// From one look to another the TSC counted what `khz` makes of the host's time: by all that was read, to within a
/// quantum.
fn ticked(first: &Look, last: &Look, khz: i128) -> Result<()> {
    let time = first.host_later().change(last.host_later());
    let ticks = first.tsc.change(last.tsc);
    ensure!(
        time.at_least >= i128::from(HELD_NS),
        "{} ns only between its looks at the host",
        time.at_least
    );
    // Ticks in a second, and the seconds' nanoseconds: bounds on the rate in kHz, of both rounded outward.
    let rate = Within {
        at_least: ticks.at_least * 1_000_000 / time.at_most,
        at_most: (ticks.at_most * 1_000_000 + time.at_least - 1) / time.at_least,
    };
    ensure!(
        rate.at_least >= khz - QUANTUM_KHZ && rate.at_most <= khz + QUANTUM_KHZ,
        "its TSC ticked at {} to {} kHz",
        rate.at_least,
        rate.at_most
    );
    Ok(())
}

/// Meanwhile its clock went on by what the kernel makes of its ticks, that has `found` a rate with `more` kHz than
/// there are: by all that was read, to within a quantum.
fn went_on(first: &Look, last: &Look, more: i128, found: i128) -> Result<()> {
    let time = first.host_later().change(last.host_later());
    let drift = first.ahead.change(last.ahead);
    let [wanted, quantum] = [more, QUANTUM_KHZ].map(|khz| time.at_most * khz / found);
    ensure!(
        drift.at_least >= wanted - quantum && drift.at_most <= wanted + quantum,
        "its clock lost {} to {} ns against the host's in {} ns, not {wanted} as at {found} kHz",
        drift.at_least,
        drift.at_most,
        time.at_most
    );
    Ok(())
}

#[cfg(test)]
mod tests;
