// A 64-bit guest that uses the interval timer in each of the ways that make the launcher bring it into
// being, and says what it saw: counter 2 is in its mode and counts down, the refresh bit of port 0x61
// toggles, counter 0 raises IRQ 0. Then it resets the machine. What never comes true is waited for without
// end.

        .set PIC, 0x20
        .set COUNTER_0, 0x40
        .set COUNTER_2, 0x42
        .set CONTROL, 0x43
        .set SPEAKER, 0x61

        .include "say.inc"
        .text
        .globl _start
_start:
        // Counter 2: gate high, both bytes, mode 0, count 0xffff.
        mov al, 1
        out SPEAKER, al
        mov al, 0xb0
        out CONTROL, al
        mov al, 0xff
        out COUNTER_2, al
        out COUNTER_2, al
        // Read-back of its status: but for the output, what the control word said.
        mov al, 0xe8
        out CONTROL, al
        in al, COUNTER_2
        and al, 0x3f
        cmp al, 0x30
        jne 0f
        say "counter 2 is in its mode"
0:      call counter_2
        mov ebx, eax
1:      call counter_2
        cmp eax, ebx
        je 1b
        ja 2f
        say "counter 2 counts down"

        // Bit 4 of the speaker port.
2:      in al, SPEAKER
        mov bl, al
3:      in al, SPEAKER
        xor al, bl
        test al, 0x10
        jz 3b
        say "refresh bit toggles"

        // Counter 0: both bytes, mode 0, count 0x1000; then bit 0 of the interrupt controller's request
        // register.
        mov al, 0x30
        out CONTROL, al
        mov al, 0x00
        out COUNTER_0, al
        mov al, 0x10
        out COUNTER_0, al
        mov al, 0x0a
        out PIC, al
4:      in al, PIC
        test al, 1
        jz 4b
        say "counter 0 raises its interrupt"
        mov al, 0xfe
        out 0x64, al
5:      hlt
        jmp 5b

// Counter 2's latched value in eax.
counter_2:
        mov al, 0x80
        out CONTROL, al
        xor eax, eax
        in al, COUNTER_2
        mov ecx, eax
        in al, COUNTER_2
        shl eax, 8
        or eax, ecx
        ret
