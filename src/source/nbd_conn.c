/* SPDX-License-Identifier: MIT */
/* One connection to an NBD server: libnbd's handle, driven by poll(2), so that every wait has an end. */
#include <errno.h>
#include <libnbd.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/range.h"
#include "source/nbd.h"

/* How often a connect looks whether it is still wanted. */
#define LOOK_MS 50

uint64_t gmem_nbd_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* What libnbd last failed with in this thread. Never one of a source's lasting errors: the server may be repaired. */
static int nbd_error(const char *what)
{
	int err = nbd_get_errno();
	const char *text = nbd_get_error();

	if (err <= 0 || err == EIO || err == EBADMSG || err == ENODATA)
		err = EREMOTEIO;
	return gmem_err(-err, "NBD: %s: %s", what, text ? text : strerror(err));
}

static bool broken(struct nbd_handle *h)
{
	return nbd_aio_is_dead(h) > 0 || nbd_aio_is_closed(h) > 0;
}

/* Waits until libnbd can go on, and lets it. 0: it did, or nothing came for `ms`. */
static int step(struct nbd_handle *h, uint64_t until, int ms)
{
	uint64_t now = gmem_nbd_now();
	unsigned int way = nbd_aio_get_direction(h);
	struct pollfd p = { .fd = nbd_aio_get_fd(h) };
	uint64_t left;
	int n;

	if (now >= until)
		return -ETIMEDOUT;
	/* Rounded up, or the last part of a millisecond is spent in circles. */
	left = (until - now + 999999) / 1000000;
	if (p.fd < 0 || !way)
		return -ENOTCONN;
	if (way & LIBNBD_AIO_DIRECTION_READ)
		p.events |= POLLIN;
	if (way & LIBNBD_AIO_DIRECTION_WRITE)
		p.events |= POLLOUT;
	n = poll(&p, 1, (int)gmem_min_u64(left, ms > 0 ? (uint64_t)ms : INT_MAX));
	if (n <= 0)
		return n < 0 && errno != EINTR ? -errno : 0;
	/* Of an end of the connection, the way that is waited for tells. */
	if (way & LIBNBD_AIO_DIRECTION_READ && p.revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL))
		return nbd_aio_notify_read(h) < 0 ? -ENOTCONN : 0;
	return nbd_aio_notify_write(h) < 0 ? -ENOTCONN : 0;
}

static struct nbd_handle *handle_new(void)
{
	struct nbd_handle *h = nbd_create();

	if (!h)
		return NULL;
	/* The URI is the user's own, and may name the files of TLS. */
	if (nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 || nbd_set_uri_allow_local_file(h, true) < 0) {
		nbd_close(h);
		return NULL;
	}
#ifdef LIBNBD_HAVE_NBD_SET_PREAD_INITIALIZE
	/* Bytes of a read that failed are not looked at. */
	nbd_set_pread_initialize(h, false);
#endif
	return h;
}

int gmem_nbd_connect(const char *uri, uint64_t until, bool (*enough)(void *opaque), void *opaque,
		     struct gmem_nbd_conn **ret)
{
	struct gmem_nbd_conn *conn = calloc(1, sizeof(*conn));
	int r = 0;

	if (!conn)
		return gmem_err(-ENOMEM, "NBD: no memory for a connection");
	conn->h = handle_new();
	if (!conn->h || nbd_aio_connect_uri(conn->h, uri) < 0)
		r = nbd_error("cannot connect");
	while (r == 0 && nbd_aio_is_ready(conn->h) <= 0) {
		if (broken(conn->h)) {
			r = nbd_error("cannot connect");
			break;
		}
		if (enough && enough(opaque)) {
			r = gmem_err(-EAGAIN, "NBD: one more connection is not wanted any more");
			break;
		}
		r = step(conn->h, until, LOOK_MS);
		if (r == -ETIMEDOUT)
			gmem_err(r, "NBD: the server has not answered a connect in time");
		else if (r < 0)
			r = nbd_error("cannot connect");
	}
	if (r < 0) {
		gmem_nbd_disconnect(conn);
		return r;
	}
	*ret = conn;
	return 0;
}

void gmem_nbd_disconnect(struct gmem_nbd_conn *conn)
{
	if (!conn)
		return;
	if (conn->h) {
		/* A word of farewell, if it goes out at once. */
		if (nbd_aio_is_ready(conn->h) > 0)
			nbd_aio_disconnect(conn->h, 0);
		nbd_close(conn->h);
	}
	free(conn);
}

/*
 * Until the command is answered. A connection that is lost is closed at once: libnbd knows the caller's buffer until
 * then.
 */
static int finish(struct gmem_nbd_conn *conn, int64_t cookie, uint64_t until, const char *what, bool *ret_lost)
{
	int done = -1, r = 0;

	while (cookie > 0 && (done = nbd_aio_command_completed(conn->h, (uint64_t)cookie)) == 0 && r == 0)
		r = step(conn->h, until, 0);
	*ret_lost = false;
	if (done > 0)
		return 0;
	if (r == -ETIMEDOUT && done == 0) {
		*ret_lost = true;
		gmem_err(r, "NBD: %s: no answer in time", what);
	} else {
		*ret_lost = r < 0 || broken(conn->h);
		r = nbd_error(what);
		/* libnbd has several words for it. */
		if (*ret_lost && r != -ESHUTDOWN)
			r = -ECONNRESET;
	}
	if (*ret_lost) {
		nbd_close(conn->h);
		conn->h = NULL;
	}
	return r;
}

int gmem_nbd_read(struct gmem_nbd_conn *conn, uint64_t off, void *buf, size_t len, uint64_t until, bool *ret_lost)
{
	return finish(conn, nbd_aio_pread(conn->h, buf, len, off, NBD_NULL_COMPLETION, 0), until, "read", ret_lost);
}

struct reply {
	gmem_nbd_extent_fn fn;
	void *opaque;
	bool told;
};

/* Pairs of length and flags. A server may send several contexts; one was asked for. */
static int on_extents(void *opaque, const char *context, uint64_t off, uint32_t *entries, size_t n, int *error)
{
	struct reply *reply = opaque;

	if (*error || strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || reply->told)
		return 0;
	for (size_t i = 0; i + 1 < n; i += 2)
		reply->fn(reply->opaque, entries[i], entries[i + 1] & LIBNBD_STATE_ZERO);
	reply->told = true;
	return 0;
}

int gmem_nbd_block_status(struct gmem_nbd_conn *conn, uint64_t off, uint64_t len, uint64_t until, gmem_nbd_extent_fn fn,
			  void *opaque, bool *ret_lost)
{
	struct reply reply = { .fn = fn, .opaque = opaque };
	nbd_extent_callback cb = { .callback = on_extents, .user_data = &reply };
	int64_t cookie = nbd_aio_block_status(conn->h, len, off, cb, NBD_NULL_COMPLETION, 0);

	return finish(conn, cookie, until, "block status", ret_lost);
}
