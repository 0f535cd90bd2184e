//! The control plane on this machine's KVM, driven through its socket.

mod support;

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::api::{Vm, raw};
use support::{FOR_EVER, RESET, elf, print};

/// Code that writes to port 0x80, where nobody is, for ever: out 0x80, al; jmp back.
const BUSY: [u8; 4] = [0xe6, 0x80, 0xeb, 0xfc];

/// What counts the guest's writes to ports.
const WRITES: &str = "keeptime_vcpu_exit_io_out_total";

/// Waits until the guest has gone on.
fn goes_on(vm: &Vm) {
    let before = vm.metric(WRITES);
    while vm.metric(WRITES) == before {
        std::thread::yield_now();
    }
}

#[test]
fn guest_is_configured_started_and_read_back() {
    let mut vm = Vm::start(&[]);
    assert_eq!(
        vm.get("/"),
        json!({"app_name": "Keeptime", "id": "test-vm", "state": "Not started",
            "vmm_version": "1.16.0"})
    );
    assert_eq!(vm.get("/version"), json!({"firecracker_version": "1.16.0"}));
    let code = [print("by the API"), FOR_EVER.to_vec()].concat();
    vm.boot(&code, 2);
    vm.read_until("by the API");
    assert_eq!(vm.get("/")["state"], "Running");
    assert_eq!(vm.get("/machine-config")["vcpu_count"], 2);
    assert_eq!(vm.get("/vm/config")["machine-config"]["mem_size_mib"], 64);
    assert!(vm.get("/time")["guest"]["tsc_khz_in_force"].as_u64() > Some(1000));
    let again = json!({"action_type": "InstanceStart"});
    let message = vm.refused("PUT", "/actions", &again);
    assert!(message.contains("has started"), "{message}");
    vm.signal(Signal::TERM);
    let (status, _) = vm.wait();
    assert_eq!(status.code(), Some(143));
}

#[test]
fn guest_that_ends_by_itself_ends_the_process_and_its_socket() {
    let mut vm = Vm::start(&[]);
    vm.boot(&[print("bye"), RESET.to_vec()].concat(), 1);
    let (status, _) = vm.wait();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn signal_before_the_start_ends_the_process_and_its_socket() {
    for signal in [Signal::INT, Signal::TERM] {
        let vm = Vm::start(&[]);
        vm.signal(signal);
        let (status, _) = vm.wait();
        assert_eq!(status.code(), Some(128 + signal.as_raw()));
        assert_eq!(status.signal(), None);
    }
}

#[test]
fn paused_guest_stands_still_until_it_is_resumed() {
    let mut vm = Vm::start(&[]);
    // The processors beyond the first wait for a start-up interrupt, and must be paused all the same.
    vm.boot(&BUSY, 4);
    goes_on(&vm);
    vm.state("Paused");
    assert_eq!(vm.get("/")["state"], "Paused");
    let before = vm.metric(WRITES);
    for _ in 0..100 {
        assert_eq!(vm.metric(WRITES), before);
    }
    vm.state("Resumed");
    goes_on(&vm);
    assert_eq!(vm.get("/")["state"], "Running");
}

#[test]
fn many_pauses_lose_no_kick() {
    let mut vm = Vm::start(&[]);
    vm.boot(&BUSY, 3);
    for _ in 0..300 {
        vm.state("Paused");
        let before = vm.metric(WRITES);
        assert_eq!(vm.metric(WRITES), before);
        vm.state("Resumed");
    }
    goes_on(&vm);
    vm.signal(Signal::INT);
    let (status, _) = vm.wait();
    assert_eq!(status.code(), Some(130));
}

#[test]
fn paused_microvm_can_be_ended() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut vm = Vm::start(&[]);
        vm.boot(&BUSY, 2);
        vm.state("Paused");
        vm.signal(signal);
        let (status, _) = vm.wait();
        assert_eq!(status.code(), Some(128 + signal.as_raw()));
    }
}

#[test]
fn guest_whose_console_nobody_reads_can_be_paused_and_ended() {
    let mut vm = Vm::start(&[]);
    // mov dx, 0x3f8; out dx, al; jmp back: fills the pipe, then blocks.
    vm.boot(&[0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd], 1);
    // A pipe holds 65,536 bytes (pipe(7)).
    while vm.metric(WRITES) < 65_536 {
        std::thread::yield_now();
    }
    vm.state("Paused");
    vm.state("Resumed");
    vm.state("Paused");
    vm.state("Resumed");
    vm.signal(Signal::TERM);
    let (status, _) = vm.wait();
    assert_eq!(status.code(), Some(143));
}

#[test]
fn ctrl_alt_del_reaches_the_guest() {
    // Waits for Delete's scan code, 0x53 in set 1: in al, 0x64; test al, 1; jz back; in al, 0x60;
    // cmp al, 0x53; jne back; then resets.
    let keys = [
        0xe4, 0x64, 0xa8, 0x01, 0x74, 0xfa, 0xe4, 0x60, 0x3c, 0x53, 0x75, 0xf4,
    ];
    let code = [print("listening"), keys.to_vec(), RESET.to_vec()].concat();
    let mut vm = Vm::start(&[]);
    vm.boot(&code, 1);
    vm.read_until("listening");
    vm.act("SendCtrlAltDel");
    let (status, _) = vm.wait();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn start_that_fails_can_be_tried_again() {
    let mut vm = Vm::start(&[]);
    let text = vm.path("text");
    std::fs::write(&text, "no kernel").expect("a file");
    vm.done("PUT", "/boot-source", &json!({"kernel_image_path": text}));
    let start = json!({"action_type": "InstanceStart"});
    let message = vm.refused("PUT", "/actions", &start);
    assert!(message.contains("text"), "{message}");
    assert_eq!(vm.get("/")["state"], "Not started");
    vm.boot(&[print("now"), RESET.to_vec()].concat(), 1);
    vm.read_until("now");
}

#[test]
fn configuration_file_starts_the_guest_and_the_api_serves() {
    let guest = elf(&[print("from a file"), FOR_EVER.to_vec()].concat());
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({
        "boot-source": {"kernel_image_path": guest.path()},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 32},
        "logger": {"log_path": "log", "level": "Debug", "show_level": true},
        "metrics": {"metrics_path": "metrics"},
    });
    std::fs::write(folder.path().join("vm.json"), config.to_string()).expect("a file");
    let arguments = ["--config-file", "vm.json"];
    let mut vm = Vm::start_in(folder, &arguments, Stdio::piped());
    vm.read_until("from a file");
    assert_eq!(vm.get("/")["state"], "Running");
    assert_eq!(vm.get("/vm/config")["metrics"]["metrics_path"], "metrics");
    vm.state("Paused");
    let log = std::fs::read_to_string(vm.path("log")).expect("a log");
    assert!(
        log.contains("[test-vm:main:INFO] the microVM is paused"),
        "{log}"
    );
}

#[test]
fn configuration_file_that_cannot_be_obeyed_ends_the_process_while_clients_ask() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({"boot-source": {"kernel_image_path": "missing"}});
    std::fs::write(folder.path().join("vm.json"), config.to_string()).expect("a file");
    let socket = folder.path().join("socket");
    let mut child = Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .current_dir(folder.path())
        .args(["--api-sock", "socket", "--config-file", "vm.json"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the launcher runs");
    // A client that gets in while it lasts must not keep it from ending.
    while child.try_wait().expect("our child").is_none() {
        if let Ok(mut client) = std::os::unix::net::UnixStream::connect(&socket) {
            // Taken or not, answered or not.
            let _ = client.write_all(b"GET / HTTP/1.1\r\n\r\n");
            let _ = client.read(&mut [0; 64]);
        }
    }
    let output = child.wait_with_output().expect("our child");
    let told = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("missing"), "{told}");
    assert!(!socket.exists());
}

#[test]
fn metrics_are_written_when_asked_and_at_the_end() {
    let mut vm = Vm::start(&["--metrics-path", "metrics", "--start-time-us", "0"]);
    vm.boot(&[print("xyz"), FOR_EVER.to_vec()].concat(), 1);
    vm.read_until("xyz");
    // What was read may not have been counted yet; a vCPU that stands still has counted everything.
    vm.state("Paused");
    vm.act("FlushMetrics");
    let lines = |path| {
        let text = std::fs::read_to_string(path).expect("metrics");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        lines
    };
    let first = lines(vm.path("metrics"));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0]["uart"]["write_count"], 3);
    assert_eq!(first[0]["vcpu"]["exit_io_out"], 3);
    assert_eq!(first[0]["put_api_requests"]["boot_source_count"], 1);
    assert!(first[0]["api_server"]["process_startup_time_us"].as_u64() > Some(0));
    vm.refused("PUT", "/metrics", &json!({"metrics_path": "other"}));
    vm.signal(Signal::TERM);
    let (_, folder) = vm.wait();
    let last = lines(folder.path().join("metrics"));
    assert_eq!(last.len(), 2);
    assert_eq!(last[1]["uart"]["write_count"], 0);
    assert_eq!(last[1]["put_api_requests"]["metrics_fails"], 1);
}

#[test]
fn guest_cannot_fill_the_log() {
    // mov eax, 0xc0000000; mov ecx, 5000; mov byte [rax], 123; dec ecx; jnz back; then resets.
    let mut code = vec![0xb8, 0, 0, 0, 0xc0, 0xb9, 0x88, 0x13, 0, 0];
    code.extend([0xc6, 0x00, 123, 0xff, 0xc9, 0x75, 0xf9]);
    code.extend(RESET);
    let mut vm = Vm::start(&["--boot-timer", "--log-path", "log"]);
    vm.boot(&code, 1);
    let (status, folder) = vm.wait();
    assert_eq!(status.code(), Some(0));
    let log = std::fs::read_to_string(folder.path().join("log")).expect("a log");
    let seen = log.matches("Guest-boot-time = ").count();
    // A burst of ten, and two more for each second that it took.
    assert!((10..40).contains(&seen), "{seen} lines");
}

#[test]
fn log_pipe_that_nobody_reads_blocks_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("log");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a pipe");
    let arguments = ["--log-path", "log", "--level", "Debug"];
    let vm = Vm::start_in(folder, &arguments, Stdio::piped());
    // Each request is a line, and a pipe holds 65,536 bytes.
    let missed = "keeptime_logger_missed_log_count_total";
    let mut requests = 0;
    while vm.metric(missed) == 0 {
        requests += 1;
        assert!(requests < 65_536, "no line is ever missed");
    }
    assert_eq!(vm.get("/")["state"], "Not started");
}

#[test]
fn metadata_file_is_the_first_content_of_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("data"), r#"{"a":{"b":1}}"#).expect("a file");
    let arguments = ["--metadata", "data", "--mmds-size-limit", "20"];
    let vm = Vm::start_in(folder, &arguments, Stdio::piped());
    assert_eq!(vm.get("/mmds"), json!({"a": {"b": 1}}));
    vm.done("PATCH", "/mmds", &json!({"a": null, "c": [2]}));
    assert_eq!(vm.get("/mmds"), json!({"c": [2]}));
    for method in ["PUT", "PATCH"] {
        let (status, fault) = vm.send(method, "/mmds", &json!({"a": "x".repeat(20)}));
        assert_eq!(status, 413);
        let message = fault["fault_message"].as_str().expect("a text");
        assert!(message.contains("20 are the limit"), "{message}");
    }
    assert_eq!(vm.get("/mmds"), json!({"c": [2]}));
}

/// Opening it for reading would wait for somebody who writes it.
#[test]
fn kernel_that_is_a_pipe_is_refused_at_once() {
    let vm = Vm::start(&[]);
    let pipe = vm.path("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a pipe");
    let message = vm.refused("PUT", "/boot-source", &json!({"kernel_image_path": pipe}));
    assert!(message.contains("device or pipe"), "{message}");
}

/// As a shell does to whom it starts in the background: a key for those in front of it ends nobody else.
#[test]
fn signal_that_was_ignored_at_the_start_stays_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let launcher = env!("CARGO_BIN_EXE_keeptime");
    let script = format!("trap '' INT QUIT HUP; exec {launcher} --api-sock socket");
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("a shell");
    let socket = folder.path().join("socket");
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert_eq!(child.try_wait().expect("our child"), None);
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("mounted");
    rustix::process::kill_process(pid, Signal::TERM).expect("it lives");
    let ended = child.wait().expect("our child");
    assert_eq!(ended.code(), Some(128 + libc::SIGTERM), "{ended:?}");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.expect("proc_pid_status(5)").trim(), 16);
    // The signals 1 to 3.
    assert_eq!(ignored.expect("hexadecimal") & 0b111, 0b111, "{status}");
}

/// A limit on files that is smaller than the guest, and a standard error that takes nothing.
#[test]
fn limit_and_standard_error_of_whoever_starts_it_are_borne() {
    let folder = tempfile::tempdir().expect("a folder");
    // UD2 without an IDT: a triple fault.
    let kernel = support::elf(&[0x0f, 0x0b]);
    let config = json!({
        "boot-source": {"kernel_image_path": kernel.path()},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
    });
    std::fs::write(folder.path().join("vm.json"), config.to_string()).expect("a file");
    let run = |setting: &str, arguments: &str| {
        let launcher = env!("CARGO_BIN_EXE_keeptime");
        let script =
            format!("{setting}; exec {launcher} --no-api --config-file vm.json {arguments}");
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(folder.path())
            .output();
        let output = output.expect("a shell");
        (
            output.status,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    // In blocks of 512 bytes: 1 MiB.
    let (status, told) = run("ulimit -f 2048", "");
    assert_eq!(status.code(), Some(1), "{status:?}: {told}");
    assert!(
        told.contains("RLIMIT_FSIZE") && told.contains("64 MiB"),
        "{told}"
    );
    // A socket that is not used is no error, and a standard error that takes nothing changes no status.
    let (open, _) = run(":", "--api-sock unused");
    let (closed, _) = run(":", "--api-sock unused 2>/dev/full");
    assert_eq!((open.code(), closed.code()), (Some(0), Some(0)));
    let (refused, told) = run("ulimit -f 2048", "2>/dev/full");
    assert_eq!((refused.code(), told.as_str()), (Some(1), ""));
}

#[test]
fn absent_devices_are_refused_by_name() {
    let vm = Vm::start(&[]);
    for (method, path, body, part) in [
        (
            "DELETE",
            "/network-interfaces/eth0",
            Value::Null,
            "removal of network interfaces",
        ),
        (
            "PUT",
            "/snapshot/create",
            json!({"snapshot_path": "s", "mem_file_path": "m"}),
            "snapshots",
        ),
        ("DELETE", "/drives/rootfs", Value::Null, "removal of drives"),
        ("GET", "/nothing", Value::Null, "/nothing"),
    ] {
        let message = vm.refused(method, path, &body);
        assert!(message.contains(part), "{path}: {message}");
    }
}

#[test]
fn ctl_speaks_to_people() {
    let mut vm = Vm::start(&[]);
    vm.configure(&FOR_EVER, 1);
    let ctl = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .args(["ctl", "--api-sock"])
            .arg(vm.socket())
            .args(arguments)
            .output()
            .expect("the client runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (status, _, told) = ctl(&["pause"]);
    assert_eq!(status, Some(1));
    assert!(
        told.contains("PATCH /vm: the microVM has not started"),
        "{told}"
    );
    let (status, _, told) = ctl(&["put", "/actions", r#"{"action_type":"InstanceStart"}"#]);
    assert_eq!((status, told.as_str()), (Some(0), ""));
    assert_eq!(ctl(&["pause"]).0, Some(0));
    let (_, text, _) = ctl(&["status"]);
    let row = |name: &str| {
        let rows = text.lines().map(str::split_whitespace);
        rows.map(Iterator::collect::<Vec<_>>)
            .find_map(|words| (words.first() == Some(&name)).then(|| words[1].to_owned()))
    };
    assert_eq!(row("state").as_deref(), Some("Paused"), "{text}");
    assert_eq!(row("machine-config.vcpu_count").as_deref(), Some("1"));
    assert_eq!(ctl(&["resume"]).0, Some(0));
    assert!(ctl(&["time"]).1.contains("policy"));
    assert!(ctl(&["metrics"]).1.contains(WRITES));
    assert!(ctl(&["get", "/version"]).1.contains("firecracker_version"));
    let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .args(["ctl", "--api-sock", "/nowhere/socket", "status"])
        .output()
        .expect("the client runs");
    let told = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told.starts_with("keeptime: there is no API socket"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1);
}

#[test]
fn under_the_name_firecracker_the_program_answers_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("firecracker");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_keeptime"), &link).expect("a link");
    let version = |program: &std::path::Path| {
        let output = Command::new(program).arg("--version").output();
        String::from_utf8(output.expect("it runs").stdout).expect("text")
    };
    assert_eq!(version(&link).lines().next(), Some("Firecracker v1.16.0"));
    let own = version(std::path::Path::new(env!("CARGO_BIN_EXE_keeptime")));
    assert!(own.starts_with("keeptime "), "{own}");
}

#[test]
fn socket_that_exists_is_refused_and_left_alone() {
    let vm = Vm::start(&[]);
    let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .arg("--api-sock")
        .arg(vm.socket())
        .output()
        .expect("the launcher runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(raw(&vm.socket(), "GET", "/", &Value::Null).0, 200);
}

/// What doctor saw become of a rate, whatever the host is, is what a guest gets of it.
#[test]
fn rate_of_the_tsc_is_had_where_a_guest_was_seen_to_have_it() {
    let doctor = Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .args(["doctor", "--json"])
        .output()
        .expect("the program runs");
    let report: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let host = report["effects"]["host_rate_khz"].as_u64().expect("a rate");
    let rates = report["effects"]["rates"].as_array().expect("rates");
    let effect = |name| {
        let mut rates = rates.iter();
        let rate = rates.find(|rate| rate["name"] == name).expect(name);
        rate["effect"].as_str().expect("a word")
    };
    for (name, tenths) in [("half the host's", 5), ("1.7 times the host's", 17)] {
        let asked = host * tenths / 10;
        let mut vm = Vm::start(&[]);
        vm.configure(&[print("at its rate"), FOR_EVER.to_vec()].concat(), 2);
        let rate = json!({"tsc_khz": asked, "allow_tsc_catchup": true});
        vm.done("PATCH", "/machine-config", &rate);
        assert_eq!(vm.get("/machine-config")["tsc_khz"], asked);
        let start = json!({"action_type": "InstanceStart"});
        let wanted = match effect(name) {
            "refused" | "ignored" => {
                let message = vm.refused("PUT", "/actions", &start);
                assert!(message.contains(&format!("{asked} kHz")), "{message}");
                assert!(message.contains("the host cannot scale"), "{message}");
                // What has no effect is not blamed on a refusal of KVM's.
                let without_effect = effect(name) == "ignored";
                assert_eq!(message.contains("without an effect"), without_effect);
                // A whole configuration that names no rate has the host's.
                let plain = json!({"vcpu_count": 2, "mem_size_mib": 64});
                vm.done("PUT", "/machine-config", &plain);
                "host's rate"
            }
            "in-force" => "scaled",
            "caught-up" => "catch-up",
            other => {
                println!("skipped here: what becomes of {name} here is {other}");
                continue;
            }
        };
        vm.done("PUT", "/actions", &start);
        vm.read_until("at its rate");
        let guest = vm.get("/time")["guest"].clone();
        assert_eq!(guest["how"], wanted);
        let in_force = if wanted == "host's rate" { host } else { asked };
        assert_eq!(guest["tsc_khz_in_force"], in_force);
        vm.signal(Signal::TERM);
        vm.wait();
    }
}
