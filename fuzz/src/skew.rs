//! Skews from exchanged timestamps, against the truth that they were made from, and against shortest
//! paths found another way (Bellman and Ford's) in wider numbers.

use arbitrary::Arbitrary;
use tsc::skew::{Domains, SkewBounds, SkewError, SkewMatrix, SkewMeter, drift_between};
use tsc::{CpuId, HostTsc, Ppb, Ticks, TscDelta};

use crate::input::decode;

/// CPUs that the matrix has room for.
const CPUS: usize = 6;

/// A message between two CPUs, read at both ends.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Message {
    from: u8,
    to: u8,
    sent: u32,
    delay: u16,
}

/// Bounds that may have nothing to do with the truth.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Claim {
    a: u8,
    b: u8,
    at_least: i64,
    width: u32,
}

#[derive(Arbitrary, Debug)]
struct Measured {
    /// What CPU 0 reads at the start, and how far ahead of it the others are.
    start: u64,
    ahead: [i64; CPUS],
    cpus: u8,
    bound: u16,
    drift: (i32, u64),
    messages: Vec<Message>,
    claims: Vec<Claim>,
}

/// Messages between CPUs of constant skews, and then claims of any kind.
///
/// What messages prove is true and is all that they prove; sets of CPUs are proven pair by pair and
/// cannot be joined; contradictions are found, all of them and no others.
pub fn tsc_skew(data: &[u8]) {
    let Some(mut input) = decode::<Measured>(data) else {
        return;
    };
    // Up to half of the circle, where differences still have a sign.
    input.ahead = input.ahead.map(|ahead| ahead >> 3);
    let count = usize::from(input.cpus) % CPUS + 1;
    let ids: Vec<CpuId> = (7..).take(count).map(CpuId::new).collect();
    let mut matrix = SkewMatrix::<CPUS>::new(&ids).expect("as many as fit");
    let mut known = Known::new(count);
    exchange(&input, &ids, &mut matrix, &mut known);

    matrix
        .sharpen()
        .expect("the truth does not contradict itself");
    assert!(known.sharpen(), "nor does it here");
    known.check(&matrix, &ids);
    for (a, b) in pairs(count) {
        if let Some(skew) = matrix.between(ids[a], ids[b]) {
            let truth = input.ahead[b] - input.ahead[a];
            assert!(holds(skew, truth), "{skew}, not {truth}");
            check_interval(skew, truth, &input);
        }
    }
    check_estimates(&matrix, &ids);
    check_domains(&matrix, &ids, Ticks::new(input.bound.into()));
    claim(&input.claims, &ids, matrix, known);
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (0..count).map(move |b| (a, b)))
}

fn holds(skew: SkewBounds, truth: i64) -> bool {
    skew.at_least().get() <= truth && truth <= skew.at_most().get()
}

/// The most that CPU b's counter can be ahead of CPU a's, in numbers that do not end.
struct Known(Vec<Vec<Option<i128>>>);

impl Known {
    fn new(count: usize) -> Self {
        let mut most = vec![vec![None; count]; count];
        (0..count).for_each(|cpu| most[cpu][cpu] = Some(0));
        Self(most)
    }

    /// B is at most `most` ahead of A.
    fn note(&mut self, a: usize, b: usize, most: i128) {
        let known = &mut self.0[a][b];
        *known = Some(known.map_or(most, |known| known.min(most)));
    }

    /// Lets every bound profit from the others, as long as that changes anything; false when it
    /// would for ever, which is a contradiction around a cycle.
    fn sharpen(&mut self) -> bool {
        let count = self.0.len();
        let edges = self.0.clone();
        for from in 0..count {
            for round in 0..=count {
                let mut changed = false;
                for (via, to) in pairs(count) {
                    let (Some(first), Some(second)) = (self.0[from][via], edges[via][to]) else {
                        continue;
                    };
                    if self.0[from][to].is_none_or(|most| first + second < most) {
                        self.0[from][to] = Some(first + second);
                        changed = true;
                    }
                }
                if changed && round == count {
                    return false;
                }
            }
        }
        true
    }

    /// The matrix says the same, no more and no less.
    fn check(&self, matrix: &SkewMatrix<CPUS>, ids: &[CpuId]) {
        for (a, b) in pairs(ids.len()) {
            let expected = self.0[a][b].zip(self.0[b][a]);
            let got = matrix.between(ids[a], ids[b]);
            assert_eq!(
                got.map(|skew| (
                    skew.at_most().get().into(),
                    -i128::from(skew.at_least().get())
                )),
                expected
            );
        }
    }
}

/// Sends the messages, and notes what each pair's prove.
fn exchange(input: &Measured, ids: &[CpuId], matrix: &mut SkewMatrix<CPUS>, known: &mut Known) {
    let count = ids.len();
    let read = |cpu: usize, after: u64| {
        let ticks = input.start.wrapping_add(after);
        HostTsc::new(ticks.wrapping_add_signed(input.ahead[cpu]))
    };
    let mut meters = vec![SkewMeter::new(); count * count];
    let mut fastest = vec![None::<u64>; count * count];
    for message in input.messages.iter().take(64) {
        let (from, to) = (
            usize::from(message.from) % count,
            usize::from(message.to) % count,
        );
        let sent = read(from, message.sent.into());
        let received = read(to, u64::from(message.sent) + u64::from(message.delay));
        let (a, b) = (from.min(to), from.max(to));
        if from == a {
            meters[a * count + b].a_to_b(sent, received);
        } else {
            meters[a * count + b].b_to_a(sent, received);
        }
        let delay = &mut fastest[from * count + to];
        *delay = Some(delay.map_or(message.delay.into(), |known| {
            known.min(message.delay.into())
        }));
        if message.from % 2 == 0 {
            // The same as one exchange with an answer at once.
            let skew = SkewBounds::from_exchange(sent, received, read(from, (1 << 33) - 1));
            assert!(skew.is_ok_and(|skew| holds(skew, input.ahead[to] - input.ahead[from])));
        }
    }
    for (a, b) in pairs(count).filter(|(a, b)| a < b) {
        let bounds = meters[a * count + b].bounds().expect("constant skews");
        let delays = fastest[a * count + b].zip(fastest[b * count + a]);
        assert_eq!(bounds.is_some(), delays.is_some());
        let (Some(bounds), Some((there, back))) = (bounds, delays) else {
            continue;
        };
        assert_eq!(bounds.width(), Ticks::new(there + back));
        matrix.note(ids[a], ids[b], bounds).expect("the truth");
        let skew = i128::from(input.ahead[b] - input.ahead[a]);
        known.note(a, b, skew + i128::from(there));
        known.note(b, a, i128::from(back) - skew);
    }
}

/// What an interval says of itself.
fn check_interval(skew: SkewBounds, truth: i64, input: &Measured) {
    let (least, most) = (skew.at_least().get(), skew.at_most().get());
    let bound = Ticks::new(input.bound.into());
    let (ends, bound_wide) = (
        [i128::from(least), i128::from(most)],
        i128::from(input.bound),
    );
    let all_within = ends.iter().all(|end| end.abs() <= bound_wide);
    let all_beyond = least > 0 && ends[0] > bound_wide || most < 0 && -ends[1] > bound_wide;
    assert_eq!(skew.is_within(bound), all_within, "{skew}");
    assert_eq!(skew.is_beyond(bound), all_beyond, "{skew}");
    assert_eq!(skew.is_apart(), least > 0 || most < 0, "{skew}");
    assert_eq!(i128::from(skew.width().get()), ends[1] - ends[0]);
    let middle = i128::from(skew.middle_toward_zero().get());
    assert!(
        (middle * 2 - ends[0] - ends[1]).abs() <= 1
            && middle.abs() * 2 <= (ends[0] + ends[1]).abs()
    );
    let reversed = skew.reversed().expect("far from the ends");
    assert!(holds(reversed, -truth) && reversed.reversed() == Some(skew));

    // The skew grows at a rate, in parts of 10^9: later it lies in the aged interval.
    let (ppb, elapsed) = (i64::from(input.drift.0), input.drift.1 >> 8);
    let grown = i128::from(elapsed) * i128::from(ppb) / 1_000_000_000;
    let later = i128::from(truth) + grown;
    if let Some(aged) = skew.aged(Ticks::new(elapsed), Ppb::new(ppb)) {
        let (least, most) = (
            i128::from(aged.at_least().get()),
            i128::from(aged.at_most().get()),
        );
        assert!(least <= later && later <= most, "{aged}, not {later}");
        let drift = drift_between(skew, aged, Ticks::new(elapsed));
        assert!(elapsed != 0 || drift.is_none());
        // As many billionths as the whole ticks that it grew by, or more on either side.
        let fits = |drift: tsc::skew::DriftBounds| {
            i128::from(drift.at_least.get()) * i128::from(elapsed) <= grown * 1_000_000_000
                && i128::from(drift.at_most.get()) * i128::from(elapsed) >= grown * 1_000_000_000
        };
        assert!(drift.is_none_or(fits), "{drift:?}, not {ppb}");
    }
}

/// Estimates cancel around any cycle and lie in the intervals, to within a tick of rounding.
fn check_estimates(matrix: &SkewMatrix<CPUS>, ids: &[CpuId]) {
    for (a, b) in pairs(ids.len()) {
        let Some(estimate) = matrix.estimate(ids[a], ids[b]) else {
            continue;
        };
        if let Some(skew) = matrix.between(ids[a], ids[b]) {
            assert!(
                estimate.get() >= skew.at_least().get() - 1,
                "{estimate} in {skew}"
            );
            assert!(
                estimate.get() <= skew.at_most().get() + 1,
                "{estimate} in {skew}"
            );
        }
        for &c in ids {
            if let Some(next) = matrix.estimate(ids[b], c) {
                assert_eq!(matrix.estimate(ids[a], c), estimate.checked_add(next));
            }
        }
    }
}

/// A partition; every pair of a set is proven close and may be equal; no two sets are one.
fn check_domains(matrix: &SkewMatrix<CPUS>, ids: &[CpuId], bound: Ticks) {
    let domains = Domains::agreeing(matrix, bound);
    let close = |a: CpuId, b: CpuId| {
        let proven = |skew: SkewBounds| {
            skew.at_least().get() <= 0
                && skew.at_most().get() >= 0
                && skew.at_least().get().unsigned_abs() <= bound.get()
                && skew.at_most().get().unsigned_abs() <= bound.get()
        };
        a == b || matrix.between(a, b).is_some_and(proven)
    };
    let mut sets: Vec<Vec<CpuId>> = Vec::new();
    for &cpu in ids {
        let domain = domains.domain_of(cpu).expect("a CPU of the matrix");
        let members: Vec<CpuId> = domains.members(domain).collect();
        assert!(members.contains(&cpu));
        if domain.get() == sets.len() {
            sets.push(members);
        } else {
            assert_eq!(
                sets.get(domain.get()),
                Some(&members),
                "ranks follow the CPUs"
            );
        }
    }
    assert_eq!(domains.count(), sets.len());
    assert_eq!(sets.iter().map(Vec::len).sum::<usize>(), ids.len());
    for (index, set) in sets.iter().enumerate() {
        assert!(
            set.iter()
                .all(|&a| set.iter().all(|&b| close(a, b) && domains.share(a, b)))
        );
        for other in &sets[..index] {
            let one = set.iter().all(|&a| other.iter().all(|&b| close(a, b)));
            assert!(!one, "{set:?} and {other:?} are one");
            assert!(!domains.share(set[0], other[0]));
        }
    }
    let largest = domains
        .largest()
        .map(|domain| domains.members(domain).count());
    assert_eq!(largest, sets.iter().map(Vec::len).max());
    assert_eq!(domains.domain_of(CpuId::new(0)), None);
}

/// Claims of anybody on top of what was measured.
fn claim(claims: &[Claim], ids: &[CpuId], mut matrix: SkewMatrix<CPUS>, mut known: Known) {
    // As long as nothing comes near the ends of 63 bits, the code must say what the oracle says.
    let mut exact = true;
    for claim in claims.iter().take(32) {
        let (a, b) = (
            usize::from(claim.a) % ids.len(),
            usize::from(claim.b) % ids.len(),
        );
        let most = claim.at_least.saturating_add(claim.width.into());
        let skew = SkewBounds::new(TscDelta::new(claim.at_least), TscDelta::new(most));
        let skew = skew.expect("least before most");
        let wide = (i128::from(most), -i128::from(claim.at_least));
        exact &= wide.0.abs() < 1 << 59 && wide.1.abs() < 1 << 59;
        let refused = matrix.note(ids[a], ids[b], skew);
        if !exact {
            continue;
        }
        let there = known.0[a][b].map_or(wide.0, |known| known.min(wide.0));
        let back = known.0[b][a].map_or(wide.1, |known| known.min(wide.1));
        // TSC(b) - TSC(a) would be at least -back and at most there.
        assert_eq!(refused.is_err(), -back > there, "{refused:?}");
        if refused.is_ok() {
            known.note(a, b, wide.0);
            known.note(b, a, wide.1);
        }
    }
    let sharpened = matrix.sharpen();
    if exact {
        let consistent = known.sharpen();
        assert_eq!(sharpened.is_ok(), consistent, "{sharpened:?}");
        if consistent {
            known.check(&matrix, ids);
            check_estimates(&matrix, ids);
            check_domains(&matrix, ids, Ticks::new(1 << 20));
        }
    }
    assert!(matches!(sharpened, Ok(()) | Err(SkewError::Cycle { .. })));
}
