// A 64-bit guest that writes a line and resets through the keyboard controller (command 0xFE).

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
        mov al, 0xfe
        out 0x64, al
2:      hlt
        jmp 2b

        .section .rodata
line:   .ascii "reset guest\n"
line_end:
