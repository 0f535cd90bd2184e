//! One connection: what either side said, what waits for whom, and what the guest is to be told.
//!
//! # Flow control (5.10.6.3)
//!
//! Each side says in every packet how many bytes it keeps (`buf_alloc`) and how many it has passed on (`fwd_cnt`).
//! The other one sends no more than what it keeps beyond what was sent and not passed on. The guest's bytes are
//! passed on when the host's program has taken them; until then they are in the connection's [`Backlog`], so that a
//! program that takes nothing stalls its own connection and no other. The program's bytes are not kept here: they
//! are read once the guest has a buffer and credit for them, and wait in the host's socket until then.
//!
//! # The end
//!
//! Either side can end one direction and go on with the other. When the guest has ended both, it is answered by a
//! reset once the program has what was sent to it (5.10.6.5). A program that is gone is told to the guest as the
//! end of both directions, after its last bytes.

use std::io;

use vm_memory::VolatileSlice;

use super::super::{Buffers, Violation};
use super::backlog::{Backlog, ROOM};
use super::host::{Event, Stream};
use super::packet::{Credit, Header, Operation, Port, Ports, SENDS_NO_MORE, STREAM, TAKES_NO_MORE};

/// The guest is told of room once it knows of less than this, so that it never comes to a halt for want of the news,
/// and half as much gets through between two of them.
const LITTLE_ROOM: u32 = ROOM / 2;

/// It is not told of less than this, unless it is all.
const WORTH_TELLING: u32 = 4 * 1024;

/// The longest line with which a program says where it wants to: more than `CONNECT 4294967295` needs.
const MAX_LINE: usize = 32;

/// The shortest: no shorter one is complete, so that many bytes are not read one by one.
const MIN_LINE: usize = "CONNECT 1\n".len();

/// How far a connection is.
#[derive(Debug)]
enum Phase {
    /// The program has not yet said where to.
    Greeting { line: [u8; MAX_LINE], len: usize },
    /// The guest is asked, and has not answered.
    Asked,
    /// Both sides have agreed.
    Open,
    /// The guest has left, after it ended what it sent; the program gets the rest.
    Lingering,
    /// It is over, which the guest is to be told.
    Over,
    /// Nothing is left of it.
    Gone,
}

/// What became of a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// It is not complete,
    Incomplete,
    /// or asks for this port of the guest.
    For(Port),
    /// It is none, and the program is gone or will be.
    None,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection<S> {
    /// None once it is closed.
    stream: Option<S>,
    ports: Ports,
    phase: Phase,
    /// The guest is to be told: the host asks, or accepts; there is more room.
    tell_request: bool,
    tell_response: bool,
    tell_credit: bool,
    /// Which ends it was told, as flags of [`Operation::Shutdown`].
    told_ends: u32,

    /// There may be bytes for the guest, or their end.
    readable: bool,
    /// There are none any more.
    program_ended: bool,
    /// The guest takes no more.
    guest_refuses: bool,
    /// What the guest can take,
    credit: Credit,
    /// how much was sent to it, wrapping,
    sent: u32,
    /// and whether it was asked since there was no credit.
    asked_for_credit: bool,

    backlog: Backlog,
    /// How much came from the guest, wrapping,
    received: u32,
    /// how much of it was passed on,
    passed: u32,
    /// and how much the guest knows to be.
    told_passed: u32,
    /// The guest sends no more.
    guest_ended: bool,
    /// The program takes no more.
    program_refuses: bool,
}

impl<S: Stream> Connection<S> {
    fn new(stream: S, ports: Ports, phase: Phase) -> Self {
        Self {
            stream: Some(stream),
            ports,
            phase,
            tell_request: false,
            tell_response: false,
            tell_credit: false,
            told_ends: 0,
            readable: false,
            program_ended: false,
            guest_refuses: false,
            credit: Credit::default(),
            sent: 0,
            asked_for_credit: false,
            backlog: Backlog::new(),
            received: 0,
            passed: 0,
            told_passed: 0,
            guest_ended: false,
            program_refuses: false,
        }
    }

    /// One that a program of the host began, which is still to say where it wants to.
    pub(super) fn accepted(stream: S) -> Self {
        let nowhere = Ports {
            guest: Port(0),
            host: Port(0),
        };
        let line = [0; MAX_LINE];
        Self::new(stream, nowhere, Phase::Greeting { line, len: 0 })
    }

    /// One that the guest asked for, which is answered.
    pub(super) fn connected(stream: S, header: &Header) -> Self {
        let mut connection = Self::new(stream, header.ports, Phase::Open);
        connection.credit = header.credit;
        connection.tell_response = true;
        connection
    }

    pub(super) fn stream(&self) -> Option<&S> {
        self.stream.as_ref()
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether the guest knows it by its ports, or is about to.
    pub(super) fn is_known_to_guest(&self) -> bool {
        matches!(self.phase, Phase::Asked | Phase::Open | Phase::Over)
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Whether bytes wait for room in the stream.
    pub(super) fn waits_for_room(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether there is, or may be, something to tell the guest.
    pub(super) fn has_news(&self) -> bool {
        match self.phase {
            Phase::Greeting { .. } | Phase::Lingering | Phase::Gone => false,
            Phase::Over => true,
            Phase::Asked => self.tell_request,
            Phase::Open => {
                self.tell_response
                    || self.tell_credit
                    || self.may_read()
                    || self.ends() != self.told_ends
            }
        }
    }

    /// Notes what has become possible at the stream, and does what of it needs no buffer of the guest.
    pub(super) fn note(&mut self, event: &Event) {
        self.readable |= event.readable || event.hung_up;
        match self.phase {
            Phase::Asked if event.hung_up => self.close(),
            Phase::Lingering if event.hung_up => self.phase = Phase::Gone,
            Phase::Open if event.hung_up => self.program_takes_no_more(),
            Phase::Open | Phase::Lingering => self.flush(),
            _ => {}
        }
    }

    /// Reads where the program wants to, once there is something to be read.
    pub(super) fn greet(&mut self) -> Greeting {
        let (Phase::Greeting { line, len }, Some(stream)) = (&mut self.phase, &mut self.stream)
        else {
            return Greeting::Incomplete;
        };
        while self.readable {
            // What comes after the line is for the guest, and stays in the socket.
            let end = MIN_LINE.max(*len + 1);
            let Some(place) = line.get_mut(*len..end) else {
                break;
            };
            match stream.read(VolatileSlice::from(place)) {
                Ok(0) => break,
                Ok(count) => {
                    *len += count;
                    let line = line.get(..*len).unwrap_or_default();
                    if line.contains(&b'\n') {
                        let line = line.strip_suffix(b"\n");
                        let port = line.and_then(wanted_port);
                        return port.map_or(Greeting::None, Greeting::For);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(_) => break,
            }
        }
        if self.readable {
            return Greeting::None;
        }
        Greeting::Incomplete
    }

    /// The guest is asked, by these ports.
    pub(super) fn ask(&mut self, ports: Ports) {
        self.ports = ports;
        self.phase = Phase::Asked;
        self.tell_request = true;
    }

    /// It is over, for both sides; the guest is told if it knows of it.
    pub(super) fn close(&mut self) {
        self.stream = None;
        self.backlog.clear();
        let knows = self.is_known_to_guest() && !self.tell_request;
        self.phase = if knows { Phase::Over } else { Phase::Gone };
    }

    /// Takes a packet of the guest, whose header is read already.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn take(&mut self, header: &Header, payload: &Buffers<'_>) -> Result<(), Violation> {
        if matches!(self.phase, Phase::Over) && header.operation != Some(Operation::Reset) {
            // It learns soon.
            return Ok(());
        }
        self.credit = header.credit;
        self.asked_for_credit &= self.free() == 0;
        match (header.operation, &self.phase) {
            (Some(Operation::Reset), _) => self.guest_left(),
            (Some(Operation::Response), Phase::Asked) if !self.tell_request => {
                self.accepted_by_guest()
            }
            (Some(Operation::Data), Phase::Open) => return self.take_data(header.len, payload),
            (Some(Operation::Shutdown), Phase::Open) => self.guest_ends(header.flags),
            (Some(Operation::CreditUpdate), Phase::Asked | Phase::Open) => {}
            (Some(Operation::CreditRequest), Phase::Asked | Phase::Open) => self.tell_credit = true,
            // Nothing of this is possible here.
            _ => self.close(),
        }
        Ok(())
    }

    fn accepted_by_guest(&mut self) {
        self.phase = Phase::Open;
        let mut line = format!("OK {}\n", self.ports.host).into_bytes();
        let len = line.len();
        let stream = self.stream.as_mut();
        let written = stream.map(|stream| stream.write(VolatileSlice::from(&mut line[..])));
        // There is room for a line in a socket to which nothing was written. If not, the program has seen to that.
        if !matches!(written, Some(Ok(count)) if count == len) {
            self.close();
        }
    }

    fn guest_left(&mut self) {
        if self.guest_ended && !self.backlog.is_empty() {
            self.phase = Phase::Lingering;
        } else {
            self.stream = None;
            self.phase = Phase::Gone;
        }
    }

    fn guest_ends(&mut self, flags: u32) {
        if flags & TAKES_NO_MORE != 0 && !self.guest_refuses {
            self.guest_refuses = true;
            if let Some(stream) = &mut self.stream {
                stream.end_reading();
            }
        }
        self.guest_ended |= flags & SENDS_NO_MORE != 0;
        if self.guest_ended {
            self.after_flush();
        }
    }

    /// Takes `len` bytes of the guest.
    fn take_data(&mut self, len: u32, payload: &Buffers<'_>) -> Result<(), Violation> {
        let bytes = payload.split_at(len.into());
        let Some((bytes, _)) =
            bytes.filter(|_| !self.guest_ended && len <= ROOM - self.backlog.len())
        else {
            // It sent more than it has, than it said, or than it may.
            self.close();
            return Ok(());
        };
        self.received = self.received.wrapping_add(len);
        let mut rest = bytes;
        if self.backlog.is_empty() && !self.program_refuses {
            let written = self.write(&bytes)?;
            rest = bytes.split_at(written).ok_or(Violation::Buffer)?.1;
        }
        if self.program_refuses {
            self.passed = self.received;
        } else {
            self.backlog.push(&rest)?;
        }
        self.note_room();
        Ok(())
    }

    /// Writes as many bytes as the program takes now, and says how many.
    fn write(&mut self, bytes: &Buffers<'_>) -> Result<u64, Violation> {
        let Some(stream) = &mut self.stream else {
            return Ok(0);
        };
        let (mut written, mut full, mut refused) = (0, false, false);
        bytes.try_for_each(
            |gone| gone,
            |slice| {
                let mut from = 0;
                while from < slice.len() && !full && !refused {
                    let rest = slice.offset(from).map_err(|_| Violation::Buffer)?;
                    match stream.write(rest) {
                        Ok(0) => full = true,
                        Ok(count) => from += count,
                        Err(error) => {
                            full = error.kind() == io::ErrorKind::WouldBlock;
                            refused = !full;
                        }
                    }
                }
                written += from as u64;
                Ok(())
            },
        )?;
        // OK because it is at most what is in a packet.
        let count = u32::try_from(written).unwrap_or(ROOM);
        self.passed = self.passed.wrapping_add(count);
        if refused {
            self.program_takes_no_more();
        }
        Ok(written)
    }

    /// Writes what is in the backlog, as far as the program takes it.
    fn flush(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        while let (false, Some(stream)) = (self.backlog.is_empty(), &mut self.stream) {
            match stream.write(self.backlog.oldest()) {
                Ok(0) => break,
                Ok(count) => {
                    self.backlog.drop_oldest(count);
                    // OK because it is at most what is in the backlog.
                    let count = u32::try_from(count).unwrap_or(ROOM);
                    self.passed = self.passed.wrapping_add(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.program_takes_no_more(),
            }
        }
        self.note_room();
        self.after_flush();
    }

    /// Does what had to wait until the program has everything.
    fn after_flush(&mut self) {
        if !self.backlog.is_empty() {
            return;
        }
        match self.phase {
            Phase::Lingering => self.phase = Phase::Gone,
            Phase::Open if self.guest_ended && self.guest_refuses => self.close(),
            Phase::Open if self.guest_ended => {
                if let Some(stream) = &mut self.stream {
                    stream.end_writing();
                }
            }
            _ => {}
        }
    }

    /// The program is gone, or ended what it takes. What it sent is still to be read.
    fn program_takes_no_more(&mut self) {
        self.program_refuses = true;
        self.passed = self.received;
        self.backlog.clear();
        self.after_flush();
    }

    /// Has the guest told of new room when it knows of little.
    fn note_room(&mut self) {
        let known = ROOM.saturating_sub(self.received.wrapping_sub(self.told_passed));
        let gained = self.passed.wrapping_sub(self.told_passed);
        let worth = gained >= WORTH_TELLING || (gained > 0 && self.backlog.is_empty());
        self.tell_credit |= known < LITTLE_ROOM && worth && !self.guest_ended;
    }

    /// How many bytes the guest can take. Where it contradicts itself, none.
    fn free(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.credit.passed);
        self.credit.room.saturating_sub(on_the_way)
    }

    /// Whether there is something to be read for the guest, and credit for it, or a question for credit to be asked.
    fn may_read(&self) -> bool {
        self.readable
            && !self.program_ended
            && !self.guest_refuses
            && (self.free() > 0 || !self.asked_for_credit)
    }

    /// Which directions the program has ended, as flags of [`Operation::Shutdown`].
    fn ends(&self) -> u32 {
        let sends = if self.program_ended { SENDS_NO_MORE } else { 0 };
        let takes = if self.program_refuses {
            TAKES_NO_MORE
        } else {
            0
        };
        sends | takes
    }

    /// The next packet for the guest, whose bytes are put into `room`; `None` when there is none after all.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn next(&mut self, room: &Buffers<'_>) -> Result<Option<Header>, Violation> {
        let packet = |operation| Some((operation, 0, 0));
        let next = match self.phase {
            Phase::Over => {
                self.phase = Phase::Gone;
                packet(Operation::Reset)
            }
            Phase::Asked if std::mem::take(&mut self.tell_request) => packet(Operation::Request),
            Phase::Open if std::mem::take(&mut self.tell_response) => packet(Operation::Response),
            Phase::Open => self.next_of_open(room)?,
            _ => None,
        };
        Ok(next.map(|(operation, len, flags)| self.header(operation, len, flags)))
    }

    fn next_of_open(
        &mut self,
        room: &Buffers<'_>,
    ) -> Result<Option<(Operation, u32, u32)>, Violation> {
        if self.may_read() {
            if self.free() == 0 {
                self.asked_for_credit = true;
                return Ok(Some((Operation::CreditRequest, 0, 0)));
            }
            let len = self.read(room)?;
            if len > 0 {
                return Ok(Some((Operation::Data, len, 0)));
            }
            if matches!(self.phase, Phase::Over) {
                self.phase = Phase::Gone;
                return Ok(Some((Operation::Reset, 0, 0)));
            }
        }
        if self.tell_credit {
            return Ok(Some((Operation::CreditUpdate, 0, 0)));
        }
        let ends = self.ends();
        if ends == self.told_ends {
            return Ok(None);
        }
        self.told_ends = ends;
        Ok(Some((Operation::Shutdown, 0, ends)))
    }

    fn header(&mut self, operation: Operation, len: u32, flags: u32) -> Header {
        // Every packet tells the room, whatever else it says.
        self.told_passed = self.passed;
        self.tell_credit = false;
        Header {
            ports: self.ports,
            len,
            kind: STREAM,
            operation: Some(operation),
            flags,
            credit: Credit {
                room: ROOM,
                passed: self.passed,
            },
        }
    }

    /// Reads bytes of the program into `room`, as far as there is credit for them, and says how many. The connection
    /// may be over then.
    fn read(&mut self, room: &Buffers<'_>) -> Result<u32, Violation> {
        let most = room.len().min(self.free().into());
        let (room, _) = room.split_at(most).ok_or(Violation::Buffer)?;
        let Some(stream) = &mut self.stream else {
            return Ok(0);
        };
        let (mut count, mut short, mut failed) = (0_u32, false, false);
        room.try_for_each(
            |gone| gone,
            |slice| {
                if short {
                    return Ok(());
                }
                match stream.read(slice) {
                    Ok(0) => {
                        short = true;
                        self.program_ended = count == 0;
                    }
                    Ok(here) => {
                        short = here < slice.len();
                        // OK because it is at most the credit.
                        count += u32::try_from(here).unwrap_or(0);
                    }
                    Err(error) => {
                        short = true;
                        let later = error.kind() == io::ErrorKind::WouldBlock;
                        self.readable &= !later;
                        failed = !later;
                    }
                }
                Ok(())
            },
        )?;
        self.sent = self.sent.wrapping_add(count);
        if failed && count == 0 {
            self.close();
        }
        Ok(count)
    }
}

/// The port in a line that says `CONNECT PORT`, in letters of any case, with any spaces.
fn wanted_port(line: &[u8]) -> Option<Port> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    let is_all = words.next().is_none() && verb.eq_ignore_ascii_case("CONNECT");
    // Not "+1", which is a number, too.
    let is_number = port.bytes().all(|digit| digit.is_ascii_digit());
    port.parse().ok().filter(|_| is_all && is_number).map(Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_names_a_port() {
        for (line, port) in [
            (&b"CONNECT 52"[..], Some(52)),
            (b"connect 4294967295\r", Some(u32::MAX)),
            (b" Connect\t0 ", Some(0)),
            (b"CONNECT 4294967296", None),
            (b"CONNECT +52", None),
            (b"CONNECT -1", None),
            (b"CONNECT 52 53", None),
            (b"CONNECT", None),
            (b"CONNECT52", None),
            (b"HELLO 52", None),
            (b"", None),
            (b"CONNECT \xff", None),
        ] {
            assert_eq!(wanted_port(line), port.map(Port), "{line:?}");
        }
    }
}
