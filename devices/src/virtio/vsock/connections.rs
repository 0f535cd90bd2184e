//! All connections of a guest: found by their ports, taking turns, and no more than [`MAX`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use tsc::Nanos;

use super::super::{Buffers, Chain, Violation};
use super::backlog::{MANY, ROOM, ROOM_AMONG_MANY};
use super::connection::{Connection, Greeting};
use super::counts::Counts;
use super::host::{Event, Host, Place, Refusal, Report, Token};
use super::packet::{Cid, Credit, HEADER, Header, Operation, Port, Ports, STREAM};
use super::slots::{Deadlines, PATIENCE, Slot};

/// The most connections at a time, those that are not open yet included: as many as Firecracker allows.
pub(super) const MAX: usize = 1023;

/// The most packets for which there is no connection, and whose answers wait for a buffer of the guest. With more
/// the guest's packets wait: it has to take answers (5.10.6.1.2).
const MAX_REFUSALS: usize = 256;

/// So many events are taken from the host at a time, and so many connections accepted.
const AT_ONCE: usize = 64;

/// The ports of connections that the host began: from here on, as many again.
const FIRST_PORT: u32 = 1 << 30;

/// The answer to a packet for which there is no connection.
#[derive(Clone, Copy, Debug)]
struct Unknown {
    ports: Ports,
    kind: u16,
}

/// What became of a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was taken,
    Done,
    /// or not, since too many answers wait for buffers.
    NotNow,
}

pub(super) struct Connections<H: Host> {
    guest: Cid,
    host: H,
    counts: Arc<Counts>,
    report: Report,
    /// The failures that were told, as bits.
    told: u8,
    slots: Vec<Slot<H::Stream>>,
    vacant: Vec<u32>,
    by_ports: HashMap<Ports, u32>,
    /// Those that have something for the guest, in the order of their turns.
    turns: VecDeque<u32>,
    unknown: VecDeque<Unknown>,
    last_port: u32,
    /// A program may want to connect.
    called: bool,
    deadlines: Deadlines,
    /// A packet of the guest gave a connection a turn, or the host may have more.
    again: bool,
    /// The host had more events than it could tell of at once.
    more: bool,
}

impl<H: Host> Connections<H> {
    pub(super) fn new(guest: Cid, host: H, report: Report) -> Self {
        Self {
            guest,
            host,
            counts: Arc::default(),
            report,
            told: 0,
            slots: Vec::new(),
            vacant: Vec::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::with_capacity(MAX),
            unknown: VecDeque::with_capacity(MAX_REFUSALS),
            last_port: FIRST_PORT - 1,
            called: false,
            deadlines: Deadlines::default(),
            again: false,
            more: false,
        }
    }

    pub(super) fn guest(&self) -> Cid {
        self.guest
    }

    pub(super) fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// How many bytes of the guest one more connection keeps.
    fn room(&self) -> u32 {
        match self.slots.len() - self.vacant.len() {
            count if count < MANY => ROOM,
            _ => ROOM_AMONG_MANY,
        }
    }

    /// Whether the queues are to be looked at once more. Asked once.
    pub(super) fn take_again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    /// Ends all connections at once: the guest knows of none any more.
    pub(super) fn clear(&mut self) {
        for index in 0..self.slots.len() {
            self.forget(index);
        }
        self.turns.clear();
        for slot in &mut self.slots {
            slot.queued = false;
        }
        self.unknown.clear();
    }

    fn refused(&mut self, refusal: Refusal, error: &io::Error) {
        if refusal != Refusal::Connect {
            self.counts.refusals.add(1);
        }
        let bit = 1 << refusal as u8;
        if self.told & bit == 0 {
            self.told |= bit;
            (self.report)(refusal, error);
        }
    }

    /// After which time there is something to be done without an event.
    pub(super) fn wait(&mut self) -> Option<Nanos> {
        let first = self.deadlines.first()?;
        let left = first.checked_sub(self.host.now());
        Some(left.unwrap_or(Nanos::ZERO))
    }

    /// Ends the connections whose guest has owed an answer for too long.
    fn end_those_that_are_due(&mut self) {
        if self.deadlines.first().is_none() {
            return;
        }
        let now = self.host.now();
        if !self.deadlines.begin(now) {
            return;
        }
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else {
                break;
            };
            let Some(deadline) = slot.deadline else {
                continue;
            };
            if deadline.get() > now.get() {
                self.deadlines.add(deadline);
            } else if let Some(connection) = &mut slot.connection {
                connection.close();
                self.counts.killed.add(1);
                self.settle(index);
            }
        }
    }

    /// Looks what has become possible at the host, and does what needs no buffer of the guest. The host has `told` of
    /// something, or there is nothing to be seen but what was left.
    pub(super) fn poll(&mut self, told: bool) {
        self.end_those_that_are_due();
        if !(told || self.more || self.called) {
            return;
        }
        let mut events = [Event::default(); AT_ONCE];
        let count = match self.host.poll(&mut events) {
            Ok(count) => count,
            Err(error) => {
                self.refused(Refusal::Watch, &error);
                0
            }
        };
        self.more = count == events.len();
        self.again |= self.more;
        for event in events.iter().take(count) {
            match event.place {
                Place::Listener => self.called = true,
                Place::Stream(token) => self.note(token, event),
            }
        }
        if self.called {
            self.accept();
        }
    }

    /// Takes the programs that want to connect. Where the host refuses one, it is asked again the next time that
    /// there is something to be done, not before.
    fn accept(&mut self) {
        for _ in 0..AT_ONCE {
            let (room, counts) = (self.room(), &self.counts);
            let accept = |stream| Connection::accepted(stream, room, counts.clone());
            let accepted = self.host.accept();
            match accepted.and_then(|stream| stream.map(accept).transpose()) {
                Ok(Some(accepted)) => {
                    // It has said where to, mostly.
                    self.again |= self.insert(accepted).is_some();
                }
                Ok(None) => {
                    self.called = false;
                    return;
                }
                Err(error) => return self.refused(Refusal::Accept, &error),
            }
        }
        self.again = true;
    }

    fn note(&mut self, token: Token, event: &Event) {
        let Some(index) = self.index_of(token) else {
            return;
        };
        let Some(connection) = self.connection(index) else {
            return;
        };
        connection.note(event);
        match connection.greet() {
            Greeting::Incomplete => {}
            Greeting::None => return self.forget(index),
            Greeting::For(guest) => {
                let ports = self.free_ports(guest);
                self.by_ports.insert(ports, number(index));
                if let Some(connection) = self.connection(index) {
                    connection.ask(ports);
                }
            }
        }
        self.settle(index);
    }

    /// Ports for a connection that the host begins, which no other one has.
    fn free_ports(&mut self, guest: Port) -> Ports {
        loop {
            // It ends because there are more than MAX ports.
            self.last_port = (self.last_port.wrapping_add(1) & (FIRST_PORT - 1)) | FIRST_PORT;
            let host = Port(self.last_port);
            let ports = Ports { guest, host };
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn connection(&mut self, index: usize) -> Option<&mut Connection<H::Stream>> {
        self.slots.get_mut(index)?.connection.as_mut()
    }

    /// Which slot a token names, unless it is from before.
    fn index_of(&self, token: Token) -> Option<usize> {
        let index = usize::try_from(token.0 & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get(index)?;
        (token.0 >> 32 == u64::from(slot.generation)).then_some(index)
    }

    /// Gives a connection a place, and has the host tell of it; `None` when there is no place, or the host does not.
    fn insert(&mut self, connection: Connection<H::Stream>) -> Option<usize> {
        let index = match self.vacant.pop() {
            Some(index) => usize::try_from(index).ok()?,
            None if self.slots.len() == MAX => return None,
            None => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
        };
        let slot = self.slots.get_mut(index)?;
        slot.watches_room = false;
        let token = Token(u64::from(slot.generation) << 32 | u64::from(number(index)));
        let stream = connection.stream();
        let watched = stream.map_or(Ok(()), |stream| {
            self.host.watch(stream, token, false, false)
        });
        // Also when it failed: its place is given back as that of any other.
        slot.connection = Some(connection);
        self.counts.added.add(1);
        if let Err(error) = watched {
            self.refused(Refusal::Watch, &error);
            self.forget(index);
            return None;
        }
        Some(index)
    }

    /// Does what follows from a change of a connection, and says whether it was given a turn.
    fn settle(&mut self, index: usize) -> bool {
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        let Some(connection) = &mut slot.connection else {
            return false;
        };
        // One that lingers leaves its ports to others.
        let ports = connection.ports();
        if !connection.is_known_to_guest() && self.by_ports.get(&ports) == Some(&number(index)) {
            self.by_ports.remove(&ports);
        }
        let owes = connection.waits_for_answer();
        if !owes {
            slot.deadline = None;
        } else if slot.deadline.is_none() {
            let deadline = self.host.now().saturating_add(PATIENCE);
            slot.deadline = Some(deadline);
            self.deadlines.add(deadline);
        }
        let waits = connection.waits_for_room();
        if let Some(stream) = connection.stream().filter(|_| waits != slot.watches_room) {
            let token = Token(u64::from(slot.generation) << 32 | u64::from(number(index)));
            slot.watches_room = waits;
            if let Err(error) = self.host.watch(stream, token, waits, true) {
                connection.close();
                self.refused(Refusal::Watch, &error);
            }
        }
        self.schedule(index)
    }

    /// Gives a connection a turn if it has something for the guest, and its place to another if it is gone.
    fn schedule(&mut self, index: usize) -> bool {
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        let Some(connection) = &slot.connection else {
            return false;
        };
        if connection.is_gone() {
            self.forget(index);
            return false;
        }
        let has_turn = connection.has_news() && !slot.queued;
        if has_turn {
            slot.queued = true;
            self.turns.push_back(number(index));
        }
        has_turn
    }

    fn forget(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let Some(connection) = slot.connection.take() else {
            return;
        };
        self.counts.removed.add(1);
        slot.deadline = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.vacant.push(number(index));
        let ports = connection.ports();
        if self.by_ports.get(&ports) == Some(&number(index)) {
            self.by_ports.remove(&ports);
        }
    }

    /// Takes a packet of the guest. One that is not from it to the host, or is too short for a header, is dropped.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn take(&mut self, packet: &Buffers<'_>) -> Result<Taken, Violation> {
        if self.unknown.len() >= MAX_REFUSALS {
            return Ok(Taken::NotNow);
        }
        let Some(header) = Header::read(packet, self.guest) else {
            return Ok(Taken::Done);
        };
        self.counts.sent.packets.add(1);
        let (_, payload) = packet.split_at(HEADER as u64).ok_or(Violation::Buffer)?;
        let known = self.by_ports.get(&header.ports).copied();
        let known = known.and_then(|index| usize::try_from(index).ok());
        match known.filter(|_| header.kind == STREAM) {
            Some(index) => {
                if let Some(connection) = self.connection(index) {
                    connection.take(&header, &payload)?;
                }
                self.again |= self.settle(index);
            }
            None if header.operation == Some(Operation::Reset) => {}
            None => {
                let wanted = header.kind == STREAM && header.operation == Some(Operation::Request);
                if !(wanted && self.connect(&header)) {
                    self.unknown.push_back(Unknown {
                        ports: header.ports,
                        kind: header.kind,
                    });
                    self.again = true;
                }
            }
        }
        Ok(Taken::Done)
    }

    /// Connects the guest to a program of the host, and says whether there is one.
    fn connect(&mut self, header: &Header) -> bool {
        if self.slots.len() == MAX && self.vacant.is_empty() {
            return false;
        }
        let (room, counts) = (self.room(), self.counts.clone());
        let stream = self.host.connect(header.ports.host);
        let connected =
            stream.and_then(|stream| Connection::connected(stream, header, room, counts));
        let connected = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
                if !nobody.contains(&error.kind()) {
                    self.refused(Refusal::Connect, &error);
                }
                return false;
            }
        };
        let Some(index) = self.insert(connected) else {
            return false;
        };
        self.by_ports.insert(header.ports, number(index));
        self.again |= self.settle(index);
        true
    }

    /// Whether more of the guest's buffers are wanted for what is next than these `buffers`, in which there is `room`.
    pub(super) fn wants_more(&self, buffers: usize, room: u64) -> bool {
        let first = self.turns.front().filter(|_| self.unknown.is_empty());
        let slot = first.and_then(|index| self.slots.get(usize::try_from(*index).ok()?));
        let connection = slot.and_then(|slot| slot.connection.as_ref());
        connection.is_some_and(|connection| connection.wants_more(buffers, room))
    }

    /// Puts what is next for the guest into `buffers`, each of which has room for a header and more, and says how many
    /// bytes that is; `None` when there is nothing.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn next(&mut self, buffers: &Chain<'_>) -> Result<Option<u32>, Violation> {
        if let Some(Unknown { ports, kind }) = self.unknown.pop_front() {
            let header = Header {
                ports,
                len: 0,
                kind,
                operation: Some(Operation::Reset),
                flags: 0,
                credit: Credit::default(),
            };
            return self.put(&header, buffers).map(Some);
        }
        while let Some(index) = self.turns.pop_front() {
            let index = usize::try_from(index).map_err(|_| Violation::Buffer)?;
            let Some(slot) = self.slots.get_mut(index) else {
                continue;
            };
            slot.queued = false;
            let Some(connection) = &mut slot.connection else {
                continue;
            };
            let header = connection.next(buffers)?;
            self.settle(index);
            if let Some(header) = header {
                return self.put(&header, buffers).map(Some);
            }
        }
        Ok(None)
    }

    /// Puts headers before the bytes in `buffers`, of which there are as many as `header` says, and says how many
    /// bytes that is together.
    fn put(&self, header: &Header, buffers: &Chain<'_>) -> Result<u32, Violation> {
        let (mut left, mut written) = (header.len, 0_u32);
        for buffer in buffers.rooms() {
            let (place, room) = buffer.split_at(HEADER as u64).ok_or(Violation::Buffer)?;
            let len = left.min(u32::try_from(room.len()).unwrap_or(u32::MAX));
            let header = Header { len, ..*header };
            place.write(&header.bytes(self.guest))?;
            self.counts.received.packets.add(1);
            left -= len;
            // OK because it is 44.
            let header_len = u32::try_from(HEADER).unwrap_or(0);
            written = written.saturating_add(header_len).saturating_add(len);
            if left == 0 {
                break;
            }
        }
        Ok(written)
    }
}

/// A slot's number, of which there are at most [`MAX`].
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
