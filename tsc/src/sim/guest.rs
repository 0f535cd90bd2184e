//! A small guest that boots as Linux of 2010 did where time matters: it calibrates its TSC by the
//! PIT, brings up its other processor with time-outs counted in its own TSC, compares their TSCs,
//! and then waits for ticks. Whether it boots is seen, not computed.

/// What a vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Executes for so many nanoseconds, then reads its TSC.
    Run(u64),
    /// HLT: until the next tick.
    Halt,
}

/// How far the guest came, the same for both processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shared {
    /// The boot processor sent the start-up interrupt.
    pub(super) started: bool,
    /// The second processor answered.
    pub(super) called_in: bool,
    /// Ticks in a millisecond, as calibrated.
    per_ms: u64,
    /// The guest gave up on something.
    pub(super) failed: Option<Stage>,
    /// It reached its login prompt.
    pub(super) booted: bool,
}

/// The stages of a boot, for the report of one that does not finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Calibrating the TSC against the PIT.
    Calibration,
    /// Delay between INIT and start-up interrupt.
    InitDelay,
    /// Waiting for the second processor.
    SecondProcessor,
    /// Comparing TSCs.
    SyncTest,
    /// Waiting for ticks, as drivers do.
    Ticks,
    /// Up.
    Up,
}

/// How long one round of calibration lasts, of three (`CAL_MS` in arch/x86/kernel/tsc.c of 2010;
/// `pit_calibrate_tsc` takes the least).
const CALIBRATION_NS: u64 = 10_000_000;
const ROUNDS: u32 = 3;
/// Between INIT and start-up, 10 ms; for the second processor's answer, 5 s (smpboot.c of 2010).
const INIT_DELAY_MS: u64 = 10;
const CALL_IN_MS: u64 = 5_000;
/// How long the TSCs are compared (tsc_sync.c takes 20 ms; a tenth shows as much).
const SYNC_MS: u64 = 2;
/// Waits of the drivers' initialisation, and what is done between them. Ours: 1.2 s in all, in which a vCPU is moved
/// often enough for each policy to show what it does.
const WAITS: u32 = 24;
const WAIT_MS: u64 = 50;
const BURST_STEPS: u32 = 500;
const BURST_STEP_NS: u64 = 2_000;
/// A tick handler's work. Ours, of the order of a microsecond.
const TICK_NS: u64 = 3_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Calibrate {
        round: u32,
        tsc: u64,
        pit: u64,
        least: u64,
    },
    InitDelay {
        until: u64,
    },
    WaitForSecond {
        until: u64,
    },
    Wake {
        until: u64,
    },
    Sync {
        until: u64,
    },
    Burst {
        left: u32,
        waits: u32,
    },
    Wait {
        until: u64,
        waits: u32,
    },
    Dead,
}

/// One processor's program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    boot: bool,
    phase: Phase,
}

/// Whether `reading` has reached `until`, as `time_after` compares.
const fn reached(reading: u64, until: u64) -> bool {
    reading.wrapping_sub(until).cast_signed() >= 0
}

impl Program {
    pub(super) const fn new(boot: bool) -> Self {
        Self {
            boot,
            phase: Phase::Start,
        }
    }

    pub(super) const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Start | Phase::Calibrate { .. } => Stage::Calibration,
            Phase::InitDelay { .. } => Stage::InitDelay,
            Phase::WaitForSecond { .. } | Phase::Wake { .. } | Phase::Dead => {
                Stage::SecondProcessor
            }
            Phase::Sync { .. } => Stage::SyncTest,
            Phase::Burst { waits, .. } | Phase::Wait { waits, .. } => {
                if waits < WAITS {
                    Stage::Ticks
                } else {
                    Stage::Up
                }
            }
        }
    }

    /// The program goes on: its TSC reads `tsc`, the emulated PIT `pit` nanoseconds.
    pub(super) fn step(&mut self, tsc: u64, pit: u64, shared: &mut Shared) -> Op {
        let ms = |count: u64| count.wrapping_mul(shared.per_ms);
        match self.phase {
            Phase::Start if self.boot => {
                self.phase = Phase::Calibrate {
                    round: 0,
                    tsc,
                    pit,
                    least: u64::MAX,
                };
                Op::Run(5_000)
            }
            Phase::Start => {
                self.phase = Phase::Wake {
                    until: tsc.wrapping_add(ms(1)),
                };
                Op::Run(300_000)
            }
            Phase::Calibrate {
                round,
                tsc: from,
                pit: pit_from,
                least,
            } => {
                if pit - pit_from < CALIBRATION_NS {
                    return Op::Run(5_000);
                }
                let counted = tsc.wrapping_sub(from).cast_signed().max(0).unsigned_abs();
                let per_ms = counted * 1_000_000 / (pit - pit_from);
                let least = least.min(per_ms);
                if round + 1 < ROUNDS {
                    self.phase = Phase::Calibrate {
                        round: round + 1,
                        tsc,
                        pit,
                        least,
                    };
                } else if least == 0 {
                    // "TSC: Unable to calibrate against PIT".
                    shared.failed = Some(Stage::Calibration);
                    self.phase = Phase::Dead;
                    return Op::Halt;
                } else {
                    shared.per_ms = least;
                    let until = tsc.wrapping_add(INIT_DELAY_MS.wrapping_mul(least));
                    self.phase = Phase::InitDelay { until };
                }
                Op::Run(5_000)
            }
            Phase::InitDelay { until } => {
                if reached(tsc, until) {
                    shared.started = true;
                    self.phase = Phase::WaitForSecond {
                        until: tsc.wrapping_add(ms(CALL_IN_MS)),
                    };
                }
                Op::Run(10_000)
            }
            Phase::WaitForSecond { until } => {
                if shared.called_in {
                    self.phase = Phase::Sync {
                        until: tsc.wrapping_add(ms(SYNC_MS)),
                    };
                    return Op::Run(250);
                }
                if reached(tsc, until) {
                    // "CPU1: Not responding."
                    shared.failed = Some(Stage::SecondProcessor);
                    self.phase = Phase::Dead;
                    return Op::Halt;
                }
                Op::Run(100_000)
            }
            Phase::Wake { until } => {
                if reached(tsc, until) {
                    shared.called_in = true;
                    self.phase = Phase::Sync {
                        until: tsc.wrapping_add(ms(SYNC_MS)),
                    };
                    return Op::Run(250);
                }
                Op::Run(10_000)
            }
            Phase::Sync { until } => {
                if reached(tsc, until) {
                    self.phase = Phase::Wait {
                        until: tsc.wrapping_add(ms(WAIT_MS)),
                        waits: 0,
                    };
                    return Op::Halt;
                }
                Op::Run(250)
            }
            Phase::Wait { until, waits } => {
                if !reached(tsc, until) {
                    // The tick handler ran, and the processor has nothing else to do.
                    return Op::Halt;
                }
                self.phase = Phase::Burst {
                    left: BURST_STEPS,
                    waits: waits + 1,
                };
                if self.boot && waits + 1 == WAITS {
                    shared.booted = true;
                }
                Op::Run(BURST_STEP_NS)
            }
            Phase::Burst { left, waits } => {
                if left > 0 {
                    self.phase = Phase::Burst {
                        left: left - 1,
                        waits,
                    };
                    return Op::Run(BURST_STEP_NS);
                }
                self.phase = Phase::Wait {
                    until: tsc.wrapping_add(ms(WAIT_MS)),
                    waits,
                };
                Op::Halt
            }
            Phase::Dead => Op::Halt,
        }
    }

    /// What a processor does first when a tick ends its HLT.
    pub(super) const fn tick_work() -> u64 {
        TICK_NS
    }
}
