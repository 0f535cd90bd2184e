//! Verdicts as they come in, and the closing line.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::host::tail;

/// How many lines of a log a failure shows.
const TAIL: usize = 40;

/// How one scenario, or one suite of Cargo's tests, ended.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The full name.
    pub(crate) name: String,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// How it ended.
    pub(crate) end: End,
}

/// How something ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Well.
    Passed,
    /// Badly: why, and where to read on.
    Failed {
        /// Why.
        reason: String,
        /// The logs whose ends are shown.
        logs: Vec<PathBuf>,
    },
    /// It could not be tried.
    Skipped(Skip),
    /// A suite with counts of its own.
    Suite {
        /// Its counts.
        counts: Counts,
        /// What tests said that were skipped.
        skips: Vec<Skip>,
        /// Shown when a test failed.
        log: PathBuf,
    },
}

/// Why something was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    /// Why.
    pub(crate) reason: String,
    /// Whether that is a failure of the set-up where skips are denied.
    pub(crate) avoidable: bool,
}

/// The numbers of the closing line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Passed.
    pub(crate) passed: u64,
    /// Failed.
    pub(crate) failed: u64,
    /// Skipped.
    pub(crate) skipped: u64,
}

impl Counts {
    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed.saturating_add(other.passed),
            failed: self.failed.saturating_add(other.failed),
            skipped: self.skipped.saturating_add(other.skipped),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// Counts verdicts and prints each when it comes.
#[derive(Debug)]
pub(crate) struct Tally {
    deny_skips: bool,
    counts: Mutex<Counts>,
    restarts: Mutex<Vec<String>>,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    /// An empty tally. With `deny_skips`, an avoidable skip fails.
    pub(crate) fn new(deny_skips: bool) -> Self {
        Self {
            deny_skips,
            counts: Mutex::default(),
            restarts: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Notes that the host or the scenario of this name was started again, since its emulator may have lost it.
    pub(crate) fn restarted(&self, host: String) {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.push(host);
    }

    /// The hosts and scenarios that were started again.
    pub(crate) fn restarts(&self) -> Vec<String> {
        let restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.clone()
    }

    /// Takes a verdict. Safe from several threads: each verdict's lines stay together.
    pub(crate) fn add(&self, verdict: &Verdict) {
        let (text, counts) = self.judge(verdict);
        let mut total = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *total = total.plus(counts);
        print!("{text}");
        if counts.failed > 0 {
            let reason = match &verdict.end {
                End::Failed { reason, .. } => reason.as_str(),
                _ => "",
            };
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.push(format!("{} {reason}", verdict.name));
        }
    }

    /// What failed, and why where that is one thing. The verdicts with their logs may be far above.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.clone()
    }

    /// The counts so far.
    pub(crate) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, verdict: &Verdict) -> (String, Counts) {
        let one = |word: &str, rest: &str| {
            let seconds = verdict.elapsed.as_secs_f64();
            format!("{word} {seconds:7.2} s  {}{rest}\n", verdict.name)
        };
        let passed = Counts {
            passed: 1,
            ..Counts::default()
        };
        let failed = Counts {
            failed: 1,
            ..Counts::default()
        };
        let skipped = Counts {
            skipped: 1,
            ..Counts::default()
        };
        match &verdict.end {
            End::Passed => (one("PASS", ""), passed),
            End::Failed { reason, logs } => {
                let mut text = one("FAIL", &format!("\n    {reason}"));
                for log in logs {
                    text += &format!("    {} ends:\n{}", log.display(), tail(log, TAIL));
                }
                (text, failed)
            }
            End::Skipped(skip) => {
                let (word, reason) = self.told(skip);
                let counts = if self.denies(skip) { failed } else { skipped };
                (one(word, &reason), counts)
            }
            End::Suite { counts, skips, log } => {
                let denied = skips.iter().filter(|skip| self.denies(skip)).count();
                let denied = u64::try_from(denied).unwrap_or(u64::MAX);
                let mut text = if counts.failed == 0 {
                    one("PASS", &format!(": {counts}"))
                } else {
                    let end = tail(log, TAIL);
                    one(
                        "FAIL",
                        &format!(": {counts}\n    {} ends:\n{end}", log.display()),
                    )
                };
                for skip in skips {
                    let (word, reason) = self.told(skip);
                    text += &format!("{word}            {}{reason}\n", verdict.name);
                }
                let counts = Counts {
                    failed: counts.failed.saturating_add(denied),
                    skipped: counts.skipped.saturating_sub(denied),
                    ..*counts
                };
                (text, counts)
            }
        }
    }

    fn denies(&self, skip: &Skip) -> bool {
        self.deny_skips && skip.avoidable
    }

    /// The word for a skip, and what follows its name.
    fn told(&self, skip: &Skip) -> (&'static str, String) {
        let reason = &skip.reason;
        if self.denies(skip) {
            let reason = format!(": skipped, which is not allowed here: {reason}");
            ("FAIL", reason)
        } else {
            ("SKIP", format!(": {reason}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(deny_skips: bool, end: End) -> (String, Counts) {
        let verdict = Verdict {
            name: "a/b".into(),
            elapsed: Duration::from_millis(1500),
            end,
        };
        Tally::new(deny_skips).judge(&verdict)
    }

    fn skip(reason: &str, avoidable: bool) -> Skip {
        let reason = reason.to_owned();
        Skip { reason, avoidable }
    }

    fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts {
            passed,
            failed,
            skipped,
        }
    }

    #[test]
    fn tally_of_each_kind_counts_and_names() {
        let skip = |avoidable| End::Skipped(skip("no KVM", avoidable));
        assert_eq!(
            judge(false, End::Passed),
            ("PASS    1.50 s  a/b\n".into(), counts(1, 0, 0))
        );
        let failed = End::Failed {
            reason: "broken".into(),
            logs: Vec::new(),
        };
        assert_eq!(
            judge(false, failed),
            ("FAIL    1.50 s  a/b\n    broken\n".into(), counts(0, 1, 0))
        );
        assert_eq!(judge(false, skip(true)).1, counts(0, 0, 1));
        assert_eq!(judge(true, skip(true)).1, counts(0, 1, 0));
        assert_eq!(judge(true, skip(false)).1, counts(0, 0, 1));
    }

    #[test]
    fn tally_of_a_suite_fails_for_avoidable_skips_where_they_are_denied() {
        let suite = || End::Suite {
            counts: counts(7, 0, 3),
            // The third is one that Cargo itself tells of.
            skips: vec![skip("no z3", true), skip("no KVM", false)],
            log: PathBuf::new(),
        };
        let first = "PASS    1.50 s  a/b: 7 passed, 0 failed, 3 skipped\n";
        let last = "SKIP            a/b: no KVM\n";
        let (text, allowed) = judge(false, suite());
        assert_eq!(allowed, counts(7, 0, 3));
        assert_eq!(text, format!("{first}SKIP            a/b: no z3\n{last}"));
        let (text, denied) = judge(true, suite());
        assert_eq!(denied, counts(7, 1, 2));
        let told = "FAIL            a/b: skipped, which is not allowed here: no z3\n";
        assert_eq!(text, format!("{first}{told}{last}"));
    }

    #[test]
    fn failures_are_told_once_more_and_nothing_else() {
        let tally = Tally::new(true);
        let broken = End::Failed {
            reason: "broken".into(),
            logs: Vec::new(),
        };
        for end in [End::Passed, broken, End::Skipped(skip("no KVM", false))] {
            tally.add(&Verdict {
                name: "a/b".into(),
                elapsed: Duration::ZERO,
                end,
            });
        }
        assert_eq!(tally.failures(), ["a/b broken"]);
        assert_eq!(tally.counts(), counts(1, 1, 1));
    }

    #[test]
    fn counts_display_is_the_closing_line() {
        let counts = Counts {
            passed: 3,
            failed: 0,
            skipped: 1,
        };
        assert_eq!(counts.to_string(), "3 passed, 0 failed, 1 skipped");
    }
}
