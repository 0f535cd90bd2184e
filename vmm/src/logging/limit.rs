//! A bound on how often a guest can make the launcher say the same thing.

use std::sync::atomic::{AtomicU64, Ordering};

use tsc::Nanos;

/// So many lines at once,
const BURST: u64 = 10;
/// and then one in so many nanoseconds.
const INTERVAL: u64 = 500_000_000;

/// A token bucket for one place in the program, without a lock: the generic cell rate algorithm (ITU-T
/// I.371, annex A), whose only state is the time at which the bucket will be full again.
#[derive(Debug)]
pub(crate) struct Limiter {
    full_at: AtomicU64,
    dropped: AtomicU64,
}

impl Limiter {
    /// With a full bucket.
    pub(crate) const fn new() -> Self {
        Self {
            full_at: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Whether a line may be said at `now`, and if so, how many before it were not.
    pub(crate) fn admit(&self, now: Nanos) -> Option<u64> {
        let now = now.get();
        let taken = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let after = full_at.max(now).saturating_add(INTERVAL);
                (after.saturating_sub(now) <= BURST * INTERVAL).then_some(after)
            });
        match taken {
            Ok(_) => Some(self.dropped.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// `tracing::info!` for what a guest causes: a bounded number of lines, and a count of those left out.
macro_rules! guest_info {
    ($($argument:tt)+) => {{
        static LIMITER: $crate::logging::Limiter = $crate::logging::Limiter::new();
        if let Some(dropped) = LIMITER.admit($crate::host_clock::monotonic_raw()) {
            if dropped > 0 {
                tracing::info!("{dropped} lines like the next one were left out");
            }
            tracing::info!($($argument)+);
        }
    }};
}
pub(crate) use guest_info;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limiter_admits_a_burst_then_one_in_each_interval_and_counts_the_rest() {
        let limiter = Limiter::new();
        let start = 5_000_000_000;
        let at = |time: u64| limiter.admit(Nanos::new(time));
        for _ in 0..BURST {
            assert_eq!(at(start), Some(0));
        }
        assert_eq!(at(start), None);
        assert_eq!(at(start + INTERVAL - 1), None);
        assert_eq!(at(start + INTERVAL), Some(2));
        assert_eq!(at(start + INTERVAL), None);
        // After a long silence the bucket is full, and not fuller.
        let later = start + 100 * INTERVAL;
        assert_eq!(at(later), Some(1));
        let more = (0..100).filter(|_| at(later).is_some()).count();
        assert_eq!(more as u64, BURST - 1);
    }
}
