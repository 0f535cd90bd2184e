//! The TSC domains in a file of their own, for whoever places microVMs: `--tsc-domains FILE`.
//!
//! The format is text that needs no parser of JSON, since the jailer, which runs as root, reads it:
//!
//! ```text
//! tsc-domains 1
//! boot 0b6ae3e8-7a3c-4b9e-8d3f-3a4c9f6d1c55
//! slept-ns 0
//! 0-3
//! 4-7
//! ```
//!
//! The format's name and number; the host's boot; how long the host had slept since, for either sets TSCs anew; each
//! domain in a line, as cpusets are written (`cpuset(7)`).

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use tsc::assess::Spread;

use super::report::Report;
use crate::config::CpuList;
use crate::{host_clock, whole_file};

/// There is no such file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DomainsError {
    /// Nothing to write.
    #[error(
        "--tsc-domains: the TSCs of this host's CPUs are proven neither to agree nor to differ, so that {path:?} is \
         left as it was: {reason}; try again when the host is less busy"
    )]
    Unproven {
        /// Which file.
        path: PathBuf,
        /// What was in the way.
        reason: String,
    },
    /// No place for it.
    #[error("--tsc-domains: cannot write {path:?}; make its folder, root's alone to write to")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Writes the domains that were measured, the file as a whole.
///
/// # Errors
/// Nothing was proven, or the file cannot be written. What was there stays.
pub(super) fn write(report: &Report, path: &Path) -> Result<(), DomainsError> {
    let unproven = |reason: &str| DomainsError::Unproven {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let skew = report.skew.as_ref().map_err(|reason| unproven(reason))?;
    if skew.spread == Spread::Unproven {
        let reason = skew.problem.as_deref().unwrap_or("too few exchanges");
        return Err(unproven(reason));
    }
    let failed = |source| DomainsError::Write {
        path: path.to_owned(),
        source,
    };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?;
    let domains = skew
        .domains
        .iter()
        .map(|cpus| cpus.iter().copied().collect());
    let text = render(boot.trim(), slept_ns(), domains);
    whole_file::put(path, text.as_bytes()).map_err(failed)
}

fn slept_ns() -> u64 {
    let monotonic = host_clock::monotonic();
    host_clock::boottime().saturating_sub(monotonic).get()
}

fn render(boot: &str, slept_ns: u64, domains: impl Iterator<Item = CpuList>) -> String {
    let mut text = format!("tsc-domains 1\nboot {boot}\nslept-ns {slept_ns}\n");
    for domain in domains {
        // A `String` takes everything.
        let _ = writeln!(text, "{domain}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_a_line_for_each_domain() {
        let domains = ["0-3", "4,6"].map(|list| list.parse().expect("a list"));
        assert_eq!(
            render("b", 7, domains.into_iter()),
            "tsc-domains 1\nboot b\nslept-ns 7\n0-3\n4,6\n"
        );
    }
}
