//! Clauses about offsets.

use tsc::measure::GuestSample;
use tsc::{GuestTsc, Nanos, TscDelta, TscOffset, VcpuId};

use super::{Finding, Kind, Probe, ProbeError};
use crate::tsc_control::{
    OffsetBounds, OffsetEffect, OffsetInterface, ReadBack, TscControlError, TscOffsetControl,
    VendorRatio, Written,
};

/// Readings for one judgement.
pub(super) const READINGS: usize = 32;

/// The bounds to which an offset is to be known: some tenths of a millisecond. What is asked for differs
/// by more than ten times as much from what was.
const NARROW: TscDelta = TscDelta::new(1_000_000);
/// How often [`READINGS`] are taken until their bounds are that narrow.
const ATTEMPTS: u32 = 16;

/// Readings that bound the offset closely, or show that there is no single one.
///
/// Each is true however busy the machine is: it may only be too wide, and one that is narrow enough is
/// all that is needed. So readings are added, none is dropped, and the number of attempts bounds the
/// time and not what is believed.
fn close_readings<P: Probe>(
    probe: &mut P,
    vcpu: VcpuId,
    ratio: VendorRatio,
) -> Result<Vec<GuestSample>, ProbeError> {
    let mut samples = Vec::new();
    for _ in 0..ATTEMPTS {
        samples.extend(probe.readings(vcpu, READINGS)?);
        match OffsetBounds::proven_by(ratio, &samples) {
            Some(bounds) if NARROW.get() < bounds.width().get() => {}
            _ => break,
        }
    }
    Ok(samples)
}

/// Whether an offset known to be within `bounds` is known closely enough to be believed.
fn is_close(bounds: OffsetBounds) -> bool {
    bounds.width().get() <= NARROW.get()
}

/// Bounds that stayed too wide.
fn not_measurable(bounds: OffsetBounds) -> Finding {
    Finding::new(
        Kind::Undecided,
        format_args!(
            "could not be measured: after {ATTEMPTS} attempts the readings are only good to {}",
            bounds.width()
        ),
    )
}

/// What a written offset became.
pub(super) struct Outcome {
    pub(super) written: ReadBack<TscOffset>,
    pub(super) effect: OffsetEffect,
    /// It was written as an offset, and not as a reading of the guest's TSC.
    exact: bool,
    /// What was in force before.
    former: OffsetBounds,
}

/// Writes the offset that `choose` makes of the present one, and measures what becomes of it.
pub(super) fn write<P: Probe>(
    probe: &mut P,
    vcpu: VcpuId,
    ratio: VendorRatio,
    choose: impl FnOnce(TscOffset) -> TscOffset,
) -> Result<Option<Outcome>, ProbeError> {
    // From what the guest reads, and not from what is claimed.
    request(probe, vcpu, ratio, |control, present| {
        control.write_offset(choose(present))
    })
}

/// Makes a request for an offset, given the present one, and measures what becomes of it.
fn request<P: Probe>(
    probe: &mut P,
    vcpu: VcpuId,
    ratio: VendorRatio,
    request: impl FnOnce(&mut P::Control, TscOffset) -> Result<Written<TscOffset>, TscControlError>,
) -> Result<Option<Outcome>, ProbeError> {
    let samples = close_readings(probe, vcpu, ratio)?;
    let Some(former) = OffsetBounds::proven_by(ratio, &samples) else {
        return Ok(None);
    };
    let before = probe.host_now();
    let control = probe.control(vcpu)?;
    let exact = control.tsc_support().offset == OffsetInterface::Attribute;
    let written = request(control, former.at_least())?;
    let after = probe.host_now();
    let written = written.read_back(probe.control(vcpu)?.offset()?);
    let mut samples = close_readings(probe, vcpu, ratio)?;
    let effect = if exact {
        let later = probe.control(vcpu)?.offset()?;
        OffsetEffect::judge(written, later, former, ratio, &samples)
    } else {
        // The register was written with what the guest was to read at a moment in this bracket, and
        // the kernel made an offset of it at a later one, in this bracket too.
        let alone = OffsetBounds::proven_by(ratio, &samples);
        samples.push(GuestSample {
            before,
            guest: ratio.guest_at(written.asked(), before.tsc),
            after,
        });
        match (alone, OffsetBounds::proven_by(ratio, &samples)) {
            (Some(alone), _) if alone.overlaps(former) => OffsetEffect::Ignored(alone),
            (_, Some(bounds)) => OffsetEffect::InForce(bounds),
            (Some(alone), None) => OffsetEffect::Other(alone),
            (None, None) => OffsetEffect::Unsteady,
        }
    };
    Ok(Some(Outcome {
        written,
        effect,
        exact,
        former,
    }))
}

/// The finding about a written offset.
pub(super) fn finding(outcome: Option<Outcome>) -> Finding {
    let Some(Outcome {
        written,
        effect,
        exact,
        ..
    }) = outcome
    else {
        return Finding::new(
            Kind::Degraded,
            "no single offset explains the guest's readings",
        );
    };
    let asked = written.asked();
    let reads_back = if written.agrees() {
        "reads back".to_owned()
    } else {
        format!("{} reads back", written.claimed())
    };
    match effect {
        OffsetEffect::InForce(bounds) if !is_close(bounds) => not_measurable(bounds),
        OffsetEffect::InForce(bounds) if written.agrees() => Finding::new(
            Kind::Holds,
            format_args!(
                "{asked} {reads_back}; the readings allow {} below to {} above it",
                asked.wrapping_since(bounds.at_least()),
                bounds.at_most().wrapping_since(asked)
            ),
        ),
        OffsetEffect::InForce(bounds) if !exact => Finding::new(
            Kind::Holds,
            format_args!(
                "{asked} by way of the register came out {} to {} below it",
                asked.wrapping_since(bounds.at_most()),
                asked.wrapping_since(bounds.at_least())
            ),
        ),
        OffsetEffect::InForce(_) => Finding::new(
            Kind::Violated,
            format_args!("{asked} is in force, but {reads_back}"),
        ),
        OffsetEffect::Ignored(bounds) => Finding::new(
            Kind::Ignored,
            format_args!(
                "{asked} was accepted, {reads_back}, and the guest reads on with {} to {}",
                bounds.at_least(),
                bounds.at_most()
            ),
        ),
        OffsetEffect::MovedByKernel { claimed, .. } => Finding::new(
            Kind::Degraded,
            format_args!("{asked} was accepted, then the kernel moved it to {claimed} by itself"),
        ),
        OffsetEffect::Undecided(bounds) => Finding::new(
            Kind::Undecided,
            format_args!("{asked}: the readings are only good to {}", bounds.width()),
        ),
        OffsetEffect::Other(bounds) => Finding::new(
            Kind::Violated,
            format_args!(
                "{asked} was accepted, {reads_back}, and the guest reads with {} to {}",
                bounds.at_least(),
                bounds.at_most()
            ),
        ),
        OffsetEffect::Unsteady => Finding::new(
            Kind::Violated,
            format_args!("{asked} {reads_back}; no single offset explains the readings"),
        ),
    }
}

/// An offset further on by `delta` is exactly the one in force.
pub(super) fn moved_by<P: Probe>(
    probe: &mut P,
    ratio: VendorRatio,
    delta: TscDelta,
) -> Result<Finding, ProbeError> {
    let outcome = write(probe, VcpuId::new(0), ratio, |present| {
        present.wrapping_add(delta)
    })?;
    Ok(finding(outcome))
}

/// The guest's TSC passes 2^63, where its sign as a number changes: an offset has none.
pub(super) fn across_the_sign<P: Probe>(
    probe: &mut P,
    ratio: VendorRatio,
) -> Result<Finding, ProbeError> {
    let now = probe.host_now();
    let outcome = write(probe, VcpuId::new(0), ratio, |_| {
        ratio.offset_through(now.tsc, GuestTsc::new(1 << 63))
    })?;
    Ok(finding(outcome))
}

/// `adjust_offset` moves the guest by the delta.
pub(super) fn adjusted<P: Probe>(
    probe: &mut P,
    ratio: VendorRatio,
    delta: TscDelta,
) -> Result<Finding, ProbeError> {
    let outcome = request(probe, VcpuId::new(0), ratio, |control, _| {
        control.adjust_offset(delta)
    })?;
    if let Some(Outcome {
        effect: OffsetEffect::InForce(bounds),
        former,
        ..
    }) = &outcome
        && !former.moved_by(delta).overlaps(*bounds)
    {
        return Ok(Finding::new(
            Kind::Violated,
            format_args!(
                "{} to {}, adjusted by {delta}, became {} to {}",
                former.at_least(),
                former.at_most(),
                bounds.at_least(),
                bounds.at_most()
            ),
        ));
    }
    Ok(finding(outcome))
}

/// The same offset on two vCPUs makes them one clock.
pub(super) fn shared<P: Probe>(
    probe: &mut P,
    ratio: VendorRatio,
    delta: TscDelta,
) -> Result<Finding, ProbeError> {
    let first = write(probe, VcpuId::new(0), ratio, |present| {
        present.wrapping_add(delta)
    })?;
    let Some(first) = first else {
        return Ok(finding(None));
    };
    let (asked, exact) = (first.written.asked(), first.exact);
    let second = write(probe, VcpuId::new(1), ratio, |_| asked)?;
    let (first, second) = (finding(Some(first)), finding(second));
    if first.kind != Kind::Holds || second.kind != Kind::Holds {
        let other = if first.kind == Kind::Holds {
            second
        } else {
            first
        };
        return Ok(other);
    }
    // Readings of both in one set: one offset must explain them all.
    let mut samples = probe.readings(VcpuId::new(0), READINGS)?;
    samples.extend(probe.readings(VcpuId::new(1), READINGS)?);
    Ok(match OffsetBounds::proven_by(ratio, &samples) {
        Some(bounds) if bounds.contains(asked) || !exact => Finding::new(
            Kind::Holds,
            format_args!("{asked} on both; one clock to within {}", bounds.width()),
        ),
        _ => Finding::new(
            Kind::Violated,
            format_args!("{asked} on both, and their readings are not one clock's"),
        ),
    })
}

/// A pause of a guest: several ticks of the host's kernel, and more than [`NARROW`] by far.
const PAUSE: Nanos = Nanos::new(20_000_000);

/// An offset stays while the guest pauses and runs on another CPU of the host.
pub(super) fn kept<P: Probe>(
    probe: &mut P,
    ratio: VendorRatio,
    delta: TscDelta,
) -> Result<Finding, ProbeError> {
    let vcpu = VcpuId::new(0);
    let outcome = write(probe, vcpu, ratio, |present| present.wrapping_add(delta))?;
    let Some(outcome) = outcome else {
        return Ok(finding(None));
    };
    let (asked, exact, effect) = (outcome.written.asked(), outcome.exact, outcome.effect);
    let at_first = finding(Some(outcome));
    let (Kind::Holds, OffsetEffect::InForce(in_force)) = (at_first.kind, effect) else {
        return Ok(at_first);
    };
    probe.pass(PAUSE);
    let visited = probe.visit_another_cpu(vcpu)?;
    probe.pass(PAUSE);
    let claimed = probe.control(vcpu)?.offset()?.claim();
    let samples = close_readings(probe, vcpu, ratio)?;
    let bounds = OffsetBounds::proven_by(ratio, &samples);
    let after = if visited {
        "after a pause and a visit to another CPU"
    } else {
        "after a pause (there is only one CPU to be on)"
    };
    Ok(match bounds {
        Some(bounds) if bounds.overlaps(in_force) && (claimed == asked || !exact) => Finding::new(
            Kind::Holds,
            format_args!("{asked} to within {} {after}", bounds.width()),
        ),
        _ if claimed != asked && exact => Finding::new(
            Kind::Degraded,
            format_args!("the kernel made {claimed} of {asked} by itself {after}"),
        ),
        _ => Finding::new(
            Kind::Violated,
            format_args!("{asked} is still claimed {after}, and is not in force"),
        ),
    })
}

/// A value written to the guest's TSC through the MSR is what the guest reads on from.
pub(super) fn register<P: Probe>(
    probe: &mut P,
    ratio: VendorRatio,
    delta: TscDelta,
) -> Result<Finding, ProbeError> {
    let vcpu = VcpuId::new(0);
    let before_write = close_readings(probe, vcpu, ratio)?;
    let Some(former) = OffsetBounds::proven_by(ratio, &before_write) else {
        return Ok(finding(None));
    };
    let present = probe.control(vcpu)?.guest_tsc()?.claim();
    let guest = present.wrapping_add(delta);
    // The kernel's own reading of the host's TSC, which makes an offset of the value, lies in this
    // bracket: so the write is itself a reading of the guest's TSC.
    let before = probe.host_now();
    let written = probe.control(vcpu)?.write_guest_tsc(guest)?;
    let after = probe.host_now();
    let mut samples = close_readings(probe, vcpu, ratio)?;
    let alone = OffsetBounds::proven_by(ratio, &samples);
    samples.push(GuestSample {
        before,
        guest: written.asked(),
        after,
    });
    let interface = probe.control(vcpu)?.tsc_support().offset;
    let by = match interface {
        OffsetInterface::Attribute => "",
        OffsetInterface::Msr => ", the only way here",
    };
    Ok(match (alone, OffsetBounds::proven_by(ratio, &samples)) {
        (_, Some(bounds)) if !bounds.overlaps(former) && !is_close(bounds) => {
            not_measurable(bounds)
        }
        (_, Some(bounds)) if !bounds.overlaps(former) => Finding::new(
            Kind::Holds,
            format_args!("moved by {delta} to within {}{by}", bounds.width()),
        ),
        (Some(alone), None) if alone.overlaps(former) => Finding::new(
            Kind::Ignored,
            format_args!("a move by {delta} was accepted, and the guest reads on as before{by}"),
        ),
        (Some(_), Some(_)) => Finding::new(
            Kind::Undecided,
            format_args!("a move by {delta} is below what the readings can tell"),
        ),
        (Some(alone), None) => Finding::new(
            Kind::Degraded,
            format_args!(
                "a move by {delta} came out as one by {} to {}",
                alone.at_least().wrapping_since(former.at_most()),
                alone.at_most().wrapping_since(former.at_least())
            ),
        ),
        (None, _) => finding(None),
    })
}

/// The claim of an untouched vCPU agrees with its readings.
pub(super) fn claimed_as_measured<P: Probe>(
    probe: &mut P,
    ratio: VendorRatio,
) -> Result<Finding, ProbeError> {
    let vcpu = VcpuId::new(0);
    let control = probe.control(vcpu)?;
    if control.tsc_support().offset != OffsetInterface::Attribute {
        return Ok(Finding::new(
            Kind::NotPossible,
            "this kernel does not tell offsets",
        ));
    }
    let earlier = control.offset()?;
    let samples = close_readings(probe, vcpu, ratio)?;
    let claimed = probe.control(vcpu)?.offset()?;
    if earlier != claimed {
        return Ok(Finding::new(
            Kind::Degraded,
            format_args!(
                "the kernel made {} of {} by itself",
                claimed.claim(),
                earlier.claim()
            ),
        ));
    }
    Ok(match OffsetBounds::proven_by(ratio, &samples) {
        Some(bounds) if bounds.contains(claimed.claim()) => Finding::new(
            Kind::Holds,
            format_args!("{} to within {}", claimed.claim(), bounds.width()),
        ),
        Some(bounds) => Finding::new(
            Kind::Violated,
            format_args!(
                "{} is claimed, and the readings allow {} to {}",
                claimed.claim(),
                bounds.at_least(),
                bounds.at_most()
            ),
        ),
        None => finding(None),
    })
}
