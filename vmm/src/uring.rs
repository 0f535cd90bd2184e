//! A disk's transfers by io_uring: many at once, without a thread for each.
//!
//! Each disk has a ring of its own. It is made before the guest runs, while the process may still make one, and then
//! restricted (`IORING_REGISTER_RESTRICTIONS`, Linux 5.10): from then on it takes reads, writes, flushes and
//! `fallocate`, of the one file that is registered with it, and lets that file be replaced. Whoever takes over the
//! disk's thread can do nothing else with it.
//!
//! # What the kernel uses while a transfer is under way
//!
//! The guest's memory, which the ring keeps for as long. The vectors that say where in it are the kernel's only until
//! it has taken a transfer from the submission queue (`IORING_FEAT_SUBMIT_STABLE`, Linux 5.5), so there is one array of
//! them, which each submission begins anew.
//!
//! A transfer ends whichever thread looks: the kernel puts its end into the completion queue, which is memory, while
//! the thread that submitted it sleeps or runs. Only submitting takes a call (`io_uring_enter`), and waiting is `poll`
//! on the ring.
#![expect(
    unsafe_code,
    reason = "what is handed to io_uring are addresses, and the crate leaves it to the caller that they stay valid"
)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use devices::virtio::Buffers;
use devices::virtio::block::{DEPTH, Image, Ring, Transfer, ZEROS, Zeroing};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, register};
use libc::iovec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

/// The file's place among those that are registered.
const FILE: Fixed = Fixed(0);

/// `IORING_REGISTER_FILES_UPDATE` (include/uapi/linux/io_uring.h).
const FILES_UPDATE: u8 = 6;

/// The most vectors of one transfer: a chain's buffers, or [`ZEROS`] 256 times.
const LONGEST: usize = 256;

/// Vectors of the transfers that are submitted at once: a few long ones, or many short ones.
const VECTORS: usize = 4 * LONGEST;

/// The most threads that the kernel makes for a ring's transfers that would wait, of either of its two kinds. They count
/// where the process's threads do, as for `pids.max`.
const WORKERS: u32 = 8;

/// How long to leave the kernel alone that has no memory for a request.
const BREATH: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// There is no ring to be had.
#[derive(Debug, thiserror::Error)]
#[error("io_uring cannot be had: {}; give io_engine Sync, which needs none", self.cause())]
pub struct UringError {
    source: io::Error,
}

impl UringError {
    /// Whether the host has none, or none for this process, whatever it asks for.
    #[must_use]
    pub fn is_for_want_of_any(&self) -> bool {
        let error = self.source.raw_os_error();
        matches!(error, Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
    }

    /// What is known of the reason, by io_uring_setup(2) and the kernel's `Documentation/admin-guide/sysctl/kernel.rst`.
    fn cause(&self) -> &'static str {
        match self.source.raw_os_error() {
            Some(libc::ENOSYS) => {
                "the host's kernel has none (CONFIG_IO_URING), or a filter hides it"
            }
            Some(libc::EPERM | libc::EACCES) => {
                "the host forbids it, by sysctl kernel.io_uring_disabled (0 allows it to all, 1 to the group \
                 kernel.io_uring_group) or by a filter such as a container's"
            }
            Some(libc::EINVAL) => {
                "the host's kernel has one without restrictions; that takes Linux 5.10"
            }
            Some(libc::ENOMEM) => {
                "no memory; before Linux 5.12 it counts as locked, so raise RLIMIT_MEMLOCK"
            }
            Some(libc::EMFILE | libc::ENFILE) => "no descriptor is left; raise RLIMIT_NOFILE",
            _ => "the host's kernel refuses it",
        }
    }
}

/// The vectors of transfers that are about to be submitted.
struct Vectors(Vec<iovec>);

// SAFETY: the addresses are of guest memory or of a constant; both are there for all threads.
unsafe impl Send for Vectors {}

/// A ring with one file.
pub struct Uring {
    ring: IoUring,
    vectors: Vectors,
    /// What transfers read and write.
    memory: Arc<GuestMemoryMmap>,
    /// Transfers in the submission queue.
    noted: Vec<u16>,
    /// Those that the kernel does not get, and why.
    refused: Vec<(u16, i32)>,
    /// Why it gets none any more.
    broken: Option<i32>,
    /// How many the kernel has.
    under_way: usize,
}

impl Uring {
    /// A ring whose transfers concern `file` and `memory`.
    ///
    /// # Errors
    /// The host has none for us.
    pub fn new(file: BorrowedFd<'_>, memory: Arc<GuestMemoryMmap>) -> Result<Self, UringError> {
        let ring = restricted(file.as_raw_fd()).map_err(|source| UringError { source })?;
        let depth = usize::from(DEPTH);
        Ok(Self {
            ring,
            vectors: Vectors(Vec::with_capacity(VECTORS)),
            memory,
            noted: Vec::with_capacity(depth),
            refused: Vec::with_capacity(depth),
            broken: None,
            under_way: 0,
        })
    }

    /// Looks whether there would be one for `file`.
    ///
    /// # Errors
    /// The host has none for us.
    pub(crate) fn check(file: BorrowedFd<'_>) -> Result<(), UringError> {
        restricted(file.as_raw_fd()).map_err(|source| UringError { source })?;
        Ok(())
    }

    /// What becomes readable when a transfer ends.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn source(&self) -> io::Result<OwnedFd> {
        self.descriptor().try_clone_to_owned()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open for as long as the ring is there, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Waits until a transfer has ended, or for so long, or until a signal comes.
    fn poll(&self, time: Option<&Timespec>) {
        let ring = self.descriptor();
        let _ = poll(&mut [PollFd::new(&ring, PollFlags::IN)], time);
    }

    /// Notes where `buffers` are. Returns the first vector and their number.
    fn vectors(&mut self, buffers: &Buffers<'_>) -> Result<(*const iovec, u32), i32> {
        let first = self.vectors.0.len();
        for (address, len) in buffers.places() {
            let len = usize::try_from(len).map_err(|_| libc::EINVAL)?;
            // In the memory that is kept here, whatever memory the buffers are of.
            let slice = self.memory.get_slice(address, len);
            let slice = slice.map_err(|_| libc::EFAULT)?;
            self.add(slice.ptr_guard_mut().as_ptr(), len, first)?;
        }
        Ok(self.vectors_from(first))
    }

    /// The same of zeros.
    fn zeros(&mut self, len: u64) -> Result<(*const iovec, u32), i32> {
        let first = self.vectors.0.len();
        let mut left = len;
        while left > 0 {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            // They are only read.
            self.add(ZEROS.as_ptr().cast_mut(), here, first)?;
            // OK because it is at most what is left.
            left -= here as u64;
        }
        Ok(self.vectors_from(first))
    }

    /// One more vector of the transfer whose first is at `first`. What the kernel has an address of does not move:
    /// there is never more than there is room for.
    fn add(&mut self, base: *mut u8, len: usize, first: usize) -> Result<(), i32> {
        let vectors = &mut self.vectors.0;
        if vectors.len() - first == LONGEST || vectors.len() == vectors.capacity() {
            return Err(libc::EINVAL);
        }
        vectors.push(iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
        Ok(())
    }

    fn vectors_from(&self, first: usize) -> (*const iovec, u32) {
        let vectors = self.vectors.0.get(first..).unwrap_or_default();
        // OK because there are at most `LONGEST`.
        (
            vectors.as_ptr(),
            u32::try_from(vectors.len()).unwrap_or(u32::MAX),
        )
    }

    fn entry(&mut self, transfer: Transfer<'_>) -> Result<Entry, i32> {
        Ok(match transfer {
            Transfer::Read { at, into } => {
                let (first, count) = self.vectors(&into)?;
                opcode::Readv::new(FILE, first, count).offset(at).build()
            }
            Transfer::Write { at, from, through } => {
                let (first, count) = self.vectors(&from)?;
                let flags = if through { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Writev::new(FILE, first, count).offset(at);
                write.rw_flags(flags).build()
            }
            Transfer::Zero { at, len, how } => {
                let how = match how {
                    Zeroing::Punch => libc::FALLOC_FL_PUNCH_HOLE,
                    Zeroing::Keep => libc::FALLOC_FL_ZERO_RANGE,
                };
                opcode::Fallocate::new(FILE, len)
                    .offset(at)
                    .mode(how | libc::FALLOC_FL_KEEP_SIZE)
                    .build()
            }
            Transfer::WriteZeros { at, len } => {
                let (first, count) = self.zeros(len)?;
                opcode::Writev::new(FILE, first, count).offset(at).build()
            }
            Transfer::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        })
    }

    /// Ends what was noted, and what will be, by this error.
    fn give_up(&mut self, error: i32) {
        self.broken = Some(error);
        let noted = self.noted.drain(..);
        self.refused.extend(noted.map(|name| (name, error)));
    }
}

/// A ring for `DEPTH` transfers of `file`, and for nothing else.
fn restricted(file: RawFd) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_r_disabled()
        .build(u32::from(DEPTH))?;
    if !ring.params().is_feature_submit_stable() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let submitter = ring.submitter();
    // Since Linux 5.15. Before, it is four for each CPU, and at most as many as transfers.
    let _ = submitter.register_iowq_max_workers(&mut [WORKERS; 2]);
    submitter.register_files(&[file])?;
    submitter.register_restrictions(&mut [
        register::Restriction::sqe_op(opcode::Readv::CODE),
        register::Restriction::sqe_op(opcode::Writev::CODE),
        register::Restriction::sqe_op(opcode::Fsync::CODE),
        register::Restriction::sqe_op(opcode::Fallocate::CODE),
        register::Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
        register::Restriction::register_op(FILES_UPDATE),
    ])?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

impl Ring for Uring {
    fn push(&mut self, name: u16, transfer: Transfer<'_>) {
        if self.vectors.0.len() + LONGEST > VECTORS {
            self.submit();
        }
        let entry = match self.broken {
            Some(error) => Err(error),
            None => self.entry(transfer),
        };
        let pushed = entry.and_then(|entry| {
            let entry = entry.user_data(name.into());
            // SAFETY: the kernel looks at the vectors until it has taken the entry from the queue, which is before
            // `submit` begins the array anew, and the array does not move, as it never grows beyond its capacity.
            // What they point at is memory that this ring keeps until nothing is under way, or a constant; it is
            // shared with the guest, and no reference to it is made.
            unsafe { self.ring.submission().push(&entry) }.map_err(|_| libc::EBUSY)
        });
        match pushed {
            Ok(()) => self.noted.push(name),
            Err(error) => self.refused.push((name, error)),
        }
    }

    fn submit(&mut self) {
        while !self.noted.is_empty() && self.broken.is_none() {
            match self.ring.submit() {
                Ok(taken) => {
                    let taken = taken.min(self.noted.len());
                    self.noted.drain(..taken);
                    self.under_way += taken;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The kernel is short of memory: it has more when something has ended, or somebody else has
                // (io_uring_enter(2)).
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    self.poll(Some(&BREATH));
                }
                Err(error) => self.give_up(error.raw_os_error().unwrap_or(libc::EIO)),
            }
        }
        self.vectors.0.clear();
    }

    fn ended(&mut self) -> Option<(u16, io::Result<u32>)> {
        if let Some((name, error)) = self.refused.pop() {
            return Some((name, Err(io::Error::from_raw_os_error(error))));
        }
        if self.under_way == 0 {
            return None;
        }
        let end = self.ring.completion().next()?;
        self.under_way -= 1;
        // OK because it is what was pushed.
        let name = u16::try_from(end.user_data()).unwrap_or(u16::MAX);
        let result = u32::try_from(end.result());
        // OK because it is no error number that is the smallest of all.
        let result = result.map_err(|_| io::Error::from_raw_os_error(end.result().wrapping_neg()));
        Some((name, result))
    }

    fn wait(&mut self) {
        while self.refused.is_empty() && self.under_way > 0 && self.ring.completion().is_empty() {
            self.poll(None);
        }
    }

    fn change(&mut self, image: &Image) -> io::Result<()> {
        let file = image.as_fd().as_raw_fd();
        let changed = self
            .ring
            .submitter()
            .register_files_update(FILE.0, &[file])?;
        if changed == 1 {
            Ok(())
        } else {
            Err(ErrorKind::InvalidInput.into())
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.under_way > 0 {
            self.wait();
            while self.ended().is_some() {}
        }
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("noted", &self.noted.len())
            .field("under_way", &self.under_way)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_takes_nothing_but_what_a_disk_needs() {
        let file = tempfile::tempfile().expect("a file");
        let mut ring = match Uring::new(file.as_fd(), Arc::new(GuestMemoryMmap::new())) {
            Ok(ring) => ring,
            Err(error) if error.is_for_want_of_any() => return println!("skipped here: {error}"),
            Err(error) => panic!("{error}"),
        };
        let mut byte = [0_u8];
        let vector = iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let plain = io_uring::types::Fd(file.as_raw_fd());
        let name = c"/".as_ptr();
        for (what, entry) in [
            ("nothing", opcode::Nop::new().build()),
            (
                "a file by its descriptor",
                opcode::Readv::new(plain, &raw const vector, 1).build(),
            ),
            ("another call", opcode::OpenAt::new(plain, name).build()),
            (
                "a read of another kind",
                opcode::Read::new(FILE, byte.as_mut_ptr(), 1).build(),
            ),
            (
                "a chain of requests",
                opcode::Fsync::new(FILE).build().flags(Flags::IO_LINK),
            ),
        ] {
            // SAFETY: what the entries point at lives until they have ended, which is before the next.
            unsafe { ring.ring.submission().push(&entry) }.expect("room");
            ring.ring.submit_and_wait(1).expect(what);
            let end = ring.ring.completion().next().expect(what);
            assert_eq!(end.result(), -libc::EACCES, "{what}");
        }
        let submitter = ring.ring.submitter();
        for (what, refused) in [
            ("an eventfd", submitter.register_eventfd(file.as_raw_fd())),
            ("no file", submitter.unregister_files()),
            (
                "restrictions anew",
                submitter.register_restrictions(&mut []),
            ),
        ] {
            let error = refused.expect_err(what).raw_os_error();
            assert!(
                matches!(error, Some(libc::EACCES | libc::EBADFD)),
                "{what}: {error:?}"
            );
        }
        // What a disk needs.
        ring.push(7, Transfer::Flush);
        ring.submit();
        ring.wait();
        assert_eq!(
            ring.ended().map(|(name, result)| (name, result.ok())),
            Some((7, Some(0)))
        );
    }
}
