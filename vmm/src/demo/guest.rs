//! The guest that is compiled into the binary.
//!
//! A complete ELF image of a few hundred bytes, assembled with the rest of the program, so that it is
//! booted by the same loader as any kernel. It enters in 64-bit mode with memory identity-mapped (the
//! Linux 64-bit protocol) and needs no interrupts. It uses no instruction that a software KVM is known
//! to lack: no RDTSCP, no SSE.
#![expect(
    unsafe_code,
    reason = "the image is a range between two symbols of the assembler"
)]

/// First port of the probe: see [`super::probe`] for what each offset means.
pub(super) const PROBE_PORT: u16 = 0x510;
/// Ports of the probe.
pub(super) const PROBE_PORTS: u16 = 8;
/// How often the guest compares two readings of its TSC.
pub(super) const READINGS: u32 = 5_000;
/// How many bracketed readings it gives the host at the beginning, and again at the end.
pub(super) const MARKS: u32 = 16;

core::arch::global_asm!(
    r#"
    .pushsection .rodata.keeptime_demo_guest, "a"
    .balign 16
    .set LOAD, 0x100000
    .global keeptime_demo_guest_begin
    .global keeptime_demo_guest_end
keeptime_demo_guest_begin:
    // Elf64_Ehdr: class 64, little endian, version 1; an executable for x86-64
    .byte 0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .short 2, 62
    .long 1
    .quad LOAD + (20f - keeptime_demo_guest_begin)
    .quad 64, 0
    .long 0
    .short 64, 56, 1, 64, 0, 0
    // Elf64_Phdr: PT_LOAD, RWX, the whole file at LOAD and a page of stack behind it
    .long 1, 7
    .quad 0, LOAD, LOAD
    .quad keeptime_demo_guest_end - keeptime_demo_guest_begin
    .quad keeptime_demo_guest_end - keeptime_demo_guest_begin + 4096
    .quad 4096

20: // entry
    cld
    lea rsp, [rip + keeptime_demo_guest_end + 4096]
    and rsp, -16
    lea rsi, [rip + 60f]
    call 40f
    call 30f

    // r12: readings to go, r13: backwards steps, r14: smallest step, r15: largest step, rbx: last
    mov r12d, {readings}
    xor r13d, r13d
    mov r14, -1
    xor r15d, r15d
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov rbx, rax
21: rdtsc
    shl rdx, 32
    or rax, rdx
    mov rcx, rax
    sub rcx, rbx
    mov rbx, rax
    js 22f
    cmp rcx, r14
    cmovb r14, rcx
    cmp rcx, r15
    cmova r15, rcx
    dec r12d
    jnz 21b
    jmp 23f
22: inc r13
    dec r12d
    jnz 21b
23:
    call 30f

    lea rsi, [rip + 61f]
    mov eax, {readings}
    call 50f
    lea rsi, [rip + 62f]
    mov rax, r13
    call 50f
    lea rsi, [rip + 63f]
    mov rax, r14
    call 50f
    lea rsi, [rip + 64f]
    mov rax, r15
    call 50f
    lea rsi, [rip + 65f]
    call 40f

    // End through the debug-exit port: 0 for no backwards step, 1 otherwise.
    xor eax, eax
    test r13, r13
    setnz al
    mov edx, {debug_exit}
    out dx, al
24: hlt
    jmp 24b

    // Bracketed readings: IN lets the host note its time, then the TSC, then OUT gives it.
30: mov ebp, {marks}
31: mov edx, {probe}
    in eax, dx
    rdtsc
    mov r8d, edx
    mov edx, {probe}
    out dx, eax
    mov eax, r8d
    add edx, 4
    out dx, eax
    dec ebp
    jnz 31b
    ret

    // Prints the string at rsi up to its zero byte.
40: mov edx, {serial}
41: lodsb
    test al, al
    jz 42f
    out dx, al
    jmp 41b
42: ret

    // Prints the string at rsi, then rax in decimal.
50: push rax
    call 40b
    pop rax
    mov ecx, 10
    xor edi, edi
51: xor edx, edx
    div rcx
    add edx, 48
    push rdx
    inc edi
    test rax, rax
    jnz 51b
    mov edx, {serial}
52: pop rax
    out dx, al
    dec edi
    jnz 52b
    ret

60: .asciz "Keeptime demo: a guest reads its time stamp counter\r\n"
61: .asciz "  readings          "
62: .asciz "\r\n  backwards steps   "
63: .asciz "\r\n  smallest step     "
64: .asciz " ticks\r\n  largest step      "
65: .asciz " ticks\r\n"
    .balign 16
keeptime_demo_guest_end:
    .popsection
    "#,
    readings = const READINGS,
    marks = const MARKS,
    probe = const PROBE_PORT,
    serial = const arch::layout::COM1_PORT,
    debug_exit = const arch::layout::DEBUG_EXIT_PORT,
);

/// The guest's ELF image.
pub(super) fn image() -> &'static [u8] {
    unsafe extern "C" {
        static keeptime_demo_guest_begin: u8;
        static keeptime_demo_guest_end: u8;
    }
    // SAFETY: both symbols bound one range of read-only data in this program, which is never
    // written and lives as long as the process.
    unsafe {
        let begin = &raw const keeptime_demo_guest_begin;
        let end = &raw const keeptime_demo_guest_end;
        std::slice::from_raw_parts(begin, end.addr() - begin.addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_a_small_elf_whose_segment_is_the_file() {
        let image = image();
        assert_eq!(&image[..6], b"\x7fELF\x02\x01");
        assert!(image.len() < 1024, "{} bytes", image.len());
        let file_size = u64::from_le_bytes(image[96..104].try_into().expect("8 bytes"));
        assert_eq!(file_size, image.len() as u64);
    }
}
