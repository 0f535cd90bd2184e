//! A machine's disks and its source of entropy, validated.

use crate::api::drive::{Drive, Entropy};
use crate::api::request::Fault;

/// The devices that a machine has because it was asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peripherals {
    /// The disks. That of the root file system is the first, so that Linux calls it `vda`.
    drives: Vec<Drive>,
    /// The source of entropy.
    pub entropy: Option<Entropy>,
}

impl Peripherals {
    /// The disks, in the order in which the guest finds them.
    #[must_use]
    pub fn drives(&self) -> &[Drive] {
        &self.drives
    }

    /// Adds a disk, or puts it in the place of the one with its name.
    ///
    /// # Errors
    /// There is a root device already.
    pub fn put_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        let mut others = self.drives.iter();
        if drive.is_root_device
            && let Some(root) =
                others.find(|other| other.is_root_device && other.drive_id != drive.drive_id)
        {
            return Err(Fault::new(format!(
                "is_root_device: the drive {:?} is the root device already",
                root.drive_id
            )));
        }
        let named = |other: &Drive| other.drive_id == drive.drive_id;
        match self.drives.iter().position(named) {
            Some(index) => self.drives[index] = drive,
            None => self.drives.push(drive),
        }
        // Stable: the others stay in the order in which they came.
        self.drives.sort_by_key(|drive| !drive.is_root_device);
        Ok(())
    }

    /// The disk of this name.
    pub fn drive_mut(&mut self, id: &str) -> Option<&mut Drive> {
        self.drives.iter_mut().find(|drive| drive.drive_id == id)
    }

    /// A kernel's command line with what it is told of its root file system. What is after ` -- ` is not the
    /// kernel's.
    #[must_use]
    pub fn cmdline(&self, cmdline: &str) -> String {
        let Some(root) = self.drives.first().filter(|drive| drive.is_root_device) else {
            return cmdline.to_owned();
        };
        let arguments = root.root_arguments();
        match cmdline.split_once(" -- ") {
            Some((kernel, init)) => format!("{kernel} {arguments} -- {init}"),
            None => format!("{cmdline} {arguments}").trim_start().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(id: &str, root: bool) -> Drive {
        let text = format!(r#"{{"drive_id":"{id}","is_root_device":{root},"path_on_host":"f"}}"#);
        let drive: Drive = serde_json::from_str(&text).expect("well-formed");
        drive.check().expect("valid")
    }

    fn names(peripherals: &Peripherals) -> Vec<&str> {
        let drives = peripherals.drives().iter();
        drives.map(|drive| &*drive.drive_id).collect()
    }

    #[test]
    fn root_device_comes_first_and_is_one() {
        let mut peripherals = Peripherals::default();
        for (id, root) in [("a", false), ("b", false), ("c", true)] {
            peripherals.put_drive(drive(id, root)).expect("valid");
        }
        assert_eq!(names(&peripherals), ["c", "a", "b"]);
        let message = peripherals.put_drive(drive("a", true)).expect_err("two");
        assert!(message.to_string().contains("\"c\""), "{message}");
        peripherals.put_drive(drive("c", false)).expect("replaced");
        peripherals.put_drive(drive("b", true)).expect("the only");
        assert_eq!(names(&peripherals), ["b", "c", "a"]);
    }

    #[test]
    fn cmdline_gets_the_root_before_what_is_for_init() {
        let mut peripherals = Peripherals::default();
        assert_eq!(peripherals.cmdline("quiet"), "quiet");
        peripherals.put_drive(drive("a", false)).expect("valid");
        assert_eq!(peripherals.cmdline("quiet"), "quiet");
        peripherals.put_drive(drive("b", true)).expect("valid");
        assert_eq!(peripherals.cmdline("quiet"), "quiet root=/dev/vda rw");
        assert_eq!(peripherals.cmdline(""), "root=/dev/vda rw");
        assert_eq!(peripherals.cmdline("a -- b"), "a root=/dev/vda rw -- b");
    }
}
