/* SPDX-License-Identifier: MIT */
#include "link/serve/late.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/err.h"
#include "source/source.h"

struct gmem_late {
	_Atomic(struct gmem_source *) real; /* NULL at first; who sees it sees all of it: release and acquire */
};

static struct gmem_source *real_of(void *opaque)
{
	struct gmem_late *late = opaque;

	return atomic_load_explicit(&late->real, memory_order_acquire);
}

static int late_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct gmem_source *real = real_of(opaque);

	return real ? gmem_source_read(real, off, buf, len) : gmem_err(-ENOTCONN, "the source is not open yet");
}

static int late_read_nowait(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct gmem_source *real = real_of(opaque);

	return real ? gmem_source_read_nowait(real, off, buf, len) : -EAGAIN;
}

static void late_extent(void *opaque, uint64_t *start, uint64_t *len)
{
	struct gmem_source *real = real_of(opaque);

	if (real)
		gmem_source_extent(real, start, len);
}

static int late_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	struct gmem_source *real = real_of(opaque);

	return real && gmem_source_is_zero(real, off, len, nowait);
}

static void late_free(void *opaque)
{
	gmem_source_unref(real_of(opaque));
	free(opaque);
}

int gmem_late_new(struct gmem_source **ret, struct gmem_late **ret_late)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = late_read,
		.read_nowait = late_read_nowait,
		.extent = late_extent,
		.is_zero = late_is_zero,
		.free = late_free,
	};
	struct gmem_late *late = calloc(1, sizeof(*late));
	int err;

	if (!late)
		return gmem_err_sys(-ENOMEM, "source");
	err = gmem_source_new(&ops, late, ret);
	if (err) {
		free(late);
		return err;
	}
	*ret_late = late;
	return 0;
}

void gmem_late_set(struct gmem_late *late, struct gmem_source *real)
{
	atomic_store_explicit(&late->real, gmem_source_ref(real), memory_order_release);
}
