//! The paravirtual clock of a whole VM (kvmclock), read and set from outside.

use tsc::{GuestTsc, HostTsc, Nanos};

use crate::{IoctlError, MsrError};

/// What the hypervisor says of a VM's clock. Which fields come depends on the kernel: before Linux
/// 5.16 only the clock itself does (Documentation/virt/kvm/api.rst, 4.29).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Nanoseconds since the guest's boot.
    pub clock: Nanos,
    /// `KVM_CLOCK_TSC_STABLE`: all vCPUs compute their clock from one reading of one TSC.
    pub tsc_stable: bool,
    /// `KVM_CLOCK_HOST_TSC`: the host's TSC at the same instant.
    pub host_tsc: Option<HostTsc>,
    /// `KVM_CLOCK_REALTIME`: the host's real time, since 1970, at the same instant.
    pub real_time: Option<Nanos>,
}

/// What a VM's clock is to be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSetting {
    /// To this value now.
    Now(Nanos),
    /// To this value at that real time: what has passed since is added, and never taken off.
    AtRealTime {
        /// The clock's value.
        clock: Nanos,
        /// The host's real time, since 1970, at which it was right.
        real_time: Nanos,
    },
}

/// What a host can do with a VM's clock (`KVM_CAP_ADJUST_CLOCK` as a bit mask).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSupport {
    /// It can be read and set at all.
    pub adjustable: bool,
    /// A reading tells whether it rests on one TSC.
    pub tsc_stable: bool,
    /// Readings and settings can carry the real time.
    pub real_time: bool,
    /// Readings carry the host's TSC.
    pub host_tsc: bool,
}

/// The clock of a whole VM.
pub trait VmClock {
    /// What the host says that it can do.
    fn clock_support(&self) -> ClockSupport;

    /// Reads the clock.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_GET_CLOCK`.
    fn clock(&self) -> Result<ClockReading, IoctlError>;

    /// Sets the clock.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_SET_CLOCK`: `EINVAL` for a real time on kernels before 5.16.
    fn set_clock(&self, setting: ClockSetting) -> Result<(), IoctlError>;
}

/// The local APIC's timer in TSC-deadline mode (SDM vol. 3, 10.5.4.1), read and set from outside while
/// the vCPU is not running.
pub trait DeadlineTimer {
    /// The value of the guest's TSC at which the timer fires; 0 when it is not armed. A timer that has
    /// fired while the vCPU was out of the guest still shows its value: the interrupt is yet to be
    /// delivered (`kvm_inject_apic_timer_irqs` in arch/x86/kvm/lapic.c clears it).
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn deadline(&self) -> Result<GuestTsc, MsrError>;

    /// Arms the timer, or disarms it with 0, an interrupt that is yet to be delivered included. In
    /// another mode of the timer it is without effect.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn set_deadline(&mut self, deadline: GuestTsc) -> Result<(), MsrError>;
}

/// A vCPU that is resumed after a pause.
pub trait PauseNotice {
    /// Tells the guest's clock that this vCPU was paused, so that its watchdog forgives the gap.
    /// Comes before **every** resume. `Ok(false)` when the guest does not use the clock, which is
    /// normal.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_KVMCLOCK_CTRL`.
    fn notify_pause(&self) -> Result<bool, IoctlError>;
}
