//! Unix sockets of the host: the other ends of a guest's connections, as Firecracker has them.
//!
//! A program connects to the guest by the socket at `uds_path`, and says where to by a line (see
//! `devices::virtio::vsock`). The guest connects to a program by port P when it listens at `uds_path_P`.
//!
//! They are watched by an epoll of their own, by edges: as long as the guest has no buffers or no credit, what is
//! there stays there, and nobody is woken by it again. Who waits for that epoll waits for all of them.
#![allow(
    unsafe_code,
    reason = "reading into several places of guest memory without a copy"
)]

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use devices::virtio::vsock::{
    Event, Host, MAX_CONNECTIONS, MAX_PIECES, Place, Port, Stream, Token,
};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect,
    shutdown, socket_with,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tsc::Nanos;
use vm_memory::{VolatileMemoryError, VolatileSlice, WriteVolatile};

use crate::api::vsock::MAX_PATH;
use crate::host_clock;

/// So many events are taken from the kernel at once.
const AT_ONCE: usize = 64;

/// Epoll's data for the listener; those of a stream are its token, in whose lower half is a small number.
const LISTENER: u64 = u64::MAX;

/// The socket cannot be made.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    /// There is something of this name.
    #[error(
        "uds_path {path:?} exists already: another launcher may be using it; if none is, remove it, or give \
         another path"
    )]
    Exists {
        /// The socket's path.
        path: PathBuf,
    },
    /// No path of a socket.
    #[error("uds_path {path:?} is empty, longer than {MAX_PATH} bytes, or holds a zero byte")]
    Path {
        /// The socket's path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot make the socket uds_path {path:?}; check its folder and permissions")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The file of a socket that was made here. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Its device and inode: another one of the same name is not ours to remove.
    identity: Option<(u64, u64)>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            // Whoever took it away meanwhile did what was to be done.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where connections of a guest lead to, and where others come from.
#[derive(Debug)]
pub(super) struct Sockets {
    listener: UnixListener,
    path: PathBuf,
    epoll: OwnedFd,
}

impl Sockets {
    /// Makes the socket at `path`: programs can connect from now on, and wait until a guest is there.
    pub(super) fn bind(path: &Path) -> Result<(Self, SocketFile), SocketError> {
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => SocketError::Exists { path: path.into() },
            ErrorKind::InvalidInput => SocketError::Path { path: path.into() },
            _ => SocketError::Io {
                path: path.into(),
                source,
            },
        };
        // The kernel would make up a name.
        if path.as_os_str().is_empty() {
            return Err(failed(ErrorKind::InvalidInput.into()));
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let file = SocketFile {
            path: path.into(),
            identity: identity(path),
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let refused = |error: Errno| failed(error.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(refused)?;
        let data = epoll::EventData::new_u64(LISTENER);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &listener, data, flags).map_err(refused)?;
        let path = path.into();
        let sockets = Self {
            listener,
            path,
            epoll,
        };
        Ok((sockets, file))
    }

    /// What becomes readable when there is something to be done.
    pub(super) fn source(&self) -> io::Result<OwnedFd> {
        self.epoll.as_fd().try_clone_to_owned()
    }
}

/// Descriptors of this process beside those of connections: more than a machine with all devices has.
const OTHERS: u64 = 256;

/// Lets this process have a descriptor for each connection that a guest can have, as far as it may.
pub(super) fn allow_descriptors() {
    let wanted = OTHERS + MAX_CONNECTIONS as u64;
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    let current = Some(wanted.min(maximum));
    if limit.current.is_some_and(|current| current < wanted) {
        // A limit between the one that there is and the highest is never refused.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
    if maximum < wanted {
        tracing::warn!(
            "vsock: this process may have {maximum} descriptors; {wanted} are needed for {MAX_CONNECTIONS} \
             connections: raise the limit (ulimit -n)"
        );
    }
}

/// The device's end of a connection.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Stream for Socket {
    fn read(&mut self, into: &[VolatileSlice<'_, ()>]) -> io::Result<usize> {
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PIECES];
        let mut count = 0;
        for (piece, slice) in pieces.iter_mut().zip(into) {
            piece.write(libc::iovec {
                // The memory is mapped as it is for as long as the slices are borrowed, so no guard is needed later.
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            count += 1;
        }
        loop {
            // SAFETY: `count` pieces are set, each within memory that is mapped while `into` is borrowed. What the
            // kernel writes there is for the guest, which may see it come.
            let read = unsafe { libc::readv(self.0.as_raw_fd(), pieces.as_ptr().cast(), count) };
            if let Ok(read) = usize::try_from(read) {
                return Ok(read);
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// That the program is gone is an error and no signal: this process ignores `SIGPIPE`, as every Rust program
    /// does.
    fn write(&mut self, from: VolatileSlice<'_, ()>) -> io::Result<usize> {
        loop {
            match self.0.write_volatile(&from) {
                Ok(count) => return Ok(count),
                Err(VolatileMemoryError::IOError(error)) => {
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    fn end_reading(&mut self) {
        // It fails when the program is gone, and then it has no effect to have.
        let _ = shutdown(&self.0, Shutdown::Read);
    }

    fn end_writing(&mut self) {
        let _ = shutdown(&self.0, Shutdown::Write);
    }
}

impl Host for Sockets {
    type Stream = Socket;

    fn now(&mut self) -> Nanos {
        host_clock::monotonic_raw()
    }

    fn accept(&mut self) -> io::Result<Option<Socket>> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match accept_with(&self.listener, flags) {
                Ok(socket) => return Ok(Some(Socket(socket))),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn connect(&mut self, port: Port) -> io::Result<Socket> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(Path::new(&path))?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // It waits for nobody: a program whose backlog is full does not listen, as far as the guest can see.
        loop {
            match connect(&socket, &address) {
                Ok(()) => return Ok(Socket(socket)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn watch(&mut self, stream: &Socket, token: Token, room: bool, again: bool) -> io::Result<()> {
        let mut events = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        // Not always: it would be told whenever the program has taken something.
        events.set(epoll::EventFlags::OUT, room);
        let data = epoll::EventData::new_u64(token.0);
        if again {
            epoll::modify(&self.epoll, &stream.0, data, events)?;
        } else {
            epoll::add(&self.epoll, &stream.0, data, events)?;
        }
        Ok(())
    }

    fn poll(&mut self, events: &mut [Event]) -> io::Result<usize> {
        let mut told = [const { MaybeUninit::uninit() }; AT_ONCE];
        let most = events.len().min(AT_ONCE);
        let place = told.get_mut(..most).unwrap_or_default();
        let told = loop {
            let now = Timespec::default();
            match epoll::wait(&self.epoll, &mut *place, Some(&now)) {
                Ok((told, _)) => break told,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        for (event, told) in events.iter_mut().zip(&*told) {
            let (flags, data) = (told.flags, told.data.u64());
            let has = |flag| flags.intersects(flag);
            *event = Event {
                place: match data {
                    LISTENER => Place::Listener,
                    token => Place::Stream(Token(token)),
                },
                readable: has(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                writable: has(epoll::EventFlags::OUT),
                // Of a Unix socket: nothing goes either way any more (unix_poll, net/unix/af_unix.c).
                hung_up: has(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
            };
        }
        Ok(told.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn read(socket: &mut Socket) -> Result<Vec<u8>, ErrorKind> {
        let mut bytes = [0; 64];
        let count = socket.read(&[VolatileSlice::from(&mut bytes[..])]);
        let count = count.map_err(|error| error.kind())?;
        Ok(bytes[..count].to_vec())
    }

    fn write(socket: &mut Socket, bytes: &[u8]) -> Result<usize, ErrorKind> {
        let mut bytes = bytes.to_vec();
        let count = socket.write(VolatileSlice::from(&mut bytes[..]));
        count.map_err(|error| error.kind())
    }

    fn events(sockets: &mut Sockets) -> Vec<Event> {
        let mut events = [Event::default(); 8];
        let count = sockets.poll(&mut events).expect("events");
        events[..count].to_vec()
    }

    fn event(token: u64, readable: bool, writable: bool, hung_up: bool) -> Event {
        Event {
            place: Place::Stream(Token(token)),
            readable,
            writable,
            hung_up,
        }
    }

    #[test]
    fn program_connects_speaks_and_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v");
        let (mut sockets, file) = Sockets::bind(&path).expect("a socket");
        assert!(sockets.accept().expect("nobody").is_none());
        let mut program = UnixStream::connect(&path).expect("listening");
        let place = events(&mut sockets).first().map(|event| event.place);
        assert_eq!(place, Some(Place::Listener));
        // Once.
        assert_eq!(events(&mut sockets), []);
        let mut socket = sockets.accept().expect("somebody").expect("somebody");
        sockets
            .watch(&socket, Token(7), false, false)
            .expect("watched");
        assert_eq!(events(&mut sockets), []);
        assert_eq!(read(&mut socket), Err(ErrorKind::WouldBlock));
        program.write_all(b"hello").expect("room");
        assert_eq!(events(&mut sockets), [event(7, true, false, false)]);
        // Once.
        assert_eq!(events(&mut sockets), []);
        assert_eq!(read(&mut socket).expect("bytes"), b"hello");
        assert_eq!(write(&mut socket, b"you"), Ok(3));
        socket.end_writing();
        let mut text = String::new();
        program.read_to_string(&mut text).expect("text");
        assert_eq!(text, "you");
        drop(program);
        assert_eq!(events(&mut sockets), [event(7, true, false, true)]);
        assert_eq!(read(&mut socket).expect("the end"), b"");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn program_that_takes_nothing_is_waited_for_and_one_that_is_gone_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v");
        let (mut sockets, _file) = Sockets::bind(&path).expect("a socket");
        let mut program = UnixStream::connect(&path).expect("listening");
        let mut socket = sockets.accept().expect("somebody").expect("somebody");
        sockets
            .watch(&socket, Token(1), false, false)
            .expect("watched");
        let mut sent = 0;
        let full = loop {
            match write(&mut socket, &[1; 4_096]) {
                Ok(count) => sent += count,
                Err(kind) => break kind,
            }
        };
        assert_eq!(full, ErrorKind::WouldBlock);
        sockets
            .watch(&socket, Token(1), true, true)
            .expect("watched");
        assert_eq!(events(&mut sockets), []);
        program.read_exact(&mut vec![0; sent]).expect("all of it");
        assert_eq!(events(&mut sockets), [event(1, false, true, false)]);
        drop(program);
        assert_eq!(write(&mut socket, b"x"), Err(ErrorKind::BrokenPipe));
    }

    #[test]
    fn guest_connects_to_a_program_by_its_port_or_to_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v");
        let (mut sockets, _file) = Sockets::bind(&path).expect("a socket");
        let refused = |sockets: &mut Sockets, port| {
            let error = sockets.connect(Port(port)).expect_err("nobody");
            error.kind()
        };
        assert_eq!(refused(&mut sockets, 80), ErrorKind::NotFound);
        let listener = UnixListener::bind(folder.path().join("v_80")).expect("a socket");
        let mut socket = sockets.connect(Port(80)).expect("somebody");
        assert_eq!(write(&mut socket, b"hi"), Ok(2));
        let mut bytes = [0; 2];
        let mut program = listener.accept().expect("the guest").0;
        program.read_exact(&mut bytes).expect("two bytes");
        assert_eq!(&bytes, b"hi");
        drop(listener);
        assert_eq!(refused(&mut sockets, 80), ErrorKind::ConnectionRefused);
        assert_eq!(refused(&mut sockets, u32::MAX), ErrorKind::NotFound);
    }

    #[test]
    fn socket_that_cannot_be_made_is_told_and_another_ones_file_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v");
        let (_sockets, file) = Sockets::bind(&path).expect("a socket");
        let error = Sockets::bind(&path).expect_err("there");
        assert!(matches!(error, SocketError::Exists { .. }), "{error}");
        for bad in [PathBuf::new(), folder.path().join("x".repeat(108))] {
            let error = Sockets::bind(&bad).expect_err("no path");
            assert!(matches!(error, SocketError::Path { .. }), "{error}");
        }
        let error = Sockets::bind(&path.join("below")).expect_err("no folder");
        assert!(matches!(error, SocketError::Io { .. }), "{error}");
        // Somebody else's by now. The inode of the first is kept, so that the second has another.
        std::fs::rename(&path, folder.path().join("kept")).expect("moved");
        let _other = UnixListener::bind(&path).expect("another");
        drop(file);
        assert!(path.exists());
    }
}
