//! Watching a guest's clock while it runs.
//!
//! Three things, from the cheapest to the dearest:
//!
//! - [`Exits`] takes a CPU's counter and number at each exit of a vCPU, and tells in a comparison or two
//!   whether anything is to be looked at: a move, a counter that went backwards, or that it is time to.
//! - [`ClockWatch`] takes a look: the guest's TSC beside a clock of the host's that does not come from the
//!   same counter. It tells what the readings *prove*: that the guest's clock leapt or lagged since the
//!   look before, by how much at least, and within which bounds it is off its line.
//! - [`restart`] says from which reading all vCPUs go on when a look found that they cannot go on as they
//!   are. Forward only: none reads less than it can have read.
//!
//! Between two looks a guest may move to a CPU with another counter, read it, and come back: nothing in
//! user space prevents that, and nothing here takes back what a guest has read. What prevents it is to
//! keep a guest inside a domain ([`crate::skew::Domains`]).

mod clock;
mod exits;

pub use clock::{ClockWatch, Departure, ErrorBounds, Finding, Look};
pub use exits::{Exits, Sighting};

use crate::plan::{Unified, unify};
use crate::units::GuestTsc;

/// What one vCPU's clock shows while it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What the guest would read now.
    pub now: GuestTsc,
    /// The latest that it can have read before it was stopped.
    pub seen: GuestTsc,
}

/// The reading from which all vCPUs of a guest go on: the latest of what any of them reads or can have
/// read, and of what the guest's line says, if that is known; and how far the last of them is taken
/// forward. `None` of no vCPU.
///
/// ```
/// # use tsc::{GuestTsc, watch::{Standing, restart}};
/// // The second vCPU was on a CPU whose counter is 3,000 ahead, and left it.
/// let at = |now, seen| Standing { now: GuestTsc::new(now), seen: GuestTsc::new(seen) };
/// let all = restart(&[at(1_000, 999), at(1_000, 3_990)], Some(GuestTsc::new(1_001))).unwrap();
/// assert_eq!(all.guest_tsc, GuestTsc::new(3_990));
/// assert_eq!(all.spread.get(), 2_990);
/// ```
#[must_use]
pub fn restart(standings: &[Standing], line: Option<GuestTsc>) -> Option<Unified> {
    let later = |a: GuestTsc, b: GuestTsc| if a.is_before(b) { b } else { a };
    let first = standings.first()?;
    let latest = standings
        .iter()
        .map(|standing| later(standing.now, standing.seen))
        .chain(line)
        .fold(first.now, later);
    let behind = standings
        .iter()
        .filter_map(|standing| unify(&[latest, standing.now]))
        .map(|unified| unified.spread);
    Some(Unified {
        guest_tsc: latest,
        spread: behind.max()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a vCPU reads or has read, it is not taken back, and nobody is taken further than to
        /// the latest of the readings.
        #[test]
        fn restart_is_the_latest_reading_of_all(
            base in any::<u64>(),
            readings in prop::collection::vec((0_u64..1 << 40, 0_u64..1 << 40), 1..5),
            line in proptest::option::of(0_u64..1 << 40),
        ) {
            let at = |ticks: u64| GuestTsc::new(base.wrapping_add(ticks));
            let standings: Vec<_> = readings
                .iter()
                .map(|&(now, seen)| Standing { now: at(now), seen: at(seen) })
                .collect();
            let all = restart(&standings, line.map(at)).unwrap();
            let each = readings.iter().flat_map(|&(now, seen)| [now, seen]);
            let latest = each.chain(line).max().unwrap();
            prop_assert_eq!(all.guest_tsc, at(latest));
            let last = readings.iter().map(|&(now, _)| now).min().unwrap();
            prop_assert_eq!(all.spread.get(), latest - last);
        }
    }

    #[test]
    fn restart_of_no_vcpu_is_none() {
        assert_eq!(restart(&[], Some(GuestTsc::new(1))), None);
    }
}
