//! What is told of a guest's time while it runs, on this machine's KVM.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::api::Vm;

/// Code that writes to port 0x80, where nobody is, for ever: out 0x80, al; jmp back.
const BUSY: [u8; 4] = [0xe6, 0x80, 0xeb, 0xfc];

/// The report, once it is as wanted.
fn report_when(vm: &Vm, wanted: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let report = vm.get("/time");
        if wanted(&report) {
            return report;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{report}");
        std::thread::yield_now();
    }
}

/// Waits until the kernel has stopped the launcher's first thread (proc_pid_stat(5)).
fn until_stopped(vm: &Vm) {
    let path = format!("/proc/{}/stat", vm.child.id());
    loop {
        let stat = std::fs::read_to_string(&path).expect("our child");
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        if state == Some('T') {
            return;
        }
        std::thread::yield_now();
    }
}

fn each_vcpu(report: &Value, holds: impl Fn(&Value) -> bool) -> bool {
    let vcpus = report["vcpus"].as_array().expect("a list");
    !vcpus.is_empty() && vcpus.iter().all(holds)
}

#[test]
fn each_vcpu_is_looked_at_whether_it_leaves_the_guest_or_not() {
    let mut vm = Vm::start(&[]);
    // The second one waits for a start-up interrupt.
    vm.boot(&BUSY, 2);
    let report = report_when(&vm, |report| {
        each_vcpu(report, |vcpu| vcpu["looks"].as_u64() > Some(3))
    });
    if report["host"]["clocksource"] != "tsc" {
        // KVM moves offsets by itself where the TSC is not trusted.
        return println!(
            "skipped here: the error of each vCPU: this host does not keep time by its TSC"
        );
    }
    for vcpu in report["vcpus"].as_array().expect("a list") {
        let (least, most) = (&vcpu["error_at_least_ns"], &vcpu["error_at_most_ns"]);
        assert!(
            least.as_i64() <= Some(0) && most.as_i64() >= Some(0),
            "{vcpu}"
        );
        for zero in [
            "leaps",
            "lags",
            "failed_looks",
            "contradicted_looks",
            "offset_moves",
            "backwards_steps",
        ] {
            assert_eq!(vcpu[zero], 0, "{zero}: {vcpu}");
        }
    }
    assert_eq!(report["events"]["count"], 0, "{report}");
    let error = &report["guest"]["error"];
    assert_eq!(error["largest_ns"], 0, "{error}");
    let master_clock = &report["guest"]["master_clock"];
    assert!(master_clock.is_boolean() || master_clock.is_null());
    for mark in report["marks"].as_array().expect("a list") {
        assert_eq!(mark["reason"], "not_invariant", "{mark}");
    }
}

#[test]
fn stop_by_a_signal_is_told_with_its_length_and_the_clocks_go_on() {
    let mut vm = Vm::start(&[]);
    vm.boot(&BUSY, 1);
    report_when(&vm, |report| {
        each_vcpu(report, |vcpu| vcpu["looks"].as_u64() > Some(1))
    });
    let longest = Instant::now();
    vm.signal(Signal::STOP);
    until_stopped(&vm);
    let shortest = Instant::now();
    // The length of the stop is what is measured.
    std::thread::sleep(Duration::from_secs(3));
    let shortest = shortest.elapsed();
    vm.signal(Signal::CONT);
    let report = report_when(&vm, |report| report["events"]["count"].as_u64() > Some(0));
    let longest = longest.elapsed();
    let stop = &report["events"]["latest"][0];
    assert_eq!(stop["what"], "unplanned_stop", "{report}");
    assert_eq!(stop["by_signal"], json!(true), "{stop}");
    let nanos = |bound: &str| Duration::from_nanos(stop[bound].as_u64().expect("nanoseconds"));
    assert!(nanos("at_most_ns") >= shortest, "{stop} {shortest:?}");
    assert!(nanos("at_least_ns") <= longest, "{stop} {longest:?}");
    // Nothing was taken from the guest, and nothing given.
    let looks = report["vcpus"][0]["looks"].as_u64();
    let report = report_when(&vm, |report| {
        each_vcpu(report, |vcpu| vcpu["looks"].as_u64() > looks)
    });
    assert!(
        each_vcpu(&report, |vcpu| vcpu["leaps"] == 0 && vcpu["lags"] == 0),
        "{report}"
    );
}

/// The names of a process's threads, once each vCPU's has taken its own: a new thread bears the
/// name of the one that made it until it runs.
fn threads_when_named(vm: &Vm, vcpus: usize) -> Vec<String> {
    let folder = format!("/proc/{}/task", vm.child.id());
    let begin = Instant::now();
    loop {
        let threads = std::fs::read_dir(&folder).expect("our child");
        let names = threads.map(|thread| {
            let path = thread.expect("readable").path().join("comm");
            let name = std::fs::read_to_string(path).unwrap_or_default();
            name.trim().to_owned()
        });
        let names: Vec<String> = names.collect();
        if names.iter().filter(|name| name.starts_with("vcpu")).count() == vcpus {
            return names;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{names:?}");
        std::thread::yield_now();
    }
}

fn degradation(report: &Value, name: &str) -> Option<String> {
    let all = report["degradations"].as_array().expect("a list");
    let found = all.iter().find(|degradation| degradation["name"] == name)?;
    Some(found["consequence"].as_str().expect("text").to_owned())
}

#[test]
fn without_a_timekeeper_nothing_is_watched_and_that_is_told() {
    let mut vm = Vm::start(&["--log-path", "log", "--test-without-timekeeper"]);
    vm.boot(&BUSY, 1);
    let report = vm.get("/time");
    assert_eq!(report["vcpus"][0]["looks"], 0, "{report}");
    assert_eq!(report["placement"]["mode"], "off", "{report}");
    let told = degradation(&report, "timekeeper").expect("told");
    assert!(told.contains("--test-without-timekeeper"), "{told}");
    let log = std::fs::read_to_string(vm.path("log")).expect("a log");
    assert!(log.contains(&told), "{log}");
    let names = threads_when_named(&vm, 1);
    assert!(!names.contains(&"time".to_owned()), "{names:?}");
}

#[test]
fn guest_with_a_timekeeper_is_not_told_to_be_without() {
    let mut vm = Vm::start(&[]);
    vm.boot(&BUSY, 1);
    let report = vm.get("/time");
    if degradation(&report, "timekeeper").is_none() {
        assert!(threads_when_named(&vm, 1).contains(&"time".to_owned()));
    } else {
        println!("skipped here: this host tells neither its TSC's rate nor whose TSC is read");
    }
}

#[test]
fn freeze_is_taken_only_where_a_guest_was_seen_to_follow() {
    let mut vm = Vm::start(&[]);
    vm.boot(&BUSY, 1);
    let (status, body) = vm.send("PUT", "/time", &json!({"policy": "freeze"}));
    if status == 204 {
        assert_eq!(vm.get("/time")["policy"], "freeze");
    } else {
        let message = body["fault_message"].as_str().expect("a reason");
        assert_eq!(status, 400, "{message}");
        assert!(message.contains("offsets"), "{message}");
        assert_eq!(vm.get("/time")["policy"], "advance");
    }
}

#[test]
fn life_of_the_clock_is_kept_and_drawn() {
    let mut vm = Vm::start(&[]);
    let draw = |vm: &Vm| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .args(["ctl", "time", "--api-sock"])
            .arg(vm.socket())
            .arg("--plot")
            .arg(vm.path("time.svg"))
            .output()
            .expect("runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (status, _, told) = draw(&vm);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("nothing to draw"), "{told}");
    vm.boot(&BUSY, 2);
    let report = report_when(&vm, |report| {
        report["error_history"]
            .as_array()
            .is_some_and(|all| all.len() > 2)
            || degradation(report, "timekeeper").is_some()
    });
    if degradation(&report, "timekeeper").is_some() {
        return println!(
            "skipped here: this host tells neither its TSC's rate nor whose TSC is read"
        );
    }
    for pair in report["error_history"]
        .as_array()
        .expect("a list")
        .windows(2)
    {
        assert!(
            pair[0]["to_ns"].as_u64() < pair[1]["from_ns"].as_u64(),
            "{report}"
        );
    }
    let (status, lines, told) = draw(&vm);
    assert_eq!(status, Some(0), "{told}");
    assert!(lines.contains("guest.error.largest_ns") && !lines.contains("error_history"));
    let picture = std::fs::read_to_string(vm.path("time.svg")).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
}

#[test]
fn metrics_tell_of_time() {
    let mut vm = Vm::start(&[]);
    vm.boot(&BUSY, 2);
    report_when(&vm, |report| {
        each_vcpu(report, |vcpu| vcpu["looks"].as_u64() > Some(1))
    });
    assert!(vm.metric("keeptime_time_looks_total") >= 4);
    for zero in [
        "restarts",
        "catch_ups",
        "backwards_steps_prevented",
        "given_back_ns",
    ] {
        assert_eq!(
            vm.metric(&format!("keeptime_time_{zero}_total")),
            0,
            "{zero}"
        );
    }
    vm.metric("keeptime_time_kernel_compensations_total");
    let age = vm.metric("keeptime_time_report_age_ns");
    assert!(age < 60_000_000_000, "{age}");
}
