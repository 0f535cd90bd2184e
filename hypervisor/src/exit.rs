//! Why a vCPU left the guest, in neutral form.

/// Which way a port access goes, seen from the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Direction<'a> {
    /// IN, INS: the launcher fills the bytes.
    In(&'a mut [u8]),
    /// OUT, OUTS: the launcher takes the bytes.
    Out(&'a [u8]),
}

/// One access to an I/O port, or a string of them to the same port (REP INS, REP OUTS).
#[derive(Debug, PartialEq, Eq)]
pub struct PortAccess<'a> {
    /// The port.
    pub port: u16,
    /// Bytes of one access: 1, 2 or 4. A string operation brings a whole multiple of it.
    pub width: usize,
    /// The direction, with the data of all accesses in order.
    pub direction: Direction<'a>,
}

/// What a paravirtual guest asked of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// Power off.
    PowerOff,
    /// Reset.
    Reset,
    /// The guest reports that it crashed.
    Crash,
    /// An event that we do not know, by the kernel's number.
    Other(u32),
}

/// Why a vCPU left the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// Port I/O.
    Port(PortAccess<'a>),
    /// A read of a physical address without memory behind it.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// To be filled, 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// A write to a physical address without memory behind it.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// What was written, 1 to 8 bytes.
        data: &'a [u8],
    },
    /// HLT in a VM without interrupt controllers: nothing can wake this vCPU.
    Halt,
    /// A triple fault.
    Shutdown,
    /// A paravirtual request.
    SystemEvent(SystemEvent),
    /// A signal or a kick: look at what changed and enter again.
    Interrupted,
    /// The kernel could not emulate an instruction, or gave up for a reason of its own.
    InternalError,
    /// The processor refused to enter the guest.
    FailEntry {
        /// The hardware's reason (VM-entry failure, SDM vol. 3 appendix C, or SVM exit code).
        reason: u64,
        /// The physical CPU on which it happened.
        cpu: u32,
    },
    /// The guest touched memory that the host cannot provide: a guest physical address whose page is
    /// poisoned or whose backing file has shrunk.
    MemoryFault {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// An exit that a machine of this kind must not cause, by the kernel's number or name.
    Unexpected(&'static str, u32),
}

/// What the kernel says about a failed exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureDetails {
    /// `KVM_EXIT_*` number.
    pub exit_reason: u32,
    /// `KVM_INTERNAL_ERROR_*`: 1 emulation, 2 simultaneous exceptions, 3 delivery of an event,
    /// 4 unexpected exit reason of the hardware.
    pub suberror: u32,
    /// The words that came with it; their meaning depends on `suberror`.
    pub data: [u64; 16],
    /// How many of the words are valid.
    pub data_len: usize,
}

impl FailureDetails {
    /// The internal error's kind in words.
    #[must_use]
    pub fn suberror_name(&self) -> &'static str {
        match self.suberror {
            1 => "the kernel could not emulate an instruction",
            2 => "simultaneous exceptions",
            3 => "an event could not be delivered",
            4 => "an exit reason of the hardware that the kernel does not know",
            _ => "an error that this launcher does not know",
        }
    }

    /// The instruction bytes at fault, if the kernel gave them: flag bit 0 of the first word says so
    /// (`KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`, Documentation/virt/kvm/api.rst).
    #[must_use]
    pub fn instruction_bytes(&self) -> Option<([u8; 15], usize)> {
        if self.suberror != 1 || self.data_len < 2 || self.data[0] & 1 == 0 {
            return None;
        }
        // One size byte, then up to 15 instruction bytes, in the second and third word.
        let [low, high] = [self.data[1].to_le_bytes(), self.data[2].to_le_bytes()];
        let mut bytes = [0; 15];
        bytes[..7].copy_from_slice(&low[1..]);
        bytes[7..].copy_from_slice(&high);
        Some((bytes, usize::from(low[0]).min(15)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_bytes_of_an_emulation_error_are_found() {
        let mut details = FailureDetails {
            suberror: 1,
            data_len: 4,
            ..Default::default()
        };
        // flags = 1; size = 3, then 0f 01 f9 (RDTSCP)
        details.data[0] = 1;
        details.data[1] = u64::from_le_bytes([3, 0x0f, 0x01, 0xf9, 0, 0, 0, 0]);
        let (bytes, len) = details.instruction_bytes().expect("flag is set");
        assert_eq!(&bytes[..len], [0x0f, 0x01, 0xf9]);
    }

    #[test]
    fn instruction_bytes_without_the_flag_are_absent() {
        let details = FailureDetails {
            suberror: 1,
            data_len: 4,
            ..Default::default()
        };
        assert_eq!(details.instruction_bytes(), None);
        let other = FailureDetails {
            suberror: 3,
            data_len: 4,
            data: [1; 16],
            exit_reason: 0,
        };
        assert_eq!(other.instruction_bytes(), None);
    }

    #[test]
    fn instruction_size_beyond_the_field_is_bounded() {
        let mut details = FailureDetails {
            suberror: 1,
            data_len: 4,
            ..Default::default()
        };
        details.data[0] = 1;
        details.data[1] = 0xff;
        assert_eq!(details.instruction_bytes().expect("flag is set").1, 15);
    }
}
