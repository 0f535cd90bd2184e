//! The ACPI tables, read back from guest memory as firmware's readers do: by pointers, lengths
//! and checksums.

use arch::acpi::{AcpiConfig, AcpiError, VirtioMmio, write_tables};
use arch::cpuid::CpuCount;
use arch::layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn config(vcpus: u64, devices: u32) -> AcpiConfig {
    let device = |index: u32| VirtioMmio {
        base: GuestAddress(0xC000_1000 + u64::from(index) * 0x1000),
        size: 0x1000,
        gsi: 5 + index,
    };
    AcpiConfig {
        vcpus: CpuCount::new(vcpus).unwrap(),
        virtio_mmio: (0..devices).map(device).collect(),
    }
}

/// A table's bytes, with its checksum and signature checked.
fn table(memory: &GuestMemoryMmap, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
    let mut table = vec![0; length as usize];
    memory
        .read_slice(&mut table, GuestAddress(address))
        .unwrap();
    assert_eq!(&table[..4], signature);
    assert_eq!(
        sum(&table),
        0,
        "checksum of {}",
        String::from_utf8_lossy(signature)
    );
    assert!(address >= layout::RSDP.0 && address + u64::from(length) <= layout::ACPI_END.0);
    table
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(table: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(*table[offset..].first_chunk().unwrap())
}

fn u32_at(table: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*table[offset..].first_chunk().unwrap())
}

fn u64_at(table: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*table[offset..].first_chunk().unwrap())
}

/// FADT, MADT and DSDT, found from the RSDP.
fn tables(memory: &GuestMemoryMmap, rsdp: GuestAddress) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut root = [0; 36];
    memory.read_slice(&mut root, rsdp).unwrap();
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
    assert_eq!(root[15], 2, "revision");
    let xsdt = table(memory, u64_at(&root, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(memory, u64_at(&xsdt, 36), b"FACP");
    let madt = table(memory, u64_at(&xsdt, 44), b"APIC");
    let dsdt = table(memory, u64_at(&fadt, 140), b"DSDT");
    (fadt, madt, dsdt)
}

fn contains(table: &[u8], bytes: &[u8]) -> bool {
    table.windows(bytes.len()).any(|window| window == bytes)
}

#[test]
fn rsdp_is_where_scans_look() {
    let rsdp = write_tables(&memory(), &config(1, 0)).unwrap();
    assert_eq!(rsdp, GuestAddress(0xE_0000));
}

#[test]
fn fadt_describes_fixed_hardware_in_acpi_mode() {
    let memory = memory();
    let rsdp = write_tables(&memory, &config(2, 1)).unwrap();
    let (fadt, _, _) = tables(&memory, rsdp);
    // ACPI 6.5, table 5.9: field offsets.
    assert_eq!(fadt.len(), 276);
    assert_eq!(
        u64::from(u32_at(&fadt, 40)),
        u64_at(&fadt, 140),
        "DSDT, twice"
    );
    assert_eq!(u16_at(&fadt, 46), 9, "SCI_INT");
    assert_eq!(u32_at(&fadt, 48), 0, "SMI_CMD");
    assert_eq!((u32_at(&fadt, 56), fadt[88]), (0x600, 4), "PM1a_EVT_BLK");
    assert_eq!((u32_at(&fadt, 64), fadt[89]), (0x604, 2), "PM1a_CNT_BLK");
    assert_eq!((u32_at(&fadt, 76), fadt[91]), (0, 0), "PM_TMR_BLK");
    assert_eq!(u16_at(&fadt, 109), 0b111, "IAPC_BOOT_ARCH");
    let flags = u32_at(&fadt, 112);
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    assert_eq!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_eq!(
        fadt[116..120],
        [1, 8, 0, 1],
        "RESET_REG: I/O, 8 bits, byte access"
    );
    assert_eq!(
        (u64_at(&fadt, 120), fadt[128]),
        (0x608, 1),
        "RESET_REG, RESET_VALUE"
    );
    assert_eq!(fadt[148..151], [1, 32, 0], "X_PM1a_EVT_BLK");
    assert_eq!(u64_at(&fadt, 152), 0x600);
    assert_eq!(fadt[172..175], [1, 16, 0], "X_PM1a_CNT_BLK");
    assert_eq!(u64_at(&fadt, 176), 0x604);
    let facs = u64::from(u32_at(&fadt, 36));
    assert_eq!(facs % 64, 0);
    let mut signature = [0; 8];
    memory
        .read_slice(&mut signature, GuestAddress(facs))
        .unwrap();
    assert_eq!(signature, *b"FACS\x40\0\0\0");
}

#[test]
fn madt_lists_processors_and_interrupt_controllers() {
    let memory = memory();
    let rsdp = write_tables(&memory, &config(3, 0)).unwrap();
    let (_, madt, _) = tables(&memory, rsdp);
    assert_eq!(u32_at(&madt, 36), 0xFEE0_0000);
    assert_eq!(u32_at(&madt, 40), 1, "PCAT_COMPAT");
    let mut structures = Vec::new();
    let mut at = 44;
    while at < madt.len() {
        let length = usize::from(madt[at + 1]);
        structures.push(&madt[at..at + length]);
        at += length;
    }
    assert_eq!(
        structures,
        [
            &[0, 8, 0, 0, 1, 0, 0, 0][..],
            &[0, 8, 1, 1, 1, 0, 0, 0],
            &[0, 8, 2, 2, 1, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0],
            &[2, 10, 0, 9, 9, 0, 0, 0, 0b1101, 0],
            &[4, 6, 0xFF, 0, 0, 1],
        ]
    );
}

#[test]
fn dsdt_has_power_off_and_devices() {
    let memory = memory();
    let rsdp = write_tables(&memory, &config(2, 2)).unwrap();
    let (_, _, dsdt) = tables(&memory, rsdp);
    // Name (_S5_, Package (4) { 5, 5, 0, 0 }): ACPI 6.5, chapter 20 (NameOp, PackageOp,
    // BytePrefix, ZeroOp).
    let s5 = [
        &[0x08][..],
        b"_S5_",
        &[0x12, 0x08, 4, 0x0A, 5, 0x0A, 5, 0, 0],
    ]
    .concat();
    assert!(contains(&dsdt, &s5));
    // EISA ids in their compressed form: PNP0501, PNP0303, PNP0B00.
    for id in [
        [0x41, 0xD0, 5, 1],
        [0x41, 0xD0, 3, 3],
        [0x41, 0xD0, 0x0B, 0],
    ] {
        assert!(contains(&dsdt, &id), "{id:x?}");
    }
    // I/O port descriptors (6.4.2.5) and extended interrupts (6.4.3.6: consumer, edge, high).
    assert!(contains(
        &dsdt,
        &[
            0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8, 0x89, 6, 0, 0b11, 1, 4, 0, 0, 0
        ]
    ));
    // 32-bit fixed memory (6.4.3.4) and interrupt of the second virtio-mmio device.
    let second = [
        &[0x86, 9, 0, 1, 0x00, 0x20, 0, 0xC0, 0, 0x10, 0, 0][..],
        &[0x89, 6, 0, 0b11, 1, 6, 0, 0, 0],
    ]
    .concat();
    assert!(contains(&dsdt, &second));
    let count = |id: &[u8]| {
        dsdt.windows(id.len())
            .filter(|window| *window == id)
            .count()
    };
    assert_eq!((count(b"ACPI0007"), count(b"LNRO0005")), (2, 2));
}

/// A device's object of this name, up to the next one.
fn object<'a>(dsdt: &'a [u8], device: &[u8; 4], name: &[u8; 4]) -> &'a [u8] {
    let find = |table: &[u8], name: &[u8; 4]| {
        let mut windows = table.windows(4);
        windows.position(|window| window == name).unwrap()
    };
    // DeviceOp is before the name and its length.
    let device = &dsdt[find(dsdt, device)..];
    &device[find(device, name)..]
}

fn begins_with(object: &[u8], parts: &[&[u8]]) {
    let wanted = parts.concat();
    assert_eq!(object[..wanted.len()], wanted);
}

#[test]
fn dsdt_tells_where_the_machines_generation_is() {
    let memory = memory();
    let rsdp = write_tables(&memory, &config(1, 0)).unwrap();
    let (_, _, dsdt) = tables(&memory, rsdp);
    // Linux looks for one of these (drivers/virt/vmgenid.c), Windows for the second.
    for (name, id) in [(b"_HID", "VMGENCTR"), (b"_CID", "VM_Gen_Counter")] {
        let object = object(&dsdt, b"VGEN", name);
        begins_with(object, &[name, &[0x0D], id.as_bytes(), &[0]]);
    }
    // Method (ADDR) { Return (Package (2) { 0x000FF000, 0 }) }: MethodOp's flags, ReturnOp, PackageOp,
    // DWordPrefix, ZeroOp.
    let address = object(&dsdt, b"VGEN", b"ADDR");
    let package = [0xA4, 0x12, 8, 2, 0x0C, 0, 0xF0, 0x0F, 0, 0];
    begins_with(address, &[b"ADDR", &[0], &package]);
    assert_eq!(layout::VMGENID, GuestAddress(0xF_F000));
}

#[test]
fn dsdt_tells_where_the_clocks_page_is() {
    let memory = memory();
    let rsdp = write_tables(&memory, &config(1, 0)).unwrap();
    let (_, _, dsdt) = tables(&memory, rsdp);
    for (name, id) in [(b"_HID", "AMZNC10C"), (b"_CID", "VMCLOCK")] {
        let object = object(&dsdt, b"VCLK", name);
        begins_with(object, &[name, &[0x0D], id.as_bytes(), &[0]]);
    }
    // BufferOp, its length and size; 32-bit fixed memory (6.4.3.4), to be read only: address, length.
    let resources = object(&dsdt, b"VCLK", b"_CRS");
    let page = [0x86, 9, 0, 0, 0, 0xE0, 0x0F, 0, 0, 0x10, 0, 0];
    begins_with(
        resources,
        &[b"_CRS", &[0x11, 0x11, 0x0A, 14], &page, &[0x79]],
    );
    assert_eq!(layout::VMCLOCK, GuestAddress(0xF_E000));
}

#[test]
fn dsdt_notifies_of_another_generation_by_an_interrupt_of_its_own() {
    let memory = memory();
    let rsdp = write_tables(&memory, &config(1, 0)).unwrap();
    let (_, _, dsdt) = tables(&memory, rsdp);
    let id = object(&dsdt, b"GED_", b"_HID");
    begins_with(id, &[b"_HID", &[0x0D], b"ACPI0013", &[0]]);
    // Consumer, edge, high, exclusive.
    let interrupt = [0x89, 6, 0, 0b11, 1, 3, 0, 0, 0];
    let resources = object(&dsdt, b"GED_", b"_CRS");
    begins_with(resources, &[b"_CRS", &[0x11, 0x0E, 0x0A, 11], &interrupt]);
    // Method (_EVT, 1, Serialized) { If (Arg0 == 3) { Notify (\_SB.VGEN, 0x80) } }: LEqualOp, Arg0Op,
    // BytePrefix; NotifyOp, RootChar, DualNamePrefix.
    let handler = object(&dsdt, b"GED_", b"_EVT");
    begins_with(
        handler,
        &[
            &b"_EVT"[..],
            &[0b1001, 0xA0, 0x12, 0x93, 0x68, 0x0A, 3, 0x86],
            b"\\\x2E_SB_VGEN",
            &[0x0A, 0x80],
        ],
    );
    // It is nobody else's.
    let theirs = [
        layout::COM1_IRQ,
        layout::SCI_IRQ,
        layout::I8042_KEYBOARD_IRQ,
    ];
    assert!(!theirs.contains(&layout::GENERIC_EVENT_GSI));
    assert!(!layout::VIRTIO_MMIO_GSIS.contains(&layout::GENERIC_EVENT_GSI));
}

#[test]
fn tables_leave_the_machines_pages_alone() {
    let memory = memory();
    memory
        .write_slice(&[0xAA; 0x2000], layout::VMCLOCK)
        .unwrap();
    // As many devices as there is room for.
    let counts: Vec<u32> = (0..=4096).collect();
    let fits = |devices: &u32| write_tables(&memory, &config(1, *devices)).is_ok();
    let devices = counts.partition_point(fits);
    assert!(devices > 1_000 && devices < 4096, "{devices} devices fit");
    let mut pages = [0; 0x2000];
    memory.read_slice(&mut pages, layout::VMCLOCK).unwrap();
    assert_eq!(pages, [0xAA; 0x2000]);
}

#[test]
fn largest_machine_fits() {
    let memory = memory();
    let config = config(
        CpuCount::MAX.into(),
        u32::try_from(layout::VIRTIO_MMIO_GSIS.len()).unwrap(),
    );
    let rsdp = write_tables(&memory, &config).unwrap();
    tables(&memory, rsdp);
}

#[test]
fn too_many_devices_are_refused() {
    let error = write_tables(&memory(), &config(1, 4096)).unwrap_err();
    assert!(
        matches!(
            error,
            AcpiError::TooLarge {
                limit: 0xF_E000,
                ..
            }
        ),
        "{error}"
    );
    let error = write_tables(&memory(), &config(1, 4097)).unwrap_err();
    assert!(
        matches!(
            error,
            AcpiError::TooManyDevices {
                count: 4097,
                max: 4096
            }
        ),
        "{error}"
    );
}

#[test]
fn device_beyond_four_gibibytes_is_refused() {
    let mut config = config(1, 1);
    config.virtio_mmio[0].base = GuestAddress(0xFFFF_F001);
    let error = write_tables(&memory(), &config).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the virtio-mmio device at 0xfffff001 must have its 0x1000 bytes below 4 GiB"
    );
}

#[test]
fn memory_that_does_not_reach_the_tables_is_an_error() {
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap();
    assert!(matches!(
        write_tables(&memory, &config(1, 0)),
        Err(AcpiError::Memory { .. })
    ));
}
