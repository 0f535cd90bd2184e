/*
 * Unrest on a host: has a CPU's TSC differ from the others', and threads move between CPUs.
 *
 *   unrest skew CPU TICKS      the TSC of CPU is so many ticks ahead of what it was at power-on, or behind with a minus
 *   unrest move TIMES MS THREAD ...      moves the threads between the CPUs 0 and 1 so often, once in so many
 *                                        milliseconds, each second thread the other way; says "moved: TIMES",
 *                                        and fewer where a thread has ended
 *
 * Root, and a kernel with msr.ko allow_writes=on. No C library, as for the guests' programs.
 */

#include "user.h"

enum { SYS_sched_setaffinity = 203, SYS_clock_gettime = 228, SYS_clock_nanosleep = 230 };
enum { CLOCK_MONOTONIC = 1, TIMER_ABSTIME = 1 };
enum { O_WRONLY = 1 };

static char *append(char *end, const char *words)
{
	while (*words)
		*end++ = *words++;
	*end = 0;
	return end;
}

/*
 * IA32_TSC_ADJUST, which the processor adds to its TSC (SDM, vol. 3, 18.17.3). Exact, unlike a TSC that is read and
 * written a while later.
 */
enum { IA32_TSC_ADJUST = 0x3b };

static void skew(const char *cpu, long ticks)
{
	char path[32];
	append(append(append(path, "/dev/cpu/"), cpu), "/msr");
	long file = must(path, call(SYS_open, path, O_WRONLY, 0, 0));
	must("IA32_TSC_ADJUST", call(SYS_pwrite64, file, &ticks, sizeof ticks, IA32_TSC_ADJUST));
}

struct time {
	long seconds, nanoseconds;
};

/* By the clock, so that who comes late once does not stay behind. */
static void move(u64 times, u64 ms, char **threads)
{
	struct time next;
	u64 moved = 0;
	must("clock_gettime", call(SYS_clock_gettime, CLOCK_MONOTONIC, &next, 0, 0));
	for (; moved < times; moved++) {
		for (u64 thread = 0; threads[thread]; thread++) {
			u64 cpu = 1UL << ((moved + thread) & 1);
			if (call(SYS_sched_setaffinity, number(threads[thread]), sizeof cpu, &cpu, 0) < 0)
				goto end;
		}
		next.nanoseconds += (long)ms * 1000000;
		next.seconds += next.nanoseconds / 1000000000;
		next.nanoseconds %= 1000000000;
		call(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &next, 0);
	}
end:
	say("moved: ");
	say_number(moved);
	say("\n");
}

static void run(long *stack)
{
	long count = stack[0];
	char **words = (char **)(stack + 1);
	if (count == 4 && same(words[1], "skew") && length(words[2]) <= 8) {
		const char *ticks = words[3];
		skew(words[2], *ticks == '-' ? -(long)number(ticks + 1) : (long)number(ticks));
	} else if (count > 4 && same(words[1], "move"))
		move(number(words[2]), number(words[3]), words + 4);
	else
		must("skew CPU TICKS, or move TIMES MS THREAD ...", -22);
}
