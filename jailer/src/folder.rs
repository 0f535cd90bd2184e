//! Folders as descriptors: nothing below them is resolved through a symbolic link or `..`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fchmod, fstat, fstatfs, mkdirat,
    openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use crate::undo::Undo;

/// As many links as the kernel follows in one path: `MAXSYMLINKS` of `include/linux/namei.h`.
const MAX_LINKS: u32 = 40;

/// `PROC_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const PROC_MAGIC: i64 = 0x9fa0;

/// `PROC_ROOT_INO` of `include/linux/proc_ns.h`: the inode of procfs's root.
const PROC_ROOT_INODE: u64 = 1;

/// How often folders are made that others take away. Each time another jailer's start has failed, or somebody
/// plays: then it ends.
const MAX_ATTEMPTS: u32 = 100;

/// The most that is read of a file of the kernel's.
const MAX_FILE: u64 = 1 << 20;

/// Why something below a folder cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// A symbolic link is where none may be.
    #[error(
        "{} is a symbolic link to {}: whoever made it could lead the jailer anywhere; name the place itself (realpath shows it)",
        .0.display(), .1.display()
    )]
    Link(PathBuf, PathBuf),
    /// A path goes upwards.
    #[error("{} contains `..`: name the place without it (realpath shows it)", .0.display())]
    Upwards(PathBuf),
    /// A file is where a folder must be.
    #[error("{} is not a directory: remove it, or choose another place", .0.display())]
    NotAFolder(PathBuf),
    /// Nothing is there.
    #[error("{} does not exist: make it, or name another", .0.display())]
    Missing(PathBuf),
    /// A folder was there, and is not any more.
    #[error("{} was taken away while the jailer ran, time and again: keep others from writing there", .0.display())]
    Gone(PathBuf),
    /// The kernel refuses for another reason.
    #[error("cannot {} {}", .0, .1.display())]
    Other(&'static str, PathBuf, #[source] Errno),
}

/// An open folder, and what to call it in messages.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens one component below a folder, never through a link.
fn open_beneath(folder: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let mode = Mode::empty();
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(folder, name, flags, mode, how) {
        // Before Linux 5.6, and where a container's filter does not know the call. A single component
        // without `..` and without links is beneath its folder by itself.
        Err(Errno::NOSYS | Errno::PERM) => openat(folder, name, flags | OFlags::NOFOLLOW, mode),
        result => result,
    }
}

impl Folder {
    /// The folder `/`, or the current one.
    fn start(path: &Path) -> Result<Self, FolderError> {
        let start = Path::new(if path.is_absolute() { "/" } else { "." });
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, start, flags, Mode::empty())
            .map_err(|error| FolderError::Other("open", start.to_owned(), error))?;
        Ok(Self {
            fd,
            path: start.to_owned(),
        })
    }

    /// Opens a folder by its path, one component after the other.
    ///
    /// # Errors
    /// The first component that is a link, is no folder, or is not there; a path with `..`.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        let mut folder = Self::start(path)?;
        for name in names(path)? {
            folder = folder.enter(name)?;
        }
        Ok(folder)
    }

    /// The same, and makes the components that are missing.
    pub(crate) fn open_or_make(path: &Path, undo: &mut Undo) -> Result<Self, FolderError> {
        let mut folder = Self::start(path)?;
        for name in names(path)? {
            folder = folder.enter_or_make(name, undo)?.0;
        }
        Ok(folder)
    }

    /// The current folder, to be called `path`.
    pub(crate) fn current(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, ".", flags, Mode::empty())?;
        let path = path.to_owned();
        Ok(Self { fd, path })
    }

    /// What the folder was called.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The facts about the folder itself.
    pub(crate) fn stat(&self) -> Result<Stat, FolderError> {
        fstat(&self.fd).map_err(|error| FolderError::Other("look at", self.path.clone(), error))
    }

    /// Opens a folder in this one.
    pub(crate) fn enter(&self, name: &OsStr) -> Result<Self, FolderError> {
        Ok(Self {
            fd: self.open_file(name, OFlags::RDONLY | OFlags::DIRECTORY)?,
            path: self.path.join(name),
        })
    }

    /// Opens a folder in this one, and makes it if it is not there: for everybody to enter, for the maker to
    /// write. Tells whether it was made.
    pub(crate) fn enter_or_make(
        &self,
        name: &OsStr,
        undo: &mut Undo,
    ) -> Result<(Self, bool), FolderError> {
        match mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let folder = self.enter(name)?;
                undo.folder(self, name, &folder.stat()?);
                // Whatever the umask is.
                fchmod(&folder.fd, Mode::from_raw_mode(0o755))
                    .map_err(|error| FolderError::Other("make", folder.path.clone(), error))?;
                Ok((folder, true))
            }
            Err(Errno::EXIST) => match self.enter(name) {
                Ok(folder) => Ok((folder, false)),
                Err(FolderError::Missing(path)) => Err(FolderError::Gone(path)),
                Err(error) => Err(error),
            },
            // This folder itself is removed.
            Err(Errno::NOENT) => Err(FolderError::Gone(self.path.clone())),
            Err(error) => Err(FolderError::Other("make", self.path.join(name), error)),
        }
    }

    /// Opens a file in this folder.
    pub(crate) fn open_file(&self, name: &OsStr, flags: OFlags) -> Result<OwnedFd, FolderError> {
        open_beneath(self.as_fd(), name, flags).map_err(|error| self.blame(name, error))
    }

    /// Makes a file that nobody may use yet.
    ///
    /// # Errors
    /// `EXIST` when the name is taken.
    pub(crate) fn make_file(&self, name: &OsStr, undo: &mut Undo) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = openat(
            &self.fd,
            name,
            flags | OFlags::CLOEXEC,
            Mode::from_raw_mode(0),
        )?;
        undo.file(self, name, &fstat(&fd)?);
        Ok(fd)
    }

    /// Whether there is something of that name, links included.
    pub(crate) fn has(&self, name: &OsStr) -> bool {
        statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// What a file of the kernel's says.
    pub(crate) fn read(&self, name: &str) -> Result<String, FolderError> {
        let fd = self.open_file(OsStr::new(name), OFlags::RDONLY)?;
        let mut text = String::new();
        let read = File::from(fd).take(MAX_FILE).read_to_string(&mut text);
        read.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
            FolderError::Other("read", self.path.join(name), errno)
        })?;
        Ok(text)
    }

    /// Which of the reasons an error has.
    fn blame(&self, name: &OsStr, error: Errno) -> FolderError {
        let path = self.path.join(name);
        let kind = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode));
        match error {
            Errno::LOOP | Errno::NOTDIR if kind == Ok(FileType::Symlink) => {
                FolderError::Link(path, self.target(name).unwrap_or_default())
            }
            Errno::NOTDIR => FolderError::NotAFolder(path),
            Errno::NOENT => FolderError::Missing(path),
            _ => FolderError::Other("open", path, error),
        }
    }

    fn target(&self, name: &OsStr) -> Result<PathBuf, Errno> {
        let target = readlinkat(&self.fd, name, Vec::new())?;
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    /// Whether only root can have put the link `name` here.
    ///
    /// In procfs the owner of a link tells nothing: `/proc/PID/cwd` of a process that may not be dumped
    /// is root's, and leads where that process went. There only the links of its root are, such as
    /// `self`; the kernel makes them.
    fn is_of_root(&self, name: &OsStr) -> bool {
        let folder = fstat(&self.fd);
        if is_proc(self) {
            return folder.is_ok_and(|folder| folder.st_ino == PROC_ROOT_INODE);
        }
        let link = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        matches!((link, folder), (Ok(link), Ok(folder))
            if link.st_uid == 0 && folder.st_uid == 0 && folder.st_mode & 0o022 == 0)
    }
}

/// Makes folders that jails share, and makes them once more when they are taken away meanwhile: by a jailer
/// whose start has failed, which removes what it made and is still empty.
pub(crate) fn make_shared<T, E>(
    mut make: impl FnMut() -> Result<T, E>,
    is_gone: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 1..MAX_ATTEMPTS {
        match make() {
            Err(error) if is_gone(&error) => {}
            result => return result,
        }
    }
    make()
}

/// The names of a path's components.
fn names(path: &Path) -> Result<Vec<&OsStr>, FolderError> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(Ok(name)),
            Component::ParentDir => Some(Err(FolderError::Upwards(path.to_owned()))),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Opens a file through no links but those that root alone can have made, such as `/var/run`, and the
/// kernel's own in `/proc/PID/ns`.
///
/// # Errors
/// The first component that is another's link, or is not there; a path with `..`.
pub(crate) fn open_through_roots_links(path: &Path) -> Result<OwnedFd, FolderError> {
    let mut folder = Folder::start(path)?;
    let mut left: VecDeque<OsString> = names(path)?.into_iter().map(OsStr::to_owned).collect();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        let opened = if name == ".." {
            // Of a link that root made.
            openat(
                &folder,
                "..",
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| FolderError::Other("leave", folder.path.clone(), error))
        } else {
            folder.open_file(&name, OFlags::RDONLY | OFlags::NONBLOCK)
        };
        match opened {
            Ok(fd) if left.is_empty() => return Ok(fd),
            Ok(fd) => {
                folder = Folder {
                    fd,
                    path: folder.path.join(name),
                };
            }
            Err(FolderError::Link(..)) if left.is_empty() && is_proc(&folder) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                return openat(&folder, &name, flags, Mode::empty())
                    .map_err(|error| FolderError::Other("open", folder.path.join(&name), error));
            }
            Err(FolderError::Link(link, target)) => {
                links += 1;
                if links > MAX_LINKS || !folder.is_of_root(&name) {
                    return Err(FolderError::Link(link, target));
                }
                for component in target.components().rev() {
                    match component {
                        Component::Normal(name) => left.push_front(name.to_owned()),
                        Component::ParentDir => left.push_front(OsString::from("..")),
                        _ => {}
                    }
                }
                if target.is_absolute() {
                    folder = Folder::start(&target)?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(FolderError::Missing(path.to_owned()))
}

fn is_proc(folder: &Folder) -> bool {
    fstatfs(folder).is_ok_and(|facts| facts.f_type == PROC_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().expect("a folder");
        let path = scratch.path().canonicalize().expect("a path");
        std::fs::create_dir_all(path.join("a/b/c")).expect("folders");
        (scratch, path)
    }

    #[test]
    fn links_are_refused_at_every_component() {
        for component in ["a", "a/b", "a/b/c"] {
            let (_scratch, path) = scratch();
            let planted = path.join(component);
            std::fs::rename(&planted, path.join("aside")).expect("moved");
            symlink(path.join("aside"), &planted).expect("planted");
            let error = Folder::open(&path.join("a/b/c")).expect_err("a link");
            assert!(
                matches!(&error, FolderError::Link(link, _) if *link == planted),
                "{error}"
            );
        }
    }

    #[test]
    fn nothing_goes_upwards_or_through_files() {
        let (_scratch, path) = scratch();
        let error = Folder::open(&path.join("a/../a")).expect_err("upwards");
        assert!(matches!(error, FolderError::Upwards(_)), "{error}");
        std::fs::write(path.join("a/f"), "").expect("a file");
        let error = Folder::open(&path.join("a/f/g")).expect_err("a file");
        assert!(matches!(error, FolderError::NotAFolder(_)), "{error}");
        let error = Folder::open(&path.join("a/x")).expect_err("nothing");
        assert!(matches!(error, FolderError::Missing(_)), "{error}");
    }

    #[test]
    fn made_folders_are_undone_and_others_stay() {
        let (_scratch, path) = scratch();
        let mut undo = Undo::default();
        Folder::open_or_make(&path.join("a/b/new/er"), &mut undo).expect("made");
        assert!(path.join("a/b/new/er").is_dir());
        drop(undo);
        assert!(path.join("a/b").is_dir() && !path.join("a/b/new").exists());
    }

    #[test]
    fn links_of_root_are_followed_to_a_namespace_and_others_not() {
        open_through_roots_links(Path::new("/proc/self/ns/net")).expect("the kernel's own links");
        let (_scratch, path) = scratch();
        symlink("/proc/self", path.join("planted")).expect("planted");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("ours");
        let error = open_through_roots_links(&path.join("planted/ns/net")).expect_err("planted");
        assert!(matches!(error, FolderError::Link(..)), "{error}");
    }

    #[test]
    fn links_that_a_process_aims_are_not_roots() {
        let (_scratch, path) = scratch();
        let place = File::open(&path).expect("a folder");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
        for link in [link.as_str(), "/proc/self/cwd", "/proc/self/root"] {
            let error = open_through_roots_links(&Path::new(link).join("proc")).expect_err(link);
            assert!(matches!(error, FolderError::Link(..)), "{link}: {error}");
        }
    }
}
