//! The log: one line for each event, which never blocks who has something to say.
//!
//! Lines go to standard error, or to a file or named pipe (`--log-path`, `PUT /logger`). A line that is
//! not taken at once, because the pipe or the disk is full, is lost and counted; the next that is taken
//! comes after a line that says how many were. What a guest can cause is logged through `guest_info!`,
//! which bounds how often.
//!
//! A line is `2026-11-22T22:13:57.123456789 [id:thread:LEVEL:file:line] message`; the level and the
//! place are there when they are asked for, the level also whenever lines go to standard error.

mod level;
mod limit;
mod line;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::span;

pub use level::Level;
pub(crate) use limit::{Limiter, guest_info};

use crate::line_sink::LineSink;

/// The log cannot be where it is to be.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log {path:?}; check its path and permissions")]
pub(crate) struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// What lines look like, and which of them there are.
#[derive(Debug)]
struct Settings {
    sink: LineSink,
    instance: String,
    show_level: Option<bool>,
    show_origin: bool,
    module: Option<String>,
    /// Lines lost since the last that was taken.
    untold: u64,
}

/// The process's log.
#[derive(Debug)]
pub(crate) struct Log {
    level: AtomicU8,
    settings: Mutex<Settings>,
    missed: AtomicU64,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// The process's log, which there is from the first call on.
pub(crate) fn log() -> &'static Log {
    LOG.get_or_init(|| Log {
        level: AtomicU8::new(Level::Info.rank()),
        settings: Mutex::new(Settings {
            sink: LineSink::StandardError,
            instance: String::new(),
            show_level: None,
            show_origin: false,
            module: None,
            untold: 0,
        }),
        missed: AtomicU64::new(0),
    })
}

/// Makes the log the one that all events go to.
pub(crate) fn install() {
    // A second installation, by tests of one process, changes nothing.
    let _ = tracing::subscriber::set_global_default(Subscriber(log()));
}

/// Changes to the log; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    pub(crate) path: Option<&'a Path>,
    pub(crate) level: Option<Level>,
    pub(crate) show_level: Option<bool>,
    pub(crate) show_origin: Option<bool>,
    pub(crate) module: Option<&'a str>,
}

impl Log {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the microVM that lines are about.
    pub(crate) fn name(&self, instance: &str) {
        instance.clone_into(&mut self.settings().instance);
    }

    /// Changes the log, wholly or not at all.
    ///
    /// # Errors
    /// The file that cannot be opened.
    pub(crate) fn change(&self, change: &Change<'_>) -> Result<(), LogError> {
        let sink = change
            .path
            .map(|path| {
                LineSink::open(path).map_err(|source| LogError {
                    path: path.to_owned(),
                    source,
                })
            })
            .transpose()?;
        let mut settings = self.settings();
        if let Some(sink) = sink {
            settings.sink = sink;
        }
        settings.show_level = change.show_level.or(settings.show_level);
        settings.show_origin = change.show_origin.unwrap_or(settings.show_origin);
        if let Some(module) = change.module {
            settings.module = Some(module.to_owned());
        }
        if let Some(level) = change.level {
            self.level.store(level.rank(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lines that were lost because they were not taken.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    fn admits(&self, level: tracing::Level) -> bool {
        Level::from(level).rank() <= self.level.load(Ordering::Relaxed)
    }

    fn write(&self, event: &tracing::Event<'_>) {
        let mut settings = self.settings();
        let metadata = event.metadata();
        if let Some(module) = &settings.module
            && !metadata
                .module_path()
                .is_some_and(|path| path.starts_with(module.as_str()))
        {
            return;
        }
        let to_file = matches!(settings.sink, LineSink::File { .. });
        let header = line::Header {
            instance: &settings.instance,
            level: settings.show_level.unwrap_or(!to_file),
            origin: settings.show_origin,
        };
        let line = line::format(&header, event);
        if settings.untold > 0 {
            let told = format!("{} lines were lost here\n", settings.untold);
            if settings.sink.write_line(told.as_bytes()) {
                settings.untold = 0;
            }
        }
        if !settings.sink.write_line(&line) {
            settings.untold += 1;
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The log as `tracing` sees it. There are events only, no spans.
struct Subscriber(&'static Log);

impl tracing::Subscriber for Subscriber {
    fn register_callsite(
        &self,
        metadata: &'static tracing::Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        // The level can change while the process runs.
        if metadata.is_event() {
            tracing::subscriber::Interest::sometimes()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && self.0.admits(*metadata.level())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        self.0.write(event);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_file(path: &Path) -> &'static Log {
        let log = Box::leak(Box::new(Log {
            level: AtomicU8::new(Level::Info.rank()),
            settings: Mutex::new(Settings {
                sink: LineSink::StandardError,
                instance: "vm-1".to_owned(),
                show_level: None,
                show_origin: false,
                module: None,
                untold: 0,
            }),
            missed: AtomicU64::new(0),
        }));
        log.change(&Change {
            path: Some(path),
            ..Change::default()
        })
        .expect("a new file");
        log
    }

    fn lines(log: &'static Log, path: &Path, say: impl FnOnce()) -> Vec<String> {
        tracing::subscriber::with_default(Subscriber(log), say);
        let text = std::fs::read_to_string(path).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn level_and_form_follow_the_settings() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let log = on_file(&path);
        let seen = lines(log, &path, || {
            tracing::debug!("not this one");
            tracing::info!("two\nlines {}", 1);
            log.change(&Change {
                level: Some(Level::Error),
                show_level: Some(true),
                show_origin: Some(true),
                ..Change::default()
            })
            .expect("nothing to open");
            tracing::warn!("nor this");
            tracing::error!(number = 7, "an error");
        });
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen[0].ends_with("] two lines 1"), "{seen:?}");
        assert!(seen[0].contains(" [vm-1:") && !seen[0].contains("INFO"));
        assert!(seen[1].contains(":ERROR:"), "{seen:?}");
        assert!(seen[1].contains("mod.rs:"), "{seen:?}");
        assert!(seen[1].ends_with("an error number=7"), "{seen:?}");
    }

    #[test]
    fn module_filter_keeps_others_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let log = on_file(&path);
        let change = |module| Change {
            module: Some(module),
            ..Change::default()
        };
        let seen = lines(log, &path, || {
            log.change(&change("vmm::console")).expect("no file");
            tracing::info!("not this one");
            log.change(&change("vmm::logging")).expect("no file");
            tracing::info!("this one");
        });
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].ends_with("] this one"));
    }

    #[test]
    fn lost_lines_are_told_before_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let log = on_file(Path::new("/dev/full"));
        let seen = lines(log, &path, || {
            tracing::info!("lost");
            tracing::info!("lost too");
            log.change(&Change {
                path: Some(&path),
                ..Change::default()
            })
            .expect("a new file");
            tracing::info!("taken");
            tracing::info!("taken too");
        });
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[0], "2 lines were lost here");
        assert!(seen[1].ends_with("] taken"), "{seen:?}");
    }

    #[test]
    fn lost_lines_are_counted_and_a_bad_path_changes_nothing() {
        let log = on_file(Path::new("/dev/full"));
        tracing::subscriber::with_default(Subscriber(log), || tracing::info!("lost"));
        assert_eq!(log.missed(), 1);
        let error = log
            .change(&Change {
                path: Some(Path::new("/nowhere/log")),
                level: Some(Level::Off),
                ..Change::default()
            })
            .expect_err("no such folder");
        assert!(error.to_string().contains("/nowhere/log"));
        assert!(log.admits(tracing::Level::INFO));
    }
}
