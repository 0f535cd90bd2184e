//! One direction of a connection: from the guest to the host's program.
//!
//! Bytes that the program does not take at once are kept until it does, so that one that takes nothing stalls its own
//! connection and no other.

use std::io;

use super::super::{Buffers, Violation};
use super::backlog::Backlog;
use super::counts::Counts;
use super::host::Stream;
use super::packet::Credit;

/// It is not told of less than this, unless it is all.
const WORTH_TELLING: u32 = 4 * 1024;

/// What is known of the direction.
#[derive(Debug)]
pub(super) struct ToProgram {
    backlog: Backlog,
    /// How much came from the guest, wrapping,
    received: u32,
    /// how much of it was passed on,
    passed: u32,
    /// and how much the guest knows to be.
    told: u32,
    /// The guest is to be told of room.
    pub(super) tell: bool,
    /// The guest sends no more.
    pub(super) guest_ended: bool,
    /// The program takes no more.
    pub(super) program_refuses: bool,
}

impl ToProgram {
    /// One of which so many bytes are kept.
    ///
    /// # Errors
    /// The host has no memory for them.
    pub(super) fn new(room: u32) -> io::Result<Self> {
        Ok(Self {
            backlog: Backlog::new(room)?,
            received: 0,
            passed: 0,
            told: 0,
            tell: false,
            guest_ended: false,
            program_refuses: false,
        })
    }

    /// Whether bytes wait for the program.
    pub(super) fn is_waiting(&self) -> bool {
        !self.backlog.is_empty()
    }

    fn room(&self) -> u32 {
        self.backlog.room()
    }

    /// Whether the guest may send so many bytes.
    pub(super) fn may_take(&self, len: u32) -> bool {
        !self.guest_ended && len <= self.room().saturating_sub(self.backlog.len())
    }

    /// What the guest learns of room with the packet that is made now.
    pub(super) fn credit(&mut self) -> Credit {
        self.told = self.passed;
        self.tell = false;
        Credit {
            room: self.room(),
            passed: self.passed,
        }
    }

    /// Takes `len` bytes of the guest, which [may be](Self::may_take).
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn take<S: Stream>(
        &mut self,
        stream: &mut S,
        bytes: &Buffers<'_>,
        len: u32,
        counts: &Counts,
    ) -> Result<(), Violation> {
        self.received = self.received.wrapping_add(len);
        let mut rest = *bytes;
        if self.backlog.is_empty() && !self.program_refuses {
            let written = self.write(stream, bytes, counts)?;
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
    fn write<S: Stream>(
        &mut self,
        stream: &mut S,
        bytes: &Buffers<'_>,
        counts: &Counts,
    ) -> Result<u64, Violation> {
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
        let count = u32::try_from(written).unwrap_or(u32::MAX);
        self.passed = self.passed.wrapping_add(count);
        counts.sent.bytes.add(count.into());
        if refused {
            counts.sent.failures.add(1);
            self.refuse();
        }
        Ok(written)
    }

    /// Writes what waits, as far as the program takes it.
    pub(super) fn flush<S: Stream>(&mut self, stream: &mut S, counts: &Counts) {
        while !self.backlog.is_empty() {
            match stream.write(self.backlog.oldest()) {
                Ok(0) => break,
                Ok(count) => {
                    self.backlog.drop_oldest(count);
                    // OK because it is at most what waits.
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    self.passed = self.passed.wrapping_add(count);
                    counts.sent.bytes.add(count.into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    counts.flush_failures.add(1);
                    self.refuse();
                }
            }
        }
        self.note_room();
    }

    /// The program takes no more: what waits for it, and what comes, is passed on to nobody.
    pub(super) fn refuse(&mut self) {
        self.program_refuses = true;
        self.passed = self.received;
        self.backlog.clear();
    }

    /// Has the guest told of new room when it knows of little.
    fn note_room(&mut self) {
        let known = self
            .room()
            .saturating_sub(self.received.wrapping_sub(self.told));
        let gained = self.passed.wrapping_sub(self.told);
        let worth = gained >= WORTH_TELLING || (gained > 0 && self.backlog.is_empty());
        // Not when it has none: it never comes to a halt for want of the news, and half the room gets through between
        // two of them.
        self.tell |= known < self.room() / 2 && worth && !self.guest_ended;
    }
}
