// A 64-bit guest that writes a line and powers off through the ACPI control register PM1a: SLP_EN
// (bit 13) with the sleep type 5 of the launcher's \_S5 (ACPI 6.5, 4.8.3.2).

        .include "say.inc"
        .text
        .globl _start
_start:
        say "power-off guest"
        mov dx, 0x604
        mov ax, 5 << 10 | 1 << 13
        out dx, ax
2:      hlt
        jmp 2b
