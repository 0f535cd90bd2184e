//! Placement on hosts whose measurements are made up.

use super::*;
use crate::assessment::Agreement;
use crate::seccomp::Action;
use crate::vcpu::Ending;
use std::sync::mpsc;

fn list(text: &str) -> CpuList {
    text.parse().expect(text)
}

/// The real CPUs that a thread of this test can be put on.
fn real() -> Vec<CpuId> {
    cpus::allowed().expect("told")
}

fn each_apart(cpus: &CpuList, _: Option<Khz>, go_on: &mut dyn FnMut() -> bool) -> Option<Finding> {
    go_on().then(|| Finding {
        domains: cpus.iter().map(|cpu| [cpu].into_iter().collect()).collect(),
        agree: Agreement::Refuted,
        largest: None,
        at_ns: 1,
    })
}

fn together(cpus: &CpuList, _: Option<Khz>, _: &mut dyn FnMut() -> bool) -> Option<Finding> {
    Some(Finding {
        domains: vec![*cpus],
        agree: Agreement::Proven,
        largest: None,
        at_ns: 1,
    })
}

fn nothing(cpus: &CpuList, khz: Option<Khz>, go_on: &mut dyn FnMut() -> bool) -> Option<Finding> {
    let finding = each_apart(cpus, khz, go_on)?;
    Some(Finding {
        agree: Agreement::Unproven,
        ..finding
    })
}

fn never(_: &CpuList, _: Option<Khz>, _: &mut dyn FnMut() -> bool) -> Option<Finding> {
    panic!("nothing is to be measured")
}

fn senses(measure: Measure) -> Senses {
    Senses {
        allowed: cpus::allowed,
        current: || real()[0],
        measure,
        cache: None,
    }
}

/// Places one thread, as a machine does its vCPU's, and gives what is reported when all is measured.
fn placed(mode: TscDomain, vcpus: u8, senses: Senses) -> Result<Placed, PlacementError> {
    let mut placement = Placement::prepare(mode, vcpus, senses)?;
    let threads = Arc::new(Threads::beginning_on(placement.first()));
    let (entered, wait) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let threads_of_vcpu = threads.clone();
    let vcpu = std::thread::spawn(move || {
        let (_entry, placed) = threads_of_vcpu.enter(tsc::VcpuId::new(0));
        placed.expect("allowed");
        entered.send(()).expect("waited for");
        // Until the other end is dropped.
        let _ = left.recv();
    });
    wait.recv().expect("entered");
    placement.release();
    assert_eq!(cpus::allowed().expect("told"), real());
    let ending = Arc::new(Ending::new().expect("an eventfd"));
    let measuring = placement
        .go_on(
            None,
            threads.clone(),
            ending.clone(),
            Filters::builtin(Action::Kill).expect("filters"),
        )
        .expect("a thread");
    if let Some(mut measuring) = measuring {
        // Waited for, not given up.
        let handle = measuring.handle.take().expect("runs");
        handle.join().expect("no panic");
        assert_eq!(ending.outcome(), None);
    }
    let placed = placement.placed(&threads);
    drop(leave);
    vcpu.join().expect("no panic");
    // The VM goes where it ran, and this thread where it likes afterwards.
    let stay = Stay::beside(&threads);
    if let Some(Some(cpus)) = placed.in_force.first() {
        assert_eq!(
            cpus::allowed().expect("told"),
            cpus.iter().collect::<Vec<_>>()
        );
    }
    drop(stay);
    assert_eq!(cpus::allowed().expect("told"), real());
    Ok(placed)
}

fn all() -> CpuList {
    real().into_iter().collect()
}

fn one(index: usize) -> CpuList {
    real().get(index).copied().into_iter().collect()
}

#[test]
fn auto_confines_to_the_home_cpus_domain_where_cpus_disagree() {
    if real().len() < 2 {
        return println!("skipped here: this process has one CPU");
    }
    let placed = placed(TscDomain::Auto, 2, senses(each_apart)).expect("placed");
    assert_eq!(placed.known_by, KnownBy::Measurement);
    assert_eq!(placed.in_force, [Some(one(0)), None]);
    let told = &placed.drawbacks[0].consequence;
    assert!(told.contains("2 vCPUs share the 1 CPU(s)"), "{told}");
}

#[test]
fn auto_leaves_threads_alone_where_cpus_agree_or_nothing_is_proven() {
    if real().len() < 2 {
        return println!("skipped here: this process has one CPU");
    }
    for (measure, known_by) in [
        (together as Measure, KnownBy::Measurement),
        (nothing, KnownBy::Assumption),
    ] {
        let placed = placed(TscDomain::Auto, 1, senses(measure)).expect("placed");
        assert_eq!(placed.known_by, known_by);
        assert_eq!(placed.in_force, [Some(all())]);
        assert_eq!(placed.drawbacks, []);
    }
}

#[test]
fn auto_of_one_cpu_and_off_measure_nothing() {
    let one_cpu = Senses {
        allowed: || Ok(vec![real()[0]]),
        ..senses(never)
    };
    let of_one = placed(TscDomain::Auto, 1, one_cpu).expect("placed");
    assert_eq!(of_one.known_by, KnownBy::OneCpu);
    assert_eq!(of_one.in_force, [Some(all())]);
    let off = placed(TscDomain::Off, 1, senses(never)).expect("placed");
    assert_eq!(off.in_force, [Some(all())]);
    assert_ne!(off.known_by, KnownBy::Pending);
}

#[test]
fn list_is_obeyed_to_the_cpu_and_a_span_is_told() {
    let last = one(real().len() - 1);
    let alone = placed(TscDomain::Cpus(last), 1, senses(together)).expect("placed");
    assert_eq!(alone.in_force, [Some(last)]);
    assert_eq!(alone.drawbacks, []);
    if real().len() < 2 {
        return println!("skipped here: a span of CPUs: this process has one");
    }
    let spanning = placed(TscDomain::Cpus(all()), 1, senses(each_apart)).expect("placed");
    assert_eq!(spanning.in_force, [Some(all())]);
    let told = &spanning.drawbacks[0].consequence;
    assert!(told.contains("spans"), "{told}");
    let error = placed(TscDomain::Cpus(list("1023")), 1, senses(never));
    assert!(matches!(error, Err(PlacementError::NotAllowed { .. })));
}

#[test]
fn kept_finding_decides_before_anything_runs() {
    if real().len() < 2 {
        return println!("skipped here: this process has one CPU");
    }
    let base = tempfile::tempdir().expect("a folder");
    let with_cache = |measure| Senses {
        cache: Some(Cache::within(base.path())),
        // Not in the first of the equally large domains, which is taken when all is known before.
        current: || real()[real().len() - 1],
        ..senses(measure)
    };
    // CLOCK_BOOTTIME 1 is a while ago.
    fn fresh(cpus: &CpuList, khz: Option<Khz>, go_on: &mut dyn FnMut() -> bool) -> Option<Finding> {
        let finding = each_apart(cpus, khz, go_on)?;
        Some(Finding {
            at_ns: crate::host_clock::boottime().get(),
            ..finding
        })
    }
    let measured = placed(TscDomain::Auto, 1, with_cache(fresh)).expect("placed");
    assert_eq!(measured.known_by, KnownBy::Measurement);
    assert_eq!(measured.in_force, [Some(one(real().len() - 1))]);
    let kept = placed(TscDomain::Auto, 1, with_cache(never)).expect("placed");
    assert_eq!(kept.known_by, KnownBy::Cache);
    assert_eq!(kept.in_force, [Some(one(0))]);
}

#[test]
fn measurement_that_is_given_up_changes_nothing() {
    if real().len() < 2 {
        return println!("skipped here: this process has one CPU");
    }
    fn until_told(
        cpus: &CpuList,
        khz: Option<Khz>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Option<Finding> {
        while go_on() {
            std::thread::yield_now();
        }
        each_apart(cpus, khz, go_on)
    }
    let placement = Placement::prepare(TscDomain::Auto, 1, senses(until_told)).expect("placed");
    let threads = Arc::new(Threads::beginning_on(placement.first()));
    let ending = Arc::new(Ending::new().expect("an eventfd"));
    let measuring = placement
        .go_on(
            None,
            threads.clone(),
            ending.clone(),
            Filters::builtin(Action::Kill).expect("filters"),
        )
        .expect("a thread");
    drop(measuring);
    assert_eq!(ending.outcome(), None);
    let placed = placement.placed(&threads);
    assert_eq!((placed.known_by, placed.finding), (KnownBy::Pending, None));
}
