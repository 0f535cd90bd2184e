//! A machine's disks, persistent memories, network interfaces with what is on them, socket device, balloon and source
//! of entropy, validated.

use arch::acpi::VirtioMmio;

use crate::api::balloon::Balloon;
use crate::api::body::MmdsConfig;
use crate::api::drive::{Drive, Entropy};
use crate::api::network::NetworkInterface;
use crate::api::pmem::Pmem;
use crate::api::request::Fault;
use crate::api::vsock::Vsock;
use crate::mmds::DEFAULT_ADDRESS;

/// The devices that a machine has because it was asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peripherals {
    /// The disks. That of the root file system is the first, so that Linux calls it `vda`.
    drives: Vec<Drive>,
    /// The persistent memories, in the order in which they were asked for.
    pmem: Vec<Pmem>,
    /// The network interfaces, in the order in which they were asked for.
    interfaces: Vec<NetworkInterface>,
    /// The metadata service on some of them.
    mmds: Option<MmdsConfig>,
    /// The socket device.
    pub vsock: Option<Vsock>,
    /// The memory balloon.
    pub balloon: Option<Balloon>,
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
        if drive.is_root_device {
            self.check_root("is_root_device", "drive", &drive.drive_id)?;
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

    /// Refuses a root device beside the one that there is, unless it takes its place.
    fn check_root(&self, field: &str, kind: &str, id: &str) -> Result<(), Fault> {
        let drives = self.drives.iter().filter(|drive| drive.is_root_device);
        let drives = drives.map(|drive| ("drive", &drive.drive_id));
        let pmem = self.pmem.iter().filter(|pmem| pmem.root_device);
        let pmem = pmem.map(|pmem| ("persistent memory", &pmem.id));
        let mut others = drives.chain(pmem);
        match others.find(|other| *other != (kind, &id.to_owned())) {
            None => Ok(()),
            Some((kind, root)) => Err(Fault::new(format!(
                "{field}: the {kind} {root:?} is the root device already"
            ))),
        }
    }

    /// The persistent memories, in the order in which the guest finds them.
    #[must_use]
    pub fn pmem(&self) -> &[Pmem] {
        &self.pmem
    }

    /// Adds a persistent memory, or puts it in the place of the one with its name.
    ///
    /// # Errors
    /// There is a root device already.
    pub fn put_pmem(&mut self, pmem: Pmem) -> Result<(), Fault> {
        if pmem.root_device {
            self.check_root("root_device", "persistent memory", &pmem.id)?;
        }
        match self.pmem.iter().position(|other| other.id == pmem.id) {
            Some(index) => self.pmem[index] = pmem,
            None => self.pmem.push(pmem),
        }
        Ok(())
    }

    /// The persistent memory of this name.
    pub fn pmem_mut(&mut self, id: &str) -> Option<&mut Pmem> {
        self.pmem.iter_mut().find(|pmem| pmem.id == id)
    }

    /// The disk of this name.
    pub fn drive_mut(&mut self, id: &str) -> Option<&mut Drive> {
        self.drives.iter_mut().find(|drive| drive.drive_id == id)
    }

    /// The network interfaces, in the order in which the guest finds them.
    #[must_use]
    pub fn interfaces(&self) -> &[NetworkInterface] {
        &self.interfaces
    }

    /// Adds a network interface, or puts it in the place of the one with its name.
    ///
    /// # Errors
    /// Another has its address or its tap.
    pub fn put_interface(&mut self, interface: NetworkInterface) -> Result<(), Fault> {
        let named = |other: &NetworkInterface| other.iface_id == interface.iface_id;
        for other in self.interfaces.iter().filter(|other| !named(other)) {
            let id = &other.iface_id;
            if other.host_dev_name == interface.host_dev_name {
                return Err(Fault::new(format!(
                    "host_dev_name: the interface {id:?} has this tap already"
                )));
            }
            if let Some(mac) = interface
                .guest_mac
                .filter(|mac| other.guest_mac == Some(*mac))
            {
                return Err(Fault::new(format!(
                    "guest_mac: the interface {id:?} has the address {mac} already"
                )));
            }
        }
        match self.interfaces.iter().position(named) {
            Some(index) => self.interfaces[index] = interface,
            None => self.interfaces.push(interface),
        }
        Ok(())
    }

    /// The network interface of this name.
    pub fn interface_mut(&mut self, id: &str) -> Option<&mut NetworkInterface> {
        let mut interfaces = self.interfaces.iter_mut();
        interfaces.find(|interface| interface.iface_id == id)
    }

    /// The metadata service, with its address.
    #[must_use]
    pub fn mmds(&self) -> Option<&MmdsConfig> {
        self.mmds.as_ref()
    }

    /// Puts the metadata service on network interfaces, which must be there already.
    ///
    /// # Errors
    /// None is named, or one that there is not.
    pub fn put_mmds(&mut self, config: MmdsConfig) -> Result<(), Fault> {
        config.check()?;
        if config.network_interfaces.is_empty() {
            return Err(Fault::new(
                "network_interfaces: the list is empty: name those through which the guest is to reach its metadata",
            ));
        }
        for id in &config.network_interfaces {
            if !self
                .interfaces
                .iter()
                .any(|interface| interface.iface_id == *id)
            {
                return Err(Fault::new(format!(
                    "network_interfaces: there is no network interface {id:?}: PUT it first"
                )));
            }
        }
        self.mmds = Some(MmdsConfig {
            ipv4_address: config.ipv4_address.or(Some(DEFAULT_ADDRESS)),
            ..config
        });
        Ok(())
    }

    /// A kernel's command line with what it is told of its root file system, and of the devices at `places`. What is
    /// after ` -- ` is not the kernel's.
    #[must_use]
    pub fn cmdline(&self, cmdline: &str, places: &[VirtioMmio]) -> String {
        let drive = self.drives.first().filter(|drive| drive.is_root_device);
        let pmem = (0..).zip(&self.pmem).find(|(_, pmem)| pmem.root_device);
        let root = match (drive, pmem) {
            (Some(drive), _) => Some(drive.root_arguments()),
            (None, Some((index, pmem))) => Some(pmem.root_arguments(index)),
            (None, None) => None,
        };
        let devices = places.iter().map(VirtioMmio::argument);
        let arguments: Vec<_> = root.into_iter().chain(devices).collect();
        if arguments.is_empty() {
            return cmdline.to_owned();
        }
        let arguments = arguments.join(" ");
        match cmdline.split_once(" -- ") {
            Some((kernel, init)) => format!("{kernel} {arguments} -- {init}"),
            None => format!("{cmdline} {arguments}").trim_start().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

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

    fn pmem(id: &str, root: bool, read_only: bool) -> Pmem {
        Pmem {
            id: id.to_owned(),
            path_on_host: "f".into(),
            root_device: root,
            read_only,
            rate_limiter: None,
        }
    }

    #[test]
    fn root_device_is_one_among_disks_and_memories() {
        let mut peripherals = Peripherals::default();
        peripherals.put_drive(drive("a", false)).expect("valid");
        peripherals
            .put_pmem(pmem("p", false, false))
            .expect("valid");
        peripherals.put_pmem(pmem("a", true, true)).expect("valid");
        assert_eq!(
            peripherals.cmdline("quiet", &[]),
            "quiet root=/dev/pmem1 ro"
        );
        // Of the same name, and another device all the same.
        let message = peripherals.put_drive(drive("a", true)).expect_err("two");
        let expected = "is_root_device: the persistent memory \"a\" is the root device already";
        assert_eq!(message.to_string(), expected);
        let message = peripherals.put_pmem(pmem("p", true, false));
        let message = message.expect_err("two").to_string();
        assert!(message.starts_with("root_device: the persistent memory \"a\""));
        peripherals
            .put_pmem(pmem("a", true, false))
            .expect("the same");
        assert_eq!(
            peripherals.cmdline("a -- b", &[]),
            "a root=/dev/pmem1 rw -- b"
        );
        peripherals
            .put_pmem(pmem("a", false, false))
            .expect("replaced");
        peripherals.put_drive(drive("a", true)).expect("the only");
        let message = peripherals.put_pmem(pmem("a", true, false));
        let message = message.expect_err("two").to_string();
        assert!(message.contains("the drive \"a\""), "{message}");
        assert_eq!(peripherals.cmdline("", &[]), "root=/dev/vda rw");
        let names: Vec<_> = peripherals.pmem().iter().map(|pmem| &*pmem.id).collect();
        assert_eq!(names, ["p", "a"]);
    }

    #[test]
    fn interfaces_share_neither_a_tap_nor_an_address() {
        let interface = |id: &str, tap: &str, mac: u8| -> NetworkInterface {
            let text = format!(
                r#"{{"iface_id":"{id}","host_dev_name":"{tap}","guest_mac":"aa:fc:00:00:00:{mac:02x}"}}"#
            );
            serde_json::from_str(&text).expect("well-formed")
        };
        let mut peripherals = Peripherals::default();
        for (id, tap, mac) in [("a", "t0", 0), ("b", "t1", 1), ("a", "t0", 2)] {
            let put = peripherals.put_interface(interface(id, tap, mac));
            put.expect("valid");
        }
        let names: Vec<_> = (peripherals.interfaces().iter())
            .map(|interface| &*interface.iface_id)
            .collect();
        assert_eq!(names, ["a", "b"]);
        for (tap, mac, part) in [("t1", 3, "host_dev_name"), ("t2", 1, "guest_mac")] {
            let message = peripherals.put_interface(interface("c", tap, mac));
            let message = message.expect_err(part).to_string();
            assert!(
                message.contains(part) && message.contains("\"b\""),
                "{message}"
            );
        }
    }

    #[test]
    fn cmdline_gets_the_root_before_what_is_for_init() {
        let mut peripherals = Peripherals::default();
        assert_eq!(peripherals.cmdline("quiet", &[]), "quiet");
        peripherals.put_drive(drive("a", false)).expect("valid");
        assert_eq!(peripherals.cmdline("quiet", &[]), "quiet");
        peripherals.put_drive(drive("b", true)).expect("valid");
        assert_eq!(peripherals.cmdline("quiet", &[]), "quiet root=/dev/vda rw");
        assert_eq!(peripherals.cmdline("", &[]), "root=/dev/vda rw");
        assert_eq!(
            peripherals.cmdline("a -- b", &[]),
            "a root=/dev/vda rw -- b"
        );
    }

    #[test]
    fn cmdline_gets_the_places_of_devices_before_what_is_for_init() {
        let place = |index: u32| VirtioMmio {
            base: GuestAddress(0xc000_1000 + u64::from(index) * 0x1000),
            size: 0x1000,
            gsi: 5 + index,
        };
        let places = [place(0), place(1)];
        let words = "virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6";
        let mut peripherals = Peripherals::default();
        assert_eq!(peripherals.cmdline("", &places), words);
        let line = peripherals.cmdline("quiet -- 1", &places);
        assert_eq!(line, format!("quiet {words} -- 1"));
        peripherals.put_drive(drive("a", true)).expect("valid");
        let line = peripherals.cmdline("quiet", &places);
        assert_eq!(line, format!("quiet root=/dev/vda rw {words}"));
    }
}
