//! A guest's watch, fed by whoever likes: samples at exits, looks, beats, and vCPUs that stand anywhere.
//!
//! As long as the looks are what a vCPU's thread can take of a clock that exists, nothing is found that
//! did not happen, and the bounds of the error hold the true one. Once they are not, anything may be
//! found, and nothing may fail.

use arbitrary::Arbitrary;
use tsc::watch::{
    Beat, Beats, ClockWatch, Departure, ErrorBounds, Exits, Finding, History, Look, Sighting,
    Standing, Stop, restart,
};
use tsc::{
    CpuId, GuestTsc, HostTsc, Khz, Nanos, NanosDelta, Ppm, RatioFormat, Svm, TickRate, Ticks,
    TscDelta, TscOffset, TscRatio, Vmx,
};

use crate::input::{decode, khz};

const MILLION: i128 = 1_000_000;
const STRETCHES: usize = 5;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    /// The vCPU leaves the guest: a counter and a CPU, this much later or anything at all.
    Exit { later: Result<u32, u64>, cpu: u8 },
    /// A look, so much later; how long its two readings of the TSC and the clock's last tick were ago.
    Look {
        after: u32,
        before: u16,
        behind: u16,
        stale: u16,
    },
    /// The guest's clock is moved, by whomever: and its offset is, or is not.
    Move { by: i32, by_offset: bool },
    /// The clock was set on purpose.
    BeginAnew,
    /// A look that no thread takes.
    Nonsense {
        before: u64,
        at: u64,
        late: u64,
        after: u64,
        offset: u64,
    },
    /// The watch beats.
    Beat {
        boottime: u64,
        monotonic: u64,
        continued: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Watched {
    /// Beyond 1 MHz.
    khz: u32,
    /// The guest's clock runs at another rate by so much of the tolerance, in 128ths.
    share: i8,
    /// In parts per million.
    tolerance: u16,
    /// The clock ticks this often: nanoseconds beyond 1.
    late: u16,
    start: (u64, u64, u64),
    stride: u64,
    period: (u64, u64),
    bits: u64,
    home: u64,
    standings: Vec<(u64, u64, u64, i64)>,
    steps: Vec<Step>,
}

/// A guest's watch: it claims what is so, or nothing.
pub fn tsc_watch(data: &[u8]) {
    let Some(input) = decode::<Watched>(data) else {
        return;
    };
    check_restart::<Vmx>(&input);
    check_restart::<Svm>(&input);
    let mut guest = Guest::new(&input);
    let (tsc, cpu) = (HostTsc::new(input.start.0), CpuId::new(0));
    let mut exits = Exits::begin(tsc, cpu, Ticks::new(input.stride));
    let mut seen = Seen {
        tsc,
        cpu,
        since_look: 0,
    };
    let first = Beat {
        boottime: Nanos::new(input.start.1),
        monotonic: Nanos::new(input.start.2),
        continued: 0,
    };
    let (period, slack) = (Nanos::new(input.period.0), Nanos::new(input.period.1));
    let mut beats = Beats::begin(period, slack, first);
    let mut last_beat = first;
    for step in input.steps.iter().take(64) {
        match *step {
            Step::Exit { later, cpu } => {
                let tsc = match later {
                    Ok(ticks) => HostTsc::new(seen.tsc.get().wrapping_add(ticks.into())),
                    Err(any) => HostTsc::new(any),
                };
                let cpu = CpuId::new(u32::from(cpu % 3));
                seen.check(exits.sample(tsc, cpu), tsc, cpu, input.stride);
                assert_eq!((exits.tsc(), exits.cpu()), (tsc, cpu));
            }
            Step::Beat {
                boottime,
                monotonic,
                continued,
            } => {
                let beat = Beat {
                    boottime: Nanos::new(boottime),
                    monotonic: Nanos::new(monotonic),
                    continued: continued.into(),
                };
                check_stop(beats.beat(beat), last_beat, beat, period, slack);
                last_beat = beat;
            }
            _ => guest.step(*step),
        }
    }
}

/// What a vCPU's thread has seen, in the plainest way.
struct Seen {
    tsc: HostTsc,
    cpu: CpuId,
    since_look: u128,
}

impl Seen {
    fn check(&mut self, sighting: Option<Sighting>, tsc: HostTsc, cpu: CpuId, stride: u64) {
        // On the circle: how far on, or back if that is nearer.
        let by = tsc.get().wrapping_sub(self.tsc.get()).cast_signed();
        let back = (by < 0).then(|| Ticks::new(by.unsigned_abs()));
        let on = u128::from(tsc.get().wrapping_sub(self.tsc.get()));
        let expected = if cpu != self.cpu {
            Some(Sighting::Moved {
                from: self.cpu,
                backwards: back,
            })
        } else if self.since_look + on <= u128::from(stride) {
            None
        } else {
            Some(back.map_or(Sighting::Due, Sighting::Backwards))
        };
        // With a stride of half the circle or more a step back can pass for time; such a stride is
        // 30 years and more.
        assert_eq!(sighting, expected);
        self.since_look = match sighting {
            None => self.since_look + on,
            Some(_) => 0,
        };
        (self.tsc, self.cpu) = (tsc, cpu);
    }
}

/// A stop is told only when the clock says so, and with its bounds.
fn check_stop(stop: Option<Stop>, last: Beat, now: Beat, period: Nanos, slack: Nanos) {
    let passed = now.boottime.get().saturating_sub(last.boottime.get());
    let overdue = passed.saturating_sub(period.get());
    let Some(stop) = stop else {
        return assert!(overdue <= slack.get());
    };
    assert!(overdue > slack.get() && passed > 0);
    assert_eq!((stop.at_least.get(), stop.at_most.get()), (overdue, passed));
    assert!(stop.host_slept <= stop.at_most);
    assert_eq!(stop.by_signal, now.continued != last.continued);
}

/// A guest's clock that exists, and the watch over it.
struct Guest {
    rate: Khz,
    /// What its clock gains each million parts of time, in millionths of a part.
    gain: i128,
    late: u64,
    start: u64,
    /// True time, and the clock's ticks since the start beyond those of time, from moves.
    now: u64,
    moved: i128,
    offset: u64,
    /// As of the last look, and as of where the line begins.
    last: (u64, i128, u64),
    anchor: i128,
    /// What it was off there, unless nobody can say.
    owed: Option<i128>,
    watch: ClockWatch,
    history: History<STRETCHES>,
    proven: Vec<(Nanos, NanosDelta)>,
    /// Looks were what can be.
    honest: bool,
}

impl Guest {
    fn new(input: &Watched) -> Self {
        let rate = khz(1_000 + input.khz % 6_000_000);
        let late = 1 + u64::from(input.late);
        let tolerance = i128::from(input.tolerance % 1_000);
        let start = input.start.0;
        // The clock's first tick is behind us.
        let now = 1 << 20;
        let mut guest = Self {
            rate,
            gain: tolerance * i128::from(input.share) / 128,
            late,
            start,
            now,
            moved: 0,
            offset: input.home,
            last: (now, 0, input.home),
            anchor: 0,
            owed: Some(0),
            watch: ClockWatch::begin(
                TickRate::new(rate),
                Ppm::new(u32::try_from(tolerance).unwrap_or(0)).unwrap_or(Ppm::KVM_TOLERANCE),
                Look {
                    before: GuestTsc::new(0),
                    at: Nanos::ZERO,
                    late: Nanos::ZERO,
                    after: GuestTsc::new(0),
                    offset: TscOffset::ZERO,
                },
            ),
            history: History::new(),
            proven: Vec::new(),
            honest: true,
        };
        guest.watch.begin_anew(guest.look_now(0, 0, 0));
        guest
    }

    /// What the guest reads at a true time.
    fn reads(&self, at: u64) -> GuestTsc {
        let rate = i128::from(self.rate.get()) * (MILLION + self.gain);
        let ticks = i128::from(at) * rate / (MILLION * MILLION) + self.moved;
        let wrapped = u64::try_from(ticks.rem_euclid(1 << 64)).expect("reduced");
        GuestTsc::new(wrapped.wrapping_add(self.start))
    }

    fn look_now(&self, before: u16, behind: u16, stale: u16) -> Look {
        Look {
            before: self.reads(self.now - u64::from(before)),
            at: Nanos::new(self.now - u64::from(stale) % self.late),
            late: Nanos::new(self.late),
            after: self.reads(self.now + u64::from(behind)),
            offset: TscOffset::new(self.offset),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Look {
                after,
                before,
                behind,
                stale,
            } => {
                // The readings of this look come after all of the one before.
                self.now += u64::from(after) + (1 << 17);
                let look = self.look_now(before, behind, stale);
                let finding = self.watch.look(look);
                self.note(look, finding);
                if self.honest {
                    self.check(finding);
                }
                self.last = (self.now, self.moved, self.offset);
            }
            Step::Move { by, by_offset } => {
                self.moved += i128::from(by);
                if by_offset {
                    self.offset = self.offset.wrapping_add_signed(by.into());
                }
            }
            Step::BeginAnew => {
                self.now += 1 << 17;
                self.watch.begin_anew(self.look_now(0, 0, 0));
                // As far off as at the look before.
                let owed = self.last.1 - self.anchor;
                self.owed = self.owed.filter(|_| self.honest).map(|off| off + owed);
                self.honest = true;
                self.last = (self.now, self.moved, self.offset);
                self.anchor = self.moved;
            }
            Step::Nonsense {
                before,
                at,
                late,
                after,
                offset,
            } => {
                let look = Look {
                    before: GuestTsc::new(before),
                    at: Nanos::new(at),
                    late: Nanos::new(late),
                    after: GuestTsc::new(after),
                    offset: TscOffset::new(offset),
                };
                let finding = self.watch.look(look);
                self.note(look, finding);
                self.honest = false;
            }
            Step::Exit { .. } | Step::Beat { .. } => {}
        }
    }

    /// Into the life's history, of which nothing proven is lost.
    fn note(&mut self, look: Look, finding: Finding) {
        self.history.add(look.at, finding.error);
        self.proven.push((look.at, finding.error.proven()));
        let stretches = || self.history.stretches();
        assert!((1..=STRETCHES).contains(&stretches().count()));
        let all = || self.proven.iter().map(|(_, proven)| *proven);
        assert_eq!(stretches().map(|s| s.lowest).min(), all().min());
        assert_eq!(stretches().map(|s| s.highest).max(), all().max());
    }

    fn check(&self, finding: Finding) {
        let moved = self.moved - self.last.1;
        match finding.departure {
            None => {}
            // No more than it was, and in its direction.
            Some(Departure::Leapt(by)) => assert!(i128::from(by.get()) <= moved, "{by} {moved}"),
            Some(Departure::Lagged(by)) => assert!(i128::from(by.get()) <= -moved, "{by} {moved}"),
        }
        let offset = self.offset.wrapping_sub(self.last.2).cast_signed();
        let told = finding.offset_moved.map_or(0, TscDelta::get);
        assert_eq!(told, offset);
        let since = self.moved - self.anchor;
        self.check_error(finding.since_taken, since);
        // What nonsense has said is carried on.
        if let Some(owed) = self.owed {
            self.check_error(finding.error, owed + since);
        }
    }

    /// The bounds hold what the clock is off by.
    fn check_error(&self, found: ErrorBounds, off: i128) {
        let ErrorBounds { at_least, at_most } = found;
        assert!(at_least <= at_most, "{found:?}");
        // The line is of the nominal rate: of a clock at another one only the order is asserted.
        if self.gain == 0 {
            let nanos = off * MILLION / i128::from(self.rate.get());
            let (least, most) = (i128::from(at_least.get()), i128::from(at_most.get()));
            // Each of what it was off by at a beginning is rounded by itself.
            assert!(least <= nanos + 2, "{found:?} {nanos}");
            assert!(most >= nanos - 2, "{found:?} {nanos}");
        }
    }
}

/// All vCPUs go on together, none of them back where an arc of the circle has a latest.
fn check_restart<F: RatioFormat>(input: &Watched) {
    let max = (1_u128 << F::RATIO_BITS) - 1;
    let bits = u64::try_from(u128::from(input.bits) & max).unwrap_or(1);
    let Ok(ratio) = TscRatio::<F>::from_bits(bits) else {
        return;
    };
    let standings: Vec<Standing> = (input.standings.iter().take(8))
        .map(|&(host, now, seen, skew)| Standing {
            host: HostTsc::new(host),
            now: GuestTsc::new(now),
            seen: GuestTsc::new(seen),
            skew: TscDelta::new(skew),
        })
        .collect();
    let all = restart(ratio, &standings, TscOffset::new(input.home));
    for standing in &standings {
        let scaled = |host: u64| {
            let product = (u128::from(host) * u128::from(ratio.bits())) >> F::FRACTION_BITS;
            u64::try_from(product & u128::from(u64::MAX)).expect("reduced")
        };
        let at_home = standing
            .host
            .get()
            .wrapping_sub(standing.skew.get().cast_unsigned());
        let there = scaled(standing.host.get()).wrapping_add(all.offset_of(standing).get());
        assert_eq!(
            there,
            scaled(at_home).wrapping_add(all.home().get()),
            "all agree"
        );
        let forward = there.wrapping_sub(standing.now.get()).cast_signed();
        assert_eq!(all.forward(standing).get(), forward);
    }
    if standings.is_empty() {
        assert_eq!(all.home().get(), input.home);
    }
}
