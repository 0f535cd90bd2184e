//! The witness of a guest's time, `lab/guests/witness.c`: how it is built, and what it says.

use anyhow::{Context, Result, bail, ensure};

use crate::guest::program;
use crate::kernels::Kernel;

const SOURCE: &str = include_str!("../../guests/witness.c");

/// The modules with which a guest asks its host for the time.
pub(crate) const MODULES: &[&str] = &["ptp_kvm"];

/// The program for guests with `kernel`.
pub(crate) fn build(kernel: Kernel) -> Result<Vec<u8>> {
    program::build(SOURCE, kernel)
}

/// Bounds, both of which the value may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Within {
    pub(crate) at_least: i128,
    pub(crate) at_most: i128,
}

impl Within {
    /// What `later` is more than `self`.
    pub(crate) fn change(self, later: Self) -> Self {
        Self {
            at_least: later.at_least - self.at_most,
            at_most: later.at_most - self.at_least,
        }
    }
}

/// The guest's clocks, held against the host's. All times are in nanoseconds of a `CLOCK_REALTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// The guest's time,
    pub(crate) guest: i128,
    /// and what the host's was then, less the guest's.
    pub(crate) ahead: Within,
    /// A moment later the guest's time was that,
    pub(crate) guest_later: i128,
    /// and its TSC between these.
    pub(crate) tsc: Within,
    /// What the page of its VMClock said then.
    pub(crate) page: Option<Page>,
}

/// What a guest's VMClock page said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    /// `VMCLOCK_STATUS_*`.
    pub(crate) status: u64,
    /// The disruption marker.
    pub(crate) marker: u64,
    /// The time at the two readings of the TSC.
    pub(crate) time: Within,
    /// By how much it may be off, as it says: estimated, and at most.
    pub(crate) errors: Option<[i128; 2]>,
}

impl Look {
    /// What the host's time was at the second of the two moments.
    pub(crate) fn host_later(self) -> Within {
        Within {
            at_least: self.guest_later + self.ahead.at_least,
            at_most: self.guest_later + self.ahead.at_most,
        }
    }
}

/// What the witness has seen since it began; the gaps and `latest` are those since the sum before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum {
    /// `CLOCK_MONOTONIC`.
    pub(crate) at_ns: u64,
    pub(crate) readings: u64,
    /// Readings of a processor's TSC that were that of the one before, and less.
    pub(crate) still: u64,
    pub(crate) back: u64,
    /// Readings of a processor's TSC that were less than what another had read before, and the largest difference.
    pub(crate) tsc_steps: u64,
    pub(crate) tsc_step: u64,
    /// The same of `CLOCK_MONOTONIC`, all processors.
    pub(crate) monotonic_steps: u64,
    pub(crate) monotonic_step: u64,
    /// The largest difference between two readings of a processor.
    pub(crate) tsc_gap: u64,
    pub(crate) monotonic_gap_ns: u64,
    /// How often a sleeper woke, how often before its time, and how late at most.
    pub(crate) fired: u64,
    pub(crate) early: u64,
    pub(crate) latest_ns: u64,
}

impl Sum {
    /// From the numbers of a line.
    ///
    /// # Errors
    /// They are not a sum's.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        sum(&hexadecimal(text).with_context(|| format!("no sum: {text:?}"))?)
    }

    /// Fails if a processor's time stood still, or any went backwards.
    pub(crate) fn ensure_time_went_on(&self) -> Result<()> {
        let steps = (self.still, self.back, self.tsc_steps, self.monotonic_steps);
        ensure!(
            steps == (0, 0, 0, 0),
            "the guest saw its time stand still or go backwards: {self:?}"
        );
        Ok(())
    }
}

/// All that a witness said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Testimony {
    pub(crate) processors: u64,
    pub(crate) looks: Vec<Look>,
    /// Looks at a host that could not be asked.
    pub(crate) blind: usize,
    pub(crate) sums: Vec<Sum>,
    /// Sleepers that did not wake.
    pub(crate) lost: u64,
}

impl Testimony {
    /// From a guest's console.
    ///
    /// # Errors
    /// When the witness did not begin, did not come to its end, failed, or a line is not one of its.
    pub(crate) fn parse(serial: &str) -> Result<Self> {
        let mut found = Self::default();
        let (mut began, mut ended) = (false, false);
        for line in serial.lines() {
            let Some(said) = line.trim().strip_prefix("w ") else {
                continue;
            };
            let (word, numbers) = said.split_once(' ').unwrap_or((said, ""));
            ensure!(word != "failed", "the witness has {said}");
            ensure!(!ended, "the witness said {said:?} after its end");
            let numbers = hexadecimal(numbers);
            let numbers = numbers.with_context(|| format!("the witness said {said:?}"))?;
            match (word, numbers.as_slice()) {
                ("begin", &[processors]) => (began, found.processors) = (true, processors),
                ("none", [_]) => found.blind += 1,
                ("cross", &[host, guest, before, later, after]) => {
                    let ahead = i128::from(host) - i128::from(guest);
                    let ahead = Within {
                        at_least: ahead,
                        at_most: ahead,
                    };
                    found.looks.push(look(guest, ahead, [before, later, after]));
                }
                ("between", &[guest, host, guest_after, before, later, after]) => {
                    let ahead = Within {
                        at_least: i128::from(host) - i128::from(guest_after),
                        at_most: i128::from(host) - i128::from(guest),
                    };
                    found.looks.push(look(guest, ahead, [before, later, after]));
                }
                ("page", numbers) => {
                    let last = found.looks.last_mut().context("a page before a look")?;
                    last.page = Some(page(numbers)?);
                }
                ("sum", numbers) => found.sums.push(sum(numbers)?),
                ("lost", &[lost]) => found.lost = lost,
                ("end", []) => ended = true,
                _ => bail!("the witness said {said:?}"),
            }
        }
        ensure!(began, "the witness did not begin");
        ensure!(ended, "the witness did not come to its end");
        Ok(found)
    }

    /// The last of the sums.
    pub(crate) fn total(&self) -> Result<Sum> {
        self.sums.last().copied().context("the witness has no sum")
    }
}

fn hexadecimal(text: &str) -> Result<Vec<u64>, std::num::ParseIntError> {
    let numbers = text.split_whitespace();
    numbers
        .map(|number| u64::from_str_radix(number, 16))
        .collect()
}

fn look(guest: u64, ahead: Within, [before, later, after]: [u64; 3]) -> Look {
    Look {
        guest: i128::from(guest),
        ahead,
        guest_later: i128::from(later),
        tsc: Within {
            at_least: i128::from(before),
            at_most: i128::from(after),
        },
        page: None,
    }
}

fn page(numbers: &[u64]) -> Result<Page> {
    let &[status, marker, before, after, estimate, largest] = numbers else {
        bail!("a page of {} numbers", numbers.len());
    };
    let told = [estimate, largest].iter().all(|error| *error != u64::MAX);
    Ok(Page {
        status,
        marker,
        time: Within {
            at_least: i128::from(before),
            at_most: i128::from(after),
        },
        errors: told.then(|| [estimate, largest].map(i128::from)),
    })
}

fn sum(numbers: &[u64]) -> Result<Sum> {
    let &[
        at_ns,
        readings,
        still,
        back,
        tsc_steps,
        tsc_step,
        monotonic_steps,
        monotonic_step,
        tsc_gap,
        monotonic_gap_ns,
        fired,
        early,
        latest_ns,
    ] = numbers
    else {
        bail!("a sum of {} numbers", numbers.len());
    };
    Ok(Sum {
        at_ns,
        readings,
        still,
        back,
        tsc_steps,
        tsc_step,
        monotonic_steps,
        monotonic_step,
        tsc_gap,
        monotonic_gap_ns,
        fired,
        early,
        latest_ns,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use object::Object;

    use super::*;

    #[test]
    fn witness_is_built_for_both_kinds_of_guests() {
        for (kernel, is_64) in [(Kernel::Amd64, true), (Kernel::I386, false)] {
            let bytes = build(kernel).unwrap();
            let file = object::File::parse(bytes.as_slice()).unwrap();
            assert_eq!(file.is_64(), is_64);
        }
    }

    #[test]
    fn witness_on_this_machine_says_what_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        for kernel in [Kernel::Amd64, Kernel::I386] {
            let program = folder.path().join(kernel.name());
            fs::write(&program, build(kernel).unwrap()).unwrap();
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&program, executable).unwrap();
            let output = match Command::new(&program).arg("1").output() {
                Ok(output) => output,
                // A kernel without 32-bit programs.
                Err(error) if kernel == Kernel::I386 => {
                    println!("skipped here: a 32-bit program cannot be run here: {error}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let said = String::from_utf8(output.stdout).unwrap();
            let testimony = Testimony::parse(&said).unwrap();
            let total = testimony.total().unwrap();
            assert!(testimony.processors > 0 && total.readings > 0 && total.fired > 0);
            assert_eq!(
                (total.back, total.monotonic_steps, total.early),
                (0, 0, 0),
                "{said}"
            );
            assert!(!Command::new(&program).arg("x").status().unwrap().success());

            // Asked to, it ends after its first look.
            let keys = folder.path().join("keys");
            fs::write(&keys, "q\n").unwrap();
            let keys = fs::File::open(keys).unwrap();
            let output = Command::new(&program).arg("30").stdin(keys).output();
            let said = String::from_utf8(output.unwrap().stdout).unwrap();
            assert_eq!(Testimony::parse(&said).unwrap().sums.len(), 1, "{said}");
        }
    }

    #[test]
    fn testimony_has_what_each_line_says() {
        let said = "[ 0.1] boot\r\nw begin 2\r\nw none 5f\r\nw cross 3e8 64 a 65 c\r\n\
                    w page 2 7 3e9 3eb 4 5\r\nw between 64 3e8 6e a 6f c\r\nw sum 1 2 3 4 5 6 7 8 9 a b c d\r\nw lost 1\r\nw end\r\n";
        let testimony = Testimony::parse(said).unwrap();
        assert_eq!(
            (testimony.processors, testimony.blind, testimony.lost),
            (2, 1, 1)
        );
        let page = Page {
            status: 2,
            marker: 7,
            time: Within {
                at_least: 1001,
                at_most: 1003,
            },
            errors: Some([4, 5]),
        };
        assert_eq!(testimony.looks[0].page, Some(page));
        assert_eq!(testimony.looks[1].page, None);
        // 1000 - 100 at once; 1000 - 110 to 1000 - 100 between.
        let bounds = |look: &Look| (look.ahead.at_least, look.ahead.at_most);
        let ahead: Vec<_> = testimony.looks.iter().map(bounds).collect();
        assert_eq!(ahead, [(900, 900), (890, 900)]);
        let later = testimony.looks[1].host_later();
        assert_eq!((later.at_least, later.at_most), (111 + 890, 111 + 900));
        let total = testimony.total().unwrap();
        assert_eq!((total.at_ns, total.tsc_step, total.latest_ns), (1, 6, 13));
    }

    #[test]
    fn testimony_that_is_cut_off_or_damaged_is_an_error() {
        let good = "w begin 2\nw sum 1 2 3 4 5 6 7 8 9 a b c d\nw end\n";
        Testimony::parse(good).unwrap();
        let rows = [
            good.replace("w end\n", ""),
            good.replace("w begin 2\n", ""),
            good.replace("1 2 3", "1 3"),
            good.replace("1 2 3", "1 2 x"),
            good.replace("w end", "w failed to fork c\nw end"),
            good.replace("w end", "w end\nw lost 0"),
            good.replace("w end", "w something\nw end"),
            good.replace("w end", "w page 1 2 3 4 5 6\nw end"),
            good.replace("w end", "w cross 1 2 3 4 5\nw page 1 2 3 4 5\nw end"),
        ];
        for bad in rows {
            assert!(Testimony::parse(&bad).is_err(), "{bad}");
        }
    }
}
