//! The memory balloon of a guest that has no driver for it: what clients may ask, and what they are told.

mod support;

use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;
use support::api::Vm;
use support::{FOR_EVER, RESET, elf, print};

#[test]
fn balloon_is_changed_while_the_guest_runs_or_is_paused() {
    let mut vm = Vm::start(&[]);
    let body = json!({
        "amount_mib": 16, "deflate_on_oom": true, "stats_polling_interval_s": 1,
        "free_page_reporting": true,
    });
    vm.done("PUT", "/balloon", &body);
    let code: Vec<u8> = print("x").into_iter().chain(FOR_EVER).collect();
    vm.boot(&code, 1);
    vm.read_until("x");
    vm.done("PATCH", "/balloon", &json!({"amount_mib": 64}));
    let message = vm.refused("PATCH", "/balloon", &json!({"amount_mib": 65}));
    assert!(message.contains("more than the 64 MiB"), "{message}");
    vm.state("Paused");
    vm.done("PATCH", "/balloon", &json!({"amount_mib": 3}));
    let every = json!({"stats_polling_interval_s": 60});
    vm.done("PATCH", "/balloon/statistics", &every);
    // Nobody was there to tell anything.
    let told = json!({"target_pages": 768, "target_mib": 3, "actual_pages": 0, "actual_mib": 0});
    assert_eq!(vm.get("/balloon/statistics"), told);
    vm.state("Resumed");
    let shown = json!({
        "amount_mib": 3, "deflate_on_oom": true, "stats_polling_interval_s": 60,
        "free_page_hinting": false, "free_page_reporting": true,
    });
    assert_eq!(vm.get("/balloon"), shown);
    assert_eq!(vm.get("/vm/config")["balloon"], shown);
    assert_eq!(vm.metric("keeptime_balloon_inflate_count_total"), 0);
    vm.signal(Signal::TERM);
    let (status, _) = vm.wait();
    assert_eq!(status.code(), Some(143));
}

#[test]
fn balloon_of_a_configuration_file_is_there_from_the_start() {
    let guest = elf(&[print("x"), FOR_EVER.to_vec()].concat());
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({
        "boot-source": {"kernel_image_path": guest.path()},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 32},
        "balloon": {"amount_mib": 32, "deflate_on_oom": false},
    });
    std::fs::write(folder.path().join("vm.json"), config.to_string()).expect("a file");
    let mut vm = Vm::start_in(folder, &["--config-file", "vm.json"], Stdio::piped());
    vm.read_until("x");
    assert_eq!(vm.get("/balloon")["amount_mib"], 32);
    let message = vm.refused("GET", "/balloon/statistics", &serde_json::Value::Null);
    assert!(message.contains("statistics are off"), "{message}");
}

#[test]
fn flag_gives_a_balloon_or_is_told_with_the_cure() {
    let guest = elf(&RESET);
    for (balloon, part) in [
        ("32", ""),
        ("0,reporting", ""),
        ("1,deflate-on-oom,reporting", ""),
        ("33", "more than the 32 MiB"),
        ("-1", "\"-1\" is not a number of MiB"),
        ("", "\"\" is not a number of MiB"),
        ("1,", "\"\" is none of deflate-on-oom and reporting"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .args([
                "run",
                "--memory",
                "32",
                &format!("--balloon={balloon}"),
                "--kernel",
            ])
            .arg(guest.path())
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.success(),
            part.is_empty(),
            "{balloon}: {told}"
        );
        assert!(told.contains(part), "{balloon}: {told}");
    }
}
