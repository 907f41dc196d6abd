/* SPDX-License-Identifier: MIT */
#include "source/source.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"

/* The most an extent may grow on either side. */
#define GROWTH (256u * 1024)

struct gmem_source {
	struct gmem_source_ops ops;
	void *opaque;
	uint64_t len; /* UINT64_MAX: not known, or without an end */
	atomic_uint refs; /* the last drop acquires what the other holders released */
};

int gmem_source_new(const struct gmem_source_ops *ops, void *opaque, struct gmem_source **ret)
{
	struct gmem_source *s;

	if (!gmem_opts_valid(ops, ops->size, sizeof(*ops)))
		return gmem_err(-EINVAL, "gmem_source_new: ops.size %zu is not that of the structure", ops->size);
	if (!ops->read)
		return gmem_err(-EINVAL, "gmem_source_new: no read function");
	s = malloc(sizeof(*s));
	if (!s)
		return gmem_err(-ENOMEM, "gmem_source_new: no memory");
	s->ops = *ops;
	s->opaque = opaque;
	s->len = UINT64_MAX;
	atomic_init(&s->refs, 1);
	*ret = s;
	return 0;
}

struct gmem_source *gmem_source_ref(struct gmem_source *source)
{
	if (source)
		atomic_fetch_add_explicit(&source->refs, 1, memory_order_relaxed);
	return source;
}

void gmem_source_unref(struct gmem_source *source)
{
	if (!source || atomic_fetch_sub_explicit(&source->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (source->ops.free)
		source->ops.free(source->opaque);
	free(source);
}

void gmem_source_set_len(struct gmem_source *source, uint64_t len)
{
	source->len = len;
}

uint64_t gmem_source_len(const struct gmem_source *source)
{
	return source->len;
}

int gmem_source_read(struct gmem_source *source, uint64_t off, void *buf, uint64_t len)
{
	int r = source->ops.read(source->opaque, off, buf, len);

	if (r > 0)
		return gmem_err(-EIO, "gmem_source_read: off 0x%llx: the source returned %d, neither 0 nor an error",
				(unsigned long long)off, r);
	return r;
}

int gmem_source_read_nowait(struct gmem_source *source, uint64_t off, void *buf, uint64_t len)
{
	int r;

	if (!source->ops.read_nowait)
		return gmem_err(-EAGAIN, "gmem_source_read_nowait: the source may have to wait");
	r = source->ops.read_nowait(source->opaque, off, buf, len);
	if (r > 0)
		return gmem_err(-EIO,
				"gmem_source_read_nowait: off 0x%llx: the source returned %d, neither 0 nor an error",
				(unsigned long long)off, r);
	return r;
}

void gmem_source_extent(struct gmem_source *source, uint64_t *start, uint64_t *len)
{
	uint64_t from = *start, to = *start + *len, a = from, n = *len, b;

	if (!source->ops.extent)
		return;
	source->ops.extent(source->opaque, &a, &n);
	/* A caller's own source may answer anything: the question must lie in it, and little else. */
	b = n > UINT64_MAX - a ? UINT64_MAX : a + n;
	a = gmem_page_round_down(gmem_max_u64(a, from > GROWTH ? from - GROWTH : 0));
	b = gmem_page_round_down(gmem_min_u64(b, to > UINT64_MAX - GROWTH ? UINT64_MAX : to + GROWTH));
	if (a > from || b < to)
		return;
	*start = a;
	*len = b - a;
}

bool gmem_source_is_zero(struct gmem_source *source, uint64_t off, uint64_t len, bool nowait)
{
	return source->ops.is_zero && source->ops.is_zero(source->opaque, off, len, nowait) == 1;
}

int gmem_source_prefetch(struct gmem_source *source, uint64_t off, uint64_t len, bool wait)
{
	int r;

	if (!source->ops.prefetch)
		return 0;
	r = source->ops.prefetch(source->opaque, off, len, wait);
	if (r > 0)
		return gmem_err(-EIO,
				"gmem_source_prefetch: off 0x%llx: the source returned %d, neither 0 nor an error",
				(unsigned long long)off, r);
	return r ? r : 1;
}
