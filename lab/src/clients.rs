//! Other people's clients of the API: crates from crates.io in a workspace of their own, `lab/clients`,
//! and packages from PyPI in a virtual environment. Both are made when something needs them, and lie
//! under `target/lab`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt;
use crate::paths::{Paths, cargo, write_atomically};
use crate::process::{capture, run_visibly};

/// The packages with their exact versions.
const REQUIREMENTS: &str = include_str!("../clients/requirements.txt");

/// Debian's interpreter, for which `python3-venv` makes environments.
const PYTHON: &str = "/usr/bin/python3";

/// Builds the program that drives the launcher with the crates' clients.
pub(crate) fn program(paths: &Paths) -> Result<PathBuf> {
    let _lock = paths.lock_caches()?;
    let target = paths.folder("clients")?;
    eprintln!("lab: building the registry's clients");
    capture(
        Command::new(cargo())
            .args(["build", "--locked", "--manifest-path"])
            .arg(paths.workspace.join("lab/clients/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target),
    )?;
    Ok(target.join("x86_64-unknown-linux-gnu/debug/clients"))
}

/// Makes the virtual environment, if it is not there with these very packages, and tells where it
/// is. Its interpreter must be started by a path that leads through this very folder's name.
pub(crate) fn environment(paths: &Paths) -> Result<PathBuf> {
    apt::install(&["python3-venv"])?;
    let _lock = paths.lock_caches()?;
    let folder = paths.folder("")?.join("venv");
    let programs = folder.join("bin");
    let stamp = folder.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(folder);
    }
    eprintln!("lab: fetching the Python clients");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    run_visibly(Command::new(PYTHON).args(["-m", "venv"]).arg(&folder))?;
    run_visibly(
        Command::new(programs.join("pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .arg("--requirement")
            .arg(paths.workspace.join("lab/clients/requirements.txt")),
    )?;
    write_atomically(&stamp, REQUIREMENTS.as_bytes())?;
    Ok(folder)
}
