//! Model specific registers: numbers, boot values, and the order in which they are written.

/// A model specific register and a value for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msr {
    /// The register's number: ECX of RDMSR and WRMSR.
    pub index: u32,
    /// Its value: EDX:EAX.
    pub value: u64,
}
