//! Which seccomp filters a microVM's threads have.

use std::path::PathBuf;

use clap::Args;

use crate::seccomp::{Action, FilterError, Filters};

/// The flags.
#[derive(Args, Debug)]
pub(super) struct SeccompFlags {
    /// Run without seccomp filters: a guest that takes a thread over may call whatever this process may
    #[arg(long, conflicts_with_all = ["seccomp_filter", "seccomp_report"])]
    pub(super) no_seccomp: bool,
    /// Seccomp filters to use instead of the launcher's own: rules in seccompiler's JSON format, for each kind
    /// of thread
    #[arg(long, value_name = "FILE", conflicts_with = "seccomp_report")]
    pub(super) seccomp_filter: Option<PathBuf>,
    /// Tell the system call that a filter does not allow, and end with status 148, instead of by SIGSYS
    #[arg(long)]
    pub(super) seccomp_report: bool,
}

impl SeccompFlags {
    /// Those that were given, by their names.
    pub(super) fn given(&self) -> [(bool, &'static str); 3] {
        [
            (self.no_seccomp, "--no-seccomp"),
            (self.seccomp_filter.is_some(), "--seccomp-filter"),
            (self.seccomp_report, "--seccomp-report"),
        ]
    }

    /// The filters that are asked for.
    ///
    /// # Errors
    /// A file that has none.
    pub(super) fn filters(&self) -> Result<Filters, FilterError> {
        if self.no_seccomp {
            tracing::warn!("without seccomp filters, as --no-seccomp says");
            return Ok(Filters::none());
        }
        if let Some(path) = &self.seccomp_filter {
            return Filters::from_file(path);
        }
        Filters::builtin(match self.seccomp_report {
            true => Action::Report,
            false => Action::Kill,
        })
    }
}
