//! The CPUs that a guest's vCPU threads are kept on.
//!
//! A vCPU whose thread moves between CPUs whose TSCs disagree takes its guest's clock along, backwards or
//! forward; and the first such move backwards makes KVM give up the TSC of the whole host
//! (`kvm_arch_vcpu_load` in arch/x86/kvm/x86.c). So the threads are kept within one *TSC domain*, a set of
//! CPUs whose TSCs are proven to be within a microsecond of each other, and between which no message was seen
//! to arrive before it was sent:
//!
//! | `tsc_domain` | the threads run |
//! | --- | --- |
//! | `auto` | in one domain, where the TSCs of the allowed CPUs are proven to disagree; else where the kernel likes |
//! | a list, `0-3,8` | on exactly these CPUs, which must be allowed; that they disagree is told |
//! | `off` | where the kernel likes |
//!
//! # Before it is known
//!
//! What was measured in the last hour of this boot is in a file ([`crate::assessment::cache`]): then all
//! is decided before the VM is made, and with one domain nothing at all is done. Otherwise `auto` measures
//! beside the guest's boot, and until then keeps the threads on **the one CPU that the VM was made on**, but
//! for no longer than [`HOLD`]. Nothing is lost by it: two CPUs need a millisecond, in which a guest's
//! further vCPUs do not run yet, and no guest takes part in what breaks time. Of a host so large or so busy
//! that it takes longer, the kernel is believed meanwhile.
//!
//! The thread that makes the VM is kept in the same place until the vCPUs' threads run: KVM notes the TSC of
//! the CPU on which a vCPU was set up, and offsets are relative to it. That is why a domain found beside the
//! boot is the one of that CPU, even if another has more CPUs; the next launch finds it in the file, and
//! makes its VM in the largest. It is kept there once more at the end, while it destroys the VM.

mod decision;
mod stay;
mod threads;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use tsc::{CpuId, Khz};

use crate::assessment::cache::{Cache, Key};
use crate::assessment::{self, Finding, cpus};
use crate::code;
use crate::config::{CpuList, TscDomain};
use crate::error::one_line;
use crate::host_clock;
use crate::seccomp::{Filters, Role};
use crate::vcpu::Ending;
use decision::Choice;
pub(crate) use stay::Stay;
pub(crate) use threads::{AffinityError, Threads};

/// The threads are held on one CPU for no longer than this and one pair's measurement.
const HOLD: Duration = Duration::from_millis(20);

/// The vCPUs' threads cannot be placed as was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlacementError {
    /// CPUs that this process may not run on.
    #[error(
        "tsc_domain {asked}: CPU {missing} cannot be had; this process may run on {allowed}: name some of \
         these, or auto"
    )]
    NotAllowed {
        /// The list that was asked for.
        asked: String,
        /// What cannot be had of it.
        missing: String,
        /// What can be had.
        allowed: String,
    },
    /// The kernel does not tell or does not obey.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// The kernel does not say which CPUs are ours.
    #[error(transparent)]
    Cpus(#[from] cpus::CpuError),
}

/// Measures the skews of CPUs; see [`assessment::measure`].
type Measure = fn(&CpuList, Option<Khz>, &mut dyn FnMut() -> bool) -> Option<Finding>;

/// What placement asks of the host.
#[derive(Clone, Debug)]
pub(crate) struct Senses {
    allowed: fn() -> Result<Vec<CpuId>, cpus::CpuError>,
    current: fn() -> CpuId,
    measure: Measure,
    cache: Option<Cache>,
}

impl Senses {
    /// The machine that this runs on.
    pub(crate) fn this_host() -> Self {
        Self {
            allowed: cpus::allowed,
            current: cpus::current,
            measure: assessment::measure,
            cache: Cache::of_this_user(),
        }
    }
}

/// How it is known how the TSCs lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KnownBy {
    /// There is one CPU.
    OneCpu,
    /// By timestamps that were exchanged beside this guest's boot.
    Measurement,
    /// By those of another launch on the same boot of the host.
    Cache,
    /// Nothing is proven; the kernel's own check is believed.
    Assumption,
    /// It is being measured.
    Pending,
}

/// What follows for a guest, when it is not what one would want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drawback {
    pub(crate) consequence: String,
}

/// What is known, and what was done.
#[derive(Clone, Debug)]
struct State {
    known_by: KnownBy,
    finding: Option<Finding>,
    drawbacks: Vec<Drawback>,
}

/// Where a machine's vCPU threads run.
#[derive(Debug)]
pub(crate) struct Placement {
    mode: TscDomain,
    vcpus: u8,
    allowed: CpuList,
    /// The CPU that the VM is made on, where that matters.
    home: Option<CpuId>,
    key: Option<Key>,
    senses: Senses,
    state: Arc<Mutex<State>>,
    /// The threads begin there.
    first: Option<CpuList>,
    /// Keeps the thread that makes the VM; dropped when the vCPUs' threads run.
    stay: Option<Stay>,
}

/// What the time report tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) mode: TscDomain,
    pub(crate) allowed: CpuList,
    pub(crate) known_by: KnownBy,
    pub(crate) finding: Option<Finding>,
    pub(crate) drawbacks: Vec<Drawback>,
    /// The CPUs of each vCPU's thread, read from the kernel now; `None` for one that has ended.
    pub(crate) in_force: Vec<Option<CpuList>>,
}

impl Placement {
    /// Decides what can be before the VM is made, and keeps this thread where the VM is to be made.
    ///
    /// # Errors
    /// CPUs that were asked for cannot be had.
    pub(crate) fn prepare(
        mode: TscDomain,
        vcpus: u8,
        senses: Senses,
    ) -> Result<Self, PlacementError> {
        let allowed: CpuList = (senses.allowed)()?.into_iter().collect();
        let mut state = State {
            known_by: KnownBy::Assumption,
            finding: None,
            drawbacks: Vec::new(),
        };
        let mut key = None;
        if allowed.count() <= 1 {
            state.known_by = KnownBy::OneCpu;
        } else if mode != TscDomain::Off {
            key = senses.cache.as_ref().and_then(|_| Key::now(allowed));
            let cache = senses.cache.as_ref().zip(key.as_ref());
            state.finding = cache.and_then(|(cache, key)| cache.load(key));
            state.known_by = match state.finding {
                Some(_) => KnownBy::Cache,
                None => KnownBy::Pending,
            };
        }
        let mut home = None;
        let choice = match (mode, &state.finding) {
            (TscDomain::Cpus(list), finding) => {
                decision::check(list, allowed)?;
                decision::of_list(list, finding.as_ref(), vcpus)
            }
            (TscDomain::Auto, Some(finding)) => decision::by_itself(finding, None, vcpus),
            (TscDomain::Auto, None) if state.known_by == KnownBy::Pending => {
                let here = (senses.current)();
                home = Some(here);
                Choice::on([here].into_iter().collect())
            }
            (TscDomain::Auto | TscDomain::Off, _) => Choice::default(),
        };
        tell(&choice.drawbacks);
        state.drawbacks = choice.drawbacks;
        let stay = choice.cpus.map(|cpus| Stay::on(&cpus)).transpose()?;
        Ok(Self {
            mode,
            vcpus,
            allowed,
            home,
            key,
            senses,
            state: Arc::new(Mutex::new(state)),
            first: choice.cpus,
            stay,
        })
    }

    /// Where the vCPUs' threads begin; wherever the kernel likes when there is none.
    pub(crate) fn first(&self) -> Option<CpuList> {
        self.first
    }

    /// Whether the threads' placement is left to us.
    pub(crate) fn is_auto(&self) -> bool {
        self.mode == TscDomain::Auto
    }

    /// Lets go of the thread that made the VM: the vCPUs' threads run.
    pub(crate) fn release(&mut self) {
        self.stay = None;
    }

    /// Measures what is not known yet, at the TSC's rate `khz`, and keeps `threads` accordingly.
    ///
    /// # Errors
    /// The host has no thread for it.
    pub(crate) fn go_on(
        &self,
        khz: Option<Khz>,
        threads: Arc<Threads>,
        ending: Arc<Ending>,
        filters: Filters,
    ) -> std::io::Result<Option<Measuring>> {
        if lock(&self.state).known_by != KnownBy::Pending {
            return Ok(None);
        }
        let task = Task {
            mode: self.mode,
            vcpus: self.vcpus,
            allowed: self.allowed,
            home: self.home,
            key: self.key.clone(),
            senses: self.senses.clone(),
            state: self.state.clone(),
            threads,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let handle = std::thread::Builder::new()
            .name("assess".to_owned())
            .spawn(move || match filters.enter(Role::Assess) {
                Ok(()) => {
                    ending.unless_it_panics("assess", || task.run(khz, &stopped));
                    code::note_use();
                }
                Err(error) => tracing::error!("TSCs are not measured: {}", one_line(&error)),
            })?;
        Ok(Some(Measuring {
            stop,
            handle: Some(handle),
        }))
    }

    /// What is known and in force now.
    pub(crate) fn placed(&self, threads: &Threads) -> Placed {
        let state = lock(&self.state).clone();
        Placed {
            mode: self.mode,
            allowed: self.allowed,
            known_by: state.known_by,
            finding: state.finding,
            drawbacks: state.drawbacks,
            in_force: threads.in_force(self.vcpus),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // It is changed in whole steps.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(drawbacks: &[Drawback]) {
    for drawback in drawbacks {
        tracing::warn!("{}", drawback.consequence);
    }
}

/// A measurement beside the guest's boot. Dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Measuring {
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Measuring {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle.take() {
            // It has nothing left to tell.
            let _ = handle.join();
        }
    }
}

struct Task {
    mode: TscDomain,
    vcpus: u8,
    allowed: CpuList,
    home: Option<CpuId>,
    key: Option<Key>,
    senses: Senses,
    state: Arc<Mutex<State>>,
    threads: Arc<Threads>,
}

impl Task {
    fn run(&self, khz: Option<Khz>, stop: &AtomicBool) {
        // Of no CPU: this thread runs where it likes, and the CPUs' clocks may disagree.
        let begun = host_clock::monotonic_coarse();
        let mut held = self.home.is_some();
        let mut go_on = || {
            if held && host_clock::elapsed_since(begun) >= HOLD {
                held = false;
                self.place(&self.allowed);
            }
            !stop.load(Ordering::Relaxed)
        };
        let Some(finding) = (self.senses.measure)(&self.allowed, khz, &mut go_on) else {
            return;
        };
        if let (Some(cache), Some(key)) = (&self.senses.cache, &self.key) {
            cache.store(key, &finding);
        }
        let choice = match self.mode {
            TscDomain::Auto => decision::by_itself(&finding, self.home, self.vcpus),
            TscDomain::Cpus(list) => decision::of_list(list, Some(&finding), self.vcpus),
            TscDomain::Off => Choice::default(),
        };
        match choice.cpus {
            Some(cpus) => self.place(&cpus),
            None if held => self.place(&self.allowed),
            None => {}
        }
        let mut state = lock(&self.state);
        let told = state.drawbacks.len();
        tell(choice.drawbacks.get(told..).unwrap_or_default());
        state.known_by = match finding.agree {
            assessment::Agreement::Unproven => KnownBy::Assumption,
            assessment::Agreement::Proven | assessment::Agreement::Refuted => KnownBy::Measurement,
        };
        state.drawbacks = choice.drawbacks;
        state.finding = Some(finding);
    }

    fn place(&self, cpus: &CpuList) {
        if let Err(error) = self.threads.confine(cpus) {
            tracing::warn!(
                "the vCPUs' threads are not where they should be: {}",
                one_line(&error)
            );
        }
    }
}

#[cfg(test)]
mod tests;
