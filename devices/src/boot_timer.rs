//! The register with which a guest says "I have booted".

use std::fmt;

use crate::bus::{BusDevice, Reaction};
use crate::trigger::Trigger;

/// The byte that says so, as in Firecracker's protocol (there the register is at guest physical
/// address 0xc000_0000).
pub const BOOTED: u8 = 123;

/// The boot timer: a write of the one byte [`BOOTED`] to its first address presses the button, each
/// time. Anything else is ignored, reads included.
pub struct BootTimer {
    booted: Box<dyn Trigger>,
}

impl BootTimer {
    /// A boot timer that presses `booted`, on the vCPU thread that wrote, so that whoever supplies
    /// it can take the time at once.
    #[must_use]
    pub fn new(booted: Box<dyn Trigger>) -> Self {
        Self { booted }
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        if offset == 0 && data == [BOOTED] {
            self.booted.trigger();
        }
        Reaction::None
    }
}

impl fmt::Debug for BootTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootTimer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn write_of_the_byte_fires_each_time_and_nothing_else_does() {
        let count = Arc::new(AtomicUsize::new(0));
        let pressed = Arc::clone(&count);
        let mut timer = BootTimer::new(Box::new(move || {
            pressed.fetch_add(1, Ordering::Relaxed);
        }));
        // (offset, data, presses so far)
        let rows: [(u64, &[u8], usize); 7] = [
            (0, &[123], 1),
            (0, &[122], 1),
            (0, &[124], 1),
            (1, &[123], 1),
            (0, &[123, 0, 0, 0], 1),
            (0, &[], 1),
            (0, &[123], 2),
        ];
        for (offset, data, expected) in rows {
            assert_eq!(timer.write(offset, data), Reaction::None);
            assert_eq!(count.load(Ordering::Relaxed), expected, "{offset} {data:?}");
        }
    }

    #[test]
    fn read_leaves_the_open_bus() {
        let mut timer = BootTimer::new(Box::new(crate::trigger::Unconnected));
        let mut data = [0xff; 4];
        timer.read(0, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
