//! What this host says of its TSCs, and what is measured of them.
//!
//! `keeptime doctor` measures all that it can and takes its time. A launch cannot: a guest's first line
//! comes 1.5 to 6 ms after the start of the process, and to exchange timestamps takes about 1 ms for each
//! pair of CPUs (`exchange`), on a busy host many times as much. So of what a launch needs:
//!
//! | what | cost | when |
//! | --- | --- | --- |
//! | the allowed CPUs | a system call | before the VM is made |
//! | what was measured before, on this boot of the host ([`cache`]) | 30 µs: four small files | before the VM is made, if more than one CPU is allowed |
//! | the skews between the CPUs | 1 ms a pair | only if that was not there: beside the guest's boot, on a thread of its own ([`crate::placement`]) |
//! | CPUID, the clocksource's name | some 10 µs | when the time report is asked for |
//! | the TSC's rate | none | it is taken from KVM, and so assumed; `doctor` measures it |
//!
//! One allowed CPU needs no measurement. The measuring threads have the normal priority: at a low one, the
//! two of a pair would rarely run at the same time beside a guest that boots, and what takes a millisecond
//! once in an hour would take the hundredfold. Where nothing is proven (a pair did not run at the same time,
//! or its round trips were too slow for the bound) the kernel is believed, which checks the TSCs of all CPUs
//! when it starts them (`check_tsc_sync_source` in arch/x86/kernel/tsc_sync.c), and the report says
//! "assumed".

pub(crate) mod cache;
pub(crate) mod cpus;
pub(crate) mod exchange;
pub(crate) mod platform;
pub(crate) mod rate;
pub(crate) mod skew;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tsc::assess::{Spread, skew_nanos_outward};
use tsc::{CpuId, Khz, Nanos};

use crate::config::CpuList;
use crate::host_clock;
use platform::{Platform, Sources};
use skew::{Budget, Skew};

/// What is proven to be within this, and may be zero, is no skew: see [`skew`].
pub(crate) const DOMAIN_BOUND: Nanos = skew::BOUND;

/// What the processor and the kernel say of themselves.
pub(crate) fn platform() -> Platform {
    Platform::read(&Sources {
        cpuid: &hypervisor::host::cpuid,
        root: Path::new("/"),
    })
}

/// How the TSCs of some CPUs lie to each other, by exchanged timestamps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Finding {
    /// Sets of CPUs whose TSCs agree: proven to be within [`DOMAIN_BOUND`] of each other, and not proven
    /// apart. Each CPU that was to be measured is in one of them.
    pub(crate) domains: Vec<CpuList>,
    /// What is proven of all of them.
    pub(crate) agree: Agreement,
    /// The pair that can be furthest apart.
    pub(crate) largest: Option<PairSkew>,
    /// `CLOCK_BOOTTIME` when it was measured.
    pub(crate) at_ns: u64,
}

/// What is proven of the TSCs of some CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Agreement {
    /// They agree.
    Proven,
    /// Some do not: they are proven apart.
    Refuted,
    /// Neither.
    Unproven,
}

/// Bounds on the TSC of `b` less that of `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PairSkew {
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) at_least_ns: i64,
    pub(crate) at_most_ns: i64,
}

impl Finding {
    /// What the measurement `skew` at the rate `khz` comes to.
    fn new(skew: &Skew, khz: Option<Khz>) -> Self {
        let nanos = |(a, b, bounds): &(CpuId, CpuId, _)| {
            let (least, most) = skew_nanos_outward(*bounds, khz?)?;
            Some(PairSkew {
                a: a.get(),
                b: b.get(),
                at_least_ns: least.get(),
                at_most_ns: most.get(),
            })
        };
        let magnitude =
            |pair: &PairSkew| (pair.at_least_ns.unsigned_abs()).max(pair.at_most_ns.unsigned_abs());
        Self {
            domains: (skew.domains.iter())
                .map(|cpus| cpus.iter().copied().collect())
                .collect(),
            agree: match skew.spread {
                Spread::One => Agreement::Proven,
                Spread::Several { .. } => Agreement::Refuted,
                Spread::Unproven => Agreement::Unproven,
            },
            largest: skew.known.iter().filter_map(nanos).max_by_key(magnitude),
            at_ns: host_clock::boottime().get(),
        }
    }

    /// The set that `cpu` is in.
    pub(crate) fn domain_of(&self, cpu: CpuId) -> Option<&CpuList> {
        self.domains.iter().find(|domain| domain.contains(cpu))
    }

    /// The set with the most CPUs, the first of them when several are as large, as
    /// [`tsc::skew::Domains::largest`] has it.
    pub(crate) fn largest_domain(&self) -> Option<&CpuList> {
        // `max_by_key` keeps the last of equals.
        self.domains.iter().rev().max_by_key(|cpus| cpus.count())
    }
}

/// Measures the skews between `cpus`, for domains in ticks of `khz`. Before each pair `go_on` is asked
/// whether to; `None` when it was not to.
pub(crate) fn measure(
    cpus: &CpuList,
    khz: Option<Khz>,
    go_on: &mut dyn FnMut() -> bool,
) -> Option<Finding> {
    let cpus: Vec<_> = cpus.iter().collect();
    let mut wanted = true;
    let mut step = |_, _| {
        wanted = go_on();
        wanted
    };
    let exchanges = skew::measure(&cpus, Budget::BESIDE_A_BOOT, &mut step);
    wanted.then(|| Finding::new(&skew::judge(exchanges, khz), khz))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_domain_is_the_first_of_those_with_most_cpus() {
        let finding = |domains: &[&str]| Finding {
            domains: (domains.iter())
                .map(|text| text.parse().expect(text))
                .collect(),
            agree: Agreement::Refuted,
            largest: None,
            at_ns: 0,
        };
        // (domains, the largest)
        let rows: [(&[&str], &str); 3] = [
            (&["0", "1"], "0"),
            (&["0", "1-2", "3-4"], "1-2"),
            (&["5"], "5"),
        ];
        for (domains, largest) in rows {
            let finding = finding(domains);
            let found = finding.largest_domain().expect("there are domains");
            assert_eq!(found.to_string(), largest);
        }
        assert_eq!(finding(&[]).largest_domain(), None);
    }

    #[test]
    fn measurement_here_finds_each_cpu_in_one_domain() {
        let allowed: CpuList = cpus::allowed().expect("told").into_iter().collect();
        let khz = Khz::new(2_000_000);
        let finding = measure(&allowed, khz, &mut || true).expect("not stopped");
        for cpu in allowed.iter() {
            let domains = finding.domains.iter().filter(|set| set.contains(cpu));
            assert_eq!(domains.count(), 1, "{finding:?}");
        }
        if allowed.count() > 1 {
            assert_eq!(measure(&allowed, khz, &mut || false), None);
        }
    }
}
