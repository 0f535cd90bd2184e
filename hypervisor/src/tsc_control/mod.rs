//! Control of a guest's TSC: offsets, ratios, rates.
//!
//! **No arithmetic and no policy.** What to write is decided in [`tsc`]; this module carries it to
//! the processor and says, in types, how much is known about the outcome: see [`evidence`] for why
//! an accepted call and a number that reads back are not yet an effect.
//!
//! [`TscOffsetControl`] has two forms, VMX and SVM, which differ in the ratio's format and limits
//! alone ([`form`]). It is implemented over KVM by [`crate::kvm::KvmVcpu`], and at the level of
//! registers by [`crate::model`], with faults that real hosts showed.

pub mod evidence;
pub mod form;

use tsc::{GuestTsc, Khz, RatioError, TscDelta, TscOffset};

pub use evidence::{
    Claimed, OffsetBounds, OffsetEffect, RateEffect, ReadBack, RefusedRate, Written,
};
pub use form::{TscForm, Vendor, VendorRatio};

use crate::{IoctlError, MsrError};

/// How the hypervisor takes an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetInterface {
    /// As an offset, exactly: the vCPU attribute `KVM_VCPU_TSC_OFFSET` (Linux 5.16,
    /// Documentation/virt/kvm/devices/vcpu.rst, 4.1).
    Attribute,
    /// Only as a value for the guest's TSC, which the kernel turns into an offset at a moment of
    /// its own. Two hazards (`kvm_synchronize_tsc` in arch/x86/kvm/x86.c):
    ///
    /// - the offset comes out smaller by the ticks between our reading of the host's TSC and the
    ///   kernel's;
    /// - a value within one second of what another vCPU's last write would have become by now is
    ///   taken for an attempt to synchronise: the kernel drops it and reuses that vCPU's offset.
    ///   A move of the clock by less than a second is thus lost without an error. The value 0
    ///   always synchronises.
    Msr,
}

/// What this host says that it can do for a guest's TSC. Claims, like all that is not measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscSupport {
    /// The form of its ratio.
    pub vendor: Vendor,
    /// Rates other than the host's, in hardware (`KVM_CAP_TSC_CONTROL`).
    pub scaling: bool,
    /// A rate for the vCPUs that are yet to be created (`KVM_CAP_VM_TSC_CONTROL`).
    pub default_rate: bool,
    /// How offsets are written.
    pub offset: OffsetInterface,
    /// The ratio in the register can be read (`KVM_VCPU_TSC_SCALE`).
    pub ratio: bool,
}

/// A request about a guest's TSC failed.
#[derive(Debug, thiserror::Error)]
pub enum TscControlError {
    /// An offset was refused.
    #[error("the TSC offset {offset} was refused")]
    Offset {
        /// The offset.
        offset: TscOffset,
        /// The kernel's reason.
        source: IoctlError,
    },
    /// A rate was refused.
    #[error("a TSC rate of {asked} was refused")]
    Rate {
        /// The rate.
        asked: Khz,
        /// The kernel's reason: `EINVAL` for a rate below the host's on a host that cannot scale,
        /// and for one that the format cannot hold.
        source: IoctlError,
    },
    /// Something could not be read.
    #[error("{what} cannot be read")]
    Unreadable {
        /// What.
        what: &'static str,
        /// The kernel's reason.
        source: IoctlError,
    },
    /// The hypervisor has no interface for it.
    #[error("this host's hypervisor has no {name}")]
    Absent {
        /// The kernel's name of the interface.
        name: &'static str,
    },
    /// The hypervisor answered with a rate of 0: it does not know its own.
    #[error("the hypervisor does not know its TSC rate")]
    NoRate,
    /// The hypervisor answered with a ratio that the vendor's format does not have.
    #[error("the hypervisor's answer about the TSC ratio is not one of this vendor")]
    Ratio(#[from] RatioError),
    /// As above, by the position of the binary point.
    #[error("the hypervisor says its TSC ratio has {found} fraction bits, {vendor} has {expected}")]
    FractionBits {
        /// The host's vendor.
        vendor: Vendor,
        /// What this vendor has.
        expected: u32,
        /// What the hypervisor said.
        found: u64,
    },
    /// The TSC register was refused.
    #[error("the TSC register cannot be read or written")]
    Msr(#[from] MsrError),
}

/// Control of one vCPU's TSC. Calls are made while the vCPU is not running.
///
/// For KVM to keep its fast clock (the master clock), all vCPUs of a guest get **the same offset,
/// once**: an offset that differs from the last one written opens a new generation, and until every
/// vCPU has followed, each of the guest's clock readings goes the slow way
/// (`__kvm_synchronize_tsc`, arch/x86/kvm/x86.c).
pub trait TscOffsetControl {
    /// What the host says that it can do.
    fn tsc_support(&self) -> TscSupport;

    /// The offset, as the hypervisor has it. Over [`OffsetInterface::Msr`] it is computed from two
    /// readings, and too small by the ticks between them.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn offset(&self) -> Result<Claimed<TscOffset>, TscControlError>;

    /// Asks for `offset`. A timer that the guest armed in TSC-deadline mode is not re-armed by
    /// that: its deadline must be written again.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn write_offset(&mut self, offset: TscOffset) -> Result<Written<TscOffset>, TscControlError>;

    /// Asks for the present offset, moved by `delta`.
    ///
    /// # Errors
    /// The hypervisor's refusal of either step.
    fn adjust_offset(&mut self, delta: TscDelta) -> Result<Written<TscOffset>, TscControlError> {
        let present = self.offset()?.claim();
        self.write_offset(present.wrapping_add(delta))
    }

    /// The ratio in the register, where [`TscSupport::ratio`] says that it can be read.
    ///
    /// # Errors
    /// The hypervisor's refusal, or an answer that is no ratio of the vendor's.
    fn ratio(&self) -> Result<Claimed<VendorRatio>, TscControlError>;

    /// The rate, as the hypervisor has it: the one asked for last, whether or not it is scaled to,
    /// and even when it was refused.
    ///
    /// # Errors
    /// The hypervisor's refusal, or no known rate.
    fn rate(&self) -> Result<Claimed<Khz>, TscControlError>;

    /// Asks for a rate. Success may mean that the hypervisor scales, that the rate is within its
    /// tolerance and nothing changes, or that it will push the guest's TSC forward at entries.
    ///
    /// # Errors
    /// The hypervisor's refusal. The rate then reads back as the hypervisor pleases.
    fn ask_rate(&mut self, rate: Khz) -> Result<Written<Khz>, TscControlError>;

    /// The guest's TSC, read from outside (`MSR_IA32_TSC`).
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn guest_tsc(&self) -> Result<Claimed<GuestTsc>, TscControlError>;

    /// Asks that the guest's TSC read `tsc` now, with the hazards of [`OffsetInterface::Msr`].
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn write_guest_tsc(&mut self, tsc: GuestTsc) -> Result<Written<GuestTsc>, TscControlError>;
}

/// The TSC rate of vCPUs that are yet to be created.
pub trait DefaultTscRate {
    /// The rate that new vCPUs get.
    ///
    /// # Errors
    /// The hypervisor's refusal, or no known rate.
    fn default_rate(&self) -> Result<Claimed<Khz>, TscControlError>;

    /// Asks for the rate of vCPUs that are created from now on. KVM checks it only against the
    /// format's limits here, and when it cannot give it to a new vCPU, it does not say so.
    ///
    /// # Errors
    /// The hypervisor's refusal, or no such interface.
    fn ask_default_rate(&self, rate: Khz) -> Result<Written<Khz>, TscControlError>;
}
