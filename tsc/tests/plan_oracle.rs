//! Plans and catch-up against big integers, written from the corrected recipe of
//! Documentation/virt/kvm/devices/vcpu.rst:
//!
//! ```text
//! tsc_src    = scale(host_src) + offset_src
//! tsc_dst    = tsc_src + elapsed x rate
//! offset_dst = tsc_dst - scale(host_dst)
//! ```
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the oracle counts in whatever integers make it plainest"
)]

use num_bigint::{BigInt, BigUint};
use proptest::prelude::*;
use tsc::plan::{
    Allow, Deadline, HostTime, Plan, Present, RateOutcome, Refusal, Saved, TimePolicy,
};
use tsc::plan::{plan, unify, within_tolerance};
use tsc::policy::{CatchUp, Line, Slew};
use tsc::{
    GuestTsc, HostTsc, Khz, Nanos, Ppm, RatioFormat, Svm, TickRate, Vmx, nanos_exact_floor,
    ticks_exact_floor,
};

fn big(x: u64) -> BigUint {
    BigUint::from(x)
}

fn two_64() -> BigUint {
    BigUint::from(1_u8) << 64
}

fn khz(khz: u32) -> Khz {
    Khz::new(khz).unwrap()
}

fn rate() -> impl Strategy<Value = u32> {
    prop_oneof![1..=u32::MAX, 500_000_u32..=6_000_000, 1_u32..=2_000]
}

/// A rate for the guest near the host's, as often as any other.
fn rates() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![
        (rate(), rate()),
        (rate(), -600_i64..=600).prop_map(|(host, ppm)| {
            let guest = i64::from(host) + i64::from(host) * ppm / 1_000_000;
            (guest.clamp(1, i64::from(u32::MAX)) as u32, host)
        }),
    ]
}

fn saved() -> impl Strategy<Value = (u64, u64, u64)> {
    let edge = prop_oneof![
        any::<u64>(),
        0_u64..1 << 60,
        u64::MAX - 1_000_000..=u64::MAX
    ];
    (edge, 0_u64..1 << 62, 0_u64..1 << 62)
}

/// What `plan` should have said, word for word of the recipe; `None` where any refusal is right.
fn oracle_advance(saved: &Saved, present: &Present, cap: Option<u64>) -> (BigUint, BigUint) {
    let passed = big(present.real.get().saturating_sub(saved.real.get()));
    let passed = cap.map_or(passed.clone(), |cap| passed.min(big(cap)));
    let ticks = &passed * saved.guest_khz.get() / 1_000_000_u32;
    (passed, ticks)
}

/// A guest with these clocks: its TSC, its kvmclock and the time of day.
fn saved_at(rate: u32, (guest_tsc, kvmclock, real): (u64, u64, u64), error: u64) -> Saved {
    Saved {
        guest_tsc: GuestTsc::new(guest_tsc),
        guest_khz: khz(rate),
        kvmclock: Nanos::new(kvmclock),
        real: Nanos::new(real),
        pairing_error: Nanos::new(error),
    }
}

fn check<F: RatioFormat>(
    (guest, host): (u32, u32),
    (guest_tsc, kvmclock, real): (u64, u64, u64),
    (host_tsc, now, cap): (u64, u64, Option<u64>),
    (scaling, pushed, freeze): (bool, bool, bool),
    fraction: u32,
) -> Result<(), TestCaseError> {
    let saved = saved_at(guest, (guest_tsc, kvmclock, real), 0);
    let present = Present {
        host_tsc: HostTsc::new(host_tsc),
        real: Nanos::new(now),
        pairing_error: Nanos::ZERO,
    };
    let tolerance = Ppm::KVM_TOLERANCE;
    let host_time = HostTime {
        khz: khz(host),
        offsets: true,
        scaling,
        catch_up: pushed,
        tolerance,
    };
    let policy = if freeze {
        TimePolicy::Freeze
    } else {
        TimePolicy::Advance {
            cap: cap.map(Nanos::new),
        }
    };
    let result: Result<Plan<F>, Refusal> =
        plan(saved, present, host_time, policy, Allow::default());

    // Which refusal, if any: in the order in which a reader of the issue would ask.
    let near = {
        let (host, guest) = (BigUint::from(host), BigUint::from(guest));
        let low = &host * 999_750_u32 / 1_000_000_u32;
        let high = &host * 1_000_250_u32 / 1_000_000_u32;
        guest >= low && guest <= high
    };
    prop_assert_eq!(within_tolerance(khz(guest), khz(host), tolerance), near);
    let cap = if freeze { Some(0) } else { cap };
    let (passed, ticks) = oracle_advance(&saved, &present, cap);
    let plan = match result {
        Err(Refusal::WithinTolerance { .. }) => {
            prop_assert!(near && guest != host);
            return Ok(());
        }
        Err(Refusal::RateBelowHost { .. }) => {
            prop_assert!(!scaling && guest < host && !near);
            return Ok(());
        }
        Err(Refusal::WouldCatchUp { .. }) => {
            prop_assert!(!scaling && pushed && guest > host && !near);
            return Ok(());
        }
        Err(Refusal::RateAboveHost { .. }) => {
            prop_assert!(!scaling && !pushed && guest > host && !near);
            return Ok(());
        }
        Err(Refusal::ClockBehind { by }) => {
            prop_assert!(!freeze && now < real);
            prop_assert_eq!(by.get(), real - now);
            return Ok(());
        }
        Err(Refusal::TooLong { .. }) => {
            prop_assert!(ticks >= two_64());
            return Ok(());
        }
        Err(Refusal::KvmclockOverflow { .. }) => {
            prop_assert!(big(kvmclock) + passed >= two_64());
            return Ok(());
        }
        Err(Refusal::Ratio(_)) => {
            prop_assert!(scaling && !near);
            let ratio = (BigUint::from(guest) << fraction) / host;
            let max = (BigUint::from(1_u8) << F::RATIO_BITS) - 1_u8;
            prop_assert!(ratio == big(0) || ratio >= max);
            return Ok(());
        }
        Err(Refusal::NoOffset) => return Err(TestCaseError::fail("offsets are there")),
        Ok(plan) => plan,
    };
    prop_assert!(guest == host || (scaling && !near));
    prop_assert!(freeze || now >= real);

    // The ratio by KVM's floor, the clock by the recipe, modulo 2^64.
    let ratio = if guest == host {
        prop_assert_eq!(plan.rate, RateOutcome::Same);
        BigUint::from(1_u8) << fraction
    } else {
        (BigUint::from(guest) << fraction) / host
    };
    prop_assert_eq!(big(plan.transform.ratio.bits()), ratio.clone());
    let tsc = (big(guest_tsc) + &ticks) % two_64();
    prop_assert_eq!(big(plan.guest_tsc.get()), tsc.clone());
    let scaled = (big(host_tsc) * ratio) >> fraction;
    let offset = (tsc.clone() + two_64() * (&scaled / two_64() + 1_u8) - scaled) % two_64();
    prop_assert_eq!(big(plan.transform.offset.get()), offset);
    prop_assert_eq!(plan.transform.guest_at(present.host_tsc), plan.guest_tsc);
    prop_assert_eq!(big(plan.kvmclock.get()), big(kvmclock) + &passed);
    let done = plan.adjustments;
    prop_assert_eq!(big(done.ticks.get()), ticks.clone());
    prop_assert_eq!(big(done.advanced.get()), passed);
    prop_assert_eq!(
        done.advanced.get() + done.withheld.get(),
        now.saturating_sub(real)
    );

    // TSC and kvmclock agree: ticks are the advance to within one tick.
    let exact = big(done.advanced.get()) * guest;
    prop_assert!(&ticks * 1_000_000_u32 <= exact);
    prop_assert!((ticks + 1_u8) * 1_000_000_u32 > exact);

    // A timer set for each interesting value.
    for register in [
        0,
        1,
        guest_tsc,
        guest_tsc.wrapping_add(done.ticks.get()),
        u64::MAX,
        host_tsc,
    ] {
        let fires_at = big(register);
        let (then, now) = (big(guest_tsc), big(guest_tsc) + done.ticks.get());
        let overdue = fires_at <= then || fires_at <= now;
        match plan.deadline(GuestTsc::new(register)) {
            Deadline::Disarmed => prop_assert_eq!(register, 0),
            Deadline::Armed { write, remaining } => {
                prop_assert!(register != 0 && !overdue);
                prop_assert_eq!(write.get(), register);
                prop_assert_eq!(now + remaining.get(), fires_at);
            }
            Deadline::Overdue { write, .. } => {
                prop_assert!(register != 0 && overdue);
                prop_assert!(write.get() != 0);
                prop_assert!(write.get() <= plan.guest_tsc.get().max(1));
            }
        }
    }
    Ok(())
}

#[test]
fn unify_of_few_readings_is_the_latest() {
    const LAST: u64 = u64::MAX;
    // (readings, the latest, how far the last one is taken)
    let rows: [(&[u64], u64, u64); 6] = [
        (&[7], 7, 0),
        (&[7, 7, 7], 7, 0),
        (&[10, 30, 20], 30, 20),
        // Across the wrap: 2^64 - 1 is 3 before 2.
        (&[LAST, 2], 2, 3),
        (&[2, LAST, 0], 2, 3),
        // Half the circle less one.
        (&[0, (1 << 63) - 1], (1 << 63) - 1, (1 << 63) - 1),
    ];
    for (readings, latest, spread) in rows {
        let readings: Vec<_> = readings.iter().copied().map(GuestTsc::new).collect();
        let unified = unify(&readings).unwrap();
        assert_eq!(
            (unified.guest_tsc.get(), unified.spread.get()),
            (latest, spread),
            "{readings:?}"
        );
    }
    assert_eq!(unify(&[]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn plan_on_vmx_matches_the_oracle(
        rates in rates(),
        saved in saved(),
        present in (any::<u64>(), 0_u64..1 << 62, prop::option::of(0_u64..1 << 50)),
        flags in any::<(bool, bool, bool)>(),
    ) {
        check::<Vmx>(rates, saved, present, flags, 48)?;
    }

    #[test]
    fn plan_on_svm_matches_the_oracle(
        rates in rates(),
        saved in saved(),
        present in (any::<u64>(), 0_u64..1 << 62, prop::option::of(0_u64..1 << 50)),
        flags in any::<(bool, bool, bool)>(),
    ) {
        check::<Svm>(rates, saved, present, flags, 32)?;
    }

    /// Readings on an arc of less than half the circle: the latest is the one that is ahead of all.
    #[test]
    fn unify_matches_the_oracle(
        base in any::<u64>(),
        ahead in prop::collection::vec(
            prop_oneof![0_u64..1 << 63, 0_u64..3, (1_u64 << 63) - 3..1 << 63],
            1..40,
        ),
    ) {
        let readings: Vec<_> = (ahead.iter())
            .map(|ahead| GuestTsc::new(((big(base) + *ahead) % two_64()).try_into().unwrap()))
            .collect();
        let (first, last) = (ahead.iter().min().unwrap(), ahead.iter().max().unwrap());
        let unified = unify(&readings).unwrap();
        prop_assert_eq!(big(unified.guest_tsc.get()), (big(base) + *last) % two_64());
        prop_assert_eq!(unified.spread.get(), last - first);
    }

    /// A guest so much earlier: its TSC less the whole ticks of that time, and both clocks less the time.
    #[test]
    fn earlier_clocks_match_the_oracle(
        rate in rate(),
        (guest_tsc, kvmclock, real) in saved(),
        by in prop_oneof![any::<u64>(), 0_u64..1 << 62, 0_u64..1 << 40],
        error in any::<u64>(),
    ) {
        let saved = saved_at(rate, (guest_tsc, kvmclock, real), error);
        let ticks = big(by) * rate / 1_000_000_u32;
        let earlier = saved.earlier(Nanos::new(by));
        // A TSC that is taken back by half the circle would be ahead.
        let possible = by <= kvmclock && by <= real && ticks < two_64() >> 1;
        prop_assert_eq!(earlier.is_some(), possible);
        if let Some(earlier) = earlier {
            prop_assert_eq!((big(earlier.guest_tsc.get()) + ticks) % two_64(), big(guest_tsc));
            prop_assert_eq!(earlier.kvmclock.get() + by, kvmclock);
            prop_assert_eq!(earlier.real.get() + by, real);
            prop_assert_eq!((earlier.guest_khz, earlier.pairing_error), (saved.guest_khz, saved.pairing_error));
        }
    }

    /// Later on the host's TSC; and a kvmclock held against where the plan has it by then.
    #[test]
    fn host_tsc_and_kvmclock_after_the_plan_match_the_oracle(
        (guest, host) in (rate(), rate()),
        (guest_tsc, kvmclock, real) in saved(),
        host_tsc in any::<u64>(),
        after in prop_oneof![any::<u64>(), 0_u64..1 << 40],
        counted in prop_oneof![any::<u64>(), 0_u64..1 << 40, (1_u64 << 63) - 2..=(1 << 63) + 2],
        clock in prop_oneof![any::<u64>(), 0_u64..1 << 62],
    ) {
        let saved = saved_at(guest, (guest_tsc, kvmclock, real), 0);
        let present = Present {
            host_tsc: HostTsc::new(host_tsc),
            real: Nanos::new(real),
            pairing_error: Nanos::ZERO,
        };
        let host_time = HostTime {
            khz: khz(host),
            offsets: true,
            scaling: true,
            catch_up: false,
            tolerance: Ppm::new(0).unwrap(),
        };
        let Ok(plan) = plan::<Vmx>(saved, present, host_time, TimePolicy::Freeze, Allow::default())
        else {
            // A ratio that the processor has not; it is not what this is about.
            return Ok(());
        };

        let ticks = big(after) * host / 1_000_000_u32;
        let later = plan.host_tsc_after(Nanos::new(after)).map(|tsc| big(tsc.get()));
        let expected = (ticks < two_64()).then(|| (big(host_tsc) + &ticks) % two_64());
        prop_assert_eq!(later, expected);

        let reading = HostTsc::new(((big(host_tsc) + counted) % two_64()).try_into().unwrap());
        let due = big(kvmclock) + big(counted) * 1_000_000_u32 / host;
        let error = plan.kvmclock_error(Nanos::new(clock), reading);
        // Half the circle on is before.
        let told = big(counted) < two_64() >> 1 && due < two_64();
        prop_assert_eq!(error.is_some(), told);
        if let Some(error) = error {
            let exact = BigInt::from(clock) - BigInt::from(due);
            let nearest = exact.clamp(BigInt::from(i64::MIN), BigInt::from(i64::MAX));
            prop_assert_eq!(BigInt::from(error.get()), nearest);
        }
    }

    /// Conversions: exact ones are the floor; quick ones the floor or one less.
    #[test]
    fn conversions_match_the_oracle(rate in rate(), x in prop_oneof![any::<u64>(), 0_u64..1 << 40]) {
        let fits = |x: BigUint| (x < two_64()).then_some(x);
        let ticks = fits(big(x) * rate / 1_000_000_u32);
        let nanos = fits(big(x) * 1_000_000_u32 / rate);
        let exact = ticks_exact_floor(Nanos::new(x), khz(rate));
        prop_assert_eq!(exact.map(|t| big(t.get())), ticks.clone());
        let exact = nanos_exact_floor(tsc::Ticks::new(x), khz(rate));
        prop_assert_eq!(exact.map(|n| big(n.get())), nanos.clone());
        let quick = TickRate::new(khz(rate));
        for (quick, exact) in [
            (quick.ticks_floor(Nanos::new(x)).map(tsc::Ticks::get), ticks),
            (quick.nanos_floor(tsc::Ticks::new(x)).map(Nanos::get), nanos),
        ] {
            if let Some(exact) = exact.filter(|exact| *exact < two_64() >> 1) {
                let quick = big(quick.unwrap());
                prop_assert!(quick <= exact && exact - quick <= big(1));
            }
        }
    }

    /// A clock under any sequence of lost and counted time, brought forward at each look: it never
    /// goes back, never passes the line, and with a slew never runs faster than its bound.
    #[test]
    fn catch_up_over_any_history_stays_within_its_bounds(
        rate in 1_000_u32..=6_000_000,
        start in any::<u64>(),
        history in prop::collection::vec((1_u64..10_000_000, 0_u64..=1_000), 1..60),
        ppm in 1_u32..=500_000,
        slews in any::<bool>(),
    ) {
        let line = Line::through(GuestTsc::new(start), Nanos::ZERO, TickRate::new(khz(rate)));
        let slew = Slew::new(Ppm::new(ppm).unwrap()).unwrap();
        let mode = if slews { CatchUp::Slew(slew) } else { CatchUp::Step };
        // The guest's clock in exact numbers of ticks since the anchor.
        let (mut now, mut clock) = (0_u64, BigInt::from(0));
        for (passed, permille) in history {
            let since = now;
            now += passed;
            // Of the time that passed the counter counted only so many thousandths.
            let counted = BigInt::from(passed) * rate * permille / 1_000_000_000_u64;
            clock += &counted;
            let reading = (BigInt::from(start) + &clock) % BigInt::from(two_64());
            let reading = GuestTsc::new(u64::try_from(reading).unwrap());
            let by = mode.forward(&line, reading, Nanos::new(now), Nanos::new(since));
            let by = BigInt::from(by.map_or(0, tsc::TscDelta::get));
            prop_assert!(by >= BigInt::from(0));
            if slews {
                let bound = BigInt::from(passed) * rate * ppm;
                prop_assert!(&by * 1_000_000_000_000_u64 <= bound);
            }
            clock += by;
            let truth = BigInt::from(now) * rate;
            prop_assert!(&clock * 1_000_000 <= truth, "ahead of the line");
            if !slews {
                // All is given, to within two ticks of the line's rounding.
                prop_assert!((&clock + 2) * 1_000_000 > truth, "behind the line");
            }
        }
    }
}
