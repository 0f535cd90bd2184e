//! What becomes of a deadline timer.

use super::Plan;
use crate::ratio::RatioFormat;
use crate::units::{GuestTsc, Ticks};

/// What to write to `IA32_TSC_DEADLINE` (SDM vol. 3, 10.5.4.1), after the TSC and after the LAPIC:
/// before the LAPIC it is dropped, before the TSC it is compared with another clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Disarmed: 0, which must stay 0.
    Disarmed,
    /// Fires when the guest's TSC reaches it.
    Armed {
        /// The value to write, anew even when it is the old one: an armed timer does not follow a
        /// change of the offset.
        write: GuestTsc,
        /// The ticks until then.
        remaining: Ticks,
    },
    /// Fires at once: once, however long ago it was due.
    Overdue {
        /// The value to write: not 0, and not beyond the guest's TSC.
        write: GuestTsc,
        /// The ticks since then.
        by: Ticks,
    },
}

impl<F: RatioFormat> Plan<F> {
    /// What becomes of a timer whose register held `register` when the guest was stopped. The
    /// register is absolute in the guest's TSC, which continues, so its value stays, and what the
    /// guest is told of the time in between decides whether it is overdue.
    #[must_use]
    pub fn deadline(&self, register: GuestTsc) -> Deadline {
        if register.get() == 0 {
            return Deadline::Disarmed;
        }
        // The processor compares without a sign.
        let due_in = register.get().checked_sub(self.saved_tsc.get());
        let advanced = self.adjustments.ticks.get();
        match due_in {
            Some(due_in) if due_in > advanced => {
                // OK because due_in > advanced.
                let remaining = Ticks::new(due_in.wrapping_sub(advanced));
                Deadline::Armed {
                    write: register,
                    remaining,
                }
            }
            _ => {
                // Overdue since before the stop, or since some tick of the advance.
                let by = self.guest_tsc.wrapping_elapsed(register);
                // A TSC that wrapped in between is behind the register: let it be due now.
                let due = register.get() <= self.guest_tsc.get();
                let write = if due {
                    register
                } else {
                    GuestTsc::new(self.guest_tsc.get().max(1))
                };
                Deadline::Overdue { write, by }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Allow, HostTime, Present, Saved, TimePolicy, plan};
    use super::*;
    use crate::ratio::Vmx;
    use crate::units::{HostTsc, Khz, Nanos, Ppm};

    /// A guest at 1 GHz, stopped at `tsc`, told of 1000 ns.
    fn advanced(tsc: u64) -> Plan<Vmx> {
        let rate = Khz::new(1_000_000).unwrap();
        let saved = Saved {
            guest_tsc: GuestTsc::new(tsc),
            guest_khz: rate,
            kvmclock: Nanos::ZERO,
            real: Nanos::ZERO,
            pairing_error: Nanos::ZERO,
        };
        let present = Present {
            host_tsc: HostTsc::new(12_345),
            real: Nanos::new(1_000),
            pairing_error: Nanos::ZERO,
        };
        let host = HostTime {
            khz: rate,
            offsets: true,
            scaling: false,
            catch_up: false,
            tolerance: Ppm::KVM_TOLERANCE,
        };
        let advance = TimePolicy::ADVANCE;
        plan(saved, present, host, advance, Allow::default()).unwrap()
    }

    #[test]
    fn deadlines_fire_when_the_guests_time_says_so() {
        let plan = advanced(5_000);
        let armed = |write: u64, remaining: u64| Deadline::Armed {
            write: GuestTsc::new(write),
            remaining: Ticks::new(remaining),
        };
        let overdue = |write: u64, by: u64| Deadline::Overdue {
            write: GuestTsc::new(write),
            by: Ticks::new(by),
        };
        let table = [
            (0, Deadline::Disarmed),
            (1, overdue(1, 5_999)),
            (5_000, overdue(5_000, 1_000)),
            (6_000, overdue(6_000, 0)),
            (6_001, armed(6_001, 1)),
            (u64::MAX, armed(u64::MAX, u64::MAX - 6_000)),
        ];
        for (register, expected) in table {
            assert_eq!(
                plan.deadline(GuestTsc::new(register)),
                expected,
                "{register}"
            );
        }
    }

    #[test]
    fn deadline_that_the_tsc_wrapped_past_still_fires() {
        // From 2^64 - 501 the TSC goes on at 499; a timer at 2^64 - 1 is 500 overdue.
        let plan = advanced(u64::MAX - 500);
        assert_eq!(plan.guest_tsc, GuestTsc::new(499));
        let expected = Deadline::Overdue {
            write: GuestTsc::new(499),
            by: Ticks::new(500),
        };
        assert_eq!(plan.deadline(GuestTsc::new(u64::MAX)), expected);
        // Exactly at 0 the value must not disarm the timer.
        let at_zero = advanced(u64::MAX - 999);
        assert_eq!(at_zero.guest_tsc, GuestTsc::new(0));
        let Deadline::Overdue { write, .. } = at_zero.deadline(GuestTsc::new(u64::MAX)) else {
            panic!("not overdue");
        };
        assert_eq!(write, GuestTsc::new(1));
    }
}
