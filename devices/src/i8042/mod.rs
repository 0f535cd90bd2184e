//! The keyboard controller of a PC: the way in which most guests reset the machine, and the way in
//! which Ctrl+Alt+Del reaches them.
//!
//! `vm_superio::I8042Device` knows the reset command and answers every read with 0: Linux then takes
//! the controller for present and broken, or waits half a second for each answer that never comes.
//! A guest that probes, a guest that resets through the output port, and Ctrl+Alt+Del need a model,
//! and this is it: one controller, one keyboard, no mouse.
//!
//! Sources: Intel UPI-41/42 keyboard controller, as in the IBM PS/2 Hardware Interface Technical
//! Reference; Linux: `drivers/input/serio/i8042.c`, whose probe is `tests/i8042_linux.rs`.

mod keyboard;
mod queue;

use std::fmt;

use thiserror::Error;

use crate::bus::{BusDevice, Reaction};
use crate::trigger::Trigger;
use keyboard::Keyboard;
use queue::Queue;

/// Length of the controller's range of ports: 0x60 to 0x64. The ports between belong to others, so a
/// machine puts it on its bus in two parts: see [`COMMAND`].
pub const PORTS: u64 = 5;

/// Offset of the data port, 0x60.
const DATA: u64 = 0;
/// Offset of the status port when read, of the command port when written, 0x64.
pub const COMMAND: u64 = 4;

// Status register.
/// The output buffer holds a byte for the guest.
const STATUS_OUTPUT_FULL: u8 = 0x01;
/// The system flag: a self-test was passed. Mirrors the command byte's bit 2.
const STATUS_SYSTEM: u8 = 0x04;
/// The last byte written was a command.
const STATUS_COMMAND: u8 = 0x08;
/// The keyboard is not locked with a key.
const STATUS_UNLOCKED: u8 = 0x10;

// Command byte, also called the controller's control register.
/// Interrupt when a byte for the guest is there.
const CONTROL_INTERRUPT: u8 = 0x01;
/// The system flag.
const CONTROL_SYSTEM: u8 = 0x04;
/// The keyboard's clock is held: it must wait with what it has to say.
const CONTROL_KEYBOARD_OFF: u8 = 0x10;
/// The mouse's clock is held: always, since there is none, which is how one finds out.
const CONTROL_MOUSE_OFF: u8 = 0x20;
/// Scan codes of set 2 are translated to set 1.
const CONTROL_TRANSLATE: u8 = 0x40;
/// As a PC's firmware leaves it: self-test passed, translating, interrupting.
const CONTROL_AFTER_FIRMWARE: u8 =
    CONTROL_INTERRUPT | CONTROL_SYSTEM | CONTROL_MOUSE_OFF | CONTROL_TRANSLATE;

// Output port.
/// Low resets the processor.
const OUTPUT_NO_RESET: u8 = 0x01;
/// Address line 20 is open.
const OUTPUT_A20: u8 = 0x02;

/// Why Ctrl+Alt+Del could not be typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyboardError {
    /// The guest has switched the keyboard off, or reads so slowly that its buffer is full.
    #[error("the guest does not read its keyboard")]
    NotListening,
}

/// A command that waits for its parameter at the data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    /// 0x60: the command byte.
    Control,
    /// 0xd1: the output port.
    OutputPort,
    /// 0xd2: a byte to send back as if it came from the keyboard.
    KeyboardLoop,
    /// 0xd3: a byte to send back as if it came from the mouse.
    MouseLoop,
    /// 0xd4: a byte for the mouse.
    Mouse,
}

/// The keyboard controller and its keyboard: see the [module](self).
///
/// Its ports are bytes. An access wider than a byte is as many accesses to consecutive ports,
/// lowest first. The ports between data and command belong to others; here they are open bus.
pub struct I8042 {
    interrupt: Box<dyn Trigger>,
    control: u8,
    output_port: u8,
    /// The last write went to the command port.
    last_was_command: bool,
    awaiting: Option<Parameter>,
    /// The byte that the guest reads next.
    output: Option<u8>,
    /// Answers of the controller itself, which go before the keyboard's.
    answers: Queue<2>,
    keyboard: Keyboard,
}

impl I8042 {
    /// The controller as a PC's firmware hands it over. `interrupt` is pulsed for each byte that the
    /// guest is to read (IRQ 1).
    #[must_use]
    pub fn new(interrupt: Box<dyn Trigger>) -> Self {
        Self {
            interrupt,
            control: CONTROL_AFTER_FIRMWARE,
            output_port: OUTPUT_NO_RESET | OUTPUT_A20,
            last_was_command: false,
            awaiting: None,
            output: None,
            answers: Queue::new(),
            keyboard: Keyboard::new(),
        }
    }

    /// Types Ctrl+Alt+Del on the guest's keyboard: down, then up again.
    ///
    /// # Errors
    ///
    /// If the guest switched the keyboard off or does not read it; then nothing is typed.
    pub fn trigger_ctrl_alt_del(&mut self) -> Result<(), KeyboardError> {
        if !self.keyboard.type_ctrl_alt_del() {
            return Err(KeyboardError::NotListening);
        }
        self.fill_output();
        Ok(())
    }

    /// Moves the next byte into the output buffer, if that is free, and interrupts.
    fn fill_output(&mut self) {
        if self.output.is_some() {
            return;
        }
        self.output = self.answers.pop().or_else(|| {
            let held = self.control & CONTROL_KEYBOARD_OFF != 0;
            if held { None } else { self.next_scan_code() }
        });
        if self.output.is_some() && self.control & CONTROL_INTERRUPT != 0 {
            self.interrupt.trigger();
        }
    }

    /// The keyboard's next byte, in the scan code set that the guest asked for. In set 2 a key is
    /// released with a prefix of 0xf0; in set 1 with the top bit of the key's code.
    fn next_scan_code(&mut self) -> Option<u8> {
        let byte = self.keyboard.output.pop()?;
        if self.control & CONTROL_TRANSLATE == 0 {
            return Some(byte);
        }
        if byte == 0xf0 {
            return self
                .keyboard
                .output
                .pop()
                .map(|released| translate(released) | 0x80);
        }
        Some(translate(byte))
    }

    fn answer(&mut self, byte: u8) {
        // An answer beyond those that fit is lost: the guest asked again and again, never reading.
        let _ = self.answers.push(byte);
        self.fill_output();
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        if self.output.is_some() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.control & CONTROL_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn read_data(&mut self) -> u8 {
        // An empty buffer gives zeros; a chip would repeat the last byte.
        let byte = self.output.take().unwrap_or(0);
        self.fill_output();
        byte
    }

    fn command(&mut self, command: u8) -> Reaction {
        self.last_was_command = true;
        self.awaiting = None;
        match command {
            0x20 => self.answer(self.control),
            0x60 => self.awaiting = Some(Parameter::Control),
            // Test the mouse's lines: its clock is stuck, as without a mouse.
            0xa9 => self.answer(0x01),
            // Self-test: passed.
            0xaa => {
                self.control |= CONTROL_SYSTEM;
                self.answer(0x55);
            }
            // Test the keyboard's lines: no error.
            0xab => self.answer(0x00),
            0xad => self.control |= CONTROL_KEYBOARD_OFF,
            0xae => {
                self.control &= !CONTROL_KEYBOARD_OFF;
                self.fill_output();
            }
            // Input port: the keyboard is not locked.
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.output_port),
            0xd1 => self.awaiting = Some(Parameter::OutputPort),
            0xd2 => self.awaiting = Some(Parameter::KeyboardLoop),
            0xd3 => self.awaiting = Some(Parameter::MouseLoop),
            0xd4 => self.awaiting = Some(Parameter::Mouse),
            // A20 closed, A20 open: remembered only; the line is open for good.
            0xdd => self.output_port &= !OUTPUT_A20,
            0xdf => self.output_port |= OUTPUT_A20,
            // Pulse output lines: those whose bit is 0. Line 0 is the processor's reset.
            0xf0..=0xff if command & OUTPUT_NO_RESET == 0 => return Reaction::Reset,
            // The rest, enabling the mouse (0xa8) among it, has no effect.
            _ => {}
        }
        Reaction::None
    }

    fn write_data(&mut self, byte: u8) -> Reaction {
        self.last_was_command = false;
        match self.awaiting.take() {
            Some(Parameter::Control) => {
                self.control = byte | CONTROL_MOUSE_OFF;
                self.fill_output();
            }
            Some(Parameter::OutputPort) => {
                if byte & OUTPUT_NO_RESET == 0 {
                    return Reaction::Reset;
                }
                self.output_port = byte;
            }
            // Without a mouse its loop comes back as the keyboard's, and a driver sees at once
            // that there is none.
            Some(Parameter::KeyboardLoop | Parameter::MouseLoop) => self.answer(byte),
            // Nobody hears it.
            Some(Parameter::Mouse) => {}
            None => {
                // Talking to the keyboard releases its clock.
                self.control &= !CONTROL_KEYBOARD_OFF;
                self.keyboard.receive(byte);
                self.fill_output();
            }
        }
        Reaction::None
    }
}

/// Scan code set 2 to set 1, of the bytes that our keyboard sends. Its answers are the same in both.
/// The whole table: IBM PS/2 Hardware Interface Technical Reference, "Keyboard scan codes".
const fn translate(byte: u8) -> u8 {
    match byte {
        // Ctrl, Alt, Delete.
        0x14 => 0x1d,
        0x11 => 0x38,
        0x71 => 0x53,
        // The second byte of the identification, and the number of the scan code set.
        0x83 => 0x41,
        0x02 => 0x41,
        _ => byte,
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..PORTS).zip(data) {
            match port {
                DATA => *byte = self.read_data(),
                COMMAND => *byte = self.status(),
                _ => {}
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        for (port, &byte) in (offset..PORTS).zip(data) {
            let reaction = match port {
                DATA => self.write_data(byte),
                COMMAND => self.command(byte),
                _ => Reaction::None,
            };
            if reaction != Reaction::None {
                return reaction;
            }
        }
        Reaction::None
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042")
            .field("control", &self.control)
            .field("awaiting", &self.awaiting)
            .field("output", &self.output)
            .field("answers", &self.answers)
            .field("keyboard", &self.keyboard)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::trigger::Unconnected;

    fn controller() -> I8042 {
        I8042::new(Box::new(Unconnected))
    }

    fn get(device: &mut I8042, port: u64) -> u8 {
        let mut data = [0xff];
        device.read(port, &mut data);
        data[0]
    }

    /// Everything that waits at the data port.
    fn drain(device: &mut I8042) -> Vec<u8> {
        let mut bytes = Vec::new();
        while get(device, COMMAND) & STATUS_OUTPUT_FULL != 0 {
            bytes.push(get(device, DATA));
            assert!(bytes.len() <= 16, "more than Linux flushes: {bytes:x?}");
        }
        bytes
    }

    /// Writes bytes that ask for nothing: `(port, byte)` each.
    fn set(device: &mut I8042, writes: &[(u64, u8)]) {
        for &(port, byte) in writes {
            assert_eq!(
                device.write(port, &[byte]),
                Reaction::None,
                "{port:#x} {byte:#x}"
            );
        }
    }

    #[test]
    fn reset_commands_reset_and_other_pulses_do_not() {
        for command in 0..=0xff {
            let expected = match command {
                0xf0 | 0xf2 | 0xf4 | 0xf6 | 0xf8 | 0xfa | 0xfc | 0xfe => Reaction::Reset,
                _ => Reaction::None,
            };
            assert_eq!(
                controller().write(COMMAND, &[command]),
                expected,
                "{command:#x}"
            );
        }
        // 0xfe at the data port is the keyboard's business.
        assert_eq!(controller().write(DATA, &[0xfe]), Reaction::None);
    }

    #[test]
    fn output_port_with_bit_0_clear_resets() {
        for value in 0..=0xff {
            let mut device = controller();
            set(&mut device, &[(COMMAND, 0xd1)]);
            let expected = if value & 1 == 0 {
                Reaction::Reset
            } else {
                Reaction::None
            };
            assert_eq!(device.write(DATA, &[value]), expected, "{value:#x}");
        }
        // Without the command, and with another command in between, it is no output port.
        assert_eq!(controller().write(DATA, &[0]), Reaction::None);
        let mut device = controller();
        set(&mut device, &[(COMMAND, 0xd1), (COMMAND, 0xae), (DATA, 0)]);
    }

    #[test]
    fn commands_answer() {
        // (command, answer)
        let rows: [(u8, &[u8]); 9] = [
            (0x20, &[0x65]),
            (0xa9, &[0x01]),
            (0xaa, &[0x55]),
            (0xab, &[0x00]),
            (0xc0, &[0x80]),
            (0xd0, &[0x03]),
            (0xa7, &[]),
            (0xa8, &[]),
            (0xff, &[]),
        ];
        for (command, answer) in rows {
            let mut device = controller();
            set(&mut device, &[(COMMAND, command)]);
            assert_eq!(drain(&mut device), answer, "{command:#x}");
        }
    }

    #[test]
    fn command_byte_is_kept_but_for_the_absent_mouse() {
        let mut device = controller();
        set(
            &mut device,
            &[(COMMAND, 0x60), (DATA, 0x51), (COMMAND, 0x20)],
        );
        assert_eq!(drain(&mut device), [0x71]);
        assert_eq!(get(&mut device, COMMAND) & STATUS_SYSTEM, 0);
        set(&mut device, &[(COMMAND, 0xae), (COMMAND, 0x20)]);
        assert_eq!(drain(&mut device), [0x61]);
    }

    #[test]
    fn status_tells_commands_from_data_and_is_never_busy() {
        let mut device = controller();
        set(&mut device, &[(COMMAND, 0xae)]);
        assert_eq!(get(&mut device, COMMAND), 0x1c);
        set(&mut device, &[(DATA, 0xee)]);
        assert_eq!(get(&mut device, COMMAND), 0x15);
        assert_eq!(drain(&mut device), [0xee]);
        assert_eq!(get(&mut device, DATA), 0);
    }

    #[test]
    fn a20_gate_is_remembered() {
        let mut device = controller();
        set(&mut device, &[(COMMAND, 0xdd), (COMMAND, 0xd0)]);
        assert_eq!(drain(&mut device), [0x01]);
        set(&mut device, &[(COMMAND, 0xdf), (COMMAND, 0xd0)]);
        assert_eq!(drain(&mut device), [0x03]);
        set(
            &mut device,
            &[(COMMAND, 0xd1), (DATA, 0x01), (COMMAND, 0xd0)],
        );
        assert_eq!(drain(&mut device), [0x01]);
    }

    #[test]
    fn keyboard_answers_what_drivers_send() {
        // (bytes sent, answer with translation)
        let rows: [(&[u8], &[u8]); 10] = [
            (&[0xff], &[0xfa, 0xaa]),
            (&[0xf2], &[0xfa, 0xab, 0x41]),
            (&[0xed, 0x07], &[0xfa, 0xfa]),
            (&[0xf3, 0x00], &[0xfa, 0xfa]),
            (&[0xf0, 0x00], &[0xfa, 0xfa, 0x41]),
            (&[0xf0, 0x02], &[0xfa, 0xfa]),
            (&[0xf4], &[0xfa]),
            (&[0xf5], &[0xfa]),
            (&[0xed, 0xee], &[0xfa, 0xee]), // a command in place of the parameter
            (&[0x12], &[0xfe]),
        ];
        for (sent, answer) in rows {
            let mut device = controller();
            for &byte in sent {
                set(&mut device, &[(DATA, byte)]);
            }
            assert_eq!(drain(&mut device), answer, "{sent:x?}");
        }
    }

    #[test]
    fn ctrl_alt_del_in_both_scan_code_sets() {
        let mut device = controller();
        device.trigger_ctrl_alt_del().unwrap();
        // Ctrl, Alt, Del down; Del, Alt, Ctrl up.
        assert_eq!(
            drain(&mut device),
            [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]
        );
        set(&mut device, &[(COMMAND, 0x60), (DATA, 0x05)]);
        device.trigger_ctrl_alt_del().unwrap();
        let set_2 = [
            0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14,
        ];
        assert_eq!(drain(&mut device), set_2);
    }

    #[test]
    fn ctrl_alt_del_is_all_or_nothing() {
        let mut device = controller();
        device.trigger_ctrl_alt_del().unwrap();
        assert_eq!(
            device.trigger_ctrl_alt_del(),
            Err(KeyboardError::NotListening)
        );
        assert_eq!(drain(&mut device).len(), 8);
        device.trigger_ctrl_alt_del().unwrap();
        drain(&mut device);
        // The keyboard's "disable" command.
        set(&mut device, &[(DATA, 0xf5)]);
        assert_eq!(drain(&mut device), [0xfa]);
        assert_eq!(
            device.trigger_ctrl_alt_del(),
            Err(KeyboardError::NotListening)
        );
        assert!(drain(&mut device).is_empty());
    }

    #[test]
    fn keyboard_waits_while_its_clock_is_held() {
        let mut device = controller();
        set(&mut device, &[(COMMAND, 0xad)]);
        device.trigger_ctrl_alt_del().unwrap();
        assert!(drain(&mut device).is_empty());
        // The controller's own answers pass it.
        set(&mut device, &[(COMMAND, 0xaa)]);
        assert_eq!(drain(&mut device), [0x55]);
        set(&mut device, &[(COMMAND, 0xae)]);
        assert_eq!(drain(&mut device).len(), 8);
        // A byte for the keyboard releases it too.
        set(&mut device, &[(COMMAND, 0xad), (DATA, 0xee)]);
        assert_eq!(drain(&mut device), [0xee]);
    }

    #[test]
    fn interrupt_comes_once_for_each_byte_and_only_when_enabled() {
        let count = Arc::new(AtomicUsize::new(0));
        let pressed = Arc::clone(&count);
        let mut device = I8042::new(Box::new(move || {
            pressed.fetch_add(1, Ordering::Relaxed);
        }));
        device.trigger_ctrl_alt_del().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        drain(&mut device);
        assert_eq!(count.load(Ordering::Relaxed), 8);
        set(&mut device, &[(COMMAND, 0x60), (DATA, 0x44)]);
        device.trigger_ctrl_alt_del().unwrap();
        drain(&mut device);
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn answers_never_read_do_not_pile_up() {
        let mut device = controller();
        for _ in 0..1000 {
            set(
                &mut device,
                &[(COMMAND, 0xaa), (DATA, 0xff), (DATA, 0xf2), (DATA, 0xee)],
            );
        }
        drain(&mut device);
    }

    #[test]
    fn wide_access_is_consecutive_ports() {
        let mut device = controller();
        // Echo to the keyboard, and a self-test in the same breath; 0x61 to 0x63 are others'.
        let _ = device.write(DATA, &[0xee, 1, 2, 3, 0xaa, 9]);
        let mut data = [0xff; 8];
        device.read(DATA, &mut data);
        assert_eq!(data, [0xee, 0xff, 0xff, 0xff, 0x1d, 0xff, 0xff, 0xff]);
        assert_eq!(get(&mut device, DATA), 0x55);
    }

    proptest! {
        #[test]
        fn any_accesses_never_panic_and_the_output_stays_within_what_linux_flushes(
            steps in prop::collection::vec(
                (0u8..8, 0u64..8, prop::collection::vec(any::<u8>(), 0..9)), 0..200)
        ) {
            let mut device = controller();
            for (kind, offset, mut data) in steps {
                match kind {
                    0..=1 => device.read(offset, &mut data),
                    2 => { let _ = device.trigger_ctrl_alt_del(); }
                    // Mostly where something happens.
                    3..=5 => { let _ = device.write(u64::from(kind & 1) * COMMAND, &data); }
                    _ => { let _ = device.write(offset, &data); }
                }
            }
            drain(&mut device);
        }
    }
}
