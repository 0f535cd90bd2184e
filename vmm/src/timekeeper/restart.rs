//! All vCPUs of a guest go on from a later reading, together.

use hypervisor::tsc_control::VendorRatio;
use tsc::watch::{self, Standing};
use tsc::{CpuId, RatioFormat, TscDelta, TscOffset, TscRatio};

use super::exits::Place;
use super::{Answer, Done, Order, Rates, ResumeError, all};

/// The CPU that a guest's offset is for, and that offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) cpu: CpuId,
    pub(crate) offset: TscOffset,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Restarted {
    /// The offset on the home CPU from now on.
    pub(super) home: TscOffset,
    /// How far each vCPU was taken forward.
    pub(super) forward: Vec<TscDelta>,
    /// Whether the offsets were seen in force.
    pub(super) seen: bool,
}

/// Where all vCPUs are to go on from.
struct Planned {
    home: TscOffset,
    vcpus: Vec<(CpuId, TscOffset)>,
    forward: Vec<TscDelta>,
}

/// Has all vCPUs, which wait, go on from the latest of their readings. `skew` tells a CPU's counter less
/// that of the home CPU. Nothing is written when none is to be taken further than `bound`, except on a host
/// where KVM compensates: there the write itself is the purpose.
///
/// `taken` is how far each vCPU was taken forward by attempts that failed; nothing before the first.
///
/// # Errors
/// Where a vCPU stands is not known, its thread was moved meanwhile, its offset was refused, or it is gone. Those that
/// were written before stay, which `taken` tells then: each of them is a step forward, and the next attempt has all go on
/// from where they are.
pub(super) fn restart(
    rates: Rates,
    home: Home,
    skew: impl Fn(CpuId) -> TscDelta,
    bound: TscDelta,
    kvm_compensates: bool,
    taken: &mut Vec<TscDelta>,
    ask: impl Fn(Order) -> Vec<Answer>,
) -> Result<Option<Restarted>, ResumeError> {
    let mut places = all(ask(Order::Stand), |done| match done {
        Done::Stands(place) => Some(place),
        Done::Clock(_) | Done::GoesOn { .. } => None,
    })?;
    if places.is_empty() {
        // All of them have ended.
        return Ok(None);
    }
    if kvm_compensates {
        // KVM has the guest go on from what it read last; with which offset it did is not known here.
        for place in &mut places {
            (place.left_at, place.left_with) = (place.host, place.offset);
        }
    }
    let planned = match rates.ratio {
        VendorRatio::Vmx(ratio) => plan(ratio, rates, &places, home, skew),
        VendorRatio::Svm(ratio) => plan(ratio, rates, &places, home, skew),
    };
    let is_begun = taken.iter().any(|taken| *taken != TscDelta::ZERO);
    let is_none = planned.forward.iter().all(|forward| *forward <= bound);
    if is_none && !is_begun && !kvm_compensates {
        return Ok(None);
    }
    let answers = ask(Order::GoOn(planned.vcpus.into()));
    taken.resize(planned.forward.len(), TscDelta::ZERO);
    for answer in answers.iter().filter(|answer| answer.outcome.is_ok()) {
        let place = usize::try_from(answer.vcpu.get()).unwrap_or(usize::MAX);
        if let (Some(taken), Some(forward)) = (taken.get_mut(place), planned.forward.get(place)) {
            *taken = taken.saturating_add(*forward);
        }
    }
    let gone = all(answers, |done| match done {
        Done::GoesOn { seen } => Some(seen),
        Done::Clock(_) | Done::Stands(_) => None,
    })?;
    if gone.len() < places.len() {
        return Err(ResumeError::Left);
    }
    Ok(Some(Restarted {
        home: planned.home,
        forward: std::mem::take(taken),
        seen: gone.iter().all(|seen| *seen),
    }))
}

fn plan<F: RatioFormat>(
    ratio: TscRatio<F>,
    rates: Rates,
    places: &[Place],
    home: Home,
    skew: impl Fn(CpuId) -> TscDelta,
) -> Planned {
    let standings: Vec<_> = places
        .iter()
        .map(|place| Standing {
            host: place.host,
            now: rates.ratio.guest_at(place.offset, place.host),
            seen: rates.ratio.guest_at(place.left_with, place.left_at),
            skew: skew(place.cpu),
        })
        .collect();
    let restart = watch::restart(ratio, &standings, home.offset);
    Planned {
        home: restart.home(),
        vcpus: places
            .iter()
            .zip(&standings)
            .map(|(place, standing)| (place.cpu, restart.offset_of(standing)))
            .collect(),
        forward: standings
            .iter()
            .map(|standing| restart.forward(standing))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use hypervisor::tsc_control::Vendor;
    use tsc::{HostTsc, Khz, VcpuId};

    use super::*;
    use crate::guest_rate::GuestRate;

    #[test]
    fn vcpus_that_have_ended_go_nowhere() {
        let khz = Khz::new(2_000_000).expect("a rate");
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let rates = Rates::new(vendor, GuestRate::Host, Some(khz)).expect("a rate");
            let home = Home {
                cpu: CpuId::new(0),
                offset: TscOffset::ZERO,
            };
            let bound = TscDelta::ZERO;
            let done = restart(
                rates,
                home,
                |_| bound,
                bound,
                true,
                &mut Vec::new(),
                |_| Vec::new(),
            );
            assert_eq!(done.expect("nobody refuses"), None);
        }
    }

    #[test]
    fn vcpu_that_leaves_before_it_went_on_is_told() {
        let khz = Khz::new(2_000_000).expect("a rate");
        let rates = Rates::new(Vendor::Intel, GuestRate::Host, Some(khz)).expect("a rate");
        let place = |cpu, offset| Place {
            cpu: CpuId::new(cpu),
            host: HostTsc::new(1 << 40),
            offset: TscOffset::new(offset),
            left_at: HostTsc::new(1 << 40),
            left_with: TscOffset::new(offset),
        };
        let home = Home {
            cpu: CpuId::new(0),
            offset: TscOffset::ZERO,
        };
        let zero = TscDelta::ZERO;
        let answer = |vcpu, done| Answer {
            vcpu: VcpuId::new(vcpu),
            outcome: Ok(done),
        };
        let ask = |order| match order {
            Order::Stand => vec![
                answer(0, Done::Stands(place(0, 0))),
                answer(1, Done::Stands(place(0, 9_000))),
            ],
            _ => vec![answer(0, Done::GoesOn { seen: true })],
        };
        let mut taken = Vec::new();
        let done = restart(rates, home, |_| zero, zero, false, &mut taken, ask);
        let error = done.expect_err("one is missing");
        assert!(matches!(error, ResumeError::Left), "{error}");
        assert_eq!(taken, [TscDelta::new(9_000), zero]);
    }
}
