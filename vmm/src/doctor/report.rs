//! Everything that was found out, before it becomes text or JSON.

use tsc::Nanos;
use tsc::assess::{self, Effect, HostFacts, Policy, Spread, Verdict};
use tsc::stability::PlatformReport;
use tsc::{Khz, Ppm};

use super::effects::Effects;
use super::kvm::KvmClaims;
use super::platform::Platform;
use super::rate::{Claim, Measured};
use super::require::Requirement;
use super::skew::Skew;

/// What was found out about a host.
#[derive(Debug)]
pub(super) struct Report {
    /// What it says of itself.
    pub(super) platform: Platform,
    /// Which Landlock its kernel has for the launcher's threads.
    pub(super) landlock_abi: Option<i32>,
    /// Its TSC's rate, by measurement, or why there is none.
    pub(super) rate: Result<Measured, String>,
    /// Who claims which rate.
    pub(super) claims: Vec<Claim>,
    /// How its CPUs' counters lie to each other, or why that is not known.
    pub(super) skew: Result<Skew, String>,
    /// What its KVM says, or why it cannot be used.
    pub(super) kvm: Result<KvmClaims, String>,
    /// What happens in a guest, or why that is not known.
    pub(super) effects: Result<Effects, String>,
    /// All of it, as what promises are made from.
    pub(super) facts: HostFacts,
    /// How long it took.
    pub(super) took: Nanos,
}

/// The parts of a report, before they are put together.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) platform: Platform,
    pub(super) landlock_abi: Option<i32>,
    pub(super) rate: Result<Measured, String>,
    pub(super) skew: Result<Skew, String>,
    pub(super) kvm: Result<KvmClaims, String>,
    pub(super) effects: Result<Effects, String>,
    pub(super) took: Nanos,
}

impl Report {
    /// Puts the parts together.
    pub(super) fn new(parts: Parts) -> Self {
        let facts = facts(&parts);
        let mut claims = parts.platform.rates.clone();
        claims.extend(parts.kvm.iter().filter_map(|kvm| {
            kvm.khz.map(|khz| Claim {
                source: "KVM_GET_TSC_KHZ",
                khz,
            })
        }));
        Self {
            platform: parts.platform,
            landlock_abi: parts.landlock_abi,
            rate: parts.rate,
            claims,
            skew: parts.skew,
            kvm: parts.kvm,
            effects: parts.effects,
            facts,
            took: parts.took,
        }
    }

    /// What can be promised here.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (Policy, Verdict)> {
        Policy::ALL
            .into_iter()
            .map(|policy| (policy, assess::verdict(&self.facts, policy)))
    }

    /// Those of `required` that this host does not meet.
    pub(super) fn missing(&self, required: &[Requirement]) -> Vec<Requirement> {
        required
            .iter()
            .copied()
            .filter(|requirement| !requirement.is_met(self))
            .collect()
    }
}

/// The rate in whole kilohertz that KVM computes with, else the measured one.
fn rate(parts: &Parts) -> Option<Khz> {
    let measured = || {
        parts
            .rate
            .as_ref()
            .ok()
            .map(|m| m.rate.at_least.khz_floor())
    };
    parts
        .kvm
        .as_ref()
        .ok()
        .and_then(|kvm| kvm.khz)
        .or_else(measured)
}

fn facts(parts: &Parts) -> HostFacts {
    let effects = parts.effects.as_ref().ok();
    // A kernel that moves offsets by itself does not take its TSC for stable, whatever it shows.
    let compensates = effects.is_some_and(Effects::kernel_compensates);
    HostFacts {
        kvm: parts.kvm.is_ok(),
        khz: rate(parts),
        offset: effects.map_or(Effect::Unknown, Effects::offset_effect),
        scaling: effects.map_or(Effect::Unknown, Effects::scaling_effect),
        catch_up: effects.map_or(Effect::Unknown, Effects::catch_up_effect),
        tolerance: parts.platform.tolerance.unwrap_or(Ppm::KVM_TOLERANCE),
        platform: parts
            .platform
            .report()
            .or(compensates.then_some(PlatformReport::KernelMark)),
        spread: parts
            .skew
            .as_ref()
            .map_or(Spread::Unproven, |skew| skew.spread),
    }
}
