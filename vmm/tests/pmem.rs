//! Persistent memory: a guest that writes and flushes it, and what becomes of the file.

mod support;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::api::Vm;
use support::guest::{Guest, Part, Queue};
use support::rules::rules;
use support::{FOR_EVER, RESET, elf, print};

const MIB: u64 = 1 << 20;

/// Where the first memory of a small guest is, and where the guest has it.
const FIRST: u64 = 4 << 30;
const SEEN: u32 = 0x4000_0000;

/// A file of so many bytes that begins with these.
fn file(path: &Path, begin: &[u8], len: u64) -> File {
    let mut file = File::options();
    let file = file.read(true).write(true).create(true).truncate(true);
    let mut file = file.open(path).expect("a file");
    file.write_all(begin).expect("room");
    file.set_len(len).expect("sparse");
    file
}

fn content(file: &mut File, len: usize) -> Vec<u8> {
    file.rewind().expect("a file");
    let mut bytes = vec![0; len];
    file.read_exact(&mut bytes).expect("as long");
    bytes
}

/// Asks for a flush, and prints its answer.
fn flush(guest: &mut Guest, queue: &mut Queue) {
    let answer = Guest::next(queue) + 16;
    guest.offer(queue, &[Part::Bytes(vec![0; 4]), Part::Room(4)]);
    guest.used(queue);
    guest.tell(answer, true);
}

#[test]
fn what_the_guest_writes_and_flushes_is_in_the_file_and_a_read_only_one_stays_as_it_is() {
    let mut guest = Guest::default();
    // The second memory is after the first, whose file ends within 2 MiB.
    guest.map(FIRST, SEEN);
    guest.map(FIRST + 2 * MIB, SEEN + (2 << 20));
    let read_only = SEEN + (2 << 20);
    let mut first = guest.begin(0, 0, 1);
    let mut second = guest.begin(1, 0, 1);
    guest.tell(SEEN, false);
    guest.store(SEEN + 0x1000, u32::from_le_bytes(*b"kept"));
    flush(&mut guest, &mut first[0]);
    guest.tell(read_only, false);
    flush(&mut guest, &mut second[0]);
    guest.store(read_only, u32::from_le_bytes(*b"lost"));
    guest.tell(read_only, false);
    flush(&mut guest, &mut second[0]);
    guest.print(".");

    let mut vm = Vm::start(&[]);
    let mut writable = file(&vm.path("a"), b"A", 0x3000);
    let mut other = file(&vm.path("b"), b"B", 2 * MIB);
    let pmem = |id: &str, read_only: bool| json!({"id": id, "path_on_host": id, "root_device": false, "read_only": read_only});
    vm.done("PUT", "/pmem/a", &pmem("a", false));
    vm.done("PUT", "/pmem/b", &pmem("b", true));
    vm.boot(&guest.code(&FOR_EVER), 1);
    vm.read_until("A0B0B1.");
    let of =
        |field: &str, id: &str| vm.metric(&format!("keeptime_pmem_{field}_total{{id=\"{id}\"}}"));
    // What the second cannot keep is told of it alone.
    assert_eq!((of("event_fails", "a"), of("event_fails", "b")), (0, 1));
    assert_eq!(of("rate_limiter_throttled_events", "a"), 0);
    vm.signal(Signal::KILL);
    vm.child.wait().expect("our child");
    assert_eq!(content(&mut writable, 0x3000)[0x1000..][..4], *b"kept");
    assert_eq!(content(&mut other, 8), *b"B\0\0\0\0\0\0\0");
}

#[test]
fn memory_is_configured_before_the_start_and_limited_after_it() {
    let mut vm = Vm::start(&[]);
    for name in ["a", "b"] {
        file(&vm.path(name), b"", 2 * MIB);
    }
    file(&vm.path("empty"), b"", 0);
    let limiter = json!({"ops": {"size": 1, "refill_time": 1000}});
    let a = json!({"id": "a", "path_on_host": "a", "root_device": true, "read_only": false});
    vm.done("PUT", "/pmem/a", &a);
    let mut b = json!({"id": "b", "path_on_host": "b", "root_device": true, "read_only": true});
    let message = vm.refused("PUT", "/pmem/b", &b);
    assert!(message.contains("\"a\" is the root device"), "{message}");
    b["root_device"] = json!(false);
    b["rate_limiter"] = limiter.clone();
    vm.done("PUT", "/pmem/b", &b);
    let drive = json!({"drive_id": "c", "path_on_host": "a", "is_root_device": true});
    let message = vm.refused("PUT", "/drives/c", &drive);
    assert!(message.contains("\"a\" is the root device"), "{message}");
    for (path, part) in [("empty", "is empty"), ("none", "cannot open")] {
        let message = vm.refused("PUT", "/pmem/c", &json!({"id": "c", "path_on_host": path}));
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(vm.get("/vm/config")["pmem"], json!([a, b]));
    let patch = json!({"id": "a", "rate_limiter": limiter});
    let message = vm.refused("PATCH", "/pmem/a", &patch);
    assert!(message.contains("not started"), "{message}");
    vm.boot(&[print("x"), FOR_EVER.to_vec()].concat(), 1);
    vm.read_until("x");
    vm.done("PATCH", "/pmem/a", &patch);
    assert_eq!(vm.get("/vm/config")["pmem"][0]["rate_limiter"], limiter);
    let unknown = json!({"id": "c", "rate_limiter": limiter});
    let message = vm.refused("PATCH", "/pmem/c", &unknown);
    assert!(message.contains("no persistent memory \"c\""), "{message}");
    let message = vm.refused("PATCH", "/pmem/a", &json!({"id": "a"}));
    assert!(message.contains("changes nothing"), "{message}");
    let message = vm.refused("PUT", "/pmem/a", &a);
    assert!(message.contains("has started"), "{message}");
    let message = vm.refused("DELETE", "/pmem/a", &Value::Null);
    assert!(
        message.contains("removal of persistent memory"),
        "{message}"
    );
}

/// A guest with these flags.
fn guest_with(kernel: &Path, folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keeptime"));
    command
        .current_dir(folder)
        .args(["--level", "warning", "run", "--memory", "32", "--kernel"])
        .arg(kernel)
        .args(flags)
        .stdin(Stdio::null());
    command
}

#[test]
fn flush_waits_for_the_hosts_disk() {
    // Where a device's thread may not wait for a disk, the one that does ends the process.
    let mut rules = rules();
    let filter = rules["device"]["filter"].as_array_mut().expect("rules");
    filter.retain(|rule| rule["syscall"] != "fdatasync");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("rules"), rules.to_string()).expect("room");
    file(&folder.path().join("a"), b"", 2 * MIB);
    let mut guest = Guest::default();
    let mut queue = guest.begin(0, 0, 1);
    guest.print(".");
    flush(&mut guest, &mut queue[0]);
    let kernel = elf(&guest.code(&RESET));
    for (memory, status, console) in [("a", None, "."), ("a,readonly", Some(0), ".0")] {
        let flags = ["--pmem", memory, "--seccomp-filter", "rules"];
        let output = guest_with(kernel.path(), folder.path(), &flags).output();
        let output = output.expect("runs");
        assert_eq!(output.status.code(), status, "{memory}");
        let sigsys = output.status.signal() == Some(31);
        assert_eq!(sigsys, status.is_none(), "{memory}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), console);
    }
}

#[test]
fn limit_of_the_api_holds_flushes_back() {
    let mut guest = Guest::default();
    let mut queue = guest.begin(0, 0, 1);
    flush(&mut guest, &mut queue[0]);
    guest.offer(&mut queue[0], &[Part::Bytes(vec![0; 4]), Part::Room(4)]);
    guest.print(".");
    guest.used(&queue[0]);
    guest.print("!");
    let mut vm = Vm::start(&[]);
    file(&vm.path("a"), b"", 2 * MIB);
    // A flush in an hour.
    let limiter = json!({"ops": {"size": 1, "refill_time": 3_600_000}});
    let a = json!({"id": "a", "path_on_host": "a", "rate_limiter": limiter});
    vm.done("PUT", "/pmem/a", &a);
    vm.boot(&guest.code(&FOR_EVER), 1);
    vm.read_until("0.");
    let throttled = r#"keeptime_pmem_rate_limiter_throttled_events_total{id="a"}"#;
    while vm.metric(throttled) == 0 {
        std::thread::yield_now();
    }
    let none = json!({"id": "a", "rate_limiter": {"ops": {"size": 0, "refill_time": 0}}});
    vm.done("PATCH", "/pmem/a", &none);
    vm.read_until("!");
}

#[test]
fn file_that_is_cut_short_ends_its_guest_and_is_named() {
    let mut guest = Guest::default();
    guest.map(FIRST, SEEN);
    guest.print(".");
    guest.wait(SEEN, 1);
    guest.print("cut");
    guest.store(SEEN + 0x10_0000, 7);
    let folder = tempfile::tempdir().expect("a folder");
    let memory = file(&folder.path().join("memory"), b"", 2 * MIB);
    let kernel = elf(&guest.code(&RESET));
    let mut launcher = guest_with(kernel.path(), folder.path(), &["--pmem=memory"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut begun = [0];
    let console = launcher.stdout.as_mut().expect("a pipe");
    console.read_exact(&mut begun).expect("the guest runs");
    memory.set_len(0x1000).expect("a file");
    memory.write_all_at(&[1, 0], 0).expect("room");
    let output = launcher.wait_with_output().expect("our child");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "cut", "{told}");
    assert_eq!(output.status.code(), Some(2), "{told}");
    for part in [
        "the host could not provide",
        "pmem \"pmem0\": \"memory\" has 4096 bytes and had 2097152",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn flag_gives_memory_or_is_told_with_the_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, len) in [("a", 2 * MIB), ("odd", 1), ("empty", 0), ("huge", 1 << 40)] {
        file(&folder.path().join(name), b"", len);
    }
    let kernel = elf(&RESET);
    for (flags, part) in [
        (&["--pmem=a"][..], ""),
        (&["--pmem=a,readonly", "--pmem=a,root,readonly"], ""),
        (&["--pmem=odd"], "the guest sees 2097152 bytes"),
        (&["--pmem=odd,readonly"], ""),
        (&["--pmem=a", "--pmem=a"], "locked by another"),
        (&["--pmem=a", "--disk=a,readonly"], "locked by another"),
        (&["--pmem=empty"], "is empty"),
        (&["--pmem=none"], "check its path"),
        (&["--pmem=huge"], "have to end at 0x10000000000"),
        (&["--pmem=/dev/null"], "character device"),
        (&["--pmem=a,write"], "none of readonly and root"),
        (&["--pmem=,root"], "no path of a file"),
        (&["--pmem=a,root", "--pmem=odd,root"], "--pmem: root_device"),
        (&["--pmem=a,root", "--disk=odd,root"], "is the root device"),
    ] {
        let output = guest_with(kernel.path(), folder.path(), flags).output();
        let output = output.expect("runs");
        let told = String::from_utf8_lossy(&output.stderr);
        let works = part.is_empty() || part.starts_with("the guest sees");
        assert_eq!(output.status.success(), works, "{flags:?}: {told}");
        assert_eq!(told.is_empty(), part.is_empty(), "{flags:?}: {told}");
        assert!(told.contains(part), "{flags:?}: {told}");
    }
}
