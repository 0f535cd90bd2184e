//! Guests of a few bytes, as 64-bit ELF files, for tests on this machine's KVM.
#![allow(dead_code, reason = "each test takes what it needs")]

pub(crate) mod api;
pub(crate) mod guest;
pub(crate) mod rules;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::NamedTempFile;

/// Where the image is loaded.
const LOAD: u64 = 0x10_0000;

/// A pseudoterminal: the operator's side, and the program's.
pub(crate) fn pseudoterminal() -> (OwnedFd, File) {
    let operator = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pty");
    grantpt(&operator).expect("granted");
    unlockpt(&operator).expect("unlocked");
    let name = ptsname(&operator, Vec::new()).expect("a name");
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().expect("text"))
        .expect("the terminal's side");
    (operator, terminal)
}

/// An ELF file whose only segment is itself and whose entry is `code`, in 64-bit mode.
pub(crate) fn elf(code: &[u8]) -> NamedTempFile {
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut image = Vec::new();
    // Elf64_Ehdr: class 64, little endian, version 1; an executable for x86-64
    image.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    image.extend([2_u16, 62].iter().flat_map(|field| field.to_le_bytes()));
    image.extend(1_u32.to_le_bytes());
    image.extend(
        [LOAD + HEADERS, 64, 0]
            .iter()
            .flat_map(|field| field.to_le_bytes()),
    );
    image.extend(0_u32.to_le_bytes());
    image.extend(
        [64_u16, 56, 1, 64, 0, 0]
            .iter()
            .flat_map(|field| field.to_le_bytes()),
    );
    // Elf64_Phdr: PT_LOAD, RWX
    image.extend([1_u32, 7].iter().flat_map(|field| field.to_le_bytes()));
    image.extend(
        [0, LOAD, LOAD, size, size, 0x1000]
            .iter()
            .flat_map(|field| field.to_le_bytes()),
    );
    image.extend(code);
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(&image).expect("room for a few bytes");
    file
}

/// Code that prints `text` to COM1.
pub(crate) fn print(text: &str) -> Vec<u8> {
    // mov dx, 0x3f8; then for each byte: mov al, byte; out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// Code that runs for ever: jmp to itself.
pub(crate) const FOR_EVER: [u8; 2] = [0xeb, 0xfe];

/// Code that resets through the keyboard controller: mov al, 0xfe; out 0x64, al; then runs for ever.
pub(crate) const RESET: [u8; 6] = [0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];

/// Code that sends each byte it receives back, until it has sent a dot; then it resets.
pub(crate) fn echo() -> Vec<u8> {
    let mut code = vec![
        // wait: mov dx, 0x3fd; in al, dx; test al, 1; jz wait
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7,
        // mov dx, 0x3f8; in al, dx; out dx, al
        0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, // cmp al, '.'; jne wait
        0x3c, b'.', 0x75, 0xed,
    ];
    code.extend(RESET);
    code
}
