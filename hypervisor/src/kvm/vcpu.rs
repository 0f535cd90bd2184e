//! A KVM virtual processor.

use std::io;

use arch::cpuid::CpuidEntry;
use arch::lapic::REGISTERS_SIZE;
use arch::msr::Msr;
use arch::regs::{GeneralRegisters, SystemRegisters};
use kvm_bindings::{
    CpuId, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs,
    kvm_msr_entry,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use tsc::Khz;

use super::run_page::{KvmKick, RunPage};
use super::tsc::TscCapabilities;
use super::vm::Memory;
use super::{convert, raw, vm};
use crate::tsc_control::OffsetInterface;
use crate::{Direction, Exit, FailureDetails, IoctlError, MsrError, PortAccess, SystemEvent, Vcpu};

/// A KVM virtual processor.
#[derive(Debug)]
pub struct KvmVcpu {
    pub(super) fd: VcpuFd,
    page: RunPage,
    pub(super) capabilities: TscCapabilities,
    /// How offsets are to be written, where that is not left to the kernel.
    pub(super) forced_offset_interface: Option<OffsetInterface>,
    /// The rate before another was asked for: the host's.
    pub(super) host_rate: Option<Khz>,
    /// The guest's memory stays mapped as long as any vCPU could touch it.
    _memory: Memory,
}

impl KvmVcpu {
    pub(super) fn new(
        fd: VcpuFd,
        memory: Memory,
        capabilities: TscCapabilities,
    ) -> Result<Self, IoctlError> {
        let page = vm::map_run_page(&fd)?;
        Ok(Self {
            fd,
            page,
            capabilities,
            forced_offset_interface: None,
            host_rate: None,
            _memory: memory,
        })
    }
}

/// An error of a list that the kernel's interface cannot hold.
fn too_many(call: &'static str) -> IoctlError {
    IoctlError {
        call,
        source: io::Error::from_raw_os_error(libc::E2BIG),
    }
}

impl Vcpu for KvmVcpu {
    type Kick = KvmKick;

    fn kick_handle(&self) -> Result<KvmKick, IoctlError> {
        vm::map_run_page(&self.fd).map(KvmKick)
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), IoctlError> {
        const CALL: &str = "KVM_SET_CPUID2";
        let entries: Vec<_> = entries.iter().map(convert::cpuid_to_kvm).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| too_many(CALL))?;
        self.fd.set_cpuid2(&cpuid).map_err(IoctlError::new(CALL))
    }

    fn general_registers(&self) -> Result<GeneralRegisters, IoctlError> {
        let regs = self
            .fd
            .get_regs()
            .map_err(IoctlError::new("KVM_GET_REGS"))?;
        Ok(convert::general_from_kvm(&regs))
    }

    fn set_general_registers(&mut self, registers: &GeneralRegisters) -> Result<(), IoctlError> {
        self.fd
            .set_regs(&convert::general_to_kvm(registers))
            .map_err(IoctlError::new("KVM_SET_REGS"))
    }

    fn system_registers(&self) -> Result<SystemRegisters, IoctlError> {
        let sregs = self
            .fd
            .get_sregs()
            .map_err(IoctlError::new("KVM_GET_SREGS"))?;
        Ok(convert::system_from_kvm(&sregs))
    }

    fn set_system_registers(&mut self, registers: &SystemRegisters) -> Result<(), IoctlError> {
        self.fd
            .set_sregs(&convert::system_to_kvm(registers))
            .map_err(IoctlError::new("KVM_SET_SREGS"))
    }

    fn set_msrs(&mut self, msrs: &[Msr]) -> Result<(), MsrError> {
        const CALL: &str = "KVM_SET_MSRS";
        let entries: Vec<_> = msrs
            .iter()
            .map(|msr| kvm_msr_entry {
                index: msr.index,
                data: msr.value,
                ..Default::default()
            })
            .collect();
        let list = Msrs::from_entries(&entries).map_err(|_| too_many(CALL))?;
        let written = self.fd.set_msrs(&list).map_err(IoctlError::new(CALL))?;
        match msrs.get(written) {
            None => Ok(()),
            Some(refused) => Err(MsrError::Refused {
                index: refused.index,
                value: refused.value,
            }),
        }
    }

    fn msrs<const COUNT: usize>(&self, indices: [u32; COUNT]) -> Result<[u64; COUNT], MsrError> {
        const CALL: &str = "KVM_GET_MSRS";
        let entries = indices.map(|index| kvm_msr_entry {
            index,
            ..Default::default()
        });
        let mut list = Msrs::from_entries(&entries).map_err(|_| too_many(CALL))?;
        let read = self.fd.get_msrs(&mut list).map_err(IoctlError::new(CALL))?;
        match indices.get(read) {
            Some(&index) => Err(MsrError::Absent { index }),
            None => {
                let mut values = [0; COUNT];
                for (value, entry) in values.iter_mut().zip(list.as_slice()) {
                    *value = entry.data;
                }
                Ok(values)
            }
        }
    }

    fn update_lapic(
        &mut self,
        change: impl FnOnce(&mut [u8; REGISTERS_SIZE]),
    ) -> Result<(), IoctlError> {
        let mut state = self
            .fd
            .get_lapic()
            .map_err(IoctlError::new("KVM_GET_LAPIC"))?;
        let mut page = state.regs.map(i8::cast_unsigned);
        change(&mut page);
        state.regs = page.map(u8::cast_signed);
        self.fd
            .set_lapic(&state)
            .map_err(IoctlError::new("KVM_SET_LAPIC"))
    }

    fn tsc_khz(&self) -> Result<Khz, IoctlError> {
        raw::vcpu_rate(&self.fd)?.ok_or_else(|| IoctlError {
            call: "KVM_GET_TSC_KHZ",
            source: io::Error::from_raw_os_error(libc::ENODATA),
        })
    }

    fn run(&mut self) -> Result<Exit<'_>, IoctlError> {
        let page = &self.page;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(Exit::Interrupted);
            }
            Err(error) => return Err(IoctlError::new("KVM_RUN")(error)),
        };
        Ok(match exit {
            VcpuExit::IoIn(port, data) => Exit::Port(PortAccess {
                port,
                width: page.port_access_width(),
                direction: Direction::In(data),
            }),
            VcpuExit::IoOut(port, data) => Exit::Port(PortAccess {
                port,
                width: page.port_access_width(),
                direction: Direction::Out(data),
            }),
            VcpuExit::MmioRead(address, data) => Exit::MmioRead { address, data },
            VcpuExit::MmioWrite(address, data) => Exit::MmioWrite { address, data },
            VcpuExit::Hlt => Exit::Halt,
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::SystemEvent(kind, _) => Exit::SystemEvent(match kind {
                KVM_SYSTEM_EVENT_SHUTDOWN => SystemEvent::PowerOff,
                KVM_SYSTEM_EVENT_RESET => SystemEvent::Reset,
                KVM_SYSTEM_EVENT_CRASH => SystemEvent::Crash,
                other => SystemEvent::Other(other),
            }),
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => Exit::Interrupted,
            VcpuExit::InternalError => Exit::InternalError,
            VcpuExit::FailEntry(reason, cpu) => Exit::FailEntry { reason, cpu },
            VcpuExit::MemoryFault { gpa, size, .. } => Exit::MemoryFault { address: gpa, size },
            VcpuExit::Unknown => Exit::Unexpected("KVM_EXIT_UNKNOWN", 0),
            VcpuExit::Exception => Exit::Unexpected("KVM_EXIT_EXCEPTION", 1),
            VcpuExit::Debug(_) => Exit::Unexpected("KVM_EXIT_DEBUG", 4),
            VcpuExit::Unsupported(number) => Exit::Unexpected("an unknown exit", number),
            _ => Exit::Unexpected("an exit of another machine type", u32::MAX),
        })
    }

    fn acknowledge_exit_request(&mut self) {
        self.page.clear_immediate_exit();
    }

    fn failure_details(&self) -> FailureDetails {
        self.page.failure_details()
    }
}
