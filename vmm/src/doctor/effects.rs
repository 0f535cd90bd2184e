//! What really happens in a guest, measured with a probe guest in throw-away VMs.
//!
//! Each trial asks for something, looks what reads back, and then has a guest read its TSC between
//! readings of the host's. Only what those readings prove is believed: there are KVMs that accept an
//! offset and drop it, that give a rate back without scaling to it, and every KVM leaves rates within
//! its tolerance unscaled without a word. Each trial has a VM of its own, so that none finds the
//! traces of another.

use hypervisor::contract::{Fixture, Probe, ProbeError};
use hypervisor::tsc_control::{
    OffsetBounds, OffsetEffect, OffsetInterface, RateEffect, ReadBack, TscControlError,
    TscOffsetControl, VendorRatio,
};
use tsc::assess::Effect;
use tsc::measure::{self, DeviationBounds, GuestSample};
use tsc::plan::within_tolerance;
use tsc::{HostTsc, Khz, Nanos, Ppb, Ppm, Ticks, TscDelta, TscOffset, VcpuId, ticks_exact_floor};

use super::progress::Progress;
use crate::error::one_line;

/// The probe's only vCPU.
const VCPU: VcpuId = VcpuId::new(0);
/// Readings for one judgement; the most closely bracketed of them decide.
const READINGS: usize = 32;
/// Readings within one entry, and their distance: several ticks of the host's kernel, so that a
/// guest that is only pushed forward at its entries is found out.
const WITHIN: usize = 24;
const SPACING: Nanos = Nanos::new(500_000);
/// How often twice as many of them are taken, until they tell scaling from such pushes.
const WITHIN_ATTEMPTS: u32 = 4;
/// Times over which a rate is measured, one after the other until it is decided: 0.9 s in all.
const SPANS_MS: [u64; 4] = [60, 120, 240, 480];
/// An error of a rate is known closely enough within so much: 4.3 s a day.
const CLOSE: Ppb = Ppb::new(50_000);
/// The offset asked for, relative to the present one: 18 minutes back at 1 GHz, which no other
/// influence on a clock explains.
const MOVE: TscDelta = TscDelta::new(-(1 << 40));

/// What is said of a kernel that takes an offset as a reading of the guest's TSC alone.
const NO_OFFSETS: &str = "its kernel neither tells a vCPU's TSC offset nor takes one (KVM_VCPU_TSC_OFFSET, which Linux has \
    since 5.16)";

/// What became of an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OffsetTrial {
    /// Asked for, and what read back.
    pub(super) written: ReadBack<TscOffset>,
    /// By measurement.
    pub(super) effect: OffsetEffect,
    /// By measurement, after the vCPU had been on another CPU; `None` where no other is known to agree.
    pub(super) after_move: Option<OffsetEffect>,
}

/// Whether the guest followed the offset at home and abroad; otherwise, in words, what happened.
pub(super) fn all_in_force(trial: &OffsetTrial) -> Result<(), String> {
    for effect in [Some(trial.effect), trial.after_move].into_iter().flatten() {
        let what = match effect {
            OffsetEffect::InForce(_) => continue,
            OffsetEffect::Ignored(_) => "its KVM accepts TSC offsets and ignores them",
            OffsetEffect::MovedByKernel { .. } => {
                "its KVM moves TSC offsets by itself, since it takes the TSC for unstable"
            }
            OffsetEffect::Other(_) | OffsetEffect::Unsteady | OffsetEffect::Undecided(_) => {
                "a guest was not seen to follow a TSC offset"
            }
        };
        return Err(what.to_owned());
    }
    Ok(())
}

/// What became of a rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RateOutcome {
    /// The call failed.
    Refused(String),
    /// The call was accepted.
    Measured {
        /// Whether the number read back.
        reads_back: bool,
        /// By measurement.
        effect: RateEffect,
        /// How far the guest's rate is from the one asked for.
        error: Option<DeviationBounds>,
    },
    /// Nothing was found out.
    Failed(String),
}

/// A rate and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RateTrial {
    /// The rate in words.
    pub(super) name: &'static str,
    /// Whether it is within the tolerance.
    pub(super) near: bool,
    /// The rate asked for.
    pub(super) asked: Khz,
    /// What became of it.
    pub(super) outcome: RateOutcome,
}

/// All effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effects {
    /// The host's rate, as KVM claims it: what rates are relative to.
    pub(super) host: Khz,
    /// The offset.
    pub(super) offset: Result<OffsetTrial, String>,
    /// The rates.
    pub(super) rates: Vec<RateTrial>,
}

impl Effects {
    /// Whether offsets take effect.
    pub(super) fn offset_effect(&self) -> Effect {
        match self.offset.as_ref().map(|trial| trial.effect) {
            Ok(OffsetEffect::InForce(_)) => Effect::InForce,
            Ok(OffsetEffect::Ignored(_)) => Effect::NoEffect,
            Ok(OffsetEffect::MovedByKernel { .. }) => Effect::Overridden,
            _ => Effect::Unknown,
        }
    }

    /// Whether KVM moved an offset by itself, which it does on hosts whose TSC it takes for unstable.
    pub(super) fn kernel_compensates(&self) -> bool {
        let moved = |effect| matches!(effect, OffsetEffect::MovedByKernel { .. });
        self.offset
            .as_ref()
            .is_ok_and(|trial| moved(trial.effect) || trial.after_move.is_some_and(moved))
    }

    /// Whether a faster guest keeps up at least by being pushed at its entries: all faster rates that
    /// were tried.
    pub(super) fn catch_up_effect(&self) -> Effect {
        let mut faster = self
            .rates
            .iter()
            .filter(|trial| !trial.near && trial.asked > self.host);
        let effect = |trial: &RateTrial| match &trial.outcome {
            RateOutcome::Measured { effect, .. } => match effect {
                RateEffect::InForce(_) | RateEffect::CaughtUp(_) | RateEffect::AcrossEntries(_) => {
                    Effect::InForce
                }
                RateEffect::Unscaled(_) | RateEffect::Neither(_) => Effect::NoEffect,
                RateEffect::Undecided(_) => Effect::Unknown,
            },
            RateOutcome::Refused(_) => Effect::NoEffect,
            RateOutcome::Failed(_) => Effect::Unknown,
        };
        let first = faster.next().map_or(Effect::Unknown, effect);
        if faster.all(|trial| effect(trial) == first) {
            first
        } else {
            Effect::Unknown
        }
    }

    /// Whether rates beyond the tolerance take effect: all that were tried, or none is promised.
    pub(super) fn scaling_effect(&self) -> Effect {
        let beyond = || self.rates.iter().filter(|trial| !trial.near);
        let effect = |trial: &RateTrial| match &trial.outcome {
            RateOutcome::Measured { effect, .. } => match effect {
                RateEffect::InForce(_) => Effect::InForce,
                RateEffect::Undecided(_) | RateEffect::AcrossEntries(_) => Effect::Unknown,
                _ => Effect::NoEffect,
            },
            RateOutcome::Refused(_) => Effect::NoEffect,
            RateOutcome::Failed(_) => Effect::Unknown,
        };
        if beyond().any(|trial| effect(trial) == Effect::NoEffect) {
            Effect::NoEffect
        } else if beyond().count() > 0 && beyond().all(|trial| effect(trial) == Effect::InForce) {
            Effect::InForce
        } else {
            Effect::Unknown
        }
    }
}

/// Tries everything on VMs of `fixture`.
///
/// # Errors
/// No VM can be built, or KVM does not know its own rate.
pub(super) fn measure<F: Fixture>(
    fixture: &F,
    tolerance: Ppm,
    progress: &mut Progress,
) -> Result<Effects, ProbeError> {
    let host = fixture.build(1, None)?.control(VCPU)?.rate()?.claim();
    progress.step(|| "TSC offset with a probe guest".to_owned());
    let offset = try_offset(fixture).map_err(|error| error.chain());
    let rates = rates(host, tolerance)
        .into_iter()
        .map(|(name, near, asked)| {
            progress.step(|| format!("TSC rate of {asked} with a probe guest"));
            RateTrial {
                name,
                near,
                asked,
                outcome: try_rate(fixture, host, asked)
                    .unwrap_or_else(|error| RateOutcome::Failed(error.chain())),
            }
        })
        .collect();
    Ok(Effects {
        host,
        offset,
        rates,
    })
}

/// The rates to try: well below the host's, well above, just beyond the tolerance, and within it.
fn rates(host: Khz, tolerance: Ppm) -> Vec<(&'static str, bool, Khz)> {
    const MILLION: u32 = 1_000_000;
    let ppm = tolerance.get();
    let beyond = MILLION.saturating_sub(4 * ppm.max(1));
    [
        ("half the host's", MILLION / 2),
        ("1.7 times the host's", MILLION / 10 * 17),
        ("a little below the host's", beyond),
        ("a very little above the host's", MILLION + ppm / 2),
    ]
    .into_iter()
    .filter_map(|(name, millionths)| {
        // OK because the product has 32 + 21 bits.
        let khz = u64::from(host.get()) * u64::from(millionths) / u64::from(MILLION);
        let asked = u32::try_from(khz).ok().and_then(Khz::new)?;
        // The host's own rate is no other one.
        (asked != host).then_some((name, within_tolerance(asked, host, tolerance), asked))
    })
    .collect()
}

/// `time` in ticks of the host's TSC, by the rate that KVM claims for it.
pub(super) fn ticks_of<F: Fixture>(fixture: &F, time: Nanos) -> Option<Ticks> {
    let mut probe = fixture.build(1, None).ok()?;
    let khz = probe.control(VCPU).ok()?.rate().ok()?.claim();
    ticks_exact_floor(time, khz)
}

pub(super) fn try_offset<F: Fixture>(fixture: &F) -> Result<OffsetTrial, ProbeError> {
    let mut probe = fixture.build(1, None)?;
    let support = probe.control(VCPU)?.tsc_support();
    if support.offset == OffsetInterface::Msr {
        return Err(ProbeError::new(NO_OFFSETS));
    }
    let ratio = VendorRatio::one(support.vendor);
    let before = probe.readings(VCPU, READINGS)?;
    let former = OffsetBounds::proven_by(ratio, &before).ok_or_else(|| {
        ProbeError::new("no offset explains a fresh guest's readings: the host's TSC is not steady")
    })?;
    let control = probe.control(VCPU)?;
    // From what the guest reads, not from what is claimed.
    let asked = former.at_least().wrapping_add(MOVE);
    let written = control.write_offset(asked)?.read_back(control.offset()?);
    let judge = |probe: &mut F::Probe| {
        let samples = probe.readings(VCPU, READINGS)?;
        let later = probe.control(VCPU)?.offset()?;
        Ok::<_, ProbeError>(OffsetEffect::judge(written, later, former, ratio, &samples))
    };
    let effect = judge(&mut probe)?;
    let after_move = if probe.visit_another_cpu(VCPU)? {
        Some(judge(&mut probe)?)
    } else {
        None
    };
    Ok(OffsetTrial {
        written,
        effect,
        after_move,
    })
}

pub(super) fn try_rate<F: Fixture>(
    fixture: &F,
    host: Khz,
    asked: Khz,
) -> Result<RateOutcome, ProbeError> {
    let mut probe = fixture.build(1, None)?;
    let control = probe.control(VCPU)?;
    let support = control.tsc_support();
    let ratio =
        VendorRatio::from_rates_floor(support.vendor, asked, host).map_err(ProbeError::new)?;
    let written = match control.ask_rate(asked) {
        Ok(written) => written.read_back(control.rate()?),
        Err(TscControlError::Rate { source, .. }) => {
            return Ok(RateOutcome::Refused(one_line(&source)));
        }
        Err(error) => return Err(error.into()),
    };
    let mut within = probe.readings_in_one_entry(VCPU, WITHIN, SPACING)?;
    let mut across = probe.readings(VCPU, READINGS)?;
    let mut judged = (RateEffect::Undecided(None), None);
    for millis in SPANS_MS {
        probe.pass(Nanos::from_millis(millis).unwrap_or(Nanos::ZERO));
        across.extend(probe.readings(VCPU, READINGS)?);
        let error = error_against(ratio, &across);
        judged = (RateEffect::judge(ratio, &across, &within), error);
        match judged.0 {
            RateEffect::Undecided(_) => {}
            // In force: how exactly?
            RateEffect::InForce(_) if !error.is_some_and(is_close) => {}
            _ => break,
        }
    }
    let (mut effect, error) = judged;
    // On a busy host brackets are wide: more readings, in an entry of their own each time.
    let mut count = WITHIN;
    for _ in 1..WITHIN_ATTEMPTS {
        if !matches!(effect, RateEffect::AcrossEntries(_)) || within.is_empty() {
            break;
        }
        count *= 2;
        within = probe.readings_in_one_entry(VCPU, count, SPACING)?;
        effect = RateEffect::judge(ratio, &across, &within);
    }
    Ok(RateOutcome::Measured {
        reads_back: written.agrees(),
        effect: unless_it_says_otherwise(effect, support.scaling),
        error,
    })
}

/// A host whose timers interrupt the guest at each request has it pushed before each answer, and then
/// no reading tells that from scaling. What a host says against itself is taken as it is: where it
/// does not claim to scale, a rate that is kept is kept by pushes.
const fn unless_it_says_otherwise(effect: RateEffect, claims_scaling: bool) -> RateEffect {
    match effect {
        RateEffect::InForce(deviation) if !claims_scaling => RateEffect::CaughtUp(deviation),
        other => other,
    }
}

fn is_close(error: DeviationBounds) -> bool {
    error
        .at_most
        .get()
        .checked_sub(error.at_least.get())
        .is_some_and(|width| width <= CLOSE.get())
}

/// How far the guest's rate is from that of a counter which `ratio` makes of the host's, exact to the
/// tick because both compute the same floor. What the ratio itself lacks to the rate asked for is
/// less than 1 ppb at the rates tried.
fn error_against(ratio: VendorRatio, samples: &[GuestSample]) -> Option<DeviationBounds> {
    let ideal = |host: measure::HostSample| measure::HostSample {
        tsc: HostTsc::new(ratio.guest_at(TscOffset::ZERO, host.tsc).get()),
        ..host
    };
    let against = |sample: &GuestSample| GuestSample {
        before: ideal(sample.before),
        guest: sample.guest,
        after: ideal(sample.after),
    };
    let (first, last) = samples.split_at(samples.len().min(READINGS));
    let last = last.get(last.len().saturating_sub(READINGS)..)?;
    measure::guest_deviation(
        &against(measure::tightest(first)?),
        &against(measure::tightest(last)?),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::model::{Faults, ModelFixture, ModelForm, ModelHost, Obedience};
    use tsc::{CpuId, Svm, Vmx};

    /// What every Linux does: a tolerance, and compensation on hosts that it takes for unstable.
    fn linux() -> Faults {
        Faults {
            tolerance: Ppm::KVM_TOLERANCE,
            compensation: true,
            ..Faults::default()
        }
    }

    fn khz(khz: u32) -> Khz {
        Khz::new(khz).expect("a rate")
    }

    fn host(cpus: usize, faults: Faults) -> ModelHost {
        ModelHost::uniform(cpus, khz(2_893_203), faults)
    }

    fn effects<F: ModelForm>(host: &ModelHost) -> Effects {
        let fixture = ModelFixture::<F>::new(host.clone());
        measure(&fixture, Ppm::KVM_TOLERANCE, &mut Progress::silent()).expect("a VM can be built")
    }

    /// The effects on both vendors' models, which must be of one mind.
    fn both(host: &ModelHost) -> [Effects; 2] {
        let both = [effects::<Vmx>(host), effects::<Svm>(host)];
        assert_eq!(both[0].offset_effect(), both[1].offset_effect());
        assert_eq!(both[0].scaling_effect(), both[1].scaling_effect());
        both
    }

    fn near(effects: &Effects) -> &RateOutcome {
        let mut trials = effects.rates.iter().filter(|trial| trial.near);
        &trials.next().expect("one is within the tolerance").outcome
    }

    #[test]
    fn linux_that_scales_is_seen_to_and_its_tolerance_too() {
        for effects in both(&host(2, linux())) {
            assert_eq!(effects.offset_effect(), Effect::InForce);
            assert_eq!(effects.scaling_effect(), Effect::InForce);
            assert!(!effects.kernel_compensates());
            let trial = effects.offset.as_ref().expect("measured");
            assert!(trial.after_move.expect("two CPUs").is_in_force());
            assert_eq!(effects.rates.len(), 4);
            for trial in effects.rates.iter().filter(|trial| !trial.near) {
                let RateOutcome::Measured { error, .. } = trial.outcome else {
                    panic!("{trial:?}");
                };
                let error = error.expect("apart");
                assert!(is_close(error), "{trial:?}");
                assert!(
                    error.at_least.get() <= 0 && error.at_most.get() >= 0,
                    "{trial:?}"
                );
            }
            let RateOutcome::Measured {
                reads_back: true,
                effect: RateEffect::Unscaled(_),
                ..
            } = near(&effects)
            else {
                panic!("{effects:?}");
            };
        }
    }

    #[test]
    fn linux_without_scaling_refuses_or_pushes() {
        for effects in both(&host(2, linux()).without_scaling()) {
            assert_eq!(effects.offset_effect(), Effect::InForce);
            assert_eq!(effects.scaling_effect(), Effect::NoEffect);
            assert_eq!(effects.catch_up_effect(), Effect::InForce);
            let outcome = |name| {
                let mut trials = effects.rates.iter().filter(|trial| trial.name == name);
                &trials.next().expect("tried").outcome
            };
            assert!(matches!(
                outcome("half the host's"),
                RateOutcome::Refused(_)
            ));
            let RateOutcome::Measured {
                effect: RateEffect::CaughtUp(_),
                ..
            } = outcome("1.7 times the host's")
            else {
                panic!("{effects:?}");
            };
        }
    }

    #[test]
    fn a_push_before_each_reading_is_not_taken_for_scaling() {
        let interrupted = Faults {
            exits_at_each_request: true,
            ..linux()
        };
        for effects in both(&host(2, interrupted).without_scaling()) {
            assert_eq!(effects.scaling_effect(), Effect::NoEffect);
            assert_eq!(effects.catch_up_effect(), Effect::InForce);
            let in_force = effects.rates.iter().filter(|trial| {
                let RateOutcome::Measured { effect, .. } = trial.outcome else {
                    return false;
                };
                effect.is_in_force()
            });
            assert_eq!(in_force.count(), 0, "{effects:?}");
        }
    }

    #[test]
    fn no_return_code_is_believed() {
        for (offset_writes, rate_writes) in [
            (Obedience::Ignored, Obedience::Ignored),
            (Obedience::IgnoredAndReadBack, Obedience::IgnoredAndReadBack),
        ] {
            let faults = Faults {
                offset_writes,
                rate_writes,
                ..linux()
            };
            for effects in both(&host(2, faults)) {
                assert_eq!(effects.offset_effect(), Effect::NoEffect);
                assert_eq!(effects.scaling_effect(), Effect::NoEffect);
                assert_eq!(effects.catch_up_effect(), Effect::NoEffect);
            }
        }
        let pushing = Faults {
            catch_up_instead_of_scaling: true,
            ..linux()
        };
        for effects in both(&host(2, pushing)) {
            assert_eq!(effects.offset_effect(), Effect::InForce);
            assert_eq!(effects.scaling_effect(), Effect::NoEffect);
        }
    }

    #[test]
    fn a_kernel_that_compensates_is_found_out() {
        let skewed = host(2, linux()).with_skew(CpuId::new(1), TscDelta::new(50_000_000));
        for effects in both(&skewed.unstable()) {
            assert!(effects.kernel_compensates(), "{effects:?}");
        }
    }

    #[test]
    fn scaling_is_promised_by_all_trials_or_not_at_all() {
        let bounds = DeviationBounds {
            at_least: Ppb::new(0),
            at_most: Ppb::new(0),
        };
        let measured = |effect| RateOutcome::Measured {
            reads_back: true,
            effect,
            error: None,
        };
        let force = || measured(RateEffect::InForce(bounds));
        let failed = || RateOutcome::Failed("no VM".to_owned());
        let effect = |outcomes: Vec<RateOutcome>| {
            let rates = outcomes.into_iter().map(|outcome| RateTrial {
                name: "a rate",
                near: false,
                asked: khz(1),
                outcome,
            });
            let effects = Effects {
                host: khz(1),
                offset: Err(String::new()),
                rates: rates.collect(),
            };
            effects.scaling_effect()
        };
        let rows = [
            (vec![], Effect::Unknown),
            (vec![force(), force()], Effect::InForce),
            (vec![force(), failed()], Effect::Unknown),
            (
                vec![failed(), RateOutcome::Refused("EINVAL".to_owned())],
                Effect::NoEffect,
            ),
            (
                vec![force(), measured(RateEffect::CaughtUp(bounds))],
                Effect::NoEffect,
            ),
            (
                vec![force(), measured(RateEffect::AcrossEntries(bounds))],
                Effect::Unknown,
            ),
        ];
        for (outcomes, expected) in rows {
            assert_eq!(effect(outcomes.clone()), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn rates_to_try_are_on_both_sides_of_the_tolerance() {
        let near = |host, ppm| {
            rates(khz(host), Ppm::new(ppm).expect("in bounds"))
                .into_iter()
                .map(|(_, near, asked)| (near, asked.get()))
                .collect::<Vec<_>>()
        };
        // 250 ppm of 2 GHz are 500 kHz; 4 times that below, half of it above
        assert_eq!(
            near(2_000_000, 250),
            [
                (false, 1_000_000),
                (false, 3_400_000),
                (false, 1_998_000),
                (true, 2_000_250)
            ]
        );
        // without a tolerance no rate is within it; 4 ppm are 8 kHz
        assert_eq!(
            near(2_000_000, 0),
            [(false, 1_000_000), (false, 3_400_000), (false, 1_999_992)]
        );
        // and a tolerance of everything has all of them, but for a rate of 0
        assert_eq!(
            near(2_000_000, 1_000_000),
            [(true, 1_000_000), (true, 3_400_000), (true, 3_000_000)]
        );
        // more than the largest rate is none
        assert_eq!(near(u32::MAX, 250).len(), 2);
    }
}
