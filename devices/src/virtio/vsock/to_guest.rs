//! One direction of a connection: from the host's program to the guest.
//!
//! Bytes are not kept here. They are read once the guest has a buffer and credit for them, and wait in the host's
//! socket until then.

use std::io;

use super::super::{Buffers, Violation};
use super::counts::Direction;
use super::host::Stream;
use super::packet::Credit;

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

    /// Reads bytes of the program into `room`, as far as there is credit for them, and says how many: 0 where there
    /// are none now, or none any more. `None` when the stream has failed.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn read<S: Stream>(
        &mut self,
        stream: &mut S,
        room: &Buffers<'_>,
        counts: &Direction,
    ) -> Result<Option<u32>, Violation> {
        let most = room.len().min(self.free().into());
        let (room, _) = room.split_at(most).ok_or(Violation::Buffer)?;
        let (mut count, mut short, mut failed) = (0_u32, false, false);
        room.try_for_each(
            |gone| gone,
            |slice| {
                if short {
                    return Ok(());
                }
                match stream.read(slice) {
                    Ok(0) => {
                        short = true;
                        self.program_ended = count == 0;
                    }
                    Ok(here) => {
                        short = here < slice.len();
                        // OK because it is at most the credit.
                        count += u32::try_from(here).unwrap_or(0);
                    }
                    Err(error) => {
                        short = true;
                        failed = error.kind() != io::ErrorKind::WouldBlock;
                        self.readable &= failed;
                    }
                }
                Ok(())
            },
        )?;
        self.sent = self.sent.wrapping_add(count);
        counts.bytes.add(count.into());
        counts.failures.add((failed && count == 0).into());
        // What came before a failure is the guest's; the failure shows again.
        Ok((count > 0 || !failed).then_some(count))
    }
}
