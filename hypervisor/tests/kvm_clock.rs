//! kvmclock over the KVM of this host, if there is one.

use std::path::Path;

use arch::memory::{MemorySize, ram_regions};
use hypervisor::guest_clock::{ClockSetting, PauseNotice, VmClock};
use hypervisor::kvm::{Kvm, KvmVm};
use hypervisor::{Hypervisor, InterruptControllers, Vm};
use rustix::time::{ClockId, clock_gettime};
use tsc::{Nanos, VcpuId};
use vm_memory::GuestMemoryMmap;

/// A VM, or nothing where there is no KVM that can set clocks, which is said.
fn vm() -> Option<KvmVm> {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) if Path::new("/dev/kvm").exists() => {
            println!("skipped: {error}");
            return None;
        }
        Err(error) => {
            println!("skipped here: {error}");
            return None;
        }
    };
    let size = MemorySize::from_mib(1).expect("in bounds");
    let memory = GuestMemoryMmap::from_ranges(&ram_regions(size)).expect("room");
    let vm = kvm
        .create_vm(memory, Vec::new(), InterruptControllers::None)
        .expect("a VM");
    if !vm.clock_support().adjustable {
        println!("skipped here: this kernel cannot set a VM's clock");
        return None;
    }
    Some(vm)
}

const DAY: Nanos = Nanos::new(86_400_000_000_000);
const MINUTE: Nanos = Nanos::new(60_000_000_000);

#[test]
fn a_clock_that_was_set_goes_on_from_there() {
    let Some(vm) = vm() else { return };
    let fresh = vm.clock().expect("readable");
    assert!(fresh.clock < MINUTE, "{fresh:?}");
    vm.set_clock(ClockSetting::Now(DAY)).expect("accepted");
    let set = vm.clock().expect("readable");
    let passed = set.clock.checked_sub(DAY).expect("not before what was set");
    assert!(passed < MINUTE, "{set:?}");
    let later = vm.clock().expect("readable");
    assert!(later.clock >= set.clock);
}

#[test]
fn a_clock_set_as_of_a_real_time_has_what_passed_since() {
    let Some(vm) = vm() else { return };
    if !vm.clock_support().real_time {
        return println!("skipped here: this kernel knows no real time for clocks");
    }
    // A reading of the clock has the real time only while the master clock is on.
    let now = clock_gettime(ClockId::Realtime);
    let now = Nanos::new(u64::try_from(now.tv_sec).expect("after 1970") * 1_000_000_000);
    let setting = ClockSetting::AtRealTime {
        clock: DAY,
        real_time: now.checked_sub(MINUTE).expect("after 1970"),
    };
    vm.set_clock(setting).expect("accepted");
    let set = vm.clock().expect("readable");
    // a day and a minute, the fraction of a second that was cut, and what this test took
    let passed = set.clock.checked_sub(DAY).expect("not before what was set");
    let rest = passed.checked_sub(MINUTE).expect("the minute counts");
    assert!(rest < MINUTE, "{set:?}");
}

#[test]
fn a_guest_without_the_clock_need_not_be_told_of_a_pause() {
    let Some(vm) = vm() else { return };
    let vcpu = vm.create_vcpu(VcpuId::new(0)).expect("a vCPU");
    assert!(!vcpu.notify_pause().expect("no refusal"));
}
