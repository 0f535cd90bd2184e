//! What the device needs of the host: streams, and to be told of them.

use std::fmt;
use std::io;

use tsc::Nanos;
use vm_memory::VolatileSlice;

use super::packet::Port;

/// The most pieces of the guest's memory that are read into at once: 64 KiB of Linux's buffers, which have 4 KiB
/// (`VIRTIO_VSOCK_DEFAULT_RX_BUF_SIZE`, include/linux/virtio_vsock.h).
pub const MAX_PIECES: usize = 16;

/// The end of a connection at the device, of which a program of the host has the other end. Nothing here waits:
/// what cannot be done now is [`WouldBlock`](io::ErrorKind::WouldBlock), and what was interrupted is done again.
pub trait Stream: Send {
    /// Takes bytes from the program into these pieces, of which there are at most [`MAX_PIECES`], one after the other;
    /// 0 says that it sends no more.
    ///
    /// # Errors
    /// The host's.
    fn read(&mut self, into: &[VolatileSlice<'_, ()>]) -> io::Result<usize>;

    /// Gives bytes to the program, and says how many it took.
    ///
    /// # Errors
    /// The host's. Whatever it is, the program takes no more.
    fn write(&mut self, from: VolatileSlice<'_, ()>) -> io::Result<usize>;

    /// Nothing more is read, and the program learns that when it sends more.
    fn end_reading(&mut self);

    /// Nothing more is written, and the program learns that when it has read the rest.
    fn end_writing(&mut self);
}

/// Names a stream in [`Event`]s. The device's own; others pass it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token(pub u64);

/// What there is something to be done at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// A program wants to connect.
    #[default]
    Listener,
    /// A stream.
    Stream(Token),
}

/// What has become possible at the host. It may be no longer, or may be told twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Where.
    pub place: Place,
    /// There are bytes to be read, or their end.
    pub readable: bool,
    /// There is room for bytes.
    pub writable: bool,
    /// The program is gone: it takes no more. What it sent before can still be read.
    pub hung_up: bool,
}

/// Where connections of the guest lead to, and where others come from.
pub trait Host: Send {
    /// What it connects by.
    type Stream: Stream;

    /// The time, which never goes back.
    fn now(&mut self) -> Nanos;

    /// The next program that wants to connect to the guest; `None` when there is none.
    ///
    /// # Errors
    /// The host's.
    fn accept(&mut self) -> io::Result<Option<Self::Stream>>;

    /// Connects the guest to the program that serves `port`.
    ///
    /// # Errors
    /// The host's: [`NotFound`](io::ErrorKind::NotFound) or
    /// [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) when there is none.
    fn connect(&mut self, port: Port) -> io::Result<Self::Stream>;

    /// Has [`Self::poll`] tell of `stream`: at once of what is possible now, later whenever there are new bytes, or
    /// the program has gone; and, with `room`, when there is room for more bytes. `again` when it did so before. It
    /// ends with the stream.
    ///
    /// # Errors
    /// The host's.
    fn watch(
        &mut self,
        stream: &Self::Stream,
        token: Token,
        room: bool,
        again: bool,
    ) -> io::Result<()>;

    /// Puts what happened since the last call into the first places of `events`, as far as there are any, and says
    /// how many. Of programs that want to connect it tells when there is one more.
    ///
    /// # Errors
    /// The host's.
    fn poll(&mut self, events: &mut [Event]) -> io::Result<usize>;
}

/// What the host refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Taking a connection of a program.
    Accept,
    /// Connecting the guest to a program, for another reason than that there is none.
    Connect,
    /// Telling what has become possible.
    Watch,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept a connection",
            Self::Connect => "connect the guest",
            Self::Watch => "watch a connection",
        })
    }
}

/// Told of the first failure of each kind.
pub type Report = Box<dyn FnMut(Refusal, &io::Error) + Send>;
