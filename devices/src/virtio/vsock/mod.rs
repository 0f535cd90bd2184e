//! A socket device (5.10): stream connections between programs of the guest and programs of the host, which need no
//! network for them. What the host's programs connect by is behind a [`Host`].
//!
//! # Who does what
//!
//! - A packet's header is read once and checked; what is not from the guest to the host is dropped.
//! - A connection knows what either side said, and what is to be told; it never sees a ring.
//! - All connections together are found by their ports and take turns: in each a connection has one packet for the
//!   guest, or as many as one read of its program fills, up to [`MAX_PIECES`]; then the next one has its turn. There
//!   are at most 1,023, and each keeps at most 256 KiB of the guest's bytes, or 64 KiB where there were 64 before it.
//!
//! A connection that makes no sense is reset, and no other one is harmed by it. An answer for which there is no
//! connection waits for a buffer of the guest; when 256 wait, the guest's packets do (5.10.6.1.2).
//!
//! A guest that owes an answer, to a program that wants to connect or to the end of both directions, has two seconds
//! for it ([`PATIENCE`]). Then the connection is reset, and the program's end is closed.

mod backlog;
mod connection;
mod connections;
mod counts;
mod host;
mod packet;
mod slots;
mod to_guest;
mod to_program;

use std::fmt;
use std::sync::Arc;

use tsc::Nanos;

use super::{Chain, ConfigSpace, Device, Kind, Served, Violation};
use connections::{Connections, Taken};
pub use counts::{Counts, Direction};
pub use host::{Event, Host, MAX_PIECES, Place, Refusal, Report, Stream, Token};
use packet::HEADER;
pub use packet::{Cid, Port};
pub use slots::PATIENCE;

/// `VIRTIO_VSOCK_F_STREAM` (5.10.3): connections are streams. A driver that does not know it goes by that anyhow.
const F_STREAM: u64 = 1 << 0;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The most connections at a time.
pub const MAX_CONNECTIONS: usize = connections::MAX;

/// The device.
pub struct Vsock<H: Host> {
    connections: Connections<H>,
}

impl<H: Host> Vsock<H> {
    /// The device of the guest with this address. `report` is told of what the host refuses.
    #[must_use]
    pub fn new(guest: Cid, host: H, report: Report) -> Self {
        Self {
            connections: Connections::new(guest, host, report),
        }
    }

    /// What it counts, now and later.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        self.connections.counts()
    }
}

impl<H: Host> Device for Vsock<H> {
    /// Nothing of it can be changed.
    type Update = ();

    const KIND: Kind = Kind::Socket;

    /// For packets to the guest, for packets from it, and for news of the device, of which there are none: the only
    /// one is that the guest was moved (5.10.6.7).
    const QUEUES: &'static [u16] = &[256, 256, 256];

    /// Buffers of any sensible size: those for 64 KiB are 16 chains of two descriptors each.
    const GATHERS: u16 = 2;

    fn features(&self) -> u64 {
        F_STREAM
    }

    /// `struct virtio_vsock_config` (5.10.4).
    fn config(&self) -> ConfigSpace {
        ConfigSpace::EMPTY.with(&self.connections.guest().get().to_le_bytes())
    }

    fn start(&mut self, _: u64) {}

    fn stop(&mut self) {
        self.connections.clear();
    }

    fn poll(&mut self, told: bool) {
        self.connections.poll(told);
    }

    fn again(&mut self) -> bool {
        self.connections.take_again()
    }

    fn wait(&mut self) -> Option<Nanos> {
        self.connections.wait()
    }

    /// # Errors
    /// [`Violation::Buffer`] for a buffer that has no room for a packet: the guest would never learn anything.
    fn serve(&mut self, queue: usize, chain: &Chain<'_>) -> Result<Served, Violation> {
        match queue {
            RECEIVE => {
                if chain.last_room() <= HEADER as u64 {
                    return Err(Violation::Buffer);
                }
                let (parts, room) = (chain.parts(), chain.writable.len());
                if chain.another && chain.may_grow && self.connections.wants_more(parts, room) {
                    return Ok(Served::Gather);
                }
                let written = self.connections.next(chain)?;
                Ok(written.map_or(Served::Idle, |written| Served::Done { written }))
            }
            TRANSMIT => Ok(match self.connections.take(&chain.readable)? {
                Taken::Done => Served::Done { written: 0 },
                Taken::NotNow => Served::Idle,
            }),
            _ => Ok(Served::Idle),
        }
    }

    fn update(&mut self, (): ()) {}
}

impl<H: Host> fmt::Debug for Vsock<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("guest", &self.connections.guest())
            .finish_non_exhaustive()
    }
}
