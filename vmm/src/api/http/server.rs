//! The listening socket and its clients, on one thread with epoll.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, Turn};
use super::{Limits, Request, Response};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;
/// Events taken from the kernel at a time; the others come next.
const EVENTS: usize = 64;

/// Epoll's data for what is not a connection; those have their slot's number.
const STOP: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;

/// The API socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is something of this name.
    #[error(
        "the API socket {path:?} exists already: another launcher may be using it; if none is, remove \
         it, or choose another path with --api-sock"
    )]
    Exists {
        /// The socket's path.
        path: PathBuf,
    },
    /// Longer than the kernel takes (unix(7): 108 bytes with the zero at its end).
    #[error("the API socket's path {path:?} is longer than 107 bytes or holds a zero byte")]
    Path {
        /// The socket's path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot make the API socket {path:?}; check its folder and permissions")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The server cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the API server cannot wait for its clients")]
pub struct ServeError(#[from] io::Error);

/// What has happened at the socket since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Requests answered by the handler.
    pub answered: AtomicU64,
    /// Requests refused before they reached the handler.
    pub refused: AtomicU64,
    /// Connections closed to make room for others.
    pub evicted: AtomicU64,
    /// Connections closed because a request or the taking of an answer lasted too long.
    pub expired: AtomicU64,
}

/// One more. Before the client can see what is counted.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The API's socket. Removes it when dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// The socket's device and inode: another one of the same name is not ours to remove.
    identity: Option<(u64, u64)>,
    limits: Limits,
    counts: Arc<Counts>,
}

impl Server {
    /// Makes the socket at `path`; clients can connect from now on, and are served by
    /// [`run`](Self::run).
    ///
    /// # Errors
    /// When there is something at `path` already, or the socket cannot be made.
    pub fn bind(path: &Path, limits: Limits) -> Result<Self, BindError> {
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => BindError::Exists { path: path.into() },
            ErrorKind::InvalidInput => BindError::Path { path: path.into() },
            _ => BindError::Io {
                path: path.into(),
                source,
            },
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let server = Self {
            listener,
            path: path.into(),
            identity: identity(path),
            limits: Limits {
                connections: limits.connections.max(1),
                ..limits
            },
            counts: Arc::default(),
        };
        server.listener.set_nonblocking(true).map_err(failed)?;
        Ok(server)
    }

    /// What happens at the socket, as it happens.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Serves clients until `stop` is readable: calls `handler` for each request, one at a time.
    /// Then removes the socket and closes every connection.
    ///
    /// # Errors
    /// When the kernel does not let it wait for events.
    pub fn run(
        self,
        mut handler: impl FnMut(Request) -> Response,
        stop: &EventFd,
    ) -> Result<(), ServeError> {
        let mut clients = Loop::new(&self, stop)?;
        let ended = clients.run(&mut handler);
        // Before its connections are closed: a client that sees its own end may use the path again.
        self.remove();
        Ok(ended?)
    }

    fn remove(&self) {
        // As long as our socket is open, no other file has its inode.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // A socket that stays is told of at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// A connection in its slot.
struct Client {
    connection: Connection,
    /// Whether it gets a turn.
    ready: bool,
    /// What epoll watches it for.
    watched: EventSet,
}

struct Loop<'a> {
    server: &'a Server,
    epoll: Epoll,
    clients: Vec<Option<Client>>,
    /// Whether connections wait to be accepted.
    knocking: bool,
    /// When accepting goes on, while it is paused.
    paused: Option<Instant>,
    chunk: Vec<u8>,
}

impl<'a> Loop<'a> {
    fn new(server: &'a Server, stop: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch = |fd: RawFd, data| {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, data),
            )
        };
        watch(stop.as_raw_fd(), STOP)?;
        watch(server.listener.as_raw_fd(), LISTENER)?;
        let mut clients = Vec::new();
        clients.resize_with(server.limits.connections, || None);
        Ok(Self {
            server,
            epoll,
            clients,
            knocking: false,
            paused: None,
            chunk: vec![0; CHUNK],
        })
    }

    fn run(&mut self, handler: &mut dyn FnMut(Request) -> Response) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let timeout = self.timeout(Instant::now());
            let happened = match self.epoll.wait(timeout, &mut events) {
                Ok(happened) => happened,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            for event in events.iter().take(happened) {
                match event.data() {
                    STOP => return Ok(()),
                    LISTENER => self.knocking = true,
                    slot => {
                        if let Some(client) = self.client(slot) {
                            client.ready = true;
                        }
                    }
                }
            }
            self.turns(handler);
            self.expire(Instant::now());
            self.resume(Instant::now())?;
            self.accept()?;
        }
    }

    fn client(&mut self, slot: u64) -> Option<&mut Client> {
        self.clients.get_mut(usize::try_from(slot).ok()?)?.as_mut()
    }

    /// How long there is nothing to do, in milliseconds as epoll takes it; -1 without an end.
    fn timeout(&self, now: Instant) -> i32 {
        if self.knocking && self.paused.is_none() {
            return 0;
        }
        let mut next = self.paused;
        for client in self.clients.iter().flatten() {
            if client.ready {
                return 0;
            }
            next = [next, client.connection.deadline()]
                .into_iter()
                .flatten()
                .min();
        }
        next.map_or(-1, |next| {
            let millis = next.saturating_duration_since(now).as_millis();
            // Rounded up: to wake before the time is to wake twice.
            i32::try_from(millis.saturating_add(1)).unwrap_or(i32::MAX)
        })
    }

    /// Gives each client that is ready one turn.
    fn turns(&mut self, handler: &mut dyn FnMut(Request) -> Response) {
        let counts = &self.server.counts;
        for (slot, place) in self.clients.iter_mut().enumerate() {
            let Some(client) = place.as_mut().filter(|client| client.ready) else {
                continue;
            };
            let turn = client
                .connection
                .turn(handler, &mut self.chunk, counts, Instant::now());
            client.ready = turn == Turn::Again;
            let wanted = match turn {
                Turn::Again => continue,
                Turn::Input => EventSet::IN,
                Turn::Output => EventSet::OUT,
                Turn::Closed => {
                    // Closing the descriptor takes it out of epoll's set: nobody else has it.
                    *place = None;
                    continue;
                }
            };
            if client.watched == wanted {
                continue;
            }
            client.watched = wanted;
            let (modify, stream) = (ControlOperation::Modify, client.connection.stream());
            if let Err(error) = watch(&self.epoll, modify, stream, wanted, slot) {
                tracing::debug!("an API connection cannot be watched: {error}");
                *place = None;
            }
        }
    }

    /// Cuts those that took too long.
    fn expire(&mut self, now: Instant) {
        for place in &mut self.clients {
            let deadline = place
                .as_ref()
                .and_then(|client| client.connection.deadline());
            if deadline.is_some_and(|deadline| deadline <= now) {
                count(&self.server.counts.expired);
                *place = None;
            }
        }
    }

    /// Accepts one of those that wait, if there is room; epoll tells of the next.
    fn accept(&mut self) -> io::Result<()> {
        if !self.knocking || self.paused.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        let Some(slot) = self.room(now) else {
            return self.pause(self.oldest().map_or(now, |(_, since)| since));
        };
        self.knocking = false;
        let stream = match self.server.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                return match error.kind() {
                    ErrorKind::WouldBlock
                    | ErrorKind::Interrupted
                    | ErrorKind::ConnectionAborted => Ok(()),
                    // No descriptor or no memory is left: the caller waits, and others go on.
                    _ => {
                        tracing::debug!("an API connection cannot be accepted: {error}");
                        self.pause(now)
                    }
                };
            }
        };
        let watched = stream.set_nonblocking(true).and_then(|()| {
            let add = ControlOperation::Add;
            watch(&self.epoll, add, &stream, EventSet::IN, slot)
        });
        if let Err(error) = watched {
            tracing::debug!("an API connection cannot be watched: {error}");
            return Ok(());
        }
        let Limits {
            payload, patience, ..
        } = self.server.limits;
        let client = Client {
            connection: Connection::new(stream, payload, patience, now),
            // Most have sent their request by now.
            ready: true,
            watched: EventSet::IN,
        };
        if let Some(place) = self.clients.get_mut(slot) {
            count(&self.server.counts.accepted);
            *place = Some(client);
        }
        Ok(())
    }

    /// A slot for one more connection: a free one, or that of the oldest if its time of grace is over.
    fn room(&mut self, now: Instant) -> Option<usize> {
        if let Some(slot) = self.clients.iter().position(Option::is_none) {
            return Some(slot);
        }
        let (slot, since) = self.oldest()?;
        if now.saturating_duration_since(since) < self.server.limits.grace {
            return None;
        }
        count(&self.server.counts.evicted);
        *self.clients.get_mut(slot)? = None;
        Some(slot)
    }

    /// The connection that has gone longest without an answer.
    fn oldest(&self) -> Option<(usize, Instant)> {
        let ages = self.clients.iter().enumerate();
        ages.filter_map(|(slot, place)| Some((slot, place.as_ref()?.connection.since())))
            .min_by_key(|(_, since)| *since)
    }

    /// Leaves those that knock waiting until the time of grace after `since`.
    fn pause(&mut self, since: Instant) -> io::Result<()> {
        self.paused = since.checked_add(self.server.limits.grace.max(Duration::from_millis(1)));
        self.watch_listener(EventSet::empty())
    }

    /// Accepts again, when the pause is over or there is room.
    fn resume(&mut self, now: Instant) -> io::Result<()> {
        let Some(until) = self.paused else {
            return Ok(());
        };
        if until > now {
            return Ok(());
        }
        self.paused = None;
        self.watch_listener(EventSet::IN)
    }

    fn watch_listener(&self, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Modify,
            self.server.listener.as_raw_fd(),
            EpollEvent::new(events, LISTENER),
        )
    }
}

fn watch(
    epoll: &Epoll,
    operation: ControlOperation,
    stream: &UnixStream,
    events: EventSet,
    slot: usize,
) -> io::Result<()> {
    let data = u64::try_from(slot).unwrap_or(STOP - 2);
    epoll.ctl(operation, stream.as_raw_fd(), EpollEvent::new(events, data))
}

#[cfg(test)]
mod tests;
