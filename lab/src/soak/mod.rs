//! `cargo lab soak`: jailed microVMs on this machine's KVM, launched, paused, resumed and killed at random, and
//! an account of everything that could be left behind.
//!
//! All of it happens in namespaces of its own (mounts, processes, network) and in cgroups of its own name, so that
//! the accounts hold what the soak did and nothing else, and nothing of it outlives the soak. Before the cycles, as
//! many microVMs as there shall be at once live side by side, and each one's user tries to reach all others.

mod accounts;
mod cgroups;
mod neighbours;
mod tenant;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cli::Common;
use crate::guest::KEYBOARD;
use crate::native;
use crate::paths::Paths;
use crate::process::{InOrder, capture, tied};
use crate::scenario::Needs;
use crate::workshop::Workshop;
use accounts::Accounts;
use cgroups::Cgroups;
use tenant::{End, Tenant};

/// Launches jailed microVMs over and over, and accounts for what they leave behind.
///
/// Each cycle starts the launcher through the jailer, with a user, a cgroup and a network namespace of its own,
/// configures a microVM with a disk, a socket device and an entropy device through the API, starts it, pauses and
/// resumes it, and ends it through its keyboard or, at a random point of all this, by SIGKILL. Processes,
/// descriptors, mounts, cgroups, memory, sockets and files are counted before and after. Needs root.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo lab soak                            200 cycles, 4 at once
  cargo lab soak --vms 8 --cycles 2000      a longer one
  cargo lab soak --seed 7                   the same choices as another run with this seed

Exit status: 0 when every microVM ended as it should and nothing is left.")]
pub(crate) struct Arguments {
    /// MicroVMs at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    vms: u32,
    /// Launches in all
    #[arg(long, value_name = "M", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Of these, how many percent are killed at a random point
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u8).range(..=100))]
    killed: u8,
    /// What the random choices begin with; printed when it is chosen for you
    #[arg(long)]
    seed: Option<u64>,
    /// Use this jailer instead of building the release binary
    #[arg(long, value_name = "BINARY")]
    jailer: Option<PathBuf>,
    /// The folder of the run: we are in the namespaces
    #[arg(long, hide = true, value_name = "FOLDER")]
    inside: Option<PathBuf>,
    /// What a neighbour tries to reach: we are its user
    #[arg(long, hide = true, value_name = "PLACES")]
    reach: Option<String>,
}

/// The launcher, the jailer and the kernel in the folder of a run.
const LAUNCHER: &str = "keeptime";
const JAILER: &str = "jailer";
const KERNEL: &str = "kernel";

/// Where, in a mount namespace of our own, a file system of our own is mounted: a folder that every Debian and
/// Ubuntu has (hier(7)).
const OPEN: &str = "/mnt";

/// What a soak has this program do in its namespaces and as its users, who see no workspace.
pub(crate) fn within(arguments: &Arguments) -> Option<Result<ExitCode>> {
    match arguments {
        Arguments {
            reach: Some(places),
            ..
        } => Some(neighbours::reach(places)),
        Arguments {
            inside: Some(folder),
            ..
        } => Some(soak(folder, arguments)),
        _ => None,
    }
}

/// Prepares everything and goes on in namespaces of its own.
pub(crate) fn run(paths: &Paths, common: &Common, arguments: &Arguments) -> Result<ExitCode> {
    if let Some(obstacle) = native::obstacle(Needs::Root) {
        bail!("nothing can be jailed here: {obstacle}");
    }
    let workshop = Workshop::new(paths.clone(), common);
    workshop.prepare_launcher()?;
    let jailer = match &arguments.jailer {
        Some(given) => given,
        None => workshop.jailer()?,
    };
    let folder = paths.run_folder("soak")?;
    let place = folder.path();
    // Copies, since the jailer takes no binary that could be reached by another name.
    for (from, name) in [(workshop.launcher()?, LAUNCHER), (jailer, JAILER)] {
        fs::copy(from, place.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    fs::write(place.join(KERNEL), KEYBOARD.build()?).context("cannot write the guest")?;
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let in_order = InOrder::begin();
    let cgroups = Cgroups::make(std::process::id())?;

    let mut inside = tied("unshare");
    inside
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(std::env::current_exe().context("no program of our own")?)
        .args(["soak", "--inside"])
        .arg(place)
        .args(["--vms", &arguments.vms.to_string()])
        .args(["--cycles", &arguments.cycles.to_string()])
        .args(["--killed", &arguments.killed.to_string()])
        .args(["--seed", &seed.to_string()])
        .env(cgroups::TOLD, cgroups.told());
    let result = in_order.run(&mut inside);
    let left = cgroups.remove();
    drop(in_order);
    result?;
    left?;
    Ok(ExitCode::SUCCESS)
}

/// The soak itself, in its namespaces.
fn soak(folder: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let seed = arguments.seed.context("no seed")?;
    let place = Place::furnish(folder, arguments.vms)?;
    eprintln!(
        "lab: {} cycles, {} at once, {} % of them killed, cgroups of version {}; --seed {seed}",
        arguments.cycles,
        arguments.vms,
        arguments.killed,
        place.cgroups.version(),
    );
    neighbours::live(&place, seed)?;
    // What the first launches leave in caches for good is no leak: the first cycle of each slot does not count.
    cycles(&place, arguments.vms, arguments, seed)?;
    let before = Accounts::take(&place)?;
    let start = Instant::now();
    let (ended, killed) = cycles(&place, arguments.cycles, arguments, seed.wrapping_add(1))?;
    let elapsed = start.elapsed();
    let after = Accounts::take(&place)?;
    println!(
        "{ended} microVMs ended by themselves, {killed} were killed; {:.1} cycles a second",
        f64::from(arguments.cycles) / elapsed.as_secs_f64()
    );
    let (table, leaks) = after.compared(&before);
    print!("{table}");
    if leaks.is_empty() {
        println!("nothing is left");
        return Ok(ExitCode::SUCCESS);
    }
    for leak in &leaks {
        println!("left: {leak}");
    }
    Ok(ExitCode::FAILURE)
}

/// Where jails are made.
struct Place {
    folder: PathBuf,
    cgroups: Cgroups,
    slots: u32,
}

impl Place {
    /// A file system for the jails and a network namespace for each slot.
    fn furnish(folder: &Path, slots: u32) -> Result<Self> {
        let place = Self {
            folder: folder.to_owned(),
            cgroups: Cgroups::given()?,
            slots,
        };
        // A file system of our own, where other users can get to, programs may be executed and devices used.
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=755", "none", OPEN]);
        capture(&mut mount)?;
        for folder in [place.jails(), place.networks()] {
            fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let own = std::env::current_exe().context("no program of our own")?;
        fs::copy(own, place.program()).context("cannot copy our own program")?;
        for slot in 0..slots {
            let file = place.network(slot);
            fs::write(&file, "").with_context(|| format!("cannot make {}", file.display()))?;
            let mut unshare = Command::new("unshare");
            unshare.arg(format!("--net={}", file.display()));
            capture(unshare.arg("true"))?;
        }
        Ok(place)
    }

    /// The base folder of the jails.
    fn jails(&self) -> PathBuf {
        Path::new(OPEN).join("jails")
    }

    /// Our own program, where every user can execute it.
    fn program(&self) -> PathBuf {
        Path::new(OPEN).join("lab")
    }

    fn networks(&self) -> PathBuf {
        Path::new(OPEN).join("networks")
    }

    /// The network namespace of a slot.
    fn network(&self, slot: u32) -> PathBuf {
        self.networks().join(slot.to_string())
    }
}

/// Runs `count` cycles, as many at once as there are slots. Returns how many ended by themselves and how many were
/// killed.
fn cycles(place: &Place, count: u32, arguments: &Arguments, seed: u64) -> Result<(u32, u32)> {
    let next = AtomicU32::new(0);
    let failed = AtomicBool::new(false);
    let counts = [AtomicU32::new(0), AtomicU32::new(0)];
    let last_words = std::sync::Mutex::new(Instant::now());
    thread::scope(|scope| {
        let slots: Vec<_> = (0..place.slots)
            .map(|slot| {
                let (next, failed, counts, last_words) = (&next, &failed, &counts, &last_words);
                scope.spawn(move || -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count || failed.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        // Each cycle's choices depend on the seed and its number alone.
                        let mut random = fastrand::Rng::with_seed(
                            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                                .wrapping_add(number.into()),
                        );
                        let killed = random.u8(..100) < arguments.killed;
                        let tenant = Tenant {
                            place,
                            slot,
                            id: format!("soak-{slot}-{seed}-{number}"),
                        };
                        let end = tenant.live(&mut random, killed).inspect_err(|_| {
                            failed.store(true, Ordering::Relaxed);
                        });
                        let end =
                            end.with_context(|| format!("cycle {number}, jail {}", tenant.id))?;
                        counts[usize::from(end == End::Killed)].fetch_add(1, Ordering::Relaxed);
                        let mut last = last_words
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner);
                        if last.elapsed() > Duration::from_secs(5) {
                            *last = Instant::now();
                            eprintln!("lab: {number} of {count} cycles");
                        }
                    }
                })
            })
            .collect();
        slots.into_iter().try_for_each(|slot| {
            slot.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let [ended, killed] = counts.map(AtomicU32::into_inner);
    Ok((ended, killed))
}
