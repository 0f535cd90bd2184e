//! That each rule of the seccomp filters is there for something: microVMs do all that they can while a tracer notes
//! which calls the filters let through. A rule that none of them used has to say why it is there.
//!
//! A rule's comment ends in `; unseen: REASON` when nothing here can use it, and in `; by chance: REASON` when it
//! depends on the moment, the host or the C library whether it is used.
#![expect(
    unsafe_code,
    reason = "a tracer reads what the kernel tells of other processes, and forks some"
)]

mod alternatives;
#[path = "../support/mod.rs"]
mod support;
mod tracer;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::termios::{LocalModes, tcgetattr};
use serde_json::{Value, json};
use support::api::raw;
use support::guest::{Guest, Part};
use support::rules::{Condition, numbers, rules};
use support::{FOR_EVER, RESET, elf, print, pseudoterminal};
use tempfile::TempDir;
use tracer::{Call, Strike, Traced, traced_rules};
use vmm::seccomp::{Filters, Role, tell_panics_in_one_line};

const LAUNCHER: &str = env!("CARGO_BIN_EXE_keeptime");

/// Why nothing can be traced here, if it cannot.
fn lacking() -> Option<&'static str> {
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun");
    }
    let root = rustix::process::geteuid().is_root();
    (!root).then_some("a network namespace takes root's rights")
}

/// A folder with the traced rules and a place for what is known of the host's TSCs, which are measured anew.
struct Ground(TempDir);

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("rules"), traced_rules().to_string()).expect("room");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The launcher, in a network namespace of its own.
    fn launcher(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LAUNCHER);
        command
            .current_dir(self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .args(arguments)
            .args(["--seccomp-filter", "rules"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // SAFETY: a call of the kernel, which takes no pointer.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        command
    }
}

/// A client of a launcher in a [`Ground`], whose socket is there.
struct Client(PathBuf);

impl Client {
    fn of(ground: &Ground, traced: &Traced) -> Self {
        let socket = ground.path("socket");
        while UnixStream::connect(&socket).is_err() {
            traced.goes_on();
        }
        Self(socket)
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        raw(&self.0, method, path, body)
    }

    fn done(&self, method: &str, path: &str, body: &Value) {
        let (status, text) = self.send(method, path, body);
        assert!(matches!(status, 200 | 204), "{path}: {status} {text}");
    }
}

fn read_until(output: &mut impl Read, text: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(text.as_bytes()) {
        let mut byte = [0];
        output.read_exact(&mut byte).expect("the guest goes on");
        seen.push(byte[0]);
    }
}

/// A disk's request (virtio 1.2, 5.2.6).
fn disk(kind: u32, data: Option<Part>) -> Vec<Part> {
    let header = [kind.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    let mut parts = vec![Part::Bytes(header)];
    parts.extend(data);
    parts.push(Part::Room(1));
    parts
}

/// A packet of the socket device, from port 1024 of the guest to port 52 of the host (virtio 1.2, 5.10.6).
fn packet(operation: u16, flags: u32, data: &[u8]) -> Vec<Part> {
    let length = u32::try_from(data.len()).expect("short");
    let mut packet = Vec::new();
    packet.extend(3_u64.to_le_bytes());
    packet.extend(2_u64.to_le_bytes());
    for word in [1024, 52, length] {
        packet.extend(u32::to_le_bytes(word));
    }
    packet.extend(1_u16.to_le_bytes());
    packet.extend(operation.to_le_bytes());
    for word in [flags, 4096, 0] {
        packet.extend(u32::to_le_bytes(word));
    }
    packet.extend(data);
    vec![Part::Bytes(packet)]
}

/// A guest that uses a disk, a network card, sockets, entropy, and the clock chip's interrupt.
fn busy_guest() -> Vec<u8> {
    let mut guest = Guest::default();
    // VIRTIO_BLK_F_FLUSH, _DISCARD, _WRITE_ZEROES.
    let mut queues = guest.begin(0, 1 << 9 | 1 << 13 | 1 << 14, 1);
    let blocks = &mut queues[0];
    let range = [[0; 8].as_slice(), &1_u32.to_le_bytes(), &[0; 4]].concat();
    for request in [
        disk(1, Some(Part::Bytes(vec![7; 512]))),
        disk(0, Some(Part::Room(512))),
        disk(4, None),
        disk(11, Some(Part::Bytes(range.clone()))),
        disk(13, Some(Part::Bytes(range.clone()))),
    ] {
        guest.offer(blocks, &request);
        guest.used(blocks);
    }
    // The same by a ring.
    let mut queues = guest.begin(2, 1 << 9 | 1 << 13 | 1 << 14, 1);
    let blocks = &mut queues[0];
    for request in [
        disk(1, Some(Part::Bytes(vec![7; 512]))),
        disk(0, Some(Part::Room(512))),
        disk(4, None),
        disk(11, Some(Part::Bytes(range.clone()))),
        disk(13, Some(Part::Bytes(range))),
    ] {
        guest.offer(blocks, &request);
        guest.used(blocks);
    }
    // VIRTIO_NET_F_CSUM.
    let mut card = guest.begin(3, 1, 2);
    guest.offer(&mut card[0], &[Part::Room(4096)]);
    guest.offer(&mut card[1], &[Part::Bytes(vec![0; 12 + 60])]);
    guest.used(&card[1]);
    let mut sockets = guest.begin(4, 0, 3);
    for _ in 0..8 {
        guest.offer(&mut sockets[0], &[Part::Room(512)]);
    }
    for packet in [
        packet(1, 0, b""),
        packet(5, 0, b"data"),
        packet(4, 1, b""),
        packet(4, 2, b""),
    ] {
        guest.offer(&mut sockets[1], &packet);
        guest.used(&sockets[1]);
    }
    let mut entropy = guest.begin(5, 0, 1);
    guest.offer(&mut entropy[0], &[Part::Room(32)]);
    guest.used(&entropy[0]);
    // The clock chip's interrupt at the end of each second, in register B (MC146818A data sheet): mov al, value; out port, al.
    let updates = [0x70, 0x0b, 0x71, 0x12];
    let updates = updates
        .chunks(2)
        .flat_map(|out| [0xb0, out[1], 0xe6, out[0]]);
    let updates: Vec<u8> = updates.collect();
    guest.print("ready");
    guest.code(&[updates.as_slice(), &FOR_EVER].concat())
}

/// What a client of the API can have done.
///
/// What is measured of the host's TSCs can be kept, or something is in its place.
fn served_by_the_api(in_the_way: bool) -> BTreeSet<Call> {
    let ground = Ground::new();
    if in_the_way {
        let folder = ground.path("keeptime");
        std::fs::create_dir_all(folder.join("tsc-domains.json")).expect("a folder");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).expect("ours");
    }
    let mut launcher = ground.launcher(&[
        "--api-sock",
        "socket",
        "--time-report",
        "report",
        "--metrics-path",
        "metrics",
        "--log-path",
        "log",
        "--level",
        "debug",
    ]);
    // It ends at once.
    launcher.stdin(Stdio::piped());
    let mut traced = Traced::start(launcher, None);
    let client = Client::of(&ground, &traced);
    let kernel = elf(&busy_guest());
    std::fs::write(ground.path("disk"), [0; 8192]).expect("room");
    for name in ["other", "readable", "third", "many", "fourth"] {
        std::fs::write(ground.path(name), [0; 4096]).expect("room");
    }
    let program = UnixListener::bind(ground.path("sockets_52")).expect("a socket");
    for (path, body) in [
        ("/boot-source", json!({"kernel_image_path": kernel.path()})),
        (
            "/machine-config",
            json!({"vcpu_count": 2, "mem_size_mib": 64}),
        ),
        (
            "/drives/disk",
            json!({
                "drive_id": "disk", "path_on_host": "disk", "is_root_device": false, "cache_type": "Writeback",
            }),
        ),
        (
            "/drives/readable",
            json!({
                "drive_id": "readable", "path_on_host": "readable", "is_root_device": false,
                "is_read_only": true,
            }),
        ),
        (
            "/drives/many",
            json!({
                "drive_id": "many", "path_on_host": "many", "is_root_device": false, "cache_type": "Writeback",
                "io_engine": "Async",
            }),
        ),
        (
            "/network-interfaces/eth0",
            json!({"iface_id": "eth0", "host_dev_name": "kt0"}),
        ),
        ("/vsock", json!({"guest_cid": 3, "uds_path": "sockets"})),
        ("/entropy", json!({})),
        ("/actions", json!({"action_type": "InstanceStart"})),
    ] {
        client.done("PUT", path, &body);
    }
    let mut console = traced.stdout.take().expect("a pipe");
    program.set_nonblocking(true).expect("a socket");
    let mut connection = loop {
        match program.accept() {
            Ok((connection, _)) => break connection,
            Err(_) => traced.goes_on(),
        }
    };
    connection.set_nonblocking(false).expect("a socket");
    let mut data = Vec::new();
    connection.read_to_end(&mut data).expect("the guest's data");
    assert_eq!(data, b"data");
    read_until(&mut console, "ready");
    let mut caller = UnixStream::connect(ground.path("sockets")).expect("the guest's socket");
    caller.write_all(b"CONNECT 52\n").expect("room");
    for path in ["/", "/vm/config", "/time", "/metrics", "/version"] {
        client.done("GET", path, &Value::Null);
    }
    // Another image, and that one anew.
    for (drive, image) in [
        ("disk", "other"),
        ("disk", "other"),
        ("readable", "third"),
        ("many", "fourth"),
    ] {
        let body = json!({"drive_id": drive, "path_on_host": image});
        client.done("PATCH", &format!("/drives/{drive}"), &body);
    }
    // Nothing is asked of the answer: a throw-away guest has been run for it.
    for policy in ["freeze", "advance"] {
        client.send("PUT", "/time", &json!({"policy": policy}));
        client.done("PATCH", "/vm", &json!({"state": "Paused"}));
        client.done("PATCH", "/vm", &json!({"state": "Resumed"}));
    }
    client.done("PUT", "/actions", &json!({"action_type": "FlushMetrics"}));
    // What is no request is answered, and the connection ends.
    let mut stranger = UnixStream::connect(ground.path("socket")).expect("the socket");
    stranger.write_all(b"?\r\n\r\n").expect("room");
    let mut answer = Vec::new();
    stranger.read_to_end(&mut answer).expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    // The TSCs have been measured, or nothing could be proven of them.
    while client
        .send("GET", "/time", &Value::Null)
        .1
        .contains("\"pending\"")
    {
        std::thread::yield_now();
    }
    // Stopped and continued, as a shell does.
    // A report that cannot be put in its place.
    let _ = std::fs::remove_file(ground.path("report"));
    std::fs::create_dir(ground.path("report")).expect("a folder");
    for signal in [libc::SIGSTOP, libc::SIGCONT, libc::SIGTERM] {
        client.done("GET", "/", &Value::Null);
        // SAFETY: takes no pointer.
        unsafe { libc::kill(traced.process, signal) };
    }
    let (status, seen) = traced.wait();
    assert!(
        libc::WIFEXITED(status),
        "{status:#x}: {}",
        std::fs::read_to_string(ground.path("log")).unwrap_or_default()
    );
    assert_eq!(libc::WEXITSTATUS(status), 128 + libc::SIGTERM);
    seen
}

/// Runs a guest of this code to its end, with another status than 0 where `failure` says so.
fn run(code: &[u8], failure: bool) -> BTreeSet<Call> {
    let ground = Ground::new();
    let kernel = elf(code);
    let kernel = kernel.path().to_str().expect("text");
    let launcher = ground.launcher(&["run", "--kernel", kernel, "--memory", "64"]);
    let (status, seen) = Traced::start(launcher, None).wait();
    assert!(libc::WIFEXITED(status), "{status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), if failure { 2 } else { 0 });
    seen
}

/// A microVM on a terminal, with a thread of each kind, of which `role`'s gets a signal that ends the process.
fn struck(role: Role, signal: i32) -> BTreeSet<Call> {
    let ground = Ground::new();
    let (_operator, terminal) = pseudoterminal();
    let kernel = elf(&[print("ready"), FOR_EVER.to_vec()].concat());
    for name in ["disk", "many"] {
        std::fs::write(ground.path(name), [0; 4096]).expect("room");
    }
    let configuration = json!({
        "boot-source": {"kernel_image_path": kernel.path()},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
        "drives": [
            {"drive_id": "disk", "path_on_host": "disk", "is_root_device": false},
            {"drive_id": "many", "path_on_host": "many", "is_root_device": false, "io_engine": "Async"},
        ],
        "vsock": {"guest_cid": 3, "uds_path": "sockets"},
    });
    std::fs::write(ground.path("configuration"), configuration.to_string()).expect("room");
    let mut launcher = ground.launcher(&[
        "--api-sock",
        "socket",
        "--config-file",
        "configuration",
        "--time-report",
        "report",
    ]);
    launcher.stdin(terminal.try_clone().expect("a descriptor"));
    // SAFETY: calls of the kernel; the last takes a number.
    unsafe {
        launcher.pre_exec(|| {
            libc::setsid();
            libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let strike = Strike { role, signal };
    // These two have their filters before the terminal is the guest's.
    let later = matches!(role, Role::Api | Role::Report);
    let mut traced = Traced::start(launcher, (!later).then_some(strike));
    if later {
        read_until(traced.stdout.as_mut().expect("a pipe"), "ready");
        traced.strike(strike);
        match role {
            // A client, or the last report.
            Role::Api => drop(UnixStream::connect(ground.path("socket"))),
            // SAFETY: takes no pointer.
            _ => _ = unsafe { libc::kill(traced.process, libc::SIGTERM) },
        }
    }
    let (status, seen) = traced.wait();
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal,
        "{role:?}, signal {signal}: {status:#x}"
    );
    let modes = tcgetattr(terminal.as_fd()).expect("a terminal").local_modes;
    assert!(
        modes.contains(LocalModes::ICANON | LocalModes::ECHO),
        "{role:?}, signal {signal}: the terminal is raw"
    );
    seen
}

/// A thread of this kind that panics.
fn panicking(role: Role) -> BTreeSet<Call> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(traced_rules().to_string().as_bytes())
        .expect("room");
    let filters = Filters::from_file(file.path()).expect("filters");
    let nowhere = File::options()
        .write(true)
        .open("/dev/null")
        .expect("there");
    let (status, seen) = Traced::fork(move || {
        // SAFETY: descriptors of this process, which is a child that ends soon.
        unsafe { libc::dup2(nowhere.as_raw_fd(), libc::STDERR_FILENO) };
        tell_panics_in_one_line();
        if filters.enter(role).is_ok() {
            let _ = std::panic::catch_unwind(|| panic!("as wanted"));
        }
    })
    .wait();
    assert!(libc::WIFEXITED(status), "{role:?}: {status:#x}");
    seen
}

/// A rule: its filter's place, its place in it, and what it says.
struct Rule {
    filter: usize,
    number: i64,
    conditions: Vec<Condition>,
    comment: String,
    told: String,
}

impl Rule {
    fn lets_through(&self, call: &Call) -> bool {
        call.filter == self.filter
            && call.number == self.number
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(&call.arguments))
    }
}

fn all_rules() -> Vec<Rule> {
    let (rules, numbers) = (rules(), numbers());
    let mut all = Vec::new();
    for (filter, role) in Role::ALL.into_iter().enumerate() {
        for rule in rules[role.name()]["filter"].as_array().expect("rules") {
            let name = rule["syscall"].as_str().expect("a name");
            let conditions = rule["args"].as_array().into_iter().flatten();
            let words: Vec<_> = conditions
                .clone()
                .filter_map(|condition| condition["comment"].as_str())
                .collect();
            all.push(Rule {
                filter,
                number: numbers[name],
                conditions: conditions.map(Condition::read).collect(),
                comment: rule["comment"].as_str().expect("why").to_owned(),
                told: format!("{} {name} {}", role.name(), words.join(", ")),
            });
        }
    }
    all
}

#[test]
fn rules_that_nothing_uses_say_why_they_are_there() {
    if let Some(lacking) = lacking() {
        return println!("skipped here: {lacking}");
    }
    let mut seen = served_by_the_api(false);
    seen.extend(served_by_the_api(true));
    // mov al, 0x30; out 0x43, al; out 0x40, al; out 0x40, al: counter 0 of the interval timer counts.
    let timer = [0xb0, 0x30, 0xe6, 0x43, 0xe6, 0x40, 0xe6, 0x40];
    seen.extend(run(&[&timer[..], &RESET].concat(), false));
    // mov eax, 0xd0000000; jmp rax: where nothing is.
    seen.extend(run(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0], true));
    for role in Role::ALL {
        seen.extend(panicking(role));
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
            libc::SIGSYS,
        ] {
            seen.extend(struck(role, signal));
        }
    }
    let mut wrong = Vec::new();
    for rule in all_rules() {
        let used = seen.iter().any(|call| rule.lets_through(call));
        let excused = rule.comment.contains("; unseen: ");
        let by_chance = rule.comment.contains("; by chance: ");
        match (used, excused) {
            _ if by_chance => {}
            (false, false) => {
                wrong.push(format!("{}: nothing uses it ({})", rule.told, rule.comment))
            }
            (true, true) => wrong.push(format!("{}: it is used ({})", rule.told, rule.comment)),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
