//! The model as a subject of the contract: a guest that reads its TSC when asked.

use tsc::measure::{GuestSample, HostSample};
use tsc::{CpuId, Khz, Nanos, VcpuId};

use super::registers::ModelForm;
use super::{ModelHost, ModelVcpu, ModelVm};
use crate::contract::{Fixture, Probe, ProbeError};
use crate::tsc_control::{DefaultTscRate, Written};

/// Where the guest's home is, and where it is moved to.
const HOME: CpuId = CpuId::new(0);
const ABROAD: CpuId = CpuId::new(1);

/// Makes VMs on copies of one modelled host.
#[derive(Clone, Debug)]
pub struct ModelFixture<F> {
    host: ModelHost,
    form: std::marker::PhantomData<F>,
}

impl<F: ModelForm> ModelFixture<F> {
    /// A fixture on `host`.
    #[must_use]
    pub const fn new(host: ModelHost) -> Self {
        Self {
            host,
            form: std::marker::PhantomData,
        }
    }
}

impl<F: ModelForm> Fixture for ModelFixture<F> {
    type Probe = ModelProbe<F>;

    fn build(&self, vcpus: u32, default_rate: Option<Khz>) -> Result<ModelProbe<F>, ProbeError> {
        let vm = ModelVm::new(self.host.clone());
        if let Some(rate) = default_rate {
            let _: Written<Khz> = vm.ask_default_rate(rate)?;
        }
        let vcpus = (0..vcpus)
            .map(|_| {
                // vCPUs are not created at the same instant.
                vm.pass(Nanos::new(15_000));
                vm.create_vcpu()
            })
            .collect();
        Ok(ModelProbe {
            vm,
            vcpus,
            random: 1,
        })
    }
}

/// A VM with a guest whose exits take 0.3 to 2.3 microseconds each way, varying as real ones do.
#[derive(Debug)]
pub struct ModelProbe<F: ModelForm> {
    vm: ModelVm<F>,
    vcpus: Vec<ModelVcpu<F>>,
    random: u64,
}

impl<F: ModelForm> ModelProbe<F> {
    /// The VM.
    #[must_use]
    pub const fn vm(&self) -> &ModelVm<F> {
        &self.vm
    }

    fn delay(&mut self) {
        // Knuth's MMIX generator: The Art of Computer Programming, vol. 2, 3.3.4.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.vm.pass(Nanos::new(300 + (self.random >> 33) % 2_000));
    }

    fn host_on(&self, cpu: CpuId) -> HostSample {
        self.vm.host(|host| HostSample {
            tsc: host.tsc(cpu),
            monotonic: host.now(),
        })
    }

    fn index(&self, vcpu: VcpuId) -> Result<usize, ProbeError> {
        usize::try_from(vcpu.get())
            .ok()
            .filter(|index| *index < self.vcpus.len())
            .ok_or_else(|| ProbeError::new(format!("{vcpu} was not built")))
    }
}

impl<F: ModelForm> Probe for ModelProbe<F> {
    type Control = ModelVcpu<F>;

    fn control(&mut self, vcpu: VcpuId) -> Result<&mut ModelVcpu<F>, ProbeError> {
        let index = self.index(vcpu)?;
        Ok(&mut self.vcpus[index])
    }

    fn host_now(&mut self) -> HostSample {
        self.delay();
        let sample = self.host_on(HOME);
        self.delay();
        sample
    }

    fn readings(&mut self, vcpu: VcpuId, count: usize) -> Result<Vec<GuestSample>, ProbeError> {
        let index = self.index(vcpu)?;
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            let before = self.host_on(HOME);
            self.delay();
            self.vm
                .enter(&self.vcpus[index])
                .map_err(ProbeError::from)?;
            self.delay();
            let guest = self.vm.rdtsc(&self.vcpus[index]);
            self.delay();
            self.vm.leave(&self.vcpus[index]);
            self.delay();
            let after = self.host_on(HOME);
            samples.push(GuestSample {
                before,
                guest,
                after,
            });
        }
        Ok(samples)
    }

    fn readings_in_one_entry(
        &mut self,
        vcpu: VcpuId,
        count: usize,
        spacing: Nanos,
    ) -> Result<Vec<GuestSample>, ProbeError> {
        let index = self.index(vcpu)?;
        let exits = self.vm.host(|host| host.faults.exits_at_each_request);
        self.vm
            .enter(&self.vcpus[index])
            .map_err(ProbeError::from)?;
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            let before = self.host_on(HOME);
            self.delay();
            if exits {
                self.vm.leave(&self.vcpus[index]);
                self.vm
                    .enter(&self.vcpus[index])
                    .map_err(ProbeError::from)?;
                self.delay();
            }
            let guest = self.vm.rdtsc(&self.vcpus[index]);
            self.delay();
            let after = self.host_on(HOME);
            samples.push(GuestSample {
                before,
                guest,
                after,
            });
            self.vm.pass(spacing);
        }
        self.vm.leave(&self.vcpus[index]);
        Ok(samples)
    }

    fn visit_another_cpu(&mut self, vcpu: VcpuId) -> Result<bool, ProbeError> {
        if self.vm.host(ModelHost::cpus) < 2 {
            return Ok(false);
        }
        let index = self.index(vcpu)?;
        for cpu in [ABROAD, HOME] {
            self.vm.pin(&self.vcpus[index], cpu);
            self.vm
                .enter(&self.vcpus[index])
                .map_err(ProbeError::from)?;
            self.delay();
            self.vm.leave(&self.vcpus[index]);
            self.delay();
        }
        Ok(true)
    }

    fn pass(&mut self, time: Nanos) {
        self.vm.pass(time);
    }
}
