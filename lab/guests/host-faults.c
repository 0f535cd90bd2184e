// A 64-bit guest without an operating system that uses all virtio devices while the host takes away what is behind
// them. Of its disks, of 2,048 sectors each, some run out of space and some must not mind. It says "ready" and waits
// for a line on its serial port, during which the host does what it will; twice. Then it fills all disks with a text,
// has them flushed, says so and waits for its end.

#include "virtio-driver.h"

enum { SECTORS = 2048, FRAMES = 100 };
enum { RECEIVED = 1 };
enum { TYPE_READ = 0, TYPE_WRITE = 1, TYPE_FLUSH = 4 };

static uint8_t in(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void line(void) {
    for (;;) {
        while (!(in(0x3fd) & RECEIVED))
            ;
        if (in(0x3f8) == '\n')
            return;
    }
}

// One request of a disk, for a sector at ROOM unless it is a flush; its status.
static uint8_t ask(uint32_t type, uint64_t sector) {
    *(volatile uint8_t *)STATUS_BYTE = 0xff;
    header(type, sector);
    describe(TABLE, 0, (struct descriptor){HEADER, 16, NEXT, type == TYPE_FLUSH ? 2 : 1});
    describe(TABLE, 1, (struct descriptor){ROOM, 512, type == TYPE_READ ? WRITE | NEXT : NEXT, 2});
    describe(TABLE, 2, (struct descriptor){STATUS_BYTE, 1, WRITE, 0});
    offer(0);
    uint32_t written;
    while (!used(&written))
        if (get(STATUS) & NEEDS_RESET)
            fail("disk", "a reset is asked for");
    return *(volatile uint8_t *)STATUS_BYTE;
}

// Every sector is written, and then read; what was written is what is read. The number of writes that failed.
static unsigned disk(uint64_t salt) {
    unsigned errors = 0;
    static uint8_t status[SECTORS];
    for (unsigned at = 0; at < SECTORS; at++) {
        for (unsigned word = 0; word < 64; word++)
            ((volatile uint64_t *)ROOM)[word] = salt + at;
        status[at] = ask(TYPE_WRITE, at);
        errors += status[at] != 0;
        if (status[at] > 1)
            fail("disk", "a status that is none of OK and IOERR");
    }
    for (unsigned at = 0; at < SECTORS; at++) {
        if (ask(TYPE_READ, at) != 0)
            fail("disk", "a sector cannot be read");
        if (!status[at] && *(volatile uint64_t *)(ROOM + 504) != salt + at)
            fail("disk", "a sector was lost that the disk had taken");
    }
    return errors;
}

static void fill(void) {
    for (unsigned word = 0; word < 64; word++)
        ((volatile uint64_t *)ROOM)[word] = FILLING;
    for (unsigned at = 0; at < SECTORS; at++)
        if (ask(TYPE_WRITE, at))
            fail("disk", "a sector cannot be written");
    if (!(offered & FLUSH) || ask(TYPE_FLUSH, 0))
        fail("disk", "it cannot be flushed");
}

static void round(uint64_t salt) {
    unsigned disks = 0;
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        device = REGISTERS + slot * (uint64_t)REGISTERS_SIZE;
        kind = get(DEVICE_ID);
        if (get(MAGIC) != 0x74726976 || !kind)
            continue;
        start();
        if (kind == BLOCK) {
            unsigned errors = disk(salt);
            text("disk ");
            number(++disks);
            text(": writes that failed: ");
            number(errors);
            text("\n");
            continue;
        }
        for (unsigned times = 0; times < FRAMES; times++)
            request();
        text("device ");
        number(kind);
        text(": requests served: ");
        number(FRAMES);
        text("\n");
    }
}

__attribute__((used)) static void all(void) {
    text("ready\n");
    line();
    round(1 << 20);
    text("ready again\n");
    line();
    round(1 << 21);
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        device = REGISTERS + slot * (uint64_t)REGISTERS_SIZE;
        kind = get(DEVICE_ID);
        if (kind != BLOCK)
            continue;
        start();
        fill();
    }
    text("flushed\n");
    for (;;)
        __asm__ volatile("hlt");
}
