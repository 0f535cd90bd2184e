//! CPUID: from what the hypervisor supports to what a guest's vCPU is told.
//!
//! [`guest_cpuid`] starts from what the hypervisor supports on this host, and
//! - describes the guest's processors: one package, one thread per core, APIC id = vCPU index
//!   (leaves 1, 4, 0xB, 0x1F, 0x8000_0008, 0x8000_001D, 0x8000_001E);
//! - tells the TSC's rate (leaves 0x15 and 0x4000_0010);
//! - takes away what a guest cannot use here: MONITOR/MWAIT (leaves 1 and 5), performance
//!   monitoring (leaves 1, 0xA, 0x8000_0001 and 0x8000_0022), whose counters this launcher does
//!   not save, and nested virtualization (leaves 1, 0x8000_0001 and 0x8000_000A), which would put
//!   one more of the host kernel's parsers in a tenant's reach; and what mirrors CR4, which a
//!   hypervisor maintains itself (OSXSAVE, OSPKE).
//!
//! No feature bit is set that the hypervisor does not support, with four exceptions, which it
//! provides although it does not list them: the hypervisor bit; HTT, which says that there are
//! several processors in the package; the TSC-deadline timer, which the in-kernel local APIC
//! has when [`CpuidConfig::tsc_deadline`] says so; and CMP_LEGACY is kept only with several vCPUs.
//!
//! References: SDM vol. 2A, "CPUID"; APM vol. 3, appendix E;
//! Documentation/virt/kvm/x86/cpuid.rst.

mod topology;
mod tsc_rate;

use tsc::Khz;

pub use topology::{CpuCount, CpuCountError};

/// One CPUID leaf, or one subleaf of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the output registers bear their own names")]
pub struct CpuidEntry {
    /// The leaf: EAX on entry.
    pub function: u32,
    /// The subleaf: ECX on entry, meaningful when `indexed`.
    pub index: u32,
    /// Whether the leaf's answer depends on `index`.
    pub indexed: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What a vCPU's CPUID depends on, besides the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidConfig {
    /// The number of vCPUs.
    pub vcpus: CpuCount,
    /// This vCPU's index, which is its APIC id; less than the number of vCPUs.
    pub index: u8,
    /// The rate of the guest's TSC, when it is known.
    pub tsc: Option<Khz>,
    /// Whether the hypervisor's local APIC has the TSC-deadline mode.
    pub tsc_deadline: bool,
}

/// The rate at which KVM's local APIC timer ticks: one tick per nanosecond
/// (arch/x86/kvm/lapic.h, `APIC_BUS_CYCLE_NS`).
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaves with a constant of their own.
const MAX_LEAF: u32 = 0;
const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const MWAIT: u32 = 5;
const STRUCTURED_FEATURES: u32 = 7;
const PERFORMANCE: u32 = 0xA;
const EXTENDED_TOPOLOGY: u32 = 0xB;
const XSAVE: u32 = 0xD;
const TSC_RATE: u32 = 0x15;
const EXTENDED_TOPOLOGY_2: u32 = 0x1F;
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_RATES: u32 = 0x4000_0010;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_NESTED: u32 = 0x8000_000A;
const AMD_CACHES: u32 = 0x8000_001D;
const AMD_TOPOLOGY: u32 = 0x8000_001E;
const AMD_PERFORMANCE: u32 = 0x8000_0022;

/// Leaf 1 ECX.
const ECX_MONITOR: u32 = 1 << 3;
const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_XSAVE: u32 = 1 << 26;
const ECX_OSXSAVE: u32 = 1 << 27;
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX.
const EDX_HTT: u32 = 1 << 28;
/// Leaf 7 subleaf 0 ECX.
const ECX_OSPKE: u32 = 1 << 4;
/// Leaf 0x8000_0001 ECX.
const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_SVM: u32 = 1 << 2;
const ECX_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
const ECX_PERFCTR_CORE: u32 = 1 << 23;
const ECX_PERFCTR_NB: u32 = 1 << 24;
const ECX_PERFCTR_LLC: u32 = 1 << 28;

/// The CPUID of the vCPU that `config` describes, from what the hypervisor `supported`s.
#[must_use]
pub fn guest_cpuid(supported: &[CpuidEntry], config: &CpuidConfig) -> Vec<CpuidEntry> {
    let host = Host::new(supported);
    let mut guest: Vec<CpuidEntry> = supported
        .iter()
        .copied()
        .filter(|entry| match entry.function {
            EXTENDED_TOPOLOGY | EXTENDED_TOPOLOGY_2 | TSC_RATE | HYPERVISOR_RATES => false,
            XSAVE => host.xsave,
            _ => true,
        })
        .map(|mut entry| {
            adapt(&mut entry, config, &host);
            entry
        })
        .collect();

    guest.extend(topology::extended(EXTENDED_TOPOLOGY, config));
    let mut max_leaf = host.max_leaf.max(EXTENDED_TOPOLOGY);
    if let Some(rate) = config.tsc {
        if let Some(leaf) = tsc_rate::leaf(rate) {
            guest.push(leaf);
            max_leaf = max_leaf.max(TSC_RATE);
        }
        if let Some(signature) = guest.iter_mut().find(|entry| entry.function == HYPERVISOR) {
            signature.eax = signature.eax.max(HYPERVISOR_RATES);
            guest.push(CpuidEntry {
                function: HYPERVISOR_RATES,
                eax: rate.get(),
                ebx: APIC_BUS_KHZ,
                ..CpuidEntry::default()
            });
        }
    }
    if host.max_leaf >= EXTENDED_TOPOLOGY_2 {
        guest.extend(topology::extended(EXTENDED_TOPOLOGY_2, config));
    }
    if let Some(first) = guest.iter_mut().find(|entry| entry.function == MAX_LEAF) {
        first.eax = max_leaf;
    }
    guest
}

/// What decides about leaves other than its own.
struct Host {
    max_leaf: u32,
    xsave: bool,
    amd: bool,
    topology_extensions: bool,
}

impl Host {
    fn new(supported: &[CpuidEntry]) -> Self {
        let leaf = |function| supported.iter().find(|entry| entry.function == function);
        let vendor = leaf(MAX_LEAF).map(|e| [e.ebx, e.edx, e.ecx].map(u32::to_le_bytes).concat());
        Self {
            max_leaf: leaf(MAX_LEAF).map_or(0, |entry| entry.eax),
            xsave: leaf(FEATURES).is_some_and(|entry| entry.ecx & ECX_XSAVE != 0),
            amd: matches!(vendor.as_deref(), Some(b"AuthenticAMD" | b"HygonGenuine")),
            topology_extensions: leaf(AMD_FEATURES)
                .is_some_and(|entry| entry.ecx & ECX_TOPOLOGY_EXTENSIONS != 0),
        }
    }
}

/// Changes a supported leaf into the guest's.
fn adapt(entry: &mut CpuidEntry, config: &CpuidConfig, host: &Host) {
    let several = config.vcpus.get() > 1;
    match entry.function {
        FEATURES => {
            entry.ebx = topology::features_ebx(entry.ebx, config);
            entry.ecx &= !(ECX_MONITOR | ECX_VMX | ECX_PDCM | ECX_OSXSAVE | ECX_TSC_DEADLINE);
            entry.ecx |= ECX_HYPERVISOR;
            if config.tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            entry.edx = if several {
                entry.edx | EDX_HTT
            } else {
                entry.edx & !EDX_HTT
            };
        }
        CACHES => entry.eax = topology::intel_caches_eax(entry.eax, config.vcpus),
        STRUCTURED_FEATURES if entry.index == 0 => entry.ecx &= !ECX_OSPKE,
        MWAIT | PERFORMANCE | AMD_NESTED | AMD_PERFORMANCE => {
            *entry = CpuidEntry {
                function: entry.function,
                index: entry.index,
                indexed: entry.indexed,
                ..CpuidEntry::default()
            };
        }
        AMD_FEATURES => {
            entry.ecx &= !(ECX_SVM | ECX_PERFCTR_CORE | ECX_PERFCTR_NB | ECX_PERFCTR_LLC);
            if !several {
                entry.ecx &= !ECX_CMP_LEGACY;
            }
        }
        AMD_SIZES if host.amd => entry.ecx = topology::amd_sizes_ecx(entry.ecx, config.vcpus),
        AMD_CACHES if host.amd => entry.eax = topology::amd_caches_eax(entry.eax, config.vcpus),
        AMD_TOPOLOGY if host.amd && host.topology_extensions => {
            topology::amd_topology(entry, config);
        }
        _ => {}
    }
}
