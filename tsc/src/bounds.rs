//! Every bound of the crate, once: constructors check against these, tests walk their edges.

/// An inclusive range of representable values, with the reason for its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound<T> {
    /// The smallest value allowed.
    pub min: T,
    /// The largest value allowed.
    pub max: T,
    /// Why it ends there.
    pub because: &'static str,
}

macro_rules! bounds {
    ($($name:ident: $type:ty = $min:expr, $max:expr, $because:literal;)*) => {
        $(
            #[doc = $because]
            pub const $name: Bound<$type> = Bound { min: $min, max: $max, because: $because };
        )*
    };
}

bounds! {
    KHZ: u32 = 1, u32::MAX,
        "KVM takes and reports TSC rates as 32-bit kilohertz; 0 is no rate (KVM_SET_TSC_KHZ, api.rst).";
    HZ: u64 = 1_000, 4_294_967_295_000,
        "What kilohertz within their bound reach: 1000 to 1000 x (2^32 - 1).";
    PPM: u32 = 0, 1_000_000,
        "A tolerance of more than the whole rate is none (tsc_tolerance_ppm, arch/x86/kvm/x86.c).";
    TSC_TOLERANCE_DEFAULT: u32 = 250, 250,
        "KVM's default tsc_tolerance_ppm (arch/x86/kvm/x86.c).";
    VMX_RATIO: u64 = 1, u64::MAX,
        "The TSC multiplier is a 64-bit VMCS field (encoding 2032H); 0 would stop the clock (SDM vol. 3, 25.3 and B.2.1).";
    SVM_RATIO: u64 = 1, 0xFF_FFFF_FFFF,
        "TSC ratio MSR C000_0104h: 8.32 fixed point, bits 63:40 reserved (APM vol. 2, 15.30.5).";
    PVCLOCK_SHIFT: i8 = -31, 31,
        "Shifts that kvm_get_time_scale reaches from rates of 1 kHz to 2^32 - 1 kHz against 10^9 Hz.";
    SLEW: u32 = 1, 500_000,
        "A guest clock that runs more than half again as fast is a step in disguise (ppm; a choice of ours: a thousand times MAXFREQ of include/linux/timex.h, 500 ppm).";
}
