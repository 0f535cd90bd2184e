//! This machine's own KVM, whatever it is.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};

use crate::host::image::{Files, Source};
use crate::process::{capture, run_bounded, tied};
use crate::scenario::{Needs, Outcome, Scenario};
use crate::workshop::Workshop;

/// The device.
const KVM: &str = "/dev/kvm";

/// Why this machine cannot do what `needs` says, or `None` when it can.
pub(crate) fn obstacle(needs: Needs) -> Option<String> {
    match needs {
        Needs::Kvm => kvm_obstacle(),
        Needs::Root => kvm_obstacle().or_else(|| {
            let root = rustix::process::geteuid().is_root();
            (!root).then(|| "jails take root's rights (sudo -E cargo lab …)".to_owned())
        }),
        Needs::MountNamespace => {
            let mut probe = Command::new("unshare");
            probe.args([
                "--map-root-user",
                "--mount",
                "mount",
                "-t",
                "tmpfs",
                "none",
                "/tmp",
            ]);
            let error = capture(&mut probe).err()?;
            Some(format!(
                "no mount namespace of its own can be had here: {error}"
            ))
        }
    }
}

fn kvm_obstacle() -> Option<String> {
    let open =
        |path: &str| -> io::Result<File> { OpenOptions::new().read(true).write(true).open(path) };
    open(KVM)
        .err()
        .map(|error| format!("{KVM} cannot be opened: {error}"))
}

/// Whether the machine has a KVM at all: if so, a skip for the lack of it is a mistake of the set-up.
pub(crate) fn has_kvm() -> bool {
    Path::new(KVM).exists()
}

/// Runs `scenario` here, in a folder of its own.
pub(crate) fn run(workshop: &Workshop, scenario: &Scenario) -> Result<Outcome> {
    let files = scenario.all_files(workshop)?;
    let folder = workshop.paths.run_folder("native")?;
    lay_out(&files, folder.path())?;
    let mut command = tied("sh");
    command
        .current_dir(folder.path())
        .args(["-c", &scenario.script]);
    let finished = run_bounded(&mut command, scenario.limit)?;
    Ok(Outcome {
        status: finished.status.map(shell_status),
        stdout: finished.stdout,
        stderr: finished.stderr,
    })
}

/// Puts `files` into `folder`: links to files of this machine, copies of the rest.
pub(crate) fn lay_out(files: &Files, folder: &Path) -> Result<()> {
    for (name, source) in files {
        let path = folder.join(name);
        match source {
            Source::Path(target) => symlink(target, &path),
            Source::Bytes(bytes) => fs::write(&path, bytes)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755))),
        }
        .with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(())
}

/// A status as the shell has it: 128 and the signal's number for a death by signal.
fn shell_status(status: ExitStatus) -> u8 {
    let number = status
        .code()
        .or_else(|| status.signal().map(|signal| signal.saturating_add(128)));
    number
        .and_then(|number| u8::try_from(number).ok())
        .unwrap_or(u8::MAX)
}
