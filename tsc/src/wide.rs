//! The few wide steps that everything else is built from: multiply to 128 bits, shift, narrow.

use core::num::NonZeroU128;

/// `a x b` in full.
#[must_use]
#[inline]
pub(crate) const fn mul(a: u64, b: u64) -> u128 {
    // OK because (2^64 - 1)^2 < 2^128; proofs/scale_no_overflow.smt2.
    (a as u128).wrapping_mul(b as u128)
}

/// The low 64 bits: reduction modulo 2^64, which is what a counter's register does.
#[must_use]
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the reduction modulo 2^64 is the purpose"
)]
pub(crate) const fn low(wide: u128) -> u64 {
    wide as u64
}

/// `wide` in 64 bits, or `None` when it needs more.
#[must_use]
#[inline]
pub(crate) const fn narrow(wide: u128) -> Option<u64> {
    if wide >> 64 == 0 {
        Some(low(wide))
    } else {
        None
    }
}

/// `floor(wide / divisor)`.
#[must_use]
#[inline]
pub(crate) const fn div_floor(wide: u128, divisor: u64) -> Option<u128> {
    wide.checked_div(divisor as u128)
}

/// `ceil(wide / divisor)`.
#[must_use]
#[inline]
pub(crate) const fn div_ceil(wide: u128, divisor: NonZeroU128) -> u128 {
    wide.div_ceil(divisor.get())
}

/// A positive factor as `multiplier / 2^shift` with 64 significant bits, rounded down: what turns
/// a division into a multiplication on a path that runs at every VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Factor {
    multiplier: u64,
    shift: u32,
}

impl Factor {
    /// `numerator / denominator`, less at most 2^-63 of itself. `None` for a zero on either side,
    /// and for factors of 2^64 and more.
    pub(crate) const fn floor(numerator: u64, denominator: u64) -> Option<Self> {
        if numerator == 0 {
            return None;
        }
        let room = (numerator as u128).leading_zeros();
        let Some(quotient) = ((numerator as u128) << room).checked_div(denominator as u128) else {
            return None;
        };
        // OK because the dividend is at least 2^127 and the divisor below 2^64, so the quotient
        // has at least 64 bits: 128 - leading_zeros is in 64..=128.
        let excess = 64_u32.saturating_sub(quotient.leading_zeros());
        // floor(floor(n 2^room / d) / 2^excess) = floor(n 2^(room - excess) / d).
        match room.checked_sub(excess) {
            Some(shift) => Some(Self {
                multiplier: low(quotient >> excess),
                shift,
            }),
            None => None,
        }
    }

    /// `x` times the factor, rounded down, or `None` past 2^64 - 1. With the exact product `p`
    /// (below 2^63) the result is `floor(p)` or `floor(p) - 1`.
    #[inline]
    pub(crate) const fn apply_floor(self, x: u64) -> Option<u64> {
        // OK because shift <= 127: room <= 127 and excess >= 0.
        narrow(mul(x, self.multiplier).wrapping_shr(self.shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_of_edge_fractions_is_within_one_of_exact() {
        let edges = [
            1,
            2,
            3,
            999,
            1_000_000,
            1_000_001,
            u32::MAX.into(),
            (1 << 42) - 1,
        ];
        let inputs = [
            0,
            1,
            2,
            999_999,
            1_000_000,
            u64::from(u32::MAX),
            1 << 40,
            u64::MAX >> 1,
        ];
        for n in edges {
            for d in edges {
                let factor = Factor::floor(n, d).unwrap();
                assert!(factor.multiplier >> 63 == 1, "64 significant bits");
                for x in inputs {
                    let exact = u128::from(x) * u128::from(n) / u128::from(d);
                    if exact >> 63 != 0 {
                        continue;
                    }
                    let got = u128::from(factor.apply_floor(x).unwrap());
                    assert!(
                        got <= exact && exact - got <= 1,
                        "{x} x {n}/{d}: {got}, not {exact}"
                    );
                }
            }
        }
        assert_eq!(Factor::floor(0, 1), None);
        assert_eq!(Factor::floor(1, 0), None);
    }
}
