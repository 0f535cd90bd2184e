//! The paravirtual clock page: how a guest turns its TSC into nanoseconds without an exit.
//!
//! The page holds a reading of the guest's TSC, the system time at that instant, and a scale. A
//! guest adds the ticks since then, scaled. The host changes the page while guests may read it, so
//! a version brackets each change: odd while one is under way (`struct pvclock_vcpu_time_info`,
//! arch/x86/include/asm/pvclock-abi.h; Documentation/virt/kvm/x86/msr.rst, `MSR_KVM_SYSTEM_TIME_NEW`).

use crate::bounds;
use crate::units::{GuestTsc, Hz, Khz, Nanos};
use crate::wide;

/// Scales by `(x << shift) x multiplier / 2^32`, a negative shift to the right, as
/// `pvclock_scale_delta` does in the kernel (arch/x86/include/asm/pvclock.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeScale {
    multiplier: u32,
    shift: i8,
}

impl TimeScale {
    /// The scale from TSC ticks at `tsc` to nanoseconds, bit for bit as `kvm_get_time_scale`
    /// (arch/x86/kvm/x86.c) has it. The multiplier is rounded down to 31 or 32 significant bits,
    /// and rates above 2^32 Hz lose their low bits before: the clock is off by less than 2 parts in
    /// 10^9, either way.
    #[must_use]
    pub const fn nanos_from_ticks(tsc: Khz) -> Self {
        Self::between(1_000_000_000, tsc.hz().get())
    }

    /// The scale from nanoseconds to TSC ticks at `tsc`, as `kvm_set_tsc_khz` prepares it for
    /// catch-up (`virtual_tsc_mult` and `virtual_tsc_shift`). Off by less than 2 parts in 10^9 from
    /// 1 GHz on; below, by less than 2 / hz, because the kernel cuts 10^9 to the rate's own length.
    #[must_use]
    pub const fn ticks_from_nanos(tsc: Khz) -> Self {
        Self::between(tsc.hz().get(), 1_000_000_000)
    }

    /// `kvm_get_time_scale(to, from)`, for rates within [`bounds::HZ`].
    const fn between(to: u64, from: u64) -> Self {
        let (mut from, mut to, mut shift) = (from, to, 0_i8);
        // Bring `from` to at most twice `to`, and below 2^32.
        // OK because to < 2^42: twice that fits. Each round halves `from`: at most 42 rounds.
        while from > to.wrapping_mul(2) || from >> 32 != 0 {
            from >>= 1;
            shift = shift.wrapping_sub(1);
        }
        // Bring `from` above `to`, and both below 2^32: the quotient is then a 32-bit fraction.
        // OK because each round doubles `from` or halves `to`: at most 42 rounds.
        while from <= to || to >> 32 != 0 {
            if to >> 32 != 0 || from & 0x8000_0000 != 0 {
                to >>= 1;
            } else {
                from <<= 1;
            }
            shift = shift.wrapping_add(1);
        }
        // OK because to < from < 2^32: the quotient is below 2^32, and `from` is not 0 above `to`.
        let multiplier = match (to << 32).checked_div(from) {
            Some(quotient) => quotient & 0xFFFF_FFFF,
            None => 0,
        };
        #[expect(clippy::cast_possible_truncation, reason = "masked to 32 bits above")]
        let multiplier = multiplier as u32;
        Self { multiplier, shift }
    }

    /// A scale as it stands in a page; `None` for shifts that no host writes
    /// ([`bounds::PVCLOCK_SHIFT`]) and that a guest must not be asked to carry out.
    #[must_use]
    pub const fn from_parts(multiplier: u32, shift: i8) -> Option<Self> {
        if shift < bounds::PVCLOCK_SHIFT.min || shift > bounds::PVCLOCK_SHIFT.max {
            return None;
        }
        Some(Self { multiplier, shift })
    }

    /// `tsc_to_system_mul`.
    #[must_use]
    pub const fn multiplier(self) -> u32 {
        self.multiplier
    }

    /// `tsc_shift`.
    #[must_use]
    pub const fn shift(self) -> i8 {
        self.shift
    }

    /// `x` scaled as a guest does it: the shift loses low bits (to the right) or, modulo 2^64, high
    /// ones (to the left), and the product is rounded down.
    #[must_use]
    #[inline]
    pub const fn scale_floor(self, x: u64) -> u64 {
        let distance = self.shift.unsigned_abs() as u32;
        let shifted = if self.shift < 0 {
            x.wrapping_shr(distance)
        } else {
            x.wrapping_shl(distance)
        };
        // Bit budget: 64 + 32 = 96, of which 64 remain after the shift.
        wide::low(wide::mul(shifted, self.multiplier as u64) >> 32)
    }
}

/// The flag "the TSC is stable across vCPUs": bit 0 (`PVCLOCK_TSC_STABLE_BIT`, pvclock-abi.h).
pub const TSC_STABLE: u8 = 1 << 0;
/// The flag "the host paused this guest": bit 1 (`PVCLOCK_GUEST_STOPPED`, pvclock-abi.h).
pub const GUEST_STOPPED: u8 = 1 << 1;
/// The page structure's size in bytes (`struct pvclock_vcpu_time_info`, pvclock-abi.h).
pub const SIZE: usize = 32;

/// The contents of a paravirtual clock page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvClock {
    /// Even when the page is consistent.
    version: u32,
    /// The guest's TSC at the instant that the page describes.
    pub tsc_timestamp: GuestTsc,
    /// The system time at that instant.
    pub system_time: Nanos,
    /// From ticks to nanoseconds.
    pub scale: TimeScale,
    /// [`TSC_STABLE`], [`GUEST_STOPPED`].
    pub flags: u8,
}

impl PvClock {
    /// A consistent page, of version 0.
    #[must_use]
    pub const fn new(tsc: GuestTsc, system_time: Nanos, rate: Khz, flags: u8) -> Self {
        let scale = TimeScale::nanos_from_ticks(rate);
        Self {
            version: 0,
            tsc_timestamp: tsc,
            system_time,
            scale,
            flags,
        }
    }

    /// The version.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// The version to write, alone and first, before any other byte changes: odd.
    #[must_use]
    pub const fn version_under_change(&self) -> u32 {
        self.version | 1
    }

    /// The page that follows this one: the next even version, never this one's again (not before
    /// 2^31 changes). Write [`Self::version_under_change`], then all but the version of this, then
    /// its version.
    #[must_use]
    pub const fn succeeded_by(&self, next: Self) -> Self {
        Self {
            version: (self.version | 1).wrapping_add(1),
            ..next
        }
    }

    /// What a guest that reads `tsc` takes the time to be; `None` while the page changes. Modulo
    /// 2^64, as guests add.
    ///
    /// ```
    /// # use tsc::{GuestTsc, Khz, Nanos, pvclock::PvClock};
    /// let rate = Khz::new(2_000_000).unwrap();
    /// let page = PvClock::new(GuestTsc::new(1_000), Nanos::new(7), rate, 0);
    /// assert_eq!(page.time_at(GuestTsc::new(3_000)), Some(Nanos::new(1_007)));
    /// ```
    #[must_use]
    pub const fn time_at(&self, tsc: GuestTsc) -> Option<Nanos> {
        if self.version & 1 != 0 {
            return None;
        }
        let nanos = self
            .scale
            .scale_floor(tsc.wrapping_elapsed(self.tsc_timestamp).get());
        Some(Nanos::new(self.system_time.get().wrapping_add(nanos)))
    }

    /// The page's bytes, little-endian, padding zero.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[0..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tsc_timestamp.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.system_time.get().to_le_bytes());
        bytes[24..28].copy_from_slice(&self.scale.multiplier.to_le_bytes());
        bytes[28..29].copy_from_slice(&self.scale.shift.to_le_bytes());
        bytes[29] = self.flags;
        bytes
    }

    /// The page with these bytes; padding is ignored, as guests do. `None` for a shift that no
    /// host writes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Option<Self> {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at.saturating_add(4)]);
            u32::from_le_bytes(word)
        };
        let long = |at: usize| {
            // OK because a 32-bit value shifted by 32 fits 64 bits.
            u64::from(word(at)) | (u64::from(word(at.saturating_add(4))) << 32)
        };
        Some(Self {
            version: word(0),
            tsc_timestamp: GuestTsc::new(long(8)),
            system_time: Nanos::new(long(16)),
            scale: TimeScale::from_parts(word(24), i8::from_le_bytes([bytes[28]]))?,
            flags: bytes[29],
        })
    }
}

/// The rate that a page's scale stands for, rounded down to a hertz; `None` outside of
/// [`bounds::HZ`]. Less than 2 parts in 10^9 from the rate that the scale was made for.
#[must_use]
pub const fn implied_rate_floor(scale: TimeScale) -> Option<Hz> {
    // ticks per second = 10^9 x 2^32 / (multiplier x 2^shift). Bit budget: 30 + 32 + 31 = 93.
    let numerator = 1_000_000_000_u128 << 32;
    let distance = scale.shift.unsigned_abs() as u32;
    let (numerator, divisor) = if scale.shift < 0 {
        (numerator.wrapping_shl(distance), scale.multiplier as u128)
    } else {
        (numerator, (scale.multiplier as u128).wrapping_shl(distance))
    };
    match numerator.checked_div(divisor) {
        Some(rate) => match wide::narrow(rate) {
            Some(rate) => Hz::new(rate),
            None => None,
        },
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn khz(khz: u32) -> Khz {
        Khz::new(khz).unwrap()
    }

    #[test]
    fn scale_of_known_rates_is_the_kernels() {
        // A 2.4 GHz TSC: 10^9 / (2.4 x 10^9 / 2) x 2^32 = 3579139413.3, one shift to the right.
        // 1 GHz: from must exceed to, so from is doubled: multiplier 2^31, shift 1.
        let table = [
            (2_400_000, 3_579_139_413, -1),
            (1_000_000, 0x8000_0000, 1),
            // 3.5 GHz halved once is below 2 x 10^9 and below 2^32: 10^9 x 2^32 / (1.75 x 10^9).
            (3_500_000, 2_454_267_026, -1),
        ];
        for (rate, multiplier, shift) in table {
            let scale = TimeScale::nanos_from_ticks(khz(rate));
            assert_eq!(
                (scale.multiplier(), scale.shift()),
                (multiplier, shift),
                "{rate} kHz"
            );
            let second = scale.scale_floor(khz(rate).hz().get());
            assert!(
                (999_999_998..=1_000_000_000).contains(&second),
                "{rate}: {second}"
            );
        }
    }

    #[test]
    fn scales_of_all_rates_stay_within_their_bounds() {
        let mut rate = 1_u32;
        loop {
            for scale in [
                TimeScale::nanos_from_ticks(khz(rate)),
                TimeScale::ticks_from_nanos(khz(rate)),
            ] {
                assert!(scale.multiplier() >= 1 << 30, "{rate} kHz: {scale:?}");
                assert!(TimeScale::from_parts(scale.multiplier(), scale.shift()).is_some());
            }
            let next = u64::from(rate) + u64::from(rate) / 7 + 1;
            match u32::try_from(next) {
                Ok(next) => rate = next,
                Err(_) => break,
            }
        }
        let (low, high) = (bounds::PVCLOCK_SHIFT.min, bounds::PVCLOCK_SHIFT.max);
        assert!(TimeScale::from_parts(1, low - 1).is_none());
        assert!(TimeScale::from_parts(1, high + 1).is_none());
        assert!(
            TimeScale::from_parts(1, low)
                .and(TimeScale::from_parts(1, high))
                .is_some()
        );
    }

    #[test]
    fn versions_are_odd_under_change_and_never_repeat() {
        let mut page = PvClock::new(GuestTsc::new(0), Nanos::ZERO, khz(1_000_000), TSC_STABLE);
        for _ in 0..3 {
            let (before, under_change) = (page.version(), page.version_under_change());
            page = page.succeeded_by(page);
            assert_eq!(under_change % 2, 1);
            assert_eq!(page.version(), before + 2);
        }
        page.version = u32::MAX - 1;
        assert_eq!(page.succeeded_by(page).version(), 0);
        // A page left under change, as a snapshot may catch it, is unreadable and recovers.
        page.version = 7;
        assert_eq!(page.time_at(GuestTsc::new(0)), None);
        assert_eq!(page.succeeded_by(page).version(), 8);
    }

    #[test]
    fn bytes_of_a_page_are_those_of_the_abi() {
        let page = PvClock {
            version: 0x0403_0202,
            tsc_timestamp: GuestTsc::new(0x1112_1314_1516_1718),
            system_time: Nanos::new(0x2122_2324_2526_2728),
            scale: TimeScale {
                multiplier: 0x3132_3334,
                shift: -2,
            },
            flags: TSC_STABLE | GUEST_STOPPED,
        };
        let bytes = page.to_bytes();
        let expected: [u8; 32] = [
            0x02, 0x02, 0x03, 0x04, 0, 0, 0, 0, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31, 0xFE, 3, 0, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(PvClock::from_bytes(&bytes), Some(page));
        let mut hostile = bytes;
        hostile[28] = 0x80;
        assert_eq!(PvClock::from_bytes(&hostile), None);
    }

    #[test]
    fn implied_rate_is_the_true_one_within_two_parts_in_a_billion() {
        for rate in [
            1,
            7,
            1_000,
            800_000,
            2_399_987,
            3_500_000,
            5_950_000,
            4_294_000_000,
        ] {
            let implied = implied_rate_floor(TimeScale::nanos_from_ticks(khz(rate)));
            let (implied, hz) = (implied.unwrap().get(), khz(rate).hz().get());
            assert!(
                implied.abs_diff(hz) <= hz / 500_000_000 + 1,
                "{rate} kHz: {implied} Hz"
            );
        }
    }
}
