//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::paths::Paths;
use crate::{bench, boot, fuzzing, microscope, packaging, soak, test};

/// Hosts to test Keeptime on, scenarios and benchmarks.
///
/// Whatever a command needs is installed or fetched by itself, after it has been named: Debian
/// packages (with sudo when you are not root), stock kernels, cargo tools. Everything else lies under
/// target/lab.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Use this launcher instead of building keeptime's release binary
    #[arg(long, global = true, value_name = "BINARY")]
    pub(crate) launcher: Option<PathBuf>,
    /// Ask Debian's archive for newer kernels, even when some are cached
    #[arg(long, global = true)]
    pub(crate) refresh: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a stock Linux kernel in a microVM and show its serial console
    Boot(boot::Arguments),
    /// Run the workspace's tests and the scenarios on all hosts
    Test(test::Arguments),
    /// Measure what things cost on this machine
    Bench(bench::Arguments),
    /// Run every fuzz target for its share of a budget of time
    Fuzz(fuzzing::Arguments),
    /// Launch jailed microVMs over and over, end them at random, and account for what they leave behind
    Soak(soak::Arguments),
    /// Run a command of yours, with files of yours, inside an emulated host with KVM
    Host(microscope::Arguments),
    /// Make the manual pages
    Man(packaging::Pages),
    /// Make the Debian package
    Package(packaging::Package),
}

/// Which emulated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Emulated {
    /// QEMU with AMD's SVM: seconds to start; its TSC is unstable, or stable with tsc=reliable
    Svm,
    /// Bochs with Intel's VMX and TSC scaling: a minute or two to start
    Vmx,
}

impl Cli {
    /// Does what the user asked for.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if let Command::Soak(arguments) = &self.command
            && let Some(result) = soak::within(arguments)
        {
            return result;
        }
        let paths = Paths::discover()?;
        match self.command {
            Command::Boot(arguments) => boot::run(paths, &self.common, &arguments),
            Command::Test(arguments) => test::run(paths, &self.common, &arguments),
            Command::Bench(arguments) => bench::run(paths, &self.common, &arguments),
            Command::Fuzz(arguments) => fuzzing::run(&paths, &arguments),
            Command::Soak(arguments) => soak::run(&paths, &self.common, &arguments),
            Command::Host(arguments) => microscope::run(&paths, &self.common, arguments),
            Command::Man(arguments) => packaging::man(&paths, &arguments),
            Command::Package(arguments) => packaging::package(&paths, &arguments),
        }
    }
}
