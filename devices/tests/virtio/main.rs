//! Virtio devices, driven by a driver in guest memory: see `driver`.
#![expect(
    clippy::cast_possible_truncation,
    reason = "a driver writes 64-bit numbers in halves"
)]

mod balloon;
mod block;
mod block_order;
mod driver;
mod entropy;
mod hostile;
mod net;
mod pmem;
mod registers;
mod rings;
mod saved;
mod shuffled;
mod vsock;

use std::sync::{Arc, Mutex};

use devices::virtio::{Chain, ConfigSpace, Device, Kind, Served, Violation};
use driver::Driver;

/// What [`Probe`] was asked.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) started: Vec<u64>,
    pub(crate) served: Vec<(usize, u64, u64)>,
}

/// A device that writes ones, and notes what it is asked.
pub(crate) struct Probe {
    log: Arc<Mutex<Log>>,
    config: ConfigSpace,
}

impl Probe {
    pub(crate) fn new() -> (Self, Arc<Mutex<Log>>) {
        let log = Arc::new(Mutex::new(Log::default()));
        let config = ConfigSpace::EMPTY.with(&7_u64.to_le_bytes()).with(&[1, 2]);
        let probe = Self {
            log: log.clone(),
            config,
        };
        (probe, log)
    }
}

impl Device for Probe {
    type Update = Option<u64>;

    const KIND: Kind = Kind::Entropy;

    const QUEUES: &'static [u16] = &[16];

    fn features(&self) -> u64 {
        1 << 5
    }

    fn config(&self) -> ConfigSpace {
        self.config
    }

    fn start(&mut self, features: u64) {
        self.log.lock().unwrap().started.push(features);
    }

    fn serve(&mut self, queue: usize, chain: &Chain<'_>) -> Result<Served, Violation> {
        let lengths = (queue, chain.readable.len(), chain.writable.len());
        self.log.lock().unwrap().served.push(lengths);
        let ones = vec![1; chain.writable.len() as usize];
        chain.writable.write(&ones)?;
        Ok(Served::Done {
            written: ones.len() as u32,
        })
    }

    fn update(&mut self, update: Option<u64>) {
        if let Some(number) = update {
            self.config = ConfigSpace::EMPTY.with(&number.to_le_bytes());
        }
    }
}

/// A driver of a [`Probe`] that is ready, with these features.
pub(crate) fn probed(features: u64) -> (Driver<Probe>, Arc<Mutex<Log>>) {
    let (probe, log) = Probe::new();
    (Driver::ready(probe, features), log)
}
