/*
 * Loads a guest's devices and says what that took, in ticks of its TSC; and the host's side of it. On a host whose clock
 * counts instructions a tick is one of them, the host's, the launcher's and the guest's together.
 *
 *   io disk read|write PATH SIZE COUNT   so many requests of SIZE bytes past the page cache: those of a page at random
 *                                        places, others one after the other
 *   io frames send|receive CARD COUNT    so many frames of 1,500 bytes of payload to the host, or from it
 *   io frames serve CARD                 the host's side, for ever
 *   io stream send|receive PORT MIB      so many MiB over one vsock connection
 *   io stream serve PATH                 the host's side, for ever, on a launcher's Unix socket
 *
 * Those of the guest say one line: "read 4096: TICKS of COUNT".
 */

#include "user.h"

enum { AF_UNIX = 1, AF_PACKET = 17, AF_VSOCK = 40, SOCK_STREAM = 1, SOCK_RAW = 3 };
enum { O_RDONLY = 0, O_RDWR = 2, O_DIRECT = 0x4000, SIOCGIFINDEX = 0x8933 };
#define HOST_CID 2U
#define PAGE 4096U
#define MIB (1UL << 20)
/* What disks are as large as. */
#define DISK (64 * MIB)

static u8 buffer[MIB] __attribute__((aligned(4096)));

static u64 ticks(void)
{
	u32 low, high;
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return (u64)high << 32 | low;
}

static void tell(const char *what, const char *size, u64 began, u64 count)
{
	u64 taken = ticks() - began;
	say(what);
	say(" ");
	say(size);
	say(": ");
	say_number(taken);
	say(" of ");
	say_number(count);
	say("\n");
}

static void disk(const char *operation, const char *path, const char *size_word, u64 count)
{
	int writes = same(operation, "write");
	u64 size = number(size_word), place = 1;
	if (size == 0 || size > sizeof buffer)
		must("no such size", -22);
	long file = must(path, call(SYS_open, path, (writes ? O_RDWR : O_RDONLY) | O_DIRECT, 0, 0));
	u64 began = ticks();
	for (u64 i = 0; i < count; i++) {
		/* Numerical Recipes' generator: all that matters is that it jumps. */
		place = size == PAGE ? place * 1664525 + 1013904223 : i;
		u64 offset = place % (DISK / size) * size;
		long moved = call(writes ? SYS_pwrite64 : SYS_pread64, file, buffer, size, offset);
		if (moved != (long)size)
			must(operation, moved < 0 ? moved : -5);
	}
	tell(operation, size_word, began, count);
}

/* Of experiments (RFC 5342): frames that ask and answer, and such that nobody on the host takes. */
#define CONTROL 0x88b5
#define IGNORED 0x88b6
/* The host sends so many frames before it waits for the guest to have had them. */
#define WINDOW 64
enum kind { DATA = 1, PLEASE_ANSWER, ANSWER, FEED };

static struct frame {
	u8 to[6], from[6], type[2];
	u8 kind, reserved;
	u32 count;
	u8 rest[1500 - 6];
} __attribute__((packed)) frame, incoming;

static u16 network_order(u16 number)
{
	return (u16)(number << 8 | number >> 8);
}

static long card(const char *name)
{
	long socket = must("socket", call(SYS_socket, AF_PACKET, SOCK_RAW, network_order(CONTROL), 0));
	struct {
		char name[16];
		int index;
		u8 rest[20];
	} request = { 0 };
	for (u64 i = 0; name[i] && i < 15; i++)
		request.name[i] = name[i];
	must(name, call(SYS_ioctl, socket, SIOCGIFINDEX, &request, 0));
	struct {
		u16 family, protocol;
		int index;
		u8 rest[12];
	} address = { AF_PACKET, network_order(CONTROL), request.index, { 0 } };
	must("bind", call(SYS_bind, socket, &address, sizeof address, 0));
	return socket;
}

static void send_frame(long socket, u16 type, enum kind kind, u32 count)
{
	for (int i = 0; i < 6; i++)
		frame.to[i] = 0xff, frame.from[i] = (u8)(2 + i);
	frame.type[0] = (u8)(type >> 8);
	frame.type[1] = (u8)type;
	frame.kind = (u8)kind;
	frame.count = count;
	must("frame out", call(SYS_write, socket, &frame, kind == DATA ? sizeof frame : 60, 0));
}

static void wait_for(long socket, enum kind kind)
{
	do
		must("frame in", call(SYS_read, socket, &incoming, sizeof incoming, 0));
	while (incoming.kind != kind);
}

static void frames_out(long socket, u64 count)
{
	u64 began = ticks();
	for (u64 i = 0; i < count; i++)
		send_frame(socket, IGNORED, DATA, 0);
	send_frame(socket, CONTROL, PLEASE_ANSWER, 0);
	wait_for(socket, ANSWER);
	tell("send", "frames", began, count);
}

static void frames_in(long socket, u64 count)
{
	u64 began = ticks();
	send_frame(socket, CONTROL, FEED, (u32)count);
	for (u64 i = 1; i <= count; i++) {
		wait_for(socket, DATA);
		if (i % WINDOW == 0)
			send_frame(socket, CONTROL, ANSWER, 0);
	}
	tell("receive", "frames", began, count);
}

static void serve_frames(long socket)
{
	for (;;) {
		must("frame in", call(SYS_read, socket, &incoming, sizeof incoming, 0));
		if (incoming.kind == PLEASE_ANSWER)
			send_frame(socket, CONTROL, ANSWER, 0);
		else if (incoming.kind == FEED)
			for (u32 i = 1, count = incoming.count; i <= count; i++) {
				send_frame(socket, CONTROL, DATA, 0);
				if (i % WINDOW == 0)
					wait_for(socket, ANSWER);
			}
	}
}

static void frames(const char *what, const char *name, u64 count)
{
	long socket = card(name);
	if (same(what, "serve"))
		serve_frames(socket);
	else if (same(what, "send"))
		frames_out(socket, count);
	else
		frames_in(socket, count);
}

/* What goes over a connection at a time. */
#define PIECE 65536

static void move(long socket, int sends, u64 bytes)
{
	while (bytes) {
		u64 piece = bytes < PIECE ? bytes : PIECE;
		long moved = call(sends ? SYS_write : SYS_read, socket, buffer, piece, 0);
		if (moved <= 0)
			must(sends ? "stream out" : "stream in", moved ? moved : -32);
		bytes -= (u64)moved;
	}
}

/* A connection begins with what the guest asks for: whether it sends, and how many bytes. */
struct wish {
	u64 guest_sends, bytes;
};

static void stream(const char *what, u32 port, u64 mib)
{
	struct {
		u16 family, reserved;
		u32 port, cid, zero;
	} address = { AF_VSOCK, 0, port, HOST_CID, 0 };
	struct wish wish = { same(what, "send"), mib * MIB };
	long socket = must("socket", call(SYS_socket, AF_VSOCK, SOCK_STREAM, 0, 0));
	must("connect", call(SYS_connect, socket, &address, sizeof address, 0));
	u64 began = ticks();
	must("wish", call(SYS_write, socket, &wish, sizeof wish, 0));
	move(socket, (int)wish.guest_sends, wish.bytes);
	if (wish.guest_sends)
		move(socket, 0, 1);
	tell(what, "stream", began, mib);
}

static void serve_streams(const char *path)
{
	struct {
		u16 family;
		char path[108];
	} address = { AF_UNIX, { 0 } };
	for (u64 i = 0; path[i] && i < sizeof address.path - 1; i++)
		address.path[i] = path[i];
	long listener = must("socket", call(SYS_socket, AF_UNIX, SOCK_STREAM, 0, 0));
	must(path, call(SYS_bind, listener, &address, sizeof address, 0));
	must("listen", call(SYS_listen, listener, 4, 0, 0));
	for (;;) {
		struct wish wish;
		long socket = must("accept", call(SYS_accept, listener, 0, 0, 0));
		if (call(SYS_read, socket, &wish, sizeof wish, 0) == sizeof wish) {
			move(socket, !wish.guest_sends, wish.bytes);
			if (wish.guest_sends)
				move(socket, 1, 1);
		}
		call(SYS_close, socket, 0, 0, 0);
	}
}

static void run(long *stack)
{
	long words = stack[0];
	const char **word = (const char **)(stack + 1);
	if (words == 6 && same(word[1], "disk"))
		disk(word[2], word[3], word[4], number(word[5]));
	else if (words >= 4 && same(word[1], "frames"))
		frames(word[2], word[3], words > 4 ? number(word[4]) : 0);
	else if (words == 4 && same(word[1], "stream") && same(word[2], "serve"))
		serve_streams(word[3]);
	else if (words == 5 && same(word[1], "stream"))
		stream(word[2], (u32)number(word[3]), number(word[4]));
	else
		must("no such arguments", -22);
}
