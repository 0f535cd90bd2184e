//! Files of the host that a guest has in its physical address space: how they are mapped, and what a flush is.
//!
//! Nothing here looks into such a mapping, and no other device does: a queue or a buffer that a driver puts there is
//! none ([`Engine`] knows RAM only). So a file that somebody cuts short is the guest's loss, whose vCPU then cannot go
//! on, and no signal for this process.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arch::layout::PAGE_SIZE;
use arch::memory::{MemorySize, places_after_ram};
use devices::bus::{Bus, BusError};
use devices::virtio::Engine;
use devices::virtio::block::{Access, ImageError, open_locked};
use devices::virtio::pmem::{ALIGNMENT, Flush, Gap, Miss, Pmem, Report};
use hypervisor::Window;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{Address, FileOffset, GuestAddress, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;
use super::virtio::limiter;
use crate::api::pmem;
use crate::api::request::Fault;
use crate::error::one_line;
use crate::outcome::Outcome;
use crate::vcpu::Ending;

/// A persistent memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PmemError {
    /// The file cannot be opened and locked.
    #[error(transparent)]
    File(#[from] ImageError),
    /// A file without bytes.
    #[error("the image {path:?} is empty; make it as long as the memory is to be")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// The host does not tell its size, or does not map it.
    #[error("cannot {what} the image {path:?}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

/// A file, opened and locked.
#[derive(Debug)]
pub(super) struct PmemFile {
    path: PathBuf,
    file: Arc<File>,
    access: Access,
    len: u64,
}

impl PmemFile {
    /// Opens the file of `pmem`.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) fn open(pmem: &pmem::Pmem) -> Result<Self, PmemError> {
        let file = open_locked(&pmem.path_on_host, pmem.access())?;
        let path = pmem.path_on_host.clone();
        match len(&file) {
            Ok(0) => Err(PmemError::Empty { path }),
            Ok(len) => Ok(Self {
                path,
                file: Arc::new(file),
                access: pmem.access(),
                len,
            }),
            Err(source) => {
                let what = "tell the size of";
                Err(PmemError::Host { what, path, source })
            }
        }
    }

    /// The size of the memory.
    pub(super) fn size(&self) -> u64 {
        // OK because a file has at most 2^63 bytes.
        self.len.next_multiple_of(ALIGNMENT)
    }

    /// Maps the file to `start`, with as much memory of nobody's behind it as it takes to have [`Self::size`].
    ///
    /// # Errors
    /// The host does not map it.
    pub(super) fn map(self, start: GuestAddress) -> Result<Mapped, PmemError> {
        let pages = self.len.next_multiple_of(PAGE_SIZE);
        let file = FileOffset::from_arc(self.file.clone(), 0);
        let mut windows = vec![self.window(start, pages, Some(file))?];
        let rest = self.size() - pages;
        if rest > 0 {
            // OK because the memory ends before the address space does.
            let behind = start.unchecked_add(pages);
            windows.push(self.window(behind, rest, None)?);
        }
        Ok(Mapped {
            start,
            windows,
            file: self,
            flush: None,
        })
    }

    fn window(
        &self,
        start: GuestAddress,
        size: u64,
        file: Option<FileOffset>,
    ) -> Result<Window, PmemError> {
        let writable = self.access == Access::ReadWrite;
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let what = "map";
        let refused = |source| PmemError::Host {
            what,
            path: self.path.clone(),
            source,
        };
        let size =
            usize::try_from(size).map_err(|_| refused(io::ErrorKind::FileTooLarge.into()))?;
        let mut builder = MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | write);
        builder = match file {
            Some(file) => builder
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(file),
            None => builder
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
        };
        let mapping = builder.build().map_err(|error| {
            refused(match error {
                MmapRegionError::Mmap(error) => error,
                other => io::Error::other(other),
            })
        })?;
        let memory = GuestRegionMmap::new(mapping, start)
            .ok_or_else(|| refused(io::ErrorKind::FileTooLarge.into()))?;
        Ok(Window {
            memory: Arc::new(memory),
            writable,
        })
    }
}

/// How long a file or a block device is.
fn len(mut file: &File) -> io::Result<u64> {
    // The metadata of a block device does not tell its size.
    file.seek(SeekFrom::End(0))
}

/// Maps the files of persistent memories to where a guest with `memory` has them.
pub(super) fn map(
    memories: &[pmem::Pmem],
    memory: MemorySize,
) -> Result<Vec<Mapped>, MachineError> {
    let files = memories.iter().map(PmemFile::open);
    let files: Vec<_> = files.collect::<Result<_, _>>()?;
    let sizes = files.iter().map(PmemFile::size);
    let starts = places_after_ram(memory, ALIGNMENT, sizes.clone()).ok_or_else(|| {
        let asked = sizes.fold(0, u64::saturating_add);
        MachineError::TooMuchPmem { asked, memory }
    })?;
    let mapped = files.into_iter().zip(starts);
    let mapped = mapped.map(|(file, start)| file.map(start));
    Ok(mapped.collect::<Result<_, PmemError>>()?)
}

/// Looks whether the file of a persistent memory can be had, so that a client learns of a wrong path at once.
pub(crate) fn check_pmem(pmem: &pmem::Pmem) -> Result<(), MachineError> {
    PmemFile::open(pmem)?;
    Ok(())
}

/// What a client is told of a persistent memory that there is not.
pub(crate) fn no_pmem(id: &str) -> Fault {
    Fault::new(format!(
        "there is no persistent memory {id:?}: PUT it before the start"
    ))
}

/// A file that is mapped.
pub(super) struct Mapped {
    start: GuestAddress,
    /// The guest's memory, of which the first part is the file.
    pub(super) windows: Vec<Window>,
    file: PmemFile,
    /// What a flush is, where the guest cannot write.
    flush: Option<Flush>,
}

impl Mapped {
    /// Puts on `bus` what the memory of `pmem` does not serve: writes that the guest may not make, and memory that
    /// the host has lost, which ends the machine. Of the latter Linux's own KVM tells by an error of `KVM_RUN`; there
    /// are others to which it is a place without memory.
    ///
    /// # Errors
    /// There is another device at its addresses.
    pub(super) fn put_on(
        &mut self,
        bus: &mut Bus,
        pmem: &pmem::Pmem,
        ending: &Arc<Ending>,
    ) -> Result<(), BusError> {
        let (id, ending) = (pmem.id.clone(), ending.clone());
        let report = Box::new(move |miss| match miss {
            Miss::Lost => tracing::warn!(
                "pmem {id:?}: the guest writes what it may only read; that is lost, its flushes fail from now on, and \
                 this is told once"
            ),
            Miss::Gone => ending.end(Outcome::Failure(format!(
                "pmem {id:?}: the host could not provide memory that the guest touched"
            ))),
        });
        let gap = Gap::new(self.file.access, report);
        if self.file.access == Access::ReadOnly {
            self.flush = Some(gap.flush());
        }
        let (name, start) = (format!("pmem {}", pmem.id), self.start.raw_value());
        bus.insert(start, self.file.size(), Arc::new(Mutex::new(gap)), &*name)
    }

    /// The device for it, and the file.
    pub(super) fn into_device(self, pmem: &pmem::Pmem) -> (Pmem, PmemFile) {
        let (size, len) = (self.file.size(), self.file.len);
        let id = pmem.id.clone();
        let (flush, report): (Flush, Report) = match self.flush {
            // What it fails for was told.
            Some(flush) => (flush, Box::new(|_| {})),
            None => {
                if size != len {
                    tracing::warn!(
                        "pmem {id:?}: the guest sees {size} bytes, and {:?} has {len}: what is written behind its end \
                         is lost; make it a multiple of 2 MiB long",
                        self.file.path
                    );
                }
                let file = self.file.file.clone();
                // What msync(2) does with MS_SYNC, of which this needs no address (mm/msync.c).
                let flush = Box::new(move || file.sync_data());
                let report = Box::new(move |error: &io::Error| {
                    tracing::warn!(
                        "pmem {id:?}: the host cannot flush: {}; the guest gets I/O errors, and this is told once",
                        one_line(error)
                    );
                });
                (flush, report)
            }
        };
        let limiter = limiter(pmem.rate_limiter);
        let device = Pmem::new((self.start, size), len, flush, limiter, report);
        (device, self.file)
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped")
            .field("start", &self.start)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A persistent memory, for whoever changes it while it is in use.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) id: String,
    pub(super) engine: Arc<Engine<Pmem>>,
    pub(super) kick: EventFd,
    pub(super) file: PmemFile,
}

impl Memory {
    /// Tells if the file has become shorter, which is why a guest may not have been able to go on.
    pub(super) fn tell_if_cut_short(&self) {
        let PmemFile { path, len: was, .. } = &self.file;
        if let Ok(now) = len(&self.file.file)
            && now < *was
        {
            tracing::error!(
                "pmem {:?}: {path:?} has {now} bytes and had {was} when it was mapped: a guest that touches what is \
                 gone cannot go on; leave a file as long as it is while a microVM has it",
                self.id
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(len: u64) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"begin").expect("room");
        file.as_file().set_len(len).expect("room");
        file
    }

    fn asked(file: &tempfile::NamedTempFile, read_only: bool) -> pmem::Pmem {
        pmem::Pmem {
            id: "p".to_owned(),
            path_on_host: file.path().to_owned(),
            root_device: false,
            read_only,
            rate_limiter: None,
        }
    }

    #[test]
    fn memory_is_the_file_and_pages_of_nobodys_up_to_two_mebibytes() {
        for (len, parts) in [
            (1, &[0x1000, 2 * MIB - 0x1000][..]),
            (0x1000, &[0x1000, 2 * MIB - 0x1000]),
            (2 * MIB - 1, &[2 * MIB]),
            (2 * MIB, &[2 * MIB]),
            (2 * MIB + 1, &[2 * MIB + 0x1000, 2 * MIB - 0x1000]),
        ] {
            for read_only in [false, true] {
                let file = file(len);
                let opened = PmemFile::open(&asked(&file, read_only)).expect("valid");
                assert_eq!(opened.size(), parts.iter().sum::<u64>());
                let start = GuestAddress(4 << 30);
                let mapped = opened.map(start).expect("mapped");
                let mut next = start.0;
                for (window, size) in mapped.windows.iter().zip(parts) {
                    let memory = &window.memory;
                    assert_eq!((memory.start_addr().0, memory.len()), (next, *size));
                    assert_eq!(window.writable, !read_only);
                    next += size;
                }
                assert_eq!(mapped.windows.len(), parts.len());
                let byte: u8 = (mapped.windows[0].memory)
                    .read_obj(MemoryRegionAddress(0))
                    .expect("in memory");
                assert_eq!(byte, b'b');
            }
        }
    }

    #[test]
    fn what_is_written_is_in_the_file() {
        let file = file(2 * MIB);
        let mapped = PmemFile::open(&asked(&file, false))
            .and_then(|opened| opened.map(GuestAddress(4 << 30)))
            .expect("valid");
        (mapped.windows[0].memory)
            .write_slice(b"END", MemoryRegionAddress(2 * MIB - 3))
            .expect("in memory");
        let bytes = std::fs::read(file.path()).expect("readable");
        assert!(bytes.starts_with(b"begin\0") && bytes.ends_with(b"\0END"));
    }

    #[test]
    fn file_that_cannot_be_memory_is_refused() {
        let message = |asked: &pmem::Pmem| {
            let refused = PmemFile::open(asked).expect_err("refused");
            one_line(&refused)
        };
        let file = file(0);
        assert!(message(&asked(&file, true)).contains("is empty"));
        file.as_file().set_len(1).expect("room");
        let reader = PmemFile::open(&asked(&file, true)).expect("valid");
        PmemFile::open(&asked(&file, true)).expect("any number of readers");
        assert!(message(&asked(&file, false)).contains("locked by another"));
        drop(reader);
        let writer = PmemFile::open(&asked(&file, false)).expect("one writer");
        assert!(message(&asked(&file, true)).contains("locked by another"));
        drop(writer);
        let mut elsewhere = asked(&file, false);
        for (path, part) in [("/dev/null", "character device"), ("/", "directory")] {
            elsewhere.path_on_host = path.into();
            assert!(message(&elsewhere).contains(part), "{path}");
        }
    }
}
