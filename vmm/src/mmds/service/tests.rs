use serde_json::json;

use super::*;
use crate::api::http::{Parser, Step};
use crate::mmds::tests::{HOST, clock, config, set_clock};

const SECOND: u64 = 1_000_000_000;

fn service(version: MmdsVersion, imds_compat: bool) -> Service {
    let metadata = Metadata::new(10_000);
    metadata
        .put(json!({
            "latest": {
                "meta-data": {"ami-id": "ami-1", "tags": {}, "cores": 4, "list": ["a", {"b": "c"}]},
                "a/b": "slash",
            },
            "name": "John",
        }))
        .expect("room");
    let config = MmdsConfig {
        version,
        imds_compat,
        ..config()
    };
    Service::new(Arc::new(metadata), &config, HOST)
}

/// What a request's text is answered with: the status line's number, the headers, the body.
fn ask(service: &Service, text: &str) -> (u16, String, String) {
    let mut parser = Parser::keeping(MAX_BODY, KEPT);
    parser.push(text.as_bytes());
    let bytes = match parser.step() {
        Step::Request(message) => service.answer(&message.request).encode(true, true),
        Step::Refused(refusal) => {
            let (reply, with_body) = Service::refuse(&refusal);
            reply.encode(false, with_body)
        }
        step => panic!("{text}: {step:?}"),
    };
    let answer = String::from_utf8(bytes).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head["HTTP/1.1 ".len()..][..3].parse().expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn get(service: &Service, path: &str, headers: &str) -> (u16, String, String) {
    ask(service, &format!("GET {path} HTTP/1.1\r\n{headers}\r\n"))
}

#[test]
fn value_is_told_as_text_or_as_json() {
    let service = service(MmdsVersion::V1, false);
    let json = "Accept: application/json\r\n";
    for (path, headers, status, body) in [
        ("/name", "", 200, "John"),
        ("/name", "Accept: */*\r\n", 200, "John"),
        (
            "/name",
            "Accept: text/plain, application/json\r\n",
            200,
            "John",
        ),
        ("/name", json, 200, "\"John\""),
        (
            "/name",
            "Accept: image/png, application/json;q=0.5\r\n",
            200,
            "\"John\"",
        ),
        ("/", "", 200, "latest/\nname"),
        ("/latest/", "", 200, "a/b\nmeta-data/"),
        (
            "//latest///meta-data",
            "",
            200,
            "ami-id\ncores\nlist\ntags/",
        ),
        ("/latest/meta-data/tags", "", 200, ""),
        ("/latest/meta-data/tags", json, 200, "{}"),
        ("/latest/meta-data/cores", json, 200, "4"),
        ("/latest/meta-data/list/1/b", "", 200, "c"),
        ("/latest/a~1b", "", 200, "slash"),
        ("http://169.254.169.254/name?a=b", "", 200, "John"),
    ] {
        let (found, head, text) = get(&service, path, headers);
        assert_eq!((found, &*text), (status, body), "{path} {headers}");
        let kind = if text.starts_with(['"', '{', '4']) {
            JSON
        } else {
            TEXT
        };
        assert!(head.contains(&format!("content-type: {kind}")), "{head}");
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{head}"
        );
    }
    for (path, status) in [
        ("/latest/meta-data/cores", 501),
        ("/latest/meta-data/list", 501),
        ("/latest/a/b", 404),
        ("/nothing", 404),
        ("/latest/meta-data/list/2", 404),
        ("/name/more", 404),
    ] {
        assert_eq!(get(&service, path, "").0, status, "{path}");
    }
}

#[test]
fn compatible_service_tells_everything_as_text() {
    let service = service(MmdsVersion::V1, true);
    let json = "Accept: application/json\r\n";
    assert_eq!(get(&service, "/name", json).2, "John");
    assert_eq!(get(&service, "/latest/meta-data/cores", json).0, 501);
}

#[test]
fn nothing_is_there_before_metadata_are_put() {
    let metadata = Arc::new(Metadata::new(100));
    let service = Service::new(metadata.clone(), &config(), HOST);
    assert_eq!(get(&service, "/", "").0, 404);
    metadata.put(json!({})).expect("room");
    assert_eq!(get(&service, "/", "").0, 200);
}

/// Asks for a token with these headers.
fn token(service: &Service, headers: &str) -> (u16, String, String) {
    ask(
        service,
        &format!("PUT /latest/api/token HTTP/1.1\r\n{headers}\r\n"),
    )
}

#[test]
fn session_has_a_token_until_its_time_is_over() {
    set_clock(5 * SECOND);
    let (second, first) = (
        service(MmdsVersion::V2, false),
        service(MmdsVersion::V1, false),
    );
    for prefix in ["X-metadata-token", "X-aws-ec2-metadata-token"] {
        let lifetime = format!("{prefix}-ttl-seconds: 60\r\n");
        let (status, head, text) = token(&second, &lifetime);
        assert_eq!(status, 200, "{text}");
        assert!(
            head.contains(&lifetime.trim_end().to_ascii_lowercase()),
            "{head}"
        );
        for other in ["x-metadata-token", "X-AWS-EC2-METADATA-TOKEN"] {
            let with = format!("{other}: {text}\r\n");
            let found = get(&second, "/name", &with);
            assert_eq!((found.0, &*found.2), (200, "John"));
            // Another microVM's.
            assert_eq!(get(&service(MmdsVersion::V2, false), "/name", &with).0, 401);
        }
        let with = format!("X-metadata-token: {text}\r\n");
        set_clock(clock().get() + 60 * SECOND - 1);
        assert_eq!(get(&second, "/name", &with).0, 200);
        set_clock(clock().get() + 1);
        assert_eq!(get(&second, "/name", &with).0, 401);
    }
    // (of version 2, of version 1): the same is counted, and only one of them insists.
    let counters = [second.counters(), first.counters()];
    let before = counters
        .clone()
        .map(|all| (all.no_token.get(), all.invalid_token.get()));
    assert_eq!(before, [(0, 2), (0, 0)]);
    let twice = "X-metadata-token: a\r\nX-aws-ec2-metadata-token: a\r\n";
    for (headers, status) in [("", 401), ("X-metadata-token: abc\r\n", 401), (twice, 401)] {
        assert_eq!(get(&second, "/name", headers).0, status, "{headers}");
        assert_eq!(get(&first, "/name", headers).0, 200, "{headers}");
    }
    let after = counters.map(|all| (all.no_token.get(), all.invalid_token.get()));
    assert_eq!(after, [(1, 4), (1, 2)]);
    // Version 1 gives tokens out, too, for guests that are on their way to version 2.
    assert_eq!(token(&first, "X-metadata-token-ttl-seconds: 1\r\n").0, 200);
}

#[test]
fn token_is_given_to_who_asks_rightly() {
    let service = service(MmdsVersion::V2, false);
    let lifetime = "X-metadata-token-ttl-seconds: ";
    for (headers, status, part) in [
        (format!("{lifetime}1\r\n"), 200, ""),
        (format!("{lifetime}21600\r\n"), 200, ""),
        (format!("{lifetime}0\r\n"), 400, "1 to 21600"),
        (format!("{lifetime}21601\r\n"), 400, "1 to 21600"),
        (format!("{lifetime}+1\r\n"), 400, "1 to 21600"),
        (format!("{lifetime}\r\n"), 400, "1 to 21600"),
        (
            format!("{lifetime}99999999999999999999\r\n"),
            400,
            "1 to 21600",
        ),
        (
            format!("{lifetime}5\r\n{lifetime}6\r\n"),
            400,
            "more than once",
        ),
        (String::new(), 400, "no lifetime"),
        (
            format!("{lifetime}5\r\nX-Forwarded-For: 1.2.3.4\r\n"),
            400,
            "X-Forwarded-For",
        ),
    ] {
        let (found, _, text) = token(&service, &headers);
        assert_eq!(found, status, "{headers}: {text}");
        assert!(text.contains(part), "{headers}: {text}");
    }
    let other = format!("PUT /latest/api HTTP/1.1\r\n{lifetime}5\r\n\r\n");
    assert_eq!(ask(&service, &other).0, 404);
    let slashes = format!("PUT //latest/api//token/ HTTP/1.1\r\n{lifetime}5\r\n\r\n");
    assert_eq!(ask(&service, &slashes).0, 200);
}

#[test]
fn what_is_not_served_is_refused() {
    let service = service(MmdsVersion::V1, false);
    for (text, status, part) in [
        ("POST / HTTP/1.1\r\n\r\n".to_owned(), 405, "allow: get, put"),
        (
            "PATCH / HTTP/1.1\r\n\r\n".to_owned(),
            405,
            "allow: get, put",
        ),
        (
            "DELETE / HTTP/1.1\r\n\r\n".to_owned(),
            405,
            "allow: get, put",
        ),
        ("HEAD / HTTP/1.1\r\n\r\n".to_owned(), 405, "allow: get, put"),
        ("GET name HTTP/1.1\r\n\r\n".to_owned(), 400, ""),
        ("\u{1}".to_owned(), 400, ""),
        (
            "PUT / HTTP/1.1\r\nContent-Length: 1025\r\n\r\n".to_owned(),
            400,
            "",
        ),
        (
            format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(9_000)),
            400,
            "",
        ),
    ] {
        let (found, head, body) = ask(&service, &text);
        assert_eq!(found, status, "{text:?}: {body}");
        assert!(head.contains(part), "{text:?}: {head}");
        assert_eq!(body.is_empty(), text.starts_with("HEAD"), "{body}");
        assert!(!body.contains("--http-api"), "{body}");
    }
}
