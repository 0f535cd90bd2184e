//! The mathematics and the policy of guest time.
#![cfg_attr(not(any(test, feature = "sim")), no_std)]
#![forbid(unsafe_code)]
#![deny(clippy::arithmetic_side_effects)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )
)]

pub mod assess;
pub mod bounds;
pub mod measure;
pub mod nested;
mod offset;
pub mod plan;
pub mod policy;
pub mod pvclock;
mod rate;
mod ratio;
#[cfg(feature = "sim")]
pub mod sim;
pub mod skew;
pub mod stability;
mod units;
pub mod vmclock;
mod wide;

pub use offset::{Transform, guest_unscaled, offset_between, offset_unscaled};
pub use rate::{TickRate, nanos_exact_floor, ticks_exact_floor};
pub use ratio::{RatioError, RatioFormat, Svm, TscRatio, Vmx};
pub use units::{
    CpuId, GuestTsc, HostTsc, Hz, Khz, Nanos, NanosDelta, Ppb, Ppm, ScaledTsc, Ticks, TscDelta,
    TscOffset, VcpuId,
};
