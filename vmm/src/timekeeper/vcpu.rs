//! What a vCPU's thread does to its clock and timer while it waits at the gate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::MsrError;
use hypervisor::guest_clock::DeadlineTimer;
use hypervisor::tsc_control::{
    OffsetBounds, TscControlError, TscOffsetControl, Vendor, VendorRatio,
};
use tsc::measure::{GuestSample, HostSample};
use tsc::plan::{Deadline, Plan};
use tsc::{CpuId, GuestTsc, HostTsc, Nanos, Svm, Ticks, TscDelta, TscOffset, VcpuId, Vmx};

use super::exits::{ExitWatch, Place, Senses};

/// A resumption begins at most so long after it was planned.
pub(super) const LONGEST_LEAD: Duration = Duration::from_millis(20);

/// A plan in the format of this host's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostPlan {
    Vmx(Plan<Vmx>),
    Svm(Plan<Svm>),
}

/// Evaluates `$body` with `$plan` bound to the typed plan.
macro_rules! with_plan {
    ($self:expr, $plan:ident => $body:expr) => {
        match $self {
            $crate::timekeeper::vcpu::HostPlan::Vmx($plan) => $body,
            $crate::timekeeper::vcpu::HostPlan::Svm($plan) => $body,
        }
    };
}
pub(super) use with_plan;

impl HostPlan {
    /// The offset for every vCPU.
    pub(super) fn offset(&self) -> TscOffset {
        with_plan!(self, plan => plan.transform.offset)
    }

    fn deadline(&self, register: GuestTsc) -> Deadline {
        with_plan!(self, plan => plan.deadline(register))
    }

    fn vendor(&self) -> Vendor {
        match self {
            Self::Vmx(_) => Vendor::Intel,
            Self::Svm(_) => Vendor::Amd,
        }
    }

    fn ratio(&self) -> Result<VendorRatio, TimeError> {
        let bits = with_plan!(self, plan => plan.transform.ratio.bits());
        let ratio = VendorRatio::from_bits(self.vendor(), bits);
        ratio.map_err(|error| TimeError::Control(error.into()))
    }
}

/// What a vCPU that waits is asked to do.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Something with its clock and timer.
    Clock(ClockOrder),
    /// Say where it stands.
    Stand,
    /// Go on from the offset that is in its place in this list, on the CPU that it stands on; and arm the
    /// timer again.
    GoOn(Arc<[(CpuId, TscOffset)]>),
}

/// What a vCPU is to do with its clock and timer across a pause.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ClockOrder {
    /// Note the clock and the timer.
    Note {
        /// And stop the timer, so that it does not fire meanwhile.
        hold_timer: bool,
    },
    /// Set the clock as planned, and look whether it is.
    Set(HostPlan),
    /// Set the clock back to what was noted.
    SetBack,
    /// Arm the timer as it was noted; as planned, if there is a plan, and then do not enter the guest before the
    /// plan's start.
    Rearm(Option<Start>),
}

/// A plan, and when the guest's clocks show what they are to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(super) plan: HostPlan,
    /// The host's TSC then.
    pub(super) at: HostTsc,
}

/// What a vCPU answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) vcpu: VcpuId,
    pub(crate) outcome: Result<Done, TimeError>,
}

/// What it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// It noted or set its clock.
    Clock(Noted),
    /// It stands there.
    Stands(Place),
    /// It goes on from the offset; and whether that was seen in force.
    GoesOn {
        /// The offset stayed, and the guest's TSC reads accordingly.
        seen: bool,
    },
}

/// A vCPU's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// The offset.
    pub(crate) offset: TscOffset,
    /// What its deadline timer's register held; 0 when it is not armed.
    pub(crate) deadline: GuestTsc,
    /// How closely the offset that was set is known: the distance of the host's readings around the one
    /// of the guest's TSC. 0 where nothing was set.
    pub(crate) bracket: TscDelta,
    /// The host's TSC soon after the vCPU left the guest.
    pub(crate) left: HostTsc,
}

/// A vCPU's clock cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TimeError {
    /// The kernel refuses.
    #[error(transparent)]
    Control(#[from] TscControlError),
    /// The kernel refuses to read or write the timer.
    #[error("the deadline timer cannot be read or written")]
    Timer(#[from] MsrError),
    /// The offset did not stay.
    #[error(
        "the TSC offset {asked} was accepted, but reads back as {found}: this host's KVM moves or \
         ignores offsets"
    )]
    NotKept {
        /// What was asked for.
        asked: TscOffset,
        /// What it is.
        found: TscOffset,
    },
    /// The TSC is elsewhere than the offset says.
    #[error(
        "with the TSC offset {asked} the guest reads {tsc}, which it does not explain: this host's KVM moves or \
         ignores offsets"
    )]
    Elsewhere {
        /// What was asked for.
        asked: TscOffset,
        /// What the TSC reads.
        tsc: GuestTsc,
    },
    /// It was not noted before.
    #[error("the clock was not read when the vCPU was stopped")]
    NotNoted,
    /// The processor does not tell on which CPU a counter was read.
    #[error("this processor has no RDTSCP, so it cannot be told which CPU's TSC is read")]
    NoCpu,
    /// The thread went to another CPU than the offset is for.
    #[error("the thread of the stopped vCPU moved to {0} meanwhile")]
    Moved(CpuId),
    /// There is no offset for it.
    #[error("no offset was planned for it")]
    NoOffset,
}

/// A vCPU thread's part of keeping time.
#[derive(Debug)]
pub(crate) struct VcpuTime<S> {
    id: VcpuId,
    clock: VcpuClock,
    watch: ExitWatch<S>,
    /// The clock was set while the vCPU waited: for a resumption, or taken forward.
    was_set: bool,
    was_taken: bool,
}

impl<S: Senses> VcpuTime<S> {
    /// Before the first entry.
    pub(crate) fn begin(id: VcpuId, mut watch: ExitWatch<S>, vcpu: &impl TscOffsetControl) -> Self {
        watch.begin(vcpu, false);
        Self {
            id,
            clock: VcpuClock::default(),
            watch,
            was_set: false,
            was_taken: false,
        }
    }

    /// Its watch.
    #[inline]
    pub(crate) fn watch(&mut self) -> &mut ExitWatch<S> {
        &mut self.watch
    }

    /// Carries `order` out on `vcpu`, whose thread this is.
    pub(crate) fn carry_out<V: TscOffsetControl + DeadlineTimer>(
        &mut self,
        vcpu: &mut V,
        order: &Order,
    ) -> Answer {
        let outcome = match order {
            Order::Clock(order) => {
                let sets = matches!(order, ClockOrder::Set(_) | ClockOrder::SetBack);
                self.was_set |= sets;
                if matches!(order, ClockOrder::Rearm(Some(_))) {
                    self.watch.entered_late(Ticks::ZERO);
                }
                let noted = self.clock.carry_out(vcpu, *order, || self.watch.tsc());
                if let (true, Ok(noted)) = (sets, &noted) {
                    self.watch.was_set_to(noted.offset);
                }
                noted.map(Done::Clock)
            }
            Order::Stand => self.watch.stand(vcpu).map(Done::Stands),
            Order::GoOn(offsets) => {
                let place = usize::try_from(self.id.get()).ok();
                match place.and_then(|place| offsets.get(place)) {
                    Some(&(cpu, offset)) => self.go_on(vcpu, cpu, offset),
                    None => Err(TimeError::NoOffset),
                }
            }
        };
        Answer {
            vcpu: self.id,
            outcome,
        }
    }

    /// The vCPU has just left its guest, and may have to wait.
    pub(crate) fn has_left(&mut self) {
        self.clock.leave(self.watch.tsc());
    }

    /// Returns when the guest may be entered again: a resumption may have a time for it.
    pub(crate) fn wait_for_start(&mut self) {
        if let Some(late) = self.clock.wait_for_start(|| self.watch.tsc()) {
            self.watch.entered_late(late);
        }
    }

    /// The vCPU goes on.
    pub(crate) fn leave(&mut self, vcpu: &impl TscOffsetControl) {
        let taken = std::mem::take(&mut self.was_taken);
        if std::mem::take(&mut self.was_set) {
            self.watch.begin(vcpu, false);
        } else if taken {
            self.watch.begin(vcpu, true);
        } else {
            self.watch.look(vcpu);
        }
    }

    fn go_on<V: TscOffsetControl + DeadlineTimer>(
        &mut self,
        vcpu: &mut V,
        cpu: CpuId,
        offset: TscOffset,
    ) -> Result<Done, TimeError> {
        let deadline = vcpu.deadline()?;
        let place = self.watch.stand(vcpu)?;
        if place.cpu != cpu {
            return Err(TimeError::Moved(place.cpu));
        }
        self.was_taken = true;
        let seen = match set(vcpu, offset, self.watch.ratio(), || self.watch.tsc()) {
            Ok(_) => {
                self.watch.was_set_to(offset);
                true
            }
            // KVM moves the offset of a vCPU on a host whose TSC it does not trust, at every load; it takes
            // the guest forward from the line that this write began.
            Err(TimeError::NotKept { .. } | TimeError::Elsewhere { .. }) => false,
            Err(error) => return Err(error),
        };
        // The kernel's timer goes by the host's clock: the guest's deadline is nearer now.
        if deadline.get() != 0 {
            vcpu.set_deadline(deadline)?;
        }
        Ok(Done::GoesOn { seen })
    }
}

/// What a vCPU's thread does with its clock across a pause.
#[derive(Debug, Default)]
pub(crate) struct VcpuClock {
    noted: Option<Noted>,
    left: Option<HostTsc>,
    start: Option<HostTsc>,
}

impl VcpuClock {
    /// The vCPU has just left the guest, and looks whether it is to wait.
    pub(crate) fn leave(&mut self, host_tsc: HostTsc) {
        self.left = Some(host_tsc);
    }

    /// Returns when the guest may be entered: a resumption has a time for that, which is near; and by how much that is
    /// over. It is not waited for a TSC that has lost its way.
    pub(crate) fn wait_for_start(&mut self, host_tsc: impl Fn() -> HostTsc) -> Option<Ticks> {
        let start = self.start.take()?;
        let begin = Instant::now();
        loop {
            let now = host_tsc();
            if !now.is_before(start) {
                return Some(now.wrapping_elapsed(start));
            }
            if begin.elapsed() >= LONGEST_LEAD {
                return None;
            }
            std::hint::spin_loop();
        }
    }

    /// Carries `order` out on `vcpu`, whose thread this is. `host_tsc` reads this CPU's TSC.
    ///
    /// # Errors
    /// The kernel's refusal, or that it did something else than it was asked. What was noted stays.
    pub(crate) fn carry_out<V: TscOffsetControl + DeadlineTimer>(
        &mut self,
        vcpu: &mut V,
        order: ClockOrder,
        host_tsc: impl Fn() -> HostTsc,
    ) -> Result<Noted, TimeError> {
        match order {
            ClockOrder::Note { hold_timer } => {
                self.noted = None;
                // One that was to go on, and was stopped again before it did: its clocks show what they are to from
                // there on, and nothing before it.
                if let Some(start) = self.start {
                    self.wait_for_start(&host_tsc);
                    let left = self.left.filter(|left| start.is_before(*left));
                    self.left = Some(left.unwrap_or(start));
                }
                let noted = Noted {
                    offset: vcpu.offset()?.claim(),
                    deadline: vcpu.deadline()?,
                    bracket: TscDelta::new(0),
                    left: self.left.unwrap_or_else(host_tsc),
                };
                // Before the timer is touched, which is to be armed again in any case.
                self.noted = Some(noted);
                if hold_timer && noted.deadline.get() != 0 {
                    vcpu.set_deadline(GuestTsc::new(0))?;
                }
                Ok(noted)
            }
            ClockOrder::Set(plan) => {
                let noted = self.noted()?;
                let offset = plan.offset();
                let bracket = set(vcpu, offset, plan.ratio()?, host_tsc)?;
                Ok(Noted {
                    offset,
                    bracket,
                    ..noted
                })
            }
            ClockOrder::SetBack => {
                let noted = self.noted()?;
                if vcpu.offset()?.claim() == noted.offset {
                    return Ok(noted);
                }
                let written = vcpu.write_offset(noted.offset)?;
                kept(written.read_back(vcpu.offset()?))?;
                Ok(noted)
            }
            ClockOrder::Rearm(start) => {
                let noted = self.noted()?;
                self.start = start.map(|start| start.at);
                let write = match start.map(|start| start.plan.deadline(noted.deadline)) {
                    None => noted.deadline,
                    Some(Deadline::Disarmed) => GuestTsc::new(0),
                    Some(Deadline::Armed { write, .. } | Deadline::Overdue { write, .. }) => write,
                };
                if write.get() != 0 {
                    vcpu.set_deadline(write)?;
                }
                Ok(noted)
            }
        }
    }

    fn noted(&self) -> Result<Noted, TimeError> {
        self.noted.ok_or(TimeError::NotNoted)
    }
}

/// Sets the offset, reads it back, and looks whether the guest's TSC reads accordingly.
fn set<V: TscOffsetControl>(
    vcpu: &mut V,
    offset: TscOffset,
    ratio: VendorRatio,
    host_tsc: impl Fn() -> HostTsc,
) -> Result<TscDelta, TimeError> {
    let written = vcpu.write_offset(offset)?;
    kept(written.read_back(vcpu.offset()?))?;
    let sample = sample(vcpu, host_tsc)?;
    match OffsetBounds::proven_by(ratio, &[sample]) {
        Some(bounds) if bounds.contains(offset) => Ok(bounds.width()),
        _ => Err(TimeError::Elsewhere {
            asked: offset,
            tsc: sample.guest,
        }),
    }
}

/// Whether what KVM gives for the vCPU's TSC is what `ratio` and `offset` make of the host's.
pub(super) fn is_explained(
    vcpu: &impl TscOffsetControl,
    ratio: VendorRatio,
    offset: TscOffset,
    host_tsc: impl Fn() -> HostTsc,
) -> Result<bool, TscControlError> {
    let bounds = OffsetBounds::proven_by(ratio, &[sample(vcpu, host_tsc)?]);
    Ok(bounds.is_some_and(|bounds| bounds.contains(offset)))
}

/// What KVM gives for the vCPU's TSC, between two readings of the host's.
fn sample(
    vcpu: &impl TscOffsetControl,
    host_tsc: impl Fn() -> HostTsc,
) -> Result<GuestSample, TscControlError> {
    // The bracket's times do not count: only its TSCs bound an offset.
    let host = || HostSample {
        tsc: host_tsc(),
        monotonic: Nanos::ZERO,
    };
    Ok(GuestSample {
        before: host(),
        guest: vcpu.guest_tsc()?.claim(),
        after: host(),
    })
}

fn kept(offset: hypervisor::tsc_control::ReadBack<TscOffset>) -> Result<(), TimeError> {
    if offset.agrees() {
        Ok(())
    } else {
        Err(TimeError::NotKept {
            asked: offset.asked(),
            found: offset.claimed(),
        })
    }
}
