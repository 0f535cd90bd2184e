//! Jails to launch in: a new one for each launch, with what its guest needs, and gone afterwards.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;
use crate::scenario::LAUNCHER;

/// The user of the jails; nobody else has this number on a machine that measures.
const USER: &str = "30001";

/// Where jails are made.
#[derive(Debug)]
pub(super) struct Jails {
    jailer: PathBuf,
    folder: PathBuf,
    kernel: PathBuf,
    configuration: String,
    made: Cell<u32>,
}

impl Jails {
    /// Within `folder`, for launches of `launcher` with `kernel` and a configuration that calls it `kernel`.
    pub(super) fn new(
        jailer: &Path,
        launcher: &Path,
        folder: &Path,
        kernel: &Path,
        configuration: String,
    ) -> Result<Self> {
        // A copy, since the jailer takes no binary that could be reached by another name; and without line tables, as
        // docs/deployment.md says, since each jail gets a copy of it.
        let mut strip = Command::new("strip");
        capture(strip.arg("-o").arg(folder.join(LAUNCHER)).arg(launcher))?;
        Ok(Self {
            jailer: jailer.to_owned(),
            folder: folder.to_owned(),
            kernel: kernel.to_owned(),
            configuration,
            made: Cell::new(0),
        })
    }

    fn base(&self) -> PathBuf {
        self.folder.join("jails")
    }

    /// What launches in a new jail. The kernel and the configuration are there before, as an engine puts them there.
    pub(super) fn command(&self) -> Result<Command> {
        self.made.set(self.made.get() + 1);
        let id = format!("bench-{}", self.made.get());
        let root = self.base().join(LAUNCHER).join(&id).join("root");
        fs::create_dir_all(&root).context("cannot make a jail")?;
        fs::copy(&self.kernel, root.join("kernel")).context("cannot copy the kernel")?;
        fs::write(root.join("vm.json"), &self.configuration)
            .context("cannot write a configuration")?;
        let mut command = Command::new(&self.jailer);
        command
            .args(["--id", &id, "--uid", USER, "--gid", USER, "--exec-file"])
            .arg(self.folder.join(LAUNCHER))
            .arg("--chroot-base-dir")
            .arg(self.base())
            .args(["--", "--no-api", "--config-file", "vm.json"]);
        Ok(command)
    }

    /// Removes what a launch has left.
    pub(super) fn clean(&self) -> Result<()> {
        fs::remove_dir_all(self.base()).context("cannot remove a jail")
    }
}
