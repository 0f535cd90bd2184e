//! What a vCPU's thread tells of its clock.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tsc::watch::{Departure, ErrorBounds};
use tsc::{CpuId, Nanos, NanosDelta, Ticks, TscOffset};

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
    contradicted_looks: AtomicU64,
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
    /// How far the clock is ahead at least of where it was taken to last.
    lead: AtomicI64,
    /// How long after the time for it the vCPU went on from the latest pause.
    entered_late: AtomicU64,
    /// A counter that was found behind: between which CPUs, and by how much. The vCPU's thread fills the
    /// slot while it is empty, and the watch empties it.
    step_cpus: AtomicU64,
    step_by: AtomicU64,
    /// The largest departure of the clock that nobody's moving the offset explains, since this was asked
    /// last.
    jump: AtomicU64,
}

/// A counter that was found behind where it, or that of the CPU before, had been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) from: CpuId,
    pub(super) to: CpuId,
    pub(super) by: Ticks,
}

/// A guest's error against the line that its clock should follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ErrorReport {
    /// As of each vCPU's latest look: all of them are between these bounds.
    at_least_ns: i64,
    at_most_ns: i64,
    /// The largest that was proven on any of them.
    largest_ns: i64,
}

/// Within which bounds the clocks of these vCPUs are off their lines, all together; nothing before they were
/// looked at.
pub(crate) fn error_bounds(vcpus: &[Arc<Observed>]) -> Option<ErrorBounds> {
    let looked_at = |vcpu: &&Arc<Observed>| vcpu.looks.load(Ordering::Relaxed) > 0;
    let errors = vcpus.iter().filter(looked_at).map(|vcpu| vcpu.error());
    errors.reduce(ErrorBounds::with)
}

/// The offset of these vCPUs, which all of them that were looked at have; `None` when they have several. `home`
/// before any was looked at.
pub(super) fn one_offset(vcpus: &[Arc<Observed>], home: TscOffset) -> Option<TscOffset> {
    let looked_at = |vcpu: &&Arc<Observed>| vcpu.looks.load(Ordering::Acquire) > 0;
    let mut offsets = vcpus.iter().filter(looked_at).map(|vcpu| vcpu.offset());
    let first = offsets.next().unwrap_or(home);
    offsets.all(|offset| offset == first).then_some(first)
}

/// How long after the time for it the last of these vCPUs went on from the latest pause, as far as they have.
pub(crate) fn last_entry(vcpus: &[Arc<Observed>]) -> Ticks {
    let late = (vcpus.iter()).map(|vcpu| vcpu.entered_late.load(Ordering::Relaxed));
    Ticks::new(late.max().unwrap_or(0))
}

/// The error of a guest with these vCPUs; nothing before they were looked at.
pub(crate) fn guests_error(vcpus: &[Arc<Observed>]) -> Option<ErrorReport> {
    let error = error_bounds(vcpus)?;
    let largest = vcpus
        .iter()
        .map(|vcpu| vcpu.largest_error.load(Ordering::Relaxed));
    Some(ErrorReport {
        at_least_ns: error.at_least.get(),
        at_most_ns: error.at_most.get(),
        largest_ns: largest.max_by_key(|error| error.unsigned_abs())?,
    })
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
    /// How often KVM gave another TSC for it than its offset and ratio make of the host's.
    contradicted_looks: u64,
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

impl VcpuReport {
    /// How often KVM contradicted itself about the vCPU's TSC.
    pub(crate) fn contradicted_looks(&self) -> u64 {
        self.contradicted_looks
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

    pub(super) fn went_backwards(&self, step: Step) {
        add(&self.backwards);
        raise(&self.largest_backwards, step.by.get());
        if self.step_cpus.load(Ordering::Acquire) == 0 {
            self.step_by.store(step.by.get(), Ordering::Relaxed);
            // Never 0, which is an empty slot: CPUs have fewer than 2^31 numbers.
            let cpus = u64::from(step.from.get()) << 32 | u64::from(step.to.get()) | 1 << 63;
            self.step_cpus.store(cpus, Ordering::Release);
        }
    }

    /// The first step back since this was asked last.
    pub(super) fn take_step(&self) -> Option<Step> {
        let cpus = self.step_cpus.load(Ordering::Acquire);
        if cpus == 0 {
            return None;
        }
        let by = Ticks::new(self.step_by.load(Ordering::Relaxed));
        self.step_cpus.store(0, Ordering::Release);
        let cpu = |bits: u64| CpuId::new(u32::try_from(bits & 0x7fff_ffff).unwrap_or(0));
        Some(Step {
            from: cpu(cpus >> 32),
            to: cpu(cpus),
            by,
        })
    }

    /// The clock departed, and nobody moved the offset.
    pub(super) fn jumped(&self, departure: Departure) {
        let (Departure::Leapt(by) | Departure::Lagged(by)) = departure;
        self.jump.fetch_max(by.get(), Ordering::Relaxed);
    }

    /// By how much at most since this was asked last, if it did.
    pub(super) fn take_jump(&self) -> Option<Ticks> {
        let by = self.jump.swap(0, Ordering::Relaxed);
        (by > 0).then(|| Ticks::new(by))
    }

    /// Within which bounds the clock is off its line.
    pub(super) fn error(&self) -> ErrorBounds {
        let get = |value: &AtomicI64| NanosDelta::new(value.load(Ordering::Relaxed));
        ErrorBounds {
            at_least: get(&self.error_at_least),
            at_most: get(&self.error_at_most),
        }
    }

    pub(super) fn looked(&self, at: Nanos, offset: TscOffset) {
        self.looked_at.store(at.get(), Ordering::Relaxed);
        self.offset.store(offset.get(), Ordering::Relaxed);
        // Last: who sees a look sees the offset.
        let looks = self.looks.load(Ordering::Relaxed).wrapping_add(1);
        self.looks.store(looks, Ordering::Release);
    }

    /// The offset is another one from now on.
    pub(super) fn set_to(&self, offset: TscOffset) {
        self.offset.store(offset.get(), Ordering::Relaxed);
    }

    pub(super) fn could_not_look(&self) {
        add(&self.failed_looks);
    }

    pub(crate) fn was_contradicted(&self) {
        add(&self.contradicted_looks);
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

    /// The offset at the latest look.
    fn offset(&self) -> TscOffset {
        TscOffset::new(self.offset.load(Ordering::Relaxed))
    }

    /// How often somebody else moved the offset.
    pub(super) fn offset_moves(&self) -> u64 {
        self.offset_moves.load(Ordering::Relaxed)
    }

    /// By how much the guest's clock is ahead of where it was taken to last, or of its line, at least.
    pub(super) fn lead_at_least(&self) -> NanosDelta {
        NanosDelta::new(self.lead.load(Ordering::Relaxed))
    }

    pub(super) fn entered_late(&self, late: Ticks) {
        self.entered_late.store(late.get(), Ordering::Relaxed);
    }

    pub(super) fn leads_by(&self, at_least: NanosDelta) {
        self.lead.store(at_least.get(), Ordering::Relaxed);
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
            contradicted_looks: get(&self.contradicted_looks),
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
    fn step_waits_for_the_watch_and_is_told_as_it_was() {
        let observed = Observed::default();
        assert_eq!(observed.take_step(), None);
        let step = |from, to, by| Step {
            from: CpuId::new(from),
            to: CpuId::new(to),
            by: Ticks::new(by),
        };
        observed.went_backwards(step(0, 0, 7));
        // Counted, and not mixed up with the one that waits.
        observed.went_backwards(step(3, 1, 9));
        assert_eq!(observed.take_step(), Some(step(0, 0, 7)));
        assert_eq!(observed.take_step(), None);
        observed.went_backwards(step(1_023, 4, 5));
        assert_eq!(observed.take_step(), Some(step(1_023, 4, 5)));
        assert_eq!(observed.report(0).largest_backwards_step_ticks, 9);
    }

    #[test]
    fn guests_error_is_that_of_all_vcpus_together() {
        let vcpus: Vec<_> = (0..3).map(|_| Arc::new(Observed::default())).collect();
        assert_eq!(guests_error(&vcpus), None);
        for (vcpu, (at_least, at_most)) in vcpus.iter().zip([(-3, 5), (-900, -700)]) {
            vcpu.looked(Nanos::ZERO, TscOffset::ZERO);
            vcpu.is_off_by(ErrorBounds {
                at_least: NanosDelta::new(at_least),
                at_most: NanosDelta::new(at_most),
            });
        }
        let expected = ErrorReport {
            at_least_ns: -900,
            at_most_ns: 5,
            largest_ns: -700,
        };
        assert_eq!(guests_error(&vcpus), Some(expected));
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
        observed.leads_by(NanosDelta::new(20));
        assert_eq!(observed.lead_at_least(), NanosDelta::new(20));
    }
}
