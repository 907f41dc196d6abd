/* SPDX-License-Identifier: MIT */
/*
 * An NBD export: connections, the pool they are borrowed from, and what the server says is zero.
 * Enters: a URI, reads. Leaves: the server's bytes, or an error; never bytes it did not send. Each connection is one
 * thread's while it is borrowed, and has one command under way then, so a time-out ends the connection: its reply may
 * come at any time, and nothing else tells it from the next one's. Locks: gmem_nbd_pool.m, a leaf, never held over I/O.
 * Every wait has an end (`until`, CLOCK_MONOTONIC); only finding a host's address is out of reach.
 */
#ifndef GMEM_SOURCE_NBD_H
#define GMEM_SOURCE_NBD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "source/nbd_lib.h"

#define GMEM_NBD_SPAN (UINT64_C(64) << 20) /* whose zeros are asked for together */

struct gmem_nbd_conn {
	const struct gmem_nbd_lib *lib;
	struct nbd_handle *h;
	struct gmem_nbd_conn *next; /* of the idle ones */
};

/* What a server says of the export. */
struct gmem_nbd_offer {
	uint64_t size, max_read; /* of the export, of one command */
	bool several; /* connections */
	bool status; /* it knows base:allocation */
};

struct gmem_nbd_pool {
	struct gmem_nbd_lib lib;
	char *uri;
	uint32_t timeout_ms, max;
	uint64_t size; /* of the export, when it was opened */
	uint64_t max_read; /* bytes of one command */
	bool has_status; /* the server knows base:allocation */

	pthread_mutex_t m; /* guards what follows */
	pthread_cond_t changed; /* one has become idle, or a connect has ended */
	struct gmem_nbd_conn *idle;
	uint32_t open; /* idle and borrowed ones, and one being made */
	bool connecting; /* one at a time */
	uint64_t retry_ns; /* no connect before then */
	uint32_t pause_ms;
	int error; /* of the last connect */
	char text[256];
	_Atomic uint32_t nidle; /* for a look without the lock */
};

/*
 * nbd_conn.c. With *ret_lost set the connection is good for nothing any more (-ETIMEDOUT, -ECONNRESET, -ESHUTDOWN);
 * without it an error is what the server answered.
 */
/* `enough`, asked now and then, ends it with -EAGAIN. */
int gmem_nbd_connect(const struct gmem_nbd_lib *lib, const char *uri, uint64_t until, bool (*enough)(void *opaque),
		     void *opaque, struct gmem_nbd_conn **ret);
/* -EOPNOTSUPP: a page is less than it reads at a time. */
int gmem_nbd_offer(const struct gmem_nbd_conn *conn, struct gmem_nbd_offer *ret);
void gmem_nbd_disconnect(struct gmem_nbd_conn *conn);
int gmem_nbd_read(struct gmem_nbd_conn *conn, uint64_t off, void *buf, size_t len, uint64_t until, bool *ret_lost);
/* Calls `fn` for each extent of the reply, which begins at `off` and may end anywhere. */
typedef void (*gmem_nbd_extent_fn)(void *opaque, uint64_t len, bool zero);
int gmem_nbd_block_status(struct gmem_nbd_conn *conn, uint64_t off, uint64_t len, uint64_t until, gmem_nbd_extent_fn fn,
			  void *opaque, bool *ret_lost);

/* nbd_pool.c */
int gmem_nbd_pool_open(const char *uri, const struct gmem_nbd_opts *opts, struct gmem_nbd_pool **ret);
void gmem_nbd_pool_free(struct gmem_nbd_pool *pool);
/* A connection for this thread. Made, if there is room, else waited for. The error of connecting while that fails. */
int gmem_nbd_borrow(struct gmem_nbd_pool *pool, uint64_t until, struct gmem_nbd_conn **ret);
void gmem_nbd_give_back(struct gmem_nbd_pool *pool, struct gmem_nbd_conn *conn);
/* Ends it, and the idle ones: what has happened to it may well have happened to them. */
void gmem_nbd_give_up(struct gmem_nbd_pool *pool, struct gmem_nbd_conn *conn);

/* nbd_status.c: which pages the server has said are zero. */
struct gmem_nbd_status;
int gmem_nbd_status_new(uint64_t size, struct gmem_nbd_status **ret);
void gmem_nbd_status_free(struct gmem_nbd_status *status);
/* False: not known to be. With `nowait` from what has been asked before, else asks. */
bool gmem_nbd_is_zero(struct gmem_nbd_status *status, struct gmem_nbd_pool *pool, uint64_t off, uint64_t len,
		      bool nowait);

#endif
