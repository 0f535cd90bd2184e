//! Persistent memory (5.19): a file of the host that the guest has in its physical address space.
//!
//! The guest reads and writes it as memory, and nobody is asked: what lies there is not the device's to touch. The one
//! request is a flush, after which the host's disk has what was written before it.
//!
//! # What a guest cannot write
//!
//! The specification knows no persistent memory that is read-only, so no driver is told. Where the host gives the
//! memory without the right to write, a write becomes an access to a [`Gap`], which forgets it. From then on each
//! flush fails: who asked whether its data is kept learns that it is not.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Address, GuestAddress};

use super::block::Access;
use super::{Chain, ConfigSpace, Count, Device, Kind, Served, Violation};
use crate::bus::{BusDevice, Reaction};
use crate::rate_limiter::{Bucket, RateLimiter};

/// Where such a memory begins and how long it is, in multiples of this: Linux maps it in pieces of 2 MiB
/// (`SUBSECTION_SIZE`, include/linux/mmzone.h).
pub const ALIGNMENT: u64 = 2 << 20;

/// The size of the queue.
const QUEUE_SIZE: u16 = 256;

/// The length of a request's kind, and that of its answer (5.19.6, 5.19.7).
const WORD: usize = 4;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH` (5.19.6).
const FLUSH: u32 = 0;

/// What a request is answered with (5.19.7): 0 for success.
const DONE: u32 = 0;
const FAILED: u32 = 1;

/// Waits until the host's disk has what the guest has written into the memory.
pub type Flush = Box<dyn FnMut() -> io::Result<()> + Send>;

/// Told of the first flush that fails.
pub type Report = Box<dyn FnMut(&io::Error) + Send>;

/// The device.
pub struct Pmem {
    start: GuestAddress,
    size: u64,
    file_len: u64,
    flush: Flush,
    limiter: RateLimiter,
    report: Option<Report>,
    counts: Arc<Counts>,
}

/// What it counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that failed, those that make no sense among them.
    pub failures: Count,
    /// How often one was put off by the limiter.
    pub throttled: Count,
}

/// What of it can be changed.
#[derive(Debug, Default)]
pub struct Update {
    /// Another limit on bytes, or none.
    pub bandwidth: Option<Option<Bucket>>,
    /// Another limit on flushes, or none.
    pub operations: Option<Option<Bucket>>,
}

impl Pmem {
    /// A memory of `size` bytes from `start` on, behind which is a file of `file_len` bytes: so many count for each
    /// `flush`.
    #[must_use]
    pub fn new(
        (start, size): (GuestAddress, u64),
        file_len: u64,
        flush: Flush,
        limiter: RateLimiter,
        report: Report,
    ) -> Self {
        Self {
            start,
            size,
            file_len,
            flush,
            limiter,
            report: Some(report),
            counts: Arc::default(),
        }
    }

    /// What it counts, now and later.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    fn answer(&mut self) -> u32 {
        match (self.flush)() {
            Ok(()) => DONE,
            Err(error) => {
                if let Some(mut report) = self.report.take() {
                    report(&error);
                }
                FAILED
            }
        }
    }
}

impl Device for Pmem {
    type Update = Update;

    const KIND: Kind = Kind::PersistentMemory;

    const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        0
    }

    /// `struct virtio_pmem_config` (5.19.4).
    fn config(&self) -> ConfigSpace {
        ConfigSpace::EMPTY
            .with(&self.start.raw_value().to_le_bytes())
            .with(&self.size.to_le_bytes())
    }

    fn start(&mut self, _: u64) {}

    /// Each request is a flush of its own: one that came while another was under way may be for what was written
    /// since.
    ///
    /// # Errors
    /// A request without room for its answer.
    fn serve(&mut self, _: usize, chain: &Chain<'_>) -> Result<Served, Violation> {
        if chain.writable.len() < WORD as u64 {
            return Err(Violation::Buffer);
        }
        let is_flush = match chain.readable.split_at(WORD as u64) {
            Some((head, _)) => {
                let mut kind = [0; WORD];
                head.read(&mut kind)?;
                u32::from_le_bytes(kind) == FLUSH
            }
            None => false,
        };
        let told = if is_flush {
            if let Err(wait) = self.limiter.take(self.file_len) {
                self.counts.throttled.add(1);
                return Ok(Served::Later(wait));
            }
            self.answer()
        } else {
            FAILED
        };
        if told == FAILED {
            self.counts.failures.add(1);
        }
        chain.writable.write(&told.to_le_bytes())?;
        Ok(Served::Done { written: 4 })
    }

    fn update(&mut self, update: Update) {
        self.limiter.change(update.bandwidth, update.operations);
    }
}

impl fmt::Debug for Pmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pmem")
            .field("start", &self.start)
            .field("size", &self.size)
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}

/// What a guest did at a memory's addresses that was not served by memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It wrote what it may only read. Told once.
    Lost,
    /// It touched what the host does not have any more, such as the end of a file that was cut short.
    Gone,
}

/// Told of what is not served by memory, on the vCPU's thread.
pub type ReportMiss = Box<dyn FnMut(Miss) + Send>;

/// What a guest's accesses reach that memory at these addresses does not serve: a bus has it there.
pub struct Gap {
    access: Access,
    lost: Arc<AtomicBool>,
    report: ReportMiss,
}

impl Gap {
    /// That of a memory with this `access`.
    #[must_use]
    pub fn new(access: Access, report: ReportMiss) -> Self {
        Self {
            access,
            lost: Arc::default(),
            report,
        }
    }

    /// A flush of a memory that cannot be written: it fails once a write was lost.
    #[must_use]
    pub fn flush(&self) -> Flush {
        let lost = self.lost.clone();
        Box::new(move || {
            if lost.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            Ok(())
        })
    }
}

impl BusDevice for Gap {
    fn read(&mut self, _: u64, _: &mut [u8]) {
        (self.report)(Miss::Gone);
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Reaction {
        match self.access {
            Access::ReadWrite => (self.report)(Miss::Gone),
            Access::ReadOnly if self.lost.swap(true, Ordering::SeqCst) => {}
            Access::ReadOnly => (self.report)(Miss::Lost),
        }
        Reaction::None
    }
}

impl fmt::Debug for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gap")
            .field("access", &self.access)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
