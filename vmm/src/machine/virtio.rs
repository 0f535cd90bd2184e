//! A machine's virtio devices: their places, and what of the host is behind them.
//!
//! Each device has a thread of its own. A flush takes as long as the host's disk does, seconds at worst, and
//! the main thread answers the API meanwhile; the guest's other devices go on, too. A vCPU does not wait
//! either: its notification is an eventfd that the kernel writes without leaving to us.
//!
//! A disk whose `io_engine` is `Async` has many requests under way at once, by a ring of its own
//! ([`Uring`]). Only its thread hands requests to the ring and takes their ends from it; who pauses or resets the disk
//! wakes that thread and waits until nothing is under way.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arch::acpi::VirtioMmio;
use arch::layout;
use arch::memory::MemorySize;
use devices::bus::Bus;
use devices::rate_limiter::RateLimiter;
use devices::virtio::balloon::{self, Command};
use devices::virtio::block::{Block, Image, ImageError, Serial};
use devices::virtio::entropy::Entropy;
use devices::virtio::mmio::{QUEUE_NOTIFY, Registers};
use devices::virtio::net::Net;
use devices::virtio::vsock::Vsock;
use devices::virtio::{Device, Engine, Hold, RegisterPage};
use hypervisor::{Gsi, Vm, Window};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::balloon::{BalloonState, Inflated, Pages};
use super::counts::{Counts, Told};
use super::device_thread::{DeviceThread, Waiting, Waker};
use super::devices::press;
use super::pmem::{self, Mapped, Memory, no_pmem};
use super::sockets::{SocketFile, Sockets, allow_descriptors};
use super::tap::Tap;
use super::{MachineError, host};
use crate::api::balloon::{Balloon, interval};
use crate::api::body::MmdsConfig;
use crate::api::drive::{self, DrivePatch};
use crate::api::network::{NetworkInterface, NetworkInterfacePatch};
use crate::api::pmem::PmemPatch;
use crate::api::request::Fault;
use crate::api::vsock;
use crate::config::Peripherals;
use crate::error::one_line;
use crate::host_clock;
use crate::mmds::{self, Endpoint, Metadata, Service};
use crate::seccomp::{Filters, Role};
use crate::uring::{Uring, UringError};
use crate::vcpu::Ending;

/// The most virtio devices of a machine: as many as there are interrupts for them.
const MAX_DEVICES: usize = layout::VIRTIO_MMIO_GSIS.len();

/// The places of the devices, for the machine's tables and its kernel's command line.
///
/// # Errors
/// There are more devices than places.
pub(crate) fn places(peripherals: &Peripherals) -> Result<Vec<VirtioMmio>, MachineError> {
    let asked = peripherals.drives().len()
        + peripherals.pmem().len()
        + peripherals.interfaces().len()
        + usize::from(peripherals.vsock.is_some())
        + usize::from(peripherals.balloon.is_some())
        + usize::from(peripherals.entropy.is_some());
    if asked > MAX_DEVICES {
        return Err(MachineError::TooManyDevices {
            asked,
            limit: MAX_DEVICES,
        });
    }
    let size = layout::VIRTIO_MMIO_SIZE;
    Ok((0..)
        .zip(layout::VIRTIO_MMIO_GSIS)
        .take(asked)
        .map(|(index, gsi)| VirtioMmio {
            // OK because 15 pages from 3 GiB on are below 4 GiB.
            base: layout::VIRTIO_MMIO.unchecked_add(index * size),
            size: u32::try_from(size).unwrap_or(u32::MAX),
            gsi,
        })
        .collect())
}

/// What of the host is behind a machine's devices.
#[derive(Debug)]
pub(super) struct Backends {
    /// The images of the disks, opened and locked,
    images: Vec<Image>,
    /// the files of the persistent memories, mapped,
    memories: Vec<Mapped>,
    /// the taps of the network interfaces,
    taps: Vec<Tap>,
    /// and the socket of the socket device.
    sockets: Option<(Sockets, SocketFile)>,
    /// The devices' registers as the guest reads them, where there are devices.
    registers: Option<Arc<GuestRegionMmap>>,
}

impl Backends {
    /// Opens them, before anything else is made, for a guest with `memory` and devices at `places`.
    pub(super) fn open(
        peripherals: &Peripherals,
        memory: MemorySize,
        places: &[VirtioMmio],
    ) -> Result<Self, MachineError> {
        let drives = peripherals.drives().iter();
        let images = drives.map(open_image);
        let interfaces = peripherals.interfaces().iter();
        let taps = interfaces.map(|interface| Tap::open(&interface.host_dev_name));
        let vsock = peripherals.vsock.as_ref();
        let sockets = vsock.map(|vsock| Sockets::bind(&vsock.uds_path));
        Ok(Self {
            images: images.collect::<Result<_, _>>()?,
            memories: pmem::map(peripherals.pmem(), memory)?,
            taps: taps.collect::<Result<_, _>>()?,
            sockets: sockets.transpose()?,
            registers: register_pages(places)?,
        })
    }

    /// Puts on `bus` what the memories of `peripherals` do not serve.
    pub(super) fn put_on(
        &mut self,
        bus: &mut Bus,
        peripherals: &Peripherals,
        ending: &Arc<Ending>,
    ) -> Result<(), MachineError> {
        for (pmem, mapped) in peripherals.pmem().iter().zip(&mut self.memories) {
            mapped.put_on(bus, pmem, ending)?;
        }
        Ok(())
    }

    /// The guest's memory beside its RAM.
    pub(super) fn windows(&self) -> Vec<Window> {
        let windows = self.memories.iter().flat_map(|mapped| &mapped.windows);
        let registers = self.registers.iter().map(|pages| Window {
            memory: pages.clone(),
            writable: false,
        });
        windows.cloned().chain(registers).collect()
    }
}

/// One page for each of the devices at `places`, which are side by side.
fn register_pages(places: &[VirtioMmio]) -> Result<Option<Arc<GuestRegionMmap>>, MachineError> {
    let Some(first) = places.first() else {
        return Ok(None);
    };
    let size = places.iter().map(|place| place.size as usize).sum();
    let pages = GuestRegionMmap::from_range(first.base, size, None);
    Ok(Some(Arc::new(pages.map_err(no_pages)?)))
}

/// There is no memory for the devices' registers.
fn no_pages(error: FromRangesError) -> MachineError {
    host("map the registers of the devices")(io::Error::other(error))
}

fn open_image(drive: &drive::Drive) -> Result<Image, ImageError> {
    let image = Image::open(&drive.path(), drive.access())?;
    if drive.is_async() {
        image.for_ring(&drive.path())
    } else {
        Ok(image)
    }
}

/// Looks whether an image can be had, so that a client learns of a wrong path when it gives it.
pub(crate) fn check_image(drive: &drive::Drive) -> Result<(), MachineError> {
    let image = open_image(drive)?;
    if drive.is_async() {
        Uring::check(image.as_fd()).map_err(no_ring(drive))?;
    }
    Ok(())
}

/// The ring of a disk cannot be had.
fn no_ring(drive: &drive::Drive) -> impl FnOnce(UringError) -> MachineError {
    let id = drive.drive_id.clone();
    |source| MachineError::Uring { id, source }
}

/// Looks whether a tap can be had, for the same reason.
pub(crate) fn check_tap(interface: &NetworkInterface) -> Result<(), MachineError> {
    Tap::open(&interface.host_dev_name)?;
    Ok(())
}

/// Looks whether the socket of a socket device can be made. It is made at the start.
pub(crate) fn check_vsock(vsock: &vsock::Vsock) -> Result<(), MachineError> {
    Sockets::bind(&vsock.uds_path)?;
    Ok(())
}

/// A limiter on the host's clock.
pub(super) fn limiter(limits: Option<drive::RateLimiter>) -> RateLimiter {
    // The bounds were checked with the configuration.
    let (bandwidth, operations) = limits.unwrap_or_default().buckets().unwrap_or_default();
    let clock = Box::new(host_clock::monotonic_raw);
    RateLimiter::new(bandwidth.flatten(), operations.flatten(), clock)
}

/// The metadata service that `peripherals` want, if they do.
pub(super) fn mmds(peripherals: &Peripherals, metadata: &Arc<Metadata>) -> Option<Arc<Service>> {
    let host = mmds::Host {
        clock: host_clock::boottime,
        random: host_random,
    };
    let service = |config| Arc::new(Service::new(metadata.clone(), config, host));
    peripherals.mmds().map(service)
}

/// A disk, for whoever changes it while it is in use.
#[derive(Debug)]
struct Disk {
    id: String,
    engine: Arc<Engine<Block>>,
    kick: EventFd,
    /// The same image as the device has, for its lock.
    image: Image,
}

/// A network card, for whoever changes it while it is in use.
#[derive(Debug)]
struct Card {
    id: String,
    engine: Arc<Engine<Net>>,
    kick: EventFd,
}

/// A machine's virtio devices.
#[derive(Default)]
pub(super) struct Virtio {
    disks: Vec<Disk>,
    cards: Vec<Card>,
    memories: Vec<Memory>,
    balloon: Option<Inflated>,
    counts: Counts,
    waiting: Vec<Waiting>,
    threads: Vec<DeviceThread>,
    holds: Vec<Hold>,
    /// Dropped after the threads: who sees that it is gone may make another.
    _socket_file: Option<SocketFile>,
}

impl Virtio {
    /// Puts the devices of `peripherals` on `bus`, at `places`.
    pub(super) fn create<V: Vm>(
        vm: &V,
        memory: &Arc<GuestMemoryMmap>,
        bus: &mut Bus,
        peripherals: &Peripherals,
        backends: Backends,
        places: &[VirtioMmio],
        mmds: Option<&Arc<Service>>,
    ) -> Result<Self, MachineError> {
        let mut virtio = Self::default();
        let pages = backends.registers.iter().flat_map(RegisterPage::all_of);
        let mut places = places.iter().copied().zip(pages);
        for (drive, image) in peripherals.drives().iter().zip(backends.images) {
            let Some(place) = places.next() else { break };
            let kept = image
                .double()
                .map_err(host("duplicate a disk image's descriptor"))?;
            let ring = drive.is_async().then(|| {
                let ring = Uring::new(image.as_fd(), memory.clone());
                ring.map_err(no_ring(drive))
            });
            let ring = ring.transpose()?;
            let source = ring.as_ref().map(Uring::source).transpose();
            let source = source.map_err(host("duplicate a descriptor"))?;
            let name = drive.drive_id.clone();
            let mut device = Block::new(
                image,
                Serial::new(&drive.drive_id),
                drive.cache_type.unwrap_or_default().into(),
                limiter(drive.rate_limiter),
                Box::new(move |operation, error| {
                    tracing::warn!(
                        "drive {name:?}: the host cannot {operation}: {}; the guest gets I/O errors, and this \
                         is told once",
                        one_line(error)
                    );
                }),
            );
            if let Some(ring) = ring {
                device = device.with_ring(Box::new(ring));
            }
            let counts = device.counts();
            let name = format!("drive {}", drive.drive_id);
            let (engine, kick) = virtio.add(vm, memory, bus, place, device, name)?;
            if let (Some(source), Some(waiting)) = (source, virtio.waiting.last_mut()) {
                waiting.source = Some(source);
                waiting.role = Role::AsyncDrive;
            }
            let faults = engine.faults();
            let told = Told { counts, faults };
            virtio.counts.disks.push((drive.drive_id.clone(), told));
            virtio.disks.push(Disk {
                id: drive.drive_id.clone(),
                engine,
                kick,
                image: kept,
            });
        }
        for (interface, tap) in peripherals.interfaces().iter().zip(backends.taps) {
            let Some(place) = places.next() else { break };
            let source = tap.as_fd().try_clone_to_owned();
            let source = source.map_err(host("duplicate a descriptor"))?;
            let name = interface.iface_id.clone();
            let mut device = Net::new(
                Box::new(tap),
                interface.identity(),
                limiter(interface.rx_rate_limiter),
                limiter(interface.tx_rate_limiter),
                Box::new(move |operation, error| {
                    tracing::warn!(
                        "network interface {name:?}: the host cannot {operation}: {}; frames are lost, and this \
                         is told once",
                        one_line(error)
                    );
                }),
            );
            let named =
                |config: &MmdsConfig| config.network_interfaces.contains(&interface.iface_id);
            if let Some(service) = mmds.filter(|_| peripherals.mmds().is_some_and(named)) {
                let endpoint = Endpoint::new(service.clone());
                let endpoint = endpoint.map_err(host("get random bytes"))?;
                device = device.with_detour(Box::new(endpoint));
            }
            let counts = device.counts();
            let name = format!("net {}", interface.iface_id);
            let (engine, kick) = virtio.add(vm, memory, bus, place, device, name)?;
            if let Some(waiting) = virtio.waiting.last_mut() {
                waiting.source = Some(source);
            }
            let faults = engine.faults();
            let told = Told { counts, faults };
            virtio.counts.cards.push((interface.iface_id.clone(), told));
            virtio.cards.push(Card {
                id: interface.iface_id.clone(),
                engine,
                kick,
            });
        }
        for (pmem, mapped) in peripherals.pmem().iter().zip(backends.memories) {
            let Some(place) = places.next() else { break };
            let (device, file) = mapped.into_device(pmem);
            let counts = device.counts();
            let name = format!("pmem {}", pmem.id);
            let (engine, kick) = virtio.add(vm, memory, bus, place, device, name)?;
            let faults = engine.faults();
            let told = Told { counts, faults };
            virtio.counts.memories.push((pmem.id.clone(), told));
            virtio.memories.push(Memory {
                id: pmem.id.clone(),
                engine,
                kick,
                file,
            });
        }
        // The address was checked with the configuration.
        let vsock = peripherals.vsock.as_ref().and_then(vsock::Vsock::cid);
        if let Some((guest, (sockets, file))) = vsock.zip(backends.sockets)
            && let Some(place) = places.next()
        {
            allow_descriptors();
            let source = sockets.source();
            let source = source.map_err(host("duplicate a descriptor"))?;
            let device = Vsock::new(
                guest,
                sockets,
                Box::new(|refusal, error| {
                    tracing::warn!(
                        "vsock: the host cannot {refusal}: {}; connections wait or are reset, and this is told \
                         once",
                        one_line(error)
                    );
                }),
            );
            let counts = device.counts();
            let (engine, _) = virtio.add(vm, memory, bus, place, device, "vsock".to_owned())?;
            let faults = engine.faults();
            virtio.counts.vsock = Some(Told { counts, faults });
            if let Some(waiting) = virtio.waiting.last_mut() {
                waiting.source = Some(source);
                waiting.role = Role::Vsock;
            }
            virtio._socket_file = Some(file);
        }
        if let Some(balloon) = &peripherals.balloon
            && let Some(place) = places.next()
        {
            let device = balloon::Balloon::new(
                Pages(memory.clone()),
                balloon.options(),
                Box::new(|error| {
                    tracing::warn!(
                        "balloon: the host does not take pages back: {}; the guest does without them all the \
                         same, and this is told once",
                        one_line(error)
                    );
                }),
            );
            let told = device.told();
            let name = "balloon".to_owned();
            let (engine, kick) = virtio.add(vm, memory, bus, place, device, name)?;
            virtio.counts.balloon = Some(Told {
                counts: told.clone(),
                faults: engine.faults(),
            });
            virtio.balloon = Some(Inflated { engine, kick, told });
        }
        if let (Some(entropy), Some(place)) = (&peripherals.entropy, places.next()) {
            let device = Entropy::new(
                Box::new(host_random),
                limiter(entropy.rate_limiter),
                Box::new(|error| {
                    tracing::warn!(
                        "the host gives the guest no random bytes: {}",
                        one_line(error)
                    );
                }),
            );
            let counts = device.counts();
            let name = "entropy".to_owned();
            let (engine, _) = virtio.add(vm, memory, bus, place, device, name)?;
            let faults = engine.faults();
            virtio.counts.entropy = Some(Told { counts, faults });
        }
        Ok(virtio)
    }

    fn add<V: Vm, D: Device + 'static>(
        &mut self,
        vm: &V,
        memory: &Arc<GuestMemoryMmap>,
        bus: &mut Bus,
        (place, page): (VirtioMmio, RegisterPage),
        device: D,
        name: String,
    ) -> Result<(Arc<Engine<D>>, EventFd), MachineError> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("create an eventfd"));
        let duplicate = |event: &EventFd| event.try_clone().map_err(host("duplicate an eventfd"));
        let line = event()?;
        vm.register_interrupt(&line, Gsi(place.gsi))?;
        let kick = event()?;
        let notify = GuestAddress(place.base.0 + QUEUE_NOTIFY);
        for queue in (0..).take(D::QUEUES.len()) {
            vm.register_notification(&kick, notify, queue)?;
        }
        let engine = Engine::new(device, memory.clone(), page, Box::new(move || press(&line)));
        let engine = Arc::new(engine);
        let bell = duplicate(&kick)?;
        let registers = Registers::new(engine.clone(), Box::new(move || press(&bell)));
        let registers = Arc::new(Mutex::new(registers));
        bus.insert(place.base.0, place.size.into(), registers, &*name)?;
        let bell = duplicate(&kick)?;
        engine.run_by(Box::new(move || press(&bell)));
        let (runner, holder, leaver) = (engine.clone(), engine.clone(), engine.clone());
        self.waiting.push(Waiting {
            name,
            kick: duplicate(&kick)?,
            source: None,
            role: Role::Device,
            run: Box::new(move |woken_by| match woken_by {
                Waker::Bell => runner.run_notified(),
                Waker::Source => runner.run(),
            }),
            hold: Box::new(move || holder.hold()),
            leave: Box::new(move |orderly| leaver.leave(orderly)),
        });
        Ok((engine, kick))
    }

    /// Starts the devices' threads.
    pub(super) fn start(&mut self, ending: &Arc<Ending>, filters: &Filters) -> io::Result<()> {
        for device in std::mem::take(&mut self.waiting) {
            self.threads.push(DeviceThread::start(
                device,
                ending.clone(),
                filters.clone(),
            )?);
        }
        Ok(())
    }

    /// Brings the devices to a halt, each after its request in progress.
    pub(super) fn pause(&mut self) {
        self.holds = (self.threads.iter()).map(|thread| thread.hold()).collect();
    }

    /// Lets them go on.
    pub(super) fn resume(&mut self) {
        self.holds.clear();
    }

    /// Changes a disk while it is in use. The device takes it over with its next request.
    ///
    /// # Errors
    /// There is no such disk, or no such image.
    pub(super) fn change_drive(&mut self, patch: &DrivePatch) -> Result<(), Fault> {
        let disk = self.disks.iter_mut().find(|disk| disk.id == patch.drive_id);
        let disk = disk.ok_or_else(|| no_drive(&patch.drive_id))?;
        let (bandwidth, operations) = patch.rate_limiter.unwrap_or_default().buckets()?;
        if let Some(path) = patch.path_on_host.as_deref() {
            disk.change_image(path)?;
        }
        disk.engine.change(|update| {
            update.bandwidth = bandwidth.or(update.bandwidth.take());
            update.operations = operations.or(update.operations.take());
        });
        press(&disk.kick);
        Ok(())
    }

    /// Changes a persistent memory while it is in use. The device takes it over with its next request.
    ///
    /// # Errors
    /// There is no such memory.
    pub(super) fn change_pmem(&self, patch: &PmemPatch) -> Result<(), Fault> {
        let memory = self.memories.iter().find(|memory| memory.id == patch.id);
        let memory = memory.ok_or_else(|| no_pmem(&patch.id))?;
        let (bandwidth, operations) = patch.rate_limiter.unwrap_or_default().buckets()?;
        memory.engine.change(|update| {
            update.bandwidth = bandwidth.or(update.bandwidth.take());
            update.operations = operations.or(update.operations.take());
        });
        press(&memory.kick);
        Ok(())
    }

    /// Tells which files of persistent memories have become shorter.
    pub(super) fn tell_files_cut_short(&self) {
        self.memories.iter().for_each(Memory::tell_if_cut_short);
    }

    /// Changes the size of the balloon, and how often its statistics are asked for. The device takes it over with
    /// its next request.
    pub(super) fn change_balloon(&self, wanted: &Balloon) {
        let Some(balloon) = &self.balloon else {
            return;
        };
        balloon.engine.change(|update| {
            update.pages = Some(wanted.pages());
            update.statistics = Some(interval(wanted.interval_s()));
        });
        press(&balloon.kick);
    }

    /// Has the balloon's driver name free pages, or use them again.
    pub(super) fn hint(&self, command: Command) {
        let Some(balloon) = &self.balloon else {
            return;
        };
        balloon
            .engine
            .change(|update| update.hinting = Some(command));
        press(&balloon.kick);
    }

    /// What is known of the balloon.
    pub(super) fn balloon(&self) -> Option<BalloonState> {
        self.balloon.as_ref().map(BalloonState::from)
    }

    /// What the devices count from now on. Asked once.
    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Changes a network interface while it is in use.
    ///
    /// # Errors
    /// There is no such interface.
    pub(super) fn change_interface(&mut self, patch: &NetworkInterfacePatch) -> Result<(), Fault> {
        let card = self.cards.iter().find(|card| card.id == patch.iface_id);
        let card = card.ok_or_else(|| no_interface(&patch.iface_id))?;
        let receive = patch.rx_rate_limiter.unwrap_or_default().buckets()?;
        let transmit = patch.tx_rate_limiter.unwrap_or_default().buckets()?;
        card.engine.change(|update| {
            update.receive_bandwidth = receive.0.or(update.receive_bandwidth.take());
            update.receive_operations = receive.1.or(update.receive_operations.take());
            update.transmit_bandwidth = transmit.0.or(update.transmit_bandwidth.take());
            update.transmit_operations = transmit.1.or(update.transmit_operations.take());
        });
        press(&card.kick);
        Ok(())
    }
}

/// What a client is told of a network interface that there is not.
pub(crate) fn no_interface(id: &str) -> Fault {
    Fault::new(format!(
        "there is no network interface {id:?}: PUT it before the start"
    ))
}

/// What a client is told of a disk that there is not.
pub(crate) fn no_drive(id: &str) -> Fault {
    Fault::new(format!("there is no drive {id:?}: PUT it before the start"))
}

impl Disk {
    /// Has the device take the image at `path`; its double is kept.
    ///
    /// # Errors
    /// There is no such image; then nothing changes.
    fn change_image(&mut self, path: &Path) -> Result<(), Fault> {
        // What the device still has, if it has not taken over what it was told before.
        let mut former = None;
        self.engine.change(|update| former = update.former.take());
        match self.other_image(path, former.as_ref()) {
            Ok((image, double)) => {
                let before = std::mem::replace(&mut self.image, double);
                self.engine.change(|update| {
                    let waits = update.image.replace(image).is_some();
                    update.former = if waits { former } else { Some(before) };
                });
                Ok(())
            }
            Err(fault) => {
                self.engine.change(|update| {
                    update.former = former.filter(|_| update.image.is_some());
                });
                Err(fault)
            }
        }
    }

    /// The image at `path`, and a double of it. The lock is ours already where the device has the image, or is to have
    /// it.
    fn other_image(&self, path: &Path, former: Option<&Image>) -> Result<(Image, Image), Fault> {
        let ours = [Some(&self.image), former];
        let image = match ours.into_iter().flatten().find(|image| image.is_at(path)) {
            Some(image) => image.again(path),
            None => {
                let other = Image::open(path, self.image.access());
                if self.image.is_for_ring() {
                    other.and_then(|other| other.for_ring(path))
                } else {
                    other
                }
            }
        };
        let image = image.map_err(|error| Fault::new(one_line(&error)))?;
        let double = (image.double())
            .map_err(|error| Fault::new(format!("cannot duplicate a descriptor: {error}")))?;
        Ok((image, double))
    }
}

impl Drop for Virtio {
    fn drop(&mut self) {
        // A thread that is held would wait for ever.
        self.holds.clear();
    }
}

impl std::fmt::Debug for Virtio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Virtio")
            .field("disks", &self.disks)
            .field("cards", &self.cards)
            .field("memories", &self.memories)
            .field("balloon", &self.balloon)
            .finish_non_exhaustive()
    }
}

/// The host's random bytes.
fn host_random(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(count) => bytes = bytes.get_mut(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
