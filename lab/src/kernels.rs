//! Debian's stock kernels and busybox: what the guests run, and what the emulated hosts run.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::apt::Archive;
use crate::bzimage::extract_elf;
use crate::paths::{Paths, write_atomically};

/// A stock kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kernel {
    /// linux-image-cloud-amd64
    #[value(name = "amd64")]
    Amd64,
    /// linux-image-686, 32 bits without PAE
    #[value(name = "i386")]
    I386,
    /// linux-image-686-pae, 32 bits with PAE
    #[value(name = "i386-pae")]
    I386Pae,
}

impl Kernel {
    /// The name on our command line and in the names of scenarios.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::I386 => "i386",
            Self::I386Pae => "i386-pae",
        }
    }

    /// The meta package that depends on the newest kernel of this kind.
    fn meta_package(self) -> &'static str {
        match self {
            Self::Amd64 => "linux-image-cloud-amd64",
            Self::I386 => "linux-image-686",
            Self::I386Pae => "linux-image-686-pae",
        }
    }

    /// Debian's name of the architecture, which user space must have too.
    fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::I386 | Self::I386Pae => "i386",
        }
    }
}

/// A kernel and its user space, unpacked in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Stock {
    /// The release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The folder `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
    /// A static busybox of the kernel's architecture.
    pub(crate) busybox: PathBuf,
}

impl Stock {
    /// Finds `kernel` in the cache, or fetches it. `refresh` asks the archive for a newer one first.
    pub(crate) fn fetch(paths: &Paths, kernel: Kernel, refresh: bool) -> Result<Self> {
        let folder = paths.folder("packages")?;
        let _lock = paths.lock_caches()?;
        let tree = folder.join(kernel.name());
        let busybox_tree = folder.join(format!("busybox-{}", kernel.architecture()));
        if refresh || !tree.exists() || !busybox_tree.exists() {
            let archive = Archive::open(paths)?;
            if refresh || !archive.has_lists() {
                archive.update()?;
            }
            let architecture = kernel.architecture();
            if refresh || !tree.exists() {
                let meta = format!("{}:{architecture}", kernel.meta_package());
                let package = archive.kernel_behind(&meta)?;
                archive.unpack(&format!("{package}:{architecture}"), &tree)?;
            }
            if refresh || !busybox_tree.exists() {
                archive.unpack(&format!("busybox-static:{architecture}"), &busybox_tree)?;
            }
        }
        let boot = tree.join("boot");
        let image = fs::read_dir(&boot)
            .with_context(|| format!("cannot list {}", boot.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"))
            })
            .with_context(|| format!("no kernel in {}", boot.display()))?;
        let name = image
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let release = name
            .as_deref()
            .and_then(|name| name.strip_prefix("vmlinuz-"))
            .context("a kernel without a release")?
            .to_owned();
        let modules = tree.join("lib/modules").join(&release);
        Ok(Self {
            release,
            image,
            modules,
            busybox: busybox_tree.join("bin/busybox"),
        })
    }

    /// The bzImage's contents.
    pub(crate) fn read_image(&self) -> Result<Vec<u8>> {
        fs::read(&self.image).with_context(|| format!("cannot read {}", self.image.display()))
    }

    /// The contents of busybox.
    pub(crate) fn read_busybox(&self) -> Result<Vec<u8>> {
        fs::read(&self.busybox).with_context(|| format!("cannot read {}", self.busybox.display()))
    }

    /// The path of the uncompressed ELF kernel, extracted from the bzImage once.
    pub(crate) fn elf(&self) -> Result<PathBuf> {
        // Beside the bzImage, so that a newer package takes it away with itself.
        let path = self
            .image
            .with_file_name(format!("vmlinux-{}", self.release));
        if !path.exists() {
            let elf = extract_elf(&self.read_image()?)
                .with_context(|| format!("cannot take the ELF out of {}", self.image.display()))?;
            write_atomically(&path, &elf)?;
        }
        Ok(path)
    }
}
