//! The host's TSC domains: sets of CPUs whose TSCs agree, so that a guest that stays within one has a clock
//! that does not break when the kernel moves it.
//!
//! Somebody else measures them and writes a file, which is all that the jailer knows of TSCs:
//!
//! ```text
//! tsc-domains 1
//! boot 0b6ae3e8-7a3c-4b9e-8d3f-3a4c9f6d1c55
//! slept-ns 0
//! 0-3
//! 4-7
//! ```
//!
//! The first line names the format; then the host's boot (`/proc/sys/kernel/random/boot_id`), and how long the
//! host had slept by then (`CLOCK_BOOTTIME` less `CLOCK_MONOTONIC`), since either sets TSCs anew; then each domain in
//! a line. A CPU that is in none is one of which nothing was proven.
//!
//! Where a tenant may run follows from the file, so only what root alone can have written is read: it is reached
//! through no link but root's own, belongs to root, and nobody else may write to it.

use std::fs::{File, read_to_string};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::cpus::Cpus;
use crate::folder::{FolderError, open_through_roots_links};

/// Where the file is when nobody says.
pub(crate) const DEFAULT_FILE: &str = "/run/keeptime/tsc-domains";

/// The most that is read: a thousand CPUs, each a domain of its own, are some 5 KB.
const MAX_FILE: u64 = 1 << 16;

/// The clocks are read one after the other; what they differ by more than before is sleep.
const SLEEP_NS: u64 = 100_000_000;

/// Why a cpuset is not within a domain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TscDomainError {
    #[error("--cpuset-tsc-domain: {} is not there: have root write it (keeptime doctor --tsc-domains {})", .0.display(), .0.display())]
    Missing(PathBuf),
    #[error("--cpuset-tsc-domain")]
    Open(#[source] FolderError),
    #[error("--cpuset-tsc-domain: cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("--cpuset-tsc-domain: {} is not a plain file that root alone can write to: others could choose the CPUs; chown and chmod it, or name another", .0.display())]
    NotRoots(PathBuf),
    #[error("--cpuset-tsc-domain: {} tells no TSC domains: {}; write it anew (keeptime doctor --tsc-domains {})", .0.display(), .1, .0.display())]
    Content(PathBuf, Fault),
    #[error("--cpuset-tsc-domain and --cgroup cpuset.cpus={0}: {1}")]
    Wanted(String, &'static str),
    #[error("--cgroup cpuset.cpus={wanted} is not within one TSC domain of {}, which are {domains}: choose CPUs of one, or leave it out to have them chosen", .file.display())]
    NotWithinOne {
        wanted: Cpus,
        domains: String,
        file: PathBuf,
    },
    #[error("--cpuset-tsc-domain: {} allows the CPUs {allowed}, and none of them is in a TSC domain of {}: choose another --parent-cgroup, or measure with these CPUs", .parent.display(), .file.display())]
    NoneAllowed {
        parent: PathBuf,
        allowed: Cpus,
        file: PathBuf,
    },
    #[error("--cpuset-tsc-domain: {} got the CPUs {effective:?}, which are not within one TSC domain of {}: see cpuset.cpus of the cgroups above", .folder.display(), .file.display())]
    Effective {
        folder: PathBuf,
        effective: String,
        file: PathBuf,
    },
}

/// What is wrong with a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("its first line is not {FORMAT:?}")]
    Format,
    #[error("its second line is not `boot` with an id")]
    Boot,
    #[error("it was measured before the host was booted")]
    OtherBoot,
    #[error("its third line is not `slept-ns` with a number")]
    Slept,
    #[error("the host has slept since")]
    Sleep,
    #[error("line {0} is no list of CPUs such as 0-3,8")]
    Domain(usize),
    #[error("a CPU of line {0} is in another line, too")]
    Twice(usize),
    #[error("it has no domain")]
    None,
    #[error("it is longer than {MAX_FILE} bytes")]
    Long,
}

/// What a file of this format begins with.
const FORMAT: &str = "tsc-domains 1";

/// What a file is held against: the host as it is now.
#[derive(Debug, Clone)]
struct Host {
    boot: String,
    slept_ns: u64,
}

impl Host {
    fn now() -> io::Result<Self> {
        let boot = read_to_string("/proc/sys/kernel/random/boot_id")?;
        let monotonic = nanoseconds(clock_gettime(ClockId::Monotonic));
        let since_boot = nanoseconds(clock_gettime(ClockId::Boottime));
        Ok(Self {
            boot: boot.trim().to_owned(),
            slept_ns: since_boot.saturating_sub(monotonic),
        })
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    // Neither is negative, of clocks that begin with the boot.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// The domains, and which file told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TscDomains {
    file: PathBuf,
    /// No CPU is in two of them, and none is empty.
    domains: Vec<Cpus>,
}

impl TscDomains {
    /// Reads them.
    ///
    /// # Errors
    /// No file that root alone can have written on this boot, with domains in it.
    pub(crate) fn read(path: &Path) -> Result<Self, TscDomainError> {
        let failed = |error: io::Error| TscDomainError::Read(path.to_owned(), error);
        let fd = open_through_roots_links(path).map_err(|error| match error {
            FolderError::Missing(_) => TscDomainError::Missing(path.to_owned()),
            error => TscDomainError::Open(error),
        })?;
        let facts = fstat(&fd).map_err(|error| failed(error.into()))?;
        let is_roots = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile
            && facts.st_uid == 0
            && facts.st_mode & 0o022 == 0;
        if !is_roots {
            return Err(TscDomainError::NotRoots(path.to_owned()));
        }
        let mut text = String::new();
        let read = File::from(fd).take(MAX_FILE + 1).read_to_string(&mut text);
        read.map_err(failed)?;
        let host = Host::now().map_err(failed)?;
        let domains =
            parse(&text, &host).map_err(|fault| TscDomainError::Content(path.to_owned(), fault))?;
        Ok(Self {
            file: path.to_owned(),
            domains,
        })
    }

    /// Whether a cpuset's value that the operator gave is within one of them.
    ///
    /// # Errors
    /// It is not, or no list of CPUs.
    pub(crate) fn check(&self, value: &str) -> Result<(), TscDomainError> {
        let wanted: Cpus = value.trim().parse().map_err(|_| {
            let reason = "give a list of CPUs such as 0-3,8, or leave it out to have them chosen";
            TscDomainError::Wanted(value.to_owned(), reason)
        })?;
        if self.holds(&wanted) {
            return Ok(());
        }
        let domains: Vec<String> = self.domains.iter().map(Cpus::to_string).collect();
        Err(TscDomainError::NotWithinOne {
            wanted,
            domains: domains.join(" and "),
            file: self.file.clone(),
        })
    }

    /// The CPUs for the jail `id` where the cgroup `parent` allows `allowed`, in the kernel's format: all of the
    /// domain that has most of them. Among domains with as many, ids are spread.
    ///
    /// # Errors
    /// None of the CPUs is in a domain.
    pub(crate) fn choose(
        &self,
        id: &str,
        allowed: &str,
        parent: &Path,
    ) -> Result<String, TscDomainError> {
        let allowed: Cpus = allowed.trim().parse().unwrap_or_default();
        let parts: Vec<Cpus> = self
            .domains
            .iter()
            .map(|domain| domain.common(&allowed))
            .collect();
        let most = parts.iter().map(Cpus::count).max().unwrap_or(0);
        let largest: Vec<&Cpus> = parts
            .iter()
            .filter(|part| most > 0 && part.count() == most)
            .collect();
        // Ids that end with a number take turns.
        let turn = id.bytes().map(usize::from).sum::<usize>();
        turn.checked_rem(largest.len())
            .and_then(|turn| largest.get(turn))
            .map(|cpus| cpus.to_string())
            .ok_or_else(|| TscDomainError::NoneAllowed {
                parent: parent.to_owned(),
                allowed,
                file: self.file.clone(),
            })
    }

    /// Looks whether the CPUs that a cgroup has got in the end are within one of them.
    ///
    /// # Errors
    /// They are not.
    pub(crate) fn verify(&self, folder: &Path, effective: &str) -> Result<(), TscDomainError> {
        let got = effective.trim().parse();
        match got.is_ok_and(|cpus: Cpus| self.holds(&cpus)) {
            true => Ok(()),
            false => Err(TscDomainError::Effective {
                folder: folder.to_owned(),
                effective: effective.trim().to_owned(),
                file: self.file.clone(),
            }),
        }
    }

    fn holds(&self, cpus: &Cpus) -> bool {
        self.domains.iter().any(|domain| cpus.are_within(domain))
    }
}

/// The domains of a file's text, on this host.
fn parse(text: &str, host: &Host) -> Result<Vec<Cpus>, Fault> {
    if text.len() as u64 > MAX_FILE {
        return Err(Fault::Long);
    }
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) {
        return Err(Fault::Format);
    }
    let boot = lines.next().and_then(|line| line.strip_prefix("boot "));
    if boot.ok_or(Fault::Boot)? != host.boot {
        return Err(Fault::OtherBoot);
    }
    let slept = lines.next().and_then(|line| line.strip_prefix("slept-ns "));
    let slept: u64 = slept
        .and_then(|number| number.parse().ok())
        .ok_or(Fault::Slept)?;
    if slept.abs_diff(host.slept_ns) > SLEEP_NS {
        return Err(Fault::Sleep);
    }
    let mut domains: Vec<Cpus> = Vec::new();
    for (number, line) in (4..).zip(lines) {
        let domain: Cpus = line.parse().map_err(|_| Fault::Domain(number))?;
        if domains
            .iter()
            .any(|other| !other.common(&domain).is_empty())
        {
            return Err(Fault::Twice(number));
        }
        domains.push(domain);
    }
    match domains.is_empty() {
        true => Err(Fault::None),
        false => Ok(domains),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            boot: "b".to_owned(),
            slept_ns: 5_000_000_000,
        }
    }

    fn domains(lists: &[&str]) -> TscDomains {
        let lines = lists.join("\n");
        let text = format!("{FORMAT}\nboot b\nslept-ns 5000000000\n{lines}\n");
        TscDomains {
            file: PathBuf::from("/f"),
            domains: parse(&text, &host()).expect("valid"),
        }
    }

    #[test]
    fn files_that_are_not_of_this_host_now_are_refused() {
        let head = "tsc-domains 1\nboot b\nslept-ns 5000000000\n";
        for (text, fault) in [
            (String::new(), Fault::Format),
            ("tsc-domains 2\n".to_owned(), Fault::Format),
            ("tsc-domains 1\n0-3\n".to_owned(), Fault::Boot),
            ("tsc-domains 1\nboot c\n".to_owned(), Fault::OtherBoot),
            ("tsc-domains 1\nboot b\n0-3\n".to_owned(), Fault::Slept),
            (
                "tsc-domains 1\nboot b\nslept-ns -1\n".to_owned(),
                Fault::Slept,
            ),
            // 5 s, less and more than 100 ms apart
            (
                "tsc-domains 1\nboot b\nslept-ns 4899999999\n0\n".to_owned(),
                Fault::Sleep,
            ),
            (head.to_owned(), Fault::None),
            (format!("{head}0-3\n\n4\n"), Fault::Domain(5)),
            (format!("{head}0-3\n4;5\n"), Fault::Domain(5)),
            (format!("{head}0-3\n4-7\n3\n"), Fault::Twice(6)),
            (format!("{head}{}", "\n".repeat(1 << 16)), Fault::Long),
        ] {
            assert_eq!(parse(&text, &host()), Err(fault), "{text:.60}");
        }
        let text = "tsc-domains 1\nboot b\nslept-ns 4900000000\n0\n";
        parse(text, &host()).expect("less than 100 ms apart");
    }

    #[test]
    fn largest_part_of_a_domain_is_chosen_and_ids_take_turns() {
        let two = domains(&["0-3", "4-7", "8"]);
        let choose = |id: &str, allowed: &str| two.choose(id, allowed, Path::new("/p"));
        // "vm-1" and "vm-2" differ by one.
        let [one, other] = ["vm-1", "vm-2"].map(|id| choose(id, "0-8\n").expect("some"));
        assert_ne!(one, other);
        assert!(["0-3", "4-7"].contains(&one.as_str()), "{one}");
        for (allowed, chosen) in [
            ("0-6", "0-3"),
            ("3-7", "4-7"),
            ("2,3,6", "2-3"),
            ("8-9", "8"),
        ] {
            assert_eq!(choose("vm-1", allowed).expect("some"), chosen, "{allowed}");
        }
        for allowed in ["9", "", "nonsense"] {
            let error = choose("vm-1", allowed).expect_err("none");
            assert!(matches!(error, TscDomainError::NoneAllowed { .. }));
        }
    }

    #[test]
    fn cpus_of_the_operator_are_of_one_domain_or_refused() {
        let two = domains(&["0-3", "4-7"]);
        for (value, fits) in [
            ("0-3", true),
            ("5,7", true),
            ("3-4", false),
            ("0,8", false),
            ("", false),
            ("all", false),
        ] {
            assert_eq!(two.check(value).is_ok(), fits, "{value:?}");
            assert_eq!(
                two.verify(Path::new("/c"), value).is_ok(),
                fits,
                "{value:?}"
            );
        }
    }
}
