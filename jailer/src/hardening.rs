//! What a jailed process gives up before it becomes the launcher.

use std::fs::read_to_string;
use std::io;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::process;
use crate::settings::ResourceLimit;

/// Capabilities that the steps take, with their names.
const NEEDED: [(CapabilitySet, &str); 9] = [
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::MKNOD, "CAP_MKNOD"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::SETPCAP, "CAP_SETPCAP"),
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT"),
];

/// Why a process is not as harmless as it is to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HardeningError {
    #[error("the jailer lacks {0}: run it as root, it gives up all privileges by itself")]
    Unprivileged(String),
    #[error(
        "--resource-limit {name}={most} is above this process's own limit of {maximum}, which only CAP_SYS_RESOURCE raises: ask for less"
    )]
    Limit {
        name: &'static str,
        most: u64,
        maximum: u64,
    },
    #[error(
        "--resource-limit no-file={0} is above the kernel's own limit of {1} (sysctl fs.nr_open): ask for less"
    )]
    KernelLimit(u64, u64),
    #[error(
        "the jailer may have {0} descriptors and needs up to {1}, lest it leave something behind: raise the limit (ulimit -n {1})"
    )]
    Descriptors(u64, u64),
    #[error("cannot set the limit {0}")]
    SetLimit(&'static str, #[source] Errno),
    #[error("cannot give up {0}")]
    Drop(&'static str, #[source] Errno),
    #[error("cannot give up the session keyring")]
    Keys(#[source] io::Error),
    #[error("cannot become user {0} and group {1}")]
    Become(u32, u32, #[source] Errno),
}

/// Looks whether this process may do what a jail takes.
pub(crate) fn check_privileges() -> Result<(), HardeningError> {
    let have = effective();
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(capability, _)| !have.contains(*capability))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(HardeningError::Unprivileged(missing.join(", ")))
    }
}

fn effective() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

fn name(resource: Resource) -> &'static str {
    match resource {
        Resource::Fsize => "fsize",
        Resource::Nofile => "no-file",
        _ => "core",
    }
}

/// Looks whether limits can be set, before anything is made.
pub(crate) fn check_limits(limits: &[ResourceLimit]) -> Result<(), HardeningError> {
    for limit in limits {
        if let Some(maximum) = kernel_maximum(limit.resource)
            && limit.most > maximum
        {
            return Err(HardeningError::KernelLimit(limit.most, maximum));
        }
        let own = getrlimit(limit.resource).maximum;
        if let Some(maximum) = own.filter(|maximum| limit.most > *maximum)
            && !effective().contains(CapabilitySet::SYS_RESOURCE)
        {
            return Err(HardeningError::Limit {
                name: name(limit.resource),
                most: limit.most,
                maximum,
            });
        }
    }
    Ok(())
}

/// The largest limit that even CAP_SYS_RESOURCE sets, if there is one: `do_prlimit` of `kernel/sys.c`.
fn kernel_maximum(resource: Resource) -> Option<u64> {
    let file = (resource == Resource::Nofile).then_some("/proc/sys/fs/nr_open")?;
    read_to_string(file).ok()?.trim().parse().ok()
}

/// Looks whether this process may have that many descriptors: one that is missing half way would leave behind
/// what was made last.
pub(crate) fn check_descriptors(needed: u64) -> Result<(), HardeningError> {
    match getrlimit(Resource::Nofile).current {
        Some(most) if most < needed => Err(HardeningError::Descriptors(most, needed)),
        _ => Ok(()),
    }
}

/// Sets the limits, and forbids core dumps, which would hold the guest's memory.
pub(crate) fn limit(limits: &[ResourceLimit]) -> Result<(), HardeningError> {
    let core = ResourceLimit {
        resource: Resource::Core,
        most: 0,
    };
    for limit in limits.iter().chain([&core]) {
        let both = Rlimit {
            current: Some(limit.most),
            maximum: Some(limit.most),
        };
        setrlimit(limit.resource, both)
            .map_err(|error| HardeningError::SetLimit(name(limit.resource), error))?;
    }
    Ok(())
}

/// Becomes the jail's user, for good and without any privilege.
pub(crate) fn drop_privileges(uid: u32, gid: u32) -> Result<(), HardeningError> {
    umask(Mode::from_raw_mode(0o077));
    let dropping = |what| move |error| HardeningError::Drop(what, error);
    process::leave_keys().map_err(HardeningError::Keys)?;
    set_thread_groups(&[]).map_err(dropping("supplementary groups"))?;
    clear_ambient_capability_set().map_err(dropping("ambient capabilities"))?;
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
    .map_err(dropping("what root gains by itself"))?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(HardeningError::Drop("the bounding set", error)),
        }
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(group, group, group)
        .and_then(|()| set_thread_res_uid(user, user, user))
        .map_err(|error| HardeningError::Become(uid, gid, error))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(dropping("capabilities"))?;
    set_no_new_privs(true).map_err(dropping("what programs gain"))?;
    // Until the program is executed; from then on by its mode, which lets nobody read it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(dropping("dumps"))
}
