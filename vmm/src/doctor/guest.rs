//! The probe guest's image: an ELF file of a few hundred bytes, assembled with the program.
//!
//! It enters in 64-bit mode with memory identity-mapped (the Linux 64-bit protocol), needs no
//! interrupts and no stack, and uses no instruction that a software KVM is known to lack.
#![expect(
    unsafe_code,
    reason = "the image is a range between two symbols of the assembler"
)]

/// The guest's IN here is answered with what it is to do: 0 to read its TSC and write the low half
/// here and the high half four ports on; 1 to answer in its mailbox.
pub(super) const PORT: u16 = 0x510;
/// Guest physical address of the mailbox: the 32-bit number of a request,
pub(super) const MAILBOX: u64 = 0x18_0000;
/// and so many bytes on the number of the last one that was answered,
pub(super) const ANSWER: u64 = 8;
/// and so many on what the TSC was then.
pub(super) const READING: u64 = 16;
/// The request after which the guest leaves.
pub(super) const STOP: u32 = u32::MAX;

core::arch::global_asm!(
    r#"
    .pushsection .rodata.keeptime_probe_guest, "a"
    .balign 16
    .set LOAD, 0x100000
    .global keeptime_probe_guest_begin
    .global keeptime_probe_guest_end
keeptime_probe_guest_begin:
    // Elf64_Ehdr: class 64, little endian, version 1; an executable for x86-64
    .byte 0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .short 2, 62
    .long 1
    .quad LOAD + (20f - keeptime_probe_guest_begin)
    .quad 64, 0
    .long 0
    .short 64, 56, 1, 64, 0, 0
    // Elf64_Phdr: PT_LOAD, RWX, the whole file at LOAD
    .long 1, 7
    .quad 0, LOAD, LOAD
    .quad keeptime_probe_guest_end - keeptime_probe_guest_begin
    .quad keeptime_probe_guest_end - keeptime_probe_guest_begin
    .quad 4096

20: mov edx, {port}
    in eax, dx
    test eax, eax
    jnz 21f
    rdtsc
    mov r8d, edx
    mov edx, {port}
    out dx, eax
    mov eax, r8d
    add edx, 4
    out dx, eax
    jmp 20b

21: mov ebx, {mailbox}
22: mov ecx, [rbx]
    cmp ecx, [rbx + {answer}]
    je 22b
    // The request was seen before the TSC is read.
    lfence
    rdtsc
    mov [rbx + {reading}], eax
    mov [rbx + {reading} + 4], edx
    mov [rbx + {answer}], ecx
    cmp ecx, {stop}
    jne 22b
    jmp 20b
    .balign 16
keeptime_probe_guest_end:
    .popsection
    "#,
    port = const PORT,
    mailbox = const MAILBOX,
    answer = const ANSWER,
    reading = const READING,
    stop = const STOP.cast_signed(),
);

/// The guest's ELF image.
pub(super) fn image() -> &'static [u8] {
    unsafe extern "C" {
        static keeptime_probe_guest_begin: u8;
        static keeptime_probe_guest_end: u8;
    }
    // SAFETY: both symbols bound one range of read-only data in this program, which is never
    // written and lives as long as the process.
    unsafe {
        let begin = &raw const keeptime_probe_guest_begin;
        let end = &raw const keeptime_probe_guest_end;
        std::slice::from_raw_parts(begin, end.addr() - begin.addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_a_small_elf_that_does_not_reach_its_mailbox() {
        let image = image();
        assert_eq!(&image[..6], b"\x7fELF\x02\x01");
        let end = 0x10_0000 + u64::try_from(image.len()).expect("small");
        assert!(end <= MAILBOX, "{end:#x}");
        let file_size = u64::from_le_bytes(image[96..104].try_into().expect("8 bytes"));
        assert_eq!(file_size, image.len() as u64);
    }
}
