//! A file or named pipe that takes whole lines, or none of a line, and never blocks who writes.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Where lines go.
#[derive(Debug)]
pub(crate) enum LineSink {
    /// Standard error, which others write to as well.
    StandardError,
    /// A file or named pipe of our own, and the end of a line that it did not take at once.
    File { file: File, rest: Vec<u8> },
}

/// The longest line: what a pipe that is ready takes at once (PIPE_BUF, pipe(7)), which keeps the lines of
/// several writers apart.
pub(crate) const MAX_LINE: usize = 4096;

impl LineSink {
    /// Opens a file to append to, or a named pipe, which need not have a reader yet.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // Opened for reading as well: a pipe without a reader could not be opened otherwise, and a
        // reader that goes away leaves the pipe open.
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::APPEND
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self::File {
            file: File::from(file),
            rest: Vec::new(),
        })
    }

    /// Writes `line`, which ends with a newline. Returns whether it was taken; it is lost otherwise.
    pub(crate) fn write_line(&mut self, line: &[u8]) -> bool {
        match self {
            Self::StandardError => {
                let mut output = io::stderr();
                // A pipe that is ready has room for a line.
                line.len() <= MAX_LINE && is_ready(&output) && output.write_all(line).is_ok()
            }
            Self::File { file, rest } => {
                // What the line before left comes first, so that lines stay lines.
                if !rest.is_empty() {
                    let Ok(written) = write_some(file, rest) else {
                        return false;
                    };
                    rest.drain(..written);
                    if !rest.is_empty() {
                        return false;
                    }
                }
                match write_some(file, line) {
                    Ok(0) | Err(_) => false,
                    Ok(written) => {
                        rest.extend_from_slice(line.get(written..).unwrap_or_default());
                        true
                    }
                }
            }
        }
    }
}

/// Writes as much as is taken without waiting.
fn write_some(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while let Some(left) = bytes.get(written..).filter(|left| !left.is_empty()) {
        match file.write(left) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if written > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

fn is_ready(output: &impl AsFd) -> bool {
    let mut descriptors = [PollFd::new(output, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ready = loop {
        match poll(&mut descriptors, Some(&now)) {
            Err(Errno::INTR) => {}
            ready => break ready,
        }
    };
    ready.is_ok_and(|ready| ready == 1) && descriptors[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    #[test]
    fn file_is_appended_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        for line in ["one\n", "two\n"] {
            let mut sink = LineSink::open(&path).expect("a new file");
            assert!(sink.write_line(line.as_bytes()));
        }
        assert_eq!(std::fs::read_to_string(path).expect("text"), "one\ntwo\n");
    }

    #[test]
    fn full_pipe_loses_whole_lines_and_never_blocks() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).expect("a pipe");
        let kind = std::fs::metadata(&path).expect("there").file_type();
        assert!(kind.is_fifo());
        let mut sink = LineSink::open(&path).expect("without a reader");
        // 70,000 bytes are more than a pipe holds (65,536): the line is cut, and its rest kept.
        let long = [vec![b'a'; 69_999], vec![b'\n']].concat();
        assert!(sink.write_line(&long));
        assert!(!sink.write_line(b"lost\n"));
        let mut reader = File::options().read(true).open(&path).expect("a reader");
        let mut first = vec![0; 65_536];
        reader.read_exact(&mut first).expect("what fitted");
        assert!(sink.write_line(b"next\n"));
        let mut rest = vec![0; 70_000 - 65_536 + 5];
        reader.read_exact(&mut rest).expect("the rest and a line");
        let text = String::from_utf8([first, rest].concat()).expect("text");
        let lines: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lines, [69_999, 4]);
    }

    #[test]
    fn full_device_loses_the_line() {
        let mut sink = LineSink::open(Path::new("/dev/full")).expect("Linux has it");
        assert!(!sink.write_line(b"lost\n"));
    }
}
