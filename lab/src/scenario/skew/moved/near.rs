//! While the CPUs are half a microsecond apart: nobody's time goes backwards, and the skew is told and left as it is.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::ensure_is;
use crate::guest::witness::Sum;

/// 500 ns at 200 MHz: the script's `near`, in its order.
const SKEWS: [i64; 2] = [100, -100];
const SKEW_TICKS: u64 = 100;
const SKEW_NS: u64 = 500;
/// Between two readings of a vCPU: four of them, and who moves them, share two CPUs.
const LARGEST_GAP_TICKS: u64 = 40_000_000;

/// The sums of both guests while the one CPU was ahead, and while it was behind.
pub(super) fn check_sums(kept: [Sum; 2], bare: [Sum; 2]) -> Result<()> {
    for sum in kept.iter().chain(&bare) {
        ensure!(
            (sum.still, sum.back) == (0, 0),
            "a vCPU's time stood still or went backwards: {sum:?}"
        );
        ensure!(
            sum.tsc_step <= SKEW_TICKS && sum.monotonic_step <= SKEW_NS,
            "a vCPU read less than another by more than the skew of {SKEW_TICKS} ticks: {sum:?}"
        );
        ensure!(
            sum.tsc_gap < LARGEST_GAP_TICKS,
            "a vCPU's TSC leapt by {} ticks: {sum:?}",
            sum.tsc_gap
        );
    }
    // Else the other guest would prove nothing.
    let [ahead, behind] = bare.map(|sum| sum.tsc_steps);
    ensure!(
        0 < ahead && ahead < behind,
        "the vCPUs of the guest without a timekeeper are to read less than each other: {bare:?}"
    );
    Ok(())
}

/// The report at the end of these phases.
pub(super) fn check_report(report: &Value) -> Result<()> {
    let is = |pointer: &str, wanted: &Value| ensure_is(report, pointer, wanted);
    is("/host/clocksource", &"tsc".into())?;
    is("/guest/master_clock", &true.into())?;
    for count in ["restarts", "kernel_compensations"] {
        is(&format!("/events/{count}"), &0.into())?;
    }
    for vcpu in 0..super::VCPUS {
        for count in ["backwards_steps", "offset_moves", "leaps", "lags"] {
            is(&format!("/vcpus/{vcpu}/{count}"), &0.into())?;
        }
    }
    let events = report["events"]["latest"].as_array();
    let events = events.context("no events are told")?;
    for (event, skew) in events.iter().zip(SKEWS) {
        let bound = |name: &str| event[name].as_i64();
        let bounds = bound("at_least_ticks").zip(bound("at_most_ticks"));
        // Proven to be of its sign, and to within its size.
        let told = bounds.is_some_and(|(least, most)| {
            (least..=most).contains(&skew)
                && least.signum() == most.signum()
                && least.abs_diff(most) <= SKEW_TICKS
        });
        ensure!(
            event["what"] == "skew" && event["at_ns"].as_u64() > Some(0) && told,
            "a skew of {skew} ticks is not told: {event}"
        );
    }
    ensure!(
        events.len() == SKEWS.len(),
        "no less and no more than the skews {SKEWS:?} are to be told: {events:?}"
    );
    let error = &report["guest"]["error"]["largest_ns"];
    ensure!(
        error
            .as_i64()
            .is_some_and(|error| error.unsigned_abs() <= SKEW_NS),
        "the guest's clock was off by {error} ns, more than the skew of {SKEW_NS} ns"
    );
    Ok(())
}
