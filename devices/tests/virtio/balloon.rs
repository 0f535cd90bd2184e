//! The memory balloon.

mod hints;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use devices::BusDevice;
use devices::virtio::balloon::{Balloon, Host, MAX_PAGES, Options, PAGE, Told};
use devices::virtio::{Hold, Next};
use proptest::prelude::*;
use tsc::Nanos;
use vm_memory::GuestAddress;

use crate::driver::*;

const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const HINTING: u64 = 1 << 3;
const POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;

const TARGET: u64 = CONFIG;
const ACTUAL: u64 = CONFIG + 4;
const POISON_VALUE: u64 = CONFIG + 12;

/// The last page below the hole, and the first and the last above.
const LAST_LOW: u32 = (HOLE / PAGE) as u32 - 1;
const FIRST_HIGH: u32 = (HIGH / PAGE) as u32;
const LAST_HIGH: u32 = FIRST_HIGH + 15;

/// What the host was asked.
#[derive(Debug, Default)]
struct Asked {
    /// The time.
    now: u64,
    /// First page and number of pages.
    given: Vec<(u64, u64)>,
    fails: bool,
    told: u32,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Asked>>);

impl Recorder {
    fn given(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap().given)
    }

    fn set_time(&self, now: u64) {
        self.0.lock().unwrap().now = now;
    }
}

impl Host for Recorder {
    fn now(&mut self) -> Nanos {
        Nanos::new(self.0.lock().unwrap().now)
    }

    fn give_back(&mut self, address: GuestAddress, len: u64) -> io::Result<()> {
        assert!(address.0.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0);
        let end = address.0 + len;
        assert!(
            end <= HOLE || (address.0 >= HIGH && end <= HIGH + 0x1_0000),
            "{address:?} {len:#x} is not memory"
        );
        let mut asked = self.0.lock().unwrap();
        asked.given.push((address.0 / PAGE, len / PAGE));
        if asked.fails {
            return Err(io::Error::other("full"));
        }
        Ok(())
    }
}

type Balloons = Driver<Balloon<Recorder>>;

/// A driver that takes all that is on offer.
fn ready(options: Options) -> (Balloons, Recorder, Arc<Told>) {
    let host = Recorder::default();
    let noted = host.clone();
    let report = Box::new(move |_: &io::Error| noted.0.lock().unwrap().told += 1);
    let device = Balloon::new(host.clone(), options, report);
    let told = device.told();
    let mut features = 0;
    for (is_there, feature) in [
        (options.statistics.is_some(), STATISTICS),
        (options.deflate_on_out_of_memory, DEFLATE_ON_OOM),
        (options.reporting, REPORTING | POISON),
        (options.hinting, HINTING | POISON),
    ] {
        features |= if is_there { feature } else { 0 };
    }
    (Driver::ready(device, features), host, told)
}

fn put_numbers(driver: &mut Balloons, numbers: &[u32]) {
    driver.queue = 0;
    let bytes: Vec<u8> = numbers.iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.fill(ROOM, &bytes);
    driver.put(&[(ROOM, bytes.len() as u32, false)]);
}

fn inflate(driver: &mut Balloons, numbers: &[u32]) {
    put_numbers(driver, numbers);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, 0)));
}

#[test]
fn features_and_size_are_as_configured() {
    let all = STATISTICS | DEFLATE_ON_OOM | POISON | REPORTING | HINTING;
    let statistics = Some(Nanos::new(1));
    for (options, features) in [
        (Options::default(), 0),
        (
            Options {
                deflate_on_out_of_memory: true,
                ..Options::default()
            },
            DEFLATE_ON_OOM,
        ),
        (
            Options {
                pages: 7,
                deflate_on_out_of_memory: true,
                statistics,
                reporting: true,
                hinting: true,
            },
            all,
        ),
    ] {
        let (mut driver, ..) = ready(options);
        assert_eq!(driver.read(DEVICE_ID), 5);
        assert_eq!(driver.offered() & 0xff, features);
        assert_eq!(driver.read(TARGET), options.pages);
        for queue in 0..6 {
            driver.write(QUEUE_SEL, queue);
            assert_eq!(driver.read(QUEUE_SIZE_MAX), if queue < 5 { 128 } else { 0 });
        }
    }
}

#[test]
fn pages_are_sorted_joined_and_given_back_once() {
    let (mut driver, host, told) = ready(Options::default());
    inflate(&mut driver, &[5, 3, 4, 3, 9, 5]);
    assert_eq!(host.given(), [(3, 3), (9, 1)]);
    // As Linux puts them: the last first.
    let downwards: Vec<u32> = (100..=255).rev().collect();
    inflate(&mut driver, &downwards);
    assert_eq!(host.given(), [(100, 156)]);
    inflate(&mut driver, &[0]);
    assert_eq!(host.given(), [(0, 1)]);
    inflate(&mut driver, &[]);
    assert_eq!(host.given(), []);
    assert_eq!((told.inflations.get(), told.failures.get()), (4, 0));
}

#[test]
fn pages_in_several_buffers_are_one_request() {
    let (mut driver, host, _) = ready(Options::default());
    let bytes: Vec<u8> = [7_u32, 8, 9]
        .iter()
        .flat_map(|page| page.to_le_bytes())
        .collect();
    // A number that begins in one buffer and ends in the next.
    driver.fill(ROOM, &bytes[..6]);
    driver.fill(ROOM + 0x1000, &bytes[6..]);
    driver.put(&[
        (ROOM, 6, false),
        (ROOM + 0x1000, 6, false),
        (ROOM + 0x2000, 64, true),
    ]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
    assert_eq!(host.given(), [(7, 3)]);
    assert_eq!(driver.bytes(ROOM + 0x2000, 64), [0; 64]);
}

#[test]
fn pages_that_are_not_memory_are_left_out() {
    let (mut driver, host, told) = ready(Options::default());
    for (numbers, given) in [
        (&[LAST_LOW, LAST_LOW + 1][..], &[(LAST_LOW, 1)][..]),
        (&[u32::MAX, 0x8_0000, FIRST_HIGH - 1], &[]),
        (
            &[LAST_HIGH + 1, FIRST_HIGH, LAST_HIGH],
            &[(FIRST_HIGH, 1), (LAST_HIGH, 1)],
        ),
        (&[u32::MAX, 1, u32::MAX - 1, 0], &[(0, 2)]),
    ] {
        let before = told.failures.get();
        inflate(&mut driver, numbers);
        let given: Vec<_> = (given.iter())
            .map(|(page, count)| (u64::from(*page), *count))
            .collect();
        assert_eq!(host.given(), given);
        assert_eq!(told.failures.get(), before + 1);
    }
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn what_is_no_whole_number_is_left_out() {
    let (mut driver, host, told) = ready(Options::default());
    driver.fill(ROOM, &[1, 0, 0, 0, 2, 0, 0]);
    driver.put(&[(ROOM, 7, false)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
    assert_eq!(host.given(), [(1, 1)]);
    assert_eq!(told.failures.get(), 1);
}

#[test]
fn million_pages_in_one_request_are_too_many() {
    let (mut driver, host, told) = ready(Options::default());
    // 16 buffers of 65,536 numbers, which are all in the same place: every second page, so that nothing is joined.
    let numbers: Vec<u8> = (0..65_536_u32)
        .flat_map(|n| (n % 64 * 2).to_le_bytes())
        .collect();
    driver.fill(ROOM, &numbers);
    driver.put(&[(ROOM, 0x4_0000, false); 16]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
    // 1,024 numbers at once name 64 pages, each of them once.
    assert_eq!(host.given().len() as u64, MAX_PAGES / 1_024 * 64);
    assert_eq!(told.failures.get(), 1);
}

#[test]
fn host_that_takes_nothing_is_told_once_and_the_driver_goes_on() {
    let (mut driver, host, told) = ready(Options {
        reporting: true,
        ..Options::default()
    });
    host.0.lock().unwrap().fails = true;
    for _ in 0..3 {
        inflate(&mut driver, &[1, 3]);
    }
    driver.queue = 2;
    driver.put(&[(0x4_0000, 0x1000, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
    assert_eq!(host.given().len(), 7);
    assert_eq!(host.0.lock().unwrap().told, 1);
    assert_eq!(told.failures.get(), 3);
    assert_eq!((told.report_failures.get(), told.reported.get()), (1, 0));
}

#[test]
fn pages_that_leave_the_balloon_are_acknowledged() {
    let (mut driver, host, told) = ready(Options::default());
    driver.queue = 1;
    driver.fill(ROOM, &[0xff; 64]);
    driver.put(&[(ROOM, 64, false)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
    assert_eq!(host.given(), []);
    assert_eq!(told.deflations.get(), 1);
}

#[test]
fn another_size_is_told_by_an_interrupt() {
    let (mut driver, ..) = ready(Options {
        pages: 7,
        ..Options::default()
    });
    driver.write(ACTUAL, 5);
    let (interrupts, generation) = (driver.interrupts(), driver.read(CONFIG_GENERATION));
    for (pages, told) in [(9, 1), (9, 1), (0, 2), (u32::MAX, 3)] {
        driver.engine.change(|update| update.pages = Some(pages));
        driver.run();
        assert_eq!(driver.read(TARGET), pages);
        assert_eq!(driver.interrupts(), interrupts + told);
        assert_eq!(driver.read(CONFIG_GENERATION), generation + told);
        assert_eq!(driver.read(INTERRUPT_STATUS), 2);
        // What the driver wrote stays.
        assert_eq!(driver.read(ACTUAL), 5);
    }
}

#[test]
fn driver_writes_what_is_its_own_and_nothing_else() {
    let (mut driver, ..) = ready(Options {
        pages: 7,
        ..Options::default()
    });
    for at in (CONFIG..CONFIG + 0x100).step_by(4) {
        driver.write(at, 0x0403_0201);
    }
    let mut space = [0xff; 24];
    driver.registers.read(CONFIG, &mut space);
    let wanted = [
        [7, 0, 0, 0],
        [1, 2, 3, 4],
        [0; 4],
        [1, 2, 3, 4],
        [0; 4],
        [0; 4],
    ];
    assert_eq!(space, *wanted.as_flattened());
    let mut actual = [0; 4];
    driver.engine.read_config(4, &mut actual);
    assert_eq!(actual, [1, 2, 3, 4]);
    // Any width, across the borders of fields, and beyond the end of all.
    let _ = driver.registers.write(CONFIG + 2, &[9; 8]);
    let _ = driver.registers.write(CONFIG + 15, &[8]);
    for at in [CONFIG + 14, u64::MAX - 3, u64::MAX] {
        let _ = driver.registers.write(at, &[7; 2]);
    }
    driver.registers.read(CONFIG, &mut space);
    assert_eq!(space[..12], [7, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0]);
    assert_eq!(space[12..16], [1, 2, 7, 7]);
    // A reset takes it back, and what comes too early is not taken.
    driver.reset();
    assert_eq!(driver.read(ACTUAL), 0);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.write(ACTUAL, 3);
    assert_eq!(driver.read(ACTUAL), 0);
    assert_eq!(driver.read(TARGET), 7);
}

/// A driver of a device that asks for statistics every 1,000 ns.
fn with_statistics() -> (Balloons, Recorder, Arc<Told>) {
    ready(Options {
        statistics: Some(Nanos::new(1_000)),
        ..Options::default()
    })
}

/// Puts statistics, and `rest` after them.
fn put_statistics(driver: &mut Balloons, statistics: &[(u16, u64)], rest: &[u8]) {
    driver.queue = 2;
    let mut bytes = Vec::new();
    for (tag, value) in statistics {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(rest);
    driver.fill(ROOM, &bytes);
    driver.put(&[(ROOM, bytes.len() as u32, false)]);
}

#[test]
fn statistics_are_read_at_once_and_asked_for_again_in_time() {
    let (mut driver, host, told) = with_statistics();
    assert_eq!(told.statistic(4), None);
    put_statistics(&mut driver, &[(4, 77), (5, u64::MAX)], &[]);
    assert_eq!(driver.run(), Next::After(Nanos::new(1_000)));
    assert_eq!(
        (told.statistic(4), told.statistic(5)),
        (Some(77), Some(u64::MAX))
    );
    assert_eq!(told.statistic(0), None);
    let interrupts = driver.interrupts();
    // Until then the buffer is the device's, and is not read again.
    put_bytes(&driver, 1);
    for (now, left) in [(1, 999), (999, 1)] {
        host.set_time(now);
        assert_eq!(driver.run(), Next::After(Nanos::new(left)));
        assert_eq!(driver.used(), None);
        assert_eq!(told.statistics_updates.get(), 1);
    }
    host.set_time(1_000);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, 0)));
    assert_eq!(driver.interrupts(), interrupts + 1);
    assert_eq!(told.statistic(4), Some(77));
    // The next. What is not in it is not known any more.
    put_statistics(&mut driver, &[(6, 3)], &[]);
    assert_eq!(driver.run(), Next::After(Nanos::new(1_000)));
    assert_eq!((told.statistic(4), told.statistic(6)), (None, Some(3)));
    assert_eq!(told.statistics_updates.get(), 2);
}

/// Changes the first statistic's value where it is.
fn put_bytes(driver: &Balloons, value: u64) {
    driver.fill(ROOM + 2, &value.to_le_bytes());
}

#[test]
fn other_requests_do_not_wait_for_statistics() {
    let (mut driver, host, _) = with_statistics();
    put_statistics(&mut driver, &[(4, 77)], &[]);
    driver.run();
    put_numbers(&mut driver, &[1]);
    assert_eq!(driver.run(), Next::After(Nanos::new(1_000)));
    assert_eq!(driver.used(), Some((0, 0)));
    assert_eq!(host.given(), [(1, 1)]);
}

#[test]
fn statistics_that_nobody_knows_are_left_out() {
    let (mut driver, host, told) = with_statistics();
    let mut time = 0;
    let mut tell = |driver: &mut Balloons, statistics: &[(u16, u64)], rest: &[u8]| {
        put_statistics(driver, statistics, rest);
        driver.run();
        time += 1_000;
        host.set_time(time);
        driver.run();
        assert_eq!(driver.used(), Some((0, 0)));
    };
    let known = || {
        (0..20)
            .filter_map(|tag| told.statistic(tag))
            .collect::<Vec<_>>()
    };
    tell(
        &mut driver,
        &[(16, 1), (u16::MAX, 2), (15, 3), (0x100, 4)],
        &[],
    );
    assert_eq!(known(), [3]);
    // Of two with one tag the last counts; half a statistic does not, and is counted.
    tell(&mut driver, &[(1, 5), (1, 6)], &[0, 0, 9, 9]);
    assert_eq!(known(), [6]);
    assert_eq!(told.statistics_failures.get(), 1);
    tell(&mut driver, &[], &[]);
    assert!(known().is_empty());
    // More than there can be: the first 64.
    let many: Vec<(u16, u64)> = (0..1_000).map(|n| (u16::from(n >= 64), n)).collect();
    tell(&mut driver, &many, &[]);
    assert_eq!(known(), [63]);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn buffers_of_statistics_wait_for_each_other() {
    let (mut driver, host, told) = with_statistics();
    put_statistics(&mut driver, &[(4, 1)], &[]);
    driver.put_from(1, &[(ROOM, 10, false)]);
    for (now, used) in [
        (0, None),
        (1_000, Some((0, 0))),
        (1_999, None),
        (2_000, Some((1, 0))),
    ] {
        host.set_time(now);
        driver.run();
        assert_eq!(driver.used(), used, "{now}");
    }
    assert_eq!(told.statistics_updates.get(), 2);
}

#[test]
fn other_interval_counts_from_its_change_on() {
    let (mut driver, host, _) = with_statistics();
    put_statistics(&mut driver, &[(4, 1)], &[]);
    driver.run();
    host.set_time(400);
    let set = |driver: &Balloons, interval: u64| {
        driver
            .engine
            .change(|update| update.statistics = Some(Nanos::new(interval)));
    };
    set(&driver, 5_000);
    assert_eq!(driver.run(), Next::After(Nanos::new(5_000)));
    set(&driver, 100);
    assert_eq!(driver.run(), Next::After(Nanos::new(100)));
    // The same is no change.
    host.set_time(450);
    set(&driver, 100);
    assert_eq!(driver.run(), Next::After(Nanos::new(50)));
    host.set_time(500);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
    // It says nothing of a size, which stays.
    assert_eq!(driver.read(TARGET), 0);
    // Where there are none, none are asked for.
    let (mut driver, ..) = ready(Options::default());
    set(&driver, 1);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.offered() & STATISTICS, 0);
}

#[test]
fn reset_gives_up_the_buffer_and_forgets_what_was_told() {
    let (mut driver, _, told) = with_statistics();
    put_statistics(&mut driver, &[(4, 1)], &[]);
    driver.run();
    assert_eq!(told.statistic(4), Some(1));
    driver.reset();
    assert_eq!(told.statistic(4), None);
    assert_eq!(driver.run(), Next::Notification);
    driver.negotiate(STATISTICS | VERSION_1);
    driver.queue = 2;
    driver.set_up_queue();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    put_statistics(&mut driver, &[(4, 2)], &[]);
    assert_eq!(driver.run(), Next::After(Nanos::new(1_000)));
    assert_eq!(told.statistic(4), Some(2));
}

#[test]
fn pause_stops_inflation_between_two_requests() {
    let (mut driver, host, _) = ready(Options::default());
    put_numbers(&mut driver, &[1]);
    let hold: Hold = driver.engine.hold();
    let engine = driver.engine.clone();
    let thread = std::thread::spawn(move || engine.run());
    // Whether it has begun or not, nothing is served.
    assert_eq!(host.given(), []);
    assert_eq!(driver.used(), None);
    drop(hold);
    thread.join().unwrap();
    assert_eq!(host.given(), [(1, 1)]);
}

fn report(driver: &mut Balloons, queue: usize, buffers: &[(u64, u32, bool)]) {
    driver.queue = queue;
    driver.put(buffers);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, 0)));
}

#[test]
fn freed_pages_are_given_back_as_far_as_they_are_whole() {
    let (mut driver, host, told) = ready(Options {
        reporting: true,
        ..Options::default()
    });
    for (address, len, given) in [
        (0x4_0000, 0x2_0000, &[(0x40, 0x20)][..]),
        (0x4_0001, 0x2000, &[(0x41, 1)]),
        (0x4_0fff, 0x2001, &[(0x41, 2)]),
        (0x4_0000, 0xfff, &[]),
        (0x4_0800, 0x1000, &[]),
        (HOLE - 0x1000, 0x1000, &[(u64::from(LAST_LOW), 1)]),
        (HIGH, 0x1_0000, &[(u64::from(FIRST_HIGH), 16)]),
        (0, 0, &[]),
    ] {
        let before = told.reported.get();
        report(&mut driver, 2, &[(address, len, true)]);
        assert_eq!(host.given(), given, "{address:#x} {len:#x}");
        let bytes: u64 = given.iter().map(|(_, pages)| pages * PAGE).sum();
        assert_eq!(told.reported.get(), before + bytes);
    }
    // Several at once, of which the driver's own are not the device's to take.
    report(
        &mut driver,
        2,
        &[
            (0x5_0000, 0x1000, false),
            (0x6_0000, 0x1000, true),
            (0x8_0000, 0x2000, true),
        ],
    );
    assert_eq!(host.given(), [(0x60, 1), (0x80, 2)]);
    assert_eq!((told.reports.get(), told.report_failures.get()), (9, 0));
}

#[test]
fn freed_pages_that_are_to_keep_a_pattern_are_kept() {
    let (mut driver, host, told) = ready(Options {
        reporting: true,
        ..Options::default()
    });
    for (poison, given) in [(0xaaaa_aaaa, 0), (0, 1), (1, 0)] {
        driver.write(POISON_VALUE, poison);
        report(&mut driver, 2, &[(0x4_0000, 0x1000, true)]);
        assert_eq!(host.given().len(), given, "{poison:#x}");
    }
    // The driver names them in the balloon because it wants nothing of them.
    inflate(&mut driver, &[1]);
    assert_eq!(host.given(), [(1, 1)]);
    assert_eq!(told.reported.get(), 0x1000);
    // It is the driver's word only where it takes the feature.
    driver.reset();
    driver.negotiate(REPORTING | VERSION_1);
    driver.queue = 2;
    driver.set_up_queue();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.write(POISON_VALUE, 1);
    report(&mut driver, 2, &[(0x4_0000, 0x1000, true)]);
    assert_eq!(host.given().len(), 1);
}

#[test]
fn reports_are_found_in_the_queue_of_either_number() {
    let with = |statistics: bool| {
        ready(Options {
            statistics: statistics.then(|| Nanos::new(1_000)),
            reporting: true,
            ..Options::default()
        })
    };
    // (statistics, the queue by Linux's count or by the specification's)
    for (statistics, queue) in [(false, 2), (false, 4), (true, 3), (true, 4)] {
        let (mut driver, host, _) = with(statistics);
        report(&mut driver, queue, &[(0x4_0000, 0x1000, true)]);
        assert_eq!(host.given(), [(0x40, 1)], "{statistics} {queue}");
    }
}

#[test]
fn request_in_a_queue_for_nothing_wants_a_reset() {
    for (options, queue) in [
        (Options::default(), 2),
        (Options::default(), 4),
        (
            Options {
                statistics: Some(Nanos::new(1)),
                ..Options::default()
            },
            3,
        ),
    ] {
        let (mut driver, host, _) = ready(options);
        driver.queue = queue;
        driver.put(&[(0x4_0000, 0x1000, true)]);
        driver.run();
        assert_eq!(driver.used(), None);
        assert_ne!(driver.read(STATUS) & NEEDS_RESET, 0);
        assert_eq!(host.given(), []);
        driver.reset();
        driver.negotiate(VERSION_1);
        driver.queue = 0;
        driver.set_up_queue();
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        inflate(&mut driver, &[1]);
        assert_eq!(host.given(), [(1, 1)]);
    }
}

/// A page's number: of memory, of its borders, or any.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..=LAST_LOW + 2,
        2 => FIRST_HIGH - 2..=LAST_HIGH + 2,
        1 => any::<u32>(),
    ]
}

proptest! {
    /// Whatever is named, in however many requests and buffers: the pages of memory are given back, each once, in
    /// ranges that could not be longer.
    #[test]
    fn pages_given_back_are_those_named(
        requests in prop::collection::vec(prop::collection::vec(number(), 0..300), 1..4)
    ) {
        let (mut driver, host, told) = ready(Options::default());
        let is_memory =
            |page: &u32| *page <= LAST_LOW || (FIRST_HIGH..=LAST_HIGH).contains(page);
        let mut failures = 0;
        for numbers in &requests {
            inflate(&mut driver, numbers);
            let known: BTreeSet<u64> = (numbers.iter().copied().filter(is_memory))
                .map(u64::from)
                .collect();
            let given = host.given();
            let pages: Vec<u64> = (given.iter())
                .flat_map(|(first, count)| *first..first + count)
                .collect();
            prop_assert!(pages.iter().eq(known.iter()), "{given:?} for {known:?}");
            let apart = given.windows(2).all(|two| two[0].0 + two[0].1 < two[1].0);
            prop_assert!(apart, "{given:?} could be joined");
            failures += u64::from(!numbers.iter().all(is_memory));
        }
        prop_assert_eq!(told.failures.get(), failures);
    }
}
