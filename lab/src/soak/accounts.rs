//! What there is before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;
use crate::soak::Place;

/// Memory that may come to our cgroups without being a leak: each processor keeps some charged in advance (32 pages,
/// mm/memcontrol.c, `MEMCG_CHARGE_BATCH`), and page tables of processes that are gone are freed late.
const MEMORY_SLACK: u64 = 1 << 20;

/// Everything that a jailed microVM could leave behind.
pub(super) struct Accounts {
    /// In our PID namespace.
    processes: BTreeSet<String>,
    /// Of this process, which starts the others.
    descriptors: BTreeSet<String>,
    /// In our mount namespace.
    mounts: BTreeSet<String>,
    /// Below our cgroups.
    cgroups: BTreeSet<String>,
    /// Sockets in the microVMs' network namespaces.
    sockets: BTreeSet<String>,
    /// Below the base folder of the jails.
    files: BTreeSet<String>,
    /// Bytes charged to our cgroups.
    memory: Option<u64>,
}

impl Accounts {
    /// Takes all accounts.
    pub(super) fn take(place: &Place) -> Result<Self> {
        let mut sockets = BTreeSet::new();
        for slot in 0..place.slots {
            let mut look = Command::new("nsenter");
            look.arg(format!("--net={}", place.network(slot).display()));
            let text = capture(look.args(["cat", "/proc/net/unix", "/proc/net/packet"]))?;
            let lines = text.lines().filter(|line| !line.contains("Inode"));
            sockets.extend(lines.map(|line| format!("socket in network {slot}: {line}")));
        }
        let mut files = BTreeSet::new();
        tree(&place.jails(), &mut files)?;
        files.remove(&place.jails().display().to_string());
        let mounts = read("/proc/self/mountinfo")?;
        Ok(Self {
            processes: processes()?,
            descriptors: descriptors()?,
            mounts: mounts.lines().map(str::to_owned).collect(),
            cgroups: place.cgroups.below()?.into_iter().collect(),
            sockets,
            files,
            memory: place.cgroups.memory(),
        })
    }

    /// A table of the counts before and now, and what there is too much of.
    pub(super) fn compared(&self, before: &Self) -> (String, Vec<String>) {
        let mut table = format!("{:<22} {:>10} {:>10}\n", "", "before", "after");
        let mut leaks = Vec::new();
        for (name, then, now) in [
            ("processes", &before.processes, &self.processes),
            ("descriptors", &before.descriptors, &self.descriptors),
            ("mounts", &before.mounts, &self.mounts),
            ("cgroups", &before.cgroups, &self.cgroups),
            ("sockets", &before.sockets, &self.sockets),
            ("files of jails", &before.files, &self.files),
        ] {
            table += &format!("{name:<22} {:>10} {:>10}\n", then.len(), now.len());
            leaks.extend(now.difference(then).cloned());
        }
        match (before.memory, self.memory) {
            (Some(then), Some(now)) => {
                table += &format!(
                    "{:<22} {:>10} {:>10}\n",
                    "memory, KiB",
                    then >> 10,
                    now >> 10
                );
                if now > then.saturating_add(MEMORY_SLACK) {
                    leaks.push(format!("{} bytes of memory", now - then));
                }
            }
            _ => {
                table +=
                    "memory                 not counted: no cgroup of the memory controller here\n"
            }
        }
        (table, leaks)
    }
}

/// The processes of our namespace, zombies too.
fn processes() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("no /proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            // One that has ended since is none.
            if let Ok(stat) = fs::read_to_string(format!("/proc/{name}/stat")) {
                found.insert(format!(
                    "process {}",
                    stat.split(") ").next().unwrap_or(&stat)
                ));
            }
        }
    }
    Ok(found)
}

/// Our own descriptors, but the one that reads the folder.
fn descriptors() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd").context("no /proc")? {
        let path = entry?.path();
        let target = fs::read_link(&path).unwrap_or_default();
        if !target.to_string_lossy().ends_with("/fd") {
            found.insert(format!(
                "descriptor {} of {}",
                path.display(),
                target.display()
            ));
        }
    }
    Ok(found)
}

/// Everything below a folder, and the folder.
fn tree(path: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    found.insert(path.display().to_string());
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).with_context(|| format!("no {}", path.display()))? {
            tree(&entry?.path(), found)?;
        }
    }
    Ok(())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(processes: &[&str], memory: u64) -> Accounts {
        let none = BTreeSet::new;
        Accounts {
            processes: processes.iter().map(|&name| name.to_owned()).collect(),
            descriptors: none(),
            mounts: none(),
            cgroups: none(),
            sockets: none(),
            files: none(),
            memory: Some(memory),
        }
    }

    #[test]
    fn compared_accounts_name_what_is_left_and_nothing_that_was_there() {
        let before = accounts(&["one"], 4096);
        let (_, leaks) = accounts(&["one"], 4096 + MEMORY_SLACK).compared(&before);
        assert!(leaks.is_empty(), "{leaks:?}");
        let (table, leaks) = accounts(&["one", "two"], 4097 + MEMORY_SLACK).compared(&before);
        assert_eq!(leaks.len(), 2, "{leaks:?}");
        assert_eq!(leaks[0], "two");
        assert!(
            table.contains("processes                       1          2"),
            "{table}"
        );
    }
}
