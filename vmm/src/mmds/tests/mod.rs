//! The service as a guest has it: another TCP/IP stack with ARP, on a card of its own.

mod hostile;
mod talk;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;

use devices::virtio::net::{Detour, HEADER, MAX_FRAME};
use serde_json::Value;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};

use super::*;
use crate::api::body::{MmdsConfig, MmdsVersion};

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1_000_000_000) };
}

pub(super) fn clock() -> Nanos {
    Nanos::new(NOW.get())
}

pub(super) fn set_clock(now: u64) {
    NOW.set(now);
}

/// Bytes that differ from call to call.
fn counting(bytes: &mut [u8]) -> io::Result<()> {
    thread_local! {
        static CALLS: Cell<u8> = const { Cell::new(0) };
    }
    CALLS.set(CALLS.get() + 1);
    bytes.fill(CALLS.get());
    Ok(())
}

pub(super) const HOST: Host = Host {
    clock,
    random: counting,
};

pub(super) fn config() -> MmdsConfig {
    MmdsConfig {
        version: MmdsVersion::V1,
        network_interfaces: vec!["a".to_owned()],
        ipv4_address: None,
        imds_compat: false,
    }
}

const GUEST: Ipv4Address = Ipv4Address::new(172, 16, 0, 2);
const MAC: EthernetAddress = EthernetAddress([0xaa, 0xfc, 0, 0, 0, 1]);

/// A guest's card: frames without header.
struct Card {
    outgoing: VecDeque<Vec<u8>>,
    incoming: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let filled = fill(&mut frame);
        self.0.push_back(frame);
        filled
    }
}

impl Device for Card {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Instant) -> Option<(In, Out<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((In(frame), Out(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 14 + self.mtu;
        capabilities
    }
}

/// A guest beside the service.
struct Guest {
    endpoint: Endpoint,
    counters: std::sync::Arc<MmdsCounters>,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    port: u16,
    /// Whether the next frame is lost, whichever way it goes.
    loses: Box<dyn FnMut() -> bool>,
}

impl Guest {
    fn new(metadata: Value, version: MmdsVersion, mtu: usize) -> Self {
        let store = Metadata::new(1 << 20);
        store.put(metadata).expect("room");
        let config = MmdsConfig {
            version,
            ..config()
        };
        let service = Service::new(std::sync::Arc::new(store), &config, HOST);
        let counters = service.counters();
        let endpoint = Endpoint::new(std::sync::Arc::new(service)).expect("random");
        let mut card = Card {
            outgoing: VecDeque::new(),
            incoming: VecDeque::new(),
            mtu,
        };
        let config = Config::new(HardwareAddress::Ethernet(MAC));
        let mut interface = Interface::new(config, &mut card, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // As with a route to the service on this card.
            addresses.push(IpCidr::new(GUEST.into(), 0)).expect("room");
        });
        Self {
            endpoint,
            counters,
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            port: 40_000,
            loses: Box::new(|| false),
        }
    }

    /// Lets everything happen that can at this time.
    fn settle(&mut self) {
        loop {
            let at = Instant::from_micros(i64::try_from(clock().get() / 1_000).expect("small"));
            self.interface.poll(at, &mut self.card, &mut self.sockets);
            let mut idle = true;
            while let Some(frame) = self.card.outgoing.pop_front() {
                idle = false;
                if !(self.loses)() {
                    self.send(&frame);
                }
            }
            for frame in self.answers() {
                idle = false;
                if !(self.loses)() {
                    self.card.incoming.push_back(frame);
                }
            }
            if idle {
                return;
            }
        }
    }

    /// Sends a frame without header, with nothing left undone.
    fn send(&mut self, frame: &[u8]) {
        let beginning = frame.get(..devices::virtio::net::PEEK).unwrap_or(frame);
        assert!(self.endpoint.wants(beginning), "{frame:x?}");
        self.endpoint.take(&[&[0; HEADER], frame].concat());
    }

    /// The frames that the endpoint has for the guest.
    fn answers(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0xff; MAX_FRAME];
        let mut frames = Vec::new();
        while let Some(len) = self.endpoint.give(&mut buffer) {
            assert_eq!(buffer[..HEADER], [0; HEADER]);
            frames.push(buffer[HEADER..len].to_vec());
        }
        frames
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 8_192]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        self.port += 1;
        let to = (DEFAULT_ADDRESS, PORT);
        socket
            .connect(self.interface.context(), to, self.port)
            .expect("a route");
        let handle = self.sockets.add(socket);
        self.settle();
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn say(&mut self, handle: SocketHandle, text: &str) {
        let socket = self.socket(handle);
        assert_eq!(socket.send_slice(text.as_bytes()), Ok(text.len()));
        self.settle();
    }

    /// What has come on a connection.
    fn hear(&mut self, handle: SocketHandle) -> String {
        let mut heard = Vec::new();
        loop {
            let socket = self.socket(handle);
            if !socket.can_recv() {
                return String::from_utf8(heard).expect("text");
            }
            socket
                .recv(|bytes| {
                    heard.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .expect("open");
            self.settle();
        }
    }

    /// Lets time go by.
    fn wait(&mut self, time: Nanos) {
        set_clock(clock().get() + time.get());
        self.settle();
    }
}
