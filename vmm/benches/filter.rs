//! What the filters cost at each call, measured by one that does nothing else: `ioctl(-1, KVM_RUN)`, which the kernel
//! answers by `EBADF` once the filters have let it through. With that of a vCPU's thread and without any, in turns,
//! each in a process of its own, since a filter cannot be taken off.
//!
//! `cargo bench -p vmm --bench filter`
#![expect(
    unsafe_code,
    reason = "children of a fork call the kernel, and tell their parent by a pipe"
)]

use std::io::{Read, Write};

use rustix::time::{ClockId, clock_gettime};
use vmm::seccomp::{Action, Filters, Role};

/// `KVM_RUN`.
const KVM_RUN: u64 = 0xae80;
/// Calls of a measurement.
const CALLS: u32 = 500_000;
const TURNS: usize = 21;

/// CPU time of this process in nanoseconds: what others do beside it does not count.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // OK because a process of seconds stays far below 2^53.
    (time.tv_sec * 1_000_000_000 + time.tv_nsec) as f64
}

/// Nanoseconds of a call under `filters`.
fn measure(filters: &Filters) -> f64 {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let entered = filters.enter(Role::Vcpu).is_ok();
        let begin = cpu_time();
        for _ in 0..CALLS {
            // SAFETY: there is no such descriptor.
            unsafe { libc::ioctl(-1, KVM_RUN, 0) };
        }
        let each = (cpu_time() - begin) / f64::from(CALLS);
        let told = writer.write_all(&each.to_le_bytes()).is_ok();
        // SAFETY: takes no pointer.
        unsafe { libc::_exit(i32::from(!(entered && told))) };
    }
    assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).expect("the child tells");
    let mut status = 0;
    // SAFETY: our child, and a place for its status.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    f64::from_le_bytes(bytes)
}

fn told(name: &str, mut sample: Vec<f64>) {
    sample.sort_by(f64::total_cmp);
    let at = |percent: usize| sample[(sample.len() - 1) * percent / 100];
    println!(
        "{name:<24} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
        at(0),
        at(10),
        at(50),
        at(90)
    );
}

fn main() {
    // What `cargo test --benches` asks for is not a measurement.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let own = Filters::builtin(Action::Kill).expect("filters");
    let (mut without, mut with, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (bare, filtered) = (measure(&Filters::none()), measure(&own));
        without.push(bare);
        with.push(filtered);
        more.push(filtered - bare);
    }
    println!("ns a call                 minimum      p10   median      p90");
    told("without a filter", without);
    told("with a vCPU's", with);
    told("difference of a pair", more);
}
