//! Places for connections, and how long a guest may owe them an answer.

use tsc::Nanos;

use super::connection::Connection;

/// How long a guest may owe an answer: as long as with Firecracker (`CONN_REQUEST_TIMEOUT_MS` and
/// `CONN_SHUTDOWN_TIMEOUT_MS`, src/vmm/src/devices/virtio/vsock/csm/mod.rs).
pub const PATIENCE: Nanos = Nanos::new(2_000_000_000);

/// A place for a connection.
#[derive(Debug)]
pub(super) struct Slot<S> {
    pub(super) connection: Option<Connection<S>>,
    /// How many it has seen: an event may come for the one before.
    pub(super) generation: u32,
    /// It waits for its turn.
    pub(super) queued: bool,
    /// The host tells of room in its stream.
    pub(super) watches_room: bool,
    /// The guest owes it an answer until then.
    pub(super) deadline: Option<Nanos>,
}

impl<S> Default for Slot<S> {
    fn default() -> Self {
        Self {
            connection: None,
            generation: 0,
            queued: false,
            watches_room: false,
            deadline: None,
        }
    }
}

/// The first of all deadlines, or one before it: those that were met are not taken out, since that would need all
/// others to be looked at. They are when its time has come, which for each deadline is once at most.
#[derive(Debug, Default)]
pub(super) struct Deadlines(Option<Nanos>);

impl Deadlines {
    pub(super) fn first(&self) -> Option<Nanos> {
        self.0
    }

    /// There is one more.
    pub(super) fn add(&mut self, deadline: Nanos) {
        let is_first = self.0.is_none_or(|first| deadline.get() < first.get());
        if is_first {
            self.0 = Some(deadline);
        }
    }

    /// Whether the first one's time has come. Then none is known any more, and those that are left are to be added.
    pub(super) fn begin(&mut self, now: Nanos) -> bool {
        self.0.take_if(|first| first.get() <= now.get()).is_some()
    }
}
