//! The network card.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devices::rate_limiter::RateLimiter;
use devices::virtio::Buffers;
use devices::virtio::net::{HEADER, Identity, Link, MAX_FRAME, Net, Offloads};

use super::{Chain, Driver, EVENT_INDEX, INDIRECT, Request, SIZE};
use crate::input::decode;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const MERGEABLE: u64 = 1 << 15;
/// An Ethernet header after that of virtio.
const SHORTEST: usize = HEADER + 14;

#[derive(Arbitrary, Debug)]
enum Step {
    Send(Request),
    Offer(Request),
    /// A frame of such a length comes.
    Frame(u16),
    Run,
}

#[derive(Arbitrary, Debug)]
struct Input {
    features: u64,
    event_index: bool,
    steps: Vec<Step>,
}

#[derive(Default)]
struct Wire {
    coming: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Cable(Arc<Mutex<Wire>>);

impl Link for Cable {
    fn offload(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &Buffers<'_>) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(frame.len()).expect("bounded")];
        frame.read(&mut bytes).expect("as long as it says");
        self.0.lock().expect("no panic").sent.push(bytes);
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(frame) = self.0.lock().expect("no panic").coming.pop_front() else {
            return Ok(None);
        };
        into[..frame.len()].copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }
}

/// Frames in both directions through buffers of any shape: each is whole and in order, in as many buffers as it
/// says, or there was no room for it.
///
/// # Panics
/// When something else was sent, or is in the guest's memory.
pub fn virtio_net(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let wire = Arc::new(Mutex::new(Wire::default()));
    let unlimited = RateLimiter::unlimited;
    let device = Net::new(
        Box::new(Cable(wire.clone())),
        Identity::default(),
        unlimited(),
        unlimited(),
        Box::new(|_, _| {}),
    );
    let events = if input.event_index { EVENT_INDEX } else { 0 };
    let wanted = input.features & !EVENT_INDEX | events | INDIRECT;
    let (mut driver, features) = Driver::ready(device, wanted);
    let mergeable = features & MERGEABLE != 0;
    let mut frames: VecDeque<Vec<u8>> = VecDeque::new();
    for (count, step) in (0_u8..64).zip(&input.steps) {
        match step {
            Step::Send(request) => driver.ask(TRANSMIT, request),
            Step::Offer(request) => driver.ask(RECEIVE, request),
            Step::Frame(len) => {
                let frame = vec![count; usize::from(*len).min(MAX_FRAME)];
                frames.push_back(frame.clone());
                wire.lock().expect("no panic").coming.push_back(frame);
            }
            Step::Run => {
                driver.engine.run();
                let lawful = received(&mut driver, &mut frames, mergeable)
                    && sent(&mut driver, &mut wire.lock().expect("no panic").sent);
                driver.expect_nothing_else();
                assert_eq!(driver.needs_reset(), !lawful);
                if !lawful {
                    return;
                }
            }
        }
    }
}

/// What of `frames` has come into the offered buffers; whether all that were looked at are lawful.
fn received(driver: &mut Driver<Net>, frames: &mut VecDeque<Vec<u8>>, mergeable: bool) -> bool {
    // The first so many chains that are waiting, as if they were one.
    let (mut count, mut whole) = (0, Chain::default());
    loop {
        let Some(chain) = driver.queues[RECEIVE].waiting.get(count) else {
            return true;
        };
        count += 1;
        whole.segments.extend(&chain.segments);
        if !whole.is_lawful() {
            return false;
        }
        let Some(len) = frames.front().map(Vec::len) else {
            return true;
        };
        let fits = len as u64 <= whole.room();
        if !fits && mergeable && count < usize::from(SIZE) {
            continue;
        }
        let mut frame = frames.pop_front().expect("looked at");
        if fits && len >= SHORTEST {
            let buffers = u16::try_from(count).expect("few");
            frame[10..12].copy_from_slice(&buffers.to_le_bytes());
            let mut rest = &frame[..];
            for chain in driver.queues[RECEIVE]
                .waiting
                .drain(..count)
                .collect::<Vec<_>>()
            {
                let here = chain.room().min(rest.len() as u64);
                let (now, later) = rest.split_at(usize::try_from(here).expect("small"));
                driver.model.write(&chain, 0, now);
                driver.expect_used(RECEIVE, chain.head, here);
                rest = later;
            }
        }
        // The next one begins with the first chain.
        (count, whole) = (0, Chain::default());
    }
}

/// What the guest sent has come as it lay; whether all of it is lawful.
fn sent(driver: &mut Driver<Net>, sent: &mut Vec<Vec<u8>>) -> bool {
    let mut sent = std::mem::take(sent).into_iter();
    while let Some(chain) = driver.queues[TRANSMIT].waiting.pop_front() {
        if !chain.is_lawful() {
            assert_eq!(sent.next(), None);
            return false;
        }
        let frame = driver.model.read(&chain);
        if (SHORTEST..=MAX_FRAME).contains(&frame.len()) {
            assert_eq!(sent.next(), Some(frame));
        }
        driver.expect_used(TRANSMIT, chain.head, 0);
    }
    assert_eq!(sent.next(), None);
    true
}
