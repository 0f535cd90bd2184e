//! A rate that a guest is to have, tried before on a throw-away guest.

use std::path::Path;

use hypervisor::contract::{Fixture, Probe, ProbeError};
use hypervisor::kvm::Kvm;
use hypervisor::tsc_control::{RateEffect, TscOffsetControl, VendorRatio};
use tsc::measure::DeviationBounds;
use tsc::{Khz, Ppm, VcpuId};

use super::effects::{self, RateOutcome};
use super::{cpus, on_the_first, platform};
use crate::error::one_line;
use crate::guest_rate::{Pace, RateClaims, RateTrials, Trial};

/// This host's KVM.
#[derive(Debug)]
pub(crate) struct OnKvm<'a>(pub(crate) &'a Kvm);

impl OnKvm<'_> {
    fn run<T: Send>(
        &self,
        ask: impl FnOnce(&super::probe::HostFixture<'_>) -> Result<T, ProbeError> + Send,
    ) -> Result<T, String> {
        let allowed = cpus::allowed().map_err(|error| one_line(&error))?;
        on_the_first(self.0, &allowed, |fixture| {
            ask(fixture).map_err(|error| error.chain())
        })
    }
}

impl RateTrials for OnKvm<'_> {
    fn claims(&self) -> Result<RateClaims, String> {
        let tolerance = platform::tolerance(Path::new("/")).unwrap_or(Ppm::KVM_TOLERANCE);
        self.run(|fixture| claims(fixture, tolerance))
    }

    fn try_rate(&self, claims: &RateClaims, asked: Khz) -> Result<Trial, String> {
        self.run(|fixture| try_rate(fixture, claims, asked))
    }
}

fn claims<F: Fixture>(fixture: &F, tolerance: Ppm) -> Result<RateClaims, ProbeError> {
    let mut fresh = fixture.build(1, None)?;
    let control = fresh.control(VcpuId::new(0))?;
    Ok(RateClaims {
        support: control.tsc_support(),
        host: control.rate()?.claim(),
        tolerance,
    })
}

fn try_rate<F: Fixture>(fixture: &F, claims: &RateClaims, asked: Khz) -> Result<Trial, ProbeError> {
    Ok(match effects::try_rate(fixture, claims.host, asked)? {
        RateOutcome::Refused(reason) | RateOutcome::Failed(reason) => Trial::Refused(reason),
        RateOutcome::Measured { effect, error, .. } => Trial::Seen {
            pace: pace(effect, error, claims, asked),
            error,
        },
    })
}

fn pace(
    effect: RateEffect,
    error: Option<DeviationBounds>,
    claims: &RateClaims,
    asked: Khz,
) -> Pace {
    match effect {
        RateEffect::InForce(_) => Pace::Scaled,
        RateEffect::AcrossEntries(_) => Pace::AcrossEntries,
        RateEffect::CaughtUp(_) => Pace::Pushed,
        RateEffect::Unscaled(_) => Pace::Unscaled,
        RateEffect::Undecided(_) => Pace::Unclear,
        // By pushes after a clock that is not the TSC, and so not on one line with it. A KVM that says that
        // it scales is not taken to push without that having been seen.
        RateEffect::Neither(_) => match error {
            Some(error) if !claims.support.scaling && is_nearer_to(asked, claims, error) => {
                Pace::Pushed
            }
            _ => Pace::Unscaled,
        },
    }
}

/// Whether a rate that is `error` off the one asked for is less than half as far from it as the host's.
fn is_nearer_to(asked: Khz, claims: &RateClaims, error: DeviationBounds) -> bool {
    let one = VendorRatio::one(claims.support.vendor);
    let Some(hosts) = one.quantisation_error_outward(asked, claims.host) else {
        return false;
    };
    let within = |part: tsc::Ppb| part.get().unsigned_abs() < hosts.get().unsigned_abs() / 2;
    within(error.at_least) && within(error.at_most)
}

/// A model of a host.
#[cfg(test)]
pub(crate) struct OnModel<F>(pub(crate) hypervisor::model::ModelFixture<F>);

#[cfg(test)]
impl<F: hypervisor::model::ModelForm> RateTrials for OnModel<F> {
    fn claims(&self) -> Result<RateClaims, String> {
        claims(&self.0, Ppm::KVM_TOLERANCE).map_err(|error| error.chain())
    }

    fn try_rate(&self, claims: &RateClaims, asked: Khz) -> Result<Trial, String> {
        try_rate(&self.0, claims, asked).map_err(|error| error.chain())
    }
}

#[cfg(test)]
mod tests {
    use hypervisor::tsc_control::{OffsetInterface, TscSupport, Vendor};
    use tsc::Ppb;

    use super::*;

    #[test]
    fn rate_near_the_one_asked_for_is_pushed_to_only_where_hardware_does_not_scale() {
        let khz = |khz| Khz::new(khz).expect("a rate");
        // 2 kHz too much of 340,000.
        let error = DeviationBounds {
            at_least: Ppb::new(5_800_000),
            at_most: Ppb::new(5_900_000),
        };
        let seen = |scaling| {
            let claims = RateClaims {
                support: TscSupport {
                    vendor: Vendor::Intel,
                    scaling,
                    default_rate: true,
                    offset: OffsetInterface::Attribute,
                    ratio: true,
                },
                host: khz(200_000),
                tolerance: Ppm::KVM_TOLERANCE,
            };
            let effect = RateEffect::Neither(error);
            pace(effect, Some(error), &claims, khz(340_000))
        };
        assert_eq!(seen(false), Pace::Pushed);
        assert_eq!(seen(true), Pace::Unscaled);
    }
}
