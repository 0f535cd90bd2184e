//! What can go wrong between us and the kernel.

use std::io;

/// The kernel refused a call.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub struct IoctlError {
    /// The call's name in the kernel's documentation, such as `KVM_CREATE_VCPU`.
    pub call: &'static str,
    /// The kernel's reason.
    pub source: io::Error,
}

impl IoctlError {
    pub(crate) fn new(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self {
            call,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }
}

/// `/dev/kvm` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such device.
    #[error(
        "{path} does not exist: load the kvm_intel or kvm_amd module, or switch virtualization on in the firmware"
    )]
    Missing {
        /// The device's path.
        path: &'static str,
    },
    /// The device exists, and this user may not open it.
    #[error(
        "no permission to open {path}: add this user to the group that owns it (usually kvm), or run as root"
    )]
    Permission {
        /// The device's path.
        path: &'static str,
    },
    /// Opening failed for another reason.
    #[error("cannot open {path}")]
    Open {
        /// The device's path.
        path: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The device is not a KVM that we know.
    #[error("{path} speaks KVM API version {found}, but only version 12 is known")]
    ApiVersion {
        /// The device's path.
        path: &'static str,
        /// What `KVM_GET_API_VERSION` answered.
        found: i32,
    },
    /// This KVM lacks something that no guest can run without.
    #[error("this host's KVM lacks {name} ({meaning}): a newer kernel is needed")]
    MissingCapability {
        /// The capability's name in the kernel's documentation.
        name: &'static str,
        /// What it is for.
        meaning: &'static str,
    },
}

/// MSRs could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// The kernel stopped at one register.
    #[error("the host's KVM does not accept {value:#x} for MSR {index:#x}")]
    Refused {
        /// The register's number.
        index: u32,
        /// The value that was to be written.
        value: u64,
    },
    /// The kernel stopped reading at one register.
    #[error("the host's KVM does not have MSR {index:#x}")]
    Absent {
        /// The register's number.
        index: u32,
    },
    /// The call failed as a whole.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
}
