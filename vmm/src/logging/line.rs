//! The form of a line.

use std::fmt::{self, Write};
use std::thread;

use tracing::field::{Field, Visit};

use crate::host_clock;
use crate::line_sink::MAX_LINE;

/// What stands before the message.
pub(super) struct Header<'a> {
    pub(super) instance: &'a str,
    pub(super) level: bool,
    pub(super) origin: bool,
}

/// The line of an event, with its newline; not longer than [`MAX_LINE`].
pub(super) fn format(header: &Header<'_>, event: &tracing::Event<'_>) -> Vec<u8> {
    let mut line = String::with_capacity(256);
    let metadata = event.metadata();
    push_time(&mut line, host_clock::real_time().get());
    line.push_str(" [");
    if !header.instance.is_empty() {
        line.push_str(header.instance);
        line.push(':');
    }
    line.push_str(thread::current().name().unwrap_or("-"));
    if header.level {
        line.push(':');
        line.push_str(metadata.level().as_str());
    }
    if header.origin
        && let (Some(file), Some(number)) = (metadata.file(), metadata.line())
    {
        push(&mut line, format_args!(":{file}:{number}"));
    }
    line.push(']');
    let mut fields = Fields {
        message: String::new(),
        others: String::new(),
    };
    event.record(&mut fields);
    for part in [&fields.message, &fields.others] {
        if !part.is_empty() {
            line.push(' ');
            // One event is one line, whatever is in its message.
            line.extend(part.chars().map(|c| if c.is_control() { ' ' } else { c }));
        }
    }
    let mut bytes = line.into_bytes();
    bytes.truncate(MAX_LINE - 1);
    bytes.push(b'\n');
    bytes
}

fn push(line: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = line.write_fmt(text);
}

/// The message, and the other fields as `name=value`.
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            push(&mut self.message, format_args!("{value:?}"));
        } else {
            if !self.others.is_empty() {
                self.others.push(' ');
            }
            push(&mut self.others, format_args!("{}={value:?}", field.name()));
        }
    }
}

/// Appends nanoseconds since 1970 as date and time in UTC.
fn push_time(line: &mut String, since_1970: u64) {
    let (seconds, nanoseconds) = (since_1970 / 1_000_000_000, since_1970 % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    push(
        line,
        format_args!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanoseconds:09}",
            second / 3600,
            second / 60 % 60,
            second % 60
        ),
    );
}

/// The Gregorian date so many days after 1970-01-01. Years are counted from March, so that the leap day
/// is the last of a year; 719,468 days lie between 0000-03-01 and 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    // 146,097 days are 400 years.
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    // One leap day in 4 years (1,460 days and one), but not in 100 (36,524), but in 400.
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March on have 153 days, and so have the next five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, next_year) = if month_from_march < 10 {
        (month_from_march + 3, 0)
    } else {
        (month_from_march - 9, 1)
    };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_that_of_the_calendar() {
        // (seconds since 1970 as date(1) has them, text)
        let rows = [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ];
        for (seconds, text) in rows {
            let mut line = String::new();
            push_time(&mut line, seconds * 1_000_000_000 + 42);
            assert_eq!(line, format!("{text}.000000042"));
        }
    }
}
