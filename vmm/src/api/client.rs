//! A client of the API, for people: one request over one connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::http::Method;

/// The largest answer that is read.
const MAX_ANSWER: u64 = 16 << 20;
/// How long an answer may take. A pause waits for every vCPU, and a start for the kernel.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most headers of an answer.
const MAX_HEADERS: usize = 64;

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// There is no such socket.
    #[error("there is no API socket {0:?}: is the microVM running, and is this its --api-sock?")]
    NoSocket(PathBuf),
    /// Nobody listens at the socket.
    #[error("nobody listens at the API socket {0:?}: its process has ended without removing it")]
    Refused(PathBuf),
    /// Anything else.
    #[error("cannot talk to the API socket {path:?}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What came back is no answer.
    #[error("the API socket {0:?} gave no HTTP answer")]
    NoAnswer(PathBuf),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

/// Asks the API at `socket`.
///
/// # Errors
/// Why there is no answer.
pub(crate) fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: &[u8],
) -> Result<Answer, ClientError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ClientError::NoSocket(socket.to_owned()),
        io::ErrorKind::ConnectionRefused => ClientError::Refused(socket.to_owned()),
        _ => ClientError::Io {
            path: socket.to_owned(),
            source,
        },
    };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let head = format!(
        "{} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/json\r\n\r\n",
        method.name(),
        body.len()
    );
    let request = [head.as_bytes(), body].concat();
    // A server that refuses early answers and stops reading: what it says is worth more than the
    // failed write.
    let written = stream.write_all(&request);
    let mut bytes = Vec::new();
    let answered = stream.take(MAX_ANSWER).read_to_end(&mut bytes);
    match parse(&bytes) {
        Some(answer) => Ok(answer),
        None => {
            written.map_err(failed)?;
            answered.map_err(failed)?;
            Err(ClientError::NoAnswer(socket.to_owned()))
        }
    }
}

/// Reads an answer whose connection was closed after it.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).ok()? else {
        return None;
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .map_or(Some(0), |header| {
            std::str::from_utf8(header.value).ok()?.trim().parse().ok()
        })?;
    let end = head.checked_add(length)?;
    Some(Answer {
        status: response.code?,
        body: bytes.get(head..end)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_whole_answers_only() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        let answer = Answer {
            status: 200,
            body: b"{}".to_vec(),
        };
        assert_eq!(parse(text.as_bytes()), Some(answer));
        assert_eq!(parse(&text.as_bytes()[..text.len() - 1]), None);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse(b"hello\n"), None);
        let huge = "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n";
        assert_eq!(parse(huge.as_bytes()), None);
        let empty = parse(b"HTTP/1.1 204 No Content\r\n\r\n").expect("whole");
        assert_eq!((empty.status, empty.body), (204, Vec::new()));
    }

    #[test]
    fn missing_and_dead_sockets_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let error = ask(&path, Method::Get, "/", b"").expect_err("none");
        assert!(matches!(error, ClientError::NoSocket(_)));
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let error = ask(&path, Method::Get, "/", b"").expect_err("dead");
        assert!(matches!(error, ClientError::Refused(_)));
    }
}
