/* SPDX-License-Identifier: MIT */
/*
 * The first thing a client of the page server says: what its memory is, and the userfault descriptors to serve it by.
 * Firecracker's handshake in every form it has had, and gmem's own attach (gmem-serve-protocol(7)).
 *
 * Enters: a connected UNIX stream socket. Leaves: a checked message with its descriptors, or a negative errno with a
 * text. Everything in it comes from a process that is not trusted. No lock: one thread a receiver at a time.
 *
 * How a server uses it, so that it may be killed at any instant:
 *
 *	gmem_hello_new(sock, &h)		the socket is in the fd store by now
 *	epoll: EPOLLIN | EPOLLRDHUP | EPOLLET	(edges: what has been peeked stays readable)
 *	gmem_hello_feed(h)			once at first, then at every edge; 0: not all of it is there
 *	gmem_hello_tick(h)			every 100 ms or so while it is not; 5 s or so are the caller's deadline
 *	...1: gmem_hello_message(h)		record it: message->text and the descriptors
 *	gmem_hello_consume(h)			only now is it taken off the socket
 *	gmem_hello_take(h), gmem_hello_free(h)	the message is the caller's
 *
 * Who dies before gmem_hello_consume() leaves the whole message in the socket; the next server makes a new receiver
 * for it and is told the same again, with new copies of the descriptors. Who dies between recording and consuming
 * does so too: then the message is one that the record has, and is consumed and let go of. What is recorded is read
 * again by gmem_hello_parse().
 *
 * The one exception: a sender whose socket buffer is full of what is only peeked would wait for ever. From 32 KiB on,
 * and if a tick finds the text still unfinished, the beginning is taken off the socket, and lost with this process.
 * Firecracker's message is one send(2) of less than that.
 */
#ifndef GMEM_LINK_SERVE_HELLO_H
#define GMEM_LINK_SERVE_HELLO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define GMEM_HELLO_MAX_BYTES (1u << 20)
#define GMEM_HELLO_MAX_REGIONS 1024u
#define GMEM_HELLO_MAX_DEPTH 16u
#define GMEM_HELLO_MAX_VALUES (1u << 16) /* of JSON, unknown ones included */
#define GMEM_HELLO_MAX_UFFDS 32u /* of gmem's own attach; Firecracker sends one */
#define GMEM_HELLO_MAX_FDS (GMEM_HELLO_MAX_UFFDS + 2)
#define GMEM_HELLO_MAX_NAME 127u /* bytes of a source's or a machine's name */
#define GMEM_HELLO_HUGE_PAGE (UINT64_C(2) << 20)

enum gmem_hello_kind {
	GMEM_HELLO_FIRECRACKER = 1, /* anonymous or hugetlbfs memory of the client; there is no answer */
	GMEM_HELLO_GUEST_MEMFD, /* Firecracker's branch for guest_memfd; fault requests follow on the socket */
	GMEM_HELLO_ATTACH, /* a gmem memory file; the client waits for gmem_hello_answer() */
};

/* Which fields Firecracker sent, so which versions it may be. */
enum gmem_hello_generation {
	GMEM_HELLO_NO_PAGE_SIZE = 1, /* 1.1 to 1.6 */
	GMEM_HELLO_PAGE_SIZE_KIB, /* 1.7 to 1.11; the value is in bytes */
	GMEM_HELLO_PAGE_SIZE, /* 1.12 and later */
};

/*
 * Ranges are multiples of the message's page_size and do not wrap. No two overlap in the client's addresses; none in
 * the source either, but where two of an ATTACH show the same bytes of the memory file, which are the same of the
 * source.
 */
struct gmem_hello_region {
	uint64_t hva, len; /* in the client's address space */
	uint64_t source_off; /* of its first byte in the source: "offset" */
	uint64_t file_off; /* ATTACH: in the memory file. GUEST_MEMFD: in the guest_memfd, the same as source_off */
	uint64_t gpa; /* GUEST_MEMFD; 0 if not said */
	uint32_t uffd; /* which of the message's uffds it is registered with */
};

struct gmem_hello_message {
	enum gmem_hello_kind kind;
	enum gmem_hello_generation generation; /* of Firecracker's */
	bool no_guest_memfd; /* it says of some region that it is of none */
	uint64_t page_size; /* GMEM_PAGE_SIZE or GMEM_HELLO_HUGE_PAGE */
	uint64_t total_len; /* sum of the regions' */
	uint64_t source_end; /* the source must have this many bytes */
	uint32_t nregions;
	struct gmem_hello_region *regions; /* in the order sent */
	char source[GMEM_HELLO_MAX_NAME + 1]; /* ATTACH: of which source; "": the server's only one */
	char name[GMEM_HELLO_MAX_NAME + 1]; /* ATTACH: what the machine is called; printable ASCII; "": nothing */
	bool user_mode_only; /* ATTACH: the uffds serve no access of the kernel's */

	/* Descriptors, the message's own (close-on-exec). Who wants to keep one sets it to -1 here. */
	uint32_t nuffds;
	int uffds[GMEM_HELLO_MAX_UFFDS];
	/* UFFD_FEATURE_* that they have, by the kernel's word. Never EVENT_FORK, whose events carry descriptors. */
	uint64_t uffd_features[GMEM_HELLO_MAX_UFFDS];
	int memory_fd; /* ATTACH: the memory file. GUEST_MEMFD: the guest_memfd. Else -1 */
	int state_fd; /* ATTACH: its page-state table, for gmem_file_open(). Else -1 */
	int bitmap_fd; /* GUEST_MEMFD: KVM's userfault bitmap, if it was sent; not sealed by anybody. Else -1 */

	/* The text as it came, for recording it; not terminated. With the descriptors in the order they came in. */
	char *text;
	size_t text_len;

	/* By the kernel's word; of the process that called connect(2). gmem_hello_parse() leaves pid 0 and pidfd -1. */
	pid_t pid; /* 0: not in our pid namespace */
	uid_t uid;
	gid_t gid;
	int pidfd; /* -1: none to be had */
};

struct gmem_hello;

/*
 * Begins to receive; the socket is borrowed, and its SO_PEEK_OFF is set to 0. -ENOTSOCK, -EINVAL (no UNIX stream
 * socket), -ENOMEM.
 */
int gmem_hello_new(int sock, struct gmem_hello **ret);

/* Closes the descriptors it received; NULL is fine. What was not consumed stays in the socket. */
void gmem_hello_free(struct gmem_hello *hello);

/*
 * Reads what has come, without waiting. 1: the message is complete and checked; 0: wait for more. Errors are final,
 * and the connection is to be closed (gmem_hello_answer() first, which knows who waits for an answer): -ECONNRESET
 * (closed before it was complete), -EPROTO (not what the protocol has), -EINVAL (a value that cannot be), -E2BIG (past
 * a limit above), -EBADF (a descriptor is not what it should be), -EMFILE (this process has no room for the
 * descriptors: a new receiver may be tried later), -ENOMEM.
 */
int gmem_hello_feed(struct gmem_hello *hello);

/* As gmem_hello_feed(), after some time in which the message has not become complete. */
int gmem_hello_tick(struct gmem_hello *hello);

/* What is missing, for the text of the caller's time-out: "no descriptor has come". */
const char *gmem_hello_missing(const struct gmem_hello *hello);

/* The complete message, borrowed; NULL before that, or after gmem_hello_take(). */
const struct gmem_hello_message *gmem_hello_message(const struct gmem_hello *hello);

/*
 * Takes the message's bytes off the socket, and nothing behind them; turns SO_PEEK_OFF off. Until then another
 * receiver would be told the same. -ECONNRESET, -EPROTO: somebody else has read from the socket.
 */
int gmem_hello_consume(struct gmem_hello *hello);

/* The message becomes the caller's. NULL: it is not complete. */
struct gmem_hello_message *gmem_hello_take(struct gmem_hello *hello);

/* Closes what descriptors it has; NULL is fine. */
void gmem_hello_message_free(struct gmem_hello_message *message);

/*
 * Reads a text that was recorded, with its descriptors in the order they came in. Takes the descriptors if it
 * succeeds; closes none if it does not. Errors as gmem_hello_feed().
 */
int gmem_hello_parse(const char *text, size_t len, const int *fds, size_t nfds, struct gmem_hello_message **ret);

/* Numbers of the descriptors in the order they came in (-1: kept by somebody); returns how many. */
size_t gmem_hello_fds(const struct gmem_hello_message *message, int fds[GMEM_HELLO_MAX_FDS]);

/*
 * Tells an attaching program that its memory is served (error 0), or why not; Firecracker and what has not said who
 * it is are told nothing. Does not wait: an answer of some hundred bytes fits into a socket nobody has written to.
 */
int gmem_hello_answer(const struct gmem_hello *hello, int error, const char *text);

/* As gmem_hello_answer(), of a message that was recorded. */
int gmem_hello_answer_to(int sock, int error, const char *text);

#endif
