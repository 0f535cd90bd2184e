//! The timer that writes the metrics.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::{Metrics, MetricsError};

/// How often metrics are written, as Firecracker does.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// Writes the metrics once in a [`PERIOD`].
pub(crate) struct FlushTimer {
    timer: TimerFd,
    metrics: Arc<Metrics>,
}

impl FlushTimer {
    /// Runs from now on.
    ///
    /// # Errors
    /// The kernel's refusal of a timer.
    pub(crate) fn new(metrics: Arc<Metrics>, period: Duration) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(period, Some(period))?;
        Ok(Self { timer, metrics })
    }
}

impl MutEventSubscriber for FlushTimer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            tracing::warn!("the metrics are not written regularly: {error:?}");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // How many periods have passed does not matter.
        let _ = self.timer.wait();
        match self.metrics.flush() {
            // Lost lines are counted; without a file there is nothing to be written.
            Ok(()) | Err(MetricsError::NoFile | MetricsError::Lost) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
}
