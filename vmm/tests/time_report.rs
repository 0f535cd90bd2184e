//! The file of `--time-report`, on this machine's KVM.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::api::Vm;
use support::{FOR_EVER, RESET, elf, print};

fn keeptime(arguments: &[&str], report: &Path, kernel: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keeptime"));
    command
        .args(["run", "--time-report"])
        .arg(report)
        .args(arguments)
        .arg("--kernel")
        .arg(kernel)
        .stdin(Stdio::null());
    command
}

fn report(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a report");
    assert!(text.ends_with("}\n"), "{text}");
    serde_json::from_str(&text).expect("JSON")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn last_report_tells_how_the_guest_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.json");
    let reset = print("x").into_iter().chain(RESET).collect::<Vec<_>>();
    // mov eax, 0xd0000000; jmp rax: no memory there to take instructions from
    let fails = [0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0];
    // ud2 without anything to handle it
    let faults = [0x0f, 0x0b];
    for (code, status, words) in [
        (&reset[..], 0, "the guest reset itself"),
        (&fails, 2, "vCPU 0: "),
        (&faults, 0, "triple-faulted"),
    ] {
        let kernel = elf(code);
        let output = keeptime(&[], &path, kernel.path()).output().expect("runs");
        assert_eq!(output.status.code(), Some(status), "{}", errors(&output));
        let report = report(&path);
        let ended = report["ended"].as_str().expect("ended");
        assert!(ended.contains(words) && !ended.contains('\n'), "{ended}");
        assert_eq!(report["vcpus"].as_array().expect("a list").len(), 1);
        std::fs::remove_file(&path).expect("there");
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        0
    );
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn report_is_there_while_the_guest_runs_and_when_a_signal_ends_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.json");
    let kernel = elf(&FOR_EVER);
    for (signal, ends) in [(Signal::TERM, true), (Signal::KILL, false)] {
        let mut run = Killed(keeptime(&[], &path, kernel.path()).spawn().expect("runs"));
        until("a report", || path.exists());
        let first = report(&path);
        assert_eq!(first["ended"], Value::Null);
        until("a later report", || {
            report(&path)["at_ns"] != first["at_ns"]
        });
        kill_process(Pid::from_child(&run.0), signal).expect("our child");
        run.0.wait().expect("our child");
        let last = report(&path);
        assert_eq!(last["ended"] == Value::Null, !ends, "{last}");
        assert!(last["at_ns"].as_u64() > first["at_ns"].as_u64());
        std::fs::remove_file(&path).expect("there");
    }
}

#[test]
fn path_that_cannot_be_is_told_before_anything_is_looked_at() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in [
        folder.path().to_owned(),
        folder.path().join("none/report"),
        PathBuf::from("/dev/null"),
        PathBuf::from("/proc/report"),
    ] {
        let compatible = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .args(["--no-api", "--config-file", "/nonexistent", "--time-report"])
            .arg(&path)
            .output();
        let run = keeptime(&[], &path, Path::new("/nonexistent")).output();
        for output in [run, compatible] {
            let output = output.expect("runs");
            let told = errors(&output);
            assert_eq!(output.status.code(), Some(1), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
            let culprit = format!("{path:?}");
            assert!(
                told.contains("--time-report") && told.contains(&culprit),
                "{told}"
            );
        }
    }
}

#[test]
fn folder_that_goes_away_is_told_once_and_the_guest_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let below = folder.path().join("below");
    std::fs::create_dir(&below).expect("a folder");
    let mut vm = Vm::start(&[
        "--log-path",
        "log",
        "--time-report",
        below.join("r").to_str().expect("text"),
    ]);
    std::fs::remove_dir(&below).expect("empty");
    vm.boot(&FOR_EVER, 1);
    let log = vm.path("log");
    let told = || {
        let log = std::fs::read_to_string(&log).expect("a log");
        log.matches("the time report cannot be written").count()
    };
    until("a line", || told() > 0);
    // The next one can be written, and the one after it not.
    std::fs::create_dir(&below).expect("a folder");
    until("a report", || below.join("r").exists());
    std::fs::remove_dir_all(&below).expect("ours");
    vm.signal(Signal::TERM);
    let (status, folder) = vm.wait();
    assert_eq!(status.code(), Some(128 + 15));
    let log = std::fs::read_to_string(folder.path().join("log")).expect("a log");
    assert_eq!(
        log.matches("the time report cannot be written").count(),
        1,
        "{log}"
    );
}

#[test]
fn report_of_the_api_is_that_of_the_file_and_none_is_made_without_a_guest() {
    let mut vm = Vm::start(&["--time-report", "report.json"]);
    let path = vm.path("report.json");
    vm.boot(&FOR_EVER, 2);
    until("a report", || path.exists());
    let members = |report: &Value| -> Vec<String> {
        report
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(members(&report(&path)), members(&vm.get("/time")));
    vm.done("PUT", "/time", &json!({"policy": "advance"}));
    vm.signal(Signal::TERM);
    let (_, folder) = vm.wait();
    assert_eq!(
        report(&folder.path().join("report.json"))["ended"],
        "ended by signal 15"
    );
    let idle = Vm::start(&["--time-report", "report.json"]);
    idle.signal(Signal::TERM);
    let (_, folder) = idle.wait();
    assert!(!folder.path().join("report.json").exists());
}
