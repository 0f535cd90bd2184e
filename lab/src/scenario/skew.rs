//! Guests on a host one of whose CPUs has a skewed TSC: 3 s, 100 us or 500 ns ahead of the other one or behind.
//!
//! `skew-placed`: a guest that is placed by itself (`--tsc-domain auto`) on a host whose TSCs disagree. It stays on the
//! CPU that it was made on, although a neighbour keeps that one busy, and however the skew changes: it meets no step
//! back and no leap, and its offset stays what it was. Under `freeze` its clocks are read and set there, too, wherever the
//! thread is that has it done; and to find out whether a guest follows its offset, no vCPU goes to the other CPU.
//!
//! At 3 s the host's own clock, which is made of both TSCs, leaps or stands still, and with it what the host does by its
//! clock: once no vCPU was run for 3.2 s, of which the guest's TSC and clock told alike, with not one move
//! and the offset that it was. How long a guest is not run is therefore held at the smaller skews alone.
//!
//! # With placement off
//!
//! `skew-moved`: two guests side by side (`--tsc-domain off`), one of them without its timekeeper, whose threads are
//! moved between the CPUs. A kernel that sees a vCPU come to a CPU whose TSC is behind the one that it was on gives up
//! the host's TSC (`kvm_arch_vcpu_load` in arch/x86/kvm/x86.c), and KVM compensates for every guest from then on. A move
//! takes longer than 500 ns, so that it sees no such step there; after that all moves are forward at first, to the CPU
//! that is ahead:
//!
//! - 500 ns, ahead and then behind, and for each sign eight moves to and fro of each guest, after which one vCPU stays
//!   away until the skew is told, at the next beat: 85 to 115 ticks, and -115 to -85. That is within the microsecond by
//!   which CPUs may differ and be taken for one domain: it is told, and nothing is done about it or happens. The vCPUs
//!   of both guests read up to 90 ticks (450 ns) less than each other, and no clock goes backwards by itself.
//! - 100 us and one vCPU of each guest. The vCPUs of both read 19,985 ticks less than each other. Those of the guest
//!   that is watched do so until the next beat, in which the skew is measured (19,985 to 20,015 ticks) and the other
//!   vCPU is taken forward by 20,000, and never again; those of the other guest as long as they are apart.
//! - 3 s, likewise. Both guests leap, one vCPU ahead of the other one; the watched one's other vCPU is taken forward by
//!   600,000,000 ticks. A leap cannot be prevented: the thread has gone to the other CPU, and the guest has read its
//!   TSC, before anybody in user space is asked. What a guest has read is not taken back.
//! - The guest without a timekeeper ends by a signal, all of its threads on one CPU: whoever closes a vCPU's last
//!   descriptor loads that vCPU.
//! - Back: KVM sees the step, the kernel's clocksource falls to the HPET, and KVM compensates, whatever the skew (3 s,
//!   -3 s, 100 us, -100 us). It is noticed, and not fought, once the clocksource has changed, some milliseconds after
//!   the step, in which one to three more restarts were seen. In one of three runs a vCPU read up to 4.8 ms less than the
//!   other one for some thousand readings, until they went on together; nobody did after that. A guest that is
//!   ahead of KVM's line by more than 100 ms is not left to stand still until the line has come up to it: the line is
//!   taken to it (a restart because of a lead).
//!
//! It has the report tell of all that, with its time. The host's own clock leaps with the skew of 3 s, too, so that
//! there is no truth to hold the guest's clock against; that the guest comes to be ahead by no more than the skew for
//! each of its vCPUs is held by what the restarts took them forward by. A beat in which the clock leapt is told as a
//! stop that nobody planned.
//!
//! `skew-bare`: a guest without a timekeeper alone, whose clock can be held against the host's: both of its vCPUs are on
//! CPU 0, which keeps the host's time, and nothing is on CPU 1, which comes to be 3 s ahead. One vCPU goes there, and its
//! clock gains 3 s; the other one's does so then, too, or when it has come back, as one of two runs had it. It comes
//! back: KVM sees the step, has a vCPU go on from what it read last at every entry, and so takes from each the time that
//! the other one has the CPU: 1 s of the guest's clock in 2.2 s of the host's, and once in 3.9 s, until KVM's line has
//! caught up, and 3 s are lost again.

mod bare;
mod moved;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::program;
use crate::guest::witness::Sum;
use crate::host::Host;
use crate::host::image::{Files, Source};
use crate::kernels::Kernel;
use crate::scenario::{Outcome, Place, Scenario, keeping};
use crate::workshop::Workshop;

const PLACED: &str = include_str!("skew/placed.sh");
const MOVED: &str = include_str!("skew/moved.sh");
const BARE: &str = include_str!("skew/bare.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let host = Host::Vmx;
    let placed = keeping::script(PLACED);
    let moved = keeping::script(MOVED);
    vec![
        Scenario::new(Place::Emulated(host), "skew-placed", placed)
            .files(files)
            .check(check_placed)
            .seconds(360, 150),
        // From then on the kernel does not trust the TSC.
        Scenario::new(Place::Emulated(host), "skew-moved", moved)
            .files(files)
            .check(moved::check)
            .last_of_its_boot()
            .seconds(620, 240),
        Scenario::new(Place::Emulated(host), "skew-bare", keeping::script(BARE))
            .files(files)
            .check(bare::check)
            .last_of_its_boot()
            .seconds(370, 90),
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
/// The skew when it is paused under `freeze`.
const FROZEN_AT: i64 = SKEWS[4];
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
    let frozen = Sum::parse(only("frozen w sum ")?)?;
    check_sum(FROZEN_AT, &frozen).context("after a freeze")?;
    let report = serde_json::from_str(only("report ")?).context("the time report is no JSON")?;
    check_report(&report, home)?;
    check_freeze(&report)?;
    outcome.expect_status(0)
}

/// One pause, under which the clocks stood still, and went on together.
fn check_freeze(report: &Value) -> Result<()> {
    let stops = report["stops"].as_array().map(Vec::as_slice);
    let Some([stop]) = stops else {
        anyhow::bail!("the pauses: {stops:?}");
    };
    let is = |key: &str, wanted: Value| ensure_is(stop, &format!("/{key}"), &wanted);
    is("policy", "freeze".into())?;
    is("advanced_ns", 0.into())
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

/// Fails unless the report says this at this place.
fn ensure_is(report: &Value, pointer: &str, wanted: &Value) -> Result<()> {
    let found = report.pointer(pointer).unwrap_or(&Value::Null);
    ensure!(
        found == wanted,
        "the report's {pointer}: {found}, not {wanted}"
    );
    Ok(())
}

/// The guest is where it was made, nobody moved its offset, and the kernel still trusts the TSC.
fn check_report(report: &Value, home: i64) -> Result<()> {
    let is = |pointer: &str, wanted: Value| ensure_is(report, pointer, &wanted);
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
