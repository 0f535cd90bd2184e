/*
 * Unrest on a host: has a CPU's TSC differ from the others'.
 *
 *   unrest skew CPU TICKS      the TSC of CPU is so many ticks ahead of what it was at power-on, or behind with a minus
 *
 * Root, and a kernel with msr.ko allow_writes=on. No C library, as for the guests' programs.
 */

#include "user.h"

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

static void run(long *stack)
{
	char **words = (char **)(stack + 1);
	if (stack[0] != 4 || !same(words[1], "skew") || length(words[2]) > 8)
		must("skew CPU TICKS", -22);
	const char *ticks = words[3];
	skew(words[2], *ticks == '-' ? -(long)number(ticks + 1) : (long)number(ticks));
}
