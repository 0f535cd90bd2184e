//! The `jailer` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    jailer::cli::main(std::env::args_os())
}
