//! An interval timer that comes into being when a guest uses it.
//!
//! The kernel's 8254 costs every microVM that has one: at the VM's end the kernel waits for its
//! readers once for each of the timer's two ranges of ports, 8 to 10 ms. Most guests never touch it,
//! since kvmclock or CPUID tell them their rates. [`LazyPit`] answers at its ports in its place: it
//! keeps what a guest programs, and has the kernel's timer made in that state as soon as there is
//! something that only a running timer can answer:
//!
//! - a count is complete: it counts from the moment when the kernel has it. The guest's instruction
//!   lasts until then, so that a calibration loop that follows it is right;
//! - anything is read: a counter, a status, or the speaker port, whose bits toggle with time.
//!
//! From then on the kernel answers at these ports, and no access arrives here. A vCPU that raced
//! another one to the timer without a lock of the guest's may still do so: it finds an open bus.
//!
//! Sources: Intel 8254 datasheet (order 231164), "Programming"; the state after it: KVM's
//! `arch/x86/kvm/i8254.c`.

use std::fmt;

use arch::layout;
use arch::pit::{Access, Counter, PitState, Programming};

use crate::bus::{BusDevice, Reaction};

/// Length of the timer's range of ports: three counters and the control register.
pub const PORTS: u64 = 4;

/// Offset of the control register.
const CONTROL: u64 = 3;
/// Offset at which the speaker port is to be put on the bus, from the timer's first port.
pub const SPEAKER: u64 = (layout::PIT_SPEAKER_PORT - layout::PIT_PORT) as u64;

/// Bit 0 of the speaker port: counter 2's gate.
const SPEAKER_GATE: u8 = 1 << 0;
/// Bit 1 of the speaker port: the speaker hears counter 2.
const SPEAKER_ON: u8 = 1 << 1;

/// A read-back command's bit 5: counts are not wanted.
const READ_BACK_NO_COUNT: u8 = 1 << 5;
/// A read-back command's bit 4: statuses are not wanted.
const READ_BACK_NO_STATUS: u8 = 1 << 4;
/// A status byte's bit 6: no count has reached the counter yet.
const STATUS_NULL_COUNT: u8 = 1 << 6;

/// Has the kernel make its timer in the given state.
pub type Maker = Box<dyn FnOnce(&PitState) + Send>;

/// The ports of a timer that is not there yet: see the [module](self).
pub struct LazyPit {
    state: PitState,
    /// Gone when the kernel has taken over.
    maker: Option<Maker>,
}

impl LazyPit {
    /// A timer after reset. `maker` is called once, at most, from the thread whose access needs it.
    #[must_use]
    pub fn new(maker: Maker) -> Self {
        Self {
            state: PitState::AFTER_RESET,
            maker: Some(maker),
        }
    }

    /// What the guest has programmed, unless the kernel has the timer already: a snapshot keeps it.
    #[must_use]
    pub fn pending(&self) -> Option<&PitState> {
        self.maker.is_some().then_some(&self.state)
    }

    fn make(&mut self) {
        if let Some(maker) = self.maker.take() {
            maker(&self.state);
        }
    }

    fn read_byte(&mut self, port: u64) -> Option<u8> {
        self.maker.as_ref()?;
        let value = match port {
            SPEAKER => {
                let [.., speaker] = self.state.counters;
                u8::from(speaker.gate) * SPEAKER_GATE + u8::from(self.state.speaker) * SPEAKER_ON
            }
            CONTROL => return None,
            _ => {
                let counter = self.state.counters.get_mut(usize::try_from(port).ok()?)?;
                counter.read_before_count()
            }
        };
        self.make();
        Some(value)
    }

    fn write_byte(&mut self, port: u64, value: u8) {
        if self.maker.is_none() {
            return;
        }
        let counters = &mut self.state.counters;
        match port {
            SPEAKER => {
                let [.., speaker] = counters;
                speaker.gate = value & SPEAKER_GATE != 0;
                self.state.speaker = value & SPEAKER_ON != 0;
            }
            // Read-back: what it latches is read next, from the kernel's timer.
            CONTROL if value >> 6 == 3 => {
                for (index, counter) in counters.iter_mut().enumerate() {
                    let selected = value & (2 << index) != 0;
                    if selected && value & READ_BACK_NO_STATUS == 0 {
                        counter.status.get_or_insert(counter.programmed_status());
                    }
                }
                if value & (READ_BACK_NO_STATUS | READ_BACK_NO_COUNT)
                    != READ_BACK_NO_STATUS | READ_BACK_NO_COUNT
                {
                    self.make();
                }
            }
            CONTROL => {
                if let Some(counter) = counters.get_mut(usize::from(value >> 6)) {
                    counter.program(value);
                }
            }
            _ => {
                let counter = usize::try_from(port)
                    .ok()
                    .and_then(|index| counters.get_mut(index));
                if counter.is_some_and(|counter| counter.write(value)) {
                    self.make();
                }
            }
        }
    }
}

/// A counter that has not counted.
trait BeforeCount {
    fn program(&mut self, control: u8);
    fn write(&mut self, value: u8) -> bool;
    fn read_before_count(&mut self) -> u8;
    fn programmed_status(&self) -> u8;
}

impl BeforeCount for Counter {
    /// Takes a control word. The command to latch a count that was never loaded changes nothing.
    fn program(&mut self, control: u8) {
        let access = match control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            3 => Access::Word,
            _ => return,
        };
        // Bit 2 of the mode is ignored in modes 2 and 3.
        let mode = match control >> 1 & 7 {
            mode @ 6..=7 => mode - 4,
            mode => mode,
        };
        *self = Self {
            programming: Some(Programming {
                access,
                mode,
                bcd: control & 1 != 0,
            }),
            half_written: None,
            half_read: false,
            ..*self
        };
    }

    /// Takes a byte of a count; says whether the count is complete.
    fn write(&mut self, value: u8) -> bool {
        let access = self.programming.map_or(Access::Low, |set| set.access);
        self.count = match (access, self.half_written.take()) {
            (Access::Low, _) => u16::from_le_bytes([value, 0]),
            (Access::High, _) => u16::from_le_bytes([0, value]),
            (Access::Word, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Word, None) => {
                self.half_written = Some(value);
                return false;
            }
        };
        true
    }

    /// Reads a counter without a count, whose value is not defined; a latched status goes first.
    fn read_before_count(&mut self) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        if self
            .programming
            .is_some_and(|set| set.access == Access::Word)
        {
            self.half_read = !self.half_read;
        }
        0
    }

    /// The status byte: output low, except in the modes that begin with a high one.
    fn programmed_status(&self) -> u8 {
        let Some(Programming { access, mode, bcd }) = self.programming else {
            return STATUS_NULL_COUNT;
        };
        let access = match access {
            Access::Low => 1,
            Access::High => 2,
            Access::Word => 3,
        };
        u8::from(mode != 0) << 7 | STATUS_NULL_COUNT | access << 4 | mode << 1 | u8::from(bcd)
    }
}

impl BusDevice for LazyPit {
    // As the kernel's, whose ports are bytes: of a wider access the first one counts.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(first) = data.first_mut()
            && let Some(value) = self.read_byte(offset)
        {
            *first = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        if let Some(&value) = data.first() {
            self.write_byte(offset, value);
        }
        Reaction::None
    }
}

impl fmt::Debug for LazyPit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyPit")
            .field("state", &self.state)
            .field("made", &self.maker.is_none())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn pit() -> (LazyPit, Receiver<PitState>) {
        let (sender, receiver) = channel();
        let maker = move |state: &PitState| sender.send(*state).expect("the test listens");
        (LazyPit::new(Box::new(maker)), receiver)
    }

    fn out(pit: &mut LazyPit, port: u64, value: u8) {
        assert_eq!(pit.write(port, &[value]), Reaction::None);
    }

    fn inb(pit: &mut LazyPit, port: u64) -> u8 {
        let mut data = [0xff];
        pit.read(port, &mut data);
        data[0]
    }

    #[test]
    fn control_words_alone_make_no_timer() {
        let (mut pit, made) = pit();
        for control in [0x34, 0x70, 0xb0, 0x00, 0x40] {
            out(&mut pit, CONTROL, control);
        }
        out(&mut pit, SPEAKER, 3);
        assert!(made.try_recv().is_err());
        assert!(pit.pending().is_some());
    }

    #[test]
    fn complete_count_makes_the_timer_as_programmed() {
        // Linux's pit_set_periodic: counter 0, low and high byte, mode 2, 1193182 / 250.
        let (mut pit, made) = pit();
        out(&mut pit, CONTROL, 0x34);
        out(&mut pit, 0, 0xa5);
        assert!(made.try_recv().is_err(), "half a count");
        out(&mut pit, 0, 0x12);
        let state = made.try_recv().expect("a timer");
        let [zero, one, two] = state.counters;
        assert_eq!(
            zero.programming,
            Some(Programming {
                access: Access::Word,
                mode: 2,
                bcd: false
            })
        );
        assert_eq!((zero.count, zero.half_written), (0x12a5, None));
        assert_eq!(
            [one, two],
            [
                PitState::AFTER_RESET.counters[1],
                PitState::AFTER_RESET.counters[2]
            ]
        );
    }

    #[test]
    fn calibration_by_counter_2_is_kept_to_its_last_byte() {
        // Linux's pit_calibrate_tsc begins with a read of port 0x61, which makes the timer; quick_pit
        // does as well. A guest that writes without reading is as right.
        let (mut pit, made) = pit();
        out(&mut pit, SPEAKER, SPEAKER_GATE);
        out(&mut pit, CONTROL, 0xb0);
        out(&mut pit, 2, 0xff);
        out(&mut pit, 2, 0xfe);
        let state = made.try_recv().expect("a timer");
        let [_, _, two] = state.counters;
        assert_eq!((two.count, two.gate), (0xfeff, true));
        assert_eq!(two.programming.expect("programmed").mode, 0);
        assert!(!state.speaker);
    }

    #[test]
    fn byte_counts_fill_their_half() {
        // (control word, byte, count)
        for (control, byte, count) in [(0x12, 0x80, 0x0080), (0x22, 0x80, 0x8000)] {
            let (mut pit, made) = pit();
            out(&mut pit, CONTROL, control);
            out(&mut pit, 0, byte);
            assert_eq!(made.try_recv().expect("a timer").counters[0].count, count);
        }
    }

    #[test]
    fn modes_6_and_7_are_2_and_3() {
        for (written, mode) in [(6, 2), (7, 3), (4, 4), (5, 5)] {
            let (mut pit, made) = pit();
            out(&mut pit, CONTROL, 0x10 | written << 1);
            out(&mut pit, 0, 1);
            let programming = made.try_recv().expect("a timer").counters[0].programming;
            assert_eq!(programming.expect("programmed").mode, mode);
        }
    }

    #[test]
    fn new_control_word_forgets_half_a_count() {
        let (mut pit, made) = pit();
        out(&mut pit, CONTROL, 0x34);
        out(&mut pit, 0, 0x11);
        out(&mut pit, CONTROL, 0x34);
        out(&mut pit, 0, 0x22);
        out(&mut pit, 0, 0x33);
        assert_eq!(made.try_recv().expect("a timer").counters[0].count, 0x3322);
    }

    #[test]
    fn reading_makes_the_timer() {
        // (port, what is read, whether the guest set the gate and the speaker before)
        for (port, value, written) in [(0, 0, 0), (2, 0, 0), (SPEAKER, 0, 0), (SPEAKER, 3, 3)] {
            let (mut pit, made) = pit();
            out(&mut pit, SPEAKER, written);
            assert_eq!(inb(&mut pit, port), value);
            let state = made.try_recv().expect("a timer");
            assert_eq!(state.counters[2].gate, written != 0);
        }
    }

    #[test]
    fn half_a_read_goes_on_in_the_kernel() {
        let (mut pit, made) = pit();
        out(&mut pit, CONTROL, 0x34);
        assert_eq!(inb(&mut pit, 0), 0);
        assert!(made.try_recv().expect("a timer").counters[0].half_read);
    }

    #[test]
    fn read_back_latches_the_status_of_those_selected() {
        let (mut pit, made) = pit();
        out(&mut pit, CONTROL, 0x76);
        // Counters 1 and 2, status alone.
        out(&mut pit, CONTROL, 0xec);
        let state = made.try_recv().expect("a timer");
        let status = state.counters.map(|counter| counter.status);
        // Counter 1: output high, no count yet, both bytes, mode 3.
        assert_eq!(status, [None, Some(0xf6), Some(0x40)]);
    }

    #[test]
    fn read_back_of_nothing_makes_no_timer() {
        let (mut pit, made) = pit();
        out(&mut pit, CONTROL, 0xfe);
        assert!(made.try_recv().is_err());
    }

    #[test]
    fn control_register_cannot_be_read() {
        let (mut pit, made) = pit();
        assert_eq!(inb(&mut pit, CONTROL), 0xff);
        assert!(made.try_recv().is_err());
    }

    #[test]
    fn timer_is_made_once_and_then_the_bus_is_open() {
        let (mut pit, made) = pit();
        assert_eq!(inb(&mut pit, 0), 0);
        made.try_recv().expect("a timer");
        out(&mut pit, CONTROL, 0x10);
        out(&mut pit, 0, 1);
        assert_eq!(inb(&mut pit, 0), 0xff);
        assert_eq!(inb(&mut pit, SPEAKER), 0xff);
        assert!(made.try_recv().is_err());
        assert_eq!(pit.pending(), None);
    }

    #[test]
    fn any_access_is_borne() {
        for port in 0..=SPEAKER {
            for width in [0, 1, 2, 4, 8] {
                for value in 0..=u8::MAX {
                    let (mut pit, _made) = pit();
                    let _ = pit.write(port, &vec![value; width]);
                    let mut data = vec![0xff; width];
                    pit.read(port, &mut data);
                }
            }
        }
    }
}
