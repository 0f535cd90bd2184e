//! The laboratory: hosts to test Keeptime on, its scenarios and its benchmarks. Run it as `cargo lab`.
//!
//! Time bugs need hosts that misbehave on demand, with the virtualization of both vendors. Three kinds
//! serve: this machine's own KVM, whatever it is (`native`), QEMU's software CPU with AMD's SVM
//! (`svm`), and Bochs with Intel's VMX (`vmx`). The emulated ones run Debian's stock kernel, so the KVM
//! under test is the real one.

mod api;
mod apt;
mod bench;
mod boot;
mod bzimage;
mod cli;
mod clients;
mod cpio;
mod fuzzing;
mod guest;
mod host;
mod kernels;
mod microscope;
mod modules;
mod native;
mod packaging;
mod paths;
mod process;
mod scenario;
mod soak;
mod test;
mod workshop;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let result = process::end_children_on_signals().and_then(|()| cli::Cli::parse().run());
    result.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}
