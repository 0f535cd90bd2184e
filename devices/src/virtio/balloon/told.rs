//! What a balloon tells of itself and of its guest.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::super::Count;
use super::{Hinting, STATISTIC};

/// How many kinds of statistics there are (5.5.6.4, and those that Linux has had since 6.12).
pub const STATISTICS: usize = 16;

/// What a balloon tells: each number is read by itself, and nobody waits for it.
#[derive(Debug, Default)]
pub struct Told {
    /// Requests by which the driver put pages into the balloon,
    pub inflations: Count,
    /// or took pages out of it;
    pub deflations: Count,
    /// those with a page that is none of guest memory, or that the host did not take.
    pub failures: Count,
    /// Buffers of statistics,
    pub statistics_updates: Count,
    /// those that did not end with a whole one.
    pub statistics_failures: Count,
    /// Requests by which the driver reported freed pages,
    pub reports: Count,
    /// the bytes that were given back by them,
    pub reported: Count,
    /// and those with pages that the host did not take.
    pub report_failures: Count,
    /// Requests by which it named free pages when it was asked,
    pub hints: Count,
    /// the bytes that were given back by them,
    pub hinted: Count,
    /// and those with pages that the host did not take.
    pub hint_failures: Count,
    /// How far that is.
    pub hinting: Hinting,
    statistics: [AtomicU64; STATISTICS],
    /// Those that the guest told, as bits.
    known: AtomicU32,
}

impl Told {
    /// What the guest told last under this tag, if it did.
    #[must_use]
    pub fn statistic(&self, tag: usize) -> Option<u64> {
        let is_known = tag < STATISTICS && self.known.load(Ordering::Acquire) & 1 << tag != 0;
        let value = self.statistics.get(tag).filter(|_| is_known)?;
        Some(value.load(Ordering::Relaxed))
    }

    /// Takes over what a buffer holds. Tags that nobody knows are left out; of two with the same the last counts.
    pub(super) fn take_statistics(&self, statistics: &[[u8; STATISTIC]]) {
        let mut known = 0;
        for statistic in statistics {
            let [low, high, value @ ..] = *statistic;
            let (tag, value) = (u16::from_le_bytes([low, high]), u64::from_le_bytes(value));
            if let Some(place) = self.statistics.get(usize::from(tag)) {
                place.store(value, Ordering::Relaxed);
                known |= 1 << tag;
            }
        }
        self.known.store(known, Ordering::Release);
        self.statistics_updates.add(1);
    }

    /// There is no driver that told any.
    pub(super) fn forget_statistics(&self) {
        self.known.store(0, Ordering::Release);
    }
}
