//! Persistent memory.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::BusDevice;
use devices::rate_limiter::{Bucket, RateLimiter};
use devices::virtio::Next;
use devices::virtio::block::Access;
use devices::virtio::pmem::{Counts, Flush, Gap, Miss, Pmem};
use proptest::prelude::*;
use tsc::Nanos;
use vm_memory::GuestAddress;

use crate::driver::*;

const START: u64 = 5 << 30;
const SIZE: u64 = 4 << 20;
/// Less than the memory, which is a multiple of 2 MiB.
const FILE_LEN: u64 = 3 << 20;

fn device(flush: Flush, limiter: RateLimiter) -> (Pmem, Arc<AtomicU32>) {
    let reports = Arc::new(AtomicU32::new(0));
    let count = reports.clone();
    let report = Box::new(move |_: &io::Error| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let place = (GuestAddress(START), SIZE);
    (Pmem::new(place, FILE_LEN, flush, limiter, report), reports)
}

/// One whose flushes are counted, and do not fail.
fn counting(limiter: RateLimiter) -> (Driver<Pmem>, Arc<AtomicU32>, Arc<Counts>) {
    let flushes = Arc::new(AtomicU32::new(0));
    let count = flushes.clone();
    let flush = Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let (device, _) = device(flush, limiter);
    let counts = device.counts();
    (Driver::ready(device, 0), flushes, counts)
}

/// Asks for a flush, or for what there is not, and returns the answer.
fn ask(driver: &mut Driver<Pmem>, kind: u32) -> u32 {
    driver.store(ROOM, kind);
    driver.store(ROOM + 0x100, u32::MAX);
    driver.put(&[(ROOM, 4, false), (ROOM + 0x100, 4, true)]);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, 4)));
    driver.load(ROOM + 0x100)
}

#[test]
fn driver_finds_where_the_memory_is() {
    let (mut driver, _, _) = counting(RateLimiter::unlimited());
    assert_eq!(driver.read(DEVICE_ID), 27);
    let fields = [CONFIG, CONFIG + 4, CONFIG + 8, CONFIG + 12].map(|at| driver.read(at));
    assert_eq!(fields, [1 << 30, 1, 4 << 20, 0]);
    // Neither VIRTIO_PMEM_F_SHMEM_REGION nor anything else of its own.
    assert_eq!(driver.offered() & 0xff_ffff, 0);
    // Nothing there is the driver's to write.
    driver.write(CONFIG, 0);
    assert_eq!(driver.read(CONFIG), 1 << 30);
}

#[test]
fn each_flush_is_one_and_nothing_else_is() {
    let (mut driver, flushes, counts) = counting(RateLimiter::unlimited());
    for times in 1..=3 {
        assert_eq!(ask(&mut driver, 0), 0);
        assert_eq!(flushes.load(Ordering::SeqCst), times);
    }
    for kind in [1, 1 << 16, u32::MAX] {
        assert_eq!(ask(&mut driver, kind), 1, "{kind}");
    }
    assert_eq!(flushes.load(Ordering::SeqCst), 3);
    assert_eq!(counts.failures.get(), 3);
    // Two that wait are two: the second may be for what was written meanwhile.
    for (head, at) in [(0, ROOM), (2, ROOM + 0x200)] {
        driver.store(at, 0_u32);
        driver.put_from(head, &[(at, 4, false), (at + 0x100, 4, true)]);
    }
    driver.run();
    assert_eq!(flushes.load(Ordering::SeqCst), 5);
    assert_eq!((driver.used(), driver.used()), (Some((0, 4)), Some((2, 4))));
}

#[test]
fn failing_flush_reaches_the_guest_each_time_and_the_log_once() {
    let failing = Box::new(|| Err(io::Error::other("no room")));
    let (device, reports) = device(failing, RateLimiter::unlimited());
    let counts = device.counts();
    let mut driver = Driver::ready(device, 0);
    for _ in 0..3 {
        assert_eq!(ask(&mut driver, 0), 1);
    }
    assert_eq!(reports.load(Ordering::SeqCst), 1);
    assert_eq!(counts.failures.get(), 3);
}

#[test]
fn request_without_room_for_its_answer_is_a_violation() {
    let rows: [&[(u64, u32, bool)]; 2] = [
        &[(ROOM, 4, false)],
        &[(ROOM, 4, false), (ROOM + 0x100, 3, true)],
    ];
    for buffers in rows {
        let (mut driver, flushes, _) = counting(RateLimiter::unlimited());
        driver.put(buffers);
        driver.run();
        assert_eq!(driver.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(driver.used(), None);
        assert_eq!(flushes.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn memory_itself_is_no_place_for_requests() {
    let (mut driver, flushes, _) = counting(RateLimiter::unlimited());
    driver.put(&[(START, 4, false), (ROOM, 4, true)]);
    driver.run();
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(flushes.load(Ordering::SeqCst), 0);
}

#[test]
fn limit_counts_flushes_and_the_whole_file_for_each() {
    let time = Arc::new(AtomicU64::new(0));
    let limiter = |bandwidth, operations| {
        let clock = time.clone();
        let bucket = |size: Option<u64>| {
            size.map(|size| Bucket::new(size, 0, Nanos::new(1_000)).expect("in bounds"))
        };
        RateLimiter::new(
            bucket(bandwidth),
            bucket(operations),
            Box::new(move || Nanos::new(clock.load(Ordering::SeqCst))),
        )
    };
    for limiter in [limiter(Some(FILE_LEN), None), limiter(None, Some(1))] {
        time.store(0, Ordering::SeqCst);
        let (mut driver, flushes, counts) = counting(limiter);
        assert_eq!(ask(&mut driver, 0), 0);
        driver.store(ROOM, 0_u32);
        driver.put(&[(ROOM, 4, false), (ROOM + 0x100, 4, true)]);
        // A file in 1000 ns, or a flush.
        assert_eq!(driver.run(), Next::After(Nanos::new(1_000)));
        assert_eq!((driver.used(), flushes.load(Ordering::SeqCst)), (None, 1));
        time.store(1_000, Ordering::SeqCst);
        assert_eq!(driver.run(), Next::Notification);
        assert_eq!(driver.used(), Some((0, 4)));
        assert_eq!(
            (flushes.load(Ordering::SeqCst), counts.throttled.get()),
            (2, 1)
        );
        // What makes no sense does not wait.
        assert_eq!(ask(&mut driver, 9), 1);
        driver.engine.change(|update| {
            update.bandwidth = Some(None);
            update.operations = Some(None);
        });
        assert_eq!(ask(&mut driver, 0), 0);
    }
}

#[test]
fn flush_fails_once_a_write_was_lost() {
    let misses = Arc::new(Mutex::new(Vec::new()));
    let noted = misses.clone();
    let report = Box::new(move |miss| noted.lock().unwrap().push(miss));
    let mut gap = Gap::new(Access::ReadOnly, report);
    let (device, _) = device(gap.flush(), RateLimiter::unlimited());
    let mut driver = Driver::ready(device, 0);
    assert_eq!(ask(&mut driver, 0), 0);
    for offset in [0, SIZE - 8] {
        let _ = gap.write(offset, &[1; 8]);
        assert_eq!(ask(&mut driver, 0), 1);
    }
    assert_eq!(*misses.lock().unwrap(), [Miss::Lost], "told once");
}

#[test]
fn memory_that_is_gone_is_told() {
    for (access, written) in [
        (Access::ReadOnly, Miss::Lost),
        (Access::ReadWrite, Miss::Gone),
    ] {
        let misses = Arc::new(Mutex::new(Vec::new()));
        let noted = misses.clone();
        let report = Box::new(move |miss| noted.lock().unwrap().push(miss));
        let mut gap = Gap::new(access, report);
        gap.read(0, &mut [0; 8]);
        let _ = gap.write(0, &[0; 8]);
        assert_eq!(*misses.lock().unwrap(), [Miss::Gone, written]);
    }
}

proptest! {
    /// However a request is cut into buffers, it is answered in the first four bytes that the device may write.
    #[test]
    fn borders_of_buffers_mean_nothing(
        kind in prop_oneof![Just(0_u32), any::<u32>()],
        readable in prop::collection::vec(0_u32..6, 1..4),
        writable in prop::collection::vec(0_u32..6, 1..4),
    ) {
        let (mut driver, flushes, _) = counting(RateLimiter::unlimited());
        let mut buffers = Vec::new();
        let mut bytes = kind.to_le_bytes().into_iter().chain([0xee].into_iter().cycle());
        for (index, len) in (0..).zip(&readable) {
            let at = ROOM + 0x10 * index;
            let part: Vec<u8> = bytes.by_ref().take(*len as usize).collect();
            driver.fill(at, &part);
            buffers.push((at, *len, false));
        }
        for (index, len) in (0..).zip(&writable) {
            let at = ROOM + 0x100 + 0x10 * index;
            driver.fill(at, &[0x77; 6]);
            buffers.push((at, *len, true));
        }
        driver.put(&buffers);
        driver.run();
        let room: u32 = writable.iter().sum();
        let is_flush = kind == 0 && readable.iter().sum::<u32>() >= 4;
        prop_assert_eq!(driver.read(STATUS) & NEEDS_RESET != 0, room < 4);
        if room < 4 {
            prop_assert_eq!(flushes.load(Ordering::SeqCst), 0);
            return Ok(());
        }
        prop_assert_eq!(driver.used(), Some((0, 4)));
        prop_assert_eq!(flushes.load(Ordering::SeqCst), u32::from(is_flush));
        let mut written = Vec::new();
        for (at, len, _) in buffers.iter().filter(|buffer| buffer.2) {
            written.extend(driver.bytes(*at, *len as usize));
        }
        let (answer, rest) = written.split_at(4);
        prop_assert_eq!(answer, u32::from(!is_flush).to_le_bytes());
        prop_assert!(rest.iter().all(|byte| *byte == 0x77));
    }
}
