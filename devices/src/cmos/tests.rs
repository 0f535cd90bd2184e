//! What a guest sees of the chip, register by register.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

/// 2026-11-22 19:05:09.25 UTC, a Sunday (`date -u -d @1795374309`).
const NOW: u64 = 1_795_374_309_250_000_000;
const SECOND: u64 = 1_000_000_000;

/// A chip and the hand that moves its wall clock.
fn chip(now: u64) -> (Cmos, Arc<AtomicU64>) {
    let time = Arc::new(AtomicU64::new(now));
    let clock = Arc::clone(&time);
    (
        Cmos::new(Box::new(move || Nanos::new(clock.load(Ordering::Relaxed)))),
        time,
    )
}

fn get(cmos: &mut Cmos, register: u8) -> u8 {
    let mut data = [0xff];
    let _ = cmos.write(0, &[register]);
    cmos.read(1, &mut data);
    data[0]
}

fn set(cmos: &mut Cmos, register: u8, value: u8) {
    let _ = cmos.write(0, &[register]);
    let _ = cmos.write(1, &[value]);
}

/// Century, year, month, day, hour, minute, second, day of the week.
fn time(cmos: &mut Cmos) -> [u8; 8] {
    [
        CENTURY,
        YEAR,
        MONTH,
        DAY_OF_MONTH,
        HOURS,
        MINUTES,
        SECONDS,
        DAY_OF_WEEK,
    ]
    .map(|register| get(cmos, register))
}

/// Sets the time as [`time`] gives it, but for the day of the week.
fn set_time(cmos: &mut Cmos, values: [u8; 7]) {
    let control = get(cmos, REGISTER_B);
    set(cmos, REGISTER_B, control | B_SET);
    let registers = [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS];
    for (register, value) in registers.into_iter().zip(values) {
        set(cmos, register, value);
    }
    set(cmos, REGISTER_B, control);
}

#[test]
fn time_is_the_hosts_in_bcd_and_24_hours() {
    let (mut cmos, clock) = chip(NOW);
    assert_eq!(
        time(&mut cmos),
        [0x20, 0x26, 0x11, 0x22, 0x19, 0x05, 0x09, 0x01]
    );
    clock.fetch_add(SECOND * 3 / 4 - 1, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x09);
    clock.fetch_add(1, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x10);
}

#[test]
fn time_in_all_four_formats() {
    // (hour of the day, BCD 24, BCD 12, binary 24, binary 12)
    let rows = [
        (0, 0x00, 0x12, 0, 12),
        (1, 0x01, 0x01, 1, 1),
        (11, 0x11, 0x11, 11, 11),
        (12, 0x12, 0x92, 12, 0x80 + 12),
        (13, 0x13, 0x81, 13, 0x80 + 1),
        (23, 0x23, 0x91, 23, 0x80 + 11),
    ];
    for (hour, bcd_24, bcd_12, binary_24, binary_12) in rows {
        let (mut cmos, _) = chip(hour * 3600 * SECOND);
        for (control, expected) in [
            (B_24_HOURS, bcd_24),
            (0, bcd_12),
            (B_BINARY | B_24_HOURS, binary_24),
            (B_BINARY, binary_12),
        ] {
            set(&mut cmos, REGISTER_B, control);
            assert_eq!(get(&mut cmos, HOURS), expected, "{hour} {control:#x}");
            // And back: the hour as read sets the same hour.
            set(&mut cmos, HOURS, expected);
            set(&mut cmos, REGISTER_B, B_BINARY | B_24_HOURS);
            assert_eq!(u64::from(get(&mut cmos, HOURS)), hour, "{control:#x}");
        }
    }
    let (mut cmos, _) = chip(NOW);
    set(&mut cmos, REGISTER_B, B_BINARY | B_24_HOURS);
    assert_eq!(time(&mut cmos), [20, 26, 11, 22, 19, 5, 9, 1]);
}

/// Regression of other launchers: no CMOS clock, and a guest that took an open bus's ones for a
/// date and found itself in 1999.
#[test]
fn time_at_the_turns_that_clocks_get_wrong() {
    // From `date -u -d @SECONDS`: century to second, and the day of the week plus one.
    let rows = [
        (946_684_799, [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6]),
        (946_684_800, [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 7]),
        (951_782_400, [0x20, 0x00, 0x02, 0x29, 0x00, 0x00, 0x00, 3]),
        (2_147_483_648, [0x20, 0x38, 0x01, 0x19, 0x03, 0x14, 0x08, 3]),
        (4_107_542_399, [0x21, 0x00, 0x02, 0x28, 0x23, 0x59, 0x59, 1]),
        (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 0x00, 0x00, 0x00, 2]),
        (1_483_228_800, [0x20, 0x17, 0x01, 0x01, 0x00, 0x00, 0x00, 1]),
    ];
    for (seconds, expected) in rows {
        let (mut cmos, _) = chip(seconds * SECOND);
        assert_eq!(time(&mut cmos), expected, "{seconds}");
    }
    // The last moment that the host's clock can express.
    let (mut cmos, _) = chip(u64::MAX);
    assert_eq!(
        time(&mut cmos),
        [0x25, 0x54, 0x07, 0x21, 0x23, 0x34, 0x33, 1]
    );
}

#[test]
fn registers_after_power_on() {
    let (mut cmos, _) = chip(NOW);
    assert_eq!(get(&mut cmos, REGISTER_A), 0x26);
    assert_eq!(get(&mut cmos, REGISTER_B), 0x02);
    assert_eq!(get(&mut cmos, REGISTER_C), 0);
    assert_eq!(get(&mut cmos, REGISTER_D), 0x80);
}

#[test]
fn read_only_registers_and_bits_stay() {
    let (mut cmos, _) = chip(NOW);
    for register in [REGISTER_A, REGISTER_C, REGISTER_D] {
        set(&mut cmos, register, 0xff);
    }
    assert_eq!(get(&mut cmos, REGISTER_A), 0x7f, "never updating");
    assert_eq!(get(&mut cmos, REGISTER_C), 0);
    assert_eq!(get(&mut cmos, REGISTER_D), 0x80);
}

#[test]
fn ram_alarms_and_the_shutdown_byte_hold_what_is_written() {
    let (mut cmos, _) = chip(NOW);
    let plain: Vec<u8> = [1, 3, 5]
        .into_iter()
        .chain(0x0e..CENTURY)
        .chain(CENTURY + 1..0x80)
        .collect();
    for &register in &plain {
        set(&mut cmos, register, register ^ 0xa5);
    }
    for register in plain {
        assert_eq!(get(&mut cmos, register), register ^ 0xa5, "{register:#x}");
    }
    assert_eq!(time(&mut cmos)[0], 0x20);
}

#[test]
fn index_ignores_the_nmi_mask_and_cannot_be_read() {
    let (mut cmos, _) = chip(NOW);
    assert_eq!(get(&mut cmos, 0x80 | REGISTER_D), 0x80);
    let mut data = [0xff];
    cmos.read(0, &mut data);
    assert_eq!(data, [0xff]);
}

#[test]
fn word_access_is_index_then_data() {
    let (mut cmos, _) = chip(NOW);
    let _ = cmos.write(0, &[0x40, 0x5a]);
    assert_eq!(get(&mut cmos, 0x40), 0x5a);
    let mut data = [0xff; 4];
    cmos.read(0, &mut data);
    assert_eq!(data, [0xff, 0x5a, 0xff, 0xff]);
    let _ = cmos.write(1, &[1, 2, 3]);
    assert_eq!(get(&mut cmos, 0x40), 1);
}

#[test]
fn time_set_by_the_guest_runs_on_from_there() {
    let (mut cmos, clock) = chip(NOW);
    set_time(&mut cmos, [0x20, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]);
    assert_eq!(
        time(&mut cmos),
        [0x20, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58, 5]
    );
    clock.fetch_add(2 * SECOND, Ordering::Relaxed);
    assert_eq!(
        time(&mut cmos),
        [0x21, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 6]
    );
    // The fraction of the second was not disturbed: the next one comes in 0.75 s.
    clock.fetch_add(SECOND * 3 / 4, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x01);
    // Back to before 1970, and to the last year that there is.
    set_time(&mut cmos, [0x19, 0x00, 0x02, 0x28, 0x23, 0x59, 0x59]);
    clock.fetch_add(SECOND, Ordering::Relaxed);
    assert_eq!(
        time(&mut cmos),
        [0x19, 0x00, 0x03, 0x01, 0x00, 0x00, 0x00, 5]
    );
    set_time(&mut cmos, [0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]);
    clock.fetch_add(SECOND, Ordering::Relaxed);
    assert_eq!(time(&mut cmos), [0, 0, 1, 1, 0, 0, 0, 7]);
}

#[test]
fn time_held_with_set_stands_still_and_unset_changes_nothing() {
    let (mut cmos, clock) = chip(NOW);
    set(&mut cmos, REGISTER_B, B_SET | B_24_HOURS);
    let held = time(&mut cmos);
    clock.fetch_add(70 * SECOND, Ordering::Relaxed);
    assert_eq!(time(&mut cmos), held);
    set(&mut cmos, REGISTER_B, B_24_HOURS);
    // What was held is the time now: the chip did not update meanwhile.
    assert_eq!(time(&mut cmos), held);
}

#[test]
fn time_that_does_not_exist_is_not_adopted() {
    let rows = [
        [0x20, 0x25, 0x02, 0x29, 0x00, 0x00, 0x00],
        [0x20, 0x26, 0x13, 0x01, 0x00, 0x00, 0x00],
        [0x20, 0x26, 0x00, 0x01, 0x00, 0x00, 0x00],
        [0x20, 0x26, 0x01, 0x00, 0x00, 0x00, 0x00],
        [0x20, 0x26, 0x01, 0x01, 0x24, 0x00, 0x00],
        [0x20, 0x26, 0x01, 0x01, 0x00, 0x60, 0x00],
        [0x20, 0x26, 0x01, 0x01, 0x00, 0x00, 0x0a], // no digit
        [0xa0, 0x26, 0x01, 0x01, 0x00, 0x00, 0x00],
        [0xff; 7],
    ];
    for values in rows {
        let (mut cmos, _) = chip(NOW);
        let before = time(&mut cmos);
        set_time(&mut cmos, values);
        assert_eq!(time(&mut cmos), before, "{values:x?}");
    }
    // In binary, two digits are 0 to 99 all the same.
    let (mut cmos, _) = chip(NOW);
    set(&mut cmos, REGISTER_B, B_BINARY | B_24_HOURS);
    set_time(&mut cmos, [20, 100, 1, 1, 0, 0, 0]);
    assert_eq!(time(&mut cmos)[..2], [20, 26]);
}

#[test]
fn single_register_written_while_running_takes_effect() {
    let (mut cmos, clock) = chip(NOW);
    set(&mut cmos, MINUTES, 0x59);
    set(&mut cmos, SECONDS, 0x59);
    clock.fetch_add(SECOND, Ordering::Relaxed);
    assert_eq!(time(&mut cmos)[4..7], [0x20, 0x00, 0x00]);
    // The day of the week is the date's.
    set(&mut cmos, DAY_OF_WEEK, 5);
    assert_eq!(get(&mut cmos, DAY_OF_WEEK), 1);
}

#[test]
fn divider_in_reset_stops_the_clock_and_the_first_second_is_half_as_long() {
    let (mut cmos, clock) = chip(NOW);
    set(&mut cmos, REGISTER_A, 0x76);
    clock.fetch_add(1000 * SECOND, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x09);
    set(&mut cmos, REGISTER_A, 0x26);
    clock.fetch_add(SECOND / 2 - 1, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x09);
    clock.fetch_add(1, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x10);
}

#[test]
fn time_read_after_register_a_is_one_moment() {
    let (mut cmos, clock) = chip(NOW);
    // 1 ms before the next second.
    clock.fetch_add(SECOND * 3 / 4 - SECOND / 1000, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, REGISTER_A) & A_UPDATE, 0);
    clock.fetch_add(SECOND / 500, Ordering::Relaxed);
    assert_eq!(
        get(&mut cmos, SECONDS),
        0x09,
        "2 ms later it still shows that moment"
    );
    clock.fetch_add(SECOND / 1000, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x10, "3 ms later it does not");
    // A host clock that is set back ends the hold.
    get(&mut cmos, REGISTER_A);
    clock.fetch_sub(10 * SECOND, Ordering::Relaxed);
    assert_eq!(get(&mut cmos, SECONDS), 0x00);
}

#[test]
fn memory_size_is_where_firmware_leaves_it() {
    const MIB: u64 = 1 << 20;
    // (below 4 GiB, above, [0x15..=0x18], [0x30, 0x31], [0x34, 0x35], [0x5b..=0x5d])
    let rows = [
        // 128 MiB: 130,048 KiB from 1 MiB; 112 MiB from 16 MiB are 1,792 units.
        (
            128 * MIB,
            0,
            [0x80, 0x02, 0xff, 0xff],
            [0xff, 0xff],
            [0x00, 0x07],
            [0, 0, 0],
        ),
        // 8 MiB: 7,168 KiB from 1 MiB, nothing from 16 MiB.
        (
            8 * MIB,
            0,
            [0x80, 0x02, 0x00, 0x1c],
            [0x00, 0x1c],
            [0, 0],
            [0, 0, 0],
        ),
        // 3 GiB and 5 GiB: 3,056 MiB are 48,896 units; 5 GiB are 81,920.
        (
            3072 * MIB,
            5120 * MIB,
            [0x80, 2, 0xff, 0xff],
            [0xff; 2],
            [0x00, 0xbf],
            [0, 0x40, 1],
        ),
        (0, u64::MAX, [0; 4], [0; 2], [0; 2], [0xff; 3]),
    ];
    for (below, above, base, extended, low, high) in rows {
        let mut cmos = chip(NOW).0.with_memory(below, above);
        assert_eq!(
            [0x15, 0x16, 0x17, 0x18].map(|r| get(&mut cmos, r)),
            base,
            "{below}"
        );
        assert_eq!([0x30, 0x31].map(|r| get(&mut cmos, r)), extended, "{below}");
        assert_eq!([0x34, 0x35].map(|r| get(&mut cmos, r)), low, "{below}");
        assert_eq!(
            [0x5b, 0x5c, 0x5d].map(|r| get(&mut cmos, r)),
            high,
            "{above}"
        );
        assert_eq!(time(&mut cmos)[0], 0x20, "the century is none of it");
    }
}

/// A chip whose interrupts are counted: with the first hand its wall clock is moved, and the others tell how often
/// it interrupted and how often it told of a change.
fn wired(now: u64) -> (Cmos, Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>) {
    let (cmos, clock) = chip(now);
    let button = || {
        let count = Arc::new(AtomicU64::new(0));
        let presses = Arc::clone(&count);
        let pressed = move || {
            presses.fetch_add(1, Ordering::Relaxed);
        };
        (count, Box::new(pressed))
    };
    let ((interrupts, line), (changes, changed)) = (button(), button());
    (
        cmos.with_interrupt(line, changed),
        clock,
        interrupts,
        changes,
    )
}

fn taken(count: &AtomicU64) -> u64 {
    count.swap(0, Ordering::Relaxed)
}

const PERIODIC_ENABLED: u8 = 0x40;
const ALARM_ENABLED: u8 = 0x20;
const UPDATE_ENABLED: u8 = 0x10;

/// The alarm as Linux sets it, at the next second but one (`cmos_set_alarm`, `cmos_irq_enable`), and takes it
/// (`cmos_interrupt`).
#[test]
fn alarm_interrupts_once_at_its_second_and_is_due_the_next_day() {
    let (mut cmos, clock, interrupts, changes) = wired(NOW);
    for (register, value) in [
        (HOURS_ALARM, 0x19),
        (MINUTES_ALARM, 0x05),
        (SECONDS_ALARM, 0x11),
    ] {
        set(&mut cmos, register, value);
    }
    assert_eq!(cmos.due(), None);
    assert_eq!(taken(&changes), 0);
    set(&mut cmos, REGISTER_B, B_24_HOURS | ALARM_ENABLED);
    let at = NOW / SECOND * SECOND + 2 * SECOND;
    assert_eq!(cmos.due(), Some(Nanos::new(at)));
    assert_eq!(taken(&changes), 1);

    clock.store(at - 1, Ordering::Relaxed);
    assert_eq!(cmos.tick(), Some(Nanos::new(at)));
    assert_eq!(taken(&interrupts), 0);
    clock.store(at, Ordering::Relaxed);
    assert_eq!(cmos.tick(), None, "it has to be taken first");
    assert_eq!(cmos.tick(), None);
    assert_eq!((taken(&interrupts), taken(&changes)), (1, 0));

    assert_eq!(get(&mut cmos, REGISTER_C), 0xb0 | interrupts::PERIODIC);
    assert_eq!(get(&mut cmos, REGISTER_C), 0);
    assert_eq!(cmos.due(), Some(Nanos::new(at + 86_400 * SECOND)));
    assert_eq!((taken(&interrupts), taken(&changes)), (0, 1));
    set(&mut cmos, REGISTER_B, B_24_HOURS);
    assert_eq!(cmos.due(), None);
    assert_eq!(taken(&changes), 1);
}

#[test]
fn alarm_with_a_register_that_matches_anything_comes_again_and_one_that_is_no_time_never() {
    let (mut cmos, clock, interrupts, _) = wired(NOW);
    set(&mut cmos, HOURS_ALARM, 0xff);
    set(&mut cmos, MINUTES_ALARM, 0xc0);
    set(&mut cmos, SECONDS_ALARM, 0x30);
    set(&mut cmos, REGISTER_B, B_24_HOURS | ALARM_ENABLED);
    // 19:05:30, 19:06:30, 19:07:30
    let first = NOW / SECOND * SECOND + 21 * SECOND;
    for minute in 0..3 {
        let at = first + minute * 60 * SECOND;
        assert_eq!(cmos.due(), Some(Nanos::new(at)));
        clock.store(at, Ordering::Relaxed);
        let _ = cmos.tick();
        assert_eq!(taken(&interrupts), 1);
        assert_eq!(get(&mut cmos, REGISTER_C) & ALARM_ENABLED, ALARM_ENABLED);
    }
    // No number in BCD, no second, no hour.
    for (register, value) in [
        (SECONDS_ALARM, 0x3a),
        (SECONDS_ALARM, 0x60),
        (HOURS_ALARM, 0x24),
    ] {
        set(&mut cmos, SECONDS_ALARM, 0x30);
        set(&mut cmos, register, value);
        assert_eq!(cmos.due(), None, "{register:#x} {value:#x}");
    }
}

#[test]
fn each_second_interrupts_but_while_the_time_is_set() {
    let (mut cmos, clock, interrupts, _) = wired(NOW);
    set(&mut cmos, REGISTER_B, B_24_HOURS | UPDATE_ENABLED);
    for second in 1..4 {
        let at = NOW / SECOND * SECOND + second * SECOND;
        assert_eq!(cmos.due(), Some(Nanos::new(at)));
        clock.store(at, Ordering::Relaxed);
        let _ = cmos.tick();
        assert_eq!(taken(&interrupts), 1);
        assert_eq!(get(&mut cmos, REGISTER_C) & 0xb0, 0x90);
    }
    set(&mut cmos, REGISTER_B, B_24_HOURS | UPDATE_ENABLED | B_SET);
    assert_eq!(get(&mut cmos, REGISTER_B), B_24_HOURS | B_SET);
    clock.fetch_add(5 * SECOND, Ordering::Relaxed);
    assert_eq!(cmos.tick(), None);
    assert_eq!(get(&mut cmos, REGISTER_C) & UPDATE_ENABLED, 0);
    // The present is adopted again, and what has passed meanwhile is no second's end.
    set(&mut cmos, REGISTER_B, B_24_HOURS | UPDATE_ENABLED);
    assert_eq!(taken(&interrupts), 0);
    assert!(cmos.due().is_some());
}

/// The chip's own way to read the time, by its interrupt (MC146818A data sheet, "Update cycle").
#[test]
fn time_read_after_the_interrupt_is_the_new_second() {
    let (mut cmos, clock, ..) = wired(NOW);
    set(&mut cmos, REGISTER_B, B_24_HOURS | UPDATE_ENABLED);
    let at = NOW / SECOND * SECOND + SECOND;
    clock.store(at - 1_000_000, Ordering::Relaxed);
    assert_eq!(
        (get(&mut cmos, REGISTER_A), get(&mut cmos, SECONDS)),
        (0x26, 0x09)
    );
    clock.store(at, Ordering::Relaxed);
    let _ = cmos.tick();
    assert_eq!(get(&mut cmos, SECONDS), 0x09);
    assert_eq!(get(&mut cmos, REGISTER_C) & 0x90, 0x90);
    assert_eq!(get(&mut cmos, SECONDS), 0x10);
}

#[test]
fn ticks_come_at_the_rate_that_is_selected() {
    let (mut cmos, clock, interrupts, _) = wired(NOW);
    set(&mut cmos, REGISTER_B, B_24_HOURS | PERIODIC_ENABLED);
    let mut ticks = 0;
    while let Some(due) = cmos.due().filter(|due| due.get() <= NOW + SECOND) {
        clock.store(due.get(), Ordering::Relaxed);
        let _ = cmos.tick();
        assert_eq!(get(&mut cmos, REGISTER_C) & 0xc0, 0xc0);
        ticks += 1;
    }
    assert_eq!((ticks, taken(&interrupts)), (1024, 1024));
    set(&mut cmos, REGISTER_A, 0x20);
    assert_eq!(cmos.due(), None);
    set(&mut cmos, REGISTER_A, 0x70);
    assert_eq!(cmos.due(), None, "it stands");
}

#[test]
fn cause_that_is_there_interrupts_when_it_is_enabled() {
    let (mut cmos, clock, interrupts, _) = wired(NOW);
    clock.fetch_add(SECOND, Ordering::Relaxed);
    assert_eq!(taken(&interrupts), 0);
    set(&mut cmos, REGISTER_B, B_24_HOURS | UPDATE_ENABLED);
    assert_eq!(taken(&interrupts), 1);
    assert_eq!(cmos.due(), None);
    // Off and on again: the line falls and rises.
    set(&mut cmos, REGISTER_B, B_24_HOURS);
    set(&mut cmos, REGISTER_B, B_24_HOURS | UPDATE_ENABLED);
    assert_eq!(taken(&interrupts), 1);
}

#[test]
fn time_that_is_set_has_not_passed() {
    let (mut cmos, clock, interrupts, _) = wired(NOW);
    for (register, value) in [(HOURS_ALARM, 0x20), (MINUTES_ALARM, 0), (SECONDS_ALARM, 0)] {
        set(&mut cmos, register, value);
    }
    set(&mut cmos, REGISTER_B, B_24_HOURS | ALARM_ENABLED);
    // The guest sets its clock beyond the alarm, in one step.
    set(&mut cmos, HOURS, 0x21);
    assert_eq!(taken(&interrupts), 0);
    let alarm = NOW / SECOND * SECOND - 9 * SECOND - 5 * 60 * SECOND + 23 * 3600 * SECOND;
    assert_eq!(cmos.due(), Some(Nanos::new(alarm)));
    // The host's clock is set back by an hour: the chip goes with it.
    clock.fetch_sub(3600 * SECOND, Ordering::Relaxed);
    assert_eq!(cmos.tick(), Some(Nanos::new(alarm)));
    assert_eq!(taken(&interrupts), 0);
    // And forward by two days.
    clock.fetch_add(48 * 3600 * SECOND, Ordering::Relaxed);
    assert_eq!(cmos.tick(), None);
    assert_eq!(taken(&interrupts), 1);
}

proptest! {
    /// What a guest sets in any format it reads back, and any host time shows.
    #[test]
    fn time_round_trips_in_every_format(now in any::<u64>(), target in any::<u64>(), format in 0u8..4) {
        let control = format << 1;
        let (mut source, _) = chip(target);
        let (mut cmos, _) = chip(now);
        set(&mut source, REGISTER_B, control);
        set(&mut cmos, REGISTER_B, control);
        let expected = time(&mut source);
        let [values @ .., _] = expected;
        set_time(&mut cmos, values);
        prop_assert_eq!(time(&mut cmos), expected);
    }

    #[test]
    fn any_accesses_never_panic(
        now in any::<u64>(),
        steps in prop::collection::vec(
            (any::<bool>(), 0u64..4, prop::collection::vec(any::<u8>(), 0..9), any::<u64>()), 0..200)
    ) {
        let (mut cmos, clock) = chip(now);
        for (writes, offset, mut data, now) in steps {
            clock.store(now, Ordering::Relaxed);
            if writes {
                prop_assert_eq!(cmos.write(offset, &data), Reaction::None);
            } else {
                cmos.read(offset, &mut data);
            }
            prop_assert_eq!(cmos.due(), cmos.told);
            let _ = cmos.tick();
        }
    }
}
