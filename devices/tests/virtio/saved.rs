//! The transport of a device, saved and given to another one.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use devices::BusDevice;
use devices::virtio::state::{QueueState, State, StateError};
use devices::virtio::{Chain, ConfigSpace, Device, Kind, Served, Violation};
use proptest::prelude::*;

use crate::driver::*;
use crate::{Probe, probed};

#[test]
fn driver_goes_on_where_it_was() {
    for features in [0, EVENT_INDEX] {
        let (mut driver, _) = probed(features);
        // More than once round the rings.
        for request in 0..40 {
            driver.put(&[(ROOM, 8, true)]);
            driver.run();
            assert_eq!(driver.used(), Some((0, 8)), "{request}");
        }
        driver.put_from(1, &[(ROOM, 3, true)]);
        driver.put_from(2, &[(ROOM, 5, true)]);
        let state = driver.save();
        let (probe, log) = Probe::new();
        let mut driver = driver.restored(probe, &state).expect("a state");
        assert_eq!(driver.save(), state);
        assert_eq!(log.lock().unwrap().started, [features | VERSION_1]);
        assert_eq!(driver.notifications(), 1, "what is in the rings is served");
        driver.run();
        assert_eq!(driver.used(), Some((1, 3)));
        assert_eq!(driver.used(), Some((2, 5)));
        assert_eq!(driver.used(), None);
        // A device that was reset since is one like any other.
        driver.reset();
        driver.begin(features);
        driver.put(&[(ROOM, 8, true)]);
        driver.run();
        assert_eq!(driver.used(), Some((0, 8)));
    }
}

#[test]
fn device_that_wants_a_reset_still_does() {
    let (mut driver, _) = probed(0);
    driver.put(&[(HOLE, 8, true)]);
    driver.run();
    assert_ne!(driver.read(STATUS) & NEEDS_RESET, 0);
    let state = driver.save();
    let mut driver = driver.restored(Probe::new().0, &state).expect("a state");
    assert_ne!(driver.read(STATUS) & NEEDS_RESET, 0);
    driver.put(&[(ROOM, 8, true)]);
    driver.run();
    assert_eq!((driver.used(), driver.interrupts()), (None, 0));
    driver.reset();
    driver.begin(0);
    driver.put(&[(ROOM, 8, true)]);
    driver.run();
    assert_eq!(driver.used(), Some((0, 8)));
}

/// A device in whose configuration space the driver writes the second word.
#[derive(Default)]
struct Slate(Arc<Mutex<Vec<u32>>>);

impl Device for Slate {
    type Update = ();

    const KIND: Kind = Kind::Balloon;

    const QUEUES: &'static [u16] = &[16];

    const WRITABLE: &'static [Range<usize>] = &[4..6, 6..8];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::EMPTY.with(&[1; 4]).with(&[2; 4])
    }

    fn start(&mut self, _: u64) {}

    fn configured(&mut self, space: &ConfigSpace) {
        let mut word = [0; 4];
        space.read(4, &mut word);
        self.0.lock().unwrap().push(u32::from_le_bytes(word));
    }

    fn serve(&mut self, _: usize, _: &Chain<'_>) -> Result<Served, Violation> {
        Ok(Served::Idle)
    }

    fn update(&mut self, (): ()) {}
}

#[test]
fn what_the_driver_wrote_into_the_configuration_space_comes_back() {
    let mut driver = Driver::ready(Slate::default(), 0);
    driver.write(CONFIG, 0x0505_0505);
    driver.write(CONFIG + 4, 77);
    let mut state = driver.save();
    // The rest is the device's own.
    state.config[0] = 9;
    let slate = Slate::default();
    let told = slate.0.clone();
    let mut driver = driver.restored(slate, &state).expect("a state");
    assert_eq!(driver.read(CONFIG), 0x0101_0101);
    assert_eq!(driver.read(CONFIG + 4), 77);
    driver.run();
    assert_eq!(*told.lock().unwrap(), [77]);
}

#[test]
fn state_that_cannot_be_is_refused_with_the_reason() {
    let (mut driver, _) = probed(0);
    let good = driver.save();
    let refused = |change: &dyn Fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        let restored = driver.restored(Probe::new().0, &state);
        restored.err().expect("no such state")
    };
    assert_eq!(
        refused(&|state| state.queues.push(QueueState::default())),
        StateError::Queues {
            found: 2,
            expected: 1
        }
    );
    for status in [DRIVER, DRIVER_OK, ACKNOWLEDGE | FEATURES_OK, 16, u32::MAX] {
        assert_eq!(
            refused(&|state| state.status = status),
            StateError::Status(status)
        );
    }
    for features in [0, VERSION_1 | 1 << 6, u64::MAX] {
        let error = refused(&|state| state.driver_features = features);
        assert!(matches!(error, StateError::Features { driver, .. } if driver == features));
    }
    for change in [
        &|queue: &mut QueueState| queue.size = 3,
        &|queue: &mut QueueState| queue.size = 32,
        &|queue: &mut QueueState| queue.size = 0x1_0010,
        &|queue: &mut QueueState| queue.descriptors += 1,
        &|queue: &mut QueueState| queue.driver = 0,
        &|queue: &mut QueueState| queue.device = HOLE - 4,
        &|queue: &mut QueueState| queue.device = u64::MAX - 3,
    ] as [&dyn Fn(&mut QueueState); 7]
    {
        let error = refused(&|state| change(&mut state.queues[0]));
        assert_eq!(error, StateError::Queue(0));
    }
    assert_eq!(
        refused(&|state| {
            state.config.pop();
        }),
        StateError::Config {
            found: 9,
            expected: 10
        }
    );
}

/// Registers that a driver may write, and some that it may not.
fn write() -> impl Strategy<Value = (u64, u32)> {
    let registers = [
        DEVICE_FEATURES_SEL,
        DRIVER_FEATURES,
        DRIVER_FEATURES_SEL,
        QUEUE_SEL,
        QUEUE_SIZE,
        QUEUE_READY,
        QUEUE_NOTIFY,
        INTERRUPT_ACK,
        QUEUE_DESC,
        QUEUE_DRIVER + 4,
        QUEUE_DEVICE,
        MAGIC,
    ];
    let steps = [0, 1, 3, 11, 15, 0x8b];
    prop_oneof![
        3 => prop::sample::select(steps.to_vec()).prop_map(|status| (STATUS, status)).boxed(),
        1 => (
            prop::sample::select(registers.to_vec()),
            prop_oneof![0_u32..3, Just(VERSION_1 as u32), Just(16), any::<u32>()],
        )
            .boxed(),
        1 => Just((DRIVER_FEATURES_SEL, 1)).boxed(),
        1 => Just((DRIVER_FEATURES, 1)).boxed(),
    ]
}

const READABLE: [u64; 10] = [
    MAGIC,
    VERSION,
    DEVICE_ID,
    DEVICE_FEATURES,
    QUEUE_SIZE_MAX,
    QUEUE_READY,
    INTERRUPT_STATUS,
    STATUS,
    CONFIG_GENERATION,
    CONFIG,
];

fn any_queue() -> impl Strategy<Value = QueueState> {
    (
        prop_oneof![Just(16_u32), any::<u32>()],
        any::<bool>(),
        any::<[u16; 5]>(),
    )
        .prop_map(|(size, ready, [a, b, c, next_available, next_used])| {
            let at = |place: u16| u64::from(place) << 4;
            QueueState {
                size,
                ready,
                descriptors: at(a),
                driver: at(b),
                device: at(c),
                next_available,
                next_used,
            }
        })
}

proptest! {
    /// However far the driver came, and whatever else it wrote.
    #[test]
    fn state_of_any_driver_comes_back(writes in prop::collection::vec(write(), 0..60)) {
        let mut driver = Driver::new(Probe::new().0);
        for (register, value) in writes {
            driver.write(register, value);
        }
        let state = driver.save();
        let mut other = driver.restored(Probe::new().0, &state).expect("a state");
        prop_assert_eq!(other.save(), state);
        for register in READABLE {
            prop_assert_eq!(driver.read(register), other.read(register), "{:#x}", register);
        }
        // And both go on alike.
        for (register, value) in [(QUEUE_SEL, 0), (QUEUE_READY, 1), (STATUS, 15)] {
            driver.write(register, value);
            other.write(register, value);
            for register in READABLE {
                prop_assert_eq!(driver.read(register), other.read(register), "{:#x}", register);
            }
        }
    }

    /// Bytes that somebody made up.
    #[test]
    fn any_state_is_refused_or_served(
        status in prop_oneof![Just(15_u32), Just(79), any::<u32>()],
        features in prop_oneof![Just(VERSION_1), any::<u64>()],
        selects in any::<[u32; 3]>(),
        queues in prop::collection::vec(any_queue(), 1..3),
        interrupt_status in any::<u32>(),
        config in prop::collection::vec(any::<u8>(), 10..12),
    ) {
        let state = State {
            status,
            device_features_select: selects[0],
            driver_features_select: selects[1],
            driver_features: features,
            queue_select: selects[2],
            queues,
            interrupt_status,
            config_generation: selects[0],
            config,
        };
        let driver = Driver::new(Probe::new().0);
        if let Ok(mut driver) = driver.restored(Probe::new().0, &state) {
            driver.run();
            driver.read(STATUS);
            let mut config = [0; 8];
            driver.registers.read(CONFIG, &mut config);
        }
    }
}
