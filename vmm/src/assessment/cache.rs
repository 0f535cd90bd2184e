//! What was measured of the TSCs' skews, kept in a file for the other launches on the same boot.
//!
//! The file is `keeptime/tsc-domains.json` in `XDG_RUNTIME_DIR`, or for root in `/run`. It is a
//! convenience and never a reason to fail: where it cannot be read or written, skews are measured again.
//!
//! **Who may write it decides where threads run**, and no more: CPUs that are not allowed cannot be had by
//! it. Still, only what this user alone can have written is read: the folders and the file must belong to
//! this user (the outer folder may be root's), nobody else may write to them, and no symbolic link is
//! followed below the outer one. At most [`MAX_FILE`] bytes are read, and what they say must fit this
//! host: the same boot, the same CPUs, the same clocksource, no sleep of the host since (which resets TSCs),
//! and no older than [`VALID_FOR`], since a TSC can be written to while a host runs. The file is written
//! beside its place and moved there, so that readers see one that is whole.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Uid, geteuid, getpid};
use serde::{Deserialize, Serialize};
use tsc::Nanos;

use super::{Agreement, Finding};
use crate::config::CpuList;
use crate::host_clock;

/// The largest file that is read: 256 CPUs, each a domain of its own, are some 2 KB.
const MAX_FILE: u64 = 1 << 14;
/// How long a measurement is believed: an hour.
const VALID_FOR: Nanos = Nanos::new(3_600_000_000_000);
/// `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC` are read one after the other; what they differ by more than
/// before is sleep.
const SLEEP: Nanos = Nanos::new(100_000_000);

const FOLDER: &str = "keeptime";
const FILE: &str = "tsc-domains.json";
/// A change of the file's meaning changes this.
const FORMAT: u32 = 2;

/// Where findings are kept.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    /// The outer folder.
    base: PathBuf,
}

/// What a finding is true of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// The host's boot.
    boot_id: String,
    /// The CPUs that were to be measured.
    cpus: CpuList,
    /// What the kernel keeps time by.
    clocksource: Option<String>,
    /// How long the host has slept since its boot.
    slept_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: u32,
    key: Key,
    finding: Finding,
}

impl Key {
    /// For `cpus` of this host now; `None` where the kernel does not tell its boot.
    pub(crate) fn now(cpus: CpuList) -> Option<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let monotonic = host_clock::monotonic();
        Some(Self {
            boot_id: boot_id.trim().to_owned(),
            cpus,
            clocksource: host_clock::clocksource(),
            slept_ns: host_clock::boottime().saturating_sub(monotonic).get(),
        })
    }

    /// Whether what was true of `former` is true of this.
    fn follows(&self, former: &Self) -> bool {
        let slept = Self {
            slept_ns: former.slept_ns,
            ..self.clone()
        };
        slept == *former && self.slept_ns.abs_diff(former.slept_ns) <= SLEEP.get()
    }
}

impl Cache {
    /// This user's; `None` when there is no folder for it.
    pub(crate) fn of_this_user() -> Option<Self> {
        let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = match given {
            Some(base) if base.is_absolute() => base,
            _ if geteuid().is_root() => PathBuf::from("/run"),
            _ => return None,
        };
        Some(Self { base })
    }

    #[cfg(test)]
    pub(crate) fn within(base: &std::path::Path) -> Self {
        Self {
            base: base.to_owned(),
        }
    }

    /// What was found for `key`, if it is still believed.
    pub(crate) fn load(&self, key: &Key) -> Option<Finding> {
        believe(&self.read().ok()?, key, host_clock::boottime())
    }

    /// Keeps what was found for `key`, if anything was proven.
    pub(crate) fn store(&self, key: &Key, finding: &Finding) {
        if finding.agree == Agreement::Unproven {
            return;
        }
        let content = Content {
            format: FORMAT,
            key: key.clone(),
            finding: finding.clone(),
        };
        let written = serde_json::to_vec(&content)
            .map_err(std::io::Error::from)
            .and_then(|text| self.write(&text));
        if let Err(error) = written {
            tracing::debug!("what was measured of the TSCs is not kept: {error}");
        }
    }

    /// Our folder, which is ours alone.
    fn folder(&self, make: bool) -> std::io::Result<OwnedFd> {
        let open = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let base = openat(CWD, &self.base, open, Mode::empty())?;
        trusted(&base, FileType::Directory, &[geteuid(), Uid::ROOT])?;
        if make {
            match mkdirat(&base, FOLDER, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let folder = openat(&base, FOLDER, open | OFlags::NOFOLLOW, Mode::empty())?;
        trusted(&folder, FileType::Directory, &[geteuid()])?;
        Ok(folder)
    }

    fn read(&self) -> std::io::Result<Vec<u8>> {
        let folder = self.folder(false)?;
        // A pipe would be waited for, if it were opened without NONBLOCK.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&folder, FILE, flags, Mode::empty())?;
        trusted(&file, FileType::RegularFile, &[geteuid()])?;
        let mut text = Vec::new();
        File::from(file).take(MAX_FILE + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        Ok(text)
    }

    fn write(&self, text: &[u8]) -> std::io::Result<()> {
        let folder = self.folder(true)?;
        let name = format!("{FILE}.{}", getpid().as_raw_nonzero());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, &name, flags, Mode::RUSR | Mode::WUSR)?;
        let written = File::from(file)
            .write_all(text)
            .and_then(|()| Ok(renameat(&folder, &name, &folder, FILE)?));
        if written.is_err() {
            // Nothing more can be done about a file that nobody reads.
            let _ = unlinkat(&folder, &name, AtFlags::empty());
        }
        written
    }
}

/// What a whole file of `text` is believed to say of `key`, at `now` of `CLOCK_BOOTTIME`.
fn believe(text: &[u8], key: &Key, now: Nanos) -> Option<Finding> {
    let content: Content = serde_json::from_slice(text).ok()?;
    let age = now.get().checked_sub(content.finding.at_ns)?;
    let believed = content.format == FORMAT
        && key.follows(&content.key)
        && age <= VALID_FOR.get()
        && fits(&content.finding, &key.cpus);
    believed.then_some(content.finding)
}

/// The TSC domains that a whole file of `text` is believed to tell of `cpus`, at `now` of `CLOCK_BOOTTIME`, on
/// a host whose boot is `boot_id`, which has not slept and tells no clocksource: for whoever tries the parser
/// on any bytes.
#[must_use]
pub fn domains_in_file(
    text: &[u8],
    cpus: CpuList,
    boot_id: &str,
    now: Nanos,
) -> Option<Vec<CpuList>> {
    let key = Key {
        boot_id: boot_id.to_owned(),
        cpus,
        clocksource: None,
        slept_ns: 0,
    };
    believe(text, &key, now).map(|finding| finding.domains)
}

/// Whether only one of `owners`, and root, can have written it.
fn trusted(file: impl AsFd, kind: FileType, owners: &[Uid]) -> std::io::Result<()> {
    let status = fstat(file)?;
    let owner = Uid::from_raw(status.st_uid);
    let others = Mode::WGRP | Mode::WOTH;
    let is_trusted = FileType::from_raw_mode(status.st_mode) == kind
        && owners.contains(&owner)
        && !Mode::from_raw_mode(status.st_mode).intersects(others);
    if is_trusted {
        Ok(())
    } else {
        Err(std::io::ErrorKind::PermissionDenied.into())
    }
}

/// Whether each of `cpus` is in one domain, nobody else is, and the conclusion is one that is kept.
fn fits(finding: &Finding, cpus: &CpuList) -> bool {
    let members: Vec<_> = finding.domains.iter().flat_map(CpuList::iter).collect();
    let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
    let agree = match finding.agree {
        Agreement::Proven => finding.domains.len() == 1,
        Agreement::Refuted => finding.domains.len() > 1,
        Agreement::Unproven => false,
    };
    agree
        && count == cpus.count()
        && members.into_iter().collect::<CpuList>() == *cpus
        && finding.domains.iter().all(|domain| !domain.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn list(text: &str) -> CpuList {
        text.parse().expect(text)
    }

    fn key() -> Key {
        Key::now(list("0-2")).expect("Linux tells its boot")
    }

    fn finding() -> Finding {
        Finding {
            domains: vec![list("0,2"), list("1")],
            agree: Agreement::Refuted,
            largest: None,
            at_ns: host_clock::boottime().get(),
        }
    }

    /// A cache with a finding in it, which is found.
    fn filled() -> (tempfile::TempDir, Cache) {
        let base = tempfile::tempdir().expect("a folder");
        let cache = Cache::within(base.path());
        assert_eq!(cache.load(&key()), None);
        cache.store(&key(), &finding());
        let found = cache.load(&key()).expect("kept");
        assert_eq!(found.domains, finding().domains);
        (base, cache)
    }

    fn file(base: &tempfile::TempDir) -> PathBuf {
        base.path().join(FOLDER).join(FILE)
    }

    #[test]
    fn finding_is_kept_for_its_key_and_alone_in_its_folder() {
        let (base, cache) = filled();
        let names: Vec<_> = fs::read_dir(base.path().join(FOLDER))
            .expect("ours")
            .map(|entry| entry.expect("ours").file_name())
            .collect();
        assert_eq!(names, [FILE]);
        let changed = [
            Key {
                boot_id: "another".to_owned(),
                ..key()
            },
            Key {
                cpus: list("0-3"),
                ..key()
            },
            Key {
                clocksource: Some("hpet, now".to_owned()),
                ..key()
            },
            Key {
                slept_ns: key().slept_ns + 200_000_000,
                ..key()
            },
        ];
        for key in changed {
            assert_eq!(cache.load(&key), None, "{key:?}");
        }
        // one measurement follows another
        let later = Finding {
            domains: vec![list("0-2")],
            agree: Agreement::Proven,
            ..finding()
        };
        cache.store(&key(), &later);
        assert_eq!(cache.load(&key()), Some(later));
    }

    #[test]
    fn what_is_not_proven_is_not_kept() {
        let base = tempfile::tempdir().expect("a folder");
        let cache = Cache::within(base.path());
        let unproven = Finding {
            agree: Agreement::Unproven,
            ..finding()
        };
        cache.store(&key(), &unproven);
        assert!(!file(&base).exists());
    }

    #[test]
    fn finding_that_does_not_fit_is_not_believed() {
        let later = host_clock::boottime().get() + 3_600_000_000_000;
        type Change = fn(&mut Finding);
        let rows: [(&str, Change); 7] = [
            ("a CPU is missing", |f| {
                f.domains = vec![list("0"), list("1")]
            }),
            ("a CPU is twice", |f| {
                f.domains = vec![list("0-2"), list("1")]
            }),
            ("a CPU too many", |f| {
                f.domains = vec![list("0-2"), list("3")]
            }),
            ("an empty domain", |f| f.domains.push(CpuList::default())),
            ("one domain, refuted", |f| f.domains = vec![list("0-2")]),
            ("several, proven", |f| f.agree = Agreement::Proven),
            ("none", |f| f.domains.clear()),
        ];
        let (_base, cache) = filled();
        for (name, change) in rows {
            let mut changed = finding();
            change(&mut changed);
            cache.store(&key(), &changed);
            assert_eq!(cache.load(&key()), None, "{name}");
        }
        for at_ns in [later, 0] {
            cache.store(&key(), &Finding { at_ns, ..finding() });
            let believed = cache.load(&key()).is_some();
            // A host that was booted within the hour believes what is of its beginning.
            let young = at_ns == 0 && host_clock::boottime() <= VALID_FOR;
            assert_eq!(believed, young, "measured at {at_ns}");
        }
    }

    #[test]
    fn hostile_bytes_are_not_believed() {
        let (base, cache) = filled();
        let good = fs::read(file(&base)).expect("ours");
        for length in 0..good.len() {
            fs::write(file(&base), &good[..length]).expect("ours");
            assert_eq!(cache.load(&key()), None, "{length} bytes");
        }
        let text = String::from_utf8(good.clone()).expect("JSON");
        for (from, to) in [
            ("\"format\":2", "\"format\":1"),
            ("\"format\":2", "\"format\":3"),
            ("\"format\":2", "\"format\":2,\"more\":1"),
            ("\"0,2\"", "\"0-4294967295\""),
            ("\"0,2\"", "[0,2]"),
            ("refuted", "maybe"),
        ] {
            assert!(text.contains(from), "{text}");
            fs::write(file(&base), text.replace(from, to)).expect("ours");
            assert_eq!(cache.load(&key()), None, "{to}");
        }
        let mut padded = good.clone();
        padded.resize(1 << 14, b' ');
        fs::write(file(&base), &padded).expect("ours");
        assert!(cache.load(&key()).is_some(), "as large as can be");
        padded.push(b' ');
        fs::write(file(&base), &padded).expect("ours");
        assert_eq!(cache.load(&key()), None, "too large");
    }

    #[test]
    fn what_others_can_write_is_not_believed() {
        for (path, mode) in [
            ("", 0o1777),
            ("", 0o720),
            ("keeptime", 0o702),
            ("keeptime", 0o720),
            ("keeptime/tsc-domains.json", 0o620),
            ("keeptime/tsc-domains.json", 0o606),
        ] {
            let (base, cache) = filled();
            let path = base.path().join(path);
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
            assert_eq!(cache.load(&key()), None, "{path:?} {mode:o}");
        }
        if geteuid().is_root() {
            for path in ["", "keeptime", "keeptime/tsc-domains.json"] {
                let (base, cache) = filled();
                std::os::unix::fs::chown(base.path().join(path), Some(65_534), None)
                    .expect("as root");
                assert_eq!(cache.load(&key()), None, "{path} of another user");
            }
        }
    }

    #[test]
    fn links_and_pipes_are_not_followed() {
        // A link to the file
        let (base, cache) = filled();
        let elsewhere = base.path().join("elsewhere");
        fs::rename(file(&base), &elsewhere).expect("ours");
        symlink(&elsewhere, file(&base)).expect("ours");
        assert_eq!(cache.load(&key()), None);
        // is replaced, and what it leads to is not written to.
        let before = fs::read(&elsewhere).expect("ours");
        let later = Finding {
            domains: vec![list("0-2")],
            agree: Agreement::Proven,
            ..finding()
        };
        cache.store(&key(), &later);
        assert_eq!(cache.load(&key()), Some(later));
        assert_eq!(fs::read(&elsewhere).expect("ours"), before);
        // A link to the folder
        let (base, cache) = filled();
        let folder = base.path().join(FOLDER);
        let elsewhere = base.path().join("elsewhere");
        fs::rename(&folder, &elsewhere).expect("ours");
        symlink(&elsewhere, &folder).expect("ours");
        assert_eq!(cache.load(&key()), None);
        fs::remove_file(elsewhere.join(FILE)).expect("ours");
        cache.store(&key(), &finding());
        assert!(!elsewhere.join(FILE).exists());
        // A pipe that nobody writes to
        let (base, cache) = filled();
        fs::remove_file(file(&base)).expect("ours");
        let status = std::process::Command::new("mkfifo")
            .arg(file(&base))
            .status();
        assert!(status.expect("coreutils").success());
        assert_eq!(cache.load(&key()), None);
    }
}
