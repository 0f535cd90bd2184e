// A multiboot 1 kernel that writes down all that it was given, then ends through the debug port, and
// by a reset where there is none. Multiboot Specification 0.6.96, sections 3.1 to 3.3.

        .intel_syntax noprefix
        .code32
        .set MAGIC, 0x1badb002
        .set ALIGN_MODULES, 1 << 0
        .set MEMORY_INFORMATION, 1 << 1
        .set HEADER_FLAGS, ALIGN_MODULES | MEMORY_INFORMATION

        // Fields of the information structure, and its flags.
        .set FLAG_MEMORY, 1 << 0
        .set FLAG_CMDLINE, 1 << 2
        .set FLAG_MODULES, 1 << 3
        .set FLAG_MAP, 1 << 6

        .text
        .globl _start
        .p2align 2
        .long MAGIC
        .long HEADER_FLAGS
        .long -(MAGIC + HEADER_FLAGS)

_start:
        cld
        mov esp, offset stack_end
        mov ebp, eax
        mov eax, cr0
        push eax
        pushfd

        mov esi, offset text_magic
        mov eax, ebp
        call print_field
        // Interrupts off (bit 9), protected mode without paging (bits 0 and 31).
        mov esi, offset text_interrupts
        pop eax
        shr eax, 9
        and eax, 1
        call print_field
        mov esi, offset text_protected
        mov eax, [esp]
        and eax, 1
        call print_field
        mov esi, offset text_paging
        pop eax
        shr eax, 31
        call print_field

        mov esi, offset text_flags
        mov eax, [ebx]
        call print_field
        test dword ptr [ebx], FLAG_MEMORY
        jz 1f
        mov esi, offset text_lower
        mov eax, [ebx + 4]
        call print_field
        mov esi, offset text_upper
        mov eax, [ebx + 8]
        call print_field
1:
        test dword ptr [ebx], FLAG_CMDLINE
        jz 1f
        mov esi, offset text_cmdline
        call print
        mov esi, [ebx + 16]
        call print
        call newline
1:
        test dword ptr [ebx], FLAG_MODULES
        jz 3f
        mov edi, [ebx + 24]
        mov ecx, [ebx + 20]
        mov esi, offset text_modules
        mov eax, ecx
        call print_field
2:
        test ecx, ecx
        jz 3f
        // A module: start, end, string, reserved.
        mov esi, offset text_string
        call print
        mov esi, [edi + 8]
        call print
        call newline
        mov esi, offset text_misaligned
        mov eax, [edi]
        and eax, 0xfff
        call print_field
        mov esi, offset text_contents
        call print
        mov esi, [edi]
        mov edx, [edi + 4]
        call print_range
        call newline
        add edi, 16
        dec ecx
        jmp 2b
3:
        test dword ptr [ebx], FLAG_MAP
        jz 5f
        mov edi, [ebx + 48]
        mov ebp, [ebx + 44]
        add ebp, edi
4:
        cmp edi, ebp
        jae 5f
        // A range: size of what follows, base (8), length (8), type.
        mov esi, offset text_range
        call print
        mov eax, [edi + 8]
        call print_hex
        mov eax, [edi + 4]
        call print_hex
        call space
        mov eax, [edi + 16]
        call print_hex
        mov eax, [edi + 12]
        call print_hex
        call space
        mov eax, [edi + 20]
        call print_hex
        call newline
        add edi, [edi]
        add edi, 4
        jmp 4b
5:
        mov esi, offset text_end
        call print
        call newline
        // The launcher's status is (0x10 << 1) | 1 = 33 where the debug port is switched on.
        mov al, 0x10
        out 0xf4, al
        mov al, 0xfe
        out 0x64, al
6:      hlt
        jmp 6b

// print_field: the text at ESI, then EAX in hexadecimal, then a newline.
print_field:
        push eax
        call print
        pop eax
        call print_hex
        jmp newline

// print: the text at ESI, up to its zero byte.
print:
        push eax
        push edx
        mov dx, 0x3f8
1:      lodsb
        test al, al
        jz 2f
        out dx, al
        jmp 1b
2:      pop edx
        pop eax
        ret

// print_range: the bytes from ESI to EDX.
print_range:
        push eax
1:      cmp esi, edx
        jae 2f
        lodsb
        push edx
        mov dx, 0x3f8
        out dx, al
        pop edx
        jmp 1b
2:      pop eax
        ret

// print_hex: EAX as eight digits.
print_hex:
        push ecx
        push edx
        mov ecx, 8
        mov edx, eax
1:      rol edx, 4
        mov eax, edx
        and eax, 15
        mov al, [digits + eax]
        push edx
        mov dx, 0x3f8
        out dx, al
        pop edx
        loop 1b
        pop edx
        pop ecx
        ret

space:
        mov al, ' '
        jmp 1f
newline:
        mov al, '\n'
1:      push edx
        mov dx, 0x3f8
        out dx, al
        pop edx
        ret

        .section .rodata
digits: .ascii "0123456789abcdef"
text_magic: .asciz "magic: "
text_interrupts: .asciz "interrupts: "
text_protected: .asciz "protected mode: "
text_paging: .asciz "paging: "
text_flags: .asciz "flags: "
text_lower: .asciz "lower KiB: "
text_upper: .asciz "upper KiB: "
text_cmdline: .asciz "command line: "
text_modules: .asciz "modules: "
text_string: .asciz "module string: "
text_misaligned: .asciz "module misaligned by: "
text_contents: .asciz "module contents: "
text_range: .asciz "range: "
text_end: .asciz "end"

        .bss
        .p2align 4
        .skip 4096
stack_end:
