//! The device through which the demo's guest lets the host bracket its readings.
//!
//! A read of offset 0 returns zero and notes the host's time before; the guest then reads its TSC
//! and writes the low half to offset 0, upon which the host notes its time after, and the high half
//! to offset 4. So each guest reading is known to lie between two readings of the host, and what is
//! concluded from them comes with bounds that hold however slow the exits were.

use devices::bus::{BusDevice, Reaction};
use tsc::GuestTsc;
use tsc::measure::{GuestSample, HostSample};

use crate::host_clock;

/// Collects the bracketed readings.
#[derive(Debug)]
pub(super) struct Probe {
    samples: Vec<GuestSample>,
    limit: usize,
    before: Option<HostSample>,
    low: Option<(HostSample, HostSample, u32)>,
}

impl Probe {
    /// A probe that keeps at most `limit` samples: a guest cannot make it grow.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            samples: Vec::with_capacity(limit),
            limit,
            before: None,
            low: None,
        }
    }

    pub(super) fn samples(&self) -> &[GuestSample] {
        &self.samples
    }
}

impl BusDevice for Probe {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.before = Some(host_clock::sample());
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Reaction {
        let after = host_clock::sample();
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return Reaction::None;
        };
        match offset {
            0 => self.low = self.before.take().map(|before| (before, after, value)),
            4 => {
                if let Some((before, after, low)) = self.low.take()
                    && self.samples.len() < self.limit
                {
                    let guest = GuestTsc::new(u64::from(value) << 32 | u64::from(low));
                    self.samples.push(GuestSample {
                        before,
                        guest,
                        after,
                    });
                }
            }
            _ => {}
        }
        Reaction::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn give(probe: &mut Probe, ticks: u64) {
        let bytes = ticks.to_le_bytes();
        probe.read(0, &mut [0; 4]);
        assert_eq!(probe.write(0, &bytes[..4]), Reaction::None);
        assert_eq!(probe.write(4, &bytes[4..]), Reaction::None);
    }

    #[test]
    fn probe_puts_both_halves_together_and_brackets_them() {
        let mut probe = Probe::new(4);
        give(&mut probe, 0x1234_5678_9abc_def0);
        let [sample] = probe.samples() else {
            panic!("{:?}", probe.samples())
        };
        assert_eq!(sample.guest, GuestTsc::new(0x1234_5678_9abc_def0));
        assert!(sample.before.monotonic <= sample.after.monotonic);
    }

    #[test]
    fn probe_keeps_no_more_than_its_limit_whatever_the_guest_does() {
        let mut probe = Probe::new(2);
        for ticks in 0..100 {
            give(&mut probe, ticks);
        }
        assert_eq!(probe.samples().len(), 2);
        // halves without a beginning, and accesses of other widths and offsets, are nothing
        let mut probe = Probe::new(2);
        for (offset, data) in [
            (4, &[0; 4][..]),
            (0, &[0; 4]),
            (0, &[0; 1]),
            (9, &[0; 8]),
            (4, &[]),
        ] {
            assert_eq!(probe.write(offset, data), Reaction::None);
        }
        assert_eq!(probe.samples(), []);
    }
}
