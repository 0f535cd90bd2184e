//! Seconds since 1970 as a date of the Gregorian calendar, and back, in UTC without leap seconds
//! (as POSIX counts them; a clock chip has none either).

/// Seconds in a day.
const DAY: i64 = 86_400;
/// Days in 400 years: 97 of them are leap years.
const DAYS_IN_400_YEARS: i64 = 400 * 365 + 97;
/// Days from 0000-01-01 to 1970-01-01: 1970 years, of which 478 are leap years (0, 4, … 1968 are
/// 493, less the 20 centuries 0 to 1900, plus 0, 400, 800, 1200 and 1600).
const DAYS_TO_1970: i64 = 1970 * 365 + 493 - 20 + 5;

/// A date and time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    /// 0 to 9999.
    pub(super) year: u16,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 0 to 23.
    pub(super) hour: u8,
    /// 0 to 59.
    pub(super) minute: u8,
    /// 0 to 59.
    pub(super) second: u8,
}

const fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// How many days `month` has; 0 if there is no such month.
pub(super) const fn days_in_month(year: u16, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => 0,
    }
}

/// Days from 0000-01-01 to January 1st of `year`: a leap day for each multiple of 4 before it, but
/// for those of 100, but for those of 400. Year 0 itself is one of each.
fn days_before_year(year: u16) -> i64 {
    let past = |n: i64| (i64::from(year) + n - 1) / n;
    i64::from(year) * 365 + past(4) - past(100) + past(400)
}

impl Civil {
    /// The date and time `seconds` after 1970-01-01 00:00:00. Years repeat after 9999, which is
    /// what four digits do.
    pub(super) fn from_unix_seconds(seconds: i64) -> Self {
        // 10,000 years are 25 times 400.
        let days = (seconds.div_euclid(DAY) + DAYS_TO_1970).rem_euclid(25 * DAYS_IN_400_YEARS);
        let in_day = seconds.rem_euclid(DAY);

        // A year has at least 365 days, so this guess is never too low; and a leap day in four
        // years makes it too high by at most 7 in 10,000 years.
        let mut year = narrow_u16(days / 365);
        while days_before_year(year) > days {
            year -= 1;
        }
        let mut day = days - days_before_year(year);
        let mut month = 1;
        while day >= i64::from(days_in_month(year, month)) {
            day -= i64::from(days_in_month(year, month));
            month += 1;
        }
        Self {
            year,
            month,
            day: narrow_u8(day + 1),
            hour: narrow_u8(in_day / 3600),
            minute: narrow_u8(in_day / 60 % 60),
            second: narrow_u8(in_day % 60),
        }
    }

    /// Seconds from 1970-01-01 00:00:00; `None` if there is no such date or time.
    pub(super) fn to_unix_seconds(self) -> Option<i64> {
        let valid = self.year <= 9999
            && (1..=days_in_month(self.year, self.month)).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        if !valid {
            return None;
        }
        let before: i64 = (1..self.month)
            .map(|month| i64::from(days_in_month(self.year, month)))
            .sum();
        let days = days_before_year(self.year) + before + i64::from(self.day) - 1 - DAYS_TO_1970;
        let in_day =
            i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        Some(days * DAY + in_day)
    }
}

/// The day of the week `seconds` after 1970-01-01 00:00:00, which was a Thursday: 1 for Sunday to 7
/// for Saturday, as the clock chip counts.
pub(super) fn day_of_week(seconds: i64) -> u8 {
    narrow_u8((seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1)
}

/// OK because every caller's value is bounded by a remainder or a month's length, far below 256.
fn narrow_u8(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// OK because the caller's value is at most 10,006: days of 10,000 years, divided by 365.
fn narrow_u16(value: i64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn civil(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Civil {
        Civil {
            year,
            month,
            day,
            hour,
            minute,
            second,
        }
    }

    /// From GNU `date -u -d @SECONDS '+%Y %m %d %H %M %S %w'`; day of the week plus one.
    #[test]
    fn table_of_date() {
        #[rustfmt::skip]
        let rows = [
            (0, 1970, 1, 1, 0, 0, 0, 5),
            (-1, 1969, 12, 31, 23, 59, 59, 4),
            (86_399, 1970, 1, 1, 23, 59, 59, 5),
            (951_782_399, 2000, 2, 28, 23, 59, 59, 2),
            (951_782_400, 2000, 2, 29, 0, 0, 0, 3),
            (951_868_799, 2000, 2, 29, 23, 59, 59, 3),
            (951_868_800, 2000, 3, 1, 0, 0, 0, 4),
            (946_684_799, 1999, 12, 31, 23, 59, 59, 6),
            (946_684_800, 2000, 1, 1, 0, 0, 0, 7),
            (2_147_483_647, 2038, 1, 19, 3, 14, 7, 3),
            (2_147_483_648, 2038, 1, 19, 3, 14, 8, 3),
            (4_107_542_399, 2100, 2, 28, 23, 59, 59, 1),
            (4_107_542_400, 2100, 3, 1, 0, 0, 0, 2),
            (4_133_980_799, 2100, 12, 31, 23, 59, 59, 6),
            (4_294_967_295, 2106, 2, 7, 6, 28, 15, 1),
            (4_294_967_296, 2106, 2, 7, 6, 28, 16, 1),
            (1_709_164_800, 2024, 2, 29, 0, 0, 0, 5),
            (1_709_251_199, 2024, 2, 29, 23, 59, 59, 5),
            (1_709_251_200, 2024, 3, 1, 0, 0, 0, 6),
            (1_735_689_599, 2024, 12, 31, 23, 59, 59, 3),
            (1_795_374_000, 2026, 11, 22, 19, 0, 0, 1),
            (18_446_744_073, 2554, 7, 21, 23, 34, 33, 1),
            (253_402_300_799, 9999, 12, 31, 23, 59, 59, 6),
            (-62_167_219_200, 0, 1, 1, 0, 0, 0, 7),
            (-2_208_988_800, 1900, 1, 1, 0, 0, 0, 2),
            (1_483_228_799, 2016, 12, 31, 23, 59, 59, 7),
            (1_483_228_800, 2017, 1, 1, 0, 0, 0, 1),
        ];
        for (seconds, year, month, day, hour, minute, second, weekday) in rows {
            let expected = civil(year, month, day, hour, minute, second);
            assert_eq!(Civil::from_unix_seconds(seconds), expected, "{seconds}");
            assert_eq!(expected.to_unix_seconds(), Some(seconds));
            assert_eq!(day_of_week(seconds), weekday, "{seconds}");
        }
    }

    /// Every day from 0000-01-01 to 9999-12-31, counted by hand, one after the other; compared at
    /// both ends of every month.
    #[test]
    fn every_month_of_ten_thousand_years() {
        // 0000-01-01 was a Saturday, 719,528 days before 1970.
        let (mut days, mut weekday) = (-719_528_i64, 7);
        for year in 0..10_000_u16 {
            let february = match (year % 4, year % 100, year % 400) {
                (_, _, 0) => 29,
                (_, 0, _) => 28,
                (0, _, _) => 29,
                _ => 28,
            };
            let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (month, length) in (1..).zip(months) {
                for day in 1..=length {
                    if day == 1 || day >= 28 {
                        let noon = days * 86_400 + 43_200;
                        let expected = civil(year, month, day, 12, 0, 0);
                        assert_eq!(Civil::from_unix_seconds(noon), expected);
                        assert_eq!(expected.to_unix_seconds(), Some(noon));
                        assert_eq!(day_of_week(noon), weekday, "{expected:?}");
                    }
                    days += 1;
                    weekday = weekday % 7 + 1;
                }
            }
        }
        // Four digits begin again.
        assert_eq!(
            Civil::from_unix_seconds(days * 86_400),
            civil(0, 1, 1, 0, 0, 0)
        );
    }

    #[test]
    fn dates_that_do_not_exist_are_refused() {
        let none = [
            civil(2025, 2, 29, 0, 0, 0),
            civil(2100, 2, 29, 0, 0, 0),
            civil(2024, 2, 30, 0, 0, 0),
            civil(2024, 4, 31, 0, 0, 0),
            civil(2024, 0, 1, 0, 0, 0),
            civil(2024, 13, 1, 0, 0, 0),
            civil(2024, 1, 0, 0, 0, 0),
            civil(2024, 1, 32, 0, 0, 0),
            civil(2024, 1, 1, 24, 0, 0),
            civil(2024, 1, 1, 0, 60, 0),
            civil(2024, 1, 1, 0, 0, 60),
            civil(10_000, 1, 1, 0, 0, 0),
        ];
        for date in none {
            assert_eq!(date.to_unix_seconds(), None, "{date:?}");
        }
        assert!(civil(2024, 2, 29, 23, 59, 59).to_unix_seconds().is_some());
        assert!(civil(9999, 12, 31, 23, 59, 59).to_unix_seconds().is_some());
    }

    proptest! {
        #[test]
        fn seconds_round_trip(seconds in -62_167_219_200_i64..=253_402_300_799) {
            prop_assert_eq!(Civil::from_unix_seconds(seconds).to_unix_seconds(), Some(seconds));
        }

        #[test]
        fn any_seconds_give_a_date(seconds in any::<i64>()) {
            prop_assert!(Civil::from_unix_seconds(seconds).to_unix_seconds().is_some());
        }
    }
}
