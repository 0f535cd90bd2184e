//! Between a guest's card and the TCP stack: packets without and frames with Ethernet's addresses.
//!
//! The stack sees bare IPv4 packets. What it sends goes back to the Ethernet address that the packet's receiver has
//! sent from: a guest that has the service behind its router gets its answers like one that has it next door, and
//! nothing here ever has to ask for an address.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;

use devices::virtio::net::HEADER;
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr,
};

use super::counters::MmdsCounters;
use super::frame::{self, ADDRESS, Accepted, Refused};
use super::{MAX_PACKET, MTU};

const ETHERNET: usize = 14;
/// The longest frame from the guest, and the longest for it.
const MAX_ARRIVING: usize = HEADER + ETHERNET + MAX_PACKET;
const MAX_LEAVING: usize = HEADER + ETHERNET + MTU;

/// Frames that can wait for the guest.
const LEAVING: usize = 32;

/// Neighbours whose Ethernet addresses are kept. A guest has one, unless it has guests or bridges itself.
const NEIGHBOURS: usize = 32;

/// Frames for the guest, in a ring, and one more place for what finds no room.
struct Leaving {
    frames: Box<[u8]>,
    lens: [usize; LEAVING],
    first: usize,
    count: usize,
}

impl Leaving {
    fn place(&mut self, index: usize) -> Option<&mut [u8]> {
        self.frames.chunks_exact_mut(MAX_LEAVING).nth(index)
    }

    fn is_full(&self) -> bool {
        self.count == LEAVING
    }

    /// A frame with `len` bytes behind its addresses, that `fill` writes, and whether there was room for it. What
    /// `fill` returns is needed all the same.
    fn push<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> (R, bool) {
        let is_full = self.is_full();
        let index = match is_full {
            true => LEAVING,
            false => (self.first + self.count) % LEAVING,
        };
        let end = HEADER + ETHERNET + len;
        let place = self.place(index).and_then(|place| place.get_mut(..end));
        let Some((header, frame)) = place.and_then(|place| place.split_at_mut_checked(HEADER))
        else {
            // Not reached: the stack was told how long a packet may be.
            return (fill(&mut vec![0; ETHERNET + len]), false);
        };
        header.fill(0);
        let filled = fill(frame);
        if let Some(len) = self.lens.get_mut(index)
            && !is_full
        {
            *len = end;
            self.count += 1;
        }
        (filled, !is_full)
    }

    fn pop(&mut self, into: &mut [u8]) -> Option<usize> {
        if self.count == 0 {
            return None;
        }
        let (index, len) = (self.first, *self.lens.get(self.first)?);
        self.first = (self.first + 1) % LEAVING;
        self.count -= 1;
        let frame = self.place(index)?.get(..len)?;
        into.get_mut(..len)?.copy_from_slice(frame);
        Some(len)
    }
}

/// The Ethernet addresses that packets came from.
#[derive(Default)]
struct Neighbours {
    known: [Option<(Ipv4Addr, EthernetAddress)>; NEIGHBOURS],
    /// Who makes room next.
    next: usize,
}

impl Neighbours {
    fn note(&mut self, protocol: Ipv4Addr, hardware: EthernetAddress) {
        let same = |entry: &&mut Option<_>| entry.is_some_and(|(known, _)| known == protocol);
        let entry = Some((protocol, hardware));
        if let Some(known) = self.known.iter_mut().find(same) {
            *known = entry;
        } else if let Some(place) = self.known.get_mut(self.next) {
            *place = entry;
            self.next = (self.next + 1) % NEIGHBOURS;
        }
    }

    fn find(&self, protocol: Ipv4Addr) -> Option<EthernetAddress> {
        let known = self.known.iter().flatten();
        let mut known = known.filter(|(known, _)| *known == protocol);
        known.next().map(|(_, hardware)| *hardware)
    }
}

/// The wire.
pub(super) struct Wire {
    address: Ipv4Addr,
    arriving: Box<[u8]>,
    /// How long the frame is that arrives.
    len: usize,
    /// Where in it the packet is that the stack is to take.
    packet: Option<Range<usize>>,
    leaving: Leaving,
    neighbours: Neighbours,
    counters: Arc<MmdsCounters>,
}

impl Wire {
    pub(super) fn new(address: Ipv4Addr, counters: Arc<MmdsCounters>) -> Self {
        Self {
            address,
            arriving: vec![0; MAX_ARRIVING].into_boxed_slice(),
            len: 0,
            packet: None,
            leaving: Leaving {
                frames: vec![0; (LEAVING + 1) * MAX_LEAVING].into_boxed_slice(),
                lens: [0; LEAVING],
                first: 0,
                count: 0,
            },
            neighbours: Neighbours::default(),
            counters,
        }
    }

    /// Room for a frame of the guest's.
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.counters.accepted.add(1);
        let room = self.arriving.get_mut(..len);
        match room {
            Some(_) => self.len = len,
            None => self.counters.accepted_err.add(1),
        }
        room
    }

    /// Judges the frame that arrived: a question is answered, and whether there is a packet for the stack is told.
    pub(super) fn arrived(&mut self) -> bool {
        let len = std::mem::take(&mut self.len);
        let frame = self.arriving.get_mut(..len).unwrap_or_default();
        match frame::judge(self.address, frame) {
            Ok(Accepted::Question { hardware, protocol }) => {
                self.counters.count.add(1);
                self.answer(hardware, protocol);
            }
            Ok(Accepted::Packet {
                hardware,
                source,
                place,
            }) => {
                self.counters.count.add(1);
                self.neighbours.note(source, hardware);
                self.packet = Some(place);
            }
            Err(Refused::Ethernet) => self.counters.bad_eth.add(1),
            Err(Refused::Unusual) => self.counters.accepted_unusual.add(1),
            Err(Refused::Wrong) => self.counters.accepted_err.add(1),
        }
        self.packet.is_some()
    }

    /// Answers a question for the service's Ethernet address.
    fn answer(&mut self, hardware: EthernetAddress, protocol: Ipv4Addr) {
        let answer = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: ADDRESS,
            source_protocol_addr: self.address,
            target_hardware_addr: hardware,
            target_protocol_addr: protocol,
        };
        let ((), sent) = self.leaving.push(answer.buffer_len(), |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            frame_to(hardware, EthernetProtocol::Arp).emit(&mut frame);
            answer.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
        sent_or_lost(&self.counters, sent);
    }

    /// Whether nothing can leave before the guest takes something.
    pub(super) fn is_full(&self) -> bool {
        self.leaving.is_full()
    }

    /// The next frame for the guest.
    pub(super) fn give(&mut self, into: &mut [u8]) -> Option<usize> {
        let len = self.leaving.pop(into)?;
        self.counters.tx_count.add(1);
        self.counters.tx_bytes.add((len - HEADER) as u64);
        Some(len)
    }
}

fn sent_or_lost(counters: &MmdsCounters, sent: bool) {
    match sent {
        true => counters.tx_frames.add(1),
        false => counters.tx_errors.add(1),
    }
}

fn frame_to(receiver: EthernetAddress, ethertype: EthernetProtocol) -> EthernetRepr {
    EthernetRepr {
        src_addr: ADDRESS,
        dst_addr: receiver,
        ethertype,
    }
}

pub(super) struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

pub(super) struct Room<'a> {
    leaving: &'a mut Leaving,
    neighbours: &'a Neighbours,
    counters: &'a MmdsCounters,
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let (filled, sent) = self.leaving.push(len, |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            let filled = fill(frame.payload_mut());
            // OK because the stack speaks to nobody but who has spoken to it (RFC 791: the receiver).
            let receiver = match frame.payload_mut().get(16..20) {
                Some(&[a, b, c, d]) => self.neighbours.find(Ipv4Addr::new(a, b, c, d)),
                _ => None,
            };
            let receiver = receiver.unwrap_or(EthernetAddress::BROADCAST);
            frame_to(receiver, EthernetProtocol::Ipv4).emit(&mut frame);
            filled
        });
        sent_or_lost(self.counters, sent);
        filled
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrived<'a>;
    type TxToken<'a> = Room<'a>;

    /// Also where there is no room for an answer: what arrives may be what makes some. Such an answer is lost.
    fn receive(&mut self, _: Instant) -> Option<(Arrived<'_>, Room<'_>)> {
        let packet = self.packet.take()?;
        let arrived = Arrived(self.arriving.get(packet)?);
        let room = Room {
            leaving: &mut self.leaving,
            neighbours: &self.neighbours,
            counters: &self.counters,
        };
        Some((arrived, room))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        if self.leaving.is_full() {
            return None;
        }
        Some(Room {
            leaving: &mut self.leaving,
            neighbours: &self.neighbours,
            counters: &self.counters,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        // Those of what arrives were checked, or computed, when it was judged.
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = checksum;
        capabilities
    }
}
