//! `keeptime doctor`: what this host can do for guests' time, measured.
//!
//! Three kinds of knowledge, kept apart: what the processor, the kernel and KVM **say**; what is
//! **measured** on the host, with bounds that the readings prove (the TSC's rate, the skew between
//! CPUs); and what is **seen in a guest** after an offset or a rate was asked for. What follows for
//! the user is decided by [`tsc::assess`] from the second and third kinds, and from the first only
//! where it speaks against the host. Whatever does not need `/dev/kvm` works without it.
//!
//! # `--json`
//!
//! One object. Keys are not renamed or dropped without a new `format`; numbers have their unit at the
//! end of the key. A part that could not be had is an object with the one key `error`.
//!
//! | key | value |
//! | --- | --- |
//! | `format` | 1 |
//! | `processor` | `vendor`, `model`, `hypervisor` (null when this host is no guest), `invariant_tsc`, `rdtscp` |
//! | `kernel` | `clocksource`, `available_clocksources`, `kvm_tsc_tolerance_ppm`, `landlock_abi` (null without) |
//! | `tsc_rate.measured` | `at_least_hz`, `at_most_hz`, `over_ns` |
//! | `tsc_rate.claims[]` | `source`, `khz`, `measured_deviation_at_least_ppb`, `…_at_most_ppb` |
//! | `cpus` | `measured[]`, `not_measured_count`, `exchanged_pairs`, `not_reached_pairs`, `rounds`, `domain_bound_ns`, `domain_bound_ticks`, `domains[][]`, `agree` (`proven`, `refuted`, `unproven`), `problem` |
//! | `cpus.skews[]` | `a`, `b`, bounds on TSC(b) − TSC(a): `at_least_ticks`, `at_most_ticks`, `at_least_ns`, `at_most_ns` |
//! | `cpus.failed_pairs[]` | `a`, `b`, `error` |
//! | `kvm` | `tsc_rate_khz`, `capabilities[]` of `name`, `present`, `purpose` |
//! | `effects` | `host_rate_khz`, `offset`, `rates[]` |
//! | `effects.offset` | `asked`, `read_back` (register values), `effect`, `after_a_move` (null where no other CPU is proven to agree with the first one), each with `name` (`in-force`, `ignored`, `moved-by-kernel`, `other`, `unsteady`, `undecided`), `error_at_least_ticks`, `error_at_most_ticks` |
//! | `effects.rates[]` | `name`, `within_tolerance`, `asked_khz`, `effect` (`in-force`, `ignored`, `caught-up`, `across-entries-only`, `neither`, `undecided`, `refused`, `failed`), `reason`, `read_back`, `from_host_at_least_ppb`, `from_host_at_most_ppb`, `error_at_least_ppb`, `error_at_most_ppb` (against the rate asked for) |
//! | `facts` | `offset`, `scaling`, `catch_up` (of faster guests, at entries) (`in-force`, `no-effect`, `overridden`, `unknown`), `single_domain` |
//! | `verdicts[]` | `policy`, `verdict` (`kept`, `limited`, `refused`), `reason` |
//! | `required`, `missing` | names given to `--require`, and those that are not met |
//! | `took_ns` | how long it took |

mod domains;
mod effects;
mod guest;
mod json;
mod kvm;
mod probe;
mod progress;
mod report;
mod require;
mod text;
mod trial;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use clap::Args;
use hypervisor::kvm::Kvm;
use tsc::skew::SkewBounds;
use tsc::{CpuId, Nanos, Ppm, Ticks};

use crate::assessment::{cpus, exchange, platform, rate, skew};
use crate::error::one_line;
use crate::output::{self, OutputError};
use crate::seccomp;
use domains::DomainsError;
use effects::Effects;
use kvm::{KvmClaims, KvmError};
use platform::{Platform, Sources};
use probe::HostFixture;
use progress::Progress;
use rate::{Measured, RateMeter};
use report::{Parts, Report};
use require::Requirement;
use skew::{Budget, Exchanges};
pub(crate) use trial::OnKvm;
#[cfg(test)]
pub(crate) use trial::OnModel;

/// What to report, and what a script requires.
#[derive(Debug, Args)]
#[command(after_help = require::help())]
pub(crate) struct Doctor {
    /// Print JSON, for scripts, instead of the text
    #[arg(long)]
    json: bool,
    /// End with status 1 unless the host has all of these; see below
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = require::parse)]
    require: Vec<Requirement>,
    /// Write the sets of CPUs whose TSCs agree into a file, for the jailer's --cpuset-tsc-domain
    #[arg(long, value_name = "FILE")]
    tsc_domains: Option<PathBuf>,
}

/// The report could not be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoctorError {
    /// It could not be printed.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The TSC domains could not be written.
    #[error(transparent)]
    Domains(#[from] DomainsError),
    /// The host lacks what was required.
    #[error("this host lacks what --require names: {}", names(.0))]
    Missing(Vec<&'static str>),
}

fn names(missing: &[&'static str]) -> String {
    missing.join(", ")
}

impl Doctor {
    /// Examines the host and prints the report.
    pub(crate) fn run(&self) -> Result<(), DoctorError> {
        let report = examine();
        output::print(&if self.json {
            json::render(&report, &self.require)
        } else {
            text::render(&report, &self.require)
        })?;
        if let Some(path) = &self.tsc_domains {
            domains::write(&report, path)?;
        }
        let missing = report.missing(&self.require);
        if missing.is_empty() {
            Ok(())
        } else {
            Err(DoctorError::Missing(
                missing.into_iter().map(Requirement::name).collect(),
            ))
        }
    }
}

/// Measures, in some milliseconds and with a throw-away guest, whether a guest's TSC follows the offset
/// that is written for it, also after its vCPU was on another CPU.
///
/// # Errors
/// In words what it does instead, or why that could not be measured.
pub(crate) fn offsets_take_effect() -> Result<(), String> {
    let allowed = cpus::allowed().map_err(|error| one_line(&error))?;
    let kvm = Kvm::open().map_err(|error| one_line(&error))?;
    let trial = on_the_first(&kvm, &allowed, |fixture| {
        effects::try_offset(fixture).map_err(|error| error.chain())
    })?;
    effects::all_in_force(&trial)
}

/// What is proven to be within this, and may be zero, is no skew: see [`skew`].
pub(crate) const DOMAIN_BOUND: Nanos = skew::BOUND;

/// Bounds on `b`'s counter less `a`'s, measured now; `None` when nothing could be.
pub(crate) fn skew_between(a: CpuId, b: CpuId) -> Option<SkewBounds> {
    exchange::exchange(a, b, Budget::DEFAULT.pair).ok()?.bounds
}

/// The CPUs that this thread may run on.
pub(crate) fn allowed_cpus() -> Vec<CpuId> {
    cpus::allowed().unwrap_or_default()
}

fn examine() -> Report {
    let started = Instant::now();
    let mut progress = Progress::start();
    let platform = Platform::read(&Sources {
        cpuid: &hypervisor::host::cpuid,
        root: Path::new("/"),
    });
    let allowed = cpus::allowed().map_err(|error| one_line(&error));
    let (rate, exchanges) = match &allowed {
        Ok(cpus) => measure_host(cpus, &mut progress),
        Err(reason) => (Err(reason.clone()), Err(reason.clone())),
    };
    let khz = rate.as_ref().ok().map(|m| m.rate.at_least.khz_floor());
    let skew = exchanges.map(|exchanges| skew::judge(exchanges, khz));
    let tolerance = platform.tolerance.unwrap_or(Ppm::KVM_TOLERANCE);
    let (kvm, effects) = match (Kvm::open().map_err(KvmError::from), &allowed) {
        (Err(error), _) => {
            let reason = one_line(&error);
            let effects = format!("no guest runs without KVM: {reason}");
            (Err(reason), Err(effects))
        }
        (Ok(kvm), Err(reason)) => (ask(&kvm), Err(reason.clone())),
        (Ok(kvm), Ok(cpus)) => (
            ask(&kvm),
            measure_guest(&kvm, cpus, tolerance, &mut progress),
        ),
    };
    Report::new(Parts {
        platform,
        landlock_abi: seccomp::landlock::kernels_abi(),
        rate,
        skew,
        kvm,
        effects,
        took: Nanos::new(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)),
    })
}

fn ask(kvm: &Kvm) -> Result<KvmClaims, String> {
    kvm::ask(kvm).map_err(|error| one_line(&error))
}

type Measurements = (Result<Measured, String>, Result<Exchanges, String>);

/// The rate of the first CPU's counter, while the skews are measured.
fn measure_host(cpus: &[CpuId], progress: &mut Progress) -> Measurements {
    let Some(&first) = cpus.first() else {
        let none = || "the kernel allows this process no CPU".to_owned();
        return (Err(none()), Err(none()));
    };
    let meter = RateMeter::start(first);
    let mut step = |index, of| {
        progress.step(|| format!("skew between CPUs, pair {index} of {of}"));
        true
    };
    let exchanges = skew::measure(cpus, Budget::DEFAULT, &mut step);
    let rate = meter
        .and_then(RateMeter::finish)
        .map_err(|error| one_line(&error))
        .and_then(|measured| {
            measured
                .ok_or_else(|| "the readings are too coarse, or the clock stood still".to_owned())
        });
    (rate, Ok(exchanges))
}

/// The effects in a guest.
fn measure_guest(
    kvm: &Kvm,
    allowed: &[CpuId],
    tolerance: Ppm,
    progress: &mut Progress,
) -> Result<Effects, String> {
    on_the_first(kvm, allowed, |fixture| {
        effects::measure(fixture, tolerance, progress).map_err(|error| error.chain())
    })
}

/// Runs `measure` on a thread of its own, which is kept on one CPU.
fn on_the_first<T: Send>(
    kvm: &Kvm,
    allowed: &[CpuId],
    measure: impl FnOnce(&HostFixture<'_>) -> Result<T, String> + Send,
) -> Result<T, String> {
    let Some(&home) = allowed.first() else {
        return Err("the kernel allows this process no CPU".to_owned());
    };
    let mut fixture = HostFixture {
        kvm,
        home,
        other: allowed.get(1).copied(),
        abroad: None,
    };
    thread::scope(|scope| {
        cpus::joined(scope.spawn(move || {
            if let Some(bound) = effects::ticks_of(&fixture, DOMAIN_BOUND) {
                fixture.abroad = one_that_agrees(home, allowed, bound, skew_between);
            }
            measure(&fixture)
        }))
    })
}

/// So many CPUs are asked for one that agrees with the first.
const CANDIDATES: usize = 8;

/// A CPU that a vCPU of `home` may visit: the skew is proven to be within `bound`, and may be none. A vCPU that came to
/// one whose TSC is behind would have the kernel give up the TSC of the whole host (`kvm_arch_vcpu_load` in
/// arch/x86/kvm/x86.c): too much for an examination.
fn one_that_agrees(
    home: CpuId,
    allowed: &[CpuId],
    bound: Ticks,
    skew: impl Fn(CpuId, CpuId) -> Option<SkewBounds>,
) -> Option<CpuId> {
    let others = allowed.iter().copied().filter(|cpu| *cpu != home);
    let agrees = |cpu: &CpuId| skew(home, *cpu).is_some_and(|bounds| bounds.agrees(bound));
    others.take(CANDIDATES).find(agrees)
}

#[cfg(test)]
mod tests {
    use tsc::TscDelta;

    use super::*;

    #[test]
    fn probe_visits_only_a_cpu_that_agrees_with_its_home() {
        let skew = |_, cpu: CpuId| {
            let exactly = |ticks| Some(SkewBounds::exactly(TscDelta::new(ticks)));
            match cpu.get() {
                1 => exactly(200_000),
                2 => exactly(-200_000),
                // As close as can be, and proven to be elsewhere.
                3 => exactly(500),
                4 => None,
                _ => SkewBounds::new(TscDelta::new(-200), TscDelta::new(300)).ok(),
            }
        };
        let chosen = |allowed: &[u32]| {
            let allowed: Vec<_> = allowed.iter().copied().map(CpuId::new).collect();
            let home = *allowed.first().expect("one");
            one_that_agrees(home, &allowed, Ticks::new(2_000), skew).map(CpuId::get)
        };
        assert_eq!(chosen(&[0]), None);
        assert_eq!(chosen(&[0, 1, 2, 3, 4]), None);
        assert_eq!(chosen(&[0, 1, 2, 3, 4, 5, 6]), Some(5));
        // Nobody is asked for ever.
        assert_eq!(chosen(&[0, 1, 11, 1, 1, 1, 1, 1, 1, 5]), Some(11));
        assert_eq!(chosen(&[0, 1, 1, 1, 1, 1, 1, 1, 1, 5]), None);
    }
}
