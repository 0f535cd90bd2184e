//! Reports on standard output.

use std::io::{self, ErrorKind, Write};

/// Standard output did not take a report.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct OutputError(#[source] io::Error);

/// Prints a line on standard error. Whoever does not read it still has the status.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints a whole report. A reader that has seen enough and closed its pipe is no error.
pub(crate) fn print(report: &str) -> Result<(), OutputError> {
    let mut output = io::stdout().lock();
    match output
        .write_all(report.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(OutputError),
    }
}
