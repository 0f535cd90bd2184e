//! The thread that watches a whole guest's time.
//!
//! Once in a [`PERIOD`] it sees to it that every vCPU's clock was looked at, and notices when nobody ran.
//! When a vCPU's thread reports something (its counter went backwards, its clock departed from the
//! host's, its offset moved, it came to another CPU) it finds out why: it measures the skew between the
//! CPUs at hand by exchanged timestamps, and asks the kernel whether it still trusts the TSC. Then there
//! are two cases in which something is done, and everything else is only reported:
//!
//! - the counters of two CPUs are **proven** apart: the vCPUs' threads are confined to the CPUs that agree
//!   with the home CPU, if their placement is ours, and again when somebody moved them; and when the
//!   kernel does not know of it, all vCPUs stop for a moment and go on from the latest reading of any of
//!   them. Where the threads' placement is not ours they go on so, each with the offset for the CPU that it
//!   is on, as often as [`Carried`] has it: the guest comes to be ahead of real time by the largest
//!   skew for each of its vCPUs at most, however its threads are moved;
//! - the kernel knows, and so KVM compensates by itself: it has a vCPU go on from what it read last and
//!   forwards it to a line. That is left alone, except when the guest is far *ahead* of that line, where
//!   it would stand still until the line has caught up: then the line is begun anew from its reading.
//!
//! An offset that moved on a host whose counters agree was moved by the guest, who may.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tsc::skew::SkewBounds;
use tsc::stability::{Cause, PlatformReport};
use tsc::watch::{Beat, Beats, Carried, LEAD_LEFT_ALONE, Stop};
use tsc::{CpuId, Nanos, Ticks, TscDelta, ticks_exact_floor};

use super::exits::LOOK_EVERY;
use super::observed::{Bell, Observed, Rung, Step, one_offset};
use super::restart::{Home, restart};
use super::{Answer, Event, Order, Rates, RestartCause, Timekeeper, error_bounds};
use crate::assessment;
use crate::code::Quiet;
use crate::doctor;
use crate::error::one_line;
use crate::host_clock;
use crate::placement::Stay;
use crate::seccomp::{Filters, Role};
use crate::signals;
use crate::vcpu::Ending;

/// Somebody looks at least so often.
pub(crate) const PERIOD: Nanos = LOOK_EVERY;
/// A beat may be late by this: a busy host's scheduler, and an emulated one's.
pub(crate) const SLACK: Nanos = Nanos::new(500_000_000);
/// A pair of CPUs that was measured is measured again after so long, if a vCPU is moved between them.
const MEASURE_AGAIN: Nanos = Nanos::new(30_000_000_000);

/// What the watch asks of the host, beside its clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// Bounds on the second CPU's counter less the first one's; `None` when nothing could be measured.
    pub(crate) skew: fn(CpuId, CpuId) -> Option<SkewBounds>,
    /// What the kernel keeps time by.
    pub(crate) clocksource: fn() -> Option<String>,
    /// The CPUs that vCPUs' threads may be confined to.
    pub(crate) allowed: fn() -> Vec<CpuId>,
    /// What the processor says: whether its TSC ticks at one rate.
    pub(crate) invariant_tsc: fn() -> bool,
    /// What is proven to be within this, and may be zero, is no skew.
    pub(crate) bound: Nanos,
}

impl Host {
    /// The machine that this runs on.
    pub(crate) const THIS: Self = Self {
        skew: doctor::skew_between,
        clocksource: host_clock::clocksource,
        allowed: doctor::allowed_cpus,
        invariant_tsc: || assessment::platform().invariant_tsc,
        bound: doctor::DOMAIN_BOUND,
    };
}

/// Why nobody watches a guest's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unwatched {
    /// It was switched off.
    #[error(
        "the guest's time is not watched: the timekeeper is switched off (--test-without-timekeeper), which \
         is for tests"
    )]
    ForTests,
    /// Its kernel is too old.
    #[error(
        "the guest's time is not watched: this host's kernel does not tell a vCPU's TSC offset \
         (KVM_VCPU_TSC_OFFSET, which Linux has since 5.16)"
    )]
    ByKernel,
    /// It cannot be.
    #[error(
        "the guest's time is not watched: this host tells neither its TSC's rate nor whose TSC is read"
    )]
    ByHost,
}

/// Stops all vCPUs of a guest for a moment.
pub(crate) trait Halt {
    /// Returns when all wait, with something that they can be asked through.
    fn close(&self);
    /// Has those that wait carry out an order.
    fn ask(&self, order: Order) -> Vec<Answer>;
    /// Lets them go on.
    fn open(&self);
    /// Makes a vCPU leave the guest and look at its clock.
    fn nudge(&self, vcpu: usize);
    /// Confines the vCPUs' threads to these CPUs.
    ///
    /// # Errors
    /// Why they are not.
    fn confine(&self, cpus: &[CpuId]) -> Result<(), String>;
    /// Whether a vCPU's thread may run elsewhere than on these CPUs: somebody else moved it.
    fn strays(&self, cpus: &[CpuId]) -> bool;
    /// Keeps this thread, which is about to read their TSC, where the vCPUs' threads are kept.
    fn stay(&self) -> Option<Stay>;
}

/// What one guest's watch goes by.
pub(crate) struct Watch<T> {
    pub(crate) halt: T,
    pub(crate) rates: Rates,
    pub(crate) home: Home,
    pub(crate) host: Host,
    /// Whether the threads' placement is ours.
    pub(crate) may_confine: bool,
    pub(crate) vcpus: Vec<Arc<Observed>>,
    pub(crate) keeper: Arc<Mutex<Timekeeper>>,
}

/// So often vCPUs are told to go on together where their threads are moved meanwhile, and at so many beats after each
/// other where that fails otherwise.
const TRIES: u8 = 3;

/// vCPUs that were to go on together, and did not: they are still apart, and nothing that they meet may tell of it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unfinished {
    is: bool,
    failures: u8,
    /// How far each was taken forward all the same.
    taken: Vec<TscDelta>,
}

impl Unfinished {
    /// The guest is paused.
    fn put_off(&mut self) {
        self.is = true;
    }

    /// It was tried.
    fn failed(&mut self, taken: Vec<TscDelta>) {
        self.taken = taken;
        self.failures = self.failures.saturating_add(1);
        self.is = true;
    }

    /// They went on, or were found together.
    fn done(&mut self) {
        *self = Self::default();
    }

    /// Whether it is to be tried again of itself.
    fn is_due(&self) -> bool {
        self.is && self.failures < TRIES
    }
}

/// The watch and what it has found.
struct Watching<T> {
    watch: Watch<T>,
    bound: Ticks,
    /// CPUs by what was measured of them against the home CPU, and when.
    measured: BTreeMap<u32, (SkewBounds, Nanos)>,
    /// The kernel does not trust the TSC.
    condemned: bool,
    /// Where the threads were confined to, and when.
    confined: Option<(Vec<CpuId>, Nanos)>,
    /// What became of the guest while its threads might go to CPUs that are apart.
    carried: Carried,
    /// It is taken no further, which was told.
    left_apart: bool,
    /// The vCPUs were to go on together, and did not.
    unfinished: Unfinished,
    /// How often somebody else had moved offsets, at the latest beat.
    offset_moves: u64,
    /// When it was looked last whether all counters jumped together.
    jump_looked_into: Option<Nanos>,
    /// Something happened to the guest's time that its page is yet to say.
    disturbed: bool,
}

/// The thread. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct WatchThread {
    bell: Arc<Bell>,
    handle: Option<JoinHandle<()>>,
}

impl WatchThread {
    /// Gives back when the thread's first beat is over, so that no vCPU runs unwatched.
    pub(crate) fn start<T: Halt + Send + 'static>(
        watch: Watch<T>,
        bell: Arc<Bell>,
        beat: Arc<LastBeat>,
        ending: Arc<Ending>,
        filters: Filters,
    ) -> std::io::Result<Self> {
        let for_thread = bell.clone();
        let (begun, first_beat) = mpsc::sync_channel(1);
        let handle = std::thread::Builder::new()
            .name("time".to_owned())
            .spawn(move || match filters.enter(Role::Time) {
                Ok(()) => ending.unless_it_panics("time", || {
                    run(Watching::new(watch), &for_thread, &beat, begun);
                }),
                // Noticed by its beats.
                Err(error) => {
                    tracing::error!("nobody watches the guest's time: {}", one_line(&error))
                }
            })?;
        // A thread that ended before has nothing to tell, and is noticed by its beats.
        let _ = first_beat.recv();
        Ok(Self {
            bell,
            handle: Some(handle),
        })
    }
}

impl Drop for WatchThread {
    fn drop(&mut self) {
        self.bell.ring(Rung::ForTheEnd);
        if let Some(handle) = self.handle.take() {
            // It has nothing left to tell.
            let _ = handle.join();
        }
    }
}

/// When the watch beat last, for vCPU threads that find themselves stopped and started.
#[derive(Debug, Default)]
pub(crate) struct LastBeat {
    at: AtomicU64,
    /// So often a beat was missing.
    stops: AtomicU32,
}

impl LastBeat {
    fn set(&self, now: Nanos) {
        self.at.store(now.get(), Ordering::Relaxed);
    }

    /// One was missing, as the watch has found.
    fn was_missing(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one is missing: nobody ran, or hardly.
    fn is_missing(&self) -> bool {
        let last = self.at.load(Ordering::Relaxed);
        last != 0 && Beats::is_missing(PERIOD, SLACK, Nanos::new(last), host_clock::boottime())
    }
}

/// One vCPU's view of the beats.
#[derive(Debug, Default)]
pub(crate) struct StopsSeen(u32);

impl StopsSeen {
    /// Whether nobody ran since this was asked last, or does not yet: whoever wakes first, the vCPU or the watch, which
    /// beats at once.
    pub(crate) fn is_another(&mut self, beat: &LastBeat) -> bool {
        let stops = beat.stops.load(Ordering::Relaxed);
        let is_new = std::mem::replace(&mut self.0, stops) != stops;
        is_new || beat.is_missing()
    }
}

fn beat_now() -> Beat {
    Beat {
        boottime: host_clock::boottime(),
        monotonic: host_clock::monotonic(),
        continued: signals::continued(),
    }
}

fn run<T: Halt>(
    mut watching: Watching<T>,
    bell: &Bell,
    last: &LastBeat,
    begun: mpsc::SyncSender<()>,
) {
    // Else a stop is told all the same, without its cause.
    if let Err(error) = signals::count_continued() {
        tracing::warn!("stops by a signal are not told from others: {error}");
    }
    let first = beat_now();
    let mut beats = Beats::begin(PERIOD, SLACK, first);
    last.set(first.boottime);
    let _ = begun.send(());
    drop(begun);
    let mut quiet = Quiet::begin();
    loop {
        let rung = bell.wait(Duration::from_nanos(PERIOD.get()));
        if rung == Rung::ForTheEnd {
            return;
        }
        let now = beat_now();
        watching.tell(beats.beat(now), last);
        last.set(now.boottime);
        watching.beat(host_clock::monotonic_raw(), rung == Rung::ByVcpu);
        // Where vCPUs are moved, CPUs are measured again, for which the vCPUs themselves may leave little time.
        let now = beat_now();
        watching.tell(beats.worked(now), last);
        if watching.disturbed {
            watching.show_time();
        }
        last.set(now.boottime);
        quiet.look();
    }
}

impl<T: Halt> Watching<T> {
    fn new(watch: Watch<T>) -> Self {
        let bound =
            ticks_exact_floor(watch.host.bound, watch.rates.host.khz).unwrap_or(Ticks::ZERO);
        let clocksource = (watch.host.clocksource)();
        let mut watching = Self {
            condemned: !trusts_the_tsc(clocksource.as_deref()),
            watch,
            bound,
            measured: BTreeMap::new(),
            confined: None,
            carried: Carried::default(),
            left_apart: false,
            unfinished: Unfinished::default(),
            offset_moves: 0,
            jump_looked_into: None,
            disturbed: false,
        };
        if !(watching.watch.host.invariant_tsc)() {
            watching.mark(Cause::Platform(PlatformReport::NotInvariant));
        }
        if watching.condemned {
            watching.mark(Cause::Platform(PlatformReport::OtherClocksource));
        }
        watching.show_time();
        watching
    }

    /// Shows the guest the time, by what is known of its TSC now.
    fn show_time(&mut self) {
        let apart = self.runs_apart();
        let home = self.watch.home.offset;
        let _stay = self.watch.halt.stay();
        let keeper = self.watch.keeper.clone();
        let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        // Not before: whoever has the lock may be setting the clocks.
        let offset = one_offset(&self.watch.vcpus, home).filter(|_| !apart && !self.condemned);
        // Of a guest that is paused, whoever lets it go on writes the page.
        if !keeper.is_stopped()
            && let Some(page) = &mut keeper.page
        {
            page.show(offset, std::mem::take(&mut self.disturbed));
        }
    }

    /// Whether the vCPUs' threads may run on CPUs that are apart.
    fn runs_apart(&self) -> bool {
        let is_apart = |(bounds, _): &(SkewBounds, Nanos)| bounds.is_apart();
        match &self.confined {
            // Confined, they are on those that agree; unless somebody else moved them.
            Some((cpus, _)) => self.watch.halt.strays(cpus),
            None => self.measured.values().any(is_apart),
        }
    }

    fn mark(&self, cause: Cause) {
        self.keeper().marks.add(cause, host_clock::boottime());
    }

    fn add(&self, event: Event) {
        let mut keeper = self.keeper();
        keeper.events.add(host_clock::boottime(), event);
    }

    fn tell(&mut self, stop: Option<Stop>, last: &LastBeat) {
        if let Some(stop) = stop {
            self.disturbed = true;
            // Each is to tell its guest, whatever it was at when it was stopped.
            last.was_missing();
            (0..self.watch.vcpus.len()).for_each(|vcpu| self.watch.halt.nudge(vcpu));
            self.add(Event::UnplannedStop {
                at_least_ns: stop.at_least.get(),
                at_most_ns: stop.at_most.get(),
                host_slept_ns: stop.host_slept.get(),
                by_signal: stop.by_signal,
            });
        }
    }

    fn keeper(&self) -> std::sync::MutexGuard<'_, Timekeeper> {
        // It is changed in whole steps.
        self.watch
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A beat, at `now` of the clock that looks are made by.
    fn beat(&mut self, now: Nanos, rung: bool) {
        let mut wanted = false;
        let mut offset_moves = 0_u64;
        // Those that wait are looked at when they go on.
        let is_stopped = self.keeper().is_stopped();
        for (index, vcpu) in self.watch.vcpus.iter().enumerate() {
            wanted |= vcpu.take_attention();
            offset_moves = offset_moves.wrapping_add(vcpu.offset_moves());
            if let Some(Step { from, to, by }) = vcpu.take_step() {
                self.mark(if from == to {
                    Cause::FellBehind { cpu: to, by }
                } else {
                    Cause::BackwardsStep { from, to, by }
                });
            }
            if !is_stopped && now.saturating_sub(vcpu.looked_at()) >= LOOK_EVERY {
                self.watch.halt.nudge(index);
            }
        }
        wanted |= self.unfinished.is_due() && !is_stopped;
        if wanted {
            self.look_into_it(now, rung);
        }
        if self.has_strayed(now) {
            self.confine(now);
        }
        if let Some(error) = error_bounds(&self.watch.vcpus) {
            self.keeper().history.add(host_clock::boottime(), error);
        }
        let moved = offset_moves.wrapping_sub(self.offset_moves);
        self.offset_moves = offset_moves;
        if self.condemned && moved > 0 {
            let events = &mut self.keeper().events;
            events.kernel_compensations = events.kernel_compensations.saturating_add(moved);
        }
        self.show_time();
    }

    /// `rung`: by a vCPU that met something that should not be.
    fn look_into_it(&mut self, now: Nanos, rung: bool) {
        if !self.condemned {
            let clocksource = (self.watch.host.clocksource)();
            if !trusts_the_tsc(clocksource.as_deref()) {
                self.condemned = true;
                self.disturbed = true;
                self.mark(Cause::Platform(PlatformReport::KernelMark));
                self.add(Event::KernelMark {
                    clocksource: clocksource.unwrap_or_default(),
                });
            }
        }
        // The kernel compensates from then on; the report is to tell why all the same.
        let again = if rung && !self.condemned {
            LOOK_EVERY
        } else {
            MEASURE_AGAIN
        };
        let mut visited: Vec<CpuId> = Vec::new();
        for vcpu in &self.watch.vcpus {
            visited.extend(vcpu.take_visited());
        }
        let apart = self.measure(&visited, now, again);
        if apart && self.watch.may_confine && self.confined.is_none() {
            self.confine(now);
        }
        let jumps = self.watch.vcpus.iter().filter_map(|vcpu| vcpu.take_jump());
        if let Some(by) = jumps.max()
            && !apart
            && !self.condemned
        {
            self.look_into_jump(by, now);
        }
        let leads = self
            .watch
            .vcpus
            .iter()
            .any(|vcpu| vcpu.offset_moves() > 0 && vcpu.lead_at_least() > LEAD_LEFT_ALONE);
        if self.condemned && leads {
            self.restart(RestartCause::Lead);
        } else if !self.condemned {
            let may = self.confined.is_some() || self.may_be_carried();
            // One that comes back from a CPU that is apart has the offset for that one still.
            let differ = one_offset(&self.watch.vcpus, self.watch.home.offset).is_none();
            // Among CPUs that agree threads move all the time: nobody is stopped for that.
            if may && (apart || rung || differ || self.unfinished.is) {
                self.restart(RestartCause::Skew);
            }
        }
    }

    /// Whether the vCPUs, whose threads may go to CPUs that are apart, are to go on together; tells once when they are
    /// not any more.
    fn may_be_carried(&mut self) -> bool {
        let may = self.carried.may_go_on(self.watch.vcpus.len());
        let left_apart = !may && self.carried.by() > Ticks::ZERO;
        if left_apart && !self.left_apart {
            self.add(Event::LeftApart {
                forward_ticks: self.carried.by().get(),
            });
        }
        self.left_apart = left_apart;
        may
    }

    /// Measures CPUs against the home CPU, those that were measured within `again` excepted; whether one of
    /// them is proven apart.
    fn measure(&mut self, cpus: &[CpuId], now: Nanos, again: Nanos) -> bool {
        let home = self.watch.home.cpu;
        let mut apart = false;
        let follows = !self.condemned && self.confined.is_none() && !self.left_apart;
        let mut cpus = cpus.to_vec();
        cpus.sort_unstable_by_key(|cpu| cpu.get());
        cpus.dedup();
        for cpu in cpus.into_iter().filter(|cpu| *cpu != home) {
            let known = self.measured.get(&cpu.get()).copied();
            let was_apart = known.is_some_and(|(bounds, _)| bounds.is_apart());
            apart |= was_apart;
            // Where vCPUs go on by what was measured, it is to hold.
            let again = if was_apart && follows {
                LOOK_EVERY
            } else {
                again
            };
            if known.is_some_and(|(_, at)| now.saturating_sub(at) < again) {
                continue;
            }
            let Some(bounds) = (self.watch.host.skew)(home, cpu) else {
                continue;
            };
            self.measured.insert(cpu.get(), (bounds, now));
            if bounds.is_apart() {
                apart = true;
                self.carried.know(bounds);
                self.mark(Cause::Skew {
                    a: home,
                    b: cpu,
                    bounds,
                });
                let is_known = known.is_some_and(|(known, _)| known.intersect(bounds).is_ok());
                if !(was_apart && is_known) {
                    self.add(Event::Skew {
                        cpu: cpu.get(),
                        home_cpu: home.get(),
                        at_least_ticks: bounds.at_least().get(),
                        at_most_ticks: bounds.at_most().get(),
                    });
                }
            }
        }
        apart
    }

    /// A guest's clock departed from the host's by `by`, and no CPU that it was on is apart from the others:
    /// if all agree, they jumped together.
    fn look_into_jump(&mut self, by: Ticks, now: Nanos) {
        let last = self.jump_looked_into;
        if last.is_some_and(|last| now.saturating_sub(last) < MEASURE_AGAIN) {
            return;
        }
        self.jump_looked_into = Some(now);
        let allowed = (self.watch.host.allowed)();
        self.measure(&allowed, now, LOOK_EVERY);
        if allowed.into_iter().all(|cpu| self.agrees(cpu)) {
            self.disturbed = true;
            self.mark(Cause::HostJump { by });
        }
    }

    /// Whether a CPU's counter is proven to agree with the home CPU's.
    fn agrees(&self, cpu: CpuId) -> bool {
        let bounds = self.measured.get(&cpu.get());
        cpu == self.watch.home.cpu || bounds.is_some_and(|(bounds, _)| bounds.agrees(self.bound))
    }

    /// Whether a thread that was confined may run elsewhere again, and that is to be put right: somebody who
    /// moves threads time and again is not fought every second.
    fn has_strayed(&self, now: Nanos) -> bool {
        let confined = self.confined.as_ref();
        confined.is_some_and(|(cpus, at)| {
            now.saturating_sub(*at) >= MEASURE_AGAIN && self.watch.halt.strays(cpus)
        })
    }

    /// Confines the threads to the CPUs that are proven to agree with the home CPU.
    fn confine(&mut self, now: Nanos) {
        let allowed = (self.watch.host.allowed)();
        self.measure(&allowed, now, MEASURE_AGAIN);
        let agree = |cpu: &CpuId| self.agrees(*cpu);
        let cpus: Vec<_> = allowed.into_iter().filter(agree).collect();
        let confined = self.watch.halt.confine(&cpus);
        self.confined = confined.is_ok().then(|| (cpus.clone(), now));
        self.add(Event::Confined {
            cpus: cpus.iter().map(|cpu| cpu.get()).collect(),
            error: confined.err(),
        });
    }

    /// What a CPU's counter is ahead of the home CPU's by, where that is proven to be anything.
    fn skew(&self, cpu: CpuId) -> TscDelta {
        match self.measured.get(&cpu.get()) {
            Some((bounds, _)) if bounds.is_apart() => bounds.middle_toward_zero(),
            _ => TscDelta::ZERO,
        }
    }

    fn restart(&mut self, cause: RestartCause) {
        let keeper = self.watch.keeper.clone();
        let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.is_stopped() {
            // The clocks are in another's hands; what is wrong will still be so when the guest goes on.
            self.unfinished.put_off();
            return;
        }
        let home = keeper.home_offset.unwrap_or(self.watch.home.offset);
        self.watch.halt.close();
        let mut tries = TRIES;
        let mut taken = std::mem::take(&mut self.unfinished.taken);
        let done = loop {
            tries -= 1;
            let done = restart(
                self.watch.rates,
                Home {
                    cpu: self.watch.home.cpu,
                    offset: home,
                },
                |cpu| self.skew(cpu),
                // Beyond what is measured, and what passes between two readings.
                self.bound.as_delta().unwrap_or(TscDelta::ZERO),
                cause == RestartCause::Lead,
                &mut taken,
                |order| self.watch.halt.ask(order),
            );
            // Somebody moved a thread that waits. Those that were set meanwhile are set again.
            let moved = matches!(&done, Err(error) if error.is_move());
            if !moved || tries == 0 {
                break done;
            }
        };
        self.watch.halt.open();
        match &done {
            Ok(_) => self.unfinished.done(),
            Err(_) => self.unfinished.failed(taken),
        }
        let event = match done {
            Ok(None) => return,
            Ok(Some(restarted)) => {
                self.disturbed = true;
                keeper.home_offset = Some(restarted.home);
                if cause == RestartCause::Skew && self.confined.is_none() {
                    self.carried.add(home, restarted.home);
                }
                Event::Restart {
                    cause,
                    forward_ticks: restarted.forward.iter().map(|ticks| ticks.get()).collect(),
                    forward_ns: (restarted.forward.iter())
                        .filter_map(|ticks| keeper.nanos(*ticks))
                        .collect(),
                    seen_in_force: restarted.seen,
                }
            }
            Err(error) => Event::RestartFailed {
                cause,
                reason: one_line(&error),
            },
        };
        keeper.events.add(host_clock::boottime(), event);
    }
}

/// Whether a host with this clocksource takes its TSC for stable, as far as that shows. A host that is a
/// guest itself keeps time by its hypervisor's clock, which says nothing against its TSC; one that does not
/// tell is taken for one that trusts it, as most do.
fn trusts_the_tsc(clocksource: Option<&str>) -> bool {
    const OF_HYPERVISORS: [&str; 3] = ["kvm-clock", "hyperv", "xen"];
    clocksource.is_none_or(|name| {
        name.starts_with("tsc") || OF_HYPERVISORS.iter().any(|other| name.starts_with(other))
    })
}

#[cfg(test)]
mod tests;
