//! Files that are there as a whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes `contents` beside `path` and puts them there, so that no half of them is ever seen.
///
/// # Errors
/// The host's reason. What was at `path` stays, and what could not be finished is not left behind.
pub(crate) fn put(path: &Path, contents: &[u8]) -> io::Result<()> {
    let partial = partial(path);
    let put = create(&partial)
        .and_then(|mut file| file.write_all(contents))
        .and_then(|()| fs::rename(&partial, path));
    put.inspect_err(|_| {
        // If even that fails, the first error is the one to tell.
        let _ = fs::remove_file(&partial);
    })
}

/// Looks whether a file can be put at `path`, and changes nothing.
///
/// # Errors
/// Why it cannot: something else than a file is there, or nothing can be written beside it.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_file() => {}
        // Whatever it is, it would be replaced by a file.
        Ok(_) => {
            return Err(io::Error::other("what is there is no plain file"));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if path.file_name().is_none() {
        return Err(io::Error::other("it names no file"));
    }
    let partial = partial(path);
    drop(create(&partial)?);
    fs::remove_file(&partial)
}

fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".partial");
    PathBuf::from(name)
}

/// A new file, and never one that somebody has put or linked there.
fn create(path: &Path) -> io::Result<File> {
    let create = || {
        // Nobody but the owner writes to it, whatever the umask says.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o644).open(path)
    };
    match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        created => created,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn file_is_replaced_as_a_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report");
        let other = folder.path().join("other");
        fs::write(&other, "somebody else's").expect("room");
        // What a launcher that was killed left, or somebody who means ill.
        symlink(&other, folder.path().join("report.partial")).expect("a link");
        for contents in ["one", "two"] {
            put(&path, contents.as_bytes()).expect("room");
            assert_eq!(fs::read_to_string(&path).expect("text"), contents);
        }
        assert_eq!(fs::read_to_string(&other).expect("text"), "somebody else's");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
    }

    #[test]
    fn check_changes_nothing_and_finds_what_a_write_would() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report");
        check(&path).expect("a new file");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
        fs::write(&path, "old").expect("room");
        check(&path).expect("a file to replace");
        assert_eq!(fs::read_to_string(&path).expect("text"), "old");
        let link = folder.path().join("link");
        symlink(&path, &link).expect("a link");
        for bad in [
            folder.path().to_owned(),
            link,
            folder.path().join("none").join("report"),
            path.join("below a file"),
            PathBuf::from("/dev/null"),
            PathBuf::from("/"),
            PathBuf::new(),
        ] {
            check(&bad).expect_err(&format!("{bad:?}"));
        }
        assert!(Path::new("/dev/null").exists());
    }
}
