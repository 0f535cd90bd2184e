// What the guests have in common that drive virtio-mmio devices (virtio 1.2; section numbers are the specification's)
// without an operating system: a driver of one queue of one device at a time, which polls.

#include <stdint.h>

// Places: registers as in arch/src/layout.rs; the rest is memory of ours.
enum {
    REGISTERS = 0xc0001000u,
    REGISTERS_SIZE = 0x1000,
    SLOTS = 15,
    TABLE = 0x1000000,
    AVAILABLE = 0x1001000,
    USED = 0x1002000,
    HEADER = 0x1003000,
    STATUS_BYTE = 0x1003100,
    ROOM = 0x1100000,
    ROOM_SIZE = 0x40000,
    LAST_PAGE = ROOM + ROOM_SIZE - 0x1000,
    QUEUE_SIZE = 16,
};

// Registers (4.2.2), device status (2.1), descriptor flags (2.7.5).
enum {
    MAGIC = 0x00, DEVICE_ID = 0x08, DEVICE_FEATURES = 0x10, DEVICE_FEATURES_SEL = 0x14, DRIVER_FEATURES = 0x20,
    DRIVER_FEATURES_SEL = 0x24, QUEUE_SEL = 0x30, QUEUE_NUM_MAX = 0x34, QUEUE_NUM = 0x38, QUEUE_READY = 0x44,
    QUEUE_NOTIFY = 0x50, INTERRUPT_ACK = 0x64, STATUS = 0x70, QUEUE_DESC = 0x80, QUEUE_DRIVER = 0x90,
    QUEUE_DEVICE = 0xa0, CONFIG = 0x100,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 0x40 };
enum { NEXT = 1, WRITE = 2, TABLE_OF_MORE = 4 };
enum { NET = 1, BLOCK = 2, ENTROPY = 4, BALLOON = 5, SOCKET = 19, PMEM = 27 };
enum { INDIRECT_DESCRIPTORS = 1 << 28, VERSION_1 = 1, DISCARD = 1 << 13, FLUSH = 1 << 9, ALL_OF_BALLOONS = 0x3f };
// What disks begin with, or are full of: "a sector".
static const uint64_t FILLING = 0x726f746365732061;

struct descriptor {
    uint64_t address;
    uint32_t len;
    uint16_t flags, next;
};

static uint64_t device;
static uint32_t kind, offered;
static uint16_t queue, made, seen;
// Another queue than the one that honest requests go to, if not negative, and more features than it needs.
static int usual = -1;
static uint32_t taken;

// ------------------------------------------------------------------------------------------------ the machine

static void out(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static void text(const char *letters) {
    while (*letters)
        out(0x3f8, *letters++);
}

static void number(uint64_t value) {
    char digits[21];
    char *first = digits + 20;
    *first = 0;
    do
        *--first = '0' + value % 10;
    while (value /= 10);
    text(first);
}

_Noreturn static void end(void) {
    out(0x64, 0xfe);
    for (;;)
        __asm__ volatile("hlt");
}

_Noreturn static void fail(const char *what, const char *why) {
    text("\nFAILED: device ");
    number(kind);
    text(", ");
    text(what);
    text(": ");
    text(why);
    text("\n");
    end();
}

static uint32_t get(unsigned offset) { return *(volatile uint32_t *)(device + offset); }
static void set(unsigned offset, uint32_t value) { *(volatile uint32_t *)(device + offset) = value; }

static void set_address(unsigned offset, uint64_t value) {
    set(offset, value);
    set(offset + 4, value >> 32);
}

static volatile uint16_t *ring16(uint64_t address) { return (volatile uint16_t *)address; }

// Compilers make calls of these.
void *memset(void *to, int value, uint64_t len) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(len) : "a"(value) : "memory");
    return to;
}
void *memcpy(void *to, const void *from, uint64_t len) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(len) : : "memory");
    return to;
}

static void clear(uint64_t at, uint64_t len, uint8_t value) { memset((void *)at, value, len); }

// ------------------------------------------------------------------------------------------------- the driver

static void reset(void) {
    set(STATUS, 0);
    while (get(STATUS))
        ;
}

// Up to FEATURES_OK, with a queue that is there and not ready.
static void negotiate(void) {
    reset();
    set(STATUS, ACKNOWLEDGE);
    set(STATUS, ACKNOWLEDGE | DRIVER);
    set(DEVICE_FEATURES_SEL, 0);
    set(DRIVER_FEATURES_SEL, 0);
    offered = get(DEVICE_FEATURES);
    uint32_t own = kind == BLOCK ? DISCARD | FLUSH : kind == BALLOON ? ALL_OF_BALLOONS : 0;
    set(DRIVER_FEATURES, offered & (INDIRECT_DESCRIPTORS | own | taken));
    set(DRIVER_FEATURES_SEL, 1);
    set(DRIVER_FEATURES, VERSION_1);
    set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (!(get(STATUS) & FEATURES_OK))
        fail("negotiation", "what is on offer is refused");
    clear(TABLE, 0x3000, 0);
    made = seen = 0;
    // Network cards and socket devices send on their second queue (5.1.2, 5.10.2).
    queue = usual >= 0 ? usual : kind == NET || kind == SOCKET;
    set(QUEUE_SEL, queue);
    set(QUEUE_NUM, QUEUE_SIZE);
    set_address(QUEUE_DESC, TABLE);
    set_address(QUEUE_DRIVER, AVAILABLE);
    set_address(QUEUE_DEVICE, USED);
}

static void ready(void) { set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK); }

static void start(void) {
    negotiate();
    set(QUEUE_READY, 1);
    ready();
}

static void describe(uint64_t table, uint16_t index, struct descriptor descriptor) {
    ((volatile struct descriptor *)table)[index] = descriptor;
}

static void offer(uint16_t head) {
    ring16(AVAILABLE)[2 + made % QUEUE_SIZE] = head;
    made++;
    __asm__ volatile("mfence" ::: "memory");
    ring16(AVAILABLE)[1] = made;
    __asm__ volatile("mfence" ::: "memory");
    set(QUEUE_NOTIFY, queue);
}

// Whether there is another used chain; its number of bytes then.
static int used(uint32_t *written) {
    if (ring16(USED)[1] == seen)
        return 0;
    *written = ((volatile uint32_t *)(USED + 4))[2 * (seen % QUEUE_SIZE) + 1];
    seen++;
    return 1;
}

static void header(uint32_t type, uint64_t sector) {
    ((volatile uint32_t *)HEADER)[0] = type;
    ((volatile uint32_t *)HEADER)[1] = 0;
    ((volatile uint64_t *)HEADER)[1] = sector;
}

// An honest request; returns the number of bytes that came.
static uint32_t request(void) {
    *(volatile uint8_t *)STATUS_BYTE = 0xff;
    clear(ROOM, 512, 0);
    switch (kind) {
    case BLOCK: // reads the first sector
        header(0, 0);
        describe(TABLE, 0, (struct descriptor){HEADER, 16, NEXT, 1});
        describe(TABLE, 1, (struct descriptor){ROOM, 512, WRITE | NEXT, 2});
        describe(TABLE, 2, (struct descriptor){STATUS_BYTE, 1, WRITE, 0});
        break;
    case ENTROPY:
        describe(TABLE, 0, (struct descriptor){ROOM, 64, WRITE, 0});
        break;
    case BALLOON: // puts the last page of the room into the balloon
        *(volatile uint64_t *)LAST_PAGE = FILLING;
        *(volatile uint32_t *)ROOM = LAST_PAGE >> 12;
        describe(TABLE, 0, (struct descriptor){ROOM, 4, 0, 0});
        break;
    case PMEM: // flushes
        *(volatile uint32_t *)STATUS_BYTE = ~0u;
        describe(TABLE, 0, (struct descriptor){ROOM, 4, NEXT, 1});
        describe(TABLE, 1, (struct descriptor){STATUS_BYTE, 4, WRITE, 0});
        break;
    default: // Sends zeros: an empty frame for nobody, or a packet from nowhere.
        describe(TABLE, 0, (struct descriptor){ROOM, 12 + 60, 0, 0});
        break;
    }
    offer(0);
    uint32_t written;
    while (!used(&written))
        if (get(STATUS) & NEEDS_RESET)
            fail("honest request", "a reset is asked for");
    return written;
}

// Calls `all` with a stack, and with what the 64-bit boot protocol hands over (Documentation/arch/x86/boot.rst).
__attribute__((naked, used)) void _start(void) {
    __asm__ volatile("mov $0x800000, %rsp\n"
                     "cld\n"
                     "mov %rsi, %rdi\n"
                     "call all\n");
}
