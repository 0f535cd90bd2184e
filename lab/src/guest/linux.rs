//! A stock Linux guest: its initramfs, its command line, and what its user space says.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::guest::{program, witness};
use crate::host::program::{CURL, with_libraries};
use crate::kernels::{Kernel, Stock};
use crate::modules;

/// The first program.
const INIT: &str = include_str!("init.sh");

/// What the launcher passes to the kernel: the serial console, and a reboot at once instead of a halt
/// when it panics, so that a broken guest ends.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 panic=-1";

/// What a guest's first program writes before it powers off.
pub(crate) const END: &str = "--- power off ---";

/// The guest's memory in MiB. The 686 kernels unpack themselves into some 60 MiB.
pub(crate) const MEMORY_MIB: u32 = 256;

/// An initramfs whose first program reports and powers off.
pub(crate) fn initramfs(stock: &Stock) -> Result<Vec<u8>> {
    Ok(archive(stock)?.finish()?)
}

/// The same, with the witness of its time, which it runs for as many seconds as the kernel's option `witness`
/// says before it ends its report.
pub(crate) fn initramfs_with_witness(stock: &Stock, kernel: Kernel) -> Result<Vec<u8>> {
    let mut archive = archive(stock)?;
    archive.directory("modules")?;
    add_modules(&mut archive, stock, witness::MODULES)?;
    archive.executable("bin/witness", &witness::build(kernel)?)?;
    Ok(archive.finish()?)
}

/// What a guest with a balloon does before it ends its report.
const BALLOON: &str = include_str!("balloon.sh");

/// The same with a balloon's modules, where the kernel's option `balloon` says how many MiB the host puts into it.
pub(crate) fn balloon_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    let mut archive = archive(stock)?;
    archive.directory("modules")?;
    add_modules(&mut archive, stock, wanted)?;
    archive.executable("bin/balloon", BALLOON.as_bytes())?;
    Ok(archive.finish()?)
}

/// Adds modules, and the order in which they are to be loaded.
fn add_modules(archive: &mut Archive, stock: &Stock, wanted: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in modules::in_load_order(&stock.modules, wanted)? {
        let path = format!("modules/{}.ko", module.name);
        archive.file(&path, 0o644, &module.contents)?;
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    Ok(())
}

fn archive(stock: &Stock) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys"] {
        archive.directory(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.executable("bin/busybox", &stock.read_busybox()?)?;
    archive.executable("init", INIT.as_bytes())?;
    Ok(archive)
}

/// What all first programs of guests with modules begin with: file systems, and the modules.
const BEGIN: &str = include_str!("begin.sh");

/// The first program of a guest with disks.
const DISK: &str = include_str!("disk.sh");

/// The first program of a guest whose root is on a disk.
const ROOT: &str = include_str!("root.sh");

/// The first program of a guest with persistent memories.
const PMEM: &str = include_str!("pmem.sh");

/// The first program of a guest with a network card.
const NETWORK: &str = include_str!("network.sh");

/// The first program of a guest with a socket device.
const SOCKETS: &str = include_str!("sockets.sh");

/// The first program of a guest with a device of each kind.
const DEVICES: &str = include_str!("devices.sh");

/// The first program of a guest whose devices are measured.
const IO: &str = include_str!("io.sh");

/// The first program of a tenant's guest.
const TENANT: &str = include_str!("tenant.sh");

/// An initramfs whose first program loads these modules, uses the disks, and powers off.
pub(crate) fn disk_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    Ok(archive_with_modules(stock, DISK, wanted)?.finish()?)
}

/// The same, whose first program goes on from the root file system that the kernel's command line names.
pub(crate) fn root_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    Ok(archive_with_modules(stock, ROOT, wanted)?.finish()?)
}

/// The same with persistent memories, which it waits with for its end.
pub(crate) fn pmem_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    Ok(archive_with_modules(stock, PMEM, wanted)?.finish()?)
}

/// The same with the network card, and the programs that use it.
pub(crate) fn network_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    let mut archive = archive_with_modules(stock, NETWORK, wanted)?;
    let program = program::build(program::STREAM, Kernel::Amd64)?;
    archive.executable("bin/stream", &program)?;
    archive.directory("curl")?;
    for (name, contents) in with_libraries(Path::new(CURL))? {
        archive.executable(&format!("curl/{name}"), &contents.read()?)?;
    }
    Ok(archive.finish()?)
}

/// The same with a disk and a network card.
pub(crate) fn tenant_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    Ok(archive_with_modules(stock, TENANT, wanted)?.finish()?)
}

/// The same with the socket device, and the program that talks over it.
pub(crate) fn sockets_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    with_sockets(stock, SOCKETS, wanted)
}

/// The same with a device of each kind.
pub(crate) fn devices_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    with_sockets(stock, DEVICES, wanted)
}

fn with_sockets(stock: &Stock, init: &str, wanted: &[&str]) -> Result<Vec<u8>> {
    let mut archive = archive_with_modules(stock, init, wanted)?;
    archive.executable(
        "bin/sockets",
        &program::build(program::SOCKETS, Kernel::Amd64)?,
    )?;
    Ok(archive.finish()?)
}

/// The same with disk, network card and socket device, and the program that loads them.
pub(crate) fn io_initramfs(stock: &Stock, wanted: &[&str]) -> Result<Vec<u8>> {
    let mut archive = archive_with_modules(stock, IO, wanted)?;
    archive.executable("bin/io", &program::build(program::IO, Kernel::Amd64)?)?;
    Ok(archive.finish()?)
}

fn archive_with_modules(stock: &Stock, init: &str, wanted: &[&str]) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        archive.directory(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.executable("bin/busybox", &stock.read_busybox()?)?;
    archive.executable("init", [BEGIN, init].concat().as_bytes())?;
    add_modules(&mut archive, stock, wanted)?;
    Ok(archive)
}

/// What a guest's user space reported.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    lines: Vec<(String, String)>,
}

impl Report {
    /// Finds the report in the guest's serial output.
    ///
    /// # Errors
    /// When user space was not reached, or did not come to its end.
    pub(crate) fn parse(serial: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(serial);
        let (_, report) = text
            .split_once("--- user space ---")
            .context("the guest did not reach user space")?;
        let (report, _) = report
            .split_once(END)
            .context("the guest reached user space, but not its end")?;
        let pairs = report
            .lines()
            .filter_map(|line| line.trim().split_once(": "));
        Ok(Self {
            lines: pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        })
    }

    /// The value of the line `key`.
    pub(crate) fn value<'a>(&'a self, key: &'a str) -> Result<&'a str> {
        self.all(key)
            .next()
            .with_context(|| format!("the guest's report has no line {key:?}"))
    }

    /// The values of all lines `key`.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines
            .iter()
            .filter(move |line| line.0 == key)
            .map(|line| line.1.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_between_kernel_messages_is_found() {
        let serial = b"[    0.1] clocksource: hpet\r\n--- user space ---\r\nclocksource: tsc\r\n\
                       log: [    0.0] tsc: one\r\nlog: [    0.1] tsc: two\r\n--- power off ---\r\n\
                       [    2.0] reboot: Power down\r\n";
        let report = Report::parse(serial).unwrap();
        assert_eq!(report.value("clocksource").unwrap(), "tsc");
        assert_eq!(report.all("log").count(), 2);
        assert!(report.value("uptime").is_err());
    }

    #[test]
    fn report_that_is_cut_off_is_an_error() {
        assert!(Report::parse(b"[    0.1] Kernel panic").is_err());
        assert!(Report::parse(b"--- user space ---\r\nclocksource: tsc\r\n").is_err());
    }
}
