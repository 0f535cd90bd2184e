//! Negotiation, set-up, notifications and the configuration space.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use devices::BusDevice;
use devices::virtio::{Chain, ConfigSpace, Device, Kind, Next, Served, Violation};

use crate::driver::*;
use crate::{Probe, probed};

#[test]
fn identity_is_that_of_a_modern_device() {
    let mut driver = Driver::new(Probe::new().0);
    assert_eq!(driver.read(MAGIC).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(VERSION), 2);
    assert_eq!(driver.read(DEVICE_ID), 4);
    assert_eq!(
        driver.offered(),
        VERSION_1 | EVENT_INDEX | INDIRECT | 1 << 5
    );
    driver.write(DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(DEVICE_FEATURES), 0);
    assert_eq!(driver.read(QUEUE_SIZE_MAX), 16);
    driver.write(QUEUE_SEL, 1);
    assert_eq!(driver.read(QUEUE_SIZE_MAX), 0);
    // No shared memory regions: their length is -1.
    assert_eq!(driver.read(0xb0), u32::MAX);
}

#[test]
fn control_registers_take_aligned_words_alone() {
    let mut driver = Driver::new(Probe::new().0);
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 3)] {
        let mut data = vec![0xff; len];
        driver.registers.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x} {len}");
        let _ = driver.registers.write(STATUS + offset, &vec![1; len]);
    }
    assert_eq!(driver.read(STATUS), 0);
}

#[test]
fn features_ok_is_refused_for_what_is_not_on_offer_and_for_legacy_drivers() {
    // (features, accepted)
    for (features, accepted) in [
        (VERSION_1, true),
        (VERSION_1 | 1 << 5 | EVENT_INDEX, true),
        (0, false),
        (1 << 5, false),
        (VERSION_1 | 1 << 6, false),
        (VERSION_1 | 1 << 40, false),
        (u64::MAX, false),
    ] {
        let mut driver = Driver::new(Probe::new().0);
        let status = driver.negotiate(features);
        assert_eq!(status & FEATURES_OK != 0, accepted, "{features:#x}");
        // and without it there is no going on
        driver.set_up_queue();
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        assert_eq!(driver.read(STATUS) & DRIVER_OK, 0, "{features:#x}");
        // A refused driver may try with others.
        if !accepted {
            assert_ne!(driver.negotiate(VERSION_1) & FEATURES_OK, 0);
        }
    }
}

#[test]
fn features_beyond_64_are_refused() {
    let mut driver = Driver::new(Probe::new().0);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.write(DRIVER_FEATURES_SEL, 2);
    driver.write(DRIVER_FEATURES, 1);
    assert_eq!(driver.negotiate(VERSION_1) & FEATURES_OK, 0);
    driver.write(STATUS, 0);
    assert_ne!(driver.negotiate(VERSION_1) & FEATURES_OK, 0);
}

#[test]
fn features_are_frozen_once_accepted() {
    let (mut driver, log) = probed(1 << 5);
    driver.write(DRIVER_FEATURES_SEL, 0);
    driver.write(DRIVER_FEATURES, 0);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    assert_eq!(log.lock().unwrap().started, [VERSION_1 | 1 << 5]);
}

#[test]
fn status_bits_are_added_in_order_and_none_is_taken_away() {
    let mut driver = Driver::new(Probe::new().0);
    driver.write(STATUS, DRIVER);
    assert_eq!(driver.read(STATUS), 0);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER_OK);
    assert_eq!(driver.read(STATUS), ACKNOWLEDGE);
    driver.write(STATUS, DRIVER);
    assert_eq!(driver.read(STATUS), ACKNOWLEDGE);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | NEEDS_RESET);
    assert_eq!(driver.read(STATUS), ACKNOWLEDGE | DRIVER);
    driver.write(STATUS, ACKNOWLEDGE);
    assert_eq!(driver.read(STATUS), ACKNOWLEDGE | DRIVER);
    driver.write(STATUS, 0);
    assert_eq!(driver.read(STATUS), 0);
}

#[test]
fn queue_registers_are_frozen_once_the_driver_is_ready() {
    let (mut driver, log) = probed(0);
    driver.set_address(QUEUE_DESC, HOLE);
    driver.set_address(QUEUE_DRIVER, HOLE);
    driver.set_address(QUEUE_DEVICE, HOLE);
    driver.write(QUEUE_SIZE, 1);
    driver.write(QUEUE_READY, 0);
    assert_eq!(driver.read(QUEUE_READY), 1);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 4)));
    assert_eq!(log.lock().unwrap().served, [(0, 0, 4)]);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn queue_registers_are_frozen_before_the_features_are_and_while_the_queue_is_ready() {
    let mut driver = Driver::new(Probe::new().0);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.set_up_queue();
    assert_eq!(driver.read(QUEUE_READY), 0);
    driver.negotiate(VERSION_1);
    driver.set_up_queue();
    // Another place needs the queue to be taken back first.
    driver.set_address(QUEUE_DESC, HOLE);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, 0);
    assert_eq!(driver.read(QUEUE_READY), 1);
}

#[test]
fn notification_counts_once_the_driver_is_ready() {
    let mut driver = Driver::new(Probe::new().0);
    driver.write(QUEUE_NOTIFY, 0);
    let count = |driver: &Driver<Probe>| {
        driver
            .notifications
            .load(std::sync::atomic::Ordering::SeqCst)
    };
    assert_eq!(count(&driver), 0);
    let (mut driver, _) = probed(0);
    // once for what was there before it was ready
    assert_eq!(count(&driver), 1);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(count(&driver), 2);
}

#[test]
fn interrupt_is_told_acknowledged_and_suppressed_by_flag() {
    let (mut driver, _) = probed(0);
    driver.put(&[(ROOM, 4, true)]);
    assert_eq!(driver.run(), Next::Notification);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    // VIRTQ_AVAIL_F_NO_INTERRUPT
    driver.store(AVAILABLE, 1_u16);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn event_index_suppresses_interrupts_and_asks_for_notifications() {
    let (mut driver, log) = probed(EVENT_INDEX);
    let used_event = AVAILABLE + 4 + 2 * 16;
    let available_event = USED + 4 + 8 * 16;
    // Interrupt after the third (2.7.7: when index `used_event` is used).
    driver.store(used_event, 2_u16);
    for (done, interrupts) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
        driver.put(&[(ROOM, 4, true)]);
        driver.run();
        assert_eq!(driver.interrupts(), interrupts, "{done}");
        // The device wants to hear of the next one (2.7.10).
        assert_eq!(driver.load::<u16>(available_event), done);
    }
    assert_eq!(log.lock().unwrap().served.len(), 4);
    // The flag means nothing now.
    driver.store(AVAILABLE, 1_u16);
    driver.store(used_event, 4_u16);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    assert_eq!(driver.interrupts(), 2);
}

#[test]
fn event_index_goes_around_with_the_ring() {
    let (mut driver, log) = probed(EVENT_INDEX);
    let used_event = AVAILABLE + 4 + 2 * 16;
    for count in 0..70_000_u32 {
        driver.store(used_event, count as u16);
        driver.put(&[(ROOM, 1, true)]);
        driver.run();
        assert_eq!(driver.used(), Some((0, 1)), "{count}");
    }
    assert_eq!(driver.interrupts(), 70_000);
    assert_eq!(log.lock().unwrap().served.len(), 70_000);
}

#[test]
fn configuration_reads_in_any_width_and_changes_with_a_new_generation() {
    let (mut driver, _) = probed(0);
    assert_eq!(driver.read(CONFIG), 7);
    let mut byte = [0xff];
    driver.registers.read(CONFIG + 9, &mut byte);
    assert_eq!(byte, [2]);
    let mut beyond = [0xff; 8];
    driver.registers.read(CONFIG + 8, &mut beyond);
    assert_eq!(beyond, [1, 2, 0, 0, 0, 0, 0, 0]);
    driver.registers.read(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 8]);

    let generation = driver.read(CONFIG_GENERATION);
    driver.engine.change(|number| *number = Some(9));
    driver.run();
    assert_eq!(driver.read(CONFIG), 9);
    let another = driver.read(CONFIG_GENERATION);
    assert_ne!(another, generation);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    // The same once more is no change.
    driver.engine.change(|number| *number = Some(9));
    driver.run();
    assert_eq!(driver.read(CONFIG_GENERATION), another);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn reset_brings_everything_back_to_the_beginning() {
    let (mut driver, log) = probed(1 << 5);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    driver.put(&[(ROOM, 4, true)]);
    driver.reset();
    for register in [STATUS, QUEUE_READY, INTERRUPT_STATUS] {
        assert_eq!(driver.read(register), 0, "{register:#x}");
    }
    driver.run();
    assert_eq!(driver.used(), None);
    // and again from the start
    driver.negotiate(VERSION_1);
    driver.set_up_queue();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.put(&[(ROOM, 4, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 4)));
    let log = log.lock().unwrap();
    assert_eq!(log.started, [VERSION_1 | 1 << 5, VERSION_1]);
    assert_eq!(log.served.len(), 2);
}

#[test]
fn held_engine_serves_nothing_until_it_is_released() {
    let (mut driver, log) = probed(0);
    driver.put(&[(ROOM, 4, true)]);
    let engine = driver.engine.clone();
    let hold = engine.hold();
    let runner = driver.engine.clone();
    let thread = std::thread::spawn(move || runner.run());
    // A reset holds it as well, and does not wait for the first to go.
    let again = engine.hold();
    drop(again);
    assert!(log.lock().unwrap().served.is_empty());
    drop(hold);
    assert_eq!(thread.join().unwrap(), Next::Notification);
    assert_eq!(log.lock().unwrap().served.len(), 1);
}

/// A device that is in a request until it is let go.
struct Slow {
    entered: Sender<()>,
    go: Receiver<()>,
    left: Arc<AtomicBool>,
}

impl Device for Slow {
    type Update = ();

    const KIND: Kind = Kind::Entropy;

    const QUEUES: &'static [u16] = &[16];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::EMPTY
    }

    fn start(&mut self, _: u64) {}

    fn serve(&mut self, _: usize, _: &Chain<'_>) -> Result<Served, Violation> {
        self.entered.send(()).unwrap();
        self.go.recv().unwrap();
        self.left.store(true, Ordering::SeqCst);
        Ok(Served::Done { written: 0 })
    }

    fn update(&mut self, (): ()) {}
}

#[test]
fn reset_in_the_middle_of_a_request_waits_for_it() {
    let (entered, has_entered) = channel();
    let (let_go, go) = channel();
    let left = Arc::new(AtomicBool::new(false));
    let device = Slow {
        entered,
        go,
        left: left.clone(),
    };
    let mut driver = Driver::ready(device, 0);
    driver.put(&[(ROOM, 4, true)]);
    let engine = driver.engine.clone();
    let server = std::thread::spawn(move || engine.run());
    has_entered.recv().unwrap();
    // An interrupt is looked at meanwhile: this waits for nobody.
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    assert_eq!(driver.read(STATUS) & DRIVER_OK, DRIVER_OK);
    let resetter = std::thread::spawn(move || {
        driver.write(STATUS, 0);
        assert!(left.load(Ordering::SeqCst), "reset while in a request");
        driver
    });
    let_go.send(()).unwrap();
    let mut driver = resetter.join().unwrap();
    assert_eq!(server.join().unwrap(), Next::Notification);
    assert_eq!(driver.read(STATUS), 0);
}

#[test]
fn queue_place_from_before_the_features_is_forgotten() {
    let mut driver = Driver::new(Probe::new().0);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.set_up_queue();
    driver.negotiate(VERSION_1);
    driver.write(QUEUE_READY, 1);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    // A ring at address 0 is none.
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
}
