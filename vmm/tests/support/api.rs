//! A launcher with an API, and a client of a few lines.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

/// A launcher that serves the API in a folder of its own.
pub(crate) struct Vm {
    pub(crate) child: Child,
    pub(crate) folder: TempDir,
    kernels: Vec<NamedTempFile>,
}

/// An answer: its status, and its body as JSON, if it is.
pub(crate) type Answer = (u16, Value);

impl Vm {
    /// Starts the launcher, whose socket clients can connect to.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::start_in(folder, arguments, Stdio::piped())
    }

    pub(crate) fn start_in(folder: TempDir, arguments: &[&str], output: Stdio) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .current_dir(folder.path())
            .args(["--api-sock", "socket", "--id", "test-vm"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .spawn()
            .expect("the launcher runs");
        let mut vm = Self {
            child,
            folder,
            kernels: Vec::new(),
        };
        while UnixStream::connect(vm.socket()).is_err() {
            let ended = vm.child.try_wait().expect("our child");
            assert_eq!(
                ended, None,
                "the launcher ended before its socket was there"
            );
            std::thread::yield_now();
        }
        vm
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sends one request over a connection of its own.
    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let (status, text) = raw(&self.socket(), method, path, body);
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) fn done(&self, method: &str, path: &str, body: &Value) {
        let answer = self.send(method, path, body);
        assert_eq!(answer, (204, Value::Null), "{path} {body}");
    }

    /// A request that must be refused: its message.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &Value) -> String {
        let (status, answer) = self.send(method, path, body);
        assert_eq!(status, 400, "{path} {body}: {answer}");
        answer["fault_message"].as_str().expect("a text").to_owned()
    }

    /// A counter of `GET /metrics`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (status, text) = raw(&self.socket(), "GET", "/metrics", &Value::Null);
        assert_eq!(status, 200);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect(name).parse().expect("a number")
    }

    /// Gives the machine a kernel and `vcpus` processors.
    pub(crate) fn configure(&mut self, code: &[u8], vcpus: u32) {
        let kernel = super::elf(code);
        self.done(
            "PUT",
            "/boot-source",
            &json!({"kernel_image_path": kernel.path()}),
        );
        self.done(
            "PUT",
            "/machine-config",
            &json!({"vcpu_count": vcpus, "mem_size_mib": 64}),
        );
        self.kernels.push(kernel);
    }

    pub(crate) fn act(&self, action: &str) {
        self.done("PUT", "/actions", &json!({"action_type": action}));
    }

    pub(crate) fn boot(&mut self, code: &[u8], vcpus: u32) {
        self.configure(code, vcpus);
        self.act("InstanceStart");
    }

    pub(crate) fn state(&self, state: &str) {
        self.done("PATCH", "/vm", &json!({"state": state}));
    }

    /// Reads the guest's console up to the end of `text`.
    pub(crate) fn read_until(&mut self, text: &str) {
        let output: &mut ChildStdout = self.child.stdout.as_mut().expect("a pipe");
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0];
            output.read_exact(&mut byte).expect("the guest goes on");
            seen.push(byte[0]);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child");
    }

    /// Waits for the end. The socket must be gone.
    pub(crate) fn wait(mut self) -> (ExitStatus, TempDir) {
        let status = self.child.wait().expect("our child");
        assert!(!self.socket().exists(), "the socket is left behind");
        let empty = tempfile::tempdir().expect("a folder");
        (status, std::mem::replace(&mut self.folder, empty))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // A test that failed leaves no launcher behind; one that has ended cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends one request over a connection of its own: the answer's status and body.
pub(crate) fn raw(socket: &Path, method: &str, path: &str, body: &Value) -> (u16, String) {
    let body = match body {
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut stream = UnixStream::connect(socket).expect("the socket");
    stream
        .write_all(request(method, path, &body).as_bytes())
        .expect("the request is taken");
    read_answer(&mut stream)
}

/// A request as it is sent.
pub(crate) fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The next answer on a connection that may go on: its status and body.
pub(crate) fn read_answer(client: &mut UnixStream) -> (u16, String) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).expect("more of the head");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let status = head.split(' ').nth(1).expect("a status");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    client.read_exact(&mut body).expect("the whole body");
    (
        status.parse().expect("a number"),
        String::from_utf8(body).expect("text"),
    )
}
