//! The guest's target: a line through an anchor at the guest's rate.

use crate::rate::TickRate;
use crate::units::{GuestTsc, Khz, Nanos, Ticks};

/// What a guest's TSC should read at each instant: `anchor + (now - then) x rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    guest: GuestTsc,
    at: Nanos,
    rate: TickRate,
}

impl Line {
    /// The line through `guest` at the monotonic time `at`, rising at `rate`.
    #[must_use]
    pub const fn through(guest: GuestTsc, at: Nanos, rate: TickRate) -> Self {
        Self { guest, at, rate }
    }

    /// The rate at which it rises.
    #[must_use]
    pub const fn rate(&self) -> TickRate {
        self.rate
    }

    /// What the guest should read at `now`, less than two ticks low; the anchor itself before it.
    /// `None` when more than 2^64 ticks passed.
    #[must_use]
    #[inline]
    pub fn target_floor(&self, now: Nanos) -> Option<GuestTsc> {
        let passed = self.rate.ticks_floor(now.saturating_sub(self.at))?;
        Some(self.guest.wrapping_advance(passed))
    }

    /// How far `reading` is behind the line at `now`: `None` when it is on it or ahead.
    #[must_use]
    #[inline]
    pub fn behind(&self, reading: GuestTsc, now: Nanos) -> Option<Ticks> {
        let target = self.target_floor(now)?;
        reading
            .is_before(target)
            .then(|| target.wrapping_elapsed(reading))
    }

    /// The same line up to `now`, and from there on at `rate`.
    #[must_use]
    pub fn bent(&self, now: Nanos, rate: TickRate) -> Self {
        match self.target_floor(now) {
            Some(guest) => Self {
                guest,
                at: now.max(self.at),
                rate,
            },
            None => *self,
        }
    }
}

/// The highest rate seen on any CPU: what a guest's clock is converted by, so that a CPU which ran
/// more slowly for a while has fallen behind and can be caught up. Conversion by a lower rate would
/// leave the guest ahead, where nothing can be done (commit c285545f: "tracking conversion factor
/// to the highest TSC rate").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HighestRate {
    khz: Khz,
}

impl HighestRate {
    /// So far only `khz` was seen.
    #[must_use]
    pub const fn new(khz: Khz) -> Self {
        Self { khz }
    }

    /// The highest rate so far.
    #[must_use]
    pub const fn khz(self) -> Khz {
        self.khz
    }

    /// Takes note of a rate; `Some` when it is a new highest, for lines to be bent to.
    pub fn observe(&mut self, khz: Khz) -> Option<Khz> {
        (khz > self.khz).then(|| {
            self.khz = khz;
            khz
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(khz: u32) -> TickRate {
        TickRate::new(Khz::new(khz).unwrap())
    }

    #[test]
    fn line_tells_behind_from_ahead_across_the_wrap() {
        // 1 tick per ns from 10 ticks before the wrap.
        let line = Line::through(
            GuestTsc::new(u64::MAX - 9),
            Nanos::new(100),
            rate(1_000_000),
        );
        let target = line.target_floor(Nanos::new(120)).unwrap();
        assert!((9..=10).contains(&target.get()), "{target}");
        assert_eq!(line.behind(target, Nanos::new(120)), None);
        let behind = line
            .behind(GuestTsc::new(u64::MAX), Nanos::new(120))
            .unwrap();
        assert!((10..=11).contains(&behind.get()), "{behind}");
        assert_eq!(line.behind(GuestTsc::new(500), Nanos::new(120)), None);
        // A monotonic clock read before the anchor does not bend time.
        assert_eq!(
            line.target_floor(Nanos::new(3)),
            Some(GuestTsc::new(u64::MAX - 9))
        );
    }

    #[test]
    fn line_bent_to_a_new_highest_rate_is_continuous() {
        let line = Line::through(GuestTsc::new(0), Nanos::ZERO, rate(1_000_000));
        let mut highest = HighestRate::new(Khz::new(1_000_000).unwrap());
        assert_eq!(highest.observe(Khz::new(900_000).unwrap()), None);
        let khz = highest.observe(Khz::new(3_000_000).unwrap()).unwrap();
        let bent = line.bent(Nanos::new(1_000), TickRate::new(khz));
        let table = [(1_000, 1_000), (1_001, 1_003), (2_000, 4_000)];
        for (now, ticks) in table {
            let target = bent.target_floor(Nanos::new(now)).unwrap().get();
            // One tick less for each of the two conversions.
            assert!((ticks - 2..=ticks).contains(&target), "{now}: {target}");
        }
    }
}
