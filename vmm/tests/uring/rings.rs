//! A disk's requests by io_uring, for the tests that hold for each way.

use std::os::fd::AsFd;
use std::sync::Arc;

use devices::virtio::block::{Image, Ring};
use vm_memory::GuestMemoryMmap;
use vmm::uring::Uring;

/// Makes a ring for a disk.
pub(crate) type Carrier = Box<dyn Fn(&Image, &Arc<GuestMemoryMmap>) -> Option<Box<dyn Ring>>>;

/// Runs a test with a ring, if this host has any.
pub(crate) fn each(test: impl Fn(&Carrier)) {
    if let Some(carrier) = carrier() {
        test(&carrier);
    }
}

/// A ring of this host's; it is told where there is none.
pub(crate) fn carrier() -> Option<Carrier> {
    let file = std::fs::File::open("/proc/self/exe").expect("there");
    let memory = Arc::new(GuestMemoryMmap::new());
    if let Err(error) = Uring::new(file.as_fd(), memory) {
        // One that the host has and that cannot be had is a fault of ours.
        assert!(error.is_for_want_of_any(), "{error}");
        println!("skipped here: {error}");
        return None;
    }
    Some(Box::new(|image, memory| {
        let ring = Uring::new(image.as_fd(), memory.clone()).expect("a ring");
        Some(Box::new(ring))
    }))
}
