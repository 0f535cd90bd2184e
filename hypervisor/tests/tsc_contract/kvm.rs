//! KVM of this host as a subject of the contract.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use arch::boot::{self, BootSource};
use arch::memory::{MemorySize, ram_regions};
use arch::regs::GeneralRegisters;
use hypervisor::contract::{Fixture, Probe, ProbeError};
use hypervisor::kvm::{Kvm, KvmVcpu, KvmVm};
use hypervisor::tsc_control::{DefaultTscRate, OffsetInterface, Written};
use hypervisor::{Direction, Exit, Hypervisor, InterruptControllers, Vcpu, Vm, host};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use tsc::measure::{GuestSample, HostSample};
use tsc::{GuestTsc, Khz, Nanos, VcpuId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest;

/// How long a guest may take to answer in its mailbox, on the slowest of emulated hosts.
const PATIENCE: Duration = Duration::from_secs(20);

/// Builds VMs on this host.
pub(crate) struct KvmFixture {
    pub(crate) kvm: Kvm,
    /// How offsets are to be written; as the kernel can if `None`.
    pub(crate) interface: Option<OffsetInterface>,
    pub(crate) cpus: Cpus,
}

/// The CPUs that this process may use.
#[derive(Clone, Copy)]
pub(crate) struct Cpus {
    home: usize,
    other: Option<usize>,
}

impl Cpus {
    pub(crate) fn available() -> Result<Self, ProbeError> {
        let set = sched_getaffinity(None).map_err(ProbeError::new)?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
        let home = cpus
            .next()
            .ok_or_else(|| ProbeError::new("no CPU to run on"))?;
        Ok(Self {
            home,
            other: cpus.next(),
        })
    }
}

/// Binds this thread to `cpu`.
fn bind(cpu: usize) -> Result<(), ProbeError> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(ProbeError::new)
}

fn sample() -> HostSample {
    let now = clock_gettime(ClockId::MonotonicRaw);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    HostSample {
        monotonic: Nanos::new(part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)),
        tsc: host::read_tsc(),
    }
}

impl Fixture for KvmFixture {
    type Probe = KvmProbe;

    fn build(&self, vcpus: u32, default_rate: Option<Khz>) -> Result<KvmProbe, ProbeError> {
        bind(self.cpus.home)?;
        let size = MemorySize::from_mib(2).map_err(ProbeError::new)?;
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&ram_regions(size)).map_err(ProbeError::new)?;
        let loaded = boot::load(
            &memory,
            BootSource {
                kernel: &mut Cursor::new(guest::image()),
                modules: Vec::new(),
                cmdline: "",
            },
        )
        .map_err(ProbeError::new)?;
        let vm = self
            .kvm
            .create_vm(memory.clone(), Vec::new(), InterruptControllers::None)?;
        if let Some(rate) = default_rate {
            let _: Written<Khz> = vm.ask_default_rate(rate)?;
        }
        let mut probe = KvmProbe {
            vm,
            memory,
            vcpus: HashMap::new(),
            cpus: self.cpus,
            requests: 0,
        };
        let cpuid = self.kvm.supported_cpuid()?;
        for id in 0..vcpus {
            let mut vcpu = probe.vm.create_vcpu(VcpuId::new(id))?;
            vcpu.set_cpuid(&cpuid)?;
            let current = vcpu.system_registers()?;
            vcpu.set_system_registers(&loaded.system_registers(current))?;
            vcpu.set_general_registers(&loaded.registers)?;
            if let Some(interface) = self.interface {
                vcpu.use_offset_interface(interface);
            }
            probe.vcpus.insert(
                id,
                Guest {
                    vcpu,
                    registers: loaded.registers,
                },
            );
        }
        Ok(probe)
    }

    fn pass_for_all(&self, _probes: &mut [&mut KvmProbe], time: Nanos) {
        thread::sleep(Duration::from_nanos(time.get()));
    }
}

struct Guest {
    vcpu: KvmVcpu,
    /// What the guest starts with.
    registers: GeneralRegisters,
}

/// A VM of this host.
pub(crate) struct KvmProbe {
    vm: KvmVm,
    memory: GuestMemoryMmap,
    vcpus: HashMap<u32, Guest>,
    cpus: Cpus,
    requests: u32,
}

impl KvmProbe {
    fn guest(&mut self, vcpu: VcpuId) -> Result<&mut Guest, ProbeError> {
        self.vcpus
            .get_mut(&vcpu.get())
            .ok_or_else(|| ProbeError::new(format!("{vcpu} was not built")))
    }

    fn load<T: vm_memory::AtomicAccess>(&self, offset: u64) -> Result<T, ProbeError> {
        self.memory
            .load(GuestAddress(guest::MAILBOX + offset), Ordering::Acquire)
            .map_err(ProbeError::new)
    }

    fn request(&self, request: u32) -> Result<(), ProbeError> {
        self.memory
            .store(request, GuestAddress(guest::MAILBOX), Ordering::Release)
            .map_err(ProbeError::new)
    }

    /// One reading through the mailbox: the guest sees the request after `before`, and answers before
    /// `after`, without an exit in between.
    fn ask(&mut self) -> Result<GuestSample, ProbeError> {
        self.requests += 1;
        let number = self.requests;
        let before = sample();
        self.request(number)?;
        let asked = Instant::now();
        while self.load::<u32>(8)? != number {
            if asked.elapsed() > PATIENCE {
                return Err(ProbeError::new("the guest does not answer in its mailbox"));
            }
            std::hint::spin_loop();
        }
        let after = sample();
        Ok(GuestSample {
            before,
            guest: GuestTsc::new(self.load(16)?),
            after,
        })
    }
}

fn unexpected(exit: &Exit<'_>) -> ProbeError {
    ProbeError::new(format!("the guest left with {exit:?}"))
}

/// Runs the guest until it has given `count` readings.
fn read(vcpu: &mut KvmVcpu, count: usize) -> Result<Vec<GuestSample>, ProbeError> {
    let mut samples = Vec::with_capacity(count);
    let mut before = None;
    let mut low = None;
    while samples.len() < count {
        match vcpu.run()? {
            Exit::Port(access) if access.port == guest::PORT => match access.direction {
                Direction::In(data) => {
                    data.fill(0);
                    before = Some(sample());
                }
                Direction::Out(data) => {
                    let after = sample();
                    low = <[u8; 4]>::try_from(data)
                        .ok()
                        .zip(before.take())
                        .map(|(bytes, before)| (u32::from_le_bytes(bytes), before, after));
                }
            },
            Exit::Port(access) if access.port == guest::PORT + 4 => {
                let Direction::Out(data) = access.direction else {
                    continue;
                };
                let high = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
                // A guest that was interrupted in the midst of a reading gives half of one.
                if let (Ok(high), Some((low, before, after))) = (high, low.take()) {
                    samples.push(GuestSample {
                        before,
                        guest: GuestTsc::new(u64::from(high) << 32 | u64::from(low)),
                        after,
                    });
                }
            }
            Exit::Interrupted => {}
            exit => return Err(unexpected(&exit)),
        }
    }
    Ok(samples)
}

/// Runs the guest until it halts.
fn answer(vcpu: &mut KvmVcpu) -> Result<(), ProbeError> {
    loop {
        match vcpu.run()? {
            Exit::Halt => return Ok(()),
            Exit::Interrupted => {}
            exit => return Err(unexpected(&exit)),
        }
    }
}

impl Probe for KvmProbe {
    type Control = KvmVcpu;

    fn control(&mut self, vcpu: VcpuId) -> Result<&mut KvmVcpu, ProbeError> {
        Ok(&mut self.guest(vcpu)?.vcpu)
    }

    fn host_now(&mut self) -> HostSample {
        sample()
    }

    fn readings(&mut self, vcpu: VcpuId, count: usize) -> Result<Vec<GuestSample>, ProbeError> {
        read(&mut self.guest(vcpu)?.vcpu, count)
    }

    fn readings_in_one_entry(
        &mut self,
        vcpu: VcpuId,
        count: usize,
        spacing: Nanos,
    ) -> Result<Vec<GuestSample>, ProbeError> {
        let cpus = self.cpus;
        let Some(other) = cpus.other else {
            return Ok(Vec::new());
        };
        let Some(Guest {
            vcpu: mut answering,
            registers,
        }) = self.vcpus.remove(&vcpu.get())
        else {
            return Err(ProbeError::new(format!("{vcpu} was not built")));
        };
        answering.set_general_registers(&GeneralRegisters {
            rip: guest::ANSWERING_ENTRY,
            ..registers
        })?;
        self.request(self.requests)?;
        let (samples, mut answering) = thread::scope(|scope| {
            let running = scope.spawn(move || {
                let ended = bind(cpus.home).and_then(|()| answer(&mut answering));
                (answering, ended)
            });
            let samples = bind(other).and_then(|()| {
                // The first answer is late by the time that the guest takes to start.
                self.ask()?;
                let mut samples = Vec::with_capacity(count);
                let begun = Instant::now();
                let mut due = Duration::ZERO;
                while samples.len() < count {
                    samples.push(self.ask()?);
                    due += Duration::from_nanos(spacing.get());
                    while begun.elapsed() < due {
                        std::hint::spin_loop();
                    }
                }
                Ok(samples)
            });
            // In any case, or the guest would run for ever.
            let stopped = self.request(guest::STOP);
            let (answering, ended) = running.join().expect("the vCPU's thread does not panic");
            (
                samples.and_then(|s| stopped.and(ended).map(|()| s)),
                answering,
            )
        });
        bind(cpus.home)?;
        // Back to reading across entries.
        answering.set_general_registers(&registers)?;
        self.vcpus.insert(
            vcpu.get(),
            Guest {
                vcpu: answering,
                registers,
            },
        );
        samples
    }

    fn visit_another_cpu(&mut self, vcpu: VcpuId) -> Result<bool, ProbeError> {
        let cpus = self.cpus;
        let Some(other) = cpus.other else {
            return Ok(false);
        };
        bind(other)?;
        let there = self.readings(vcpu, 4);
        bind(cpus.home)?;
        there.map(|_| true)
    }

    fn pass(&mut self, time: Nanos) {
        thread::sleep(Duration::from_nanos(time.get()));
    }
}
