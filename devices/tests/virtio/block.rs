//! The disk.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use devices::rate_limiter::{Bucket, RateLimiter};
use devices::virtio::Next;
use devices::virtio::block::{
    Access, Block, Cache, Counts, Image, ImageError, Operation, SECTOR, Serial,
};
use tsc::Nanos;

use crate::driver::*;
use crate::rings::{self, Carrier};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const HEADER: u64 = ROOM;
const STATUS_BYTE: u64 = ROOM + 0x100;
const DATA: u64 = ROOM + 0x1000;

const SECTORS: u64 = 64;

/// An image whose sectors hold their numbers.
fn image_file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    file
}

type Told = Arc<Mutex<Vec<(Operation, String)>>>;

struct Disk {
    file: tempfile::NamedTempFile,
    driver: Driver<Block>,
    told: Told,
    counts: Arc<Counts>,
    /// What whoever changes the image later keeps of it.
    kept: Image,
}

impl Disk {
    fn new(carrier: &Carrier, access: Access, cache: Cache, features: u64) -> Self {
        Self::limited(carrier, access, cache, features, RateLimiter::unlimited())
    }

    fn limited(
        carrier: &Carrier,
        access: Access,
        cache: Cache,
        features: u64,
        limiter: RateLimiter,
    ) -> Self {
        let file = image_file();
        let image = Image::open(file.path(), access).unwrap();
        let image = image.for_ring(file.path()).unwrap();
        let kept = image.double().unwrap();
        let memory = memory();
        let ring = carrier(&image, &memory);
        let told = Told::default();
        let log = told.clone();
        let mut device = Block::new(
            image,
            Serial::new("rootfs"),
            cache,
            limiter,
            Box::new(move |operation, error| {
                log.lock().unwrap().push((operation, error.to_string()));
            }),
        );
        if let Some(ring) = ring {
            device = device.with_ring(ring);
        }
        let counts = device.counts();
        let driver = Driver::ready_in(memory, device, features);
        Self {
            file,
            driver,
            told,
            counts,
            kept,
        }
    }

    fn usual(carrier: &Carrier) -> Self {
        let all = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        Self::new(carrier, Access::ReadWrite, Cache::Writeback, all)
    }

    /// Makes a request available whose data are in `buffers`.
    fn ask(&mut self, kind: u32, sector: u64, buffers: &[(u64, u32, bool)]) {
        self.driver.store(HEADER, kind);
        self.driver.store(HEADER + 4, 0_u32);
        self.driver.store(HEADER + 8, sector);
        self.driver.store(STATUS_BYTE, 0x5a_u8);
        let mut all = vec![(HEADER, 16, false)];
        all.extend(buffers);
        all.push((STATUS_BYTE, 1, true));
        self.driver.put(&all);
    }

    /// Has a request served: its status, and how many bytes were written.
    fn request(&mut self, kind: u32, sector: u64, buffers: &[(u64, u32, bool)]) -> (u8, u32) {
        self.ask(kind, sector, buffers);
        assert_eq!(self.driver.run_out(), Next::Notification);
        let (head, written) = self.driver.used().expect("served");
        assert_eq!(head, 0);
        (self.driver.load(STATUS_BYTE), written)
    }

    fn on_disk(&self, sector: u64) -> [u8; SECTOR as usize] {
        let mut data = [0; SECTOR as usize];
        let file = self.file.as_file();
        file.read_exact_at(&mut data, sector * SECTOR).unwrap();
        data
    }
}

#[test]
fn reads_and_writes_reach_their_sectors_across_buffers() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        // 3 sectors in two buffers whose border is within a sector, above the hole too
        let buffers = [(DATA, 700, true), (HIGH, 836, true)];
        assert_eq!(disk.request(IN, 5, &buffers), (OK, 1537));
        let mut read = disk.driver.bytes(DATA, 700);
        read.extend(disk.driver.bytes(HIGH, 836));
        let expected: Vec<u8> = (5..8).flat_map(|n| [n; SECTOR as usize]).collect();
        assert_eq!(read, expected);

        disk.driver.fill(DATA, &[0xaa; 700]);
        disk.driver.fill(HIGH, &[0xbb; 324]);
        let buffers = [(DATA, 700, false), (HIGH, 324, false)];
        assert_eq!(disk.request(OUT, 62, &buffers), (OK, 1));
        assert_eq!(disk.on_disk(61), [61; SECTOR as usize]);
        assert_eq!(disk.on_disk(62), [0xaa; SECTOR as usize]);
        let mut last = [0xbb; SECTOR as usize];
        last[..188].fill(0xaa);
        assert_eq!(disk.on_disk(63), last);
        assert_eq!(disk.request(FLUSH, 0, &[]), (OK, 1));
        // One request in a row after the other, and one that is not.
        for sector in [3, 4, 9] {
            assert_eq!(disk.request(IN, sector, &[(DATA, 512, true)]), (OK, 513));
            assert_eq!(disk.driver.bytes(DATA, 512), [sector as u8; 512]);
        }
        assert!(disk.told.lock().unwrap().is_empty());
    });
}

#[test]
fn header_data_and_status_may_be_framed_as_the_driver_likes() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        disk.driver.store(HEADER, IN);
        disk.driver.store(HEADER + 8, 2_u64);
        let pieces = [
            (HEADER, 3, false),
            (HEADER + 3, 13, false),
            (DATA, 511, true),
            (DATA + 511, 2, true),
        ];
        disk.driver.put(&pieces);
        disk.driver.run_out();
        assert_eq!(disk.driver.used(), Some((0, 513)));
        assert_eq!(disk.driver.bytes(DATA, 512), [2; 512]);
        assert_eq!(disk.driver.bytes(DATA + 512, 1), [OK]);
    });
}

#[test]
fn requests_beyond_the_disk_or_of_broken_sectors_are_errors() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        // (kind, sector, length)
        let rows = [
            (IN, SECTORS, 512),
            (IN, SECTORS - 1, 1024),
            (IN, u64::MAX, 512),
            (IN, u64::MAX / 512 + 1, 512),
            (IN, 0, 511),
            (IN, 0, 513),
            (OUT, SECTORS, 512),
            (OUT, SECTORS - 1, 1024),
            (OUT, 0, 100),
        ];
        for (kind, sector, len) in rows {
            let buffers = [(DATA, len, kind == IN)];
            let written = u32::from(kind == OUT);
            let answer = disk.request(kind, sector, &buffers);
            assert_eq!(answer, (IOERR, written), "{kind} {sector:#x} {len}");
        }
        assert_eq!(
            disk.request(IN, SECTORS - 1, &[(DATA, 512, true)]),
            (OK, 513)
        );
        // No host refused anything.
        assert!(disk.told.lock().unwrap().is_empty());
    });
}

#[test]
fn identification_is_the_name_and_needs_its_room() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        assert_eq!(disk.request(GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
        assert_eq!(
            disk.driver.bytes(DATA, 20),
            *b"rootfs\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(disk.request(GET_ID, 0, &[(DATA, 19, true)]), (IOERR, 0));
        assert_eq!(
            Serial::new("a name of many letters"),
            Serial::new("a name of many lette")
        );
    });
}

#[test]
fn unknown_requests_are_unsupported() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        for kind in [2, 3, 14, 15, 0x8000_0000, u32::MAX] {
            assert_eq!(disk.request(kind, 0, &[]), (UNSUPP, 1), "{kind}");
        }
        // what was not negotiated is not known either
        let mut disk = Disk::new(carrier, Access::ReadWrite, Cache::Writeback, 0);
        for kind in [FLUSH, DISCARD, WRITE_ZEROES] {
            assert_eq!(disk.request(kind, 0, &[]), (UNSUPP, 1), "{kind}");
        }
    });
}

#[test]
fn requests_without_a_header_or_a_status_do_not_pass() {
    rings::each(|carrier| {
        // A header that is too short has an answer.
        let mut disk = Disk::usual(carrier);
        disk.driver
            .put(&[(HEADER, 15, false), (STATUS_BYTE, 1, true)]);
        disk.driver.run_out();
        assert_eq!(disk.driver.used(), Some((0, 1)));
        assert_eq!(disk.driver.load::<u8>(STATUS_BYTE), IOERR);
        // Without a place for the status there is none.
        disk.driver.put(&[(HEADER, 16, false), (DATA, 512, false)]);
        disk.driver.run_out();
        assert_eq!(disk.driver.used(), None);
        assert_eq!(disk.driver.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
    });
}

#[test]
fn read_only_disk_refuses_to_be_written() {
    rings::each(|carrier| {
        let features = F_RO;
        let mut disk = Disk::new(carrier, Access::ReadOnly, Cache::Writeback, features);
        let offered = disk.driver.offered();
        assert_eq!(offered & F_RO, F_RO);
        assert_eq!(offered & (F_DISCARD | F_WRITE_ZEROES), 0);
        assert_eq!(disk.request(OUT, 0, &[(DATA, 512, false)]), (IOERR, 1));
        assert_eq!(disk.request(DISCARD, 0, &[(DATA, 16, false)]), (UNSUPP, 1));
        assert_eq!(disk.on_disk(0), [0; SECTOR as usize]);
        assert_eq!(disk.request(IN, 1, &[(DATA, 512, true)]), (OK, 513));
        // whatever the driver took of what was on offer
        let mut disk = Disk::new(carrier, Access::ReadOnly, Cache::Unsafe, 0);
        disk.driver.fill(DATA, &[1; 512]);
        assert_eq!(disk.request(OUT, 0, &[(DATA, 512, false)]), (IOERR, 1));
        assert_eq!(disk.on_disk(0), [0; SECTOR as usize]);
    });
}

#[test]
fn flush_is_on_offer_with_writeback_alone() {
    rings::each(|carrier| {
        for (cache, offered) in [(Cache::Unsafe, 0), (Cache::Writeback, F_FLUSH)] {
            let mut disk = Disk::new(carrier, Access::ReadWrite, cache, 0);
            assert_eq!(disk.driver.offered() & F_FLUSH, offered);
            assert_eq!(disk.driver.offered() & F_RO, 0);
        }
    });
}

#[test]
fn zeros_are_written_and_discarded_within_the_disk() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        let mut zero = |kind, sector: u64, sectors: u32, flags: u32| {
            disk.driver.store(DATA, sector);
            disk.driver.store(DATA + 8, sectors);
            disk.driver.store(DATA + 12, flags);
            disk.request(kind, 0, &[(DATA, 16, false)]).0
        };
        assert_eq!(zero(WRITE_ZEROES, 3, 1, 0), OK);
        assert_eq!(zero(WRITE_ZEROES, 5, 2, 1), OK);
        assert_eq!(zero(DISCARD, 8, 8, 0), OK);
        assert_eq!(zero(WRITE_ZEROES, 0, 0, 0), OK);
        assert_eq!(zero(WRITE_ZEROES, 63, 2, 0), IOERR);
        assert_eq!(zero(WRITE_ZEROES, u64::MAX, 1, 0), IOERR);
        assert_eq!(zero(WRITE_ZEROES, 0, u32::MAX, 0), IOERR);
        assert_eq!(zero(WRITE_ZEROES, 0, 1, 2), UNSUPP);
        assert_eq!(zero(DISCARD, 0, 1, 1), UNSUPP);
        // a structure that is too short, and two of them
        assert_eq!(disk.request(DISCARD, 0, &[(DATA, 15, false)]).0, IOERR);
        assert_eq!(disk.request(DISCARD, 0, &[(DATA, 32, false)]).0, IOERR);
        for sector in 0..SECTORS {
            let zeroed = matches!(sector, 3 | 5 | 6);
            // Discarded sectors may hold anything.
            if !(8..16).contains(&sector) {
                let expected = if zeroed { 0 } else { sector as u8 };
                assert_eq!(
                    disk.on_disk(sector),
                    [expected; SECTOR as usize],
                    "{sector}"
                );
            }
        }
        assert_eq!(
            disk.file.as_file().metadata().unwrap().len(),
            SECTORS * SECTOR
        );
        // None was the host's fault.
        assert!(disk.told.lock().unwrap().is_empty());
    });
}

#[test]
fn failures_of_the_host_reach_the_guest_each_time_and_the_log_once() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        // Somebody cuts the image short.
        disk.file.as_file().set_len(10 * SECTOR).unwrap();
        for _ in 0..3 {
            assert_eq!(disk.request(IN, 20, &[(DATA, 512, true)]), (IOERR, 0));
        }
        // half of it is there
        assert_eq!(disk.request(IN, 9, &[(DATA, 1024, true)]), (IOERR, 0));
        // The others go on.
        assert_eq!(disk.request(IN, 9, &[(DATA, 512, true)]), (OK, 513));
        let told = disk.told.lock().unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, Operation::Read);
        assert!(
            told[0].1.contains("whole buffer") || told[0].1.contains("shorter"),
            "{told:?}"
        );
    });
}

#[test]
fn disk_counts_what_was_carried_out_and_what_was_not() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        for (kind, sector, len, writable, status) in [
            (IN, 0, 1024, true, OK),
            (IN, 5, 512, true, OK),
            (OUT, 7, 512, false, OK),
            (FLUSH, 0, 0, false, OK),
            (GET_ID, 0, 20, true, OK),
            // Beyond the end, of half a sector, and of no kind.
            (OUT, SECTORS, 512, false, IOERR),
            (IN, 0, 100, true, IOERR),
            (99, 0, 512, true, UNSUPP),
        ] {
            let buffers = [(DATA, len, writable)];
            let buffers = if len == 0 { &[][..] } else { &buffers };
            assert_eq!(disk.request(kind, sector, buffers).0, status, "{kind}");
        }
        disk.file.as_file().set_len(10 * SECTOR).unwrap();
        assert_eq!(disk.request(IN, 20, &[(DATA, 512, true)]), (IOERR, 0));
        disk.driver
            .put(&[(HEADER, 15, false), (STATUS_BYTE, 1, true)]);
        disk.driver.run_out();
        let (read, written) = (&disk.counts.read, &disk.counts.written);
        let counts = [
            (read.requests.get(), 2),
            (read.bytes.get(), 1536),
            (written.requests.get(), 1),
            (written.bytes.get(), 512),
            (disk.counts.flushes.get(), 1),
            (disk.counts.failures.get(), 1),
            (disk.counts.malformed.get(), 4),
            (disk.counts.throttled.get(), 0),
            (disk.counts.changes.get(), 0),
        ];
        for (at, (found, wanted)) in counts.into_iter().enumerate() {
            assert_eq!(found, wanted, "{at}");
        }
    });
}

#[test]
fn limit_counts_bytes_and_requests() {
    rings::each(|carrier| {
        let bucket = |size| Some(Bucket::new(size, 0, Nanos::new(1_000)).unwrap());
        let still = || Box::new(|| Nanos::ZERO);
        // (bytes, requests, served)
        for (bytes, requests, served) in [
            (bucket(1024), None, 2),
            (None, bucket(3), 3),
            (bucket(1 << 20), bucket(1), 1),
        ] {
            let limiter = RateLimiter::new(bytes, requests, still());
            let mut disk = Disk::limited(carrier, Access::ReadWrite, Cache::Unsafe, 0, limiter);
            for _ in 0..4 {
                disk.ask(IN, 0, &[(DATA, 512, true)]);
            }
            assert!(matches!(disk.driver.run_out(), Next::After(_)));
            assert!(disk.counts.throttled.get() > 0);
            let count = std::iter::from_fn(|| disk.driver.used()).count();
            assert_eq!(count, served);
            disk.driver.engine.change(|update| {
                update.bandwidth = Some(None);
                update.operations = Some(None);
            });
            assert_eq!(disk.driver.run_out(), Next::Notification);
            let count = std::iter::from_fn(|| disk.driver.used()).count();
            assert_eq!(count, 4 - served);
        }
    });
}

#[test]
fn image_can_be_changed_and_tells_its_new_size() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        assert_eq!(disk.driver.read(CONFIG), SECTORS as u32);
        let other = image_file();
        other.as_file().set_len(SECTOR * 100).unwrap();
        let image = Image::open(other.path(), Access::ReadWrite).unwrap();
        let image = image.for_ring(other.path()).unwrap();
        disk.driver
            .engine
            .change(|update| update.image = Some(image));
        disk.driver.run_out();
        assert_eq!(disk.driver.read(CONFIG), 100);
        assert_eq!(disk.counts.changes.get(), 1);
        assert_eq!(disk.counts.change_failures.get(), 0);
        assert_eq!(disk.driver.read(INTERRUPT_STATUS) & 2, 2);
        assert_eq!(disk.request(IN, 99, &[(DATA, 512, true)]), (OK, 513));
        // The first is free again, when nobody keeps it.
        drop(disk.kept);
        Image::open(disk.file.path(), Access::ReadWrite).unwrap();
    });
}

#[test]
fn image_in_use_stays_where_it_is_while_its_size_is_looked_at() {
    rings::each(|carrier| {
        let mut disk = Disk::usual(carrier);
        assert_eq!(disk.request(IN, 0, &[(DATA, 512, true)]), (OK, 513));
        // The next request goes on from there.
        disk.kept.again(disk.file.path()).unwrap();
        assert_eq!(disk.request(IN, 1, &[(DATA, 512, true)]), (OK, 513));
        assert_eq!(disk.driver.load::<u8>(DATA), 1);
        disk.kept.double().unwrap();
        for at in (0..512).step_by(8) {
            disk.driver.store(DATA + at, 0x0707_0707_0707_0707_u64);
        }
        assert_eq!(disk.request(OUT, 2, &[(DATA, 512, false)]), (OK, 1));
        assert_eq!(disk.on_disk(2), [7; 512]);
        let length = disk.file.as_file().metadata().unwrap().len();
        assert_eq!(length, SECTORS * SECTOR);
    });
}

#[test]
fn image_has_one_writer_or_any_number_of_readers() {
    let file = image_file();
    let open = |access| Image::open(file.path(), access);
    let readers = [
        open(Access::ReadOnly).unwrap(),
        open(Access::ReadOnly).unwrap(),
    ];
    assert!(matches!(
        open(Access::ReadWrite),
        Err(ImageError::Locked { .. })
    ));
    drop(readers);
    let writer = open(Access::ReadWrite).unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let message = open(access).unwrap_err().to_string();
        let name = file.path().to_str().unwrap();
        assert!(
            message.contains(name) && message.contains("locked"),
            "{message}"
        );
    }
    // The same once more with another size keeps the lock.
    file.as_file().set_len(SECTOR * 3).unwrap();
    assert!(writer.is_at(file.path()));
    let again = writer.again(file.path()).unwrap();
    assert_eq!((writer.sectors(), again.sectors()), (SECTORS, 3));
    drop(writer);
    assert!(open(Access::ReadWrite).is_err());
    drop(again);
    open(Access::ReadWrite).unwrap();
}

#[test]
fn what_is_no_image_is_named_with_the_cure() {
    let small = tempfile::NamedTempFile::new().unwrap();
    small.as_file().set_len(SECTOR - 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let rows: [(&Path, &str); 4] = [
        (&missing, "check its path and permissions"),
        (directory.path(), "is a directory; give a plain file"),
        (
            Path::new("/dev/null"),
            "is a character device, pipe or socket",
        ),
        (small.path(), "has 511 bytes; a disk has at least 512"),
    ];
    for (path, cure) in rows {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let message = Image::open(path, access).unwrap_err().to_string();
            let name = path.to_str().unwrap();
            assert!(
                message.contains(name) && message.contains(cure),
                "{message}"
            );
        }
    }
    // Not changed by the attempts.
    assert_eq!(
        File::open(small.path()).unwrap().metadata().unwrap().len(),
        511
    );
}
