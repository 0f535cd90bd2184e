//! The command line.

#[cfg(test)]
mod compatibility;
mod ctl;
mod flags;
mod seccomp;
mod serve;

use std::ffi::{OsStr, OsString};
use std::panic::catch_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use arch::memory::MemorySize;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use hypervisor::kvm::Kvm;
use hypervisor::{Hypervisor, InterruptControllers, OpenError};
use tsc::Khz;
use tsc::plan::TimePolicy;

use crate::allocator;
use crate::api::COMPATIBLE_VERSION;
use crate::api::balloon::Balloon;
use crate::api::drive::{CacheType, Drive, Entropy, IoEngine};
use crate::api::network::{Mac, NetworkInterface};
use crate::api::pmem::Pmem;
use crate::api::vsock::Vsock;
use crate::config::{
    BootConfig, DEFAULT_CMDLINE, MachineConfig, Module, Peripherals, TscDomain, TscRate, VcpuCount,
    VmConfig, Watcher,
};
use crate::demo::{self, DemoError};
use crate::doctor::{Doctor, DoctorError, OnKvm};
use crate::error::one_line;
use crate::event_loop::EventLoop;
use crate::guest_rate;
use crate::logging::{self, Change, Level, log};
use crate::machine::{self, Additions, Console, Machine, MachineError, Payload, Surroundings};
use crate::outcome::Outcome;
use crate::output;
use crate::seccomp::{self as filters, FilterError};
use crate::signals;
use crate::simulate::{Simulate, SimulateError};
use crate::time_report::TimeReport;
use crate::time_report::file::{ReportPath, ReportPathError, Reporter};

use ctl::{Ctl, CtlError};
use flags::Flags;
use seccomp::SeccompFlags;
use serve::ServeError;

/// The name under which clients look for the program that they know.
const COMPATIBLE_NAME: &str = "firecracker";

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
  keeptime --api-sock vm.socket --id vm-1
  keeptime ctl --api-sock vm.socket status
  keeptime doctor --require offset,single-domain
  keeptime simulate seed --plot seed.svg

Without a command, and with flags of the API (or under the name firecracker), the program serves
Firecracker's API on a Unix socket: see docs/compatibility.md.

The guest's serial port COM1 is standard input and output. On a terminal, Ctrl-A x ends the microVM
and Ctrl-A Ctrl-A sends Ctrl-A.";

const AFTER_HELP_OF_RUN: &str = "\
The guest's metadata (MMDS), rate limiters and a root device's partuuid have no flags here: they are in a
configuration file, which keeptime --no-api --config-file FILE runs, or in the API, as are a balloon's
statistics and hints.";

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
    flags: Box<Flags>,
    /// The least important messages that are logged
    #[arg(long, global = true, value_enum, default_value_t = Level::Info, ignore_case = true)]
    level: Level,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a kernel in a microVM
    #[command(after_help = AFTER_HELP_OF_RUN)]
    Run(Box<Run>),
    /// Run the guest that is compiled into this program: it reads its clock and is measured
    Demo,
    /// Measure what this host can do for guests' time
    Doctor(Doctor),
    /// Try policies for guest time on simulated hosts that misbehave
    Simulate(Simulate),
    /// Ask a microVM's API, or tell it what to do
    Ctl(Ctl),
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
    /// Tell the places of virtio devices at the end of the kernel's command line, too, as virtio_mmio.device=, for
    /// kernels without ACPI. One with both finds each device twice, and complains of the second
    #[arg(long)]
    virtio_mmio_args: bool,
    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_vcpus)]
    cpus: VcpuCount,
    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value = "128", value_parser = parse_memory)]
    memory: MemorySize,
    /// A disk, as often as needed: a raw image or a block device. With readonly, the guest cannot write; with
    /// root, its root file system is there, and the command line gets root=/dev/vda; with unsafe, a flush
    /// does not wait for the host's disk; with async, many requests are under way at once, by io_uring
    #[arg(long, value_name = "PATH[,readonly][,root][,unsafe][,async]", value_parser = parse_disk)]
    disk: Vec<Drive>,
    /// A persistent memory, as often as needed: a file or a block device that the guest has in its memory, /dev/pmem0
    /// and up for Linux. With readonly, what the guest writes is lost; with root, its root file system is there, and
    /// the command line gets root=/dev/pmem0
    #[arg(long, value_name = "PATH[,readonly][,root]", value_parser = parse_pmem)]
    pmem: Vec<Pmem>,
    /// A network card on a tap interface of the host, as often as needed. Without an address the guest makes
    /// one up. The tap can be made before: ip tuntap add dev TAP mode tap user USER vnet_hdr
    #[arg(long, value_name = "TAP[,mac=ADDRESS][,mtu=BYTES]", value_parser = parse_net)]
    net: Vec<NetworkInterface>,
    /// A socket device: the guest's address, from 3 on, and a Unix socket. A program of the host connects there
    /// and says CONNECT PORT; the guest's connections to the host's port P arrive at PATH_P
    #[arg(long, value_name = "CID,PATH", value_parser = parse_vsock)]
    vsock: Option<Vsock>,
    /// A memory balloon: so much of its memory the guest does without. With deflate-on-oom, it takes memory back
    /// when it has no other; with reporting, the host gets what the guest frees
    #[arg(long, value_name = "MIB[,deflate-on-oom][,reporting]", value_parser = parse_balloon)]
    balloon: Option<Balloon>,
    /// A virtio source of entropy
    #[arg(long)]
    entropy: bool,
    /// Let the guest end this process: status (v << 1) | 1 when it writes v to port 0xf4
    #[arg(long)]
    debug_exit: bool,
    /// Log the time until the guest writes 123 to physical address 0xc0000000
    #[arg(long)]
    boot_timer: bool,
    /// Leave out the interval timer. A guest that does not use it does not pay for it either way
    #[arg(long)]
    no_pit: bool,
    /// The rate of the guest's TSC in kHz [default: the host's]. Measured with a throw-away guest, and
    /// refused where the host does not keep it
    #[arg(long, value_name = "KHZ", value_parser = parse_tsc_khz)]
    tsc_khz: Option<Khz>,
    /// Where the hardware does not scale TSCs, let KVM push the guest's forward in steps to a rate above
    /// the host's
    #[arg(long, requires = "tsc_khz")]
    allow_tsc_catchup: bool,
    /// Where vCPU threads run: auto (on CPUs whose TSCs agree, where the host's are measured apart), CPUs
    /// such as 0-3,8, or off [default: auto]
    #[arg(long, value_name = "CPUS")]
    tsc_domain: Option<TscDomain>,
    /// A file for what is known of the guest's time, in JSON: written every second and at the end
    #[arg(long, value_name = "FILE")]
    time_report: Option<PathBuf>,
    /// For tests: nobody watches the guest's time
    #[arg(long, hide = true)]
    test_without_timekeeper: bool,
    #[command(flatten)]
    seccomp: SeccompFlags,
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

/// What follows the path's last commas, as far as these are words of ours.
fn parse_disk(text: &str) -> Result<Drive, String> {
    let mut path = text;
    let (mut read_only, mut root, mut cache) = (false, false, CacheType::Writeback);
    let mut engine = None;
    while let Some((before, word)) = path.rsplit_once(',') {
        match word {
            "readonly" => read_only = true,
            "root" => root = true,
            "unsafe" => cache = CacheType::Unsafe,
            "async" => engine = Some(IoEngine::Async),
            _ => {
                return Err(format!(
                    "{word:?} is none of readonly, root, unsafe and async; a path with a comma goes into a \
                     configuration file"
                ));
            }
        }
        path = before;
    }
    if path.is_empty() {
        return Err("no path of an image".to_owned());
    }
    Ok(Drive {
        // By its place among the disks, which is known later.
        drive_id: String::new(),
        is_root_device: root,
        partuuid: None,
        cache_type: Some(cache),
        is_read_only: Some(read_only),
        path_on_host: Some(PathBuf::from(path)),
        rate_limiter: None,
        io_engine: engine,
        socket: None,
    })
}

/// The same for a persistent memory.
fn parse_pmem(text: &str) -> Result<Pmem, String> {
    let mut pmem = Pmem {
        // By its place among the memories, which is known later.
        id: String::new(),
        path_on_host: PathBuf::new(),
        root_device: false,
        read_only: false,
        rate_limiter: None,
    };
    let mut path = text;
    while let Some((before, word)) = path.rsplit_once(',') {
        match word {
            "readonly" => pmem.read_only = true,
            "root" => pmem.root_device = true,
            _ => {
                return Err(format!(
                    "{word:?} is none of readonly and root; a path with a comma goes into a configuration file"
                ));
            }
        }
        path = before;
    }
    if path.is_empty() {
        return Err("no path of a file".to_owned());
    }
    pmem.path_on_host = PathBuf::from(path);
    Ok(pmem)
}

/// A tap, and what the guest is told of its card.
fn parse_net(text: &str) -> Result<NetworkInterface, String> {
    let mut words = text.split(',');
    let mut interface = NetworkInterface {
        // By its place among the interfaces, which is known later.
        iface_id: String::new(),
        host_dev_name: words.next().unwrap_or_default().to_owned(),
        guest_mac: None,
        mtu: None,
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    };
    for word in words {
        match word.split_once('=') {
            Some(("mac", mac)) => {
                let mac = Mac::parse(mac)
                    .ok_or_else(|| format!("{mac:?} is not six bytes such as AA:FC:00:00:00:01"))?;
                interface.guest_mac = Some(mac);
            }
            Some(("mtu", mtu)) => {
                let mtu = mtu
                    .parse()
                    .map_err(|_| format!("{mtu:?} is not a number of bytes up to {}", u16::MAX))?;
                interface.mtu = Some(mtu);
            }
            _ => return Err(format!("{word:?} is none of mac=ADDRESS and mtu=BYTES")),
        }
    }
    interface.check().map_err(|fault| fault.to_string())
}

/// The guest's address, and where its sockets are.
fn parse_vsock(text: &str) -> Result<Vsock, String> {
    let (cid, path) = text
        .split_once(',')
        .ok_or_else(|| format!("{text:?} is not CID,PATH, such as 3,v.sock"))?;
    let guest_cid = cid
        .parse()
        .map_err(|_| format!("{cid:?} is not a guest's address, such as 3"))?;
    let vsock = Vsock {
        guest_cid,
        uds_path: path.into(),
        vsock_id: None,
    };
    vsock.check().map_err(|fault| fault.to_string())
}

/// A size, and what else the balloon does. Statistics are for clients of the API, of which there are none.
fn parse_balloon(text: &str) -> Result<Balloon, String> {
    let mut words = text.split(',');
    let amount = words.next().unwrap_or_default();
    let amount_mib = amount
        .parse()
        .map_err(|_| format!("{amount:?} is not a number of MiB"))?;
    let (mut deflate_on_oom, mut reporting) = (false, false);
    for word in words {
        match word {
            "deflate-on-oom" => deflate_on_oom = true,
            "reporting" => reporting = true,
            _ => return Err(format!("{word:?} is none of deflate-on-oom and reporting")),
        }
    }
    Ok(Balloon {
        amount_mib,
        deflate_on_oom,
        stats_polling_interval_s: None,
        free_page_hinting: None,
        free_page_reporting: Some(reporting),
    })
}

/// The devices that the flags ask for. Disks are named `disk0` and up, persistent memories `pmem0` and up, network
/// interfaces `net0` and up.
fn peripherals(run: &Run) -> Result<Peripherals, CommandError> {
    let mut peripherals = Peripherals::default();
    for (index, disk) in run.disk.iter().enumerate() {
        let mut drive = disk.clone();
        drive.drive_id = format!("disk{index}");
        peripherals
            .put_drive(drive)
            .map_err(|_| CommandError::Usage("--disk: only one can be the root".to_owned()))?;
    }
    for (index, pmem) in run.pmem.iter().enumerate() {
        let mut pmem = pmem.clone();
        pmem.id = format!("pmem{index}");
        peripherals
            .put_pmem(pmem)
            .map_err(|fault| CommandError::Usage(format!("--pmem: {fault}")))?;
    }
    for (index, interface) in run.net.iter().enumerate() {
        let mut interface = interface.clone();
        interface.iface_id = format!("net{index}");
        peripherals
            .put_interface(interface)
            .map_err(|fault| CommandError::Usage(format!("--net: {fault}")))?;
    }
    peripherals.vsock.clone_from(&run.vsock);
    if let Some(balloon) = run.balloon {
        balloon
            .fits(run.memory)
            .map_err(|fault| CommandError::Usage(format!("--balloon: {fault}")))?;
        peripherals.balloon = Some(balloon);
    }
    peripherals.entropy = run.entropy.then(Entropy::default);
    Ok(peripherals)
}

fn parse_tsc_khz(text: &str) -> Result<Khz, String> {
    let khz = text.parse().map_err(|_| "not a number of kHz".to_owned())?;
    TscRate::khz(khz).map_err(|error| error.to_string())
}

/// Why nothing could be run: status 1, one line.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Kvm(#[from] OpenError),
    #[error(transparent)]
    ReportPath(#[from] ReportPathError),
    #[error(transparent)]
    Seccomp(#[from] FilterError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    Doctor(#[from] DoctorError),
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Ctl(#[from] CtlError),
}

/// The command line's definition, for its manual pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with `arguments`, the first of which is its own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let started = Instant::now();
    allocator::use_one_arena();
    signals::survive_file_size_limit();
    filters::tell_panics_in_one_line();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let compatible = arguments.first().is_some_and(|name| is_compatible(name));
    let cli = match parse(&arguments, compatible) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    start_logging(cli.level);
    // What is torn down on the way out of a panic ends the guest, if one runs.
    let executed = catch_unwind(|| execute(&cli, compatible, started));
    let Ok(executed) = executed else {
        output::complain("keeptime: this launcher failed (see above)");
        return ExitCode::from(Outcome::Failure(String::new()).status());
    };
    match executed {
        Ok(outcome) => {
            match &outcome {
                Outcome::Failure(report) => output::complain(&format!("keeptime: {report}")),
                // The guest did not mean to, and its own log does not tell.
                Outcome::TripleFault | Outcome::Halted => tracing::warn!("{outcome}"),
                other => tracing::debug!("{other}"),
            }
            ExitCode::from(outcome.status())
        }
        Err(error) => {
            output::complain(&format!("keeptime: {}", one_line(&error)));
            ExitCode::from(1)
        }
    }
}

/// Whether the program was started under the name that clients know.
fn is_compatible(name: &OsStr) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(COMPATIBLE_NAME))
}

fn parse(arguments: &[OsString], compatible: bool) -> Result<Cli, ExitCode> {
    Cli::command()
        .try_get_matches_from(arguments)
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches))
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayVersion if compatible => {
                // Nothing can be done about a closed standard output.
                let _ = output::print(&format!("Firecracker v{COMPATIBLE_VERSION}\n"));
                ExitCode::SUCCESS
            }
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                // Nothing can be done about a closed standard output.
                let _ = error.print();
                ExitCode::SUCCESS
            }
            _ => {
                let reason = first_paragraph(&error.to_string());
                output::complain(&format!("keeptime: {reason}; try --help"));
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
    logging::install();
    let change = Change {
        level: Some(level),
        ..Change::default()
    };
    // Nothing is opened, so nothing fails.
    let _ = log().change(&change);
}

fn execute(cli: &Cli, compatible: bool, started: Instant) -> Result<Outcome, CommandError> {
    if let Some(flag) = cli.command.as_ref().and_then(|_| cli.flags.given()) {
        return Err(CommandError::Usage(format!(
            "{flag} goes without a command, or after it where the command has such a flag"
        )));
    }
    // As when a guest ended by itself.
    let told = |()| Outcome::PowerOff;
    match &cli.command {
        Some(Command::Demo) => Ok(demo::run(&Kvm::open()?, started)?),
        Some(Command::Doctor(doctor)) => Ok(doctor.run().map(told)?),
        Some(Command::Simulate(simulate)) => Ok(simulate.run().map(told)?),
        Some(Command::Ctl(ctl)) => Ok(ctl.run().map(told)?),
        Some(Command::Run(run)) => boot(run, started),
        None if !compatible && cli.flags.given().is_none() => Err(CommandError::Usage(
            "nothing to run: give run, demo, --no-api --config-file FILE, or --api-sock SOCKET"
                .to_owned(),
        )),
        None => Ok(serve::run(&cli.flags, started)?),
    }
}

impl From<&Run> for VmConfig {
    fn from(run: &Run) -> Self {
        Self::new(
            BootConfig {
                kernel: run.kernel.clone(),
                modules: run
                    .initrd
                    .iter()
                    .map(|text| Module::from_argument(text))
                    .collect(),
                cmdline: run.cmdline.clone(),
                virtio_mmio_args: run.virtio_mmio_args,
            },
            MachineConfig {
                vcpus: run.cpus,
                memory: run.memory,
                debug_exit: run.debug_exit,
                boot_timer: run.boot_timer,
                pit: !run.no_pit,
                tsc: TscRate {
                    khz: run.tsc_khz,
                    allow_catch_up: run.allow_tsc_catchup,
                },
                tsc_domain: run.tsc_domain,
                watcher: Watcher::unless_off(run.test_without_timekeeper),
            },
        )
    }
}

fn boot(run: &Run, started: Instant) -> Result<Outcome, CommandError> {
    let report_path = run.time_report.as_deref();
    let report_path = report_path.map(ReportPath::new).transpose()?;
    let kvm = Kvm::open()?;
    let surroundings = Surroundings::new(run.seccomp.filters()?, started)?;
    let mut config = VmConfig::from(run);
    config.peripherals = peripherals(run)?;
    let machine = assemble(&kvm, &config, &surroundings)?;
    tell_missing(&kvm);
    let Some(path) = report_path else {
        return Ok(machine.run(Console::StandardInput)?);
    };
    let mut events = EventLoop::new(surroundings.ending.clone())?;
    let reporter = Reporter::start(path, &mut events, &surroundings)?;
    let running = machine.start(Console::StandardInput, &mut events)?;
    let report = || {
        TimeReport::new(
            run.tsc_khz,
            Some(running.tsc_rate()),
            kvm.missing_features(),
            TimePolicy::ADVANCE,
            running.kept(),
        )
    };
    let outcome = loop {
        if let Some(outcome) = events.turn() {
            break outcome;
        }
        reporter.take(|| Some(report()));
    };
    reporter.finish(Some(report().of_the_end(&outcome)));
    Ok(outcome)
}

/// Puts the machine of a configuration together, which always has interrupt controllers.
fn assemble(
    kvm: &Kvm,
    config: &VmConfig,
    surroundings: &Surroundings,
) -> Result<Machine<Kvm>, MachineError> {
    let rate = guest_rate::settle(config.machine.tsc, &OnKvm(kvm))?;
    let places = if config.boot.virtio_mmio_args {
        machine::places(&config.peripherals)?
    } else {
        Vec::new()
    };
    let boot = BootConfig {
        cmdline: config.peripherals.cmdline(&config.boot.cmdline, &places),
        ..config.boot.clone()
    };
    Machine::assemble(
        kvm,
        &config.machine,
        InterruptControllers::InKernel,
        &Payload::Files(&boot),
        Additions {
            port: None,
            peripherals: Some(&config.peripherals),
        },
        surroundings,
        rate,
    )
}

/// Logs what this host lacks.
fn tell_missing(kvm: &Kvm) {
    for feature in kvm.missing_features() {
        tracing::info!(
            "this host's KVM lacks {}: {}",
            feature.name,
            feature.consequence
        );
    }
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
        let rows: [(&[&str], &str); 11] = [
            (
                &["run", "--kernel", "k", "--balloon", "x,reporting"],
                "\"x\" is not a number of MiB",
            ),
            (
                &["run", "--kernel", "k", "--balloon", "1,stats=1"],
                "none of deflate-on-oom and reporting",
            ),
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
            (
                &["run", "--kernel", "k", "--tsc-khz", "0"],
                "0 kHz is not possible",
            ),
            (
                &["run", "--kernel", "k", "--tsc-khz", "4294967296"],
                "choose 1 to 4294967295",
            ),
            (
                &["run", "--kernel", "k", "--allow-tsc-catchup"],
                "--tsc-khz <KHZ>",
            ),
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
    fn balloon_of_a_flag_fits_into_the_guest() {
        let balloon = |text: &str| {
            let arguments = [
                "keeptime",
                "run",
                "--kernel",
                "k",
                "--memory",
                "64",
                "--balloon",
                text,
            ];
            let cli = Cli::try_parse_from(arguments).expect("clap allows it");
            let Some(Command::Run(run)) = cli.command else {
                panic!("another command");
            };
            peripherals(&run).map(|peripherals| peripherals.balloon.expect("given").options())
        };
        let plain = balloon("64").expect("fits");
        assert_eq!(plain.pages, 64 * 256);
        assert!(!plain.deflate_on_out_of_memory && !plain.reporting);
        let full = balloon("1,reporting,deflate-on-oom").expect("fits");
        assert!(full.deflate_on_out_of_memory && full.reporting);
        let line = one_line(&balloon("65").expect_err("too large"));
        assert!(
            line.contains("--balloon") && line.contains("64 MiB"),
            "{line}"
        );
    }

    fn one_line_of(arguments: &[&str]) -> String {
        let cli = Cli::try_parse_from(arguments).expect("clap allows it");
        one_line(&execute(&cli, false, Instant::now()).expect_err("refused"))
    }

    #[test]
    fn flags_of_the_api_do_not_mix_with_commands() {
        for arguments in [
            &["keeptime", "--no-api", "--config-file", "f", "demo"][..],
            &["keeptime", "--boot-timer", "run", "--kernel", "k"],
            &["keeptime", "--id", "a", "demo"],
        ] {
            let line = one_line_of(arguments);
            assert!(line.contains(arguments[1]), "{line}");
        }
        assert!(one_line_of(&["keeptime"]).contains("nothing to run"));
    }

    #[test]
    fn configuration_file_without_end_is_refused() {
        let line = one_line_of(&["keeptime", "--no-api", "--config-file", "/dev/zero"]);
        assert!(line.contains("larger than"), "{line}");
    }

    #[test]
    fn flags_that_cannot_be_obeyed_are_refused_by_name() {
        for arguments in [
            &["--enable-pci"][..],
            &["--seccomp-filter", "f"],
            &["--snapshot-version"],
            &["--describe-snapshot", "f"],
            &["--id", "a_b"],
            &["--id", ""],
        ] {
            let all: Vec<_> = std::iter::once(&"keeptime")
                .chain(arguments)
                .copied()
                .collect();
            let line = one_line_of(&all);
            assert!(line.contains(arguments[0]), "{line}");
        }
    }

    #[test]
    fn name_is_the_last_part_of_the_path() {
        for (name, compatible) in [
            ("firecracker", true),
            ("/usr/bin/firecracker", true),
            ("keeptime", false),
            ("/firecracker/keeptime", false),
            ("firecracker-1", false),
        ] {
            assert_eq!(is_compatible(OsStr::new(name)), compatible, "{name}");
        }
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
