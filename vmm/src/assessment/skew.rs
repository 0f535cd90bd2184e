//! How far apart the TSCs of the allowed CPUs are, and which of them a guest may move among.
//!
//! Up to [`ALL_PAIRS`] CPUs every pair exchanges timestamps. Beyond, each CPU does so with the first
//! one and with its neighbour, and [`SkewMatrix::sharpen`] derives all other pairs from those: a host
//! of 200 CPUs needs 400 exchanges of less than a millisecond. All of them together end after
//! [`Budget::total`], whatever the host does; a pair whose turn did not come is not known, and what is
//! not known is in no common domain.

use std::time::Duration;

use tsc::assess::Spread;
use tsc::skew::{Domains, SkewBounds, SkewMatrix};
use tsc::{CpuId, Khz, Nanos, Ticks, ticks_exact_floor};

use super::cpus;
use super::exchange::{self, Limits};
use crate::error::one_line;
use crate::host_clock;

/// Up to so many CPUs every pair is measured.
const ALL_PAIRS: usize = 8;
/// So many CPUs are measured at most: the matrix has a bound for each pair.
const MAX_CPUS: usize = 256;
/// Up to so many CPUs the matrix is small enough for any thread's stack.
const FEW_CPUS: usize = 16;
/// The matrix and its copies live on the stack: 16 bytes for each of [`MAX_CPUS`] squared, some of
/// them in a debug build.
const STACK: usize = 64 << 20;

/// CPUs form one domain when their skew is proven to be within this, and is not proven to be other than
/// zero: see [`tsc::skew`]. The exchanges of a host that is not busy prove some 200 ns; with several times
/// that, a measurement was too coarse to say that counters agree.
pub(crate) const BOUND: Nanos = Nanos::new(1_000);

/// How long measuring may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// One pair.
    pub(crate) pair: Limits,
    /// All of them.
    pub(crate) total: Duration,
}

impl Budget {
    /// 1000 rounds are a millisecond when both CPUs are free, and enough to meet the fastest transfer.
    /// On a busy host the threads wait for each other, some of the scheduler's slices long.
    pub(crate) const DEFAULT: Self = Self {
        pair: Limits {
            rounds: 1_000,
            time: Duration::from_millis(500),
        },
        total: Duration::from_secs(4),
    };

    /// Beside a guest's boot. A pair that does not run at the same time for so long is given up, and what
    /// is not known changes nothing.
    pub(crate) const BESIDE_A_BOOT: Self = Self {
        pair: Limits {
            rounds: 1_000,
            time: Duration::from_millis(50),
        },
        total: Duration::from_secs(4),
    };
}

/// What two CPUs' exchange brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) a: CpuId,
    pub(crate) b: CpuId,
    /// Rounds made.
    pub(crate) rounds: u32,
    /// What they prove, before other pairs sharpen it; or why nothing.
    pub(crate) bounds: Result<SkewBounds, String>,
}

/// All exchanges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exchanges {
    /// The CPUs measured.
    pub(crate) cpus: Vec<CpuId>,
    /// How many more are allowed.
    pub(crate) left_out: usize,
    /// The pairs that were measured.
    pub(crate) pairs: Vec<Pair>,
    /// How many more were to be.
    pub(crate) not_reached: usize,
}

/// What they say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skew {
    /// The exchanges.
    pub(crate) exchanges: Exchanges,
    /// Sharpened bounds on `TSC(b) - TSC(a)` of each pair a < b, where there are any.
    pub(crate) known: Vec<(CpuId, CpuId, SkewBounds)>,
    /// The bound of the domains, in ticks of the measured rate.
    pub(crate) bound: Option<Ticks>,
    /// The domains, each with its CPUs.
    pub(crate) domains: Vec<Vec<CpuId>>,
    /// How the counters lie to each other.
    pub(crate) spread: Spread,
    /// A contradiction between pairs.
    pub(crate) problem: Option<String>,
}

/// The pairs to be measured among `cpus`.
fn pairs(cpus: &[CpuId]) -> Vec<(CpuId, CpuId)> {
    let following = |index: usize| cpus.iter().skip(index + 1).copied();
    if cpus.len() <= ALL_PAIRS {
        return cpus
            .iter()
            .enumerate()
            .flat_map(|(index, &a)| following(index).map(move |b| (a, b)))
            .collect();
    }
    // Neighbours first: when time runs out, the chain connects more CPUs than the star.
    let neighbours = cpus.windows(2).map(|pair| (pair[0], pair[1]));
    let star = following(1).map(|b| (cpus[0], b));
    neighbours.chain(star).collect()
}

/// Measures the pairs among `allowed`. Before each, `step` is told its number, from 1, and how many there
/// are, and says whether to go on.
pub(crate) fn measure(
    allowed: &[CpuId],
    budget: Budget,
    step: &mut dyn FnMut(usize, usize) -> bool,
) -> Exchanges {
    let begun = host_clock::monotonic_coarse();
    let is_over = || host_clock::elapsed_since(begun) >= budget.total;
    let cpus: Vec<_> = allowed.iter().copied().take(MAX_CPUS).collect();
    let wanted = pairs(&cpus);
    let mut measured = Vec::with_capacity(wanted.len());
    for (index, &(a, b)) in wanted.iter().enumerate() {
        if is_over() || !step(index + 1, wanted.len()) {
            break;
        }
        measured.push(match exchange::exchange(a, b, budget.pair) {
            Ok(exchanged) => Pair {
                a,
                b,
                rounds: exchanged.rounds,
                bounds: exchanged
                    .bounds
                    .ok_or_else(|| "the two did not run at the same time".to_owned()),
            },
            Err(error) => Pair {
                a,
                b,
                rounds: 0,
                bounds: Err(one_line(&error)),
            },
        });
    }
    Exchanges {
        left_out: allowed.len() - cpus.len(),
        cpus,
        not_reached: wanted.len() - measured.len(),
        pairs: measured,
    }
}

/// What the exchanges say together, at the TSC's rate `khz`.
pub(crate) fn judge(exchanges: Exchanges, khz: Option<Khz>) -> Skew {
    if exchanges.cpus.len() <= FEW_CPUS {
        return judge_here::<FEW_CPUS>(exchanges, khz);
    }
    let judge = || judge_here::<MAX_CPUS>(exchanges.clone(), khz);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("skew-matrix".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, judge);
        match thread {
            Ok(thread) => cpus::joined(thread),
            Err(error) => unknown(exchanges.clone(), format!("no thread: {error}")),
        }
    })
}

/// Nothing but that each CPU agrees with itself.
fn unknown(exchanges: Exchanges, problem: String) -> Skew {
    Skew {
        domains: exchanges.cpus.iter().map(|&cpu| vec![cpu]).collect(),
        exchanges,
        known: Vec::new(),
        bound: None,
        spread: Spread::Unproven,
        problem: Some(problem),
    }
}

fn judge_here<const N: usize>(exchanges: Exchanges, khz: Option<Khz>) -> Skew {
    let mut matrix = match SkewMatrix::<N>::new(&exchanges.cpus) {
        Ok(matrix) => matrix,
        Err(error) => return unknown(exchanges, error.to_string()),
    };
    let mut problem = None;
    for pair in &exchanges.pairs {
        if let Ok(bounds) = pair.bounds
            && let Err(error) = matrix.note(pair.a, pair.b, bounds)
        {
            problem = Some(error.to_string());
        }
    }
    if let Err(error) = matrix.sharpen() {
        // Counters that contradict each other are not constant: no bound on them holds.
        return unknown(exchanges, error.to_string());
    }
    let bound = khz.and_then(|khz| ticks_exact_floor(BOUND, khz));
    // Without a rate only what is proven to be equal is together.
    let domains = Domains::agreeing(&matrix, bound.unwrap_or(Ticks::ZERO));
    let mut sets = vec![Vec::new(); domains.count()];
    for &cpu in &exchanges.cpus {
        if let Some(set) = domains
            .domain_of(cpu)
            .and_then(|domain| sets.get_mut(domain.get()))
        {
            set.push(cpu);
        }
    }
    let spread = match Spread::of(&matrix, &domains) {
        Spread::One if exchanges.left_out > 0 => Spread::Unproven,
        spread => spread,
    };
    let known = exchanges
        .cpus
        .iter()
        .enumerate()
        .flat_map(|(index, &a)| {
            let others = exchanges.cpus.iter().skip(index + 1);
            others.map(move |&b| (a, b))
        })
        .filter_map(|(a, b)| Some((a, b, matrix.between(a, b)?)))
        .collect();
    Skew {
        exchanges,
        known,
        bound,
        domains: sets,
        spread,
        problem,
    }
}

impl Skew {
    /// Bounds on `TSC(b) - TSC(a)`.
    pub(crate) fn between(&self, a: CpuId, b: CpuId) -> Option<SkewBounds> {
        self.known.iter().find_map(|&(x, y, bounds)| {
            if (x, y) == (a, b) {
                Some(bounds)
            } else if (x, y) == (b, a) {
                bounds.reversed()
            } else {
                None
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assessment::cpus;
    use tsc::TscDelta;

    fn cpus(count: u32) -> Vec<CpuId> {
        (0..count).map(CpuId::new).collect()
    }

    fn bounds(least: i64, most: i64) -> SkewBounds {
        SkewBounds::new(TscDelta::new(least), TscDelta::new(most)).expect("an interval")
    }

    fn pair(a: u32, b: u32, bounds: Result<SkewBounds, String>) -> Pair {
        let (a, b) = (CpuId::new(a), CpuId::new(b));
        Pair {
            a,
            b,
            rounds: 1,
            bounds,
        }
    }

    fn judged(count: u32, pairs: Vec<Pair>) -> Skew {
        let exchanges = Exchanges {
            cpus: cpus(count),
            left_out: 0,
            pairs,
            not_reached: 0,
        };
        // 1 GHz: the bound is 1000 ticks
        judge(exchanges, Khz::new(1_000_000))
    }

    #[test]
    fn every_cpu_is_connected_by_few_pairs() {
        for count in [1, 2, 8, 9, 64, 256] {
            let cpus = cpus(count);
            let pairs = pairs(&cpus);
            let mut expected = count * (count - 1) / 2;
            if count > 8 {
                // a chain, and a star without the chain's first link
                expected = (count - 1) + (count - 2);
            }
            assert_eq!(pairs.len(), usize::try_from(expected).expect("small"));
            let mut unique = pairs.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), pairs.len());
            for &cpu in &cpus[1..] {
                assert!(pairs.contains(&(cpus[0], cpu)), "{cpu}");
            }
        }
    }

    #[test]
    fn one_cpu_is_one_domain() {
        let skew = judged(1, Vec::new());
        assert_eq!(skew.domains, [[CpuId::new(0)]]);
        assert_eq!(skew.spread, Spread::One);
    }

    #[test]
    fn domains_follow_from_what_is_proven() {
        // 0 and 1 agree; 2 is 5000 ticks ahead of both, by way of 1 only
        let skew = judged(
            3,
            vec![
                pair(0, 1, Ok(bounds(-100, 90))),
                pair(1, 2, Ok(bounds(5_000, 5_100))),
                pair(0, 2, Err("not measured".to_owned())),
            ],
        );
        let [zero, one, two] = [0, 1, 2].map(CpuId::new);
        assert_eq!(skew.domains, [vec![zero, one], vec![two]]);
        assert_eq!(skew.spread, Spread::Several { domains: 2 });
        assert_eq!(skew.between(zero, two), Some(bounds(4_900, 5_190)));
        assert_eq!(skew.between(two, zero), Some(bounds(-5_190, -4_900)));
    }

    #[test]
    fn counters_half_a_microsecond_apart_are_two_domains() {
        // A step that a guest can see, unless the messages were too slow to tell.
        for (around, spread) in [
            (bounds(450, 550), Spread::Several { domains: 2 }),
            (bounds(-550, -450), Spread::Several { domains: 2 }),
            (bounds(0, 990), Spread::One),
            (bounds(-10, 1_010), Spread::Unproven),
        ] {
            let skew = judged(2, vec![pair(0, 1, Ok(around))]);
            assert_eq!(skew.spread, spread, "{around}");
        }
    }

    #[test]
    fn what_is_not_measured_is_not_promised() {
        let skew = judged(2, vec![pair(0, 1, Err("busy".to_owned()))]);
        assert_eq!(skew.domains.len(), 2);
        assert_eq!(skew.spread, Spread::Unproven);
        let mut exchanges = judged(1, Vec::new()).exchanges;
        exchanges.left_out = 7;
        assert_eq!(
            judge(exchanges, Khz::new(1_000_000)).spread,
            Spread::Unproven
        );
    }

    #[test]
    fn counters_that_contradict_each_other_have_no_bounds() {
        let around = vec![
            pair(0, 1, Ok(bounds(0, 10))),
            pair(1, 2, Ok(bounds(0, 10))),
            pair(0, 2, Ok(bounds(900, 910))),
        ];
        let skew = judged(3, around);
        assert_eq!(skew.spread, Spread::Unproven);
        assert!(skew.problem.is_some() && skew.known.is_empty());
    }

    #[test]
    fn the_largest_host_is_judged() {
        let chain = (1..256).map(|b| pair(b - 1, b, Ok(bounds(-2, 2))));
        let skew = judged(256, chain.collect());
        // 255 links of 2 ticks: within 1000
        assert_eq!(skew.domains.len(), 1);
        assert_eq!(skew.known.len(), 256 * 255 / 2);
    }

    #[test]
    fn measuring_without_time_measures_nothing_and_says_so() {
        let allowed = cpus::allowed().expect("Linux tells");
        let budget = Budget {
            total: Duration::ZERO,
            ..Budget::DEFAULT
        };
        let exchanges = measure(&allowed, budget, &mut |_, _| true);
        assert_eq!(exchanges.pairs, []);
        assert_eq!(exchanges.not_reached, pairs(&allowed).len());
    }
}
