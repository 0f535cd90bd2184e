//! The disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use arbitrary::Arbitrary;
use devices::rate_limiter::RateLimiter;
use devices::virtio::block::{Access, Block, Cache, Image, Serial};

use super::shuffled::Shuffled;
use super::{Chain, Driver, EVENT_INDEX, INDIRECT, Request, guest_memory};
use crate::input::decode;

/// In bytes.
const DISK: usize = 16 * 512;
const SECTOR: u64 = 512;
/// Longer than what a request for it gets.
const SERIAL: &str = "a disk of the fuzzer's";

const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

#[derive(Arbitrary, Debug)]
struct Input {
    features: u64,
    read_only: bool,
    writeback: bool,
    requests: Vec<(Request, Shape)>,
}

/// What is done to a request so that it makes sense more often than bytes do by chance.
#[derive(Arbitrary, Debug)]
enum Shape {
    AsIs,
    /// A request of such a kind to such a sector, of whole sectors of data, and a status.
    Sensible {
        kind: u8,
        sector: u8,
        sectors: u8,
    },
}

/// Requests of any shape to a disk of 8 KiB: the disk and the guest's memory are as the specification has it, whether
/// the host carries out what is asked at once, or in parts, when it likes.
///
/// # Panics
/// When they are not.
pub fn virtio_block(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    serve(&input, None);
    // What the host likes comes from the input, too.
    let chance = data.iter().fold(1, |chance: u64, byte| {
        chance.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    serve(&input, Some(chance));
}

/// Serves the requests: by a ring that makes its choices by `chance`, or without.
fn serve(input: &Input, chance: Option<u64>) {
    // In memory, and gone with its last user.
    let name = std::ffi::CString::default();
    let descriptor = rustix::fs::memfd_create(&name, rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = File::from(descriptor.expect("memory for a file"));
    let mut disk: Vec<u8> = (0..=u8::MAX).cycle().take(DISK).collect();
    file.write_all(&disk).expect("room");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let (access, cache) = (
        if input.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
        if input.writeback {
            Cache::Writeback
        } else {
            Cache::Unsafe
        },
    );
    let image = Image::open(path.as_ref(), access).expect("an image");
    let memory = guest_memory();
    let ring = chance.map(|mut chance| {
        // Knuth's MMIX.
        let choose = move |limit| {
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) % limit
        };
        Shuffled::new(&image, memory.clone(), Box::new(choose))
    });
    let mut device = Block::new(
        image,
        Serial::new(SERIAL),
        cache,
        RateLimiter::unlimited(),
        Box::new(|operation, error| panic!("{operation}: {error}")),
    );
    if let Some(ring) = ring {
        device = device.with_ring(Box::new(ring));
    }
    let wanted = input.features | INDIRECT;
    let (mut driver, features) = Driver::in_memory(memory, device, wanted & !EVENT_INDEX, 2);
    for (request, shape) in input.requests.iter().take(64) {
        let mut request = request.clone();
        shape.apply(&mut request);
        driver.ask(0, &request);
        driver.engine.run();
        // What is under way ends.
        drop(driver.engine.hold());
        let Some(chain) = driver.queues[0].waiting.pop_front() else {
            continue;
        };
        let lawful = chain.is_lawful() && chain.room() > 0;
        if lawful {
            let unmapped = answer(&mut driver, &chain, &mut disk, features, access);
            let mut now = Vec::new();
            file.seek(SeekFrom::Start(0)).expect("a file");
            file.read_to_end(&mut now).expect("a file");
            // What was discarded may be there still.
            for at in unmapped {
                assert!(now[at] == disk[at] || now[at] == 0, "byte {at}");
                disk[at] = now[at];
            }
            assert!(now == disk, "the disk has other bytes");
        }
        driver.expect_nothing_else();
        assert_eq!(driver.needs_reset(), !lawful);
        if !lawful {
            return;
        }
    }
}

impl Shape {
    fn apply(&self, request: &mut Request) {
        let Self::Sensible {
            kind,
            sector,
            sectors,
        } = self
        else {
            return;
        };
        let kinds = [0_u8, 1, 1, 4, 8, 11, 13];
        let kind = kinds[usize::from(*kind) % kinds.len()];
        let sector = sector % 20;
        let data = u16::from(sectors % 4) * 512;
        request.header[..16].fill(0);
        request.header[0] = kind;
        request.header[8] = sector;
        let len = match kind {
            8 => 20,
            // The header's second half is a discard's or a write's of zeros.
            11 | 13 => {
                request.header[16..].fill(0);
                request.header[16] = sector;
                request.header[24] = sectors % 8;
                request.header[28] = sectors >> 7;
                0
            }
            _ => data,
        };
        let readable = matches!(kind, 1 | 4);
        request.count = if len == 0 { 1 } else { 2 };
        let header = if matches!(kind, 11 | 13) { 32 } else { 16 };
        for (buffer, (len, writable)) in request.buffers.iter_mut().zip([
            (header, false),
            if len == 0 {
                (1, true)
            } else {
                (len, !readable)
            },
            (1, true),
        ]) {
            (buffer.len, buffer.writable) = (len, writable);
            if let super::Place::Border(at) = buffer.place {
                buffer.place = super::Place::Low(u16::from(at) * 251);
            }
            if let super::Place::Hole(at) = buffer.place {
                let [low, high, ..] = at.to_le_bytes();
                buffer.place = super::Place::High(u16::from_le_bytes([low, high]));
            }
        }
    }
}

/// What the specification has a disk do (5.2.6); returns the bytes of the disk that were given up.
fn answer(
    driver: &mut Driver<Block>,
    chain: &Chain,
    disk: &mut [u8],
    features: u64,
    access: Access,
) -> std::ops::Range<usize> {
    const OK: u8 = 0;
    const IOERR: u8 = 1;
    const UNSUPP: u8 = 2;
    let bytes = driver.model.read(chain);
    let room = chain.room() - 1;
    let (mut written, mut unmapped) = (0, 0..0);
    let number = |at: usize, len: usize| {
        let mut number = [0; 8];
        number[..len].copy_from_slice(&bytes[at..at + len]);
        u64::from_le_bytes(number)
    };
    let place = |sector: u64, len: u64| {
        let begin = usize::try_from(sector.checked_mul(SECTOR)?).ok()?;
        let end = begin.checked_add(usize::try_from(len).ok()?)?;
        (len.is_multiple_of(SECTOR) && end <= DISK).then_some(begin..end)
    };
    let may_write = access == Access::ReadWrite;
    let status = if bytes.len() < 16 {
        IOERR
    } else {
        let (kind, sector, data) = (number(0, 4), number(8, 8), &bytes[16..]);
        match kind {
            0 => match place(sector, room) {
                Some(place) => {
                    driver.model.write(chain, 0, &disk[place]);
                    written = room;
                    OK
                }
                None => IOERR,
            },
            1 => match place(sector, data.len() as u64).filter(|_| may_write) {
                Some(place) => {
                    disk[place].copy_from_slice(data);
                    OK
                }
                None => IOERR,
            },
            4 if features & FLUSH != 0 => OK,
            8 if room < 20 => IOERR,
            8 => {
                let mut serial = [0; 20];
                serial.copy_from_slice(&SERIAL.as_bytes()[..20]);
                driver.model.write(chain, 0, &serial);
                written = 20;
                OK
            }
            11 if features & DISCARD == 0 => UNSUPP,
            13 if features & WRITE_ZEROES == 0 => UNSUPP,
            11 | 13 if data.len() != 16 => IOERR,
            11 | 13 => {
                let (sector, sectors, flags) = (number(16, 8), number(24, 4), number(28, 4));
                let known = if kind == 13 { 1 } else { 0 };
                if flags & !known != 0 {
                    UNSUPP
                } else if let Some(place) = place(sector, sectors * SECTOR).filter(|_| may_write) {
                    if kind == 13 {
                        disk[place].fill(0);
                    } else {
                        unmapped = place;
                    }
                    OK
                } else {
                    IOERR
                }
            }
            _ => UNSUPP,
        }
    };
    driver.model.write(chain, room, &[status]);
    // What is after bytes that were not written does not count.
    let used = if written == room { room + 1 } else { written };
    driver.expect_used(0, chain.head, used);
    unmapped
}
