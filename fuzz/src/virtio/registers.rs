//! The registers, under any accesses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::Arbitrary;
use devices::BusDevice;
use devices::rate_limiter::RateLimiter;
use devices::virtio::entropy::Entropy;
use devices::virtio::mmio::Registers;
use devices::virtio::{Engine, RegisterPage};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::input::decode;

/// The low half and the high one: event indices, indirect descriptors; version 1.
const FEATURES: [u32; 2] = [1 << 29 | 1 << 28, 1];
const LARGEST: u32 = 64;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any access.
    Read {
        offset: u16,
        len: u8,
    },
    Write {
        offset: u16,
        value: u64,
        len: u8,
    },
    /// One of 32 bits to a control register, of which there are 64 places.
    Control {
        register: u8,
        value: u32,
    },
    /// The next step of a lawful start.
    Next(u8),
    Run,
}

#[derive(Arbitrary, Debug)]
struct Input {
    steps: Vec<Step>,
}

/// What the specification says (4.2.2, 2.1), of a device with one queue.
#[derive(Clone, Copy, Debug, Default)]
struct Model {
    status: u32,
    device_half: u32,
    driver_half: u32,
    features: [u32; 2],
    queue: u32,
    size: u32,
    ready: bool,
    /// Of descriptors, of the driver's ring, of the device's.
    rings: [u64; 3],
}

impl Model {
    fn new() -> Self {
        Self {
            size: LARGEST,
            ..Self::default()
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn read(&self, register: u32) -> Option<u32> {
        let [low, high] = FEATURES;
        Some(match register {
            0x00 => u32::from_le_bytes(*b"virt"),
            0x04 => 2,
            0x08 => 4,
            0x0c => u32::from_le_bytes(*b"KEEP"),
            0x10 => match self.device_half {
                0 => low,
                1 => high,
                _ => 0,
            },
            0x34 if self.queue == 0 => LARGEST,
            0x44 => u32::from(self.ready && self.queue == 0),
            // What the device does, at its time.
            0x60 | 0x70 => return None,
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        })
    }

    fn write(&mut self, register: u32, value: u32) {
        let sets_up = self.has(FEATURES_OK) && !self.has(DRIVER_OK) && self.queue == 0;
        let set = |number: &mut u64, high: bool| {
            let shift = if high { 32 } else { 0 };
            *number = *number & !(0xffff_ffff << shift) | u64::from(value) << shift;
        };
        match register {
            0x14 => self.device_half = value,
            0x24 => self.driver_half = value,
            0x20 if self.has(DRIVER) && !self.has(FEATURES_OK) => match self.driver_half {
                0 => self.features[0] = value,
                1 => self.features[1] = value,
                _ if value != 0 => self.status |= FAILED,
                _ => {}
            },
            0x30 => self.queue = value,
            0x38 if sets_up && !self.ready => self.size = value,
            0x44 if sets_up => self.ready = value & 1 != 0,
            0x70 if value == 0 => *self = Self::new(),
            0x70 => self.advance(value),
            0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 if sets_up && !self.ready => {
                let ring = (register as usize - 0x80) / 0x10;
                set(&mut self.rings[ring], register & 4 != 0);
            }
            _ => {}
        }
    }

    fn advance(&mut self, value: u32) {
        let steps = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        // None is taken back.
        if self.status & steps & !value != 0 {
            return;
        }
        self.status |= value & FAILED;
        let [low, high] = FEATURES;
        // Version 1, the only one of the high half, is a must.
        let acceptable = self.features[0] & !low == 0 && self.features[1] == high;
        for (step, after, may) in [
            (ACKNOWLEDGE, 0, true),
            (DRIVER, ACKNOWLEDGE, true),
            (FEATURES_OK, DRIVER, acceptable),
            (DRIVER_OK, FEATURES_OK, true),
        ] {
            let new = value & step != 0 && !self.has(step);
            if new && (after == 0 || self.has(after)) && may && !self.has(FAILED) {
                self.status |= step;
            } else if !self.has(step) {
                return;
            }
        }
    }

    /// Whether the queue is one that there can be (2.7), in 64 KiB of memory.
    fn queue_is_possible(&self) -> bool {
        if !self.ready {
            return true;
        }
        let size = u64::from(self.size);
        let possible = self.size.is_power_of_two() && self.size <= LARGEST;
        let parts = [(16, 16 * size), (2, 6 + 2 * size), (4, 6 + 8 * size)];
        possible
            && self
                .rings
                .iter()
                .zip(parts)
                .all(|(ring, (alignment, len))| {
                    *ring != 0
                        && ring % alignment == 0
                        && ring.checked_add(len).is_some_and(|end| end <= 0x1_0000)
                })
    }
}

/// Any accesses to a device's registers: they read as the model of them does, the width and the order decide what
/// is taken, and a queue that cannot be is told by `DEVICE_NEEDS_RESET`.
///
/// # Panics
/// When they read otherwise.
pub fn virtio_mmio(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("memory");
    let device = Entropy::new(
        Box::new(|_| Ok(())),
        RateLimiter::unlimited(),
        Box::new(|_| {}),
    );
    let rings = Arc::new(AtomicU32::new(0));
    let bell = rings.clone();
    let engine = Arc::new(Engine::new(
        device,
        Arc::new(memory),
        RegisterPage::apart().expect("a page"),
        Box::new(|| {}),
    ));
    let mut registers = Registers::new(
        engine.clone(),
        Box::new(move || {
            bell.fetch_add(1, Ordering::SeqCst);
        }),
    );
    let mut model = Model::new();
    let write = |registers: &mut Registers<Entropy>, model: &mut Model, offset: u32, value: u32| {
        let before = *model;
        model.write(offset, value);
        let rung = rings.load(Ordering::SeqCst);
        let _ = registers.write(offset.into(), &value.to_le_bytes());
        let started = !before.has(DRIVER_OK) && model.has(DRIVER_OK);
        let notified = offset == 0x50 && model.has(DRIVER_OK);
        let rings = rings.load(Ordering::SeqCst) - rung;
        assert_eq!(rings, u32::from(started || notified), "{offset:#x}");
        started
    };
    let read = |registers: &mut Registers<Entropy>, offset: u32| {
        let mut data = [0; 4];
        registers.read(offset.into(), &mut data);
        let value = u32::from_le_bytes(data);
        // A guest that has them in memory reads the same.
        assert_eq!(engine.page().read(offset), value, "{offset:#x}");
        value
    };
    for step in input.steps.iter().take(256) {
        let mut started = false;
        match step {
            Step::Read { offset, len } => {
                let mut data = vec![0x55; usize::from(len % 9)];
                registers.read((*offset).into(), &mut data);
                // The configuration space has no fields, and other widths reach no register.
                let is_control = *offset < 0x100 && data.len() == 4 && offset.is_multiple_of(4);
                assert!(
                    is_control || data.iter().all(|byte| *byte == 0),
                    "{offset:#x}"
                );
            }
            Step::Write { offset, value, len } => {
                let len = usize::from(len % 9);
                if *offset >= 0x100 || len != 4 || !offset.is_multiple_of(4) {
                    let _ = registers.write((*offset).into(), &value.to_le_bytes()[..len]);
                }
            }
            Step::Control { register, value } => {
                let offset = u32::from(register % 64) * 4;
                started = write(&mut registers, &mut model, offset, *value);
            }
            Step::Next(chance) => {
                let next = if !model.has(DRIVER) {
                    vec![(0x70, 3)]
                } else if !model.has(FEATURES_OK) {
                    vec![(0x24, 1), (0x20, 1), (0x70, 11)]
                } else {
                    let size = 1 << (chance % 8);
                    vec![
                        (0x30, 0),
                        (0x38, size),
                        (0x80, 0x1000),
                        (0x90, 0x2000),
                        (0xa0, 0x3000),
                        (0x44, 1),
                        (0x70, 15),
                    ]
                };
                for (offset, value) in next {
                    started |= write(&mut registers, &mut model, offset, value);
                }
            }
            Step::Run => {
                engine.run();
            }
        }
        let status = read(&mut registers, 0x70);
        assert_eq!(status & !NEEDS_RESET, model.status, "{step:?}");
        assert!(status & NEEDS_RESET == 0 || model.has(DRIVER_OK));
        if started {
            let failed = status & NEEDS_RESET != 0;
            assert_eq!(failed, !model.queue_is_possible(), "{model:?}");
        }
        for register in (0..0x100).step_by(4) {
            if let Some(value) = model.read(register) {
                assert_eq!(read(&mut registers, register), value, "{register:#x}");
            }
        }
    }
}
