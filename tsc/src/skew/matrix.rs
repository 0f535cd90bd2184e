//! The skews between all CPUs, each pair's bounds sharpened by what the others prove.

use super::{SkewBounds, SkewError};
use crate::units::{CpuId, TscDelta};

/// Bounds on the skew of each pair among up to `N` CPUs, without allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkewMatrix<const N: usize> {
    cpus: [CpuId; N],
    len: usize,
    /// `at_most[a][b]`: the most that `TSC(b) - TSC(a)` can be. The least is what the transposed
    /// entry says with the opposite sign, so that one bound per ordered pair is all there is.
    at_most: [[Option<TscDelta>; N]; N],
}

impl<const N: usize> SkewMatrix<N> {
    /// The CPUs `cpus`, nothing known of their skews.
    ///
    /// # Errors
    /// More than `N` of them, or one twice.
    pub fn new(cpus: &[CpuId]) -> Result<Self, SkewError> {
        let refused = SkewError::Cpus {
            given: cpus.len(),
            room: N,
        };
        let mut matrix = Self {
            cpus: [CpuId::new(0); N],
            len: cpus.len(),
            at_most: [[None; N]; N],
        };
        for (index, &cpu) in cpus.iter().enumerate() {
            if cpus.iter().take(index).any(|&other| other == cpu) {
                return Err(refused);
            }
            *matrix.cpus.get_mut(index).ok_or(refused)? = cpu;
            matrix.at_most[index][index] = Some(TscDelta::ZERO);
        }
        Ok(matrix)
    }

    /// The CPUs, in the order given.
    #[must_use]
    pub fn cpus(&self) -> &[CpuId] {
        &self.cpus[..self.len]
    }

    pub(super) fn index(&self, cpu: CpuId) -> Result<usize, SkewError> {
        self.cpus()
            .iter()
            .position(|&known| known == cpu)
            .ok_or(SkewError::UnknownCpu { cpu })
    }

    /// Takes note of bounds on `TSC(b) - TSC(a)`, in addition to what is known.
    ///
    /// # Errors
    /// An unknown CPU; bounds that contradict what is known (nothing is noted then); bounds that
    /// reach -2^63.
    pub fn note(&mut self, a: CpuId, b: CpuId, skew: SkewBounds) -> Result<(), SkewError> {
        let (from, to) = (self.index(a)?, self.index(b)?);
        let reversed = skew.reversed().ok_or(SkewError::Range)?;
        let smaller =
            |known: Option<TscDelta>, new: TscDelta| known.map_or(new, |known| known.min(new));
        let there = smaller(self.at_most[from][to], skew.at_most());
        let back = smaller(self.at_most[to][from], reversed.at_most());
        SkewBounds::new(back.checked_neg().ok_or(SkewError::Range)?, there)?;
        self.at_most[from][to] = Some(there);
        self.at_most[to][from] = Some(back);
        Ok(())
    }

    /// Lets each pair's bounds profit from every way through other CPUs (the shortest paths of
    /// the differences; Floyd and Warshall).
    ///
    /// # Errors
    /// The bounds contradict each other around a cycle.
    pub fn sharpen(&mut self) -> Result<(), SkewError> {
        for via in 0..self.len {
            for from in 0..self.len {
                for to in 0..self.len {
                    let (Some(first), Some(second)) =
                        (self.at_most[from][via], self.at_most[via][to])
                    else {
                        continue;
                    };
                    let Some(sum) = first.checked_add(second) else {
                        continue;
                    };
                    let known = &mut self.at_most[from][to];
                    *known = Some(known.map_or(sum, |known| known.min(sum)));
                }
            }
            if let Some(cpu) = self.negative_cycle() {
                return Err(SkewError::Cycle { cpu });
            }
        }
        Ok(())
    }

    /// A CPU whose counter would be behind itself.
    fn negative_cycle(&self) -> Option<CpuId> {
        (0..self.len)
            .find(|&i| self.at_most[i][i].is_some_and(TscDelta::is_negative))
            .map(|i| self.cpus[i])
    }

    /// What is known of `TSC(b) - TSC(a)`; `None` when it is not bounded on both sides.
    #[must_use]
    pub fn between(&self, a: CpuId, b: CpuId) -> Option<SkewBounds> {
        self.between_indices(self.index(a).ok()?, self.index(b).ok()?)
    }

    /// One skew to go by, where bounds leave a choice: a position for each CPU, and the difference of
    /// positions for each pair, so that moves around any cycle cancel exactly and errors do not add
    /// up. After [`Self::sharpen`] the difference lies within the bounds of the pair, give or take a
    /// tick of rounding: each CPU's highest and lowest possible positions relative to the first CPU
    /// satisfy all bounds, and so does their middle.
    ///
    /// `None` when either CPU's skew to the first CPU is not bounded.
    #[must_use]
    pub fn estimate(&self, a: CpuId, b: CpuId) -> Option<TscDelta> {
        let position = |cpu: CpuId| {
            let index = self.index(cpu).ok()?;
            let (above, below) = (self.at_most[0][index]?, self.at_most[index][0]?);
            // OK because i128 holds the difference of two i64; half of it, rounded down, is an i64
            // again: it lies between the highest and the lowest position.
            let sum = i128::from(above.get()).wrapping_sub(i128::from(below.get()));
            i64::try_from(sum.div_euclid(2)).ok().map(TscDelta::new)
        };
        position(b)?.checked_sub(position(a)?)
    }

    pub(super) fn between_indices(&self, from: usize, to: usize) -> Option<SkewBounds> {
        let at_least = self.at_most[to][from]?.checked_neg()?;
        SkewBounds::new(at_least, self.at_most[from][to]?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpu(n: u32) -> CpuId {
        CpuId::new(n)
    }

    fn bounds(at_least: i64, at_most: i64) -> SkewBounds {
        SkewBounds::new(TscDelta::new(at_least), TscDelta::new(at_most)).unwrap()
    }

    #[test]
    fn matrix_of_too_many_or_equal_cpus_refused() {
        assert!(SkewMatrix::<2>::new(&[cpu(0), cpu(1), cpu(2)]).is_err());
        assert!(SkewMatrix::<2>::new(&[cpu(4), cpu(4)]).is_err());
        assert_eq!(SkewMatrix::<2>::new(&[cpu(4)]).unwrap().cpus(), &[cpu(4)]);
    }

    #[test]
    fn sharpening_through_a_third_cpu_bounds_an_unmeasured_pair() {
        let mut matrix = SkewMatrix::<3>::new(&[cpu(0), cpu(1), cpu(2)]).unwrap();
        matrix.note(cpu(0), cpu(1), bounds(10, 20)).unwrap();
        matrix.note(cpu(2), cpu(1), bounds(-5, 5)).unwrap();
        assert_eq!(matrix.between(cpu(0), cpu(2)), None);
        matrix.sharpen().unwrap();
        // 10..=20 minus -5..=5.
        assert_eq!(matrix.between(cpu(0), cpu(2)), Some(bounds(5, 25)));
        assert_eq!(matrix.between(cpu(2), cpu(0)), Some(bounds(-25, -5)));
    }

    #[test]
    fn contradictions_are_refused_and_change_nothing() {
        let mut matrix = SkewMatrix::<3>::new(&[cpu(0), cpu(1), cpu(2)]).unwrap();
        matrix.note(cpu(0), cpu(1), bounds(10, 20)).unwrap();
        let before = matrix.clone();
        assert!(matrix.note(cpu(1), cpu(0), bounds(0, 5)).is_err());
        assert!(matrix.note(cpu(0), cpu(7), bounds(0, 5)).is_err());
        assert_eq!(matrix, before);
        matrix.note(cpu(1), cpu(2), bounds(10, 20)).unwrap();
        matrix.note(cpu(0), cpu(2), bounds(50, 60)).unwrap();
        // 20 to 40 through CPU 1, 50 to 60 directly.
        assert!(matches!(matrix.sharpen(), Err(SkewError::Cycle { .. })));
    }

    proptest! {
        /// Positions on a line, intervals around their differences: sharpening never excludes the
        /// truth, and never widens.
        #[test]
        fn sharpened_bounds_hold_the_truth(
            positions in prop::array::uniform6(-1_000_000_i64..1_000_000),
            slack in prop::collection::vec((0_usize..6, 0_usize..6, 0_i64..1000, 0_i64..1000), 0..30),
        ) {
            let cpus: Vec<_> = (0..6).map(cpu).collect();
            let mut matrix = SkewMatrix::<6>::new(&cpus).unwrap();
            for &(a, b, below, above) in &slack {
                let skew = positions[b] - positions[a];
                matrix.note(cpus[a], cpus[b], bounds(skew - below, skew + above)).unwrap();
            }
            let before = matrix.clone();
            matrix.sharpen().unwrap();
            for a in 0..6 {
                for b in 0..6 {
                    let Some(skew) = matrix.between(cpus[a], cpus[b]) else { continue };
                    let truth = TscDelta::new(positions[b] - positions[a]);
                    // The estimate is possible, but for a tick, and cancels around cycles.
                    if let Some(there) = matrix.estimate(cpus[a], cpus[b]) {
                        prop_assert!(there.get() >= skew.at_least().get() - 1);
                        prop_assert!(there.get() <= skew.at_most().get() + 1);
                        let around: Option<i64> = [(a, b), (b, 5 - b), (5 - b, a)]
                            .iter()
                            .map(|&(x, y)| matrix.estimate(cpus[x], cpus[y]).map(TscDelta::get))
                            .sum();
                        prop_assert!(around.is_none_or(|sum| sum == 0));
                    }
                    prop_assert!(skew.at_least() <= truth && truth <= skew.at_most());
                    if let Some(was) = before.between(cpus[a], cpus[b]) {
                        prop_assert_eq!(was.intersect(skew), Ok(skew));
                    }
                }
            }
        }
    }
}
