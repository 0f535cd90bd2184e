// A 64-bit guest that writes a line, waits for a byte from the keyboard, such as the first of
// Ctrl+Alt+Del, and resets through the keyboard controller (command 0xFE).

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
        // The controller's status: bit 0 says that there is a byte.
2:      in al, 0x64
        test al, 1
        jz 2b
        mov al, 0xfe
        out 0x64, al
3:      hlt
        jmp 3b

        .section .rodata
line:   .ascii "keyboard guest\n"
line_end:
