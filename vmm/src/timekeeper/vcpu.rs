//! What a vCPU's thread does to its clock and timer while it waits at the gate.

use hypervisor::MsrError;
use hypervisor::guest_clock::DeadlineTimer;
use hypervisor::tsc_control::{
    OffsetBounds, TscControlError, TscOffsetControl, Vendor, VendorRatio,
};
use tsc::measure::{GuestSample, HostSample};
use tsc::plan::{Deadline, Plan};
use tsc::{GuestTsc, HostTsc, Nanos, Svm, TscDelta, TscOffset, VcpuId, Vmx};

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
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Note the clock and the timer.
    Note {
        /// And stop the timer, so that it does not fire meanwhile.
        hold_timer: bool,
    },
    /// Set the clock as planned, and look whether it is.
    Set(HostPlan),
    /// Set the clock back to what was noted.
    SetBack,
    /// Arm the timer as it was noted; as planned, if there is a plan.
    Rearm(Option<HostPlan>),
}

/// What a vCPU answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) vcpu: VcpuId,
    pub(crate) outcome: Result<Noted, TimeError>,
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
}

/// A vCPU thread's part of keeping time.
#[derive(Debug, Default)]
pub(crate) struct VcpuClock {
    noted: Option<Noted>,
}

impl VcpuClock {
    /// Carries `order` out on `vcpu`, whose thread this is. `host_tsc` reads this CPU's TSC.
    ///
    /// # Errors
    /// The kernel's refusal, or that it did something else than it was asked. What was noted stays.
    pub(crate) fn carry_out<V: TscOffsetControl + DeadlineTimer>(
        &mut self,
        vcpu: &mut V,
        order: Order,
        host_tsc: impl Fn() -> HostTsc,
    ) -> Result<Noted, TimeError> {
        match order {
            Order::Note { hold_timer } => {
                self.noted = None;
                let noted = Noted {
                    offset: vcpu.offset()?.claim(),
                    deadline: vcpu.deadline()?,
                    bracket: TscDelta::new(0),
                };
                if hold_timer && noted.deadline.get() != 0 {
                    vcpu.set_deadline(GuestTsc::new(0))?;
                }
                Ok(*self.noted.insert(noted))
            }
            Order::Set(plan) => {
                let noted = self.noted()?;
                let offset = plan.offset();
                let bracket = set(vcpu, offset, plan.ratio()?, host_tsc)?;
                Ok(Noted {
                    offset,
                    bracket,
                    ..noted
                })
            }
            Order::SetBack => {
                let noted = self.noted()?;
                let written = vcpu.write_offset(noted.offset)?;
                kept(written.read_back(vcpu.offset()?))?;
                Ok(noted)
            }
            Order::Rearm(plan) => {
                let noted = self.noted()?;
                let write = match plan.map(|plan| plan.deadline(noted.deadline)) {
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
    // The bracket's times do not count: only its TSCs bound an offset.
    let host = || HostSample {
        tsc: host_tsc(),
        monotonic: Nanos::ZERO,
    };
    let before = host();
    let guest = vcpu.guest_tsc()?.claim();
    let sample = GuestSample {
        before,
        guest,
        after: host(),
    };
    let elsewhere = TimeError::Elsewhere {
        asked: offset,
        tsc: guest,
    };
    match OffsetBounds::proven_by(ratio, &[sample]) {
        Some(bounds) if bounds.contains(offset) => Ok(bounds.width()),
        _ => Err(elsewhere),
    }
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
