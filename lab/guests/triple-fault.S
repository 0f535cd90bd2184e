// A 64-bit guest that writes a line and then meets an exception with no table of handlers: the fault in
// delivering it, and the next one in delivering that, shut the processor down (SDM vol. 3, 6.15).

        .include "say.inc"
        .text
        .globl _start
_start:
        say "triple fault guest"
        lidt [rip + no_table]
        ud2
2:      hlt
        jmp 2b

        .section .rodata
no_table:
        .word 0
        .quad 0
