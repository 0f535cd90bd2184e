//! The three numbers that describe a sample.

use std::time::Duration;

/// A sample's order statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The smallest.
    pub(crate) minimum: Duration,
    /// The lower median.
    pub(crate) median: Duration,
    /// The smallest value that 90 of 100 do not exceed.
    pub(crate) ninetieth: Duration,
}

impl Summary {
    /// Summarizes `sample`; `None` when it is empty.
    pub(crate) fn of(sample: &[Duration]) -> Option<Self> {
        let mut sorted = sample.to_vec();
        sorted.sort_unstable();
        // The nearest rank: the smallest value with at least that share at or below it.
        let rank = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied()
        };
        Some(Self {
            minimum: *sorted.first()?,
            median: rank(50)?,
            ninetieth: rank(90)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_samples_takes_nearest_ranks() {
        let ms = Duration::from_millis;
        let ten: Vec<Duration> = (1..=10).rev().map(ms).collect();
        // ranks: 50 % of 10 = 5, 90 % of 10 = 9
        let expected = Summary {
            minimum: ms(1),
            median: ms(5),
            ninetieth: ms(9),
        };
        assert_eq!(Summary::of(&ten), Some(expected));
        // ranks: 50 % of 3 = 1.5 -> 2, 90 % of 3 = 2.7 -> 3
        let expected = Summary {
            minimum: ms(1),
            median: ms(2),
            ninetieth: ms(9),
        };
        assert_eq!(Summary::of(&[ms(9), ms(1), ms(2)]), Some(expected));
        let one = Summary {
            minimum: ms(4),
            median: ms(4),
            ninetieth: ms(4),
        };
        assert_eq!(Summary::of(&[ms(4)]), Some(one));
        assert_eq!(Summary::of(&[]), None);
    }
}
