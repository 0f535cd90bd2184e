//! The same code at widths where every input can be tried: counters of 6 to 8 bits, against
//! schoolbook arithmetic in `i64`, which these widths cannot fill.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the oracle counts in whatever integers make it plainest"
)]

use tsc::nested::compose_offset_toward_zero;
use tsc::{GuestTsc, HostTsc, Khz, RatioFormat, Ticks, Transform, TscOffset, TscRatio};

/// As Intel's: the ratio is as wide as the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NarrowVmx;

impl RatioFormat for NarrowVmx {
    const NAME: &'static str = "narrow VMX";
    const COUNTER_BITS: u32 = 8;
    const FRACTION_BITS: u32 = 6;
    const RATIO_BITS: u32 = 8;
}

/// As AMD's: reserved bits above the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NarrowSvm;

impl RatioFormat for NarrowSvm {
    const NAME: &'static str = "narrow SVM";
    const COUNTER_BITS: u32 = 8;
    const FRACTION_BITS: u32 = 4;
    const RATIO_BITS: u32 = 6;
}

/// `floor(a / b)` for any sign of `a`.
fn floor(a: i64, b: i64) -> i64 {
    a.div_euclid(b)
}

fn ratios<F: RatioFormat>() -> impl Iterator<Item = TscRatio<F>> {
    (1..1_u64 << F::RATIO_BITS).map(|bits| TscRatio::from_bits(bits).unwrap())
}

fn registers<F: RatioFormat>() {
    for bits in 0..1_u64 << 10 {
        let fits = bits != 0 && bits < 1 << F::RATIO_BITS;
        assert_eq!(TscRatio::<F>::from_bits(bits).is_ok(), fits, "{bits}");
    }
}

fn scaling<F: RatioFormat>() {
    let (modulus, one) = (1_i64 << F::COUNTER_BITS, 1_i64 << F::FRACTION_BITS);
    for ratio in ratios::<F>() {
        let r = ratio.bits() as i64;
        for host in 0..modulus {
            let exact = floor(host * r, one);
            let got = ratio.scale_floor(HostTsc::new(host as u64)).get() as i64;
            assert_eq!(got, exact % modulus, "{host} x {r}");
            let duration = ratio.scale_ticks_floor(Ticks::new(host as u64));
            let fits = (exact < modulus).then_some(exact as u64);
            assert_eq!(duration.map(Ticks::get), fits, "{host} x {r}");
        }
        for guest in 0..modulus {
            // The first host duration that reaches the target, by trying them all.
            let first = (0..modulus).find(|&h| floor(h * r, one) >= guest);
            let got = ratio
                .unscale_ceil(Ticks::new(guest as u64))
                .map(|t| t.get() as i64);
            assert_eq!(got, first, "{guest} / {r}");
        }
        // The ratio whose product with this one is closest to 1, ties upwards.
        let reciprocal = floor(2 * one * one + r, 2 * r);
        let fits = reciprocal != 0 && reciprocal < 1 << F::RATIO_BITS;
        let got = ratio.inverse_nearest().ok().map(|r| r.bits() as i64);
        assert_eq!(got, fits.then_some(reciprocal), "1 / {r}");
    }
}

fn offsets<F: RatioFormat>() {
    let modulus = 1_u64 << F::COUNTER_BITS;
    // Every ratio on one diagonal of readings, every pair of readings on four ratios.
    for (index, ratio) in ratios::<F>().enumerate() {
        let step = if index % 64 == 0 { 1 } else { 17 };
        for host in 0..modulus {
            for guest in (0..modulus).step_by(step) {
                let clock = Transform::through(ratio, HostTsc::new(host), GuestTsc::new(guest));
                assert!(clock.offset.get() < modulus);
                let scaled = ratio.scale_floor(HostTsc::new(host)).get();
                assert_eq!((scaled + clock.offset.get()) % modulus, guest);
                assert_eq!(clock.guest_at(HostTsc::new(host)).get(), guest);
            }
        }
    }
}

fn composition<F: RatioFormat>() {
    let (modulus, one) = (1_i64 << F::COUNTER_BITS, 1_i64 << F::FRACTION_BITS);
    for outer in ratios::<F>() {
        for inner in ratios::<F>() {
            let (r1, r2) = (outer.bits() as i64, inner.bits() as i64);
            let exact = floor(r1 * r2, one);
            let fits = exact != 0 && exact < 1 << F::RATIO_BITS;
            let got = outer.compose_floor(inner).ok().map(|r| r.bits() as i64);
            assert_eq!(got, fits.then_some(exact), "{r1} x {r2}");
            if !fits {
                continue;
            }
            for h in 0..modulus {
                let two_steps = floor(floor(h * r1, one) * r2, one);
                let one_step = floor(h * exact, one);
                assert!(
                    two_steps - one_step <= floor(h, one) + 1,
                    "{h} x {r1} x {r2}"
                );
                assert!(
                    one_step - two_steps <= floor(r2, one) + 1,
                    "{h} x {r1} x {r2}"
                );
            }
        }
    }
    for ratio in ratios::<F>() {
        let r2 = ratio.bits() as i64;
        for o1 in 0..modulus {
            let signed = if o1 >= modulus / 2 { o1 - modulus } else { o1 };
            // `/` of Rust truncates towards zero, which is the rounding in the name.
            let scaled = signed * r2 / one;
            for o2 in (0..modulus).step_by(37) {
                let expected = (scaled + o2).rem_euclid(modulus);
                let got = compose_offset_toward_zero(
                    TscOffset::new(o1 as u64),
                    ratio,
                    TscOffset::new(o2 as u64),
                );
                assert_eq!(got.get() as i64, expected, "{o1} x {r2} + {o2}");
            }
        }
    }
}

fn rates<F: RatioFormat>() {
    let one = 1_i64 << F::FRACTION_BITS;
    let max = (1_i64 << F::RATIO_BITS) - 1;
    for guest in 1..=300 {
        for host in 1..=300 {
            let (guest_rate, host_rate) = (Khz::new(guest).unwrap(), Khz::new(host).unwrap());
            let (guest, host) = (i64::from(guest), i64::from(host));
            let down = floor(guest * one, host);
            let got = TscRatio::<F>::from_rates_floor(guest_rate, host_rate);
            let fits = (1..max).contains(&down);
            assert_eq!(
                got.ok().map(|r| r.bits() as i64),
                fits.then_some(down),
                "{guest}/{host}"
            );
            let near = floor(2 * guest * one + host, 2 * host);
            let got = TscRatio::<F>::from_rates_nearest(guest_rate, host_rate);
            let fits = (1..=max).contains(&near);
            assert_eq!(
                got.ok().map(|r| r.bits() as i64),
                fits.then_some(near),
                "{guest}/{host}"
            );
        }
    }
}

#[test]
fn registers_at_narrow_widths_all_checked() {
    registers::<NarrowVmx>();
    registers::<NarrowSvm>();
}

#[test]
fn scaling_at_narrow_widths_all_exact() {
    scaling::<NarrowVmx>();
    scaling::<NarrowSvm>();
}

#[test]
fn offsets_at_narrow_widths_all_exact() {
    offsets::<NarrowVmx>();
    offsets::<NarrowSvm>();
}

#[test]
fn composition_at_narrow_widths_all_exact_and_bounded() {
    composition::<NarrowVmx>();
    composition::<NarrowSvm>();
}

#[test]
fn rates_at_narrow_widths_all_exact() {
    rates::<NarrowVmx>();
    rates::<NarrowSvm>();
}
