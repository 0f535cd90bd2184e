//! `cargo lab man` and `cargo lab package`: the manual pages, and the Debian package with everything in it.
//!
//! The pages are made from the command lines' own definitions, by the example `man` of each product, so that they
//! cannot say anything else than `--help`; nothing of that is in the products. The package is cargo-deb's, by the
//! metadata in `vmm/Cargo.toml`; what it holds besides is in `packaging/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::paths::{Paths, cargo};
use crate::process::{capture, run_visibly};

/// What looks at pages, units and packages.
pub(crate) const TOOLS: &[&str] = &["groff-base", "man-db", "systemd"];

/// Where the package's metadata looks for the pages, from the workspace's root.
const PAGES: &str = "target/lab/man";

/// Makes the manual pages of keeptime, of its commands, and of the jailer.
#[derive(Debug, Args)]
pub(crate) struct Pages {
    /// The folder for them
    #[arg(long, value_name = "FOLDER", default_value = PAGES)]
    to: PathBuf,
}

/// Makes the Debian package, and looks at what came out.
///
/// Installs cargo-deb when it is missing. The package lies under target/lab/package.
#[derive(Debug, Args)]
pub(crate) struct Package {}

/// Makes the pages and tells where they are.
pub(crate) fn man(paths: &Paths, arguments: &Pages) -> Result<ExitCode> {
    let folder = paths.workspace.join(&arguments.to);
    for page in pages(paths, &folder)? {
        println!("{}", page.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the pages in `folder`, which is emptied before; theirs alone.
pub(crate) fn pages(paths: &Paths, folder: &Path) -> Result<Vec<PathBuf>> {
    eprintln!("lab: making the manual pages");
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for product in ["vmm", "jailer"] {
        let mut command = Command::new(cargo());
        command.current_dir(&paths.workspace).args([
            "run",
            "--quiet",
            "--package",
            product,
            "--example",
            "man",
            "--",
        ]);
        run_visibly(command.arg(folder))?;
    }
    let entries = fs::read_dir(folder).context("the pages cannot be listed")?;
    let mut pages: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    pages.sort();
    Ok(pages)
}

/// Makes the package.
pub(crate) fn package(paths: &Paths, _: &Package) -> Result<ExitCode> {
    if capture(Command::new(cargo()).args(["deb", "--version"])).is_err() {
        eprintln!("lab: installing cargo-deb");
        run_visibly(Command::new(cargo()).args(["install", "--quiet", "--locked", "cargo-deb"]))?;
    }
    let folder = paths.folder("package")?;
    pages(paths, &paths.workspace.join(PAGES))?;
    for (product, binary) in [("vmm", "keeptime"), ("jailer", "jailer")] {
        eprintln!("lab: building {binary}'s release binary");
        run_visibly(
            Command::new(cargo())
                .current_dir(&paths.workspace)
                .args(["build", "--quiet", "--release"])
                .args(["--package", product, "--bin", binary]),
        )?;
    }
    let told = capture(
        Command::new(cargo())
            .current_dir(&paths.workspace)
            // A jail has a copy of the launcher: 4 MB instead of 17.
            .args([
                "deb",
                "--quiet",
                "--no-build",
                "--strip",
                "--package",
                "vmm",
            ])
            .args(["--target", "x86_64-unknown-linux-gnu", "--output"])
            .arg(&folder),
    )?;
    let package = told
        .lines()
        .last()
        .map(|line| PathBuf::from(line.trim()))
        .context("cargo-deb names no package")?;
    run_visibly(Command::new("dpkg-deb").arg("--info").arg(&package))?;
    let list = capture(Command::new("dpkg-deb").arg("--contents").arg(&package))?;
    print!("{list}");
    for file in [
        "./usr/bin/keeptime",
        "./usr/bin/jailer",
        "./usr/lib/systemd/system/keeptime@.service",
        "./usr/share/man/man1/jailer.1.gz",
    ] {
        let is_there = list.lines().any(|line| line.ends_with(file));
        ensure!(is_there, "the package has no {file}");
    }
    println!("{}", package.display());
    Ok(ExitCode::SUCCESS)
}
