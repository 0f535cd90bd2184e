//! What a guest sees of its clock, and how far that is from the truth.

use std::collections::VecDeque;

use super::report::{Point, Steps};
use crate::units::{GuestTsc, NanosDelta};

/// Points of the plot are at least this far apart, per vCPU: closer ones would be one pixel.
const POINT_NS: u64 = 2_000_000;
/// A lag that no reading of so long a time is free of was not a passing one. Ours: longer than any
/// wait of the guest, shorter than a scenario.
const LASTING_NS: u64 = 200_000_000;

#[derive(Clone, Debug, Default)]
struct Seen {
    last: Option<(u64, GuestTsc)>,
    /// Readings that another vCPU cannot know of yet.
    on_the_way: VecDeque<(u64, GuestTsc)>,
    /// The highest reading that the others know of.
    known: Option<GuestTsc>,
    plotted: Option<u64>,
    /// The least lag of the stretch that began at this time, and of the one before.
    lasting: Option<(u64, i128, i128)>,
}

/// Watches every reading of the guest.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    khz: u32,
    message_ns: u64,
    vcpus: Vec<Seen>,
    pub(super) own: Steps,
    pub(super) across: Steps,
    pub(super) largest_lag: i128,
    pub(super) largest_lead: i128,
    pub(super) points: Vec<Point>,
}

fn later(known: Option<GuestTsc>, reading: GuestTsc) -> Option<GuestTsc> {
    Some(
        known
            .filter(|known| reading.is_before(*known))
            .unwrap_or(reading),
    )
}

impl Observer {
    /// A guest of `vcpus` vCPUs at `khz` whose TSC is 0 at true time 0.
    pub(super) fn new(vcpus: usize, khz: u32, message_ns: u64) -> Self {
        Self {
            khz,
            message_ns,
            vcpus: vec![Seen::default(); vcpus],
            own: Steps::default(),
            across: Steps::default(),
            largest_lag: 0,
            largest_lead: 0,
            points: Vec::new(),
        }
    }

    /// Ticks as nanoseconds, rounded down.
    fn nanos(&self, ticks: i128) -> i128 {
        (ticks * 1_000_000).div_euclid(i128::from(self.khz))
    }

    /// A reading less the truth, in ticks: negative when the guest lags.
    fn error(&self, now: u64, reading: GuestTsc) -> i128 {
        let truth = i128::from(now) * i128::from(self.khz) / 1_000_000;
        // The guest's TSC starts at 0 and neither wraps nor goes below by more than moments.
        i128::from(reading.get().cast_signed()) - truth
    }

    /// `vcpu` reads `reading` at true time `now`.
    pub(super) fn read(&mut self, vcpu: usize, now: u64, reading: GuestTsc) {
        let khz = self.khz;
        if let Some((_, before)) = self.vcpus[vcpu].last
            && reading.is_before(before)
        {
            self.own.note(before.wrapping_since(reading), khz);
        }
        let arrived = now.saturating_sub(self.message_ns);
        for other in (0..self.vcpus.len()).filter(|&other| other != vcpu) {
            let seen = &mut self.vcpus[other];
            while let Some(&(at, value)) = seen.on_the_way.front() {
                if at > arrived {
                    break;
                }
                seen.known = later(seen.known, value);
                seen.on_the_way.pop_front();
            }
            if let Some(known) = seen.known.filter(|known| reading.is_before(*known)) {
                self.across.note(known.wrapping_since(reading), khz);
            }
        }
        let error = self.nanos(self.error(now, reading));
        self.largest_lag = self.largest_lag.max(-error);
        self.largest_lead = self.largest_lead.max(error);
        let seen = &mut self.vcpus[vcpu];
        seen.lasting = Some(match seen.lasting {
            None => (now, -error, -error),
            Some((began, least, before)) if now < began + LASTING_NS => {
                (began, least.min(-error), before)
            }
            Some((_, least, _)) => (now, -error, least),
        });
        seen.last = Some((now, reading));
        seen.on_the_way.push_back((now, reading));
        if seen.plotted.is_none_or(|at| now >= at + POINT_NS) {
            seen.plotted = Some(now);
            let error = NanosDelta::new(i64::try_from(error).unwrap_or(i64::MAX));
            self.points.push(Point {
                vcpu,
                true_ns: now,
                error,
            });
        }
    }

    /// The lag that lasted to the end: of the vCPU that lags most, the least lag that it read lately.
    pub(super) fn lasting_lag(&self) -> i128 {
        let lags = self.vcpus.iter().filter_map(|seen| seen.lasting);
        lags.map(|(_, least, before)| least.min(before))
            .max()
            .unwrap_or(0)
            .max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_only_where_the_guest_can_see_them() {
        let mut observer = Observer::new(2, 1_000_000, 100);
        observer.read(0, 1_000, GuestTsc::new(1_000));
        // vCPU 1 reads 30 less, 99 ns later: the news is still on its way. 100 ns later it is not.
        observer.read(1, 1_099, GuestTsc::new(970));
        assert_eq!(observer.across.count, 0);
        observer.read(1, 1_100, GuestTsc::new(971));
        assert_eq!(
            (observer.across.count, observer.across.largest.get()),
            (1, 29)
        );
        observer.read(1, 1_101, GuestTsc::new(970));
        assert_eq!((observer.own.count, observer.own.largest.get()), (1, 1));
        assert_eq!(observer.across.count, 2);
        assert_eq!(observer.largest_lag, 131);
        assert_eq!(observer.lasting_lag(), 129);
        observer.read(1, 1_200, GuestTsc::new(1_250));
        assert_eq!((observer.largest_lead, observer.lasting_lag()), (50, 0));
        // A lag that comes and stays is a lasting one only after a while.
        observer.read(0, 100_000_000, GuestTsc::new(99_000_000));
        observer.read(0, 250_000_000, GuestTsc::new(249_000_000));
        assert_eq!(observer.lasting_lag(), 0);
        observer.read(0, 500_000_000, GuestTsc::new(499_000_000));
        assert_eq!(observer.lasting_lag(), 1_000_000);
    }
}
