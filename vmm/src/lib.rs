//! The Keeptime microVM launcher as a library: the `keeptime` binary is a call of [`cli::main`].
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`cli`] | the command line: flags, `--help`, exit statuses |
//! | [`api`] | the API: HTTP over a Unix socket |
//! | [`config`] | what a user may ask for, validated; the JSON configuration file |
//! | `memory` | guest memory, in a memfd |
//! | `machine` | putting a microVM together and running its event loop |
//! | `vcpu` | vCPU threads: enter, serve exits, leave |
//! | `console`, `terminal`, `signals` | the operator's side of the serial port, and every way out |
//! | `outcome`, `dump` | how a microVM ended, and the report when a vCPU cannot go on |
//! | `output`, `error` | reports on standard output, and errors in one line |
//! | `demo` | the guest that is compiled into the binary |
//! | `simulate` | the command line of the simulator in `tsc` |
//! | `doctor` | what this host can do for guests' time, measured |
//!
//! Arithmetic on time is not done here: `tsc` has it.

pub mod api;
pub mod cli;
pub mod config;
mod console;
mod demo;
mod doctor;
mod dump;
mod error;
mod host_clock;
mod machine;
mod memory;
mod outcome;
mod output;
mod signals;
mod simulate;
mod terminal;
mod vcpu;

pub use error::one_line;
