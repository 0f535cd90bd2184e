//! The bodies of requests to devices that this version does not have.
//!
//! They are checked like all others, and then answered with what is missing: a client learns of its own
//! mistakes first, and nothing that it asks for is accepted and dropped. A module moves out of here
//! with its device.
#![allow(
    dead_code,
    missing_docs,
    reason = "the fields are those of Firecracker's API, read only to be checked"
)]

use std::collections::BTreeMap;

use serde::Deserialize;

use super::drive::TokenBucket;
use super::request::Fault;

/// Something that this version does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    CpuConfig,
    DriveRemoval,
    MemoryHotplug,
    NetworkRemoval,
    PmemRemoval,
    Serial,
    Snapshots,
}

impl Missing {
    /// What a client is told.
    #[must_use]
    pub fn fault(self) -> Fault {
        let what = match self {
            Self::CpuConfig => "custom CPU templates",
            Self::DriveRemoval => "removal of drives",
            Self::MemoryHotplug => "memory hotplug",
            Self::NetworkRemoval => "removal of network interfaces",
            Self::PmemRemoval => "removal of persistent memory devices",
            Self::Serial => {
                return Fault::new(
                    "this version of keeptime has no serial output to a file yet: COM1 is standard input \
                     and output",
                );
            }
            Self::Snapshots => "snapshots",
        };
        Fault::new(format!("this version of keeptime has no {what} yet"))
    }
}

/// What serde does not check.
pub trait Check {
    /// # Errors
    /// The field at fault.
    fn check(&self) -> Result<(), Fault>;
}

/// Bodies that their types check wholly.
macro_rules! checked_by_their_types {
    ($($body:ty),*) => {
        $(impl Check for $body {
            fn check(&self) -> Result<(), Fault> {
                Ok(())
            }
        })*
    };
}

checked_by_their_types!(CpuConfig, MemoryHotplugPatch, Serial, SnapshotCreate);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    serial_out_path: Option<String>,
    #[serde(default, deserialize_with = "super::object::optional")]
    rate_limiter: Option<TokenBucket>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplug {
    total_size_mib: u64,
    slot_size_mib: Option<u64>,
    block_size_mib: Option<u64>,
}

impl Check for MemoryHotplug {
    fn check(&self) -> Result<(), Fault> {
        if self.slot_size_mib.is_some_and(|size| size < 128) {
            return Err(Fault::new("slot_size_mib is less than 128"));
        }
        if self.block_size_mib.is_some_and(|size| size < 2) {
            return Err(Fault::new("block_size_mib is less than 2"));
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugPatch {
    requested_size_mib: u64,
}

#[derive(Debug, Deserialize)]
pub enum SnapshotType {
    Full,
    Diff,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    snapshot_path: String,
    mem_file_path: String,
    snapshot_type: Option<SnapshotType>,
}

#[derive(Debug, Deserialize)]
pub enum BackendType {
    File,
    Uffd,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBackend {
    backend_type: BackendType,
    backend_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    iface_id: String,
    host_dev_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    uds_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    snapshot_path: String,
    mem_file_path: Option<String>,
    mem_backend: Option<MemoryBackend>,
    enable_diff_snapshots: Option<bool>,
    track_dirty_pages: Option<bool>,
    resume_vm: Option<bool>,
    #[serde(default)]
    network_overrides: Vec<NetworkOverride>,
    vsock_override: Option<VsockOverride>,
    clock_realtime: Option<bool>,
}

impl Check for SnapshotLoad {
    fn check(&self) -> Result<(), Fault> {
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            _ => Err(Fault::new(
                "give either a mem_backend or a mem_file_path, and not both",
            )),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidRegisterModifier {
    register: CpuidRegister,
    bitmap: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidModifier {
    leaf: String,
    subleaf: String,
    flags: u32,
    modifiers: Vec<CpuidRegisterModifier>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    addr: String,
    bitmap: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    #[serde(default)]
    kvm_capabilities: Vec<String>,
    #[serde(default)]
    cpuid_modifiers: Vec<CpuidModifier>,
    #[serde(default)]
    msr_modifiers: Vec<MsrModifier>,
    /// Of another architecture.
    #[serde(default)]
    reg_modifiers: Vec<BTreeMap<String, String>>,
    /// Of another architecture.
    #[serde(default)]
    vcpu_features: Vec<BTreeMap<String, serde_json::Value>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_about_the_console_is_a_sentence() {
        let message = Missing::Serial.fault().to_string();
        assert!(
            message.contains("has no serial output to a file yet"),
            "{message}"
        );
    }
}
