// A 64-bit guest that writes a line and then meets an exception with no table of handlers: the fault in
// delivering it, and the next one in delivering that, shut the processor down (SDM vol. 3, 6.15).

        .intel_syntax noprefix
        .text
        .globl _start
_start:
        cld
        lea rsi, [rip + line]
        mov ecx, offset line_end - line
        mov dx, 0x3f8
        // Byte by byte: the string form of OUT needs an emulator on some hosts.
1:      lodsb
        out dx, al
        dec ecx
        jnz 1b
        lidt [rip + no_table]
        ud2
2:      hlt
        jmp 2b

        .section .rodata
line:   .ascii "triple fault guest\n"
line_end:
no_table:
        .word 0
        .quad 0
