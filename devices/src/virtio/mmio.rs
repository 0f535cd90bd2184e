//! The registers of a virtio device in memory (4.2), of the modern kind only: `Version` reads 2.
//!
//! What a driver may write depends on how far it has come, and what it may not is ignored:
//!
//! | register | writable |
//! | --- | --- |
//! | `DriverFeatures` | after `DRIVER`, before `FEATURES_OK` |
//! | `QueueSize`, addresses | after `FEATURES_OK`, before `DRIVER_OK`, while the queue's `QueueReady` is 0 |
//! | `QueueReady` | after `FEATURES_OK`, before `DRIVER_OK` |
//! | `Status` | bits are added, none taken away; 0 resets the device |
//!
//! Control registers are read and written 32 bits wide and aligned (4.2.2.2): other accesses read zeros, or parts of
//! them where they are [in a page](super::RegisterPage), and write nothing. The configuration space takes any width;
//! what a device lets be written there ([`Device::WRITABLE`]) can be after `FEATURES_OK`.

use std::fmt;
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio as register;
use virtio_queue::Queue;

use super::state::{QueueState, State, StateError};
use super::{Device, Engine, Hold, VERSION_1};
use crate::bus::{BusDevice, Reaction};
use crate::trigger::Trigger;

/// `MagicValue`: "virt".
const MAGIC: u32 = 0x7472_6976;
/// `Version` of a device that is not legacy.
const VERSION: u32 = 2;
/// `VendorID`: "KEEP". It means nothing to drivers.
const VENDOR: u32 = 0x5045_454b;
/// Offset of `QueueNotify`, to which a hypervisor can listen by itself.
pub const QUEUE_NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Offset of the configuration space.
const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// What reads the same at all times. Of a device without shared memory the regions' lengths and bases do.
const CONSTANT: [u32; 8] = [
    register::VIRTIO_MMIO_MAGIC_VALUE,
    register::VIRTIO_MMIO_VERSION,
    register::VIRTIO_MMIO_DEVICE_ID,
    register::VIRTIO_MMIO_VENDOR_ID,
    register::VIRTIO_MMIO_SHM_LEN_LOW,
    register::VIRTIO_MMIO_SHM_LEN_HIGH,
    register::VIRTIO_MMIO_SHM_BASE_LOW,
    register::VIRTIO_MMIO_SHM_BASE_HIGH,
];
/// What changes by the driver's writes alone, most of it by another selection.
const SELECTED: [u32; 3] = [
    register::VIRTIO_MMIO_DEVICE_FEATURES,
    register::VIRTIO_MMIO_QUEUE_NUM_MAX,
    register::VIRTIO_MMIO_QUEUE_READY,
];

/// How far a driver has come (2.1), as bits of `Status`.
mod status {
    use super::*;

    pub(super) const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
    pub(super) const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
    pub(super) const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
    pub(super) const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
    pub(super) const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
    pub(super) const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
    /// The order in which a driver adds them.
    pub(super) const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
    /// What it can have come to by these.
    pub(super) const REACHED: [u32; 5] = [
        0,
        ACKNOWLEDGE,
        ACKNOWLEDGE | DRIVER,
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
    ];
}

/// Puts 32 bits into the low or the high half.
fn set_half(address: &mut u64, high: bool, value: u32) {
    let value = u64::from(value);
    *address = if high {
        (*address & 0xffff_ffff) | value << 32
    } else {
        (*address & !0xffff_ffff) | value
    };
}

/// The registers of one device: see the [module](self).
pub struct Registers<D: Device> {
    engine: Arc<Engine<D>>,
    notify: Box<dyn Trigger>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    /// What the driver wrote. How far they are served is the engine's.
    queues: Vec<QueueState>,
}

impl<D: Device> Registers<D> {
    /// The registers of a device that was just switched on. `notify` has somebody call [`Engine::run`].
    #[must_use]
    pub fn new(engine: Arc<Engine<D>>, notify: Box<dyn Trigger>) -> Self {
        let mut registers = Self {
            engine,
            notify,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: D::QUEUES.iter().copied().map(QueueState::new).collect(),
        };
        registers.show(&CONSTANT);
        registers.show(&SELECTED);
        registers
    }

    /// The registers as they were saved, of a device that was just made for the same driver. Requests that are in its
    /// rings are served once somebody calls [`Engine::run`], which `notify` is triggered for.
    ///
    /// # Errors
    /// The state is none that this device can have.
    pub fn from_state(
        state: &State,
        engine: Arc<Engine<D>>,
        notify: Box<dyn Trigger>,
    ) -> Result<Self, StateError> {
        let mut registers = Self::new(engine, notify);
        registers.check(state)?;
        registers.status = state.status & !status::NEEDS_RESET;
        registers.device_features_select = state.device_features_select;
        registers.driver_features_select = state.driver_features_select;
        registers.driver_features = state.driver_features;
        registers.queue_select = state.queue_select;
        registers.queues.clone_from(&state.queues);
        registers.engine.restore(state);
        if state.status & status::NEEDS_RESET != 0 {
            registers.engine.restore_failure();
        } else if registers.has(status::DRIVER_OK) {
            let queues = registers.places();
            registers
                .engine
                .restore_queues(queues, state.driver_features)?;
            registers.notify.trigger();
        }
        registers.show(&SELECTED);
        registers.engine.page().add_status(registers.status);
        Ok(registers)
    }

    fn check(&self, state: &State) -> Result<(), StateError> {
        let (found, expected) = (state.queues.len(), D::QUEUES.len());
        if found != expected {
            return Err(StateError::Queues { found, expected });
        }
        let steps = state.status & !(status::NEEDS_RESET | status::FAILED);
        if !status::REACHED.contains(&steps) {
            return Err(StateError::Status(state.status));
        }
        let (driver, offered) = (state.driver_features, self.engine.features());
        if steps & status::FEATURES_OK != 0 && !are_acceptable(driver, offered) {
            return Err(StateError::Features { driver, offered });
        }
        let (found, expected) = (state.config.len(), self.engine.config().len());
        if found != expected {
            return Err(StateError::Config { found, expected });
        }
        Ok(())
    }

    /// What is to be saved of a device whose engine is held.
    #[must_use]
    pub fn state(&mut self, hold: &Hold) -> State {
        let mut queues = self.queues.clone();
        for (queue, (available, used)) in queues.iter_mut().zip(self.engine.positions(hold)) {
            (queue.next_available, queue.next_used) = (available, used);
        }
        State {
            status: self.read_register(register::VIRTIO_MMIO_STATUS),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues,
            interrupt_status: self.read_register(register::VIRTIO_MMIO_INTERRUPT_STATUS),
            config_generation: self.read_register(register::VIRTIO_MMIO_CONFIG_GENERATION),
            config: self.engine.config().bytes().to_vec(),
        }
    }

    /// Puts what these registers read into the page.
    fn show(&mut self, offsets: &[u32]) {
        for offset in offsets {
            let value = self.read_register(*offset);
            self.engine.page().store(*offset, value);
        }
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    /// The driver's features can be written.
    fn negotiates(&self) -> bool {
        self.has(status::DRIVER) && !self.has(status::FEATURES_OK)
    }

    /// Queues can be set up.
    fn sets_up(&self) -> bool {
        self.has(status::FEATURES_OK) && !self.has(status::DRIVER_OK)
    }

    fn selected(&mut self) -> Option<&mut QueueState> {
        let index = usize::try_from(self.queue_select).ok()?;
        self.queues.get_mut(index)
    }

    /// The selected queue, if its place can be written.
    fn writable(&mut self) -> Option<&mut QueueState> {
        if !self.sets_up() {
            return None;
        }
        self.selected().filter(|queue| !queue.ready)
    }

    fn read_register(&mut self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => D::KIND as u32,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.engine.features(), self.device_features_select)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                let index = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
                D::QUEUES.get(index).copied().unwrap_or(0).into()
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                self.selected().is_some_and(|queue| queue.ready).into()
            }
            register::VIRTIO_MMIO_INTERRUPT_STATUS => {
                (self.engine.page()).read(register::VIRTIO_MMIO_INTERRUPT_STATUS)
            }
            register::VIRTIO_MMIO_STATUS => {
                let failed = self.engine.failed();
                self.status | if failed { status::NEEDS_RESET } else { 0 }
            }
            // There are no shared memory regions (4.2.2: a length of -1 says so).
            register::VIRTIO_MMIO_SHM_LEN_LOW..=register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            register::VIRTIO_MMIO_CONFIG_GENERATION => {
                (self.engine.page()).read(register::VIRTIO_MMIO_CONFIG_GENERATION)
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES if self.negotiates() => {
                match self.driver_features_select {
                    0 => set_half(&mut self.driver_features, false, value),
                    1 => set_half(&mut self.driver_features, true, value),
                    // There are no features beyond 64, and a driver that takes one is refused.
                    _ if value != 0 => self.add_status(status::FAILED),
                    _ => {}
                }
            }
            register::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            register::VIRTIO_MMIO_QUEUE_NUM => {
                if let Some(queue) = self.writable() {
                    queue.size = value;
                }
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                let sets_up = self.sets_up();
                if let Some(queue) = self.selected().filter(|_| sets_up) {
                    queue.ready = value & 1 != 0;
                }
            }
            register::VIRTIO_MMIO_QUEUE_NOTIFY if self.has(status::DRIVER_OK) => {
                self.notify.trigger();
            }
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.engine.page().acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.write_status(value),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW
            | register::VIRTIO_MMIO_QUEUE_DESC_HIGH
            | register::VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | register::VIRTIO_MMIO_QUEUE_USED_LOW
            | register::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                if let Some(queue) = self.writable() {
                    // The low half comes first and the high one 4 bytes later.
                    let high = offset & 4 != 0;
                    let address = match offset & !4 {
                        register::VIRTIO_MMIO_QUEUE_DESC_LOW => &mut queue.descriptors,
                        register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => &mut queue.driver,
                        _ => &mut queue.device,
                    };
                    set_half(address, high, value);
                }
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // A driver takes no bit away but by a reset (2.1.1).
        let known = self.status & !(status::NEEDS_RESET | status::FAILED);
        if value & known != known {
            return;
        }
        self.add_status(value & status::FAILED);
        for step in status::STEPS {
            if value & step == 0 {
                // Whatever comes after a step that is left out cannot be.
                return;
            }
            if self.status & step != 0 {
                continue;
            }
            if self.has(status::FAILED)
                || (step == status::FEATURES_OK && !self.features_are_acceptable())
            {
                return;
            }
            self.add_status(step);
            if step == status::DRIVER_OK {
                self.activate();
            }
        }
    }

    fn add_status(&mut self, bits: u32) {
        self.status |= bits;
        self.engine.page().add_status(bits);
    }

    /// Whether the driver takes what is on offer and nothing else, and is not of the legacy kind (2.2.2, 6.1).
    fn features_are_acceptable(&self) -> bool {
        are_acceptable(self.driver_features, self.engine.features())
    }

    fn places(&self) -> impl Iterator<Item = Option<Queue>> + use<D> {
        let queues = self.queues.clone().into_iter().zip(D::QUEUES);
        queues.map(|(queue, largest)| queue.queue(*largest))
    }

    fn activate(&mut self) {
        self.engine.start(self.places(), self.driver_features);
        // There may be chains already.
        self.notify.trigger();
    }

    fn reset(&mut self) {
        self.engine.reset();
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for (setup, largest) in self.queues.iter_mut().zip(D::QUEUES) {
            *setup = QueueState::new(*largest);
        }
    }
}

fn are_acceptable(driver: u64, offered: u64) -> bool {
    driver & !offered == 0 && driver & VERSION_1 != 0
}

/// The half of the features that a driver selected; beyond 64 there are none.
fn half(features: u64, select: u32) -> u32 {
    let half = match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(half).unwrap_or(0)
}

/// The number of a control register that an access of this width reaches.
fn control(offset: u64, len: usize) -> Option<u32> {
    u32::try_from(offset)
        .ok()
        .filter(|offset| offset.is_multiple_of(4) && len == 4)
}

impl<D: Device> BusDevice for Registers<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.engine.config().read(offset, data);
            return;
        }
        data.fill(0);
        if let Some(offset) = control(offset, data.len()) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if self.has(status::FEATURES_OK) {
                self.engine.write_config(offset, data);
            }
        } else if let Some(offset) = control(offset, data.len())
            && let Ok(value) = data.try_into().map(u32::from_le_bytes)
        {
            self.write_register(offset, value);
            if !matches!(
                offset,
                register::VIRTIO_MMIO_QUEUE_NOTIFY | register::VIRTIO_MMIO_INTERRUPT_ACK
            ) {
                self.show(&SELECTED);
            }
        }
        Reaction::None
    }
}

impl<D: Device> fmt::Debug for Registers<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registers")
            .field("engine", &self.engine)
            .field("status", &self.status)
            .field("driver_features", &self.driver_features)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
