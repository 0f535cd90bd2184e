//! What scenarios are made from: the launcher, kernels and initramfs files, each made once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::cli::Common;
use crate::guest::linux;
use crate::kernels::{Kernel, Stock};
use crate::paths::{Paths, cargo};
use crate::process::run_visibly;

/// Makes things on demand and keeps them. Several threads may ask at once.
#[derive(Debug)]
pub(crate) struct Workshop {
    /// Where things lie.
    pub(crate) paths: Paths,
    given_launcher: Option<PathBuf>,
    refresh: bool,
    launcher: OnceLock<PathBuf>,
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
            None => {
                eprintln!("lab: building keeptime's release binary");
                run_visibly(
                    Command::new(cargo())
                        .current_dir(&self.paths.workspace)
                        .args([
                            "build",
                            "--quiet",
                            "--release",
                            "--package",
                            "vmm",
                            "--bin",
                            "keeptime",
                        ]),
                )?;
                self.paths.release_binary("keeptime")
            }
        };
        ensure!(launcher.is_file(), "{} is no file", launcher.display());
        // Another thread can only have stored the same.
        let _ = self.launcher.set(launcher);
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

    /// The initramfs of a Linux guest.
    pub(crate) fn guest_initramfs(&self, kernel: Kernel) -> Result<Vec<u8>> {
        linux::initramfs(&self.stock(kernel)?)
    }
}
