//! A guest's clock, look by look, beside one of the host's.

use crate::rate::TickRate;
use crate::units::{GuestTsc, Nanos, NanosDelta, Ppm, Ticks, TscDelta, TscOffset};
use crate::wide::Factor;

/// One look: the guest's TSC around a reading of the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// What the guest's TSC read just before the host's clock did.
    pub before: GuestTsc,
    /// The host's clock.
    pub at: Nanos,
    /// By how much it was later than that at most: the clock's resolution.
    pub late: Nanos,
    /// What the guest's TSC read just after.
    pub after: GuestTsc,
    /// The offset in force.
    pub offset: TscOffset,
}

/// What the guest's clock did between two looks that the host's did not, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It advanced by more.
    Leapt(Ticks),
    /// It advanced by less.
    Lagged(Ticks),
}

/// Within which bounds a guest's clock is off its line; positive when it is ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorBounds {
    /// At least so much.
    pub at_least: NanosDelta,
    /// At most so much.
    pub at_most: NanosDelta,
}

impl ErrorBounds {
    /// A clock that is on its line.
    pub const NONE: Self = Self {
        at_least: NanosDelta::new(0),
        at_most: NanosDelta::new(0),
    };

    /// This error on top of an earlier one.
    #[must_use]
    fn after(self, earlier: Self) -> Self {
        let sum = |one: NanosDelta, other: NanosDelta| {
            NanosDelta::new(one.get().saturating_add(other.get()))
        };
        Self {
            at_least: sum(self.at_least, earlier.at_least),
            at_most: sum(self.at_most, earlier.at_most),
        }
    }

    /// The error that is proven: the bound nearest to none, or none when the bounds include it.
    #[must_use]
    pub fn proven(self) -> NanosDelta {
        if self.at_least.get() > 0 {
            self.at_least
        } else if self.at_most.get() < 0 {
            self.at_most
        } else {
            NanosDelta::new(0)
        }
    }

    /// The bounds that hold for this clock and the other: on a guest's vCPUs together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            at_least: self.at_least.min(other.at_least),
            at_most: self.at_most.max(other.at_most),
        }
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What the guest's clock did since the look before.
    pub departure: Option<Departure>,
    /// How far it is off its line, which goes through where the watch began, and through where the clock was set on
    /// purpose since.
    pub error: ErrorBounds,
    /// How far it is off the line that it goes on from since it was taken forward.
    pub since_taken: ErrorBounds,
    /// By how much somebody else moved the offset since the look before.
    pub offset_moved: Option<TscDelta>,
}

/// Watches one vCPU's clock. The line that the clock should follow goes through the first look at the
/// guest's nominal rate. That rate is known in whole kilohertz, and the host's clock may be disciplined:
/// the clock's error is told with the first of these allowed for, and a departure takes more than the
/// tolerance for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockWatch {
    rate: TickRate,
    /// The tolerance, and one kilohertz, as shares of the time that passed.
    tolerance: Option<Factor>,
    quantum: Option<Factor>,
    origin: Look,
    /// The error there.
    carried: ErrorBounds,
    anchor: Look,
    last: Look,
    /// The error then.
    error: ErrorBounds,
}

/// The ticks that passed between two looks: on the guest's clock, and by the host's.
struct Passed {
    counted_at_least: TscDelta,
    counted_at_most: TscDelta,
    due_at_least: Ticks,
    due_at_most: Ticks,
}

impl ClockWatch {
    /// Begins with a first look. `tolerance` is how far the rates may be from nominal, together.
    #[must_use]
    pub fn begin(rate: TickRate, tolerance: Ppm, first: Look) -> Self {
        Self {
            rate,
            tolerance: Factor::floor(u64::from(tolerance.get()), 1_000_000),
            quantum: Factor::floor(1, u64::from(rate.khz().get())),
            origin: first,
            carried: ErrorBounds::NONE,
            anchor: first,
            last: first,
            error: ErrorBounds::NONE,
        }
    }

    /// Begins anew, after the clock was set on purpose, to something else than the host's time that passed: its line goes
    /// from `look` on as far off as it was at the look before. What a vCPU was taken forward by at that, to be together
    /// with others, is not known here: the bounds that [`ErrorBounds::with`] makes of all of them hold it.
    pub const fn begin_anew(&mut self, look: Look) {
        self.origin = look;
        self.carried = self.error;
        self.anchor = look;
        self.last = look;
    }

    /// Goes on at `look`, after the clock was taken forward: that is no departure, and stays an error, which is returned.
    pub fn go_on(&mut self, look: Look) -> ErrorBounds {
        self.anchor = look;
        self.last = look;
        self.error = self.off(&self.origin, &look).after(self.carried);
        self.error
    }

    /// What the line since the clock was taken forward says for `now`, less than two ticks low.
    #[must_use]
    pub fn target_floor(&self, now: Nanos) -> Option<GuestTsc> {
        let passed = now.saturating_sub(self.anchor.at);
        let ticks = self.rate.ticks_floor(passed)?;
        Some(self.anchor.before.wrapping_advance(ticks))
    }

    /// Takes a look.
    pub fn look(&mut self, look: Look) -> Finding {
        let since = self.passed(&self.last, &look);
        let tolerance = Self::share(self.tolerance, since.due_at_most);
        let beyond = |more: i128, less: i128| {
            let beyond = more.saturating_sub(less).saturating_sub(tolerance);
            (beyond > 0).then(|| Ticks::new(u64::try_from(beyond).unwrap_or(u64::MAX)))
        };
        let leapt = beyond(
            since.counted_at_least.get().into(),
            since.due_at_most.get().into(),
        );
        let lagged = beyond(
            since.due_at_least.get().into(),
            since.counted_at_most.get().into(),
        );
        let moved = look.offset.wrapping_since(self.last.offset);
        let finding = Finding {
            departure: leapt
                .map(Departure::Leapt)
                .or(lagged.map(Departure::Lagged)),
            error: self.off(&self.origin, &look).after(self.carried),
            since_taken: self.off(&self.anchor, &look),
            offset_moved: (moved.get() != 0).then_some(moved),
        };
        self.last = look;
        self.error = finding.error;
        finding
    }

    /// How far `look` is off the line through `from`.
    fn off(&self, from: &Look, look: &Look) -> ErrorBounds {
        let whole = self.passed(from, look);
        let quantum = Self::share(self.quantum, whole.due_at_most);
        let nanos = |counted: TscDelta, due: Ticks, quantum: i128| {
            let ticks = i128::from(counted.get())
                .saturating_sub(due.get().into())
                .saturating_add(quantum);
            self.nanos_outward(ticks, quantum >= 0)
        };
        ErrorBounds {
            at_least: nanos(
                whole.counted_at_least,
                whole.due_at_most,
                quantum.saturating_neg(),
            ),
            at_most: nanos(whole.counted_at_most, whole.due_at_least, quantum),
        }
    }

    /// `ticks` in nanoseconds, rounded up or down.
    fn nanos_outward(&self, ticks: i128, up: bool) -> NanosDelta {
        let magnitude = u64::try_from(ticks.unsigned_abs()).unwrap_or(u64::MAX);
        let nanos = self.rate.nanos_floor(Ticks::new(magnitude));
        let nanos = nanos.and_then(|nanos| i64::try_from(nanos.get()).ok());
        let nanos = nanos.unwrap_or(i64::MAX);
        // The floor is less than two short.
        NanosDelta::new(match (ticks < 0, up) {
            (false, true) => nanos.saturating_add(2),
            (false, false) => nanos,
            (true, true) => nanos.saturating_neg(),
            (true, false) => nanos.saturating_neg().saturating_sub(2),
        })
    }

    /// `share` of `ticks`, which is rounded down twice at most, and 2 more.
    fn share(share: Option<Factor>, ticks: Ticks) -> i128 {
        share
            .and_then(|share| share.apply_floor(ticks.get()))
            .map_or(0, |share| i128::from(share).saturating_add(2))
    }

    fn passed(&self, from: &Look, to: &Look) -> Passed {
        let at_least = to.at.saturating_sub(from.at.saturating_add(from.late));
        let at_most = to.at.saturating_add(to.late).saturating_sub(from.at);
        // The floor is less than two short, and a counter shows whole ticks: one more on either side.
        let floor =
            |nanos: Nanos| (self.rate.ticks_floor(nanos)).map_or(u64::MAX, |ticks| ticks.get());
        Passed {
            counted_at_least: to.before.wrapping_since(from.after),
            counted_at_most: to.after.wrapping_since(from.before),
            due_at_least: Ticks::new(floor(at_least).saturating_sub(1)),
            due_at_most: Ticks::new(floor(at_most).saturating_add(3)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Khz;

    const KHZ: u32 = 2_000_000;

    fn ppm(ppm: u32) -> Ppm {
        Ppm::new(ppm).unwrap()
    }

    /// At `at` ns, of a guest at 2 GHz that is `ahead` ticks ahead.
    fn look(at: u64, ahead: i64) -> Look {
        let tsc = (at * 2).wrapping_add_signed(ahead);
        Look {
            before: GuestTsc::new(tsc.wrapping_sub(20)),
            at: Nanos::new(at),
            late: Nanos::new(1),
            after: GuestTsc::new(tsc.wrapping_add(20)),
            offset: TscOffset::ZERO,
        }
    }

    fn watch(tolerance: u32) -> ClockWatch {
        let rate = TickRate::new(Khz::new(KHZ).unwrap());
        ClockWatch::begin(rate, ppm(tolerance), look(1_000_000, 0))
    }

    #[test]
    fn leap_is_told_once_and_stays_in_the_error() {
        let mut watch = watch(0);
        let calm = watch.look(look(2_000_000, 0));
        assert_eq!((calm.departure, calm.offset_moved), (None, None));
        assert_eq!(calm.error.proven().get(), 0);
        let leapt = watch.look(look(3_000_000, 6_000_000));
        let Some(Departure::Leapt(by)) = leapt.departure else {
            panic!("{leapt:?}");
        };
        assert!((5_999_900..=6_000_000).contains(&by.get()), "{by}");
        let after = watch.look(look(4_000_000, 6_000_000));
        assert_eq!(after.departure, None);
        // 3 ms, less the brackets, and 1 kHz in 2 GHz of the 6 ms that the guest's clock shows.
        let error = after.error;
        assert!((2_999_900..=3_000_000).contains(&error.at_least.get()));
        assert!((3_000_000..=3_000_100).contains(&error.at_most.get()));
        // Taken forward by another 3 ms, it is 6 ms off, and nothing since.
        let error = watch.go_on(look(5_000_000, 12_000_000));
        assert!((5_999_900..=6_000_000).contains(&error.at_least.get()));
        let taken = watch.look(look(6_000_000, 12_000_000));
        assert_eq!(
            (taken.departure, taken.since_taken.proven().get()),
            (None, 0)
        );
        let error = taken.error;
        assert!((5_999_900..=6_000_000).contains(&error.at_least.get()));
        // Set on purpose, to whatever: no nearer to its line than it was.
        watch.begin_anew(look(7_000_000, -1_000));
        let set = watch.look(look(8_000_000, -1_000));
        assert_eq!((set.departure, set.since_taken.proven().get()), (None, 0));
        assert!((5_999_800..=6_000_000).contains(&set.error.at_least.get()));
        assert!((6_000_000..=6_000_200).contains(&set.error.at_most.get()));
    }

    #[test]
    fn lag_is_told_and_the_line_says_where_to() {
        let mut watch = watch(0);
        let lagged = watch.look(look(3_000_000, -1_000_000));
        let Some(Departure::Lagged(by)) = lagged.departure else {
            panic!("{lagged:?}");
        };
        assert!((999_900..=1_000_000).contains(&by.get()), "{by}");
        assert!((-500_000..=-499_900).contains(&lagged.error.at_most.get()));
        let target = watch.target_floor(Nanos::new(3_000_000)).unwrap().get();
        assert!((5_999_975..=6_000_000).contains(&target), "{target}");
    }

    #[test]
    fn offset_moved_by_somebody_is_told() {
        let mut watch = watch(0);
        let mut moved = look(2_000_000, 0);
        moved.offset = TscOffset::new(5);
        assert_eq!(watch.look(moved).offset_moved, Some(TscDelta::new(5)));
        assert_eq!(watch.look(moved).offset_moved, None);
    }

    #[test]
    fn rate_of_less_than_the_next_kilohertz_is_no_error() {
        let mut watch = watch(1);
        // 2 GHz and 999 Hz for 1,000 s; with one more in each ms the kilohertz is full.
        let now = 1_000_000_000_000;
        let error = |watch: &mut ClockWatch, extra| {
            watch
                .look(look(now + 1_000_000, extra))
                .error
                .proven()
                .get()
        };
        assert_eq!(error(&mut watch, 999_000), 0);
        assert!(error(&mut watch, 1_002_000) > 0);
        assert_eq!(error(&mut watch, -999_000), 0);
        assert!(error(&mut watch, -1_002_000) < 0);
    }

    fn nanos(most: u64) -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0..4_u64, 0..most]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever the rate, within the tolerance, the clock's resolution and how long the readings
        /// took: a clock that keeps time is not accused, and its true error is within the bounds. And
        /// a leap or a lag of more than what cannot be told apart is seen, and not told larger than it is.
        #[test]
        fn departures_are_proven_and_none_is_invented(
            khz in 1_000_u32..=6_000_000,
            tolerance in prop_oneof![Just(0_u32), 0..=1_000_u32],
            off_ppm in -1_000_i64..=1_000,
            start in any::<u64>(),
            late in nanos(10_000_000).prop_map(|late| late + 1),
            moments in prop::collection::vec(
                (nanos(10_000_000_000), nanos(100_000), nanos(100_000), 0_u64..1 << 20, -1_i64..=1),
                2..12,
            ),
            size in (0_u32..40).prop_flat_map(|bits| 1_u64 << bits..2 << bits),
        ) {
            let off = off_ppm.clamp(-i64::from(tolerance), tolerance.into());
            let rate = TickRate::new(Khz::new(khz).unwrap());
            // Ticks at `ns`, at the true rate; and what the guest was moved by.
            let ticks = |ns: u64, moved: i128| {
                let share = u128::try_from(1_000_000 + i128::from(off)).unwrap();
                let ticks = u128::from(ns) * u128::from(khz) * share / 10_u128.pow(12);
                u64::try_from((i128::try_from(ticks).unwrap() + moved).rem_euclid(1 << 64))
                    .unwrap()
                    .wrapping_add(start)
            };
            let (mut now, mut moved) = (2 * late, 0_i128);
            let mut watch: Option<ClockWatch> = None;
            // What both looks together leave open, in nanoseconds.
            let mut open_before = 0;
            for (wait, before, after, shown, step) in moments {
                now += before + wait;
                let by = i128::from(step) * i128::from(size);
                if watch.is_some() {
                    moved += by;
                }
                let shown = shown % late;
                let look = Look {
                    before: GuestTsc::new(ticks(now - before.min(now), moved)),
                    at: Nanos::new(now - shown),
                    late: Nanos::new(late),
                    after: GuestTsc::new(ticks(now + after, moved)),
                    offset: TscOffset::ZERO,
                };
                let open = before + after + late;
                let both = u128::from(open + open_before);
                open_before = open;
                let Some(watch) = &mut watch else {
                    watch = Some(ClockWatch::begin(rate, ppm(tolerance), look));
                    now += after;
                    continue;
                };
                let finding = watch.look(look);
                // The clock may be off by the tolerance, and the tolerance again allowed for.
                let rates = (both + u128::from(wait)) * u128::from(2 * tolerance) / 1_000_000;
                let hidden = (both + rates) * u128::from(khz) / 1_000_000 + 16;
                match finding.departure {
                    None => prop_assert!(
                        step == 0 || u128::from(size) <= hidden,
                        "{} unseen, {} can hide", by, hidden
                    ),
                    Some(Departure::Leapt(found)) => {
                        prop_assert!(step > 0 && found.get() <= size, "{:?} {}", found, by);
                    }
                    Some(Departure::Lagged(found)) => {
                        prop_assert!(step < 0 && found.get() <= size, "{:?} {}", found, by);
                    }
                }
                if off == 0 {
                    let nanos = moved * 1_000_000 / i128::from(khz);
                    let (least, most) = (finding.error.at_least, finding.error.at_most);
                    prop_assert!(i128::from(least.get()) <= nanos + 1, "{:?} {}", finding, nanos);
                    prop_assert!(nanos - 1 <= i128::from(most.get()), "{:?} {}", finding, nanos);
                }
                now += after;
            }
        }
    }
}
