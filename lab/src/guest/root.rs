//! File systems for guests, as images of disks. Needs mke2fs and mksquashfs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt;
use crate::guest::program;
use crate::kernels::{Kernel, Stock};
use crate::process::capture;

/// The programs' Debian packages.
const PACKAGES: &[&str] = &["e2fsprogs", "squashfs-tools"];

/// The first program of the root file system.
const INIT: &str = include_str!("shell.sh");

/// How Linux names the root's partition: the signature of its disk, and its number.
pub(crate) const PARTUUID: &str = "0eaa91a0-01";
const SIGNATURE: u32 = 0x0eaa_91a0;

/// The size of the root file system.
const SIZE: &str = "16m";

/// A disk whose only partition is a root file system, ext4, with busybox and the program that moves a lot.
pub(crate) fn disk(stock: &Stock) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let tree = folder.path().join("tree");
    for name in ["bin", "dev", "mnt", "proc", "sbin", "sys"] {
        fs::create_dir_all(tree.join(name)).context("cannot make a root's folder")?;
    }
    let stream = program::build(program::STREAM, Kernel::Amd64)?;
    for (name, contents) in [
        ("bin/busybox", stock.read_busybox()?),
        ("bin/stream", stream),
        ("sbin/init", INIT.into()),
    ] {
        let path = tree.join(name);
        fs::write(&path, contents).context("cannot write a root's file")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .context("cannot make a root's file executable")?;
    }
    apt::install(PACKAGES)?;
    let image = folder.path().join("image");
    capture(
        Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .args([&tree, &image])
            .arg(SIZE),
    )?;
    let root = fs::read(&image).context("cannot read a root file system")?;
    partitioned(&root)
}

/// A squashfs with one file.
pub(crate) fn squashfs(name: &str, contents: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).context("cannot make a file system's folder")?;
    fs::write(tree.join(name), contents).context("cannot write a file system's file")?;
    apt::install(PACKAGES)?;
    let image = folder.path().join("image");
    capture(
        Command::new("mksquashfs")
            .args([&tree, &image] as [&Path; 2])
            .args(["-quiet", "-no-progress"]),
    )?;
    fs::read(&image).context("cannot read a squashfs")
}

/// A disk with `file_system` in its first partition, from 1 MiB on.
fn partitioned(file_system: &[u8]) -> Result<Vec<u8>> {
    const SECTOR: usize = 512;
    const START: usize = 1 << 20;
    let sectors = |bytes: usize| u32::try_from(bytes / SECTOR).context("a file system too large");
    let mut disk = vec![0; START];
    // The DOS partition table: the disk's signature; of the first entry the type, Linux (0x83), the first sector and
    // their number; and the mark of the table (UEFI 2.10, 5.2.1).
    let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    put(440, &SIGNATURE.to_le_bytes());
    put(446 + 4, &[0x83]);
    put(446 + 8, &sectors(START)?.to_le_bytes());
    put(446 + 12, &sectors(file_system.len())?.to_le_bytes());
    put(510, &[0x55, 0xaa]);
    disk.extend_from_slice(file_system);
    Ok(disk)
}
