//! Ratios, scaling and nested clocks, against big integers and the manuals' sentences:
//!
//! - SDM vol. 3, 25.3: the processor "computes the product of the value of the time-stamp counter and
//!   the value of the TSC multiplier. It then shifts the value of the product right 48 bits and loads
//!   EAX/EDX with the sum of that shifted value and the TSC offset".
//! - APM vol. 2, 15.30.5: the ratio is an 8.32 fixed-point number.
//!
//! Roundings are stated as the inequalities that define them, so that no formula is repeated here.

use arbitrary::Arbitrary;
use num_bigint::{BigInt, Sign};
use tsc::nested::{NestedFields, NestedTsc, Vmcb12Tsc, Vmcs12Tsc, compose};
use tsc::{
    GuestTsc, HostTsc, Khz, Nanos, RatioFormat, ScaledTsc, Svm, TickRate, Ticks, Transform,
    TscDelta, TscOffset, TscRatio, Vmx, guest_unscaled, nanos_exact_floor, offset_between,
    offset_unscaled, ticks_exact_floor,
};

use crate::input::{decode, khz, near};

/// A format with its widths as the manuals print them, not as the code has them.
trait Manual: RatioFormat {
    const FRACTION: u32;
    const BITS: u32;

    /// The ratio of the register value `bits` cut to the format; 1 for 0.
    fn ratio(bits: u64) -> TscRatio<Self> {
        let cut = (bits << (64 - Self::BITS)) >> (64 - Self::BITS);
        TscRatio::from_bits(cut.max(1)).expect("neither 0 nor reserved bits")
    }
}

impl Manual for Vmx {
    const FRACTION: u32 = 48;
    const BITS: u32 = 64;
}

impl Manual for Svm {
    const FRACTION: u32 = 32;
    const BITS: u32 = 40;
}

fn big(x: impl Into<BigInt>) -> BigInt {
    x.into()
}

fn pow2(bits: u32) -> BigInt {
    big(1) << bits
}

/// The residue modulo 2^64, of negative numbers too.
fn wrap(x: &BigInt) -> u64 {
    let residue = ((x % pow2(64)) + pow2(64)) % pow2(64);
    u64::try_from(residue).expect("below 2^64")
}

/// A rounding by the quotients that it takes to `x`: from `x` on, or from half before it on.
#[derive(Clone, Copy, Debug)]
enum Rounding {
    Floor,
    Nearest,
}

impl Rounding {
    /// Whether `numerator / denominator` is too small to be taken to `x`.
    fn is_below(self, (numerator, denominator): (&BigInt, &BigInt), x: &BigInt) -> bool {
        let twice_first = match self {
            Self::Floor => x * 2,
            Self::Nearest => x * 2 - 1,
        };
        numerator * 2 < twice_first * denominator
    }

    /// Asserts that `quotient` is taken to `result`; to none when that is 0 or more than `max`.
    fn check(self, quotient: (&BigInt, &BigInt), result: Option<u64>, max: &BigInt) {
        let right = match result.map(big) {
            Some(x) => {
                x > big(0)
                    && x <= *max
                    && !self.is_below(quotient, &x)
                    && self.is_below(quotient, &(x + 1))
            }
            None => self.is_below(quotient, &big(1)) || !self.is_below(quotient, &(max + 1)),
        };
        let (numerator, denominator) = quotient;
        assert!(right, "{self:?} of {numerator} / {denominator}: {result:?}");
    }
}

#[derive(Arbitrary, Debug)]
struct Rates {
    host: u32,
    guest: u32,
    /// Instead of `guest`: so many parts per million from the host's.
    near: Option<i16>,
    bits: u64,
    amount: u64,
}

/// Rates and a register value: ratios, their limits and errors, and conversions of time.
///
/// Each result is the rounding that its name says, or is missing because the format ends.
pub fn tsc_ratio(data: &[u8]) {
    let Some(input) = decode::<Rates>(data) else {
        return;
    };
    let host = khz(input.host);
    let guest = input.near.map_or(khz(input.guest), |ppm| near(host, ppm));
    check_ratio::<Vmx>(guest, host, input.bits);
    check_ratio::<Svm>(guest, host, input.bits);
    check_conversions(guest, input.amount);
}

fn check_ratio<F: Manual>(guest: Khz, host: Khz, bits: u64) {
    let max = pow2(F::BITS) - 1;
    let exists = bits != 0 && big(bits) <= max;
    let taken = TscRatio::<F>::from_bits(bits);
    assert_eq!(taken.is_ok(), exists, "{bits:#x}");
    assert!(taken.is_ok_and(|ratio| ratio.bits() == bits) || !exists);

    let exact = (big(guest.get()) << F::FRACTION, big(host.get()));
    let exact = (&exact.0, &exact.1);
    // KVM refuses the largest register value too (set_tsc_khz, arch/x86/kvm/x86.c).
    let floor = TscRatio::<F>::from_rates_floor(guest, host).ok();
    Rounding::Floor.check(exact, floor.map(TscRatio::bits), &(&max - 1));
    let nearest = TscRatio::<F>::from_rates_nearest(guest, host).ok();
    Rounding::Nearest.check(exact, nearest.map(TscRatio::bits), &max);
    for ratio in [floor, nearest].into_iter().flatten() {
        let error = ratio
            .quantisation_error_outward(guest, host)
            .expect("within 63 bits");
        // (host x ratio - asked) / asked in billionths, away from zero.
        let asked = exact.0;
        let off: BigInt = exact.1 * ratio.bits() - asked;
        // The billionths themselves, not one nearer to 0, and of the same sign.
        let (parts, inner) = (&off * 1_000_000_000, error.get() - error.get().signum());
        let right = match off.sign() {
            Sign::Minus => asked * error.get() <= parts && parts < asked * inner,
            Sign::NoSign => error.get() == 0,
            Sign::Plus => asked * inner < parts && parts <= asked * error.get(),
        };
        assert!(right, "{off} / {asked}: {error}");
    }

    let ratio = F::ratio(bits);
    let (one, rate) = (pow2(F::FRACTION), big(host.get()) * 1_000 * ratio.bits());
    match ratio.effective_rate_floor(host) {
        Some(hz) => Rounding::Floor.check((&rate, &one), Some(hz.get()), &pow2(64)),
        // 1 kHz and 2^32 - 1 kHz: the ends of what KVM calls a rate.
        None => assert!(rate < &one * 1_000 || rate >= &one * (big(u32::MAX) * 1_000 + 1)),
    }
    let inverse = ratio.inverse_nearest().ok().map(TscRatio::bits);
    let reciprocal = (&pow2(2 * F::FRACTION), &big(ratio.bits()));
    Rounding::Nearest.check(reciprocal, inverse, &max);
}

/// Exact conversions are the floor; the quick ones are that or one less, up to 2^63.
fn check_conversions(rate: Khz, amount: u64) {
    let quick = TickRate::new(rate);
    let (khz, million, x) = (big(rate.get()), big(1_000_000), big(amount));
    let ticks = (
        ticks_exact_floor(Nanos::new(amount), rate).map(Ticks::get),
        quick.ticks_floor(Nanos::new(amount)).map(Ticks::get),
    );
    let nanos = (
        nanos_exact_floor(Ticks::new(amount), rate).map(Nanos::get),
        quick.nanos_floor(Ticks::new(amount)).map(Nanos::get),
    );
    for ((exact, quick), numerator, denominator) in
        [(ticks, &x * &khz, &million), (nanos, &x * &million, &khz)]
    {
        let whole = &numerator / denominator;
        assert_eq!(
            exact.map(big),
            (whole < pow2(64)).then_some(whole.clone()),
            "{amount} at {rate}"
        );
        if whole < pow2(63) {
            let short = whole - quick.expect("below 2^63");
            assert!(short == big(0) || short == big(1), "{amount} at {rate}");
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Reading {
    host: u64,
    bits: u64,
    offset: u64,
    delta: i64,
    target: u64,
}

/// A host's reading through a ratio and an offset: what the guest reads, and the ways back.
pub fn tsc_scale(data: &[u8]) {
    let Some(input) = decode::<Reading>(data) else {
        return;
    };
    check_scale::<Vmx>(&input);
    check_scale::<Svm>(&input);
    let (host, guest) = (HostTsc::new(input.host), GuestTsc::new(input.target));
    let offset = offset_unscaled(host, guest);
    assert_eq!(
        big(offset.get()),
        big(wrap(&(big(input.target) - input.host)))
    );
    assert_eq!(guest_unscaled(host, offset), guest);
}

/// What the manuals have the processor compute, without any end to its registers.
fn scaled<F: Manual>(host: u64, ratio: TscRatio<F>) -> BigInt {
    (big(host) * ratio.bits()) / pow2(F::FRACTION)
}

fn check_scale<F: Manual>(input: &Reading) {
    let &Reading {
        host,
        bits,
        offset,
        delta,
        target,
    } = input;
    let ratio = F::ratio(bits);
    let exact = scaled(host, ratio);
    let reading = HostTsc::new(host);
    assert_eq!(ratio.scale_floor(reading).get(), wrap(&exact));
    let ticks = ratio.scale_ticks_floor(Ticks::new(host));
    assert_eq!(
        ticks.map(|ticks| big(ticks.get())),
        (exact < pow2(64)).then_some(exact.clone())
    );
    // A host that counts on never lets its guest count back.
    assert!(scaled(host.saturating_add(1), ratio) >= exact);

    let clock = Transform {
        ratio,
        offset: TscOffset::new(offset),
    };
    let guest = &exact + offset;
    assert_eq!(clock.guest_at(reading).get(), wrap(&guest));
    let moved = clock.adjusted(TscDelta::new(delta)).guest_at(reading);
    assert_eq!(moved.get(), wrap(&(guest + delta)));

    let wanted = GuestTsc::new(target);
    let through = Transform::through(ratio, reading, wanted);
    assert_eq!(wrap(&(&exact + through.offset.get())), target);
    let between = offset_between::<F>(ScaledTsc::new(wrap(&exact)), wanted);
    assert_eq!((through.ratio, through.offset), (ratio, between));

    // The first host tick at which so many have passed for the guest.
    match ratio.unscale_ceil(Ticks::new(target)) {
        Some(first) => {
            let first = first.get();
            assert!(scaled(first, ratio) >= big(target));
            assert!(first == 0 || scaled(first - 1, ratio) < big(target));
        }
        None => assert!(scaled(u64::MAX, ratio) < big(target)),
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Asked {
    bits: u64,
    offset: u64,
    /// The controls of a VMCS: offsetting, scaling. Of a VMCB the second alone counts.
    controls: (bool, bool),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Enter(Asked),
    Leave,
    Adjust(i64),
    /// The host's counter is read.
    Read(u64),
}

#[derive(Arbitrary, Debug)]
struct Nesting {
    l1: (u64, u64),
    steps: Vec<Step>,
}

/// L1 and its guest: entries, exits and adjustments of L1's clock in any order, for both vendors.
pub fn tsc_nested(data: &[u8]) {
    let Some(input) = decode::<Nesting>(data) else {
        return;
    };
    check_nesting::<Vmx>(&input, |asked| {
        Vmcs12Tsc {
            offsetting: asked.controls.0,
            scaling: asked.controls.1,
            offset: TscOffset::new(asked.offset),
            multiplier: asked.bits,
        }
        .transform()
        .ok()
    });
    check_nesting::<Svm>(&input, |asked| {
        Vmcb12Tsc {
            offset: TscOffset::new(asked.offset),
            ratio: asked.controls.1.then_some(asked.bits),
        }
        .transform()
        .ok()
    });
}

/// What L1 asks for, by the manuals; `None` when its guest's entry fails.
fn asked_for<F: Manual>(asked: Asked) -> Option<(BigInt, u64)> {
    // Intel has both behind "use TSC offsetting" (SDM vol. 3, 25.3), AMD's offset is always in force.
    let intel = F::BITS == 64;
    let Asked {
        bits,
        offset,
        controls: (offsetting, scaling),
    } = asked;
    if intel && !offsetting {
        return Some((pow2(F::FRACTION), 0));
    }
    let ratio = if scaling {
        big(bits)
    } else {
        pow2(F::FRACTION)
    };
    (ratio > big(0) && ratio < pow2(F::BITS)).then_some((ratio, offset))
}

/// L1's clock and that of its guest, as two processors one in the other would keep them.
struct Model {
    l1: (BigInt, u64),
    l2: Option<(BigInt, u64)>,
}

fn check_nesting<F: Manual>(input: &Nesting, transform: fn(Asked) -> Option<Transform<F>>) {
    let l1 = Transform {
        ratio: F::ratio(input.l1.0),
        offset: TscOffset::new(input.l1.1),
    };
    let mut vcpu = NestedTsc::new(l1);
    let mut model = Model {
        l1: (big(l1.ratio.bits()), input.l1.1),
        l2: None,
    };
    for step in input.steps.iter().take(64) {
        let fields = match *step {
            Step::Enter(asked) => {
                let l2 = transform(asked);
                let expected = asked_for::<F>(asked);
                let got = l2.map(|l2| (big(l2.ratio.bits()), l2.offset.get()));
                assert_eq!(got, expected, "{asked:x?}");
                let (Some(l2), Some(expected)) = (l2, expected) else {
                    continue;
                };
                let product: BigInt = (&model.l1.0 * &expected.0) >> F::FRACTION;
                let exists = product > big(0) && product < pow2(F::BITS);
                assert_eq!(compose(vcpu.l1(), l2).is_ok(), exists);
                let before = vcpu;
                if vcpu.enter_l2(l2).is_err() {
                    assert!(!exists && vcpu == before, "a failed entry changes nothing");
                    continue;
                }
                model.l2 = Some(expected);
                vcpu.fields()
            }
            Step::Leave => {
                model.l2 = None;
                Ok(vcpu.leave_l2())
            }
            Step::Adjust(delta) => {
                model.l1.1 = wrap(&(big(model.l1.1) + delta));
                vcpu.adjust_l1(TscDelta::new(delta))
            }
            Step::Read(host) => {
                check_reading(vcpu.fields().expect("it was entered"), &model, host);
                continue;
            }
        };
        let fields = fields.expect("it was entered");
        assert_eq!(vcpu.fields(), Ok(fields));
        check_fields(fields, &model);
    }
}

fn check_fields<F: Manual>(fields: NestedFields<F>, model: &Model) {
    let parts = |clock: Transform<F>| (big(clock.ratio.bits()), clock.offset.get());
    let (r1, o1) = &model.l1;
    let Some((r2, o2)) = &model.l2 else {
        assert_eq!(fields.saved_l1, None);
        assert_eq!(parts(fields.active), model.l1);
        return;
    };
    assert_eq!(fields.saved_l1.map(parts).as_ref(), Some(&model.l1));
    // L1's offset is a signed number, of whose product the fraction is dropped (math64.h); so does
    // the division of big integers.
    let signed = big(o1.cast_signed());
    let offset = wrap(&(signed * r2 / pow2(F::FRACTION) + *o2));
    let ratio: BigInt = (r1 * r2) >> F::FRACTION;
    assert_eq!(parts(fields.active), (ratio, offset));
}

/// The reading through the composed fields against the two steps that they stand for.
fn check_reading<F: Manual>(fields: NestedFields<F>, model: &Model, host: u64) {
    let Some((r2, o2)) = &model.l2 else { return };
    let (r1, o1) = &model.l1;
    let one = pow2(F::FRACTION);
    let l1_reads = big(host) * r1 / &one + o1.cast_signed();
    // Where L1's own clock wraps, its guest sees a jump that no one ratio and offset has.
    if l1_reads < big(0) || l1_reads >= pow2(64) {
        return;
    }
    let two_steps = wrap(&(l1_reads * r2 / &one + *o2));
    let one_step = fields.active.guest_at(HostTsc::new(host)).get();
    let short = big(two_steps.wrapping_sub(one_step).cast_signed());
    // The ratio's last bit loses under one tick for each 2^N of the host, the first floor under r2;
    // the product's own floor, and the offset's, one tick each.
    assert!(short <= (big(host) >> F::FRACTION) + 2, "{short} short");
    assert!(-&short <= (r2 >> F::FRACTION) + 2, "{short} short");
}
