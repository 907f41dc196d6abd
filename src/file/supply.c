/* SPDX-License-Identifier: MIT */
/* Who brings in what is absent, for a guest that touches it through no view. */
#include <errno.h>
#include <time.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"

void gmem_file_supply(struct gmem_file *file, struct gmem_supply *supply)
{
	gmem_rwlock_lock(&file->invalidate_lock);
	/* What is absent read as zero before. */
	gmem_file_invalidate_begin(file, supply->off, supply->len,
				   GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE | GMEM_SIDE_KEEP | GMEM_SIDE_BAR);
	supply->next = file->supplies;
	file->supplies = supply;
	gmem_file_invalidate_end(file, supply->off, supply->len);
	gmem_rwlock_unlock(&file->invalidate_lock);
}

void gmem_file_end_supply(struct gmem_file *file, struct gmem_supply *supply)
{
	const struct timespec pause = { .tv_nsec = 100000 };

	gmem_rwlock_lock(&file->invalidate_lock);
	supply->bring_in = NULL;
	gmem_rwlock_unlock(&file->invalidate_lock);
	while (atomic_load(&supply->users))
		nanosleep(&pause, NULL);
}

static bool supplies(const struct gmem_supply *s, uint64_t off)
{
	return off >= s->off && off - s->off < s->len;
}

bool gmem_file_supplied(const struct gmem_file *file, uint64_t off)
{
	for (const struct gmem_supply *s = file->supplies; s; s = s->next)
		if (supplies(s, off))
			return true;
	return false;
}

/* The supplier of a page: one that lives, else one that did. Counted as in use if it lives. */
static struct gmem_supply *find(struct gmem_file *file, uint64_t off)
{
	struct gmem_supply *dead = NULL;

	for (struct gmem_supply *s = file->supplies; s; s = s->next) {
		if (!supplies(s, off))
			continue;
		if (s->bring_in) {
			atomic_fetch_add(&s->users, 1);
			return s;
		}
		dead = s;
	}
	return dead;
}

int gmem_file_bring_in(struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	gmem_bring_in_fn bring_in = NULL;
	struct gmem_supply *s;
	int err;

	gmem_rwlock_lock_shared(&file->invalidate_lock);
	s = find(file, off);
	if (s)
		bring_in = s->bring_in;
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	if (!s)
		return -ENOENT;
	/* Zero would be a wrong byte. */
	if (!bring_in)
		return gmem_err(-EIO, "page at 0x%llx was never brought in, and who was to do it is gone",
				(unsigned long long)off);
	err = bring_in(s->opaque, file, off, wait);
	atomic_fetch_sub(&s->users, 1);
	return err;
}
