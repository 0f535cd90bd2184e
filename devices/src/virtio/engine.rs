//! Serving queues: from a driver's notification to the interrupt.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use tsc::Nanos;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Copied, Part};
use super::register_page::RegisterPage;
use super::state::{State, StateError};
use super::{
    COMMON_FEATURES, ConfigSpace, Device, EVENT_INDEX, Faults, Finished, MAX_CONFIG, Served,
    Violation,
};
use crate::trigger::Trigger;

/// When [`Engine::run`] wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At the next notification.
    Notification,
    /// After this time, or at the next notification.
    After(Nanos),
}

impl Next {
    /// The same, but after `wait` at the latest.
    fn or_after(self, wait: Nanos) -> Self {
        match self {
            Self::After(other) if other.get() < wait.get() => self,
            _ => Self::After(wait),
        }
    }
}

/// Where the engine waits while somebody wants it to stand still.
#[derive(Debug, Default)]
struct Gate {
    /// How many do, and that as a flag to be looked at between requests.
    holds: Mutex<u32>,
    held: AtomicBool,
    released: Condvar,
    /// Nothing is under way any more, or the thread that would tell is gone. With the engine's core.
    settled: Condvar,
}

/// What the engine works on while it serves.
struct Core<D> {
    device: D,
    /// Empty while there is no driver.
    queues: Vec<Queue>,
    copied: Copied,
}

/// A device that serves its queues: see the [module](super).
pub struct Engine<D: Device> {
    memory: Arc<GuestMemoryMmap>,
    features: u64,
    core: Mutex<Core<D>>,
    gate: Arc<Gate>,
    config: Mutex<ConfigSpace>,
    /// The driver wrote into the configuration space, and the device does not know.
    config_written: AtomicBool,
    update: Mutex<D::Update>,
    updated: AtomicBool,
    page: RegisterPage,
    interrupt: Box<dyn Trigger + Sync>,
    running: AtomicBool,
    failed: AtomicBool,
    /// Something may have come for the device from outside the queues, of which it does not know.
    told: AtomicBool,
    faults: Arc<Faults>,
    /// Wakes the thread that calls [`Engine::run`], if there is one.
    runner: OnceLock<Box<dyn Trigger + Sync>>,
    /// That thread has ended.
    left: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is changed in whole steps, or checked anew before it is used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Device> Engine<D> {
    /// An engine for `device`, whose driver is in `memory`, reads its registers in `page`, and is interrupted by
    /// `interrupt`.
    #[must_use]
    pub fn new(
        device: D,
        memory: Arc<GuestMemoryMmap>,
        page: RegisterPage,
        interrupt: Box<dyn Trigger + Sync>,
    ) -> Self {
        let largest = D::QUEUES.iter().copied().max().unwrap_or(0);
        let config = device.config();
        page.put_config(&config);
        Self {
            memory,
            features: COMMON_FEATURES | device.features(),
            config: Mutex::new(config),
            config_written: AtomicBool::new(false),
            core: Mutex::new(Core {
                device,
                queues: Vec::with_capacity(D::QUEUES.len()),
                copied: Copied::with_room_for(largest, D::GATHERS),
            }),
            gate: Arc::default(),
            update: Mutex::default(),
            updated: AtomicBool::new(false),
            page,
            interrupt,
            running: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            told: AtomicBool::new(true),
            faults: Arc::default(),
            runner: OnceLock::new(),
            left: AtomicBool::new(false),
        }
    }

    /// Says that there is a thread that calls [`run`](Self::run) whenever `wake` is triggered, and
    /// [`leave`](Self::leave) at its end. Requests that are under way then end on that thread alone. Without one,
    /// whoever holds the engine brings them to their end itself.
    pub fn run_by(&self, wake: Box<dyn Trigger + Sync>) {
        // A second one would be a thread too many.
        let _ = self.runner.set(wake);
    }

    /// The thread that calls [`run`](Self::run) ends: what is under way comes to its end, and nobody waits for that
    /// thread any more. Called where that thread panicked, with `orderly` false, it only says the latter.
    pub fn leave(&self, orderly: bool) {
        let mut core = lock(&self.core);
        if orderly {
            self.settle(&mut core);
        }
        self.left.store(true, Ordering::SeqCst);
        drop(core);
        self.gate.settled.notify_all();
    }

    /// The features on offer.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Whether the device wants a reset.
    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// What the driver did that made the device want a reset, now and later.
    #[must_use]
    pub fn faults(&self) -> Arc<Faults> {
        self.faults.clone()
    }

    pub(super) fn config(&self) -> ConfigSpace {
        *lock(&self.config)
    }

    /// Reads the configuration space at `offset`, as the driver would. Waits for nobody.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The driver writes into the configuration space.
    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        if D::WRITABLE.is_empty() {
            return;
        }
        let mut config = lock(&self.config);
        config.write(offset, data, D::WRITABLE);
        self.page.put_config(&config);
        drop(config);
        self.config_written.store(true, Ordering::SeqCst);
    }

    /// The registers as a driver reads them.
    #[must_use]
    pub fn page(&self) -> &RegisterPage {
        &self.page
    }

    fn interrupt(&self, why: u32) {
        self.page.add_reason(why);
        self.interrupt.trigger();
    }

    /// The driver is ready, and has put queues at these places.
    pub(super) fn start(&self, queues: impl Iterator<Item = Option<Queue>>, features: u64) {
        if self.begin(queues, features).is_err() {
            self.faults.activations.add(1);
            self.fail();
        }
    }

    /// The driver was ready, and had put queues at these places.
    pub(super) fn restore_queues(
        &self,
        queues: impl Iterator<Item = Option<Queue>>,
        features: u64,
    ) -> Result<(), StateError> {
        self.begin(queues, features).map_err(StateError::Queue)
    }

    /// The registers that this engine writes are those of `state`.
    pub(super) fn restore(&self, state: &State) {
        for range in D::WRITABLE {
            let written = state.config.get(range.clone()).unwrap_or_default();
            self.write_config(range.start as u64, written);
        }
        self.page
            .restore(state.interrupt_status, state.config_generation);
    }

    /// The device wanted a reset, and has said so.
    pub(super) fn restore_failure(&self) {
        self.failed.store(true, Ordering::SeqCst);
        self.page.fail();
    }

    /// How far each queue was read and written: the indices of the next available chain and of the next used one.
    /// Nothing while there is no driver.
    pub(super) fn positions(&self, _: &Hold) -> Vec<(u16, u16)> {
        let core = lock(&self.core);
        let queues = core.queues.iter();
        queues
            .map(|queue| (queue.next_avail(), queue.next_used()))
            .collect()
    }

    /// Serves queues at these places from now on.
    ///
    /// # Errors
    /// Which one cannot be.
    fn begin(
        &self,
        queues: impl Iterator<Item = Option<Queue>>,
        features: u64,
    ) -> Result<(), usize> {
        let _hold = self.hold();
        let mut core = lock(&self.core);
        core.queues.clear();
        let mut fault = None;
        for (index, queue) in queues.enumerate() {
            match queue {
                // One that the driver does not use stays one that is not ready.
                Some(mut queue) => {
                    if queue.ready() && !(queue.avail_ring() != 0 && queue.is_valid(&*self.memory))
                    {
                        fault = Some(index);
                    }
                    queue.set_event_idx(features & EVENT_INDEX != 0);
                    core.queues.push(queue);
                }
                None => fault = Some(index),
            }
        }
        if let Some(fault) = fault {
            core.queues.clear();
            return Err(fault);
        }
        for index in 0..core.queues.len() {
            if core.queues.get(index).is_some_and(QueueT::ready) {
                core.device.uses(index);
            }
        }
        core.device.start(features);
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// The driver resets the device. When this returns, nothing of the guest's memory is in use, and no request is
    /// under way.
    pub(super) fn reset(&self) {
        let _hold = self.hold();
        let mut core = lock(&self.core);
        core.queues.clear();
        core.device.stop();
        self.take_config(&core.device);
        drop(core);
        for range in D::WRITABLE {
            self.write_config(range.start as u64, &[0; MAX_CONFIG][range.clone()]);
        }
        self.running.store(false, Ordering::SeqCst);
        self.failed.store(false, Ordering::SeqCst);
        self.page.reset();
    }

    /// Sets `DEVICE_NEEDS_RESET` and says so (2.1.2).
    fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        self.page.fail();
        self.interrupt(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Brings the engine to a halt between two requests, until what is returned is dropped. It waits for the
    /// requests in progress: nothing is under way in the meantime.
    pub fn hold(&self) -> Hold {
        *lock(&self.gate.holds) += 1;
        self.gate.held.store(true, Ordering::SeqCst);
        // Whoever runs looks at the flag before it takes this lock, and gives it up when it sees the flag.
        let mut core = lock(&self.core);
        if let Some(runner) = self.runner.get() {
            if core.device.is_busy() {
                runner.trigger();
            }
            while core.device.is_busy() && !self.left.load(Ordering::SeqCst) {
                let settled = self.gate.settled.wait(core);
                core = settled.unwrap_or_else(PoisonError::into_inner);
            }
        } else {
            self.settle(&mut core);
        }
        drop(core);
        Hold(self.gate.clone())
    }

    /// Waits for all that is under way.
    fn settle(&self, core: &mut Core<D>) {
        while core.device.is_busy() {
            core.device.wait_for_one();
            self.finish(core);
        }
    }

    /// Gives back to the driver what was under way and has ended. Returns whether there was any.
    fn finish(&self, core: &mut Core<D>) -> bool {
        let mut any = false;
        while let Some(Finished {
            queue,
            head,
            written,
        }) = core.device.finished(&self.memory)
        {
            any = true;
            let Some(queue) = core.queues.get_mut(queue) else {
                continue;
            };
            match use_up(queue, &self.memory, &[(head, 0)], written) {
                Ok(true) => self.interrupt(VIRTIO_MMIO_INT_VRING),
                Ok(false) => {}
                Err(_) if self.failed() => {}
                Err(_) => self.fail(),
            }
        }
        any
    }

    /// Changes the device, by adding to what [`Device::update`] will get: at once if nothing is being served, at
    /// the next [`run`](Self::run) otherwise, so notify the engine afterwards. Waits for nobody.
    pub fn change(&self, change: impl FnOnce(&mut D::Update)) {
        change(&mut lock(&self.update));
        self.updated.store(true, Ordering::SeqCst);
    }

    fn take_update(&self, core: &mut Core<D>) {
        if !self.updated.swap(false, Ordering::SeqCst) {
            return;
        }
        // What is under way goes on as it was begun.
        self.settle(core);
        let device = &mut core.device;
        let update = std::mem::take(&mut *lock(&self.update));
        device.update(update);
        self.tell_config(device);
    }

    /// Takes the configuration space over from the device, and says whether it is another.
    fn take_config(&self, device: &D) -> bool {
        let mut config = lock(&self.config);
        let space = device.config();
        let space = space.with_those_of(&config, D::WRITABLE);
        let is_another = *config != space;
        if is_another {
            *config = space;
            self.page.change_config(&space);
        }
        is_another
    }

    /// The same, and has the driver know.
    fn tell_config(&self, device: &D) {
        if self.take_config(device) && self.running.load(Ordering::SeqCst) {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Serves what the driver has made available, and what has come for the device from outside, on this thread.
    /// While the engine is held, it waits.
    pub fn run(&self) -> Next {
        self.told.store(true, Ordering::SeqCst);
        self.run_notified()
    }

    /// The same where nothing can have come from outside since the last time.
    pub fn run_notified(&self) -> Next {
        loop {
            let mut holds = lock(&self.gate.holds);
            while *holds > 0 {
                let mut core = lock(&self.core);
                if core.device.is_busy() {
                    // Others may come and go meanwhile.
                    drop(holds);
                    self.settle(&mut core);
                    drop(core);
                    self.gate.settled.notify_all();
                    holds = lock(&self.gate.holds);
                    continue;
                }
                drop(core);
                holds = self
                    .gate
                    .released
                    .wait(holds)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            // Taken before the holds are given up, so that who holds it next waits for us.
            let mut core = lock(&self.core);
            drop(holds);
            if let Some(next) = self.serve_all(&mut core) {
                return next;
            }
        }
    }

    /// Serves until there is nothing left, or until somebody wants the engine to stand still: `None`.
    fn serve_all(&self, core: &mut Core<D>) -> Option<Next> {
        loop {
            self.take_update(core);
            self.finish(core);
            if !core.queues.is_empty() {
                if self.config_written.swap(false, Ordering::SeqCst) {
                    let space = self.config();
                    core.device.configured(&space);
                }
                core.device.poll(self.told.swap(false, Ordering::SeqCst));
            }
            let (mut next, mut more) = (Next::Notification, false);
            let mut held = false;
            for index in 0..core.queues.len() {
                if self.failed() || held {
                    break;
                }
                match self.serve_queue(core, index) {
                    Ok(Progress::Empty) => {}
                    Ok(Progress::Held) => held = true,
                    Ok(Progress::More) => more = true,
                    Ok(Progress::Later(wait)) => next = next.or_after(wait),
                    Err(_) => {
                        self.faults.add(index);
                        self.fail();
                    }
                }
            }
            core.device.submit();
            if held {
                return None;
            }
            // What ended at once makes room, or goes on where it did not end.
            more |= self.finish(core);
            core.device.submit();
            if self.failed() {
                return Some(Next::Notification);
            }
            if core.device.take_config_change() {
                self.tell_config(&core.device);
            }
            if !more && !core.device.again() {
                let wait = core.device.wait().filter(|_| !core.queues.is_empty());
                return Some(wait.map_or(next, |wait| next.or_after(wait)));
            }
        }
    }

    fn serve_queue(&self, core: &mut Core<D>, index: usize) -> Result<Progress, Violation> {
        let memory = &*self.memory;
        let Some(queue) = core.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(Progress::Empty);
        };
        let fault = Violation::AvailableRing { queue: index };
        let copied = &mut core.copied;
        copied.clear();
        // Those that were copied for a message that is not whole are the driver's still.
        let give_back = |queue: &mut Queue, parts: &[Part]| {
            for _ in parts {
                queue.go_to_previous_position();
            }
        };
        let mut turn = queue.size();
        loop {
            queue.disable_notification(memory).map_err(|_| fault)?;
            loop {
                if self.gate.held.load(Ordering::SeqCst) {
                    give_back(queue, copied.parts());
                    return Ok(Progress::Held);
                }
                // The other queues have theirs, too.
                if turn == 0 && copied.parts().is_empty() {
                    return Ok(Progress::More);
                }
                // It comes before the next request, and after those that are under way.
                if self.updated.load(Ordering::SeqCst) {
                    give_back(queue, copied.parts());
                    return Ok(Progress::More);
                }
                let mut available = queue.iter(memory).map_err(|_| fault)?;
                let Some(chain) = available.next() else {
                    break;
                };
                turn = turn.saturating_sub(1);
                copied.copy(memory, chain)?;
                let another = D::GATHERS > 1
                    && queue
                        .avail_idx(memory, Ordering::Relaxed)
                        .map_err(|_| fault)?
                        .0
                        != queue.next_avail();
                let chain = copied.chain(memory, queue.size(), another);
                match core.device.serve(index, &chain)? {
                    Served::Done { written } => {
                        // After each, not after all: the first does not wait for the last. A driver that is
                        // busy with the first does not want to hear of the others, and says so.
                        let (used, others) = copied.reached_by(written);
                        if use_up(queue, memory, used, written).map_err(|_| fault)? {
                            self.interrupt(VIRTIO_MMIO_INT_VRING);
                        }
                        give_back(queue, others);
                        copied.clear();
                    }
                    Served::UnderWay => copied.clear(),
                    Served::Later(wait) => {
                        give_back(queue, copied.parts());
                        return Ok(Progress::Later(wait));
                    }
                    Served::Idle => {
                        give_back(queue, copied.parts());
                        return Ok(Progress::Empty);
                    }
                    Served::Again => {
                        give_back(queue, copied.parts());
                        copied.clear();
                    }
                    Served::Gather if chain.may_grow => {}
                    Served::Gather => return Err(Violation::Buffer),
                }
            }
            // Of chains after those that were copied: these were not enough.
            if !queue.enable_notification(memory).map_err(|_| fault)? {
                give_back(queue, copied.parts());
                return Ok(Progress::Empty);
            }
            // The ring is in memory, so there is an entry where its index says so.
        }
    }
}

/// How far a queue was served.
enum Progress {
    /// Nothing is left.
    Empty,
    /// Somebody wants the engine to stand still.
    Held,
    /// The device wants to be asked again.
    Later(Nanos),
    /// It had its turn, and may have more.
    More,
}

/// Puts chains on the ring of used ones, with `written` bytes from the first one's beginning on, and shows them
/// to the driver all at once: those that make up one message must not be seen apart (5.1.6.4). Returns whether
/// the driver wants to hear of it (2.7.7).
fn use_up(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    parts: &[Part],
    written: u32,
) -> Result<bool, virtio_queue::Error> {
    let Some(((last, _), others)) = parts.split_last() else {
        return Ok(false);
    };
    let before = queue.next_used();
    let mut next = before;
    let mut left = u64::from(written);
    for (head, room) in others {
        let here = left.min(*room);
        left -= here;
        let slot = queue.used_ring() + 4 + 8 * u64::from(next % queue.size());
        // OK because it is at most `written`.
        let len = u32::try_from(here).unwrap_or(u32::MAX);
        let element = u64::from(*head) | u64::from(len) << 32;
        memory
            .write_obj(element.to_le(), GuestAddress(slot))
            .map_err(virtio_queue::Error::GuestMemory)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    let len = u32::try_from(left).unwrap_or(u32::MAX);
    queue.add_used(memory, *last, len)?;
    // What is written must be seen before it is read what the driver wants (2.7.7.2).
    fence(Ordering::SeqCst);
    let load = |address| {
        let value: u16 = memory
            .load(GuestAddress(address), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(value))
    };
    if queue.event_idx_enabled() {
        // Not the crate's comparison, which knows of one chain at a time.
        let wanted: u16 = load(queue.avail_ring() + 4 + 2 * u64::from(queue.size()))?;
        let after = queue.next_used();
        let since_wanted = after.wrapping_sub(wanted).wrapping_sub(1);
        return Ok(since_wanted < after.wrapping_sub(before));
    }
    let flags = load(queue.avail_ring())?;
    Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

impl<D: Device> fmt::Debug for Engine<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("kind", &D::KIND)
            .field("running", &self.running)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// Keeps an engine still: see [`Engine::hold`].
#[must_use = "the engine goes on when this is dropped"]
#[derive(Debug)]
pub struct Hold(Arc<Gate>);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = lock(&self.0.holds);
        *holds = holds.saturating_sub(1);
        if *holds == 0 {
            self.0.held.store(false, Ordering::SeqCst);
            self.0.released.notify_all();
        }
    }
}
