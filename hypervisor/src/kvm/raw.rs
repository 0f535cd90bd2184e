//! System calls that `kvm-ioctls` lacks on x86-64, or whose reason of failure it loses.
//!
//! `VcpuFd::{has,set}_device_attr` exist there for aarch64 only, a getter not at all, the rate of a
//! whole VM not either; and `VcpuFd::get_tsc_khz` returns the call's result, -1, where errno is
//! meant.
#![expect(unsafe_code, reason = "system calls on KVM's descriptors")]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVMIO, kvm_device_attr};
use kvm_ioctls::{VcpuFd, VmFd};
use tsc::Khz;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

use crate::IoctlError;

// Numbers: include/uapi/linux/kvm.h.
ioctl_io_nr!(KVM_SET_TSC_KHZ, KVMIO, 0xa2);
ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

fn last_error(call: &'static str) -> IoctlError {
    IoctlError {
        call,
        source: io::Error::last_os_error(),
    }
}

/// An attribute of the group `KVM_VCPU_TSC_CTRL`, `WORDS` 64-bit words large.
#[derive(Clone, Copy, Debug)]
pub(super) struct TscAttribute<const WORDS: usize>(u32);

/// `KVM_VCPU_TSC_OFFSET`, one word (Documentation/virt/kvm/devices/vcpu.rst, 4.1).
pub(super) const TSC_OFFSET: TscAttribute<1> = TscAttribute(kvm_bindings::KVM_VCPU_TSC_OFFSET);

/// `KVM_VCPU_TSC_SCALE`: `struct kvm_vcpu_tsc_scale`, the ratio and the number of its fraction bits
/// (vcpu.rst, 4.2, of the kernels that have it).
pub(super) const TSC_SCALE: TscAttribute<2> = TscAttribute(1);

impl<const WORDS: usize> TscAttribute<WORDS> {
    fn request(self, address: *const [u64; WORDS]) -> kvm_device_attr {
        kvm_device_attr {
            flags: 0,
            group: KVM_VCPU_TSC_CTRL,
            attr: self.0.into(),
            addr: address.addr().try_into().expect("addresses have 64 bits"),
        }
    }

    /// Whether the kernel knows it.
    pub(super) fn exists(self, vcpu: &VcpuFd) -> bool {
        let request = self.request(std::ptr::null());
        // SAFETY: a call on a KVM descriptor that reads the request, which lives until it returns,
        // and ignores its address.
        unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &request) == 0 }
    }

    pub(super) fn get(self, vcpu: &VcpuFd) -> Result<[u64; WORDS], IoctlError> {
        let mut words = [0; WORDS];
        let mut request = self.request(&raw const words);
        request.addr = (&raw mut words)
            .expose_provenance()
            .try_into()
            .expect("addresses have 64 bits");
        // SAFETY: a call on a KVM descriptor that reads the request and writes `WORDS` words at its
        // address; both live until it returns, and nobody else has the words.
        let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &request) };
        if result == 0 {
            Ok(words)
        } else {
            Err(last_error("KVM_GET_DEVICE_ATTR"))
        }
    }

    pub(super) fn set(self, vcpu: &VcpuFd, words: &[u64; WORDS]) -> Result<(), IoctlError> {
        let request = self.request(words);
        // SAFETY: a call on a KVM descriptor that reads the request and `WORDS` words at its address;
        // both live until it returns.
        let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &request) };
        if result == 0 {
            Ok(())
        } else {
            Err(last_error("KVM_SET_DEVICE_ATTR"))
        }
    }
}

/// `KVM_GET_TSC_KHZ`; `None` for an answer of 0. On a VM it answers with the rate of vCPUs to come.
fn rate(descriptor: &impl AsRawFd) -> Result<Option<Khz>, IoctlError> {
    // SAFETY: a call on a KVM descriptor, without an argument.
    let result = unsafe { ioctl(descriptor, KVM_GET_TSC_KHZ()) };
    match u32::try_from(result) {
        Ok(khz) => Ok(Khz::new(khz)),
        Err(_) => Err(last_error("KVM_GET_TSC_KHZ")),
    }
}

/// `KVM_SET_TSC_KHZ`. On a VM it sets the rate of vCPUs to come.
fn set_rate(descriptor: &impl AsRawFd, rate: Khz) -> Result<(), IoctlError> {
    // SAFETY: a call on a KVM descriptor whose argument is a number.
    let result = unsafe { ioctl_with_val(descriptor, KVM_SET_TSC_KHZ(), rate.get().into()) };
    if result == 0 {
        Ok(())
    } else {
        Err(last_error("KVM_SET_TSC_KHZ"))
    }
}

pub(super) fn vcpu_rate(vcpu: &VcpuFd) -> Result<Option<Khz>, IoctlError> {
    rate(vcpu)
}

pub(super) fn set_vcpu_rate(vcpu: &VcpuFd, khz: Khz) -> Result<(), IoctlError> {
    set_rate(vcpu, khz)
}

pub(super) fn vm_rate(vm: &VmFd) -> Result<Option<Khz>, IoctlError> {
    rate(vm)
}

pub(super) fn set_vm_rate(vm: &VmFd, khz: Khz) -> Result<(), IoctlError> {
    set_rate(vm, khz)
}
