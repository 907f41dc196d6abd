/* SPDX-License-Identifier: MIT */
/* Everything behind the faults: the fill, and letting go of memory that is complete. */
#include <errno.h>
#include <time.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/pace.h"
#include "sys/uffd.h"

/* The working set comes first. True if it does; some time has passed then. */
static bool replay_first(struct gmem_pager *pager)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	if (!atomic_load(&pager->replaying))
		return false;
	nanosleep(&pause, NULL);
	return true;
}

static uint64_t total_len(const struct gmem_pager *pager, uint32_t n)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < n; i++)
		total += pager->regions[i]->len;
	return total;
}

/* Fills one region; `before` bytes were done in others. One whose process has ended needs nothing. */
static int fill_region(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t before, uint64_t total,
		       gmem_progress_fn progress, void *opaque)
{
	uint64_t off = region->off, end = region->off + region->len, told = off;
	struct gmem_pace pace;
	uint32_t tries = 0;

	gmem_pace_init(&pace, GMEM_FILL_MAX_PAGES);
	while (off < end && !atomic_load(&r->pager->stopping)) {
		bool wait = replay_first(r->pager);
		int64_t n = 0;

		if (!wait) {
			uint64_t len = gmem_pace_begin(&pace, r->pager);

			n = gmem_resolve_fill(r, region, off, gmem_min_u64(len, end - off));
			gmem_pace_end(&pace, n > 0 ? (uint64_t)n : 0);
		}
		if (n == -ESRCH)
			return 0;
		if (n < 0) {
			const struct timespec pause = { .tv_nsec = tries < 12 ? 20000L << tries : 100000000L };

			tries++;
			nanosleep(&pause, NULL);
		} else {
			tries = 0;
			off += (uint64_t)n << GMEM_PAGE_SHIFT;
		}
		if (progress && (off - told >= 4u << 20 || tries || wait || off == end)) {
			int err = progress(opaque, before + off - region->off, total);

			if (err)
				return err;
			told = off;
		}
	}
	return off == end ? 0 : gmem_err(-ECANCELED, "gmem_pager_fill: the pager is being freed");
}

/* The word of every page says filled, removed or poisoned: no lock is held by this generation, nothing is absent. */
static bool complete(const struct gmem_pager_region *region)
{
	for (uint64_t off = region->off; off < region->off + region->len; off += GMEM_PAGE_SIZE)
		if (gmem_word_absent(gmem_state_word(&region->file->state, off >> GMEM_PAGE_SHIFT)))
			return false;
	return true;
}

static bool all_gone(const struct gmem_pager *pager, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (!atomic_load(&pager->regions[i]->gone))
			return false;
	return n > 0;
}

static int64_t fill(struct gmem_pager *pager, gmem_progress_fn progress, void *opaque)
{
	uint64_t before, filled = 0;
	struct gmem_resolver r;
	bool again;
	uint32_t n;
	int err;

	err = gmem_resolver_init(&r, pager, GMEM_FILL_MAX_PAGES);
	if (err)
		return err;
	r.fill = true;
	filled = atomic_load(&pager->c.fill_pages);
	do {
		again = false;
		before = 0;
		n = atomic_load_explicit(&pager->nregions, memory_order_acquire);
		for (uint32_t i = 0; i < n && !err; i++) {
			struct gmem_pager_region *region = pager->regions[i];

			err = fill_region(&r, region, before, total_len(pager, n), progress, opaque);
			before += region->len;
			/* A page that a resolver had locked when we passed may have failed since. */
			if (!err && !atomic_load(&region->gone) && !complete(region))
				again = true;
		}
		/* Regions may have come while these were filled. */
		again |= n != atomic_load(&pager->nregions);
	} while (again && !err);
	gmem_resolver_destroy(&r);
	if (err)
		return err;
	if (all_gone(pager, n))
		return gmem_err(-ESRCH, "gmem_pager_fill: the process whose memory it is has ended");
	gmem_pager_report(pager, GMEM_PAGER_COMPLETE, 0, "every page is in place", NULL, 0, 0);
	return (int64_t)(atomic_load(&pager->c.fill_pages) - filled);
}

int64_t gmem_pager_fill(struct gmem_pager *pager, gmem_progress_fn progress, void *opaque)
{
	int64_t n;

	/* gmem_pager_free() waits for it. */
	atomic_fetch_add(&pager->fills, 1);
	n = fill(pager, progress, opaque);
	atomic_fetch_sub(&pager->fills, 1);
	return n;
}

/* Lets go of [from, to), whose pages are all in place. */
static int let_go(struct gmem_pager_region *region, uint64_t from, uint64_t to)
{
	int err;

	if (from == to)
		return 0;
	err = gmem_sys_uffd_unregister(region->uffd, region->hva + (from - region->off), to - from);
	/* Something that takes no userfaults is mapped in the middle by now: go round it. */
	if (err == -EINVAL && to - from > region->file->page_size) {
		uint64_t mid = from + gmem_file_unit_off(region->file, (to - from) / 2);

		err = let_go(region, from, mid);
		return err ? err : let_go(region, mid, to);
	}
	/* The kernel's word here for a process that has ended, too; elsewhere it has another. */
	if (err == -ENOMEM && gmem_sys_uffd_unprotect(region->uffd, region->hva, region->file->page_size) == -ESRCH)
		err = -ESRCH;
	/* Gone with its process, or unmapped: nothing to let go of. */
	if (err == -ESRCH || err == -EINVAL || err == -ENOENT)
		return 0;
	return err;
}

/*
 * Lets go of what is in place. Returns how many pages are not. Private pages keep their registration, and with it their
 * markers, until they are converted. Invalidate lock held shared: no view is marked meanwhile, and resolvers go on.
 */
static int64_t let_go_region(struct gmem_pager_region *region)
{
	const struct gmem_file *file = region->file;
	uint64_t end = region->off + region->len, from = region->off, unit = file->page_size, off;
	int64_t kept = 0;
	int err;

	for (off = from; off < end; off += unit) {
		bool present = gmem_file_unit(file, off) == GMEM_UNIT_IN_PLACE;

		if (present && !gmem_file_private(file, off))
			continue;
		err = let_go(region, from, off);
		if (err)
			return err;
		from = off + unit;
		if (!present)
			kept += (int64_t)(unit >> GMEM_PAGE_SHIFT);
	}
	err = let_go(region, from, end);
	return err ? err : kept;
}

int64_t gmem_pager_unregister(struct gmem_pager *pager)
{
	uint32_t n = atomic_load_explicit(&pager->nregions, memory_order_acquire);
	int64_t kept = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct gmem_pager_region *region = pager->regions[i];
		int64_t one;

		if (atomic_load(&region->gone))
			continue;
		if (region->view) {
			gmem_rwlock_lock(&region->file->invalidate_lock);
			region->view->let_go = true;
			gmem_rwlock_unlock(&region->file->invalidate_lock);
		}
		gmem_rwlock_lock_shared(&region->file->invalidate_lock);
		one = let_go_region(region);
		gmem_rwlock_unlock_shared(&region->file->invalidate_lock);
		if (one < 0)
			return gmem_err_sys((int)one, "gmem_pager_unregister: region %u", i);
		kept += one;
	}
	return kept;
}
