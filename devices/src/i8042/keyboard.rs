//! The keyboard behind the controller: it acknowledges what drivers send and types only what the
//! host wants typed.
//!
//! Commands and answers: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary
//! Device Controller" and "Keyboards (101- and 102-key)"; Linux: `drivers/input/keyboard/atkbd.c`.

use super::queue::Queue;

/// What the keyboard can hold back while nobody listens: its answers, or one Ctrl+Alt+Del. With the
/// controller's own bytes it must stay within the 16 bytes that Linux is ready to flush
/// (`i8042_flush`, `I8042_BUFFER_SIZE`), or Linux finds no controller.
pub(super) const KEYBOARD_QUEUE: usize = 12;

/// "Acknowledged."
const ACK: u8 = 0xfa;
/// "Self-test passed."
const SELF_TEST_PASSED: u8 = 0xaa;
/// What a command without meaning is answered with: "send again".
const RESEND: u8 = 0xfe;

/// Ctrl, Alt and Delete pressed, then released in the opposite order, in scan code set 2.
const CTRL_ALT_DEL: [u8; 11] = [
    0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14,
];

/// The keyboard's side of the cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keyboard {
    /// Bytes on their way to the controller, in scan code set 2.
    pub(super) output: Queue<KEYBOARD_QUEUE>,
    /// The command whose parameter comes next.
    awaiting: Option<u8>,
    /// Keys are reported.
    scanning: bool,
}

impl Keyboard {
    pub(super) const fn new() -> Self {
        Self {
            output: Queue::new(),
            awaiting: None,
            scanning: true,
        }
    }

    /// A byte from the controller.
    pub(super) fn receive(&mut self, byte: u8) {
        if let Some(command) = self.awaiting.take() {
            // A byte with the top bit set is a command, not a parameter.
            if byte < 0x80 {
                self.parameter(command, byte);
                return;
            }
        }
        self.command(byte);
    }

    fn command(&mut self, command: u8) {
        match command {
            // Indicators, scan code set, typematic rate: a parameter follows.
            0xed | 0xf0 | 0xf3 => {
                self.awaiting = Some(command);
                self.answer(&[ACK]);
            }
            // Echo.
            0xee => self.answer(&[0xee]),
            // Identify: an MF2 keyboard.
            0xf2 => self.answer(&[ACK, 0xab, 0x83]),
            // Enable.
            0xf4 => {
                self.scanning = true;
                self.answer(&[ACK]);
            }
            // Default and disable; default.
            0xf5 | 0xf6 => {
                self.scanning = command == 0xf6;
                self.output.clear();
                self.answer(&[ACK]);
            }
            // Key types for scan code set 3, for all keys: accepted without effect.
            0xf7..=0xfa => self.answer(&[ACK]),
            // Reset: defaults, then the result of the self-test.
            0xff => {
                *self = Self::new();
                self.answer(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn parameter(&mut self, command: u8, parameter: u8) {
        match (command, parameter) {
            // Which scan code set? Set 2; choosing another one is acknowledged and ignored, as by
            // many keyboards.
            (0xf0, 0) => self.answer(&[ACK, 2]),
            _ => self.answer(&[ACK]),
        }
    }

    /// Answers that do not fit are dropped: a guest that never reads cannot make them pile up.
    fn answer(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let _ = self.output.push(byte);
        }
    }

    /// Types Ctrl+Alt+Del, all of it or nothing; says whether it did.
    pub(super) fn type_ctrl_alt_del(&mut self) -> bool {
        if !self.scanning || self.output.room() < CTRL_ALT_DEL.len() {
            return false;
        }
        self.answer(&CTRL_ALT_DEL);
        true
    }
}
