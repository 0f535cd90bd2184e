//! What a machine's virtio devices count, with Firecracker's names.

use std::sync::Arc;

use devices::virtio::Faults;
use devices::virtio::balloon::Told as Balloon;
use devices::virtio::block::Counts as Block;
use devices::virtio::entropy::Counts as Entropy;
use devices::virtio::net::Counts as Net;
use devices::virtio::pmem::Counts as Pmem;
use devices::virtio::vsock::Counts as Vsock;

use super::balloon;
use crate::metrics::Sample;

/// What a device counts, and what is counted of its driver.
#[derive(Debug)]
pub(super) struct Told<T> {
    pub(super) counts: Arc<T>,
    pub(super) faults: Arc<Faults>,
}

/// What a machine's devices count. It keeps none of them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Of disks, by their names.
    pub(super) disks: Vec<(String, Told<Block>)>,
    /// Of network cards, by their names.
    pub(super) cards: Vec<(String, Told<Net>)>,
    /// Of persistent memories, by theirs.
    pub(super) memories: Vec<(String, Told<Pmem>)>,
    pub(super) vsock: Option<Told<Vsock>>,
    pub(super) balloon: Option<Told<Balloon>>,
    pub(super) entropy: Option<Told<Entropy>>,
}

/// A field's name, and what it tells.
type Field<T> = (&'static str, fn(&Told<T>) -> u64);

impl Counts {
    /// Adds all of them.
    pub(super) fn read(&self, samples: &mut Vec<Sample>) {
        each("block", &DISK, &self.disks, samples);
        each("net", &CARD, &self.cards, samples);
        each("pmem", &MEMORY, &self.memories, samples);
        if let Some(told) = &self.vsock {
            let of = |(field, read): &Field<Vsock>| Sample::counter("vsock", field, read(told));
            samples.extend(VSOCK.iter().map(of));
        }
        if let Some(told) = &self.balloon {
            balloon::count(&told.counts, &told.faults, samples);
        }
        if let Some(told) = &self.entropy {
            let of = |(field, read): &Field<Entropy>| Sample::counter("entropy", field, read(told));
            samples.extend(ENTROPY.iter().map(of));
        }
    }
}

/// Adds the fields of a group that several devices are in.
fn each<T>(
    group: &'static str,
    fields: &[Field<T>],
    devices: &[(String, Told<T>)],
    samples: &mut Vec<Sample>,
) {
    for (field, read) in fields {
        // The values of one field follow each other.
        let values = devices.iter().map(|(id, told)| (id, read(told)));
        samples.extend(values.map(|(id, value)| Sample::counter(group, field, value).of(id)));
    }
}

const DISK: [Field<Block>; 13] = [
    ("activate_fails", |disk| disk.faults.activations.get()),
    ("event_fails", |disk| disk.faults.queues()),
    ("execute_fails", |disk| disk.counts.failures.get()),
    ("invalid_reqs_count", |disk| disk.counts.malformed.get()),
    ("flush_count", |disk| disk.counts.flushes.get()),
    ("read_bytes", |disk| disk.counts.read.bytes.get()),
    ("read_count", |disk| disk.counts.read.requests.get()),
    ("write_bytes", |disk| disk.counts.written.bytes.get()),
    ("write_count", |disk| disk.counts.written.requests.get()),
    ("rate_limiter_throttled_events", |disk| {
        disk.counts.throttled.get()
    }),
    ("io_engine_throttled_events", |disk| disk.counts.full.get()),
    ("update_count", |disk| disk.counts.changes.get()),
    ("update_fails", |disk| disk.counts.change_failures.get()),
];

const MEMORY: [Field<Pmem>; 3] = [
    ("activate_fails", |pmem| pmem.faults.activations.get()),
    ("event_fails", |pmem| {
        let broken = pmem.faults.queues();
        broken.wrapping_add(pmem.counts.failures.get())
    }),
    ("rate_limiter_throttled_events", |pmem| {
        pmem.counts.throttled.get()
    }),
];

const CARD: [Field<Net>; 14] = [
    ("activate_fails", |card| card.faults.activations.get()),
    ("event_fails", |card| card.faults.queues()),
    ("rx_bytes_count", |card| card.counts.received.bytes.get()),
    ("rx_packets_count", |card| card.counts.received.frames.get()),
    // A frame is read by itself, so these are as many.
    ("rx_count", |card| card.counts.received.frames.get()),
    ("rx_fails", |card| card.counts.received.malformed.get()),
    ("rx_rate_limiter_throttled", |card| {
        card.counts.received.throttled.get()
    }),
    ("tap_read_fails", |card| card.counts.received.failures.get()),
    ("tap_write_fails", |card| card.counts.sent.failures.get()),
    ("tx_bytes_count", |card| card.counts.sent.bytes.get()),
    ("tx_packets_count", |card| card.counts.sent.frames.get()),
    ("tx_count", |card| card.counts.sent.frames.get()),
    ("tx_malformed_frames", |card| {
        card.counts.sent.malformed.get()
    }),
    ("tx_rate_limiter_throttled", |card| {
        card.counts.sent.throttled.get()
    }),
];

const VSOCK: [Field<Vsock>; 15] = [
    ("activate_fails", |vsock| vsock.faults.activations.get()),
    // The numbers of the queues (virtio 1.2, 5.10.2).
    ("rx_queue_event_fails", |vsock| vsock.faults.queue(0)),
    ("tx_queue_event_fails", |vsock| vsock.faults.queue(1)),
    ("ev_queue_event_fails", |vsock| vsock.faults.queue(2)),
    ("muxer_event_fails", |vsock| vsock.counts.refusals.get()),
    ("rx_bytes_count", |vsock| vsock.counts.received.bytes.get()),
    ("rx_packets_count", |vsock| {
        vsock.counts.received.packets.get()
    }),
    ("rx_read_fails", |vsock| {
        vsock.counts.received.failures.get()
    }),
    ("tx_bytes_count", |vsock| vsock.counts.sent.bytes.get()),
    ("tx_packets_count", |vsock| vsock.counts.sent.packets.get()),
    ("tx_write_fails", |vsock| vsock.counts.sent.failures.get()),
    ("tx_flush_fails", |vsock| vsock.counts.flush_failures.get()),
    ("conns_added", |vsock| vsock.counts.added.get()),
    ("conns_killed", |vsock| vsock.counts.killed.get()),
    ("conns_removed", |vsock| vsock.counts.removed.get()),
];

const ENTROPY: [Field<Entropy>; 6] = [
    ("activate_fails", |entropy| entropy.faults.activations.get()),
    ("entropy_event_fails", |entropy| entropy.faults.queues()),
    ("entropy_event_count", |entropy| {
        entropy.counts.requests.get()
    }),
    ("entropy_bytes", |entropy| entropy.counts.bytes.get()),
    ("host_rng_fails", |entropy| entropy.counts.failures.get()),
    ("entropy_rate_limiter_throttled", |entropy| {
        entropy.counts.throttled.get()
    }),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::metrics::prometheus;

    fn nothing<T: Default>() -> Told<T> {
        Told {
            counts: Arc::default(),
            faults: Arc::default(),
        }
    }

    #[test]
    fn fields_are_those_of_the_documentation() {
        let counts = Counts {
            disks: vec![("a".to_owned(), nothing()), ("b".to_owned(), nothing())],
            cards: vec![("a".to_owned(), nothing()), ("b".to_owned(), nothing())],
            memories: vec![("a".to_owned(), nothing()), ("b".to_owned(), nothing())],
            vsock: Some(nothing()),
            balloon: Some(nothing()),
            entropy: Some(nothing()),
        };
        let mut samples = Vec::new();
        counts.read(&mut samples);
        let text = prometheus::text(&samples);
        let document = include_str!("../../../docs/compatibility.md");
        let (_, table) = document
            .split_once("| group | fields |\n| --- | --- |\n")
            .expect("a table");
        let mut documented = BTreeSet::new();
        for row in table.lines().map_while(|line| line.strip_prefix("| `")) {
            let (group, fields) = row.split_once('`').expect("a group");
            let fields = fields.split('|').nth(1).expect("fields");
            let fields = fields.split('`').skip(1).step_by(2);
            documented.extend(fields.map(|field| format!("keeptime_{group}_{field}_total")));
        }
        let mut told: BTreeMap<String, u32> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')).skip(1) {
            let name = line.split(['{', ' ']).next().expect("a name");
            *told.entry(name.to_owned()).or_default() += 1;
        }
        assert_eq!(told.keys().cloned().collect::<BTreeSet<_>>(), documented);
        // Of each disk, card and memory one value, and of others one in all.
        for (name, values) in told {
            let many = ["keeptime_block_", "keeptime_net_", "keeptime_pmem_"];
            let many = many.iter().any(|group| name.starts_with(group));
            assert_eq!(values, if many { 2 } else { 1 }, "{name}");
        }
    }
}
