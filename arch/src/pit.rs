//! The state of an 8254 interval timer, as far as a guest can have brought it before its first count.
//!
//! Sources: Intel 8254 datasheet (order 231164), "Programming"; the PC's port 0x61 as in the IBM PS/2
//! Hardware Interface Technical Reference.

/// How the bytes of a count go through a counter's port: bits 5:4 of the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The low byte alone; the high one is zero.
    Low,
    /// The high byte alone; the low one is zero.
    High,
    /// The low byte, then the high one.
    Word,
}

/// What a control word set on a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Programming {
    /// How a count is written and read.
    pub access: Access,
    /// The mode, 0 to 5.
    pub mode: u8,
    /// The counter counts in decimal digits.
    pub bcd: bool,
}

/// One of the three counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// What its control word said, if there was one.
    pub programming: Option<Programming>,
    /// What it counts down from; 0 stands for 65,536.
    pub count: u16,
    /// The low byte of a count whose high byte is still to come.
    pub half_written: Option<u8>,
    /// The low byte of a count was read and its high byte is next.
    pub half_read: bool,
    /// A status byte that the guest reads next, once.
    pub status: Option<u8>,
    /// The gate input: high lets it count.
    pub gate: bool,
}

/// The timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PitState {
    /// The counters: 0 raises IRQ 0, 1 refreshed memory once, 2 drives the speaker.
    pub counters: [Counter; 3],
    /// Bit 1 of port 0x61: the speaker hears counter 2.
    pub speaker: bool,
}

impl PitState {
    /// The timer as a PC without firmware hands it over: nothing is programmed, and the gates of
    /// counters 0 and 1 are wired high. Counter 2's follows bit 0 of port 0x61.
    pub const AFTER_RESET: Self = {
        let counter = Counter {
            programming: None,
            count: 0,
            half_written: None,
            half_read: false,
            status: None,
            gate: true,
        };
        Self {
            counters: [
                counter,
                counter,
                Counter {
                    gate: false,
                    ..counter
                },
            ],
            speaker: false,
        }
    };
}
