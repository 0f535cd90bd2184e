//! What is held against this host's counters, for the time report.

use serde::Serialize;
use tsc::stability::{Cause, Mark, Record, Scope};
use tsc::{CpuId, Khz, Nanos, nanos_exact_floor};

/// So many against CPUs and pairs of them are kept apart,
const ROOM: usize = 64;
/// and so many against the host as a whole, which no number of CPUs leaves without room.
const ROOM_OF_HOST: usize = 8;

/// The marks of one guest's watch; see [`Record`].
#[derive(Debug, Default)]
pub(crate) struct Marks {
    host: Record<ROOM_OF_HOST>,
    cpus: Record<ROOM>,
}

/// A mark, as the report has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MarkReport {
    /// `CLOCK_BOOTTIME`.
    at_ns: u64,
    reason: &'static str,
    /// The same for people.
    told: String,
    /// The CPUs at fault; all of the host's where there is none.
    cpus: Vec<u32>,
    /// How far off a counter was at least, where that was measured.
    ticks: Option<u64>,
    ns: Option<u64>,
}

impl Marks {
    /// Takes note of `cause`.
    pub(super) fn add(&mut self, cause: Cause, at: Nanos) {
        let left_out = self.left_out();
        let is_new = match cause.scope() {
            Scope::Host => self.host.add(cause, at),
            Scope::Pair(..) | Scope::Cpu(_) => self.cpus.add(cause, at),
        };
        if is_new {
            tracing::warn!("the host's TSC: {cause}");
        } else if left_out == 0 && self.left_out() > 0 {
            tracing::warn!("the host's TSC: {cause}; more of that kind is not told any more");
        }
    }

    /// How often something was found for which there was no room.
    pub(crate) fn left_out(&self) -> u64 {
        self.host.left_out().saturating_add(self.cpus.left_out())
    }

    /// All of them, on a host whose TSC has the rate `khz`.
    pub(crate) fn report(&self, khz: Option<Khz>) -> Vec<MarkReport> {
        let mut marks: Vec<_> = self.host.marks().chain(self.cpus.marks()).collect();
        marks.sort_by_key(|mark| mark.at);
        marks.into_iter().map(|mark| told(mark, khz)).collect()
    }
}

fn told(Mark { cause, at }: Mark, khz: Option<Khz>) -> MarkReport {
    let size = cause.size();
    MarkReport {
        at_ns: at.get(),
        reason: cause.name(),
        told: cause.to_string(),
        cpus: match cause.scope() {
            Scope::Host => Vec::new(),
            Scope::Pair(a, b) => [a, b].map(CpuId::get).to_vec(),
            Scope::Cpu(cpu) => vec![cpu.get()],
        },
        ticks: size.map(|ticks| ticks.get()),
        ns: size
            .zip(khz)
            .and_then(|(ticks, khz)| nanos_exact_floor(ticks, khz))
            .map(Nanos::get),
    }
}

#[cfg(test)]
mod tests {
    use tsc::Ticks;

    use super::*;

    #[test]
    fn mark_tells_who_is_at_fault_and_by_how_much() {
        let mut marks = Marks::default();
        let step = Cause::BackwardsStep {
            from: CpuId::new(3),
            to: CpuId::new(1),
            by: Ticks::new(4_000),
        };
        marks.add(step, Nanos::new(5));
        marks.add(step, Nanos::new(6));
        let report = serde_json::to_value(marks.report(Khz::new(2_000_000))).expect("JSON");
        let expected = serde_json::json!([{
            "at_ns": 5, "reason": "backwards_step", "cpus": [3, 1], "ticks": 4_000, "ns": 2_000,
            "told": step.to_string(),
        }]);
        assert_eq!(report, expected);
    }

    #[test]
    fn what_is_held_against_the_host_finds_room_beside_any_number_of_cpus() {
        let mut marks = Marks::default();
        let jump = Cause::HostJump {
            by: Ticks::new(3_000),
        };
        for cpu in (1..).take(ROOM + 2) {
            let cpu = CpuId::new(cpu);
            let by = Ticks::new(1);
            marks.add(Cause::FellBehind { cpu, by }, Nanos::new(5));
        }
        marks.add(jump, Nanos::new(7));
        let report = marks.report(None);
        assert_eq!(report.len(), ROOM + 1);
        assert_eq!(report[ROOM].told, jump.to_string());
        assert_eq!(marks.left_out(), 2);
    }
}
