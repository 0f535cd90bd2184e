//! The service at one of a guest's network cards.

use std::fmt;
use std::sync::Arc;

use devices::virtio::net::Detour;
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use tsc::Nanos;

use super::connection::Connection;
use super::service::Service;
use super::wire::Wire;
use super::{CONNECTIONS, frame};

/// No timer is finer than this.
const TICK: Nanos = Nanos::new(1_000_000);

/// See the [module](super).
pub struct Endpoint {
    service: Arc<Service>,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    /// When there is something to be done although nothing arrives, while there are connections.
    due: Option<Nanos>,
}

/// Microseconds, as the stack counts.
fn instant(now: Nanos) -> Instant {
    // OK because the clock counts from the host's start: 2^63 us are 292,000 years.
    Instant::from_micros(i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX))
}

impl Endpoint {
    /// An end of `service` with all its buffers.
    ///
    /// # Errors
    /// The host gives no random bytes, from which the numbers of its connections begin.
    pub fn new(service: Arc<Service>) -> std::io::Result<Self> {
        let mut seed = [0; 8];
        (service.host.random)(&mut seed)?;
        let mut wire = Wire::new(service.address, service.counters.clone());
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from_le_bytes(seed);
        let mut interface = Interface::new(config, &mut wire, instant((service.host.clock)()));
        interface.update_ip_addrs(|addresses| {
            // Everybody is next door. There is room for one, which is the first.
            let _ = addresses.push(IpCidr::new(service.address.into(), 0));
        });
        let mut sockets = SocketSet::new(Vec::with_capacity(CONNECTIONS));
        let connections = (0..CONNECTIONS).map(|_| Connection::new(&mut sockets));
        Ok(Self {
            connections: connections.collect(),
            service,
            wire,
            interface,
            sockets,
            due: None,
        })
    }

    /// Takes a frame of the guest's, with its header. For those who have no card.
    pub fn take(&mut self, frame: &[u8]) {
        if let Some(room) = self.room(frame.len()) {
            room.copy_from_slice(frame);
            self.arrived();
        }
    }

    fn now(&self) -> Nanos {
        (self.service.host.clock)()
    }

    /// Does what there is to do: with the packet that arrived, with requests, with timers.
    fn turn(&mut self) {
        let (now, sockets) = (self.now(), &mut self.sockets);
        let at = instant(now);
        self.interface
            .poll_ingress_single(at, &mut self.wire, sockets);
        for connection in &mut self.connections {
            connection.serve(sockets, &self.service, now);
        }
        // Ends when there is no room for frames, at the latest.
        while self.interface.poll_egress(at, &mut self.wire, sockets) != PollResult::None {}
        for connection in &mut self.connections {
            connection.end(sockets, &self.service);
        }
        let deadlines = self.connections.iter().filter_map(Connection::deadline);
        self.due = deadlines.min_by_key(|deadline| deadline.get());
        if let Some(deadline) = self.due
            && let Some(delay) = self.interface.poll_delay(at, sockets)
        {
            let delay = delay.total_micros().saturating_mul(1_000);
            let stack = now.get().saturating_add(delay);
            self.due = Some(Nanos::new(stack.min(deadline.get())));
        }
    }
}

impl Detour for Endpoint {
    fn wants(&self, beginning: &[u8]) -> bool {
        frame::is_for(self.service.address, beginning)
    }

    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.wire.room(len)
    }

    fn arrived(&mut self) {
        if self.wire.arrived() {
            self.turn();
        }
    }

    fn give(&mut self, into: &mut [u8]) -> Option<usize> {
        // Without a connection there are no timers, and this costs next to nothing.
        if self.due.is_some_and(|due| due.get() <= self.now().get()) {
            self.turn();
        }
        let was_full = self.wire.is_full();
        let given = self.wire.give(into);
        if was_full {
            self.turn();
        }
        given
    }

    fn wait(&mut self) -> Option<Nanos> {
        let left = self.due?.get().saturating_sub(self.now().get());
        Some(Nanos::new(left.max(TICK.get())))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("service", &self.service)
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}
