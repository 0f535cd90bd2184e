//! A program of this machine, taken along into an emulated host that has no libraries.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host::image::{Files, Source};
use crate::process::capture;

/// The loader that starts a program with the libraries beside it:
/// `./LOADER --library-path . ./PROGRAM` (ld.so(8)).
pub(crate) const LOADER: &str = "ld-linux-x86-64.so.2";

/// The HTTP client that people have at hand, in Debian's place.
pub(crate) const CURL: &str = "/usr/bin/curl";

/// `program` and all that it needs to be loaded, each under its file's name.
pub(crate) fn with_libraries(program: &Path) -> Result<Files> {
    let list = capture(Command::new("ldd").arg(program))?;
    let libraries = list
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new);
    let mut files = Files::new();
    for path in libraries.chain([program]) {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no name", path.display()))?;
        files.insert(name.to_owned(), Source::Path(path.to_owned()));
    }
    ensure!(
        files.contains_key(LOADER),
        "{} is not loaded by {LOADER}",
        program.display()
    );
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_libraries_has_the_program_its_loader_and_its_library() {
        let files = with_libraries(Path::new("/bin/ls")).unwrap();
        for name in ["ls", LOADER, "libc.so.6"] {
            assert!(files.contains_key(name), "{name} is missing: {files:?}");
        }
    }
}
