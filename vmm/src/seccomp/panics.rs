//! Panics of threads that have a filter, told whole.

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a thread of this process has a filter. Threads that such a thread starts have it, too, and know no role.
static IN_FORCE: AtomicBool = AtomicBool::new(false);

/// Notes that the calling thread is about to have a filter.
pub(super) fn note() {
    IN_FORCE.store(true, Ordering::Relaxed);
}

/// Has panics told in one line as soon as a thread of this process has a filter, whatever `RUST_BACKTRACE` says: for
/// a backtrace the standard library reads this program's file and `/proc/self/maps`, which no filter allows, so that
/// the process would end by `SIGSYS` before the panic is told. Before that, and without filters, the hook that was
/// there tells them.
pub fn tell_panics_in_one_line() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if IN_FORCE.load(Ordering::Relaxed) {
            tell(panic);
        } else {
            previous(panic);
        }
    }));
}

fn tell(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    let text = panic.payload_as_str().unwrap_or("no text");
    // There is one in all versions of the standard library so far.
    let place = panic.location().map(ToString::to_string);
    let line = format!(
        "keeptime: thread {name:?} panicked at {}: {text:?}; with --no-seccomp, RUST_BACKTRACE=1 tells from where\n",
        place.as_deref().unwrap_or("?"),
    );
    // In one piece; nobody can be told that nobody listens.
    let _ = io::stderr().write_all(line.as_bytes());
}
