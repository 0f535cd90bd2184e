//! Fuzz targets: one function for each parser of bytes that a file or a hypervisor gives, and for
//! each part of the arithmetic and the policy of guest time.
//!
//! A target takes any bytes, asserts what must hold whatever they are, and catches nothing: a
//! panic is a finding. The same functions serve the fuzzer (`fuzz_targets/`), the replay on stable
//! (`tests/replay.rs`), and a single input (`cargo run --bin TARGET FILE`). See README.md.
//!
//! A new target is a function here, a line in [`TARGETS`], a file in `fuzz_targets/` with its
//! `[[bin]]` in Cargo.toml, and seeds in `corpus/TARGET/`; the replay fails when one is missing.
#![forbid(unsafe_code)]

mod api;
mod boot;
mod cache;
mod catch_up;
mod config;
mod input;
mod metadata;
mod pages;
mod planning;
mod scaling;
mod simulator;
mod skew;
mod tables;
mod virtio;
mod watch;

pub use api::{api_http, api_request};
pub use boot::{boot_any, boot_bzimage, boot_elf, boot_multiboot};
pub use cache::cache;
pub use catch_up::tsc_catchup;
pub use config::config;
pub use metadata::mmds_frames;
pub use pages::{pvclock, vmclock};
pub use planning::tsc_plan;
pub use scaling::{tsc_nested, tsc_ratio, tsc_scale};
pub use simulator::tsc_simulator;
pub use skew::tsc_skew;
pub use tables::{acpi, cpuid};
pub use virtio::{
    virtio_balloon, virtio_block, virtio_entropy, virtio_mmio, virtio_net, virtio_pmem,
    virtio_vsock,
};
pub use watch::tsc_watch;

/// A fuzz target: takes any bytes, panics when an invariant does not hold.
pub type Target = fn(&[u8]);

/// Every target with its name, which is also that of its corpus folder and its binary.
pub const TARGETS: &[(&str, Target)] = &[
    ("acpi", acpi),
    ("api_http", api_http),
    ("api_request", api_request),
    ("boot_any", boot_any),
    ("boot_bzimage", boot_bzimage),
    ("boot_elf", boot_elf),
    ("boot_multiboot", boot_multiboot),
    ("cache", cache),
    ("config", config),
    ("cpuid", cpuid),
    ("mmds_frames", mmds_frames),
    ("pvclock", pvclock),
    ("tsc_catchup", tsc_catchup),
    ("tsc_nested", tsc_nested),
    ("tsc_plan", tsc_plan),
    ("tsc_ratio", tsc_ratio),
    ("tsc_scale", tsc_scale),
    ("tsc_simulator", tsc_simulator),
    ("tsc_skew", tsc_skew),
    ("tsc_watch", tsc_watch),
    ("virtio_balloon", virtio_balloon),
    ("virtio_block", virtio_block),
    ("virtio_entropy", virtio_entropy),
    ("virtio_mmio", virtio_mmio),
    ("virtio_net", virtio_net),
    ("virtio_pmem", virtio_pmem),
    ("virtio_vsock", virtio_vsock),
    ("vmclock", vmclock),
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
