/*
 * Moves a lot, in a stock Linux guest and on its host, and says by a checksum what it was.
 *
 *   stream write PATH MIB SALT         writes a file or a disk from its beginning, has it flushed by fsync, and says
 *                                      "flushed: CHECKSUM"
 *   stream read PATH MIB               reads it: "read: CHECKSUM"
 *   stream serve PORT MIB SALT         over TCP, to who calls first: sends, says "sent: CHECKSUM", and takes as much:
 *                                      "taken: CHECKSUM"
 *   stream call ADDRESS PORT MIB SALT  takes, and then sends as much. ADDRESS is of IPv6, in 32 digits; those of IPv4
 *                                      are mapped (RFC 4291, 2.5.5.2)
 *
 * What is made of two salts is different in each word. The checksum is FNV-1a's, but of words of 64 bits.
 */

#include "user.h"

enum { SYS_fsync = 74 };
enum { O_RDONLY = 0, O_WRONLY = 1, O_CREAT = 0100, AF_INET6 = 10, SOCK_STREAM = 1 };

/* struct sockaddr_in6. */
struct address {
	u16 family, port;
	u32 flow;
	u8 address[16];
	u32 scope;
};

static u64 piece[(1 << 20) / 8];

static u64 checksum_with(u64 checksum)
{
	for (u64 i = 0; i < sizeof piece / 8; i++)
		checksum = (checksum ^ piece[i]) * 0x100000001b3;
	return checksum;
}
#define EMPTY 0xcbf29ce484222325

static void tell(const char *what, u64 checksum)
{
	say(what);
	say(": ");
	say_number(checksum);
	say("\n");
}

static u64 send(long to, u64 mib, u64 salt)
{
	u64 checksum = EMPTY;
	for (u64 word = salt; mib; mib--) {
		for (u64 i = 0; i < sizeof piece / 8; i++, word += 0x9e3779b97f4a7c15)
			piece[i] = word;
		checksum = checksum_with(checksum);
		for (u64 at = 0; at < sizeof piece;)
			at += (u64)must("write", call(SYS_write, to, (u8 *)piece + at, sizeof piece - at, 0));
	}
	return checksum;
}

static u64 take(long from, u64 mib)
{
	u64 checksum = EMPTY;
	for (; mib; mib--) {
		for (u64 at = 0; at < sizeof piece;) {
			long came = must("read", call(SYS_read, from, (u8 *)piece + at, sizeof piece - at, 0));
			if (!came) {
				say("trouble: it ended too early\n");
				quit(1);
			}
			at += (u64)came;
		}
		checksum = checksum_with(checksum);
	}
	return checksum;
}

static long opened(const char *path, int flags)
{
	return must("open", call(SYS_open, path, flags, 0600, 0));
}

static struct address address_of(const char *digits, const char *port)
{
	struct address address = { .family = AF_INET6 };
	u16 number_of_port = (u16)number(port);
	address.port = (u16)(number_of_port << 8 | number_of_port >> 8);
	for (u64 i = 0; digits[i] && i < 32; i++) {
		u8 digit = (u8)(digits[i] <= '9' ? digits[i] - '0' : digits[i] - 'a' + 10);
		address.address[i / 2] = (u8)(address.address[i / 2] << 4 | digit);
	}
	return address;
}

static long caller(const char *port)
{
	struct address address = address_of("", port);
	long listener = must("socket", call(SYS_socket, AF_INET6, SOCK_STREAM, 0, 0));
	must("bind", call(SYS_bind, listener, &address, sizeof address, 0));
	must("listen", call(SYS_listen, listener, 1, 0, 0));
	return must("accept", call(SYS_accept, listener, 0, 0, 0));
}

static long called(const char *digits, const char *port)
{
	struct address address = address_of(digits, port);
	long socket = must("socket", call(SYS_socket, AF_INET6, SOCK_STREAM, 0, 0));
	must("connect", call(SYS_connect, socket, &address, sizeof address, 0));
	return socket;
}

static void run(long *stack)
{
	long arguments = stack[0];
	char **words = (char **)(stack + 1);
	if (arguments == 5 && same(words[1], "write")) {
		long file = opened(words[2], O_WRONLY | O_CREAT);
		u64 checksum = send(file, number(words[3]), number(words[4]));
		must("fsync", call(SYS_fsync, file, 0, 0, 0));
		tell("flushed", checksum);
	} else if (arguments == 4 && same(words[1], "read")) {
		tell("read", take(opened(words[2], O_RDONLY), number(words[3])));
	} else if (arguments == 5 && same(words[1], "serve")) {
		long socket = caller(words[2]);
		tell("sent", send(socket, number(words[3]), number(words[4])));
		tell("taken", take(socket, number(words[3])));
	} else if (arguments == 6 && same(words[1], "call")) {
		long socket = called(words[2], words[3]);
		tell("taken", take(socket, number(words[4])));
		tell("sent", send(socket, number(words[4]), number(words[5])));
	} else {
		say("trouble: no such arguments\n");
		quit(1);
	}
}
