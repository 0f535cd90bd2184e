//! A vCPU's thread watches its own clock: at each exit a glance at the CPU's counter, and now and then a
//! look at the guest's.
//!
//! The glance takes one instruction (RDTSCP) and what [`tsc::watch::Exits`] makes of it: no system call, no
//! lock, no allocation. It leads to a look when the thread came from another CPU, when the counter went
//! backwards, and every [`LOOK_EVERY`] in which there are exits; a vCPU that leaves the guest for nothing
//! is kicked out for it (see [`super::watch`]). A look costs the system calls that read the offset, what KVM gives for
//! the guest's TSC and, where the host does not keep time by its TSC, the clock.
//!
//! The guest's TSC is taken to be what the offset and the ratio make of the host's, which KVM's own value is held
//! against; only the guest itself could tell what it reads. On a host that keeps time by its TSC the clock comes from the
//! same counter, and a look proves that what was set is in force, not that the counter is right: that its rate is, and
//! that CPUs agree, is measured elsewhere ([`crate::assessment`], [`super::watch`]).

use std::sync::Arc;

use hypervisor::host::{Rdtscp, read_tsc};
use hypervisor::tsc_control::{TscOffsetControl, VendorRatio};
use tsc::watch::{ClockWatch, Exits, Look, Sighting};
use tsc::{CpuId, HostTsc, Nanos, NanosDelta, Ppm, TickRate, Ticks, TscOffset, ticks_exact_floor};

use super::Rates;
use super::observed::{Bell, Observed, Rung, Step};
use super::vcpu::{TimeError, is_explained};
use crate::host_clock;

/// How often a vCPU's clock is looked at.
pub(super) const LOOK_EVERY: Nanos = Nanos::new(1_000_000_000);
/// A look is made up to so often, and the one that took least counts.
const TRIES: usize = 3;
/// The host's counter and clock.
pub(crate) trait Senses {
    /// The counter and whose it is, in one instruction, if there is such an instruction.
    fn counter(&self) -> Option<(HostTsc, CpuId)>;
    /// The counter of the CPU that this thread is on.
    fn tsc(&self) -> HostTsc;
    /// A clock that nothing slews (`CLOCK_MONOTONIC_RAW`).
    fn clock(&self) -> Nanos;
}

/// Those of the machine that this runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostSenses {
    rdtscp: Option<Rdtscp>,
}

impl HostSenses {
    pub(crate) fn detect() -> Self {
        Self {
            rdtscp: Rdtscp::detect(),
        }
    }
}

impl Senses for HostSenses {
    #[inline]
    fn counter(&self) -> Option<(HostTsc, CpuId)> {
        self.rdtscp.map(Rdtscp::read)
    }

    fn tsc(&self) -> HostTsc {
        read_tsc()
    }

    fn clock(&self) -> Nanos {
        host_clock::monotonic_raw()
    }
}

/// Where a vCPU stands, when it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The CPU that its thread is on,
    pub(super) cpu: CpuId,
    /// its counter,
    pub(super) host: HostTsc,
    /// and the offset in force.
    pub(super) offset: TscOffset,
    /// The counter at the latest exit, and the offset then: the guest has read nothing later.
    pub(super) left_at: HostTsc,
    pub(super) left_with: TscOffset,
}

/// One vCPU's watch: see the [module](self).
#[derive(Debug)]
pub(crate) struct ExitWatch<S> {
    senses: S,
    rates: Option<Rates>,
    exits: Option<Exits>,
    clock: Option<ClockWatch>,
    /// As of the latest look.
    offset: TscOffset,
    observed: Arc<Observed>,
    bell: Arc<Bell>,
}

impl<S: Senses> ExitWatch<S> {
    /// For a vCPU whose rates are known, or without a watch on its clock.
    pub(crate) fn new(
        senses: S,
        rates: Option<Rates>,
        observed: Arc<Observed>,
        bell: Arc<Bell>,
    ) -> Self {
        Self {
            senses,
            rates,
            exits: None,
            clock: None,
            offset: TscOffset::ZERO,
            observed,
            bell,
        }
    }

    /// Before the first entry, and after the clock was set on purpose: its line begins here. After it was `taken` forward
    /// the line is the same, and what the clock is off it stays told.
    pub(crate) fn begin(&mut self, vcpu: &impl TscOffsetControl, taken: bool) {
        let Some(rates) = self.rates else { return };
        if let Some((tsc, cpu)) = self.senses.counter() {
            let stride = ticks_exact_floor(LOOK_EVERY, rates.host.khz);
            self.exits = stride.map(|stride| Exits::begin(tsc, cpu, stride));
            self.observed.is_on(cpu);
        }
        match self.take(vcpu, rates) {
            Ok(look) => {
                let rate = TickRate::new(rates.guest);
                // How far the two may be from nominal, together, without anything being wrong.
                let tolerance = Ppm::DISCIPLINE;
                self.observed.leads_by(NanosDelta::new(0));
                match &mut self.clock {
                    Some(clock) if taken => self.observed.is_off_by(clock.go_on(look)),
                    Some(clock) => clock.begin_anew(look),
                    clock => *clock = Some(ClockWatch::begin(rate, tolerance, look)),
                }
                self.observed.looked(look.at, look.offset);
            }
            Err(_) => self.observed.could_not_look(),
        }
    }

    /// An exit: what is to be looked at, if anything. Call it before anything else is done about the exit.
    #[inline]
    pub(crate) fn glance(&mut self) -> Option<Sighting> {
        let exits = self.exits.as_mut()?;
        let (tsc, cpu) = self.senses.counter()?;
        exits.sample(tsc, cpu)
    }

    /// Takes note of what was seen, and looks.
    #[cold]
    pub(crate) fn attend(&mut self, sighting: Sighting, vcpu: &impl TscOffsetControl) {
        let (from, backwards) = match sighting {
            Sighting::Due => (None, None),
            Sighting::Backwards(by) => (None, Some(by)),
            Sighting::Moved { from, backwards } => {
                self.observed.moved();
                (Some(from), backwards)
            }
        };
        if let Some(exits) = &self.exits {
            let to = exits.cpu();
            self.observed.is_on(to);
            if let Some(by) = backwards {
                let from = from.unwrap_or(to);
                self.observed.went_backwards(Step { from, to, by });
            }
        }
        // What a move met is looked into at the next beat; a step backwards at once.
        match backwards {
            Some(_) => self.ring(),
            None if sighting != Sighting::Due => self.observed.want_attention(),
            None => {}
        }
        self.look(vcpu);
    }

    /// Holds the guest's clock against the host's.
    pub(crate) fn look(&mut self, vcpu: &impl TscOffsetControl) {
        let Some(rates) = self.rates else { return };
        let Ok(look) = self.take(vcpu, rates) else {
            return self.observed.could_not_look();
        };
        if self.is_contradicted(vcpu, rates) {
            self.observed.was_contradicted();
        }
        let Some(clock) = &mut self.clock else { return };
        let finding = clock.look(look);
        self.observed.looked(look.at, look.offset);
        self.observed.is_off_by(finding.error);
        self.observed.leads_by(finding.since_taken.at_least);
        if let Some(departure) = finding.departure {
            self.observed.departed(departure);
            if finding.offset_moved.is_none() {
                self.observed.jumped(departure);
            }
        }
        if finding.offset_moved.is_some() {
            self.observed.offset_moved();
        }
        if finding.departure.is_some() || finding.offset_moved.is_some() {
            self.ring();
        }
    }

    /// Where the vCPU stands, while it is stopped.
    ///
    /// # Errors
    /// The kernel does not tell its offset, or the processor not its CPU.
    pub(crate) fn stand(&self, vcpu: &impl TscOffsetControl) -> Result<Place, TimeError> {
        let exits = self.exits.ok_or(TimeError::NoCpu)?;
        let offset = vcpu.offset()?.claim();
        let (host, cpu) = self.senses.counter().ok_or(TimeError::NoCpu)?;
        Ok(Place {
            cpu,
            host,
            offset,
            left_at: exits.tsc(),
            left_with: self.offset,
        })
    }

    /// The offset was set on purpose, while the vCPU waits: who shows the guest its time is to know before it goes on.
    pub(super) fn was_set_to(&self, offset: TscOffset) {
        self.observed.set_to(offset);
    }

    /// The guest is entered so long after a resumption's time for it.
    pub(super) fn entered_late(&self, late: Ticks) {
        self.observed.entered_late(late);
    }

    /// What the host's TSC is multiplied by: 1 where it is not known, which then has no use.
    pub(super) fn ratio(&self) -> VendorRatio {
        let one = VendorRatio::one(hypervisor::host::vendor());
        self.rates.map_or(one, |rates| rates.ratio)
    }

    /// The CPU's counter, for whoever sets this vCPU's clock.
    pub(crate) fn tsc(&self) -> HostTsc {
        self.senses.tsc()
    }

    /// Whether KVM gives another TSC than the offset and the ratio make of the host's: what a look says rests on these.
    fn is_contradicted(&self, vcpu: &impl TscOffsetControl, rates: Rates) -> bool {
        let is_explained = is_explained(vcpu, rates.ratio, self.offset, || self.senses.tsc());
        // Unless the thread was moved meanwhile, and KVM moved the offset.
        matches!(is_explained, Ok(false))
            && matches!(vcpu.offset(), Ok(offset) if offset.claim() == self.offset)
    }

    fn ring(&self) {
        self.observed.want_attention();
        self.bell.ring(Rung::ByVcpu);
    }

    /// Reads the guest's TSC around the clock.
    fn take(&mut self, vcpu: &impl TscOffsetControl, rates: Rates) -> Result<Look, TimeError> {
        let offset = vcpu.offset()?.claim();
        self.offset = offset;
        let once = || {
            let before = self.senses.tsc();
            let at = self.senses.clock();
            (before, at, self.senses.tsc())
        };
        let mut best = once();
        for _ in 1..TRIES {
            let next = once();
            // The later of two that are equal, since less time passes until it is used.
            if next.2.wrapping_elapsed(next.0) <= best.2.wrapping_elapsed(best.0) {
                best = next;
            }
        }
        let (before, at, after) = best;
        Ok(Look {
            before: rates.ratio.guest_at(offset, before),
            at,
            // It tells whole nanoseconds.
            late: Nanos::new(1),
            after: rates.ratio.guest_at(offset, after),
            offset,
        })
    }
}
