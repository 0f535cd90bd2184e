//! The command line.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use arch::memory::MemorySize;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use hypervisor::kvm::Kvm;
use hypervisor::{Hypervisor, InterruptControllers, OpenError};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{
    self, BootConfig, ConfigFileError, DEFAULT_CMDLINE, MachineConfig, Module, VcpuCount, VmConfig,
};
use crate::demo::{self, DemoError};
use crate::doctor::{Doctor, DoctorError};
use crate::error::one_line;
use crate::machine::{Console, Machine, MachineError, Payload};
use crate::outcome::Outcome;
use crate::simulate::{Simulate, SimulateError};

/// The largest configuration file that is read. A full one is a few kilobytes.
const MAX_CONFIG_FILE: u64 = 1 << 20;

const AFTER_HELP: &str = "\
Exit status:
  0    the guest ended by itself: reset, power-off or triple fault; or Ctrl-A x was typed
  1    a usage or configuration error, told in one line on standard error
  2    a vCPU cannot go on: the reason and its registers are on standard error
  128+n  ended by signal n
  (v << 1) | 1   the guest wrote v to the port of --debug-exit

Examples:
  keeptime demo
  keeptime run --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0' --cpus 2 --memory 512
  keeptime --no-api --config-file vm.json
  keeptime doctor --require offset,single-domain
  keeptime simulate seed --plot seed.svg

The guest's serial port COM1 is standard input and output. On a terminal, Ctrl-A x ends the microVM
and Ctrl-A Ctrl-A sends Ctrl-A.";

/// A microVM launcher for Linux/KVM whose guests' clocks stay right.
#[derive(Debug, Parser)]
#[command(
    name = "keeptime",
    version,
    after_help = AFTER_HELP,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    file: FromFile,
    /// The least important messages that are logged to standard error
    #[arg(long, global = true, value_enum, default_value_t = Level::Info, ignore_case = true)]
    level: Level,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a kernel in a microVM
    Run(Run),
    /// Run the guest that is compiled into this program: it reads its clock and is measured
    Demo,
    /// Measure what this host can do for guests' time
    Doctor(Doctor),
    /// Try policies for guest time on simulated hosts that misbehave
    Simulate(Simulate),
}

/// A microVM from a configuration file, with the flags of Firecracker.
#[derive(Debug, Args)]
struct FromFile {
    /// Run without an API server, from a configuration file
    #[arg(long, requires = "config_file")]
    no_api: bool,
    /// The microVM's configuration: JSON with `boot-source` and `machine-config`
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Log the time until the guest writes 123 to physical address 0xc0000000
    #[arg(long)]
    boot_timer: bool,
}

#[derive(Debug, Args)]
struct Run {
    /// Kernel: a bzImage (64-bit or 32-bit Linux), an ELF (PVH, Linux) or a multiboot 1 image
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk; for a multiboot kernel a module, FILE[,COMMAND], as often as needed
    #[arg(long, value_name = "FILE")]
    initrd: Vec<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_CMDLINE)]
    cmdline: String,
    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_vcpus)]
    cpus: VcpuCount,
    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value = "128", value_parser = parse_memory)]
    memory: MemorySize,
    /// Let the guest end this process: status (v << 1) | 1 when it writes v to port 0xf4
    #[arg(long)]
    debug_exit: bool,
    /// Log the time until the guest writes 123 to physical address 0xc0000000
    #[arg(long)]
    boot_timer: bool,
    /// Leave out the interval timer. A guest that does not use it does not pay for it either way
    #[arg(long)]
    no_pit: bool,
}

/// Log levels by the names that Firecracker has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    Off,
    Error,
    #[value(alias = "warn")]
    Warning,
    Info,
    Debug,
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::OFF,
            Level::Error => Self::ERROR,
            Level::Warning => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

fn parse_vcpus(text: &str) -> Result<VcpuCount, String> {
    let count = text
        .parse()
        .map_err(|_| "not a number of vCPUs: choose 1 to 32".to_owned())?;
    VcpuCount::new(count).map_err(|error| error.to_string())
}

fn parse_memory(text: &str) -> Result<MemorySize, String> {
    let mib = text.parse().map_err(|_| "not a number of MiB".to_owned())?;
    MemorySize::from_mib(mib).map_err(|error| error.to_string())
}

/// Why nothing could be run: status 1, one line.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{0}")]
    Usage(String),
    #[error("cannot read the configuration file {path:?}; check its path and permissions")]
    ReadConfig {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("configuration file {path:?} is larger than {MAX_CONFIG_FILE} bytes")]
    LargeConfig { path: PathBuf },
    #[error("configuration file {path:?}")]
    Config {
        path: PathBuf,
        source: ConfigFileError,
    },
    #[error(transparent)]
    Kvm(#[from] OpenError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    Doctor(#[from] DoctorError),
    #[error(transparent)]
    Simulate(#[from] SimulateError),
}

/// Runs the program with `arguments`, the first of which is its own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let started = Instant::now();
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    start_logging(cli.level);
    match execute(&cli, started) {
        Ok(outcome) => {
            match &outcome {
                Outcome::Failure(report) => eprintln!("keeptime: {report}"),
                other => tracing::debug!("{other}"),
            }
            ExitCode::from(outcome.status())
        }
        Err(error) => {
            eprintln!("keeptime: {}", one_line(&error));
            ExitCode::from(1)
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    Cli::command()
        .try_get_matches_from(arguments)
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches))
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                // Nothing can be done about a closed standard output.
                let _ = error.print();
                ExitCode::SUCCESS
            }
            _ => {
                eprintln!(
                    "keeptime: {}; try --help",
                    first_paragraph(&error.to_string())
                );
                ExitCode::from(1)
            }
        })
}

/// clap explains a usage error in several paragraphs, of which the first names the culprit.
fn first_paragraph(message: &str) -> String {
    let lines = message
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim);
    let joined = lines.collect::<Vec<_>>().join(" ");
    joined.strip_prefix("error: ").unwrap_or(&joined).to_owned()
}

fn start_logging(level: Level) {
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from(level))
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}

fn execute(cli: &Cli, started: Instant) -> Result<Outcome, CommandError> {
    if let Some(flag) = cli.command.as_ref().and_then(|_| cli.file.given()) {
        return Err(CommandError::Usage(format!(
            "{flag} goes with a configuration file, not before a command"
        )));
    }
    match &cli.command {
        Some(Command::Demo) => Ok(demo::run(&Kvm::open()?, started)?),
        Some(Command::Doctor(doctor)) => {
            doctor.run()?;
            Ok(Outcome::PowerOff)
        }
        Some(Command::Simulate(simulate)) => {
            simulate.run()?;
            // As when a guest ended by itself.
            Ok(Outcome::PowerOff)
        }
        Some(Command::Run(run)) => boot(&VmConfig::from(run), started),
        None => boot(&cli.file.config()?, started),
    }
}

impl FromFile {
    /// A flag of this group that was given.
    fn given(&self) -> Option<&'static str> {
        [
            (self.no_api, "--no-api"),
            (self.config_file.is_some(), "--config-file"),
            (self.boot_timer, "--boot-timer"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag))
    }

    fn config(&self) -> Result<VmConfig, CommandError> {
        let usage = |text: &str| CommandError::Usage(text.to_owned());
        let Some(path) = &self.config_file else {
            return Err(usage(
                "nothing to run: give run, demo, or --no-api --config-file FILE",
            ));
        };
        if !self.no_api {
            return Err(usage("this version has no API server: add --no-api"));
        }
        let read = |source| CommandError::ReadConfig {
            path: path.clone(),
            source,
        };
        // A pipe or a device has no size to be asked for: no more is read than is allowed.
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_CONFIG_FILE + 1).read_to_end(&mut text))
            .map_err(read)?;
        if text.len() as u64 > MAX_CONFIG_FILE {
            return Err(CommandError::LargeConfig { path: path.clone() });
        }
        let mut config = config::parse(&text).map_err(|source| CommandError::Config {
            path: path.clone(),
            source,
        })?;
        config.machine.boot_timer = self.boot_timer;
        Ok(config)
    }
}

impl From<&Run> for VmConfig {
    fn from(run: &Run) -> Self {
        Self {
            boot: BootConfig {
                kernel: run.kernel.clone(),
                modules: run
                    .initrd
                    .iter()
                    .map(|text| Module::from_argument(text))
                    .collect(),
                cmdline: run.cmdline.clone(),
            },
            machine: MachineConfig {
                vcpus: run.cpus,
                memory: run.memory,
                debug_exit: run.debug_exit,
                boot_timer: run.boot_timer,
                pit: !run.no_pit,
            },
        }
    }
}

fn boot(config: &VmConfig, started: Instant) -> Result<Outcome, CommandError> {
    let kvm = Kvm::open()?;
    let machine = Machine::assemble(
        &kvm,
        &config.machine,
        InterruptControllers::InKernel,
        &Payload::Files(&config.boot),
        None,
        started,
    )?;
    for feature in kvm.missing_features() {
        tracing::info!(
            "this host's KVM lacks {}: {}",
            feature.name,
            feature.consequence
        );
    }
    Ok(machine.run(Console::StandardInput)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_paragraph() {
        // (arguments, what the line must hold)
        let rows: [(&[&str], &str); 6] = [
            (&["run"], "--kernel <FILE>"),
            (
                &["run", "--kernel", "k", "--cpus", "0"],
                "0 vCPUs are not possible",
            ),
            (
                &["run", "--kernel", "k", "--cpus", "1000"],
                "1000 vCPUs are not possible",
            ),
            (&["run", "--kernel", "k", "--memory", "0"], "--memory"),
            (&["--no-api"], "--config-file"),
            (&["run", "--kernl", "k"], "--kernl"),
        ];
        for (arguments, part) in rows {
            let arguments = std::iter::once(&"keeptime").chain(arguments);
            let error = Cli::try_parse_from(arguments).expect_err(part);
            let line = first_paragraph(&error.to_string());
            assert!(line.contains(part) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn configuration_file_flags_do_not_mix_with_commands() {
        for arguments in [
            &["keeptime", "--no-api", "--config-file", "f", "demo"][..],
            &["keeptime", "--boot-timer", "run", "--kernel", "k"],
        ] {
            let cli = Cli::try_parse_from(arguments).expect("clap allows it");
            let error = execute(&cli, Instant::now()).expect_err("conflict");
            assert!(one_line(&error).contains(arguments[1]), "{error}");
        }
    }

    #[test]
    fn configuration_file_without_end_is_refused() {
        let arguments = ["keeptime", "--no-api", "--config-file", "/dev/zero"];
        let cli = Cli::try_parse_from(arguments).expect("valid");
        let error = execute(&cli, Instant::now()).expect_err("too large");
        assert!(one_line(&error).contains("larger than"), "{error}");
    }

    #[test]
    fn level_is_taken_before_and_after_a_command() {
        for arguments in [
            ["keeptime", "--level", "Off", "demo"],
            ["keeptime", "demo", "--level", "off"],
        ] {
            assert_eq!(
                Cli::try_parse_from(arguments).expect("valid").level,
                Level::Off
            );
        }
    }
}
