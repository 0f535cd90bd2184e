//! The operator's side of the serial port: what goes in comes out, and every way out leaves the
//! terminal as it was.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, tcgetattr};
use support::{FOR_EVER, echo, elf, print, pseudoterminal};

const LAUNCHER: &str = env!("CARGO_BIN_EXE_keeptime");

/// A launcher on a terminal of its own, whose guest prints `ready` and runs for ever.
struct OnTerminal {
    /// Keeps the terminal's settings alive and readable.
    terminal: File,
    /// The operator's side.
    operator: File,
    child: Child,
}

impl OnTerminal {
    fn start(code: &[u8]) -> Self {
        let (operator, terminal) = pseudoterminal();
        let guest = elf(code);
        // setsid gives the launcher a session of its own with this terminal, so that it is in its
        // foreground.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", LAUNCHER, "run", "--kernel"])
            .arg(guest.path())
            .stdin(Stdio::from(terminal.try_clone().expect("a descriptor")))
            .stdout(Stdio::from(terminal.try_clone().expect("a descriptor")))
            .stderr(Stdio::from(terminal.try_clone().expect("a descriptor")))
            .spawn()
            .expect("setsid runs");
        let mut started = Self {
            terminal,
            operator: File::from(operator),
            child,
        };
        started.read_until("ready");
        started
    }

    /// Reads what the terminal shows up to `text`.
    fn read_until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).ends_with(text) {
            self.operator
                .read_exact(&mut byte)
                .expect("the terminal stays open");
            seen.push(byte[0]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(self.terminal.as_fd())
            .expect("a terminal")
            .local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// The launcher's own process, which is setsid's only child (or setsid itself, if it did not
    /// need to fork).
    fn launcher(&self) -> Pid {
        let setsid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{setsid}/task/{setsid}/children"))
            .expect("this kernel lists children");
        let number = children
            .split_whitespace()
            .next()
            .map_or(setsid, |id| id.parse().expect("id"));
        Pid::from_raw(number.cast_signed()).expect("not zero")
    }

    /// The exit status as a shell tells it, and whether the terminal is still raw.
    fn wait(mut self) -> (i32, bool) {
        let status = self.child.wait().expect("setsid ends");
        let shell = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().expect("a signal"));
        (shell, self.is_raw())
    }
}

fn ready_for_ever() -> Vec<u8> {
    [print("ready"), FOR_EVER.to_vec()].concat()
}

#[test]
fn escape_key_ends_the_machine_and_restores_the_terminal() {
    let mut launcher = OnTerminal::start(&ready_for_ever());
    assert!(launcher.is_raw());
    launcher.operator.write_all(b"\x01x").expect("typed");
    assert_eq!(launcher.wait(), (0, false));
}

#[test]
fn signals_end_the_machine_and_restore_the_terminal() {
    // Those that ask the process to end, and those that a fault of its own would raise.
    for (signal, status) in [
        (Signal::TERM, 143),
        (Signal::INT, 130),
        (Signal::HUP, 129),
        (Signal::QUIT, 131),
        (Signal::SEGV, 128 + 11),
        (Signal::ABORT, 128 + 6),
        (Signal::BUS, 128 + 7),
    ] {
        let launcher = OnTerminal::start(&ready_for_ever());
        assert!(launcher.is_raw());
        kill_process(launcher.launcher(), signal).expect("it runs");
        assert_eq!(launcher.wait(), (status, false), "{signal:?}");
    }
}

#[test]
fn what_is_typed_reaches_the_guest_and_ctrl_a_twice_is_ctrl_a() {
    let mut launcher = OnTerminal::start(&[print("ready"), echo()].concat());
    launcher
        .operator
        .write_all(b"hello\x01\x01.")
        .expect("typed");
    launcher.read_until("hello\x01.");
    assert_eq!(launcher.wait(), (0, false));
}

/// Runs the echo guest with `input` as standard input and gives what it printed.
fn echoed(input: Stdio, feed: impl FnOnce(&mut Child)) -> String {
    let guest = elf(&echo());
    let mut child = Command::new(LAUNCHER)
        .args(["--level", "off", "run", "--kernel"])
        .arg(guest.path())
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the launcher runs");
    feed(&mut child);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_pipe_longer_than_every_buffer_arrives_whole() {
    // Longer than the port's FIFO (64), the pending buffer (4096) and one read (512); the escape
    // key's bytes are the guest's when no person types.
    let text = "0123456789 \u{1}x ".repeat(500) + ".";
    let seen = echoed(Stdio::piped(), |child| {
        let mut input = child.stdin.take().expect("piped");
        input
            .write_all(text.as_bytes())
            .expect("the launcher reads");
    });
    assert_eq!(seen, text);
}

#[test]
fn a_file_arrives_whole() {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let text = "a plain file cannot be watched with epoll ".repeat(100) + ".";
    file.write_all(text.as_bytes()).expect("room");
    std::io::Seek::rewind(&mut file).expect("seekable");
    assert_eq!(echoed(Stdio::from(file), |_| {}), text);
}

#[test]
fn a_closed_standard_input_does_not_disturb_the_guest() {
    let guest = elf(&[print("done"), support::RESET.to_vec()].concat());
    let output = Command::new("sh")
        .args([
            "-c",
            "exec \"$0\" --level off run --kernel \"$1\" <&-",
            LAUNCHER,
        ])
        .arg(guest.path())
        .output()
        .expect("a shell");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"done");
}
