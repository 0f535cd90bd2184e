//! How a microVM ended, and what that means for the process that ran it.

use std::fmt;

/// How a microVM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest reset itself: keyboard controller, ACPI reset register, or a paravirtual request.
    Reset,
    /// The guest powered off: ACPI S5, or a paravirtual request.
    PowerOff,
    /// A vCPU triple-faulted, which resets a real machine.
    TripleFault,
    /// A vCPU without interrupt controllers halted: nothing can wake it.
    Halted,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u8),
    /// The operator typed the escape key at the console.
    Escape,
    /// The launcher was told to end by this signal.
    Signal(i32),
    /// A vCPU cannot go on. The text is the whole report, with a dump of its registers.
    Failure(String),
}

impl Outcome {
    /// The exit status of the process (documented in `keeptime --help`).
    #[must_use]
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Reset | Self::PowerOff | Self::TripleFault | Self::Halted | Self::Escape => 0,
            // As the port of this name does in other machines; the top bit of the value is lost.
            Self::DebugExit(value) => (value << 1) | 1,
            Self::Failure(_) => 2,
            // The shell's convention for a process ended by a signal.
            Self::Signal(number) => 128_u8.wrapping_add(u8::try_from(*number).unwrap_or(0)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => write!(f, "the guest reset itself"),
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::TripleFault => write!(f, "the guest triple-faulted"),
            Self::Halted => write!(f, "the guest halted for ever"),
            Self::DebugExit(value) => {
                write!(f, "the guest wrote {value:#x} to the debug-exit port")
            }
            Self::Escape => write!(f, "ended from the console"),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
            Self::Failure(report) => write!(f, "{report}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_a_guest_that_ended_by_itself_is_zero() {
        for outcome in [
            Outcome::Reset,
            Outcome::PowerOff,
            Outcome::TripleFault,
            Outcome::Halted,
        ] {
            assert_eq!(outcome.status(), 0, "{outcome}");
        }
    }

    #[test]
    fn status_of_the_debug_exit_port_is_odd() {
        // (0 << 1) | 1, (0x10 << 1) | 1, (0x7f << 1) | 1, and 0x80 whose top bit is lost
        for (value, status) in [(0, 1), (0x10, 0x21), (0x7f, 0xff), (0x80, 1)] {
            assert_eq!(Outcome::DebugExit(value).status(), status);
        }
    }

    #[test]
    fn status_of_failures_and_signals_is_told_apart() {
        assert_eq!(Outcome::Failure(String::new()).status(), 2);
        assert_eq!(Outcome::Signal(15).status(), 143);
    }
}
