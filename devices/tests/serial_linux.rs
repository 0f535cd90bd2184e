//! The serial port as Linux's 8250 driver meets it: the accesses of `autoconfig`,
//! `autoconfig_16550a` and `serial8250_do_startup` in `drivers/tty/serial/8250/8250_port.c` (6.1),
//! through the bus. What the driver concludes is asserted where it concludes it.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use devices::bus::{Bus, Reaction};
use devices::serial::{REGISTERS, Serial};
use devices::trigger::Unconnected;

const COM1: u64 = 0x3f8;
// include/uapi/linux/serial_reg.h
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
/// The enhanced feature register of chips that have one, at the place of IIR.
const EFR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

struct Machine {
    ports: Bus,
    serial: Arc<Mutex<Serial>>,
    interrupts: Arc<AtomicUsize>,
}

impl Machine {
    fn new() -> Self {
        let interrupts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&interrupts);
        let serial = Arc::new(Mutex::new(Serial::new(
            Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }),
            Box::new(io::sink()),
            Box::new(Unconnected),
        )));
        let mut ports = Bus::new();
        ports
            .insert(COM1, REGISTERS, serial.clone(), "com1")
            .unwrap();
        Self {
            ports,
            serial,
            interrupts,
        }
    }

    fn inb(&self, register: u64) -> u8 {
        let mut data = [0];
        self.ports.read(COM1 + register, &mut data);
        data[0]
    }

    fn outb(&self, register: u64, value: u8) {
        assert_eq!(self.ports.write(COM1 + register, &[value]), Reaction::None);
    }

    /// `size_fifo`: how many bytes sent in loopback come back.
    fn size_fifo(&self) -> usize {
        let lcr = self.inb(LCR);
        self.outb(LCR, 0);
        let fcr = self.inb(FCR);
        let mcr = self.inb(MCR);
        self.outb(FCR, 0x07);
        self.outb(MCR, 0x12);
        self.outb(LCR, 0x80);
        let divisor = [self.inb(0), self.inb(1)];
        self.outb(0, 1);
        self.outb(1, 0);
        self.outb(LCR, 0x03);
        for byte in 0..=255 {
            self.outb(0, byte);
        }
        let mut count = 0;
        while self.inb(LSR) & 1 != 0 && count < 256 {
            self.inb(0);
            count += 1;
        }
        self.outb(FCR, fcr);
        self.outb(MCR, mcr);
        self.outb(LCR, 0x80);
        self.outb(0, divisor[0]);
        self.outb(1, divisor[1]);
        self.outb(LCR, lcr);
        count
    }
}

#[test]
fn autoconfig_finds_a_16550a() {
    let m = Machine::new();

    // Is there a UART? IER's upper bits must not stick, its lower four must.
    let ier = m.inb(IER);
    m.outb(IER, 0);
    assert_eq!(m.inb(IER) & 0x0f, 0);
    m.outb(IER, 0x0f);
    assert_eq!(m.inb(IER) & 0x0f, 0x0f);
    m.outb(IER, ier);

    // Loopback with OUT2 and RTS must come back as DCD and CTS.
    let mcr = m.inb(MCR);
    let lcr = m.inb(LCR);
    m.outb(MCR, 0x1a);
    assert_eq!(m.inb(MSR) & 0xf0, 0x90);
    m.outb(MCR, mcr);

    // Which one? Both FIFO bits of IIR: a 16550A or better.
    m.outb(LCR, 0xbf);
    m.outb(EFR, 0);
    m.outb(LCR, 0);
    m.outb(FCR, 0x01);
    assert_eq!(m.inb(IIR) >> 6, 3);

    // Better? An EFR that reads as zero behind DLAB would be a 16650 or an Exar chip.
    m.outb(LCR, 0x80);
    assert_ne!(m.inb(EFR), 0);
    m.outb(LCR, 0xbf);
    assert_ne!(m.inb(EFR), 0);

    // A National Semiconductor SuperIO shows MCR's loopback bit in register 2 of bank 0xe0.
    m.outb(LCR, 0);
    let before = m.inb(MCR);
    m.outb(LCR, 0xe0);
    let bank = m.inb(2);
    if (bank ^ before) & 0x10 == 0 {
        m.outb(LCR, 0);
        m.outb(MCR, before ^ 0x10);
        m.outb(LCR, 0xe0);
        let bank = m.inb(2);
        m.outb(LCR, 0);
        m.outb(MCR, before);
        assert_eq!((bank ^ before) & 0x10, 0, "taken for a SuperIO chip");
    }

    // A TI16750 has bit 5 of IIR while its 64-byte FIFO is on, and only behind DLAB.
    m.outb(LCR, 0);
    m.outb(FCR, 0x21);
    let plain = m.inb(IIR) >> 5;
    m.outb(FCR, 0x01);
    m.outb(LCR, 0x80);
    m.outb(FCR, 0x21);
    let latched = m.inb(IIR) >> 5;
    m.outb(FCR, 0x01);
    m.outb(LCR, 0);
    assert_eq!(
        (plain, latched),
        (6, 6),
        "taken for a TI16750 or a 16550A with 64 bytes"
    );

    // An XScale UART has a unit enable bit in IER.
    let ier = m.inb(IER);
    m.outb(IER, ier & !0x40);
    assert_eq!(m.inb(IER) & 0x40, 0);
    m.outb(IER, ier | 0x40);
    assert_eq!(m.inb(IER) & 0x40, 0, "taken for an XScale UART");
    m.outb(IER, ier);

    // A FIFO of 64 bytes would be a U6_16550A, one that is not 16 another chip.
    assert_eq!(m.size_fifo(), 16);

    // An 8250 or 16450 is told by the scratch register; it must hold.
    m.outb(SCR, 0xa5);
    assert_eq!(m.inb(SCR), 0xa5);
    m.outb(SCR, 0x5a);
    assert_eq!(m.inb(SCR), 0x5a);
    m.outb(LCR, lcr);
}

#[test]
fn startup_needs_no_workaround() {
    let m = Machine::new();
    for fcr in [0x01, 0x07, 0x00] {
        m.outb(FCR, fcr);
    }
    for register in [LSR, 0, IIR, MSR] {
        m.inb(register);
    }
    // 0xff would be "no UART here".
    assert_ne!(m.inb(LSR), 0xff);
    m.outb(LCR, 0x03);

    // UART_BUG_THRE: enabling the transmitter interrupt twice must report it twice.
    assert_eq!(m.inb(LSR) & 0x20, 0x20);
    m.outb(IER, 0x02);
    let first = m.inb(IIR);
    m.outb(IER, 0);
    m.outb(IER, 0x02);
    let second = m.inb(IIR);
    m.outb(IER, 0);
    assert_eq!(
        (first & 1, second & 1),
        (0, 0),
        "the THRE interrupt must be asserted anew"
    );

    // UART_BUG_TXEN: an idle transmitter whose interrupt is enabled must interrupt.
    let before = m.interrupts.load(Ordering::Relaxed);
    m.outb(IER, 0x02);
    let (lsr, iir) = (m.inb(LSR), m.inb(IIR));
    m.outb(IER, 0);
    assert_eq!((lsr & 0x40, iir & 1), (0x40, 0));
    assert_eq!(m.interrupts.load(Ordering::Relaxed), before + 1);
}

/// The console writes with interrupts masked (`serial8250_console_write`): a key typed meanwhile
/// must interrupt once IER is back.
#[test]
fn key_typed_during_a_console_write_interrupts_afterwards() {
    let m = Machine::new();
    m.outb(IER, 0x05);
    let ier = m.inb(IER);
    m.outb(IER, 0);
    m.outb(0, b'#');
    assert_eq!(m.serial.lock().unwrap().enqueue(b"k"), 1);
    // The handler of a shared line looks, and must find nothing.
    assert_eq!(m.inb(IIR) & 1, 1);
    assert_eq!(m.inb(LSR) & 0x60, 0x60);
    let before = m.interrupts.load(Ordering::Relaxed);
    m.outb(IER, ier);
    assert_eq!(m.interrupts.load(Ordering::Relaxed), before + 1);
    assert_eq!(m.inb(IIR) & 0x0f, 0x04);
    assert_eq!(m.inb(0), b'k');
    assert_eq!(m.inb(IIR) & 1, 1);
}
