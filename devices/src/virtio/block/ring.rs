//! What a host does that carries out many transfers at once, as the disk sees it.

use std::io;

use super::image::{Image, Zeroing};
use crate::virtio::Buffers;

/// The most transfers that are under way at once. Linux's driver has as many at most with a queue of 256 descriptors
/// where each request has two buffers at least; more that wait gain nothing.
pub const DEPTH: u16 = 128;

/// A transfer between a disk's image and a guest's memory, or within the image.
#[derive(Clone, Copy, Debug)]
pub enum Transfer<'a> {
    /// From the image's byte `at` on into memory.
    Read {
        /// Where it begins.
        at: u64,
        /// Where it goes: no more than 256 pieces, and not none.
        into: Buffers<'a>,
    },
    /// From memory to the image's byte `at`.
    Write {
        /// Where it begins.
        at: u64,
        /// Where it comes from: no more than 256 pieces, and not none.
        from: Buffers<'a>,
        /// It has ended once the disk has it.
        through: bool,
    },
    /// Zeros by the host's file system or disk, which may not know how: `ErrorKind::Unsupported`.
    Zero {
        /// Where they begin.
        at: u64,
        /// How many.
        len: u64,
        /// Which way.
        how: Zeroing,
    },
    /// Zeros that are written, from [`ZEROS`](super::ZEROS).
    WriteZeros {
        /// Where they begin.
        at: u64,
        /// How many: no more than 16 MiB, 256 times [`ZEROS`](super::ZEROS).
        len: u64,
    },
    /// The disk gets what was written.
    Flush,
}

/// A host that carries out transfers beside each other and ends them in any order.
///
/// Memory that a transfer names is in use until [`ended`](Self::ended) has told its end. Who drops a ring waits for
/// what is under way first.
pub trait Ring: Send {
    /// Notes a transfer that `name` stands for. At most [`DEPTH`] are noted or under way at once.
    fn push(&mut self, name: u16, transfer: Transfer<'_>);

    /// Hands on what was noted. A host that does not take a transfer ends it by an error.
    fn submit(&mut self);

    /// A transfer that has ended, with the bytes of it that were transferred, which may be fewer than all. Waits for
    /// nothing.
    fn ended(&mut self) -> Option<(u16, io::Result<u32>)>;

    /// Waits until one has ended that was submitted.
    fn wait(&mut self);

    /// Has transfers from now on concern this image. None is under way.
    ///
    /// # Errors
    /// The host does not take it: transfers may concern the one before.
    fn change(&mut self, image: &Image) -> io::Result<()>;
}
