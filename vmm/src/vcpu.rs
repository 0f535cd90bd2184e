//! vCPU threads: enter the guest, serve its exits, leave when told to.

use std::fmt;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::bus::{Bus, Reaction};
use hypervisor::guest_clock::{DeadlineTimer, PauseNotice};
use hypervisor::tsc_control::TscOffsetControl;
use hypervisor::{Direction, Exit, Kick, PortAccess, SystemEvent, Vcpu};
use tsc::VcpuId;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::Killable;

use crate::dump;
use crate::error::one_line;
use crate::gate::Gate;
use crate::metrics::VcpuCounters;
use crate::outcome::Outcome;
use crate::placement::Threads;
use crate::seccomp::{Filters, Role};
use crate::signals;
use crate::timekeeper::{Answer, ExitWatch, HostSenses, LastBeat, Order, StopsSeen, VcpuTime};

/// The machine's two address spaces for devices.
#[derive(Debug)]
pub(crate) struct Buses {
    pub(crate) port: Bus,
    pub(crate) mmio: Bus,
}

/// How the microVM ended, told by whoever is first to know, and the wake-up for who waits.
#[derive(Debug)]
pub(crate) struct Ending {
    outcome: Mutex<Option<Outcome>>,
    stop: AtomicBool,
    event: EventFd,
}

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            outcome: Mutex::new(None),
            stop: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Ends the microVM. The first outcome counts: a reset that one vCPU asked for is not undone by
    /// what another runs into while it is stopped.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(outcome);
        self.stop.store(true, Ordering::SeqCst);
        // A full counter is as readable as one more.
        let _ = self.event.write(1);
    }

    /// Does `work` of the thread `name`. A panic, which its hook has told, ends the microVM instead of leaving it
    /// with a thread less.
    pub(crate) fn unless_it_panics(&self, name: impl fmt::Display, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.end(Outcome::Failure(format!(
                "{name}: this launcher failed (see above)"
            )));
        }
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// What the vCPU threads of one machine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) buses: Buses,
    pub(crate) ending: Arc<Ending>,
    pub(crate) gate: Gate<Order, Answer>,
    pub(crate) beat: Arc<LastBeat>,
    pub(crate) threads: Arc<Threads>,
    pub(crate) filters: Filters,
}

/// A running vCPU's thread. It ends when the microVM does, and whoever owns this value sees to that.
#[derive(Debug)]
pub(crate) struct VcpuThread<K: Kick> {
    handle: Mutex<Option<JoinHandle<()>>>,
    kick: K,
}

impl<K: Kick> VcpuThread<K> {
    /// Starts a thread that runs `vcpu` until the microVM ends.
    pub(crate) fn start<V>(
        id: VcpuId,
        mut vcpu: V,
        shared: Arc<Shared>,
        counters: Arc<VcpuCounters>,
        watch: ExitWatch<HostSenses>,
    ) -> io::Result<Self>
    where
        V: Vcpu<Kick = K> + PauseNotice + TscOffsetControl + DeadlineTimer + 'static,
    {
        let kick = vcpu.kick_handle().map_err(io::Error::other)?;
        let handle = std::thread::Builder::new()
            .name(format!("vcpu{}", id.get()))
            .spawn(move || {
                let (_entry, placed) = shared.threads.enter(id);
                if let Err(error) = placed {
                    tracing::warn!("{id}: {}", one_line(&error));
                }
                if let Err(error) = shared.filters.enter(Role::Vcpu) {
                    shared.ending.end(Outcome::Failure(one_line(&error)));
                }
                let work = || run(id, &mut vcpu, &shared, &counters, watch);
                shared.ending.unless_it_panics(id, work);
                shared.gate.leave();
            })?;
        Ok(Self {
            handle: Mutex::new(Some(handle)),
            kick,
        })
    }

    fn handle(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread leave the guest, or a system call that blocks, and look at what is asked of it.
    pub(crate) fn kick(&self) {
        self.kick.request_exit();
        if let Some(handle) = &*self.handle()
            && let Err(error) = handle.kill(signals::kick_signal())
        {
            // ESRCH: the thread has ended by itself.
            tracing::debug!("kick of thread {:?}: {error}", handle.as_pthread_t());
        }
    }

    /// Waits for the end of a thread that has left the gate.
    pub(crate) fn join(&self) {
        // Taken out first: whoever kicks meanwhile finds nobody.
        let handle = self.handle().take();
        if let Some(handle) = handle {
            // The thread caught its panics; there is nothing left to learn from it.
            let _ = handle.join();
        }
    }
}

fn run<V>(
    id: VcpuId,
    vcpu: &mut V,
    shared: &Shared,
    counters: &VcpuCounters,
    watch: ExitWatch<HostSenses>,
) where
    V: Vcpu + PauseNotice + TscOffsetControl + DeadlineTimer,
{
    let ending = &shared.ending;
    let mut time = VcpuTime::begin(id, watch, vcpu);
    let mut stops = StopsSeen::default();
    while !ending.is_ending() {
        let mut sighting = None;
        let glance = || sighting = time.watch().glance();
        let served = serve_one_exit(vcpu, &shared.buses, counters, glance);
        if served == Served::Interrupted {
            time.has_left();
        }
        if let Some(sighting) = sighting {
            time.watch().attend(sighting, vcpu);
        }
        match served {
            Served::Continue => {}
            Served::Interrupted => {
                // First the request is withdrawn, then it is looked what was requested: what comes
                // later makes the vCPU return once more.
                vcpu.acknowledge_exit_request();
                let carry_out = |order: Order| time.carry_out(vcpu, &order);
                let stopped = shared.gate.pass(ending, carry_out);
                time.leave(vcpu);
                // A process that was stopped, too: nobody beats the time, and the vCPU leaves the guest
                // to be stopped, or does when the watch has noticed.
                if stops.is_another(&shared.beat) || stopped {
                    notify_pause(id, vcpu);
                }
                time.wait_for_start();
            }
            Served::End(outcome) => return ending.end(outcome),
            Served::Failed(reason) => {
                counters.failures.add(1);
                let report = dump::failure_report(id, &reason, vcpu);
                return ending.end(Outcome::Failure(report));
            }
        }
    }
}

/// Before a paused vCPU goes on: the guest's watchdog must not take the pause for a lockup.
fn notify_pause(id: VcpuId, vcpu: &impl PauseNotice) {
    if let Err(error) = vcpu.notify_pause() {
        tracing::debug!(
            "{id}: the guest is not told of the pause: {}",
            one_line(&error)
        );
    }
}

/// What follows from one exit.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    Continue,
    /// Somebody wants this vCPU to look at what is asked of it.
    Interrupted,
    End(Outcome),
    /// The vCPU cannot go on; the reason in words.
    Failed(String),
}

impl From<Reaction> for Served {
    fn from(reaction: Reaction) -> Self {
        match reaction {
            Reaction::None => Self::Continue,
            Reaction::Reset => Self::End(Outcome::Reset),
            Reaction::PowerOff => Self::End(Outcome::PowerOff),
            Reaction::DebugExit(value) => Self::End(Outcome::DebugExit(value)),
        }
    }
}

/// Enters the guest and serves what it left for; `glance` is called first of all when it has left.
fn serve_one_exit(
    vcpu: &mut impl Vcpu,
    buses: &Buses,
    counters: &VcpuCounters,
    glance: impl FnOnce(),
) -> Served {
    let exit = vcpu.run();
    glance();
    match exit {
        Ok(Exit::Port(access)) => {
            match access.direction {
                Direction::In(_) => counters.port_reads.add(1),
                Direction::Out(_) => counters.port_writes.add(1),
            }
            serve_port(access, &buses.port)
        }
        Ok(Exit::MmioRead { address, data }) => {
            counters.mmio_reads.add(1);
            buses.mmio.read(address, data);
            Served::Continue
        }
        Ok(Exit::MmioWrite { address, data }) => {
            counters.mmio_writes.add(1);
            buses.mmio.write(address, data).into()
        }
        Ok(Exit::Interrupted) => Served::Interrupted,
        Ok(Exit::Halt) => Served::End(Outcome::Halted),
        Ok(Exit::Shutdown) => Served::End(Outcome::TripleFault),
        Ok(Exit::SystemEvent(SystemEvent::PowerOff)) => Served::End(Outcome::PowerOff),
        Ok(Exit::SystemEvent(SystemEvent::Reset)) => Served::End(Outcome::Reset),
        Ok(Exit::SystemEvent(SystemEvent::Crash)) => {
            Served::Failed("the guest reported that it crashed".to_owned())
        }
        Ok(Exit::SystemEvent(SystemEvent::Other(number))) => {
            Served::Failed(format!("system event {number} is not known"))
        }
        Ok(Exit::InternalError) => {
            let details = vcpu.failure_details();
            Served::Failed(format!(
                "KVM internal error {}: {}",
                details.suberror,
                details.suberror_name()
            ))
        }
        Ok(Exit::FailEntry { reason, cpu }) => Served::Failed(format!(
            "the processor refused to enter the guest (hardware reason {reason:#x}, CPU {cpu})"
        )),
        Ok(Exit::MemoryFault { address, size }) => Served::Failed(format!(
            "the host could not provide {size} bytes of guest memory at {address:#x}"
        )),
        Ok(Exit::Unexpected(name, number)) => {
            Served::Failed(format!("unexpected exit: {name} ({number})"))
        }
        // What a kernel says that has no exit for it.
        Err(error) if error.source.raw_os_error() == Some(libc::EFAULT) => Served::Failed(format!(
            "{}: the host could not provide memory that the guest touched",
            one_line(&error)
        )),
        Err(error) => Served::Failed(one_line(&error)),
    }
}

/// A string operation is a run of accesses to one port, each of the instruction's width.
fn serve_port(access: PortAccess<'_>, bus: &Bus) -> Served {
    let port = u64::from(access.port);
    match access.direction {
        Direction::In(data) => {
            for element in data.chunks_mut(access.width) {
                bus.read(port, element);
            }
            Served::Continue
        }
        Direction::Out(data) => {
            for element in data.chunks(access.width) {
                let served = Served::from(bus.write(port, element));
                if served != Served::Continue {
                    return served;
                }
            }
            Served::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::bus::BusDevice;

    use super::*;

    /// Notes each access and ends the machine at a write of 0xff.
    #[derive(Debug, Default)]
    struct Recorder(Vec<Vec<u8>>);

    impl BusDevice for Recorder {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(self.0.len()).expect("a short test"));
            self.0.push(data.to_vec());
        }

        fn write(&mut self, _offset: u64, data: &[u8]) -> Reaction {
            self.0.push(data.to_vec());
            if data == [0xff] {
                Reaction::Reset
            } else {
                Reaction::None
            }
        }
    }

    fn serve(width: usize, direction: Direction<'_>) -> (Served, Vec<Vec<u8>>) {
        let recorder = Arc::new(Mutex::new(Recorder::default()));
        let mut bus = Bus::new();
        bus.insert(0x10, 4, recorder.clone(), "recorder")
            .expect("an empty bus");
        let served = serve_port(
            PortAccess {
                port: 0x10,
                width,
                direction,
            },
            &bus,
        );
        let accesses = recorder.lock().expect("no panic").0.clone();
        (served, accesses)
    }

    #[test]
    fn ending_is_a_failure_when_a_thread_panics() {
        let ending = Ending::new().expect("an eventfd");
        ending.unless_it_panics("quiet", || {});
        assert_eq!(ending.outcome(), None);
        ending.unless_it_panics("loud", || std::panic::panic_any("on purpose"));
        let outcome = ending.outcome().expect("ended");
        assert_eq!(outcome.status(), 2);
        assert!(outcome.to_string().starts_with("loud: "), "{outcome}");
    }

    #[test]
    fn string_output_is_one_access_for_each_element() {
        let (served, accesses) = serve(1, Direction::Out(b"abc"));
        assert_eq!(accesses, [b"a", b"b", b"c"]);
        assert_eq!(served, Served::Continue);
        let (_, accesses) = serve(2, Direction::Out(&[1, 2, 3, 4]));
        assert_eq!(accesses, [[1, 2], [3, 4]]);
    }

    #[test]
    fn string_input_is_one_access_for_each_element() {
        let mut data = [9; 6];
        let (served, _) = serve(2, Direction::In(&mut data));
        assert_eq!((served, data), (Served::Continue, [0, 0, 1, 1, 2, 2]));
    }

    #[test]
    fn string_output_stops_where_the_machine_ends() {
        let (served, accesses) = serve(1, Direction::Out(&[1, 0xff, 2]));
        assert_eq!(served, Served::End(Outcome::Reset));
        assert_eq!(accesses, [[1], [0xff]]);
    }

    #[test]
    fn first_outcome_counts() {
        let ending = Ending::new().expect("an eventfd");
        assert_eq!(ending.outcome(), None);
        ending.end(Outcome::PowerOff);
        ending.end(Outcome::Failure("too late".to_owned()));
        assert_eq!(ending.outcome(), Some(Outcome::PowerOff));
        assert!(ending.is_ending());
    }
}
