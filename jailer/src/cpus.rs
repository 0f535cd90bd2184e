//! Sets of CPUs, as cpusets have them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// No kernel for x86-64 has more CPUs: `NR_CPUS_RANGE_END` of `arch/x86/Kconfig`.
const MAX_CPUS: u32 = 8192;

/// CPUs by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cpus(BTreeSet<u32>);

/// A text that is no list of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of CPUs such as 0-3,8")]
pub(crate) struct NoCpus;

impl Cpus {
    /// Those of both.
    pub(crate) fn common(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// Whether each is in `other`.
    pub(crate) fn are_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Cpus {
    type Err = NoCpus;

    /// Reads the list format of `cpuset(7)`; at least one CPU.
    fn from_str(text: &str) -> Result<Self, NoCpus> {
        let number = |text: &str| {
            // `parse` takes a sign, too.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse::<u32>().ok().filter(|_| digits);
            number.filter(|number| *number < MAX_CPUS).ok_or(NoCpus)
        };
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(NoCpus);
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&last.saturating_add(1)) {
                last = next;
            }
            match last == first {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_those_of_the_kernel() {
        for (text, again) in [
            ("0", "0"),
            ("0-3,8", "0-3,8"),
            ("8,1-2,0", "0-2,8"),
            ("3,3", "3"),
            ("8191", "8191"),
        ] {
            let cpus: Cpus = text.parse().expect(text);
            assert_eq!(cpus.to_string(), again, "{text}");
        }
        for text in [
            "",
            ",",
            "0,",
            "-1",
            "1-",
            "2-1",
            "+1",
            "0 1",
            "0-3\n",
            "8192",
            "0-4294967295",
            "4294967296",
            "0-6:2/3",
        ] {
            assert_eq!(text.parse::<Cpus>(), Err(NoCpus), "{text:?}");
        }
    }
}
