//! Guests of guests: what L0 programs when L1 runs an L2, for both vendors.
//!
//! L1 sees `t1 = ((h x r1) >> N) + o1` and asks that L2 see `((t1 x r2) >> N) + o2`. The processor
//! applies one ratio and one offset to `h`, so L0 multiplies out:
//!
//! ```text
//! ratio  = (r1 x r2) >> N
//! offset = ((signed o1 x r2) >> N) + o2
//! ```
//!
//! While L2 runs, the active fields hold that product and L1's own values are kept aside: in the
//! VMCS of L1 on Intel, in the host-save area on AMD (`nested.hsave` of the 2011 code). A correction
//! of L1's clock must reach **both**, or L1 loses it at the next exit from L2. The code of the seed
//! added the same delta to both, which is right only while `r2` is 1: here the active offset is
//! computed anew.

use crate::offset::Transform;
use crate::ratio::{RatioError, RatioFormat, Svm, TscRatio, Vmx};
use crate::units::{TscDelta, TscOffset};
use crate::wide;

/// `((signed outer x ratio) >> N) + inner`, the magnitude rounded down, which is towards zero: bit
/// for bit `kvm_calc_nested_tsc_offset` with `mul_s64_u64_shr` (include/linux/math64.h). Less than
/// one tick from the exact sum.
#[must_use]
pub const fn compose_offset_toward_zero<F: RatioFormat>(
    outer: TscOffset,
    ratio: TscRatio<F>,
    inner: TscOffset,
) -> TscOffset {
    let mask = TscRatio::<F>::COUNTER_MASK;
    // The sign is the counter's top bit: bring it to bit 63 and back with copies of itself.
    let spare = 64_u32.wrapping_sub(F::COUNTER_BITS);
    let signed = outer
        .get()
        .wrapping_shl(spare)
        .cast_signed()
        .wrapping_shr(spare);
    // Bit budget: 63 + 64 = 127 (|-2^63| x (2^64 - 1) < 2^127).
    let magnitude = wide::mul(signed.unsigned_abs(), ratio.bits()).wrapping_shr(F::FRACTION_BITS);
    let scaled = if signed < 0 {
        wide::low(magnitude).wrapping_neg()
    } else {
        wide::low(magnitude)
    };
    TscOffset::new(scaled.wrapping_add(inner.get()) & mask)
}

/// The one transform that replaces L1's and then L2's.
///
/// # Errors
/// When the product of the ratios is beyond the format.
pub fn compose<F: RatioFormat>(
    l1: Transform<F>,
    l2: Transform<F>,
) -> Result<Transform<F>, RatioError> {
    Ok(Transform {
        ratio: l1.ratio.compose_floor(l2.ratio)?,
        offset: compose_offset_toward_zero(l1.offset, l2.ratio, l2.offset),
    })
}

/// What L1's VMCS says about the TSC of its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmcs12Tsc {
    /// "Use TSC offsetting": bit 3 of the primary processor-based controls (SDM vol. 3, 24.6.2).
    pub offsetting: bool,
    /// "Use TSC scaling": bit 25 of the secondary processor-based controls (SDM vol. 3, 24.6.2).
    pub scaling: bool,
    /// The TSC offset, field 2010H.
    pub offset: TscOffset,
    /// The TSC multiplier, field 2032H.
    pub multiplier: u64,
}

impl Vmcs12Tsc {
    /// The transform that these controls ask for. Scaling counts only together with offsetting,
    /// and neither field counts when its control is 0 (SDM vol. 3, 25.3).
    ///
    /// # Errors
    /// A multiplier of 0 with scaling in force: VM entry fails (SDM vol. 3, 26.2.1.1).
    pub fn transform(self) -> Result<Transform<Vmx>, RatioError> {
        Ok(match (self.offsetting, self.scaling) {
            (false, _) => Transform::IDENTITY,
            (true, false) => Transform {
                ratio: TscRatio::ONE,
                offset: self.offset,
            },
            (true, true) => Transform {
                ratio: TscRatio::from_bits(self.multiplier)?,
                offset: self.offset,
            },
        })
    }
}

/// What L1's VMCB, and its TSC ratio MSR, say about the TSC of its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmcb12Tsc {
    /// TSC_OFFSET, at 050h: always in force (APM vol. 2, 15.21 and appendix B).
    pub offset: TscOffset,
    /// MSR C000_0104h as L1 wrote it; `None` when L1 was not shown TSC scaling (CPUID
    /// 8000_000A EDX bit 4).
    pub ratio: Option<u64>,
}

impl Vmcb12Tsc {
    /// The transform that L1 asks for.
    ///
    /// # Errors
    /// A ratio of 0, or with reserved bits set.
    pub fn transform(self) -> Result<Transform<Svm>, RatioError> {
        let ratio = self.ratio.map_or(Ok(TscRatio::ONE), TscRatio::from_bits)?;
        Ok(Transform {
            ratio,
            offset: self.offset,
        })
    }
}

/// The fields as they must stand in the processor and in the saved copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFields<F: RatioFormat> {
    /// In force: L1's own, or the composition while L2 runs.
    pub active: Transform<F>,
    /// L1's own, kept aside while L2 runs: L1's VMCS, or the host-save area.
    pub saved_l1: Option<Transform<F>>,
}

/// The TSC of a vCPU that may be running a guest of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedTsc<F: RatioFormat> {
    l1: Transform<F>,
    l2: Option<Transform<F>>,
}

impl<F: RatioFormat> NestedTsc<F> {
    /// A vCPU that runs L1 with the transform `l1`.
    #[must_use]
    pub const fn new(l1: Transform<F>) -> Self {
        Self { l1, l2: None }
    }

    /// L1's own transform, whether or not it is in force.
    #[must_use]
    pub const fn l1(self) -> Transform<F> {
        self.l1
    }

    /// L1 enters its guest, which asks for `l2` on top of L1's clock.
    ///
    /// # Errors
    /// When the product of the ratios is beyond the format; nothing has changed then.
    pub fn enter_l2(&mut self, l2: Transform<F>) -> Result<NestedFields<F>, RatioError> {
        let entered = Self {
            l1: self.l1,
            l2: Some(l2),
        };
        let fields = entered.fields()?;
        *self = entered;
        Ok(fields)
    }

    /// L1 is back.
    pub const fn leave_l2(&mut self) -> NestedFields<F> {
        self.l2 = None;
        NestedFields {
            active: self.l1,
            saved_l1: None,
        }
    }

    /// L1's clock is moved by `delta`, whichever of the two guests runs.
    ///
    /// # Errors
    /// When the product of the ratios is beyond the format; nothing has changed then.
    pub fn adjust_l1(&mut self, delta: TscDelta) -> Result<NestedFields<F>, RatioError> {
        let adjusted = Self {
            l1: self.l1.adjusted(delta),
            l2: self.l2,
        };
        let fields = adjusted.fields()?;
        *self = adjusted;
        Ok(fields)
    }

    /// The fields for the present state.
    ///
    /// # Errors
    /// When the product of the ratios is beyond the format.
    pub fn fields(self) -> Result<NestedFields<F>, RatioError> {
        Ok(match self.l2 {
            None => NestedFields {
                active: self.l1,
                saved_l1: None,
            },
            Some(l2) => NestedFields {
                active: compose(self.l1, l2)?,
                saved_l1: Some(self.l1),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::HostTsc;

    fn svm(bits: u64, offset: i64) -> Transform<Svm> {
        Transform {
            ratio: TscRatio::from_bits(bits).unwrap(),
            offset: TscOffset::ZERO.wrapping_add(TscDelta::new(offset)),
        }
    }

    const ONE: u64 = 1 << 32;

    #[test]
    fn offset_composition_of_a_negative_offset_rounds_toward_zero() {
        let table = [
            // o1, r2, o2, ((o1 x r2) >> 32 toward zero) + o2
            (-3, ONE / 2, 0, -1),
            (3, ONE / 2, 0, 1),
            (-3, ONE, 10, 7),
            (i64::MIN, ONE, 0, i64::MIN),
            (i64::MIN, ONE / 2, 0, i64::MIN / 2),
            (-1, 0xFF_FFFF_FFFF, 0, -255),
        ];
        for (o1, r2, o2, expected) in table {
            let l1 = svm(ONE, o1);
            let l2 = svm(r2, o2);
            assert_eq!(
                compose(l1, l2).unwrap().offset.as_signed().get(),
                expected,
                "{o1} {r2:#x}"
            );
        }
    }

    #[test]
    fn adjustment_while_l2_runs_reaches_both_copies() {
        let mut vcpu = NestedTsc::new(svm(ONE, -1000));
        vcpu.enter_l2(svm(ONE / 2, 7)).unwrap();
        let fields = vcpu.adjust_l1(TscDelta::new(100)).unwrap();
        // L1: -900. L2: -450 + 7, and not -500 + 7 + 100 as the addition of 2011 would have it.
        assert_eq!(fields.saved_l1.unwrap().offset.as_signed().get(), -900);
        assert_eq!(fields.active.offset.as_signed().get(), -443);
        assert_eq!(vcpu.leave_l2().active.offset.as_signed().get(), -900);
    }

    #[test]
    fn adjustment_at_ratio_one_is_the_addition_of_2011() {
        let mut vcpu = NestedTsc::new(svm(ONE, 12_345));
        let before = vcpu.enter_l2(svm(ONE, -99)).unwrap();
        let after = vcpu.adjust_l1(TscDelta::new(-777)).unwrap();
        let delta = TscDelta::new(-777);
        assert_eq!(after.active, before.active.adjusted(delta));
        assert_eq!(after.saved_l1, before.saved_l1.map(|l1| l1.adjusted(delta)));
    }

    #[test]
    fn entry_beyond_the_format_changes_nothing() {
        let mut vcpu = NestedTsc::new(svm(0xFF_FFFF_FFFF, 0));
        assert!(vcpu.enter_l2(svm(2 * ONE, 0)).is_err());
        assert_eq!(vcpu, NestedTsc::new(svm(0xFF_FFFF_FFFF, 0)));
    }

    #[test]
    fn vmcs_fields_without_their_controls_are_ignored() {
        let vmcs = Vmcs12Tsc {
            offsetting: false,
            scaling: true,
            offset: TscOffset::new(9),
            multiplier: 0,
        };
        assert_eq!(vmcs.transform(), Ok(Transform::IDENTITY));
        let offset_only = Vmcs12Tsc {
            offsetting: true,
            scaling: false,
            ..vmcs
        };
        assert_eq!(
            offset_only
                .transform()
                .unwrap()
                .guest_at(HostTsc::new(1))
                .get(),
            10
        );
        let zero = Vmcs12Tsc {
            offsetting: true,
            scaling: true,
            ..vmcs
        };
        assert_eq!(
            zero.transform(),
            Err(RatioError::Bits {
                format: "VMX",
                bits: 0
            })
        );
        let vmcb = Vmcb12Tsc {
            offset: TscOffset::new(9),
            ratio: None,
        };
        assert_eq!(
            vmcb.transform().unwrap().guest_at(HostTsc::new(1)).get(),
            10
        );
        assert!(
            Vmcb12Tsc {
                ratio: Some(1 << 40),
                ..vmcb
            }
            .transform()
            .is_err()
        );
    }
}
