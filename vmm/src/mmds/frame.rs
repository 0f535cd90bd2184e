//! Which frames are the service's, and which of these make sense.

use std::net::Ipv4Addr;
use std::ops::Range;

use devices::virtio::net::{HEADER, MAX_TAGS};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress,
    IpProtocol, Ipv4Packet, TcpPacket,
};

/// The service's Ethernet address, Firecracker's: locally administered (IEEE 802).
pub(super) const ADDRESS: EthernetAddress = EthernetAddress([0x06, 0x01, 0x23, 0x45, 0x67, 0x01]);

const ETHERNET: usize = 14;
const IPV4: usize = 20;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` (virtio 1.2, 5.1.6): the checksum is left to whoever puts the frame on a wire, from
/// `csum_start` on, `csum_offset` bytes behind it.
const NEEDS_CHECKSUM: u8 = 1;
/// Where that must be in a frame that is served: TCP's header, and its checksum (RFC 9293, section 3.1).
const CHECKSUM_START: u16 = 34;
const CHECKSUM_OFFSET: u16 = 16;

/// Whether a frame that begins so is for `address`, however it is tagged: an ARP packet that asks for it, or an IPv4
/// packet to it. The host's kernel takes tags with the VLAN 0 off and goes on, so a tag would lead past the service.
pub(super) fn is_for(address: Ipv4Addr, beginning: &[u8]) -> bool {
    let bytes = |at: usize, len| at.checked_add(len).and_then(|end| beginning.get(at..end));
    let mut at = ETHERNET - 2;
    for _ in 0..=MAX_TAGS {
        let destination = match bytes(at, 2) {
            // IEEE 802.1Q: C-tags and S-tags; and what S-tags had before they had a number.
            Some([0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]) => {
                at += 4;
                continue;
            }
            // RFC 826; the same place whatever the hardware is said to be.
            Some([0x08, 0x06]) => bytes(at + 2 + 24, 4),
            // RFC 791.
            Some([0x08, 0x00]) => bytes(at + 2 + 16, 4),
            _ => return false,
        };
        return destination == Some(&address.octets());
    }
    // More tags than any network has: what is behind them is not looked for, nor let through.
    true
}

/// A frame that makes sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    /// A neighbour asks for the service's Ethernet address.
    Question {
        hardware: EthernetAddress,
        protocol: Ipv4Addr,
    },
    /// A TCP segment in an IPv4 packet, which is here in the frame.
    Packet {
        hardware: EthernetAddress,
        source: Ipv4Addr,
        place: Range<usize>,
    },
}

/// A frame that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is no Ethernet frame.
    Ethernet,
    /// It is lawful, but nothing of what is served needs such a frame.
    Unusual,
    /// Its lengths or checksums are wrong.
    Wrong,
}

fn is_unicast(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast()
}

/// Judges a frame for `address`, with its virtio header, and computes the checksum that its sender left undone.
pub(super) fn judge(address: Ipv4Addr, frame: &mut [u8]) -> Result<Accepted, Refused> {
    let (header, frame) = frame
        .split_at_mut_checked(HEADER)
        .ok_or(Refused::Ethernet)?;
    let ethernet = EthernetFrame::new_checked(&frame[..]).map_err(|_| Refused::Ethernet)?;
    let hardware = ethernet.src_addr();
    if !hardware.is_unicast() {
        return Err(Refused::Ethernet);
    }
    match ethernet.ethertype() {
        EthernetProtocol::Arp => question(address, hardware, ethernet.payload()),
        EthernetProtocol::Ipv4 => {
            let packet = frame.get_mut(ETHERNET..).ok_or(Refused::Ethernet)?;
            let (source, len) = segment(address, header, packet)?;
            Ok(Accepted::Packet {
                hardware,
                source,
                place: HEADER + ETHERNET..HEADER + ETHERNET + len,
            })
        }
        _ => Err(Refused::Unusual),
    }
}

fn question(
    address: Ipv4Addr,
    hardware: EthernetAddress,
    packet: &[u8],
) -> Result<Accepted, Refused> {
    let packet = ArpPacket::new_checked(packet).map_err(|_| Refused::Wrong)?;
    match ArpRepr::parse(&packet).map_err(|_| Refused::Wrong)? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr: protocol,
            target_protocol_addr,
            ..
        } if source_hardware_addr == hardware
            && target_protocol_addr == address
            && protocol != address =>
        {
            Ok(Accepted::Question { hardware, protocol })
        }
        // Nothing here asks, so nothing is to be answered.
        _ => Err(Refused::Unusual),
    }
}

/// Judges an IPv4 packet; gives who sent it, and how long it is without what Ethernet pads it with.
fn segment(
    address: Ipv4Addr,
    header: &[u8],
    bytes: &mut [u8],
) -> Result<(Ipv4Addr, usize), Refused> {
    let packet = Ipv4Packet::new_checked(&bytes[..]).map_err(|_| Refused::Wrong)?;
    if packet.version() != 4 || !packet.verify_checksum() {
        return Err(Refused::Wrong);
    }
    let (source, len) = (packet.src_addr(), usize::from(packet.total_len()));
    if usize::from(packet.header_len()) != IPV4
        || packet.more_frags()
        || packet.frag_offset() != 0
        || packet.next_header() != IpProtocol::Tcp
        || packet.dst_addr() != address
        || source == address
        || !is_unicast(source)
    {
        return Err(Refused::Unusual);
    }
    let (from, to) = (IpAddress::Ipv4(source), IpAddress::Ipv4(address));
    let segment = bytes.get_mut(IPV4..len).ok_or(Refused::Wrong)?;
    let mut segment = TcpPacket::new_checked(segment).map_err(|_| Refused::Wrong)?;
    let number = |at: usize| match header.get(at..at + 2) {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        _ => 0,
    };
    if header
        .first()
        .is_some_and(|flags| flags & NEEDS_CHECKSUM != 0)
    {
        if (number(6), number(8)) != (CHECKSUM_START, CHECKSUM_OFFSET) {
            return Err(Refused::Wrong);
        }
        segment.fill_checksum(&from, &to);
    } else if !TcpPacket::new_unchecked(&*segment.into_inner()).verify_checksum(&from, &to) {
        return Err(Refused::Wrong);
    }
    Ok((source, len))
}
