//! What a card counts.

use super::super::Count;

/// Frames of one direction, a [`Detour`](super::Detour)'s not included where it takes them from the guest.
#[derive(Debug, Default)]
pub struct Direction {
    /// Those that arrived: in the guest's buffers, or at the link.
    pub frames: Count,
    /// Their bytes, headers included.
    pub bytes: Count,
    /// Those that were none, or too long.
    pub malformed: Count,
    /// How often the link failed.
    pub failures: Count,
    /// How often the limiter had one wait.
    pub throttled: Count,
}

/// What a card counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// To the guest.
    pub received: Direction,
    /// From it.
    pub sent: Direction,
}
