//! The jail's cgroups, of version 1 or 2.
//!
//! Where a hierarchy is mounted is read from `/proc/self/mountinfo`, so that a link beside the mount, such as
//! version 1's `cpu` to `cpu,cpuacct`, neither matters nor hurts. Below a mount nothing is followed.

use std::ffi::OsStr;
use std::fs::read_to_string;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fstatfs};
use rustix::io::{Errno, write};

use crate::folder::{Folder, FolderError, make_shared};
use crate::settings::CgroupSetting;
use crate::tsc_domains::{TscDomainError, TscDomains};
use crate::undo::Undo;

/// Which interface the cgroups have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CgroupVersion {
    /// A hierarchy for each controller
    #[value(name = "1")]
    V1,
    /// The unified hierarchy
    #[value(name = "2")]
    V2,
}

impl CgroupVersion {
    fn file_system(self) -> &'static str {
        match self {
            Self::V1 => "cgroup",
            Self::V2 => "cgroup2",
        }
    }

    /// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
    fn magic(self) -> i64 {
        match self {
            Self::V1 => 0x0027_e0eb,
            Self::V2 => 0x6367_7270,
        }
    }
}

/// What the options of a mount of version 1 hold besides controllers: `cgroup1_show_options` of
/// `kernel/cgroup/cgroup-v1.c`, and `show_sb_opts` of `fs/proc_namespace.c`.
const NO_CONTROLLERS: [&str; 11] = [
    "rw",
    "ro",
    "sync",
    "dirsync",
    "mand",
    "lazytime",
    "noprefix",
    "xattr",
    "cpuset_v2_mode",
    "favordynmods",
    "clone_children",
];

/// Why the jail has no cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("cannot read /proc/self/mountinfo, which tells where cgroups are")]
    MountInfo(#[source] io::Error),
    #[error(
        "--cgroup {0}: no cgroup hierarchy of version 1 with the controller {1} is mounted: mount it, or try --cgroup-version 2"
    )]
    NotMounted(String, String),
    #[error("no cgroup hierarchy of version 2 is mounted: mount it, or try --cgroup-version 1")]
    NoUnified,
    #[error(
        "--cgroup {0}: the cgroups of version 2 have no controller {1}, but these: {2}; enable it, or try --cgroup-version 1"
    )]
    NoController(String, String, String),
    #[error("{} is said to be a cgroup hierarchy and is none: something is mounted above it", .0.display())]
    NotCgroups(PathBuf),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("cannot let {} have the controller {}", .0.display(), .1)]
    Enable(PathBuf, String, #[source] Errno),
    #[error("{} has processes: the id is occupied; choose another, or end them", .0.display())]
    Occupied(PathBuf),
    #[error("--cgroup {file}={value}: the kernel refuses that for {}: see the controller's documentation", .folder.display())]
    Value {
        file: String,
        value: String,
        folder: PathBuf,
        #[source]
        errno: Errno,
    },
    #[error("--cgroup {}: there is no {}: see the controller's documentation", .0, .1.display())]
    NoFile(String, PathBuf),
    #[error("--parent-cgroup")]
    Parent(#[source] FolderError),
    #[error(transparent)]
    TscDomain(#[from] TscDomainError),
    #[error("cannot enter the cgroup {}: choose another parent, or see cgroup.type and cpuset.cpus there", .0.display())]
    Enter(PathBuf, #[source] Errno),
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    file_system: String,
    options: String,
}

/// The cgroup mounts of a `mountinfo` (`proc_pid_mountinfo(5)`), first those of a hierarchy's root.
fn cgroup_mounts(text: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let (file_system, _source, options) = (kind.next()?, kind.next()?, kind.next()?);
        file_system.starts_with("cgroup").then(|| {
            let mount = Mount {
                point: unescape(point),
                file_system: file_system.to_owned(),
                options: options.to_owned(),
            };
            (root != "/", mount)
        })
    };
    let mut mounts: Vec<(bool, Mount)> = text.lines().filter_map(parse).collect();
    mounts.sort_by_key(|(partial, _)| *partial);
    mounts.into_iter().map(|(_, mount)| mount).collect()
}

/// A path in which the kernel wrote blanks and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = match code {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// What is wanted, with the hierarchies that it takes found.
#[derive(Debug)]
pub(crate) struct Plan {
    version: CgroupVersion,
    /// A hierarchy, and what is written to the jail's cgroup in it.
    hierarchies: Vec<(Folder, Vec<CgroupSetting>)>,
    parent: PathBuf,
    /// Without settings, a parent that was named is itself entered.
    enter_parent: bool,
    /// What the cgroup's CPUs are to be within one of.
    domains: Option<TscDomains>,
}

/// The CPUs of a cpuset, in either version.
const CPUS: &str = "cpuset.cpus";

/// The jail's cgroups, to be entered.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    entrances: Vec<(OwnedFd, PathBuf)>,
    /// Where this process was before, as far as that is to be seen here.
    exits: Vec<OwnedFd>,
}

impl Plan {
    /// Finds the hierarchies and looks whether they have the controllers. With `domains`, the cgroup's CPUs will
    /// be within one of them: those of the settings, or else some that are chosen.
    pub(crate) fn new(
        version: CgroupVersion,
        settings: &[CgroupSetting],
        parent: Option<&Path>,
        default_parent: &OsStr,
        domains: Option<TscDomains>,
    ) -> Result<Self, CgroupError> {
        let mut settings = settings.to_vec();
        if let Some(domains) = &domains {
            let mut given = settings.iter().filter(|setting| setting.file == CPUS);
            given.try_for_each(|setting| domains.check(&setting.value))?;
            if !settings.iter().any(|setting| setting.file == CPUS) {
                // Its value is chosen when it is known what the cgroup above allows.
                settings.push(CgroupSetting {
                    file: CPUS.to_owned(),
                    value: String::new(),
                });
            }
        }
        let settings = settings.as_slice();
        let enter_parent = version == CgroupVersion::V2 && settings.is_empty() && parent.is_some();
        let mut plan = Self {
            version,
            hierarchies: Vec::new(),
            parent: parent.map_or_else(|| default_parent.into(), Path::to_owned),
            enter_parent,
            domains,
        };
        if settings.is_empty() && !enter_parent {
            return Ok(plan);
        }
        let text = read_to_string("/proc/self/mountinfo").map_err(CgroupError::MountInfo)?;
        let mounts: Vec<Mount> = cgroup_mounts(&text)
            .into_iter()
            .filter(|mount| mount.file_system == version.file_system())
            .collect();
        match version {
            CgroupVersion::V1 => plan.find_each(&mounts, settings)?,
            CgroupVersion::V2 => plan.find_unified(&mounts, settings)?,
        }
        Ok(plan)
    }

    fn open(&self, mount: &Mount) -> Result<Folder, CgroupError> {
        let folder = Folder::open(&mount.point)?;
        if fstatfs(&folder).is_ok_and(|facts| facts.f_type == self.version.magic()) {
            Ok(folder)
        } else {
            Err(CgroupError::NotCgroups(mount.point.clone()))
        }
    }

    fn find_each(
        &mut self,
        mounts: &[Mount],
        settings: &[CgroupSetting],
    ) -> Result<(), CgroupError> {
        for setting in settings {
            let controller = setting.controller();
            let mount = mounts.iter().find(|mount| {
                let mut options = mount.options.split(',');
                options.any(|option| option == controller && !NO_CONTROLLERS.contains(&option))
            });
            let mount = mount.ok_or_else(|| {
                CgroupError::NotMounted(setting.file.clone(), controller.to_owned())
            })?;
            let known = self
                .hierarchies
                .iter_mut()
                .find(|(folder, _)| folder.path() == mount.point);
            if let Some((_, settings)) = known {
                settings.push(setting.clone());
            } else {
                let folder = self.open(mount)?;
                self.hierarchies.push((folder, vec![setting.clone()]));
            }
        }
        Ok(())
    }

    fn find_unified(
        &mut self,
        mounts: &[Mount],
        settings: &[CgroupSetting],
    ) -> Result<(), CgroupError> {
        let mount = mounts.first().ok_or(CgroupError::NoUnified)?;
        let root = self.open(mount)?;
        let available = root.read("cgroup.controllers")?;
        for setting in settings {
            let controller = setting.controller();
            if needs_enabling(controller)
                && !available.split_whitespace().any(|name| name == controller)
            {
                return Err(CgroupError::NoController(
                    setting.file.clone(),
                    controller.to_owned(),
                    available.trim().to_owned(),
                ));
            }
        }
        self.hierarchies.push((root, settings.to_vec()));
        Ok(())
    }

    /// Makes the cgroups and gives them their values. Nobody is in them yet.
    pub(crate) fn make(self, id: &str, undo: &mut Undo) -> Result<Cgroups, CgroupError> {
        let mut cgroups = Cgroups::default();
        for (root, settings) in &self.hierarchies {
            let folder = if self.enter_parent {
                let path = root.path().join(&self.parent);
                Folder::open(&path).map_err(CgroupError::Parent)?
            } else {
                make_shared(
                    || self.make_one(root, settings, id, undo),
                    |error| matches!(error, CgroupError::Folder(FolderError::Gone(_))),
                )?
            };
            let entrance = folder.open_file(OsStr::new("cgroup.procs"), OFlags::WRONLY)?;
            cgroups.entrances.push((entrance, folder.path().to_owned()));
            cgroups.exits.extend(self.origin(root, settings));
        }
        Ok(cgroups)
    }

    /// The cgroup that this process is in now, to be written to.
    fn origin(&self, root: &Folder, settings: &[CgroupSetting]) -> Option<OwnedFd> {
        let text = read_to_string("/proc/self/cgroup").ok()?;
        let controller = match self.version {
            CgroupVersion::V1 => settings.first()?.controller(),
            CgroupVersion::V2 => "",
        };
        let path = own_cgroup(&text, controller)?;
        let folder = Folder::open(&root.path().join(path)).ok()?;
        let flags = OFlags::WRONLY;
        folder.open_file(OsStr::new("cgroup.procs"), flags).ok()
    }

    fn make_one(
        &self,
        root: &Folder,
        settings: &[CgroupSetting],
        id: &str,
        undo: &mut Undo,
    ) -> Result<Folder, CgroupError> {
        let mut chain: Vec<Folder> = Vec::new();
        for name in self.parent.iter().chain([OsStr::new(id)]) {
            let above = chain.last().unwrap_or(root);
            if self.version == CgroupVersion::V2 {
                enable(above, settings)?;
            }
            let (folder, _) = above.enter_or_make(name, undo)?;
            if self.version == CgroupVersion::V1 {
                inherit_cpuset(above, &folder)?;
            }
            chain.push(folder);
        }
        let Some(folder) = chain.pop() else {
            return Err(FolderError::Missing(self.parent.clone()).into());
        };
        let above = chain.last().unwrap_or(root);
        if !folder.read("cgroup.procs")?.trim().is_empty() {
            return Err(CgroupError::Occupied(folder.path().to_owned()));
        }
        for setting in settings {
            let file = folder
                .open_file(OsStr::new(&setting.file), OFlags::WRONLY)
                .map_err(|error| match error {
                    FolderError::Missing(path) => CgroupError::NoFile(setting.file.clone(), path),
                    error => error.into(),
                })?;
            let value = match &self.domains {
                Some(domains) if setting.value.is_empty() => {
                    domains.choose(id, &self.effective_cpus(above)?, above.path())?
                }
                _ => setting.value.clone(),
            };
            write(&file, value.as_bytes()).map_err(|errno| CgroupError::Value {
                file: setting.file.clone(),
                value,
                folder: folder.path().to_owned(),
                errno,
            })?;
        }
        if let Some(domains) = &self.domains
            && settings.iter().any(|setting| setting.file == CPUS)
        {
            // A cgroup of version 2 that is to have CPUs of which the one above has none gets all of the latter's.
            domains.verify(folder.path(), &self.effective_cpus(&folder)?)?;
        }
        Ok(folder)
    }

    /// The CPUs that a cpuset has, after all that those above it and the kernel allow.
    fn effective_cpus(&self, folder: &Folder) -> Result<String, CgroupError> {
        let name = match self.version {
            CgroupVersion::V1 => "cpuset.effective_cpus",
            CgroupVersion::V2 => "cpuset.cpus.effective",
        };
        Ok(folder.read(name)?)
    }
}

/// The path of a process in a hierarchy, relative to its root, from `/proc/PID/cgroup` (`cgroups(7)`). The
/// unified hierarchy has no name of a controller there.
fn own_cgroup<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_it = controllers.split(',').any(|name| name == controller);
        is_it.then(|| path.trim_start_matches('/'))
    })
}

/// Whether the files of this prefix come with a controller, and not with each cgroup.
fn needs_enabling(controller: &str) -> bool {
    controller != "cgroup"
}

/// An error about a file of a cgroup that others may remove. What was open then is no device any more
/// (`kernfs_get_active` of the kernel).
fn of_shared(folder: &Folder, error: FolderError) -> FolderError {
    match error {
        FolderError::Missing(_) | FolderError::Other(_, _, Errno::NODEV) => {
            FolderError::Gone(folder.path().to_owned())
        }
        error => error,
    }
}

/// Lets the children of a cgroup of version 2 have the controllers of the settings.
fn enable(folder: &Folder, settings: &[CgroupSetting]) -> Result<(), CgroupError> {
    let name = "cgroup.subtree_control";
    let enabled = folder
        .read(name)
        .map_err(|error| of_shared(folder, error))?;
    let wanted = settings.iter().map(CgroupSetting::controller);
    for controller in wanted.filter(|name| needs_enabling(name)) {
        if enabled.split_whitespace().any(|name| name == controller) {
            continue;
        }
        let file = folder
            .open_file(OsStr::new(name), OFlags::WRONLY)
            .map_err(|error| of_shared(folder, error))?;
        write(&file, format!("+{controller}").as_bytes()).map_err(|errno| match errno {
            Errno::NODEV => FolderError::Gone(folder.path().to_owned()).into(),
            _ => CgroupError::Enable(folder.path().to_owned(), controller.to_owned(), errno),
        })?;
    }
    Ok(())
}

/// A cpuset of version 1 begins empty, and nobody can enter it: it takes what the one above has
/// (`Documentation/admin-guide/cgroup-v1/cpusets.rst`).
fn inherit_cpuset(above: &Folder, folder: &Folder) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if !folder.has(OsStr::new(name)) || !folder.read(name)?.trim().is_empty() {
            continue;
        }
        let value = above.read(name).map_err(|error| of_shared(above, error))?;
        let file = folder.open_file(OsStr::new(name), OFlags::WRONLY)?;
        write(&file, value.trim().as_bytes()).map_err(|errno| CgroupError::Value {
            file: name.to_owned(),
            value: value.trim().to_owned(),
            folder: folder.path().to_owned(),
            errno,
        })?;
    }
    Ok(())
}

impl Cgroups {
    /// Moves this process into them.
    pub(crate) fn enter(&self) -> Result<(), CgroupError> {
        for (entrance, path) in &self.entrances {
            // 0 is whoever writes (`Documentation/admin-guide/cgroup-v2.rst`).
            write(entrance, b"0").map_err(|errno| CgroupError::Enter(path.clone(), errno))?;
        }
        Ok(())
    }

    /// Moves this process back to where it was, so that they can be removed.
    pub(crate) fn leave(&self) {
        for exit in &self.exits {
            // The error that led here is told; a cgroup that cannot be left stays.
            let _ = write(exit, b"0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_whatever_else_there_is() {
        let text = "\
24 1 0:22 / /proc rw - proc proc rw
garbage
30 24 0:26 /../.. /old rw - cgroup cgroup rw,cpu,cpuacct
31 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 24 0:27 / /a\\040b rw - cgroup2 cgroup2 rw,nsdelegate
33 24 0:28 / - cgroup";
        let points: Vec<PathBuf> = cgroup_mounts(text)
            .into_iter()
            .map(|mount| mount.point)
            .collect();
        let expected = ["/sys/fs/cgroup/cpu,cpuacct", "/a b", "/old"].map(PathBuf::from);
        assert_eq!(points, expected);
    }

    #[test]
    fn own_cgroup_is_found_by_a_controller() {
        let text = "9:name=systemd:/a\n4:cpu,cpuacct:/b:c\nbroken\n1:pids:/\n0::/d\n";
        for (controller, path) in [
            ("cpuacct", Some("b:c")),
            ("pids", Some("")),
            ("", Some("d")),
            ("memory", None),
        ] {
            assert_eq!(own_cgroup(text, controller), path, "{controller:?}");
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        for (text, path) in [
            ("a\\", "a\\"),
            ("\\04", "\\04"),
            ("\\999", "\\999"),
            ("\\134", "\\"),
        ] {
            assert_eq!(unescape(text), PathBuf::from(path));
        }
    }
}
