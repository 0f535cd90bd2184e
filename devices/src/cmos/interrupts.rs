//! What the clock chip interrupts for: the alarm, the update of each second, and its periodic ticks.
//!
//! Nothing here runs by itself: the chip is asked what has come in a span of its time, and when the next of what
//! the guest waits for comes.

use std::ops::RangeInclusive;

/// Register C: a tick of the periodic rate has come.
pub(super) const PERIODIC: u8 = 0x40;
/// Register C: the alarm's time has come.
pub(super) const ALARM: u8 = 0x20;
/// Register C: a second has ended.
pub(super) const UPDATE: u8 = 0x10;
/// Register C: one of these has come that register B enables, by the same bits: the chip asks for an interrupt.
pub(super) const REQUEST: u8 = 0x80;
/// What there is.
pub(super) const CAUSES: u8 = PERIODIC | ALARM | UPDATE;

const NANOS_PER_SECOND: i128 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// The rate of the periodic ticks in Hz that register A's lower four bits select of a time base of 32,768 Hz
/// (MC146818A data sheet, table 5); 0 for none.
pub(super) const fn periodic_rate(register_a: u8) -> u32 {
    match register_a & 0x0f {
        0 => 0,
        // The first two are what 8 and 9 are.
        select @ (1 | 2) => 512 >> select,
        select => 65_536 >> select,
    }
}

/// How many periods of `rate` Hz are over at `time`, in nanoseconds.
fn periods(time: i128, rate: u32) -> i128 {
    (time * i128::from(rate)).div_euclid(NANOS_PER_SECOND)
}

/// What `alarm` wants an hour, a minute or a second to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Any: the register's two upper bits are set.
    Any,
    /// One, which exists: below 24 or 60.
    Only(u8),
    /// There is no such: it never comes.
    Never,
}

impl Wanted {
    fn allows(self, value: i64) -> bool {
        match self {
            Self::Any => true,
            Self::Only(only) => i64::from(only) == value,
            Self::Never => false,
        }
    }
}

/// A time of day, of each day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    pub(super) hour: Wanted,
    pub(super) minute: Wanted,
    pub(super) second: Wanted,
}

impl Alarm {
    /// The first second of a day at or behind `from`, both counted from the day's beginning.
    fn in_day(self, from: i64) -> Option<i64> {
        let behind = |unit: i64, begins: i64| {
            if from > begins {
                (from - begins) / unit
            } else {
                0
            }
        };
        let hours = (behind(3_600, 0)..24).filter(|hour| self.hour.allows(*hour));
        hours.into_iter().find_map(|hour| {
            let begins = hour * 3_600;
            let minutes = (behind(60, begins)..60).filter(|minute| self.minute.allows(*minute));
            minutes.into_iter().find_map(|minute| {
                let begins = begins + minute * 60;
                let mut seconds = behind(1, begins)..60;
                let second = seconds.find(|second| self.second.allows(*second))?;
                Some(begins + second)
            })
        })
    }

    /// The first second behind `after` at which it goes off, both counted from a day's beginning or from that of
    /// any other day.
    pub(super) fn next_after(self, after: i64) -> Option<i64> {
        // Else each minute of a day would be searched, at a guest's pleasure.
        if [self.hour, self.minute, self.second].contains(&Wanted::Never) {
            return None;
        }
        let day = after.div_euclid(SECONDS_PER_DAY) * SECONDS_PER_DAY;
        let today = self.in_day(after - day + 1);
        today
            .or_else(|| Some(self.in_day(0)? + SECONDS_PER_DAY))
            .map(|second| day + second)
    }
}

/// What the chip's registers say of its interrupts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// The causes that may interrupt.
    pub(super) enabled: u8,
    /// Of the periodic ticks, in Hz; 0 for none.
    pub(super) rate: u32,
    /// None while the time is being set: no second ends then.
    pub(super) alarm: Option<Alarm>,
}

/// The second in which `time` is, in nanoseconds.
fn second(time: i128) -> i64 {
    // OK because chip time is within 20,000 years of 1970.
    i64::try_from(time.div_euclid(NANOS_PER_SECOND)).unwrap_or(i64::MAX / 2)
}

impl Settings {
    /// The causes that have come in a span of chip time, in nanoseconds, its beginning left out. None in one that ends
    /// before it begins.
    pub(super) fn causes_in(&self, span: RangeInclusive<i128>) -> u8 {
        let (begin, end) = span.into_inner();
        if end <= begin {
            return 0;
        }
        let mut causes = 0;
        if periods(begin, self.rate) != periods(end, self.rate) {
            causes |= PERIODIC;
        }
        if let Some(alarm) = self.alarm
            && second(begin) != second(end)
        {
            causes |= UPDATE;
            if alarm
                .next_after(second(begin))
                .is_some_and(|next| next <= second(end))
            {
                causes |= ALARM;
            }
        }
        causes
    }

    /// When the first cause comes after `time` that may interrupt, in chip time in nanoseconds.
    pub(super) fn next_after(&self, time: i128) -> Option<i128> {
        let enabled = |cause: u8| self.enabled & cause != 0;
        let at_second = |second: i64| i128::from(second) * NANOS_PER_SECOND;
        let periodic = (enabled(PERIODIC) && self.rate != 0).then(|| {
            let (next, rate) = (periods(time, self.rate) + 1, i128::from(self.rate));
            // Rounded up: earlier it has not come.
            (next * NANOS_PER_SECOND + rate - 1).div_euclid(rate)
        });
        let update = self
            .alarm
            .filter(|_| enabled(UPDATE))
            .map(|_| at_second(second(time) + 1));
        let alarm = self
            .alarm
            .filter(|_| enabled(ALARM))
            .and_then(|alarm| alarm.next_after(second(time)))
            .map(at_second);
        [periodic, update, alarm].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// MC146818A data sheet, table 5.
    #[test]
    fn table_of_periodic_rates() {
        let rates = [
            0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2,
        ];
        for (select, rate) in (0..).zip(rates) {
            assert_eq!(periodic_rate(select), rate, "{select}");
            assert_eq!(periodic_rate(select | 0xf0), rate, "{select}");
        }
    }

    fn wanted(below: u8) -> impl Strategy<Value = Wanted> {
        prop_oneof![
            3 => Just(Wanted::Any),
            6 => (0..below).prop_map(Wanted::Only),
            1 => Just(Wanted::Never),
        ]
    }

    fn alarm() -> impl Strategy<Value = Alarm> {
        (wanted(24), wanted(60), wanted(60)).prop_map(|(hour, minute, second)| Alarm {
            hour,
            minute,
            second,
        })
    }

    fn goes_off(alarm: Alarm, second: i64) -> bool {
        let of_day = second.rem_euclid(SECONDS_PER_DAY);
        alarm.hour.allows(of_day / 3_600)
            && alarm.minute.allows(of_day / 60 % 60)
            && alarm.second.allows(of_day % 60)
    }

    proptest! {
        /// Against a search of each second of a day.
        #[test]
        fn next_alarm_is_the_first(alarm in alarm(), after in -200_000_i64..200_000) {
            let expected = (after + 1..=after + SECONDS_PER_DAY).find(|second| goes_off(alarm, *second));
            prop_assert_eq!(alarm.next_after(after), expected);
        }

        /// What is told to come next is what then has come, and not a nanosecond earlier.
        #[test]
        fn next_is_when_a_cause_comes(
            alarm in prop::option::of(alarm()),
            enabled in 0_u8..=0xff,
            select in 0_u8..16,
            time in -1_000_000_000_000_000_000_i128..4_000_000_000_000_000_000,
        ) {
            let settings = Settings { enabled: enabled & CAUSES, rate: periodic_rate(select), alarm };
            if let Some(next) = settings.next_after(time) {
                prop_assert!(next > time);
                prop_assert_eq!(settings.causes_in(time..=next - 1) & settings.enabled, 0);
                prop_assert_ne!(settings.causes_in(time..=next) & settings.enabled, 0);
            } else {
                let day = i128::from(SECONDS_PER_DAY) * NANOS_PER_SECOND;
                prop_assert_eq!(settings.causes_in(time..=time + 2 * day) & settings.enabled, 0);
            }
            prop_assert_eq!(settings.causes_in(time..=time), 0);
            prop_assert_eq!(settings.causes_in(time..=time - 1), 0);
        }
    }
}
