//! Devices after the virtio specification, version 1.2, over memory-mapped registers.
//!
//! Section numbers in this module are those of
//! <https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html>.
//!
//! # Who does what
//!
//! A device is made of three parts, so that neither waits for the other:
//!
//! - [`mmio::Registers`] is what the guest's accesses reach, on a vCPU's thread: feature negotiation, the
//!   places of the queues, the interrupt's status. It holds no lock while a request is served, so reading
//!   and acknowledging an interrupt waits for nobody. One access waits: a reset, for the requests in
//!   progress, since afterwards the device must not touch the guest's memory. What a driver reads is in a
//!   [`RegisterPage`], too, which a guest may have as memory.
//! - [`Engine`] serves the queues, on whatever thread calls [`Engine::run`] after the driver's notification.
//!   It takes chains from the rings, checks them (see [`chain`]), hands each to the device, and raises
//!   interrupts as far as the driver wants them.
//! - [`Device`] is the device proper: it answers one request at a time and knows of no ring.
//!
//! A device may leave a request [under way](Served::UnderWay) and take the next: a disk whose host carries out many
//! at once. Such requests end in any order. Whoever holds the engine, for a pause or a reset, has them all ended when
//! it is held: they end on the thread that runs the engine, which alone asks the host for anything.
//!
//! What is to be saved of a device is apart from it: see [`state`].
//!
//! A queue's place is what it was when the driver said `DRIVER_OK`: the registers are not writable from then
//! until a reset, and the engine works on a copy that was checked then.
//!
//! # When the driver misbehaves
//!
//! A request that makes no sense to the device is answered with an error, as the device's section says. A
//! queue that makes no sense ([`Violation`]) stops the device: it sets `DEVICE_NEEDS_RESET` (2.1.2), tells
//! the driver so by a configuration interrupt, and serves nothing until it is reset.
//!
//! Nothing here allocates while requests are served, and nothing is logged for each. Two things may
//! allocate, within bounds: the beginning of a socket device's connection, by the guest's `REQUEST` or by a program,
//! which takes a place and maps memory for what the program is slow to take; and a network card's
//! [detour](net::Detour), for frames that it wants, as a service of metadata does for a request of its guest.
//! `tests/virtio_allocations.rs` holds the rest to it.

pub mod balloon;
pub mod block;
pub mod chain;
mod count;
mod engine;
pub mod entropy;
pub mod mmio;
pub mod net;
pub mod pmem;
mod register_page;
pub mod state;
pub mod vsock;

use std::ops::Range;

use tsc::Nanos;
use virtio_bindings::{virtio_config, virtio_ids, virtio_ring};
use vm_memory::GuestMemoryMmap;

pub use chain::{Buffers, Chain, Violation};
pub use count::{Count, Faults};
pub use engine::{Engine, Hold, Next};
pub use register_page::RegisterPage;

/// The device conforms to version 1 of the specification or later (6); without it a driver is of the
/// legacy kind, which is refused.
pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// A descriptor can point at a table of descriptors (2.7.5.3).
pub const INDIRECT_DESCRIPTORS: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// Both sides say from which index on they want to be notified (2.7.7, 2.7.10).
pub const EVENT_INDEX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// What every device offers, beside its own features.
const COMMON_FEATURES: u64 = VERSION_1 | INDIRECT_DESCRIPTORS | EVENT_INDEX;

/// The largest configuration space of a device here.
const MAX_CONFIG: usize = 64;

/// What a device is, with the numbers of section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A disk (5.2).
    Block = virtio_ids::VIRTIO_ID_BLOCK,
    /// A network card (5.1).
    Net = virtio_ids::VIRTIO_ID_NET,
    /// A source of entropy (5.4).
    Entropy = virtio_ids::VIRTIO_ID_RNG,
    /// A memory balloon (5.5).
    Balloon = virtio_ids::VIRTIO_ID_BALLOON,
    /// A socket device (5.10).
    Socket = virtio_ids::VIRTIO_ID_VSOCK,
    /// Persistent memory (5.19).
    PersistentMemory = virtio_ids::VIRTIO_ID_PMEM,
}

/// A device's configuration space: fields that the driver reads, such as a capacity, or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; MAX_CONFIG],
    len: usize,
}

impl ConfigSpace {
    /// One without fields.
    pub const EMPTY: Self = Self {
        bytes: [0; MAX_CONFIG],
        len: 0,
    };

    /// The same with `field` after the last one, as a little-endian number or as bytes. What is beyond 64
    /// bytes is not there.
    #[must_use]
    pub fn with(mut self, field: &[u8]) -> Self {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + field.len()) {
            place.copy_from_slice(field);
            self.len += field.len();
        }
        self
    }

    /// Its fields.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// How many bytes they have.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Reads at `offset`; bytes beyond the fields are zero (4.2.2.2 says nothing of them).
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let fields = self.bytes.get(..self.len).unwrap_or_default();
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| fields.get(offset..));
        for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
            *to = *from;
        }
    }

    /// Writes at `offset`, as far as the bytes there are in `writable`.
    fn write(&mut self, offset: u64, data: &[u8], writable: &[Range<usize>]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        // OK because no access has more than eight bytes, and nothing is so far out that they do not count.
        for (place, from) in (offset..=usize::MAX).zip(data) {
            let is_writable = writable.iter().any(|range| range.contains(&place));
            if let Some(to) = self.bytes.get_mut(place).filter(|_| is_writable) {
                *to = *from;
            }
        }
    }

    /// The same with the bytes in `writable` as `other` has them.
    fn with_those_of(mut self, other: &Self, writable: &[Range<usize>]) -> Self {
        for range in writable {
            if let (Some(to), Some(from)) = (
                self.bytes.get_mut(range.clone()),
                other.bytes.get(range.clone()),
            ) {
                to.copy_from_slice(from);
            }
        }
        self
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is done, with so many bytes written into its buffers from the first one on. Chains that were
    /// [gathered](Self::Gather), and that these do not reach, stay the driver's.
    Done {
        /// How many.
        written: u32,
    },
    /// It has begun, and is the device's, with what it needs of the chain, until [`Device::finished`] tells its end.
    /// Only for requests of one chain.
    UnderWay,
    /// Nothing was done: it is to be asked again after this time.
    Later(Nanos),
    /// Nothing was done, since the device has nothing to put there: it is to be asked again when it has, of
    /// which whoever waits for that tells [`Engine::run`].
    Idle,
    /// Nothing was done, since one chain is too short: it is to be asked again with one more
    /// ([`Chain::may_grow`]). Those that are used are used all at once.
    Gather,
    /// Nothing was done, and what was next is gone: it is to be asked again with the first of the chains that were
    /// gathered.
    Again,
}

/// A request that was [under way](Served::UnderWay) and has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its queue.
    pub queue: usize,
    /// The driver's number for its chain ([`Chain::head`]).
    pub head: u16,
    /// How many bytes were written into its buffers from the first one on.
    pub written: u32,
}

/// A device proper: see the [module](self).
pub trait Device: Send {
    /// What can be changed from outside while the device lives. Several changes add up to one.
    type Update: Default + Send;

    /// What it is.
    const KIND: Kind;

    /// The largest size of each of its queues, a power of two each.
    const QUEUES: &'static [u16];

    /// For how many chains of the greatest length there is room where it answers [`Served::Gather`].
    const GATHERS: u16 = 1;

    /// The bytes of its configuration space that the driver may write. They are zero after a reset, and from then
    /// on what the driver wrote last, whatever [`Self::config`] says of them.
    const WRITABLE: &'static [Range<usize>] = &[];

    /// The features that it offers, beside those that all devices do.
    fn features(&self) -> u64;

    /// Its configuration space as it is now.
    fn config(&self) -> ConfigSpace;

    /// The driver uses this queue. Called for each of them before [`Self::start`].
    fn uses(&mut self, _: usize) {}

    /// The driver is ready, with these features. Called after each reset anew.
    fn start(&mut self, features: u64);

    /// The driver resets the device. Called on the thread of the driver's access, so it must not wait.
    fn stop(&mut self) {}

    /// The driver wrote into the configuration space, of which this is a copy, or a reset emptied what it may write.
    /// Called before the next round over the queues, while there is a driver.
    fn configured(&mut self, _: &ConfigSpace) {}

    /// Looks what there is outside the queues, and does what needs none. Called before each round over the queues,
    /// while there is a driver. Unless it was `told` of something since the last time, nothing has come that was not
    /// there then, and a look that costs a system call can be saved.
    fn poll(&mut self, _told: bool) {}

    /// Whether what was done gives a queue work that has had its turn, so that there is to be another round. Asked
    /// after each; only progress may be a reason for it.
    fn again(&mut self) -> bool {
        false
    }

    /// Whether [`Self::config`] is another than it was. Asked after each round, once.
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// After which time it is to be looked at again although nothing happens, if at all. Asked after the last round.
    fn wait(&mut self) -> Option<Nanos> {
        None
    }

    /// Serves one request of a queue.
    ///
    /// # Errors
    /// The driver broke the protocol in a way for which there is no answer.
    fn serve(&mut self, queue: usize, chain: &Chain<'_>) -> Result<Served, Violation>;

    /// Hands to the host what is [under way](Served::UnderWay) and was only noted so far. Called after each round over
    /// the queues.
    fn submit(&mut self) {}

    /// Whether requests are under way.
    fn is_busy(&self) -> bool {
        false
    }

    /// Waits until one of those that are under way has ended, and hands to the host what was not.
    fn wait_for_one(&mut self) {}

    /// A request that was under way and has ended; its buffers are written by now. Waits for nothing.
    fn finished(&mut self, _: &GuestMemoryMmap) -> Option<Finished> {
        None
    }

    /// Takes over what was changed. No request is under way.
    fn update(&mut self, update: Self::Update);
}
