//! One jailed microVM, from its jail to what it leaves.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::api::Client;
use crate::process::{Running, tied};
use crate::soak::{JAILER, KERNEL, LAUNCHER, Place};

/// The user of the first slot; the others' follow.
const FIRST_USER: u32 = 20_000;
/// A microVM whose end takes longer hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// A kill comes after at most this time: an undisturbed cycle takes about as long.
const LATEST_KILL: Duration = Duration::from_millis(120);
/// The socket of the API, in the jail.
pub(super) const API: &str = "run/api.socket";
/// That of the socket device.
pub(super) const VSOCK: &str = "run/vsock";
/// The disk's image.
pub(super) const DISK: &str = "disk";

/// How a microVM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Its guest reset.
    Itself = 0,
    /// It was killed.
    Killed = 1,
}

/// A microVM and its jail.
pub(super) struct Tenant<'a> {
    pub(super) place: &'a Place,
    pub(super) slot: u32,
    pub(super) id: String,
}

impl Tenant<'_> {
    /// Lives through one cycle, and removes the jail as an operator has to.
    pub(super) fn live(&self, random: &mut fastrand::Rng, killed: bool) -> Result<End> {
        let words = self.words();
        let mut running = self.start()?;
        let process = i32::try_from(running.child().id())
            .ok()
            .and_then(Pid::from_raw);
        let process = process.context("no process id")?;
        let delay = LATEST_KILL.mul_f64(random.f64());
        let told = thread::scope(|scope| {
            let killer = killed.then(|| {
                scope.spawn(move || {
                    thread::sleep(delay);
                    // It is not collected yet, so the number is still its own.
                    kill_process(process, Signal::KILL)
                })
            });
            let told = self.drive(&mut running, random);
            if let Some(killer) = killer {
                // ESRCH cannot be, as above.
                let _ = killer.join();
            }
            told
        });
        if !killed && told.is_err() {
            running.end()?;
        }
        let status = running
            .wait_until(Instant::now() + LIMIT)?
            .with_context(|| format!("it did not end within {} s", LIMIT.as_secs()))?;
        let text = fs::read_to_string(&words).unwrap_or_default();
        let end = if status.success() {
            told.with_context(|| format!("it said: {text}"))?;
            self.expect_clean()?;
            End::Itself
        } else {
            if !(killed && status.signal() == Some(Signal::KILL.as_raw())) {
                let told = told
                    .err()
                    .map(|error| format!("{error:#}"))
                    .unwrap_or_default();
                bail!("it ended with {status}: {told}; it said: {text}");
            }
            End::Killed
        };
        self.remove()?;
        Ok(end)
    }

    /// Removes what an operator has to remove when the microVM has ended.
    pub(super) fn remove(&self) -> Result<()> {
        fs::remove_file(self.words()).context("cannot remove its words")?;
        let jail = self.jail();
        if jail.exists() {
            fs::remove_dir_all(&jail)
                .with_context(|| format!("cannot remove {}", jail.display()))?;
        }
        self.place.cgroups.remove_jail(&self.id)
    }

    /// Starts the jailer, which becomes the launcher.
    pub(super) fn start(&self) -> Result<Running> {
        let words = self.words();
        let user = self.user().to_string();
        let mut command = tied(self.place.folder.join(JAILER));
        command
            .args(["--id", &self.id, "--uid", &user, "--gid", &user])
            .arg("--exec-file")
            .arg(self.place.folder.join(LAUNCHER))
            .arg("--chroot-base-dir")
            .arg(self.place.jails())
            .arg("--netns")
            .arg(self.place.network(self.slot))
            .args(self.place.cgroups.options())
            .args(["--", "--level", "Error", "--api-sock"])
            .arg(format!("/{API}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&words).context("no file for its words")?);
        Running::spawn(&mut command)
    }

    /// Configures the microVM, starts it, pauses and resumes it, and presses Ctrl+Alt+Del.
    fn drive(&self, running: &mut Running, random: &mut fastrand::Rng) -> Result<()> {
        let mut api = self.begin(running, random.u8(1..=2))?;
        for _ in 0..random.u8(..=3) {
            api.ask("PATCH", "/vm", &json!({"state": "Paused"}))?;
            api.ask("GET", "/", &Value::Null)?;
            api.ask("PATCH", "/vm", &json!({"state": "Resumed"}))?;
        }
        press_keys(&mut api)
    }

    /// Configures the microVM and starts it.
    pub(super) fn begin(&self, running: &mut Running, processors: u8) -> Result<Client> {
        let root = self.root();
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(root.join(API)) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error).context("no socket"),
                Err(_) => {}
            }
            let ended = running.wait_until(Instant::now() + Duration::from_millis(1))?;
            ensure!(ended.is_none(), "it ended before its socket was there");
        };
        stream
            .set_read_timeout(Some(LIMIT))
            .context("no limit for answers")?;
        self.provide(&root.join(KERNEL), |path| {
            fs::copy(self.place.folder.join(KERNEL), path).map(drop)
        })?;
        self.provide(&root.join(DISK), |path| {
            File::create(path)?.set_len(1 << 20)
        })?;
        let mut api = Client::new(stream);
        let mut put = |path: &str, body: Value| api.ask("PUT", path, &body);
        put(
            "/boot-source",
            json!({"kernel_image_path": KERNEL, "boot_args": ""}),
        )?;
        put(
            "/machine-config",
            json!({"vcpu_count": processors, "mem_size_mib": 32}),
        )?;
        put(
            "/drives/root",
            json!({"drive_id": "root", "path_on_host": DISK, "is_root_device": false}),
        )?;
        put("/vsock", json!({"guest_cid": 3, "uds_path": VSOCK}))?;
        put("/entropy", json!({}))?;
        put("/actions", json!({"action_type": "InstanceStart"}))?;
        Ok(api)
    }

    /// Makes a file of the jail's user.
    fn provide(&self, path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        make(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
            .and_then(|()| chown(path, Some(self.user()), Some(self.user())))
            .with_context(|| format!("cannot make {}", path.display()))
    }

    /// A microVM that has ended by itself takes its sockets away.
    pub(super) fn expect_clean(&self) -> Result<()> {
        for socket in [API, VSOCK] {
            let path = self.root().join(socket);
            ensure!(!path.exists(), "it has left {}", path.display());
        }
        Ok(())
    }

    /// The user and group that it runs as.
    pub(super) fn user(&self) -> u32 {
        FIRST_USER + self.slot
    }

    /// The root of its jail, seen from outside.
    pub(super) fn root(&self) -> PathBuf {
        self.jail().join("root")
    }

    /// Where its standard error goes.
    fn words(&self) -> PathBuf {
        self.place.folder.join(format!("{}.stderr", self.id))
    }

    fn jail(&self) -> PathBuf {
        self.place.jails().join(LAUNCHER).join(&self.id)
    }
}

/// Has the guest reset.
pub(super) fn press_keys(api: &mut Client) -> Result<()> {
    api.ask("PUT", "/actions", &json!({"action_type": "SendCtrlAltDel"}))
}
