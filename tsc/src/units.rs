//! Units of time and rate as types, so that no bare integer crosses an interface.
//!
//! None of them has operators: what may wrap, saturate or fail is said by the method's name. The
//! counters have no order, because a counter modulo 2^64 has none: [`HostTsc::is_before`] and its
//! siblings compare by the shorter way around the circle.

use core::num::NonZeroU64;

use crate::bounds;

/// A rate in kilohertz, the unit in which KVM takes and reports TSC rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Khz(u32);

impl Khz {
    /// A rate of `khz` thousand ticks per second; `None` for 0, which is no rate.
    #[must_use]
    pub const fn new(khz: u32) -> Option<Self> {
        if khz < bounds::KHZ.min {
            None
        } else {
            Some(Self(khz))
        }
    }

    /// The rate in kilohertz.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The same rate in hertz, exactly.
    ///
    /// ```
    /// # use tsc::Khz;
    /// assert_eq!(Khz::new(3_500_000).unwrap().hz().get(), 3_500_000_000);
    /// ```
    #[must_use]
    pub const fn hz(self) -> Hz {
        // OK because (2^32 - 1) x 1000 < 2^42.
        Hz((self.0 as u64).wrapping_mul(1_000))
    }

    /// The rate as a divisor, which cannot be zero.
    pub(crate) const fn non_zero(self) -> NonZeroU64 {
        match NonZeroU64::new(self.0 as u64) {
            Some(rate) => rate,
            // `new` admits no 0.
            None => NonZeroU64::MIN,
        }
    }
}

/// A rate in hertz.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hz(u64);

impl Hz {
    /// A rate of `hz` ticks per second; `None` outside of [`bounds::HZ`].
    #[must_use]
    pub const fn new(hz: u64) -> Option<Self> {
        if hz < bounds::HZ.min || hz > bounds::HZ.max {
            None
        } else {
            Some(Self(hz))
        }
    }

    /// The rate in hertz.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The rate in kilohertz, rounded down: less than 1 kHz is lost.
    #[must_use]
    pub fn khz_floor(self) -> Khz {
        // OK because HZ.min / 1000 = KHZ.min and HZ.max / 1000 = KHZ.max: neither end is passed.
        Khz(u32::try_from(self.0 / 1_000).unwrap_or(bounds::KHZ.max))
    }
}

/// A duration or a point on a named clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(u64);

impl Nanos {
    /// No time, or the clock's epoch.
    pub const ZERO: Self = Self(0);

    /// `nanos` nanoseconds.
    #[must_use]
    pub const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    /// `micros` microseconds; `None` when that is more than 2^64 - 1 ns.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Option<Self> {
        match micros.checked_mul(1_000) {
            Some(nanos) => Some(Self(nanos)),
            None => None,
        }
    }

    /// `millis` milliseconds; `None` when that is more than 2^64 - 1 ns.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Option<Self> {
        match millis.checked_mul(1_000_000) {
            Some(nanos) => Some(Self(nanos)),
            None => None,
        }
    }

    /// The count of nanoseconds.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, or `None` past 2^64 - 1 ns.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(nanos) => Some(Self(nanos)),
            None => None,
        }
    }

    /// The difference, or `None` when `other` is the larger.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(nanos) => Some(Self(nanos)),
            None => None,
        }
    }

    /// The sum, at most 2^64 - 1 ns.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least 0.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self` - `other` with its sign, at the ends of the signed range when it lies beyond.
    #[must_use]
    pub const fn saturating_difference(self, other: Self) -> NanosDelta {
        if self.0 >= other.0 {
            // OK because self.0 >= other.0; the conversion saturates at 2^63 - 1.
            let more = self.0.wrapping_sub(other.0);
            NanosDelta(if more > i64::MAX.unsigned_abs() {
                i64::MAX
            } else {
                more.cast_signed()
            })
        } else {
            // OK because other.0 > self.0; the negation saturates at -2^63.
            let less = other.0.wrapping_sub(self.0);
            NanosDelta(if less > i64::MAX.unsigned_abs() {
                i64::MIN
            } else {
                less.cast_signed().wrapping_neg()
            })
        }
    }
}

/// A difference of two times, in nanoseconds, with its sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanosDelta(i64);

impl NanosDelta {
    /// A difference of `nanos` nanoseconds.
    #[must_use]
    pub const fn new(nanos: i64) -> Self {
        Self(nanos)
    }

    /// The count of nanoseconds.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Its length, without the sign.
    #[must_use]
    pub const fn magnitude(self) -> Nanos {
        Nanos(self.0.unsigned_abs())
    }
}

/// An amount of TSC ticks without a sign: a duration in ticks of a named rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticks(u64);

impl Ticks {
    /// No ticks.
    pub const ZERO: Self = Self(0);

    /// `ticks` ticks.
    #[must_use]
    pub const fn new(ticks: u64) -> Self {
        Self(ticks)
    }

    /// The count of ticks.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, or `None` past 2^64 - 1.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(ticks) => Some(Self(ticks)),
            None => None,
        }
    }

    /// The difference, at least 0.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The same amount with a sign, or `None` past 2^63 - 1.
    #[must_use]
    pub const fn as_delta(self) -> Option<TscDelta> {
        if self.0 > i64::MAX.unsigned_abs() {
            None
        } else {
            Some(TscDelta(self.0.cast_signed()))
        }
    }
}

/// A difference of two readings, in ticks, with its sign: the shorter way around the circle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TscDelta(i64);

impl TscDelta {
    /// No difference.
    pub const ZERO: Self = Self(0);

    /// A difference of `ticks` ticks.
    #[must_use]
    pub const fn new(ticks: i64) -> Self {
        Self(ticks)
    }

    /// The count of ticks.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Its length, without the sign.
    #[must_use]
    pub const fn magnitude(self) -> Ticks {
        Ticks(self.0.unsigned_abs())
    }

    /// Whether it points backwards.
    #[must_use]
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// The sum, or `None` outside of the signed 64-bit range.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(ticks) => Some(Self(ticks)),
            None => None,
        }
    }

    /// The sum, or the nearest there is.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or `None` outside of the signed 64-bit range.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(ticks) => Some(Self(ticks)),
            None => None,
        }
    }

    /// The opposite difference, or `None` for -2^63, which has none.
    #[must_use]
    pub const fn checked_neg(self) -> Option<Self> {
        match self.0.checked_neg() {
            Some(ticks) => Some(Self(ticks)),
            None => None,
        }
    }

    /// The opposite difference modulo 2^64: -2^63 is its own.
    #[must_use]
    pub const fn wrapping_neg(self) -> Self {
        Self(self.0.wrapping_neg())
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The counter's value `ticks`.
            #[must_use]
            pub const fn new(ticks: u64) -> Self {
                Self(ticks)
            }

            /// The counter's value.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The reading `delta` away from this one; wrapping is what a counter does.
            #[must_use]
            pub const fn wrapping_add(self, delta: TscDelta) -> Self {
                Self(self.0.wrapping_add_signed(delta.0))
            }

            /// The reading `ticks` later than this one; wrapping is what a counter does.
            #[must_use]
            pub const fn wrapping_advance(self, ticks: Ticks) -> Self {
                Self(self.0.wrapping_add(ticks.0))
            }

            /// How far this reading is from `earlier`, by the shorter way around: negative when
            /// this one is behind. Exactly half the circle counts as behind.
            #[must_use]
            pub const fn wrapping_since(self, earlier: Self) -> TscDelta {
                TscDelta(self.0.wrapping_sub(earlier.0).cast_signed())
            }

            /// How many ticks forward from `earlier` to this reading, the long way if need be.
            #[must_use]
            pub const fn wrapping_elapsed(self, earlier: Self) -> Ticks {
                Ticks(self.0.wrapping_sub(earlier.0))
            }

            /// Whether this reading is behind `other`: less than half the circle away, or exactly
            /// half. Of two readings that far apart each is before the other, which is why there
            /// is no `Ord`.
            #[must_use]
            pub const fn is_before(self, other: Self) -> bool {
                self.wrapping_since(other).is_negative()
            }
        }
    };
}

counter! {
    /// A reading of a physical CPU's time stamp counter, as RDTSC on the host gives it. Readings of
    /// two CPUs compare only within what their skew allows: see [`crate::skew`].
    HostTsc
}

counter! {
    /// A host reading after scaling and before the offset: `(host x ratio) >> N`.
    ScaledTsc
}

counter! {
    /// What RDTSC in the guest gives.
    GuestTsc
}

/// What is added to the scaled host TSC: `guest = scaled + offset` modulo 2^64 (VMCS field 2010H,
/// SDM vol. 3, 25.3 and B.2.1; VMCB offset 050h, APM vol. 2, appendix B).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TscOffset(u64);

impl TscOffset {
    /// The guest reads the scaled host TSC.
    pub const ZERO: Self = Self(0);

    /// The offset with the register value `bits`.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The register value.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The same value read as a signed number, which is how nested composition scales it.
    #[must_use]
    pub const fn as_signed(self) -> TscDelta {
        TscDelta(self.0.cast_signed())
    }

    /// The offset that makes the guest read `delta` more than now.
    #[must_use]
    pub const fn wrapping_add(self, delta: TscDelta) -> Self {
        Self(self.0.wrapping_add_signed(delta.0))
    }

    /// The sum of two offsets modulo 2^64.
    #[must_use]
    pub const fn wrapping_plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// How much further than `other` this offset puts the guest, by the shorter way around.
    #[must_use]
    pub const fn wrapping_since(self, other: Self) -> TscDelta {
        TscDelta(self.0.wrapping_sub(other.0).cast_signed())
    }
}

/// Parts in a billion, with a sign: the error or the drift of a rate. 1 ppb is 31.6 ms a year.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppb(i64);

impl Ppb {
    /// `ppb` parts in a billion.
    #[must_use]
    pub const fn new(ppb: i64) -> Self {
        Self(ppb)
    }

    /// The count of parts in a billion.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// A tolerance in parts in a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppm(u32);

impl Ppm {
    /// KVM's `tsc_tolerance_ppm` when nobody changed it (arch/x86/kvm/x86.c).
    pub const KVM_TOLERANCE: Self = Self(bounds::TSC_TOLERANCE_DEFAULT.max);

    /// How far a clock's discipline corrects it at most, as Linux has it (`MAXFREQ` in include/linux/timex.h).
    pub const DISCIPLINE: Self = Self(500);

    /// `ppm` parts in a million; `None` above [`bounds::PPM`].
    #[must_use]
    pub const fn new(ppm: u32) -> Option<Self> {
        if ppm > bounds::PPM.max {
            None
        } else {
            Some(Self(ppm))
        }
    }

    /// The count of parts in a million.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A physical CPU of the host, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(u32);

impl CpuId {
    /// The CPU with the kernel's number `cpu`.
    #[must_use]
    pub const fn new(cpu: u32) -> Self {
        Self(cpu)
    }

    /// The kernel's number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A vCPU of the guest, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(u32);

impl VcpuId {
    /// The vCPU with the index `vcpu`.
    #[must_use]
    pub const fn new(vcpu: u32) -> Self {
        Self(vcpu)
    }

    /// The index.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

macro_rules! display {
    ($($type:ty, $unit:literal;)*) => {
        $(
            impl core::fmt::Display for $type {
                fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                    write!(f, concat!("{}", $unit), self.0)
                }
            }
        )*
    };
}

display! {
    Khz, " kHz";
    Hz, " Hz";
    Nanos, " ns";
    NanosDelta, " ns";
    Ticks, " ticks";
    TscDelta, " ticks";
    HostTsc, " (host TSC)";
    ScaledTsc, " (scaled TSC)";
    GuestTsc, " (guest TSC)";
    Ppb, " ppb";
    Ppm, " ppm";
}

impl core::fmt::Display for CpuId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "CPU {}", self.0)
    }
}

impl core::fmt::Display for VcpuId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "vCPU {}", self.0)
    }
}

impl core::fmt::Display for TscOffset {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn khz_at_its_bounds_checked() {
        assert_eq!(Khz::new(bounds::KHZ.min - 1), None);
        assert_eq!(Khz::new(bounds::KHZ.min).map(Khz::get), Some(1));
        assert_eq!(
            Khz::new(bounds::KHZ.max).map(|khz| khz.hz().get()),
            Some(bounds::HZ.max)
        );
    }

    #[test]
    fn hz_at_its_bounds_checked() {
        assert_eq!(Hz::new(bounds::HZ.min - 1), None);
        assert_eq!(
            Hz::new(bounds::HZ.min).map(|hz| hz.khz_floor().get()),
            Some(bounds::KHZ.min)
        );
        assert_eq!(
            Hz::new(bounds::HZ.max).map(|hz| hz.khz_floor().get()),
            Some(bounds::KHZ.max)
        );
        assert_eq!(Hz::new(bounds::HZ.max + 1), None);
        // 1999 Hz is 1 kHz and 999 Hz that are lost.
        assert_eq!(Hz::new(1_999).map(|hz| hz.khz_floor().get()), Some(1));
    }

    #[test]
    fn ppm_at_its_bounds_checked() {
        assert_eq!(Ppm::new(bounds::PPM.max).map(Ppm::get), Some(1_000_000));
        assert_eq!(Ppm::new(bounds::PPM.max + 1), None);
        assert_eq!(Ppm::KVM_TOLERANCE.get(), 250);
        assert_eq!(Ppm::new(Ppm::DISCIPLINE.get()), Some(Ppm::DISCIPLINE));
    }

    #[test]
    fn counter_around_its_wrap_compares_by_the_shorter_way() {
        let table = [
            // earlier, later, distance
            (0, 1, 1),
            (u64::MAX, 0, 1),
            (u64::MAX - 9, 10, 20),
            (5, 5, 0),
            (0, i64::MAX as u64, i64::MAX),
        ];
        for (earlier, later, distance) in table {
            let (earlier, later) = (GuestTsc::new(earlier), GuestTsc::new(later));
            assert_eq!(later.wrapping_since(earlier), TscDelta::new(distance));
            assert_eq!(earlier.wrapping_since(later), TscDelta::new(-distance));
            assert_eq!(earlier.is_before(later), distance > 0);
            assert!(!later.is_before(earlier));
            assert_eq!(earlier.wrapping_add(TscDelta::new(distance)), later);
        }
        // Half the circle: each is before the other.
        let (zero, half) = (HostTsc::new(0), HostTsc::new(1 << 63));
        assert!(zero.is_before(half) && half.is_before(zero));
    }

    #[test]
    fn nanos_differences_saturate_at_the_signed_range() {
        let max = Nanos::new(u64::MAX);
        let half = 1_u64 << 63;
        let table = [
            (Nanos::new(7), Nanos::new(3), 4),
            (Nanos::new(3), Nanos::new(7), -4),
            (max, Nanos::ZERO, i64::MAX),
            (Nanos::ZERO, max, i64::MIN),
            (Nanos::new(half), Nanos::ZERO, i64::MAX),
            (Nanos::ZERO, Nanos::new(half), i64::MIN),
            (Nanos::ZERO, Nanos::new(half - 1), -i64::MAX),
        ];
        for (a, b, expected) in table {
            assert_eq!(a.saturating_difference(b).get(), expected, "{a} - {b}");
        }
        assert_eq!(max.checked_add(Nanos::new(1)), None);
        assert_eq!(Nanos::ZERO.checked_sub(Nanos::new(1)), None);
        assert_eq!(Nanos::from_millis(u64::MAX), None);
        assert_eq!(Nanos::from_micros(3).map(Nanos::get), Some(3_000));
    }

    #[test]
    fn ticks_past_the_signed_range_have_no_delta() {
        assert_eq!(
            Ticks::new(i64::MAX as u64).as_delta(),
            Some(TscDelta::new(i64::MAX))
        );
        assert_eq!(Ticks::new(1 << 63).as_delta(), None);
        assert_eq!(TscDelta::new(i64::MIN).magnitude(), Ticks::new(1 << 63));
        assert_eq!(TscDelta::new(i64::MIN).checked_neg(), None);
    }
}
