//! The clock pages against big integers, written as a guest reads them: `__pvclock_read_cycles`
//! (arch/x86/include/asm/pvclock.h) and the comments of include/uapi/linux/vmclock-abi.h.

use num_bigint::BigUint;
use proptest::prelude::*;
use tsc::pvclock::{PvClock, TimeScale, implied_rate_floor};
use tsc::vmclock::{CounterPeriod, FractionalTime, TimeType, VmClock};
use tsc::{GuestTsc, Hz, Khz, Nanos, Ppb};

fn big(x: u64) -> BigUint {
    BigUint::from(x)
}

fn two_64() -> BigUint {
    BigUint::from(1_u8) << 64
}

fn rate() -> impl Strategy<Value = u32> {
    prop_oneof![1..=u32::MAX, 500_000_u32..=6_000_000, 1_u32..=2_000]
}

/// (x << shift) x mul >> 32, as the page's description has it, wrapping where the guest's does.
fn scaled(x: u64, scale: TimeScale) -> BigUint {
    let shifted = if scale.shift() < 0 {
        big(x) >> scale.shift().unsigned_abs()
    } else {
        (big(x) << scale.shift().unsigned_abs()) % two_64()
    };
    ((shifted * scale.multiplier()) >> 32_u8) % two_64()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn pvclock_reads_as_a_guest_reads_it(
        rate in rate(),
        at in any::<u64>(),
        time in any::<u64>(),
        ticks in prop_oneof![any::<u64>(), 0_u64..1 << 45],
    ) {
        let rate = Khz::new(rate).unwrap();
        let page = PvClock::new(GuestTsc::new(at), Nanos::new(time), rate, 0);
        let read = page.time_at(GuestTsc::new(at.wrapping_add(ticks))).unwrap();
        let expected = (big(time) + scaled(ticks, page.scale)) % two_64();
        prop_assert_eq!(big(read.get()), expected);
    }

    /// The scale is the quotient of the rates: 10^9 / hz = multiplier x 2^shift / 2^32, to within 2
    /// parts in 10^9; and so is the reverse, to within 2 / hz where that is more.
    #[test]
    fn pvclock_scale_is_the_quotient_of_the_rates(rate in rate()) {
        let khz = Khz::new(rate).unwrap();
        for (scale, to, from) in [
            (TimeScale::nanos_from_ticks(khz), 1_000_000_000, khz.hz().get()),
            (TimeScale::ticks_from_nanos(khz), khz.hz().get(), 1_000_000_000),
        ] {
            // multiplier x 2^(shift + 32) x from against to x 2^64.
            let shift = u32::try_from(i32::from(scale.shift()) + 32).unwrap();
            let product = (big(from) * scale.multiplier()) << shift;
            let exact = big(to) << 64_u8;
            let off = if product > exact { &product - &exact } else { &exact - &product };
            let parts = (khz.hz().get() / 2).min(500_000_000);
            let parts = if to == 1_000_000_000 { 500_000_000 } else { parts };
            prop_assert!(off * parts < exact, "{} {:?}", rate, scale);
        }
        let implied = implied_rate_floor(TimeScale::nanos_from_ticks(khz));
        if let Some(implied) = implied {
            let hz = khz.hz().get();
            prop_assert!(implied.get().abs_diff(hz) <= hz / 500_000_000 + 1);
        }
    }

    #[test]
    fn pvclock_bytes_of_any_page_come_back(
        bytes in prop::array::uniform32(any::<u8>()),
        shift in -31_i8..=31,
    ) {
        let mut bytes = bytes;
        bytes[28] = shift.to_le_bytes()[0];
        // Padding is not kept.
        bytes[4..8].fill(0);
        bytes[30..].fill(0);
        prop_assert_eq!(PvClock::from_bytes(&bytes).unwrap().to_bytes(), bytes);
    }

    #[test]
    fn vmclock_reads_as_a_guest_reads_it(
        hz in prop_oneof![1_000_u64..=4_294_967_295_000, 1_000_000_000_u64..6_000_000_000],
        at in any::<u64>(),
        nanos in 0_u64..1 << 62,
        ticks in prop_oneof![any::<u64>(), 0_u64..1 << 45],
    ) {
        let rate = Hz::new(hz).unwrap();
        let start = FractionalTime::from_nanos_floor(Nanos::new(nanos));
        let clock = VmClock::new(TimeType::Utc, GuestTsc::new(at), start, rate);
        // The period in units of 2^-(64 + shift) s, to the nearest.
        let shift = clock.period.shift();
        let period = ((BigUint::from(1_u8) << (65 + u32::from(shift))) + hz) / (2 * hz);
        prop_assert_eq!(big(clock.period.fraction()), period.clone());
        let then = (big(start.seconds()) << 64_u8) + start.fraction();
        prop_assert_eq!(then.clone(), (big(nanos) << 64_u8) / 1_000_000_000_u32);
        let now = then + ((big(ticks) * period) >> shift);
        let read = clock.time_at(GuestTsc::new(at.wrapping_add(ticks))).unwrap();
        prop_assert_eq!((big(read.seconds()) << 64_u8) + read.fraction(), now.clone());
        let whole = (now * 1_000_000_000_u32) >> 64_u8;
        prop_assert_eq!(
            read.nanos_floor().map(|n| big(n.get())),
            (whole < two_64()).then_some(whole)
        );
    }

    /// A rate that is off by no more than it says, either way: the true period is within the error.
    #[test]
    fn vmclock_period_error_covers_the_true_period(
        hz in 1_000_000_u64..6_000_000_000,
        ppb in prop_oneof![0_i64..1_000_000, 0_i64..1_000_000_000],
        share in -1_000_i64..=1_000,
    ) {
        let period = CounterPeriod::nearest(Hz::new(hz).unwrap());
        let error = period.error_ceil(Ppb::new(ppb)).get();
        if error == u64::MAX {
            return Ok(());
        }
        let error = big(error);
        // The true period is that of the true rate: 2^(64 + shift) / (hz x (1 + share x ppb)).
        let rate = u64::try_from(1_000_000_000_000 + ppb * share).unwrap();
        let unit = BigUint::from(1_u8) << (64 + u32::from(period.shift()));
        let truth = unit * 1_000_000_000_000_u64 / (big(hz) * rate);
        prop_assert!(truth <= big(period.fraction()) + &error);
        prop_assert!(truth + error >= big(period.fraction()));
    }

    #[test]
    fn vmclock_bytes_never_panic_and_come_back(bytes in prop::collection::vec(any::<u8>(), 112)) {
        let mut bytes: [u8; 112] = bytes.try_into().unwrap();
        let _ = VmClock::from_bytes(&bytes);
        // With the fields that have few values set right, any page is understood.
        bytes[..4].copy_from_slice(b"VCLK");
        let time_type = bytes[11] % 3;
        bytes[8..12].copy_from_slice(&[1, 0, 1, time_type]);
        bytes[34] %= 5;
        bytes[38] %= 6;
        bytes[39] %= 64;
        let page = VmClock::from_bytes(&bytes).unwrap();
        prop_assert_eq!(VmClock::from_bytes(&page.to_bytes()), Ok(page));
    }
}
