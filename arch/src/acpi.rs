//! ACPI tables: RSDP, XSDT, FADT, FACS, MADT and DSDT (ACPI specification 6.5, chapter 5).
//!
//! The machine is a small PC without PCI, and not of the hardware-reduced kind, which Linux
//! supports only with options that distributions' 32-bit kernels lack: it has fixed PM1a
//! registers and two 8259s. `SMI_CMD` is 0, which says that it is in ACPI mode from the start.
//! There is no PM timer. Power-off is `\_S5` through the PM1a control register, and reset is the
//! FADT's reset register; the values are in [`crate::layout`].

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Return, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use thiserror::Error;
use tsc::vmclock::REGION_SIZE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::cpuid::CpuCount;
use crate::layout::{
    ACPI_END, ACPI_RESET_PORT, ACPI_RESET_VALUE, CMOS_CENTURY_REGISTER, CMOS_INDEX_PORT, CMOS_IRQ,
    COM1_IRQ, COM1_PORT, GENERIC_EVENT_GSI, I8042_COMMAND_PORT, I8042_DATA_PORT,
    I8042_KEYBOARD_IRQ, IOAPIC, LOCAL_APIC, PM1A_CONTROL_PORT, PM1A_CONTROL_SIZE, PM1A_EVENT_PORT,
    PM1A_EVENT_SIZE, RSDP, SCI_IRQ, SLEEP_TYPE_S5, VMCLOCK, VMGENID,
};

const OEM_ID: [u8; 6] = *b"KEEPTM";
const OEM_TABLE_ID: [u8; 8] = *b"KEEPTIME";
const OEM_REVISION: u32 = 1;

/// Alignment of the tables; the FACS wants it (5.2.10), the others do not mind.
const ALIGNMENT: u64 = 64;

/// DSDT revision from which integers have 64 bits (5.2.11.1).
const DSDT_REVISION: u8 = 2;

/// What a device is notified of whose state changed (5.6.6, of a device's own: 80h and up).
const CHANGED: u8 = 0x80;

/// Virtio devices are named by a letter and three hexadecimal digits.
const MAX_DEVICES: usize = 0x1000;

/// A virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// First address of its registers, below 4 GiB.
    pub base: GuestAddress,
    /// Size of its registers in bytes.
    pub size: u32,
    /// Its interrupt, edge-triggered and active high.
    pub gsi: u32,
}

impl VirtioMmio {
    /// What a kernel without ACPI is told on its command line: the size and place of its registers and its interrupt
    /// (Documentation/admin-guide/kernel-parameters.txt, "virtio_mmio.device=").
    ///
    /// ```
    /// # use arch::acpi::VirtioMmio;
    /// # use vm_memory::GuestAddress;
    /// let device = VirtioMmio { base: GuestAddress(0xc000_1000), size: 0x1000, gsi: 5 };
    /// assert_eq!(device.argument(), "virtio_mmio.device=4K@0xc0001000:5");
    /// ```
    #[must_use]
    pub fn argument(&self) -> String {
        const KIB: u32 = 1024;
        let Self { base, size, gsi } = self;
        let size = if size % KIB == 0 {
            format!("{}K", size / KIB)
        } else {
            size.to_string()
        };
        format!("virtio_mmio.device={size}@{:#x}:{gsi}", base.0)
    }
}

/// What the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// The number of processors; their APIC ids are 0 and up.
    pub vcpus: CpuCount,
    /// The virtio-mmio devices.
    pub virtio_mmio: Vec<VirtioMmio>,
}

/// Why the tables could not be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// More devices than there are names for them.
    #[error("{count} virtio-mmio devices, but there are names for {max} only; use fewer")]
    TooManyDevices {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// Too many devices for the room below 1 MiB.
    #[error(
        "the ACPI tables end at {end:#x}, but their room ends at {limit:#x}; use fewer devices"
    )]
    TooLarge {
        /// The first address above them.
        end: u64,
        /// The first address above their room.
        limit: u64,
    },
    /// A device's registers are not in the 32-bit address space.
    #[error("the virtio-mmio device at {base:#x} must have its {size:#x} bytes below 4 GiB")]
    DeviceAddress {
        /// First address of its registers.
        base: u64,
        /// Size of its registers.
        size: u32,
    },
    /// Guest memory could not be written.
    #[error("cannot write ACPI tables into guest memory at {address:#x}")]
    Memory {
        /// Where.
        address: u64,
        /// Why.
        source: GuestMemoryError,
    },
}

/// Writes the tables into `memory` at [`crate::layout::RSDP`] and above, and returns the RSDP's
/// address.
///
/// # Errors
/// When they do not fit into their room, or `memory` does not reach there.
pub fn write_tables<M: GuestMemoryBackend>(
    memory: &M,
    config: &AcpiConfig,
) -> Result<GuestAddress, AcpiError> {
    let dsdt = dsdt(config)?;
    let madt = madt(config.vcpus);

    let mut room = Room { next: RSDP.0 };
    let rsdp_address = room.take(Rsdp::len())?;
    let dsdt_address = room.take(dsdt.as_slice().len())?;
    let facs_address = room.take(FACS::len())?;
    let fadt = fadt(dsdt_address, facs_address);
    let fadt_address = room.take(fadt.len())?;
    let madt_address = room.take(madt.as_slice().len())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_address.0);
    xsdt.add_entry(madt_address.0);
    let xsdt = bytes(&xsdt);
    let xsdt_address = room.take(xsdt.len())?;

    for (address, table) in [
        (dsdt_address, dsdt.as_slice()),
        (facs_address, &bytes(&FACS::new())),
        (fadt_address, &fadt),
        (madt_address, madt.as_slice()),
        (xsdt_address, &xsdt),
        (rsdp_address, &bytes(&Rsdp::new(OEM_ID, xsdt_address.0))),
    ] {
        memory
            .write_slice(table, address)
            .map_err(|source| AcpiError::Memory {
                address: address.0,
                source,
            })?;
    }
    Ok(rsdp_address)
}

/// The addresses not yet taken in the room for tables.
struct Room {
    next: u64,
}

impl Room {
    fn take(&mut self, size: usize) -> Result<GuestAddress, AcpiError> {
        let start = self.next.next_multiple_of(ALIGNMENT);
        let end = start.saturating_add(size as u64);
        if end > ACPI_END.0 {
            return Err(AcpiError::TooLarge {
                end,
                limit: ACPI_END.0,
            });
        }
        self.next = end;
        Ok(GuestAddress(start))
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed ACPI description table (5.2.9).
fn fadt(dsdt: GuestAddress, facs: GuestAddress) -> Vec<u8> {
    /// `IAPC_BOOT_ARCH` (table 5.11): there are devices to be found without enumeration; there is
    /// an 8042; do not probe for VGA.
    const LEGACY_DEVICES: u16 = 1 << 0;
    const I8042: u16 = 1 << 1;
    const VGA_NOT_PRESENT: u16 = 1 << 2;

    let port = |port: u16, size: u8, access| {
        GAS::new(AddressSpace::SystemIo, size * 8, 0, access, port.into())
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        // Caches are coherent and WBINVD works; C1 is HLT.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No fixed power button, sleep button or wake-up clock.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // OK: all tables are below 1 MiB. Old readers take the 32-bit fields, new ones the others.
    fadt.dsdt = address_32(dsdt).into();
    fadt.x_dsdt = dsdt.0.into();
    fadt.firmware_ctrl = address_32(facs).into();
    // OK: the numbers of the PC's interrupts are below 24.
    fadt.sci_int = u16::try_from(SCI_IRQ).unwrap_or(u16::MAX).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = PM1A_EVENT_SIZE;
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = PM1A_CONTROL_SIZE;
    fadt.x_pm1a_evt_blk = port(PM1A_EVENT_PORT, PM1A_EVENT_SIZE, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(PM1A_CONTROL_PORT, PM1A_CONTROL_SIZE, AccessSize::WordAccess);
    // C2 and C3 are not there: latencies above 100 and 1000 microseconds say so.
    fadt.p_lvl2_lat = 0xFFFF.into();
    fadt.p_lvl3_lat = 0xFFFF.into();
    fadt.century = CMOS_CENTURY_REGISTER;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | I8042 | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port(ACPI_RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = ACPI_RESET_VALUE;
    bytes(&fadt.finalize())
}

/// An address below 4 GiB as a 32-bit field.
fn address_32(address: GuestAddress) -> u32 {
    u32::try_from(address.0).unwrap_or(u32::MAX)
}

/// Multiple APIC description table (5.2.12).
///
/// Built from raw structures: `acpi_tables::madt` has no flags, overrides or NMI entries.
///
/// Interrupt 0 has no override, because the in-kernel interrupt controllers of KVM route global
/// system interrupt 0 to pin 0 of the IOAPIC (arch/x86/kvm/irq.c, `default_routing`), unlike a
/// PC's wiring, which has it on pin 2.
fn madt(vcpus: CpuCount) -> Sdt {
    /// Revision of this table in ACPI 6.5.
    const REVISION: u8 = 6;
    /// Flags (table 5.20): there are two 8259s, to be masked.
    const PCAT_COMPAT: u32 = 1;
    /// The id of the IOAPIC after reset, which KVM's has.
    const IOAPIC_ID: u8 = 0;
    /// Flags of interrupts (table 5.26): active high, level-triggered.
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    const ISA_BUS: u8 = 0;
    const ALL_PROCESSORS: u8 = 0xFF;
    const LINT1: u8 = 1;

    let mut madt = Sdt::new(*b"APIC", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&address_32(LOCAL_APIC).to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in vcpus.apic_ids() {
        // Type 0, processor local APIC: processor id, APIC id, flags "enabled".
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    // Type 1, I/O APIC: id, address, first global system interrupt.
    madt.append_slice(&[1, 12, IOAPIC_ID, 0]);
    madt.append_slice(&address_32(IOAPIC).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    // Type 2, interrupt source override: bus, source, global system interrupt, flags. The SCI is
    // level-triggered, which interrupts of the ISA bus are not by themselves.
    madt.append_slice(&[2, 10, ISA_BUS, u8::try_from(SCI_IRQ).unwrap_or(u8::MAX)]);
    madt.append_slice(&SCI_IRQ.to_le_bytes());
    madt.append_slice(&ACTIVE_HIGH_LEVEL.to_le_bytes());
    // Type 4, local APIC NMI: processors, flags "as the bus has it", pin.
    madt.append_slice(&[4, 6, ALL_PROCESSORS, 0, 0, LINT1]);
    madt
}

/// The differentiated system description table: devices and the power-off value.
fn dsdt(config: &AcpiConfig) -> Result<Sdt, AcpiError> {
    let mut dsdt = Sdt::new(
        *b"DSDT",
        36,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );

    // SLP_TYPa, SLP_TYPb, two reserved.
    let sleep_type = SLEEP_TYPE_S5;
    let s5 = Package::new(vec![&sleep_type, &sleep_type, &0u8, &0u8]);
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &s5)));

    let count = config.virtio_mmio.len();
    if count > MAX_DEVICES {
        return Err(AcpiError::TooManyDevices {
            count,
            max: MAX_DEVICES,
        });
    }
    let mut devices = Raw::default();
    for id in config.vcpus.apic_ids() {
        devices.add(&Device::new(
            Path::new(&format!("C{id:03X}")),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0007"),
                &Name::new(Path::new("_UID"), &id),
            ],
        ));
    }
    devices.add(&isa_device("COM1", "PNP0501", &[(COM1_PORT, 8)], COM1_IRQ));
    devices.add(&isa_device(
        "PS2K",
        "PNP0303",
        &[(I8042_DATA_PORT, 1), (I8042_COMMAND_PORT, 1)],
        I8042_KEYBOARD_IRQ,
    ));
    devices.add(&isa_device(
        "RTC_",
        "PNP0B00",
        &[(CMOS_INDEX_PORT, 2)],
        CMOS_IRQ,
    ));
    devices.add(&machine_wide_devices());
    for (index, device) in config.virtio_mmio.iter().enumerate() {
        let VirtioMmio { base, size, gsi } = *device;
        let start = match u32::try_from(base.0) {
            Ok(start) if start.checked_add(size).is_some() => start,
            _ => return Err(AcpiError::DeviceAddress { base: base.0, size }),
        };
        let registers = Memory32Fixed::new(true, start, size);
        let interrupt = Interrupt::new(true, true, false, false, gsi);
        devices.add(&Device::new(
            Path::new(&format!("V{index:03X}")),
            vec![
                &Name::new(Path::new("_HID"), &"LNRO0005"),
                &Name::new(Path::new("_UID"), &index),
                &Name::new(Path::new("_CCA"), &1u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&registers, &interrupt]),
                ),
            ],
        ));
    }
    dsdt.append_slice(&bytes(&Scope::new(Path::new("_SB_"), vec![&devices])));
    Ok(dsdt)
}

/// The devices that are of the machine as a whole: its generation, its VMClock, and the generic event device
/// (5.6.9.3), by which the guest is notified that its generation is another. A machine that is not of the
/// hardware-reduced kind may have one, too, and needs no GPE block then.
fn machine_wide_devices() -> Raw {
    let mut devices = Raw::default();
    // Found by _CID, read by ADDR, a package of the address's halves ("Virtual Machine Generation ID",
    // Microsoft, 2012). Linux knows the _HID, too (drivers/virt/vmgenid.c).
    let (low, high) = (address_32(VMGENID), 0u8);
    let address = Package::new(vec![&low, &high]);
    devices.add(&Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"VMGENCTR"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_UID"), &0u8),
            &Method::new(Path::new("ADDR"), 0, false, vec![&Return::new(&address)]),
        ],
    ));
    // drivers/ptp/ptp_vmclock.c. The guest reads.
    let page = Memory32Fixed::new(false, address_32(VMCLOCK), REGION_SIZE);
    devices.add(&Device::new(
        Path::new("VCLK"),
        vec![
            &Name::new(Path::new("_HID"), &"AMZNC10C"),
            &Name::new(Path::new("_CID"), &"VMCLOCK"),
            &Name::new(Path::new("_DDN"), &"VMCLOCK"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&page])),
        ],
    ));
    let interrupt = Interrupt::new(true, true, false, false, GENERIC_EVENT_GSI);
    let generation = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&generation, &CHANGED);
    let is_ours = Equal::new(&Arg(0), &GENERIC_EVENT_GSI);
    devices.add(&Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&If::new(&is_ours, vec![&notify])],
            ),
        ],
    ));
    devices
}

/// Objects already encoded, one after the other.
#[derive(Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn add(&mut self, object: &dyn Aml) {
        object.to_aml_bytes(&mut self.0);
    }
}

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// A device of the ISA bus: its ports as (first, count) and its edge-triggered interrupt.
fn isa_device(name: &str, id: &str, ports: &[(u16, u8)], irq: u32) -> Raw {
    let ports: Vec<IO> = ports
        .iter()
        .map(|(port, count)| IO::new(*port, *port, 1, *count))
        .collect();
    let interrupt = Interrupt::new(true, true, false, false, irq);
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|port| port as &dyn Aml).collect();
    resources.push(&interrupt);
    let mut device = Raw::default();
    device.add(&Device::new(
        Path::new(name),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new(id)),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        ],
    ));
    device
}
