//! The configuration file: the JSON of a Firecracker configuration.
//!
//! The keys and their meaning are those that existing tools write. Three kinds of keys are told apart:
//! those that this version obeys, those that exist but are refused because their device is not part of
//! this version (a setting is never accepted and dropped), and unknown ones, which are errors.

use std::fmt;
use std::marker::PhantomData;

use arch::memory::{MemorySize, MemorySizeError};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::{
    InvalidTscRate, InvalidVcpuCount, MachineConfig, Peripherals, TscDomain, TscRate, VcpuCount,
    VmConfig,
};
use crate::api::balloon::Balloon;
use crate::api::body::{BootSource, LoggerBody, MetricsBody, MmdsConfig};
use crate::api::drive::{Drive, Entropy};
use crate::api::network::NetworkInterface;
use crate::api::pmem::Pmem;
use crate::api::request::Fault;
use crate::api::vsock::Vsock;

/// A configuration file that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// Not JSON, or not of the form that is expected. The source has the line and the column.
    #[error("correct it at the line and column named here")]
    Syntax(#[from] serde_json::Error),
    /// `vcpu_count` out of bounds.
    #[error("machine-config.vcpu_count")]
    Vcpus(#[from] InvalidVcpuCount),
    /// `mem_size_mib` out of bounds.
    #[error("machine-config.mem_size_mib")]
    Memory(#[from] MemorySizeError),
    /// `tsc_khz` out of bounds.
    #[error("machine-config.tsc_khz")]
    TscRate(#[from] InvalidTscRate),
    /// A drive that cannot be had.
    #[error("drives: {id:?}")]
    Drive {
        /// Its name.
        id: String,
        /// Why not.
        source: Fault,
    },
    /// A persistent memory that cannot be had.
    #[error("pmem: {id:?}")]
    Pmem {
        /// Its name.
        id: String,
        /// Why not.
        source: Fault,
    },
    /// A network interface that cannot be had.
    #[error("network-interfaces: {id:?}")]
    NetworkInterface {
        /// Its name.
        id: String,
        /// Why not.
        source: Fault,
    },
    /// A metadata service that cannot be had.
    #[error("mmds-config")]
    MmdsConfig(#[source] Fault),
    /// A socket device that cannot be had.
    #[error("vsock")]
    Vsock(#[source] Fault),
    /// A balloon that cannot be had.
    #[error("balloon")]
    Balloon(#[source] Fault),
    /// An entropy device that cannot be had.
    #[error("entropy")]
    Entropy(#[source] Fault),
}

/// Reads a configuration file's text.
///
/// # Errors
/// The key or the place at fault.
pub fn parse(text: &[u8]) -> Result<VmConfig, ConfigFileError> {
    let file: ConfigFile = serde_json::from_slice(text)?;
    let machine = file.machine_config;
    let mut peripherals = peripherals(file.drives, file.pmem, file.network_interfaces)?;
    if let Some(config) = file.mmds_config {
        peripherals
            .put_mmds(config)
            .map_err(ConfigFileError::MmdsConfig)?;
    }
    let vsock = file.vsock.map(Vsock::check).transpose();
    peripherals.vsock = vsock.map_err(ConfigFileError::Vsock)?;
    let memory = MemorySize::from_mib(machine.mem_size_mib)?;
    let balloon = file.balloon.map(|balloon| {
        let balloon = balloon.complete();
        balloon.fits(memory).map(|()| balloon)
    });
    peripherals.balloon = balloon.transpose().map_err(ConfigFileError::Balloon)?;
    let entropy = file.entropy.map(Entropy::check).transpose();
    peripherals.entropy = entropy.map_err(ConfigFileError::Entropy)?;
    Ok(VmConfig {
        boot: file.boot_source.into(),
        machine: MachineConfig {
            vcpus: VcpuCount::new(machine.vcpu_count)?,
            memory,
            tsc: TscRate {
                khz: machine.tsc_khz.map(TscRate::khz).transpose()?,
                allow_catch_up: machine.allow_tsc_catchup.unwrap_or(false),
            },
            tsc_domain: machine.tsc_domain,
            ..MachineConfig::default()
        },
        peripherals,
        logger: file.logger,
        metrics_path: file.metrics.map(|metrics| metrics.metrics_path),
    })
}

fn peripherals(
    drives: Vec<Drive>,
    memories: Vec<Pmem>,
    interfaces: Vec<NetworkInterface>,
) -> Result<Peripherals, ConfigFileError> {
    let mut peripherals = Peripherals::default();
    for drive in drives {
        let id = drive.drive_id.clone();
        let is_new = peripherals.drive_mut(&id).is_none();
        let put = if is_new {
            drive.check().and_then(|drive| peripherals.put_drive(drive))
        } else {
            Err(Fault::new("drive_id: another drive has this name"))
        };
        put.map_err(|source| ConfigFileError::Drive { id, source })?;
    }
    for pmem in memories {
        let id = pmem.id.clone();
        let is_new = peripherals.pmem_mut(&id).is_none();
        let put = if is_new {
            pmem.check().and_then(|pmem| peripherals.put_pmem(pmem))
        } else {
            Err(Fault::new("id: another persistent memory has this name"))
        };
        put.map_err(|source| ConfigFileError::Pmem { id, source })?;
    }
    for interface in interfaces {
        let id = interface.iface_id.clone();
        let is_new = peripherals.interface_mut(&id).is_none();
        let put = if is_new {
            let checked = interface.check();
            checked.and_then(|interface| peripherals.put_interface(interface))
        } else {
            Err(Fault::new("iface_id: another interface has this name"))
        };
        put.map_err(|source| ConfigFileError::NetworkInterface { id, source })?;
    }
    Ok(peripherals)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    boot_source: BootSource,
    #[serde(default)]
    machine_config: Machine,
    #[serde(default)]
    drives: Vec<Drive>,
    #[serde(default)]
    network_interfaces: Vec<NetworkInterface>,
    #[serde(default)]
    pmem: Vec<Pmem>,
    #[serde(default, rename = "cpu-config")]
    _cpu_config: NotYet<CpuConfig>,
    vsock: Option<Vsock>,
    logger: Option<LoggerBody>,
    metrics: Option<MetricsBody>,
    mmds_config: Option<MmdsConfig>,
    balloon: Option<Balloon>,
    entropy: Option<Entropy>,
    #[serde(default, rename = "serial")]
    _serial: NotYet<SerialOutput>,
    #[serde(default, rename = "memory-hotplug")]
    _memory_hotplug: NotYet<MemoryHotplug>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    vcpu_count: u64,
    mem_size_mib: u64,
    #[serde(default, rename = "smt")]
    _smt: NotYet<Smt>,
    #[serde(default, rename = "track_dirty_pages")]
    _track_dirty_pages: NotYet<DirtyPages>,
    #[serde(default, rename = "huge_pages")]
    _huge_pages: NotYet<HugePages>,
    #[serde(default, rename = "cpu_template")]
    _cpu_template: NotYet<CpuTemplate>,
    tsc_khz: Option<u64>,
    allow_tsc_catchup: Option<bool>,
    tsc_domain: Option<TscDomain>,
}

impl Default for Machine {
    /// What a file without the section asks for: one processor and 128 MiB.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            _smt: NotYet::default(),
            _track_dirty_pages: NotYet::default(),
            _huge_pages: NotYet::default(),
            _cpu_template: NotYet::default(),
            tsc_khz: None,
            allow_tsc_catchup: None,
            tsc_domain: None,
        }
    }
}

/// A key of the format whose function this version does not have.
trait Feature {
    /// What is missing, for the message.
    const WHAT: &'static str;
}

macro_rules! features {
    ($($name:ident: $what:literal,)*) => {
        $(
            struct $name;
            impl Feature for $name {
                const WHAT: &'static str = $what;
            }
        )*
    };
}

features! {
    CpuConfig: "`cpu-config` (custom CPU templates)",
    SerialOutput: "`serial` (serial output to a file)",
    MemoryHotplug: "`memory-hotplug`",
    Smt: "`smt` (two threads in a core)",
    DirtyPages: "`track_dirty_pages`",
    HugePages: "`huge_pages`",
    CpuTemplate: "`cpu_template` (CPU templates)",
}

/// Accepts the values that ask for nothing (null, false, "None" and an empty list), and refuses all
/// others with the name of what is missing.
struct NotYet<F>(PhantomData<F>);

impl<F> Default for NotYet<F> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<'de, F: Feature> Deserialize<'de> for NotYet<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NothingVisitor(PhantomData))
    }
}

struct NothingVisitor<F>(PhantomData<F>);

impl<F: Feature> NothingVisitor<F> {
    fn refuse<E: serde::de::Error>(self) -> Result<NotYet<F>, E> {
        Err(E::custom(format_args!(
            "{} cannot be had in this version: remove the key",
            F::WHAT
        )))
    }
}

impl<'de, F: Feature> Visitor<'de> for NothingVisitor<F> {
    type Value = NotYet<F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing, as {} cannot be had in this version", F::WHAT)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(NotYet::default())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Self::Value, E> {
        if value {
            self.refuse()
        } else {
            Ok(NotYet::default())
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Self::Value, E> {
        if value == "None" {
            Ok(NotYet::default())
        } else {
            self.refuse()
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        match elements.next_element::<IgnoredAny>()? {
            None => Ok(NotYet::default()),
            Some(_) => self.refuse(),
        }
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        self.refuse()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
        self.refuse()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
        self.refuse()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Self::Value, E> {
        self.refuse()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{DEFAULT_CMDLINE, Module};
    use crate::error::one_line;
    use crate::logging::Level;

    fn message(text: &str) -> String {
        one_line(&parse(text.as_bytes()).expect_err(text))
    }

    #[test]
    fn parse_of_a_full_file_gives_its_values() {
        let config = parse(
            br#"{
                "boot-source": {
                    "kernel_image_path": "/k", "boot_args": "quiet", "initrd_path": "/i"
                },
                "machine-config": {
                    "vcpu_count": 2, "mem_size_mib": 512, "smt": false,
                    "track_dirty_pages": false, "huge_pages": "None", "cpu_template": "None"
                },
                "drives": [], "network-interfaces": [], "balloon": null, "logger": null
            }"#,
        )
        .expect("valid");
        assert_eq!(config.boot.kernel, Path::new("/k"));
        assert_eq!(config.boot.modules, [Module::from_path(Path::new("/i"))]);
        assert_eq!(config.boot.cmdline, "quiet");
        assert_eq!(config.machine.vcpus.get(), 2);
        assert_eq!(config.machine.memory.mib(), 512);
    }

    #[test]
    fn parse_of_a_minimal_file_gives_the_defaults() {
        let config = parse(br#"{"boot-source":{"kernel_image_path":"k"}}"#).expect("valid");
        assert_eq!(config.machine.vcpus.get(), 1);
        assert_eq!(config.machine.memory.mib(), 128);
        assert_eq!(config.boot.cmdline, DEFAULT_CMDLINE);
        assert!(config.boot.modules.is_empty());
    }

    #[test]
    fn parse_takes_a_rate_for_the_tsc() {
        let config = |machine: &str| {
            parse(
                format!(
                    r#"{{"boot-source":{{"kernel_image_path":"k"}},
                        "machine-config":{{"vcpu_count":1,"mem_size_mib":128,{machine}}}}}"#
                )
                .as_bytes(),
            )
        };
        let given = config(r#""tsc_khz":1500000,"allow_tsc_catchup":true"#).expect("valid");
        let rate = given.machine.tsc;
        assert_eq!(rate.khz.map(tsc::Khz::get), Some(1_500_000));
        assert!(rate.allow_catch_up);
        let not = config(r#""tsc_khz":null,"allow_tsc_catchup":null"#).expect("valid");
        assert_eq!(not.machine.tsc, TscRate::default());
        let message = one_line(&config(r#""tsc_khz":0"#).expect_err("no rate"));
        assert!(message.contains("machine-config.tsc_khz"), "{message}");
        assert!(message.contains("1 to 4294967295"), "{message}");
    }

    #[test]
    fn parse_takes_a_tsc_domain() {
        let config = |domain: &str| {
            let text = format!(
                r#"{{"boot-source":{{"kernel_image_path":"k"}},
                    "machine-config":{{"vcpu_count":1,"mem_size_mib":128,"tsc_domain":{domain}}}}}"#
            );
            parse(text.as_bytes()).map(|config| config.machine.tsc_domain)
        };
        assert_eq!(config("null").expect("valid"), None);
        for text in ["auto", "off", "0-1,3"] {
            let domain = config(&format!("{text:?}")).expect("valid");
            assert_eq!(domain, Some(text.parse().expect(text)));
        }
        for wrong in ["\"3-1\"", "\"\"", "1", "[1]"] {
            let message = one_line(&config(wrong).expect_err(wrong));
            assert!(message.contains("line 2"), "{message}");
        }
    }

    #[test]
    fn parse_takes_the_log_and_the_metrics() {
        let config = parse(
            br#"{"boot-source": {"kernel_image_path": "k"},
                "logger": {"log_path": "l", "level": "warning", "show_level": true},
                "metrics": {"metrics_path": "m"}}"#,
        )
        .expect("valid");
        let logger = config.logger.expect("given");
        assert_eq!(logger.level, Some(Level::Warning));
        assert_eq!(logger.log_path.as_deref(), Some(Path::new("l")));
        assert_eq!(config.metrics_path.as_deref(), Some(Path::new("m")));
        let unknown = br#"{"boot-source":{"kernel_image_path":"k"},"logger":{"path":"l"}}"#;
        let message = one_line(&parse(unknown).expect_err("unknown"));
        assert!(message.contains("unknown field `path`"), "{message}");
    }

    #[test]
    fn parse_takes_a_balloon_that_fits() {
        let config = |balloon: &str| {
            let text = format!(
                r#"{{"boot-source":{{"kernel_image_path":"k"}},
                    "machine-config":{{"vcpu_count":1,"mem_size_mib":64}},"balloon":{balloon}}}"#
            );
            parse(text.as_bytes()).map(|config| config.peripherals.balloon)
        };
        assert_eq!(config("null").expect("valid"), None);
        let balloon = config(r#"{"amount_mib":64,"deflate_on_oom":true}"#);
        let balloon = balloon.expect("valid").expect("given");
        assert_eq!(balloon.amount_mib, 64);
        for (wrong, part) in [
            (
                r#"{"amount_mib":65,"deflate_on_oom":true}"#,
                "balloon of 65 MiB",
            ),
            (r#"{"amount_mib":1}"#, "`deflate_on_oom`"),
        ] {
            let message = one_line(&config(wrong).expect_err(wrong));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn persistent_memories_are_read_and_checked() {
        let with = |pmem: &str| {
            format!(
                r#"{{"boot-source":{{"kernel_image_path":"k"}},"pmem":{pmem},
                    "drives":[{{"drive_id":"d","is_root_device":true,"path_on_host":"f"}}]}}"#
            )
        };
        let config = parse(
            with(
                r#"[{"id":"b","path_on_host":"f","read_only":true},{"id":"a","path_on_host":"g"}]"#,
            )
            .as_bytes(),
        );
        let config = config.expect("valid");
        let read: Vec<_> = (config.peripherals.pmem().iter())
            .map(|pmem| (&*pmem.id, pmem.read_only))
            .collect();
        assert_eq!(read, [("b", true), ("a", false)]);
        for (pmem, part) in [
            (
                r#"[{"id":"a","path_on_host":"f"},{"id":"a","path_on_host":"g"}]"#,
                "pmem: \"a\": id: another persistent memory has this name",
            ),
            (
                r#"[{"id":"a","path_on_host":"f","root_device":true}]"#,
                "pmem: \"a\": root_device: the drive \"d\" is the root device",
            ),
            (r#"[{"id":"a"}]"#, "path_on_host"),
            (r#"[{"id":"a","path_on_host":"f","size":1}]"#, "size"),
        ] {
            let message = message(&with(pmem));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn errors_name_the_key_and_the_place() {
        // (text, what the message must hold)
        let rows: [(&str, &[&str]); 10] = [
            ("{\n  \"boot-source\" 1}", &["line 2 column 17"]),
            ("", &["line 1 column 0"]),
            ("[]", &["struct ConfigFile", "line 1"]),
            ("{}", &["missing field `boot-source`"]),
            (
                r#"{"boot-source":{}}"#,
                &["missing field `kernel_image_path`"],
            ),
            (
                r#"{"boot-source":{"kernel_image_path":"k"},"bot":1}"#,
                &["unknown field `bot`"],
            ),
            (
                r#"{"boot-source":{"kernel_image_path":"k","bootargs":""}}"#,
                &["unknown field `bootargs`"],
            ),
            (
                r#"{"boot-source":{"kernel_image_path":"k"},"drives":[{"drive_id":"a"}]}"#,
                &["missing field `is_root_device`", "line 1 column"],
            ),
            (
                r#"{"boot-source":{"kernel_image_path":"k"},
                    "machine-config":{"vcpu_count":0,"mem_size_mib":1}}"#,
                &["machine-config.vcpu_count", "0 vCPUs", "1 to 32"],
            ),
            (
                r#"{"boot-source":{"kernel_image_path":"k"},
                    "machine-config":{"vcpu_count":1,"mem_size_mib":0}}"#,
                &["machine-config.mem_size_mib"],
            ),
        ];
        for (text, parts) in rows {
            let message = message(text);
            for part in parts {
                assert!(message.contains(part), "{text}: {message} lacks {part}");
            }
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn socket_device_is_read_and_checked() {
        let with = |vsock: &str| {
            format!(r#"{{"boot-source":{{"kernel_image_path":"k"}},"vsock":{vsock}}}"#)
        };
        let config = parse(with(r#"{"guest_cid":3,"uds_path":"v"}"#).as_bytes()).expect("valid");
        let vsock = config.peripherals.vsock.expect("a device");
        assert_eq!((vsock.guest_cid, vsock.uds_path.to_str()), (3, Some("v")));
        let none = parse(with("null").as_bytes()).expect("valid");
        assert_eq!(none.peripherals.vsock, None);
        for (vsock, part) in [
            (r#"{"guest_cid":2,"uds_path":"v"}"#, "vsock"),
            (r#"{"guest_cid":3}"#, "uds_path"),
            (r#"{"guest_cid":3,"uds_path":"v","port":1}"#, "port"),
        ] {
            let message = message(&with(vsock));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn metadata_service_is_read_and_checked() {
        let with = |mmds: &str| {
            format!(
                r#"{{"boot-source":{{"kernel_image_path":"k"}},"mmds-config":{mmds},
                    "network-interfaces":[{{"iface_id":"a","host_dev_name":"t"}}]}}"#
            )
        };
        let config = parse(with(r#"{"version":"V2","network_interfaces":["a"]}"#).as_bytes());
        let config = config.expect("valid");
        let mmds = config.peripherals.mmds().expect("a service");
        assert_eq!(mmds.network_interfaces, ["a"]);
        assert_eq!(mmds.ipv4_address, Some([169, 254, 169, 254].into()));
        let none = parse(with("null").as_bytes()).expect("valid");
        assert_eq!(none.peripherals.mmds(), None);
        for (mmds, part) in [
            (
                r#"{"network_interfaces":["b"]}"#,
                "mmds-config: network_interfaces: there is no network interface \"b\"",
            ),
            (
                r#"{"network_interfaces":[]}"#,
                "mmds-config: network_interfaces: the list is empty",
            ),
            (
                r#"{"network_interfaces":["a"],"ipv4_address":"1.2.3.4"}"#,
                "mmds-config: ipv4_address",
            ),
            (r#"{"network_interfaces":["a"],"version":"V3"}"#, "V3"),
            (r#"{"network_interfaces":["a"],"port":1}"#, "port"),
            ("{}", "network_interfaces"),
        ] {
            let message = message(&with(mmds));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_setting_is_never_accepted_and_dropped() {
        for (key, value) in [
            ("smt", "true"),
            ("track_dirty_pages", "true"),
            ("huge_pages", "\"2M\""),
            ("cpu_template", "\"T2\""),
        ] {
            let text = format!(
                r#"{{"boot-source":{{"kernel_image_path":"k"}},
                    "machine-config":{{"vcpu_count":1,"mem_size_mib":64,"{key}":{value}}}}}"#
            );
            assert!(
                message(&text).contains(&format!("`{key}`")),
                "{}",
                message(&text)
            );
        }
        for key in ["cpu-config", "serial", "memory-hotplug"] {
            for value in ["{}", "1", "-1", "1.5", "\"x\"", "true", "[{}]"] {
                let text =
                    format!(r#"{{"boot-source":{{"kernel_image_path":"k"}},"{key}":{value}}}"#);
                assert!(
                    message(&text).contains(&format!("`{key}`")),
                    "{}",
                    message(&text)
                );
            }
        }
    }
}
