//! Clauses about rates.

use tsc::measure::{self, DeviationBounds, GuestSample, HostSample};
use tsc::{HostTsc, Khz, Nanos, TscOffset, VcpuId};

use super::offset::READINGS;
use super::{Effort, Finding, Fixture, Kind, Probe, ProbeError};
use crate::tsc_control::{
    OffsetBounds, RateEffect, ReadBack, RefusedRate, TscControlError, TscOffsetControl, VendorRatio,
};

/// Readings within one entry, and their distance: 12 ms, several ticks of the host's kernel.
const WITHIN: usize = 24;
const SPACING: Nanos = Nanos::new(500_000);
/// How often twice as many of them are taken, until they tell scaling from catch-up.
const WITHIN_ATTEMPTS: u32 = 4;

/// The error of a rate that the measurement must be able to notice: 50 parts in a million.
const NOTICED: u32 = 1_000_000 / 50;

/// How a rate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Vcpu,
    Default,
}

/// What `control`, of a vCPU that nobody has asked for anything, claims the host's rate to be.
fn host_rate(control: &impl TscOffsetControl) -> Result<Khz, ProbeError> {
    Ok(control.rate()?.claim())
}

/// `rate` more or less by 50 ppm.
fn nearby(rate: Khz) -> [Option<Khz>; 2] {
    let part = (rate.get() / NOTICED).max(1);
    [
        rate.get().checked_sub(part).and_then(Khz::new),
        rate.get().checked_add(part).and_then(Khz::new),
    ]
}

/// Whether `samples` would contradict a rate that is 50 ppm off the one asked for.
fn would_notice(samples: &[GuestSample], ratio: VendorRatio, asked: Khz, host: Khz) -> bool {
    nearby(asked).into_iter().flatten().all(|rate| {
        VendorRatio::from_rates_floor(ratio.vendor(), rate, host)
            .is_ok_and(|off| OffsetBounds::proven_by(off, samples).is_none())
    })
}

/// The deviation of a guest that is scaled by `ratio` exactly, to the nanosecond-part.
fn predicted(ratio: VendorRatio) -> Option<DeviationBounds> {
    let exact = |ticks| {
        let host = HostSample {
            tsc: HostTsc::new(ticks),
            monotonic: Nanos::ZERO,
        };
        GuestSample {
            before: host,
            guest: ratio.guest_at(TscOffset::ZERO, host.tsc),
            after: host,
        }
    };
    measure::guest_deviation(&exact(0), &exact(1 << 47))
}

fn ppb(bounds: Option<DeviationBounds>) -> String {
    bounds.map_or_else(
        || "unknown".to_owned(),
        |bounds| format!("{}..{} ppb", bounds.at_least.get(), bounds.at_most.get()),
    )
}

/// How far a clause about a rate has come.
pub(super) enum Begun<P> {
    /// To its end: there is no guest whose rate could be measured.
    Found(Finding),
    /// The guest ticks, its first readings are taken, and time is to pass.
    Ticking(Trial<P>),
}

/// A guest under a rate that was asked for.
pub(super) struct Trial<P> {
    probe: P,
    host: Khz,
    written: ReadBack<Khz>,
    register: Option<VendorRatio>,
    scaling: bool,
    ratio: VendorRatio,
    across: Vec<GuestSample>,
}

/// The vCPU whose rate is asked for.
const VCPU: VcpuId = VcpuId::new(0);

/// Asks for a rate that `rate` makes of the host's, and takes the first readings under it.
pub(super) fn begin<F: Fixture>(
    fixture: &F,
    scope: Scope,
    rate: impl FnOnce(Khz) -> Option<Khz>,
) -> Result<Begun<F::Probe>, ProbeError> {
    let mut fresh = fixture.build(1, None)?;
    let host = host_rate(fresh.control(VCPU)?)?;
    let asked = rate(host).ok_or_else(|| ProbeError::new("no such rate"))?;
    let mut probe = match scope {
        Scope::Vcpu => fresh,
        Scope::Default => match fixture.build(1, Some(asked)) {
            Err(ProbeError::Control(error)) => return absent_or_refused(error).map(Begun::Found),
            built => built?,
        },
    };
    let control = probe.control(VCPU)?;
    let support = control.tsc_support();
    let ratio = match VendorRatio::from_rates_floor(support.vendor, asked, host) {
        Ok(ratio) => ratio,
        Err(error) => return Ok(Begun::Found(Finding::new(Kind::NotPossible, error))),
    };
    let written = match scope {
        Scope::Default => ReadBack::of(asked, control.rate()?),
        Scope::Vcpu => match control.ask_rate(asked) {
            Ok(written) => written.read_back(control.rate()?),
            Err(TscControlError::Rate { asked, .. }) => {
                return refused(&mut probe, asked, VendorRatio::one(support.vendor))
                    .map(Begun::Found);
            }
            Err(other) => return Err(other.into()),
        },
    };
    let register = if support.ratio {
        Some(probe.control(VCPU)?.ratio()?.claim())
    } else {
        None
    };
    let across = probe.readings(VCPU, READINGS)?;
    Ok(Begun::Ticking(Trial {
        probe,
        host,
        written,
        register,
        scaling: support.scaling,
        ratio,
        across,
    }))
}

/// Lets the same time pass for all `trials`, again until each would notice an error of 50 ppm or the
/// effort is spent, and says what was found.
///
/// The time is one for all, because on an emulated host a second of it takes minutes.
pub(super) fn measure_together<F: Fixture>(
    fixture: &F,
    effort: Effort,
    mut trials: Vec<Result<Begun<F::Probe>, ProbeError>>,
) -> Vec<Result<Finding, ProbeError>> {
    for span in 0..effort.spans.max(1) {
        let mut ticking: Vec<_> = trials
            .iter_mut()
            .filter(|begun| match begun {
                Ok(Begun::Ticking(trial)) => span == 0 || !trial.is_sharp(),
                _ => false,
            })
            .collect();
        if ticking.is_empty() {
            break;
        }
        let mut probes: Vec<_> = ticking
            .iter_mut()
            .filter_map(|begun| match begun {
                Ok(Begun::Ticking(trial)) => Some(&mut trial.probe),
                _ => None,
            })
            .collect();
        fixture.pass_for_all(&mut probes, effort.span);
        for begun in ticking {
            if let Ok(Begun::Ticking(trial)) = begun
                && let Err(error) = trial.read()
            {
                *begun = Err(error);
            }
        }
    }
    trials
        .into_iter()
        .map(|begun| match begun? {
            Begun::Found(finding) => Ok(finding),
            Begun::Ticking(trial) => trial.finding(),
        })
        .collect()
}

impl<P: Probe> Trial<P> {
    fn read(&mut self) -> Result<(), ProbeError> {
        self.across.extend(self.probe.readings(VCPU, READINGS)?);
        Ok(())
    }

    fn is_sharp(&self) -> bool {
        would_notice(&self.across, self.ratio, self.written.asked(), self.host)
    }

    /// By measurement. Where the readings across entries agree with the rate, readings within one
    /// entry must tell whether the hardware keeps it: more of them where brackets are wide.
    fn effect(&mut self) -> Result<RateEffect, ProbeError> {
        let mut effect = RateEffect::judge(self.ratio, &self.across, &[]);
        let mut count = WITHIN;
        for _ in 0..WITHIN_ATTEMPTS {
            if !matches!(effect, RateEffect::AcrossEntries(_)) {
                break;
            }
            let within = self.probe.readings_in_one_entry(VCPU, count, SPACING)?;
            effect = RateEffect::judge(self.ratio, &self.across, &within);
            count *= 2;
        }
        Ok(effect)
    }

    fn finding(mut self) -> Result<Finding, ProbeError> {
        let effect = self.effect()?;
        let (first, last) = self.across.split_at(READINGS.min(self.across.len()));
        let last = last.get(last.len().saturating_sub(READINGS)..);
        let tightest = last
            .and_then(measure::tightest)
            .zip(measure::tightest(first));
        let sharp = self.is_sharp();
        Ok(finding(&Measured {
            seen: tightest.and_then(|(last, first)| measure::guest_deviation(first, last)),
            over: tightest.map_or(Nanos::ZERO, |(last, first)| {
                last.before.monotonic.saturating_sub(first.after.monotonic)
            }),
            written: self.written,
            register: self.register,
            scaling: self.scaling,
            ratio: self.ratio,
            effect,
            sharp,
        }))
    }
}

struct Measured {
    written: ReadBack<Khz>,
    register: Option<VendorRatio>,
    scaling: bool,
    ratio: VendorRatio,
    effect: RateEffect,
    /// From the most closely bracketed of the first and of the last readings.
    seen: Option<DeviationBounds>,
    /// The time between those.
    over: Nanos,
    sharp: bool,
}

fn finding(measured: &Measured) -> Finding {
    let Measured {
        written,
        register,
        scaling,
        ratio,
        effect,
        seen,
        over,
        sharp,
    } = measured;
    let asked = written.asked();
    let reads_back = if written.agrees() {
        "reads back".to_owned()
    } else {
        format!("{} reads back", written.claimed())
    };
    let seen = ppb(*seen);
    let says = format!("{asked} {reads_back}");
    match effect {
        RateEffect::InForce(_) if !written.agrees() => Finding::new(
            Kind::Violated,
            format_args!("{says}, and yet it is in force"),
        ),
        RateEffect::InForce(_) if register.is_some_and(|register| register != *ratio) => {
            Finding::new(
                Kind::Violated,
                format_args!("{says}; in force, but the ratio read is not {ratio}"),
            )
        }
        // A host whose timers interrupt the guest at each request has it pushed before each answer, and
        // then no reading tells that from scaling. What a host says against itself is taken as it is.
        RateEffect::InForce(_) if !scaling && *ratio != VendorRatio::one(ratio.vendor()) => {
            Finding::new(
                Kind::Degraded,
                format_args!(
                    "{says}; kept ({seen}) by a host that does not claim to scale: by pushes"
                ),
            )
        }
        RateEffect::InForce(_) if *sharp => Finding::new(
            Kind::Holds,
            format_args!(
                "{says}; ratio {ratio}; {seen} from the host's rate over {} ns, {} predicted; 50 ppm would show",
                over.get(),
                ppb(predicted(*ratio))
            ),
        ),
        RateEffect::InForce(_) => Finding::new(
            Kind::Undecided,
            format_args!("{says}; {seen} from the host's rate: 50 ppm would not show"),
        ),
        RateEffect::Unscaled(_) => Finding::new(
            Kind::Ignored,
            format_args!("{says}, and the guest ticks at the host's rate ({seen})"),
        ),
        RateEffect::CaughtUp(_) => Finding::new(
            Kind::Degraded,
            format_args!("{says}; kept by pushes at entries, not by scaling ({seen} across them)"),
        ),
        RateEffect::AcrossEntries(_) => Finding::new(
            Kind::Undecided,
            format_args!("{says}; kept across entries ({seen}), not seen within one"),
        ),
        RateEffect::Neither(_) => Finding::new(
            Kind::Degraded,
            format_args!("{says}; the guest keeps neither this rate nor the host's ({seen})"),
        ),
        RateEffect::Undecided(_) => Finding::new(
            Kind::Undecided,
            format_args!("{says}; the readings cannot tell it from the host's ({seen})"),
        ),
    }
}

/// A refused rate changes nothing, whatever is claimed afterwards.
fn refused<P: Probe>(probe: &mut P, asked: Khz, one: VendorRatio) -> Result<Finding, ProbeError> {
    let record = RefusedRate {
        asked,
        claimed: probe
            .control(VCPU)?
            .rate()
            .ok()
            .map(crate::tsc_control::Claimed::claim),
    };
    let mut samples = probe.readings(VCPU, READINGS)?;
    probe.pass(Nanos::new(100_000_000));
    samples.extend(probe.readings(VCPU, READINGS)?);
    let claim = match record.claimed {
        Some(claimed) if claimed == asked => "reads back all the same".to_owned(),
        Some(claimed) => format!("{claimed} reads back"),
        None => "nothing reads back".to_owned(),
    };
    Ok(if OffsetBounds::proven_by(one, &samples).is_some() {
        Finding::new(
            Kind::Refused,
            format_args!("{asked} was refused, {claim}; the guest ticks at the host's rate"),
        )
    } else {
        Finding::new(
            Kind::Degraded,
            format_args!("{asked} was refused, {claim}; the guest does not tick steadily"),
        )
    })
}

fn absent_or_refused(error: TscControlError) -> Result<Finding, ProbeError> {
    match error {
        TscControlError::Absent { .. } => Ok(Finding::new(Kind::NotPossible, error)),
        TscControlError::Rate { .. } => Ok(Finding::new(Kind::Refused, error)),
        other => Err(other.into()),
    }
}

/// An offset is exact under a rate other than the host's too.
pub(super) fn with_offset<F: Fixture>(
    fixture: &F,
    rate: impl FnOnce(Khz) -> Option<Khz>,
) -> Result<Finding, ProbeError> {
    let mut probe = fixture.build(1, None)?;
    let control = probe.control(VCPU)?;
    let host = host_rate(control)?;
    let asked = rate(host).ok_or_else(|| ProbeError::new("no such rate"))?;
    if !control.tsc_support().scaling {
        return Ok(Finding::new(
            Kind::NotPossible,
            "this host does not claim to scale",
        ));
    }
    let vendor = control.tsc_support().vendor;
    let ratio = VendorRatio::from_rates_floor(vendor, asked, host)
        .map_err(|error| ProbeError::Control(error.into()))?;
    if let Err(error) = control.ask_rate(asked) {
        return absent_or_refused(error);
    }
    let delta = tsc::TscDelta::new(1 << 40);
    super::offset::moved_by(&mut probe, ratio, delta)
}
