//! How much a device may do in a time: token buckets for bytes and for operations.
//!
//! A bucket holds `size` tokens and refills evenly, an empty one in the refill time. Beside them there
//! may be a burst: tokens that are there once and never come back. It is used up first.
//!
//! An amount larger than the bucket would never be had. It is let through when the bucket is full, and the
//! bucket is then in debt: what follows waits until it is paid. So in any span of time no more passes than
//! `burst + size + rate × span`, and one amount on top.
//!
//! The arithmetic is exact. A token is counted as refill-time nanoseconds, so that each nanosecond of
//! waiting is worth `size` of these units, and no rounding loses or makes a token. Bit budget: 64 bits of
//! tokens times 64 bits of nanoseconds are 128, of which the bounds of [`Bucket::new`] leave 112.

use std::fmt;

use thiserror::Error;
use tsc::Nanos;

/// The most tokens that a bucket holds, burst included: 2^56.
pub const MAX_TOKENS: u64 = 1 << 56;
/// The longest refill time: 2^56 ns, more than two years.
pub const MAX_REFILL: Nanos = Nanos::new(1 << 56);

/// A bucket that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BucketError {
    /// A bucket of no tokens lets nothing through, ever.
    #[error("a bucket of size 0 lets nothing through; give it tokens, or leave the bucket out")]
    Empty,
    /// A bucket that refills in no time holds nothing back.
    #[error("a refill time of 0 limits nothing; give it milliseconds, or leave the bucket out")]
    NoRefillTime,
    /// More tokens than can be counted.
    #[error("{tokens} tokens are more than a bucket can hold; give it at most {MAX_TOKENS}")]
    TooManyTokens {
        /// What was asked for.
        tokens: u64,
    },
    /// A longer time than can be counted.
    #[error("a refill time of {} ns is too long; give at most {} ns", .refill.get(), MAX_REFILL.get())]
    RefillTooLong {
        /// What was asked for.
        refill: Nanos,
    },
}

/// One bucket of tokens.
///
/// ```
/// use devices::rate_limiter::Bucket;
/// use tsc::Nanos;
///
/// // 1000 tokens a second, at most 100 at once
/// let mut bucket = Bucket::new(100, 0, Nanos::new(100_000_000))?;
/// let now = Nanos::ZERO;
/// assert_eq!(bucket.take(100, now), Ok(()));
/// assert_eq!(bucket.take(1, now), Err(Nanos::new(1_000_000)));
/// assert_eq!(bucket.take(1, Nanos::new(1_000_000)), Ok(()));
/// # Ok::<(), devices::rate_limiter::BucketError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    size: u64,
    refill: Nanos,
    burst: u64,
    /// Tokens times `refill`, at most that of `size`; below zero is debt.
    credit: i128,
    refilled: Option<Nanos>,
}

impl Bucket {
    /// A full bucket.
    ///
    /// # Errors
    /// The bound that is not kept.
    pub fn new(size: u64, burst: u64, refill: Nanos) -> Result<Self, BucketError> {
        if size == 0 {
            return Err(BucketError::Empty);
        }
        if refill == Nanos::ZERO {
            return Err(BucketError::NoRefillTime);
        }
        if let Some(tokens) = [size, burst].into_iter().find(|n| *n > MAX_TOKENS) {
            return Err(BucketError::TooManyTokens { tokens });
        }
        if refill.get() > MAX_REFILL.get() {
            return Err(BucketError::RefillTooLong { refill });
        }
        Ok(Self {
            size,
            refill,
            burst,
            // OK because both are at most 2^56: at most 2^112.
            credit: i128::from(size) * i128::from(refill.get()),
            refilled: None,
        })
    }

    /// Takes `tokens`, at the time `now`.
    ///
    /// # Errors
    /// Nothing was taken: how long it takes until it can be, if nobody else takes any.
    pub fn take(&mut self, tokens: u64, now: Nanos) -> Result<(), Nanos> {
        self.pour(now);
        match self.wait_for(tokens) {
            None => {
                self.spend(tokens);
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }

    fn full(&self) -> i128 {
        i128::from(self.size) * i128::from(self.refill.get())
    }

    /// Adds what came in since the last time. A clock that goes backwards adds nothing.
    fn pour(&mut self, now: Nanos) {
        let last = *self.refilled.get_or_insert(now);
        if let Some(passed) = now.checked_sub(last) {
            // OK because 64 bits times 56 are 120, and the credit has at most 112.
            let poured = i128::from(passed.get()) * i128::from(self.size);
            self.credit = self.credit.saturating_add(poured).min(self.full());
            self.refilled = Some(now);
        }
    }

    /// What of `tokens` the burst does not pay, in units of the credit.
    fn price(&self, tokens: u64) -> i128 {
        // OK because 64 bits times 56 are 120.
        i128::from(tokens.saturating_sub(self.burst)) * i128::from(self.refill.get())
    }

    /// How long until `tokens` can be had; `None` when that is now.
    fn wait_for(&self, tokens: u64) -> Option<Nanos> {
        // More than a bucketful is had when the bucket is full.
        let missing = self.price(tokens).min(self.full()) - self.credit;
        if missing <= 0 || self.price(tokens) == 0 {
            return None;
        }
        // Rounded up: a nanosecond earlier it is not enough.
        let size = i128::from(self.size);
        let nanos = (missing + size - 1) / size;
        Some(Nanos::new(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn spend(&mut self, tokens: u64) {
        self.credit = self.credit.saturating_sub(self.price(tokens));
        self.burst = self.burst.saturating_sub(tokens);
    }
}

/// Where a limiter has the time from: any clock that counts nanoseconds and does not stand still.
pub type Clock = Box<dyn Fn() -> Nanos + Send>;

/// A limit on bytes, on operations, or on both.
pub struct RateLimiter {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
    clock: Clock,
}

impl RateLimiter {
    /// A limiter with these buckets; where there is none, nothing is limited.
    #[must_use]
    pub fn new(bandwidth: Option<Bucket>, operations: Option<Bucket>, clock: Clock) -> Self {
        Self {
            bandwidth,
            operations,
            clock,
        }
    }

    /// A limiter that limits nothing.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(None, None, Box::new(|| Nanos::ZERO))
    }

    /// Takes one operation of so many bytes from both buckets, or nothing from either.
    ///
    /// # Errors
    /// How long to wait before it can be had.
    pub fn take(&mut self, bytes: u64) -> Result<(), Nanos> {
        if self.bandwidth.is_none() && self.operations.is_none() {
            return Ok(());
        }
        let now = (self.clock)();
        let mut wait = Nanos::ZERO;
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.pour(now);
                let longer = bucket.wait_for(tokens).unwrap_or(Nanos::ZERO);
                wait = Nanos::new(wait.get().max(longer.get()));
            }
        }
        if wait != Nanos::ZERO {
            return Err(wait);
        }
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.spend(tokens);
            }
        }
        Ok(())
    }

    /// Puts other buckets in place; each `None` leaves the bucket as it is, `Some(None)` takes it away.
    pub fn change(
        &mut self,
        bandwidth: Option<Option<Bucket>>,
        operations: Option<Option<Bucket>>,
    ) {
        if let Some(bucket) = bandwidth {
            self.bandwidth = bucket;
        }
        if let Some(bucket) = operations {
            self.operations = bucket;
        }
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("bandwidth", &self.bandwidth)
            .field("operations", &self.operations)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn bucket(size: u64, burst: u64, refill: u64) -> Bucket {
        Bucket::new(size, burst, Nanos::new(refill)).expect("in bounds")
    }

    #[test]
    fn bounds_are_held() {
        let new = |size, burst, refill| Bucket::new(size, burst, Nanos::new(refill)).err();
        let max = MAX_TOKENS;
        assert_eq!(new(0, 0, 1), Some(BucketError::Empty));
        assert_eq!(new(1, 0, 0), Some(BucketError::NoRefillTime));
        assert_eq!(new(max, max, MAX_REFILL.get()), None);
        let too_many = Some(BucketError::TooManyTokens { tokens: max + 1 });
        assert_eq!(new(max + 1, 0, 1), too_many);
        assert_eq!(new(1, max + 1, 1), too_many);
        let refill = Nanos::new(MAX_REFILL.get() + 1);
        let too_long = Some(BucketError::RefillTooLong { refill });
        assert_eq!(new(1, 0, refill.get()), too_long);
    }

    #[test]
    fn burst_is_there_once() {
        // 10 tokens in 10 ns, and 5 once
        let mut bucket = bucket(10, 5, 10);
        assert_eq!(bucket.take(15, Nanos::ZERO), Ok(()));
        assert_eq!(bucket.take(1, Nanos::ZERO), Err(Nanos::new(1)));
        // full again, without the burst
        assert_eq!(bucket.take(10, Nanos::new(100)), Ok(()));
        assert_eq!(bucket.take(1, Nanos::new(100)), Err(Nanos::new(1)));
    }

    #[test]
    fn amount_larger_than_the_bucket_passes_and_is_paid_for_afterwards() {
        // a token a nanosecond, 10 at most: 25 leave a debt of 15
        let mut bucket = bucket(10, 0, 10);
        assert_eq!(bucket.take(25, Nanos::ZERO), Ok(()));
        assert_eq!(bucket.take(1, Nanos::ZERO), Err(Nanos::new(16)));
        assert_eq!(bucket.take(1, Nanos::new(15)), Err(Nanos::new(1)));
        assert_eq!(bucket.take(1, Nanos::new(16)), Ok(()));
    }

    #[test]
    fn limiter_takes_from_both_buckets_or_from_neither() {
        let time = Arc::new(AtomicU64::new(0));
        let clock = time.clone();
        let mut limiter = RateLimiter::new(
            Some(bucket(100, 0, 100)),
            Some(bucket(1, 0, 1_000)),
            Box::new(move || Nanos::new(clock.load(Ordering::Relaxed))),
        );
        assert_eq!(limiter.take(50), Ok(()));
        // No operation left, but 50 bytes: they stay.
        assert_eq!(limiter.take(50), Err(Nanos::new(1_000)));
        limiter.change(None, Some(None));
        assert_eq!(limiter.take(50), Ok(()));
        assert_eq!(limiter.take(1), Err(Nanos::new(1)));
        time.store(1, Ordering::Relaxed);
        assert_eq!(limiter.take(1), Ok(()));
        assert_eq!(RateLimiter::unlimited().take(u64::MAX), Ok(()));
    }

    proptest! {
        /// The module's promise: burst + size + rate × span, and one amount on top.
        #[test]
        fn no_more_passes_than_was_promised(
            size in 1..=1_000_u64,
            burst in 0..=1_000_u64,
            refill in 1..=1_000_000_u64,
            steps in prop::collection::vec((0..=5_000_u64, 0..=100_000_u64), 1..200),
        ) {
            let mut bucket = bucket(size, burst, refill);
            let (mut now, mut passed, mut largest) = (0_u64, 0_u64, 0_u64);
            for (amount, wait) in steps {
                now += wait;
                if bucket.take(amount, Nanos::new(now)).is_ok() {
                    passed += amount;
                    largest = largest.max(amount);
                }
                let refilled = u128::from(size) * u128::from(now) / u128::from(refill);
                let promised = u128::from(burst + size + largest) + refilled;
                prop_assert!(u128::from(passed) <= promised, "{passed} of {promised}");
            }
        }

        /// Who waits as long as was said gets it, and who comes a nanosecond early does not.
        #[test]
        fn wait_is_neither_too_long_nor_too_short(
            // so that no wait is longer than 64 bits of nanoseconds
            size in 1..=1_u64 << 30,
            refill in 1..=1_u64 << 30,
            first in 1..=1_u64 << 30,
            second in 1..=1_u64 << 30,
        ) {
            let mut bucket = bucket(size, 0, refill);
            prop_assert_eq!(bucket.take(first, Nanos::ZERO), Ok(()));
            if let Err(wait) = bucket.clone().take(second, Nanos::ZERO) {
                let early = Nanos::new(wait.get() - 1);
                prop_assert_eq!(bucket.clone().take(second, early), Err(Nanos::new(1)));
                prop_assert_eq!(bucket.take(second, wait), Ok(()));
            }
        }

        /// What passes for somebody who asks on and on is the rate, but for one bucket.
        #[test]
        fn rate_is_reached(size in 1..=1_000_u64, refill in 1_000..=1_000_000_u64) {
            let mut bucket = bucket(size, 0, refill);
            let (mut now, mut passed) = (0_u64, 0_u64);
            while now < refill * 10 {
                match bucket.take(1, Nanos::new(now)) {
                    Ok(()) => passed += 1,
                    Err(wait) => now += wait.get(),
                }
            }
            prop_assert!(passed >= size * 10, "{passed} of {}", size * 10);
        }

        #[test]
        fn no_clock_makes_it_panic(times in prop::collection::vec(any::<(u64, u64)>(), 1..50)) {
            let mut bucket = bucket(MAX_TOKENS, MAX_TOKENS, MAX_REFILL.get());
            for (amount, now) in times {
                let _ = bucket.take(amount, Nanos::new(now));
            }
        }
    }
}
