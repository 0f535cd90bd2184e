//! Plans for a pause, a snapshot or a move, against the recipe that KVM's documentation gives
//! (Documentation/virt/kvm/devices/vcpu.rst), with the ratio that it leaves out:
//!
//! ```text
//! tsc    = saved tsc + time told x guest's rate
//! offset = tsc - scale(host's tsc)
//! ```

use arbitrary::Arbitrary;
use tsc::plan::{
    Allow, Deadline, HostTime, Plan, Present, RateOutcome, Refusal, Saved, TimePolicy, plan, unify,
    within_tolerance,
};
use tsc::{GuestTsc, HostTsc, Khz, Nanos, Ppm, RatioFormat, Svm, Vmx};

use crate::input::{decode, khz, near};

/// 10^6 parts, as rates in kilohertz and times in nanoseconds meet.
const MILLION: u128 = 1_000_000;
const TWO_64: u128 = 1 << 64;

#[derive(Arbitrary, Debug)]
struct Restore {
    guest_tsc: u64,
    host_tsc: u64,
    guest: u32,
    host: u32,
    near: Option<i16>,
    kvmclock: u64,
    saved_real: u64,
    /// Real time goes on by this from then, or back.
    passed: i64,
    errors: (u32, u32),
    /// `None` freezes; the inner one is the cap.
    advance: Option<Option<u64>>,
    tolerance: u32,
    offsets: bool,
    scaling: bool,
    allow: (bool, bool, bool),
    register: u64,
    readings: Vec<u32>,
    /// Whether the host was seen to push a guest that is faster than it.
    catch_up: bool,
}

/// A guest, a host and a policy: a plan whose clocks are exact, or the refusal that fits.
pub fn tsc_plan(data: &[u8]) {
    let Some(mut input) = decode::<Restore>(data) else {
        return;
    };
    input.tolerance %= 1_000_001;
    check_plan::<Vmx>(&input, 48, TWO_64);
    check_plan::<Svm>(&input, 32, 1 << 40);
    check_unify(input.guest_tsc, &input.readings);
}

/// What is to be done about the rate, by the documentation of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    Same,
    Scaled(u128),
    Unscaled,
    CatchUp,
}

/// What a plan must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    rate: Rate,
    advanced: u64,
    ticks: u64,
}

/// The refusals, told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NoOffset,
    WithinTolerance,
    RateBelowHost,
    RateAboveHost,
    WouldCatchUp,
    Ratio,
    ClockBehind,
    TooLong,
    KvmclockOverflow,
}

fn why(refusal: &Refusal) -> Why {
    match refusal {
        Refusal::NoOffset => Why::NoOffset,
        Refusal::WithinTolerance { .. } => Why::WithinTolerance,
        Refusal::RateBelowHost { .. } => Why::RateBelowHost,
        Refusal::RateAboveHost { .. } => Why::RateAboveHost,
        Refusal::WouldCatchUp { .. } => Why::WouldCatchUp,
        Refusal::Ratio(_) => Why::Ratio,
        Refusal::ClockBehind { .. } => Why::ClockBehind,
        Refusal::TooLong { .. } => Why::TooLong,
        Refusal::KvmclockOverflow { .. } => Why::KvmclockOverflow,
    }
}

/// Whether KVM leaves the guest unscaled: thresholds rounded down, both included
/// (`adjust_tsc_khz`, arch/x86/kvm/x86.c).
fn is_near(guest: Khz, host: Khz, tolerance: u32) -> bool {
    let parts = |sign: i128| {
        let host = i128::from(host.get());
        // floor(host + sign x host x tolerance / 10^6)
        (host * 1_000_000 + sign * host * i128::from(tolerance)).div_euclid(1_000_000)
    };
    (parts(-1)..=parts(1)).contains(&i128::from(guest.get()))
}

fn rate(input: &Restore, guest: Khz, host: Khz, fraction: u32, limit: u128) -> Result<Rate, Why> {
    let (unscaled, catch_up, _) = input.allow;
    if guest == host {
        return Ok(Rate::Same);
    }
    if is_near(guest, host, input.tolerance) {
        return if unscaled {
            Ok(Rate::Unscaled)
        } else {
            Err(Why::WithinTolerance)
        };
    }
    if input.scaling {
        let ratio = (u128::from(guest.get()) << fraction) / u128::from(host.get());
        // KVM refuses 0 and the largest register value.
        return if ratio > 0 && ratio < limit - 1 {
            Ok(Rate::Scaled(ratio))
        } else {
            Err(Why::Ratio)
        };
    }
    match (guest < host, catch_up) {
        (true, _) => Err(Why::RateBelowHost),
        (false, _) if !input.catch_up => Err(Why::RateAboveHost),
        (false, true) => Ok(Rate::CatchUp),
        (false, false) => Err(Why::WouldCatchUp),
    }
}

fn expected(
    input: &Restore,
    (guest, host): (Khz, Khz),
    now: u64,
    (fraction, limit): (u32, u128),
) -> Result<Expected, Why> {
    if !input.offsets {
        return Err(Why::NoOffset);
    }
    let rate = rate(input, guest, host, fraction, limit)?;
    let passed = i128::from(now) - i128::from(input.saved_real);
    let advanced = match input.advance {
        None => 0,
        Some(cap) => {
            let errors = i128::from(input.errors.0) + i128::from(input.errors.1);
            if passed < -errors && !input.allow.2 {
                return Err(Why::ClockBehind);
            }
            let told = passed.max(0);
            cap.map_or(told, |cap| told.min(cap.into()))
        }
    };
    let advanced = u64::try_from(advanced).expect("at most the time since");
    let ticks = u128::from(advanced) * u128::from(guest.get()) / MILLION;
    let ticks = u64::try_from(ticks).map_err(|_| Why::TooLong)?;
    if u128::from(input.kvmclock) + u128::from(advanced) >= TWO_64 {
        return Err(Why::KvmclockOverflow);
    }
    Ok(Expected {
        rate,
        advanced,
        ticks,
    })
}

fn check_plan<F: RatioFormat>(input: &Restore, fraction: u32, limit: u128) {
    let host = khz(input.host);
    let guest = input.near.map_or(khz(input.guest), |ppm| near(host, ppm));
    let now = input.saved_real.saturating_add_signed(input.passed);
    let tolerance = Ppm::new(input.tolerance).expect("at most the whole");
    let is_unscaled = within_tolerance(guest, host, tolerance);
    assert_eq!(is_unscaled, is_near(guest, host, input.tolerance));

    let saved = Saved {
        guest_tsc: GuestTsc::new(input.guest_tsc),
        guest_khz: guest,
        kvmclock: Nanos::new(input.kvmclock),
        real: Nanos::new(input.saved_real),
        pairing_error: Nanos::new(input.errors.0.into()),
    };
    let present = Present {
        host_tsc: HostTsc::new(input.host_tsc),
        real: Nanos::new(now),
        pairing_error: Nanos::new(input.errors.1.into()),
    };
    let host_time = HostTime {
        khz: host,
        offsets: input.offsets,
        scaling: input.scaling,
        catch_up: input.catch_up,
        tolerance,
    };
    let policy = match input.advance {
        None => TimePolicy::Freeze,
        Some(cap) => TimePolicy::Advance {
            cap: cap.map(Nanos::new),
        },
    };
    let allow = Allow {
        unscaled: input.allow.0,
        catch_up: input.allow.1,
        clock_behind: input.allow.2,
    };
    let got = plan::<F>(saved, present, host_time, policy, allow);
    let expected = expected(input, (guest, host), now, (fraction, limit));
    match (got, expected) {
        (Err(refusal), expected) => {
            assert!(!refusal.to_string().contains('\n'));
            assert_eq!(Err(why(&refusal)), expected);
            if let Refusal::ClockBehind { by } = refusal {
                assert_eq!(by.get(), input.saved_real - now);
            }
        }
        (Ok(plan), Err(why)) => panic!("{why:?} for {plan:?}"),
        (Ok(plan), Ok(expected)) => {
            check_clocks(&plan, &expected, input, fraction);
            check_rate(&plan, &expected, guest, host, fraction);
            check_adjustments(&plan, &expected, input, now);
            for register in [0, 1, input.register, input.guest_tsc, plan.guest_tsc.get()] {
                check_deadline(&plan, register, input.guest_tsc, expected.ticks);
            }
        }
    }
}

/// Ratio, offset, TSC and kvmclock: exact.
fn check_clocks<F: RatioFormat>(
    plan: &Plan<F>,
    expected: &Expected,
    input: &Restore,
    fraction: u32,
) {
    let ratio = match expected.rate {
        Rate::Scaled(ratio) => ratio,
        Rate::Same | Rate::Unscaled | Rate::CatchUp => 1 << fraction,
    };
    assert_eq!(u128::from(plan.transform.ratio.bits()), ratio);
    let tsc = (u128::from(input.guest_tsc) + u128::from(expected.ticks)) % TWO_64;
    assert_eq!(u128::from(plan.guest_tsc.get()), tsc);
    // What the processor will show: ((host x ratio) >> N) + offset, modulo 2^64.
    let scaled = (u128::from(input.host_tsc) * ratio) >> fraction;
    let shown = (scaled + u128::from(plan.transform.offset.get())) % TWO_64;
    assert_eq!(shown, tsc);
    let kvmclock = u128::from(plan.kvmclock.get());
    assert_eq!(
        kvmclock,
        u128::from(input.kvmclock) + u128::from(expected.advanced)
    );
}

/// How the rate is kept, and an error that is the true one, rounded away from zero.
fn check_rate<F: RatioFormat>(
    plan: &Plan<F>,
    expected: &Expected,
    guest: Khz,
    host: Khz,
    fraction: u32,
) {
    let (kept, error) = match plan.rate {
        RateOutcome::Same => (Rate::Same, None),
        RateOutcome::Scaled { error } => (
            Rate::Scaled(plan.transform.ratio.bits().into()),
            Some(error),
        ),
        RateOutcome::Unscaled { error } => (Rate::Unscaled, Some(error)),
        RateOutcome::CatchUp { error } => (Rate::CatchUp, Some(error)),
    };
    assert_eq!(kept, expected.rate);
    let Some(error) = error else { return };
    let asked = i128::from(guest.get()) << fraction;
    let true_rate = i128::from(host.get()) * i128::from(plan.transform.ratio.bits());
    let parts = (true_rate - asked) * 1_000_000_000;
    let error = i128::from(error.get());
    // Away from zero by less than one billionth.
    let over = (asked * error - parts) * parts.signum();
    assert!(
        over >= 0 && over < asked,
        "{error} for {true_rate} / {asked}"
    );
}

fn check_adjustments<F: RatioFormat>(
    plan: &Plan<F>,
    expected: &Expected,
    input: &Restore,
    now: u64,
) {
    let done = plan.adjustments;
    assert_eq!(done.advanced.get(), expected.advanced);
    assert_eq!(done.ticks.get(), expected.ticks);
    assert_eq!(
        i128::from(done.elapsed.get()) - i128::from(done.clock_behind.get()),
        i128::from(now) - i128::from(input.saved_real)
    );
    assert!(done.elapsed == Nanos::ZERO || done.clock_behind == Nanos::ZERO);
    assert_eq!(
        done.advanced.get() + done.withheld.get(),
        done.elapsed.get()
    );
    let errors = u64::from(input.errors.0) + u64::from(input.errors.1);
    assert_eq!(done.uncertainty.get(), errors);
}

/// A deadline timer fires when the guest's TSC, counted without an end, reaches its register.
fn check_deadline<F: RatioFormat>(plan: &Plan<F>, register: u64, saved: u64, ticks: u64) {
    let reached = u128::from(saved) + u128::from(ticks);
    match plan.deadline(GuestTsc::new(register)) {
        Deadline::Disarmed => assert_eq!(register, 0),
        Deadline::Armed { write, remaining } => {
            assert_eq!(write.get(), register);
            assert_eq!(u128::from(register), reached + u128::from(remaining.get()));
            assert!(register != 0 && remaining.get() != 0);
        }
        Deadline::Overdue { write, by } => {
            assert!(register != 0 && write.get() != 0);
            let since = (reached - u128::from(register)) % TWO_64;
            assert_eq!(u128::from(by.get()), since);
            // What is written is due at the TSC that the guest goes on from, or one tick later,
            // where 0 would disarm.
            assert!(write.get() <= plan.guest_tsc.get().max(1));
        }
    }
}

/// vCPUs' readings near each other: the latest, and how far the last is behind.
fn check_unify(base: u64, ahead: &[u32]) {
    let readings: Vec<GuestTsc> = ahead
        .iter()
        .take(64)
        .map(|ahead| GuestTsc::new(base.wrapping_add(u64::from(*ahead))))
        .collect();
    let ahead = ahead.iter().take(64);
    let (Some(least), Some(most)) = (ahead.clone().min(), ahead.max()) else {
        assert_eq!(unify(&readings), None);
        return;
    };
    let unified = unify(&readings).expect("there are vCPUs");
    assert_eq!(unified.guest_tsc.get(), base.wrapping_add(u64::from(*most)));
    assert_eq!(unified.spread.get(), u64::from(most - least));
}
