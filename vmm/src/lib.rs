//! The Keeptime microVM launcher as a library: the `keeptime` binary is a call of [`cli::main`].
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`cli`] | the command line: flags, `--help`, exit statuses |
//! | [`api`] | requests over HTTP on a Unix socket, checked and handed to the main thread |
//! | `controller` | who applies them: configuration before the start, the machine after it |
//! | [`config`] | what a user may ask for, validated; the JSON configuration file |
//! | `memory` | guest memory, in a memfd |
//! | `machine` | putting a microVM together and running its event loop |
//! | `event_loop` | what the main thread waits for |
//! | `vcpu`, `gate` | vCPU threads: enter, serve exits, wait while paused, leave |
//! | [`logging`], `metrics`, `line_sink` | what is told while it runs, without blocking anyone |
//! | `guest_rate` | the rate of a guest's TSC: what was asked for, how the host keeps it, or why not |
//! | [`mmds`] | the guest's metadata: their store, and the service at its network cards |
//! | `time_report` | what is known of a guest's time, as an answer and as a file |
//! | `time_plot` | the same as a picture |
//! | `console`, `terminal`, `signals` | the operator's side of the serial port, and every way out |
//! | `outcome`, `dump` | how a microVM ended, and the report when a vCPU cannot go on |
//! | `output`, `error` | reports on standard output, and errors in one line |
//! | [`uring`] | a disk's transfers, many at once |
//! | [`seccomp`], `allocator` | what each thread may ask of the kernel; one arena for all |
//! | `whole_file` | files that are there as a whole or not at all |
//! | `demo` | the guest that is compiled into the binary |
//! | `simulate` | the command line of the simulator in `tsc` |
//! | `assessment` | what this host says of its TSCs, and what is measured of them, for each launch and for `doctor` |
//! | `placement` | the CPUs that a guest's vCPU threads are kept on |
//! | `doctor` | what this host can do for guests' time, measured |
//!
//! Arithmetic on time is not done here: `tsc` has it.

mod allocator;
pub mod api;
mod assessment;
pub mod cli;
mod code;
pub mod config;
mod console;
mod controller;
#[cfg(test)]
#[path = "../../devices/tests/virtio/counting.rs"]
mod counting;
mod demo;
mod doctor;
mod dump;
mod error;
mod event_loop;
mod gate;
mod guest_rate;
mod host_clock;
mod line_sink;
pub mod logging;
mod machine;
mod memory;
mod metrics;
pub mod mmds;
mod outcome;
mod output;
mod placement;
pub mod seccomp;
mod signals;
mod simulate;
mod terminal;
mod time_plot;
mod time_report;
mod timekeeper;
pub mod uring;
mod vcpu;
mod whole_file;

pub use assessment::cache::domains_in_file;
pub use error::one_line;
