// A 64-bit guest that runs 40 million instructions without leaving the processor, then writes a line and
// resets: nothing for a processor, long for an interpreter.

        .include "say.inc"
        .text
        .globl _start
_start:
        mov ecx, 20000000
1:      dec ecx
        jnz 1b
        say "loop guest"
        mov al, 0xfe
        out 0x64, al
3:      hlt
        jmp 3b
