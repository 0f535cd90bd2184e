//! Runs in which the driver names the pages that are free (5.5.6.6).

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::{Buffers, Violation};

/// `VIRTIO_BALLOON_CMD_ID_STOP`: there is no run, or it comes to its end.
const STOP: u32 = 0;
/// `VIRTIO_BALLOON_CMD_ID_DONE`: the driver may use the pages again. Runs have the numbers above.
const DONE: u32 = 1;

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// To begin a run.
    Start {
        /// It may use the pages again as soon as it has named all of them.
        acknowledge_on_stop: bool,
    },
    /// To use the pages again.
    Stop,
}

/// What a number of the driver was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It ended its run.
    Ended,
    /// Anything else.
    Other,
}

/// The run that is on, if one is.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// What the driver was told last, in the configuration space,
    command: u32,
    /// and what it said last.
    said: Option<u32>,
    /// The number of the last run.
    last: u32,
    acknowledge_on_stop: bool,
    /// The command is another than it was.
    changed: bool,
}

impl Hints {
    pub(super) fn command(&self) -> u32 {
        self.command
    }

    pub(super) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn ask(&mut self, command: Command) {
        self.command = match command {
            Command::Start {
                acknowledge_on_stop,
            } => {
                self.acknowledge_on_stop = acknowledge_on_stop;
                self.last = self.last.checked_add(1).unwrap_or(0).max(DONE + 1);
                self.last
            }
            Command::Stop => DONE,
        };
    }

    /// There is no driver: one that comes has named no page.
    pub(super) fn forget(&mut self) {
        self.command = STOP;
        self.said = None;
    }

    /// Whether pages that come now are of the run that is on.
    pub(super) fn is_on(&self) -> bool {
        self.command > DONE && self.said == Some(self.command)
    }

    /// Takes the number of a run, if there is one. What is not four bytes is none.
    ///
    /// # Errors
    /// None but buffers that vanish.
    pub(super) fn take(&mut self, number: &Buffers<'_>) -> Result<Taken, Violation> {
        let mut bytes = [0; 4];
        if number.len() != bytes.len() as u64 {
            return Ok(Taken::Other);
        }
        number.read(&mut bytes)?;
        let said = u32::from_le_bytes(bytes);
        let ended = said == STOP && self.is_on();
        self.said = Some(said);
        if !ended {
            return Ok(Taken::Other);
        }
        if self.acknowledge_on_stop {
            self.command = DONE;
            self.changed = true;
        }
        Ok(Taken::Ended)
    }
}

/// How far a run is, for whoever asks; each number by itself.
#[derive(Debug, Default)]
pub struct Hinting {
    command: AtomicU64,
    said: AtomicU64,
}

/// Above all numbers of the driver.
const HAS_SAID: u64 = 1 << 32;

impl Hinting {
    pub(super) fn tell(&self, hints: &Hints) {
        let said = hints.said.map_or(0, |said| HAS_SAID | u64::from(said));
        self.said.store(said, Ordering::Release);
        self.command.store(hints.command.into(), Ordering::Release);
    }

    /// What the driver was told last: 0 for nothing, 1 that it may use the pages again, or a run's number.
    #[must_use]
    pub fn command(&self) -> u32 {
        // OK because it has 32 bits.
        u32::try_from(self.command.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// What the driver said last: a run's number, or 0 at its end; `None` if nothing.
    #[must_use]
    pub fn said(&self) -> Option<u32> {
        let said = self.said.load(Ordering::Acquire).checked_sub(HAS_SAID)?;
        u32::try_from(said).ok()
    }
}
