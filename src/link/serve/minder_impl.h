/* SPDX-License-Identifier: MIT */
/* The minder's own fields. minder.c: its loop. minder_child.c: the server's process. minder_hear.c: what it says. */
#ifndef GMEM_LINK_SERVE_MINDER_IMPL_H
#define GMEM_LINK_SERVE_MINDER_IMPL_H

#include <limits.h>
#include <sys/types.h>

#include "link/serve/fence.h"
#include "link/serve/minder.h"
#include "link/serve/notify.h"
#include "link/serve/store.h"

#define GMEM_MINDER_LOCK "minder.lock"
#define GMEM_MINDER_NOTIFY "notify" /* its socket in the state directory */
#define GMEM_MINDER_CHANNEL "minder" /* the name of the server's end of the channel */
#define GMEM_MINDER_MAX_LISTENING 32u
/*
 * All names together must fit into one environment variable, which the kernel limits to 128 KiB; a minder that becomes
 * a new program writes a mark, a '=' and a number beside each.
 */
#define GMEM_MINDER_MAX_NAMES (126u << 10)
#define GMEM_MINDER_PER_NAME 8u
#define GMEM_MINDER_MAX_STORED 8192u

struct gmem_minder_stored {
	char name[GMEM_STORE_MAX_NAME + 1];
	int fd;
	bool untold; /* a client that the server has not heard of */
};

struct gmem_minder_listening {
	char name[GMEM_STORE_MAX_NAME + 1];
	int fd;
	bool clients;
};

struct gmem_minder {
	const struct gmem_minder_opts *opts;
	char program[PATH_MAX], notify_path[108], oom[16];
	struct gmem_fence fence;
	struct gmem_notify above; /* who minds us, if anybody */
	int dir, notify, signals;
	struct gmem_minder_listening listening[GMEM_MINDER_MAX_LISTENING];
	uint32_t nlistening;
	struct gmem_minder_stored *stored;
	uint32_t nstored, room, limit, nuntold;
	size_t names; /* bytes of all names, each with what separates it */
	uint64_t last_id;

	/* The server. */
	pid_t pid; /* 0: none is running */
	int channel; /* to it; -1 */
	bool ready, stopping; /* it has said so */
	bool own_program; /* it was started from what we run ourselves, not from its path */
	uint64_t started, heard; /* ms */
	unsigned int deaths;
	uint64_t start_at; /* when to start the next; 0: at once */

	/* What is to be done. */
	bool ever_ready, end, upgrade, become;
	uint64_t kill_at; /* ms; 0: it was not told to end */
	uint64_t accept_at; /* ms; 0: clients are accepted */
	int code;
};

void gmem_minder_say(const struct gmem_minder *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Takes fd in any case. -ENOSPC, -ENOMEM. */
int gmem_minder_keep(struct gmem_minder *m, const char *name, int fd, bool untold);
/* Room for one more name? */
bool gmem_minder_room(const struct gmem_minder *m);
/* Takes fd in any case: a listening socket. */
int gmem_minder_listen(struct gmem_minder *m, const char *name, int fd);
/* Reads all that has been said. */
void gmem_minder_hear(struct gmem_minder *m);

/* Starts the server. A failure is one of its deaths. */
void gmem_minder_start(struct gmem_minder *m);
/* If it has died: what it said last is heard, and what comes next is decided. */
void gmem_minder_reap(struct gmem_minder *m);
/* Tells clients to the server that it has not heard of, as many as go. */
void gmem_minder_tell(struct gmem_minder *m);

/* Becomes the program at the path. Returns only if that cannot be. */
void gmem_minder_become(struct gmem_minder *m);
/* If that is what has happened: takes everything up again. 1; 0: a new minder. */
int gmem_minder_resume(struct gmem_minder *m);

#endif
