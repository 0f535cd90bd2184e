// A 64-bit guest that writes a line and ends through the debug port with 3: status (3 << 1) | 1 = 7.

        .include "say.inc"
        .text
        .globl _start
_start:
        say "debug exit guest"
        mov al, 3
        out 0xf4, al
2:      hlt
        jmp 2b
