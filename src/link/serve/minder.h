/* SPDX-License-Identifier: MIT */
/*
 * The minder: where there is no systemd, the process that keeps a page server's descriptors and starts it again when
 * it dies. It speaks systemd's side of the protocol of link/serve/store.h, and one thing more: it accepts clients
 * itself and stores each before the server hears of it.
 *
 * Enters: a program to run, sockets to listen at, signals, what the server says. Leaves: the server's environment and
 * descriptors. Single-threaded, no lock; it owns the process it runs in: signals, children, descriptors. It touches no
 * page and reads nothing that a client says.
 *
 *	SIGTERM, SIGINT		the server is told so; when it has ended, so does the minder
 *	SIGHUP			upgrade in place: the server is told to end (SIGTERM), the program is started anew from
 *				its path; once that is ready, the minder becomes the new program too (execve(2), same
 *				pid, same children). A new program that does not become ready is given up for the old
 *	SIGUSR1, SIGUSR2	passed on
 */
#ifndef GMEM_LINK_SERVE_MINDER_H
#define GMEM_LINK_SERVE_MINDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"

struct gmem_minder_listener {
	const char *name; /* as the server gets it: GMEM_STORE_CLIENTS, "metrics", ... */
	const char *path; /* mode 0600 */
};

struct gmem_minder_opts {
	size_t size; /* sizeof(struct gmem_minder_opts) */
	const char *dir; /* the state directory; the minder's own sockets and lock are in it */
	/*
	 * The program that is the server, by its path, found anew at each start; NULL: this one's. It is run with
	 * `argv`, and becomes the minder with that too after an upgrade: $NOTIFY_SOCKET says which it is to be.
	 */
	const char *program;
	char *const *argv;
	const struct gmem_minder_listener *listeners;
	size_t nlisteners;
	/*
	 * A minder or a server without one that is there already is killed first; its descriptors are taken out of the
	 * clients. Otherwise -EBUSY.
	 */
	bool take_over;
	uint64_t watchdog_usec; /* a server that says nothing for so long is killed; 0: 60 s */
	unsigned int stop_ms; /* how long a server may take to end; then it is killed. 0: 10 s */
	/* What it has to say (a server that died, how long until the next); may be NULL. */
	void (*say)(void *opaque, const char *text);
	void *opaque;
};

/*
 * Should this process become a minder? False if somebody minds it already: $NOTIFY_SOCKET is set, by systemd or by a
 * minder.
 */
bool gmem_minder_wanted(void);

/*
 * Runs until the server has ended for good. The server's exit code, or 128 and its signal's number; 0 after SIGTERM.
 * -EBUSY: there is a minder for this directory, or a server that has lost its own; -EADDRINUSE; other errors of
 * starting.
 */
int gmem_minder_run(const struct gmem_minder_opts *opts);

/*
 * The pid of the directory's minder, verified to be alive and a minder (it holds the directory's lock); 0: there is
 * none. `gmem serve upgrade` sends SIGHUP there.
 */
int gmem_minder_find(const char *dir);

/*
 * How long to wait before the server is started again, in ms, after it has died `deaths` times since it last worked for
 * ten seconds: at once three times, then 100 ms, doubled each time, 10 s at most. It is never given up: VMs wait.
 */
unsigned int gmem_minder_pause_ms(unsigned int deaths);

#endif
