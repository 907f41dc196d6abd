/* SPDX-License-Identifier: MIT */
/* A function of the test's that brings in what is absent of a file. */
#ifndef GMEM_TESTS_SUPPLY_UTIL_H
#define GMEM_TESTS_SUPPLY_UTIL_H

#include "tap.h"

#include "file/file.h"

static inline struct gmem_supply *new_supply(struct gmem_file *file, uint64_t off, uint64_t len, gmem_bring_in_fn fn,
					     void *opaque)
{
	struct gmem_supply *new = malloc(sizeof(*new));

	CHECK(new);
	*new = (struct gmem_supply){ .off = off, .len = len, .bring_in = fn, .opaque = opaque };
	gmem_file_supply(file, new);
	return new;
}

/* As its function does it: the page has these bytes, unless another was quicker. */
static inline int supply_page(struct gmem_file *file, uint64_t off, const void *bytes)
{
	struct gmem_folio folio;
	int err;

	gmem_rwlock_lock_shared(&file->invalidate_lock);
	err = file->ops->alloc(file, off, 1, &folio);
	folio.data = (void *)bytes;
	if (!err)
		err = file->ops->insert(file, &folio);
	if (!err)
		file->ops->publish(file, &folio);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	return err == -EEXIST || err == -EBUSY ? 0 : err;
}

#endif
