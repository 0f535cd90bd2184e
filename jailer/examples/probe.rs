//! What the tests execute in a jail: it tries what must not be possible there, and tells in lines of
//! `name: result` on standard output, or in the file `/told` when asked with `--file`.
#![allow(
    unsafe_code,
    reason = "the attempts are system calls that no safe interface offers"
)]

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt;

/// The result of a system call.
fn outcome(result: libc::c_long) -> String {
    if result >= 0 {
        return "possible".to_owned();
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::EACCES) => "EACCES".to_owned(),
        Some(libc::ESRCH) => "ESRCH".to_owned(),
        Some(libc::ENOENT) => "ENOENT".to_owned(),
        _ => error.to_string(),
    }
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> libc::c_int {
    // SAFETY: the options that are passed take numbers, no pointers.
    unsafe { libc::prctl(option, argument, 0, 0, 0) }
}

fn limit(resource: libc::__rlimit_resource_t) -> String {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes to one structure, which outlives the call.
    unsafe { libc::getrlimit(resource, &raw mut limit) };
    format!("{} {}", limit.rlim_cur, limit.rlim_max)
}

/// The three sets of this thread, as capget(2) tells them.
fn capabilities() -> String {
    // _LINUX_CAPABILITY_VERSION_3, and this thread
    let mut header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: version 3 reads a header of two words and writes two structures of three words.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    if result == 0 && sets == [0; 6] {
        "none".to_owned()
    } else {
        format!("{result} {sets:x?}")
    }
}

fn folder(path: &str) -> String {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_else(|error| vec![error.to_string()]);
    names.sort();
    names.join(" ")
}

fn owner(path: &str) -> String {
    std::fs::metadata(path).map_or_else(
        |error| error.to_string(),
        |facts| {
            format!(
                "{}:{} {:o}",
                facts.uid(),
                facts.gid(),
                facts.mode() & 0o7777
            )
        },
    )
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut told = String::new();
    let mut tell = |name: &str, what: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(told, "{name}: {what}");
    };
    tell("arguments", &arguments.join(" "));
    // SAFETY: these calls take numbers and pointers to strings that end in a zero byte, or null where the call
    // allows it; each is refused or without effect on this process's memory.
    unsafe {
        tell("uid", &libc::getuid().to_string());
        tell("gid", &libc::getgid().to_string());
        tell("pid", &libc::getpid().to_string());
        tell(
            "session leader",
            &(libc::getsid(0) == libc::getpid()).to_string(),
        );
        tell(
            "groups",
            &libc::getgroups(0, std::ptr::null_mut()).to_string(),
        );
        let umask = libc::umask(0o077);
        tell("umask", &format!("{umask:o}"));
        tell(
            "mknod",
            &outcome(libc::mknod(c"/node".as_ptr(), libc::S_IFCHR | 0o600, 0x0103).into()),
        );
        tell(
            "mount",
            &outcome(
                libc::mount(
                    c"none".as_ptr(),
                    c"/run".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    std::ptr::null(),
                )
                .into(),
            ),
        );
        tell(
            "mount proc",
            &outcome(
                libc::mount(
                    c"none".as_ptr(),
                    c"/run".as_ptr(),
                    c"proc".as_ptr(),
                    0,
                    std::ptr::null(),
                )
                .into(),
            ),
        );
        tell("chroot", &outcome(libc::chroot(c"/run".as_ptr()).into()));
        tell(
            "setuid",
            &outcome(libc::setuid(if libc::getuid() == 0 { 1 } else { 0 }).into()),
        );
        tell(
            "setgid",
            &outcome(libc::setgid(if libc::getgid() == 0 { 1 } else { 0 }).into()),
        );
        tell(
            "setgroups",
            &outcome(libc::setgroups(0, std::ptr::null()).into()),
        );
        tell(
            "unshare mount",
            &outcome(libc::unshare(libc::CLONE_NEWNS).into()),
        );
        tell(
            "unshare network",
            &outcome(libc::unshare(libc::CLONE_NEWNET).into()),
        );
        tell(
            "raw socket",
            &outcome(libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).into()),
        );
        tell(
            "packet socket",
            &outcome(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).into()),
        );
        let parent = libc::getppid();
        tell("parent", &parent.to_string());
        // Signal 0 asks whether one may, and sends nothing.
        let other = if parent == 0 { 2 } else { parent };
        tell("signal", &outcome(libc::kill(other, 0).into()));
        tell("signal to all", &outcome(libc::kill(-1, 0).into()));
        tell(
            "ptrace",
            &outcome(libc::ptrace(libc::PTRACE_SEIZE, other, 0, 0)),
        );
        let open = (3..4096).filter(|fd| libc::fcntl(*fd, libc::F_GETFD) >= 0);
        tell("descriptors", &open.count().to_string());
        let mut facts: libc::stat = std::mem::zeroed();
        let mut null: libc::stat = std::mem::zeroed();
        null.st_rdev = libc::makedev(1, 3);
        let silent =
            (0..3).all(|fd| libc::fstat(fd, &raw mut facts) == 0 && facts.st_rdev == null.st_rdev);
        tell("silent", &silent.to_string());
    }
    tell(
        "no new privileges",
        &prctl(libc::PR_GET_NO_NEW_PRIVS, 0).to_string(),
    );
    tell("dumpable", &prctl(libc::PR_GET_DUMPABLE, 0).to_string());
    let bounding = (0..64).filter(|bit| prctl(libc::PR_CAPBSET_READ, *bit) == 1);
    tell("bounding set", &bounding.count().to_string());
    let ambient = (0..64).filter(|bit| {
        // SAFETY: PR_CAP_AMBIENT_IS_SET takes a number.
        let set = unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_IS_SET,
                *bit,
                0,
                0,
            )
        };
        set == 1
    });
    tell("ambient set", &ambient.count().to_string());
    tell("capabilities", &capabilities());
    tell("environment", &std::env::vars_os().count().to_string());
    tell("limit no-file", &limit(libc::RLIMIT_NOFILE));
    tell("limit fsize", &limit(libc::RLIMIT_FSIZE));
    tell("limit core", &limit(libc::RLIMIT_CORE));
    let here = std::env::current_dir().map(|path| path.display().to_string());
    tell("here", &here.unwrap_or_else(|error| error.to_string()));
    for path in [
        "/", "/dev", "/dev/net", "/run", "/..", "/proc", "/sys", "/etc",
    ] {
        tell(&format!("folder {path}"), &folder(path));
    }
    for path in [
        "/",
        "/dev",
        "/dev/net",
        "/run",
        "/dev/urandom",
        "/dev/kvm",
        "/probe",
    ] {
        tell(&format!("owner {path}"), &owner(path));
    }
    tell(
        "own program",
        &std::fs::read("/probe").map_or_else(|error| error.to_string(), |_| "read".to_owned()),
    );
    tell(
        "change program",
        &std::fs::OpenOptions::new()
            .write(true)
            .open("/probe")
            .map_or_else(|error| error.to_string(), |_| "opened".to_owned()),
    );
    let random = std::fs::File::open("/dev/urandom").and_then(|mut file| {
        let mut byte = [0];
        io::Read::read_exact(&mut file, &mut byte)
    });
    tell(
        "urandom",
        &random.map_or_else(|error| error.to_string(), |()| "read".to_owned()),
    );
    // For a test that looks from outside: a line on standard input is waited for.
    if arguments.iter().any(|argument| argument == "--wait") {
        println!("waiting");
        let mut line = String::new();
        let _ = io::stdin().read_line(&mut line);
    }
    if arguments.iter().any(|argument| argument == "--file") {
        // The rename makes it appear as a whole.
        let _ =
            std::fs::write("/telling", &told).and_then(|()| std::fs::rename("/telling", "/told"));
    }
    print!("{told}");
}
