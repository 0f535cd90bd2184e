//! How fast a skew grows: the difference of two CPUs' rates.

use super::SkewBounds;
use crate::units::{Ppb, Ticks};

/// An interval that holds the rate of B less the rate of A, relative to A's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriftBounds {
    /// B is at least this much faster.
    pub at_least: Ppb,
    /// B is at most this much faster.
    pub at_most: Ppb,
}

/// What two skews, `elapsed` ticks of A apart, prove about the drift; rounded outward. `None` when
/// no time passed, or when the drift needs more than 63 bits.
///
/// ```
/// # use tsc::{Ticks, TscDelta, skew::{SkewBounds, drift_between}};
/// let first = SkewBounds::new(TscDelta::new(0), TscDelta::new(100)).unwrap();
/// let second = SkewBounds::new(TscDelta::new(50_000), TscDelta::new(50_100)).unwrap();
/// let drift = drift_between(first, second, Ticks::new(1_000_000_000)).unwrap();
/// assert_eq!((drift.at_least.get(), drift.at_most.get()), (49_900, 50_100));
/// ```
#[must_use]
pub fn drift_between(first: SkewBounds, second: SkewBounds, elapsed: Ticks) -> Option<DriftBounds> {
    let divisor = i128::from(elapsed.get());
    // Bit budget: a difference of two i64 has 65 bits, and 10^9 has 30 more.
    let parts = |grown_to: i64, from: i64| {
        i128::from(grown_to)
            .wrapping_sub(i128::from(from))
            .wrapping_mul(1_000_000_000)
    };
    let least =
        parts(second.at_least().get(), first.at_most().get()).checked_div_euclid(divisor)?;
    // ceil(x / d) = -floor(-x / d).
    let most = parts(second.at_most().get(), first.at_least().get())
        .wrapping_neg()
        .checked_div_euclid(divisor)?
        .wrapping_neg();
    Some(DriftBounds {
        at_least: Ppb::new(i64::try_from(least).ok()?),
        at_most: Ppb::new(i64::try_from(most).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::TscDelta;
    use proptest::prelude::*;

    #[test]
    fn drift_without_elapsed_time_is_unknown() {
        let skew = SkewBounds::exactly(TscDelta::ZERO);
        assert_eq!(drift_between(skew, skew, Ticks::ZERO), None);
    }

    proptest! {
        /// B ticks 10^9 + ppb times for 10^9 of A; the bounds hold that, rounded outward.
        #[test]
        fn drift_bounds_hold_the_true_drift(
            start in -(1_i64 << 40)..1 << 40,
            ppb in -100_000_000_i64..100_000_000,
            elapsed in 1_u64..1 << 50,
            slack in prop::array::uniform4(0_i64..1 << 20),
        ) {
            let grown = i64::try_from(i128::from(elapsed) * i128::from(ppb) / 1_000_000_000).unwrap();
            let around = |skew: i64, below: i64, above: i64| {
                SkewBounds::new(TscDelta::new(skew - below), TscDelta::new(skew + above)).unwrap()
            };
            let first = around(start, slack[0], slack[1]);
            let second = around(start + grown, slack[2], slack[3]);
            let bounds = drift_between(first, second, Ticks::new(elapsed)).unwrap();
            // In units of 10^-9 ticks: least x elapsed <= grown x 10^9 <= most x elapsed.
            let (elapsed, grown) = (i128::from(elapsed), i128::from(grown) * 1_000_000_000);
            prop_assert!(i128::from(bounds.at_least.get()) * elapsed <= grown);
            prop_assert!(i128::from(bounds.at_most.get()) * elapsed >= grown);
            // And they are as tight as the samples: one more ppb on either side says nothing new.
            let slack_least = i128::from(slack[1] + slack[2]) * 1_000_000_000;
            prop_assert!((i128::from(bounds.at_least.get()) + 1) * elapsed > grown - slack_least);
            let slack_most = i128::from(slack[0] + slack[3]) * 1_000_000_000;
            prop_assert!((i128::from(bounds.at_most.get()) - 1) * elapsed < grown + slack_most);
        }
    }
}
