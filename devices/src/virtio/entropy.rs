//! A source of entropy (5.4): the host's random bytes for the guest.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{Chain, ConfigSpace, Count, Device, Kind, Served, Violation};
use crate::rate_limiter::{Bucket, RateLimiter};

/// The most bytes that one request gets, however much room it has. The driver asks again.
pub const MAX_REQUEST: u64 = 64 * 1024;

/// So many are got from the host at once.
const PIECE: usize = 256;

/// Fills a buffer with random bytes.
pub type Source = Box<dyn FnMut(&mut [u8]) -> io::Result<()> + Send>;

/// Told of a failure of the source, once.
pub type Report = Box<dyn FnMut(&io::Error) + Send>;

/// What it counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that were answered,
    pub requests: Count,
    /// and the bytes that they got.
    pub bytes: Count,
    /// How often the source failed,
    pub failures: Count,
    /// and the limiter had a request wait.
    pub throttled: Count,
}

/// The device.
pub struct Entropy {
    source: Source,
    limiter: RateLimiter,
    report: Option<Report>,
    counts: Arc<Counts>,
}

impl Entropy {
    /// A device that gives what `source` gives, as fast as `limiter` allows.
    #[must_use]
    pub fn new(source: Source, limiter: RateLimiter, report: Report) -> Self {
        Self {
            source,
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
}

/// What of it can be changed.
#[derive(Debug, Default)]
pub struct Update {
    /// Another limit on bytes, or none.
    pub bandwidth: Option<Option<Bucket>>,
    /// Another limit on requests, or none.
    pub operations: Option<Option<Bucket>>,
}

impl Device for Entropy {
    type Update = Update;

    const KIND: Kind = Kind::Entropy;

    const QUEUES: &'static [u16] = &[64];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::EMPTY
    }

    fn start(&mut self, _: u64) {}

    /// Fills the buffers from the first on, as far as [`MAX_REQUEST`]. A source that fails gives none: its
    /// driver has no other way to be told.
    fn serve(&mut self, _: usize, chain: &Chain<'_>) -> Result<Served, Violation> {
        let wanted = chain.writable.len().min(MAX_REQUEST);
        if let Err(wait) = self.limiter.take(wanted) {
            self.counts.throttled.add(1);
            return Ok(Served::Later(wait));
        }
        let mut piece = [0; PIECE];
        let (mut rest, mut left) = (chain.writable, wanted);
        while left > 0 {
            let len = left.min(PIECE as u64);
            let random = usize::try_from(len)
                .ok()
                .and_then(|len| piece.get_mut(..len))
                .ok_or(Violation::Buffer)?;
            if let Err(error) = (self.source)(random) {
                self.counts.failures.add(1);
                if let Some(mut report) = self.report.take() {
                    report(&error);
                }
                break;
            }
            let (here, others) = rest.split_at(len).ok_or(Violation::Buffer)?;
            here.write(random)?;
            rest = others;
            left -= len;
        }
        self.counts.requests.add(1);
        self.counts.bytes.add(wanted - left);
        Ok(Served::Done {
            // OK because it is at most MAX_REQUEST.
            written: u32::try_from(wanted - left).unwrap_or(0),
        })
    }

    fn update(&mut self, update: Update) {
        self.limiter.change(update.bandwidth, update.operations);
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entropy")
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}
