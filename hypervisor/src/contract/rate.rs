//! Clauses about rates.

use tsc::measure::{self, DeviationBounds, GuestSample, HostSample};
use tsc::{HostTsc, Khz, Nanos, TscOffset, VcpuId};

use super::offset::READINGS;
use super::{Effort, Finding, Fixture, Kind, Probe, ProbeError};
use crate::tsc_control::{
    OffsetBounds, RateEffect, ReadBack, RefusedRate, TscControlError, TscOffsetControl, VendorRatio,
};

/// Readings within one entry, and their distance: 20 ms, several ticks of the host's kernel.
const WITHIN: usize = 40;
const SPACING: Nanos = Nanos::new(500_000);

/// The error of a rate that the measurement must be able to notice: 50 parts in a million.
const NOTICED: u32 = 1_000_000 / 50;

/// How a rate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Vcpu,
    Default,
}

/// The host's rate, as a fresh vCPU's is claimed to be.
pub(super) fn host_rate<F: Fixture>(fixture: &F) -> Result<Khz, ProbeError> {
    let mut probe = fixture.build(1, None)?;
    Ok(probe.control(VcpuId::new(0))?.rate()?.claim())
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

/// What is found when `numerator` / `denominator` times the host's rate is asked for.
pub(super) fn asked<F: Fixture>(
    fixture: &F,
    effort: Effort,
    scope: Scope,
    rate: impl FnOnce(Khz) -> Option<Khz>,
) -> Result<Finding, ProbeError> {
    let host = host_rate(fixture)?;
    let asked = rate(host).ok_or_else(|| ProbeError::new("no such rate"))?;
    let vcpu = VcpuId::new(0);
    let mut probe = match scope {
        Scope::Vcpu => fixture.build(1, None)?,
        Scope::Default => match fixture.build(1, Some(asked)) {
            Err(ProbeError::Control(error)) => return absent_or_refused(error),
            built => built?,
        },
    };
    let control = probe.control(vcpu)?;
    let support = control.tsc_support();
    let ratio = match VendorRatio::from_rates_floor(support.vendor, asked, host) {
        Ok(ratio) => ratio,
        Err(error) => return Ok(Finding::new(Kind::NotPossible, error)),
    };
    let written = match scope {
        Scope::Default => ReadBack::of(asked, control.rate()?),
        Scope::Vcpu => match control.ask_rate(asked) {
            Ok(written) => written.read_back(control.rate()?),
            Err(TscControlError::Rate { asked, .. }) => {
                return refused(&mut probe, vcpu, asked, VendorRatio::one(support.vendor));
            }
            Err(other) => return Err(other.into()),
        },
    };
    let register = if support.ratio {
        Some(probe.control(vcpu)?.ratio()?.claim())
    } else {
        None
    };
    let mut across = probe.readings(vcpu, READINGS)?;
    for _ in 0..effort.spans.max(1) {
        probe.pass(effort.span);
        across.extend(probe.readings(vcpu, READINGS)?);
        if would_notice(&across, ratio, asked, host) {
            break;
        }
    }
    let within = probe.readings_in_one_entry(vcpu, WITHIN, SPACING)?;
    let effect = RateEffect::judge(ratio, &across, &within);
    Ok(finding(&Measured {
        written,
        register,
        ratio,
        effect,
        sharp: would_notice(&across, ratio, asked, host),
    }))
}

struct Measured {
    written: ReadBack<Khz>,
    register: Option<VendorRatio>,
    ratio: VendorRatio,
    effect: RateEffect,
    sharp: bool,
}

fn finding(measured: &Measured) -> Finding {
    let Measured {
        written,
        register,
        ratio,
        effect,
        sharp,
    } = measured;
    let asked = written.asked();
    let reads_back = if written.agrees() {
        "reads back".to_owned()
    } else {
        format!("{} reads back", written.claimed())
    };
    let seen = ppb(effect.deviation());
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
        RateEffect::InForce(_) if *sharp => Finding::new(
            Kind::Holds,
            format_args!(
                "{says}; ratio {ratio}; {seen} from the host's rate, {} predicted; 50 ppm would show",
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
fn refused<P: Probe>(
    probe: &mut P,
    vcpu: VcpuId,
    asked: Khz,
    one: VendorRatio,
) -> Result<Finding, ProbeError> {
    let record = RefusedRate {
        asked,
        claimed: probe
            .control(vcpu)?
            .rate()
            .ok()
            .map(crate::tsc_control::Claimed::claim),
    };
    let mut samples = probe.readings(vcpu, READINGS)?;
    probe.pass(Nanos::new(100_000_000));
    samples.extend(probe.readings(vcpu, READINGS)?);
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
    let host = host_rate(fixture)?;
    let asked = rate(host).ok_or_else(|| ProbeError::new("no such rate"))?;
    let mut probe = fixture.build(1, None)?;
    let control = probe.control(VcpuId::new(0))?;
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
