//! What a disk counts.

use super::super::Count;

/// Requests of one kind that were carried out.
#[derive(Debug, Default)]
pub struct Carried {
    /// How many.
    pub requests: Count,
    /// The bytes that they moved.
    pub bytes: Count,
}

/// What a disk counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Reads.
    pub read: Carried,
    /// Writes.
    pub written: Carried,
    /// Flushes that the guest asked for.
    pub flushes: Count,
    /// Requests that the host refused.
    pub failures: Count,
    /// Requests that make no sense, or that the disk does not know.
    pub malformed: Count,
    /// How often the limiter had one wait.
    pub throttled: Count,
    /// How often one waited since as many were under way as can be.
    pub full: Count,
    /// How often it was given another image.
    pub changes: Count,
    /// How often its ring did not take that one.
    pub change_failures: Count,
}
