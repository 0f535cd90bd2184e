//! Landlock: what a thread may not reach by a name, whatever its filter lets it ask. The filters here let it ask
//! everything, so that what is refused is refused by Landlock.
#![expect(
    unsafe_code,
    reason = "children of a fork call the kernel as a guest that took a thread over would"
)]

use std::ffi::CString;
use std::io::Write;
use std::net::{SocketAddrV4, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, makedev, mknodat, open, rename, rmdir, symlink, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{getpid, getppid, test_kill_process};
use serde_json::{Value, json};
use vmm::seccomp::{Filters, Role};

/// What a child tries.
type Try<'a> = &'a dyn Fn() -> Result<(), Errno>;

/// Filters that allow every call to each kind of thread.
fn permissive() -> Filters {
    let filter = json!({"mismatch_action": "allow", "match_action": "trap", "filter": [
        // One that nobody tries here: a filter has a rule.
        {"syscall": "acct"},
    ]});
    let all: serde_json::Map<String, Value> = Role::ALL
        .iter()
        .map(|role| (role.name().to_owned(), filter.clone()))
        .collect();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let text = Value::from(all).to_string();
    file.write_all(text.as_bytes()).expect("room");
    Filters::from_file(file.path()).expect("rules")
}

/// What becomes of `call` in a child that does what `role` does.
fn outcome(filters: &Filters, role: Role, call: Try<'_>) -> Result<(), Errno> {
    // SAFETY: the child calls only what needs no lock that another thread might hold: the kernel, and what takes
    // filters on, which allocates nothing.
    match unsafe { libc::fork() } {
        0 => {
            let status = match filters.enter(role) {
                Ok(()) => call().map_or_else(Errno::raw_os_error, |()| 0),
                Err(_) => 254,
            };
            // SAFETY: as above.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: our child, and a place for its status.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(waited, child);
            assert!(libc::WIFEXITED(status), "status {status:#x}");
            match libc::WEXITSTATUS(status) {
                0 => Ok(()),
                errno => Err(Errno::from_raw_os_error(errno)),
            }
        }
    }
}

/// The version of Landlock here, by what doctor says; `None` is told as a skip.
fn abi() -> Option<i64> {
    let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .args(["doctor", "--json"])
        .output()
        .expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let abi = report["kernel"]["landlock_abi"].as_i64();
    if abi.is_none() {
        println!("skipped here: the kernel has no Landlock");
    }
    abi
}

fn path(folder: &Path, name: &str) -> CString {
    let path = folder.join(name).into_os_string().into_encoded_bytes();
    CString::new(path).expect("no zero")
}

/// Those that open nothing by a name.
const CLOSED: [Role; 5] = [
    Role::Vcpu,
    Role::Device,
    Role::AsyncDrive,
    Role::Vsock,
    Role::Api,
];

#[test]
fn names_lead_nowhere_and_what_nobody_needs_is_refused() {
    if abi().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = path(folder.path(), "file");
    std::fs::write(folder.path().join("file"), "there").expect("room");
    std::fs::create_dir(folder.path().join("folder")).expect("room");
    let held = std::fs::File::open(folder.path().join("file")).expect("ours");
    let names: Vec<CString> = ["new", "old", "link", "device", "pipe", "socket", "folder"]
        .map(|name| path(folder.path(), name))
        .into();
    let [new, old, link, device, pipe, socket, directory] = &names[..] else {
        unreachable!()
    };
    let opened = |path: &CString, flags| open(path.as_c_str(), flags, Mode::RUSR).map(drop);
    let make = |path: &CString, kind| {
        // The null device's number.
        mknodat(CWD, path.as_c_str(), kind, Mode::RUSR, makedev(1, 3))
    };
    let root = rustix::process::geteuid().is_root();
    let devices = [FileType::CharacterDevice, FileType::BlockDevice];
    let filters = permissive();
    for role in Role::ALL {
        let denied = Err(Errno::ACCESS);
        let for_files = if CLOSED.contains(&role) {
            denied
        } else {
            Ok(())
        };
        let for_removal = if role == Role::Api { Ok(()) } else { for_files };
        let check = |what: &str, expected: Result<(), Errno>, call: Try<'_>| {
            assert_eq!(outcome(&filters, role, call), expected, "{role:?}: {what}");
        };
        // What is open stays open.
        check("read on", Ok(()), &|| {
            rustix::io::pread(&held, &mut [0], 0).map(drop)
        });
        check("read", for_files, &|| opened(&file, OFlags::RDONLY));
        check("write", for_files, &|| opened(&file, OFlags::WRONLY));
        check("list", for_files, &|| opened(directory, OFlags::RDONLY));
        check("make", for_files, &|| {
            opened(new, OFlags::WRONLY | OFlags::CREATE)
        });
        check("rename", for_files, &|| {
            rename(file.as_c_str(), file.as_c_str())
        });
        std::fs::write(folder.path().join("old"), "").expect("room");
        check("remove", for_removal, &|| {
            unlinkat(CWD, old.as_c_str(), AtFlags::empty())
        });
        check("link", denied, &|| symlink(c"file", link.as_c_str()));
        check("remove a folder", denied, &|| rmdir(directory.as_c_str()));
        check("pipe", denied, &|| make(pipe, FileType::Fifo));
        check("socket", denied, &|| make(socket, FileType::Socket));
        for kind in devices.into_iter().filter(|_| root) {
            check("device", denied, &|| make(device, kind));
        }
        check("execute", denied, &|| {
            let shell = c"/bin/sh".as_ptr();
            let arguments = [shell, c"-c".as_ptr(), c"exit 0".as_ptr(), std::ptr::null()];
            // SAFETY: strings that end with a zero, and a list of them that ends with a null pointer.
            unsafe { libc::execv(shell, arguments.as_ptr()) };
            // Here only when it fails.
            Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
        });
    }
    assert!(folder.path().join("folder").is_dir());
}

#[test]
fn neither_sockets_nor_signals_lead_to_others() {
    let Some(abi) = abi() else {
        return;
    };
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = tcp.local_addr().expect("bound").port();
    let name = format!("keeptime-landlock-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("a socket");
    let folder = tempfile::tempdir().expect("a folder");
    let named = folder.path().join("socket");
    let _named = UnixListener::bind(&named).expect("a socket");
    let abstract_name = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("short");
    let with_a_name = SocketAddrUnix::new(&named).expect("short");
    let filters = permissive();
    for role in Role::ALL {
        let check = |what: &str, expected: Result<(), Errno>, call: Try<'_>| {
            assert_eq!(outcome(&filters, role, call), expected, "{role:?}: {what}");
        };
        if abi >= 4 {
            check("TCP", Err(Errno::ACCESS), &|| {
                let address = SocketAddrV4::new([127, 0, 0, 1].into(), port);
                let tcp = socket(AddressFamily::INET, SocketType::STREAM, None)?;
                connect(tcp, &address)
            });
        }
        let unix = |address: &SocketAddrUnix| {
            let stream = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
            connect(stream, address)
        };
        if abi >= 6 {
            check("an abstract socket", Err(Errno::PERM), &|| {
                unix(&abstract_name)
            });
        }
        if abi >= 7 {
            check("a signal", Err(Errno::PERM), &|| {
                test_kill_process(getppid().ok_or(Errno::SRCH)?)
            });
            check(
                "a signal to itself",
                Ok(()),
                &|| test_kill_process(getpid()),
            );
        }
        // What the socket device's thread is there for.
        check("a socket with a name", Ok(()), &|| unix(&with_a_name));
    }
}
