//! What guests send to their metadata service.

use crate::seed::{Seed, seed};

type Named = (&'static str, &'static str, Vec<u8>);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// What is said in a segment.
#[derive(Clone, Copy)]
enum Text {
    None,
    Token,
    Get(u8),
    Long(u16),
}

/// A segment of a connection, as it should be.
fn segment(connection: u8, flags: u8, text: Text) -> Seed {
    let segment = seed().variant(1, 4).u8(connection).u8(flags).u16(8_000);
    let segment = segment.u8(0).u8(0);
    let segment = match text {
        Text::None => segment.variant(0, 5),
        Text::Token => segment.variant(1, 5).u8(60),
        Text::Get(path) => segment.variant(2, 5).u8(path),
        Text::Long(len) => segment.variant(4, 5).u16(len),
    };
    // Nothing is wrong; every second connection's card computes checksums.
    segment.flag(false).flag(connection.is_multiple_of(2))
}

fn take(count: u8) -> Seed {
    seed().variant(3, 4).u8(count)
}

fn wait(milliseconds: u16) -> Seed {
    seed().variant(2, 4).u16(milliseconds)
}

/// A frame of these bytes behind its virtio header.
fn frame(bytes: &[u8]) -> Seed {
    let all = [&[0; 12], bytes].concat();
    let listed = all.iter().fold(seed().variant(0, 4), |listed, byte| {
        listed.flag(true).u8(*byte)
    });
    listed.flag(false)
}

/// Who has 169.254.169.254? Behind `tags`.
fn question(tags: &[u8]) -> Seed {
    let ethernet = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xaa, 0xfc, 0, 0, 0, 1];
    let arp = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0xaa, 0xfc, 0, 0, 0, 1];
    let addresses = [172, 16, 0, 2, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254];
    frame(&[&ethernet, tags, &arp, &addresses].concat())
}

pub(crate) fn seeds() -> Vec<Named> {
    let input = |second: bool, steps: Seed| seed().flag(second).flag(false).bytes(&steps.done());
    let fetch = seed().list([
        question(&[]),
        take(1),
        segment(0, SYN, Text::None),
        take(1),
        segment(0, ACK, Text::Get(2)),
        take(3),
        segment(0, ACK, Text::Get(3)),
        take(2),
        segment(0, ACK, Text::None),
        take(9),
        segment(0, ACK | FIN, Text::None),
        take(9),
    ]);
    let session = seed().list([
        segment(1, SYN, Text::None),
        segment(2, SYN, Text::None),
        take(2),
        segment(1, ACK, Text::Token),
        segment(2, ACK | FIN, Text::Get(1)),
        take(4),
        segment(1, ACK | RST, Text::None),
        wait(9_000),
        take(1),
        wait(2_000),
        take(5),
    ]);
    let rude = seed().list([
        question(&[0x81, 0, 0, 0]),
        segment(3, ACK, Text::Get(1)),
        segment(3, SYN, Text::None),
        take(2),
        segment(3, ACK, Text::Long(2_048)),
        segment(3, ACK, Text::Long(4_000)),
        segment(3, ACK, Text::Long(4_000)),
        take(1),
        wait(700),
        segment(3, SYN | FIN, Text::None),
        take(4),
    ]);
    vec![
        ("mmds_frames", "fetch", input(false, fetch).done()),
        ("mmds_frames", "session", input(true, session).done()),
        ("mmds_frames", "rude", input(true, rude).done()),
    ]
}
