//! kvmclock, from outside.

use arch::msr::{IA32_TSC_DEADLINE, Msr};
use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE,
    kvm_clock_data,
};
use tsc::{GuestTsc, HostTsc, Nanos};

use super::vcpu::KvmVcpu;
use super::vm::KvmVm;
use crate::guest_clock::{
    ClockReading, ClockSetting, ClockSupport, DeadlineTimer, PauseNotice, VmClock,
};
use crate::{IoctlError, MsrError, Vcpu};

impl VmClock for KvmVm {
    fn clock_support(&self) -> ClockSupport {
        let answer = self.vm.check_extension_raw(KVM_CAP_ADJUST_CLOCK.into());
        support(u32::try_from(answer).unwrap_or(0))
    }

    fn clock(&self) -> Result<ClockReading, IoctlError> {
        let data = self
            .vm
            .get_clock()
            .map_err(IoctlError::new("KVM_GET_CLOCK"))?;
        Ok(reading(&data))
    }

    fn set_clock(&self, setting: ClockSetting) -> Result<(), IoctlError> {
        self.vm
            .set_clock(&data(setting))
            .map_err(IoctlError::new("KVM_SET_CLOCK"))
    }
}

impl DeadlineTimer for KvmVcpu {
    fn deadline(&self) -> Result<GuestTsc, MsrError> {
        let [value] = self.msrs([IA32_TSC_DEADLINE])?;
        Ok(GuestTsc::new(value))
    }

    fn set_deadline(&mut self, deadline: GuestTsc) -> Result<(), MsrError> {
        self.set_msrs(&[Msr {
            index: IA32_TSC_DEADLINE,
            value: deadline.get(),
        }])
    }
}

impl PauseNotice for KvmVcpu {
    fn notify_pause(&self) -> Result<bool, IoctlError> {
        match self.fd.kvmclock_ctrl() {
            Ok(()) => Ok(true),
            // EINVAL: the guest has not registered a clock for this vCPU (api.rst, 4.71).
            Err(error) if error.errno() == libc::EINVAL => Ok(false),
            Err(error) => Err(IoctlError::new("KVM_KVMCLOCK_CTRL")(error)),
        }
    }
}

/// The capability's value is 1 on kernels before 4.9, and since then the mask of the flags that a
/// reading can carry, which never has bit 0 (api.rst, 4.29).
fn support(answer: u32) -> ClockSupport {
    ClockSupport {
        adjustable: answer != 0,
        tsc_stable: answer & KVM_CLOCK_TSC_STABLE != 0,
        real_time: answer & KVM_CLOCK_REALTIME != 0,
        host_tsc: answer & KVM_CLOCK_HOST_TSC != 0,
    }
}

fn reading(data: &kvm_clock_data) -> ClockReading {
    let has = |flag| data.flags & flag != 0;
    ClockReading {
        clock: Nanos::new(data.clock),
        tsc_stable: has(KVM_CLOCK_TSC_STABLE),
        host_tsc: has(KVM_CLOCK_HOST_TSC).then(|| HostTsc::new(data.host_tsc)),
        real_time: has(KVM_CLOCK_REALTIME).then(|| Nanos::new(data.realtime)),
    }
}

fn data(setting: ClockSetting) -> kvm_clock_data {
    match setting {
        ClockSetting::Now(clock) => kvm_clock_data {
            clock: clock.get(),
            ..Default::default()
        },
        ClockSetting::AtRealTime { clock, real_time } => kvm_clock_data {
            clock: clock.get(),
            flags: KVM_CLOCK_REALTIME,
            realtime: real_time.get(),
            ..Default::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn support_is_read_from_the_mask() {
        // 0: no capability; 1: Linux before 4.9; 2: before 5.16; 14: since then.
        let table = [
            (0, [false, false, false, false]),
            (1, [true, false, false, false]),
            (2, [true, true, false, false]),
            (14, [true, true, true, true]),
        ];
        for (answer, expected) in table {
            let got = support(answer);
            let fields = [got.adjustable, got.tsc_stable, got.real_time, got.host_tsc];
            assert_eq!(fields, expected, "{answer}");
        }
    }

    #[test]
    fn fields_without_their_flag_are_absent() {
        let mut raw = kvm_clock_data {
            clock: 5,
            realtime: 6,
            host_tsc: 7,
            ..Default::default()
        };
        assert_eq!(
            reading(&raw),
            ClockReading {
                clock: Nanos::new(5),
                tsc_stable: false,
                host_tsc: None,
                real_time: None
            }
        );
        raw.flags = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC | KVM_CLOCK_TSC_STABLE;
        assert_eq!(
            reading(&raw),
            ClockReading {
                clock: Nanos::new(5),
                tsc_stable: true,
                host_tsc: Some(HostTsc::new(7)),
                real_time: Some(Nanos::new(6))
            }
        );
    }

    #[test]
    fn a_setting_carries_the_real_time_only_when_asked() {
        let now = data(ClockSetting::Now(Nanos::new(9)));
        assert_eq!((now.clock, now.flags, now.realtime), (9, 0, 0));
        let then = data(ClockSetting::AtRealTime {
            clock: Nanos::new(9),
            real_time: Nanos::new(8),
        });
        assert_eq!((then.clock, then.flags, then.realtime), (9, 4, 8));
    }
}
