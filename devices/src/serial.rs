//! A serial port: the guest's console.
//!
//! The UART itself is `vm_superio::Serial`, a 16550A whose transmitter is always empty. This module
//! makes it a device on a bus and adds what a console needs and what that model leaves out:
//!
//! - **Output that fails** (a closed pipe, a full disk, a full non-blocking pipe) loses the byte and
//!   nothing else: the guest cannot tell, as with a cable pulled out, and
//!   [`SerialCounters::lost`] counts.
//! - **Input with back-pressure**: [`Serial::enqueue`] takes what fits into the 64-byte buffer, and
//!   the `room` trigger says when to go on.
//! - **The interrupt identification register** (IIR) in the priorities of the data sheet (National
//!   Semiconductor PC16550D, table III). The model keeps its two interrupt causes as two bits of one
//!   number; both at once would read as a third cause, "receiver line status", and a cause that the
//!   guest has masked would still show.
//!
//! # What differs from the chip
//!
//! The receiver has 64 bytes, not 16; IIR reports enabled FIFOs whatever FCR holds; FCR's
//! clear-receiver bit is ignored, so input that was piped in before the guest's driver was ready
//! reaches it, where a chip would drop it. Linux reports `16550A` (see `tests/serial_linux.rs`).

use std::convert::Infallible;
use std::fmt;
use std::io::Write;

use thiserror::Error;
use vm_superio::serial::{Error as UartError, NoEvents};

pub use vm_superio::SerialState;

use crate::bus::{BusDevice, Reaction};
use crate::trigger::Trigger;

/// How many bytes of input wait at most for the guest: vm-superio's receive buffer.
pub const INPUT_CAPACITY: usize = 64;

/// How many registers the UART has: the length of its range of ports.
pub const REGISTERS: u64 = 8;

// Register offsets and bits, PC16550D table II; Linux: include/uapi/linux/serial_reg.h.
/// Receiver buffer when read, transmitter holding register when written; divisor when DLAB is set.
const DATA: u8 = 0;
/// Interrupt enable.
const IER: u8 = 1;
/// Received data available.
const IER_RDI: u8 = 0x01;
/// Transmitter holding register empty.
const IER_THRI: u8 = 0x02;
/// The interrupts that the chip knows.
const IER_VALID: u8 = 0x0f;
/// Interrupt identification when read, FIFO control when written.
const IIR: u8 = 2;
/// No interrupt is pending.
const IIR_NONE: u8 = 0x01;
/// The transmitter holding register is empty.
const IIR_THRE: u8 = 0x02;
/// Received data is available.
const IIR_RDA: u8 = 0x04;
/// Both FIFO-enabled bits.
const IIR_FIFOS: u8 = 0xc0;
/// Line control.
const LCR: u8 = 3;
/// Divisor latch access.
const LCR_DLAB: u8 = 0x80;
/// Modem control.
const MCR: u8 = 4;
/// Loopback.
const MCR_LOOP: u8 = 0x10;
/// Line status.
const LSR: u8 = 5;
/// Data ready.
const LSR_DR: u8 = 0x01;

/// What went through a serial port since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SerialCounters {
    /// Bytes of output that the writer took.
    pub sent: u64,
    /// Bytes of output that the writer refused and that are gone.
    pub lost: u64,
    /// Bytes of input that the guest's side took.
    pub received: u64,
}

/// Why a saved state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SerialStateError {
    /// More input is waiting than the device can hold.
    #[error("the serial port's state holds {len} bytes of input; at most {INPUT_CAPACITY} fit")]
    TooMuchInput {
        /// How many bytes the state holds.
        len: usize,
    },
}

/// vm-superio's idea of an interrupt, made from ours.
struct Interrupt(Box<dyn Trigger>);

impl vm_superio::Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.trigger();
        Ok(())
    }
}

type Uart = vm_superio::Serial<Interrupt, NoEvents, Box<dyn Write + Send>>;

/// A 16550A serial port: see the [module](self).
///
/// Its registers are bytes. An access wider than a byte is as many accesses to consecutive
/// registers, lowest first, which is what a PC's chipset makes of it; beyond the eighth register
/// there is nothing.
pub struct Serial {
    uart: Uart,
    room: Box<dyn Trigger>,
    counters: SerialCounters,
    /// The interrupt enable register, to be read without regard to DLAB.
    enabled: u8,
    /// The guest was told of received data while "transmitter empty" was pending too: that comes
    /// next.
    transmitter_empty_held: bool,
    /// `enqueue` took less than it was given, so somebody waits for room.
    starved: bool,
}

impl Serial {
    /// A serial port after power-on.
    ///
    /// `interrupt` is pulsed when the guest is to look (COM1: IRQ 4). `output` receives what the
    /// guest sends, a byte at a time, each followed by a flush, on the guest's vCPU thread: a writer
    /// that blocks stops the guest. `room` is pressed when [`enqueue`](Self::enqueue) can go on.
    #[must_use]
    pub fn new(
        interrupt: Box<dyn Trigger>,
        output: Box<dyn Write + Send>,
        room: Box<dyn Trigger>,
    ) -> Self {
        let uart = Uart::with_events(Interrupt(interrupt), NoEvents, output);
        Self::around(uart, SerialState::default().interrupt_enable, room)
    }

    /// A serial port in the state of another one; an interrupt that was pending there is raised.
    ///
    /// # Errors
    ///
    /// If the state holds more input than fits.
    pub fn from_state(
        state: &SerialState,
        interrupt: Box<dyn Trigger>,
        output: Box<dyn Write + Send>,
        room: Box<dyn Trigger>,
    ) -> Result<Self, SerialStateError> {
        let len = state.in_buffer.len();
        let uart = (len <= INPUT_CAPACITY)
            .then(|| Uart::from_state(state, Interrupt(interrupt), NoEvents, output).ok())
            .flatten()
            .ok_or(SerialStateError::TooMuchInput { len })?;
        Ok(Self::around(uart, state.interrupt_enable, room))
    }

    fn around(uart: Uart, enabled: u8, room: Box<dyn Trigger>) -> Self {
        Self {
            uart,
            room,
            counters: SerialCounters::default(),
            enabled: enabled & IER_VALID,
            transmitter_empty_held: false,
            starved: false,
        }
    }

    /// The registers and the waiting input, for a snapshot.
    #[must_use]
    pub fn state(&self) -> SerialState {
        let mut state = self.uart.state();
        if self.transmitter_empty_held {
            state.interrupt_identification &= !IIR_NONE;
            state.interrupt_identification |= IIR_THRE;
        }
        state
    }

    /// How many bytes went through, and how many were lost.
    #[must_use]
    pub fn counters(&self) -> SerialCounters {
        self.counters
    }

    /// How many bytes of input [`enqueue`](Self::enqueue) would take: none while the guest has the
    /// port in loopback, when the line is disconnected.
    #[must_use]
    pub fn room(&mut self) -> usize {
        if self.in_loopback() {
            0
        } else {
            self.uart.fifo_capacity()
        }
    }

    /// Gives the guest as much of `input` as there is room for, and returns how many bytes that was.
    ///
    /// If it was less than all, the `room` trigger is pressed once as soon as the guest has emptied
    /// the buffer (and left loopback); until then there is no use in trying again.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let taken = if self.room() == 0 {
            0
        } else {
            match self.uart.enqueue_raw_bytes(input) {
                Ok(taken) => taken,
                Err(UartError::Trigger(never)) => match never {},
                Err(UartError::FullFifo | UartError::IOError(_)) => 0,
            }
        };
        self.starved = taken < input.len();
        self.counters.received += taken as u64;
        taken
    }

    fn in_loopback(&mut self) -> bool {
        self.uart.read(MCR) & MCR_LOOP != 0
    }

    fn divisor_latch_shown(&mut self) -> bool {
        self.uart.read(LCR) & LCR_DLAB != 0
    }

    /// Presses `room` if somebody waits for it and the buffer is empty.
    fn announce_room(&mut self) {
        if self.starved && self.room() == INPUT_CAPACITY {
            self.starved = false;
            self.room.trigger();
        }
    }

    /// The cause of highest priority that is pending and enabled. "Received data" lasts as long as
    /// there is data; "transmitter empty" is cleared by being reported.
    fn read_iir(&mut self) -> u8 {
        let causes = self.uart.read(IIR);
        let data_ready = self.uart.read(LSR) & LSR_DR != 0;
        let transmitter_empty =
            (causes & IIR_THRE != 0 || self.transmitter_empty_held) && self.enabled & IER_THRI != 0;
        let received = data_ready && self.enabled & IER_RDI != 0;
        self.transmitter_empty_held = received && transmitter_empty;
        IIR_FIFOS
            | match (received, transmitter_empty) {
                (true, _) => IIR_RDA,
                (false, true) => IIR_THRE,
                (false, false) => IIR_NONE,
            }
    }

    fn read_register(&mut self, register: u8) -> u8 {
        if register == IIR {
            return self.read_iir();
        }
        let value = self.uart.read(register);
        self.announce_room();
        value
    }

    fn write_register(&mut self, register: u8, value: u8) {
        let transmits = register == DATA && !self.divisor_latch_shown() && !self.in_loopback();
        if register == IER && !self.divisor_latch_shown() {
            self.enabled = value & IER_VALID;
        }
        if transmits || register == IER {
            // Both make the model decide anew whether the cause is pending.
            self.transmitter_empty_held = false;
        }
        match self.uart.write(register, value) {
            Ok(()) => self.counters.sent += u64::from(transmits),
            Err(UartError::Trigger(never)) => match never {},
            Err(UartError::IOError(_) | UartError::FullFifo) => self.counters.lost += 1,
        }
        self.announce_room();
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in registers(offset).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        for (register, &value) in registers(offset).zip(data) {
            self.write_register(register, value);
        }
        Reaction::None
    }
}

/// The registers from `offset` on.
fn registers(offset: u64) -> impl Iterator<Item = u8> {
    (offset..REGISTERS).filter_map(|register| u8::try_from(register).ok())
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("state", &self.state())
            .field("counters", &self.counters)
            .field("starved", &self.starved)
            .finish_non_exhaustive()
    }
}
