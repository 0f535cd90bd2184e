//! A place for jails that is a test's own: mounts, processes, network and cgroups that end with it.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, wait};

/// Tells the test's second run, inside, which folder is its own.
const FOLDER: &str = "KEEPTIME_JAIL_TEST_FOLDER";

/// Tells it where its cgroups are; each as `VERSION:PATH`, divided by blanks.
const CGROUPS: &str = "KEEPTIME_JAIL_TEST_CGROUPS";

/// The user and group of the jails.
pub(crate) const USER: u32 = 10001;

/// A static program that ends well: mov eax, 60 (exit); xor edi, edi; syscall.
const END: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];

/// A static program that waits for ever: mov eax, 34 (pause); syscall; jmp to its begin.
const PAUSE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// An ELF file whose only segment is itself and whose entry is `code`; `entry_size` is what it says of the size
/// of a program header, 56.
fn elf(code: &[u8], entry_size: u16) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    const LOAD: u64 = 0x40_0000;
    let size = HEADERS + code.len() as u64;
    // Elf64_Ehdr: class 64, little endian, version 1; an executable for x86-64
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |bytes: &[u8]| image.extend_from_slice(bytes);
    [2_u16, 62]
        .iter()
        .for_each(|field| put(&field.to_le_bytes()));
    put(&1_u32.to_le_bytes());
    [LOAD + HEADERS, 64, 0]
        .iter()
        .for_each(|field| put(&field.to_le_bytes()));
    put(&0_u32.to_le_bytes());
    [64_u16, entry_size, 1, 64, 0, 0]
        .iter()
        .for_each(|field| put(&field.to_le_bytes()));
    // Elf64_Phdr: PT_LOAD, readable and executable
    [1_u32, 5]
        .iter()
        .for_each(|field| put(&field.to_le_bytes()));
    [0_u64, LOAD, LOAD, size, size, 0x1000]
        .iter()
        .for_each(|field| put(&field.to_le_bytes()));
    put(code);
    image
}

/// What there is before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    files: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    processes: BTreeSet<String>,
}

impl State {
    /// What came and what went.
    pub(crate) fn difference(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (now, then) in [
            (&self.files, &before.files),
            (&self.mounts, &before.mounts),
            (&self.cgroups, &before.cgroups),
            (&self.processes, &before.processes),
        ] {
            lines.extend(now.difference(then).map(|line| format!("left: {line}")));
            lines.extend(then.difference(now).map(|line| format!("gone: {line}")));
        }
        lines
    }
}

/// Everything below a folder, with its attributes; nothing if there is no such folder.
pub(crate) fn tree(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(facts) = fs::symlink_metadata(folder) else {
        return found;
    };
    let target = fs::read_link(folder).unwrap_or_default();
    found.insert(format!(
        "{} {:o} {}:{} device {} to {:?}",
        folder.display(),
        facts.mode(),
        facts.uid(),
        facts.gid(),
        facts.rdev(),
        target
    ));
    if facts.is_dir() {
        for entry in fs::read_dir(folder).expect("ours") {
            found.extend(tree(&entry.expect("ours").path()));
        }
    }
    found
}

/// The processes of the test's namespace that have not ended.
fn processes() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").expect("mounted");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    ids.filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|id| {
            // PID (NAME) STATE …: proc_pid_stat(5)
            let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            let (name, rest) = text.rsplit_once(") ")?;
            (!rest.starts_with(['Z', 'X'])).then(|| name.to_owned())
        })
        .collect()
}

/// Where jails are made in a test.
pub(crate) struct Place {
    path: PathBuf,
    /// The hierarchies that jailers find: the version, and the folder.
    pub(crate) cgroups: Vec<(u8, PathBuf)>,
}

impl Place {
    /// Runs the test `name` once more in namespaces of its own, and tells what came of it; there, returns the
    /// place. The cgroups of the machine are not to be seen there.
    pub(crate) fn enter(name: &str) -> Option<Self> {
        Self::enter_with(name, Vec::new)
    }

    /// The same, with a hierarchy of each version that this machine has.
    pub(crate) fn enter_with_cgroups(name: &str) -> Option<Self> {
        Self::enter_with(name, own_cgroups)
    }

    /// The same, with a hierarchy that has cpusets, of whichever version this machine has.
    pub(crate) fn enter_with_cpuset(name: &str) -> Option<Self> {
        Self::enter_with(name, own_cpuset)
    }

    fn enter_with(name: &str, cgroups: fn() -> Vec<(u8, PathBuf)>) -> Option<Self> {
        if let Some(folder) = env::var_os(FOLDER) {
            let cgroups = env::var(CGROUPS).expect("ours");
            return Some(Self::furnish(PathBuf::from(folder), &cgroups));
        }
        if let Some(reason) = lacking() {
            println!("skipped here: {reason}");
            return None;
        }
        let cgroups: Vec<(u8, PathBuf)> = cgroups()
            .into_iter()
            .map(|(version, own)| {
                (
                    version,
                    own.join(format!("jail-test-{}-{name}", std::process::id())),
                )
            })
            .collect();
        let mut enter = String::new();
        for (_, path) in &cgroups {
            fs::create_dir(path).expect("a cgroup of the test's own");
            inherit_cpuset(path);
            enter += &format!("echo 0 > {}/cgroup.procs && ", path.display());
        }
        let folder = tempfile::tempdir().expect("a folder");
        let told: Vec<String> = cgroups
            .iter()
            .map(|(version, path)| format!("{version}:{}", path.display()))
            .collect();
        let output = Command::new("sh")
            .arg("-c")
            .arg(enter + "exec \"$@\"")
            // Whoever ends this process ends that one, and with it its namespaces.
            .args(["sh", "setpriv", "--pdeathsig", "KILL"])
            .args(["unshare", "--mount", "--net", "--pid", "--cgroup"])
            .args(["--fork", "--kill-child", "--mount-proc"])
            .arg(env::current_exe().expect("known"))
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path().canonicalize().expect("ours"))
            .env(CGROUPS, told.join(" "))
            .stdin(Stdio::null())
            .output()
            .expect("sh");
        for (_, path) in &cgroups {
            remove_cgroups(path);
        }
        let printed = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}{errors}");
        assert!(printed.contains("1 passed"), "no test {name}: {printed}");
        // The harness may have begun the line.
        for line in printed.lines() {
            for words in ["skipped: ", "skipped here: "] {
                if let Some((_, reason)) = line.split_once(words) {
                    println!("{words}{reason}");
                }
            }
        }
        None
    }

    fn furnish(path: PathBuf, cgroups: &str) -> Self {
        // A file system of the test's own, in this namespace alone.
        mount(&["-t", "tmpfs", "-o", "mode=755", "none"], &path);
        for folder in ["base", "bin", "outside", "cgroups"] {
            fs::create_dir(path.join(folder)).expect("ours");
        }
        fs::write(path.join("outside/secret"), "secret").expect("ours");
        let mut place = Self {
            path,
            cgroups: Vec::new(),
        };
        place.program("end", &elf(&END, 56));
        place.program("pause", &elf(&PAUSE, 56));
        // Passes what the jailer looks at, and the kernel executes no such thing: ENOEXEC.
        place.program("unfit", &elf(&END, 57));
        for (index, given) in cgroups.split_whitespace().enumerate() {
            let (version, from) = given.split_once(':').expect("ours");
            let folder = place.path.join("cgroups").join(index.to_string());
            fs::create_dir(&folder).expect("ours");
            mount(&["--bind", from], &folder);
            let version = version.parse().expect("ours");
            if version == 2 {
                // The hierarchy's root may hold no process when its children are to have controllers.
                fs::create_dir(folder.join("test")).expect("ours");
                fs::write(folder.join("test/cgroup.procs"), "0").expect("ours");
            }
            place.cgroups.push((version, folder));
        }
        hide_other_cgroups(&place.path);
        place
    }

    /// A path in the place.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The cgroups of a version, or why there are none.
    pub(crate) fn hierarchy(&self, version: u8) -> Option<&Path> {
        let found = self.cgroups.iter().find(|(other, _)| *other == version);
        if found.is_none() {
            println!("skipped here: cgroups of version {version} are not to be had here");
        }
        found.map(|(_, folder)| folder.as_path())
    }

    /// Makes a program in `bin`.
    pub(crate) fn program(&self, name: &str, image: &[u8]) -> PathBuf {
        let path = self.path.join("bin").join(name);
        fs::write(&path, image).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        path
    }

    /// Puts the program that looks around into `bin`.
    pub(crate) fn probe(&self) {
        let built = Path::new(env!("CARGO_BIN_EXE_jailer"))
            .with_file_name("examples")
            .join("probe");
        let image = fs::read(&built).unwrap_or_else(|error| {
            panic!(
                "{}: {error}: cargo build -p jailer --examples",
                built.display()
            )
        });
        self.program("probe", &image);
    }

    /// What a start of the program `end` takes, with other values for some flags and further ones.
    pub(crate) fn arguments(&self, others: &[(&str, &OsStr)]) -> Vec<OsString> {
        let user = USER.to_string();
        let exec_file = self.path("bin/end");
        let base = self.path("base");
        let mut flags: Vec<(&str, &OsStr)> = vec![
            ("--id", OsStr::new("vm")),
            ("--exec-file", exec_file.as_os_str()),
            ("--uid", OsStr::new(&user)),
            ("--gid", OsStr::new(&user)),
            ("--chroot-base-dir", base.as_os_str()),
        ];
        flags.retain(|(flag, _)| others.iter().all(|(other, _)| other != flag));
        let joined = |(flag, value): &(&str, &OsStr)| {
            let mut argument = OsString::from(format!("{flag}="));
            argument.push(value);
            argument
        };
        flags.iter().chain(others).map(joined).collect()
    }

    /// The jailer, to be started.
    pub(crate) fn jailer(&self, others: &[(&str, &OsStr)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jailer"));
        command.args(self.arguments(others)).stdin(Stdio::null());
        command
    }

    /// What there is now.
    pub(crate) fn state(&self) -> State {
        let cgroups = self.cgroups.iter().flat_map(|(_, folder)| folders(folder));
        let mut files = BTreeSet::new();
        for folder in ["base", "bin", "outside"] {
            files.extend(tree(&self.path.join(folder)));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounted");
        State {
            files,
            mounts: mounts.lines().map(str::to_owned).collect(),
            cgroups: cgroups.collect(),
            processes: processes(),
        }
    }

    /// Starts a jailer that must refuse in one line, which has all the `parts`, and leave nothing behind.
    pub(crate) fn refuses(&self, what: &str, command: &mut Command, parts: &[&str]) {
        let before = self.state();
        let output = command.output().expect("the jailer");
        self.is_refusal(what, &output, parts);
        let left = self.state().difference(&before);
        assert!(left.is_empty(), "{what}: {left:#?}");
    }

    pub(crate) fn is_refusal(&self, what: &str, output: &Output, parts: &[&str]) {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}: {told}");
        assert!(output.stdout.is_empty(), "{what}: {output:?}");
        let mut lines = told
            .lines()
            .filter(|line| !line.starts_with("jailer: warning: "));
        let line = lines.next().unwrap_or_default();
        assert!(line.starts_with("jailer: "), "{what}: {told}");
        assert_eq!(lines.next(), None, "{what}: {told}");
        for part in parts {
            assert!(line.contains(part), "{what}: {part:?} is not in: {line}");
        }
    }

    /// Starts a jailer that must succeed.
    pub(crate) fn succeeds(&self, what: &str, command: &mut Command) -> Output {
        let output = command.output().expect("the jailer");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {told}");
        output
    }
}

/// The numbers of the processes of a name, of those too that have ended and are not waited for yet.
pub(crate) fn processes_called(name: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("mounted");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_called = |id: &String| {
        fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|text| text.trim() == name)
    };
    ids.filter(is_called).collect()
}

/// Waits until the processes of a name have ended, whosever children they are.
pub(crate) fn await_end_of(name: &str) {
    for id in processes_called(name) {
        let pid = id.parse().ok().and_then(Pid::from_raw).expect("a number");
        let fd = pidfd_open(pid, PidfdFlags::empty()).expect("not waited for yet");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, None).expect("it ends");
    }
}

/// Waits until all that jailers have left to this process, the first of its namespace, has ended.
pub(crate) fn reap() {
    while wait(WaitOptions::empty()).is_ok() {}
}

/// Why a test cannot have namespaces of its own, if it cannot.
fn lacking() -> Option<&'static str> {
    let made = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--cgroup"])
        .args(["--fork", "--mount-proc", "true"])
        .output();
    match made {
        Ok(output) if output.status.success() => None,
        _ => Some("no namespaces for a jail can be made (unshare, root)"),
    }
}

pub(crate) fn mount(arguments: &[&str], point: &Path) {
    let output = Command::new("mount")
        .args(arguments)
        .arg(point)
        .output()
        .expect("mount");
    assert!(output.status.success(), "{output:?}");
}

/// A cgroup mount of this process: where, and with which options.
fn cgroup_mounts() -> Vec<(PathBuf, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mounted");
    let mount = |line: &str| {
        // proc_pid_mountinfo(5): the fifth is the place; after the dash type, source and options
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup")
            .then(|| Some((place.split(' ').nth(4)?.into(), kind.to_owned())))?
    };
    text.lines().filter_map(mount).collect()
}

/// Where this process is in a hierarchy of each version: the unified one, and that of `pids`.
fn own_cgroups() -> Vec<(u8, PathBuf)> {
    let text = fs::read_to_string("/proc/self/cgroup").expect("mounted");
    let mounts = cgroup_mounts();
    let find = |version, line: &dyn Fn(&str) -> bool, kind: &dyn Fn(&str) -> bool| {
        // cgroups(7): HIERARCHY:CONTROLLERS:PATH
        let own = text
            .lines()
            .find(|text| line(text))?
            .splitn(3, ':')
            .nth(2)?;
        let (point, _) = mounts.iter().find(|(_, text)| kind(text))?;
        let path = point.join(own.trim_start_matches('/'));
        path.join("cgroup.procs")
            .exists()
            .then_some((version, path))
    };
    let has_pids = |text: &str| text.split([' ', ',']).any(|word| word == "pids");
    let first = find(1, &|line| line.contains(":pids:"), &|kind| {
        kind.starts_with("cgroup ") && has_pids(kind)
    });
    let second = find(2, &|line| line.starts_with("0::"), &|kind| {
        kind.starts_with("cgroup2 ")
    });
    first.into_iter().chain(second).collect()
}

/// Where this process is in the hierarchy of `cpuset`.
fn own_cpuset() -> Vec<(u8, PathBuf)> {
    let text = fs::read_to_string("/proc/self/cgroup").expect("mounted");
    let own = |mark: &str| {
        let line = text.lines().find(|line| line.contains(mark))?;
        Some(
            line.splitn(3, ':')
                .nth(2)?
                .trim_start_matches('/')
                .to_owned(),
        )
    };
    let found = cgroup_mounts().into_iter().find_map(|(point, kind)| {
        let (version, own) = match kind.split(' ').next()? {
            "cgroup" => (1, own(":cpuset:")?),
            _ => (2, own("0::")?),
        };
        let path = point.join(own);
        let has_cpuset = match version {
            1 => path.join("cpuset.cpus").exists(),
            _ => fs::read_to_string(path.join("cgroup.subtree_control"))
                .is_ok_and(|text| text.split_whitespace().any(|name| name == "cpuset")),
        };
        has_cpuset.then_some((version, path))
    });
    found.into_iter().collect()
}

/// Gives a new cpuset of version 1 what the one above has: it begins empty, and nobody can enter it.
fn inherit_cpuset(folder: &Path) {
    let above = folder.parent().expect("a cgroup");
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = folder.join(name);
        if fs::read_to_string(&own).is_ok_and(|text| text.trim().is_empty())
            && let Ok(value) = fs::read_to_string(above.join(name))
        {
            fs::write(own, value.trim()).expect("ours");
        }
    }
}

/// Unmounts the machine's hierarchies here, so that nothing can be made in them.
fn hide_other_cgroups(own: &Path) {
    for (point, _) in cgroup_mounts() {
        if !point.starts_with(own) {
            let output = Command::new("umount")
                .args(["--lazy"])
                .arg(&point)
                .output()
                .expect("umount");
            assert!(output.status.success(), "{output:?}");
        }
    }
    assert!(
        cgroup_mounts()
            .iter()
            .all(|(point, _)| point.starts_with(own))
    );
}

/// A cgroup and those below.
fn folders(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::from([folder.display().to_string()]);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(folders(&entry.path()));
    }
    found
}

/// Removes a test's cgroup, which nobody is in any more, and those below it.
fn remove_cgroups(folder: &Path) {
    for folder in folders(folder).iter().rev() {
        fs::remove_dir(folder).expect("an empty cgroup");
    }
}

/// A value of a flag.
pub(crate) fn os(text: &str) -> &OsStr {
    OsStr::from_bytes(text.as_bytes())
}
