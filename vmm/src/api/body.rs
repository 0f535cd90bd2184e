//! The bodies of requests to what this version has.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use arch::memory::MemorySize;
use serde::{Deserialize, Serialize, Serializer};
use tsc::Nanos;
use tsc::plan::TimePolicy;

use super::request::Fault;
use crate::config::{
    BootConfig, DEFAULT_CMDLINE, MachineConfig, Module, TscDomain, TscRate, VcpuCount,
};
use crate::error::one_line;
use crate::logging::Level;

/// `PUT /actions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionBody {
    /// What is to be done.
    pub action_type: Action,
}

/// What can be done to a microVM at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Action {
    /// Write the metrics now.
    FlushMetrics,
    /// Start the guest.
    InstanceStart,
    /// Type Ctrl+Alt+Del on the guest's keyboard.
    SendCtrlAltDel,
}

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmBody {
    /// The state that is asked for.
    pub state: VmState,
}

/// A state that a running microVM can be brought into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum VmState {
    /// The vCPUs stand still.
    Paused,
    /// They run.
    Resumed,
}

/// `PUT /boot-source`, and the key `boot-source` of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel.
    pub kernel_image_path: PathBuf,
    /// Its command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// The initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Tell the places of virtio devices on the command line, for kernels without ACPI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtio_mmio_args: Option<bool>,
}

impl From<BootSource> for BootConfig {
    fn from(body: BootSource) -> Self {
        Self {
            modules: body
                .initrd_path
                .iter()
                .map(|path| Module::from_path(path))
                .collect(),
            kernel: body.kernel_image_path,
            cmdline: body.boot_args.unwrap_or_else(|| DEFAULT_CMDLINE.to_owned()),
            virtio_mmio_args: body.virtio_mmio_args.unwrap_or(false),
        }
    }
}

impl From<&BootConfig> for BootSource {
    fn from(config: &BootConfig) -> Self {
        Self {
            kernel_image_path: config.kernel.clone(),
            boot_args: Some(config.cmdline.clone()),
            initrd_path: config.modules.first().map(|module| module.path.clone()),
            virtio_mmio_args: config.virtio_mmio_args.then_some(true),
        }
    }
}

/// Sets of processor features by the names that Firecracker has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "names of others, all refused but for None")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// The pages behind guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum HugePages {
    /// 4 KiB.
    None,
    /// 2 MiB where the kernel sees fit.
    Transparent,
    /// 2 MiB from hugetlbfs.
    #[serde(rename = "2M")]
    TwoMib,
}

/// `PUT /machine-config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineBody {
    /// Number of vCPUs.
    pub vcpu_count: u64,
    /// Memory in MiB.
    pub mem_size_mib: u64,
    /// Two threads in a core.
    pub smt: Option<bool>,
    /// A set of processor features.
    pub cpu_template: Option<CpuTemplate>,
    /// Keep a record of the memory that the guest changes.
    pub track_dirty_pages: Option<bool>,
    /// The pages behind guest memory.
    pub huge_pages: Option<HugePages>,
    /// The rate of the guest's TSC in kHz; without it, that of the command line, or the host's.
    pub tsc_khz: Option<u64>,
    /// Let KVM push the guest's TSC forward where the hardware does not scale.
    pub allow_tsc_catchup: Option<bool>,
    /// Where vCPU threads run; without it, what the command line says.
    pub tsc_domain: Option<TscDomain>,
}

/// `PATCH /machine-config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of `MachineBody`")]
pub struct MachinePatch {
    pub vcpu_count: Option<u64>,
    pub mem_size_mib: Option<u64>,
    pub smt: Option<bool>,
    pub cpu_template: Option<CpuTemplate>,
    pub track_dirty_pages: Option<bool>,
    pub huge_pages: Option<HugePages>,
    pub tsc_khz: Option<u64>,
    pub allow_tsc_catchup: Option<bool>,
    pub tsc_domain: Option<TscDomain>,
}

impl From<MachineBody> for MachinePatch {
    fn from(body: MachineBody) -> Self {
        Self {
            vcpu_count: Some(body.vcpu_count),
            mem_size_mib: Some(body.mem_size_mib),
            smt: body.smt,
            cpu_template: body.cpu_template,
            track_dirty_pages: body.track_dirty_pages,
            huge_pages: body.huge_pages,
            tsc_khz: body.tsc_khz,
            allow_tsc_catchup: body.allow_tsc_catchup,
            tsc_domain: body.tsc_domain,
        }
    }
}

impl MachinePatch {
    /// `machine` with the change, or why it cannot be had.
    ///
    /// # Errors
    /// The field at fault.
    pub fn apply_to(self, machine: MachineConfig) -> Result<MachineConfig, Fault> {
        let absent = |field: &str, what: &str| {
            Err(Fault::new(format!(
                "`{field}`: this version of keeptime has no {what} yet"
            )))
        };
        if self.smt == Some(true) {
            return absent("smt", "processors with two threads in a core");
        }
        if !matches!(self.cpu_template, None | Some(CpuTemplate::None)) {
            return absent("cpu_template", "CPU templates");
        }
        if self.track_dirty_pages == Some(true) {
            return absent("track_dirty_pages", "tracking of dirty pages");
        }
        if !matches!(self.huge_pages, None | Some(HugePages::None)) {
            return absent("huge_pages", "huge pages behind guest memory");
        }
        let mut machine = machine;
        if let Some(count) = self.vcpu_count {
            machine.vcpus = VcpuCount::new(count)
                .map_err(|error| Fault::new(format!("vcpu_count: {}", one_line(&error))))?;
        }
        if let Some(mib) = self.mem_size_mib {
            machine.memory = MemorySize::from_mib(mib)
                .map_err(|error| Fault::new(format!("mem_size_mib: {}", one_line(&error))))?;
        }
        if let Some(khz) = self.tsc_khz {
            let khz = TscRate::khz(khz)
                .map_err(|error| Fault::new(format!("tsc_khz: {}", one_line(&error))))?;
            machine.tsc.khz = Some(khz);
        }
        if let Some(allow) = self.allow_tsc_catchup {
            machine.tsc.allow_catch_up = allow;
            // A flag of the command line may stand alone: it is a permission for what clients ask.
            if allow {
                let checked = machine.tsc.check();
                checked.map_err(|error| Fault::new(error.to_string()))?;
            }
        }
        machine.tsc_domain = self.tsc_domain.or(machine.tsc_domain);
        Ok(machine)
    }
}

/// `PUT /logger`, and the key `logger` of a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerBody {
    /// The file or named pipe that lines go to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// The least important level that is logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Whether lines tell their level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether lines tell the source file and line that they come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// The module whose lines alone are logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// `PUT /metrics`, and the key `metrics` of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsBody {
    /// The file or named pipe that metrics go to.
    pub metrics_path: PathBuf,
}

/// The two ways in which a guest can ask for its metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum MmdsVersion {
    /// Requests alone.
    #[default]
    V1,
    /// With a session's token.
    V2,
}

/// `PUT /mmds/config`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// How a guest asks.
    #[serde(default)]
    pub version: MmdsVersion,
    /// The interfaces through which it may.
    pub network_interfaces: Vec<String>,
    /// The address that it asks at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Answer in the form of EC2's service whatever is accepted.
    #[serde(default)]
    pub imds_compat: bool,
}

impl MmdsConfig {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub fn check(&self) -> Result<(), Fault> {
        match self.ipv4_address {
            // RFC 3927, section 2.1: the first and the last 256 addresses are reserved.
            Some(address) if !address.is_link_local() || matches!(address.octets()[2], 0 | 255) => {
                Err(Fault::new(format!(
                    "ipv4_address: {address} is not a link-local address that may be used: choose \
                     one from 169.254.1.0 to 169.254.254.255"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// `PUT /time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TimeFields")]
pub struct TimeBody {
    /// What a guest's clocks do while it is paused.
    pub policy: TimePolicy,
}

/// The fields of [`TimeBody`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeFields {
    policy: PolicyName,
    cap_ns: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PolicyName {
    Freeze,
    Advance,
}

impl TryFrom<TimeFields> for TimeBody {
    type Error = String;

    fn try_from(TimeFields { policy, cap_ns }: TimeFields) -> Result<Self, String> {
        let policy = match (policy, cap_ns) {
            (PolicyName::Freeze, None) => TimePolicy::Freeze,
            (PolicyName::Freeze, Some(_)) => {
                return Err(
                    "cap_ns: it is for policy advance; under freeze no time passes".to_owned(),
                );
            }
            (PolicyName::Advance, cap) => TimePolicy::Advance {
                cap: cap.map(Nanos::new),
            },
        };
        Ok(Self { policy })
    }
}

/// What clients call a policy.
#[must_use]
pub fn policy_name(policy: TimePolicy) -> &'static str {
    match policy {
        TimePolicy::Freeze => "freeze",
        TimePolicy::Advance { .. } => "advance",
    }
}

/// The same, for a report.
pub(crate) fn serialize_policy<S: Serializer>(
    policy: &TimePolicy,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(policy_name(*policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineConfig {
        MachineConfig::default()
    }

    #[test]
    fn cap_is_for_advance() {
        let parse = |text| serde_json::from_str::<TimeBody>(text);
        let policy = |text| parse(text).expect("a policy").policy;
        let cap = Some(Nanos::new(7));
        assert_eq!(
            policy(r#"{"policy": "advance", "cap_ns": 7}"#),
            TimePolicy::Advance { cap }
        );
        assert_eq!(policy(r#"{"policy": "advance"}"#), TimePolicy::ADVANCE);
        assert_eq!(
            policy(r#"{"policy": "freeze", "cap_ns": null}"#),
            TimePolicy::Freeze
        );
        let error = parse(r#"{"policy": "freeze", "cap_ns": 7}"#).expect_err("no time passes");
        assert!(error.to_string().contains("cap_ns"), "{error}");
        assert!(parse(r#"{"policy": "advance", "cap_ns": -1}"#).is_err());
        assert!(parse(r#"{"policy": "advance", "cap": 1}"#).is_err());
    }

    #[test]
    fn machine_patch_changes_what_it_names() {
        let patch = MachinePatch {
            vcpu_count: Some(4),
            smt: Some(false),
            huge_pages: Some(HugePages::None),
            cpu_template: Some(CpuTemplate::None),
            track_dirty_pages: Some(false),
            ..MachinePatch::default()
        };
        let changed = patch.apply_to(machine()).expect("valid");
        assert_eq!(changed.vcpus.get(), 4);
        assert_eq!(changed.memory, machine().memory);
        assert_eq!(changed.tsc, TscRate::default());
        let patch = MachinePatch {
            tsc_khz: Some(1_500_000),
            allow_tsc_catchup: Some(true),
            ..MachinePatch::default()
        };
        let changed = patch.apply_to(changed).expect("valid");
        let khz = tsc::Khz::new(1_500_000);
        let allow_catch_up = true;
        assert_eq!(
            changed.tsc,
            TscRate {
                khz,
                allow_catch_up
            }
        );
        assert_eq!(changed.vcpus.get(), 4);
        assert_eq!(changed.tsc_domain, None);
        let patch = MachinePatch {
            tsc_domain: Some(TscDomain::Off),
            ..MachinePatch::default()
        };
        let changed = patch.apply_to(changed).expect("valid");
        assert_eq!(changed.tsc_domain, Some(TscDomain::Off));
        let changed = MachinePatch::default().apply_to(changed).expect("valid");
        assert_eq!(changed.tsc_domain, Some(TscDomain::Off));
    }

    #[test]
    fn machine_patch_never_drops_a_setting() {
        let none = MachinePatch::default();
        let rows = [
            (
                MachinePatch {
                    smt: Some(true),
                    ..none
                },
                "smt",
            ),
            (
                MachinePatch {
                    cpu_template: Some(CpuTemplate::T2),
                    ..none
                },
                "cpu_template",
            ),
            (
                MachinePatch {
                    track_dirty_pages: Some(true),
                    ..none
                },
                "track_dirty_pages",
            ),
            (
                MachinePatch {
                    huge_pages: Some(HugePages::Transparent),
                    ..none
                },
                "huge_pages",
            ),
            (
                MachinePatch {
                    vcpu_count: Some(33),
                    ..none
                },
                "vcpu_count: 33",
            ),
            (
                MachinePatch {
                    mem_size_mib: Some(0),
                    ..none
                },
                "mem_size_mib",
            ),
            (
                MachinePatch {
                    tsc_khz: Some(1 << 32),
                    ..none
                },
                "tsc_khz: a TSC rate of 4294967296 kHz",
            ),
        ];
        for (patch, part) in rows {
            let message = patch.apply_to(machine()).expect_err(part).to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn mmds_address_is_link_local() {
        // RFC 3927: 169.254/16 without its first and last 256 addresses
        for (address, valid) in [
            ([169, 254, 169, 254], true),
            ([169, 254, 1, 0], true),
            ([169, 254, 254, 255], true),
            ([169, 254, 0, 255], false),
            ([169, 254, 255, 0], false),
            ([169, 253, 1, 1], false),
        ] {
            let config = MmdsConfig {
                version: MmdsVersion::V1,
                network_interfaces: Vec::new(),
                ipv4_address: Some(address.into()),
                imds_compat: false,
            };
            assert_eq!(config.check().is_ok(), valid, "{address:?}");
        }
    }
}
