//! MicroVMs side by side: none reaches another, and the end of one leaves the others alone.
//!
//! What is tried is tried with the user and group of a microVM, but outside of its jail: whoever gets out of a jail
//! can do no more than that, and whoever does not cannot even name the others.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::api::Client;
use crate::process::{Running, run_bounded, tied};
use crate::soak::Place;
use crate::soak::tenant::{API, DISK, LIMIT, Tenant, VSOCK, press_keys};

/// Divides the microVMs in what [`reach`] is told, and what it is told of each.
const DIVIDER: char = ';';
const FIELD: char = ',';
/// What a line on an attempt to reach another begins with.
const ANOTHERS: &str = "another's";

/// One that lives.
struct Neighbour<'a> {
    tenant: Tenant<'a>,
    running: Running,
    api: Client,
}

/// Has as many microVMs as there are slots live side by side.
pub(super) fn live(place: &Place, seed: u64) -> Result<()> {
    let mut neighbours = Vec::new();
    for slot in 0..place.slots {
        let tenant = Tenant {
            place,
            slot,
            id: format!("neighbour-{slot}"),
        };
        let mut running = tenant.start()?;
        let api = tenant
            .begin(&mut running, 1)
            .with_context(|| format!("the jail {}", tenant.id))?;
        neighbours.push(Neighbour {
            tenant,
            running,
            api,
        });
    }
    let networks = networks(&mut neighbours)?;
    ensure!(
        networks.len() == neighbours.len(),
        "{} microVMs share {} network namespaces",
        neighbours.len(),
        networks.len()
    );
    let attempts = all_try(place, &mut neighbours)?;

    let index = fastrand::Rng::with_seed(seed).usize(..neighbours.len());
    let mut victim = neighbours.swap_remove(index);
    victim.running.end()?;
    victim.tenant.remove()?;
    for neighbour in &mut neighbours {
        neighbour.goes_on().with_context(|| {
            let (id, victim) = (&neighbour.tenant.id, &victim.tenant.id);
            format!("{id} after {victim} was killed")
        })?;
    }
    println!(
        "{} microVMs side by side: {attempts} attempts to reach another failed, and the end of one by SIGKILL \
         left the others alone",
        place.slots
    );
    Ok(())
}

impl Neighbour<'_> {
    /// It answers, its guest ends it, and it leaves nothing.
    fn goes_on(&mut self) -> Result<()> {
        self.api.ask("GET", "/", &Value::Null)?;
        press_keys(&mut self.api)?;
        let status = self
            .running
            .wait_until(Instant::now() + LIMIT)?
            .with_context(|| format!("it did not end within {} s", LIMIT.as_secs()))?;
        ensure!(status.success(), "it ended with {status}");
        self.tenant.expect_clean()?;
        self.tenant.remove()
    }
}

/// The network namespaces of all.
fn networks(neighbours: &mut [Neighbour]) -> Result<std::collections::BTreeSet<u64>> {
    neighbours
        .iter_mut()
        .map(|neighbour| {
            let path = format!("/proc/{}/ns/net", neighbour.running.child().id());
            let facts = fs::metadata(&path).with_context(|| format!("no {path}"))?;
            Ok(facts.ino())
        })
        .collect()
}

/// Each one's user tries to reach all others. Returns how many attempts there were.
fn all_try(place: &Place, neighbours: &mut [Neighbour]) -> Result<usize> {
    let mut places = String::new();
    for neighbour in neighbours.iter_mut() {
        let process = neighbour.running.child().id();
        let root = neighbour.tenant.root();
        let network = place.network(neighbour.tenant.slot);
        places += &format!(
            "{}{FIELD}{process}{FIELD}{}{FIELD}{}{DIVIDER}",
            neighbour.tenant.user(),
            root.display(),
            network.display()
        );
    }
    let mut count = 0;
    for neighbour in neighbours {
        let user = neighbour.tenant.user();
        let mut command = tied("setpriv");
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={user}"))
            .args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
            .arg("--no-new-privs")
            .arg(place.program())
            .args(["soak", "--reach", &places]);
        let finished = run_bounded(&mut command, Duration::from_secs(60))?;
        let told = String::from_utf8_lossy(&finished.stdout);
        ensure!(
            finished.status.is_some_and(|status| status.success()),
            "the user of {}: {told}{}",
            neighbour.tenant.id,
            String::from_utf8_lossy(&finished.stderr)
        );
        count += told
            .lines()
            .filter(|line| line.starts_with(ANOTHERS))
            .count();
    }
    Ok(count)
}

/// Tries to reach the microVMs that `places` tells of, as the user of one of them: all but that one must be out of
/// reach, and that one must not be, or the attempts would show nothing.
pub(super) fn reach(places: &str) -> Result<ExitCode> {
    let own = rustix::process::geteuid().as_raw().to_string();
    let mut good = true;
    for place in places.split(DIVIDER).filter(|place| !place.is_empty()) {
        let mut fields = place.split(FIELD);
        let mut field = || fields.next().context("too few fields");
        let (user, process) = (field()?, field()?);
        let (root, network) = (PathBuf::from(field()?), PathBuf::from(field()?));
        for (what, result) in attempts(process, &root, &network)? {
            // Nobody but root joins a network namespace or looks at a process that is not dumpable.
            let allowed = user == own && what.is_for_the_user;
            good &= result.is_ok() == allowed;
            let came = match &result {
                Ok(()) => "reached".to_owned(),
                Err(error) => error.to_string(),
            };
            let whose = if user == own { "own" } else { ANOTHERS };
            println!("{whose}: {} of the user {user}: {came}", what.name);
        }
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Attempt {
    name: &'static str,
    is_for_the_user: bool,
}

fn attempts(process: &str, root: &Path, network: &Path) -> Result<Vec<(Attempt, io::Result<()>)>> {
    let pid = Pid::from_raw(process.parse().context("no process id")?).context("a process of 0")?;
    let of_process = |name: &str| format!("/proc/{process}/{name}");
    let open = |path: &Path| OpenOptions::new().read(true).open(path).map(drop);
    let join = |path: &Path| -> io::Result<()> {
        // A namespace's file can be opened by whoever can name it; joining it is another matter.
        let file = File::open(path)?;
        use std::os::fd::AsFd;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(Errno::into)
    };
    let attempt = |name, is_for_the_user, result| {
        (
            Attempt {
                name,
                is_for_the_user,
            },
            result,
        )
    };
    Ok(vec![
        attempt("the disk", true, open(&root.join(DISK))),
        attempt("the jail", true, fs::read_dir(root).map(drop)),
        attempt(
            "the API",
            true,
            UnixStream::connect(root.join(API)).map(drop),
        ),
        attempt(
            "the socket device",
            true,
            UnixStream::connect(root.join(VSOCK)).map(drop),
        ),
        attempt(
            "the process, by a signal",
            true,
            test_kill_process(pid).map_err(Errno::into),
        ),
        attempt("the memory", false, open(Path::new(&of_process("mem")))),
        attempt(
            "the descriptors",
            false,
            fs::read_dir(of_process("fd")).map(drop),
        ),
        attempt(
            "the root, through its process",
            false,
            fs::read_dir(of_process("root")).map(drop),
        ),
        attempt("the network", false, join(network)),
        attempt(
            "the network, through its process",
            false,
            join(Path::new(&of_process("ns/net"))),
        ),
    ])
}
