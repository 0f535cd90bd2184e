//! Counters, and the two forms in which they are told: Firecracker's JSON lines, written to a file or
//! named pipe, and Prometheus's text, which `GET /metrics` answers with.
//!
//! A counter is one relaxed atomic; each vCPU has its own, on cache lines of their own. They are
//! added up when somebody asks. A field has Firecracker's name where it means the same; what only this
//! program has is in groups that begin with `keeptime`.

mod counter;
mod flush;
mod json;
pub(crate) mod prometheus;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use counter::{AccessCounters, ConsoleCounters, Counter, RequestCounters, VcpuCounters};
pub(crate) use flush::{FlushTimer, PERIOD};

use crate::line_sink::LineSink;
use crate::logging::log;
use crate::mmds::MmdsCounters;

/// Whether a number only grows, or stands for the last of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// One number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    group: &'static str,
    /// Which one of several of a kind.
    id: Option<String>,
    field: String,
    kind: Kind,
    value: u64,
}

impl Sample {
    /// A number that only grows.
    pub(crate) fn counter(group: &'static str, field: &str, value: u64) -> Self {
        Self {
            group,
            id: None,
            field: field.to_owned(),
            kind: Kind::Counter,
            value,
        }
    }

    /// The same of the one of several that is called `id`.
    pub(crate) fn of(self, id: &str) -> Self {
        Self {
            id: Some(id.to_owned()),
            ..self
        }
    }

    /// The last of its kind.
    pub(crate) fn gauge(group: &'static str, field: &str, value: u64) -> Self {
        Self {
            kind: Kind::Gauge,
            ..Self::counter(group, field, value)
        }
    }
}

/// Adds what it counts.
type Source = Box<dyn Fn(&mut Vec<Sample>) + Send>;

/// Metrics cannot be written where they are to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// The file cannot be opened.
    #[error("cannot open the metrics file {path:?}; check its path and permissions")]
    Open {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// There is a file already.
    #[error("the metrics have a file already: {0:?}")]
    Twice(PathBuf),
    /// There is no file.
    #[error("the metrics have no file: give --metrics-path or PUT /metrics before the start")]
    NoFile,
    /// The line was not taken.
    #[error("the metrics file did not take the line: is its disk or pipe full?")]
    Lost,
}

/// Where JSON lines go, and what was told there already.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    sink: LineSink,
    told: json::Told,
}

/// All counters of the process.
#[derive(Default)]
pub(crate) struct Metrics {
    /// From the start of the process to the API's readiness.
    pub(crate) startup_us: Counter,
    /// The processor time of it.
    pub(crate) startup_cpu_us: Counter,
    /// How long the last pause took to take effect.
    pub(crate) pause_us: Counter,
    /// How long the last resumption took.
    pub(crate) resume_us: Counter,
    /// Requests, by endpoint.
    pub(crate) requests: RequestCounters,
    lines_missed: Counter,
    sources: Mutex<Vec<Source>>,
    output: Mutex<Option<Output>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    fn output(&self) -> MutexGuard<'_, Option<Output>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds somebody who counts.
    pub(crate) fn add_source(&self, source: Source) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.push(source);
    }

    /// Counters for a machine's vCPUs; they, its keyboard and its console are told from now on. None is
    /// behind a device's lock: a vCPU may hold that for as long as its console is not read.
    pub(crate) fn watch_machine(
        &self,
        vcpus: usize,
        keyboard: Arc<AccessCounters>,
        console: Arc<ConsoleCounters>,
    ) -> Vec<Arc<VcpuCounters>> {
        let vcpus: Vec<_> = (0..vcpus).map(|_| Arc::<VcpuCounters>::default()).collect();
        let told = vcpus.clone();
        self.add_source(Box::new(move |samples| counter::vcpus(&told, samples)));
        self.add_source(Box::new(move |samples| {
            counter::keyboard(&keyboard, samples);
        }));
        self.add_source(Box::new(move |samples| {
            counter::console(&console, samples);
        }));
        vcpus
    }

    /// The metadata service's counters are told from now on.
    pub(crate) fn watch_mmds(&self, counters: Arc<MmdsCounters>) {
        self.add_source(Box::new(move |samples| counters.read(samples)));
    }

    /// Writes JSON lines to `path` from now on.
    ///
    /// # Errors
    /// When it cannot be opened, or there is such a file already.
    pub(crate) fn write_to(&self, path: &Path) -> Result<(), MetricsError> {
        let mut output = self.output();
        if let Some(output) = &*output {
            return Err(MetricsError::Twice(output.path.clone()));
        }
        let sink = LineSink::open(path).map_err(|source| MetricsError::Open {
            path: path.to_owned(),
            source,
        })?;
        *output = Some(Output {
            path: path.to_owned(),
            sink,
            told: json::Told::default(),
        });
        Ok(())
    }

    /// Where JSON lines go.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        self.output().as_ref().map(|output| output.path.clone())
    }

    /// Writes one JSON line.
    ///
    /// # Errors
    /// When there is no file, or it did not take the line.
    pub(crate) fn flush(&self) -> Result<(), MetricsError> {
        let samples = self.samples();
        let mut output = self.output();
        let Some(Output { sink, told, .. }) = &mut *output else {
            return Err(MetricsError::NoFile);
        };
        let (line, now_told) = json::line(&samples, told);
        if sink.write_line(line.as_bytes()) {
            *told = now_told;
            Ok(())
        } else {
            self.lines_missed.add(1);
            Err(MetricsError::Lost)
        }
    }

    /// Everything as Prometheus's text.
    pub(crate) fn prometheus(&self) -> String {
        prometheus::text(&self.samples())
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples = vec![
            Sample::gauge(
                "api_server",
                "process_startup_time_us",
                self.startup_us.get(),
            ),
            Sample::gauge(
                "api_server",
                "process_startup_time_cpu_us",
                self.startup_cpu_us.get(),
            ),
            Sample::gauge("latencies_us", "pause_vm", self.pause_us.get()),
            Sample::gauge("latencies_us", "resume_vm", self.resume_us.get()),
            Sample::counter("logger", "missed_log_count", log().missed()),
            Sample::counter("logger", "missed_metrics_count", self.lines_missed.get()),
        ];
        self.requests.read(&mut samples);
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for source in &*sources {
            source(&mut samples);
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_what_was_added_since_the_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics");
        let metrics = Metrics::default();
        assert!(matches!(metrics.flush(), Err(MetricsError::NoFile)));
        metrics.write_to(&path).expect("a new file");
        assert!(matches!(
            metrics.write_to(&path),
            Err(MetricsError::Twice(_))
        ));
        let counted = Arc::new(Counter::default());
        let source = counted.clone();
        metrics.add_source(Box::new(move |samples| {
            samples.push(Sample::counter("vcpu", "exit_io_out", source.get()));
        }));
        metrics.pause_us.set(9);
        for added in [3, 4] {
            counted.add(added);
            metrics.flush().expect("room");
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        for (line, added) in lines.iter().zip([3, 4]) {
            assert_eq!(line["vcpu"]["exit_io_out"], added);
            assert_eq!(line["latencies_us"]["pause_vm"], 9);
            assert!(line["utc_timestamp_ms"].as_u64() > Some(1_700_000_000_000));
        }
        assert!(
            metrics
                .prometheus()
                .contains("\nkeeptime_vcpu_exit_io_out_total 7\n")
        );
    }

    #[test]
    fn devices_of_a_kind_have_a_group_each_and_one_for_their_sums() {
        let samples = [("a", 3), ("b", 4)]
            .map(|(id, value)| Sample::counter("net", "tx_count", value).of(id));
        let (_, told) = json::line(&samples, &json::Told::default());
        let [a, b] = samples;
        let samples = [Sample { value: 10, ..a }, b];
        let (line, _) = json::line(&samples, &told);
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        for (group, added) in [("net_a", 7), ("net_b", 0), ("net", 7)] {
            assert_eq!(line[group]["tx_count"], added, "{group}");
        }
    }

    #[test]
    fn line_that_is_not_taken_is_counted_and_told_in_the_next() {
        let metrics = Metrics::default();
        metrics.write_to(Path::new("/dev/full")).expect("there");
        assert!(matches!(metrics.flush(), Err(MetricsError::Lost)));
        assert!(
            metrics
                .prometheus()
                .contains("keeptime_logger_missed_metrics_count_total 1")
        );
    }
}
