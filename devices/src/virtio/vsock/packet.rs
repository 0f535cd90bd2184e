//! What goes over the rings: a header, and for [`Operation::Data`] bytes after it (5.10.6).

use std::fmt;

use super::super::Buffers;

/// The length of a packet's header, `struct virtio_vsock_hdr` (5.10.6).
pub(super) const HEADER: usize = 44;

/// `VIRTIO_VSOCK_TYPE_STREAM` (5.10.6): the kind of connection that there is here.
pub(super) const STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE` (5.10.6.5): who says so takes no more.
pub(super) const TAKES_NO_MORE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND` (5.10.6.5): who says so sends no more.
pub(super) const SENDS_NO_MORE: u32 = 2;

/// The address of a machine on this transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cid(u64);

impl Cid {
    /// The host's (5.10.4).
    pub const HOST: Self = Self(2);

    /// The lowest that a guest can have: those below are the hypervisor's, the loopback's and the host's
    /// (vsock(7)).
    pub const MIN_GUEST: u32 = 3;

    /// A guest's; `None` for one that is reserved (5.10.4): 0 to 2, and 2^32 - 1.
    ///
    /// ```
    /// use devices::virtio::vsock::Cid;
    /// assert!(Cid::guest(2).is_none() && Cid::guest(3).is_some());
    /// assert!(Cid::guest(u32::MAX).is_none());
    /// ```
    #[must_use]
    pub fn guest(number: u32) -> Option<Self> {
        (Self::MIN_GUEST..u32::MAX)
            .contains(&number)
            .then_some(Self(number.into()))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Where on a machine a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port(pub u32);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A connection's name: the addresses are the guest's and the host's, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: Port,
    pub(super) host: Port,
}

/// `VIRTIO_VSOCK_OP_*` (5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// The sender wants to connect,
    Request,
    /// and the other one accepts.
    Response,
    /// The connection is over, or there is none.
    Reset,
    /// The sender takes or sends no more, as the flags say.
    Shutdown,
    /// Bytes for the other one.
    Data,
    /// The sender tells how much it can take.
    CreditUpdate,
    /// The sender wants to know how much the other one can take.
    CreditRequest,
}

impl Operation {
    const ALL: [(u16, Self); 7] = [
        (1, Self::Request),
        (2, Self::Response),
        (3, Self::Reset),
        (4, Self::Shutdown),
        (5, Self::Data),
        (6, Self::CreditUpdate),
        (7, Self::CreditRequest),
    ];

    fn of(number: u16) -> Option<Self> {
        let known = Self::ALL.into_iter().find(|(known, _)| *known == number);
        known.map(|(_, operation)| operation)
    }

    fn number(self) -> u16 {
        let known = Self::ALL.into_iter().find(|(_, known)| *known == self);
        known.map_or(0, |(number, _)| number)
    }
}

/// How much the sender of a packet can take, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// `buf_alloc`: how much it keeps at once.
    pub(super) room: u32,
    /// `fwd_cnt`: how much it has passed on since the connection began. It wraps.
    pub(super) passed: u32,
}

/// A packet's header, without what follows from its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) ports: Ports,
    /// How many bytes come after it.
    pub(super) len: u32,
    /// The kind of connection; one that is not known is refused in its own name.
    pub(super) kind: u16,
    /// `None` when it is not known.
    pub(super) operation: Option<Operation>,
    pub(super) flags: u32,
    pub(super) credit: Credit,
}

/// The fields of a header, one after the other, all little-endian.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

impl Header {
    /// Reads the header of a packet that the guest `from` sent to the host, once; `None` when it is too short, or
    /// is not from there to here.
    pub(super) fn read(packet: &Buffers<'_>, from: Cid) -> Option<Self> {
        let (header, _) = packet.split_at(HEADER as u64)?;
        let mut bytes = [0; HEADER];
        header.read(&mut bytes).ok()?;
        let mut fields = Fields(&bytes);
        let source = u64::from_le_bytes(fields.next()?);
        let destination = u64::from_le_bytes(fields.next()?);
        let guest = Port(u32::from_le_bytes(fields.next()?));
        let host = Port(u32::from_le_bytes(fields.next()?));
        let header = Self {
            ports: Ports { guest, host },
            len: u32::from_le_bytes(fields.next()?),
            kind: u16::from_le_bytes(fields.next()?),
            operation: Operation::of(u16::from_le_bytes(fields.next()?)),
            flags: u32::from_le_bytes(fields.next()?),
            credit: Credit {
                room: u32::from_le_bytes(fields.next()?),
                passed: u32::from_le_bytes(fields.next()?),
            },
        };
        (source == from.0 && destination == Cid::HOST.0).then_some(header)
    }

    /// The bytes of this header in a packet from the host to the guest `to`.
    pub(super) fn bytes(&self, to: Cid) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            if let Some((place, others)) =
                std::mem::take(&mut rest).split_at_mut_checked(field.len())
            {
                place.copy_from_slice(field);
                rest = others;
            }
        };
        put(&Cid::HOST.0.to_le_bytes());
        put(&to.0.to_le_bytes());
        put(&self.ports.host.0.to_le_bytes());
        put(&self.ports.guest.0.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.operation.map_or(0, Operation::number).to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.credit.room.to_le_bytes());
        put(&self.credit.passed.to_le_bytes());
        bytes
    }
}
