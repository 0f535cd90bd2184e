//! A host of several CPUs, whose counters need not agree.

use tsc::{CpuId, HostTsc, Khz, Nanos, TscDelta, ticks_exact_floor};

use super::Faults;

/// One physical CPU's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// What it counts per second.
    pub rate: Khz,
    /// What it read at the host's time 0.
    pub start: HostTsc,
}

/// A host: its CPUs' counters, what its kernel believes about them, and what time it is.
#[derive(Clone, Debug)]
pub struct ModelHost {
    pub(super) cpus: Vec<HostCpu>,
    /// The rate that the kernel has calibrated (`tsc_khz`).
    pub(super) calibrated: Khz,
    /// The hardware can scale, and the kernel says so (`KVM_CAP_TSC_CONTROL`).
    pub(super) scaling: bool,
    /// The kernel does not trust the TSC (`check_tsc_unstable`), from the start or since it met a
    /// backwards step.
    pub(super) unstable: bool,
    pub(super) backwards_seen: bool,
    pub(super) now: Nanos,
    pub(super) faults: Faults,
}

impl ModelHost {
    /// A host of `cpus` CPUs, all counting at `rate` from one start, that can scale.
    #[must_use]
    pub fn uniform(cpus: usize, rate: Khz, faults: Faults) -> Self {
        let cpu = HostCpu {
            rate,
            // A host that has been up for a while: 2^40 ticks.
            start: HostTsc::new(1 << 40),
        };
        Self {
            cpus: vec![cpu; cpus.max(1)],
            calibrated: rate,
            scaling: true,
            unstable: false,
            backwards_seen: false,
            now: Nanos::ZERO,
            faults,
        }
    }

    /// The same host without scaling hardware.
    #[must_use]
    pub fn without_scaling(mut self) -> Self {
        self.scaling = false;
        self
    }

    /// The same host, whose kernel does not trust the TSC.
    #[must_use]
    pub fn unstable(mut self) -> Self {
        self.unstable = true;
        self
    }

    /// The same host with `cpu`'s counter moved by `by`; no change if there is no such CPU.
    #[must_use]
    pub fn with_skew(mut self, cpu: CpuId, by: TscDelta) -> Self {
        let found = usize::try_from(cpu.get())
            .ok()
            .and_then(|index| self.cpus.get_mut(index));
        if let Some(cpu) = found {
            cpu.start = cpu.start.wrapping_add(by);
        }
        self
    }

    /// How many CPUs it has.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// The time since the model began, which its monotonic clocks tell.
    #[must_use]
    pub const fn now(&self) -> Nanos {
        self.now
    }

    /// Whether the kernel has lost its trust in the TSC.
    #[must_use]
    pub const fn is_unstable(&self) -> bool {
        self.unstable
    }

    /// What `cpu`'s counter reads now.
    ///
    /// # Panics
    /// When there is no such CPU: a mistake in a test.
    #[must_use]
    pub fn tsc(&self, cpu: CpuId) -> HostTsc {
        let index = usize::try_from(cpu.get()).expect("CPU numbers fit");
        let cpu = self.cpus[index];
        let ticks =
            ticks_exact_floor(self.now, cpu.rate).expect("the model runs for years at most");
        cpu.start.wrapping_advance(ticks)
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Nanos) {
        self.now = self.now.saturating_add(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_count_at_their_own_rate_from_their_own_start() {
        let khz = |khz| Khz::new(khz).expect("not zero");
        let mut host = ModelHost::uniform(2, khz(3_000_000), Faults::default())
            .with_skew(CpuId::new(1), TscDelta::new(-500));
        host.cpus[1].rate = khz(1_500_000);
        host.pass(Nanos::new(1_000));
        // 1 us: 3000 and 1500 ticks
        let start = 1_u64 << 40;
        assert_eq!(host.tsc(CpuId::new(0)), HostTsc::new(start + 3_000));
        assert_eq!(host.tsc(CpuId::new(1)), HostTsc::new(start - 500 + 1_500));
    }
}
