//! The CMOS clock and memory of a PC: without it a guest begins in 1999.
//!
//! A Motorola MC146818A at ports 0x70 (index) and 0x71 (data), as PCs have had it since the AT: the
//! date and time in UTC, and RAM in which firmware leaves notes, of which some guests read the
//! memory size.
//!
//! # Time
//!
//! The chip counts with an injected [`WallClock`], so it follows the host's clock, corrections
//! included, and needs no timer to count. A guest may set it (`hwclock -w`): the difference to the host is
//! kept for the life of the machine and the host's clock stays as it is. It is set as the chip is:
//! with register B's SET bit held, the registers are memory; when SET is released they become the
//! time, if they hold a date that exists, and change nothing if not. Holding the divider in reset
//! (register A) stops the clock, and the first second after it lasts half a second, so that a driver
//! that knows the chip sets it to the millisecond.
//!
//! **Reading never waits.** The update-in-progress bit (UIP) is always 0. The chip promises 244 µs
//! without an update after UIP was seen 0, and drivers read in that time. Here, reading
//! register A holds the time still for the reads that follow within [`READ_WINDOW`], so they
//! see one moment; the chip itself shows the old second for as long as that.
//!
//! # Interrupts
//!
//! The alarm, the end of each second and the periodic ticks come by an interrupt where register B enables them, as on
//! the chip: one for all that has come until register C is read. Linux waits for the alarm only (`hwclock`, which looks
//! for the end of a second with it, and `rtcwake -m on`); FreeBSD may count by the periodic ticks. Whether something
//! has come is found out when it is asked for: for what may interrupt, [`Cmos::due`] tells when, and
//! [`Cmos::tick`] is to be called then.
//!
//! While the guest is paused the chip goes on, as it does in a computer that is asleep: what has come then is told
//! when it is resumed.
//!
//! # What is missing
//!
//! An alarm wakes no guest that has suspended itself (`rtcwake -m freeze`): with ACPI, Linux has the chip's interrupt
//! off meanwhile and waits for the event `RTC_STS` of the power management registers.

mod civil;
mod interrupts;

use std::fmt;

use tsc::Nanos;

use crate::bus::{BusDevice, Reaction};
use crate::trigger::{Trigger, Unconnected};
use civil::Civil;
use interrupts::{Alarm, CAUSES, REQUEST, Settings, UPDATE, Wanted, periodic_rate};

/// Length of the range of ports: index and data.
pub const PORTS: u64 = 2;

/// The register that holds the century; what the FADT's `CENTURY` field must say (ACPI 6.5,
/// table 5.9).
pub const CENTURY: u8 = 0x32;

/// For how long after register A was read the time registers show one moment: about as long as the
/// chip's update cycle, 1984 µs and 244 µs before it (MC146818A data sheet, table 6).
pub const READ_WINDOW: Nanos = Nanos::new(2_228_000);

// Registers (MC146818A data sheet, figure 10; Linux: include/linux/mc146818rtc.h).
const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// Register A: update in progress. Read only.
const A_UPDATE: u8 = 0x80;
/// Register A: the divider is held in reset when both of these are set.
const A_DIVIDER_RESET: u8 = 0x60;
/// Register A after firmware: 32,768 Hz time base, 1024 Hz periodic rate.
const A_AFTER_FIRMWARE: u8 = 0x26;
/// Register B: the guest is setting the time.
const B_SET: u8 = 0x80;
/// Register B: registers are binary; otherwise they are BCD.
const B_BINARY: u8 = 0x04;
/// Register B: hours are 0 to 23; otherwise 1 to 12 with bit 7 for the afternoon.
const B_24_HOURS: u8 = 0x02;
/// Hours of the afternoon, when there are 12.
const AFTERNOON: u8 = 0x80;
/// An alarm's register with these bits set matches whatever its time register has.
const ANY: u8 = 0xc0;
/// Register D: memory and time are valid, the battery is good.
const D_VALID: u8 = 0x80;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// The host's idea of the time of day.
pub trait WallClock: Send {
    /// The time since 1970-01-01 00:00 UTC, without leap seconds.
    fn unix_time(&self) -> Nanos;
}

impl<F: Fn() -> Nanos + Send> WallClock for F {
    fn unix_time(&self) -> Nanos {
        self()
    }
}

/// How the chip counts. Its time is in nanoseconds since 1970, of any sign: a guest may set any of
/// 10,000 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counting {
    /// Chip time less wall time.
    Ahead(i128),
    /// The divider is in reset; chip time when it is released.
    Stopped(i128),
}

/// The clock and its memory: see the [module](self).
///
/// Its ports are bytes; an access wider than a byte at the index port goes on at the data port, so
/// that a word write of index and value does what it does on a PC. The index port cannot be read.
pub struct Cmos {
    clock: Box<dyn WallClock>,
    /// The register that the data port shows, without the index port's upper bit, which masks NMIs.
    index: u8,
    /// All registers that are memory. The time registers are, while SET is held.
    ram: [u8; 128],
    counting: Counting,
    /// The wall time at which register A was last read.
    held_at: Option<Nanos>,
    /// Register C without its [`REQUEST`]: what had come by [`Self::seen`].
    causes: u8,
    /// Up to which chip time causes were looked for.
    seen: i128,
    /// Whether the interrupt is asked for.
    requests: bool,
    line: Box<dyn Trigger>,
    /// Pressed when [`Self::due`] is another than `told`.
    changed: Box<dyn Trigger>,
    told: Option<Nanos>,
}

impl Cmos {
    /// The chip as a PC's firmware leaves it: BCD, 24 hours, at the time that `clock` gives.
    #[must_use]
    pub fn new(clock: Box<dyn WallClock>) -> Self {
        let mut cmos = Self {
            clock,
            index: 0,
            ram: [0; 128],
            counting: Counting::Ahead(0),
            held_at: None,
            causes: 0,
            seen: 0,
            requests: false,
            line: Box::new(Unconnected),
            changed: Box::new(Unconnected),
            told: None,
        };
        cmos.seen = cmos.time_at(cmos.clock.unix_time());
        cmos.store(REGISTER_A, A_AFTER_FIRMWARE);
        cmos.store(REGISTER_B, B_24_HOURS);
        cmos
    }

    /// Notes the memory size where PC firmware does: `below_4g` bytes from address 0, and `above_4g`
    /// bytes from 4 GiB. Guests that were booted without a memory map look here.
    ///
    /// | registers | contents |
    /// | --- | --- |
    /// | 0x15, 0x16 | conventional memory in KiB: 640 |
    /// | 0x17, 0x18 and 0x30, 0x31 | memory from 1 MiB in KiB, at most 65,535 |
    /// | 0x34, 0x35 | memory from 16 MiB to 4 GiB in units of 64 KiB (Bochs and QEMU) |
    /// | 0x5b to 0x5d | memory from 4 GiB in units of 64 KiB (Bochs and QEMU) |
    ///
    /// Each is rounded down, and what a register cannot hold reads as its maximum.
    #[must_use]
    pub fn with_memory(mut self, below_4g: u64, above_4g: u64) -> Self {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let word = |bytes: u64, unit: u64| {
            u16::try_from(bytes / unit)
                .unwrap_or(u16::MAX)
                .to_le_bytes()
        };
        let [base_low, base_high] = word(below_4g.min(640 * KIB), KIB);
        let [extended_low, extended_high] = word(below_4g.saturating_sub(MIB), KIB);
        let [low, high] = word(below_4g.saturating_sub(16 * MIB), 64 * KIB);
        let [above_0, above_1, above_2, ..] = (above_4g / (64 * KIB)).min(0xff_ffff).to_le_bytes();
        for (register, value) in [
            (0x15, base_low),
            (0x16, base_high),
            (0x17, extended_low),
            (0x18, extended_high),
            (0x30, extended_low),
            (0x31, extended_high),
            (0x34, low),
            (0x35, high),
            (0x5b, above_0),
            (0x5c, above_1),
            (0x5d, above_2),
        ] {
            self.store(register, value);
        }
        self
    }

    /// The same with an interrupt at `line`, which is edge-triggered. When [`Self::due`] has changed `changed` is
    /// pressed, on the vCPU's thread that caused it, with the chip in use: the one who calls [`Self::tick`] is to look
    /// again, by calling it.
    #[must_use]
    pub fn with_interrupt(mut self, line: Box<dyn Trigger>, changed: Box<dyn Trigger>) -> Self {
        self.line = line;
        self.changed = changed;
        self
    }

    /// At what time of the wall clock something comes that is to interrupt, if the guest waits for anything.
    #[must_use]
    pub fn due(&self) -> Option<Nanos> {
        match self.counting {
            Counting::Ahead(ahead) if !self.requests => {
                let wall = self.settings().next_after(self.seen)? - ahead;
                // What is before 1970 is over; the end of 64 bits is 584 years from there.
                Some(Nanos::new(u64::try_from(wall.max(0)).unwrap_or(u64::MAX)))
            }
            _ => None,
        }
    }

    /// Interrupts for what has come, and returns what is [due](Self::due) next. To be called at that time, and whenever
    /// the wall clock was set.
    pub fn tick(&mut self) -> Option<Nanos> {
        self.look(self.clock.unix_time());
        self.request();
        self.told = self.due();
        self.told
    }

    fn settings(&self) -> Settings {
        Settings {
            enabled: self.load(REGISTER_B) & CAUSES,
            rate: periodic_rate(self.load(REGISTER_A)),
            alarm: (!self.setting()).then(|| self.alarm()),
        }
    }

    fn alarm(&self) -> Alarm {
        let wanted = |register: u8, below: u8| match self.load(register) {
            value if value & ANY == ANY => Wanted::Any,
            value => {
                let decoded = if register == HOURS_ALARM {
                    self.decode_hour(value)
                } else {
                    self.decode(value)
                };
                let exists = decoded.filter(|&decoded| decoded < below);
                exists.map_or(Wanted::Never, Wanted::Only)
            }
        };
        Alarm {
            hour: wanted(HOURS_ALARM, 24),
            minute: wanted(MINUTES_ALARM, 60),
            second: wanted(SECONDS_ALARM, 60),
        }
    }

    /// Notes what has come since the last look.
    fn look(&mut self, wall: Nanos) {
        let now = self.time_at(wall);
        self.causes |= self.settings().causes_in(self.seen..=now);
        // Also where the wall clock was set back.
        self.seen = now;
    }

    /// Asks for the interrupt, unless it is asked for already.
    fn request(&mut self) {
        let requests = self.causes & self.load(REGISTER_B) != 0;
        if requests && !self.requests {
            self.line.trigger();
        }
        self.requests = requests;
    }

    /// Has whoever waits for what is due learn of a change.
    fn tell(&mut self) {
        let due = self.due();
        if due != self.told {
            self.told = due;
            self.changed.trigger();
        }
    }

    /// Register C: what has come, which is forgotten.
    fn take_causes(&mut self) -> u8 {
        self.look(self.clock.unix_time());
        // Who was told that a second has ended reads the new one, whatever register A was read for before.
        self.held_at = self.held_at.filter(|&held| {
            i128::from(self.second_at(held)) == self.seen.div_euclid(NANOS_PER_SECOND)
        });
        let request = if self.causes & self.load(REGISTER_B) == 0 {
            0
        } else {
            REQUEST
        };
        let taken = self.causes | request;
        self.causes = 0;
        self.requests = false;
        self.tell();
        taken
    }

    /// A register as memory.
    fn load(&self, register: u8) -> u8 {
        self.ram.get(usize::from(register)).copied().unwrap_or(0xff)
    }

    fn store(&mut self, register: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(register)) {
            *byte = value;
        }
    }

    fn setting(&self) -> bool {
        self.load(REGISTER_B) & B_SET != 0
    }

    /// The chip's time at wall time `wall`.
    fn time_at(&self, wall: Nanos) -> i128 {
        match self.counting {
            Counting::Ahead(ahead) => i128::from(wall.get()) + ahead,
            Counting::Stopped(at) => at,
        }
    }

    /// The chip's second at wall time `wall`.
    fn second_at(&self, wall: Nanos) -> i64 {
        // OK because wall time is below 2^64 ns and the guest's difference below 10,000 years:
        // together under 2^39 s.
        i64::try_from(self.time_at(wall).div_euclid(NANOS_PER_SECOND)).unwrap_or(0)
    }

    /// The wall time that reads see: that of the last read of register A, if it is recent.
    fn wall_for_reading(&self) -> Nanos {
        let now = self.clock.unix_time();
        match self.held_at {
            // A wall clock that was set back gives no difference; then the hold is over.
            Some(held)
                if now
                    .get()
                    .checked_sub(held.get())
                    .is_some_and(|d| d < READ_WINDOW.get()) =>
            {
                held
            }
            _ => now,
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.load(REGISTER_B) & B_BINARY != 0 {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    /// `None` if it is no number in BCD.
    fn decode(&self, value: u8) -> Option<u8> {
        let (tens, ones) = (value >> 4, value & 0x0f);
        if self.load(REGISTER_B) & B_BINARY != 0 {
            Some(value)
        } else if tens < 10 && ones < 10 {
            Some(tens * 10 + ones)
        } else {
            None
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.load(REGISTER_B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        // Midnight and noon are 12.
        let of_twelve = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(of_twelve) | if hour < 12 { 0 } else { AFTERNOON }
    }

    fn decode_hour(&self, value: u8) -> Option<u8> {
        if self.load(REGISTER_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let of_twelve = self.decode(value & !AFTERNOON)?;
        let afternoon = if value & AFTERNOON == 0 { 0 } else { 12 };
        (1..=12)
            .contains(&of_twelve)
            .then_some(of_twelve % 12 + afternoon)
    }

    /// One time register as it reads `second` seconds after 1970; `None` if it is no time register.
    fn time_register(&self, register: u8, second: i64) -> Option<u8> {
        let civil = Civil::from_unix_seconds(second);
        // OK because a year has four digits.
        let two_digits = |number: u16| self.encode(u8::try_from(number % 100).unwrap_or(0));
        Some(match register {
            SECONDS => self.encode(civil.second),
            MINUTES => self.encode(civil.minute),
            HOURS => self.encode_hour(civil.hour),
            DAY_OF_WEEK => self.encode(civil::day_of_week(second)),
            DAY_OF_MONTH => self.encode(civil.day),
            MONTH => self.encode(civil.month),
            YEAR => two_digits(civil.year),
            CENTURY => two_digits(civil.year / 100),
            _ => return None,
        })
    }

    /// Makes the time registers memory that shows the present.
    fn hold_registers(&mut self, second: i64) {
        for register in 0..=CENTURY {
            if let Some(value) = self.time_register(register, second) {
                self.store(register, value);
            }
        }
    }

    /// The time that the registers hold as memory; `None` if there is none such. The day of the week
    /// follows from the date, whatever its register says.
    fn held_second(&self) -> Option<i64> {
        let century = self
            .decode(self.load(CENTURY))
            .filter(|&century| century < 100)?;
        let year = self.decode(self.load(YEAR)).filter(|&year| year < 100)?;
        Civil {
            year: u16::from(century) * 100 + u16::from(year),
            month: self.decode(self.load(MONTH))?,
            day: self.decode(self.load(DAY_OF_MONTH))?,
            hour: self.decode_hour(self.load(HOURS))?,
            minute: self.decode(self.load(MINUTES))?,
            second: self.decode(self.load(SECONDS))?,
        }
        .to_unix_seconds()
    }

    /// Makes the time that the registers hold the chip's, without disturbing the fraction of the
    /// second that has passed.
    fn adopt_registers(&mut self, wall: Nanos) {
        let Some(second) = self.held_second() else {
            return;
        };
        let step = (i128::from(second) - i128::from(self.second_at(wall))) * NANOS_PER_SECOND;
        let (Counting::Ahead(time) | Counting::Stopped(time)) = &mut self.counting;
        *time += step;
        self.held_at = None;
    }

    fn write_register_a(&mut self, value: u8, wall: Nanos) {
        let stops = value & A_DIVIDER_RESET == A_DIVIDER_RESET;
        let time = self.time_at(wall);
        self.counting = match self.counting {
            // Half a second to go when it is released (MC146818A data sheet, "Divider control").
            Counting::Ahead(_) if stops => Counting::Stopped(
                time.div_euclid(NANOS_PER_SECOND) * NANOS_PER_SECOND + NANOS_PER_SECOND / 2,
            ),
            Counting::Stopped(at) if !stops => Counting::Ahead(at - i128::from(wall.get())),
            unchanged => unchanged,
        };
        self.held_at = None;
        self.store(REGISTER_A, value & !A_UPDATE);
    }

    fn write_register_b(&mut self, value: u8, wall: Nanos) {
        let was_setting = self.setting();
        // No second ends while SET is held, and its interrupt is off afterwards (MC146818A data sheet, "SET").
        let off = if value & B_SET == 0 { 0 } else { UPDATE };
        self.store(REGISTER_B, value & !off);
        match (was_setting, self.setting()) {
            (false, true) => self.hold_registers(self.second_at(wall)),
            (true, false) => self.adopt_registers(wall),
            _ => {}
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        let wall = self.clock.unix_time();
        self.look(wall);
        match register {
            REGISTER_A => self.write_register_a(value, wall),
            REGISTER_B => self.write_register_b(value, wall),
            REGISTER_C | REGISTER_D => {}
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY_OF_MONTH | MONTH | YEAR | CENTURY
                if !self.setting() =>
            {
                self.hold_registers(self.second_at(wall));
                self.store(register, value);
                self.adopt_registers(wall);
            }
            // Alarms, the shutdown status at 0x0f, firmware's notes.
            _ => self.store(register, value),
        }
        // The time to which the clock was set has not passed.
        self.seen = self.time_at(wall);
        self.request();
        self.tell();
    }

    fn read_register(&mut self, register: u8) -> u8 {
        match register {
            REGISTER_A => self.held_at = Some(self.clock.unix_time()),
            REGISTER_C => return self.take_causes(),
            REGISTER_D => return D_VALID,
            _ => {}
        }
        let live = if self.setting() {
            None
        } else {
            self.time_register(register, self.second_at(self.wall_for_reading()))
        };
        live.unwrap_or_else(|| self.load(register))
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..PORTS).zip(data) {
            if port == 1 {
                *byte = self.read_register(self.index);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        for (port, &value) in (offset..PORTS).zip(data) {
            if port == 0 {
                self.index = value & 0x7f;
            } else {
                self.write_register(self.index, value);
            }
        }
        Reaction::None
    }
}

impl fmt::Debug for Cmos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cmos")
            .field("index", &self.index)
            .field("counting", &self.counting)
            .field("ram", &self.ram)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
