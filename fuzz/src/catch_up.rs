//! Histories of a vCPU on CPUs that differ, under the targeted policy.
//!
//! The model counts in millionths of ticks (kilohertz times nanoseconds), which are exact. In every
//! history the guest's clock never goes back, loses no time that passed and gains none beyond what
//! the monotonic clock cannot tell; and where nothing is wrong nothing is done.

use arbitrary::Arbitrary;
use tsc::policy::{
    CatchUp, Decision, Entry, Fault, Left, Line, Load, Policy, Slew, Targeted, TargetedConfig,
};
use tsc::skew::SkewBounds;
use tsc::stability::{Cause, PlatformReport, Stability};
use tsc::{CpuId, GuestTsc, HostTsc, Khz, Nanos, Ppm, TickRate, Ticks, TscDelta, TscOffset};

use crate::input::{decode, khz};

const CPUS: usize = 4;
const MILLION: i128 = 1_000_000;
/// How soon the policy asks to be asked again.
const RECHECK: Nanos = Nanos::new(50_000);

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    /// The vCPU runs for so many nanoseconds.
    Run(u32),
    /// A tick, or the policy's own wish: it may look at the vCPU.
    Look,
    /// The vCPU is put and, so many nanoseconds later, loaded; the skew is told with this error.
    Load {
        cpu: u8,
        after: u32,
        told: Option<i32>,
    },
    /// A CPU's rate becomes the highest, less up to half of it.
    Rate { cpu: u8, less: u16 },
    /// A CPU is seen at a rate higher than any before.
    Raise { cpu: u8, ppm: u16 },
    /// Something is held against CPUs, rightly or not.
    Mark { a: u8, b: u8 },
    /// Another hand moves the offset.
    Meddle(i32),
}

#[derive(Arbitrary, Debug)]
struct History {
    guest: u64,
    host: u64,
    /// Beyond 1 GHz.
    khz: u32,
    ahead: [i32; CPUS],
    /// The clock ticks this often: nanoseconds beyond 1. A clock that ticks each nanosecond is said to
    /// have no error: what it rounds by is the policy's to know.
    clock: u16,
    /// Parts per million.
    tolerance: u16,
    slew: Option<u32>,
    steps: Vec<Step>,
}

/// Moves, samples, rates and marks in any order.
pub fn tsc_catchup(data: &[u8]) {
    let Some(history) = decode::<History>(data) else {
        return;
    };
    let mut world = World::new(&history);
    for step in history.steps.iter().take(64) {
        world.step(*step);
    }
}

struct World {
    policy: Targeted,
    slew: Option<u32>,
    tolerance_ppm: i128,
    /// The clock's period in nanoseconds.
    clock: u64,
    /// True time in nanoseconds, and where the guest's line is then, in millionths.
    now: u64,
    line: i128,
    rate: Khz,
    /// What bending the line did to it, at most, in ticks: each time it is rounded down, and bent when
    /// the clock last ticked.
    bent: i128,
    counters: [(u64, i128, Khz); CPUS],
    start: u64,
    cpu: usize,
    offset: TscOffset,
    seen: GuestTsc,
    stability: Stability<16>,
    /// No counter is anything but right, and nobody says otherwise.
    ideal: bool,
    meddled: bool,
    /// The guest is behind since something was wrong, and a slew gives the time back little by little,
    /// wherever the guest runs by then.
    owed: bool,
    /// What was given at looks.
    given: i128,
}

impl World {
    fn new(history: &History) -> Self {
        let rate = khz(1_000_000 + history.khz % 5_000_000);
        let clock = 1 + u64::from(history.clock);
        let slew = history.slew.map(|ppm| 1 + ppm % 500_000);
        let catch_up = slew.map_or(CatchUp::Step, |ppm| {
            let bound = Ppm::new(ppm).and_then(Slew::new);
            CatchUp::Slew(bound.expect("within the bounds of a slew"))
        });
        let tolerance = u32::from(history.tolerance % 2_000);
        let first = history.ahead[0];
        let start = GuestTsc::new(history.guest);
        let config = TargetedConfig {
            line: Line::through(start, Nanos::ZERO, TickRate::new(rate)),
            catch_up,
            clock_error: Nanos::new(if clock == 1 { 0 } else { clock }),
            rate_tolerance: Ppm::new(tolerance).expect("below the whole"),
            recheck: RECHECK,
        };
        let counter = |ahead: i32| history.host.wrapping_add_signed(ahead.into());
        let mut world = Self {
            policy: Targeted::new(config),
            slew,
            tolerance_ppm: tolerance.into(),
            clock,
            now: 0,
            line: 0,
            rate,
            bent: 0,
            counters: history.ahead.map(|ahead| (counter(ahead), 0, rate)),
            start: history.guest,
            cpu: 0,
            offset: TscOffset::new(history.guest.wrapping_sub(counter(first))),
            seen: start,
            stability: Stability::new(),
            ideal: history.ahead.iter().all(|ahead| *ahead == first),
            meddled: false,
            owed: false,
            given: 0,
        };
        let load = world.load(None, None);
        let decision = world.policy.load(&load);
        world.obey(&decision, load.fault);
        world
    }

    fn tsc(&self, cpu: usize) -> HostTsc {
        let (start, counted, _) = self.counters[cpu];
        let ticks = u64::try_from(counted / MILLION).expect("a few minutes");
        HostTsc::new(start.wrapping_add(ticks))
    }

    fn clock(&self) -> Nanos {
        Nanos::new(self.now / self.clock * self.clock)
    }

    fn reading(&self) -> GuestTsc {
        GuestTsc::new(self.tsc(self.cpu).get().wrapping_add(self.offset.get()))
    }

    /// The guest's reading less its line, in ticks rounded up.
    fn lead(&self) -> i128 {
        let line = u64::try_from(self.line / MILLION).expect("a few minutes");
        let ahead = self
            .reading()
            .get()
            .wrapping_sub(self.start.wrapping_add(line));
        ahead.cast_signed().into()
    }

    /// Ticks in so many nanoseconds, rounded up.
    fn ticks(&self, nanos: u64) -> i128 {
        i128::from(nanos) * i128::from(self.rate.get()) / MILLION + 1
    }

    fn pass(&mut self, nanos: u64) {
        self.now += nanos;
        self.line += i128::from(nanos) * i128::from(self.rate.get());
        for (_, counted, rate) in &mut self.counters {
            *counted += i128::from(nanos) * i128::from(rate.get());
        }
    }

    fn fault(&self, from: usize, told: Option<TscDelta>) -> Fault {
        let (from, to) = (id(from), id(self.cpu));
        Fault {
            pair: self.stability.between(from, to).is_some(),
            lags: self.stability.on(to).or(self.stability.on(from)).is_some(),
            skew: told,
        }
    }

    fn load(&self, left: Option<Left>, told: Option<TscDelta>) -> Load {
        let from = left.map_or(self.cpu, |left| {
            usize::try_from(left.cpu.get()).expect("few CPUs")
        });
        Load {
            cpu: id(self.cpu),
            tsc: self.tsc(self.cpu),
            at: self.clock(),
            left,
            offset: self.offset,
            host_unstable: self.stability.host().is_some(),
            fault: self.fault(from, told),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Run(nanos) => {
                self.pass(nanos.into());
                self.read();
            }
            Step::Look => self.look(),
            Step::Load { cpu, after, told } => {
                self.put_and_load(usize::from(cpu) % CPUS, after.into(), told);
            }
            Step::Rate { cpu, less } => {
                let highest = u64::from(self.rate.get());
                let rate = highest - highest * u64::from(less) / 131_072;
                self.counters[usize::from(cpu) % CPUS].2 =
                    khz(u32::try_from(rate).expect("not above the highest"));
                self.ideal &= less == 0;
            }
            Step::Raise { cpu, ppm } => {
                let rate = u64::from(self.rate.get());
                let rate = (rate + rate * u64::from(ppm) / 1_000_000).min(u32::MAX.into());
                let before = self.ticks(self.clock);
                self.rate = khz(u32::try_from(rate).expect("at most 2^32 - 1"));
                self.policy.raise_rate(self.clock(), self.rate);
                self.bent += self.ticks(self.clock) - before + 2;
                self.counters[usize::from(cpu) % CPUS].2 = self.rate;
                self.ideal &= ppm == 0;
            }
            Step::Mark { a, b } => {
                let (a, b) = (id(usize::from(a) % CPUS), id(usize::from(b) % CPUS));
                let cause = match (a == b, a.get()) {
                    (true, 0) => Cause::Platform(PlatformReport::NotInvariant),
                    (true, _) => Cause::FellBehind {
                        cpu: a,
                        by: Ticks::new(1),
                    },
                    (false, _) => Cause::Skew {
                        a,
                        b,
                        bounds: SkewBounds::exactly(TscDelta::new(1)),
                    },
                };
                self.stability.mark(cause, self.clock());
                self.ideal = false;
            }
            // Once: a second hand could put back what the first one took.
            Step::Meddle(by) if !self.meddled => {
                self.offset = self.offset.wrapping_add(TscDelta::new(by.into()));
                self.meddled = by != 0;
            }
            Step::Meddle(_) => {}
        }
    }

    /// The guest reads its TSC: never less than before.
    fn read(&mut self) {
        let reading = self.reading();
        let step = reading.wrapping_since(self.seen);
        assert!(self.meddled || !step.is_negative(), "back by {step}");
        self.seen = reading;
    }

    /// Carries a decision out, and holds it to what is promised of all.
    fn obey(&mut self, decision: &Decision, fault: Fault) {
        if self.meddled {
            assert_eq!(*decision, Decision::NOTHING, "two cooks");
        }
        let innocent = !fault.pair && !fault.lags && decision.accuse.is_none();
        if self.ideal || (innocent && !self.owed) {
            assert_eq!(*decision, Decision::NOTHING, "nothing is wrong");
        }
        if innocent {
            assert!(
                decision.adjust.is_none_or(|by| !by.is_negative()),
                "given back, not taken"
            );
        }
        if let Some(cause) = decision.accuse {
            self.stability.mark(cause, self.clock());
        }
        if let Some(by) = decision.adjust {
            self.offset = self.offset.wrapping_add(by);
        }
        self.owed = self.slew.is_some() && (self.owed || !innocent) && self.lead() < 0;
        assert!(decision.ask_again.is_none_or(|after| after == RECHECK));
        self.read();
    }

    fn look(&mut self) {
        let fault = self.fault(self.cpu, None);
        let decision = self.policy.entry(&Entry {
            cpu: id(self.cpu),
            tsc: self.tsc(self.cpu),
            at: self.clock(),
            offset: self.offset,
            requested: false,
            fault,
        });
        self.obey(&decision, fault);
        if self.meddled {
            return;
        }
        assert!(!fault.lags || decision.ask_again == Some(RECHECK));
        if let Some(by) = decision.adjust {
            assert!(by.get() > 0, "forward only: {by}");
            let past = self.lead() - self.bent;
            assert!(past <= 0, "past the line by {past}");
            assert_eq!(decision.ask_again, Some(RECHECK));
            self.given += i128::from(by.get());
        }
        if let Some(ppm) = self.slew {
            let passed = i128::from(self.now) * i128::from(self.rate.get());
            assert!(self.given * MILLION * MILLION <= passed * i128::from(ppm));
        } else if fault.lags || decision.accuse.is_some() {
            // All is given back but what the clock cannot tell: its period, and the policy's patience
            // with it; and what the line is rounded down by.
            let rounding = 6 + self.bent;
            let least = -2 * self.ticks(self.clock) - rounding;
            assert!(self.lead() >= least, "{} behind", self.lead());
        }
    }

    fn put_and_load(&mut self, cpu: usize, after: u64, told: Option<i32>) {
        self.read();
        let (from, lead) = (self.cpu, self.lead());
        let (tsc, at) = (self.tsc(from), self.clock());
        self.pass(after);
        self.cpu = cpu;
        let (here, there) = (self.tsc(cpu), self.tsc(from));
        let told = told.map(|wrong| {
            let skew = here.wrapping_since(there);
            TscDelta::new(skew.get().wrapping_add(wrong.into()))
        });
        let left = Left {
            cpu: id(from),
            tsc,
            at,
            tsc_at_move: (from != cpu).then_some(there),
        };
        let load = self.load(Some(left), told);
        let before = self.lead();
        let decision = self.policy.load(&load);
        self.obey(&decision, load.fault);
        if self.meddled {
            return;
        }
        assert!(!load.fault.lags || decision.ask_again == Some(RECHECK));

        // What can pass for innocent: the tolerance of the rate, and three times the clock's error,
        // twice in the policy's judgment and once in the clock's own two readings; and the roundings.
        let allowed = 2 * self.ticks(self.clock) + self.ticks(1) + 3;
        let tolerated = (self.ticks(after + self.clock) + allowed) * self.tolerance_ppm / MILLION;
        let slack = tolerated + allowed + self.ticks(self.clock) + 8 + self.bent;
        let now = self.lead();
        assert!(
            now <= lead.max(0) + slack,
            "gained {} of {slack}",
            now - lead
        );
        // A slew gives back later what a slow counter lost meanwhile.
        let kept = if self.slew.is_some() && from == cpu {
            before
        } else {
            lead
        };
        assert!(now >= kept.min(0) - slack, "lost {} of {slack}", kept - now);
    }
}

fn id(cpu: usize) -> CpuId {
    CpuId::new(u32::try_from(cpu).expect("few CPUs"))
}
