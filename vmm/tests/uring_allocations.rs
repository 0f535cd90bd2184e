//! Serving a disk by io_uring allocates nothing: a process of its own, whose allocator counts.
#![expect(
    clippy::cast_possible_truncation,
    reason = "a driver writes 64-bit numbers in halves"
)]

#[path = "../../devices/tests/virtio/counting.rs"]
mod counting;
#[path = "../../devices/tests/virtio/driver.rs"]
#[allow(dead_code, reason = "the other tests use all of it")]
mod driver;

use std::os::fd::AsFd;

use counting::ALLOCATIONS;
use devices::rate_limiter::RateLimiter;
use devices::virtio::block::{Access, Block, Cache, Image, Serial};
use driver::*;
use vmm::uring::Uring;

/// Descriptors of each request.
const PARTS: u16 = 4;

#[test]
fn disk_serves_many_requests_at_once_without_allocating() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("room");
    let image = Image::open(file.path(), Access::ReadWrite).expect("an image");
    let memory = memory();
    let ring = match Uring::new(image.as_fd(), memory.clone()) {
        Ok(ring) => ring,
        // A ring that the host has and that cannot be had is a fault of ours.
        Err(error) if error.is_for_want_of_any() => return println!("skipped here: {error}"),
        Err(error) => panic!("{error}"),
    };
    let device = Block::new(
        image,
        Serial::new("disk"),
        Cache::Writeback,
        RateLimiter::unlimited(),
        Box::new(|_, _| {}),
    );
    let device = device.with_ring(Box::new(ring));
    let features = 1 << 9 | 1 << 13 | 1 << 14 | EVENT_INDEX;
    let mut driver = Driver::ready_with(memory, device, features, 256);
    // (kind, sector, bytes, whether the device writes them); the last are errors
    let rows = [
        (0_u32, 0_u64, 4096_u32, true),
        (1, 7, 4096, false),
        (4, 0, 0, false),
        (8, 0, 20, true),
        (13, 0, 16, false),
        (0, 1 << 40, 512, true),
        (99, 0, 512, true),
    ];
    // Each kind alone, and then as many at once as the queue has room for.
    for (first, count) in (0..rows.len()).map(|row| (row, 1)).chain([(0, 60)]) {
        for number in 0..count {
            let place = first + usize::from(number);
            let (kind, sector, len, writable) = rows[place % rows.len()];
            let header = ROOM + u64::from(number) * 0x200;
            driver.store(header, kind);
            driver.store(header + 8, sector);
            driver.put_from(
                number * PARTS,
                &[
                    (header, 16, false),
                    (ROOM + 0x1_0000, len / 2, writable),
                    (ROOM + 0x1_4000, len - len / 2, writable),
                    (header + 0x100, 1, true),
                ],
            );
        }
        let before = ALLOCATIONS.get();
        driver.run_out();
        assert_eq!(
            ALLOCATIONS.get() - before,
            0,
            "{count} at once from {first}"
        );
        assert_eq!(
            std::iter::from_fn(|| driver.used()).count(),
            usize::from(count)
        );
    }
}
