//! Register state in neutral form: what a boot protocol sets and what a hypervisor backend obeys.

/// The general purpose registers, the instruction pointer and the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the register of the same name")]
pub struct GeneralRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part, as in a VMCS or VMCB (SDM vol. 3, 24.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, already scaled by the granularity.
    pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// The 4-bit type field of the descriptor.
    pub kind: u8,
    /// Present.
    pub present: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Default operation size: 32 bits.
    pub db: bool,
    /// Code or data (`true`), or a system descriptor (`false`).
    pub s: bool,
    /// 64-bit code segment.
    pub l: bool,
    /// Granularity of the limit: 4 KiB pages.
    pub g: bool,
    /// The segment must not be used.
    pub unusable: bool,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit: the size in bytes, less one.
    pub limit: u16,
}

/// Segments, descriptor tables and control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the register of the same name")]
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}
