//! The policy of ours: the one that the seed calls "a slightly more clever version".
//!
//! It acts only where something is known or seen against the CPUs at hand, and then it continues
//! the guest's clock instead of stopping it:
//!
//! - between two CPUs that are at fault, by the skew that is proven of them, or else by the time
//!   that passed on the monotonic clock;
//! - on a CPU that does not keep time, by the guest's line: forward to it when behind, and no
//!   further back than to what the guest has read when ahead (it can be, after a move);
//! - where the guest still runs behind by what a slew owes it, forward only, on whatever CPU;
//! - everywhere else not at all. An offset that nobody touched keeps KVM's master clock on, and
//!   with it the guest's fast clock.
//!
//! A vCPU on a CPU that is held not to keep time is looked at again soon, and for as long as it runs
//! there, whether or not it was behind at the look before: the guest lags by no more than such a CPU
//! loses between two looks, even when its rate drops in the midst of a stay. A CPU that nothing is held
//! against is found out at the next look that time brings.
//!
//! What it sees for itself it reports: a counter that moved otherwise than the monotonic clock says,
//! by more than that clock's own error, a tolerance for the rate, and what whole ticks and whole
//! nanoseconds are rounded by ([`Targeted::allowance`]). The tolerance is what separates
//! a rate that *dropped* from one that is merely not quite the nominal one: every real TSC is, and a
//! guest that disciplines its clock expects it to stay that way.
//!
//! Two cooks ruin a clock. When the offset is not the one that this policy left, somebody else (KVM
//! on a host that it condemned) compensates too, and from then on it only observes.

use super::{CatchUp, Decision, Entry, Fault, Guarantees, Line, Load, Policy, When};
use crate::offset::guest_unscaled;
use crate::rate::{TickRate, ticks_exact_floor};
use crate::stability::Cause;
use crate::units::{CpuId, GuestTsc, HostTsc, Khz, Nanos, Ppm, Ticks, TscDelta, TscOffset};
use crate::wide::Factor;

/// What [`Targeted`] goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetedConfig {
    /// What the guest's TSC should read.
    pub line: Line,
    /// How time is given back.
    pub catch_up: CatchUp,
    /// How wrong a reading of the monotonic clock can be: its resolution; and where that clock is
    /// itself made of the TSCs, the largest skew among them. That a reading is in whole nanoseconds
    /// is allowed for besides: a clock made of one counter has an error of 0.
    pub clock_error: Nanos,
    /// How far from nominal a counter's rate may be without being at fault.
    pub rate_tolerance: Ppm,
    /// How soon to look again at a vCPU on a CPU that is held not to keep time: what it lags meanwhile
    /// is at most this. A look is an exit, and so is paid for on such CPUs, and on no others.
    pub recheck: Nanos,
}

/// One vCPU's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targeted {
    config: TargetedConfig,
    /// `clock_error`, or 1 ns if that is more, in ticks: nobody is behind by less than the clock's
    /// last digit.
    clock_error: Ticks,
    /// What two readings of the clock and two of a counter can differ by while both keep time.
    allowance: Ticks,
    /// `rate_tolerance` as a factor; `None` for 0.
    tolerance: Option<Factor>,
    /// The last reading on the CPU that the vCPU runs on.
    last: Option<(CpuId, HostTsc, Nanos)>,
    /// When the guest was last brought forward, or seen to need none: what a slew's share counts
    /// from, so that good times save nothing up for a leap.
    forwarded_at: Option<Nanos>,
    /// The guest is still behind its line, because a slew gives time back little by little; on
    /// whatever CPU it runs next.
    owing: bool,
    /// The offset as this policy left it.
    left: Option<TscOffset>,
    observing: bool,
}

/// What a stretch of time looked like on the counter, against the monotonic clock.
struct Stretch {
    /// The ticks that should have been counted.
    expected: Ticks,
    /// Counted less expected, the known skew taken out; when that is more than can be innocent.
    error: Option<TscDelta>,
}

impl Targeted {
    /// What it promises.
    pub const GUARANTEES: Guarantees = Guarantees {
        monotonic_across_moves: When::Always,
        keeps_elapsed_time: When::Always,
        leaves_the_innocent_alone: true,
    };

    /// A vCPU under this policy.
    #[must_use]
    pub fn new(config: TargetedConfig) -> Self {
        let rate = config.line.rate();
        Self {
            config,
            clock_error: Self::patience(rate, config.clock_error),
            allowance: Self::allowance(rate.khz(), config.clock_error),
            tolerance: Factor::floor(u64::from(config.rate_tolerance.get()), 1_000_000),
            last: None,
            forwarded_at: None,
            owing: false,
            left: None,
            observing: false,
        }
    }

    /// Whether somebody else was found to move the offset, so that this policy only watches.
    #[must_use]
    pub const fn is_observing(&self) -> bool {
        self.observing
    }

    /// A CPU was seen to run at `khz`, more than any before: the line is bent to it.
    pub fn raise_rate(&mut self, now: Nanos, khz: Khz) {
        if khz > self.config.line.rate().khz() {
            let rate = TickRate::new(khz);
            self.config.line = self.config.line.bent(now, rate);
            self.clock_error = Self::patience(rate, self.config.clock_error);
            self.allowance = Self::allowance(khz, self.config.clock_error);
        }
    }

    /// One reading's error in ticks, at least that of a clock which tells whole nanoseconds.
    fn patience(rate: TickRate, clock_error: Nanos) -> Ticks {
        rate.ticks_floor(clock_error.max(Nanos::new(1)))
            .unwrap_or(Ticks::new(u64::MAX))
    }

    /// By how many ticks an innocent counter can differ from what the clock makes expected, rates
    /// apart: `ceil(r (2 E + 1)) + 2` at `r` ticks in a nanosecond and a clock error of `E`.
    ///
    /// With the true time `D` between two readings, and `passed` as the clock shows it:
    ///
    /// - each reading of the clock is wrong by at most `E`, and then rounded down to a nanosecond;
    ///   of two roundings the difference is less than 1: `|passed - D| < 2 E + 1`;
    /// - each reading of the counter is rounded down to a tick: `|counted - r D| < 1`;
    /// - what is expected is rounded down twice at most ([`TickRate::ticks_floor`]):
    ///   `r passed - 2 < expected <= r passed`.
    ///
    /// So `counted - expected < r (2 E + 1) + 3` and `expected - counted < r (2 E + 1) + 1`; both are
    /// whole, and a whole number below `x + 3` is at most `ceil(x) + 2`.
    fn allowance(khz: Khz, clock_error: Nanos) -> Ticks {
        let readings = clock_error
            .get()
            .checked_mul(2)
            .and_then(|e| e.checked_add(1));
        // The floor and one more are no less than the ceiling.
        readings
            .and_then(|nanos| ticks_exact_floor(Nanos::new(nanos), khz))
            .map_or(Ticks::new(u64::MAX), |ticks| {
                Ticks::new(ticks.get().saturating_add(3))
            })
    }

    /// Compares a counter's advance with the monotonic clock's.
    ///
    /// A counter whose rate is off by no more than the tolerance `p` adds `p r D` to the difference.
    /// `D` may be longer than the clock shows, so the share is one of `expected + allowance`, which is
    /// at least `r D`; and it is rounded down twice at most, hence 2 more.
    fn stretch(&self, from: (HostTsc, Nanos), to: (HostTsc, Nanos), skew: TscDelta) -> Stretch {
        let passed = to.1.saturating_sub(from.1);
        let expected = self
            .config
            .line
            .rate()
            .ticks_floor(passed)
            .unwrap_or(Ticks::ZERO);
        let longest = expected.get().saturating_add(self.allowance.get());
        let share = self.tolerance.map_or(0, |factor| {
            // A share of less than the whole has no more bits than the whole.
            factor
                .apply_floor(longest)
                .map_or(0, |share| share.saturating_add(2))
        });
        let tolerance = share.saturating_add(self.allowance.get());
        let counted = to.0.wrapping_since(from.0);
        // OK because all three are within 2^64 and i128 holds their sum.
        let error = i128::from(counted.get())
            .wrapping_sub(i128::from(skew.get()))
            .wrapping_sub(i128::from(expected.get()));
        let error = (error.unsigned_abs() > u128::from(tolerance))
            .then(|| TscDelta::new(i64::try_from(error).unwrap_or(i64::MIN)));
        Stretch { expected, error }
    }

    /// Whether another hand moved the offset; from the first time on, for ever.
    fn interfered(&mut self, offset: TscOffset) -> bool {
        self.observing |= self.left.is_some_and(|left| left != offset);
        self.observing
    }

    /// Notes where things stand after `decision`.
    fn leave(&mut self, at: (CpuId, HostTsc, Nanos), offset: TscOffset, decision: &Decision) {
        self.last = Some(at);
        self.left = Some(decision.adjust.map_or(offset, |by| offset.wrapping_add(by)));
        if decision.adjust.is_some() || !self.owing || self.forwarded_at.is_none() {
            self.forwarded_at = Some(at.2);
        }
    }

    /// Whether a guest that reads `reading` is behind its line by more than the clock's error.
    fn is_behind(&self, reading: GuestTsc, now: Nanos) -> bool {
        self.config
            .line
            .behind(reading, now)
            .is_some_and(|behind| behind > self.clock_error)
    }

    /// The reading of a vCPU on a CPU that does not keep time: forward to the line; or, when ahead
    /// of it, back towards the line as far as `floor` allows.
    fn on_line(&self, base: GuestTsc, floor: GuestTsc, now: Nanos) -> GuestTsc {
        let line = &self.config.line;
        let Some(target) = line.target_floor(now) else {
            return base;
        };
        if !base.is_before(target) {
            return later(target, floor);
        }
        let since = self.forwarded_at.unwrap_or(now);
        match self.config.catch_up.forward(line, base, now, since) {
            Some(by) => base.wrapping_add(by),
            None => base,
        }
    }
}

/// The later of two readings less than half the circle apart.
const fn later(a: GuestTsc, b: GuestTsc) -> GuestTsc {
    if a.is_before(b) { b } else { a }
}

/// What a counter's error on one CPU is called.
fn by_itself(cpu: CpuId, error: TscDelta) -> Cause {
    let by = error.magnitude();
    if error.is_negative() {
        Cause::FellBehind { cpu, by }
    } else {
        Cause::HostJump { by }
    }
}

impl Policy for Targeted {
    fn name(&self) -> &'static str {
        "targeted"
    }

    fn guarantees(&self) -> Guarantees {
        Self::GUARANTEES
    }

    fn load(&mut self, load: &Load) -> Decision {
        let place = (load.cpu, load.tsc, load.at);
        if self.interfered(load.offset) {
            return Decision::NOTHING;
        }
        let Some(left) = load.left else {
            self.leave(place, load.offset, &Decision::NOTHING);
            return Decision::NOTHING;
        };
        let (here, seen) = (
            guest_unscaled(load.tsc, load.offset),
            guest_unscaled(left.tsc, load.offset),
        );
        let moved = load.moved();
        let Fault {
            pair,
            mut lags,
            skew,
        } = load.fault;
        let known = if moved && pair { skew } else { None };
        let apart = known.unwrap_or(TscDelta::ZERO);

        let stretch = self.stretch((left.tsc, left.at), (load.tsc, load.at), apart);
        let backwards = here.is_before(seen) && known.is_none();
        let accuse = match stretch.error {
            Some(error) if !moved => Some(by_itself(load.cpu, error)),
            Some(error) if error.is_negative() => {
                let by = error.magnitude();
                Some(Cause::BackwardsStep {
                    from: left.cpu,
                    to: load.cpu,
                    by,
                })
            }
            Some(error) => {
                let by = error.magnitude();
                Some(Cause::ForwardLeap {
                    from: left.cpu,
                    to: load.cpu,
                    by,
                })
            }
            None if backwards => {
                let by = here.wrapping_since(seen).magnitude();
                Some(if moved {
                    Cause::BackwardsStep {
                        from: left.cpu,
                        to: load.cpu,
                        by,
                    }
                } else {
                    Cause::FellBehind { cpu: load.cpu, by }
                })
            }
            None => None,
        };
        lags |= !moved && accuse.is_some();
        let at_fault = lags || (moved && pair) || accuse.is_some();
        lags |= self.owing;
        if !at_fault && !self.owing {
            self.leave(place, load.offset, &Decision::NOTHING);
            return Decision::NOTHING;
        }

        // The guest's clock as if it had run on: by the proven skew as long as nothing contradicts
        // it, else by the monotonic clock; on one and the same CPU, by its counter.
        let continued = match (moved, known, accuse) {
            (false, ..) => here,
            (true, Some(_), None) => here.wrapping_add(apart.wrapping_neg()),
            (true, None, None) => here,
            (true, _, Some(_)) => seen.wrapping_advance(stretch.expected),
        };
        let base = later(continued, seen);
        let new = if lags {
            // What is owed is given. A counter that nothing is held against may have brought the guest
            // past its line meanwhile, and then nothing is owed and nothing taken.
            let floor = if at_fault { seen } else { base };
            self.on_line(base, floor, load.at)
        } else {
            base
        };

        let by = new.wrapping_since(here);
        // The line is rounded down by what the clock cannot tell: ahead of it by that is on it.
        let on_line = lags
            && known.is_none()
            && accuse.is_none()
            && !here.is_before(seen)
            && by.is_negative()
            && by.magnitude() <= self.clock_error;
        let adjust = (by != TscDelta::ZERO && !on_line).then_some(by);
        let after = if on_line { here } else { new };
        self.owing = lags && self.is_behind(after, load.at);
        let ask_again = lags.then_some(self.config.recheck);
        let decision = Decision {
            adjust,
            accuse,
            ask_again,
            ..Decision::NOTHING
        };
        self.leave(place, load.offset, &decision);
        decision
    }

    fn entry(&mut self, entry: &Entry) -> Decision {
        let place = (entry.cpu, entry.tsc, entry.at);
        if self.interfered(entry.offset) {
            return Decision::NOTHING;
        }
        let last = self.last.filter(|last| last.0 == entry.cpu);
        let accuse = last.and_then(|last| {
            let stretch = self.stretch((last.1, last.2), (entry.tsc, entry.at), TscDelta::ZERO);
            stretch.error.map(|error| by_itself(entry.cpu, error))
        });
        let (mut adjust, mut ask_again) = (None, None);
        if entry.fault.lags || accuse.is_some() || self.owing {
            let here = guest_unscaled(entry.tsc, entry.offset);
            self.owing = self.is_behind(here, entry.at);
            if self.owing {
                let (line, since) = (&self.config.line, self.forwarded_at.unwrap_or(entry.at));
                adjust = self.config.catch_up.forward(line, here, entry.at, since);
                let after = adjust.map_or(here, |by| here.wrapping_add(by));
                self.owing = self.is_behind(after, entry.at);
            }
            ask_again = Some(self.config.recheck);
        }
        let decision = Decision {
            adjust,
            accuse,
            ask_again,
            ..Decision::NOTHING
        };
        self.leave(place, entry.offset, &decision);
        decision
    }
}

#[cfg(test)]
mod tests;
