//! One connection: what either side said, what waits for whom, and what the guest is to be told.
//!
//! # Flow control (5.10.6.3)
//!
//! Each side says in every packet how many bytes it keeps (`buf_alloc`) and how many it has passed on (`fwd_cnt`).
//! The other one sends no more than what it keeps beyond what was sent and not passed on. Each direction has a file
//! of its own.
//!
//! # The end
//!
//! Either side can end one direction and go on with the other. When the guest has ended both, it is answered by a
//! reset once the program has what was sent to it (5.10.6.5). A program that is gone is told to the guest as the
//! end of both directions, after its last bytes.

use std::io::{self, Write};
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::super::{Buffers, Chain, Violation};
use super::counts::Counts;
use super::host::{Event, Stream};
use super::packet::{Header, Operation, Port, Ports, SENDS_NO_MORE, STREAM, TAKES_NO_MORE};
use super::to_guest::ToGuest;
use super::to_program::ToProgram;

/// The longest line with which a program says where it wants to: more than `CONNECT 4294967295` needs.
const MAX_LINE: usize = 32;

/// The shortest: no shorter one is complete, so that many bytes are not read one by one.
const MIN_LINE: usize = "CONNECT 1\n".len();

/// The longest line that a program gets once the guest has accepted it.
const LONGEST_ANSWER: usize = "OK 4294967295\n".len();

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
    /// The guest is to be told that the host asks, or accepts.
    tell_request: bool,
    tell_response: bool,
    /// Which ends it was told, as flags of [`Operation::Shutdown`].
    told_ends: u32,
    to_guest: ToGuest,
    to_program: ToProgram,
    counts: Arc<Counts>,
}

impl<S: Stream> Connection<S> {
    fn new(
        stream: S,
        ports: Ports,
        phase: Phase,
        room: u32,
        counts: Arc<Counts>,
    ) -> io::Result<Self> {
        Ok(Self {
            stream: Some(stream),
            ports,
            phase,
            tell_request: false,
            tell_response: false,
            told_ends: 0,
            to_guest: ToGuest::default(),
            to_program: ToProgram::new(room)?,
            counts,
        })
    }

    /// One that a program of the host began, which is still to say where it wants to. It keeps `room` bytes of the guest.
    ///
    /// # Errors
    /// The host has no memory for them.
    pub(super) fn accepted(stream: S, room: u32, counts: Arc<Counts>) -> io::Result<Self> {
        let nowhere = Ports {
            guest: Port(0),
            host: Port(0),
        };
        let line = [0; MAX_LINE];
        let phase = Phase::Greeting { line, len: 0 };
        Self::new(stream, nowhere, phase, room, counts)
    }

    /// One that the guest asked for, which is answered. It keeps `room` bytes of the guest.
    ///
    /// # Errors
    /// The host has no memory for them.
    pub(super) fn connected(
        stream: S,
        header: &Header,
        room: u32,
        counts: Arc<Counts>,
    ) -> io::Result<Self> {
        let mut connection = Self::new(stream, header.ports, Phase::Open, room, counts)?;
        connection.to_guest.learn(header.credit);
        connection.tell_response = true;
        Ok(connection)
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
        self.stream.is_some() && self.to_program.is_waiting()
    }

    /// Whether nothing happens until the guest answers: it was asked, or told that both directions have ended
    /// (5.10.6.5).
    pub(super) fn waits_for_answer(&self) -> bool {
        match self.phase {
            Phase::Asked => !self.tell_request,
            Phase::Open => self.told_ends == SENDS_NO_MORE | TAKES_NO_MORE,
            _ => false,
        }
    }

    /// Whether there is, or may be, something to tell the guest.
    pub(super) fn has_news(&self) -> bool {
        match self.phase {
            Phase::Greeting { .. } | Phase::Lingering | Phase::Gone => false,
            Phase::Over => true,
            Phase::Asked => self.tell_request,
            Phase::Open => {
                self.tell_response
                    || self.to_program.tell
                    || self.to_guest.may_read()
                    || self.ends() != self.told_ends
            }
        }
    }

    /// Notes what has become possible at the stream, and does what of it needs no buffer of the guest.
    pub(super) fn note(&mut self, event: &Event) {
        self.to_guest.readable |= event.readable || event.hung_up;
        match self.phase {
            Phase::Asked if event.hung_up => self.close(),
            Phase::Open if event.hung_up => {
                self.to_program.refuse();
                self.after_flush();
            }
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
        while self.to_guest.readable {
            // What comes after the line is for the guest, and stays in the socket.
            let end = MIN_LINE.max(*len + 1);
            let Some(place) = line.get_mut(*len..end) else {
                break;
            };
            match stream.read(&[VolatileSlice::from(place)]) {
                Ok(0) => break,
                Ok(count) => {
                    *len += count;
                    let line = line.get(..*len).unwrap_or_default();
                    let mut lines = line.splitn(2, |byte| *byte == b'\n');
                    if let (Some(line), Some(rest)) = (lines.next(), lines.next()) {
                        let port = wanted_port(line).filter(|_| rest.is_empty());
                        return port.map_or(Greeting::None, Greeting::For);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.to_guest.readable = false;
                }
                Err(_) => break,
            }
        }
        if self.to_guest.readable {
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
        self.to_guest.learn(header.credit);
        match (header.operation, &self.phase) {
            (Some(Operation::Reset), _) => self.guest_left(),
            (Some(Operation::Response), Phase::Asked) if !self.tell_request => {
                self.accepted_by_guest()
            }
            (Some(Operation::Data), Phase::Open) => return self.take_data(header.len, payload),
            (Some(Operation::Shutdown), Phase::Open) => self.guest_ends(header.flags),
            (Some(Operation::CreditUpdate), Phase::Asked | Phase::Open) => {}
            (Some(Operation::CreditRequest), Phase::Asked | Phase::Open) => {
                self.to_program.tell = true
            }
            // Nothing of this is possible here.
            _ => self.close(),
        }
        Ok(())
    }

    fn accepted_by_guest(&mut self) {
        self.phase = Phase::Open;
        let mut line = [0; LONGEST_ANSWER];
        let mut rest = &mut line[..];
        // There is room for the largest of ports.
        let _ = writeln!(rest, "OK {}", self.ports.host);
        let len = LONGEST_ANSWER - rest.len();
        let line = line.get_mut(..len).unwrap_or_default();
        let stream = self.stream.as_mut();
        let written = stream.map(|stream| stream.write(VolatileSlice::from(line)));
        // There is room for a line in a socket to which nothing was written. If not, the program has seen to that.
        if !matches!(written, Some(Ok(count)) if count == len) {
            self.close();
        }
    }

    fn guest_left(&mut self) {
        if self.to_program.guest_ended && self.to_program.is_waiting() {
            self.phase = Phase::Lingering;
        } else {
            self.stream = None;
            self.phase = Phase::Gone;
        }
    }

    fn guest_ends(&mut self, flags: u32) {
        if flags & TAKES_NO_MORE != 0 && !self.to_guest.guest_refuses {
            self.to_guest.guest_refuses = true;
            if let Some(stream) = &mut self.stream {
                stream.end_reading();
            }
        }
        self.to_program.guest_ended |= flags & SENDS_NO_MORE != 0;
        if self.to_program.guest_ended {
            self.after_flush();
        }
    }

    /// Takes `len` bytes of the guest.
    fn take_data(&mut self, len: u32, payload: &Buffers<'_>) -> Result<(), Violation> {
        let bytes = payload.split_at(len.into());
        match (bytes, &mut self.stream) {
            (Some((bytes, _)), Some(stream)) if self.to_program.may_take(len) => {
                self.to_program.take(stream, &bytes, len, &self.counts)?;
            }
            // It sent more than it has, than it said, or than it may.
            _ => self.close(),
        }
        Ok(())
    }

    /// Writes what waits for the program, as far as it takes it.
    fn flush(&mut self) {
        if let Some(stream) = self
            .stream
            .as_mut()
            .filter(|_| self.to_program.is_waiting())
        {
            self.to_program.flush(stream, &self.counts);
            self.after_flush();
        }
    }

    /// Does what had to wait until the program has everything.
    fn after_flush(&mut self) {
        if self.to_program.is_waiting() {
            return;
        }
        match self.phase {
            Phase::Lingering => self.phase = Phase::Gone,
            Phase::Open if self.to_program.guest_ended && self.to_guest.guest_refuses => {
                self.close();
            }
            Phase::Open if self.to_program.guest_ended => {
                if let Some(stream) = &mut self.stream {
                    stream.end_writing();
                }
            }
            _ => {}
        }
    }

    /// Which directions the program has ended, as flags of [`Operation::Shutdown`].
    fn ends(&self) -> u32 {
        let sends = if self.to_guest.program_ended {
            SENDS_NO_MORE
        } else {
            0
        };
        let takes = if self.to_program.program_refuses {
            TAKES_NO_MORE
        } else {
            0
        };
        sends | takes
    }

    /// Whether more of the guest's buffers are wanted than these `buffers`, in which there is `room`.
    pub(super) fn wants_more(&self, buffers: usize, room: u64) -> bool {
        let is_data = matches!(self.phase, Phase::Open) && !self.tell_response;
        is_data && self.to_guest.wants_more(buffers, room)
    }

    /// The next packet for the guest, whose bytes are put into `buffers`; `None` when there is none after all. Where it
    /// has more bytes than there is room in the first buffer, it is one for each that they reach.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn next(&mut self, buffers: &Chain<'_>) -> Result<Option<Header>, Violation> {
        let packet = |operation| Some((operation, 0, 0));
        let next = match self.phase {
            Phase::Over => {
                self.phase = Phase::Gone;
                packet(Operation::Reset)
            }
            Phase::Asked if std::mem::take(&mut self.tell_request) => packet(Operation::Request),
            Phase::Open if std::mem::take(&mut self.tell_response) => packet(Operation::Response),
            Phase::Open => self.next_of_open(buffers)?,
            _ => None,
        };
        Ok(next.map(|(operation, len, flags)| self.header(operation, len, flags)))
    }

    fn next_of_open(
        &mut self,
        buffers: &Chain<'_>,
    ) -> Result<Option<(Operation, u32, u32)>, Violation> {
        if self.to_guest.may_read() {
            if self.to_guest.lacks_credit() {
                return Ok(Some((Operation::CreditRequest, 0, 0)));
            }
            let read = match &mut self.stream {
                Some(stream) => self.to_guest.read(stream, buffers, &self.counts.received)?,
                None => None,
            };
            match read {
                Some(0) => {}
                Some(len) => return Ok(Some((Operation::Data, len, 0))),
                None => {
                    self.close();
                    self.phase = Phase::Gone;
                    return Ok(Some((Operation::Reset, 0, 0)));
                }
            }
        }
        if self.to_program.tell {
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
        Header {
            ports: self.ports,
            len,
            kind: STREAM,
            operation: Some(operation),
            flags,
            // Every packet tells it, whatever else it says.
            credit: self.to_program.credit(),
        }
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
