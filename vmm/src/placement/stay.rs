//! The thread that makes a VM, sets its clocks or destroys it, kept where the VM is.

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

use super::threads::{AffinityError, Threads, cpu_set, place};
use crate::config::CpuList;
use crate::error::one_line;

/// Keeps a thread on some CPUs. Dropped, the thread runs where it did before.
#[derive(Debug)]
pub(crate) struct Stay {
    thread: Pid,
    before: CpuSet,
}

impl Stay {
    /// Keeps this thread on the CPUs of `threads`, where these are kept on some.
    ///
    /// For one that reads the TSC by which these vCPUs' clocks are set: their CPUs' it is to be. And for one that is
    /// about to destroy the VM: the kernel loads each vCPU on the CPU that closes the VM's last descriptor
    /// (`kvm_unload_vcpu_mmus` in arch/x86/kvm/x86.c), and where that CPU's TSC is behind, gives up the TSC of the
    /// whole host, as at any such move.
    pub(crate) fn beside(threads: &Threads) -> Option<Self> {
        let stay = Self::on(&threads.cpus()?);
        if let Err(error) = &stay {
            tracing::debug!(
                "a thread is elsewhere than its microVM: {}",
                one_line(error)
            );
        }
        stay.ok()
    }

    /// Keeps this thread on `cpus`.
    pub(super) fn on(cpus: &CpuList) -> Result<Self, AffinityError> {
        let thread = gettid();
        let before = sched_getaffinity(None).map_err(|source| AffinityError::Read { source })?;
        let stay = Self { thread, before };
        place(thread, cpus, &cpu_set(cpus))?;
        Ok(stay)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // By its number: whoever drops this may be another thread of the process.
        if let Err(error) = sched_setaffinity(Some(self.thread), &self.before) {
            tracing::debug!("a thread stays where a microVM was made: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assessment::cpus::allowed;

    #[test]
    fn thread_stays_until_the_end_and_threads_that_it_starts_begin_there() {
        let before = allowed().expect("told");
        let last = *before.last().expect("one at least");
        let stay = Stay::on(&[last].into_iter().collect()).expect("allowed");
        assert_eq!(allowed().expect("told"), [last]);
        let inherited = std::thread::spawn(|| allowed().expect("told")).join();
        assert_eq!(inherited.expect("no panic"), [last]);
        drop(stay);
        assert_eq!(allowed().expect("told"), before);
    }
}
