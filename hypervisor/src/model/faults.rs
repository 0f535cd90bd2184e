//! In which ways a host is less than obedient. Each was seen on a real one.

use tsc::Ppm;

/// What becomes of a write that is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Obedience {
    /// It takes effect.
    #[default]
    Obeyed,
    /// It is dropped, and the former value reads back (offsets on a software KVM).
    Ignored,
    /// It is dropped, and reads back (rates on a software KVM).
    IgnoredAndReadBack,
}

/// When a TSC written through the MSR is taken for an attempt to synchronise vCPUs, and dropped for
/// another vCPU's offset, if it is within a second of what that one's would be by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronisation {
    /// Never: each write counts.
    #[default]
    Never,
    /// After the first write from user space (Linux 6.8 and later).
    AfterTheFirst,
    /// From the first write on, so that the write of a restored TSC is dropped when the VM is
    /// younger than a second (before Linux 6.8).
    Always,
}

/// The faults of a host. `Default` is an obedient one; [`Faults::LINUX`] is Linux as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// What becomes of `KVM_VCPU_TSC_OFFSET`.
    pub offset_writes: Obedience,
    /// What becomes of `MSR_IA32_TSC`.
    pub tsc_writes: Obedience,
    /// What becomes of `KVM_SET_TSC_KHZ`, once it is not refused.
    pub rate_writes: Obedience,
    /// Rates this close to the host's are accepted, read back, and not scaled to
    /// (`tsc_tolerance_ppm`).
    pub tolerance: Ppm,
    /// A rate that was refused reads back all the same.
    pub refused_rates_read_back: bool,
    /// Rates above the host's are kept by pushing the guest forward at entries, even where the
    /// hardware could scale. Without scaling hardware it is always so.
    pub catch_up_instead_of_scaling: bool,
    /// On a host that is marked unstable, each load of a vCPU sets the offset so that the guest
    /// continues where it left, and each entry then catches up, forward only.
    pub compensation: bool,
    /// With the master clock on, catch-up goes by the moment at which that clock was last set up, and
    /// so by a time that does not pass: a guest with a rate above the host's is not pushed at all
    /// (`kvm_guest_time_update`).
    pub catch_up_by_master_clock: bool,
    /// A request to a running guest makes it leave and enter first: the asking processor's timer is
    /// broadcast by another one, as with the HPET. What a guest does between two entries cannot be seen
    /// then.
    pub exits_at_each_request: bool,
    /// Whether small corrections through the MSR are lost.
    pub synchronisation: Synchronisation,
    /// The kernel changes an offset in the VMCB and leaves its clean bit set, so that the processor
    /// goes on with its cached copy (SVM only; with VMX the field itself counts).
    pub stale_clean_bit: bool,
    /// A correction of L1's clock while L2 runs is added to the active fields as it is, whatever
    /// L2's ratio: the code of 2010.
    pub nested_delta_unscaled: bool,
    /// A correction of L1's clock while L2 runs does not reach the copy kept for L1.
    pub nested_copy_forgotten: bool,
}

impl Faults {
    /// Linux 6.8 and its defaults (arch/x86/kvm/x86.c).
    pub const LINUX: Self = Self {
        offset_writes: Obedience::Obeyed,
        tsc_writes: Obedience::Obeyed,
        rate_writes: Obedience::Obeyed,
        tolerance: Ppm::KVM_TOLERANCE,
        refused_rates_read_back: true,
        catch_up_instead_of_scaling: false,
        compensation: true,
        catch_up_by_master_clock: true,
        exits_at_each_request: false,
        synchronisation: Synchronisation::AfterTheFirst,
        stale_clean_bit: false,
        nested_delta_unscaled: false,
        nested_copy_forgotten: false,
    };

    /// Linux 6.1, the kernel of the laboratory's hosts.
    pub const LINUX_6_1: Self = Self {
        synchronisation: Synchronisation::Always,
        ..Self::LINUX
    };
}
