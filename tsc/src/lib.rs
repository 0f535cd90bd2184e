//! The mathematics and the policy of guest time.
//!
//! This crate decides; it does nothing. It takes samples and returns offsets, ratios and verdicts, as
//! pure functions or small state machines, without an operating system, an allocation or a lock. What
//! carries its decisions out is elsewhere.
//!
//! # Theory
//!
//! A guest reads its time stamp counter without an exit: the processor takes the host's counter,
//! multiplies it by a ratio, drops the fraction and adds an offset,
//!
//! ```text
//! guest = ((host x ratio) >> N) + offset    (mod 2^64)
//! ```
//!
//! with N = 48 and a 64-bit ratio on Intel (SDM vol. 3, 25.3), N = 32 and an 8.32 ratio on AMD (APM
//! vol. 2, 15.30.5). The product has 128 bits. Everything that a hypervisor can say about a guest's
//! time is said with these two numbers: [`TscRatio`] and [`TscOffset`], together a [`Transform`].
//! Guests of guests need no third: L0 multiplies out ([`nested`]).
//!
//! In theory, then, a guest's clock is right when one ratio and one offset are right. The theory has a
//! premise: that there is *one* host counter, and that it keeps time.
//!
//! # What goes wrong
//!
//! Every CPU has its own counter. Two may differ by a constant, drift apart, run at a rate that
//! changes, or stop while a CPU idles. A vCPU that moves between them takes its offset along, and its
//! guest reads a step: forward, which is time that never was, or backwards, which guests are not
//! written for. A host that is itself paused shows all its guests a gap.
//!
//! The cures can be worse. In August 2010 KVM's handling of this was unified in one place (commit
//! e48672fa). Until then the code for AMD removed the whole difference of the counters at a move, but
//! only on platforms that *called themselves* unstable. From then on KVM looked for itself: a
//! difference below zero at a move marked the host's TSC unstable, and on an unstable host every move
//! of every vCPU removed the whole difference; not just what went backwards, but also what had
//! honestly passed while the vCPU was off the CPU. On machines that called their TSC stable, with
//! differences of a few microseconds, one unlucky move condemned the host, and from then on guests that
//! slept and moved lived through no time at all. 32-bit SMP guests no longer booted. "In extreme cases,
//! this could result in time appearing to stand still", its author wrote when it was bisected in
//! February 2011. A later change gave the time back (c285545f, "TSC catchup mode") and left the host
//! condemned; its message names what it is not: "a slightly more clever version of this is possible,
//! which only does catchup when TSC rate drops, and which specifically targets only CPUs with broken
//! TSC".
//!
//! Four mistakes are in this story, and each has its place in this crate:
//!
//! 1. *A small difference condemned a whole host.* A mark has a scope: a pair of CPUs, one CPU, or the
//!    host ([`stability`]). Skews are intervals that exchanged timestamps prove, and CPUs whose skew is
//!    proven too small for any guest to see form one domain ([`skew`]).
//! 2. *Compensation removed elapsed time.* Between two CPUs that are apart a guest's clock is continued
//!    by their skew; what is removed is the step and nothing else ([`policy::Targeted`]).
//! 3. *Nothing gave it back.* Where a counter loses time the guest follows a line through an anchor at
//!    its own rate, forward only, at once or by a bounded slew ([`policy::CatchUp`]).
//! 4. *Nobody could try it.* The simulator (`sim`) has the hosts, the scheduler and a guest that boots or
//!    does not; the four policies of 2010 run in it beside ours.
//!
//! The same questions return when a guest is paused, saved and restored, or moved to a host of another
//! rate: how much time passed for it, and do all its clocks agree? [`plan`] answers them once for TSC,
//! kvmclock and deadline timers, or refuses with a reason. [`pvclock`] and [`vmclock`] write the answer
//! down for the guest. [`measure`] tells what a guest's clock really does, from outside, and [`assess`]
//! what can be promised on a host.
//!
//! # Policies
//!
//! | policy | condemns | removes at a move | gives back |
//! | --- | --- | --- | --- |
//! | [`policy::Svm2010`] | nobody | all, if the platform says unstable | no |
//! | [`policy::Vmx2010`] | nobody | a step against the CPU left | no; leads instead |
//! | [`policy::Unified2010`] | the host | all, once it is condemned | no |
//! | [`policy::UnifiedCatchup2010`] | the host | all, at every load | at the next entry |
//! | [`policy::Targeted`] | pairs, CPUs | the skew, of pairs at fault | where a rate dropped |
//!
//! # Guarantees
//!
//! - **Scaling** is the processor's floor, bit for bit; ratios from rates are KVM's, bit for bit. Every
//!   rounding is in a name, every error bound in a doc comment.
//! - **Offsets** are exact: a plan's guest reads the planned value at the planned host reading.
//! - **[`policy::Targeted`]**: on a vCPU the clock never goes backwards as long as no counter does by
//!   itself while the vCPU runs on it. A host that keeps time, to within the clock's error and the rate's
//!   tolerance as stated and what readings are rounded by, is never accused. Catching up never takes it past its line. Offsets of vCPUs on CPUs
//!   that nothing is held against are not touched, unless a slew still owes them time. A lag lasts no longer than until the next
//!   look, with a slew until its bound has let it pass: on a CPU that is held not to keep time the next look comes
//!   within [`policy::TargetedConfig::recheck`], and on any other with the entry that finds it out.
//! - **In every scenario** of the simulator and for each of 64 seeds, [`policy::Targeted`] compares with
//!   each policy of 2010 thus, none left out: no vCPU reads less than before; steps between vCPUs are no
//!   larger and no more numerous; its worst reading is no further from true time, to either side; no more
//!   time is erased. A policy that lags less is ahead of true time by a thousand times as much at another
//!   reading, which is not keeping time. One that writes fewer offsets shows more backwards steps or is
//!   further from true time. Times are compared to within two readings of the host's clock, and all on one
//!   history (`sim::run_led`): the same vCPU reads at the same instant on the same CPU. Where a guest goes by
//!   what it reads, a nanosecond decides when it sleeps and moves, and each policy has a history of its own:
//!   its guest boots in each, and all of this holds, but for the number of steps where CPUs drop their
//!   rate. That number is chance then (`tests/simulator.rs` shows it).
//! - **Skew bounds** hold whatever the messages' delays were. Domains are proven pair by pair.
//! - Nothing panics on any input; hostile bytes of clock pages are errors.
//! - No path that runs at each exit divides: loads and entries of every policy, scaling, offsets and
//!   [`TickRate`]'s conversions multiply by factors that were divided out when the rate or the policy was
//!   made (`tests/no_division.rs` reads the assembly). Ratios from rates, plans, verdicts, measurements
//!   and new clock pages divide.
//!
//! They are held by oracles of big integers that know the manuals and not this code, by exhaustive runs
//! at widths where every input can be tried (the arithmetic is generic over them: [`RatioFormat`]), by
//! properties, by z3 (`proofs/`), and by the simulator.
//!
//! # What it does not do
//!
//! It reads no counter, sets no register and knows no KVM. It cannot make a guest's clock better than
//! the host's monotonic clock: where that is itself made of counters at fault, say so in
//! [`policy::TargetedConfig::clock_error`]. It does not discipline a guest's clock to real time; that is
//! the guest's business, and a rate within tolerance of nominal is left as it is. Without scaling
//! hardware it cannot slow a guest down, nor take back a lead that the guest has read: a guest that is
//! ahead waits for its line, or for its own sleep, in which a lead can vanish unseen. And two vCPUs on
//! CPUs of changing rates differ by what a rate loses between two looks.
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
#[cfg(feature = "sim")]
pub mod draw;
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
pub mod watch;
mod wide;

pub use offset::{Transform, guest_unscaled, offset_between, offset_unscaled};
pub use rate::{TickRate, nanos_delta_toward_zero, nanos_exact_floor, ticks_exact_floor};
pub use ratio::{RatioError, RatioFormat, Svm, TscRatio, Vmx};
pub use units::{
    CpuId, GuestTsc, HostTsc, Hz, Khz, Nanos, NanosDelta, Ppb, Ppm, ScaledTsc, Ticks, TscDelta,
    TscOffset, VcpuId,
};
