//! What a running microVM's launcher keeps in memory.

mod support;

use std::time::{Duration, Instant};

use support::api::Vm;
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
