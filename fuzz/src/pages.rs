//! Clock pages, read back as a guest reads them: from the bytes, by the structures' headers alone.
//!
//! - `struct pvclock_vcpu_time_info` (arch/x86/include/asm/pvclock-abi.h) and
//!   `__pvclock_read_cycles` (arch/x86/include/asm/pvclock.h);
//! - `struct vmclock_abi` (include/uapi/linux/vmclock-abi.h) and the comments in it.

use arbitrary::Arbitrary;
use num_bigint::BigUint;
use tsc::pvclock::{self, PvClock, TimeScale, implied_rate_floor};
use tsc::vmclock::{self, ClockStatus, CounterPeriod, FractionalTime, TimeType, VmClock};
use tsc::{GuestTsc, Hz, Khz, Nanos, Ppb};

use crate::input::{decode, khz};

/// The little-endian number in `bytes[at..at + size]`.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What a guest makes of a paravirtual clock page when its TSC reads `tsc`; `None` under change.
fn pvclock_read(page: &[u8; 32], tsc: u64) -> Option<u64> {
    if number(page, 0, 4) % 2 == 1 {
        return None;
    }
    let delta = tsc.wrapping_sub(number(page, 8, 8));
    let shift = i32::from(i8::from_le_bytes([page[28]]));
    let shifted = if shift < 0 {
        delta >> -shift
    } else {
        // Bits above the counter's are lost, as in the guest's register.
        delta << shift
    };
    let scaled = (u128::from(shifted) * u128::from(number(page, 24, 4))) >> 32;
    let scaled = u64::try_from(scaled % (1 << 64)).expect("64 bits");
    Some(number(page, 16, 8).wrapping_add(scaled))
}

#[derive(Arbitrary, Debug)]
struct PvPage {
    rate: u32,
    tsc: u64,
    time: u64,
    flags: u8,
    ticks: u64,
    /// A page that something else wrote.
    hostile: [u8; 32],
}

/// A paravirtual clock page for any rate, and any bytes as one.
///
/// The guest reads the time that the page was made for; versions follow their rule; the scale is
/// the quotient of the rates to within its bound; any bytes are a page or are refused.
pub fn pvclock(data: &[u8]) {
    let Some(input) = decode::<PvPage>(data) else {
        return;
    };
    let rate = khz(input.rate);
    check_scale(rate);

    let page = PvClock::new(
        GuestTsc::new(input.tsc),
        Nanos::new(input.time),
        rate,
        input.flags,
    );
    check_pvclock_bytes(&page, input.ticks);
    assert_eq!(pvclock_read(&page.to_bytes(), input.tsc), Some(input.time));

    let hostile = &input.hostile;
    let shift = i8::from_le_bytes([hostile[28]]);
    let Some(found) = PvClock::from_bytes(hostile) else {
        assert!(!(-31..=31).contains(&shift));
        return;
    };
    assert!((-31..=31).contains(&shift));
    check_pvclock_bytes(&found, input.ticks);
    let bytes = found.to_bytes();
    let padding = |at: &usize| (4..8).contains(at) || *at >= 30;
    assert!((0..32).all(|at| bytes[at] == if padding(&at) { 0 } else { hostile[at] }));
    check_implied(found.scale);

    // What follows a page is even again, and is neither it nor what stood there meanwhile.
    let next = found.succeeded_by(page);
    assert_eq!(found.version_under_change() % 2, 1);
    assert_eq!(next.version() % 2, 0);
    let steps = next.version().wrapping_sub(found.version());
    assert!(steps == 1 || steps == 2, "{steps}");
    assert_ne!(next.version(), found.version_under_change());
    assert_eq!(next.to_bytes()[4..], page.to_bytes()[4..]);
}

/// The page in memory says the same as the page itself.
fn check_pvclock_bytes(page: &PvClock, ticks: u64) {
    let bytes = page.to_bytes();
    assert_eq!(PvClock::from_bytes(&bytes).as_ref(), Some(page));
    assert_eq!(bytes.len(), pvclock::SIZE);
    let tsc = page.tsc_timestamp.get().wrapping_add(ticks);
    let read = page.time_at(GuestTsc::new(tsc)).map(Nanos::get);
    assert_eq!(read, pvclock_read(&bytes, tsc));
}

/// Both scales are the quotients of the rates, to within what their documentation says.
fn check_scale(rate: Khz) {
    let hz = rate.hz().get();
    let billion = 1_000_000_000;
    let to_nanos = TimeScale::nanos_from_ticks(rate);
    for (scale, from, to, parts) in [
        (to_nanos, hz, billion, 500_000_000),
        (
            TimeScale::ticks_from_nanos(rate),
            billion,
            hz,
            (hz / 2).min(500_000_000),
        ),
    ] {
        assert!(TimeScale::from_parts(scale.multiplier(), scale.shift()) == Some(scale));
        // multiplier x 2^shift / 2^32 against to / from; both sides times from x 2^64.
        let shift = u32::try_from(i32::from(scale.shift()) + 32).expect("at least -31");
        let got = (BigUint::from(from) * scale.multiplier()) << shift;
        let exact = BigUint::from(to) << 64;
        let off = if got > exact {
            &got - &exact
        } else {
            &exact - &got
        };
        assert!(off * BigUint::from(parts) < exact, "{rate}: {scale:?}");
    }
    check_implied(to_nanos);
    let implied = implied_rate_floor(to_nanos);
    assert!(implied.is_none_or(|implied| implied.get().abs_diff(hz) <= hz / 500_000_000 + 1));
}

/// The implied rate is 10^9 / (multiplier x 2^shift / 2^32), rounded down.
fn check_implied(scale: TimeScale) {
    let shift = u32::try_from(i32::from(scale.shift()) + 32).expect("at least -31");
    let (ticks, nanos) = (
        BigUint::from(1_000_000_000_u32) << 64,
        BigUint::from(scale.multiplier()) << shift,
    );
    match implied_rate_floor(scale) {
        Some(hz) => {
            let hz = hz.get();
            assert!(&nanos * hz <= ticks && &nanos * (hz + 1) > ticks, "{hz}");
        }
        // No rate at all, less than 1 kHz, or more than 2^32 - 1 kHz.
        None => assert!(
            scale.multiplier() == 0
                || &nanos * 1_000_u32 > ticks
                || nanos * 4_294_967_295_001_u64 <= ticks
        ),
    }
}

/// What a guest makes of a VMClock page when its TSC reads `tsc`, in units of 2^-64 s; `None` under
/// change, and without a counter.
fn vmclock_read(page: &[u8; 112], tsc: u64) -> Option<BigUint> {
    if number(page, 12, 4) % 2 == 1 || page[10] == 0xff {
        return None;
    }
    let delta = tsc.wrapping_sub(number(page, 40, 8));
    let passed = (BigUint::from(delta) * number(page, 48, 8)) >> number(page, 39, 1);
    Some((BigUint::from(number(page, 72, 8)) << 64) + number(page, 80, 8) + passed)
}

#[derive(Arbitrary, Debug)]
struct VmPage {
    hz: u64,
    counter: u64,
    nanos: u64,
    ticks: u64,
    ppb: i64,
    /// The share of that error, in 65535ths, by which the true rate is less.
    share: u16,
    /// Puts the hostile page's fields of few values right.
    repair: bool,
    hostile: [u8; 112],
}

/// A VMClock page for any rate, and any bytes as one.
///
/// The guest reads the time that the page was made for, errors cover what they should, and any
/// bytes are a page that says the same when written again, or are refused for a reason.
pub fn vmclock(data: &[u8]) {
    let Some(mut input) = decode::<VmPage>(data) else {
        return;
    };
    let Some(rate) = Hz::new(1_000 + input.hz % 4_294_967_294_001) else {
        panic!("a rate within 1 kHz and 2^32 - 1 kHz");
    };
    let time = FractionalTime::from_nanos_floor(Nanos::new(input.nanos));
    check_time(time, input.nanos);
    check_period(rate, input.ppb, input.share);
    let page = VmClock::new(TimeType::Tai, GuestTsc::new(input.counter), time, rate);
    check_vmclock_bytes(&page, input.ticks);

    if input.repair {
        input.hostile[..4].copy_from_slice(b"VCLK");
        let time_type = input.hostile[11] % 3;
        let counter = if input.hostile[10] == 0xff { 0xff } else { 1 };
        input.hostile[8..12].copy_from_slice(&[1, 0, counter, time_type]);
        input.hostile[34] %= 5;
        input.hostile[38] %= 6;
        input.hostile[39] %= 64;
    }
    let bytes = &input.hostile;
    let known = &bytes[..4] == b"VCLK"
        && bytes[8..10] == [1, 0]
        && matches!(bytes[10], 1 | 0xff)
        && bytes[11] < 3
        && bytes[34] < 5
        && bytes[38] < 6
        && bytes[39] < 64;
    let found = VmClock::from_bytes(bytes);
    assert_eq!(found.is_ok(), known, "{found:?}");
    let Ok(found) = found else { return };
    check_vmclock_fields(&found, bytes);
    check_vmclock_bytes(&found, input.ticks);
    let tsc = number(bytes, 40, 8).wrapping_add(input.ticks);
    assert_eq!(
        vmclock_read(&found.to_bytes(), tsc),
        vmclock_read(bytes, tsc)
    );

    let next = found.succeeded_by(page);
    assert_eq!(next.sequence_before() % 2, 1);
    assert_eq!(next.sequence() % 2, 0);
    let steps = next.sequence().wrapping_sub(found.sequence());
    assert!(steps == 1 || steps == 2, "{steps}");
    assert_eq!(next.to_bytes()[16..], page.to_bytes()[16..]);
}

/// Every field stands where the header has it, and optional ones count when their flag is set.
fn check_vmclock_fields(page: &VmClock, bytes: &[u8; 112]) {
    let flag = |bit: u32| number(bytes, 24, 8) >> bit & 1 == 1;
    let when = |bit: u32, at: usize| flag(bit).then(|| number(bytes, at, 8));
    assert_eq!(u64::from(page.sequence()), number(bytes, 12, 4));
    assert_eq!(page.disruption_marker, number(bytes, 16, 8));
    assert_eq!(u8::from(page.time_type), bytes[11]);
    assert_eq!(u8::from(page.counter_id), bytes[10]);
    assert_eq!(u8::from(page.leap), bytes[38]);
    assert_eq!(u8::from(page.status), bytes[34]);
    assert_eq!(page.status == ClockStatus::Synchronized, bytes[34] == 2);
    let tai = flag(0).then(|| i16::from_le_bytes([bytes[36], bytes[37]]));
    assert_eq!(page.tai_offset, tai);
    assert_eq!(page.period_estimated_error.map(|e| e.get()), when(3, 56));
    assert_eq!(page.period_maximum_error.map(|e| e.get()), when(4, 64));
    assert_eq!(page.time_estimated_error.map(Nanos::get), when(5, 88));
    assert_eq!(page.time_maximum_error.map(Nanos::get), when(6, 96));
    assert_eq!(page.monotonic, flag(7));
    assert_eq!(page.generation, when(8, 104));
}

fn check_vmclock_bytes(page: &VmClock, ticks: u64) {
    let bytes = page.to_bytes();
    assert_eq!(bytes.len(), vmclock::SIZE);
    assert_eq!(VmClock::from_bytes(&bytes), Ok(*page));
    let tsc = page.counter.get().wrapping_add(ticks);
    let expected = vmclock_read(&bytes, tsc);
    // Past 2^64 s there is no time that the page could tell.
    let expected = expected.filter(|time| *time < BigUint::from(1_u8) << 128_u8);
    let read = page.time_at(GuestTsc::new(tsc));
    let parts = |time: FractionalTime| (BigUint::from(time.seconds()) << 64) + time.fraction();
    assert_eq!(read.map(parts), expected);
    // In nanoseconds, rounded down.
    if let (Some(read), Some(expected)) = (read, expected) {
        let nanos = (expected * 1_000_000_000_u32) >> 64;
        let fits = nanos < BigUint::from(1_u8) << 64;
        assert_eq!(
            read.nanos_floor().map(|nanos| BigUint::from(nanos.get())),
            fits.then_some(nanos)
        );
    }
}

/// `nanos` as seconds and 2^-64 s, rounded down.
fn check_time(time: FractionalTime, nanos: u64) {
    let got = (BigUint::from(time.seconds()) << 64) + time.fraction();
    let exact = BigUint::from(nanos) << 64;
    assert!(&got * 1_000_000_000_u32 <= exact);
    assert!((got + 1_u8) * 1_000_000_000_u32 > exact);
}

/// The period is the nearest that 64 bits can say, and its error covers a rate off by `ppb`.
fn check_period(rate: Hz, ppb: i64, share: u16) {
    let (hz, period) = (rate.get(), CounterPeriod::nearest(rate));
    let unit = BigUint::from(1_u8) << (64 + u32::from(period.shift()));
    // |fraction / unit - 1 / hz| <= 1 / 2 unit, at the largest shift that fits.
    let got = BigUint::from(period.fraction()) * hz;
    let off = if got > unit {
        &got - &unit
    } else {
        &unit - &got
    };
    assert!(off * 2_u8 <= BigUint::from(hz), "{rate}: {period:?}");
    assert!(period.fraction() >> 63 == 1, "{rate}: {period:?}");

    // The true rate is less than nominal by a share of `ppb`: its period is longer than nominal.
    let ppb = ppb.checked_rem(1_000_000_000).unwrap_or(0);
    let error = period.error_ceil(Ppb::new(ppb)).get();
    let whole = BigUint::from(1_000_000_000_u64) * u32::from(u16::MAX);
    let slower = &whole - BigUint::from(ppb.unsigned_abs()) * share;
    // 1 / (hz x slower / whole) against (fraction + error) / unit.
    let most = BigUint::from(period.fraction()) + error;
    let covered = unit * whole <= most * hz * slower;
    assert!(covered || error == u64::MAX, "{rate} {ppb}: {error}");
}
