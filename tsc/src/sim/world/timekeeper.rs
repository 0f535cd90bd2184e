//! The part that a kernel or a timekeeper plays around the policies: it measures skews, keeps the
//! marks, and carries decisions out.

use super::{EXCHANGES, World, cpu_id};
use crate::policy::{
    CatchUp, Decision, Fault, Line, Policy, Slew, Svm2010, Targeted, TargetedConfig, Unified2010,
    UnifiedCatchup2010, Vmx2010,
};
use crate::rate::{TickRate, ticks_exact_floor};
use crate::sim::host::Clocksource;
use crate::sim::report::{PolicyKind, SLEW_BOUND};
use crate::skew::{SkewBounds, SkewMatrix};
use crate::stability::{Cause, Marked, PlatformReport};
use crate::units::{GuestTsc, Khz, Nanos, Ppm, Ticks};

impl World<'_> {
    /// Exchanges timestamps between all CPUs, and marks the pairs that are provably apart by more
    /// than a guest can fail to see.
    pub(super) fn measure(&mut self) {
        let ids: Vec<_> = (0..self.cpus.len()).map(cpu_id).collect();
        // What was proven before still is, until something contradicts it.
        let Ok(fresh) = SkewMatrix::new(&ids) else {
            return;
        };
        let mut matrix = self.skews.take().unwrap_or_else(|| fresh.clone());
        for a in 0..self.cpus.len() {
            for b in a + 1..self.cpus.len() {
                let mut bounds: Option<SkewBounds> = None;
                for _ in 0..EXCHANGES {
                    let there = self.now + self.delays.between(self.scenario.host.message_ns);
                    let back = there + self.delays.between(self.scenario.host.message_ns);
                    let (sent, received) = (self.cpus[a].read(self.now), self.cpus[a].read(back));
                    let remote = self.cpus[b].read(there);
                    let Ok(skew) = SkewBounds::from_exchange(sent, remote, received) else {
                        continue;
                    };
                    bounds = bounds.map_or(Some(skew), |known| known.intersect(skew).ok());
                }
                if let Some(bounds) = bounds
                    && matrix.note(ids[a], ids[b], bounds).is_err()
                {
                    matrix = fresh.clone();
                    // Cannot fail in a matrix that knows nothing.
                    let _ = matrix.note(ids[a], ids[b], bounds);
                }
            }
        }
        self.skews = matrix.sharpen().is_ok().then_some(matrix);
        let Some(skews) = &self.skews else { return };
        let visible = Khz::new(self.scenario.host.nominal_khz)
            .and_then(|khz| ticks_exact_floor(Nanos::new(self.scenario.host.message_ns.0), khz))
            .unwrap_or(Ticks::ZERO);
        let at = self.clocks(0).1;
        for (index, &a) in ids.iter().enumerate() {
            for &b in &ids[index + 1..] {
                if let Some(bounds) = skews.between(a, b).filter(|skew| skew.is_beyond(visible)) {
                    self.stability.mark(Cause::Skew { a, b, bounds }, at);
                }
            }
        }
    }

    /// How wrong the monotonic clock can be: its resolution, or the skews that it is made of.
    pub(super) fn clock_error(&self, khz: Khz) -> Nanos {
        match self.clock.source() {
            Clocksource::Hpet { period_fs } => Nanos::new(period_fs.div_ceil(1_000_000)),
            Clocksource::Tsc => {
                let ids: Vec<_> = (0..self.cpus.len()).map(cpu_id).collect();
                let pairs = ids.iter().flat_map(|&a| ids.iter().map(move |&b| (a, b)));
                let skews = self.skews.as_ref();
                let largest = pairs
                    .filter_map(|(a, b)| skews?.between(a, b))
                    .map(SkewBounds::largest_magnitude)
                    .max()
                    .unwrap_or(Ticks::ZERO);
                let nanos = u128::from(largest.get()) * 1_000_000;
                let nanos = nanos.div_ceil(u128::from(khz.get()));
                Nanos::new(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    pub(super) fn fault(&self, from: usize, to: usize) -> Fault {
        let (from, to) = (cpu_id(from), cpu_id(to));
        let host = self.stability.host().is_some();
        Fault {
            pair: self.stability.between(from, to).is_some(),
            lags: self.stability.on(to).or(self.stability.on(from)).is_some(),
            // Skews of counters that do not keep time are history.
            skew: self
                .skews
                .as_ref()
                .filter(|_| !host)
                .and_then(|skews| skews.estimate(from, to)),
        }
    }

    pub(super) fn obey(&mut self, vcpu: usize, decision: &Decision) {
        if let Some(by) = decision.adjust {
            let offset = &mut self.vcpus[vcpu].offset;
            *offset = offset.wrapping_add(by);
            self.offset_writes += 1;
        }
        if let Some(cause) = decision.accuse {
            let (tsc, at) = self.clocks(0);
            if self.stability.mark(cause, at) == Marked::New {
                if cause == Cause::Platform(PlatformReport::KernelMark) {
                    // mark_tsc_unstable(): the kernel's clock leaves the TSC too.
                    self.clock.leave_tsc(self.now, tsc);
                }
                if self.kind.is_targeted() {
                    self.measure();
                }
            }
        }
    }
}

/// A vCPU's policy: its TSC was set to 0 at `start`, on a host whose clock is right to `clock_error`.
pub(super) fn policy(
    kind: PolicyKind,
    khz: Khz,
    start: Nanos,
    clock_error: Nanos,
) -> Box<dyn Policy> {
    match kind {
        PolicyKind::Svm2010 => Box::new(Svm2010),
        PolicyKind::Vmx2010 => Box::new(Vmx2010),
        PolicyKind::Unified2010 => Box::new(Unified2010),
        PolicyKind::UnifiedCatchup2010 => {
            Box::new(UnifiedCatchup2010::new(GuestTsc::new(0), start, khz))
        }
        PolicyKind::Targeted | PolicyKind::TargetedSlew => {
            Box::new(Targeted::new(TargetedConfig {
                line: Line::through(GuestTsc::new(0), start, TickRate::new(khz)),
                catch_up: match (kind, Slew::new(SLEW_BOUND)) {
                    (PolicyKind::TargetedSlew, Some(slew)) => CatchUp::Slew(slew),
                    _ => CatchUp::Step,
                },
                clock_error,
                rate_tolerance: Ppm::new(500).unwrap_or(Ppm::KVM_TOLERANCE),
                recheck: Nanos::new(50_000),
            }))
        }
    }
}
