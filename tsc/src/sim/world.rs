//! The run itself: events in the order of true time.

mod timekeeper;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::guest::{Op, Program, Shared};
use super::host::{Clock, Counter, HostEvent};
use super::observe::Observer;
use super::report::{Boot, PolicyKind, Report};
use super::rng::Rng;
use super::scenario::{MAX_CPUS, Scenario};
use crate::offset::{guest_unscaled, offset_unscaled};
use crate::policy::{Entry, Left, Load, Policy};
use crate::skew::SkewMatrix;
use crate::stability::{Cause, PlatformReport, Stability};
use crate::units::{CpuId, GuestTsc, HostTsc, Khz, Nanos, TscOffset};

/// The host's tick, at which running guests exit and halted ones are woken (`CONFIG_HZ_1000`).
const TICK_NS: u64 = 1_000_000;
/// How often the timekeeper measures skews, by how many exchanges a pair. Ours.
const MEASURE_NS: u64 = 100_000_000;
const EXCHANGES: usize = 32;
/// From a load to the guest's first instruction. Ours, of the order of a VM entry.
const ENTRY_NS: u64 = 500;
/// Room for the marks of all CPUs ([`MAX_CPUS`]) and of all their pairs: 8 + 8 x 7 / 2.
const MARKS: usize = 36;
/// What counters read when the host's true time begins: some hours of uptime, so that none is near zero.
const BOOT_TICKS: u64 = 40_000_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Tick,
    Measure,
    Host(HostEvent),
    Load { vcpu: usize, cpu: usize, epoch: u64 },
    SliceEnd { vcpu: usize, epoch: u64 },
    StepEnd { vcpu: usize, epoch: u64 },
    AskAgain { vcpu: usize, epoch: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for the start-up interrupt.
    Offline,
    Running {
        cpu: usize,
    },
    /// Off the CPU, its load is an event to come.
    Coming,
    Halted,
}

#[derive(Debug)]
struct Vcpu {
    state: State,
    /// Counts loads and puts, so that events of an earlier stay are recognised.
    epoch: u64,
    left: Option<(usize, HostTsc, Nanos)>,
    /// Where the scheduler last ran it.
    ran_on: Option<usize>,
    /// When its policy wants to be asked again; a later wish takes the place of an earlier one.
    asked_for: Option<u64>,
    offset: TscOffset,
    policy: Box<dyn Policy>,
    program: Program,
    /// What remains of the present step, in nanoseconds, and since when it runs.
    remaining: u64,
    resumed: u64,
}

#[derive(Debug)]
pub(super) struct World<'a> {
    scenario: &'a Scenario,
    kind: PolicyKind,
    seed: u64,
    /// Whether the guest is led by true time, whatever its TSC reads.
    led: bool,
    rng: Rng,
    /// The exchanges' delays: apart, so that measuring changes nothing for the scheduler.
    delays: Rng,
    now: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// The events that the queue refers to.
    slots: Vec<Event>,
    cpus: Vec<Counter>,
    occupied: Vec<Option<usize>>,
    clock: Clock,
    vcpus: Vec<Vcpu>,
    shared: Shared,
    observer: Observer,
    stability: Stability<MARKS>,
    skews: Option<SkewMatrix<MAX_CPUS>>,
    offset_writes: u64,
    moves: u64,
    booted_at: Option<u64>,
}

fn cpu_id(cpu: usize) -> CpuId {
    CpuId::new(u32::try_from(cpu).unwrap_or(u32::MAX))
}

impl<'a> World<'a> {
    pub(super) fn new(scenario: &'a Scenario, kind: PolicyKind, seed: u64) -> Self {
        assert!(scenario.is_valid(), "{} cannot be run", scenario.name);
        let host = &scenario.host;
        let khz = Khz::new(host.nominal_khz).expect("a scenario has a rate");
        let cpus: Vec<_> = host
            .cpus
            .iter()
            .map(|cpu| Counter::new(BOOT_TICKS.wrapping_add_signed(cpu.offset), cpu.hz))
            .collect();
        let origin = cpus[0].read(0);
        let mut world = Self {
            scenario,
            kind,
            seed,
            led: false,
            rng: Rng::new(seed),
            delays: Rng::new(!seed),
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            slots: Vec::new(),
            occupied: vec![None; cpus.len()],
            clock: Clock::new(host.clocksource, khz.hz().get(), origin),
            vcpus: Vec::new(),
            shared: Shared::default(),
            observer: Observer::new(scenario.vcpus, host.nominal_khz, host.message_ns.0),
            stability: Stability::new(),
            skews: None,
            offset_writes: 0,
            moves: 0,
            booted_at: None,
            cpus,
        };
        if host.declared_unstable {
            world
                .stability
                .mark(Cause::Platform(PlatformReport::NotInvariant), Nanos::ZERO);
        }
        if kind.is_targeted() {
            world.measure();
        }
        // Both vCPUs' TSCs are set to 0 on CPU 0 at time 0, with the same offset.
        let start = world.clock.read(0, origin);
        let clock_error = world.clock_error(khz);
        for vcpu in 0..scenario.vcpus {
            let policy = timekeeper::policy(kind, khz, start, clock_error);
            world.vcpus.push(Vcpu {
                state: if vcpu == 0 {
                    State::Coming
                } else {
                    State::Offline
                },
                epoch: 0,
                // Ours is told where the offset was set; those of 2010 did not ask.
                left: kind.is_targeted().then_some((0, origin, start)),
                ran_on: None,
                asked_for: None,
                offset: offset_unscaled(origin, GuestTsc::new(0)),
                policy,
                program: Program::new(vcpu == 0),
                remaining: 0,
                resumed: 0,
            });
        }
        if host.halts_in_idle {
            world
                .cpus
                .iter_mut()
                .for_each(|cpu| cpu.set_halted(0, true));
        }
        world.at(
            0,
            Event::Load {
                vcpu: 0,
                cpu: 0,
                epoch: 0,
            },
        );
        world.at(TICK_NS, Event::Tick);
        world.at(MEASURE_NS, Event::Measure);
        for &(at, event) in &host.events {
            world.at(at, Event::Host(event));
        }
        world
    }

    /// Leads the guest by true time instead of what it reads, so that whatever it does, and with it all
    /// that the scheduler does, is the same under every policy.
    pub(super) fn led_by_true_time(self) -> Self {
        Self { led: true, ..self }
    }

    /// What the guest's TSC reads on a host without fault.
    fn true_reading(&self) -> GuestTsc {
        let ticks = u128::from(self.now) * u128::from(self.scenario.host.nominal_khz) / 1_000_000;
        GuestTsc::new(u64::try_from(ticks % (1 << 64)).unwrap_or(0))
    }

    fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.slots.push(event);
        self.events
            .push(Reverse((time, self.sequence, self.slots.len() - 1)));
    }

    pub(super) fn run(mut self) -> Report {
        while let Some(Reverse((time, _, slot))) = self.events.pop() {
            let end = if self.booted_at.is_some() {
                self.scenario.horizon_ns
            } else {
                self.scenario.patience_ns
            };
            if time > end || self.shared.failed.is_some() {
                break;
            }
            self.now = time;
            match self.slots[slot] {
                Event::Tick => self.tick(),
                Event::Measure => {
                    if self.kind.is_targeted() {
                        self.measure();
                    }
                    self.at(self.now + MEASURE_NS, Event::Measure);
                }
                Event::Host(event) => self.host_event(event),
                Event::Load { vcpu, cpu, epoch } => {
                    if self.vcpus[vcpu].epoch == epoch {
                        self.load(vcpu, cpu);
                    }
                }
                Event::SliceEnd { vcpu, epoch } => {
                    if self.vcpus[vcpu].epoch == epoch {
                        self.slice_end(vcpu);
                    }
                }
                Event::AskAgain { vcpu, epoch } => {
                    if let State::Running { cpu } = self.vcpus[vcpu].state
                        && self.vcpus[vcpu].epoch == epoch
                        && self.vcpus[vcpu].asked_for == Some(self.now)
                    {
                        self.entry(vcpu, cpu, false);
                    }
                }
                Event::StepEnd { vcpu, epoch } => {
                    if self.vcpus[vcpu].epoch == epoch {
                        self.step(vcpu);
                    }
                }
            }
        }
        self.report()
    }

    fn report(self) -> Report {
        let boot = match (self.booted_at, self.shared.failed) {
            (Some(at), _) => Boot::Booted { at: Nanos::new(at) },
            (None, Some(at)) => Boot::Failed { at },
            (None, None) => Boot::Hung {
                at: self.vcpus[0].program.stage(),
            },
        };
        let nanos = |nanos: i128| Nanos::new(u64::try_from(nanos).unwrap_or(u64::MAX));
        Report {
            scenario: self.scenario.name,
            policy: self.kind,
            seed: self.seed,
            boot,
            backwards: self.observer.own,
            across: self.observer.across,
            largest_lag: nanos(self.observer.largest_lag),
            largest_lead: nanos(self.observer.largest_lead),
            erased: nanos(self.observer.lasting_lag()),
            offset_writes: self.offset_writes,
            moves: self.moves,
            host_mark: self.stability.host(),
            marks: self.stability.marks().collect(),
            points: self.observer.points,
            watched: Nanos::new(self.now),
        }
    }

    /// The counter of `cpu` and the monotonic clock as that CPU reads them.
    fn clocks(&self, cpu: usize) -> (HostTsc, Nanos) {
        let tsc = self.cpus[cpu].read(self.now);
        (tsc, self.clock.read(self.now, tsc))
    }

    fn host_event(&mut self, event: HostEvent) {
        match event {
            HostEvent::Rate { cpu, hz } => self.cpus[cpu].set_rate(self.now, hz),
            HostEvent::Write { cpu, by } => self.cpus[cpu].write(self.now, by),
            HostEvent::Pause { nanos } => {
                self.cpus
                    .iter_mut()
                    .for_each(|cpu| cpu.pause(self.now, nanos));
                // Whatever was to happen happens that much later.
                let events = std::mem::take(&mut self.events);
                for Reverse((time, sequence, slot)) in events {
                    self.events.push(Reverse((time + nanos, sequence, slot)));
                }
                for vcpu in &mut self.vcpus {
                    vcpu.resumed += nanos;
                }
            }
        }
    }

    fn tick(&mut self) {
        let (tsc, _) = self.clocks(0);
        self.clock.tick(self.now, tsc);
        for vcpu in 0..self.vcpus.len() {
            match self.vcpus[vcpu].state {
                State::Running { cpu } => self.entry(vcpu, cpu, false),
                State::Halted => self.wake(vcpu),
                State::Offline if self.shared.started => self.wake(vcpu),
                State::Offline | State::Coming => {}
            }
        }
        self.at(self.now + TICK_NS, Event::Tick);
    }

    fn load(&mut self, vcpu: usize, wanted: usize) {
        let free = |cpu: &usize| self.occupied[*cpu].is_none();
        // A CPU that another vCPU runs on gives way to the next that is free.
        let count = self.cpus.len();
        let Some(cpu) = (0..count).map(|i| (wanted + i) % count).find(free) else {
            return;
        };
        self.occupied[cpu] = Some(vcpu);
        if self.scenario.host.halts_in_idle {
            self.cpus[cpu].set_halted(self.now, false);
        }
        let (tsc, at) = self.clocks(cpu);
        let left = self.vcpus[vcpu].left.map(|(from, tsc, at)| Left {
            cpu: cpu_id(from),
            tsc,
            at,
            tsc_at_move: (from != cpu).then(|| self.cpus[from].read(self.now)),
        });
        let from = self.vcpus[vcpu].left.map_or(cpu, |left| left.0);
        let ran_on = self.vcpus[vcpu].ran_on.replace(cpu);
        self.moves += u64::from(ran_on.is_some_and(|ran_on| ran_on != cpu));
        let load = Load {
            cpu: cpu_id(cpu),
            tsc,
            at,
            left,
            offset: self.vcpus[vcpu].offset,
            host_unstable: self.stability.host().is_some(),
            fault: self.fault(from, cpu),
        };
        let decision = self.vcpus[vcpu].policy.load(&load);
        self.obey(vcpu, &decision);
        if decision.request_entry {
            self.entry(vcpu, cpu, true);
        }
        let again = decision.ask_again;
        let slice = self.rng.between(self.scenario.scheduling.slice_ns);
        let resumed = self.now + ENTRY_NS;
        let this = &mut self.vcpus[vcpu];
        this.state = State::Running { cpu };
        this.epoch += 1;
        this.resumed = resumed;
        let (epoch, step_end) = (this.epoch, resumed + this.remaining);
        if let Some(after) = again {
            self.ask_again(vcpu, after, epoch);
        }
        self.at(resumed + slice, Event::SliceEnd { vcpu, epoch });
        self.at(step_end, Event::StepEnd { vcpu, epoch });
    }

    fn entry(&mut self, vcpu: usize, cpu: usize, requested: bool) {
        let (tsc, at) = self.clocks(cpu);
        let entry = Entry {
            cpu: cpu_id(cpu),
            tsc,
            at,
            offset: self.vcpus[vcpu].offset,
            requested,
            fault: self.fault(cpu, cpu),
        };
        let decision = self.vcpus[vcpu].policy.entry(&entry);
        self.obey(vcpu, &decision);
        if let (Some(after), false) = (decision.ask_again, requested) {
            let epoch = self.vcpus[vcpu].epoch;
            self.ask_again(vcpu, after, epoch);
        }
    }

    fn ask_again(&mut self, vcpu: usize, after: Nanos, epoch: u64) {
        let at = self.now + after.get();
        self.vcpus[vcpu].asked_for = Some(at);
        self.at(at, Event::AskAgain { vcpu, epoch });
    }

    /// Takes a vCPU off its CPU, with what remains of its step.
    fn put(&mut self, vcpu: usize, state: State) -> usize {
        let State::Running { cpu } = self.vcpus[vcpu].state else {
            return 0;
        };
        let (tsc, at) = self.clocks(cpu);
        self.occupied[cpu] = None;
        if self.scenario.host.halts_in_idle {
            self.cpus[cpu].set_halted(self.now, true);
        }
        let this = &mut self.vcpus[vcpu];
        this.left = Some((cpu, tsc, at));
        this.epoch += 1;
        this.state = state;
        this.remaining = this
            .remaining
            .saturating_sub(self.now.saturating_sub(this.resumed));
        cpu
    }

    fn elsewhere(&mut self, cpu: usize) -> usize {
        let count = self.cpus.len() as u64;
        if count < 2 {
            return cpu;
        }
        let steps = self.rng.between((1, count - 1));
        (cpu + usize::try_from(steps).unwrap_or(0)) % self.cpus.len()
    }

    fn come(&mut self, vcpu: usize, cpu: usize, after: u64) {
        let epoch = self.vcpus[vcpu].epoch;
        self.at(self.now + after, Event::Load { vcpu, cpu, epoch });
    }

    fn slice_end(&mut self, vcpu: usize) {
        let scheduling = self.scenario.scheduling;
        let cpu = self.put(vcpu, State::Coming);
        if self.rng.chance(scheduling.direct_move) {
            let to = self.elsewhere(cpu);
            let after = self.rng.between(scheduling.move_ns);
            self.come(vcpu, to, after);
        } else {
            let moves = self.rng.chance(scheduling.preempted_move);
            let to = if moves { self.elsewhere(cpu) } else { cpu };
            let after = self.rng.between(scheduling.preempted_ns);
            self.come(vcpu, to, after);
        }
    }

    fn wake(&mut self, vcpu: usize) {
        let scheduling = self.scenario.scheduling;
        let last = self.vcpus[vcpu].ran_on.unwrap_or(1) % self.cpus.len();
        let to = if self.rng.chance(scheduling.wake_move) {
            self.elsewhere(last)
        } else {
            last
        };
        let after = self.rng.between(scheduling.wake_ns);
        let this = &mut self.vcpus[vcpu];
        this.state = State::Coming;
        this.epoch += 1;
        this.remaining = Program::tick_work();
        self.come(vcpu, to, after);
    }

    /// The guest's present step is done: it reads its TSC and goes on.
    fn step(&mut self, vcpu: usize) {
        let State::Running { cpu } = self.vcpus[vcpu].state else {
            return;
        };
        let reading = guest_unscaled(self.cpus[cpu].read(self.now), self.vcpus[vcpu].offset);
        self.observer.read(vcpu, self.now, reading);
        let led_by = if self.led {
            self.true_reading()
        } else {
            reading
        };
        let this = &mut self.vcpus[vcpu];
        // The emulated PIT follows the host's real time.
        match this.program.step(led_by.get(), self.now, &mut self.shared) {
            Op::Run(nanos) => {
                this.remaining = nanos;
                this.resumed = self.now;
                let epoch = this.epoch;
                self.at(self.now + nanos, Event::StepEnd { vcpu, epoch });
            }
            Op::Halt => {
                this.remaining = 0;
                self.put(vcpu, State::Halted);
            }
        }
        if self.shared.booted && self.booted_at.is_none() {
            self.booted_at = Some(self.now);
        }
    }
}
