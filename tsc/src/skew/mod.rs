//! How far apart two CPUs' counters are: what exchanged timestamps prove, and no more.
//!
//! CPU A reads its counter, tells B, B reads its own, tells A, and A reads again. B's reading was
//! taken between A's two, so the skew `TSC(B) - TSC(A)` lies between B's reading less A's second
//! and B's reading less A's first. Every further exchange gives another such interval, and the skew
//! lies in all of them. No average is formed: an average of slow exchanges is a number without a
//! guarantee, the intersection of their intervals is a theorem. The width that remains is the
//! fastest exchange's round trip.
//!
//! A skew below the time that a message between two CPUs takes cannot be seen from inside a guest:
//! by the time the second CPU can act on the first one's reading, its counter has passed it. A larger
//! one can: then some message arrives before it was sent, and the interval of such messages excludes
//! zero. That is what "apart" means here ([`SkewBounds::is_apart`]), whatever the size, and it is what the
//! kernel's own check looks for (`check_tsc_warp` in arch/x86/kernel/tsc_sync.c). An interval that holds
//! zero only because its messages were slow proves nothing; hence the bound that [`SkewBounds::agrees`] asks
//! for besides.

mod domains;
mod drift;
mod matrix;

pub use domains::{DomainId, Domains};
pub use drift::{DriftBounds, drift_between};
pub use matrix::SkewMatrix;

use core::fmt;

use crate::units::{CpuId, HostTsc, Ppb, Ticks, TscDelta};
use crate::wide;

/// An interval that holds `TSC(B) - TSC(A)` at any one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkewBounds {
    at_least: TscDelta,
    at_most: TscDelta,
}

impl SkewBounds {
    /// The interval from `at_least` to `at_most`, both included.
    ///
    /// # Errors
    /// An empty interval.
    pub fn new(at_least: TscDelta, at_most: TscDelta) -> Result<Self, SkewError> {
        if at_least > at_most {
            return Err(SkewError::Contradiction { at_least, at_most });
        }
        Ok(Self { at_least, at_most })
    }

    /// A skew known exactly.
    #[must_use]
    pub const fn exactly(skew: TscDelta) -> Self {
        Self {
            at_least: skew,
            at_most: skew,
        }
    }

    /// What one exchange proves: A read `sent`, then B read `remote`, then A read `received`.
    ///
    /// ```
    /// # use tsc::{HostTsc, TscDelta, skew::SkewBounds};
    /// let (sent, remote, received) = (HostTsc::new(1_000), HostTsc::new(1_550), HostTsc::new(1_120));
    /// let skew = SkewBounds::from_exchange(sent, remote, received)?;
    /// assert_eq!((skew.at_least(), skew.at_most()), (TscDelta::new(430), TscDelta::new(550)));
    /// # Ok::<(), tsc::skew::SkewError>(())
    /// ```
    ///
    /// # Errors
    /// A's second reading is before its first.
    pub fn from_exchange(
        sent: HostTsc,
        remote: HostTsc,
        received: HostTsc,
    ) -> Result<Self, SkewError> {
        if received.is_before(sent) {
            return Err(SkewError::Order { sent, received });
        }
        Self::new(remote.wrapping_since(received), remote.wrapping_since(sent))
    }

    /// The smallest skew that is possible.
    #[must_use]
    pub const fn at_least(self) -> TscDelta {
        self.at_least
    }

    /// The largest skew that is possible.
    #[must_use]
    pub const fn at_most(self) -> TscDelta {
        self.at_most
    }

    /// What both intervals allow.
    ///
    /// # Errors
    /// They have nothing in common: the counters drifted, or one was written to, between the two.
    pub fn intersect(self, other: Self) -> Result<Self, SkewError> {
        Self::new(
            self.at_least.max(other.at_least),
            self.at_most.min(other.at_most),
        )
    }

    /// `TSC(A) - TSC(B)` instead; `None` for an interval that reaches -2^63.
    #[must_use]
    pub fn reversed(self) -> Option<Self> {
        Some(Self {
            at_least: self.at_most.checked_neg()?,
            at_most: self.at_least.checked_neg()?,
        })
    }

    /// From A to B (`self`) and from B to C: `TSC(C) - TSC(A)`; `None` past 63 bits.
    #[must_use]
    pub fn chain(self, next: Self) -> Option<Self> {
        Some(Self {
            at_least: self.at_least.checked_add(next.at_least)?,
            at_most: self.at_most.checked_add(next.at_most)?,
        })
    }

    /// What is left open: the interval's length.
    #[must_use]
    pub const fn width(self) -> Ticks {
        // OK because at_least <= at_most: their distance is 0 to 2^64 - 1.
        Ticks::new(
            self.at_most
                .get()
                .wrapping_sub(self.at_least.get())
                .cast_unsigned(),
        )
    }

    /// The largest distance that is possible, either way.
    #[must_use]
    pub fn largest_magnitude(self) -> Ticks {
        self.at_least.magnitude().max(self.at_most.magnitude())
    }

    /// The smallest distance that is possible: 0 when the interval holds 0.
    #[must_use]
    pub fn smallest_magnitude(self) -> Ticks {
        if self.at_least.get() > 0 {
            self.at_least.magnitude()
        } else if self.at_most.get() < 0 {
            self.at_most.magnitude()
        } else {
            Ticks::ZERO
        }
    }

    /// Whether the skew is proven to be at most `bound` either way.
    #[must_use]
    pub fn is_within(self, bound: Ticks) -> bool {
        self.largest_magnitude() <= bound
    }

    /// Whether the skew is proven to be more than `bound` either way. Neither this nor
    /// [`Self::is_within`] holds when the interval is too wide to tell.
    #[must_use]
    pub fn is_beyond(self, bound: Ticks) -> bool {
        self.smallest_magnitude() > bound
    }

    /// Whether the counters are proven to differ: no skew of 0 is possible. A message between the two
    /// CPUs was seen to arrive before it was sent, as it can be seen in a guest.
    #[must_use]
    pub fn is_apart(self) -> bool {
        self.is_beyond(Ticks::ZERO)
    }

    /// Whether the skew is proven to be at most `bound` either way, and may be 0. Neither this nor
    /// [`Self::is_apart`] holds when the interval holds 0 and is too wide for the bound.
    #[must_use]
    pub fn agrees(self, bound: Ticks) -> bool {
        self.is_within(bound) && !self.is_apart()
    }

    /// The middle, rounded towards zero so that the reverse has the opposite middle: at most half
    /// the width, and half a tick, from the truth.
    #[must_use]
    pub fn middle_toward_zero(self) -> TscDelta {
        // OK because the sum of two i64 fits i128, and their mean an i64.
        let sum = i128::from(self.at_least.get()).wrapping_add(i128::from(self.at_most.get()));
        TscDelta::new(i64::try_from(sum / 2).unwrap_or(0))
    }

    /// The bounds after `elapsed` more ticks during which the two rates differed by `drift` at
    /// most, either way; rounded outward. `None` past 63 bits.
    #[must_use]
    pub fn aged(self, elapsed: Ticks, drift: Ppb) -> Option<Self> {
        let parts = wide::mul(elapsed.get(), drift.get().unsigned_abs());
        let wander = Ticks::new(wide::narrow(parts.div_ceil(1_000_000_000))?).as_delta()?;
        Some(Self {
            at_least: self.at_least.checked_sub(wander)?,
            at_most: self.at_most.checked_add(wander)?,
        })
    }
}

impl fmt::Display for SkewBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.at_least.get(), self.at_most)
    }
}

/// Collects messages between two CPUs into the interval that they prove.
///
/// Messages need not come in pairs: each one bounds the skew from one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkewMeter {
    at_least: Option<TscDelta>,
    at_most: Option<TscDelta>,
}

impl SkewMeter {
    /// Nothing is known yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            at_least: None,
            at_most: None,
        }
    }

    /// A read `sent`; B, knowing of it, read `received`: the skew is at most their difference.
    pub fn a_to_b(&mut self, sent: HostTsc, received: HostTsc) {
        let bound = received.wrapping_since(sent);
        self.at_most = Some(self.at_most.map_or(bound, |known| known.min(bound)));
    }

    /// B read `sent`; A, knowing of it, read `received`: the skew is at least their difference.
    pub fn b_to_a(&mut self, sent: HostTsc, received: HostTsc) {
        let bound = sent.wrapping_since(received);
        self.at_least = Some(self.at_least.map_or(bound, |known| known.max(bound)));
    }

    /// The interval that all messages so far prove; `None` before there was one each way.
    ///
    /// # Errors
    /// The messages contradict each other: the skew was not constant.
    pub fn bounds(self) -> Result<Option<SkewBounds>, SkewError> {
        match (self.at_least, self.at_most) {
            (Some(at_least), Some(at_most)) => SkewBounds::new(at_least, at_most).map(Some),
            _ => Ok(None),
        }
    }
}

/// Why timestamps prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkewError {
    /// One CPU's counter went backwards between two of its own readings.
    Order {
        /// The first reading.
        sent: HostTsc,
        /// The second.
        received: HostTsc,
    },
    /// The samples allow no skew at all: it was not constant while they were taken.
    Contradiction {
        /// What some of them require at least.
        at_least: TscDelta,
        /// What others allow at most.
        at_most: TscDelta,
    },
    /// Different CPUs contradict each other through a third.
    Cycle {
        /// A CPU on the cycle.
        cpu: CpuId,
    },
    /// A CPU that the matrix does not have.
    UnknownCpu {
        /// The CPU.
        cpu: CpuId,
    },
    /// More CPUs than the matrix has room for, or one named twice.
    Cpus {
        /// How many were given.
        given: usize,
        /// How many fit.
        room: usize,
    },
    /// A bound of more than 63 bits.
    Range,
}

impl fmt::Display for SkewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order { sent, received } => {
                write!(f, "a CPU read {received} after it had read {sent}")
            }
            Self::Contradiction { at_least, at_most } => write!(
                f,
                "the skew would be at least {at_least} and at most {at_most}: it was not constant"
            ),
            Self::Cycle { cpu } => {
                write!(
                    f,
                    "the skews contradict each other on a way from {cpu} back to it"
                )
            }
            Self::UnknownCpu { cpu } => write!(f, "{cpu} is not among those measured"),
            Self::Cpus { given, room } => {
                write!(
                    f,
                    "{given} CPUs, not all different or more than the {room} that fit"
                )
            }
            Self::Range => write!(f, "a skew of more than 63 bits"),
        }
    }
}

impl core::error::Error for SkewError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds(at_least: i64, at_most: i64) -> SkewBounds {
        SkewBounds::new(TscDelta::new(at_least), TscDelta::new(at_most)).unwrap()
    }

    #[test]
    fn exchange_across_the_wrap_bounds_the_skew() {
        // A: 2^64 - 10, then 10; B: 5, between. B - A lies in 5 - 10 ..= 5 + 10.
        let skew = SkewBounds::from_exchange(
            HostTsc::new(u64::MAX - 9),
            HostTsc::new(5),
            HostTsc::new(10),
        );
        assert_eq!(skew, Ok(bounds(-5, 15)));
        let backwards =
            SkewBounds::from_exchange(HostTsc::new(2), HostTsc::new(0), HostTsc::new(1));
        assert!(matches!(backwards, Err(SkewError::Order { .. })));
    }

    #[test]
    fn verdicts_of_wide_intervals_are_neither() {
        let table = [
            // interval, bound, proven within, proven beyond
            ((-5, 5), 5, true, false),
            ((-5, 6), 5, false, false),
            ((6, 9), 5, false, true),
            ((-9, -6), 5, false, true),
            ((5, 9), 5, false, false),
            ((0, 0), 0, true, false),
        ];
        for ((least, most), bound, within, beyond) in table {
            let skew = bounds(least, most);
            assert_eq!(skew.is_within(Ticks::new(bound)), within, "{skew}");
            assert_eq!(skew.is_beyond(Ticks::new(bound)), beyond, "{skew}");
        }
        assert_eq!(bounds(i64::MIN, i64::MAX).width(), Ticks::new(u64::MAX));
        assert_eq!(bounds(i64::MIN, 0).reversed(), None);
    }

    #[test]
    fn counters_whose_interval_excludes_zero_are_apart_whatever_the_bound() {
        let table = [
            // interval, bound, agree, apart
            ((-5, 5), 5, true, false),
            ((0, 5), 5, true, false),
            ((-5, 0), 5, true, false),
            ((1, 5), 5, false, true),
            ((-5, -1), 5, false, true),
            // a slow exchange proves neither
            ((-5, 6), 5, false, false),
            ((-900, 1_000_000), 1_000, false, false),
            // a fast one proves a skew of half the bound
            ((450, 550), 1_000, false, true),
            ((0, 0), 0, true, false),
        ];
        for ((least, most), bound, agree, apart) in table {
            let skew = bounds(least, most);
            assert_eq!(skew.agrees(Ticks::new(bound)), agree, "{skew}");
            assert_eq!(skew.is_apart(), apart, "{skew}");
        }
    }

    #[test]
    fn middle_of_the_reverse_is_the_opposite() {
        for (least, most) in [(-3, 4), (1, 4), (-9, -2), (i64::MIN + 1, i64::MAX)] {
            let skew = bounds(least, most);
            let reversed = skew.reversed().unwrap();
            assert_eq!(
                skew.middle_toward_zero().checked_neg(),
                Some(reversed.middle_toward_zero())
            );
        }
    }

    #[test]
    fn aged_bounds_widen_outward() {
        // 10^9 ticks at 3 ppb: 3; one tick more: 3.000000003, so 4.
        let drift = Ppb::new(-3);
        assert_eq!(
            bounds(0, 0).aged(Ticks::new(1_000_000_000), drift),
            Some(bounds(-3, 3))
        );
        assert_eq!(
            bounds(0, 0).aged(Ticks::new(1_000_000_001), drift),
            Some(bounds(-4, 4))
        );
        assert_eq!(
            bounds(0, 0).aged(Ticks::new(u64::MAX), Ppb::new(i64::MAX)),
            None
        );
    }

    proptest! {
        /// Whatever the delays, the true skew lies in the interval, the interval is the fastest
        /// messages' delays wide, and one tick less would be wrong for some delays.
        #[test]
        fn meter_holds_the_true_skew(
            start in any::<u64>(),
            skew in -(1_i64 << 60)..1 << 60,
            there in prop::collection::vec(0_u64..1 << 30, 1..20),
            back in prop::collection::vec(0_u64..1 << 30, 1..20),
        ) {
            let a = |t: u64| HostTsc::new(start.wrapping_add(t));
            let b = |t: u64| HostTsc::new(start.wrapping_add(t).wrapping_add_signed(skew));
            let mut meter = SkewMeter::new();
            for (i, delay) in there.iter().enumerate() {
                meter.a_to_b(a(i as u64), b(i as u64 + delay));
            }
            prop_assert_eq!(meter.bounds(), Ok(None));
            for (i, delay) in back.iter().enumerate() {
                meter.b_to_a(b(i as u64), a(i as u64 + delay));
            }
            let bounds = meter.bounds().unwrap().unwrap();
            let (fast_there, fast_back) = (there.iter().min().unwrap(), back.iter().min().unwrap());
            prop_assert_eq!(bounds.at_most().get(), skew + i64::try_from(*fast_there).unwrap());
            prop_assert_eq!(bounds.at_least().get(), skew - i64::try_from(*fast_back).unwrap());
            prop_assert_eq!(bounds.width().get(), fast_there + fast_back);
        }

        #[test]
        fn exchange_and_its_two_messages_prove_the_same(
            sent in any::<u64>(), remote in any::<u64>(), trip in 0_u64..1 << 62,
        ) {
            let (sent, remote) = (HostTsc::new(sent), HostTsc::new(remote));
            let received = sent.wrapping_advance(Ticks::new(trip));
            let mut meter = SkewMeter::new();
            meter.a_to_b(sent, remote);
            meter.b_to_a(remote, received);
            prop_assert_eq!(
                meter.bounds().map(Option::unwrap),
                SkewBounds::from_exchange(sent, remote, received)
            );
        }
    }
}
