//! What a failed start takes back.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Uid, fchmod, fchown, statat, unlinkat};

use crate::folder::Folder;

/// What was made, or had other attributes before. Taken back in reverse when dropped; `exec` drops nothing.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    made: Vec<Made>,
}

#[derive(Debug)]
enum Made {
    /// A file or folder.
    Entry {
        folder: OwnedFd,
        name: OsString,
        identity: (u64, u64),
        flags: AtFlags,
    },
    /// Another owner and mode of a folder that was there.
    Attributes { folder: OwnedFd, before: Stat },
}

impl Undo {
    /// A file was made.
    pub(crate) fn file(&mut self, folder: &Folder, name: &OsStr, stat: &Stat) {
        self.entry(folder, name, stat, AtFlags::empty());
    }

    /// A folder was made.
    pub(crate) fn folder(&mut self, folder: &Folder, name: &OsStr, stat: &Stat) {
        self.entry(folder, name, stat, AtFlags::REMOVEDIR);
    }

    fn entry(&mut self, folder: &Folder, name: &OsStr, stat: &Stat, flags: AtFlags) {
        // Without a further descriptor there is nothing to undo with.
        if let Ok(folder) = folder.as_fd().try_clone_to_owned() {
            self.made.push(Made::Entry {
                folder,
                name: name.to_owned(),
                identity: (stat.st_dev, stat.st_ino),
                flags,
            });
        }
    }

    /// A folder that was there gets another owner and mode.
    pub(crate) fn attributes(&mut self, folder: &Folder, before: Stat) {
        if let Ok(folder) = folder.as_fd().try_clone_to_owned() {
            self.made.push(Made::Attributes { folder, before });
        }
    }

    /// The start has succeeded.
    pub(crate) fn keep_all(&mut self) {
        self.made.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for made in self.made.drain(..).rev() {
            // A folder that others have filled meanwhile stays, and the error that led here is told.
            let _ = match made {
                Made::Entry {
                    folder,
                    name,
                    identity,
                    flags,
                } => statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW).and_then(|stat| {
                    if (stat.st_dev, stat.st_ino) == identity {
                        unlinkat(&folder, &name, flags)
                    } else {
                        Ok(())
                    }
                }),
                Made::Attributes { folder, before } => {
                    let owner = Some(Uid::from_raw(before.st_uid));
                    fchown(&folder, owner, Some(Gid::from_raw(before.st_gid)))
                        .and_then(|()| fchmod(&folder, Mode::from_raw_mode(before.st_mode)))
                }
            };
        }
    }
}
