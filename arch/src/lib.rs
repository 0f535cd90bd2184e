//! x86-64 facts that a virtual machine monitor needs, without knowledge of any hypervisor.
#![forbid(unsafe_code)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("guests and hosts are x86-64");

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod lapic;
pub mod layout;
pub mod memory;
pub mod msr;
pub mod pit;
pub mod regs;
