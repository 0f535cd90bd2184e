//! What the metrics tell of a guest's time.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Observed, Timekeeper};
use crate::host_clock;
use crate::metrics::Sample;

/// The group of its fields.
const GROUP: &str = "keeptime_time";

/// Adds what is known now.
pub(crate) fn figures(
    vcpus: &[Arc<Observed>],
    keeper: &Mutex<Timekeeper>,
    samples: &mut Vec<Sample>,
) {
    let mut sums: Vec<(&'static str, u64)> = Vec::new();
    for (name, value) in vcpus.iter().flat_map(|vcpu| vcpu.counts()) {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = sum.wrapping_add(value),
            None => sums.push((name, value)),
        }
    }
    let sums = sums
        .into_iter()
        .map(|(name, sum)| Sample::counter(GROUP, name, sum));
    samples.extend(sums);
    let largest = vcpus.iter().map(|vcpu| vcpu.largest_error()).max();
    samples.push(Sample::gauge(
        GROUP,
        "largest_error_ns",
        largest.unwrap_or(0),
    ));
    let oldest = vcpus.iter().map(|vcpu| vcpu.looked_at()).min();
    let age = oldest.map_or(0, |at| host_clock::monotonic_raw().saturating_sub(at).get());
    samples.push(Sample::gauge(GROUP, "report_age_ns", age));
    let events = {
        let keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.events()
    };
    for (name, value) in [
        ("events", events.count),
        ("unplanned_stops", events.unplanned_stops),
        ("restarts", events.restarts),
        ("given_back_ticks", events.given_back_ticks),
        ("given_back_ns", events.given_back_ns),
        ("catch_ups", events.catch_ups),
        (
            "backwards_steps_prevented",
            events.backwards_steps_prevented,
        ),
        ("kernel_compensations", events.kernel_compensations),
    ] {
        samples.push(Sample::counter(GROUP, name, value));
    }
}
