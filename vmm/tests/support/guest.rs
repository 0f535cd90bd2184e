//! A guest that drives virtio devices: straight code of stores into registers and rings, and waits for what a device
//! has used. Its first 4 GiB are identity-mapped (`arch/src/boot/state.rs`).

use super::print;

/// Where the first device's registers are, and how far apart (`arch/src/layout.rs`).
const DEVICES: u32 = 0xc000_1000;
const REGISTERS: u32 = 0x1000;
/// The queues' memory: 64 KiB each, of which the first page is for the rings.
const QUEUES: u32 = 0x20_0000;
/// Elements of a queue.
const SIZE: u16 = 64;

/// Registers of a device (virtio 1.2, 4.2.2).
mod register {
    pub(super) const DRIVER_FEATURES: u32 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u32 = 0x24;
    pub(super) const QUEUE_SEL: u32 = 0x30;
    pub(super) const QUEUE_NUM: u32 = 0x38;
    pub(super) const QUEUE_READY: u32 = 0x44;
    pub(super) const QUEUE_NOTIFY: u32 = 0x50;
    pub(super) const STATUS: u32 = 0x70;
    pub(super) const QUEUE_DESC_LOW: u32 = 0x80;
    pub(super) const QUEUE_DRIVER_LOW: u32 = 0x90;
    pub(super) const QUEUE_DEVICE_LOW: u32 = 0xa0;
}

/// A part of a request: bytes that the device reads, or room that it writes to.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Bytes(Vec<u8>),
    Room(u32),
}

/// A queue that a guest drives.
#[derive(Debug)]
pub(crate) struct Queue {
    device: u32,
    index: u32,
    rings: u32,
    /// Where the next request's memory begins.
    free: u32,
    descriptors: u16,
    requests: u16,
}

impl Queue {
    fn descriptors(&self) -> u32 {
        self.rings
    }

    fn available(&self) -> u32 {
        self.rings + 0x400
    }

    fn used(&self) -> u32 {
        self.rings + 0x800
    }
}

/// The guest's code.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    code: Vec<u8>,
    queues: u32,
}

impl Guest {
    pub(crate) fn code(self, end: &[u8]) -> Vec<u8> {
        [&self.code, end].concat()
    }

    pub(crate) fn print(&mut self, text: &str) {
        self.code.extend(print(text));
    }

    /// mov edi, address
    fn address(&mut self, address: u32) {
        self.code.push(0xbf);
        self.code.extend(address.to_le_bytes());
    }

    pub(crate) fn store(&mut self, address: u32, value: u32) {
        self.address(address);
        // mov dword ptr [rdi], value
        self.code.extend([0xc7, 0x07]);
        self.code.extend(value.to_le_bytes());
    }

    fn store_half(&mut self, address: u32, value: u16) {
        self.address(address);
        // mov word ptr [rdi], value
        self.code.extend([0x66, 0xc7, 0x07]);
        self.code.extend(value.to_le_bytes());
    }

    /// Prints the byte at `address`, or, of a number, its digit.
    pub(crate) fn tell(&mut self, address: u32, is_number: bool) {
        self.address(address);
        let zero = if is_number { b'0' } else { 0 };
        // mov dx, 0x3f8; mov al, [rdi]; add al, zero; out dx, al
        self.code
            .extend([0x66, 0xba, 0xf8, 0x03, 0x8a, 0x07, 0x04, zero, 0xee]);
    }

    /// Has 2 MiB of physical memory from `from` on at `to`, which is between 1 GiB and 2 GiB and was not touched yet.
    pub(crate) fn map(&mut self, from: u64, to: u32) {
        assert!(to >> 30 == 1 && to.is_multiple_of(2 << 20) && from.is_multiple_of(2 << 20));
        // The second page directory (`arch/src/layout.rs`), whose entries are present, writable and large.
        let entry = 0xc000 + ((to & 0x3fff_ffff) >> 21) * 8;
        let halves = [from & 0xffff_ffff, from >> 32];
        let [low, high] = halves.map(|half| u32::try_from(half).expect("a half"));
        self.store(entry, low | 0x83);
        self.store(entry + 4, high);
    }

    /// Waits until 16 bits at `address` are `value`.
    pub(crate) fn wait(&mut self, address: u32, value: u16) {
        self.address(address);
        // cmp word ptr [rdi], value; jne back to it
        self.code.extend([0x66, 0x81, 0x3f]);
        self.code.extend(value.to_le_bytes());
        self.code.extend([0x75, 0xf9]);
    }

    /// Tells the device in `slot` that a driver is there, with `queues` of its queues (virtio 1.2, 3.1.1).
    pub(crate) fn begin(&mut self, slot: u32, features: u32, queues: u32) -> Vec<Queue> {
        let device = DEVICES + slot * REGISTERS;
        // ACKNOWLEDGE and DRIVER; then FEATURES_OK; then DRIVER_OK. VIRTIO_F_VERSION_1 is bit 32.
        self.store(device + register::STATUS, 3);
        self.store(device + register::DRIVER_FEATURES_SEL, 0);
        self.store(device + register::DRIVER_FEATURES, features);
        self.store(device + register::DRIVER_FEATURES_SEL, 1);
        self.store(device + register::DRIVER_FEATURES, 1);
        self.store(device + register::STATUS, 11);
        let mut made = Vec::new();
        for index in 0..queues {
            let rings = QUEUES + self.queues * 0x1_0000;
            self.queues += 1;
            let queue = Queue {
                device,
                index,
                rings,
                free: rings + 0x1000,
                descriptors: 0,
                requests: 0,
            };
            self.store(device + register::QUEUE_SEL, index);
            self.store(device + register::QUEUE_NUM, SIZE.into());
            self.store(device + register::QUEUE_DESC_LOW, queue.descriptors());
            self.store(device + register::QUEUE_DRIVER_LOW, queue.available());
            self.store(device + register::QUEUE_DEVICE_LOW, queue.used());
            self.store(device + register::QUEUE_READY, 1);
            made.push(queue);
        }
        self.store(device + register::STATUS, 15);
        made
    }

    /// Hands a request of these parts to the device.
    pub(crate) fn offer(&mut self, queue: &mut Queue, parts: &[Part]) {
        let first = queue.descriptors;
        for (place, part) in parts.iter().enumerate() {
            let (length, room) = match part {
                Part::Bytes(bytes) => (u32::try_from(bytes.len()).expect("short"), false),
                Part::Room(length) => (*length, true),
            };
            if let Part::Bytes(bytes) = part {
                for (at, word) in (queue.free..).step_by(4).zip(bytes.chunks(4)) {
                    let mut whole = [0; 4];
                    whole[..word.len()].copy_from_slice(word);
                    self.store(at, u32::from_le_bytes(whole));
                }
            }
            let more = place + 1 < parts.len();
            let next = queue.descriptors + 1;
            // Address, length, flags (NEXT 1, WRITE 2), next (virtio 1.2, 2.7.5).
            let descriptor = queue.descriptors() + u32::from(queue.descriptors) * 16;
            let flags = u32::from(more) | u32::from(room) << 1;
            self.store(descriptor, queue.free);
            self.store(descriptor + 4, 0);
            self.store(descriptor + 8, length);
            self.store(descriptor + 12, flags | u32::from(next) << 16);
            queue.free += length.next_multiple_of(16);
            queue.descriptors = next;
        }
        assert!(queue.descriptors <= SIZE, "a longer queue");
        // Flags, index, ring of 16 bits each (2.7.6).
        let entry = queue.available() + 4 + u32::from(queue.requests) * 2;
        self.store_half(entry, first);
        queue.requests += 1;
        self.store(queue.available(), u32::from(queue.requests) << 16);
        self.store(queue.device + register::QUEUE_NOTIFY, queue.index);
    }

    /// Where the memory of the next part is.
    pub(crate) fn next(queue: &Queue) -> u32 {
        queue.free
    }

    /// Waits until the device has used all that it was offered.
    pub(crate) fn used(&mut self, queue: &Queue) {
        self.wait(queue.used() + 2, queue.requests);
    }
}
