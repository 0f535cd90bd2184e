//! From a call that returned 0 to an effect that was measured: three kinds of knowledge, three
//! types.
//!
//! | type | what it says | whose word it is |
//! | --- | --- | --- |
//! | [`Written`] | the call was accepted | nobody's: KVMs are in use that accept and ignore |
//! | [`Claimed`], [`ReadBack`] | the number that the kernel gives back | the kernel's: it gives back refused rates, and rates that it does not scale to |
//! | [`OffsetEffect`], [`RateEffect`] | what bracketed readings of the guest's own RDTSC prove | the processor's |
//!
//! Only the last can say that something is in force, and it cannot be made without readings.

use tsc::measure::{self, DeviationBounds, GuestSample};
use tsc::{Khz, TscDelta, TscOffset};

use super::form::VendorRatio;

/// A request that the hypervisor accepted. It says nothing about an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an accepted request may have had no effect: read it back, then measure it"]
pub struct Written<T> {
    asked: T,
}

impl<T: Copy> Written<T> {
    /// The record of a call that asked for `asked` and was accepted.
    pub const fn new(asked: T) -> Self {
        Self { asked }
    }

    /// What was asked.
    #[must_use]
    pub const fn asked(self) -> T {
        self.asked
    }

    /// Puts what the hypervisor gives back beside what was asked.
    pub const fn read_back(self, claimed: Claimed<T>) -> ReadBack<T> {
        ReadBack {
            asked: self.asked,
            claimed: claimed.0,
        }
    }
}

/// What the hypervisor says is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed<T>(T);

impl<T: Copy> Claimed<T> {
    /// The hypervisor's answer `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The answer, to be taken as a claim.
    #[must_use]
    pub const fn claim(self) -> T {
        self.0
    }
}

/// What was asked, and what was given back. Still no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a number that reads back may not be in force: measure it"]
pub struct ReadBack<T> {
    asked: T,
    claimed: T,
}

impl<T: Copy + PartialEq> ReadBack<T> {
    /// `asked` was asked of something else, such as the VM before the vCPU was there, and `claimed`
    /// is what this vCPU says.
    pub const fn of(asked: T, claimed: Claimed<T>) -> Self {
        Self {
            asked,
            claimed: claimed.0,
        }
    }

    /// What was asked.
    #[must_use]
    pub const fn asked(self) -> T {
        self.asked
    }

    /// What was given back.
    #[must_use]
    pub const fn claimed(self) -> T {
        self.claimed
    }

    /// Whether the same number came back.
    #[must_use]
    pub fn agrees(self) -> bool {
        self.asked == self.claimed
    }
}

/// The offsets, ends included, among which the one in force is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetBounds {
    at_least: TscOffset,
    at_most: TscOffset,
}

impl OffsetBounds {
    /// What `samples` prove of the offset, if the ratio in force is `ratio`. `None` when no single
    /// offset explains all of them, that is: another ratio is in force, or the offset moved
    /// meanwhile; and when there are none.
    ///
    /// Each bracket gives an interval, exact to the tick, because the processor's floor is
    /// computed at both of its ends; the result is what all of them have in common. The brackets
    /// must come from the CPU that ran the guest.
    #[must_use]
    pub fn proven_by(ratio: VendorRatio, samples: &[GuestSample]) -> Option<Self> {
        samples
            .iter()
            .map(|sample| Self {
                // The later the host's reading, the smaller the offset that explains the guest's.
                at_least: ratio.offset_through(sample.after.tsc, sample.guest),
                at_most: ratio.offset_through(sample.before.tsc, sample.guest),
            })
            .map(Some)
            .reduce(|common, bounds| common?.intersection(bounds?))
            .flatten()
    }

    /// The smallest offset that the readings allow.
    #[must_use]
    pub const fn at_least(self) -> TscOffset {
        self.at_least
    }

    /// The largest offset that the readings allow.
    #[must_use]
    pub const fn at_most(self) -> TscOffset {
        self.at_most
    }

    /// How far apart the ends are: 0 when the offset is known to the tick.
    #[must_use]
    pub const fn width(self) -> TscDelta {
        self.at_most.wrapping_since(self.at_least)
    }

    /// Whether `offset` may be the one in force.
    #[must_use]
    pub const fn contains(self, offset: TscOffset) -> bool {
        !offset.wrapping_since(self.at_least).is_negative()
            && !self.at_most.wrapping_since(offset).is_negative()
    }

    /// The bounds of an offset that is `delta` further on than one within these.
    #[must_use]
    pub const fn moved_by(self, delta: TscDelta) -> Self {
        Self {
            at_least: self.at_least.wrapping_add(delta),
            at_most: self.at_most.wrapping_add(delta),
        }
    }

    /// Whether one offset can be within both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.intersection(other).is_some()
    }

    const fn intersection(self, other: Self) -> Option<Self> {
        let at_least = if self.at_least.wrapping_since(other.at_least).is_negative() {
            other.at_least
        } else {
            self.at_least
        };
        let at_most = if self.at_most.wrapping_since(other.at_most).is_negative() {
            self.at_most
        } else {
            other.at_most
        };
        if at_most.wrapping_since(at_least).is_negative() {
            None
        } else {
            Some(Self { at_least, at_most })
        }
    }
}

/// What became of an offset that was written, by measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetEffect {
    /// The guest reads what the offset asked for makes it read; no other offset than these does.
    InForce(OffsetBounds),
    /// The guest reads on as before: the write was accepted and ignored.
    Ignored(OffsetBounds),
    /// The kernel moved the offset by itself after the write: it compensates on a host whose TSC
    /// it takes for unstable. Only observe then.
    MovedByKernel {
        /// What the kernel says the offset is now.
        claimed: TscOffset,
        /// What the readings prove, if one offset explains them.
        measured: Option<OffsetBounds>,
    },
    /// An offset is in force that is neither the one asked for nor the former one.
    Other(OffsetBounds),
    /// No single offset explains the readings, and the kernel admits no move.
    Unsteady,
    /// The readings are too coarse to tell the offset asked for from the former one.
    Undecided(OffsetBounds),
}

impl OffsetEffect {
    /// Judges a written offset.
    ///
    /// `former` is what readings proved before the write, `samples` are readings after it, and
    /// `later` is what the hypervisor says of the offset after those.
    #[must_use]
    pub fn judge(
        written: ReadBack<TscOffset>,
        later: Claimed<TscOffset>,
        former: OffsetBounds,
        ratio: VendorRatio,
        samples: &[GuestSample],
    ) -> Self {
        let moved = later.claim() != written.claimed();
        let measured = OffsetBounds::proven_by(ratio, samples);
        match measured {
            Some(bounds) => match (bounds.contains(written.asked()), bounds.overlaps(former)) {
                (true, true) => Self::Undecided(bounds),
                (false, true) => Self::Ignored(bounds),
                // Near the offset asked for as well: the kernel's next move may be a large one.
                (_, false) if moved => Self::MovedByKernel {
                    claimed: later.claim(),
                    measured,
                },
                (true, false) => Self::InForce(bounds),
                (false, false) => Self::Other(bounds),
            },
            None if moved => Self::MovedByKernel {
                claimed: later.claim(),
                measured,
            },
            None => Self::Unsteady,
        }
    }

    /// Whether the offset asked for was measured to be in force.
    #[must_use]
    pub const fn is_in_force(self) -> bool {
        matches!(self, Self::InForce(_))
    }
}

/// What became of a rate that was asked for, by measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateEffect {
    /// The guest's TSC runs at the rate asked for, to within the readings' bounds, in hardware.
    InForce(DeviationBounds),
    /// It runs at the host's rate: ignored, or within the kernel's tolerance and not scaled.
    Unscaled(DeviationBounds),
    /// It keeps up with the rate asked for because the kernel pushes it forward at entries, in
    /// steps. Between two entries it runs at another rate, usually the host's.
    CaughtUp(DeviationBounds),
    /// It keeps up with the rate asked for across entries; what it does between two of them was not
    /// measured.
    AcrossEntries(DeviationBounds),
    /// It runs at neither rate, or moved in steps.
    Neither(DeviationBounds),
    /// The readings are too coarse, or too few, to tell the rate asked for from the host's.
    Undecided(Option<DeviationBounds>),
}

impl RateEffect {
    /// Judges a rate by readings that were taken under it.
    ///
    /// `ratio` is what the hardware must hold for the rate. The readings `across` are apart in time
    /// with entries between them, which prove the rate that the guest keeps up with. Those `within`
    /// one entry tell scaling from catch-up; there may be none. What the hypervisor says of itself is
    /// not asked for. The two sets need not be bracketed on the same CPU, each set must be.
    #[must_use]
    pub fn judge(ratio: VendorRatio, across: &[GuestSample], within: &[GuestSample]) -> Self {
        let one = VendorRatio::one(ratio.vendor());
        let deviation = match across {
            [first, .., last] => measure::guest_deviation(first, last),
            _ => None,
        };
        let Some(deviation) = deviation else {
            return Self::Undecided(None);
        };
        let explained = |by, samples| OffsetBounds::proven_by(by, samples).is_some();
        match (explained(ratio, across), explained(one, across)) {
            (true, _) if ratio == one => Self::InForce(deviation),
            (true, true) => Self::Undecided(Some(deviation)),
            (false, true) => Self::Unscaled(deviation),
            (false, false) => Self::Neither(deviation),
            (true, false) => match (explained(ratio, within), explained(one, within)) {
                _ if within.is_empty() => Self::AcrossEntries(deviation),
                (true, true) => Self::AcrossEntries(deviation),
                (true, false) => Self::InForce(deviation),
                (false, _) => Self::CaughtUp(deviation),
            },
        }
    }

    /// Whether the rate asked for was measured to be in force.
    #[must_use]
    pub const fn is_in_force(self) -> bool {
        matches!(self, Self::InForce(_))
    }

    /// The bounds within which the guest's rate deviates from the host's TSC, first reading to last
    /// of those across entries.
    #[must_use]
    pub const fn deviation(self) -> Option<DeviationBounds> {
        match self {
            Self::InForce(deviation)
            | Self::Unscaled(deviation)
            | Self::CaughtUp(deviation)
            | Self::AcrossEntries(deviation)
            | Self::Neither(deviation) => Some(deviation),
            Self::Undecided(deviation) => deviation,
        }
    }
}

/// A rate that the kernel refused, and what it answers about the rate afterwards: it may give back
/// the very number that it refused (`kvm_set_tsc_khz` in arch/x86/kvm/x86.c notes the rate before
/// it looks whether it can be had).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedRate {
    /// What was asked.
    pub asked: Khz,
    /// What is given back, if anything.
    pub claimed: Option<Khz>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tsc_control::Vendor;
    use tsc::measure::HostSample;
    use tsc::{GuestTsc, HostTsc, Nanos};

    fn sample(before: u64, guest: u64, after: u64) -> GuestSample {
        let host = |ticks| HostSample {
            tsc: HostTsc::new(ticks),
            monotonic: Nanos::new(ticks),
        };
        GuestSample {
            before: host(before),
            guest: GuestTsc::new(guest),
            after: host(after),
        }
    }

    const ONE: VendorRatio = VendorRatio::one(Vendor::Intel);

    fn bounds(low: u64, high: u64) -> OffsetBounds {
        OffsetBounds {
            at_least: TscOffset::new(low),
            at_most: TscOffset::new(high),
        }
    }

    #[test]
    fn bounds_are_what_all_brackets_have_in_common() {
        // 1050 read in 100..130 is an offset of 920..950; 2035 in 1090..1100 one of 935..945
        let samples = [sample(100, 1050, 130), sample(1090, 2035, 1100)];
        assert_eq!(
            OffsetBounds::proven_by(ONE, &samples),
            Some(bounds(935, 945))
        );
        assert_eq!(OffsetBounds::proven_by(ONE, &[]), None);
        // 5000 in 4000..4010 is 990..1000: nothing in common
        let moved = [samples[0], samples[1], sample(4000, 5000, 4010)];
        assert_eq!(OffsetBounds::proven_by(ONE, &moved), None);
    }

    #[test]
    fn bounds_across_zero_still_contain() {
        let around = bounds(u64::MAX - 4, 5);
        assert_eq!(around.width(), TscDelta::new(10));
        for inside in [u64::MAX - 4, u64::MAX, 0, 5] {
            assert!(around.contains(TscOffset::new(inside)));
        }
        for outside in [6, u64::MAX - 5] {
            assert!(!around.contains(TscOffset::new(outside)));
        }
        assert!(around.overlaps(bounds(5, 9)) && !around.overlaps(bounds(6, 9)));
    }

    #[test]
    fn offset_effects_are_told_apart() {
        let former = bounds(0, 10);
        let written = |asked: u64, claimed: u64| {
            Written::new(TscOffset::new(asked)).read_back(Claimed::new(TscOffset::new(claimed)))
        };
        let claim = |offset| Claimed::new(TscOffset::new(offset));
        let judge = |asked, claimed, later, samples: &[GuestSample]| {
            OffsetEffect::judge(written(asked, claimed), claim(later), former, ONE, samples)
        };
        let at = |offset: u64| {
            [
                sample(1000, 1005 + offset, 1010),
                sample(2000, 2005 + offset, 2010),
            ]
        };
        let around = |offset: u64| bounds(offset - 5, offset + 5);
        // whatever reads back
        for claimed in [0, 500] {
            let effect = judge(500, claimed, claimed, &at(500));
            assert_eq!(effect, OffsetEffect::InForce(around(500)));
            assert!(effect.is_in_force());
            let effect = judge(500, claimed, claimed, &at(5));
            assert_eq!(effect, OffsetEffect::Ignored(around(5)));
            assert!(!effect.is_in_force());
        }
        assert_eq!(
            judge(500, 500, 500, &at(700)),
            OffsetEffect::Other(around(700))
        );
        assert_eq!(
            judge(500, 500, 700, &at(700)),
            OffsetEffect::MovedByKernel {
                claimed: TscOffset::new(700),
                measured: Some(around(700))
            }
        );
        assert_eq!(
            judge(500, 500, 501, &at(500)),
            OffsetEffect::MovedByKernel {
                claimed: TscOffset::new(501),
                measured: Some(around(500))
            }
        );
        assert_eq!(judge(7, 7, 7, &at(6)), OffsetEffect::Undecided(around(6)));
        let jumped = [sample(1000, 1500, 1010), sample(2000, 2900, 2010)];
        assert_eq!(judge(500, 500, 500, &jumped), OffsetEffect::Unsteady);
        assert_eq!(
            judge(500, 500, 900, &jumped),
            OffsetEffect::MovedByKernel {
                claimed: TscOffset::new(900),
                measured: None
            }
        );
    }

    #[test]
    fn rate_effects_are_told_apart() {
        let half = VendorRatio::from_bits(Vendor::Intel, 1 << 47).expect("0.5");
        let at_half = [sample(0, 5, 20), sample(100_000, 50_005, 100_020)];
        let at_host = [sample(0, 5, 20), sample(100_000, 100_010, 100_020)];
        let neither = [sample(0, 5, 20), sample(100_000, 75_000, 100_020)];
        let close = [sample(0, 15, 20), sample(10, 25, 30)];
        let judge = |across: &[GuestSample], within: &[GuestSample]| {
            RateEffect::judge(half, across, within)
        };
        assert!(judge(&at_half, &at_half).is_in_force());
        assert!(matches!(judge(&at_half, &at_host), RateEffect::CaughtUp(_)));
        assert!(matches!(judge(&at_half, &neither), RateEffect::CaughtUp(_)));
        for unknown in [&[][..], &close] {
            let effect = judge(&at_half, unknown);
            assert!(matches!(effect, RateEffect::AcrossEntries(_)));
            assert!(!effect.is_in_force());
        }
        assert!(matches!(judge(&at_host, &[]), RateEffect::Unscaled(_)));
        assert!(matches!(judge(&neither, &[]), RateEffect::Neither(_)));
        let far = [sample(0, 15, 20), sample(21, 26, 41)];
        assert!(matches!(judge(&far, &[]), RateEffect::Undecided(Some(_))));
        assert_eq!(judge(&close, &[]), RateEffect::Undecided(None));
        assert_eq!(judge(&close[..1], &[]), RateEffect::Undecided(None));
        assert!(RateEffect::judge(ONE, &at_host, &[]).is_in_force());
        assert!(!RateEffect::judge(ONE, &at_half, &[]).is_in_force());
    }
}
