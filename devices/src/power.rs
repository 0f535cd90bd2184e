//! ACPI's fixed hardware: the registers with which a guest switches itself off or resets itself.
//!
//! ACPI specification 6.5, section 4.8: the PM1a event and control blocks, and the reset register
//! of 4.8.3.6. The machine has no sleep state but S5 (off). One thing can raise the system control
//! interrupt (SCI): the power button.

use std::fmt;

use thiserror::Error;

use crate::bus::{BusDevice, Reaction};
use crate::trigger::Trigger;

/// Length of the PM1a event block: status and enable, two bytes each (FADT `PM1_EVT_LEN`).
pub const PM1_EVENT_LEN: u64 = 4;
/// Length of the PM1a control block (FADT `PM1_CNT_LEN`).
pub const PM1_CONTROL_LEN: u64 = 2;
/// Length of the whole of [`AcpiPower`]: the control block follows the event block.
pub const PM1_LEN: u64 = PM1_EVENT_LEN + PM1_CONTROL_LEN;

/// `PWRBTN_STS` and `PWRBTN_EN` (ACPI 6.5, tables 4.13 and 4.14): bit 8 of either register.
const POWER_BUTTON: u16 = 1 << 8;
/// The enable bits that exist: timer, global lock, power button, sleep button, RTC, PCIe wake.
const ENABLE_VALID: u16 = 0x4721;
/// `SCI_EN` (ACPI 6.5, table 4.15): the machine is in ACPI mode. Always, since it has no other.
const SCI_EN: u16 = 1 << 0;
/// `SLP_TYP`: bits 12:10.
const SLP_TYP_SHIFT: u32 = 10;
/// Width of `SLP_TYP`.
const SLP_TYP_MASK: u16 = 0b111;
/// `SLP_EN`: bit 13, write only.
const SLP_EN: u16 = 1 << 13;
/// The control bits that hold what was written: `BM_RLD` and `SLP_TYP`.
const CONTROL_STORED: u16 = (SLP_TYP_MASK << SLP_TYP_SHIFT) | (1 << 1);

/// The value of `SLP_TYP` that means a sleep state: what the DSDT's `\_S5` package says for S5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepType(u8);

/// A sleep type that the three bits of `SLP_TYP` cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("sleep type {0} does not fit into the three bits of SLP_TYP")]
pub struct SleepTypeError(u8);

impl SleepType {
    /// The sleep type `value`.
    ///
    /// # Errors
    ///
    /// If it is more than 7.
    pub const fn new(value: u8) -> Result<Self, SleepTypeError> {
        if value < 8 {
            Ok(Self(value))
        } else {
            Err(SleepTypeError(value))
        }
    }

    /// The value for `SLP_TYP`.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The PM1a registers of [`AcpiPower`], for a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcpiPowerState {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without `SCI_EN` and `SLP_EN`.
    pub control: u16,
}

/// The PM1a event block and, right behind it, the PM1a control block: [`PM1_LEN`] bytes.
///
/// | offset | register | |
/// | --- | --- | --- |
/// | 0 | `PM1a_STS` | a bit is cleared by writing 1 to it |
/// | 2 | `PM1a_EN` | |
/// | 4 | `PM1a_CNT` | `SCI_EN` reads as 1; `SLP_EN` with the sleep type of S5 switches off |
///
/// Accesses may be of any width and alignment: they act byte by byte on the registers that they
/// cover. `SLP_EN` acts after the whole of an access has been stored, so a byte write of the upper
/// half does what a word write does.
pub struct AcpiPower {
    off: SleepType,
    sci: Box<dyn Trigger>,
    state: AcpiPowerState,
}

impl AcpiPower {
    /// The registers after a reset, in a machine where `off` is the sleep type of S5 and `sci`
    /// pulses the system control interrupt.
    #[must_use]
    pub fn new(off: SleepType, sci: Box<dyn Trigger>) -> Self {
        Self::from_state(AcpiPowerState::default(), off, sci)
    }

    /// The registers as they were saved. Bits that do not exist are dropped.
    #[must_use]
    pub fn from_state(state: AcpiPowerState, off: SleepType, sci: Box<dyn Trigger>) -> Self {
        let state = AcpiPowerState {
            status: state.status & POWER_BUTTON,
            enable: state.enable & ENABLE_VALID,
            control: state.control & CONTROL_STORED,
        };
        Self { off, sci, state }
    }

    /// The registers, for a snapshot.
    #[must_use]
    pub fn state(&self) -> AcpiPowerState {
        self.state
    }

    /// Presses the power button: the polite way to ask a guest to shut down. It hears of it when it
    /// has enabled the event, at once or later.
    pub fn press_power_button(&mut self) {
        self.state.status |= POWER_BUTTON;
        self.update_sci();
    }

    /// The SCI is a level on real hardware; a pulse for each moment at which it would rise or be
    /// found still high is what a handler needs that checks the status register, as ACPI's does.
    fn update_sci(&self) {
        if self.state.status & self.state.enable != 0 {
            self.sci.trigger();
        }
    }

    fn bytes(&self) -> [u8; 6] {
        let [s0, s1] = self.state.status.to_le_bytes();
        let [e0, e1] = self.state.enable.to_le_bytes();
        let [c0, c1] = (self.state.control | SCI_EN).to_le_bytes();
        [s0, s1, e0, e1, c0, c1]
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let low = u16::from(value);
        let high = low << 8;
        let AcpiPowerState {
            status,
            enable,
            control,
        } = &mut self.state;
        match offset {
            0 => *status &= !low,
            1 => *status &= !high,
            2 => *enable = (*enable & 0xff00 | low) & ENABLE_VALID,
            3 => *enable = (*enable & 0x00ff | high) & ENABLE_VALID,
            4 => *control = (*control & 0xff00 | low) & CONTROL_STORED,
            5 => *control = (*control & 0x00ff | high) & CONTROL_STORED,
            _ => {}
        }
    }
}

impl BusDevice for AcpiPower {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let registers = self.bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, register) in data.iter_mut().zip(registers.iter().skip(from)) {
            *byte = *register;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        let [_, sleep_enable] = SLP_EN.to_le_bytes();
        let mut sleeps = false;
        let mut enables = false;
        for (at, &value) in (offset..PM1_LEN).zip(data) {
            self.write_byte(at, value);
            enables |= at == 2 || at == 3;
            sleeps |= at == 5 && value & sleep_enable != 0;
        }
        if enables {
            self.update_sci();
        }
        let sleep_type = (self.state.control >> SLP_TYP_SHIFT) & SLP_TYP_MASK;
        if sleeps && sleep_type == u16::from(self.off.get()) {
            Reaction::PowerOff
        } else {
            Reaction::None
        }
    }
}

impl fmt::Debug for AcpiPower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcpiPower")
            .field("off", &self.off)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// ACPI's reset register, one byte: a write of the value that the FADT names (`RESET_VALUE`) resets
/// the machine. Any other value is kept and can be read back, so that the register may be at port
/// 0xcf9, where software reads it, changes bits and writes it.
///
/// Of a wider write the byte that falls on the register counts, the first.
#[derive(Clone, Copy, Debug)]
pub struct AcpiReset {
    resets: u8,
    written: u8,
}

impl AcpiReset {
    /// A register at which a write of `value` resets.
    #[must_use]
    pub const fn new(value: u8) -> Self {
        Self {
            resets: value,
            written: 0,
        }
    }
}

impl BusDevice for AcpiReset {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.written;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        match (offset, data.first()) {
            (0, Some(&value)) if value == self.resets => Reaction::Reset,
            (0, Some(&value)) => {
                self.written = value;
                Reaction::None
            }
            _ => Reaction::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::trigger::Unconnected;

    const S5: u8 = 5;

    fn power() -> AcpiPower {
        AcpiPower::new(SleepType::new(S5).unwrap(), Box::new(Unconnected))
    }

    fn word(device: &mut impl BusDevice, offset: u64) -> u16 {
        let mut data = [0xff; 2];
        device.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn sleep_type_bounds() {
        assert_eq!(SleepType::new(7).unwrap().get(), 7);
        assert_eq!(SleepType::new(8), Err(SleepTypeError(8)));
    }

    /// ACPICA's `acpi_hw_legacy_sleep`: read the control register, write it with the sleep type,
    /// then once more with `SLP_EN`.
    #[test]
    fn s5_as_acpica_writes_it_switches_off() {
        let mut power = power();
        let control = word(&mut power, 4);
        assert_eq!(control, SCI_EN);
        let typed = control & !(SLP_TYP_MASK << 10) | u16::from(S5) << 10;
        assert_eq!(power.write(4, &typed.to_le_bytes()), Reaction::None);
        assert_eq!(word(&mut power, 4), typed);
        assert_eq!(
            power.write(4, &(typed | SLP_EN).to_le_bytes()),
            Reaction::PowerOff
        );
        assert_eq!(word(&mut power, 4) & SLP_EN, 0, "SLP_EN is write only");
    }

    #[test]
    fn s5_in_other_widths_switches_off() {
        // SLP_TYP 5 and SLP_EN in the upper byte: 0b0011_0100.
        let wide = u32::from(SLP_EN | u16::from(S5) << 10).to_le_bytes();
        let rows: [(u64, &[u8]); 4] = [
            (5, &[0x34]),
            (4, &wide),
            (2, &[0, 0, 0, 0x34]),
            (0, &[0, 0, 0, 0, 0, 0x34, 0, 0]),
        ];
        for (offset, data) in rows {
            assert_eq!(
                power().write(offset, data),
                Reaction::PowerOff,
                "{offset} {data:?}"
            );
        }
    }

    #[test]
    fn other_sleep_types_and_a_lone_sleep_type_do_nothing() {
        for sleep_type in 0..8_u16 {
            let control = sleep_type << 10;
            assert_eq!(power().write(4, &control.to_le_bytes()), Reaction::None);
            if sleep_type != u16::from(S5) {
                let control = control | SLP_EN;
                assert_eq!(power().write(4, &control.to_le_bytes()), Reaction::None);
            }
        }
        // The lower byte alone cannot sleep, nor can the other registers.
        assert_eq!(power().write(4, &[0x34]), Reaction::None);
        assert_eq!(power().write(0, &[0x34; 4]), Reaction::None);
    }

    #[test]
    fn sci_enable_cannot_be_cleared() {
        let mut power = power();
        let _ = power.write(4, &[0, 0]);
        assert_eq!(word(&mut power, 4), SCI_EN);
    }

    #[test]
    fn power_button_raises_sci_when_enabled_and_is_cleared_by_writing_one() {
        let count = Arc::new(AtomicUsize::new(0));
        let pressed = Arc::clone(&count);
        let sci = Box::new(move || {
            pressed.fetch_add(1, Ordering::Relaxed);
        });
        let mut power = AcpiPower::new(SleepType::new(S5).unwrap(), sci);
        power.press_power_button();
        assert_eq!(count.load(Ordering::Relaxed), 0, "not enabled");
        let _ = power.write(2, &POWER_BUTTON.to_le_bytes());
        assert_eq!(count.load(Ordering::Relaxed), 1, "enabled while pending");
        assert_eq!(word(&mut power, 0), POWER_BUTTON);
        let _ = power.write(0, &[0xff, 0]);
        assert_eq!(
            word(&mut power, 0),
            POWER_BUTTON,
            "only the other byte was written"
        );
        let _ = power.write(0, &POWER_BUTTON.to_le_bytes());
        assert_eq!(word(&mut power, 0), 0);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        power.press_power_button();
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn enable_keeps_the_bits_that_exist() {
        let mut power = power();
        let _ = power.write(2, &[0xff, 0xff]);
        assert_eq!(word(&mut power, 2), ENABLE_VALID);
    }

    #[test]
    fn read_in_any_width_shows_the_registers_in_order() {
        let mut power = power();
        let _ = power.write(2, &[0x21, 0x01]);
        let mut data = [0xff; 8];
        power.read(1, &mut data);
        assert_eq!(data, [0, 0x21, 0x01, 0x01, 0, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn state_round_trips_and_loses_bits_that_do_not_exist() {
        let mut saved = power();
        let _ = saved.write(0, &[0, 0, 0x21, 0x01, 0x02, 0x14]);
        saved.press_power_button();
        let restore = |state| {
            AcpiPower::from_state(state, SleepType::new(S5).unwrap(), Box::new(Unconnected)).state()
        };
        assert_eq!(restore(saved.state()), saved.state());
        assert_eq!(saved.state().control, 0x1402);
        let all = AcpiPowerState {
            status: 0xffff,
            enable: 0xffff,
            control: 0xffff,
        };
        let valid = AcpiPowerState {
            status: 0x0100,
            enable: ENABLE_VALID,
            control: 0x1c02,
        };
        assert_eq!(restore(all), valid);
    }

    #[test]
    fn reset_register_resets_on_its_value_only() {
        let mut reset = AcpiReset::new(6);
        for value in (0..=255).filter(|&v| v != 6) {
            assert_eq!(reset.write(0, &[value]), Reaction::None, "{value}");
            let mut data = [0xff; 2];
            reset.read(0, &mut data);
            assert_eq!(data, [value, 0xff]);
        }
        assert_eq!(reset.write(0, &[6]), Reaction::Reset);
        assert_eq!(reset.write(0, &[6, 0, 0, 0]), Reaction::Reset);
        assert_eq!(reset.write(0, &[0, 6]), Reaction::None);
        assert_eq!(reset.write(1, &[6]), Reaction::None);
        assert_eq!(reset.write(0, &[]), Reaction::None);
    }

    proptest! {
        #[test]
        fn any_accesses_never_panic_and_off_needs_its_sleep_type(
            steps in prop::collection::vec((any::<bool>(), 0u64..10, prop::collection::vec(any::<u8>(), 0..9)), 0..50)
        ) {
            let mut power = power();
            for (writes, offset, mut data) in steps {
                if writes {
                    let reaction = power.write(offset, &data);
                    if reaction != Reaction::None {
                        prop_assert_eq!(reaction, Reaction::PowerOff);
                        prop_assert_eq!(power.state().control >> 10 & 7, u16::from(S5));
                    }
                } else {
                    power.read(offset, &mut data);
                }
                prop_assert_eq!(power.state().status, 0);
            }
        }
    }
}
