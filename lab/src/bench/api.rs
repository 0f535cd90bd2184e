//! The API's part of `cargo lab bench launch`: from a program's start to its socket's first answer, and
//! from `InstanceStart` to its answer and to the guest's first line.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::launch::{LINE, MEMORY_MIB};
use super::statistics::Summary;
use crate::api::Client;
use crate::process::Running;

/// What is measured, in the order of the table's rows.
const MEASURED: [&str; 4] = [
    "CPU time to the socket's first answer",
    "time to the socket's first answer",
    "InstanceStart to its answer",
    "InstanceStart to the guest's first line",
];

/// A program with the API, and what was measured of it.
pub(super) struct ApiProgram {
    name: String,
    binary: PathBuf,
    samples: [Vec<Duration>; MEASURED.len()],
}

impl ApiProgram {
    pub(super) fn new(name: &str, binary: &Path) -> Self {
        Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            samples: Default::default(),
        }
    }

    /// Starts it once with a socket in `folder`, and a guest of `kernel`.
    pub(super) fn launch(&mut self, folder: &Path, kernel: &str, counts: bool) -> Result<()> {
        let measured = launch(&self.binary, folder, kernel)
            .with_context(|| format!("{} with its API failed", self.name))?;
        if counts {
            for (sample, value) in self.samples.iter_mut().zip(measured) {
                sample.push(value);
            }
        }
        Ok(())
    }

    /// A row for each number, in milliseconds.
    pub(super) fn table(&self) -> Option<String> {
        let mut text = format!(
            "{:<40} {:>9} {:>9} {:>9}\n",
            format!("{} --api-sock, ms", self.name),
            "minimum",
            "median",
            "p90"
        );
        for (name, sample) in MEASURED.iter().zip(&self.samples) {
            let summary = Summary::of(sample)?;
            text += &format!("{name:<40}");
            for value in [summary.minimum, summary.median, summary.ninetieth] {
                text += &format!(" {:>9.2}", value.as_secs_f64() * 1000.0);
            }
            text.push('\n');
        }
        Some(text)
    }
}

fn launch(binary: &Path, folder: &Path, kernel: &str) -> Result<[Duration; MEASURED.len()]> {
    let socket = folder.join("api.socket");
    // A program that leaves its socket behind must not be in the way of the next.
    if socket.exists() {
        std::fs::remove_file(&socket).context("cannot remove an old socket")?;
    }
    let mut command = Command::new(binary);
    command
        .arg("--api-sock")
        .arg(&socket)
        .args(["--level", "Error"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let start = Instant::now();
    let mut running = Running::spawn(&mut command)?;
    let stream = loop {
        if let Ok(stream) = UnixStream::connect(&socket) {
            break stream;
        }
        let ended = running
            .child()
            .try_wait()
            .context("cannot ask for its end")?;
        ensure!(ended.is_none(), "it ended before its socket was there");
        std::thread::yield_now();
    };
    let mut api = Client::new(stream);
    api.ask("GET", "/", &Value::Null)?;
    let answered = start.elapsed();
    let cpu = cpu_time(running.child().id())?;
    api.ask(
        "PUT",
        "/boot-source",
        &json!({"kernel_image_path": kernel, "boot_args": ""}),
    )?;
    api.ask(
        "PUT",
        "/machine-config",
        &json!({"vcpu_count": 1, "mem_size_mib": MEMORY_MIB}),
    )?;
    let output = running.child().stdout.take().context("no output")?;
    let begin = Instant::now();
    api.ask("PUT", "/actions", &json!({"action_type": "InstanceStart"}))?;
    let started = begin.elapsed();
    let mut lines = BufReader::new(output).lines();
    let found = lines.any(|line| line.is_ok_and(|line| line.trim_end() == LINE));
    let first_line = begin.elapsed();
    let status = running.wait()?;
    ensure!(
        found,
        "its guest did not write {LINE:?}; it ended with {status}"
    );
    Ok([cpu, answered, started, first_line])
}

/// The processor time of all threads of a process so far (proc(5), `schedstat`: nanoseconds first).
fn cpu_time(process: u32) -> Result<Duration> {
    let folder = format!("/proc/{process}/task");
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(&folder).context(folder)? {
        let path = task.context("a thread's folder")?.path().join("schedstat");
        let text = match std::fs::read_to_string(&path) {
            // The thread has ended since, before the file was opened or after.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                continue;
            }
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let word = text
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        nanoseconds += word.parse::<u64>().context("no number in schedstat")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_row_for_each_number_and_none_without_samples() {
        let mut program = ApiProgram::new("ours", Path::new("/"));
        assert!(program.table().is_none());
        for (index, sample) in (1..).zip(&mut program.samples) {
            sample.push(Duration::from_millis(index));
        }
        let text = program.table().unwrap();
        assert_eq!(text.lines().count(), 1 + MEASURED.len());
        let last = text.lines().last().unwrap();
        assert!(last.ends_with("4.00      4.00      4.00"), "{last}");
    }

    #[test]
    fn cpu_time_of_this_process_is_something() {
        assert!(cpu_time(std::process::id()).unwrap() > Duration::ZERO);
    }
}
