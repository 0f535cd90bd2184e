//! What a driver and a device have agreed on, apart from both: for a snapshot.
//!
//! A device that is [held](super::Engine::hold) has nothing under way: each request is either answered or still the
//! driver's, in a ring. So the registers, and how far each ring was read and written, are all that has to be kept
//! beside the guest's memory, for any device. What a device proper is made of (an image, an interface, a limit) is its
//! configuration's; connections of the socket device end with it.

use thiserror::Error;
use virtio_queue::{Queue, QueueState as Place};

/// A queue: what the driver wrote about it, and how far it was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// `QueueSize`.
    pub size: u32,
    /// `QueueReady`.
    pub ready: bool,
    /// Where the descriptors are,
    pub descriptors: u64,
    /// the driver's area, which is the ring of available chains,
    pub driver: u64,
    /// and the device's area, which is the ring of used chains.
    pub device: u64,
    /// The index of the next available chain, which wraps,
    pub next_available: u16,
    /// and of the next used one.
    pub next_used: u16,
}

impl QueueState {
    /// One of a device that was just switched on.
    pub(super) fn new(largest: u16) -> Self {
        Self {
            size: largest.into(),
            ..Self::default()
        }
    }

    /// A queue at that place, if its size and its alignments are ones that there can be.
    pub(super) fn queue(&self, largest: u16) -> Option<Queue> {
        if !self.ready {
            return Queue::try_from(Place {
                max_size: largest,
                size: largest,
                ..Place::default()
            })
            .ok();
        }
        Queue::try_from(Place {
            max_size: largest,
            size: u16::try_from(self.size).ok()?,
            ready: true,
            desc_table: self.descriptors,
            avail_ring: self.driver,
            used_ring: self.device,
            next_avail: self.next_available,
            next_used: self.next_used,
            ..Place::default()
        })
        .ok()
    }
}

/// The transport of a device: see the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `Status`, with `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// `DeviceFeaturesSel`.
    pub device_features_select: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_select: u32,
    /// What the driver wrote to `DriverFeatures`, both halves.
    pub driver_features: u64,
    /// `QueueSel`.
    pub queue_select: u32,
    /// One for each of the device's queues.
    pub queues: Vec<QueueState>,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
    /// The configuration space, of which what the driver may write is taken.
    pub config: Vec<u8>,
}

/// A state is none that this device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// Another number of queues.
    #[error("the state has {found} queues, and this device {expected}")]
    Queues {
        /// How many it has.
        found: usize,
        /// How many there are.
        expected: usize,
    },
    /// Steps that are left out, or bits that there are not.
    #[error("the device status {0:#x} is none that a driver can come to")]
    Status(u32),
    /// The driver took features that are not on offer here, or not those that it has to.
    #[error("the driver has the features {driver:#x}, and this device offers {offered:#x}")]
    Features {
        /// What it took.
        driver: u64,
        /// What is on offer.
        offered: u64,
    },
    /// A queue in use whose size, alignment or place is not possible.
    #[error("queue {0} is not one that there can be")]
    Queue(usize),
    /// A configuration space of another size.
    #[error("the state's configuration space has {found} bytes, and this device's {expected}")]
    Config {
        /// How many it has.
        found: usize,
        /// How many there are.
        expected: usize,
    },
}
