//! The clauses by name, in the order in which they are checked.

use tsc::{Khz, TscDelta};

use super::rate::{self, Scope};
use super::{Effort, Finding, Fixture, Kind, Line, Probe, ProbeError, offset};
use crate::tsc_control::{TscOffsetControl, Vendor, VendorRatio};
use tsc::VcpuId;

/// About 2^40 ticks: minutes, so that no heuristic of a second comes near.
const FAR: TscDelta = TscDelta::new(0x100_1234_5678);
/// A few milliseconds: what a correction of a clock looks like.
const NEAR: TscDelta = TscDelta::new(-12_345_678);

/// How a clause is checked.
enum Clause<F> {
    /// By itself.
    Alone(fn(&F) -> Result<Finding, ProbeError>),
    /// Such a part of the host's rate, over the same time as the other rates.
    Rate(Scope, u64, u64),
}

/// `host` x `numerator` / `denominator`.
fn part(numerator: u64, denominator: u64) -> impl Fn(Khz) -> Option<Khz> {
    move |host| {
        let khz = u64::from(host.get()) * numerator / denominator;
        Khz::new(u32::try_from(khz).ok()?)
    }
}

fn fresh<F: Fixture>(fixture: &F, vcpus: u32) -> Result<(F::Probe, VendorRatio), ProbeError> {
    let mut probe = fixture.build(vcpus, None)?;
    let support = probe.control(VcpuId::new(0))?.tsc_support();
    Ok((probe, VendorRatio::one(support.vendor)))
}

fn form<F: Fixture>(fixture: &F) -> Result<Finding, ProbeError> {
    let (mut probe, one) = fresh(fixture, 1)?;
    let control = probe.control(VcpuId::new(0))?;
    let support = control.tsc_support();
    let rate = control.rate()?.claim();
    let says = format!(
        "{}: {} fraction bits, {} max; {rate}; scaling {}, default rate {}, offsets by {:?}, ratio {}",
        support.vendor,
        support.vendor.fraction_bits(),
        support.vendor.max_ratio_bits(),
        said(support.scaling),
        said(support.default_rate),
        support.offset,
        if support.ratio {
            "readable"
        } else {
            "not readable"
        },
    );
    let manual = match support.vendor {
        Vendor::Intel => 1 << 48,
        Vendor::Amd => 1 << 32,
    };
    if support.ratio && control.ratio()?.claim() != one || one.bits() != manual {
        return Ok(Finding::new(
            Kind::Violated,
            format_args!("{says}; a fresh vCPU's ratio is not 1"),
        ));
    }
    Ok(Finding::new(Kind::Holds, says))
}

const fn said(claim: bool) -> &'static str {
    if claim { "claimed" } else { "not claimed" }
}

/// The clauses' names.
pub const CLAUSES: [&str; 17] = [
    "form",
    "offset-fresh",
    "offset-forward",
    "offset-back",
    "offset-sign",
    "offset-adjusted",
    "offset-shared",
    "offset-kept",
    "register-far",
    "register-near",
    "rate-same",
    "rate-half",
    "rate-0.999",
    "rate-1.7",
    "rate-default",
    "rate-tolerated",
    "offset-at-rate",
];

fn clauses<F: Fixture>() -> [Clause<F>; CLAUSES.len()] {
    [
        Clause::Alone(form),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::claimed_as_measured(&mut probe, one)
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::moved_by(&mut probe, one, FAR)
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::moved_by(&mut probe, one, FAR.wrapping_neg())
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::across_the_sign(&mut probe, one)
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::adjusted(&mut probe, one, NEAR)
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 2)?;
            offset::shared(&mut probe, one, FAR)
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::kept(&mut probe, one, FAR)
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::register(&mut probe, one, FAR)
        }),
        Clause::Alone(|fixture| {
            let (mut probe, one) = fresh(fixture, 1)?;
            // Forward: a young guest's clock moved back beyond 0 would not be near.
            offset::register(&mut probe, one, NEAR.wrapping_neg())
        }),
        Clause::Rate(Scope::Vcpu, 1, 1),
        Clause::Rate(Scope::Vcpu, 1, 2),
        Clause::Rate(Scope::Vcpu, 999, 1_000),
        Clause::Rate(Scope::Vcpu, 17, 10),
        Clause::Rate(Scope::Default, 17, 10),
        Clause::Rate(Scope::Vcpu, 1_000_150, 1_000_000),
        Clause::Alone(|fixture| rate::with_offset(fixture, part(17, 10))),
    ]
}

/// Checks the clauses that `wanted` wants, telling each line as it is found.
///
/// The rates are asked for one after the other, each of a VM of its own, and then measured over one
/// and the same time.
pub fn check<F: Fixture>(
    fixture: &F,
    effort: Effort,
    wanted: impl Fn(&str) -> bool,
    mut tell: impl FnMut(&Line),
) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut note = |clause, found: Result<Finding, ProbeError>| {
        let finding = found.unwrap_or_else(|error| Finding::new(Kind::NotPossible, error.chain()));
        let line = Line { clause, finding };
        tell(&line);
        lines.push(line);
    };
    let mut rates = (Vec::new(), Vec::new());
    let measure = |(names, begun): (Vec<&'static str>, _)| {
        let findings = rate::measure_together(fixture, effort, begun);
        names.into_iter().zip(findings)
    };
    for (name, clause) in CLAUSES.into_iter().zip(clauses::<F>()) {
        if !wanted(name) {
            continue;
        }
        match clause {
            Clause::Rate(scope, numerator, denominator) => {
                rates.0.push(name);
                let rate = part(numerator, denominator);
                rates.1.push(rate::begin(fixture, scope, rate));
            }
            Clause::Alone(clause) => {
                for (name, found) in measure(std::mem::take(&mut rates)) {
                    note(name, found);
                }
                note(name, clause(fixture));
            }
        }
    }
    for (name, found) in measure(rates) {
        note(name, found);
    }
    lines
}
