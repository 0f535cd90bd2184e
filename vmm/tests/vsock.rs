//! The socket device's socket: when it is there, when it cannot be, and who removes it.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::api::Vm;
use support::{FOR_EVER, RESET, elf, print};

/// Runs a guest that resets at once.
fn run(folder: &Path, vsock: &str) -> Output {
    let guest = elf(&RESET);
    Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .current_dir(folder)
        .args(["run", "--vsock", vsock, "--kernel"])
        .arg(guest.path())
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

#[test]
fn flag_that_cannot_be_obeyed_is_told_with_the_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    let _other = UnixListener::bind(folder.path().join("used")).expect("a socket");
    std::fs::write(folder.path().join("file"), "").expect("room");
    let long = format!("3,{}", "p".repeat(108));
    for (vsock, parts) in [
        ("3", ["\"3\" is not CID,PATH", "3,v.sock"]),
        ("x,v", ["\"x\"", "a guest's address"]),
        ("2,v", ["guest_cid is 2", "from 3 to 4294967294"]),
        ("4294967295,v", ["guest_cid is 4294967295", "from 3"]),
        ("3,", ["uds_path has 0 bytes", "1 to 107"]),
        (&long, ["uds_path has 108 bytes", "1 to 107"]),
        ("3,used", ["\"used\" exists already", "another path"]),
        ("3,file", ["\"file\" exists already", "remove it"]),
        ("3,none/v", ["\"none/v\"", "check its folder"]),
    ] {
        let output = run(folder.path(), vsock);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{vsock}: {told}");
        for part in parts {
            assert!(told.contains(part), "{vsock}: {told}");
        }
    }
    // Nobody's files are touched, and none is left.
    let mut names: Vec<_> = (std::fs::read_dir(folder.path()).expect("a folder"))
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["file", "used"]);
    for vsock in ["3,v", "4294967294,v"] {
        let output = run(folder.path(), vsock);
        assert!(output.status.success(), "{output:?}");
        assert!(!folder.path().join("v").exists());
    }
}

#[test]
fn socket_is_there_from_the_start_to_the_end_and_waits_for_a_driver() {
    let mut vm = Vm::start(&[]);
    let path = vm.path("v");
    let body = json!({"guest_cid": 3, "uds_path": path, "vsock_id": "old"});
    vm.done("PUT", "/vsock", &json!({"guest_cid": 9, "uds_path": "x"}));
    vm.done("PUT", "/vsock", &body);
    let shown = json!({"guest_cid": 3, "uds_path": path});
    assert_eq!(vm.get("/vm/config")["vsock"], shown);
    assert!(!path.exists());
    let code: Vec<u8> = print("x").into_iter().chain(FOR_EVER).collect();
    vm.boot(&code, 1);
    vm.read_until("x");
    let message = vm.refused("PUT", "/vsock", &body);
    assert!(message.contains("before the start only"), "{message}");
    // This guest has no driver, and a program that has patience is not refused.
    let mut program = UnixStream::connect(&path).expect("listening");
    program.write_all(b"CONNECT 52\n").expect("room");
    let patience = Some(Duration::from_millis(50));
    program.set_read_timeout(patience).expect("a socket");
    let answer = program.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::WouldBlock));
    vm.state("Paused");
    vm.state("Resumed");
    vm.signal(Signal::TERM);
    let (_, folder) = vm.wait();
    assert!(!folder.path().join("v").exists());
    // What it said was read by nobody, which some kernels tell it as an error.
    assert!(!matches!(program.read(&mut [0]), Ok(1)));
}

#[test]
fn body_that_cannot_be_obeyed_is_refused_and_changes_nothing() {
    let mut vm = Vm::start(&[]);
    std::fs::write(vm.path("file"), "").expect("room");
    for (cid, path, part) in [
        (json!(2), "v", "guest_cid is 2"),
        (json!(u32::MAX), "v", "guest_cid"),
        (json!(1_u64 << 32), "v", "guest_cid"),
        (json!("3"), "v", "guest_cid"),
        (json!(3), "", "uds_path has 0 bytes"),
        (json!(3), "file", "exists already"),
        (json!(3), "none/v", "check its folder"),
    ] {
        let body = json!({"guest_cid": cid, "uds_path": path});
        let message = vm.refused("PUT", "/vsock", &body);
        assert!(message.contains(part) || part == "guest_cid", "{message}");
        assert_eq!(vm.get("/vm/config")["vsock"], Value::Null);
    }
    // Taken by another between the request and the start.
    vm.done("PUT", "/vsock", &json!({"guest_cid": 3, "uds_path": "v"}));
    vm.configure(&RESET, 1);
    let _other = UnixListener::bind(vm.path("v")).expect("a socket");
    let start = json!({"action_type": "InstanceStart"});
    let message = vm.refused("PUT", "/actions", &start);
    assert!(message.contains("\"v\" exists already"), "{message}");
    std::fs::remove_file(vm.path("v")).expect("there");
    vm.act("InstanceStart");
    let (status, folder) = vm.wait();
    assert!(status.success() && !folder.path().join("v").exists());
}
