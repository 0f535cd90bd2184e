//! What a vCPU's thread tells of its clock.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tsc::watch::{Departure, ErrorBounds};
use tsc::{CpuId, Nanos, Ticks, TscOffset};

/// CPUs up to this number are told apart.
const CPUS: u32 = 256;

/// Written by one vCPU's thread, read by others. Each value stands for itself. In cache lines of its own,
/// in pairs, as processors fetch them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Observed {
    /// Something happened that is to be looked into.
    wants_attention: AtomicBool,
    cpu: AtomicU32,
    /// A bit for each CPU that the thread was on.
    visited: [AtomicU64; (CPUS / 64) as usize],
    moves: AtomicU64,
    backwards: AtomicU64,
    largest_backwards: AtomicU64,
    looks: AtomicU64,
    failed_looks: AtomicU64,
    looked_at: AtomicU64,
    leaps: AtomicU64,
    largest_leap: AtomicU64,
    lags: AtomicU64,
    largest_lag: AtomicU64,
    offset: AtomicU64,
    offset_moves: AtomicU64,
    error_at_least: AtomicI64,
    error_at_most: AtomicI64,
    largest_error: AtomicI64,
}

/// What is told of one vCPU in the time report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct VcpuReport {
    vcpu: usize,
    /// The CPU at the latest look.
    cpu: u32,
    /// How often its thread was found on another CPU than before.
    moves: u64,
    /// How often the counter was found behind where it was at the exit before.
    backwards_steps: u64,
    largest_backwards_step_ticks: u64,
    /// How often its clock was held against the host's.
    looks: u64,
    failed_looks: u64,
    /// How often it had advanced by more than that, and by less.
    leaps: u64,
    largest_leap_ticks: u64,
    lags: u64,
    largest_lag_ticks: u64,
    /// How often its offset was found moved, by KVM or by the guest.
    offset_moves: u64,
    offset: i64,
    /// How far the guest's TSC is ahead of its line, in nanoseconds: between these bounds.
    error_at_least_ns: i64,
    error_at_most_ns: i64,
    /// The largest error that was proven.
    largest_error_ns: i64,
}

// There is one writer for each value.
fn add(value: &AtomicU64) {
    let now = value.load(Ordering::Relaxed).wrapping_add(1);
    value.store(now, Ordering::Relaxed);
}

fn raise(value: &AtomicU64, to: u64) {
    if to > value.load(Ordering::Relaxed) {
        value.store(to, Ordering::Relaxed);
    }
}

impl Observed {
    pub(super) fn is_on(&self, cpu: CpuId) {
        self.cpu.store(cpu.get(), Ordering::Relaxed);
        if let Some(word) = self.visited.get((cpu.get() / 64) as usize) {
            word.fetch_or(1 << (cpu.get() % 64), Ordering::Relaxed);
        }
    }

    pub(super) fn moved(&self) {
        add(&self.moves);
    }

    pub(super) fn went_backwards(&self, by: Ticks) {
        add(&self.backwards);
        raise(&self.largest_backwards, by.get());
    }

    pub(super) fn looked(&self, at: Nanos, offset: TscOffset) {
        add(&self.looks);
        self.looked_at.store(at.get(), Ordering::Relaxed);
        self.offset.store(offset.get(), Ordering::Relaxed);
    }

    pub(super) fn could_not_look(&self) {
        add(&self.failed_looks);
    }

    pub(super) fn departed(&self, departure: Departure) {
        let (count, largest, by) = match departure {
            Departure::Leapt(by) => (&self.leaps, &self.largest_leap, by),
            Departure::Lagged(by) => (&self.lags, &self.largest_lag, by),
        };
        add(count);
        raise(largest, by.get());
    }

    pub(super) fn offset_moved(&self) {
        add(&self.offset_moves);
    }

    pub(super) fn is_off_by(&self, error: ErrorBounds) {
        let set = |value: &AtomicI64, to: i64| value.store(to, Ordering::Relaxed);
        set(&self.error_at_least, error.at_least.get());
        set(&self.error_at_most, error.at_most.get());
        let proven = error.proven().get();
        let largest = self.largest_error.load(Ordering::Relaxed);
        if proven.unsigned_abs() > largest.unsigned_abs() {
            set(&self.largest_error, proven);
        }
    }

    pub(super) fn want_attention(&self) {
        self.wants_attention.store(true, Ordering::Release);
    }

    /// Whether something happened since this was asked last.
    pub(super) fn take_attention(&self) -> bool {
        self.wants_attention.swap(false, Ordering::Acquire)
    }

    /// The CPUs that the thread was on since this was asked last.
    pub(super) fn take_visited(&self) -> Vec<CpuId> {
        let mut cpus = Vec::new();
        for (index, word) in (0_u32..).zip(&self.visited) {
            let bits = word.swap(0, Ordering::Relaxed);
            let set = (0..64).filter(|bit| bits & 1 << bit != 0);
            cpus.extend(set.map(|bit| CpuId::new(index * 64 + bit)));
        }
        let now = CpuId::new(self.cpu.load(Ordering::Relaxed));
        if !cpus.contains(&now) {
            cpus.push(now);
        }
        cpus
    }

    /// When the clock was looked at last.
    pub(super) fn looked_at(&self) -> Nanos {
        Nanos::new(self.looked_at.load(Ordering::Relaxed))
    }

    /// How often somebody else moved the offset.
    pub(super) fn offset_moves(&self) -> u64 {
        self.offset_moves.load(Ordering::Relaxed)
    }

    /// By how much the guest's clock is ahead of its line at least.
    pub(super) fn lead_at_least(&self) -> i64 {
        self.error_at_least.load(Ordering::Relaxed)
    }

    /// What is added up over a guest's vCPUs for the metrics: the field's name and its value here.
    pub(super) fn counts(&self) -> [(&'static str, u64); 6] {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        [
            ("moves", get(&self.moves)),
            ("backwards_steps", get(&self.backwards)),
            ("looks", get(&self.looks)),
            ("leaps", get(&self.leaps)),
            ("lags", get(&self.lags)),
            ("offset_moves", get(&self.offset_moves)),
        ]
    }

    /// The magnitude of the largest error that was proven, in nanoseconds.
    pub(super) fn largest_error(&self) -> u64 {
        self.largest_error.load(Ordering::Relaxed).unsigned_abs()
    }

    pub(crate) fn report(&self, vcpu: usize) -> VcpuReport {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let signed = |value: &AtomicI64| value.load(Ordering::Relaxed);
        VcpuReport {
            vcpu,
            cpu: self.cpu.load(Ordering::Relaxed),
            moves: get(&self.moves),
            backwards_steps: get(&self.backwards),
            largest_backwards_step_ticks: get(&self.largest_backwards),
            looks: get(&self.looks),
            failed_looks: get(&self.failed_looks),
            leaps: get(&self.leaps),
            largest_leap_ticks: get(&self.largest_leap),
            lags: get(&self.lags),
            largest_lag_ticks: get(&self.largest_lag),
            offset_moves: get(&self.offset_moves),
            offset: get(&self.offset).cast_signed(),
            error_at_least_ns: signed(&self.error_at_least),
            error_at_most_ns: signed(&self.error_at_most),
            largest_error_ns: signed(&self.largest_error),
        }
    }
}

/// Wakes whoever watches.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    state: Mutex<Rung>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rung {
    /// The time was up.
    #[default]
    Not,
    /// A vCPU's thread wants attention.
    ByVcpu,
    /// It is over.
    ForTheEnd,
}

impl Bell {
    pub(super) fn ring(&self, by: Rung) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state != Rung::ForTheEnd {
            *state = by;
        }
        self.changed.notify_all();
    }

    /// Waits until it is rung, or for `time`.
    pub(super) fn wait(&self, time: Duration) -> Rung {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, time, |rung| *rung == Rung::Not)
            .unwrap_or_else(PoisonError::into_inner);
        let rung = *state;
        if rung == Rung::ByVcpu {
            *state = Rung::Not;
        }
        rung
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visited_cpus_are_told_once_and_the_present_one_always() {
        let observed = Observed::default();
        for cpu in [0, 65, 255, 300, 3] {
            observed.is_on(CpuId::new(cpu));
        }
        let cpus = |cpus: &[u32]| cpus.iter().map(|&cpu| CpuId::new(cpu)).collect::<Vec<_>>();
        assert_eq!(observed.take_visited(), cpus(&[0, 3, 65, 255]));
        assert_eq!(observed.take_visited(), cpus(&[3]));
    }

    #[test]
    fn bell_that_rings_for_the_end_rings_for_ever() {
        let bell = Bell::default();
        let long = Duration::from_secs(3600);
        bell.ring(Rung::ByVcpu);
        assert_eq!(bell.wait(long), Rung::ByVcpu);
        assert_eq!(bell.wait(Duration::ZERO), Rung::Not);
        bell.ring(Rung::ForTheEnd);
        bell.ring(Rung::ByVcpu);
        assert_eq!(bell.wait(long), Rung::ForTheEnd);
        assert_eq!(bell.wait(long), Rung::ForTheEnd);
    }

    #[test]
    fn largest_error_keeps_its_sign() {
        use tsc::NanosDelta;
        let observed = Observed::default();
        for (at_least, at_most) in [(-3, 5), (-900, -700), (20, 30)] {
            observed.is_off_by(ErrorBounds {
                at_least: NanosDelta::new(at_least),
                at_most: NanosDelta::new(at_most),
            });
        }
        let report = observed.report(1);
        assert_eq!(report.largest_error_ns, -700);
        assert_eq!(
            (report.error_at_least_ns, report.error_at_most_ns),
            (20, 30)
        );
        assert_eq!(observed.lead_at_least(), 20);
    }
}
