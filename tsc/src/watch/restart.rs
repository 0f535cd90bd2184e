//! From which offset all vCPUs of a guest go on, after one of them was found elsewhere than the others.

use crate::offset::offset_between;
use crate::ratio::{RatioFormat, TscRatio};
use crate::skew::SkewBounds;
use crate::units::{GuestTsc, HostTsc, NanosDelta, Ticks, TscDelta, TscOffset};

/// By how much a guest may be ahead of the line that KVM forwards it to, before all its vCPUs are worth a stop.
///
/// By a lead the guest's clock stands still while a vCPU does not run, until the lead is used up; it heals by itself.
/// Smaller ones come about by KVM's compensation itself, where it takes the TSC before the host's clock
/// (`kvm_guest_time_update`) and reading an HPET takes long. To begin the line anew for those pushes the guest forward
/// again and again: on an emulated host whose threads were moved 100 times a second for 30 s, 36 times with a limit of
/// 1 ms; not once with this one, and the guest was at most 99 ms ahead in the end.
pub const LEAD_LEFT_ALONE: NanosDelta = NanosDelta::new(100_000_000);

/// What one vCPU's clock shows while it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The counter of the CPU that the vCPU's thread is on,
    pub host: HostTsc,
    /// and what the guest would read then.
    pub now: GuestTsc,
    /// The latest that the guest can have read before it was stopped.
    pub seen: GuestTsc,
    /// That CPU's counter less the home CPU's, by exchanged timestamps.
    pub skew: TscDelta,
}

/// From where a guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart<F: RatioFormat> {
    ratio: TscRatio<F>,
    home: TscOffset,
}

impl<F: RatioFormat> Restart<F> {
    /// The offset of a vCPU on the home CPU, or on any whose counter agrees with that one's.
    #[must_use]
    pub const fn home(&self) -> TscOffset {
        self.home
    }

    /// The offset of a vCPU that stays where it stands: the guest's clock there reads what it reads on
    /// the home CPU. Exact at the instant of the standing, and without scaling always.
    #[must_use]
    pub fn offset_of(&self, standing: &Standing) -> TscOffset {
        let at_home = self.ratio.scale_floor(standing.at_home());
        let here = self.ratio.scale_floor(standing.host);
        // guest = at home + home offset = here + this offset.
        self.home
            .wrapping_add(TscOffset::new(at_home.get()).wrapping_since(TscOffset::new(here.get())))
    }

    /// By how much that takes the vCPU forward; never negative, as long as none is half the circle ahead.
    #[must_use]
    pub fn forward(&self, standing: &Standing) -> TscDelta {
        let here = self.ratio.scale_floor(standing.host);
        let then = here.get().wrapping_add(self.offset_of(standing).get());
        GuestTsc::new(then).wrapping_since(standing.now)
    }
}

impl Standing {
    /// The home CPU's counter at the same instant.
    const fn at_home(&self) -> HostTsc {
        self.host.wrapping_add(self.skew.wrapping_neg())
    }
}

/// From where all vCPUs go on: the latest of where any of them stands or can have been seen, and of where
/// the guest was at home before. A guest's clock is so taken forward only, and all its vCPUs agree.
///
/// `home` is the offset that the guest had on the home CPU as long as nothing was wrong: what a vCPU on a
/// CPU whose counter is behind is brought forward to.
///
/// ```
/// # use tsc::{GuestTsc, HostTsc, TscDelta, TscOffset, TscRatio, Vmx};
/// # use tsc::watch::{Standing, restart};
/// let ratio = TscRatio::<Vmx>::ONE;
/// // Both on the home CPU; the second vCPU was on one whose counter is 3,000 ahead.
/// let at = |now, seen| Standing {
///     host: HostTsc::new(now), now: GuestTsc::new(now), seen: GuestTsc::new(seen), skew: TscDelta::ZERO,
/// };
/// let vcpus = [at(1_000, 999), at(1_010, 3_990)];
/// let all = restart(ratio, &vcpus, TscOffset::ZERO);
/// assert_eq!(all.home(), TscOffset::new(2_980));
/// assert_eq!(all.forward(&vcpus[1]).get(), 2_980);
/// ```
#[must_use]
pub fn restart<F: RatioFormat>(
    ratio: TscRatio<F>,
    standings: &[Standing],
    home: TscOffset,
) -> Restart<F> {
    let later = |a: TscOffset, b: TscOffset| {
        if b.wrapping_since(a).is_negative() {
            a
        } else {
            b
        }
    };
    let at_home = standings.iter().flat_map(|standing| {
        let scaled = ratio.scale_floor(standing.at_home());
        [standing.now, standing.seen].map(|reading| offset_between::<F>(scaled, reading))
    });
    Restart {
        ratio,
        home: at_home.fold(home, later),
    }
}

/// How far a guest whose vCPUs' threads may go to any CPU was taken forward by restarts.
///
/// No offset is right on two CPUs whose counters are apart, and a thread goes from one to the other without anybody in
/// user space being asked before. A vCPU that comes to the CPU that is ahead reads so much more, and the others are to
/// follow it, so that a guest whose threads go to and fro would run away from real time by the skew at each turn. It
/// is taken forward as long as it comes to be ahead by no more than the largest skew for each of its vCPUs: each of
/// them may have gone once. Beyond that its vCPUs are worse off together than apart.
///
/// ```
/// # use tsc::{TscDelta, TscOffset, skew::SkewBounds, watch::Carried};
/// let mut carried = Carried::default();
/// assert!(!carried.may_go_on(2), "no CPU is known to be apart");
/// carried.know(SkewBounds::exactly(TscDelta::new(-3_000)));
/// carried.add(TscOffset::new(500), TscOffset::new(3_500));
/// assert!(carried.may_go_on(2));
/// carried.add(TscOffset::new(3_500), TscOffset::new(3_501));
/// assert!(!carried.may_go_on(2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    by: Ticks,
    /// The largest skew that was known, even if it has gone since.
    skew: Ticks,
}

impl Carried {
    /// Two CPUs were proven apart.
    pub fn know(&mut self, bounds: SkewBounds) {
        self.skew = self.skew.max(bounds.largest_magnitude());
    }

    /// A restart took the guest from one offset on its home CPU to a later one.
    pub const fn add(&mut self, from: TscOffset, to: TscOffset) {
        let by = to.wrapping_since(from).magnitude();
        self.by = Ticks::new(self.by.get().saturating_add(by.get()));
    }

    /// By how much it was taken forward, all together.
    #[must_use]
    pub const fn by(&self) -> Ticks {
        self.by
    }

    /// Whether a guest with so many vCPUs goes on from a later reading once more.
    #[must_use]
    pub fn may_go_on(&self, vcpus: usize) -> bool {
        let vcpus = u64::try_from(vcpus).unwrap_or(u64::MAX);
        let after = self.by.get().checked_add(self.skew.get());
        let most = self.skew.get().saturating_mul(vcpus);
        self.skew > Ticks::ZERO && after.is_some_and(|after| after <= most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ratio::{Svm, Vmx};

    #[test]
    fn guest_is_carried_by_the_skew_for_each_vcpu_and_no_further() {
        for (carried, skew, vcpus, expected) in [
            // The only vCPU goes, and back.
            (0, 7, 1, true),
            (1, 7, 1, false),
            // 7 + 7 = 2 x 7; 8 + 7 is more.
            (7, 7, 2, true),
            (8, 7, 2, false),
            // A skew that grew: 14 + 100 < 2 x 100.
            (14, 100, 2, true),
            (0, 7, 0, false),
            (u64::MAX, 1, 2, false),
            (0, u64::MAX, usize::MAX, true),
            (0, 0, 2, false),
        ] {
            let (by, skew) = (Ticks::new(carried), Ticks::new(skew));
            let found = Carried { by, skew }.may_go_on(vcpus);
            assert_eq!(found, expected, "{carried} {skew} {vcpus}");
        }
    }

    /// Exact: what the guest reads on a CPU, by integers.
    fn guest<F: RatioFormat>(ratio: TscRatio<F>, host: u64, offset: u64) -> u64 {
        let product = (u128::from(host) * u128::from(ratio.bits())) >> F::FRACTION_BITS;
        u64::try_from(product % (1 << 64))
            .unwrap()
            .wrapping_add(offset)
    }

    fn holds<F: RatioFormat>(
        ratio: TscRatio<F>,
        base: u64,
        home: u64,
        vcpus: &[(u64, i64, i64, u64)],
    ) -> Result<(), TestCaseError> {
        // Each at its own instant, a little after the base, on a CPU with some skew, with an offset of
        // its own, having been seen a little before or after.
        let standings: Vec<_> = vcpus
            .iter()
            .map(|&(later, skew, apart, seen)| {
                let host = base.wrapping_add(later).wrapping_add_signed(skew);
                let now = guest(ratio, host, home.wrapping_add_signed(apart));
                Standing {
                    host: HostTsc::new(host),
                    now: GuestTsc::new(now),
                    seen: GuestTsc::new(now.wrapping_add(seen)),
                    skew: TscDelta::new(skew),
                }
            })
            .collect();
        let all = restart(ratio, &standings, TscOffset::new(home));
        let ahead_of_home = all.home().get().wrapping_sub(home).cast_signed();
        prop_assert!(ahead_of_home >= 0, "the guest is not taken back at home");
        let mut reached = ahead_of_home == 0;
        for standing in &standings {
            let at_home = standing.host.get().wrapping_sub_signed(standing.skew.get());
            let there = guest(ratio, standing.host.get(), all.offset_of(standing).get());
            prop_assert_eq!(there, guest(ratio, at_home, all.home().get()), "all agree");
            for reading in [standing.now, standing.seen] {
                let forward = there.wrapping_sub(reading.get()).cast_signed();
                prop_assert!(forward >= 0, "nobody goes backwards: {}", forward);
                reached |= forward == 0;
            }
            let forward = there.wrapping_sub(standing.now.get()).cast_signed();
            prop_assert_eq!(all.forward(standing).get(), forward);
        }
        prop_assert!(reached, "nobody is taken further than to the latest");
        Ok(())
    }

    proptest! {
        #[test]
        fn restart_is_forward_for_all_and_no_further_than_needed(
            base in 1_u64 << 50..1 << 60,
            home in any::<u64>(),
            bits in prop_oneof![Just(1_u64 << 48), (1_u64 << 47)..(1 << 49)],
            vcpus in prop::collection::vec(
                (0_u64..1 << 30, -(1_i64 << 40)..1 << 40, -(1_i64 << 40)..1 << 40, 0_u64..1 << 40),
                1..5,
            ),
        ) {
            holds(TscRatio::<Vmx>::from_bits(bits).unwrap(), base, home, &vcpus)?;
            holds(TscRatio::<Svm>::from_bits(bits >> 16).unwrap(), base, home, &vcpus)?;
        }
    }
}
