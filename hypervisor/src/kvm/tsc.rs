//! TSC control over KVM, in both vendors' forms.

use arch::msr::{IA32_TSC, Msr};
use tsc::{GuestTsc, HostTsc, Khz, TscOffset};

use super::raw;
use super::vcpu::KvmVcpu;
use super::vm::KvmVm;
use crate::tsc_control::{
    Claimed, DefaultTscRate, OffsetInterface, TscControlError, TscOffsetControl, TscSupport,
    Vendor, VendorRatio, Written,
};
use crate::{IoctlError, Vcpu, host};

/// What the open `/dev/kvm` says about TSCs, before there is a vCPU to ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct TscCapabilities {
    /// `KVM_CAP_TSC_CONTROL`.
    pub(super) scaling: bool,
    /// `KVM_CAP_VM_TSC_CONTROL`.
    pub(super) default_rate: bool,
    /// `KVM_CAP_VCPU_ATTRIBUTES`, which is `KVM_CAP_DEVICE_CTRL` for vCPUs.
    pub(super) attributes: bool,
}

fn unreadable(what: &'static str) -> impl FnOnce(IoctlError) -> TscControlError {
    move |source| TscControlError::Unreadable { what, source }
}

impl KvmVcpu {
    /// Uses `interface` for offsets from now on, whatever the kernel has: to see how an old kernel
    /// would fare. Such a kernel has no [`DefaultTscRate`] either: a VM whose default rate was changed
    /// is not one to force [`OffsetInterface::Msr`] on.
    pub fn use_offset_interface(&mut self, interface: OffsetInterface) {
        self.forced_offset_interface = Some(interface);
    }

    fn offset_interface(&self) -> OffsetInterface {
        self.forced_offset_interface.unwrap_or_else(|| {
            if self.capabilities.attributes && raw::TSC_OFFSET.exists(&self.fd) {
                OffsetInterface::Attribute
            } else {
                OffsetInterface::Msr
            }
        })
    }

    /// The ratio that turns an offset into a reading and back: the register's where it can be read,
    /// otherwise the one that KVM computes for the rate it names.
    fn ratio_in_use(&self, vendor: Vendor) -> Result<VendorRatio, TscControlError> {
        if raw::TSC_SCALE.exists(&self.fd) {
            return Ok(self.ratio()?.claim());
        }
        if !self.capabilities.scaling {
            return Ok(VendorRatio::one(vendor));
        }
        let (rate, host) = (self.rate()?.claim(), self.host_rate);
        match host {
            Some(host) if host != rate => Ok(VendorRatio::from_rates_floor(vendor, rate, host)?),
            _ => Ok(VendorRatio::one(vendor)),
        }
    }
}

impl TscOffsetControl for KvmVcpu {
    fn tsc_support(&self) -> TscSupport {
        TscSupport {
            vendor: host::vendor(),
            scaling: self.capabilities.scaling,
            default_rate: self.capabilities.default_rate,
            offset: self.offset_interface(),
            ratio: self.capabilities.attributes && raw::TSC_SCALE.exists(&self.fd),
        }
    }

    fn offset(&self) -> Result<Claimed<TscOffset>, TscControlError> {
        match self.offset_interface() {
            OffsetInterface::Attribute => {
                let [bits] = raw::TSC_OFFSET
                    .get(&self.fd)
                    .map_err(unreadable("the TSC offset"))?;
                Ok(Claimed::new(TscOffset::new(bits)))
            }
            OffsetInterface::Msr => {
                let ratio = self.ratio_in_use(host::vendor())?;
                let guest = self.guest_tsc()?.claim();
                // Read after the guest's: the offset comes out too small, as a write's does.
                let host = host::read_tsc();
                Ok(Claimed::new(ratio.offset_through(host, guest)))
            }
        }
    }

    fn write_offset(&mut self, offset: TscOffset) -> Result<Written<TscOffset>, TscControlError> {
        match self.offset_interface() {
            OffsetInterface::Attribute => raw::TSC_OFFSET
                .set(&self.fd, &[offset.get()])
                .map_err(|source| TscControlError::Offset { offset, source })?,
            OffsetInterface::Msr => {
                let ratio = self.ratio_in_use(host::vendor())?;
                let host: HostTsc = host::read_tsc();
                // The write's own record is of no use: what was asked for is an offset.
                let _: Written<GuestTsc> = self.write_guest_tsc(ratio.guest_at(offset, host))?;
            }
        }
        Ok(Written::new(offset))
    }

    fn ratio(&self) -> Result<Claimed<VendorRatio>, TscControlError> {
        if !self.capabilities.attributes || !raw::TSC_SCALE.exists(&self.fd) {
            return Err(TscControlError::Absent {
                name: "KVM_VCPU_TSC_SCALE",
            });
        }
        let vendor = host::vendor();
        let [bits, fraction_bits] = raw::TSC_SCALE
            .get(&self.fd)
            .map_err(unreadable("the TSC ratio"))?;
        if fraction_bits != u64::from(vendor.fraction_bits()) {
            return Err(TscControlError::FractionBits {
                vendor,
                expected: vendor.fraction_bits(),
                found: fraction_bits,
            });
        }
        Ok(Claimed::new(VendorRatio::from_bits(vendor, bits)?))
    }

    fn rate(&self) -> Result<Claimed<Khz>, TscControlError> {
        raw::vcpu_rate(&self.fd)
            .map_err(unreadable("the vCPU's TSC rate"))?
            .map(Claimed::new)
            .ok_or(TscControlError::NoRate)
    }

    fn ask_rate(&mut self, rate: Khz) -> Result<Written<Khz>, TscControlError> {
        if self.host_rate.is_none() {
            self.host_rate = self.rate().ok().map(Claimed::claim);
        }
        raw::set_vcpu_rate(&self.fd, rate).map_err(|source| TscControlError::Rate {
            asked: rate,
            source,
        })?;
        Ok(Written::new(rate))
    }

    fn guest_tsc(&self) -> Result<Claimed<GuestTsc>, TscControlError> {
        let [value] = self.msrs([IA32_TSC])?;
        Ok(Claimed::new(GuestTsc::new(value)))
    }

    fn write_guest_tsc(&mut self, tsc: GuestTsc) -> Result<Written<GuestTsc>, TscControlError> {
        self.set_msrs(&[Msr {
            index: IA32_TSC,
            value: tsc.get(),
        }])?;
        Ok(Written::new(tsc))
    }
}

impl DefaultTscRate for KvmVm {
    fn default_rate(&self) -> Result<Claimed<Khz>, TscControlError> {
        self.require_default_rate()?;
        raw::vm_rate(&self.vm)
            .map_err(unreadable("the VM's TSC rate"))?
            .map(Claimed::new)
            .ok_or(TscControlError::NoRate)
    }

    fn ask_default_rate(&self, rate: Khz) -> Result<Written<Khz>, TscControlError> {
        self.require_default_rate()?;
        raw::set_vm_rate(&self.vm, rate).map_err(|source| TscControlError::Rate {
            asked: rate,
            source,
        })?;
        Ok(Written::new(rate))
    }
}

impl KvmVm {
    fn require_default_rate(&self) -> Result<(), TscControlError> {
        if self.capabilities.default_rate {
            Ok(())
        } else {
            Err(TscControlError::Absent {
                name: "KVM_CAP_VM_TSC_CONTROL",
            })
        }
    }
}
