//! The initramfs of an emulated host: busybox, KVM's modules, the job.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cpio::Archive;
use crate::kernels::Stock;
use crate::modules;

/// The first program.
const INIT: &str = include_str!("init.sh");
/// What is run on a step that is late, before it is killed.
const AUTOPSY: &str = include_str!("autopsy.sh");

/// A kernel module to load, with its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The module.
    pub(crate) module: &'static str,
    /// Its parameters, as on insmod's command line.
    pub(crate) parameters: &'static str,
}

/// Where a file of a job comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file of this machine.
    Path(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Source {
    /// The contents.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Path(path) => {
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))
            }
            Self::Bytes(bytes) => Ok(bytes.clone()),
        }
    }
}

/// A file that a job's steps find in their working folder; all are executable.
pub(crate) type Files = BTreeMap<String, Source>;

/// One command of a job.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Letters, digits and dashes.
    pub(crate) name: String,
    /// What `sh` runs, in the folder of the job's files.
    pub(crate) script: String,
    /// After this time on the host's clock the step is killed.
    pub(crate) limit: Duration,
    /// Where its output goes.
    pub(crate) output: Output,
}

/// Where a step's output goes, which decides by what a host that has stopped is told from one that takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Into files, which come when it has ended. Meanwhile there is a mark every five seconds.
    Files,
    /// On the console as it comes, with no marks in its midst: any line is a sign of life.
    Live {
        /// After how long without one the host has stopped; with none, a step may say nothing until its limit.
        silence: Option<Duration>,
    },
}

/// What an emulated host shall do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Job {
    /// What the steps work with.
    pub(crate) files: Files,
    /// The steps, run one after the other.
    pub(crate) steps: Vec<Step>,
}

/// Builds the initramfs of a host that runs `job`, whose marks begin with `word`.
pub(crate) fn initramfs(stock: &Stock, loads: &[Load], job: &Job, word: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let folders = [
        "bin",
        "dev",
        "proc",
        "sys",
        "tmp",
        "lab",
        "lab/files",
        "lab/modules",
        "lab/own",
        "lab/steps",
    ];
    for folder in folders {
        archive.directory(folder)?;
    }
    // The kernel opens it as the first program's standard input and output.
    archive.device("dev/console", 5, 1)?;
    archive.executable("bin/busybox", &stock.read_busybox()?)?;
    archive.executable("init", INIT.as_bytes())?;
    archive.executable("bin/autopsy", AUTOPSY.as_bytes())?;
    archive.file("lab/job", 0o644, format!("WORD='{word}'\n").as_bytes())?;

    let wanted: Vec<&str> = loads.iter().map(|load| load.module).collect();
    let mut order = String::new();
    for module in modules::in_load_order(&stock.modules, &wanted)? {
        let file = format!("{}.ko", module.name);
        let parameters = loads
            .iter()
            .find(|load| load.module.replace('-', "_") == module.name)
            .map_or("", |load| load.parameters);
        archive.file(&format!("lab/modules/{file}"), 0o644, &module.contents)?;
        writeln!(order, "{file} {parameters}")?;
    }
    archive.file("lab/modules/order", 0o644, order.as_bytes())?;

    let mut order = String::new();
    for step in &job.steps {
        let plain = |character: char| character.is_ascii_alphanumeric() || character == '-';
        ensure!(
            step.name.chars().all(plain),
            "{:?} is no name of a step",
            step.name
        );
        let output = match step.output {
            Output::Files => "files",
            Output::Live { .. } => "live",
        };
        writeln!(
            order,
            "{} {} {output}",
            step.name,
            step.limit.as_secs().max(1)
        )?;
        archive.file(
            &format!("lab/steps/{}", step.name),
            0o644,
            step.script.as_bytes(),
        )?;
    }
    archive.file("lab/steps/order", 0o644, order.as_bytes())?;
    for (name, source) in &job.files {
        ensure!(!name.contains('/'), "{name:?} is no name of a file");
        archive.executable(&format!("lab/files/{name}"), &source.read()?)?;
    }
    Ok(archive.finish()?)
}
