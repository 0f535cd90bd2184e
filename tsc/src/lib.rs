//! The mathematics and the policy of guest time.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::arithmetic_side_effects)]

mod units;

pub use units::{Khz, Nanos};
