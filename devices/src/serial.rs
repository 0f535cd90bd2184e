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
//! The receiver holds 64 bytes of input, though in loopback only the chip's 16: Linux measures the
//! FIFO there (`size_fifo`) and takes a deeper one for another chip. IIR reports enabled FIFOs
//! whatever FCR holds. Linux reports `16550A`, see `tests/serial_linux.rs`.
//!
//! As on the chip, FCR's clear-receiver bit drops the input that waits. Drivers write it when they
//! start, and read the receiver blindly besides, so what was typed before is lost.

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

/// How many bytes the chip's receiver FIFO holds (PC16550D).
const CHIP_FIFO: usize = 16;

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
/// The same register when written.
const FCR: u8 = IIR;
/// Clear the receiver's FIFO.
const FCR_CLEAR_RECEIVER: u8 = 0x02;
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
        // In loopback the model takes nothing.
        let taken = match self.uart.enqueue_raw_bytes(input) {
            Ok(taken) => taken,
            Err(UartError::Trigger(never)) => match never {},
            Err(UartError::FullFifo | UartError::IOError(_)) => 0,
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

    /// Drops the input that waits.
    fn clear_receiver(&mut self) {
        let control = self.uart.read(LCR);
        self.set_line_control(control & !LCR_DLAB);
        for _ in self.uart.fifo_capacity()..INPUT_CAPACITY {
            self.uart.read(DATA);
        }
        self.set_line_control(control);
    }

    fn set_line_control(&mut self, value: u8) {
        match self.uart.write(LCR, value) {
            // The line control register neither interrupts nor transmits.
            Ok(()) | Err(UartError::IOError(_) | UartError::FullFifo) => {}
            Err(UartError::Trigger(never)) => match never {},
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        let sends = register == DATA && !self.divisor_latch_shown();
        let loops = self.in_loopback();
        if sends && loops && INPUT_CAPACITY - self.uart.fifo_capacity() >= CHIP_FIFO {
            return;
        }
        if register == FCR && value & FCR_CLEAR_RECEIVER != 0 {
            self.clear_receiver();
        }
        let transmits = sends && !loops;
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::trigger::Unconnected;

    /// Counts how often it was pressed.
    fn button() -> (Arc<AtomicUsize>, Box<dyn Trigger>) {
        let count = Arc::new(AtomicUsize::new(0));
        let pressed = Arc::clone(&count);
        (
            count,
            Box::new(move || {
                pressed.fetch_add(1, Ordering::Relaxed);
            }),
        )
    }

    /// What was written, to be looked at from outside.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Port {
        serial: Serial,
        interrupts: Arc<AtomicUsize>,
        rooms: Arc<AtomicUsize>,
        output: Output,
    }

    impl Port {
        fn new() -> Self {
            let (interrupts, interrupt) = button();
            let (rooms, room) = button();
            let output = Output::default();
            let serial = Serial::new(interrupt, Box::new(output.clone()), room);
            Self {
                serial,
                interrupts,
                rooms,
                output,
            }
        }

        fn get(&mut self, register: u8) -> u8 {
            get(&mut self.serial, register)
        }

        fn set(&mut self, register: u8, value: u8) {
            set(&mut self.serial, register, value);
        }

        fn interrupts(&self) -> usize {
            self.interrupts.load(Ordering::Relaxed)
        }

        fn rooms(&self) -> usize {
            self.rooms.load(Ordering::Relaxed)
        }
    }

    fn get(serial: &mut Serial, register: u8) -> u8 {
        let mut data = [0xff];
        serial.read(u64::from(register), &mut data);
        data[0]
    }

    fn set(serial: &mut Serial, register: u8, value: u8) {
        assert_eq!(serial.write(u64::from(register), &[value]), Reaction::None);
    }

    fn with_output(output: impl Write + Send + 'static) -> Serial {
        Serial::new(
            Box::new(Unconnected),
            Box::new(output),
            Box::new(Unconnected),
        )
    }

    #[test]
    fn output_reaches_the_writer_and_is_counted() {
        let mut port = Port::new();
        for byte in *b"keeptime" {
            assert_eq!(port.get(LSR) & 0x60, 0x60, "the transmitter is empty");
            port.set(DATA, byte);
        }
        assert_eq!(*port.output.0.lock().unwrap(), b"keeptime");
        assert_eq!(
            port.serial.counters(),
            SerialCounters {
                sent: 8,
                ..Default::default()
            }
        );
    }

    #[test]
    fn output_that_fails_is_counted_and_the_guest_goes_on() {
        struct Failing(Vec<io::ErrorKind>);
        impl Write for Failing {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0
                    .pop()
                    .map_or(Ok(bytes.len()), |kind| Err(kind.into()))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        use io::ErrorKind::{BrokenPipe, Interrupted, StorageFull, WouldBlock};
        // Taken from the back: EINTR is tried again, so it loses nothing.
        let mut serial = with_output(Failing(vec![
            BrokenPipe,
            WouldBlock,
            StorageFull,
            Interrupted,
        ]));
        for _ in 0..5 {
            set(&mut serial, DATA, b'x');
            assert_eq!(get(&mut serial, LSR) & 0x60, 0x60);
        }
        // Bytes: EINTR then disk full; EAGAIN; EPIPE; and two that arrive.
        assert_eq!(
            serial.counters(),
            SerialCounters {
                sent: 2,
                lost: 3,
                received: 0
            }
        );
    }

    #[test]
    fn output_whose_flush_fails_is_lost() {
        struct NoFlush;
        impl Write for NoFlush {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut serial = with_output(NoFlush);
        set(&mut serial, DATA, b'x');
        assert_eq!(
            serial.counters(),
            SerialCounters {
                sent: 0,
                lost: 1,
                received: 0
            }
        );
    }

    #[test]
    fn output_counts_neither_the_divisor_nor_loopback() {
        let mut port = Port::new();
        port.set(LCR, LCR_DLAB | 3);
        port.set(DATA, 1);
        port.set(LCR, 3);
        port.set(MCR, MCR_LOOP);
        port.set(DATA, b'L');
        assert_eq!(port.get(DATA), b'L');
        assert!(port.output.0.lock().unwrap().is_empty());
        assert_eq!(port.serial.counters(), SerialCounters::default());
    }

    #[test]
    fn enqueue_takes_what_fits_and_room_is_announced_once_when_empty() {
        let mut port = Port::new();
        assert_eq!(port.serial.room(), INPUT_CAPACITY);
        let input: Vec<u8> = (0..100).collect();
        assert_eq!(port.serial.enqueue(&input), INPUT_CAPACITY);
        assert_eq!(port.serial.room(), 0);
        assert_eq!(port.serial.enqueue(&input[INPUT_CAPACITY..]), 0);
        for expected in 0..64 {
            assert_eq!(port.rooms(), 0, "before byte {expected}");
            assert_eq!(port.get(LSR) & LSR_DR, LSR_DR);
            assert_eq!(port.get(DATA), expected);
        }
        assert_eq!(port.rooms(), 1);
        assert_eq!(port.get(LSR) & LSR_DR, 0);
        port.get(DATA);
        assert_eq!(port.rooms(), 1, "reading an empty buffer announces nothing");
        assert_eq!(port.serial.enqueue(&input[INPUT_CAPACITY..]), 36);
        for _ in 0..36 {
            port.get(DATA);
        }
        assert_eq!(port.rooms(), 1, "nobody was waiting");
        assert_eq!(port.serial.counters().received, 100);
    }

    #[test]
    fn enqueue_in_loopback_waits_until_the_line_is_back() {
        let mut port = Port::new();
        port.set(MCR, MCR_LOOP);
        assert_eq!(port.serial.room(), 0);
        assert_eq!(port.serial.enqueue(b"ls\n"), 0);
        port.get(LSR);
        assert_eq!(port.rooms(), 0);
        port.set(MCR, 0x08);
        assert_eq!(port.rooms(), 1);
        assert_eq!(port.serial.enqueue(b"ls\n"), 3);
    }

    #[test]
    fn enqueue_of_nothing_waits_for_nothing() {
        let mut port = Port::new();
        assert_eq!(port.serial.enqueue(b""), 0);
        port.get(DATA);
        assert_eq!(port.rooms(), 0);
    }

    #[test]
    fn input_waits_without_interrupt_and_raises_one_when_enabled() {
        let mut port = Port::new();
        assert_eq!(port.serial.enqueue(b"id\n"), 3);
        assert_eq!(port.interrupts(), 0, "no interrupt is enabled yet");
        port.set(IER, IER_RDI);
        assert_eq!(port.interrupts(), 1);
        assert_eq!(port.get(IIR), IIR_FIFOS | IIR_RDA);
        assert_eq!([port.get(DATA), port.get(DATA), port.get(DATA)], *b"id\n");
    }

    #[test]
    fn input_is_dropped_by_the_clear_receiver_bit_and_makes_room() {
        let mut port = Port::new();
        port.set(LCR, LCR_DLAB | 3);
        assert_eq!(port.serial.enqueue(&[b'x'; 65]), 64);
        port.set(FCR, 0x01);
        port.set(FCR, 0x05); // clears the transmitter
        assert_eq!((port.serial.room(), port.rooms()), (0, 0));
        port.set(FCR, 0x07);
        assert_eq!((port.serial.room(), port.rooms()), (64, 1));
        assert_eq!(port.get(LSR) & LSR_DR, 0);
        assert_eq!(port.get(LCR), LCR_DLAB | 3);
    }

    #[test]
    fn loopback_holds_as_much_as_the_chip() {
        let mut port = Port::new();
        port.set(MCR, MCR_LOOP);
        for byte in 0..20 {
            port.set(DATA, byte);
        }
        for byte in 0..16 {
            assert_eq!(port.get(LSR) & LSR_DR, LSR_DR);
            assert_eq!(port.get(DATA), byte);
        }
        assert_eq!(port.get(LSR) & LSR_DR, 0, "the rest was overrun");
    }

    #[test]
    fn iir_reports_received_data_first_then_the_empty_transmitter() {
        let mut port = Port::new();
        port.set(IER, IER_RDI | IER_THRI);
        port.serial.enqueue(b"a");
        assert_eq!(port.get(IIR), 0xc4);
        assert_eq!(port.get(IIR), 0xc4, "it lasts until the data is read");
        assert_eq!(port.get(DATA), b'a');
        assert_eq!(port.get(IIR), 0xc2);
        assert_eq!(port.get(IIR), 0xc1, "reporting it cleared it");
        port.set(DATA, b'x');
        assert_eq!(port.get(IIR), 0xc2, "and sending sets it anew");
    }

    #[test]
    fn iir_hides_a_cause_that_is_masked() {
        let mut port = Port::new();
        port.set(IER, IER_THRI);
        port.set(IER, 0);
        assert_eq!(port.get(IIR), 0xc1);
        port.set(IER, IER_RDI);
        port.serial.enqueue(b"a");
        port.set(IER, 0);
        assert_eq!(port.get(IIR), 0xc1);
        let before = port.interrupts();
        port.set(IER, IER_RDI);
        assert_eq!(
            port.interrupts(),
            before + 1,
            "unmasking raises what is still pending"
        );
        assert_eq!(port.get(IIR), 0xc4);
    }

    #[test]
    fn ier_behind_the_divisor_latch_stays() {
        let mut port = Port::new();
        port.set(IER, IER_RDI);
        port.set(LCR, LCR_DLAB);
        port.set(IER, 0); // the divisor's high byte
        port.set(LCR, 3);
        port.serial.enqueue(b"a");
        assert_eq!(port.get(IIR), 0xc4);
    }

    #[test]
    fn wide_access_is_consecutive_registers_and_nothing_past_the_last() {
        let mut port = Port::new();
        // SCR is the last register: 7.
        let _ = port.serial.write(7, &[0x5a, 1, 2, 3]);
        let mut data = [0xff; 4];
        port.serial.read(6, &mut data);
        assert_eq!(data, [0xb0, 0x5a, 0xff, 0xff]);
        port.serial.read(8, &mut data);
        let _ = port.serial.write(u64::MAX, &[1, 2]);
        // THR and IER at once.
        let _ = port.serial.write(0, &[b'w', IER_RDI]);
        assert_eq!(*port.output.0.lock().unwrap(), b"w");
        assert_eq!(port.get(IER), IER_RDI);
    }

    #[test]
    fn state_restores_registers_input_and_pending_causes() {
        let mut port = Port::new();
        port.set(IER, IER_RDI | IER_THRI);
        port.set(7, 0x42);
        port.serial.enqueue(b"abc");
        // Received data was reported, the empty transmitter is still to come.
        assert_eq!(port.get(IIR), 0xc4);
        let state = port.serial.state();

        let (interrupts, interrupt) = button();
        let mut restored = Serial::from_state(
            &state,
            interrupt,
            Box::new(io::sink()),
            Box::new(Unconnected),
        )
        .unwrap();
        assert!(interrupts.load(Ordering::Relaxed) > 0);
        assert_eq!(restored.state(), state);
        assert_eq!(get(&mut restored, 7), 0x42);
        assert_eq!([(); 3].map(|()| get(&mut restored, DATA)), *b"abc");
        assert_eq!(get(&mut restored, IIR), 0xc2);
        assert_eq!(get(&mut restored, IIR), 0xc1);
    }

    #[test]
    fn state_with_too_much_input_is_refused() {
        let restore = |len| {
            let state = SerialState {
                in_buffer: vec![0; len],
                ..Default::default()
            };
            let output = Box::new(io::sink());
            Serial::from_state(&state, Box::new(Unconnected), output, Box::new(Unconnected))
        };
        assert!(restore(INPUT_CAPACITY).is_ok());
        let error = restore(INPUT_CAPACITY + 1).unwrap_err();
        assert_eq!(error, SerialStateError::TooMuchInput { len: 65 });
        assert!(error.to_string().contains("65 bytes"));
    }

    proptest! {
        /// Whatever the guest does, nothing panics, the input stays bounded, and whoever was left
        /// waiting hears of room when the buffer is empty.
        #[test]
        fn any_accesses_keep_the_contract(
            steps in prop::collection::vec((0u8..3, 0u64..12, prop::collection::vec(any::<u8>(), 0..9)), 0..200)
        ) {
            let mut port = Port::new();
            let mut waiting = false;
            for (kind, offset, mut data) in steps {
                let rooms = port.rooms();
                match kind {
                    0 => port.serial.read(offset, &mut data),
                    1 => prop_assert_eq!(port.serial.write(offset, &data), Reaction::None),
                    _ => {
                        let before = port.serial.room();
                        let taken = port.serial.enqueue(&data);
                        prop_assert_eq!(taken, before.min(data.len()));
                        waiting = taken < data.len();
                    }
                }
                if port.rooms() > rooms {
                    prop_assert!(waiting);
                    prop_assert_eq!(port.rooms(), rooms + 1);
                    waiting = false;
                }
                prop_assert!(port.serial.room() <= INPUT_CAPACITY);
                prop_assert!(!waiting || port.serial.room() < INPUT_CAPACITY);
            }
        }
    }
}
