//! A disk's bytes: a plain file or a block device of the host, locked against others who would write it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_setfl};
use std::os::unix::fs::OpenOptionsExt;
use thiserror::Error;
use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::SECTOR;
use crate::virtio::{Buffers, Violation};

/// Whether a guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    ReadOnly,
    /// It reads and writes.
    ReadWrite,
}

/// An image that cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("cannot open the disk image {path:?}; check its path and permissions")]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that leads to something else.
    #[error("the disk image {path:?} is a {kind}; give a plain file or a block device")]
    Kind {
        /// Where it was looked for.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
    },
    /// Somebody else writes it, or reads what this guest would write.
    #[error(
        "the disk image {path:?} is locked by another; end the microVM or the program that uses it, or give both \
         of them the image read-only"
    )]
    Locked {
        /// Which image.
        path: PathBuf,
    },
    /// Another file is at its path than a moment before.
    #[error("the disk image {path:?} was replaced while it was opened; try again")]
    Replaced {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It cannot be locked.
    #[error("cannot lock the disk image {path:?}")]
    Lock {
        /// Which image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Less than one sector.
    #[error("the disk image {path:?} has {bytes} bytes; a disk has at least {SECTOR}")]
    Small {
        /// Which image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// A byte's place in an image, checked against its end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place(pub(super) u64);

/// How zeros come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// The host takes the space back.
    Punch,
    /// It keeps the space.
    Keep,
}

/// What is written at once where the host knows no shorter way to zeros.
pub static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// An opened and locked image.
#[derive(Debug)]
pub struct Image {
    file: File,
    /// The same opened once more, without the lock, for a ring.
    twin: Option<File>,
    access: Access,
    sectors: u64,
    /// Where the file's own position is, if that is known: it spares a call for each request in a row.
    position: Option<u64>,
    identity: (u64, u64),
}

impl Image {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// What is in the way.
    pub fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        Self::with_lock(open_locked(path, access)?, access, path)
    }

    /// Readies the image, which is at `path`, for a [`Ring`](super::Ring).
    ///
    /// The kernel lets go of a ring's file some time after the ring's process has ended. A ring therefore gets the
    /// image opened once more, so that the lock goes when it should.
    ///
    /// # Errors
    /// What is in the way.
    pub fn for_ring(mut self, path: &Path) -> Result<Self, ImageError> {
        let twin = open(path, self.access)?;
        let metadata = twin.metadata().map_err(|source| ImageError::Open {
            path: path.to_owned(),
            source,
        })?;
        if (metadata.dev(), metadata.ino()) != self.identity {
            let path = path.to_owned();
            return Err(ImageError::Replaced { path });
        }
        self.twin = Some(twin);
        Ok(self)
    }

    /// Whether it is ready for a ring.
    #[must_use]
    pub fn is_for_ring(&self) -> bool {
        self.twin.is_some()
    }

    /// The image with the size that it has now, without giving up the lock.
    ///
    /// # Errors
    /// What is in the way.
    pub fn again(&self, path: &Path) -> Result<Self, ImageError> {
        // Opened once more for the size alone: a double has its position in common with the one that is in use.
        let now = Self::with_lock(open(path, self.access)?, self.access, path)?;
        if now.identity != self.identity {
            let path = path.to_owned();
            return Err(ImageError::Replaced { path });
        }
        let double = self.double().map_err(|source| ImageError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            sectors: now.sectors,
            ..double
        })
    }

    /// The same with the same lock. Of the two one is to be read and written at a time: the host has one position for
    /// both.
    ///
    /// # Errors
    /// The process may have no more descriptors.
    pub fn double(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            twin: self.twin.as_ref().map(File::try_clone).transpose()?,
            access: self.access,
            sectors: self.sectors,
            position: None,
            identity: self.identity,
        })
    }

    fn with_lock(mut file: File, access: Access, path: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        let metadata = file.metadata().map_err(failed)?;
        // The metadata of a block device does not tell its size.
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if bytes < SECTOR {
            let path = path.to_owned();
            return Err(ImageError::Small { path, bytes });
        }
        Ok(Self {
            file,
            twin: None,
            access,
            sectors: bytes / SECTOR,
            position: None,
            identity: (metadata.dev(), metadata.ino()),
        })
    }

    /// Whether `path` leads to this very image.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        path.metadata()
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
    }

    /// Whether a guest may write it.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its size in sectors. What is left of a last sector is not part of the disk.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Where `len` bytes from `sector` on are, if they are whole sectors of this disk.
    pub(super) fn place(&self, sector: u64, len: u64) -> Option<Place> {
        let end = sector.checked_add(len / SECTOR)?;
        (len.is_multiple_of(SECTOR) && end <= self.sectors)
            .then(|| sector.checked_mul(SECTOR).map(Place))
            .flatten()
    }

    /// Brings the file's position to `place`.
    fn seek(&mut self, place: Place) -> io::Result<()> {
        // Unknown until the transfer is over.
        if self.position.take() != Some(place.0) {
            self.file.seek(SeekFrom::Start(place.0))?;
        }
        Ok(())
    }

    pub(super) fn read(&mut self, place: Place, into: Buffers<'_>) -> io::Result<()> {
        self.seek(place)?;
        let mut file = &self.file;
        into.try_for_each(gone, |mut slice| {
            file.read_exact_volatile(&mut slice).map_err(of_host)
        })?;
        self.position = place.0.checked_add(into.len());
        Ok(())
    }

    pub(super) fn write(&mut self, place: Place, from: Buffers<'_>) -> io::Result<()> {
        self.seek(place)?;
        let mut file = &self.file;
        from.try_for_each(gone, |slice| {
            file.write_all_volatile(&slice).map_err(of_host)
        })?;
        self.position = place.0.checked_add(from.len());
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives `len` bytes back to the host, or makes them zero.
    pub(super) fn zero(
        &mut self,
        place: Place,
        len: u64,
        must_be_zero: bool,
        how: Zeroing,
    ) -> io::Result<()> {
        let how = match how {
            Zeroing::Punch => FallocateFlags::PUNCH_HOLE,
            Zeroing::Keep => FallocateFlags::ZERO_RANGE,
        };
        loop {
            match fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, place.0, len) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::OPNOTSUPP) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // A discard is advice.
        if !must_be_zero {
            return Ok(());
        }
        self.seek(place)?;
        let mut left = len;
        while left > 0 {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            let zeros = ZEROS.get(..here).unwrap_or(&ZEROS);
            self.file.write_all(zeros)?;
            // OK because it is at most what is left.
            left -= here as u64;
        }
        Ok(())
    }
}

/// Opens the plain file or block device at `path` and locks it, by `flock`: exclusively for who writes, shared for who
/// reads. The lock goes with the process, however that ends.
///
/// # Errors
/// What is in the way.
pub fn open_locked(path: &Path, access: Access) -> Result<File, ImageError> {
    let file = open(path, access)?;
    let locked = match access {
        Access::ReadOnly => file.try_lock_shared(),
        Access::ReadWrite => file.try_lock(),
    };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => ImageError::Locked {
            path: path.to_owned(),
        },
        TryLockError::Error(source) => ImageError::Lock {
            path: path.to_owned(),
            source,
        },
    })?;
    Ok(file)
}

/// What a ring is given, for an image that is ready for one.
impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.twin.as_ref().unwrap_or(&self.file).as_fd()
    }
}

/// Opens what is a plain file or a block device.
fn open(path: &Path, access: Access) -> Result<File, ImageError> {
    let failed = |source| ImageError::Open {
        path: path.to_owned(),
        source,
    };
    // Before it is known what it is: opening a pipe would wait for its other end.
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(nonblock)
        .open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            let path = path.to_owned();
            let kind = "directory";
            return Err(ImageError::Kind { path, kind });
        }
        other => other.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ImageError::Kind {
            path: path.to_owned(),
            kind: if kind.is_dir() {
                "directory"
            } else {
                "character device, pipe or socket"
            },
        });
    }
    // It was for the opening only: of a file that does not wait, the host may leave a transfer undone.
    fcntl_setfl(&file, OFlags::empty()).map_err(|error| failed(error.into()))?;
    Ok(file)
}

fn gone(violation: Violation) -> io::Error {
    io::Error::other(violation)
}

/// The host's reason. An end of file means that the image has become shorter.
fn of_host(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}
