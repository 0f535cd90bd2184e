//! Device models: what a guest finds at its I/O ports and memory-mapped registers.
//!
//! A device is a state machine behind [`BusDevice`]: bytes in, bytes out, and for a write a
//! [`Reaction`] that it asks of the machine. It raises interrupts and wakes event loops through a
//! [`Trigger`], learns the time from a [`cmos::WallClock`] and writes to a [`std::io::Write`], so it
//! knows neither the thread that runs it nor the hypervisor beneath, and a test or a fuzz target
//! makes one from closures. Every byte that reaches a device comes from a guest that may be hostile:
//! no access panics, blocks, or makes a queue grow without bound.
//!
//! This crate may depend on `arch` and `tsc` and never on a hypervisor. Where a device is, the
//! caller decides.
//!
//! # What is where
//!
//! The ports that Linux 6.1, 64-bit and 32-bit, uses while it boots on such a machine, who answers,
//! and what the guest makes of it. "Kernel" is KVM's own interrupt controllers and timer
//! (`arch/x86/kvm/{i8259,i8254,ioapic}.c`), whose accesses never reach a [`Bus`]; "nobody" is the
//! open bus, all ones and no effect.
//!
//! | ports | what | who | why so |
//! | --- | --- | --- | --- |
//! | 0x20–0x21, 0xa0–0xa1, 0x4d0–0x4d1 | interrupt controllers, edge/level | kernel | |
//! | 0x40–0x43 | interval timer | [`pit::LazyPit`], then kernel | the kernel's timer is made when a guest needs one |
//! | 0x61 | timer gate, speaker | [`pit::LazyPit`], then kernel | the kernel's only with `KVM_PIT_SPEAKER_DUMMY` given to `KVM_CREATE_PIT2`. Must have an owner: `pit_calibrate_tsc` (`arch/x86/kernel/tsc.c`) takes the timer's output from bit 5. With nobody there its loop ends at once and the result is rejected |
//! | 0x60, 0x64 | keyboard controller | [`i8042::I8042`] | probe, Ctrl+Alt+Del, reset (`reboot=k`) |
//! | 0x70–0x71 | clock and memory | [`cmos::Cmos`] | the date; the shutdown byte when a processor starts |
//! | 0x80, 0xed | delay | nobody | written to pass time (`native_io_delay`) and around the 32-bit 8250 probe; the exit itself is delay enough |
//! | 0x92 | fast A20, reset | nobody | only 16-bit set-up code uses it, which no boot protocol here runs |
//! | 0x00–0x0f, 0x81–0x8f, 0xc0–0xdf | DMA controllers | nobody | only drivers of ISA devices that are absent |
//! | 0xf0–0xf1 | coprocessor error | nobody | a 32-bit kernel clears an error that only IRQ 13 announces |
//! | 0xf4 | debug exit | [`debug_exit::DebugExit`], if asked for | |
//! | 0x3f8–0x3ff | COM1 | [`serial::Serial`] | the console |
//! | 0x2f8, 0x3e8, 0x2e8 | COM2 to COM4 | nobody | the 8250 probe sees bits in IER that stick and finds no port |
//! | 0x170, 0x1f0, 0x3f0, 0x378, 0x201, 0x3c0–0x3df | IDE, floppy, printer, joystick, VGA | nobody | absent; CMOS and `boot_params` say so |
//! | 0xcf8–0xcff | PCI configuration | nobody | what is written does not read back: no PCI (`pci_check_type1`, `pci_check_type2`) |
//! | 0x5658 | VMware's back door | nobody | asked only where CPUID or DMI names VMware |
//! | ACPI's PM1a and reset | power | [`power::AcpiPower`], [`power::AcpiReset`] | where the FADT says; no `SMI_CMD`, no PM timer |
//!
//! In memory the local APIC and the IOAPIC are the kernel's; [`boot_timer::BootTimer`] and the registers of
//! [`virtio`] devices are ours. Two devices are pages of the guest's own memory that ACPI tells of, and that no
//! access leaves the guest for: [`vmclock::ClockPage`] and [`vmgenid::VmGenId`].
//!
//! Of these only 0x61 hangs a guest when it is answered wrongly: zeros for ever would, ones do not.
//! Without a timer (`--no-pit`) it is an open bus.
#![forbid(unsafe_code)]

pub mod boot_timer;
pub mod bus;
pub mod cmos;
pub mod debug_exit;
pub mod i8042;
pub mod pit;
pub mod power;
pub mod rate_limiter;
pub mod serial;
pub mod trigger;
pub mod virtio;
pub mod vmclock;
pub mod vmgenid;

pub use bus::{Bus, BusDevice, BusError, Reaction};
pub use trigger::{Trigger, Unconnected};
