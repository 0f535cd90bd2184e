//! Units of time and rate as types, so that no bare integer crosses an interface.

/// A rate in kilohertz, the unit in which KVM takes and reports TSC rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Khz(u32);

impl Khz {
    /// A rate of `khz` thousand ticks per second; `None` for 0, which is no rate.
    #[must_use]
    pub const fn new(khz: u32) -> Option<Self> {
        if khz == 0 { None } else { Some(Self(khz)) }
    }

    /// The rate in kilohertz.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A duration or a point on a named clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(u64);

impl Nanos {
    /// `nanos` nanoseconds.
    #[must_use]
    pub const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The count of nanoseconds.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}
