//! The workspace's own tests: `cargo nextest run`, or `cargo test` where nextest is missing, and the
//! documentation's examples.
//!
//! A test that cannot do its work, or a part of it, passes for Cargo; it prints a line `skipped: REASON`, or
//! `skipped here: REASON` where it is the machine that makes it impossible, which is counted here.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::paths::{Paths, cargo};
use crate::process::{Running, capture, tied};
use crate::test::tally::{Counts, End, Skip, Verdict};

/// What a test prints before its reason that lacks something that can be had: a program, a device with other rights.
const SKIPPED: &str = "skipped: ";
/// And one that is impossible on this machine, as it is and with the rights of who runs it: for its kernel, its
/// processors, its devices.
const SKIPPED_HERE: &str = "skipped here: ";

/// Debian packages with the programs that tests want, without which they say that they are skipped.
pub(crate) const PACKAGES: &[&str] = &["cpio", "z3"];

/// One of Cargo's suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Unit and integration tests.
    Tests,
    /// The documentation's examples.
    Examples,
}

impl Suite {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Tests, Self::Examples];

    /// The name by which users filter.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tests => "cargo/tests",
            Self::Examples => "cargo/doc-tests",
        }
    }

    /// How long it takes where nothing is built yet: decides what starts first.
    pub(crate) fn cost(self) -> Duration {
        Duration::from_secs(match self {
            Self::Tests => 250,
            Self::Examples => 5,
        })
    }

    fn command(self) -> Command {
        let mut command = tied(cargo());
        let has_nextest = || capture(Command::new(cargo()).args(["nextest", "--version"])).is_ok();
        match self {
            Self::Tests if has_nextest() => command.args([
                "nextest",
                "run",
                "--workspace",
                "--no-fail-fast",
                "--no-tests=pass",
                "--success-output=immediate",
                "--color=never",
            ]),
            Self::Tests => command.args(["test", "--workspace", "--all-targets", "--no-fail-fast"]),
            Self::Examples => command.args(["test", "--workspace", "--doc", "--no-fail-fast"]),
        };
        command
    }

    /// Runs the suite.
    pub(crate) fn run(self, paths: &Paths) -> Result<Verdict> {
        let log = paths
            .folder("logs")?
            .join(format!("{}.log", self.name().replace('/', "-")));
        let file = fs::File::create(&log).context("cannot write the log")?;
        let errors = file.try_clone().context("cannot share the log")?;
        let start = Instant::now();
        let mut command = self.command();
        command
            .current_dir(&paths.workspace)
            .env("CARGO_TERM_COLOR", "never");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let success = Running::spawn(&mut command)?.wait()?.success();
        let text = read(&log)?;
        let (mut counts, skips) = count(&text);
        if !success && counts.failed == 0 {
            // Something did not even compile.
            counts.failed = 1;
        }
        let end = End::Suite { counts, skips, log };
        Ok(Verdict {
            name: self.name().to_owned(),
            elapsed: start.elapsed(),
            end,
        })
    }
}

fn read(log: &Path) -> Result<String> {
    let bytes = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The counts in the output of nextest or of the standard harness, and the reasons of skips.
fn count(log: &str) -> (Counts, Vec<Skip>) {
    let mut counts = Counts::default();
    // nextest shows each test's own output, in which the harness sums up one test; its own summary
    // has them all.
    let nextest = log
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("Summary ["));
    let harness = log
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("test result: "));
    let mut summaries: Vec<_> = nextest.collect();
    if summaries.is_empty() {
        summaries = harness.collect();
    }
    for line in summaries {
        for item in line.split([',', ';', ':', '.']) {
            let mut words = item.split_whitespace();
            let (Some(number), Some(kind)) = (words.next().map(str::parse), words.next()) else {
                continue;
            };
            let Ok(number) = number else { continue };
            let field = match kind {
                "passed" => &mut counts.passed,
                // nextest: "timed out" and "exec failed" come apart from "failed".
                "failed" | "timed" | "exec" => &mut counts.failed,
                "skipped" | "ignored" => &mut counts.skipped,
                _ => continue,
            };
            *field = field.saturating_add(number);
        }
    }
    let skips: Vec<Skip> = log.lines().filter_map(skip).collect();
    let reasons = u64::try_from(skips.len()).unwrap_or(u64::MAX);
    counts.passed = counts.passed.saturating_sub(reasons);
    counts.skipped = counts.skipped.saturating_add(reasons);
    (counts, skips)
}

/// The skip that a line tells of.
fn skip(line: &str) -> Option<Skip> {
    let line = line.trim();
    let of = |words: &str, avoidable| {
        let reason = line.strip_prefix(words)?.to_owned();
        Some(Skip { reason, avoidable })
    };
    of(SKIPPED, true).or_else(|| of(SKIPPED_HERE, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_nextest_summary() {
        let log = "        PASS [   0.002s] tsc a\n  stdout ───\n    \
                   test result: ok. 1 passed; 0 failed; 0 ignored\n────────────\n\
                   \x20    Summary [   0.070s] 7 tests run: 4 passed (1 slow), 2 failed, 1 timed out, 3 skipped\n";
        assert_eq!(
            count(log).0,
            Counts {
                passed: 4,
                failed: 3,
                skipped: 3
            }
        );
    }

    #[test]
    fn count_harness_results_are_added() {
        let log = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                   test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(
            count(log).0,
            Counts {
                passed: 7,
                failed: 1,
                skipped: 1
            }
        );
    }

    #[test]
    fn count_test_that_says_skipped_is_a_skip_with_its_reason() {
        let log = "    skipped: no z3\n    skipped here: no /dev/kvm\n    skipped elsewhere: no\n     \
                   Summary [   0.0s] 3 tests run: 3 passed, 0 skipped\n";
        let (counts, skips) = count(log);
        assert_eq!(
            counts,
            Counts {
                passed: 1,
                failed: 0,
                skipped: 2
            }
        );
        let skip = |reason: &str, avoidable| Skip {
            reason: reason.to_owned(),
            avoidable,
        };
        assert_eq!(skips, [skip("no z3", true), skip("no /dev/kvm", false)]);
    }

    /// Whatever a test of the workspace says of a skip, it says in the words that are counted.
    #[test]
    fn skips_of_the_workspaces_tests_are_told_as_they_are_counted() {
        fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in fs::read_dir(folder).expect("a folder of ours") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    sources(&path, found);
                } else if path.extension().is_some_and(|ending| ending == "rs") {
                    found.push(path);
                }
            }
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut found = Vec::new();
        for member in [
            "arch",
            "devices",
            "fuzz",
            "hypervisor",
            "jailer",
            "lab",
            "tsc",
            "vmm",
        ] {
            for folder in ["src", "tests"] {
                let folder = workspace.join(member).join(folder);
                if folder.is_dir() {
                    sources(&folder, &mut found);
                }
            }
        }
        let mut counted = 0;
        for path in found {
            let text = fs::read_to_string(&path).expect("text");
            // The words may begin on the line below.
            let printed = text.split("println!(").skip(1);
            for said in printed.filter_map(|rest| rest.trim_start().strip_prefix('"')) {
                let is_skip = (said.get(..4)).is_some_and(|word| word.eq_ignore_ascii_case("skip"));
                if is_skip {
                    counted += 1;
                    let line = said.lines().next().unwrap_or_default();
                    assert!(skip(line).is_some(), "{}: {line}", path.display());
                }
            }
        }
        assert!(counted > 10, "{counted}");
    }

    #[test]
    fn count_log_of_a_failed_build_is_empty() {
        assert_eq!(
            count("error: could not compile `arch`\n").0,
            Counts::default()
        );
    }
}
