//! From the fuzzer's bytes to the input that a target takes.

use arbitrary::{Arbitrary, Unstructured};

/// The input that `data` stands for, zeros behind its end; `None` when it stands for none.
pub(crate) fn decode<'a, T: Arbitrary<'a>>(data: &'a [u8]) -> Option<T> {
    T::arbitrary(&mut Unstructured::new(data)).ok()
}

/// A rate in kilohertz: 0, which is none, counts as 1.
pub(crate) fn khz(khz: u32) -> tsc::Khz {
    tsc::Khz::new(khz.max(1)).expect("not 0")
}

/// `host` changed by so many parts per million: rates near each other are where decisions fall.
pub(crate) fn near(host: tsc::Khz, ppm: i16) -> tsc::Khz {
    let near = i64::from(host.get()) * (1_000_000 + i64::from(ppm)) / 1_000_000;
    khz(u32::try_from(near).unwrap_or(u32::MAX))
}
