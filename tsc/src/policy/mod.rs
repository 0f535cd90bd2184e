//! What to do with a vCPU's offset when it moves, and when time was lost.
//!
//! Five policies behind one interface. Four are history, faithful to the code of their time, so
//! that the regression of 2011 can be replayed; the fifth is ours.
//!
//! | policy | at a load on another CPU | at any load | later |
//! | --- | --- | --- | --- |
//! | [`Svm2010`] | when the *platform* says unstable: removes the whole delta | | |
//! | [`Vmx2010`] | removes a backwards step, whatever the platform says | | |
//! | [`Unified2010`] | a backwards delta condemns the host; on a condemned host removes the whole delta | | |
//! | [`UnifiedCatchup2010`] | the same | on a condemned host too | gives time back at the next entry |
//! | [`Targeted`] | where these CPUs are at fault: continues the guest's clock | where this CPU is: catches up | the same at ticks |
//!
//! A policy is asked at two moments, [`Policy::load`] and [`Policy::entry`], with everything that it
//! may know, and answers with a [`Decision`]. It holds no clock, no lock and no list. None divides.

mod catch_up;
mod historical;
mod line;
mod targeted;

pub use catch_up::{CatchUp, Slew};
pub use historical::{Svm2010, Unified2010, UnifiedCatchup2010, Vmx2010};
pub use line::{HighestRate, Line};
pub use targeted::{Targeted, TargetedConfig};

use core::fmt;

use crate::stability::Cause;
use crate::units::{CpuId, HostTsc, Nanos, TscDelta, TscOffset};

/// Where and when a vCPU last ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The CPU.
    pub cpu: CpuId,
    /// Its counter when the vCPU was put (`kvm_arch_vcpu_put`): the guest has read nothing later.
    pub tsc: HostTsc,
    /// The monotonic clock then.
    pub at: Nanos,
    /// Its counter at the time of the load, when the vCPU moved: Intel's code of 2010 asked the old
    /// CPU for it while it flushed the VMCS there (`__vcpu_clear`).
    pub tsc_at_move: Option<HostTsc>,
}

/// What the caller knows against the CPUs of a load, by [`crate::stability`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The pair of the CPU left and the CPU reached is marked.
    pub pair: bool,
    /// The CPU reached, or the CPU left, does not keep time by itself; or the whole host does not.
    pub lags: bool,
    /// The counter reached less the counter left, where exchanged timestamps tell
    /// ([`crate::skew::SkewMatrix::estimate`]).
    pub skew: Option<TscDelta>,
}

/// A vCPU is about to run on a CPU: for the first time, after an exit to user space, after a halt,
/// after it was preempted, or after a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The CPU.
    pub cpu: CpuId,
    /// Its counter.
    pub tsc: HostTsc,
    /// The host's monotonic clock.
    pub at: Nanos,
    /// Where the vCPU comes from; `None` when it has not run.
    pub left: Option<Left>,
    /// The offset in force.
    pub offset: TscOffset,
    /// What `check_tsc_unstable()` answers: the platform, or a policy before, condemned the host.
    pub host_unstable: bool,
    /// What is held against these CPUs.
    pub fault: Fault,
}

impl Load {
    /// Whether the vCPU comes from another CPU.
    #[must_use]
    pub fn moved(&self) -> bool {
        self.left.is_some_and(|left| left.cpu != self.cpu)
    }

    /// `TSC(now) - TSC(put)` as the kernel computes it: 0 before the first run.
    #[must_use]
    pub fn host_delta(&self) -> TscDelta {
        self.left
            .map_or(TscDelta::ZERO, |left| self.tsc.wrapping_since(left.tsc))
    }
}

/// The moment before the guest runs: after a load that asked for it, at the host's ticks, and when
/// a decision before asked to be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The CPU.
    pub cpu: CpuId,
    /// Its counter.
    pub tsc: HostTsc,
    /// The host's monotonic clock.
    pub at: Nanos,
    /// The offset in force.
    pub offset: TscOffset,
    /// A load asked for this (`KVM_REQ_CLOCK_UPDATE`); otherwise time is the occasion.
    pub requested: bool,
    /// What is held against this CPU.
    pub fault: Fault,
}

/// What a policy wants done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Add this to the vCPU's offset. A write of 0 is still a write.
    pub adjust: Option<TscDelta>,
    /// Mark this.
    pub accuse: Option<Cause>,
    /// Ask again before the guest runs.
    pub request_entry: bool,
    /// Ask again after this time, should the vCPU still be running on this CPU.
    pub ask_again: Option<Nanos>,
}

impl Decision {
    /// Leave everything as it is.
    pub const NOTHING: Self = Self {
        adjust: None,
        accuse: None,
        request_entry: false,
        ask_again: None,
    };
}

/// Under which condition something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// Only while nothing condemned the host.
    HostStable,
    /// Only when something condemned the host.
    HostUnstable,
}

impl When {
    /// Whether it holds on a host that is or is not condemned.
    #[must_use]
    pub const fn holds(self, host_unstable: bool) -> bool {
        match self {
            Self::Always => true,
            Self::HostStable => !host_unstable,
            Self::HostUnstable => host_unstable,
        }
    }
}

/// What a policy promises, for tests and fuzzers to hold it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantees {
    /// A vCPU that moves never reads less than it read before, as long as each counter by itself
    /// runs forwards.
    pub monotonic_across_moves: When,
    /// A load never takes away time that the counters counted, beyond a lead over real time.
    pub keeps_elapsed_time: When,
    /// A load leaves the offset alone when nothing is held against its CPUs.
    pub leaves_the_innocent_alone: bool,
}

/// One vCPU's policy.
pub trait Policy: fmt::Debug {
    /// The policy's name, as on the command line.
    fn name(&self) -> &'static str;

    /// What it promises.
    fn guarantees(&self) -> Guarantees;

    /// The vCPU is loaded on a CPU.
    fn load(&mut self, load: &Load) -> Decision;

    /// The guest is about to run.
    fn entry(&mut self, entry: &Entry) -> Decision {
        let _ = entry;
        Decision::NOTHING
    }
}
