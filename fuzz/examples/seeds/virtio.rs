//! Seeds of the targets of virtio devices.

use crate::seed::{Seed, seed};

type Named = (&'static str, &'static str, Vec<u8>);

/// The most buffers of one request.
const BUFFERS: usize = 6;

pub(crate) fn seeds() -> Vec<Named> {
    [
        entropy(),
        disk(),
        registers(),
        network(),
        memory(),
        sockets(),
        balloon(),
    ]
    .concat()
}

fn low(at: u16, len: u16, writable: bool) -> Seed {
    seed().variant(0, 4).u16(at).u16(len).flag(writable)
}

fn high(at: u16, len: u16, writable: bool) -> Seed {
    seed().variant(1, 4).u16(at).u16(len).flag(writable)
}

/// Begins that many bytes before the end of low memory.
fn border(before: u8, len: u16, writable: bool) -> Seed {
    seed().variant(2, 4).u8(before).u16(len).flag(writable)
}

fn hole(at: u32, len: u16, writable: bool) -> Seed {
    seed().variant(3, 4).u32(at).u16(len).flag(writable)
}

fn request<const N: usize>(buffers: [Seed; N], indirect: bool) -> Seed {
    request_with(buffers, indirect, 0x5a)
}

/// The same with other bytes in the first buffer to read.
fn request_with<const N: usize>(buffers: [Seed; N], indirect: bool, header: u8) -> Seed {
    let unused = (N..BUFFERS).map(|_| low(0, 0, false));
    buffers
        .into_iter()
        .chain(unused)
        .fold(seed(), |request, buffer| request.bytes(&buffer.done()))
        // One is added.
        .u8(u8::try_from(N - 1).expect("few"))
        .flag(indirect)
        .bytes(&[header; 32])
}

fn joined<const N: usize>(parts: [Seed; N]) -> Seed {
    parts
        .into_iter()
        .fold(seed(), |all, part| all.bytes(&part.done()))
}

fn entropy() -> Vec<Named> {
    let ask = |request: Seed, run: bool| request.flag(run);
    let input = |events: bool, requests: Seed| seed().flag(events).bytes(&requests.done()).done();
    let several = Seed::default().list([
        ask(request([low(0, 64, true)], false), true),
        ask(
            request([low(100, 7, true), high(3, 500, true)], true),
            false,
        ),
        ask(
            request([low(9, 20, false), low(2000, 2047, true)], true),
            true,
        ),
        ask(request([high(0, 0, true)], false), true),
    ]);
    let after = |buffers: Seed| {
        Seed::default().list([
            ask(request([low(0, 64, true)], true), false),
            ask(buffers, true),
        ])
    };
    vec![
        ("virtio_entropy", "several", input(true, several)),
        (
            "virtio_entropy",
            "order",
            input(
                false,
                after(request([low(0, 9, true), low(50, 9, false)], true)),
            ),
        ),
        (
            "virtio_entropy",
            "no-bytes-after-bytes",
            input(
                false,
                after(request([low(0, 9, true), low(50, 0, false)], true)),
            ),
        ),
        (
            "virtio_entropy",
            "border",
            input(true, after(request([border(4, 8, true)], false))),
        ),
        (
            "virtio_entropy",
            "hole",
            input(true, after(request([hole(0x1000, 8, true)], true))),
        ),
    ]
}

fn memory() -> Vec<Named> {
    let flush = |indirect: bool| request_with([low(0, 4, false), low(64, 4, true)], indirect, 0);
    let input = |requests: Seed| seed().flag(true).u64(0b0110).bytes(&requests.done()).done();
    let pieces = request_with(
        [
            low(0, 1, false),
            high(5, 3, false),
            low(64, 3, true),
            high(16, 9, true),
        ],
        true,
        0,
    );
    let unknown = request([low(0, 4, false), low(64, 4, true)], true);
    let every = seed().list([
        flush(true).flag(true),
        flush(false).flag(false),
        unknown.flag(false),
        pieces.flag(true),
        flush(true).flag(true),
    ]);
    let short = request_with([low(0, 4, false), low(64, 3, true)], true, 0);
    let none = request_with([low(0, 3, false), low(64, 4, true)], true, 0);
    let short = seed().list([flush(true).flag(false), none.flag(false), short.flag(true)]);
    vec![
        ("virtio_pmem", "every", input(every)),
        ("virtio_pmem", "short", input(short)),
    ]
}

fn disk() -> Vec<Named> {
    let sensible = |kind: u8, sector: u8, sectors: u8| {
        request(
            [low(0, 16, false), low(600, 512, true), high(5, 1, true)],
            true,
        )
        .variant(1, 2)
        .bytes(&[kind, sector, sectors])
    };
    let raw = |request: Seed| request.variant(0, 2);
    let input = |read_only: bool, requests: Seed| {
        seed()
            .u64(u64::MAX)
            .flag(read_only)
            .flag(true)
            .bytes(&requests.done())
            .done()
    };
    // Read, write, write, flush, identity, discard, zeros; then past the end.
    let every = || {
        seed().list([
            sensible(0, 3, 2),
            sensible(1, 4, 1),
            sensible(2, 15, 1),
            sensible(3, 0, 0),
            sensible(4, 0, 0),
            sensible(5, 2, 3),
            sensible(6, 8, 5),
            sensible(0, 0, 3),
            sensible(1, 15, 2),
            sensible(6, 15, 7),
        ])
    };
    vec![
        ("virtio_block", "every", input(false, every())),
        ("virtio_block", "every-read-only", input(true, every())),
        (
            "virtio_block",
            "short",
            input(
                false,
                seed().list([
                    raw(request([low(0, 15, false), low(600, 1, true)], true)),
                    raw(request([low(0, 16, false)], true)),
                ]),
            ),
        ),
    ]
}

fn registers() -> Vec<Named> {
    let next = |chance: u8| seed().variant(3, 5).u8(chance);
    let control = |offset: u32, value: u32| {
        seed()
            .variant(2, 5)
            .u8(u8::try_from(offset / 4).expect("few"))
            .u32(value)
    };
    let read = |offset: u16, len: u8| seed().variant(0, 5).u16(offset).u8(len);
    let write =
        |offset: u16, value: u64, len: u8| seed().variant(1, 5).u16(offset).u64(value).u8(len);
    let run = || seed().variant(4, 5);
    let started = seed().list([
        next(0),
        next(0),
        next(6),
        run(),
        control(0x50, 0),
        run(),
        // What is frozen by now.
        control(0x38, 2),
        control(0x80, 0x9000),
        control(0x20, 0),
        control(0x70, 0),
        next(0),
    ]);
    let widths = seed().list([
        read(0, 1),
        read(2, 4),
        read(0x100, 8),
        write(0x70, 3, 2),
        write(0x71, 3, 4),
        write(0x100, u64::MAX, 8),
        next(0),
    ]);
    let too_large = seed().list([next(0), next(0), next(7), run()]);
    let refused = seed().list([
        next(0),
        control(0x24, 1),
        control(0x20, 3),
        control(0x70, 11),
        control(0x24, 2),
        control(0x20, 1),
        control(0x70, 11),
    ]);
    vec![
        ("virtio_mmio", "started", started.done()),
        ("virtio_mmio", "widths", widths.done()),
        ("virtio_mmio", "too-large", too_large.done()),
        ("virtio_mmio", "refused", refused.done()),
    ]
}

fn network() -> Vec<Named> {
    let send = |request: Seed| joined([seed().variant(0, 4), request]);
    let offer = |request: Seed| joined([seed().variant(1, 4), request]);
    let frame = |len: u16| seed().variant(2, 4).u16(len);
    let run = || seed().variant(3, 4);
    let input =
        |features: u64, steps: Seed| seed().u64(features).flag(true).bytes(&steps.done()).done();
    let steps = || {
        seed().list([
            send(request([low(0, 12, false), low(30, 90, false)], true)),
            frame(700),
            frame(12),
            run(),
            offer(request([low(0, 300, true)], false)),
            offer(request([low(400, 300, true), high(0, 7, true)], true)),
            run(),
            offer(request([high(100, 1500, true)], true)),
            run(),
            frame(1800),
            frame(60),
            offer(request([low(800, 300, true)], true)),
            send(request([high(9, 25, false)], false)),
            run(),
        ])
    };
    let hole = seed().list([frame(90), offer(request([hole(0, 90, true)], true)), run()]);
    vec![
        ("virtio_net", "mergeable", input(u64::MAX, steps())),
        ("virtio_net", "one-buffer", input(0, steps())),
        ("virtio_net", "hole", input(u64::MAX, hole)),
    ]
}

fn sockets() -> Vec<Named> {
    /// The host's port as the target has it: where a program listens, or the first of a connection to the guest.
    const LISTENING: u8 = 0;
    const CALLING: u8 = 5;
    let send = |port: u8, host_port: u8, operation: u8, flags: u8, len: u16| {
        let packet = seed()
            .variant(0, 9)
            .flag(false)
            .u8(port)
            .u8(host_port)
            .u8(1);
        let packet = packet
            .u8(operation)
            .u8(flags)
            .u32(1 << 20)
            .u32(0)
            .flag(false);
        let buffers = request([low(0, 44, false), low(100, len, false)], true);
        joined([packet, buffers])
    };
    let offer = |at: u16| joined([seed().variant(1, 9), request([low(at, 1_000, true)], false)]);
    let call = |port: u8| seed().variant(3, 9).u8(port);
    let speak = |which: u8, len: u16| seed().variant(4, 9).u8(which).u16(len);
    let take = |which: u8, most: u16| seed().variant(5, 9).u8(which).u16(most);
    let end = |which: u8| seed().variant(6, 9).u8(which);
    let go = |which: u8| seed().variant(7, 9).u8(which);
    let run = || seed().variant(8, 9);
    let input = |steps: Seed| seed().flag(true).bytes(&steps.done()).done();
    let by_guest = seed().list([
        offer(0),
        offer(2_000),
        send(1, LISTENING, 1, 0, 0),
        run(),
        send(1, LISTENING, 5, 0, 900),
        send(1, LISTENING, 5, 0, 900),
        run(),
        speak(0, 300),
        take(0, 950),
        run(),
        offer(4_000),
        offer(6_000),
        end(0),
        send(1, LISTENING, 4, 3, 0),
        run(),
        take(0, 950),
        run(),
    ]);
    let by_program = seed().list([
        offer(0),
        offer(2_000),
        call(2),
        run(),
        run(),
        send(2, CALLING, 2, 0, 0),
        send(2, CALLING, 7, 0, 0),
        speak(0, 1_500),
        run(),
        offer(4_000),
        offer(6_000),
        offer(8_000),
        go(0),
        run(),
        send(2, CALLING, 3, 0, 0),
        run(),
    ]);
    let unknown = seed().list([
        send(1, LISTENING, 5, 0, 9),
        send(1, CALLING, 1, 0, 0),
        offer(0),
        offer(2_000),
        run(),
    ]);
    vec![
        ("virtio_vsock", "by-guest", input(by_guest)),
        ("virtio_vsock", "by-program", input(by_program)),
        ("virtio_vsock", "unknown", input(unknown)),
    ]
}

fn balloon() -> Vec<Named> {
    let ask = |queue: u8, request: Seed| joined([seed().variant(0, 6).u8(queue), request]);
    let numbers = |at: u16, numbers: [u8; 16]| seed().variant(1, 6).u16(at).bytes(&numbers);
    let configure = |field: u8, value: u32| seed().variant(2, 6).u8(field).u32(value);
    let target = |pages: u32| seed().variant(3, 6).u32(pages);
    let time = |more: u8| seed().variant(4, 6).u8(more);
    let run = || seed().variant(5, 6);
    let input =
        |features: u64, steps: Seed| seed().u64(features).flag(true).bytes(&steps.done()).done();
    let all = 1 << 1 | 1 << 4 | 1 << 5;
    let numbers_of_pages = [9, 8, 7, 3, 3, 19, 200, 201, 202, 0, 1, 2, 15, 16, 10, 5];
    let every = || {
        seed().list([
            numbers(64, numbers_of_pages),
            // What the request itself puts into its first buffer is read before.
            ask(0, request([low(0, 32, false), low(64, 64, false)], true)),
            ask(1, request([low(0, 64, false)], false)),
            ask(2, request([low(0, 40, false)], true)),
            ask(
                3,
                request([low(0x100, 0x1fff, true), high(0, 0x300, true)], true),
            ),
            ask(4, request([high(0, 0x100, true)], true)),
            target(100),
            configure(1, 3),
            run(),
            // Over the statistics, which are held by now.
            numbers(2 * 0x2666, numbers_of_pages),
            time(99),
            run(),
            time(1),
            ask(2, request([low(50, 45, false)], true)),
            run(),
            configure(3, 1),
            ask(3, request([low(0, 0x1fff, true)], false)),
            run(),
        ])
    };
    let hole = seed().list([ask(0, request([hole(0, 32, false)], true)), run()]);
    let many = seed().list([
        ask(
            0,
            request(
                [
                    low(0, 0x1000, false),
                    low(0, 0x1000, false),
                    low(64, 0x1000, false),
                    low(64, 0x1000, false),
                    low(64, 0x1000, false),
                    low(64, 0x1000, false),
                ],
                true,
            ),
        ),
        numbers(64, numbers_of_pages),
        numbers(256, numbers_of_pages),
        run(),
    ]);
    // A run, of which the driver repeats the number, names pages and tells the end; then pages that come late.
    let pages = || low(0x100, 0x1fff, true);
    let hints = seed().list([
        target(1 << 31 | 1 << 29),
        ask(3, request([low(64, 4, false), pages()], true)),
        numbers(64, [2; 16]),
        run(),
        ask(3, request([low(64, 4, false)], true)),
        numbers(64, [0; 16]),
        run(),
        ask(3, request([pages()], true)),
        ask(4, request([pages()], true)),
        run(),
    ]);
    vec![
        ("virtio_balloon", "every", input(all, every())),
        ("virtio_balloon", "no-statistics", input(1 << 5, every())),
        ("virtio_balloon", "nothing", input(0, every())),
        ("virtio_balloon", "hole", input(all, hole)),
        ("virtio_balloon", "many", input(all, many)),
        ("virtio_balloon", "hints", input(all | 1 << 3, hints)),
    ]
}
