use serde_json::json;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress,
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::super::frame::is_for;
use super::*;
use crate::metrics::Counter;

const IPV4: usize = 14;
const TCP: usize = IPV4 + 20;

fn guest() -> Guest {
    Guest::new(json!({"a": "b"}), MmdsVersion::V1, 1_500)
}

fn ethernet(ethertype: EthernetProtocol, payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 14 + payload];
    EthernetRepr {
        src_addr: MAC,
        dst_addr: EthernetAddress([6, 1, 0x23, 0x45, 0x67, 1]),
        ethertype,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
    frame
}

/// A SYN for the service, as it should be.
fn syn() -> Vec<u8> {
    let segment = TcpRepr {
        src_port: 5_000,
        dst_port: PORT,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(7),
        ack_number: None,
        window_len: 1_000,
        window_scale: None,
        max_seg_size: Some(1_000),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let packet = Ipv4Repr {
        src_addr: GUEST,
        dst_addr: DEFAULT_ADDRESS,
        next_header: IpProtocol::Tcp,
        payload_len: segment.buffer_len(),
        hop_limit: 64,
    };
    let mut frame = ethernet(EthernetProtocol::Ipv4, 20 + segment.buffer_len());
    let all = ChecksumCapabilities::default();
    packet.emit(&mut Ipv4Packet::new_unchecked(&mut frame[IPV4..]), &all);
    segment.emit(
        &mut TcpPacket::new_unchecked(&mut frame[TCP..]),
        &IpAddress::Ipv4(GUEST),
        &IpAddress::Ipv4(DEFAULT_ADDRESS),
        &all,
    );
    frame
}

/// Puts the header's checksum right after a change.
fn fixed(mut frame: Vec<u8>) -> Vec<u8> {
    Ipv4Packet::new_unchecked(&mut frame[IPV4..]).fill_checksum();
    frame
}

fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = syn();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn question() -> Vec<u8> {
    let mut frame = ethernet(EthernetProtocol::Arp, 28);
    ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: MAC,
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: DEFAULT_ADDRESS,
    }
    .emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    BadEthernet,
    Unusual,
    Wrong,
}

/// What becomes of a frame behind this header, by what is counted and answered.
fn fate(header: &[u8; HEADER], frame: &[u8]) -> Fate {
    let mut guest = guest();
    guest.endpoint.take(&[header, frame].concat());
    let answers = guest.answers().len();
    let counters = &guest.counters;
    let counted = [
        &counters.count,
        &counters.bad_eth,
        &counters.accepted_unusual,
        &counters.accepted_err,
    ]
    .map(Counter::get);
    assert_eq!(counters.accepted.get(), 1);
    assert_eq!(answers, usize::from(counted[0] == 1), "{counted:?}");
    match counted {
        [1, 0, 0, 0] => Fate::Answered,
        [0, 1, 0, 0] => Fate::BadEthernet,
        [0, 0, 1, 0] => Fate::Unusual,
        [0, 0, 0, 1] => Fate::Wrong,
        other => panic!("{other:?}"),
    }
}

#[test]
fn frame_that_makes_no_sense_is_dropped_and_counted() {
    let tagged = |tags: &[u8]| {
        let mut frame = syn();
        frame.splice(12..12, tags.iter().copied());
        frame
    };
    let arp = |at: usize, bytes: &[u8]| {
        let mut frame = question();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let len = u8::try_from(syn().len() - IPV4).expect("small");
    let mut padded = syn();
    padded.resize(100, 0xff);
    let mut jumbo = syn();
    jumbo.resize(9_000, 0);
    let plain = [0; HEADER];
    for (what, frame, expected) in [
        ("a SYN", syn(), Fate::Answered),
        ("padding", padded, Fate::Answered),
        ("a question", question(), Fate::Answered),
        // Of Ethernet.
        ("no frame", syn()[..13].to_vec(), Fate::BadEthernet),
        ("from a group", changed(6, &[0x01]), Fate::BadEthernet),
        ("jumbo", jumbo, Fate::Wrong),
        ("VLAN", tagged(&[0x81, 0, 0, 0]), Fate::Unusual),
        (
            "VLANs",
            tagged(&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]),
            Fate::Unusual,
        ),
        // Of IPv4.
        ("short", syn()[..30].to_vec(), Fate::Wrong),
        ("cut", syn()[..TCP + 10].to_vec(), Fate::Wrong),
        ("version", changed(IPV4, &[0x65]), Fate::Wrong),
        (
            "version, checksum right",
            fixed(changed(IPV4, &[0x65])),
            Fate::Wrong,
        ),
        (
            "header of 16 bytes",
            fixed(changed(IPV4, &[0x44])),
            Fate::Wrong,
        ),
        ("options", fixed(changed(IPV4, &[0x46])), Fate::Unusual),
        ("header past the end", changed(IPV4, &[0x4f]), Fate::Wrong),
        (
            "length of the header",
            fixed(changed(IPV4 + 2, &[0, 20])),
            Fate::Wrong,
        ),
        (
            "length less",
            fixed(changed(IPV4 + 2, &[0, 19])),
            Fate::Wrong,
        ),
        (
            "length too much",
            fixed(changed(IPV4 + 2, &[0, len + 1])),
            Fate::Wrong,
        ),
        (
            "header's checksum",
            changed(IPV4 + 10, &[0, 0]),
            Fate::Wrong,
        ),
        (
            "a first fragment",
            fixed(changed(IPV4 + 6, &[0x20, 0])),
            Fate::Unusual,
        ),
        (
            "a last fragment",
            fixed(changed(IPV4 + 6, &[0, 1])),
            Fate::Unusual,
        ),
        ("UDP", fixed(changed(IPV4 + 9, &[17])), Fate::Unusual),
        ("ICMP", fixed(changed(IPV4 + 9, &[1])), Fate::Unusual),
        (
            "from nowhere",
            fixed(changed(IPV4 + 12, &[0; 4])),
            Fate::Unusual,
        ),
        (
            "from everybody",
            fixed(changed(IPV4 + 12, &[255; 4])),
            Fate::Unusual,
        ),
        (
            "from many",
            fixed(changed(IPV4 + 12, &[224, 0, 0, 1])),
            Fate::Unusual,
        ),
        (
            "from the service",
            fixed(changed(IPV4 + 12, &DEFAULT_ADDRESS.octets())),
            Fate::Unusual,
        ),
        (
            "to others, on second thought",
            fixed(changed(IPV4 + 16, &[1, 2, 3, 4])),
            Fate::Unusual,
        ),
        // Of TCP.
        ("checksum", changed(TCP + 16, &[0, 0]), Fate::Wrong),
        ("header of no words", changed(TCP + 12, &[0]), Fate::Wrong),
        (
            "header past the end",
            changed(TCP + 12, &[0xf0]),
            Fate::Wrong,
        ),
        // Of ARP.
        ("an answer", arp(14 + 7, &[2]), Fate::Unusual),
        ("another operation", arp(14 + 7, &[9]), Fate::Unusual),
        ("another protocol", arp(14 + 2, &[0x86, 0xdd]), Fate::Wrong),
        ("another length", arp(14 + 4, &[8]), Fate::Wrong),
        (
            "for somebody else",
            arp(14 + 8, &[2, 2, 2, 2, 2, 2]),
            Fate::Unusual,
        ),
        (
            "by the service",
            arp(14 + 14, &DEFAULT_ADDRESS.octets()),
            Fate::Unusual,
        ),
        ("short question", question()[..41].to_vec(), Fate::Wrong),
    ] {
        assert_eq!(fate(&plain, &frame), expected, "{what}");
    }
}

/// What a driver leaves undone where it may (virtio 1.2, 5.1.6.2): the sum of TCP's header is there but for it.
#[test]
fn checksum_that_is_left_undone_is_done() {
    let undone = changed(TCP + 16, &[0x12, 0x34]);
    let header = |start: u8, offset: u8| [1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0];
    for (start, offset, expected) in [
        (34, 16, Fate::Answered),
        (35, 16, Fate::Wrong),
        (34, 6, Fate::Wrong),
        (255, 255, Fate::Wrong),
    ] {
        assert_eq!(
            fate(&header(start, offset), &undone),
            expected,
            "{start} {offset}"
        );
    }
}

#[test]
fn frame_is_for_the_service_by_its_destination_whatever_its_tags() {
    let with_tags = |frame: Vec<u8>, tags: &[[u8; 4]]| {
        let mut frame = frame;
        frame.splice(12..12, tags.concat());
        frame.truncate(devices::virtio::net::PEEK);
        frame
    };
    let none = [0x81, 0, 0, 0];
    let to_others = fixed(changed(IPV4 + 16, &[169, 254, 169, 253]));
    let from_it = fixed(changed(IPV4 + 12, &DEFAULT_ADDRESS.octets()));
    let mut about_others = question();
    about_others[14 + 24..][..4].copy_from_slice(&[172, 16, 0, 1]);
    let mut ipv6 = syn();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    for (what, frame, is) in [
        ("a packet", with_tags(syn(), &[]), true),
        ("a question", with_tags(question(), &[]), true),
        ("with a tag", with_tags(syn(), &[none]), true),
        (
            "a question with a tag",
            with_tags(question(), &[none]),
            true,
        ),
        (
            "with a tag of either kind",
            with_tags(syn(), &[[0x88, 0xa8, 0, 1], none]),
            true,
        ),
        (
            "with the most tags",
            with_tags(question(), &[none; 8]),
            true,
        ),
        ("with more", with_tags(to_others.clone(), &[none; 9]), true),
        ("to others", with_tags(to_others.clone(), &[]), false),
        (
            "to others with tags",
            with_tags(to_others, &[none; 8]),
            false,
        ),
        ("about others", with_tags(about_others, &[none; 8]), false),
        ("IPv6", with_tags(ipv6, &[]), false),
        (
            "its destination is missing",
            syn()[..IPV4 + 19].to_vec(),
            false,
        ),
        ("from the service", fixed(from_it), true),
        ("nothing", Vec::new(), false),
        ("half a type", syn()[..13].to_vec(), false),
    ] {
        assert_eq!(is_for(DEFAULT_ADDRESS, &frame), is, "{what}");
    }
}

/// Segments for connections that there are not, and half of a handshake without end.
#[test]
fn connections_that_are_never_made_cost_their_places_for_a_while() {
    let mut guest = guest();
    for port in 0..100_u16 {
        let mut frame = changed(TCP, &(1_000 + port).to_be_bytes());
        let (from, to) = (IpAddress::Ipv4(GUEST), IpAddress::Ipv4(DEFAULT_ADDRESS));
        TcpPacket::new_unchecked(&mut frame[TCP..]).fill_checksum(&from, &to);
        guest.send(&frame);
        let answers = guest.answers();
        let flags = answers.last().expect("an answer")[TCP + 13];
        // SYN and ACK as long as there are places, then RST and ACK.
        let expected = if usize::from(port) < CONNECTIONS {
            0x12
        } else {
            0x14
        };
        assert_eq!(flags, expected, "{port}");
    }
    assert_eq!(guest.counters.created.get(), CONNECTIONS as u64);
    guest.wait(PATIENCE);
    assert_eq!(guest.counters.destroyed.get(), CONNECTIONS as u64);
    let connection = guest.connect();
    guest.say(connection, "GET /a HTTP/1.1\r\n\r\n");
    assert!(guest.hear(connection).ends_with("\r\n\r\nb"));
}

#[test]
fn handshake_that_is_reset_leaves_nothing() {
    let mut guest = guest();
    guest.send(&syn());
    let answer = guest.answers().remove(0);
    let mut reset = changed(TCP + 4, &8_u32.to_be_bytes());
    // Acknowledging the answer, with RST and ACK.
    let next = u32::from_be_bytes(answer[TCP + 4..][..4].try_into().expect("four")) + 1;
    reset[TCP + 8..][..4].copy_from_slice(&next.to_be_bytes());
    reset[TCP + 13] = 0x14;
    let (from, to) = (IpAddress::Ipv4(GUEST), IpAddress::Ipv4(DEFAULT_ADDRESS));
    TcpPacket::new_unchecked(&mut reset[TCP..]).fill_checksum(&from, &to);
    guest.send(&reset);
    assert!(guest.answers().is_empty());
    assert_eq!(guest.endpoint.wait(), None);
    let counters = &guest.counters;
    assert_eq!((counters.created.get(), counters.destroyed.get()), (1, 1));
}

/// Connections that were idle for too long are all reset, also when there is no room to say so at once.
#[test]
fn reset_waits_for_room() {
    let mut guest = guest();
    for _ in 0..CONNECTIONS {
        guest.connect();
    }
    for _ in 0..20 {
        guest.send(&question());
    }
    set_clock(clock().get() + PATIENCE.get());
    let answers = guest.answers();
    let is_reset = |answer: &&Vec<u8>| answer[12..14] == [8, 0] && answer[TCP + 13] & 4 != 0;
    assert_eq!(answers.iter().filter(is_reset).count(), CONNECTIONS);
    assert_eq!(guest.endpoint.wait(), None);
}
