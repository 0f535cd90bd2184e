//! Child processes that end with us: on a timeout, on Ctrl-C, and when we are killed.
//!
//! Each child leads a process group of its own, which is killed as a whole on a timeout and on
//! SIGINT, SIGTERM and SIGHUP; `setpriv --pdeathsig` (util-linux, essential on Debian) covers the
//! rest, a SIGKILL of the laboratory.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::paths::remove_run_folders;

/// The process groups that are alive now.
static GROUPS: LazyLock<Mutex<BTreeSet<i32>>> = LazyLock::new(Mutex::default);

/// From now on a signal that ends the laboratory ends its children first.
pub(crate) fn end_children_on_signals() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot install signal handlers")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let mut order = lock(&ORDER);
            end_all();
            let Some(order) = &mut *order else {
                leave(signal);
            };
            order.signal.get_or_insert(signal);
            order.ask_to_end();
        }
    });
    Ok(())
}

fn leave(signal: i32) -> ! {
    remove_run_folders();
    // The shell's convention for a death by signal.
    std::process::exit(128_i32.saturating_add(signal))
}

/// What there is while somebody cleans up after a child of theirs.
#[derive(Debug, Default)]
struct Order {
    /// The child, which has one itself.
    child: Option<Pid>,
    /// The first signal that wanted to end us.
    signal: Option<i32>,
}

static ORDER: Mutex<Option<Order>> = Mutex::new(None);

impl Order {
    /// Asks the child's child, whose end the child waits for. A child that has none yet has done nothing.
    fn ask_to_end(&self) {
        let Some(child) = self.child else { return };
        let number = child.as_raw_nonzero();
        let list = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children"));
        let list = list.unwrap_or_default();
        let grandchild = list.split_whitespace().next();
        match grandchild
            .and_then(|word| word.parse().ok())
            .and_then(Pid::from_raw)
        {
            // ESRCH: it has ended.
            Some(pid) => _ = rustix::process::kill_process(pid, Signal::TERM),
            None => kill_group(number.get()),
        }
    }
}

/// While it lives, a signal that ends us does so when it is dropped: who has it cleans up before.
#[derive(Debug)]
pub(crate) struct InOrder(());

impl InOrder {
    /// From now on.
    pub(crate) fn begin() -> Self {
        *lock(&ORDER) = Some(Order::default());
        Self(())
    }

    /// Runs `command`, which has a child and ends with it, with our own standard output and error; an unsuccessful
    /// status is an error. A signal that ends us asks that child to end.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let name = describe(command);
        let mut child = {
            let mut order = lock(&ORDER);
            let order = order.get_or_insert_default();
            anyhow::ensure!(order.signal.is_none(), "{name} is not run: we end");
            // A group of its own: a terminal's signals are for us.
            let child = command
                .process_group(0)
                .spawn()
                .with_context(|| format!("cannot run {name}"))?;
            order.child = Some(Pid::from_child(&child));
            child
        };
        let status = child.wait();
        if let Some(order) = &mut *lock(&ORDER) {
            order.child = None;
        }
        let status = status.with_context(|| format!("cannot wait for {name}"))?;
        anyhow::ensure!(status.success(), "{name} failed ({status})");
        Ok(())
    }
}

impl Drop for InOrder {
    fn drop(&mut self) {
        let order = lock(&ORDER).take();
        if let Some(signal) = order.and_then(|order| order.signal) {
            leave(signal);
        }
    }
}

/// Kills every process group that is alive now.
pub(crate) fn end_all() {
    for &group in lock_groups().iter() {
        kill_group(group);
    }
}

/// A command that the kernel kills when we die.
pub(crate) fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A running child, the leader of its own process group. Dropping it kills the group.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: i32,
    reaped: bool,
}

impl Running {
    /// Starts `command`, whose standard input, output and error the caller has set.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let name = describe(command);
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let group = i32::try_from(child.id()).context("a process id beyond pid_t")?;
        lock_groups().insert(group);
        Ok(Self {
            child,
            group,
            reaped: false,
        })
    }

    /// The child's pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Something that another thread can wait for the child's end with.
    pub(crate) fn end_notice(&self) -> Result<EndNotice> {
        let pid = Pid::from_raw(self.group).context("a process id of 0")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("cannot watch a child process")?;
        Ok(EndNotice(pidfd))
    }

    /// Waits for the end until `deadline`; `None` when the child is still running then.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        if self.reaped || self.end_notice()?.wait_until(Some(deadline)) {
            self.reap().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Kills what is left of the group and collects the child's status.
    pub(crate) fn end(&mut self) -> Result<ExitStatus> {
        if !self.reaped {
            kill_group(self.group);
        }
        self.reap()
    }

    /// Waits for the end, however long it takes.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.reap()
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        if !self.reaped {
            let pid = Pid::from_raw(self.group).context("a process id of 0")?;
            // Without collecting it, so that the group's number stays taken while the group is killed:
            // grandchildren may have outlived the child.
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while let Err(error) = rustix::process::waitid(WaitId::Pid(pid), ended) {
                if error != rustix::io::Errno::INTR {
                    return Err(error).context("cannot wait for a child process");
                }
            }
            kill_group(self.group);
            lock_groups().remove(&self.group);
            self.reaped = true;
        }
        self.child.wait().context("cannot collect a child process")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            // Nothing can be reported from here, and the child is killed either way.
            let _ = self.end();
        }
    }
}

/// Tells when a child has ended, without collecting its status.
#[derive(Debug)]
pub(crate) struct EndNotice(OwnedFd);

impl EndNotice {
    /// Waits for the end.
    pub(crate) fn wait(&self) {
        self.wait_until(None);
    }

    /// Whether the end came before `deadline`.
    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // A wait beyond the kernel's range of seconds is a wait for ever.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut poll = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut poll, timeout.as_ref()) {
                Ok(0) => return false,
                Err(rustix::io::Errno::INTR) => {}
                // The other errors of poll(2) concern its arguments, which are fixed here.
                Ok(_) | Err(_) => return true,
            }
        }
    }
}

/// What a bounded run left.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The status, or `None` when the time was up and the run was killed.
    pub(crate) status: Option<ExitStatus>,
    /// Everything from standard output.
    pub(crate) stdout: Vec<u8>,
    /// Everything from standard error.
    pub(crate) stderr: Vec<u8>,
}

/// Runs `command` with an empty standard input for at most `limit`.
pub(crate) fn run_bounded(command: &mut Command, limit: Duration) -> Result<Finished> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut running = Running::spawn(command)?;
    let stdout = collect(running.child().stdout.take());
    let stderr = collect(running.child().stderr.take());
    let status = running.wait_until(start + limit)?;
    if status.is_none() {
        running.end()?;
    }
    let join = |reader: thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    Ok(Finished {
        status,
        stdout: join(stdout),
        stderr: join(stderr),
    })
}

/// Runs `command` with our own standard output and error; an unsuccessful status is an error.
pub(crate) fn run_visibly(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    anyhow::ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// Runs `command` silently and returns its standard output; on failure the error has its last words.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!("{name} failed ({}): {}", output.status, words.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed no UTF-8"))
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe fails only when its other end is gone: what came before is the result.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn lock_groups() -> MutexGuard<'static, BTreeSet<i32>> {
    lock(&GROUPS)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_group(group: i32) {
    if let Some(pid) = Pid::from_raw(group) {
        // ESRCH: the group is already empty.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    line.strip_prefix("setpriv --pdeathsig KILL -- ")
        .unwrap_or(&line)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_bounded_program_that_ends_gives_status_and_both_outputs() {
        let mut command = tied("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let finished = run_bounded(&mut command, Duration::from_secs(60)).unwrap();
        assert_eq!(finished.status.unwrap().code(), Some(3));
        assert_eq!(finished.stdout, b"out\n");
        assert_eq!(finished.stderr, b"err\n");
    }

    #[test]
    fn run_bounded_grandchild_that_hangs_is_killed_with_its_group() {
        let mut command = tied("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        let finished = run_bounded(&mut command, Duration::from_millis(300)).unwrap();
        assert!(finished.status.is_none());
        // Both pipes have ended, or we would not be here; their last writer was the grandchild.
        assert!(!finished.stdout.is_empty());
    }
}
