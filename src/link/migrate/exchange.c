/* SPDX-License-Identifier: MIT */
#include "link/migrate/exchange.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/err.h"
#include "source/source.h"

struct gmem_exchange {
	pthread_mutex_t m; /* guards inner */
	struct gmem_source *inner; /* a reference, or NULL */
	atomic_uint refs; /* the owner's and the source's */
};

static void drop(struct gmem_exchange *x)
{
	if (atomic_fetch_sub(&x->refs, 1) != 1)
		return;
	gmem_source_unref(x->inner);
	pthread_mutex_destroy(&x->m);
	free(x);
}

static struct gmem_source *get(struct gmem_exchange *x)
{
	struct gmem_source *inner;

	pthread_mutex_lock(&x->m);
	inner = gmem_source_ref(x->inner);
	pthread_mutex_unlock(&x->m);
	return inner;
}

static int on_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct gmem_source *inner = get(opaque);
	int err = inner ? gmem_source_read(inner, off, buf, len) :
			  gmem_err(-ETIMEDOUT, "the machine that has this page is not there");

	gmem_source_unref(inner);
	return err;
}

static int on_read_nowait(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct gmem_source *inner = get(opaque);
	int err = inner ? gmem_source_read_nowait(inner, off, buf, len) : -EAGAIN;

	gmem_source_unref(inner);
	return err;
}

static void on_extent(void *opaque, uint64_t *start, uint64_t *len)
{
	struct gmem_source *inner = get(opaque);

	if (inner)
		gmem_source_extent(inner, start, len);
	gmem_source_unref(inner);
}

static int on_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	struct gmem_source *inner = get(opaque);
	int yes = inner && gmem_source_is_zero(inner, off, len, nowait);

	gmem_source_unref(inner);
	return yes;
}

static int on_prefetch(void *opaque, uint64_t off, uint64_t len, bool wait)
{
	struct gmem_source *inner = get(opaque);
	int err = inner ? gmem_source_prefetch(inner, off, len, wait) : 0;

	gmem_source_unref(inner);
	return err < 0 ? err : 0;
}

static void on_free(void *opaque)
{
	drop(opaque);
}

int gmem_exchange_new(struct gmem_exchange **ret, struct gmem_source **ret_source)
{
	const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = on_read,
		.read_nowait = on_read_nowait,
		.extent = on_extent,
		.is_zero = on_is_zero,
		.prefetch = on_prefetch,
		.free = on_free,
	};
	struct gmem_exchange *x = calloc(1, sizeof(*x));
	int err;

	if (!x)
		return gmem_err(-ENOMEM, "gmem_exchange_new: no memory");
	pthread_mutex_init(&x->m, NULL);
	atomic_init(&x->refs, 2);
	err = gmem_source_new(&ops, x, ret_source);
	if (err) {
		pthread_mutex_destroy(&x->m);
		free(x);
		return err;
	}
	*ret = x;
	return 0;
}

void gmem_exchange_free(struct gmem_exchange *x)
{
	if (x)
		drop(x);
}

void gmem_exchange_set(struct gmem_exchange *x, struct gmem_source *source)
{
	struct gmem_source *before;

	pthread_mutex_lock(&x->m);
	before = x->inner;
	x->inner = source;
	pthread_mutex_unlock(&x->m);
	gmem_source_unref(before);
}
