//! The API's transport: HTTP/1.1 over a Unix socket, one request at a time.
//!
//! It knows bytes, requests and answers, and nothing of what they mean: [`Server::run`] calls a handler
//! for each whole request, on the thread that runs it, and sends what the handler returns.
//!
//! # What is served
//!
//! - Methods GET, PUT, PATCH and DELETE; any other is refused here.
//! - Keep-alive, and pipelined requests, answered in order. `Connection: close` is obeyed; without it a
//!   connection is kept, whatever the version, since clients that say HTTP/1.0 count on it.
//! - Bodies with `Content-Length`. A body with `Transfer-Encoding` is refused: a request whose end two
//!   readers could see at two places is what request smuggling is made of, and clients that know their
//!   bodies do not send it. `Expect: 100-continue` is answered.
//! - The target as a path or as an absolute `http` URL, whose authority means nothing on a Unix socket.
//!   A path is taken as it is sent, undecoded: no endpoint and no identifier needs an escape.
//!
//! Whatever cannot be read as such a request is answered with status 400 and a `fault_message`, and the
//! connection is closed, since it is not known where the next request would begin.
//!
//! # What a client can cost
//!
//! Every client is taken as hostile, and what it can hold is bounded:
//!
//! | resource | bound |
//! | --- | --- |
//! | connections | [`Limits::connections`]; when all are taken, the one that has gone longest without an answer makes room for the next, but not before [`Limits::grace`] |
//! | memory of a connection | a head of [`MAX_HEAD`], a body of [`Limits::payload`], one chunk of reading, one answer; nothing while it is idle |
//! | time of a request | [`Limits::patience`], from its first byte to its last, and as long again to take the answer |
//! | a client that does not read | nothing more is read from it until it has taken its answer |
//! | a client that pipelines | one request of each connection is answered in turn |
//! | descriptors sent along | never received: the kernel closes them |
//!
//! An idle connection is not timed out: a client may keep one for as long as nobody else needs it.
//!
//! The socket's mode is what the process's umask leaves of 0777: with the usual 022, only the user who
//! started the launcher, and root, can connect. Its folder's mode bounds it further.

mod connection;
mod parser;
mod server;

use std::time::Duration;

pub use parser::{MAX_HEAD, MAX_HEADERS, Message, Parser, Refusal, Step};
pub use server::{BindError, Counts, ServeError, Server};

/// A method that endpoints are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Create or replace.
    Put,
    /// Change a part.
    Patch,
    /// Remove.
    Delete,
}

impl Method {
    /// As it stands in a request.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// A whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// The path of the target as it was sent, from its first `/`, without the query.
    pub path: String,
    /// What follows the target's first `?`.
    pub query: Option<String>,
    /// The `Accept` header, when it is text. Not longer than [`MAX_HEAD`].
    pub accept: Option<String>,
    /// The headers that the parser was told to keep ([`Parser::keeping`]), with their values, in the order in which
    /// they came. What is no text in a value is replaced.
    pub kept: Vec<(&'static str, String)>,
    /// The body; empty when there is none.
    pub body: Vec<u8>,
}

/// The statuses that the API answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200, with a body.
    Ok,
    /// 204, without a body.
    NoContent,
    /// 400, with a `fault_message`.
    BadRequest,
    /// 413, with a `fault_message`.
    PayloadTooLarge,
}

impl Status {
    /// The status line's code and reason (RFC 9110, section 15).
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::NoContent => "204 No Content",
            Self::BadRequest => "400 Bad Request",
            Self::PayloadTooLarge => "413 Payload Too Large",
        }
    }
}

/// The type of JSON bodies.
pub const JSON: &str = "application/json";

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// How it went.
    pub status: Status,
    /// The body's type; not sent without a body.
    pub content_type: &'static str,
    /// The body; not sent with [`Status::NoContent`].
    pub body: Vec<u8>,
}

impl Response {
    /// 204: done, and there is nothing to say.
    #[must_use]
    pub fn no_content() -> Self {
        Self {
            status: Status::NoContent,
            content_type: JSON,
            body: Vec::new(),
        }
    }

    /// 200 with a JSON text.
    #[must_use]
    pub fn json(body: Vec<u8>) -> Self {
        Self {
            status: Status::Ok,
            content_type: JSON,
            body,
        }
    }

    /// 400 with `message` as the `fault_message` that clients show.
    #[must_use]
    pub fn fault(message: &str) -> Self {
        Self {
            status: Status::BadRequest,
            content_type: JSON,
            body: serde_json::json!({ "fault_message": message })
                .to_string()
                .into_bytes(),
        }
    }

    /// The same with 413: there is no room for the body.
    #[must_use]
    pub fn too_large(message: &str) -> Self {
        Self {
            status: Status::PayloadTooLarge,
            ..Self::fault(message)
        }
    }

    /// Whether the request was refused.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        matches!(self.status, Status::BadRequest | Status::PayloadTooLarge)
    }

    /// Appends the bytes to send.
    fn encode(&self, closing: bool, with_body: bool, output: &mut Vec<u8>) {
        let connection = if closing { "close" } else { "keep-alive" };
        let line = self.status.line();
        output.extend_from_slice(
            format!("HTTP/1.1 {line}\r\nServer: Keeptime API\r\nConnection: {connection}\r\n")
                .as_bytes(),
        );
        // RFC 9110, section 8.6: no Content-Length with 204.
        if self.status != Status::NoContent {
            let Self {
                content_type, body, ..
            } = self;
            let length = body.len();
            output.extend_from_slice(
                format!("Content-Type: {content_type}\r\nContent-Length: {length}\r\n").as_bytes(),
            );
        }
        output.extend_from_slice(b"\r\n");
        if self.status != Status::NoContent && with_body {
            output.extend_from_slice(&self.body);
        }
    }
}

/// The bounds of what clients can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body (`--http-api-max-payload-size`).
    pub payload: usize,
    /// Connections at a time; at least one is served.
    pub connections: usize,
    /// How long a connection is safe from making room for another, counted from when it was accepted
    /// or last answered.
    pub grace: Duration,
    /// How long a request may take to arrive, and its answer to be taken.
    pub patience: Duration,
}

impl Default for Limits {
    /// Firecracker's payload limit; six times its connections; time for any client that means it.
    fn default() -> Self {
        Self {
            payload: 51_200,
            connections: 64,
            grace: Duration::from_millis(10),
            patience: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(response: &Response, closing: bool) -> String {
        let mut output = Vec::new();
        response.encode(closing, true, &mut output);
        String::from_utf8(output).expect("text")
    }

    #[test]
    fn response_without_content_has_neither_type_nor_length() {
        assert_eq!(
            encoded(&Response::no_content(), false),
            "HTTP/1.1 204 No Content\r\nServer: Keeptime API\r\nConnection: keep-alive\r\n\r\n"
        );
    }

    #[test]
    fn response_fault_escapes_its_message() {
        let text = encoded(&Response::fault("a \"b\"\n"), true);
        assert!(text.contains("Connection: close\r\n"), "{text}");
        // {"fault_message": is 17 bytes, the text 9 with its escapes, its quotes 2, } 1
        assert!(
            text.ends_with("Content-Length: 29\r\n\r\n{\"fault_message\":\"a \\\"b\\\"\\n\"}"),
            "{text}"
        );
    }
}
