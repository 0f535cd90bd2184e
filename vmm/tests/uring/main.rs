//! Disks by io_uring: what holds for each disk, and what is this ring's own.
#![expect(
    clippy::cast_possible_truncation,
    reason = "a driver writes 64-bit numbers in halves"
)]

#[path = "../../../devices/tests/virtio/block.rs"]
mod block;
#[path = "../../../devices/tests/virtio/driver.rs"]
#[allow(dead_code, reason = "the tests of the devices use all of it")]
mod driver;
mod rings;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use devices::rate_limiter::RateLimiter;
use devices::virtio::block::{Access, Block, Cache, Image, SECTOR, Serial};
use driver::*;
use proptest::prelude::*;
use rings::Carrier;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use vmm::uring::Uring;

const IN: u32 = 0;
const OUT: u32 = 1;

const SECTORS: u64 = 4096;
const HEADERS: u64 = ROOM;
const TABLES: u64 = ROOM + 0x1_0000;
const DATA: u64 = ROOM + 0x2_0000;
/// The room of one request's data.
const LONGEST: u64 = 0x1000;

/// A request: its kind, its sector, and how many sectors in how many pieces.
#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    sectors: u64,
    pieces: u64,
    byte: u8,
}

struct Disk {
    file: tempfile::NamedTempFile,
    driver: Driver<Block>,
}

impl Disk {
    fn new(carrier: Option<&Carrier>) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for sector in 0..SECTORS {
            let bytes = sector.to_le_bytes().repeat(SECTOR as usize / 8);
            file.write_all(&bytes).expect("room");
        }
        let image = Image::open(file.path(), Access::ReadWrite).expect("an image");
        let memory = memory();
        let ring = carrier.and_then(|carrier| carrier(&image, &memory));
        let mut device = Block::new(
            image,
            Serial::new("disk"),
            Cache::Writeback,
            RateLimiter::unlimited(),
            Box::new(|operation, error| panic!("{operation}: {error}")),
        );
        if let Some(ring) = ring {
            device = device.with_ring(ring);
        }
        // VIRTIO_BLK_F_FLUSH, _DISCARD, _WRITE_ZEROES.
        let features = 1 << 9 | 1 << 13 | 1 << 14 | INDIRECT;
        let driver = Driver::ready_with(memory, device, features, 256);
        Self { file, driver }
    }

    fn ask(&mut self, number: u16, ask: &Ask) {
        let place = u64::from(number);
        let header = HEADERS + place * 0x40;
        let (table, data) = (TABLES + place * 0x200, DATA + place * LONGEST);
        self.driver.store(header, ask.kind);
        self.driver.store(header + 8, ask.sector);
        self.driver.store(header + 16, ask.sector);
        self.driver.store(header + 24, ask.sectors as u32);
        self.driver.store(header + 28, 0_u32);
        self.driver.store(header + 0x30, 0x5a_u8);
        let len = ask.sectors * SECTOR;
        let writes = if ask.kind == IN { WRITE } else { 0 };
        if ask.kind == OUT {
            self.driver.fill(data, &vec![ask.byte; len as usize]);
        }
        let mut parts = vec![(
            header,
            if ask.kind > OUT && ask.kind != 4 {
                32
            } else {
                16
            },
            0,
        )];
        if ask.kind <= OUT {
            // Pieces of odd lengths.
            let piece = len / ask.pieces + 1;
            let begins = (0..len).step_by(piece as usize);
            parts.extend(begins.map(|at| (data + at, piece.min(len - at) as u32, writes)));
        }
        parts.push((header + 0x30, 1, WRITE));
        for (index, (address, len, flags)) in (0..).zip(&parts) {
            let more = if usize::from(index) + 1 < parts.len() {
                NEXT
            } else {
                0
            };
            self.driver
                .describe_at(table, index, (*address, *len, flags | more, index + 1));
        }
        let len = 16 * parts.len() as u32;
        self.driver
            .describe_at(DESCRIPTORS, number, (table, len, TABLE, 0));
        self.driver.make_available(number);
    }

    /// Serves `asks` at once: what became of each.
    fn serve(&mut self, asks: &[Ask]) -> Vec<(u32, u8, Vec<u8>)> {
        for (number, ask) in (0..).zip(asks) {
            self.ask(number, ask);
        }
        self.driver.run_out();
        let mut used: Vec<_> = std::iter::from_fn(|| self.driver.used()).collect();
        used.sort_unstable();
        let heads: Vec<_> = used.iter().map(|(head, _)| *head).collect();
        assert_eq!(heads, (0..asks.len() as u32).collect::<Vec<_>>());
        let answer = |(head, written)| {
            let place = u64::from(head);
            let status = self.driver.load(HEADERS + place * 0x40 + 0x30);
            let data = self.driver.bytes(DATA + place * LONGEST, LONGEST as usize);
            (written, status, data)
        };
        used.into_iter().map(answer).collect()
    }

    fn image(&self) -> Vec<u8> {
        let mut bytes = vec![0; (SECTORS * SECTOR) as usize];
        self.file
            .as_file()
            .read_exact_at(&mut bytes, 0)
            .expect("a file");
        bytes
    }
}

fn asks() -> impl Strategy<Value = Vec<Vec<Ask>>> {
    let kind = prop_oneof![3 => Just(IN), 4 => Just(OUT), 1 => Just(4_u32), 1 => Just(13_u32)];
    let ask = (kind, 0..8_u64, 1..=8_u64, 1..=7_u64, any::<u8>()).prop_map(
        |(kind, sector, sectors, pieces, byte)| Ask {
            kind,
            sector,
            sectors,
            pieces,
            byte,
        },
    );
    // Requests at once have sectors of their own: of two to one sector, either may be the first.
    let at_once = proptest::collection::vec(ask, 1..100).prop_map(|asks| {
        (0..)
            .zip(asks)
            .map(|(place, ask)| Ask {
                sector: ask.sector + 32 * place,
                ..ask
            })
            .collect()
    });
    proptest::collection::vec(at_once, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any requests have the same answers, data and image by io_uring as one after the other.
    #[test]
    fn requests_have_the_same_answers_and_image_as_one_after_the_other(batches in asks()) {
        let Some(carrier) = rings::carrier() else { return Ok(()) };
        let mut disks = [Disk::new(None), Disk::new(Some(&carrier))];
        for batch in batches {
            let answers = disks.each_mut().map(|disk| disk.serve(&batch));
            prop_assert!(answers[0] == answers[1], "other answers to {batch:?}");
        }
        prop_assert!(disks[0].image() == disks[1].image(), "another image");
    }
}

#[test]
fn request_of_as_many_pieces_as_there_may_be_is_served() {
    let Some(carrier) = rings::carrier() else {
        return;
    };
    let mut disk = Disk::new(Some(&carrier));
    // The longest chain, twice as often as there are vectors for: 254 pieces of 4 bytes beside header and status.
    for round in 0..8_u16 {
        let table = TABLES + u64::from(round) * 0x1000;
        let header = HEADERS + u64::from(round) * 0x40;
        disk.driver.store(header, IN);
        disk.driver.store(header + 8, u64::from(round));
        let data = 0x8_0000 + u64::from(round) * 0x1000;
        let mut parts = vec![(header, 16, NEXT, 1)];
        // 253 of 2 bytes and a long one make a sector.
        parts.extend((0..253).map(|at| (data + 2 * u64::from(at), 2, WRITE | NEXT, at + 2)));
        parts.push((data + 506, 6, WRITE | NEXT, 255));
        parts.push((header + 0x30, 1, WRITE, 0));
        for (index, part) in (0..).zip(&parts) {
            disk.driver.describe_at(table, index, *part);
        }
        let len = 16 * parts.len() as u32;
        disk.driver
            .describe_at(DESCRIPTORS, round, (table, len, TABLE, 0));
        disk.driver.make_available(round);
    }
    disk.driver.run_out();
    assert_eq!(std::iter::from_fn(|| disk.driver.used()).count(), 8);
    for round in 0..8_u64 {
        let expected = round.to_le_bytes().repeat(SECTOR as usize / 8);
        assert_eq!(
            disk.driver.bytes(0x8_0000 + round * 0x1000, 512),
            expected,
            "{round}"
        );
    }
}

#[test]
fn zeros_are_written_where_the_host_knows_no_shorter_way() {
    // Neither holes nor ranges of zeros: a file system without them is not to be had everywhere, so a memory file
    // stands for one, which has holes only.
    let Some(carrier) = rings::carrier() else {
        return;
    };
    let descriptor = rustix::fs::memfd_create(c"image", rustix::fs::MemfdFlags::CLOEXEC);
    let file = std::fs::File::from(descriptor.expect("memory for a file"));
    let len = 20 << 20;
    for at in (0..len).step_by(1 << 20) {
        file.write_all_at(&[0xaa; 1 << 20], at).expect("room");
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let image = Image::open(path.as_ref(), Access::ReadWrite).expect("an image");
    let memory = memory();
    let ring = carrier(&image, &memory).expect("a ring");
    let device = Block::new(
        image,
        Serial::new("disk"),
        Cache::Writeback,
        RateLimiter::unlimited(),
        Box::new(|operation, error| panic!("{operation}: {error}")),
    );
    let mut driver = Driver::ready_in(memory, device.with_ring(ring), 1 << 14);
    driver.store(ROOM, 13_u32);
    driver.store(ROOM + 16, 2_u64);
    // As many as there may be in one request: 16 MiB.
    driver.store(ROOM + 24, 16_u32 << 11);
    driver.put(&[(ROOM, 32, false), (ROOM + 0x100, 1, true)]);
    driver.run_out();
    assert_eq!(driver.used(), Some((0, 1)));
    assert_eq!(driver.load::<u8>(ROOM + 0x100), 0);
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).expect("a file");
    let end = 1024 + (16 << 20);
    assert!(bytes[..1024].iter().all(|byte| *byte == 0xaa));
    assert!(bytes[1024..end].iter().all(|byte| *byte == 0));
    assert!(bytes[end..].iter().all(|byte| *byte == 0xaa));
}

#[test]
fn ring_that_is_dropped_waits_for_what_is_under_way() {
    let Some(carrier) = rings::carrier() else {
        return;
    };
    let mut disk = Disk::new(Some(&carrier));
    let asks: Vec<_> = (0..100)
        .map(|place| Ask {
            kind: OUT,
            sector: place * 8,
            sectors: 8,
            pieces: 1,
            byte: 0x77,
        })
        .collect();
    for (number, ask) in (0..).zip(&asks) {
        disk.ask(number, ask);
    }
    disk.driver.run();
    // Not run to its end: the ring is dropped with the device.
    let Disk { file, driver } = disk;
    drop(driver);
    let mut bytes = vec![0; (100 * LONGEST) as usize];
    file.as_file().read_exact_at(&mut bytes, 0).expect("a file");
    assert!(bytes.iter().all(|byte| *byte == 0x77));
}

#[test]
fn lock_goes_with_the_disk_and_not_with_its_ring() {
    if rings::carrier().is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("room");
    for _ in 0..20 {
        let image = Image::open(file.path(), Access::ReadWrite).expect("free");
        let image = image.for_ring(file.path()).expect("the same");
        let ring = Uring::new(image.as_fd(), Arc::new(vm_memory::GuestMemoryMmap::new()));
        let ring = ring.expect("a ring");
        drop(image);
        // The ring's kernel side lives on.
        Image::open(file.path(), Access::ReadWrite).expect("free again");
        drop(ring);
    }
}

/// Has the calling thread, and what it starts, find that io_uring_setup fails by this error.
fn without_io_uring(error: i32) {
    let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(error.cast_unsigned()),
        TargetArch::x86_64,
    );
    let program: BpfProgram = filter.expect("a filter").try_into().expect("short");
    seccompiler::apply_filter(&program).expect("taken");
}

#[test]
fn host_without_io_uring_is_told_with_the_reason_and_the_cure() {
    for (error, reason) in [
        (libc::ENOSYS, "the host's kernel has none"),
        (libc::EPERM, "kernel.io_uring_disabled"),
        (libc::EINVAL, "Linux 5.10"),
        (libc::ENOMEM, "RLIMIT_MEMLOCK"),
        (libc::EMFILE, "RLIMIT_NOFILE"),
        (libc::EIO, "refuses it"),
    ] {
        // A filter is its thread's.
        let thread = std::thread::spawn(move || {
            without_io_uring(error);
            let file = tempfile::NamedTempFile::new().expect("a file");
            let memory = Arc::new(vm_memory::GuestMemoryMmap::new());
            Uring::new(file.as_file().as_fd(), memory).map(drop)
        });
        let refused = thread.join().expect("no panic").expect_err("none");
        let message = vmm::one_line(&refused);
        assert!(
            message.contains(reason) && message.contains("give io_engine Sync"),
            "{message}"
        );
    }
}

#[test]
fn launch_with_async_is_refused_without_io_uring_and_one_without_it_is_not() {
    let launch = |disk: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(4096).expect("room");
        let kernel = support::elf(&support::RESET);
        let disk = format!("{}{disk}", file.path().display());
        // In a thread of its own, whose filter the launcher inherits.
        let thread = std::thread::spawn(move || {
            without_io_uring(libc::EPERM);
            Command::new(env!("CARGO_BIN_EXE_keeptime"))
                .args(["run", "--disk", &disk, "--kernel"])
                .arg(kernel.path())
                .stdin(Stdio::null())
                .output()
                .expect("the launcher runs")
        });
        thread.join().expect("no panic")
    };
    let refused = launch(",async");
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(
        message.contains("drive \"disk0\": io_uring cannot be had: the host forbids it")
            && message.contains("give io_engine Sync"),
        "{message}"
    );
    let output = launch("");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{message}");
}
