/* SPDX-License-Identifier: MIT */
/* One connection to an NBD server: libnbd's handle, driven by poll(2), so that every wait has an end. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/range.h"
#include "source/nbd.h"
#include "source/nbd_lib.h"

/* libnbd's numbers, where its header is older. */
#define SIZE_MINIMUM 0
#define SIZE_MAXIMUM 2

#define MAX_READ (UINT64_C(32) << 20) /* what every server takes */
/* How often a connect looks whether it is still wanted. */
#define LOOK_MS 50

/* What libnbd last failed with in this thread. Never one of a source's lasting errors: the server may be repaired. */
static int nbd_error(const struct gmem_nbd_lib *lib, const char *what)
{
	int err = lib->get_errno();
	const char *text = lib->get_error();

	if (err <= 0 || err == EIO || err == EBADMSG || err == ENODATA)
		err = EREMOTEIO;
	return gmem_err(-err, "NBD: %s: %s", what, text ? text : strerror(err));
}

static bool broken(const struct gmem_nbd_conn *conn)
{
	return conn->lib->aio_is_dead(conn->h) > 0 || conn->lib->aio_is_closed(conn->h) > 0;
}

/* Waits until libnbd can go on, and lets it. 0: it did, or nothing came for `ms`. */
static int step(const struct gmem_nbd_conn *conn, uint64_t until, int ms)
{
	const struct gmem_nbd_lib *lib = conn->lib;
	uint64_t now = gmem_now_ns();
	unsigned int way = lib->aio_get_direction(conn->h);
	struct pollfd p = { .fd = lib->aio_get_fd(conn->h) };
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
		return lib->aio_notify_read(conn->h) < 0 ? -ENOTCONN : 0;
	return lib->aio_notify_write(conn->h) < 0 ? -ENOTCONN : 0;
}

static struct nbd_handle *handle_new(const struct gmem_nbd_lib *lib)
{
	struct nbd_handle *h = lib->create();

	if (!h)
		return NULL;
	/* The URI is the user's own, and may name the files of TLS. */
	if (lib->add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
	    lib->set_uri_allow_local_file(h, true) < 0) {
		lib->close(h);
		return NULL;
	}
	/* Bytes of a read that failed are not looked at. */
	if (lib->set_pread_initialize)
		lib->set_pread_initialize(h, false);
	return h;
}

int gmem_nbd_connect(const struct gmem_nbd_lib *lib, const char *uri, uint64_t until, bool (*enough)(void *opaque),
		     void *opaque, struct gmem_nbd_conn **ret)
{
	struct gmem_nbd_conn *conn = calloc(1, sizeof(*conn));
	int r = 0;

	if (!conn)
		return gmem_err(-ENOMEM, "NBD: no memory for a connection");
	conn->lib = lib;
	conn->h = handle_new(lib);
	if (!conn->h || lib->aio_connect_uri(conn->h, uri) < 0)
		r = nbd_error(lib, "cannot connect");
	while (r == 0 && lib->aio_is_ready(conn->h) <= 0) {
		if (broken(conn)) {
			r = nbd_error(lib, "cannot connect");
			break;
		}
		if (enough && enough(opaque)) {
			r = gmem_err(-EAGAIN, "NBD: one more connection is not wanted any more");
			break;
		}
		r = step(conn, until, LOOK_MS);
		if (r == -ETIMEDOUT)
			gmem_err(r, "NBD: the server has not answered a connect in time");
		else if (r < 0)
			r = nbd_error(lib, "cannot connect");
	}
	if (r < 0) {
		gmem_nbd_disconnect(conn);
		return r;
	}
	*ret = conn;
	return 0;
}

int gmem_nbd_offer(const struct gmem_nbd_conn *conn, struct gmem_nbd_offer *ret)
{
	const struct gmem_nbd_lib *lib = conn->lib;
	int64_t size = lib->get_size(conn->h), smallest = 0, most = 0;

	if (size < 0)
		return nbd_error(lib, "size of the export");
	if (lib->get_block_size) {
		smallest = lib->get_block_size(conn->h, SIZE_MINIMUM);
		most = lib->get_block_size(conn->h, SIZE_MAXIMUM);
	}
	if (smallest > GMEM_PAGE_SIZE)
		return gmem_err(-EOPNOTSUPP, "NBD: the server reads in blocks of %lld bytes, and a page is %u",
				(long long)smallest, GMEM_PAGE_SIZE);
	ret->size = (uint64_t)size;
	ret->max_read = most >= (int64_t)GMEM_PAGE_SIZE ? gmem_min_u64((uint64_t)most, MAX_READ) : MAX_READ;
	ret->max_read = gmem_page_round_down(ret->max_read);
	ret->several = lib->can_multi_conn(conn->h) > 0;
	ret->status = lib->can_meta_context(conn->h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
	return 0;
}

void gmem_nbd_disconnect(struct gmem_nbd_conn *conn)
{
	if (!conn)
		return;
	if (conn->h) {
		/* A word of farewell, if it goes out at once. */
		if (conn->lib->aio_is_ready(conn->h) > 0)
			conn->lib->aio_disconnect(conn->h, 0);
		conn->lib->close(conn->h);
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

	while (cookie > 0 && (done = conn->lib->aio_command_completed(conn->h, (uint64_t)cookie)) == 0 && r == 0)
		r = step(conn, until, 0);
	*ret_lost = false;
	if (done > 0)
		return 0;
	if (r == -ETIMEDOUT && done == 0) {
		*ret_lost = true;
		gmem_err(r, "NBD: %s: no answer in time", what);
	} else {
		*ret_lost = r < 0 || broken(conn);
		r = nbd_error(conn->lib, what);
		/* libnbd has several words for it. */
		if (*ret_lost && r != -ESHUTDOWN)
			r = -ECONNRESET;
	}
	if (*ret_lost) {
		conn->lib->close(conn->h);
		conn->h = NULL;
	}
	return r;
}

int gmem_nbd_read(struct gmem_nbd_conn *conn, uint64_t off, void *buf, size_t len, uint64_t until, bool *ret_lost)
{
	return finish(conn, conn->lib->aio_pread(conn->h, buf, len, off, NBD_NULL_COMPLETION, 0), until, "read",
		      ret_lost);
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
	int64_t cookie = conn->lib->aio_block_status(conn->h, len, off, cb, NBD_NULL_COMPLETION, 0);

	return finish(conn, cookie, until, "block status", ret_lost);
}
