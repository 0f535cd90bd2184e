//! `skew-moved`: what became of the guest with a timekeeper, and of the one without.

mod near;

use std::iter;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::ensure_is;
use crate::guest::witness::Sum;
use crate::scenario::Outcome;

/// The script's skews, in ticks at 200 MHz: 100 us and 3 s.
const SMALL: u64 = 20_000;
pub(super) const LARGE: u64 = 600_000_000;
/// What passes between two vCPUs' readings, so that one is seen less behind another than it is.
pub(super) const UNSEEN: u64 = 10_000;
/// Of so many readings one may be behind the other vCPU's, once KVM compensates: that is for a moment after a move. Of
/// vCPUs that are left apart every fourth was.
const READINGS_TO_A_STEP: u64 = 50;
/// The skew as it is measured.
const MEASURED_TICKS: u64 = 200;
const VCPUS: usize = 2;
/// A guest tells a sum once a second of its own clock, and the script may have waited for the other guest meanwhile, and
/// looks ten times a second.
pub(super) const NOTICED_NS: u64 = 1_250_000_000;
/// 3 s, by which the host's own clock leaps or stands still when the skew of seconds begins and ends.
pub(super) const LARGE_NS: u64 = 3_000_000_000;
/// The phases of the script.
const PHASES: [(&str, &str); 15] = [
    ("ahead", "kept"),
    ("ahead", "bare"),
    ("behind", "kept"),
    ("behind", "bare"),
    ("apart", "kept"),
    ("apart", "bare"),
    ("later", "kept"),
    ("later", "bare"),
    ("far", "kept"),
    ("far", "bare"),
    ("back", "kept"),
    ("by600000000", "kept"),
    ("by-600000000", "kept"),
    ("by20000", "kept"),
    ("by-20000", "kept"),
];
/// Those in which the host's own clock is off.
const OFF: [&str; 2] = ["far", "back"];

/// What a guest said, and when.
#[derive(Debug)]
pub(super) struct Phase<'a> {
    pub(super) name: &'a str,
    guest: &'a str,
    pub(super) sum: Sum,
    pub(super) host_ns: u64,
}

pub(super) fn check(outcome: &Outcome) -> Result<()> {
    let stderr = outcome.stderr_text();
    let phases = told(&stderr)?;
    let names: Vec<_> = phases
        .iter()
        .map(|phase| (phase.name, phase.guest))
        .collect();
    ensure!(names == PHASES, "the phases were {names:?}");
    for guest in ["kept", "bare"] {
        check_pace(phases.iter().filter(|phase| phase.guest == guest))?;
    }
    let [
        ahead,
        bare_ahead,
        behind,
        bare_behind,
        apart,
        bare_apart,
        later,
        bare_later,
        far,
        bare_far,
        back,
        ahead_by_seconds,
        behind_by_seconds,
        ahead_by_little,
        behind_by_little,
    ] = std::array::from_fn(|index| phases[index].sum);
    near::check_sums([ahead, behind], [bare_ahead, bare_behind])
        .context("at half a microsecond")?;
    near::check_report(&report(&stderr, "near")?).context("at half a microsecond")?;
    check_bare(bare_apart, bare_later, bare_far).context("the guest without a timekeeper")?;
    let compensated = [
        back,
        ahead_by_seconds,
        behind_by_seconds,
        ahead_by_little,
        behind_by_little,
    ];
    check_kept([apart, later, far], compensated).context("the guest with a timekeeper")?;
    check_report(&report(&stderr, "report")?)?;
    outcome.expect_status(0)
}

/// The time report in the script's line that begins with this word.
fn report(stderr: &str, word: &str) -> Result<Value> {
    let report = stderr
        .lines()
        .find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
        .with_context(|| format!("there is no time report after {word:?}"))?;
    serde_json::from_str(report).context("the time report is no JSON")
}

/// The phases that the script told of.
pub(super) fn told(stderr: &str) -> Result<Vec<Phase<'_>>> {
    let lines = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("phase "));
    lines.map(phase).collect()
}

fn phase(line: &str) -> Result<Phase<'_>> {
    let parts = line.split_once(" w sum ").and_then(|(phase, rest)| {
        let (name, guest) = phase.split_once(' ')?;
        let (sum, at) = rest.split_once(" at ")?;
        // /proc/uptime has hundredths.
        let (seconds, hundredths) = at.split_once('.').filter(|(_, part)| part.len() == 2)?;
        let [seconds, hundredths] = [seconds, hundredths].map(|part| part.parse::<u64>().ok());
        Some((
            name,
            guest,
            sum,
            (seconds? * 100 + hundredths?) * 10_000_000,
        ))
    });
    let (name, guest, sum, host_ns) = parts.with_context(|| format!("no sum in {line:?}"))?;
    let sum = Sum::parse(sum)?;
    Ok(Phase {
        name,
        guest,
        sum,
        host_ns,
    })
}

/// From one phase to the next a guest goes on, and its clock with the host's, as far as the host's can be relied on: it
/// neither leaps nor stands still by itself.
fn check_pace<'a>(phases: impl Iterator<Item = &'a Phase<'a>> + Clone) -> Result<()> {
    for (from, to) in phases.clone().zip(phases.skip(1)) {
        ensure!(
            from.sum.readings < to.sum.readings && from.sum.at_ns < to.sum.at_ns,
            "the guest did not go on: {from:?}, then {to:?}"
        );
        let passed = to.host_ns.saturating_sub(from.host_ns);
        let off = (to.sum.at_ns - from.sum.at_ns).abs_diff(passed);
        let most = if OFF.contains(&to.name) { LARGE_NS } else { 0 } + NOTICED_NS;
        ensure!(
            off <= most,
            "the guest's clock departed from the host's by {off} ns: {from:?}, then {to:?}"
        );
    }
    Ok(())
}

/// It shows a leap, and vCPUs that read less than each other for as long as they are apart: else the other guest
/// would prove nothing.
fn check_bare(apart: Sum, later: Sum, far: Sum) -> Result<()> {
    ensure!(
        (SMALL - UNSEEN..=SMALL).contains(&later.tsc_step),
        "its vCPUs are to read up to {SMALL} ticks less than each other: {later:?}"
    );
    ensure!(
        later.tsc_steps > apart.tsc_steps,
        "its vCPUs are to stay apart: {apart:?}, then {later:?}"
    );
    ensure!(
        (LARGE - UNSEEN..=LARGE).contains(&far.tsc_step),
        "one vCPU is to leap by {LARGE} ticks, and the other one to be behind: {far:?}"
    );
    ensure!(
        far.tsc_steps > later.tsc_steps,
        "its vCPUs are to be apart again: {later:?}, then {far:?}"
    );
    Ok(())
}

/// No vCPU's time stands still or goes backwards by itself; one vCPU may read less than another from its move until
/// they go on together, and never after that. Once KVM compensates, it has a vCPU go on from what it read last, and takes
/// it forward, so that it is behind the other one for a moment at most.
fn check_kept(carried: [Sum; 3], compensated: [Sum; 5]) -> Result<()> {
    let [apart, later, far] = carried;
    for sum in carried.iter().chain(&compensated) {
        ensure!(
            (sum.still, sum.back) == (0, 0),
            "a vCPU's time stood still or went backwards: {sum:?}"
        );
    }
    ensure!(
        later.tsc_step <= SMALL && far.tsc_step <= LARGE,
        "a vCPU read less than another by more than the skew: {later:?}, {far:?}"
    );
    ensure!(
        apart.tsc_steps == later.tsc_steps && apart.monotonic_steps == later.monotonic_steps,
        "its vCPUs are apart again: {apart:?}, then {later:?}"
    );
    for (from, to) in iter::once(&far).chain(&compensated).zip(&compensated) {
        let most = to.readings.saturating_sub(from.readings) / READINGS_TO_A_STEP;
        let tsc = to.tsc_steps.saturating_sub(from.tsc_steps);
        let monotonic = to.monotonic_steps.saturating_sub(from.monotonic_steps);
        ensure!(
            tsc.max(monotonic) <= most,
            "KVM's compensation left its vCPUs apart: {from:?}, then {to:?}"
        );
    }
    Ok(())
}

/// What happened and when.
fn check_report(report: &Value) -> Result<()> {
    let events = report["events"]["latest"]
        .as_array()
        .context("no events are told")?;
    for event in events {
        ensure!(
            event["at_ns"].as_u64() > Some(0),
            "an event without a time: {event}"
        );
    }
    let of = |what: &'static str| events.iter().filter(move |event| event["what"] == what);
    for skew in [SMALL, LARGE] {
        let found = of("skew").any(|event| {
            let bound = |name: &str| Some(event[name].as_i64()?.unsigned_abs());
            let near = |bound: u64| bound.abs_diff(skew) <= MEASURED_TICKS;
            bound("at_least_ticks").is_some_and(near) && bound("at_most_ticks").is_some_and(near)
        });
        ensure!(found, "a skew of {skew} ticks is not told: {events:?}");
    }
    let restarts = of("restart")
        .filter(|event| event["cause"] == "skew")
        .collect::<Vec<&Value>>();
    for skew in [SMALL, LARGE] {
        let found = restarts.iter().any(|event| {
            let forward = event["forward_ticks"].as_array();
            let forward = forward
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .max();
            event["seen_in_force"] == true
                && forward.is_some_and(|by| by.abs_diff(skew) <= MEASURED_TICKS)
        });
        ensure!(
            found,
            "nobody was taken forward by {skew} ticks: {restarts:?}"
        );
    }
    for vcpu in 0..VCPUS {
        let forward = |event: &&Value| event["forward_ticks"][vcpu].as_u64();
        let forward: Vec<_> = restarts.iter().filter_map(forward).collect();
        let all: u64 = forward.iter().sum();
        ensure!(
            forward.len() == restarts.len() && all <= VCPUS as u64 * LARGE,
            "vCPU {vcpu} was taken forward by more than the skew for each vCPU: {restarts:?}"
        );
    }
    ensure!(
        of("kernel_mark").count() == 1,
        "the kernel's mark is to be told once: {events:?}"
    );
    ensure!(
        report["events"]["kernel_compensations"].as_u64() > Some(0),
        "KVM's compensation was not noticed: {}",
        report["events"]
    );
    let is = |pointer: &str, wanted: &Value| ensure_is(report, pointer, wanted);
    is("/placement/mode", &"off".into())?;
    is("/host/clocksource", &"hpet".into())
}

#[cfg(test)]
mod tests;
