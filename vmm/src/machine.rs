//! Putting a microVM together, and running it to its end.

use std::fs::File;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arch::acpi::{self, AcpiConfig, AcpiError};
use arch::boot::{self, BootSource, Image, LoadError, Loaded, Subject};
use arch::cpuid::{self, CpuidConfig};
use arch::layout;
use devices::boot_timer::BootTimer;
use devices::bus::{Bus, BusDevice, BusError};
use devices::cmos::Cmos;
use devices::debug_exit::DebugExit;
use devices::i8042::{self, I8042};
use devices::pit::{self, LazyPit};
use devices::power::{AcpiPower, AcpiReset, SleepType};
use devices::serial::{self, Serial};
use devices::trigger::Unconnected;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use hypervisor::{Gsi, Hypervisor, InterruptControllers, IoctlError, MsrError, Vcpu, Vm};
use tsc::VcpuId;
use vm_memory::{Address, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::{BootConfig, MachineConfig, Module, VcpuCount};
use crate::console::{self, ConsoleInput};
use crate::error::one_line;
use crate::host_clock;
use crate::memory::{self, MemoryError};
use crate::outcome::Outcome;
use crate::signals;
use crate::terminal::RawMode;
use crate::vcpu::{Buses, Ending, VcpuThread};

// The tables tell the guest where the clock has the century.
const _: () = assert!(layout::CMOS_CENTURY_REGISTER == devices::cmos::CENTURY);

/// A microVM cannot be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
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
    /// The kernel refused a call.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
    /// The kernel refused an MSR.
    #[error(transparent)]
    Msr(#[from] MsrError),
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

fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// What is loaded into a machine's memory.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    /// A kernel and its modules, from files.
    Files(&'a BootConfig),
    /// A kernel that is part of the program.
    Builtin(&'static [u8]),
}

/// A device at I/O ports, beyond those that every machine has.
pub(crate) struct PortDevice {
    /// First port.
    pub(crate) base: u16,
    /// Number of ports.
    pub(crate) len: u16,
    /// What messages call it.
    pub(crate) name: &'static str,
    /// The device.
    pub(crate) device: Arc<Mutex<dyn BusDevice>>,
}

/// A microVM, ready to run.
#[derive(Debug)]
pub(crate) struct Machine<H: Hypervisor> {
    vcpus: Vec<<H::Vm as Vm>::Vcpu>,
    buses: Arc<Buses>,
    serial: Arc<Mutex<Serial>>,
    serial_room: EventFd,
    ending: Arc<Ending>,
    /// Dropped last: a VM outlives its vCPUs.
    _vm: Arc<H::Vm>,
}

impl<H: Hypervisor> Machine<H> {
    /// Creates the VM with its memory, loads the payload, and sets up processors and devices.
    pub(crate) fn assemble(
        hypervisor: &H,
        config: &MachineConfig,
        controllers: InterruptControllers,
        payload: &Payload<'_>,
        extra: Option<PortDevice>,
        started: Instant,
    ) -> Result<Self, MachineError> {
        let asked = config.vcpus.get();
        let limit = hypervisor.max_vcpus();
        if usize::from(asked) > limit {
            return Err(MachineError::TooManyVcpus { asked, limit });
        }
        memory::check_against_host(config.memory)?;
        let memory = memory::create(config.memory)?;
        // Before the VM exists: a file that cannot be booted is found in microseconds.
        let loaded = load(&memory, payload)?;
        acpi::write_tables(
            &memory,
            &AcpiConfig {
                vcpus: config.vcpus.cpus(),
                virtio_mmio: Vec::new(),
            },
        )?;
        let vm = Arc::new(hypervisor.create_vm(memory, controllers)?);
        let vcpus = create_vcpus(hypervisor, &vm, config.vcpus, controllers, &loaded)?;
        let ending = Arc::new(Ending::new().map_err(host("create an eventfd"))?);
        let devices = Devices::create(&vm, &ending, config, controllers, extra, started)?;
        tracing::debug!(
            protocol = %loaded.protocol,
            entry = format_args!("{:#x}", loaded.entry.raw_value()),
            "machine assembled in {:?}",
            started.elapsed()
        );
        Ok(Self {
            vcpus,
            buses: Arc::new(devices.buses),
            serial: devices.serial,
            serial_room: devices.serial_room,
            ending,
            _vm: vm,
        })
    }

    /// Runs the machine until it ends, with `console` on the process's standard input.
    pub(crate) fn run(self, console: Console) -> Result<Outcome, MachineError> {
        let wake = signals::install().map_err(host("install signal handlers"))?;
        let mut events: EventManager<Box<dyn MutEventSubscriber>> =
            EventManager::new().map_err(|error| MachineError::Host {
                what: "create the event loop",
                source: io::Error::other(format!("{error:?}")),
            })?;
        events.add_subscriber(Box::new(WakeUps {
            ending: self.ending.clone(),
            signal: wake,
        }));
        let raw = match console {
            Console::None => None,
            Console::StandardInput => {
                let raw = RawMode::enter().map_err(|error| MachineError::Host {
                    what: "switch the terminal to raw mode",
                    source: error.into(),
                })?;
                if raw.is_some() {
                    eprintln!("{}\r", console::HELP);
                }
                let interactive = raw.is_some();
                events.add_subscriber(Box::new(ConsoleInput::new(
                    self.serial,
                    self.serial_room,
                    self.ending.clone(),
                    interactive,
                )));
                raw
            }
        };
        let threads = (0..)
            .zip(self.vcpus)
            .map(|(index, vcpu)| {
                let (buses, ending) = (self.buses.clone(), self.ending.clone());
                VcpuThread::start(VcpuId::new(index), vcpu, buses, ending)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(host("start a vCPU thread"))?;
        let outcome = loop {
            if let Some(outcome) = self.ending.outcome() {
                break outcome;
            }
            if let Err(error) = events.run() {
                break Outcome::Failure(format!("the event loop failed: {error:?}"));
            }
        };
        // Whoever ended the machine, all threads are to leave the guest; kicked together, they leave
        // side by side before they are joined one by one.
        self.ending.end(outcome.clone());
        for thread in &threads {
            thread.kick();
        }
        drop(threads);
        drop(raw);
        Ok(outcome)
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

/// Wakes the event loop when the microVM or the process is to end.
struct WakeUps {
    ending: Arc<Ending>,
    signal: &'static EventFd,
}

impl MutEventSubscriber for WakeUps {
    fn init(&mut self, ops: &mut event_manager::EventOps<'_>) {
        use event_manager::{EventSet, Events};
        for event in [self.ending.event(), self.signal] {
            if let Err(error) = ops.add(Events::new(event, EventSet::IN)) {
                self.ending.end(Outcome::Failure(format!(
                    "the event loop failed: {error:?}"
                )));
            }
        }
    }

    fn process(&mut self, _: event_manager::Events, _: &mut event_manager::EventOps<'_>) {
        if let Some(signal) = signals::received() {
            self.ending.end(Outcome::Signal(signal));
        }
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, MachineError> {
    let file = File::open(path).map_err(|source| MachineError::Open {
        what,
        path: path.to_owned(),
        source,
    })?;
    let kind = file
        .metadata()
        .map_err(|source| MachineError::Open {
            what,
            path: path.to_owned(),
            source,
        })?
        .file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let kind = if kind.is_dir() {
        "directory"
    } else {
        "device or pipe"
    };
    Err(MachineError::NotAFile {
        what,
        path: path.to_owned(),
        kind,
    })
}

fn load(memory: &GuestMemoryMmap, payload: &Payload<'_>) -> Result<Loaded, MachineError> {
    match payload {
        Payload::Files(config) => {
            let mut kernel = open("kernel", &config.kernel)?;
            let mut modules = config
                .modules
                .iter()
                .map(|module| open("initrd", &module.path))
                .collect::<Result<Vec<_>, _>>()?;
            let modules = modules
                .iter_mut()
                .zip(&config.modules)
                .map(|(image, module)| boot::Module {
                    image,
                    command: &module.command,
                })
                .collect();
            load_from(memory, &mut kernel, modules, &config.cmdline).map_err(|source| {
                let subject = match source.subject() {
                    Subject::Kernel => format!("kernel {:?}", config.kernel),
                    Subject::Module(index) => config.modules.get(index).map_or_else(
                        || format!("module {index}"),
                        |Module { path, .. }| format!("initrd {path:?}"),
                    ),
                    other => other.to_string(),
                };
                MachineError::Load { subject, source }
            })
        }
        Payload::Builtin(image) => load_from(memory, &mut Cursor::new(*image), Vec::new(), "")
            .map_err(|source| MachineError::Load {
                subject: "the built-in guest".to_owned(),
                source,
            }),
    }
}

fn load_from<F: Image>(
    memory: &GuestMemoryMmap,
    kernel: &mut F,
    modules: Vec<boot::Module<'_, F>>,
    cmdline: &str,
) -> Result<Loaded, LoadError> {
    boot::load(
        memory,
        BootSource {
            kernel,
            modules,
            cmdline,
        },
    )
}

fn create_vcpus<H: Hypervisor>(
    hypervisor: &H,
    vm: &H::Vm,
    count: VcpuCount,
    controllers: InterruptControllers,
    loaded: &Loaded,
) -> Result<Vec<<H::Vm as Vm>::Vcpu>, MachineError> {
    let supported = hypervisor.supported_cpuid()?;
    let msrs = arch::msr::boot_msrs();
    let mut vcpus = Vec::with_capacity(count.get().into());
    for index in 0..count.get() {
        let mut vcpu = vm.create_vcpu(VcpuId::new(index.into()))?;
        let config = CpuidConfig {
            vcpus: count.cpus(),
            index,
            tsc: vcpu.tsc_khz().ok(),
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
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

struct Devices {
    buses: Buses,
    serial: Arc<Mutex<Serial>>,
    serial_room: EventFd,
}

impl Devices {
    fn create<V: Vm + 'static>(
        vm: &Arc<V>,
        ending: &Arc<Ending>,
        config: &MachineConfig,
        controllers: InterruptControllers,
        extra: Option<PortDevice>,
        started: Instant,
    ) -> Result<Self, MachineError> {
        let interrupt = |gsi| interrupt_line(&**vm, controllers, gsi);
        let room = EventFd::new(EFD_NONBLOCK).map_err(host("create an eventfd"))?;
        let room_trigger = room.try_clone().map_err(host("duplicate an eventfd"))?;
        let serial = Arc::new(Mutex::new(Serial::new(
            interrupt(layout::COM1_IRQ)?,
            Box::new(standard_output()?),
            Box::new(move || press(&room_trigger)),
        )));
        let mut port = Bus::new();
        let keyboard = interrupt(layout::I8042_KEYBOARD_IRQ)?;
        let keyboard = Arc::new(Mutex::new(I8042::new(keyboard)));
        let (name, command) = ("i8042", layout::I8042_COMMAND_PORT.into());
        port.insert(layout::I8042_DATA_PORT.into(), 1, keyboard.clone(), name)?;
        port.insert_part(command, 1, i8042::COMMAND, keyboard, name)?;
        if config.pit && controllers != InterruptControllers::None {
            let timer = Arc::new(Mutex::new(lazy_pit(vm.clone(), ending.clone())));
            let (name, speaker) = ("pit", layout::PIT_SPEAKER_PORT.into());
            port.insert(layout::PIT_PORT.into(), pit::PORTS, timer.clone(), name)?;
            port.insert_part(speaker, 1, pit::SPEAKER, timer, name)?;
        }
        let mut add = |base: u16, len: u64, name, device: Arc<Mutex<dyn BusDevice>>| {
            port.insert(base.into(), len, device, name)
        };
        add(layout::COM1_PORT, serial::REGISTERS, "com1", serial.clone())?;
        add(
            layout::CMOS_INDEX_PORT,
            2,
            "cmos",
            Arc::new(Mutex::new(Cmos::new(Box::new(host_clock::real_time)))),
        )?;
        add(
            layout::PM1A_EVENT_PORT,
            6,
            "acpi-power",
            Arc::new(Mutex::new(AcpiPower::new(
                SleepType::new(layout::SLEEP_TYPE_S5).expect("S5's type fits three bits"),
                interrupt(layout::SCI_IRQ)?,
            ))),
        )?;
        add(
            layout::ACPI_RESET_PORT,
            1,
            "acpi-reset",
            Arc::new(Mutex::new(AcpiReset::new(layout::ACPI_RESET_VALUE))),
        )?;
        if config.debug_exit {
            add(
                layout::DEBUG_EXIT_PORT,
                4,
                "debug-exit",
                Arc::new(Mutex::new(DebugExit)),
            )?;
        }
        if let Some(PortDevice {
            base,
            len,
            name,
            device,
        }) = extra
        {
            add(base, len.into(), name, device)?;
        }
        let mut mmio = Bus::new();
        if config.boot_timer {
            let timer = BootTimer::new(Box::new(move || {
                let elapsed = started.elapsed();
                tracing::info!(
                    "Guest-boot-time = {:>6} us {} ms",
                    elapsed.as_micros(),
                    elapsed.as_millis()
                );
            }));
            mmio.insert(
                layout::BOOT_TIMER.raw_value(),
                1,
                Arc::new(Mutex::new(timer)),
                "boot-timer",
            )?;
        }
        Ok(Self {
            buses: Buses { port, mmio },
            serial,
            serial_room: room,
        })
    }
}

/// The interval timer, which the kernel makes when the guest uses it. A guest whose timer cannot be
/// made is not left without one: its machine ends.
fn lazy_pit<V: Vm + 'static>(vm: Arc<V>, ending: Arc<Ending>) -> LazyPit {
    LazyPit::new(Box::new(move |state| {
        tracing::debug!("the guest uses the interval timer");
        if let Err(error) = vm.create_pit(state) {
            ending.end(Outcome::Failure(one_line(&error)));
        }
    }))
}

/// The button with which a device raises `gsi`.
fn interrupt_line<V: Vm>(
    vm: &V,
    controllers: InterruptControllers,
    gsi: u32,
) -> Result<Box<dyn devices::trigger::Trigger>, MachineError> {
    if controllers == InterruptControllers::None {
        return Ok(Box::new(Unconnected));
    }
    let event = EventFd::new(EFD_NONBLOCK).map_err(host("create an eventfd"))?;
    vm.register_interrupt(&event, Gsi(gsi))?;
    Ok(Box::new(move || press(&event)))
}

/// Writing to an eventfd fails only when its counter is full, and then it is pressed already.
fn press(event: &EventFd) {
    let _ = event.write(1);
}

/// Standard output without the buffer and the lock of [`io::stdout`].
fn standard_output() -> Result<File, MachineError> {
    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 0)
        .map(File::from)
        .map_err(|error| host("use standard output")(error.into()))
}
