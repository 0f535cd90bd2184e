//! What is being done, on standard error, when it takes long.

use std::time::{Duration, Instant};

use crate::output;

/// Nothing is said before so much time has passed, and then no more often than that.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells an operator what is being done.
#[derive(Debug)]
pub(super) struct Progress {
    /// When something was said last, or the beginning; `None` to be silent.
    last: Option<Instant>,
}

impl Progress {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self {
            last: Some(Instant::now()),
        }
    }

    /// Says nothing.
    #[cfg(test)]
    pub(super) fn silent() -> Self {
        Self { last: None }
    }

    /// A step begins.
    pub(super) fn step(&mut self, what: impl FnOnce() -> String) {
        if self.is_due(Instant::now()) {
            output::complain(&format!("keeptime: measuring: {}", what()));
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) >= PATIENCE);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_once_a_second_and_not_before() {
        let mut progress = Progress::start();
        let start = progress.last.expect("not silent");
        let mut at = |millis| progress.is_due(start + Duration::from_millis(millis));
        assert_eq!(
            [0, 999, 1_000, 1_500, 2_000].map(&mut at),
            [false, false, true, false, true]
        );
        assert!(!Progress::silent().is_due(start + PATIENCE * 9));
    }
}
