//! The seccomp filters: what each thread kind may not do, tried; and that each thread has its own.
#![expect(
    unsafe_code,
    reason = "children of a fork call the kernel as a guest that took a thread over would"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::api::Vm;
use support::rules::{allowed, rules};
use support::{FOR_EVER, RESET, elf, print};
use vmm::seccomp::{Action, Filters, Role, tell_panics_in_one_line};

/// System calls up to this number are tried; Linux 6.17 has them up to 469.
const LAST_CALL: i64 = 512;

/// `uretprobe` and `uprobe`.
const UPROBES: [i64; 2] = [335, 336];

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Signal(i32),
    Status(i32),
}

/// What becomes of a child that has `role`'s filter and then does `call`.
fn fate(filters: &Filters, role: Role, call: impl FnOnce()) -> Fate {
    fate_of(|| match filters.enter(role) {
        Ok(()) => {
            call();
            0
        }
        Err(_) => 1,
    })
}

/// What becomes of a child that does `work`, which says the status.
fn fate_of(work: impl FnOnce() -> i32) -> Fate {
    // SAFETY: the child calls only what needs no lock that another thread might hold: the kernel, and what takes
    // a filter on, which allocates nothing.
    match unsafe { libc::fork() } {
        0 => {
            let status = work();
            // SAFETY: as above.
            unsafe { libc::_exit(status) }
        }
        child => {
            assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
            let mut status = 0;
            // SAFETY: our child, and a place for its status.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(waited, child);
            if libc::WIFSIGNALED(status) {
                Fate::Signal(libc::WTERMSIG(status))
            } else {
                Fate::Status(libc::WEXITSTATUS(status))
            }
        }
    }
}

fn calls(number: i64, arguments: [u64; 6]) -> impl FnOnce() {
    move || {
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: the filter ends the process, and if not, no argument is the address of anything.
        unsafe { libc::syscall(number, a, b, c, d, e, f) };
    }
}

/// `_IOC` of the kernel's headers, for KVM's own calls.
const fn kvm(direction: u64, size: u64, number: u64) -> u64 {
    direction << 30 | size << 16 | 0xae << 8 | number
}

/// The constants that rules name, from the C library's headers, and from KVM's.
fn constants() -> BTreeMap<&'static str, u64> {
    const NONE: u64 = 0;
    const W: u64 = 1;
    const R: u64 = 2;
    let number = |number: i32| u64::try_from(number).expect("not negative");
    let futex_wait_for_time = libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME;
    let thread = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    BTreeMap::from([
        ("AF_UNIX", number(libc::AF_UNIX)),
        ("CLOCK_REALTIME", number(libc::CLOCK_REALTIME)),
        (
            "FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE",
            number(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
        ),
        (
            "FALLOC_FL_ZERO_RANGE|FALLOC_FL_KEEP_SIZE",
            number(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        ),
        ("FIONBIO", libc::FIONBIO),
        (
            "TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET",
            number(libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET),
        ),
        ("FUTEX_WAIT", number(libc::FUTEX_WAIT)),
        (
            "FUTEX_WAIT_BITSET_PRIVATE",
            number(libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG),
        ),
        (
            "FUTEX_WAIT_BITSET|FUTEX_CLOCK_REALTIME",
            number(futex_wait_for_time),
        ),
        (
            "FUTEX_WAIT_PRIVATE",
            number(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG),
        ),
        (
            "FUTEX_WAKE_PRIVATE",
            number(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG),
        ),
        ("F_ADD_SEALS", number(libc::F_ADD_SEALS)),
        ("F_SETFL", number(libc::F_SETFL)),
        // include/uapi/linux/io_uring.h.
        ("IORING_REGISTER_FILES_UPDATE", 6),
        ("no flags", 0),
        ("waits for none", 0),
        ("F_DUPFD_CLOEXEC", number(libc::F_DUPFD_CLOEXEC)),
        ("F_GETFD", number(libc::F_GETFD)),
        ("KVM_CHECK_EXTENSION", kvm(NONE, 0, 0x03)),
        ("KVM_CREATE_PIT2", kvm(W, 64, 0x77)),
        ("KVM_CREATE_VCPU", kvm(NONE, 0, 0x41)),
        ("KVM_CREATE_VM", kvm(NONE, 0, 0x01)),
        ("KVM_GET_API_VERSION", kvm(NONE, 0, 0x00)),
        ("KVM_GET_CLOCK", kvm(R, 48, 0x7c)),
        ("KVM_GET_DEVICE_ATTR", kvm(W, 24, 0xe2)),
        ("KVM_GET_MSRS", kvm(R | W, 8, 0x88)),
        ("KVM_GET_PIT2", kvm(R, 112, 0x9f)),
        ("KVM_GET_REGS", kvm(R, 144, 0x81)),
        ("KVM_GET_SREGS", kvm(R, 312, 0x83)),
        ("KVM_GET_SUPPORTED_CPUID", kvm(R | W, 8, 0x05)),
        ("KVM_GET_TSC_KHZ", kvm(NONE, 0, 0xa3)),
        ("KVM_GET_VCPU_MMAP_SIZE", kvm(NONE, 0, 0x04)),
        ("KVM_HAS_DEVICE_ATTR", kvm(W, 24, 0xe3)),
        ("KVM_KVMCLOCK_CTRL", kvm(NONE, 0, 0xad)),
        ("KVM_RUN", kvm(NONE, 0, 0x80)),
        ("KVM_SET_CLOCK", kvm(W, 48, 0x7b)),
        ("KVM_SET_CPUID2", kvm(W, 8, 0x90)),
        ("KVM_SET_DEVICE_ATTR", kvm(W, 24, 0xe1)),
        ("KVM_SET_IDENTITY_MAP_ADDR", kvm(W, 8, 0x48)),
        ("KVM_SET_MSRS", kvm(W, 8, 0x89)),
        ("KVM_SET_PIT2", kvm(W, 112, 0xa0)),
        ("KVM_SET_REGS", kvm(W, 144, 0x82)),
        ("KVM_SET_SREGS", kvm(W, 312, 0x84)),
        ("KVM_SET_TSC_KHZ", kvm(NONE, 0, 0xa2)),
        ("KVM_SET_TSS_ADDR", kvm(NONE, 0, 0x47)),
        ("KVM_SET_USER_MEMORY_REGION", kvm(W, 32, 0x46)),
        ("LOCK_EX|LOCK_NB", number(libc::LOCK_EX | libc::LOCK_NB)),
        ("LOCK_SH|LOCK_NB", number(libc::LOCK_SH | libc::LOCK_NB)),
        ("MADV_DONTNEED", number(libc::MADV_DONTNEED)),
        // include/uapi/asm-generic/mman-common.h, since Linux 6.13.
        ("MADV_GUARD_INSTALL", 102),
        ("MADV_GUARD_REMOVE", 103),
        // "AUXV".
        ("PR_GET_AUXV", 0x4155_5856),
        ("PR_SET_NAME", number(libc::PR_SET_NAME)),
        ("SIGABRT", number(libc::SIGABRT)),
        ("SIGBUS", number(libc::SIGBUS)),
        ("SIGFPE", number(libc::SIGFPE)),
        ("SIGILL", number(libc::SIGILL)),
        ("SIGRTMIN", number(libc::SIGRTMIN())),
        ("SIGSEGV", number(libc::SIGSEGV)),
        ("SIGSYS", number(libc::SIGSYS)),
        ("TCSETS", libc::TCSETS),
        ("TCSETS2", libc::TCSETS2),
        ("TUNSETOFFLOAD", libc::TUNSETOFFLOAD),
        ("threads of this process", number(thread)),
    ])
}

fn builtin() -> Filters {
    Filters::builtin(Action::Kill).expect("filters")
}

#[test]
fn calls_without_a_rule_end_the_process() {
    let (rules, filters) = (rules(), builtin());
    for role in Role::ALL {
        let allowed = allowed(&rules[role.name()]);
        let mut tried = 0;
        for number in (0..LAST_CALL).chain([u32::MAX.into()]) {
            if allowed.contains_key(&number) {
                continue;
            }
            // The same call of the x32 ABI, too.
            for number in [number, number | 0x4000_0000] {
                let fate = fate(&filters, role, calls(number, [u64::MAX; 6]));
                // Newer kernels let these two past any filter. Away from a probe they do nothing but fail: the
                // first by SIGILL, the second by ENXIO.
                let by_kernel = UPROBES.contains(&number)
                    && matches!(fate, Fate::Signal(libc::SIGILL) | Fate::Status(0));
                assert!(
                    by_kernel || fate == Fate::Signal(libc::SIGSYS),
                    "{role:?}: call {number}: {fate:?}"
                );
                tried += 1;
            }
        }
        assert!(tried > 700, "{role:?}: {tried}");
    }
}

#[test]
fn calls_of_the_32_bit_abi_end_the_process() {
    let filters = builtin();
    for role in Role::ALL {
        let fate = fate(&filters, role, || {
            // SAFETY: getpid, whose number is that of writev in the other ABI. It changes one register.
            unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
        });
        // A kernel without that ABI has its own signal.
        assert!(
            matches!(fate, Fate::Signal(libc::SIGSYS | libc::SIGSEGV)),
            "{role:?}: {fate:?}"
        );
    }
}

#[test]
fn calls_with_other_arguments_than_a_rule_has_end_the_process() {
    let (rules, filters) = (rules(), builtin());
    let all: Vec<_> = Role::ALL.map(|role| allowed(&rules[role.name()])).into();
    let mut tried = BTreeSet::new();
    for (role, allowed) in Role::ALL.into_iter().zip(&all) {
        for (&number, sets) in allowed {
            if sets.iter().any(Vec::is_empty) {
                continue;
            }
            // What any filter compares with, and beside it.
            let others = all
                .iter()
                .filter_map(|allowed| allowed.get(&number))
                .flatten();
            for condition in others.flatten() {
                let value = u64::from(condition.value);
                let beside = [
                    value,
                    value + 1,
                    value.wrapping_sub(1),
                    !value,
                    value | 1 << 31,
                ];
                for value in beside.into_iter().chain([0, 1, 4, 5, 7, 1 << 16, u64::MAX]) {
                    let mut arguments = [0; 6];
                    arguments[condition.argument] = value;
                    let may = sets
                        .iter()
                        .any(|set| set.iter().all(|condition| condition.holds(&arguments)));
                    if may || !tried.insert((role.name(), number, arguments)) {
                        continue;
                    }
                    let fate = fate(&filters, role, calls(number, arguments));
                    assert_eq!(
                        fate,
                        Fate::Signal(libc::SIGSYS),
                        "{role:?}: call {number} with {arguments:x?}"
                    );
                }
            }
        }
    }
    assert!(tried.len() > 1000, "{}", tried.len());
}

#[test]
fn memory_cannot_be_made_executable_and_threads_can_be_started() {
    let filters = builtin();
    for role in Role::ALL {
        let map = |protection: i32| {
            move || {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                // SAFETY: new memory, wherever the kernel likes.
                let at =
                    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
                assert_ne!(at, libc::MAP_FAILED);
            }
        };
        let write = libc::PROT_READ | libc::PROT_WRITE;
        assert_eq!(fate(&filters, role, map(write)), Fate::Status(0));
        let execute = fate(&filters, role, map(write | libc::PROT_EXEC));
        assert_eq!(execute, Fate::Signal(libc::SIGSYS), "{role:?}");
    }
    for role in [Role::Vmm, Role::Time, Role::Assess] {
        let fate = fate(&filters, role, || {
            let mut thread = std::thread::Builder::new();
            // The main thread's have no name.
            if role != Role::Vmm {
                thread = thread.name("x".to_owned());
            }
            let thread = thread.spawn(|| 7);
            let answer = thread.expect("a thread").join();
            assert_eq!(answer.expect("no panic"), 7);
        });
        assert_eq!(fate, Fate::Status(0), "{role:?}");
    }
}

#[test]
fn constants_and_calls_are_those_that_the_rules_name() {
    let (rules, constants) = (rules(), constants());
    let mut used = BTreeSet::new();
    for filter in rules.as_object().expect("filters").values() {
        // Each name of a call has a number here.
        allowed(filter);
        for rule in filter["filter"].as_array().expect("rules") {
            assert!(!rule["comment"].as_str().expect("why").is_empty(), "{rule}");
            for condition in rule["args"].as_array().into_iter().flatten() {
                let name = condition["comment"].as_str().expect("a name");
                if name == "not PROT_EXEC" {
                    assert_eq!(condition["op"]["masked_eq"], json!(libc::PROT_EXEC));
                    assert_eq!(condition["val"], json!(0));
                    continue;
                }
                let value = constants.get(name).unwrap_or_else(|| panic!("{name}?"));
                assert_eq!(condition["val"], json!(value), "{name}");
                used.insert(name);
            }
        }
    }
    let unused: Vec<_> = constants
        .keys()
        .filter(|name| !used.contains(*name))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}

/// What a process's status file says of its threads: name, mode of seccomp, number of filters, whether it may
/// get privileges.
fn threads(process: u32) -> Vec<(String, [String; 3])> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("tasks");
    tasks
        .filter_map(|task| {
            let path = task.expect("a task").path().join("status");
            // One that has ended meanwhile has none.
            let status = std::fs::read_to_string(path).ok()?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("{name} in {status}"))
                    .trim()
                    .to_owned()
            };
            let fields = ["Seccomp:", "Seccomp_filters:", "NoNewPrivs:"].map(field);
            Some((field("Name:"), fields))
        })
        .collect()
}

/// A microVM with a thread of each kind but the one that measures, which may have ended.
fn with_all_threads(arguments: &[&str]) -> Vm {
    let mut all = vec!["--time-report", "report.json"];
    all.extend(arguments);
    let mut vm = Vm::start(&all);
    for (name, engine) in [("disk", "Sync"), ("many", "Async")] {
        let image = vm.path(name);
        std::fs::write(&image, [0; 4096]).expect("room");
        vm.done(
            "PUT",
            &format!("/drives/{name}"),
            &json!({
                "drive_id": name, "path_on_host": image, "is_root_device": false, "io_engine": engine,
            }),
        );
    }
    let socket = vm.path("vsock");
    vm.done(
        "PUT",
        "/vsock",
        &json!({"guest_cid": 3, "uds_path": socket}),
    );
    vm.done(
        "PUT",
        "/balloon",
        &json!({"amount_mib": 1, "deflate_on_oom": false}),
    );
    let code: Vec<u8> = print("x").into_iter().chain(FOR_EVER).collect();
    vm.boot(&code, 2);
    vm.read_until("x");
    // Answered by the main thread, which has begun to wait for events by then.
    vm.get("/");
    vm
}

#[test]
fn each_thread_of_a_microvm_has_its_filter() {
    let vm = with_all_threads(&[]);
    let begin = Instant::now();
    // A thread is there before it has its name, and its name before its filter.
    let missing = || {
        let threads = threads(vm.child.id());
        let names: BTreeSet<_> = threads.iter().map(|(name, _)| &name[..]).collect();
        let expected = [
            "keeptime",
            "api",
            "vcpu0",
            "vcpu1",
            "drive disk",
            "drive many",
            "balloon",
            "vsock",
            "time",
            "report",
        ];
        // SECCOMP_MODE_FILTER, with its own, and with the one that refuses where threads are started.
        let bare = |(name, fields): &&(String, [String; 3])| {
            let one = ["api", "report", "balloon", "vsock"].contains(&&name[..])
                || name.starts_with("vcpu")
                || name.starts_with("drive ");
            !is_of_kernel(name) && fields != &["2", if one { "1" } else { "2" }, "1"]
        };
        match expected.iter().find(|name| !names.contains(*name)) {
            Some(name) => Some(format!("{name} of {names:?}")),
            None => threads.iter().find(bare).map(|bare| format!("{bare:?}")),
        }
    };
    while let Some(missing) = missing() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{missing}");
        std::thread::yield_now();
    }
}

/// What the main thread does for clients while a guest runs, with files of the host.
#[test]
fn disk_and_policy_are_changed_and_the_guest_paused_under_the_filters() {
    let vm = with_all_threads(&["--metrics-path", "metrics"]);
    let other = vm.path("other");
    std::fs::write(&other, [1; 8192]).expect("room");
    let change = |path: &Path| json!({"drive_id": "disk", "path_on_host": path});
    // Another one, and that one anew.
    for _ in 0..2 {
        vm.done("PATCH", "/drives/disk", &change(&other));
    }
    let refused = vm.refused("PATCH", "/drives/disk", &change(Path::new("none")));
    assert!(refused.contains("none"), "{refused}");
    // Nothing is asked of the answer: a throw-away guest has been run for it.
    vm.send("PUT", "/time", &json!({"policy": "freeze"}));
    vm.state("Paused");
    // The device, which stands still, has the other one until it goes on; who changes his mind can have it back.
    let third = vm.path("third");
    std::fs::write(&third, [2; 8192]).expect("room");
    for path in [&third, &other, &third] {
        vm.done("PATCH", "/drives/disk", &change(path));
    }
    vm.state("Resumed");
    vm.act("FlushMetrics");
    vm.signal(Signal::TERM);
    let (status, _) = vm.wait();
    assert_eq!(status.code(), Some(128 + libc::SIGTERM), "{status:?}");
}

/// A panic is told whole and caught, whatever `RUST_BACKTRACE` says: nothing is read for a backtrace.
#[test]
fn panic_under_a_filter_is_told_and_caught() {
    let filters = builtin();
    for role in Role::ALL {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let fate = fate_of(|| {
            // SAFETY: this child has one thread, and descriptors of its own.
            unsafe {
                std::env::set_var("RUST_BACKTRACE", "full");
                libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO);
            }
            tell_panics_in_one_line();
            if filters.enter(role).is_err() {
                return 1;
            }
            let caught = std::panic::catch_unwind(|| panic!("a {}\nline", "second"));
            i32::from(caught.is_ok())
        });
        drop(writer);
        let mut told = String::new();
        reader.read_to_string(&mut told).expect("text");
        assert_eq!(fate, Fate::Status(0), "{role:?}: {told}");
        let place = " panicked at vmm/tests/seccomp.rs:";
        let end = r#": "a second\nline"; with --no-seccomp, RUST_BACKTRACE=1 tells from where"#;
        assert!(
            told.starts_with("keeptime: thread ")
                && told.contains(place)
                && told.trim_end().ends_with(end),
            "{role:?}: {told}"
        );
        assert_eq!(told.lines().count(), 1, "{role:?}: {told}");
    }
}

/// KVM's own workers are listed among a process's threads, and io_uring's.
fn is_of_kernel(name: &str) -> bool {
    name.starts_with("kvm-") || name.starts_with("iou-wrk-")
}

#[test]
fn without_filters_there_are_none_and_that_is_told() {
    let mut launcher = Command::new(env!("CARGO_BIN_EXE_keeptime"));
    let kernel = elf(&print("x").into_iter().chain(RESET).collect::<Vec<_>>());
    let output = launcher
        .args(["run", "--no-seccomp", "--kernel"])
        .arg(kernel.path())
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && log.contains("without seccomp filters"),
        "{log}"
    );
    let vm = with_all_threads(&["--no-seccomp"]);
    for (name, fields) in threads(vm.child.id()) {
        assert_eq!(fields, ["0", "0", "0"], "{name}");
    }
}

/// Runs a guest that prints x and resets, with these rules.
fn run_with(rules: &Value) -> Output {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(rules.to_string().as_bytes()).expect("room");
    let kernel = elf(&print("x").into_iter().chain(RESET).collect::<Vec<_>>());
    Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .args(["run", "--seccomp-filter"])
        .arg(file.path())
        .arg("--kernel")
        .arg(kernel.path())
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

#[test]
fn filters_of_the_user_are_taken_before_the_guest_runs() {
    let output = run_with(&rules());
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.ends_with(b"x"));
    let mut rules = rules();
    let vcpu = rules["vcpu"]["filter"].as_array_mut().expect("rules");
    vcpu.retain(|rule| rule["args"][0]["comment"] != "KVM_RUN");
    let output = run_with(&rules);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
    assert!(output.stdout.is_empty(), "the guest ran");
}

#[test]
fn filters_that_cannot_be_taken_are_refused_with_the_cure() {
    let mut missing = rules();
    missing.as_object_mut().expect("filters").remove("device");
    let mut unknown = rules();
    unknown["vmmm"] = unknown["vmm"].clone();
    let mut call = rules();
    call["api"]["filter"][0]["syscall"] = json!("reed");
    for (rules, words) in [
        (missing, r#"none for the thread kind "device""#),
        (unknown, r#""vmmm" is none of the thread kinds vmm, api"#),
        (call, "reed"),
        (json!("AAAA"), "not rules in seccompiler's JSON format"),
    ] {
        let output = run_with(&rules);
        let line = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(
            line.contains("--seccomp-filter") && line.contains(words),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[test]
fn call_that_is_not_allowed_is_told_when_that_is_asked_for() {
    let filters = Filters::builtin(Action::Report).expect("filters");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let fate = fate(&filters, Role::Vcpu, || {
        // SAFETY: descriptors of this process.
        unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) };
    });
    // dup2 itself is not allowed, and so is told on the standard error of this test.
    assert_eq!(fate, Fate::Status(148));
    // SAFETY: descriptors of this process, whose standard error is put back.
    let before = unsafe { libc::dup(libc::STDERR_FILENO) };
    assert!(before >= 0);
    // SAFETY: as above.
    unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) };
    drop(writer);
    let call = calls(libc::SYS_socket, [1, 2, 0xabc, 4, 5, u64::MAX]);
    let fate = self::fate(&filters, Role::Vcpu, call);
    // SAFETY: as above; the last writer of the pipe goes.
    unsafe {
        libc::dup2(before, libc::STDERR_FILENO);
        libc::close(before);
    }
    assert_eq!(fate, Fate::Status(148));
    let mut told = String::new();
    reader.read_to_string(&mut told).expect("text");
    let expected = format!(
        "keeptime: the seccomp filter of the thread kind vcpu does not allow system call {} with arguments \
         0x1 0x2 0xabc 0x4 0x5 0xffffffffffffffff\n",
        libc::SYS_socket
    );
    assert_eq!(told, expected);
}
