//! Device models: what a guest finds at its I/O ports and memory-mapped registers.
#![forbid(unsafe_code)]

pub mod boot_timer;
pub mod bus;
pub mod debug_exit;
pub mod i8042;
pub mod power;
pub mod serial;
pub mod trigger;

pub use bus::{Bus, BusDevice, BusError, Reaction};
pub use trigger::{Trigger, Unconnected};
