// A 64-bit guest that writes a line, waits for Ctrl+Alt+Del, and resets through the keyboard controller
// (command 0xFE). Any other byte from the keyboard stops it for ever.

        .include "say.inc"
        .text
        .globl _start
_start:
        say "keyboard guest"
        lea rsi, [rip + keys]
        mov ecx, offset keys_end - keys
        // The controller's status: bit 0 says that there is a byte.
2:      in al, 0x64
        test al, 1
        jz 2b
        in al, 0x60
        cmp al, [rsi]
        jne 3f
        inc rsi
        dec ecx
        jnz 2b
        mov al, 0xfe
        out 0x64, al
3:      hlt
        jmp 3b

        .section .rodata
        // Scan code set 1: Ctrl, Alt and the grey Delete go down.
keys:   .byte 0x1d, 0x38, 0xe0, 0x53
keys_end:
