//! What a jailed program can do, and what it cannot: it tries, and tells.
#![allow(
    unsafe_code,
    reason = "no safe interface puts a key into a keyring, or a thread into a namespace"
)]

mod support;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use support::{Place, USER, await_end_of, os};

/// Attempts that are refused in every jail, with the errors by which they may be; the second where the kernel
/// was built without the facility.
const REFUSED: &[(&str, &str)] = &[
    ("read absolute", "ENOENT"),
    ("read upwards", "ENOENT"),
    ("read relative", "ENOENT"),
    ("read by /proc/1/root", "ENOENT"),
    ("read /proc/self/mountinfo", "ENOENT"),
    ("read /sys/kernel/notes", "ENOENT"),
    ("read program", "EACCES"),
    ("change program", "EACCES"),
    ("open by handle", "EPERM"),
    ("mknod character", "EPERM"),
    ("mknod block", "EPERM"),
    ("mount tmpfs", "EPERM"),
    ("mount proc", "EPERM"),
    ("mount bind", "EPERM"),
    ("umount", "EPERM"),
    ("open_tree", "EPERM"),
    ("fsopen", "EPERM"),
    ("chroot", "EPERM"),
    ("pivot_root", "EPERM"),
    ("setuid", "EPERM"),
    ("setresuid", "EPERM"),
    ("setgid", "EPERM"),
    ("setresgid", "EPERM"),
    ("setgroups", "EPERM"),
    ("capset", "EPERM"),
    ("ambient capability", "EPERM"),
    ("securebits", "EPERM"),
    ("new privileges", "EINVAL"),
    ("raise no-file", "EPERM"),
    ("raise core", "EPERM"),
    ("sethostname", "EPERM"),
    ("clock_settime", "EPERM"),
    ("init_module", "EPERM ENOSYS"),
    ("iopl", "EPERM ENOSYS"),
    ("raw socket", "EPERM"),
    ("raw socket of IPv6", "EPERM EAFNOSUPPORT"),
    ("packet socket", "EPERM EAFNOSUPPORT"),
    ("packet socket of datagrams", "EPERM EAFNOSUPPORT"),
];

/// Attempts on another user's process, by the error when it can be seen: EPERM; and in a PID namespace: ESRCH.
const OTHERS: [&str; 8] = [
    "signal",
    "kill",
    "ptrace seize",
    "ptrace attach",
    "process_vm_readv",
    "prlimit",
    "setpriority",
    "sched_setaffinity",
];

/// Kinds of namespaces that can be tried by two calls.
const NAMESPACES: [&str; 9] = [
    "mount",
    "uts",
    "ipc",
    "user",
    "pid",
    "network",
    "cgroup",
    "time",
    "user and network",
];

/// What every jail is.
const FACTS: &[(&str, &str)] = &[
    ("groups", "0"),
    ("umask", "77"),
    ("descriptors", "0"),
    ("inherited key", "false"),
    ("no new privileges", "1"),
    // NOROOT, NO_CAP_AMBIENT_RAISE and their locks, KEEP_CAPS_LOCKED: include/uapi/linux/securebits.h
    ("bits of security", "e3"),
    // 2 where `fs.suid_dumpable` says so: for root alone to read.
    ("dumpable", "0 2"),
    ("bounding set", "0"),
    ("ambient set", "0"),
    ("capabilities", "none"),
    ("environment", "0"),
    ("limit core", "0-0"),
    ("here", "/"),
    ("folder /proc", "ENOENT"),
    ("folder /sys", "ENOENT"),
    ("folder /etc", "ENOENT"),
    ("folder /dev/net", "tun"),
    ("folder /run", ""),
    ("owner /probe", "0:0-111"),
    ("urandom", "read"),
];

/// Another's process, to be attacked; it lives until this is dropped.
struct Bystander(Child);

impl Bystander {
    fn of(user: u32) -> Self {
        let user = user.to_string();
        let mut command = Command::new("setpriv");
        Self::start(command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]))
    }

    /// Started by another program.
    fn start(by: &mut Command) -> Self {
        // Waits for a line that never comes, and says that it does.
        let command = by.args(["sh", "-c", "echo there; read line"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut bystander = Self(child.expect("a program"));
        let output = bystander.0.stdout.as_mut().expect("piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("a line");
        assert_eq!(line, "there\n");
        bystander
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts a key into a session keyring of this thread's own, which what it starts inherits. Tells whether the
/// kernel has keys.
fn plant_key() -> bool {
    // KEYCTL_JOIN_SESSION_KEYRING and KEY_SPEC_SESSION_KEYRING of include/uapi/linux/keyctl.h
    let (join, session) = (1, -3);
    // SAFETY: strings that end in a zero byte, null for a keyring without a name, and a payload of one byte.
    unsafe {
        libc::syscall(libc::SYS_keyctl, join, std::ptr::null::<u8>()) >= 0
            && libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"keeptime-secret".as_ptr(),
                c"x".as_ptr(),
                1,
                session,
            ) >= 0
    }
}

/// A parent that hands on what it should not: groups, capabilities, a umask, an environment.
fn careless(place: &Place, settings: &[(&str, &OsStr)]) -> Command {
    let mut command = Command::new("sh");
    let capabilities = "+net_admin,+net_raw,+sys_admin,+sys_ptrace,+dac_override";
    command
        .args([
            "-c",
            "umask 0; ulimit -S -c $(ulimit -H -c); exec \"$@\"",
            "sh",
        ])
        .args(["setpriv", "--groups=7,8", "--inh-caps", capabilities])
        .args(["--ambient-caps", capabilities])
        .arg(env!("CARGO_BIN_EXE_jailer"))
        .args(place.arguments(settings))
        .env("SECRET", "secret")
        .stdin(Stdio::null());
    command
}

fn report(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .collect()
}

/// Compares a report with what it must be; where several words are given, one of them.
fn check(what: &str, told: &str, expected: &[(String, String)]) {
    let told = report(told);
    let mut wrong = Vec::new();
    for (name, right) in expected {
        let found = told.get(name.as_str()).copied().unwrap_or("not told");
        let found = found.replace(' ', "-");
        if found != *right && !right.split(' ').any(|right| right == found) {
            wrong.push(format!("{name}: {found}, not {right}"));
        }
    }
    for name in told.keys() {
        if expected.iter().all(|(expected, _)| expected != name) {
            wrong.push(format!("{name}: nobody expects anything"));
        }
    }
    assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{told:#?}");
}

#[test]
fn program_tries_all_ways_out_and_finds_none() {
    let Some(place) = Place::enter("program_tries_all_ways_out_and_finds_none") else {
        return;
    };
    place.probe();
    if !plant_key() {
        println!("skipped here: this kernel has no keys to be handed on");
    }
    let misc = fs::read_to_string("/proc/misc").expect("mounted");
    let has = |device: &str| misc.contains(&format!(" {device}\n"));
    // Open in this process and everything that it starts: a file, a folder outside, a high number, a socket.
    let secret = place.path("outside/secret");
    let file = File::open(&secret).expect("ours");
    let root = File::open("/").expect("a folder");
    let high = fcntl_dupfd_cloexec(&root, 900).expect("room");
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("sockets");
    fcntl_setfd(&file, FdFlags::empty()).expect("ours");
    fcntl_setfd(&root, FdFlags::empty()).expect("ours");
    fcntl_setfd(&high, FdFlags::empty()).expect("ours");
    fcntl_setfd(&socket, FdFlags::empty()).expect("ours");

    let probe = place.path("bin/probe");
    for (number, (user, flags)) in [
        (USER, &[][..]),
        (USER, &["--new-pid-ns"]),
        (USER, &["--daemonize"]),
        (USER, &["--daemonize", "--new-pid-ns"]),
        (0, &[]),
        (0, &["--new-pid-ns"]),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("user {user} {flags:?}");
        let (new_pid_ns, daemon) = (
            flags.contains(&"--new-pid-ns"),
            flags.contains(&"--daemonize"),
        );
        let mut other = Bystander::of(USER + 1);
        let mut of_root = Bystander::of(0);
        let (id, uid) = (format!("vm-{number}"), user.to_string());
        let mut jailer = careless(
            &place,
            &[
                ("--exec-file", probe.as_os_str()),
                ("--id", os(&id)),
                ("--uid", os(&uid)),
                ("--gid", os(&uid)),
                ("--resource-limit", os("fsize=65536")),
            ],
        );
        let mut given = vec![
            format!("--secret={}", secret.display()),
            format!("--other={}", other.0.id()),
        ];
        // Root may signal root, jailed or not.
        given.extend((user != 0).then(|| "--kill".to_owned()));
        given.extend(daemon.then(|| "--file".to_owned()));
        let output = place.succeeds(&what, jailer.args(flags).arg("--").args(&given));
        await_end_of("probe");
        let root = place.path("base/probe").join(&id).join("root");
        let told = if daemon {
            assert!(output.stdout.is_empty(), "{what}: {output:?}");
            fs::read_to_string(root.join("told")).expect("told")
        } else {
            String::from_utf8(output.stdout).expect("words")
        };
        assert!(other.is_alive() && of_root.is_alive(), "{what}");

        let mut expected: Vec<(String, String)> = Vec::new();
        let mut expect =
            |name: &str, right: &str| expected.push((name.to_owned(), right.to_owned()));
        for (name, right) in FACTS.iter().chain(REFUSED) {
            expect(name, right);
        }
        for kind in NAMESPACES {
            expect(&format!("unshare {kind}"), "EPERM");
            expect(&format!("clone3 {kind}"), "EPERM");
        }
        for name in OTHERS {
            expect(name, if new_pid_ns { "ESRCH" } else { "EPERM" });
        }
        if new_pid_ns {
            expect("pidfd", "ESRCH");
        } else {
            expect("setns", "EPERM");
            expect("pidfd_getfd", "EPERM");
        }
        if user != 0 {
            // Without a namespace the call succeeds, and reaches nobody: both bystanders are alive.
            expect("kill all", if new_pid_ns { "ESRCH" } else { "possible" });
        }
        expect("users", &format!("[{user},-{user},-{user},-{user}]"));
        let report = report(&told);
        let pid = report.get("pid").copied().unwrap_or_default();
        assert_eq!(pid == "1", new_pid_ns, "{what}: {pid}");
        expect("pid", pid);
        // In a session that another process has begun, a daemon has no terminal, and gets none. 0 is a session
        // of outside, such as the test's.
        let session = report.get("session").copied().unwrap_or_default();
        if daemon && !new_pid_ns {
            assert!(session != "0" && session != pid, "{what}: {session}");
            expect("session", session);
        } else {
            expect("session", "0");
        }
        expect("silent", &daemon.to_string());
        let arguments = report.get("arguments").copied().unwrap_or_default();
        assert!(
            arguments.starts_with(&format!("--id {id} --start-time-us ")),
            "{arguments}"
        );
        assert!(arguments.ends_with(&given.join(" ")), "{arguments}");
        expect("arguments", &arguments.replace(' ', "-"));
        expect("limit no-file", "2048-2048");
        expect("limit fsize", "65536-65536");
        expect("owner /", &format!("{user}:{user}-700"));
        for folder in ["/dev", "/dev/net", "/run"] {
            expect(&format!("owner {folder}"), &format!("{user}:{user}-700"));
        }
        let device = format!("{user}:{user}-600");
        expect("owner /dev/urandom", &device);
        // Also where their modules are not loaded yet.
        expect("owner /dev/kvm", &device);
        expect("folder /", "dev-probe-probe.pid-run");
        expect("folder /..", "dev-probe-probe.pid-run");
        let devices = ["kvm", "net", "urandom", "userfaultfd"]
            .into_iter()
            .filter(|name| *name != "userfaultfd" || has(name));
        expect("folder /dev", &devices.collect::<Vec<_>>().join("-"));
        expect("tap", if has("tun") { "EPERM" } else { "ENODEV" });
        check(&what, &told, &expected);
    }
}

/// What `/proc` says of a process, by the name of a line.
fn status(pid: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it waits");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("it waits")
}

/// What is in the root of a process's mount namespace, which need not be the process's own.
fn root_of_namespace(pid: &str) -> Vec<OsString> {
    let fd = File::open(format!("/proc/{pid}/ns/mnt")).expect("it waits");
    // A thread of its own moves there, with a root and a current folder of its own.
    let names = thread::spawn(move || {
        // SAFETY: the table of descriptors stays shared.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("always allowed");
        let kind = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(fd.as_fd(), kind).expect("root may");
        let entries = fs::read_dir("/").expect("a root");
        entries
            .map(|entry| entry.expect("ours").file_name())
            .collect()
    });
    names.join().expect("no panic")
}

#[test]
fn jail_seen_from_outside_is_where_it_was_told_to_be() {
    let Some(place) =
        Place::enter_with_cgroups("jail_seen_from_outside_is_where_it_was_told_to_be")
    else {
        return;
    };
    place.probe();
    let probe = place.path("bin/probe");
    let mut elsewhere = Command::new("unshare");
    let elsewhere = Bystander::start(elsewhere.arg("--net"));
    let netns = format!("/proc/{}/ns/net", elsewhere.0.id());
    for (id, version, setting, flag) in [
        ("one", 1, "pids.max=100", None),
        ("two", 1, "pids.max=100", Some("--new-pid-ns")),
        ("three", 2, "cgroup.max.descendants=3", None),
        ("four", 2, "cgroup.max.descendants=3", Some("--new-pid-ns")),
    ] {
        let Some(hierarchy) = place.hierarchy(version) else {
            continue;
        };
        let version = version.to_string();
        let mut jailer = place.jailer(&[
            ("--exec-file", probe.as_os_str()),
            ("--id", os(id)),
            ("--netns", os(&netns)),
            ("--cgroup-version", os(&version)),
            ("--cgroup", os(setting)),
            ("--parent-cgroup", os("tenants/some")),
            ("--resource-limit", os("no-file=333")),
        ]);
        jailer.args(flag).args(["--", "--wait"]);
        let mut child = jailer
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the jailer");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "waiting\n", "{id}");

        let root = place.path("base/probe").join(id).join("root");
        let pid = fs::read_to_string(root.join("probe.pid")).expect("made");
        if flag.is_none() {
            assert_eq!(pid, child.id().to_string());
        }
        let numbers = status(&pid, "NSpid:");
        assert_eq!(numbers.ends_with(" 1"), flag.is_some(), "{id}: {numbers}");
        assert_eq!(status(&pid, "Uid:"), "10001 10001 10001 10001", "{id}");
        assert_eq!(status(&pid, "Gid:"), "10001 10001 10001 10001", "{id}");
        assert_eq!(status(&pid, "Groups:"), "", "{id}");
        assert_eq!(status(&pid, "Threads:"), "1", "{id}");
        assert_eq!(status(&pid, "NoNewPrivs:"), "1", "{id}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status(&pid, set), "0000000000000000", "{id}");
        }
        let other = elsewhere.0.id().to_string();
        assert_eq!(namespace(&pid, "net"), namespace(&other, "net"), "{id}");
        assert_ne!(namespace(&pid, "net"), namespace("self", "net"), "{id}");
        assert_ne!(namespace(&pid, "mnt"), namespace("self", "mnt"), "{id}");
        assert_eq!(namespace(&pid, "user"), namespace("self", "user"), "{id}");
        // Of all that is mounted, its root alone is within reach.
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("it waits");
        assert_eq!(mounts.lines().count(), 1, "{id}: {mounts}");
        // Beyond it, nothing but the folder that it is mounted at.
        assert_eq!(root_of_namespace(&pid), ["jail"], "{id}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it waits");
        let limit = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let words: Vec<_> = limit.into_iter().flat_map(str::split_whitespace).collect();
        assert_eq!(words.get(3..5), Some(&["333", "333"][..]), "{id}: {limits}");
        let cgroup = hierarchy.join("tenants/some").join(id);
        let (file, value) = setting.split_once('=').expect("ours");
        let found = fs::read_to_string(cgroup.join(file)).expect("made");
        assert_eq!(found.trim(), value, "{id}");
        let within = fs::read_to_string(cgroup.join("cgroup.procs")).expect("made");
        assert_eq!(within.trim(), pid, "{id}");

        drop(child.stdin.take());
        // The rest of what it tells, until it ends.
        std::io::copy(&mut output, &mut std::io::sink()).expect("piped");
        assert!(child.wait().expect("ours").success(), "{id}");
    }
}
