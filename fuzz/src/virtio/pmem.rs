//! Persistent memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use devices::rate_limiter::RateLimiter;
use devices::virtio::pmem::Pmem;
use vm_memory::GuestAddress;

use super::{Chain, Driver, EVENT_INDEX, INDIRECT, Request};
use crate::input::decode;

#[derive(Arbitrary, Debug)]
struct Input {
    event_index: bool,
    /// Which flushes fail, as bits, over and over.
    failing: u64,
    requests: Vec<(Request, bool)>,
}

/// Where the memory is, which no queue and no buffer is in.
const PLACE: (GuestAddress, u64) = (GuestAddress(2 << 32), 2 << 20);

/// Requests of any shape: each whole one is a flush or none, and is answered in its first four bytes of room, or the
/// device wants a reset.
///
/// # Panics
/// When something else is in the guest's memory, or was flushed.
pub fn virtio_pmem(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let fails = move |count: u64| input.failing >> (count % 64) & 1 != 0;
    let flushes = Arc::new(AtomicU64::new(0));
    let count = flushes.clone();
    let device = Pmem::new(
        PLACE,
        1,
        Box::new(move || {
            if fails(count.fetch_add(1, Ordering::SeqCst)) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }),
        RateLimiter::unlimited(),
        Box::new(|_| {}),
    );
    let counts = device.counts();
    let events = if input.event_index { EVENT_INDEX } else { 0 };
    let (mut driver, _) = Driver::ready(device, INDIRECT | events);
    let (mut expected, mut failures) = (0, 0);
    for (request, run) in input.requests.iter().take(64) {
        driver.ask(0, request);
        if !run {
            continue;
        }
        driver.engine.run();
        let mut lawful = true;
        while let Some(chain) = driver.queues[0].waiting.pop_front() {
            lawful = chain.is_lawful() && chain.room() >= 4;
            if !lawful {
                break;
            }
            let mut answer = 1_u32;
            if is_flush(&mut driver, &chain) {
                answer = u32::from(fails(expected));
                expected += 1;
            }
            failures += u64::from(answer);
            driver.model.write(&chain, 0, &answer.to_le_bytes());
            driver.expect_used(0, chain.head, 4);
        }
        driver.expect_nothing_else();
        assert_eq!(driver.needs_reset(), !lawful);
        assert_eq!(flushes.load(Ordering::SeqCst), expected);
        assert_eq!(counts.failures.get(), failures);
        if !lawful {
            return;
        }
    }
}

fn is_flush(driver: &mut Driver<Pmem>, chain: &Chain) -> bool {
    let bytes = driver.model.read(chain);
    bytes.get(..4) == Some(&[0; 4])
}
