//! Emulated hosts: whole PCs in software whose KVM is the kernel's own, on a processor that
//! misbehaves on demand.

pub(crate) mod image;
pub(crate) mod program;
pub(crate) mod protocol;
mod svm;
mod vmx;

pub(crate) use svm::Paging;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags};

use crate::kernels::Stock;
use crate::paths::Paths;
use crate::process::Running;
use image::{Job, Load, Output, initramfs};
use protocol::{Event, Receiver};

/// How a host's kernel judges its TSC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Tsc {
    /// Unstable: the kernel keeps time with the HPET.
    Unstable,
    /// Stable: the kernel keeps time with the TSC.
    Stable,
}

/// An emulated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Host {
    /// QEMU with AMD's SVM.
    Svm {
        /// The host's TSC.
        tsc: Tsc,
        /// How KVM maps a guest's memory.
        paging: Paging,
    },
    /// QEMU with AMD's SVM, one processor, and a clock on which a nanosecond is an executed instruction: for measuring.
    Counted,
    /// Bochs with Intel's VMX.
    Vmx,
}

impl Host {
    /// The name in messages and of files.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Svm { tsc, paging } => {
                let tsc = match tsc {
                    Tsc::Unstable => "hpet",
                    Tsc::Stable => "tsc",
                };
                let paging = match paging {
                    Paging::Nested => "",
                    Paging::Shadow => "-npt0",
                };
                format!("svm-{tsc}{paging}")
            }
            Self::Counted => "svm-counted".to_owned(),
            Self::Vmx => "vmx".to_owned(),
        }
    }

    /// The clocksource that the host's kernel must have chosen when the steps begin.
    pub(crate) fn clocksource(self) -> &'static str {
        match self {
            Self::Svm {
                tsc: Tsc::Unstable, ..
            } => "hpet",
            Self::Svm {
                tsc: Tsc::Stable, ..
            }
            | Self::Counted
            | Self::Vmx => "tsc",
        }
    }

    /// How long the host takes to its shell: decides what starts first.
    pub(crate) fn start_cost(self) -> Duration {
        Duration::from_secs(match self {
            Self::Svm { .. } => 5,
            Self::Counted => 20,
            Self::Vmx => 65,
        })
    }

    /// The Debian packages that the host needs.
    pub(crate) fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Svm { .. } | Self::Counted => svm::PACKAGES,
            Self::Vmx => vmx::PACKAGES,
        }
    }

    fn loads(self) -> Vec<Load> {
        match self {
            Self::Svm { paging, .. } => svm::loads(paging),
            Self::Counted => svm::loads(Paging::Nested),
            Self::Vmx => vmx::loads(),
        }
    }

    fn kernel_options(self, more: &[String]) -> String {
        let own = match self {
            Self::Svm {
                tsc: Tsc::Unstable, ..
            } => svm::OPTIONS,
            Self::Svm {
                tsc: Tsc::Stable, ..
            }
            | Self::Counted => svm::OPTIONS_STABLE,
            Self::Vmx => vmx::OPTIONS,
        };
        // Without a rate the kernel sets the port to 9600 baud, which Bochs takes seriously.
        let all = ["console=ttyS0,115200 quiet panic=-1", own, &more.join(" ")].join(" ");
        all.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// After how long without a mark on its console a host has stopped, but for what a live step says of that. It gives
    /// one every five seconds while a step runs, on a clock that on svm is real time. One that counts instructions may
    /// stop at any time, and all that is measured on it is live: any line is a sign of life.
    fn silence(self) -> Option<Duration> {
        match self {
            Self::Svm { .. } => Some(Duration::from_secs(30)),
            Self::Counted => Some(Duration::from_secs(150)),
            Self::Vmx => None,
        }
    }

    /// How long a step with this limit may be without its end, in real time, which is what the host's clock tells; then
    /// the host does not end what it should.
    fn step_limit(self, limit: Duration) -> Option<Duration> {
        match self {
            Self::Svm { .. } => Some(limit + Duration::from_secs(120)),
            Self::Counted | Self::Vmx => None,
        }
    }

    /// How long a host may take for `job`, in real time. A step's own limit is on the host's clock, which
    /// is some ten times slower on vmx and where it counts instructions, and slower still on vmx beside other hosts.
    fn limit(self, job: &Job) -> Duration {
        let steps: Duration = job.steps.iter().map(|step| step.limit).sum();
        match self {
            Self::Svm { .. } => Duration::from_secs(120) + steps * 2,
            Self::Counted | Self::Vmx => Duration::from_secs(900) + steps * 20,
        }
    }
}

/// A host whose emulator has lost it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// It spins, or waits for ever.
    #[error("it gave no sign of life for {} s", .0.as_secs())]
    Silent(Duration),
    /// It does not end a step that is late: one of its processors may stand still.
    #[error("its step {step} had no end after {} s", .after.as_secs())]
    Stuck {
        /// The step.
        step: String,
        /// The real time since its beginning.
        after: Duration,
    },
    /// Its kernel fell over, which ends the emulator.
    #[error("it ended before its job ({0})")]
    Fell(String),
}

/// Everything about one run of a host.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// Where things lie.
    pub(crate) paths: &'a Paths,
    /// What the host runs: the amd64 kernel.
    pub(crate) stock: &'a Stock,
    /// Which host.
    pub(crate) host: Host,
    /// More options for the host's kernel.
    pub(crate) options: &'a [String],
    /// What it shall do.
    pub(crate) job: &'a Job,
    /// Where the console's output goes.
    pub(crate) log: PathBuf,
}

/// What a run cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Until the host was ready for the first step.
    pub(crate) ready: Duration,
    /// In all.
    pub(crate) total: Duration,
}

/// The step that a host is at.
struct Current {
    step: String,
    begin: Instant,
    /// In real time, where the host's clock tells it.
    limit: Option<Duration>,
    output: Output,
}

impl Current {
    fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| self.begin.elapsed() > limit)
    }
}

impl Run<'_> {
    /// Runs the host to the end of its job and gives each event, marks and output, to `observe`.
    pub(crate) fn run(&self, observe: &mut dyn FnMut(Event)) -> Result<Cost> {
        self.console(observe).with_context(|| {
            let tail = tail(&self.log, 40);
            format!(
                "the host {} failed; its log {} ends:\n{tail}",
                self.host.name(),
                self.log.display()
            )
        })
    }

    fn console(&self, observe: &mut dyn FnMut(Event)) -> Result<Cost> {
        let folder = self.paths.run_folder(&self.host.name())?;
        // The folder's random suffix serves as the run's word as well.
        let suffix = folder
            .path()
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let word = format!("@@LAB-{}", suffix.unwrap_or_default());
        let mut log = File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let initrd = folder.path().join("initramfs");
        fs::write(
            &initrd,
            initramfs(self.stock, &self.host.loads(), self.job, &word)?,
        )
        .context("cannot write the initramfs")?;

        let start = Instant::now();
        let deadline = start + self.host.limit(self.job);
        let (mut running, console) = self.start(folder.path(), &initrd, &log)?;
        let (sender, lines) = mpsc::sync_channel(1024);
        let reader = thread::spawn(move || read_lines(console, &sender));

        let mut receiver = Receiver::new(&word);
        let (mut ready, mut done) = (None, false);
        let mut heard = start;
        let mut current: Option<Current> = None;
        while !done {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(current) = current.as_ref().filter(|current| current.is_over()) {
                bail!(Lost::Stuck {
                    step: current.step.clone(),
                    after: current.begin.elapsed()
                });
            }
            // A kernel whose processors are stuck may go on to say so: only the job's marks are signs of life, but where
            // a step that is live leaves no room for them.
            let (silence, any_line) = match (self.host, current.as_ref().map(|at| at.output)) {
                (Host::Svm { .. } | Host::Vmx, Some(Output::Live { silence })) => (silence, true),
                (Host::Counted, _) => (self.host.silence(), true),
                (Host::Svm { .. } | Host::Vmx, _) => (self.host.silence(), false),
            };
            let patience = silence.map_or(left, |silence| silence.saturating_sub(heard.elapsed()));
            let line = match lines.recv_timeout(left.min(patience)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if patience < left => {
                    bail!(Lost::Silent(silence.unwrap_or(patience)))
                }
                Err(RecvTimeoutError::Timeout) => bail!(
                    "it did not finish its job within {} s",
                    self.host.limit(self.job).as_secs()
                ),
                Err(RecvTimeoutError::Disconnected) => {
                    // Its console ends before itself does.
                    let soon = Instant::now() + Duration::from_secs(10);
                    let status = match running.wait_until(soon)? {
                        Some(status) => status,
                        None => running.end()?,
                    };
                    bail!(Lost::Fell(status.to_string()))
                }
            };
            log.write_all(&line).context("cannot write the log")?;
            if any_line || line.starts_with(word.as_bytes()) {
                heard = Instant::now();
            }
            receiver.line(&line, &mut |event| {
                match &event {
                    Event::Ready(_) => ready = Some(start.elapsed()),
                    Event::Begin { step } => current = self.begun(step),
                    Event::Exit { .. } => current = None,
                    Event::Done => done = true,
                    _ => {}
                }
                observe(event);
            })?;
        }
        let total = start.elapsed();
        running.end()?;
        drop(lines);
        // The emulator is gone, so its console has ended; the thread has no result.
        let _ = reader.join();
        let ready = ready.context("it ran its steps without being ready")?;
        Ok(Cost { ready, total })
    }

    /// A step that begins now.
    fn begun(&self, name: &str) -> Option<Current> {
        let step = self.job.steps.iter().find(|step| step.name == name)?;
        Some(Current {
            step: step.name.clone(),
            begin: Instant::now(),
            limit: self.host.step_limit(step.limit),
            output: step.output,
        })
    }

    /// Starts the emulator; returns it and its console.
    fn start(
        &self,
        folder: &Path,
        initrd: &Path,
        log: &File,
    ) -> Result<(Running, Box<dyn Read + Send>)> {
        let options = self.host.kernel_options(self.options);
        match self.host {
            Host::Svm { .. } | Host::Counted => {
                let counted = self.host == Host::Counted;
                let mut command = svm::command(&self.stock.image, initrd, &options, counted);
                let errors = log.try_clone().context("cannot share the log")?;
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(errors);
                let mut running = Running::spawn(&mut command)?;
                let console = running.child().stdout.take().context("no console")?;
                Ok((running, Box::new(console)))
            }
            Host::Vmx => {
                vmx::prepare(folder, &self.stock.image, initrd, &options)?;
                let (read, write) = fifo(&folder.join("serial"))?;
                let mut command = vmx::command(folder);
                let terminal = vmx::blind_terminal()?;
                let again = || terminal.try_clone().context("cannot share a terminal");
                command
                    .stdin(again()?)
                    .stdout(again()?)
                    .stderr(Stdio::piped());
                let mut running = Running::spawn(&mut command)?;
                let words = running.child().stderr.take().context("no standard error")?;
                thread::spawn(move || vmx::empty_screen(words));
                // The console ends when Bochs has ended, and not before it has opened its end.
                let end = running.end_notice()?;
                thread::spawn(move || {
                    end.wait();
                    drop(write);
                });
                Ok((running, Box::new(read)))
            }
        }
    }
}

/// A named pipe: its end for reading, and one for writing that keeps it from ending.
fn fifo(path: &Path) -> Result<(File, File)> {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .with_context(|| format!("cannot make the named pipe {}", path.display()))?;
    let open = |flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("cannot open {}", path.display()))
    };
    // Without a writer, only a non-blocking open of the reading end returns.
    let read = open(OFlags::RDONLY | OFlags::NONBLOCK)?;
    let write = open(OFlags::WRONLY)?;
    rustix::fs::fcntl_setfl(&read, OFlags::empty()).context("cannot make a pipe blocking")?;
    Ok((read.into(), write.into()))
}

fn read_lines(console: Box<dyn Read + Send>, lines: &mpsc::SyncSender<Vec<u8>>) {
    let mut console = BufReader::new(console);
    loop {
        let mut line = Vec::new();
        match console.read_until(b'\n', &mut line) {
            // A console fails only when the emulator is gone, which is the end of the lines.
            Ok(0) | Err(_) => return,
            Ok(_) if lines.send(line).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// As much of a line of a log is shown: a time report is one line.
const SHOWN: usize = 300;

/// The last lines of a log, the ends of long ones left off.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..]
        .iter()
        .fold(String::new(), |text, line| {
            let shown: String = line.chars().take(SHOWN).collect();
            let cut = if shown.len() < line.len() { " ..." } else { "" };
            text + "    " + &shown + cut + "\n"
        })
}
