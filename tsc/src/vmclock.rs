//! The VMClock page: a guest's TSC in relation to real time, with error bounds, across migrations.
//!
//! Layout and meanings are those of include/uapi/linux/vmclock-abi.h (`struct vmclock_abi`, version
//! 1), which follows the virtio-rtc proposal. All fields are little-endian. Constant fields come
//! first; the rest is protected by a sequence count whose low bit says "under change".
//!
//! [`Follower`] makes the pages of a guest that runs, from what is read of its host's clocks.

mod follower;

use core::fmt;
use core::num::NonZeroU128;

use crate::units::{GuestTsc, Hz, Nanos, Ppb};
use crate::wide;

pub use follower::{Adjtimex, Follower, HostClock, RealSample};

/// "VCLK" (`VMCLOCK_MAGIC`).
pub const MAGIC: u32 = 0x4b4c_4356;
/// The layout's version (`struct vmclock_abi`, `version`).
pub const VERSION: u16 = 1;
/// The structure's size in bytes (`struct vmclock_abi`), the generation counter included.
pub const SIZE: usize = 112;
/// The size of the region that holds it (`struct vmclock_abi`, `size`): one page, the least that can be mapped to
/// user space.
pub const REGION_SIZE: u32 = 4096;
/// `VMCLOCK_FLAG_*` (vmclock-abi.h).
mod flag {
    pub(super) const TAI_OFFSET_VALID: u64 = 1 << 0;
    pub(super) const PERIOD_ESTERROR_VALID: u64 = 1 << 3;
    pub(super) const PERIOD_MAXERROR_VALID: u64 = 1 << 4;
    pub(super) const TIME_ESTERROR_VALID: u64 = 1 << 5;
    pub(super) const TIME_MAXERROR_VALID: u64 = 1 << 6;
    pub(super) const TIME_MONOTONIC: u64 = 1 << 7;
    pub(super) const VM_GEN_COUNTER_PRESENT: u64 = 1 << 8;
}

/// Which time the page tells (`VMCLOCK_TIME_*`); smeared times are not for a page like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeType {
    /// UTC, never smeared.
    Utc,
    /// International atomic time.
    Tai,
    /// Monotonic time of no particular epoch.
    Monotonic,
}

/// How good the host's clock is (`VMCLOCK_STATUS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStatus {
    /// Nothing is known.
    Unknown,
    /// Synchronisation is under way.
    Initializing,
    /// Synchronised.
    Synchronized,
    /// It was synchronised once.
    FreeRunning,
    /// Not to be relied on.
    Unreliable,
}

/// Which counter the page is about (`VMCLOCK_COUNTER_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// The time stamp counter.
    Tsc,
    /// None: the page tells of disruptions alone, and never of a time.
    Invalid,
}

/// A leap second nearby (`VMCLOCK_LEAP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leap {
    /// None that is known.
    None,
    /// One is inserted at the end of the month.
    BeforePositive,
    /// One is left out at the end of the month.
    BeforeNegative,
    /// It is 23:59:60.
    Positive,
    /// One was inserted.
    AfterPositive,
    /// One was left out.
    AfterNegative,
}

/// Gives each value its number in the page, both ways.
macro_rules! numbers {
    ($kind:ident: $($value:ident = $number:literal),+) => {
        impl From<$kind> for u8 {
            fn from(value: $kind) -> Self {
                match value {
                    $($kind::$value => $number,)+
                }
            }
        }

        /// Fails with a number that this version does not know.
        impl TryFrom<u8> for $kind {
            type Error = u8;

            fn try_from(number: u8) -> Result<Self, u8> {
                match number {
                    $($number => Ok(Self::$value),)+
                    other => Err(other),
                }
            }
        }
    };
}

numbers!(TimeType: Utc = 0, Tai = 1, Monotonic = 2);
numbers!(ClockStatus: Unknown = 0, Initializing = 1, Synchronized = 2, FreeRunning = 3, Unreliable = 4);
numbers!(Counter: Tsc = 1, Invalid = 0xff);
numbers!(Leap: None = 0, BeforePositive = 1, BeforeNegative = 2, Positive = 3, AfterPositive = 4, AfterNegative = 5);

/// The period of a counter: `fraction / 2^(64 + shift)` seconds, 64 significant bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterPeriod {
    shift: u8,
    fraction: u64,
}

impl CounterPeriod {
    /// The period of a counter that ticks at `rate`, to the nearest unit: at most half of
    /// `2^-(64 + shift)` s off, which is less than one part in 2^63 of the period.
    ///
    /// ```
    /// # use tsc::{Hz, vmclock::CounterPeriod};
    /// // 1 kHz: 2^(64 + 9) / 1000 = 9444732965739290427.4
    /// let period = CounterPeriod::nearest(Hz::new(1_000).unwrap());
    /// assert_eq!((period.shift(), period.fraction()), (9, 9_444_732_965_739_290_427));
    /// ```
    #[must_use]
    pub const fn nearest(rate: Hz) -> Self {
        let hz = rate.get() as u128;
        // The largest shift at which 2^(64 + shift) / hz is below 2^64, which is 2^shift < hz:
        // that of the bit below the highest of hz - 1, plus one.
        // OK because hz >= 1000: hz - 1 has at least 10 bits; and at most 42.
        let bits = 128_u32.wrapping_sub(hz.wrapping_sub(1).leading_zeros());
        let shift = bits.wrapping_sub(1);
        // floor(2^(64 + shift) / hz + 1/2) = floor((2^(65 + shift) + hz) / 2 hz). Bit budget:
        // 65 + 41 = 106.
        let doubled = 1_u128.wrapping_shl(shift.wrapping_add(65)).wrapping_add(hz);
        let fraction = match doubled.checked_div(hz.wrapping_mul(2)) {
            Some(fraction) => match wide::narrow(fraction) {
                Some(fraction) => fraction,
                // Rounded up to 2^64: only for hz just above 2^shift, where it is the largest.
                None => u64::MAX,
            },
            None => u64::MAX,
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 41")]
        let shift = shift as u8;
        Self { shift, fraction }
    }

    /// `counter_period_shift`.
    #[must_use]
    pub const fn shift(self) -> u8 {
        self.shift
    }

    /// `counter_period_frac_sec`.
    #[must_use]
    pub const fn fraction(self) -> u64 {
        self.fraction
    }

    /// The error, in the period's own units, of a rate known to within `error`: rounded up, with
    /// what [`Self::nearest`] may lose on top. A rate that is less by a share `e` has a period that is
    /// longer by `e / (1 - e)`, which is the larger of the two sides. Saturates.
    #[must_use]
    pub fn error_ceil(self, error: Ppb) -> PeriodError {
        const ONE: u64 = 1_000_000_000;
        let share = error.get().unsigned_abs();
        // OK because ONE - share is 1 to 10^9; a rate that may be 0 has a period without end.
        let rest = ONE.checked_sub(share).map(u128::from);
        let Some(rest) = rest.and_then(NonZeroU128::new) else {
            return PeriodError(u64::MAX);
        };
        // The period before its rounding is below fraction + 1. Bit budget: 65 + 30 = 95.
        let most = u128::from(self.fraction).wrapping_add(1);
        let parts = wide::div_ceil(most.wrapping_mul(u128::from(share)), rest);
        match wide::narrow(parts) {
            Some(parts) => PeriodError(parts.saturating_add(1)),
            None => PeriodError(u64::MAX),
        }
    }
}

/// An error of a period, in units of `2^-(64 + shift)` seconds per tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodError(u64);

impl PeriodError {
    /// The count of units.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A time in seconds and 2^-64 seconds since its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FractionalTime {
    seconds: u64,
    fraction: u64,
}

impl FractionalTime {
    /// The time `nanos` after the epoch, its fraction rounded down: less than 2^-64 s early.
    #[must_use]
    pub const fn from_nanos_floor(nanos: Nanos) -> Self {
        let seconds = nanos.get() / 1_000_000_000;
        let below = nanos.get() % 1_000_000_000;
        // OK because below < 10^9: the quotient is below 2^64.
        let fraction = wide::low(((below as u128) << 64) / 1_000_000_000);
        Self { seconds, fraction }
    }

    /// Whole seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.seconds
    }

    /// The fraction, in units of 2^-64 s.
    #[must_use]
    pub const fn fraction(self) -> u64 {
        self.fraction
    }

    /// The nanoseconds since the epoch, rounded down; `None` past 2^64 - 1.
    #[must_use]
    pub const fn nanos_floor(self) -> Option<Nanos> {
        let whole = wide::mul(self.seconds, 1_000_000_000);
        let below = wide::mul(self.fraction, 1_000_000_000) >> 64;
        // OK because both are below 2^94.
        match wide::narrow(whole.wrapping_add(below)) {
            Some(nanos) => Some(Nanos::new(nanos)),
            None => None,
        }
    }
}

/// The contents of a VMClock page for a TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClock {
    /// Even when the page is consistent.
    sequence: u32,
    /// What ticks.
    pub counter_id: Counter,
    /// Changes whenever the counter was disrupted: a guest then discards its calibration.
    pub disruption_marker: u64,
    /// What time it is that the page tells.
    pub time_type: TimeType,
    /// How good it is.
    pub status: ClockStatus,
    /// Whether times read later are never earlier, changes of the page included.
    pub monotonic: bool,
    /// TAI less UTC, in seconds.
    pub tai_offset: Option<i16>,
    /// Which leap second is near.
    pub leap: Leap,
    /// The counter at the instant that the page describes.
    pub counter: GuestTsc,
    /// The counter's period.
    pub period: CounterPeriod,
    /// The period's estimated error.
    pub period_estimated_error: Option<PeriodError>,
    /// The period's largest error.
    pub period_maximum_error: Option<PeriodError>,
    /// The time at that instant.
    pub time: FractionalTime,
    /// The time's estimated error.
    pub time_estimated_error: Option<Nanos>,
    /// The time's largest error.
    pub time_maximum_error: Option<Nanos>,
    /// Changes whenever the guest was restored from a snapshot.
    pub generation: Option<u64>,
}

impl VmClock {
    /// A consistent page of sequence 0: at `counter` it is `time`, and the counter ticks at `rate`.
    /// No error is known, and the clock's status neither.
    #[must_use]
    pub const fn new(
        time_type: TimeType,
        counter: GuestTsc,
        time: FractionalTime,
        rate: Hz,
    ) -> Self {
        Self {
            sequence: 0,
            counter_id: Counter::Tsc,
            disruption_marker: 0,
            time_type,
            status: ClockStatus::Unknown,
            monotonic: false,
            tai_offset: None,
            leap: Leap::None,
            counter,
            period: CounterPeriod::nearest(rate),
            period_estimated_error: None,
            period_maximum_error: None,
            time,
            time_estimated_error: None,
            time_maximum_error: None,
            generation: None,
        }
    }

    /// The sequence count.
    #[must_use]
    pub const fn sequence(&self) -> u32 {
        self.sequence
    }

    /// The count to write, alone and first, on the way to this page from the one before it: odd.
    #[must_use]
    pub const fn sequence_before(&self) -> u32 {
        self.sequence.wrapping_sub(1) | 1
    }

    /// The page that follows this one, with the next even count.
    #[must_use]
    pub const fn succeeded_by(&self, next: Self) -> Self {
        Self {
            sequence: (self.sequence | 1).wrapping_add(1),
            ..next
        }
    }

    /// What a guest that reads `counter` takes the time to be, rounded down; `None` while the page
    /// changes, without a counter, or past 2^64 s.
    #[must_use]
    pub const fn time_at(&self, counter: GuestTsc) -> Option<FractionalTime> {
        if self.sequence & 1 != 0 || matches!(self.counter_id, Counter::Invalid) {
            return None;
        }
        let ticks = counter.wrapping_elapsed(self.counter).get();
        // Bit budget: 64 + 64 = 128; in units of 2^-64 s after the shift.
        let passed = wide::mul(ticks, self.period.fraction).wrapping_shr(self.period.shift as u32);
        let then = ((self.time.seconds as u128) << 64) | self.time.fraction as u128;
        match then.checked_add(passed) {
            Some(now) => Some(FractionalTime {
                seconds: wide::low(now >> 64),
                fraction: wide::low(now),
            }),
            None => None,
        }
    }

    fn flags(&self) -> u64 {
        let when = |present: bool, flag: u64| if present { flag } else { 0 };
        when(self.tai_offset.is_some(), flag::TAI_OFFSET_VALID)
            | when(
                self.period_estimated_error.is_some(),
                flag::PERIOD_ESTERROR_VALID,
            )
            | when(
                self.period_maximum_error.is_some(),
                flag::PERIOD_MAXERROR_VALID,
            )
            | when(
                self.time_estimated_error.is_some(),
                flag::TIME_ESTERROR_VALID,
            )
            | when(self.time_maximum_error.is_some(), flag::TIME_MAXERROR_VALID)
            | when(self.monotonic, flag::TIME_MONOTONIC)
            | when(self.generation.is_some(), flag::VM_GEN_COUNTER_PRESENT)
    }

    /// The page's bytes; what is absent is zero, and so is the padding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, field: &[u8]| {
            bytes[at..at.saturating_add(field.len())].copy_from_slice(field);
        };
        put(0, &MAGIC.to_le_bytes());
        put(4, &REGION_SIZE.to_le_bytes());
        put(8, &VERSION.to_le_bytes());
        put(10, &[self.counter_id.into(), self.time_type.into()]);
        put(12, &self.sequence.to_le_bytes());
        put(16, &self.disruption_marker.to_le_bytes());
        put(24, &self.flags().to_le_bytes());
        // 32 and 33 are padding, 35 hints at no smearing (VMCLOCK_SMEARING_STRICT).
        put(34, &[self.status.into()]);
        put(36, &self.tai_offset.unwrap_or(0).to_le_bytes());
        put(38, &[self.leap.into(), self.period.shift]);
        put(40, &self.counter.get().to_le_bytes());
        put(48, &self.period.fraction.to_le_bytes());
        put(
            56,
            &self
                .period_estimated_error
                .map_or(0, PeriodError::get)
                .to_le_bytes(),
        );
        put(
            64,
            &self
                .period_maximum_error
                .map_or(0, PeriodError::get)
                .to_le_bytes(),
        );
        put(72, &self.time.seconds.to_le_bytes());
        put(80, &self.time.fraction.to_le_bytes());
        put(
            88,
            &self
                .time_estimated_error
                .map_or(0, Nanos::get)
                .to_le_bytes(),
        );
        put(
            96,
            &self.time_maximum_error.map_or(0, Nanos::get).to_le_bytes(),
        );
        put(104, &self.generation.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// The page with these bytes, as a guest or a debugger reads it. Flags, hints and padding that
    /// this version does not know are ignored.
    ///
    /// # Errors
    /// A page of another kind, version, counter, time, status or leap second, or a shift of 64 and more.
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Result<Self, VmClockError> {
        let long = |at: usize| {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[at..at.saturating_add(8)]);
            u64::from_le_bytes(long)
        };
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at.saturating_add(4)]);
            u32::from_le_bytes(word)
        };
        let half = |at: usize| [bytes[at], bytes[at.saturating_add(1)]];
        if word(0) != MAGIC {
            return Err(VmClockError::Magic { magic: word(0) });
        }
        let version = u16::from_le_bytes(half(8));
        if version != VERSION {
            return Err(VmClockError::Version { version });
        }
        let counter_id =
            Counter::try_from(bytes[10]).map_err(|counter| VmClockError::Counter { counter })?;
        let time_type = TimeType::try_from(bytes[11])
            .map_err(|time_type| VmClockError::TimeType { time_type })?;
        let status =
            ClockStatus::try_from(bytes[34]).map_err(|status| VmClockError::Status { status })?;
        let leap = Leap::try_from(bytes[38]).map_err(|leap| VmClockError::Leap { leap })?;
        if bytes[39] >= 64 {
            return Err(VmClockError::Shift { shift: bytes[39] });
        }
        let flags = long(24);
        let has = |flag: u64| flags & flag != 0;
        Ok(Self {
            sequence: word(12),
            counter_id,
            disruption_marker: long(16),
            time_type,
            status,
            monotonic: has(flag::TIME_MONOTONIC),
            tai_offset: has(flag::TAI_OFFSET_VALID).then(|| i16::from_le_bytes(half(36))),
            leap,
            counter: GuestTsc::new(long(40)),
            period: CounterPeriod {
                shift: bytes[39],
                fraction: long(48),
            },
            period_estimated_error: has(flag::PERIOD_ESTERROR_VALID).then(|| PeriodError(long(56))),
            period_maximum_error: has(flag::PERIOD_MAXERROR_VALID).then(|| PeriodError(long(64))),
            time: FractionalTime {
                seconds: long(72),
                fraction: long(80),
            },
            time_estimated_error: has(flag::TIME_ESTERROR_VALID).then(|| Nanos::new(long(88))),
            time_maximum_error: has(flag::TIME_MAXERROR_VALID).then(|| Nanos::new(long(96))),
            generation: has(flag::VM_GEN_COUNTER_PRESENT).then(|| long(104)),
        })
    }
}

/// Why bytes are no VMClock page that we understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each variant holds the byte or word that it names"
)]
pub enum VmClockError {
    /// Not "VCLK".
    Magic { magic: u32 },
    /// Another layout.
    Version { version: u16 },
    /// Not a TSC.
    Counter { counter: u8 },
    /// A time that is smeared or unknown.
    TimeType { time_type: u8 },
    /// An unknown status.
    Status { status: u8 },
    /// An unknown kind of leap second.
    Leap { leap: u8 },
    /// A shift by more than a product has.
    Shift { shift: u8 },
}

impl fmt::Display for VmClockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { magic } => write!(f, "{magic:#010x} is not the magic of a VMClock page"),
            Self::Version { version } => write!(f, "VMClock version {version} is not {VERSION}"),
            Self::Counter { counter } => write!(f, "VMClock counter {counter} is not a TSC"),
            Self::TimeType { time_type } => write!(f, "VMClock time type {time_type} is unusable"),
            Self::Status { status } => write!(f, "VMClock status {status} is unknown"),
            Self::Leap { leap } => write!(f, "VMClock leap second {leap} is unknown"),
            Self::Shift { shift } => write!(f, "VMClock period shift {shift} is 64 or more"),
        }
    }
}

impl core::error::Error for VmClockError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn hz(hz: u64) -> Hz {
        Hz::new(hz).unwrap()
    }

    fn page() -> VmClock {
        let time = FractionalTime {
            seconds: 0x7172_7374,
            fraction: 0x8182_8384_8586_8788,
        };
        VmClock {
            sequence: 0x0d0e_0f10,
            disruption_marker: 0x1112_1314_1516_1718,
            status: ClockStatus::Synchronized,
            monotonic: true,
            tai_offset: Some(-37),
            leap: Leap::AfterNegative,
            period: CounterPeriod {
                shift: 31,
                fraction: 0x4142_4344_4546_4748,
            },
            period_maximum_error: Some(PeriodError(0x5152_5354_5556_5758)),
            time_maximum_error: Some(Nanos::new(0x6162_6364_6566_6768)),
            generation: Some(0x9192_9394_9596_9798),
            ..VmClock::new(
                TimeType::Tai,
                GuestTsc::new(0x3132_3334_3536_3738),
                time,
                hz(1_000),
            )
        }
    }

    #[test]
    fn bytes_of_a_page_are_those_of_the_abi() {
        let bytes = page().to_bytes();
        let mut expected = [0_u8; 112];
        expected[..4].copy_from_slice(b"VCLK");
        expected[5] = 0x10; // 4096
        expected[8] = 1; // version
        expected[10..12].copy_from_slice(&[1, 1]); // TSC, TAI
        expected[12..16].copy_from_slice(&[0x10, 0x0f, 0x0e, 0x0d]);
        expected[16..24].copy_from_slice(&[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
        // TAI offset, largest errors of period and time, monotonic; generation counter.
        expected[24..26].copy_from_slice(&[0b1101_0001, 1]);
        expected[34] = 2;
        expected[36..38].copy_from_slice(&[0xDB, 0xFF]);
        expected[38..40].copy_from_slice(&[5, 31]);
        expected[40..48].copy_from_slice(&[0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31]);
        expected[48..56].copy_from_slice(&[0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41]);
        expected[64..72].copy_from_slice(&[0x58, 0x57, 0x56, 0x55, 0x54, 0x53, 0x52, 0x51]);
        expected[72..76].copy_from_slice(&[0x74, 0x73, 0x72, 0x71]);
        expected[80..88].copy_from_slice(&[0x88, 0x87, 0x86, 0x85, 0x84, 0x83, 0x82, 0x81]);
        expected[96..104].copy_from_slice(&[0x68, 0x67, 0x66, 0x65, 0x64, 0x63, 0x62, 0x61]);
        expected[104..].copy_from_slice(&[0x98, 0x97, 0x96, 0x95, 0x94, 0x93, 0x92, 0x91]);
        assert_eq!(bytes, expected);
        assert_eq!(VmClock::from_bytes(&bytes), Ok(page()));
    }

    #[test]
    fn bytes_of_another_kind_are_refused_by_name() {
        let bytes = page().to_bytes();
        let with = |at: usize, byte: u8| {
            let mut bytes = bytes;
            bytes[at] = byte;
            VmClock::from_bytes(&bytes)
        };
        assert_eq!(with(0, 0), Err(VmClockError::Magic { magic: 0x4b4c_4300 }));
        assert_eq!(with(8, 2), Err(VmClockError::Version { version: 2 }));
        assert_eq!(with(10, 0), Err(VmClockError::Counter { counter: 0 }));
        assert_eq!(with(11, 3), Err(VmClockError::TimeType { time_type: 3 }));
        assert_eq!(with(34, 5), Err(VmClockError::Status { status: 5 }));
        assert_eq!(with(38, 6), Err(VmClockError::Leap { leap: 6 }));
        assert_eq!(with(39, 64), Err(VmClockError::Shift { shift: 64 }));
    }

    #[test]
    fn period_at_the_bounds_of_rates_has_64_significant_bits() {
        for rate in [
            1_000,
            1_023,
            1_024,
            1_025,
            1 << 32,
            (1 << 32) + 1,
            3_500_000_000,
            4_294_967_295_000,
        ] {
            let period = CounterPeriod::nearest(hz(rate));
            assert!(period.fraction() >> 63 == 1, "{rate} Hz: {period:?}");
            // fraction x hz is 2^(64 + shift) to within half of hz.
            let product = u128::from(period.fraction()) * u128::from(rate);
            let whole = 1_u128 << (64 + u32::from(period.shift()));
            assert!(
                product.abs_diff(whole) * 2 <= u128::from(rate),
                "{rate} Hz: {period:?}"
            );
        }
        // 1 ppb less of a rate is 1 / (10^9 - 1) more of its period of 9444732965739290428 units at
        // most: 9444732975.18…, rounded up, and one.
        let error = |ppb: i64| CounterPeriod::nearest(hz(1_000)).error_ceil(Ppb::new(ppb));
        assert_eq!(error(-1).get(), 9_444_732_977);
        // Half of the rate: the period twice as long.
        assert_eq!(error(500_000_000).get(), 9_444_732_965_739_290_429);
        assert_eq!(error(500_000_001).get(), 9_444_733_003_518_222_368);
        for everything in [1_000_000_000, i64::MIN, i64::MAX] {
            assert_eq!(error(everything).get(), u64::MAX);
        }
    }

    #[test]
    fn time_a_day_later_is_right_to_the_nanosecond() {
        for rate in [1_000, 2_399_987_000, 3_500_000_000] {
            let start = FractionalTime::from_nanos_floor(Nanos::new(1_234_567_890));
            let clock = VmClock::new(TimeType::Utc, GuestTsc::new(u64::MAX - 5), start, hz(rate));
            let later = GuestTsc::new((u64::MAX - 5).wrapping_add(86_400 * rate));
            let nanos = clock.time_at(later).unwrap().nanos_floor().unwrap().get();
            // Rounded down twice, and the period may be half a unit short.
            assert!(86_401_234_567_890 - nanos <= 1, "{rate} Hz: {nanos}");
        }
        let changing = VmClock {
            sequence: 1,
            ..page()
        };
        assert_eq!(changing.time_at(GuestTsc::new(0)), None);
        let without_counter = VmClock {
            counter_id: Counter::Invalid,
            ..page()
        };
        assert_eq!(without_counter.time_at(GuestTsc::new(0)), None);
        assert_eq!(without_counter.to_bytes()[10], 0xff);
        assert_eq!(
            VmClock::from_bytes(&without_counter.to_bytes()),
            Ok(without_counter)
        );
        assert_eq!(changing.succeeded_by(page()).sequence_before(), 1);
        assert_eq!(changing.succeeded_by(page()).sequence(), 2);
    }

    #[test]
    fn nanos_through_a_fraction_lose_at_most_one() {
        for nanos in [0, 1, 999_999_999, 1_000_000_000, u64::MAX] {
            let back = FractionalTime::from_nanos_floor(Nanos::new(nanos))
                .nanos_floor()
                .unwrap();
            assert!(nanos - back.get() <= 1);
        }
        let beyond = FractionalTime {
            seconds: u64::MAX,
            fraction: 0,
        };
        assert_eq!(beyond.nanos_floor(), None);
    }
}
