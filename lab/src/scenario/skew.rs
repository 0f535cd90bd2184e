//! Guests on a host one of whose CPUs has a skewed TSC: 3 s, 100 us or 500 ns ahead of the other one or behind.
//!
//! `skew-placed`: a guest that is placed by itself (`--tsc-domain auto`) on a host whose TSCs disagree. It stays on the
//! CPU that it was made on, although a neighbour keeps that one busy, and however the skew changes: it meets no step
//! back and no leap, and its offset stays what it was.
//!
//! At 3 s the host's own clock, which is made of both TSCs, leaps or stands still, and with it what the host does by its
//! clock: once no vCPU was run for 3.2 s, of which the guest's TSC and clock told alike, with not one move
//! and the offset that it was. How long a guest is not run is therefore held at the smaller skews alone.
//!
//! # With placement off
//!
//! What a guest meets there is a matter of who moves when: seen, and no scenario. Two guests side by side, one of them
//! without its timekeeper, had their threads moved between the two CPUs eight times at each skew, 10 ms apart. Without a
//! skew they met nothing. At 500 ns the vCPUs of one read up to 90 ticks (450 ns) less than each other, 424 times, and
//! never so of `CLOCK_MONOTONIC`. At +3 s both leapt by 3.0 s, and the vCPUs of the one without a timekeeper read up to
//! 3.04 s less than each other, 3,189 times. At the first move back KVM gave up the host's TSC (`kvm_arch_vcpu_load` in
//! arch/x86/kvm/x86.c). From then on it compensates each move by itself, whatever the skew (-3 s, 100 us, -100 us):
//! nobody went backwards any more, and no vCPU leapt or stood still by more than 37 ms. The watched guest's report told
//! of the skew (-600,000,010 to -599,999,980 ticks between its home CPU and the other one), of the kernel's mark, of a
//! move that met a counter 548,328,925 ticks behind, each with its time, and of 16 compensations; its clock was at most
//! 30 ms off its line, which is then the HPET's. KVM's own line leaps with the host's clock by the 3 s, so that nobody
//! had to wait for it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::program;
use crate::guest::witness::Sum;
use crate::host::image::{Files, Source};
use crate::host::{Host, Pace};
use crate::kernels::Kernel;
use crate::scenario::{Outcome, Place, Scenario, keeping};
use crate::workshop::Workshop;

const PLACED: &str = include_str!("skew/placed.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Vmx { pace: Pace::Real };
    let placed = keeping::script(PLACED);
    vec![
        Scenario::new(Place::Emulated(host), "skew-placed", placed)
            .files(files)
            .check(check_placed)
            .seconds(260, 120),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    let mut files = keeping::with_witness(workshop, Kernel::Amd64)?;
    let unrest = program::build(program::UNREST, Kernel::Amd64)?;
    files.insert("unrest".to_owned(), Source::Bytes(unrest));
    Ok(files)
}

/// The skews of the script, in ticks at 200 MHz, in its order.
const SKEWS: [i64; 6] = [100, -100, 20_000, -20_000, 600_000_000, -600_000_000];
/// Between two readings of a vCPU: both of them and a neighbour share a CPU.
const LARGEST_GAP_TICKS: u64 = 40_000_000;
/// As long as the host's own clock is none the worse for it.
const LARGEST_FOR_THE_HOST: u64 = 20_000;
/// The skew when the guest was made, in nanoseconds.
const AT_FIRST_NS: i64 = 100_000;

fn check_placed(outcome: &Outcome) -> Result<()> {
    let stderr = outcome.stderr_text();
    let only = |words: &str| {
        let mut lines = stderr.lines().filter_map(|line| line.strip_prefix(words));
        lines.next().with_context(|| format!("no line {words:?}"))
    };
    let home: i64 = only("home ")?.parse().context("no home CPU")?;
    let phases = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("phase "));
    let phases: Vec<_> = phases.map(phase).collect::<Result<_>>()?;
    let skews: Vec<_> = phases.iter().map(|(skew, _)| *skew).collect();
    ensure!(skews == SKEWS, "the phases were {skews:?}");
    for (skew, sum) in &phases {
        check_sum(*skew, sum).with_context(|| format!("at a skew of {skew} ticks"))?;
    }
    let report = serde_json::from_str(only("report ")?).context("the time report is no JSON")?;
    check_report(&report, home)?;
    outcome.expect_status(0)
}

fn phase(line: &str) -> Result<(i64, Sum)> {
    let (skew, sum) = line
        .split_once(" w sum ")
        .with_context(|| format!("no sum in {line:?}"))?;
    let skew = skew.parse();
    Ok((
        skew.with_context(|| format!("no skew in {line:?}"))?,
        Sum::parse(sum)?,
    ))
}

fn check_sum(skew: i64, sum: &Sum) -> Result<()> {
    sum.ensure_time_went_on()?;
    ensure!(
        skew.unsigned_abs() > LARGEST_FOR_THE_HOST || sum.tsc_gap < LARGEST_GAP_TICKS,
        "the guest's TSC leapt, or stood still for others, by {} ticks",
        sum.tsc_gap
    );
    Ok(())
}

/// The guest is where it was made, nobody moved its offset, and the kernel still trusts the TSC.
fn check_report(report: &Value, home: i64) -> Result<()> {
    let is = |pointer: &str, wanted: Value| {
        let found = report.pointer(pointer).unwrap_or(&Value::Null);
        ensure!(
            *found == wanted,
            "the report's {pointer}: {found}, not {wanted}"
        );
        Ok(())
    };
    is("/placement/mode", "auto".into())?;
    is("/placement/cpus", [home].as_slice().into())?;
    is("/host/skew/known_by", "measurement".into())?;
    is("/host/skew/domains", serde_json::json!([[0], [1]]))?;
    is("/host/clocksource", "tsc".into())?;
    is("/guest/master_clock", true.into())?;
    for count in ["restarts", "kernel_compensations"] {
        is(&format!("/events/{count}"), 0.into())?;
    }
    for vcpu in 0..2 {
        for count in ["moves", "backwards_steps", "offset_moves"] {
            is(&format!("/vcpus/{vcpu}/{count}"), 0.into())?;
        }
    }
    is(
        "/vcpus/0/offset",
        report
            .pointer("/vcpus/1/offset")
            .cloned()
            .unwrap_or_default(),
    )?;
    let bounds = |one: &Value, unit: &str| {
        let bound = |side: &str| one[format!("{side}_{unit}")].as_i64();
        bound("at_least").zip(bound("at_most"))
    };
    let first = bounds(&report["host"]["skew"]["largest"], "ns");
    ensure!(
        first.is_some_and(|(least, most)| least <= AT_FIRST_NS && AT_FIRST_NS <= most),
        "the skew at first was measured as {first:?} ns"
    );
    // The host's clock leaps with the skew of seconds, so that it is looked into.
    let events = report["events"]["latest"].as_array();
    for event in events.into_iter().flatten() {
        if event["what"] == "skew" {
            let found = bounds(event, "ticks");
            let holds =
                |skew: &i64| found.is_some_and(|(least, most)| (least..=most).contains(skew));
            ensure!(SKEWS.iter().any(holds), "a skew that nobody made: {event}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
