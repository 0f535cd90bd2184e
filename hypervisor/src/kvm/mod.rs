//! The KVM backend of the traits.

mod capability;
mod clock;
mod convert;
mod pit;
mod raw;
mod run_page;
mod tsc;
mod vcpu;
mod vm;

use std::io;

use arch::cpuid::CpuidEntry;
use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use vm_memory::GuestMemoryMmap;

pub use run_page::KvmKick;
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;

use self::tsc::TscCapabilities;
use self::vm::Memory;

use crate::{Hypervisor, InterruptControllers, IoctlError, MissingFeature, OpenError, Window};

/// The device that the kernel provides.
const DEVICE: &str = "/dev/kvm";

/// An opened `/dev/kvm` with everything that a guest cannot run without.
#[derive(Debug)]
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
    missing: Vec<MissingFeature>,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks it against the table of capabilities.
    ///
    /// # Errors
    /// Why this host cannot run guests, with the cure.
    pub fn open() -> Result<Self, OpenError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => OpenError::Missing { path: DEVICE },
            libc::EACCES | libc::EPERM => OpenError::Permission { path: DEVICE },
            errno => OpenError::Open {
                path: DEVICE,
                source: io::Error::from_raw_os_error(errno),
            },
        })?;
        let found = kvm.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(OpenError::ApiVersion {
                path: DEVICE,
                found,
            });
        }
        let has = |number: u32| kvm.check_extension_raw(number.into()) > 0;
        if let Some(missing) = capability::first_missing_required(has) {
            return Err(OpenError::MissingCapability {
                name: missing.name,
                meaning: missing.meaning,
            });
        }
        let missing = capability::missing_optional(has);
        Ok(Self { kvm, missing })
    }

    fn has_optional(&self, name: &str) -> bool {
        !self.missing.iter().any(|feature| feature.name == name)
    }

    fn tsc_capabilities(&self) -> TscCapabilities {
        TscCapabilities {
            scaling: self.has_optional(capability::TSC_CONTROL),
            default_rate: self.has_optional(capability::VM_TSC_CONTROL),
            attributes: self.has_optional(capability::VCPU_ATTRIBUTES),
        }
    }
}

impl Hypervisor for Kvm {
    type Vm = KvmVm;

    fn missing_features(&self) -> &[MissingFeature] {
        &self.missing
    }

    fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    fn has_tsc_deadline_timer(&self) -> bool {
        self.has_optional(capability::TSC_DEADLINE_TIMER)
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, IoctlError> {
        let entries = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(IoctlError::new("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(entries
            .as_slice()
            .iter()
            .map(convert::cpuid_from_kvm)
            .collect())
    }

    fn create_vm(
        &self,
        memory: GuestMemoryMmap,
        windows: Vec<Window>,
        controllers: InterruptControllers,
    ) -> Result<KvmVm, IoctlError> {
        let memory = Memory {
            ram: memory,
            windows: windows.into(),
        };
        KvmVm::create(&self.kvm, memory, controllers, self.tsc_capabilities())
    }
}
