//! Where vCPU threads run, on this machine's KVM and its CPUs, as the kernel and the report tell.

mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity};
use serde_json::{Value, json};
use support::api::Vm;
use support::{FOR_EVER, elf};

/// The CPUs that this process may run on.
fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("told");
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// `Cpus_allowed_list` of each thread with such a name (proc_pid_status(5)).
fn affinities(vm: &Vm, name: &str) -> Vec<String> {
    let folder = format!("/proc/{}/task", vm.child.id());
    let mut found = Vec::new();
    for task in fs::read_dir(folder).expect("our child") {
        let path = task.expect("our child").path().join("status");
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(path) else {
            continue;
        };
        let field = |key: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
        };
        if field("Name:").is_some_and(|found| found.starts_with(name)) {
            found.push(field("Cpus_allowed_list:").expect("told"));
        }
    }
    found
}

/// That of the first thread.
fn of_main(vm: &Vm) -> String {
    let status = format!("/proc/{}/status", vm.child.id());
    let status = fs::read_to_string(status).expect("our child");
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.expect("told").trim().to_owned()
}

/// The report, once nothing is being measured any more and the threads run.
fn settled(vm: &Vm) -> Value {
    let begin = Instant::now();
    loop {
        let report = vm.get("/time");
        let vcpus = report["placement"]["vcpus"].as_array().expect("a list");
        let run = vcpus.iter().all(|cpus| !cpus.is_null());
        if run && report["host"]["skew"]["known_by"] != "pending" {
            return report;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{report}");
        std::thread::yield_now();
    }
}

#[test]
fn threads_of_a_list_run_on_exactly_these_cpus_and_the_others_do_not() {
    let allowed = allowed();
    let last = *allowed.last().expect("one at least");
    let mut vm = Vm::start(&["--tsc-domain", &last.to_string()]);
    let main = of_main(&vm);
    vm.boot(&FOR_EVER, 2);
    let report = settled(&vm);
    assert_eq!(
        affinities(&vm, "vcpu"),
        [last.to_string(), last.to_string()]
    );
    let placement = &report["placement"];
    assert_eq!(placement["mode"], json!(last.to_string()));
    assert_eq!(placement["cpus"], json!([last]));
    assert_eq!(placement["vcpus"], json!([[last], [last]]));
    // Two vCPUs on one CPU.
    let told = report["degradations"].to_string();
    assert!(told.contains("share the 1 CPU(s)"), "{told}");
    // Who made the machine, and who watches it, is where it was.
    assert_eq!(of_main(&vm), main);
    for thread in affinities(&vm, "time")
        .iter()
        .chain(&affinities(&vm, "api"))
    {
        assert_eq!(thread, &main);
    }
}

#[test]
fn threads_of_auto_run_where_the_report_says() {
    let mut vm = Vm::start(&[]);
    let main = of_main(&vm);
    vm.boot(&FOR_EVER, 1);
    let report = settled(&vm);
    let skew = &report["host"]["skew"];
    assert_eq!(report["placement"]["mode"], "auto");
    assert_eq!(report["host"]["cpus"], json!(allowed()));
    let domains = skew["domains"].as_array().map_or(0, Vec::len);
    if skew["known_by"] == "assumption" || domains < 2 {
        assert_eq!(report["placement"]["cpus"], json!(allowed()), "{report}");
        assert_eq!(affinities(&vm, "vcpu"), [main]);
    } else {
        let domains = skew["domains"].as_array().expect("some");
        assert!(domains.contains(&report["placement"]["cpus"]), "{report}");
    }
    assert_eq!(skew["domain_bound_ns"], 1000);
}

#[test]
fn configuration_goes_before_the_flag_and_is_shown_only_when_there_is_one() {
    let vm = Vm::start(&[]);
    assert_eq!(vm.get("/machine-config")["tsc_domain"], Value::Null);
    assert_eq!(vm.get("/time")["placement"], Value::Null);
    drop(vm);
    let mut vm = Vm::start(&["--tsc-domain", "1023"]);
    assert_eq!(vm.get("/machine-config")["tsc_domain"], "1023");
    vm.configure(&FOR_EVER, 1);
    assert_eq!(vm.get("/machine-config")["tsc_domain"], "1023");
    let start = json!({"action_type": "InstanceStart"});
    if !allowed().contains(&1023) {
        let message = vm.refused("PUT", "/actions", &start);
        assert!(
            message.starts_with("tsc_domain 1023: CPU 1023 cannot be had"),
            "{message}"
        );
    }
    vm.done("PATCH", "/machine-config", &json!({"tsc_domain": "off"}));
    vm.act("InstanceStart");
    let report = settled(&vm);
    assert_eq!(report["placement"]["mode"], "off");
    assert_eq!(report["placement"]["cpus"], json!(allowed()));
}

#[test]
fn cpus_that_cannot_be_had_are_refused_in_one_line() {
    let kernel = elf(&FOR_EVER);
    // (what is given, what the message says); 1023 may be there on a very large host
    let absent = "this process may run on";
    let mut rows = vec![
        ("3-1", "no list of CPUs such as 0-3,8"),
        ("", "no list of CPUs"),
        ("0,x", "no list of CPUs"),
        ("1024", "below 1024"),
    ];
    if !allowed().contains(&1023) {
        rows.push(("1023", absent));
    }
    for (list, part) in rows {
        let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .args(["run", "--tsc-domain", list, "--kernel"])
            .arg(kernel.path())
            .stdin(Stdio::null())
            .output()
            .expect("the launcher runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{list}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(message.contains(part), "{list}: {message}");
    }
}
