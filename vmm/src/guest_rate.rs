//! The rate of a guest's TSC: what was asked for, how this host keeps it, or why it does not.
//!
//! [`tsc::plan::choose_rate`] decides; here it is asked twice. First with what the host *says* that it
//! can do: what is refused then needs no measurement. Then with what a throw-away guest was *seen* to do
//! at the very rate that is wanted, since there are KVMs that accept a rate, read it back and do nothing.
//! A guest that is to have the host's rate costs neither.
//!
//! | the rate asked for | hardware scales | it does not |
//! | --- | --- | --- |
//! | the host's | nothing is written | nothing is written |
//! | within KVM's tolerance of it | refused: KVM would not scale, and not say so | refused |
//! | below it | scaled | refused |
//! | above it | scaled | KVM pushes the TSC forward at entries: where it was seen to, and where that is allowed |

use hypervisor::tsc_control::{
    ReadBack, TscControlError, TscOffsetControl, TscSupport, Vendor, VendorRatio, Written,
};
use tsc::measure::DeviationBounds;
use tsc::plan::{Allow, HostTime, RateOutcome, Refusal, choose_rate};
use tsc::{GuestTsc, Khz, Ppb, Ppm, Svm, Vmx};

use crate::config::TscRate;

/// A guest cannot have the rate that was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RateError {
    /// It is not known what the host can do.
    #[error(
        "tsc_khz: what this host can do for a TSC rate could not be found out: {0}; leave it out for the \
         host's own rate"
    )]
    Unknown(String),
    /// The host does not keep the rate.
    #[error("tsc_khz: {refusal}; {cure}")]
    Refused {
        /// Why not.
        refusal: Refusal,
        /// What helps.
        cure: &'static str,
    },
    /// The host says that it scales, and was seen not to.
    #[error(
        "tsc_khz: a throw-away guest that was given {asked} {seen}{}, although this host's KVM says that it \
         scales; {LEAVE_OUT}",
        error.map_or_else(String::new, |error| format!(", {error} off it"))
    )]
    NotSeen {
        /// The rate asked for.
        asked: Khz,
        /// What its TSC did.
        seen: &'static str,
        /// How far its rate was from the one asked for.
        error: Option<DeviationBounds>,
    },
    /// KVM does not take it.
    #[error("tsc_khz: this host's KVM refuses a TSC rate of {asked}: {reason}; {LEAVE_OUT}")]
    NotTaken {
        /// The rate asked for.
        asked: Khz,
        /// The kernel's reason.
        reason: String,
    },
    /// The kernel refuses it to a vCPU.
    #[error("tsc_khz")]
    Control(#[from] TscControlError),
    /// A vCPU took it, and has another.
    #[error("tsc_khz: a vCPU took a TSC rate of {asked}, and has {found}; {LEAVE_OUT}")]
    NotKept {
        /// The rate asked for.
        asked: Khz,
        /// The one that reads back.
        found: Khz,
    },
    /// A vCPU scales by another ratio than the one that the rates have.
    #[error("tsc_khz: a vCPU scales by {found:#x} instead of {expected:#x}; {LEAVE_OUT}")]
    OtherRatio {
        /// The register value that follows from the rates.
        expected: u64,
        /// The one that reads back.
        found: u64,
    },
}

const LEAVE_OUT: &str = "leave it out for the host's own rate";
const LEAVE_OUT_OR_SCALE: &str = "leave it out for the host's own rate, or take a host whose processor and \
                                  KVM scale TSCs (keeptime doctor --require scaling)";
const LEAVE_OUT_OR_ALLOW: &str = "leave it out for the host's own rate, or allow that with \
                                  --allow-tsc-catchup (allow_tsc_catchup)";

fn refused(refusal: Refusal) -> RateError {
    let cure = match refusal {
        Refusal::RateBelowHost { .. } | Refusal::RateAboveHost { .. } => LEAVE_OUT_OR_SCALE,
        Refusal::WouldCatchUp { .. } => LEAVE_OUT_OR_ALLOW,
        _ => LEAVE_OUT,
    };
    RateError::Refused { refusal, cure }
}

/// What a host says of TSC rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateClaims {
    /// What it says of its TSC control.
    pub(crate) support: TscSupport,
    /// The rate of its own TSC: that of a vCPU that nobody has asked for anything.
    pub(crate) host: Khz,
    /// Within this, KVM does not scale.
    pub(crate) tolerance: Ppm,
}

/// How a throw-away guest kept a rate that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// In hardware.
    Scaled,
    /// From entry to entry; there is no other CPU to look from what it does between two of them.
    AcrossEntries,
    /// It was pushed forward at its entries.
    Pushed,
    /// It ran at another rate: the host's or one nearer to that than to the one asked for; any, where KVM says that it
    /// scales.
    Unscaled,
    /// The readings were too coarse to tell.
    Unclear,
}

/// What became of a rate that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// KVM refused it.
    Refused(String),
    /// KVM took it.
    Seen {
        /// What the guest's TSC did.
        pace: Pace,
        /// How far its rate was from the one asked for.
        error: Option<DeviationBounds>,
    },
}

/// Somebody who can try rates on throw-away guests of a host.
pub(crate) trait RateTrials {
    /// What the host says.
    ///
    /// # Errors
    /// In words why that is not known.
    fn claims(&self) -> Result<RateClaims, String>;

    /// What becomes of a guest that is given the rate `asked`.
    ///
    /// # Errors
    /// In words why that could not be measured.
    fn try_rate(&self, claims: &RateClaims, asked: Khz) -> Result<Trial, String>;
}

/// The rate that a guest gets, and how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestRate {
    /// The host's: nothing is written.
    Host,
    /// Another, and how.
    Other(OtherRate),
}

/// A rate that is not the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherRate {
    /// The rate.
    pub(crate) khz: Khz,
    /// What the host can do for it, as it was seen.
    pub(crate) host: HostTime,
    /// What hardware makes of the host's TSC: 1 where the rate is kept by pushes.
    pub(crate) ratio: VendorRatio,
    /// How the rate is kept.
    pub(crate) outcome: RateOutcome,
    /// How far the rate was measured to be from the one asked for, on a throw-away guest.
    pub(crate) measured: Option<DeviationBounds>,
}

/// Settles which rate a guest gets.
///
/// # Errors
/// Why it cannot have the one that `wish` has.
pub(crate) fn settle(wish: TscRate, host: &impl RateTrials) -> Result<GuestRate, RateError> {
    let Some(asked) = wish.khz else {
        return Ok(GuestRate::Host);
    };
    let claims = host.claims().map_err(RateError::Unknown)?;
    let scales = claims.support.scaling;
    // As good as it can be.
    let said = HostTime {
        khz: claims.host,
        offsets: true,
        scaling: scales,
        catch_up: !scales,
        tolerance: claims.tolerance,
    };
    let all = Allow {
        catch_up: true,
        ..Allow::default()
    };
    let (_, outcome) = choose(claims.support.vendor, asked, said, all)?;
    if outcome == RateOutcome::Same {
        return Ok(GuestRate::Host);
    }
    let trial = host.try_rate(&claims, asked).map_err(RateError::Unknown)?;
    let (pace, measured) = match trial {
        Trial::Refused(reason) => return Err(RateError::NotTaken { asked, reason }),
        Trial::Seen { pace, error } => (pace, error),
    };
    let seen = match pace {
        Pace::Scaled => None,
        // A pushed guest cannot be told from a scaled one without another CPU. What the host says
        // against itself is believed, and what it says for itself only as far as was looked.
        Pace::AcrossEntries => None,
        Pace::Pushed => Some("was pushed forward at its entries only"),
        Pace::Unscaled => Some("ran at another rate"),
        Pace::Unclear => Some("could not be seen to run at that rate"),
    };
    if let (true, Some(seen)) = (scales, seen) {
        return Err(RateError::NotSeen {
            asked,
            seen,
            error: measured,
        });
    }
    let kept_up = matches!(pace, Pace::Scaled | Pace::AcrossEntries | Pace::Pushed);
    let host = HostTime {
        catch_up: !scales && kept_up,
        ..said
    };
    let allow = Allow {
        catch_up: wish.allow_catch_up,
        ..Allow::default()
    };
    let (ratio, outcome) = choose(claims.support.vendor, asked, host, allow)?;
    Ok(GuestRate::Other(OtherRate {
        khz: asked,
        host,
        ratio,
        outcome,
        measured,
    }))
}

fn choose(
    vendor: Vendor,
    guest: Khz,
    host: HostTime,
    allow: Allow,
) -> Result<(VendorRatio, RateOutcome), RateError> {
    match vendor {
        Vendor::Intel => choose_rate::<Vmx>(guest, host, allow)
            .map(|(ratio, outcome)| (VendorRatio::Vmx(ratio), outcome)),
        Vendor::Amd => choose_rate::<Svm>(guest, host, allow)
            .map(|(ratio, outcome)| (VendorRatio::Svm(ratio), outcome)),
    }
    .map_err(refused)
}

impl GuestRate {
    /// The rate, when it is not the host's.
    pub(crate) fn other(self) -> Option<OtherRate> {
        match self {
            Self::Host => None,
            Self::Other(other) => Some(other),
        }
    }

    /// The rate, on a host of rate `host`.
    pub(crate) fn khz(&self, host: Option<Khz>) -> Option<Khz> {
        match self {
            Self::Host => host,
            Self::Other(other) => Some(other.khz),
        }
    }

    /// Gives it to all `vcpus` of a VM, before anything else touches their TSCs.
    ///
    /// # Errors
    /// The kernel's refusal, or that a vCPU has another rate or ratio now.
    pub(crate) fn give<V: TscOffsetControl>(&self, vcpus: &mut [V]) -> Result<(), RateError> {
        let Self::Other(other) = self else {
            return Ok(());
        };
        for vcpu in &mut *vcpus {
            other.ask(vcpu)?;
        }
        // KVM set their offsets when it created them, for the ratio that they had then. A TSC of 0 makes
        // it set them anew, and the same for all that are asked at the same rate one after the other
        // (`kvm_synchronize_tsc` in arch/x86/kvm/x86.c).
        for vcpu in vcpus {
            let _: Written<GuestTsc> = vcpu.write_guest_tsc(GuestTsc::new(0))?;
        }
        Ok(())
    }
}

impl OtherRate {
    /// Whether KVM keeps it by pushing the guest's TSC forward.
    pub(crate) fn is_caught_up(&self) -> bool {
        matches!(self.outcome, RateOutcome::CatchUp { .. })
    }

    /// What is worse about it than about the host's rate, for the report.
    pub(crate) fn degradation(&self) -> Option<String> {
        self.is_caught_up().then(|| {
            format!(
                "degraded: catch-up: between two entries the guest's TSC runs at the host's {} instead of \
                 {}, and at each entry KVM pushes it forward to where it should be",
                self.host.khz, self.khz
            )
        })
    }

    /// What must be allowed for a plan to keep it.
    pub(crate) fn allow(&self) -> Allow {
        Allow {
            catch_up: self.is_caught_up(),
            ..Allow::default()
        }
    }

    /// What the ratio's last bit costs, where there is a ratio.
    pub(crate) fn quantisation(&self) -> Option<Ppb> {
        match self.outcome {
            RateOutcome::Scaled { error } => Some(error),
            _ => None,
        }
    }

    fn ask<V: TscOffsetControl>(&self, vcpu: &mut V) -> Result<(), RateError> {
        let rate: ReadBack<Khz> = vcpu.ask_rate(self.khz)?.read_back(vcpu.rate()?);
        if !rate.agrees() {
            return Err(RateError::NotKept {
                asked: self.khz,
                found: rate.claimed(),
            });
        }
        if vcpu.tsc_support().ratio {
            let found = vcpu.ratio()?.claim();
            if found != self.ratio {
                return Err(RateError::OtherRatio {
                    expected: self.ratio.bits(),
                    found: found.bits(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
