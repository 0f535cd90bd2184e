//! `cargo lab bench`: what things cost on this machine.

mod api;
mod io;
mod jail;
mod launch;
mod statistics;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::Common;
use crate::paths::Paths;

/// Measures on this machine's KVM, or on an emulated host that counts instructions.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From process start to a small guest's first line, and to the process's end
    Launch(launch::Arguments),
    /// What a guest's disk, network card and socket device cost, in instructions of an emulated host
    Io(io::Arguments),
}

/// Measures what was asked for.
pub(crate) fn run(paths: Paths, common: &Common, arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Launch(launch) => launch::run(paths, common, launch),
        What::Io(io) => io::run(paths, common, io),
    }
}
