//! What a user may ask for, validated before anything is touched.

mod cpu_list;
mod drives;
mod json;

use std::path::{Path, PathBuf};

use arch::cpuid::CpuCount;
use arch::memory::MemorySize;
use tsc::{Khz, bounds};

use crate::api::body::LoggerBody;

pub use cpu_list::{CpuList, InvalidCpuList, InvalidTscDomain, TscDomain};
pub use drives::Peripherals;
pub use json::{ConfigFileError, parse};

/// The largest number of vCPUs of one microVM, as in the configuration that we are compatible with.
pub const MAX_VCPUS: u8 = 32;

/// The command line that a kernel gets when the user gives none: the serial console, and an end of the
/// process where a machine would reset.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

/// A number of vCPUs, 1 to [`MAX_VCPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuCount(CpuCount);

impl VcpuCount {
    /// Checks the bounds.
    ///
    /// # Errors
    /// The number asked for, with the bounds.
    pub fn new(count: u64) -> Result<Self, InvalidVcpuCount> {
        match CpuCount::new(count) {
            Ok(cpus) if cpus.get() <= MAX_VCPUS => Ok(Self(cpus)),
            _ => Err(InvalidVcpuCount { asked: count }),
        }
    }

    /// The number, for the machine's tables.
    #[must_use]
    pub fn cpus(self) -> CpuCount {
        self.0
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

/// A number of vCPUs out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked} vCPUs are not possible: choose 1 to {MAX_VCPUS}")]
pub struct InvalidVcpuCount {
    asked: u64,
}

/// What is wanted of the guest's TSC rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscRate {
    /// The rate; the host's when there is none.
    pub khz: Option<Khz>,
    /// Whether KVM may push the guest's TSC forward at its entries where the hardware does not scale.
    pub allow_catch_up: bool,
}

impl TscRate {
    /// Checks the bounds of a rate in kilohertz.
    ///
    /// # Errors
    /// The rate asked for, with the bounds.
    pub fn khz(khz: u64) -> Result<Khz, InvalidTscRate> {
        u32::try_from(khz)
            .ok()
            .and_then(Khz::new)
            .ok_or(InvalidTscRate { asked: khz })
    }

    /// These wishes, and of `others` what they leave open.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            khz: self.khz.or(others.khz),
            allow_catch_up: self.allow_catch_up || others.allow_catch_up,
        }
    }

    /// Whether what is allowed is of any use: a guest with the host's own rate has nothing to catch up.
    ///
    /// # Errors
    /// Catch-up is allowed, and there is no rate that it could be allowed for.
    pub fn check(self) -> Result<(), CatchUpWithoutRate> {
        if self.allow_catch_up && self.khz.is_none() {
            Err(CatchUpWithoutRate)
        } else {
            Ok(())
        }
    }
}

/// Catch-up is allowed for no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "allow_tsc_catchup: there is no rate that it could be allowed for; give tsc_khz (--tsc-khz), too, or \
     leave it out"
)]
pub struct CatchUpWithoutRate;

/// A TSC rate out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a TSC rate of {asked} kHz is not possible: choose {} to {}", bounds::KHZ.min, bounds::KHZ.max)]
pub struct InvalidTscRate {
    asked: u64,
}

/// A file that a boot loader would have put into memory beside the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where it is on the host.
    pub path: PathBuf,
    /// What a multiboot kernel is told about it; Linux has no use for it.
    pub command: String,
}

impl Module {
    /// From `PATH` or `PATH,COMMAND`, as the command line and other launchers of multiboot kernels
    /// have it. Without a command the module is called by its path.
    #[must_use]
    pub fn from_argument(argument: &str) -> Self {
        let (path, command) = argument.split_once(',').unwrap_or((argument, argument));
        Self {
            path: PathBuf::from(path),
            command: command.to_owned(),
        }
    }

    /// The one initial RAM disk of a Linux kernel.
    #[must_use]
    pub fn from_path(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            command: String::new(),
        }
    }
}

/// What is to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk, or the modules of a multiboot kernel.
    pub modules: Vec<Module>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Whether the command line tells the places of virtio devices, too, which ACPI's tables do anyhow.
    pub virtio_mmio_args: bool,
}

/// Who watches a guest's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watcher {
    /// The timekeeper.
    #[default]
    Timekeeper,
    /// The guest itself, which is there for nothing else.
    Guest,
    /// Nobody, and its threads are not placed for it: for tests, which show what that is for.
    Nobody,
}

impl Watcher {
    /// The timekeeper, unless it is switched off for a test.
    #[must_use]
    pub fn unless_off(off: bool) -> Self {
        if off { Self::Nobody } else { Self::Timekeeper }
    }
}

/// The machine that it is booted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Its processors.
    pub vcpus: VcpuCount,
    /// Its memory.
    pub memory: MemorySize,
    /// A port through which the guest ends the process with a status of its choice.
    pub debug_exit: bool,
    /// A byte of MMIO through which the guest reports that it has booted.
    pub boot_timer: bool,
    /// An 8254 interval timer, made by the kernel when the guest uses it.
    pub pit: bool,
    /// The rate of its TSC.
    pub tsc: TscRate,
    /// Where its vCPUs' threads run; [`TscDomain::Auto`] when nothing was said.
    pub tsc_domain: Option<TscDomain>,
    /// Who watches the guest's time.
    pub watcher: Watcher,
}

impl Default for MachineConfig {
    /// What there is when nothing is said: one processor and 128 MiB.
    fn default() -> Self {
        Self {
            vcpus: VcpuCount::new(1).expect("1 is in bounds"),
            memory: MemorySize::from_mib(128).expect("128 is in bounds"),
            debug_exit: false,
            boot_timer: false,
            pit: true,
            tsc: TscRate::default(),
            tsc_domain: None,
            watcher: Watcher::Timekeeper,
        }
    }
}

/// A whole microVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// What is booted.
    pub boot: BootConfig,
    /// On which machine.
    pub machine: MachineConfig,
    /// With which devices.
    pub peripherals: Peripherals,
    /// How the log is changed.
    pub logger: Option<LoggerBody>,
    /// Where metrics are written.
    pub metrics_path: Option<PathBuf>,
}

impl VmConfig {
    /// Without devices, and with the log and the metrics as they are.
    #[must_use]
    pub fn new(boot: BootConfig, machine: MachineConfig) -> Self {
        Self {
            boot,
            machine,
            peripherals: Peripherals::default(),
            logger: None,
            metrics_path: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_count_holds_its_bounds() {
        for (count, valid) in [
            (0, false),
            (1, true),
            (32, true),
            (33, false),
            (1000, false),
        ] {
            assert_eq!(VcpuCount::new(count).is_ok(), valid, "{count}");
        }
        // 256 would be 0 as a byte.
        assert!(VcpuCount::new(256).is_err() && VcpuCount::new(257).is_err());
    }

    #[test]
    fn tsc_rate_holds_its_bounds() {
        for (khz, valid) in [
            (0, false),
            (1, true),
            (4_294_967_295, true),
            (4_294_967_296, false),
            (u64::MAX, false),
        ] {
            assert_eq!(TscRate::khz(khz).is_ok(), valid, "{khz}");
        }
        let message = TscRate::khz(0).expect_err("no rate").to_string();
        assert!(message.contains("choose 1 to 4294967295"), "{message}");
    }

    #[test]
    fn tsc_rate_leaves_open_what_is_not_said() {
        let rate = |khz, allow_catch_up| TscRate {
            khz: Khz::new(khz),
            allow_catch_up,
        };
        assert_eq!(rate(0, false).or(rate(5, true)), rate(5, true));
        assert_eq!(rate(7, true).or(rate(5, false)), rate(7, true));
    }

    #[test]
    fn module_argument_splits_at_the_first_comma() {
        let module = Module::from_argument("disk.img,first,second word");
        assert_eq!(module.path, Path::new("disk.img"));
        assert_eq!(module.command, "first,second word");
        assert_eq!(Module::from_argument("disk.img").command, "disk.img");
    }
}
