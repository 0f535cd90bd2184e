//! Programs of guests' user space, under `lab/guests`, that use no library.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::kernels::Kernel;
use crate::process::capture;

/// What programs that use no library share, by the name under which they include it.
const USER: (&str, &str) = ("user.h", include_str!("../../guests/user.h"));

/// Loads devices and measures it; and the host's side. For 64-bit guests.
pub(crate) const IO: &str = include_str!("../../guests/io.c");

/// Moves a lot, to and from disks and over TCP, on either side, and says what it was. For 64-bit guests.
pub(crate) const STREAM: &str = include_str!("../../guests/stream.c");

/// Talks over sockets, on either side. For 64-bit guests.
pub(crate) const SOCKETS: &str = include_str!("../../guests/sockets.c");

/// Skews CPUs, on a host.
pub(crate) const UNREST: &str = include_str!("../../guests/unrest.c");

/// The program for guests with `kernel`, of one file in C. Needs the C compiler that Rust's linker needs too, for 32
/// bits as well.
pub(crate) fn build(source: &str, kernel: Kernel) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let file = |name: &str| folder.path().join(name);
    fs::write(file("program.c"), source).context("cannot write a guest program's source")?;
    fs::write(file(USER.0), USER.1).context("cannot write a header of guest programs")?;
    let mode: &[&str] = match kernel {
        Kernel::Amd64 => &["-m64"],
        Kernel::I386 | Kernel::I386Pae => &["-m32", "-march=i686"],
    };
    let mut compiler = Command::new("cc");
    compiler
        .args(mode)
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"])
        .args(["-ffreestanding", "-fno-stack-protector", "-fno-pic"])
        .args(["-fno-asynchronous-unwind-tables", "-nostdlib"])
        .args(["-no-pie", "-static", "-Wl,--build-id=none", "-o"])
        .arg(file("program"))
        .arg(file("program.c"));
    capture(&mut compiler).context("install gcc, or mend the guest's program")?;
    fs::read(file("program")).context("cannot read a guest's program")
}
