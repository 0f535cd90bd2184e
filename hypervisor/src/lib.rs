//! Virtual machines and vCPUs behind neutral traits, and their KVM backend.
//!
//! The traits speak the types of [`arch`] (registers, CPUID entries, MSRs) and of `vm-memory`; no
//! KVM type leaves this crate. The rest of the product is written against the traits, so that a
//! model can stand in for the kernel where a test needs faults that no kernel shows on demand.
//!
//! # The order of creation
//!
//! [`Hypervisor::create_vm`] takes all of the guest's memory and the choice of interrupt controllers
//! together, because the order matters and is not for a caller to get wrong: memory slots first,
//! then the interrupt controllers, then vCPUs. Each change of a memory slot waits for the kernel's
//! SRCU readers; while nothing but the VM exists there are none and the call is free, afterwards it
//! costs milliseconds. KVM refuses to create the interrupt controllers once a vCPU exists.
//!
//! # What this crate must not do
//!
//! Hold policy, or arithmetic on time: both are in `tsc`. It carries out what was decided.

pub mod contract;
mod error;
mod exit;
pub mod guest_clock;
pub mod host;
pub mod kvm;
pub mod model;
pub mod tsc_control;

use std::fmt::Debug;
use std::sync::Arc;

use arch::cpuid::CpuidEntry;
use arch::lapic::REGISTERS_SIZE;
use arch::msr::Msr;
use arch::pit::PitState;
use arch::regs::{GeneralRegisters, SystemRegisters};
use tsc::{Khz, VcpuId};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

pub use error::{IoctlError, MsrError, OpenError};
pub use exit::{Direction, Exit, FailureDetails, PortAccess, SystemEvent};

/// A global system interrupt: an input of the guest's interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gsi(pub u32);

/// Who models the guest's interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptControllers {
    /// Nobody: a guest without interrupts. Its VM is destroyed about 13 ms faster, since the kernel
    /// waits for its readers when it frees the controllers.
    None,
    /// The kernel: two 8259 PICs, an I/O APIC, and a local APIC for each vCPU.
    InKernel,
}

/// Memory that a guest has in its physical address space beside its RAM, such as a file.
#[derive(Clone, Debug)]
pub struct Window {
    /// What is behind it, and where it is. It overlaps neither RAM nor another window.
    pub memory: Arc<GuestRegionMmap>,
    /// Whether the guest may write. A write that it may not make returns from [`Vcpu::run`] as one to where no memory
    /// is ([`Exit::MmioWrite`]).
    pub writable: bool,
}

/// An optional ability of the host that a guest can be run without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingFeature {
    /// The kernel's name of it, such as `KVM_CAP_XCRS`.
    pub name: &'static str,
    /// What a guest or an operator goes without.
    pub consequence: &'static str,
}

/// A source of virtual machines: an opened `/dev/kvm`, or a model of it.
pub trait Hypervisor {
    /// The machines it makes.
    type Vm: Vm + 'static;

    /// The optional features that this host lacks, with what follows from each.
    fn missing_features(&self) -> &[MissingFeature];

    /// The largest number of vCPUs that a VM may have here.
    fn max_vcpus(&self) -> usize;

    /// Whether the local APIC model has a timer in TSC-deadline mode.
    fn has_tsc_deadline_timer(&self) -> bool;

    /// The CPUID leaves and feature bits that the host and the hypervisor can give a guest.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_GET_SUPPORTED_CPUID`.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, IoctlError>;

    /// Creates a VM with its RAM, its other memory and its interrupt controllers.
    ///
    /// # Errors
    /// The name of the call that the kernel refused, and its reason.
    fn create_vm(
        &self,
        memory: GuestMemoryMmap,
        windows: Vec<Window>,
        controllers: InterruptControllers,
    ) -> Result<Self::Vm, IoctlError>;
}

/// One virtual machine.
pub trait Vm: Debug + Send + Sync {
    /// Its processors.
    type Vcpu: Vcpu + 'static;

    /// Creates the vCPU `id`, which is its APIC id as well.
    ///
    /// # Errors
    /// The name of the call that the kernel refused, and its reason.
    fn create_vcpu(&self, id: VcpuId) -> Result<Self::Vcpu, IoctlError>;

    /// Makes each write to `event` raise `gsi` as an edge.
    ///
    /// # Errors
    /// The kernel's refusal; `EINVAL` for a VM without interrupt controllers.
    fn register_interrupt(&self, event: &EventFd, gsi: Gsi) -> Result<(), IoctlError>;

    /// Makes each 32-bit write of `value` at `address`, which is not memory, a write to `event`: the vCPU goes
    /// on at once, and [`Vcpu::run`] does not return for it.
    ///
    /// # Errors
    /// The kernel's refusal; `EEXIST` for the same value at the same address once more.
    fn register_notification(
        &self,
        event: &EventFd,
        address: GuestAddress,
        value: u32,
    ) -> Result<(), IoctlError>;

    /// Gives the VM an 8254 interval timer in the given state, with the speaker port; its counts
    /// begin now. At any time, but once. The call waits for the kernel's readers, some milliseconds,
    /// and so does the VM's end with such a timer: 8 to 10 ms more.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOENT` for a VM without interrupt controllers, `EEXIST` for a second
    /// timer.
    fn create_pit(&self, state: &PitState) -> Result<(), IoctlError>;
}

/// One virtual processor. Its calls are made from the one thread that runs it.
pub trait Vcpu: Debug + Send {
    /// What another thread uses to make [`Vcpu::run`] return.
    type Kick: Kick + 'static;

    /// The handle with which other threads interrupt this vCPU.
    ///
    /// # Errors
    /// The host's refusal to map the vCPU's run page once more.
    fn kick_handle(&self) -> Result<Self::Kick, IoctlError>;

    /// Sets what the CPUID instruction answers. Comes before any CPUID-dependent MSR.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_SET_CPUID2`, or more entries than it takes.
    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), IoctlError>;

    /// Reads the general registers.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_GET_REGS`.
    fn general_registers(&self) -> Result<GeneralRegisters, IoctlError>;

    /// Writes the general registers.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_SET_REGS`.
    fn set_general_registers(&mut self, registers: &GeneralRegisters) -> Result<(), IoctlError>;

    /// Reads the segments, descriptor tables and control registers.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_GET_SREGS`.
    fn system_registers(&self) -> Result<SystemRegisters, IoctlError>;

    /// Writes the segments, descriptor tables and control registers.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_SET_SREGS`: `EINVAL` for a state that no processor can be in.
    fn set_system_registers(&mut self, registers: &SystemRegisters) -> Result<(), IoctlError>;

    /// Writes MSRs in the given order.
    ///
    /// # Errors
    /// The first register that the kernel did not take, or its refusal of the call.
    fn set_msrs(&mut self, msrs: &[Msr]) -> Result<(), MsrError>;

    /// Reads MSRs in the given order.
    ///
    /// # Errors
    /// The first register that the kernel does not have, or its refusal of the call.
    fn msrs<const COUNT: usize>(&self, indices: [u32; COUNT]) -> Result<[u64; COUNT], MsrError>;

    /// Lets `change` edit the local APIC's register page.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_GET_LAPIC` or `KVM_SET_LAPIC`.
    fn update_lapic(
        &mut self,
        change: impl FnOnce(&mut [u8; REGISTERS_SIZE]),
    ) -> Result<(), IoctlError>;

    /// The rate of the guest's TSC as the kernel reports it, which is a claim and not a measurement.
    ///
    /// # Errors
    /// The kernel's refusal of `KVM_GET_TSC_KHZ`: on hosts whose TSC is unstable it has no answer.
    fn tsc_khz(&self) -> Result<Khz, IoctlError>;

    /// Enters the guest until it needs something of the launcher.
    ///
    /// # Errors
    /// What the kernel says when it cannot run the vCPU at all. An interruption by a signal or by
    /// [`Kick::request_exit`] is not an error but [`Exit::Interrupted`].
    fn run(&mut self) -> Result<Exit<'_>, IoctlError>;

    /// Withdraws the requests of [`Kick::request_exit`] made so far, so that [`Vcpu::run`] enters the
    /// guest again. Whoever calls it looks only afterwards at what it was asked for: a request that
    /// falls between the two is then seen there, and one made later makes `run` return again. None is
    /// lost.
    fn acknowledge_exit_request(&mut self);

    /// After a failed exit: what the kernel left in the run page about it.
    fn failure_details(&self) -> FailureDetails;
}

/// Makes one vCPU's [`Vcpu::run`] return, from another thread.
pub trait Kick: Debug + Send + Sync {
    /// From now on, until [`Vcpu::acknowledge_exit_request`], `run` returns at once with
    /// [`Exit::Interrupted`], having finished the access that it returned for last. A vCPU that is inside the guest
    /// at the moment notices at its next exit; send its thread a signal to bring that about.
    fn request_exit(&self);
}
