//! The ways in which a disk's requests are carried out, for tests that hold for each.

use std::sync::Arc;

use devices::virtio::block::{Image, Ring};
use vm_memory::GuestMemoryMmap;

use crate::shuffled::Shuffled;

/// Makes a ring for a disk, or none for one request after the other.
pub(crate) type Carrier = Box<dyn Fn(&Image, &Arc<GuestMemoryMmap>) -> Option<Box<dyn Ring>>>;

/// Runs a test for each way.
pub(crate) fn each(test: impl Fn(&Carrier)) {
    let one_by_one: Carrier = Box::new(|_, _| None);
    test(&one_by_one);
    for seed in 0..16 {
        println!("shuffled, seed {seed}");
        test(&shuffled(seed));
    }
}

/// One that carries out in an order by chance.
pub(crate) fn shuffled(seed: u64) -> Carrier {
    Box::new(move |image, memory| {
        let mut chance = fastrand::Rng::with_seed(seed);
        let choose = Box::new(move |limit| chance.u64(..limit));
        Some(Box::new(Shuffled::new(image, memory.clone(), choose)))
    })
}
