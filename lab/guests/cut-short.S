// A 64-bit guest with a persistent memory of 2 MiB at 4 GiB: waits until its first byte is 1, then writes into its
// middle, which is gone by then.

        .include "say.inc"
        .text
        .globl _start
_start:
        // It is to be at 1 GiB: the first entry of the second page directory (arch/src/layout.rs), which is present,
        // writable and of 2 MiB.
        mov ebx, 0xc000
        mov dword ptr [rbx], 0x83
        mov dword ptr [rbx + 4], 1
        mov ebx, 0x40000000
        say "ready"
1:      cmp byte ptr [rbx], 1
        jne 1b
        say "cut"
        mov byte ptr [rbx + 0x100000], 1
        say "alive"
2:      hlt
        jmp 2b
