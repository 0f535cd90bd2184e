//! The report for people.

use std::fmt::Write;

use hypervisor::tsc_control::{OffsetEffect, RateEffect};
use tsc::assess::{Spread, Verdict, skew_nanos_outward};
use tsc::{CpuId, Khz, TscOffset, nanos_exact_floor};

use super::effects::{OffsetTrial, RateOutcome, RateTrial};
use super::report::Report;
use super::require::Requirement;
use super::skew::{BOUND, Skew};

/// Up to so many CPUs the whole matrix is shown.
const MATRIX: usize = 8;

/// Columns of a skew in it.
const WIDTH: usize = 20;

/// The lines of a report. Writing to a string does not fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn section(&mut self, title: &str) {
        self.0.push('\n');
        self.0.push_str(title);
        self.0.push('\n');
    }

    fn line(&mut self, label: &str, text: impl AsRef<str>) {
        let line = format!("  {label:<20} {}", text.as_ref());
        self.0.push_str(line.trim_end());
        self.0.push('\n');
    }
}

/// The whole report.
pub(super) fn render(report: &Report, required: &[Requirement]) -> String {
    let mut page = Page("keeptime doctor: what this host can do for guests' time\n".to_owned());
    processor(&mut page, report);
    rate(&mut page, report);
    match &report.skew {
        Ok(skew) => cpus(&mut page, skew, report.facts.khz),
        Err(reason) => {
            page.section("CPUs");
            page.line("skew", format!("not known: {reason}"));
        }
    }
    kvm(&mut page, report);
    effects(&mut page, report);
    verdicts(&mut page, report);
    requirements(&mut page, report, required);
    page.0
}

fn processor(page: &mut Page, report: &Report) {
    let platform = &report.platform;
    page.section("Processor and kernel: what they say");
    let model = platform.model.as_deref().unwrap_or("no name");
    page.line("processor", format!("{model} ({})", platform.vendor));
    page.line(
        "hypervisor",
        match platform.hypervisor.as_deref() {
            None => "none: this is no guest".to_owned(),
            Some("") => "this host is a guest itself".to_owned(),
            Some(name) => format!("this host is a guest itself, of {name}"),
        },
    );
    let invariant = if platform.invariant_tsc {
        "yes: constant rate, never halts"
    } else {
        "no: its rate may change, and it may halt"
    };
    page.line("invariant TSC", invariant);
    page.line("RDTSCP", yes_no(platform.rdtscp));
    let current = platform.clocksource.as_deref().unwrap_or("not visible");
    let available = platform.clocksources.join(" ");
    page.line("clocksource", format!("{current} (available: {available})"));
    page.line(
        "KVM's tolerance",
        platform.tolerance.map_or_else(
            || "not visible; 250 ppm is assumed".to_owned(),
            |ppm| format!("{ppm}: rates this close to the host's are not scaled"),
        ),
    );
    page.line(
        "Landlock",
        match report.landlock_abi {
            Some(abi) => format!("ABI {abi}: bounds what the launcher's threads open"),
            None => "none: seccomp and the jail bound the launcher's threads".to_owned(),
        },
    );
}

fn rate(page: &mut Page, report: &Report) {
    page.section("Rate of the TSC");
    page.line(
        "measured",
        match &report.rate {
            Ok(measured) => format!(
                "{} to {} MHz, over {} ms of CLOCK_MONOTONIC_RAW",
                mega(measured.rate.at_least.get()),
                mega(measured.rate.at_most.get()),
                measured.over.get() / 1_000_000
            ),
            Err(reason) => format!("not known: {reason}"),
        },
    );
    for claim in &report.claims {
        let deviation = claim
            .deviation(report.rate.as_ref().ok().copied())
            .map_or_else(String::new, |deviation| {
                format!("; measured {deviation} from that")
            });
        page.line(claim.source, format!("{}{deviation}", claim.khz));
    }
    if report.claims.is_empty() {
        page.line("claims", "nobody tells a rate");
    }
}

fn cpus(page: &mut Page, skew: &Skew, khz: Option<Khz>) {
    let exchanges = &skew.exchanges;
    page.section("Skew between CPUs: TSC of the column less TSC of the row, in ns");
    if exchanges.cpus.len() == 1 {
        page.line(
            "CPUs",
            format!("{} alone: nothing to compare", exchanges.cpus[0]),
        );
    } else if exchanges.cpus.len() <= MATRIX {
        matrix(page, skew, khz);
    } else {
        let (least, most) = widest(skew, khz);
        page.line("all known pairs", format!("{least} to {most}"));
    }
    if exchanges.left_out > 0 {
        page.line(
            "not measured",
            format!("{} CPUs more than can be compared", exchanges.left_out),
        );
    }
    if exchanges.not_reached > 0 {
        page.line(
            "not reached",
            format!("{} pairs before time was up", exchanges.not_reached),
        );
    }
    for pair in &exchanges.pairs {
        if let Err(reason) = &pair.bounds {
            page.line(&format!("{} and {}", pair.a, pair.b), reason);
        }
    }
    if let Some(problem) = &skew.problem {
        page.line("contradiction", problem);
    }
    let sets: Vec<_> = skew.domains.iter().map(|cpus| ranges(cpus)).collect();
    page.line(
        "domains",
        format!("{} that agree to {BOUND}: {}", sets.len(), sets.join(" | ")),
    );
    page.line(
        "so the TSCs",
        match skew.spread {
            Spread::One => "agree, as far as that bound",
            Spread::Several { .. } => "differ",
            Spread::Unproven => "may agree: it is not proven",
        },
    );
}

fn matrix(page: &mut Page, skew: &Skew, khz: Option<Khz>) {
    let cpus = &skew.exchanges.cpus;
    let heads: String = cpus
        .iter()
        .map(|cpu| format!("{:>WIDTH$}", cpu.to_string()))
        .collect();
    page.line("", heads);
    for &row in cpus {
        let cells: String = cpus
            .iter()
            .map(|&column| {
                let cell = if row == column {
                    "-".to_owned()
                } else {
                    interval(skew, row, column, khz)
                };
                format!("{cell:>WIDTH$}")
            })
            .collect();
        page.line(&row.to_string(), cells);
    }
}

fn interval(skew: &Skew, row: CpuId, column: CpuId, khz: Option<Khz>) -> String {
    skew.between(row, column)
        .and_then(|bounds| skew_nanos_outward(bounds, khz?))
        .map_or_else(
            || "?".to_owned(),
            |(least, most)| format!("{}..{}", least.get(), most.get()),
        )
}

/// The smallest and the largest skew that any pair can have.
fn widest(skew: &Skew, khz: Option<Khz>) -> (String, String) {
    let bounds = || {
        skew.known
            .iter()
            .filter_map(|&(_, _, bounds)| skew_nanos_outward(bounds, khz?))
    };
    let show = |nanos: Option<tsc::NanosDelta>| {
        nanos.map_or_else(|| "?".to_owned(), |nanos| nanos.get().to_string())
    };
    (
        show(bounds().map(|(least, _)| least).min()),
        show(bounds().map(|(_, most)| most).max()),
    )
}

/// `0-3 6` for CPUs 0, 1, 2, 3 and 6.
fn ranges(cpus: &[CpuId]) -> String {
    let mut text = String::new();
    let mut rest = cpus.iter().map(|cpu| cpu.get()).peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while rest
            .next_if(|&next| last.checked_add(1) == Some(next))
            .is_some()
        {
            last += 1;
        }
        let space = if text.is_empty() { "" } else { " " };
        let _ = if last == first {
            write!(text, "{space}{first}")
        } else {
            write!(text, "{space}{first}-{last}")
        };
    }
    text
}

fn kvm(page: &mut Page, report: &Report) {
    page.section("KVM: what it says that it can do");
    match &report.kvm {
        Err(reason) => page.line("/dev/kvm", format!("not usable: {reason}")),
        Ok(kvm) => {
            page.line("/dev/kvm", "usable");
            for capability in &kvm.capabilities {
                let line = format!(
                    "  {:<4} {:<27} {}\n",
                    yes_no(capability.present),
                    capability.name,
                    capability.purpose
                );
                page.0.push_str(&line);
            }
        }
    }
}

fn effects(page: &mut Page, report: &Report) {
    page.section("Effects: what a probe guest was seen to read");
    let effects = match &report.effects {
        Ok(effects) => effects,
        Err(reason) => return page.line("not measured", reason),
    };
    match &effects.offset {
        Ok(trial) => offset(page, trial, effects.host),
        Err(reason) => page.line("TSC offset", format!("not measured: {reason}")),
    }
    for trial in &effects.rates {
        rate_trial(page, trial);
    }
}

fn offset(page: &mut Page, trial: &OffsetTrial, khz: Khz) {
    let asked = trial.written.asked();
    let reads_back = if trial.written.agrees() {
        "reads back".to_owned()
    } else {
        format!("{} reads back", trial.written.claimed())
    };
    let effect = offset_effect(trial.effect, asked, khz);
    page.line("TSC offset", effect);
    page.line("", format!("asked for {asked}, {reads_back}"));
    let abroad = match trial.after_move {
        Some(effect) => offset_effect(effect, asked, khz),
        None => {
            "not tried: no other CPU's TSC is proven to agree with that of the first".to_owned()
        }
    };
    page.line("  on another CPU", abroad);
}

fn offset_effect(effect: OffsetEffect, asked: TscOffset, khz: Khz) -> String {
    let nanos = |bounds: hypervisor::tsc_control::OffsetBounds| {
        nanos_exact_floor(bounds.width().magnitude(), khz)
            .map_or_else(|| "an unknown time".to_owned(), |nanos| nanos.to_string())
    };
    match effect {
        OffsetEffect::InForce(bounds) => format!(
            "in force: {} to {} ticks from what was asked ({} apart)",
            bounds.at_least().wrapping_since(asked).get(),
            bounds.at_most().wrapping_since(asked).get(),
            nanos(bounds)
        ),
        OffsetEffect::Ignored(bounds) => format!(
            "IGNORED: accepted, but the guest reads on as before (to within {})",
            nanos(bounds)
        ),
        OffsetEffect::MovedByKernel { claimed, .. } => {
            format!("moved by the kernel, to {claimed}: it compensates for an unstable TSC")
        }
        OffsetEffect::Other(bounds) => format!(
            "neither the one asked for nor the former one, but {}",
            bounds.at_least()
        ),
        OffsetEffect::Unsteady => "unsteady: no single offset explains the readings".to_owned(),
        OffsetEffect::Undecided(_) => "undecided: the readings are too coarse".to_owned(),
    }
}

fn rate_trial(page: &mut Page, trial: &RateTrial) {
    let near = if trial.near {
        ", within the tolerance"
    } else {
        ""
    };
    page.line(
        &format!("rate {}", trial.asked),
        format!("{}{near}", trial.name),
    );
    page.line("", rate_outcome(trial));
}

fn rate_outcome(trial: &RateTrial) -> String {
    let (reads_back, effect, error) = match &trial.outcome {
        RateOutcome::Refused(reason) => return format!("refused: {reason}"),
        RateOutcome::Failed(reason) => return format!("not measured: {reason}"),
        RateOutcome::Measured {
            reads_back,
            effect,
            error,
        } => (*reads_back, *effect, *error),
    };
    let off = error.map_or_else(|| "an unknown error".to_owned(), |error| error.to_string());
    let claim = if reads_back {
        "accepted and read back"
    } else {
        "accepted"
    };
    match effect {
        RateEffect::InForce(_) => format!("scaled: {off} from what was asked"),
        RateEffect::Unscaled(deviation) if trial.near => format!(
            "silently not scaled: {claim}; the guest ticks {deviation} from the host's rate"
        ),
        RateEffect::Unscaled(deviation) => {
            format!("IGNORED: {claim}, but the guest ticks {deviation} from the host's rate")
        }
        RateEffect::CaughtUp(_) => {
            format!("not scaled: KVM pushes the guest forward at entries ({off} across them)")
        }
        RateEffect::AcrossEntries(_) => {
            format!("kept across entries ({off}); within one it could not be measured")
        }
        RateEffect::Neither(deviation) => {
            format!("{claim}, but the guest keeps neither rate: {deviation} from the host's")
        }
        RateEffect::Undecided(_) => "undecided: the readings are too coarse".to_owned(),
    }
}

/// One line for each policy, and the reason below all those in a row that have it.
fn verdicts(page: &mut Page, report: &Report) {
    page.section("What follows");
    let mut verdicts = report.verdicts().peekable();
    while let Some((policy, verdict)) = verdicts.next() {
        let word = match verdict {
            Verdict::Kept => "kept",
            Verdict::Limited(_) => "limited",
            Verdict::Refused(_) => "refused",
        };
        page.line(word, policy.to_string());
        if verdicts.peek().is_none_or(|&(_, next)| next != verdict)
            && let Some(obstacle) = verdict.obstacle()
        {
            page.line("", format!("  {obstacle}"));
        }
    }
}

fn requirements(page: &mut Page, report: &Report, required: &[Requirement]) {
    if required.is_empty() {
        return;
    }
    page.section("Required");
    for requirement in required {
        let word = if requirement.is_met(report) {
            "met"
        } else {
            "MISSING"
        };
        page.line(
            requirement.name(),
            format!("{word}: {}", requirement.meaning()),
        );
    }
}

const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// Hertz as megahertz, to the hertz.
fn mega(hz: u64) -> String {
    format!("{}.{:06}", hz / 1_000_000, hz % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_cpus_are_short() {
        let rows: [(&[u32], &str); 5] = [
            (&[0], "0"),
            (&[0, 1, 2, 3, 6], "0-3 6"),
            (&[1, 3, 5], "1 3 5"),
            (&[4, 5], "4-5"),
            (&[], ""),
        ];
        for (cpus, expected) in rows {
            let cpus: Vec<_> = cpus.iter().copied().map(CpuId::new).collect();
            assert_eq!(ranges(&cpus), expected);
        }
    }

    #[test]
    fn mega_keeps_every_hertz() {
        assert_eq!(mega(2_245_780_003), "2245.780003");
    }
}
