//! A disk's engines beside each other: 4 KiB reads at random places of a file, one at a time and 32 at once, from the
//! page cache and from the host's disk; in turns, from the driver's request to the used ring. A guest's exits and
//! interrupts come on top of both.
//!
//! `cargo bench -p vmm --bench block [FOLDER]`: the file is in that folder, or among temporary ones.
#![expect(
    clippy::cast_possible_truncation,
    reason = "a driver writes 64-bit numbers in halves"
)]

#[path = "../../devices/tests/virtio/driver.rs"]
#[allow(dead_code, reason = "the tests of the devices use all of it")]
mod driver;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use devices::rate_limiter::RateLimiter;
use devices::virtio::block::{Access, Block, Cache, Image, SECTOR, Serial};
use driver::*;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Advice, fadvise};
use vmm::uring::Uring;

/// The file's length, and that of a read.
const LEN: u64 = 256 << 20;
const READ: u64 = 4096;

const TURNS: usize = 11;

/// Descriptors of each request, and where their parts are.
const PARTS: u16 = 3;
const HEADERS: u64 = ROOM;
const DATA: u64 = ROOM + 0x1_0000;

struct Disk {
    driver: Driver<Block>,
    /// What tells of requests that have ended, for a ring.
    source: Option<OwnedFd>,
}

impl Disk {
    fn new(path: &Path, ring: bool) -> Self {
        let image = Image::open(path, Access::ReadOnly).expect("an image");
        let memory = memory();
        let ring = ring.then(|| Uring::new(image.as_fd(), memory.clone()).expect("a ring"));
        let source = ring
            .as_ref()
            .map(|ring| ring.source().expect("a descriptor"));
        let mut device = Block::new(
            image,
            Serial::new("disk"),
            Cache::Writeback,
            RateLimiter::unlimited(),
            Box::new(|operation, error| panic!("{operation}: {error}")),
        );
        if let Some(ring) = ring {
            device = device.with_ring(Box::new(ring));
        }
        let driver = Driver::ready_with(memory, device, 0, 256);
        Self { driver, source }
    }

    /// Microseconds of a read, of so many with `depth` at once.
    fn measure(&mut self, reads: u64, depth: u16, chance: &mut fastrand::Rng) -> f64 {
        let begin = Instant::now();
        for _ in 0..reads / u64::from(depth) {
            for number in 0..depth {
                let header = HEADERS + u64::from(number) * 0x20;
                let sector = chance.u64(..LEN / READ) * (READ / SECTOR);
                self.driver.store(header, 0_u32);
                self.driver.store(header + 8, sector);
                let data = DATA + u64::from(number) * READ;
                self.driver.put_from(
                    number * PARTS,
                    &[
                        (header, 16, false),
                        (data, READ as u32, true),
                        (header + 0x10, 1, true),
                    ],
                );
            }
            self.driver.run();
            let mut left = depth;
            while left > 0 {
                let Some((_, written)) = self.driver.used() else {
                    let source = self
                        .source
                        .as_ref()
                        .expect("one after the other leaves none");
                    let _ = poll(&mut [PollFd::new(source, PollFlags::IN)], None);
                    self.driver.run();
                    continue;
                };
                assert_eq!(u64::from(written), READ + 1);
                left -= 1;
            }
        }
        begin.elapsed().as_secs_f64() * 1e6 / reads as f64
    }
}

fn told(name: &str, mut sample: Vec<f64>) {
    sample.sort_by(f64::total_cmp);
    let at = |percent: usize| sample[(sample.len() - 1) * percent / 100];
    println!("{name:<32} {:>8.2} {:>8.2} {:>8.2}", at(0), at(50), at(90));
}

fn main() {
    // What `cargo test --benches` asks for is not a measurement.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let folder = folder.map_or_else(std::env::temp_dir, PathBuf::from);
    let mut file = tempfile::NamedTempFile::new_in(folder).expect("a file");
    let mut chance = fastrand::Rng::with_seed(1);
    let mut block = vec![0; 1 << 20];
    for _ in 0..LEN >> 20 {
        chance.fill(&mut block);
        file.write_all(&block).expect("room");
    }
    file.as_file().sync_all().expect("a disk");
    println!(
        "{:<32} {:>8} {:>8} {:>8}",
        "us a read", "minimum", "median", "p90"
    );
    for (place, reads) in [("page cache", 16_384), ("disk", 2_048)] {
        for depth in [1, 32] {
            let mut samples = [Vec::new(), Vec::new()];
            for _ in 0..TURNS {
                for (ring, sample) in [false, true].into_iter().zip(&mut samples) {
                    let mut disk = Disk::new(file.path(), ring);
                    if place == "disk" {
                        let file = File::open(file.path()).expect("a file");
                        fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
                    }
                    sample.push(disk.measure(reads, depth, &mut chance));
                }
            }
            let pairs = samples[0].iter().zip(&samples[1]);
            let ratios = pairs.map(|(sync, many)| many / sync).collect();
            let [sync, many] = samples;
            told(&format!("{place}, {depth} at once: Sync"), sync);
            told(&format!("{place}, {depth} at once: Async"), many);
            told("  Async to Sync of a pair", ratios);
        }
    }
}
