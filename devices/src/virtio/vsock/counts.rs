//! What a socket device counts.

use super::super::Count;

/// Packets of one direction, and the bytes of connections in them.
#[derive(Debug, Default)]
pub struct Direction {
    /// Packets that the guest took, or sent; those that are not from it to the host are not among them.
    pub packets: Count,
    /// Bytes that came from programs, or that programs took.
    pub bytes: Count,
    /// How often a program's stream failed.
    pub failures: Count,
}

/// What a socket device counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// To the guest.
    pub received: Direction,
    /// From it.
    pub sent: Direction,
    /// Bytes that had to wait, and whose program was gone when there was room.
    pub flush_failures: Count,
    /// Connections that began, whether the other side took them or not,
    pub added: Count,
    /// and ended.
    pub removed: Count,
    /// Those that were ended because the guest owed an answer for too long.
    pub killed: Count,
    /// How often the host refused to tell what there is, or to take a program's connection.
    pub refusals: Count,
}
