//! A model of both vendors' TSC virtualization, from the registers up to KVM's habits.
//!
//! No kernel shows its faults on demand, so code that must not fall for them is tested against this
//! model. It has three layers:
//!
//! | layer | module | exact to |
//! | --- | --- | --- |
//! | registers: VMCS fields and their control bits; VMCB field, clean bit and ratio MSR; the copies for guests of guests | [`registers`] | the bit, by the manuals |
//! | KVM on top of them: generations and matching, tolerance, catch-up, compensation | [`vm`] | the decision, by arch/x86/kvm/x86.c of Linux 6.8 |
//! | a host of several CPUs, with rates and offsets of their own | [`host`] | the tick |
//!
//! [`Faults`] says in which ways the model is less than an obedient host. The model's vCPUs
//! implement [`crate::tsc_control::TscOffsetControl`] as KVM's do. All arithmetic on clocks is that
//! of [`tsc`]; the model adds time, state and disobedience.

mod control;
mod faults;
pub mod host;
mod probe;
pub mod registers;
pub mod vm;

pub use faults::{Faults, Obedience, Synchronisation};
pub use host::{HostCpu, ModelHost};
pub use probe::{ModelFixture, ModelProbe};
pub use registers::{ModelForm, SvmRegisters, TscRegisters, VmxRegisters};
pub use vm::{ModelVcpu, ModelVm};
