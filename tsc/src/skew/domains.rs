//! Sets of CPUs among which a vCPU may move without anyone noticing.

#[cfg(doc)]
use super::SkewBounds;
use super::SkewMatrix;
use crate::units::{CpuId, Ticks, TscDelta};

/// One set of the partition, by its rank: 0 is the set of the first CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(usize);

impl DomainId {
    /// The rank.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

/// A partition of CPUs into sets within which every pair **agrees**: its skew is proven to be at most
/// a bound, and not proven to be other than zero ([`SkewBounds::agrees`]).
///
/// The partition is coarse: no two of its sets could be one. Where the skews are known exactly it
/// also has as few sets as any partition can have: one for each position. (With intervals instead of
/// numbers the general question is a clique cover, which nobody can answer quickly; CPUs are then taken in
/// the order of the intervals' middles, and a new set is opened only when the CPUs before demand it.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains<const N: usize> {
    cpus: [CpuId; N],
    set: [usize; N],
    len: usize,
    count: usize,
}

impl<const N: usize> Domains<N> {
    /// Partitions the CPUs of `skews` such that each pair within a set agrees, to within `bound`. A CPU
    /// of which nothing is known is alone. Sharpen the matrix first.
    #[must_use]
    pub fn agreeing(skews: &SkewMatrix<N>, bound: Ticks) -> Self {
        let len = skews.cpus().len();
        let mut domains = Self {
            cpus: [CpuId::new(0); N],
            set: [0; N],
            len,
            count: 0,
        };
        domains.cpus[..len].copy_from_slice(skews.cpus());

        let order = by_position(skews);
        let close = |a: usize, b: usize| {
            a == b
                || skews
                    .between_indices(a, b)
                    .is_some_and(|skew| skew.agrees(bound))
        };

        // Greedily along the line: into the set of the CPU before, if that is proven for all of it.
        let mut set = [usize::MAX; N];
        let mut sets = 0_usize;
        for (rank, &cpu) in order[..len].iter().enumerate() {
            let before = order[..rank].last().map(|&previous| set[previous]);
            let joins = |current: usize| {
                order[..rank]
                    .iter()
                    .all(|&other| set[other] != current || close(other, cpu))
            };
            set[cpu] = match before {
                Some(current) if joins(current) => current,
                _ => {
                    // OK because there are at most `len` sets.
                    sets = sets.wrapping_add(1);
                    sets.wrapping_sub(1)
                }
            };
        }

        // Two sets of which every pair agrees are one. Only uncertain skews leave any.
        for first in 0..sets {
            for second in first.saturating_add(1)..sets {
                let one = (0..len)
                    .all(|a| (0..len).all(|b| set[a] != first || set[b] != second || close(a, b)));
                if one {
                    set[..len]
                        .iter_mut()
                        .filter(|s| **s == second)
                        .for_each(|s| *s = first);
                }
            }
        }

        domains.number(&set);
        domains
    }

    /// Gives the sets consecutive ranks in the order of their first CPU.
    fn number(&mut self, set: &[usize; N]) {
        for cpu in 0..self.len {
            let earlier = (0..cpu).find(|&other| set[other] == set[cpu]);
            self.set[cpu] = match earlier {
                Some(other) => self.set[other],
                None => {
                    let rank = self.count;
                    // OK because there are at most `len` sets.
                    self.count = self.count.wrapping_add(1);
                    rank
                }
            };
        }
    }

    /// How many sets there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The set that `cpu` is in; `None` for a CPU that was not measured.
    #[must_use]
    pub fn domain_of(&self, cpu: CpuId) -> Option<DomainId> {
        let index = self.cpus[..self.len]
            .iter()
            .position(|&known| known == cpu)?;
        Some(DomainId(self.set[index]))
    }

    /// Whether `a` and `b` are in one set.
    #[must_use]
    pub fn share(&self, a: CpuId, b: CpuId) -> bool {
        matches!((self.domain_of(a), self.domain_of(b)), (Some(a), Some(b)) if a == b)
    }

    /// The CPUs of a set.
    pub fn members(&self, domain: DomainId) -> impl Iterator<Item = CpuId> {
        (0..self.len)
            .filter(move |&i| self.set[i] == domain.0)
            .map(|i| self.cpus[i])
    }

    /// The set with the most CPUs, the first of them when several are as large: where the threads
    /// of a guest's vCPUs are best kept.
    #[must_use]
    pub fn largest(&self) -> Option<DomainId> {
        let size = |domain: usize| (0..self.len).filter(|&i| self.set[i] == domain).count();
        // `max_by_key` keeps the last of equals, so the ranks go downwards.
        (0..self.count)
            .rev()
            .max_by_key(|&domain| size(domain))
            .map(DomainId)
    }
}

/// The CPUs in order of their position: those connected to the first CPU by their middle relative
/// to it, then those connected to the next one that is left, and so on.
fn by_position<const N: usize>(skews: &SkewMatrix<N>) -> [usize; N] {
    let len = skews.cpus().len();
    let mut order = [0_usize; N];
    let mut placed = [false; N];
    let mut filled = 0_usize;
    while let Some(root) = (0..len).find(|&cpu| !placed[cpu]) {
        let start = filled;
        let mut position = [TscDelta::ZERO; N];
        for cpu in 0..len {
            if placed[cpu] {
                continue;
            }
            if let Some(skew) = skews.between_indices(root, cpu) {
                position[cpu] = skew.middle_toward_zero();
                placed[cpu] = true;
                order[filled] = cpu;
                // OK because each CPU is placed once: filled <= len <= N.
                filled = filled.wrapping_add(1);
            }
        }
        order[start..filled].sort_unstable_by_key(|&cpu| (position[cpu], cpu));
        if !placed[root] {
            // Its bounds with itself do not fit; it stands alone.
            placed[root] = true;
            order[filled] = root;
            filled = filled.wrapping_add(1);
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skew::SkewBounds;
    use proptest::prelude::*;

    fn matrix(positions: &[i64], slack: &[i64]) -> SkewMatrix<8> {
        let cpus: Vec<_> = (0..).take(positions.len()).map(CpuId::new).collect();
        let mut matrix = SkewMatrix::new(&cpus).unwrap();
        let mut slack = slack.iter().cycle();
        for a in 0..positions.len() {
            for b in a + 1..positions.len() {
                let skew = positions[b] - positions[a];
                let (below, above) = (slack.next().unwrap(), slack.next().unwrap());
                let skew =
                    SkewBounds::new(TscDelta::new(skew - below), TscDelta::new(skew + above));
                matrix.note(cpus[a], cpus[b], skew.unwrap()).unwrap();
            }
        }
        matrix.sharpen().unwrap();
        matrix
    }

    /// The fewest sets of any partition, by trying to put each CPU into each set.
    fn fewest(skews: &SkewMatrix<8>, bound: Ticks) -> usize {
        fn place(
            skews: &SkewMatrix<8>,
            bound: Ticks,
            sets: &mut Vec<Vec<usize>>,
            cpu: usize,
        ) -> usize {
            if cpu == skews.cpus().len() {
                return sets.len();
            }
            let mut best = usize::MAX;
            for s in 0..sets.len() {
                let close = |&o: &usize| {
                    skews
                        .between(CpuId::new(o as u32), CpuId::new(cpu as u32))
                        .is_some_and(|skew| skew.agrees(bound))
                };
                if sets[s].iter().all(close) {
                    sets[s].push(cpu);
                    best = best.min(place(skews, bound, sets, cpu + 1));
                    sets[s].pop();
                }
            }
            sets.push(vec![cpu]);
            best = best.min(place(skews, bound, sets, cpu + 1));
            sets.pop();
            best
        }
        place(skews, bound, &mut Vec::new(), 0)
    }

    #[test]
    fn domains_of_two_sockets_are_two() {
        // Sockets 5000 ticks apart, CPUs interleaved, a few ticks within each.
        let skews = matrix(&[0, 5_000, 3, 5_004, -2, 4_998], &[40]);
        let domains = Domains::agreeing(&skews, Ticks::new(100));
        assert_eq!(domains.count(), 2);
        let members: Vec<_> = domains
            .members(domains.domain_of(CpuId::new(0)).unwrap())
            .map(CpuId::get)
            .collect();
        assert_eq!(members, [0, 2, 4]);
        assert!(domains.share(CpuId::new(1), CpuId::new(5)));
        assert!(!domains.share(CpuId::new(1), CpuId::new(2)));
        assert_eq!(domains.domain_of(CpuId::new(9)), None);
        assert_eq!(domains.largest().map(DomainId::get), Some(0));
        // With a bound below the uncertainty nothing is proven.
        assert_eq!(Domains::agreeing(&skews, Ticks::new(30)).count(), 6);
    }

    #[test]
    fn domains_of_unmeasured_cpus_are_single() {
        let cpus = [CpuId::new(3), CpuId::new(1)];
        let domains =
            Domains::agreeing(&SkewMatrix::<4>::new(&cpus).unwrap(), Ticks::new(u64::MAX));
        assert_eq!(domains.count(), 2);
        assert_eq!(domains.largest().map(DomainId::get), Some(0));
    }

    #[test]
    fn domains_around_an_uncertain_cpu_are_joined() {
        // CPUs 0 and 2 are at most 20 apart; CPU 1 lies between their middles, but only to within 200.
        let cpus = [0, 1, 2].map(CpuId::new);
        let mut skews = SkewMatrix::<8>::new(&cpus).unwrap();
        let around = |middle: i64, half: i64| {
            SkewBounds::new(TscDelta::new(middle - half), TscDelta::new(middle + half)).unwrap()
        };
        skews.note(cpus[0], cpus[1], around(5, 100)).unwrap();
        skews.note(cpus[0], cpus[2], around(10, 10)).unwrap();
        skews.sharpen().unwrap();
        let domains = Domains::agreeing(&skews, Ticks::new(20));
        assert_eq!(domains.count(), 2);
        assert!(domains.share(cpus[0], cpus[2]));
    }

    #[test]
    fn domains_exclude_what_is_proven_apart_and_not_what_is_not_known_better() {
        // 400 ticks apart, within a bound of 1000: in one domain only when the messages were too slow
        // to tell.
        for (slack, count) in [(399, 2), (400, 1), (600, 1), (601, 2)] {
            let skews = matrix(&[0, 400], &[slack]);
            let domains = Domains::agreeing(&skews, Ticks::new(1_000));
            assert_eq!(domains.count(), count, "{slack}");
        }
    }

    proptest! {
        /// Every pair of a set agrees, and no two sets could be one.
        #[test]
        fn domains_are_proven_and_coarse(
            positions in prop::collection::vec(-300_i64..300, 1..8),
            slack in prop::collection::vec(0_i64..60, 1..40),
            bound in 0_u64..400,
        ) {
            let skews = matrix(&positions, &slack);
            let bound = Ticks::new(bound);
            let domains = Domains::agreeing(&skews, bound);
            let close = |a: CpuId, b: CpuId| a == b || skews.between(a, b).unwrap().agrees(bound);
            for x in 0..domains.count() {
                for y in x..domains.count() {
                    let all = domains.members(DomainId(x))
                        .all(|a| domains.members(DomainId(y)).all(|b| close(a, b)));
                    prop_assert_eq!(all, x == y, "sets {} and {}", x, y);
                }
            }
            let total: usize = (0..domains.count()).map(|d| domains.members(DomainId(d)).count()).sum();
            prop_assert_eq!(total, positions.len());
        }

        /// With exact skews no partition has fewer sets.
        #[test]
        fn domains_of_exact_skews_are_fewest(
            positions in prop::collection::vec(-300_i64..300, 1..8),
            bound in 0_u64..400,
        ) {
            let skews = matrix(&positions, &[0]);
            let bound = Ticks::new(bound);
            prop_assert_eq!(Domains::agreeing(&skews, bound).count(), fewest(&skews, bound));
        }
    }
}
