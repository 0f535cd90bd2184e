//! The pages that follow a host's clock, read by a guest that knows include/uapi/linux/vmclock-abi.h and big
//! integers alone, against the clock itself.

use num_bigint::BigInt;
use proptest::prelude::*;
use tsc::vmclock::{Adjtimex, ClockStatus, Follower, HostClock, Leap, RealSample, VmClock};
use tsc::{GuestTsc, Khz, Nanos};

const BILLION: i128 = 1_000_000_000;
/// `VMCLOCK_FLAG_*_VALID` of the errors of period and time, estimated and largest.
const FLAGS: [u32; 4] = [3, 4, 5, 6];

/// A host whose clock runs at one rate, and a guest's TSC that runs at another: both known exactly, in
/// picoseconds of true time since the start.
#[derive(Clone, Copy, Debug)]
struct World {
    /// Ticks in 10^6 s.
    megahertz_seconds: i128,
    counter: u64,
    /// The host's clock at the start, in ns since 1970; by how much it is off its rate.
    real: i128,
    drift_ppb: i128,
}

impl World {
    fn tsc(&self, picos: i128) -> GuestTsc {
        let ticks = picos * self.megahertz_seconds / 1_000_000_000_000_000_000;
        GuestTsc::new(self.counter.wrapping_add(u64::try_from(ticks).unwrap()))
    }

    /// The host's clock in picoseconds since 1970.
    fn clock(&self, picos: i128) -> i128 {
        self.real * 1_000 + picos + picos * self.drift_ppb / BILLION
    }

    fn sample(&self, at: i128, before: i128, after: i128) -> RealSample {
        RealSample {
            before: self.tsc(at - before),
            real: Nanos::new(u64::try_from(self.clock(at) / 1_000).unwrap()),
            after: self.tsc(at + after),
        }
    }
}

/// A little-endian number of a page.
fn number(page: &[u8], at: usize, size: usize) -> u64 {
    let bytes = page[at..at + size].iter().rev();
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What a guest makes of a page at `tsc`: the time and its errors, estimated and largest, in units of 2^-64 s.
/// `None` for an error that is not told.
fn read(page: &[u8], tsc: u64) -> (BigInt, [Option<BigInt>; 2]) {
    assert_eq!(number(page, 12, 4) % 2, 0, "nobody is writing");
    assert_eq!(page[8..12], [1, 0, 1, 0], "version 1, a TSC, and UTC");
    let ticks = BigInt::from(tsc.wrapping_sub(number(page, 40, 8)));
    let seconds = |at| BigInt::from(number(page, at, 8)) << 64;
    let passed = |at| (&ticks * number(page, at, 8)) >> number(page, 39, 1);
    let has = |flag: u32| number(page, 24, 8) >> flag & 1 == 1;
    let error = |rate: (u32, usize), time: (u32, usize)| {
        // The unit of a time's error is a nanosecond.
        let nanos: BigInt = seconds(time.1) / BigInt::from(BILLION) + 1;
        (has(rate.0) && has(time.0)).then(|| nanos + passed(rate.1) + 1)
    };
    let [rate, most_rate, time, most_time] = FLAGS;
    (
        seconds(72) + number(page, 80, 8) + passed(48),
        [
            error((rate, 56), (time, 88)),
            error((most_rate, 64), (most_time, 96)),
        ],
    )
}

fn kept(maxerror: i64, esterror: i64) -> HostClock {
    HostClock::from_kernel(Adjtimex {
        state: 0,
        status: 1,
        maxerror,
        esterror,
        tai: 37,
    })
}

fn world() -> impl Strategy<Value = World> {
    (
        prop_oneof![
            1_000_000_000_000_i128..6_000_000_000_000_000,
            2_000_000_000_000_000_i128..4_000_000_000_000_000
        ],
        any::<u64>(),
        1_500_000_000 * BILLION..4_000_000_000 * BILLION,
        -300_000_i128..=300_000,
    )
        .prop_map(|(megahertz_seconds, counter, real, drift_ppb)| World {
            megahertz_seconds,
            counter,
            real,
            drift_ppb,
        })
}

/// What the kernel says the rate is: up to 150 ppm from the true one, in whole kilohertz.
fn nominal(world: &World, ppm: i128) -> Option<Khz> {
    let khz = (world.megahertz_seconds + world.megahertz_seconds * ppm / 1_000_000) / BILLION;
    Khz::new(u32::try_from(khz).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// However closely and late the clocks are read, and whatever rate the kernel tells: whenever the guest
    /// reads, until the next page and long after it is due, the host's clock is within both of the page's
    /// errors, and a clock that runs on at one rate is never taken for one that was set.
    #[test]
    fn pages_hold_the_hosts_clock(
        world in world(),
        ppm in -150_i128..=150,
        skew in 0_u64..5_000,
        beats in prop::collection::vec(
            // Milliseconds since the one before; ns from the first reading of the TSC to the clock's, and on
            // to the second; ms until the guest reads.
            (1_i128..3_000, 0_i128..50_000, 0_i128..50_000, 0_i128..100_000),
            1..60,
        ),
    ) {
        // A rate of a few kHz is told to a kHz: no more than 150 ppm away, too.
        prop_assume!(world.megahertz_seconds > 10_000_000_000_000);
        let mut follower = Follower::new(nominal(&world, ppm), Nanos::new(skew));
        let mut now = 10 * BILLION * 1_000;
        for (gap, before, after, later) in beats {
            now += gap * BILLION;
            let sample = world.sample(now, before * 1_000, after * 1_000);
            let page = *follower.follow(sample, kept(0, 0));
            prop_assert_eq!(page.status, ClockStatus::Synchronized);
            prop_assert_eq!(page.tai_offset, Some(37));
            now += after * 1_000;
            let then = now + later * BILLION;
            let (time, errors) = read(&page.to_bytes(), world.tsc(then).get());
            let clock = (BigInt::from(world.clock(then)) << 64_u8) / (BILLION * 1_000);
            let off = if time > clock { &time - &clock } else { &clock - &time };
            for error in errors {
                let error = error.expect("told");
                prop_assert!(off <= error, "{off} beyond {error} of {page:?}");
            }
        }
    }

    /// A page under way is as narrow as what was read: the error is not a bound that nothing can break.
    #[test]
    fn errors_are_no_wider_than_readings(world in world(), width in 0_i128..20_000) {
        prop_assume!(world.megahertz_seconds > 10_000_000_000_000);
        let mut follower = Follower::new(nominal(&world, 100), Nanos::ZERO);
        for second in 10..60_i128 {
            let sample = world.sample(second * BILLION * 1_000, width * 500, width * 500);
            follower.follow(sample, kept(2_000, 300));
        }
        let page = follower.page();
        let tick = u64::try_from(4_000_000_000_000_000 / world.megahertz_seconds).unwrap() + 1;
        let width = u64::try_from(width).unwrap();
        let own = page.time_estimated_error.unwrap().get() - 300_000;
        prop_assert!(own <= width / 2 + width / 1_000 + tick + 10, "{own} of {width}");
        prop_assert_eq!(page.time_maximum_error.unwrap().get(), 2_500_000 + own);
        // Two such pairs, 16 s apart, of a second that is 2^64: in parts of 10^9, and a few of rounding.
        let parts = u128::from(page.period_estimated_error.unwrap().get()) * 1_000_000_000
            / u128::from(page.period.fraction());
        let hz = u128::try_from(world.megahertz_seconds / 1_000_000).unwrap();
        let wanted = u128::from(2 * (width + tick)) / 16 + 2_000_000_000 / hz + 5;
        prop_assert!(parts <= wanted, "{parts} ppb, not {wanted}");
    }

    /// Whatever is read and said, nothing panics, and there is a page that the layout has.
    #[test]
    fn hostile_readings_make_a_page_all_the_same(
        khz in prop_oneof![Just(1), Just(u32::MAX), any::<u32>()],
        skew in any::<u64>(),
        steps in prop::collection::vec(
            (any::<[u64; 3]>(), any::<(i32, i32, i64, i64, i32)>(), 0_u8..6),
            1..20,
        ),
    ) {
        let mut follower = Follower::new(Khz::new(khz), Nanos::new(skew));
        let (mut marker, mut generation) = (0, 0);
        for ([before, real, after], (state, status, maxerror, esterror, tai), step) in steps {
            let answer = Adjtimex { state: state % 8, status, maxerror, esterror, tai };
            let sample = RealSample {
                before: GuestTsc::new(before),
                real: Nanos::new(real),
                after: GuestTsc::new(after),
            };
            match step {
                0 => {
                    follower.disrupt();
                    marker += 1;
                }
                1 => {
                    follower.restore();
                    (marker, generation) = (marker + 1, generation + 1);
                }
                2 => {
                    follower.distrust();
                }
                _ => {
                    follower.follow(sample, HostClock::from_kernel(answer));
                }
            }
            let page = *follower.page();
            prop_assert_eq!(VmClock::from_bytes(&page.to_bytes()), Ok(page));
            prop_assert_eq!(page.sequence() % 2, 0);
            prop_assert_eq!((page.disruption_marker, page.generation), (marker, Some(generation)));
            if page.status == ClockStatus::Unreliable {
                prop_assert_eq!((page.leap, page.time_maximum_error), (Leap::None, None));
            }
        }
    }
}
