//! The metadata service (MMDS): what clients of the API have put into a store, a guest can read at an address of its
//! network, by HTTP.
//!
//! # How a request comes here
//!
//! The interfaces that `PUT /mmds/config` names have an [`Endpoint`] each, as the detour of their card: frames for
//! the service's address are taken out of what the guest sends, on the thread of the card, and the answers are put
//! among what it receives. No socket of the host has to do with it, and the tap sees none of it.
//!
//! | file | what it does |
//! | --- | --- |
//! | `frame` | which frames are the service's, and which of these make sense |
//! | `wire` | packets on their way to the TCP stack (smoltcp) and back, in Ethernet's frames |
//! | `connection` | HTTP on one connection; `api::http` has the parser |
//! | `endpoint` | the stack, its connections and their timers |
//! | `service` | what a request is answered with |
//! | `token` | the sessions of version 2 |
//! | `store` | the metadata |
//!
//! # What a guest can cost
//!
//! | resource | bound |
//! | --- | --- |
//! | connections of a card | [`CONNECTIONS`], whose buffers are there from the start on; a further one is refused by a reset |
//! | time of a connection | [`PATIENCE`] from its beginning, or from when it last took a part of an answer; then it is reset |
//! | a request | a head of [`MAX_HEAD`](crate::api::http::MAX_HEAD), a body of [`MAX_BODY`] |
//! | an answer | `--mmds-size-limit`; one for each connection at a time, made when the one before was taken |
//! | a frame | [`MAX_PACKET`]; longer ones, and those that make no sense, are dropped and counted |
//! | frames for the guest | a fixed number; what finds no room is sent again as on any network |
//! | sessions | [`MAX_TOKENS`]; the oldest makes room |
//!
//! All of this is on the thread of the guest's own card. The store's lock is held for as long as it takes to copy a
//! pointer, so the main thread never waits for a guest.

mod connection;
mod counters;
mod endpoint;
mod frame;
mod service;
mod store;
#[cfg(test)]
mod tests;
mod token;
mod wire;

use std::net::Ipv4Addr;

use tsc::Nanos;

pub(crate) use counters::MmdsCounters;
pub use endpoint::Endpoint;
pub use service::{Host, Service};
pub use store::{Metadata, MetadataError};
pub use token::MAX_TOKENS;

/// Where the service is when nothing else is said: the address that guests of clouds know.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// HTTP's port.
const PORT: u16 = 80;

/// The connections of a card, as many as Firecracker has.
pub const CONNECTIONS: usize = 30;

/// How long a connection may go without taking a part of an answer.
pub const PATIENCE: Nanos = Nanos::new(10_000_000_000);

/// The largest body of a request, of which no request that is served needs any.
pub const MAX_BODY: usize = 1 << 10;

/// What of a connection waits to be looked at: the window that TCP announces.
const RECEIVE_BUFFER: usize = 2 << 10;

/// What of an answer is on its way: two full frames.
const SEND_BUFFER: usize = 2 * (MTU - 40);

/// The longest packet that is taken: a whole window at once, which a guest whose card cuts segments sends, behind an
/// IPv4 header and a TCP header with all the options that there can be.
pub const MAX_PACKET: usize = 20 + 60 + RECEIVE_BUFFER;

/// The longest packet that is sent.
const MTU: usize = 1_500;
