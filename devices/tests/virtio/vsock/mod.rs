//! The socket device: programs of the host that do what they are told, and a guest that does what it must not.

mod credit;
mod deadlines;
mod life;
mod model;
mod packets;

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::virtio::Count;
use devices::virtio::vsock::{
    Cid, Counts, Event, Host, Place, Port, Refusal, Stream, Token, Vsock,
};
use tsc::Nanos;
use vm_memory::VolatileSlice;

use crate::driver::*;

const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;

const GUEST: u64 = 52;
const HEADER: usize = 44;
const ROOM_OF_DEVICE: u32 = 256 * 1024;
/// The same for a connection that is not among the first 64.
const ROOM_AMONG_MANY: u32 = 64 * 1024;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

const NO_MORE_TAKEN: u32 = 1;
const NO_MORE_SENT: u32 = 2;

/// A connection between a program and the device. A program that is gone took what it took.
#[derive(Default)]
struct Link {
    to_guest: VecDeque<u8>,
    to_program: VecDeque<u8>,
    /// How many bytes the program's side keeps.
    room: usize,
    token: Option<Token>,
    watches_room: bool,
    program_ended: bool,
    program_gone: bool,
    /// What the next read without bytes fails with.
    fault: Option<ErrorKind>,
    /// How many pieces of memory each read was for, that brought bytes.
    reads: Vec<usize>,
    /// What the device did.
    reading_ended: bool,
    writing_ended: bool,
    closed: bool,
}

impl Link {
    fn has_news(&self) -> bool {
        !self.to_guest.is_empty() || self.program_ended || self.program_gone
    }
}

/// The host: events are told once, as by an edge-triggered epoll.
#[derive(Default)]
struct World {
    links: Vec<Link>,
    calling: VecDeque<usize>,
    /// How often the device asked for one that calls.
    accepts: u32,
    listening: BTreeSet<u32>,
    /// Programs that the guest was connected to, with their ports.
    connected: VecDeque<(u32, usize)>,
    events: VecDeque<Event>,
    /// The device's thread is to be woken for them.
    wakes: bool,
    /// What the next accept and connect fail with.
    faults: VecDeque<ErrorKind>,
    told: Vec<(Refusal, ErrorKind)>,
    /// The time in nanoseconds.
    time: u64,
}

impl World {
    fn tell(&mut self, event: Event) {
        self.events.push_back(event);
        self.wakes = true;
    }
}

#[derive(Clone, Default)]
struct Outside(Arc<Mutex<World>>);

impl Outside {
    fn world(&self) -> MutexGuard<'_, World> {
        // One test's failure is not to be a panic within a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> usize {
        let mut world = self.world();
        world.links.push(Link {
            room: 200_000,
            ..Link::default()
        });
        world.links.len() - 1
    }

    /// A program that connects and asks for something.
    fn call(&self, text: &str) -> Program {
        let id = self.link();
        let mut world = self.world();
        world.calling.push_back(id);
        world.tell(Event::default());
        drop(world);
        let program = Program(self.clone(), id);
        program.send(text.as_bytes());
        program
    }

    fn listen(&self, port: u32) {
        self.world().listening.insert(port);
    }

    /// The program that the guest was connected to.
    fn connected(&self) -> Option<(u32, Program)> {
        let (port, id) = self.world().connected.pop_front()?;
        Some((port, Program(self.clone(), id)))
    }
}

/// A program's end of a link.
#[derive(Clone)]
struct Program(Outside, usize);

impl Program {
    fn change<T>(&self, change: impl FnOnce(&mut Link) -> T) -> T {
        change(&mut self.0.world().links[self.1])
    }

    fn tell(&self, readable: bool, writable: bool, hung_up: bool) {
        let mut world = self.0.world();
        if let Some(token) = world.links[self.1].token {
            world.tell(Event {
                place: Place::Stream(token),
                readable,
                writable,
                hung_up,
            });
        }
    }

    fn send(&self, bytes: &[u8]) {
        self.change(|link| link.to_guest.extend(bytes));
        self.tell(true, false, false);
    }

    fn take(&self, most: usize) -> Vec<u8> {
        let (bytes, watched) = self.change(|link| {
            let count = most.min(link.to_program.len());
            (link.to_program.drain(..count).collect(), link.watches_room)
        });
        if watched {
            self.tell(false, true, false);
        }
        bytes
    }

    fn text(&self) -> String {
        String::from_utf8(self.take(usize::MAX)).unwrap()
    }

    fn end(&self) {
        self.change(|link| link.program_ended = true);
        self.tell(true, false, false);
    }

    fn go(&self) {
        self.change(|link| link.program_gone = true);
        self.tell(true, true, true);
    }

    fn is_closed(&self) -> bool {
        self.change(|link| link.closed)
    }
}

/// The device's end.
struct End(Program);

impl Stream for End {
    fn read(&mut self, into: &[VolatileSlice<'_, ()>]) -> io::Result<usize> {
        self.0.change(|link| {
            let mut count = 0;
            for piece in into {
                let here = piece.len().min(link.to_guest.len());
                let bytes: Vec<u8> = link.to_guest.drain(..here).collect();
                piece.copy_from(&bytes);
                count += here;
            }
            if count > 0 {
                link.reads.push(into.len());
            }
            match (count, link.fault.take()) {
                (0, Some(fault)) => Err(fault.into()),
                (0, None) if !link.has_news() => Err(ErrorKind::WouldBlock.into()),
                (count, _) => Ok(count),
            }
        })
    }

    fn write(&mut self, from: VolatileSlice<'_, ()>) -> io::Result<usize> {
        self.0.change(|link| {
            if link.program_gone {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let count = from.len().min(link.room - link.to_program.len());
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let mut bytes = vec![0; count];
            from.copy_to(&mut bytes);
            link.to_program.extend(bytes);
            Ok(count)
        })
    }

    fn end_reading(&mut self) {
        self.0.change(|link| link.reading_ended = true);
    }

    fn end_writing(&mut self) {
        self.0.change(|link| link.writing_ended = true);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.change(|link| {
            link.closed = true;
            link.token = None;
        });
    }
}

impl Host for Outside {
    type Stream = End;

    fn now(&mut self) -> Nanos {
        Nanos::new(self.world().time)
    }

    fn accept(&mut self) -> io::Result<Option<End>> {
        let mut world = self.world();
        world.accepts += 1;
        if let Some(fault) = world.faults.pop_front() {
            return Err(fault.into());
        }
        let id = world.calling.pop_front();
        drop(world);
        Ok(id.map(|id| End(Program(self.clone(), id))))
    }

    fn connect(&mut self, port: Port) -> io::Result<End> {
        if let Some(fault) = self.world().faults.pop_front() {
            return Err(fault.into());
        }
        if !self.world().listening.contains(&port.0) {
            return Err(ErrorKind::NotFound.into());
        }
        let id = self.link();
        self.world().connected.push_back((port.0, id));
        Ok(End(Program(self.clone(), id)))
    }

    fn watch(&mut self, stream: &End, token: Token, room: bool, again: bool) -> io::Result<()> {
        let now = stream.0.change(|link| {
            assert_eq!(link.token.is_some(), again);
            link.token = Some(token);
            link.watches_room = room;
            let writable = room && link.to_program.len() < link.room;
            (link.has_news(), writable, link.program_gone)
        });
        stream.0.tell(now.0, now.1, now.2);
        Ok(())
    }

    fn poll(&mut self, events: &mut [Event]) -> io::Result<usize> {
        let mut world = self.world();
        let mut count = 0;
        while count < events.len() {
            let Some(event) = world.events.pop_front() else {
                break;
            };
            events[count] = event;
            count += 1;
        }
        Ok(count)
    }
}

/// A packet as the guest sees it, or sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    source: u64,
    destination: u64,
    from: u32,
    to: u32,
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    room: u32,
    passed: u32,
    payload: Vec<u8>,
}

impl Packet {
    /// From the guest's port `from` to the host's port `to`.
    fn new(from: u32, to: u32, op: u16) -> Self {
        Self {
            source: GUEST,
            destination: 2,
            from,
            to,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            room: 1 << 20,
            passed: 0,
            payload: Vec::new(),
        }
    }

    fn with(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self.len = payload.len() as u32;
        self
    }

    fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    fn credit(mut self, room: u32, passed: u32) -> Self {
        (self.room, self.passed) = (room, passed);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_le_bytes());
        bytes.extend(self.destination.to_le_bytes());
        bytes.extend(self.from.to_le_bytes());
        bytes.extend(self.to.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.room.to_le_bytes());
        bytes.extend(self.passed.to_le_bytes());
        assert_eq!(bytes.len(), HEADER);
        bytes.extend(&self.payload);
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        Self {
            source: u64_at(0),
            destination: u64_at(8),
            from: u32_at(16),
            to: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            room: u32_at(36),
            passed: u32_at(40),
            payload: bytes[HEADER..].to_vec(),
        }
    }
}

/// Each buffer for a packet of the host has so many bytes.
const BUFFER: u64 = 0x1000;
/// Where the guest puts its packets.
const OUT: u64 = ROOM + 16 * BUFFER;

/// A guest whose driver takes turns between the queues.
struct Guest {
    driver: Driver<Vsock<Outside>>,
    outside: Outside,
    counts: Arc<Counts>,
    has_driver: bool,
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_all();
        guest
    }

    fn without_buffers() -> Self {
        let outside = Outside::default();
        let told = outside.clone();
        let device = Vsock::new(
            Cid::guest(GUEST as u32).unwrap(),
            outside.clone(),
            Box::new(move |refusal, error| told.world().told.push((refusal, error.kind()))),
        );
        let counts = device.counts();
        let driver = Driver::ready(device, 0);
        Self {
            driver,
            outside,
            counts,
            has_driver: true,
        }
    }

    fn give_all(&mut self) {
        for head in 0..self.driver.size {
            self.give(head);
        }
    }

    fn give(&mut self, head: u16) {
        self.driver.queue = RX;
        let address = ROOM + u64::from(head) * BUFFER;
        self.driver
            .put_from(head, &[(address, BUFFER as u32, true)]);
    }

    /// Sends a packet, and sees that the device is done with it.
    fn send(&mut self, packet: &Packet) {
        assert!(self.offers(packet), "the device takes no packets");
    }

    fn offers(&mut self, packet: &Packet) -> bool {
        self.driver.queue = TX;
        let bytes = packet.bytes();
        self.driver.fill(OUT, &bytes);
        let header = bytes.len().min(HEADER) as u32;
        let rest = bytes.len() as u32 - header;
        let whole = [(OUT, header, false), (OUT + 44, rest, false)];
        self.driver.put(&whole[..if rest > 0 { 2 } else { 1 }]);
        self.run();
        self.driver.queue = TX;
        self.driver.used().is_some()
    }

    /// What has come, until nothing more does.
    fn received(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            self.run();
            let before = packets.len();
            self.driver.queue = RX;
            let mut heads = Vec::new();
            while let Some((head, len)) = self.driver.used() {
                let address = ROOM + u64::from(head) * BUFFER;
                let packet = Packet::parse(&self.driver.bytes(address, len as usize));
                assert_eq!(packet.len as usize, packet.payload.len());
                assert_eq!((packet.source, packet.destination), (2, GUEST));
                packets.push(packet);
                heads.push(head as u16);
            }
            for head in heads {
                self.give(head);
            }
            if packets.len() == before {
                return packets;
            }
        }
    }

    /// What has come: one packet.
    fn one(&mut self) -> Packet {
        let mut packets = self.received();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// The guest connects to a program that listens.
    fn connect(&mut self, from: u32, to: u32) -> Program {
        let (program, room) = self.connect_for_room(from, to);
        assert_eq!(room, ROOM_OF_DEVICE);
        program
    }

    /// The same, and how many bytes the device keeps.
    fn connect_for_room(&mut self, from: u32, to: u32) -> (Program, u32) {
        self.outside.listen(to);
        self.send(&Packet::new(from, to, REQUEST));
        let response = self.one();
        let expected = (to, from, RESPONSE, 0);
        let Packet {
            from,
            to,
            op,
            room,
            passed,
            ..
        } = response;
        assert_eq!((from, to, op, passed), expected);
        (self.outside.connected().expect("connected").1, room)
    }

    /// A program connects to the guest: it, and its port.
    fn called(&mut self, port: u32) -> (Program, u32) {
        let program = self.outside.call(&format!("CONNECT {port}\n"));
        let request = self.one();
        assert_eq!((request.to, request.op), (port, REQUEST));
        self.send(&Packet::new(port, request.from, RESPONSE));
        assert_eq!(program.text(), format!("OK {}\n", request.from));
        assert_eq!(self.received(), []);
        (program, request.from)
    }

    /// The device's thread runs as often as it is told of something.
    fn run(&self) {
        loop {
            // As an edge-triggered epoll on the host's does: for new events, not for those that are left.
            if std::mem::take(&mut self.outside.world().wakes) {
                self.driver.run();
            } else {
                self.driver.engine.run_notified();
            }
            if self.outside.world().events.is_empty() || !self.has_driver {
                return;
            }
        }
    }

    fn is_well(&mut self) -> bool {
        self.driver.read(STATUS) & NEEDS_RESET == 0
    }
}

/// Bytes that tell their places.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|place| (place / 251 + place) as u8)
        .collect()
}
