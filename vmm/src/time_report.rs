//! What is known of a guest's time now: the answer to `GET /time`.
//!
//! The report grows: members are added, and those that are there keep their meaning. A member is
//! `null` when nothing is known of it.

use hypervisor::MissingFeature;
use serde::Serialize;
use tsc::Khz;

use crate::api::body::TimePolicy;
use crate::timekeeper::StopReport;

/// The report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TimeReport {
    host: Host,
    guest: Guest,
    /// What the guest's clocks do while it is paused.
    policy: TimePolicy,
    /// What became of the clocks at the latest pauses, the last one last.
    stops: Vec<StopReport>,
    /// What this host cannot do for guests' time, and what follows.
    degradations: Vec<Degradation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Host {
    tsc_khz: Option<u32>,
    /// Who says so.
    tsc_khz_source: Option<&'static str>,
    /// What the host's kernel keeps time by.
    clocksource: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Guest {
    /// The rate that was asked for; the host's when there is none.
    tsc_khz_asked: Option<u32>,
    /// The rate that the hypervisor says is in force.
    tsc_khz_in_force: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Degradation {
    name: String,
    consequence: String,
}

/// The abilities of a host that time depends on.
const OF_TIME: [&str; 6] = [
    "KVM_CAP_TSC_DEADLINE_TIMER",
    "KVM_CAP_TSC_CONTROL",
    "KVM_CAP_GET_TSC_KHZ",
    "KVM_CAP_VCPU_ATTRIBUTES",
    "KVM_CAP_ADJUST_CLOCK",
    "KVM_CAP_KVMCLOCK_CTRL",
];

impl TimeReport {
    /// From what the hypervisor says of a running guest's rate, which is the host's as long as no
    /// other is asked for, and what it lacks.
    pub(crate) fn new(
        guest_rate: Option<Khz>,
        missing: &[MissingFeature],
        policy: TimePolicy,
        stops: Vec<StopReport>,
    ) -> Self {
        let rate = guest_rate.map(Khz::get);
        let clocksource = clocksource();
        let mut degradations: Vec<_> = missing
            .iter()
            .filter(|feature| OF_TIME.contains(&feature.name))
            .map(|feature| Degradation {
                name: feature.name.to_owned(),
                consequence: feature.consequence.to_owned(),
            })
            .collect();
        if let Some(name) = clocksource
            .as_deref()
            .filter(|name| !name.starts_with("tsc"))
        {
            degradations.push(Degradation {
                name: "clocksource".to_owned(),
                consequence: format!(
                    "the host's kernel keeps time by {name} and not by the TSC, which it may not trust"
                ),
            });
        }
        Self {
            host: Host {
                tsc_khz: rate,
                tsc_khz_source: rate.map(|_| "KVM_GET_TSC_KHZ"),
                clocksource,
            },
            guest: Guest {
                tsc_khz_asked: None,
                tsc_khz_in_force: rate,
            },
            policy,
            stops,
            degradations,
        }
    }
}

fn clocksource() -> Option<String> {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let text = std::fs::read_to_string(path).ok()?;
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_tells_what_is_known_and_null_otherwise() {
        let missing = [
            MissingFeature {
                name: "KVM_CAP_TSC_CONTROL",
                consequence: "no scaling",
            },
            MissingFeature {
                name: "KVM_CAP_XCRS",
                consequence: "nothing to do with time",
            },
        ];
        let report = serde_json::to_value(TimeReport::new(
            Khz::new(2_000_000),
            &missing,
            TimePolicy::Advance,
            Vec::new(),
        ));
        let report = report.expect("JSON");
        assert_eq!(report["host"]["tsc_khz"], 2_000_000);
        assert_eq!(report["guest"]["tsc_khz_in_force"], 2_000_000);
        assert_eq!(report["guest"]["tsc_khz_asked"], serde_json::Value::Null);
        assert_eq!(report["policy"], "advance");
        assert_eq!(report["degradations"][0]["name"], "KVM_CAP_TSC_CONTROL");
        let text = report["degradations"].to_string();
        assert!(!text.contains("XCRS"), "{text}");
        let before =
            serde_json::to_value(TimeReport::new(None, &[], TimePolicy::Freeze, Vec::new()))
                .expect("JSON");
        assert_eq!(before["host"]["tsc_khz_source"], serde_json::Value::Null);
    }
}
