//! Who may be trusted: a sticky mark with its reason, its time and the CPUs at fault.
//!
//! In 2010 the mark was one bit for the whole host, and any vCPU that met a difference of a few
//! ticks could set it: from then on every vCPU of every guest was "compensated". Here a mark has a
//! scope. What the platform reports, and a jump of all counters against the monotonic clock,
//! condemn the host. A backwards step or a measured skew condemn the pair of CPUs between which it
//! was seen, and a counter that fell behind real time condemns its own CPU. A mark is never taken
//! back while the host is up: a counter that was wrong once can be wrong again.

use core::fmt;

use crate::skew::SkewBounds;
use crate::units::{CpuId, Nanos, Ticks};

/// What the platform itself says against its TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformReport {
    /// No invariant TSC: CPUID 8000_0007H EDX bit 8 is 0 (SDM vol. 3, 17.17.1; APM vol. 3, E.4.6).
    NotInvariant,
    /// The kernel keeps time by something else: /sys/devices/system/clocksource says so.
    OtherClocksource,
    /// The kernel's watchdog or KVM marked it unstable.
    KernelMark,
}

/// Whom a mark concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All CPUs.
    Host,
    /// Moves between these two.
    Pair(CpuId, CpuId),
    /// Whatever runs on this one.
    Cpu(CpuId),
}

impl Scope {
    fn covers(self, a: CpuId, b: CpuId) -> bool {
        match self {
            Self::Host => true,
            Self::Pair(x, y) => (x == a && y == b) || (x == b && y == a),
            Self::Cpu(x) => x == a || x == b,
        }
    }

    fn same(self, other: Self) -> bool {
        match (self, other) {
            (Self::Pair(x, y), Self::Pair(..)) => other.covers(x, y),
            _ => self == other,
        }
    }
}

/// Why a counter is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The platform reports it.
    Platform(PlatformReport),
    /// A vCPU's move met a counter behind the one that it had left.
    BackwardsStep {
        /// The CPU left.
        from: CpuId,
        /// The CPU reached.
        to: CpuId,
        /// How far behind.
        by: Ticks,
    },
    /// Exchanged timestamps prove more skew than is allowed.
    Skew {
        /// One CPU.
        a: CpuId,
        /// The other.
        b: CpuId,
        /// What they prove of `TSC(b) - TSC(a)`.
        bounds: SkewBounds,
    },
    /// A move met a counter ahead of the one left, by more than the time that passed.
    ForwardLeap {
        /// The CPU left.
        from: CpuId,
        /// The CPU reached.
        to: CpuId,
        /// How far ahead.
        by: Ticks,
    },
    /// A CPU's counter fell behind real time: a lower rate, or a halt in deep idle.
    FellBehind {
        /// The CPU.
        cpu: CpuId,
        /// By how much, when it was noticed.
        by: Ticks,
    },
    /// All counters jumped against the monotonic clock: the host was paused or moved.
    HostJump {
        /// By how much.
        by: Ticks,
    },
    /// There was no room for one more mark, so nothing is trusted any more.
    TableFull,
}

impl Cause {
    /// Whom this cause condemns.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::Platform(_) | Self::HostJump { .. } | Self::TableFull => Scope::Host,
            Self::BackwardsStep { from, to, .. } | Self::ForwardLeap { from, to, .. } => {
                Scope::Pair(from, to)
            }
            Self::Skew { a, b, .. } => Scope::Pair(a, b),
            Self::FellBehind { cpu, .. } => Scope::Cpu(cpu),
        }
    }
}

impl Cause {
    /// The kind of cause, for programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Platform(PlatformReport::NotInvariant) => "not_invariant",
            Self::Platform(PlatformReport::OtherClocksource) => "other_clocksource",
            Self::Platform(PlatformReport::KernelMark) => "kernel_mark",
            Self::BackwardsStep { .. } => "backwards_step",
            Self::Skew { .. } => "skew",
            Self::ForwardLeap { .. } => "forward_leap",
            Self::FellBehind { .. } => "fell_behind",
            Self::HostJump { .. } => "host_jump",
            Self::TableFull => "table_full",
        }
    }

    /// How far off a counter was, at least; `None` where the cause is no measurement.
    #[must_use]
    pub fn size(self) -> Option<Ticks> {
        match self {
            Self::BackwardsStep { by, .. }
            | Self::ForwardLeap { by, .. }
            | Self::FellBehind { by, .. }
            | Self::HostJump { by } => Some(by),
            Self::Skew { bounds, .. } => Some(bounds.smallest_magnitude()),
            Self::Platform(_) | Self::TableFull => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform(PlatformReport::NotInvariant) => write!(f, "the TSC is not invariant"),
            Self::Platform(PlatformReport::OtherClocksource) => {
                write!(f, "the kernel's clocksource is not the TSC")
            }
            Self::Platform(PlatformReport::KernelMark) => {
                write!(f, "the kernel marked the TSC unstable")
            }
            Self::BackwardsStep { from, to, by } => {
                write!(
                    f,
                    "a vCPU that moved from {from} to {to} met a counter {by} behind"
                )
            }
            Self::ForwardLeap { from, to, by } => {
                write!(
                    f,
                    "a vCPU that moved from {from} to {to} met a counter {by} ahead"
                )
            }
            Self::Skew { a, b, bounds } => match bounds.reversed() {
                Some(behind) if bounds.at_most().is_negative() => {
                    write!(f, "{b} is behind {a} by {behind}")
                }
                _ => write!(f, "{b} is ahead of {a} by {bounds}"),
            },
            Self::FellBehind { cpu, by } => {
                write!(f, "the counter of {cpu} fell {by} behind real time")
            }
            Self::HostJump { by } => write!(f, "all counters jumped by {by} against real time"),
            Self::TableFull => write!(f, "more faults than can be kept apart"),
        }
    }
}

/// A mark: sticky for as long as the host is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Why.
    pub cause: Cause,
    /// When, on the host's monotonic clock.
    pub at: Nanos,
}

/// What a report changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The first mark of its scope.
    New,
    /// That scope, or the whole host, was marked before; the older mark stands.
    Already,
    /// No room: the whole host is marked from now on.
    HostInstead,
}

/// The marks of one host, up to `N` of them besides the host's own, without allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stability<const N: usize> {
    host: Option<Mark>,
    marks: [Option<Mark>; N],
}

impl<const N: usize> Default for Stability<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Stability<N> {
    /// Nothing is held against anyone.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            host: None,
            marks: [None; N],
        }
    }

    /// Takes note of `cause`, seen at `at`.
    pub fn mark(&mut self, cause: Cause, at: Nanos) -> Marked {
        let (mark, scope) = (Mark { cause, at }, cause.scope());
        if self.host.is_some() {
            return Marked::Already;
        }
        if scope == Scope::Host {
            self.host = Some(mark);
            return Marked::New;
        }
        if self.marks().any(|known| known.cause.scope().same(scope)) {
            return Marked::Already;
        }
        match self.marks.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(mark);
                Marked::New
            }
            None => {
                self.host = Some(Mark {
                    cause: Cause::TableFull,
                    at,
                });
                Marked::HostInstead
            }
        }
    }

    /// The mark on the whole host.
    #[must_use]
    pub const fn host(&self) -> Option<Mark> {
        self.host
    }

    /// The marks on pairs and CPUs, oldest first.
    pub fn marks(&self) -> impl Iterator<Item = Mark> {
        self.marks.iter().flatten().copied()
    }

    /// The mark that concerns a move from `a` to `b`, the host's before others.
    #[must_use]
    pub fn between(&self, a: CpuId, b: CpuId) -> Option<Mark> {
        self.host
            .or_else(|| self.marks().find(|mark| mark.cause.scope().covers(a, b)))
    }

    /// The mark that concerns a vCPU which stays on `cpu`, the host's before others.
    #[must_use]
    pub fn on(&self, cpu: CpuId) -> Option<Mark> {
        self.host.or_else(|| {
            self.marks()
                .find(|mark| mark.cause.scope() == Scope::Cpu(cpu))
        })
    }
}

/// What was held against a host, for whoever reads about it afterwards: of each kind of cause against each
/// pair or CPU the first, oldest first. Where [`Stability`] keeps what a decision needs, and so nothing
/// more once the host is condemned, here the reasons stay beside each other: what a move met, what was then
/// measured, and what the kernel made of it. No allocation; what finds no room is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<const N: usize> {
    marks: [Option<Mark>; N],
    left_out: u64,
}

impl<const N: usize> Default for Record<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Record<N> {
    /// Nothing is held against anyone.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            marks: [None; N],
            left_out: 0,
        }
    }

    /// Takes note of `cause`, seen at `at`; whether it is the first of its kind there, and there was room.
    ///
    /// ```
    /// # use tsc::{Nanos, Ticks, stability::{Cause, Record}};
    /// let mut record = Record::<4>::new();
    /// let jump = |by| Cause::HostJump { by: Ticks::new(by) };
    /// assert!(record.add(jump(7), Nanos::new(1)));
    /// assert!(!record.add(jump(9), Nanos::new(2)));
    /// assert_eq!(record.marks().next().unwrap().cause, jump(7));
    /// ```
    pub fn add(&mut self, cause: Cause, at: Nanos) -> bool {
        let is_same = |known: Mark| {
            known.cause.name() == cause.name() && known.cause.scope().same(cause.scope())
        };
        if self.marks().any(is_same) {
            return false;
        }
        match self.marks.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(Mark { cause, at });
                true
            }
            None => {
                self.left_out = self.left_out.saturating_add(1);
                false
            }
        }
    }

    /// The marks, oldest first.
    pub fn marks(&self) -> impl Iterator<Item = Mark> {
        self.marks.iter().flatten().copied()
    }

    /// How many times there was no room for a mark.
    #[must_use]
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::TscDelta;

    fn cpu(n: u32) -> CpuId {
        CpuId::new(n)
    }

    fn step(from: u32, to: u32) -> Cause {
        Cause::BackwardsStep {
            from: cpu(from),
            to: cpu(to),
            by: Ticks::new(7),
        }
    }

    #[test]
    fn skew_is_told_with_the_side_that_is_proven() {
        for (at_least, at_most, expected) in [
            (85, 115, "CPU 1 is ahead of CPU 0 by 85 to 115 ticks"),
            (-115, -85, "CPU 1 is behind CPU 0 by 85 to 115 ticks"),
            (-30, 0, "CPU 1 is ahead of CPU 0 by -30 to 0 ticks"),
            (0, 30, "CPU 1 is ahead of CPU 0 by 0 to 30 ticks"),
        ] {
            let bounds = SkewBounds::new(TscDelta::new(at_least), TscDelta::new(at_most));
            let cause = Cause::Skew {
                a: cpu(0),
                b: cpu(1),
                bounds: bounds.unwrap(),
            };
            assert_eq!(cause.to_string(), expected);
        }
    }

    #[test]
    fn small_step_on_a_stable_platform_condemns_the_pair_only() {
        let mut marks = Stability::<4>::new();
        assert_eq!(marks.mark(step(0, 1), Nanos::new(5)), Marked::New);
        assert_eq!(marks.host(), None);
        assert!(marks.between(cpu(0), cpu(1)).is_some());
        assert!(marks.between(cpu(1), cpu(0)).is_some());
        assert_eq!(marks.between(cpu(0), cpu(2)), None);
        assert_eq!(marks.on(cpu(0)), None);
    }

    #[test]
    fn mark_once_set_keeps_its_first_reason() {
        let mut marks = Stability::<4>::new();
        marks.mark(step(0, 1), Nanos::new(5));
        assert_eq!(marks.mark(step(1, 0), Nanos::new(9)), Marked::Already);
        assert_eq!(marks.between(cpu(1), cpu(0)).unwrap().at, Nanos::new(5));
        let platform = Cause::Platform(PlatformReport::NotInvariant);
        assert_eq!(marks.mark(platform, Nanos::new(11)), Marked::New);
        assert_eq!(
            marks.mark(Cause::HostJump { by: Ticks::new(1) }, Nanos::new(12)),
            Marked::Already
        );
        assert_eq!(
            marks.host(),
            Some(Mark {
                cause: platform,
                at: Nanos::new(11)
            })
        );
        assert_eq!(marks.between(cpu(2), cpu(3)).unwrap().cause, platform);
    }

    #[test]
    fn cpu_that_fell_behind_is_at_fault_alone_and_in_pairs() {
        let mut marks = Stability::<4>::new();
        marks.mark(
            Cause::FellBehind {
                cpu: cpu(2),
                by: Ticks::new(1),
            },
            Nanos::ZERO,
        );
        assert!(marks.on(cpu(2)).is_some());
        assert!(marks.between(cpu(0), cpu(2)).is_some());
        assert_eq!(marks.on(cpu(0)), None);
    }

    #[test]
    fn faults_without_room_condemn_the_host_rather_than_be_forgotten() {
        let mut marks = Stability::<1>::new();
        marks.mark(step(0, 1), Nanos::ZERO);
        assert_eq!(marks.mark(step(0, 2), Nanos::new(3)), Marked::HostInstead);
        assert_eq!(marks.host().unwrap().cause, Cause::TableFull);
        assert!(marks.between(cpu(5), cpu(6)).is_some());
    }

    #[test]
    fn record_keeps_what_follows_a_condemned_host() {
        let mut record = Record::<8>::new();
        let skew = Cause::Skew {
            a: cpu(1),
            b: cpu(0),
            bounds: SkewBounds::exactly(crate::units::TscDelta::new(-9)),
        };
        let kernel = Cause::Platform(PlatformReport::KernelMark);
        for (at, cause) in (1..).zip([kernel, step(0, 1), skew, step(1, 0), step(0, 2), kernel]) {
            record.add(cause, Nanos::new(at));
        }
        let kept: Vec<_> = record
            .marks()
            .map(|mark| (mark.at.get(), mark.cause.name()))
            .collect();
        assert_eq!(
            kept,
            [
                (1, "kernel_mark"),
                (2, "backwards_step"),
                (3, "skew"),
                (5, "backwards_step")
            ]
        );
        assert_eq!((skew.size(), kernel.size()), (Some(Ticks::new(9)), None));
        assert_eq!(record.left_out(), 0);
    }

    proptest! {
        /// Whatever comes, the first of each kind and scope is kept as long as there is room, in the
        /// order in which they came, and what finds none is counted.
        #[test]
        fn record_forgets_nothing_silently(
            causes in prop::collection::vec((0_u32..4, 0_u32..4, any::<bool>()), 0..40),
        ) {
            let mut record = Record::<5>::new();
            let mut all: Vec<Cause> = Vec::new();
            let mut refused = 0;
            for (at, (from, to, moved)) in (0..).zip(causes) {
                let cause = if moved {
                    step(from, to)
                } else {
                    Cause::FellBehind { cpu: cpu(from), by: Ticks::new(1) }
                };
                let known = all.iter().any(|other| {
                    other.name() == cause.name() && other.scope().same(cause.scope())
                });
                let added = record.add(cause, Nanos::new(at));
                prop_assert_eq!(added, !known && all.len() < 5);
                refused += u64::from(!known && !added);
                if added {
                    all.push(cause);
                }
            }
            prop_assert_eq!(record.marks().map(|mark| mark.cause).collect::<Vec<_>>(), all);
            prop_assert_eq!(record.left_out(), refused);
        }
    }
}
