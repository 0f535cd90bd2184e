//! The policies of 2010, as their code was. They are here to be replayed, not to be used.

use super::{Decision, Entry, Guarantees, Load, Policy, When};
use crate::offset::guest_unscaled;
use crate::pvclock::TimeScale;
use crate::stability::{Cause, PlatformReport};
use crate::units::{GuestTsc, Khz, Nanos, Ticks};

/// AMD's code before the unification (`svm_vcpu_load`, arch/x86/kvm/svm.c in 2.6.36): at a move, on
/// a host that the *platform* calls unstable, the offset takes the whole delta, so that the guest
/// continues where it was. On a platform that calls itself stable it does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Svm2010;

impl Svm2010 {
    /// What it promises.
    pub const GUARANTEES: Guarantees = Guarantees {
        monotonic_across_moves: When::HostUnstable,
        keeps_elapsed_time: When::HostStable,
        leaves_the_innocent_alone: false,
    };
}

impl Policy for Svm2010 {
    fn name(&self) -> &'static str {
        "svm-2010"
    }

    fn guarantees(&self) -> Guarantees {
        Self::GUARANTEES
    }

    fn load(&mut self, load: &Load) -> Decision {
        if !load.moved() || !load.host_unstable {
            return Decision::NOTHING;
        }
        Decision {
            adjust: Some(load.host_delta().wrapping_neg()),
            ..Decision::NOTHING
        }
    }
}

/// Intel's code before the unification (`vmx_vcpu_load` and `__vcpu_clear`, arch/x86/kvm/vmx.c in
/// 2.6.36): at a move the old CPU's counter is read *then*, by the interrupt that flushes the VMCS
/// there, and a backwards step against it is removed; whatever the platform says. Time off the CPU
/// is never erased. A step forwards stays, so that a vCPU gains the skew of each round trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vmx2010;

impl Vmx2010 {
    /// What it promises.
    pub const GUARANTEES: Guarantees = Guarantees {
        monotonic_across_moves: When::Always,
        keeps_elapsed_time: When::Always,
        leaves_the_innocent_alone: false,
    };
}

impl Policy for Vmx2010 {
    fn name(&self) -> &'static str {
        "vmx-2010"
    }

    fn guarantees(&self) -> Guarantees {
        Self::GUARANTEES
    }

    fn load(&mut self, load: &Load) -> Decision {
        let Some(left) = load.left.filter(|_| load.moved()) else {
            return Decision::NOTHING;
        };
        let before = left.tsc_at_move.unwrap_or(left.tsc);
        if !load.tsc.is_before(before) {
            return Decision::NOTHING;
        }
        Decision {
            adjust: Some(before.wrapping_since(load.tsc)),
            ..Decision::NOTHING
        }
    }
}

/// Commit e48672fa, "Unify TSC logic": a backwards delta at a move marks the host's TSC unstable,
/// and on an unstable host the whole delta goes into the offset, the time that passed off the CPU
/// included. Nobody gives it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unified2010;

/// The mark that KVM itself sets: "KVM discovered backwards TSC".
const KERNEL_MARK: Cause = Cause::Platform(PlatformReport::KernelMark);

impl Unified2010 {
    /// `kvm_arch_vcpu_load` inside of its condition.
    fn compensate(load: &Load) -> Decision {
        let delta = load.host_delta();
        let accuse = delta.is_negative().then_some(KERNEL_MARK);
        if load.host_unstable || accuse.is_some() {
            Decision {
                adjust: Some(delta.wrapping_neg()),
                accuse,
                ..Decision::NOTHING
            }
        } else {
            Decision::NOTHING
        }
    }
}

impl Unified2010 {
    /// What it promises.
    pub const GUARANTEES: Guarantees = Guarantees {
        monotonic_across_moves: When::Always,
        keeps_elapsed_time: When::HostStable,
        leaves_the_innocent_alone: false,
    };
}

impl Policy for Unified2010 {
    fn name(&self) -> &'static str {
        "unified-2010"
    }

    fn guarantees(&self) -> Guarantees {
        Self::GUARANTEES
    }

    fn load(&mut self, load: &Load) -> Decision {
        // In kernels where `vcpu->cpu` starts as -1 the first load is a move, with a delta of 0.
        if load.left.is_none() || load.moved() {
            Self::compensate(load)
        } else {
            Decision::NOTHING
        }
    }
}

/// Commit c285545f, "TSC catchup mode", on top of it (and of ca84d1a2, which compensates at *every*
/// load on an unstable host, because a counter may have stopped while the CPU slept): each load
/// that compensates asks for a clock update, which moves the guest forward to its line when it is
/// behind. The line's anchor is the guest's last write to its TSC, its rate the highest that the
/// CPUs can have. "Note that once triggered, we don't turn off catchup mode."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnifiedCatchup2010 {
    /// `virtual_tsc_mult` and `virtual_tsc_shift`.
    scale: TimeScale,
    /// `last_tsc_write` and `last_tsc_nsec`.
    written: GuestTsc,
    written_at: Nanos,
    /// `tsc_catchup`.
    catching_up: bool,
}

impl UnifiedCatchup2010 {
    /// A vCPU whose TSC was set to `written` at the time `at`, on a host whose CPUs reach `highest`.
    #[must_use]
    pub const fn new(written: GuestTsc, at: Nanos, highest: Khz) -> Self {
        Self {
            scale: TimeScale::ticks_from_nanos(highest),
            written,
            written_at: at,
            catching_up: false,
        }
    }

    /// `compute_guest_tsc`.
    fn target(&self, now: Nanos) -> GuestTsc {
        let passed = self
            .scale
            .scale_floor(now.saturating_sub(self.written_at).get());
        self.written.wrapping_advance(Ticks::new(passed))
    }
}

impl UnifiedCatchup2010 {
    /// What it promises.
    pub const GUARANTEES: Guarantees = Guarantees {
        monotonic_across_moves: When::Always,
        keeps_elapsed_time: When::HostStable,
        leaves_the_innocent_alone: false,
    };
}

impl Policy for UnifiedCatchup2010 {
    fn name(&self) -> &'static str {
        "unified-catchup-2010"
    }

    fn guarantees(&self) -> Guarantees {
        Self::GUARANTEES
    }

    fn load(&mut self, load: &Load) -> Decision {
        if load.left.is_some() && !load.moved() && !load.host_unstable {
            return Decision::NOTHING;
        }
        let mut decision = Unified2010::compensate(load);
        if decision.adjust.is_some() {
            self.catching_up = true;
            decision.request_entry = true;
        }
        decision
    }

    fn entry(&mut self, entry: &Entry) -> Decision {
        // `kvm_guest_time_update` runs on request only.
        if !entry.requested || !self.catching_up {
            return Decision::NOTHING;
        }
        let reading = guest_unscaled(entry.tsc, entry.offset);
        let target = self.target(entry.at);
        // The kernel compares without wrapping: `tsc > tsc_timestamp`.
        if target.get() <= reading.get() {
            return Decision::NOTHING;
        }
        Decision {
            adjust: Some(target.wrapping_since(reading)),
            ..Decision::NOTHING
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fault, Left};
    use super::*;
    use crate::units::{CpuId, HostTsc, TscDelta, TscOffset};

    /// A load of a vCPU that left CPU 0 when its counter read 1000; that counter reads 5000 now.
    fn load(cpu: u32, tsc: u64, host_unstable: bool) -> Load {
        Load {
            cpu: CpuId::new(cpu),
            tsc: HostTsc::new(tsc),
            at: Nanos::new(9_000),
            left: Some(Left {
                cpu: CpuId::new(0),
                tsc: HostTsc::new(1_000),
                at: Nanos::new(5_000),
                tsc_at_move: Some(HostTsc::new(5_000)),
            }),
            offset: TscOffset::ZERO,
            host_unstable,
            fault: Fault::default(),
        }
    }

    fn adjusted(by: i64) -> Decision {
        Decision {
            adjust: Some(TscDelta::new(by)),
            ..Decision::NOTHING
        }
    }

    #[test]
    fn svm_2010_compensates_a_move_only_when_the_platform_says_so() {
        let table = [
            // cpu, tsc, unstable: decision
            (1, 900, false, Decision::NOTHING),
            (1, 900, true, adjusted(100)),
            (1, 3_000, true, adjusted(-2_000)),
            (0, 3_000, true, Decision::NOTHING),
        ];
        for (cpu, tsc, unstable, expected) in table {
            assert_eq!(
                Svm2010.load(&load(cpu, tsc, unstable)),
                expected,
                "{cpu} {tsc} {unstable}"
            );
        }
        let first = Load {
            left: None,
            ..load(1, 900, true)
        };
        assert_eq!(Svm2010.load(&first), Decision::NOTHING);
    }

    #[test]
    fn vmx_2010_compares_with_the_old_cpu_at_the_move() {
        // 4000 is later than the 1000 of the put, but behind the 5000 that the old CPU reads now.
        assert_eq!(Vmx2010.load(&load(1, 4_000, false)), adjusted(1_000));
        assert_eq!(Vmx2010.load(&load(1, 4_000, true)), adjusted(1_000));
        assert_eq!(Vmx2010.load(&load(1, 5_000, true)), Decision::NOTHING);
        assert_eq!(Vmx2010.load(&load(1, 8_000, true)), Decision::NOTHING);
        assert_eq!(Vmx2010.load(&load(0, 900, true)), Decision::NOTHING);
    }

    #[test]
    fn unified_2010_condemns_the_host_and_erases_elapsed_time() {
        let backwards = Decision {
            accuse: Some(KERNEL_MARK),
            ..adjusted(100)
        };
        let table = [
            (1, 900, false, backwards),
            (1, 3_000, false, Decision::NOTHING),
            (1, 3_000, true, adjusted(-2_000)),
            (0, 3_000, true, Decision::NOTHING),
        ];
        for (cpu, tsc, unstable, expected) in table {
            let got = Unified2010.load(&load(cpu, tsc, unstable));
            assert_eq!(got, expected, "{cpu} {tsc} {unstable}");
        }
    }

    #[test]
    fn unified_catchup_2010_gives_erased_time_back_at_the_next_entry() {
        // 1 GHz; its TSC was 0 at 1000 ns.
        let mut policy = UnifiedCatchup2010::new(
            GuestTsc::new(0),
            Nanos::new(1_000),
            Khz::new(1_000_000).unwrap(),
        );
        let entry = Entry {
            cpu: CpuId::new(0),
            tsc: HostTsc::new(3_000),
            at: Nanos::new(9_000),
            offset: TscOffset::ZERO,
            requested: true,
            fault: Fault::default(),
        };
        assert_eq!(
            policy.entry(&entry),
            Decision::NOTHING,
            "not before the first compensation"
        );
        // Not a move, but the host is condemned.
        let expected = Decision {
            request_entry: true,
            ..adjusted(-2_000)
        };
        assert_eq!(policy.load(&load(0, 3_000, true)), expected);
        // The guest reads 1000 then; the line is at 8000.
        let behind = Entry {
            offset: TscOffset::ZERO.wrapping_add(TscDelta::new(-2_000)),
            ..entry
        };
        assert_eq!(policy.entry(&behind), adjusted(7_000));
        assert_eq!(
            policy.entry(&Entry {
                requested: false,
                ..behind
            }),
            Decision::NOTHING
        );
        // Ahead: it stands where it is.
        let ahead = Entry {
            offset: TscOffset::new(6_000),
            ..entry
        };
        assert_eq!(policy.entry(&ahead), Decision::NOTHING);
    }
}
