//! Clients that behave badly, against the binary: it stays within its memory and its descriptors, its
//! guest runs on, and the next client is served.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use support::api::{read_answer, request};
use support::{FOR_EVER, elf};

/// How long something may take that should happen at once: a bound for a machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);

/// What all of the API's clients together may make the process grow by, in KiB: 64 connections with a
/// body of 50 KiB each, doubled by the growth of their buffers, and some more for the allocator.
const GROWTH_KIB: u64 = 12 << 10;

/// The launcher with its API, and nothing started.
struct Launcher {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

impl Launcher {
    fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let socket = folder.path().join("api.socket");
        let child = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .arg("--api-sock")
            .arg(&socket)
            .args(["--level", "Error"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the launcher starts");
        let mut launcher = Self {
            child,
            socket,
            _folder: folder,
        };
        wait_for("the socket", || {
            assert!(
                launcher.child.try_wait().expect("a child").is_none(),
                "the launcher has ended"
            );
            UnixStream::connect(&launcher.socket).is_ok()
        });
        launcher.ask("GET", "/version", "");
        launcher
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(&self.socket).expect("the launcher listens");
        client.set_read_timeout(Some(LIMIT)).expect("a socket");
        client
    }

    /// What is answered on a new connection.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut client = self.connect();
        client
            .write_all(request(method, path, body).as_bytes())
            .expect("the launcher reads");
        read_answer(&mut client)
    }

    /// The number after `key` in /proc/PID/status, in KiB.
    fn memory(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("the launcher lives");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .expect(key);
        let number = line.trim_matches(|c: char| !c.is_ascii_digit());
        number.parse().expect("a number of KiB")
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .expect("the launcher lives")
            .count()
    }

    /// Does `abuse`; then descriptors and memory are what they were, and the next client is served.
    fn survives(&self, abuse: impl FnOnce(&Self)) {
        let descriptors = self.descriptors();
        let peak = self.memory("VmHWM:");
        abuse(self);
        wait_for("closed descriptors", || self.descriptors() <= descriptors);
        let grown = self.memory("VmHWM:").saturating_sub(peak);
        assert!(grown < GROWTH_KIB, "grown by {grown} KiB");
        assert!(self.is_served());
    }

    fn is_served(&self) -> bool {
        self.ask("GET", "/version", "").0 == 200
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what} did not come");
        std::thread::yield_now();
    }
}

/// Whether the launcher has closed the connection, waiting for it.
fn is_closed(client: &mut UnixStream) -> bool {
    match client.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn slow_client_does_not_keep_another_waiting() {
    Launcher::start().survives(|launcher| {
        let (mut slow, mut other) = (launcher.connect(), launcher.connect());
        for byte in request("GET", "/version", "").bytes() {
            slow.write_all(&[byte]).unwrap();
            other.write_all(request("GET", "/", "").as_bytes()).unwrap();
            assert!(read_answer(&mut other).1.contains("Not started"));
        }
        assert_eq!(read_answer(&mut slow).0, 200);
    });
}

/// Clients that send a byte now and then, so that none of their connections is ever idle: each is cut when
/// its request has taken as long as one may, however many bytes came, and nobody waits for them meanwhile.
#[test]
fn requests_that_trickle_in_are_cut_in_time_while_others_are_served() {
    /// How long a request may take to arrive (docs/compatibility.md, "HTTP").
    const PATIENCE: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(100);
    Launcher::start().survives(|launcher| {
        let descriptors = launcher.descriptors();
        let begun = Instant::now();
        let beginnings: [&[u8]; 4] = [
            b"",
            b"GET /version HTTP/1.1\r\nX: ",
            b"PUT /mmds HTTP/1.1\r\nContent-Length: 51200\r\n\r\n",
            b"PUT /mmds HTTP/1.1\r\nContent-Length: 51200\r\nExpect: 100-continue\r\n\r\n{",
        ];
        let mut clients: Vec<UnixStream> = (0..16)
            .map(|number| {
                let mut client = launcher.connect();
                let beginning = beginnings[number % beginnings.len()];
                client.write_all(beginning).expect("the launcher reads");
                client
            })
            .collect();
        let mut other = launcher.connect();
        let mut rounds = 0;
        while !clients.is_empty() {
            rounds += 1;
            clients.retain_mut(|client| client.write_all(b"x").is_ok());
            let early = begun.elapsed() + Duration::from_secs(1) < PATIENCE;
            assert!(clients.len() == 16 || !early, "{:?}", begun.elapsed());
            assert!(
                begun.elapsed() < PATIENCE + LIMIT,
                "{} are left",
                clients.len()
            );
            other.write_all(request("GET", "/", "").as_bytes()).unwrap();
            assert!(read_answer(&mut other).1.contains("Not started"));
            std::thread::sleep(PAUSE);
        }
        assert!(rounds > 10, "{rounds} rounds");
        // The one that behaves is still there.
        wait_for("closed descriptors", || {
            launcher.descriptors() <= descriptors + 1
        });
        other.write_all(request("GET", "/", "").as_bytes()).unwrap();
        assert!(read_answer(&mut other).1.contains("Not started"));
    });
}

#[test]
fn ten_thousand_connections_cost_a_bounded_number_of_descriptors() {
    const CONNECTIONS: usize = 10_000;
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    // As many at a time as this process may have; the others follow.
    let at_a_time = getrlimit(Resource::Nofile)
        .current
        .and_then(|most| usize::try_from(most).ok())
        .map_or(CONNECTIONS, |most| {
            most.saturating_sub(100).min(CONNECTIONS)
        });
    Launcher::start().survives(|launcher| {
        let before = launcher.descriptors();
        let mut clients = std::collections::VecDeque::new();
        for number in 0..CONNECTIONS {
            if clients.len() == at_a_time {
                clients.pop_front();
            }
            let mut client = launcher.connect();
            if number % 2 == 0 {
                // It may be the turn of the next by now.
                let _ = client.write_all(b"GET /version HT");
            }
            clients.push_back(client);
        }
        assert!(launcher.descriptors() <= before + 64);
        assert!(launcher.is_served());
    });
}

#[test]
fn body_over_the_limit_is_refused_with_its_limit() {
    Launcher::start().survives(|launcher| {
        let mut body = String::from("{}");
        body.extend(std::iter::repeat_n(' ', 51_200 - body.len()));
        let fits = launcher.ask("PUT", "/mmds", &body);
        assert_eq!(fits, (204, String::new()));
        body.push(' ');
        let (status, refused) = launcher.ask("PUT", "/mmds", &body);
        assert_eq!(status, 400, "{refused}");
        assert!(
            refused.contains("51201") && refused.contains("fault_message"),
            "{refused}"
        );
    });
}

#[test]
fn bodies_that_never_end_cost_a_bounded_memory() {
    Launcher::start().survives(|launcher| {
        let head = "PUT /mmds HTTP/1.1\r\nContent-Length: 51200\r\n\r\n{";
        let clients: Vec<UnixStream> = (0..200)
            .map(|_| {
                let mut client = launcher.connect();
                // One that makes room for another is cut while it sends.
                let _ = client.write_all(head.as_bytes());
                let _ = client.write_all(&[b' '; 51_000]);
                client
            })
            .collect();
        assert!(launcher.is_served());
        drop(clients);
    });
}

#[test]
fn half_closed_connections_are_answered_and_closed() {
    Launcher::start().survives(|launcher| {
        for _ in 0..500 {
            let mut whole = launcher.connect();
            let text = request("GET", "/", "");
            whole.write_all(text.as_bytes()).unwrap();
            whole.shutdown(Shutdown::Write).unwrap();
            assert!(read_answer(&mut whole).1.contains("Not started"));
            assert!(is_closed(&mut whole));

            let mut half = launcher.connect();
            half.write_all(b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\n\r\n{")
                .unwrap();
            half.shutdown(Shutdown::Write).unwrap();
            assert!(is_closed(&mut half));

            // It takes no answer.
            let mut deaf = launcher.connect();
            deaf.shutdown(Shutdown::Read).unwrap();
            let _ = deaf.write_all(text.as_bytes());
        }
    });
}

#[test]
fn client_that_is_killed_in_a_request_leaves_nothing() {
    Launcher::start().survives(|launcher| {
        for _ in 0..20 {
            let mut client = launcher.connect();
            client
                .write_all(b"PUT /mmds HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"a\":")
                .unwrap();
            // A process that has the only descriptor of the connection.
            let mut holder = Command::new("sleep")
                .arg("1000")
                .stdin(OwnedFd::from(client))
                .spawn()
                .expect("a process");
            holder.kill().expect("it lives");
            holder.wait().expect("it has ended");
        }
        assert_eq!(mmds(launcher), "{}");
    });
}

/// What the metadata store holds.
fn mmds(launcher: &Launcher) -> String {
    launcher.ask("GET", "/mmds", "").1
}

#[test]
fn two_clients_at_once_get_their_own_answers() {
    let launcher = Launcher::start();
    let launcher = &launcher;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = launcher.connect();
            for number in 0..1000 {
                let body = format!(r#"{{"vcpu_count":{}}}"#, 1 + number % 32);
                client
                    .write_all(request("PATCH", "/machine-config", &body).as_bytes())
                    .unwrap();
                assert_eq!(read_answer(&mut client).0, 204);
            }
        });
        scope.spawn(|| {
            let mut client = launcher.connect();
            for number in 0..1000 {
                let body = format!(r#"{{"number":{number}}}"#);
                client
                    .write_all(request("PUT", "/mmds", &body).as_bytes())
                    .unwrap();
                assert_eq!(read_answer(&mut client).0, 204);
                client
                    .write_all(request("GET", "/mmds", "").as_bytes())
                    .unwrap();
                assert_eq!(read_answer(&mut client), (200, body.clone()));
            }
        });
    });
    launcher.survives(|_| {});
}

/// Code that writes the letter x to COM1 for ever: mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp back to
/// the output.
const TALK: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];

#[test]
fn guest_runs_on_while_its_api_is_abused() {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped here: no /dev/kvm");
        return;
    }
    let mut launcher = Launcher::start();
    let kernel = elf(&TALK);
    let body = format!(r#"{{"kernel_image_path":{:?}}}"#, kernel.path());
    let answer = launcher.ask("PUT", "/boot-source", &body);
    assert_eq!(answer.0, 204, "{}", answer.1);
    let start = r#"{"action_type":"InstanceStart"}"#;
    let answer = launcher.ask("PUT", "/actions", start);
    assert_eq!(answer.0, 204, "{}", answer.1);
    let mut console = launcher.child.stdout.take().expect("a pipe");
    launcher.survives(|launcher| {
        let mut hanging: Vec<UnixStream> = Vec::new();
        // More than the pipe holds each time: what is read has been written since.
        let mut letters = vec![0; 128 << 10];
        for _ in 0..5 {
            for _ in 0..100 {
                let mut client = launcher.connect();
                let _ = client.write_all(b"PUT /mmds HTTP/1.1\r\nContent-Length: 51200\r\n\r\n{");
                hanging.push(client);
            }
            console.read_exact(&mut letters).expect("the guest writes");
            assert!(letters.iter().all(|letter| *letter == b'x'));
            assert!(launcher.ask("GET", "/", "").1.contains("Running"));
        }
    });
}

#[test]
fn guest_that_never_exits_is_paused_and_resumed() {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped here: no /dev/kvm");
        return;
    }
    let launcher = Launcher::start();
    let kernel = elf(&FOR_EVER);
    let body = format!(r#"{{"kernel_image_path":{:?}}}"#, kernel.path());
    let start = r#"{"action_type":"InstanceStart"}"#;
    assert_eq!(launcher.ask("PUT", "/boot-source", &body).0, 204);
    assert_eq!(launcher.ask("PUT", "/actions", start).0, 204);
    launcher.survives(|launcher| {
        for _ in 0..20 {
            for (state, shown) in [("Paused", "Paused"), ("Resumed", "Running")] {
                let body = format!(r#"{{"state":"{state}"}}"#);
                let answer = launcher.ask("PATCH", "/vm", &body);
                assert_eq!(answer.0, 204, "{}", answer.1);
                assert!(launcher.ask("GET", "/", "").1.contains(shown));
            }
        }
    });
}
