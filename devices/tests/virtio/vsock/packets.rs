//! Packets that make no sense, buffers that do not fit, and a reset.

use super::*;

#[test]
fn packets_that_are_not_from_the_guest_to_the_host_are_dropped() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let data = Packet::new(1_000, 80, RW).with(b"x");
    for (source, destination) in [
        (GUEST + 1, 2),
        (GUEST, 3),
        (GUEST, GUEST),
        (2, GUEST),
        (GUEST | 1 << 32, 2),
    ] {
        let packet = Packet {
            source,
            destination,
            ..data.clone()
        };
        guest.send(&packet);
        assert_eq!(guest.received(), [], "{source} {destination}");
    }
    assert_eq!(program.text(), "");
    assert!(!program.is_closed() && guest.is_well());
}

#[test]
fn packet_that_is_not_whole_is_dropped_or_resets_its_connection() {
    let mut guest = Guest::new();
    guest.driver.queue = TX;
    for len in [0, 1, 43] {
        guest.driver.put(&[(OUT, len, false)]);
        guest.run();
        assert_eq!(guest.driver.used(), Some((0, 0)), "{len}");
        guest.driver.queue = TX;
    }
    for (port, len) in [(1, 6), (2, 65_537), (3, u32::MAX)] {
        let program = guest.connect(port, 80);
        let packet = Packet {
            len,
            ..Packet::new(port, 80, RW).with(b"five.")
        };
        guest.send(&packet);
        assert_eq!(guest.one().op, RST, "{len}");
        assert!(program.is_closed(), "{len}");
    }
    // More than it says: the rest is not part of it.
    let program = guest.connect(4, 80);
    let packet = Packet {
        len: 2,
        ..Packet::new(4, 80, RW).with(b"five.")
    };
    guest.send(&packet);
    assert_eq!(program.text(), "fi");
    assert!(guest.is_well());
}

#[test]
fn packets_without_a_connection_are_reset_but_resets() {
    let mut guest = Guest::new();
    for (op, kind) in [
        (0, 1),
        (2, 1),
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1),
        (0xffff, 1),
        (1, 2),
        (5, 0),
    ] {
        let packet = Packet {
            kind,
            ..Packet::new(1_000, 80, op)
        };
        guest.send(&packet);
        let reset = guest.one();
        assert_eq!(
            (reset.from, reset.to, reset.op, reset.kind),
            (80, 1_000, RST, kind),
            "{op}"
        );
    }
    guest.send(&Packet::new(1_000, 80, RST));
    assert_eq!(guest.received(), []);
}

#[test]
fn packets_that_make_no_sense_reset_their_connection() {
    for op in [0, REQUEST, RESPONSE, 8, 0xffff] {
        let mut guest = Guest::new();
        let program = guest.connect(1_000, 80);
        let other = guest.connect(1_001, 80);
        guest.send(&Packet::new(1_000, 80, op));
        // It is told once, whatever else it sends.
        guest.send(&Packet::new(1_000, 80, RST));
        assert_eq!(guest.received().len(), 1, "{op}");
        assert!(program.is_closed() && !other.is_closed(), "{op}");
    }
    // A kind of connection that there is not is not this one.
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let packet = Packet::new(1_000, 80, RW).with(b"x");
    guest.send(&Packet { kind: 2, ..packet });
    let reset = guest.one();
    assert_eq!((reset.op, reset.kind), (RST, 2));
    assert!(program.text().is_empty() && !program.is_closed());
    // Before it is open,
    for op in [RW, SHUTDOWN, REQUEST] {
        let mut guest = Guest::new();
        let program = guest.outside.call("CONNECT 52\n");
        let request = guest.one();
        guest.send(&Packet::new(52, request.from, op));
        assert_eq!(guest.one().op, RST, "{op}");
        assert!(program.is_closed(), "{op}");
    }
    // and after the guest said that nothing comes.
    let mut guest = Guest::new();
    guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT));
    guest.send(&Packet::new(1_000, 80, RW).with(b"x"));
    assert_eq!(guest.one().op, RST);
}

#[test]
fn answers_wait_for_buffers_and_packets_for_answers() {
    let mut guest = Guest::without_buffers();
    let packet = Packet::new(1, 80, CREDIT_REQUEST);
    for number in 0..256 {
        guest.send(&Packet {
            from: number,
            ..packet.clone()
        });
    }
    let last = Packet {
        from: 256,
        ..packet
    };
    assert!(!guest.offers(&last));
    guest.give_all();
    let packets = guest.received();
    let to: Vec<_> = packets.iter().map(|packet| packet.to).collect();
    assert_eq!(to, (0..=256).collect::<Vec<_>>());
    guest.driver.queue = TX;
    assert!(guest.driver.used().is_some());
}

#[test]
fn packet_is_answered_without_another_notification() {
    let mut guest = Guest::new();
    let bytes = Packet::new(1, 80, REQUEST).bytes();
    guest.driver.fill(OUT, &bytes);
    guest.driver.queue = TX;
    guest.driver.put(&[(OUT, 44, false)]);
    guest.driver.run();
    guest.driver.queue = RX;
    assert_eq!(guest.driver.used(), Some((0, 44)));
}

#[test]
fn buffer_without_room_for_a_packet_stops_the_device() {
    let mut guest = Guest::without_buffers();
    guest.driver.queue = RX;
    guest.driver.put(&[(ROOM, 44, true)]);
    guest.run();
    assert!(!guest.is_well());
}

#[test]
fn packets_are_spread_over_the_buffers_of_a_chain() {
    let mut guest = Guest::without_buffers();
    guest.outside.listen(80);
    guest.send(&Packet::new(1_000, 80, REQUEST));
    guest.driver.queue = RX;
    // The header is in two, the bytes are in three.
    let buffers = [(0, 30), (0x100, 20), (0x200, 7), (0x300, 100)];
    let buffers = buffers.map(|(at, len)| (ROOM + at, len, true));
    guest.driver.put(&buffers);
    guest.run();
    assert_eq!(guest.driver.used(), Some((0, 44)));
    let program = guest.outside.connected().expect("connected").1;
    program.send(&pattern(0, 50));
    guest.driver.put(&buffers);
    guest.run();
    assert_eq!(guest.driver.used(), Some((0, 94)));
    let mut bytes = guest.driver.bytes(ROOM, 30);
    bytes.extend(guest.driver.bytes(ROOM + 0x100, 20));
    bytes.extend(guest.driver.bytes(ROOM + 0x200, 7));
    bytes.extend(guest.driver.bytes(ROOM + 0x300, 37));
    assert_eq!(Packet::parse(&bytes).payload, pattern(0, 50));
    // The guest's, too.
    let bytes = Packet::new(1_000, 80, RW).with(&pattern(0, 50)).bytes();
    guest.driver.fill(OUT, &bytes);
    guest.driver.queue = TX;
    guest.driver.put(&[
        (OUT, 20, false),
        (OUT + 20, 30, false),
        (OUT + 50, 44, false),
    ]);
    guest.run();
    assert_eq!(program.take(100), pattern(0, 50));
}

#[test]
fn reset_of_the_device_ends_all_connections() {
    let mut guest = Guest::new();
    let programs = [guest.connect(1_000, 80), guest.called(52).0];
    let asking = guest.outside.call("CONNECT 53\n");
    guest.run();
    programs[0].send(b"never read");
    guest.send(&Packet::new(9, 9, RW));
    guest.driver.reset();
    guest.has_driver = false;
    for program in programs.iter().chain([&asking]) {
        assert!(program.is_closed());
    }
    // Who connects now waits for the next driver.
    let _waiting = guest.outside.call("CONNECT 54\n");
    guest.run();
    assert_eq!(guest.outside.world().calling.len(), 1);
    guest.driver.negotiate(VERSION_1);
    for queue in [EVENTS, TX, RX] {
        guest.driver.queue = queue;
        guest.driver.set_up_queue();
    }
    guest
        .driver
        .write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    guest.has_driver = true;
    guest.give_all();
    let request = guest.one();
    assert_eq!((request.to, request.op), (54, REQUEST));
    // What the driver before knew is unknown.
    guest.send(&Packet::new(1_000, 80, RW).with(b"x"));
    assert_eq!(guest.one().op, RST);
}

#[test]
fn event_of_an_earlier_connection_is_not_the_next_ones() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let token = program.change(|link| link.token);
    guest.send(&Packet::new(1_000, 80, RST));
    let second = guest.connect(1_001, 80);
    guest.outside.world().tell(Event {
        place: Place::Stream(token.expect("watched")),
        readable: true,
        writable: true,
        hung_up: true,
    });
    assert_eq!(guest.received(), []);
    assert!(!second.is_closed());
}
