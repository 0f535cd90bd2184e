// A 64-bit guest that runs 40 million instructions without leaving the processor, then writes a line and
// resets: nothing for a processor, long for an interpreter.

        .intel_syntax noprefix
        .text
        .globl _start
_start:
        mov ecx, 20000000
1:      dec ecx
        jnz 1b
        cld
        lea rsi, [rip + line]
        mov ecx, offset line_end - line
        mov dx, 0x3f8
2:      lodsb
        out dx, al
        dec ecx
        jnz 2b
        mov al, 0xfe
        out 0x64, al
3:      hlt
        jmp 3b

        .section .rodata
line:   .ascii "loop guest\n"
line_end:
