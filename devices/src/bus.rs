//! Address decoding: which device answers at which port or guest physical address.
//!
//! A machine has two buses of this kind, one of I/O ports and one of memory-mapped registers. A bus
//! is filled while the machine is put together and only read afterwards, so the vCPU threads share
//! it without a lock of its own: an access finds its device by binary search, then takes that
//! device's lock and no other, and allocates nothing.
//!
//! # Accesses that do not fit
//!
//! - **Nothing there**: reads give all ones, as the pulled-up lines of an undriven PC bus do; writes
//!   vanish. Guests rely on it: Linux takes 0xffff from the PCI configuration ports as "no PCI"
//!   (`arch/x86/pci/direct.c`, `pci_check_type1`).
//! - **Past the end of a device**: the access belongs to the device in which it begins. The bytes
//!   beyond that device read as ones and are dropped when written, even if another device begins
//!   there. A chipset decodes so too, and it matters: a 32-bit write of a PCI configuration address
//!   to port 0xcf8 must not reach the reset register at port 0xcf9.
//! - **Empty**: an access of no bytes touches nothing.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

/// What a write asks of the whole machine. The vCPU loop obeys it; the device cannot.
#[must_use = "the machine must reset or stop when a device says so"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing: the guest goes on.
    None,
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest switched the machine off.
    PowerOff,
    /// The guest wrote this value to the debug-exit port and expects its machine to end with the
    /// process status that belongs to it: see [`DebugExit`](crate::debug_exit::DebugExit).
    DebugExit(u8),
}

/// A device as a bus sees it: a range of addresses.
///
/// Offsets count from the start of the device's range. `offset + data.len()` never exceeds the
/// length under which the device was inserted, when a [`Bus`] makes the call; but a device must
/// bear any offset and any width, because both come from the guest.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes at `offset`. On entry `data` is all ones, what an undriven bus would
    /// give: a device may leave bytes as they are where it has no register.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` and says what follows for the machine.
    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction;
}

/// Why a device cannot be where it was to be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BusError {
    /// The range has no addresses.
    #[error("device {name} at {base:#x} has a length of zero")]
    Empty {
        /// The device that was to be inserted.
        name: Box<str>,
        /// Its first address.
        base: u64,
    },
    /// The range runs past the last address that 64 bits can express.
    #[error(
        "device {name} at {base:#x} with length {len:#x} runs past the end of the address space"
    )]
    WrapsAround {
        /// The device that was to be inserted.
        name: Box<str>,
        /// Its first address.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Another device is there already.
    #[error(
        "device {name} at {base:#x}..={last:#x} overlaps device {other} at {other_base:#x}..={other_last:#x}"
    )]
    Overlap {
        /// The device that was to be inserted.
        name: Box<str>,
        /// Its first address.
        base: u64,
        /// Its last address.
        last: u64,
        /// The device that is there.
        other: Box<str>,
        /// Its first address.
        other_base: u64,
        /// Its last address.
        other_last: u64,
    },
}

/// One device with the addresses at which it answers.
struct Slot {
    base: u64,
    /// The last address, not the one after it, so that a range may end where the space ends.
    last: u64,
    /// What offset the device sees at `base`.
    offset: u64,
    name: Box<str>,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl Slot {
    /// What offset the device sees at `addr`, which is in the slot.
    fn offset_of(&self, addr: u64) -> u64 {
        self.offset.wrapping_add(addr - self.base)
    }

    /// The device, locked. A panic in a device poisons its lock but must not take the other vCPUs
    /// down: registers are plain values with no invariant that memory safety depends on, so the
    /// guest meets the device as the panic left it.
    fn lock(&self) -> MutexGuard<'_, dyn BusDevice + 'static> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Devices by address: see the [module](self).
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use devices::bus::{Bus, Reaction};
/// use devices::debug_exit::DebugExit;
///
/// let mut ports = Bus::new();
/// ports.insert(0xf4, 4, Arc::new(Mutex::new(DebugExit)), "debug-exit")?;
/// assert_eq!(ports.write(0xf4, &[3]), Reaction::DebugExit(3));
///
/// let mut nothing_there = [0; 2];
/// ports.read(0xcf8, &mut nothing_there);
/// assert_eq!(nothing_there, [0xff, 0xff]);
/// # Ok::<(), devices::bus::BusError>(())
/// ```
#[derive(Default)]
pub struct Bus {
    /// Sorted by address; no two overlap.
    slots: Vec<Slot>,
}

impl Bus {
    /// A bus without devices.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// Puts `device` at `base..base + len`. `name` is for messages.
    ///
    /// # Errors
    ///
    /// If `len` is zero, if the range runs past the end of the 64-bit address space, or if another
    /// device is in any part of it. The bus is then unchanged.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
        name: impl Into<Box<str>>,
    ) -> Result<(), BusError> {
        self.insert_part(base, len, 0, device, name)
    }

    /// Puts a part of `device` at `base..base + len`: the device sees offsets from `offset` on. For a
    /// device whose addresses enclose another's.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    pub fn insert_part(
        &mut self,
        base: u64,
        len: u64,
        offset: u64,
        device: Arc<Mutex<dyn BusDevice>>,
        name: impl Into<Box<str>>,
    ) -> Result<(), BusError> {
        let name = name.into();
        let Some(span) = len.checked_sub(1) else {
            return Err(BusError::Empty { name, base });
        };
        let Some(last) = base.checked_add(span) else {
            return Err(BusError::WrapsAround { name, base, len });
        };
        // The slots are disjoint and sorted, so the first that ends at or after `base` is the only
        // one that needs a look: if it begins after `last`, so do all that follow.
        let at = self.slots.partition_point(|slot| slot.last < base);
        if let Some(other) = self.slots.get(at).filter(|slot| slot.base <= last) {
            return Err(BusError::Overlap {
                name,
                base,
                last,
                other: other.name.clone(),
                other_base: other.base,
                other_last: other.last,
            });
        }
        self.slots.insert(
            at,
            Slot {
                base,
                last,
                offset,
                name,
                device,
            },
        );
        Ok(())
    }

    /// Reads `data.len()` bytes at `addr`.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, len)) = self.find(addr, data.len()) {
            slot.lock().read(slot.offset_of(addr), &mut data[..len]);
        }
    }

    /// Writes `data` at `addr` and returns what the device asks of the machine.
    pub fn write(&self, addr: u64, data: &[u8]) -> Reaction {
        match self.find(addr, data.len()) {
            Some((slot, len)) => slot.lock().write(slot.offset_of(addr), &data[..len]),
            None => Reaction::None,
        }
    }

    /// The name of the device at `addr`, for logs.
    #[must_use]
    pub fn name_at(&self, addr: u64) -> Option<&str> {
        self.find(addr, 1).map(|(slot, _)| &*slot.name)
    }

    /// The device in whose range `addr` is, and how many of `len` bytes lie in it: at least one.
    fn find(&self, addr: u64, len: usize) -> Option<(&Slot, usize)> {
        let after = self.slots.partition_point(|slot| slot.base <= addr);
        let slot = self.slots.get(after.checked_sub(1)?)?;
        // Bytes of the device after the one at `addr`; none if the access begins behind its end.
        let following = slot.last.checked_sub(addr)?;
        let len = usize::try_from(following).map_or(len, |n| len.min(n.saturating_add(1)));
        (len > 0).then_some((slot, len))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for slot in &self.slots {
            map.entry(
                &format_args!("{:#x}..={:#x}", slot.base, slot.last),
                &slot.name,
            );
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads give `fill`; writes are recorded.
    struct Recorder {
        fill: u8,
        writes: Vec<(u64, Vec<u8>)>,
    }

    impl BusDevice for Recorder {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data.fill(self.fill);
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
            self.writes.push((offset, data.to_vec()));
            Reaction::None
        }
    }

    fn recorder(fill: u8) -> Arc<Mutex<Recorder>> {
        Arc::new(Mutex::new(Recorder {
            fill,
            writes: Vec::new(),
        }))
    }

    fn read<const N: usize>(bus: &Bus, addr: u64) -> [u8; N] {
        let mut data = [0x5a; N];
        bus.read(addr, &mut data);
        data
    }

    #[test]
    fn insert_zero_length_is_refused() {
        let error = Bus::new().insert(0x70, 0, recorder(0), "cmos").unwrap_err();
        assert_eq!(
            error.to_string(),
            "device cmos at 0x70 has a length of zero"
        );
    }

    #[test]
    fn insert_at_the_end_of_the_address_space_fits_and_one_more_wraps() {
        let mut bus = Bus::new();
        let base = u64::MAX - 3;
        let error = bus.insert(base, 5, recorder(0), "last").unwrap_err();
        assert!(matches!(error, BusError::WrapsAround { base: b, len: 5, .. } if b == base));
        bus.insert(base, 4, recorder(7), "last").unwrap();
        assert_eq!(read::<1>(&bus, u64::MAX), [7]);
        // The access itself runs past the end of the address space.
        assert_eq!(read::<4>(&bus, u64::MAX), [7, 0xff, 0xff, 0xff]);
        assert_eq!(read::<1>(&bus, base - 1), [0xff]);
    }

    #[test]
    fn insert_over_the_whole_address_space_less_one_byte_works() {
        let mut bus = Bus::new();
        bus.insert(0, u64::MAX, recorder(7), "all").unwrap();
        assert_eq!(read::<8>(&bus, 0), [7; 8]);
        assert_eq!(read::<1>(&bus, u64::MAX), [0xff]);
    }

    #[test]
    fn parts_of_a_device_enclose_another() {
        let mut bus = Bus::new();
        let (outer, inner) = (recorder(1), recorder(2));
        bus.insert(0x60, 1, outer.clone(), "i8042").unwrap();
        bus.insert_part(0x64, 2, 4, outer.clone(), "i8042").unwrap();
        bus.insert(0x61, 1, inner.clone(), "speaker").unwrap();
        for port in [0x60, 0x61, 0x64, 0x65] {
            assert_eq!(bus.write(port, &[9]), Reaction::None);
        }
        let offsets = |device: &Arc<Mutex<Recorder>>| -> Vec<u64> {
            let device = device.lock().unwrap();
            device.writes.iter().map(|write| write.0).collect()
        };
        assert_eq!(offsets(&outer), [0, 4, 5]);
        assert_eq!(offsets(&inner), [0]);
    }

    #[test]
    fn insert_overlap_is_refused_and_names_both() {
        let mut bus = Bus::new();
        bus.insert(0x3f8, 8, recorder(0), "com1").unwrap();
        bus.insert(0x60, 5, recorder(0), "i8042").unwrap();
        // (base, length, what it meets)
        let rows = [
            (0x3f8, 8, Some("com1")),  // the same range
            (0x3f7, 2, Some("com1")),  // its first byte
            (0x3ff, 1, Some("com1")),  // its last byte
            (0x3fa, 2, Some("com1")),  // inside
            (0x3f0, 32, Some("com1")), // around
            (0x00, 0x61, Some("i8042")),
            (0x3f0, 8, None), // ends at 0x3f7
            (0x400, 8, None), // begins after 0x3ff
            (0x65, 1, None),  // between the two
        ];
        for (base, len, meets) in rows {
            let result = bus.insert(base, len, recorder(0), "new");
            match (meets, result) {
                (None, Ok(())) => {}
                (Some(expected), Err(BusError::Overlap { name, other, .. })) => {
                    assert_eq!((&*name, &*other), ("new", expected), "{base:#x}+{len:#x}");
                }
                (_, result) => panic!("{base:#x}+{len:#x}: {result:?}"),
            }
        }
        let error = bus.insert(0x3fa, 2, recorder(0), "new").unwrap_err();
        assert_eq!(
            error.to_string(),
            "device new at 0x3fa..=0x3fb overlaps device com1 at 0x3f8..=0x3ff"
        );
    }

    #[test]
    fn access_to_nothing_reads_ones_and_drops_writes() {
        let bus = Bus::new();
        assert_eq!(read::<4>(&bus, 0xcf8), [0xff; 4]);
        assert_eq!(bus.write(0xcf8, &[1, 2, 3, 4]), Reaction::None);
    }

    #[test]
    fn access_is_routed_with_its_offset() {
        let (low, high) = (recorder(1), recorder(2));
        let mut bus = Bus::new();
        bus.insert(0x200, 0x10, high.clone(), "high").unwrap();
        bus.insert(0x100, 0x10, low.clone(), "low").unwrap();
        for (addr, expected) in [(0x100, 1), (0x10f, 1), (0x200, 2), (0x20f, 2)] {
            assert_eq!(read::<1>(&bus, addr), [expected], "{addr:#x}");
        }
        for addr in [0x0ff, 0x110, 0x1ff, 0x210] {
            assert_eq!(read::<1>(&bus, addr), [0xff], "{addr:#x}");
        }
        let _ = bus.write(0x10c, &[9, 8]);
        assert_eq!(low.lock().unwrap().writes, [(0xc, vec![9, 8])]);
        assert!(high.lock().unwrap().writes.is_empty());
        assert_eq!(bus.name_at(0x20f), Some("high"));
        assert_eq!(bus.name_at(0x210), None);
    }

    #[test]
    fn access_past_the_end_belongs_to_the_device_where_it_begins() {
        let (first, second) = (recorder(1), recorder(2));
        let mut bus = Bus::new();
        bus.insert(0x10, 2, first.clone(), "first").unwrap();
        bus.insert(0x12, 2, second.clone(), "second").unwrap();
        assert_eq!(read::<4>(&bus, 0x11), [1, 0xff, 0xff, 0xff]);
        let _ = bus.write(0x11, &[1, 2, 3, 4]);
        assert_eq!(first.lock().unwrap().writes, [(1, vec![1])]);
        assert!(second.lock().unwrap().writes.is_empty());
        // It begins before any device: nobody's, although its last bytes are somebody's.
        assert_eq!(read::<4>(&bus, 0xe), [0xff; 4]);
        let _ = bus.write(0xe, &[1, 2, 3, 4]);
        assert_eq!(first.lock().unwrap().writes.len(), 1);
    }

    #[test]
    fn access_of_no_bytes_touches_nothing() {
        let device = recorder(1);
        let mut bus = Bus::new();
        bus.insert(0x10, 2, device.clone(), "device").unwrap();
        bus.read(0x10, &mut []);
        assert_eq!(bus.write(0x10, &[]), Reaction::None);
        assert!(device.lock().unwrap().writes.is_empty());
    }

    #[test]
    fn device_that_panicked_still_answers() {
        struct Fragile;
        impl BusDevice for Fragile {
            fn read(&mut self, _: u64, data: &mut [u8]) {
                data.fill(3);
            }
            fn write(&mut self, _: u64, _: &[u8]) -> Reaction {
                panic!("this device breaks when written");
            }
        }
        let mut bus = Bus::new();
        bus.insert(0, 1, Arc::new(Mutex::new(Fragile)), "fragile")
            .unwrap();
        let bus = Arc::new(bus);
        let other = Arc::clone(&bus);
        std::thread::spawn(move || other.write(0, &[1]))
            .join()
            .unwrap_err();
        assert_eq!(read::<1>(&bus, 0), [3]);
    }

    #[test]
    fn bus_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Bus>();
    }
}
