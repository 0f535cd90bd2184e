//! A host's counters and its clock, as functions of true time.

use crate::units::{HostTsc, Nanos};

/// One physical CPU as a scenario describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// Its counter less CPU 0's, at true time 0.
    pub offset: i64,
    /// The rate at which it truly counts, in hertz.
    pub hz: u64,
}

/// What happens to a host on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A CPU's counter changes its rate.
    Rate {
        /// The CPU.
        cpu: usize,
        /// The new rate in hertz.
        hz: u64,
    },
    /// Somebody writes to a CPU's counter.
    Write {
        /// The CPU.
        cpu: usize,
        /// What is added to it.
        by: i64,
    },
    /// The whole host stands still, its counters too, while real time and the clock go on.
    Pause {
        /// For so long.
        nanos: u64,
    },
}

/// What the host's monotonic clock is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocksource {
    /// A timer of its own with this period, in femtoseconds (HPET: 69.841279 ns at 14.31818 MHz,
    /// the rate of the chipsets of 2010; HPET specification 1.0a, 2.3.4, COUNTER_CLK_PERIOD).
    Hpet {
        /// The period.
        period_fs: u64,
    },
    /// The counter of whatever CPU reads it.
    Tsc,
}

/// The HPET of a host of 2010.
pub const HPET: Clocksource = Clocksource::Hpet {
    period_fs: 69_841_279,
};

/// A counter: true time in, ticks out, exact.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    /// Ticks x 10^9 at `since`.
    nano_ticks: u128,
    since: u64,
    hz: u64,
    halted: bool,
}

impl Counter {
    pub(super) fn new(ticks: u64, hz: u64) -> Self {
        Self {
            nano_ticks: u128::from(ticks) * 1_000_000_000,
            since: 0,
            hz,
            halted: false,
        }
    }

    fn at(&self, now: u64) -> u128 {
        let passed = if self.halted {
            0
        } else {
            u128::from(now.saturating_sub(self.since))
        };
        self.nano_ticks + passed * u128::from(self.hz)
    }

    fn settle(&mut self, now: u64) {
        self.nano_ticks = self.at(now);
        self.since = self.since.max(now);
    }

    pub(super) fn read(&self, now: u64) -> HostTsc {
        let ticks = self.at(now) / 1_000_000_000 % (1 << 64);
        HostTsc::new(u64::try_from(ticks).unwrap_or(0))
    }

    pub(super) fn set_rate(&mut self, now: u64, hz: u64) {
        self.settle(now);
        self.hz = hz;
    }

    pub(super) fn set_halted(&mut self, now: u64, halted: bool) {
        self.settle(now);
        self.halted = halted;
    }

    pub(super) fn write(&mut self, now: u64, by: i64) {
        self.settle(now);
        self.nano_ticks = self
            .nano_ticks
            .wrapping_add_signed(i128::from(by) * 1_000_000_000)
            % (1 << 94);
    }

    /// Stands still from `now` for `nanos`.
    pub(super) fn pause(&mut self, now: u64, nanos: u64) {
        self.settle(now);
        self.since = now + nanos;
    }
}

/// The host's monotonic clock.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    source: Clocksource,
    /// Nominal rate and CPU 0's counter at time 0, for a clock made of counters.
    nominal_hz: u64,
    origin: HostTsc,
    /// What the kernel's tick noted last: no CPU reads less (`cycle_last`).
    floor: u64,
    /// Added to the source, so that a change of source is no jump.
    base: u64,
}

impl Clock {
    pub(super) fn new(source: Clocksource, nominal_hz: u64, origin: HostTsc) -> Self {
        Self {
            source,
            nominal_hz,
            origin,
            floor: 0,
            base: 0,
        }
    }

    /// What a CPU whose counter reads `tsc` takes the time to be.
    pub(super) fn read(&self, now: u64, tsc: HostTsc) -> Nanos {
        let raw = match self.source {
            Clocksource::Hpet { period_fs } => {
                let period = u128::from(period_fs);
                let fs = u128::from(now) * 1_000_000 / period * period;
                u64::try_from(fs / 1_000_000).unwrap_or(u64::MAX)
            }
            Clocksource::Tsc => {
                let ticks = tsc.wrapping_since(self.origin).get().max(0).unsigned_abs();
                let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(self.nominal_hz);
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
        };
        Nanos::new((self.base + raw).max(self.floor))
    }

    /// The kernel's tick, on a CPU whose counter reads `tsc`.
    pub(super) fn tick(&mut self, now: u64, tsc: HostTsc) {
        self.floor = self.read(now, tsc).get();
    }

    /// The kernel gives up the TSC: from here on the HPET counts.
    pub(super) fn leave_tsc(&mut self, now: u64, tsc: HostTsc) {
        if self.source == Clocksource::Tsc {
            let here = self.read(now, tsc).get();
            self.source = HPET;
            self.base = 0;
            self.floor = 0;
            self.base = here.saturating_sub(self.read(now, tsc).get());
        }
    }

    pub(super) const fn source(&self) -> Clocksource {
        self.source
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_through_rates_halts_and_pauses_adds_up() {
        let mut counter = Counter::new(100, 2_000_000_000);
        assert_eq!(counter.read(1_000).get(), 2_100);
        counter.set_rate(1_000, 1_000_000_000);
        assert_eq!(counter.read(2_000).get(), 3_100);
        counter.set_halted(2_000, true);
        assert_eq!(counter.read(5_000).get(), 3_100);
        counter.set_halted(5_000, false);
        counter.pause(6_000, 10_000);
        assert_eq!(counter.read(16_000).get(), 4_100);
        assert_eq!(counter.read(16_500).get(), 4_600);
        counter.write(16_500, -600);
        assert_eq!(counter.read(16_500).get(), 4_000);
    }

    #[test]
    fn clock_that_leaves_the_tsc_does_not_jump() {
        let mut clock = Clock::new(Clocksource::Tsc, 1_000_000_000, HostTsc::new(0));
        assert_eq!(clock.read(5_000, HostTsc::new(7_000)).get(), 7_000);
        clock.leave_tsc(5_000, HostTsc::new(7_000));
        assert_eq!(clock.read(5_000, HostTsc::new(0)).get(), 7_000);
        let later = clock.read(6_000, HostTsc::new(0)).get();
        assert!((7_900..=8_070).contains(&later), "{later}");
    }
}
