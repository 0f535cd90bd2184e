//! `cargo lab bench`: what things cost on this machine.

mod api;
mod jail;
mod launch;
mod statistics;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::Common;
use crate::paths::Paths;

/// Measures on this machine's KVM.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From process start to a small guest's first line, and to the process's end
    Launch(launch::Arguments),
}

/// Measures what was asked for.
pub(crate) fn run(paths: Paths, common: &Common, arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Launch(launch) => launch::run(paths, common, launch),
    }
}
