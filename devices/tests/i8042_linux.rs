//! The keyboard controller as Linux probes it: the accesses of `drivers/input/serio/i8042.c` and
//! `drivers/input/keyboard/atkbd.c` (6.1), with their waiting loops. Linux waits up to half a second
//! for each answer that does not come; here every answer must be there at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use devices::bus::{Bus, Reaction};
use devices::i8042::{I8042, PORTS};

const DATA: u64 = 0x60;
const COMMAND: u64 = 0x64;
// drivers/input/serio/i8042.h
const STR_AUXDATA: u8 = 0x20;
const STR_KEYLOCK: u8 = 0x10;
const STR_IBF: u8 = 0x02;
const STR_OBF: u8 = 0x01;
const CTR_XLATE: u8 = 0x40;
const CTR_KBDDIS: u8 = 0x10;
const CTR_KBDINT: u8 = 0x01;

struct Machine {
    ports: Bus,
    controller: Arc<Mutex<I8042>>,
    interrupts: Arc<AtomicUsize>,
}

impl Machine {
    fn new() -> Self {
        let interrupts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&interrupts);
        let controller = Arc::new(Mutex::new(I8042::new(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }))));
        let mut ports = Bus::new();
        ports
            .insert(DATA, PORTS, controller.clone(), "i8042")
            .unwrap();
        Self {
            ports,
            controller,
            interrupts,
        }
    }

    fn inb(&self, port: u64) -> u8 {
        let mut data = [0];
        self.ports.read(port, &mut data);
        data[0]
    }

    fn outb(&self, port: u64, value: u8) {
        assert_eq!(
            self.inb(COMMAND) & STR_IBF,
            0,
            "i8042_wait_write would wait"
        );
        assert_eq!(self.ports.write(port, &[value]), Reaction::None);
    }

    /// `i8042_flush`: gives up after 16 bytes.
    fn flush(&self) {
        for _ in 0..=16 {
            if self.inb(COMMAND) & STR_OBF == 0 {
                return;
            }
            self.inb(DATA);
        }
        panic!("No controller found");
    }

    /// `i8042_command`, with `sends` parameters and one answer; `None` for "auxerr".
    fn command(&self, command: u8, sends: &[u8]) -> Option<u8> {
        self.outb(COMMAND, command);
        for &byte in sends {
            self.outb(DATA, byte);
        }
        let status = self.inb(COMMAND);
        assert_eq!(
            status & STR_OBF,
            STR_OBF,
            "{command:#x}: i8042_wait_read would time out"
        );
        if command == 0xd3 && status & STR_AUXDATA == 0 {
            return None;
        }
        Some(self.inb(DATA))
    }

    /// A byte to the keyboard, as `ps2_sendbyte`: the acknowledgement must come with an interrupt.
    fn keyboard(&self, byte: u8, answers: &[u8]) {
        let before = self.interrupts.load(Ordering::Relaxed);
        self.outb(DATA, byte);
        for &answer in answers {
            assert_eq!(
                self.inb(COMMAND) & (STR_OBF | STR_AUXDATA),
                STR_OBF,
                "{byte:#x}"
            );
            assert_eq!(self.inb(DATA), answer, "{byte:#x}");
        }
        assert_eq!(self.inb(COMMAND) & STR_OBF, 0);
        assert_eq!(
            self.interrupts.load(Ordering::Relaxed),
            before + answers.len()
        );
    }
}

#[test]
fn probe_finds_a_keyboard_and_no_mouse_without_waiting() {
    let m = Machine::new();

    // i8042_controller_check, i8042_controller_selftest
    m.flush();
    assert_eq!(m.command(0xaa, &[]), Some(0x55));

    // i8042_controller_init: the command byte must read the same twice.
    let first = m.command(0x20, &[]).unwrap();
    assert_eq!(m.command(0x20, &[]), Some(first));
    assert_eq!(
        m.inb(COMMAND) & STR_KEYLOCK,
        STR_KEYLOCK,
        "Warning: Keylock active"
    );
    assert_eq!(
        first & CTR_XLATE,
        CTR_XLATE,
        "translated, as atkbd expects on a PC"
    );
    let mut control = (first | CTR_KBDDIS) & !CTR_KBDINT;
    m.outb(COMMAND, 0x60);
    m.outb(DATA, control);
    m.flush();

    // i8042_check_aux: the loop comes back on the wrong side, the line test fails: no mouse.
    m.flush();
    assert_eq!(m.command(0xd3, &[0x5a]), None);
    m.flush();
    let lines = m.command(0xa9, &[]).unwrap();
    assert!(
        ![0x00, 0xfa, 0xff].contains(&lines),
        "a mouse port where there is none"
    );

    // i8042_enable_kbd_port
    control = control & !CTR_KBDDIS | CTR_KBDINT;
    m.outb(COMMAND, 0x60);
    m.outb(DATA, control);

    // atkbd_probe, atkbd_select_set, atkbd_reset_state, atkbd_activate
    m.keyboard(0xf2, &[0xfa, 0xab, 0x41]);
    m.keyboard(0xf5, &[0xfa]);
    m.keyboard(0xed, &[0xfa]);
    m.keyboard(0x00, &[0xfa]);
    m.keyboard(0xf3, &[0xfa]);
    m.keyboard(0x00, &[0xfa]);
    m.keyboard(0xf4, &[0xfa]);

    // Now the host asks for a reboot.
    m.controller.lock().unwrap().trigger_ctrl_alt_del().unwrap();
    let mut typed = Vec::new();
    while m.inb(COMMAND) & STR_OBF != 0 {
        typed.push(m.inb(DATA));
    }
    assert_eq!(typed[..4], [0x1d, 0x38, 0xe0, 0x53]);
}

/// A key pressed before there is a driver must not spoil the probe.
#[test]
fn probe_after_an_early_ctrl_alt_del_still_finds_the_controller() {
    let m = Machine::new();
    m.controller.lock().unwrap().trigger_ctrl_alt_del().unwrap();
    m.flush();
    assert_eq!(m.command(0xaa, &[]), Some(0x55));
}

/// `native_machine_emergency_restart`, `BOOT_KBD` (arch/x86/kernel/reboot.c): waits until the
/// input buffer is empty, then pulses the reset line.
#[test]
fn reboot_through_the_keyboard_controller_resets() {
    let m = Machine::new();
    assert_eq!(m.inb(COMMAND) & STR_IBF, 0);
    assert_eq!(m.ports.write(COMMAND, &[0xfe]), Reaction::Reset);
}
