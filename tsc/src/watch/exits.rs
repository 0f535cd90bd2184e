//! What a vCPU's thread sees of its CPU's counter, exit by exit.

use crate::units::{CpuId, HostTsc, Ticks};

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// The vCPU has not been looked at for the stride.
    Due,
    /// The vCPU's thread came from another CPU since the exit before.
    Moved {
        /// The CPU that it came from.
        from: CpuId,
        /// By how much the counter here is behind the one there at least, if it is.
        backwards: Option<Ticks>,
    },
    /// The counter went backwards while the thread stayed on its CPU, or left it and came back.
    Backwards(Ticks),
}

/// One vCPU's exits. A sample costs a subtraction and two comparisons as long as nothing is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exits {
    cpu: CpuId,
    tsc: HostTsc,
    /// Ticks to the next look.
    remaining: Ticks,
    stride: Ticks,
}

impl Exits {
    /// From a first sample on, with a look at least every `stride` ticks in which there are exits.
    #[must_use]
    pub const fn begin(tsc: HostTsc, cpu: CpuId, stride: Ticks) -> Self {
        Self {
            cpu,
            tsc,
            remaining: stride,
            stride,
        }
    }

    /// The CPU of the latest sample.
    #[must_use]
    pub const fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// The latest sample of the counter: before it the guest has read nothing later.
    #[must_use]
    pub const fn tsc(&self) -> HostTsc {
        self.tsc
    }

    /// The vCPU left the guest when the counter of `cpu` read `tsc`; both of one instruction (RDTSCP).
    #[inline]
    pub fn sample(&mut self, tsc: HostTsc, cpu: CpuId) -> Option<Sighting> {
        // A counter that went backwards has counted almost 2^64, which is more than any stride.
        let counted = tsc.wrapping_elapsed(self.tsc);
        if cpu == self.cpu && counted.get() <= self.remaining.get() {
            self.tsc = tsc;
            self.remaining = self.remaining.saturating_sub(counted);
            return None;
        }
        Some(self.sight(tsc, cpu))
    }

    #[cold]
    fn sight(&mut self, tsc: HostTsc, cpu: CpuId) -> Sighting {
        let backwards = tsc
            .is_before(self.tsc)
            .then(|| self.tsc.wrapping_elapsed(tsc));
        let from = self.cpu;
        *self = Self::begin(tsc, cpu, self.stride);
        match backwards {
            _ if from != cpu => Sighting::Moved { from, backwards },
            Some(by) => Sighting::Backwards(by),
            None => Sighting::Due,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: CpuId = CpuId::new(0);
    const B: CpuId = CpuId::new(1);

    fn begin(tsc: u64) -> Exits {
        Exits::begin(HostTsc::new(tsc), A, Ticks::new(100))
    }

    #[test]
    fn look_is_due_after_the_stride_and_not_before() {
        let mut exits = begin(u64::MAX - 9);
        // Across the wrap.
        assert_eq!(exits.sample(HostTsc::new(40), A), None);
        assert_eq!(exits.sample(HostTsc::new(90), A), None);
        assert_eq!(exits.sample(HostTsc::new(91), A), Some(Sighting::Due));
        assert_eq!(exits.sample(HostTsc::new(191), A), None);
        assert_eq!(exits.sample(HostTsc::new(192), A), Some(Sighting::Due));
    }

    #[test]
    fn move_is_seen_with_the_step_back_that_it_took() {
        let mut exits = begin(1_000);
        let moved = |from, backwards: Option<u64>| {
            Some(Sighting::Moved {
                from,
                backwards: backwards.map(Ticks::new),
            })
        };
        assert_eq!(exits.sample(HostTsc::new(1_001), B), moved(A, None));
        assert_eq!((exits.cpu(), exits.tsc()), (B, HostTsc::new(1_001)));
        assert_eq!(exits.sample(HostTsc::new(400), A), moved(B, Some(601)));
        assert_eq!(exits.sample(HostTsc::new(500), A), None);
        assert_eq!(
            exits.sample(HostTsc::new(499), A),
            Some(Sighting::Backwards(Ticks::new(1)))
        );
    }

    proptest! {
        /// No move and no step back goes unseen, and without one nothing is seen before the stride.
        #[test]
        fn nothing_unseen_and_nothing_invented(
            start in any::<u64>(),
            steps in prop::collection::vec((-50_i64..200, 0_u32..2), 1..50),
        ) {
            let mut exits = begin(start);
            let (mut tsc, mut cpu, mut since) = (start, 0_u32, 0_i64);
            for (step, next) in steps {
                let now = tsc.wrapping_add_signed(step);
                let sighting = exits.sample(HostTsc::new(now), CpuId::new(next));
                since += step;
                let backwards = (step < 0).then(|| Ticks::new(step.unsigned_abs()));
                let expected = match backwards {
                    _ if next != cpu => {
                        Some(Sighting::Moved { from: CpuId::new(cpu), backwards })
                    }
                    Some(by) => Some(Sighting::Backwards(by)),
                    None if since > 100 => Some(Sighting::Due),
                    None => None,
                };
                prop_assert_eq!(sighting, expected);
                if expected.is_some() {
                    since = 0;
                }
                (tsc, cpu) = (now, next);
            }
        }
    }
}
