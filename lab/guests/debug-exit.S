// A 64-bit guest that writes a line and ends through the debug port with 3: status (3 << 1) | 1 = 7.

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
        mov al, 3
        out 0xf4, al
2:      hlt
        jmp 2b

        .section .rodata
line:   .ascii "debug exit guest\n"
line_end:
