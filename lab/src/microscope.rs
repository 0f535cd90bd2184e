//! `cargo lab host`: a command of the user's inside an emulated host.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::apt;
use crate::cli::{Common, Emulated};
use crate::host::image::{Job, Output, Source, Step};
use crate::host::protocol::Event;
use crate::host::{Host, Paging, Run, Tsc};
use crate::kernels::{Kernel, Stock};
use crate::paths::Paths;

/// The only step.
const STEP: &str = "command";

/// Runs a command inside an emulated host and ends with its status.
///
/// The host is Debian's cloud kernel with KVM loaded, busybox and nothing else: bring what you need
/// with --file, statically linked. The command runs in the folder that holds the files; its output is
/// shown as it comes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo lab host svm -- cat /proc/cpuinfo
  cargo lab host svm --kernel-option tsc=reliable --file ./probe -- ./probe --seconds 2
  cargo lab host vmx -- sh -c 'dmesg | grep -i tsc'")]
pub(crate) struct Arguments {
    /// Which host
    host: Emulated,
    /// A file to take along, found in the command's working folder (repeatable)
    #[arg(long = "file", value_name = "F")]
    files: Vec<PathBuf>,
    /// An option for the host's kernel, such as tsc=reliable (repeatable)
    #[arg(long = "kernel-option", value_name = "OPTION")]
    options: Vec<String>,
    /// Load kvm-amd with npt=0: guests' memory through shadow page tables (svm only)
    #[arg(long)]
    no_nested_paging: bool,
    /// Kill the command after this many seconds of the host's clock
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the host.
pub(crate) fn run(paths: &Paths, common: &Common, arguments: Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.host == Emulated::Svm || !arguments.no_nested_paging,
        "--no-nested-paging is for the svm host"
    );
    let host = match arguments.host {
        Emulated::Svm => Host::Svm {
            // The user's own options decide; nothing is added here.
            tsc: Tsc::Unstable,
            paging: if arguments.no_nested_paging {
                Paging::Shadow
            } else {
                Paging::Nested
            },
        },
        Emulated::Vmx => Host::Vmx,
    };
    let mut job = Job::default();
    for path in &arguments.files {
        let name = path
            .file_name()
            .with_context(|| format!("{} is no file", path.display()))?;
        ensure!(path.is_file(), "{} is no file", path.display());
        job.files.insert(
            name.to_string_lossy().into_owned(),
            Source::Path(path.clone()),
        );
    }
    let words: Vec<String> = arguments.command.iter().map(|word| quoted(word)).collect();
    job.steps.push(Step {
        name: STEP.to_owned(),
        script: format!("exec {}\n", words.join(" ")),
        limit: Duration::from_secs(arguments.limit),
        // A command may say nothing for as long as it likes.
        output: Output::Live { silence: None },
    });

    apt::install(host.packages())?;
    let stock = Stock::fetch(paths, Kernel::Amd64, common.refresh)?;
    let log = paths
        .folder("logs")?
        .join(format!("host-{}.log", host.name()));
    eprintln!(
        "lab: starting the host {}; its whole log is {}",
        host.name(),
        log.display()
    );
    let mut running = false;
    let mut status = None;
    let mut output = std::io::stdout().lock();
    let run = Run {
        paths,
        stock: &stock,
        host,
        options: &arguments.options,
        job: &job,
        log,
    };
    let cost = run.run(&mut |event| match event {
        Event::Ready(facts) => {
            let facts = facts.iter().map(|(key, value)| format!("{key}={value}"));
            eprintln!(
                "lab: the host is ready: {}",
                facts.collect::<Vec<_>>().join(" ")
            );
        }
        Event::Begin { .. } => running = true,
        Event::Text(line) if running => {
            // A closed pipe on our side must not end the host before its log is complete.
            let _ = output
                .write_all(&line)
                .and_then(|()| output.write_all(b"\n"));
            let _ = output.flush();
        }
        Event::Exit { status: end, .. } => {
            running = false;
            status = Some(end);
        }
        Event::Problem(problem) => eprintln!("lab: the host says: {problem}"),
        Event::Text(_) | Event::File { .. } | Event::Done => {}
    })?;
    eprintln!(
        "lab: {:.1} s to the host's shell, {:.1} s in all",
        cost.ready.as_secs_f64(),
        cost.total.as_secs_f64()
    );
    let status = status.context("the host ended without the command's status")?;
    let status =
        status.with_context(|| format!("the command ran longer than {} s", arguments.limit))?;
    Ok(ExitCode::from(status))
}

/// `word` as one word of the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_reach_the_command_unchanged() {
        for word in ["plain", "", "two words", "it's", "$HOME `id` \\ \"x\" *"] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
