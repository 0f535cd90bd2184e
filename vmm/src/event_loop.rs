//! The main thread's loop: it waits for what the operator, the guest and clients cause.

use std::io;
use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::{MachineError, host};
use crate::outcome::Outcome;
use crate::signals;
use crate::vcpu::Ending;

/// The loop, which also ends the microVM when the process is asked to end.
pub(crate) struct EventLoop {
    events: EventManager<Box<dyn MutEventSubscriber>>,
    ending: Arc<Ending>,
}

impl EventLoop {
    /// A loop that runs until `ending` has an outcome.
    ///
    /// # Errors
    /// What the host refused.
    pub(crate) fn new(ending: Arc<Ending>) -> Result<Self, MachineError> {
        let signal = signals::install().map_err(host("install signal handlers"))?;
        let mut events: EventManager<Box<dyn MutEventSubscriber>> =
            EventManager::new().map_err(|error| {
                host("create the event loop")(io::Error::other(format!("{error:?}")))
            })?;
        events.add_subscriber(Box::new(WakeUps {
            ending: ending.clone(),
            signal,
        }));
        Ok(Self { events, ending })
    }

    /// Adds something that waits for events.
    pub(crate) fn add(&mut self, subscriber: Box<dyn MutEventSubscriber>) {
        self.events.add_subscriber(subscriber);
    }

    /// Waits for events once, and serves them. Returns the outcome when there is one.
    pub(crate) fn turn(&mut self) -> Option<Outcome> {
        if let Some(outcome) = self.ending.outcome() {
            return Some(outcome);
        }
        if let Err(error) = self.events.run() {
            let failure = format!("the event loop failed: {error:?}");
            self.ending.end(Outcome::Failure(failure));
        }
        self.ending.outcome()
    }

    /// Serves events until the microVM ends.
    pub(crate) fn run_to_the_end(&mut self) -> Outcome {
        loop {
            if let Some(outcome) = self.turn() {
                return outcome;
            }
        }
    }
}

/// Wakes the event loop when the microVM or the process is to end.
struct WakeUps {
    ending: Arc<Ending>,
    signal: &'static EventFd,
}

impl MutEventSubscriber for WakeUps {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in [self.ending.event(), self.signal] {
            if let Err(error) = ops.add(Events::new(event, EventSet::IN)) {
                self.ending.end(Outcome::Failure(format!(
                    "the event loop failed: {error:?}"
                )));
            }
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if let Some(signal) = signals::received() {
            self.ending.end(Outcome::Signal(signal));
        }
    }
}
