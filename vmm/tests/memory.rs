//! What a running microVM's launcher keeps in memory.

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;
use support::api::Vm;
use support::guest::Guest;
use support::{FOR_EVER, print};

/// KiB of the launcher's code that are mapped: of mappings that can be executed and are its file's.
fn code(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps")).expect("our child");
    let mut counts = false;
    let mut sum = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // address perms offset dev inode pathname: proc_pid_smaps(5)
            [_, flags, _, _, _, path] => {
                counts = flags.contains('x') && path == env!("CARGO_BIN_EXE_keeptime");
            }
            ["Rss:", value, "kB"] if counts => sum += value.parse::<u64>().expect("a number"),
            _ => {}
        }
    }
    sum
}

#[test]
fn code_that_only_the_start_needed_is_given_back() {
    let mut vm = Vm::start(&[]);
    let kernel: Vec<u8> = print("x").into_iter().chain(FOR_EVER).collect();
    vm.configure(&kernel, 1);
    let before = code(vm.child.id());
    // Answered when the start is over.
    vm.act("InstanceStart");
    let after = code(vm.child.id());
    // What the answer took has come back, and around each page its neighbours. Without the call it only grows.
    assert!(
        after < before / 8 * 7,
        "{before} KiB before the start, {after} KiB after it"
    );
    vm.read_until("x");
}

/// Waits until less than `limit` KiB of the code are mapped.
fn until_less(vm: &Vm, limit: u64) {
    let begin = Instant::now();
    while code(vm.child.id()) >= limit {
        assert!(begin.elapsed() < Duration::from_secs(60), "never");
        std::thread::yield_now();
    }
}

#[test]
fn code_of_requests_is_given_back_when_no_more_come() {
    let mut vm = Vm::start(&[]);
    let kernel: Vec<u8> = print("x").into_iter().chain(FOR_EVER).collect();
    vm.boot(&kernel, 1);
    let report = vm.get("/time");
    let degradations = report["degradations"].as_array().expect("a list");
    if degradations.iter().any(|told| told["name"] == "timekeeper") {
        return println!(
            "skipped here: on this host nobody watches a guest's time, nor looks at the code"
        );
    }
    // All kinds of answers.
    for path in ["/", "/vm/config", "/time", "/machine-config"] {
        vm.get(path);
    }
    let used = code(vm.child.id());
    until_less(&vm, used / 8 * 7);
    // It comes back when it is needed.
    vm.get("/time");
}

/// KiB that the launcher has for itself: neither its guest's memory nor a file's.
fn own(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).expect("our child");
    let value = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    value.expect("RssAnon").parse().expect("a number")
}

/// Waits until so many connections of the socket device have `been` added or removed.
fn until_counted(vm: &Vm, been: &str, count: usize) {
    let begin = Instant::now();
    let name = format!("keeptime_vsock_conns_{been}_total");
    while vm.metric(&name) != count as u64 {
        let waited = begin.elapsed();
        assert!(waited < Duration::from_secs(60), "never {been}: {count}");
        std::thread::yield_now();
    }
}

#[test]
fn connections_that_carry_nothing_keep_nothing() {
    const CONNECTIONS: usize = 64;
    let mut guest = Guest::default();
    // A socket device's driver, that gives it no buffers.
    guest.begin(0, 0, 3);
    guest.print("x");
    let mut vm = Vm::start(&[]);
    let path = vm.path("v");
    vm.done("PUT", "/vsock", &json!({"guest_cid": 3, "uds_path": path}));
    vm.boot(&guest.code(&FOR_EVER), 1);
    vm.read_until("x");
    let connect = || {
        let mut program = UnixStream::connect(&path).expect("listening");
        program.write_all(b"CONNECT 52\n").expect("room");
        program
    };
    let mut programs: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
    let mut added = CONNECTIONS;
    until_counted(&vm, "added", added);
    let before = own(vm.child.id());
    // Every other one ends, and another one takes its place: in turns of the even and the odd ones.
    for round in 0..6 {
        let mut place = 0;
        programs.retain(|_| {
            place += 1;
            place % 2 != round % 2
        });
        let ended = CONNECTIONS - programs.len();
        until_counted(&vm, "removed", added + ended - CONNECTIONS);
        programs.extend((0..ended).map(|_| connect()));
        added += ended;
        until_counted(&vm, "added", added);
    }
    let after = own(vm.child.id());
    // With 256 KiB each that are cleared when a connection begins, it would be 16 MiB.
    assert!(
        after < before + 512,
        "{before} KiB before connections came and went, {after} KiB after it"
    );
}
