//! The operator's side of the serial port: what is typed goes to the guest, but for the escape key.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::serial::Serial;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::stdio::stdin;
use vmm_sys_util::eventfd::EventFd;

use crate::metrics::ConsoleCounters;
use crate::outcome::Outcome;
use crate::vcpu::Ending;

/// Ctrl-A: the next key is for the launcher. The key that other launchers use.
const PREFIX: u8 = 0x01;
/// After the prefix: end the microVM.
const END: u8 = b'x';

/// What the operator is told when a guest takes over the terminal.
pub(crate) const HELP: &str = "keeptime: Ctrl-A x ends the microVM, Ctrl-A Ctrl-A sends Ctrl-A";

/// Looks for the escape key in what is typed.
#[derive(Debug, Default)]
struct EscapeFilter {
    after_prefix: bool,
}

impl EscapeFilter {
    /// Removes escape sequences from `input` in place. Returns what is left for the guest, and
    /// whether the operator asked for the end.
    fn filter<'a>(&mut self, input: &'a mut [u8]) -> (&'a [u8], bool) {
        let mut kept = 0;
        for position in 0..input.len() {
            let byte = input[position];
            if std::mem::take(&mut self.after_prefix) {
                if byte == END {
                    return (&input[..kept], true);
                }
                // Ctrl-A twice is Ctrl-A; any other key after it goes to the guest alone.
            } else if byte == PREFIX {
                self.after_prefix = true;
                continue;
            }
            input[kept] = byte;
            kept += 1;
        }
        (&input[..kept], false)
    }
}

/// Bytes that wait for the guest at most. A pipe or file is not read further until they have gone; what
/// a person types beyond them is dropped, because the escape key must be seen even when the guest hangs.
const PENDING: usize = 4096;

/// Feeds standard input to the serial port, never faster than the guest reads.
pub(crate) struct ConsoleInput {
    serial: Arc<Mutex<Serial>>,
    /// Signalled when the guest has emptied the port's buffer.
    room: EventFd,
    counters: Arc<ConsoleCounters>,
    ending: Arc<Ending>,
    /// Present only when a person types: bytes of a pipe or file are the guest's alone.
    escape: Option<EscapeFilter>,
    source: Source,
    pending: Vec<u8>,
}

/// How standard input tells that it has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Through epoll, which watches it at the moment.
    Watched,
    /// Through epoll, which does not watch it while bytes are pending.
    Paused,
    /// It is a file: always readable, and epoll does not take it.
    AlwaysReady,
    /// It has ended.
    Ended,
}

impl ConsoleInput {
    pub(crate) fn new(
        serial: Arc<Mutex<Serial>>,
        room: EventFd,
        counters: Arc<ConsoleCounters>,
        ending: Arc<Ending>,
        interactive: bool,
    ) -> Self {
        Self {
            serial,
            room,
            counters,
            ending,
            escape: interactive.then(EscapeFilter::default),
            source: Source::Watched,
            pending: Vec::with_capacity(PENDING),
        }
    }

    fn stdin_fd() -> RawFd {
        stdin().as_raw_fd()
    }

    fn stdin_events() -> Events {
        Events::new_raw(Self::stdin_fd(), EventSet::IN)
    }

    /// Gives the port what it takes of the pending bytes. If it is not all, `room` is signalled later.
    fn flush(&mut self) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = serial.enqueue(&self.pending);
        self.counters.received.add(taken as u64);
        self.pending.drain(..taken);
    }

    /// Reads once. Returns whether there may be more.
    fn read_once(&mut self) -> bool {
        let mut buffer = [0; 512];
        let length = match rustix::io::read(stdin(), &mut buffer) {
            Ok(0) => {
                self.source = Source::Ended;
                return false;
            }
            Ok(length) => length,
            Err(Errno::INTR | Errno::AGAIN) => return false,
            Err(error) => {
                tracing::warn!("standard input: {error}; the guest's console gets no more");
                self.source = Source::Ended;
                return false;
            }
        };
        let input = &mut buffer[..length];
        let (input, escaped) = match &mut self.escape {
            Some(filter) => filter.filter(input),
            None => (&*input, false),
        };
        let room = PENDING.saturating_sub(self.pending.len());
        self.pending
            .extend_from_slice(&input[..input.len().min(room)]);
        // First: a vCPU may hold the port for as long as it waits for the reader of its output.
        if escaped {
            self.ending.end(Outcome::Escape);
        }
        self.flush();
        true
    }

    /// Watches standard input or not, as the pending bytes allow.
    fn follow(&mut self, before: Source, ops: &mut EventOps<'_>) {
        let hold = self.escape.is_none() && !self.pending.is_empty();
        let wanted = match self.source {
            Source::Watched if hold => Source::Paused,
            Source::Paused if !hold => Source::Watched,
            other => other,
        };
        let result = match (before, wanted) {
            (Source::Watched, Source::Paused | Source::Ended) => ops.remove(Self::stdin_events()),
            (Source::Paused, Source::Watched) => ops.add(Self::stdin_events()),
            _ => Ok(()),
        };
        self.source = wanted;
        if let Err(error) = result {
            tracing::warn!("standard input: {error:?}; the guest's console gets no more");
            self.source = Source::Ended;
        }
    }

    /// A file is read as far as the guest takes it.
    fn read_file(&mut self) {
        while self.source == Source::AlwaysReady && self.pending.is_empty() && self.read_once() {}
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.room, EventSet::IN)) {
            tracing::warn!("console input: {error:?}; the guest's console gets no input");
            self.source = Source::Ended;
            return;
        }
        // epoll refuses plain files (EPERM) and a closed descriptor (EBADF); reading tells which.
        if ops.add(Self::stdin_events()).is_err() {
            self.source = Source::AlwaysReady;
            self.read_file();
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let before = self.source;
        if events.fd() == self.room.as_raw_fd() {
            // Clears the event; what it counts does not matter.
            let _ = self.room.read();
            self.flush();
            self.read_file();
        } else if self.source == Source::Watched {
            self.read_once();
        }
        self.follow(before, ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (typed, what the guest gets, ended)
    const ROWS: [(&[u8], &[u8], bool); 7] = [
        (b"ls\r", b"ls\r", false),
        (b"\x01x", b"", true),
        (b"ab\x01xcd", b"ab", true),
        (b"\x01\x01", b"\x01", false),
        (b"\x01\x01x", b"\x01x", false),
        (b"\x01c", b"c", false),
        (b"", b"", false),
    ];

    #[test]
    fn escape_filter_keeps_what_is_the_guests() {
        for (typed, kept, ended) in ROWS {
            let mut typed = typed.to_vec();
            assert_eq!(EscapeFilter::default().filter(&mut typed), (kept, ended));
        }
    }

    #[test]
    fn escape_filter_sees_sequences_across_reads() {
        for (typed, kept, ended) in ROWS {
            let mut filter = EscapeFilter::default();
            let mut seen = (Vec::new(), false);
            for byte in typed {
                let mut one = [*byte];
                let (kept, ended) = filter.filter(&mut one);
                seen.0.extend_from_slice(kept);
                seen.1 |= ended;
                if seen.1 {
                    break;
                }
            }
            assert_eq!(seen, (kept.to_vec(), ended), "{typed:?}");
        }
    }
}
