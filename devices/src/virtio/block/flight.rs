//! The requests of a disk that are under way in a [`Ring`], each in a slot that is there before any request.

use std::fmt;
use std::io;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::image::{Image, Zeroing};
use super::ring::{DEPTH, Ring, Transfer};
use super::{Job, Operation, QUEUE_SIZE};
use crate::virtio::Buffers;
use crate::virtio::chain::Segment;

/// Segments of a slot: no chain has more.
const LONGEST: usize = QUEUE_SIZE as usize;

/// What a request does, without its buffers.
#[derive(Clone, Copy, Debug)]
enum Work {
    Read,
    Write {
        through: bool,
    },
    Zero {
        must_be_zero: bool,
        how: Zeroing,
        through: bool,
    },
    WriteZeros {
        through: bool,
    },
    /// Of zeros that were written.
    FlushZeros,
    Flush,
}

/// A request that is under way.
#[derive(Clone, Copy, Debug)]
struct Slot {
    request: Request,
    work: Work,
    /// Where in the image it begins, how long it is, and how much of it is done.
    at: u64,
    len: u64,
    done: u64,
    /// How many segments its data have.
    segments: usize,
}

/// What a request's answer takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// The driver's number for its chain.
    pub(super) head: u16,
    /// Where its status goes.
    pub(super) status: GuestAddress,
    /// The bytes that the device may write before the status.
    pub(super) room: u64,
    /// How many bytes it moves.
    pub(super) bytes: u64,
}

/// A request that has ended.
pub(super) struct Ended {
    pub(super) request: Request,
    pub(super) operation: Operation,
    /// How many bytes were written into its buffers.
    pub(super) result: io::Result<u64>,
}

/// The requests that are under way, and what carries them out.
pub(super) struct Flight {
    ring: Box<dyn Ring>,
    /// As many as were ever needed at once; there is room for all.
    slots: Vec<Slot>,
    /// [`LONGEST`] for each slot.
    segments: Vec<Segment>,
    /// Those of the slots that no request has.
    free: Vec<u16>,
    /// Transfers concern the disk's image.
    in_order: bool,
}

impl Flight {
    pub(super) fn new(ring: Box<dyn Ring>) -> Self {
        let depth = usize::from(DEPTH);
        Self {
            ring,
            slots: Vec::with_capacity(depth),
            // Memory that no slot needed yet is not touched, so the host need not have it.
            segments: Vec::with_capacity(depth * LONGEST),
            free: Vec::with_capacity(depth),
            in_order: true,
        }
    }

    /// Whether there is no room for one more request.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == usize::from(DEPTH)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    /// Whether transfers concern the image that the disk has.
    pub(super) fn is_in_order(&self) -> bool {
        self.in_order
    }

    pub(super) fn change(&mut self, image: &Image) -> io::Result<()> {
        let changed = self.ring.change(image);
        self.in_order = changed.is_ok();
        changed
    }

    pub(super) fn submit(&mut self) {
        self.ring.submit();
    }

    /// Hands on what was noted, and waits until something has ended.
    pub(super) fn wait(&mut self) {
        self.ring.submit();
        self.ring.wait();
    }

    /// Begins a request, for which there is room. `through` is whether the disk must have what is written.
    pub(super) fn begin(&mut self, request: Request, job: &Job<'_>, through: bool) {
        // OK because there are no more than `DEPTH`, as it is not full.
        let fresh = u16::try_from(self.slots.len()).unwrap_or(DEPTH);
        let name = self.free.pop().unwrap_or(fresh);
        let (work, at, len, buffers) = match job {
            Job::Read(place, into) => (Work::Read, place.0, into.len(), Some(into)),
            Job::Write(place, from) => (Work::Write { through }, place.0, from.len(), Some(from)),
            Job::Flush => (Work::Flush, 0, 0, None),
            Job::Zero(zeros) => {
                let work = Work::Zero {
                    must_be_zero: zeros.must_be_zero,
                    how: zeros.how,
                    through: through && zeros.must_be_zero,
                };
                (work, zeros.place.0, zeros.len, None)
            }
        };
        let mut slot = Slot {
            request,
            work,
            at,
            len,
            done: 0,
            segments: 0,
        };
        let place = usize::from(name);
        if place == self.slots.len() {
            self.slots.push(slot);
            let segments = self.slots.len() * LONGEST;
            self.segments.resize(segments, Segment::default());
        }
        if let Some(buffers) = buffers {
            slot.segments = buffers.note(segments_of(&mut self.segments, place));
        }
        if let Some(to) = self.slots.get_mut(place) {
            *to = slot;
        }
        match (work, buffers) {
            (Work::Read, Some(into)) => self.ring.push(name, Transfer::Read { at, into: *into }),
            (Work::Write { through }, Some(from)) => {
                let from = *from;
                self.ring.push(name, Transfer::Write { at, from, through });
            }
            (Work::Zero { how, .. }, _) => self.ring.push(name, Transfer::Zero { at, len, how }),
            _ => self.ring.push(name, Transfer::Flush),
        }
    }

    /// A request that has ended.
    pub(super) fn ended(&mut self, memory: &GuestMemoryMmap) -> Option<Ended> {
        loop {
            let (name, result) = self.ring.ended()?;
            let place = usize::from(name);
            let Some(slot) = self.slots.get_mut(place) else {
                continue;
            };
            let outcome = slot.advance(result);
            let Some(result) = outcome else {
                let slot = *slot;
                self.go_on(memory, name, slot);
                continue;
            };
            let ended = Ended {
                request: slot.request,
                operation: slot.operation(),
                result,
            };
            self.free.push(name);
            return Some(ended);
        }
    }

    /// Has the rest of a request carried out.
    fn go_on(&mut self, memory: &GuestMemoryMmap, name: u16, slot: Slot) {
        let segments = segments_of(&mut self.segments, name.into());
        let all = Buffers::new(memory, segments.get(..slot.segments).unwrap_or_default());
        // OK because no more is done than there is.
        let rest = all.split_at(slot.done).map_or(all, |(_, rest)| rest);
        let at = slot.at + slot.done;
        let len = slot.len - slot.done;
        let transfer = match slot.work {
            Work::Read => Transfer::Read { at, into: rest },
            Work::Write { through } => Transfer::Write {
                at,
                from: rest,
                through,
            },
            Work::Zero { how, .. } => Transfer::Zero { at, len, how },
            Work::WriteZeros { .. } => Transfer::WriteZeros { at, len },
            Work::FlushZeros | Work::Flush => Transfer::Flush,
        };
        self.ring.push(name, transfer);
    }
}

/// The segments of the slot at `place`.
fn segments_of(segments: &mut [Segment], place: usize) -> &mut [Segment] {
    let first = place * LONGEST;
    segments.get_mut(first..first + LONGEST).unwrap_or_default()
}

impl Slot {
    fn operation(&self) -> Operation {
        match self.work {
            Work::Read => Operation::Read,
            Work::Write { .. } => Operation::Write,
            Work::Zero { .. } | Work::WriteZeros { .. } | Work::FlushZeros => Operation::Zero,
            Work::Flush => Operation::Flush,
        }
    }

    /// What follows from a transfer's end: the end of the request, or nothing when there is more to be done.
    fn advance(&mut self, result: io::Result<u32>) -> Option<io::Result<u64>> {
        let count = match result {
            Ok(count) => u64::from(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return None,
            Err(error) => return self.refused(error).transpose(),
        };
        match self.work {
            Work::Zero { through, .. } => self.zeroed(through),
            Work::FlushZeros | Work::Flush => Some(Ok(0)),
            Work::Read | Work::Write { .. } | Work::WriteZeros { .. } => {
                // A host that tells of more than was asked for cannot be.
                self.done += count.min(self.len - self.done);
                if self.done < self.len {
                    return (count == 0).then(|| Err(self.no_more()));
                }
                match self.work {
                    Work::Read => Some(Ok(self.len)),
                    Work::WriteZeros { through } => self.zeroed(through),
                    _ => Some(Ok(0)),
                }
            }
        }
    }

    /// Zeros are there; `through`, they are to be on the disk, too.
    fn zeroed(&mut self, through: bool) -> Option<io::Result<u64>> {
        if through {
            self.work = Work::FlushZeros;
            return None;
        }
        Some(Ok(0))
    }

    /// What follows when the host refuses.
    fn refused(&mut self, error: io::Error) -> io::Result<Option<u64>> {
        let Work::Zero {
            must_be_zero,
            through,
            ..
        } = self.work
        else {
            return Err(error);
        };
        if error.kind() != io::ErrorKind::Unsupported {
            return Err(error);
        }
        // A discard is advice; other zeros are written.
        if must_be_zero {
            self.work = Work::WriteZeros { through };
            return Ok(None);
        }
        Ok(Some(0))
    }

    /// Why nothing was transferred.
    fn no_more(&self) -> io::Error {
        match self.work {
            Work::Read => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the image has become shorter than its disk",
            ),
            _ => io::ErrorKind::WriteZero.into(),
        }
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight")
            .field("under_way", &(self.slots.len() - self.free.len()))
            .field("in_order", &self.in_order)
            .finish_non_exhaustive()
    }
}
