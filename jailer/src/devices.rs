//! The devices of a jail.

use std::ffi::OsStr;
use std::fs::read_to_string;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat,
};
use rustix::io::Errno;

use crate::folder::Folder;
use crate::undo::Undo;

/// The major number of `/proc/misc`: `MISC_MAJOR` of `include/uapi/linux/major.h`.
const MISC: u32 = 10;

/// The character device of `/dev/urandom`: `Documentation/admin-guide/devices.txt`.
const URANDOM: (u32, u32) = (1, 9);

/// Why a jail lacks a device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("cannot read /proc/misc, which tells the devices' numbers")]
    Misc(#[source] io::Error),
    #[error("{} exists: the id is occupied; choose another, or remove what is left of that jail", .0.display())]
    Occupied(PathBuf),
    #[error("cannot make the device {}", .0.display())]
    Make(PathBuf, #[source] Errno),
    #[error("{} was exchanged while it was made: keep others from writing to the jail", .0.display())]
    Exchanged(PathBuf),
}

/// A device that this kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    name: &'static str,
    /// Whether it is in `/dev/net`.
    pub(crate) of_networks: bool,
    number: (u32, u32),
}

/// What a launcher may need, whether it is in `/dev/net`, and the minor number that it has even before its module is
/// loaded, which an open of the device has the kernel do (`TUN_MINOR` and `KVM_MINOR` of `include/linux/miscdevice.h`).
const NAMES: [(&str, bool, Option<u32>); 3] = [
    ("tun", true, Some(200)),
    ("kvm", false, Some(232)),
    ("userfaultfd", false, None),
];

/// The devices of this kernel, and the names of those that it lacks.
pub(crate) fn known() -> Result<(Vec<Device>, Vec<&'static str>), DeviceError> {
    let misc = read_to_string("/proc/misc").map_err(DeviceError::Misc)?;
    Ok(select(&misc))
}

fn select(misc: &str) -> (Vec<Device>, Vec<&'static str>) {
    let mut devices = vec![Device {
        name: "urandom",
        of_networks: false,
        number: URANDOM,
    }];
    let mut missing = Vec::new();
    for (name, of_networks, reserved) in NAMES {
        let minor = misc.lines().find_map(|line| {
            let (minor, named) = line.trim().split_once(' ')?;
            (named == name).then(|| minor.parse().ok())?
        });
        match minor.or(reserved) {
            Some(minor) => devices.push(Device {
                name,
                of_networks,
                number: (MISC, minor),
            }),
            None => missing.push(name),
        }
    }
    (devices, missing)
}

impl Device {
    /// Makes it in a folder, for the jail's user alone.
    pub(crate) fn make(
        &self,
        folder: &Folder,
        owner: (Uid, Gid),
        undo: &mut Undo,
    ) -> Result<(), DeviceError> {
        let path = folder.path().join(self.name);
        let number = makedev(self.number.0, self.number.1);
        let mode = Mode::from_raw_mode(0o600);
        let failed = |error| DeviceError::Make(path.clone(), error);
        match mknodat(folder, self.name, FileType::CharacterDevice, mode, number) {
            Err(Errno::EXIST) => return Err(DeviceError::Occupied(path)),
            result => result.map_err(failed)?,
        }
        // The owner is changed of what is open and was looked at, not of what a name leads to by then.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(folder, self.name, flags, Mode::empty()).map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        let is_it = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == number
            && stat.st_nlink == 1;
        if !is_it {
            return Err(DeviceError::Exchanged(path));
        }
        undo.file(folder, OsStr::new(self.name), &stat);
        let (uid, gid) = owner;
        chownat(fd.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_those_of_the_kernel() {
        for (misc, expected, lacking) in [
            (
                "201 tun\n 59 userfaultfd\n233 kvm",
                [201, 233, 59].as_slice(),
                None,
            ),
            // Modules that are not loaded yet, and lines that are none.
            (
                "59 userfaultfd\n233 kvm-like\nx kvm\nbroken",
                &[200, 232, 59],
                None,
            ),
            ("", &[200, 232], Some("userfaultfd")),
        ] {
            let (devices, missing) = select(misc);
            let numbers: Vec<_> = devices.iter().map(|device| device.number).collect();
            let expected = expected.iter().map(|minor| (MISC, *minor));
            let expected: Vec<_> = [URANDOM].into_iter().chain(expected).collect();
            assert_eq!(numbers, expected, "{misc:?}");
            assert_eq!(missing, Vec::from_iter(lacking), "{misc:?}");
        }
    }
}
