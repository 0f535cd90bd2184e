//! Firecracker's form: one JSON object in a line, an object for each group. A counter tells what was
//! added since the line before; other numbers are told as they are. Of several devices of a kind each has a
//! group, and one more has their sums.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Kind, Sample};
use crate::host_clock;

/// What counters stood at when they were told last.
pub(super) type Told = HashMap<(&'static str, Option<String>, String), u64>;

/// A line with its newline, and what is told when it is written.
pub(super) fn line(samples: &[Sample], told: &Told) -> (String, Told) {
    let mut groups = Map::new();
    groups.insert(
        "utc_timestamp_ms".to_owned(),
        Value::from(host_clock::real_time().get() / 1_000_000),
    );
    let mut now_told = Told::new();
    for sample in samples {
        let value = match sample.kind {
            Kind::Gauge => sample.value,
            Kind::Counter => {
                let key = (sample.group, sample.id.clone(), sample.field.clone());
                let before = told.get(&key).copied().unwrap_or(0);
                now_told.insert(key, sample.value);
                sample.value.wrapping_sub(before)
            }
        };
        if let Some(id) = &sample.id {
            add(
                &mut groups,
                format!("{}_{id}", sample.group),
                &sample.field,
                value,
            );
        }
        add(&mut groups, sample.group.to_owned(), &sample.field, value);
    }
    (format!("{}\n", Value::Object(groups)), now_told)
}

/// Adds a number to what there is under its name.
fn add(groups: &mut Map<String, Value>, group: String, field: &str, value: u64) {
    let group = groups
        .entry(group)
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(fields) = group {
        let others = fields.get(field).and_then(Value::as_u64).unwrap_or(0);
        fields.insert(field.to_owned(), others.wrapping_add(value).into());
    }
}
