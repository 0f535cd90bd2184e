/*
 * The witness: runs in a stock Linux guest, 64-bit or 32-bit, and watches its time on all of its processors.
 *
 *   witness SECONDS[+REST] [ADDRESS]    ends sooner after a line that begins with "q" from its standard input; then
 *                      nobody reads or sleeps for REST seconds, and the host is looked at again
 *   witness now        CLOCK_REALTIME in nanoseconds, for hosts whose date has none
 *   witness keep       tells the kernel that its clock is kept at real time, and is right: for hosts that nobody keeps
 *
 * A process on each processor reads the TSC and CLOCK_MONOTONIC without a pause. No reading may be less than one
 * that any processor took before it, and the TSC of one processor may not be the same twice. Other processes
 * sleep until given times and look when they wake. The first process tells of all that, and holds the guest's
 * CLOCK_REALTIME against the host's, by the kernel's PTP device for KVM, which asks the host: at one instant where
 * the guest keeps time by the kvmclock, and between two readings otherwise. At ADDRESS, in hexadecimal, is a VMClock
 * page (include/uapi/linux/vmclock-abi.h), which it maps, and by which it takes its TSC for a time, too.
 *
 * No C library: it has none for both kinds of guests. Numbers are in hexadecimal, since a division of 64 bits needs
 * a library on a 32-bit processor. Lines, each after "w ":
 *
 *   begin PROCESSORS
 *   none ERRNO                                     the host cannot be asked
 *   cross HOST GUEST TSC-BEFORE GUEST TSC-AFTER    the host's and the guest's time at one instant, in ns;
 *                                                  then the guest's time between two readings of its TSC
 *   between GUEST HOST GUEST TSC-BEFORE GUEST TSC-AFTER      the host's time between two readings of the guest's
 *   page STATUS MARKER BEFORE AFTER ESTIMATE LARGEST
 *                                                  the page's time at the two readings of the TSC in the line before,
 *                                                  and by how much it may be off; all ones where that is not told, and
 *                                                  0 for the times of a page without a counter
 *   sum MONOTONIC READINGS STILL BACK TSC-STEPS LARGEST MONOTONIC-STEPS LARGEST TSC-GAP MONOTONIC-GAP FIRED EARLY LATEST
 *                                                  since the beginning; the gaps and the latest since the line before.
 *                                                  STILL and BACK: the TSC of one processor, by itself; STEPS: behind
 *                                                  what another had read
 *   lost COUNT                                     sleepers that did not wake
 *   end
 */

typedef unsigned long long u64;
typedef long long s64;
typedef unsigned int u32;
typedef u64 __attribute__((aligned(8))) shared64;

#define NS 1000000000ULL
#define MAX_PROCESSORS 8
#define SLEEPERS 8
/* Of the guest's clock, between two looks at the host's. */
#define LOOK_NS 250000000ULL
#define LOOKS_PER_LINE 4

#ifdef __x86_64__
enum {
	SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_poll = 7, SYS_mmap = 9, SYS_ioctl = 16, SYS_fork = 57, SYS_exit = 60,
	SYS_wait4 = 61, SYS_kill = 62, SYS_setpriority = 141, SYS_prctl = 157, SYS_sched_setaffinity = 203, SYS_sched_getaffinity = 204,
	SYS_clock_gettime = 228, SYS_clock_nanosleep = 230, SYS_clock_adjtime = 305
};
static long call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall" : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
#else
/* clock_gettime64, clock_adjtime64 and clock_nanosleep_time64; mmap2, whose offset is in pages. */
enum {
	SYS_exit = 1, SYS_fork = 2, SYS_read = 3, SYS_write = 4, SYS_open = 5, SYS_kill = 37, SYS_ioctl = 54,
	SYS_setpriority = 97, SYS_wait4 = 114, SYS_poll = 168, SYS_prctl = 172, SYS_mmap = 192, SYS_sched_setaffinity = 241,
	SYS_sched_getaffinity = 242, SYS_clock_gettime = 403, SYS_clock_nanosleep = 407, SYS_clock_adjtime = 405
};
static long call6(long number, long a, long b, long c, long d, long e, long f)
{
	long arguments[6] = { a, b, c, d, e, f }, *at = arguments;
	long result;
	__asm__ volatile("push %%ebp\n\t"
			 "push %%ebx\n\t"
			 "mov (%%esi), %%ebx\n\t"
			 "mov 4(%%esi), %%ecx\n\t"
			 "mov 8(%%esi), %%edx\n\t"
			 "mov 16(%%esi), %%edi\n\t"
			 "mov 20(%%esi), %%ebp\n\t"
			 "mov 12(%%esi), %%esi\n\t"
			 "int $0x80\n\t"
			 "pop %%ebx\n\t"
			 "pop %%ebp"
			 : "=a"(result), "+S"(at)
			 : "a"(number)
			 : "ecx", "edx", "edi", "memory");
	return result;
}
#endif
#ifdef __x86_64__
#define MMAP_UNIT 1UL
#else
#define MMAP_UNIT 4096UL
#endif
#define call(number, a, b, c, d) call6(number, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

enum { REALTIME = 0, MONOTONIC = 1, ABSOLUTE = 1 };

struct timespec64 {
	s64 seconds;
	s64 nanoseconds;
};

static u64 now(int clock)
{
	struct timespec64 time;
	call(SYS_clock_gettime, clock, &time, 0, 0);
	return (u64)time.seconds * NS + (u64)time.nanoseconds;
}

/* Not before what came before, and before what comes after: SDM, vol. 2, RDTSC. */
static u64 tsc(void)
{
	u32 low, high;
	__asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
	return (u64)high << 32 | low;
}

/* What the processes share. Values that one process writes, others read; the latest readings all raise. */
struct watcher {
	shared64 readings, still, back, tsc_steps, tsc_step, monotonic_steps, monotonic_step, tsc_gap, monotonic_gap;
} __attribute__((aligned(64)));
struct sleeper {
	shared64 fired, early, latest, deadline;
} __attribute__((aligned(64)));
static struct shared {
	shared64 latest_tsc __attribute__((aligned(64)));
	shared64 latest_monotonic __attribute__((aligned(64)));
	u32 stop __attribute__((aligned(64)));
	struct watcher watchers[MAX_PROCESSORS];
	struct sleeper sleepers[SLEEPERS];
} *shared;

static u64 load(shared64 *value)
{
	return __atomic_load_n(value, __ATOMIC_SEQ_CST);
}

static void store(shared64 *value, u64 to)
{
	__atomic_store_n(value, to, __ATOMIC_SEQ_CST);
}

static void raise_to(shared64 *value, u64 to)
{
	u64 known = load(value);
	while (known < to && !__atomic_compare_exchange_n(value, &known, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

static u64 take(shared64 *value)
{
	return __atomic_exchange_n(value, 0, __ATOMIC_SEQ_CST);
}

static int stopped(void)
{
	return __atomic_load_n(&shared->stop, __ATOMIC_SEQ_CST) != 0;
}

/* A reading that follows `before`, which somebody had read by then. */
static void hold(u64 reading, u64 before, shared64 *steps, shared64 *largest)
{
	if (reading < before) {
		store(steps, *steps + 1);
		raise_to(largest, before - reading);
	}
}

static void watch(int processor)
{
	struct watcher *watcher = &shared->watchers[processor];
	u64 own_tsc = tsc(), own_monotonic = now(MONOTONIC);
	while (!stopped()) {
		u64 before = load(&shared->latest_tsc);
		u64 reading = tsc();
		hold(reading, before, &watcher->tsc_steps, &watcher->tsc_step);
		raise_to(&shared->latest_tsc, reading);
		if (reading == own_tsc)
			store(&watcher->still, watcher->still + 1);
		if (reading < own_tsc)
			store(&watcher->back, watcher->back + 1);
		if (reading > own_tsc)
			raise_to(&watcher->tsc_gap, reading - own_tsc);
		own_tsc = reading;

		before = load(&shared->latest_monotonic);
		reading = now(MONOTONIC);
		hold(reading, before, &watcher->monotonic_steps, &watcher->monotonic_step);
		raise_to(&shared->latest_monotonic, reading);
		if (reading > own_monotonic)
			raise_to(&watcher->monotonic_gap, reading - own_monotonic);
		own_monotonic = reading;
		store(&watcher->readings, watcher->readings + 1);
	}
}

static struct timespec64 timespec(u64 ns)
{
	/* Without a division: the seconds bit by bit. */
	struct timespec64 time = { 0, 0 };
	for (int bit = 33; bit >= 0; bit--) {
		u64 part = NS << bit;
		if (part >> bit == NS && ns >= part) {
			ns -= part;
			time.seconds |= 1LL << bit;
		}
	}
	time.nanoseconds = (s64)ns;
	return time;
}

static void sleep_until(u64 deadline)
{
	struct timespec64 time = timespec(deadline);
	while (call(SYS_clock_nanosleep, MONOTONIC, ABSOLUTE, &time, 0) != 0)
		;
}

/* Periods that have nothing in common, so that some sleeper is always about to wake. */
static u64 period(int number)
{
	return 100000000ULL + 37000000ULL * (u64)number;
}

static void sleep_over_and_over(int number)
{
	struct sleeper *sleeper = &shared->sleepers[number];
	while (!stopped()) {
		u64 deadline = load(&sleeper->deadline);
		sleep_until(deadline);
		u64 woken = now(MONOTONIC);
		if (woken < deadline)
			store(&sleeper->early, sleeper->early + 1);
		else
			raise_to(&sleeper->latest, woken - deadline);
		store(&sleeper->fired, sleeper->fired + 1);
		store(&sleeper->deadline, deadline + period(number));
	}
}

/* A line, written at once, so that no other line begins within it. */
static char line[400];
static unsigned length;

static void text(const char *words)
{
	while (*words != 0 && length < sizeof line)
		line[length++] = *words++;
}

static void hex(u64 number)
{
	text(" ");
	int shift = 60;
	while (shift > 0 && number >> shift == 0)
		shift -= 4;
	for (; shift >= 0 && length < sizeof line; shift -= 4)
		line[length++] = "0123456789abcdef"[number >> shift & 15];
}

static void tell(void)
{
	text("\n");
	call(SYS_write, 1, line, length, 0);
	length = 0;
}

/* include/uapi/linux/ptp_clock.h */
struct ptp_time {
	s64 seconds;
	u32 nanoseconds;
	u32 reserved;
};
struct ptp_precise {
	struct ptp_time device, realtime, monotonic_raw;
	u32 reserved[4];
};
#define SAMPLES 25
#define CALLS 4
struct ptp_offset {
	u32 samples;
	u32 reserved[3];
	struct ptp_time times[2 * SAMPLES + 1];
};
#define PTP_SYS_OFFSET 0x43403d05
#define PTP_SYS_OFFSET_PRECISE 0xc0403d08
_Static_assert(sizeof(struct ptp_precise) == 0x40, "as the request's number says");
_Static_assert(sizeof(struct ptp_offset) == 0x340, "as the request's number says");

static u64 of(struct ptp_time time)
{
	return (u64)time.seconds * NS + time.nanoseconds;
}

/* The page that the host writes, if there is one, and a copy of it that was taken whole. */
enum { PAGE = 112, MAGIC = 0, VERSION = 8, COUNTER = 10, TIME_TYPE = 11, SEQUENCE = 12, MARKER = 16, FLAGS = 24,
       STATUS = 34, SHIFT = 39, COUNTER_VALUE = 40, PERIOD = 48, PERIOD_ERROR = 56, TIME = 72, TIME_ERROR = 88 };
static const volatile u32 *page;
static u32 copy[PAGE / 4];

static unsigned byte(int at)
{
	return copy[at / 4] >> at % 4 * 8 & 0xff;
}

static u64 field(int at)
{
	return (u64)copy[at / 4 + 1] << 32 | copy[at / 4];
}

static u32 sequence(void)
{
	return __atomic_load_n((const u32 *)&page[SEQUENCE / 4], __ATOMIC_ACQUIRE);
}

/* Returns the count that holds as long as the copy does. */
static u32 copy_page(void)
{
	for (;;) {
		u32 count = sequence();
		for (int i = 0; i < PAGE / 4; i++)
			copy[i] = page[i];
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (count % 2 == 0 && sequence() == count)
			return count;
	}
}

/* a x b in 128 bits: the low half is returned. */
static u64 multiply(u64 a, u64 b, u64 *high)
{
	u64 low = (a & 0xffffffff) * (b & 0xffffffff);
	u64 middle = (a >> 32) * (b & 0xffffffff) + (low >> 32);
	u64 other = (a & 0xffffffff) * (b >> 32) + (middle & 0xffffffff);
	*high = (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
	return other << 32 | (low & 0xffffffff);
}

/* So many ticks of a period: seconds, and what is returned, in units of 2^-64 of one. */
static u64 scale(u64 ticks, u64 period, u64 *seconds)
{
	u64 high, low = multiply(ticks, period, &high);
	unsigned shift = byte(SHIFT);
	if (shift > 0) {
		low = low >> shift | high << (64 - shift);
		high >>= shift;
	}
	*seconds = high;
	return low;
}

static u64 nanoseconds(u64 seconds, u64 fraction)
{
	u64 below;
	multiply(fraction, NS, &below);
	return seconds * NS + below;
}

static u64 page_time(u64 counter)
{
	u64 seconds, fraction = scale(counter - field(COUNTER_VALUE), field(PERIOD), &seconds);
	u64 sum = fraction + field(TIME + 8);
	return nanoseconds(seconds + field(TIME) + (sum < fraction), sum);
}

/* The estimated error, or the largest. */
static u64 page_error(u64 counter, int largest)
{
	unsigned period = 3 + (unsigned)largest, time = 5 + (unsigned)largest;
	if (!(field(FLAGS) >> period & field(FLAGS) >> time & 1))
		return ~0ULL;
	u64 ticks = counter - field(COUNTER_VALUE);
	u64 seconds, fraction = scale(ticks, field(PERIOD_ERROR + 8 * largest), &seconds);
	return nanoseconds(seconds, fraction) + 1 + field(TIME_ERROR + 8 * largest);
}

static void tell_page(u64 before, u64 after)
{
	int ticks = byte(COUNTER) == 1;
	text("w page");
	hex(byte(STATUS));
	hex(field(MARKER));
	hex(ticks ? page_time(before) : 0);
	hex(ticks ? page_time(after) : 0);
	hex(page_error(after, 0));
	hex(page_error(after, 1));
	tell();
}

/* The guest's time between two readings of its TSC: the closest of some. The page holds for all of them. */
static void tell_tsc(void)
{
	u64 best[3];
	u32 count = 0;
	do {
		count = page != 0 ? copy_page() : 0;
		for (int attempt = 0; attempt < 16; attempt++) {
			u64 before = tsc();
			u64 time = now(REALTIME);
			u64 after = tsc();
			if (attempt == 0 || after - before < best[2] - best[0]) {
				best[0] = before;
				best[1] = time;
				best[2] = after;
			}
		}
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while (page != 0 && sequence() != count);
	for (int i = 0; i < 3; i++)
		hex(best[i]);
	tell();
	if (page != 0)
		tell_page(best[0], best[2]);
}

static void look(int device)
{
	static struct ptp_precise precise;
	static struct ptp_offset offset;
	if (device >= 0 && call(SYS_ioctl, device, PTP_SYS_OFFSET_PRECISE, &precise, 0) == 0) {
		text("w cross");
		hex(of(precise.device));
		hex(of(precise.realtime));
		tell_tsc();
		return;
	}
	offset.samples = SAMPLES;
	long error = device < 0 ? device : call(SYS_ioctl, device, PTP_SYS_OFFSET, &offset, 0);
	if (error != 0) {
		text("w none");
		hex((u64)-error);
		tell();
		return;
	}
	/* The closest of all, the first call's among them. */
	struct ptp_time best[3] = { { 0, 0, 0 }, { 0, 0, 0 }, { 0, 0, 0 } };
	for (int calls = 0; calls < CALLS; calls++) {
		if (calls > 0 && call(SYS_ioctl, device, PTP_SYS_OFFSET, &offset, 0) != 0)
			break;
		for (int i = 0; i < SAMPLES; i++) {
			struct ptp_time *times = &offset.times[2 * i];
			if (of(best[0]) == 0 || of(times[2]) - of(times[0]) < of(best[2]) - of(best[0]))
				for (int j = 0; j < 3; j++)
					best[j] = times[j];
		}
	}
	text("w between");
	for (int i = 0; i < 3; i++)
		hex(of(best[i]));
	tell_tsc();
}

static void tell_sum(int processors)
{
	u64 readings = 0, still = 0, back = 0, steps[2] = { 0, 0 }, step[2] = { 0, 0 }, gap[2] = { 0, 0 };
	u64 fired = 0, early = 0, latest = 0;
	for (int i = 0; i < processors; i++) {
		struct watcher *watcher = &shared->watchers[i];
		shared64 *count[2] = { &watcher->tsc_steps, &watcher->monotonic_steps };
		shared64 *largest[2] = { &watcher->tsc_step, &watcher->monotonic_step };
		shared64 *gaps[2] = { &watcher->tsc_gap, &watcher->monotonic_gap };
		readings += load(&watcher->readings);
		still += load(&watcher->still);
		back += load(&watcher->back);
		for (int kind = 0; kind < 2; kind++) {
			u64 one = load(largest[kind]), other = take(gaps[kind]);
			steps[kind] += load(count[kind]);
			step[kind] = one > step[kind] ? one : step[kind];
			gap[kind] = other > gap[kind] ? other : gap[kind];
		}
	}
	for (int i = 0; i < SLEEPERS; i++) {
		u64 one = take(&shared->sleepers[i].latest);
		fired += load(&shared->sleepers[i].fired);
		early += load(&shared->sleepers[i].early);
		latest = one > latest ? one : latest;
	}
	text("w sum");
	hex(now(MONOTONIC));
	hex(readings);
	hex(still);
	hex(back);
	for (int kind = 0; kind < 2; kind++) {
		hex(steps[kind]);
		hex(step[kind]);
	}
	hex(gap[0]);
	hex(gap[1]);
	hex(fired);
	hex(early);
	hex(latest);
	tell();
}

/* After a stop sleepers have many times to wake for that are over; they are lost who do not come to the end of them. */
static void tell_lost(void)
{
	u64 begin = now(MONOTONIC), time, lost;
	do {
		lost = 0;
		time = now(MONOTONIC);
		for (int i = 0; i < SLEEPERS; i++) {
			u64 deadline = load(&shared->sleepers[i].deadline);
			lost += time > deadline && time - deadline > NS;
		}
		if (lost > 0)
			sleep_until(time + LOOK_NS);
	} while (lost > 0 && time - begin < 5 * NS);
	text("w lost");
	hex(lost);
	tell();
}

static void quit(int status)
{
	for (;;)
		call(SYS_exit, status, 0, 0, 0);
}

static void fail(const char *words, long error)
{
	text("w failed to ");
	text(words);
	hex((u64)-error);
	tell();
	quit(1);
}

static void pin(int processor)
{
	unsigned long mask = 1UL << processor;
	long error = call(SYS_sched_setaffinity, 0, sizeof mask, &mask, 0);
	if (error != 0)
		fail("stay on a processor", error);
}

static long children[MAX_PROCESSORS + SLEEPERS];
static int born;

static int is_child(void)
{
	long child = call(SYS_fork, 0, 0, 0, 0);
	if (child < 0)
		fail("fork", child);
	if (child > 0)
		children[born++] = child;
	else
		/* PR_SET_PDEATHSIG: nobody goes on alone. */
		call(SYS_prctl, 1, 9, 0, 0);
	return child == 0;
}

/* include/uapi/linux/timex.h: struct __kernel_timex */
struct timex64 {
	u32 modes, pad1;
	s64 offset, frequency, largest_error, estimated_error;
	u32 status, pad2;
	s64 others[14];
	u32 tai, pad3[11];
};
_Static_assert(sizeof(struct timex64) == 208, "as the kernel has it");
enum { ADJ_MAXERROR = 4, ADJ_ESTERROR = 8, ADJ_STATUS = 16 };

/* The clock is kept, and its errors are 0, from which the kernel counts on. */
static void keep(void)
{
	struct timex64 time = { .modes = ADJ_MAXERROR | ADJ_ESTERROR | ADJ_STATUS };
	long state = call(SYS_clock_adjtime, REALTIME, &time, 0, 0);
	if (state < 0)
		fail("have its clock kept", state);
}

static void map_page(const char *digits)
{
	unsigned long address = 0;
	for (; *digits != 0; digits++)
		address = address << 4 | (unsigned long)(*digits <= '9' ? *digits - '0' : *digits - 'a' + 10);
	long memory = call(SYS_open, "/dev/mem", 0, 0, 0);
	if (memory < 0)
		fail("open the memory", memory);
	/* PROT_READ, MAP_SHARED */
	long mapped = call6(SYS_mmap, 0, 4096, 1, 1, memory, (long)(address / MMAP_UNIT));
	if (mapped < 0 && mapped > -4096)
		fail("map the clock's page", mapped);
	page = (const volatile u32 *)mapped;
	copy_page();
	/* "VCLK", version 1, UTC; a TSC or no counter. */
	unsigned counter = byte(COUNTER);
	if (copy[MAGIC] != 0x4b4c4356 || byte(VERSION) != 1 || byte(TIME_TYPE) != 0 || (counter != 1 && counter != 0xff))
		fail("understand the clock's page", 0);
}

/* The scheduler charges a process that was running when the guest was stopped with all of that time, and has those that
 * were not catch up with it first. Beside processes of the least weight, that takes the seventieth part. */
static void step_back(void)
{
	long error = call(SYS_setpriority, 0, 0, 19, 0);
	if (error != 0)
		fail("be of the least weight", error);
}

/* include/uapi/asm-generic/termbits.h, ioctls.h */
struct termios {
	u32 input, output, control, local;
	unsigned char line, characters[19];
};
_Static_assert(sizeof(struct termios) == 36, "as the kernel has it");
enum { TCGETS = 0x5401, TCSETS = 0x5402, ECHO = 8, ENOTTY = 25 };

/* A terminal does not say again what is said to it, amid a line. */
static void have_no_echo(void)
{
	struct termios terminal;
	long error = call(SYS_ioctl, 0, TCGETS, &terminal, 0);
	if (error == 0) {
		terminal.local &= ~(u32)ECHO;
		error = call(SYS_ioctl, 0, TCSETS, &terminal, 0);
	}
	if (error != 0 && error != -ENOTTY)
		fail("have no echo", error);
}

/* Whether the standard input has a line that begins with "q". */
static int is_asked_to_end(void)
{
	struct {
		int descriptor;
		short events, found;
	} input = { 0, 1, 0 };
	static char keys[80];
	return call(SYS_poll, &input, 1, 0, 0) == 1 && input.found == 1 && call(SYS_read, 0, keys, sizeof keys, 0) > 0 &&
	       keys[0] == 'q';
}

static int count_processors(void)
{
	unsigned long mask[16] = { 0 };
	call(SYS_sched_getaffinity, 0, sizeof mask, mask, 0);
	int processors = 0;
	while (processors < MAX_PROCESSORS && mask[0] >> processors & 1)
		processors++;
	return processors;
}

static u64 number(const char **digits)
{
	u64 number = 0;
	for (; **digits >= '0' && **digits <= '9'; ++*digits)
		number = number * 10 + (u64)(**digits - '0');
	return number;
}

__attribute__((used)) static void run(long *stack)
{
	const char *argument = stack[0] >= 2 ? (const char *)stack[2] : "";
	if (argument[0] == 'n' && argument[1] == 'o' && argument[2] == 'w' && argument[3] == 0) {
		hex(now(REALTIME));
		tell();
		quit(0);
	}
	if (argument[0] == 'k' && argument[1] == 'e' && argument[2] == 'e' && argument[3] == 'p' && argument[4] == 0) {
		keep();
		quit(0);
	}
	u64 seconds = number(&argument), rest = 0;
	if (*argument == '+') {
		argument++;
		rest = number(&argument);
	}
	if (seconds == 0 || *argument != 0)
		fail("understand its argument, numbers of seconds, now or keep", 0);
	have_no_echo();
	if (stack[0] == 3)
		map_page((const char *)stack[3]);
	/* PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS */
	long mapped = call6(SYS_mmap, 0, sizeof *shared, 3, 0x21, -1, 0);
	if (mapped < 0 && mapped > -4096)
		fail("share memory", mapped);
	shared = (struct shared *)mapped;
	int device = (int)call(SYS_open, "/dev/ptp0", 0, 0, 0);
	int processors = count_processors();
	u64 begin = now(MONOTONIC);
	text("w begin");
	hex((u64)processors);
	tell();
	for (int i = 0; i < processors; i++)
		if (is_child()) {
			pin(i);
			step_back();
			watch(i);
			quit(0);
		}
	for (int i = 0; i < SLEEPERS; i++) {
		store(&shared->sleepers[i].deadline, begin + period(i));
		if (is_child()) {
			sleep_over_and_over(i);
			quit(0);
		}
	}
	u64 next = begin;
	for (int looks = 1; now(MONOTONIC) - begin < seconds * NS; looks++) {
		next += LOOK_NS;
		sleep_until(next);
		/* After a pause looks that were missed are not made up for. */
		if (now(MONOTONIC) - next > LOOK_NS)
			next = now(MONOTONIC);
		look(device);
		if (looks % LOOKS_PER_LINE == 0)
			tell_sum(processors);
		if (is_asked_to_end())
			break;
	}
	tell_lost();
	__atomic_store_n(&shared->stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < born; i++)
		call(SYS_wait4, children[i], 0, 0, 0);
	tell_sum(processors);
	if (rest > 0) {
		sleep_until(now(MONOTONIC) + rest * NS);
		look(device);
	}
	text("w end");
	tell();
	quit(0);
}

#ifdef __x86_64__
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n\thlt");
#else
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %esp, %eax\n\tand $-16, %esp\n\tsub $12, %esp\n\tpush %eax\n\t"
	"call run\n\thlt");
#endif
