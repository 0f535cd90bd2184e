//! The program's own code and constants in memory.
#![expect(
    unsafe_code,
    reason = "where the program lies and what the kernel maps of it are asked for by calls without a safe form"
)]

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether code was used since the last look that a guest that runs by itself does not need.
static USED: AtomicBool = AtomicBool::new(false);

/// Notes that code is used that a guest that runs by itself does not need: that of a client's request, or of the
/// measurement after a launch.
pub(crate) fn note_use() {
    USED.store(true, Ordering::Relaxed);
}

/// Who looks once in a while whether there is code to be given back.
#[derive(Debug)]
pub(crate) struct Quiet {
    due: bool,
}

impl Quiet {
    /// What was used until now is to be given back.
    pub(crate) fn begin() -> Self {
        Self { due: true }
    }

    /// Gives code back once after it was used, at the first look without use since the one before: clients that
    /// ask again and again do not have it fetched again and again.
    pub(crate) fn look(&mut self) {
        if USED.swap(false, Ordering::Relaxed) {
            self.due = true;
        } else if std::mem::take(&mut self.due) {
            unmap_what_the_start_needed();
        }
    }
}

/// Takes the code and the constants out of this process that have been mapped until now. The most of them belong to
/// the start: the command line, the configuration, the kernel file, the tables. A jail has a copy of the program of its
/// own, so that no other microVM shares these pages. What is needed again comes back from the page cache by a minor
/// fault for each 16 pages (mm/memory.c, `do_fault_around`).
///
/// A failure changes nothing but the memory in use.
pub(crate) fn unmap_what_the_start_needed() {
    // SAFETY: the callback takes what the C library gives it, and keeps none of it.
    unsafe { libc::dl_iterate_phdr(Some(unmap), ptr::null_mut()) };
}

/// Of an object in memory, gives back the pages that nobody writes; a static program is the only object, and comes
/// first.
extern "C" fn unmap(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr(3) gives an object that lives as long as the program.
    let info = unsafe { &*info };
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: there are so many headers there.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        // What is written once, by relocations, is in a segment that can be written (PT_GNU_RELRO).
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let page = 4096;
        let begin = info.dlpi_addr.wrapping_add(header.p_vaddr);
        // Only pages that hold nothing else: the segments beside may have been written.
        let first = begin.next_multiple_of(page);
        let end = begin.wrapping_add(header.p_memsz) / page * page;
        let (Ok(address), Ok(length)) = (
            usize::try_from(first),
            usize::try_from(end.saturating_sub(first)),
        ) else {
            continue;
        };
        // SAFETY: nobody writes these pages, so that they come back from the file as they were, also under a thread
        // that executes or reads them.
        unsafe { libc::madvise(address as *mut c_void, length, libc::MADV_DONTNEED) };
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of this program's code that are mapped now: of mappings that can be executed and are a file's.
    fn mapped() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("mounted");
        let mut counts = false;
        let mut sum = 0;
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                // address perms offset dev inode pathname: proc_pid_smaps(5)
                [_, flags, _, _, _, path] => counts = flags.contains('x') && path.starts_with('/'),
                ["Rss:", value, "kB"] if counts => sum += value.parse::<u64>().expect("a number"),
                _ => {}
            }
        }
        sum
    }

    /// Maps all of this program's code: how much of it is mapped by itself depends on what the page cache has of it.
    fn map_all() {
        let text = std::fs::read_to_string("/proc/self/maps").expect("mounted");
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [range, flags, _, _, _, path] = words[..] else {
                continue;
            };
            if !flags.contains('x') || !path.starts_with('/') {
                continue;
            }
            let (begin, end) = range.split_once('-').expect("proc_pid_maps(5)");
            let [begin, end] = [begin, end]
                .map(|address| usize::from_str_radix(address, 16).expect("hexadecimal"));
            // SAFETY: the pages are only mapped, as they are in the file.
            let done = unsafe {
                libc::madvise(begin as *mut c_void, end - begin, libc::MADV_POPULATE_READ)
            };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
    }

    #[test]
    fn quiet_looks_give_code_back_once_after_each_use() {
        let mut quiet = Quiet::begin();
        note_use();
        quiet.look();
        assert!(quiet.due);
        quiet.look();
        assert!(!quiet.due);
        note_use();
        quiet.look();
        assert!(quiet.due);
    }

    #[test]
    fn code_is_unmapped_and_comes_back() {
        map_all();
        let before = mapped();
        unmap_what_the_start_needed();
        let after = mapped();
        // What reads the mappings is mapped again by then.
        assert!(
            after < before / 4 * 3,
            "{before} KiB before, {after} KiB after"
        );
        // It goes on.
        assert_eq!(format!("{:?}", Some(1.5)), "Some(1.5)");
    }
}
