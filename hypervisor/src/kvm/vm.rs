//! A KVM virtual machine.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION takes a raw address")]

use std::sync::Arc;

use arch::layout;
use arch::pit::PitState;
use kvm_bindings::{
    KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use tsc::VcpuId;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::pit;
use super::run_page::RunPage;
use super::tsc::TscCapabilities;
use super::vcpu::KvmVcpu;
use crate::{Gsi, InterruptControllers, IoctlError, Vm, Window};

/// All memory of a guest, mapped as long as a clone of this is there.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) ram: GuestMemoryMmap,
    pub(super) windows: Arc<[Window]>,
}

/// A KVM virtual machine with its memory.
#[derive(Debug)]
pub struct KvmVm {
    pub(super) vm: VmFd,
    pub(super) capabilities: TscCapabilities,
    memory: Memory,
}

impl KvmVm {
    pub(super) fn create(
        kvm: &kvm_ioctls::Kvm,
        memory: Memory,
        controllers: InterruptControllers,
        capabilities: TscCapabilities,
    ) -> Result<Self, IoctlError> {
        let vm = kvm.create_vm().map_err(IoctlError::new("KVM_CREATE_VM"))?;
        let ram = memory.ram.iter().map(|region| (region, 0));
        // The flag has been there on x86 longer than what else is asked of a kernel (KVM_CAP_READONLY_MEM, Linux 3.7).
        let windows = memory.windows.iter().map(|window| {
            let flags = if window.writable { 0 } else { KVM_MEM_READONLY };
            (&*window.memory, flags)
        });
        for (slot, (region, flags)) in (0..).zip(ram.chain(windows)) {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region
                    .as_ptr()
                    .addr()
                    .try_into()
                    .expect("addresses have 64 bits"),
            };
            // SAFETY: address and length are those of a mapping that `memory` keeps alive; the VM
            // and each of its vCPUs hold a clone of it, so the guest cannot outlive it.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(IoctlError::new("KVM_SET_USER_MEMORY_REGION"))?;
        }
        vm.set_identity_map_address(layout::HYPERVISOR_IDENTITY_MAP.raw_value())
            .map_err(IoctlError::new("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(layout::HYPERVISOR_TSS.raw_value())
            .expect("the address is below 4 GiB");
        vm.set_tss_address(tss)
            .map_err(IoctlError::new("KVM_SET_TSS_ADDR"))?;
        if controllers == InterruptControllers::InKernel {
            vm.create_irq_chip()
                .map_err(IoctlError::new("KVM_CREATE_IRQCHIP"))?;
        }
        Ok(Self {
            vm,
            capabilities,
            memory,
        })
    }
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn create_vcpu(&self, id: VcpuId) -> Result<KvmVcpu, IoctlError> {
        let fd = self
            .vm
            .create_vcpu(id.get().into())
            .map_err(IoctlError::new("KVM_CREATE_VCPU"))?;
        KvmVcpu::new(fd, self.memory.clone(), self.capabilities)
    }

    fn register_interrupt(&self, event: &EventFd, gsi: Gsi) -> Result<(), IoctlError> {
        self.vm
            .register_irqfd(event, gsi.0)
            .map_err(IoctlError::new("KVM_IRQFD"))
    }

    fn register_notification(
        &self,
        event: &EventFd,
        address: GuestAddress,
        value: u32,
    ) -> Result<(), IoctlError> {
        let address = IoEventAddress::Mmio(address.raw_value());
        self.vm
            .register_ioevent(event, &address, value)
            .map_err(IoctlError::new("KVM_IOEVENTFD"))
    }

    fn create_pit(&self, state: &PitState) -> Result<(), IoctlError> {
        // The speaker port 0x61 is answered by the kernel too: kernels time their loops with it.
        let config = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        self.vm
            .create_pit2(config)
            .map_err(IoctlError::new("KVM_CREATE_PIT2"))?;
        let mut present = self
            .vm
            .get_pit2()
            .map_err(IoctlError::new("KVM_GET_PIT2"))?;
        pit::apply(state, &mut present);
        self.vm
            .set_pit2(&present)
            .map_err(IoctlError::new("KVM_SET_PIT2"))
    }
}

/// Maps `vcpu`'s run page for another owner.
pub(super) fn map_run_page(vcpu: &kvm_ioctls::VcpuFd) -> Result<RunPage, IoctlError> {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the descriptor stays open while `vcpu` is borrowed, which outlasts the call.
    RunPage::map(unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) })
}
