//! Signals: those that ask the launcher to end reach the event loop; the one that kicks a vCPU thread
//! only makes its system call return.
#![expect(
    unsafe_code,
    reason = "what was inherited for a signal is asked for by a call that has no safe form"
)]

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
        // Who started this in the background or by nohup(1) wants it to live on.
        if signal == libc::SIGTERM || !is_ignored(signal) {
            register_signal_handler(signal, on_ending_signal)?;
        }
    }
    register_signal_handler(kick_signal(), on_kick)?;
    // It goes on with or without a handler; with one it is known.
    register_signal_handler(libc::SIGCONT, on_continue)?;
    match block_signal(libc::SIGCONT) {
        Ok(()) | Err(signal::Error::SignalAlreadyBlocked(_)) => Ok(wake),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Whether the process was started with `signal` ignored.
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; the kernel writes a whole structure, for which there is room, where it succeeds, and one of zeros
    // stays where it does not: the default.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Has a write beyond the limit on a file's size (`RLIMIT_FSIZE`) fail, as one on a full disk does, instead of ending the
/// process.
pub(crate) fn survive_file_size_limit() {
    // SAFETY: no handler runs for a signal that is ignored.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
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
