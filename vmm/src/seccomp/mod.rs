//! What each thread may ask of the kernel, and no more: a guest that takes a thread over has nothing to call.
//!
//! The rules are in `vmm/seccomp/x86_64.json`, in seccompiler's format, one filter for each kind of thread. They
//! are compiled with the launcher. A thread takes its filter on by itself, a vCPU's before its guest runs, and
//! none can be taken off: what a thread starts inherits it.
//!
//! A call that is not allowed ends the process by `SIGSYS`. [`Action::Report`] has it told before, for whoever
//! looks for a missing rule.
//!
//! Threads that start others have a second filter, `refused`, which answers `ENOSYS` where the C library has
//! another way that can be checked.
//!
//! What a filter cannot look at, names of files and addresses of sockets, is bounded by Landlock, which each thread
//! takes on with its filter where the kernel has it (`vmm/src/seccomp/landlock.rs`).

pub(crate) mod landlock;
mod panics;
mod report;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::landlock::Fences;
pub use panics::tell_panics_in_one_line;
use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json, sock_filter};

/// `struct sock_filter`: code, jump if true, jump if false, constant.
type Instruction = (u16, u8, u8, u32);

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// The largest file of rules that is read. Ours has 40 KiB.
const MAX_FILE: u64 = 1 << 20;

/// The filter that answers instead of ending the process.
const REFUSED: &str = "refused";

/// What a thread is for, and by that which filter it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The main thread, once a guest runs.
    Vmm,
    /// It talks with the API's clients.
    Api,
    /// It runs a vCPU.
    Vcpu,
    /// It serves one virtio device.
    Device,
    /// It serves a disk that has many requests under way at once.
    AsyncDrive,
    /// It serves the socket device, for which it connects to programs of the host.
    Vsock,
    /// It watches the guest's time.
    Time,
    /// It writes the time report.
    Report,
    /// It measures the host's TSCs, by threads on each CPU.
    Assess,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Vmm,
        Self::Api,
        Self::Vcpu,
        Self::Device,
        Self::AsyncDrive,
        Self::Vsock,
        Self::Time,
        Self::Report,
        Self::Assess,
    ];

    /// Whether it starts threads of its own while a guest runs.
    #[must_use]
    pub fn starts_threads(self) -> bool {
        matches!(self, Self::Vmm | Self::Time | Self::Assess)
    }

    /// The name of its filter.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Api => "api",
            Self::Vcpu => "vcpu",
            Self::Device => "device",
            Self::AsyncDrive => "async_drive",
            Self::Vsock => "vsock",
            Self::Time => "time",
            Self::Report => "report",
            Self::Assess => "assess",
        }
    }
}

/// What becomes of a call that a filter does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The process ends by `SIGSYS`.
    Kill,
    /// It tells the call on standard error, and ends with status 148.
    Report,
}

/// Filters cannot be had, or not be taken on.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// No file that can be read.
    #[error("--seccomp-filter {path:?}: it cannot be read; check the path and its permissions")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No filters.
    #[error(
        "--seccomp-filter {path:?}: not rules in seccompiler's JSON format; compiled ones are not taken"
    )]
    Compile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: seccompiler::Error,
    },
    /// A thread would be without one.
    #[error(
        "--seccomp-filter {path:?}: there is none for the thread kind {name:?}; give one for each of \
         vmm, api, vcpu, device, async_drive, vsock, time, report and assess"
    )]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Which kind.
        name: &'static str,
    },
    /// A filter that nothing would have.
    #[error(
        "--seccomp-filter {path:?}: {name:?} is none of the thread kinds vmm, api, vcpu, device, async_drive, vsock, \
         time, report and assess"
    )]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// What is not known.
        name: String,
    },
    /// The kernel refuses.
    #[error(
        "the kernel does not take the seccomp filter of the thread kind {name:?}; it needs \
         CONFIG_SECCOMP_FILTER, and --no-seccomp goes without"
    )]
    Install {
        /// Which kind.
        name: &'static str,
        /// Why.
        source: seccompiler::Error,
    },
    /// No rules for Landlock.
    #[error("the kernel makes no Landlock rules, and says that it can; --no-seccomp goes without")]
    Fences(#[source] ::landlock::RulesetError),
    /// The kernel refuses them.
    #[error(
        "the kernel does not take the Landlock rules of the thread kind {name:?}; --no-seccomp goes without"
    )]
    Fence {
        /// Which kind.
        name: &'static str,
        /// Why.
        source: landlock::FenceError,
    },
    /// The handler of `SIGSYS`.
    #[error("calls that a filter does not allow cannot be reported")]
    Handler(#[source] io::Error),
}

/// The filters of a process's threads, with Landlock's rules. A copy is as cheap as a pointer.
#[derive(Clone, Default)]
pub struct Filters(Option<Arc<Confinement>>);

struct Confinement {
    programs: BTreeMap<String, BpfProgram>,
    fences: Fences,
}

impl Filters {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The launcher's own.
    ///
    /// # Errors
    /// Calls cannot be reported.
    pub fn builtin(action: Action) -> Result<Self, FilterError> {
        let programs = match action {
            Action::Kill => KILL,
            Action::Report => {
                report::install().map_err(FilterError::Handler)?;
                TRAP
            }
        };
        let programs = programs.iter().map(|(name, program)| {
            let program = program
                .iter()
                .map(|&(code, jt, jf, k)| sock_filter { code, jt, jf, k });
            ((*name).to_owned(), program.collect())
        });
        Self::with(programs.collect())
    }

    fn with(programs: BTreeMap<String, BpfProgram>) -> Result<Self, FilterError> {
        let fences = Fences::new().map_err(FilterError::Fences)?;
        Ok(Self(Some(Arc::new(Confinement { programs, fences }))))
    }

    /// The user's: rules in seccompiler's JSON format, for each [`Role`] by its name, and `refused` if they
    /// like, for those that start threads. What is not allowed has the action that they say.
    ///
    /// # Errors
    /// No file, no rules, or not those.
    pub fn from_file(path: &Path) -> Result<Self, FilterError> {
        let mut text = Vec::new();
        // A pipe or a device has no size to be asked for; what is too long ends in the middle of a rule.
        File::open(path)
            .and_then(|file| file.take(MAX_FILE).read_to_end(&mut text))
            .map_err(|source| FilterError::Read {
                path: path.to_owned(),
                source,
            })?;
        let compiled = compile_from_json(&text[..], TargetArch::x86_64);
        let programs: BTreeMap<_, _> = compiled
            .map_err(|source| FilterError::Compile {
                path: path.to_owned(),
                source,
            })?
            .into_iter()
            .collect();
        let missing = Role::ALL
            .into_iter()
            .find(|role| !programs.contains_key(role.name()));
        if let Some(role) = missing {
            return Err(FilterError::Missing {
                path: path.to_owned(),
                name: role.name(),
            });
        }
        let is_known =
            |name: &str| name == REFUSED || Role::ALL.iter().any(|role| role.name() == name);
        if let Some(name) = programs.keys().find(|name| !is_known(name)) {
            return Err(FilterError::Unknown {
                path: path.to_owned(),
                name: name.clone(),
            });
        }
        Self::with(programs)
    }

    /// Has the calling thread do what `role` does, and nothing else from now on. It cannot get privileges
    /// by running other programs from then on, either (`PR_SET_NO_NEW_PRIVS`).
    ///
    /// # Errors
    /// The kernel refuses; the thread may be without a filter.
    pub fn enter(&self, role: Role) -> Result<(), FilterError> {
        let Some(Confinement { programs, fences }) = self.0.as_deref() else {
            return Ok(());
        };
        // Before the filter, which does not allow it.
        fences.enter(role).map_err(|source| FilterError::Fence {
            name: role.name(),
            source,
        })?;
        report::note(role);
        panics::note();
        // That one first: the other does not allow any more. A second one costs at each call, such as each entry
        // of a guest.
        let refused = role.starts_threads().then_some(REFUSED);
        for name in refused.into_iter().chain([role.name()]) {
            if let Some(program) = programs.get(name) {
                apply_filter(program).map_err(|source| FilterError::Install {
                    name: role.name(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filters")
            .field("any", &self.0.is_some())
            .finish_non_exhaustive()
    }
}
