//! A guest that owes an answer.

use devices::virtio::Next;
use devices::virtio::vsock::PATIENCE;

use super::*;

const SECOND: u64 = 1_000_000_000;

/// What the device waits for at this time.
fn next_at(guest: &Guest, time: u64) -> Next {
    guest.outside.world().time = time;
    let next = guest.driver.run();
    assert!(guest.outside.world().events.is_empty());
    next
}

fn after(nanos: u64) -> Next {
    Next::After(Nanos::new(nanos))
}

#[test]
fn guest_has_two_seconds_to_answer_a_program() {
    let mut guest = Guest::new();
    let program = guest.outside.call("CONNECT 5\n");
    let request = guest.one();
    assert_eq!((request.to, request.op), (5, REQUEST));
    assert_eq!(PATIENCE.get(), 2 * SECOND);
    assert_eq!(next_at(&guest, 0), after(2 * SECOND));
    assert_eq!(next_at(&guest, 2 * SECOND - 1), after(1));
    assert!(!program.is_closed());
    assert_eq!(next_at(&guest, 2 * SECOND), Next::Notification);
    assert!(program.is_closed());
    let reset = guest.one();
    assert_eq!((reset.from, reset.to, reset.op), (request.from, 5, RST));
    assert_eq!(guest.counts.killed.get(), 1);
    assert_eq!(guest.counts.removed.get(), 1);
    // Too late: there is no such connection any more.
    guest.send(&Packet::new(5, request.from, RESPONSE));
    assert_eq!(guest.one().op, RST);
}

#[test]
fn guest_that_answers_in_time_owes_nothing() {
    let mut guest = Guest::new();
    let (program, host) = guest.called(5);
    // It is looked at once more, since the first time was for it.
    assert_eq!(next_at(&guest, 2 * SECOND), Next::Notification);
    assert_eq!(next_at(&guest, 100 * SECOND), Next::Notification);
    assert!(!program.is_closed());
    guest.send(&Packet::new(5, host, RW).with(b"late"));
    assert_eq!(program.text(), "late");
    assert_eq!(guest.counts.killed.get(), 0);
}

#[test]
fn time_begins_when_the_guest_has_the_question() {
    let mut guest = Guest::without_buffers();
    let program = guest.outside.call("CONNECT 5\n");
    guest.run();
    assert_eq!(next_at(&guest, 50 * SECOND), Next::Notification);
    guest.give(0);
    assert_eq!(next_at(&guest, 50 * SECOND), after(2 * SECOND));
    // The program is let go at once, whether there is a buffer for the news or not.
    assert_eq!(next_at(&guest, 52 * SECOND), Next::Notification);
    assert!(program.is_closed());
    guest.driver.queue = RX;
    assert!(guest.driver.used().is_some() && guest.driver.used().is_none());
    guest.give(1);
    guest.run();
    guest.driver.queue = RX;
    assert!(guest.driver.used().is_some());
}

#[test]
fn guest_has_two_seconds_to_answer_the_end_of_both_directions() {
    for answers in [true, false] {
        let mut guest = Guest::new();
        let program = guest.connect(1_000, 80);
        program.go();
        guest.run();
        let ends = guest.received().pop().expect("an end");
        assert_eq!(
            (ends.op, ends.flags),
            (SHUTDOWN, NO_MORE_SENT | NO_MORE_TAKEN)
        );
        assert_eq!(next_at(&guest, SECOND), after(SECOND));
        if answers {
            guest.send(&Packet::new(1_000, 80, RST));
        }
        assert_eq!(next_at(&guest, 2 * SECOND), Next::Notification);
        let resets: Vec<_> = guest.received().iter().map(|packet| packet.op).collect();
        assert_eq!(resets.is_empty(), answers, "{resets:?}");
        assert!(program.is_closed());
        assert_eq!(guest.counts.killed.get(), u64::from(!answers));
    }
}

#[test]
fn one_direction_may_be_open_for_ever() {
    let mut guest = Guest::new();
    let by_program = guest.connect(1_000, 80);
    by_program.end();
    assert_eq!(guest.one().op, SHUTDOWN);
    let by_guest = guest.connect(1_001, 80);
    guest.send(&Packet::new(1_001, 80, SHUTDOWN).flags(NO_MORE_SENT));
    // Also a guest that has ended both, and whose program is slow.
    let slow = guest.connect(1_002, 80);
    slow.change(|link| link.room = 1);
    guest.send(&Packet::new(1_002, 80, RW).with(b"two"));
    guest.send(&Packet::new(1_002, 80, SHUTDOWN).flags(NO_MORE_SENT | NO_MORE_TAKEN));
    assert_eq!(next_at(&guest, 1_000 * SECOND), Next::Notification);
    for program in [by_program, by_guest, slow] {
        assert!(!program.is_closed());
    }
}

#[test]
fn each_connection_has_its_own_time() {
    let mut guest = Guest::new();
    let mut programs = Vec::new();
    for time in [0, 1, 3] {
        guest.outside.world().time = time * SECOND / 2;
        programs.push((guest.outside.call("CONNECT 5\n"), guest.one().from));
    }
    // The second one is answered.
    guest.send(&Packet::new(5, programs[1].1, RESPONSE));
    let closed = |guest: &Guest, time| {
        let next = next_at(guest, time);
        let closed: Vec<_> = programs.iter().map(|(one, _)| one.is_closed()).collect();
        (next, closed)
    };
    let all_wait = vec![false; 3];
    assert_eq!(closed(&guest, 2 * SECOND - 1), (after(1), all_wait));
    let first = vec![true, false, false];
    assert_eq!(
        closed(&guest, 2 * SECOND),
        (after(3 * SECOND / 2), first.clone())
    );
    assert_eq!(closed(&guest, 7 * SECOND / 2 - 1), (after(1), first));
    let last = vec![true, false, true];
    assert_eq!(closed(&guest, 7 * SECOND / 2), (Next::Notification, last));
}

#[test]
fn reset_of_the_device_ends_all_waiting() {
    let mut guest = Guest::new();
    guest.outside.call("CONNECT 5\n");
    guest.one();
    assert_eq!(next_at(&guest, 0), after(2 * SECOND));
    guest.driver.reset();
    assert_eq!(next_at(&guest, 0), Next::Notification);
    assert_eq!(next_at(&guest, 2 * SECOND), Next::Notification);
    assert_eq!(guest.counts.killed.get(), 0);
}
