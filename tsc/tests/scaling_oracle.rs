//! Scaling, offsets and nested composition against big integers, written from the manuals:
//!
//! - SDM vol. 3, 25.3: with TSC scaling, RDTSC "first computes the product of the value of the
//!   time-stamp counter and the value of the TSC multiplier. It then shifts the value of the
//!   product right 48 bits and loads EAX/EDX with the sum of that shifted value and the TSC offset".
//! - APM vol. 2, 15.30.5: the ratio is 8.32 fixed point; the guest's TSC is P0 TSC x ratio + offset.
//! - Nested: the fields of L0 are what L1's processor would have computed, multiplied out.
//!
//! # Errors that the oracles were seen to notice
//!
//! Each was put into the code once, by itself; these are the tests of `tests/` that failed:
//!
//! | error | put into | `scaling_oracle` | `plan_oracle` | `exhaustive` | `pages_oracle` |
//! | --- | --- | --- | --- | --- | --- |
//! | a shift by N - 1 instead of N | `scale_floor` | scale (both vendors) | plan (both) | scaling | |
//! | floor for nearest | `from_rates_nearest`, `inverse_nearest` | ratio, inverse (both) | | rates, scaling | |
//! | signed for unsigned | `wide::mul` | scale, nested (both) | plan (both), conversions | | pvclock, vmclock |
//! | a product wrapped at 64 bits | `wide::mul` | scale, nested (both), quantisation, composition | plan (both), conversions, catch-up | | pvclock, vmclock |
//!
//! The exhaustive runs cannot notice the last two: their products fit in 16 bits.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the oracle counts in whatever integers make it plainest"
)]

use num_bigint::{BigInt, BigUint};
use proptest::prelude::*;
use tsc::nested::{NestedTsc, compose, compose_offset_toward_zero};
use tsc::{
    GuestTsc, HostTsc, Khz, RatioFormat, Svm, Ticks, Transform, TscDelta, TscOffset, TscRatio, Vmx,
};

/// Two to the power of `bits`.
fn pow2(bits: u32) -> BigUint {
    BigUint::from(1_u8) << bits
}

fn big(x: u64) -> BigUint {
    BigUint::from(x)
}

/// The residue of a signed number modulo 2^64.
fn modulo_2_64(x: &BigInt) -> u64 {
    let modulus = BigInt::from(pow2(64));
    let residue = ((x % &modulus) + &modulus) % &modulus;
    u64::try_from(residue).unwrap()
}

/// The fraction bits as the manuals print them, not as the code has them.
trait Manual: RatioFormat {
    const FRACTION: u32;
    const LIMIT: u128;
}

impl Manual for Vmx {
    const FRACTION: u32 = 48;
    const LIMIT: u128 = 1 << 64;
}

impl Manual for Svm {
    const FRACTION: u32 = 32;
    const LIMIT: u128 = 1 << 40;
}

fn oracle_scale<F: Manual>(host: u64, ratio: u64) -> BigUint {
    big(host) * big(ratio) / pow2(F::FRACTION)
}

fn oracle_guest<F: Manual>(host: u64, ratio: u64, offset: u64) -> u64 {
    u64::try_from((oracle_scale::<F>(host, ratio) + big(offset)) % pow2(64)).unwrap()
}

/// The quotient rounded half up, as a fraction of integers: floor(2n/2d + d/2d).
fn oracle_nearest(numerator: &BigUint, denominator: &BigUint) -> BigUint {
    (numerator * 2_u8 + denominator) / (denominator * 2_u8)
}

/// Register values with their edges as likely as all else together.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u32..64, any::<u64>()).prop_map(|(shift, x)| x >> shift),
        (0_u32..64, -2_i64..=2).prop_map(|(bit, near)| (1_u64 << bit).wrapping_add_signed(near)),
        Just(0),
        Just(u64::MAX),
    ]
}

fn ratio_bits<F: Manual>() -> impl Strategy<Value = u64> {
    word().prop_filter_map("a ratio of this format", |bits| {
        let bits = (u128::from(bits) % F::LIMIT) as u64;
        (bits != 0).then_some(bits)
    })
}

fn rate() -> impl Strategy<Value = u32> {
    prop_oneof![
        1..=u32::MAX,
        500_000_u32..=6_000_000,
        1_u32..=2000,
        Just(u32::MAX)
    ]
}

fn khz(khz: u32) -> Khz {
    Khz::new(khz).unwrap()
}

fn check_rates<F: Manual>(guest: u32, host: u32) -> Result<(), TestCaseError> {
    let numerator = big(guest.into()) << F::FRACTION;
    let denominator = big(host.into());
    let limit = BigUint::from(F::LIMIT);

    let floor = &numerator / &denominator;
    // KVM refuses 0 and the maximum register value (set_tsc_khz).
    let expected = (floor != big(0) && floor < &limit - 1_u8).then_some(floor);
    let got = TscRatio::<F>::from_rates_floor(khz(guest), khz(host));
    prop_assert_eq!(got.ok().map(|r| big(r.bits())), expected);

    let nearest = oracle_nearest(&numerator, &denominator);
    let expected = (nearest != big(0) && nearest < limit).then_some(nearest);
    let got = TscRatio::<F>::from_rates_nearest(khz(guest), khz(host));
    prop_assert_eq!(got.ok().map(|r| big(r.bits())), expected);
    Ok(())
}

fn check_error<F: Manual>(guest: u32, host: u32) -> Result<(), TestCaseError> {
    let Ok(ratio) = TscRatio::<F>::from_rates_floor(khz(guest), khz(host)) else {
        return Ok(());
    };
    // True rate minus rate asked for, over the rate asked for, in billionths, away from zero.
    let asked = BigInt::from(guest) << F::FRACTION;
    let off = BigInt::from(host) * BigInt::from(ratio.bits()) - &asked;
    let billionths = off * 1_000_000_000_i64;
    let outward = if billionths < BigInt::from(0) {
        -((-billionths + &asked - 1_i32) / &asked)
    } else {
        (billionths + &asked - 1_i32) / &asked
    };
    let got = ratio
        .quantisation_error_outward(khz(guest), khz(host))
        .unwrap();
    prop_assert_eq!(BigInt::from(got.get()), outward);
    let hz = (BigUint::from(host) * 1000_u32 * big(ratio.bits())) >> F::FRACTION;
    let got = ratio.effective_rate_floor(khz(host));
    prop_assert_eq!(got.map(|hz| big(hz.get())), (hz >= big(1000)).then_some(hz));
    Ok(())
}

fn check_scale<F: Manual>(host: u64, bits: u64, offset: u64) -> Result<(), TestCaseError> {
    let ratio = TscRatio::<F>::from_bits(bits).unwrap();
    let exact = oracle_scale::<F>(host, bits);
    prop_assert_eq!(
        big(ratio.scale_floor(HostTsc::new(host)).get()),
        &exact % pow2(64)
    );
    let fits = (exact < pow2(64)).then_some(exact);
    prop_assert_eq!(
        ratio
            .scale_ticks_floor(Ticks::new(host))
            .map(|t| big(t.get())),
        fits
    );
    let clock = Transform {
        ratio,
        offset: TscOffset::new(offset),
    };
    prop_assert_eq!(
        clock.guest_at(HostTsc::new(host)).get(),
        oracle_guest::<F>(host, bits, offset)
    );
    // The offset for a reading: the reading is hit.
    let through = Transform::through(ratio, HostTsc::new(host), GuestTsc::new(offset));
    prop_assert_eq!(oracle_guest::<F>(host, bits, through.offset.get()), offset);
    Ok(())
}

fn check_inverse<F: Manual>(guest: u64, bits: u64) -> Result<(), TestCaseError> {
    let ratio = TscRatio::<F>::from_bits(bits).unwrap();
    let exact = ((big(guest) << F::FRACTION) + bits - 1_u8) / bits;
    let expected = (exact < pow2(64)).then_some(exact);
    let got = ratio.unscale_ceil(Ticks::new(guest));
    prop_assert_eq!(got.map(|t| big(t.get())), expected);
    if let Some(host) = got {
        // It reaches the target, and one tick less does not.
        prop_assert!(oracle_scale::<F>(host.get(), bits) >= big(guest));
        if host.get() > 0 {
            prop_assert!(oracle_scale::<F>(host.get() - 1, bits) < big(guest));
        }
    }
    let reciprocal = oracle_nearest(&pow2(2 * F::FRACTION), &big(bits));
    let expected =
        (reciprocal != big(0) && reciprocal < BigUint::from(F::LIMIT)).then_some(reciprocal);
    prop_assert_eq!(
        ratio.inverse_nearest().ok().map(|r| big(r.bits())),
        expected
    );
    Ok(())
}

fn check_nested<F: Manual>(
    (r1, o1): (u64, u64),
    (r2, o2): (u64, u64),
    delta: i64,
) -> Result<(), TestCaseError> {
    let (ratio1, ratio2) = (
        TscRatio::<F>::from_bits(r1).unwrap(),
        TscRatio::<F>::from_bits(r2).unwrap(),
    );
    let product = (big(r1) * big(r2)) >> F::FRACTION;
    let product = (product != big(0) && product < BigUint::from(F::LIMIT)).then_some(product);
    let got = ratio1.compose_floor(ratio2);
    prop_assert_eq!(got.ok().map(|r| big(r.bits())), product.clone());

    // L1's offset as the signed number that it stands for; BigInt's division truncates towards 0.
    let expected_offset = |o1: u64| {
        let signed = if o1 >> 63 == 1 {
            BigInt::from(o1) - BigInt::from(pow2(64))
        } else {
            BigInt::from(o1)
        };
        let scaled = signed * BigInt::from(r2) / BigInt::from(pow2(F::FRACTION));
        modulo_2_64(&(scaled + BigInt::from(o2)))
    };
    let got = compose_offset_toward_zero(TscOffset::new(o1), ratio2, TscOffset::new(o2));
    prop_assert_eq!(got.get(), expected_offset(o1));

    let l1 = Transform {
        ratio: ratio1,
        offset: TscOffset::new(o1),
    };
    let l2 = Transform {
        ratio: ratio2,
        offset: TscOffset::new(o2),
    };
    prop_assert_eq!(compose(l1, l2).is_ok(), product.is_some());
    let mut vcpu = NestedTsc::new(l1);
    if vcpu.enter_l2(l2).is_ok() {
        // Moving L1 under a running L2 is entering L2 with a moved L1.
        let fields = vcpu.adjust_l1(TscDelta::new(delta)).unwrap();
        let moved = o1.wrapping_add_signed(delta);
        prop_assert_eq!(fields.saved_l1.unwrap().offset.get(), moved);
        prop_assert_eq!(fields.active.offset.get(), expected_offset(moved));
        prop_assert_eq!(Some(big(fields.active.ratio.bits())), product);
        prop_assert_eq!(vcpu.leave_l2().active.offset.get(), moved);
    }
    Ok(())
}

/// The documented distance between the composition and the two steps that it stands for.
fn check_composition_error<F: Manual>(h: u64, r1: u64, r2: u64) -> Result<(), TestCaseError> {
    let (Ok(ratio1), Ok(ratio2)) = (TscRatio::<F>::from_bits(r1), TscRatio::<F>::from_bits(r2))
    else {
        return Ok(());
    };
    let Ok(both) = ratio1.compose_floor(ratio2) else {
        return Ok(());
    };
    let two_steps = (oracle_scale::<F>(h, r1) * big(r2)) >> F::FRACTION;
    let one_step = oracle_scale::<F>(h, both.bits());
    prop_assert!(two_steps.clone() <= &one_step + (big(h) >> F::FRACTION) + 1_u8);
    prop_assert!(one_step <= two_steps + (big(r2) >> F::FRACTION) + 1_u8);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn ratio_from_any_rates_matches_the_oracle(guest in rate(), host in rate()) {
        check_rates::<Vmx>(guest, host)?;
        check_rates::<Svm>(guest, host)?;
    }

    #[test]
    fn quantisation_error_matches_the_oracle(guest in rate(), host in rate()) {
        check_error::<Vmx>(guest, host)?;
        check_error::<Svm>(guest, host)?;
    }

    #[test]
    fn scale_on_vmx_matches_the_oracle(h in word(), r in ratio_bits::<Vmx>(), o in word()) {
        check_scale::<Vmx>(h, r, o)?;
    }

    #[test]
    fn scale_on_svm_matches_the_oracle(h in word(), r in ratio_bits::<Svm>(), o in word()) {
        check_scale::<Svm>(h, r, o)?;
    }

    #[test]
    fn inverse_on_vmx_matches_the_oracle(g in word(), r in ratio_bits::<Vmx>()) {
        check_inverse::<Vmx>(g, r)?;
    }

    #[test]
    fn inverse_on_svm_matches_the_oracle(g in word(), r in ratio_bits::<Svm>()) {
        check_inverse::<Svm>(g, r)?;
    }

    #[test]
    fn nested_on_vmx_matches_the_oracle(
        l1 in (ratio_bits::<Vmx>(), word()),
        l2 in (ratio_bits::<Vmx>(), word()),
        delta in any::<i64>(),
    ) {
        check_nested::<Vmx>(l1, l2, delta)?;
    }

    #[test]
    fn nested_on_svm_matches_the_oracle(
        l1 in (ratio_bits::<Svm>(), word()),
        l2 in (ratio_bits::<Svm>(), word()),
        delta in any::<i64>(),
    ) {
        check_nested::<Svm>(l1, l2, delta)?;
    }

    #[test]
    fn composition_error_stays_within_its_bound(
        h in word(),
        v in (ratio_bits::<Vmx>(), ratio_bits::<Vmx>()),
        s in (ratio_bits::<Svm>(), ratio_bits::<Svm>()),
    ) {
        check_composition_error::<Vmx>(h, v.0, v.1)?;
        check_composition_error::<Svm>(h, s.0, s.1)?;
    }
}
