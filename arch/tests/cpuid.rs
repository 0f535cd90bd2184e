//! A guest's CPUID from two hosts' and from arbitrary ones.

use arch::cpuid::{CpuCount, CpuidConfig, CpuidEntry, guest_cpuid};
use proptest::prelude::*;
use tsc::Khz;

fn leaf(function: u32, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry {
        function,
        index: 0,
        indexed: false,
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn subleaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        index,
        indexed: true,
        ..leaf(function, registers)
    }
}

fn vendor(max_leaf: u32, name: &[u8; 12]) -> CpuidEntry {
    let word = |at: usize| u32::from_le_bytes(*name[at..].first_chunk().unwrap());
    leaf(0, [max_leaf, word(0), word(8), word(4)])
}

/// `KVMKVMKVM`, highest leaf 0x4000_0001.
const KVM: [u32; 4] = [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D];

/// What KVM supports on an Intel host, in excerpts.
fn intel() -> Vec<CpuidEntry> {
    vec![
        vendor(0x1F, b"GenuineIntel"),
        // APIC id 6 of the host; MONITOR, VMX, PDCM, x2APIC, XSAVE, OSXSAVE; no TSC-deadline.
        leaf(1, [0x5_0654, 0x0640_0800, 0x0C20_8028, 0x178B_FBFF]),
        // L1 data shared by 2, L2 shared by 2, L3 shared by 64; 32 cores.
        subleaf(4, 0, [0x7C00_4121, 1, 2, 3]),
        subleaf(4, 2, [0x7C00_4143, 1, 2, 3]),
        subleaf(4, 3, [0x7C0F_C163, 1, 2, 3]),
        subleaf(4, 4, [0, 0, 0, 0]),
        leaf(5, [0x40, 0x40, 3, 0x2020]),
        subleaf(7, 0, [0, 0x02, 0x18, 0]),
        leaf(0xA, [0x0730_0404, 0, 0, 0x603]),
        subleaf(0xB, 0, [1, 2, 0x100, 6]),
        subleaf(0xB, 1, [6, 64, 0x201, 6]),
        subleaf(0xD, 0, [7, 0x340, 0x340, 0]),
        leaf(0x15, [2, 200, 25_000_000, 0]),
        subleaf(0x1F, 0, [1, 2, 0x100, 6]),
        leaf(0x4000_0000, KVM),
        leaf(0x4000_0001, [0x0100_7EFB, 0, 0, 0]),
        leaf(0x8000_0007, [0, 0, 0, 0x100]),
        leaf(0x8000_0008, [0x302E, 0, 0, 0]),
    ]
}

/// What KVM supports on an AMD host, in excerpts.
fn amd() -> Vec<CpuidEntry> {
    vec![
        vendor(0x10, b"AuthenticAMD"),
        leaf(1, [0xA0_0F11, 0x0840_0800, 0x0020_0001, 0x178B_FBFF]),
        leaf(0x4000_0000, KVM),
        // CMP_LEGACY, SVM, topology extensions, performance counters.
        leaf(0x8000_0001, [0xA0_0F11, 0, 0x1140_0006 | 1 << 23, 0]),
        leaf(0x8000_0007, [0, 0, 0, 0]),
        leaf(0x8000_0008, [0x3030, 0, 0x703F, 0]),
        leaf(0x8000_000A, [1, 8, 0, 9]),
        subleaf(0x8000_001D, 0, [0x0000_4121, 0, 0, 0]),
        subleaf(0x8000_001D, 3, [0x0003_C163, 0, 0, 0]),
        leaf(0x8000_001E, [8, 0x104, 1, 0]),
        leaf(0x8000_0022, [1, 0x1_0406, 0, 0]),
    ]
}

fn config(vcpus: u64, index: u8) -> CpuidConfig {
    CpuidConfig {
        vcpus: CpuCount::new(vcpus).unwrap(),
        index,
        tsc: Khz::new(2_500_000),
        tsc_deadline: true,
    }
}

fn find(entries: &[CpuidEntry], function: u32, index: u32) -> Option<[u32; 4]> {
    let mut found = entries
        .iter()
        .filter(|e| e.function == function && (!e.indexed || e.index == index));
    let entry = found.next()?;
    assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
    Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
}

#[test]
fn intel_guest_of_four() {
    let guest = guest_cpuid(&intel(), &config(4, 2));
    // (leaf, subleaf, registers, what)
    let rows = [
        (
            0,
            0,
            [0x1F, 0x756E_6547, 0x6C65_746E, 0x4965_6E69],
            "highest leaf",
        ),
        // APIC id 2, 4 logical; without MONITOR, VMX, PDCM, OSXSAVE; with TSC-deadline and hypervisor.
        (
            1,
            0,
            [0x5_0654, 0x0204_0800, 0x8520_0000, 0x178B_FBFF],
            "features",
        ),
        // Cores: 4 - 1 = 3 << 26 = 0x0C00_0000; L1 and L2 are a core's, L3 is shared by 4.
        (4, 0, [0x0C00_0121, 1, 2, 3], "L1"),
        (4, 2, [0x0C00_0143, 1, 2, 3], "L2"),
        (4, 3, [0x0C00_C163, 1, 2, 3], "L3"),
        (4, 4, [0, 0, 0, 0], "no cache"),
        (5, 0, [0; 4], "MWAIT"),
        (7, 0, [0, 0x02, 0x08, 0], "PKU stays, OSPKE goes"),
        (0xA, 0, [0; 4], "performance monitoring"),
        (0xB, 0, [0, 1, 0x100, 2], "threads"),
        (0xB, 1, [2, 4, 0x201, 2], "cores"),
        (0xB, 2, [0, 0, 2, 2], "end"),
        (0x1F, 1, [2, 4, 0x201, 2], "cores"),
        (0xD, 0, [7, 0x340, 0x340, 0], "XSAVE"),
        (0x15, 0, [2, 5, 1_000_000_000, 0], "2.5 GHz = 1 GHz x 5 / 2"),
        (
            0x4000_0000,
            0,
            [0x4000_0010, KVM[1], KVM[2], KVM[3]],
            "KVM's signature",
        ),
        (0x4000_0001, 0, [0x0100_7EFB, 0, 0, 0], "KVM's features"),
        (0x4000_0010, 0, [2_500_000, 1_000_000, 0, 0], "rates"),
        (0x8000_0007, 0, [0, 0, 0, 0x100], "invariant TSC"),
        (0x8000_0008, 0, [0x302E, 0, 0, 0], "address sizes"),
    ];
    for (function, index, registers, what) in rows {
        let found = find(&guest, function, index);
        assert_eq!(found, Some(registers), "{what}: leaf {function:#x}.{index}");
    }
}

#[test]
fn amd_guest_of_three() {
    let guest = guest_cpuid(&amd(), &config(3, 1));
    let rows = [
        // Raised from 0x10, so that leaf 0x15 can be asked for.
        (
            0,
            0,
            [0x15, 0x6874_7541, 0x444D_4163, 0x6974_6E65],
            "highest leaf",
        ),
        (
            1,
            0,
            [0xA0_0F11, 0x0104_0800, 0x8120_0001, 0x178B_FBFF],
            "features",
        ),
        (0xB, 1, [2, 3, 0x201, 1], "cores"),
        (0x15, 0, [2, 5, 1_000_000_000, 0], "rate"),
        // CMP_LEGACY and topology extensions stay, SVM and performance counters go.
        (0x8000_0001, 0, [0xA0_0F11, 0, 0x0040_0002, 0], "features"),
        (0x8000_0007, 0, [0, 0, 0, 0], "no invariant TSC here"),
        // 2 bits of APIC id, 3 - 1 = 2.
        (0x8000_0008, 0, [0x3030, 0, 0x2002, 0], "sizes"),
        (0x8000_000A, 0, [0; 4], "nested virtualization"),
        (0x8000_001D, 0, [0x0000_0121, 0, 0, 0], "L1"),
        (0x8000_001D, 3, [0x0000_8163, 0, 0, 0], "L3, shared by 3"),
        (0x8000_001E, 0, [1, 1, 0, 0], "topology"),
        (0x8000_0022, 0, [0; 4], "performance monitoring"),
    ];
    for (function, index, registers, what) in rows {
        let found = find(&guest, function, index);
        assert_eq!(found, Some(registers), "{what}: leaf {function:#x}.{index}");
    }
    assert_eq!(
        find(&guest, 0x1F, 0),
        None,
        "leaf 0x1F only where the host has it"
    );
}

#[test]
fn single_processor_has_no_companions() {
    let guest = guest_cpuid(&amd(), &config(1, 0));
    assert_eq!(
        find(&guest, 1, 0).unwrap()[1],
        0x0001_0800,
        "one logical processor"
    );
    assert_eq!(find(&guest, 1, 0).unwrap()[3] & 1 << 28, 0, "HTT");
    assert_eq!(
        find(&guest, 0x8000_0001, 0).unwrap()[2] & 1 << 1,
        0,
        "CMP_LEGACY"
    );
    assert_eq!(find(&guest, 0xB, 1), Some([0, 1, 0x201, 0]));
}

#[test]
fn host_without_xsave_has_no_xsave_leaf() {
    let mut host = intel();
    host[1].ecx &= !(1 << 26);
    assert_eq!(find(&guest_cpuid(&host, &config(1, 0)), 0xD, 0), None);
}

#[test]
fn unknown_rate_tells_none() {
    let config = CpuidConfig {
        tsc: None,
        ..config(1, 0)
    };
    let guest = guest_cpuid(&intel(), &config);
    assert_eq!(find(&guest, 0x15, 0), None);
    assert_eq!(find(&guest, 0x4000_0010, 0), None);
    assert_eq!(find(&guest, 0x4000_0000, 0), Some(KVM));
}

#[test]
fn tsc_deadline_is_as_configured() {
    for (tsc_deadline, bit) in [(true, 1 << 24), (false, 0)] {
        let config = CpuidConfig {
            tsc_deadline,
            ..config(1, 0)
        };
        let guest = guest_cpuid(&intel(), &config);
        assert_eq!(find(&guest, 1, 0).unwrap()[2] & 1 << 24, bit);
    }
}

/// The feature words, as (leaf, subleaf, register), and the bits that may be set in them without
/// the host's support.
const FEATURE_WORDS: [(u32, u32, usize, u32); 9] = [
    // Hypervisor, TSC-deadline.
    (1, 0, 2, 1 << 31 | 1 << 24),
    // HTT.
    (1, 0, 3, 1 << 28),
    (7, 0, 1, 0),
    (7, 0, 2, 0),
    (7, 0, 3, 0),
    (0xD, 1, 0, 0),
    (0x8000_0001, 0, 2, 0),
    (0x8000_0001, 0, 3, 0),
    (0x8000_0007, 0, 3, 0),
];

const FUNCTIONS: [u32; 18] = [
    0,
    1,
    2,
    4,
    5,
    6,
    7,
    0xA,
    0xB,
    0xD,
    0x15,
    0x1F,
    0x4000_0000,
    0x4000_0001,
    0x8000_0001,
    0x8000_0007,
    0x8000_0008,
    0x8000_001D,
];

fn any_host() -> impl Strategy<Value = Vec<CpuidEntry>> {
    let one = |function: u32| {
        let indexed = matches!(function, 4 | 7 | 0xB | 0xD | 0x1F | 0x8000_001D);
        let subleaves = if indexed { 0..3_u32 } else { 0..1 };
        let entries = subleaves.map(move |index| {
            any::<[u32; 4]>().prop_map(move |registers| {
                let entry = leaf(function, registers);
                CpuidEntry {
                    index,
                    indexed,
                    ..entry
                }
            })
        });
        proptest::option::of(entries.collect::<Vec<_>>())
    };
    let vendors = prop_oneof![
        Just(vendor(0x1F, b"GenuineIntel")),
        Just(vendor(0xD, b"AuthenticAMD")),
        Just(vendor(0x10, b"HygonGenuine")),
    ];
    (
        vendors,
        FUNCTIONS[1..].iter().map(|f| one(*f)).collect::<Vec<_>>(),
    )
        .prop_map(|(vendor, leaves)| {
            let mut host = vec![vendor];
            host.extend(leaves.into_iter().flatten().flatten());
            host
        })
}

proptest! {
    #[test]
    fn features_are_only_what_the_host_has(
        host in any_host(),
        vcpus in 1..=255_u64,
        index in any::<proptest::sample::Index>(),
        rate in proptest::option::of(100_000..6_000_000_u32),
        tsc_deadline: bool,
    ) {
        let index = u8::try_from(index.index(usize::try_from(vcpus).unwrap())).unwrap();
        let config =
            CpuidConfig { tsc: rate.and_then(Khz::new), tsc_deadline, ..config(vcpus, index) };
        let guest = guest_cpuid(&host, &config);
        for (function, subleaf, register, provided) in FEATURE_WORDS {
            if let Some(registers) = find(&guest, function, subleaf) {
                let supported = find(&host, function, subleaf).map_or(0, |r| r[register]);
                let extra = registers[register] & !supported & !provided;
                prop_assert_eq!(extra, 0, "leaf {:#x}.{}", function, subleaf);
            }
        }
        // No leaf beyond the highest that the guest is told of, and each only once.
        let max_leaf = find(&guest, 0, 0).unwrap()[0];
        for entry in &guest {
            find(&guest, entry.function, entry.index);
            prop_assert!(entry.function <= max_leaf || entry.function >= 0x4000_0000
                || host.iter().any(|e| e.function == entry.function));
        }
        prop_assert_eq!(find(&guest, 1, 0).map_or(index.into(), |r| r[1] >> 24), u32::from(index));
    }
}
