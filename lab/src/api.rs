//! A client of Firecracker's API, as small as can be.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A connection that is kept.
#[derive(Debug)]
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    /// A client of the API at the other end of `stream`.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// Sends a request, and reads the answer, which must be 200 or 204.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<()> {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .context("the request is not taken")?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.0.read_line(&mut head).context("no answer")?;
            ensure!(read > 0, "the answer to {method} {path} ends early");
        }
        let lower = head.to_lowercase();
        let length = lower
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(Ok(0), |value| value.trim().parse())
            .context("no number in Content-Length")?;
        let mut text = Vec::new();
        let answer = self.0.by_ref().take(length).read_to_end(&mut text);
        answer.context("the answer ends early")?;
        ensure!(
            head.starts_with("HTTP/1.1 20"),
            "{method} {path}: {} {}",
            head.lines().next().unwrap_or_default(),
            String::from_utf8_lossy(&text)
        );
        Ok(())
    }
}
