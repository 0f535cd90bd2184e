//! Forks, programs, namespaces, keys and descriptors: what takes unsafe calls.
#![allow(
    unsafe_code,
    reason = "fork, exec, close_range, keyctl and unshare act on the process as a whole"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::ptr::null;

use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// `KEYCTL_JOIN_SESSION_KEYRING` of `include/uapi/linux/keyctl.h`.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Which of the two processes a fork has returned to.
pub(crate) enum Fork {
    /// The parent, with its child.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks this process, which has one thread.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: where the jailer forks, it never starts a thread, so the child finds no lock held and no state
    // half changed.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Fork::Child),
        _ => Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .map(Fork::Parent)
            .ok_or_else(io::Error::last_os_error),
    }
}

/// Whether this process leads its session: who may be its terminal's, and is hung up on with it.
pub(crate) fn leads_session() -> bool {
    // SAFETY: neither takes a pointer. `rustix::process::getsid` would panic where the leader is of another PID
    // namespace, and so has no number here.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// Ends this process without undoing anything.
pub(crate) fn leave(status: i32) -> ! {
    // SAFETY: takes no pointer; what is skipped are exit handlers, which belong to the process that forked.
    unsafe { libc::_exit(status) }
}

/// Becomes a program with nothing in its environment. Returns only to tell why not.
///
/// `Command` would not do: what the kernel takes for no program, `execvp(3)` hands to `/bin/sh`.
pub(crate) fn execute(program: &CStr, arguments: &[CString]) -> io::Error {
    let pointers = arguments.iter().map(|argument| argument.as_ptr());
    let arguments: Vec<_> = pointers.chain([null()]).collect();
    // SAFETY: the strings end in a zero byte, the lists in null, and all outlive the call. Rust has SIGPIPE
    // ignored, which programs do not expect; the set of signals is made by the call before its use.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(program.as_ptr(), arguments.as_ptr(), [null()].as_ptr());
    }
    io::Error::last_os_error()
}

/// Leaves the session keyring, with the keys of whoever started this process, for an empty one.
pub(crate) fn leave_keys() -> io::Result<()> {
    // SAFETY: takes a number and null, for a keyring without a name.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, null::<u8>()) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if joined >= 0 => Ok(()),
        // A kernel without keys, or a container's filter, which the jailed process has as well.
        Some(libc::ENOSYS | libc::EPERM) => Ok(()),
        _ => Err(error),
    }
}

/// Leaves namespaces for new ones.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: of the flags that are passed, none unshares the table of descriptors, which others might still
    // use; and there are no other threads.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Closes each descriptor above standard error that whoever started this process has left open.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: takes no pointer. It is the first call of the program: nothing here owns a descriptor above 2.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } == 0 {
        return Ok(());
    }
    // Before Linux 5.9.
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // SAFETY: as above. One of these was the listing itself and is closed already: an error without
        // consequence.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
