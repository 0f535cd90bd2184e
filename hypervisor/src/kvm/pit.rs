//! The interval timer's state in the kernel's form (Documentation/virt/kvm/api.rst, `KVM_SET_PIT2`;
//! `arch/x86/kvm/i8254.{c,h}`).

use arch::pit::{Access, Counter, PitState};
use kvm_bindings::{kvm_pit_channel_state, kvm_pit_state2};

/// `RW_STATE_LSB`: one byte, the low one.
const LOW: u8 = 1;
/// `RW_STATE_MSB`: one byte, the high one.
const HIGH: u8 = 2;
/// `RW_STATE_WORD0`: two bytes, the low one is next.
const WORD_LOW: u8 = 3;
/// `RW_STATE_WORD1`: two bytes, the high one is next.
const WORD_HIGH: u8 = 4;
/// `KVM_PIT_FLAGS_SPEAKER_DATA_ON` (Linux 5.19): bit 1 of port 0x61. Older kernels keep the bit apart,
/// and ignore this one.
const SPEAKER_DATA_ON: u32 = 1 << 1;

/// Puts `state` into a timer that the kernel has just made.
pub(super) fn apply(state: &PitState, kernel: &mut kvm_pit_state2) {
    for (counter, channel) in state.counters.iter().zip(&mut kernel.channels) {
        apply_counter(counter, channel);
    }
    if state.speaker {
        kernel.flags |= SPEAKER_DATA_ON;
    }
}

fn apply_counter(counter: &Counter, channel: &mut kvm_pit_channel_state) {
    if let Some(programming) = counter.programming {
        let state = match programming.access {
            Access::Low => LOW,
            Access::High => HIGH,
            Access::Word => WORD_LOW,
        };
        channel.rw_mode = state;
        channel.read_state = if counter.half_read { WORD_HIGH } else { state };
        channel.write_state = if counter.half_written.is_some() {
            WORD_HIGH
        } else {
            state
        };
        channel.mode = programming.mode;
        channel.bcd = programming.bcd.into();
    }
    // The kernel takes 0 for 65,536.
    channel.count = counter.count.into();
    channel.write_latch = counter.half_written.unwrap_or(0);
    channel.status_latched = counter.status.is_some().into();
    channel.status = counter.status.unwrap_or(0);
    channel.gate = counter.gate.into();
}

#[cfg(test)]
mod tests {
    use arch::pit::Programming;

    use super::*;

    fn applied(counter: Counter) -> kvm_pit_channel_state {
        // What `kvm_pit_reset` leaves.
        let mut channel = kvm_pit_channel_state {
            mode: 0xff,
            gate: 1,
            count: 0x1_0000,
            ..Default::default()
        };
        apply_counter(&counter, &mut channel);
        channel
    }

    #[test]
    fn counter_after_reset_is_as_the_kernel_made_it() {
        let [zero, ..] = PitState::AFTER_RESET.counters;
        let channel = applied(zero);
        assert_eq!((channel.mode, channel.gate, channel.rw_mode), (0xff, 1, 0));
    }

    #[test]
    fn programmed_counter_carries_mode_count_and_halves() {
        let [zero, ..] = PitState::AFTER_RESET.counters;
        let counter = Counter {
            programming: Some(Programming {
                access: Access::Word,
                mode: 2,
                bcd: true,
            }),
            count: 0x1234,
            half_written: Some(0x56),
            half_read: true,
            status: Some(0x78),
            gate: false,
        };
        let channel = applied(counter);
        let states = (channel.rw_mode, channel.read_state, channel.write_state);
        assert_eq!(states, (WORD_LOW, WORD_HIGH, WORD_HIGH));
        assert_eq!((channel.mode, channel.bcd, channel.gate), (2, 1, 0));
        assert_eq!((channel.count, channel.write_latch), (0x1234, 0x56));
        assert_eq!((channel.status_latched, channel.status), (1, 0x78));
        for (access, state) in [(Access::Low, LOW), (Access::High, HIGH)] {
            let programming = Some(Programming {
                access,
                mode: 0,
                bcd: false,
            });
            let channel = applied(Counter {
                programming,
                ..zero
            });
            assert_eq!((channel.rw_mode, channel.read_state), (state, state));
        }
    }

    #[test]
    fn speaker_is_a_flag() {
        let mut kernel = kvm_pit_state2::default();
        apply(&PitState::AFTER_RESET, &mut kernel);
        assert_eq!(kernel.flags, 0);
        let state = PitState {
            speaker: true,
            ..PitState::AFTER_RESET
        };
        apply(&state, &mut kernel);
        assert_eq!(kernel.flags, SPEAKER_DATA_ON);
    }
}
