/* SPDX-License-Identifier: MIT */
/*
 * The descriptor store, as the server sees it: whoever minds the server (systemd, or `gmem serve`'s own minder) keeps
 * descriptors for it, and gives them to the next server when this one has died. One protocol for both, systemd's:
 * sd_notify(3) by $NOTIFY_SOCKET, sd_listen_fds(3) by $LISTEN_FDS. Without a minder everything works but the keeping.
 *
 * Enters: the environment at start, descriptors with names. Leaves: descriptors with names, clients that were accepted
 * *and* stored, negative errnos with a text. Thread rule: any thread; one mutex inside, a leaf, guards the books and
 * the switch from a dead minder to accepting ourselves.
 *
 * How a server uses it, so that it may be killed at any instant. The ledger entry (link/serve/ledger.h) is what makes
 * a VM exist: before it is written, and after it is removed, what lies in the store under that VM's id means nothing.
 *
 *	start	gmem_ledger_dir_open(), gmem_ledger_dir_lock()		the fence: the server before is dead
 *		gmem_store_open()
 *		each ledger: gmem_store_take() its descriptors; those that are missing: gmem_recover_fds()
 *		gmem_store_held(): what no ledger names. A client's connection ("ID.c"): it is new, gmem_hello_new().
 *		All else: gmem_store_drop()
 *		gmem_ledger_dir_sweep(); gmem_store_ready()
 *	client	gmem_store_accept(): it is stored as "ID.c"
 *		gmem_hello_feed() ... 1: nothing is consumed yet
 *		gmem_store_put() each descriptor as "ID.0", "ID.1", ...; gmem_store_barrier()
 *		gmem_ledger_dir_state(): the table of page states; gmem_ledger_write(): from here on it exists
 *		gmem_hello_consume(), and it is served
 *	end	gmem_ledger_remove(): the ledger first, then the table
 *		gmem_store_drop() each name, close() each descriptor
 */
#ifndef GMEM_LINK_SERVE_STORE_H
#define GMEM_LINK_SERVE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"

/*
 * A name is 1 to this many bytes of printable ASCII without ':' and spaces. Keep them short: all of them together are
 * one environment variable of the next server, which the kernel limits to 128 KiB.
 */
#define GMEM_STORE_MAX_NAME 31u
/* The longest id of a VM: a name is an id and a suffix of at most four bytes. */
#define GMEM_STORE_MAX_ID 27u
#define GMEM_STORE_CONNECTION ".c" /* the suffix of a client's connection */
/* Listening sockets whose name begins so are clients'; others ("metrics") are the caller's: gmem_store_listener(). */
#define GMEM_STORE_CLIENTS "clients"

enum gmem_store_minder {
	GMEM_STORE_NOBODY = 0, /* descriptors go with this process; the next takes them out of the clients */
	GMEM_STORE_SYSTEMD = 1, /* or whoever speaks its protocol */
	GMEM_STORE_MINDER = 2, /* link/serve/minder.h */
};

struct gmem_store;

/*
 * Reads $NOTIFY_SOCKET, $LISTEN_PID, $LISTEN_FDS, $LISTEN_FDNAMES, $FDSTORE, $WATCHDOG_USEC and $WATCHDOG_PID, and
 * removes them, so that no child believes them its own: call it before there are threads. What was passed becomes the
 * store's, close-on-exec. $LISTEN_PID of another process: nothing was passed to us. -EINVAL (values that cannot be),
 * -EAFNOSUPPORT (an address of another kind), -ENAMETOOLONG, -ENOMEM, -EMFILE.
 */
int gmem_store_open(struct gmem_store **ret);

/* Closes what was not taken; what is stored stays stored. NULL is allowed. */
void gmem_store_free(struct gmem_store *store);

/* Who minds this server now. A minder that has died is GMEM_STORE_NOBODY from the moment on that we notice. */
enum gmem_store_minder gmem_store_minder(const struct gmem_store *store);

struct gmem_store_stats {
	enum gmem_store_minder minder;
	bool minder_lost; /* there was one */
	uint32_t stored; /* names believed to be in the store */
	uint32_t limit; /* how many it takes; 0: not known */
	uint64_t put, dropped, failed; /* since start; failed: what could not be said to the minder */
	uint64_t accepted;
};

void gmem_store_stats(const struct gmem_store *store, struct gmem_store_stats *ret);

/* ---- what the server before had stored */

/* The i-th descriptor that was passed, is no listening socket and was not taken yet; borrowed. -ENOENT: no more. */
int gmem_store_held(const struct gmem_store *store, size_t i, const char **ret_name);

/* Gives the descriptor of that name away, the first if there are several. It stays stored. -ENOENT. */
int gmem_store_take(struct gmem_store *store, const char *name);

/* ---- storing */

/*
 * Stores a copy of `fd` under `name`: once this has returned, the descriptor outlives this process. A name may be used
 * for several; the same descriptor twice under one name is stored once. 0 also if nobody minds us. -EINVAL (name),
 * -ENOSPC (the store's limit, where it is known), -ETIMEDOUT (the minder does not listen: five seconds), -ECONNREFUSED
 * (it has just died: from now on nobody minds us), -EBADF.
 */
int gmem_store_put(struct gmem_store *store, const char *name, int fd);

/* Everything of that name leaves the store; a name that is not there is no error. Errors as gmem_store_put(). */
int gmem_store_drop(struct gmem_store *store, const char *name);

/*
 * Waits until the minder has acted on all that was said before. Not needed for a descriptor's sake, which is safe as
 * soon as it is sent; it tells that the minder works, and bounds what is on its way. -ETIMEDOUT, -ECONNREFUSED;
 * 0 if nobody minds us.
 */
int gmem_store_barrier(struct gmem_store *store, unsigned int timeout_ms);

/* ---- clients */

struct gmem_store_client {
	int fd; /* connected, non-blocking, close-on-exec; the caller's */
	char id[GMEM_STORE_MAX_ID + 1]; /* new and good for a file's name; stored as this and GMEM_STORE_CONNECTION */
};

/*
 * Listens at a path (mode 0600, a socket nobody listens at is replaced) for clients, and stores the socket. 0 also if
 * one that was passed is bound there.
 */
int gmem_store_listen(struct gmem_store *store, const char *path);

/* How many listening sockets for clients there are: passed ones, and those of gmem_store_listen(). */
size_t gmem_store_nlisteners(const struct gmem_store *store);

/* Gives away a listening socket that was passed under this name and is not for clients ("metrics"). -ENOENT. */
int gmem_store_listener(struct gmem_store *store, const char *name);

/*
 * A descriptor that polls readable when there may be a client; it stays the same for the store's life (an epoll set).
 */
int gmem_store_accept_fd(const struct gmem_store *store);

/*
 * The next client, stored. 1; 0: there is none now. A minder has accepted and stored it before we hear of it;
 * otherwise it is accepted here and stored by the very next system call. -EMFILE, -ENFILE, -ENOMEM: it waits in the
 * queue; try again when something was closed (the descriptor above is silent for a second meanwhile, no busy loop).
 */
int gmem_store_accept(struct gmem_store *store, struct gmem_store_client *ret);

/* ---- telling the minder */

/* READY=1, once all is taken over and clients are heard; and what the status line says, which may be NULL. */
int gmem_store_ready(struct gmem_store *store, const char *status);
int gmem_store_status(struct gmem_store *store, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* STOPPING=1: this process is going to end because it was told to, and is not to be started again. */
int gmem_store_stopping(struct gmem_store *store);

/* How often gmem_store_watchdog() must be called at least, in microseconds, halved for safety; 0: never. */
uint64_t gmem_store_watchdog_usec(const struct gmem_store *store);
int gmem_store_watchdog(struct gmem_store *store);

#endif
