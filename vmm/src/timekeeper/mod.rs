//! The guest's clocks across a pause.
//!
//! [`tsc::plan`] decides what they are to show afterwards; here it is carried out on a machine whose
//! vCPUs wait at the [gate](crate::gate), and looked at afterwards:
//!
//! | policy | at the pause | at the resumption |
//! | --- | --- | --- |
//! | `advance` | the clocks are noted | nothing is written: TSC, kvmclock and timers went on by themselves, and KVM's master clock stays as it was |
//! | `freeze` | noted, and deadline timers disarmed | every vCPU gets the same offset, once; then the kvmclock is set for the same instant; both are read back; then the timers are armed again |
//! | `advance` with a cap | the same | after a pause within the cap nothing but the timers, which are armed again; after a longer one as under `freeze`, with clocks that went on by the cap |
//!
//! Where they are set, the clocks stand from the last vCPU's exit to the first one's entry, and not just from
//! reading to reading. The exits are noted as they come, and the clocks are saved as they were at the last.
//! A resumption is planned for an instant a little ahead, by when everything is set and every vCPU is about
//! to enter its guest, and no vCPU enters before it. How far ahead is a multiple of what reading the clocks
//! took at the pause. When it takes longer, the guest's clocks go on by the rest, and the report says so.
//!
//! The policy of the resumption counts; the one at the pause decides only whether timers are held. A
//! timer that went on under `advance` and fired is armed again where clocks are set: its interrupt may come
//! early, which a kernel takes for a spurious one.
//!
//! When a step fails, the clocks are set back as they were and **the guest stays paused**: whoever asked
//! is told why, and can resume it under `advance`, which writes no clock. Where they could not be set back, that is tried
//! once more then, and the guest stays paused as long as it fails.
//!
//! Timers in other modes than TSC-deadline (the local APIC's one-shot and periodic modes, the 8254) are
//! the kernel's and go on under either policy; stock kernels use the deadline timer.

mod clocks;
mod events;
mod exits;
mod figures;
mod history;
mod marks;
mod observed;
mod page;
mod restart;
mod vcpu;
mod watch;

use std::collections::VecDeque;

use hypervisor::IoctlError;
use hypervisor::guest_clock::VmClock;
use hypervisor::tsc_control::{Vendor, VendorRatio};
use serde::Serialize;
use tsc::plan::{self, Allow, HostTime, Present, Refusal, Saved, TimePolicy};
use tsc::{
    HostTsc, Khz, Nanos, Ppm, Svm, Ticks, TscDelta, TscOffset, VcpuId, Vmx,
    nanos_delta_toward_zero, nanos_exact_floor,
};

use crate::api::body::serialize_policy;
use crate::guest_rate::GuestRate;
pub(crate) use clocks::Clocks;
use clocks::{Begun, Pair, carry_out, pairing_error, set_back};
pub(crate) use events::Events;
use events::{Event, RestartCause};
pub(crate) use exits::{ExitWatch, HostSenses};
pub(crate) use figures::figures;
pub(crate) use history::{ErrorHistory, StretchReport};
pub(crate) use marks::{MarkReport, Marks};
pub(crate) use observed::{
    Bell, ErrorReport, Observed, VcpuReport, error_bounds, guests_error, last_entry,
};
pub(crate) use page::{RealTime, TimePage, explains};
pub(crate) use restart::Home;
pub(crate) use vcpu::{Answer, ClockOrder, Done, HostPlan, Order, TimeError, VcpuTime};
use vcpu::{LONGEST_LEAD, Noted, Start, with_plan};
pub(crate) use watch::{Halt, Host, LastBeat, StopsSeen, Unwatched, Watch, WatchThread};

/// So many pauses are remembered; older ones are only counted.
const REMEMBERED: usize = 64;

/// A guest's clocks cannot be set as the policy wants.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResumeError {
    /// A vCPU's clock.
    #[error("{vcpu}")]
    Vcpu {
        /// Which.
        vcpu: VcpuId,
        /// Why.
        source: TimeError,
    },
    /// The VM's clock.
    #[error(transparent)]
    Clock(#[from] IoctlError),
    /// The host does not say what its TSC's rate is.
    #[error("this host's KVM does not tell its TSC's rate")]
    NoRate,
    /// The clocks were not noted at the pause.
    #[error("the clocks could not be read at the pause: {0}")]
    NotNoted(String),
    /// There is no plan.
    #[error(transparent)]
    Refused(#[from] RefusalError),
    /// vCPUs did not answer.
    #[error("vCPUs have left meanwhile")]
    Left,
    /// The clocks are neither as they were nor as they should be.
    #[error(
        "the guest's clocks are not as they were at the pause, since a resumption under another policy failed and they \
         could not be set back; resume it under \"freeze\", which sets them anew, or end it"
    )]
    NotSetBack,
    /// The kvmclock is elsewhere than it was set to.
    #[error("the kvmclock was set, and is off by {0} ns")]
    KvmclockOff(i64),
}

impl ResumeError {
    /// Whether it is that a thread was moved.
    fn is_move(&self) -> bool {
        let source = match self {
            Self::Vcpu { source, .. } => source,
            _ => return false,
        };
        matches!(source, TimeError::Moved(_))
    }
}

/// A refusal of `tsc`'s, as an error of this crate.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RefusalError(Refusal);

/// What became of the clocks at a pause's end, for the time report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StopReport {
    /// `CLOCK_BOOTTIME` when the guest was paused.
    at_ns: u64,
    #[serde(serialize_with = "serialize_policy")]
    policy: TimePolicy,
    /// How long the guest was paused (`CLOCK_BOOTTIME`).
    elapsed_ns: u64,
    /// By how much that can be off, since clocks are read one after the other; null where nothing follows from it.
    elapsed_error_ns: Option<u64>,
    /// What its clocks advanced by meanwhile.
    advanced_ns: u64,
    /// What was kept from it.
    withheld_ns: u64,
    /// How far its clocks can be from that, by what was read back; null where nothing was written, since
    /// the clocks went on by themselves.
    error_ns: Option<u64>,
    /// What of that is that the guest went on later than planned.
    #[serde(skip)]
    late: Nanos,
    /// The kvmclock against the plan, as read back.
    kvmclock_error_ns: Option<i64>,
    /// Over how many ticks of the host's TSC the guest's was read back.
    tsc_bracket_ticks: Option<i64>,
    /// How far apart the vCPUs' TSCs were found.
    spread_ticks: Option<u64>,
    /// The offset of vCPU 0 before and of all after it.
    offset_before: Option<i64>,
    offset_after: Option<i64>,
    /// By how much that moved the guest's TSC against the host's; null where nothing was written.
    adjusted_ticks: Option<i64>,
    adjusted_ns: Option<i64>,
    /// Whether KVM's master clock is on, if the kernel tells.
    master_clock: Option<bool>,
}

/// What was noted at a pause.
#[derive(Debug)]
struct Stopped {
    boottime: Nanos,
    /// Timers are not as they were: they were disarmed, or armed for a resumption that failed.
    timers_held: bool,
    /// How far ahead of the present a resumption is to be planned.
    lead: Nanos,
    noted: Result<Before, String>,
    /// A resumption failed, and the clocks could not be set back.
    unsettled: Option<Begun>,
}

/// A guest's clocks as they were when it stopped.
#[derive(Clone, Copy, Debug)]
struct Before {
    saved: Saved,
    /// That of vCPU 0.
    offset: Option<TscOffset>,
    /// How far apart the vCPUs' TSCs were found.
    spread: Ticks,
    /// How long it took to read the clocks.
    reading: Nanos,
}

/// A resumption asks all vCPUs twice, reads and sets the kvmclock, and wakes the vCPUs: it takes a few times what
/// reading the clocks at a pause takes, which is that the vCPUs are asked once.
const LEAD_IN_READINGS: u64 = 4;

/// The rates of a guest's TSC and of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    /// The guest's.
    guest: Khz,
    /// What the hardware makes of the host's TSC for it.
    ratio: VendorRatio,
    /// The host's, and what it can do for another.
    host: HostTime,
    /// What must be allowed for the guest to keep its own.
    allow: Allow,
}

impl Rates {
    /// Those of a guest that was given `rate`, on a host of rate `host`; `None` where that is not known.
    pub(crate) fn new(vendor: Vendor, rate: GuestRate, host: Option<Khz>) -> Option<Self> {
        match rate {
            GuestRate::Other(other) => Some(Self {
                guest: other.khz,
                ratio: other.ratio,
                host: other.host,
                allow: other.allow(),
            }),
            GuestRate::Host => host.map(|khz| Self {
                guest: khz,
                ratio: VendorRatio::one(vendor),
                // At the host's own rate nothing is scaled.
                host: HostTime {
                    khz,
                    offsets: true,
                    scaling: false,
                    catch_up: false,
                    tolerance: Ppm::KVM_TOLERANCE,
                },
                allow: Allow::default(),
            }),
        }
    }
}

/// Keeps a machine's clocks: see the [module](self).
#[derive(Debug)]
pub(crate) struct Timekeeper {
    rates: Option<Rates>,
    stopped: Option<Stopped>,
    stops: VecDeque<StopReport>,
    /// The offset that all vCPUs have where counters agree; `None` before it was set on purpose.
    home_offset: Option<TscOffset>,
    events: Events,
    marks: Marks,
    history: ErrorHistory,
    /// Where the guest finds the time, where there is such a place.
    page: Option<TimePage>,
}

impl Timekeeper {
    /// For a machine whose TSC has these rates, if they are known.
    pub(crate) fn new(rates: Option<Rates>) -> Self {
        Self {
            rates,
            stopped: None,
            stops: VecDeque::with_capacity(REMEMBERED),
            home_offset: None,
            events: Events::default(),
            marks: Marks::default(),
            history: ErrorHistory::default(),
            page: None,
        }
    }

    /// The same, with a page in the guest's memory that is to tell the time.
    pub(crate) fn with_page(mut self, page: TimePage) -> Self {
        self.page = Some(page);
        self
    }

    /// The guest goes on from a snapshot, when it goes on.
    pub(crate) fn restored(&mut self) {
        if let Some(page) = &mut self.page {
            page.restored();
        }
    }

    /// What happened beside planned pauses.
    pub(crate) fn events(&self) -> Events {
        self.events.clone()
    }

    /// How far the guest's clock was off its line, over its whole life.
    pub(crate) fn history(&self) -> Vec<StretchReport> {
        self.history.report()
    }

    /// What is held against the host.
    pub(crate) fn marks(&self) -> Vec<MarkReport> {
        self.marks.report(self.rates.map(|rates| rates.host.khz))
    }

    /// How often something is held against the host that is not told.
    pub(crate) fn marks_left_out(&self) -> u64 {
        self.marks.left_out()
    }

    /// `ticks` of the guest's TSC in nanoseconds.
    fn nanos(&self, ticks: TscDelta) -> Option<i64> {
        let rates = self.rates?;
        Some(nanos_delta_toward_zero(ticks, rates.guest).get())
    }

    /// Whether the guest is paused.
    fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The latest pauses, the last one last.
    pub(crate) fn stops(&self) -> Vec<StopReport> {
        self.stops.iter().cloned().collect()
    }

    /// The last vCPU to go on from the latest pause did so this long after the time for it, as far as they have.
    pub(crate) fn went_on(&mut self, late: Ticks) {
        let rates = self.rates.filter(|_| !self.is_stopped());
        let late = rates.and_then(|rates| nanos_exact_floor(late, rates.host.khz));
        if let (Some(late), Some(stop)) = (late, self.stops.back_mut())
            && let Some(error) = &mut stop.error_ns
        {
            *error = error.saturating_add(late.saturating_sub(stop.late).get());
            stop.late = stop.late.max(late);
        }
    }

    /// All vCPUs have just come to wait, since `began`, and `ask` has each of them carry out an order.
    pub(crate) fn stop(
        &mut self,
        policy: TimePolicy,
        began: Nanos,
        clocks: &Clocks<'_, impl VmClock>,
        ask: impl Fn(Order) -> Vec<Answer>,
    ) {
        let boottime = (clocks.boottime)();
        let timers_held = policy.may_set_clocks();
        let noted = self.note(timers_held, began, clocks, ask);
        let reading = (clocks.boottime)().saturating_sub(boottime).get();
        let longest = u64::try_from(LONGEST_LEAD.as_nanos()).unwrap_or(0);
        self.stopped = Some(Stopped {
            boottime,
            timers_held,
            lead: Nanos::new(reading.saturating_mul(LEAD_IN_READINGS).min(longest)),
            noted: noted.map_err(|error| crate::error::one_line(&error)),
            unsettled: None,
        });
    }

    fn note(
        &self,
        hold_timer: bool,
        began: Nanos,
        clocks: &Clocks<'_, impl VmClock>,
        ask: impl Fn(Order) -> Vec<Answer>,
    ) -> Result<Before, ResumeError> {
        let vcpus = all(ask(Order::Clock(ClockOrder::Note { hold_timer })), clock)?;
        let pair = clocks.pair()?;
        let rates = self.rates.ok_or(ResumeError::NoRate)?;
        let readings: Vec<_> = vcpus
            .iter()
            .map(|noted| rates.ratio.guest_at(noted.offset, pair.host_tsc))
            .collect();
        let unified = plan::unify(&readings)
            .ok_or_else(|| ResumeError::NotNoted("there is no vCPU".to_owned()))?;
        let saved = Saved {
            guest_tsc: unified.guest_tsc,
            guest_khz: rates.guest,
            kvmclock: pair.reading.clock,
            real: pair.boottime,
            pairing_error: pairing_error(&pair),
        };
        // The clocks as they were when the last vCPU left, and not before somebody wanted them to leave.
        let left = vcpus
            .iter()
            .map(|noted| self.since(noted.left, pair.host_tsc));
        let since = left.min().unwrap_or(Nanos::ZERO);
        let since = since.min(pair.boottime.saturating_sub(began));
        let saved = saved.earlier(since).unwrap_or(saved);
        let first = vcpus.first().map(|noted| noted.offset);
        Ok(Before {
            saved,
            offset: first,
            spread: unified.spread,
            reading: pair.error,
        })
    }

    /// The time from `earlier` to `later`, by a TSC of the host; nothing when they are the other way round.
    fn since(&self, earlier: HostTsc, later: HostTsc) -> Nanos {
        let rates = self.rates.filter(|_| earlier.is_before(later));
        rates
            .and_then(|rates| nanos_exact_floor(later.wrapping_elapsed(earlier), rates.host.khz))
            .unwrap_or(Nanos::ZERO)
    }

    /// The guest is to go on under `policy`.
    ///
    /// # Errors
    /// Why its clocks cannot show what the policy wants. They are as they were at the pause, and the guest
    /// is to stay paused; this can be called again.
    pub(crate) fn go_on(
        &mut self,
        policy: TimePolicy,
        clocks: &Clocks<'_, impl VmClock>,
        ask: impl Fn(Order) -> Vec<Answer>,
    ) -> Result<(), ResumeError> {
        let Some(stopped) = &self.stopped else {
            return Ok(());
        };
        let elapsed = (clocks.boottime)().saturating_sub(stopped.boottime);
        let report = if policy.is_kept_by_clocks_that_go_on(elapsed) {
            Self::leave_be(policy, stopped, clocks, &ask)?
        } else {
            let mut begun = None;
            let done = self.set(policy, stopped, clocks, &ask, &mut begun);
            if let (Err(_), Some(begun)) = (&done, begun) {
                self.set_back(&begun, clocks, &ask);
            }
            done?
        };
        self.stopped = None;
        let moved = report.offset_after;
        let moved = moved.map(|offset| TscOffset::new(offset.cast_unsigned()));
        self.home_offset = moved.or(self.home_offset);
        if let Some(page) = &mut self.page {
            page.go_on(moved);
        }
        if self.stops.len() == REMEMBERED {
            self.stops.pop_front();
        }
        self.stops.push_back(report);
        Ok(())
    }

    /// The clocks went on by themselves, which is what `policy` wants.
    fn leave_be(
        policy: TimePolicy,
        stopped: &Stopped,
        clocks: &Clocks<'_, impl VmClock>,
        ask: &impl Fn(Order) -> Vec<Answer>,
    ) -> Result<StopReport, ResumeError> {
        if let Some(begun) = &stopped.unsettled
            && !set_back(begun, clocks, ask)
        {
            return Err(ResumeError::NotSetBack);
        }
        if stopped.timers_held {
            let mut answers = ask(Order::Clock(ClockOrder::Rearm(None)));
            // A clock that could not be read was not held either.
            answers.retain(|answer| !matches!(answer.outcome, Err(TimeError::NotNoted)));
            all(answers, clock)?;
        }
        let elapsed = (clocks.boottime)().saturating_sub(stopped.boottime).get();
        Ok(StopReport {
            at_ns: stopped.boottime.get(),
            policy,
            elapsed_ns: elapsed,
            elapsed_error_ns: None,
            advanced_ns: elapsed,
            withheld_ns: 0,
            error_ns: None,
            late: Nanos::ZERO,
            kvmclock_error_ns: None,
            tsc_bracket_ticks: None,
            spread_ticks: None,
            offset_before: None,
            offset_after: None,
            adjusted_ticks: None,
            adjusted_ns: None,
            master_clock: master_clock(clocks.vm),
        })
    }

    /// A resumption failed that set clocks: they are to be what they were. Whether that succeeds or not, the guest does
    /// not run on them: it stays paused, and the next attempt begins anew.
    fn set_back(
        &mut self,
        begun: &Begun,
        clocks: &Clocks<'_, impl VmClock>,
        ask: &impl Fn(Order) -> Vec<Answer>,
    ) {
        let is_back = set_back(begun, clocks, ask);
        if !is_back {
            tracing::error!("the paused guest's clocks could not be set back either");
        }
        if let Some(stopped) = &mut self.stopped {
            stopped.timers_held = true;
            stopped.unsettled = (!is_back).then_some(*begun);
        }
    }

    /// The clocks are set to what `policy` wants: `begun` says so once they are.
    fn set(
        &self,
        policy: TimePolicy,
        stopped: &Stopped,
        clocks: &Clocks<'_, impl VmClock>,
        ask: &impl Fn(Order) -> Vec<Answer>,
        begun: &mut Option<Begun>,
    ) -> Result<StopReport, ResumeError> {
        let before = match &stopped.noted {
            Ok(before) => *before,
            Err(reason) => return Err(ResumeError::NotNoted(reason.clone())),
        };
        let saved = before.saved;
        let pair = clocks.pair()?;
        // With clocks of a little earlier now, they are as they were when it begins.
        let lead = stopped.lead;
        let plan = self.plan(policy, saved.earlier(lead).unwrap_or(saved), &pair)?;
        // As it was before the first attempt, if this is another one.
        let begun = begun.insert(stopped.unsettled.unwrap_or(Begun {
            pair,
            kvmclock: false,
        }));
        let (vcpus, kvmclock_error, after) =
            carry_out(&plan, &pair, clocks, ask, &mut begun.kvmclock)?;
        let at = with_plan!(&plan, plan => plan.host_tsc_after(lead)).unwrap_or(pair.host_tsc);
        let start = Start { plan, at };
        all(ask(Order::Clock(ClockOrder::Rearm(Some(start)))), clock)?;
        let adjustments = with_plan!(&plan, plan => plan.adjustments);
        let bracket = vcpus.iter().map(|noted| noted.bracket.get()).max();
        let read_back = kvmclock_error.map_or(0, |error| error.unsigned_abs());
        let pairing = pairing_error(&pair).saturating_add(saved.pairing_error);
        let late = self.since(at, (clocks.host_tsc)());
        let adjusted = before
            .offset
            .map(|before| plan.offset().wrapping_since(before));
        Ok(StopReport {
            at_ns: stopped.boottime.get(),
            policy,
            elapsed_ns: adjustments.elapsed.get(),
            elapsed_error_ns: Some(pair.error.saturating_add(before.reading).get()),
            advanced_ns: adjustments.advanced.get(),
            withheld_ns: adjustments.withheld.get(),
            error_ns: Some(pairing.get().max(read_back).saturating_add(late.get())),
            late,
            kvmclock_error_ns: kvmclock_error,
            tsc_bracket_ticks: bracket,
            spread_ticks: Some(before.spread.get()),
            offset_before: before.offset.map(|offset| offset.as_signed().get()),
            offset_after: Some(plan.offset().as_signed().get()),
            adjusted_ticks: adjusted.map(TscDelta::get),
            adjusted_ns: adjusted.and_then(|ticks| self.nanos(ticks)),
            master_clock: clocks
                .vm
                .clock_support()
                .tsc_stable
                .then_some(after.tsc_stable),
        })
    }

    fn plan(&self, policy: TimePolicy, saved: Saved, pair: &Pair) -> Result<HostPlan, ResumeError> {
        let present = Present {
            host_tsc: pair.host_tsc,
            real: pair.boottime,
            pairing_error: pairing_error(pair),
        };
        // Whether offsets have an effect is seen when they are read back, and was measured before this
        // policy was accepted.
        let Rates {
            ratio, host, allow, ..
        } = self.rates.ok_or(ResumeError::NoRate)?;
        let planned = match ratio.vendor() {
            Vendor::Intel => {
                plan::plan::<Vmx>(saved, present, host, policy, allow).map(HostPlan::Vmx)
            }
            Vendor::Amd => {
                plan::plan::<Svm>(saved, present, host, policy, allow).map(HostPlan::Svm)
            }
        };
        planned.map_err(|refusal| RefusalError(refusal).into())
    }
}

/// Whether KVM's master clock is on now, if the kernel tells.
pub(crate) fn master_clock(vm: &impl VmClock) -> Option<bool> {
    let tells = vm.clock_support().tsc_stable;
    let reading = tells.then(|| vm.clock().ok()).flatten()?;
    Some(reading.tsc_stable)
}

/// What all vCPUs answered, or the first failure.
fn all<T>(answers: Vec<Answer>, pick: impl Fn(Done) -> Option<T>) -> Result<Vec<T>, ResumeError> {
    let mut answers = answers;
    answers.sort_by_key(|answer| answer.vcpu.get());
    answers
        .into_iter()
        .map(|Answer { vcpu, outcome }| match outcome {
            Ok(done) => pick(done).ok_or(ResumeError::Vcpu {
                vcpu,
                source: TimeError::NotNoted,
            }),
            Err(source) => Err(ResumeError::Vcpu { vcpu, source }),
        })
        .collect()
}

fn clock(done: Done) -> Option<Noted> {
    match done {
        Done::Clock(noted) => Some(noted),
        Done::Stands(_) | Done::GoesOn { .. } => None,
    }
}

#[cfg(test)]
mod tests;
