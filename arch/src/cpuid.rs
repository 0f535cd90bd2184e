//! CPUID: from what the hypervisor supports to what a guest's vCPU is told.

/// One CPUID leaf, or one subleaf of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the output registers bear their own names")]
pub struct CpuidEntry {
    /// The leaf: EAX on entry.
    pub function: u32,
    /// The subleaf: ECX on entry, meaningful when `indexed`.
    pub index: u32,
    /// Whether the leaf's answer depends on `index`.
    pub indexed: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}
