//! What scenarios are made from: the launcher, the contract suite, kernels and initramfs files, each made once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::cli::Common;
use crate::guest::linux;
use crate::kernels::{Kernel, Stock};
use crate::paths::{Paths, cargo};
use crate::process::{capture, run_visibly};

/// The contract suite's name among the tests of `hypervisor`.
const SUITE: &str = "tsc_contract";

/// Makes things on demand and keeps them. Several threads may ask at once.
#[derive(Debug)]
pub(crate) struct Workshop {
    /// Where things lie.
    pub(crate) paths: Paths,
    given_launcher: Option<PathBuf>,
    refresh: bool,
    launcher: OnceLock<PathBuf>,
    jailer: OnceLock<PathBuf>,
    contract: OnceLock<PathBuf>,
    stocks: Mutex<BTreeMap<Kernel, Stock>>,
}

impl Workshop {
    /// An empty workshop.
    pub(crate) fn new(paths: Paths, common: &Common) -> Self {
        Self {
            paths,
            given_launcher: common.launcher.clone(),
            refresh: common.refresh,
            launcher: OnceLock::new(),
            jailer: OnceLock::new(),
            contract: OnceLock::new(),
            stocks: Mutex::default(),
        }
    }

    /// The launcher's binary, which [`prepare_launcher`](Self::prepare_launcher) has made.
    pub(crate) fn launcher(&self) -> Result<&Path> {
        self.launcher
            .get()
            .map(PathBuf::as_path)
            .context("the launcher has not been built")
    }

    /// Builds the launcher's release binary, unless the user has named one.
    pub(crate) fn prepare_launcher(&self) -> Result<()> {
        let launcher = match &self.given_launcher {
            Some(given) => given
                .canonicalize()
                .with_context(|| format!("no {}", given.display()))?,
            None => self.release_binary("vmm", "keeptime")?,
        };
        ensure!(launcher.is_file(), "{} is no file", launcher.display());
        // Another thread can only have stored the same.
        let _ = self.launcher.set(launcher);
        Ok(())
    }

    /// The jailer's release binary, built when it is first asked for.
    pub(crate) fn jailer(&self) -> Result<&Path> {
        if let Some(jailer) = self.jailer.get() {
            return Ok(jailer);
        }
        let jailer = self.release_binary("jailer", "jailer")?;
        // Another thread can only have stored the same.
        Ok(self.jailer.get_or_init(|| jailer))
    }

    fn release_binary(&self, package: &str, binary: &str) -> Result<PathBuf> {
        eprintln!("lab: building {binary}'s release binary");
        run_visibly(
            Command::new(cargo())
                .current_dir(&self.paths.workspace)
                .args(["build", "--quiet", "--release"])
                .args(["--package", package, "--bin", binary]),
        )?;
        Ok(self.paths.release_binary(binary))
    }

    /// The contract suite's program, which [`prepare_contract`](Self::prepare_contract) has made.
    pub(crate) fn contract(&self) -> Result<&Path> {
        self.contract
            .get()
            .map(PathBuf::as_path)
            .context("the contract suite has not been built")
    }

    /// Builds the contract suite of TSC control as it is released, a static program like the launcher.
    pub(crate) fn prepare_contract(&self) -> Result<()> {
        eprintln!("lab: building the contract suite of TSC control");
        let mut command = Command::new(cargo());
        command.current_dir(&self.paths.workspace).args([
            "test",
            "--quiet",
            "--release",
            "--package",
            "hypervisor",
            "--test",
            SUITE,
            "--no-run",
            "--message-format=json-render-diagnostics",
        ]);
        let messages = capture(&mut command)?;
        let contract = executable(&messages, SUITE)
            .with_context(|| format!("cargo has built no program {SUITE}"))?;
        // Another thread can only have stored the same.
        let _ = self.contract.set(contract);
        Ok(())
    }

    /// A stock kernel.
    pub(crate) fn stock(&self, kernel: Kernel) -> Result<Stock> {
        let mut stocks = self.stocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stock) = stocks.get(&kernel) {
            return Ok(stock.clone());
        }
        let stock = Stock::fetch(&self.paths, kernel, self.refresh)?;
        stocks.insert(kernel, stock.clone());
        Ok(stock)
    }

    /// The initramfs of a Linux guest whose time is watched.
    pub(crate) fn witness_initramfs(&self, kernel: Kernel) -> Result<Vec<u8>> {
        linux::initramfs_with_witness(&self.stock(kernel)?, kernel)
    }

    /// The initramfs of a Linux guest.
    pub(crate) fn guest_initramfs(&self, kernel: Kernel) -> Result<Vec<u8>> {
        linux::initramfs(&self.stock(kernel)?)
    }
}

/// The program that cargo has made of the target `name`, by its messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        if message["target"]["name"] != name {
            return None;
        }
        message["executable"].as_str().map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_that_of_the_target_alone() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"hypervisor"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/other-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"suite"},"executable":"/t/suite-2"}"#,
            "\nno JSON\n",
        );
        assert_eq!(
            executable(messages, "suite"),
            Some(PathBuf::from("/t/suite-2"))
        );
        assert_eq!(executable(messages, "hypervisor"), None);
    }
}
