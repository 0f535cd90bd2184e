//! The registers of a device as a driver reads them, in a page of memory.
//!
//! No register changes because it is read (4.2.2), so that a guest can read them without leaving to its hypervisor: the
//! page is memory that it can read and not write. A driver reads `InterruptStatus` at each interrupt; the exit that is
//! saved there is a large part of what an interrupt costs. Its writes leave as ever.
//!
//! Whoever changes what a driver would read puts it here before the driver can know that it changed: before the
//! driver's own write has ended, or before the interrupt that tells of it. `InterruptStatus` and `Status` are changed by
//! two threads, each bit in one step.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arch::layout::VIRTIO_MMIO_SIZE;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    self as register, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
};
use vm_memory::{GuestAddress, GuestRegionMmap, VolatileMemory};

use super::ConfigSpace;

/// The size of a page.
const SIZE: usize = 4096;
const _: () = assert!(SIZE as u64 == VIRTIO_MMIO_SIZE);

/// The registers of one device as a driver reads them: memory that a guest can have, to read and not to write.
#[derive(Clone)]
pub struct RegisterPage {
    pages: Arc<GuestRegionMmap>,
    /// Where it is in there.
    at: usize,
}

impl RegisterPage {
    /// The pages of devices side by side, each of which no other device has.
    pub fn all_of(pages: &Arc<GuestRegionMmap>) -> impl Iterator<Item = Self> + use<> {
        let pages = pages.clone();
        // What is less than a page is none.
        (0..pages.size() / SIZE).map(move |index| Self {
            pages: pages.clone(),
            at: index * SIZE,
        })
    }

    /// One that no guest sees.
    ///
    /// # Errors
    /// The host gives no memory.
    pub fn apart() -> std::io::Result<Self> {
        let page = GuestRegionMmap::from_range(GuestAddress(0), SIZE, None);
        let page = page.map_err(std::io::Error::other)?;
        let page = Self::all_of(&Arc::new(page)).next();
        page.ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
    }

    /// What a guest reads in the word at `offset`.
    #[must_use]
    pub fn read(&self, offset: u32) -> u32 {
        self.word(offset)
            .map_or(0, |word| u32::from_le(word.load(Ordering::SeqCst)))
    }

    fn word(&self, offset: u32) -> Option<&AtomicU32> {
        let at = self.at.checked_add(usize::try_from(offset).ok()?)?;
        self.pages.get_atomic_ref(at).ok()
    }

    pub(super) fn store(&self, offset: u32, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), Ordering::SeqCst);
        }
    }

    fn add(&self, offset: u32, bits: u32) {
        if let Some(word) = self.word(offset) {
            word.fetch_or(bits.to_le(), Ordering::SeqCst);
        }
    }

    /// The device is reset: it has nothing to tell, and no driver.
    pub(super) fn reset(&self) {
        self.store(register::VIRTIO_MMIO_INTERRUPT_STATUS, 0);
        self.store(register::VIRTIO_MMIO_STATUS, 0);
    }

    /// What there was to tell, and how often the configuration space had changed, in a device that was saved.
    pub(super) fn restore(&self, reasons: u32, generation: u32) {
        let known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        self.store(register::VIRTIO_MMIO_INTERRUPT_STATUS, reasons & known);
        self.store(register::VIRTIO_MMIO_CONFIG_GENERATION, generation);
    }

    /// Adds to the reasons of the interrupt that is to come.
    pub(super) fn add_reason(&self, reason: u32) {
        self.add(register::VIRTIO_MMIO_INTERRUPT_STATUS, reason);
    }

    /// The driver has seen these reasons.
    pub(super) fn acknowledge(&self, reasons: u32) {
        if let Some(word) = self.word(register::VIRTIO_MMIO_INTERRUPT_STATUS) {
            word.fetch_and(!reasons.to_le(), Ordering::SeqCst);
        }
    }

    /// The driver has come so far. Nothing but a reset takes a bit away.
    pub(super) fn add_status(&self, status: u32) {
        self.add(register::VIRTIO_MMIO_STATUS, status);
    }

    /// The device wants a reset.
    pub(super) fn fail(&self) {
        self.add_status(VIRTIO_CONFIG_S_NEEDS_RESET);
    }

    /// The driver, or who makes the device, has the configuration space be `space`.
    pub(super) fn put_config(&self, space: &ConfigSpace) {
        for (offset, value) in words(space) {
            self.store(offset, value);
        }
    }

    /// The device has its configuration space be `space`.
    ///
    /// A driver takes what it read between two equal generations for fields that belong together (2.5.3), and it can
    /// read while they are written. So they change word by word, each with a generation of its own, as if the device
    /// had changed so many times: what a driver takes for whole is then the space between two of these changes. Words
    /// that get smaller come first, so that a field of two words, such as a capacity, is in between no more than the
    /// greater of what it was and what it will be. The interrupt that follows has the driver read once more.
    pub(super) fn change_config(&self, space: &ConfigSpace) {
        for smaller in [true, false] {
            for (offset, value) in words(space) {
                let before = self.read(offset);
                if before != value && (value < before) == smaller {
                    self.store(offset, value);
                    let generation = self.read(register::VIRTIO_MMIO_CONFIG_GENERATION);
                    self.store(
                        register::VIRTIO_MMIO_CONFIG_GENERATION,
                        generation.wrapping_add(1),
                    );
                }
            }
        }
    }
}

/// The words of a configuration space, and where they are.
fn words(space: &ConfigSpace) -> impl Iterator<Item = (u32, u32)> {
    let offsets = (register::VIRTIO_MMIO_CONFIG..).step_by(size_of::<u32>());
    let (words, _) = space.bytes.as_chunks();
    offsets.zip(words.iter().copied().map(u32::from_le_bytes))
}

impl fmt::Debug for RegisterPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterPage")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn pages_side_by_side_have_nothing_in_common() {
        let pages = GuestRegionMmap::from_range(GuestAddress(0), 3 * SIZE, None).unwrap();
        let pages: Vec<_> = RegisterPage::all_of(&Arc::new(pages)).collect();
        assert_eq!(pages.len(), 3);
        let last = 4092;
        for (page, value) in pages.iter().zip(1..) {
            page.store(0, value);
            page.store(last, value);
        }
        for (page, value) in pages.iter().zip(1..) {
            assert_eq!([page.read(0), page.read(last)], [value; 2]);
        }
    }

    #[test]
    fn reasons_are_there_until_each_is_acknowledged() {
        let page = RegisterPage::apart().unwrap();
        let status = || page.read(register::VIRTIO_MMIO_INTERRUPT_STATUS);
        page.add_reason(1);
        page.add_reason(2);
        assert_eq!(status(), 3);
        page.acknowledge(1);
        assert_eq!(status(), 2);
        page.reset();
        assert_eq!(status(), 0);
    }

    fn space_of(words: &[u32]) -> ConfigSpace {
        let add = |space: ConfigSpace, word: &u32| space.with(&word.to_le_bytes());
        words.iter().fold(ConfigSpace::EMPTY, add)
    }

    #[test]
    fn config_read_between_equal_generations_is_one_that_there_was() {
        let page = RegisterPage::apart().unwrap();
        let [first, last] = [0, 60].map(|at| register::VIRTIO_MMIO_CONFIG + at);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut whole = 0;
                while !done.load(Ordering::SeqCst) {
                    let generation = || page.read(register::VIRTIO_MMIO_CONFIG_GENERATION);
                    let before = generation();
                    // Against the order in which they are written.
                    let [last, first] = [last, first].map(|offset| page.read(offset));
                    if generation() == before {
                        assert!(first == last || first == last + 1, "{first} {last}");
                        whole += 1;
                    }
                }
                whole
            });
            for round in 1..=50_000 {
                page.change_config(&space_of(&[round; 16]));
            }
            done.store(true, Ordering::SeqCst);
            assert!(reader.join().expect("what was read was there") > 0);
        });
    }

    #[test]
    fn config_field_of_two_words_is_no_greater_in_between() {
        for (before, after) in [
            ([5, 2], [9, 1]),
            ([9, 1], [5, 2]),
            ([5, 2], [3, 1]),
            ([3, 1], [5, 2]),
        ] {
            let page = RegisterPage::apart().unwrap();
            page.put_config(&space_of(&before));
            let value = |[low, high]: [u32; 2]| u64::from(high) << 32 | u64::from(low);
            let greatest = value(before).max(value(after));
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        let generation = || page.read(register::VIRTIO_MMIO_CONFIG_GENERATION);
                        let at = generation();
                        let read = [0, 4].map(|at| page.read(register::VIRTIO_MMIO_CONFIG + at));
                        assert!(generation() != at || value(read) <= greatest, "{read:?}");
                    }
                });
                for _ in 0..5_000 {
                    page.change_config(&space_of(&after));
                    page.change_config(&space_of(&before));
                }
                done.store(true, Ordering::SeqCst);
            });
        }
    }

    #[test]
    fn generation_is_another_after_a_change_alone() {
        let page = RegisterPage::apart().unwrap();
        let generation = || page.read(register::VIRTIO_MMIO_CONFIG_GENERATION);
        page.put_config(&space_of(&[1, 2]));
        assert_eq!(generation(), 0);
        page.change_config(&space_of(&[1, 3]));
        let changed = generation();
        assert_ne!(changed, 0);
        page.change_config(&space_of(&[1, 3]));
        assert_eq!(generation(), changed);
    }
}
