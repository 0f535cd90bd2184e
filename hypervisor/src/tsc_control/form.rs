//! The two vendors' forms of the same clock: where they differ, and nothing else.

use std::fmt;

use tsc::nested;
use tsc::{
    GuestTsc, HostTsc, Khz, Ppb, RatioError, RatioFormat, Svm, Transform, TscOffset, TscRatio, Vmx,
};

/// Whose virtualization a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// VMX: Intel, and the x86 processors of VIA and Zhaoxin.
    Intel,
    /// SVM: AMD and Hygon.
    Amd,
}

impl Vendor {
    /// The vendor by the twelve letters of CPUID leaf 0 in EBX, EDX, ECX; `None` for letters that
    /// no processor with VMX or SVM is known to give (SDM vol. 2, CPUID, table 3-8; APM vol. 3,
    /// E.3.1; the others: `cpu_dev` entries in arch/x86/kernel/cpu/).
    #[must_use]
    pub fn from_letters(letters: &[u8; 12]) -> Option<Self> {
        match letters {
            b"GenuineIntel" | b"CentaurHauls" | b"  Shanghai  " => Some(Self::Intel),
            b"AuthenticAMD" | b"HygonGenuine" => Some(Self::Amd),
            _ => None,
        }
    }

    /// What its TSC ratio register can hold at most.
    #[must_use]
    pub const fn max_ratio_bits(self) -> u64 {
        match self {
            Self::Intel => TscRatio::<Vmx>::MAX_BITS,
            Self::Amd => TscRatio::<Svm>::MAX_BITS,
        }
    }

    /// Fraction bits of its TSC ratio.
    #[must_use]
    pub const fn fraction_bits(self) -> u32 {
        match self {
            Self::Intel => Vmx::FRACTION_BITS,
            Self::Amd => Svm::FRACTION_BITS,
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intel => Vmx::NAME,
            Self::Amd => Svm::NAME,
        })
    }
}

/// A ratio format that a processor has: [`tsc::Vmx`] or [`tsc::Svm`].
pub trait TscForm: RatioFormat + Send + Sync + 'static {
    /// Whose it is.
    const VENDOR: Vendor;

    /// `ratio` with its vendor as a value instead of a type.
    fn erase(ratio: TscRatio<Self>) -> VendorRatio;
}

impl TscForm for Vmx {
    const VENDOR: Vendor = Vendor::Intel;

    fn erase(ratio: TscRatio<Self>) -> VendorRatio {
        VendorRatio::Vmx(ratio)
    }
}

impl TscForm for Svm {
    const VENDOR: Vendor = Vendor::Amd;

    fn erase(ratio: TscRatio<Self>) -> VendorRatio {
        VendorRatio::Svm(ratio)
    }
}

/// A TSC ratio of a vendor that is known only at run time. All arithmetic is that of [`tsc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VendorRatio {
    /// 16.48 fixed point.
    Vmx(TscRatio<Vmx>),
    /// 8.32 fixed point.
    Svm(TscRatio<Svm>),
}

/// Evaluates `$body` with `$ratio` bound to the typed ratio, in both vendors' formats.
macro_rules! with_ratio {
    ($self:expr, $ratio:ident => $body:expr) => {
        match $self {
            VendorRatio::Vmx($ratio) => $body,
            VendorRatio::Svm($ratio) => $body,
        }
    };
}

impl VendorRatio {
    /// The ratio 1, which a vCPU has until another rate is asked for.
    #[must_use]
    pub const fn one(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Intel => Self::Vmx(TscRatio::ONE),
            Vendor::Amd => Self::Svm(TscRatio::ONE),
        }
    }

    /// The ratio with the register value `bits`.
    ///
    /// # Errors
    /// Zero, and any reserved bit set.
    pub fn from_bits(vendor: Vendor, bits: u64) -> Result<Self, RatioError> {
        Ok(match vendor {
            Vendor::Intel => Self::Vmx(TscRatio::from_bits(bits)?),
            Vendor::Amd => Self::Svm(TscRatio::from_bits(bits)?),
        })
    }

    /// The ratio that KVM sets for a guest of rate `guest` on a host of rate `host`.
    ///
    /// # Errors
    /// Rates whose quotient the format cannot hold.
    pub fn from_rates_floor(vendor: Vendor, guest: Khz, host: Khz) -> Result<Self, RatioError> {
        Ok(match vendor {
            Vendor::Intel => Self::Vmx(TscRatio::from_rates_floor(guest, host)?),
            Vendor::Amd => Self::Svm(TscRatio::from_rates_floor(guest, host)?),
        })
    }

    /// By how much the rate that this ratio makes of the host's is off `guest`, rounded away from zero;
    /// `None` beyond 63 bits.
    #[must_use]
    pub fn quantisation_error_outward(self, guest: Khz, host: Khz) -> Option<Ppb> {
        with_ratio!(self, ratio => ratio.quantisation_error_outward(guest, host))
    }

    /// Whose format it has.
    #[must_use]
    pub const fn vendor(self) -> Vendor {
        match self {
            Self::Vmx(_) => Vendor::Intel,
            Self::Svm(_) => Vendor::Amd,
        }
    }

    /// The register value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        with_ratio!(self, ratio => ratio.bits())
    }

    /// What the guest reads when the host reads `host` and `offset` is in force.
    #[must_use]
    pub const fn guest_at(self, offset: TscOffset, host: HostTsc) -> GuestTsc {
        with_ratio!(self, ratio => Transform { ratio, offset }.guest_at(host))
    }

    /// The offset with which the guest reads `guest` when the host reads `host`.
    #[must_use]
    pub const fn offset_through(self, host: HostTsc, guest: GuestTsc) -> TscOffset {
        with_ratio!(self, ratio => Transform::through(ratio, host, guest).offset)
    }

    /// The ratio and offset that a processor needs for a guest's guest: `self` and `offset` are
    /// L1's, `inner` and `inner_offset` what L1 asks for its L2.
    ///
    /// # Errors
    /// A product beyond the format, or ratios of two vendors, which no host composes.
    pub fn compose(
        self,
        offset: TscOffset,
        inner: Self,
        inner_offset: TscOffset,
    ) -> Result<(Self, TscOffset), RatioError> {
        match (self, inner) {
            (Self::Vmx(l1), Self::Vmx(l2)) => compose(l1, offset, l2, inner_offset),
            (Self::Svm(l1), Self::Svm(l2)) => compose(l1, offset, l2, inner_offset),
            (Self::Vmx(l1), Self::Svm(l2)) => Err(mixed(Vmx::NAME, l1.bits(), l2.bits())),
            (Self::Svm(l1), Self::Vmx(l2)) => Err(mixed(Svm::NAME, l1.bits(), l2.bits())),
        }
    }
}

fn mixed(format: &'static str, outer: u64, inner: u64) -> RatioError {
    RatioError::Composition {
        format,
        outer,
        inner,
    }
}

fn compose<F: TscForm>(
    l1: TscRatio<F>,
    l1_offset: TscOffset,
    l2: TscRatio<F>,
    l2_offset: TscOffset,
) -> Result<(VendorRatio, TscOffset), RatioError> {
    let outer = Transform {
        ratio: l1,
        offset: l1_offset,
    };
    let inner = Transform {
        ratio: l2,
        offset: l2_offset,
    };
    let both = nested::compose(outer, inner)?;
    Ok((F::erase(both.ratio), both.offset))
}

impl fmt::Display for VendorRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_ratio!(self, ratio => ratio.fmt(f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_are_known_by_their_letters() {
        let table = [
            (b"GenuineIntel", Some(Vendor::Intel)),
            (b"AuthenticAMD", Some(Vendor::Amd)),
            (b"HygonGenuine", Some(Vendor::Amd)),
            (b"  Shanghai  ", Some(Vendor::Intel)),
            (b"KVMKVMKVM\0\0\0", None),
        ];
        for (letters, vendor) in table {
            assert_eq!(Vendor::from_letters(letters), vendor);
        }
    }

    #[test]
    fn forms_have_their_manuals_limits_and_defaults() {
        assert_eq!(VendorRatio::one(Vendor::Intel).bits(), 1 << 48);
        assert_eq!(VendorRatio::one(Vendor::Amd).bits(), 1 << 32);
        assert_eq!(Vendor::Intel.max_ratio_bits(), u64::MAX);
        assert_eq!(Vendor::Amd.max_ratio_bits(), 0xFF_FFFF_FFFF);
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let max = vendor.max_ratio_bits();
            assert!(VendorRatio::from_bits(vendor, max).is_ok());
            assert!(VendorRatio::from_bits(vendor, 0).is_err());
            assert_eq!(VendorRatio::one(vendor).vendor(), vendor);
            assert_eq!(VendorRatio::one(vendor).bits(), 1 << vendor.fraction_bits());
        }
        assert!(VendorRatio::from_bits(Vendor::Amd, 1 << 40).is_err());
    }

    #[test]
    fn compose_of_one_vendor_multiplies_and_of_two_refuses() {
        // 1.5 x 0.5 = 0.75; (1000 x 0.5) + 7 = 507
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let one = VendorRatio::one(vendor).bits();
            let l1 = VendorRatio::from_bits(vendor, one + one / 2).expect("1.5");
            let l2 = VendorRatio::from_bits(vendor, one / 2).expect("0.5");
            let (ratio, offset) = l1
                .compose(TscOffset::new(1000), l2, TscOffset::new(7))
                .expect("fits");
            assert_eq!(ratio.bits(), one / 4 * 3);
            assert_eq!(offset, TscOffset::new(507));
        }
        let (intel, amd) = (
            VendorRatio::one(Vendor::Intel),
            VendorRatio::one(Vendor::Amd),
        );
        assert!(
            intel
                .compose(TscOffset::ZERO, amd, TscOffset::ZERO)
                .is_err()
        );
        assert!(
            amd.compose(TscOffset::ZERO, intel, TscOffset::ZERO)
                .is_err()
        );
    }
}
