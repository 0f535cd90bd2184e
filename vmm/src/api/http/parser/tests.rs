use super::*;

/// What comes out of `bytes` when they are pushed in `chunks` parts of their own.
fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, payload: usize) -> Vec<Step> {
    let mut parser = Parser::new(payload);
    let mut steps = Vec::new();
    for chunk in chunks {
        parser.push(chunk);
        loop {
            match parser.step() {
                Step::More => break,
                Step::Continue => {}
                Step::Refused(refusal) => {
                    steps.push(Step::Refused(refusal));
                    return steps;
                }
                request => steps.push(request),
            }
        }
    }
    steps
}

fn one(text: &str) -> Step {
    parse([text.as_bytes()], 100).pop().unwrap_or(Step::More)
}

fn request(text: &str) -> Message {
    match one(text) {
        Step::Request(message) => message,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn refusal(text: &str) -> Refusal {
    match one(text) {
        Step::Refused(refusal) => refusal,
        other => panic!("{text:?}: {other:?}"),
    }
}

const PIPELINE: &[u8] = b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n{\"a\":1}\
GET /vm/config?x=%41 HTTP/1.1\r\nAccept: text/plain\r\n\r\n\
\r\nPATCH http://localhost/vm HTTP/1.1\r\nExpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}\
DELETE /drives/root HTTP/1.0\r\n\r\n\
POST / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";

#[test]
fn requests_are_the_same_at_every_split() {
    let whole = parse([PIPELINE], 100);
    assert_eq!(whole.len(), 5, "{whole:?}");
    for at in 0..=PIPELINE.len() {
        let (a, b) = PIPELINE.split_at(at);
        assert_eq!(parse([a, b], 100), whole, "split at {at}");
    }
    for size in 1..20 {
        assert_eq!(parse(PIPELINE.chunks(size), 100), whole, "chunks of {size}");
    }
}

#[test]
fn request_holds_what_was_sent() {
    let steps = parse([PIPELINE], 100);
    let seen: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Request(Message {
                request,
                keep_alive,
            }) => Some((
                request.method,
                &*request.path,
                request.query.as_deref(),
                request.accept.as_deref(),
                &*request.body,
                *keep_alive,
            )),
            _ => None,
        })
        .collect();
    let expected: [(_, &str, _, _, &[u8], _); 4] = [
        (Method::Put, "/actions", None, None, b"{\"a\":1}", true),
        (
            Method::Get,
            "/vm/config",
            Some("x=%41"),
            Some("text/plain"),
            b"",
            true,
        ),
        (Method::Patch, "/vm", None, None, b"{}", true),
        (Method::Delete, "/drives/root", None, None, b"", true),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn target_is_a_path_or_a_url() {
    for (target, path, query) in [
        ("/", "/", None),
        ("/a?b?c", "/a", Some("b?c")),
        ("/a?", "/a", Some("")),
        ("/%2e%2E/..", "/%2e%2E/..", None),
        ("http://x", "/", None),
        ("http://x?q", "/", Some("q")),
        ("HTTP://x:1/a/b?c", "/a/b", Some("c")),
        ("//x/a", "//x/a", None),
    ] {
        let request = request(&format!("GET {target} HTTP/1.1\r\n\r\n")).request;
        assert_eq!(
            (&*request.path, request.query.as_deref()),
            (path, query),
            "{target}"
        );
    }
    for target in ["*", "a", "https://x/", "localhost:80"] {
        let refusal = refusal(&format!("GET {target} HTTP/1.1\r\n\r\n"));
        assert_eq!(refusal, Refusal::Target(target.to_owned()));
    }
}

#[test]
fn connection_stays_open_as_the_client_asks() {
    // (version, header, kept)
    for (version, header, kept) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Keep-Alive , CLOSE\r\n", false),
        ("1.1", "Connection: upgrade\r\n", true),
        ("1.0", "", true),
        ("1.0", "Connection: close\r\n", false),
    ] {
        let text = format!("GET / HTTP/{version}\r\n{header}\r\n");
        assert_eq!(request(&text).keep_alive, kept, "{text:?}");
    }
}

#[test]
fn refusals_name_their_cause() {
    let with = |header: &str| refusal(&format!("PUT / HTTP/1.1\r\n{header}\r\n\r\n"));
    for (header, expected) in [
        ("Content-Length: -1", Refusal::Length("-1".to_owned())),
        ("Content-Length: +1", Refusal::Length("+1".to_owned())),
        ("Content-Length: 1, 1", Refusal::Length("1, 1".to_owned())),
        ("Content-Length: 0x1", Refusal::Length("0x1".to_owned())),
        ("Content-Length:", Refusal::Length(String::new())),
        // 2^64 does not fit
        (
            "Content-Length: 18446744073709551616",
            Refusal::Length("18446744073709551616".to_owned()),
        ),
        ("Content-Length: 1\r\ncontent-length: 1", Refusal::Lengths),
        ("Transfer-Encoding: chunked", Refusal::TransferEncoding),
        (
            "Content-Length: 1\r\nTransfer-Encoding: identity",
            Refusal::TransferEncoding,
        ),
        (
            "Name : value",
            Refusal::Malformed(httparse::Error::HeaderName),
        ),
        (
            "A: b\r\n folded",
            Refusal::Malformed(httparse::Error::HeaderName),
        ),
        (
            "Content-Length: 101",
            Refusal::Payload {
                length: 101,
                limit: 100,
            },
        ),
    ] {
        assert_eq!(with(header), expected, "{header}");
    }
    for (line, expected) in [
        (
            "GET / HTTP/2.0",
            Refusal::Malformed(httparse::Error::Version),
        ),
        (
            "GET  / HTTP/1.1",
            Refusal::Malformed(httparse::Error::Token),
        ),
        (
            "HEAD / HTTP/1.1",
            Refusal::Method {
                name: "HEAD".to_owned(),
                head: true,
            },
        ),
        (
            "get / HTTP/1.1",
            Refusal::Method {
                name: "get".to_owned(),
                head: false,
            },
        ),
    ] {
        assert_eq!(refusal(&format!("{line}\r\n\r\n")), expected, "{line}");
    }
}

#[test]
fn refusal_repeats_little_of_what_was_sent() {
    let long = "G".repeat(5000);
    let Refusal::Method { name, .. } = refusal(&format!("{long} / HTTP/1.1\r\n\r\n")) else {
        panic!("another refusal");
    };
    assert_eq!(name.len(), QUOTED);
}

#[test]
fn body_of_the_limit_is_served() {
    let text = format!("PUT / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{:100}", "");
    assert_eq!(request(&text).request.body, [b' '; 100]);
}

#[test]
fn head_of_the_limit_is_served_and_one_more_byte_is_not() {
    // The line, "A: ", the value, and twice CR LF.
    let fixed = "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
    let head = |size: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(size - fixed));
    assert_eq!(request(&head(MAX_HEAD)).request.method, Method::Get);
    assert_eq!(refusal(&head(MAX_HEAD + 1)), Refusal::LargeHead);
    // without an end, and in small parts
    let endless = vec![b'x'; MAX_HEAD + 1];
    for size in [1, 7, MAX_HEAD + 1] {
        let steps = parse(endless.chunks(size), 100);
        assert_eq!(steps, [Step::Refused(Refusal::LargeHead)], "{size}");
    }
}

#[test]
fn headers_of_the_limit_are_served_and_one_more_is_not() {
    let text = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert_eq!(request(&text(MAX_HEADERS)).request.method, Method::Get);
    assert_eq!(
        refusal(&text(MAX_HEADERS + 1)),
        Refusal::Malformed(httparse::Error::TooManyHeaders)
    );
}

#[test]
fn continue_is_said_once_and_only_before_the_body() {
    let head = b"PUT / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    let mut parser = Parser::new(100);
    parser.push(head);
    assert_eq!(parser.step(), Step::Continue);
    assert_eq!(parser.step(), Step::More);
    parser.push(b"{}");
    assert!(matches!(parser.step(), Step::Request(_)));

    // The body is on its way already.
    parser.push(head);
    parser.push(b"{");
    assert_eq!(parser.step(), Step::More);

    for text in [
        "PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        "PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n",
    ] {
        let mut parser = Parser::new(100);
        parser.push(text.as_bytes());
        assert_eq!(parser.step(), Step::More, "{text:?}");
    }
}

#[test]
fn parser_holds_no_memory_between_requests() {
    let mut parser = Parser::new(1 << 20);
    parser.push(b"PUT / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n");
    parser.push(&[b' '; 100_000]);
    assert!(parser.has_begun());
    assert!(matches!(parser.step(), Step::Request(_)));
    assert!(!parser.has_begun());
    assert_eq!(parser.buffer.capacity(), 0);
}

#[test]
fn parser_that_refused_takes_no_more_bytes() {
    let mut parser = Parser::new(100);
    parser.push(b"\0");
    let first = parser.step();
    assert!(matches!(first, Step::Refused(_)));
    parser.push(&[b' '; 1000]);
    assert_eq!(parser.buffer.capacity(), 0);
    assert_eq!(parser.step(), first);
}

#[test]
fn large_announced_body_allocates_nothing_beforehand() {
    let mut parser = Parser::new(usize::MAX);
    parser.push(b"PUT / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n");
    assert_eq!(parser.step(), Step::More);
    assert!(parser.buffer.capacity() < 1000);
}
