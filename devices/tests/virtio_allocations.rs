//! Serving requests allocates nothing: a process of its own, whose allocator counts.
#![expect(
    clippy::cast_possible_truncation,
    reason = "a driver writes 64-bit numbers in halves"
)]

#[path = "virtio/counting.rs"]
mod counting;
#[path = "virtio/driver.rs"]
#[allow(dead_code, reason = "the other tests use all of it")]
mod driver;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use counting::ALLOCATIONS;
use devices::rate_limiter::{Bucket, RateLimiter};
use devices::virtio::balloon::{self, Balloon, Options};
use devices::virtio::block::{Access, Block, Cache, Image, Serial};
use devices::virtio::entropy::Entropy;
use devices::virtio::net::{Detour, HEADER, Identity, Link, Net, Offloads};
use devices::virtio::pmem::Pmem;
use devices::virtio::vsock::{Cid, Event, Host, Place, Port, Stream, Token, Vsock};
use devices::virtio::{Buffers, Device, Next};
use driver::*;
use tsc::Nanos;
use vm_memory::{GuestAddress, VolatileSlice};

/// How much serving what is there allocates.
fn allocations_of<D: Device>(driver: &Driver<D>) -> u64 {
    let before = ALLOCATIONS.get();
    assert_eq!(driver.run(), Next::Notification);
    ALLOCATIONS.get() - before
}

fn limiter() -> RateLimiter {
    let bucket = || Some(Bucket::new(1 << 40, 0, Nanos::new(1)).expect("in bounds"));
    RateLimiter::new(bucket(), bucket(), Box::new(|| Nanos::ZERO))
}

#[test]
fn allocator_counts() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}

#[test]
fn disk_serves_without_allocating() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("room");
    let image = Image::open(file.path(), Access::ReadWrite).expect("an image");
    let device = Block::new(
        image,
        Serial::new("disk"),
        Cache::Writeback,
        limiter(),
        Box::new(|_, _| {}),
    );
    let all = 1 << 9 | 1 << 13 | 1 << 14;
    let mut driver = Driver::ready(device, all | EVENT_INDEX | INDIRECT);
    // (kind, sector, bytes, whether the device writes them); the last are errors
    let rows = [
        (0_u32, 0_u64, 4096_u32, true),
        (0, 100, 4096, true),
        (1, 7, 4096, false),
        (4, 0, 0, false),
        (8, 0, 20, true),
        (13, 0, 16, false),
        (0, 1 << 40, 512, true),
        (99, 0, 512, true),
    ];
    for (kind, sector, len, writable) in rows {
        driver.store(ROOM, kind);
        driver.store(ROOM + 8, sector);
        driver.put(&[
            (ROOM, 16, false),
            (ROOM + 0x1000, len / 2, writable),
            (ROOM + 0x4000, len - len / 2, writable),
            (ROOM + 0x100, 1, true),
        ]);
        assert_eq!(allocations_of(&driver), 0, "{kind} {sector:#x}");
        assert!(driver.used().is_some());
    }
}

#[test]
fn entropy_serves_without_allocating() {
    let source = Box::new(|bytes: &mut [u8]| {
        bytes.fill(1);
        Ok(())
    });
    let device = Entropy::new(source, limiter(), Box::new(|_| {}));
    let mut driver = Driver::ready(device, EVENT_INDEX);
    driver.put(&[(ROOM, 4096, true)]);
    assert_eq!(allocations_of(&driver), 0);
    assert_eq!(driver.used(), Some((0, 4096)));
}

/// A host that takes every page, and whose time stands still until it is set.
#[derive(Clone, Default)]
struct Taker(Arc<AtomicU64>);

impl balloon::Host for Taker {
    fn now(&mut self) -> Nanos {
        Nanos::new(self.0.load(Ordering::SeqCst))
    }

    fn give_back(&mut self, _: GuestAddress, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn balloon_serves_without_allocating() {
    let options = Options {
        statistics: Some(Nanos::new(10)),
        reporting: true,
        ..Options::default()
    };
    let host = Taker::default();
    let device = Balloon::new(host.clone(), options, Box::new(|_| {}));
    let mut driver = Driver::ready(device, 1 << 1 | 1 << 5 | EVENT_INDEX);
    let numbers: Vec<u8> = (0..3_000_u32).rev().flat_map(u32::to_le_bytes).collect();
    driver.fill(ROOM, &numbers);
    // Pages in, of which some are not there; pages out; freed ones.
    for (queue, buffer) in [
        (0, (ROOM, 12_000, false)),
        (1, (ROOM, 1_024, false)),
        (3, (ROOM + 0x1_0000, 0x8000, true)),
    ] {
        driver.queue = queue;
        driver.put(&[buffer]);
        assert_eq!(allocations_of(&driver), 0, "{queue}");
        assert_eq!(driver.used(), Some((0, 0)));
    }
    // Statistics, which are held.
    driver.queue = 2;
    driver.put(&[(ROOM, 100, false)]);
    let before = ALLOCATIONS.get();
    assert_eq!(driver.run(), Next::After(Nanos::new(10)));
    assert_eq!(ALLOCATIONS.get() - before, 0);
    host.0.store(10, Ordering::SeqCst);
    assert_eq!(allocations_of(&driver), 0);
    assert_eq!(driver.used(), Some((0, 0)));
}

#[test]
fn persistent_memory_is_flushed_without_allocating() {
    let mut fails = false;
    let flush = Box::new(move || {
        fails = !fails;
        if fails {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    });
    let place = (GuestAddress(1 << 32), 2 << 20);
    let device = Pmem::new(place, 1 << 20, flush, limiter(), Box::new(|_| {}));
    let mut driver = Driver::ready(device, EVENT_INDEX);
    // Flushes that fail and do not, and what is none.
    for (kind, answer) in [(0_u32, 1_u32), (0, 0), (7, 1)] {
        driver.store(ROOM, kind);
        driver.put(&[(ROOM, 4, false), (ROOM + 0x100, 4, true)]);
        assert_eq!(allocations_of(&driver), 0, "{kind}");
        assert_eq!(driver.used(), Some((0, 4)));
        assert_eq!(driver.load::<u32>(ROOM + 0x100), answer);
    }
}

#[test]
fn protocol_violation_is_found_without_allocating() {
    let source = Box::new(|_: &mut [u8]| Ok(()));
    let device = Entropy::new(source, limiter(), Box::new(|_| {}));
    let mut driver = Driver::ready(device, 0);
    driver.describe_at(DESCRIPTORS, 0, (ROOM, 4, NEXT, 0));
    driver.make_available(0);
    assert_eq!(allocations_of(&driver), 0);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
}

/// A link that takes everything, and has a frame when it is told so; and a detour that wants nothing.
#[derive(Clone, Default)]
struct Cable(Arc<AtomicBool>);

impl Link for Cable {
    fn offload(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &Buffers<'_>) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let has = self.0.swap(false, Ordering::SeqCst);
        into[..100].fill(0);
        Ok(has.then_some(100))
    }
}

impl Detour for Cable {
    fn wants(&self, beginning: &[u8]) -> bool {
        beginning.first() == Some(&1)
    }

    fn room(&mut self, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn arrived(&mut self) {}

    fn give(&mut self, _: &mut [u8]) -> Option<usize> {
        None
    }

    fn wait(&mut self) -> Option<Nanos> {
        None
    }
}

#[test]
fn card_serves_without_allocating_with_a_detour_and_without() {
    for detour in [false, true] {
        let cable = Cable::default();
        let link = Box::new(cable.clone());
        let mut net = Net::new(
            link,
            Identity::default(),
            limiter(),
            limiter(),
            Box::new(|_, _| {}),
        );
        if detour {
            net = net.with_detour(Box::new(cable.clone()));
        }
        let mut driver = Driver::ready(net, EVENT_INDEX | 1 << 15);
        for (len, byte) in [(100, 0_u8), (60_000, 0), (20, 0), (100, 1)] {
            driver.store(ROOM + 0x1_0000 + HEADER as u64, byte);
            cable.0.store(true, Ordering::SeqCst);
            driver.queue = 0;
            driver.put_from(0, &[(ROOM, 60, true)]);
            driver.put_from(1, &[(ROOM + 0x1000, 60, true)]);
            driver.queue = 1;
            driver.put(&[
                (ROOM + 0x1_0000, len / 2, false),
                (ROOM + 0x1_0000 + u64::from(len / 2), len - len / 2, false),
            ]);
            assert_eq!(allocations_of(&driver), 0, "{detour} {len}");
            assert!(driver.used().is_some());
            driver.queue = 0;
            assert_eq!(
                (driver.used(), driver.used()),
                (Some((0, 60)), Some((1, 40)))
            );
        }
    }
}

/// A program that takes everything but for a while, and says something when it is told to.
#[derive(Clone, Default)]
struct Program {
    speaks: Arc<AtomicBool>,
    is_full: Arc<AtomicBool>,
    token: Option<Token>,
}

impl Stream for Program {
    fn read(&mut self, into: &[VolatileSlice<'_, ()>]) -> io::Result<usize> {
        if self.speaks.swap(false, Ordering::SeqCst) {
            return Ok(into.iter().map(VolatileSlice::len).sum());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, from: VolatileSlice<'_, ()>) -> io::Result<usize> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(from.len())
    }

    fn end_reading(&mut self) {}

    fn end_writing(&mut self) {}
}

impl Host for Program {
    type Stream = Self;

    fn now(&mut self) -> Nanos {
        Nanos::ZERO
    }

    fn accept(&mut self) -> io::Result<Option<Self>> {
        Ok(None)
    }

    fn connect(&mut self, _: Port) -> io::Result<Self> {
        Ok(self.clone())
    }

    fn watch(&mut self, _: &Self, token: Token, _: bool, _: bool) -> io::Result<()> {
        self.token = Some(token);
        Ok(())
    }

    fn poll(&mut self, events: &mut [Event]) -> io::Result<usize> {
        let Some(token) = self.token else {
            return Ok(0);
        };
        events[0] = Event {
            place: Place::Stream(token),
            readable: true,
            writable: true,
            hung_up: false,
        };
        Ok(1)
    }
}

/// A program that connects to the guest's port 1, and what it was told since.
#[derive(Clone, Default)]
struct Caller {
    has_called: bool,
    token: Option<Token>,
    told: Arc<AtomicU64>,
}

impl Stream for Caller {
    fn read(&mut self, into: &[VolatileSlice<'_, ()>]) -> io::Result<usize> {
        let line = b"CONNECT 1\n";
        into[0].copy_from(&line[..]);
        Ok(line.len())
    }

    fn write(&mut self, from: VolatileSlice<'_, ()>) -> io::Result<usize> {
        self.told.fetch_add(from.len() as u64, Ordering::SeqCst);
        Ok(from.len())
    }

    fn end_reading(&mut self) {}

    fn end_writing(&mut self) {}
}

impl Host for Caller {
    type Stream = Self;

    fn now(&mut self) -> Nanos {
        Nanos::ZERO
    }

    fn accept(&mut self) -> io::Result<Option<Self>> {
        let has_called = std::mem::replace(&mut self.has_called, true);
        Ok((!has_called).then(|| self.clone()))
    }

    fn connect(&mut self, _: Port) -> io::Result<Self> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn watch(&mut self, _: &Self, token: Token, _: bool, _: bool) -> io::Result<()> {
        self.token = Some(token);
        Ok(())
    }

    fn poll(&mut self, events: &mut [Event]) -> io::Result<usize> {
        let place = match self.token {
            _ if !self.has_called => Place::Listener,
            Some(token) => Place::Stream(token),
            None => return Ok(0),
        };
        events[0] = Event {
            place,
            readable: self.has_called,
            writable: false,
            hung_up: false,
        };
        Ok(1)
    }
}

#[test]
fn answer_of_the_guest_is_told_its_program_without_allocating() {
    let caller = Caller::default();
    let guest = Cid::guest(3).expect("not reserved");
    let device = Vsock::new(guest, caller.clone(), Box::new(|_, _| {}));
    let mut driver = Driver::ready(device, EVENT_INDEX);
    driver.queue = 0;
    driver.put(&[(ROOM + 0x1_0000, 4_096, true)]);
    // Taking a program's connection may allocate, and so may asking the guest.
    let mut asked = None;
    while asked.is_none() {
        driver.run();
        asked = driver.used();
    }
    assert_eq!(asked, Some((0, 44)));
    let ours = driver.load::<u32>(ROOM + 0x1_0000 + 16);
    packet(&driver, 2, 0);
    driver.store(ROOM + 16, 1_u32);
    driver.store(ROOM + 20, ours);
    driver.queue = 1;
    driver.put(&[(ROOM, 44, false)]);
    let before = ALLOCATIONS.get();
    driver.run();
    assert_eq!(ALLOCATIONS.get() - before, 0);
    let line = format!("OK {ours}\n");
    assert_eq!(caller.told.load(Ordering::SeqCst), line.len() as u64);
}

/// Puts a packet of the guest 3, from port 1,000 to port 80, where [`driver`] sends it from.
fn packet<H: Host>(driver: &Driver<Vsock<H>>, op: u16, len: u32) {
    driver.store(ROOM, 3_u64);
    driver.store(ROOM + 8, 2_u64);
    for (at, value) in [
        (16, 1_000),
        (20, 80),
        (24, len),
        (32, 0),
        (36, 1 << 20),
        (40, 0_u32),
    ] {
        driver.store(ROOM + at, value);
    }
    driver.store(ROOM + 28, 1_u16);
    driver.store(ROOM + 30, op);
}

#[test]
fn connection_carries_bytes_without_allocating() {
    let program = Program::default();
    let guest = Cid::guest(3).expect("not reserved");
    let device = Vsock::new(guest, program.clone(), Box::new(|_, _| {}));
    let mut driver = Driver::ready(device, EVENT_INDEX);
    // Connecting may allocate.
    packet(&driver, 1, 0);
    driver.queue = 1;
    driver.put(&[(ROOM, 44, false)]);
    driver.queue = 0;
    driver.put(&[(ROOM + 0x1_0000, 4_096, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 44)));
    // Bytes that are taken at once, bytes that wait, and these in the end; a question for credit.
    for (op, len, is_full, answer) in [
        (5, 10_000, false, None),
        (5, 10_000, true, None),
        (7, 0, true, Some((0, 44))),
        (5, 50_000, false, None),
        (5, 50_000, false, None),
        (5, 50_000, false, Some((0, 44))),
    ] {
        program.is_full.store(is_full, Ordering::SeqCst);
        packet(&driver, op, len);
        driver.queue = 1;
        driver.put(&[(ROOM, 44, false), (ROOM + 0x1000, len, false)]);
        driver.queue = 0;
        driver.put(&[(ROOM + 0x1_0000, 4_096, true)]);
        assert_eq!(allocations_of(&driver), 0, "{op} {len} {is_full}");
        assert_eq!(driver.used(), answer, "{op} {len} {is_full}");
        driver.queue = 1;
        assert!(driver.used().is_some());
        driver.queue = 0;
    }
    // A program that fills one buffer gets two at once the next time, of those that were not needed so far.
    for buffers in [1, 2] {
        program.speaks.store(true, Ordering::SeqCst);
        assert_eq!(allocations_of(&driver), 0);
        for _ in 0..buffers {
            assert_eq!(driver.used(), Some((0, 4_096)));
        }
        assert_eq!(driver.used(), None);
    }
    // And for a connection that there is not.
    packet(&driver, 7, 0);
    driver.store(ROOM + 16, 7_u32);
    driver.queue = 1;
    driver.put(&[(ROOM, 44, false)]);
    assert_eq!(allocations_of(&driver), 0);
    driver.queue = 0;
    assert_eq!(driver.used(), Some((0, 44)));
}
