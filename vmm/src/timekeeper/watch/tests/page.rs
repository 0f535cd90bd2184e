//! What a watched guest reads in its VMClock page.

use arch::layout::VMCLOCK;
use tsc::vmclock::{Adjtimex, ClockStatus, Counter, HostClock, SIZE, VmClock};
use tsc::watch::Stop;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::super::Clocks;
use super::super::super::TimePolicy;
use super::super::super::page::{RealTime, TimePage};
use super::super::super::tests::ModelClock;
use super::*;

/// When the model's clock said 0, in nanoseconds since 1970.
const START: Nanos = Nanos::new(1_700_000_000_000_000_000);
/// How far the host's clock may be off, as its kernel says.
const MICROSECOND: Nanos = Nanos::new(1_000);

thread_local! {
    /// The counter of CPU 0, and the host's clock at the same instant.
    static NOW: Cell<(HostTsc, Nanos)> = const { Cell::new((HostTsc::new(0), Nanos::ZERO)) };
}

const REAL_TIME: RealTime = RealTime {
    between: || {
        let (tsc, now) = NOW.get();
        (tsc, START.saturating_add(now), tsc)
    },
    clock: || {
        HostClock::from_kernel(Adjtimex {
            state: 0,
            status: 0,
            maxerror: 1,
            esterror: 1,
            tai: 37,
        })
    },
};

/// A guest that is watched, and its memory.
struct Reader<'a, 'b, F: ModelForm> {
    threads: &'a Threads<'b, F>,
    memory: Arc<GuestMemoryMmap>,
}

impl<'a, 'b, F: ModelForm> Reader<'a, 'b, F> {
    fn new(
        threads: &'a Threads<'b, F>,
        watching: &Watching<&Threads<'_, F>>,
        rates: Option<Rates>,
    ) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]);
        let memory = Arc::new(memory.expect("memory"));
        let page = TimePage::create(memory.clone(), rates, REAL_TIME);
        watching.keeper().page = Some(page.expect("inside"));
        Self { threads, memory }
    }

    /// The guest runs for a second, and then the watch beats.
    fn second(&self, watching: &mut Watching<&Threads<'_, F>>) -> VmClock {
        self.threads.run(500, MILLISECOND, 0);
        self.beat(watching)
    }

    fn beat(&self, watching: &mut Watching<&Threads<'_, F>>) -> VmClock {
        let now = |host: &ModelHost| (host.tsc(ZERO), host.now());
        NOW.set(self.threads.vm.host(now));
        watching.second(false);
        self.page()
    }

    fn page(&self) -> VmClock {
        let mut bytes = [0; SIZE];
        self.memory.read_slice(&mut bytes, VMCLOCK).expect("inside");
        VmClock::from_bytes(&bytes).expect("a page")
    }

    /// A while later the guest reads its TSC, and takes the page's time for it: that of the host's clock, to
    /// within what the page says.
    fn reads_right(&self, page: &VmClock) {
        for vcpu in 0..2 {
            self.threads.vm.pass(Nanos::new(300 * MILLISECOND));
            let thread = &self.threads.threads.borrow()[vcpu];
            self.threads
                .vm
                .enter(&thread.vcpu.inner)
                .expect("sane registers");
            let tsc = self.threads.vm.rdtsc(&thread.vcpu.inner);
            let clock = START.saturating_add(self.threads.vm.host(ModelHost::now));
            self.threads.vm.leave(&thread.vcpu.inner);
            let told = page.time_at(tsc).and_then(|time| time.nanos_floor());
            let off = told
                .expect("a time")
                .saturating_difference(clock)
                .magnitude();
            let ticks = u128::from(tsc.wrapping_elapsed(page.counter).get());
            let period = u128::from(page.period_estimated_error.expect("told").get());
            let drift = ((ticks * period * 1_000_000_000) >> page.period.shift()) >> 64;
            let error = u128::from(page.time_estimated_error.expect("told").get()) + drift;
            assert!(
                u128::from(off.get()) <= error + 1,
                "{off} beyond {error} ns of {page:?}"
            );
        }
    }
}

#[test]
fn guest_of_a_host_that_keeps_time_reads_it() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let reader = Reader::new(threads, watching, Some(watching.watch.rates));
            assert_eq!(reader.page().status, ClockStatus::Unreliable);
            for second in 0..20 {
                threads.go_to(second % 2, if second % 4 < 2 { ONE } else { ZERO });
                let page = reader.second(watching);
                assert_eq!(page.status, ClockStatus::Synchronized);
                assert_eq!((page.disruption_marker, page.tai_offset), (0, Some(37)));
                reader.reads_right(&page);
            }
            let page = reader.page();
            let least = page.time_maximum_error.expect("told");
            assert!(
                least > MICROSECOND && least < Nanos::new(MILLISECOND),
                "{least}"
            );
            // The kernel's estimate, and what is rounded: the rest is known exactly.
            let estimate = page.time_estimated_error.expect("told");
            assert!(estimate < Nanos::new(1_020), "{estimate}");
        });
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn guest_that_may_run_on_counters_that_are_apart_is_told_that_nobody_knows() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        for may_confine in [false, true] {
            watched(vm, may_confine, |threads, watching| {
                SKEW.set(THREE_SECONDS);
                let reader = Reader::new(threads, watching, Some(watching.watch.rates));
                let page = reader.second(watching);
                assert_eq!(page.status, ClockStatus::Synchronized);
                threads.go_to(1, ONE);
                let page = reader.second(watching);
                assert_eq!(
                    page.disruption_marker, 1,
                    "all vCPUs went on from a later reading"
                );
                if may_confine {
                    // They run where counters agree, and go by one offset.
                    assert_eq!(page.status, ClockStatus::Synchronized);
                    reader.reads_right(&page);
                    // Somebody else moves one.
                    threads.go_to(1, ONE);
                }
                let page = reader.beat(watching);
                assert_eq!(page.status, ClockStatus::Unreliable);
                assert_eq!(page.time_maximum_error, None);
            });
        }
    }
    on_both!(test, apart(THREE_SECONDS));
}

#[test]
fn guest_whose_tsc_kvm_moves_is_told_that_nobody_knows() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let reader = Reader::new(threads, watching, Some(watching.watch.rates));
            assert_eq!(reader.second(watching).status, ClockStatus::Synchronized);
            CLOCKSOURCE.set("hpet");
            // It is looked at when there is a reason.
            threads.go_to(0, ONE);
            let page = reader.second(watching);
            assert_eq!(
                (page.status, page.disruption_marker),
                (ClockStatus::Unreliable, 1)
            );
        });
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn guest_that_moves_its_own_tsc_reads_the_time_by_it() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        use hypervisor::tsc_control::{TscOffsetControl, Written};
        watched(vm, true, |threads, watching| {
            let reader = Reader::new(threads, watching, Some(watching.watch.rates));
            reader.reads_right(&reader.second(watching));
            let by = TscDelta::new(9_000_000_000);
            let step = |vcpu: usize| {
                let vcpu = &mut threads.threads.borrow_mut()[vcpu].vcpu;
                let offset = vcpu.offset().expect("readable").claim().wrapping_add(by);
                let _: Written<TscOffset> = vcpu.inner.write_offset(offset).expect("accepted");
            };
            // Between the two of them there is no time that the page could tell. A beat has them look, and the next
            // one knows.
            step(0);
            reader.second(watching);
            let page = reader.second(watching);
            assert_eq!(page.status, ClockStatus::Unreliable);
            step(1);
            reader.second(watching);
            let page = reader.second(watching);
            assert_eq!(
                (page.status, page.disruption_marker),
                (ClockStatus::Synchronized, 1)
            );
            reader.reads_right(&page);
        });
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn disturbances_are_told_by_the_marker() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let reader = Reader::new(threads, watching, Some(watching.watch.rates));
            let before = reader.second(watching);
            let stop = Stop {
                at_least: Nanos::new(1),
                at_most: Nanos::new(2),
                host_slept: Nanos::ZERO,
                by_signal: true,
            };
            watching.tell(None, &LastBeat::default());
            watching.tell(Some(stop), &LastBeat::default());
            let page = reader.beat(watching);
            assert_eq!(page.disruption_marker, before.disruption_marker + 1);
            assert_eq!(page.status, ClockStatus::Synchronized);
            reader.reads_right(&page);
            // Once.
            assert_eq!(
                reader.second(watching).disruption_marker,
                page.disruption_marker
            );
        });
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn guest_that_is_not_watched_is_told_no_time() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let reader = Reader::new(threads, watching, None);
            let page = reader.second(watching);
            assert_eq!(
                (page.counter_id, page.status),
                (Counter::Invalid, ClockStatus::Unreliable)
            );
            // But for disruptions.
            watching.disturbed = true;
            assert_eq!(reader.beat(watching).disruption_marker, 1);
        });
    }
    on_both!(test, host(Faults::LINUX));
}

/// A beat between the setting of the clocks and the first vCPU's look at its own.
#[test]
fn page_after_a_freeze_is_right_before_the_vcpus_go_on() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let reader = Reader::new(threads, watching, Some(watching.watch.rates));
            reader.second(watching);
            let clock = ModelClock::new(vm);
            let clocks = Clocks {
                vm: &clock,
                boottime: &|| vm.host(ModelHost::now),
                host_tsc: &|| vm.host(|host| host.tsc(ZERO)),
            };
            let ask = |order| threads.ask(order);
            let policy = TimePolicy::Freeze;
            let mut keeper = watching.keeper();
            keeper.stop(policy, Nanos::ZERO, &clocks, ask);
            vm.pass(Nanos::new(10_000 * MILLISECOND));
            NOW.set(vm.host(|host| (host.tsc(ZERO), host.now())));
            keeper.go_on(policy, &clocks, ask).expect("no fault");
            let moved = keeper.home_offset.expect("it was moved");
            drop(keeper);
            let ended = reader.page();
            threads.lingers.set(true);
            vm.pass(Nanos::new(MILLISECOND));
            let page = reader.beat(watching);
            assert_eq!(page.disruption_marker, ended.disruption_marker);
            assert_eq!(page.status, ClockStatus::Synchronized);
            let (tsc, now) = NOW.get();
            let guest = watching.watch.rates.ratio.guest_at(moved, tsc);
            let told = page.time_at(guest).and_then(|time| time.nanos_floor());
            let off = told
                .expect("a time")
                .saturating_difference(START.saturating_add(now));
            assert!(off.magnitude() < MICROSECOND, "{off}");
        });
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn pause_leaves_the_page_to_whoever_ends_it() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let reader = Reader::new(threads, watching, Some(watching.watch.rates));
            let before = reader.second(watching);
            watching.keeper().stopped = Some(super::super::super::Stopped {
                boottime: Nanos::ZERO,
                timers_held: false,
                lead: Nanos::ZERO,
                noted: Err(String::new()),
                unsettled: None,
            });
            watching.disturbed = true;
            assert_eq!(reader.second(watching), before);
            // It was moved, and its clocks go on from there.
            let moved = watching
                .watch
                .home
                .offset
                .wrapping_add(TscDelta::new(-4_000_000_000));
            let mut keeper = watching.keeper();
            keeper.stopped = None;
            let page = keeper.page.as_mut().expect("a page");
            let now = |host: &ModelHost| (host.tsc(ZERO), host.now());
            NOW.set(vm.host(now));
            page.go_on(Some(moved));
            drop(keeper);
            let page = reader.page();
            assert_eq!(
                (page.status, page.disruption_marker),
                (ClockStatus::Synchronized, 1)
            );
            let read = |offset| {
                let host = vm.host(|host| host.tsc(ZERO));
                page.time_at(watching.watch.rates.ratio.guest_at(offset, host))
            };
            let told = read(moved)
                .and_then(|time| time.nanos_floor())
                .expect("a time");
            let clock = START.saturating_add(vm.host(ModelHost::now));
            assert!(
                told.saturating_difference(clock).magnitude() < MICROSECOND,
                "{told}"
            );
            // What happened meanwhile is told all the same.
            for thread in &mut *threads.threads.borrow_mut() {
                use hypervisor::tsc_control::{TscOffsetControl, Written};
                let _: Written<TscOffset> =
                    thread.vcpu.inner.write_offset(moved).expect("accepted");
                thread.time.watch().look(&thread.vcpu);
                thread.read = 0;
            }
            assert_eq!(reader.second(watching).disruption_marker, 2);
        });
    }
    on_both!(test, host(Faults::LINUX));
}
