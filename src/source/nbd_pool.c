/* SPDX-License-Identifier: MIT */
/*
 * The connections of one export. Borrowed by one thread at a time; made when one is wanted and there is room; made
 * again after a loss, with pauses that grow while the server is away. In such a pause the answer is the last error, at
 * once: the pager comes again, and its thread has other memories to serve.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/err.h"
#include "base/range.h"
#include "source/nbd.h"

#define CONNECTIONS 4u
#define MAX_CONNECTIONS 64u
#define TIMEOUT_MS 10000u
#define FIRST_PAUSE_MS 10u
#define LAST_PAUSE_MS 1000u
/* One more connection is tried for so long if there are idle ones, and then not for so long. */
#define MORE_GRACE_NS UINT64_C(1000000000)
#define MORE_PAUSE_MS 10000u

int gmem_nbd_pool_open(const char *uri, const struct gmem_nbd_opts *opts, struct gmem_nbd_pool **ret)
{
	struct gmem_nbd_pool *pool = calloc(1, sizeof(*pool));
	struct gmem_nbd_conn *conn = NULL;
	struct gmem_nbd_offer offer;
	int r;

	if (!pool)
		return gmem_err(-ENOMEM, "NBD: no memory");
	pthread_mutex_init(&pool->m, NULL);
	gmem_cond_init(&pool->changed);
	pool->timeout_ms = opts && opts->timeout_ms ? opts->timeout_ms : TIMEOUT_MS;
	pool->max = opts && opts->connections ? opts->connections : CONNECTIONS;
	pool->uri = strdup(uri);
	r = pool->uri ? 0 : gmem_err(-ENOMEM, "NBD: no memory");
	if (r == 0 && pool->max > MAX_CONNECTIONS)
		r = gmem_err(-EINVAL, "NBD: %u connections; at most %u", pool->max, MAX_CONNECTIONS);
	if (r == 0)
		r = gmem_nbd_lib_load(&pool->lib);
	if (r == 0)
		r = gmem_nbd_connect(&pool->lib, uri, gmem_now_ns() + pool->timeout_ms * UINT64_C(1000000), NULL, NULL,
				     &conn);
	if (r == 0)
		r = gmem_nbd_offer(conn, &offer);
	if (r < 0) {
		gmem_nbd_disconnect(conn);
		gmem_nbd_pool_free(pool);
		return r;
	}
	pool->size = offer.size;
	pool->max_read = offer.max_read;
	pool->has_status = offer.status;
	/* A server that does not offer several may let the second client wait until the first has gone. */
	if (!offer.several)
		pool->max = 1;
	pool->open = 1;
	gmem_nbd_give_back(pool, conn);
	*ret = pool;
	return 0;
}

static void disconnect_all(struct gmem_nbd_conn *conn)
{
	while (conn) {
		struct gmem_nbd_conn *next = conn->next;

		gmem_nbd_disconnect(conn);
		conn = next;
	}
}

void gmem_nbd_pool_free(struct gmem_nbd_pool *pool)
{
	if (!pool)
		return;
	disconnect_all(pool->idle);
	gmem_nbd_lib_unload(&pool->lib);
	pthread_cond_destroy(&pool->changed);
	pthread_mutex_destroy(&pool->m);
	free(pool->uri);
	free(pool);
}

struct wish {
	struct gmem_nbd_pool *pool;
	uint64_t since;
};

/* Another one has become idle, and this one takes its time. */
static bool enough(void *opaque)
{
	const struct wish *w = opaque;

	return atomic_load_explicit(&w->pool->nidle, memory_order_relaxed) && gmem_now_ns() - w->since > MORE_GRACE_NS;
}

/* A connection to the same export. No lock held. */
static int connect_again(struct gmem_nbd_pool *pool, uint64_t until, struct gmem_nbd_conn **ret)
{
	struct wish w = { pool, gmem_now_ns() };
	struct gmem_nbd_offer offer;
	struct gmem_nbd_conn *conn;
	int r = gmem_nbd_connect(&pool->lib, pool->uri, until, enough, &w, &conn);

	if (r < 0)
		return r;
	r = gmem_nbd_offer(conn, &offer);
	if (r == 0 && offer.size != pool->size)
		r = gmem_err(-ESTALE, "NBD: the export has %llu bytes now, and had %llu: these are not the same",
			     (unsigned long long)offer.size, (unsigned long long)pool->size);
	if (r == 0 && offer.max_read < pool->max_read)
		r = gmem_err(-ESTALE, "NBD: the server takes reads of %llu bytes now, and took %llu",
			     (unsigned long long)offer.max_read, (unsigned long long)pool->max_read);
	if (r < 0) {
		gmem_nbd_disconnect(conn);
		return r;
	}
	*ret = conn;
	return 0;
}

/* What became of a connect. `m` held. */
static void note(struct gmem_nbd_pool *pool, int r, const char *text)
{
	uint32_t pause = FIRST_PAUSE_MS;

	pool->connecting = false;
	pool->error = r;
	if (r == 0) {
		pool->pause_ms = 0;
		pool->retry_ns = 0;
	} else {
		pool->open--;
		if (pool->open)
			pause = MORE_PAUSE_MS;
		else if (pool->pause_ms)
			pause = (uint32_t)gmem_min_u64(pool->pause_ms * UINT64_C(2), LAST_PAUSE_MS);
		pool->pause_ms = pool->open ? 0 : pause;
		pool->retry_ns = gmem_now_ns() + pause * UINT64_C(1000000);
		snprintf(pool->text, sizeof(pool->text), "%s", text);
	}
	pthread_cond_broadcast(&pool->changed);
}

/* `m` held, and let go meanwhile. */
static int make(struct gmem_nbd_pool *pool, uint64_t until, struct gmem_nbd_conn **ret)
{
	char text[256];
	int r;

	pool->connecting = true;
	pool->open++;
	pthread_mutex_unlock(&pool->m);
	r = connect_again(pool, until, ret);
	snprintf(text, sizeof(text), "%s", r < 0 ? gmem_last_error() : "");
	pthread_mutex_lock(&pool->m);
	note(pool, r, text);
	return r;
}

static struct gmem_nbd_conn *take_idle(struct gmem_nbd_pool *pool)
{
	struct gmem_nbd_conn *conn = pool->idle;

	if (conn) {
		pool->idle = conn->next;
		conn->next = NULL;
		atomic_fetch_sub_explicit(&pool->nidle, 1, memory_order_relaxed);
	}
	return conn;
}

/* `m` held. 0: there is one, in *ret. 1: look again. */
static int borrow(struct gmem_nbd_pool *pool, uint64_t until, struct gmem_nbd_conn **ret)
{
	uint64_t now = gmem_now_ns();
	int r;

	*ret = take_idle(pool);
	if (*ret)
		return 0;
	if (now >= until)
		return gmem_err(-ETIMEDOUT, "NBD: no connection has become free in time");
	if (!pool->connecting && pool->open < pool->max && now >= pool->retry_ns) {
		r = make(pool, until, ret);
		/* Others may still have theirs. */
		return r < 0 && pool->open ? 1 : r;
	}
	if (!pool->open)
		return gmem_err(pool->error, "%s", pool->text);
	gmem_cond_wait_for(&pool->changed, &pool->m, until - now);
	return 1;
}

int gmem_nbd_borrow(struct gmem_nbd_pool *pool, uint64_t until, struct gmem_nbd_conn **ret)
{
	struct gmem_nbd_conn *conn = NULL;
	int r;

	pthread_mutex_lock(&pool->m);
	do
		r = borrow(pool, until, &conn);
	while (r > 0);
	pthread_mutex_unlock(&pool->m);
	if (r == 0)
		*ret = conn;
	return r;
}

void gmem_nbd_give_back(struct gmem_nbd_pool *pool, struct gmem_nbd_conn *conn)
{
	pthread_mutex_lock(&pool->m);
	conn->next = pool->idle;
	pool->idle = conn;
	atomic_fetch_add_explicit(&pool->nidle, 1, memory_order_relaxed);
	pthread_cond_signal(&pool->changed);
	pthread_mutex_unlock(&pool->m);
}

void gmem_nbd_give_up(struct gmem_nbd_pool *pool, struct gmem_nbd_conn *conn)
{
	struct gmem_nbd_conn *idle;

	pthread_mutex_lock(&pool->m);
	idle = pool->idle;
	pool->idle = NULL;
	pool->open -= 1 + atomic_exchange_explicit(&pool->nidle, 0, memory_order_relaxed);
	/* At once: that the server is away is not known yet. */
	if (!pool->open)
		pool->retry_ns = 0;
	pthread_cond_broadcast(&pool->changed);
	pthread_mutex_unlock(&pool->m);
	gmem_nbd_disconnect(conn);
	disconnect_all(idle);
}
