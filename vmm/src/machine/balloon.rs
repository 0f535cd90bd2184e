//! The memory behind a balloon: pages that the guest does without are the host's.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use devices::virtio::balloon::{Balloon, Host, Told};
use devices::virtio::{Engine, Faults};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tsc::Nanos;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::host_clock;
use crate::metrics::Sample;

/// A guest's memory, from which pages are taken.
#[derive(Debug)]
pub(super) struct Pages(pub(super) Arc<GuestMemoryMmap>);

impl Host for Pages {
    fn now(&mut self) -> Nanos {
        host_clock::monotonic_raw()
    }

    /// Makes holes in the file behind the memory, which leave all mappings of it, KVM's included. Its seals forbid
    /// another size, and a hole does not change that (`F_SEAL_SHRINK`, fcntl(2)).
    fn give_back(&mut self, address: GuestAddress, len: u64) -> io::Result<()> {
        let outside = || io::Error::from(ErrorKind::InvalidInput);
        let (mut at, mut left) = (address, len);
        while left > 0 {
            let region = self.0.find_region(at).ok_or_else(outside)?;
            let file = region.file_offset().ok_or_else(outside)?;
            // OK because the address is in the region.
            let inside = at.unchecked_offset_from(region.start_addr());
            let here = left.min(region.len() - inside);
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            loop {
                match fallocate(file.file(), how, file.start() + inside, here) {
                    Err(Errno::INTR) => {}
                    other => break other?,
                }
            }
            left -= here;
            // OK because what is left is in memory.
            at = at.unchecked_add(here);
        }
        Ok(())
    }
}

/// A balloon, for whoever changes it while it is in use.
#[derive(Debug)]
pub(super) struct Inflated {
    pub(super) engine: Arc<Engine<Balloon<Pages>>>,
    pub(super) kick: EventFd,
    pub(super) told: Arc<Told>,
}

impl Inflated {
    /// How many pages the driver says that the balloon has.
    fn actual(&self) -> u32 {
        let mut actual = [0; 4];
        self.engine.read_config(4, &mut actual);
        u32::from_le_bytes(actual)
    }
}

/// What is known of a balloon.
#[derive(Clone, Debug, Default)]
pub(crate) struct BalloonState {
    /// How many pages the guest's driver has put into it.
    pub(crate) actual: u32,
    /// What the guest's driver was told last about its free pages,
    pub(crate) hinting_command: u32,
    /// and what it said last.
    pub(crate) hinting_said: Option<u32>,
    /// What the guest told last, by tags.
    pub(crate) statistics: [Option<u64>; devices::virtio::balloon::STATISTICS],
}

impl From<&Inflated> for BalloonState {
    fn from(balloon: &Inflated) -> Self {
        Self {
            actual: balloon.actual(),
            hinting_command: balloon.told.hinting.command(),
            hinting_said: balloon.told.hinting.said(),
            statistics: std::array::from_fn(|tag| balloon.told.statistic(tag)),
        }
    }
}

/// Counts what a balloon does.
pub(super) fn count(told: &Told, faults: &Faults, samples: &mut Vec<Sample>) {
    let failures = told.failures.get().wrapping_add(faults.queues());
    samples.extend([
        Sample::counter("balloon", "activate_fails", faults.activations.get()),
        Sample::counter("balloon", "event_fails", failures),
    ]);
    for (field, count) in [
        ("inflate_count", &told.inflations),
        ("deflate_count", &told.deflations),
        ("stats_updates_count", &told.statistics_updates),
        ("stats_update_fails", &told.statistics_failures),
        ("free_page_report_count", &told.reports),
        ("free_page_report_freed", &told.reported),
        ("free_page_report_fails", &told.report_failures),
        ("free_page_hint_count", &told.hints),
        ("free_page_hint_freed", &told.hinted),
        ("free_page_hint_fails", &told.hint_failures),
    ] {
        samples.push(Sample::counter("balloon", field, count.get()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use arch::memory::MemorySize;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory;

    /// How much of the host's memory is behind the guest's, in bytes.
    fn taken(memory: &GuestMemoryMmap) -> u64 {
        let region = memory.iter().next().expect("a region");
        let file = region.file_offset().expect("a file").file();
        // st_blocks counts 512 bytes (stat(2)).
        file.metadata().expect("a file").blocks() * 512
    }

    #[test]
    fn pages_that_are_given_back_are_the_hosts_and_read_as_zeros() {
        let size = MemorySize::from_mib(8).expect("in bounds");
        let memory = Arc::new(memory::create(size).expect("host has 8 MiB"));
        memory
            .write_slice(&[1; 8 << 20], GuestAddress(0))
            .expect("in memory");
        assert_eq!(taken(&memory), 8 << 20);
        let mut pages = Pages(memory.clone());
        pages
            .give_back(GuestAddress(0x1000), 3 << 20)
            .expect("the seals allow it");
        assert_eq!(taken(&memory), 5 << 20);
        let end = 0x1000 + (3 << 20);
        for (address, byte) in [(0xfff, 1), (0x1000, 0), (end - 1, 0), (end, 1)] {
            let found: u8 = memory.read_obj(GuestAddress(address)).expect("in memory");
            assert_eq!(found, byte, "{address:#x}");
        }
        // Touched, if only to be read, a page is there again: these two were.
        assert_eq!(taken(&memory), (5 << 20) + 0x2000);
    }

    #[test]
    fn pages_on_both_sides_of_the_hole_are_found_in_the_file() {
        // 3 GiB below the hole and 1 GiB from 4 GiB on, of which only what is touched takes memory.
        let size = MemorySize::from_mib(4096).expect("in bounds");
        let memory = Arc::new(memory::create(size).expect("sparse"));
        let mut pages = Pages(memory.clone());
        for address in [0xbfff_f000, 0x1_0000_0000] {
            memory
                .write_obj(1_u8, GuestAddress(address))
                .expect("in memory");
            let before = taken(&memory);
            let given = pages.give_back(GuestAddress(address), 0x1000);
            given.expect("in memory");
            assert_eq!(before - taken(&memory), 0x1000, "{address:#x}");
        }
        assert!(pages.give_back(GuestAddress(0xbfff_f000), 0x2000).is_err());
    }
}
