//! A request's buffers: a descriptor chain, read once, checked, and then only looked at in our own copy.
//!
//! The driver can change its descriptors at any time. They are therefore copied first, into room that is
//! there before any request, and no decision is made on what is still in guest memory.
//!
//! # What is refused
//!
//! A chain that the specification (virtio 1.2, 2.7.5) does not allow is a [`Violation`], after which the
//! device wants a reset: a chain that is longer than the queue, and so one that loops; an index past the
//! descriptor table; an indirect table inside another or of a size that is no whole number of descriptors;
//! a buffer that is not in guest memory, such as one in the MMIO hole or across its border; a device-readable
//! buffer after a device-writable one; more than 2^32 bytes.

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// A driver broke the protocol in a way that leaves nothing to go on with: the device wants a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A queue whose size, alignment or place is not possible, found when the driver said that it is ready.
    #[error("queue {queue} is not one that there can be")]
    Queue {
        /// Which one.
        queue: usize,
    },
    /// More chains at once than the queue has places, or a ring that is not in memory.
    #[error("the ring of available chains of queue {queue} makes no sense")]
    AvailableRing {
        /// Which one.
        queue: usize,
    },
    /// A chain that loops, leads out of its table, or is longer than the queue.
    #[error("a chain of descriptors has no end")]
    Endless,
    /// A buffer that is not in memory.
    #[error("a buffer at {address:#x} with {len:#x} bytes is not in guest memory")]
    Outside {
        /// Its first address.
        address: u64,
        /// Its length.
        len: u32,
    },
    /// A device-readable buffer after a device-writable one.
    #[error("a buffer for the device to read follows one for it to write")]
    Order,
    /// A buffer vanished from memory between two looks at it, or is too short for what the device puts there.
    #[error("a buffer is not where it was")]
    Buffer,
}

/// A piece of a request's buffers, in memory at the time of the check. Memory never shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    address: GuestAddress,
    len: u32,
}

/// The head of a chain, and how many bytes it has for the device to write.
pub(super) type Part = (u16, u64);

/// A copy of one chain, or of several that a device writes at once.
#[derive(Debug, Default)]
pub(super) struct Copied {
    segments: Vec<Segment>,
    /// So many of them are the device's to read, the others to write.
    readable: usize,
    /// The most segments that one chain has.
    longest: usize,
    parts: Vec<Part>,
}

impl Copied {
    /// Room for the chains of queues of up to `size`, with `chains` of the longest at once.
    pub(super) fn with_room_for(size: u16, chains: u16) -> Self {
        let longest = usize::from(size);
        Self {
            segments: Vec::with_capacity(longest * usize::from(chains)),
            readable: 0,
            longest,
            parts: Vec::with_capacity(longest),
        }
    }

    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.parts.clear();
        self.readable = 0;
    }

    /// Whether there is room for one more chain, however long it is, and a driver whose queue has `size` places
    /// can have one.
    fn may_grow(&self, size: u16) -> bool {
        self.segments.len() + self.longest <= self.segments.capacity()
            && self.parts.len() < self.parts.capacity().min(size.into())
    }

    /// The chains, as [`Self::copy`] took them.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Copies `chain`, of a queue with at most as many descriptors as there is room for, after those that were
    /// copied before it.
    pub(super) fn copy(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<(), Violation> {
        let first = self.segments.len();
        let head = chain.head_index();
        let mut to_write = 0;
        // The iterator ends alike at an end and at a fault, which its last descriptor tells apart.
        let mut more = true;
        for descriptor in chain {
            more = descriptor.has_next();
            let (address, len) = (descriptor.addr(), descriptor.len());
            let writable = descriptor.is_write_only();
            if !writable && self.readable < self.segments.len() {
                return Err(Violation::Order);
            }
            // A buffer of no bytes is in memory wherever it is.
            if len == 0 {
                continue;
            }
            let size = usize::try_from(len).unwrap_or(usize::MAX);
            if memory.get_slice(address, size).is_err() {
                let address = address.0;
                return Err(Violation::Outside { address, len });
            }
            if self.segments.len() - first == self.longest
                || self.segments.len() == self.segments.capacity()
            {
                return Err(Violation::Endless);
            }
            self.segments.push(Segment { address, len });
            if writable {
                to_write += u64::from(len);
            } else {
                self.readable = self.segments.len();
            }
        }
        if more || self.parts.len() == self.parts.capacity() {
            return Err(Violation::Endless);
        }
        self.parts.push((head, to_write));
        Ok(())
    }

    /// The chains that `written` bytes from the first one's beginning on reach, which is one at least, and the others.
    pub(super) fn reached_by(&self, written: u32) -> (&[Part], &[Part]) {
        let mut left = u64::from(written);
        let passed = self.parts.iter().take_while(|(_, room)| {
            let is_passed = left > *room;
            left = left.saturating_sub(*room);
            is_passed
        });
        let last = passed.count().min(self.parts.len().saturating_sub(1));
        self.parts.split_at(self.parts.len().min(last + 1))
    }

    /// What was copied, of a queue with `size` places, on whose ring is `another` chain.
    pub(super) fn chain<'a>(
        &'a self,
        memory: &'a GuestMemoryMmap,
        size: u16,
        another: bool,
    ) -> Chain<'a> {
        let (readable, writable) = self.segments.split_at(self.readable);
        Chain {
            readable: Buffers::new(memory, readable),
            writable: Buffers::new(memory, writable),
            head: self.parts.first().map_or(0, |(head, _)| *head),
            parts: &self.parts,
            may_grow: self.may_grow(size),
            another,
        }
    }
}

/// A request's buffers.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// What the device reads.
    pub readable: Buffers<'a>,
    /// What it writes.
    pub writable: Buffers<'a>,
    /// The driver's number for it; of several, for the first.
    pub head: u16,
    parts: &'a [Part],
    /// Whether the device may ask for one more.
    pub may_grow: bool,
    /// Whether the driver had made one more available a moment ago; never where the device
    /// [gathers](super::Device::GATHERS) none.
    pub another: bool,
}

impl<'a> Chain<'a> {
    /// Of how many chains this is made: one, unless the device asked for more ([`Served::Gather`]).
    ///
    /// [`Served::Gather`]: super::Served::Gather
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// How many bytes the device can write into the last of them.
    #[must_use]
    pub fn last_room(&self) -> u64 {
        self.parts.last().map_or(0, |(_, room)| *room)
    }

    /// What the device writes, chain by chain.
    pub fn rooms(&self) -> impl Iterator<Item = Buffers<'a>> + use<'a> {
        let mut rest = self.writable;
        self.parts.iter().map_while(move |(_, room)| {
            let (first, others) = rest.split_at(*room)?;
            rest = others;
            Some(first)
        })
    }
}

/// A sequence of bytes in guest memory that lies in several places.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    memory: &'a GuestMemoryMmap,
    segments: &'a [Segment],
    /// Bytes of the first segment that are not part of it.
    skip: u32,
    len: u64,
}

impl<'a> Buffers<'a> {
    /// The bytes of `segments`, which were found in `memory` before.
    pub(super) fn new(memory: &'a GuestMemoryMmap, segments: &'a [Segment]) -> Self {
        Self {
            memory,
            segments,
            skip: 0,
            // OK because chains have at most 2^32 bytes, and there are at most 2^16 of them.
            len: segments.iter().map(|segment| u64::from(segment.len)).sum(),
        }
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes and the others; `None` when there are not so many.
    #[must_use]
    pub fn split_at(&self, at: u64) -> Option<(Self, Self)> {
        let rest = self.len.checked_sub(at)?;
        let mut first = *self;
        first.len = at;
        let mut second = *self;
        second.len = rest;
        let mut left = at;
        while let Some((segment, others)) = second.segments.split_first() {
            let here = u64::from(segment.len - second.skip);
            if left < here {
                // OK because it is less than what a segment has.
                second.skip += u32::try_from(left).unwrap_or(0);
                break;
            }
            left -= here;
            second.segments = others;
            second.skip = 0;
        }
        Some((first, second))
    }

    /// Notes the pieces in `segments`, as far as there is room. Returns how many there are.
    pub(super) fn note(&self, segments: &mut [Segment]) -> usize {
        let mut count = 0;
        for (to, (address, len)) in segments.iter_mut().zip(self.places()) {
            // OK because no piece is longer than a segment.
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            *to = Segment { address, len };
            count += 1;
        }
        count
    }

    /// Where the pieces are: their first addresses and lengths.
    pub fn places(&self) -> impl Iterator<Item = (GuestAddress, u64)> + use<'a> {
        let (mut skip, mut left) = (u64::from(self.skip), self.len);
        self.segments.iter().map_while(move |segment| {
            let here = (u64::from(segment.len) - skip).min(left);
            // OK because the segment is in memory, and memory ends before the last address.
            let address = segment.address.unchecked_add(skip);
            skip = 0;
            left -= here;
            (here > 0).then_some((address, here))
        })
    }

    /// Whether all of the `len` bytes from `address` on are guest memory.
    #[must_use]
    pub fn has_in_memory(&self, address: GuestAddress, len: usize) -> bool {
        self.memory.check_range(address, len)
    }

    /// Calls `visit` for each piece in order, until one fails.
    ///
    /// # Errors
    /// The error of `visit`, or what `gone` makes of a piece that is no longer in memory.
    pub fn try_for_each<E>(
        &self,
        gone: impl Fn(Violation) -> E,
        mut visit: impl FnMut(VolatileSlice<'a, ()>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut skip, mut left) = (u64::from(self.skip), self.len);
        for segment in self.segments {
            if left == 0 {
                break;
            }
            let here = (u64::from(segment.len) - skip).min(left);
            let slice = segment
                .address
                .0
                .checked_add(skip)
                .and_then(|address| {
                    let here = usize::try_from(here).ok()?;
                    self.memory.get_slice(GuestAddress(address), here).ok()
                })
                .ok_or_else(|| gone(Violation::Buffer))?;
            visit(slice)?;
            skip = 0;
            left -= here;
        }
        Ok(())
    }

    /// Copies all bytes into `into`, which has as many.
    ///
    /// # Errors
    /// [`Violation::Buffer`] when it has not, or a piece is gone.
    pub fn read(&self, mut into: &mut [u8]) -> Result<(), Violation> {
        if into.len() as u64 != self.len {
            return Err(Violation::Buffer);
        }
        self.try_for_each(
            |gone| gone,
            |slice| {
                let taken = slice.copy_to(into);
                into = std::mem::take(&mut into)
                    .get_mut(taken..)
                    .unwrap_or_default();
                Ok(())
            },
        )
    }

    /// Copies `from` into the first bytes, of which there are as many.
    ///
    /// # Errors
    /// [`Violation::Buffer`] when there are not, or a piece is gone.
    pub fn write(&self, mut from: &[u8]) -> Result<(), Violation> {
        let (place, _) = self.split_at(from.len() as u64).ok_or(Violation::Buffer)?;
        place.try_for_each(
            |gone| gone,
            |slice| {
                let (here, others) = from
                    .split_at_checked(slice.len())
                    .ok_or(Violation::Buffer)?;
                slice.copy_from(here);
                from = others;
                Ok(())
            },
        )
    }
}
