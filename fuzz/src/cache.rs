//! The file in which launches keep what was measured of the host's TSCs.

use tsc::Nanos;
use vmm::config::CpuList;
use vmm::domains_in_file;

/// An hour and a second: what is believed was measured a second after the boot, or later.
const NOW: Nanos = Nanos::new(3_601_000_000_000);

/// Any bytes as such a file: each CPU in one domain, and nobody else in any; or nothing is believed.
///
/// # Panics
/// When threads could be kept elsewhere than on CPUs that are allowed, or nowhere.
pub fn cache(data: &[u8]) {
    for cpus in ["0-3", "0", "0,64,1023"] {
        let cpus: CpuList = cpus.parse().expect("a list");
        let Some(domains) = domains_in_file(data, cpus, "b", NOW) else {
            continue;
        };
        assert!(!domains.is_empty() && domains.iter().all(|domain| !domain.is_empty()));
        let members: Vec<_> = domains.iter().flat_map(CpuList::iter).collect();
        assert_eq!(members.len(), cpus.iter().count(), "{domains:?}");
        assert_eq!(members.into_iter().collect::<CpuList>(), cpus);
        // No longer than an hour, and on no other boot.
        let later = Nanos::new(NOW.get() * 2 + 1);
        assert_eq!(domains_in_file(data, cpus, "b", later), None);
        assert_eq!(domains_in_file(data, cpus, "c", NOW), None);
    }
}
