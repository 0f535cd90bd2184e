//! CPUID from whatever a hypervisor supports, and ACPI tables for whatever devices.

use arch::acpi::{AcpiConfig, VirtioMmio, write_tables};
use arch::cpuid::{CpuCount, CpuidConfig, CpuidEntry, guest_cpuid};
use arch::layout;
use tsc::Khz;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Takes the next `N` bytes; zeros behind the end.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = data.split_at(data.len().min(N));
    *data = rest;
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(taken) {
        *to = *from;
    }
    bytes
}

fn take_word(data: &mut &[u8]) -> u32 {
    u32::from_le_bytes(take(data))
}

/// The register with feature bits in each such leaf, and the bits that a guest may have without
/// the host's support: hypervisor and TSC-deadline, HTT.
const FEATURES: [(u32, u32, Register, u32); 7] = [
    (1, 0, Register::Ecx, 1 << 31 | 1 << 24),
    (1, 0, Register::Edx, 1 << 28),
    (7, 0, Register::Ebx, 0),
    (7, 0, Register::Ecx, 0),
    (0x8000_0001, 0, Register::Ecx, 0),
    (0x8000_0001, 0, Register::Edx, 0),
    (0x8000_0007, 0, Register::Edx, 0),
];

#[derive(Clone, Copy, Debug)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }
}

/// Leaves of a host: 24 bytes each, in any order, also several of the same.
///
/// The guest must have no feature that no leaf of the host has, and its own APIC id.
pub fn cpuid(mut data: &[u8]) {
    let [vcpus, index, flags] = take(&mut data);
    let Ok(vcpus) = CpuCount::new(vcpus.into()) else {
        return;
    };
    let config = CpuidConfig {
        vcpus,
        index: index % vcpus.get(),
        tsc: Khz::new(take_word(&mut data)),
        tsc_deadline: flags & 1 != 0,
    };
    let mut host = Vec::new();
    while !data.is_empty() {
        let function = take_word(&mut data);
        let [index, indexed, _, _] = take(&mut data);
        host.push(CpuidEntry {
            function,
            index: index.into(),
            indexed: indexed & 1 != 0,
            eax: take_word(&mut data),
            ebx: take_word(&mut data),
            ecx: take_word(&mut data),
            edx: take_word(&mut data),
        });
    }
    let guest = guest_cpuid(&host, &config);
    // Leaves 0xB and 0x1F, three levels each; 0x15 and 0x4000_0010.
    assert!(guest.len() <= host.len() + 8);
    for (function, index, register, provided) in FEATURES {
        let is_leaf = |entry: &&CpuidEntry| entry.function == function && entry.index == index;
        let supported = host
            .iter()
            .filter(is_leaf)
            .fold(0, |bits, e| bits | register.of(e));
        for entry in guest.iter().filter(is_leaf) {
            let extra = register.of(entry) & !supported & !provided;
            assert_eq!(extra, 0, "leaf {function:#x} {register:?}");
        }
    }
    for entry in guest.iter().filter(|entry| entry.function == 1) {
        assert_eq!(entry.ebx >> 24, u32::from(config.index));
    }
}

/// Devices: 16 bytes each.
///
/// The tables must be where pointers from the RSDP say, with right checksums, or be refused.
pub fn acpi(mut data: &[u8]) {
    let [vcpus] = take(&mut data);
    let Ok(vcpus) = CpuCount::new(vcpus.into()) else {
        return;
    };
    let mut virtio_mmio = Vec::new();
    while !data.is_empty() {
        virtio_mmio.push(VirtioMmio {
            base: GuestAddress(u64::from_le_bytes(take(&mut data))),
            size: take_word(&mut data),
            gsi: take_word(&mut data),
        });
    }
    thread_local! {
        static MEMORY: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("1 MiB of memory");
    }
    MEMORY.with(|memory| {
        let Ok(rsdp) = write_tables(memory, &AcpiConfig { vcpus, virtio_mmio }) else {
            return;
        };
        assert_eq!(rsdp, layout::RSDP);
        let xsdt = table(memory, u64_at(memory, rsdp.0 + 24), b"XSDT");
        let fadt = table(memory, u64_at(memory, xsdt + 36), b"FACP");
        let madt = table(memory, u64_at(memory, xsdt + 44), b"APIC");
        let dsdt = table(memory, u64_at(memory, fadt + 140), b"DSDT");
        assert!(fadt != madt && madt != dsdt);
    });
}

fn u64_at(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory
        .read_obj(GuestAddress(address))
        .expect("an address in memory")
}

/// Checks the table at `address`, and returns that address.
fn table(memory: &GuestMemoryMmap, address: u64, signature: &[u8; 4]) -> u64 {
    let length: u32 = memory
        .read_obj(GuestAddress(address + 4))
        .expect("an address in memory");
    assert!(address >= layout::RSDP.0 && address + u64::from(length) <= layout::ACPI_END.0);
    let mut bytes = vec![0; usize::try_from(length).expect("a 64-bit host")];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("an address in memory");
    assert!(bytes.starts_with(signature));
    assert_eq!(
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte)),
        0
    );
    address
}
