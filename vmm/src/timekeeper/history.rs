//! How far a guest's clock was off its line, over its whole life, for the time report.

use serde::Serialize;
use tsc::Nanos;
use tsc::watch::{ErrorBounds, History, Stretch};

/// A guest's life is told in so many stretches at most.
const STRETCHES: usize = 256;

/// See [`History`]; made once, before the guest runs.
#[derive(Debug, Default)]
pub(crate) struct ErrorHistory(Box<History<STRETCHES>>);

/// A stretch, as the report has it; its times are of `CLOCK_BOOTTIME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StretchReport {
    from_ns: u64,
    to_ns: u64,
    /// Bounds that hold for each of its looks.
    at_least_ns: i64,
    at_most_ns: i64,
    /// The smallest error that was proven, and the largest.
    lowest_ns: i64,
    highest_ns: i64,
}

impl ErrorHistory {
    pub(super) fn add(&mut self, at: Nanos, error: ErrorBounds) {
        self.0.add(at, error);
    }

    pub(super) fn report(&self) -> Vec<StretchReport> {
        self.0.stretches().map(StretchReport::from).collect()
    }
}

impl From<Stretch> for StretchReport {
    fn from(stretch: Stretch) -> Self {
        Self {
            from_ns: stretch.from.get(),
            to_ns: stretch.to.get(),
            at_least_ns: stretch.error.at_least.get(),
            at_most_ns: stretch.error.at_most.get(),
            lowest_ns: stretch.lowest.get(),
            highest_ns: stretch.highest.get(),
        }
    }
}
