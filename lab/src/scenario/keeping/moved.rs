//! `moved-amd64`, `moved-i386`: a guest's time while its vCPUs' threads are moved all the time, on a host that does not
//! trust its TSC, so that KVM compensates at each move.

use anyhow::{Context, Result, ensure};

use super::Evidence;
use crate::scenario::Outcome;

/// How often the script moves the threads.
const MOVES: u64 = 3_000;
/// How often each of them notices at least. It looks when the guest leaves to it, which is rare.
const NOTICED: u64 = 10;
/// How often the launcher may begin KVM's line anew, since the guest was far ahead of it: more is a fight.
const RESTARTS: u64 = 2;
/// How far the guest's clock may be from the host's after that, and what it may leap by: the script looks ten times a
/// second whether the guest has told more, and two CPUs have to do all of this. In nanoseconds.
const SLACK_NS: i128 = 500_000_000;
const LARGEST_GAP_NS: u64 = 500_000_000;

pub(super) fn check(outcome: &Outcome) -> Result<()> {
    let evidence = Evidence::of(outcome)?;
    let moved = format!("moved: {MOVES}");
    ensure!(
        evidence.stderr.lines().any(|line| line == moved),
        "the threads were not moved {MOVES} times"
    );
    let trouble: Vec<_> = evidence.report.all("trouble").collect();
    ensure!(trouble.is_empty(), "the guest met trouble: {trouble:?}");
    let processors = evidence.testimony.processors;
    ensure!(processors == 2, "the guest has {processors} processors");
    let total = evidence.testimony.total()?;
    ensure!(
        (total.still, total.back, total.monotonic_steps) == (0, 0, 0),
        "the guest saw its time stand still or go backwards: {total:?}"
    );
    ensure!(
        total.early == 0,
        "sleepers woke before their time: {total:?}"
    );
    let told = evidence.stderr.lines();
    let told = told.filter_map(|line| line.strip_prefix("told ")).next();
    let told: usize = told.context("no count of sums")?.parse()?;
    let sums = &evidence.testimony.sums;
    let (first, last) = sums.first().zip(sums.get(told)).context("too few sums")?;
    let gap = sums.iter().skip(1).map(|sum| sum.monotonic_gap_ns).max();
    ensure!(
        gap < Some(LARGEST_GAP_NS),
        "the guest's clock leapt by {gap:?} ns"
    );
    let guest = i128::from(last.at_ns) - i128::from(first.at_ns);
    let host = evidence.mark("last")? - evidence.mark("first")?;
    ensure!(
        (host - guest).abs() < SLACK_NS,
        "while the host's clock went on by {host} ns, the guest's did by {guest}"
    );
    let time = &evidence.time;
    for vcpu in 0..2 {
        let moves = time["vcpus"][vcpu]["moves"].as_u64();
        ensure!(moves >= Some(NOTICED), "vCPU {vcpu} saw {moves:?} moves");
    }
    let compensations = time["events"]["kernel_compensations"].as_u64();
    ensure!(
        compensations > Some(0),
        "KVM's compensation was not noticed: {}",
        time["events"]
    );
    let restarts = time["events"]["restarts"].as_u64();
    ensure!(
        restarts.is_some_and(|restarts| restarts <= RESTARTS),
        "the launcher had the guest go on anew {restarts:?} times"
    );
    outcome.expect_status(0)
}
