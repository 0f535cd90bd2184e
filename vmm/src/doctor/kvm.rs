//! What KVM says that it can do for guests' time. All of it is claims; [`super::effects`] measures.

use arch::memory::MemorySize;
use hypervisor::guest_clock::{ClockSupport, VmClock};
use hypervisor::kvm::Kvm;
use hypervisor::tsc_control::{OffsetInterface, TscOffsetControl, TscSupport};
use hypervisor::{Hypervisor, InterruptControllers, IoctlError, OpenError, Vm};
use tsc::{Khz, VcpuId};

use crate::memory::{self, MemoryError};

/// What a VM needs that only answers questions.
const MEMORY_MIB: u64 = 2;

/// KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KvmError {
    /// Not at all.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Not for a VM.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
    /// There is no memory for one.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// One ability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    /// The kernel's name.
    pub(super) name: &'static str,
    /// Whether KVM says that it has it.
    pub(super) present: bool,
    /// What it is for.
    pub(super) purpose: &'static str,
}

/// What KVM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KvmClaims {
    /// Abilities that matter for time.
    pub(super) capabilities: Vec<Capability>,
    /// The TSC rate of a fresh vCPU, which is the host's.
    pub(super) khz: Option<Khz>,
}

/// Asks KVM.
pub(super) fn ask(kvm: &Kvm) -> Result<KvmClaims, KvmError> {
    let size = MemorySize::from_mib(MEMORY_MIB).expect("2 is in bounds");
    let vm = kvm.create_vm(
        memory::create(size)?,
        Vec::new(),
        InterruptControllers::None,
    )?;
    let vcpu = vm.create_vcpu(VcpuId::new(0))?;
    let missing = |name: &str| {
        let features = kvm.missing_features();
        features.iter().any(|feature| feature.name == name)
    };
    Ok(KvmClaims {
        capabilities: capabilities(missing, vcpu.tsc_support(), vm.clock_support()),
        khz: vcpu.rate().ok().map(|rate| rate.claim()),
    })
}

fn capabilities(
    missing: impl Fn(&str) -> bool,
    tsc: TscSupport,
    clock: ClockSupport,
) -> Vec<Capability> {
    let has = |name| !missing(name);
    // (name, present, purpose), in the order in which they matter
    [
        (
            "KVM_VCPU_TSC_OFFSET",
            tsc.offset == OffsetInterface::Attribute,
            "a TSC offset is written exactly, not by way of the TSC itself",
        ),
        (
            "KVM_CAP_TSC_CONTROL",
            tsc.scaling,
            "a guest's TSC runs at another rate than the host's, in hardware",
        ),
        (
            "KVM_VCPU_TSC_SCALE",
            tsc.ratio,
            "the ratio that the hardware holds can be read",
        ),
        (
            "KVM_CAP_VM_TSC_CONTROL",
            tsc.default_rate,
            "one rate for all vCPUs, before they are created",
        ),
        (
            "KVM_CAP_GET_TSC_KHZ",
            has("KVM_CAP_GET_TSC_KHZ"),
            "the kernel tells the rate that it measured",
        ),
        (
            "KVM_CAP_TSC_DEADLINE_TIMER",
            has("KVM_CAP_TSC_DEADLINE_TIMER"),
            "guests arm their timers in TSC ticks",
        ),
        (
            "KVM_CAP_ADJUST_CLOCK",
            clock.adjustable,
            "kvmclock can be read and set",
        ),
        (
            "KVM_CLOCK_TSC_STABLE",
            clock.tsc_stable,
            "kvmclock tells whether all vCPUs share one TSC",
        ),
        (
            "KVM_CLOCK_REALTIME",
            clock.real_time,
            "kvmclock and real time are read and set together",
        ),
        (
            "KVM_CLOCK_HOST_TSC",
            clock.host_tsc,
            "kvmclock and the host's TSC are read together",
        ),
        (
            "KVM_CAP_KVMCLOCK_CTRL",
            has("KVM_CAP_KVMCLOCK_CTRL"),
            "a paused guest does not report soft lockups",
        ),
    ]
    .map(|(name, present, purpose)| Capability {
        name,
        present,
        purpose,
    })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::tsc_control::Vendor;

    #[test]
    fn each_capability_follows_from_its_own_claim() {
        let tsc = |on| TscSupport {
            vendor: Vendor::Intel,
            scaling: on,
            default_rate: on,
            offset: if on {
                OffsetInterface::Attribute
            } else {
                OffsetInterface::Msr
            },
            ratio: on,
        };
        let clock = |on| ClockSupport {
            adjustable: on,
            tsc_stable: on,
            real_time: on,
            host_tsc: on,
        };
        for on in [false, true] {
            let all = capabilities(|_| !on, tsc(on), clock(on));
            assert!(all.iter().all(|capability| capability.present == on));
        }
        let scaling = TscSupport {
            scaling: true,
            ..tsc(false)
        };
        let only = capabilities(|_| true, scaling, clock(false));
        let present: Vec<_> = only.iter().filter(|c| c.present).map(|c| c.name).collect();
        assert_eq!(present, ["KVM_CAP_TSC_CONTROL"]);
    }
}
