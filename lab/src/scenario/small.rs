//! Guests of a few instructions: the multiboot protocol, the ways in which a guest ends, the demo.

use anyhow::{Context, Result, ensure};

use crate::guest::{DEBUG_EXIT, INTERVAL_TIMER, MULTIBOOT, POWER_OFF, RESET, Small, TRIPLE_FAULT};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::scenario::{LAUNCHER, Outcome, Place, Scenario};

const SVM: Host = Host::Svm {
    tsc: Tsc::Unstable,
    paging: Paging::Nested,
};

/// The modules' contents; the second is longer than a page.
const FIRST_MODULE: &str = "first module";
const SECOND_MODULE_LETTERS: usize = 5000;

/// The memory of the small guests in MiB.
const MEMORY_MIB: u64 = 128;

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for place in [Place::Native, Place::Emulated(SVM)] {
        let demo = Scenario::new(place, "demo", format!("exec ./{LAUNCHER} demo\n"));
        scenarios.push(demo.check(check_demo));
        scenarios.push(multiboot(place, "multiboot", "--debug-exit", 33));
        scenarios.push(multiboot(place, "multiboot-reset", "", 0));
        scenarios.push(small(place, "reset", RESET, "reset guest", "", 0));
        scenarios.push(small(
            place,
            "power-off",
            POWER_OFF,
            "power-off guest",
            "",
            0,
        ));
        scenarios.push(small(
            place,
            "triple-fault",
            TRIPLE_FAULT,
            "triple fault guest",
            "",
            0,
        ));
        scenarios.push(small(
            place,
            "debug-exit",
            DEBUG_EXIT,
            "debug exit guest",
            "--debug-exit",
            7,
        ));
        let last = "counter 0 raises its interrupt";
        scenarios.push(
            small(place, "interval-timer", INTERVAL_TIMER, last, "", 0).check(|outcome| {
                outcome.expect_line("counter 2 is in its mode")?;
                outcome.expect_line("counter 2 counts down")?;
                outcome.expect_line("refresh bit toggles")?;
                outcome.expect_line(last)?;
                outcome.expect_status(0)
            }),
        );
    }
    scenarios
}

fn small(
    place: Place,
    name: &str,
    guest: Small,
    line: &'static str,
    option: &str,
    status: u8,
) -> Scenario {
    let kernel = format!("guest-{name}");
    let script = format!(
        "exec ./{LAUNCHER} run --kernel {kernel} --cpus 1 --memory {MEMORY_MIB} {option}\n"
    );
    Scenario::new(place, name, script)
        .files(move |_| {
            Ok(Files::from([(
                kernel.clone(),
                Source::Bytes(guest.build()?),
            )]))
        })
        .check(move |outcome| {
            outcome.expect_line(line)?;
            outcome.expect_status(status)
        })
}

/// The demo's own verdict is its status; a demo that measured nothing must not pass. Without TSC scaling a
/// guest's TSC runs as its host's does, so the proven bounds of their ratio must hold 1 : 1.
fn check_demo(outcome: &Outcome) -> Result<()> {
    let text = outcome.stdout_text();
    let number = |label: &str| {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(label));
        let word = line.and_then(|rest| rest.split_whitespace().next());
        word.and_then(|word| word.parse::<u64>().ok())
            .with_context(|| format!("no {label:?}"))
    };
    ensure!(
        number("readings ")? >= 1000,
        "too few readings of the clock"
    );
    let steps = number("backwards steps ")?;
    ensure!(steps == 0, "{steps} backwards steps");
    ensure!(number("smallest step ")? > 0, "the clock stood still");
    let (at_least, at_most) = deviation(&text).context("no bounds of \"guest : host TSC\"")?;
    ensure!(
        at_least <= 0 && at_most >= 0,
        "the guest's TSC runs {at_least} to {at_most} ppb off the host's"
    );
    outcome.expect_status(0)
}

/// The bounds in the demo's line "guest : host TSC  A to B ppb from 1 : 1".
fn deviation(text: &str) -> Option<(i64, i64)> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("guest : host TSC "))?;
    let (at_least, at_most) = line
        .trim()
        .strip_suffix(" ppb from 1 : 1")?
        .split_once(" to ")?;
    Some((at_least.parse().ok()?, at_most.parse().ok()?))
}

fn multiboot(place: Place, name: &str, option: &str, status: u8) -> Scenario {
    let script = format!(
        "exec ./{LAUNCHER} run --kernel multiboot --initrd module-1 --initrd module-2,second=2 \
         --cmdline 'one two=2' --cpus 1 --memory {MEMORY_MIB} {option}\n"
    );
    Scenario::new(place, name, script)
        .files(|_| {
            let second = "m".repeat(SECOND_MODULE_LETTERS);
            Ok(Files::from([
                ("multiboot".to_owned(), Source::Bytes(MULTIBOOT.build()?)),
                ("module-1".to_owned(), Source::Bytes(FIRST_MODULE.into())),
                ("module-2".to_owned(), Source::Bytes(second.into())),
            ]))
        })
        .check(move |outcome| {
            check_multiboot(outcome)?;
            outcome.expect_status(status)
        })
}

/// Multiboot Specification 0.6.96, 3.2 (machine state) and 3.3 (information).
fn check_multiboot(outcome: &Outcome) -> Result<()> {
    for line in [
        "magic: 2badb002",
        "interrupts: 00000000",
        "protected mode: 00000001",
        "paging: 00000000",
        "modules: 00000002",
        "module string: module-1",
        "module string: second=2",
        "lower KiB: 0000027f",
        "end",
    ] {
        outcome.expect_line(line)?;
    }
    outcome.expect_line(&format!("module contents: {FIRST_MODULE}"))?;
    outcome.expect_line(&format!(
        "module contents: {}",
        "m".repeat(SECOND_MODULE_LETTERS)
    ))?;
    let text = outcome.stdout_text();
    let aligned = text
        .lines()
        .filter(|line| *line == "module misaligned by: 00000000")
        .count();
    ensure!(aligned == 2, "{aligned} of 2 modules begin at a page");
    let command_line = text
        .lines()
        .find_map(|line| line.strip_prefix("command line: "));
    let command_line = command_line.context("no command line")?;
    ensure!(
        command_line.ends_with("one two=2"),
        "the command line is {command_line:?}"
    );
    check_map(&text)
}

/// The memory map: available RAM from 0 and from 1 MiB to the end, nothing of it twice.
fn check_map(text: &str) -> Result<()> {
    let mut ranges = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("range: ")) {
        let fields: Option<Vec<u64>> = line
            .split(' ')
            .map(|field| u64::from_str_radix(field, 16).ok())
            .collect();
        let [base, length, kind] = fields.unwrap_or_default()[..] else {
            anyhow::bail!("the range {line:?} has no base, length and type");
        };
        ranges.push((base, length, kind));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        ensure!(
            pair[0].0 + pair[0].1 <= pair[1].0,
            "ranges overlap: {pair:x?}"
        );
    }
    // 1 is RAM that may be used (3.3, mmap).
    let ram: Vec<_> = ranges.iter().filter(|range| range.2 == 1).collect();
    ensure!(
        ram.first().is_some_and(|range| range.0 == 0),
        "no RAM at 0: {ranges:x?}"
    );
    let (start, end) = (1 << 20, MEMORY_MIB << 20);
    ensure!(
        ram.iter()
            .any(|range| range.0 == start && range.0 + range.1 == end),
        "no RAM from {start:#x} to {end:#x}: {ranges:x?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "range: 0000000000000000 000000000009fc00 00000001\n\
                       range: 000000000009fc00 0000000000000400 00000002\n\
                       range: 0000000000100000 0000000007f00000 00000001\n";

    #[test]
    fn check_demo_each_fault_fails() {
        let text = "Demo\n  readings          5000\n  backwards steps   0\n  smallest step     5265 ticks\n\
                    \x20 guest : host TSC  -43 to 42 ppb from 1 : 1\n";
        let judged = |text: &str, status| {
            check_demo(&Outcome {
                status,
                stdout: text.into(),
                stderr: Vec::new(),
            })
        };
        judged(text, Some(0)).unwrap();
        assert!(judged(text, Some(1)).is_err());
        for (good, bad) in [
            ("5000", "50"),
            ("steps   0", "steps   1"),
            ("5265", "0"),
            ("backwards", "sideways"),
            ("-43 to 42", "1 to 42"),
            ("-43 to 42", "-43 to -1"),
            ("guest : host", "guest"),
        ] {
            assert!(judged(&text.replace(good, bad), Some(0)).is_err(), "{bad}");
        }
    }

    #[test]
    fn check_map_good_map_passes_and_each_fault_fails() {
        check_map(MAP).unwrap();
        for (good, bad) in [
            ("000000000009fc00 00000001", "000000000009fc01 00000001"), // overlaps the next range
            ("7f00000", "7f01000"),                                     // ends beyond the memory
            (
                "00000001\nrange: 000000000009fc00",
                "00000002\nrange: 000000000009fc00",
            ),
            ("range: 0000000000100000 ", "range: 0000000000100000"), // two fields
        ] {
            assert!(check_map(&MAP.replace(good, bad)).is_err(), "{bad}");
        }
        assert!(check_map("").is_err());
    }
}
