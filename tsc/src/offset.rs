//! From host to guest: `guest = ((host x ratio) >> N) + offset`, modulo 2^64, and back to the
//! offset that makes it so.

use crate::ratio::{RatioFormat, TscRatio};
use crate::units::{GuestTsc, HostTsc, ScaledTsc, TscDelta, TscOffset};

/// What the processor does to a host reading before the guest sees it (SDM vol. 3, 25.3; APM vol.
/// 2, 15.30.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transform<F: RatioFormat> {
    /// The factor, first.
    pub ratio: TscRatio<F>,
    /// The summand, second.
    pub offset: TscOffset,
}

impl<F: RatioFormat> Transform<F> {
    /// The guest reads the host's TSC.
    pub const IDENTITY: Self = Self {
        ratio: TscRatio::ONE,
        offset: TscOffset::ZERO,
    };

    /// What the guest reads when the host reads `host`: exact, because the processor computes the
    /// same floor.
    ///
    /// ```
    /// # use tsc::{GuestTsc, HostTsc, Svm, TscOffset, Transform, TscRatio};
    /// let clock = Transform { ratio: TscRatio::<Svm>::from_bits(1 << 31)?, offset: TscOffset::new(5) };
    /// assert_eq!(clock.guest_at(HostTsc::new(21)), GuestTsc::new(15));
    /// # Ok::<(), tsc::RatioError>(())
    /// ```
    #[must_use]
    #[inline]
    pub const fn guest_at(self, host: HostTsc) -> GuestTsc {
        let scaled = self.ratio.scale_floor(host).get();
        GuestTsc::new(scaled.wrapping_add(self.offset.get()) & TscRatio::<F>::COUNTER_MASK)
    }

    /// The transform with `ratio` under which the guest reads `guest` when the host reads `host`.
    /// Exact: there is one such offset, and this is it.
    #[must_use]
    #[inline]
    pub const fn through(ratio: TscRatio<F>, host: HostTsc, guest: GuestTsc) -> Self {
        Self {
            ratio,
            offset: offset_between::<F>(ratio.scale_floor(host), guest),
        }
    }

    /// The transform under which the guest reads `delta` more, from now on.
    #[must_use]
    #[inline]
    pub const fn adjusted(self, delta: TscDelta) -> Self {
        let offset = self.offset.wrapping_add(delta).get() & TscRatio::<F>::COUNTER_MASK;
        Self {
            ratio: self.ratio,
            offset: TscOffset::new(offset),
        }
    }
}

/// The offset that takes `scaled` to `guest`: their difference modulo the counter's width.
#[must_use]
#[inline]
pub const fn offset_between<F: RatioFormat>(scaled: ScaledTsc, guest: GuestTsc) -> TscOffset {
    TscOffset::new(guest.get().wrapping_sub(scaled.get()) & TscRatio::<F>::COUNTER_MASK)
}

/// Without scaling: the offset that makes the guest read `guest` when the host reads `host`.
#[must_use]
#[inline]
pub const fn offset_unscaled(host: HostTsc, guest: GuestTsc) -> TscOffset {
    TscOffset::new(guest.get().wrapping_sub(host.get()))
}

/// Without scaling: what the guest reads when the host reads `host`.
#[must_use]
#[inline]
pub const fn guest_unscaled(host: HostTsc, offset: TscOffset) -> GuestTsc {
    GuestTsc::new(host.get().wrapping_add(offset.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::{Svm, Vmx};

    #[test]
    fn transform_through_a_point_passes_it() {
        for host in [0, 1, 12_345_678_901, u64::MAX] {
            for guest in [0, 77, u64::MAX] {
                let (host, guest) = (HostTsc::new(host), GuestTsc::new(guest));
                for bits in [1, 1 << 31, 0xFF_FFFF_FFFF] {
                    let ratio = TscRatio::<Svm>::from_bits(bits).unwrap();
                    assert_eq!(Transform::through(ratio, host, guest).guest_at(host), guest);
                }
                for bits in [1, 1 << 47, u64::MAX] {
                    let ratio = TscRatio::<Vmx>::from_bits(bits).unwrap();
                    assert_eq!(Transform::through(ratio, host, guest).guest_at(host), guest);
                }
            }
        }
    }

    #[test]
    fn adjusted_by_a_delta_moves_every_reading_by_it() {
        let clock = Transform {
            ratio: TscRatio::<Vmx>::ONE,
            offset: TscOffset::new(3),
        };
        let back = clock.adjusted(TscDelta::new(-10));
        // 1 + 3 - 10 = -6 modulo 2^64.
        assert_eq!(back.guest_at(HostTsc::new(1)), GuestTsc::new(u64::MAX - 5));
        assert_eq!(
            offset_unscaled(HostTsc::new(1), back.guest_at(HostTsc::new(1))),
            back.offset
        );
        assert_eq!(
            guest_unscaled(HostTsc::new(9), back.offset),
            back.guest_at(HostTsc::new(9))
        );
    }
}
