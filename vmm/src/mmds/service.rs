//! What requests of a guest are answered with: the rules of Firecracker's MMDS (docs/mmds/mmds-user-guide.md there),
//! which are those of EC2's service for instances.

use std::borrow::Cow;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tsc::Nanos;

use super::counters::MmdsCounters;
use super::store::Metadata;
use super::token::{TTL, Tokens};
use super::{DEFAULT_ADDRESS, MAX_BODY};
use crate::api::body::{MmdsConfig, MmdsVersion};
use crate::api::http::{JSON, Method, Refusal, Request};

/// Where tokens are given out.
const TOKEN_PATH: &str = "/latest/api/token";

const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const TOKEN_TTL: [&str; 2] = [
    "x-metadata-token-ttl-seconds",
    "x-aws-ec2-metadata-token-ttl-seconds",
];
/// Says that somebody else asks through the guest, which is then not to get a token for them.
const FORWARDED: &str = "x-forwarded-for";

/// The headers that requests are to keep.
pub(super) const KEPT: &[&str] = &[TOKEN[0], TOKEN[1], TOKEN_TTL[0], TOKEN_TTL[1], FORWARDED];

const TEXT: &str = "text/plain";

/// What the service needs of its host.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// A clock that goes on while the host sleeps.
    pub clock: fn() -> Nanos,
    /// Fills with bytes that nobody can guess.
    pub random: fn(&mut [u8]) -> io::Result<()>,
}

/// The service of one microVM, for all of its cards.
#[derive(Debug)]
pub struct Service {
    metadata: Arc<Metadata>,
    tokens: Mutex<Tokens>,
    version: MmdsVersion,
    /// All answers are in the form of EC2's service.
    imds_compat: bool,
    pub(super) address: Ipv4Addr,
    pub(super) host: Host,
    pub(super) counters: Arc<MmdsCounters>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    status: &'static str,
    content_type: &'static str,
    /// One more header.
    header: Option<(&'static str, Cow<'static, str>)>,
    body: Vec<u8>,
}

impl Reply {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: TEXT,
            header: None,
            body: body.into().into_bytes(),
        }
    }

    fn bad_request(why: impl Into<String>) -> Self {
        Self::text("400 Bad Request", why)
    }

    fn not_found(path: &str) -> Self {
        Self::text("404 Not Found", format!("Nothing is at {path}."))
    }

    fn method_not_allowed() -> Self {
        Self {
            header: Some(("Allow", "GET, PUT".into())),
            ..Self::text("405 Method Not Allowed", "Use GET or PUT.")
        }
    }

    /// The bytes to send; without the body where only its length was asked for.
    pub(super) fn encode(&self, keep_alive: bool, with_body: bool) -> Vec<u8> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let Self {
            status,
            content_type,
            header,
            body,
        } = self;
        let mut head = format!(
            "HTTP/1.1 {status}\r\nServer: Keeptime MMDS\r\nConnection: {connection}\r\n\
             Content-Type: {content_type}\r\nContent-Length: {}\r\n",
            body.len()
        );
        if let Some((name, value)) = header {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if with_body {
            bytes.extend_from_slice(body);
        }
        bytes
    }
}

/// What became of a header that is to be there once.
enum Given<'a> {
    Not,
    Once(&'static str, &'a str),
    /// Which one counts, two readers could see differently.
    Again,
}

fn given<'a>(request: &'a Request, names: &[&str]) -> Given<'a> {
    let mut found = (request.kept.iter()).filter(|(name, _)| names.contains(name));
    match (found.next(), found.next()) {
        (None, _) => Given::Not,
        (Some((name, value)), None) => Given::Once(name, value),
        (Some(_), Some(_)) => Given::Again,
    }
}

impl Service {
    /// A service of `metadata`, as `config` wants it.
    #[must_use]
    pub fn new(metadata: Arc<Metadata>, config: &MmdsConfig, host: Host) -> Self {
        Self {
            metadata,
            tokens: Mutex::default(),
            version: config.version,
            imds_compat: config.imds_compat,
            address: config.ipv4_address.unwrap_or(DEFAULT_ADDRESS),
            host,
            counters: Arc::default(),
        }
    }

    /// What it counts.
    pub(crate) fn counters(&self) -> Arc<MmdsCounters> {
        self.counters.clone()
    }

    /// The answer to a request.
    pub(super) fn answer(&self, request: &Request) -> Reply {
        match request.method {
            Method::Get => self.get(request),
            Method::Put => self.put(request),
            Method::Patch | Method::Delete => Reply::method_not_allowed(),
        }
    }

    /// The answer to what is no request that is served, and whether it has a body.
    pub(super) fn refuse(refusal: &Refusal) -> (Reply, bool) {
        match refusal {
            Refusal::Method { head, .. } => (Reply::method_not_allowed(), !head),
            // Its message is for whoever sets the API's limit.
            Refusal::Payload { .. } => {
                let why = format!("The body is larger than {MAX_BODY} bytes.");
                (Reply::bad_request(why), true)
            }
            _ => (Reply::bad_request(refusal.to_string()), true),
        }
    }

    /// Whether a request has a valid token, or what it is answered with in version 2.
    fn check_token(&self, request: &Request) -> Result<(), Reply> {
        let unauthorized = |why: &str| Reply::text("401 Unauthorized", why);
        let token = match given(request, &TOKEN) {
            Given::Not => {
                self.counters.no_token.add(1);
                return Err(unauthorized(
                    "There is no token: send the header X-metadata-token or X-aws-ec2-metadata-token.",
                ));
            }
            Given::Once(_, token) => Some(token),
            Given::Again => None,
        };
        let now = (self.host.clock)();
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if token.is_some_and(|token| tokens.are_with(token, now)) {
            return Ok(());
        }
        self.counters.invalid_token.add(1);
        Err(unauthorized("The token is not valid, or no longer."))
    }

    fn get(&self, request: &Request) -> Reply {
        match (self.check_token(request), self.version) {
            (Err(refused), MmdsVersion::V2) => return refused,
            // In version 1 it is counted, and obeyed all the same.
            (Ok(()), _) | (Err(_), MmdsVersion::V1) => {}
        }
        let metadata = self.metadata.get();
        let value = metadata
            .as_ref()
            .and_then(|all| all.pointer(&pointer(&request.path)));
        let Some(value) = value else {
            return Reply::not_found(&request.path);
        };
        if !self.imds_compat && wants_json(request.accept.as_deref()) {
            return Reply {
                status: "200 OK",
                content_type: JSON,
                header: None,
                body: value.to_string().into_bytes(),
            };
        }
        match imds(value) {
            Some(text) => Reply::text("200 OK", text),
            None => Reply::text(
                "501 Not Implemented",
                "The value is neither a string nor an object: send the header Accept: application/json.",
            ),
        }
    }

    fn put(&self, request: &Request) -> Reply {
        if !matches!(given(request, &[FORWARDED]), Given::Not) {
            return Reply::bad_request("A request with the header X-Forwarded-For gets no token.");
        }
        if pointer(&request.path) != TOKEN_PATH {
            return Reply::not_found(&request.path);
        }
        let (header, text) = match given(request, &TOKEN_TTL) {
            Given::Once(header, text) => (header, text),
            Given::Not => {
                return Reply::bad_request(
                    "The token has no lifetime: send the header X-metadata-token-ttl-seconds or \
                     X-aws-ec2-metadata-token-ttl-seconds.",
                );
            }
            Given::Again => {
                return Reply::bad_request("The token's lifetime is given more than once.");
            }
        };
        let seconds = Some(text).filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()));
        let seconds = seconds.and_then(|text| text.parse().ok());
        let Some(seconds) = seconds.filter(|seconds| TTL.contains(seconds)) else {
            return Reply::bad_request(format!(
                "The token's lifetime is not a number of seconds from {} to {}.",
                TTL.start(),
                TTL.end()
            ));
        };
        let now = (self.host.clock)();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        match tokens.make(now, seconds, self.host.random) {
            Ok(token) => Reply {
                header: Some((header, seconds.to_string().into())),
                ..Reply::text("200 OK", token)
            },
            Err(_) => Reply::text(
                "503 Service Unavailable",
                "The host has no random bytes: try again later.",
            ),
        }
    }
}

/// The JSON pointer (RFC 6901) that a path is: of slashes that follow each other one counts, and none at the end.
fn pointer(path: &str) -> String {
    let mut pointer = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        pointer.push('/');
        pointer.push_str(part);
    }
    pointer
}

/// Whether JSON is wanted: the first type of the list that is one of those that there are decides.
fn wants_json(accept: Option<&str>) -> bool {
    let types = accept.unwrap_or_default().split(',');
    let mut types = types.map(|range| range.split(';').next().unwrap_or_default().trim());
    types.find_map(|range| match range.to_ascii_lowercase().as_str() {
        JSON | "application/*" => Some(true),
        TEXT | "text/*" | "*/*" => Some(false),
        _ => None,
    }) == Some(true)
}

/// The form of EC2's service: a string as it is, an object as a list of its names, with a slash after those that
/// lead on. There is none for other values.
fn imds(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(members) => {
            let names = members.iter().map(|(name, value)| {
                let slash = if value.is_object() { "/" } else { "" };
                format!("{name}{slash}")
            });
            Some(names.collect::<Vec<_>>().join("\n"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
