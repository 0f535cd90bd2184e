// What a hostile driver does on the queues that honest requests do not use: those of network cards and socket devices
// for what they receive, and those of balloons.

// Another queue beside the usual one, and where its buffers are.
enum {
    OTHER_TABLE = 0x1010000, OTHER_AVAILABLE = 0x1011000, OTHER_USED = 0x1012000, INTO = ROOM + 0x20000,
    FAR = 0x4000000, PAGE = 0x1000,
};
static uint16_t other, other_made, other_seen;

// The device with its usual queue and queue `index`.
static void start_with(uint16_t index) {
    negotiate();
    set(QUEUE_READY, 1);
    clear(OTHER_TABLE, 0x3000, 0);
    other = index;
    other_made = other_seen = 0;
    set(QUEUE_SEL, index);
    set(QUEUE_NUM, QUEUE_SIZE);
    set_address(QUEUE_DESC, OTHER_TABLE);
    set_address(QUEUE_DRIVER, OTHER_AVAILABLE);
    set_address(QUEUE_DEVICE, OTHER_USED);
    set(QUEUE_READY, 1);
    ready();
}

static void other_offer(uint16_t head) {
    ring16(OTHER_AVAILABLE)[2 + other_made % QUEUE_SIZE] = head;
    other_made++;
    __asm__ volatile("mfence" ::: "memory");
    ring16(OTHER_AVAILABLE)[1] = other_made;
    __asm__ volatile("mfence" ::: "memory");
    set(QUEUE_NOTIFY, other);
}

static int other_used(uint32_t *written) {
    if (ring16(OTHER_USED)[1] == other_seen)
        return 0;
    *written = ((volatile uint32_t *)(OTHER_USED + 4))[2 * (other_seen % QUEUE_SIZE) + 1];
    other_seen++;
    return 1;
}

// ------------------------------------------------------------------------------------------- what is received

// An ARP question for 172.16.9.1 (RFC 826), with the virtio header before it.
static const uint8_t QUESTION[] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xaa, 0xfc, 0, 0, 0, 7, 8, 6,
    0, 1, 8, 0, 6, 4, 0, 1, 0xaa, 0xfc, 0, 0, 0, 7, 172, 16, 9, 2, 0, 0, 0, 0, 0, 0, 172, 16, 9, 1,
};
// A packet for a connection that there is not, of port `port`, which is answered by a reset (5.10.6).
struct packet {
    uint64_t from, to;
    uint32_t from_port, to_port, len;
    uint16_t type, operation;
    uint32_t flags, room, passed;
} __attribute__((packed));

// Sends what the device answers on its receiving queue.
static void ask(uint32_t port) {
    uint32_t len = sizeof QUESTION;
    if (kind == NET) {
        memcpy((void *)ROOM, QUESTION, sizeof QUESTION);
    } else {
        *(volatile struct packet *)ROOM = (struct packet){get(CONFIG), 2, port, 80, 0, 1, 7, 0, 0, 0};
        len = sizeof(struct packet);
    }
    describe(TABLE, 0, (struct descriptor){ROOM, len, 0, 0});
    offer(0);
}

static void asked(void) {
    ask(1);
    uint32_t written;
    while (!used(&written))
        if (get(STATUS) & NEEDS_RESET)
            return;
}

// What becomes of a buffer: it wants a reset, is used, or is not.
enum due { RESET, SERVED, LEFT, ANY };

struct receiving {
    const char *what;
    uint32_t features;
    struct descriptor descriptors[2];
    // So many times available, one after the other, or both descriptors in turn.
    unsigned copies, in_turn;
    enum due of_card, of_socket;
};

enum { MERGEABLE = 1 << 15 };

// An answer has 54 bytes of a card, 44 of a socket device.
static const struct receiving RECEIVING[] = {
    {"receive buffer of nothing", 0, {{INTO, 0, WRITE, 0}}, 1, 0, LEFT, RESET},
    {"receive buffer of a byte", 0, {{INTO, 1, WRITE, 0}}, 1, 0, LEFT, RESET},
    {"receive buffer without room for a header", 0, {{INTO, 11, WRITE, 0}}, 1, 0, LEFT, RESET},
    {"receive buffer with room for less than there is", 0, {{INTO, 43, WRITE, 0}}, 1, 0, LEFT, RESET},
    {"receive buffer with room for a header alone", 0, {{INTO, 44, WRITE, 0}}, 1, 0, LEFT, RESET},
    {"receive buffer to be read", 0, {{INTO, 2000, 0, 0}}, 1, 0, LEFT, RESET},
    {"receive buffer behind one to be read", 0, {{INTO, 100, NEXT, 1}, {INTO + PAGE, 2000, WRITE, 0}}, 1, 0, SERVED,
     SERVED},
    {"receive buffer that is there twice", 0, {{INTO, 2000, WRITE, 0}}, 2, 0, SERVED, SERVED},
    {"receive buffer of all that is free", 0, {{FAR, MEMORY_END - FAR, WRITE, 0}}, 1, 0, SERVED, SERVED},
    {"receive buffer over its own table", 0, {{OTHER_TABLE, PAGE, WRITE, 0}}, 1, 0, ANY, ANY},
    {"receive buffer over the available ring", 0, {{OTHER_AVAILABLE, PAGE, WRITE, 0}}, 1, 0, ANY, ANY},
    {"receive buffer over the used ring", 0, {{OTHER_USED, PAGE, WRITE, 0}}, 1, 0, ANY, ANY},
    {"ring full of buffers of a byte", MERGEABLE, {{INTO, 1, WRITE, 0}}, QUEUE_SIZE, 0, LEFT, RESET},
    {"ring full of buffers less than a header", MERGEABLE, {{INTO, 11, WRITE, 0}}, QUEUE_SIZE, 0, SERVED, RESET},
    {"ring full of buffers to be read", MERGEABLE, {{INTO, 2000, 0, 0}}, QUEUE_SIZE, 0, LEFT, RESET},
    {"buffer to be read behind a small one", MERGEABLE, {{INTO, 20, WRITE, 0}, {INTO, 20, 0, 0}}, 1, 1, RESET, RESET},
};

static void receive(const struct receiving *row) {
    announce(row->what);
    taken = row->features;
    start_with(0);
    clear(INTO, PAGE + 2000, 0xa5);
    clear(FAR, PAGE, 0xa5);
    describe(OTHER_TABLE, 0, row->descriptors[0]);
    describe(OTHER_TABLE, 1, row->descriptors[1]);
    for (unsigned copy = 0; copy < row->copies; copy++)
        other_offer(0);
    if (row->in_turn)
        other_offer(1);
    enum due due = kind == NET ? row->of_card : row->of_socket;
    uint32_t written = 0;
    asked();
    if (due == RESET) {
        while (!(get(STATUS) & NEEDS_RESET))
            ;
    } else if (due == SERVED) {
        while (!other_used(&written))
            if (get(STATUS) & NEEDS_RESET)
                fail(row->what, "a reset is asked for");
    } else {
        // Whatever comes of it has come of the first when the second is sent.
        asked();
    }
    if (due != SERVED && due != ANY && other_used(&written))
        fail(row->what, "it was used");
    if (due == LEFT && get(STATUS) & NEEDS_RESET)
        fail(row->what, "a reset is asked for");
    const struct descriptor *first = &row->descriptors[0];
    if (!(first->flags & WRITE) && !is_all(first->address, first->len, 0xa5))
        fail(row->what, "a buffer to be read was written");
    if (first->address == FAR && !is_all(FAR + written, PAGE - written, 0xa5))
        fail(row->what, "more was written than came");
    taken = 0;
    lives(row->what);
}

// Nobody takes what comes, and then there is a reset.
static void nobody_receives(const char *what, unsigned buffers) {
    announce(what);
    start_with(0);
    clear(INTO, 2000, 0xa5);
    describe(OTHER_TABLE, 0, (struct descriptor){INTO, 2000, WRITE, 0});
    for (unsigned buffer = 0; buffer < buffers; buffer++)
        other_offer(0);
    uint32_t written;
    unsigned answered = 0;
    // More than a socket device remembers: at some time it takes no more.
    for (unsigned port = 0; port < 400 && (int16_t)(made - seen) < QUEUE_SIZE / 2; port++) {
        ask(port);
        for (volatile unsigned turn = 0; turn < 200; turn++)
            ;
        while (used(&written))
            ;
        while (other_used(&written))
            answered++;
    }
    if (answered > buffers)
        fail(what, "more came than there are buffers");
    while (answered < buffers)
        answered += other_used(&written);
    if (get(STATUS) & NEEDS_RESET)
        fail(what, "a reset is asked for");
    // A buffer in the last moment.
    other_offer(0);
    reset();
    clear(INTO, 2000, 0xa5);
    clear(OTHER_USED, PAGE, 0xa5);
    for (volatile unsigned turn = 0; turn < 4000; turn++)
        ;
    if (!is_all(INTO, 2000, 0xa5) || !is_all(OTHER_USED, PAGE, 0xa5))
        fail(what, "a buffer was written after the reset");
    lives(what);
}

static void receives_at_random(void) {
    announce("receiving at random");
    for (unsigned round = 0; round < 100; round++) {
        taken = any(2) ? MERGEABLE : 0;
        start_with(0);
        for (unsigned index = 0; index < QUEUE_SIZE; index++) {
            uint64_t address = any(8) ? INTO + any(ROOM_SIZE / 4) : NOWHERE[any(COUNT(NOWHERE))];
            uint32_t len = any(16) ? any(any(2) ? 60 : 0x2000) : ~any(4);
            uint16_t flags = any(4) ? WRITE | any(2) : any(8);
            describe(OTHER_TABLE, index, (struct descriptor){address, len, flags, any(QUEUE_SIZE + 1)});
        }
        for (unsigned heads = any(QUEUE_SIZE); heads; heads--)
            other_offer(any(QUEUE_SIZE));
        asked();
    }
    taken = 0;
    lives("receiving at random");
}

static void receives(void) {
    receives_at_random();
    for (unsigned row = 0; row < COUNT(RECEIVING); row++)
        receive(&RECEIVING[row]);
    nobody_receives("ring that is never filled", 0);
    nobody_receives("ring that is not filled again", 3);
}

// --------------------------------------------------------------------------------------------------- balloons

// Queues by their numbers (5.5.2), and the configuration space's last field (5.5.4).
enum { INFLATE = 0, DEFLATE = 1, STATISTICS = 2, HINTS = 3, REPORTS = 4, POISON = CONFIG + 12 };

// A page of this guest's own image.
static uint8_t own[2 * PAGE] __attribute__((aligned(PAGE))) = {1};

// Gives the queue one chain and waits until it is used, or a reset is asked for if that may be.
static void give(const char *what, uint16_t index, struct descriptor descriptor, enum due due) {
    usual = index;
    announce(what);
    start();
    describe(TABLE, 0, descriptor);
    offer(0);
    uint32_t written;
    while (!used(&written))
        if (get(STATUS) & NEEDS_RESET) {
            if (due == SERVED)
                fail(what, "a reset is asked for");
            break;
        }
    if (due == RESET && !(get(STATUS) & NEEDS_RESET))
        fail(what, "it was used");
    usual = -1;
}

struct pages {
    const char *what;
    uint32_t numbers[4];
    uint32_t len;
    uint16_t flags;
    enum due due;
};

// Pages that are no memory, and lengths that are no numbers.
static const struct pages PAGES[] = {
    {"page past the end of memory", {MEMORY_END >> 12}, 4, 0, SERVED},
    {"page in the hole", {0xc0000}, 4, 0, SERVED},
    {"page of the device's registers", {0xc0001}, 4, 0, SERVED},
    {"page of the local APIC", {0xfee00}, 4, 0, SERVED},
    {"page above all memory", {0x100000}, 4, 0, SERVED},
    {"last page that can be named", {0xffffffff}, 4, 0, SERVED},
    {"pages of which the second is one", {0xffffffff, FAR >> 12, 0xc0000}, 12, 0, SERVED},
    {"page twice", {FAR >> 12, FAR >> 12}, 8, 0, SERVED},
    {"no page", {0}, 0, 0, SERVED},
    {"a byte of a number", {FAR >> 12}, 1, 0, SERVED},
    {"three bytes of a number", {FAR >> 12}, 3, 0, SERVED},
    {"a number and a byte", {FAR >> 12, ~0u}, 5, 0, SERVED},
    {"a number and three bytes", {FAR >> 12, ~0u}, 7, 0, SERVED},
    {"numbers to be written", {FAR >> 12}, 4, WRITE, SERVED},
    {"page of the numbers themselves", {ROOM >> 12}, 4, 0, SERVED},
    {"page of the descriptor table", {TABLE >> 12}, 4, 0, ANY},
    {"page of the available ring", {AVAILABLE >> 12}, 4, 0, ANY},
    {"page of the used ring", {USED >> 12}, 4, 0, ANY},
};

static void inflate(void) {
    for (unsigned row = 0; row < COUNT(PAGES); row++) {
        const struct pages *pages = &PAGES[row];
        clear(FAR - PAGE, 3 * PAGE, 0xa5);
        memcpy((void *)ROOM, pages->numbers, sizeof pages->numbers);
        give(pages->what, INFLATE, (struct descriptor){ROOM, pages->len, pages->flags, 0}, pages->due);
        int is_named = 0;
        for (unsigned index = 0; index < pages->len / 4 && !pages->flags; index++)
            is_named |= pages->numbers[index] == FAR >> 12;
        if (!is_all(FAR, PAGE, is_named ? 0 : 0xa5))
            fail(pages->what, is_named ? "a page was not taken" : "a page was taken that was not named");
        if (!is_all(FAR - PAGE, PAGE, 0xa5) || !is_all(FAR + PAGE, PAGE, 0xa5))
            fail(pages->what, "a page beside was taken");
        lives(pages->what);
        give(pages->what, DEFLATE, (struct descriptor){ROOM, pages->len, pages->flags, 0}, pages->due);
        lives(pages->what);
    }
    // More numbers than one request is good for, and not one is memory.
    clear(ROOM, ROOM_SIZE, 0xff);
    give("numbers without end", INFLATE, (struct descriptor){ROOM, ROOM_SIZE, 0, 0}, SERVED);
    lives("numbers without end");
    // A page of this program is gone, and the one behind is not.
    own[PAGE] = 1;
    *(volatile uint32_t *)ROOM = (uint64_t)own >> 12;
    give("page of the kernel itself", INFLATE, (struct descriptor){ROOM, 4, 0, 0}, SERVED);
    if (!is_all((uint64_t)own, PAGE, 0) || ((volatile uint8_t *)own)[PAGE] != 1)
        fail("page of the kernel itself", "it was not taken, or another one");
    lives("page of the kernel itself");
}

// The device keeps a buffer of statistics until it wants the next ones: it is not waited for, but in the end.
static void statistics(void) {
    static const struct descriptor BUFFERS[] = {
        {ROOM, 0, 0, 0}, {ROOM, 1, 0, 0}, {ROOM, 9, 0, 0}, {ROOM, 11, 0, 0}, {ROOM, 641, 0, 0},
        {ROOM, ROOM_SIZE, 0, 0}, {ROOM, 160, WRITE, 0},
    };
    for (unsigned row = 0; row < COUNT(BUFFERS) + 1; row++) {
        const char *what = row < COUNT(BUFFERS) ? "statistics of nonsense" : "several buffers of statistics";
        usual = STATISTICS;
        announce(what);
        start();
        clear(ROOM, ROOM_SIZE, row % 2 ? 0xff : 0x01);
        int several = row == COUNT(BUFFERS);
        describe(TABLE, 0, BUFFERS[several ? 3 : row]);
        for (unsigned copy = several ? QUEUE_SIZE : 1; copy; copy--)
            offer(0);
        uint32_t written;
        while (several && !used(&written))
            ;
        if (get(STATUS) & NEEDS_RESET || used(&written))
            fail(what, "a reset is asked for, or more was used than is wanted");
        usual = -1;
        lives(what);
    }
}

static void free_pages(const char *what, uint16_t index, struct descriptor descriptor, enum due due, uint64_t first,
                       uint64_t end) {
    clear(FAR, 6 * PAGE, 0xa5);
    give(what, index, descriptor, due);
    for (uint64_t page = FAR; page < FAR + 6 * PAGE; page += PAGE) {
        int is_taken = page >= first && page < end;
        if (!is_all(page, PAGE, is_taken ? 0 : 0xa5))
            fail(what, is_taken ? "a page was not taken" : "a page was taken that was not reported");
    }
    lives(what);
}

static void reports(void) {
    free_pages("reported pages to be read", REPORTS, (struct descriptor){FAR, 2 * PAGE, 0, 0}, SERVED, 0, 0);
    free_pages("reported part of a page", REPORTS, (struct descriptor){FAR + 8, PAGE - 9, WRITE, 0}, SERVED, 0, 0);
    free_pages("reported parts of pages on both sides", REPORTS, (struct descriptor){FAR + PAGE + 1, 4 * PAGE - 2, WRITE, 0}, SERVED,
           FAR + 2 * PAGE, FAR + 4 * PAGE);
    free_pages("reported parts of two pages", REPORTS, (struct descriptor){FAR + 1, 2 * PAGE - 2, WRITE, 0}, SERVED, 0, 0);
    free_pages("reported pages of all that is free", REPORTS, (struct descriptor){FAR, MEMORY_END - FAR, WRITE, 0}, SERVED, FAR,
           MEMORY_END);
    free_pages("reported pages across the end of memory", REPORTS, (struct descriptor){MEMORY_END - PAGE, 2 * PAGE, WRITE, 0}, RESET,
           0, 0);
    free_pages("reported pages of the rings", REPORTS, (struct descriptor){TABLE, 3 * PAGE, WRITE, 0}, ANY, 0, 0);
    // Pages that keep what they hold are not taken (5.5.6.7).
    usual = REPORTS;
    announce("reported pages that are poisoned");
    start();
    set(POISON, 0xa5a5a5a5);
    clear(FAR, PAGE, 0xa5);
    describe(TABLE, 0, (struct descriptor){FAR, PAGE, WRITE, 0});
    offer(0);
    uint32_t written;
    while (!used(&written))
        ;
    usual = -1;
    if (!is_all(FAR, PAGE, 0xa5))
        fail("reported pages that are poisoned", "they were taken");
    lives("reported pages that are poisoned");
}

// Nobody asks this guest for its free pages: none is taken (5.5.6.6).
static void hints(void) {
    free_pages("free pages that nobody asked for", HINTS, (struct descriptor){FAR, 2 * PAGE, WRITE, 0}, SERVED, 0, 0);
    free_pages("free pages across the end of memory", HINTS, (struct descriptor){MEMORY_END - PAGE, 2 * PAGE, WRITE, 0},
               RESET, 0, 0);
    const char *what = "free pages of a run that there is not";
    for (uint32_t run = 0; run < 4; run++) {
        usual = HINTS;
        announce(what);
        start();
        clear(FAR, PAGE, 0xa5);
        *(volatile uint32_t *)ROOM = run;
        describe(TABLE, 0, (struct descriptor){ROOM, 4, NEXT, 1});
        describe(TABLE, 1, (struct descriptor){FAR, PAGE, WRITE, 0});
        offer(0);
        uint32_t written;
        while (!used(&written))
            ;
        usual = -1;
        if (!is_all(FAR, PAGE, 0xa5))
            fail(what, "they were taken");
        lives(what);
    }
}

static void balloon(void) {
    inflate();
    statistics();
    hints();
    reports();
}
