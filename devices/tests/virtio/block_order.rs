//! A disk with many requests under way, which the host ends in any order.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use devices::rate_limiter::RateLimiter;
use devices::virtio::block::{Access, Block, Cache, DEPTH, Image, SECTOR, Serial};
use proptest::prelude::*;

use crate::driver::*;
use crate::shuffled::{Choice, Seen, Shuffled};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const WRITE_ZEROES: u32 = 13;

const F_FLUSH: u64 = 1 << 9;
const F_WRITE_ZEROES: u64 = 1 << 14;

const SECTORS: u64 = 256;
/// The tables of the requests, then their headers and statuses, then their data of a sector each.
const TABLES: u64 = ROOM;
const HEADERS: u64 = ROOM + 0x1_0000;
const DATA: u64 = ROOM + 0x2_0000;

struct Disk {
    file: tempfile::NamedTempFile,
    driver: Driver<Block>,
    seen: Arc<Mutex<Seen>>,
}

impl Disk {
    fn new(features: u64, seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        Self::with(features, Box::new(move |limit| chance.u64(..limit)))
    }

    fn with(features: u64, choose: Choice) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for sector in 0..SECTORS {
            file.write_all(&[sector as u8; SECTOR as usize])
                .expect("room");
        }
        let image = Image::open(file.path(), Access::ReadWrite).expect("an image");
        let memory = memory();
        let ring = Shuffled::new(&image, memory.clone(), choose);
        let seen = ring.seen();
        let device = Block::new(
            image,
            Serial::new("disk"),
            Cache::Writeback,
            RateLimiter::unlimited(),
            Box::new(|operation, error| panic!("{operation}: {error}")),
        );
        let device = device.with_ring(Box::new(ring));
        let driver = Driver::ready_with(memory, device, features | INDIRECT, 256);
        Self { file, driver, seen }
    }

    /// Serves what there is. Nobody would wake the engine for a transfer that the host has not got.
    fn run(&self) {
        self.driver.run();
        assert_eq!(self.seen.lock().expect("whole").noted, 0);
    }

    fn under_way(&self) -> usize {
        self.seen.lock().expect("whole").under_way.len()
    }

    /// Makes a request available by descriptor `number`, through a table of its own, with a sector of data.
    fn ask(&mut self, number: u16, kind: u32, sector: u64) {
        let place = u64::from(number);
        let header = HEADERS + place * 0x20;
        let table = TABLES + place * 0x40;
        self.driver.store(header, kind);
        self.driver.store(header + 8, sector);
        self.driver.store(header + 0x10, 0x5a_u8);
        let data = if kind == IN { WRITE | NEXT } else { NEXT };
        let parts = match kind {
            FLUSH => vec![(header, 16, NEXT, 1), (header + 0x10, 1, WRITE, 0)],
            _ => vec![
                (header, 16, NEXT, 1),
                (DATA + place * SECTOR, SECTOR as u32, data, 2),
                (header + 0x10, 1, WRITE, 0),
            ],
        };
        for (index, part) in (0..).zip(&parts) {
            self.driver.describe_at(table, index, *part);
        }
        let len = 16 * parts.len() as u32;
        self.driver
            .describe_at(DESCRIPTORS, number, (table, len, TABLE, 0));
        self.driver.make_available(number);
    }

    fn status(&self, number: u16) -> u8 {
        self.driver.load(HEADERS + u64::from(number) * 0x20 + 0x10)
    }

    fn data(&self, number: u16) -> Vec<u8> {
        self.driver
            .bytes(DATA + u64::from(number) * SECTOR, SECTOR as usize)
    }

    /// The numbers of the requests that the device is done with since they were asked for last.
    fn done(&mut self) -> Vec<u16> {
        std::iter::from_fn(|| self.driver.used())
            .map(|(head, _)| head as u16)
            .collect()
    }
}

#[test]
fn more_requests_than_there_are_slots_are_all_served() {
    for seed in 0..8 {
        let mut disk = Disk::new(0, seed);
        for number in 0..250 {
            disk.ask(number, IN, u64::from(number));
        }
        disk.run();
        let mut done = disk.done();
        while done.len() < 250 {
            drop(disk.driver.engine.hold());
            disk.run();
            done.extend(disk.done());
        }
        assert!(!done.is_sorted(), "seed {seed}: no order by chance");
        done.sort_unstable();
        assert_eq!(done, (0..250).collect::<Vec<_>>());
        for number in 0..250 {
            assert_eq!(disk.status(number), 0);
            assert_eq!(disk.data(number), [number as u8; SECTOR as usize]);
        }
        assert_eq!(disk.seen.lock().expect("whole").most, usize::from(DEPTH));
    }
}

#[test]
fn reset_waits_for_requests_under_way_and_nothing_is_written_afterwards() {
    for seed in 0..32 {
        let mut disk = Disk::new(0, seed);
        for number in 0..100 {
            disk.ask(number, IN, u64::from(number));
        }
        disk.run();
        assert!(disk.under_way() > 0, "seed {seed}: all at once");
        disk.driver.reset();
        assert_eq!(disk.under_way(), 0, "seed {seed}");
        let room = (HOLE - ROOM) as usize;
        disk.driver.fill(ROOM, &vec![0xee; room]);
        for _ in 0..3 {
            disk.run();
        }
        assert_eq!(
            disk.driver.bytes(ROOM, room),
            vec![0xee; room],
            "seed {seed}"
        );
        assert_eq!(disk.driver.used(), None);

        disk.driver.begin(INDIRECT);
        disk.ask(7, IN, 9);
        disk.driver.run_out();
        assert_eq!(disk.done(), [7]);
        assert_eq!(disk.data(7), [9; SECTOR as usize]);
    }
}

#[test]
fn hold_gives_back_what_was_under_way_and_begins_nothing() {
    for seed in 0..16 {
        let mut disk = Disk::new(0, seed);
        for number in 0..50 {
            disk.ask(number, OUT, u64::from(number));
        }
        disk.run();
        let hold = disk.driver.engine.hold();
        assert_eq!(disk.under_way(), 0, "seed {seed}");
        assert_eq!(disk.done().len(), 50, "seed {seed}");
        disk.ask(60, IN, 0);
        assert_eq!((disk.under_way(), disk.done().len()), (0, 0));
        drop(hold);
        disk.driver.run_out();
        assert_eq!(disk.done(), [60]);
    }
}

#[test]
fn hold_waits_for_the_thread_that_runs_the_engine() {
    let mut disk = Disk::new(0, 3);
    let (bell, rings) = channel::<()>();
    let bell = Mutex::new(bell);
    disk.driver.engine.run_by(Box::new(move || {
        let _ = bell.lock().expect("whole").send(());
    }));
    for number in 0..50 {
        disk.ask(number, IN, u64::from(number));
    }
    disk.run();
    assert!(disk.under_way() > 0);
    let engine = disk.driver.engine.clone();
    let runner = std::thread::spawn(move || {
        rings.recv().expect("a bell");
        // Until the hold is over.
        engine.run();
        engine.leave(true);
    });
    let hold = disk.driver.engine.hold();
    assert_eq!(disk.under_way(), 0);
    assert_eq!(disk.done().len(), 50);
    disk.ask(60, IN, 0);
    drop(hold);
    runner.join().expect("no panic");
    assert_eq!(disk.done(), [60]);
}

#[test]
fn hold_waits_no_more_for_a_thread_that_has_ended() {
    let mut disk = Disk::new(0, 3);
    disk.driver.engine.run_by(Box::new(|| {}));
    for number in 0..50 {
        disk.ask(number, IN, u64::from(number));
    }
    disk.run();
    assert!(disk.under_way() > 0);
    let engine = disk.driver.engine.clone();
    let holder = std::thread::spawn(move || drop(engine.hold()));
    disk.driver.engine.leave(false);
    holder.join().expect("held");
    // One that ends in order leaves nothing behind.
    disk.driver.engine.leave(true);
    assert_eq!(disk.under_way(), 0);
}

#[test]
fn other_image_comes_after_what_is_under_way() {
    for seed in 0..16 {
        let mut disk = Disk::new(0, seed);
        let mut other = tempfile::NamedTempFile::new().expect("a file");
        other.write_all(&[0xcc; 64 * 512]).expect("room");
        let image = Image::open(other.path(), Access::ReadWrite).expect("an image");
        for number in 0..40 {
            disk.ask(number, IN, u64::from(number));
        }
        disk.run();
        disk.driver
            .engine
            .change(|update| update.image = Some(image));
        disk.ask(40, IN, 5);
        disk.driver.run_out();
        assert_eq!(disk.done().len(), 41);
        // That all of the first came from the first, and the last from the other.
        for number in 0..40 {
            assert_eq!(
                disk.data(number),
                [number as u8; SECTOR as usize],
                "seed {seed}"
            );
        }
        assert_eq!(disk.data(40), [0xcc; SECTOR as usize], "seed {seed}");
    }
}

#[test]
fn violation_beside_requests_under_way_leaves_none_behind() {
    for seed in 0..16 {
        let mut disk = Disk::new(0, seed);
        for number in 0..20 {
            disk.ask(number, IN, u64::from(number));
        }
        // A buffer in the hole, after which nothing is served.
        disk.driver.describe_at(DESCRIPTORS, 100, (HOLE, 16, 0, 0));
        disk.driver.make_available(100);
        disk.run();
        assert_eq!(disk.driver.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
        disk.driver.reset();
        assert_eq!(disk.under_way(), 0);
        disk.driver.begin(INDIRECT);
        disk.ask(0, IN, 3);
        disk.driver.run_out();
        assert_eq!(disk.done(), [0]);
    }
}

#[test]
fn request_that_is_done_in_parts_and_interrupted_is_done() {
    for kind in [IN, OUT] {
        // At once, one byte after the other, every eighth of them interrupted.
        let mut turn = 0_u64;
        let choose = move |limit| {
            turn += 1;
            u64::from(limit == 8 && !turn.is_multiple_of(8))
        };
        let mut disk = Disk::with(0, Box::new(choose));
        disk.driver.fill(DATA, &[0xab; SECTOR as usize]);
        disk.ask(0, kind, 3);
        disk.run();
        while disk.under_way() > 0 {
            disk.run();
        }
        assert_eq!((disk.done(), disk.status(0)), (vec![0], 0));
        let mut on_disk = [0; SECTOR as usize];
        let file = disk.file.as_file();
        file.read_exact_at(&mut on_disk, 3 * SECTOR)
            .expect("a file");
        assert_eq!(disk.data(0), on_disk, "{kind}");
    }
}

#[test]
fn chain_that_is_made_available_twice_is_used_twice() {
    let mut disk = Disk::new(0, 1);
    for _ in 0..200 {
        disk.ask(0, IN, 4);
    }
    let mut done = 0;
    while done < 200 {
        disk.driver.run_out();
        done += disk.done().len();
    }
    assert_eq!((done, disk.data(0)), (200, vec![4; SECTOR as usize]));
}

/// A request of one sector, and its sector.
#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    byte: u8,
}

fn asks() -> impl Strategy<Value = Vec<Vec<Ask>>> {
    let kind = prop_oneof![
        Just(IN),
        Just(OUT),
        Just(OUT),
        Just(FLUSH),
        Just(WRITE_ZEROES)
    ];
    // Requests at once have sectors of their own: of two to one sector, either may be the first.
    let ask =
        (kind, 0..6_u64, 1..=u8::MAX).prop_map(|(kind, sector, byte)| Ask { kind, sector, byte });
    let at_once = proptest::collection::vec(ask, 1..12).prop_map(|asks| {
        (0..)
            .zip(asks)
            .map(|(place, ask)| Ask {
                sector: ask.sector + 6 * place,
                ..ask
            })
            .collect()
    });
    proptest::collection::vec(at_once, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the order in which the host ends them, requests have the statuses, the data and the image that they
    /// have one after the other; and what had ended before a flush was sent is durable once that has ended.
    #[test]
    fn order_of_ends_changes_neither_image_nor_answers_and_flushes_cover_what_had_ended(
        batches in asks(),
        seed in any::<u64>(),
        flushes in any::<bool>(),
    ) {
        let features = if flushes { F_FLUSH } else { 0 };
        let mut disk = Disk::new(features | F_WRITE_ZEROES, seed);
        let mut image: Vec<u8> = (0..SECTORS).map(|sector| sector as u8).collect();
        // Of the sectors that were written and whose writes had ended: what each holds.
        let mut ended: BTreeMap<u64, u8> = BTreeMap::new();
        for batch in batches {
            let before = ended.clone();
            for (number, ask) in (0..).zip(&batch) {
                let data = DATA + u64::from(number) * SECTOR;
                match ask.kind {
                    OUT => disk.driver.fill(data, &[ask.byte; SECTOR as usize]),
                    WRITE_ZEROES => {
                        disk.driver.fill(data, &[0; SECTOR as usize]);
                        disk.driver.store(data, ask.sector);
                        disk.driver.store(data + 8, 1_u32);
                    }
                    _ => {}
                }
                disk.ask(number, ask.kind, ask.sector);
                if ask.kind == WRITE_ZEROES {
                    // The request's structure has 16 bytes.
                    disk.driver.store(TABLES + u64::from(number) * 0x40 + 16 + 8, 16_u32);
                }
            }
            disk.driver.run_out();
            let mut done = disk.done();
            done.sort_unstable();
            prop_assert_eq!(done.len(), batch.len());
            for (number, ask) in (0..).zip(&batch) {
                let place = ask.sector as usize;
                let status = disk.status(number);
                match ask.kind {
                    IN => {
                        prop_assert_eq!(status, 0);
                        prop_assert_eq!(disk.data(number), vec![image[place]; SECTOR as usize]);
                    }
                    FLUSH => prop_assert_eq!(status, if flushes { 0 } else { 2 }),
                    kind => {
                        prop_assert_eq!(status, 0);
                        image[place] = if kind == OUT { ask.byte } else { 0 };
                        ended.insert(ask.sector, image[place]);
                    }
                }
            }
            let mut on_disk = vec![0; (SECTORS * SECTOR) as usize];
            disk.file.as_file().read_exact_at(&mut on_disk, 0).expect("a file");
            for (sector, byte) in image.iter().enumerate() {
                let at = sector * SECTOR as usize;
                prop_assert_eq!(&on_disk[at..at + SECTOR as usize], &[*byte; SECTOR as usize][..]);
            }
            // Without flushes each write is durable with its end.
            let flushed = flushes && batch.iter().any(|ask| ask.kind == FLUSH);
            let durable = disk.seen.lock().expect("whole").durable.clone();
            let holds = |(sector, byte): (&u64, &u8)| {
                let at = (sector * SECTOR) as usize;
                durable[at..at + SECTOR as usize] == [*byte; SECTOR as usize]
            };
            if flushed {
                let rewritten = |sector: &u64| batch.iter().any(|ask| ask.sector == *sector && ask.kind != IN);
                prop_assert!(before.iter().filter(|(sector, _)| !rewritten(sector)).all(holds));
            } else if !flushes {
                prop_assert!(ended.iter().all(holds));
            }
        }
    }
}
