//! The model's vCPUs and VMs under the same control as KVM's.

use tsc::{GuestTsc, Khz, TscOffset, VcpuId};

use super::Obedience;
use super::registers::{ModelForm, TscRegisters};
use super::vm::{ModelVcpu, ModelVm, World, invalid, lock};
use crate::tsc_control::{
    Claimed, DefaultTscRate, OffsetInterface, TscControlError, TscOffsetControl, TscSupport,
    VendorRatio, Written,
};

impl<F: ModelForm> ModelVcpu<F> {
    /// This vCPU's number.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        VcpuId::new(u32::try_from(self.index).expect("few vCPUs"))
    }

    /// L1 enters its guest.
    ///
    /// # Errors
    /// When what L1 asks for is not valid, or beyond the format together with L1's own.
    pub fn enter_l2(
        &self,
        inner: <F::Registers as TscRegisters<F>>::Inner,
    ) -> Result<(), tsc::RatioError> {
        lock(&self.world).vcpus[self.index]
            .registers
            .enter_l2(inner)
    }

    /// L1 is back.
    pub fn leave_l2(&self) {
        lock(&self.world).vcpus[self.index].registers.leave_l2();
    }

    /// A system call on this vCPU: it is loaded on the thread's CPU for that long, as KVM does.
    fn call<R>(&self, body: impl FnOnce(&mut World<F>, usize) -> R) -> R {
        let mut world = lock(&self.world);
        world.load(self.index);
        let result = body(&mut world, self.index);
        world.put(self.index);
        result
    }
}

impl<F: ModelForm> TscOffsetControl for ModelVcpu<F> {
    fn tsc_support(&self) -> TscSupport {
        let world = lock(&self.world);
        TscSupport {
            vendor: F::VENDOR,
            scaling: world.host.scaling,
            default_rate: world.host.scaling,
            offset: OffsetInterface::Attribute,
            ratio: world.host.scaling,
        }
    }

    fn offset(&self) -> Result<Claimed<TscOffset>, TscControlError> {
        let offset = self.call(|world, index| {
            let vcpu = &world.vcpus[index];
            vcpu.claimed_offset.unwrap_or(vcpu.l1.offset)
        });
        Ok(Claimed::new(offset))
    }

    fn write_offset(&mut self, offset: TscOffset) -> Result<Written<TscOffset>, TscControlError> {
        self.call(|world, index| world.set_offset(index, offset));
        Ok(Written::new(offset))
    }

    fn ratio(&self) -> Result<Claimed<VendorRatio>, TscControlError> {
        if !self.tsc_support().ratio {
            return Err(TscControlError::Absent {
                name: "KVM_VCPU_TSC_SCALE",
            });
        }
        let ratio = self.call(|world, index| world.vcpus[index].l1.ratio);
        Ok(Claimed::new(F::erase(ratio)))
    }

    fn rate(&self) -> Result<Claimed<Khz>, TscControlError> {
        Ok(Claimed::new(
            self.call(|world, index| world.vcpus[index].rate),
        ))
    }

    fn ask_rate(&mut self, rate: Khz) -> Result<Written<Khz>, TscControlError> {
        self.call(|world, index| {
            if world.within_limit(rate) {
                world.set_rate(index, rate)
            } else {
                Err(invalid("KVM_SET_TSC_KHZ"))
            }
        })
        .map_err(|source| TscControlError::Rate {
            asked: rate,
            source,
        })?;
        Ok(Written::new(rate))
    }

    fn guest_tsc(&self) -> Result<Claimed<GuestTsc>, TscControlError> {
        let tsc = self.call(|world, index| world.vcpus[index].l1.guest_at(world.host_tsc(index)));
        Ok(Claimed::new(tsc))
    }

    fn write_guest_tsc(&mut self, tsc: GuestTsc) -> Result<Written<GuestTsc>, TscControlError> {
        self.call(|world, index| {
            if world.host.faults.tsc_writes == Obedience::Obeyed {
                world.synchronise(index, Some(tsc));
            }
        });
        Ok(Written::new(tsc))
    }
}

impl<F: ModelForm> DefaultTscRate for ModelVm<F> {
    fn default_rate(&self) -> Result<Claimed<Khz>, TscControlError> {
        Ok(Claimed::new(lock(&self.world).vm.default_rate))
    }

    fn ask_default_rate(&self, rate: Khz) -> Result<Written<Khz>, TscControlError> {
        let mut world = lock(&self.world);
        // KVM_CAP_VM_TSC_CONTROL is there where KVM_CAP_TSC_CONTROL is.
        if !world.host.scaling {
            return Err(TscControlError::Absent {
                name: "KVM_CAP_VM_TSC_CONTROL",
            });
        }
        if !world.within_limit(rate) {
            return Err(TscControlError::Rate {
                asked: rate,
                source: invalid("KVM_SET_TSC_KHZ"),
            });
        }
        world.vm.default_rate = rate;
        Ok(Written::new(rate))
    }
}
