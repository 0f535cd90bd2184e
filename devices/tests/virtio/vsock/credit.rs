//! Credit: who sends how much, how many there may be, and whose turn it is.

use devices::virtio::vsock::MAX_CONNECTIONS;

use super::*;

#[test]
fn guest_gets_no_more_than_it_has_credit_for() {
    let mut guest = Guest::new();
    guest.outside.listen(80);
    guest.send(&Packet::new(1_000, 80, REQUEST).credit(100, 0));
    assert_eq!(guest.one().op, RESPONSE);
    let program = guest.outside.connected().expect("connected").1;
    program.send(&pattern(0, 250));
    let packets = guest.received();
    let ops: Vec<_> = packets.iter().map(|packet| packet.op).collect();
    // It is asked once.
    assert_eq!(ops, [RW, CREDIT_REQUEST]);
    assert_eq!(packets[0].payload, pattern(0, 100));
    program.send(b"");
    assert_eq!(guest.received(), []);
    // 30 were taken, 60 were, and then all of them.
    for (passed, from, len) in [(30, 100, 30), (60, 130, 30), (160, 160, 90)] {
        guest.send(&Packet::new(1_000, 80, CREDIT_UPDATE).credit(100, passed));
        let packets = guest.received();
        assert_eq!(packets[0].payload, pattern(from, len));
        let is_asked = packets.get(1).map(|packet| packet.op);
        assert_eq!(is_asked, (len < 90).then_some(CREDIT_REQUEST));
    }
}

#[test]
fn guest_that_contradicts_itself_about_credit_stalls_itself_alone() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let other = guest.connect(1_001, 80);
    // It passed on what was never sent to it, has less room than it holds, and has none.
    for (room, passed, gets) in [
        (u32::MAX, 1 << 31, true),
        (0, 0, false),
        (0, u32::MAX, false),
    ] {
        guest.send(&Packet::new(1_000, 80, CREDIT_UPDATE).credit(room, passed));
        program.send(b"a");
        other.send(b"b");
        let packets = guest.received();
        let came = |bytes: &[u8]| packets.iter().any(|packet| packet.payload == bytes);
        assert!(came(b"b") && came(b"a") == gets, "{packets:?}");
    }
    assert!(guest.is_well());
}

#[test]
fn guest_hears_of_room_before_it_has_none() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let (mut sent, mut passed, mut updates) = (0, 0, 0);
    while sent < 1 << 20 {
        let piece = pattern(sent, 4_096);
        guest.send(&Packet::new(1_000, 80, RW).with(&piece));
        sent += piece.len();
        assert_eq!(program.take(usize::MAX), piece);
        for packet in guest.received() {
            assert_eq!((packet.op, packet.room), (CREDIT_UPDATE, ROOM_OF_DEVICE));
            passed = packet.passed as usize;
            updates += 1;
        }
        assert!(
            sent - passed <= ROOM_OF_DEVICE as usize / 2,
            "{sent} {passed}"
        );
    }
    // One for 36 KiB: the first piece with which it knows of less than 32 KiB is the ninth. 256 / 9 = 28.4.
    assert_eq!(updates, 28);
}

#[test]
fn slow_program_stalls_its_own_connection() {
    let mut guest = Guest::new();
    let slow = guest.connect(1_000, 80);
    let other = guest.connect(1_001, 80);
    slow.change(|link| link.room = 1_000);
    // As much as it is allowed to: what the program took, and what the device keeps.
    let (mut sent, mut free) = (0, ROOM_OF_DEVICE as usize);
    while free > 0 {
        let piece = pattern(sent, free.min(4_000));
        guest.send(&Packet::new(1_000, 80, RW).with(&piece));
        sent += piece.len();
        free -= piece.len();
        for packet in guest.received() {
            assert_eq!(packet.op, CREDIT_UPDATE);
            free = (ROOM_OF_DEVICE + packet.passed) as usize - sent;
        }
    }
    guest.send(&Packet::new(1_001, 80, RW).with(b"swift"));
    assert_eq!(other.text(), "swift");
    assert_eq!(guest.received(), []);
    guest.send(&Packet::new(1_000, 80, CREDIT_REQUEST));
    let update = guest.one();
    assert_eq!((update.op, update.passed), (CREDIT_UPDATE, 1_000));
    let mut arrived = Vec::new();
    loop {
        let piece = slow.take(700);
        if piece.is_empty() {
            break;
        }
        arrived.extend(piece);
        guest.run();
    }
    assert_eq!(arrived, pattern(0, sent));
    let told = guest.received().pop().expect("told of room");
    assert_eq!(told.op, CREDIT_UPDATE);
    let free = (ROOM_OF_DEVICE + told.passed) as usize - sent;
    assert!(free >= ROOM_OF_DEVICE as usize / 2, "{free}");
}

#[test]
fn guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    program.change(|link| link.room = 0);
    guest.send(&Packet::new(1_000, 80, RW).with(&pattern(0, ROOM_OF_DEVICE as usize)));
    assert_eq!(guest.received(), []);
    guest.send(&Packet::new(1_000, 80, RW).with(b"1"));
    assert_eq!(guest.one().op, RST);
    assert!(program.is_closed());
}

#[test]
fn thousand_connections_each_way_speak_at_once() {
    for by_guest in [true, false] {
        let mut guest = Guest::new();
        let programs: Vec<_> = (0..1_000)
            .map(|port| match by_guest {
                true => (guest.connect(port, 80), 80),
                false => guest.called(port),
            })
            .collect();
        for (number, (program, _)) in programs.iter().enumerate() {
            program.send(&pattern(number, 5_000));
        }
        let mut arrived = vec![Vec::new(); programs.len()];
        for packet in guest.received() {
            assert_eq!(packet.op, RW);
            arrived[packet.to as usize].extend(packet.payload);
        }
        for (number, arrived) in arrived.iter().enumerate() {
            assert_eq!(*arrived, pattern(number, 5_000), "{number}");
        }
        for (number, (program, port)) in programs.iter().enumerate() {
            let bytes = pattern(number, 100);
            guest.send(&Packet::new(number as u32, *port, RW).with(&bytes));
            assert_eq!(program.take(200), bytes);
        }
    }
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new();
    let programs: Vec<_> = (0..20).map(|port| guest.connect(port, 80)).collect();
    for program in &programs {
        program.send(&pattern(0, 10_000));
    }
    let to: Vec<_> = guest.received().iter().map(|packet| packet.to).collect();
    // 10,000 bytes are three packets.
    let turn = 0..20;
    let expected: Vec<_> = turn.clone().chain(turn.clone()).chain(turn).collect();
    assert_eq!(to, expected);
}

#[test]
fn connections_have_a_limit_and_make_room_for_others() {
    let mut guest = Guest::new();
    let programs: Vec<_> = (0..MAX_CONNECTIONS as u32)
        .map(|port| guest.connect(port, 80))
        .collect();
    guest.send(&Packet::new(5_000, 80, REQUEST));
    assert_eq!(guest.one().op, RST);
    assert!(guest.outside.connected().is_none());
    let program = guest.outside.call("CONNECT 52\n");
    assert_eq!(guest.received(), []);
    assert!(program.is_closed());
    guest.send(&Packet::new(7, 80, RST));
    assert!(programs[7].is_closed());
    guest.connect(5_000, 80);
}
