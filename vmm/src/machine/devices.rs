//! The devices of a machine, and the wiring of their interrupts.

use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arch::layout;
use devices::boot_timer::BootTimer;
use devices::bus::{Bus, BusDevice, Reaction};
use devices::cmos::Cmos;
use devices::debug_exit::DebugExit;
use devices::i8042::{self, I8042};
use devices::pit::{self, LazyPit};
use devices::power::{AcpiPower, AcpiReset, SleepType};
use devices::serial::{self, Serial};
use devices::trigger::Unconnected;
use hypervisor::{Gsi, InterruptControllers, Vm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::Address;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::alarm::AlarmTimer;
use super::{MachineError, host};
use crate::config::MachineConfig;
use crate::error::one_line;
use crate::gate::Awaiting;
use crate::host_clock;
use crate::logging::guest_info;
use crate::metrics::{AccessCounters, ConsoleCounters};
use crate::outcome::Outcome;
use crate::vcpu::{Buses, Ending};

// The tables tell the guest where the clock has the century.
const _: () = assert!(layout::CMOS_CENTURY_REGISTER == devices::cmos::CENTURY);

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

/// A device whose accesses are counted, and which others than the guest use as well.
struct Counted<D> {
    device: Arc<Mutex<D>>,
    counters: Arc<AccessCounters>,
}

impl<D: BusDevice> BusDevice for Counted<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.counters.reads.add(1);
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        device.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        self.counters.writes.add(1);
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let reaction = device.write(offset, data);
        if reaction == Reaction::Reset {
            self.counters.resets.add(1);
        }
        reaction
    }
}

/// The devices of a machine: on their buses, and those that others than the guest have to do with.
pub(super) struct Devices {
    pub(super) buses: Buses,
    pub(super) serial: Arc<Mutex<Serial>>,
    pub(super) serial_room: EventFd,
    pub(super) alarm: AlarmTimer,
    pub(super) keyboard: Arc<Mutex<I8042>>,
    pub(super) keyboard_counters: Arc<AccessCounters>,
    pub(super) console_counters: Arc<ConsoleCounters>,
}

impl Devices {
    pub(super) fn create<V: Vm + 'static>(
        vm: &Arc<V>,
        until: StopSigns,
        config: &MachineConfig,
        controllers: InterruptControllers,
        extra: Option<PortDevice>,
        started: Instant,
    ) -> Result<Self, MachineError> {
        let interrupt = |gsi| interrupt_line(&**vm, controllers, gsi);
        let room = EventFd::new(EFD_NONBLOCK).map_err(host("create an eventfd"))?;
        let room_trigger = room.try_clone().map_err(host("duplicate an eventfd"))?;
        let console_counters = Arc::new(ConsoleCounters::default());
        let serial = Arc::new(Mutex::new(Serial::new(
            interrupt(layout::COM1_IRQ)?,
            Box::new(StandardOutput::new(
                console_counters.clone(),
                until.clone(),
            )?),
            Box::new(move || press(&room_trigger)),
        )));
        let mut port = Bus::new();
        let keyboard = interrupt(layout::I8042_KEYBOARD_IRQ)?;
        let keyboard = Arc::new(Mutex::new(I8042::new(keyboard)));
        let keyboard_counters = Arc::new(AccessCounters::default());
        let counted = Arc::new(Mutex::new(Counted {
            device: keyboard.clone(),
            counters: keyboard_counters.clone(),
        }));
        let (name, command) = ("i8042", layout::I8042_COMMAND_PORT.into());
        port.insert(layout::I8042_DATA_PORT.into(), 1, counted.clone(), name)?;
        port.insert_part(command, 1, i8042::COMMAND, counted, name)?;
        if config.pit && controllers != InterruptControllers::None {
            let timer = Arc::new(Mutex::new(lazy_pit(vm.clone(), until.ending)));
            let (name, speaker) = ("pit", layout::PIT_SPEAKER_PORT.into());
            port.insert(layout::PIT_PORT.into(), pit::PORTS, timer.clone(), name)?;
            port.insert_part(speaker, 1, pit::SPEAKER, timer, name)?;
        }
        let mut add = |base: u16, len: u64, name, device: Arc<Mutex<dyn BusDevice>>| {
            port.insert(base.into(), len, device, name)
        };
        add(layout::COM1_PORT, serial::REGISTERS, "com1", serial.clone())?;
        let changed = EventFd::new(EFD_NONBLOCK).map_err(host("create an eventfd"))?;
        let changed_trigger = changed.try_clone().map_err(host("duplicate an eventfd"))?;
        let clock = Cmos::new(Box::new(host_clock::real_time)).with_interrupt(
            interrupt(layout::CMOS_IRQ)?,
            Box::new(move || press(&changed_trigger)),
        );
        let clock = Arc::new(Mutex::new(clock));
        add(layout::CMOS_INDEX_PORT, 2, "cmos", clock.clone())?;
        let alarm = AlarmTimer::new(clock, changed)?;
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
                guest_info!(
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
            alarm,
            keyboard,
            keyboard_counters,
            console_counters,
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

/// Random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N], MachineError> {
    let mut bytes = [0; N];
    loop {
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            // Up to 256 bytes come all or not at all (getrandom(2)),
            Ok(count) if count == N => return Ok(bytes),
            Ok(_) => return Err(host("get random numbers")(ErrorKind::UnexpectedEof.into())),
            // and who waits for the kernel to have any can be interrupted.
            Err(Errno::INTR) => {}
            Err(error) => return Err(host("get random numbers")(error.into())),
        }
    }
}

/// The button with which a device raises `gsi`.
pub(super) fn interrupt_line<V: Vm>(
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
pub(super) fn press(event: &EventFd) {
    let _ = event.write(1);
}

/// How long the guest waits for a reader of its console that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a vCPU that waits for somebody outside does not go on waiting for.
#[derive(Clone, Debug)]
pub(super) struct StopSigns {
    pub(super) ending: Arc<Ending>,
    pub(super) awaiting: Arc<Awaiting>,
}

impl StopSigns {
    fn are_there(&self) -> bool {
        self.ending.is_ending() || self.awaiting.is_so()
    }
}

/// Standard output without the buffer and the lock of [`io::stdout`].
///
/// A reader that is slow stops the vCPU that writes. One that takes nothing for [`PATIENCE`] is taken
/// for gone: what the guest sends is lost until it takes something again. A guest can be paused and ended
/// however full its console is: a kick ends the wait when there is a [`StopSigns`].
struct StandardOutput {
    output: OwnedFd,
    until: StopSigns,
    reader_is_gone: bool,
    counters: Arc<ConsoleCounters>,
}

impl StandardOutput {
    fn new(counters: Arc<ConsoleCounters>, until: StopSigns) -> Result<Self, MachineError> {
        let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 0)
            .map_err(|error| host("use standard output")(error.into()))?;
        Ok(Self {
            output,
            until,
            reader_is_gone: false,
            counters,
        })
    }

    /// Waits until the output takes something. A failure shows in the write that follows.
    fn wait(&mut self) -> io::Result<()> {
        let patience = if self.reader_is_gone {
            Duration::ZERO
        } else {
            PATIENCE
        };
        let deadline = Instant::now() + patience;
        let mut output = [PollFd::new(&self.output, PollFlags::OUT)];
        self.reader_is_gone = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                // OK because it is at most the patience.
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut output, Some(&left)) {
                Ok(ready) => break ready == 0,
                // A look at the clock can wait; a pause or the end cannot. Who is told "interrupted"
                // would try again.
                Err(Errno::INTR) if self.until.are_there() => {
                    return Err(ErrorKind::WouldBlock.into());
                }
                Err(Errno::INTR) => {}
                Err(_) => break false,
            }
        };
        if self.reader_is_gone {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = loop {
            let written = self.wait().map(|()| rustix::io::write(&self.output, bytes));
            match written {
                Ok(Err(Errno::INTR)) if self.until.are_there() => {
                    break Err(ErrorKind::WouldBlock.into());
                }
                Ok(Err(Errno::INTR)) => {}
                Ok(written) => break written.map_err(io::Error::from),
                Err(error) => break Err(error),
            }
        };
        match &written {
            Ok(count) => self.counters.sent.add(*count as u64),
            Err(_) => self.counters.lost.add(bytes.len() as u64),
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
