/*
 * Talks over sockets, in a stock Linux guest and on its host: over vsock, and over Unix sockets as the launcher has
 * them.
 *
 *   sockets serve PLACE COUNT          sends back what comes, until COUNT connections came to their end; says
 *                                      "served: COUNT"
 *   sockets call PLACE COUNT           has COUNT connections at once, and sends over each what tells it from the
 *                                      others, twice, and over some of them more than either side keeps; then ends
 *                                      what it sends, sees the other side do the same, and says "called: COUNT";
 *                                      over vsock, how long the longest call waited, too: "longest call ms: 7"
 *   sockets bear SLOW GOOD             calls two ports of the host, of which nobody reads at the first: says "stalled:
 *                                      BYTES" when it takes no more; then waits for its end, and says with which errors
 *                                      (0 for none) that came, and what is sent or called after: "ended: 0", "sent
 *                                      after: 32", "called after: 104". The other connection is used at each step:
 *                                      "steps: COUNT"
 *
 * PLACE is "vsock PORT", of the host when called; "unix PATH"; or, to be called, "guest PATH PORT": the launcher's
 * socket, with the line that asks for a port of the guest. That is asked again while nobody serves it.
 */

#include "user.h"

enum {
	SYS_nanosleep = 35, SYS_sendto = 44, SYS_shutdown = 48, SYS_setsockopt = 54, SYS_epoll_wait = 232,
	SYS_clock_gettime = 228, SYS_epoll_ctl = 233, SYS_epoll_create1 = 291, SYS_prlimit64 = 302
};

enum { AF_UNIX = 1, AF_VSOCK = 40, SOCK_STREAM = 1, SHUT_WR = 1, SO_VM_SOCKETS_CONNECT_TIMEOUT = 6 };
enum { RLIMIT_NOFILE = 7 };
enum { EPOLL_CTL_ADD = 1, EPOLLIN = 1, MSG_DONTWAIT = 0x40, MSG_NOSIGNAL = 0x4000, EAGAIN = 11 };
#define ANY_CID 0xffffffffU
#define HOST_CID 2U
#define MAX_COUNT 1000
/* So many bytes go over a connection at a time: first a few, then more than a buffer of the driver has. */
#define FEW 100
#define MANY 6000
/* Over each hundredth connection, pieces that add up to 320 KiB. */
#define EACH 100
#define PIECE 16384
#define PIECES 20

/* struct sockaddr_vm and struct sockaddr_un. */
struct address {
	u16 family;
	union {
		struct {
			u16 reserved;
			u32 port, cid;
			u8 zero[4];
		} __attribute__((packed)) vsock;
		char path[108];
	} __attribute__((packed));
} __attribute__((packed));

struct event {
	u32 events;
	u64 data;
} __attribute__((packed));

/* In one piece, since two processes write. */
static void say_line(const char *before, u64 number)
{
	char line[64];
	u64 count = 0;
	for (; before[count] && count < 32; count++)
		line[count] = before[count];
	for (const char *digit = digits_of(number).text; *digit; digit++)
		line[count++] = *digit;
	line[count++] = '\n';
	line[count] = 0;
	say(line);
}

__attribute__((noreturn)) static void fail(const char *what, long result)
{
	say_line(what, (u64)(result < 0 ? -result : result));
	quit(1);
}

static void copy_path(struct address *address, const char *path)
{
	u64 count = length(path);
	if (count >= sizeof address->path)
		fail("trouble: path too long: ", (long)count);
	for (u64 i = 0; i <= count; i++)
		address->path[i] = path[i];
}

/* The address of a place. */
static struct address address_of(const char *family, const char *where, u32 cid)
{
	struct address address = { 0 };
	if (same(family, "vsock")) {
		address.family = AF_VSOCK;
		address.vsock.port = (u32)number(where);
		address.vsock.cid = cid;
	} else {
		address.family = AF_UNIX;
		copy_path(&address, where);
	}
	return address;
}

static long size_of(const struct address *address)
{
	return address->family == AF_VSOCK ? 16 : 2 + sizeof address->path;
}

static void send_all(long socket, const u8 *bytes, u64 count)
{
	while (count) {
		long sent = call(SYS_write, socket, bytes, count, 0);
		if (sent <= 0)
			fail("trouble: write: ", sent);
		bytes += sent;
		count -= (u64)sent;
	}
}

static u8 buffer[1 << 16];
static long sockets[MAX_COUNT];

static void serve(struct address address, u64 count)
{
	long listener = must("socket", call(SYS_socket, address.family, SOCK_STREAM, 0, 0));
	must("bind", call(SYS_bind, listener, &address, size_of(&address), 0));
	must("listen", call(SYS_listen, listener, 1024, 0, 0));
	long epoll = call(SYS_epoll_create1, 0, 0, 0, 0);
	struct event event = { EPOLLIN, (u64)listener };
	call(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, listener, &event);
	for (u64 ended = 0; ended < count;) {
		if (call(SYS_epoll_wait, epoll, &event, 1, -1) < 1)
			continue;
		if (event.data == (u64)listener) {
			long socket = must("accept", call(SYS_accept, listener, 0, 0, 0));
			event.data = (u64)socket;
			call(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, socket, &event);
			continue;
		}
		long came = must("read", call(SYS_read, event.data, buffer, sizeof buffer, 0));
		if (came)
			send_all((long)event.data, buffer, (u64)came);
		else {
			call(SYS_close, event.data, 0, 0, 0);
			ended++;
		}
	}
	say_line("served: ", count);
}

/* What tells a connection's bytes from those of others. */
static u8 byte_of(u64 connection, u64 place)
{
	return (u8)(connection * 7 + place + place / 251);
}

/* Sends the guest's port, and takes the answer; 0 when nobody serves it. */
static int ask(long socket, const char *port)
{
	const char *verb = "CONNECT ";
	send_all(socket, (const u8 *)verb, length(verb));
	send_all(socket, (const u8 *)port, length(port));
	send_all(socket, (const u8 *)"\n", 1);
	for (u8 byte = 0; byte != '\n';)
		if (call(SYS_read, socket, &byte, 1, 0) != 1)
			return 0;
	return 1;
}

/* CLOCK_MONOTONIC, in milliseconds. */
static u64 milliseconds(void)
{
	long time[2];
	must("clock_gettime", call(SYS_clock_gettime, 1, time, 0, 0));
	return (u64)time[0] * 1000 + (u64)time[1] / 1000000;
}

static u64 longest_call;

static long connected(const struct address *address, const char *port)
{
	struct {
		long seconds, nanoseconds;
	} moment = { 0, 20000000 };
	/*
	 * struct timeval. Unasked, the kernel waits for 2 s, for which an emulated host may stand still: how long it was
	 * is told instead.
	 */
	long patience[2] = { 60, 0 };
	for (;;) {
		long socket = must("socket", call(SYS_socket, address->family, SOCK_STREAM, 0, 0));
		if (address->family == AF_VSOCK)
			must("setsockopt", call5(SYS_setsockopt, socket, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT,
						 (long)patience, sizeof patience));
		u64 begun = milliseconds();
		must("connect", call(SYS_connect, socket, address, size_of(address), 0));
		u64 passed = milliseconds() - begun;
		if (passed > longest_call)
			longest_call = passed;
		if (!port || ask(socket, port))
			return socket;
		call(SYS_close, socket, 0, 0, 0);
		call(SYS_nanosleep, &moment, 0, 0, 0);
	}
}

static void send_pattern(u64 connection, u64 size)
{
	for (u64 place = 0; place < size; place++)
		buffer[place] = byte_of(connection, place);
	send_all(sockets[connection], buffer, size);
}

static void expect_pattern(u64 connection, u64 size)
{
	for (u64 place = 0; place < size;) {
		long came = call(SYS_read, sockets[connection], buffer, size - place, 0);
		if (came <= 0)
			fail("trouble: read: ", came);
		for (long i = 0; i < came; i++, place++)
			if (buffer[i] != byte_of(connection, place))
				fail("trouble: another byte at ", (long)place);
	}
}

static void call_all(struct address address, const char *port, u64 count)
{
	if (count > MAX_COUNT)
		fail("trouble: too many: ", (long)count);
	for (u64 i = 0; i < count; i++)
		sockets[i] = connected(&address, port);
	for (int round = 0; round < 2; round++) {
		u64 size = round ? MANY : FEW;
		for (u64 i = 0; i < count; i++)
			send_pattern(i, size);
		for (u64 i = 0; i < count; i++)
			expect_pattern(i, size);
	}
	for (u64 i = 0; i < count; i += EACH)
		for (int piece = 0; piece < PIECES; piece++) {
			send_pattern(i, PIECE);
			expect_pattern(i, PIECE);
		}
	for (u64 i = 0; i < count; i++)
		call(SYS_shutdown, sockets[i], SHUT_WR, 0, 0);
	for (u64 i = 0; i < count; i++) {
		long came = call(SYS_read, sockets[i], buffer, sizeof buffer, 0);
		if (came)
			fail("trouble: no end: ", came);
		call(SYS_close, sockets[i], 0, 0, 0);
	}
	if (!port)
		say_line("longest call ms: ", longest_call);
	say_line("called: ", count);
}

/* The error of a call, or 0. */
static u64 error_of(long result)
{
	return result < 0 ? (u64)-result : 0;
}

static void use(u64 connection, u64 *steps)
{
	send_pattern(connection, MANY);
	expect_pattern(connection, MANY);
	++*steps;
}

static void bear(const char *slow_port, const char *good_port)
{
	struct address slow = address_of("vsock", slow_port, HOST_CID);
	struct address good = address_of("vsock", good_port, HOST_CID);
	long socket = connected(&slow, 0);
	u64 steps = 0, taken = 0, before;
	sockets[0] = connected(&good, 0);
	/* What the device still had of it when it took no more, it has passed on when it has answered over the other one. */
	do {
		long sent;
		before = taken;
		while ((sent = call(SYS_sendto, socket, buffer, PIECE, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0)
			taken += (u64)sent;
		if (sent != -EAGAIN)
			fail("trouble: send: ", sent);
		use(0, &steps);
	} while (taken != before);
	say_line("stalled: ", taken);
	use(0, &steps);
	say_line("ended: ", error_of(call(SYS_read, socket, buffer, sizeof buffer, 0)));
	say_line("sent after: ", error_of(call(SYS_sendto, socket, buffer, 1, MSG_NOSIGNAL)));
	use(0, &steps);
	socket = call(SYS_socket, AF_VSOCK, SOCK_STREAM, 0, 0);
	say_line("called after: ", error_of(call(SYS_connect, socket, &slow, size_of(&slow), 0)));
	use(0, &steps);
	say_line("steps: ", steps);
}

static void run(long *stack)
{
	long arguments = stack[0];
	char **words = (char **)(stack + 1);
	u64 limit[2] = { MAX_COUNT + 96, MAX_COUNT + 96 };
	must("prlimit", call(SYS_prlimit64, 0, RLIMIT_NOFILE, limit, 0));
	if (arguments == 5 && same(words[1], "serve"))
		serve(address_of(words[2], words[3], ANY_CID), number(words[4]));
	else if (arguments == 4 && same(words[1], "bear"))
		bear(words[2], words[3]);
	else if (arguments == 5 && same(words[1], "call"))
		call_all(address_of(words[2], words[3], HOST_CID), 0, number(words[4]));
	else if (arguments == 6 && same(words[1], "call") && same(words[2], "guest"))
		call_all(address_of("unix", words[3], 0), words[4], number(words[5]));
	else
		fail("trouble: no such arguments, of which there are ", arguments);
}
