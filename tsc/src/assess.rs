//! From what was measured on a host to what its guests' clocks can be promised.
//!
//! Facts go in, one [`Verdict`] for each [`Policy`] comes out. What a restore would be refused for is
//! not written down here a second time: the verdict on a restore is the answer of [`plan()`] to an
//! example of it, so that the advice and the deed cannot differ. Nothing is promised on the strength
//! of a claim: an [`Effect`] that nobody measured is [`Effect::Unknown`], and that is an obstacle.

use core::fmt;

use crate::measure::{DeviationBounds, RateBounds};
use crate::plan::{Allow, HostTime, Present, Refusal, Saved, TimePolicy, plan};
use crate::ratio::Svm;
use crate::skew::{Domains, SkewBounds, SkewMatrix};
use crate::stability::PlatformReport;
use crate::units::{GuestTsc, HostTsc, Hz, Khz, Nanos, NanosDelta, Ppb, Ppm};

/// What became of a request, by measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It was seen to do what was asked.
    InForce,
    /// It was refused, or accepted and seen not to do what was asked.
    NoEffect,
    /// It was accepted, and the kernel then changed it by itself: something like it is in force.
    Overridden,
    /// Nothing was measured, or too coarsely to tell.
    Unknown,
}

/// How the CPUs' counters lie to each other, by what is proven of each pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// All of them agree: they are proven to be within the bound of each other, and none proven apart.
    One,
    /// Some pair is proven to be apart ([`SkewBounds::is_apart`]).
    Several {
        /// The number of TSC domains.
        domains: usize,
    },
    /// No pair is proven to be apart, but not all are proven to be within the bound.
    Unproven,
}

impl Spread {
    /// What `skews` say, given the `domains` that follow from them.
    #[must_use]
    pub fn of<const N: usize>(skews: &SkewMatrix<N>, domains: &Domains<N>) -> Self {
        let cpus = skews.cpus();
        let apart = |a, b| skews.between(a, b).is_some_and(SkewBounds::is_apart);
        if domains.count() <= 1 {
            Self::One
        } else if cpus.iter().any(|&a| cpus.iter().any(|&b| apart(a, b))) {
            Self::Several {
                domains: domains.count(),
            }
        } else {
            Self::Unproven
        }
    }
}

/// What was measured on a host, and what its platform reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether KVM can be used at all.
    pub kvm: bool,
    /// The rate of its TSC.
    pub khz: Option<Khz>,
    /// Whether an offset takes effect.
    pub offset: Effect,
    /// Whether a rate beyond the tolerance is scaled to.
    pub scaling: Effect,
    /// Whether a guest faster than a host that cannot scale is pushed forward at its entries: of
    /// kernels that accept such a rate some do and some do not ([`HostTime::catch_up`]).
    pub catch_up: Effect,
    /// Within this KVM does not scale and says nothing (`tsc_tolerance_ppm`).
    pub tolerance: Ppm,
    /// What the platform says against its TSC.
    pub platform: Option<PlatformReport>,
    /// How the CPUs' counters lie to each other.
    pub spread: Spread,
}

/// What a user may want kept for a guest's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// A vCPU moves between the host's CPUs, and its clock neither steps back nor leaps.
    Move,
    /// A pause on this host, of which the guest is told.
    PauseAdvance,
    /// A pause on this host that the guest does not notice.
    PauseFreeze,
    /// A restore of a guest of this host's rate, which is told of the time that passed.
    RestoreAdvance,
    /// A restore of a guest of this host's rate, for which no time passed.
    RestoreFreeze,
    /// A restore of a guest whose TSC is slower than the host's.
    RestoreSlower,
    /// A restore of a guest whose TSC is faster than the host's.
    RestoreFaster,
    /// A restore of a guest whose rate differs from the host's by less than KVM's tolerance.
    RestoreNear,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Move,
        Self::PauseAdvance,
        Self::PauseFreeze,
        Self::RestoreAdvance,
        Self::RestoreFreeze,
        Self::RestoreSlower,
        Self::RestoreFaster,
        Self::RestoreNear,
    ];

    /// A name for scripts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::PauseAdvance => "pause-advance",
            Self::PauseFreeze => "pause-freeze",
            Self::RestoreAdvance => "restore-advance",
            Self::RestoreFreeze => "restore-freeze",
            Self::RestoreSlower => "restore-slower-guest",
            Self::RestoreFaster => "restore-faster-guest",
            Self::RestoreNear => "restore-near-rate",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Move => "moving vCPUs between CPUs",
            Self::PauseAdvance => "pause, time goes on",
            Self::PauseFreeze => "pause, time stands still",
            Self::RestoreAdvance => "restore, time went on",
            Self::RestoreFreeze => "restore, time stood still",
            Self::RestoreSlower => "restore of a guest at half the rate",
            Self::RestoreFaster => "restore of a guest at twice the rate",
            Self::RestoreNear => "restore of a guest at nearly the rate",
        })
    }
}

/// Whether a policy can be kept on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Kept,
    /// Only in a degraded form, which the user must allow or arrange for.
    Limited(Obstacle),
    /// No.
    Refused(Obstacle),
}

impl Verdict {
    /// What stands in the way.
    #[must_use]
    pub const fn obstacle(self) -> Option<Obstacle> {
        match self {
            Self::Kept => None,
            Self::Limited(obstacle) | Self::Refused(obstacle) => Some(obstacle),
        }
    }
}

/// What stands in the way of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no KVM to run guests.
    NoKvm,
    /// The host's TSC rate is not known.
    NoRate,
    /// Nobody saw an offset take effect.
    OffsetUnproven,
    /// The kernel moves offsets by itself: what is written is where it starts from.
    OffsetOverridden,
    /// Nobody saw a rate take effect.
    ScalingUnproven,
    /// The host cannot scale, and nobody measured whether a guest faster than it is pushed forward:
    /// kernels differ in that, and accept the rate either way.
    CatchUpUnproven,
    /// The platform does not vouch for its TSC.
    Platform(PlatformReport),
    /// The CPUs' counters differ.
    Domains {
        /// The number of TSC domains.
        count: usize,
    },
    /// The skew between some CPUs could not be bounded closely enough.
    SkewUnproven,
    /// The plan for it is refused.
    Plan(Refusal),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKvm => write!(f, "no guest runs here without KVM"),
            Self::NoRate => write!(f, "the rate of the host's TSC is not known"),
            Self::OffsetUnproven => write!(f, "no TSC offset was seen to take effect"),
            Self::OffsetOverridden => write!(
                f,
                "the kernel moves TSC offsets by itself, so that what is written holds only roughly"
            ),
            Self::ScalingUnproven => write!(f, "no TSC rate was seen to take effect"),
            Self::CatchUpUnproven => write!(
                f,
                "the host cannot scale, and a guest faster than it was not seen to be pushed forward"
            ),
            Self::Platform(PlatformReport::NotInvariant) => write!(
                f,
                "the TSC is not invariant: its rate may change and it may halt"
            ),
            Self::Platform(PlatformReport::OtherClocksource) => write!(
                f,
                "the kernel does not keep time by the TSC, and KVM then moves offsets by itself"
            ),
            Self::Platform(PlatformReport::KernelMark) => write!(
                f,
                "the kernel marked the TSC unstable, and KVM then moves offsets by itself"
            ),
            Self::Domains { count } => write!(
                f,
                "the CPUs' TSCs differ: keep each guest within one of the {count} TSC domains"
            ),
            Self::SkewUnproven => write!(
                f,
                "the CPUs' TSCs are not proven to agree: measure again on a quieter host"
            ),
            Self::Plan(refusal) => refusal.fmt(f),
        }
    }
}

/// What can be promised of `policy` on a host of these `facts`.
///
/// ```
/// use tsc::assess::{Effect, HostFacts, Policy, Spread, Verdict, verdict};
/// use tsc::{Khz, Ppm};
///
/// let facts = HostFacts {
///     kvm: true,
///     khz: Khz::new(2_000_000),
///     offset: Effect::InForce,
///     scaling: Effect::NoEffect,
///     catch_up: Effect::InForce,
///     tolerance: Ppm::KVM_TOLERANCE,
///     platform: None,
///     spread: Spread::One,
/// };
/// assert_eq!(verdict(&facts, Policy::RestoreFreeze), Verdict::Kept);
/// assert!(matches!(verdict(&facts, Policy::RestoreSlower), Verdict::Refused(_)));
/// ```
#[must_use]
pub fn verdict(facts: &HostFacts, policy: Policy) -> Verdict {
    if !facts.kvm {
        return Verdict::Refused(Obstacle::NoKvm);
    }
    let verdict = match policy {
        Policy::Move => match facts.spread {
            Spread::One => Verdict::Kept,
            Spread::Several { domains } => Verdict::Limited(Obstacle::Domains { count: domains }),
            Spread::Unproven => Verdict::Limited(
                facts
                    .platform
                    .map_or(Obstacle::SkewUnproven, Obstacle::Platform),
            ),
        },
        // The TSC goes on by itself.
        Policy::PauseAdvance => Verdict::Kept,
        Policy::PauseFreeze | Policy::RestoreFreeze => planned(facts, TimePolicy::Freeze, Some),
        Policy::RestoreAdvance => planned(facts, TimePolicy::ADVANCE, Some),
        Policy::RestoreSlower => {
            planned(facts, TimePolicy::ADVANCE, |host| Khz::new(host.get() / 2))
        }
        Policy::RestoreFaster => planned(facts, TimePolicy::ADVANCE, |host| {
            host.get().checked_mul(2).and_then(Khz::new)
        }),
        Policy::RestoreNear => planned(facts, TimePolicy::ADVANCE, |host| {
            near(host, facts.tolerance)
        }),
    };
    match (verdict, facts.platform) {
        (Verdict::Kept, Some(report)) => Verdict::Limited(Obstacle::Platform(report)),
        (verdict, _) => verdict,
    }
}

/// A rate half the tolerance above `host`, at least a kilohertz.
fn near(host: Khz, tolerance: Ppm) -> Option<Khz> {
    // OK because the product of a u32 and at most 10^6 has 52 bits.
    let half = u64::from(host.get()).wrapping_mul(tolerance.get().into()) / 2_000_000;
    let above = u32::try_from(half).ok()?.max(1);
    host.get().checked_add(above).and_then(Khz::new)
}

/// What the planner says to an example: a guest of a rate that follows from the host's.
fn planned(
    facts: &HostFacts,
    policy: TimePolicy,
    guest: impl FnOnce(Khz) -> Option<Khz>,
) -> Verdict {
    let Some(khz) = facts.khz else {
        return Verdict::Refused(Obstacle::NoRate);
    };
    if facts.offset == Effect::Unknown {
        return Verdict::Refused(Obstacle::OffsetUnproven);
    }
    let Some(guest_khz) = guest(khz) else {
        return Verdict::Refused(Obstacle::NoRate);
    };
    let host = HostTime {
        khz,
        offsets: matches!(facts.offset, Effect::InForce | Effect::Overridden),
        scaling: facts.scaling == Effect::InForce,
        catch_up: facts.catch_up == Effect::InForce,
        tolerance: facts.tolerance,
    };
    let saved = Saved {
        guest_tsc: GuestTsc::new(0),
        guest_khz,
        kvmclock: Nanos::ZERO,
        real: Nanos::ZERO,
        pairing_error: Nanos::ZERO,
    };
    let present = Present {
        host_tsc: HostTsc::new(0),
        real: Nanos::new(1_000_000_000),
        pairing_error: Nanos::ZERO,
    };
    // Of the two formats the narrower one: what it can hold, both can.
    let plan = |allow| plan::<Svm>(saved, present, host, policy, allow);
    let everything = Allow {
        unscaled: true,
        catch_up: true,
        clock_behind: true,
    };
    match (plan(Allow::default()), plan(everything)) {
        (Ok(_), _) if facts.offset == Effect::Overridden => {
            Verdict::Limited(Obstacle::OffsetOverridden)
        }
        (Ok(_), _) => Verdict::Kept,
        (
            Err(
                Refusal::RateBelowHost { .. }
                | Refusal::RateAboveHost { .. }
                | Refusal::WouldCatchUp { .. },
            ),
            _,
        ) if facts.scaling == Effect::Unknown => Verdict::Refused(Obstacle::ScalingUnproven),
        (Err(Refusal::RateAboveHost { .. }), _) if facts.catch_up == Effect::Unknown => {
            Verdict::Refused(Obstacle::CatchUpUnproven)
        }
        (Err(refusal), Ok(_)) => Verdict::Limited(Obstacle::Plan(refusal)),
        (Err(refusal), Err(_)) => Verdict::Refused(Obstacle::Plan(refusal)),
    }
}

/// The TSC's rate by CPUID leaf 15H: the crystal's rate times a ratio, rounded down (SDM vol. 2,
/// CPUID). `None` for a ratio that the leaf does not give, or a rate that no TSC has.
///
/// ```
/// # use tsc::{Hz, Khz, assess::rate_by_crystal};
/// // A crystal of 24 MHz, times 176, by 2.
/// let rate = rate_by_crystal(Hz::new(24_000_000).unwrap(), 176, 2);
/// assert_eq!(rate, Khz::new(2_112_000));
/// ```
#[must_use]
pub fn rate_by_crystal(crystal: Hz, numerator: u32, denominator: u32) -> Option<Khz> {
    // OK because 42 and 32 bits multiply to 74.
    let hz = u128::from(crystal.get()).wrapping_mul(numerator.into());
    let hz = u64::try_from(hz.checked_div(denominator.into())?).ok()?;
    Hz::new(hz).map(Hz::khz_floor)
}

/// By how much a measured rate differs from the one that somebody claims, relative to the claim;
/// rounded outward. `None` past 63 bits.
///
/// ```
/// # use tsc::{Hz, Khz, assess::deviation_from_claim, measure::RateBounds};
/// let hz = |hz| Hz::new(hz).unwrap();
/// let measured = RateBounds { at_least: hz(1_999_999_000), at_most: hz(2_000_001_000) };
/// let deviation = deviation_from_claim(measured, Khz::new(2_000_000).unwrap()).unwrap();
/// assert_eq!((deviation.at_least.get(), deviation.at_most.get()), (-500, 500));
/// ```
#[must_use]
pub fn deviation_from_claim(measured: RateBounds, claimed: Khz) -> Option<DeviationBounds> {
    let claimed = i128::from(claimed.hz().get());
    // Bit budget: a difference of two rates of 42 bits, and 30 for 10^9.
    let parts = |rate: Hz| {
        i128::from(rate.get())
            .wrapping_sub(claimed)
            .wrapping_mul(1_000_000_000)
    };
    let least = parts(measured.at_least).checked_div_euclid(claimed)?;
    // ceil(x / d) = -floor(-x / d).
    let most = parts(measured.at_most)
        .wrapping_neg()
        .checked_div_euclid(claimed)?
        .wrapping_neg();
    Some(DeviationBounds {
        at_least: Ppb::new(i64::try_from(least).ok()?),
        at_most: Ppb::new(i64::try_from(most).ok()?),
    })
}

/// Bounds on a skew in nanoseconds, of counters at `rate`; rounded outward. `None` past 63 bits.
///
/// ```
/// # use tsc::{Khz, TscDelta, assess::skew_nanos_outward, skew::SkewBounds};
/// let skew = SkewBounds::new(TscDelta::new(-3), TscDelta::new(5)).unwrap();
/// let (least, most) = skew_nanos_outward(skew, Khz::new(2_000_000).unwrap()).unwrap();
/// assert_eq!((least.get(), most.get()), (-2, 3));
/// ```
#[must_use]
pub fn skew_nanos_outward(skew: SkewBounds, rate: Khz) -> Option<(NanosDelta, NanosDelta)> {
    let khz = i128::from(rate.get());
    // Bit budget: 64 and 20 for 10^6.
    let scaled = |ticks: i64| i128::from(ticks).wrapping_mul(1_000_000);
    let least = scaled(skew.at_least().get()).checked_div_euclid(khz)?;
    let most = scaled(skew.at_most().get())
        .wrapping_neg()
        .checked_div_euclid(khz)?
        .wrapping_neg();
    let nanos = |nanos: i128| i64::try_from(nanos).ok().map(NanosDelta::new);
    Some((nanos(least)?, nanos(most)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{CpuId, Ticks, TscDelta};
    use proptest::prelude::*;

    fn facts() -> HostFacts {
        HostFacts {
            kvm: true,
            khz: Khz::new(2_000_000),
            offset: Effect::InForce,
            scaling: Effect::InForce,
            catch_up: Effect::InForce,
            tolerance: Ppm::KVM_TOLERANCE,
            platform: None,
            spread: Spread::One,
        }
    }

    /// One letter per policy, in the order of [`Policy::ALL`]: kept, limited, refused.
    fn letters(facts: &HostFacts) -> String {
        let letter = |policy| match verdict(facts, policy) {
            Verdict::Kept => 'k',
            Verdict::Limited(_) => 'l',
            Verdict::Refused(_) => 'r',
        };
        Policy::ALL.into_iter().map(letter).collect()
    }

    #[test]
    fn verdicts_follow_from_the_facts() {
        let rows = [
            // A host with everything: only the rate within the tolerance needs permission.
            (facts(), "kkkkkkkl"),
            // Without scaling a slower guest is refused, a faster one needs permission.
            (
                HostFacts {
                    scaling: Effect::NoEffect,
                    ..facts()
                },
                "kkkkkrll",
            ),
            // Nor is it pushed everywhere.
            (
                HostFacts {
                    scaling: Effect::NoEffect,
                    catch_up: Effect::NoEffect,
                    ..facts()
                },
                "kkkkkrrl",
            ),
            (
                HostFacts {
                    scaling: Effect::NoEffect,
                    catch_up: Effect::Unknown,
                    ..facts()
                },
                "kkkkkrrl",
            ),
            // Without offsets only what needs none: moves, and pauses during which time goes on.
            (
                HostFacts {
                    offset: Effect::NoEffect,
                    ..facts()
                },
                "kkrrrrrr",
            ),
            // What nobody measured is not promised.
            (
                HostFacts {
                    offset: Effect::Unknown,
                    ..facts()
                },
                "kkrrrrrr",
            ),
            (
                HostFacts {
                    scaling: Effect::Unknown,
                    ..facts()
                },
                "kkkkkrrl",
            ),
            // A kernel that moves offsets by itself keeps nothing that needs one exactly.
            (
                HostFacts {
                    offset: Effect::Overridden,
                    scaling: Effect::NoEffect,
                    ..facts()
                },
                "kklllrll",
            ),
            (
                HostFacts {
                    khz: None,
                    ..facts()
                },
                "kkrrrrrr",
            ),
            (
                HostFacts {
                    platform: Some(PlatformReport::NotInvariant),
                    ..facts()
                },
                "llllllll",
            ),
            (
                HostFacts {
                    spread: Spread::Several { domains: 2 },
                    ..facts()
                },
                "lkkkkkkl",
            ),
            (
                HostFacts {
                    spread: Spread::Unproven,
                    ..facts()
                },
                "lkkkkkkl",
            ),
            (
                HostFacts {
                    kvm: false,
                    ..facts()
                },
                "rrrrrrrr",
            ),
        ];
        for (facts, expected) in rows {
            assert_eq!(letters(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn unmeasured_scaling_is_called_unproven_and_not_absent() {
        let facts = HostFacts {
            scaling: Effect::Unknown,
            ..facts()
        };
        for policy in [Policy::RestoreSlower, Policy::RestoreFaster] {
            assert_eq!(
                verdict(&facts, policy),
                Verdict::Refused(Obstacle::ScalingUnproven)
            );
        }
    }

    #[test]
    fn catch_up_is_what_was_measured_and_else_refused_with_the_reason() {
        let refusal = |catch_up| {
            let facts = HostFacts {
                scaling: Effect::NoEffect,
                catch_up,
                ..facts()
            };
            verdict(&facts, Policy::RestoreFaster)
        };
        let khz = |khz| Khz::new(khz).unwrap();
        let (guest, host) = (khz(4_000_000), khz(2_000_000));
        assert_eq!(
            refusal(Effect::NoEffect),
            Verdict::Refused(Obstacle::Plan(Refusal::RateAboveHost { guest, host }))
        );
        assert_eq!(
            refusal(Effect::Unknown),
            Verdict::Refused(Obstacle::CatchUpUnproven)
        );
        assert_eq!(
            refusal(Effect::InForce),
            Verdict::Limited(Obstacle::Plan(Refusal::WouldCatchUp { guest, host }))
        );
    }

    #[test]
    fn tolerance_of_zero_leaves_no_rate_unscaled() {
        let facts = HostFacts {
            tolerance: Ppm::new(0).unwrap(),
            ..facts()
        };
        assert_eq!(verdict(&facts, Policy::RestoreNear), Verdict::Kept);
    }

    #[test]
    fn spread_of_skewed_and_of_unknown_cpus_is_told_apart() {
        let cpus = [CpuId::new(0), CpuId::new(1)];
        let spread = |skew: Option<(i64, i64)>, bound| {
            let mut matrix = SkewMatrix::<2>::new(&cpus).unwrap();
            if let Some((least, most)) = skew {
                let skew = SkewBounds::new(TscDelta::new(least), TscDelta::new(most));
                matrix.note(cpus[0], cpus[1], skew.unwrap()).unwrap();
            }
            Spread::of(&matrix, &Domains::agreeing(&matrix, Ticks::new(bound)))
        };
        assert_eq!(spread(Some((-5, 10)), 10), Spread::One);
        assert_eq!(spread(Some((-5, 11)), 10), Spread::Unproven);
        assert_eq!(spread(None, 10), Spread::Unproven);
        assert_eq!(spread(Some((11, 15)), 10), Spread::Several { domains: 2 });
        assert_eq!(spread(Some((-15, -11)), 10), Spread::Several { domains: 2 });
        // Well within the bound, and proven to differ
        assert_eq!(spread(Some((4, 6)), 10), Spread::Several { domains: 2 });
        assert_eq!(spread(Some((0, 6)), 10), Spread::One);
    }

    #[test]
    fn rate_by_crystal_of_a_leaf_without_a_ratio_is_none() {
        let crystal = Hz::new(24_000_000).unwrap();
        assert_eq!(rate_by_crystal(crystal, 0, 2), None);
        assert_eq!(rate_by_crystal(crystal, 176, 0), None);
        assert_eq!(rate_by_crystal(crystal, u32::MAX, 1), None);
    }

    proptest! {
        /// The deviation's ends hold the measured ends, and no tighter whole ppb does.
        #[test]
        fn deviation_is_outward_and_tight(
            claimed in 1_u32..,
            (least, most) in (1_000_u64..=4_294_967_295_000, 1_000_u64..=4_294_967_295_000),
        ) {
            let (least, most) = (least.min(most), least.max(most));
            let measured = RateBounds {
                at_least: Hz::new(least).unwrap(),
                at_most: Hz::new(most).unwrap(),
            };
            let claimed = Khz::new(claimed).unwrap();
            let deviation = deviation_from_claim(measured, claimed).unwrap();
            let (claimed, giga) = (i128::from(claimed.hz().get()), 1_000_000_000_i128);
            // claimed x (1 + ppb / 10^9), in 10^-9 Hz
            let at = |ppb: i128| claimed * (giga + ppb);
            let least_ppb = i128::from(deviation.at_least.get());
            let most_ppb = i128::from(deviation.at_most.get());
            prop_assert!(at(least_ppb) <= i128::from(least) * giga);
            prop_assert!(at(least_ppb + 1) > i128::from(least) * giga);
            prop_assert!(at(most_ppb) >= i128::from(most) * giga);
            prop_assert!(at(most_ppb - 1) < i128::from(most) * giga);
        }

        /// In nanoseconds the interval is no smaller, and by less than one at either end.
        #[test]
        fn skew_in_nanoseconds_is_outward_and_tight(
            (a, b) in (-(1_i64 << 40)..1 << 40, -(1_i64 << 40)..1 << 40),
            khz in 1_000_u32..,
        ) {
            let skew = SkewBounds::new(TscDelta::new(a.min(b)), TscDelta::new(a.max(b))).unwrap();
            let (least, most) = skew_nanos_outward(skew, Khz::new(khz).unwrap()).unwrap();
            // ticks x 10^6 = ns x khz, when exact
            let ticks = |nanos: i128| nanos * i128::from(khz);
            let exact = |delta: TscDelta| i128::from(delta.get()) * 1_000_000;
            let (least, most) = (i128::from(least.get()), i128::from(most.get()));
            prop_assert!(ticks(least) <= exact(skew.at_least()));
            prop_assert!(ticks(least + 1) > exact(skew.at_least()));
            prop_assert!(ticks(most) >= exact(skew.at_most()));
            prop_assert!(ticks(most - 1) < exact(skew.at_most()));
        }
    }
}
