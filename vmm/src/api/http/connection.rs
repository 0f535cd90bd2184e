//! One client's connection: a state machine that never blocks.
//!
//! ```text
//!   Serving ──(refused, close asked for, end of input)──► Last ──► Draining ──► closed
//! ```
//!
//! Nothing is read while an answer is not yet taken, and no request is looked at while one is being
//! answered: so a connection holds one request and one answer at most.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::parser::{Parser, Refusal, Step};
use super::server::{Counts, count};
use super::{Request, Response};

/// How much a refused client may still send before the connection is cut.
const DRAIN_BYTES: usize = 1 << 20;
/// How long it may take to do so.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// How a turn left the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is more to do at once.
    Again,
    /// Nothing until the client sends.
    Input,
    /// Nothing until the client takes.
    Output,
    /// The end.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are answered.
    Serving,
    /// The answer that is being sent is the last one.
    Last,
    /// It is sent. What the client still sends is thrown away until it ends, within bounds: closing
    /// at once would take the answer away from a client that is busy sending.
    Draining { left: usize },
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    parser: Parser,
    output: Vec<u8>,
    /// Bytes of `output` that are sent.
    sent: usize,
    phase: Phase,
    since: Instant,
    deadline: Option<Instant>,
    patience: Duration,
}

impl Connection {
    /// Serves `stream`, which does not block.
    pub(super) fn new(
        stream: UnixStream,
        payload: usize,
        patience: Duration,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            parser: Parser::new(payload),
            output: Vec::new(),
            sent: 0,
            phase: Phase::Serving,
            since: now,
            deadline: None,
            patience,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// When it was accepted, or its last request was answered.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// When it must be cut, while something is unfinished.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Does what can be done now: sends, reads one chunk, answers one request.
    pub(super) fn turn(
        &mut self,
        handler: &mut dyn FnMut(Request) -> Response,
        chunk: &mut [u8],
        counts: &Counts,
        now: Instant,
    ) -> Turn {
        let turn = self.advance(handler, chunk, counts, now);
        let unfinished =
            self.parser.has_begun() || !self.output.is_empty() || self.phase != Phase::Serving;
        if !unfinished {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = now.checked_add(self.patience);
        }
        turn
    }

    fn advance(
        &mut self,
        handler: &mut dyn FnMut(Request) -> Response,
        chunk: &mut [u8],
        counts: &Counts,
        now: Instant,
    ) -> Turn {
        if let Some(turn) = self.flush(now) {
            return turn;
        }
        if let Phase::Draining { left } = self.phase {
            return self.drain(left, chunk);
        }
        if let Some(turn) = self.respond(handler, counts, now) {
            return turn;
        }
        match self.stream.read(chunk) {
            // The end: no request can become whole any more.
            Ok(0) => return Turn::Closed,
            Ok(read) => self.parser.push(chunk.get(..read).unwrap_or_default()),
            Err(error) => return after(&error, Turn::Input),
        }
        self.respond(handler, counts, now).unwrap_or(Turn::Again)
    }

    /// Answers the next request, if it is whole.
    fn respond(
        &mut self,
        handler: &mut dyn FnMut(Request) -> Response,
        counts: &Counts,
        now: Instant,
    ) -> Option<Turn> {
        match self.parser.step() {
            Step::More => return None,
            Step::Continue => self
                .output
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Step::Request(message) => {
                let response = handler(message.request);
                response.encode(!message.keep_alive, true, &mut self.output);
                if !message.keep_alive {
                    self.phase = Phase::Last;
                }
                // The handler may have taken its time, which is not the client's.
                let now = now.max(Instant::now());
                self.since = now;
                self.deadline = now.checked_add(self.patience);
                count(&counts.answered);
            }
            Step::Refused(refusal) => {
                tracing::debug!("API request refused: {refusal}");
                let with_body = !matches!(refusal, Refusal::Method { head: true, .. });
                Response::fault(&refusal.to_string()).encode(true, with_body, &mut self.output);
                self.phase = Phase::Last;
                count(&counts.refused);
            }
        }
        Some(self.flush(now).unwrap_or(Turn::Again))
    }

    /// Sends what is left of the answer. `None` when all is sent and the connection goes on.
    fn flush(&mut self, now: Instant) -> Option<Turn> {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(written) => self.sent = self.sent.saturating_add(written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Some(after(&error, Turn::Output)),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        if self.phase == Phase::Last {
            self.phase = Phase::Draining { left: DRAIN_BYTES };
            self.deadline = now.checked_add(DRAIN_TIME);
            if self.stream.shutdown(Shutdown::Write).is_err() {
                return Some(Turn::Closed);
            }
        }
        None
    }

    fn drain(&mut self, left: usize, chunk: &mut [u8]) -> Turn {
        match self.stream.read(chunk) {
            Ok(0) => Turn::Closed,
            Ok(read) => match left.checked_sub(read) {
                Some(left) => {
                    self.phase = Phase::Draining { left };
                    Turn::Again
                }
                None => Turn::Closed,
            },
            Err(error) => after(&error, Turn::Input),
        }
    }
}

/// What an error of the socket means: `wait` when it would have blocked.
fn after(error: &std::io::Error, wait: Turn) -> Turn {
    match error.kind() {
        ErrorKind::WouldBlock => wait,
        ErrorKind::Interrupted => Turn::Again,
        _ => Turn::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handler_that_takes_its_time_does_not_cost_the_client_its_own() {
        const PATIENCE: Duration = Duration::from_secs(3600);
        let (mut client, served) = UnixStream::pair().expect("a pair of sockets");
        served.set_nonblocking(true).expect("a socket");
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("room");
        let begin = Instant::now();
        let mut connection = Connection::new(served, 0, PATIENCE, begin);
        let mut answered = None;
        let mut handler = |_: Request| {
            while Instant::now() == begin {}
            answered = Some(Instant::now());
            // More than the socket takes: the answer waits for its client.
            Response::json(vec![b'x'; 4 << 20])
        };
        let counts = Counts::default();
        let turn = connection.turn(&mut handler, &mut [0; 100], &counts, begin);
        assert_eq!(turn, Turn::Output);
        let answered = answered.expect("a request");
        assert!(connection.since() >= answered);
        assert!(connection.deadline().expect("unfinished") >= answered + PATIENCE);
    }
}
