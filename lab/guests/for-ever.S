// A 64-bit guest that runs for ever and looks at nothing.

        .intel_syntax noprefix
        .text
        .globl _start
_start:
        jmp _start
