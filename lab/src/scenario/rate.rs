//! Guests whose TSC is to have a rate of its own: `--tsc-khz` and `tsc_khz`.
//!
//! | host | half the host's rate | 1.7 times | with `--allow-tsc-catchup` |
//! | --- | --- | --- | --- |
//! | `svm-hpet` | refused | refused | a guest boots, and the report says that it is degraded |
//! | `svm-tsc` | refused | refused: KVM does nothing for it | refused |
//! | `vmx` | kept by the hardware | kept by the hardware | |

mod scaled;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::linux::Report;
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{Outcome, Place, Scenario, file, keeping};
use crate::workshop::Workshop;

const REFUSALS: &str = include_str!("rate/refusals.sh");
const UNSEEN: &str = include_str!("rate/unseen.sh");
const DEGRADED: &str = include_str!("rate/degraded.sh");
const SCALED: &str = include_str!("rate/scaled.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let svm = |tsc| {
        let paging = Paging::Nested;
        Place::Emulated(Host::Svm { tsc, paging })
    };
    let script = |more: &str| format!("{REFUSALS}{more}");
    vec![
        Scenario::new(svm(Tsc::Unstable), "rate", script(DEGRADED))
            .files(amd64)
            .check(check_unstable)
            .seconds(15, 90),
        Scenario::new(svm(Tsc::Stable), "rate", script(UNSEEN))
            .files(amd64)
            .check(check_stable)
            .seconds(5, 60),
        Scenario::new(Place::Emulated(Host::Vmx), "rate", keeping::script(SCALED))
            .files(|workshop| keeping::with_witness(workshop, Kernel::Amd64))
            .check(scaled::check)
            .seconds(400, 60),
    ]
}

fn amd64(workshop: &Workshop) -> Result<Files> {
    let stock = workshop.stock(Kernel::Amd64)?;
    let initramfs = workshop.guest_initramfs(Kernel::Amd64)?;
    Ok(Files::from([
        ("kernel-amd64".to_owned(), file(&stock.image)),
        ("initrd-amd64".to_owned(), Source::Bytes(initramfs)),
    ]))
}

/// The rest of the only line that begins with `words`.
fn line<'a>(text: &'a str, words: &str) -> Result<&'a str> {
    let rest = |line: &'a str| line.strip_prefix(words)?.strip_prefix(' ');
    let mut lines = text.lines().filter_map(rest);
    let found = lines.next().with_context(|| format!("no line {words:?}"))?;
    ensure!(lines.next().is_none(), "two lines {words:?}");
    Ok(found)
}

fn number(text: &str) -> Result<i64> {
    let number = text.trim().parse();
    number.with_context(|| format!("no number: {text:?}"))
}

/// Refused in one line with status 1, before a guest ran, for the reason that `parts` have.
fn check_refusal(stderr: &str, name: &str, parts: &[&str]) -> Result<()> {
    let told = line(stderr, &format!("refusal {name}"))?;
    let mut words = told.splitn(4, ' ');
    let status: Vec<_> = words.by_ref().take(3).collect();
    let message = words.next().unwrap_or_default();
    ensure!(
        status == ["1", "0", "1"],
        "{name}: status, lines of output and of errors are {}, not 1 0 1: {message}",
        status.join(" ")
    );
    for part in ["tsc_khz", "leave it out"].iter().chain(parts) {
        ensure!(
            message.contains(part),
            "{name}: the refusal does not say {part:?}: {message}"
        );
    }
    Ok(())
}

fn check_below(stderr: &str) -> Result<()> {
    let parts = ["is below the host's ", "the host cannot scale"];
    check_refusal(stderr, "below", &parts)?;
    let (_, rest) = stderr.split_once(parts[0]).context("no rate")?;
    let named = number(rest.split(' ').next().unwrap_or_default())?;
    let host = number(line(stderr, "host")?)?;
    ensure!(
        is_near(named, host),
        "the refusal names {named} kHz as the host's rate, whose kernel found {host} kHz"
    );
    Ok(())
}

/// To within a hundredth: on a busy machine an emulated host's kernel first finds its rate wrong by a
/// thousandth, and corrects that later.
fn is_near(one: i64, other: i64) -> bool {
    (one - other).abs() <= other / 100
}

fn check_stable(outcome: &Outcome) -> Result<()> {
    let stderr = outcome.stderr_text();
    check_below(&stderr)?;
    for name in ["above", "allowed"] {
        check_refusal(&stderr, name, &["it accepts such a rate without an effect"])?;
    }
    outcome.expect_status(0)
}

fn check_unstable(outcome: &Outcome) -> Result<()> {
    let stderr = outcome.stderr_text();
    check_below(&stderr)?;
    let parts = ["push the clock forward in steps", "--allow-tsc-catchup"];
    check_refusal(&stderr, "above", &parts)?;
    ensure!(
        stderr.contains("WARN] degraded: catch-up"),
        "the log does not warn that the guest is degraded"
    );
    let told = line(&stderr, "report")?;
    let (asked, report) = told.split_once(' ').context("no report")?;
    let report: Value = serde_json::from_str(report).context("the report is no JSON")?;
    let guest = &report["guest"];
    for key in ["tsc_khz_asked", "tsc_khz_in_force"] {
        ensure!(guest[key] == number(asked)?, "{key} is {}", guest[key]);
    }
    ensure!(
        guest["how"] == "catch-up",
        "the rate is kept by {}",
        guest["how"]
    );
    let degradations = report["degradations"].as_array();
    let named = degradations
        .into_iter()
        .flatten()
        .any(|one| one["name"] == "catch-up");
    ensure!(named, "the report does not name the degradation: {report}");
    let report = Report::parse(&outcome.stdout)?;
    let processors = report.value("processors online")?;
    ensure!(
        processors == "2",
        "the guest's processors online: {processors}"
    );
    outcome.expect_status(0)
}

#[cfg(test)]
mod tests;
