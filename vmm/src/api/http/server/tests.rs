use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::*;

/// A server on a thread of its own. It answers GET with the path, anything else with 204, and
/// `/large` with more than a socket takes.
struct Served {
    path: PathBuf,
    counts: Arc<Counts>,
    stop: EventFd,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    _folder: TempDir,
}

/// More than the buffers of a Unix socket hold.
const LARGE: usize = 4 << 20;

fn answer(request: &Request) -> Response {
    match &*request.path {
        "/large" => Response::json(vec![b'x'; LARGE]),
        _ if request.method == super::super::Method::Get => {
            Response::json(request.path.clone().into_bytes())
        }
        _ => Response::no_content(),
    }
}

impl Served {
    fn start(limits: Limits) -> Self {
        Self::with(limits, |request| answer(&request))
    }

    fn with(limits: Limits, handler: impl FnMut(Request) -> Response + Send + 'static) -> Self {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("api.socket");
        let server = Server::bind(&path, limits).expect("a socket");
        let counts = server.counts();
        let stop = EventFd::new(0).expect("an eventfd");
        let stopping = stop.try_clone().expect("a descriptor");
        let thread = std::thread::spawn(move || server.run(handler, &stopping));
        Self {
            path,
            counts,
            stop,
            thread: Some(thread),
            _folder: folder,
        }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).expect("the server listens")
    }

    fn counted(&self, counter: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        counter(&self.counts).load(Ordering::Relaxed)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.write(1).expect("an eventfd");
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, None | Some(Ok(Ok(())))) || std::thread::panicking());
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// The next answer's head and body.
fn read_answer(client: &mut UnixStream) -> (String, String) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).expect("more of the head");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().expect("a number"));
    let mut body = vec![0; length];
    client.read_exact(&mut body).expect("the whole body");
    (head, String::from_utf8(body).expect("text"))
}

fn ask(client: &mut UnixStream, path: &str) -> String {
    client.write_all(&get(path)).expect("the server reads");
    read_answer(client).1
}

/// Whether the server has closed the connection, waiting for it.
fn is_closed(client: &mut UnixStream) -> bool {
    match client.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn connection_is_kept_and_serves_one_request_after_another() {
    let served = Served::start(Limits::default());
    let mut client = served.connect();
    for path in ["/a", "/b", "/a"] {
        assert_eq!(ask(&mut client, path), path);
    }
    client
        .write_all(b"PUT /x HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        .unwrap();
    let (head, body) = read_answer(&mut client);
    assert!(head.starts_with("HTTP/1.1 204 No Content\r\n"), "{head}");
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    assert_eq!(body, "");
    assert!(is_closed(&mut client));
    assert_eq!(served.counted(|counts| &counts.answered), 4);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let served = Served::start(Limits::default());
    let mut client = served.connect();
    let paths: Vec<String> = (0..500).map(|number| format!("/{number}")).collect();
    let requests: Vec<u8> = paths.iter().flat_map(|path| get(path)).collect();
    let mut writer = client.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&requests));
    for path in &paths {
        assert_eq!(&read_answer(&mut client).1, path);
    }
    writing.join().unwrap().unwrap();
}

#[test]
fn request_in_single_bytes_is_answered_while_others_are_served() {
    let served = Served::start(Limits::default());
    let (mut slow, mut other) = (served.connect(), served.connect());
    for byte in get("/slow") {
        slow.write_all(&[byte]).unwrap();
        assert_eq!(ask(&mut other, "/other"), "/other");
    }
    assert_eq!(read_answer(&mut slow).1, "/slow");
}

#[test]
fn client_that_pipelines_without_end_does_not_keep_others_waiting() {
    let served = Served::start(Limits::default());
    let mut greedy = served.connect();
    greedy
        .set_write_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    let requests = get("/greedy").repeat(10_000);
    // Never reads: in the end neither side can go on.
    let mut written = 0;
    while let Ok(more) = greedy.write(&requests[written % requests.len()..]) {
        written += more;
    }
    assert_eq!(ask(&mut served.connect(), "/other"), "/other");
}

#[test]
fn client_that_does_not_read_is_cut_and_costs_one_answer() {
    let (sender, asked) = mpsc::channel();
    let served = Served::with(
        Limits {
            patience: Duration::from_millis(50),
            ..Limits::default()
        },
        move |request| {
            sender.send(()).unwrap();
            answer(&request)
        },
    );
    let mut client = served.connect();
    client.write_all(&get("/large").repeat(100)).unwrap();
    // Its end is seen behind what the socket holds.
    let mut taken = Vec::new();
    while served.counted(|counts| &counts.expired) == 0 {
        std::thread::yield_now();
    }
    let _ = client.read_to_end(&mut taken);
    assert!(taken.len() < LARGE, "{} bytes", taken.len());
    assert_eq!(asked.try_iter().count(), 1);
    assert_eq!(ask(&mut served.connect(), "/other"), "/other");
}

#[test]
fn large_answer_arrives_whole() {
    let served = Served::start(Limits::default());
    assert_eq!(ask(&mut served.connect(), "/large").len(), LARGE);
}

#[test]
fn unfinished_request_is_cut_when_patience_ends() {
    let served = Served::start(Limits {
        patience: Duration::from_millis(20),
        ..Limits::default()
    });
    for part in [&b"G"[..], b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{"] {
        let mut client = served.connect();
        client.write_all(part).unwrap();
        assert!(is_closed(&mut client));
    }
    assert_eq!(served.counted(|counts| &counts.expired), 2);
}

#[test]
fn bytes_that_trickle_in_do_not_prolong_patience() {
    let served = Served::start(Limits {
        patience: Duration::from_millis(50),
        ..Limits::default()
    });
    let mut other = served.connect();
    let mut slow = served.connect();
    slow.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 51200\r\n\r\n")
        .unwrap();
    // Each byte is read before the next is sent, and somebody else is served in between.
    let mut sent = 0;
    while slow.write_all(b" ").is_ok() {
        sent += 1;
        assert!(sent < 51_200, "the whole body was waited for");
        assert_eq!(ask(&mut other, "/other"), "/other");
    }
    assert!(is_closed(&mut slow));
    assert_eq!(served.counted(|counts| &counts.expired), 1);
}

#[test]
fn idle_connection_outlives_patience() {
    let served = Served::start(Limits {
        patience: Duration::from_millis(20),
        ..Limits::default()
    });
    let mut idle = served.connect();
    assert_eq!(ask(&mut idle, "/before"), "/before");
    // Something else has expired by now, which began later.
    let mut other = served.connect();
    other.write_all(b"G").unwrap();
    assert!(is_closed(&mut other));
    assert_eq!(ask(&mut idle, "/after"), "/after");
}

#[test]
fn oldest_connection_makes_room_when_all_are_taken() {
    let served = Served::start(Limits {
        connections: 2,
        ..Limits::default()
    });
    let (mut first, mut second) = (served.connect(), served.connect());
    ask(&mut first, "/first");
    ask(&mut second, "/second");
    // The first is the younger one now.
    ask(&mut first, "/again");
    assert_eq!(ask(&mut served.connect(), "/third"), "/third");
    assert!(is_closed(&mut second));
    assert_eq!(ask(&mut first, "/still"), "/still");
    assert_eq!(served.counted(|counts| &counts.evicted), 1);
}

#[test]
fn connection_in_its_grace_is_not_closed_for_another() {
    let served = Served::start(Limits {
        connections: 1,
        grace: Duration::from_secs(3600),
        ..Limits::default()
    });
    let mut first = served.connect();
    ask(&mut first, "/first");
    let mut second = served.connect();
    second.write_all(&get("/second")).unwrap();
    for _ in 0..10 {
        assert_eq!(ask(&mut first, "/first"), "/first");
    }
    assert_eq!(served.counted(|counts| &counts.accepted), 1);
    assert_eq!(served.counted(|counts| &counts.evicted), 0);
}

#[test]
fn more_connections_than_there_are_slots_are_all_served() {
    let served = Served::start(Limits {
        connections: 4,
        grace: Duration::ZERO,
        ..Limits::default()
    });
    let mut clients = Vec::new();
    for number in 0..100 {
        let mut client = served.connect();
        let path = format!("/{number}");
        assert_eq!(ask(&mut client, &path), path);
        clients.push(client);
    }
    assert_eq!(served.counted(|counts| &counts.accepted), 100);
    assert_eq!(served.counted(|counts| &counts.evicted), 96);
}

#[test]
fn half_closed_connection_gets_its_answers_and_an_end() {
    let served = Served::start(Limits::default());
    let mut client = served.connect();
    client.write_all(&get("/a").repeat(3)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    for _ in 0..3 {
        assert_eq!(read_answer(&mut client).1, "/a");
    }
    assert!(is_closed(&mut client));

    // In the middle of a request there is nothing to answer.
    let mut client = served.connect();
    client.write_all(b"GET / HT").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(is_closed(&mut client));
}

#[test]
fn body_over_the_limit_is_refused_although_the_client_goes_on_sending() {
    let served = Served::start(Limits {
        payload: 1000,
        ..Limits::default()
    });
    let mut client = served.connect();
    client
        .write_all(b"PUT / HTTP/1.1\r\nContent-Length: 500001\r\n\r\n")
        .unwrap();
    // More than the socket holds: the server must read for this to end.
    client.write_all(&[b' '; 500_001]).unwrap();
    let (head, body) = read_answer(&mut client);
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    assert!(
        body.contains("500001 bytes") && body.contains("1000 bytes"),
        "{body}"
    );
    client.shutdown(Shutdown::Write).unwrap();
    assert!(is_closed(&mut client));
    assert_eq!(served.counted(|counts| &counts.refused), 1);
    assert_eq!(served.counted(|counts| &counts.answered), 0);
}

#[test]
fn refused_client_that_sends_without_end_is_cut() {
    let served = Served::start(Limits::default());
    let mut client = served.connect();
    let mut sent = 0_usize;
    while let Ok(written) = client.write(&[0; 1 << 16]) {
        sent += written;
    }
    // What is drained, what is read before that, and what the socket holds.
    assert!(sent < 4 << 20, "{sent} bytes");
}

#[test]
fn requests_before_a_malformed_one_are_answered() {
    let served = Served::start(Limits::default());
    let mut client = served.connect();
    client
        .write_all(&[get("/a"), get("/b"), b"HEAD / HTTP/1.1\r\n\r\n".to_vec()].concat())
        .unwrap();
    assert_eq!(read_answer(&mut client).1, "/a");
    assert_eq!(read_answer(&mut client).1, "/b");
    let mut rest = String::new();
    client.shutdown(Shutdown::Write).unwrap();
    client.read_to_string(&mut rest).unwrap();
    // The answer to HEAD has a length but no body.
    assert!(
        rest.starts_with("HTTP/1.1 400 ") && rest.ends_with("\r\n\r\n"),
        "{rest}"
    );
}

#[test]
fn body_is_asked_for_when_the_client_waits() {
    let served = Served::start(Limits::default());
    let mut client = served.connect();
    client
        .write_all(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .unwrap();
    assert_eq!(read_answer(&mut client).0, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"{}").unwrap();
    assert!(read_answer(&mut client).0.starts_with("HTTP/1.1 204 "));
}

#[test]
fn bind_refuses_what_exists_and_names_the_cure() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "").unwrap();
    let error = Server::bind(&path, Limits::default()).unwrap_err();
    assert!(matches!(error, BindError::Exists { .. }));
    assert!(error.to_string().contains("--api-sock"), "{error}");
    assert!(path.exists());

    let long = folder.path().join("x".repeat(108));
    let error = Server::bind(&long, Limits::default()).unwrap_err();
    assert!(matches!(error, BindError::Path { .. }), "{error}");
    let nowhere = folder.path().join("none/api.socket");
    let error = Server::bind(&nowhere, Limits::default()).unwrap_err();
    assert!(matches!(error, BindError::Io { .. }), "{error}");
}

#[test]
fn socket_is_removed_at_the_end_unless_it_is_another() {
    let served = Served::start(Limits::default());
    let path = served.path.clone();
    let mut client = served.connect();
    ask(&mut client, "/");
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let mut served = served;
    served.stop.write(1).unwrap();
    served.thread.take().unwrap().join().unwrap().unwrap();
    assert!(path.exists());
    assert!(is_closed(&mut client));
    drop(other);
    std::fs::remove_file(&path).unwrap();
    let server = Server::bind(&path, Limits::default()).unwrap();
    assert!(path.exists());
    drop(server);
    assert!(!path.exists());
}

#[test]
fn socket_is_gone_when_a_client_sees_its_end() {
    // Many, so that closing them all takes longer than to look.
    let served = Served::start(Limits {
        connections: 300,
        ..Limits::default()
    });
    let mut clients: Vec<UnixStream> = (0..300).map(|_| served.connect()).collect();
    clients.iter_mut().for_each(|client| drop(ask(client, "/")));
    served.stop.write(1).unwrap();
    assert!(is_closed(&mut clients[0]));
    assert!(!served.path.exists());
}
