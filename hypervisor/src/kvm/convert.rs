//! Between the kernel's structures and ours. Every field is named on both sides: a field that one
//! side gains is a compile error or a visible default, never a silent zero.

use arch::cpuid::CpuidEntry;
use arch::regs::{DescriptorTable, GeneralRegisters, Segment, SystemRegisters};
use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
};

pub(super) fn cpuid_from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

pub(super) fn cpuid_to_kvm(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: if entry.indexed {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        padding: [0; 3],
    }
}

/// The same conversion of all registers in both directions, from one list of their names.
macro_rules! registers {
    ($($field:ident),*) => {
        pub(super) fn general_from_kvm(regs: &kvm_regs) -> GeneralRegisters {
            GeneralRegisters { $($field: regs.$field),* }
        }

        pub(super) fn general_to_kvm(regs: &GeneralRegisters) -> kvm_regs {
            kvm_regs { $($field: regs.$field),* }
        }
    };
}

registers!(
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags
);

fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    Segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        kind: segment.type_,
        present: segment.present != 0,
        dpl: segment.dpl,
        db: segment.db != 0,
        s: segment.s != 0,
        l: segment.l != 0,
        g: segment.g != 0,
        unusable: segment.unusable != 0,
    }
}

fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: segment.s.into(),
        l: segment.l.into(),
        g: segment.g.into(),
        avl: 0,
        unusable: segment.unusable.into(),
        padding: 0,
    }
}

fn table_from_kvm(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

fn table_to_kvm(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

pub(super) fn system_from_kvm(sregs: &kvm_sregs) -> SystemRegisters {
    SystemRegisters {
        cs: segment_from_kvm(&sregs.cs),
        ds: segment_from_kvm(&sregs.ds),
        es: segment_from_kvm(&sregs.es),
        fs: segment_from_kvm(&sregs.fs),
        gs: segment_from_kvm(&sregs.gs),
        ss: segment_from_kvm(&sregs.ss),
        tr: segment_from_kvm(&sregs.tr),
        ldt: segment_from_kvm(&sregs.ldt),
        gdt: table_from_kvm(&sregs.gdt),
        idt: table_from_kvm(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
    }
}

pub(super) fn system_to_kvm(registers: &SystemRegisters) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to_kvm(&registers.cs),
        ds: segment_to_kvm(&registers.ds),
        es: segment_to_kvm(&registers.es),
        fs: segment_to_kvm(&registers.fs),
        gs: segment_to_kvm(&registers.gs),
        ss: segment_to_kvm(&registers.ss),
        tr: segment_to_kvm(&registers.tr),
        ldt: segment_to_kvm(&registers.ldt),
        gdt: table_to_kvm(&registers.gdt),
        idt: table_to_kvm(&registers.idt),
        cr0: registers.cr0,
        cr2: registers.cr2,
        cr3: registers.cr3,
        cr4: registers.cr4,
        cr8: registers.cr8,
        efer: registers.efer,
        apic_base: registers.apic_base,
        // Pending interrupts are state of KVM_SET_VCPU_EVENTS; none here.
        interrupt_bitmap: [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(seed: u8) -> Segment {
        Segment {
            base: u64::from(seed) << 32,
            limit: 0xfffff,
            selector: u16::from(seed) * 8,
            kind: 0xb,
            present: true,
            dpl: 3,
            db: true,
            s: true,
            l: seed.is_multiple_of(2),
            g: true,
            unusable: false,
        }
    }

    #[test]
    fn system_registers_survive_the_round_trip() {
        let table = |base| DescriptorTable { base, limit: 0x7f };
        let registers = SystemRegisters {
            cs: segment(1),
            ds: segment(2),
            es: segment(3),
            fs: segment(4),
            gs: segment(5),
            ss: segment(6),
            tr: segment(7),
            ldt: Segment {
                unusable: true,
                ..Segment::default()
            },
            gdt: table(0x500),
            idt: table(0x600),
            cr0: 1,
            cr2: 2,
            cr3: 3,
            cr4: 4,
            cr8: 5,
            efer: 6,
            apic_base: 7,
        };
        assert_eq!(system_from_kvm(&system_to_kvm(&registers)), registers);
    }

    #[test]
    fn cpuid_index_significance_survives_the_round_trip() {
        for indexed in [false, true] {
            let entry = CpuidEntry {
                function: 0xb,
                index: 1,
                indexed,
                ..Default::default()
            };
            assert_eq!(cpuid_from_kvm(&cpuid_to_kvm(&entry)), entry);
        }
    }
}
