//! The thread that serves one virtio device: who wakes it, and how it ends.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use devices::virtio::{Hold, Next};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::devices::press;
use crate::error::one_line;
use crate::outcome::Outcome;
use crate::seccomp::{Filters, Role};
use crate::vcpu::Ending;

/// A device that waits for its thread.
pub(super) struct Waiting {
    pub(super) name: String,
    pub(super) kick: EventFd,
    /// What has something for the device when it becomes readable.
    pub(super) source: Option<OwnedFd>,
    /// What its thread may do.
    pub(super) role: Role,
    pub(super) run: Box<dyn Fn(Waker) -> Next + Send>,
    pub(super) hold: Box<dyn Fn() -> Hold + Send>,
    /// What its thread says at its end, and whether it came in order.
    pub(super) leave: Box<dyn Fn(bool) + Send>,
}

/// Who woke a device's thread.
#[derive(Clone, Copy)]
pub(super) enum Waker {
    /// The driver, somebody of ours, or the time.
    Bell,
    /// What the device has outside the guest.
    Source,
}

/// A thread that serves one device. Dropped, it is stopped.
pub(super) struct DeviceThread {
    kick: EventFd,
    stop: Arc<AtomicBool>,
    hold: Box<dyn Fn() -> Hold + Send>,
    handle: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts it.
    ///
    /// # Errors
    /// The host makes no thread, or no descriptor.
    pub(super) fn start(
        device: Waiting,
        ending: Arc<Ending>,
        filters: Filters,
    ) -> io::Result<Self> {
        let Waiting {
            name,
            kick,
            source,
            role,
            run,
            hold,
            leave,
        } = device;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, bell) = (stop.clone(), kick.try_clone()?);
        let handle = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || {
                if let Err(error) = filters.enter(role) {
                    return ending.end(Outcome::Failure(one_line(&error)));
                }
                ending.unless_it_panics(&name, || {
                    if let Err(error) = serve(&bell, source.as_ref(), &stopped, &*run) {
                        ending.end(Outcome::Failure(format!(
                            "{name}: the host does not tell of requests any more: {error}"
                        )));
                    }
                    leave(true);
                });
                // Again for one that panicked: somebody may wait for it.
                leave(false);
            })?;
        Ok(Self {
            kick,
            stop,
            hold,
            handle: Some(handle),
        })
    }

    /// Brings the device to a halt after its request in progress, until what is returned is dropped.
    pub(super) fn hold(&self) -> Hold {
        (self.hold)()
    }
}

/// Serves until it is told to stop.
fn serve(
    bell: &EventFd,
    source: Option<&OwnedFd>,
    stop: &AtomicBool,
    run: &dyn Fn(Waker) -> Next,
) -> io::Result<()> {
    const BELL: u64 = 0;
    const SOURCE: u64 = 1;
    let epoll = Epoll::new()?;
    // By edges: each write to an eventfd is one (fs/eventfd.c, `eventfd_signal`), and nobody needs to read it. Its
    // counter has room for 2^64 - 2 of them.
    let by_edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
    let event = EpollEvent::new(by_edges, BELL);
    epoll.ctl(ControlOperation::Add, bell.as_raw_fd(), event)?;
    if let Some(source) = source {
        // As long as the guest has no buffers, what is there stays there.
        let event = EpollEvent::new(by_edges, SOURCE);
        epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)?;
    }
    let mut next = Next::Notification;
    loop {
        let timeout = match next {
            Next::Notification => -1,
            // In milliseconds, rounded up: earlier there is nothing to be had.
            Next::After(wait) => i32::try_from(wait.get().div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        let mut events = [EpollEvent::default(); 2];
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        if stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut events = events.iter().take(count);
        let woken_by = match events.any(|event| event.data() == SOURCE) {
            true => Waker::Source,
            false => Waker::Bell,
        };
        next = run(woken_by);
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        press(&self.kick);
        if let Some(handle) = self.handle.take() {
            // A panic was told by the thread itself.
            let _ = handle.join();
        }
    }
}
