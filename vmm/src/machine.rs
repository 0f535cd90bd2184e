//! Putting a microVM together, and running it to its end.

mod alarm;
mod balloon;
mod counts;
mod device_thread;
mod devices;
mod payload;
mod pmem;
mod sockets;
mod tap;
mod virtio;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ::devices::bus::BusError;
use ::devices::i8042::{I8042, KeyboardError};
use ::devices::serial::Serial;
use ::devices::virtio::balloon::Command;
use ::devices::virtio::block::ImageError;
use ::devices::vmgenid::VmGenId;
use arch::acpi::{self, AcpiConfig, AcpiError};
use arch::boot::{LoadError, Loaded};
use arch::cpuid::{self, CpuidConfig};
use arch::layout;
use arch::memory::{ADDRESS_END, MemorySize};
use hypervisor::guest_clock::{DeadlineTimer, PauseNotice, VmClock};
use hypervisor::host::{self as host_cpu, Rdtscp, read_tsc};
use hypervisor::tsc_control::{OffsetInterface, TscOffsetControl};
use hypervisor::{Hypervisor, InterruptControllers, IoctlError, Kick, MsrError, Vcpu, Vm};
use tsc::plan::TimePolicy;
use tsc::{CpuId, Khz, VcpuId};
use vm_memory::{Address, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::api::balloon::Balloon;
use crate::api::drive::DrivePatch;
use crate::api::network::NetworkInterfacePatch;
use crate::api::pmem::PmemPatch;
use crate::api::request::Fault;
use crate::code;
use crate::config::{CpuList, MachineConfig, Peripherals, TscDomain, VcpuCount, Watcher};
use crate::console::{self, ConsoleInput};
use crate::error::one_line;
use crate::event_loop::EventLoop;
use crate::gate::{Awaiting, Gate};
use crate::guest_rate::{GuestRate, RateError};
use crate::host_clock;
use crate::memory::{self, MemoryError};
use crate::metrics::{ConsoleCounters, Metrics, VcpuCounters};
use crate::mmds::Metadata;
use crate::outcome::Outcome;
use crate::output;
use crate::placement::{Measuring, Placement, PlacementError, Senses, Stay, Threads};
use crate::seccomp::{FilterError, Filters, Role};
use crate::terminal::RawMode;
use crate::time_report::Kept;
use crate::timekeeper::{
    self, Answer, Bell, Clocks, ExitWatch, Halt, Home, HostSenses, Observed, Order, Rates,
    RealTime, ResumeError, TimePage, Timekeeper, Unwatched, Watch, WatchThread,
};
use crate::uring::UringError;
use crate::vcpu::{Ending, Shared, VcpuThread};

pub(crate) use balloon::BalloonState;
pub(crate) use devices::PortDevice;
pub(crate) use payload::{Payload, check_files};
pub(crate) use pmem::{check_pmem, no_pmem};
pub(crate) use virtio::{check_image, check_tap, check_vsock, no_drive, no_interface, places};

use alarm::AlarmTimer;
use devices::{Devices, StopSigns};
use pmem::PmemError;
use sockets::SocketError;
use tap::TapError;
use virtio::{Backends, Virtio};

/// A microVM cannot be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// This thread cannot be held to its filter.
    #[error(transparent)]
    Seccomp(#[from] FilterError),
    /// A file to be loaded cannot be opened.
    #[error("cannot open the {what} {path:?}; check its path and permissions")]
    Open {
        /// What the file is for.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be opened.
        source: io::Error,
    },
    /// A path that leads to something else than a file.
    #[error("the {what} {path:?} is a {kind}; give a plain file")]
    NotAFile {
        /// What the file is for.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
    },
    /// A file cannot be booted.
    #[error("{subject}")]
    Load {
        /// What and where the file is.
        subject: String,
        /// What is wrong with it.
        source: LoadError,
    },
    /// Guest memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// More processors than the host's KVM can give.
    #[error("{asked} vCPUs are more than the {limit} that this host's KVM gives a guest")]
    TooManyVcpus {
        /// What the configuration asks for.
        asked: u8,
        /// The host's bound.
        limit: usize,
    },
    /// The guest's TSC cannot have the rate that it is to have.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// More virtio devices than there are places.
    #[error(
        "{asked} drives, persistent memories, network interfaces, socket, balloon and entropy devices are more than \
         the {limit} that a machine has places for"
    )]
    TooManyDevices {
        /// What the configuration asks for.
        asked: usize,
        /// The bound.
        limit: usize,
    },
    /// A disk cannot have the engine that it is to have.
    #[error("drive {id:?}")]
    Uring {
        /// Which one.
        id: String,
        /// Why not.
        source: UringError,
    },
    /// A disk's image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A persistent memory's file cannot be had.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// Persistent memories that do not fit into a guest's address space.
    #[error(
        "persistent memories of {asked} bytes in all do not fit behind the {memory} of memory: both have to end at \
         {ADDRESS_END:#x}; give it less"
    )]
    TooMuchPmem {
        /// Their sizes, added up.
        asked: u64,
        /// The guest's RAM.
        memory: MemorySize,
    },
    /// A network interface's tap cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The socket device's socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The vCPUs' threads cannot run where they are to.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The kernel refused a call.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
    /// The kernel refused an MSR.
    #[error(transparent)]
    Msr(#[from] MsrError),
    /// What the guest is told in its memory cannot be written there.
    #[error("cannot write to the guest's memory")]
    GuestMemory(#[from] GuestMemoryError),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The host refused a descriptor or a thread.
    #[error("cannot {what}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
}

pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// What a machine has beyond what every machine has.
#[derive(Default)]
pub(crate) struct Additions<'a> {
    /// A device at I/O ports.
    pub(crate) port: Option<PortDevice>,
    /// Virtio devices.
    pub(crate) peripherals: Option<&'a Peripherals>,
}

/// What a machine is put together for, besides its configuration.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Who is told how the machine ended.
    pub(crate) ending: Arc<Ending>,
    /// Who counts what it does.
    pub(crate) metrics: Arc<Metrics>,
    /// From when the boot timer counts.
    pub(crate) started: Instant,
    /// What its threads, and the one that starts it, may do.
    pub(crate) filters: Filters,
    /// What its guest can read of the metadata service.
    pub(crate) metadata: Arc<Metadata>,
}

impl Surroundings {
    /// For a machine that is the process's only task.
    pub(crate) fn new(filters: Filters, started: Instant) -> Result<Self, MachineError> {
        Ok(Self {
            ending: Arc::new(Ending::new().map_err(host("create an eventfd"))?),
            metrics: Arc::new(Metrics::default()),
            started,
            filters,
            metadata: Arc::new(Metadata::new(0)),
        })
    }
}

/// A microVM, ready to run.
#[derive(Debug)]
pub(crate) struct Machine<H: Hypervisor> {
    vcpus: Vec<<H::Vm as Vm>::Vcpu>,
    shared: Arc<Shared>,
    counters: Vec<Arc<VcpuCounters>>,
    serial: Arc<Mutex<Serial>>,
    serial_room: EventFd,
    alarm: AlarmTimer,
    console_counters: Arc<ConsoleCounters>,
    keyboard: Arc<Mutex<I8042>>,
    rate: GuestRate,
    host_rate: Option<Khz>,
    placement: Placement,
    watcher: Watcher,
    metrics: Arc<Metrics>,
    virtio: Virtio,
    memory: Arc<GuestMemoryMmap>,
    generation: VmGenId,
    /// Dropped last: a VM outlives its vCPUs.
    vm: Arc<H::Vm>,
}

impl<H: Hypervisor> Machine<H>
where
    H::Vm: VmClock,
    <H::Vm as Vm>::Vcpu: PauseNotice + TscOffsetControl + DeadlineTimer,
{
    /// Creates the VM with its memory, loads the payload, and sets up processors and devices.
    pub(crate) fn assemble(
        hypervisor: &H,
        config: &MachineConfig,
        controllers: InterruptControllers,
        payload: &Payload<'_>,
        additions: Additions<'_>,
        surroundings: &Surroundings,
        rate: GuestRate,
    ) -> Result<Self, MachineError> {
        let Surroundings {
            ending,
            metrics,
            started,
            filters,
            metadata,
        } = surroundings;
        let asked = config.vcpus.get();
        let limit = hypervisor.max_vcpus();
        if usize::from(asked) > limit {
            return Err(MachineError::TooManyVcpus { asked, limit });
        }
        memory::check_against_host(config.memory)?;
        let none = Peripherals::default();
        let peripherals = additions.peripherals.unwrap_or(&none);
        let places = places(peripherals)?;
        let mut backends = Backends::open(peripherals, config.memory, &places)?;
        let memory = memory::create(config.memory)?;
        // Before the VM exists: a file that cannot be booted is found in microseconds.
        let loaded = payload::load(&memory, payload)?;
        acpi::write_tables(
            &memory,
            &AcpiConfig {
                vcpus: config.vcpus.cpus(),
                virtio_mmio: places.clone(),
            },
        )?;
        let mode = match config.tsc_domain.unwrap_or_default() {
            TscDomain::Auto if config.watcher == Watcher::Nobody => TscDomain::Off,
            mode => mode,
        };
        let placement = Placement::prepare(mode, asked, Senses::this_host())?;
        let guest_memory = Arc::new(memory.clone());
        let vm = Arc::new(hypervisor.create_vm(memory, backends.windows(), controllers)?);
        let (vcpus, host_rate) =
            create_vcpus(hypervisor, &vm, config.vcpus, controllers, &loaded, rate)?;
        let awaiting = Arc::new(Awaiting::default());
        let until = StopSigns {
            ending: ending.clone(),
            awaiting: awaiting.clone(),
        };
        let mut devices =
            Devices::create(&vm, until, config, controllers, additions.port, *started)?;
        let bus = &mut devices.buses.mmio;
        backends.put_on(bus, peripherals, ending)?;
        let mmds = virtio::mmds(peripherals, metadata);
        let virtio = Virtio::create(
            &*vm,
            &guest_memory,
            bus,
            peripherals,
            backends,
            &places,
            mmds.as_ref(),
        )?;
        let generation = VmGenId::create(
            guest_memory.clone(),
            layout::VMGENID,
            devices::random()?,
            devices::interrupt_line(&*vm, controllers, layout::GENERIC_EVENT_GSI)?,
        )?;
        let counters = metrics.watch_machine(
            vcpus.len(),
            devices.keyboard_counters,
            devices.console_counters.clone(),
        );
        if let Some(mmds) = mmds {
            metrics.watch_mmds(mmds.counters());
        }
        tracing::debug!(
            protocol = %loaded.protocol,
            entry = format_args!("{:#x}", loaded.entry.raw_value()),
            "machine assembled in {:?}",
            started.elapsed()
        );
        Ok(Self {
            shared: Arc::new(Shared {
                buses: devices.buses,
                ending: ending.clone(),
                gate: Gate::new(vcpus.len(), awaiting),
                beat: Arc::default(),
                filters: filters.clone(),
                threads: Arc::new(Threads::beginning_on(placement.first())),
            }),
            vcpus,
            counters,
            serial: devices.serial,
            serial_room: devices.serial_room,
            alarm: devices.alarm,
            console_counters: devices.console_counters,
            keyboard: devices.keyboard,
            rate,
            host_rate,
            placement,
            watcher: config.watcher,
            metrics: metrics.clone(),
            virtio,
            memory: guest_memory,
            generation,
            vm,
        })
    }

    /// Runs the machine until it ends, with `console` on the process's standard input.
    pub(crate) fn run(self, console: Console) -> Result<Outcome, MachineError> {
        let mut events = EventLoop::new(self.shared.ending.clone())?;
        let running = self.start(console, &mut events)?;
        let outcome = events.run_to_the_end();
        drop(running);
        Ok(outcome)
    }

    /// Lets the guest go. What the guest and the operator cause from now on comes through `events`.
    pub(crate) fn start(
        self,
        console: Console,
        events: &mut EventLoop,
    ) -> Result<Running<H>, MachineError> {
        let rates = Rates::new(host_cpu::vendor(), self.rate, self.host_rate);
        let tells_offsets = self.tells_offsets();
        let watched = rates.filter(|_| self.watcher == Watcher::Timekeeper && tells_offsets);
        // Before a vCPU runs: afterwards KVM or the guest may have moved it.
        let home = watched.and_then(|_| self.home());
        let page = self.time_page(watched, home)?;
        events.add(Box::new(self.alarm));
        let terminal = match console {
            Console::None => None,
            Console::StandardInput => {
                let raw = RawMode::enter().map_err(|error| MachineError::Host {
                    what: "switch the terminal to raw mode",
                    source: error.into(),
                })?;
                if raw.is_some() {
                    output::complain(&format!("{}\r", console::HELP));
                }
                let interactive = raw.is_some();
                if interactive || !std::io::stdin().is_terminal() {
                    events.add(Box::new(ConsoleInput::new(
                        self.serial,
                        self.serial_room,
                        self.console_counters,
                        self.shared.ending.clone(),
                        interactive,
                    )));
                } else {
                    // Who reads it from there is stopped (SIGTTIN), and the guest with it.
                    tracing::info!(
                        "this process is in the background of its terminal: the guest's console gets no input"
                    );
                }
                raw
            }
        };
        if let Some(degradation) = self.rate.other().and_then(|other| other.degradation()) {
            tracing::warn!("{degradation}");
        }
        let mut running = Running {
            threads: Arc::new(Vec::new()),
            shared: self.shared,
            keyboard: self.keyboard,
            rate: self.rate,
            host_rate: self.host_rate,
            placement: self.placement,
            measuring: None,
            timekeeper: Arc::new(Mutex::new(Timekeeper::new(rates).with_page(page))),
            observed: Vec::new(),
            watch: None,
            unwatched: None,
            _terminal: terminal,
            virtio: self.virtio,
            generation: self.generation,
            vm: self.vm,
            stay: None,
        };
        let bell = Arc::new(Bell::default());
        let senses = HostSenses::detect();
        let mut threads = Vec::with_capacity(self.vcpus.len());
        let mut waiting = self.vcpus.into_iter().zip(self.counters);
        for index in 0.. {
            let Some((vcpu, counters)) = waiting.next() else {
                break;
            };
            let observed = Arc::new(Observed::default());
            running.observed.push(observed.clone());
            let watch = ExitWatch::new(senses, watched, observed, bell.clone());
            let shared = running.shared.clone();
            match VcpuThread::start(VcpuId::new(index), vcpu, shared, counters, watch) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Neither this one nor those after it are waited for.
                    for _ in 0..=waiting.len() {
                        running.shared.gate.leave();
                    }
                    running.threads = Arc::new(threads);
                    return Err(host("start a vCPU thread")(error));
                }
            }
        }
        running.threads = Arc::new(threads);
        if self.watcher == Watcher::Timekeeper {
            let (vcpus, keeper) = (running.observed.clone(), running.timekeeper.clone());
            self.metrics.add_source(Box::new(move |samples| {
                timekeeper::figures(&vcpus, &keeper, samples);
            }));
        }
        let counts = running.virtio.take_counts();
        (self.metrics).add_source(Box::new(move |samples| counts.read(samples)));
        // The threads that are started from now on are not the guest's.
        running.placement.release();
        (running.virtio)
            .start(&running.shared.ending, &running.shared.filters)
            .map_err(host("start a device's thread"))?;
        running.measuring = (running.placement)
            .go_on(
                running.host_rate,
                running.shared.threads.clone(),
                running.shared.ending.clone(),
                running.shared.filters.clone(),
            )
            .map_err(host("start the thread that measures the TSCs"))?;
        if let (Some(rates), Some(home)) = (watched, home) {
            running.watch = Some(running.watch(rates, home, bell)?);
        } else {
            running.unwatched = match self.watcher {
                Watcher::Timekeeper if tells_offsets => Some(Unwatched::ByHost),
                Watcher::Timekeeper => Some(Unwatched::ByKernel),
                Watcher::Guest => None,
                Watcher::Nobody => Some(Unwatched::ForTests),
            };
            if let Some(why) = running.unwatched {
                tracing::warn!("{why}");
            }
        }
        code::unmap_what_the_start_needed();
        // Last: a thread that it starts would be held to both.
        running.shared.filters.enter(Role::Vmm)?;
        Ok(running)
    }

    /// Whether KVM tells the offset of a vCPU's TSC: what is computed of two readings is another number each time, and
    /// would be taken for moves.
    fn tells_offsets(&self) -> bool {
        let first = self.vcpus.first();
        first.is_some_and(|vcpu| vcpu.tsc_support().offset == OffsetInterface::Attribute)
    }

    /// The CPU that this thread is on, and the offset that the vCPUs have been created with.
    fn home(&self) -> Option<Home> {
        let (_, cpu) = Rdtscp::detect()?.read();
        let offset = self.vcpus.first()?.offset().ok()?.claim();
        Some(Home { cpu, offset })
    }

    /// The page that tells the guest the time, without a counter where nobody watches it, where its rate is not kept
    /// by the hardware, or where what KVM says of its TSC contradicts what it says of its offset.
    fn time_page(
        &self,
        watched: Option<Rates>,
        home: Option<Home>,
    ) -> Result<TimePage, MachineError> {
        let kept = self
            .rate
            .other()
            .and_then(|other| other.degradation())
            .is_none();
        let rates = watched.zip(home).filter(|(rates, home)| {
            let first = self.vcpus.first();
            kept && first.is_some_and(|vcpu| timekeeper::explains(*rates, home.offset, vcpu))
        });
        let rates = rates.map(|(rates, _)| rates);
        Ok(TimePage::create(
            self.memory.clone(),
            rates,
            RealTime::THIS_HOST,
        )?)
    }
}

type KickOf<H> = <<<H as Hypervisor>::Vm as Vm>::Vcpu as Vcpu>::Kick;

/// A microVM whose guest runs. Dropped, it is stopped.
#[derive(Debug)]
pub(crate) struct Running<H: Hypervisor> {
    threads: Arc<Vec<VcpuThread<KickOf<H>>>>,
    shared: Arc<Shared>,
    keyboard: Arc<Mutex<I8042>>,
    rate: GuestRate,
    host_rate: Option<Khz>,
    timekeeper: Arc<Mutex<Timekeeper>>,
    observed: Vec<Arc<Observed>>,
    watch: Option<WatchThread>,
    /// Why there is none, where that is not as it should be.
    unwatched: Option<Unwatched>,
    placement: Placement,
    measuring: Option<Measuring>,
    /// Dropped after the vCPUs have left: one that resets a device waits for the device's thread.
    virtio: Virtio,
    generation: VmGenId,
    _terminal: Option<RawMode>,
    /// A VM outlives its vCPUs.
    vm: Arc<H::Vm>,
    /// Dropped last: what keeps this thread in place while the VM goes.
    stay: Option<Stay>,
}

impl<H: Hypervisor> Running<H> {
    fn kick(&self) {
        for thread in &*self.threads {
            thread.kick();
        }
    }

    /// Starts the thread that watches the guest's time.
    fn watch(
        &self,
        rates: Rates,
        home: Home,
        bell: Arc<Bell>,
    ) -> Result<WatchThread, MachineError> {
        let watch = Watch {
            halt: Crew {
                threads: self.threads.clone(),
                shared: self.shared.clone(),
            },
            rates,
            home,
            host: timekeeper::Host::THIS,
            may_confine: self.placement.is_auto(),
            vcpus: self.observed.clone(),
            keeper: self.timekeeper.clone(),
        };
        WatchThread::start(
            watch,
            bell,
            self.shared.beat.clone(),
            self.shared.ending.clone(),
            self.shared.filters.clone(),
        )
        .map_err(host("start the thread that watches the guest's time"))
    }

    fn timekeeper(&self) -> MutexGuard<'_, Timekeeper> {
        // It is changed in whole steps.
        self.timekeeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The vCPUs' threads, for whoever stops and moves them.
#[derive(Debug)]
struct Crew<K: Kick> {
    threads: Arc<Vec<VcpuThread<K>>>,
    shared: Arc<Shared>,
}

impl<K: Kick + Send + Sync> Halt for Crew<K> {
    fn close(&self) {
        self.shared.gate.close(|| {
            for thread in &*self.threads {
                thread.kick();
            }
        });
    }

    fn ask(&self, order: Order) -> Vec<Answer> {
        self.shared.gate.ask(order)
    }

    fn open(&self) {
        self.shared.gate.open();
    }

    fn nudge(&self, vcpu: usize) {
        if let Some(thread) = self.threads.get(vcpu) {
            thread.kick();
        }
    }

    fn confine(&self, cpus: &[CpuId]) -> Result<(), String> {
        let cpus: CpuList = cpus.iter().copied().collect();
        let confined = self.shared.threads.confine(&cpus);
        confined.map_err(|error| one_line(&error))
    }

    fn strays(&self, cpus: &[CpuId]) -> bool {
        self.shared.threads.strays(&cpus.iter().copied().collect())
    }

    fn stay(&self) -> Option<Stay> {
        Stay::beside(&self.shared.threads)
    }
}

impl<H: Hypervisor> Running<H>
where
    H::Vm: VmClock,
{
    /// Brings all vCPUs to a halt between two instructions, and returns when they are and their clocks are
    /// noted.
    pub(crate) fn pause(&mut self, policy: TimePolicy) {
        let _stay = Stay::beside(&self.shared.threads);
        // Held until all wait: the watch stops them, too.
        let mut timekeeper = self.timekeeper();
        let began = host_clock::boottime();
        self.shared.gate.close(|| self.kick());
        // Now that all have gone on from the pause before, however late.
        timekeeper.went_on(timekeeper::last_entry(&self.observed));
        let gate = &self.shared.gate;
        let clocks = host_clocks(&*self.vm);
        timekeeper.stop(policy, began, &clocks, |order| gate.ask(order));
        drop(timekeeper);
        // No vCPU asks for anything more; what is asked for already may go on until here.
        self.virtio.pause();
    }

    /// Lets them go on, with their clocks as `policy` wants.
    ///
    /// # Errors
    /// Why the clocks cannot be so; the vCPUs still wait.
    pub(crate) fn resume(&mut self, policy: TimePolicy) -> Result<(), ResumeError> {
        let _stay = Stay::beside(&self.shared.threads);
        let gate = &self.shared.gate;
        let clocks = host_clocks(&*self.vm);
        // Held until they go on: the watch stops them, too.
        let timekeeper = self.timekeeper.clone();
        let mut timekeeper = timekeeper.lock().unwrap_or_else(PoisonError::into_inner);
        timekeeper.go_on(policy, &clocks, |order| gate.ask(order))?;
        self.virtio.resume();
        gate.open();
        Ok(())
    }

    /// The guest, which is paused, is another than it was: the same snapshot may have others. It is told by its
    /// generation and by its clock's page.
    ///
    /// # Errors
    /// There are no random numbers.
    #[expect(
        dead_code,
        reason = "restoring a snapshot is what makes another guest of one"
    )]
    pub(crate) fn renew_generation(&self) -> Result<(), MachineError> {
        self.timekeeper().restored();
        Ok(self.generation.renew(devices::random()?)?)
    }

    /// What became of the guest's clocks.
    pub(crate) fn kept(&self) -> Kept {
        let master_clock = timekeeper::master_clock(&*self.vm);
        let mut timekeeper = self.timekeeper();
        timekeeper.went_on(timekeeper::last_entry(&self.observed));
        Kept {
            master_clock,
            marks: timekeeper.marks(),
            marks_left_out: timekeeper.marks_left_out(),
            history: timekeeper.history(),
            error: timekeeper::guests_error(&self.observed),
            stops: timekeeper.stops(),
            events: timekeeper.events(),
            vcpus: (self.observed.iter().enumerate())
                .map(|(index, observed)| observed.report(index))
                .collect(),
            placed: Some(self.placement.placed(&self.shared.threads)),
            unwatched: self.unwatched,
        }
    }

    /// Changes a disk.
    ///
    /// # Errors
    /// There is no such disk, or no such image.
    pub(crate) fn change_drive(&mut self, patch: &DrivePatch) -> Result<(), Fault> {
        self.virtio.change_drive(patch)
    }

    /// Changes a network interface.
    ///
    /// # Errors
    /// There is no such interface.
    pub(crate) fn change_interface(&mut self, patch: &NetworkInterfacePatch) -> Result<(), Fault> {
        self.virtio.change_interface(patch)
    }

    /// Changes a persistent memory.
    ///
    /// # Errors
    /// There is no such memory.
    pub(crate) fn change_pmem(&self, patch: &PmemPatch) -> Result<(), Fault> {
        self.virtio.change_pmem(patch)
    }

    /// Changes the size of the balloon, and how often its statistics are asked for where they are, to what
    /// `balloon` says.
    pub(crate) fn change_balloon(&self, balloon: &Balloon) {
        self.virtio.change_balloon(balloon);
    }

    /// Has the balloon's driver name free pages, or use them again.
    pub(crate) fn hint(&self, command: Command) {
        self.virtio.hint(command);
    }

    /// What is known of the balloon, if there is one.
    pub(crate) fn balloon(&self) -> Option<BalloonState> {
        self.virtio.balloon()
    }

    /// Types Ctrl+Alt+Del on the guest's keyboard.
    pub(crate) fn ctrl_alt_del(&self) -> Result<(), KeyboardError> {
        let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
        keyboard.trigger_ctrl_alt_del()
    }

    /// The rate of the guest's TSC and how it is kept, and the host's own, as the kernel reports it.
    pub(crate) fn tsc_rate(&self) -> (GuestRate, Option<Khz>) {
        (self.rate, self.host_rate)
    }
}

impl<H: Hypervisor> Drop for Running<H> {
    fn drop(&mut self) {
        // Counts only if nobody has ended the machine before.
        self.shared.ending.end(Outcome::Failure(
            "the launcher gave the microVM up".to_owned(),
        ));
        // All are to leave the guest; kicked together, they leave side by side before they are joined
        // one by one.
        self.shared.gate.wait_until_left(|| self.kick());
        // It may be waiting for vCPUs that have left now.
        self.watch = None;
        self.measuring = None;
        for thread in &*self.threads {
            thread.join();
        }
        if let Some(Outcome::Failure(_)) = self.shared.ending.outcome() {
            self.virtio.tell_files_cut_short();
        }
        self.stay = Stay::beside(&self.shared.threads);
    }
}

fn host_clocks<C>(vm: &C) -> Clocks<'_, C> {
    Clocks {
        vm,
        boottime: &host_clock::boottime,
        host_tsc: &read_tsc,
    }
}

/// What the guest's serial input is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// Nothing.
    None,
    /// The process's standard input.
    StandardInput,
}

/// The vCPUs, ready to run, and the rate of the host's TSC.
type Vcpus<H> = (Vec<<<H as Hypervisor>::Vm as Vm>::Vcpu>, Option<Khz>);

fn create_vcpus<H: Hypervisor>(
    hypervisor: &H,
    vm: &H::Vm,
    count: VcpuCount,
    controllers: InterruptControllers,
    loaded: &Loaded,
    rate: GuestRate,
) -> Result<Vcpus<H>, MachineError>
where
    <H::Vm as Vm>::Vcpu: TscOffsetControl,
{
    let supported = hypervisor.supported_cpuid()?;
    let msrs = arch::msr::boot_msrs();
    let mut vcpus = (0..count.get())
        .map(|index| vm.create_vcpu(VcpuId::new(index.into())))
        .collect::<Result<Vec<_>, _>>()?;
    // That of a vCPU that has not been asked for another.
    let host_rate = vcpus.first().and_then(|vcpu| vcpu.tsc_khz().ok());
    rate.give(&mut vcpus)?;
    for (index, vcpu) in (0..).zip(&mut vcpus) {
        let config = CpuidConfig {
            vcpus: count.cpus(),
            index,
            tsc: rate.khz(host_rate),
            tsc_deadline: hypervisor.has_tsc_deadline_timer(),
        };
        // CPUID first: what an MSR accepts depends on it.
        vcpu.set_cpuid(&cpuid::guest_cpuid(&supported, &config))?;
        vcpu.set_msrs(msrs)?;
        if controllers != InterruptControllers::None {
            vcpu.update_lapic(arch::lapic::wire_boot_processor)?;
        }
        // Application processors stay as reset left them and wait for their start-up interrupt.
        if index == 0 {
            let current = vcpu.system_registers()?;
            vcpu.set_system_registers(&loaded.system_registers(current))?;
            vcpu.set_general_registers(&loaded.registers)?;
        }
    }
    Ok((vcpus, host_rate))
}
