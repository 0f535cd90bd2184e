//! Seeds of the targets of guest time.

use crate::seed::{Seed, seed};

/// A seed: target, name, bytes.
type Named = (&'static str, &'static str, Vec<u8>);

/// All of them.
pub(crate) fn seeds() -> Vec<Named> {
    let mut all = arithmetic();
    all.extend(histories());
    all.extend(skews_and_plans());
    all.extend(machines());
    all.extend(pages());
    all.extend(watches());
    all
}

fn arithmetic() -> Vec<Named> {
    let rates = |host: u32, guest: u32, near: Option<i16>, bits: u64, amount: u64| {
        let seed = seed().u32(host).u32(guest);
        let seed = match near {
            Some(ppm) => seed.flag(true).bytes(&ppm.to_le_bytes()),
            None => seed.flag(false),
        };
        seed.u64(bits).u64(amount).done()
    };
    let reading = |host: u64, bits: u64, offset: u64, delta: i64, target: u64| {
        let seed = seed().u64(host).u64(bits).u64(offset).i64(delta);
        seed.u64(target).done()
    };
    let enter = |bits: u64, offset: u64| {
        let seed = seed().variant(0, 4).u64(bits).u64(offset);
        seed.flag(true).flag(true)
    };
    let leave = || seed().variant(1, 4);
    let adjust = |delta: i64| seed().variant(2, 4).i64(delta);
    let read = |host: u64| seed().variant(3, 4).u64(host);
    let minus = |ticks: u64| 0_u64.wrapping_sub(ticks);
    vec![
        (
            "tsc_ratio",
            "faster",
            rates(3_500_000, 5_950_000, None, 1 << 32, 86_400_000_000_000),
        ),
        (
            "tsc_ratio",
            "near",
            rates(2_399_987, 0, Some(-251), u64::MAX, u64::MAX),
        ),
        (
            "tsc_ratio",
            "limits",
            rates(1, 255, None, (1 << 40) - 1, 1 << 63),
        ),
        (
            "tsc_scale",
            "half",
            reading(1 << 50, 1 << 31, minus(77), -10, 5_000),
        ),
        (
            "tsc_scale",
            "largest",
            reading(u64::MAX, u64::MAX, u64::MAX, i64::MIN, u64::MAX),
        ),
        (
            "tsc_scale",
            "third",
            reading(40_000_000_000_000, 0x5555_5555_5555, 3, 1, 1 << 40),
        ),
        (
            "tsc_nested",
            "vmx",
            seed()
                .u64(1 << 47)
                .u64(minus(1_000))
                .list([
                    enter(3 << 47, 7),
                    read(1 << 40),
                    adjust(-100),
                    leave(),
                    adjust(5),
                ])
                .done(),
        ),
        (
            "tsc_nested",
            "svm",
            seed()
                .u64(0x1_8000_0000)
                .u64(minus(3))
                .list([enter(1 << 31, 0), read(1 << 50), adjust(i64::MIN), leave()])
                .done(),
        ),
        (
            "tsc_nested",
            "beyond",
            seed()
                .u64((1 << 40) - 1)
                .u64(0)
                .list([enter(2 << 32, 9), enter(0, 0), enter(1, 0)])
                .done(),
        ),
    ]
}

fn histories() -> Vec<Named> {
    let run = |nanos: u32| seed().variant(0, 7).u32(nanos);
    let look = || seed().variant(1, 7);
    let load = |cpu: u8, after: u32, told: Option<i32>| {
        let seed = seed().variant(2, 7).u8(cpu).u32(after);
        match told {
            Some(wrong) => seed.flag(true).i32(wrong),
            None => seed.flag(false),
        }
    };
    let rate = |cpu: u8, less: u16| seed().variant(3, 7).u8(cpu).u16(less);
    let raise = |cpu: u8, ppm: u16| seed().variant(4, 7).u8(cpu).u16(ppm);
    let mark = |a: u8, b: u8| seed().variant(5, 7).u8(a).u8(b);
    let meddle = |by: i32| seed().variant(6, 7).i32(by);
    let history = |ahead: [i32; 4], slew: Option<u32>| {
        let seed = seed().u64(5_000).u64(1 << 45).u32(1_400_000);
        let seed = ahead.into_iter().fold(seed, Seed::i32).u16(62).u16(500);
        match slew {
            Some(ppm) => seed.flag(true).u32(ppm),
            None => seed.flag(false),
        }
    };
    vec![
        (
            "tsc_catchup",
            "ideal",
            history([0; 4], None)
                .list([
                    run(3_000_000),
                    look(),
                    load(2, 40_000, None),
                    run(500_000),
                    load(2, 9_000_000, None),
                    look(),
                ])
                .done(),
        ),
        (
            "tsc_catchup",
            "skewed",
            history([0, -14_400, 2_400, -7_200], None)
                .list([
                    run(100_000),
                    load(1, 2_000, None),
                    run(50_000),
                    mark(0, 1),
                    load(0, 30_000, Some(2)),
                    load(3, 1_500, Some(-1)),
                    run(9_000),
                ])
                .done(),
        ),
        (
            "tsc_catchup",
            "leading",
            history([0, 320, 0, 0], None)
                .list([
                    run(70_000),
                    load(1, 700, None),
                    mark(1, 1),
                    run(7),
                    load(1, 1, None),
                    look(),
                ])
                .done(),
        ),
        (
            "tsc_catchup",
            "slowed",
            history([0; 4], Some(100_000))
                .list([
                    run(1_000_000),
                    rate(0, u16::MAX),
                    run(50_000),
                    look(),
                    run(50_000),
                    look(),
                    rate(0, 0),
                    load(0, 70_000, None),
                    run(50_000),
                    look(),
                ])
                .done(),
        ),
        (
            "tsc_catchup",
            "owing",
            history([0; 4], Some(100_000))
                .list([
                    run(1_000_000),
                    rate(0, u16::MAX),
                    run(16_000_000),
                    look(),
                    load(2, 70_000, None),
                    run(50_000),
                    look(),
                    load(3, 9_000, None),
                ])
                .done(),
        ),
        (
            "tsc_catchup",
            "raised",
            history([0, 1_000, 0, 0], None)
                .list([
                    run(200_000),
                    raise(1, 20_000),
                    mark(2, 2),
                    run(50_000),
                    look(),
                    load(1, 3_000, None),
                    meddle(9),
                    look(),
                ])
                .done(),
        ),
    ]
}

fn skews_and_plans() -> Vec<Named> {
    let measured = |cpus: u8, ahead: [i64; 6], bound: u16| {
        let seed = ahead.into_iter().fold(seed().u64(1 << 45), Seed::i64);
        let seed = seed.u8(cpus - 1).u16(bound);
        seed.i32(-20_000).u64(3_000_000_000 << 8)
    };
    let message = |from: u8, to: u8, sent: u32, delay: u16| {
        let seed = seed().u8(from).u8(to);
        seed.u32(sent).u16(delay)
    };
    let claim = |a: u8, b: u8, at_least: i64, width: u32| {
        let seed = seed().u8(a).u8(b);
        seed.i64(at_least).u32(width)
    };
    let restore = |(guest, host): (u32, u32), passed: i64, advance: bool, scaling: bool| {
        let seed = seed().u64(1 << 50).u64(1 << 44).u32(guest).u32(host);
        let seed = seed
            .flag(false)
            .u64(9_000_000_000)
            .u64(1_700_000_000_000_000_000);
        let seed = seed.i64(passed).u32(50).u32(80).flag(advance);
        let seed = if advance { seed.flag(false) } else { seed };
        let seed = seed.u32(250).flag(true).flag(scaling);
        let seed = seed.flag(false).flag(false).flag(false);
        seed.u64((1 << 50) + 5_000_000)
            .list([seed_of(7), seed_of(0)])
    };
    vec![
        (
            "tsc_skew",
            "one-domain",
            measured(3, [0, 8, 16, 0, 0, 0], 600)
                .list([
                    message(0, 1, 100, 90),
                    message(1, 0, 200, 120),
                    message(1, 2, 300, 70),
                    message(2, 1, 400, 80),
                    message(2, 0, 500, 200),
                ])
                .list([])
                .done(),
        ),
        (
            "tsc_skew",
            "apart",
            measured(4, [0, -400_000, 80, 1 << 50, 0, 0], 300)
                .list([
                    message(0, 1, 1, 90),
                    message(1, 0, 2, 110),
                    message(0, 2, 3, 50),
                    message(2, 0, 4, 60),
                    message(3, 2, 5, 60),
                    message(2, 3, 6, 99),
                ])
                .list([])
                .done(),
        ),
        (
            "tsc_skew",
            "contradiction",
            measured(3, [0; 6], 9)
                .list([])
                .list([
                    claim(0, 1, 10, 10),
                    claim(1, 2, 10, 10),
                    claim(0, 2, 50, 10),
                ])
                .done(),
        ),
        (
            "tsc_plan",
            "scaled",
            restore((2_000_000, 3_000_000), 5_000_000_000, true, true).done(),
        ),
        (
            "tsc_plan",
            "within-tolerance",
            restore((2_000_400, 2_000_000), 77, true, true).done(),
        ),
        (
            "tsc_plan",
            "frozen",
            restore((2_400_000, 2_400_000), 1 << 40, false, false).done(),
        ),
        (
            "tsc_plan",
            "behind",
            restore((2_400_000, 2_400_000), -1_000, true, false).done(),
        ),
    ]
}

fn seed_of(word: u32) -> Seed {
    seed().u32(word)
}

fn machines() -> Vec<Named> {
    let machine = |policy: u8, offsets: [i16; 4], clock: [bool; 3]| {
        let seed = seed().u64(1).u8(policy).u8(1);
        let seed = offsets.into_iter().fold(seed, |seed, offset| {
            seed.bytes(&offset.to_le_bytes()).u16(0)
        });
        // Four CPUs, two vCPUs; unstable, halting, clock of TSCs.
        let seed = seed.u8(3).flag(false);
        let seed = clock.into_iter().fold(seed, Seed::flag);
        // Moves nearly always; slices from 500 us to 4 ms; other tasks up to 3 ms.
        seed.bytes(&[150, 128, 252]).u8(200).u16(3_500).u16(3_000)
    };
    let happening = |at: u16, rank: u64| seed().u16(at).variant(rank, 3);
    vec![
        (
            "tsc_simulator",
            "targeted-seed",
            machine(4, [0, -6, 1, -3], [false; 3]).list([]).done(),
        ),
        (
            "tsc_simulator",
            "targeted-rates",
            machine(4, [0; 4], [true, false, false])
                .list([
                    happening(10_000, 0).u8(1).u16(0),
                    happening(20_000, 2).u16(3_000),
                    happening(30_000, 1).u8(2).u32(9_000),
                ])
                .done(),
        ),
        (
            "tsc_simulator",
            "catchup-halted",
            machine(3, [0; 4], [true, true, false]).list([]).done(),
        ),
        (
            "tsc_simulator",
            "unified-clock",
            machine(2, [0, -6, 1, -3], [false, false, true])
                .list([])
                .done(),
        ),
    ]
}

fn watches() -> Vec<Named> {
    let exit = |later: u32, cpu: u8| {
        // A later reading: the first variant of two.
        seed().variant(0, 6).variant(0, 2).u32(later).u8(cpu)
    };
    let look = |after: u32| seed().variant(1, 6).u32(after).u16(300).u16(200).u16(7);
    let moved = |by: i32, by_offset: bool| seed().variant(2, 6).i32(by).flag(by_offset);
    let anew = || seed().variant(3, 6);
    let nonsense = || {
        let words = [u64::MAX, 3, u64::MAX, 0, 1 << 63];
        words.into_iter().fold(seed().variant(4, 6), Seed::u64)
    };
    let beat = |at: u64| seed().variant(5, 6).u64(at).u64(at).u8(1);
    // 2.4 GHz, a clock of 70 ns, a tolerance of 500 ppm; a look each second.
    let watched = |share: u8| {
        let seed = seed().u32(2_399_000).u8(share).u16(500).u16(69);
        let seed = seed.u64(1 << 40).u64(5_000).u64(4_000);
        let seed = seed.u64(2_400_000_000).u64(1_000_000_000).u64(500_000_000);
        seed.u64(1 << 48).u64(77)
    };
    let standing = |host: u64, now: u64, skew: i64| seed().u64(host).u64(now).u64(now).i64(skew);
    vec![
        (
            "tsc_watch",
            "keeps-time",
            watched(0)
                .list([standing(5_000, 5_077, 0), standing(6_000, 6_077, -9)])
                .list([
                    exit(1 << 20, 0),
                    look(1 << 30),
                    exit(5, 1),
                    beat(1 << 30),
                    look(1 << 30),
                ])
                .done(),
        ),
        (
            "tsc_watch",
            "leaps-and-lags",
            watched(100)
                .list([standing(5_000, 9_077, 3_000)])
                .list([
                    moved(900_000_000, true),
                    look(1 << 20),
                    moved(-900_000_000, false),
                    look(1 << 20),
                    anew(),
                    look(1 << 31),
                    beat(1 << 40),
                ])
                .done(),
        ),
        (
            "tsc_watch",
            "long-life",
            watched(0)
                .list([])
                .list([
                    look(1 << 25),
                    moved(-900_000_000, false),
                    look(1 << 25),
                    moved(1_800_000_000, true),
                    look(1 << 25),
                    moved(-900_000_000, false),
                    look(1 << 25),
                    look(1 << 25),
                    look(1 << 25),
                    look(1 << 25),
                    look(1 << 25),
                ])
                .done(),
        ),
        (
            "tsc_watch",
            "nonsense",
            watched(0x80)
                .list([standing(u64::MAX, 0, i64::MIN)])
                .list([nonsense(), look(1), nonsense(), anew(), look(1 << 30)])
                .done(),
        ),
    ]
}

fn pages() -> Vec<Named> {
    let mut kvmclock = [0; 32];
    kvmclock[..4].copy_from_slice(&6_u32.to_le_bytes());
    kvmclock[8..16].copy_from_slice(&5_000_u64.to_le_bytes());
    kvmclock[16..24].copy_from_slice(&900_u64.to_le_bytes());
    kvmclock[24..28].copy_from_slice(&3_579_139_413_u32.to_le_bytes());
    kvmclock[28..30].copy_from_slice(&[0xFF, 1]);
    let pv = |rate: u32, page: [u8; 32]| {
        let seed = seed().u32(rate).u64(1_000).u64(7).u8(1);
        seed.u64(1 << 40).bytes(&page).done()
    };
    let mut changing = kvmclock;
    changing[0] = 7;
    changing[28] = 0x80;

    // Flags: every error is known, and the generation.
    let mut page = [0_u8; 112];
    page[..4].copy_from_slice(b"VCLK");
    page[8..12].copy_from_slice(&[1, 0, 1, 0]);
    page[12..16].copy_from_slice(&4_u32.to_le_bytes());
    page[24..32].copy_from_slice(&0x1F9_u64.to_le_bytes());
    page[34..40].copy_from_slice(&[2, 0, 37, 0, 0, 31]);
    page[48..56].copy_from_slice(&0xE4B4_D2C3_A190_8F7E_u64.to_le_bytes());
    page[72..80].copy_from_slice(&1_700_000_000_u64.to_le_bytes());
    let vm = |hz: u64, page: [u8; 112]| {
        let seed = seed().u64(hz).u64(77).u64(1_700_000_000_000_000_000);
        let seed = seed.u64(1 << 45).i64(100_000).u16(u16::MAX);
        seed.flag(false).bytes(&page).done()
    };
    let mut changing_vm = page;
    changing_vm[12] = 5;
    changing_vm[80..88].fill(0xFF);
    vec![
        ("pvclock", "running", pv(2_400_000, kvmclock)),
        ("pvclock", "changing", pv(1, changing)),
        ("vmclock", "running", vm(2_400_000_000, page)),
        ("vmclock", "changing", vm(0, changing_vm)),
    ]
}
