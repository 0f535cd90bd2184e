//! A disk (5.2): a file or a block device of the host, byte for byte. There is no format to be detected,
//! and so none that a guest could write into its disk.
//!
//! Requests are carried out one after the other by the thread that runs the engine, or many at once by a [`Ring`],
//! which ends them in any order: a driver that wants one after the other waits for the first.
//!
//! A request is a header, data, and a status byte, wherever their borders fall among the buffers (2.7.4).
//! What the host refuses reaches the guest as `VIRTIO_BLK_S_IOERR`, and the log once for each kind of
//! operation: a full disk must not fill the log, too.
//!
//! # What is on the host's disk when
//!
//! With [`Cache::Writeback`] the device offers `VIRTIO_BLK_F_FLUSH`: what was written before a flush is on
//! the host's disk when the flush is done. A driver that does not take the feature cannot ask, so each of its
//! writes is on the disk when it is done (5.2.6.2). With [`Cache::Unsafe`] the feature is not on offer, and
//! the host writes when it sees fit: what is lost with the host's power is the user's choice.
//!
//! A flush is for what was *completed* before it was sent (5.2.6.2: a write becomes stable by a flush that "is sent
//! after the write is completed and is completed itself"). With a ring, too, a write is told as completed when the host
//! has it, and only then can a flush follow that covers it; one that is sent beside a write may come before it.

mod counts;
mod flight;
mod image;
mod ring;

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk as blk;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{Buffers, Chain, ConfigSpace, Device, Finished, Kind, Served, Violation};
use crate::rate_limiter::{Bucket, RateLimiter};

pub use counts::{Carried, Counts};
use flight::{Ended, Flight, Request};
use image::Place;
pub use image::{Access, Image, ImageError, ZEROS, Zeroing, open_locked};
pub use ring::{DEPTH, Ring, Transfer};

/// The unit in which a disk counts, whatever its own blocks are (5.2.4).
pub const SECTOR: u64 = 512;

/// The size of the queue.
const QUEUE_SIZE: u16 = 256;

/// The most sectors that one discard or write of zeros covers: 16 MiB, so that no request takes long where
/// the host must write the zeros one by one.
const MAX_ZERO_SECTORS: u32 = 16 << 11;

const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
const READ_ONLY: u64 = 1 << blk::VIRTIO_BLK_F_RO;
const SEGMENTS: u64 = 1 << blk::VIRTIO_BLK_F_SEG_MAX;
const DISCARD: u64 = 1 << blk::VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;

/// What a flush means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// There is none: data reaches the disk when the host writes it.
    #[default]
    Unsafe,
    /// A flush waits until the disk has what was written before.
    Writeback,
}

/// What was done when the host refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Waiting until the disk has what was written.
    Flush,
    /// Punching holes and writing zeros.
    Zero,
    /// Taking another image.
    Change,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Zero => "discard or write zeros",
            Self::Change => "take the other image",
        })
    }
}

/// Told of the first failure of each kind of operation.
pub type Report = Box<dyn FnMut(Operation, &io::Error) + Send>;

/// A disk's identification, up to 20 bytes; the rest is zeros (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial([u8; blk::VIRTIO_BLK_ID_BYTES as usize]);

impl Serial {
    /// The first 20 bytes of `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut serial = [0; blk::VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in serial.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self(serial)
    }
}

/// The device.
pub struct Block {
    image: Image,
    serial: Serial,
    cache: Cache,
    limiter: RateLimiter,
    report: Report,
    /// What carries requests out beside each other, if anything does.
    flight: Option<Flight>,
    /// The operations whose failures are told already, as bits.
    told: u8,
    /// The driver knows no flush.
    write_through: bool,
    /// The driver's features.
    features: u64,
    counts: Arc<Counts>,
}

/// What of it can be changed.
#[derive(Debug, Default)]
pub struct Update {
    /// Another image,
    pub image: Option<Image>,
    /// and a double of the one that the disk has until it takes that over: whoever changes his mind has its lock.
    pub former: Option<Image>,
    /// Another limit on bytes, or none.
    pub bandwidth: Option<Option<Bucket>>,
    /// Another limit on requests, or none.
    pub operations: Option<Option<Bucket>>,
}

/// How a request ends, with the number of bytes written from the beginning of its buffers on.
struct Answer {
    status: u32,
    written: u64,
}

impl Answer {
    const UNSUPPORTED: Self = Self::failed(blk::VIRTIO_BLK_S_UNSUPP);
    const ERROR: Self = Self::failed(blk::VIRTIO_BLK_S_IOERR);

    const fn failed(status: u32) -> Self {
        Self { status, written: 0 }
    }

    const fn done(written: u64) -> Self {
        let status = blk::VIRTIO_BLK_S_OK;
        Self { status, written }
    }

    /// The status byte.
    fn byte(&self) -> u8 {
        // OK because the constants are 0 to 2.
        u8::try_from(self.status).unwrap_or(1)
    }

    /// How many bytes of the buffers were written, where `room` is for data and one more for the status.
    fn used(&self, room: u64) -> u32 {
        // Bytes that follow a gap do not count (2.7.8.2), and the status is the last.
        let written = if self.written == room {
            room + 1
        } else {
            self.written
        };
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

impl Block {
    /// A disk that is `image`.
    #[must_use]
    pub fn new(
        image: Image,
        serial: Serial,
        cache: Cache,
        limiter: RateLimiter,
        report: Report,
    ) -> Self {
        Self {
            image,
            serial,
            cache,
            limiter,
            report,
            flight: None,
            told: 0,
            write_through: false,
            features: 0,
            counts: Arc::default(),
        }
    }

    /// What it counts, now and later.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// The same whose requests `ring` carries out, for which transfers concern the image.
    #[must_use]
    pub fn with_ring(mut self, ring: Box<dyn Ring>) -> Self {
        self.flight = Some(Flight::new(ring));
        self
    }

    /// What a request has done to the image, checked, or an answer for which nothing is done to it.
    fn job<'a>(
        &self,
        kind: u32,
        sector: u64,
        out: Buffers<'a>,
        into: Buffers<'a>,
    ) -> Result<Job<'a>, Answer> {
        let image = &self.image;
        let job = match kind {
            blk::VIRTIO_BLK_T_IN => {
                let place = image.place(sector, into.len());
                Job::Read(place.ok_or(Answer::ERROR)?, into)
            }
            blk::VIRTIO_BLK_T_OUT => {
                let place = image.place(sector, out.len());
                let place = place.filter(|_| image.access() == Access::ReadWrite);
                Job::Write(place.ok_or(Answer::ERROR)?, out)
            }
            blk::VIRTIO_BLK_T_FLUSH if self.features & FLUSH != 0 => Job::Flush,
            blk::VIRTIO_BLK_T_GET_ID => {
                return Err(match into.write(&self.serial.0) {
                    Ok(()) => Answer::done(self.serial.0.len() as u64),
                    Err(_) => Answer::ERROR,
                });
            }
            blk::VIRTIO_BLK_T_DISCARD if self.features & DISCARD != 0 => {
                Job::Zero(Zeros::read(out, false, image)?)
            }
            blk::VIRTIO_BLK_T_WRITE_ZEROES if self.features & WRITE_ZEROES != 0 => {
                Job::Zero(Zeros::read(out, true, image)?)
            }
            _ => return Err(Answer::UNSUPPORTED),
        };
        if job.is_nothing() {
            return Err(Answer::done(0));
        }
        Ok(job)
    }

    /// Does what is asked on this thread.
    fn carry_out(&mut self, job: &Job<'_>) -> Answer {
        let image = &mut self.image;
        let done = match job {
            Job::Read(place, into) => image.read(*place, *into).map(|()| into.len()),
            Job::Write(place, out) => {
                let written = image.write(*place, *out);
                let through = self.write_through;
                let kept = written.and_then(|()| if through { image.flush() } else { Ok(()) });
                kept.map(|()| 0)
            }
            Job::Flush => image.flush().map(|()| 0),
            Job::Zero(zeros) => {
                let Zeros { place, len, .. } = *zeros;
                let zeroed = image.zero(place, len, zeros.must_be_zero, zeros.how);
                let through = self.write_through && zeros.must_be_zero;
                let kept = zeroed.and_then(|()| if through { image.flush() } else { Ok(()) });
                kept.map(|()| 0)
            }
        };
        self.answer(job.operation(), job.bytes(), done)
    }

    /// The answer to a request for so many bytes that the host has carried out, or refused.
    fn answer(&mut self, operation: Operation, bytes: u64, done: io::Result<u64>) -> Answer {
        match done {
            Ok(written) => {
                self.count(operation, bytes);
                Answer::done(written)
            }
            Err(error) => {
                self.counts.failures.add(1);
                self.tell(operation, &error);
                Answer::ERROR
            }
        }
    }

    fn count(&self, operation: Operation, bytes: u64) {
        let carried = match operation {
            Operation::Read => &self.counts.read,
            Operation::Write => &self.counts.written,
            Operation::Flush => return self.counts.flushes.add(1),
            Operation::Zero | Operation::Change => return,
        };
        carried.requests.add(1);
        carried.bytes.add(bytes);
    }

    /// Tells of a failure, if it is the first of its kind.
    fn tell(&mut self, operation: Operation, error: &io::Error) {
        let bit = 1 << operation as u8;
        if self.told & bit == 0 {
            self.told |= bit;
            (self.report)(operation, error);
        }
    }
}

/// What a request has done to the image.
enum Job<'a> {
    Read(Place, Buffers<'a>),
    Write(Place, Buffers<'a>),
    Flush,
    Zero(Zeros),
}

impl Job<'_> {
    fn operation(&self) -> Operation {
        match self {
            Self::Read(..) => Operation::Read,
            Self::Write(..) => Operation::Write,
            Self::Flush => Operation::Flush,
            Self::Zero(_) => Operation::Zero,
        }
    }

    /// The bytes that it moves.
    fn bytes(&self) -> u64 {
        match self {
            Self::Read(_, buffers) | Self::Write(_, buffers) => buffers.len(),
            Self::Flush | Self::Zero(_) => 0,
        }
    }

    /// Whether it is done without the host.
    fn is_nothing(&self) -> bool {
        match self {
            Self::Read(_, buffers) | Self::Write(_, buffers) => buffers.is_empty(),
            Self::Flush => false,
            Self::Zero(zeros) => zeros.len == 0,
        }
    }
}

/// A discard, or a write of zeros: `struct virtio_blk_discard_write_zeroes`.
struct Zeros {
    place: Place,
    len: u64,
    must_be_zero: bool,
    how: Zeroing,
}

impl Zeros {
    /// There is one to a request, as the configuration space says, and it is within `image`, which can be written.
    fn read(out: Buffers<'_>, must_be_zero: bool, image: &Image) -> Result<Self, Answer> {
        let mut bytes = [0; 16];
        // Another length is a request that makes no sense.
        out.read(&mut bytes).map_err(|_| Answer::ERROR)?;
        let sector = u64::from_le_bytes(part(&bytes, 0));
        let sectors = u32::from_le_bytes(part(&bytes, 8));
        let flags = u32::from_le_bytes(part(&bytes, 12));
        let unmap = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        // Unknown flags, and "unmap" for a discard (5.2.6.2).
        if flags & !unmap != 0 || (!must_be_zero && flags != 0) {
            return Err(Answer::UNSUPPORTED);
        }
        if sectors > MAX_ZERO_SECTORS {
            return Err(Answer::ERROR);
        }
        let len = u64::from(sectors) * SECTOR;
        let place = image
            .place(sector, len)
            .filter(|_| image.access() == Access::ReadWrite)
            .ok_or(Answer::ERROR)?;
        Ok(Self {
            place,
            len,
            must_be_zero,
            how: if !must_be_zero || flags & unmap != 0 {
                Zeroing::Punch
            } else {
                Zeroing::Keep
            },
        })
    }
}

/// `N` bytes of a buffer that has as many there.
fn part<const N: usize>(bytes: &[u8; 16], at: usize) -> [u8; N] {
    let part = bytes.get(at..at + N).and_then(|part| part.try_into().ok());
    part.unwrap_or([0; N])
}

impl Device for Block {
    type Update = Update;

    const KIND: Kind = Kind::Block;

    const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        let flush = match self.cache {
            Cache::Unsafe => 0,
            Cache::Writeback => FLUSH,
        };
        let access = match self.image.access() {
            Access::ReadOnly => READ_ONLY,
            Access::ReadWrite => DISCARD | WRITE_ZEROES,
        };
        SEGMENTS | flush | access
    }

    /// `struct virtio_blk_config` (5.2.4) as far as `write_zeroes_may_unmap`.
    fn config(&self) -> ConfigSpace {
        // Less the header and the status.
        let segments = u32::from(QUEUE_SIZE - 2);
        let zeros = match self.image.access() {
            Access::ReadOnly => 0,
            Access::ReadWrite => MAX_ZERO_SECTORS,
        };
        ConfigSpace::EMPTY
            .with(&self.image.sectors().to_le_bytes())
            .with(&0_u32.to_le_bytes()) // size_max
            .with(&segments.to_le_bytes())
            .with(&[0; 4]) // geometry
            .with(&0_u32.to_le_bytes()) // blk_size
            .with(&[0; 8]) // topology
            .with(&[0; 4]) // writeback, unused, num_queues
            .with(&zeros.to_le_bytes()) // max_discard_sectors
            .with(&1_u32.to_le_bytes()) // max_discard_seg
            .with(&8_u32.to_le_bytes()) // discard_sector_alignment: a page of the host's file
            .with(&zeros.to_le_bytes()) // max_write_zeroes_sectors
            .with(&1_u32.to_le_bytes()) // max_write_zeroes_seg
            .with(&[1, 0, 0, 0]) // write_zeroes_may_unmap
    }

    fn start(&mut self, features: u64) {
        self.features = features;
        self.write_through = self.cache == Cache::Writeback && features & FLUSH == 0;
    }

    /// # Errors
    /// A request without room for its status, which cannot be answered.
    fn serve(&mut self, _: usize, chain: &Chain<'_>) -> Result<Served, Violation> {
        let room = chain.writable.len().checked_sub(1);
        let room = room.ok_or(Violation::Buffer)?;
        let (into, status) = chain.writable.split_at(room).ok_or(Violation::Buffer)?;
        if self.flight.as_ref().is_some_and(Flight::is_full) {
            // One that ends makes room.
            self.counts.full.add(1);
            return Ok(Served::Idle);
        }
        let mut header = [0; 16];
        let parts = chain.readable.split_at(header.len() as u64);
        let answer = match parts {
            Some((head, out)) => {
                head.read(&mut header)?;
                // Two buckets, one look at the clock; nothing has been done yet.
                let bytes = into.len().saturating_add(out.len());
                if let Err(wait) = self.limiter.take(bytes) {
                    self.counts.throttled.add(1);
                    return Ok(Served::Later(wait));
                }
                let kind = u32::from_le_bytes(part(&header, 0));
                let sector = u64::from_le_bytes(part(&header, 8));
                match (self.job(kind, sector, out, into), &mut self.flight) {
                    (Ok(job), None) => self.carry_out(&job),
                    (Ok(_), Some(flight)) if !flight.is_in_order() => {
                        self.counts.failures.add(1);
                        Answer::ERROR
                    }
                    (Ok(job), Some(flight)) => {
                        let (place, _) = status.places().next().ok_or(Violation::Buffer)?;
                        let request = Request {
                            head: chain.head,
                            status: place,
                            room: into.len(),
                            bytes: job.bytes(),
                        };
                        flight.begin(request, &job, self.write_through);
                        return Ok(Served::UnderWay);
                    }
                    (Err(answer), _) => {
                        if answer.status != blk::VIRTIO_BLK_S_OK {
                            self.counts.malformed.add(1);
                        }
                        answer
                    }
                }
            }
            None => {
                self.counts.malformed.add(1);
                Answer::ERROR
            }
        };
        status.write(&[answer.byte()])?;
        Ok(Served::Done {
            written: answer.used(into.len()),
        })
    }

    fn submit(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.submit();
        }
    }

    fn is_busy(&self) -> bool {
        self.flight.as_ref().is_some_and(Flight::is_busy)
    }

    fn wait_for_one(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.wait();
        }
    }

    fn finished(&mut self, memory: &GuestMemoryMmap) -> Option<Finished> {
        let Ended {
            request,
            operation,
            result,
        } = self.flight.as_mut()?.ended(memory)?;
        let answer = self.answer(operation, request.bytes, result);
        // It was in memory, which never shrinks.
        let _ = memory.write_obj(answer.byte(), request.status);
        Some(Finished {
            queue: 0,
            head: request.head,
            written: answer.used(request.room),
        })
    }

    fn update(&mut self, update: Update) {
        if let Some(image) = update.image {
            self.image = image;
            self.told = 0;
            let flight = self.flight.as_mut();
            let changed = flight.map_or(Ok(()), |flight| flight.change(&self.image));
            self.counts.changes.add(1);
            if let Err(error) = changed {
                self.counts.change_failures.add(1);
                self.tell(Operation::Change, &error);
            }
        }
        self.limiter.change(update.bandwidth, update.operations);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("image", &self.image)
            .field("cache", &self.cache)
            .field("limiter", &self.limiter)
            .field("flight", &self.flight)
            .finish_non_exhaustive()
    }
}
