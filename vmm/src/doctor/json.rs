//! The report for programs. Its structure is documented in [`super`].

use hypervisor::tsc_control::{OffsetBounds, OffsetEffect, RateEffect};
use serde_json::{Value, json};
use tsc::assess::{Effect, Spread, Verdict, skew_nanos_outward};
use tsc::measure::DeviationBounds;
use tsc::skew::SkewBounds;
use tsc::{CpuId, Khz, TscOffset};

use super::effects::{OffsetTrial, RateOutcome, RateTrial};
use super::report::Report;
use super::require::Requirement;
use super::skew::{BOUND, Skew};

/// The number of the structure. It changes when a key changes its meaning or goes.
const FORMAT: u32 = 1;

/// The whole report.
pub(super) fn render(report: &Report, required: &[Requirement]) -> String {
    let missing = report.missing(required);
    let names = |list: &[Requirement]| list.iter().map(|r| r.name()).collect::<Vec<_>>();
    let verdicts = report.verdicts().map(|(policy, verdict)| {
        json!({
            "policy": policy.name(),
            "verdict": match verdict {
                Verdict::Kept => "kept",
                Verdict::Limited(_) => "limited",
                Verdict::Refused(_) => "refused",
            },
            "reason": verdict.obstacle().map(|obstacle| obstacle.to_string()),
        })
    });
    let value = json!({
        "format": FORMAT,
        "processor": processor(report),
        "kernel": {
            "clocksource": report.platform.clocksource,
            "available_clocksources": report.platform.clocksources,
            "kvm_tsc_tolerance_ppm": report.platform.tolerance.map(|ppm| ppm.get()),
            "landlock_abi": report.landlock_abi,
        },
        "tsc_rate": rate(report),
        "cpus": or_error(report.skew.as_ref(), |skew| cpus(skew, report.facts.khz)),
        "kvm": or_error(report.kvm.as_ref(), |kvm| json!({
            "tsc_rate_khz": kvm.khz.map(Khz::get),
            "capabilities": kvm.capabilities.iter().map(|capability| json!({
                "name": capability.name,
                "present": capability.present,
                "purpose": capability.purpose,
            })).collect::<Vec<_>>(),
        })),
        "effects": or_error(report.effects.as_ref(), |effects| json!({
            "host_rate_khz": effects.host.get(),
            "offset": or_error(effects.offset.as_ref(), offset),
            "rates": effects.rates.iter().map(rate_trial).collect::<Vec<_>>(),
        })),
        "facts": {
            "offset": effect(report.facts.offset),
            "scaling": effect(report.facts.scaling),
            "catch_up": effect(report.facts.catch_up),
            "single_domain": report.facts.spread == Spread::One,
        },
        "verdicts": verdicts.collect::<Vec<_>>(),
        "required": names(required),
        "missing": names(&missing),
        "took_ns": report.took.get(),
    });
    format!("{value:#}\n")
}

/// A part that could not be had is an object with its reason.
fn or_error<T>(part: Result<&T, &String>, render: impl FnOnce(&T) -> Value) -> Value {
    part.map_or_else(|reason| json!({ "error": reason }), render)
}

fn processor(report: &Report) -> Value {
    let platform = &report.platform;
    json!({
        "vendor": platform.vendor,
        "model": platform.model,
        "hypervisor": platform.hypervisor,
        "invariant_tsc": platform.invariant_tsc,
        "rdtscp": platform.rdtscp,
    })
}

fn rate(report: &Report) -> Value {
    let measured = report.rate.as_ref();
    let claims = report.claims.iter().map(|claim| {
        let deviation = claim.deviation(measured.ok().copied());
        json!({
            "source": claim.source,
            "khz": claim.khz.get(),
            "measured_deviation_at_least_ppb": deviation.map(|d| d.at_least.get()),
            "measured_deviation_at_most_ppb": deviation.map(|d| d.at_most.get()),
        })
    });
    json!({
        "measured": or_error(measured, |measured| json!({
            "at_least_hz": measured.rate.at_least.get(),
            "at_most_hz": measured.rate.at_most.get(),
            "over_ns": measured.over.get(),
        })),
        "claims": claims.collect::<Vec<_>>(),
    })
}

fn cpus(skew: &Skew, khz: Option<Khz>) -> Value {
    let ids = |cpus: &[CpuId]| cpus.iter().map(|cpu| cpu.get()).collect::<Vec<_>>();
    let pairs = skew
        .known
        .iter()
        .map(|&(a, b, bounds)| pair(a, b, bounds, khz));
    let failed = skew.exchanges.pairs.iter().filter_map(|pair| {
        let reason = pair.bounds.as_ref().err()?;
        Some(json!({ "a": pair.a.get(), "b": pair.b.get(), "error": reason }))
    });
    json!({
        "measured": ids(&skew.exchanges.cpus),
        "not_measured_count": skew.exchanges.left_out,
        "exchanged_pairs": skew.exchanges.pairs.len(),
        "not_reached_pairs": skew.exchanges.not_reached,
        "rounds": skew.exchanges.pairs.iter().map(|pair| u64::from(pair.rounds)).sum::<u64>(),
        "skews": pairs.collect::<Vec<_>>(),
        "failed_pairs": failed.collect::<Vec<_>>(),
        "domain_bound_ns": BOUND.get(),
        "domain_bound_ticks": skew.bound.map(|bound| bound.get()),
        "domains": skew.domains.iter().map(|cpus| ids(cpus)).collect::<Vec<_>>(),
        "agree": match skew.spread {
            Spread::One => "proven",
            Spread::Several { .. } => "refuted",
            Spread::Unproven => "unproven",
        },
        "problem": skew.problem,
    })
}

fn pair(a: CpuId, b: CpuId, bounds: SkewBounds, khz: Option<Khz>) -> Value {
    let nanos = khz.and_then(|khz| skew_nanos_outward(bounds, khz));
    json!({
        "a": a.get(),
        "b": b.get(),
        "at_least_ticks": bounds.at_least().get(),
        "at_most_ticks": bounds.at_most().get(),
        "at_least_ns": nanos.map(|(least, _)| least.get()),
        "at_most_ns": nanos.map(|(_, most)| most.get()),
    })
}

fn offset(trial: &OffsetTrial) -> Value {
    json!({
        "asked": trial.written.asked().get(),
        "read_back": trial.written.claimed().get(),
        "effect": offset_effect(trial.effect, trial.written.asked()),
        "after_a_move": trial
            .after_move
            .map(|effect| offset_effect(effect, trial.written.asked())),
    })
}

fn offset_effect(effect: OffsetEffect, asked: TscOffset) -> Value {
    let (name, bounds) = offset_words(effect);
    json!({
        "name": name,
        "error_at_least_ticks": bounds.map(|b| b.at_least().wrapping_since(asked).get()),
        "error_at_most_ticks": bounds.map(|b| b.at_most().wrapping_since(asked).get()),
    })
}

/// An effect's name and what was measured.
pub(super) fn offset_words(effect: OffsetEffect) -> (&'static str, Option<OffsetBounds>) {
    match effect {
        OffsetEffect::InForce(bounds) => ("in-force", Some(bounds)),
        OffsetEffect::Ignored(bounds) => ("ignored", Some(bounds)),
        OffsetEffect::MovedByKernel { measured, .. } => ("moved-by-kernel", measured),
        OffsetEffect::Other(bounds) => ("other", Some(bounds)),
        OffsetEffect::Unsteady => ("unsteady", None),
        OffsetEffect::Undecided(bounds) => ("undecided", Some(bounds)),
    }
}

fn rate_trial(trial: &RateTrial) -> Value {
    let (name, reason, reads_back, from_host, error) = match &trial.outcome {
        RateOutcome::Refused(reason) => ("refused", Some(reason), None, None, None),
        RateOutcome::Failed(reason) => ("failed", Some(reason), None, None, None),
        RateOutcome::Measured {
            reads_back,
            effect,
            error,
        } => (
            rate_name(*effect),
            None,
            Some(reads_back),
            effect.deviation(),
            *error,
        ),
    };
    let (least, most) = (
        |bounds: DeviationBounds| bounds.at_least.get(),
        |bounds: DeviationBounds| bounds.at_most.get(),
    );
    json!({
        "name": trial.name,
        "within_tolerance": trial.near,
        "asked_khz": trial.asked.get(),
        "effect": name,
        "reason": reason,
        "read_back": reads_back,
        "from_host_at_least_ppb": from_host.map(least),
        "from_host_at_most_ppb": from_host.map(most),
        "error_at_least_ppb": error.map(least),
        "error_at_most_ppb": error.map(most),
    })
}

/// An effect's name.
pub(super) const fn rate_name(effect: RateEffect) -> &'static str {
    match effect {
        RateEffect::InForce(_) => "in-force",
        RateEffect::Unscaled(_) => "ignored",
        RateEffect::CaughtUp(_) => "caught-up",
        RateEffect::AcrossEntries(_) => "across-entries-only",
        RateEffect::Neither(_) => "neither",
        RateEffect::Undecided(_) => "undecided",
    }
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::InForce => "in-force",
        Effect::NoEffect => "no-effect",
        Effect::Overridden => "overridden",
        Effect::Unknown => "unknown",
    }
}
