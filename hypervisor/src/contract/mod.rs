//! The contract of [`TscOffsetControl`], as a suite that runs
//! against anything that can build a VM with a guest that reads its TSC: the model, and KVM on the
//! host at hand.
//!
//! Each clause asks for something and **measures** what became of it in the guest. What comes out is
//! a [`Finding`], and only one of its kinds says that the clause holds. A host that ignores a write,
//! scales by pushing, or moves offsets by itself has not broken the contract, since a host may be
//! poor; but it has not kept the clause either, and the line says which. Broken is the contract where
//! the interface says one thing and the guest sees a third.
//!
//! # A busy machine
//!
//! A reading's bracket is true however long it took: a busy machine only widens it. So readings are
//! repeated until their bounds are narrow enough, a bounded number of times, and none is dropped; what
//! never became narrow enough is [`Kind::Undecided`], and not believed. No limit on the time that
//! anything takes decides a finding.
//!
//! # Faults, and what finds them
//!
//! Each field of [`Faults`](crate::model::Faults), which real hosts showed, with the clauses that find it
//! out. The tests are in `tests/model_faults.rs`; those of doctor's own judgement are in
//! `vmm/src/doctor/effects.rs`.
//!
//! | fault | found as | test |
//! | --- | --- | --- |
//! | `offset_writes`: `Ignored`, `IgnoredAndReadBack` | each clause `offset-…` but `offset-fresh` [`Ignored`](Kind::Ignored) | `ignored_offsets_are_not_believed_whether_or_not_they_read_back`; doctor: `no_return_code_is_believed` |
//! | `tsc_writes`: the same two | `register-far`, `register-near` `Ignored` | `ignored_writes_to_the_register_are_not_believed` |
//! | `rate_writes`: the same two | each other rate `Ignored`, `offset-at-rate` [`Degraded`](Kind::Degraded) | `ignored_rates_are_not_believed_whether_or_not_they_read_back`; doctor: `no_return_code_is_believed` |
//! | `tolerance` | `rate-tolerated` `Ignored`, though it reads back | `a_tolerance_is_seen_though_the_rate_reads_back`; doctor: `linux_that_scales_is_seen_to_and_its_tolerance_too` |
//! | `refused_rates_read_back` | `rate-half`, `rate-0.999` [`Refused`](Kind::Refused) whatever reads back | `a_host_without_scaling_refuses_or_catches_up_and_neither_is_believed` |
//! | `catch_up_instead_of_scaling` | faster rates `Degraded`: kept across entries, not within one | `catch_up_on_a_host_that_claims_to_scale_is_not_believed`; doctor: `no_return_code_is_believed` |
//! | `exits_at_each_request` | faster rates `Degraded`, because the host does not claim to scale | `pushes_before_each_reading_are_not_believed_where_scaling_is_not_claimed`; doctor: `a_push_before_each_reading_is_not_taken_for_scaling` |
//! | `compensation` | each clause `offset-…` `Degraded`, as moved by the kernel; after a move between skewed CPUs `offset-kept` | `compensation_on_an_unstable_host_is_seen_as_the_kernels_own`, `compensation_at_a_move_between_skewed_cpus_is_seen`; doctor: `a_kernel_that_compensates_is_found_out` |
//! | `catch_up_by_master_clock` | `rate-1.7` `Ignored`, where others catch up | `linux_without_scaling_is_what_the_laboratory_measured` |
//! | `synchronisation`: `Always`, `AfterTheFirst` | `register-near` `Ignored`; the second write by [`OffsetBounds`](crate::tsc_control::OffsetBounds) | `a_write_taken_for_a_synchronisation_is_not_believed` |
//! | `stale_clean_bit` (SVM) | each clause `offset-…` and `register-…` `Ignored` | `a_stale_clean_bit_is_seen_on_svm_and_is_nothing_on_vmx` |
//! | `nested_delta_unscaled` | L2's readings allow no offset that is right | `corrections_under_l2_are_measured_in_both_guests` |
//! | `nested_copy_forgotten` | L1's correction is [`OffsetEffect::Ignored`](crate::tsc_control::OffsetEffect::Ignored) | `corrections_under_l2_are_measured_in_both_guests` |
//!
//! One lie cannot be found out from outside a guest: a host that claims to scale, pushes instead, and
//! exits at each request. No KVM does that; with one that does not claim to, the claim decides.

mod clauses;
mod offset;
mod rate;

use std::error::Error;
use std::fmt;

use tsc::measure::{GuestSample, HostSample};
use tsc::{Khz, Nanos, VcpuId};

use crate::IoctlError;
use crate::tsc_control::{TscControlError, TscOffsetControl};

pub use clauses::{CLAUSES, check};

/// Builds VMs for the suite.
pub trait Fixture {
    /// The VMs.
    type Probe: Probe;

    /// A fresh VM of `vcpus` vCPUs, created after `default_rate`, if any, was asked for.
    ///
    /// # Errors
    /// When the host cannot do that.
    fn build(&self, vcpus: u32, default_rate: Option<Khz>) -> Result<Self::Probe, ProbeError>;

    /// Lets time pass for all `probes` without an entry: at least so much for each, and where they live
    /// in one world, the same time for all.
    fn pass_for_all(&self, probes: &mut [&mut Self::Probe], time: Nanos) {
        for probe in probes {
            probe.pass(time);
        }
    }
}

/// A VM whose guest reads its TSC on request, on the host CPU that its vCPUs are bound to.
pub trait Probe {
    /// Its vCPUs' control.
    type Control: TscOffsetControl;

    /// The control of a vCPU, which is not running.
    ///
    /// # Errors
    /// When there is no such vCPU.
    fn control(&mut self, vcpu: VcpuId) -> Result<&mut Self::Control, ProbeError>;

    /// The host's clocks, on the CPU that the vCPUs are bound to.
    fn host_now(&mut self) -> HostSample;

    /// `count` readings, with an entry for each.
    ///
    /// # Errors
    /// When the guest does not answer.
    fn readings(&mut self, vcpu: VcpuId, count: usize) -> Result<Vec<GuestSample>, ProbeError>;

    /// `count` readings `spacing` apart in one entry, as far as the host's own interrupts allow. Who asks
    /// for them does not sleep in between: on hosts whose timers are broadcast, waking up would interrupt
    /// the guest before each reading.
    /// Their brackets may be taken on another CPU than those of [`Probe::readings`]. Empty where this
    /// is not possible.
    ///
    /// # Errors
    /// When the guest does not answer.
    fn readings_in_one_entry(
        &mut self,
        vcpu: VcpuId,
        count: usize,
        spacing: Nanos,
    ) -> Result<Vec<GuestSample>, ProbeError>;

    /// Runs the guest on another host CPU for a moment, and brings it back. `Ok(false)` where there
    /// is only one.
    ///
    /// # Errors
    /// When the guest does not answer there, or the host does not let its threads be bound.
    fn visit_another_cpu(&mut self, vcpu: VcpuId) -> Result<bool, ProbeError>;

    /// Lets time pass without an entry.
    fn pass(&mut self, time: Nanos);
}

/// The probe itself failed: nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A request about the TSC.
    #[error(transparent)]
    Control(#[from] TscControlError),
    /// Another request to the hypervisor.
    #[error(transparent)]
    Call(#[from] IoctlError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl ProbeError {
    /// A failure in words.
    #[must_use]
    pub fn new(message: impl fmt::Display) -> Self {
        Self::Other(message.to_string())
    }

    /// The failure and its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        line
    }
}

/// What kind of answer a clause got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Measured to be as asked.
    Holds,
    /// Accepted, and without any effect.
    Ignored,
    /// An effect, but by other means than the hardware's or not for long: tolerance, catch-up,
    /// compensation by the kernel.
    Degraded,
    /// Refused with an error, and nothing changed.
    Refused,
    /// The readings cannot tell.
    Undecided,
    /// This host has no means to ask.
    NotPossible,
    /// The interface says one thing and the guest sees another.
    Violated,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Ignored => "IGNORED",
            Self::Degraded => "DEGRADED",
            Self::Refused => "refused",
            Self::Undecided => "UNDECIDED",
            Self::NotPossible => "not possible",
            Self::Violated => "VIOLATED",
        }
    }
}

/// What was found about a clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The kind of answer.
    pub kind: Kind,
    /// What was measured, with its bounds.
    pub evidence: String,
}

impl Finding {
    fn new(kind: Kind, evidence: impl fmt::Display) -> Self {
        Self {
            kind,
            evidence: evidence.to_string(),
        }
    }
}

/// A clause and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The clause's name.
    pub clause: &'static str,
    /// What was found.
    pub finding: Finding,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { kind, evidence } = &self.finding;
        write!(f, "{:<18} {:<12} {evidence}", self.clause, kind.word())
    }
}

/// How thorough the suite is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// The least time over which a rate is measured.
    pub span: Nanos,
    /// How often the span is extended until an error of 50 ppm would be noticed.
    pub spans: u32,
}

impl Effort {
    /// A second at least, ten at most.
    pub const FULL: Self = Self {
        span: Nanos::new(1_000_000_000),
        spans: 10,
    };
}
