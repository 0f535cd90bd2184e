//! What a script may require of a host.

use std::fmt;

use tsc::assess::{Effect, Spread};

use super::report::Report;

/// One thing that `--require` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requirement {
    Kvm,
    InvariantTsc,
    StableClocksource,
    SingleDomain,
    Offset,
    Scaling,
    TscDeadline,
    ClockRealtime,
}

impl Requirement {
    pub(super) const ALL: [Self; 8] = [
        Self::Kvm,
        Self::InvariantTsc,
        Self::StableClocksource,
        Self::SingleDomain,
        Self::Offset,
        Self::Scaling,
        Self::TscDeadline,
        Self::ClockRealtime,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::InvariantTsc => "invariant-tsc",
            Self::StableClocksource => "stable-clocksource",
            Self::SingleDomain => "single-domain",
            Self::Offset => "offset",
            Self::Scaling => "scaling",
            Self::TscDeadline => "tsc-deadline",
            Self::ClockRealtime => "clock-realtime",
        }
    }

    /// What it means, in a line.
    pub(super) const fn meaning(self) -> &'static str {
        match self {
            Self::Kvm => "/dev/kvm can be used, and has what guests cannot run without",
            Self::InvariantTsc => "the processor says that its TSC is invariant",
            Self::StableClocksource => "the kernel keeps time by the TSC",
            Self::SingleDomain => "the allowed CPUs' TSCs are proven to agree",
            Self::Offset => "a TSC offset was measured to take effect",
            Self::Scaling => "TSC rates beyond KVM's tolerance were measured to take effect",
            Self::TscDeadline => "KVM says that guests' timers can be armed in TSC ticks",
            Self::ClockRealtime => "KVM says that kvmclock can be set together with the real time",
        }
    }

    /// Whether `report` meets it.
    pub(super) fn is_met(self, report: &Report) -> bool {
        let has = |name| {
            report
                .kvm
                .as_ref()
                .is_ok_and(|kvm| kvm.capabilities.iter().any(|c| c.name == name && c.present))
        };
        match self {
            Self::Kvm => report.kvm.is_ok(),
            Self::InvariantTsc => report.platform.invariant_tsc,
            Self::StableClocksource => report.platform.has_tsc_clocksource(),
            Self::SingleDomain => report.facts.spread == Spread::One,
            Self::Offset => report.facts.offset == Effect::InForce,
            Self::Scaling => report.facts.scaling == Effect::InForce,
            Self::TscDeadline => has("KVM_CAP_TSC_DEADLINE_TIMER"),
            Self::ClockRealtime => has("KVM_CLOCK_REALTIME"),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Parses one name of the list.
pub(super) fn parse(name: &str) -> Result<Requirement, String> {
    Requirement::ALL
        .into_iter()
        .find(|requirement| requirement.name() == name)
        .ok_or_else(|| {
            let names = Requirement::ALL.map(Requirement::name).join(", ");
            format!("choose from {names}")
        })
}

/// The names and their meanings, for `--help`.
pub(super) fn help() -> String {
    let lines = Requirement::ALL
        .map(|requirement| format!("  {:<19} {}\n", requirement.name(), requirement.meaning()));
    format!("What --require can name:\n{}", lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_parsed_and_every_other_refused_with_the_list() {
        for requirement in Requirement::ALL {
            assert_eq!(parse(requirement.name()), Ok(requirement));
        }
        let message = parse("offsets").expect_err("unknown");
        for requirement in Requirement::ALL {
            assert!(message.contains(requirement.name()), "{message}");
        }
    }
}
