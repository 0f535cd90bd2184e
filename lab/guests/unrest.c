/*
 * Unrest on a host: has a CPU's TSC differ from the others'.
 *
 *   unrest skew CPU TICKS      the TSC of CPU is so many ticks ahead of what it was at power-on, or behind with a minus
 *
 * Root, and a kernel with msr.ko allow_writes=on. No C library, as for the guests' programs.
 */

typedef unsigned long long u64;
typedef long long s64;

enum { SYS_write = 1, SYS_open = 2, SYS_pwrite64 = 18, SYS_exit = 60 };
enum { O_WRONLY = 1 };

static long call(long number, long a, const void *b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

static void quit(int status)
{
	for (;;)
		call(SYS_exit, status, 0, 0, 0);
}

static void need(int good, const char *words)
{
	if (good)
		return;
	unsigned length = 0;
	while (words[length] != 0)
		length++;
	call(SYS_write, 2, words, length, 0);
	call(SYS_write, 2, "\n", 1, 0);
	quit(1);
}

static s64 number(const char *digits)
{
	int minus = *digits == '-';
	u64 value = 0;
	for (digits += minus; *digits != 0; digits++) {
		need(*digits >= '0' && *digits <= '9', "an argument is no number");
		value = value * 10 + (u64)(*digits - '0');
	}
	return minus ? (s64)(0 - value) : (s64)value;
}

static int same(const char *one, const char *other)
{
	while (*one == *other && *one != 0)
		one++, other++;
	return *one == *other;
}

static char *append(char *end, const char *words)
{
	while (*words != 0)
		*end++ = *words++;
	*end = 0;
	return end;
}

static long open(const char *path, int flags)
{
	return call(SYS_open, (long)path, (const void *)(long)flags, 0, 0);
}

/*
 * IA32_TSC_ADJUST, which the processor adds to its TSC (SDM, vol. 3, 18.17.3). Exact, unlike a TSC that is read and
 * written a while later.
 */
enum { IA32_TSC_ADJUST = 0x3b };

static void skew(const char *cpu, s64 ticks)
{
	char path[32];
	append(append(append(path, "/dev/cpu/"), cpu), "/msr");
	long file = open(path, O_WRONLY);
	need(file >= 0, "a CPU's registers cannot be written");
	long written = call(SYS_pwrite64, file, &ticks, sizeof ticks, IA32_TSC_ADJUST);
	need(written == sizeof ticks, "a CPU's TSC cannot be adjusted");
}

__attribute__((used)) static void run(long *stack)
{
	char **arguments = (char **)&stack[1];
	const char *what = stack[0] > 1 ? arguments[1] : "";
	if (same(what, "skew") && stack[0] == 4) {
		skew(arguments[2], number(arguments[3]));
	} else {
		need(0, "skew CPU TICKS");
	}
	quit(0);
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n\thlt");
