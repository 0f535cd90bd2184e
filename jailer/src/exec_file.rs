//! The program that is put into the jail.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fchmod, fstat};
use rustix::io::Errno;

use crate::folder::{Folder, FolderError};
use crate::undo::Undo;

/// `PT_INTERP` of the ELF specification: the program needs another to be loaded.
const PT_INTERP: u32 = 3;

/// `EM_X86_64` of the ELF specification for x86-64.
const EM_X86_64: u16 = 62;

/// Why a file is not put into a jail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecFileError {
    #[error("--exec-file {} names no file: give the path of the program", .0.display())]
    NoName(PathBuf),
    #[error("--exec-file {} has a name that the jail itself needs: rename it", .0.display())]
    Reserved(PathBuf),
    #[error("--exec-file")]
    Folder(#[from] FolderError),
    #[error("--exec-file {} is not a regular file: give the path of the program", .0.display())]
    NotAFile(PathBuf),
    #[error("--exec-file {} has {} hard links, so that others could change it by another name: give a copy of its own", .0.display(), .1)]
    HardLinks(PathBuf, u64),
    #[error("--exec-file {} is set-uid or set-gid: remove that (chmod ug-s)", .0.display())]
    SetId(PathBuf),
    #[error("--exec-file {} is not executable: chmod +x it, if it is the program", .0.display())]
    NotExecutable(PathBuf),
    #[error("--exec-file {} is no ELF program for x86-64: scripts and others find no interpreter in a jail", .0.display())]
    NotElf(PathBuf),
    #[error("--exec-file {} is linked dynamically, and a jail has no libraries: link it statically", .0.display())]
    Dynamic(PathBuf),
    #[error("{} exists: the id is occupied; choose another, or remove what is left of that jail", .0.display())]
    Occupied(PathBuf),
    #[error("cannot copy --exec-file to {}", .0.display())]
    Copy(PathBuf, #[source] io::Error),
}

/// A program that was found fit for a jail, opened.
#[derive(Debug)]
pub(crate) struct ExecFile {
    file: File,
    name: OsString,
}

impl ExecFile {
    /// Opens and checks a file; all that follows uses the opened one.
    pub(crate) fn open(path: &Path) -> Result<Self, ExecFileError> {
        let own = || path.to_owned();
        let name = path
            .file_name()
            .ok_or_else(|| ExecFileError::NoName(own()))?;
        if [OsStr::new("dev"), OsStr::new("run")].contains(&name) {
            return Err(ExecFileError::Reserved(own()));
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        // A named pipe without a writer must not hold the jailer up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let fd = Folder::open(parent)?
            .open_file(name, flags)
            .map_err(|error| match error {
                // A socket cannot be opened (`open(2)`).
                FolderError::Other(_, _, Errno::NXIO) => ExecFileError::NotAFile(own()),
                error => error.into(),
            })?;
        let stat = fstat(&fd).map_err(|error| FolderError::Other("look at", own(), error))?;
        let refused: [(bool, ExecFileError); 4] = [
            (
                FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile,
                ExecFileError::NotAFile(own()),
            ),
            (
                stat.st_nlink != 1,
                ExecFileError::HardLinks(own(), stat.st_nlink),
            ),
            (stat.st_mode & 0o6000 != 0, ExecFileError::SetId(own())),
            (
                stat.st_mode & 0o111 == 0,
                ExecFileError::NotExecutable(own()),
            ),
        ];
        if let Some((_, error)) = refused.into_iter().find(|(refused, _)| *refused) {
            return Err(error);
        }
        let file = File::from(fd);
        match is_static(&file) {
            Some(true) => {}
            Some(false) => return Err(ExecFileError::Dynamic(own())),
            None => return Err(ExecFileError::NotElf(own())),
        }
        Ok(Self {
            file,
            name: name.to_owned(),
        })
    }

    /// The last component of its path.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Copies it into a folder: root's own, for everybody to execute and for nobody to read, so that the
    /// process that executes it is not dumpable (`would_dump` in `fs/exec.c` of the kernel).
    pub(crate) fn copy_to(mut self, root: &Folder, undo: &mut Undo) -> Result<(), ExecFileError> {
        let path = root.path().join(&self.name);
        let copy = root.make_file(&self.name, undo).map_err(|error| {
            if error == Errno::EXIST {
                ExecFileError::Occupied(path.clone())
            } else {
                ExecFileError::Copy(path.clone(), error.into())
            }
        })?;
        let mut copy = File::from(copy);
        io::copy(&mut self.file, &mut copy)
            .and_then(|_| Ok(fchmod(&copy, Mode::from_raw_mode(0o111))?))
            .map_err(|error| ExecFileError::Copy(path, error))
    }
}

/// Whether an ELF program for x86-64 needs no other to be loaded; nothing if it is not one.
fn is_static(file: &File) -> Option<bool> {
    // Elf64_Ehdr: e_machine at 18, e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    if !header.starts_with(b"\x7fELF\x02\x01") || u16_at(&header, 18)? != EM_X86_64 {
        return None;
    }
    let table = u64::from_le_bytes(header.get(32..40)?.try_into().ok()?);
    let size = u64::from(u16_at(&header, 54)?);
    for index in 0..u64::from(u16_at(&header, 56)?) {
        let mut kind = [0; 4];
        let at = table.checked_add(index.checked_mul(size)?)?;
        file.read_exact_at(&mut kind, at).ok()?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(field.try_into().ok()?))
}
