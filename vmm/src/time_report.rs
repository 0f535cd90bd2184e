//! What is known of a guest's time now: the answer to `GET /time`, and what `--time-report` names a [file]
//! for.
//!
//! The report grows: members are added, and those that are there keep their meaning. A member is
//! `null` when nothing is known of it.

pub(crate) mod file;

use hypervisor::MissingFeature;
use hypervisor::tsc_control::VendorRatio;
use serde::Serialize;
use tsc::plan::TimePolicy;
use tsc::{CpuId, Khz, Nanos};

use crate::api::body::serialize_policy;
use crate::assessment::{self, Finding, PairSkew, cpus};
use crate::config::CpuList;
use crate::guest_rate::{GuestRate, OtherRate};
use crate::host_clock;
use crate::outcome::Outcome;
use crate::placement::{KnownBy, Placed};
use crate::timekeeper::{
    ErrorReport, Events, MarkReport, StopReport, StretchReport, Unwatched, VcpuReport,
};

/// The report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TimeReport {
    /// `CLOCK_BOOTTIME` when this was so.
    at_ns: u64,
    /// How the guest ended, in words; null as long as it has not.
    ended: Option<String>,
    host: Host,
    guest: Guest,
    /// Where its vCPUs' threads run; nothing before the start.
    placement: Option<Placement>,
    /// What the guest's clocks do while it is paused, and by how much they go on at most.
    #[serde(serialize_with = "serialize_policy")]
    policy: TimePolicy,
    cap_ns: Option<u64>,
    /// What is held against the host's TSC since the start, the first of each kind against each CPU or pair.
    marks: Vec<MarkReport>,
    /// How often there was no room for another.
    marks_left_out: u64,
    /// How far its clock was off its line, over its whole life: in stretches, which grow as it lives on.
    error_history: Vec<StretchReport>,
    /// What became of the clocks at the latest pauses, the last one last.
    stops: Vec<StopReport>,
    /// What else happened to the guest's time.
    events: Events,
    /// What each vCPU's thread saw of its clock.
    vcpus: Vec<VcpuReport>,
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
    /// What the processor says: the twelve letters of its vendor,
    vendor: String,
    /// and whether its TSC ticks at one rate in all states of the processor.
    invariant_tsc: bool,
    /// The CPUs that this process may run on.
    cpus: Vec<u32>,
    /// What is known of the TSCs of these CPUs, beside each other.
    skew: Skew,
}

/// How the TSCs of the host's CPUs lie to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Skew {
    /// How it is known; nothing before the start.
    known_by: Option<KnownBy>,
    /// `CLOCK_BOOTTIME` when it was measured.
    measured_at_ns: Option<u64>,
    /// CPUs whose TSCs are proven to be no further apart are a domain.
    domain_bound_ns: u64,
    /// Sets of CPUs, as measured.
    domains: Option<Vec<Vec<u32>>>,
    /// The pair whose TSCs can be furthest apart, and the bounds on what they are.
    largest: Option<PairSkew>,
}

/// Where the guest's vCPU threads run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Placement {
    /// As `--tsc-domain` has it.
    mode: String,
    /// The CPUs that the threads may run on, all together, as the kernel tells.
    cpus: Vec<u32>,
    /// The same of each vCPU's thread; nothing of one that has ended.
    vcpus: Vec<Option<Vec<u32>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Guest {
    /// The rate that was asked for; the host's when there is none.
    tsc_khz_asked: Option<u32>,
    /// The rate that the hypervisor says is in force.
    tsc_khz_in_force: Option<u32>,
    /// How it is kept.
    how: Option<How>,
    /// The guest's rate by the host's, as asked for,
    ratio_asked: Option<Fraction>,
    /// and what the hardware multiplies the host's TSC with: 1 where nothing is scaled.
    ratio_in_force: Option<Ratio>,
    /// The same where it is scaled only.
    ratio: Option<Ratio>,
    /// Whether KVM's master clock is on now: all vCPUs compute the kvmclock from one reading of one TSC.
    master_clock: Option<bool>,
    /// How far its clock is off the line that it should follow.
    error: Option<ErrorReport>,
    /// What the ratio's last bit costs, rounded away from zero.
    quantisation_error_ppb: Option<i64>,
    /// How far a throw-away guest at this rate was measured to be from it.
    measured_error: Option<Measured>,
}

/// How a guest's rate is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum How {
    #[serde(rename = "host's rate")]
    HostsRate,
    #[serde(rename = "scaled")]
    Scaled,
    #[serde(rename = "catch-up")]
    CatchUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Ratio {
    /// The register's value.
    bits: u64,
    /// How many of its bits are behind the binary point.
    fraction_bits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Fraction {
    guest_khz: u32,
    host_khz: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Measured {
    at_least_ppb: i64,
    at_most_ppb: i64,
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

/// The name of the degradation of a guest whose rate KVM keeps by pushing it.
const CATCH_UP: &str = "catch-up";
/// The name of what is to be said of where the vCPUs' threads run.
const TSC_DOMAIN: &str = "tsc-domain";
/// The name of what is to be said of a guest about whose TSC KVM contradicts itself.
const TSC_READINGS: &str = "tsc-readings";
/// The name of what is to be said of a guest whose time nobody watches.
const TIMEKEEPER: &str = "timekeeper";

/// What a running guest's timekeeper tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) master_clock: Option<bool>,
    pub(crate) marks: Vec<MarkReport>,
    pub(crate) marks_left_out: u64,
    pub(crate) history: Vec<StretchReport>,
    pub(crate) error: Option<ErrorReport>,
    pub(crate) stops: Vec<StopReport>,
    pub(crate) events: Events,
    pub(crate) vcpus: Vec<VcpuReport>,
    pub(crate) placed: Option<Placed>,
    pub(crate) unwatched: Option<Unwatched>,
}

impl TimeReport {
    /// From the rate that is `asked` for, that of a running guest beside the host's, and what the
    /// hypervisor lacks.
    pub(crate) fn new(
        asked: Option<Khz>,
        running: Option<(GuestRate, Option<Khz>)>,
        missing: &[MissingFeature],
        policy: TimePolicy,
        kept: Kept,
    ) -> Self {
        let host_khz = running.and_then(|(_, host)| host).map(Khz::get);
        let platform = assessment::platform();
        let cpus = match &kept.placed {
            Some(placed) => placed.allowed.numbers(),
            None => cpus::allowed().map_or_else(|_| Vec::new(), numbers),
        };
        let clocksource = host_clock::clocksource();
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
        let other = running.and_then(|(rate, _)| rate.other());
        degradations.extend(
            other
                .and_then(|other| other.degradation())
                .map(|consequence| Degradation {
                    name: CATCH_UP.to_owned(),
                    consequence,
                }),
        );
        let drawbacks = kept.placed.iter().flat_map(|placed| &placed.drawbacks);
        degradations.extend(drawbacks.map(|drawback| Degradation {
            name: TSC_DOMAIN.to_owned(),
            consequence: drawback.consequence.clone(),
        }));
        let contradicted = kept.vcpus.iter().map(VcpuReport::contradicted_looks).sum();
        if let looks @ 1.. = contradicted {
            degradations.push(Degradation {
                name: TSC_READINGS.to_owned(),
                consequence: format!(
                    "in {looks} looks KVM gave another TSC for a vCPU than its offset and rate make of the host's: the \
                     guest's clock may be off by more than its error says"
                ),
            });
        }
        degradations.extend(kept.unwatched.map(|why| Degradation {
            name: TIMEKEEPER.to_owned(),
            consequence: why.to_string(),
        }));
        Self {
            at_ns: host_clock::boottime().get(),
            ended: None,
            placement: kept.placed.as_ref().map(Placement::new),
            host: Host {
                tsc_khz: host_khz,
                tsc_khz_source: host_khz.map(|_| "KVM_GET_TSC_KHZ"),
                clocksource,
                vendor: platform.vendor,
                invariant_tsc: platform.invariant_tsc,
                cpus,
                skew: Skew::new(kept.placed.as_ref()),
            },
            guest: Guest {
                master_clock: kept.master_clock,
                error: kept.error,
                ..Guest::new(asked, running)
            },
            policy,
            cap_ns: policy.cap().map(Nanos::get),
            marks: kept.marks,
            marks_left_out: kept.marks_left_out,
            error_history: kept.history,
            stops: kept.stops,
            events: kept.events,
            vcpus: kept.vcpus,
            degradations,
        }
    }

    /// The last one, of a guest that ended so.
    pub(crate) fn of_the_end(mut self, outcome: &Outcome) -> Self {
        // The registers of a vCPU that cannot go on are in other lines.
        let words = outcome.to_string();
        self.ended = words.lines().next().map(str::to_owned);
        self
    }
}

fn numbers(cpus: Vec<CpuId>) -> Vec<u32> {
    cpus.into_iter().map(CpuId::get).collect()
}

impl Skew {
    fn new(placed: Option<&Placed>) -> Self {
        let finding = placed.and_then(|placed| placed.finding.as_ref());
        let domains = |finding: &Finding| finding.domains.iter().map(CpuList::numbers).collect();
        Self {
            known_by: placed.map(|placed| placed.known_by),
            measured_at_ns: finding.map(|finding| finding.at_ns),
            domain_bound_ns: assessment::DOMAIN_BOUND.get(),
            domains: finding.map(domains),
            largest: finding.and_then(|finding| finding.largest),
        }
    }
}

impl Placement {
    fn new(placed: &Placed) -> Self {
        let in_force = placed.in_force.iter();
        let together: CpuList = in_force.clone().flatten().flat_map(CpuList::iter).collect();
        Self {
            mode: placed.mode.to_string(),
            cpus: together.numbers(),
            vcpus: in_force
                .map(|cpus| cpus.as_ref().map(CpuList::numbers))
                .collect(),
        }
    }
}

impl From<VendorRatio> for Ratio {
    fn from(ratio: VendorRatio) -> Self {
        Self {
            bits: ratio.bits(),
            fraction_bits: ratio.vendor().fraction_bits(),
        }
    }
}

impl Guest {
    fn new(asked: Option<Khz>, running: Option<(GuestRate, Option<Khz>)>) -> Self {
        let other = running.and_then(|(rate, _)| rate.other());
        let how = |other: Option<OtherRate>| match other {
            None => How::HostsRate,
            Some(other) if other.is_caught_up() => How::CatchUp,
            Some(_) => How::Scaled,
        };
        let scaled = other.filter(|other| !other.is_caught_up());
        Self {
            tsc_khz_asked: asked.map(Khz::get),
            tsc_khz_in_force: running
                .and_then(|(rate, host)| rate.khz(host))
                .map(Khz::get),
            how: running.map(|_| how(other)),
            ratio_asked: running.and_then(|(_, host)| host).map(|host| Fraction {
                guest_khz: asked.unwrap_or(host).get(),
                host_khz: host.get(),
            }),
            ratio_in_force: running.map(|_| {
                Ratio::from(scaled.map_or_else(
                    || VendorRatio::one(hypervisor::host::vendor()),
                    |other| other.ratio,
                ))
            }),
            ratio: scaled.map(|other| Ratio::from(other.ratio)),
            master_clock: None,
            error: None,
            quantisation_error_ppb: scaled
                .and_then(|other| other.quantisation())
                .map(|error| error.get()),
            measured_error: other
                .and_then(|other| other.measured)
                .map(|bounds| Measured {
                    at_least_ppb: bounds.at_least.get(),
                    at_most_ppb: bounds.at_most.get(),
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use hypervisor::model::{Faults, ModelFixture, ModelHost};
    use tsc::Svm;

    use super::*;
    use crate::config::TscRate;
    use crate::doctor::OnModel;
    use crate::guest_rate;
    use crate::timekeeper::Observed;

    /// The report on a guest of 3.4 GHz, on a host of 2 GHz as it is here.
    fn of_a_fast_guest(host: ModelHost) -> serde_json::Value {
        let khz = Khz::new(3_400_000);
        let wish = TscRate {
            khz,
            allow_catch_up: true,
        };
        let model = OnModel(ModelFixture::<Svm>::new(host));
        let rate = guest_rate::settle(wish, &model).expect("possible");
        let running = Some((rate, Khz::new(2_000_000)));
        let report = TimeReport::new(khz, running, &[], TimePolicy::ADVANCE, Kept::default());
        serde_json::to_value(report).expect("JSON")
    }

    fn host(faults: Faults) -> ModelHost {
        ModelHost::uniform(2, Khz::new(2_000_000).expect("not 0"), faults)
    }

    fn degradations(report: &serde_json::Value) -> String {
        report["degradations"].to_string()
    }

    #[test]
    fn report_on_a_scaled_guest_has_its_ratio_and_error() {
        let report = of_a_fast_guest(host(Faults::LINUX));
        let guest = &report["guest"];
        assert_eq!(report["host"]["tsc_khz"], 2_000_000);
        assert_eq!(guest["tsc_khz_asked"], 3_400_000);
        assert_eq!(guest["tsc_khz_in_force"], 3_400_000);
        assert_eq!(guest["how"], "scaled");
        // 1.7 x 2^32 is 7301444403.2: 0.2 / 7301444403.2 are 0.03 ppb too slow.
        let ratio = serde_json::json!({"bits": 7_301_444_403_u64, "fraction_bits": 32});
        assert_eq!(guest["ratio"], ratio);
        assert_eq!(guest["ratio_in_force"], ratio);
        let asked = serde_json::json!({"guest_khz": 3_400_000, "host_khz": 2_000_000});
        assert_eq!(guest["ratio_asked"], asked);
        assert_eq!(guest["quantisation_error_ppb"], -1);
        let error = |bound: &str| guest["measured_error"][bound].as_i64().expect("measured");
        assert!(error("at_least_ppb") <= 0 && error("at_most_ppb") >= 0);
        assert!(!degradations(&report).contains("catch-up"), "{report}");
    }

    #[test]
    fn report_on_a_pushed_guest_says_that_it_is_degraded() {
        let pushing = host(Faults {
            catch_up_by_master_clock: false,
            ..Faults::LINUX
        });
        let report = of_a_fast_guest(pushing.without_scaling());
        let guest = &report["guest"];
        assert_eq!(guest["tsc_khz_in_force"], 3_400_000);
        assert_eq!(guest["how"], "catch-up");
        assert_eq!(guest["ratio"], serde_json::Value::Null);
        assert_eq!(guest["quantisation_error_ppb"], serde_json::Value::Null);
        let told = degradations(&report);
        assert!(told.contains(r#""name":"catch-up""#), "{told}");
        assert!(told.contains("degraded: catch-up"), "{told}");
    }

    #[test]
    fn report_on_a_tsc_that_kvm_contradicts_says_that_it_is_degraded() {
        let vcpus = [Observed::default(), Observed::default()];
        let told = || {
            let kept = Kept {
                vcpus: vcpus.iter().map(|vcpu| vcpu.report(0)).collect(),
                ..Kept::default()
            };
            let report = TimeReport::new(None, None, &[], TimePolicy::ADVANCE, kept);
            degradations(&serde_json::to_value(report).expect("JSON"))
        };
        assert!(!told().contains(TSC_READINGS), "{}", told());
        for vcpu in [0, 0, 1] {
            vcpus[vcpu].was_contradicted();
        }
        assert!(told().contains(r#""name":"tsc-readings""#), "{}", told());
        assert!(told().contains("in 3 looks"), "{}", told());
    }

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
        let host = GuestRate::Host;
        let report = serde_json::to_value(TimeReport::new(
            None,
            Some((host, Khz::new(2_000_000))),
            &missing,
            TimePolicy::ADVANCE,
            Kept::default(),
        ));
        let report = report.expect("JSON");
        assert_eq!(report["host"]["tsc_khz"], 2_000_000);
        assert_eq!(report["guest"]["tsc_khz_in_force"], 2_000_000);
        assert_eq!(report["guest"]["tsc_khz_asked"], serde_json::Value::Null);
        assert_eq!(report["guest"]["how"], "host's rate");
        assert_eq!(report["guest"]["ratio"], serde_json::Value::Null);
        assert_eq!(report["policy"], "advance");
        assert_eq!(report["degradations"][0]["name"], "KVM_CAP_TSC_CONTROL");
        let text = report["degradations"].to_string();
        assert!(!text.contains("XCRS"), "{text}");
        let before = serde_json::to_value(TimeReport::new(
            Khz::new(5),
            None,
            &[],
            TimePolicy::Freeze,
            Kept::default(),
        ))
        .expect("JSON");
        assert_eq!(before["guest"]["tsc_khz_asked"], 5);
        assert_eq!(before["guest"]["how"], serde_json::Value::Null);
        assert_eq!(before["host"]["tsc_khz_source"], serde_json::Value::Null);
    }
}
