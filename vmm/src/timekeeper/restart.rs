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
/// # Errors
/// Where a vCPU stands is not known, or its offset was refused. Those that were written before stay: each
/// of them is a step forward.
pub(super) fn restart(
    rates: Rates,
    home: Home,
    skew: impl Fn(CpuId) -> TscDelta,
    bound: TscDelta,
    kvm_compensates: bool,
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
    if !kvm_compensates && planned.forward.iter().all(|forward| *forward <= bound) {
        return Ok(None);
    }
    let gone = all(ask(Order::GoOn(planned.vcpus.into())), |done| match done {
        Done::GoesOn { seen } => Some(seen),
        Done::Clock(_) | Done::Stands(_) => None,
    })?;
    Ok(Some(Restarted {
        home: planned.home,
        forward: planned.forward,
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
    use tsc::Khz;

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
            let done = restart(rates, home, |_| bound, bound, true, |_| Vec::new());
            assert_eq!(done.expect("nobody refuses"), None);
        }
    }
}
