//! What a thread may reach by a name: nothing, or files that are there for it.
//!
//! A seccomp filter sees numbers and no names: it lets the socket device's thread connect to a Unix socket and not see
//! to which, and a thread kick a vCPU by a signal and not see whose thread it is. Landlock, where the kernel has it,
//! looks at what is meant. It holds also under a user's own filters, which may allow anything.
//!
//! | threads | files | the rest |
//! | --- | --- | --- |
//! | a vCPU's, a device's | none can be opened, made, renamed or removed by name; those that are open stay so | no TCP; no abstract Unix socket and no signal to another process |
//! | the API's | the same, but that it removes: its own socket at the end | the same |
//! | main, time, report, assess | none is executed, and no device, socket, pipe, link or directory made or taken away, but directories of the cache of TSC domains | the same |
//!
//! What an older kernel does not know is left out: Linux 5.13 (ABI 1) has the most of the files, 6.7 (4) TCP, 6.12 (6)
//! the rest. A connection to a Unix socket that has a name is not held back by any of them: the jail bounds which there
//! are. Nor are signals where a thread's domain would keep it from its own process (`Erratum::ScopedSignalHandling`).

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Erratum, LandlockStatus,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetError, Scope,
};

use super::Role;

/// A thread is not fenced in.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The rules cannot be handed to the thread.
    #[error("no descriptor for them")]
    Descriptor(#[from] io::Error),
    /// The kernel refuses.
    #[error(transparent)]
    Restrict(#[from] RulesetError),
}

/// The rules, made once for all threads. A kernel without Landlock has made none.
pub(super) struct Fences {
    /// Nothing by name.
    closed: RulesetCreated,
    /// Nothing but to remove a file.
    removing: RulesetCreated,
    /// Files, but nothing that a launcher has no use for.
    open: RulesetCreated,
}

/// All that the kernel can hold against a thread that opens nothing, up to Linux 6.15.
fn everything() -> BitFlags<AccessFs> {
    AccessFs::from_all(ABI::V7)
}

/// What no thread does once a guest runs. The cache of TSC domains makes a directory.
fn useless() -> BitFlags<AccessFs> {
    AccessFs::Execute
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::MakeSock
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
        | AccessFs::RemoveDir
}

/// Rules that deny all of `files`, and what is denied to all threads.
fn rules(files: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    let mut scope = BitFlags::from(Scope::AbstractUnixSocket);
    if Erratum::current().contains(Erratum::ScopedSignalHandling) {
        scope |= Scope::Signal;
    }
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(files)?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(scope)?
        .create()
}

impl Fences {
    pub(super) fn new() -> Result<Self, RulesetError> {
        Ok(Self {
            closed: rules(everything())?,
            removing: rules(everything() & !AccessFs::RemoveFile)?,
            open: rules(useless())?,
        })
    }

    /// Fences the calling thread in, and what it starts from now on.
    pub(super) fn enter(&self, role: Role) -> Result<(), FenceError> {
        let rules = match role {
            Role::Vcpu | Role::Device | Role::AsyncDrive | Role::Vsock => &self.closed,
            Role::Api => &self.removing,
            Role::Vmm | Role::Time | Role::Report | Role::Assess => &self.open,
        };
        let status = rules.try_clone()?.restrict_self()?;
        if role == Role::Vmm {
            match abi(&status) {
                Some(abi) => tracing::debug!("Landlock, ABI {abi}, bounds what threads open"),
                None => tracing::debug!("the kernel has no Landlock"),
            }
        }
        Ok(())
    }
}

fn abi(status: &RestrictionStatus) -> Option<i32> {
    match status.landlock {
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => Some(kernel_abi.unwrap_or(effective_abi as i32)),
        _ => None,
    }
}

/// The version of Landlock that the kernel has, if it has it. A thread finds out by fencing itself in.
pub(crate) fn kernels_abi() -> Option<i32> {
    let thread = std::thread::spawn(|| {
        let status = rules(everything()).ok()?.restrict_self().ok()?;
        abi(&status)
    });
    thread.join().ok().flatten()
}
