//! What we need of a KVM, and what we would like.
//!
//! Each entry carries its meaning, so that a refusal tells an operator what is missing and not just
//! a number. Numbers and meanings: Documentation/virt/kvm/api.rst.

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_EXT_CPUID, KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_KVMCLOCK_CTRL, KVM_CAP_MP_STATE,
    KVM_CAP_PIT2, KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SET_TSS_ADDR, KVM_CAP_TSC_CONTROL,
    KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY, KVM_CAP_VCPU_ATTRIBUTES, KVM_CAP_VCPU_EVENTS,
    KVM_CAP_VM_TSC_CONTROL, KVM_CAP_XCRS, KVM_CAP_XSAVE,
};

use crate::MissingFeature;

/// A capability without which no guest runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Required {
    number: u32,
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
}

struct Optional {
    number: u32,
    feature: MissingFeature,
}

/// The optional capability behind [`crate::Hypervisor::has_tsc_deadline_timer`].
pub(super) const TSC_DEADLINE_TIMER: &str = "KVM_CAP_TSC_DEADLINE_TIMER";

/// The optional capabilities behind [`crate::tsc_control::TscSupport`].
pub(super) const TSC_CONTROL: &str = "KVM_CAP_TSC_CONTROL";
pub(super) const VM_TSC_CONTROL: &str = "KVM_CAP_VM_TSC_CONTROL";
pub(super) const VCPU_ATTRIBUTES: &str = "KVM_CAP_VCPU_ATTRIBUTES";

macro_rules! required {
    ($($capability:ident: $meaning:literal,)*) => {
        &[$(Required { number: $capability, name: stringify!($capability), meaning: $meaning }),*]
    };
}

macro_rules! optional {
    ($($capability:ident: $consequence:literal,)*) => {
        &[$(Optional {
            number: $capability,
            feature: MissingFeature { name: stringify!($capability), consequence: $consequence },
        }),*]
    };
}

const REQUIRED: &[Required] = required! {
    KVM_CAP_USER_MEMORY: "guest memory from the launcher's own",
    KVM_CAP_IMMEDIATE_EXIT: "leaving a vCPU without losing the wake-up",
    KVM_CAP_EXT_CPUID: "choosing what CPUID tells a guest",
    KVM_CAP_IRQCHIP: "interrupt controllers in the kernel",
    KVM_CAP_PIT2: "the interval timer in the kernel",
    KVM_CAP_IRQFD: "interrupts raised through an eventfd",
    KVM_CAP_IOEVENTFD: "device notifications through an eventfd",
    KVM_CAP_SET_TSS_ADDR: "a place for the task state segment that VMX needs in real mode",
    KVM_CAP_SET_IDENTITY_MAP_ADDR: "a place for the page table that VMX needs in real mode",
    KVM_CAP_MP_STATE: "starting application processors",
    KVM_CAP_VCPU_EVENTS: "pending interrupts and exceptions as state",
};

const OPTIONAL: &[Optional] = optional! {
    KVM_CAP_XSAVE: "extended processor state cannot be saved",
    KVM_CAP_XCRS: "guests get no XSAVE features (AVX and later)",
    KVM_CAP_TSC_DEADLINE_TIMER: "guests use the local APIC timer in one-shot mode",
    KVM_CAP_TSC_CONTROL: "a guest's TSC rate cannot be scaled: it is the host's",
    KVM_CAP_GET_TSC_KHZ: "the kernel does not tell the guest's TSC rate",
    KVM_CAP_VM_TSC_CONTROL: "the TSC rate must be set for each vCPU",
    KVM_CAP_VCPU_ATTRIBUTES: "TSC offsets can be set only through the TSC MSR",
    KVM_CAP_ADJUST_CLOCK: "kvmclock cannot be read or set",
    KVM_CAP_KVMCLOCK_CTRL: "a paused guest may report soft lockups",
};

/// The first required capability that `has` denies.
pub(super) fn first_missing_required(has: impl Fn(u32) -> bool) -> Option<&'static Required> {
    REQUIRED.iter().find(|capability| !has(capability.number))
}

/// All optional capabilities that `has` denies.
pub(super) fn missing_optional(has: impl Fn(u32) -> bool) -> Vec<MissingFeature> {
    OPTIONAL
        .iter()
        .filter(|capability| !has(capability.number))
        .map(|capability| capability.feature)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_missing_required_of_a_full_host_is_none() {
        assert_eq!(first_missing_required(|_| true), None);
    }

    #[test]
    fn each_required_capability_is_named_when_it_alone_is_missing() {
        for capability in REQUIRED {
            let found = first_missing_required(|number| number != capability.number);
            assert_eq!(found, Some(capability));
            assert!(capability.name.starts_with("KVM_CAP_") && !capability.meaning.is_empty());
        }
    }

    #[test]
    fn missing_optional_of_the_emulated_vmx_host_is_xcrs() {
        // That host switches XSAVE off after a consistency check of its kernel.
        let missing = missing_optional(|number| number != KVM_CAP_XCRS);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].name, "KVM_CAP_XCRS");
    }

    #[test]
    fn names_that_are_asked_for_are_in_the_table() {
        for name in [
            TSC_DEADLINE_TIMER,
            TSC_CONTROL,
            VM_TSC_CONTROL,
            VCPU_ATTRIBUTES,
        ] {
            assert!(
                OPTIONAL
                    .iter()
                    .any(|capability| capability.feature.name == name),
                "{name}"
            );
        }
    }
}
