//! Numbers that devices tell of what they do: anybody reads them at any time, and nobody waits for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How far it has come.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The most queues of a device here.
const MAX_QUEUES: usize = 5;

/// How often a driver broke the protocol in a way that its device wanted a reset.
#[derive(Debug, Default)]
pub struct Faults {
    /// When it said that it was ready, by queues that there cannot be.
    pub activations: Count,
    queues: [Count; MAX_QUEUES],
}

impl Faults {
    pub(super) fn add(&self, queue: usize) {
        if let Some(count) = self.queues.get(queue) {
            count.add(1);
        }
    }

    /// Later, in this queue.
    #[must_use]
    pub fn queue(&self, index: usize) -> u64 {
        self.queues.get(index).map_or(0, Count::get)
    }

    /// Later, in all queues.
    #[must_use]
    pub fn queues(&self) -> u64 {
        let counts = self.queues.iter().map(Count::get);
        counts.fold(0, u64::wrapping_add)
    }
}
