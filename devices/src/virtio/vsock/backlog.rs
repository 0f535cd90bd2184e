//! Bytes of the guest that wait until the host's program takes them.

use vm_memory::VolatileSlice;

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

/// A ring of bytes.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: Box<[u8]>,
    first: usize,
    len: usize,
}

impl Backlog {
    /// One that keeps `room` bytes.
    pub(super) fn new(room: u32) -> Self {
        Self {
            // Zeros that nobody has written to take no memory.
            bytes: vec![0; usize::try_from(room).unwrap_or(0)].into_boxed_slice(),
            first: 0,
            len: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many it keeps.
    pub(super) fn room(&self) -> u32 {
        // OK because it is made of one.
        u32::try_from(self.bytes.len()).unwrap_or(0)
    }

    pub(super) fn len(&self) -> u32 {
        // OK because it is at most the room.
        u32::try_from(self.len).unwrap_or(u32::MAX)
    }

    /// The oldest bytes, as many as lie in one piece.
    pub(super) fn oldest(&mut self) -> VolatileSlice<'_, ()> {
        let end = self.bytes.len().min(self.first + self.len);
        VolatileSlice::from(self.bytes.get_mut(self.first..end).unwrap_or_default())
    }

    /// The oldest `count` bytes are done with.
    pub(super) fn drop_oldest(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.first = if self.len == 0 {
            0
        } else {
            (self.first + count) % self.bytes.len()
        };
    }

    /// Adds bytes after the others.
    ///
    /// # Errors
    /// [`Violation::Buffer`] when there is no room for all, or they are gone.
    pub(super) fn push(&mut self, bytes: &Buffers<'_>) -> Result<(), Violation> {
        if bytes.len() > (self.bytes.len() - self.len) as u64 {
            return Err(Violation::Buffer);
        }
        bytes.try_for_each(
            |gone| gone,
            |slice| {
                let mut from = 0;
                while from < slice.len() {
                    let at = (self.first + self.len) % self.bytes.len();
                    let place = self.bytes.get_mut(at..).unwrap_or_default();
                    let rest = slice.offset(from).map_err(|_| Violation::Buffer)?;
                    let count = rest.copy_to(place);
                    if count == 0 {
                        return Err(Violation::Buffer);
                    }
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
