//! `keeptime demo`: a guest that reads its time stamp counter, and what the host makes of it.
//!
//! It needs nothing but `/dev/kvm`: no file, no network, no interrupts. The guest prints what it saw
//! of its own clock; the host, from readings of the guest's clock that it brackets with its own,
//! prints the bounds within which the guest's rate must lie.

mod guest;
mod probe;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arch::memory::MemorySize;
use hypervisor::guest_clock::{DeadlineTimer, PauseNotice, VmClock};
use hypervisor::tsc_control::TscOffsetControl;
use hypervisor::{Hypervisor, InterruptControllers, Vm};
use tsc::measure::{self, GuestSample};

use crate::config::{MachineConfig, TscDomain, TscRate, VcpuCount, Watcher};
use crate::guest_rate::GuestRate;
use crate::machine::{
    Additions, Console, Machine, MachineError, Payload, PortDevice, Surroundings,
};
use crate::outcome::Outcome;
use crate::output::{self, OutputError};
use crate::seccomp::Filters;
use probe::Probe;

/// The demo could not be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// Its machine cannot be put together.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Its report could not be printed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// The guest needs a few hundred bytes at 1 MiB and the loader's tables below.
const MEMORY_MIB: u64 = 2;

/// Runs the demo and prints its report to standard output.
///
/// Its outcome is [`Outcome::PowerOff`] when the guest's clock never stepped backwards, and a failure
/// otherwise. Whether it kept the host's pace is in the report, within bounds that depend on how fast the
/// exits were.
pub(crate) fn run<H: Hypervisor>(hypervisor: &H, started: Instant) -> Result<Outcome, DemoError>
where
    H::Vm: VmClock,
    <H::Vm as Vm>::Vcpu: PauseNotice + TscOffsetControl + DeadlineTimer,
{
    let config = MachineConfig {
        vcpus: VcpuCount::new(1).expect("1 is in bounds"),
        memory: MemorySize::from_mib(MEMORY_MIB).expect("2 is in bounds"),
        debug_exit: true,
        boot_timer: false,
        pit: false,
        tsc: TscRate::default(),
        // A measurement beside it would disturb its own.
        tsc_domain: Some(TscDomain::Off),
        watcher: Watcher::Guest,
    };
    let limit = usize::try_from(2 * guest::MARKS).expect("a small number");
    let probe = Arc::new(Mutex::new(Probe::new(limit)));
    let machine = Machine::assemble(
        hypervisor,
        &config,
        InterruptControllers::None,
        &Payload::Builtin(guest::image()),
        Additions {
            port: Some(PortDevice {
                base: guest::PROBE_PORT,
                len: guest::PROBE_PORTS,
                name: "demo-probe",
                device: probe.clone(),
            }),
            peripherals: None,
        },
        // A guest of ours has nothing to be held back from, and the demo runs where nothing else does.
        &Surroundings::new(Filters::none(), started)?,
        GuestRate::Host,
    )?;
    let outcome = machine.run(Console::None)?;
    Ok(match outcome {
        Outcome::DebugExit(0) => {
            let probe = probe.lock().unwrap_or_else(PoisonError::into_inner);
            let mut report = rate_report(probe.samples());
            let milliseconds = started.elapsed().as_secs_f64() * 1e3;
            report.push_str(&format!("  whole demo        {milliseconds:.1} ms\n"));
            output::print(&report)?;
            Outcome::PowerOff
        }
        Outcome::DebugExit(_) => {
            Outcome::Failure("the guest's clock stepped backwards: see its report above".to_owned())
        }
        other => other,
    })
}

/// What the bracketed readings prove of the guest's rate, in lines.
fn rate_report(samples: &[GuestSample]) -> String {
    let (first, last) = samples.split_at(samples.len() / 2);
    let (Some(first), Some(last)) = (measure::tightest(first), measure::tightest(last)) else {
        return "  guest's rate      no readings reached the host\n".to_owned();
    };
    let mut report = match measure::guest_rate(first, last) {
        None => {
            "  guest's rate      nothing is proven: its clock stood still, or exits were slow\n"
                .to_owned()
        }
        Some(rate) => format!(
            "  guest's rate      {} to {} MHz by CLOCK_MONOTONIC_RAW\n",
            thousandths(rate.at_least.get() / 1_000),
            thousandths(rate.at_most.get() / 1_000)
        ),
    };
    if let Some(deviation) = measure::guest_deviation(first, last) {
        report.push_str(&format!(
            "  guest : host TSC  {} to {} ppb from 1 : 1\n",
            deviation.at_least.get(),
            deviation.at_most.get()
        ));
    }
    report.push_str(&format!(
        "  readings within   {} ns and {} ns of the host's\n",
        first.uncertainty().get(),
        last.uncertainty().get()
    ));
    report
}

/// A count of thousandths, for people.
fn thousandths(count: u64) -> String {
    format!("{}.{:03}", count / 1_000, count % 1_000)
}
