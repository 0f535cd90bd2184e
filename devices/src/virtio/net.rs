//! A network card (5.1) with one pair of queues, on whatever carries Ethernet frames for it: a [`Link`].
//!
//! # Frames
//!
//! Each frame has a `struct virtio_net_hdr_v1` before it, on both queues and on the link, so that what the one
//! side left undone (a checksum, the cutting of a large segment) the other one does. The device passes headers on:
//! a guest's goes to the host's kernel, which checks it like any other program's, and only the number of buffers
//! in a received one is the device's own.
//!
//! A received frame is read before there is a buffer for it, since its length decides how many it needs; a frame
//! that a driver's buffers have no room for is dropped, as by a card. What goes to the host is taken from the
//! guest's memory where it is.
//!
//! What the link refuses is dropped, too, and told once for each kind of failure: a network loses frames, and its
//! users know how to live with that.
//!
//! # Frames that never reach the link
//!
//! A card may have a [`Detour`]: somebody on the host who answers some of the guest's frames, as the metadata
//! service does. It is shown the beginning of each frame and takes what is for it. Neither its frames nor its
//! answers count against the card's rates. It is no firewall: a guest that writes to a frame while it is looked at
//! can have any frame on the link.

mod counts;

use std::fmt;
use std::io;
use std::sync::Arc;

use tsc::Nanos;
use virtio_bindings::virtio_net as net;

use super::{Buffers, Chain, ConfigSpace, Device, Kind, Served, Violation};
use crate::rate_limiter::{Bucket, RateLimiter};

pub use counts::{Counts, Direction};

/// The length of the header before each frame: `struct virtio_net_hdr_v1` (5.1.6).
pub const HEADER: usize = 12;

/// The longest frame with its header: an IP packet of 65,535 bytes in an Ethernet frame with a VLAN tag.
pub const MAX_FRAME: usize = HEADER + 14 + 4 + 65_535;

/// The shortest Ethernet frame: two addresses and a type (IEEE 802.3, without padding and checksum).
const MIN_FRAME: usize = HEADER + 14;

/// Where a received frame's header has the number of buffers that it is spread over.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// How many frames in a row a link may fail to give before it is left alone until it tells of more.
const RETRIES: u32 = 16;

const RECEIVE: usize = 0;

const CHECKSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
const GUEST_CHECKSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
const MTU: u64 = 1 << net::VIRTIO_NET_F_MTU;
const MAC: u64 = 1 << net::VIRTIO_NET_F_MAC;
const GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
const GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
const GUEST_ECN: u64 = 1 << net::VIRTIO_NET_F_GUEST_ECN;
const HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
const HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
const HOST_ECN: u64 = 1 << net::VIRTIO_NET_F_HOST_ECN;
const MERGEABLE: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a driver takes of a frame that is not finished (5.1.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that are still to be computed.
    pub checksum: bool,
    /// TCP segments over IPv4 that are larger than the link allows,
    pub tso4: bool,
    /// the same over IPv6,
    pub tso6: bool,
    /// and these with congestion told in them.
    pub ecn: bool,
}

/// What carries frames, each with its header.
pub trait Link: Send {
    /// What may be left undone in frames that [`Self::receive`] gives, from now on.
    ///
    /// # Errors
    /// The host's.
    fn offload(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Sends one frame. It must not wait: a frame that cannot be sent is lost.
    ///
    /// # Errors
    /// The host's: [`WouldBlock`](io::ErrorKind::WouldBlock) where there is no room for it now.
    fn send(&mut self, frame: &Buffers<'_>) -> io::Result<()>;

    /// Puts the next frame into `into` and says how long it is; `None` when there is none.
    ///
    /// # Errors
    /// The host's.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>>;
}

/// The most VLAN tags (IEEE 802.1Q) that a [`Detour`] is to look behind.
pub const MAX_TAGS: usize = 8;

/// How much of a frame a [`Detour`] is shown: two addresses, tags, a type, and an ARP packet for IPv4, which is
/// longer than an IPv4 header.
pub const PEEK: usize = 14 + 4 * MAX_TAGS + 28;

/// Who answers some of a guest's frames instead of the link.
pub trait Detour: Send {
    /// Whether a frame is for it that begins with these bytes, after its header: [`PEEK`] of them, or all.
    fn wants(&self, beginning: &[u8]) -> bool;

    /// Room for a frame of `len` bytes with its header; `None` when it does not take one of that length, which is
    /// then lost.
    fn room(&mut self, len: usize) -> Option<&mut [u8]>;

    /// A frame is in the room that it gave last.
    fn arrived(&mut self);

    /// Puts its next frame for the guest, with its header, into `into`, which has room for [`MAX_FRAME`], and says
    /// how long it is; `None` when there is none.
    fn give(&mut self, into: &mut [u8]) -> Option<usize>;

    /// After which time it may have one although nothing arrived; more than none.
    fn wait(&mut self) -> Option<Nanos>;
}

/// What was done when the link refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sending a frame.
    Send,
    /// Receiving one.
    Receive,
    /// Agreeing on what may be left undone.
    Offload,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send a frame",
            Self::Receive => "receive a frame",
            Self::Offload => "set which offloads the guest takes",
        })
    }
}

/// Told of the first failure of each kind of operation.
pub type Report = Box<dyn FnMut(Operation, &io::Error) + Send>;

/// What a guest is told of its card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its address; without one the driver makes one up.
    pub mac: Option<MacAddress>,
    /// The longest packet that its network carries.
    pub mtu: Option<u16>,
}

/// The device.
pub struct Net {
    link: Box<dyn Link>,
    identity: Identity,
    receive: RateLimiter,
    transmit: RateLimiter,
    counts: Arc<Counts>,
    report: Report,
    /// The operations whose failures are told already, as bits.
    told: u8,
    /// A frame that was received and waits for buffers.
    frame: Box<[u8]>,
    /// How long it is, with its header.
    waiting: Option<usize>,
    /// The link had no more the last time, and has told of nothing since.
    is_dry: bool,
    /// One buffer need not hold a whole frame.
    mergeable: bool,
    detour: Option<Box<dyn Detour>>,
    /// The frame that waits is the detour's.
    is_detours: bool,
    /// The detour got a frame in this round, and may have an answer.
    detoured: bool,
}

/// What of it can be changed.
#[derive(Debug, Default)]
pub struct Update {
    /// Another limit on the bytes received, or none.
    pub receive_bandwidth: Option<Option<Bucket>>,
    /// Another limit on the frames received, or none.
    pub receive_operations: Option<Option<Bucket>>,
    /// Another limit on the bytes sent, or none.
    pub transmit_bandwidth: Option<Option<Bucket>>,
    /// Another limit on the frames sent, or none.
    pub transmit_operations: Option<Option<Bucket>>,
}

impl Net {
    /// A card on `link`, as fast in each direction as its limiter allows.
    #[must_use]
    pub fn new(
        link: Box<dyn Link>,
        identity: Identity,
        receive: RateLimiter,
        transmit: RateLimiter,
        report: Report,
    ) -> Self {
        Self {
            link,
            identity,
            receive,
            transmit,
            counts: Arc::default(),
            report,
            told: 0,
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            waiting: None,
            is_dry: false,
            mergeable: false,
            detour: None,
            is_detours: false,
            detoured: false,
        }
    }

    /// The same with somebody who takes some of the guest's frames.
    #[must_use]
    pub fn with_detour(mut self, detour: Box<dyn Detour>) -> Self {
        self.detour = Some(detour);
        self
    }

    /// What it counts, now and later.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    fn failed(&mut self, operation: Operation, error: &io::Error) {
        let bit = 1 << operation as u8;
        if self.told & bit == 0 {
            self.told |= bit;
            (self.report)(operation, error);
        }
    }

    /// The length of the frame that waits, which is taken from the detour or the link if there is none.
    fn waiting(&mut self) -> Option<usize> {
        if self.waiting.is_some() {
            return self.waiting;
        }
        // First: it has no more than answers to the guest, where the link may have frames without end.
        let answer = self.detour.as_mut().and_then(|d| d.give(&mut self.frame));
        self.is_detours = answer.is_some();
        if answer.is_some() {
            self.waiting = answer.map(|len| len.min(self.frame.len()));
            return self.waiting;
        }
        if self.is_dry {
            return None;
        }
        for _ in 0..=RETRIES {
            match self.link.receive(&mut self.frame) {
                Ok(len) => {
                    self.is_dry = len.is_none();
                    self.waiting = len.map(|len| len.min(self.frame.len()));
                    break;
                }
                Err(error) => {
                    self.counts.received.failures.add(1);
                    self.failed(Operation::Receive, &error);
                    // A tap loses the frame of which it cannot tell the offloads (`tun_put_user` in
                    // drivers/net/tun.c); those behind it would wait for the next one to come.
                    if error.kind() != io::ErrorKind::InvalidInput {
                        break;
                    }
                }
            }
        }
        self.waiting
    }

    fn receive(&mut self, chain: &Chain<'_>) -> Result<Served, Violation> {
        let Some(len) = self.waiting() else {
            let wait = self.detour.as_mut().and_then(|detour| detour.wait());
            return Ok(wait.map_or(Served::Idle, Served::Later));
        };
        // A frame that is no frame, and one that buffers have no room for.
        let fits = len as u64 <= chain.writable.len();
        if !fits && self.mergeable && chain.may_grow {
            return Ok(Served::Gather);
        }
        if !fits || len < MIN_FRAME {
            self.counts.received.malformed.add(1);
            self.waiting = None;
            // The next one may fit, and there may be such frames without end.
            return Ok(Served::Again);
        }
        if !self.is_detours
            && let Err(wait) = self.receive.take((len - HEADER) as u64)
        {
            self.counts.received.throttled.add(1);
            return Ok(Served::Later(wait));
        }
        self.waiting = None;
        let frame = self.frame.get_mut(..len).ok_or(Violation::Buffer)?;
        // OK because a queue has fewer chains.
        let parts = u16::try_from(chain.parts()).unwrap_or(u16::MAX);
        if let Some(field) = frame.get_mut(NUM_BUFFERS) {
            field.copy_from_slice(&parts.to_le_bytes());
        }
        chain.writable.write(frame)?;
        self.counts.received.frames.add(1);
        self.counts.received.bytes.add(len as u64);
        Ok(Served::Done {
            // OK because it is at most MAX_FRAME.
            written: u32::try_from(len).unwrap_or(0),
        })
    }

    /// Whether the detour wanted this frame of `len` bytes, and got it.
    fn detour(&mut self, frame: &Buffers<'_>, len: usize) -> bool {
        let Some(detour) = &mut self.detour else {
            return false;
        };
        let mut beginning = [0; HEADER + PEEK];
        let shown = len.min(beginning.len());
        let Some(beginning) = beginning.get_mut(..shown) else {
            return false;
        };
        let read = frame.split_at(shown as u64);
        let read = read.and_then(|(first, _)| first.read(beginning).ok());
        let wanted = read.is_some() && detour.wants(beginning.get(HEADER..).unwrap_or_default());
        if wanted
            && let Some(room) = detour.room(len)
            && frame.read(room).is_ok()
        {
            detour.arrived();
            self.detoured = true;
        }
        wanted
    }

    fn transmit(&mut self, frame: &Buffers<'_>) -> Served {
        let done = Served::Done { written: 0 };
        let len = usize::try_from(frame.len()).unwrap_or(usize::MAX);
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            self.counts.sent.malformed.add(1);
            return done;
        }
        if self.detour(frame, len) {
            return done;
        }
        if let Err(wait) = self.transmit.take((len - HEADER) as u64) {
            self.counts.sent.throttled.add(1);
            return Served::Later(wait);
        }
        match self.link.send(frame) {
            Ok(()) => {
                self.counts.sent.frames.add(1);
                self.counts.sent.bytes.add(len as u64);
            }
            Err(error) => {
                self.counts.sent.failures.add(1);
                // Without room a frame is lost, as on any network.
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.failed(Operation::Send, &error);
                }
            }
        }
        done
    }
}

impl Device for Net {
    type Update = Update;

    const KIND: Kind = Kind::Net;

    /// Of receiving and of sending.
    const QUEUES: &'static [u16] = &[256, 256];

    /// Buffers of any sensible size: 65 KiB in pieces of 1.5 KiB are 44 chains.
    const GATHERS: u16 = 4;

    fn features(&self) -> u64 {
        let mac = if self.identity.mac.is_some() { MAC } else { 0 };
        let mtu = if self.identity.mtu.is_some() { MTU } else { 0 };
        mac | mtu
            | CHECKSUM
            | GUEST_CHECKSUM
            | GUEST_TSO4
            | GUEST_TSO6
            | GUEST_ECN
            | HOST_TSO4
            | HOST_TSO6
            | HOST_ECN
            | MERGEABLE
    }

    /// `struct virtio_net_config` (5.1.4) as far as `mtu`.
    fn config(&self) -> ConfigSpace {
        let mac = self.identity.mac.unwrap_or(MacAddress([0; 6]));
        ConfigSpace::EMPTY
            .with(&mac.0)
            .with(&0_u16.to_le_bytes()) // status: VIRTIO_NET_F_STATUS is not on offer, the link is always up
            .with(&0_u16.to_le_bytes()) // max_virtqueue_pairs
            .with(&self.identity.mtu.unwrap_or(0).to_le_bytes())
    }

    fn start(&mut self, features: u64) {
        self.mergeable = features & MERGEABLE != 0;
        // Meant for the driver before, which took other frames.
        self.waiting = None;
        let has = |feature| features & feature != 0;
        // The others need checksums (5.1.3.1); a driver that takes them without does not get them.
        let checksum = has(GUEST_CHECKSUM);
        let offloads = Offloads {
            checksum,
            tso4: checksum && has(GUEST_TSO4),
            tso6: checksum && has(GUEST_TSO6),
            ecn: checksum && has(GUEST_ECN),
        };
        if let Err(error) = self.link.offload(offloads) {
            self.failed(Operation::Offload, &error);
        }
    }

    fn poll(&mut self, told: bool) {
        self.detoured = false;
        self.is_dry &= !told;
    }

    /// An answer to a frame of this round has no other notification.
    fn again(&mut self) -> bool {
        self.detoured
    }

    /// # Errors
    /// None but buffers that vanish.
    fn serve(&mut self, queue: usize, chain: &Chain<'_>) -> Result<Served, Violation> {
        if queue == RECEIVE {
            return self.receive(chain);
        }
        Ok(self.transmit(&chain.readable))
    }

    fn update(&mut self, update: Update) {
        let Update {
            receive_bandwidth,
            receive_operations,
            transmit_bandwidth,
            transmit_operations,
        } = update;
        self.receive.change(receive_bandwidth, receive_operations);
        self.transmit
            .change(transmit_bandwidth, transmit_operations);
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("identity", &self.identity)
            .field("receive", &self.receive)
            .field("transmit", &self.transmit)
            .finish_non_exhaustive()
    }
}
