//! The command line: Firecracker's.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::cgroup::CgroupVersion;
use crate::jail::{Jail, Times};
use crate::process;
use crate::settings::{CgroupSetting, JailId, ResourceLimit, parse_parent_cgroup, parse_user};
use crate::tsc_domains::DEFAULT_FILE;

/// The version of Firecracker's jailer that is spoken, as clients look for it.
const COMPATIBLE_VERSION: &str = "Jailer v1.16.0";

/// As many descriptors as a launcher may have when nobody says.
const DEFAULT_NO_FILE: u64 = 2048;

const AFTER_HELP: &str = "\
Exit status: that of the program; 0 when another process has become it (--daemonize, --new-pid-ns);
1 when there is no jail, with the reason in one line on standard error and nothing left behind.

Example:
  jailer --id vm-1 --exec-file /usr/bin/keeptime --uid 10001 --gid 10001 -- --config-file vm.json";

/// Starts a microVM in a jail of its own.
#[derive(Debug, Parser)]
#[command(name = "jailer", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// The jail's name, and the microVM's: 1 to 64 letters, digits and hyphens
    #[arg(long)]
    id: JailId,
    /// The program that is copied into the jail and executed there
    #[arg(long, value_name = "FILE")]
    exec_file: PathBuf,
    /// The user that the program runs as
    #[arg(long, value_parser = parse_user)]
    uid: u32,
    /// The group that the program runs as
    #[arg(long, value_parser = parse_user)]
    gid: u32,
    /// Where jails are made, as DIRECTORY/EXEC_FILE_NAME/ID/root
    #[arg(long, value_name = "DIRECTORY", default_value = "/srv/jailer")]
    chroot_base_dir: PathBuf,
    /// The network namespace that is joined, such as /run/netns/NAME
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Leave the terminal: a session of its own, and /dev/null as standard input, output and error
    #[arg(long)]
    daemonize: bool,
    /// Make the program the first process of a new PID namespace
    #[arg(long)]
    new_pid_ns: bool,
    /// A value for a file of the jail's cgroup, as often as needed
    #[arg(long, value_name = "FILE=VALUE")]
    cgroup: Vec<CgroupSetting>,
    /// The version of the cgroups
    #[arg(long, value_enum, value_name = "VERSION", default_value = "1")]
    cgroup_version: CgroupVersion,
    /// The cgroup that the jail's is made in [default: the program's name]
    #[arg(long, value_name = "PATH", value_parser = parse_parent_cgroup)]
    parent_cgroup: Option<PathBuf>,
    /// Keep the jail's cgroup on CPUs whose TSCs agree, as FILE tells them (keeptime doctor --tsc-domains FILE),
    /// so that no move to another CPU breaks the guest's clock. Without FILE: /run/keeptime/tsc-domains
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = DEFAULT_FILE
    )]
    cpuset_tsc_domain: Option<PathBuf>,
    /// A limit of the program: fsize=BYTES, no-file=COUNT [default: no-file=2048]
    #[arg(long, value_name = "LIMIT=VALUE")]
    resource_limit: Vec<ResourceLimit>,
    /// What the program is given, after its id and times
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

impl From<Cli> for Jail {
    fn from(cli: Cli) -> Self {
        let mut limits = cli.resource_limit;
        let no_file = ResourceLimit {
            resource: rustix::process::Resource::Nofile,
            most: DEFAULT_NO_FILE,
        };
        if !limits
            .iter()
            .any(|limit| limit.resource == no_file.resource)
        {
            limits.push(no_file);
        }
        Self {
            id: cli.id,
            exec_file: cli.exec_file,
            uid: cli.uid,
            gid: cli.gid,
            base: cli.chroot_base_dir,
            netns: cli.netns,
            daemonize: cli.daemonize,
            new_pid_ns: cli.new_pid_ns,
            cgroups: cli.cgroup,
            cgroup_version: cli.cgroup_version,
            parent_cgroup: cli.parent_cgroup,
            tsc_domains: cli.cpuset_tsc_domain,
            limits,
            arguments: cli.arguments,
        }
    }
}

/// Runs the program with `arguments`, the first of which is its own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let times = Times::now();
    if let Err(error) = process::close_inherited() {
        return refuse(&format!("cannot close inherited descriptors: {error}"));
    }
    let cli = Cli::command()
        .try_get_matches_from(arguments)
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    if cli.uid == 0 || cli.gid == 0 {
        complain(
            "jailer: warning: the program runs as root: without capabilities, but it owns what root owns; \
             give each microVM a --uid and --gid of its own",
        );
    }
    match Jail::from(cli).start(times) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&one_line(&error)),
    }
}

/// The command line's definition, for its manual page.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

fn refuse(line: &str) -> ExitCode {
    complain(&format!("jailer: {line}"));
    ExitCode::from(1)
}

/// Prints a line on standard error. Whoever does not read it still has the status.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn explain(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayVersion => {
            println!("{COMPATIBLE_VERSION}");
            println!("Keeptime's jailer {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelp => {
            // Nothing can be done about a closed standard output.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => refuse(&format!(
            "{}; try --help",
            first_paragraph(&error.to_string())
        )),
    }
}

/// clap explains a usage error in several paragraphs, of which the first names the culprit. It may quote what
/// was given, newlines included.
fn first_paragraph(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let end = ["\n\nUsage:", "\n\nFor more", "\n\n  tip:"]
        .iter()
        .filter_map(|mark| message.find(mark))
        .min()
        .unwrap_or(message.len());
    let lines = message
        .get(..end)
        .unwrap_or_default()
        .lines()
        .map(str::trim);
    printable(&lines.collect::<Vec<_>>().join(" "))
}

/// The error and all that caused it, in one line.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    printable(&line)
}

/// File names and arguments may hold anything; a message stays one line that commands no terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_quoted_with_newlines_stays_in_the_line() {
        let arguments = ["jailer", "--cgroup", "cpu.max=1\n\n2"];
        let error = Cli::try_parse_from(arguments).expect_err("refused");
        let line = first_paragraph(&error.to_string());
        assert!(
            line.contains("--cgroup")
                && line.contains("control characters")
                && !line.contains('\n'),
            "{line}"
        );
    }
}
