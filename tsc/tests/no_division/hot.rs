//! Functions of `tsc` that are generic or inlined, and so are in no assembly but their callers': compiled
//! by `no_division.rs`, which looks at them.

use tsc::watch::{Exits, Sighting};
use tsc::{CpuId, GuestTsc, HostTsc, ScaledTsc, Svm, Transform, TscRatio, Vmx};

#[inline(never)]
pub fn scale_floor_vmx(ratio: TscRatio<Vmx>, host: HostTsc) -> ScaledTsc {
    ratio.scale_floor(host)
}

#[inline(never)]
pub fn scale_floor_svm(ratio: TscRatio<Svm>, host: HostTsc) -> ScaledTsc {
    ratio.scale_floor(host)
}

#[inline(never)]
pub fn guest_at_vmx(clock: &Transform<Vmx>, host: HostTsc) -> GuestTsc {
    clock.guest_at(host)
}

#[inline(never)]
pub fn guest_at_svm(clock: &Transform<Svm>, host: HostTsc) -> GuestTsc {
    clock.guest_at(host)
}

#[inline(never)]
pub fn exit_sample(exits: &mut Exits, tsc: HostTsc, cpu: CpuId) -> Option<Sighting> {
    exits.sample(tsc, cpu)
}

/// One that divides, so that divisions are seen here.
#[inline(never)]
pub fn ratio_of_rates(guest: u64, host: u64) -> Option<u64> {
    guest.checked_div(host)
}
