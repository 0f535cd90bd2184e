// A 64-bit guest that writes a line and resets through the keyboard controller (command 0xFE).

        .include "say.inc"
        .text
        .globl _start
_start:
        say "reset guest"
        mov al, 0xfe
        out 0x64, al
2:      hlt
        jmp 2b
