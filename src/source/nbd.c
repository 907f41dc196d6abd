/* SPDX-License-Identifier: MIT */
/* The export of an NBD server as a source. */
#include "source/nbd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "source/source.h"

/* What is read together: a way there and back takes longer than these bytes do. */
#define WINDOW (64u * 1024)

struct nbd_source {
	struct gmem_nbd_pool *pool;
	struct gmem_nbd_status *status; /* NULL: the server does not tell */
};

/* One command's worth. A connection that is found broken was perhaps broken long ago: then the next, or a new one. */
static int read_part(struct gmem_nbd_pool *pool, uint64_t off, void *buf, size_t len, uint64_t until)
{
	struct gmem_nbd_conn *conn;
	bool lost;
	int r;

	for (uint32_t tries = 0;; tries++) {
		r = gmem_nbd_borrow(pool, until, &conn);
		if (r < 0)
			return r;
		r = gmem_nbd_read(conn, off, buf, len, until, &lost);
		if (!lost) {
			gmem_nbd_give_back(pool, conn);
			return r;
		}
		gmem_nbd_give_up(pool, conn);
		if (r == -ETIMEDOUT || tries)
			return r;
	}
}

static int nbd_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	const struct nbd_source *s = opaque;
	uint64_t until = gmem_now_ns() + s->pool->timeout_ms * UINT64_C(1000000), done = 0;

	if (!gmem_range_inside(off, len, s->pool->size))
		return gmem_err(-ENODATA, "NBD: offset 0x%llx: the export has 0x%llx bytes", (unsigned long long)off,
				(unsigned long long)s->pool->size);
	while (done < len) {
		uint64_t n = gmem_min_u64(len - done, s->pool->max_read);
		int r = read_part(s->pool, off + done, (char *)buf + done, (size_t)n, until);

		if (r < 0)
			return gmem_err_prefix(r, "offset 0x%llx", (unsigned long long)(off + done));
		done += n;
	}
	return 0;
}

static int nbd_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	const struct nbd_source *s = opaque;

	return s->status && gmem_nbd_is_zero(s->status, s->pool, off, len, nowait);
}

/* To the ends of the windows it begins and ends in, but not into zeros, which need no reading. */
static void nbd_extent(void *opaque, uint64_t *start, uint64_t *len)
{
	const struct nbd_source *s = opaque;
	uint64_t from = *start, to = from + *len, first, last;

	if (!gmem_range_inside(from, *len, s->pool->size))
		return;
	first = from - from % WINDOW;
	last = gmem_min_u64((to + WINDOW - 1) / WINDOW * WINDOW, gmem_page_round_down(s->pool->size));
	while (from > first && !nbd_is_zero(opaque, from - GMEM_PAGE_SIZE, GMEM_PAGE_SIZE, true))
		from -= GMEM_PAGE_SIZE;
	while (to < last && !nbd_is_zero(opaque, to, GMEM_PAGE_SIZE, true))
		to += GMEM_PAGE_SIZE;
	*start = from;
	*len = to - from;
}

static void nbd_free(void *opaque)
{
	struct nbd_source *s = opaque;

	gmem_nbd_pool_free(s->pool);
	gmem_nbd_status_free(s->status);
	free(s);
}

int gmem_source_new_nbd(const char *uri, const struct gmem_nbd_opts *opts, struct gmem_source **ret)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = nbd_read,
		.extent = nbd_extent,
		.is_zero = nbd_is_zero,
		.free = nbd_free,
	};
	struct nbd_source *s;
	int r;

	if (opts && !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_source_new_nbd: opts.size %zu is not that of the structure", opts->size);
	s = calloc(1, sizeof(*s));
	if (!s)
		return gmem_err(-ENOMEM, "gmem_source_new_nbd: no memory");
	r = gmem_nbd_pool_open(uri, opts, &s->pool);
	if (r == 0 && s->pool->has_status)
		r = gmem_nbd_status_new(s->pool->size, &s->status);
	if (r == 0)
		r = gmem_source_new(&ops, s, ret);
	if (r < 0) {
		nbd_free(s);
		return gmem_err_prefix(r, "gmem_source_new_nbd: %s", uri);
	}
	gmem_source_set_len(*ret, s->pool->size);
	return 0;
}
