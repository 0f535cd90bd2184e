//! Writes initramfs archives: the "newc" format of `Documentation/driver-api/early-userspace/
//! buffer-format.rst`. Several archives may follow each other in one file; the kernel unpacks them in
//! order. Device nodes need no privilege here, as they would in a folder.

use thiserror::Error;

/// `S_IFDIR`, `S_IFCHR` and `S_IFREG` of `include/uapi/linux/stat.h`.
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

/// Each header and each file's contents are padded to this (buffer-format.rst).
const ALIGNMENT: usize = 4;

/// Why an entry cannot be archived.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum AddEntry {
    /// The format's size fields have eight hexadecimal digits.
    #[error("{name} has {size} bytes, the newc format holds at most 4 GiB - 1 byte of a file")]
    TooLarge {
        /// The entry.
        name: String,
        /// Its size in bytes.
        size: usize,
    },
}

/// An archive under construction.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder. Its parents must have been added.
    pub(crate) fn directory(&mut self, name: &str) -> Result<(), AddEntry> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds an executable file.
    pub(crate) fn executable(&mut self, name: &str, contents: &[u8]) -> Result<(), AddEntry> {
        self.entry(name, REGULAR | 0o755, (0, 0), contents)
    }

    /// Adds a file with the permissions `mode`.
    pub(crate) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<(), AddEntry> {
        self.entry(name, REGULAR | (mode & 0o7777), (0, 0), contents)
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<(), AddEntry> {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Closes the archive and returns its bytes.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, AddEntry> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        contents: &[u8],
    ) -> Result<(), AddEntry> {
        let too_large = || AddEntry::TooLarge {
            name: name.to_owned(),
            size: contents.len(),
        };
        let size = u32::try_from(contents.len()).map_err(|_| too_large())?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| too_large())?;
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), node's device (2), name, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn archive_read_by_cpio_lists_every_entry() {
        let mut archive = Archive::default();
        archive.directory("dev").unwrap();
        archive.device("dev/console", 5, 1).unwrap();
        archive.executable("init", b"#!/bin/sh\n").unwrap();
        archive.file("data", 0o640, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let lister = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut lister) = lister else {
            println!("skipped: the cpio program is not installed (apt-get install cpio)");
            return;
        };
        lister.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listing = String::from_utf8(lister.wait_with_output().unwrap().stdout).unwrap();
        let rows: Vec<Vec<&str>> = listing
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let names: Vec<&str> = rows.iter().map(|row| row[row.len() - 1]).collect();
        assert_eq!(names, ["dev", "dev/console", "init", "data"], "{listing}");
        assert_eq!(rows[0][0], "drwxr-xr-x");
        assert_eq!(rows[1][..6], ["crw-------", "1", "0", "0", "5,", "1"]);
        assert_eq!(rows[2][0], "-rwxr-xr-x");
        assert_eq!(rows[3][0], "-rw-r-----");
        assert_eq!(rows[3][4], "5");
    }
}
