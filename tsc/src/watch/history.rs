//! The whole life of a guest's clock in a fixed amount of memory.

use super::ErrorBounds;
use crate::units::{Nanos, NanosDelta};

/// A stretch of a clock's life: within which bounds it was off its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Its first look,
    pub from: Nanos,
    /// and its last.
    pub to: Nanos,
    /// The bounds that hold for each of its looks.
    pub error: ErrorBounds,
    /// The smallest error of its looks that was proven, and the largest; 0 where none was.
    pub lowest: NanosDelta,
    /// The largest.
    pub highest: NanosDelta,
}

impl Stretch {
    fn of_one(at: Nanos, error: ErrorBounds) -> Self {
        let proven = error.proven();
        Self {
            from: at,
            to: at,
            error,
            lowest: proven,
            highest: proven,
        }
    }

    /// Both, the first one before the other.
    fn with(self, later: Self) -> Self {
        Self {
            from: self.from,
            to: later.to,
            error: self.error.with(later.error),
            lowest: self.lowest.min(later.lowest),
            highest: self.highest.max(later.highest),
        }
    }
}

/// Looks at a clock, all of them since the first, in up to `N` stretches. When there is no room for one
/// more, neighbours are merged two by two, and from then on a stretch takes twice as many looks: nothing
/// that was seen of the error is lost, only when exactly within its stretch. No allocation.
///
/// ```
/// # use tsc::{Nanos, NanosDelta, watch::{ErrorBounds, History}};
/// let mut history = History::<4>::new();
/// for second in 0..1_000 {
///     let error = NanosDelta::new(if second == 321 { 9 } else { 0 });
///     history.add(Nanos::new(second), ErrorBounds { at_least: error, at_most: error });
/// }
/// assert!(history.stretches().count() <= 4);
/// assert!(history.stretches().any(|s| s.highest.get() == 9 && s.from.get() <= 321 && s.to.get() >= 321));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History<const N: usize> {
    stretches: [Option<Stretch>; N],
    used: usize,
    /// So many looks make a stretch.
    looks_each: u64,
    /// The last stretch has so many.
    looks_in_last: u64,
}

impl<const N: usize> Default for History<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> History<N> {
    /// Before the first look.
    ///
    /// # Panics
    /// At compile time: with room for fewer than two stretches.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(N >= 2, "there must be two to be merged") };
        Self {
            stretches: [None; N],
            used: 0,
            looks_each: 1,
            looks_in_last: 1,
        }
    }

    /// A look at `at`, not before those that were added already.
    pub fn add(&mut self, at: Nanos, error: ErrorBounds) {
        let one = Stretch::of_one(at, error);
        if self.looks_in_last < self.looks_each {
            let last = self.used.saturating_sub(1);
            if let Some(Some(last)) = self.stretches.get_mut(last) {
                *last = last.with(one);
                self.looks_in_last = self.looks_in_last.saturating_add(1);
                return;
            }
        }
        if self.used == N {
            self.thin_out();
            // The last one may have lost its neighbour, and with it be half full.
            return self.add(at, error);
        }
        if let Some(slot) = self.stretches.get_mut(self.used) {
            *slot = Some(one);
            self.used = self.used.saturating_add(1);
            self.looks_in_last = 1;
        }
    }

    /// The stretches, oldest first.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> {
        self.stretches.iter().flatten().copied()
    }

    /// Merges neighbours two by two. An odd one at the end stays by itself, and is filled up.
    fn thin_out(&mut self) {
        let old = core::mem::replace(&mut self.stretches, [None; N]);
        let mut pairs = old.chunks(2);
        let mut used = 0_usize;
        let mut last_is_alone = false;
        for (slot, pair) in self.stretches.iter_mut().zip(&mut pairs) {
            *slot = match pair {
                [Some(first), Some(second)] => Some(first.with(*second)),
                [Some(first), ..] => {
                    last_is_alone = true;
                    Some(*first)
                }
                _ => None,
            };
            used = used.saturating_add(usize::from(slot.is_some()));
        }
        self.used = used;
        // OK because a life of 2^64 looks does not come.
        self.looks_in_last = match last_is_alone {
            true => self.looks_each,
            false => self.looks_each.saturating_mul(2),
        };
        self.looks_each = self.looks_each.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(at_least: i64, at_most: i64) -> ErrorBounds {
        ErrorBounds {
            at_least: NanosDelta::new(at_least),
            at_most: NanosDelta::new(at_most),
        }
    }

    /// (looks, error of each as (at least, width))
    fn holds<const N: usize>(looks: &[(u64, i64, i64)]) -> Result<(), TestCaseError> {
        let mut history = History::<N>::new();
        let mut now = 0;
        let mut all = Vec::new();
        for &(wait, at_least, width) in looks {
            now += wait;
            let error = bounds(at_least, at_least + width);
            history.add(Nanos::new(now), error);
            all.push((now, error));
        }
        let stretches: Vec<_> = history.stretches().collect();
        prop_assert!(stretches.len() <= N);
        prop_assert!(all.len() < N || stretches.len() >= N / 2, "room is used");
        // Each stretch is exactly what its looks were, and together they are all looks.
        let mut rest = &all[..];
        let each = all.len().div_ceil(stretches.len().max(1));
        for (index, stretch) in stretches.iter().enumerate() {
            let last = index + 1 == stretches.len();
            let size = if last {
                rest.len()
            } else {
                usize::try_from(history.looks_each).unwrap()
            };
            prop_assert!(size <= 2 * each.max(1), "they are of one size");
            let (own, next) = rest.split_at(size);
            rest = next;
            prop_assert_eq!(
                (stretch.from.get(), stretch.to.get()),
                (own[0].0, own[size - 1].0)
            );
            let errors = || own.iter().map(|(_, error)| *error);
            let proven = || errors().map(|error| error.proven());
            prop_assert_eq!(Some(stretch.error), errors().reduce(ErrorBounds::with));
            prop_assert_eq!(Some(stretch.lowest), proven().min());
            prop_assert_eq!(Some(stretch.highest), proven().max());
        }
        prop_assert!(rest.is_empty());
        Ok(())
    }

    #[test]
    fn odd_one_is_filled_up() {
        let mut history = History::<3>::new();
        for at in 0..4 {
            history.add(Nanos::new(at), bounds(0, 0));
        }
        let spans: Vec<_> = history
            .stretches()
            .map(|s| (s.from.get(), s.to.get()))
            .collect();
        assert_eq!(spans, [(0, 1), (2, 3)]);
    }

    #[test]
    fn months_fit() {
        let mut history = History::<256>::new();
        // A look a second for a year.
        for second in 0..31_536_000_u64 {
            let error = if second == 4_444_444 { -77 } else { 3 };
            history.add(Nanos::new(second * 1_000_000_000), bounds(error, error));
        }
        assert!((128..=256).contains(&history.stretches().count()));
        assert_eq!(history.stretches().next().unwrap().from, Nanos::ZERO);
        let dip = history
            .stretches()
            .find(|stretch| stretch.lowest.get() == -77)
            .unwrap();
        assert!((dip.from.get()..=dip.to.get()).contains(&4_444_444_000_000_000));
    }

    proptest! {
        #[test]
        fn whole_life_is_kept_with_its_extremes(
            looks in prop::collection::vec((0_u64..5, -1_000_i64..1_000, 0_i64..500), 0..300),
        ) {
            holds::<2>(&looks)?;
            holds::<3>(&looks)?;
            holds::<8>(&looks)?;
            holds::<17>(&looks)?;
        }
    }
}
