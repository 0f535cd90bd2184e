//! Writes the jailer's manual page into the folder that is named. `cargo lab man` runs it.

use std::io;

fn main() -> io::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .ok_or_else(|| io::Error::other("name a folder"))?;
    clap_mangen::generate_to(jailer::cli::command(), folder)
}
