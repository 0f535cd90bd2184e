//! The jail's network namespace, and its file system with nothing else in it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fstatfs, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::folder::{Folder, FolderError, open_through_roots_links};
use crate::process;

/// `NSFS_MAGIC` of `include/uapi/linux/magic.h`.
const NAMESPACE_MAGIC: i64 = 0x6e73_6673;

/// Why a process has not the namespaces that it is to have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    #[error("--netns")]
    Folder(#[source] FolderError),
    #[error("--netns {} is no network namespace: give a file such as /run/netns/NAME (ip netns add NAME)", .0.display())]
    NotANetwork(PathBuf),
    #[error("cannot join --netns {}", .0.display())]
    Join(PathBuf, #[source] Errno),
    #[error("cannot leave the mount namespace")]
    Unshare(#[source] io::Error),
    #[error(transparent)]
    Again(FolderError),
    #[error("{} was exchanged while the jailer ran: keep others from writing to what lies above", .0.display())]
    Exchanged(PathBuf),
    #[error("cannot make {} the root: {}", .0.display(), .1)]
    Root(PathBuf, &'static str, #[source] Errno),
}

/// A network namespace, opened.
#[derive(Debug)]
pub(crate) struct Network {
    fd: OwnedFd,
    path: PathBuf,
}

impl Network {
    /// Opens it. The kernel looks at the kind when it is joined.
    pub(crate) fn open(path: &Path) -> Result<Self, NamespaceError> {
        let fd = open_through_roots_links(path).map_err(NamespaceError::Folder)?;
        if fstatfs(&fd).is_ok_and(|facts| facts.f_type == NAMESPACE_MAGIC) {
            let path = path.to_owned();
            Ok(Self { fd, path })
        } else {
            Err(NamespaceError::NotANetwork(path.to_owned()))
        }
    }

    /// Moves this process into it.
    pub(crate) fn join(&self) -> Result<(), NamespaceError> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.fd.as_fd(), kind).map_err(|error| match error {
            Errno::INVAL => NamespaceError::NotANetwork(self.path.clone()),
            _ => NamespaceError::Join(self.path.clone(), error),
        })
    }
}

/// The only folder of the file system that lies above a jail's.
const BELOW: &str = "jail";

/// A file system that holds an empty folder and is mounted nowhere yet. ramfs is part of every kernel.
fn empty_file_system() -> Result<OwnedFd, Errno> {
    let context = fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let nothing = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, nothing)?;
    mkdirat(&mount, BELOW, Mode::RWXU)?;
    Ok(mount)
}

/// Makes a folder the root of this process in a new mount namespace, in which nothing is mounted but an empty
/// file system and, in that, the folder.
///
/// The folder is not the namespace's own root, since whoever has another root may make no user namespace
/// (`create_user_ns` of `kernel/user_namespace.c`), in which he would have every capability: over namespaces,
/// mounts and networks of his own, and so over much more of the kernel.
///
/// Returns the folder as it is there, with what is mounted in it. Descriptors from before may not lead to that any
/// more: where this process was the last in the old namespace, that is gone, and its mounts with it.
pub(crate) fn confine(root: &Folder) -> Result<Folder, NamespaceError> {
    process::unshare(UnshareFlags::NEWNS).map_err(NamespaceError::Unshare)?;
    let failed = |step| move |error| NamespaceError::Root(root.path().to_owned(), step, error);
    // What is mounted outside from now on may arrive until the old root is gone; nothing goes back.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failed("its mounts cannot be parted from the host's"))?;
    // Descriptors from before belong to the old namespace, in which nothing can be mounted from here: the
    // path is walked once more and must lead to the same folder.
    let again = Folder::open(root.path()).map_err(NamespaceError::Again)?;
    let identity = |folder: &Folder| {
        let stat = folder.stat().map_err(NamespaceError::Again)?;
        Ok((stat.st_dev, stat.st_ino))
    };
    if identity(&again)? != identity(root)? {
        return Err(NamespaceError::Exchanged(root.path().to_owned()));
    }
    let tree = open_tree(
        &again,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE,
    )
    .map_err(failed("it cannot be bound"))?;
    let above = empty_file_system().map_err(failed("nothing empty can lie above it"))?;
    let (from, to) = (
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    );
    move_mount(&above, "", &again, "", from | to)
        .and_then(|()| move_mount(&tree, "", &above, BELOW, from))
        .map_err(failed("it cannot be mounted"))?;
    fchdir(&above).map_err(failed("it cannot be entered"))?;
    // The old root comes to lie above the new one in the same place, so that no folder is needed for it.
    pivot_root(".", ".").map_err(failed("it cannot be changed to"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("the old root does not go"))?;
    fchdir(&tree)
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"))
        .and_then(|()| Folder::current(root.path()))
        .map_err(failed("it cannot be entered"))
}
