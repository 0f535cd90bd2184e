//! `cargo lab bench launch`: process start to a small guest's first line, and to the process's end.
//!
//! The guest, `lab/guests/reset.S`, writes a line to port 0x3f8 and resets: what is measured is the
//! launcher. The bare program of `src/bin/bare.rs` makes only the KVM calls that such a guest needs, so
//! it is what the kernel costs. All programs take turns in one run, so that each meets the machine in
//! the same moods.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::bench::api::ApiProgram;
use crate::bench::jail::Jails;
use crate::bench::statistics::Summary;
use crate::cli::Common;
use crate::guest::RESET;
use crate::native;
use crate::paths::{Paths, cargo};
use crate::process::{Running, end_all, run_visibly};
use crate::scenario::Needs;
use crate::workshop::Workshop;

/// The line that the guest writes.
pub(super) const LINE: &str = "reset guest";
/// The guest's memory in MiB.
pub(super) const MEMORY_MIB: u32 = 128;
/// A launch that takes longer is a hang.
const LIMIT: Duration = Duration::from_secs(20);
/// Launches of each program before those that count: files come into the page cache.
const WARM_UP: usize = 3;

/// Measures launch cost on this machine's KVM, in turns with the least that KVM allows.
///
/// One vCPU, 128 MiB. The bare program makes only the KVM calls that the guest needs, once without and
/// once with an in-kernel irqchip, which the kernel takes its time to destroy. As root, the launcher also starts
/// in a jail, beside one that starts by the same configuration file in none. With the API: CPU time
/// until the socket answers, and the time of InstanceStart.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Measure this Firecracker-compatible binary too, started with --no-api --config-file
    #[arg(long, value_name = "BINARY")]
    peer: Option<PathBuf>,
    /// Launches of each program
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
}

/// One of the programs that take turns.
struct Program {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    /// It launches there, and what is named before is not used.
    jails: Option<Jails>,
    first_line: Vec<Duration>,
    exit: Vec<Duration>,
}

impl Program {
    fn new(name: &str, binary: &Path, arguments: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            arguments: arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
            jails: None,
            first_line: Vec::new(),
            exit: Vec::new(),
        }
    }
}

/// Measures and prints the table.
pub(crate) fn run(paths: Paths, common: &Common, arguments: &Arguments) -> Result<ExitCode> {
    if let Some(obstacle) = native::obstacle(Needs::Kvm) {
        bail!("nothing can be measured here: {obstacle}");
    }
    let workshop = Workshop::new(paths, common);
    workshop.prepare_launcher()?;
    eprintln!("lab: building the bare program");
    run_visibly(
        Command::new(cargo())
            .current_dir(&workshop.paths.workspace)
            .args([
                "build",
                "--quiet",
                "--release",
                "--package",
                "lab",
                "--bin",
                "bare",
            ]),
    )?;

    let folder = workshop.paths.run_folder("bench")?;
    let kernel = folder.path().join("guest");
    fs::write(&kernel, RESET.build()?).context("cannot write the guest")?;
    let kernel = kernel
        .to_str()
        .context("the target folder's path is no UTF-8")?;
    let configuration = folder.path().join("configuration.json");
    fs::write(&configuration, peer_configuration(kernel))
        .context("cannot write a configuration")?;
    let configuration = configuration
        .to_str()
        .context("the target folder's path is no UTF-8")?;

    let bare = workshop.paths.release_binary("bare");
    let memory = MEMORY_MIB.to_string();
    let ours = [
        "run", "--kernel", kernel, "--cpus", "1", "--memory", &memory,
    ];
    let mut programs = vec![
        Program::new("bare", &bare, &[kernel]),
        Program::new("bare with irqchip", &bare, &["--irqchip", kernel]),
        Program::new("bare, irqchip, PIT", &bare, &["--irqchip", "--pit", kernel]),
        Program::new("keeptime", workshop.launcher()?, &ours),
        Program::new(
            "keeptime --no-pit",
            workshop.launcher()?,
            &[&ours[..], &["--no-pit"]].concat(),
        ),
    ];
    let by_file = Program::new(
        "keeptime by file",
        workshop.launcher()?,
        &["--no-api", "--config-file", configuration],
    );
    programs.push(by_file);
    match native::obstacle(Needs::Root) {
        Some(obstacle) => eprintln!("lab: no jailed launch is measured: {obstacle}"),
        None => programs.push(Program {
            jails: Some(Jails::new(
                workshop.jailer()?,
                workshop.launcher()?,
                folder.path(),
                Path::new(kernel),
                peer_configuration("kernel"),
            )?),
            ..Program::new("the same, jailed", Path::new(""), &[])
        }),
    }
    if let Some(peer) = &arguments.peer {
        let name = peer
            .file_name()
            .context("--peer names no file")?
            .to_string_lossy();
        let options = ["--no-api", "--config-file", configuration];
        programs.push(Program::new(&name, peer, &options));
    }

    let mut with_api = vec![ApiProgram::new("keeptime", workshop.launcher()?)];
    if let Some(peer) = &arguments.peer {
        with_api.push(ApiProgram::new("the peer", peer));
    }

    let watchdog = Watchdog::start();
    for round in 0..usize::from(arguments.rounds) + WARM_UP {
        for program in &mut programs {
            let (first_line, exit) =
                launch(program).with_context(|| format!("{} failed", program.name))?;
            watchdog.feed();
            if round >= WARM_UP {
                program.first_line.push(first_line);
                program.exit.push(exit);
            }
        }
        for program in &mut with_api {
            program.launch(folder.path(), kernel, round >= WARM_UP)?;
            watchdog.feed();
        }
    }
    print!("{}", table(&programs).context("no launch was measured")?);
    for pair in programs.windows(2) {
        if let [plain, jailed] = pair
            && jailed.jails.is_some()
        {
            println!("{}", added(plain, jailed));
        }
    }
    for program in &with_api {
        print!("\n{}", program.table().context("no launch was measured")?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration file of Firecracker-compatible programs.
fn peer_configuration(kernel: &str) -> String {
    serde_json::json!({
        "boot-source": { "kernel_image_path": kernel, "boot_args": "" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        "drives": []
    })
    .to_string()
}

/// Starts `program` once: the times to the guest's line and to the end.
fn launch(program: &Program) -> Result<(Duration, Duration)> {
    let mut command = match &program.jails {
        Some(jails) => jails.command()?,
        None => {
            let mut command = Command::new(&program.binary);
            command.args(&program.arguments);
            command
        }
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut running = Running::spawn(&mut command)?;
    let first_line = wait_for_line(running.child());
    let at_line = start.elapsed();
    let status = running.wait()?;
    let at_exit = start.elapsed();
    if let Some(jails) = &program.jails {
        jails.clean()?;
    }
    if !first_line? || !status.success() {
        let mut words = String::new();
        if let Some(errors) = running.child().stderr.take() {
            // Shown as far as it can be read.
            let _ = BufReader::new(errors).read_line(&mut words);
        }
        ensure!(status.success(), "it ended with {status}: {}", words.trim());
        bail!("its guest did not write {LINE:?}");
    }
    Ok((at_line, at_exit))
}

/// Reads until the guest's line, which other lines may come before; then the rest stays unread, which
/// is less than a pipe holds.
fn wait_for_line(child: &mut Child) -> Result<bool> {
    let output = child.stdout.as_mut().context("no standard output")?;
    for line in BufReader::new(output).lines() {
        if line.context("cannot read its output")?.trim_end() == LINE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends everything when no launch succeeds for a while.
struct Watchdog(mpsc::Sender<()>);

impl Watchdog {
    fn start() -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            loop {
                match receiver.recv_timeout(LIMIT) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        eprintln!("lab: a launch did not end within {} s", LIMIT.as_secs());
                        end_all();
                        std::process::exit(1);
                    }
                }
            }
        });
        Self(sender)
    }

    fn feed(&self) {
        // The thread lives as long as its channel.
        let _ = self.0.send(());
    }
}

/// What the jail adds to the first line: of launches in the same turn, since both meet the machine in one mood.
fn added(plain: &Program, jailed: &Program) -> String {
    let pairs = plain.first_line.iter().zip(&jailed.first_line);
    let mut more: Vec<f64> = pairs
        .map(|(plain, jailed)| (jailed.as_secs_f64() - plain.as_secs_f64()) * 1000.0)
        .collect();
    more.sort_by(f64::total_cmp);
    let rank = |percent: usize| more.get(more.len().saturating_sub(1) * percent / 100);
    let [low, median, high] =
        [10, 50, 90].map(|percent| rank(percent).copied().unwrap_or(f64::NAN));
    format!(
        "the jail adds to the first line: {low:.2} ms (p10), {median:.2} ms (median), {high:.2} ms (p90)"
    )
}

/// The table: milliseconds, and ratios of medians to the bare program's, with the irqchip for the end.
fn table(programs: &[Program]) -> Option<String> {
    let summaries: Option<Vec<(Summary, Summary)>> = programs
        .iter()
        .map(|program| {
            Some((
                Summary::of(&program.first_line)?,
                Summary::of(&program.exit)?,
            ))
        })
        .collect();
    let summaries = summaries?;
    let (bare, with_irqchip) = (summaries.first()?, summaries.get(1)?);
    let mut text = format!(
        "{:<20} {:>29}   {:>6}  {:>29}   {:>6}\n{:<20} {:>9} {:>9} {:>9}   {:>6}  {:>9} {:>9} {:>9}   {:>6}\n",
        "",
        "first line, ms",
        "",
        "exit, ms",
        "",
        "",
        "minimum",
        "median",
        "p90",
        "/bare",
        "minimum",
        "median",
        "p90",
        "/chip",
    );
    for (program, (line, exit)) in programs.iter().zip(&summaries) {
        text += &format!("{:<20}", program.name);
        for (summary, base) in [(line, bare.0), (exit, with_irqchip.1)] {
            for value in [summary.minimum, summary.median, summary.ninetieth] {
                text += &format!(" {:>9.2}", value.as_secs_f64() * 1000.0);
            }
            let ratio = summary.median.as_secs_f64() / base.median.as_secs_f64();
            text += &format!("   {ratio:>5.2}x ");
        }
        text = text.trim_end().to_owned() + "\n";
    }
    let launches = programs.first()?.exit.len();
    text += &format!(
        "{launches} launches of each, in turns; /bare: to the bare program; /chip: to the bare program \
         with an in-kernel irqchip\n"
    );
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_ratios_are_of_medians_to_their_base() {
        let ms = Duration::from_millis;
        let program = |name: &str, line: u64, exit: u64| Program {
            first_line: vec![ms(line)],
            exit: vec![ms(exit)],
            ..Program::new(name, Path::new("/"), &[])
        };
        let programs = [
            program("bare", 2, 4),
            program("bare with irqchip", 3, 10),
            program("ours", 5, 15),
        ];
        let text = table(&programs).unwrap();
        let row = text.lines().find(|line| line.starts_with("ours")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        // 5 / 2 = 2.50, 15 / 10 = 1.50
        assert_eq!(
            words,
            [
                "ours", "5.00", "5.00", "5.00", "2.50x", "15.00", "15.00", "15.00", "1.50x"
            ]
        );
    }

    #[test]
    fn table_without_launches_is_none() {
        assert!(table(&[Program::new("bare", Path::new("/"), &[])]).is_none());
    }
}
