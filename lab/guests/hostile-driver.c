// A 64-bit guest without an operating system that breaks the virtio protocol (version 1.2; section numbers are
// the specification's) on every virtio-mmio device that its command line tells of, in each of its queues. After each
// violation it looks whether the device did what is due (ask for a reset, answer with an error, or take no notice),
// resets it, and has it serve an honest request. For each violation it writes a line. What never comes true is waited
// for without end.

#include "virtio-driver.h"

enum { INDIRECT = 0x1004000, CANARY = 0x2000000, CANARY_SIZE = 0x100000, MEMORY_END = 128 << 20 };
// Where a persistent memory is: it follows the hole, since RAM does not.
static const uint64_t HOLE = 0xc0000000, LOCAL_APIC = 0xfee00000, FILE_OF_HOST = 1ull << 32, ABOVE = 1ull << 40;

static unsigned violations;

// Before each violation, so that one that is never survived is known by its name.
static void announce(const char *what) {
    text("device ");
    number(kind);
    text(": ");
    if (usual >= 0) {
        text("queue ");
        number(usual);
        text(": ");
    }
    text(what);
    text(": ");
}

// Whether all bytes there are this one. In few instructions, for hosts on which each one counts.
static int is_all(uint64_t from, uint64_t len, uint8_t value) {
    int same, rest_is;
    uint64_t words = len / 8, rest = len % 8;
    __asm__ volatile("cmp %%eax, %%eax\n\trepe scasq"
                     : "=@cce"(same), "+D"(from), "+c"(words)
                     : "a"((uint64_t)value * 0x0101010101010101)
                     : "memory");
    __asm__ volatile("cmp %%eax, %%eax\n\trepe scasb"
                     : "=@cce"(rest_is), "+D"(from), "+c"(rest)
                     : "a"(value)
                     : "memory");
    return same && rest_is;
}

// The device is reset, and lives.
static void lives(const char *what) {
    if (get(MAGIC) != 0x74726976)
        fail(what, "the registers are gone");
    int before = usual;
    usual = -1;
    start();
    uint32_t written = request();
    if (kind == BLOCK) {
        if (written != 513 || *(volatile uint8_t *)STATUS_BYTE != 0 || *(volatile uint64_t *)ROOM != FILLING)
            fail(what, "the disk does not read after a reset");
    } else if (kind == ENTROPY && written != 64) {
        fail(what, "no entropy after a reset");
    } else if (kind == BALLOON && *(volatile uint64_t *)LAST_PAGE != 0) {
        fail(what, "the balloon takes no page after a reset");
    } else if (kind == PMEM && (written != 4 || *(volatile uint32_t *)STATUS_BYTE != 0)) {
        fail(what, "the memory is not flushed after a reset");
    }
    usual = before;
    violations++;
    text("survived\n");
}

static void wants_reset(const char *what) {
    while (!(get(STATUS) & NEEDS_RESET))
        ;
    if (ring16(USED)[1] != 0)
        fail(what, "it was served");
    lives(what);
}

// ------------------------------------------------------------------------- violations that are each device's

struct place {
    const char *what;
    uint64_t table, available, used;
    uint32_t size;
};

static const struct place PLACES[] = {
    {"descriptor table in the hole", HOLE, AVAILABLE, USED, 16},
    {"descriptor table on registers", REGISTERS, AVAILABLE, USED, 16},
    {"available ring in the hole", TABLE, HOLE, USED, 16},
    {"used ring on the local APIC", TABLE, AVAILABLE, LOCAL_APIC, 16},
    {"used ring across the end of memory", TABLE, AVAILABLE, MEMORY_END - 16, 16},
    {"descriptor table across the end of memory", MEMORY_END - 240, AVAILABLE, USED, 16},
    {"descriptor table that wraps around", ~15ull, AVAILABLE, USED, 16},
    {"available ring at the end of all", TABLE, ~1ull, USED, 16},
    {"descriptor table far above memory", ABOVE, AVAILABLE, USED, 16},
    {"descriptor table in a persistent memory", FILE_OF_HOST, AVAILABLE, USED, 16},
    {"used ring in a persistent memory", TABLE, AVAILABLE, FILE_OF_HOST, 16},
    {"descriptor table not aligned", TABLE + 8, AVAILABLE, USED, 16},
    {"available ring not aligned", TABLE, AVAILABLE + 1, USED, 16},
    {"used ring not aligned", TABLE, AVAILABLE, USED + 2, 16},
    {"queue of no size", TABLE, AVAILABLE, USED, 0},
    {"queue of 3", TABLE, AVAILABLE, USED, 3},
    {"queue of 32,768", TABLE, AVAILABLE, USED, 0x8000},
    {"queue of 65,552", TABLE, AVAILABLE, USED, 0x10010},
};

struct chain {
    const char *what;
    uint16_t head;
    struct descriptor descriptors[2];
};

static const struct chain CHAINS[] = {
    {"chain that loops to itself", 0, {{ROOM, 4, NEXT, 0}}},
    {"chain that loops over two", 0, {{ROOM, 4, NEXT, 1}, {ROOM, 4, NEXT, 0}}},
    {"chain of empty buffers that loops", 0, {{ROOM, 0, NEXT, 0}}},
    {"head past the table", 16, {{0}}},
    {"head far past the table", 0xffff, {{0}}},
    {"next past the table", 0, {{ROOM, 4, NEXT, 16}}},
    {"buffer in the hole", 0, {{HOLE, 4, WRITE, 0}}},
    {"buffer on the device's own registers", 0, {{REGISTERS + STATUS, 4, WRITE, 0}}},
    {"buffer on the local APIC", 0, {{LOCAL_APIC, 4, WRITE, 0}}},
    {"buffer in a persistent memory", 0, {{FILE_OF_HOST, 4, WRITE, 0}}},
    {"buffer across the end of memory", 0, {{MEMORY_END - 2, 4, WRITE, 0}}},
    {"buffer at the end of all", 0, {{~0ull, 4, WRITE, 0}}},
    {"buffer longer than memory", 0, {{0, ~0u, WRITE, 0}}},
    {"buffer to read after one to write", 0, {{ROOM, 4, WRITE | NEXT, 1}, {ROOM, 4, 0, 0}}},
    {"second buffer in the hole", 0, {{ROOM, 4, NEXT, 1}, {HOLE, 4, 0, 0}}},
};

// The outer descriptor, and the first of its table.
static const struct chain INDIRECT_CHAINS[] = {
    {"indirect table of a part", 0, {{INDIRECT, 17, TABLE_OF_MORE, 0}, {ROOM, 4, WRITE, 0}}},
    {"indirect table of nothing", 0, {{INDIRECT, 0, TABLE_OF_MORE, 0}, {ROOM, 4, WRITE, 0}}},
    {"indirect table in the hole", 0, {{HOLE, 16, TABLE_OF_MORE, 0}, {ROOM, 4, WRITE, 0}}},
    {"indirect table that is too long", 0, {{INDIRECT, 16 << 20, TABLE_OF_MORE, 0}, {ROOM, 4, WRITE, 0}}},
    {"indirect table that wraps around", 0, {{~15ull, 32, TABLE_OF_MORE, 0}, {ROOM, 4, WRITE, 0}}},
    {"indirect table in itself", 0, {{INDIRECT, 16, TABLE_OF_MORE, 0}, {INDIRECT, 16, TABLE_OF_MORE, 0}}},
    {"indirect table that loops", 0, {{INDIRECT, 32, TABLE_OF_MORE, 0}, {ROOM, 4, NEXT, 0}}},
    {"indirect table's next past its end", 0, {{INDIRECT, 16, TABLE_OF_MORE, 0}, {ROOM, 4, NEXT, 1}}},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void queues(void) {
    for (unsigned row = 0; row < COUNT(PLACES); row++) {
        const struct place *place = &PLACES[row];
        announce(place->what);
        negotiate();
        set(QUEUE_NUM, place->size);
        set_address(QUEUE_DESC, place->table);
        set_address(QUEUE_DRIVER, place->available);
        set_address(QUEUE_DEVICE, place->used);
        set(QUEUE_READY, 1);
        ready();
        wants_reset(place->what);
    }
    for (unsigned row = 0; row < COUNT(CHAINS); row++) {
        announce(CHAINS[row].what);
        start();
        describe(TABLE, 0, CHAINS[row].descriptors[0]);
        describe(TABLE, 1, CHAINS[row].descriptors[1]);
        offer(CHAINS[row].head);
        wants_reset(CHAINS[row].what);
    }
    for (unsigned row = 0; row < COUNT(INDIRECT_CHAINS); row++) {
        announce(INDIRECT_CHAINS[row].what);
        start();
        describe(TABLE, 0, INDIRECT_CHAINS[row].descriptors[0]);
        describe(INDIRECT, 0, INDIRECT_CHAINS[row].descriptors[1]);
        offer(0);
        wants_reset(INDIRECT_CHAINS[row].what);
    }
    static const uint16_t LEAPS[] = {17, 0x8000, 0xffff};
    for (unsigned row = 0; row < COUNT(LEAPS); row++) {
        announce("available index that leaps");
        start();
        made = LEAPS[row] - 1;
        offer(0);
        wants_reset("available index that leaps");
    }
}

static void registers(void) {
    // A driver of the legacy kind, and one that takes what is not on offer (2.2.2, 6.1).
    static const uint32_t REFUSED[][2] = {{0, 0}, {0xffffffff, 0xffffffff}};
    for (unsigned row = 0; row < COUNT(REFUSED); row++) {
        announce("features that are not on offer");
        reset();
        set(STATUS, ACKNOWLEDGE | DRIVER);
        for (unsigned half = 0; half < 2; half++) {
            set(DRIVER_FEATURES_SEL, half);
            set(DRIVER_FEATURES, REFUSED[row][half]);
        }
        set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if (get(STATUS) & FEATURES_OK)
            fail("features that are not on offer", "taken");
        ready();
        if (get(STATUS) & DRIVER_OK)
            fail("DRIVER_OK without FEATURES_OK", "taken");
        lives("features that are not on offer");
    }

    // Features after FEATURES_OK: frozen.
    announce("features written after FEATURES_OK");
    start();
    set(DRIVER_FEATURES_SEL, 0);
    set(DRIVER_FEATURES, 0xffffffff);
    request();
    lives("features written after FEATURES_OK");

    // A queue's place while it is in use (4.2.2.2): the request is served where it was.
    announce("queue moved while in use");
    start();
    for (unsigned offset = QUEUE_DESC; offset <= QUEUE_DEVICE; offset += 0x10)
        set_address(offset, HOLE);
    set(QUEUE_NUM, 3);
    set(QUEUE_READY, 0);
    request();
    lives("queue moved while in use");

    // Status bits that go, or come in no order (2.1.1).
    announce("status bits taken away");
    start();
    set(STATUS, ACKNOWLEDGE);
    if (!(get(STATUS) & DRIVER_OK))
        fail("status bits taken away", "gone");
    request();
    lives("status bits taken away");
    announce("all status bits at once");
    reset();
    ready();
    lives("all status bits at once");

    // Notifications of nothing, and of queues that there are none of.
    announce("notifications and queues that are none");
    reset();
    set(QUEUE_NOTIFY, 0);
    start();
    set(QUEUE_NOTIFY, 0xffff);
    set(QUEUE_NOTIFY, ~0u);
    set(QUEUE_SEL, ~0u);
    if (get(QUEUE_NUM_MAX) || get(QUEUE_READY))
        fail("queue that is none", "there");
    set(QUEUE_NUM, 16);
    set(QUEUE_READY, 1);
    request();
    lives("notifications and queues that are none");

    // Every register, the configuration space, and what lies between, in every width.
    announce("every register in every width");
    start();
    static const uint32_t VALUES[] = {1, 0x7fffffff, ~0u};
    for (unsigned offset = 0; offset < REGISTERS_SIZE; offset += offset < 0x200 ? 4 : 0x3fc)
        for (unsigned row = 0; row < COUNT(VALUES); row++) {
            volatile uint8_t *at = (volatile uint8_t *)(device + offset);
            *at = VALUES[row];
            *(volatile uint16_t *)(at + 1) = VALUES[row];
            *(volatile uint32_t *)(at + 2) = VALUES[row];
            *(volatile uint64_t *)at = ~(uint64_t)VALUES[row];
            if (offset != STATUS)
                *(volatile uint32_t *)at = VALUES[row];
            (void)*at, (void)*(volatile uint16_t *)(at + 1), (void)*(volatile uint64_t *)at;
        }
    lives("every register in every width");
}

// Whatever is in the queue, some of it good. Rings and buffers are in our memory or nowhere.
static uint64_t state = 0x9e3779b97f4a7c15;
static uint64_t any(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

// To a balloon bytes are numbers of pages that it takes: here those of pages that nobody needs.
static void harmless(void) {
    if (kind != BALLOON)
        return;
    for (uint64_t at = ROOM; at < ROOM + 0x100; at += 4)
        *(volatile uint32_t *)at = 0x4001 + any(4);
    // Over and over.
    memcpy((void *)(ROOM + 0x100), (void *)ROOM, ROOM_SIZE - 0x100);
    memcpy((void *)HEADER, (void *)ROOM, 16);
}

static const uint64_t NOWHERE[] = {0xbfffffff, 0xc0000000, 0xc0001050, 0xfee00300, 0xffffffff, ~0ull, MEMORY_END - 1};

static void at_random(void) {
    announce("queues at random");
    harmless();
    for (unsigned round = 0; round < 100; round++) {
        start();
        for (unsigned index = 0; index < QUEUE_SIZE; index++) {
            uint64_t address = any(8) ? ROOM + any(ROOM_SIZE / 2) : NOWHERE[any(COUNT(NOWHERE))];
            // A balloon takes a page for four bytes.
            uint32_t len = any(16) ? any(kind == BALLOON ? 0x40 : 0x2000) : ~any(4);
            uint16_t flags = any(4) ? any(4) : any(8);
            // Pieces of two numbers would be one of any page.
            uint64_t mask = kind == BALLOON ? ~3ull : ~0ull;
            struct descriptor descriptor = {address & mask, len & mask, flags, any(QUEUE_SIZE + 1)};
            describe(TABLE, index, descriptor);
        }
        // Of no type that could write the first sector, which honest requests read.
        if (kind != BALLOON)
            header(any(2) ? 0 : any(11), 1 + (any(2) ? any(16) : ~any(16)));
        describe(TABLE, 0, (struct descriptor){HEADER, 16, any(8) ? NEXT : 0, 1});
        for (unsigned heads = any(QUEUE_SIZE); heads; heads--)
            offer(any(4) ? 0 : any(QUEUE_SIZE));
    }
    lives("queues at random");
}

// What a request of a disk begins with (5.2.6).
struct request {
    uint32_t type, reserved;
    uint64_t sector;
};
enum { TYPE_FLUSH = 4 };

// After a reset nothing of our memory is touched (2.4.1, and 4.2.3.1).
static void reset_in_a_request(void) {
    announce("reset in a request");
    for (unsigned round = 0; round < 5; round++) {
        start();
        unsigned buffers = kind == BLOCK ? 12 : 1;
        header(0, 0);
        describe(TABLE, 0, (struct descriptor){HEADER, 16, NEXT, 1});
        for (unsigned index = 1; index <= buffers; index++)
            describe(TABLE, index, (struct descriptor){ROOM + index * 0x4000, 0x4000, WRITE | NEXT, index + 1});
        describe(TABLE, buffers + 1, (struct descriptor){STATUS_BYTE, 1, WRITE, 0});
        if (kind == ENTROPY)
            describe(TABLE, 0, (struct descriptor){ROOM, ROOM_SIZE, WRITE, 0});
        if (kind == NET || kind == SOCKET)
            describe(TABLE, 0, (struct descriptor){ROOM, 1500, 0, 0});
        if (kind == BALLOON) {
            for (unsigned page = 0; page < 4; page++)
                ((volatile uint32_t *)HEADER)[page] = (ROOM >> 12) + 8 * page;
            describe(TABLE, 0, (struct descriptor){HEADER, 16, 0, 0});
        }
        if (kind == BLOCK) {
            // With it a flush, which no host has done at once.
            *(volatile struct request *)(HEADER + 16) = (struct request){TYPE_FLUSH, 0, 0};
            describe(TABLE, 14, (struct descriptor){HEADER + 16, 16, NEXT, 15});
            describe(TABLE, 15, (struct descriptor){ROOM + ROOM_SIZE - 1, 1, WRITE, 0});
            offer(14);
        }
        offer(0);
        reset();
        clear(ROOM, ROOM_SIZE, 0xa5);
        clear(USED, 0x1000, 0xa5);
        for (volatile unsigned turn = 0; turn < 4000; turn++)
            ;
        if (!is_all(ROOM, ROOM_SIZE, 0xa5))
            fail("reset in a request", "a buffer was written after the reset");
        if (!is_all(USED, 0x1000, 0xa5))
            fail("reset in a request", "the ring was written after the reset");
    }
    lives("reset in a request");
}

// -------------------------------------------------------------------------------------- requests that are bad

struct disk {
    const char *what;
    uint32_t type;
    uint64_t sector;
    struct descriptor buffers[3];
    uint8_t status;
};

// The disks have 2,048 sectors. Status 1 is an error and 2 "unsupported" (5.2.6); 0xff: the device wants a reset.
static const struct disk DISK[] = {
    {"read past the end", 0, 2048, {{HEADER, 16, 0, 0}, {ROOM, 512, WRITE, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"read across the end", 0, 2047, {{HEADER, 16, 0, 0}, {ROOM, 1024, WRITE, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"read at a sector that wraps around", 0, ~0ull,
     {{HEADER, 16, 0, 0}, {ROOM, 512, WRITE, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"read at a byte that wraps around", 0, 1ull << 55,
     {{HEADER, 16, 0, 0}, {ROOM, 512, WRITE, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"read of a part of a sector", 0, 0, {{HEADER, 16, 0, 0}, {ROOM, 511, WRITE, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"write past the end", 1, 2048, {{HEADER, 16, 0, 0}, {ROOM, 512, 0, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"discard of a part of a range", 11, 0, {{HEADER, 16, 0, 0}, {ROOM, 15, 0, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"request of no known type", 0xdeadbeef, 0,
     {{HEADER, 16, 0, 0}, {ROOM, 512, WRITE, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 2},
    {"header that is too short", 0, 0, {{HEADER, 15, 0, 0}, {ROOM, 512, WRITE, 0}, {STATUS_BYTE, 1, WRITE, 0}}, 1},
    {"no room for a status", 0, 0, {{HEADER, 16, 0, 0}, {HEADER, 16, 0, 0}, {HEADER, 16, 0, 0}}, 0xff},
};

static void disk(void) {
    for (unsigned row = 0; row < COUNT(DISK); row++) {
        const struct disk *bad = &DISK[row];
        announce(bad->what);
        start();
        *(volatile uint8_t *)STATUS_BYTE = 0xff;
        header(bad->type, bad->sector);
        for (unsigned index = 0; index < 3; index++) {
            struct descriptor descriptor = bad->buffers[index];
            descriptor.flags |= index < 2 ? NEXT : 0;
            descriptor.next = index + 1;
            describe(TABLE, index, descriptor);
        }
        offer(0);
        if (bad->status == 0xff) {
            wants_reset(bad->what);
            continue;
        }
        uint32_t written;
        while (!used(&written))
            ;
        // A disk that is read-only knows no discard.
        uint8_t due = bad->type == 11 && !(offered & DISCARD) ? 2 : bad->status;
        if (*(volatile uint8_t *)STATUS_BYTE != due)
            fail(bad->what, "another status than is due");
        lives(bad->what);
    }
}

struct flush {
    const char *what;
    uint32_t type;
    struct descriptor buffers[2];
    // What it is answered with (5.19.7); ~0: the device wants a reset.
    uint32_t answer;
};

static const struct flush FLUSHES[] = {
    {"flush of no known kind", 1, {{ROOM, 4, NEXT, 1}, {STATUS_BYTE, 4, WRITE, 0}}, 1},
    {"flush of a part of a kind", 0, {{ROOM, 3, NEXT, 1}, {STATUS_BYTE, 4, WRITE, 0}}, 1},
    {"flush of no kind", 0, {{STATUS_BYTE, 4, WRITE, 0}}, 1},
    {"flush with more than a kind", 0, {{ROOM, ROOM_SIZE, NEXT, 1}, {STATUS_BYTE, 4, WRITE, 0}}, 0},
    {"flush without room for an answer", 0, {{ROOM, 4, 0, 0}}, ~0u},
    {"flush with room for a part of an answer", 0, {{ROOM, 4, NEXT, 1}, {STATUS_BYTE, 3, WRITE, 0}}, ~0u},
};

static void flushes(void) {
    for (unsigned row = 0; row < COUNT(FLUSHES); row++) {
        const struct flush *bad = &FLUSHES[row];
        announce(bad->what);
        start();
        *(volatile uint32_t *)STATUS_BYTE = ~0u;
        *(volatile uint32_t *)ROOM = bad->type;
        for (unsigned index = 0; index < 2; index++)
            describe(TABLE, index, bad->buffers[index]);
        offer(0);
        if (bad->answer == ~0u) {
            wants_reset(bad->what);
            continue;
        }
        uint32_t written;
        while (!used(&written))
            ;
        if (written != 4 || *(volatile uint32_t *)STATUS_BYTE != bad->answer)
            fail(bad->what, "another answer than is due");
        lives(bad->what);
    }
}

// Frames and packets of every length up to more than there is, without a header that makes sense: they are dropped, or
// the device wants a reset. It lives in either case.
static void packets(void) {
    static const uint32_t LENGTHS[] = {0, 1, 11, 12, 13, 25, 26, 43, 44, 45, 1526, 0x10000, 0x10100, ROOM_SIZE};
    for (unsigned row = 0; row < COUNT(LENGTHS); row++) {
        announce("packet of nonsense");
        start();
        clear(ROOM, ROOM_SIZE, 0xff);
        describe(TABLE, 0, (struct descriptor){ROOM, LENGTHS[row], 0, 0});
        offer(0);
        uint32_t written;
        while (!used(&written) && !(get(STATUS) & NEEDS_RESET))
            ;
        lives("packet of nonsense");
    }
}

#include "hostile-queues.h"

// ----------------------------------------------------------------------------------------------------- in turn

// The rings of the queues that honest requests do not use.
static void others(void) {
    static const struct {
        uint32_t kind;
        int queue;
    } OTHERS[] = {{NET, 0}, {SOCKET, 0}, {SOCKET, 2}, {BALLOON, 1}, {BALLOON, 2}, {BALLOON, 3},
                  {BALLOON, 4}};
    for (unsigned row = 0; row < COUNT(OTHERS); row++)
        if (OTHERS[row].kind == kind) {
            usual = OTHERS[row].queue;
            queues();
            usual = -1;
        }
}

// Where on the command line the next device is looked for.
static const char *told;

// The next device that the command line tells of (Documentation/admin-guide/kernel-parameters.txt), if there is one.
static int another(void) {
    static const char WORD[] = "virtio_mmio.device=4K@0x";
    for (; *told; told++) {
        unsigned same = 0;
        while (WORD[same] && told[same] == WORD[same])
            same++;
        if (WORD[same])
            continue;
        for (device = 0, told += same; *told && *told != ':'; told++)
            device = device << 4 | (*told <= '9' ? *told - '0' : *told - 'a' + 10);
        return 1;
    }
    return 0;
}

__attribute__((used)) static void all(const uint8_t *zero_page) {
    clear(CANARY, CANARY_SIZE, 0xc3);
    unsigned devices = 0;
    // `cmd_line_ptr` (Documentation/arch/x86/zero-page.rst).
    told = (const char *)(uint64_t)*(const uint32_t *)(zero_page + 0x228);
    while (another()) {
        kind = get(DEVICE_ID);
        if (get(MAGIC) != 0x74726976 || !kind)
            fail("command line", "there is no device where it tells of one");
        devices++;
        queues();
        registers();
        at_random();
        reset_in_a_request();
        if (kind == BLOCK)
            disk();
        if (kind == NET || kind == SOCKET) {
            packets();
            receives();
        }
        if (kind == BALLOON)
            balloon();
        if (kind == PMEM)
            flushes();
        others();
        reset();
    }
    if (!is_all(CANARY, CANARY_SIZE, 0xc3))
        fail("all", "memory that no request named has changed");
    text("violations survived: ");
    number(violations);
    text(", devices: ");
    number(devices);
    text("\n");
    end();
}
