//! What a guest's VMClock page told it, against the host's clock, which the guest asked for in the same moment.

use anyhow::{Context, Result, ensure};

use crate::guest::witness::{Look, Page};

/// `VMCLOCK_STATUS_SYNCHRONIZED`.
const SYNCHRONIZED: u64 = 2;
/// The kernel says that its clock may be off by half a millisecond more each second; the scenario takes a minute, and
/// not much more on a busy machine.
const WIDEST_NS: i128 = 200_000_000;
/// How closely the page must have told the time at least once. The host's clock is right by its own estimate, so that
/// what is left is how closely the launcher read it.
const CLOSEST_NS: i128 = 300_000;

/// Each look's page holds the host's time, and says how closely.
pub(super) fn check(looks: &[Look]) -> Result<()> {
    let mut closest = None;
    for look in looks {
        let page = look.page.context("a look without the clock's page")?;
        let [estimate, largest] = judge(look, &page)
            .with_context(|| format!("the clock's page {page:?}, in the look {look:?}"))?;
        ensure!(
            estimate <= largest && largest <= WIDEST_NS,
            "the clock's page says that it may be off by {estimate} and {largest} ns"
        );
        closest = Some(closest.map_or(estimate, |closest| estimate.min(closest)));
    }
    ensure!(
        closest.is_some_and(|closest| closest <= CLOSEST_NS),
        "the clock's page told the time to within {closest:?} ns only"
    );
    Ok(())
}

/// The disruption marker tells of the stops that lie between these looks: a freeze, a pause under `advance`, and those
/// that nobody planned.
pub(super) fn check_markers(phases: &[&[Look]]) -> Result<()> {
    // What began by a stop is seen by its end at the latest: the launcher notices one that nobody planned when it goes
    // on itself. A pause under `advance` disturbs nothing, but a busy machine may.
    let marker = |looks: &&[Look]| {
        let page = looks.last().and_then(|look| look.page);
        let page = page.context("no look at the clock's page between two stops")?;
        Ok(page.marker)
    };
    let markers: Vec<_> = phases.iter().map(marker).collect::<Result<_>>()?;
    let [first, frozen, rest @ ..] = markers.as_slice() else {
        anyhow::bail!("no stop");
    };
    ensure!(
        first < frozen && rest.first() >= Some(frozen) && rest.is_sorted_by(|one, next| one < next),
        "the disruption marker was {first}, after freeze {frozen}, after advance and stops that nobody planned {rest:?}"
    );
    // A frozen guest does not run before its page says so.
    let after = phases
        .get(1)
        .and_then(|looks| looks.first())
        .and_then(|look| look.page);
    ensure!(
        after.is_some_and(|page| page.marker > *first),
        "after freeze, the guest ran before its disruption marker had changed"
    );
    Ok(())
}

/// The host's time is within both of the page's errors; gives them back.
fn judge(look: &Look, page: &Page) -> Result<[i128; 2]> {
    ensure!(page.status == SYNCHRONIZED, "its status is {}", page.status);
    let errors = page.errors.context("it tells of no errors")?;
    let host = look.host_later();
    // Both are of a moment between the same two readings of the TSC.
    let ahead = page.time.at_least - host.at_most;
    let behind = host.at_least - page.time.at_most;
    for error in errors {
        ensure!(
            ahead <= error && behind <= error,
            "it is ahead of the host's clock by {ahead} ns at least, or behind by {behind} ns at least, and says {error}"
        );
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::witness::Within;

    /// A look at `at`, with the page `off` by so much.
    fn look(at: i128, marker: u64, off: i128) -> Look {
        let within = |at_least, at_most| Within { at_least, at_most };
        Look {
            guest: at,
            ahead: within(10, 12),
            guest_later: at + 5,
            tsc: within(1, 2),
            page: Some(Page {
                status: SYNCHRONIZED,
                marker,
                // The host's time is at + 15 to at + 17.
                time: within(at + 14 + off, at + 20 + off),
                errors: Some([100, 1_000]),
            }),
        }
    }

    fn judged(change: impl Fn(&mut [Vec<Look>; 4])) -> Result<()> {
        let mut phases = [0, 1, 1, 2].map(|marker| vec![look(50, marker, 0), look(60, marker, 90)]);
        change(&mut phases);
        check(&phases.concat())?;
        check_markers(&phases.each_ref().map(Vec::as_slice))
    }

    #[test]
    fn check_good_pages_pass_and_each_fault_fails() {
        judged(|_| {}).unwrap();
        // The launcher is a little late to notice SIGSTOP.
        judged(|phases| phases[3][0] = look(50, 1, 0)).unwrap();
        let page = |look: &mut Look, change: fn(&mut Page)| change(look.page.as_mut().unwrap());
        type Fault<'a> = (&'a str, &'a dyn Fn(&mut [Vec<Look>; 4]));
        let faults: [Fault<'_>; 10] = [
            ("ahead", &|phases| phases[2][1] = look(60, 1, 104)),
            ("behind", &|phases| phases[2][1] = look(60, 1, -106)),
            ("without", &|phases| phases[0][0].page = None),
            ("status", &|phases| {
                page(&mut phases[0][1], |page| page.status = 4)
            }),
            ("no errors", &|phases| {
                page(&mut phases[0][1], |page| page.errors = None)
            }),
            ("may be off", &|phases| {
                page(&mut phases[1][1], |page| {
                    page.errors = Some([100, WIDEST_NS + 1])
                });
            }),
            ("to within", &|phases| {
                for look in phases.iter_mut().flatten() {
                    page(look, |page| page.errors = Some([CLOSEST_NS + 1; 2]));
                }
            }),
            ("planned [1, 1]", &|phases| phases[3] = vec![look(50, 1, 0)]),
            ("after freeze 0", &|phases| phases[1] = vec![look(50, 0, 0)]),
            ("ran before", &|phases| phases[1][0] = look(50, 0, 0)),
        ];
        for (word, fault) in faults {
            let error = format!("{:#}", judged(fault).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
