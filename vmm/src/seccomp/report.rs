//! What a filter did not allow, told by the thread that asked for it.
#![expect(
    unsafe_code,
    reason = "a signal's handler finds the registers at an address that the kernel hands it"
)]

use std::cell::Cell;
use std::ffi::c_void;
use std::io;

use vmm_sys_util::signal::register_signal_handler;

use super::Role;

/// Status of a process that a filter stopped, as clients of Firecracker know it.
const STATUS: i32 = 148;

thread_local! {
    /// In a static binary this is memory that is there, which a handler may look at.
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// Notes what the calling thread is for.
pub(super) fn note(role: Role) {
    ROLE.set(Some(role));
}

/// Has calls that a filter traps told.
pub(super) fn install() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_sigsys).map_err(io::Error::other)
}

/// A line of text without an allocator, which a handler cannot use.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, number: i64, radix: u64) {
        let mut digits = [0; 24];
        let mut rest = number.cast_unsigned();
        let mut begin = digits.len();
        loop {
            begin -= 1;
            let digit = usize::try_from(rest % radix).unwrap_or(usize::MAX);
            // OK because it is less than the radix, which is at most 16.
            digits[begin] = *b"0123456789abcdef".get(digit).unwrap_or(&b'?');
            rest /= radix;
            if rest == 0 {
                break;
            }
        }
        for digit in &digits[begin..] {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *digit;
                self.len += 1;
            }
        }
    }
}

extern "C" fn on_sigsys(_: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the third argument of a handler with SA_SIGINFO is a ucontext_t (sigaction(2)), which lives as long
    // as the handler runs.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let register = |number: i32| {
        let place = usize::try_from(number).ok();
        place
            .and_then(|place| registers.get(place))
            .copied()
            .unwrap_or(0)
    };
    let mut line = Line {
        bytes: [0; 256],
        len: 0,
    };
    line.text("keeptime: the seccomp filter of the thread kind ");
    line.text(ROLE.get().map_or("?", Role::name));
    line.text(" does not allow system call ");
    // The kernel leaves the call's number where its result would be (seccomp(2)).
    line.number(register(libc::REG_RAX), 10);
    line.text(" with arguments");
    for argument in [
        libc::REG_RDI,
        libc::REG_RSI,
        libc::REG_RDX,
        libc::REG_R10,
        libc::REG_R8,
        libc::REG_R9,
    ] {
        line.text(" 0x");
        line.number(register(argument), 16);
    }
    line.text("\n");
    // Each filter allows these two.
    // SAFETY: the buffer is as long as is said; the process ends after it.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(STATUS);
    }
}
