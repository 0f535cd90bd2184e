//! Exchanging timestamps between two CPUs.
//!
//! A thread on each CPU: the first reads its counter and passes the turn, the second reads its own and
//! passes it back, the first reads again. What follows from that is said in [`tsc::skew`]. The turn
//! and the reading travel in one cache line, so that an exchange costs two transfers of it.
//!
//! **Neither waits for ever.** A partner that is not scheduled (one CPU's worth of time in a cgroup,
//! a busy host) is waited for until the time is up, and what has been exchanged by then counts. Each waits
//! by a deadline of its own, taken on its own CPU: where TSCs disagree, so do the clocks that are read from
//! them, by just what is to be measured.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tsc::skew::{SkewBounds, SkewError};
use tsc::{CpuId, HostTsc};

use super::cpus::{self, Counter, CpuError};

/// When an exchange ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// After so many rounds,
    pub(crate) rounds: u32,
    /// or when so much time has passed.
    pub(crate) time: Duration,
}

/// What two CPUs' exchanges prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exchanged {
    /// The rounds that were made.
    pub(crate) rounds: u32,
    /// Bounds on `TSC(b) - TSC(a)`; `None` when there was no round.
    pub(crate) bounds: Option<SkewBounds>,
}

/// An exchange proves nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The threads could not be put where they belong.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The readings contradict each other.
    #[error(transparent)]
    Skew(#[from] SkewError),
}

/// How often a waiting thread looks at the turn before it looks at the clock. It does not offer its CPU
/// to others: on a busy host the two would then rarely run at the same time.
const SPINS: u32 = 1_000;

#[derive(Debug)]
struct Table {
    line: Line,
    /// One of the two has left.
    over: AtomicBool,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line {
    /// Whose turn it is: the number of turns so far; even for the first CPU.
    turn: AtomicU64,
    /// What the one who had the turn before has read.
    reading: AtomicU64,
}

impl Table {
    /// Waits for `turn`; gives the reading that came with it, or `None` when the game is over. The deadline was
    /// taken on the CPU that this runs on.
    fn wait(&self, turn: u64, deadline: Instant) -> Option<HostTsc> {
        let mut spins = 0_u32;
        // Acquire: the reading below is the one that was stored before this turn.
        while self.line.turn.load(Ordering::Acquire) != turn {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(SPINS) && self.is_over(deadline) {
                return None;
            }
        }
        Some(HostTsc::new(self.line.reading.load(Ordering::Relaxed)))
    }

    fn is_over(&self, deadline: Instant) -> bool {
        self.over.load(Ordering::Relaxed) || Instant::now() >= deadline
    }

    fn pass(&self, turn: u64, reading: HostTsc) {
        self.line.reading.store(reading.get(), Ordering::Relaxed);
        self.line.turn.store(turn, Ordering::Release);
    }
}

/// Ends the game however its thread leaves.
struct Leaving<'a>(&'a Table);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Exchanges timestamps between `a` and `b`, which must differ.
pub(crate) fn exchange(a: CpuId, b: CpuId, limits: Limits) -> Result<Exchanged, ExchangeError> {
    let table = Table {
        line: Line::default(),
        over: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let start = |cpu: CpuId| thread::Builder::new().name(format!("skew-cpu{}", cpu.get()));
        let second = start(b)
            .spawn_scoped(scope, || {
                let _leaving = Leaving(&table);
                answer(&table, b, limits)
            })
            .map_err(CpuError::Thread)?;
        let first = start(a)
            .spawn_scoped(scope, || {
                let _leaving = Leaving(&table);
                ask(&table, a, limits)
            })
            .inspect_err(|_| drop(Leaving(&table)))
            .map_err(CpuError::Thread)?;
        let (first, second) = (cpus::joined(first), cpus::joined(second));
        second?;
        first
    })
}

fn ask(table: &Table, cpu: CpuId, limits: Limits) -> Result<Exchanged, ExchangeError> {
    let counter = Counter::on(cpu)?;
    let deadline = Instant::now() + limits.time;
    let mut exchanged = Exchanged {
        rounds: 0,
        bounds: None,
    };
    for round in 0..u64::from(limits.rounds) {
        let sent = counter.read()?;
        // OK because a round has two turns, and there are fewer than 2^32 rounds.
        let turn = 2 * round;
        table.pass(turn + 1, sent);
        let Some(remote) = table.wait(turn + 2, deadline) else {
            break;
        };
        let received = counter.read()?;
        let bounds = SkewBounds::from_exchange(sent, remote, received)?;
        exchanged.bounds = Some(match exchanged.bounds {
            Some(known) => known.intersect(bounds)?,
            None => bounds,
        });
        exchanged.rounds += 1;
    }
    Ok(exchanged)
}

fn answer(table: &Table, cpu: CpuId, limits: Limits) -> Result<(), CpuError> {
    let counter = Counter::on(cpu)?;
    let deadline = Instant::now() + limits.time;
    let mut turn = 1;
    while table.wait(turn, deadline).is_some() {
        table.pass(turn + 1, counter.read()?);
        turn += 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        rounds: 100,
        time: Duration::from_secs(10),
    };

    #[test]
    fn exchange_between_two_cpus_bounds_their_skew_from_both_sides() {
        let cpus = cpus::allowed().expect("Linux tells");
        let [a, b, ..] = cpus[..] else {
            return println!("skipped here: this process has one CPU");
        };
        let there = exchange(a, b, LIMITS).expect("two CPUs");
        let back = exchange(b, a, LIMITS).expect("two CPUs");
        assert_eq!((there.rounds, back.rounds), (100, 100));
        // Two independent measurements of one skew have room in common.
        let (there, back) = (there.bounds.expect("rounds"), back.bounds.expect("rounds"));
        let back = back.reversed().expect("not at the end of the range");
        assert!(there.intersect(back).is_ok(), "{there} and {back}");
        // A round trip takes time, and what is proven is as wide as the fastest one.
        assert!(there.width().get() > 0 && back.width().get() > 0);
    }

    #[test]
    fn exchange_with_an_absent_cpu_ends_with_its_name() {
        let cpus = cpus::allowed().expect("Linux tells");
        let absent = CpuId::new(1023);
        if cpus.contains(&absent) {
            return println!("skipped here: this host has CPU 1023");
        }
        for (a, b) in [(cpus[0], absent), (absent, cpus[0])] {
            let error = exchange(a, b, LIMITS).expect_err("absent");
            assert!(error.to_string().contains("CPU 1023"), "{error}");
        }
    }

    #[test]
    fn exchange_without_time_proves_nothing() {
        let cpus = cpus::allowed().expect("Linux tells");
        let [a, b, ..] = cpus[..] else {
            return println!("skipped here: this process has one CPU");
        };
        let limits = Limits {
            rounds: 0,
            time: Duration::ZERO,
        };
        let exchanged = exchange(a, b, limits).expect("two CPUs");
        assert_eq!(
            exchanged,
            Exchanged {
                rounds: 0,
                bounds: None
            }
        );
    }

    #[test]
    fn a_partner_that_never_comes_is_not_waited_for() {
        let table = Table {
            line: Line::default(),
            over: AtomicBool::new(false),
        };
        assert_eq!(table.wait(1, Instant::now()), None);
        // and one that has left neither, however much time there is
        let later = Instant::now() + Duration::from_secs(3600);
        drop(Leaving(&table));
        assert_eq!(table.wait(1, later), None);
    }
}
