/* SPDX-License-Identifier: MIT */
/*
 * What the program, the keeper and the server say to each other: one struct a message, with descriptors beside it,
 * over sequential-packet UNIX sockets. All three are of one machine and one build of the library: native layout,
 * checked by magic and length.
 *
 *	program -> keeper	HELLO; FILE* DONE come back (with the state tables);
 *				then REGION | FAILED, each answered by OK
 *	server -> keeper	SERVE; BUSY comes back, or IMAGE FILE* REGION* [VM] [FAILED] DONE;
 *				later REGION, VM, FAILED as they happen; BYE ends it
 */
#ifndef GMEM_FAULT_WIRE_H
#define GMEM_FAULT_WIRE_H

#include <stdint.h>
#include <sys/types.h>

#define GMEM_WIRE_MAGIC 0x776d6567u
#define GMEM_WIRE_MAX_FDS 2

enum gmem_wire_type {
	GMEM_WIRE_HELLO = 1,
	GMEM_WIRE_SERVE = 2, /* flags: GMEM_WIRE_TAKE_OVER */
	GMEM_WIRE_OK = 3, /* error, index */
	GMEM_WIRE_DONE = 4,
	GMEM_WIRE_FILE = 5, /* dev, ino, len, index = image region; fds: state [, memory] */
	GMEM_WIRE_IMAGE = 6, /* text = path, index = generation; fd */
	GMEM_WIRE_REGION = 7, /* dev, ino, hva, off, len, index = number of the userfault descriptor; fd if it is new */
	GMEM_WIRE_FAILED = 8, /* error, text: the program could not attach some memory */
	GMEM_WIRE_VM = 9, /* pid of the program */
	GMEM_WIRE_BUSY = 10, /* pid of the server that is alive */
	GMEM_WIRE_BYE = 11, /* the server has stopped serving */
};

#define GMEM_WIRE_TAKE_OVER 1u /* SERVE */
#define GMEM_WIRE_USER_MODE_ONLY 2u /* REGION: its userfault descriptor serves no access of the kernel's */
#define GMEM_WIRE_NEW_UFFD UINT32_MAX

struct gmem_wire {
	uint32_t magic;
	uint16_t type, flags;
	int32_t error;
	uint32_t index;
	uint64_t dev, ino, hva, off, len;
	int32_t pid;
	uint32_t pad;
	char text[1024];
};

/* Sends one message. Negative errno; -ECONNRESET: the other side closed; no signal. */
int gmem_wire_send(int sock, struct gmem_wire *w, const int *fds, int nfds);

/*
 * Receives one message with up to GMEM_WIRE_MAX_FDS descriptors (close-on-exec, the caller's to close; missing ones
 * are -1). -ECONNRESET: the other side closed. -EPROTO: not such a message. `ret_sender`, if not NULL, is the pid the
 * kernel vouches for, or 0.
 */
int gmem_wire_recv(int sock, struct gmem_wire *w, int fds[GMEM_WIRE_MAX_FDS], pid_t *ret_sender);

#endif
