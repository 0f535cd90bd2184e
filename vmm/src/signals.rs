//! Signals: those that ask the launcher to end reach the event loop; the one that kicks a vCPU thread
//! only makes its system call return.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{self, SIGRTMIN, block_signal, register_signal_handler, unblock_signal};

/// Signals that ask a process to end (signal(7)); their default action would skip every clean-up.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

static WAKE: OnceLock<EventFd> = OnceLock::new();
static RECEIVED: AtomicI32 = AtomicI32::new(0);
static CONTINUED: AtomicU32 = AtomicU32::new(0);

/// The signal that makes KVM_RUN return in one thread.
pub(crate) fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Installs the handlers. The descriptor becomes readable when the process is asked to end; then
/// [`received`] tells by which signal.
pub(crate) fn install() -> io::Result<&'static EventFd> {
    let wake = match WAKE.get() {
        Some(wake) => wake,
        None => {
            let event = EventFd::new(EFD_NONBLOCK)?;
            WAKE.get_or_init(|| event)
        }
    };
    for signal in ENDING {
        register_signal_handler(signal, on_ending_signal)?;
    }
    register_signal_handler(kick_signal(), on_kick)?;
    // It goes on with or without a handler; with one it is known.
    register_signal_handler(libc::SIGCONT, on_continue)?;
    match block_signal(libc::SIGCONT) {
        Ok(()) | Err(signal::Error::SignalAlreadyBlocked(_)) => Ok(wake),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Has the calling thread be the one that counts in [`continued`]; threads begun later inherit this.
///
/// In all others `SIGCONT` is blocked, which keeps no process from going on. A signal is handled before the
/// thread that takes it returns to its program, so this thread's first look at the clock after a stop finds
/// it counted. Were it another's, that one could still be waiting for a CPU.
pub(crate) fn count_continued() -> io::Result<()> {
    unblock_signal(libc::SIGCONT).map_err(|error| io::Error::other(error.to_string()))
}

/// The signal that asked the process to end, if one did.
pub(crate) fn received() -> Option<i32> {
    match RECEIVED.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(signal),
    }
}

/// How often the process was told to go on after a stop.
pub(crate) fn continued() -> u32 {
    CONTINUED.load(Ordering::Relaxed)
}

extern "C" fn on_continue(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    CONTINUED.fetch_add(1, Ordering::Relaxed);
}

// An atomic store and a write(2) to an eventfd: both async-signal-safe.
extern "C" fn on_ending_signal(
    signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    RECEIVED.store(signal, Ordering::SeqCst);
    if let Some(wake) = WAKE.get() {
        // A full counter is as readable as one more.
        let _ = wake.write(1);
    }
}

extern "C" fn on_kick(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::signal::get_blocked_signals;

    #[test]
    fn signal_to_go_on_is_taken_by_the_thread_that_counts_alone() {
        let is_blocked = || {
            let blocked = get_blocked_signals().expect("this thread's mask");
            blocked.contains(&libc::SIGCONT)
        };
        install().expect("handlers");
        install().expect("twice, as where two machines follow each other");
        assert!(is_blocked());
        std::thread::spawn(move || {
            assert!(is_blocked(), "inherited");
            count_continued().expect("unblocked");
            assert!(!is_blocked());
        })
        .join()
        .expect("a thread that counts");
        assert!(is_blocked());
    }
}
