//! How connections begin, flow and end.

use super::*;

#[test]
fn guest_learns_its_address_and_that_there_are_streams() {
    let mut guest = Guest::new();
    assert_eq!(guest.driver.read(DEVICE_ID), 19);
    assert_eq!(guest.driver.read(CONFIG), GUEST as u32);
    assert_eq!(guest.driver.read(CONFIG + 4), 0);
    assert_eq!(guest.driver.offered() & 0xff, 1);
}

#[test]
fn guest_connects_and_both_sides_speak() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, RW).with(b"hello"));
    assert_eq!(program.text(), "hello");
    program.send(b"good day");
    let packet = guest.one();
    assert_eq!((packet.from, packet.to, packet.op), (80, 1_000, RW));
    assert_eq!(packet.payload, b"good day");
    // What was passed on is told with every packet.
    assert_eq!((packet.room, packet.passed), (ROOM_OF_DEVICE, 5));
    assert_eq!(guest.received(), []);
}

#[test]
fn program_connects_and_both_sides_speak() {
    let mut guest = Guest::new();
    // What it says after its line is the guest's.
    let program = guest.outside.call("CONNECT 52\nearly");
    let request = guest.one();
    assert_eq!(
        (request.from, request.to, request.op),
        (1 << 30, 52, REQUEST)
    );
    assert_eq!(program.text(), "");
    guest.send(&Packet::new(52, 1 << 30, RESPONSE));
    assert_eq!(program.text(), "OK 1073741824\n");
    assert_eq!(guest.one().payload, b"early");
    guest.send(&Packet::new(52, 1 << 30, RW).with(b"late"));
    assert_eq!(program.text(), "late");
}

#[test]
fn line_of_a_program_may_come_in_pieces_and_must_be_one() {
    let mut guest = Guest::new();
    let program = guest.outside.call("CONN");
    for piece in ["ECT", " 5", "2"] {
        assert_eq!(guest.received(), []);
        program.send(piece.as_bytes());
    }
    assert_eq!(guest.received(), []);
    program.send(b"\n");
    assert_eq!(guest.one().op, REQUEST);
    for line in [
        "HI\n",
        "CONNECT\n",
        "CONNECT 1 2\n",
        "CONNECT\n5\n",
        "CONNECT 4294967296\n",
        "GET / HTTP/1.1\r\n",
        "CONNECT 00000000000000000000000000000001",
    ] {
        let program = guest.outside.call(line);
        assert_eq!(guest.received(), [], "{line}");
        assert!(program.is_closed(), "{line}");
    }
    let program = guest.outside.call("CONNECT ");
    program.go();
    assert_eq!(guest.received(), []);
    assert!(program.is_closed());
}

#[test]
fn connection_that_nobody_serves_is_reset() {
    let mut guest = Guest::new();
    guest.send(&Packet::new(1_000, 81, REQUEST));
    let reset = guest.one();
    assert_eq!(
        (reset.from, reset.to, reset.op, reset.kind),
        (81, 1_000, RST, 1)
    );
    // And the other way.
    let program = guest.outside.call("CONNECT 52\n");
    let request = guest.one();
    guest.send(&Packet::new(52, request.from, RST));
    assert!(program.is_closed());
    assert_eq!(program.text(), "");
    assert_eq!(guest.received(), []);
}

#[test]
fn program_that_is_gone_before_the_guest_answers_is_told_as_a_reset() {
    let mut guest = Guest::new();
    let program = guest.outside.call("CONNECT 52\n");
    let request = guest.one();
    program.go();
    let reset = guest.one();
    assert_eq!((reset.from, reset.to, reset.op), (request.from, 52, RST));
    assert!(program.is_closed());
    // The answer comes too late, and the guest is told once more.
    guest.send(&Packet::new(52, request.from, RESPONSE));
    assert_eq!(guest.one().op, RST);
}

#[test]
fn program_that_is_gone_before_the_guest_is_asked_is_not_told() {
    let mut guest = Guest::without_buffers();
    let program = guest.outside.call("CONNECT 52\n");
    guest.run();
    program.go();
    guest.run();
    assert!(program.is_closed());
    guest.give_all();
    assert_eq!(guest.received(), []);
}

#[test]
fn host_is_asked_for_connections_only_when_there_is_one() {
    let mut guest = Guest::new();
    let (program, port) = guest.called(52);
    let accepts = guest.outside.world().accepts;
    // The one, and that there is no other.
    assert_eq!(accepts, 2);
    guest.send(&Packet::new(52, port, RW).with(b"x"));
    program.send(b"y");
    assert_eq!(guest.one().payload, b"y");
    assert_eq!(guest.outside.world().accepts, accepts);
}

#[test]
fn host_that_refuses_is_told_once_each() {
    let mut guest = Guest::new();
    guest.outside.listen(80);
    for _ in 0..2 {
        guest
            .outside
            .world()
            .faults
            .push_back(ErrorKind::PermissionDenied);
        guest.send(&Packet::new(1_000, 80, REQUEST));
        assert_eq!(guest.one().op, RST);
    }
    guest
        .outside
        .world()
        .faults
        .push_back(ErrorKind::OutOfMemory);
    let _program = guest.outside.call("CONNECT 52\n");
    guest.run();
    assert_eq!(guest.one().op, REQUEST);
    let told = [
        (Refusal::Connect, ErrorKind::PermissionDenied),
        (Refusal::Accept, ErrorKind::OutOfMemory),
    ];
    assert_eq!(guest.outside.world().told, told);
}

#[test]
fn guest_that_ends_what_it_sends_still_takes() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, RW).with(b"question"));
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT));
    assert!(program.change(|link| link.writing_ended && !link.closed));
    assert_eq!(program.text(), "question");
    program.send(b"answer");
    assert_eq!(guest.one().payload, b"answer");
    program.go();
    let end = guest.one();
    assert_eq!(
        (end.op, end.flags),
        (SHUTDOWN, NO_MORE_SENT | NO_MORE_TAKEN)
    );
    guest.send(&Packet::new(1_000, 80, RST));
    assert!(program.is_closed());
    assert_eq!(guest.received(), []);
}

#[test]
fn guest_that_ends_what_it_takes_still_sends() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_TAKEN));
    assert!(program.change(|link| link.reading_ended && !link.writing_ended));
    program.send(b"unwanted");
    assert_eq!(guest.received(), []);
    guest.send(&Packet::new(1_000, 80, RW).with(b"more"));
    assert_eq!(program.text(), "more");
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT));
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn program_that_ends_what_it_sends_still_takes() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.send(b"question");
    program.end();
    let packets = guest.received();
    let ops: Vec<_> = packets
        .iter()
        .map(|packet| (packet.op, packet.flags))
        .collect();
    assert_eq!(ops, [(RW, 0), (SHUTDOWN, NO_MORE_SENT)]);
    guest.send(&Packet::new(1_000, 80, RW).with(b"answer"));
    assert_eq!(program.text(), "answer");
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(NO_MORE_SENT | NO_MORE_TAKEN));
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn last_bytes_of_a_program_that_is_gone_arrive() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let bytes = pattern(0, 10_000);
    program.send(&bytes);
    program.go();
    // The guest does not know yet, and is not reset for it.
    guest.send(&Packet::new(1_000, 80, RW).with(b"lost"));
    let mut packets = guest.received();
    let end = packets.pop().expect("an end");
    assert_eq!(
        (end.op, end.flags),
        (SHUTDOWN, NO_MORE_SENT | NO_MORE_TAKEN)
    );
    let arrived: Vec<u8> = packets
        .into_iter()
        .flat_map(|packet| packet.payload)
        .collect();
    assert_eq!(arrived, bytes);
}

#[test]
fn bytes_that_wait_for_a_program_that_is_gone_are_dropped() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 0);
    let all = pattern(0, ROOM_OF_DEVICE as usize);
    guest.send(&Packet::new(1_000, 80, RW).with(&all));
    program.go();
    let end = guest.one();
    assert_eq!((end.op, end.passed), (SHUTDOWN, ROOM_OF_DEVICE));
    // Also when the guest does not wait for that.
    let second = guest.connect(1_001, 80);
    second.change(|link| link.room = 0);
    guest.send(&Packet::new(1_001, 80, RW).with(&all));
    let ends = NO_MORE_SENT | NO_MORE_TAKEN;
    guest.send(&Packet::new(1_001, 80, SHUTDOWN).flags(ends));
    guest.send(&Packet::new(1_001, 80, RST));
    guest.run();
    assert!(!second.is_closed());
    second.go();
    guest.run();
    assert!(second.is_closed());
}

#[test]
fn stream_that_fails_is_a_reset() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.fault = Some(ErrorKind::ConnectionReset));
    program.send(b"");
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn guest_that_leaves_closes_the_stream_once_the_program_has_everything() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 10);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, 25)));
    let ends = NO_MORE_SENT | NO_MORE_TAKEN;
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(ends));
    // It does not wait for the answer, and uses its port anew.
    guest.send(&Packet::new(1_000, 80, RST));
    let second = guest.connect(1_000, 80);
    let mut arrived = Vec::new();
    for _ in 0..2 {
        assert!(!program.is_closed());
        arrived.extend(program.take(10));
        assert_eq!(guest.received(), []);
    }
    assert!(program.is_closed() && !second.is_closed());
    arrived.extend(program.take(10));
    assert_eq!(arrived, pattern(0, 25));
    guest.send(&Packet::new(1_000, 80, RW).with(b"second"));
    assert_eq!(second.text(), "second");
}

#[test]
fn guest_that_closes_is_answered_once_the_program_has_everything() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 10);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, 20)));
    let ends = NO_MORE_SENT | NO_MORE_TAKEN;
    guest.send(&Packet::new(1_000, 80, SHUTDOWN).flags(ends));
    assert_eq!(guest.received(), []);
    assert_eq!(program.take(10), pattern(0, 10));
    assert_eq!(guest.one().op, RST);
    assert_eq!(program.take(10), pattern(10, 10));
    assert!(program.is_closed());
}

#[test]
fn guest_without_reset_that_leaves_closes_at_once() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 10);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, 20)));
    guest.send(&Packet::new(1_000, 80, RST));
    assert!(program.is_closed());
}

#[test]
fn device_counts_connections_packets_bytes_and_failures() {
    let mut guest = Guest::new();
    let counts = guest.counts.clone();
    let tell = || {
        [
            &counts.received.packets,
            &counts.received.bytes,
            &counts.received.failures,
            &counts.sent.packets,
            &counts.sent.bytes,
            &counts.sent.failures,
            &counts.flush_failures,
            &counts.added,
            &counts.removed,
            &counts.refusals,
        ]
        .map(Count::get)
    };
    // A request and an answer; 30 bytes for the guest, and 700 of it in two packets, of which 100 wait.
    let program = guest.connect(1_000, 80);
    program.send(&pattern(0, 30));
    assert_eq!(guest.received().len(), 1);
    program.change(|link| link.room = 600);
    for len in [400, 300] {
        guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, len)));
    }
    assert_eq!(tell(), [2, 30, 0, 3, 600, 0, 0, 1, 0, 0]);
    program.change(|link| link.program_gone = true);
    program.tell(false, true, false);
    guest.run();
    // It is told that the program takes no more, and that it sends no more.
    assert_eq!(guest.received().len(), 2);
    assert_eq!(tell(), [4, 30, 0, 3, 600, 0, 1, 1, 0, 0]);
    guest.send(&Packet::new(1_000, 80, RST));
    assert_eq!(tell(), [4, 30, 0, 4, 600, 0, 1, 1, 1, 0]);
    // One that is gone when the guest sends, one whose stream fails, and one that is there for nobody.
    let program = guest.connect(1_001, 80);
    program.change(|link| link.program_gone = true);
    guest.send(&Packet::new(1_001, 80, RW).with(b"lost"));
    assert_eq!(guest.one().op, SHUTDOWN);
    assert_eq!(tell(), [6, 30, 0, 6, 600, 1, 1, 2, 1, 0]);
    let program = guest.connect(1_002, 80);
    program.change(|link| link.fault = Some(ErrorKind::ConnectionReset));
    program.send(b"");
    assert_eq!(guest.one().op, RST);
    guest.send(&Packet::new(1_003, 81, REQUEST));
    assert_eq!(guest.one().op, RST);
    assert_eq!(tell(), [9, 30, 1, 8, 600, 1, 1, 3, 2, 0]);
    // The host refuses one until there is something to be done again, and packets from nowhere are none.
    guest.outside.world().faults.push_back(ErrorKind::Other);
    guest.outside.call("CONNECT 5\n");
    guest.run();
    guest.send(&Packet {
        source: 7,
        ..Packet::new(1_001, 80, RW)
    });
    assert_eq!(tell(), [10, 30, 1, 8, 600, 1, 1, 4, 2, 1]);
}
