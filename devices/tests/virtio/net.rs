//! The network card.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use devices::rate_limiter::{Bucket, RateLimiter};
use devices::virtio::net::{
    Detour, Direction, HEADER, Identity, Link, MAX_FRAME, MacAddress, Net, Offloads, Operation,
    PEEK,
};
use devices::virtio::{Buffers, Count, Next};
use tsc::Nanos;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::driver::*;

const RX: usize = 0;
const TX: usize = 1;

const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_MRG_RXBUF: u64 = 1 << 15;

const MAC: [u8; 6] = [0xaa, 0xfc, 0, 0, 0, 1];

/// The other end of a link.
#[derive(Default)]
struct Wire {
    /// What comes to the guest.
    coming: VecDeque<io::Result<Vec<u8>>>,
    sent: Vec<Vec<u8>>,
    /// What the next sends fail with.
    refusals: VecDeque<io::Error>,
    offloads: Vec<Offloads>,
    told: Vec<(Operation, String)>,
    /// How often it was asked for a frame.
    asked: u32,
}

type Shared = Arc<Mutex<Wire>>;

struct Cable(Shared);

impl Link for Cable {
    fn offload(&mut self, offloads: Offloads) -> io::Result<()> {
        self.0.lock().unwrap().offloads.push(offloads);
        Ok(())
    }

    fn send(&mut self, frame: &Buffers<'_>) -> io::Result<()> {
        let mut wire = self.0.lock().unwrap();
        if let Some(refusal) = wire.refusals.pop_front() {
            return Err(refusal);
        }
        let mut bytes = vec![0; frame.len() as usize];
        frame.read(&mut bytes).unwrap();
        wire.sent.push(bytes);
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut wire = self.0.lock().unwrap();
        wire.asked += 1;
        let next = wire.coming.pop_front();
        let Some(frame) = next.transpose()? else {
            return Ok(None);
        };
        into[..frame.len()].copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }
}

fn card(identity: Identity, receive: RateLimiter, transmit: RateLimiter) -> (Net, Shared) {
    let wire = Shared::default();
    let told = wire.clone();
    let net = Net::new(
        Box::new(Cable(wire.clone())),
        identity,
        receive,
        transmit,
        Box::new(move |operation, error| {
            told.lock()
                .unwrap()
                .told
                .push((operation, error.to_string()));
        }),
    );
    (net, wire)
}

fn ready(features: u64) -> (Driver<Net>, Shared) {
    let unlimited = RateLimiter::unlimited;
    let (net, wire) = card(Identity::default(), unlimited(), unlimited());
    (Driver::ready(net, features), wire)
}

/// A frame of `len` bytes, header included, whose bytes tell their places.
fn frame(len: usize) -> Vec<u8> {
    let header = [0; HEADER];
    let rest = (HEADER..len).map(|place| (place / 7 + place) as u8);
    header.into_iter().chain(rest).collect()
}

fn come(wire: &Shared, frame: Vec<u8>) {
    wire.lock().unwrap().coming.push_back(Ok(frame));
}

/// What a received frame looks like in `buffers` buffers.
fn received(frame: &[u8], buffers: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}

#[test]
fn card_has_the_address_and_the_mtu_that_it_was_given_and_no_others() {
    let unlimited = RateLimiter::unlimited;
    let identity = Identity {
        mac: Some(MacAddress(MAC)),
        mtu: Some(1_280),
    };
    let (net, _) = card(identity, unlimited(), unlimited());
    let mut driver = Driver::new(net);
    assert_eq!(driver.read(DEVICE_ID), 1);
    assert_eq!(driver.offered() & (F_MAC | F_MTU), F_MAC | F_MTU);
    let mut config = [0; 12];
    devices::BusDevice::read(&mut driver.registers, CONFIG, &mut config);
    assert_eq!(config, [0xaa, 0xfc, 0, 0, 0, 1, 0, 0, 0, 0, 0, 5]);
    let (net, _) = card(Identity::default(), unlimited(), unlimited());
    assert_eq!(Driver::new(net).offered() & (F_MAC | F_MTU), 0);
    assert_eq!(MacAddress(MAC).to_string(), "aa:fc:00:00:00:01");
}

#[test]
fn frame_is_sent_as_it_lies_in_its_buffers() {
    let (mut driver, wire) = ready(0);
    let whole = frame(100);
    driver.fill(ROOM, &whole[..5]);
    driver.fill(ROOM + 0x100, &whole[5..60]);
    driver.fill(HIGH, &whole[60..]);
    driver.queue = TX;
    driver.put(&[
        (ROOM, 5, false),
        (ROOM + 0x100, 55, false),
        (HIGH, 40, false),
    ]);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, 0)));
    assert_eq!(wire.lock().unwrap().sent, [whole]);
}

#[test]
fn link_that_had_no_more_is_asked_again_when_it_has_told_of_something() {
    let (mut driver, wire) = ready(0);
    let asked = || std::mem::take(&mut wire.lock().unwrap().asked);
    driver.put(&[(ROOM, 2_000, true)]);
    driver.run();
    assert_eq!(asked(), 1);
    driver.queue = TX;
    for _ in 0..3 {
        driver.put(&[(HIGH, 100, false)]);
        driver.engine.run_notified();
        assert_eq!((driver.used(), asked()), (Some((0, 0)), 0));
    }
    // What came meanwhile is not lost: the link has told.
    driver.queue = RX;
    come(&wire, frame(60));
    driver.run();
    assert_eq!((driver.used(), asked()), (Some((0, 60)), 1));
    // One that was full of frames when the buffers ended is asked when there are others.
    come(&wire, frame(70));
    driver.run();
    assert_eq!((driver.used(), asked()), (None, 0));
    driver.put(&[(ROOM, 2_000, true)]);
    driver.engine.run_notified();
    assert_eq!((driver.used(), asked()), (Some((0, 70)), 1));
    // So is one that failed.
    wire.lock()
        .unwrap()
        .coming
        .push_back(Err(io::ErrorKind::OutOfMemory.into()));
    driver.put(&[(ROOM, 2_000, true)]);
    driver.run();
    driver.engine.run_notified();
    assert_eq!(asked(), 2);
}

#[test]
fn what_is_no_frame_is_used_up_and_not_sent() {
    let (mut driver, wire) = ready(INDIRECT);
    driver.queue = TX;
    let most = MAX_FRAME as u32;
    for len in [1, 11, 25, most + 1] {
        driver.put(&[(ROOM, len, false)]);
        driver.run();
        assert_eq!(driver.used(), Some((0, 0)), "{len}");
    }
    // A chain without anything to read.
    driver.put(&[(ROOM, 100, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 0)));
    assert!(wire.lock().unwrap().sent.is_empty());
    for len in [26, most] {
        driver.put(&[(ROOM, len, false)]);
        driver.run();
    }
    let sent: Vec<_> = wire.lock().unwrap().sent.iter().map(Vec::len).collect();
    assert_eq!(sent, [26, MAX_FRAME]);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn frames_come_in_order_each_in_a_buffer_of_its_own() {
    let (mut driver, wire) = ready(0);
    for first in [0, 1, 2] {
        driver.put_from(first, &[(ROOM + 0x1000 * u64::from(first), 2_000, true)]);
    }
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), None);
    for len in [60, 1_514] {
        come(&wire, frame(len));
    }
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, 60)));
    assert_eq!(driver.used(), Some((1, 1_514)));
    assert_eq!(driver.used(), None);
    assert_eq!(driver.bytes(ROOM, 60), received(&frame(60), 1));
    let second = driver.bytes(ROOM + 0x1000, 1_514);
    assert_eq!(second, received(&frame(1_514), 1));
}

#[test]
fn frame_without_a_buffer_waits_for_one() {
    let (mut driver, wire) = ready(EVENT_INDEX);
    come(&wire, frame(100));
    driver.run();
    driver.put(&[(ROOM, 2_000, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 100)));
    assert_eq!(driver.bytes(ROOM, 100), received(&frame(100), 1));
}

#[test]
fn frame_larger_than_its_buffer_is_dropped_and_the_next_one_gets_it() {
    let (mut driver, wire) = ready(0);
    come(&wire, frame(101));
    come(&wire, frame(100));
    driver.put(&[(ROOM, 100, true)]);
    driver.put_from(1, &[(ROOM + 0x1000, 100, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 100)));
    assert_eq!(driver.used(), None);
    assert_eq!(driver.bytes(ROOM, 100), received(&frame(100), 1));
}

/// Both with and without EVENT_IDX: the driver sees all buffers of a frame or none.
#[test]
fn frame_is_spread_over_buffers_that_are_used_all_at_once() {
    for features in [0, EVENT_INDEX] {
        let (mut driver, wire) = ready(F_MRG_RXBUF | features);
        let whole = frame(250);
        come(&wire, whole.clone());
        driver.put_from(0, &[(ROOM, 100, true)]);
        driver.run();
        assert_eq!(driver.used(), None);
        driver.put_from(1, &[(ROOM + 0x1000, 40, true), (ROOM + 0x2000, 60, true)]);
        // Where notifications are by index, it wants the next one, not one that it has seen.
        if features & EVENT_INDEX != 0 {
            assert_eq!(driver.load::<u16>(USED + 4 + 8 * u64::from(driver.size)), 1);
        }
        assert_eq!(driver.load::<u16>(USED), 0, "no notification is wanted");
        driver.run();
        assert_eq!(driver.used(), None);
        driver.put_from(3, &[(ROOM + 0x3000, 100, true)]);
        // More than is needed.
        driver.put_from(4, &[(ROOM + 0x4000, 100, true)]);
        let interrupts = driver.interrupts();
        driver.run();
        assert_eq!(driver.interrupts(), interrupts + 1);
        assert_eq!(driver.used(), Some((0, 100)));
        assert_eq!(driver.used(), Some((1, 100)));
        assert_eq!(driver.used(), Some((3, 50)));
        assert_eq!(driver.used(), None);
        let mut parts = driver.bytes(ROOM, 100);
        parts.extend(driver.bytes(ROOM + 0x1000, 40));
        parts.extend(driver.bytes(ROOM + 0x2000, 60));
        parts.extend(driver.bytes(ROOM + 0x3000, 50));
        assert_eq!(parts, received(&whole, 3));
        // What was not needed is for the next one.
        come(&wire, frame(100));
        driver.run();
        assert_eq!(driver.used(), Some((4, 100)));
    }
}

/// The used index moves once for a frame, whatever the number of its buffers, and past the ring's end.
#[test]
fn frames_of_several_buffers_go_round_the_ring() {
    let (mut driver, wire) = ready(F_MRG_RXBUF);
    for round in 0..40_u8 {
        let mut whole = frame(300);
        whole[299] = round;
        come(&wire, whole.clone());
        for part in 0..3_u16 {
            driver.put_from(part, &[(ROOM + 0x1000 * u64::from(part), 100, true)]);
        }
        driver.run();
        for part in 0..3 {
            assert_eq!(driver.used(), Some((part, 100)), "{round}");
        }
        assert_eq!(driver.bytes(ROOM + 0x2000 + 99, 1), [round]);
    }
}

#[test]
fn frame_for_which_a_full_ring_has_no_room_is_dropped() {
    let (mut driver, wire) = ready(F_MRG_RXBUF);
    let most = 16 * 200;
    for len in [most + 1, 100, most] {
        come(&wire, frame(len));
    }
    driver.describe_at(DESCRIPTORS, 0, (ROOM, 200, WRITE, 0));
    for _ in 0..driver.size {
        driver.make_available(0);
    }
    driver.run();
    assert_eq!(driver.used(), Some((0, 100)));
    assert_eq!(driver.used(), None);
    driver.make_available(0);
    driver.run();
    for _ in 0..driver.size {
        assert_eq!(driver.used(), Some((0, 200)));
    }
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn limits_hold_each_direction_back_by_itself() {
    let time = Arc::new(AtomicU64::new(0));
    let limiter = |size| {
        let clock = time.clone();
        let bucket = Bucket::new(size, 0, Nanos::new(1_000)).unwrap();
        let clock = Box::new(move || Nanos::new(clock.load(Ordering::SeqCst)));
        RateLimiter::new(Some(bucket), None, clock)
    };
    let len = 100 + HEADER as u32;
    let (net, wire) = card(Identity::default(), limiter(100), limiter(200));
    let mut driver = Driver::ready(net, 0);
    for _ in 0..2 {
        come(&wire, frame(len as usize));
        driver.queue = RX;
        driver.put(&[(ROOM, len, true)]);
        driver.queue = TX;
        driver.put(&[(ROOM, len, false)]);
    }
    assert_eq!(driver.run(), Next::After(Nanos::new(1_000)));
    assert_eq!(wire.lock().unwrap().sent.len(), 2);
    driver.queue = RX;
    assert_eq!(driver.used(), Some((0, len)));
    assert_eq!(driver.used(), None);
    time.store(1_000, Ordering::SeqCst);
    // The frame that was held back has not been lost.
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, len)));
    driver
        .engine
        .change(|update| update.receive_bandwidth = Some(None));
    come(&wire, frame(len as usize));
    driver.put(&[(ROOM, len, true)]);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((0, len)));
}

#[test]
fn link_is_told_what_the_driver_takes_and_of_a_reset() {
    let (mut driver, wire) = ready(F_GUEST_CSUM | F_GUEST_TSO4 | F_MRG_RXBUF);
    let tso4 = Offloads {
        checksum: true,
        tso4: true,
        ..Offloads::default()
    };
    come(&wire, frame(100));
    driver.put(&[(ROOM, 12, true)]);
    driver.run();
    driver.reset();
    // Without checksums there are no large segments.
    driver.negotiate(VERSION_1 | F_GUEST_TSO4);
    driver.set_up_queue();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(wire.lock().unwrap().offloads, [tso4, Offloads::default()]);
    // The frame that waited for more buffers was for the driver before.
    driver.put(&[(ROOM, 2_000, true)]);
    driver.run();
    assert_eq!(driver.used(), None);
}

#[test]
fn failing_link_loses_frames_and_is_told_once_each_way() {
    let (mut driver, wire) = ready(0);
    {
        let mut wire = wire.lock().unwrap();
        for _ in 0..2 {
            wire.refusals.push_back(io::Error::other("down"));
            wire.coming.push_back(Err(io::Error::other("gone")));
        }
    }
    driver.put(&[(ROOM, 2_000, true)]);
    driver.queue = TX;
    for _ in 0..3 {
        driver.put(&[(ROOM, 100, false)]);
        driver.run();
        assert_eq!(driver.used(), Some((0, 0)));
    }
    let wire = wire.lock().unwrap();
    assert_eq!(wire.sent.len(), 1);
    let down = (Operation::Send, "down".to_owned());
    let gone = (Operation::Receive, "gone".to_owned());
    assert_eq!(wire.told, [gone, down]);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
}

/// As a tap does with a frame of which it cannot tell the offloads.
#[test]
fn frames_behind_those_that_a_link_loses_do_not_wait() {
    let (mut driver, wire) = ready(0);
    for _ in 0..3 {
        let lost = io::ErrorKind::InvalidInput.into();
        wire.lock().unwrap().coming.push_back(Err(lost));
    }
    come(&wire, frame(60));
    driver.put(&[(ROOM, 2_000, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 60)));
    assert_eq!(wire.lock().unwrap().told.len(), 1);
}

/// Each number is made by something else.
#[test]
fn card_counts_frames_and_what_became_of_them() {
    let limiter = |burst| {
        let bucket = Bucket::new(1, burst, Nanos::new(1_000)).unwrap();
        RateLimiter::new(None, Some(bucket), Box::new(|| Nanos::ZERO))
    };
    // One more than the burst goes through.
    let (net, wire) = card(Identity::default(), limiter(1), limiter(3));
    let counts = net.counts();
    let mut driver = Driver::ready(net, 0);
    {
        let mut wire = wire.lock().unwrap();
        let refused = io::ErrorKind::WouldBlock;
        wire.refusals.push_back(io::Error::other("down"));
        wire.refusals.push_back(refused.into());
        for _ in 0..3 {
            wire.coming.push_back(Err(io::Error::other("gone")));
        }
    }
    driver.put(&[(ROOM, 100, true)]);
    driver.queue = TX;
    for len in [100, 200, 300, 400, 25, 500, 500] {
        driver.put(&[(ROOM, len, false)]);
        driver.run();
    }
    // Lack of room is nothing to be told.
    assert_eq!(wire.lock().unwrap().told.len(), 2);
    driver.queue = RX;
    for len in [101, 25, 60, 90, 90, 90, 90] {
        come(&wire, frame(len));
        driver.put(&[(ROOM, 100, true)]);
        driver.run();
    }
    let tell = |direction: &Direction| {
        [
            &direction.frames,
            &direction.bytes,
            &direction.malformed,
            &direction.failures,
            &direction.throttled,
        ]
        .map(Count::get)
    };
    assert_eq!(tell(&counts.received), [2, 150, 2, 3, 3]);
    // The first run after the last frame that was let through, and each run from then on.
    assert_eq!(tell(&counts.sent), [2, 700, 1, 2, 9]);
}

/// A driver that refills its receive queue at once does not keep the other queue waiting, nor does one whose buffer is
/// too small for all that comes.
#[test]
fn queues_take_turns() {
    for room in [2_000, 50] {
        frames_without_end_come_into(room);
    }
}

fn frames_without_end_come_into(room: u32) {
    /// Frames without end, nearly, and a driver that gives a buffer for each.
    struct Flood {
        memory: Arc<OnceLock<Arc<GuestMemoryMmap>>>,
        received: u16,
        at_sending: Arc<AtomicU64>,
    }
    impl Link for Flood {
        fn offload(&mut self, _: Offloads) -> io::Result<()> {
            Ok(())
        }
        fn send(&mut self, _: &Buffers<'_>) -> io::Result<()> {
            self.at_sending
                .store(self.received.into(), Ordering::SeqCst);
            Ok(())
        }
        fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
            if self.received == 1_000 {
                return Ok(None);
            }
            self.received += 1;
            into[..100].fill(0);
            let index = GuestAddress(AVAILABLE + 2);
            let memory = self.memory.get().unwrap();
            let available: u16 = memory.read_obj(index).unwrap();
            memory.write_obj(available + 1, index).unwrap();
            Ok(Some(100))
        }
    }
    let (memory, at_sending) = (Arc::new(OnceLock::new()), Arc::new(AtomicU64::new(0)));
    let link = Flood {
        memory: memory.clone(),
        received: 0,
        at_sending: at_sending.clone(),
    };
    let net = Net::new(
        Box::new(link),
        Identity::default(),
        RateLimiter::unlimited(),
        RateLimiter::unlimited(),
        Box::new(|_, _| {}),
    );
    let mut driver = Driver::ready(net, 0);
    memory.set(driver.memory.clone()).unwrap();
    driver.queue = TX;
    driver.put(&[(ROOM, 100, false)]);
    driver.queue = RX;
    driver.describe_at(DESCRIPTORS, 0, (ROOM, room, WRITE, 0));
    driver.make_available(0);
    driver.run();
    assert_eq!(at_sending.load(Ordering::SeqCst), u64::from(driver.size));
}

/// Takes frames whose first byte is 1, and answers each with itself.
#[derive(Default)]
struct Side {
    taken: Vec<Vec<u8>>,
    answers: VecDeque<Vec<u8>>,
    shown: Vec<usize>,
    wait: Option<Nanos>,
}

#[derive(Clone, Default)]
struct Mirror(Arc<Mutex<Side>>, Vec<u8>);

impl Detour for Mirror {
    fn wants(&self, beginning: &[u8]) -> bool {
        self.0.lock().unwrap().shown.push(beginning.len());
        beginning[0] == 1
    }

    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.1 = vec![0; len];
        (len <= 1_000).then_some(&mut self.1)
    }

    fn arrived(&mut self) {
        let mut side = self.0.lock().unwrap();
        side.taken.push(self.1.clone());
        side.answers.push_back(self.1.clone());
    }

    fn give(&mut self, into: &mut [u8]) -> Option<usize> {
        let answer = self.0.lock().unwrap().answers.pop_front()?;
        into[..answer.len()].copy_from_slice(&answer);
        Some(answer.len())
    }

    fn wait(&mut self) -> Option<Nanos> {
        self.0.lock().unwrap().wait
    }
}

fn wanted(len: usize) -> Vec<u8> {
    let mut frame = frame(len);
    frame[HEADER] = 1;
    frame
}

#[test]
fn detour_takes_its_frames_before_the_link_and_answers_in_the_same_run() {
    let unlimited = RateLimiter::unlimited;
    let (net, wire) = card(Identity::default(), unlimited(), unlimited());
    let mirror = Mirror::default();
    let mut driver = Driver::ready(net.with_detour(Box::new(mirror.clone())), 0);
    driver.put_from(0, &[(ROOM, 2_000, true)]);
    driver.put_from(1, &[(ROOM + 0x1000, 2_000, true)]);
    driver.queue = TX;
    let (others, its) = (frame(80), wanted(300));
    driver.fill(ROOM + 0x2000, &others);
    // In two pieces, of which the first has not all that it is shown.
    driver.fill(ROOM + 0x3000, &its[..40]);
    driver.fill(ROOM + 0x4000, &its[40..]);
    driver.put_from(0, &[(ROOM + 0x2000, 80, false)]);
    driver.put_from(
        1,
        &[(ROOM + 0x3000, 40, false), (ROOM + 0x4000, 260, false)],
    );
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!((driver.used(), driver.used()), (Some((0, 0)), Some((1, 0))));
    assert_eq!(wire.lock().unwrap().sent, [others]);
    assert_eq!(mirror.0.lock().unwrap().shown, [80 - HEADER, PEEK]);
    assert_eq!(mirror.0.lock().unwrap().taken, std::slice::from_ref(&its));
    driver.queue = RX;
    assert_eq!(driver.used(), Some((0, 300)));
    assert_eq!(driver.bytes(ROOM, 300), received(&its, 1));
    // One that it wants and has no room for is not the link's either.
    driver.queue = TX;
    driver.fill(ROOM + 0x2000, &wanted(1_001));
    driver.put_from(2, &[(ROOM + 0x2000, 1_001, false)]);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.used(), Some((2, 0)));
    assert_eq!(wire.lock().unwrap().sent.len(), 1);
    assert_eq!(mirror.0.lock().unwrap().taken.len(), 1);
}

#[test]
fn detour_is_asked_again_after_its_time_and_its_frames_do_not_count() {
    let none_left = || {
        let bucket = Bucket::new(1, 0, Nanos::new(1_000)).unwrap();
        RateLimiter::new(Some(bucket), None, Box::new(|| Nanos::ZERO))
    };
    let (net, wire) = card(Identity::default(), none_left(), none_left());
    let mirror = Mirror::default();
    let mut driver = Driver::ready(net.with_detour(Box::new(mirror.clone())), 0);
    for place in 0..3 {
        driver.put_from(place, &[(ROOM + 0x1000 * u64::from(place), 2_000, true)]);
    }
    mirror.0.lock().unwrap().wait = Some(Nanos::new(5));
    assert_eq!(driver.run(), Next::After(Nanos::new(5)));
    mirror.0.lock().unwrap().answers.push_back(wanted(100));
    mirror.0.lock().unwrap().wait = None;
    // The link's frame takes all that there is, and more is for nobody but the detour.
    come(&wire, frame(100));
    come(&wire, frame(100));
    driver.queue = TX;
    driver.fill(ROOM + 0x4000, &wanted(200));
    for _ in 0..2 {
        driver.put(&[(ROOM + 0x4000, 200, false)]);
    }
    assert!(matches!(driver.run(), Next::After(_)));
    assert_eq!((driver.used(), driver.used()), (Some((0, 0)), Some((0, 0))));
    assert_eq!(mirror.0.lock().unwrap().taken.len(), 2);
    driver.queue = RX;
    assert_eq!(
        (driver.used(), driver.used()),
        (Some((0, 100)), Some((1, 100)))
    );
    assert_eq!(driver.bytes(ROOM, 100), received(&wanted(100), 1));
    assert_eq!(driver.bytes(ROOM + 0x1000, 100), received(&frame(100), 1));
    assert_eq!(driver.used(), None);
}
