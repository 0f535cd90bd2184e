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
    // One for 132 KiB: the first piece with which it knows of less than 128 KiB is the 33rd. 256 / 33 = 7.8.
    assert_eq!(updates, 7);
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
                true => (guest.connect_for_room(port, 80).0, 80),
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
    // 10,000 bytes are three packets: one, and then those that are left, of which a turn may have two.
    let expected: Vec<_> = (0..20)
        .chain((0..20).flat_map(|port| [port, port]))
        .collect();
    assert_eq!(to, expected);
}

/// The bytes of a packet that fills a buffer.
const PACKET: usize = BUFFER as usize - HEADER;

fn bytes_of(packets: &[Packet]) -> Vec<u8> {
    let bytes = packets.iter().map(|packet| &packet.payload[..]);
    bytes.collect::<Vec<_>>().concat()
}

#[test]
fn program_that_fills_buffers_gets_more_of_them_at_once() {
    let mut guest = Guest::new();
    let program = guest.connect(1_000, 80);
    let sent = pattern(0, 40 * PACKET + 100);
    program.send(&sent);
    let packets = guest.received();
    assert!(packets.iter().all(|packet| packet.op == RW));
    let lens: Vec<_> = packets.iter().map(|packet| packet.payload.len()).collect();
    assert_eq!(lens, [vec![PACKET; 40], vec![100]].concat());
    assert_eq!(bytes_of(&packets), sent);
    assert_eq!(guest.counts.received.packets.get(), 1 + 41);
    // The guest has 16 buffers, and gives them back when it has seen what is in them. The last read has seven too many,
    // which stay the guest's.
    let reads = |program: &Program| program.change(|link| std::mem::take(&mut link.reads));
    assert_eq!(reads(&program), [1, 2, 4, 8, 1, 16, 16]);
    // So many as were needed last, and then as many as there are.
    for (bytes, pieces) in [(11 * PACKET, vec![9, 7]), (1, vec![2]), (2, vec![1])] {
        program.send(&pattern(7, bytes));
        assert_eq!(bytes_of(&guest.received()), pattern(7, bytes));
        assert_eq!(reads(&program), pieces, "{bytes}");
    }
    // No more than the guest has credit for.
    program.send(&sent);
    guest.received();
    reads(&program);
    let already = sent.len() * 2 + 11 * PACKET + 3;
    let credit = (2 * PACKET + 1) as u32;
    guest.send(&Packet::new(1_000, 80, CREDIT_UPDATE).credit(credit, already as u32));
    program.send(&sent);
    let packets = guest.received();
    let ops: Vec<_> = packets.iter().map(|packet| packet.op).collect();
    assert_eq!(ops, [RW, RW, RW, CREDIT_REQUEST]);
    assert_eq!(bytes_of(&packets), sent[..2 * PACKET + 1]);
}

#[test]
fn program_that_fills_buffers_gets_no_more_than_there_are() {
    let mut guest = Guest::without_buffers();
    guest.give(0);
    let program = guest.connect(1_000, 80);
    // The guest has three buffers, and gives back what it has seen.
    guest.give(1);
    guest.give(2);
    let sent = pattern(0, 20 * PACKET);
    program.send(&sent);
    assert_eq!(bytes_of(&guest.received()), sent);
    let reads = program.change(|link| link.reads.clone());
    assert!(
        reads.iter().all(|pieces| (1..=3).contains(pieces)),
        "{reads:?}"
    );
    assert!(reads.contains(&3), "{reads:?}");
}

#[test]
fn connections_have_a_limit_and_make_room_for_others() {
    let mut guest = Guest::new();
    let (programs, rooms): (Vec<_>, Vec<_>) = (0..MAX_CONNECTIONS as u32)
        .map(|port| guest.connect_for_room(port, 80))
        .unzip();
    let (first, others) = rooms.split_at(64);
    assert!(first.iter().all(|room| *room == ROOM_OF_DEVICE));
    assert!(others.iter().all(|room| *room == ROOM_AMONG_MANY));
    guest.send(&Packet::new(5_000, 80, REQUEST));
    assert_eq!(guest.one().op, RST);
    assert!(guest.outside.connected().is_none());
    let program = guest.outside.call("CONNECT 52\n");
    assert_eq!(guest.received(), []);
    assert!(program.is_closed());
    guest.send(&Packet::new(7, 80, RST));
    assert!(programs[7].is_closed());
    assert_eq!(guest.connect_for_room(5_000, 80).1, ROOM_AMONG_MANY);
    for port in 0..1_000 {
        guest.send(&Packet::new(port, 80, RST));
    }
    guest.connect(5_001, 80);
}
