//! The guest's physical address space and its ports, in one place.
//!
//! ```text
//! 0x0_0000_0500  GDT, written by `boot`
//! 0x0_0000_6000  PVH start info, module list and memory map      (one page)
//! 0x0_0000_7000  Linux `boot_params`, the "zero page"            (one page)
//! 0x0_0000_8000  boot stack, growing down from its end           (one page)
//! 0x0_0000_9000  page tables: PML4, PDPT, four directories       (six pages)
//! 0x0_0001_0000  multiboot information                           (64 KiB)
//! 0x0_0002_0000  kernel command line                             (64 KiB)
//! 0x0_0009_FC00  end of conventional memory; reserved up to 640 KiB
//! 0x0_000E_0000  ACPI: RSDP first, then the tables               (120 KiB)
//! 0x0_000F_E000  VMClock                                         (one page)
//! 0x0_000F_F000  the machine's generation                        (one page)
//! 0x0_0010_0000  kernel, modules, RAM, up to 3 GiB
//! 0x0_C000_0000  MMIO hole: boot timer, virtio-mmio, IOAPIC, local APIC
//! 0x1_0000_0000  the RAM that did not fit below 3 GiB
//!                then, from a whole GiB on: memory of devices, which no memory map tells of
//! ```
//!
//! All of it is chosen here except where a comment names a specification that fixes it.

use vm_memory::GuestAddress;

/// Size of a 4 KiB page (SDM vol. 3, 4.5).
pub const PAGE_SIZE: u64 = 0x1000;

/// Where the global descriptor table of the boot processor lies. The first 0x500 bytes are the
/// real-mode interrupt vectors and the BIOS data area, which kernels peek at.
pub const GDT: GuestAddress = GuestAddress(0x500);

/// PVH `hvm_start_info`, followed in the same page by the module list and the memory map.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);

/// Linux `struct boot_params` (Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);

/// Initial stack pointer: the end of a page that nothing else uses.
pub const BOOT_STACK_TOP: GuestAddress = GuestAddress(0x9000);

/// Page-map level 4 of the identity mapping that 64-bit kernels are entered with.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// Page-directory-pointer table of the identity mapping.
pub const PDPT: GuestAddress = GuestAddress(0xA000);
/// The first of four page directories of 2 MiB pages, together 4 GiB.
pub const PAGE_DIRECTORIES: GuestAddress = GuestAddress(0xB000);

/// Multiboot 1 information structure, memory map, module list and strings.
pub const MULTIBOOT_INFO: GuestAddress = GuestAddress(0x1_0000);
/// End of the room for multiboot information.
pub const MULTIBOOT_INFO_END: GuestAddress = GuestAddress(0x2_0000);

/// The kernel's command line, terminated by a zero byte.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Room for the command line, its terminator included.
pub const CMDLINE_ROOM: usize = 0x1_0000;

/// End of conventional memory: what lies from here to 640 KiB is the extended BIOS data area,
/// which kernels expect to be reserved.
pub const EBDA: GuestAddress = GuestAddress(0x9_FC00);
/// End of the extended BIOS data area; video memory and option ROMs of a PC follow.
pub const EBDA_END: GuestAddress = GuestAddress(0xA_0000);

/// The ACPI root pointer. Software without a boot protocol's pointer scans 0xE0000..0xFFFFF for
/// it on 16-byte boundaries (ACPI 6.5, 5.2.5.1), so it comes first.
pub const RSDP: GuestAddress = GuestAddress(0xE_0000);
/// End of the room for ACPI tables.
pub const ACPI_END: GuestAddress = GuestAddress(0xF_E000);

/// What the guest's TSC has to do with real time: one page, so that a guest can map it into its programs
/// (include/uapi/linux/vmclock-abi.h).
pub const VMCLOCK: GuestAddress = GuestAddress(0xF_E000);
/// Which generation of itself the machine is: sixteen bytes in a page of their own, which a guest has no reason to map
/// otherwise than cached, as the specification wants it ("Virtual Machine Generation ID", Microsoft, 2012).
pub const VMGENID: GuestAddress = GuestAddress(0xF_F000);

/// End of what firmware has of conventional memory, and a guest does not use as RAM.
pub const FIRMWARE_END: GuestAddress = GuestAddress(0x10_0000);

/// Start of extended memory, 1 MiB: kernels and modules are loaded at or above it.
pub const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);

/// Start of the MMIO hole; RAM below it is contiguous from address 0.
pub const MMIO_HOLE: GuestAddress = GuestAddress(0xC000_0000);
/// End of the MMIO hole: RAM goes on here.
pub const MMIO_HOLE_END: GuestAddress = GuestAddress(0x1_0000_0000);

/// A guest writes here to have its boot time logged: the address that Firecracker's guests use.
pub const BOOT_TIMER: GuestAddress = GuestAddress(0xC000_0000);

/// Registers of the first virtio-mmio device; one every [`VIRTIO_MMIO_SIZE`] bytes.
pub const VIRTIO_MMIO: GuestAddress = GuestAddress(0xC000_1000);
/// Size of a virtio-mmio device's register window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Global system interrupts of the virtio-mmio devices, by slot; one device each, edge-triggered.
///
/// These are the IOAPIC's 24 pins less those with a fixed meaning on a PC: 0 timer, 1 keyboard,
/// 2 cascade, 3 and 4 serial ports, 8 clock, 9 ACPI, 12 mouse, 13 numeric coprocessor.
pub const VIRTIO_MMIO_GSIS: [u32; 15] = [5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// The interrupt of what happens to the machine as a whole, edge-triggered: a second serial port's on a PC, which
/// this machine does not have.
pub const GENERIC_EVENT_GSI: u32 = 3;

/// I/O APIC registers (82093AA datasheet, 3.0; the address is the PC's convention).
pub const IOAPIC: GuestAddress = GuestAddress(0xFEC0_0000);
/// Local APIC registers after reset (SDM vol. 3, 11.4.1).
pub const LOCAL_APIC: GuestAddress = GuestAddress(0xFEE0_0000);

/// One page for the identity-mapped page table that a hypervisor on Intel processors without
/// unrestricted guests needs in the guest's address space.
pub const HYPERVISOR_IDENTITY_MAP: GuestAddress = GuestAddress(0xFFFB_C000);
/// Three pages for the task state segment that the same processors need to run real mode.
pub const HYPERVISOR_TSS: GuestAddress = GuestAddress(0xFFFB_D000);

/// First serial port (a PC's convention), eight ports.
pub const COM1_PORT: u16 = 0x3F8;
/// Interrupt of the first serial port.
pub const COM1_IRQ: u32 = 4;

/// Interval timer: three counters and the control register (8254; a PC's convention).
pub const PIT_PORT: u16 = 0x40;
/// Gate of the interval timer's counter 2, and the speaker.
pub const PIT_SPEAKER_PORT: u16 = 0x61;

/// Keyboard controller, data port.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Keyboard controller, command and status port; command 0xFE pulses the reset line.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Interrupt of the keyboard.
pub const I8042_KEYBOARD_IRQ: u32 = 1;

/// Real-time clock, index port (MC146818).
pub const CMOS_INDEX_PORT: u16 = 0x70;
/// Real-time clock, data port.
pub const CMOS_DATA_PORT: u16 = 0x71;
/// Interrupt of the real-time clock (a PC's convention), edge-triggered.
pub const CMOS_IRQ: u32 = 8;
/// Register of the real-time clock that holds the century, where PCs have it (ACPI 6.5, table 5.9,
/// `CENTURY`).
pub const CMOS_CENTURY_REGISTER: u8 = 0x32;

/// ACPI PM1a event block: status (2 bytes), then enable (2 bytes) (ACPI 6.5, 4.8.3.1).
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// Size of the PM1a event block.
pub const PM1A_EVENT_SIZE: u8 = 4;
/// ACPI PM1a control register (ACPI 6.5, 4.8.3.2).
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// Size of the PM1a control register.
pub const PM1A_CONTROL_SIZE: u8 = 2;
/// `SCI_EN` in the PM1a control register: reads as 1, since the machine is in ACPI mode from
/// the start (ACPI 6.5, table 4.14).
pub const PM1_CONTROL_SCI_EN: u16 = 1 << 0;
/// Position of the 3-bit `SLP_TYP` field in the PM1a control register.
pub const PM1_CONTROL_SLEEP_TYPE_SHIFT: u16 = 10;
/// `SLP_EN` in the PM1a control register: a write with it enters the state in `SLP_TYP`.
pub const PM1_CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
/// The `SLP_TYP` value of soft-off that the DSDT's `\_S5_` announces.
pub const SLEEP_TYPE_S5: u8 = 5;
/// ACPI reset register, one byte (ACPI 6.5, 4.8.3.6).
pub const ACPI_RESET_PORT: u16 = 0x608;
/// What is written to [`ACPI_RESET_PORT`] to reset the machine.
pub const ACPI_RESET_VALUE: u8 = 1;
/// The system control interrupt: level-triggered, active high.
pub const SCI_IRQ: u32 = 9;

/// Debug exit: a guest's write of `v` ends the launcher with status `(v << 1) | 1`, where enabled.
pub const DEBUG_EXIT_PORT: u16 = 0xF4;
