//! Landlock: what a thread may not reach by a name, whatever its filter lets it ask. The filters here let it ask
//! everything, so that what is refused is refused by Landlock.
#![expect(
    unsafe_code,
    reason = "children of a fork call the kernel as a guest that took a thread over would"
)]

use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vmm::seccomp::{Filters, Role};

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

/// The error number of `call` in a child that does what `role` does; 0 when it succeeds.
fn errno(filters: &Filters, role: Role, call: &dyn Fn() -> libc::c_long) -> i32 {
    // SAFETY: the child calls only what needs no lock that another thread might hold: the kernel, and what takes
    // filters on, which allocates nothing.
    match unsafe { libc::fork() } {
        0 => {
            let status = match filters.enter(role) {
                Ok(()) if call() >= 0 => 0,
                Ok(()) => io::Error::last_os_error().raw_os_error().unwrap_or(255),
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
            libc::WEXITSTATUS(status)
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
        println!("skipped: the kernel has no Landlock");
    }
    abi
}

fn path(folder: &Path, name: &str) -> CString {
    let path = folder.join(name).into_os_string().into_encoded_bytes();
    CString::new(path).expect("no zero")
}

const CLOSED: [Role; 4] = [Role::Vcpu, Role::Device, Role::Vsock, Role::Api];
const OPEN: [Role; 4] = [Role::Vmm, Role::Time, Role::Report, Role::Assess];

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
    let open = |path: &CStr, flags| {
        // SAFETY: a path that ends with a zero.
        i64::from(unsafe { libc::open(path.as_ptr(), flags, 0o600) })
    };
    let make = |path: &CStr, kind| {
        // SAFETY: a path that ends with a zero; the null device's number.
        i64::from(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(1, 3)) })
    };
    let root = rustix::process::geteuid().is_root();
    let devices = [libc::S_IFCHR, libc::S_IFBLK];
    let filters = permissive();
    for role in Role::ALL {
        let closed = CLOSED.contains(&role);
        let for_files = if closed { libc::EACCES } else { 0 };
        let try_it = |what: &str, expected: i32, call: &dyn Fn() -> libc::c_long| {
            assert_eq!(errno(&filters, role, call), expected, "{role:?}: {what}");
        };
        // What is open stays open.
        try_it("read on", 0, &|| {
            let mut byte = 0_u8;
            // SAFETY: a byte of ours.
            let read = unsafe { libc::pread(held.as_raw_fd(), (&raw mut byte).cast(), 1, 0) };
            i64::try_from(read).unwrap_or(-1)
        });
        try_it("read", for_files, &|| open(&file, libc::O_RDONLY));
        try_it("write", for_files, &|| open(&file, libc::O_WRONLY));
        try_it("list", for_files, &|| open(directory, libc::O_RDONLY));
        try_it("make", for_files, &|| {
            open(new, libc::O_WRONLY | libc::O_CREAT)
        });
        // SAFETY: of here on, paths that end with a zero.
        try_it("rename", for_files, &|| unsafe {
            i64::from(libc::rename(file.as_ptr(), file.as_ptr()))
        });
        let for_removal = if role == Role::Api { 0 } else { for_files };
        std::fs::write(folder.path().join("old"), "").expect("room");
        try_it("remove", for_removal, &|| unsafe {
            i64::from(libc::unlink(old.as_ptr()))
        });
        try_it("link", libc::EACCES, &|| unsafe {
            i64::from(libc::symlink(file.as_ptr(), link.as_ptr()))
        });
        try_it("remove a folder", libc::EACCES, &|| unsafe {
            i64::from(libc::rmdir(directory.as_ptr()))
        });
        try_it("pipe", libc::EACCES, &|| make(pipe, libc::S_IFIFO));
        try_it("socket", libc::EACCES, &|| make(socket, libc::S_IFSOCK));
        for kind in devices.into_iter().filter(|_| root) {
            try_it("device", libc::EACCES, &|| make(device, kind));
        }
        try_it("execute", libc::EACCES, &|| unsafe {
            let shell = c"/bin/sh".as_ptr();
            let arguments = [shell, c"-c".as_ptr(), c"exit 0".as_ptr(), std::ptr::null()];
            i64::from(libc::execv(shell, arguments.as_ptr()))
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
    let filters = permissive();
    for role in CLOSED.into_iter().chain(OPEN) {
        let tried = |call: &dyn Fn() -> libc::c_long| errno(&filters, role, call);
        if abi >= 4 {
            let refused = tried(&|| connect_tcp(port));
            assert_eq!(refused, libc::EACCES, "{role:?}: TCP");
        }
        if abi >= 6 {
            let refused = tried(&|| connect_unix(b"\0", name.as_bytes()));
            assert_eq!(refused, libc::EPERM, "{role:?}: an abstract socket");
        }
        if abi >= 7 {
            // SAFETY: signal 0 only looks whether one may be sent.
            let refused = tried(&|| i64::from(unsafe { libc::kill(libc::getppid(), 0) }));
            assert_eq!(refused, libc::EPERM, "{role:?}: a signal");
            // SAFETY: as above.
            let own = tried(&|| i64::from(unsafe { libc::kill(libc::getpid(), 0) }));
            assert_eq!(own, 0, "{role:?}: a signal to itself");
        }
        // What the socket device's thread is there for.
        let path = named.as_os_str().as_encoded_bytes();
        let connected = tried(&|| connect_unix(b"", path));
        assert_eq!(connected, 0, "{role:?}: a socket with a name");
    }
}

fn connect_tcp(port: u16) -> libc::c_long {
    // SAFETY: all fields may be zero.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as libc::sa_family_t;
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an address of that length.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        i64::from(libc::connect(socket, (&raw const address).cast(), length))
    }
}

fn connect_unix(prefix: &[u8], name: &[u8]) -> libc::c_long {
    // SAFETY: all fields may be zero.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = prefix.iter().chain(name);
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = byte.cast_signed();
    }
    let length = size_of::<libc::sa_family_t>() + prefix.len() + name.len();
    // SAFETY: an address of that length.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        let address = (&raw const address).cast();
        i64::from(libc::connect(socket, address, length as libc::socklen_t))
    }
}
