//! The CPUs that this process may run on, and counters that are known to be of one of them.

use std::thread::ScopedJoinHandle;

use hypervisor::host::{self, Rdtscp};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use tsc::{CpuId, HostTsc};

/// A measurement on certain CPUs could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuError {
    /// The kernel does not say which CPUs are ours.
    #[error("the kernel does not tell which CPUs this process may run on")]
    Affinity(#[source] Errno),
    /// The kernel does not let a thread run there.
    #[error("no thread can be kept on {cpu}")]
    Pin {
        /// The CPU.
        cpu: CpuId,
        /// The kernel's reason.
        source: Errno,
    },
    /// A thread was found elsewhere: somebody else moved it.
    #[error("a thread that was kept on {cpu} was found on {found}")]
    Moved {
        /// Where it belongs.
        cpu: CpuId,
        /// Where it was.
        found: CpuId,
    },
    /// The host has no thread to give.
    #[error("no thread can be started")]
    Thread(#[source] std::io::Error),
}

/// The CPUs that this thread may run on, in the order of their numbers. There is at least one.
pub(crate) fn allowed() -> Result<Vec<CpuId>, CpuError> {
    let set = sched_getaffinity(None).map_err(CpuError::Affinity)?;
    Ok((0..)
        .zip(0..CpuSet::MAX_CPU)
        .filter(|&(_, index)| set.is_set(index))
        .map(|(number, _)| CpuId::new(number))
        .collect())
}

/// The counter of one CPU, for the thread that is kept on it.
#[derive(Debug)]
pub(crate) struct Counter {
    cpu: CpuId,
    rdtscp: Option<Rdtscp>,
}

impl Counter {
    /// Keeps this thread on `cpu` from now on.
    pub(crate) fn on(cpu: CpuId) -> Result<Self, CpuError> {
        let mut set = CpuSet::new();
        // OK because usize has 64 bits on the only architecture that there is.
        set.set(usize::try_from(cpu.get()).unwrap_or(usize::MAX));
        sched_setaffinity(None, &set).map_err(|source| CpuError::Pin { cpu, source })?;
        check(cpu, current())?;
        // Only Linux's convention for RDTSCP's third register names the CPU: see that it is kept.
        let rdtscp = Rdtscp::detect().filter(|rdtscp| rdtscp.read().1 == cpu);
        Ok(Self { cpu, rdtscp })
    }

    /// Reads the counter.
    ///
    /// # Errors
    /// The thread is not where it belongs: the reading would be of another counter.
    pub(crate) fn read(&self) -> Result<HostTsc, CpuError> {
        let (ticks, found) = match self.rdtscp {
            Some(rdtscp) => rdtscp.read(),
            None => (host::read_tsc(), current()),
        };
        check(self.cpu, found)?;
        Ok(ticks)
    }
}

/// The CPU that this thread is on, or was a moment ago.
pub(crate) fn current() -> CpuId {
    CpuId::new(u32::try_from(sched_getcpu()).unwrap_or(u32::MAX))
}

fn check(cpu: CpuId, found: CpuId) -> Result<(), CpuError> {
    if found == cpu {
        Ok(())
    } else {
        Err(CpuError::Moved { cpu, found })
    }
}

/// Runs `measure` on a thread of its own that is kept on `cpu`.
pub(crate) fn measure_on<T: Send>(
    cpu: CpuId,
    measure: impl FnOnce(&Counter) -> Result<T, CpuError> + Send,
) -> Result<T, CpuError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(format!("on-cpu{}", cpu.get()))
            .spawn_scoped(scope, move || measure(&Counter::on(cpu)?))
            .map(joined)
            .map_err(CpuError::Thread)?
    })
}

/// What a thread came to; its panic, if it came to one, goes on here.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_allowed_cpu_can_be_measured_and_no_other() {
        let cpus = allowed().expect("Linux tells");
        assert!(!cpus.is_empty());
        for &cpu in &cpus {
            measure_on(cpu, |counter| counter.read()).expect("allowed");
        }
        let absent = CpuId::new(1023);
        assert!(cpus.contains(&absent) || measure_on(absent, |counter| counter.read()).is_err());
        // the measurements left this thread where it was
        assert_eq!(allowed().expect("Linux tells"), cpus);
    }
}
