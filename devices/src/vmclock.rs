//! The VMClock page: where a guest finds what its TSC has to do with real time (include/uapi/linux/vmclock-abi.h).
//!
//! What the page says is [`tsc::vmclock`]'s; here it is written so that a guest that reads it meanwhile knows. The
//! page is memory of the guest's, which may write to it as well, and then fools itself: nothing of it is read back.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use tsc::vmclock::{REGION_SIZE, SIZE, VmClock};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where the sequence count is: after magic, size, version, counter and time, which are constant.
const SEQUENCE: u64 = 12;
/// Where the fields that the count protects begin.
const PROTECTED: usize = 16;

/// A page that a guest sees.
#[derive(Debug)]
pub struct ClockPage {
    memory: Arc<GuestMemoryMmap>,
    at: GuestAddress,
}

impl ClockPage {
    /// Writes the first page, of a guest that does not run yet, at `at` in its memory.
    ///
    /// # Errors
    /// There is no memory of a page's size.
    pub fn create(
        memory: Arc<GuestMemoryMmap>,
        at: GuestAddress,
        page: &VmClock,
    ) -> Result<Self, GuestMemoryError> {
        let mut bytes = [0; REGION_SIZE as usize];
        bytes[..SIZE].copy_from_slice(&page.to_bytes());
        memory.write_slice(&bytes, at)?;
        Ok(Self { memory, at })
    }

    /// Shows `page`, whose constant fields are those of the pages before it. A guest that reads on other CPUs
    /// meanwhile sees an odd count, or another one than before.
    pub fn show(&mut self, page: &VmClock) {
        // The memory was there when this was made.
        let _ = self.write(page);
    }

    fn write(&self, page: &VmClock) -> Result<(), GuestMemoryError> {
        let sequence = self.at.unchecked_add(SEQUENCE);
        let memory = &*self.memory;
        memory.store(page.sequence_before().to_le(), sequence, Ordering::Relaxed)?;
        // No field is written before the odd count,
        fence(Ordering::Release);
        let bytes = page.to_bytes();
        let fields = bytes[PROTECTED..].chunks_exact(8);
        for (at, field) in (PROTECTED as u64..).step_by(8).zip(fields) {
            let mut word = [0; 8];
            word.copy_from_slice(field);
            let word = u64::from_ne_bytes(word);
            memory.store(word, self.at.unchecked_add(at), Ordering::Relaxed)?;
        }
        // and the even one after all of them.
        memory.store(page.sequence().to_le(), sequence, Ordering::Release)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use tsc::vmclock::{Adjtimex, Follower, HostClock, RealSample};
    use tsc::{GuestTsc, Khz, Nanos};

    use super::*;

    const AT: GuestAddress = GuestAddress(0x2000);

    fn memory() -> Arc<GuestMemoryMmap> {
        let ranges = [(GuestAddress(0), 0x3000)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"))
    }

    fn follower() -> Follower {
        Follower::new(Khz::new(1_000_000), Nanos::ZERO)
    }

    fn follow(follower: &mut Follower, nanos: u64) -> VmClock {
        let tsc = GuestTsc::new(nanos);
        let sample = RealSample {
            before: tsc,
            real: Nanos::new(nanos),
            after: tsc,
        };
        let host = HostClock::from_kernel(Adjtimex {
            state: 0,
            status: 0,
            maxerror: 0,
            esterror: 0,
            tai: 0,
        });
        *follower.follow(sample, host)
    }

    fn bytes(memory: &GuestMemoryMmap) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        memory.read_slice(&mut bytes, AT).expect("inside");
        bytes
    }

    #[test]
    fn page_is_shown_as_it_is() {
        let (memory, mut follower) = (memory(), follower());
        memory
            .write_obj(0xaa_u8, GuestAddress(0x2fff))
            .expect("inside");
        let mut page = ClockPage::create(memory.clone(), AT, follower.page()).expect("a page");
        assert_eq!(bytes(&memory), follower.page().to_bytes());
        // Nothing of what was there is left.
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x2fff)).ok(), Some(0));
        for second in 1..4 {
            // Whatever the guest writes into what changes.
            memory
                .write_slice(&[0x55; SIZE - 12], GuestAddress(0x200c))
                .expect("inside");
            let next = follow(&mut follower, second * 1_000_000_000);
            page.show(&next);
            assert_eq!(bytes(&memory), next.to_bytes());
        }
    }

    #[test]
    fn page_outside_of_memory_is_an_error() {
        let page = ClockPage::create(memory(), GuestAddress(0x2001), follower().page());
        assert!(page.is_err());
    }

    #[test]
    fn reader_never_takes_half_of_one_page_for_another() {
        let (memory, mut follower) = (memory(), follower());
        let mut page = ClockPage::create(memory.clone(), AT, follower.page()).expect("a page");
        let first = follow(&mut follower, 1_000_000_000);
        page.show(&first);
        let done = AtomicBool::new(false);
        let sequence = || memory.load::<u32>(AT.unchecked_add(12), Ordering::Acquire);
        thread::scope(|scope| {
            // In each page counter and time are the same number of nanoseconds.
            let reader = scope.spawn(|| {
                let (mut whole, mut latest) = (0_u64, 0);
                while !done.load(Ordering::Relaxed) || whole == 0 {
                    let before = sequence().expect("inside");
                    let word = |at| {
                        let at = AT.unchecked_add(at);
                        memory.load::<u64>(at, Ordering::Relaxed).expect("inside")
                    };
                    let (counter, seconds, fraction) = (word(40), word(72), word(80));
                    fence(Ordering::Acquire);
                    if before & 1 == 1 || sequence().expect("inside") != before {
                        continue;
                    }
                    let below = (u128::from(fraction) * 1_000_000_000) >> 64;
                    let nanos = u128::from(seconds) * 1_000_000_000 + below;
                    assert!(
                        u128::from(counter).abs_diff(nanos) <= 1,
                        "{counter} {nanos}"
                    );
                    assert!(counter >= latest, "an older page");
                    (whole, latest) = (whole + 1, counter);
                }
                whole
            });
            for step in 0..200_000_u64 {
                let next = follow(&mut follower, 2_000_000_000 + step * 777_777_777);
                page.show(&next);
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().expect("each page was whole") > 0);
        });
    }
}
