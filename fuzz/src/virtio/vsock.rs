//! The socket device.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use arbitrary::Arbitrary;
use devices::virtio::vsock::{Cid, Event, Host, Place, Port, Stream, Token, Vsock};
use tsc::Nanos;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::{Chain, Driver, EVENT_INDEX, INDIRECT, Request};
use crate::input::decode;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HEADER: u64 = 44;
const GUEST: u32 = 3;
const LISTENING: u32 = 80;

/// A packet of the guest: few ports, so that it is for a connection mostly.
#[derive(Arbitrary, Clone, Debug)]
struct Packet {
    odd_address: bool,
    port: u8,
    /// The ports of connections that programs began come after the one where one listens.
    host_port: u8,
    kind: u8,
    operation: u8,
    flags: u8,
    room: u32,
    passed: u32,
    /// Not as many bytes as there are.
    len: Option<u32>,
    buffers: Request,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Send(Packet),
    Offer(Request),
    /// A program connects, with such a line.
    Call([u8; 12]),
    CallPort(u8),
    Speak(u8, u16),
    Take(u8, u16),
    End(u8),
    Go(u8),
    Run,
}

#[derive(Arbitrary, Debug)]
struct Input {
    event_index: bool,
    steps: Vec<Step>,
}

#[derive(Default)]
struct Link {
    to_guest: VecDeque<u8>,
    held: usize,
    ended: bool,
    gone: bool,
    token: Option<Token>,
}

#[derive(Default)]
struct World {
    links: Vec<Link>,
    calling: VecDeque<usize>,
    events: VecDeque<Event>,
    time: u64,
}

impl World {
    fn link(&mut self) -> usize {
        self.links.push(Link::default());
        self.links.len() - 1
    }

    /// Changes one of the links, of which something can be told then.
    fn change(&mut self, which: u8, change: impl FnOnce(&mut Link)) {
        let count = self.links.len().max(1);
        if let Some(link) = self.links.get_mut(usize::from(which) % count) {
            change(link);
            let token = link.token.map(Place::Stream);
            let hung_up = link.gone;
            self.events.extend(token.map(|place| Event {
                place,
                readable: true,
                writable: true,
                hung_up,
            }));
        }
    }
}

/// What a program's side keeps.
const PROGRAM_ROOM: usize = 1_000;

#[derive(Clone, Default)]
struct Outside(Arc<Mutex<World>>);

impl Outside {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no panic")
    }
}

struct End(Outside, usize);

impl Stream for End {
    fn read(&mut self, into: &[VolatileSlice<'_, ()>]) -> io::Result<usize> {
        let mut world = self.0.world();
        let link = &mut world.links[self.1];
        let mut count = 0;
        for piece in into {
            let here = piece.len().min(link.to_guest.len());
            let bytes: Vec<u8> = link.to_guest.drain(..here).collect();
            piece.copy_from(&bytes);
            count += here;
        }
        if count == 0 && !link.ended && !link.gone {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }

    fn write(&mut self, from: VolatileSlice<'_, ()>) -> io::Result<usize> {
        let mut world = self.0.world();
        let link = &mut world.links[self.1];
        let count = from.len().min(PROGRAM_ROOM - link.held);
        if link.gone || count == 0 {
            let kind = match link.gone {
                true => ErrorKind::BrokenPipe,
                false => ErrorKind::WouldBlock,
            };
            return Err(kind.into());
        }
        link.held += count;
        Ok(count)
    }

    fn end_reading(&mut self) {}

    fn end_writing(&mut self) {}
}

impl Host for Outside {
    type Stream = End;

    /// A little later each time.
    fn now(&mut self) -> Nanos {
        let mut world = self.world();
        world.time += 300_000_000;
        Nanos::new(world.time)
    }

    fn accept(&mut self) -> io::Result<Option<End>> {
        let id = self.world().calling.pop_front();
        Ok(id.map(|id| End(self.clone(), id)))
    }

    fn connect(&mut self, port: Port) -> io::Result<End> {
        if port.0 != LISTENING {
            return Err(ErrorKind::NotFound.into());
        }
        let id = self.world().link();
        Ok(End(self.clone(), id))
    }

    fn watch(&mut self, stream: &End, token: Token, _: bool, _: bool) -> io::Result<()> {
        let mut world = self.world();
        let id = stream.1;
        world.links[id].token = Some(token);
        let hung_up = world.links[id].gone;
        world.events.push_back(Event {
            place: Place::Stream(token),
            readable: true,
            writable: true,
            hung_up,
        });
        Ok(())
    }

    fn poll(&mut self, events: &mut [Event]) -> io::Result<usize> {
        let mut world = self.world();
        let count = events.len().min(world.events.len());
        for (place, event) in events.iter_mut().zip(world.events.drain(..count)) {
            *place = event;
        }
        Ok(count)
    }
}

/// Packets of any kind, in buffers of any shape, while programs come, speak, take and go: each packet for the guest
/// is whole, and nothing else is written.
///
/// # Panics
/// When something else is in the guest's memory.
pub fn virtio_vsock(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let outside = Outside::default();
    let guest = Cid::guest(GUEST).expect("not reserved");
    let device = Vsock::new(guest, outside.clone(), Box::new(|_, _| {}));
    let events = if input.event_index { EVENT_INDEX } else { 0 };
    let (mut driver, _) = Driver::ready(device, INDIRECT | events);
    let call = |line: &[u8]| {
        let mut world = outside.world();
        let id = world.link();
        world.links[id].to_guest.extend(line);
        world.calling.push_back(id);
        world.events.push_back(Event::default());
    };
    for step in input.steps.iter().take(64) {
        match step {
            Step::Send(packet) => send(&mut driver, packet),
            Step::Offer(request) => driver.ask(RECEIVE, request),
            Step::Call(line) => call(line),
            Step::CallPort(port) => call(format!("CONNECT {}\n", port % 4).as_bytes()),
            Step::Speak(which, len) => outside.world().change(*which, |link| {
                link.to_guest.extend((0..*len).map(|_| *which));
            }),
            Step::Take(which, most) => outside.world().change(*which, |link| {
                link.held = link.held.saturating_sub(usize::from(*most));
            }),
            Step::End(which) => outside.world().change(*which, |link| link.ended = true),
            Step::Go(which) => outside.world().change(*which, |link| link.gone = true),
            Step::Run => {
                driver.engine.run();
                received(&mut driver);
                sent(&mut driver);
                driver.expect_nothing_else();
                if driver.needs_reset() {
                    return;
                }
            }
        }
    }
}

/// Makes the packet available, in the chain's buffers that are the device's to read.
fn send(driver: &mut Driver<Vsock<Outside>>, packet: &Packet) {
    let before = driver.queues[TRANSMIT].waiting.len();
    driver.ask(TRANSMIT, &packet.buffers);
    let chain = driver.queues[TRANSMIT].waiting.back().cloned();
    let Some(chain) = chain.filter(|_| driver.queues[TRANSMIT].waiting.len() > before) else {
        return;
    };
    let payload = chain.total(false).saturating_sub(HEADER);
    let len = packet
        .len
        .unwrap_or(u32::try_from(payload).expect("bounded"));
    let host_port = match packet.host_port % 8 {
        0..=4 => LISTENING,
        other => (1 << 30) + u32::from(other - 5),
    };
    let source = if packet.odd_address {
        9
    } else {
        u64::from(GUEST)
    };
    let mut header = Vec::new();
    header.extend(source.to_le_bytes());
    header.extend(2_u64.to_le_bytes());
    header.extend(u32::from(packet.port % 4).to_le_bytes());
    header.extend(host_port.to_le_bytes());
    header.extend(len.to_le_bytes());
    header.extend(u16::from(packet.kind.max(1)).to_le_bytes());
    header.extend(u16::from(packet.operation % 9).to_le_bytes());
    header.extend(u32::from(packet.flags).to_le_bytes());
    header.extend(packet.room.to_le_bytes());
    header.extend(packet.passed.to_le_bytes());
    let mut rest = &header[..];
    for segment in chain.segments.iter().filter(|segment| !segment.writable) {
        let here = rest.len().min(usize::try_from(segment.len).expect("small"));
        let (now, later) = rest.split_at(here);
        if segment.is_in_memory() && segment.len > 0 {
            driver.put(segment.address, now);
        }
        rest = later;
    }
}

/// Looks at what has come, and takes it over.
fn received(driver: &mut Driver<Vsock<Outside>>) {
    let index: u16 = driver.load(super::USED + 2);
    while driver.queues[RECEIVE].used != index {
        let chain = driver.queues[RECEIVE].waiting.pop_front();
        let chain = chain.expect("nothing is used that was not offered");
        assert!(chain.is_lawful());
        let used = driver.queues[RECEIVE].used;
        let at = super::USED + 8 + 8 * u64::from(used % super::SIZE);
        let written: u32 = driver.load(at);
        let bytes = bytes(driver, &chain, written.into());
        check(&bytes);
        driver.model.write(&chain, 0, &bytes);
        driver.expect_used(RECEIVE, chain.head, written.into());
    }
}

/// What was written into a chain.
fn bytes(driver: &Driver<Vsock<Outside>>, chain: &Chain, written: u64) -> Vec<u8> {
    assert!(written <= chain.room());
    let (mut bytes, mut left) = (Vec::new(), written);
    for segment in chain.segments.iter().filter(|segment| segment.writable) {
        let here = segment.len.min(left);
        let mut piece = vec![0; usize::try_from(here).expect("small")];
        let place = GuestAddress(segment.address);
        if here > 0 {
            driver.memory.read_slice(&mut piece, place).expect("lawful");
        }
        bytes.extend(piece);
        left -= here;
    }
    bytes
}

/// A packet from the host to the guest, of a kind that there is.
fn check(packet: &[u8]) {
    let number = |at: usize, len: usize| {
        let bytes = packet[at..at + len].iter().rev();
        bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (header, payload) = packet.split_at(44);
    assert_eq!((number(0, 8), number(8, 8)), (2, GUEST.into()));
    assert_eq!(number(24, 4), payload.len() as u64, "{header:?}");
    let (kind, operation, flags) = (number(28, 2), number(30, 2), number(32, 4));
    assert!((1..=7).contains(&operation), "{header:?}");
    assert!(kind == 1 || operation == 3, "{header:?}");
    assert_eq!(payload.is_empty(), operation != 5, "{header:?}");
    assert_eq!(flags != 0, operation == 4, "{header:?}");
    let room = number(36, 4);
    assert!([1 << 16, 1 << 18].contains(&room) || (room == 0 && operation == 3));
}

/// Nothing is written into what the guest sent.
fn sent(driver: &mut Driver<Vsock<Outside>>) {
    let index: u16 = driver.load(super::USED + super::NEXT_QUEUE + 2);
    while driver.queues[TRANSMIT].used != index {
        let chain = driver.queues[TRANSMIT].waiting.pop_front();
        let chain = chain.expect("nothing is used that was not sent");
        assert!(chain.is_lawful());
        driver.expect_used(TRANSMIT, chain.head, 0);
    }
}
