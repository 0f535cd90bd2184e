//! Bytes of the guest that wait until the host's program takes them.

use std::io;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::super::{Buffers, Violation};

/// How many bytes of the guest a connection keeps, which the guest knows as `buf_alloc` (5.10.6.3): four of the largest
/// packets of Linux's driver (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`, include/linux/virtio_vsock.h), so that a guest that sends
/// goes on while its program is told of room. A Unix socket takes as many before its program reads any
/// (net.core.wmem_default).
pub(super) const ROOM: u32 = 256 * 1024;

/// The same, where there are [many](MANY) connections: one packet.
pub(super) const ROOM_AMONG_MANY: u32 = 64 * 1024;

/// With so many connections, the next one has less room: 1,023 keep 76 MiB at most.
pub(super) const MANY: usize = 64;

/// A ring of bytes, in a mapping of its own: a connection whose program keeps up has no page of it, and what a program
/// was slow for is the host's again with the connection's end. The allocator promises neither: what is freed comes back
/// to be cleared, byte by byte.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: MmapRegion,
    first: usize,
    len: usize,
}

impl Backlog {
    /// One that keeps `room` bytes.
    ///
    /// # Errors
    /// The host maps no more memory.
    pub(super) fn new(room: u32) -> io::Result<Self> {
        let bytes =
            MmapRegion::new(usize::try_from(room).unwrap_or(0)).map_err(|error| match error {
                MmapRegionError::Mmap(error) => error,
                other => io::Error::other(other),
            })?;
        Ok(Self {
            bytes,
            first: 0,
            len: 0,
        })
    }

    /// Up to `count` bytes from `at` on, as far as the ring's end.
    fn piece(&self, at: usize, count: usize) -> VolatileSlice<'_, ()> {
        let count = count.min(self.bytes.size() - at);
        // OK because both are in the ring.
        let empty = VolatileSlice::from(&mut [][..]);
        self.bytes.get_slice(at, count).unwrap_or(empty)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many it keeps.
    pub(super) fn room(&self) -> u32 {
        // OK because it is made of one.
        u32::try_from(self.bytes.size()).unwrap_or(0)
    }

    pub(super) fn len(&self) -> u32 {
        // OK because it is at most the room.
        u32::try_from(self.len).unwrap_or(u32::MAX)
    }

    /// The oldest bytes, as many as lie in one piece.
    pub(super) fn oldest(&self) -> VolatileSlice<'_, ()> {
        self.piece(self.first, self.len)
    }

    /// The oldest `count` bytes are done with.
    pub(super) fn drop_oldest(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.first = if self.len == 0 {
            0
        } else {
            (self.first + count) % self.bytes.size()
        };
    }

    /// Adds bytes after the others.
    ///
    /// # Errors
    /// [`Violation::Buffer`] when there is no room for all, or they are gone.
    pub(super) fn push(&mut self, bytes: &Buffers<'_>) -> Result<(), Violation> {
        if bytes.len() > (self.bytes.size() - self.len) as u64 {
            return Err(Violation::Buffer);
        }
        bytes.try_for_each(
            |gone| gone,
            |slice| {
                let mut from = 0;
                while from < slice.len() {
                    let at = (self.first + self.len) % self.bytes.size();
                    let rest = slice.offset(from).map_err(|_| Violation::Buffer)?;
                    let place = self.piece(at, rest.len());
                    let count = place.len();
                    if count == 0 {
                        return Err(Violation::Buffer);
                    }
                    rest.copy_to_volatile_slice(place);
                    from += count;
                    self.len += count;
                }
                Ok(())
            },
        )
    }

    pub(super) fn clear(&mut self) {
        self.first = 0;
        self.len = 0;
    }
}
