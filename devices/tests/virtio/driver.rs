//! A driver in guest memory that does what it is told, also what it must not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use devices::virtio::mmio::Registers;
use devices::virtio::state::{State, StateError};
use devices::virtio::{Device, Engine, Next, RegisterPage};
use devices::{BusDevice, Trigger};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) const MAGIC: u64 = 0x0;
pub(crate) const VERSION: u64 = 0x4;
pub(crate) const DEVICE_ID: u64 = 0x8;
pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_SIZE_MAX: u64 = 0x34;
pub(crate) const QUEUE_SIZE: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const QUEUE_DESC: u64 = 0x80;
pub(crate) const QUEUE_DRIVER: u64 = 0x90;
pub(crate) const QUEUE_DEVICE: u64 = 0xa0;
pub(crate) const CONFIG_GENERATION: u64 = 0xfc;
pub(crate) const CONFIG: u64 = 0x100;

pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_INDEX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;

pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x3000;
pub(crate) const USED: u64 = 0x5000;
/// The most queues of a device.
const QUEUES: usize = 5;
/// The rings of the second queue are so much further on, and those of the third as much again.
pub(crate) const SECOND: u64 = 0x6000;
/// From here on tests put what they like.
pub(crate) const ROOM: u64 = 0x2_0000;
/// RAM ends here, and goes on at 4 GiB.
pub(crate) const HOLE: u64 = 0x10_0000;
pub(crate) const HIGH: u64 = 1 << 32;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const TABLE: u16 = 4;

/// A descriptor: address, length, flags, index of the next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

pub(crate) struct Driver<D: Device> {
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) engine: Arc<Engine<D>>,
    pub(crate) registers: Registers<D>,
    pub(crate) interrupts: Arc<AtomicU32>,
    pub(crate) notifications: Arc<AtomicU32>,
    pub(crate) size: u16,
    /// The queue that is spoken of.
    pub(crate) queue: usize,
    made_available: [u16; QUEUES],
    seen: [u16; QUEUES],
}

/// Memory of which most tests are about the lower part.
pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    let ranges = [
        (GuestAddress(0), HOLE as usize),
        (GuestAddress(HIGH), 0x1_0000),
    ];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"))
}

impl<D: Device> Driver<D> {
    /// A driver that has not yet touched the device.
    pub(crate) fn new(device: D) -> Self {
        Self::new_in(memory(), device)
    }

    /// The same in such memory.
    fn new_in(memory: Arc<GuestMemoryMmap>, device: D) -> Self {
        let new = |engine, bell| Ok(Registers::new(engine, bell));
        Self::with_registers(memory, device, new).expect("made of nothing")
    }

    /// What is to be saved of its device.
    pub(crate) fn save(&mut self) -> State {
        let hold = self.engine.hold();
        self.registers.state(&hold)
    }

    /// This driver, with a device that was given that state.
    pub(crate) fn restored(&self, device: D, state: &State) -> Result<Self, StateError> {
        let from = |engine, bell| Registers::from_state(state, engine, bell);
        let driver = Self::with_registers(self.memory.clone(), device, from)?;
        Ok(Self {
            size: self.size,
            made_available: self.made_available,
            seen: self.seen,
            ..driver
        })
    }

    fn with_registers(
        memory: Arc<GuestMemoryMmap>,
        device: D,
        registers: impl FnOnce(Arc<Engine<D>>, Box<dyn Trigger>) -> Result<Registers<D>, StateError>,
    ) -> Result<Self, StateError> {
        let interrupts = Arc::new(AtomicU32::new(0));
        let notifications = Arc::new(AtomicU32::new(0));
        let (line, bell) = (interrupts.clone(), notifications.clone());
        let engine = Arc::new(Engine::new(
            device,
            memory.clone(),
            RegisterPage::apart().expect("a page"),
            Box::new(move || {
                line.fetch_add(1, Ordering::SeqCst);
            }),
        ));
        let registers = registers(
            engine.clone(),
            Box::new(move || {
                bell.fetch_add(1, Ordering::SeqCst);
            }),
        )?;
        Ok(Self {
            memory,
            engine,
            registers,
            interrupts,
            notifications,
            size: 16,
            queue: 0,
            made_available: [0; QUEUES],
            seen: [0; QUEUES],
        })
    }

    /// A driver that is ready, with these features and VERSION_1.
    pub(crate) fn ready(device: D, features: u64) -> Self {
        Self::ready_in(memory(), device, features)
    }

    /// The same in such memory.
    pub(crate) fn ready_in(memory: Arc<GuestMemoryMmap>, device: D, features: u64) -> Self {
        Self::ready_with(memory, device, features, 16)
    }

    /// The same with queues of this size.
    pub(crate) fn ready_with(
        memory: Arc<GuestMemoryMmap>,
        device: D,
        features: u64,
        size: u16,
    ) -> Self {
        let mut driver = Self::new_in(memory, device);
        driver.size = size;
        driver.begin(features);
        driver
    }

    /// Gets a device ready that was reset.
    pub(crate) fn begin(&mut self, features: u64) {
        let driver = self;
        driver.negotiate(features | VERSION_1);
        for queue in (0..D::QUEUES.len()).rev() {
            driver.queue = queue;
            driver.set_up_queue();
        }
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(driver.read(STATUS) & DRIVER_OK, DRIVER_OK);
    }

    /// What an access reads, and what is in memory for a guest that has the registers there.
    pub(crate) fn read(&mut self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.registers.read(register, &mut data);
        let value = u32::from_le_bytes(data);
        let page = self.engine.page();
        assert_eq!(value, page.read(register as u32), "at {register:#x}");
        value
    }

    pub(crate) fn write(&mut self, register: u64, value: u32) {
        let _ = self.registers.write(register, &value.to_le_bytes());
    }

    pub(crate) fn offered(&mut self) -> u64 {
        let mut features = 0;
        for half in [1, 0] {
            self.write(DEVICE_FEATURES_SEL, half);
            features = features << 32 | u64::from(self.read(DEVICE_FEATURES));
        }
        features
    }

    /// Takes the features, and returns the status that follows.
    pub(crate) fn negotiate(&mut self, features: u64) -> u32 {
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (half, value) in [(0, features), (1, features >> 32)] {
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, value as u32);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.read(STATUS)
    }

    pub(crate) fn set_address(&mut self, register: u64, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    pub(crate) fn set_up_queue(&mut self) {
        self.write(QUEUE_SEL, self.queue as u32);
        self.write(QUEUE_SIZE, self.size.into());
        self.set_address(QUEUE_DESC, self.at(DESCRIPTORS));
        self.set_address(QUEUE_DRIVER, self.at(AVAILABLE));
        self.set_address(QUEUE_DEVICE, self.at(USED));
        self.write(QUEUE_READY, 1);
    }

    /// Where a ring of the queue is, given where the first queue has it.
    pub(crate) fn at(&self, ring: u64) -> u64 {
        ring + self.queue as u64 * SECOND
    }

    pub(crate) fn store<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("in memory");
    }

    pub(crate) fn load<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("in memory")
    }

    pub(crate) fn fill(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("in memory");
    }

    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("in memory");
        bytes
    }

    pub(crate) fn describe_at(&self, table: u64, index: u16, descriptor: Descriptor) {
        let (address, len, flags, next) = descriptor;
        let at = table + 16 * u64::from(index);
        self.store(at, address);
        self.store(at + 8, len);
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub(crate) fn make_available(&mut self, head: u16) {
        let made_available = self.made_available[self.queue];
        let place = u64::from(made_available % self.size);
        self.store(self.at(AVAILABLE) + 4 + 2 * place, head);
        self.made_available[self.queue] = made_available.wrapping_add(1);
        self.store(self.at(AVAILABLE) + 2, made_available.wrapping_add(1));
    }

    /// Puts these buffers into the first descriptors, one after the other, and makes them available:
    /// (address, length, whether the device writes).
    pub(crate) fn put(&mut self, buffers: &[(u64, u32, bool)]) {
        self.put_from(0, buffers);
    }

    /// The same from descriptor `first` on.
    pub(crate) fn put_from(&mut self, first: u16, buffers: &[(u64, u32, bool)]) {
        let table = self.at(DESCRIPTORS);
        for (index, (address, len, writable)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.describe_at(table, index, (*address, *len, flags, index + 1));
        }
        self.make_available(first);
    }

    pub(crate) fn run(&self) -> Next {
        self.engine.run()
    }

    /// The same until nothing is under way, for which the engine is held for a moment.
    pub(crate) fn run_out(&self) -> Next {
        self.engine.run();
        drop(self.engine.hold());
        self.engine.run()
    }

    /// The next chain that the device is done with: its head, and how much was written.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        let seen = self.seen[self.queue];
        if self.load::<u16>(self.at(USED) + 2) == seen {
            return None;
        }
        let at = self.at(USED) + 4 + 8 * u64::from(seen % self.size);
        self.seen[self.queue] = seen.wrapping_add(1);
        Some((self.load(at), self.load(at + 4)))
    }

    pub(crate) fn notifications(&self) -> u32 {
        self.notifications.load(Ordering::SeqCst)
    }

    pub(crate) fn interrupts(&self) -> u32 {
        self.interrupts.load(Ordering::SeqCst)
    }

    /// Forgets its rings, as a driver does that resets its device.
    pub(crate) fn reset(&mut self) {
        self.write(STATUS, 0);
        self.made_available = [0; QUEUES];
        self.seen = [0; QUEUES];
        for ring in [AVAILABLE, USED] {
            for queue in 0..QUEUES as u64 {
                self.fill(ring + queue * SECOND, &[0; 0x100]);
            }
        }
    }
}
