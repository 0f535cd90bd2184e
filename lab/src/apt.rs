//! Debian packages: the programs that the hosts need, installed on the machine, and the kernels and
//! busyboxes, which are only downloaded and unpacked.
//!
//! Downloads use a configuration of their own under `target/lab/apt`, with its own lists and state:
//! the machine gains no foreign architecture and no source. apt verifies what it fetches against the
//! Debian archive's keyring. Only the release's `main` suite is asked, not its updates: a point
//! release's files stay in the archive and all of its architectures are in step.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::paths::{Paths, write_atomically};
use crate::process::{capture, run_visibly};

/// The release that the laboratory's recipes were tried with.
const SUITE: &str = "bookworm";
/// Used when the machine's own sources name no mirror of Debian.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// Installed by the package debian-archive-keyring, which apt on Debian depends on.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs what is missing of `packages`, after saying what will be installed.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("lab: installing Debian packages: {}", missing.join(" "));
    if !are_known(&missing) {
        run_visibly(as_root("apt-get").args(["update", "--quiet"]))?;
    }
    run_visibly(
        as_root("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(&missing),
    )
    .with_context(|| {
        format!(
            "install them by hand: apt-get install {}",
            missing.join(" ")
        )
    })
}

fn is_installed(package: &str) -> bool {
    capture(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${db:Status-Status}",
        package,
    ]))
    .is_ok_and(|status| status == "installed")
}

/// Whether the machine's package lists, which a fresh container does not have, know all of them.
fn are_known(packages: &[&str]) -> bool {
    packages.iter().all(|package| {
        capture(Command::new("apt-cache").args(["policy", package]))
            .is_ok_and(|policy| policy.contains("Candidate:") && !policy.contains("(none)"))
    })
}

fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--preserve-env=DEBIAN_FRONTEND", program]);
    command
}

/// Debian's archive, seen through a private apt configuration.
#[derive(Debug)]
pub(crate) struct Archive {
    configuration: PathBuf,
    lists: PathBuf,
}

impl Archive {
    /// Writes the private configuration. Nothing is fetched yet.
    pub(crate) fn open(paths: &Paths) -> Result<Self> {
        let root = paths.folder("apt")?;
        let lists = paths.folder("apt/state/lists")?;
        let empty = paths.folder("apt/empty")?;
        paths.folder("apt/state/lists/partial")?;
        paths.folder("apt/cache/archives/partial")?;
        let mirror = machine_mirror().unwrap_or_else(|| DEFAULT_MIRROR.to_owned());
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: install debian-archive-keyring"
        );
        let sources = root.join("sources.list");
        let source = format!("deb [arch=amd64,i386 signed-by={KEYRING}] {mirror} {SUITE} main\n");
        write_atomically(&sources, source.as_bytes())?;
        let status = root.join("state/status");
        write_atomically(&status, b"")?;
        let configuration = root.join("apt.conf");
        let text = format!(
            "Dir::State \"{state}\";\nDir::State::status \"{status}\";\nDir::Cache \"{cache}\";\n\
             Dir::Etc::main \"{empty}/none\";\nDir::Etc::parts \"{empty}\";\n\
             Dir::Etc::sourcelist \"{sources}\";\nDir::Etc::sourceparts \"{empty}\";\n\
             Dir::Etc::preferences \"{empty}/none\";\nDir::Etc::preferencesparts \"{empty}\";\n\
             Dir::Etc::trustedparts \"{empty}\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; \"i386\"; }};\n\
             APT::Sandbox::User \"\";\nAcquire::Languages \"none\";\n{machine}",
            state = root.join("state").display(),
            status = status.display(),
            cache = root.join("cache").display(),
            empty = empty.display(),
            sources = sources.display(),
            machine = machine_transport(),
        );
        write_atomically(&configuration, text.as_bytes())?;
        Ok(Self {
            configuration,
            lists,
        })
    }

    /// Fetches the package lists.
    pub(crate) fn update(&self) -> Result<()> {
        eprintln!("lab: fetching Debian's package lists ({SUITE} main, amd64 and i386)");
        capture(self.apt("apt-get").args(["--quiet=2", "update"])).map(drop)
    }

    /// Whether [`update`](Self::update) has been done.
    pub(crate) fn has_lists(&self) -> bool {
        let is_index =
            |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("_Packages");
        fs::read_dir(&self.lists).is_ok_and(|entries| entries.flatten().any(is_index))
    }

    /// The newest kernel package that the meta package `meta` depends on.
    pub(crate) fn kernel_behind(&self, meta: &str) -> Result<String> {
        let fields = capture(
            self.apt("apt-cache")
                .args(["show", "--no-all-versions", meta]),
        )?;
        let depends = fields
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "));
        depends
            .and_then(|list| {
                list.split(',')
                    .find_map(|item| item.trim().split(' ').next())
            })
            .filter(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .with_context(|| format!("the package {meta} names no kernel: {depends:?}"))
    }

    /// Downloads `package` (with `:architecture`) and unpacks it as the folder `to`.
    pub(crate) fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        eprintln!("lab: fetching {package}");
        let parent = to.parent().context("a folder without a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let work = tempfile::tempdir_in(parent).context("cannot make a temporary folder")?;
        capture(
            self.apt("apt-get")
                .args(["--quiet=2", "download", package])
                .current_dir(work.path()),
        )?;
        let deb = fs::read_dir(work.path())
            .context("cannot list the download")?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no {package}"))?;
        let tree = work.path().join("tree");
        capture(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&deb)
                .arg(&tree),
        )?;
        if to.exists() {
            fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
        }
        fs::rename(&tree, to).with_context(|| format!("cannot make {}", to.display()))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.configuration)
            .env("LC_ALL", "C");
        command
    }
}

/// The mirror that the machine itself takes this Debian release from.
fn machine_mirror() -> Option<String> {
    let targets = capture(Command::new("apt-get").args([
        OsString::from("indextargets"),
        "--format".into(),
        "$(SITE) $(RELEASE) $(COMPONENT)".into(),
        "Created-By: Packages".into(),
    ]))
    .ok()?;
    mirror_among(&targets)
}

fn mirror_among(targets: &str) -> Option<String> {
    targets
        .lines()
        .find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            // Ubuntu has no suite of this name; a mirror of the release carries both architectures.
            [site, SUITE, "main"] if site.starts_with("http") => Some(site.to_owned()),
            _ => None,
        })
}

/// The machine's proxies and other settings of apt's transports, which the private configuration
/// would otherwise lose.
fn machine_transport() -> String {
    let dump = capture(Command::new("apt-config").args(["dump", "--no-empty"])).unwrap_or_default();
    let keep = [
        "Acquire::http",
        "Acquire::https",
        "Acquire::Retries",
        "Acquire::ForceIP",
    ];
    let lines = dump
        .lines()
        .filter(|line| keep.iter().any(|prefix| line.starts_with(prefix)));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_among_targets_takes_the_release_and_not_its_security_suite() {
        let targets = "http://security.example/debian-security bookworm-security main\n\
                       https://other.example/apt stable main\n\
                       http://near.example/debian bookworm main\n";
        assert_eq!(
            mirror_among(targets).as_deref(),
            Some("http://near.example/debian")
        );
    }

    #[test]
    fn mirror_among_targets_of_another_distribution_is_none() {
        assert_eq!(
            mirror_among("http://archive.example/ubuntu noble main\n"),
            None
        );
        assert_eq!(mirror_among(""), None);
    }
}
