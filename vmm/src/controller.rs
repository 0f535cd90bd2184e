//! Who applies the API's requests: one at a time, on the main thread.
//!
//! Before the start it holds the configuration, in the same types that a configuration file is read
//! into; afterwards the running machine. Which requests are taken before the start and which after it is
//! Firecracker's rule.

use std::sync::Arc;
use std::time::Instant;

use devices::i8042::KeyboardError;
use devices::virtio::balloon::{Command, PAGES_PER_MIB};
use hypervisor::guest_clock::VmClock;
use hypervisor::{Hypervisor, MissingFeature};
use serde::Serialize;
use serde_json::json;
use tsc::Khz;
use tsc::plan::TimePolicy;

use crate::api::balloon::{self, Balloon};
use crate::api::body::{
    Action, BootSource, LoggerBody, MachinePatch, MetricsBody, TimeBody, VmState, policy_name,
};
use crate::api::drive::{Drive, DrivePatch, Entropy, RateLimiter};
use crate::api::http::{Response, Status};
use crate::api::network::{NetworkInterface, NetworkInterfacePatch};
use crate::api::openapi::DOCUMENT;
use crate::api::pmem::{Pmem, PmemPatch};
use crate::api::request::{ApiRequest, Fault};
use crate::api::vsock::Vsock;
use crate::api::{COMPATIBLE_VERSION, server};
use crate::config::{
    BootConfig, MachineConfig, Peripherals, TscDomain, TscRate, VmConfig, Watcher,
};
use crate::doctor;
use crate::error::one_line;
use crate::guest_rate::GuestRate;
use crate::logging::{Change, log};
use crate::machine::{self, BalloonState, MachineError, Running};
use crate::metrics::{Metrics, MetricsError, prometheus};
use crate::mmds::{Metadata, MetadataError};
use crate::time_report::{Kept, TimeReport};

/// A running guest, as far as requests have to do with it.
pub(crate) trait Instance {
    /// Brings the vCPUs to a halt.
    fn pause(&mut self, policy: TimePolicy);
    /// Lets them go on, with their clocks as `policy` wants; on an error they still wait.
    fn resume(&mut self, policy: TimePolicy) -> Result<(), Fault>;
    /// Types Ctrl+Alt+Del.
    fn ctrl_alt_del(&self) -> Result<(), KeyboardError>;
    /// Changes a disk.
    fn change_drive(&mut self, patch: &DrivePatch) -> Result<(), Fault>;
    /// Changes a persistent memory.
    fn change_pmem(&self, patch: &PmemPatch) -> Result<(), Fault>;
    /// Changes a network interface.
    fn change_interface(&mut self, patch: &NetworkInterfacePatch) -> Result<(), Fault>;
    /// Changes the balloon to what is wanted of it.
    fn change_balloon(&self, balloon: &Balloon);
    /// Has the balloon's driver name free pages, or use them again.
    fn hint(&self, command: Command);
    /// What is known of the balloon, if there is one.
    fn balloon(&self) -> Option<BalloonState>;
    /// The rate of the guest's TSC and how it is kept, and the host's own.
    fn tsc_rate(&self) -> (GuestRate, Option<Khz>);
    /// What became of its clocks.
    fn kept(&self) -> Kept;
}

impl<H: Hypervisor> Instance for Running<H>
where
    H::Vm: VmClock,
{
    fn pause(&mut self, policy: TimePolicy) {
        Running::pause(self, policy);
    }

    fn resume(&mut self, policy: TimePolicy) -> Result<(), Fault> {
        Running::resume(self, policy).map_err(|error| {
            Fault::new(format!(
                "the microVM stays paused, since its clocks cannot be kept as policy {} wants: {}; \
                 PUT /time with another policy, then resume",
                policy_name(policy),
                one_line(&error)
            ))
        })
    }

    fn change_drive(&mut self, patch: &DrivePatch) -> Result<(), Fault> {
        Running::change_drive(self, patch)
    }

    fn change_pmem(&self, patch: &PmemPatch) -> Result<(), Fault> {
        Running::change_pmem(self, patch)
    }

    fn change_interface(&mut self, patch: &NetworkInterfacePatch) -> Result<(), Fault> {
        Running::change_interface(self, patch)
    }

    fn change_balloon(&self, balloon: &Balloon) {
        Running::change_balloon(self, balloon);
    }

    fn hint(&self, command: Command) {
        Running::hint(self, command);
    }

    fn balloon(&self) -> Option<BalloonState> {
        Running::balloon(self)
    }

    fn kept(&self) -> Kept {
        Running::kept(self)
    }

    fn ctrl_alt_del(&self) -> Result<(), KeyboardError> {
        Running::ctrl_alt_del(self)
    }

    fn tsc_rate(&self) -> (GuestRate, Option<Khz>) {
        Running::tsc_rate(self)
    }
}

enum Phase {
    NotStarted,
    Running(Box<dyn Instance>),
    Paused(Box<dyn Instance>),
}

/// Puts a machine together from its configuration and lets it go.
pub(crate) type Start<'a> = &'a mut dyn FnMut(&VmConfig) -> Result<Box<dyn Instance>, Fault>;

/// What a request leads to.
type Answer = Result<Response, Fault>;

/// The control plane's state.
pub(crate) struct Controller {
    id: String,
    boot: Option<BootConfig>,
    machine: MachineConfig,
    peripherals: Peripherals,
    logger: Option<LoggerBody>,
    metadata: Arc<Metadata>,
    metrics: Arc<Metrics>,
    /// What the host lacks.
    missing: Vec<MissingFeature>,
    policy: TimePolicy,
    /// What the command line says of the TSC's rate, where a configuration says nothing.
    tsc_flags: TscRate,
    /// What it says of where vCPU threads run.
    tsc_domain_flag: Option<TscDomain>,
    /// Whether it wants virtio devices' places on each kernel's command line.
    virtio_mmio_args_flag: bool,
    /// Measures whether this host's offsets have an effect, or says why not.
    measure_offsets: fn() -> Result<(), String>,
    /// Looks whether this host gives us a tap.
    check_tap: fn(&NetworkInterface) -> Result<(), MachineError>,
    phase: Phase,
}

impl Controller {
    /// Before the start, with the configuration that there is when nothing is said.
    pub(crate) fn new(id: &str, metadata: Arc<Metadata>, metrics: Arc<Metrics>) -> Self {
        Self {
            id: id.to_owned(),
            boot: None,
            machine: MachineConfig::default(),
            peripherals: Peripherals::default(),
            logger: None,
            metadata,
            metrics,
            missing: Vec::new(),
            policy: TimePolicy::ADVANCE,
            tsc_flags: TscRate::default(),
            tsc_domain_flag: None,
            virtio_mmio_args_flag: false,
            measure_offsets: doctor::offsets_take_effect,
            check_tap: machine::check_tap,
            phase: Phase::NotStarted,
        }
    }

    /// What the time report tells as lacking.
    pub(crate) fn set_missing(&mut self, missing: &[MissingFeature]) {
        self.missing = missing.to_vec();
    }

    /// Adds what a machine has, or has not, by flags of the command line.
    pub(crate) fn set_flags(&mut self, boot_timer: bool, watcher: Watcher) {
        self.machine.boot_timer = boot_timer;
        self.machine.watcher = watcher;
    }

    /// Adds what the command line says of the TSC's rate.
    pub(crate) fn set_tsc_rate(&mut self, rate: TscRate) {
        self.tsc_flags = rate;
        self.machine.tsc = rate;
    }

    /// Adds what the command line says of where vCPU threads run.
    pub(crate) fn set_tsc_domain(&mut self, domain: Option<TscDomain>) {
        self.tsc_domain_flag = domain;
        self.machine.tsc_domain = domain;
    }

    /// Has virtio devices' places told on each kernel's command line.
    pub(crate) fn set_virtio_mmio_args(&mut self, asked: bool) {
        self.virtio_mmio_args_flag = asked;
    }

    /// Takes a configuration file's settings over.
    ///
    /// # Errors
    /// The setting that cannot be had.
    pub(crate) fn configure(&mut self, config: VmConfig) -> Result<(), Fault> {
        let MachineConfig {
            boot_timer,
            watcher,
            ..
        } = self.machine;
        let tsc = config.machine.tsc.or(self.tsc_flags);
        tsc.check().map_err(|error| Fault::new(error.to_string()))?;
        self.boot = Some(self.with_flags(config.boot));
        self.peripherals = config.peripherals;
        self.machine = MachineConfig {
            boot_timer,
            tsc,
            tsc_domain: config.machine.tsc_domain.or(self.tsc_domain_flag),
            watcher,
            ..config.machine
        };
        if let Some(logger) = config.logger {
            self.put_logger(logger)?;
        }
        if let Some(metrics_path) = config.metrics_path {
            self.put_metrics(&MetricsBody { metrics_path })?;
        }
        Ok(())
    }

    /// Applies a request and answers it. `start` is called for `InstanceStart` alone.
    pub(crate) fn apply(&mut self, request: ApiRequest, start: Start<'_>) -> Response {
        self.answer(request, start)
            .unwrap_or_else(|fault| server::fault(&fault))
    }

    fn answer(&mut self, request: ApiRequest, start: Start<'_>) -> Answer {
        match request {
            ApiRequest::GetInstance => Ok(json(&json!({
                "app_name": "Keeptime",
                "id": self.id,
                "state": self.state(),
                "vmm_version": COMPATIBLE_VERSION,
            }))),
            ApiRequest::GetVersion => Ok(json(&json!({
                "firecracker_version": COMPATIBLE_VERSION,
            }))),
            ApiRequest::GetVmConfig => Ok(json(&self.vm_config())),
            ApiRequest::GetMachineConfig => Ok(json(&machine_config(&self.machine))),
            ApiRequest::GetMmds => Ok(match self.metadata.get() {
                Some(metadata) => json(&*metadata),
                None => json(&json!({})),
            }),
            ApiRequest::GetTime => Ok(json(&self.time_report())),
            ApiRequest::GetDocument => Ok(Response::json(DOCUMENT.into())),
            ApiRequest::GetMetrics => Ok(Response {
                status: Status::Ok,
                content_type: prometheus::CONTENT_TYPE,
                body: self.metrics.prometheus().into_bytes(),
            }),
            ApiRequest::Act(Action::InstanceStart) => done(self.start_now(start)),
            ApiRequest::Act(Action::SendCtrlAltDel) => {
                let keys = self.started()?.ctrl_alt_del();
                done(keys.map_err(|error| Fault::new(error.to_string())))
            }
            ApiRequest::Act(Action::FlushMetrics) => {
                self.started()?;
                match self.metrics.flush() {
                    // Of nothing that is wanted, as Firecracker has it.
                    Err(MetricsError::NoFile) => done(Ok(())),
                    flushed => done(flushed.map_err(|error| Fault::new(one_line(&error)))),
                }
            }
            ApiRequest::PutBootSource(body) => done(self.put_boot_source(body)),
            ApiRequest::PutMachineConfig(body) => {
                // Of a whole configuration that says nothing of these, the command line decides.
                let (tsc, tsc_domain) = (self.tsc_flags, self.tsc_domain_flag);
                done(self.change_machine(
                    MachineConfig {
                        tsc,
                        tsc_domain,
                        ..self.machine
                    },
                    body.into(),
                ))
            }
            ApiRequest::PatchMachineConfig(body) => done(self.change_machine(self.machine, body)),
            ApiRequest::PutLogger(body) => {
                self.not_started()?;
                done(self.put_logger(body))
            }
            ApiRequest::PutMetrics(body) => {
                self.not_started()?;
                done(self.put_metrics(&body))
            }
            ApiRequest::PutMmds(data) => {
                let put = self.metadata.put(data);
                done(put.map_err(no_metadata))
            }
            ApiRequest::PatchMmds(patch) => {
                let patched = self.metadata.patch(patch);
                done(patched.map_err(no_metadata))
            }
            ApiRequest::PutMmdsConfig(body) => {
                self.not_started()?;
                done(self.peripherals.put_mmds(body))
            }
            ApiRequest::PutDrive(body) => done(self.put_drive(*body)),
            ApiRequest::PatchDrive(body) => done(self.patch_drive(&body)),
            ApiRequest::PutPmem(body) => done(self.put_pmem(body)),
            ApiRequest::PatchPmem(body) => done(self.patch_pmem(&body)),
            ApiRequest::PutNetworkInterface(body) => done(self.put_interface(body)),
            ApiRequest::PatchNetworkInterface(body) => done(self.patch_interface(&body)),
            ApiRequest::PutVsock(body) => done(self.put_vsock(body)),
            ApiRequest::GetBalloon => Ok(json(self.configured_balloon()?)),
            ApiRequest::PutBalloon(body) => done(self.put_balloon(body)),
            ApiRequest::PatchBalloon(body) => done(self.patch_balloon(body.amount_mib)),
            ApiRequest::GetBalloonStatistics => self.balloon_statistics(),
            ApiRequest::GetBalloonHinting => self.balloon_hinting(),
            ApiRequest::StartBalloonHinting(body) => done(self.hint(Command::Start {
                acknowledge_on_stop: body.acknowledge_on_stop.unwrap_or(true),
            })),
            ApiRequest::StopBalloonHinting => done(self.hint(Command::Stop)),
            ApiRequest::PatchBalloonStatistics(body) => {
                done(self.patch_balloon_statistics(body.stats_polling_interval_s))
            }
            ApiRequest::PutEntropy(body) => done(self.put_entropy(body)),
            ApiRequest::PutTime(body) => done(self.put_time(body)),
            ApiRequest::PatchVm(state) => self.patch_vm(state),
            ApiRequest::Absent(missing) => Err(missing.fault()),
        }
    }

    fn time_report(&self) -> TimeReport {
        TimeReport::new(
            self.machine.tsc.khz,
            self.instance().map(Instance::tsc_rate),
            &self.missing,
            self.policy,
            self.instance().map(Instance::kept).unwrap_or_default(),
        )
    }

    /// What is known of the time of the guest, if there is one.
    pub(crate) fn guests_time(&self) -> Option<TimeReport> {
        self.instance().map(|_| self.time_report())
    }

    fn state(&self) -> &'static str {
        match self.phase {
            Phase::NotStarted => "Not started",
            Phase::Running(_) => "Running",
            Phase::Paused(_) => "Paused",
        }
    }

    fn instance(&self) -> Option<&dyn Instance> {
        match &self.phase {
            Phase::NotStarted => None,
            Phase::Running(instance) | Phase::Paused(instance) => Some(&**instance),
        }
    }

    fn started(&self) -> Result<&dyn Instance, Fault> {
        self.instance()
            .ok_or_else(|| Fault::new("the microVM has not started: this is for later"))
    }

    fn not_started(&self) -> Result<(), Fault> {
        match self.phase {
            Phase::NotStarted => Ok(()),
            Phase::Running(_) | Phase::Paused(_) => Err(Fault::new(
                "the microVM has started: this can be changed before the start only",
            )),
        }
    }

    fn put_boot_source(&mut self, body: BootSource) -> Result<(), Fault> {
        self.not_started()?;
        let boot = BootConfig::from(body);
        machine::check_files(&boot).map_err(|error| Fault::new(one_line(&error)))?;
        self.boot = Some(self.with_flags(boot));
        Ok(())
    }

    /// With what the command line adds.
    fn with_flags(&self, boot: BootConfig) -> BootConfig {
        BootConfig {
            virtio_mmio_args: boot.virtio_mmio_args || self.virtio_mmio_args_flag,
            ..boot
        }
    }

    fn change_machine(&mut self, machine: MachineConfig, patch: MachinePatch) -> Result<(), Fault> {
        self.not_started()?;
        let machine = patch.apply_to(machine)?;
        if let Some(balloon) = &self.peripherals.balloon {
            balloon.fits(machine.memory)?;
        }
        self.machine = machine;
        Ok(())
    }

    fn put_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        self.not_started()?;
        machine::check_image(&drive).map_err(|error| Fault::new(one_line(&error)))?;
        self.peripherals.put_drive(drive)
    }

    fn put_pmem(&mut self, pmem: Pmem) -> Result<(), Fault> {
        self.not_started()?;
        machine::check_pmem(&pmem).map_err(|error| Fault::new(one_line(&error)))?;
        self.peripherals.put_pmem(pmem)
    }

    /// Changes a persistent memory of a running or paused guest.
    fn patch_pmem(&mut self, patch: &PmemPatch) -> Result<(), Fault> {
        self.started()?;
        let pmem = self.peripherals.pmem_mut(&patch.id);
        let pmem = pmem.ok_or_else(|| machine::no_pmem(&patch.id))?;
        if let Phase::Running(instance) | Phase::Paused(instance) = &self.phase {
            instance.change_pmem(patch)?;
        }
        RateLimiter::change(&mut pmem.rate_limiter, patch.rate_limiter);
        Ok(())
    }

    fn put_interface(&mut self, interface: NetworkInterface) -> Result<(), Fault> {
        self.not_started()?;
        // First, since it asks for no tap twice.
        let mut peripherals = self.peripherals.clone();
        peripherals.put_interface(interface.clone())?;
        (self.check_tap)(&interface).map_err(|error| Fault::new(one_line(&error)))?;
        self.peripherals = peripherals;
        Ok(())
    }

    /// Changes a network interface of a running or paused guest.
    fn patch_interface(&mut self, patch: &NetworkInterfacePatch) -> Result<(), Fault> {
        self.started()?;
        let id = &patch.iface_id;
        let interface = self.peripherals.interface_mut(id);
        let interface = interface.ok_or_else(|| machine::no_interface(id))?;
        if let Phase::Running(instance) | Phase::Paused(instance) = &mut self.phase {
            instance.change_interface(patch)?;
        }
        RateLimiter::change(&mut interface.rx_rate_limiter, patch.rx_rate_limiter);
        RateLimiter::change(&mut interface.tx_rate_limiter, patch.tx_rate_limiter);
        Ok(())
    }

    fn put_vsock(&mut self, vsock: Vsock) -> Result<(), Fault> {
        self.not_started()?;
        machine::check_vsock(&vsock).map_err(|error| Fault::new(one_line(&error)))?;
        self.peripherals.vsock = Some(vsock);
        Ok(())
    }

    fn put_balloon(&mut self, balloon: Balloon) -> Result<(), Fault> {
        self.not_started()?;
        balloon.fits(self.machine.memory)?;
        self.peripherals.balloon = Some(balloon);
        Ok(())
    }

    fn configured_balloon(&self) -> Result<&Balloon, Fault> {
        let balloon = self.peripherals.balloon.as_ref();
        balloon.ok_or_else(|| Fault::new("there is no balloon: PUT /balloon before the start"))
    }

    /// Changes the balloon of a running or paused guest, where that is allowed.
    fn change_balloon(&mut self, balloon: Balloon) -> Result<(), Fault> {
        self.started()?.change_balloon(&balloon);
        self.peripherals.balloon = Some(balloon);
        Ok(())
    }

    fn patch_balloon(&mut self, amount_mib: u32) -> Result<(), Fault> {
        self.started()?;
        let balloon = Balloon {
            amount_mib,
            ..*self.configured_balloon()?
        };
        balloon.fits(self.machine.memory)?;
        self.change_balloon(balloon)
    }

    /// The driver learns at its begin whether there are statistics.
    fn patch_balloon_statistics(&mut self, seconds: u16) -> Result<(), Fault> {
        self.started()?;
        let known = *self.configured_balloon()?;
        let (before, after) = (known.interval_s() > 0, seconds > 0);
        if before != after {
            return Err(Fault::new(format!(
                "stats_polling_interval_s: statistics can be switched on or off before the start only, and are {}",
                if before { "on" } else { "off" }
            )));
        }
        self.change_balloon(Balloon {
            stats_polling_interval_s: Some(seconds),
            ..known
        })
    }

    fn balloon_statistics(&self) -> Answer {
        let instance = self.started()?;
        let wanted = self.configured_balloon()?;
        if wanted.interval_s() == 0 {
            return Err(Fault::new(
                "statistics are off: give stats_polling_interval_s with PUT /balloon, before the start",
            ));
        }
        let state = instance.balloon().unwrap_or_default();
        let mut told = json!({
            "target_pages": wanted.pages(),
            "actual_pages": state.actual,
            "target_mib": wanted.amount_mib,
            "actual_mib": state.actual / PAGES_PER_MIB,
        });
        for (name, value) in balloon::STATISTICS.iter().zip(state.statistics) {
            if let Some(value) = value {
                told[name] = json!(value);
            }
        }
        Ok(json(&told))
    }

    /// A started guest whose balloon has hinting.
    fn hinting(&self) -> Result<&dyn Instance, Fault> {
        let instance = self.started()?;
        if self.configured_balloon()?.free_page_hinting != Some(true) {
            return Err(Fault::new(
                "free page hinting is off: give free_page_hinting with PUT /balloon, before the start",
            ));
        }
        Ok(instance)
    }

    fn hint(&self, command: Command) -> Result<(), Fault> {
        self.hinting()?.hint(command);
        Ok(())
    }

    fn balloon_hinting(&self) -> Answer {
        let state = self.hinting()?.balloon().unwrap_or_default();
        Ok(json(&json!({
            "host_cmd": state.hinting_command,
            "guest_cmd": state.hinting_said,
        })))
    }

    fn put_entropy(&mut self, entropy: Entropy) -> Result<(), Fault> {
        self.not_started()?;
        self.peripherals.entropy = Some(entropy);
        Ok(())
    }

    /// Changes a disk of a running or paused guest.
    fn patch_drive(&mut self, patch: &DrivePatch) -> Result<(), Fault> {
        self.started()?;
        let id = &patch.drive_id;
        let drive = self.peripherals.drive_mut(id);
        let drive = drive.ok_or_else(|| machine::no_drive(id))?;
        if let Phase::Running(instance) | Phase::Paused(instance) = &mut self.phase {
            instance.change_drive(patch)?;
        }
        if let Some(path) = &patch.path_on_host {
            drive.path_on_host = Some(path.clone());
        }
        RateLimiter::change(&mut drive.rate_limiter, patch.rate_limiter);
        Ok(())
    }

    fn put_logger(&mut self, body: LoggerBody) -> Result<(), Fault> {
        log()
            .change(&Change {
                path: body.log_path.as_deref(),
                level: body.level,
                show_level: body.show_level,
                show_origin: body.show_log_origin,
                module: body.module.as_deref(),
            })
            .map_err(|error| Fault::new(one_line(&error)))?;
        self.logger = Some(body);
        Ok(())
    }

    fn put_metrics(&mut self, body: &MetricsBody) -> Result<(), Fault> {
        self.metrics
            .write_to(&body.metrics_path)
            .map_err(|error| Fault::new(one_line(&error)))
    }

    /// Starts the guest.
    ///
    /// # Errors
    /// Why it does not start; it can be tried again.
    pub(crate) fn start_now(&mut self, start: Start<'_>) -> Result<(), Fault> {
        self.not_started()?;
        let boot = self
            .boot
            .clone()
            .ok_or_else(|| Fault::new("there is no kernel to start: PUT /boot-source first"))?;
        let mut config = VmConfig::new(boot, self.machine);
        config.peripherals = self.peripherals.clone();
        self.phase = Phase::Running(start(&config)?);
        Ok(())
    }

    fn patch_vm(&mut self, state: VmState) -> Answer {
        self.started()?;
        let phase = std::mem::replace(&mut self.phase, Phase::NotStarted);
        let begin = Instant::now();
        let microseconds = || u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.phase = match (state, phase) {
            (VmState::Paused, Phase::Running(mut instance)) => {
                instance.pause(self.policy);
                self.metrics.pause_us.set(microseconds());
                tracing::info!("the microVM is paused");
                Phase::Paused(instance)
            }
            (VmState::Resumed, Phase::Paused(mut instance)) => {
                if let Err(fault) = instance.resume(self.policy) {
                    self.phase = Phase::Paused(instance);
                    return Err(fault);
                }
                self.metrics.resume_us.set(microseconds());
                tracing::info!("the microVM goes on");
                Phase::Running(instance)
            }
            // It is so already.
            (_, phase) => phase,
        };
        done(Ok(()))
    }

    /// Takes a policy for pauses, the present one included. Under all but `advance` without a cap TSC offsets are
    /// written, and there are KVMs that accept them and do nothing: it is taken where a guest was seen to follow.
    fn put_time(&mut self, body: TimeBody) -> Result<(), Fault> {
        if body.policy.may_set_clocks() && !self.policy.may_set_clocks() {
            (self.measure_offsets)().map_err(|reason| {
                Fault::new(format!(
                    "policy: a guest's clocks cannot be set on this host: {reason}; keeptime doctor \
                     tells more"
                ))
            })?;
        }
        self.policy = body.policy;
        Ok(())
    }

    fn vm_config(&self) -> serde_json::Value {
        let mut config = json!({
            "machine-config": machine_config(&self.machine),
            "drives": self.peripherals.drives(),
            "network-interfaces": self.peripherals.interfaces(),
            "pmem": self.peripherals.pmem(),
        });
        if let Some(boot) = &self.boot {
            config["boot-source"] = json!(BootSource::from(boot));
        }
        if let Some(mmds) = self.peripherals.mmds() {
            config["mmds-config"] = json!(mmds);
        }
        if let Some(vsock) = &self.peripherals.vsock {
            config["vsock"] = json!(vsock);
        }
        if let Some(balloon) = &self.peripherals.balloon {
            config["balloon"] = json!(balloon);
        }
        if let Some(entropy) = &self.peripherals.entropy {
            config["entropy"] = json!(entropy);
        }
        if let Some(logger) = &self.logger {
            config["logger"] = json!(logger);
        }
        if let Some(path) = self.metrics.path() {
            // A path of the command line need not be text.
            config["metrics"] = json!({ "metrics_path": path.to_string_lossy() });
        }
        config
    }
}

/// Why metadata are not taken.
fn no_metadata(error: MetadataError) -> Fault {
    let message = error.to_string();
    match error {
        MetadataError::TooLarge { .. } => Fault::too_large(message),
        MetadataError::Nothing => Fault::new(message),
    }
}

fn done(result: Result<(), Fault>) -> Answer {
    result.map(|()| Response::no_content())
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::json(body),
        // Only a path that is no text cannot be told in JSON.
        Err(error) => server::fault(&Fault::new(format!("this cannot be told in JSON: {error}"))),
    }
}

fn machine_config(machine: &MachineConfig) -> serde_json::Value {
    let mut config = json!({
        "vcpu_count": machine.vcpus.get(),
        "mem_size_mib": machine.memory.mib(),
        "smt": false,
        "track_dirty_pages": false,
        "huge_pages": "None",
    });
    // Other people's clients may insist on the members that they know: ours are there when they were
    // asked for.
    if let Some(khz) = machine.tsc.khz {
        config["tsc_khz"] = json!(khz.get());
    }
    if machine.tsc.allow_catch_up {
        config["allow_tsc_catchup"] = json!(true);
    }
    if let Some(domain) = machine.tsc_domain {
        config["tsc_domain"] = json!(domain);
    }
    config
}

#[cfg(test)]
mod tests;
