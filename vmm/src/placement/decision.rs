//! Which CPUs a guest's vCPU threads are kept on, given what is known.

use tsc::CpuId;

use super::{Drawback, PlacementError};
use crate::assessment::{Agreement, Finding};
use crate::config::CpuList;

/// What was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Where the threads are kept; wherever the kernel likes when there is none.
    pub(super) cpus: Option<CpuList>,
    /// What is not as one would want.
    pub(super) drawbacks: Vec<Drawback>,
}

impl Choice {
    pub(super) fn on(cpus: CpuList) -> Self {
        Self {
            cpus: Some(cpus),
            drawbacks: Vec::new(),
        }
    }

    fn but(&mut self, consequence: String) {
        self.drawbacks.push(Drawback { consequence });
    }

    /// A vCPU without a CPU of its own waits for another one's.
    fn count(&mut self, cpus: &CpuList, vcpus: u8, what: &str) {
        if cpus.count() < u32::from(vcpus) {
            let count = cpus.count();
            self.but(format!(
                "the guest's {vcpus} vCPUs share the {count} CPU(s) {cpus}: {what}"
            ));
        }
    }
}

/// `auto`: within the largest domain, or that of the CPU that the VM was made on.
pub(super) fn by_itself(finding: &Finding, home: Option<CpuId>, vcpus: u8) -> Choice {
    if finding.agree != Agreement::Refuted {
        return Choice::default();
    }
    let largest = finding.largest_domain();
    let Some(domain) = home.map_or(largest, |home| finding.domain_of(home)) else {
        return Choice::default();
    };
    let mut choice = Choice::on(*domain);
    choice.count(
        domain,
        vcpus,
        "no other CPU's TSC is proven to agree with theirs",
    );
    if let Some(largest) = largest.filter(|largest| largest.count() > domain.count()) {
        choice.but(format!(
            "the vCPUs are kept on CPUs {domain}, where the microVM was made before the TSCs were \
             measured; those of {largest} agree, too, and are more"
        ));
    }
    choice
}

/// Whether `list` can be had.
pub(super) fn check(list: CpuList, allowed: CpuList) -> Result<(), PlacementError> {
    let missing = list.without(&allowed);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PlacementError::NotAllowed {
            asked: list.to_string(),
            missing: missing.to_string(),
            allowed: allowed.to_string(),
        })
    }
}

/// The CPUs that were asked for.
pub(super) fn of_list(list: CpuList, finding: Option<&Finding>, vcpus: u8) -> Choice {
    let mut choice = Choice::on(list);
    choice.count(&list, vcpus, "tsc_domain names no more");
    if let Some(finding) = finding.filter(|finding| finding.agree == Agreement::Refuted) {
        let domains: Vec<_> = (finding.domains.iter())
            .filter(|domain| domain.meets(&list))
            .map(ToString::to_string)
            .collect();
        if domains.len() > 1 {
            choice.but(format!(
                "tsc_domain {list} spans {} TSC domains, and the guest's clocks may step when a vCPU moves \
                 between them: {}",
                domains.len(),
                domains.join(" | ")
            ));
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().expect(text)
    }

    fn finding(agree: Agreement, domains: &[&str]) -> Finding {
        Finding {
            domains: domains.iter().map(|text| list(text)).collect(),
            agree,
            largest: None,
            at_ns: 0,
        }
    }

    fn words(choice: &Choice) -> String {
        let words = choice.drawbacks.iter();
        words
            .map(|drawback| drawback.consequence.as_str())
            .collect::<Vec<_>>()
            .join("; ")
    }

    #[test]
    fn auto_takes_a_domain_only_where_disagreement_is_proven() {
        use Agreement::{Proven, Refuted, Unproven};
        let home = |cpu| Some(CpuId::new(cpu));
        // (agreement, domains, home, vCPUs, CPUs, what is told)
        let rows: [(_, &[&str], _, _, Option<&str>, &[&str]); 9] = [
            (Proven, &["0-3"], None, 2, None, &[]),
            (Proven, &["0-3"], None, 9, None, &[]),
            (Unproven, &["0", "1"], None, 2, None, &[]),
            (Refuted, &["0", "1-2"], None, 2, Some("1-2"), &[]),
            (Refuted, &["0,2", "1,3"], None, 2, Some("0,2"), &[]),
            (Refuted, &["0,2", "1,3"], home(3), 2, Some("1,3"), &[]),
            (
                Refuted,
                &["0", "1"],
                None,
                2,
                Some("0"),
                &["2 vCPUs share the 1 CPU(s) 0"],
            ),
            (
                Refuted,
                &["0", "1-2"],
                home(0),
                1,
                Some("0"),
                &["those of 1-2 agree"],
            ),
            (
                Refuted,
                &["0", "1-2"],
                home(0),
                2,
                Some("0"),
                &["share the 1 CPU(s) 0", "those of 1-2 agree"],
            ),
        ];
        for (agree, domains, home, vcpus, cpus, told) in rows {
            let choice = by_itself(&finding(agree, domains), home, vcpus);
            assert_eq!(choice.cpus, cpus.map(list), "{domains:?} {home:?}");
            assert_eq!(choice.drawbacks.len(), told.len(), "{}", words(&choice));
            for part in told {
                assert!(words(&choice).contains(part), "{}", words(&choice));
            }
        }
    }

    #[test]
    fn list_is_obeyed_and_its_drawbacks_are_told() {
        let two = finding(Agreement::Refuted, &["0-1", "2-3"]);
        let unproven = finding(Agreement::Unproven, &["0", "1"]);
        // (list, finding, vCPUs, what is told)
        let rows: [(_, _, _, &[&str]); 6] = [
            ("0-1", Some(&two), 2, &[]),
            ("1-2", Some(&two), 2, &["spans 2 TSC domains", "0-1 | 2-3"]),
            ("1-2", None, 2, &[]),
            ("0-1", Some(&unproven), 2, &[]),
            ("3", Some(&two), 2, &["2 vCPUs share the 1 CPU(s) 3"]),
            ("0,3", Some(&two), 4, &["4 vCPUs share", "spans 2"]),
        ];
        for (text, finding, vcpus, told) in rows {
            let choice = of_list(list(text), finding, vcpus);
            assert_eq!(choice.cpus, Some(list(text)));
            for part in told {
                assert!(words(&choice).contains(part), "{}", words(&choice));
            }
            assert_eq!(choice.drawbacks.is_empty(), told.is_empty(), "{text}");
        }
    }

    #[test]
    fn list_that_cannot_be_had_is_refused_by_name() {
        assert!(check(list("1,3"), list("0-3")).is_ok());
        let error = check(list("2-5"), list("0-3")).expect_err("4 and 5");
        let message = error.to_string();
        assert!(
            message.starts_with("tsc_domain 2-5: CPU 4-5 cannot be had"),
            "{message}"
        );
        assert!(message.contains("may run on 0-3"), "{message}");
    }
}
