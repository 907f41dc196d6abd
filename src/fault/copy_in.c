/* SPDX-License-Identifier: MIT */
/*
 * Pages of another process's own memory: UFFDIO_COPY. The page's word is locked, its bytes are copied, the word says
 * that it is in place; the copy itself is what nobody can undo and nobody can do twice (-EEXIST), so a server that dies
 * anywhere in between leaves a page that is whole or absent. Why `removals` is held: file/anon.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/resolve.h"
#include "file/anon.h"
#include "sys/hugepages.h"
#include "sys/uffd.h"

/* Of one hold of `removals`, for which the reader may have to wait. */
#define COPY_MAX (128u << 10)

static uint64_t hva_of(const struct gmem_pager_region *region, uint64_t off)
{
	return region->hva + (off - region->off);
}

static bool doomed(const struct gmem_file *file, uint64_t off)
{
	return gmem_state_word(&file->state, off >> GMEM_PAGE_SHIFT) & GMEM_WORD_DOOMED;
}

/* Zero pages are not to be had in huge ones; those are copied like others. */
static int put(const struct gmem_pager_region *region, uint64_t off, const void *bytes, uint64_t len, uint64_t *done)
{
	if (!bytes)
		return gmem_sys_uffd_zeropage(region->uffd, hva_of(region, off), len, true, done);
	return gmem_sys_uffd_copy(region->uffd, hva_of(region, off), (uint64_t)(uintptr_t)bytes, len, 0, done);
}

/* Not ours any more, and not in place. */
static void give_back(struct gmem_file *file, uint64_t off, uint64_t len)
{
	for (uint64_t at = off; at < off + len; at += GMEM_PAGE_SIZE)
		gmem_state_unlock(&file->state, at >> GMEM_PAGE_SHIFT, gmem_file_generation(file));
}

/*
 * Puts pages of [from, to) that are locked by us in place, from the first on. *ret_end: up to where they were dealt
 * with. -ECANCELED: all, but one was removed meanwhile and has to be zero.
 */
static int put_run(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t from, uint64_t to,
		   const char *bytes, uint64_t *ret_end)
{
	uint64_t unit = region->file->page_size, most = gmem_max_u64(COPY_MAX, unit), at = from;
	bool removed = false;
	int err = 0;

	while (at < to && !err) {
		uint64_t n = unit, done = 0;

		gmem_rwlock_lock_shared(&region->file->removals);
		if (doomed(region->file, at)) {
			gmem_rwlock_unlock_shared(&region->file->removals);
			give_back(region->file, at, unit);
			removed = true;
			at += unit;
			continue;
		}
		while (n < most && at + n < to && !doomed(region->file, at + n))
			n += unit;
		err = put(region, at, bytes ? bytes + (at - from) : NULL, n, &done);
		gmem_rwlock_unlock_shared(&region->file->removals);
		at += done;
		switch (err) {
		case -EEXIST:
			/* A server before us did, and died; a toucher that came before it may still sleep. */
			gmem_pager_count(&r->pager->c.retries, 1);
			gmem_sys_uffd_wake(region->uffd, hva_of(region, at), unit);
			at += unit;
			err = 0;
			break;
		case -EAGAIN:
			gmem_pager_count(&r->pager->c.retries, 1);
			if (done)
				err = 0;
			break;
		case -ENOENT:
		case -EINVAL:
			/* A border inside the run: page by page. One page: unmapped, or of no such kind any more. */
			if (n > unit) {
				most = unit;
			} else {
				give_back(region->file, at, unit);
				gmem_sys_uffd_wake(region->uffd, hva_of(region, at), unit);
				at += unit;
			}
			err = 0;
			break;
		default:
			break;
		}
	}
	*ret_end = at;
	return !err && removed ? -ECANCELED : err;
}

/* Ours that were put in place are up to date, or removed since; the others are as they were. */
static void let_go(struct gmem_resolver *r, struct gmem_file *file, uint64_t from, uint64_t put_end, uint64_t to)
{
	_Atomic uint64_t *pages = gmem_resolver_pages(r);
	uint32_t generation = gmem_file_generation(file);
	uint64_t n = 0;

	for (uint64_t off = from; off < to; off += GMEM_PAGE_SIZE) {
		if (off < put_end && gmem_state_publish(&file->state, off >> GMEM_PAGE_SHIFT, generation))
			n++;
		else
			gmem_state_unlock(&file->state, off >> GMEM_PAGE_SHIFT, generation);
	}
	gmem_pager_count(pages, n);
}

/* Locks pages from `from` on. Returns where the first is that is not ours, and why. */
static uint64_t lock_run(struct gmem_file *file, uint64_t from, uint64_t to, enum gmem_state_lock *ret_why)
{
	uint32_t generation = gmem_file_generation(file);

	for (uint64_t off = from; off < to; off += GMEM_PAGE_SIZE) {
		enum gmem_state_lock got = gmem_state_trylock(&file->state, off >> GMEM_PAGE_SHIFT, generation);

		if (got == GMEM_STATE_LOCKED || got == GMEM_STATE_STALE)
			continue;
		/* A dead server had it, and it was removed: it is now. */
		if (got == GMEM_STATE_ABANDONED)
			gmem_state_unlock(&file->state, off >> GMEM_PAGE_SHIFT, generation);
		*ret_why = got;
		return off;
	}
	return to;
}

/* Brings in a run that was locked. */
static int copy_run(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t from, uint64_t to,
		    const char *bytes)
{
	_Atomic uint32_t *lock = &region->file->state.words[from >> GMEM_PAGE_SHIFT];
	uint64_t put_end;
	int err;

	gmem_lockcheck_acquire(GMEM_LOCK_PAGE, lock);
	err = put_run(r, region, from, to, bytes, &put_end);
	if (!bytes)
		gmem_pager_count(&r->pager->c.zero_pages, (put_end - from) >> GMEM_PAGE_SHIFT);
	let_go(r, region->file, from, put_end, to);
	gmem_lockcheck_release(GMEM_LOCK_PAGE, lock);
	return err;
}

int gmem_copy_in(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t from, uint64_t to, bool zero)
{
	uint64_t off = from;
	int err = 0, later = 0;

	while (off < to && !err) {
		enum gmem_state_lock why = GMEM_STATE_LOCKED;
		uint64_t end = lock_run(region->file, off, to, &why);

		if (end > off)
			err = copy_run(r, region, off, end, zero ? NULL : r->staged + (off - from));
		if (err == -ECANCELED) {
			later = -EAGAIN;
			err = 0;
		}
		off = end;
		if (why == GMEM_STATE_LOCKED || err)
			continue;
		/* Somebody's, who will put it in place; lost; or in place by now, or removed: then it is zero. */
		if (why == GMEM_STATE_BUSY)
			later = -EBUSY;
		else if (why == GMEM_STATE_BAD)
			err = gmem_resolve_mark_poisoned(r, region, off);
		else
			err = gmem_copy_zero(r, region, off);
		off += GMEM_PAGE_SIZE;
	}
	return err ? err : later;
}

int gmem_copy_zero(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off)
{
	uint64_t hva = hva_of(region, off), unit = region->file->page_size, done;
	int err;

	if (unit > GMEM_PAGE_SIZE)
		memset(r->staging, 0, unit);
	err = put(region, off, unit > GMEM_PAGE_SIZE ? r->staging : NULL, unit, &done);
	switch (err) {
	case 0:
		gmem_pager_count(&r->pager->c.zero_pages, unit >> GMEM_PAGE_SHIFT);
		return 0;
	case -EEXIST:
		/* Served already; a toucher that came before may still sleep. */
	case -ENOENT:
	case -EINVAL:
		gmem_sys_uffd_wake(region->uffd, hva, unit);
		return 0;
	default:
		return err;
	}
}

/* ---- huge pages: all of one is copied at once */

static int more_staging(struct gmem_resolver *r, uint64_t len)
{
	void *p;

	if ((uint64_t)r->max_pages * GMEM_PAGE_SIZE >= len)
		return 0;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED)
		return gmem_err_sys(-errno, "pager: staging memory of %llu bytes", (unsigned long long)len);
	gmem_resolver_destroy(r);
	r->staging = p;
	r->max_pages = (uint32_t)(len >> GMEM_PAGE_SHIFT);
	return 0;
}

/* Which pages of a huge one were staged from the source. */
struct staged {
	uint64_t bits[GMEM_HUGE_SIZE / GMEM_PAGE_SIZE / 64];
};

static bool is_staged(const struct staged *s, uint64_t i)
{
	return s->bits[i / 64] >> i % 64 & 1;
}

/* The bytes of a huge page; what was removed of it, or is known to be zero, is. */
static int stage_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base, struct staged *staged,
		      uint64_t *ret_bad)
{
	uint64_t end = base + region->file->page_size, off = base, to;
	int err = 0;

	for (; off < end && !err; off = to) {
		bool read = gmem_resolve_absent(region, off) && !gmem_resolve_known_zero(r, region, off);
		char *at = (char *)r->staging + (off - base);

		to = off + GMEM_PAGE_SIZE;
		while (to < end && read == (gmem_resolve_absent(region, to) && !gmem_resolve_known_zero(r, region, to)))
			to += GMEM_PAGE_SIZE;
		for (uint64_t i = (off - base) >> GMEM_PAGE_SHIFT; read && i < (to - base) >> GMEM_PAGE_SHIFT; i++)
			staged->bits[i / 64] |= 1ull << i % 64;
		if (read)
			err = gmem_resolve_fetch(r, region, off, to, at);
		else
			memset(at, 0, to - off);
		if (err)
			*ret_bad = off;
	}
	return err;
}

static int put_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base,
		    const struct staged *staged)
{
	uint64_t end = base + region->file->page_size, off = base;
	struct gmem_file *file = region->file;
	int err;

	while (off < end) {
		enum gmem_state_lock why = GMEM_STATE_LOCKED;

		off = lock_run(file, off, end, &why);
		if (why == GMEM_STATE_LOCKED)
			break;
		/* Also one that was removed since its bytes were fetched: all of it again, with zeroes there. */
		if (why == GMEM_STATE_BUSY || why == GMEM_STATE_BAD ||
		    is_staged(staged, (off - base) >> GMEM_PAGE_SHIFT)) {
			give_back(file, base, off - base);
			return -EAGAIN;
		}
		off += GMEM_PAGE_SIZE;
	}
	err = copy_run(r, region, base, end, r->staging);
	return err == -ECANCELED ? -EAGAIN : err;
}

static int bring_in_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base)
{
	struct staged staged = { .bits = { 0 } };
	uint64_t bad = base;
	int err = stage_unit(r, region, base, &staged, &bad);

	if (err && gmem_resolve_final(err)) {
		err = gmem_resolve_lose(r, region, bad, err);
		/* By which all of it is. */
		return err ? err : gmem_resolve_mark_poisoned(r, region, base);
	}
	if (err)
		return gmem_resolve_failed(r, region, bad, err);
	if (!gmem_resolve_lock_file(r, region->file))
		return -EAGAIN;
	err = put_unit(r, region, base, &staged);
	gmem_rwlock_unlock_shared(&region->file->invalidate_lock);
	return err;
}

int gmem_copy_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base)
{
	int err;

	/* Too much for the reader, who has others to read. */
	if (r->nowait)
		return -EAGAIN;
	err = more_staging(r, region->file->page_size);
	if (err)
		return gmem_resolve_failed(r, region, base, err);
	switch (gmem_file_unit(region->file, base)) {
	case GMEM_UNIT_IN_PLACE:
		err = gmem_copy_zero(r, region, base);
		break;
	case GMEM_UNIT_LOST:
		err = gmem_resolve_mark_poisoned(r, region, base);
		break;
	case GMEM_UNIT_BUSY:
		return -EBUSY;
	default:
		err = bring_in_unit(r, region, base);
	}
	if (err == -ESRCH)
		return gmem_resolve_gone(r, region);
	return gmem_resolve_expected(err) ? err : gmem_resolve_failed(r, region, base, err);
}
