//! The local APIC's register page, as hypervisors save and restore it.

/// Size of the registers that are saved: offsets 0 to 0x3FF (SDM vol. 3, table 11-1).
pub const REGISTERS_SIZE: usize = 1024;

/// Offsets of the local vector table's entries for the pins LINT0 and LINT1 (SDM vol. 3,
/// table 11-1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery mode, bits 10:8 of an entry, and mask, bit 16 (SDM vol. 3, 11.5.1).
const DELIVERY_MODE_AND_MASK: u32 = 0x7 << 8 | 1 << 16;
const DELIVERY_NMI: u32 = 0x4 << 8;
const DELIVERY_EXTINT: u32 = 0x7 << 8;

/// Wires the boot processor's pins as a PC does (MultiProcessor Specification 1.4, 3.6.2.2,
/// "virtual wire mode"): LINT0 takes interrupts from the 8259, LINT1 is the NMI.
pub fn wire_boot_processor(registers: &mut [u8; REGISTERS_SIZE]) {
    for (offset, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        // OK because both offsets are inside the array, by their values.
        let Some(field) = registers
            .get_mut(offset..)
            .and_then(|r| r.first_chunk_mut::<4>())
        else {
            continue;
        };
        let entry = u32::from_le_bytes(*field) & !DELIVERY_MODE_AND_MASK | mode;
        *field = entry.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_boot_processor_changes_mode_and_mask_only() {
        let mut registers = [0; REGISTERS_SIZE];
        // Masked with vector 0x2A and level-triggered (bit 15): as a guest might have left it.
        registers[0x350..0x354].copy_from_slice(&0x0001_802A_u32.to_le_bytes());
        registers[0x360..0x364].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        wire_boot_processor(&mut registers);
        assert_eq!(registers[0x350..0x354], 0x872A_u32.to_le_bytes());
        assert_eq!(registers[0x360..0x364], 0x0400_u32.to_le_bytes());
        let others = registers.iter().enumerate().filter(|(_, byte)| **byte != 0);
        assert!(others.into_iter().all(|(i, _)| (0x350..0x364).contains(&i)));
    }
}
