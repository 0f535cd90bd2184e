//! Bytes in, requests out. Holds no socket and reads no clock, so that whatever the chunks are in which
//! the bytes come, the requests are the same.

use std::borrow::Cow;

use httparse::{EMPTY_HEADER, Header, Status as Parsed};

use super::{Method, Request};

/// The largest head of a request, in bytes: the request line, the headers and the empty line.
pub const MAX_HEAD: usize = 8 << 10;

/// The most headers of a request.
pub const MAX_HEADERS: usize = 64;

/// How much of a client's text a message repeats, in characters.
const QUOTED: usize = 64;

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// The client waits for `100 Continue` before it sends the body. Said once for a request.
    Continue,
    /// A whole request.
    Request(Message),
    /// No request begins here, and none will: the connection can only be closed.
    Refused(Refusal),
}

/// A whole request, and what it says of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The request.
    pub request: Request,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
}

/// Why bytes are not a request that is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not HTTP/1.1.
    #[error("this is not an HTTP/1.1 request: {0}")]
    Malformed(httparse::Error),
    /// A head without an end.
    #[error("the request line and the headers are longer than {MAX_HEAD} bytes")]
    LargeHead,
    /// A method that no endpoint has.
    #[error("the method {name} is not served: use GET, PUT, PATCH or DELETE")]
    Method {
        /// The method's name, shortened.
        name: String,
        /// Whether it is HEAD, whose answer has no body.
        head: bool,
    },
    /// Neither a path nor a URL.
    #[error("the request target {0:?} is neither a path that begins with / nor an http URL")]
    Target(String),
    /// A length that is not a number.
    #[error("the Content-Length {0:?} is not a number of bytes")]
    Length(String),
    /// A second length.
    #[error("Content-Length is given more than once")]
    Lengths,
    /// A body whose length is not told beforehand.
    #[error("a body with Transfer-Encoding is not served: send it with Content-Length")]
    TransferEncoding,
    /// A body over the limit.
    #[error(
        "the body of {length} bytes is larger than the limit of {limit} bytes, which \
         --http-api-max-payload-size sets"
    )]
    Payload {
        /// What the client announced.
        length: u64,
        /// What is served.
        limit: usize,
    },
}

/// Takes bytes as they come and gives requests as they are whole.
///
/// ```
/// use vmm::api::http::{Method, Parser, Step};
///
/// let mut parser = Parser::new(100);
/// parser.push(b"PUT /actions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{");
/// assert_eq!(parser.step(), Step::More);
/// parser.push(b"}");
/// let Step::Request(message) = parser.step() else { panic!() };
/// assert_eq!(message.request.method, Method::Put);
/// assert_eq!(message.request.path, "/actions");
/// assert_eq!(message.request.body, b"{}");
/// ```
#[derive(Debug)]
pub struct Parser {
    payload: usize,
    /// The names of headers to be kept, in lower case.
    keeps: &'static [&'static str],
    buffer: Vec<u8>,
    /// The head of the request at the front of the buffer, once it is whole.
    head: Option<Head>,
    refused: Option<Refusal>,
}

#[derive(Debug)]
struct Head {
    message: Message,
    /// Bytes of the head, and of the body that follows it.
    size: usize,
    body: usize,
    expects: bool,
}

impl Parser {
    /// For bodies of up to `payload` bytes.
    #[must_use]
    pub fn new(payload: usize) -> Self {
        Self::keeping(payload, &[])
    }

    /// The same, and requests keep the headers with these names, whatever the case in which they come.
    #[must_use]
    pub fn keeping(payload: usize, keeps: &'static [&'static str]) -> Self {
        Self {
            payload,
            keeps,
            buffer: Vec::new(),
            head: None,
            refused: None,
        }
    }

    /// Takes bytes. Memory stays bounded when [`step`](Self::step) has said [`Step::More`] before: then
    /// the buffer holds less than one request.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.refused.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Whether it holds bytes of a request that has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next request, or what is in its way. After [`Step::Refused`], always the same.
    pub fn step(&mut self) -> Step {
        if let Some(refusal) = &self.refused {
            return Step::Refused(refusal.clone());
        }
        if self.head.is_none() {
            match Head::parse(&self.buffer, self.payload, self.keeps) {
                Ok(Some(head)) => self.head = Some(head),
                Ok(None) => return Step::More,
                Err(refusal) => {
                    self.buffer = Vec::new();
                    self.refused = Some(refusal.clone());
                    return Step::Refused(refusal);
                }
            }
        }
        let Some(mut head) = self.head.take() else {
            return Step::More;
        };
        // No overflow: a head is at most MAX_HEAD, and a body was compared with the payload limit.
        let end = head.size.saturating_add(head.body);
        let Some(body) = self.buffer.get(head.size..end) else {
            let ask = head.expects && self.buffer.len() == head.size;
            head.expects &= !ask;
            self.head = Some(head);
            return if ask { Step::Continue } else { Step::More };
        };
        let mut message = head.message;
        message.request.body = body.to_vec();
        if end == self.buffer.len() {
            // An idle connection holds no memory.
            self.buffer = Vec::new();
        } else {
            self.buffer.drain(..end);
        }
        Step::Request(message)
    }
}

impl Head {
    /// The head at the front of `buffer`, if it is whole.
    fn parse(
        buffer: &[u8],
        payload: usize,
        keeps: &'static [&'static str],
    ) -> Result<Option<Self>, Refusal> {
        // Whatever the chunks, nothing beyond the largest head is looked at.
        let window = buffer.get(..MAX_HEAD).unwrap_or(buffer);
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let size = match request.parse(window).map_err(Refusal::Malformed)? {
            Parsed::Complete(size) => size,
            Parsed::Partial if window.len() == MAX_HEAD => return Err(Refusal::LargeHead),
            Parsed::Partial => return Ok(None),
        };
        let method = method(request.method.unwrap_or_default())?;
        let (path, query) = target(request.path.unwrap_or_default())?;
        let fields = Fields::read(request.headers, keeps)?;
        let is_1_1 = request.version == Some(1);
        let body = usize::try_from(fields.length)
            .ok()
            .filter(|length| *length <= payload)
            .ok_or(Refusal::Payload {
                length: fields.length,
                limit: payload,
            })?;
        let request = Request {
            method,
            path,
            query,
            accept: fields.accept,
            kept: fields.kept,
            body: Vec::new(),
        };
        Ok(Some(Self {
            message: Message {
                request,
                // Of HTTP/1.0 as well, as Firecracker does: firecracker-rs-sdk says 1.0 and nothing else,
                // and sends its next request on the same connection.
                keep_alive: !fields.close,
            },
            size,
            body,
            // RFC 9110, section 10.1.1: not from an HTTP/1.0 client.
            expects: fields.expects && is_1_1 && body > 0,
        }))
    }
}

/// What the headers say that matters here.
#[derive(Default)]
struct Fields {
    length: u64,
    accept: Option<String>,
    kept: Vec<(&'static str, String)>,
    close: bool,
    expects: bool,
}

impl Fields {
    fn read(headers: &[Header<'_>], keeps: &'static [&'static str]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        let mut length = None;
        for Header { name, value } in headers {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if let Some(kept) = keeps.iter().find(|kept| is(kept)) {
                let value = String::from_utf8_lossy(value).into_owned();
                fields.kept.push((kept, value));
            }
            if is("content-length") {
                if length.replace(number(value)?).is_some() {
                    return Err(Refusal::Lengths);
                }
            } else if is("transfer-encoding") {
                return Err(Refusal::TransferEncoding);
            } else if is("accept") {
                // Several are one list (RFC 9110, section 5.3), of which the first is enough.
                if let (None, Ok(text)) = (&fields.accept, str::from_utf8(value)) {
                    fields.accept = Some(text.to_owned());
                }
            } else if is("connection") {
                fields.close |= value
                    .split(|byte| *byte == b',')
                    .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
            } else if is("expect") {
                fields.expects |= value.eq_ignore_ascii_case(b"100-continue");
            }
        }
        fields.length = length.unwrap_or(0);
        Ok(fields)
    }
}

/// Digits only: no sign, no list (RFC 9110, section 8.6).
fn number(value: &[u8]) -> Result<u64, Refusal> {
    let text = str::from_utf8(value).ok();
    text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Refusal::Length(shortened(&String::from_utf8_lossy(value))))
}

fn method(name: &str) -> Result<Method, Refusal> {
    match name {
        "GET" => Ok(Method::Get),
        "PUT" => Ok(Method::Put),
        "PATCH" => Ok(Method::Patch),
        "DELETE" => Ok(Method::Delete),
        _ => Err(Refusal::Method {
            name: shortened(name),
            head: name == "HEAD",
        }),
    }
}

/// The path and the query of a request target (RFC 9112, section 3.2: origin-form or absolute-form).
fn target(target: &str) -> Result<(String, Option<String>), Refusal> {
    let origin = if target.starts_with('/') {
        Some(Cow::Borrowed(target))
    } else {
        absolute(target)
    };
    let origin = origin.ok_or_else(|| Refusal::Target(shortened(target)))?;
    Ok(match origin.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (origin.into_owned(), None),
    })
}

/// What follows the authority of an `http` URL. Its path may be empty, which means `/`.
fn absolute(target: &str) -> Option<Cow<'_, str>> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    match rest.find(['/', '?']) {
        Some(at) => {
            let (_authority, path) = rest.split_at(at);
            Some(if path.starts_with('/') {
                Cow::Borrowed(path)
            } else {
                Cow::Owned(format!("/{path}"))
            })
        }
        None => Some(Cow::Borrowed("/")),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}

#[cfg(test)]
mod tests;
