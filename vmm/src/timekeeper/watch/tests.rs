//! A guest that is watched on the model of both vendors' hosts, with counters that are apart.

use std::cell::{Cell, RefCell};

use hypervisor::model::{Faults, ModelForm, ModelHost, ModelVm};
use tsc::watch::{Departure, Sighting};
use tsc::{GuestTsc, HostTsc, Khz, NanosDelta, Svm, TscOffset, VcpuId, Vmx};

use super::super::events::Entry;
use super::super::exits::{ExitWatch, Senses};
use super::super::tests::TimedVcpu;
use super::super::vcpu::VcpuTime;
use super::*;
use crate::guest_rate::GuestRate;

/// 2 ticks in a nanosecond.
const RATE: u32 = 2_000_000;
const THREE_SECONDS: i64 = 6_000_000_000;
const ZERO: CpuId = CpuId::new(0);
const ONE: CpuId = CpuId::new(1);

thread_local! {
    /// What exchanged timestamps say of CPU 1 against CPU 0.
    static SKEW: Cell<i64> = const { Cell::new(0) };
    static CLOCKSOURCE: Cell<&'static str> = const { Cell::new("tsc") };
    static MEASURED: Cell<usize> = const { Cell::new(0) };
}

/// Known to within 200 ticks.
fn skew(a: CpuId, b: CpuId) -> Option<SkewBounds> {
    MEASURED.set(MEASURED.get() + 1);
    let skew = SKEW.get() * (i64::from(b.get()) - i64::from(a.get()));
    SkewBounds::new(TscDelta::new(skew - 100), TscDelta::new(skew + 100)).ok()
}

const HOST: Host = Host {
    skew,
    clocksource: || Some(CLOCKSOURCE.get().to_owned()),
    allowed: || vec![ZERO, ONE],
    invariant_tsc: || true,
    bound: Nanos::new(1_000),
};

/// The counter of the CPU that a thread is on, and a clock that is right.
struct ModelSenses<'a, F: ModelForm> {
    vm: &'a ModelVm<F>,
    cpu: &'a Cell<CpuId>,
}

impl<F: ModelForm> Senses for ModelSenses<'_, F> {
    fn counter(&self) -> Option<(HostTsc, CpuId)> {
        let cpu = self.cpu.get();
        Some((self.vm.host(|host| host.tsc(cpu)), cpu))
    }

    fn tsc(&self) -> HostTsc {
        self.vm.host(|host| host.tsc(self.cpu.get()))
    }

    fn clock(&self) -> Nanos {
        self.vm.host(ModelHost::now)
    }
}

struct ModelThread<'a, F: ModelForm> {
    vcpu: TimedVcpu<F>,
    time: VcpuTime<ModelSenses<'a, F>>,
    cpu: &'a Cell<CpuId>,
    /// The latest that the guest read here.
    read: u64,
}

struct Threads<'a, F: ModelForm> {
    vm: &'a ModelVm<F>,
    threads: RefCell<Vec<ModelThread<'a, F>>>,
    /// CPUs that threads were confined to.
    confined: RefCell<Option<Vec<CpuId>>>,
    /// Where the second one's thread goes each time that they are told to go on, before it does.
    strays_to: RefCell<Vec<CpuId>>,
    /// They are not let go on.
    lingers: Cell<bool>,
    /// How often they were stopped.
    stops: Cell<usize>,
}

impl<F: ModelForm> Threads<'_, F> {
    fn go_to(&self, vcpu: usize, cpu: CpuId) {
        let thread = &self.threads.borrow()[vcpu];
        thread.cpu.set(cpu);
        self.vm.pin(&thread.vcpu.inner, cpu);
    }

    /// Each vCPU runs for `inside`, reads its TSC, leaves the guest and stays out for `outside`.
    fn run(&self, rounds: usize, inside: u64, outside: u64) {
        for _ in 0..rounds {
            for thread in &mut *self.threads.borrow_mut() {
                self.vm.enter(&thread.vcpu.inner).expect("sane registers");
                self.vm.pass(Nanos::new(inside));
                let read = self.vm.rdtsc(&thread.vcpu.inner).get();
                assert!(read >= thread.read, "backwards by {}", thread.read - read);
                thread.read = read;
                self.vm.leave(&thread.vcpu.inner);
                if let Some(sighting) = thread.time.watch().glance() {
                    thread.time.watch().attend(sighting, &thread.vcpu);
                }
                self.vm.pass(Nanos::new(outside));
            }
        }
    }

    fn read(&self) -> Vec<u64> {
        let threads = self.threads.borrow();
        threads.iter().map(|thread| thread.read).collect()
    }

    fn writes(&self) -> usize {
        let threads = self.threads.borrow();
        threads.iter().map(|thread| thread.vcpu.writes).sum()
    }
}

// The tests have one thread.
impl<F: ModelForm> Halt for &Threads<'_, F> {
    fn close(&self) {
        self.stops.set(self.stops.get() + 1);
    }

    fn ask(&self, order: Order) -> Vec<Answer> {
        if matches!(order, Order::GoOn(_))
            && let Some(cpu) = self.strays_to.borrow_mut().pop()
        {
            self.go_to(1, cpu);
        }
        let mut threads = self.threads.borrow_mut();
        let answers = threads
            .iter_mut()
            .map(|thread| thread.time.carry_out(&mut thread.vcpu, &order));
        let mut answers: Vec<_> = answers.collect();
        answers.reverse();
        answers
    }

    fn open(&self) {
        if self.lingers.get() {
            return;
        }
        for thread in &mut *self.threads.borrow_mut() {
            thread.time.leave(&thread.vcpu);
        }
    }

    fn nudge(&self, vcpu: usize) {
        if self.lingers.get() {
            return;
        }
        let thread = &mut self.threads.borrow_mut()[vcpu];
        thread.time.leave(&thread.vcpu);
    }

    fn confine(&self, cpus: &[CpuId]) -> Result<(), String> {
        *self.confined.borrow_mut() = Some(cpus.to_vec());
        for vcpu in 0..self.threads.borrow().len() {
            let cpu = self.threads.borrow()[vcpu].cpu.get();
            if !cpus.contains(&cpu) {
                self.go_to(vcpu, cpus[0]);
            }
        }
        Ok(())
    }

    fn strays(&self, cpus: &[CpuId]) -> bool {
        let threads = self.threads.borrow();
        threads
            .iter()
            .any(|thread| !cpus.contains(&thread.cpu.get()))
    }

    fn stay(&self) -> Option<Stay> {
        // It reads the model's TSC.
        None
    }
}

/// Two vCPUs on CPU 0 of a host, and their watch.
fn watched<F: ModelForm>(
    vm: &ModelVm<F>,
    may_confine: bool,
    test: impl FnOnce(&Threads<'_, F>, &mut Watching<&Threads<'_, F>>),
) {
    SKEW.set(0);
    CLOCKSOURCE.set("tsc");
    MEASURED.set(0);
    vm.pass(Nanos::new(5_000_000));
    let rates = Rates::new(F::VENDOR, GuestRate::Host, Khz::new(RATE)).expect("known");
    let cpus = [Cell::new(ZERO), Cell::new(ZERO)];
    let bell = Arc::new(Bell::default());
    let mut observed = Vec::new();
    let inners: Vec<_> = cpus.iter().map(|_| vm.create_vcpu()).collect();
    let threads = inners.into_iter().zip(&cpus).zip(0..);
    let threads: Vec<_> = threads
        .map(|((inner, cpu), id)| {
            let seen = Arc::new(Observed::default());
            observed.push(seen.clone());
            let vcpu = TimedVcpu::new(inner);
            let watch = ExitWatch::new(ModelSenses { vm, cpu }, Some(rates), seen, bell.clone());
            let time = VcpuTime::begin(VcpuId::new(id), watch, &vcpu);
            ModelThread {
                vcpu,
                time,
                cpu,
                read: 0,
            }
        })
        .collect();
    let offset = threads[0].vcpu.inner_offset();
    let threads = Threads {
        vm,
        threads: RefCell::new(threads),
        confined: RefCell::default(),
        strays_to: RefCell::default(),
        lingers: Cell::default(),
        stops: Cell::default(),
    };
    let mut watching = Watching::new(Watch {
        halt: &threads,
        rates,
        home: Home { cpu: ZERO, offset },
        host: HOST,
        may_confine,
        vcpus: observed,
        keeper: Arc::new(Mutex::new(Timekeeper::new(Some(rates)))),
    });
    test(&threads, &mut watching);
}

impl<F: ModelForm> TimedVcpu<F> {
    fn inner_offset(&self) -> TscOffset {
        use hypervisor::tsc_control::TscOffsetControl;
        self.offset().expect("readable").claim()
    }
}

impl<F: ModelForm> Watching<&Threads<'_, F>> {
    /// A beat, a second after the one before.
    fn second(&mut self, rung: bool) {
        self.beat(self.watch.halt.vm.host(ModelHost::now), rung);
    }

    /// The reasons of the marks, and the CPUs at fault.
    fn marks(&self) -> Vec<String> {
        let marks = serde_json::to_value(self.keeper().marks()).expect("JSON");
        let marks = marks.as_array().expect("a list").iter();
        marks
            .map(|mark| {
                let reason = mark["reason"].as_str().expect("a reason");
                format!("{reason} {}", mark["cpus"])
            })
            .collect()
    }

    fn events(&self) -> Vec<Event> {
        let events = self.keeper().events();
        events.latest.into_iter().map(Entry::event).collect()
    }
}

fn host(faults: Faults) -> ModelHost {
    ModelHost::uniform(2, Khz::new(RATE).expect("not 0"), faults)
}

fn apart(by: i64) -> ModelHost {
    host(Faults::LINUX).with_skew(ONE, TscDelta::new(by))
}

macro_rules! on_both {
    ($test:ident, $host:expr) => {{
        $test(&ModelVm::<Vmx>::new($host));
        $test(&ModelVm::<Svm>::new($host));
    }};
}

// After the macro, which they use.
mod allocations;
mod anywhere;
mod page;

const MILLISECOND: u64 = 1_000_000;

/// How far each vCPU's TSC advances in 100 ms of which a tenth is spent in the guest, in milliseconds.
fn pace<F: ModelForm>(threads: &Threads<'_, F>) -> Vec<u64> {
    let before = threads.read();
    // Two vCPUs take turns.
    threads.run(1_000, 5_000, 45_000);
    let after = threads.read();
    let advanced = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after - before);
    advanced.map(|ticks| ticks / 2 / MILLISECOND).collect()
}

/// Both vCPUs go to another CPU and back: KVM sees the step back, and has the guest go on from what it read.
fn there_and_back<F: ModelForm>(threads: &Threads<'_, F>) {
    for cpu in [ONE, ZERO] {
        for vcpu in 0..2 {
            threads.go_to(vcpu, cpu);
        }
        threads.run(1, MILLISECOND, 0);
    }
}

/// The CPUs are 3 s apart, and the second vCPU goes to the one that is ahead.
fn go_apart<F: ModelForm>(threads: &Threads<'_, F>) {
    SKEW.set(THREE_SECONDS);
    threads.run(100, MILLISECOND, 0);
    threads.go_to(1, ONE);
    threads.run(1, MILLISECOND, 0);
}

fn assert_together<F: ModelForm>(threads: &Threads<'_, F>) {
    let read = threads.read();
    assert!(read[0].abs_diff(read[1]) < 3 * MILLISECOND, "{read:?}");
}

#[test]
fn host_that_keeps_time_is_left_alone() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            for second in 0..10 {
                threads.go_to(second % 2, if second % 4 < 2 { ONE } else { ZERO });
                threads.run(500, MILLISECOND, 0);
                watching.second(false);
            }
            assert_eq!(watching.events(), []);
            assert_eq!(watching.marks(), [""; 0]);
            assert_eq!(threads.writes(), 0);
            assert!(vm.master_clock());
            assert_eq!(
                MEASURED.get(),
                1,
                "the pair was met often, and measured once"
            );
            let report = watching.watch.vcpus[0].report(0);
            let report = serde_json::to_value(report).expect("JSON");
            assert_eq!(report["moves"], 5, "{report}");
            for zero in [
                "leaps",
                "lags",
                "offset_moves",
                "backwards_steps",
                "largest_error_ns",
            ] {
                assert_eq!(report[zero], 0, "{zero} of {report}");
            }
        });
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn proven_skew_confines_the_threads_and_all_go_on_together() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            SKEW.set(THREE_SECONDS);
            threads.run(100, MILLISECOND, 0);
            threads.go_to(1, ONE);
            threads.threads.borrow_mut()[0].vcpu.deadline = GuestTsc::new(77);
            threads.run(1, MILLISECOND, 0);
            watching.second(false);
            let [
                Event::Skew {
                    cpu: 1,
                    home_cpu: 0,
                    at_least_ticks,
                    at_most_ticks,
                },
                Event::Confined { cpus, error: None },
                Event::Restart {
                    cause: RestartCause::Skew,
                    forward_ticks,
                    ..
                },
            ] = &watching.events()[..]
            else {
                panic!("{:?}", watching.events());
            };
            assert!(*at_least_ticks < THREE_SECONDS && THREE_SECONDS < *at_most_ticks);
            assert!(
                watching.marks().contains(&"skew [0,1]".to_owned()),
                "{:?}",
                watching.marks()
            );
            assert_eq!(cpus, &[0]);
            assert_eq!(threads.confined.take(), Some(vec![ZERO]));
            // The first vCPU follows the second one, which had read the other counter.
            let forward = forward_ticks[0];
            let counts = watching.keeper().events();
            assert!(counts.given_back_ns > 0);
            assert_eq!(counts.catch_ups, 1);
            assert!(
                (THREE_SECONDS - 10_000_000..=THREE_SECONDS).contains(&forward),
                "{forward}"
            );
            assert_eq!(
                threads.threads.borrow()[0].vcpu.armed,
                1,
                "its timer is armed again"
            );
            // Both go on side by side, and neither stands still.
            threads.run(1, MILLISECOND, 0);
            let pace = pace(threads);
            assert!(
                pace.iter().all(|pace| (95..=105).contains(pace)),
                "{pace:?}"
            );
            let read = threads.read();
            assert!(read[0].abs_diff(read[1]) < 1_000_000, "{read:?}");
            // They stay ahead of the host's time by what they were taken forward by, and that is told.
            watching.second(false);
            threads.run(1, MILLISECOND, 0);
            watching.second(false);
            let error = error_bounds(&watching.watch.vcpus)
                .expect("looked at")
                .proven();
            let ahead = THREE_SECONDS / 2;
            assert!(
                (ahead - 10_000_000..=ahead).contains(&error.get()),
                "{error:?}"
            );
        });
    }
    on_both!(test, apart(THREE_SECONDS));
    // Nobody but us knows where the guest has been.
    let silent = host(Faults {
        compensation: false,
        ..Faults::LINUX
    });
    on_both!(
        test,
        silent.clone().with_skew(ONE, TscDelta::new(THREE_SECONDS))
    );
}

#[test]
fn stop_is_told_to_each_vcpu_whoever_wakes_first() {
    let beat = LastBeat::default();
    let mut vcpus = [StopsSeen::default(), StopsSeen::default()];
    let mut told = |beat: &LastBeat| {
        let [first, second] = &mut vcpus;
        [first.is_another(beat), second.is_another(beat)]
    };
    beat.set(host_clock::boottime());
    assert_eq!(told(&beat), [false, false]);
    // The vCPUs wake first,
    beat.set(Nanos::new(1));
    assert_eq!(told(&beat), [true, true]);
    // and the watch does: who knew it already tells its guest once more, which does no harm.
    beat.was_missing();
    beat.set(host_clock::boottime());
    assert_eq!(told(&beat), [true, true]);
    assert_eq!(told(&beat), [false, false]);
}

#[test]
fn threads_that_somebody_moved_are_confined_again_and_not_at_every_beat() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let confinements = |watching: &Watching<&Threads<'_, F>>| {
                let events = watching.events();
                let confined = |event: &&Event| matches!(event, Event::Confined { .. });
                events.iter().filter(confined).count()
            };
            // Two vCPUs run for a second.
            let second = |watching: &mut Watching<&Threads<'_, F>>| {
                threads.run(50, 10 * MILLISECOND, 0);
                watching.second(false);
            };
            // Half a microsecond: a step that a guest can see
            SKEW.set(1_000);
            threads.go_to(1, ONE);
            second(watching);
            assert_eq!(confinements(watching), 1);
            assert_eq!(threads.threads.borrow()[1].cpu.get(), ZERO);
            // Left alone, they stay, and nothing more is done.
            let stops = threads.stops.get();
            for _ in 0..40 {
                // As after a move to a CPU that agrees, which is no reason to stop anybody.
                watching.watch.vcpus[0].want_attention();
                second(watching);
            }
            assert_eq!(confinements(watching), 1);
            assert_eq!(threads.stops.get(), stops);
            threads.go_to(0, ONE);
            second(watching);
            assert_eq!(confinements(watching), 2);
            assert_eq!(threads.threads.borrow()[0].cpu.get(), ZERO);
            // Somebody who does it again and again
            for _ in 0..29 {
                threads.go_to(0, ONE);
                second(watching);
                assert_eq!(confinements(watching), 2);
            }
            threads.go_to(0, ONE);
            second(watching);
            assert_eq!(confinements(watching), 3);
        });
    }
    on_both!(test, apart(1_000));
}

#[test]
fn guest_a_little_ahead_of_a_condemned_hosts_line_is_left_alone() {
    // 90 ms
    const LITTLE: i64 = 180_000_000;
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, false, |threads, watching| {
            SKEW.set(LITTLE);
            threads.run(100, MILLISECOND, 0);
            there_and_back(threads);
            CLOCKSOURCE.set("hpet");
            let leads = (watching.watch.vcpus.iter()).map(|vcpu| vcpu.lead_at_least());
            // A lead there is.
            assert!(leads.max() > Some(NanosDelta::new(80_000_000)));
            watching.second(true);
            let events = watching.events();
            assert!(
                matches!(&events[..], [Event::KernelMark { .. }, Event::Skew { .. }]),
                "{events:?}"
            );
        });
    }
    on_both!(test, apart(LITTLE));
}

#[test]
fn guest_ahead_of_a_condemned_hosts_line_stands_still_until_the_line_is_taken_to_it() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, false, |threads, watching| {
            SKEW.set(THREE_SECONDS);
            threads.run(100, MILLISECOND, 0);
            there_and_back(threads);
            CLOCKSOURCE.set("hpet");
            // What KVM does by itself: the guest advances while it runs, and at no other time.
            let stalled = pace(threads);
            assert!(
                stalled.iter().all(|pace| (4..=20).contains(pace)),
                "{stalled:?}"
            );
            threads.run(500, MILLISECOND, 0);
            watching.second(true);
            let events = watching.events();
            assert!(
                matches!(
                    &events[..],
                    [
                        Event::KernelMark { .. },
                        Event::Skew { .. },
                        Event::Restart {
                            cause: RestartCause::Lead,
                            ..
                        }
                    ]
                ),
                "{events:?}"
            );
            threads.run(1, MILLISECOND, 0);
            let pace = pace(threads);
            assert!(
                pace.iter().all(|pace| (95..=105).contains(pace)),
                "{pace:?}"
            );
            let marks = watching.marks();
            for mark in ["kernel_mark []", "skew [0,1]", "backwards_step [1,0]"] {
                assert!(
                    marks.contains(&mark.to_owned()),
                    "{mark} is not in {marks:?}"
                );
            }
            assert!(watching.keeper().events().kernel_compensations > 0);
            // It is not done again.
            for _ in 0..3 {
                threads.run(500, MILLISECOND, 0);
                watching.second(true);
            }
            assert_eq!(watching.events().len(), 3);
        });
    }
    on_both!(test, apart(THREE_SECONDS));
}

#[test]
fn compensation_of_the_kernels_is_noticed_and_not_fought() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            CLOCKSOURCE.set("hpet");
            let mut watching = Watching::new(Watch {
                halt: threads,
                vcpus: watching.watch.vcpus.clone(),
                keeper: watching.watch.keeper.clone(),
                ..watching.watch
            });
            for second in 0..10 {
                threads.go_to(second % 2, if second % 4 < 2 { ONE } else { ZERO });
                threads.run(5_000, 5_000, 95_000);
                watching.second(true);
            }
            assert_eq!(watching.events(), []);
            assert_eq!(threads.writes(), 0);
            let pace = pace(threads);
            assert!(
                pace.iter().all(|pace| (95..=105).contains(pace)),
                "{pace:?}"
            );
        });
    }
    on_both!(test, host(Faults::LINUX).unstable());
}

#[test]
fn what_cannot_be_done_is_told_and_the_guest_goes_on() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            go_apart(threads);
            threads.threads.borrow_mut()[0].vcpu.refuse = true;
            watching.second(false);
            let events = watching.events();
            let Some(Event::RestartFailed { reason, .. }) = events.last() else {
                panic!("{events:?}");
            };
            assert!(reason.contains("vCPU 0"), "{reason}");
            threads.run(10, MILLISECOND, 0);
            // It is tried again of itself, for a while.
            let failed = |event: &Event| matches!(event, Event::RestartFailed { .. });
            for failures in [2, 3, 3] {
                watching.second(false);
                let events = watching.events();
                assert_eq!(
                    events.iter().filter(|event| failed(event)).count(),
                    failures
                );
            }
        });
    }
    on_both!(test, apart(THREE_SECONDS));
}

#[test]
fn what_could_not_be_done_is_done_when_it_can_be() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            go_apart(threads);
            threads.threads.borrow_mut()[0].vcpu.refuse = true;
            watching.second(false);
            threads.threads.borrow_mut()[0].vcpu.refuse = false;
            watching.second(false);
            let events = watching.events();
            assert!(
                matches!(events.last(), Some(Event::Restart { .. })),
                "{events:?}"
            );
            threads.run(1, MILLISECOND, 0);
            assert_together(threads);
            // And that is that.
            let count = events.len();
            watching.second(false);
            assert_eq!(watching.events().len(), count);
        });
    }
    on_both!(test, apart(THREE_SECONDS));
}

#[test]
fn jump_is_held_against_all_counters_only_where_they_agree() {
    let vm = ModelVm::<Vmx>::new(host(Faults::LINUX));
    for (skew, expected) in [(0, "host_jump []"), (THREE_SECONDS, "skew [0,1]")] {
        watched(&vm, false, |threads, watching| {
            SKEW.set(skew);
            threads.run(10, MILLISECOND, 0);
            let vcpu = watching.watch.vcpus[0].clone();
            vcpu.jumped(Departure::Lagged(Ticks::new(9_000_000)));
            vcpu.want_attention();
            watching.second(true);
            assert_eq!(watching.marks(), [expected]);
        });
    }
}

/// A KVM that takes offsets, tells them, and does nothing.
#[test]
fn tsc_that_the_offset_does_not_explain_is_told() {
    use hypervisor::model::Obedience;
    use hypervisor::tsc_control::{TscOffsetControl, Written};
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, true, |threads, watching| {
            let contradicted = || watching.watch.vcpus[1].report(1).contradicted_looks();
            for looks in [0, 1, 2] {
                for thread in &mut *threads.threads.borrow_mut() {
                    thread.time.watch().look(&thread.vcpu);
                }
                assert_eq!(contradicted(), looks);
                let vcpu = &mut threads.threads.borrow_mut()[1].vcpu;
                let moved = vcpu.inner_offset().wrapping_add(TscDelta::new(5_000));
                let _: Written<TscOffset> = vcpu.inner.write_offset(moved).expect("accepted");
            }
            assert_eq!(watching.watch.vcpus[0].report(0).contradicted_looks(), 0);
        });
    }
    let faults = Faults {
        offset_writes: Obedience::IgnoredAndReadBack,
        ..Faults::LINUX
    };
    on_both!(test, host(faults));
}

#[test]
fn paused_guest_is_not_touched() {
    let vm = ModelVm::<Vmx>::new(apart(THREE_SECONDS));
    watched(&vm, true, |threads, watching| {
        SKEW.set(THREE_SECONDS);
        threads.run(10, MILLISECOND, 0);
        threads.go_to(1, ONE);
        threads.run(1, MILLISECOND, 0);
        watching.keeper().stopped = Some(super::super::Stopped {
            boottime: Nanos::ZERO,
            timers_held: false,
            lead: Nanos::ZERO,
            noted: Err("not looked at".to_owned()),
            unsettled: None,
        });
        watching.second(false);
        assert_eq!(threads.writes(), 0);
        let restarts = |watching: &Watching<_>| {
            let events = watching.events();
            let restart = |event: &&Event| matches!(event, Event::Restart { .. });
            events.iter().filter(restart).count()
        };
        assert_eq!(restarts(watching), 0);
        // What was wrong is put right when it goes on, although nothing tells of it again.
        watching.keeper().stopped = None;
        watching.second(false);
        assert_eq!(restarts(watching), 1);
    });
}
