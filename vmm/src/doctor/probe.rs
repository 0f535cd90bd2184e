//! The probe guest on this host's KVM.
//!
//! A few instructions that read the TSC when asked, in either of two ways. *Across entries*: the
//! guest's IN lets the host note its clocks, then the guest reads, then its OUT does again; each
//! reading costs two exits, and KVM may push the guest's clock at each entry. *Within one entry*: a
//! thread on another CPU writes a number into the guest's memory and waits until the guest, which
//! never leaves, has answered with its TSC. That tells a rate that the hardware scales to from one
//! that KVM pushes the guest after.

use std::io::Cursor;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use arch::boot::{self, BootSource};
use arch::memory::MemorySize;
use hypervisor::contract::{Fixture, Probe, ProbeError};
use hypervisor::kvm::{Kvm, KvmVcpu, KvmVm};
use hypervisor::tsc_control::{DefaultTscRate, Written};
use hypervisor::{Direction, Exit, Hypervisor, InterruptControllers, Vcpu, Vm};
use tsc::measure::{GuestSample, HostSample};
use tsc::{CpuId, GuestTsc, Khz, Nanos, VcpuId};
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryMmap};

use super::cpus::{self, Counter};
use super::guest::{self, ANSWER, MAILBOX, PORT, READING, STOP};
use crate::host_clock;
use crate::memory;

/// How long a guest may take to answer, on the slowest of emulated hosts.
const PATIENCE: Duration = Duration::from_secs(20);
/// The guest's code at 1 MiB, its mailbox behind it, and the loader's tables below.
const MEMORY_MIB: u64 = 2;

/// Builds VMs with the probe guest, whose vCPUs run on `home`.
#[derive(Debug)]
pub(super) struct HostFixture<'a> {
    /// The hypervisor.
    pub(super) kvm: &'a Kvm,
    /// Where vCPUs run.
    pub(super) home: CpuId,
    /// Who asks them while they run: another CPU.
    pub(super) other: Option<CpuId>,
    /// Where else they can be sent: a CPU whose TSC agrees with that of `home`.
    pub(super) abroad: Option<CpuId>,
}

impl Fixture for HostFixture<'_> {
    type Probe = HostProbe;

    fn build(&self, vcpus: u32, default_rate: Option<Khz>) -> Result<HostProbe, ProbeError> {
        bind(self.home)?;
        let size = MemorySize::from_mib(MEMORY_MIB).map_err(ProbeError::new)?;
        let memory = memory::create(size).map_err(ProbeError::new)?;
        let source = BootSource {
            kernel: &mut Cursor::new(guest::image()),
            modules: Vec::new(),
            cmdline: "",
        };
        let loaded = boot::load(&memory, source).map_err(ProbeError::new)?;
        let vm = self
            .kvm
            .create_vm(memory.clone(), Vec::new(), InterruptControllers::None)?;
        if let Some(rate) = default_rate {
            // Whether it has an effect is what the readings tell.
            let _: Written<Khz> = vm.ask_default_rate(rate)?;
        }
        let cpuid = self.kvm.supported_cpuid()?;
        let vcpus = (0..vcpus)
            .map(|id| {
                let mut vcpu = vm.create_vcpu(VcpuId::new(id))?;
                vcpu.set_cpuid(&cpuid)?;
                let current = vcpu.system_registers()?;
                vcpu.set_system_registers(&loaded.system_registers(current))?;
                vcpu.set_general_registers(&loaded.registers)?;
                Ok(vcpu)
            })
            .collect::<Result<_, ProbeError>>()?;
        Ok(HostProbe {
            vcpus,
            memory,
            home: self.home,
            other: self.other,
            abroad: self.abroad,
            requests: 0,
            _vm: vm,
        })
    }
}

/// Keeps this thread on `cpu`.
fn bind(cpu: CpuId) -> Result<(), ProbeError> {
    Counter::on(cpu).map(|_| ()).map_err(ProbeError::new)
}

/// A VM with the probe guest.
#[derive(Debug)]
pub(super) struct HostProbe {
    vcpus: Vec<KvmVcpu>,
    memory: GuestMemoryMmap,
    home: CpuId,
    other: Option<CpuId>,
    abroad: Option<CpuId>,
    requests: u32,
    /// Dropped last: a VM outlives its vCPUs.
    _vm: KvmVm,
}

impl HostProbe {
    fn vcpu(&mut self, vcpu: VcpuId) -> Result<&mut KvmVcpu, ProbeError> {
        usize::try_from(vcpu.get())
            .ok()
            .and_then(|index| self.vcpus.get_mut(index))
            .ok_or_else(|| ProbeError::new(format!("{vcpu} was not built")))
    }
}

/// The guest's mailbox, from outside.
struct Mailbox<'a> {
    memory: &'a GuestMemoryMmap,
    requests: &'a mut u32,
}

impl Mailbox<'_> {
    fn load<T: AtomicAccess>(&self, offset: u64) -> Result<T, ProbeError> {
        let address = GuestAddress(MAILBOX + offset);
        // Acquire: a reading is the one that was stored before the answer's number.
        self.memory
            .load(address, Ordering::Acquire)
            .map_err(ProbeError::new)
    }

    fn store(&self, request: u32) -> Result<(), ProbeError> {
        self.memory
            .store(request, GuestAddress(MAILBOX), Ordering::Release)
            .map_err(ProbeError::new)
    }

    /// One reading: the guest sees the request after `before`, and has answered before `after`.
    fn ask(&mut self, is_gone: impl Fn() -> bool) -> Result<GuestSample, ProbeError> {
        *self.requests += 1;
        let before = host_clock::sample();
        self.store(*self.requests)?;
        let asked = Instant::now();
        while self.load::<u32>(ANSWER)? != *self.requests {
            if is_gone() || asked.elapsed() > PATIENCE {
                return Err(ProbeError::new("the probe guest does not answer"));
            }
            std::hint::spin_loop();
        }
        let after = host_clock::sample();
        Ok(GuestSample {
            before,
            guest: GuestTsc::new(self.load(READING)?),
            after,
        })
    }
}

/// What the guest is to do, as the answer to its IN.
#[derive(Clone, Copy)]
enum Order {
    Read = 0,
    Answer = 1,
}

/// Runs the guest until it has given `count` readings and asks what to do next.
fn read(vcpu: &mut impl Vcpu, count: usize) -> Result<Vec<GuestSample>, ProbeError> {
    let mut samples = Vec::with_capacity(count);
    let mut before = None;
    let mut low = None;
    loop {
        match vcpu.run()? {
            Exit::Port(access) if access.port == PORT => match access.direction {
                Direction::In(data) => {
                    data.fill(Order::Read as u8);
                    if samples.len() == count {
                        // The kernel completes this IN with the next run: it orders a reading, whose
                        // bracket then begins where it should, at the IN after it.
                        return Ok(samples);
                    }
                    before = Some(host_clock::sample());
                }
                Direction::Out(data) => {
                    let after = host_clock::sample();
                    low = half(data)
                        .zip(before.take())
                        .map(|(low, before)| (low, before, after));
                }
            },
            Exit::Port(access) if access.port == PORT + 4 => {
                if let Direction::Out(data) = access.direction
                    && let Some((high, (low, before, after))) = half(data).zip(low.take())
                {
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
}

fn half(data: &[u8]) -> Option<u32> {
    data.try_into().ok().map(u32::from_le_bytes)
}

fn unexpected(exit: &Exit<'_>) -> ProbeError {
    ProbeError::new(format!("the probe guest left with {exit:?}"))
}

/// Lets the guest answer in its mailbox until it is told to stop, and asks what to do next.
fn answer(vcpu: &mut impl Vcpu) -> Result<(), ProbeError> {
    let mut ordered = false;
    loop {
        match vcpu.run()? {
            Exit::Port(access) => {
                if let Direction::In(data) = access.direction
                    && access.port == PORT
                {
                    data.fill(0);
                    if ordered {
                        return Ok(());
                    }
                    if let Some(first) = data.first_mut() {
                        *first = Order::Answer as u8;
                    }
                    ordered = true;
                }
            }
            Exit::Interrupted => {}
            exit => return Err(unexpected(&exit)),
        }
    }
}

impl Probe for HostProbe {
    type Control = KvmVcpu;

    fn control(&mut self, vcpu: VcpuId) -> Result<&mut KvmVcpu, ProbeError> {
        self.vcpu(vcpu)
    }

    fn host_now(&mut self) -> HostSample {
        host_clock::sample()
    }

    fn readings(&mut self, vcpu: VcpuId, count: usize) -> Result<Vec<GuestSample>, ProbeError> {
        read(self.vcpu(vcpu)?, count)
    }

    fn readings_in_one_entry(
        &mut self,
        vcpu: VcpuId,
        count: usize,
        spacing: Nanos,
    ) -> Result<Vec<GuestSample>, ProbeError> {
        let Some(other) = self.other else {
            return Ok(Vec::new());
        };
        let index = usize::try_from(vcpu.get()).map_err(ProbeError::new)?;
        let Some(answering) = self.vcpus.get_mut(index) else {
            return Err(ProbeError::new(format!("{vcpu} was not built")));
        };
        let mut mailbox = Mailbox {
            memory: &self.memory,
            requests: &mut self.requests,
        };
        let home = self.home;
        let samples = thread::scope(|scope| {
            let running = scope.spawn(move || bind(home).and_then(|()| answer(answering)));
            let asking = bind(other).and_then(|()| {
                // The first answer is late by the time that the guest takes to start.
                mailbox.ask(|| running.is_finished())?;
                let begun = Instant::now();
                let mut due = Duration::ZERO;
                let mut samples = Vec::with_capacity(count);
                while samples.len() < count {
                    samples.push(mailbox.ask(|| running.is_finished())?);
                    due += Duration::from_nanos(spacing.get());
                    // Not asleep: on hosts whose timers are broadcast, waking up would interrupt the guest.
                    while begun.elapsed() < due {
                        std::hint::spin_loop();
                    }
                }
                Ok(samples)
            });
            // In any case, or the guest would answer for ever.
            let stopped = mailbox.store(STOP);
            let ended = cpus::joined(running);
            asking.and_then(|samples| stopped.and(ended).map(|()| samples))
        });
        // What is asked next is no longer the order to stop.
        mailbox.store(*mailbox.requests)?;
        bind(home)?;
        samples
    }

    fn visit_another_cpu(&mut self, vcpu: VcpuId) -> Result<bool, ProbeError> {
        let Some(abroad) = self.abroad else {
            return Ok(false);
        };
        bind(abroad)?;
        let there = self.readings(vcpu, 4);
        bind(self.home)?;
        there.map(|_| true)
    }

    fn pass(&mut self, time: Nanos) {
        thread::sleep(Duration::from_nanos(time.get()));
    }
}
