//! Has the system calls seen that a filter lets through: each rule's action is to tell a tracer (`SECCOMP_RET_TRACE`,
//! seccomp(2)), with the filter's number beside the call, so that a call is known with the filter that held it and the
//! arguments that the filter saw.

use std::collections::BTreeSet;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use vmm::seccomp::Role;

use crate::support::rules;

/// A call, and the place of the filter that let it through in [`Role::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) filter: usize,
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
}

/// The launcher's rules, which tell a tracer of what they allow; what they do not allow ends the process as ever.
/// The filter that refuses tells nothing, since the rule of the filter beside it does.
pub(crate) fn traced_rules() -> Value {
    let mut rules = rules::rules();
    for (place, role) in Role::ALL.into_iter().enumerate() {
        rules[role.name()]["match_action"] = json!({"trace": place});
    }
    rules["refused"]["match_action"] = json!({"trace": Role::ALL.len()});
    rules
}

/// A signal that a thread gets at the next call that its filter lets through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    pub(crate) role: Role,
    pub(crate) signal: i32,
}

/// A process that is traced from its begin to its end.
pub(crate) struct Traced {
    pub(crate) process: libc::pid_t,
    pub(crate) stdout: Option<ChildStdout>,
    strike: Arc<Mutex<Option<Strike>>>,
    tracer: std::thread::JoinHandle<(i32, BTreeSet<Call>)>,
}

impl Traced {
    /// Starts a program.
    #[expect(clippy::zombie_processes, reason = "the tracer waits for it")]
    pub(crate) fn start(mut command: Command, strike: Option<Strike>) -> Self {
        // SAFETY: the child calls the kernel and nothing else before it becomes the program.
        unsafe { command.pre_exec(trace_me) };
        Self::by(strike, move || {
            let mut child = command.spawn().expect("the program runs");
            let process = libc::pid_t::try_from(child.id()).expect("an identifier");
            (process, child.stdout.take())
        })
    }

    /// Has a child of this process do `work`.
    pub(crate) fn fork(work: impl FnOnce() + Send + 'static) -> Self {
        Self::by(None, move || {
            // SAFETY: the child does what needs no lock that another thread of this process might hold.
            let process = unsafe { libc::fork() };
            if process == 0 {
                let traced = trace_me();
                // SAFETY: neither call takes a pointer.
                unsafe { libc::raise(libc::SIGSTOP) };
                if traced.is_ok() {
                    work();
                }
                // SAFETY: as above.
                unsafe { libc::_exit(i32::from(traced.is_err())) };
            }
            assert!(process > 0, "fork: {}", io::Error::last_os_error());
            (process, None)
        })
    }

    fn by(
        strike: Option<Strike>,
        begin: impl FnOnce() -> (libc::pid_t, Option<ChildStdout>) + Send + 'static,
    ) -> Self {
        let strike = Arc::new(Mutex::new(strike));
        let for_tracer = strike.clone();
        let (begun, wait): (SyncSender<_>, Receiver<_>) = mpsc::sync_channel(1);
        // Only the thread that begins a process can be its tracer.
        let tracer = std::thread::spawn(move || {
            let (process, stdout) = begin();
            let status = wait_for(process).1;
            assert!(libc::WIFSTOPPED(status), "{status:#x}");
            let options =
                libc::PTRACE_O_TRACESECCOMP | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
            ask(libc::PTRACE_SETOPTIONS, process, 0, word(options)).expect("options");
            go_on(process, 0);
            begun.send((process, stdout)).expect("waited for");
            trace(process, &for_tracer)
        });
        let (process, stdout) = wait.recv().expect("it has begun");
        Self {
            process,
            stdout,
            strike,
            tracer,
        }
    }

    /// From now on.
    pub(crate) fn strike(&self, strike: Strike) {
        *self.strike.lock().unwrap_or_else(PoisonError::into_inner) = Some(strike);
    }

    /// Of a process that is waited for: it has not ended, and gets a chance to go on.
    pub(crate) fn goes_on(&self) {
        assert!(
            !self.tracer.is_finished(),
            "it has ended; is a rule missing?"
        );
        std::thread::yield_now();
    }

    /// Waits for the end: the status of wait(2), and what was seen.
    pub(crate) fn wait(self) -> (i32, BTreeSet<Call>) {
        self.tracer.join().expect("the tracer goes on")
    }
}

fn trace_me() -> io::Result<()> {
    ask(libc::PTRACE_TRACEME, 0, 0, 0).map(drop)
}

fn ask(
    request: libc::c_uint,
    thread: libc::pid_t,
    address: usize,
    data: usize,
) -> io::Result<libc::c_long> {
    // SAFETY: those of the requests here that write have a place of the size that they are told.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

/// A number as ptrace(2) takes it.
fn word(number: i32) -> usize {
    isize::try_from(number).expect("narrower").cast_unsigned()
}

/// A thread that was killed meanwhile does not go on.
fn go_on(thread: libc::pid_t, signal: i32) {
    let _ = ask(libc::PTRACE_CONT, thread, 0, word(signal));
}

/// The next change of a process or, with -1, of any that this thread traces: 0 when there is none left.
fn wait_for(process: libc::pid_t) -> (libc::pid_t, i32) {
    let mut status = 0;
    loop {
        // SAFETY: a place for the status.
        let found =
            unsafe { libc::waitpid(process, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        match found {
            -1 => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ECHILD) => return (0, 0),
                other => panic!("waitpid: {other:?}"),
            },
            found => return (found, status),
        }
    }
}

fn trace(process: libc::pid_t, strike: &Mutex<Option<Strike>>) -> (i32, BTreeSet<Call>) {
    let mut seen = BTreeSet::new();
    let mut known = BTreeSet::from([process]);
    let mut end = None;
    loop {
        let (thread, status) = wait_for(-1);
        if thread == 0 {
            return (end.expect("it has ended"), seen);
        }
        if !libc::WIFSTOPPED(status) {
            if thread == process {
                end = Some(status);
            }
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            libc::PTRACE_EVENT_SECCOMP => {
                if let Some(call) = call_of(thread) {
                    seen.insert(call);
                    if call.number == libc::SYS_clone3 {
                        refuse(thread);
                    }
                    let mut strike = strike.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(Strike { role, signal }) = *strike
                        && Role::ALL.get(call.filter) == Some(&role)
                    {
                        *strike = None;
                        // SAFETY: takes no pointer. It has it when it goes on.
                        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
                    }
                }
                go_on(thread, 0);
            }
            // Threads begin with a stop of the tracer's.
            0 if signal == libc::SIGSTOP && known.insert(thread) => go_on(thread, 0),
            0 => {
                // Of a thread that stops with its process nothing is known (ptrace(2), "Group-stop").
                let mut information = MaybeUninit::<libc::siginfo_t>::uninit();
                let delivered = ask(
                    libc::PTRACE_GETSIGINFO,
                    thread,
                    0,
                    information.as_mut_ptr().addr(),
                );
                go_on(thread, if delivered.is_ok() { signal } else { 0 });
            }
            _ => go_on(thread, 0),
        }
    }
}

/// The call that a thread waits to make.
fn call_of(thread: libc::pid_t) -> Option<Call> {
    let mut information = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    ask(
        libc::PTRACE_GET_SYSCALL_INFO,
        thread,
        size,
        information.as_mut_ptr().expose_provenance(),
    )
    .ok()?;
    // SAFETY: all bytes are zero or the kernel's, and it has written of a stop by a filter.
    let (op, call) = unsafe {
        let information = information.assume_init();
        (information.op, information.u.seccomp)
    };
    assert_eq!(op, libc::PTRACE_SYSCALL_INFO_SECCOMP);
    Some(Call {
        filter: usize::try_from(call.ret_data).expect("small"),
        number: call.nr.cast_signed(),
        arguments: call.args,
    })
}

/// Answers a call as the filter `refused` does where no tracer is: `ENOSYS`, and it is not made.
fn refuse(thread: libc::pid_t) {
    let number = offset_of!(libc::user, regs) + offset_of!(libc::user_regs_struct, orig_rax);
    let answer = offset_of!(libc::user, regs) + offset_of!(libc::user_regs_struct, rax);
    for (register, value) in [(number, -1), (answer, -libc::ENOSYS)] {
        match ask(libc::PTRACE_POKEUSER, thread, register, word(value)) {
            // It was killed meanwhile, with all of its process.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return,
            written => written.expect("a register"),
        };
    }
}
