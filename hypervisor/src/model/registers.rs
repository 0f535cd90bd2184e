//! The registers that make a guest's TSC, as the processor has them, and the copies of them that a
//! guest of a guest needs.
//!
//! Both vendors compute `((host x ratio) >> N) + offset`. They differ in where the two numbers are,
//! in what switches them on, and in when the processor looks at them.

use tsc::nested::{self, Vmcb12Tsc, Vmcs12Tsc};
use tsc::{GuestTsc, HostTsc, RatioError, Svm, Transform, TscDelta, TscOffset, TscRatio, Vmx};

use super::Faults;
use crate::tsc_control::TscForm;

/// A ratio format whose processors' registers are modelled.
pub trait ModelForm: TscForm {
    /// The registers.
    type Registers: TscRegisters<Self>;
}

impl ModelForm for Vmx {
    type Registers = VmxRegisters;
}

impl ModelForm for Svm {
    type Registers = SvmRegisters;
}

/// The registers of one vCPU, as KVM writes them and the processor reads them.
pub trait TscRegisters<F: TscForm>: Default + std::fmt::Debug + Send {
    /// What L1 has written for its guest.
    type Inner: Copy + std::fmt::Debug;

    /// KVM writes L1's transform, and what is active now in consequence.
    ///
    /// # Errors
    /// When the composition with L2's ratio is beyond the format; nothing has changed then.
    fn write(&mut self, l1: Transform<F>, faults: Faults) -> Result<(), RatioError>;

    /// The processor enters the guest: what it reads its registers for happens here.
    ///
    /// # Errors
    /// When the entry fails for what the registers hold.
    fn enter(&mut self) -> Result<(), RatioError>;

    /// The vCPU comes to another physical CPU, which has cached nothing of it.
    fn moved(&mut self);

    /// RDTSC in the guest, while the host's counter is at `host`.
    fn rdtsc(&self, host: HostTsc) -> GuestTsc;

    /// L1 enters its guest.
    ///
    /// # Errors
    /// When what L1 wrote is not valid, or the composition is beyond the format; L1 goes on.
    fn enter_l2(&mut self, inner: Self::Inner) -> Result<(), RatioError>;

    /// L1 is back.
    fn leave_l2(&mut self);

    /// The transform kept for L1, by the register that holds it.
    ///
    /// # Errors
    /// When it is not valid.
    fn l1(&self) -> Result<Transform<F>, RatioError>;
}

/// How a correction reaches the active fields while L2 runs, as the code of the day did it.
fn active_in_l2<F: TscForm>(
    former: Transform<F>,
    active: TscOffset,
    l1: Transform<F>,
    l2: Transform<F>,
    faults: Faults,
) -> Result<Transform<F>, RatioError> {
    let composed = nested::compose(l1, l2)?;
    if faults.nested_delta_unscaled {
        let delta: TscDelta = l1.offset.wrapping_since(former.offset);
        return Ok(Transform {
            ratio: composed.ratio,
            offset: active.wrapping_add(delta),
        });
    }
    Ok(composed)
}

/// The fields of a VMCS that make a guest's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmcs {
    primary_controls: u32,
    secondary_controls: u32,
    tsc_offset: u64,
    tsc_multiplier: u64,
}

/// VMREAD or VMWRITE of a field that a processor does not have (SDM vol. 3, 30.4: error 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no VMCS field {0:#06x} here")]
pub struct UnsupportedField(pub u32);

impl Vmcs {
    /// Primary processor-based controls (SDM vol. 3, B.3.1).
    pub const PRIMARY_CONTROLS: u32 = 0x4002;
    /// Secondary processor-based controls (SDM vol. 3, B.3.1).
    pub const SECONDARY_CONTROLS: u32 = 0x401E;
    /// TSC offset (SDM vol. 3, B.2.1); + 1 is its high half.
    pub const TSC_OFFSET: u32 = 0x2010;
    /// TSC multiplier (SDM vol. 3, B.2.1); + 1 is its high half.
    pub const TSC_MULTIPLIER: u32 = 0x2032;
    /// "Use TSC offsetting", a primary control (SDM vol. 3, table 24-6).
    pub const USE_TSC_OFFSETTING: u32 = 1 << 3;
    /// "Activate secondary controls", a primary control (SDM vol. 3, table 24-6).
    pub const ACTIVATE_SECONDARY: u32 = 1 << 31;
    /// "Use TSC scaling", a secondary control (SDM vol. 3, table 24-7).
    pub const USE_TSC_SCALING: u32 = 1 << 25;

    /// A VMCS as KVM sets it up for L1: offsetting and scaling on, offset 0, multiplier 1.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            primary_controls: Self::USE_TSC_OFFSETTING | Self::ACTIVATE_SECONDARY,
            secondary_controls: Self::USE_TSC_SCALING,
            tsc_offset: 0,
            tsc_multiplier: TscRatio::<Vmx>::ONE.bits(),
        }
    }

    /// VMREAD.
    ///
    /// # Errors
    /// A field that is not modelled.
    pub fn read(&self, field: u32) -> Result<u64, UnsupportedField> {
        Ok(match field {
            Self::PRIMARY_CONTROLS => self.primary_controls.into(),
            Self::SECONDARY_CONTROLS => self.secondary_controls.into(),
            Self::TSC_OFFSET => self.tsc_offset,
            0x2011 => self.tsc_offset >> 32,
            Self::TSC_MULTIPLIER => self.tsc_multiplier,
            0x2033 => self.tsc_multiplier >> 32,
            other => return Err(UnsupportedField(other)),
        })
    }

    /// VMWRITE. A 32-bit field, and the high half of a 64-bit one, take the low 32 bits of `value`.
    ///
    /// # Errors
    /// A field that is not modelled.
    pub fn write(&mut self, field: u32, value: u64) -> Result<(), UnsupportedField> {
        let low = u32::try_from(value & u64::from(u32::MAX)).expect("32 bits");
        let high_half = |field: u64| u64::from(low) << 32 | field & u64::from(u32::MAX);
        match field {
            Self::PRIMARY_CONTROLS => self.primary_controls = low,
            Self::SECONDARY_CONTROLS => self.secondary_controls = low,
            Self::TSC_OFFSET => self.tsc_offset = value,
            0x2011 => self.tsc_offset = high_half(self.tsc_offset),
            Self::TSC_MULTIPLIER => self.tsc_multiplier = value,
            0x2033 => self.tsc_multiplier = high_half(self.tsc_multiplier),
            other => return Err(UnsupportedField(other)),
        }
        Ok(())
    }

    /// What the processor makes of the fields: nothing without the controls, and the secondary
    /// controls are all 0 unless they are activated (SDM vol. 3, 24.6.2).
    ///
    /// # Errors
    /// A multiplier of 0 with scaling on, with which VM entry fails (SDM vol. 3, 26.2.1.1).
    pub fn transform(&self) -> Result<Transform<Vmx>, RatioError> {
        let secondary = if self.primary_controls & Self::ACTIVATE_SECONDARY != 0 {
            self.secondary_controls
        } else {
            0
        };
        Vmcs12Tsc {
            offsetting: self.primary_controls & Self::USE_TSC_OFFSETTING != 0,
            scaling: secondary & Self::USE_TSC_SCALING != 0,
            offset: TscOffset::new(self.tsc_offset),
            multiplier: self.tsc_multiplier,
        }
        .transform()
    }

    fn set(&mut self, transform: Transform<Vmx>) {
        self.tsc_offset = transform.offset.get();
        self.tsc_multiplier = transform.ratio.bits();
    }
}

/// Intel's registers of one vCPU. The processor holds no copy of its own that could be stale: a
/// VMWRITE counts from the next entry.
#[derive(Debug)]
pub struct VmxRegisters {
    /// vmcs01: what L0 runs L1 with.
    pub vmcs01: Vmcs,
    /// vmcs02, and what L1 asked for: while L2 runs.
    pub vmcs02: Option<(Vmcs, Transform<Vmx>)>,
    entered: Transform<Vmx>,
}

impl Default for VmxRegisters {
    fn default() -> Self {
        Self {
            vmcs01: Vmcs::fresh(),
            vmcs02: None,
            entered: Transform::IDENTITY,
        }
    }
}

impl TscRegisters<Vmx> for VmxRegisters {
    type Inner = Vmcs;

    fn write(&mut self, l1: Transform<Vmx>, faults: Faults) -> Result<(), RatioError> {
        if let Some((vmcs02, l2)) = &mut self.vmcs02 {
            let former = self.vmcs01.transform()?;
            let active = TscOffset::new(vmcs02.tsc_offset);
            vmcs02.set(active_in_l2(former, active, l1, *l2, faults)?);
            if faults.nested_copy_forgotten {
                return Ok(());
            }
        }
        self.vmcs01.set(l1);
        Ok(())
    }

    fn enter(&mut self) -> Result<(), RatioError> {
        let vmcs = self
            .vmcs02
            .as_ref()
            .map_or(&self.vmcs01, |(vmcs02, _)| vmcs02);
        self.entered = vmcs.transform()?;
        Ok(())
    }

    fn moved(&mut self) {}

    fn rdtsc(&self, host: HostTsc) -> GuestTsc {
        self.entered.guest_at(host)
    }

    fn enter_l2(&mut self, vmcs12: Vmcs) -> Result<(), RatioError> {
        let l2 = vmcs12.transform()?;
        let mut vmcs02 = Vmcs::fresh();
        vmcs02.set(nested::compose(self.vmcs01.transform()?, l2)?);
        self.vmcs02 = Some((vmcs02, l2));
        self.enter()
    }

    fn leave_l2(&mut self) {
        self.vmcs02 = None;
        // vmcs01 is as valid as it was when L1 was last entered.
        if let Ok(transform) = self.vmcs01.transform() {
            self.entered = transform;
        }
    }

    fn l1(&self) -> Result<Transform<Vmx>, RatioError> {
        self.vmcs01.transform()
    }
}

/// A write that the processor answers with #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("#GP: {value:#x} to MSR {index:#x} sets reserved bits")]
pub struct GeneralProtection {
    /// The register's number.
    pub index: u32,
    /// The value.
    pub value: u64,
}

/// The MSR of the TSC ratio (APM vol. 2, 15.30.5).
pub const MSR_TSC_RATIO: u32 = 0xC000_0104;

/// The part of a VMCB's control area that makes a guest's TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vmcb {
    tsc_offset: u64,
    clean: u32,
}

impl Vmcb {
    /// TSC_OFFSET in the VMCB (APM vol. 2, appendix B, table B-1).
    pub const TSC_OFFSET: usize = 0x050;
    /// The clean bits in the VMCB (APM vol. 2, appendix B, table B-1).
    pub const CLEAN_BITS: usize = 0x0C0;
    /// Clean bit "I": intercepts, TSC offset and pause filter are as they were (APM vol. 2, 15.15.3).
    pub const CLEAN_INTERCEPTS: u32 = 1 << 0;

    /// The control area as memory holds it, from 000h to the end of the clean bits.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::CLEAN_BITS + 4] {
        let mut bytes = [0; Self::CLEAN_BITS + 4];
        bytes[Self::TSC_OFFSET..][..8].copy_from_slice(&self.tsc_offset.to_le_bytes());
        bytes[Self::CLEAN_BITS..].copy_from_slice(&self.clean.to_le_bytes());
        bytes
    }

    /// The fields from a control area in memory.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::CLEAN_BITS + 4]) -> Self {
        let mut offset = [0; 8];
        offset.copy_from_slice(&bytes[Self::TSC_OFFSET..][..8]);
        let mut clean = [0; 4];
        clean.copy_from_slice(&bytes[Self::CLEAN_BITS..]);
        Self {
            tsc_offset: u64::from_le_bytes(offset),
            clean: u32::from_le_bytes(clean),
        }
    }

    fn set_offset(&mut self, offset: TscOffset, mark_dirty: bool) {
        self.tsc_offset = offset.get();
        if mark_dirty {
            self.clean &= !Self::CLEAN_INTERCEPTS;
        }
    }
}

/// AMD's registers of one vCPU. The processor may go on with an offset that it has cached, as long as
/// the clean bit says that the VMCB's is the same.
#[derive(Debug)]
pub struct SvmRegisters {
    /// vmcb01: what L0 runs L1 with; `nested.hsave` of the code of 2010.
    pub vmcb01: Vmcb,
    /// vmcb02, and what L1 asked for: while L2 runs.
    pub vmcb02: Option<(Vmcb, Transform<Svm>)>,
    ratio_msr: u64,
    l1_ratio: TscRatio<Svm>,
    /// What the processor has cached, of which VMCB.
    cached: Option<(Level, u64)>,
    entered: Transform<Svm>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    L1,
    L2,
}

impl Default for SvmRegisters {
    fn default() -> Self {
        Self {
            vmcb01: Vmcb::default(),
            vmcb02: None,
            ratio_msr: TscRatio::<Svm>::ONE.bits(),
            l1_ratio: TscRatio::ONE,
            cached: None,
            entered: Transform::IDENTITY,
        }
    }
}

impl SvmRegisters {
    /// WRMSR of [`MSR_TSC_RATIO`].
    ///
    /// # Errors
    /// A value with reserved bits (63:40) set; the register keeps what it had.
    pub fn write_ratio_msr(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value > TscRatio::<Svm>::MAX_BITS {
            return Err(GeneralProtection {
                index: MSR_TSC_RATIO,
                value,
            });
        }
        self.ratio_msr = value;
        Ok(())
    }

    /// RDMSR of [`MSR_TSC_RATIO`].
    #[must_use]
    pub const fn ratio_msr(&self) -> u64 {
        self.ratio_msr
    }

    fn load_ratio(&mut self, ratio: TscRatio<Svm>) {
        self.write_ratio_msr(ratio.bits())
            .expect("a ratio of the format has no reserved bit set");
    }
}

impl TscRegisters<Svm> for SvmRegisters {
    type Inner = Vmcb12Tsc;

    fn write(&mut self, l1: Transform<Svm>, faults: Faults) -> Result<(), RatioError> {
        let mark_dirty = !faults.stale_clean_bit;
        let former = self.l1()?;
        if let Some((vmcb02, l2)) = &mut self.vmcb02 {
            let active = TscOffset::new(vmcb02.tsc_offset);
            let composed = active_in_l2(former, active, l1, *l2, faults)?;
            vmcb02.set_offset(composed.offset, mark_dirty);
            self.load_ratio(composed.ratio);
            if faults.nested_copy_forgotten {
                return Ok(());
            }
        } else {
            self.load_ratio(l1.ratio);
        }
        self.vmcb01.set_offset(l1.offset, mark_dirty);
        self.l1_ratio = l1.ratio;
        Ok(())
    }

    fn enter(&mut self) -> Result<(), RatioError> {
        let (level, vmcb) = match &mut self.vmcb02 {
            Some((vmcb02, _)) => (Level::L2, vmcb02),
            None => (Level::L1, &mut self.vmcb01),
        };
        let clean = vmcb.clean & Vmcb::CLEAN_INTERCEPTS != 0;
        let offset = match self.cached {
            Some((cached, offset)) if clean && cached == level => offset,
            _ => vmcb.tsc_offset,
        };
        // After #VMEXIT the kernel marks all as clean, and what it changes as dirty.
        vmcb.clean |= Vmcb::CLEAN_INTERCEPTS;
        self.cached = Some((level, offset));
        self.entered = Transform {
            ratio: TscRatio::from_bits(self.ratio_msr)?,
            offset: TscOffset::new(offset),
        };
        Ok(())
    }

    fn moved(&mut self) {
        self.cached = None;
    }

    fn rdtsc(&self, host: HostTsc) -> GuestTsc {
        self.entered.guest_at(host)
    }

    fn enter_l2(&mut self, vmcb12: Vmcb12Tsc) -> Result<(), RatioError> {
        let l2 = vmcb12.transform()?;
        let composed = nested::compose(self.l1()?, l2)?;
        let mut vmcb02 = Vmcb::default();
        vmcb02.set_offset(composed.offset, true);
        self.vmcb02 = Some((vmcb02, l2));
        self.load_ratio(composed.ratio);
        self.enter()
    }

    fn leave_l2(&mut self) {
        self.vmcb02 = None;
        self.load_ratio(self.l1_ratio);
        self.vmcb01.clean &= !Vmcb::CLEAN_INTERCEPTS;
        // The ratio is one that was in force before.
        if let Ok(transform) = self.l1() {
            self.entered = transform;
        }
    }

    fn l1(&self) -> Result<Transform<Svm>, RatioError> {
        Ok(Transform {
            ratio: self.l1_ratio,
            offset: TscOffset::new(self.vmcb01.tsc_offset),
        })
    }
}

#[cfg(test)]
mod tests;
