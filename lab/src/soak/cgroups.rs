//! The cgroups that the jails' are made in: one of our own name in each hierarchy that a jail uses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The variable that tells the process in the namespaces: version, then the paths, divided by colons.
pub(super) const TOLD: &str = "KEEPTIME_SOAK_CGROUPS";

/// What their name begins with; a soak's process follows.
const NAME: &str = "keeptime-soak-";

/// The controllers that a jail uses, where the machine has them.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// A cgroup for each hierarchy in use.
#[derive(Debug)]
pub(super) struct Cgroups {
    version: u8,
    /// Of version 1 one for each controller; of version 2 one; none where there are none.
    paths: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes those of the soak with this process, under the root of the hierarchies, where the jailer looks for a
    /// `--parent-cgroup`. Removes those that soaks have left that were killed.
    pub(super) fn make(process: u32) -> Result<Self> {
        let name = format!("{NAME}{process}");
        let is_alive = |process: u32| Path::new(&format!("/proc/{process}")).exists();
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        let (version, hierarchies) = hierarchies(&mounts);
        for hierarchy in &hierarchies {
            remove_left(hierarchy, is_alive)?;
        }
        let paths: Vec<PathBuf> = hierarchies.iter().map(|path| path.join(&name)).collect();
        for path in &paths {
            fs::create_dir(path)
                .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        }
        Ok(Self { version, paths })
    }

    /// What [`given`](Self::given) makes the same from.
    pub(super) fn told(&self) -> String {
        let paths = self.paths.iter().map(|path| format!(":{}", path.display()));
        self.version.to_string() + &paths.collect::<String>()
    }

    /// Those that another process has made.
    pub(super) fn given() -> Result<Self> {
        let told = std::env::var(TOLD).context("no cgroups told")?;
        let (version, paths) = told.split_once(':').unwrap_or((&told, ""));
        Ok(Self {
            version: version.parse().context("no version of cgroups told")?,
            paths: paths
                .split(':')
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
                .collect(),
        })
    }

    /// Their version.
    pub(super) fn version(&self) -> u8 {
        self.version
    }

    /// What the jailer is told of them.
    pub(super) fn options(&self) -> Vec<String> {
        let Some(name) = self.paths.first().and_then(|path| path.file_name()) else {
            return Vec::new();
        };
        let mut options = vec![
            format!("--cgroup-version={}", self.version),
            format!("--parent-cgroup={}", name.to_string_lossy()),
            "--cgroup=pids.max=64".to_owned(),
        ];
        options.push(match self.version {
            1 => "--cgroup=memory.limit_in_bytes=268435456".to_owned(),
            _ => "--cgroup=memory.max=268435456".to_owned(),
        });
        options
    }

    /// Removes the cgroup of a jail that has ended. A cgroup that still has a process cannot be removed.
    pub(super) fn remove_jail(&self, id: &str) -> Result<()> {
        for path in self.paths.iter().map(|path| path.join(id)) {
            if path.exists() {
                fs::remove_dir(&path)
                    .with_context(|| format!("the cgroup {} cannot be removed", path.display()))?;
            }
        }
        Ok(())
    }

    /// All cgroups below ours.
    pub(super) fn below(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for path in &self.paths {
            for entry in fs::read_dir(path).with_context(|| format!("no {}", path.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    found.push(path.display().to_string());
                }
            }
        }
        Ok(found)
    }

    /// The bytes of memory that are charged to ours: what jails that are gone were charged with and nobody has
    /// freed has come to it. `None` where there is no such controller.
    pub(super) fn memory(&self) -> Option<u64> {
        let read = |path: &Path| {
            ["memory.usage_in_bytes", "memory.current"]
                .iter()
                .find_map(|file| fs::read_to_string(path.join(file)).ok())
        };
        let text = self.paths.iter().find_map(|path| read(path))?;
        text.trim().parse().ok()
    }

    /// Removes ours, and those of jails that a soak that failed has left: their processes have ended with its
    /// namespace.
    pub(super) fn remove(&self) -> Result<()> {
        let left = self.below()?.into_iter().map(PathBuf::from);
        for path in left.chain(self.paths.iter().cloned()) {
            fs::remove_dir(&path)
                .with_context(|| format!("the cgroup {} cannot be removed", path.display()))?;
        }
        Ok(())
    }
}

/// Removes the cgroups of soaks whose process is gone, as far as they are empty.
fn remove_left(hierarchy: &Path, is_alive: impl Fn(u32) -> bool) -> Result<()> {
    let folders = |path: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(path).with_context(|| format!("no {}", path.display()))?;
        let paths = entries.map(|entry| Ok(entry?.path()));
        paths
            .filter(|path| path.as_ref().map_or(true, |path| path.is_dir()))
            .collect()
    };
    for path in folders(hierarchy)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let process = name.and_then(|name| name.strip_prefix(NAME)?.parse().ok());
        if process.is_none_or(&is_alive) {
            continue;
        }
        for path in folders(&path)?.into_iter().chain([path]) {
            // One that has a process is somebody's.
            if let Err(error) = fs::remove_dir(&path) {
                eprintln!("lab: {} is left: {error}", path.display());
            }
        }
    }
    Ok(())
}

/// The version in use, and a hierarchy for each of [`CONTROLLERS`], or the one of version 2.
fn hierarchies(mounts: &str) -> (u8, Vec<PathBuf>) {
    // fs_spec fs_file fs_vfstype fs_mntops …: fstab(5)
    let entries: Vec<Vec<&str>> = mounts
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    let first: Vec<PathBuf> = CONTROLLERS
        .iter()
        .filter_map(|controller| {
            entries.iter().find_map(|entry| match entry[..] {
                [_, path, "cgroup", options, ..]
                    if options.split(',').any(|option| option == *controller) =>
                {
                    Some(PathBuf::from(path))
                }
                _ => None,
            })
        })
        .collect();
    if first.len() == CONTROLLERS.len() {
        return (1, first);
    }
    let second = entries.iter().find_map(|entry| match entry[..] {
        [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
        _ => None,
    });
    let usable = second.filter(|path| {
        let has = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        CONTROLLERS
            .iter()
            .all(|controller| has.split_whitespace().any(|word| word == *controller))
    });
    (2, usable.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_version_1_are_those_of_the_controllers() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n";
        let wanted = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"].map(PathBuf::from);
        assert_eq!(hierarchies(mounts), (1, wanted.to_vec()));
    }

    #[test]
    fn remove_left_takes_empty_ones_of_processes_that_are_gone() {
        let hierarchy = tempfile::tempdir().unwrap();
        let names = ["1", "2", "3", "x", "2/jail", "3/jail", "3/jail/busy"];
        for name in names {
            fs::create_dir(hierarchy.path().join(format!("{NAME}{name}"))).unwrap();
        }
        fs::create_dir(hierarchy.path().join("other-2")).unwrap();
        remove_left(hierarchy.path(), |process| process == 1).unwrap();
        let mut left: Vec<_> = fs::read_dir(hierarchy.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                &format!("{NAME}1"),
                &format!("{NAME}3"),
                &format!("{NAME}x"),
                "other-2"
            ]
        );
    }

    #[test]
    fn hierarchies_without_the_controllers_are_none() {
        let mounts = "cgroup /c/cpu cgroup rw,cpu 0 0\ncgroup2 /nowhere/at/all cgroup2 rw 0 0\n";
        assert_eq!(hierarchies(mounts), (2, Vec::new()));
    }
}
