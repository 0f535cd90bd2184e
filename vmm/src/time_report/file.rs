//! The time report as a file: the latest while the guest runs, and the last when it has ended.
//!
//! The main thread puts a report together, since it alone knows all of it; a thread of its own writes it,
//! so that a disk that makes its writers wait makes nobody else wait. Where that thread has not come to
//! write a report yet, a later one takes its place.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::TimeReport;
use crate::error::one_line;
use crate::event_loop::EventLoop;
use crate::machine::{MachineError, Surroundings, host};
use crate::seccomp::{Filters, Role};
use crate::vcpu::Ending;
use crate::whole_file;

/// How often the file is written while the guest runs.
const PERIOD: Duration = Duration::from_secs(1);

/// The report cannot be written where it is to be.
#[derive(Debug, thiserror::Error)]
#[error(
    "--time-report: no file can be put at {path:?}; give a path in a folder that can be written to"
)]
pub(crate) struct ReportPathError {
    path: PathBuf,
    source: io::Error,
}

/// A path that a report can be put at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReportPath(PathBuf);

impl ReportPath {
    /// Looks whether it can; nothing is changed.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn new(path: &Path) -> Result<Self, ReportPathError> {
        match whole_file::check(path) {
            Ok(()) => Ok(Self(path.to_owned())),
            Err(source) => Err(ReportPathError {
                path: path.to_owned(),
                source,
            }),
        }
    }
}

/// Writes reports.
#[derive(Debug)]
pub(crate) struct Reporter {
    due: Rc<Cell<bool>>,
    writer: Writer,
}

impl Reporter {
    /// Has `events` tell once in a period that a report is due.
    ///
    /// # Errors
    /// The host has no timer or thread for it.
    pub(crate) fn start(
        path: ReportPath,
        events: &mut EventLoop,
        surroundings: &Surroundings,
    ) -> Result<Self, MachineError> {
        let mut timer = TimerFd::new().map_err(|error| host("create a timer")(error.into()))?;
        timer
            .reset(PERIOD, Some(PERIOD))
            .map_err(|error| host("start a timer")(error.into()))?;
        let due = Rc::new(Cell::new(false));
        events.add(Box::new(Due {
            timer,
            due: due.clone(),
        }));
        let (ending, filters) = (surroundings.ending.clone(), surroundings.filters.clone());
        let writer = Writer::start(path, ending, filters)
            .map_err(host("start the thread that writes the time report"))?;
        Ok(Self { due, writer })
    }

    /// Takes a report, if one is due and the guest runs.
    pub(crate) fn take(&self, report: impl FnOnce() -> Option<TimeReport>) {
        if self.due.take()
            && let Some(report) = report()
        {
            self.writer.write(text(&report));
        }
    }

    /// Takes the last report, and returns when it is written.
    pub(crate) fn finish(self, report: Option<TimeReport>) {
        if let Some(report) = report {
            self.writer.write(text(&report));
        }
    }
}

fn text(report: &TimeReport) -> Vec<u8> {
    // Its texts are text and its numbers finite: it can always be told in JSON.
    let mut text = serde_json::to_vec_pretty(report).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Tells once in a period that a report is due.
struct Due {
    timer: TimerFd,
    due: Rc<Cell<bool>>,
}

impl MutEventSubscriber for Due {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            tracing::warn!("the time report is written at the end only: {error:?}");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // How many periods have passed does not matter.
        let _ = self.timer.wait();
        self.due.set(true);
    }
}

/// What is to be written.
#[derive(Debug, Default)]
struct Slot {
    text: Option<Vec<u8>>,
    /// Nothing will come after it.
    ended: bool,
}

#[derive(Debug, Default)]
struct Desk {
    slot: Mutex<Slot>,
    changed: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        // It is changed in whole steps.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next text; `None` when none will come.
    fn next(&self) -> Option<Vec<u8>> {
        let slot = self.lock();
        let mut slot = self
            .changed
            .wait_while(slot, |slot| slot.text.is_none() && !slot.ended)
            .unwrap_or_else(PoisonError::into_inner);
        slot.text.take()
    }
}

/// What the thread does.
fn write(path: &Path, desk: &Desk) {
    let mut told = false;
    while let Some(text) = desk.next() {
        let put = whole_file::put(path, &text);
        if let Err(error) = put
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(
                "the time report cannot be written to {path:?}, which is not told again: {error}"
            );
        }
    }
}

/// The thread that writes. Dropped, it writes what is left and ends.
#[derive(Debug)]
struct Writer {
    desk: Arc<Desk>,
    handle: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(
        ReportPath(path): ReportPath,
        ending: Arc<Ending>,
        filters: Filters,
    ) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let for_thread = desk.clone();
        let handle = std::thread::Builder::new()
            .name("report".to_owned())
            .spawn(move || {
                if let Err(error) = filters.enter(Role::Report) {
                    return tracing::error!("there is no time report: {}", one_line(&error));
                }
                ending.unless_it_panics("report", || write(&path, &for_thread));
            })?;
        Ok(Self {
            desk,
            handle: Some(handle),
        })
    }

    fn write(&self, text: Vec<u8>) {
        self.desk.lock().text = Some(text);
        self.desk.changed.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.desk.lock().ended = true;
        self.desk.changed.notify_one();
        if let Some(handle) = self.handle.take() {
            // It has nothing left to tell.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::Action;

    fn start(path: &Path) -> Writer {
        let path = ReportPath::new(path).expect("writable");
        let ending = Arc::new(Ending::new().expect("an eventfd"));
        let filters = Filters::builtin(Action::Kill).expect("filters");
        Writer::start(path, ending, filters).expect("a thread")
    }

    #[test]
    fn what_is_left_is_written_before_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report");
        let writer = start(&path);
        writer.write(b"first".to_vec());
        writer.write(b"last".to_vec());
        drop(writer);
        assert_eq!(std::fs::read(&path).expect("there"), b"last");
    }

    #[test]
    fn report_that_cannot_be_written_ends_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("below").join("report");
        std::fs::create_dir(folder.path().join("below")).expect("a folder");
        let writer = start(&path);
        std::fs::remove_dir(folder.path().join("below")).expect("empty");
        writer.write(b"lost".to_vec());
        drop(writer);
        assert!(!path.exists());
    }

    #[test]
    fn path_at_fault_is_named() {
        let error = ReportPath::new(Path::new("/dev/null")).expect_err("a device");
        let line = crate::error::one_line(&error);
        assert!(
            line.contains("--time-report") && line.contains("/dev/null"),
            "{line}"
        );
    }
}
