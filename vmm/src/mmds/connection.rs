//! HTTP on one connection of a guest.
//!
//! It holds one request and one answer at most: nothing more is read while an answer is not taken.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use tsc::Nanos;

use super::service::{KEPT, Service};
use super::{MAX_BODY, PATIENCE, PORT, RECEIVE_BUFFER, SEND_BUFFER};
use crate::api::http::{Parser, Step};

/// A place for a connection, which waits for one or has one.
pub(super) struct Connection {
    handle: SocketHandle,
    talk: Option<Talk>,
}

/// What is said on a connection.
struct Talk {
    parser: Parser,
    output: Vec<u8>,
    /// Bytes of `output` that the stack has taken.
    sent: usize,
    /// The answer that is being sent is the last one.
    last: bool,
    /// When it has taken too long.
    deadline: Nanos,
}

fn after(now: Nanos) -> Nanos {
    Nanos::new(now.get().saturating_add(PATIENCE.get()))
}

impl Connection {
    /// A place that waits for a connection.
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Self {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        // An answer's last bytes do not wait for its first ones' being acknowledged, nor does an acknowledgement
        // wait for an answer: either would wait for a timer of the guest's.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut connection = Self {
            handle: sockets.add(socket),
            talk: None,
        };
        connection.listen(sockets);
        connection
    }

    fn listen(&mut self, sockets: &mut SocketSet<'static>) {
        // It is not open when this is called, and the port is one, so there is nothing to be refused.
        let _ = sockets.get_mut::<Socket<'_>>(self.handle).listen(PORT);
    }

    /// When it will have taken too long, if there is one.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.talk.as_ref().map(|talk| talk.deadline)
    }

    /// Reads, answers and sends what can be. To be called before what is to be sent is sent.
    pub(super) fn serve(
        &mut self,
        sockets: &mut SocketSet<'static>,
        service: &Service,
        now: Nanos,
    ) {
        let socket = sockets.get_mut::<Socket<'_>>(self.handle);
        if socket.is_listening() {
            return;
        }
        let talk = self.talk.get_or_insert_with(|| {
            service.counters.created.add(1);
            Talk {
                parser: Parser::keeping(MAX_BODY, KEPT),
                output: Vec::new(),
                sent: 0,
                last: false,
                deadline: after(now),
            }
        });
        if now.get() >= talk.deadline.get() {
            socket.abort();
        } else if socket.state() != State::SynReceived {
            talk.advance(socket, service, now);
        }
    }

    /// Waits for another connection when this one has ended. To be called after what is to be sent was sent.
    ///
    /// There is no waiting for packets that are late (TIME-WAIT, RFC 9293, section 3.6.1): between a guest and its
    /// host none are, and a guest that has many short connections would have to wait for its next one.
    pub(super) fn end(&mut self, sockets: &mut SocketSet<'static>, service: &Service) {
        let socket = sockets.get::<Socket<'_>>(self.handle);
        let has_ended = match socket.state() {
            // A handshake that is reset puts its place back by itself (RFC 9293, section 3.10.7.4).
            State::Listen | State::TimeWait => true,
            // Afterwards its reset has been sent, too.
            State::Closed => socket.remote_endpoint().is_none(),
            _ => false,
        };
        if has_ended {
            if self.talk.take().is_some() {
                service.counters.destroyed.add(1);
            }
            self.listen(sockets);
        }
    }
}

impl Talk {
    fn advance(&mut self, socket: &mut Socket<'_>, service: &Service, now: Nanos) {
        loop {
            if !self.send(socket, now) {
                return;
            }
            if !self.output.is_empty() {
                (self.output, self.sent) = (Vec::new(), 0);
                if self.last {
                    socket.close();
                }
            }
            if self.last {
                // What it still sends is not looked at.
                while socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0) > 0 {}
                return;
            }
            match self.parser.step() {
                Step::More if socket.can_recv() => {
                    let parser = &mut self.parser;
                    let _ = socket.recv(|bytes| {
                        parser.push(bytes);
                        (bytes.len(), ())
                    });
                }
                Step::More => {
                    // The end of what it sends: no request can become whole any more.
                    if !socket.may_recv() {
                        self.last = true;
                        socket.close();
                    }
                    return;
                }
                Step::Continue => {
                    self.output
                        .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                Step::Request(message) => {
                    let reply = service.answer(&message.request);
                    self.output = reply.encode(message.keep_alive, true);
                    self.last = !message.keep_alive;
                }
                Step::Refused(refusal) => {
                    let (reply, with_body) = Service::refuse(&refusal);
                    self.output = reply.encode(false, with_body);
                    self.last = true;
                }
            }
        }
    }

    /// Gives the stack what it has room for of the answer. Returns whether it has all of it.
    fn send(&mut self, socket: &mut Socket<'_>, now: Nanos) -> bool {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match socket.send_slice(rest) {
                Ok(sent) if sent > 0 => {
                    self.sent += sent;
                    self.deadline = after(now);
                }
                _ => return false,
            }
        }
        true
    }
}
