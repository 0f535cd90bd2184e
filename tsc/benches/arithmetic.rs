//! What the arithmetic costs, beside the physical limit: a bare 64 x 64 -> 128 multiplication and a
//! shift.
#![allow(
    missing_docs,
    reason = "the macros of the harness define undocumented items"
)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tsc::plan::{Allow, HostTime, Plan, Present, Saved, TimePolicy, plan};
use tsc::policy::{CatchUp, Entry, Fault, Left, Line, Load, Policy, Targeted, TargetedConfig};
use tsc::{
    CpuId, GuestTsc, HostTsc, Khz, Nanos, Ppm, TickRate, Transform, TscOffset, TscRatio, Vmx,
};

/// Readings a loop of scaling goes through, so that the harness's own cost is spread thin.
const READINGS: u64 = 1024;

fn khz(khz: u32) -> Khz {
    Khz::new(khz).expect("a rate")
}

fn scaling(c: &mut Criterion) {
    let mut group = c.benchmark_group("scale-1024");
    let bits = 0x1_5555_5555_5555_u64;
    let ratio = TscRatio::<Vmx>::from_bits(bits).expect("a ratio");
    let clock = Transform {
        ratio,
        offset: TscOffset::new(0x1234_5678),
    };
    group.bench_function("bare-multiply-and-shift", |b| {
        b.iter(|| {
            let bits = black_box(bits);
            (0..READINGS).fold(0_u64, |sum, i| {
                let host = black_box(0x9999_8888_7777_0000 + i);
                let product = u128::from(host) * u128::from(bits);
                sum ^ u64::try_from((product >> 48) & u128::from(u64::MAX)).unwrap_or(0)
            })
        });
    });
    group.bench_function("scale-floor", |b| {
        b.iter(|| {
            let ratio = black_box(ratio);
            (0..READINGS).fold(0_u64, |sum, i| {
                sum ^ ratio
                    .scale_floor(HostTsc::new(black_box(0x9999_8888_7777_0000 + i)))
                    .get()
            })
        });
    });
    group.bench_function("guest-at", |b| {
        b.iter(|| {
            let clock = black_box(clock);
            (0..READINGS).fold(0_u64, |sum, i| {
                sum ^ clock
                    .guest_at(HostTsc::new(black_box(0x9999_8888_7777_0000 + i)))
                    .get()
            })
        });
    });
    group.finish();
}

fn targeted() -> Targeted {
    Targeted::new(TargetedConfig {
        line: Line::through(GuestTsc::new(0), Nanos::ZERO, TickRate::new(khz(2_400_000))),
        catch_up: CatchUp::Step,
        clock_error: Nanos::new(70),
        rate_tolerance: Ppm::new(500).expect("a tolerance"),
        recheck: Nanos::new(50_000),
    })
}

fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("decision");
    let (cpu, other) = (CpuId::new(1), CpuId::new(0));
    let left = Left {
        cpu: other,
        tsc: HostTsc::new(2_400_000),
        at: Nanos::new(1_000_000),
        tsc_at_move: None,
    };
    let fault = Fault::default();
    let load = Load {
        cpu,
        tsc: HostTsc::new(2_640_000),
        at: Nanos::new(1_100_000),
        left: Some(left),
        offset: TscOffset::ZERO,
        host_unstable: false,
        fault,
    };
    let behind = Load {
        tsc: HostTsc::new(2_500_000),
        fault: Fault {
            lags: true,
            pair: true,
            skew: None,
        },
        ..load
    };
    let entry = Entry {
        cpu,
        tsc: HostTsc::new(2_500_000),
        at: Nanos::new(1_100_000),
        offset: TscOffset::ZERO,
        requested: false,
        fault: behind.fault,
    };
    group.bench_function("load-on-a-trusted-cpu", |b| {
        b.iter(|| targeted().load(black_box(&load)));
    });
    group.bench_function("load-that-catches-up", |b| {
        b.iter(|| targeted().load(black_box(&behind)));
    });
    let policy = targeted();
    group.bench_function("entry-that-catches-up", |b| {
        b.iter(|| black_box(policy).entry(black_box(&entry)));
    });
    group.finish();
}

fn plans(c: &mut Criterion) {
    let saved = Saved {
        guest_tsc: GuestTsc::new(987_654_321_000),
        guest_khz: khz(2_399_987),
        kvmclock: Nanos::new(411_522_633_750),
        real: Nanos::new(1_790_000_000_000_000_000),
        pairing_error: Nanos::new(120),
    };
    let present = Present {
        host_tsc: HostTsc::new(55_555_555_555),
        real: Nanos::new(1_790_000_064_000_000_000),
        pairing_error: Nanos::new(120),
    };
    let host = HostTime {
        khz: khz(3_500_000),
        offsets: true,
        scaling: true,
        catch_up: false,
        tolerance: Ppm::KVM_TOLERANCE,
    };
    let deadlines: Vec<_> = (0..32)
        .map(|vcpu| GuestTsc::new(987_654_321_000 + vcpu * 10_000_000_000))
        .collect();
    c.bench_function("plan-for-32-vcpus", |b| {
        b.iter(|| {
            let advance = TimePolicy::Advance { cap: None };
            let plan: Plan<Vmx> = plan(
                black_box(saved),
                black_box(present),
                host,
                advance,
                Allow::default(),
            )
            .expect("a plan");
            for &deadline in &deadlines {
                black_box(plan.deadline(black_box(deadline)));
            }
            plan
        });
    });
}

criterion_group!(benches, scaling, decisions, plans);
criterion_main!(benches);
