//! Giving time back: in one step, or by running a little faster for a while.

use super::Line;
use crate::bounds;
use crate::units::{GuestTsc, Nanos, Ppm, Ticks, TscDelta};
use crate::wide::Factor;

/// How a guest that is behind its line is brought forward. Never back: a guest that is ahead keeps
/// its reading, and the line catches up with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// At once.
    Step,
    /// In steps, each at most a share of the time since the look before: from one look to any later
    /// one the guest's clock gains no more than that share of the time between them. Each vCPU gives
    /// back what it lost itself, so that meanwhile a guest's vCPUs differ by what they still owe.
    Slew(Slew),
}

/// The bound of a slew: the guest's clock runs at most this much faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slew {
    bound: Ppm,
    /// The bound as a factor, so that nothing is divided when it is used.
    share: Factor,
}

impl Slew {
    /// At most `bound` faster; `None` outside of [`bounds::SLEW`].
    #[must_use]
    pub fn new(bound: Ppm) -> Option<Self> {
        if !(bounds::SLEW.min..=bounds::SLEW.max).contains(&bound.get()) {
            return None;
        }
        let share = Factor::floor(u64::from(bound.get()), 1_000_000)?;
        Some(Self { bound, share })
    }

    /// The bound.
    #[must_use]
    pub const fn bound(self) -> Ppm {
        self.bound
    }

    /// What may be given in `ticks`: their share, rounded down, and never more than it.
    #[must_use]
    #[inline]
    const fn share_floor(self, ticks: Ticks) -> Ticks {
        match self.share.apply_floor(ticks.get()) {
            Some(share) => Ticks::new(share),
            // A share is at most half of `ticks`.
            None => Ticks::ZERO,
        }
    }
}

impl CatchUp {
    /// How far to bring forward a guest that reads `reading` at `now`; `None` when it is not
    /// behind. `since` is when it was last brought forward, or when that began.
    ///
    /// The result is never negative, never takes the guest past `line`, and with a slew is at most
    /// the bound's share of the ticks since.
    #[must_use]
    #[inline]
    pub fn forward(
        self,
        line: &Line,
        reading: GuestTsc,
        now: Nanos,
        since: Nanos,
    ) -> Option<TscDelta> {
        let behind = line.behind(reading, now)?;
        let ticks = match self {
            Self::Step => behind,
            Self::Slew(slew) => {
                let passed = line.rate().ticks_floor(now.saturating_sub(since))?;
                behind.min(slew.share_floor(passed))
            }
        };
        // `behind` is at most half the circle, but exactly half has no positive delta.
        let delta = ticks.as_delta()?;
        (delta.get() > 0).then_some(delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::TickRate;
    use crate::units::Khz;
    use proptest::prelude::*;

    fn slew(ppm: u32) -> CatchUp {
        CatchUp::Slew(Slew::new(Ppm::new(ppm).unwrap()).unwrap())
    }

    fn line(khz: u32) -> Line {
        Line::through(
            GuestTsc::new(0),
            Nanos::ZERO,
            TickRate::new(Khz::new(khz).unwrap()),
        )
    }

    #[test]
    fn slew_at_its_bounds_checked() {
        let ppm = |ppm| Slew::new(Ppm::new(ppm).unwrap());
        assert_eq!(ppm(bounds::SLEW.min - 1), None);
        assert!(ppm(bounds::SLEW.min).is_some());
        assert!(ppm(bounds::SLEW.max).is_some());
        assert_eq!(ppm(bounds::SLEW.max + 1), None);
    }

    #[test]
    fn step_gives_all_and_slew_its_share() {
        // 2 GHz; at 1 ms the line is at 2,000,000. The guest reads 500,000.
        let (line, reading, now) = (
            line(2_000_000),
            GuestTsc::new(500_000),
            Nanos::new(1_000_000),
        );
        let step = CatchUp::Step
            .forward(&line, reading, now, Nanos::ZERO)
            .unwrap()
            .get();
        assert!((1_499_999..=1_500_000).contains(&step), "{step}");
        // 1000 ppm of the 400,000 ticks in 200 us: 400.
        let since = Nanos::new(800_000);
        let share = slew(1_000)
            .forward(&line, reading, now, since)
            .unwrap()
            .get();
        assert!((398..=400).contains(&share), "{share}");
        assert_eq!(slew(1_000).forward(&line, reading, now, now), None);
        let ahead = GuestTsc::new(2_000_001);
        assert_eq!(CatchUp::Step.forward(&line, ahead, now, Nanos::ZERO), None);
    }

    proptest! {
        /// Forward only, never past the line, and a slew never faster than its bound.
        #[test]
        fn forward_stays_between_here_and_the_line(
            khz in 1_u32..,
            start in any::<u64>(),
            reading in any::<u64>(),
            times in (0_u64..1 << 50, 0_u64..1 << 50),
            ppm in bounds::SLEW.min..=bounds::SLEW.max,
        ) {
            let rate = TickRate::new(Khz::new(khz).unwrap());
            let line = Line::through(GuestTsc::new(start), Nanos::ZERO, rate);
            let (since, now) = (Nanos::new(times.0), Nanos::new(times.0 + times.1));
            let Some(target) = line.target_floor(now) else { return Ok(()) };
            let reading = GuestTsc::new(reading);
            let distance = i128::from(target.wrapping_since(reading).get());
            for mode in [CatchUp::Step, slew(ppm)] {
                let Some(forward) = mode.forward(&line, reading, now, since) else { continue };
                let forward = i128::from(forward.get());
                prop_assert!(forward > 0);
                prop_assert!(forward <= distance, "{} past {}", forward, distance);
                if mode == CatchUp::Step {
                    prop_assert_eq!(forward, distance);
                } else {
                    // forward / (passed ns x khz / 10^6) <= ppm / 10^6.
                    let passed = i128::from(times.1) * i128::from(khz);
                    prop_assert!(forward * 1_000_000_000_000 <= passed * i128::from(ppm));
                }
            }
        }
    }
}
