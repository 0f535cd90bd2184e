//! Where the laboratory keeps things: everything lies under `target/lab`, so that `cargo clean`
//! removes it and nothing else on the machine changes but the Debian packages that it names first.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The target triple that `.cargo/config.toml` names; Cargo puts what it builds under it.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The folders of one checkout.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The root of the workspace.
    pub(crate) workspace: PathBuf,
    /// Cargo's target folder, wherever the user has put it.
    pub(crate) target: PathBuf,
}

impl Paths {
    /// Asks Cargo where the workspace and its target folder are.
    pub(crate) fn discover() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let output = Command::new(cargo())
            .args([
                "metadata",
                "--no-deps",
                "--format-version",
                "1",
                "--manifest-path",
            ])
            .arg(&manifest)
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
        let folder = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("cargo metadata has no {key}"))
        };
        Ok(Self {
            workspace: folder("workspace_root")?,
            target: folder("target_directory")?,
        })
    }

    /// A folder under `target/lab`, made if it is missing.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.target.join("lab").join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// A folder for one run, removed when the run ends or a signal ends us.
    pub(crate) fn run_folder(&self, kind: &str) -> Result<RunFolder> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("{kind}-"))
            .tempdir_in(self.folder("runs")?)
            .context("cannot make a folder for the run")?;
        lock(&RUN_FOLDERS).insert(folder.path().to_owned());
        Ok(RunFolder(folder))
    }

    /// Where Cargo puts a binary of the release profile.
    pub(crate) fn release_binary(&self, name: &str) -> PathBuf {
        self.target.join(TRIPLE).join("release").join(name)
    }

    /// Keeps other laboratories that share this target folder out of the caches while the returned
    /// file lives. Results do not need it: each run has a folder of its own.
    pub(crate) fn lock_caches(&self) -> Result<File> {
        let path = self.folder("")?.join("caches.lock");
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("lab: another laboratory is filling the caches; waiting for it");
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// The folders of the runs that go on now.
static RUN_FOLDERS: LazyLock<Mutex<BTreeSet<PathBuf>>> = LazyLock::new(Mutex::default);

/// The folder of one run.
#[derive(Debug)]
pub(crate) struct RunFolder(TempDir);

impl RunFolder {
    /// Where it is. The last part is unique.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        lock(&RUN_FOLDERS).remove(self.0.path());
    }
}

/// Removes the folders of all runs, for an end that runs no destructors.
pub(crate) fn remove_run_folders() {
    for folder in lock(&RUN_FOLDERS).iter() {
        // A program that is just ending may still write there; then a folder is left under target/lab.
        let _ = fs::remove_dir_all(folder);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Cargo that runs us, or the one on the path when the binary is started by hand.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Writes a file under a temporary name and renames it, so that a reader sees all of it or nothing.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    std::io::Write::write_all(&mut file, contents)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
