//! Drivers that break the protocol. Nobody panics, nothing outside guest memory is touched, the device
//! wants a reset where there is no answer, and after the reset it works.

use devices::virtio::Next;

use crate::driver::*;
use crate::{Probe, probed};

/// After a violation: the driver is told, nothing is served, and a reset helps.
fn assert_fails_and_recovers(driver: &mut Driver<Probe>, what: &str) {
    assert_eq!(driver.run(), Next::Notification, "{what}");
    assert_eq!(
        driver.read(STATUS) & NEEDS_RESET,
        NEEDS_RESET,
        "{what}: no reset is asked for"
    );
    assert_eq!(driver.read(INTERRUPT_STATUS) & 2, 2, "{what}");
    assert_eq!(driver.used(), None, "{what}");
    let interrupts = driver.interrupts();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.run();
    assert_eq!(driver.interrupts(), interrupts, "{what}: told once");
    assert_ne!(driver.read(STATUS) & NEEDS_RESET, 0, "{what}");

    driver.reset();
    assert_eq!(driver.read(STATUS), 0, "{what}");
    driver.negotiate(VERSION_1);
    driver.set_up_queue();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 4)), "{what}: dead after a reset");
}

#[test]
fn queue_at_an_impossible_place_fails_when_the_driver_is_ready() {
    let rows: [(&str, u64, u64, u64, u32); 12] = [
        ("table in the hole", HOLE, AVAILABLE, USED, 16),
        ("ring in the hole", DESCRIPTORS, HOLE, USED, 16),
        ("used ring in the hole", DESCRIPTORS, AVAILABLE, HOLE, 16),
        (
            "used ring across the border",
            DESCRIPTORS,
            AVAILABLE,
            HOLE - 16,
            16,
        ),
        ("table across the border", HOLE - 240, AVAILABLE, USED, 16),
        ("table that wraps around", !15, AVAILABLE, USED, 16),
        ("ring at the end of all", DESCRIPTORS, !1, USED, 16),
        ("table not aligned", DESCRIPTORS + 8, AVAILABLE, USED, 16),
        ("ring not aligned", DESCRIPTORS, AVAILABLE + 1, USED, 16),
        (
            "used ring not aligned",
            DESCRIPTORS,
            AVAILABLE,
            USED + 2,
            16,
        ),
        ("no ring", DESCRIPTORS, 0, USED, 16),
        ("above memory", 1 << 40, AVAILABLE, USED, 16),
    ];
    let sizes = [0, 3, 17, 32, 0x8000, 0x1_0000, 0x1_0010, u32::MAX];
    let sizes = sizes.map(|size| ("size", DESCRIPTORS, AVAILABLE, USED, size));
    for (what, table, available, used, size) in rows.into_iter().chain(sizes) {
        let mut driver = Driver::new(Probe::new().0);
        driver.negotiate(VERSION_1);
        driver.write(QUEUE_SIZE, size);
        driver.set_address(QUEUE_DESC, table);
        driver.set_address(QUEUE_DRIVER, available);
        driver.set_address(QUEUE_DEVICE, used);
        driver.write(QUEUE_READY, 1);
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_fails_and_recovers(&mut driver, &format!("{what} {size}"));
        let faults = driver.engine.faults();
        assert_eq!((faults.activations.get(), faults.queues()), (1, 0));
    }
}

#[test]
fn queue_that_is_not_set_up_is_not_served() {
    let mut driver = Driver::new(Probe::new().0);
    driver.negotiate(VERSION_1);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    assert_eq!(driver.used(), None);
}

#[test]
fn chains_that_make_no_sense_fail() {
    // (what, descriptors, head)
    let rows: [(&str, &[Descriptor], u16); 12] = [
        ("loop to itself", &[(ROOM, 4, NEXT, 0)], 0),
        ("loop of two", &[(ROOM, 4, NEXT, 1), (ROOM, 4, NEXT, 0)], 0),
        ("loop of empty ones", &[(ROOM, 0, NEXT, 0)], 0),
        ("head past the table", &[], 16),
        ("head far past the table", &[], 0xffff),
        ("next past the table", &[(ROOM, 4, NEXT, 16)], 0),
        ("in the hole", &[(HOLE, 4, WRITE, 0)], 0),
        ("across the hole's border", &[(HOLE - 2, 4, WRITE, 0)], 0),
        ("at the end of all", &[(u64::MAX, 4, WRITE, 0)], 0),
        ("longer than memory", &[(0, u32::MAX, WRITE, 0)], 0),
        (
            "to read after to write",
            &[(ROOM, 4, WRITE | NEXT, 1), (ROOM, 4, 0, 0)],
            0,
        ),
        (
            "second in the hole",
            &[(ROOM, 4, NEXT, 1), (HOLE, 4, 0, 0)],
            0,
        ),
    ];
    for (what, descriptors, head) in rows {
        let (mut driver, log) = probed(0);
        for (index, descriptor) in (0..).zip(descriptors) {
            driver.describe_at(DESCRIPTORS, index, *descriptor);
        }
        driver.make_available(head);
        assert_fails_and_recovers(&mut driver, what);
        // only that of the recovery
        assert_eq!(log.lock().unwrap().served.len(), 1, "{what}");
        let faults = driver.engine.faults();
        assert_eq!((faults.activations.get(), faults.queues()), (0, 1));
        assert_eq!(faults.queue(0), 1);
    }
}

#[test]
fn indirect_tables_that_make_no_sense_fail() {
    let table = ROOM + 0x1000;
    let rows: [(&str, Descriptor, Descriptor); 8] = [
        (
            "no whole number",
            (table, 17, TABLE, 0),
            (ROOM, 4, WRITE, 0),
        ),
        ("empty", (table, 0, TABLE, 0), (ROOM, 4, WRITE, 0)),
        ("in the hole", (HOLE, 16, TABLE, 0), (ROOM, 4, WRITE, 0)),
        (
            "too long",
            (table, 0x10_0000 * 16, TABLE, 0),
            (ROOM, 4, WRITE, 0),
        ),
        ("wraps around", (!15, 32, TABLE, 0), (ROOM, 4, WRITE, 0)),
        ("itself", (table, 16, TABLE, 0), (table, 16, TABLE, 0)),
        ("loop", (table, 32, TABLE, 0), (ROOM, 4, NEXT, 0)),
        (
            "next past the table",
            (table, 16, TABLE, 0),
            (ROOM, 4, NEXT, 1),
        ),
    ];
    for (what, outer, inner) in rows {
        let (mut driver, _) = probed(INDIRECT);
        driver.describe_at(DESCRIPTORS, 0, outer);
        driver.describe_at(table, 0, inner);
        driver.make_available(0);
        assert_fails_and_recovers(&mut driver, what);
    }
}

#[test]
fn indirect_table_serves_a_chain_as_long_as_the_queue() {
    let table = ROOM + 0x1000;
    for (entries, served) in [(16, true), (17, false)] {
        let (mut driver, _) = probed(INDIRECT);
        driver.describe_at(DESCRIPTORS, 0, (table, 16 * u32::from(entries), TABLE, 0));
        for index in 0..entries {
            let more = if index + 1 < entries { NEXT } else { 0 };
            driver.describe_at(table, index, (ROOM, 4, WRITE | more, index + 1));
        }
        driver.make_available(0);
        if served {
            driver.run();
            assert_eq!(driver.used(), Some((0, 64)));
        } else {
            assert_fails_and_recovers(&mut driver, "longer than the queue");
        }
    }
}

#[test]
fn ring_index_that_leaps_fails() {
    for leap in [17_u16, 0x8000, 0xffff] {
        let (mut driver, _) = probed(0);
        driver.store(AVAILABLE + 2, leap);
        assert_fails_and_recovers(&mut driver, &format!("index {leap}"));
    }
    // A full ring is none.
    let (mut driver, log) = probed(0);
    driver.describe_at(DESCRIPTORS, 0, (ROOM, 1, WRITE, 0));
    driver.store(AVAILABLE + 2, 16_u16);
    driver.run();
    assert_eq!(log.lock().unwrap().served.len(), 16);
    // and neither is an index that goes back, since it is one that went almost around
    driver.store(AVAILABLE + 2, 15_u16);
    driver.run();
    assert_ne!(driver.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn buffers_above_the_hole_and_up_to_its_border_are_memory() {
    let (mut driver, _) = probed(0);
    driver.put(&[(HOLE - 4, 4, true), (HIGH, 4, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 8)));
    assert_eq!(driver.bytes(HOLE - 4, 4), [1; 4]);
    assert_eq!(driver.bytes(HIGH, 4), [1; 4]);
}

#[test]
fn every_register_takes_every_value() {
    for setup in [false, true] {
        let (mut driver, _) = probed(0);
        for offset in (0..0x200).step_by(4) {
            for value in [0, 1, 0x7fff_ffff, u32::MAX] {
                if !setup && offset == STATUS {
                    continue;
                }
                driver.write(offset, value);
                let _ = driver.read(offset);
                driver.run();
            }
        }
    }
}
