//! The steps, in order.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::{panic, thread};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, setsid, waitpgid, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::UnshareFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup::{CgroupError, CgroupVersion, Cgroups, Plan};
use crate::cli::{complain, one_line};
use crate::devices::{self, DeviceError};
use crate::exec_file::{ExecFile, ExecFileError};
use crate::folder::{Folder, FolderError, make_shared};
use crate::hardening::{self, HardeningError};
use crate::namespaces::{self, NamespaceError, Network};
use crate::process::{self, Fork};
use crate::settings::{CgroupSetting, JailId, ResourceLimit};
use crate::tsc_domains::{TscDomainError, TscDomains};
use crate::undo::Undo;

/// More descriptors than the steps hold at once, but for one for each component of the paths that are made.
const DESCRIPTORS: usize = 64;

/// What a jail is to be.
#[derive(Debug)]
pub(crate) struct Jail {
    pub(crate) id: JailId,
    pub(crate) exec_file: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) base: PathBuf,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) daemonize: bool,
    pub(crate) new_pid_ns: bool,
    pub(crate) cgroups: Vec<CgroupSetting>,
    pub(crate) cgroup_version: CgroupVersion,
    pub(crate) parent_cgroup: Option<PathBuf>,
    /// The file of TSC domains within one of which the CPUs are.
    pub(crate) tsc_domains: Option<PathBuf>,
    pub(crate) limits: Vec<ResourceLimit>,
    pub(crate) arguments: Vec<OsString>,
}

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailError {
    #[error(transparent)]
    Hardening(#[from] HardeningError),
    #[error(transparent)]
    ExecFile(#[from] ExecFileError),
    #[error("--chroot-base-dir")]
    Base(#[source] FolderError),
    #[error("{}: a jail needs devices and programs there; choose a base on a file system without nodev and noexec", .0.display())]
    MountOptions(PathBuf),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    TscDomain(#[from] TscDomainError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("cannot give {} to user {uid} and group {gid}", .path.display())]
    Owner {
        path: PathBuf,
        uid: u32,
        gid: u32,
        #[source]
        errno: Errno,
    },
    #[error("cannot make {}: is the id occupied?", .0.display())]
    PidFile(PathBuf, #[source] io::Error),
    #[error("cannot start a process for the jail")]
    Fork(#[source] io::Error),
    #[error("cannot leave the terminal")]
    Daemon(#[source] Errno),
    #[error("cannot execute {} in the jail", .0.display())]
    Exec(PathBuf, #[source] io::Error),
    /// A child's error, as it told it.
    #[error("{0}")]
    Child(String),
}

/// When the jailer started, and the CPU time of the processes before this one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    start_us: u64,
    start_cpu_us: u64,
    parent_cpu_us: u64,
}

impl Times {
    /// Of a process that has just started.
    pub(crate) fn now() -> Self {
        Self {
            start_us: micros(ClockId::Monotonic),
            start_cpu_us: micros(ClockId::ProcessCPUTime),
            parent_cpu_us: 0,
        }
    }

    /// What the parent has spent, to be taken before a fork.
    fn spent(self) -> u64 {
        let since = micros(ClockId::ProcessCPUTime).saturating_sub(self.start_cpu_us);
        self.parent_cpu_us.saturating_add(since)
    }

    /// In the child of a parent that has spent so much.
    fn after_fork(self, parent_cpu_us: u64) -> Self {
        Self {
            start_cpu_us: micros(ClockId::ProcessCPUTime),
            parent_cpu_us,
            ..self
        }
    }
}

fn micros(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_nsec / 1000).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

/// A jail that is there, for the process that becomes the launcher.
struct Cell<'a> {
    jail: &'a Jail,
    program: PathBuf,
    cgroups: Cgroups,
}

impl Jail {
    /// Makes the jail and becomes the launcher, or returns when another process has.
    ///
    /// # Errors
    /// What stood in the way. What was made until then is gone again.
    pub(crate) fn start(&self, times: Times) -> Result<(), JailError> {
        // What can be looked at before anything is made.
        hardening::check_privileges()?;
        hardening::check_limits(&self.limits)?;
        hardening::check_descriptors(self.descriptors())?;
        let exec_file = ExecFile::open(&self.exec_file)?;
        let name = exec_file.name().to_owned();
        let network = self.netns.as_deref().map(Network::open).transpose()?;
        let domains = self.tsc_domains.as_deref().map(TscDomains::read);
        let plan = Plan::new(
            self.cgroup_version,
            &self.cgroups,
            self.parent_cgroup.as_deref(),
            &name,
            domains.transpose()?,
        )?;
        let (devices, missing) = devices::known()?;
        let null = openat(
            CWD,
            "/dev/null",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| FolderError::Other("open", "/dev/null".into(), error))?;

        let mut undo = Undo::default();
        let root = make_shared(
            || self.make_root(&name, &mut undo),
            |error| matches!(error, JailError::Base(FolderError::Gone(_))),
        )?;
        exec_file.copy_to(&root, &mut undo)?;
        if let Some(network) = network {
            network.join()?;
        }
        let cgroups = plan.make(self.id.as_ref(), &mut undo)?;
        let root = namespaces::confine(&root)?;
        self.furnish(&root, &devices, &mut undo)?;
        for name in missing {
            complain(&format!(
                "jailer: warning: this kernel has no device {name}: the jail has none either"
            ));
        }
        let pid_file = make_pid_file(&root, &name, &mut undo)?;
        let cell = Cell {
            jail: self,
            program: Path::new("/").join(&name),
            cgroups,
        };
        if self.daemonize || self.new_pid_ns {
            cell.start_elsewhere(times, pid_file, &null)?;
            undo.keep_all();
            Ok(())
        } else {
            cell.write_pid(pid_file, getpid())?;
            cell.become_launcher_or_leave(times)
                .map(|never| match never {})
        }
    }

    /// As many descriptors as the steps may take.
    fn descriptors(&self) -> u64 {
        // One to take it back with, and one while those below it are made.
        let parent = self.parent_cgroup.iter().flatten().count();
        let each = parent.saturating_mul(2).saturating_add(8);
        let chosen = usize::from(self.tsc_domains.is_some());
        let cgroups = self
            .cgroups
            .len()
            .saturating_add(chosen)
            .saturating_mul(each);
        let paths = self.base.iter().count().saturating_add(cgroups);
        u64::try_from(DESCRIPTORS.saturating_add(paths)).unwrap_or(u64::MAX)
    }

    fn owner(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }

    /// `BASE/EXEC_FILE_NAME/ID/root`.
    fn make_root(&self, name: &OsStr, undo: &mut Undo) -> Result<Folder, JailError> {
        let base = Folder::open_or_make(&self.base, undo).map_err(JailError::Base)?;
        let facts = rustix::fs::fstatvfs(&base)
            .map_err(|error| FolderError::Other("look at", self.base.clone(), error))?;
        let unfit = rustix::fs::StatVfsMountFlags::NODEV | rustix::fs::StatVfsMountFlags::NOEXEC;
        if facts.f_flag.intersects(unfit) {
            return Err(JailError::MountOptions(self.base.clone()));
        }
        let (all, _) = base.enter_or_make(name, undo).map_err(JailError::Base)?;
        let (own, _) = all
            .enter_or_make(OsStr::new(self.id.as_ref()), undo)
            .map_err(JailError::Base)?;
        let (root, _) = own
            .enter_or_make(OsStr::new("root"), undo)
            .map_err(JailError::Base)?;
        Ok(root)
    }

    /// Gives a folder to the jail's user alone.
    fn give(&self, folder: &Folder, undo: &mut Undo) -> Result<(), JailError> {
        undo.attributes(folder, folder.stat()?);
        let (uid, gid) = self.owner();
        fchown(folder, Some(uid), Some(gid))
            .and_then(|()| fchmod(folder, Mode::from_raw_mode(0o700)))
            .map_err(|errno| JailError::Owner {
                path: folder.path().to_owned(),
                uid: self.uid,
                gid: self.gid,
                errno,
            })
    }

    /// The folders and devices of a jail.
    fn furnish(
        &self,
        root: &Folder,
        devices: &[devices::Device],
        undo: &mut Undo,
    ) -> Result<(), JailError> {
        let (dev, _) = root.enter_or_make(OsStr::new("dev"), undo)?;
        let (net, _) = dev.enter_or_make(OsStr::new("net"), undo)?;
        let (run, _) = root.enter_or_make(OsStr::new("run"), undo)?;
        for device in devices {
            let folder = if device.of_networks { &net } else { &dev };
            device.make(folder, self.owner(), undo)?;
        }
        // Last, so that the jail's user can enter none of them while they are filled.
        for folder in [&net, &dev, &run, root] {
            self.give(folder, undo)?;
        }
        Ok(())
    }
}

/// A file for the number of the first process, made before that process.
fn make_pid_file(root: &Folder, name: &OsStr, undo: &mut Undo) -> Result<File, JailError> {
    let mut file_name = name.to_owned();
    file_name.push(".pid");
    let failed = |error| JailError::PidFile(root.path().join(&file_name), error);
    let fd = root
        .make_file(&file_name, undo)
        .map_err(|error| failed(error.into()))?;
    fchmod(&fd, Mode::from_raw_mode(0o644)).map_err(|error| failed(error.into()))?;
    Ok(File::from(fd))
}

impl Cell<'_> {
    /// Gives up everything and executes the program.
    fn become_launcher(&self, times: Times) -> Result<Infallible, JailError> {
        let jail = self.jail;
        self.cgroups.enter()?;
        hardening::limit(&jail.limits)?;
        hardening::drop_privileges(jail.uid, jail.gid)?;
        let failed = |error| JailError::Exec(self.program.clone(), error);
        let own = [
            ("--id", jail.id.as_ref().to_owned()),
            ("--start-time-us", times.start_us.to_string()),
            ("--start-time-cpu-us", times.start_cpu_us.to_string()),
            ("--parent-cpu-time-us", times.parent_cpu_us.to_string()),
        ];
        let own = own
            .into_iter()
            .flat_map(|(name, value)| [name.into(), value.into()]);
        let arguments = [self.program.clone().into_os_string()].into_iter();
        let arguments = arguments.chain(own).chain(jail.arguments.iter().cloned());
        let arguments: Vec<CString> = arguments
            .map(|argument| CString::new(argument.into_vec()))
            .collect::<Result<_, _>>()
            .map_err(|error| failed(error.into()))?;
        let program = CString::new(self.program.clone().into_os_string().into_vec())
            .map_err(|error| failed(error.into()))?;
        Err(failed(process::execute(&program, &arguments)))
    }

    /// The same in a thread, so that this one keeps the privileges that it takes to take everything back:
    /// they are a thread's own. When the program is executed, it is this process, and the threads are gone.
    fn become_launcher_or_leave(&self, times: Times) -> Result<Infallible, JailError> {
        let result = thread::scope(|scope| {
            let thread = thread::Builder::new()
                .spawn_scoped(scope, || self.become_launcher(times))
                .map_err(JailError::Fork)?;
            thread
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        });
        self.cgroups.leave();
        result
    }

    /// Tells who is the launcher, as seen from here.
    fn write_pid(&self, mut file: File, pid: Pid) -> Result<(), JailError> {
        file.write_all(pid.as_raw_nonzero().to_string().as_bytes())
            .map_err(|error| JailError::PidFile(self.program.clone(), error))
    }

    /// Starts the program in another process, and waits until it is executed.
    fn start_elsewhere(
        &self,
        times: Times,
        pid_file: File,
        null: &OwnedFd,
    ) -> Result<(), JailError> {
        // Closed by `exec`, so an end without a word is a success.
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| JailError::Fork(error.into()))?;
        // Whom a daemon's first process leaves behind comes to this one, to be waited for.
        set_child_subreaper(Some(getpid())).map_err(|error| JailError::Fork(error.into()))?;
        let spent = times.spent();
        let child = if self.jail.daemonize {
            match process::fork().map_err(JailError::Fork)? {
                Fork::Parent(pid) => pid,
                Fork::Child => {
                    let times = times.after_fork(spent);
                    let told = setsid().map_err(JailError::Daemon);
                    report(
                        told.and_then(|_| self.start_child(times, pid_file, &writer, Some(null)))
                            .map(|_| ()),
                        &writer,
                    )
                }
            }
        } else {
            self.start_child(times, pid_file, &writer, None)?
        };
        drop(writer);
        let mut told = String::new();
        let read = File::from(reader).read_to_string(&mut told);
        read.map_err(JailError::Fork)?;
        if told.is_empty() {
            return Ok(());
        }
        // It is about to end, with whom it has left behind in its session: their cgroup can be removed only then.
        let _ = waitpid(Some(child), WaitOptions::empty());
        while waitpgid(child, WaitOptions::empty()).is_ok() {}
        Err(JailError::Child(told))
    }

    /// Starts the process that becomes the launcher.
    fn start_child(
        &self,
        times: Times,
        pid_file: File,
        writer: &OwnedFd,
        null: Option<&OwnedFd>,
    ) -> Result<Pid, JailError> {
        if self.jail.new_pid_ns {
            process::unshare(UnshareFlags::NEWPID).map_err(JailError::Fork)?;
        }
        let spent = times.spent();
        // The end of who leads a session hangs up on those in front of its terminal.
        let own_session = null.is_none() && process::leads_session();
        match process::fork().map_err(JailError::Fork)? {
            Fork::Parent(pid) => {
                self.write_pid(pid_file, pid).inspect_err(|_| {
                    // Nobody could find it. That it has ended already is as good.
                    let _ = kill_process(pid, Signal::KILL);
                    let _ = waitpid(Some(pid), WaitOptions::empty());
                })?;
                Ok(pid)
            }
            Fork::Child => {
                let silenced = null.map_or(Ok(()), |null| {
                    dup2_stdin(null)
                        .and_then(|()| dup2_stdout(null))
                        .and_then(|()| dup2_stderr(null))
                });
                let result = silenced
                    .and_then(|()| {
                        if own_session {
                            setsid().map(drop)
                        } else {
                            Ok(())
                        }
                    })
                    .map_err(JailError::Daemon)
                    .and_then(|()| self.become_launcher(times.after_fork(spent)));
                report(result.map(|never| match never {}), writer)
            }
        }
    }
}

/// Ends a child, which tells its parent what went wrong and undoes nothing itself.
fn report(result: Result<(), JailError>, writer: &OwnedFd) -> ! {
    let Err(error) = result else {
        process::leave(0)
    };
    // The parent holds the other end; when it is gone, there is nobody to tell.
    let _ = rustix::io::write(writer, one_line(&error).as_bytes());
    process::leave(1)
}
