//! Guest memory, backed by a memfd so that it can be shared, sealed and snapshotted by descriptor.

use std::fs::File;
use std::io;

use arch::memory::{MemorySize, ram_regions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestMemoryMmap};

/// Guest memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The guest wants more than there is.
    #[error(
        "{asked} MiB of guest memory are more than the {available} MiB that this host has: ask for less"
    )]
    MoreThanHost {
        /// What the configuration asks for, in MiB.
        asked: u64,
        /// What the host has in all, in MiB.
        available: u64,
    },
    /// The host refused the file behind the memory.
    #[error("cannot create a memfd of {mib} MiB for guest memory")]
    File {
        /// Its size in MiB.
        mib: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The process may not have such a file.
    #[error(
        "guest memory of {mib} MiB is more than this process may have in a file (RLIMIT_FSIZE), and it is in one: raise \
         that limit (the jailer's --resource-limit fsize=BYTES) or leave it out"
    )]
    Limit {
        /// Its size in MiB.
        mib: u64,
    },
    /// The host refused the mapping.
    #[error("cannot map {mib} MiB of guest memory")]
    Map {
        /// Its size in MiB.
        mib: u64,
        /// The kernel's reason.
        source: FromRangesError,
    },
}

/// Refuses a size that the host cannot hold even when it runs nothing else.
///
/// # Errors
/// [`MemoryError::MoreThanHost`] with both sizes.
pub(crate) fn check_against_host(size: MemorySize) -> Result<(), MemoryError> {
    let info = rustix::system::sysinfo();
    let available = info.totalram.saturating_mul(u64::from(info.mem_unit)) >> 20;
    let asked = size.mib();
    if asked > available {
        return Err(MemoryError::MoreThanHost { asked, available });
    }
    Ok(())
}

/// Creates zeroed guest memory of `size`, laid out as [`ram_regions`] says, in one memfd whose offsets
/// are the regions' sizes added up. Pages are taken from the host when first touched.
///
/// # Errors
/// What the host refused.
pub(crate) fn create(size: MemorySize) -> Result<GuestMemoryMmap, MemoryError> {
    let mib = size.mib();
    let refused = |error: rustix::io::Errno| match error {
        rustix::io::Errno::FBIG => MemoryError::Limit { mib },
        error => MemoryError::File {
            mib,
            source: error.into(),
        },
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = memfd_create("guest-memory", flags).map_err(refused)?;
    ftruncate(&memfd, mib << 20).map_err(refused)?;
    // Nobody can cut the file short under the mapping: a page that vanished would be a SIGBUS.
    fcntl_add_seals(
        &memfd,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )
    .map_err(refused)?;
    let memfd = std::sync::Arc::new(File::from(memfd));
    let mut offset = 0;
    let ranges = ram_regions(size).into_iter().map(|(base, len)| {
        let file = FileOffset::from_arc(memfd.clone(), offset);
        // OK because the sizes add up to `size`, which is bounded by its type.
        offset += len as u64;
        (base, len, Some(file))
    });
    GuestMemoryMmap::from_ranges_with_files(ranges.collect::<Vec<_>>())
        .map_err(|source| MemoryError::Map { mib, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    #[test]
    fn create_gives_zeroed_memory_of_the_size_asked() {
        let memory = create(MemorySize::from_mib(8).expect("in bounds")).expect("host has 8 MiB");
        assert_eq!(memory.last_addr(), GuestAddress((8 << 20) - 1));
        assert_eq!(
            memory
                .read_obj::<u64>(GuestAddress(0x1000))
                .expect("inside"),
            0
        );
    }

    #[test]
    fn create_across_the_hole_keeps_the_regions_apart() {
        // 4 GiB: 3 GiB below the hole, 1 GiB from 4 GiB on. Only touched pages cost memory.
        let memory = create(MemorySize::from_mib(4096).expect("in bounds")).expect("sparse");
        memory
            .write_obj(0xaa_u8, GuestAddress(0xbfff_ffff))
            .expect("below the hole");
        memory
            .write_obj(0xbb_u8, GuestAddress(0x1_0000_0000))
            .expect("above the hole");
        assert!(memory.write_obj(0_u8, GuestAddress(0xc000_0000)).is_err());
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(0xbfff_ffff))
                .expect("inside"),
            0xaa
        );
    }

    #[test]
    fn check_against_host_refuses_more_than_there_is() {
        let info = rustix::system::sysinfo();
        let host = (info.totalram * u64::from(info.mem_unit)) >> 20;
        check_against_host(MemorySize::from_mib(1).expect("in bounds")).expect("1 MiB fits");
        let larger = MemorySize::from_mib(host + 1).expect("in bounds");
        let message = check_against_host(larger)
            .expect_err("larger than the host")
            .to_string();
        assert!(message.contains(&host.to_string()), "{message}");
    }
}
