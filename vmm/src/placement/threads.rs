//! The vCPUs' threads and their affinity.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use tsc::{CpuId, VcpuId};

use crate::config::CpuList;

/// A thread is not where it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AffinityError {
    /// The kernel refuses.
    #[error("a thread cannot be kept on CPUs {cpus}")]
    Refused {
        /// Where it was to run.
        cpus: String,
        /// Why not.
        source: Errno,
    },
    /// The kernel took other CPUs: those of a cpuset.
    #[error("a thread was to be kept on CPUs {asked} and is on {in_force}")]
    Other {
        /// Where it was to run.
        asked: String,
        /// Where it runs.
        in_force: String,
    },
    /// The kernel does not tell.
    #[error("the kernel does not tell on which CPUs a thread runs")]
    Read {
        /// Why not.
        source: Errno,
    },
}

/// The vCPUs' threads that run, and where they are to. Whoever looks at them holds the lock, so that no
/// number in it is that of a thread that has ended.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Where they are kept; wherever the kernel likes when there is none.
    cpus: Option<CpuList>,
    running: Vec<(VcpuId, Pid)>,
    /// Where each was that was asked about.
    seen: BTreeMap<VcpuId, CpuList>,
}

/// A running thread's entry. Dropped, it is taken out.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    threads: &'a Threads,
    vcpu: VcpuId,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut inner = self.threads.lock();
        inner.running.retain(|(vcpu, _)| *vcpu != self.vcpu);
    }
}

impl Threads {
    /// For threads that begin on `first`.
    pub(crate) fn beginning_on(first: Option<CpuList>) -> Self {
        Self(Mutex::new(Inner {
            cpus: first,
            ..Inner::default()
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // It is changed in whole steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes this thread as that of `vcpu`, and goes where it is to run. A thread that cannot be there runs
    /// all the same.
    pub(crate) fn enter(&self, vcpu: VcpuId) -> (Entry<'_>, Result<(), AffinityError>) {
        let thread = gettid();
        let mut inner = self.lock();
        inner.running.push((vcpu, thread));
        let placed = match &inner.cpus {
            Some(cpus) => place(thread, cpus, &cpu_set(cpus)),
            None => Ok(()),
        };
        let threads = self;
        (Entry { threads, vcpu }, placed)
    }

    /// Keeps all of them on `cpus` from now on, those included that do not run yet.
    ///
    /// # Errors
    /// The first that is not there; the others are, as far as they can.
    pub(crate) fn confine(&self, cpus: &CpuList) -> Result<(), AffinityError> {
        let mut inner = self.lock();
        inner.cpus = Some(*cpus);
        let set = cpu_set(cpus);
        let mut placed = Ok(());
        for (_, thread) in &inner.running {
            placed = placed.and(place(*thread, cpus, &set));
        }
        placed
    }

    /// Where they are kept; wherever the kernel likes when there is none.
    pub(super) fn cpus(&self) -> Option<CpuList> {
        self.lock().cpus
    }

    /// Whether a thread may run elsewhere than on `cpus`.
    pub(crate) fn strays(&self, cpus: &CpuList) -> bool {
        let inner = self.lock();
        let mut running = inner.running.iter();
        running.any(|(_, thread)| {
            read(*thread).is_ok_and(|in_force| !in_force.without(cpus).is_empty())
        })
    }

    /// Where the threads of that many vCPUs run, as the kernel tells. Of one that has ended it is where it was when
    /// that was last asked: a report of a guest's end still tells of its life. `None` for one of which nobody knows.
    pub(crate) fn in_force(&self, vcpus: u8) -> Vec<Option<CpuList>> {
        let mut inner = self.lock();
        let Inner { running, seen, .. } = &mut *inner;
        for (vcpu, thread) in running {
            if let Ok(cpus) = read(*thread) {
                seen.insert(*vcpu, cpus);
            }
        }
        (0..u32::from(vcpus))
            .map(|index| seen.get(&VcpuId::new(index)).copied())
            .collect()
    }
}

/// The kernel's form of a list.
pub(super) fn cpu_set(cpus: &CpuList) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus.iter() {
        // OK because usize has 64 bits on the only architecture that there is.
        set.set(usize::try_from(cpu.get()).unwrap_or(usize::MAX));
    }
    set
}

fn read(thread: Pid) -> Result<CpuList, AffinityError> {
    let set = sched_getaffinity(Some(thread)).map_err(|source| AffinityError::Read { source })?;
    Ok((0..)
        .zip(0..CpuSet::MAX_CPU)
        .filter(|&(_, index)| set.is_set(index))
        .map(|(number, _)| CpuId::new(number))
        .collect())
}

/// Keeps `thread` on `cpus`, and looks.
pub(super) fn place(thread: Pid, cpus: &CpuList, set: &CpuSet) -> Result<(), AffinityError> {
    sched_setaffinity(Some(thread), set).map_err(|source| AffinityError::Refused {
        cpus: cpus.to_string(),
        source,
    })?;
    let in_force = read(thread)?;
    if in_force == *cpus {
        Ok(())
    } else {
        Err(AffinityError::Other {
            asked: cpus.to_string(),
            in_force: in_force.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assessment::cpus::allowed;
    use std::sync::mpsc;

    fn one(cpu: CpuId) -> CpuList {
        [cpu].into_iter().collect()
    }

    #[test]
    fn threads_go_where_they_are_to_before_and_while_they_run() {
        let cpus = allowed().expect("told");
        let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
        let threads = Threads::beginning_on(Some(one(first)));
        let (entered, wait) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let threads = &threads;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (entry, placed) = threads.enter(VcpuId::new(1));
                placed.expect("allowed");
                entered.send(()).expect("waited for");
                // Until the other end is dropped.
                let _ = left.recv();
                drop(entry);
            });
            wait.recv().expect("entered");
            assert_eq!(threads.in_force(3), [None, Some(one(first)), None]);
            threads.confine(&one(last)).expect("allowed");
            assert_eq!(threads.in_force(2), [None, Some(one(last))]);
            assert!(!threads.strays(&one(last)));
            assert!(!threads.strays(&cpus.iter().copied().collect()));
            assert_eq!(threads.strays(&one(first)), first != last);
            drop(leave);
        });
        // It was there to its end, and the next one begins there.
        assert_eq!(threads.in_force(2), [None, Some(one(last))]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (_entry, placed) = threads.enter(VcpuId::new(0));
                placed.expect("allowed");
                assert_eq!(threads.in_force(1), [Some(one(last))]);
            });
        });
        // The one that asked is where it was.
        assert_eq!(allowed().expect("told"), cpus);
    }

    #[test]
    fn cpus_that_cannot_be_had_are_told() {
        let absent = one(CpuId::new(1023));
        if allowed().expect("told").contains(&CpuId::new(1023)) {
            return println!("skipped here: this host has CPU 1023");
        }
        let threads = Threads::beginning_on(Some(absent));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (_entry, placed) = threads.enter(VcpuId::new(0));
                let message = placed.expect_err("absent").to_string();
                assert!(message.contains("CPUs 1023"), "{message}");
                threads.confine(&absent).expect_err("absent");
            });
        });
    }
}
