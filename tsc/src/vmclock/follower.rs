//! The pages of a guest that runs: what is read of the host's clocks becomes what the guest is told.
//!
//! A page pairs a reading of the guest's TSC with one of the host's real-time clock, and says at which rate
//! the one runs against the other. Both are measured:
//!
//! | what | from | its error |
//! | --- | --- | --- |
//! | the pair | the clock, read between two readings of the TSC | half of what passed between these, and what readings are rounded by |
//! | the period | two pairs, 16 to 32 s apart | both pairs' errors over the time between them; before there are two, 500 ppm about the rate that the kernel tells |
//!
//! The *estimated* errors are these and what the host's kernel estimates of its own clock. The *largest* ones
//! add what the kernel takes for the most that its clock is off real time, what the TSCs of two CPUs may be
//! apart, and, for the period, the most that a clock's discipline corrects. They hold until the next page,
//! however late it comes, in the same way as the kernel's own: the longer ago the pair, the wider.
//!
//! What was not measured is not told: a guest whose TSC's relation to the host's is not known has a page that
//! says [`ClockStatus::Unreliable`], and where that can never be known, one without a counter.

use super::{
    ClockStatus, Counter, CounterPeriod, FractionalTime, Leap, PeriodError, TimeType, VmClock,
};
use crate::units::{GuestTsc, Hz, Khz, Nanos, Ppb, Ticks};
use crate::wide;

const BILLION: u64 = 1_000_000_000;

/// A rate is measured over so long at least, and over less than twice that, once the guest is as old.
const BASELINE: Nanos = Nanos::new(16_000_000_000);

/// The most that a clock's discipline corrects, and by how much the kernel has its error grow (`MAXFREQ` in
/// include/linux/timex.h).
const TOLERANCE: Ppb = Ppb::new(500_000);

/// By so much the kernel's largest error may have grown since it was counted up last: [`TOLERANCE`] of a
/// second (`second_overflow` in kernel/time/ntp.c).
const GROWTH: Nanos = Nanos::new(500_000);

/// Of the rounding of a time to whole nanoseconds: that of the clock's reading, that of the time that a pair
/// is dated back by, and that of the page's fraction.
const ROUNDED: Nanos = Nanos::new(3);

/// What `adjtimex(2)` answers, in the kernel's own units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjtimex {
    /// What the call returns: `TIME_*`.
    pub state: i32,
    /// `STA_*`, as bits.
    pub status: i32,
    /// The largest error in microseconds.
    pub maxerror: i64,
    /// The estimated error in microseconds.
    pub esterror: i64,
    /// TAI less UTC in seconds; 0 when nobody told the kernel.
    pub tai: i32,
}

/// What the host's kernel says of its real-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostClock {
    /// Somebody keeps it at real time.
    pub synchronized: bool,
    /// How far off it can be, and is expected to be: means nothing of a clock that is not synchronized.
    pub maximum_error: Nanos,
    /// As above.
    pub estimated_error: Nanos,
    /// TAI less UTC, in seconds.
    pub tai_offset: Option<i16>,
    /// A leap second nearby.
    pub leap: Leap,
}

impl HostClock {
    /// Of which the kernel says nothing.
    pub const UNKNOWN: Self = Self {
        synchronized: false,
        maximum_error: Nanos::ZERO,
        estimated_error: Nanos::ZERO,
        tai_offset: None,
        leap: Leap::None,
    };

    /// By the kernel's answer (include/uapi/linux/timex.h). A clock whose errors are no times counts as not
    /// synchronized.
    ///
    /// ```
    /// # use tsc::{Nanos, vmclock::{Adjtimex, HostClock}};
    /// let answer = Adjtimex { state: 0, status: 0x2001, maxerror: 1_500, esterror: 20, tai: 37 };
    /// let clock = HostClock::from_kernel(answer);
    /// assert!(clock.synchronized);
    /// assert_eq!((clock.maximum_error, clock.tai_offset), (Nanos::new(1_500_000), Some(37)));
    /// ```
    #[must_use]
    pub fn from_kernel(answer: Adjtimex) -> Self {
        /// `STA_INS`, `STA_DEL` and `STA_UNSYNC`.
        const INSERT: i32 = 0x10;
        const DELETE: i32 = 0x20;
        const UNSYNCHRONIZED: i32 = 0x40;
        let nanos = |micros| u64::try_from(micros).ok().and_then(Nanos::from_micros);
        let (Some(maximum_error), Some(estimated_error)) =
            (nanos(answer.maxerror), nanos(answer.esterror))
        else {
            return Self::UNKNOWN;
        };
        let wanted = answer.status & (INSERT | DELETE);
        let (kept, leap) = match answer.state {
            // TIME_OK, TIME_INS, TIME_DEL, TIME_OOP, TIME_WAIT.
            0 => (true, Leap::None),
            1 => (true, Leap::BeforePositive),
            2 => (true, Leap::BeforeNegative),
            3 => (true, Leap::Positive),
            4 if wanted & INSERT != 0 => (true, Leap::AfterPositive),
            4 if wanted & DELETE != 0 => (true, Leap::AfterNegative),
            // It has been taken back, and the state follows with the next second (`second_overflow` in
            // kernel/time/ntp.c): which of the two it was is not known any more.
            4 => (true, Leap::None),
            _ => (false, Leap::None),
        };
        Self {
            synchronized: kept && answer.status & UNSYNCHRONIZED == 0,
            maximum_error,
            estimated_error,
            tai_offset: i16::try_from(answer.tai).ok().filter(|tai| *tai != 0),
            leap,
        }
    }
}

/// A reading of the host's real-time clock between two of the guest's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealSample {
    /// The guest's TSC before it.
    pub before: GuestTsc,
    /// Nanoseconds since 1970, rounded down.
    pub real: Nanos,
    /// And after it.
    pub after: GuestTsc,
}

/// A pair: at `counter` it was `real`, to within `error`.
#[derive(Clone, Copy, Debug)]
struct Pair {
    counter: GuestTsc,
    real: Nanos,
    error: Nanos,
}

impl Pair {
    /// `None` when the TSC went backwards meanwhile: it was read on two CPUs.
    fn of(sample: RealSample, rate: Hz) -> Option<Self> {
        if sample.after.is_before(sample.before) {
            return None;
        }
        let width = sample.after.wrapping_elapsed(sample.before).get();
        let half = width >> 1;
        // The larger half, and a tick that each reading was rounded by.
        let most = width.wrapping_sub(half).saturating_add(2);
        let error = nanos_ceil(Ticks::new(most), rate);
        // The rate is not exact; a thousandth covers it.
        let error = error.saturating_add(Nanos::new(error.get() / 1_000));
        Some(Self {
            counter: sample.before.wrapping_advance(Ticks::new(half)),
            real: sample.real,
            error: error.saturating_add(ROUNDED),
        })
    }

    /// The same a little earlier, so that a guest whose CPU's counter is a little behind reads no less.
    fn earlier(self, by: Nanos, rate: Hz) -> Self {
        // Bit budget: 64 + 42.
        let ticks = wide::narrow(wide::mul(by.get(), rate.get()) / 1_000_000_000);
        match ticks.zip(self.real.checked_sub(by)) {
            Some((ticks, real)) => Self {
                counter: GuestTsc::new(self.counter.get().wrapping_sub(ticks)),
                real,
                // What a tick was rounded by, and what the rate is not exact by.
                error: self
                    .error
                    .saturating_add(nanos_ceil(Ticks::new(1), rate))
                    .saturating_add(Nanos::new(by.get() / 1_000)),
            },
            None => self,
        }
    }
}

/// A rate, and by how much the true one may differ.
#[derive(Clone, Copy, Debug)]
struct Rate {
    hz: Hz,
    error: Ppb,
}

impl Rate {
    /// The guest's TSC against the host's clock from one sample to the other; `None` when nothing is proven.
    fn between(first: RealSample, last: RealSample) -> Option<Self> {
        let least = last.before.wrapping_since(first.after).get();
        let most = last.after.wrapping_since(first.before).get();
        let passed = last.real.checked_sub(first.real)?.get();
        // Both readings of the clock were rounded down, and the counter's to whole ticks.
        let least = per(
            u64::try_from(least).ok()?.saturating_sub(1),
            passed.checked_add(1)?,
        )?;
        let most = per(
            u64::try_from(most).ok()?.saturating_add(1),
            passed.checked_sub(1)?,
        )?
        .checked_add(1)?;
        // OK because both are at most 2^42: see `per`.
        let middle = least.wrapping_add(most) >> 1;
        let off = most.checked_sub(middle)?.saturating_add(1);
        let parts = wide::mul(off, BILLION).checked_div(u128::from(middle))?;
        let parts = i64::try_from(parts).ok()?.checked_add(1)?;
        Some(Self {
            hz: Hz::new(middle)?,
            error: Ppb::new(parts),
        })
    }
}

/// `ticks` in a second, of which there were so many in `nanos`, rounded down; `None` beyond any rate.
fn per(ticks: u64, nanos: u64) -> Option<u64> {
    let rate = wide::div_floor(wide::mul(ticks, BILLION), nanos)?;
    wide::narrow(rate).filter(|rate| *rate <= crate::bounds::HZ.max)
}

/// `ticks` in nanoseconds, rounded up; saturates.
fn nanos_ceil(ticks: Ticks, rate: Hz) -> Nanos {
    // Bit budget: 64 + 30 + 1.
    let nanos = wide::mul(ticks.get(), BILLION)
        .checked_div(u128::from(rate.get()))
        .and_then(|nanos| wide::narrow(nanos.wrapping_add(1)));
    Nanos::new(nanos.unwrap_or(u64::MAX))
}

/// The share `error` of `time`, rounded up; saturates.
fn share_ceil(time: Nanos, error: Ppb) -> Nanos {
    let share = wide::mul(time.get(), error.get().unsigned_abs()) / 1_000_000_000;
    Nanos::new(wide::narrow(share.wrapping_add(1)).unwrap_or(u64::MAX))
}

/// What the page that is shown was made of.
#[derive(Clone, Copy, Debug)]
struct Shown {
    error: Nanos,
    rate: Rate,
}

/// Follows the host's real-time clock, and makes the guest's pages.
///
/// The caller reads clocks, says when the guest's TSC is disrupted or cannot be relied on, and shows the page
/// after each call.
///
/// ```
/// # use tsc::{GuestTsc, Khz, Nanos};
/// # use tsc::vmclock::{ClockStatus, Follower, HostClock, RealSample};
/// let mut follower = Follower::new(Khz::new(2_000_000), Nanos::ZERO);
/// assert_eq!(follower.page().status, ClockStatus::Unreliable);
/// // 100 ticks of 2 GHz around a reading of the clock.
/// let (before, after) = (GuestTsc::new(5_000), GuestTsc::new(5_100));
/// let sample = RealSample { before, real: Nanos::new(1_700_000_000_000_000_000), after };
/// let page = follower.follow(sample, HostClock::UNKNOWN);
/// assert_eq!((page.status, page.counter), (ClockStatus::Unknown, GuestTsc::new(5_050)));
/// ```
#[derive(Clone, Debug)]
pub struct Follower {
    /// The rate of the guest's TSC, as the kernel tells it.
    nominal: Option<Hz>,
    /// What the TSCs of two CPUs may be apart.
    skew: Nanos,
    page: VmClock,
    shown: Option<Shown>,
    /// An older sample and a younger one, for the rate.
    anchors: Option<[RealSample; 2]>,
    was_synchronized: bool,
    /// The counter was disrupted since the page was made.
    disrupted: bool,
}

impl Follower {
    /// For a guest whose TSC ticks at `nominal`, on a host whose CPUs' TSCs are within `skew` of each other.
    /// Without a rate the page has no counter, for ever: it tells of disruptions alone.
    #[must_use]
    pub fn new(nominal: Option<Khz>, skew: Nanos) -> Self {
        let nominal = nominal.map(Khz::hz);
        let period = match nominal {
            Some(rate) => CounterPeriod::nearest(rate),
            None => CounterPeriod {
                shift: 0,
                fraction: 0,
            },
        };
        Self {
            nominal,
            skew,
            page: VmClock {
                sequence: 0,
                counter_id: if nominal.is_some() {
                    Counter::Tsc
                } else {
                    Counter::Invalid
                },
                disruption_marker: 0,
                time_type: TimeType::Utc,
                status: ClockStatus::Unreliable,
                monotonic: false,
                tai_offset: None,
                leap: Leap::None,
                counter: GuestTsc::new(0),
                period,
                period_estimated_error: None,
                period_maximum_error: None,
                time: FractionalTime::from_nanos_floor(Nanos::ZERO),
                time_estimated_error: None,
                time_maximum_error: None,
                generation: Some(0),
            },
            shown: None,
            anchors: None,
            was_synchronized: false,
            disrupted: false,
        }
    }

    /// The page that the guest is to see.
    #[must_use]
    pub const fn page(&self) -> &VmClock {
        &self.page
    }

    /// The guest's TSC went on in another way than it had: what was measured of it counts no more. The next
    /// page says so.
    pub fn disrupt(&mut self) {
        self.page.disruption_marker = self.page.disruption_marker.wrapping_add(1);
        self.disrupted = true;
        self.anchors = None;
        self.shown = None;
    }

    /// The guest goes on from a snapshot, which is a disruption, too.
    pub fn restore(&mut self) {
        self.page.generation = self.page.generation.map(|count| count.wrapping_add(1));
        self.disrupt();
    }

    /// The page that says that nobody knows what the guest's TSC has to do with real time.
    pub fn distrust(&mut self) -> &VmClock {
        self.anchors = None;
        self.shown = None;
        if self.disrupted || self.page.status != ClockStatus::Unreliable {
            self.disrupted = false;
            self.page = self.page.succeeded_by(VmClock {
                status: ClockStatus::Unreliable,
                tai_offset: None,
                leap: Leap::None,
                period_estimated_error: None,
                period_maximum_error: None,
                time_estimated_error: None,
                time_maximum_error: None,
                ..self.page
            });
        }
        &self.page
    }

    /// The page by a new sample, and by what the kernel says of the clock that was read. A sample that proves
    /// nothing leaves the page as it is.
    pub fn follow(&mut self, sample: RealSample, host: HostClock) -> &VmClock {
        let Some(nominal) = self.nominal else {
            return self.distrust();
        };
        let Some(pair) = Pair::of(sample, nominal) else {
            return &self.page;
        };
        let steady = self.shown.is_none_or(|shown| self.is_steady(shown, pair));
        if !steady {
            self.anchors = None;
        }
        let measured = self.anchors.and_then(|[old, _]| Rate::between(old, sample));
        let rate = measured
            .filter(|rate| rate.error.get() < TOLERANCE.get())
            .unwrap_or(Rate {
                hz: nominal,
                error: TOLERANCE,
            });
        self.anchors = Some(match self.anchors {
            None => [sample; 2],
            Some([_, young]) if sample.real.saturating_sub(young.real) >= BASELINE => {
                [young, sample]
            }
            Some(anchors) => anchors,
        });
        self.was_synchronized |= host.synchronized;
        let pair = pair.earlier(self.skew, rate.hz);
        self.shown = Some(Shown {
            error: pair.error,
            rate,
        });
        self.disrupted = false;
        self.page = self
            .page
            .succeeded_by(self.page_of(pair, rate, host, steady));
        &self.page
    }

    fn page_of(&self, pair: Pair, rate: Rate, host: HostClock, steady: bool) -> VmClock {
        let time = FractionalTime::from_nanos_floor(pair.real);
        let page = VmClock::new(TimeType::Utc, pair.counter, time, rate.hz);
        let status = match (host.synchronized, steady) {
            (true, true) => ClockStatus::Synchronized,
            // It was set, or is on its way to where it should be.
            (true, false) => ClockStatus::Initializing,
            (false, _) if self.was_synchronized => ClockStatus::FreeRunning,
            (false, _) => ClockStatus::Unknown,
        };
        let error = |of_host: Nanos| {
            let error = host.synchronized.then_some(of_host);
            error.map(|error| error.saturating_add(pair.error))
        };
        let most = host.maximum_error.saturating_add(GROWTH);
        let period_error = |parts: i64| -> PeriodError {
            let parts = rate.error.get().saturating_add(parts);
            page.period.error_ceil(Ppb::new(parts))
        };
        VmClock {
            disruption_marker: self.page.disruption_marker,
            generation: self.page.generation,
            status,
            tai_offset: host.tai_offset,
            leap: host.leap,
            period_estimated_error: Some(period_error(0)),
            period_maximum_error: Some(period_error(TOLERANCE.get())),
            time_estimated_error: error(host.estimated_error),
            time_maximum_error: error(most.saturating_add(self.skew)),
            ..page
        }
    }

    /// Whether the host's clock is where the page has it: within what was measured, and what the clock's
    /// discipline may have corrected since.
    fn is_steady(&self, shown: Shown, pair: Pair) -> bool {
        let Some(told) = self
            .page
            .time_at(pair.counter)
            .and_then(FractionalTime::nanos_floor)
        else {
            return false;
        };
        let since = nanos_ceil(
            pair.counter.wrapping_elapsed(self.page.counter),
            shown.rate.hz,
        );
        let parts = shown.rate.error.get().saturating_add(TOLERANCE.get());
        let allowed = shown
            .error
            .saturating_add(pair.error)
            .saturating_add(share_ceil(since, Ppb::new(parts)));
        told.saturating_difference(pair.real).magnitude() <= allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000 * BILLION;
    const RATE: u64 = 2_000_000_000;

    fn kept(maxerror: i64) -> HostClock {
        HostClock::from_kernel(Adjtimex {
            state: 0,
            status: 0,
            maxerror,
            esterror: 0,
            tai: 0,
        })
    }

    /// The clock at `at` nanoseconds after the start, when the guest's TSC had ticked at 2 GHz from 7,000 on, read
    /// within `width` ticks, and off by `off`.
    fn sample(at: u64, width: u64, off: u64) -> RealSample {
        let tsc = 7_000 + at * 2;
        RealSample {
            before: GuestTsc::new(tsc - width / 2),
            real: Nanos::new(START + at + off),
            after: GuestTsc::new(tsc + width / 2),
        }
    }

    fn follower() -> Follower {
        Follower::new(Khz::new(2_000_000), Nanos::ZERO)
    }

    #[test]
    fn first_page_has_the_nominal_rate_with_its_tolerance() {
        let mut follower = Follower::new(Khz::new(2_000_000), Nanos::new(1_000));
        let page = *follower.follow(sample(1_000, 4, 0), kept(1_500));
        // Dated back by 1 us, 2,000 ticks of the 9,000th.
        assert_eq!(page.counter.get(), 7_000);
        assert_eq!(page.time.nanos_floor(), Some(Nanos::new(START)));
        assert_eq!(page.status, ClockStatus::Synchronized);
        // 2 + 2 ticks are 2 ns, up 3, and 3 of rounding; for the date a tick, up 1 ns, and a thousandth of 1 us.
        assert_eq!(page.time_estimated_error, Some(Nanos::new(8)));
        // 1.5 ms of the kernel's, half a millisecond until it counts again, a microsecond of the CPUs.
        assert_eq!(
            page.time_maximum_error,
            Some(Nanos::new(1_500_000 + 500_000 + 1_000 + 8))
        );
        let nominal = CounterPeriod::nearest(Hz::new(RATE).unwrap());
        assert_eq!(page.period, nominal);
        let error = |ppb| Some(nominal.error_ceil(Ppb::new(ppb)));
        assert_eq!(page.period_estimated_error, error(500_000));
        assert_eq!(page.period_maximum_error, error(1_000_000));
        assert_eq!((page.disruption_marker, page.generation), (0, Some(0)));
    }

    #[test]
    fn rate_is_measured_over_the_baseline() {
        let mut follower = follower();
        for second in 0..=40 {
            follower.follow(sample(second * BILLION, 200, 0), kept(0));
        }
        // The anchors are those of seconds 16 and 32: 201 ticks and a nanosecond in 24 s, on either side.
        let page = follower.page();
        let hz = follower.shown.unwrap().rate.hz.get();
        assert!(hz.abs_diff(RATE) <= 1, "{hz}");
        let error = follower.shown.unwrap().rate.error.get();
        // 201 of 48,000,000,000 ticks are 4.2 parts in 10^9; and one for each rounding.
        assert!((4..=7).contains(&error), "{error}");
        assert_eq!(page.status, ClockStatus::Synchronized);
    }

    #[test]
    fn clock_that_is_set_is_told_until_it_is_seen_to_go_on() {
        let mut follower = follower();
        follower.follow(sample(0, 20, 0), kept(0));
        follower.follow(sample(BILLION, 20, 0), kept(0));
        // 500 ppm of the kernel's, twice 20 ticks, and the measured rate's error: 2 ms are beyond.
        let page = *follower.follow(sample(2 * BILLION, 20, 2_000_000), kept(0));
        assert_eq!(page.status, ClockStatus::Initializing);
        assert_eq!(page.disruption_marker, 0, "the counter went on");
        assert_eq!(follower.shown.unwrap().rate.error, TOLERANCE);
        let page = follower.follow(sample(3 * BILLION, 20, 2_000_000), kept(0));
        assert_eq!(page.status, ClockStatus::Synchronized);
        // Half of the tolerance is what a discipline does.
        let page = follower.follow(sample(4 * BILLION, 20, 2_250_000), kept(0));
        assert_eq!(page.status, ClockStatus::Synchronized);
    }

    #[test]
    fn host_that_is_not_kept_is_told_without_errors() {
        let mut follower = follower();
        let page = follower.follow(sample(0, 20, 0), HostClock::UNKNOWN);
        assert_eq!(page.status, ClockStatus::Unknown);
        assert_eq!(
            (page.time_estimated_error, page.time_maximum_error),
            (None, None)
        );
        follower.follow(sample(BILLION, 20, 0), kept(10));
        let page = follower.follow(sample(2 * BILLION, 20, 0), HostClock::UNKNOWN);
        assert_eq!(page.status, ClockStatus::FreeRunning);
    }

    #[test]
    fn disruption_changes_the_marker_and_forgets_the_rate() {
        let mut follower = follower();
        follower.follow(sample(0, 20, 0), kept(0));
        follower.follow(sample(BILLION, 20, 0), kept(0));
        assert!(follower.shown.unwrap().rate.error.get() < 1_000);
        follower.disrupt();
        // Another pairing altogether.
        let page = *follower.follow(sample(90 * BILLION, 20, 5 * BILLION), kept(0));
        assert_eq!(page.status, ClockStatus::Synchronized);
        assert_eq!((page.disruption_marker, page.generation), (1, Some(0)));
        assert_eq!(follower.shown.unwrap().rate.error, TOLERANCE);
        follower.restore();
        let page = *follower.follow(sample(91 * BILLION, 20, 0), kept(0));
        assert_eq!((page.disruption_marker, page.generation), (2, Some(1)));
    }

    #[test]
    fn distrust_is_told_once_and_says_nothing_of_errors() {
        let mut follower = follower();
        assert_eq!(follower.distrust().sequence(), 0, "it begins so");
        follower.follow(sample(0, 20, 0), kept(0));
        let page = *follower.distrust();
        assert_eq!(page.status, ClockStatus::Unreliable);
        assert_eq!(
            (page.period_maximum_error, page.time_maximum_error),
            (None, None)
        );
        assert_eq!(follower.distrust().sequence(), page.sequence());
        follower.disrupt();
        let next = follower.distrust();
        assert_eq!(next.sequence(), page.sequence() + 2);
        assert_eq!(next.disruption_marker, 1);
    }

    #[test]
    fn guest_without_a_rate_has_no_counter() {
        let mut follower = Follower::new(None, Nanos::ZERO);
        for page in [
            *follower.page(),
            *follower.follow(sample(0, 2, 0), kept(0)),
            *follower.distrust(),
        ] {
            assert_eq!(page.counter_id, Counter::Invalid);
            assert_eq!(page.status, ClockStatus::Unreliable);
            assert_eq!(page.time_at(GuestTsc::new(0)), None);
        }
        follower.disrupt();
        assert_eq!(follower.distrust().disruption_marker, 1);
    }

    #[test]
    fn sample_of_two_cpus_proves_nothing() {
        let mut follower = follower();
        let page = *follower.follow(sample(0, 20, 0), kept(0));
        let RealSample {
            before,
            real,
            after,
        } = sample(BILLION, 20, 0);
        let turned = RealSample {
            before: after,
            real,
            after: before,
        };
        assert_eq!(*follower.follow(turned, kept(0)), page);
    }

    #[test]
    fn kernels_answers_are_understood() {
        let answer = Adjtimex {
            state: 0,
            status: 0x1,
            maxerror: 2,
            esterror: 1,
            tai: 37,
        };
        // (state, status, maxerror, synchronized, leap)
        let rows = [
            (0, 0x2001, 2, true, Leap::None),
            (1, 0x11, 2, true, Leap::BeforePositive),
            (2, 0x21, 2, true, Leap::BeforeNegative),
            (3, 0x11, 2, true, Leap::Positive),
            (4, 0x11, 2, true, Leap::AfterPositive),
            (4, 0x21, 2, true, Leap::AfterNegative),
            (4, 0x1, 2, true, Leap::None),
            (5, 0x41, 2, false, Leap::None),
            (0, 0x40, 2, false, Leap::None),
            (-1, 0, 2, false, Leap::None),
            (0, 1, -1, false, Leap::None),
            (0, 1, i64::MAX, false, Leap::None),
        ];
        for (state, status, maxerror, synchronized, leap) in rows {
            let clock = HostClock::from_kernel(Adjtimex {
                state,
                status,
                maxerror,
                ..answer
            });
            let found = (clock.synchronized, clock.leap);
            assert_eq!(found, (synchronized, leap), "{state} {status} {maxerror}");
        }
        for (tai, offset) in [(0, None), (37, Some(37)), (-1, Some(-1)), (40_000, None)] {
            let clock = HostClock::from_kernel(Adjtimex { tai, ..answer });
            assert_eq!(clock.tai_offset, offset);
        }
    }
}
