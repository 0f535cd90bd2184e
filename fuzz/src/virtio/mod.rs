//! Virtio devices under any driver: their registers against a model of them, and their queues against a model of
//! what each device does.
//!
//! A device's model works on a copy of the guest's memory. After each run of the device both memories are the same,
//! but for the device's own rings, which are looked at entry by entry: so a device that writes anywhere but where
//! the driver said is found, as is one that reads a descriptor twice.

mod balloon;
mod block;
mod entropy;
mod net;
mod pmem;
mod registers;
#[path = "../../../devices/tests/virtio/shuffled.rs"]
#[allow(dead_code, reason = "the tests of the devices look into it")]
mod shuffled;
mod vsock;

use std::collections::VecDeque;
use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::BusDevice;
use devices::virtio::mmio::Registers;
use devices::virtio::{Device, Engine, RegisterPage};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use balloon::virtio_balloon;
pub use block::virtio_block;
pub use entropy::virtio_entropy;
pub use net::virtio_net;
pub use pmem::virtio_pmem;
pub use registers::virtio_mmio;
pub use vsock::virtio_vsock;

/// Memory ends here, and goes on at [`HIGH`].
const LOW_END: u64 = 0x1_0000;
const HIGH: u64 = 1 << 32;
const HIGH_LEN: u64 = 0x1000;

/// Where a queue's rings are, and how far the next queue's are from them.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x1100;
const USED: u64 = 0x1200;
const NEXT_QUEUE: u64 = 0x400;
/// Indirect tables; then data.
const TABLES: u64 = 0x2800;
const DATA: u64 = 0x4000;

/// Places of each queue.
const SIZE: u16 = 8;
/// The most buffers of one chain.
const MAX_BUFFERS: usize = 6;

const VERSION_1: u64 = 1 << 32;
const EVENT_INDEX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;

const WRITE: u16 = 2;
const NEXT: u16 = 1;
const TABLE: u16 = 4;

/// Where a buffer is.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Low(u16),
    High(u16),
    /// Over the end of low memory.
    Border(u8),
    /// Where there is none.
    Hole(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Buffer {
    place: Place,
    len: u16,
    writable: bool,
}

/// A chain of buffers, in a table of its own or not.
#[derive(Arbitrary, Clone, Debug)]
struct Request {
    buffers: [Buffer; MAX_BUFFERS],
    count: u8,
    indirect: bool,
    /// What is in the first readable buffer.
    header: [u8; 32],
}

/// A buffer as the model has it.
#[derive(Clone, Copy, Debug)]
struct Segment {
    address: u64,
    len: u64,
    writable: bool,
}

impl Segment {
    fn is_in_memory(&self) -> bool {
        let within = |begin: u64, len: u64| {
            self.address >= begin && self.len <= len && self.address - begin <= len - self.len
        };
        self.len == 0 || within(0, LOW_END) || within(HIGH, HIGH_LEN)
    }
}

/// A chain as the model has it.
#[derive(Clone, Debug, Default)]
struct Chain {
    head: u16,
    segments: Vec<Segment>,
}

impl Chain {
    /// Whether the specification allows it (2.7.4, 2.7.5).
    fn is_lawful(&self) -> bool {
        let mut segments = self.segments.iter();
        // A buffer of no bytes that the device could write is as if it were not there.
        let _ = segments.find(|segment| segment.writable && segment.len > 0);
        let in_order = segments.all(|segment| segment.writable);
        in_order && self.segments.iter().all(Segment::is_in_memory)
    }

    fn room(&self) -> u64 {
        self.total(true)
    }

    fn total(&self, writable: bool) -> u64 {
        let of_kind = self
            .segments
            .iter()
            .filter(|segment| segment.writable == writable);
        of_kind.map(|segment| segment.len).sum()
    }
}

/// The guest's memory as it must be.
#[derive(Clone)]
struct Memory {
    low: Vec<u8>,
    high: Vec<u8>,
}

impl Memory {
    fn new() -> Self {
        let zeros = |len| vec![0; usize::try_from(len).expect("small")];
        Self {
            low: zeros(LOW_END),
            high: zeros(HIGH_LEN),
        }
    }

    fn part(&mut self, address: u64, len: u64) -> &mut [u8] {
        let (part, at) = if address < HIGH {
            (&mut self.low, address)
        } else {
            (&mut self.high, address - HIGH)
        };
        let range = usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small");
        &mut part[range]
    }

    fn read(&mut self, chain: &Chain) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in chain
            .segments
            .iter()
            .filter(|segment| !segment.writable && segment.len > 0)
        {
            bytes.extend_from_slice(self.part(segment.address, segment.len));
        }
        bytes
    }

    /// Writes over the writable buffers of `chain` from byte `at` on.
    fn write(&mut self, chain: &Chain, at: u64, bytes: &[u8]) {
        let (mut skip, mut rest) = (at, bytes);
        for segment in chain
            .segments
            .iter()
            .filter(|segment| segment.writable && segment.len > 0)
        {
            let before = skip.min(segment.len);
            skip -= before;
            let here = (segment.len - before).min(rest.len() as u64);
            let (now, later) = rest.split_at(usize::try_from(here).expect("small"));
            self.part(segment.address + before, here)
                .copy_from_slice(now);
            rest = later;
        }
        assert!(rest.is_empty(), "the model wrote past a chain");
    }
}

/// One queue as the driver knows it.
#[derive(Default)]
struct Queue {
    /// Chains that were made available and are not used yet.
    waiting: VecDeque<Chain>,
    available: u16,
    used: u16,
}

/// A lawful driver, of requests that need not be lawful.
struct Driver<D: Device> {
    memory: Arc<GuestMemoryMmap>,
    model: Memory,
    engine: Arc<Engine<D>>,
    registers: Registers<D>,
    queues: Vec<Queue>,
}

/// The guest's memory, empty.
fn guest_memory() -> Arc<GuestMemoryMmap> {
    let ranges = [(0, LOW_END), (HIGH, HIGH_LEN)]
        .map(|(begin, len)| (GuestAddress(begin), usize::try_from(len).expect("small")));
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"))
}

impl<D: Device> Driver<D> {
    /// One that is ready. It takes of `features` what is on offer. A third queue is left alone: a driver need not use
    /// all.
    fn ready(device: D, features: u64) -> (Self, u64) {
        Self::with_queues(device, features, 2)
    }

    /// The same with so many queues, if there are.
    fn with_queues(device: D, features: u64, queues: usize) -> (Self, u64) {
        Self::in_memory(guest_memory(), device, features, queues)
    }

    /// The same in such memory.
    fn in_memory(
        memory: Arc<GuestMemoryMmap>,
        device: D,
        features: u64,
        queues: usize,
    ) -> (Self, u64) {
        let engine = Arc::new(Engine::new(
            device,
            memory.clone(),
            RegisterPage::apart().expect("a page"),
            Box::new(|| {}),
        ));
        let registers = Registers::new(engine.clone(), Box::new(|| {}));
        let mut driver = Self {
            memory,
            model: Memory::new(),
            engine,
            registers,
            queues: D::QUEUES
                .iter()
                .take(queues)
                .map(|_| Queue::default())
                .collect(),
        };
        let mut offered = 0;
        for half in [1, 0] {
            driver.write(0x14, half);
            offered = offered << 32 | u64::from(driver.read(0x10));
        }
        let features = features & offered | VERSION_1;
        driver.write(0x70, 1);
        driver.write(0x70, 3);
        for (half, value) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            driver.write(0x24, half);
            driver.write(0x20, u32::try_from(value).expect("a half"));
        }
        driver.write(0x70, 11);
        for (queue, more) in (0..driver.queues.len()).zip((0..).step_by(0x400)) {
            driver.write(0x30, u32::try_from(queue).expect("few"));
            driver.write(0x38, SIZE.into());
            for (register, ring) in [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)] {
                driver.write(register, u32::try_from(ring).expect("low") + more);
            }
            driver.write(0x44, 1);
        }
        driver.write(0x70, 15);
        assert_eq!(driver.read(0x70), 15, "a lawful driver is taken");
        (driver, features)
    }

    fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.registers.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u64, value: u32) {
        let _ = self.registers.write(register, &value.to_le_bytes());
    }

    fn needs_reset(&mut self) -> bool {
        self.read(0x70) & 64 != 0
    }

    /// Puts bytes where both memories have them.
    fn put(&mut self, address: u64, bytes: &[u8]) {
        let place = GuestAddress(address);
        self.memory.write_slice(bytes, place).expect("in memory");
        let part = self.model.part(address, bytes.len() as u64);
        part.copy_from_slice(bytes);
    }

    fn describe(&mut self, table: u64, index: u16, segment: &Segment, flags: u16) {
        let writable = if segment.writable { WRITE } else { 0 };
        let mut bytes = segment.address.to_le_bytes().to_vec();
        bytes.extend(u32::try_from(segment.len).expect("small").to_le_bytes());
        bytes.extend((flags | writable).to_le_bytes());
        bytes.extend((index + 1).to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a request available, if its queue has room for one. Each has a table of its own, since a table in the
    /// queue's ring would have room for a few only.
    fn ask(&mut self, queue: usize, request: &Request) {
        let waiting = self.queues[queue].waiting.len();
        if waiting == usize::from(SIZE) {
            return;
        }
        let count = usize::from(request.count) % MAX_BUFFERS + 1;
        let buffers = request.buffers[..count].iter();
        let segments: Vec<_> = buffers
            .map(|buffer| segment(queue, self.queues.len(), buffer))
            .collect();
        let offset = queue as u64 * NEXT_QUEUE;
        let ring = self.queues[queue].available % SIZE;
        let table = if request.indirect || count > 1 {
            TABLES + (queue as u64 * u64::from(SIZE) + u64::from(ring)) * 0x80
        } else {
            0
        };
        if let Some(first) = segments
            .iter()
            .find(|segment| !segment.writable && segment.is_in_memory() && segment.len > 0)
        {
            let len = usize::try_from(first.len.min(32)).expect("small");
            self.put(first.address, &request.header[..len]);
        }
        if table == 0 {
            let descriptors = DESCRIPTORS + offset;
            // Its own index, so the link to the next is not looked at.
            self.describe(descriptors, ring, &segments[0], 0);
        } else {
            for (index, segment) in (0..).zip(&segments) {
                let last = usize::from(index) + 1 == segments.len();
                self.describe(table, index, segment, if last { 0 } else { NEXT });
            }
            let whole = Segment {
                address: table,
                len: 16 * segments.len() as u64,
                writable: false,
            };
            self.describe(DESCRIPTORS + offset, ring, &whole, TABLE);
        }
        let available = self.queues[queue].available;
        self.put(
            AVAILABLE + offset + 4 + 2 * u64::from(available % SIZE),
            &ring.to_le_bytes(),
        );
        let queue = &mut self.queues[queue];
        queue.available = available.wrapping_add(1);
        queue.waiting.push_back(Chain {
            head: ring,
            segments,
        });
        let available = queue.available;
        self.put(AVAILABLE + offset + 2, &available.to_le_bytes());
    }

    /// The chain that the device must have used next, with so many bytes.
    fn expect_used(&mut self, queue: usize, head: u16, written: u64) {
        let offset = queue as u64 * NEXT_QUEUE;
        let index: u16 = self.load(USED + offset + 2);
        let used = self.queues[queue].used;
        assert_ne!(index, used, "queue {queue}: chain {head} is not used");
        let at = USED + offset + 4 + 8 * u64::from(used % SIZE);
        let element: (u32, u32) = (self.load(at), self.load(at + 4));
        let written = u32::try_from(written).expect("small");
        assert_eq!(element, (head.into(), written), "queue {queue}");
        self.queues[queue].used = used.wrapping_add(1);
    }

    fn load<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("in memory")
    }

    /// Nothing else was used, and nothing else was written.
    fn expect_nothing_else(&mut self) {
        for (queue, offset) in (0..self.queues.len()).zip((0..).step_by(0x400)) {
            let index: u16 = self.load(USED + offset + 2);
            assert_eq!(index, self.queues[queue].used, "queue {queue}: used");
            // The device's own ring.
            let mut ring = [0; 0x100];
            let at = GuestAddress(USED + offset);
            self.memory.read_slice(&mut ring, at).expect("in memory");
            self.model.part(USED + offset, 0x100).copy_from_slice(&ring);
        }
        for (begin, model) in [(0, &self.model.low), (HIGH, &self.model.high)] {
            let mut bytes = vec![0; model.len()];
            let at = GuestAddress(begin);
            self.memory.read_slice(&mut bytes, at).expect("in memory");
            if let Some(place) = (0..bytes.len()).find(|place| bytes[*place] != model[*place]) {
                panic!(
                    "{:#x}: {} for {}",
                    begin + place as u64,
                    bytes[place],
                    model[place]
                );
            }
        }
    }
}

/// The buffer that is asked for, kept short, out of the rings, and out of the other queues' buffers: in which order
/// queues are served is the device's to choose.
fn segment(queue: usize, queues: usize, buffer: &Buffer) -> Segment {
    let parts = queues.max(2) as u64;
    // A device with more of them looks at whole pages.
    let longest = if parts > 2 { 0x2000 } else { 0x800 };
    let mut len = u64::from(buffer.len) % longest;
    let part = |begin: u64, end: u64, at: u16, len: u64| {
        let part = (end - begin) / parts;
        begin + queue as u64 * part + u64::from(at) % (part - len + 1)
    };
    let address = match buffer.place {
        Place::Low(at) => part(DATA, LOW_END, at, len),
        Place::High(at) => {
            len = len.min(HIGH_LEN / parts);
            part(HIGH, HIGH + HIGH_LEN, at, len)
        }
        Place::Border(before) => {
            len = len.max(u64::from(before) + 1);
            LOW_END - u64::from(before)
        }
        Place::Hole(at) => LOW_END + u64::from(at) % (HIGH - LOW_END - len),
    };
    Segment {
        address,
        len,
        writable: buffer.writable,
    }
}
