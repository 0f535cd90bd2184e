//! One direction of a connection: from the host's program to the guest.
//!
//! Bytes are not kept here. They are read once the guest has a buffer and credit for them, and wait in the host's
//! socket until then.
//!
//! A read costs a system call, and a guest's buffers are small. A program that fills those of one read therefore gets
//! twice as many for the next one, up to [`MAX_PIECES`]; one that does not gets what it last needed. Each buffer is a
//! packet of its own to the guest.

use std::io;

use vm_memory::VolatileSlice;

use super::super::{Buffers, Chain, Violation};
use super::counts::Direction;
use super::host::{MAX_PIECES, Stream};
use super::packet::{Credit, HEADER};

/// What is known of the direction.
#[derive(Debug, Default)]
pub(super) struct ToGuest {
    /// There may be bytes, or their end.
    pub(super) readable: bool,
    /// The program sends no more.
    pub(super) program_ended: bool,
    /// The guest takes no more.
    pub(super) guest_refuses: bool,
    /// What the guest can take,
    credit: Credit,
    /// how much was sent to it, wrapping,
    sent: u32,
    /// and whether it was asked since there was no credit.
    asked_for_credit: bool,
    /// For the next read so many pieces of memory are wanted.
    wanted: usize,
}

/// Where a read's bytes go to.
struct Pieces<'a> {
    places: [VolatileSlice<'a, ()>; MAX_PIECES],
    count: usize,
    len: usize,
}

impl<'a> Pieces<'a> {
    fn new() -> Self {
        Self {
            places: [VolatileSlice::from(&mut [][..]); MAX_PIECES],
            count: 0,
            len: 0,
        }
    }

    /// Adds the pieces of `room`, as far as there are places.
    fn add(&mut self, room: &Buffers<'a>) -> Result<(), Violation> {
        room.try_for_each(
            |gone| gone,
            |slice| {
                if let Some(place) = self.places.get_mut(self.count) {
                    *place = slice;
                    self.count += 1;
                    self.len += slice.len();
                }
                Ok(())
            },
        )
    }

    fn get(&self) -> &[VolatileSlice<'a, ()>] {
        self.places.get(..self.count).unwrap_or_default()
    }

    /// How many of them `bytes` reach.
    fn reached_by(&self, bytes: usize) -> usize {
        let mut left = bytes;
        let reached = self.get().iter().take_while(|piece| {
            let is_reached = left > 0;
            left = left.saturating_sub(piece.len());
            is_reached
        });
        reached.count()
    }
}

impl ToGuest {
    /// The guest has told what it can take.
    pub(super) fn learn(&mut self, credit: Credit) {
        self.credit = credit;
        self.asked_for_credit &= self.free() == 0;
    }

    /// How many bytes the guest can take. Where it contradicts itself, none.
    fn free(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.credit.passed);
        self.credit.room.saturating_sub(on_the_way)
    }

    /// Whether there may be something to be read, and credit for it, or a question for credit to be asked.
    pub(super) fn may_read(&self) -> bool {
        self.readable
            && !self.program_ended
            && !self.guest_refuses
            && (self.free() > 0 || !self.asked_for_credit)
    }

    /// Whether the guest is to be asked for credit, because it has none. It is asked once.
    pub(super) fn lacks_credit(&mut self) -> bool {
        self.asked_for_credit |= self.free() == 0;
        self.asked_for_credit
    }

    /// Whether more of the guest's buffers are wanted for the next read than these `buffers`, in which there is `room`.
    pub(super) fn wants_more(&self, buffers: usize, room: u64) -> bool {
        buffers < self.wanted && room < self.free().into() && self.may_read()
    }

    /// Reads bytes of the program into the guest's buffers, behind a header in each, as far as there is credit for
    /// them, and says how many: 0 where there are none now, or none any more. `None` when the stream has failed.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn read<S: Stream>(
        &mut self,
        stream: &mut S,
        buffers: &Chain<'_>,
        counts: &Direction,
    ) -> Result<Option<u32>, Violation> {
        let mut pieces = Pieces::new();
        let mut left = u64::from(self.free());
        for buffer in buffers.rooms() {
            let (_, room) = buffer.split_at(HEADER as u64).ok_or(Violation::Buffer)?;
            let most = room.len().min(left);
            let (room, _) = room.split_at(most).ok_or(Violation::Buffer)?;
            left -= most;
            pieces.add(&room)?;
        }
        match stream.read(pieces.get()) {
            Ok(count) => {
                self.program_ended = count == 0;
                self.wanted = match pieces.reached_by(count) {
                    _ if count == pieces.len => self.wanted.max(MAX_PIECES.min(2 * pieces.count)),
                    reached => reached,
                };
                // OK because it is at most the credit.
                let count = u32::try_from(count).unwrap_or(0);
                self.sent = self.sent.wrapping_add(count);
                counts.bytes.add(count.into());
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Some(0))
            }
            Err(_) => {
                counts.failures.add(1);
                Ok(None)
            }
        }
    }
}
