//! The report about a vCPU that cannot go on.

use std::fmt::Write as _;

use arch::regs::{DescriptorTable, GeneralRegisters, Segment, SystemRegisters};
use hypervisor::{FailureDetails, Vcpu};
use tsc::VcpuId;

use crate::error::one_line;

/// The reason, what the kernel left about it, and all registers.
pub(crate) fn failure_report(id: VcpuId, reason: &str, vcpu: &impl Vcpu) -> String {
    let mut report = format!("{id}: {reason}\n");
    append_details(&mut report, &vcpu.failure_details());
    match vcpu.general_registers() {
        Ok(registers) => append_general(&mut report, &registers),
        Err(error) => append(
            &mut report,
            format_args!("  general registers: {}", one_line(&error)),
        ),
    }
    match vcpu.system_registers() {
        Ok(registers) => append_system(&mut report, &registers),
        Err(error) => append(
            &mut report,
            format_args!("  system registers: {}", one_line(&error)),
        ),
    }
    report.truncate(report.trim_end().len());
    report
}

fn append(report: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(report, "{line}");
}

fn append_details(report: &mut String, details: &FailureDetails) {
    append(
        report,
        format_args!("  exit reason {}", details.exit_reason),
    );
    if let Some((bytes, len)) = details.instruction_bytes() {
        append(report, format_args!("  instruction {:02x?}", &bytes[..len]));
    }
}

fn append_general(report: &mut String, r: &GeneralRegisters) {
    let rows: [[(&str, u64); 3]; 6] = [
        [("rip", r.rip), ("rflags", r.rflags), ("rsp", r.rsp)],
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx)],
        [("rdx", r.rdx), ("rsi", r.rsi), ("rdi", r.rdi)],
        [("rbp", r.rbp), ("r8", r.r8), ("r9", r.r9)],
        [("r10", r.r10), ("r11", r.r11), ("r12", r.r12)],
        [("r13", r.r13), ("r14", r.r14), ("r15", r.r15)],
    ];
    for [(a, x), (b, y), (c, z)] in rows {
        append(
            report,
            format_args!("  {a:>6} {x:016x}  {b:>6} {y:016x}  {c:>6} {z:016x}"),
        );
    }
}

fn append_system(report: &mut String, s: &SystemRegisters) {
    append(
        report,
        format_args!(
            "     cr0 {:016x}     cr2 {:016x}     cr3 {:016x}\n     cr4 {:016x}    efer {:016x}    apic {:016x}",
            s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.apic_base
        ),
    );
    let segments: [(&str, &Segment); 8] = [
        ("cs", &s.cs),
        ("ds", &s.ds),
        ("es", &s.es),
        ("fs", &s.fs),
        ("gs", &s.gs),
        ("ss", &s.ss),
        ("tr", &s.tr),
        ("ldt", &s.ldt),
    ];
    for (name, segment) in segments {
        append(
            report,
            format_args!(
                "  {name:>6} {:04x} base {:016x} limit {:08x} type {:x}{}{}{}{}",
                segment.selector,
                segment.base,
                segment.limit,
                segment.kind,
                if segment.l { " 64-bit" } else { "" },
                if segment.db { " 32-bit" } else { "" },
                if segment.present { "" } else { " not present" },
                if segment.unusable { " unusable" } else { "" },
            ),
        );
    }
    let tables: [(&str, &DescriptorTable); 2] = [("gdt", &s.gdt), ("idt", &s.idt)];
    for (name, table) in tables {
        append(
            report,
            format_args!(
                "  {name:>6} base {:016x} limit {:04x}",
                table.base, table.limit
            ),
        );
    }
}
