/*
 * What programs of 64-bit Linux share that use no C library, so that one file runs in any guest and on any host: system
 * calls, words, numbers, and `run`, which they define and which gets the stack as the kernel made it.
 */

typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

enum {
	SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_ioctl = 16, SYS_pread64 = 17, SYS_pwrite64 = 18,
	SYS_socket = 41, SYS_connect = 42, SYS_accept = 43, SYS_bind = 49, SYS_listen = 50, SYS_exit = 60
};

static long call5(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long result;
	__asm__ volatile("syscall" : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}
#define call(number, a, b, c, d) call5(number, (long)(a), (long)(b), (long)(c), (long)(d), 0)

static u64 length(const char *text)
{
	u64 count = 0;
	while (text[count])
		count++;
	return count;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static u64 number(const char *text)
{
	u64 value = 0;
	for (; *text >= '0' && *text <= '9'; text++)
		value = value * 10 + (u64)(*text - '0');
	return value;
}

static void say(const char *text)
{
	call(SYS_write, 1, text, length(text), 0);
}

struct digits {
	char text[24];
};

static struct digits digits_of(u64 number)
{
	struct digits digits;
	char backwards[24];
	int count = 0, at = 0;
	do
		backwards[count++] = (char)('0' + number % 10);
	while (number /= 10);
	while (count)
		digits.text[at++] = backwards[--count];
	digits.text[at] = 0;
	return digits;
}

static void say_number(u64 number)
{
	say(digits_of(number).text);
}

__attribute__((noreturn)) static void quit(int status)
{
	call(SYS_exit, status, 0, 0, 0);
	__builtin_unreachable();
}

/* Ends the program when a system call failed. */
static long must(const char *what, long result)
{
	if (result >= 0)
		return result;
	say("trouble: ");
	say(what);
	say(": error ");
	say_number((u64)-result);
	say("\n");
	quit(1);
}

static void run(long *stack);

__attribute__((used)) static void begin(long *stack)
{
	run(stack);
	quit(0);
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n\thlt");
