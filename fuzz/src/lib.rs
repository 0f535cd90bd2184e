//! Fuzz targets: one function for each parser of bytes that a file or a hypervisor gives.
//!
//! A target takes any bytes, asserts what must hold whatever they are, and catches nothing: a
//! panic is a finding. The same functions serve the fuzzer (`fuzz_targets/`), the replay on stable
//! (`tests/replay.rs`), and a single input (`cargo run --bin TARGET FILE`). See README.md.
//!
//! A new target is a function here, a line in [`TARGETS`], a file in `fuzz_targets/` with its
//! `[[bin]]` in Cargo.toml, and seeds in `corpus/TARGET/`; the replay fails when one is missing.
#![forbid(unsafe_code)]

mod boot;
mod config;
mod tables;

pub use boot::{boot_any, boot_bzimage, boot_elf, boot_multiboot};
pub use config::config;
pub use tables::{acpi, cpuid};

/// A fuzz target: takes any bytes, panics when an invariant does not hold.
pub type Target = fn(&[u8]);

/// Every target with its name, which is also that of its corpus folder and its binary.
pub const TARGETS: &[(&str, Target)] = &[
    ("acpi", acpi),
    ("boot_any", boot_any),
    ("boot_bzimage", boot_bzimage),
    ("boot_elf", boot_elf),
    ("boot_multiboot", boot_multiboot),
    ("config", config),
    ("cpuid", cpuid),
];

/// Runs `target` on each file that the command line names.
///
/// # Errors
/// When a file cannot be read.
pub fn reproduce(target: Target) -> std::io::Result<()> {
    for path in std::env::args_os().skip(1) {
        target(&std::fs::read(path)?);
    }
    Ok(())
}
