//! Whatever bytes a kernel file has: no panic, no write outside RAM and the places asked for.

mod images;

use std::io::Cursor;

use arch::boot::{self, BootSource, Module};
use arch::layout;
use images::{BzImage, Elf, Flat};
use proptest::prelude::*;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const RAM: usize = 32 << 20;

fn kernels() -> Vec<Vec<u8>> {
    vec![
        BzImage::linux64().build(),
        BzImage::linux32().build(),
        BzImage::old().build(),
        Elf::linux64().build(),
        Elf::pvh().build(),
        Elf::multiboot(3).build(),
        Flat::new().build(),
    ]
}

/// Where loading may write below 1 MiB: descriptor table, and then one range after the other of
/// `arch::layout`.
fn is_boot_area(address: u64) -> bool {
    address < 0x1000
        || (layout::PVH_START_INFO.0..layout::ZERO_PAGE.0 + 0x1000).contains(&address)
        || (layout::PML4.0..layout::PML4.0 + 0x6000).contains(&address)
        || (layout::MULTIBOOT_INFO.0..layout::CMDLINE.0 + 0x1_0000).contains(&address)
}

fn check(kernel: &[u8]) -> Result<(), TestCaseError> {
    let memory: GuestMemoryMmap<AtomicBitmap> =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let initrd = [0xA5; 100];
    let (mut kernel, mut image) = (Cursor::new(kernel), Cursor::new(&initrd[..]));
    let modules = vec![Module {
        image: &mut image,
        command: "m",
    }];
    let source = BootSource {
        kernel: &mut kernel,
        modules,
        cmdline: "c",
    };
    let result = boot::load(&memory, source);
    let region = memory.find_region(GuestAddress(0)).unwrap();
    for page in (0..RAM as u64).step_by(0x1000) {
        let dirty = region.bitmap().dirty_at(usize::try_from(page).unwrap());
        prop_assert!(
            !dirty || page >= layout::HIGH_RAM.0 || is_boot_area(page),
            "{page:#x}"
        );
    }
    match result {
        Ok(loaded) => {
            prop_assert!(loaded.entry >= layout::HIGH_RAM);
            prop_assert!(loaded.entry < loaded.kernel_end);
            prop_assert!(loaded.kernel_end.0 <= RAM as u64);
        }
        Err(error) => prop_assert!(!error.to_string().contains('\n')),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn mutated_headers_are_loaded_within_bounds_or_refused(
        which in 0..7_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut kernel = kernels().swap_remove(which);
        // Changes hit the headers: the first 0x270 bytes hold all of them but for the code.
        let headers = kernel.len().min(0x270);
        for (at, value) in changes {
            kernel[at.index(headers)] = value;
        }
        if let Some(length) = length {
            kernel.truncate(length.index(kernel.len()));
        }
        check(&kernel)?;
    }

    #[test]
    fn extreme_fields_are_loaded_within_bounds_or_refused(
        which in 0..7_usize,
        at in 0..0x268_usize,
        value in prop_oneof![
            Just(u64::MAX), Just(0), Just(1), Just(1 << 31), Just(1 << 32), Just(1 << 63),
            Just(u64::from(u32::MAX)), Just(RAM as u64), Just(RAM as u64 - 1),
        ],
        width in 1..=8_usize,
    ) {
        let mut kernel = kernels().swap_remove(which);
        images::put(&mut kernel, at, &value.to_le_bytes()[..width]);
        check(&kernel)?;
    }

    #[test]
    fn any_bytes_are_refused_or_loaded_within_bounds(
        kernel in prop::collection::vec(any::<u8>(), 0..0x400),
    ) {
        check(&kernel)?;
    }
}
