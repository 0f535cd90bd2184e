//! Guests' clocks on real KVM: the contract suite of TSC control, and `keeptime doctor`.
//!
//! Both measure with a guest that reads its TSC between two readings of the host's, so that a busy machine
//! widens the bounds of a reading and never makes them false. Both repeat their readings until the bounds
//! are narrow enough, a bounded number of times, and say so when they never were: then the scenario fails
//! for what could not be measured.
//!
//! | host | what must come out |
//! | --- | --- |
//! | `vmx` | offsets and rates are in force, exactly; but for what Linux is known to ignore |
//! | `svm-tsc` | offsets are in force, exactly, or by the register a little low; rates are refused or ignored, and never believed |
//! | `svm-hpet` | the kernel moves offsets by itself, which is found out; no rate is believed |
//! | `native` | two probes of different make agree, and what is required is what was measured |
//!
//! All 17 clauses run on the vmx host too: their rates are measured over one second of all of them, which
//! there is 7 to 12 s of a processor.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::host::{Host, Paging, Tsc};
use crate::scenario::{CONTRACT, LAUNCHER, Outcome, Place, Scenario};

/// A clause, and the answers to it that are right.
type Row = (&'static str, &'static [&'static str]);

/// The kinds of answers, as the suite prints them.
const KINDS: [&str; 7] = [
    HOLDS,
    IGNORED,
    DEGRADED,
    REFUSED,
    UNDECIDED,
    NOT_POSSIBLE,
    "VIOLATED",
];
const HOLDS: &str = "holds";
const IGNORED: &str = "IGNORED";
const DEGRADED: &str = "DEGRADED";
const REFUSED: &str = "refused";
const UNDECIDED: &str = "UNDECIDED";
const NOT_POSSIBLE: &str = "not possible";

/// Linux 6.1 on a processor that scales. It takes a small move through the TSC's register for an attempt
/// to synchronise vCPUs, and leaves a rate within 250 ppm of the host's unscaled (`kvm_synchronize_tsc`,
/// `kvm_set_tsc_khz` in arch/x86/kvm/x86.c).
const VMX: &[Row] = &[
    ("form", &[HOLDS]),
    ("offset-fresh", &[HOLDS]),
    ("offset-forward", &[HOLDS]),
    ("offset-back", &[HOLDS]),
    ("offset-sign", &[HOLDS]),
    ("offset-adjusted", &[HOLDS]),
    ("offset-shared", &[HOLDS]),
    ("offset-kept", &[HOLDS]),
    ("register-far", &[HOLDS]),
    ("register-near", &[IGNORED]),
    ("rate-same", &[HOLDS]),
    ("rate-half", &[HOLDS]),
    ("rate-0.999", &[HOLDS]),
    ("rate-1.7", &[HOLDS]),
    ("rate-default", &[HOLDS]),
    ("rate-tolerated", &[IGNORED]),
    ("offset-at-rate", &[HOLDS]),
];

/// Linux 6.1 on a processor that does not scale. Under the master clock its catch-up does nothing.
const SVM_STABLE: &[Row] = &[
    ("form", &[HOLDS]),
    ("offset-fresh", &[HOLDS]),
    ("offset-forward", &[HOLDS]),
    ("offset-back", &[HOLDS]),
    ("offset-sign", &[HOLDS]),
    ("offset-adjusted", &[HOLDS]),
    ("offset-shared", &[HOLDS]),
    ("offset-kept", &[HOLDS]),
    ("register-far", &[HOLDS]),
    ("register-near", &[IGNORED]),
    ("rate-same", &[HOLDS]),
    ("rate-half", &[REFUSED]),
    ("rate-0.999", &[REFUSED]),
    ("rate-1.7", &[IGNORED]),
    ("rate-default", &[NOT_POSSIBLE]),
    ("rate-tolerated", &[IGNORED]),
    ("offset-at-rate", &[NOT_POSSIBLE]),
];

/// The same over the only interface of kernels before 5.16, which have no `KVM_VCPU_TSC_OFFSET`: an offset
/// goes through the TSC's register. It comes out a little low, by the time that the write takes, and is told
/// of as far as readings tell. Offsets less than a second of ticks apart are taken for an attempt to
/// synchronise vCPUs, so that an adjustment by less has no effect (`kvm_synchronize_tsc`), which the suite finds out.
const SVM_STABLE_BY_REGISTER: &[Row] = &[
    ("form", &[HOLDS]),
    ("offset-fresh", &[NOT_POSSIBLE]),
    ("offset-forward", &[HOLDS]),
    ("offset-back", &[HOLDS]),
    ("offset-sign", &[HOLDS]),
    ("offset-adjusted", &[IGNORED]),
    ("offset-shared", &[HOLDS]),
    ("offset-kept", &[HOLDS]),
    ("register-far", &[HOLDS]),
    ("register-near", &[IGNORED]),
    ("rate-same", &[HOLDS]),
    ("rate-half", &[REFUSED]),
    ("rate-0.999", &[REFUSED]),
    ("rate-1.7", &[IGNORED]),
    ("rate-default", &[NOT_POSSIBLE]),
    ("rate-tolerated", &[IGNORED]),
    ("offset-at-rate", &[NOT_POSSIBLE]),
];

/// The same on a host whose TSC the kernel takes for unstable: each time a vCPU is loaded, its offset is
/// moved so that the guest goes on from where it was, and then it catches up by the HPET. That is certain;
/// how steady the guest's clock is meanwhile depends on when it is interrupted.
const SVM_UNSTABLE: &[Row] = &[
    ("form", &[HOLDS]),
    ("offset-fresh", &[DEGRADED]),
    ("offset-forward", &[DEGRADED]),
    ("offset-back", &[DEGRADED]),
    ("offset-sign", &[DEGRADED]),
    ("offset-adjusted", &[DEGRADED]),
    ("offset-shared", &[DEGRADED]),
    ("offset-kept", &[DEGRADED]),
    ("register-far", &[HOLDS, DEGRADED, UNDECIDED]),
    ("register-near", &[IGNORED, DEGRADED, UNDECIDED]),
    ("rate-same", &[HOLDS, DEGRADED, UNDECIDED]),
    ("rate-half", &[REFUSED, DEGRADED]),
    ("rate-0.999", &[REFUSED, DEGRADED]),
    ("rate-1.7", &[DEGRADED, UNDECIDED]),
    ("rate-default", &[NOT_POSSIBLE]),
    ("rate-tolerated", &[IGNORED, DEGRADED, UNDECIDED]),
    ("offset-at-rate", &[NOT_POSSIBLE]),
];

/// The rates whose figures are checked here once more, in parts of the host's.
const RATES: [(&str, i64, i64); 4] = [
    ("rate-same", 1, 1),
    ("rate-half", 1, 2),
    ("rate-0.999", 999, 1_000),
    ("rate-1.7", 17, 10),
];
/// They are measured over so long at least: a second.
const LEAST_SPAN_NS: i64 = 1_000_000_000;
/// An error of a rate that must be noticed, in parts of 10^9.
const NOTICED_PPB: i64 = 50_000;

/// What doctor is asked for.
const REQUIRED: [&str; 3] = ["kvm", "offset", "scaling"];

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let svm = |tsc| Host::Svm {
        tsc,
        paging: Paging::Nested,
    };
    let (stable, unstable) = (svm(Tsc::Stable), svm(Tsc::Unstable));
    vec![
        contract(stable, "contract", "", SVM_STABLE).seconds(15, 300),
        contract(
            stable,
            "contract-by-register",
            "--offsets-by-register ",
            SVM_STABLE_BY_REGISTER,
        )
        .seconds(15, 300),
        contract(unstable, "contract", "", SVM_UNSTABLE).seconds(15, 300),
        contract(Host::Vmx, "contract", "", VMX).seconds(60, 40),
        doctor(stable, check_svm_stable).seconds(5, 120),
        doctor(unstable, check_svm_unstable).seconds(5, 120),
        doctor(Host::Vmx, check_vmx).seconds(60, 40),
        native(),
    ]
}

/// The suite on `host`, with `options` of its own (each followed by a space), and `rows` to answer.
fn contract(host: Host, name: &'static str, options: &str, rows: &'static [Row]) -> Scenario {
    let required: Vec<_> = rows
        .iter()
        .filter(|(_, kinds)| *kinds == [HOLDS])
        .map(|(clause, _)| *clause)
        .collect();
    let script = format!(
        "exec ./{CONTRACT} --kvm-only {options}--require {}\n",
        required.join(",")
    );
    Scenario::new(Place::Emulated(host), name, script)
        .with_contract()
        .check(move |outcome| {
            check_contract(&outcome.stdout_text(), rows)?;
            outcome.expect_status(0)
        })
}

fn doctor_command() -> String {
    format!(
        "exec ./{LAUNCHER} doctor --json --require {}\n",
        REQUIRED.join(",")
    )
}

fn doctor(host: Host, check: fn(&Report) -> Result<()>) -> Scenario {
    Scenario::new(Place::Emulated(host), "doctor", doctor_command()).check(move |outcome| {
        let report = Report::parse(outcome)?;
        report.check_requirements(outcome)?;
        check(&report)
    })
}

/// On a machine whose KVM nobody knows beforehand. The suite's own probe, another guest under another
/// host program, measures an offset and a rate first, and doctor must say the same of both: on a software
/// KVM "ignored" and "ignored", whatever its calls return and whatever reads back.
fn native() -> Scenario {
    let script = format!(
        "./{CONTRACT} --kvm-only --only offset-forward,rate-1.7 >&2 || exit 9\n{}",
        doctor_command()
    );
    Scenario::new(Place::Native, "doctor", script)
        .with_contract()
        .seconds(4, 120)
        .check(|outcome| {
            let report = Report::parse(outcome)?;
            report.check_requirements(outcome)?;
            check_agreement(&outcome.stderr_text(), &report)
        })
}

/// The clauses of the suite's output, with kind and evidence.
fn clauses(text: &str) -> Result<Vec<(&str, &'static str, &str)>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (clause, rest) = line
                .split_once(' ')
                .with_context(|| format!("no clause in {line:?}"))?;
            let rest = rest.trim_start();
            KINDS
                .into_iter()
                .find_map(|kind| Some((clause, kind, rest.strip_prefix(kind)?.trim_start())))
                .with_context(|| format!("no kind of answer in {line:?}"))
        })
        .collect()
}

/// Each clause once, in order, with an answer that is right; and the figures of the rates that hold.
fn check_contract(text: &str, rows: &[Row]) -> Result<()> {
    let found = clauses(text)?;
    let names = |list: &[&str]| list.join(" ");
    let (told, wanted): (Vec<_>, Vec<_>) = (
        found.iter().map(|(clause, ..)| *clause).collect(),
        rows.iter().map(|(clause, _)| *clause).collect(),
    );
    ensure!(
        told == wanted,
        "the clauses told are {}, not {}",
        names(&told),
        names(&wanted)
    );
    for ((clause, kind, evidence), (_, right)) in found.into_iter().zip(rows) {
        ensure!(
            right.contains(&kind),
            "{clause}: {kind}, not {}: {evidence}",
            right.join(" or ")
        );
        let rate = RATES.iter().find(|(name, ..)| *name == clause);
        if let (HOLDS, Some(&(_, numerator, denominator))) = (kind, rate) {
            check_rate(evidence, numerator, denominator).with_context(|| clause.to_owned())?;
        }
    }
    Ok(())
}

/// `A..B ppb from the host's rate over N ns`: an error of 50 ppm is outside of A to B.
fn check_rate(evidence: &str, numerator: i64, denominator: i64) -> Result<()> {
    let numbers = || {
        let (before, after) = evidence.split_once(" ppb from the host's rate over ")?;
        let (least, most) = before.rsplit(' ').next()?.split_once("..")?;
        let span = after.split_once(" ns")?.0;
        Some((
            least.parse().ok()?,
            most.parse().ok()?,
            span.parse::<i64>().ok()?,
        ))
    };
    let (least, most, span): (i64, i64, _) =
        numbers().with_context(|| format!("no figures in {evidence:?}"))?;
    ensure!(
        span >= LEAST_SPAN_NS,
        "measured over {span} ns, which is less than a second"
    );
    let asked = 1_000_000_000 / denominator * (numerator - denominator);
    let noticed = NOTICED_PPB * numerator / denominator;
    ensure!(
        asked - noticed < least && least <= most && most < asked + noticed,
        "{least} to {most} ppb from the host's rate is not within 50 ppm of {asked} ppb"
    );
    Ok(())
}

/// What doctor reported.
struct Report(Value);

impl Report {
    fn parse(outcome: &Outcome) -> Result<Self> {
        let value: Value =
            serde_json::from_slice(&outcome.stdout).context("doctor printed no JSON")?;
        ensure!(value["format"] == 1, "the report has another format");
        Ok(Self(value))
    }

    fn word(&self, pointer: &str) -> Result<&str> {
        self.0
            .pointer(pointer)
            .and_then(Value::as_str)
            .with_context(|| format!("the report has no {pointer}"))
    }

    fn expect(&self, pointer: &str, right: &[&str]) -> Result<()> {
        let found = self.word(pointer)?;
        ensure!(
            right.contains(&found),
            "{pointer}: {found}, not {}",
            right.join(" or ")
        );
        Ok(())
    }

    fn rates(&self) -> Result<&Vec<Value>> {
        let rates = self
            .0
            .pointer("/effects/rates")
            .and_then(Value::as_array)
            .context("the report has no rates")?;
        ensure!(!rates.is_empty(), "no rate was tried");
        Ok(rates)
    }

    /// The trials of rates beyond KVM's tolerance, or of those within it.
    fn trials(&self, within_tolerance: bool) -> Result<Vec<&Value>> {
        let mut trials = self.rates()?.iter().collect::<Vec<_>>();
        trials.retain(|trial| trial["within_tolerance"] == within_tolerance);
        Ok(trials)
    }

    fn trial(&self, name: &str) -> Result<&Value> {
        let mut rates = self.rates()?.iter();
        rates
            .find(|trial| trial["name"] == name)
            .with_context(|| format!("no trial of {name}"))
    }

    fn expect_trial(&self, name: &str, right: &[&str]) -> Result<()> {
        let found = self.trial(name)?["effect"].as_str().unwrap_or_default();
        ensure!(
            right.contains(&found),
            "{name}: {found}, not {}",
            right.join(" or ")
        );
        Ok(())
    }

    /// What is missing follows from the effects, and the status from what is missing.
    fn check_requirements(&self, outcome: &Outcome) -> Result<()> {
        let beyond = self.trials(false)?;
        let scales = !beyond.is_empty() && beyond.iter().all(|trial| trial["effect"] == "in-force");
        let met = |name| match name {
            "offset" => self.word("/effects/offset/effect/name").ok() == Some("in-force"),
            "scaling" => scales,
            // There are effects.
            _ => true,
        };
        let mut missing = REQUIRED.to_vec();
        missing.retain(|name| !met(name));
        ensure!(
            self.0["missing"] == Value::from(missing.clone()),
            "missing is {}, and by the effects it is {missing:?}",
            self.0["missing"]
        );
        outcome.expect_status(u8::from(!missing.is_empty()))
    }

    fn number(value: &Value, key: &str) -> Result<i64> {
        value[key].as_i64().with_context(|| format!("no {key}"))
    }

    /// The offset asked for is within the bounds of the readings, here and after a move.
    fn check_offset_in_force(&self) -> Result<()> {
        for trial in ["effect", "after_a_move"] {
            let effect = &self.0["effects"]["offset"][trial];
            ensure!(
                effect["name"] == "in-force",
                "the offset, {trial}: {effect}"
            );
            let least = Self::number(effect, "error_at_least_ticks")?;
            let most = Self::number(effect, "error_at_most_ticks")?;
            ensure!(
                least <= 0 && 0 <= most,
                "the offset, {trial}: {least} to {most} ticks from the one asked for"
            );
        }
        self.expect("/facts/offset", &["in-force"])
    }

    fn verdict(&self, policy: &str) -> Result<&str> {
        let verdicts = self.0["verdicts"].as_array().context("no verdicts")?;
        verdicts
            .iter()
            .find(|verdict| verdict["policy"] == policy)
            .and_then(|verdict| verdict["verdict"].as_str())
            .with_context(|| format!("no verdict on {policy}"))
    }
}

fn check_vmx(report: &Report) -> Result<()> {
    report.check_offset_in_force()?;
    for trial in report.trials(false)? {
        let (name, effect) = (&trial["name"], &trial["effect"]);
        ensure!(effect == "in-force", "{name}: {effect}");
        let least = Report::number(trial, "error_at_least_ppb")?;
        let most = Report::number(trial, "error_at_most_ppb")?;
        ensure!(
            (-NOTICED_PPB..=1).contains(&least) && (-1..NOTICED_PPB).contains(&most),
            "{name}: {least} to {most} ppb from the rate asked for"
        );
    }
    report.expect("/facts/scaling", &["in-force"])?;
    report.expect_trial("a very little above the host's", &["ignored"])
}

fn check_svm_stable(report: &Report) -> Result<()> {
    report.check_offset_in_force()?;
    report.expect_trial("half the host's", &["refused"])?;
    report.expect_trial("1.7 times the host's", &["ignored"])?;
    report.expect("/facts/scaling", &["no-effect"])?;
    report.expect("/facts/catch_up", &["no-effect"])
}

fn check_svm_unstable(report: &Report) -> Result<()> {
    // Unknown where the kernel's moves were seen before anything was written.
    report.expect("/facts/offset", &["overridden", "unknown"])?;
    report.expect_trial("half the host's", &["refused"])?;
    let caught = ["caught-up", "across-entries-only", "neither", "undecided"];
    report.expect_trial("1.7 times the host's", &caught)?;
    report.expect("/facts/scaling", &["no-effect"])?;
    for policy in ["pause-freeze", "restore-freeze", "restore-advance"] {
        let verdict = report.verdict(policy)?;
        ensure!(
            verdict != "kept",
            "{policy} is promised on a host that moves offsets by itself"
        );
    }
    Ok(())
}

/// What the suite measured, and what doctor says of the same.
fn check_agreement(suite: &str, report: &Report) -> Result<()> {
    let offset = report.word("/effects/offset/effect/name");
    let rate = report.trial("1.7 times the host's")?["effect"].as_str();
    // Its summary ends it; what doctor says on standard error comes after that.
    let (suite, _) = suite
        .split_once("\n# kvm: ")
        .context("the suite did not end")?;
    let found = clauses(suite)?;
    for (clause, doctors) in [
        ("offset-forward", offset.unwrap_or("failed")),
        ("rate-1.7", rate.unwrap_or("failed")),
    ] {
        let kind = found.iter().find(|(name, ..)| *name == clause);
        let &(_, kind, evidence) = kind.with_context(|| format!("no clause {clause}"))?;
        let agrees = match kind {
            HOLDS => doctors == "in-force",
            IGNORED => doctors == "ignored",
            REFUSED => doctors == "refused",
            // By other means, and not at every moment: doctor looks for a shorter time.
            DEGRADED => doctors != "in-force",
            UNDECIDED | NOT_POSSIBLE => bail!("{clause} could not be measured: {evidence}"),
            _ => bail!("{clause} is violated: {evidence}"),
        };
        ensure!(agrees, "{clause}: the suite says {kind}, doctor {doctors}");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
