//! What a machine boots, from files or from the program itself, into guest memory.

use std::fs::{File, OpenOptions};
use std::io::Cursor;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use arch::boot::{self, BootSource, Image, LoadError, Loaded, Subject};
use vm_memory::GuestMemoryMmap;

use super::MachineError;
use crate::config::{BootConfig, Module};

/// What is loaded into a machine's memory.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    /// A kernel and its modules, from files.
    Files(&'a BootConfig),
    /// A kernel that is part of the program.
    Builtin(&'static [u8]),
}

/// Looks whether the files are there and can be read, so that a client learns of a wrong path when it
/// gives it.
///
/// # Errors
/// The file at fault.
pub(crate) fn check_files(config: &BootConfig) -> Result<(), MachineError> {
    open("kernel", &config.kernel)?;
    for module in &config.modules {
        open("initrd", &module.path)?;
    }
    Ok(())
}

fn open(what: &'static str, path: &Path) -> Result<File, MachineError> {
    // Before it is known what it is: opening a pipe would wait for its other end.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|source| MachineError::Open {
        what,
        path: path.to_owned(),
        source,
    })?;
    let kind = file
        .metadata()
        .map_err(|source| MachineError::Open {
            what,
            path: path.to_owned(),
            source,
        })?
        .file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let kind = if kind.is_dir() {
        "directory"
    } else {
        "device or pipe"
    };
    Err(MachineError::NotAFile {
        what,
        path: path.to_owned(),
        kind,
    })
}

pub(super) fn load(
    memory: &GuestMemoryMmap,
    payload: &Payload<'_>,
) -> Result<Loaded, MachineError> {
    match payload {
        Payload::Files(config) => {
            let mut kernel = open("kernel", &config.kernel)?;
            let mut modules = config
                .modules
                .iter()
                .map(|module| open("initrd", &module.path))
                .collect::<Result<Vec<_>, _>>()?;
            let modules = modules
                .iter_mut()
                .zip(&config.modules)
                .map(|(image, module)| boot::Module {
                    image,
                    command: &module.command,
                })
                .collect();
            load_from(memory, &mut kernel, modules, &config.cmdline).map_err(|source| {
                let subject = match source.subject() {
                    Subject::Kernel => format!("kernel {:?}", config.kernel),
                    Subject::Module(index) => config.modules.get(index).map_or_else(
                        || format!("module {index}"),
                        |Module { path, .. }| format!("initrd {path:?}"),
                    ),
                    other => other.to_string(),
                };
                MachineError::Load { subject, source }
            })
        }
        Payload::Builtin(image) => load_from(memory, &mut Cursor::new(*image), Vec::new(), "")
            .map_err(|source| MachineError::Load {
                subject: "the built-in guest".to_owned(),
                source,
            }),
    }
}

fn load_from<F: Image>(
    memory: &GuestMemoryMmap,
    kernel: &mut F,
    modules: Vec<boot::Module<'_, F>>,
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    boot::load(
        memory,
        BootSource {
            kernel,
            modules,
            cmdline,
        },
    )
}
