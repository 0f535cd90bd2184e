//! What came of a run, as numbers and as a table.

use core::fmt::{self, Write};

use super::guest::Stage;
use crate::policy::{Guarantees, Svm2010, Targeted, Unified2010, UnifiedCatchup2010, Vmx2010};
use crate::stability::Mark;
use crate::units::{Nanos, NanosDelta, Ppm, TscDelta};

/// The policies to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// [`crate::policy::Svm2010`].
    Svm2010,
    /// [`crate::policy::Vmx2010`].
    Vmx2010,
    /// [`crate::policy::Unified2010`].
    Unified2010,
    /// [`crate::policy::UnifiedCatchup2010`].
    UnifiedCatchup2010,
    /// [`crate::policy::Targeted`], which gives time back at once.
    Targeted,
    /// [`crate::policy::Targeted`], which gives time back by running a tenth faster at most
    /// ([`SLEW_BOUND`]).
    TargetedSlew,
}

/// By how much a guest's clock runs faster under [`PolicyKind::TargetedSlew`], at most. Much for a
/// guest that disciplines its clock (Linux lets its own be slewed by 500 ppm, MAXFREQ in
/// include/linux/timex.h), and enough to make up, within a scenario, for a CPU that ran at half its
/// rate.
pub const SLEW_BOUND: Ppm = match Ppm::new(100_000) {
    Some(bound) => bound,
    None => panic!("a tenth is less than the whole"),
};

impl PolicyKind {
    /// The five policies, oldest first.
    pub const ALL: [Self; 5] = [
        Self::Svm2010,
        Self::Vmx2010,
        Self::Unified2010,
        Self::UnifiedCatchup2010,
        Self::Targeted,
    ];

    /// The five, and the variant that is run when somebody asks for it.
    pub const SELECTABLE: [Self; 6] = [
        Self::Svm2010,
        Self::Vmx2010,
        Self::Unified2010,
        Self::UnifiedCatchup2010,
        Self::Targeted,
        Self::TargetedSlew,
    ];

    /// Whether it is [`crate::policy::Targeted`], however that gives time back.
    #[must_use]
    pub const fn is_targeted(self) -> bool {
        matches!(self, Self::Targeted | Self::TargetedSlew)
    }

    /// The name, as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Svm2010 => "svm-2010",
            Self::Vmx2010 => "vmx-2010",
            Self::Unified2010 => "unified-2010",
            Self::UnifiedCatchup2010 => "unified-catchup-2010",
            Self::Targeted => "targeted",
            Self::TargetedSlew => "targeted-slew",
        }
    }

    /// What the policy promises.
    #[must_use]
    pub const fn guarantees(self) -> Guarantees {
        match self {
            Self::Svm2010 => Svm2010::GUARANTEES,
            Self::Vmx2010 => Vmx2010::GUARANTEES,
            Self::Unified2010 => Unified2010::GUARANTEES,
            Self::UnifiedCatchup2010 => UnifiedCatchup2010::GUARANTEES,
            Self::Targeted | Self::TargetedSlew => Targeted::GUARANTEES,
        }
    }

    /// The policy of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::SELECTABLE
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Whether the guest booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// It reached its prompt.
    Booted {
        /// At this true time.
        at: Nanos,
    },
    /// It gave up on something.
    Failed {
        /// On this.
        at: Stage,
    },
    /// It was given up.
    Hung {
        /// While its first processor was here.
        at: Stage,
    },
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booted { at } => write!(f, "in {}", Human(at.get().into())),
            Self::Failed { at } => write!(f, "no: gave up at {at:?}"),
            Self::Hung { at } => write!(f, "no: hangs at {at:?}"),
        }
    }
}

/// Backwards steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// How many.
    pub count: u64,
    /// The largest, in nanoseconds of the guest's rate, rounded up.
    pub largest: Nanos,
}

impl Steps {
    pub(super) fn note(&mut self, by: TscDelta, khz: u32) {
        let nanos = u128::from(by.magnitude().get()) * 1_000_000;
        let nanos = nanos.div_ceil(u128::from(khz));
        self.count += 1;
        self.largest = self
            .largest
            .max(Nanos::new(u64::try_from(nanos).unwrap_or(u64::MAX)));
    }
}

/// A point of the plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Which vCPU read its TSC.
    pub vcpu: usize,
    /// The true time, in nanoseconds.
    pub true_ns: u64,
    /// What it read, as a time, less the true time.
    pub error: NanosDelta,
}

/// What came of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The policy.
    pub policy: PolicyKind,
    /// The seed.
    pub seed: u64,
    /// Whether the guest booted.
    pub boot: Boot,
    /// Backwards steps on one vCPU.
    pub backwards: Steps,
    /// Backwards steps from one vCPU to another.
    pub across: Steps,
    /// The largest lag behind true time at any reading.
    pub largest_lag: Nanos,
    /// The largest lead.
    pub largest_lead: Nanos,
    /// The lag that lasted to the end: time that was erased and never given back.
    pub erased: Nanos,
    /// How often an offset was written.
    pub offset_writes: u64,
    /// How often a vCPU moved.
    pub moves: u64,
    /// The mark on the whole host, if any.
    pub host_mark: Option<Mark>,
    /// The marks on pairs and CPUs.
    pub marks: Vec<Mark>,
    /// Guest time against true time.
    pub points: Vec<Point>,
    /// How long it was watched.
    pub watched: Nanos,
}

impl Report {
    /// Whether the guest booted.
    #[must_use]
    pub const fn booted(&self) -> bool {
        matches!(self.boot, Boot::Booted { .. })
    }

    /// All backwards steps that the guest could see.
    #[must_use]
    pub const fn backwards_steps(&self) -> u64 {
        self.backwards.count + self.across.count
    }

    /// Whether the guest's time was right: it booted, never saw a step back, and nothing was lost
    /// beyond `resolution`.
    #[must_use]
    pub fn keeps_time(&self, resolution: Nanos) -> bool {
        self.booted() && self.backwards_steps() == 0 && self.erased <= resolution
    }
}

/// A time for people: three digits and a unit.
pub(super) struct Human(pub(super) u128);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, per) = match self.0 {
            0 => return f.pad("0"),
            1..1_000 => return f.pad(&format!("{} ns", self.0)),
            1_000..1_000_000 => ("us", 1_000),
            1_000_000..1_000_000_000 => ("ms", 1_000_000),
            _ => ("s", 1_000_000_000),
        };
        // Three digits: tenths of a unit below 100, hundredths below 10.
        let hundredths = self.0 * 100 / per;
        let text = match hundredths {
            0..1_000 => format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100),
            1_000..10_000 => format!("{}.{} {unit}", hundredths / 100, hundredths / 10 % 10),
            _ => format!("{} {unit}", hundredths / 100),
        };
        f.pad(&text)
    }
}

/// The reports as a table for a terminal.
#[must_use]
pub fn table(reports: &[Report]) -> String {
    let mut out = String::new();
    let header = [
        "policy", "boots", "back", "largest", "across", "largest", "lag", "lead",
    ];
    let rows = reports.iter().map(|report| {
        let human = |nanos: Nanos| Human(nanos.get().into()).to_string();
        [
            report.policy.name().to_owned(),
            report.boot.to_string(),
            report.backwards.count.to_string(),
            human(report.backwards.largest),
            report.across.count.to_string(),
            human(report.across.largest),
            human(report.largest_lag),
            human(report.largest_lead),
            human(report.erased),
            report.offset_writes.to_string(),
            match (report.host_mark, report.marks.len()) {
                (Some(_), _) => "host".to_owned(),
                (None, 0) => "none".to_owned(),
                (None, 1) => "1 pair or CPU".to_owned(),
                (None, marks) => format!("{marks} pairs or CPUs"),
            },
        ]
    });
    let header = header
        .iter()
        .copied()
        .chain(["erased", "writes", "condemned"]);
    let mut lines = vec![header.map(str::to_owned).collect::<Vec<_>>()];
    lines.extend(rows.map(Vec::from));
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    for line in &lines {
        let mut text = String::new();
        for (column, cell) in line.iter().enumerate() {
            // Words to the left, numbers to the right; writing to a string cannot fail.
            let width = widths[column];
            let _ = match column {
                0 | 1 | 10 => write!(text, "{cell:<width$}  "),
                _ => write!(text, "{cell:>width$}  "),
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people_have_three_digits() {
        let table = [
            (0, "0"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (12_345, "12.3 us"),
            (999_999, "999 us"),
            (1_230_000_000, "1.23 s"),
            (28_700_000_000, "28.7 s"),
        ];
        for (nanos, expected) in table {
            assert_eq!(Human(nanos).to_string(), expected);
        }
    }
}
