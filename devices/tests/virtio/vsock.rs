//! The socket device: programs of the host that do what they are told, and a guest that does what it must not.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::virtio::vsock::{
    Cid, Event, Host, MAX_CONNECTIONS, Place, Port, Refusal, Stream, Token, Vsock,
};
use proptest::prelude::*;
use vm_memory::VolatileSlice;

use crate::driver::*;

const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;

const GUEST: u64 = 52;
const HEADER: usize = 44;
const ROOM_OF_DEVICE: u32 = 64 * 1024;

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
    /// What the next accept and connect fail with.
    faults: VecDeque<ErrorKind>,
    told: Vec<(Refusal, ErrorKind)>,
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
        world.events.push_back(Event::default());
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
            world.events.push_back(Event {
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
    fn read(&mut self, into: VolatileSlice<'_, ()>) -> io::Result<usize> {
        self.0.change(|link| {
            let count = into.len().min(link.to_guest.len());
            let bytes: Vec<u8> = link.to_guest.drain(..count).collect();
            into.copy_from(&bytes);
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
        let driver = Driver::ready(device, 0);
        Self {
            driver,
            outside,
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
        self.outside.listen(to);
        self.send(&Packet::new(from, to, REQUEST));
        let response = self.one();
        let expected = (to, from, RESPONSE, ROOM_OF_DEVICE, 0);
        let Packet {
            from,
            to,
            op,
            room,
            passed,
            ..
        } = response;
        assert_eq!((from, to, op, room, passed), expected);
        self.outside.connected().expect("connected").1
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
            self.driver.run();
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

#[test]
fn guest_learns_its_address_and_that_there_are_streams() {
    let mut guest = Guest::new();
    assert_eq!(guest.driver.read(DEVICE_ID), 19);
    assert_eq!(guest.driver.read(CONFIG), GUEST as u32);
    assert_eq!(guest.driver.read(CONFIG + 4), 0);
    assert_eq!(guest.driver.offered() & 0xff, 1);
}

#[test]
fn guest_connects_and_both_sides_speak() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, RW).with(b"hello"));
    assert_eq!(program.text(), "hello");
    program.send(b"good day");
    let packet = guest.one();
    assert_eq!((packet.from, packet.to, packet.op), (80, 1_000, RW));
    assert_eq!(packet.payload, b"good day");
    // What was passed on is told with every packet.
    assert_eq!((packet.room, packet.passed), (ROOM_OF_DEVICE, 5));
    assert_eq!(guest.received(), []);
}

#[test]
fn program_connects_and_both_sides_speak() {
    let mut guest = Guest::new();
    // What it says after its line is the guest's.
    let program = guest.outside.call("CONNECT 52\nearly");
    let request = guest.one();
    assert_eq!(
        (request.from, request.to, request.op),
        (1 << 30, 52, REQUEST)
    );
    assert_eq!(program.text(), "");
    guest.send(&Packet::new(52, 1 << 30, RESPONSE));
    assert_eq!(program.text(), "OK 1073741824\n");
    assert_eq!(guest.one().payload, b"early");
    guest.send(&Packet::new(52, 1 << 30, RW).with(b"late"));
    assert_eq!(program.text(), "late");
}

#[test]
fn line_of_a_program_may_come_in_pieces_and_must_be_one() {
    let mut guest = Guest::new();
    let program = guest.outside.call("CONN");
    for piece in ["ECT", " 5", "2"] {
        assert_eq!(guest.received(), []);
        program.send(piece.as_bytes());
    }
    assert_eq!(guest.received(), []);
    program.send(b"\n");
    assert_eq!(guest.one().op, REQUEST);
    for line in [
        "HI\n",
        "CONNECT\n",
        "CONNECT 1 2\n",
        "CONNECT\n5\n",
        "CONNECT 4294967296\n",
        "GET / HTTP/1.1\r\n",
        "CONNECT 00000000000000000000000000000001",
    ] {
        let program = guest.outside.call(line);
        assert_eq!(guest.received(), [], "{line}");
        assert!(program.is_closed(), "{line}");
    }
    let program = guest.outside.call("CONNECT ");
    program.go();
    assert_eq!(guest.received(), []);
    assert!(program.is_closed());
}

#[test]
fn connection_that_nobody_serves_is_reset() {
    let mut guest = Guest::new();
    guest.send(&Packet::new(1_000, 81, REQUEST));
    let reset = guest.one();
    assert_eq!(
        (reset.from, reset.to, reset.op, reset.kind),
        (81, 1_000, RST, 1)
    );
    // And the other way.
    let program = guest.outside.call("CONNECT 52\n");
    let request = guest.one();
    guest.send(&Packet::new(52, request.from, RST));
    assert!(program.is_closed());
    assert_eq!(program.text(), "");
    assert_eq!(guest.received(), []);
}

#[test]
fn program_that_is_gone_before_the_guest_answers_is_told_as_a_reset() {
    let mut guest = Guest::new();
    let program = guest.outside.call("CONNECT 52\n");
    let request = guest.one();
    program.go();
    let reset = guest.one();
    assert_eq!((reset.from, reset.to, reset.op), (request.from, 52, RST));
    assert!(program.is_closed());
    // The answer comes too late, and the guest is told once more.
    guest.send(&Packet::new(52, request.from, RESPONSE));
    assert_eq!(guest.one().op, RST);
}

#[test]
fn program_that_is_gone_before_the_guest_is_asked_is_not_told() {
    let mut guest = Guest::without_buffers();
    let program = guest.outside.call("CONNECT 52\n");
    guest.run();
    program.go();
    guest.run();
    assert!(program.is_closed());
    guest.give_all();
    assert_eq!(guest.received(), []);
}

#[test]
fn host_is_asked_for_connections_only_when_there_is_one() {
    let mut guest = Guest::new();
    let (program, port) = guest.called(52);
    let accepts = guest.outside.world().accepts;
    // The one, and that there is no other.
    assert_eq!(accepts, 2);
    guest.send(&Packet::new(52, port, RW).with(b"x"));
    program.send(b"y");
    assert_eq!(guest.one().payload, b"y");
    assert_eq!(guest.outside.world().accepts, accepts);
}

#[test]
fn host_that_refuses_is_told_once_each() {
    let mut guest = Guest::new();
    guest.outside.listen(80);
    for _ in 0..2 {
        guest
            .outside
            .world()
            .faults
            .push_back(ErrorKind::PermissionDenied);
        guest.send(&Packet::new(1_000, 80, REQUEST));
        assert_eq!(guest.one().op, RST);
    }
    guest
        .outside
        .world()
        .faults
        .push_back(ErrorKind::OutOfMemory);
    let _program = guest.outside.call("CONNECT 52\n");
    guest.run();
    assert_eq!(guest.one().op, REQUEST);
    let told = [
        (Refusal::Connect, ErrorKind::PermissionDenied),
        (Refusal::Accept, ErrorKind::OutOfMemory),
    ];
    assert_eq!(guest.outside.world().told, told);
}

#[test]
fn guest_that_ends_what_it_sends_still_takes() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, RW).with(b"question"));
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT));
    assert!(program.change(|link| link.writing_ended && !link.closed));
    assert_eq!(program.text(), "question");
    program.send(b"answer");
    assert_eq!(guest.one().payload, b"answer");
    program.go();
    let end = guest.one();
    assert_eq!(
        (end.op, end.flags),
        (SHUTDOWN, NO_MORE_SENT | NO_MORE_TAKEN)
    );
    guest.send(&Packet::new(1_000, 80, RST));
    assert!(program.is_closed());
    assert_eq!(guest.received(), []);
}

#[test]
fn guest_that_ends_what_it_takes_still_sends() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_TAKEN));
    assert!(program.change(|link| link.reading_ended && !link.writing_ended));
    program.send(b"unwanted");
    assert_eq!(guest.received(), []);
    guest.send(&Packet::new(1_000, 80, RW).with(b"more"));
    assert_eq!(program.text(), "more");
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT));
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn program_that_ends_what_it_sends_still_takes() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.send(b"question");
    program.end();
    let packets = guest.received();
    let ops: Vec<_> = packets
        .iter()
        .map(|packet| (packet.op, packet.flags))
        .collect();
    assert_eq!(ops, [(RW, 0), (SHUTDOWN, NO_MORE_SENT)]);
    guest.send(&Packet::new(1_000, 80, RW).with(b"answer"));
    assert_eq!(program.text(), "answer");
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT | NO_MORE_TAKEN));
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn last_bytes_of_a_program_that_is_gone_arrive() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let bytes = pattern(0, 10_000);
    program.send(&bytes);
    program.go();
    // The guest does not know yet, and is not reset for it.
    guest.send(&Packet::new(1_000, 80, RW).with(b"lost"));
    let mut packets = guest.received();
    let end = packets.pop().expect("an end");
    assert_eq!(
        (end.op, end.flags),
        (SHUTDOWN, NO_MORE_SENT | NO_MORE_TAKEN)
    );
    let arrived: Vec<u8> = packets
        .into_iter()
        .flat_map(|packet| packet.payload)
        .collect();
    assert_eq!(arrived, bytes);
}

#[test]
fn bytes_that_wait_for_a_program_that_is_gone_are_dropped() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 0);
    let all = pattern(0, ROOM_OF_DEVICE as usize);
    guest.send(&Packet::new(1_000, 80, RW).with(&all));
    program.go();
    let end = guest.one();
    assert_eq!((end.op, end.passed), (SHUTDOWN, ROOM_OF_DEVICE));
    // Also when the guest does not wait for that.
    let second = guest.connect(1_001, 80);
    second.change(|link| link.room = 0);
    guest.send(&Packet::new(1_001, 80, RW).with(&all));
    let ends = NO_MORE_SENT | NO_MORE_TAKEN;
    guest.send(&Packet::new(1_001, 80, SHUTDOWN).flags(ends));
    guest.send(&Packet::new(1_001, 80, RST));
    guest.run();
    assert!(!second.is_closed());
    second.go();
    guest.run();
    assert!(second.is_closed());
}

#[test]
fn stream_that_fails_is_a_reset() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.fault = Some(ErrorKind::ConnectionReset));
    program.send(b"");
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn guest_that_leaves_closes_the_stream_once_the_program_has_everything() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 10);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, 25)));
    let ends = NO_MORE_SENT | NO_MORE_TAKEN;
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(ends));
    // It does not wait for the answer, and uses its port anew.
    guest.send(&Packet::new(1_000, 80, RST));
    let second = guest.connect(1_000, 80);
    let mut arrived = Vec::new();
    for _ in 0..2 {
        assert!(!program.is_closed());
        arrived.extend(program.take(10));
        assert_eq!(guest.received(), []);
    }
    assert!(program.is_closed() && !second.is_closed());
    arrived.extend(program.take(10));
    assert_eq!(arrived, pattern(0, 25));
    guest.send(&Packet::new(1_000, 80, RW).with(b"second"));
    assert_eq!(second.text(), "second");
}

#[test]
fn guest_that_closes_is_answered_once_the_program_has_everything() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 10);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, 20)));
    let ends = NO_MORE_SENT | NO_MORE_TAKEN;
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(ends));
    assert_eq!(guest.received(), []);
    assert_eq!(program.take(10), pattern(0, 10));
    assert_eq!(guest.one().op, RST);
    assert_eq!(program.take(10), pattern(10, 10));
    assert!(program.is_closed());
}

#[test]
fn guest_without_reset_that_leaves_closes_at_once() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 10);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, 20)));
    guest.send(&Packet::new(1_000, 80, RST));
    assert!(program.is_closed());
}

#[test]
fn guest_gets_no_more_than_it_has_credit_for() {
    let mut guest = Guest::new();
    guest.outside.listen(80);
    guest.send(&Packet::new(1_000, 80, REQUEST).credit(100, 0));
    assert_eq!(guest.one().op, RESPONSE);
    let program = guest.outside.connected().expect("connected").1;
    program.send(&pattern(0, 250));
    let packets = guest.received();
    let ops: Vec<_> = packets.iter().map(|packet| packet.op).collect();
    // It is asked once.
    assert_eq!(ops, [RW, CREDIT_REQUEST]);
    assert_eq!(packets[0].payload, pattern(0, 100));
    program.send(b"");
    assert_eq!(guest.received(), []);
    // 30 were taken, 60 were, and then all of them.
    for (passed, from, len) in [(30, 100, 30), (60, 130, 30), (160, 160, 90)] {
        guest.send(&Packet::new(1_000, 80, CREDIT_UPDATE).credit(100, passed));
        let packets = guest.received();
        assert_eq!(packets[0].payload, pattern(from, len));
        let is_asked = packets.get(1).map(|packet| packet.op);
        assert_eq!(is_asked, (len < 90).then_some(CREDIT_REQUEST));
    }
}

#[test]
fn guest_that_contradicts_itself_about_credit_stalls_itself_alone() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let other = guest.connect(1_001, 80);
    // It passed on what was never sent to it, has less room than it holds, and has none.
    for (room, passed, gets) in [
        (u32::MAX, 1 << 31, true),
        (0, 0, false),
        (0, u32::MAX, false),
    ] {
        guest.send(&Packet::new(1_000, 80, CREDIT_UPDATE).credit(room, passed));
        program.send(b"a");
        other.send(b"b");
        let packets = guest.received();
        let came = |bytes: &[u8]| packets.iter().any(|packet| packet.payload == bytes);
        assert!(came(b"b") && came(b"a") == gets, "{packets:?}");
    }
    assert!(guest.is_well());
}

#[test]
fn guest_hears_of_room_before_it_has_none() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let (mut sent, mut passed, mut updates) = (0, 0, 0);
    while sent < 1 << 20 {
        let piece = pattern(sent, 4_096);
        guest.send(&Packet::new(1_000, 80, RW).with(&piece));
        sent += piece.len();
        assert_eq!(program.take(usize::MAX), piece);
        for packet in guest.received() {
            assert_eq!((packet.op, packet.room), (CREDIT_UPDATE, ROOM_OF_DEVICE));
            passed = packet.passed as usize;
            updates += 1;
        }
        assert!(
            sent - passed <= ROOM_OF_DEVICE as usize / 2,
            "{sent} {passed}"
        );
    }
    // One for 36 KiB: the first piece with which it knows of less than 32 KiB is the ninth. 256 / 9 = 28.4.
    assert_eq!(updates, 28);
}

#[test]
fn slow_program_stalls_its_own_connection() {
    let mut guest = Guest::new();
    let slow = guest.connect(1_000, 80);
    let other = guest.connect(1_001, 80);
    slow.change(|link| link.room = 1_000);
    // As much as it is allowed to: what the program took, and what the device keeps.
    let (mut sent, mut free) = (0, ROOM_OF_DEVICE as usize);
    while free > 0 {
        let piece = pattern(sent, free.min(4_000));
        guest.send(&Packet::new(1_000, 80, RW).with(&piece));
        sent += piece.len();
        free -= piece.len();
        for packet in guest.received() {
            assert_eq!(packet.op, CREDIT_UPDATE);
            free = (ROOM_OF_DEVICE + packet.passed) as usize - sent;
        }
    }
    guest.send(&Packet::new(1_001, 80, RW).with(b"swift"));
    assert_eq!(other.text(), "swift");
    assert_eq!(guest.received(), []);
    guest.send(&Packet::new(1_000, 80, CREDIT_REQUEST));
    let update = guest.one();
    assert_eq!((update.op, update.passed), (CREDIT_UPDATE, 1_000));
    let mut arrived = Vec::new();
    loop {
        let piece = slow.take(700);
        if piece.is_empty() {
            break;
        }
        arrived.extend(piece);
        guest.run();
    }
    assert_eq!(arrived, pattern(0, sent));
    let told = guest.received().pop().expect("told of room");
    assert_eq!(told.op, CREDIT_UPDATE);
    let free = (ROOM_OF_DEVICE + told.passed) as usize - sent;
    assert!(free >= ROOM_OF_DEVICE as usize / 2, "{free}");
}

#[test]
fn guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 0);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, ROOM_OF_DEVICE as usize)));
    assert_eq!(guest.received(), []);
    guest.send(&Packet::new(1_000, 80, RW).with(b"1"));
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn thousand_connections_each_way_speak_at_once() {
    for by_guest in [true, false] {
        let mut guest = Guest::new();
        let programs: Vec<_> = (0..1_000)
            .map(|port| match by_guest {
                true => (guest.connect(port, 80), 80),
                false => guest.called(port),
            })
            .collect();
        for (number, (program, _)) in programs.iter().enumerate() {
            program.send(&pattern(number, 5_000));
        }
        let mut arrived = vec![Vec::new(); programs.len()];
        for packet in guest.received() {
            assert_eq!(packet.op, RW);
            arrived[packet.to as usize].extend(packet.payload);
        }
        for (number, arrived) in arrived.iter().enumerate() {
            assert_eq!(*arrived, pattern(number, 5_000), "{number}");
        }
        for (number, (program, port)) in programs.iter().enumerate() {
            let bytes = pattern(number, 100);
            guest.send(&Packet::new(number as u32, *port, RW).with(&bytes));
            assert_eq!(program.take(200), bytes);
        }
    }
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new();
    let programs: Vec<_> = (0..20).map(|port| guest.connect(port, 80)).collect();
    for program in &programs {
        program.send(&pattern(0, 10_000));
    }
    let to: Vec<_> = guest.received().iter().map(|packet| packet.to).collect();
    // 10,000 bytes are three packets.
    let turn = 0..20;
    let expected: Vec<_> = turn.clone().chain(turn.clone()).chain(turn).collect();
    assert_eq!(to, expected);
}

#[test]
fn connections_have_a_limit_and_make_room_for_others() {
    let mut guest = Guest::new();
    let programs: Vec<_> = (0..MAX_CONNECTIONS as u32)
        .map(|port| guest.connect(port, 80))
        .collect();
    guest.send(&Packet::new(5_000, 80, REQUEST));
    assert_eq!(guest.one().op, RST);
    assert!(guest.outside.connected().is_none());
    let program = guest.outside.call("CONNECT 52\n");
    assert_eq!(guest.received(), []);
    assert!(program.is_closed());
    guest.send(&Packet::new(7, 80, RST));
    assert!(programs[7].is_closed());
    guest.connect(5_000, 80);
}

#[test]
fn packets_that_are_not_from_the_guest_to_the_host_are_dropped() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let data = Packet::new(1_000, 80, RW).with(b"x");
    for (source, destination) in [
        (GUEST + 1, 2),
        (GUEST, 3),
        (GUEST, GUEST),
        (2, GUEST),
        (GUEST | 1 << 32, 2),
    ] {
        let packet = Packet {
            source,
            destination,
            ..data.clone()
        };
        guest.send(&packet);
        assert_eq!(guest.received(), [], "{source} {destination}");
    }
    assert_eq!(program.text(), "");
    assert!(!program.is_closed() && guest.is_well());
}

#[test]
fn packet_that_is_not_whole_is_dropped_or_resets_its_connection() {
    let mut guest = Guest::new();
    guest.driver.queue = TX;
    for len in [0, 1, 43] {
        guest.driver.put(&[(OUT, len, false)]);
        guest.run();
        assert_eq!(guest.driver.used(), Some((0, 0)), "{len}");
        guest.driver.queue = TX;
    }
    for (port, len) in [(1, 6), (2, 65_537), (3, u32::MAX)] {
        let program = guest.connect(port, 80);
        let packet = Packet {
            len,
            ..Packet::new(port, 80, RW).with(b"five.")
        };
        guest.send(&packet);
        assert_eq!(guest.one().op, RST, "{len}");
        assert!(program.is_closed(), "{len}");
    }
    // More than it says: the rest is not part of it.
    let program = guest.connect(4, 80);
    let packet = Packet {
        len: 2,
        ..Packet::new(4, 80, RW).with(b"five.")
    };
    guest.send(&packet);
    assert_eq!(program.text(), "fi");
    assert!(guest.is_well());
}

#[test]
fn packets_without_a_connection_are_reset_but_resets() {
    let mut guest = Guest::new();
    for (op, kind) in [
        (0, 1),
        (2, 1),
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1),
        (0xffff, 1),
        (1, 2),
        (5, 0),
    ] {
        let packet = Packet {
            kind,
            ..Packet::new(1_000, 80, op)
        };
        guest.send(&packet);
        let reset = guest.one();
        assert_eq!(
            (reset.from, reset.to, reset.op, reset.kind),
            (80, 1_000, RST, kind),
            "{op}"
        );
    }
    guest.send(&Packet::new(1_000, 80, RST));
    assert_eq!(guest.received(), []);
}

#[test]
fn packets_that_make_no_sense_reset_their_connection() {
    for op in [0, REQUEST, RESPONSE, 8, 0xffff] {
        let mut guest = Guest::new();
        let program = guest.connect(1_000, 80);
        let other = guest.connect(1_001, 80);
        guest.send(&Packet::new(1_000, 80, op));
        // It is told once, whatever else it sends.
        guest.send(&Packet::new(1_000, 80, RST));
        assert_eq!(guest.received().len(), 1, "{op}");
        assert!(program.is_closed() && !other.is_closed(), "{op}");
    }
    // A kind of connection that there is not is not this one.
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let packet = Packet::new(1_000, 80, RW).with(b"x");
    guest.send(&Packet { kind: 2, ..packet });
    let reset = guest.one();
    assert_eq!((reset.op, reset.kind), (RST, 2));
    assert!(program.text().is_empty() && !program.is_closed());
    // Before it is open,
    for op in [RW, SHUTDOWN, REQUEST] {
        let mut guest = Guest::new();
        let program = guest.outside.call("CONNECT 52\n");
        let request = guest.one();
        guest.send(&Packet::new(52, request.from, op));
        assert_eq!(guest.one().op, RST, "{op}");
        assert!(program.is_closed(), "{op}");
    }
    // and after the guest said that nothing comes.
    let mut guest = Guest::new();
    guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT));
    guest.send(&Packet::new(1_000, 80, RW).with(b"x"));
    assert_eq!(guest.one().op, RST);
}

#[test]
fn answers_wait_for_buffers_and_packets_for_answers() {
    let mut guest = Guest::without_buffers();
    let packet = Packet::new(1, 80, CREDIT_REQUEST);
    for number in 0..256 {
        guest.send(&Packet {
            from: number,
            ..packet.clone()
        });
    }
    let last = Packet {
        from: 256,
        ..packet
    };
    assert!(!guest.offers(&last));
    guest.give_all();
    let packets = guest.received();
    let to: Vec<_> = packets.iter().map(|packet| packet.to).collect();
    assert_eq!(to, (0..=256).collect::<Vec<_>>());
    guest.driver.queue = TX;
    assert!(guest.driver.used().is_some());
}

#[test]
fn packet_is_answered_without_another_notification() {
    let mut guest = Guest::new();
    let bytes = Packet::new(1, 80, REQUEST).bytes();
    guest.driver.fill(OUT, &bytes);
    guest.driver.queue = TX;
    guest.driver.put(&[(OUT, 44, false)]);
    guest.driver.run();
    guest.driver.queue = RX;
    assert_eq!(guest.driver.used(), Some((0, 44)));
}

#[test]
fn buffer_without_room_for_a_packet_stops_the_device() {
    let mut guest = Guest::without_buffers();
    guest.driver.queue = RX;
    guest.driver.put(&[(ROOM, 44, true)]);
    guest.run();
    assert!(!guest.is_well());
}

#[test]
fn packets_are_spread_over_the_buffers_of_a_chain() {
    let mut guest = Guest::without_buffers();
    guest.outside.listen(80);
    guest.send(&Packet::new(1_000, 80, REQUEST));
    guest.driver.queue = RX;
    // The header is in two, the bytes are in three.
    let buffers = [(0, 30), (0x100, 20), (0x200, 7), (0x300, 100)];
    let buffers = buffers.map(|(at, len)| (ROOM + at, len, true));
    guest.driver.put(&buffers);
    guest.run();
    assert_eq!(guest.driver.used(), Some((0, 44)));
    let program = guest.outside.connected().expect("connected").1;
    program.send(&pattern(0, 50));
    guest.driver.put(&buffers);
    guest.run();
    assert_eq!(guest.driver.used(), Some((0, 94)));
    let mut bytes = guest.driver.bytes(ROOM, 30);
    bytes.extend(guest.driver.bytes(ROOM + 0x100, 20));
    bytes.extend(guest.driver.bytes(ROOM + 0x200, 7));
    bytes.extend(guest.driver.bytes(ROOM + 0x300, 37));
    assert_eq!(Packet::parse(&bytes).payload, pattern(0, 50));
    // The guest's, too.
    let bytes = Packet::new(1_000, 80, RW).with(&pattern(0, 50)).bytes();
    guest.driver.fill(OUT, &bytes);
    guest.driver.queue = TX;
    guest.driver.put(&[
        (OUT, 20, false),
        (OUT + 20, 30, false),
        (OUT + 50, 44, false),
    ]);
    guest.run();
    assert_eq!(program.take(100), pattern(0, 50));
}

#[test]
fn reset_of_the_device_ends_all_connections() {
    let mut guest = Guest::new();
    let programs = [guest.connect(1_000, 80), guest.called(52).0];
    let asking = guest.outside.call("CONNECT 53\n");
    guest.run();
    programs[0].send(b"never read");
    guest.send(&Packet::new(9, 9, RW));
    guest.driver.reset();
    guest.has_driver = false;
    for program in programs.iter().chain([&asking]) {
        assert!(program.is_closed());
    }
    // Who connects now waits for the next driver.
    let _waiting = guest.outside.call("CONNECT 54\n");
    guest.run();
    assert_eq!(guest.outside.world().calling.len(), 1);
    guest.driver.negotiate(VERSION_1);
    for queue in [EVENTS, TX, RX] {
        guest.driver.queue = queue;
        guest.driver.set_up_queue();
    }
    guest
        .driver
        .write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    guest.has_driver = true;
    guest.give_all();
    let request = guest.one();
    assert_eq!((request.to, request.op), (54, REQUEST));
    // What the driver before knew is unknown.
    guest.send(&Packet::new(1_000, 80, RW).with(b"x"));
    assert_eq!(guest.one().op, RST);
}

#[test]
fn event_of_an_earlier_connection_is_not_the_next_ones() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let token = program.change(|link| link.token);
    guest.send(&Packet::new(1_000, 80, RST));
    let second = guest.connect(1_001, 80);
    guest.outside.world().events.push_back(Event {
        place: Place::Stream(token.expect("watched")),
        readable: true,
        writable: true,
        hung_up: true,
    });
    assert_eq!(guest.received(), []);
    assert!(!second.is_closed());
}

/// What happens next in a life of a connection.
#[derive(Clone, Debug)]
enum Step {
    GuestSends(usize),
    GuestTakes(usize),
    GuestGives(usize),
    ProgramSends(usize),
    ProgramTakes(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_usize..20_000).prop_map(Step::GuestSends),
        (1_usize..20_000).prop_map(Step::GuestTakes),
        (1_usize..16).prop_map(Step::GuestGives),
        (1_usize..20_000).prop_map(Step::ProgramSends),
        (1_usize..20_000).prop_map(Step::ProgramTakes),
    ]
}

/// A guest that keeps to the rules, and sees whether the device does.
struct Careful {
    guest: Guest,
    program: Program,
    room: u32,
    /// What the guest has sent, and knows of the device's room.
    sent: usize,
    free_until: usize,
    /// What it has received and passed on, and what the device knows of that.
    received: usize,
    passed: usize,
    told: usize,
    /// What the program has sent and taken.
    program_sent: usize,
    program_took: usize,
    buffers: VecDeque<u16>,
}

impl Careful {
    fn new(room: u32, program_room: usize) -> Self {
        let mut guest = Guest::without_buffers();
        guest.give(0);
        guest.outside.listen(80);
        guest.send(&Packet::new(1_000, 80, REQUEST).credit(room, 0));
        guest.driver.queue = RX;
        assert_eq!(guest.driver.used(), Some((0, 44)));
        let program = guest.outside.connected().expect("connected").1;
        program.change(|link| link.room = program_room);
        Self {
            guest,
            program,
            room,
            sent: 0,
            free_until: ROOM_OF_DEVICE as usize,
            received: 0,
            passed: 0,
            told: 0,
            program_sent: 0,
            program_took: 0,
            buffers: (0..16).collect(),
        }
    }

    /// Takes what is in buffers, and leaves them empty.
    fn look(&mut self) {
        self.guest.run();
        self.guest.driver.queue = RX;
        while let Some((head, len)) = self.guest.driver.used() {
            self.buffers.push_back(head as u16);
            let address = ROOM + u64::from(head) * BUFFER;
            let packet = Packet::parse(&self.guest.driver.bytes(address, len as usize));
            assert!(
                [RW, CREDIT_UPDATE, CREDIT_REQUEST].contains(&packet.op),
                "{packet:?}"
            );
            assert_eq!(packet.payload, pattern(self.received, packet.payload.len()));
            self.received += packet.payload.len();
            assert!(
                self.received <= self.told + self.room as usize,
                "beyond its credit"
            );
            // The device never takes room back, and has passed on what it says.
            let free_until = (packet.room + packet.passed) as usize;
            assert!(free_until >= self.free_until);
            self.free_until = free_until;
            let at_program = self.program.change(|link| link.to_program.len());
            assert!(packet.passed as usize <= self.program_took + at_program);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::GuestSends(most) => {
                let len = most.min(self.free_until - self.sent);
                let packet = Packet::new(1_000, 80, RW).with(&pattern(self.sent, len));
                self.told = self.passed;
                let packet = packet.credit(self.room, self.passed as u32);
                self.guest.send(&packet);
                self.sent += len;
            }
            Step::GuestTakes(most) => {
                self.passed += most.min(self.received - self.passed);
                self.told = self.passed;
                let packet = Packet::new(1_000, 80, CREDIT_UPDATE);
                self.guest
                    .send(&packet.credit(self.room, self.passed as u32));
            }
            Step::GuestGives(count) => {
                for _ in 0..count {
                    if let Some(head) = self.buffers.pop_front() {
                        self.guest.give(head);
                    }
                }
            }
            Step::ProgramSends(len) => {
                self.program.send(&pattern(self.program_sent, len));
                self.program_sent += len;
            }
            Step::ProgramTakes(most) => {
                let bytes = self.program.take(most);
                assert_eq!(bytes, pattern(self.program_took, bytes.len()));
                self.program_took += bytes.len();
            }
        }
        self.look();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes arrive in their order, none is lost, and neither side gets more than it has room for.
    #[test]
    fn flow_is_controlled_both_ways(
        room in 100_u32..100_000,
        program_room in 100_usize..100_000,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut life = Careful::new(room, program_room);
        for step in &steps {
            life.step(step);
        }
        // Who goes on gets everything there is: nobody waits for an event that was.
        let moved = |life: &Careful| (life.received, life.program_took);
        let mut before = None;
        while before != Some(moved(&life)) {
            before = Some(moved(&life));
            for step in [Step::GuestGives(16), Step::GuestTakes(usize::MAX), Step::ProgramTakes(usize::MAX)] {
                life.step(&step);
            }
        }
        prop_assert_eq!(life.received, life.program_sent);
        prop_assert_eq!(life.program_took, life.sent);
        prop_assert!(life.guest.is_well());
    }
}
