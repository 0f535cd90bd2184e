//! A microVM that clients of the API configure and start, or a configuration file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hypervisor::Hypervisor;
use hypervisor::kvm::Kvm;
use rustix::time::{ClockId, clock_gettime};

use super::flags::{DEFAULT_SOCKET, Flags};
use super::{assemble, tell_missing};
use crate::api::http::{self, Limits, Server};
use crate::api::mailbox::mailbox;
use crate::api::request::{ApiRequest, Fault};
use crate::api::server::ApiThread;
use crate::config::{self, ConfigFileError, VmConfig, Watcher};
use crate::controller::{Controller, Instance};
use crate::error::one_line;
use crate::event_loop::EventLoop;
use crate::logging::{Change, LogError, log};
use crate::machine::{Console, MachineError, Surroundings, host};
use crate::metrics::{FlushTimer, Metrics, MetricsError, PERIOD};
use crate::mmds::{Metadata, MetadataError};
use crate::outcome::Outcome;
use crate::seccomp::FilterError;
use crate::time_report::file::{ReportPath, ReportPathError, Reporter};

/// The largest configuration or metadata file that is read. A full one is a few kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// The microVM cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("{0}")]
    Usage(String),
    #[error(
        "cannot read the {what} {path:?}; check its path and permissions, and that it is a plain file"
    )]
    Read {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the {what} {path:?} is larger than {MAX_FILE} bytes; give a smaller one")]
    Large { what: &'static str, path: PathBuf },
    #[error("configuration file {path:?}")]
    Config {
        path: PathBuf,
        source: ConfigFileError,
    },
    #[error("configuration file {path:?}")]
    Refused { path: PathBuf, source: Fault },
    #[error("metadata file {path:?} is not JSON; correct it at the line and column named here")]
    MetadataSyntax {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "metadata file {path:?}: it holds no JSON object; give one, such as {{\"latest\":{{}}}}"
    )]
    MetadataKind { path: PathBuf },
    #[error("metadata file {path:?}")]
    Metadata {
        path: PathBuf,
        source: MetadataError,
    },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    ReportPath(#[from] ReportPathError),
    #[error(transparent)]
    Bind(#[from] http::BindError),
    #[error(transparent)]
    Seccomp(#[from] FilterError),
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Serves a microVM as `flags` say, until it ends.
pub(super) fn run(flags: &Flags, started: Instant) -> Result<Outcome, ServeError> {
    flags.check().map_err(ServeError::Usage)?;
    log().name(flags.id());
    log().change(&Change {
        path: flags.log_path.as_deref(),
        level: None,
        show_level: flags.show_level.then_some(true),
        show_origin: flags.show_log_origin.then_some(true),
        module: flags.module.as_deref(),
    })?;
    let report_path = flags.time_report.as_deref();
    let report_path = report_path.map(ReportPath::new).transpose()?;
    let mut surroundings = Surroundings::new(flags.seccomp.filters()?, started)?;
    surroundings.metadata = Arc::new(metadata(flags)?);
    let metrics = &surroundings.metrics;
    if let Some(path) = &flags.metrics_path {
        metrics.write_to(path)?;
    }
    let mut controller =
        Controller::new(flags.id(), surroundings.metadata.clone(), metrics.clone());
    controller.set_flags(
        flags.boot_timer,
        Watcher::unless_off(flags.test_without_timekeeper),
    );
    controller.set_tsc_rate(flags.tsc_rate());
    controller.set_tsc_domain(flags.tsc_domain);
    controller.set_virtio_mmio_args(flags.virtio_mmio_args);
    let file = flags.config_file.as_deref().map(read_config).transpose()?;

    // Declared before the mailbox, and so dropped after it: on every way out, whoever waits for an answer
    // learns that none will come before the API's thread is waited for.
    let api;
    // Signals are caught before there is a socket to be removed.
    let mut events = EventLoop::new(surroundings.ending.clone())?;
    let (post, mailbox, bell) = mailbox().map_err(host("create an eventfd"))?;
    events.add(Box::new(bell));
    api = match flags.no_api {
        true => None,
        false => {
            let path = flags.api_sock.as_deref();
            let limits = Limits {
                payload: flags.http_api_max_payload_size,
                ..Limits::default()
            };
            let server = Server::bind(path.unwrap_or(Path::new(DEFAULT_SOCKET)), limits)?;
            let thread = ApiThread::start(
                server,
                post,
                metrics.clone(),
                surroundings.ending.clone(),
                surroundings.filters.clone(),
            )
            .map_err(host("start the API's thread"))?;
            note_startup(flags, started, metrics);
            Some(thread)
        }
    };
    let mut kvm = open_kvm();
    if let Some(kvm) = &kvm {
        controller.set_missing(kvm.missing_features());
    }
    let timer = FlushTimer::new(metrics.clone(), PERIOD).map_err(host("create a timer"))?;
    events.add(Box::new(timer));
    let reporter = report_path
        .map(|path| Reporter::start(path, &mut events, &surroundings))
        .transpose()?;

    let mut start = |config: &VmConfig, events: &mut EventLoop| {
        boot(&mut kvm, config, events, &surroundings).map_err(|error| Fault::new(one_line(&*error)))
    };
    if let Some(config) = file {
        let path = flags.config_file.clone().unwrap_or_default();
        controller
            .configure(config)
            .and_then(|()| controller.start_now(&mut |config| start(config, &mut events)))
            .map_err(|source| ServeError::Refused { path, source })?;
    }
    let outcome = loop {
        if let Some(outcome) = events.turn() {
            break outcome;
        }
        if let Some(reporter) = &reporter {
            reporter.take(|| controller.guests_time());
        }
        while let Some(letter) = mailbox.take() {
            letter.answer(|request: ApiRequest| {
                controller.apply(request, &mut |config| start(config, &mut events))
            });
        }
    };
    if let Some(reporter) = reporter {
        let last = controller.guests_time();
        reporter.finish(last.map(|report| report.of_the_end(&outcome)));
    }
    drop(mailbox);
    drop(controller);
    drop(api);
    match surroundings.metrics.flush() {
        Ok(()) | Err(MetricsError::NoFile) => {}
        Err(error) => tracing::warn!("{}", one_line(&error)),
    }
    Ok(outcome)
}

/// KVM, opened before anybody asks for it, to save the time then. A host without it can be asked all but
/// to start a guest.
fn open_kvm() -> Option<Kvm> {
    match Kvm::open() {
        Ok(kvm) => {
            tell_missing(&kvm);
            Some(kvm)
        }
        Err(error) => {
            tracing::warn!("no guest can be started: {}", one_line(&error));
            None
        }
    }
}

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

fn boot(
    kvm: &mut Option<Kvm>,
    config: &VmConfig,
    events: &mut EventLoop,
    surroundings: &Surroundings,
) -> Result<Box<dyn Instance>, BoxedError> {
    let kvm = match kvm {
        Some(kvm) => kvm,
        // What was in the way may be gone.
        None => kvm.insert(Kvm::open()?),
    };
    let machine = assemble(kvm, config, surroundings)?;
    Ok(Box::new(machine.start(Console::StandardInput, events)?))
}

/// How long it took until clients could connect.
fn note_startup(flags: &Flags, started: Instant, metrics: &Metrics) {
    let wall = match flags.start_time_us {
        Some(start) => microseconds(ClockId::Monotonic).saturating_sub(start),
        None => u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
    };
    let cpu = microseconds(ClockId::ProcessCPUTime)
        .saturating_sub(flags.start_time_cpu_us.unwrap_or(0))
        .saturating_add(flags.parent_cpu_time_us.unwrap_or(0));
    metrics.startup_us.set(wall);
    metrics.startup_cpu_us.set(cpu);
    tracing::debug!("clients can connect after {wall} us, {cpu} us of CPU time");
}

fn microseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(nanoseconds / 1_000)
}

/// Reads a file of bounded size.
fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ServeError> {
    // A pipe or a device has no size to be asked for: no more is read than is allowed.
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
        .map_err(|source| ServeError::Read {
            what,
            path: path.to_owned(),
            source,
        })?;
    if text.len() as u64 > MAX_FILE {
        return Err(ServeError::Large {
            what,
            path: path.to_owned(),
        });
    }
    Ok(text)
}

fn read_config(path: &Path) -> Result<VmConfig, ServeError> {
    let text = read("configuration file", path)?;
    config::parse(&text).map_err(|source| ServeError::Config {
        path: path.to_owned(),
        source,
    })
}

/// The metadata that the guest begins with.
fn metadata(flags: &Flags) -> Result<Metadata, ServeError> {
    let metadata = Metadata::new(flags.metadata_limit());
    if let Some(path) = &flags.metadata {
        let path = path.clone();
        let text = read("metadata file", &path)?;
        let data: serde_json::Value = match serde_json::from_slice(&text) {
            Ok(data) => data,
            Err(source) => return Err(ServeError::MetadataSyntax { path, source }),
        };
        if !data.is_object() {
            return Err(ServeError::MetadataKind { path });
        }
        metadata
            .put(data)
            .map_err(|source| ServeError::Metadata { path, source })?;
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("room");
        file
    }

    #[test]
    fn configuration_that_cannot_be_obeyed_is_named_with_the_cure() {
        let read = |path: &Path| one_line(&read_config(path).expect_err("no configuration"));
        for (text, cure) in [
            (r#"{"boot-source":"#, "correct it at the line and column"),
            ("{}", "correct it at the line and column"),
            (
                r#"{"boot-source":{"kernel_image_path":"k"},"serial":{}}"#,
                "remove the key",
            ),
            (
                r#"{"boot-source":{"kernel_image_path":"k"},
                    "machine-config":{"vcpu_count":33,"mem_size_mib":1}}"#,
                "choose 1 to 32",
            ),
        ] {
            let file = file(text);
            let line = read(file.path());
            let path = file.path().to_str().expect("text");
            assert!(line.contains(path) && line.contains(cure), "{line}");
        }
        // It is there and can be opened, and nothing is at its beginning.
        let line = read(Path::new("/proc/self/mem"));
        assert!(line.contains("that it is a plain file"), "{line}");
    }

    #[test]
    fn metadata_that_cannot_be_taken_is_named_with_the_cure() {
        for (text, cure) in [
            ("{", "correct it at the line and column"),
            ("[]", r#"give one, such as {"latest":{}}"#),
        ] {
            let file = file(text);
            let path = file.path().to_str().expect("text");
            let cli = Cli::try_parse_from(["keeptime", "--metadata", path]).expect("flags");
            let line = one_line(&metadata(&cli.flags).expect_err("no metadata"));
            assert!(line.contains(path) && line.contains(cure), "{line}");
        }
    }
}
