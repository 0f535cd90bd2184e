//! The operator's terminal: raw while a guest uses it, and as it was on every way out.
//!
//! The settings are kept in one place for the whole process, because those who must restore them
//! (the guard's drop, the panic hook, the handler of a fatal signal) share nothing else. Restoring
//! is one ioctl and therefore allowed in a signal handler.
#![expect(
    unsafe_code,
    reason = "fatal signals are caught on the alternate stack and raised again"
)]

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::stdio::stdin;
use rustix::termios::{self, OptionalActions, Termios};

/// The settings before the first switch to raw mode.
static SAVED: OnceLock<Termios> = OnceLock::new();
/// Whether the terminal is raw now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end the process at once for a fault of its own (signal(7)).
const FATAL: [i32; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// While this value lives, standard input is in raw mode.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches standard input to raw mode if it is a terminal and this process is in the foreground
    /// of it. Otherwise nothing is changed, and `None` says so.
    pub(crate) fn enter() -> Result<Option<Self>, Errno> {
        let input = stdin();
        if !termios::isatty(input) || !in_foreground(input) {
            return Ok(None);
        }
        let saved = termios::tcgetattr(input)?;
        let mut raw = saved.clone();
        raw.make_raw();
        let _first_wins = SAVED.set(saved);
        restore_on_panic_and_fatal_signals();
        RAW.store(true, Ordering::SeqCst);
        termios::tcsetattr(input, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// A background process that touches the terminal's settings would be stopped by SIGTTOU.
fn in_foreground(input: impl AsFd) -> bool {
    termios::tcgetpgrp(input).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Puts the terminal back, once. Async-signal-safe.
fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
    {
        // Nothing can be done about a terminal that has gone away.
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, saved);
    }
}

fn restore_on_panic_and_fatal_signals() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        for signal in FATAL {
            catch_fatal(signal);
        }
    });
}

/// Handles `signal` on the thread's alternate stack, which Rust provides, so that it also works when
/// the stack has overflowed. A signal that cannot be caught keeps its default action, which is what
/// we want of it in the end.
fn catch_fatal(signal: libc::c_int) {
    // SAFETY: sigaction is plain data for which all zeroes is a valid value; the handler has the
    // signature that SA_SIGINFO asks for and calls only what is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fatal_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn on_fatal_signal(
    signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    restore();
    // SAFETY: both calls are async-signal-safe, and neither takes a pointer. The signal is blocked
    // while we are in its handler: it comes with its default action when we return.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}
