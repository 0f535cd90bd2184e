//! Bytes of the guest that wait until the host's program takes them.

use vm_memory::VolatileSlice;

use super::super::{Buffers, Violation};

/// How many bytes of the guest a connection keeps, which the guest knows as `buf_alloc` (5.10.6.3). As many as
/// Linux's driver puts into one packet at most (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`, include/linux/virtio_vsock.h).
pub(super) const ROOM: u32 = 64 * 1024;

/// A ring of [`ROOM`] bytes.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: Box<[u8]>,
    first: usize,
    len: usize,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; ROOM as usize].into_boxed_slice(),
            first: 0,
            len: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> u32 {
        // OK because it is at most ROOM.
        u32::try_from(self.len).unwrap_or(ROOM)
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
