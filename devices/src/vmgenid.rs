//! The generation of a virtual machine: sixteen random bytes that change when the machine is no longer the one that
//! it was, such as one of several that go on from one snapshot ("Virtual Machine Generation ID", Microsoft, 2012).
//!
//! A guest finds their address by ACPI, and is notified when they change: Linux then takes new random numbers.

use std::fmt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::trigger::Trigger;

/// The size of an identifier in bytes.
pub const SIZE: usize = 16;

/// A machine's generation.
pub struct VmGenId {
    memory: Arc<GuestMemoryMmap>,
    at: GuestAddress,
    changed: Box<dyn Trigger>,
}

impl VmGenId {
    /// Writes the identifier of a machine that does not run yet at `at` in its memory. `changed` is the interrupt by
    /// which its guest is notified of others.
    ///
    /// # Errors
    /// There is no memory.
    pub fn create(
        memory: Arc<GuestMemoryMmap>,
        at: GuestAddress,
        id: [u8; SIZE],
        changed: Box<dyn Trigger>,
    ) -> Result<Self, GuestMemoryError> {
        memory.write_slice(&id, at)?;
        Ok(Self {
            memory,
            at,
            changed,
        })
    }

    /// Gives the machine another identifier, `id`, which must be as random as the first, and notifies the guest. Its
    /// vCPUs wait meanwhile: the sixteen bytes are not written at once.
    ///
    /// # Errors
    /// There is no memory, and so no other identifier; nobody is notified.
    pub fn renew(&self, id: [u8; SIZE]) -> Result<(), GuestMemoryError> {
        self.memory.write_slice(&id, self.at)?;
        self.changed.trigger();
        Ok(())
    }
}

impl fmt::Debug for VmGenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The identifier seeds the guest's random numbers.
        f.debug_struct("VmGenId")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const AT: GuestAddress = GuestAddress(0xff0);

    #[test]
    fn guest_is_notified_when_the_new_identifier_is_there() {
        let ranges = [(GuestAddress(0), 0x1000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let read = |memory: &GuestMemoryMmap| memory.read_obj::<[u8; SIZE]>(AT).expect("inside");
        let notified = Arc::new(AtomicUsize::new(0));
        let changed = {
            let (memory, notified) = (memory.clone(), notified.clone());
            move || {
                assert_eq!(read(&memory), [2; SIZE]);
                notified.fetch_add(1, Ordering::Relaxed);
            }
        };
        let generation = VmGenId::create(memory.clone(), AT, [1; SIZE], Box::new(changed));
        let generation = generation.expect("inside");
        assert_eq!(
            (read(&memory), notified.load(Ordering::Relaxed)),
            ([1; SIZE], 0)
        );
        generation.renew([2; SIZE]).expect("inside");
        assert_eq!(
            (read(&memory), notified.load(Ordering::Relaxed)),
            ([2; SIZE], 1)
        );
        assert!(!format!("{generation:?}").contains("2, 2"));
    }

    #[test]
    fn identifier_outside_of_memory_is_an_error() {
        let ranges = [(GuestAddress(0), 0x1000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let at = GuestAddress(0xff1);
        assert!(VmGenId::create(memory, at, [1; SIZE], Box::new(|| {})).is_err());
    }
}
