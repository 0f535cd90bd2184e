//! How a guest's rate is kept on a host of another.

use super::{Allow, HostTime, Refusal};
use crate::ratio::{RatioFormat, TscRatio};
use crate::units::{Khz, Ppb, Ppm};

/// How the guest's rate is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateOutcome {
    /// The host's is the same.
    Same,
    /// Scaled in hardware.
    Scaled {
        /// What the ratio's last bit costs, rounded away from zero.
        error: Ppb,
    },
    /// At the host's rate instead: degraded.
    Unscaled {
        /// What the guest's clock is wrong by.
        error: Ppb,
    },
    /// At the host's rate, and pushed forward by KVM at its entries, where it was seen to: degraded.
    CatchUp {
        /// What it is wrong by between two pushes.
        error: Ppb,
    },
}

/// Whether KVM leaves a guest of rate `guest` unscaled on a host of rate `host`: bit for bit
/// `kvm_set_tsc_khz` with `adjust_tsc_khz` (arch/x86/kvm/x86.c).
///
/// ```
/// # use tsc::{Khz, Ppm, plan::within_tolerance};
/// let khz = |khz| Khz::new(khz).unwrap();
/// // 250 ppm of 2 GHz are 500 kHz.
/// assert!(within_tolerance(khz(2_000_500), khz(2_000_000), Ppm::KVM_TOLERANCE));
/// assert!(!within_tolerance(khz(2_000_501), khz(2_000_000), Ppm::KVM_TOLERANCE));
/// ```
#[must_use]
pub fn within_tolerance(guest: Khz, host: Khz, tolerance: Ppm) -> bool {
    let (host, ppm) = (u64::from(host.get()), u64::from(tolerance.get()));
    // OK because host < 2^32 and the factors are at most 2 x 10^6 < 2^21.
    let low = host.wrapping_mul(1_000_000_u64.wrapping_sub(ppm)) / 1_000_000;
    let high = host.wrapping_mul(1_000_000_u64.wrapping_add(ppm)) / 1_000_000;
    // The kernel returns both as 32 bits; a threshold beyond them wraps there, and no rate of a TSC
    // comes near.
    (low..=high).contains(&u64::from(guest.get()))
}

/// The ratio for a guest of rate `guest`, and how that rate is kept with it.
///
/// ```
/// use tsc::plan::{Allow, HostTime, RateOutcome, choose_rate};
/// use tsc::{Khz, Ppb, Ppm, Vmx};
///
/// let khz = Khz::new(2_000_000).unwrap();
/// let tolerance = Ppm::KVM_TOLERANCE;
/// let host = HostTime { khz, offsets: true, scaling: true, catch_up: false, tolerance };
/// let half = Khz::new(1_000_000).unwrap();
/// let (ratio, outcome) = choose_rate::<Vmx>(half, host, Allow::default())?;
/// assert_eq!(ratio.bits(), 1 << 47);
/// assert_eq!(outcome, RateOutcome::Scaled { error: Ppb::new(0) });
/// # Ok::<(), tsc::plan::Refusal>(())
/// ```
///
/// # Errors
/// Why the host cannot keep the rate, or not in a form that `allow` has.
pub fn choose_rate<F: RatioFormat>(
    guest: Khz,
    host: HostTime,
    allow: Allow,
) -> Result<(TscRatio<F>, RateOutcome), Refusal> {
    if guest == host.khz {
        return Ok((TscRatio::ONE, RateOutcome::Same));
    }
    let error = |ratio: TscRatio<F>| {
        // Beyond 63 bits no rate is kept by any measure.
        ratio
            .quantisation_error_outward(guest, host.khz)
            .unwrap_or(Ppb::new(i64::MAX))
    };
    let unscaled = error(TscRatio::ONE);
    if within_tolerance(guest, host.khz, host.tolerance) {
        return if allow.unscaled {
            Ok((TscRatio::ONE, RateOutcome::Unscaled { error: unscaled }))
        } else {
            let (host, tolerance) = (host.khz, host.tolerance);
            Err(Refusal::WithinTolerance {
                guest,
                host,
                tolerance,
                error: unscaled,
            })
        };
    }
    if host.scaling {
        let ratio = TscRatio::from_rates_floor(guest, host.khz).map_err(Refusal::Ratio)?;
        return Ok((
            ratio,
            RateOutcome::Scaled {
                error: error(ratio),
            },
        ));
    }
    let (pushed, host) = (host.catch_up, host.khz);
    if guest < host {
        Err(Refusal::RateBelowHost { guest, host })
    } else if !pushed {
        Err(Refusal::RateAboveHost { guest, host })
    } else if allow.catch_up {
        Ok((TscRatio::ONE, RateOutcome::CatchUp { error: unscaled }))
    } else {
        Err(Refusal::WouldCatchUp { guest, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::{RatioError, Svm};

    fn khz(khz: u32) -> Khz {
        Khz::new(khz).unwrap()
    }

    fn choice(
        guest: u32,
        scaling: bool,
        allow: Allow,
    ) -> Result<(TscRatio<Svm>, RateOutcome), Refusal> {
        let tolerance = Ppm::KVM_TOLERANCE;
        let host = HostTime {
            khz: khz(2_000_000),
            offsets: true,
            scaling,
            catch_up: true,
            tolerance,
        };
        choose_rate(khz(guest), host, allow)
    }

    #[test]
    fn rate_of_the_host_is_kept_without_a_ratio() {
        for scaling in [false, true] {
            let same = choice(2_000_000, scaling, Allow::default());
            assert_eq!(same, Ok((TscRatio::ONE, RateOutcome::Same)));
        }
    }

    #[test]
    fn rate_within_tolerance_is_refused_or_named() {
        // 400 kHz of 2 GHz too fast a guest: the host's rate is 1999800.04 ppb-wise -199,960.008.
        let refused = choice(2_000_400, true, Allow::default());
        assert!(matches!(
            refused,
            Err(Refusal::WithinTolerance { error, .. }) if error == Ppb::new(-199_961)
        ));
        let allowed = Allow {
            unscaled: true,
            ..Allow::default()
        };
        let error = Ppb::new(-199_961);
        assert_eq!(
            choice(2_000_400, true, allowed),
            Ok((TscRatio::ONE, RateOutcome::Unscaled { error }))
        );
        // 2,000,000 kHz for 1,999,500: 500 / 1999500 = 250,062.5 ppb too fast.
        let low = choice(1_999_500, false, allowed);
        assert_eq!(
            low,
            Ok((
                TscRatio::ONE,
                RateOutcome::Unscaled {
                    error: Ppb::new(250_063)
                }
            ))
        );
        // One more kilohertz below is outside: the lower threshold is 1,999,500.
        assert!(matches!(
            choice(1_999_499, false, allowed),
            Err(Refusal::RateBelowHost { .. })
        ));
    }

    #[test]
    fn rate_beyond_tolerance_is_scaled_or_refused() {
        let half = choice(1_000_000, true, Allow::default()).unwrap();
        assert_eq!(half.0.bits(), 1 << 31);
        assert_eq!(half.1, RateOutcome::Scaled { error: Ppb::new(0) });
        let third = choice(3_000_001, true, Allow::default()).unwrap();
        assert!(matches!(third.1, RateOutcome::Scaled { error } if error == Ppb::new(-1)));
        assert!(matches!(
            choice(1_000_000, false, Allow::default()),
            Err(Refusal::RateBelowHost { .. })
        ));
        assert!(matches!(
            choice(3_000_000, false, Allow::default()),
            Err(Refusal::WouldCatchUp { .. })
        ));
        let allowed = Allow {
            catch_up: true,
            ..Allow::default()
        };
        let pushed = choice(4_000_000, false, allowed).unwrap();
        assert_eq!(
            pushed.1,
            RateOutcome::CatchUp {
                error: Ppb::new(-500_000_000)
            }
        );
        // The same host, on which nobody saw a guest pushed: permission does not make it so.
        let host = HostTime {
            khz: khz(2_000_000),
            offsets: true,
            scaling: false,
            catch_up: false,
            tolerance: Ppm::KVM_TOLERANCE,
        };
        for allow in [Allow::default(), allowed] {
            let refused = choose_rate::<Svm>(khz(3_400_000), host, allow);
            let (guest, host) = (khz(3_400_000), khz(2_000_000));
            assert_eq!(refused, Err(Refusal::RateAboveHost { guest, host }));
        }
        // 8.32 ends below 256.
        assert!(matches!(
            choice(600_000_000, true, Allow::default()),
            Err(Refusal::Ratio(RatioError::Rates { .. }))
        ));
    }
}
