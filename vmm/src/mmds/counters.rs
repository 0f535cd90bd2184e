//! What the service counts, with Firecracker's names.

use crate::metrics::{Counter, Sample};

/// Of all cards together.
#[derive(Debug, Default)]
pub(crate) struct MmdsCounters {
    /// Frames that were taken out of what the guest sends,
    pub(super) accepted: Counter,
    /// those of them with wrong lengths or checksums, or without room,
    pub(super) accepted_err: Counter,
    /// those that are not of the kind that is served: fragments, options, VLANs, other protocols than TCP,
    pub(super) accepted_unusual: Counter,
    /// those whose addresses or types are none,
    pub(super) bad_eth: Counter,
    /// and those that were obeyed.
    pub(super) count: Counter,
    /// Requests with a token that is not, or no longer, one.
    pub(super) invalid_token: Counter,
    /// Requests without a token.
    pub(super) no_token: Counter,
    /// Frames for the guest,
    pub(super) tx_frames: Counter,
    /// those that its card took, in number and bytes,
    pub(super) tx_count: Counter,
    pub(super) tx_bytes: Counter,
    /// and those that found no room.
    pub(super) tx_errors: Counter,
    /// Connections that began,
    pub(super) created: Counter,
    /// and ended.
    pub(super) destroyed: Counter,
}

impl MmdsCounters {
    /// Adds all of them.
    pub(crate) fn read(&self, samples: &mut Vec<Sample>) {
        let fields = [
            ("rx_accepted", &self.accepted),
            ("rx_accepted_err", &self.accepted_err),
            ("rx_accepted_unusual", &self.accepted_unusual),
            ("rx_bad_eth", &self.bad_eth),
            ("rx_invalid_token", &self.invalid_token),
            ("rx_no_token", &self.no_token),
            ("rx_count", &self.count),
            ("tx_bytes", &self.tx_bytes),
            ("tx_count", &self.tx_count),
            ("tx_errors", &self.tx_errors),
            ("tx_frames", &self.tx_frames),
            ("connections_created", &self.created),
            ("connections_destroyed", &self.destroyed),
        ];
        let all = fields.map(|(name, counter)| Sample::counter("mmds", name, counter.get()));
        samples.extend(all);
    }
}
