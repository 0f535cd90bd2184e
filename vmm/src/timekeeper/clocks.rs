//! The clocks of a machine whose vCPUs wait, read and set together.

use hypervisor::IoctlError;
use hypervisor::guest_clock::{ClockReading, ClockSetting, VmClock};
use tsc::{HostTsc, Nanos, plan};

use super::vcpu::{Answer, ClockOrder, HostPlan, Noted, Order, TimeError, with_plan};
use super::{ResumeError, all, clock};

/// A kvmclock that is further off than this was not set: the kernel or another process set it meanwhile.
const KVMCLOCK_OFF: Nanos = Nanos::new(1_000_000);
/// One that is closer than this is where it was set to.
const KVMCLOCK_CLOSE: Nanos = Nanos::new(1_000);
/// So often it is set. For a time in the past the kernel adds what has passed since, by two clocks that it reads
/// one after the other (`kvm_vm_ioctl_set_clock` in arch/x86/kvm/x86.c): what lies between them is about the same
/// each time, so that the next setting can make up for it.
const KVMCLOCK_TRIES: u32 = 3;

/// The clocks of the host and of the VM as a whole.
pub(crate) struct Clocks<'a, C> {
    pub(crate) vm: &'a C,
    /// `CLOCK_BOOTTIME`.
    pub(crate) boottime: &'a dyn Fn() -> Nanos,
    /// This CPU's TSC.
    pub(crate) host_tsc: &'a dyn Fn() -> HostTsc,
}

/// Readings that belong together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) reading: ClockReading,
    pub(super) host_tsc: HostTsc,
    pub(super) boottime: Nanos,
    pub(super) error: Nanos,
}

impl<C: VmClock> Clocks<'_, C> {
    pub(super) fn pair(&self) -> Result<Pair, IoctlError> {
        let boottime = (self.boottime)();
        let host_tsc = (self.host_tsc)();
        let reading = self.vm.clock()?;
        Ok(Pair {
            reading,
            host_tsc: reading.host_tsc.unwrap_or(host_tsc),
            boottime,
            error: (self.boottime)().saturating_sub(boottime),
        })
    }
}

/// A resumption that sets clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// The clocks before.
    pub(super) pair: Pair,
    /// The kvmclock was set.
    pub(super) kvmclock: bool,
}

/// The error with which a pair's TSC and kvmclock belong together: none where the kernel read both at the
/// same instant.
pub(super) fn pairing_error(pair: &Pair) -> Nanos {
    match pair.reading.host_tsc {
        Some(_) => Nanos::ZERO,
        None => pair.error,
    }
}

/// Sets all clocks as they were. Returns whether they are so.
pub(super) fn set_back(
    begun: &Begun,
    clocks: &Clocks<'_, impl VmClock>,
    ask: &impl Fn(Order) -> Vec<Answer>,
) -> bool {
    let back = ask(Order::Clock(ClockOrder::SetBack));
    let Begun { pair, kvmclock } = begun;
    let kvmclock = !kvmclock || is_as_it_was(pair, clocks);
    // A KVM that moves offsets takes the guest forward from the reading that is set, which is what counts.
    let is_back = |answer: &Answer| {
        matches!(
            answer.outcome,
            Ok(_) | Err(TimeError::NotKept { .. } | TimeError::NotNoted)
        )
    };
    kvmclock && back.iter().all(is_back)
}

/// Sets the kvmclock to what it was at `pair`, with what has passed since, and reads it back: whether it is there.
fn is_as_it_was(pair: &Pair, clocks: &Clocks<'_, impl VmClock>) -> bool {
    let before = pair.reading.clock;
    let passed = |boottime: Nanos| boottime.saturating_sub(pair.boottime);
    for _ in 0..KVMCLOCK_TRIES {
        let setting = match setting(before, pair) {
            ClockSetting::Now(_) => {
                ClockSetting::Now(before.saturating_add(passed((clocks.boottime)())))
            }
            at => at,
        };
        let Some(after) = (clocks.vm.set_clock(setting).ok()).and_then(|()| clocks.pair().ok())
        else {
            continue;
        };
        let error = pair
            .error
            .saturating_add(after.error)
            .saturating_add(KVMCLOCK_OFF);
        if plan::has_gone_on(before, after.reading.clock, passed(after.boottime), error) {
            return true;
        }
    }
    false
}

/// Sets all vCPUs' TSCs, then the kvmclock for the same instant, and reads it back. `is_set` once the latter is.
pub(super) fn carry_out(
    plan: &HostPlan,
    pair: &Pair,
    clocks: &Clocks<'_, impl VmClock>,
    ask: &impl Fn(Order) -> Vec<Answer>,
    is_set: &mut bool,
) -> Result<(Vec<Noted>, Option<i64>, ClockReading), ResumeError> {
    let vcpus = all(ask(Order::Clock(ClockOrder::Set(*plan))), clock)?;
    let kvmclock = with_plan!(plan, plan => plan.kvmclock);
    let (mut aim, mut after, mut error) = (kvmclock, *pair, None);
    for _ in 0..KVMCLOCK_TRIES {
        clocks.vm.set_clock(setting(aim, pair))?;
        *is_set = true;
        after = clocks.pair()?;
        let reading = after.reading.clock;
        error = with_plan!(plan, plan => plan.kvmclock_error(reading, after.host_tsc));
        let Some(off) = error.filter(|error| error.magnitude() > KVMCLOCK_CLOSE) else {
            break;
        };
        aim = if off.get() > 0 {
            aim.saturating_sub(off.magnitude())
        } else {
            aim.saturating_add(off.magnitude())
        };
    }
    match error {
        Some(error) if error.magnitude() > KVMCLOCK_OFF => {
            Err(ResumeError::KvmclockOff(error.get()))
        }
        error => Ok((vcpus, error.map(|error| error.get()), after.reading)),
    }
}

/// `clock` at the instant of `pair`, or now on kernels that do not know of instants.
fn setting(clock: Nanos, pair: &Pair) -> ClockSetting {
    match pair.reading.real_time {
        Some(real_time) => ClockSetting::AtRealTime { clock, real_time },
        None => ClockSetting::Now(clock),
    }
}
