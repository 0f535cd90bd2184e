//! x86-64 facts that a virtual machine monitor needs, without knowledge of any hypervisor.
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod msr;
pub mod regs;
