//! Counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Sample;
use crate::api::http::Method;
use crate::api::request::ROUTES;

/// A number that any thread may change; nothing else is ordered by it.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one vCPU's thread counts. Two cache lines' worth of room, which is what a processor fetches
/// together: threads do not take them from each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct VcpuCounters {
    pub(crate) port_reads: Counter,
    pub(crate) port_writes: Counter,
    pub(crate) mmio_reads: Counter,
    pub(crate) mmio_writes: Counter,
    pub(crate) failures: Counter,
}

/// A field's name, and what counts it.
type Field<T> = (&'static str, fn(&T) -> u64);

pub(super) fn vcpus(vcpus: &[Arc<VcpuCounters>], samples: &mut Vec<Sample>) {
    let fields: [Field<VcpuCounters>; 5] = [
        ("exit_io_in", |vcpu| vcpu.port_reads.get()),
        ("exit_io_out", |vcpu| vcpu.port_writes.get()),
        ("exit_mmio_read", |vcpu| vcpu.mmio_reads.get()),
        ("exit_mmio_write", |vcpu| vcpu.mmio_writes.get()),
        ("failures", |vcpu| vcpu.failures.get()),
    ];
    for (name, read) in fields {
        // A sum beyond 64 bits would take centuries of exits.
        let sum = vcpus
            .iter()
            .fold(0_u64, |sum, vcpu| sum.wrapping_add(read(vcpu)));
        samples.push(Sample::counter("vcpu", name, sum));
    }
}

/// Accesses of a guest to one device.
#[derive(Debug, Default)]
pub(crate) struct AccessCounters {
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    pub(crate) resets: Counter,
}

pub(super) fn keyboard(counters: &AccessCounters, samples: &mut Vec<Sample>) {
    samples.extend([
        Sample::counter("i8042", "read_count", counters.reads.get()),
        Sample::counter("i8042", "write_count", counters.writes.get()),
        Sample::counter("i8042", "reset_count", counters.resets.get()),
    ]);
}

/// Bytes of the guest's console.
#[derive(Debug, Default)]
pub(crate) struct ConsoleCounters {
    /// Of input that the guest's side took.
    pub(crate) received: Counter,
    /// Of output that was taken.
    pub(crate) sent: Counter,
    /// Of output that was not.
    pub(crate) lost: Counter,
}

pub(super) fn console(counters: &ConsoleCounters, samples: &mut Vec<Sample>) {
    samples.extend([
        Sample::counter("uart", "read_count", counters.received.get()),
        Sample::counter("uart", "write_count", counters.sent.get()),
        Sample::counter("uart", "missed_write_count", counters.lost.get()),
    ]);
}

#[derive(Debug, Default)]
struct Requests {
    count: Counter,
    fails: Counter,
}

/// Requests, by endpoint in the order of [`ROUTES`].
#[derive(Debug)]
pub(crate) struct RequestCounters(Vec<Requests>);

impl Default for RequestCounters {
    fn default() -> Self {
        Self(ROUTES.iter().map(|_| Requests::default()).collect())
    }
}

impl RequestCounters {
    /// Counts a request to the endpoint with this index, and whether it was refused.
    pub(crate) fn count(&self, route: usize, refused: bool) {
        if let Some(requests) = self.0.get(route) {
            requests.count.add(1);
            requests.fails.add(u64::from(refused));
        }
    }

    /// Endpoints with one name are added up.
    pub(super) fn read(&self, samples: &mut Vec<Sample>) {
        for (route, requests) in ROUTES.iter().zip(&self.0) {
            let (Some(name), Some(group)) = (route.counter, group(route.method)) else {
                continue;
            };
            let numbers = [("count", &requests.count), ("fails", &requests.fails)];
            for (suffix, counter) in numbers {
                let field = format!("{name}_{suffix}");
                let same = |sample: &&mut Sample| sample.group == group && sample.field == field;
                match samples.iter_mut().find(same) {
                    Some(sample) => sample.value = sample.value.wrapping_add(counter.get()),
                    None => samples.push(Sample::counter(group, &field, counter.get())),
                }
            }
        }
    }
}

fn group(method: Method) -> Option<&'static str> {
    match method {
        Method::Get => Some("get_api_requests"),
        Method::Put => Some("put_api_requests"),
        Method::Patch => Some("patch_api_requests"),
        Method::Delete => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::request::find;

    #[test]
    fn requests_of_one_name_are_added_up() {
        let counters = RequestCounters::default();
        for (path, refused) in [("/mmds", false), ("/mmds/config", true), ("/mmds", false)] {
            let found = find(Method::Put, path).expect(path);
            counters.count(found.index, refused);
        }
        let mut samples = Vec::new();
        counters.read(&mut samples);
        let value = |field: &str| {
            let mut of = samples
                .iter()
                .filter(|sample| sample.group == "put_api_requests" && sample.field == field);
            let value = of.next().map(|sample| sample.value);
            assert_eq!(of.next(), None);
            value
        };
        assert_eq!(value("mmds_count"), Some(3));
        assert_eq!(value("mmds_fails"), Some(1));
        assert_eq!(value("actions_count"), Some(0));
    }
}
