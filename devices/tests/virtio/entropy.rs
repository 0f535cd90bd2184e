//! The source of entropy.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use devices::rate_limiter::{Bucket, RateLimiter};
use devices::virtio::entropy::{Entropy, MAX_REQUEST};
use devices::virtio::{Count, Next};
use tsc::Nanos;

use crate::driver::*;

fn counting(limiter: RateLimiter) -> Entropy {
    let mut next = 0_u8;
    Entropy::new(
        Box::new(move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
            Ok(())
        }),
        limiter,
        Box::new(|_| panic!("no failure")),
    )
}

#[test]
fn buffers_are_filled_in_order() {
    let mut driver = Driver::ready(counting(RateLimiter::unlimited()), 0);
    driver.put(&[(ROOM, 3, true), (ROOM + 0x100, 300, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 303)));
    assert_eq!(driver.bytes(ROOM, 4), [0, 1, 2, 0]);
    let others: Vec<u8> = (3..303_u16).map(|n| n as u8).collect();
    assert_eq!(driver.bytes(ROOM + 0x100, 300), others);
    assert_eq!(driver.bytes(ROOM + 0x100 + 300, 1), [0]);
}

#[test]
fn request_is_bounded_and_one_for_nothing_gets_nothing() {
    let mut driver = Driver::ready(counting(RateLimiter::unlimited()), 0);
    let more = u32::try_from(MAX_REQUEST).unwrap() + 1;
    driver.put(&[(ROOM, more, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, more - 1)));
    // nothing to be written
    driver.put(&[(ROOM, 8, false)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
}

#[test]
fn limit_holds_requests_back_until_its_time() {
    let time = Arc::new(AtomicU64::new(0));
    let clock = time.clone();
    let bucket = Bucket::new(10, 0, Nanos::new(1_000)).unwrap();
    let limiter = RateLimiter::new(
        Some(bucket),
        None,
        Box::new(move || Nanos::new(clock.load(Ordering::SeqCst))),
    );
    let device = counting(limiter);
    let counts = device.counts();
    let mut driver = Driver::ready(device, 0);
    driver.put(&[(ROOM, 10, true)]);
    driver.put(&[(ROOM, 10, true)]);
    // 10 bytes in 1000 ns
    assert_eq!(driver.run(), Next::After(Nanos::new(1_000)));
    assert_eq!(driver.used(), Some((0, 10)));
    assert_eq!(driver.used(), None);
    time.store(999, Ordering::SeqCst);
    assert_eq!(driver.run(), Next::After(Nanos::new(1)));
    time.store(1_000, Ordering::SeqCst);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, 10)));
    let told = [&counts.requests, &counts.bytes, &counts.throttled].map(Count::get);
    assert_eq!(told, [2, 20, 2]);
    // and none at all when it is taken away
    driver.engine.change(|update| update.bandwidth = Some(None));
    driver.put(&[(ROOM, 10, true)]);
    assert_eq!(driver.run(), Next::Notification);
}

#[test]
fn failing_source_gives_nothing_and_is_told_once() {
    let told = Arc::new(AtomicU32::new(0));
    let count = told.clone();
    let device = Entropy::new(
        Box::new(|_| Err(io::Error::other("dry"))),
        RateLimiter::unlimited(),
        Box::new(move |error| {
            assert_eq!(error.to_string(), "dry");
            count.fetch_add(1, Ordering::SeqCst);
        }),
    );
    let counts = device.counts();
    let mut driver = Driver::ready(device, 0);
    for _ in 0..3 {
        driver.put(&[(ROOM, 10, true)]);
        driver.run();
        assert_eq!(driver.used(), Some((0, 0)));
    }
    assert_eq!(told.load(Ordering::SeqCst), 1);
    let told = [&counts.requests, &counts.bytes, &counts.failures].map(Count::get);
    assert_eq!(told, [3, 0, 3]);
}
