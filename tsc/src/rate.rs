//! Between ticks and nanoseconds at a rate: exactly, and without a division where it runs often.

use crate::units::{Khz, Nanos, NanosDelta, Ticks, TscDelta};
use crate::wide::{self, Factor};

/// A rate with the two factors that convert by it. Building one divides; using it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickRate {
    khz: Khz,
    ticks_per_nano: Factor,
    nanos_per_tick: Factor,
}

impl TickRate {
    /// The conversions at `khz`.
    #[must_use]
    pub const fn new(khz: Khz) -> Self {
        let rate = khz.non_zero().get();
        // Both factors exist: the rate is 1 to 2^32 - 1, and so is its quotient with 10^6.
        match (
            Factor::floor(rate, 1_000_000),
            Factor::floor(1_000_000, rate),
        ) {
            (Some(ticks_per_nano), Some(nanos_per_tick)) => Self {
                khz,
                ticks_per_nano,
                nanos_per_tick,
            },
            _ => panic!("a rate within its bounds has both factors"),
        }
    }

    /// The rate itself.
    #[must_use]
    pub const fn khz(self) -> Khz {
        self.khz
    }

    /// The ticks in `nanos` at this rate, rounded down; `None` past 2^64 - 1. Up to 2^63 ticks the
    /// result is the exact floor or one less: it never promises a tick that has not passed.
    ///
    /// ```
    /// # use tsc::{Khz, Nanos, TickRate};
    /// let rate = TickRate::new(Khz::new(2_400_000).unwrap());
    /// let ticks = rate.ticks_floor(Nanos::new(1_000)).unwrap().get();
    /// assert!((2_399..=2_400).contains(&ticks));
    /// ```
    #[must_use]
    #[inline]
    pub const fn ticks_floor(self, nanos: Nanos) -> Option<Ticks> {
        match self.ticks_per_nano.apply_floor(nanos.get()) {
            Some(ticks) => Some(Ticks::new(ticks)),
            None => None,
        }
    }

    /// The nanoseconds in `ticks` at this rate, rounded down; `None` past 2^64 - 1. Up to 2^63 ns
    /// the result is the exact floor or one less.
    #[must_use]
    #[inline]
    pub const fn nanos_floor(self, ticks: Ticks) -> Option<Nanos> {
        match self.nanos_per_tick.apply_floor(ticks.get()) {
            Some(nanos) => Some(Nanos::new(nanos)),
            None => None,
        }
    }
}

/// `floor(nanos x khz / 10^6)`: the ticks in `nanos`, less than one tick short. Divides; for plans,
/// not for paths that run at each exit. `None` past 2^64 - 1.
///
/// ```
/// # use tsc::{Khz, Nanos, ticks_exact_floor};
/// // 1 ns short of a second at 1 kHz is 999 whole ticks.
/// let ticks = ticks_exact_floor(Nanos::new(999_999_999), Khz::new(1).unwrap()).unwrap();
/// assert_eq!(ticks.get(), 999);
/// ```
#[must_use]
pub const fn ticks_exact_floor(nanos: Nanos, khz: Khz) -> Option<Ticks> {
    // Bit budget: 64 + 32 = 96.
    match wide::narrow(wide::mul(nanos.get(), khz.non_zero().get()) / 1_000_000) {
        Some(ticks) => Some(Ticks::new(ticks)),
        None => None,
    }
}

/// `floor(ticks x 10^6 / khz)`: the nanoseconds in `ticks`, less than 1 ns short. `None` past
/// 2^64 - 1.
#[must_use]
pub const fn nanos_exact_floor(ticks: Ticks, khz: Khz) -> Option<Nanos> {
    // Bit budget: 64 + 20 = 84.
    match wide::div_floor(wide::mul(ticks.get(), 1_000_000), khz.non_zero().get()) {
        Some(nanos) => match wide::narrow(nanos) {
            Some(nanos) => Some(Nanos::new(nanos)),
            None => None,
        },
        None => None,
    }
}

/// `ticks` in nanoseconds at `khz`, rounded towards zero; at most 2^63 - 1 ns either way. Divides; for
/// reports and plans.
///
/// ```
/// # use tsc::{Khz, TscDelta, nanos_delta_toward_zero};
/// let khz = Khz::new(2_000_000).unwrap();
/// assert_eq!(nanos_delta_toward_zero(TscDelta::new(-3), khz).get(), -1);
/// ```
#[must_use]
pub fn nanos_delta_toward_zero(ticks: TscDelta, khz: Khz) -> NanosDelta {
    let magnitude = nanos_exact_floor(ticks.magnitude(), khz)
        .and_then(|nanos| i64::try_from(nanos.get()).ok())
        .unwrap_or(i64::MAX);
    NanosDelta::new(if ticks.is_negative() {
        magnitude.saturating_neg()
    } else {
        magnitude
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds;

    #[test]
    fn conversions_at_extreme_rates_are_within_one_of_exact() {
        let rates = [
            bounds::KHZ.min,
            2,
            999,
            32_768,
            1_000_000,
            3_500_000,
            bounds::KHZ.max,
        ];
        let amounts = [
            0,
            1,
            999_999,
            1_000_000_007,
            86_400_000_000_000,
            1 << 55,
            u64::MAX >> 1,
        ];
        for khz in rates.map(|khz| Khz::new(khz).unwrap()) {
            let rate = TickRate::new(khz);
            for amount in amounts {
                if let Some(exact) = ticks_exact_floor(Nanos::new(amount), khz)
                    && exact.get() >> 63 == 0
                {
                    let got = rate.ticks_floor(Nanos::new(amount)).unwrap();
                    assert!(exact.get() - got.get() <= 1, "{amount} ns at {khz}: {got}");
                }
                if let Some(exact) = nanos_exact_floor(Ticks::new(amount), khz)
                    && exact.get() >> 63 == 0
                {
                    let got = rate.nanos_floor(Ticks::new(amount)).unwrap();
                    assert!(
                        exact.get() - got.get() <= 1,
                        "{amount} ticks at {khz}: {got}"
                    );
                }
            }
        }
    }

    #[test]
    fn signed_ticks_are_rounded_towards_zero_and_saturate() {
        // (ticks, kHz, ns): 3 ticks at 2 GHz are 1.5 ns; 2^63 ticks at 1 kHz are 2^63 x 10^6 ns.
        for (ticks, khz, nanos) in [
            (0, 2_000_000, 0),
            (3, 2_000_000, 1),
            (-3, 2_000_000, -1),
            (i64::MAX, 1, i64::MAX),
            (i64::MIN, 1, -i64::MAX),
            (i64::MIN, 1_000_000, -i64::MAX),
        ] {
            let khz = Khz::new(khz).unwrap();
            assert_eq!(
                nanos_delta_toward_zero(TscDelta::new(ticks), khz).get(),
                nanos
            );
        }
    }
}
