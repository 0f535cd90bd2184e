//! What bracketed readings prove about a guest's clock.
//!
//! A guest's reading of its TSC cannot be taken at the same instant as the host's. But it can be
//! taken *between* two readings of the host: the guest asks, the host notes its time, the guest
//! reads, the host notes its time again. Two such samples bound the rate of the guest's clock from
//! both sides, however long the exits took: the true figure lies inside, or one of the clocks
//! misbehaved. No average is formed and no outlier dropped, so nothing is claimed that the readings
//! do not prove.

use core::fmt;

use crate::bounds;
use crate::units::{GuestTsc, HostTsc, Hz, Nanos, Ppb};

/// One reading of the host's two clocks, close together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSample {
    /// The TSC of the CPU on which it was taken.
    pub tsc: HostTsc,
    /// A clock of the host that nothing slews: `CLOCK_MONOTONIC_RAW`.
    pub monotonic: Nanos,
}

/// A guest's reading, known to have been taken after `before` and before `after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSample {
    /// The host's clocks before the guest read its own.
    pub before: HostSample,
    /// What the guest read.
    pub guest: GuestTsc,
    /// The host's clocks after that.
    pub after: HostSample,
}

impl GuestSample {
    /// How long the bracket is: the uncertainty of this one reading.
    #[must_use]
    pub const fn uncertainty(&self) -> Nanos {
        self.after.monotonic.saturating_sub(self.before.monotonic)
    }
}

/// The bounds within which a guest's rate lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateBounds {
    /// The guest's clock is not slower than this.
    pub at_least: Hz,
    /// The guest's clock is not faster than this.
    pub at_most: Hz,
}

/// The bounds within which a guest's rate deviates from the host's TSC; 0 is the host's own rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviationBounds {
    /// The deviation is not less than this.
    pub at_least: Ppb,
    /// The deviation is not more than this.
    pub at_most: Ppb,
}

impl fmt::Display for DeviationBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} ppb", self.at_least.get(), self.at_most.get())
    }
}

/// The sample of the shortest bracket.
#[must_use]
pub fn tightest(samples: &[GuestSample]) -> Option<&GuestSample> {
    samples.iter().min_by_key(|sample| sample.uncertainty())
}

/// The guest's rate between two samples, against the host's monotonic clock.
///
/// `None` when the brackets touch, so that nothing is proven, or when the rate is outside
/// [`bounds::HZ`], which no x86 clock is.
#[must_use]
pub fn guest_rate(first: &GuestSample, last: &GuestSample) -> Option<RateBounds> {
    let ticks = last.guest.wrapping_elapsed(first.guest).get();
    let shortest = last
        .before
        .monotonic
        .checked_sub(first.after.monotonic)?
        .get();
    let longest = last
        .after
        .monotonic
        .checked_sub(first.before.monotonic)?
        .get();
    // Rounded away from the truth on both sides, so that rounding never makes a bound false.
    Some(RateBounds {
        at_least: hz(per(ticks, 1_000_000_000, longest, Round::Down)?)?,
        at_most: hz(per(ticks, 1_000_000_000, shortest, Round::Up)?)?,
    })
}

/// How much the guest's rate between two samples deviates from the host's TSC.
///
/// Both samples must come from one TSC domain of the host. `None` when the brackets touch, or when
/// the deviation does not fit [`Ppb`].
#[must_use]
pub fn guest_deviation(first: &GuestSample, last: &GuestSample) -> Option<DeviationBounds> {
    const ONE: i128 = 1_000_000_000;
    let ticks = last.guest.wrapping_elapsed(first.guest).get();
    let shortest = last.before.tsc.wrapping_since(first.after.tsc);
    let longest = last.after.tsc.wrapping_since(first.before.tsc);
    let shortest = u64::try_from(shortest.get()).ok()?;
    let longest = u64::try_from(longest.get()).ok()?;
    let deviation = |parts: u128| {
        // OK because `per` of a 64-bit count and 10^9 is below 2^94.
        let deviation = i128::try_from(parts).ok()?.checked_sub(ONE)?;
        i64::try_from(deviation).ok().map(Ppb::new)
    };
    Some(DeviationBounds {
        at_least: deviation(per(ticks, 1_000_000_000, longest, Round::Down)?)?,
        at_most: deviation(per(ticks, 1_000_000_000, shortest, Round::Up)?)?,
    })
}

enum Round {
    Down,
    Up,
}

/// `count x unit / divisor`; `None` for a divisor of zero. The product needs 64 + 64 bits.
fn per(count: u64, unit: u64, divisor: u64, round: Round) -> Option<u128> {
    // OK because two 64-bit factors fill 128 bits at most.
    let product = u128::from(count).checked_mul(u128::from(unit))?;
    let divisor = u128::from(divisor);
    let quotient = product.checked_div(divisor)?;
    match round {
        Round::Down => Some(quotient),
        Round::Up if product.checked_rem(divisor)? == 0 => Some(quotient),
        Round::Up => quotient.checked_add(1),
    }
}

fn hz(rate: u128) -> Option<Hz> {
    let rate = u64::try_from(rate).ok()?;
    if rate < bounds::HZ.min {
        None
    } else {
        Hz::new(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(tsc: u64, monotonic: u64) -> HostSample {
        HostSample {
            tsc: HostTsc::new(tsc),
            monotonic: Nanos::new(monotonic),
        }
    }

    fn sample(before: (u64, u64), guest: u64, after: (u64, u64)) -> GuestSample {
        GuestSample {
            before: host(before.0, before.1),
            guest: GuestTsc::new(guest),
            after: host(after.0, after.1),
        }
    }

    #[test]
    fn guest_rate_of_exact_readings_is_exact() {
        // 2,000,000 ticks in 1 ms on both sides: 2 GHz with no width at all
        let first = sample((0, 0), 5, (0, 0));
        let last = sample((2_000_000, 1_000_000), 2_000_005, (2_000_000, 1_000_000));
        let rate = guest_rate(&first, &last).expect("apart");
        assert_eq!(
            (rate.at_least.get(), rate.at_most.get()),
            (2_000_000_000, 2_000_000_000)
        );
        let deviation = guest_deviation(&first, &last).expect("apart");
        assert_eq!((deviation.at_least.get(), deviation.at_most.get()), (0, 0));
    }

    #[test]
    fn guest_rate_widens_by_the_brackets() {
        // brackets of 100 ns and 200 ns around readings 1 ms apart at 1 GHz:
        // shortest 1,000,000 - 100 - 0 = 999,900; longest 1,000,200
        let first = sample((0, 0), 0, (100, 100));
        let last = sample((1_000_000, 1_000_000), 1_000_000, (1_000_200, 1_000_200));
        let rate = guest_rate(&first, &last).expect("apart");
        // 10^15 / 1,000,200 = 999,800,039.99; 10^15 / 999,900 = 1,000,100,010.001
        assert_eq!(
            (rate.at_least.get(), rate.at_most.get()),
            (999_800_039, 1_000_100_011)
        );
        let deviation = guest_deviation(&first, &last).expect("apart");
        assert_eq!(
            (deviation.at_least.get(), deviation.at_most.get()),
            (-199_961, 100_011)
        );
    }

    #[test]
    fn nothing_is_proven_by_brackets_that_touch() {
        let first = sample((0, 0), 0, (100, 100));
        let last = sample((100, 100), 50, (200, 200));
        assert_eq!(guest_rate(&first, &last), None);
        assert_eq!(guest_deviation(&first, &last), None);
        // and none by samples in the wrong order
        assert_eq!(guest_rate(&last, &first), None);
    }

    #[test]
    fn a_guest_that_stands_still_is_no_rate_and_a_full_deviation() {
        let first = sample((0, 0), 7, (10, 10));
        let last = sample((1_000_000, 1_000_000), 7, (1_000_010, 1_000_010));
        assert_eq!(guest_rate(&first, &last), None);
        let deviation = guest_deviation(&first, &last).expect("apart");
        assert_eq!(
            (deviation.at_least.get(), deviation.at_most.get()),
            (-1_000_000_000, -1_000_000_000)
        );
    }

    #[test]
    fn tightest_is_the_shortest_bracket() {
        let samples = [
            sample((0, 0), 1, (50, 50)),
            sample((60, 60), 2, (70, 70)),
            sample((80, 80), 3, (95, 95)),
        ];
        assert_eq!(tightest(&samples), Some(&samples[1]));
        assert_eq!(tightest(&[]), None);
    }

    proptest! {
        /// Whatever the brackets, the rate at which the guest really ran lies within the bounds.
        #[test]
        fn bounds_hold_the_true_rate(
            khz in 1_000_u64..10_000_000,
            start in 0_u64..1 << 40,
            length in 1_u64..1 << 40,
            brackets in prop::array::uniform4(0_u64..1 << 20),
            guest_start in any::<u64>(),
        ) {
            // True instants in ns of the two readings, each inside its bracket.
            let (t0, t1) = (start + brackets[0], start + brackets[0] + brackets[1] + brackets[2] + length);
            let ticks_at = |ns: u64| u64::try_from(u128::from(ns) * u128::from(khz) / 1_000_000).expect("fits");
            let guest = |ns| guest_start.wrapping_add(ticks_at(ns));
            let first = sample((t0 - brackets[0], t0 - brackets[0]), guest(t0), (t0 + brackets[1], t0 + brackets[1]));
            let last = sample((t1 - brackets[2], t1 - brackets[2]), guest(t1), (t1 + brackets[3], t1 + brackets[3]));
            let ticks = guest(t1).wrapping_sub(guest(t0));
            let deviation = guest_deviation(&first, &last);
            if let Some(rate) = guest_rate(&first, &last) {
                // ticks / (t1 - t0), compared without division
                let elapsed = u128::from(t1 - t0);
                let scaled = u128::from(ticks) * 1_000_000_000;
                prop_assert!(u128::from(rate.at_least.get()) * elapsed <= scaled);
                prop_assert!(u128::from(rate.at_most.get()) * elapsed >= scaled);
                prop_assert!(deviation.is_some());
            }
        }
    }
}
