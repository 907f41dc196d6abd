/* SPDX-License-Identifier: MIT */
/* The source of memory that starts out empty. */
#include <string.h>

#include "source/source.h"

static int zero_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	memset(buf, 0, len);
	return 0;
}

static int zero_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	return 1;
}

int gmem_source_new_zero(struct gmem_source **ret)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = zero_read,
		.read_nowait = zero_read,
		.is_zero = zero_is_zero,
	};

	return gmem_source_new(&ops, NULL, ret);
}
