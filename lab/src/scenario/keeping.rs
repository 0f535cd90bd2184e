//! What a running guest's clocks do, told by a witness in the guest that reads them all the time on all of its
//! processors, and held against the host's clock from within (`lab/guests/witness.c`).
//!
//! `moved-amd64`, `moved-i386`: threads that are moved all the time where KVM compensates.
//!
//! `pause`, `pause-by-tsc`, `pause-by-kvmclock`: stops of ten seconds, in this order: `freeze`, `advance`, and, but
//! for the last of these scenarios, SIGSTOP; `svm-tsc/pause` has its launcher's cgroup frozen after them. The same
//! looks hold the guest's VMClock page against the host's clock. On the svm host with a TSC that is trusted, and on
//! `vmx`, where a guest that keeps time by its TSC was found off what the report says of the freeze by at most 7.7
//! us, and off the host's clock by as much after the others: the width of the readings.

mod moved;
mod page;
mod stops;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::guest::linux::Report;
use crate::guest::program;
use crate::guest::witness::{self, Testimony, Within};
use crate::host::image::{Files, Source};
use crate::host::{Host, Paging, Tsc};
use crate::kernels::Kernel;
use crate::scenario::{Outcome, Place, Scenario, file};
use crate::workshop::Workshop;
use stops::Terms;

const GUEST: &str = include_str!("keeping/guest.sh");
const PAUSE: &str = include_str!("keeping/pause.sh");
const MOVED: &str = include_str!("keeping/moved.sh");

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let svm = |tsc| {
        let paging = Paging::Nested;
        Place::Emulated(Host::Svm { tsc, paging })
    };
    let pause = |name: &str, options: &str, more: &str, terms: Terms| {
        let script = script(&format!("OPTIONS='{options}' SUMS=5 {more}\n{PAUSE}"));
        Scenario::new(svm(Tsc::Stable), name, script)
            .files(|workshop| with_witness(workshop, Kernel::Amd64))
            .check(move |outcome| stops::check(&terms, outcome))
            .seconds(75, 200)
    };
    // Where each second costs, most of all one in which a guest switches its page tables at each system call.
    let pause_at_cost = |name: &str, options: &str, more: &str, terms: Terms, cost| {
        let script = script(&format!(
            "OPTIONS='quiet mitigations=off {options}' SUMS=2 CGROUP= {more}\n{PAUSE}"
        ));
        Scenario::new(Place::Emulated(Host::Vmx), name, script)
            .files(|workshop| with_witness(workshop, Kernel::Amd64))
            .check(move |outcome| stops::check(&terms, outcome))
            .seconds(cost, 150)
    };
    let moved = |name: &str, kernel: Kernel| {
        let script = script(&format!("arch={}\n{MOVED}", kernel.name()));
        Scenario::new(svm(Tsc::Unstable), name, script)
            .files(move |workshop| with_witness_beside_others(workshop, kernel))
            .check(moved::check)
            .seconds(60, 120)
    };
    vec![
        moved("moved-amd64", Kernel::Amd64),
        moved("moved-i386", Kernel::I386),
        pause(
            "pause",
            "",
            "PLANNED= CGROUP=/tmp/pause",
            Terms::close("kvm-clock").with_a_frozen_cgroup(),
        ),
        pause(
            "pause-by-tsc",
            "tsc=reliable clocksource=tsc",
            "PLANNED= CGROUP=",
            Terms::close("tsc").with_slow_readings(),
        ),
        pause_at_cost("pause", "", "PLANNED=", Terms::close("tsc"), 570),
        pause_at_cost(
            "pause-by-kvmclock",
            "clocksource=kvm-clock",
            "PLANNED=1",
            Terms::close("kvm-clock").without_unplanned(),
            450,
        ),
    ]
}

/// A script that starts guests with the witness.
pub(super) fn script(rest: &str) -> String {
    format!("{GUEST}{rest}")
}

pub(super) fn with_witness(workshop: &Workshop, kernel: Kernel) -> Result<Files> {
    let stock = workshop.stock(kernel)?;
    let initramfs = workshop.witness_initramfs(kernel)?;
    Ok(Files::from([
        ("kernel".to_owned(), file(&stock.image)),
        ("initrd".to_owned(), Source::Bytes(initramfs)),
        // The host's own, for its time.
        (
            "witness".to_owned(),
            Source::Bytes(witness::build(Kernel::Amd64)?),
        ),
    ]))
}

/// The same under names that no other scenario of the host has, and what moves threads.
fn with_witness_beside_others(workshop: &Workshop, kernel: Kernel) -> Result<Files> {
    let name = kernel.name();
    let stock = workshop.stock(kernel)?;
    let initramfs = workshop.witness_initramfs(kernel)?;
    let unrest = program::build(program::UNREST, Kernel::Amd64)?;
    Ok(Files::from([
        (format!("kernel-{name}"), file(&stock.image)),
        (format!("initrd-witness-{name}"), Source::Bytes(initramfs)),
        ("unrest".to_owned(), Source::Bytes(unrest)),
        (
            "witness".to_owned(),
            Source::Bytes(witness::build(Kernel::Amd64)?),
        ),
    ]))
}

/// What came out of a guest with the witness.
pub(super) struct Evidence {
    pub(super) report: Report,
    pub(super) testimony: Testimony,
    /// The launcher's last time report.
    pub(super) time: Value,
    stderr: String,
}

impl Evidence {
    pub(super) fn of(outcome: &Outcome) -> Result<Self> {
        let stderr = outcome.stderr_text();
        let time = stderr
            .lines()
            .find_map(|line| line.strip_prefix("report "))
            .with_context(|| match outcome.status {
                Some(status) => format!("no time report: the script ended with status {status}"),
                None => "no time report: the guest did not come to its end in time".to_owned(),
            })?;
        let serial = outcome.stdout_text();
        Ok(Self {
            report: Report::parse(&outcome.stdout)?,
            testimony: Testimony::parse(&serial)?,
            time: serde_json::from_str(time).context("the time report is no JSON")?,
            stderr,
        })
    }

    /// How long a stop of the script was, by its marks: from when it was in force to when its end began at least, and
    /// from before it was begun to after its end at most.
    fn stop(&self, name: &str) -> Result<Within> {
        let mark = |place| self.mark(&format!("{name}-{place}"));
        Ok(Within {
            at_least: mark("ending")? - mark("begun")?,
            at_most: mark("after")? - mark("before")?,
        })
    }

    /// The host's `CLOCK_REALTIME` at the script's mark.
    fn mark(&self, name: &str) -> Result<i128> {
        let mut marks = self.stderr.lines().filter_map(|line| {
            let (found, time) = line.strip_prefix("mark ")?.split_once(' ')?;
            (found == name).then_some(time)
        });
        let time = marks.next().with_context(|| format!("no mark {name}"))?;
        i128::from_str_radix(time, 16).with_context(|| format!("the mark {name} is {time:?}"))
    }
}
