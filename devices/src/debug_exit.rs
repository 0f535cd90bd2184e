//! A port through which a test in the guest ends the machine with a result.

use crate::bus::{BusDevice, Reaction};

/// The debug-exit port, by convention at 0xf4 and four bytes long, as QEMU's `isa-debug-exit` is
/// in the command lines of kvm-unit-tests (`x86/run`: `iobase=0xf4,iosize=0x4`).
///
/// A write of `v` ends the machine; the process status is to be `(v << 1) | 1`, which is never 0, so
/// that a guest cannot be mistaken for one that ended by itself. Of a write wider than a byte the
/// lowest byte counts, wherever in the range it goes. Reads give 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugExit;

impl BusDevice for DebugExit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Reaction {
        data.first()
            .map_or(Reaction::None, |&value| Reaction::DebugExit(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_ends_the_machine_with_the_lowest_byte() {
        let mut device = DebugExit;
        assert_eq!(device.write(0, &[0]), Reaction::DebugExit(0));
        assert_eq!(device.write(0, &[0x10]), Reaction::DebugExit(0x10));
        assert_eq!(
            device.write(0, &0x1234_u16.to_le_bytes()),
            Reaction::DebugExit(0x34)
        );
        assert_eq!(
            device.write(2, &0x1234_5678_u32.to_le_bytes()),
            Reaction::DebugExit(0x78)
        );
        assert_eq!(device.write(0, &[]), Reaction::None);
    }

    #[test]
    fn read_gives_zero() {
        let mut data = [0xff; 4];
        DebugExit.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
