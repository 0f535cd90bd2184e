//! The guest's VMClock page: which time its TSC tells.
//!
//! [`tsc::vmclock`] makes it of what is measured; here the host's clocks are read, and the page is written: at each beat
//! of the watch, after each disturbance, and before the guest goes on from a pause. Who writes holds the timekeeper.
//!
//! The page's counter is the guest's TSC by the host's, the ratio and the offset in force. It is told of only where that
//! is known: where all vCPUs have one offset, and nothing is held against the host's counters. A guest that is not
//! watched has a page without a counter, and so has one whose TSC KVM pushes forward.

use std::sync::Arc;

use arch::layout;
use devices::vmclock::ClockPage;
use hypervisor::host::read_tsc;
use hypervisor::tsc_control::{TscOffsetControl, VendorRatio};
use tsc::vmclock::{Follower, HostClock, RealSample};
use tsc::{HostTsc, Nanos, TscOffset};
use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use super::Rates;
use super::vcpu::is_explained;
use crate::assessment::DOMAIN_BOUND;
use crate::host_clock;

/// Whether the TSC that KVM gives for a vCPU, which does not run yet, is the one that its offset explains.
pub(crate) fn explains(rates: Rates, offset: TscOffset, vcpu: &impl TscOffsetControl) -> bool {
    is_explained(vcpu, rates.ratio, offset, read_tsc).unwrap_or(false)
}

/// The host's real-time clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RealTime {
    /// It, between two readings of the TSC.
    pub(crate) between: fn() -> (HostTsc, Nanos, HostTsc),
    /// What the kernel says of it.
    pub(crate) clock: fn() -> HostClock,
}

impl RealTime {
    /// That of the machine that this runs on.
    pub(crate) const THIS_HOST: Self = Self {
        between: host_clock::real_time_between,
        clock: host_clock::real_time_clock,
    };
}

/// The page of a guest.
#[derive(Debug)]
pub(crate) struct TimePage {
    page: ClockPage,
    follower: Follower,
    /// What the host's TSC is multiplied by; nothing for a page without a counter.
    ratio: Option<VendorRatio>,
    host: RealTime,
    /// That of all vCPUs; nothing where they have several, or the host's counters cannot be relied on.
    offset: Option<TscOffset>,
    /// The last that was known.
    known: Option<TscOffset>,
}

impl TimePage {
    /// The page of a guest that does not run yet, which says that nothing is known. For one whose TSC's rate is not known,
    /// or not kept by the hardware, it stays so.
    ///
    /// # Errors
    /// The guest has no memory where the page is to be.
    pub(crate) fn create(
        memory: Arc<GuestMemoryMmap>,
        rates: Option<Rates>,
        host: RealTime,
    ) -> Result<Self, GuestMemoryError> {
        let follower = Follower::new(rates.map(|rates| rates.guest), DOMAIN_BOUND);
        Ok(Self {
            page: ClockPage::create(memory, layout::VMCLOCK, follower.page())?,
            follower,
            ratio: rates.map(|rates| rates.ratio),
            host,
            offset: None,
            known: None,
        })
    }

    /// Shows the time by `offset`, that of all vCPUs, or that nobody knows it. `disturbed`: the guest's TSC may not have gone on as it did.
    pub(super) fn show(&mut self, offset: Option<TscOffset>, disturbed: bool) {
        let mut disturbed = disturbed;
        if let Some(new) = offset {
            disturbed |= self.known.replace(new).is_some_and(|known| known != new);
        }
        if disturbed {
            self.follower.disrupt();
        }
        self.offset = offset;
        let shown = self.follower.page().sequence();
        match offset.zip(self.ratio) {
            Some((offset, ratio)) => {
                let (before, real, after) = (self.host.between)();
                let sample = RealSample {
                    before: ratio.guest_at(offset, before),
                    real,
                    after: ratio.guest_at(offset, after),
                };
                self.follower.follow(sample, (self.host.clock)());
            }
            None => {
                self.follower.distrust();
            }
        }
        let page = self.follower.page();
        if page.sequence() != shown {
            self.page.show(page);
        }
    }

    /// The guest goes on from a snapshot. The next page says so.
    pub(super) fn restored(&mut self) {
        self.follower.restore();
    }

    /// The guest is about to go on from a pause: with all of its clocks `moved` to this offset, or as they were.
    pub(super) fn go_on(&mut self, moved: Option<TscOffset>) {
        let offset = self.offset.map(|offset| moved.unwrap_or(offset));
        self.show(offset, moved.is_some());
    }
}
