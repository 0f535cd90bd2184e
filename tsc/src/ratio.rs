//! The ratio of a guest's rate to its host's, as the processor holds it: a fixed-point number that
//! the host's TSC is multiplied by.
//!
//! Both vendors compute `(host x ratio) >> N` with a product of 128 bits and differ in where the
//! binary point lies and in which bits exist. [`RatioFormat`] names those three numbers, and all
//! arithmetic is generic over it: the tests run the very same code at a width of six or eight bits,
//! where every input can be tried.

use core::fmt;
use core::hash::Hash;
use core::marker::PhantomData;
use core::num::NonZeroU128;

use crate::units::{HostTsc, Hz, Khz, Ppb, ScaledTsc, Ticks};
use crate::{bounds, wide};

/// Where a vendor's TSC ratio has its binary point and its last bit.
pub trait RatioFormat: Copy + fmt::Debug + PartialEq + Eq + Hash {
    /// The format's name, for messages.
    const NAME: &'static str;
    /// Width of the counters; 64 on every processor, less in exhaustive tests.
    const COUNTER_BITS: u32 = 64;
    /// Bits after the binary point: the N of `(host x ratio) >> N`.
    const FRACTION_BITS: u32;
    /// Bits that exist, fraction included; those above are reserved and must be zero.
    const RATIO_BITS: u32;
}

/// Intel's TSC multiplier: 64 bits, 48 of them fraction (SDM vol. 3, 25.3: "the product of the
/// value of the time-stamp counter and the value of the TSC multiplier, shifted right 48 bits").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vmx;

impl RatioFormat for Vmx {
    const NAME: &'static str = "VMX";
    const FRACTION_BITS: u32 = 48;
    const RATIO_BITS: u32 = u64::BITS - bounds::VMX_RATIO.max.leading_zeros();
}

/// AMD's TSC ratio, MSR C000_0104h: 8.32 fixed point, bits 63:40 reserved (APM vol. 2, 15.30.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Svm;

impl RatioFormat for Svm {
    const NAME: &'static str = "SVM";
    const FRACTION_BITS: u32 = 32;
    const RATIO_BITS: u32 = u64::BITS - bounds::SVM_RATIO.max.leading_zeros();
}

/// A TSC ratio that the format `F` can hold: never zero, no reserved bit set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TscRatio<F: RatioFormat> {
    bits: u64,
    format: PhantomData<F>,
}

impl<F: RatioFormat> TscRatio<F> {
    /// The widths hang together; a format that breaks this does not compile.
    const WIDTHS: () = assert!(
        F::COUNTER_BITS <= 64
            && F::RATIO_BITS <= F::COUNTER_BITS
            && F::FRACTION_BITS >= 1
            && F::FRACTION_BITS < F::RATIO_BITS
            // 1 / the smallest ratio is 2^(2 N), which `inverse_nearest` holds in 128 bits.
            && F::FRACTION_BITS <= 48
    );

    /// The largest register value.
    pub const MAX_BITS: u64 = u64::MAX.wrapping_shr(64_u32.wrapping_sub(F::RATIO_BITS));

    /// The ratio 1, which is what both vendors' KVM call the default.
    pub const ONE: Self = {
        let () = Self::WIDTHS;
        Self {
            bits: 1_u64.wrapping_shl(F::FRACTION_BITS),
            format: PhantomData,
        }
    };

    /// The values that a counter takes.
    pub(crate) const COUNTER_MASK: u64 =
        u64::MAX.wrapping_shr(64_u32.wrapping_sub(F::COUNTER_BITS));

    const fn checked(wide: u128) -> Option<Self> {
        let () = Self::WIDTHS;
        match wide::narrow(wide) {
            Some(bits) if bits != 0 && bits <= Self::MAX_BITS => Some(Self {
                bits,
                format: PhantomData,
            }),
            _ => None,
        }
    }

    /// The ratio with the register value `bits`.
    ///
    /// # Errors
    /// Zero, and any reserved bit set.
    pub fn from_bits(bits: u64) -> Result<Self, RatioError> {
        Self::checked(u128::from(bits)).ok_or(RatioError::Bits {
            format: F::NAME,
            bits,
        })
    }

    /// The register value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.bits
    }

    /// The ratio as a divisor, which cannot be zero.
    const fn divisor(self) -> NonZeroU128 {
        match NonZeroU128::new(self.bits as u128) {
            Some(bits) => bits,
            // No constructor admits 0.
            None => NonZeroU128::MIN,
        }
    }

    /// `floor(2^N x guest / host)`: bit for bit what KVM sets for `KVM_SET_TSC_KHZ` (`set_tsc_khz`
    /// in arch/x86/kvm/x86.c, `mul_u64_u32_div`). The guest is slow by less than
    /// `host / (2^N x guest)`; [`Self::quantisation_error_outward`] tells by how much.
    ///
    /// ```
    /// # use tsc::{Khz, Svm, TscRatio};
    /// let (guest, host) = (Khz::new(1_000_000).unwrap(), Khz::new(3_000_000).unwrap());
    /// // 2^32 / 3 = 1431655765.33…
    /// assert_eq!(TscRatio::<Svm>::from_rates_floor(guest, host)?.bits(), 1_431_655_765);
    /// # Ok::<(), tsc::RatioError>(())
    /// ```
    ///
    /// # Errors
    /// A quotient of 0, or of the format's maximum and more: KVM refuses the maximum itself too.
    pub fn from_rates_floor(guest: Khz, host: Khz) -> Result<Self, RatioError> {
        let refused = RatioError::Rates {
            format: F::NAME,
            guest,
            host,
        };
        let quotient = wide::div_floor(Self::shifted(guest), host.non_zero().get());
        match quotient.and_then(Self::checked) {
            Some(ratio) if ratio.bits < Self::MAX_BITS => Ok(ratio),
            _ => Err(refused),
        }
    }

    /// The ratio nearest to `guest / host`, ties upwards: at most half a unit of the last bit off.
    ///
    /// # Errors
    /// A quotient that rounds to 0 or to more than the format's maximum.
    pub fn from_rates_nearest(guest: Khz, host: Khz) -> Result<Self, RatioError> {
        let refused = RatioError::Rates {
            format: F::NAME,
            guest,
            host,
        };
        // floor(n/d + 1/2) = floor((2n + d) / 2d). OK because n < 2^80 and d < 2^32.
        let doubled = Self::shifted(guest)
            .wrapping_shl(1)
            .wrapping_add(u128::from(host.non_zero().get()));
        wide::div_floor(doubled, host.non_zero().get().wrapping_shl(1))
            .and_then(Self::checked)
            .ok_or(refused)
    }

    /// `rate x 2^N`. OK because rate < 2^32 and N <= 48: below 2^80.
    const fn shifted(rate: Khz) -> u128 {
        (rate.get() as u128).wrapping_shl(F::FRACTION_BITS)
    }

    /// The rate at which the guest's TSC ticks on a host of rate `host`, rounded down by less than
    /// 1 Hz; `None` when that is no rate within [`bounds::HZ`].
    #[must_use]
    pub const fn effective_rate_floor(self, host: Khz) -> Option<Hz> {
        // Bit budget: 42 + 64 = 106.
        let hz = wide::mul(host.hz().get(), self.bits).wrapping_shr(F::FRACTION_BITS);
        match wide::narrow(hz) {
            Some(hz) => Hz::new(hz),
            None => None,
        }
    }

    /// How far the guest's true rate on a host of rate `host` is from the `guest` rate asked for,
    /// rounded away from zero, so that the error is never understated; negative when it ticks too
    /// slowly. `None` when it does not fit 64 bits, which ratios from these rates never reach.
    #[must_use]
    pub fn quantisation_error_outward(self, guest: Khz, host: Khz) -> Option<Ppb> {
        // error = (host x ratio - guest x 2^N) / (guest x 2^N). Bit budget: 32 + 64 = 96 for the
        // difference, 30 more for 10^9: 126.
        let got = wide::mul(host.non_zero().get(), self.bits);
        let asked = Self::shifted(guest);
        let parts = got.abs_diff(asked).wrapping_mul(1_000_000_000);
        let magnitude = parts.div_ceil(NonZeroU128::new(asked)?.get());
        let magnitude = i64::try_from(magnitude).ok()?;
        Some(Ppb::new(if got < asked {
            magnitude.wrapping_neg()
        } else {
            magnitude
        }))
    }

    /// `(host x ratio) >> N` modulo the counter's width, as the processor computes it: the exact
    /// product less a fraction of a tick.
    ///
    /// ```
    /// # use tsc::{HostTsc, TscRatio, Vmx};
    /// let half = TscRatio::<Vmx>::from_bits(1 << 47)?;
    /// assert_eq!(half.scale_floor(HostTsc::new(7)).get(), 3);
    /// # Ok::<(), tsc::RatioError>(())
    /// ```
    #[must_use]
    #[inline]
    pub const fn scale_floor(self, host: HostTsc) -> ScaledTsc {
        let product = wide::mul(host.get(), self.bits);
        ScaledTsc::new(wide::low(product.wrapping_shr(F::FRACTION_BITS)) & Self::COUNTER_MASK)
    }

    /// `(ticks x ratio) >> N` for a duration, or `None` when it does not fit the counter.
    #[must_use]
    #[inline]
    pub const fn scale_ticks_floor(self, ticks: Ticks) -> Option<Ticks> {
        match wide::narrow(wide::mul(ticks.get(), self.bits).wrapping_shr(F::FRACTION_BITS)) {
            Some(ticks) if ticks <= Self::COUNTER_MASK => Some(Ticks::new(ticks)),
            _ => None,
        }
    }

    /// The smallest host duration that scales to at least `guest`; `None` when none does.
    #[must_use]
    pub const fn unscale_ceil(self, guest: Ticks) -> Option<Ticks> {
        // floor(h r / 2^N) >= g exactly when h >= g 2^N / r. Bit budget: 64 + 48 = 112.
        let shifted = (guest.get() as u128).wrapping_shl(F::FRACTION_BITS);
        match wide::narrow(wide::div_ceil(shifted, self.divisor())) {
            Some(ticks) if ticks <= Self::COUNTER_MASK => Some(Ticks::new(ticks)),
            _ => None,
        }
    }

    /// The ratio nearest to `1 / self`, ties upwards: at most half a unit of the last bit off.
    ///
    /// # Errors
    /// When the format cannot hold the reciprocal.
    pub fn inverse_nearest(self) -> Result<Self, RatioError> {
        // round(2^2N / r) = floor((2^(2N + 1) + r) / 2r). Bit budget: 2 x 48 + 2.
        let doubled = 2_u128
            .wrapping_shl(F::FRACTION_BITS.wrapping_mul(2))
            .wrapping_add(u128::from(self.bits));
        doubled
            .checked_div(u128::from(self.bits).wrapping_shl(1))
            .and_then(Self::checked)
            .ok_or(RatioError::Inverse {
                format: F::NAME,
                bits: self.bits,
            })
    }

    /// `(self x inner) >> N`: the one ratio that replaces scaling by `self` and then by `inner`,
    /// as L0 programs it for the guest of its guest (`kvm_calc_nested_tsc_multiplier`). It is less
    /// than `self x inner` by less than one unit of the last bit. A reading of `h` host ticks
    /// through it is less than the two steps' by less than `h / 2^N + 1` ticks, and more by less
    /// than `inner / 2^N + 1`, which is what the floor of the first step loses
    /// (proofs/compose_error.smt2).
    ///
    /// # Errors
    /// A product of 0, or of more than the format can hold: KVM would truncate it silently.
    pub fn compose_floor(self, inner: Self) -> Result<Self, RatioError> {
        Self::checked(wide::mul(self.bits, inner.bits).wrapping_shr(F::FRACTION_BITS)).ok_or(
            RatioError::Composition {
                format: F::NAME,
                outer: self.bits,
                inner: inner.bits,
            },
        )
    }
}

impl<F: RatioFormat> fmt::Debug for TscRatio<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TscRatio<{}>({:#x} / 2^{})",
            F::NAME,
            self.bits,
            F::FRACTION_BITS
        )
    }
}

impl<F: RatioFormat> fmt::Display for TscRatio<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} / 2^{}", self.bits, F::FRACTION_BITS)
    }
}

/// Why there is no such ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RatioError {
    /// A register value that the format does not admit.
    Bits {
        /// The format's name.
        format: &'static str,
        /// The register value.
        bits: u64,
    },
    /// Two rates whose quotient the format cannot hold.
    Rates {
        /// The format's name.
        format: &'static str,
        /// The rate wanted in the guest.
        guest: Khz,
        /// The host's rate.
        host: Khz,
    },
    /// A reciprocal that the format cannot hold.
    Inverse {
        /// The format's name.
        format: &'static str,
        /// The ratio to be inverted.
        bits: u64,
    },
    /// A product that the format cannot hold.
    Composition {
        /// The format's name.
        format: &'static str,
        /// L1's ratio.
        outer: u64,
        /// L2's ratio.
        inner: u64,
    },
}

impl fmt::Display for RatioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits { format, bits } => {
                write!(
                    f,
                    "{bits:#x} is no {format} TSC ratio: zero, or a reserved bit is set"
                )
            }
            Self::Rates {
                format,
                guest,
                host,
            } => {
                write!(
                    f,
                    "a guest at {guest} on a host at {host} is beyond a {format} TSC ratio"
                )
            }
            Self::Inverse { format, bits } => {
                write!(
                    f,
                    "the reciprocal of {bits:#x} is beyond a {format} TSC ratio"
                )
            }
            Self::Composition {
                format,
                outer,
                inner,
            } => {
                write!(
                    f,
                    "{outer:#x} times {inner:#x} is beyond a {format} TSC ratio"
                )
            }
        }
    }
}

impl core::error::Error for RatioError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn khz(khz: u32) -> Khz {
        Khz::new(khz).unwrap()
    }

    #[test]
    fn formats_have_the_limits_of_their_manuals() {
        assert_eq!(TscRatio::<Vmx>::MAX_BITS, u64::MAX);
        assert_eq!(TscRatio::<Vmx>::ONE.bits(), 0x1_0000_0000_0000);
        assert_eq!(TscRatio::<Svm>::MAX_BITS, 0xFF_FFFF_FFFF);
        assert_eq!(TscRatio::<Svm>::ONE.bits(), 0x1_0000_0000);
    }

    #[test]
    fn bits_at_the_bounds_checked() {
        for bits in [0, bounds::SVM_RATIO.max + 1, 1 << 63, u64::MAX] {
            let refused = RatioError::Bits {
                format: "SVM",
                bits,
            };
            assert_eq!(TscRatio::<Svm>::from_bits(bits), Err(refused));
        }
        for bits in [bounds::SVM_RATIO.min, bounds::SVM_RATIO.max] {
            assert_eq!(
                TscRatio::<Svm>::from_bits(bits).map(TscRatio::bits),
                Ok(bits)
            );
        }
        assert!(TscRatio::<Vmx>::from_bits(bounds::VMX_RATIO.min - 1).is_err());
        for bits in [bounds::VMX_RATIO.min, bounds::VMX_RATIO.max] {
            assert_eq!(
                TscRatio::<Vmx>::from_bits(bits).map(TscRatio::bits),
                Ok(bits)
            );
        }
    }

    #[test]
    fn rates_at_the_format_limit_refused_as_kvm_does() {
        // 255.99… x 1 kHz fits 8.32; 256 does not.
        assert!(TscRatio::<Svm>::from_rates_floor(khz(255), khz(1)).is_ok());
        assert!(TscRatio::<Svm>::from_rates_floor(khz(256), khz(1)).is_err());
        // floor(2^32 x 1 / (2^32 - 1)) = 1; the smallest quotient of VMX is 65536.
        let max = khz(u32::MAX);
        assert_eq!(
            TscRatio::<Svm>::from_rates_floor(khz(1), max).map(TscRatio::bits),
            Ok(1)
        );
        assert_eq!(
            TscRatio::<Vmx>::from_rates_floor(khz(1), max).map(TscRatio::bits),
            Ok(65_536)
        );
        // 65535 x 2^48 fits 64 bits; 65536 x 2^48 = 2^64 does not.
        assert!(TscRatio::<Vmx>::from_rates_floor(khz(65_535), khz(1)).is_ok());
        assert!(TscRatio::<Vmx>::from_rates_floor(khz(65_536), khz(1)).is_err());
    }

    #[test]
    fn from_rates_floor_and_nearest_differ_where_they_should() {
        // 2^32 x 2 / 3 = 2863311530.67: floor 2863311530, nearest 2863311531.
        let floor = TscRatio::<Svm>::from_rates_floor(khz(2), khz(3)).unwrap();
        let nearest = TscRatio::<Svm>::from_rates_nearest(khz(2), khz(3)).unwrap();
        assert_eq!(
            (floor.bits(), nearest.bits()),
            (2_863_311_530, 2_863_311_531)
        );
        // 0.67 / 2863311530.67 = 0.233 ppb slow; 0.33 / … = 0.116 ppb fast; outward both are 1.
        assert_eq!(
            floor.quantisation_error_outward(khz(2), khz(3)),
            Some(Ppb::new(-1))
        );
        assert_eq!(
            nearest.quantisation_error_outward(khz(2), khz(3)),
            Some(Ppb::new(1))
        );
        // An exact ratio has no error.
        let half = TscRatio::<Svm>::from_rates_floor(khz(1), khz(2)).unwrap();
        assert_eq!(
            half.quantisation_error_outward(khz(1), khz(2)),
            Some(Ppb::new(0))
        );
    }

    #[test]
    fn scale_of_the_largest_inputs_keeps_the_low_bits() {
        let max = TscRatio::<Vmx>::from_bits(u64::MAX).unwrap();
        // (2^64 - 1)^2 = 2^128 - 2^65 + 1; >> 48 = 2^80 - 2^17 exactly, and a fraction; mod 2^64.
        assert_eq!(
            max.scale_floor(HostTsc::new(u64::MAX)).get(),
            0_u64.wrapping_sub(1 << 17)
        );
        assert_eq!(max.scale_ticks_floor(Ticks::new(u64::MAX)), None);
        assert_eq!(
            TscRatio::<Vmx>::ONE
                .scale_floor(HostTsc::new(u64::MAX))
                .get(),
            u64::MAX
        );
    }

    #[test]
    fn effective_rate_of_seven_tenths_more_is_read_back() {
        // lab.md's vmx host: 1.7 x 3.5 GHz = 5.95 GHz, less under 1 Hz of rounding each.
        let ratio = TscRatio::<Vmx>::from_rates_floor(khz(5_950_000), khz(3_500_000)).unwrap();
        let hz = ratio.effective_rate_floor(khz(3_500_000)).unwrap().get();
        assert!((5_949_999_999..=5_950_000_000).contains(&hz), "{hz}");
    }
}
