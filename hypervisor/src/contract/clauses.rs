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

type Clause<F> = fn(&F, Effort) -> Result<Finding, ProbeError>;

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
        |fixture, _| form(fixture),
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::claimed_as_measured(&mut probe, one)
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::moved_by(&mut probe, one, FAR)
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::moved_by(&mut probe, one, FAR.wrapping_neg())
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::across_the_sign(&mut probe, one)
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::adjusted(&mut probe, one, NEAR)
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 2)?;
            offset::shared(&mut probe, one, FAR)
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::kept(&mut probe, one, FAR)
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            offset::register(&mut probe, one, FAR)
        },
        |fixture, _| {
            let (mut probe, one) = fresh(fixture, 1)?;
            // Forward: a young guest's clock moved back beyond 0 would not be near.
            offset::register(&mut probe, one, NEAR.wrapping_neg())
        },
        |fixture, effort| rate::asked(fixture, effort, Scope::Vcpu, Some),
        |fixture, effort| rate::asked(fixture, effort, Scope::Vcpu, part(1, 2)),
        |fixture, effort| rate::asked(fixture, effort, Scope::Vcpu, part(999, 1_000)),
        |fixture, effort| rate::asked(fixture, effort, Scope::Vcpu, part(17, 10)),
        |fixture, effort| rate::asked(fixture, effort, Scope::Default, part(17, 10)),
        |fixture, effort| rate::asked(fixture, effort, Scope::Vcpu, part(1_000_150, 1_000_000)),
        |fixture, _| rate::with_offset(fixture, part(17, 10)),
    ]
}

/// Checks the clauses that `wanted` wants, telling each line as it is found.
pub fn check<F: Fixture>(
    fixture: &F,
    effort: Effort,
    wanted: impl Fn(&str) -> bool,
    mut tell: impl FnMut(&Line),
) -> Vec<Line> {
    CLAUSES
        .into_iter()
        .zip(clauses::<F>())
        .filter(|(name, _)| wanted(name))
        .map(|(name, clause)| {
            let finding = clause(fixture, effort)
                .unwrap_or_else(|error| Finding::new(Kind::NotPossible, error.chain()));
            let line = Line {
                clause: name,
                finding,
            };
            tell(&line);
            line
        })
        .collect()
}
