//! Firecracker's flags.

use std::path::PathBuf;

use clap::Args;
use tsc::Khz;

use super::parse_tsc_khz;
use super::seccomp::SeccompFlags;
use crate::config::{TscDomain, TscRate};

/// Where the API's socket is when nobody says.
pub(super) const DEFAULT_SOCKET: &str = "/run/firecracker.socket";

/// The id of a microVM that was given none.
pub(super) const DEFAULT_ID: &str = "anonymous-instance";

/// The longest id.
const MAX_ID: usize = 64;

/// A microVM that is configured by clients of the API, by a configuration file, or by both.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// The API's Unix socket [default: /run/firecracker.socket]; not used with --no-api
    #[arg(long, value_name = "SOCKET")]
    pub(super) api_sock: Option<PathBuf>,
    /// The microVM's name: 1 to 64 letters, digits and hyphens [default: anonymous-instance]
    #[arg(long, value_name = "ID")]
    pub(super) id: Option<String>,
    /// Run without an API server, from a configuration file
    #[arg(long, requires = "config_file")]
    pub(super) no_api: bool,
    /// The microVM's configuration: JSON with `boot-source` and `machine-config`. It is started at
    /// once
    #[arg(long, value_name = "FILE")]
    pub(super) config_file: Option<PathBuf>,
    /// Tell the places of virtio devices at the end of the kernel's command line, too, as virtio_mmio.device=, for
    /// kernels without ACPI. One with both finds each device twice, and complains of the second
    #[arg(long)]
    pub(super) virtio_mmio_args: bool,
    /// Log the time until the guest writes 123 to physical address 0xc0000000
    #[arg(long)]
    pub(super) boot_timer: bool,
    /// The rate of the guest's TSC in kHz, where its configuration names none [default: the host's].
    /// Measured with a throw-away guest, and refused where the host does not keep it
    #[arg(long, value_name = "KHZ", value_parser = parse_tsc_khz)]
    pub(super) tsc_khz: Option<Khz>,
    /// Where the hardware does not scale TSCs, let KVM push the guest's forward in steps to a rate above
    /// the host's
    #[arg(long)]
    pub(super) allow_tsc_catchup: bool,
    /// Where vCPU threads run, where the microVM's configuration does not say: auto (on CPUs whose TSCs
    /// agree, where the host's are measured apart), CPUs such as 0-3,8, or off [default: auto]
    #[arg(long, value_name = "CPUS")]
    pub(super) tsc_domain: Option<TscDomain>,
    /// A file for what is known of the guest's time, in JSON: written every second and at the end
    #[arg(long, value_name = "FILE")]
    pub(super) time_report: Option<PathBuf>,
    /// For tests: nobody watches the guest's time
    #[arg(long, hide = true)]
    pub(super) test_without_timekeeper: bool,
    /// The file or named pipe that the log goes to [default: standard error]
    #[arg(long, value_name = "FILE")]
    pub(super) log_path: Option<PathBuf>,
    /// Let each line of the log tell its level
    #[arg(long)]
    pub(super) show_level: bool,
    /// Let each line of the log tell the source file and line that it comes from
    #[arg(long)]
    pub(super) show_log_origin: bool,
    /// Log only what comes from this module, such as vmm::controller
    #[arg(long, value_name = "MODULE")]
    pub(super) module: Option<String>,
    /// The file or named pipe that metrics are written to, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub(super) metrics_path: Option<PathBuf>,
    /// A JSON file whose object is put into the guest's metadata
    #[arg(long, value_name = "FILE")]
    pub(super) metadata: Option<PathBuf>,
    /// The largest size of the metadata in bytes [default: that of a request's body]
    #[arg(long, value_name = "BYTES")]
    pub(super) mmds_size_limit: Option<usize>,
    /// The largest body of a request in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 51_200)]
    pub(super) http_api_max_payload_size: usize,
    /// CLOCK_MONOTONIC in microseconds when the process was started, for the metrics
    #[arg(long, value_name = "US")]
    pub(super) start_time_us: Option<u64>,
    /// The process's CPU time in microseconds when it was started, for the metrics
    #[arg(long, value_name = "US")]
    pub(super) start_time_cpu_us: Option<u64>,
    /// The CPU time in microseconds that a parent spent for this process, for the metrics
    #[arg(long, value_name = "US")]
    pub(super) parent_cpu_time_us: Option<u64>,
    #[command(flatten)]
    pub(super) seccomp: SeccompFlags,
    /// Refused: this version has no PCI yet
    #[arg(long)]
    pub(super) enable_pci: bool,
    /// Refused: this version has no snapshots yet
    #[arg(long)]
    pub(super) snapshot_version: bool,
    /// Refused: this version has no snapshots yet
    #[arg(long, value_name = "FILE")]
    pub(super) describe_snapshot: Option<PathBuf>,
}

impl Flags {
    /// A flag of these that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        [
            (self.api_sock.is_some(), "--api-sock"),
            (self.id.is_some(), "--id"),
            (self.no_api, "--no-api"),
            (self.config_file.is_some(), "--config-file"),
            (self.virtio_mmio_args, "--virtio-mmio-args"),
            (self.boot_timer, "--boot-timer"),
            (self.tsc_khz.is_some(), "--tsc-khz"),
            (self.allow_tsc_catchup, "--allow-tsc-catchup"),
            (self.tsc_domain.is_some(), "--tsc-domain"),
            (self.test_without_timekeeper, "--test-without-timekeeper"),
            (self.time_report.is_some(), "--time-report"),
            (self.log_path.is_some(), "--log-path"),
            (self.show_level, "--show-level"),
            (self.show_log_origin, "--show-log-origin"),
            (self.module.is_some(), "--module"),
            (self.metrics_path.is_some(), "--metrics-path"),
            (self.metadata.is_some(), "--metadata"),
            (self.mmds_size_limit.is_some(), "--mmds-size-limit"),
            (
                self.http_api_max_payload_size != 51_200,
                "--http-api-max-payload-size",
            ),
            (self.start_time_us.is_some(), "--start-time-us"),
            (self.start_time_cpu_us.is_some(), "--start-time-cpu-us"),
            (self.parent_cpu_time_us.is_some(), "--parent-cpu-time-us"),
        ]
        .into_iter()
        .chain(self.seccomp.given())
        .chain(self.refused().map(|(given, flag, _)| (given, flag)))
        .find_map(|(given, flag)| given.then_some(flag))
    }

    fn refused(&self) -> [(bool, &'static str, &'static str); 3] {
        [
            (self.enable_pci, "--enable-pci", "PCI"),
            (self.snapshot_version, "--snapshot-version", "snapshots"),
            (
                self.describe_snapshot.is_some(),
                "--describe-snapshot",
                "snapshots",
            ),
        ]
    }

    /// Checks what clap does not.
    ///
    /// # Errors
    /// The flag at fault.
    pub(super) fn check(&self) -> Result<(), String> {
        for (given, flag, what) in self.refused() {
            if given {
                return Err(format!(
                    "{flag}: this version of keeptime has no {what} yet"
                ));
            }
        }
        let id = self.id();
        let valid = (1..=MAX_ID).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if valid {
            Ok(())
        } else {
            Err(format!(
                "--id {id:?} is not 1 to {MAX_ID} letters, digits and hyphens"
            ))
        }
    }

    /// The microVM's name.
    pub(super) fn id(&self) -> &str {
        self.id.as_deref().unwrap_or(DEFAULT_ID)
    }

    /// What is wanted of the TSC's rate.
    pub(super) fn tsc_rate(&self) -> TscRate {
        TscRate {
            khz: self.tsc_khz,
            allow_catch_up: self.allow_tsc_catchup,
        }
    }

    /// The largest size of the metadata.
    pub(super) fn metadata_limit(&self) -> usize {
        self.mmds_size_limit
            .unwrap_or(self.http_api_max_payload_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{ArgAction, Command, FromArgMatches};

    #[test]
    fn given_knows_each_flag() {
        let command = Flags::augment_args(Command::new("keeptime"));
        for argument in command.get_arguments() {
            let flag = format!("--{}", argument.get_long().expect("flags have names"));
            let mut line = vec!["keeptime", &flag];
            if matches!(argument.get_action(), ArgAction::Set) {
                // A path, an id, a number, a rate and a list of CPUs.
                line.push("1");
            }
            if argument.get_id() == "no_api" {
                line.extend(["--config-file", "1"]);
            }
            let matches = command
                .clone()
                .try_get_matches_from(&line)
                .expect("a value");
            let flags = Flags::from_arg_matches(&matches).expect("a value");
            assert_eq!(flags.given(), Some(flag.as_str()), "{line:?}");
        }
        let nothing = command.try_get_matches_from(["keeptime"]).expect("none");
        let flags = Flags::from_arg_matches(&nothing).expect("none");
        assert_eq!(flags.given(), None);
    }
}
