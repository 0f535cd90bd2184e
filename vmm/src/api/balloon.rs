//! The bodies of requests to the memory balloon, and the key `balloon` of a configuration file.

use arch::memory::MemorySize;
use devices::virtio::balloon::{Options, PAGES_PER_MIB};
use serde::{Deserialize, Serialize};
use tsc::Nanos;

use super::request::Fault;

/// What the guest tells in its statistics, by their tags, under the names that `GET /balloon/statistics` has for
/// them.
pub(crate) const STATISTICS: [&str; devices::virtio::balloon::STATISTICS] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// `PUT /balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// How much memory the guest is to do without, in MiB.
    pub amount_mib: u32,
    /// Whether it gets memory back when it has no other.
    pub deflate_on_oom: bool,
    /// Every how many seconds its statistics are asked for; 0 for never.
    pub stats_polling_interval_s: Option<u16>,
    /// Whether the guest names its free pages when it is asked.
    pub free_page_hinting: Option<bool>,
    /// Whether it names each page that it frees.
    pub free_page_reporting: Option<bool>,
}

impl Balloon {
    /// The same with what was left open.
    #[must_use]
    pub fn complete(mut self) -> Self {
        self.stats_polling_interval_s.get_or_insert_default();
        self.free_page_hinting.get_or_insert_default();
        self.free_page_reporting.get_or_insert_default();
        self
    }

    /// Whether a guest with this much memory can do without so much.
    ///
    /// # Errors
    /// Both sizes.
    pub fn fits(&self, memory: MemorySize) -> Result<(), Fault> {
        if u64::from(self.amount_mib) <= memory.mib() {
            return Ok(());
        }
        Err(Fault::new(format!(
            "amount_mib: a balloon of {} MiB is more than the {} MiB of memory that the guest has: ask for less, or \
             for more memory before",
            self.amount_mib,
            memory.mib()
        )))
    }

    /// How many pages the balloon is to have. One that [fits](Self::fits) has so many as a driver can be told.
    pub(crate) fn pages(&self) -> u32 {
        self.amount_mib.saturating_mul(PAGES_PER_MIB)
    }

    /// Every how many seconds statistics are asked for; 0 for never.
    pub(crate) fn interval_s(&self) -> u16 {
        self.stats_polling_interval_s.unwrap_or_default()
    }

    /// What the device is to be.
    pub(crate) fn options(&self) -> Options {
        Options {
            pages: self.pages(),
            deflate_on_out_of_memory: self.deflate_on_oom,
            statistics: Some(self.interval_s())
                .filter(|seconds| *seconds > 0)
                .map(interval),
            reporting: self.free_page_reporting == Some(true),
            hinting: self.free_page_hinting == Some(true),
        }
    }
}

/// So many seconds.
pub(crate) fn interval(seconds: u16) -> Nanos {
    Nanos::from_millis(u64::from(seconds) * 1_000).unwrap_or(Nanos::new(u64::MAX))
}

/// `PATCH /balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonPatch {
    /// How much memory the guest is to do without, in MiB.
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsPatch {
    /// Every how many seconds statistics are asked for.
    pub stats_polling_interval_s: u16,
}

/// `PATCH /balloon/hinting/start`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonHinting {
    /// Whether the guest may use its pages again as soon as it has named all of them; `true` unless said.
    pub acknowledge_on_stop: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balloon(fields: &str) -> Balloon {
        let text = format!(r#"{{"amount_mib":64,"deflate_on_oom":true{fields}}}"#);
        let balloon: Balloon = serde_json::from_str(&text).expect("well-formed");
        balloon.complete()
    }

    #[test]
    fn what_is_left_open_is_off() {
        for fields in [
            "",
            r#","stats_polling_interval_s":null,"free_page_reporting":null"#,
        ] {
            let balloon = balloon(fields);
            let shown = serde_json::to_value(balloon).expect("text");
            let wanted = serde_json::json!({
                "amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 0,
                "free_page_hinting": false, "free_page_reporting": false,
            });
            assert_eq!(shown, wanted);
            let options = Options {
                // 64 MiB of 4 KiB
                pages: 16_384,
                deflate_on_out_of_memory: true,
                ..Options::default()
            };
            assert_eq!(balloon.options(), options);
        }
        let all = balloon(
            r#","stats_polling_interval_s":3,"free_page_reporting":true,"free_page_hinting":true"#,
        );
        let options = all.options();
        assert!(options.hinting);
        assert_eq!(options.statistics, Some(Nanos::new(3_000_000_000)));
        assert!(options.reporting);
    }

    #[test]
    fn balloon_is_at_most_the_guests_memory() {
        let balloon = balloon("");
        for (mib, fits) in [(63, false), (64, true), (65, true)] {
            let memory = MemorySize::from_mib(mib).expect("in bounds");
            assert_eq!(balloon.fits(memory).is_ok(), fits, "{mib}");
        }
    }
}
