//! Lists of CPUs, written as Linux writes them: `0-3,8` (`Documentation/admin-guide/cputopology.rst`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tsc::CpuId;

const WORDS: usize = 16;

/// A set of CPUs with numbers below [`CpuList::MAX_CPUS`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuList([u64; WORDS]);

impl CpuList {
    /// The numbers are below this, as in the sets of `sched_setaffinity(2)`.
    pub const MAX_CPUS: u32 = 1024;

    /// The longest text that can be needed: every other CPU, with four digits and a comma.
    const MAX_TEXT: usize = 4096;

    fn place(cpu: CpuId) -> Option<(usize, u64)> {
        let word = usize::try_from(cpu.get() / 64).ok()?;
        // OK because the remainder is below 64.
        (word < WORDS).then(|| (word, 1_u64 << (cpu.get() % 64)))
    }

    /// Whether `cpu` is in it.
    #[must_use]
    pub fn contains(&self, cpu: CpuId) -> bool {
        Self::place(cpu).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    /// Adds a CPU; one of a higher number than a list can hold is left out.
    pub fn insert(&mut self, cpu: CpuId) {
        if let Some((word, bit)) = Self::place(cpu) {
            self.0[word] |= bit;
        }
    }

    /// The CPUs in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + '_ {
        (0..Self::MAX_CPUS)
            .map(CpuId::new)
            .filter(|cpu| self.contains(*cpu))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.iter().filter(|cpu| !other.contains(*cpu)).collect()
    }

    /// Whether they have a CPU in common.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    /// The numbers.
    #[must_use]
    pub fn numbers(&self) -> Vec<u32> {
        self.iter().map(CpuId::get).collect()
    }
}

impl FromIterator<CpuId> for CpuList {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> Self {
        let mut list = Self::default();
        for cpu in cpus {
            list.insert(cpu);
        }
        list
    }
}

/// A text that is no list of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no list of CPUs such as 0-3,8, with numbers below {}",
    CpuList::MAX_CPUS
)]
pub struct InvalidCpuList {
    text: String,
}

impl FromStr for CpuList {
    type Err = InvalidCpuList;

    fn from_str(text: &str) -> Result<Self, InvalidCpuList> {
        parse(text).ok_or_else(|| InvalidCpuList {
            // As much of it as is of use in a message.
            text: text.chars().take(64).collect(),
        })
    }
}

fn parse(text: &str) -> Option<CpuList> {
    if text.len() > CpuList::MAX_TEXT {
        return None;
    }
    let number = |text: &str| {
        // `parse` takes a sign, too.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u32>().ok().filter(|_| digits)?;
        (number < CpuList::MAX_CPUS).then_some(number)
    };
    let mut list = CpuList::default();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        for cpu in first..=last {
            list.insert(CpuId::new(cpu));
        }
    }
    Some(list)
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().map(CpuId::get).peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuList({self})")
    }
}

impl TryFrom<String> for CpuList {
    type Error = InvalidCpuList;

    fn try_from(text: String) -> Result<Self, InvalidCpuList> {
        text.parse()
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

/// On which CPUs a guest's vCPU threads are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TscDomain {
    /// Within one TSC domain, where the host has more than one.
    #[default]
    Auto,
    /// On these.
    Cpus(CpuList),
    /// Wherever the kernel likes.
    Off,
}

/// A text that names no TSC domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TSC domain: neither auto nor off, and {0}")]
pub struct InvalidTscDomain(InvalidCpuList);

impl FromStr for TscDomain {
    type Err = InvalidTscDomain;

    fn from_str(text: &str) -> Result<Self, InvalidTscDomain> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            list => list.parse().map(Self::Cpus).map_err(InvalidTscDomain),
        }
    }
}

impl TryFrom<String> for TscDomain {
    type Error = InvalidTscDomain;

    fn try_from(text: String) -> Result<Self, InvalidTscDomain> {
        text.parse()
    }
}

impl fmt::Display for TscDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpus(list) => list.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

impl From<TscDomain> for String {
    fn from(domain: TscDomain) -> Self {
        domain.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_read_and_written_as_linux_does() {
        // (text, numbers, written)
        let rows: [(&str, &[u32], &str); 7] = [
            ("0", &[0], "0"),
            ("0-3,8", &[0, 1, 2, 3, 8], "0-3,8"),
            ("8,0-3", &[0, 1, 2, 3, 8], "0-3,8"),
            ("1,2,3", &[1, 2, 3], "1-3"),
            ("5-5,5,007", &[5, 7], "5,7"),
            ("63-64", &[63, 64], "63-64"),
            ("1023", &[1023], "1023"),
        ];
        for (text, numbers, written) in rows {
            let list: CpuList = text.parse().expect(text);
            assert_eq!(list.numbers(), numbers, "{text}");
            assert_eq!(list.to_string(), written);
            assert_eq!(usize::try_from(list.count()), Ok(numbers.len()));
        }
        assert_eq!(CpuList::default().to_string(), "");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let long = "1,".repeat(2048) + "1";
        let texts = [
            "",
            ",",
            "1,",
            ",1",
            "-1",
            "1-",
            "3-1",
            "+1",
            "1-+2",
            " 1",
            "1\n",
            "1024",
            "0-1024",
            "a",
            "4294967296",
            "1--2",
            "1-2-3",
            "٣",
            &long,
        ];
        for text in texts {
            let error = text.parse::<CpuList>().expect_err(text).to_string();
            assert!(error.contains("0-3,8") && error.len() < 600, "{error}");
        }
    }

    #[test]
    fn lists_are_compared_as_sets() {
        let list = |text: &str| text.parse::<CpuList>().expect(text);
        assert_eq!(list("0-3").without(&list("1,9")), list("0,2-3"));
        assert!(list("0-3").meets(&list("3-4")) && !list("0-3").meets(&list("4-900")));
        assert!(list("0").without(&list("0")).is_empty());
    }

    #[test]
    fn domain_is_read_and_written() {
        for text in ["auto", "off", "0-1,4"] {
            let domain: TscDomain = text.parse().expect(text);
            assert_eq!(domain.to_string(), text);
            let json = serde_json::to_string(&domain).expect("text");
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(
                serde_json::from_str::<TscDomain>(&json).expect(text),
                domain
            );
        }
        assert_eq!(TscDomain::default(), TscDomain::Auto);
        for text in ["", "Auto", "on", "0,x"] {
            assert!(text.parse::<TscDomain>().is_err(), "{text}");
        }
    }
}
