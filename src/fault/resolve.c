/* SPDX-License-Identifier: MIT */
/*
 * One userfault from state to page.
 *
 * The order is the point: bytes are fetched with no lock held; then, under the invalidate lock shared, the state is
 * looked at again, the pages that are still absent are inserted with their bytes and published, and only then is the
 * toucher let go on. A server that dies anywhere in between leaves pages that are either absent or whole.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/range.h"
#include "fault/pace.h"
#include "fault/resolve.h"
#include "file/anon.h"
#include "source/source.h"

int gmem_resolver_init(struct gmem_resolver *r, struct gmem_pager *pager, uint32_t max_pages)
{
	size_t len = (size_t)max_pages * GMEM_PAGE_SIZE;
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	*r = (struct gmem_resolver){ .pager = pager, .max_pages = max_pages };
	if (p == MAP_FAILED)
		return gmem_err_sys(-errno, "pager: staging memory");
	r->staging = p;
	return 0;
}

void gmem_resolver_destroy(struct gmem_resolver *r)
{
	if (r->staging)
		munmap(r->staging, (size_t)r->max_pages * GMEM_PAGE_SIZE);
	r->staging = NULL;
}

void gmem_pager_report(struct gmem_pager *pager, enum gmem_pager_event_kind kind, int error, const char *text,
		       const struct gmem_pager_region *region, uint64_t off, uint64_t len)
{
	struct gmem_pager_event event = {
		.kind = kind,
		.error = error,
		.text = text,
		.off = off,
		.len = len,
		.region = region ? region->number : 0,
	};

	if (!pager->opts.event)
		return;
	pthread_mutex_lock(&pager->event_m);
	pager->opts.event(pager->opts.opaque, &event);
	pthread_mutex_unlock(&pager->event_m);
}

bool gmem_resolve_lock_file(struct gmem_resolver *r, struct gmem_file *file)
{
	if (r->nowait)
		return gmem_rwlock_trylock_shared(&file->invalidate_lock);
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	return true;
}

/* Told with no lock held: the caller's function may use the file. */
int gmem_resolve_gone(struct gmem_resolver *r, struct gmem_pager_region *region)
{
	/* The caller's function may take its time: not in the reader. */
	if (r->nowait)
		return -EAGAIN;
	if (!atomic_exchange(&region->gone, true))
		gmem_pager_report(r->pager, GMEM_PAGER_GONE, 0, "the process whose memory it is has ended", region,
				  region->off, region->len);
	return -ESRCH;
}

/* ---- how much to bring in */

bool gmem_resolve_absent(const struct gmem_pager_region *region, uint64_t off)
{
	return gmem_word_absent(gmem_state_word(&region->file->state, off >> GMEM_PAGE_SHIFT));
}

static uint64_t source_off(const struct gmem_pager_region *region, uint64_t off)
{
	return region->source_off + (off - region->off);
}

bool gmem_resolve_known_zero(const struct gmem_resolver *r, const struct gmem_pager_region *region, uint64_t off)
{
	return gmem_source_is_zero(region->source, source_off(region, off), GMEM_PAGE_SIZE, r->nowait);
}

/* The run around `off` inside [from, to) whose pages are all absent, and all or none known to be zero. */
static void absent_run(const struct gmem_resolver *r, const struct gmem_pager_region *region, uint64_t off, bool zero,
		       uint64_t *from, uint64_t *to)
{
	uint64_t a = off, b = off + GMEM_PAGE_SIZE;

	while (a > *from && gmem_resolve_absent(region, a - GMEM_PAGE_SIZE) &&
	       gmem_resolve_known_zero(r, region, a - GMEM_PAGE_SIZE) == zero)
		a -= GMEM_PAGE_SIZE;
	while (b < *to && gmem_resolve_absent(region, b) && gmem_resolve_known_zero(r, region, b) == zero)
		b += GMEM_PAGE_SIZE;
	*from = a;
	*to = b;
}

/* Grows [*from, *to) by what the source gives away with it, within the region and the staging memory. */
static void grow(struct gmem_resolver *r, const struct gmem_pager_region *region, uint64_t off, uint64_t *from,
		 uint64_t *to)
{
	uint64_t max = (uint64_t)r->max_pages * GMEM_PAGE_SIZE;
	uint64_t start = source_off(region, *from), len = *to - *from;
	uint64_t a, b;

	gmem_source_extent(region->source, &start, &len);
	a = gmem_max_u64(start, region->source_off) - region->source_off + region->off;
	b = gmem_min_u64(start + len - region->source_off + region->off, region->off + region->len);
	/* Keep the page that was asked for. */
	if (b - a > max) {
		a = gmem_max_u64(a, off < max / 2 ? 0 : off - max / 2);
		b = gmem_min_u64(b, a + max);
	}
	*from = a;
	*to = b;
}

/* ---- bringing in */

bool gmem_resolve_final(int err)
{
	return err == -EBADMSG || err == -EIO || err == -ENODATA;
}

int gmem_resolve_fetch(struct gmem_resolver *r, const struct gmem_pager_region *region, uint64_t from, uint64_t to,
		       void *into)
{
	int err = r->nowait ? gmem_source_read_nowait(region->source, source_off(region, from), into, to - from) :
			      gmem_source_read(region->source, source_off(region, from), into, to - from);

	if (!err)
		gmem_pager_count(&r->pager->c.read_bytes, to - from);
	return err;
}

/*
 * Inserts, publishes and, but for huge pages, maps [from, to), staged or zero. Pages that somebody else has brought in
 * meanwhile are mapped too. Invalidate lock held shared.
 */
static int install(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t from, uint64_t to, bool zero)
{
	const struct gmem_backing_ops *ops = region->file->ops;
	_Atomic uint64_t *pages = gmem_resolver_pages(r);
	uint64_t off = from;
	int busy = 0;

	if (gmem_file_anon(region->file))
		return gmem_copy_in(r, region, from, to, zero);
	while (off < to) {
		struct gmem_folio folio;
		int err = ops->alloc(region->file, off, (uint32_t)((to - off) >> GMEM_PAGE_SHIFT), &folio);

		if (err)
			return err;
		folio.data = zero ? NULL : r->staged + (off - from);
		err = ops->insert(region->file, &folio);
		if (err == -EEXIST || err == -EBUSY || err == -EHWPOISON) {
			/* One that is locked is not ours to map: its holder does, or its toucher comes again. */
			if (err != -EEXIST)
				busy = err;
			folio.npages = 1;
		} else if (err) {
			return err;
		} else {
			ops->publish(region->file, &folio);
			gmem_pager_count(pages, folio.npages);
			if (zero)
				gmem_pager_count(&r->pager->c.zero_pages, folio.npages);
		}
		off += (uint64_t)folio.npages << GMEM_PAGE_SHIFT;
	}
	/* Mapped when all of the page is there. */
	if (region->file->page_size > GMEM_PAGE_SIZE || r->unmapped)
		return busy == -EHWPOISON ? 0 : busy;
	if (!busy)
		return gmem_resolve_map(r, region, from, to - from);
	for (off = from; off < to; off += GMEM_PAGE_SIZE) {
		int err = ops->present(region->file, off) ? gmem_resolve_map(r, region, off, GMEM_PAGE_SIZE) : 0;

		if (err)
			return err;
	}
	return busy == -EHWPOISON ? -EAGAIN : busy;
}

/*
 * Every failed attempt is counted, one a second is told. In the reader none is: a resolver that meets the same does it.
 * The answer is never -EAGAIN or -EBUSY, which mean that it is a matter of microseconds.
 */
int gmem_resolve_failed(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, int err)
{
	uint64_t now = gmem_now_ns(), last = atomic_load(&r->pager->reported_ns);

	if (r->nowait)
		return -EAGAIN;
	gmem_pager_count(&r->pager->c.errors, 1);
	if ((!last || now - last > 1000000000u) && atomic_compare_exchange_strong(&r->pager->reported_ns, &last, now))
		gmem_pager_report(r->pager, GMEM_PAGER_ERROR, err, gmem_last_error(), region, off, GMEM_PAGE_SIZE);
	return err == -EAGAIN || err == -EBUSY ? -ETIMEDOUT : err;
}

bool gmem_resolve_expected(int err)
{
	return !err || err == -EAGAIN || err == -EBUSY || err == -ENOENT || err == -ESRCH;
}

/* The page is there, or known to be zero: map it, and as much after it as a sequential toucher will want. */
static int map_in_place(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, uint32_t window)
{
	uint64_t left = (region->off + region->len - off) >> GMEM_PAGE_SHIFT;
	struct gmem_folio folio;
	int err;

	if (!gmem_resolve_lock_file(r, region->file))
		return -EAGAIN;
	err = region->file->ops->lookup(region->file, off, (uint32_t)gmem_min_u64(window, left), &folio);
	if (!err && gmem_file_anon(region->file))
		err = gmem_copy_zero(r, region, off);
	else if (!err)
		err = gmem_resolve_map(r, region, off, (uint64_t)folio.npages << GMEM_PAGE_SHIFT);
	else if (err == -EHWPOISON)
		err = gmem_resolve_mark_poisoned(r, region, off);
	gmem_rwlock_unlock_shared(&region->file->invalidate_lock);
	if (err == -ESRCH)
		return gmem_resolve_gone(r, region);
	return gmem_resolve_expected(err) ? err : gmem_resolve_failed(r, region, off, err);
}

/* A page whose bytes the source cannot give, ever. */
int gmem_resolve_lose(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, int error)
{
	char text[512];
	int lost;

	snprintf(text, sizeof(text), "%s", gmem_last_error());
	if (!gmem_resolve_lock_file(r, region->file))
		return -EAGAIN;
	lost = gmem_file_poison_page(region->file, off);
	gmem_rwlock_unlock_shared(&region->file->invalidate_lock);
	if (lost < 0)
		return -EAGAIN;
	/* Told before the toucher dies of it. */
	if (!lost) {
		gmem_pager_count(&r->pager->c.poisoned, 1);
		gmem_pager_report(r->pager, GMEM_PAGER_POISONED, error, text, region, off, GMEM_PAGE_SIZE);
	}
	return region->file->page_size > GMEM_PAGE_SIZE ? 0 : map_in_place(r, region, off, 1);
}

/* Installs what is staged; work behind the faults, in slices. */
static int install_run(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t from, uint64_t to, bool zero)
{
	uint64_t at = from, end;
	int err = 0;

	for (; at < to && !err; at = end) {
		end = r->pace ? gmem_min_u64(to, at + gmem_pace_slice(r->pace)) : to;
		r->staged = (const char *)r->staging + (at - from);
		if (!gmem_resolve_lock_file(r, region->file))
			return -EAGAIN;
		err = install(r, region, at, end, zero);
		gmem_rwlock_unlock_shared(&region->file->invalidate_lock);
		if (r->pace)
			gmem_pace_slice_done(r->pace, (end - at) >> GMEM_PAGE_SHIFT);
	}
	return err;
}

/*
 * Brings in [from, to), one run. `off` is the page that must come; the others may fail.
 */
static int bring_in(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, uint64_t from, uint64_t to,
		    bool zero)
{
	int err = zero ? 0 : gmem_resolve_fetch(r, region, from, to, r->staging);

	if (err && r->nowait)
		return -EAGAIN;
	if (err && to - from > GMEM_PAGE_SIZE) {
		from = off;
		to = off + GMEM_PAGE_SIZE;
		err = gmem_resolve_fetch(r, region, from, to, r->staging);
	}
	if (err && gmem_resolve_final(err))
		return gmem_resolve_lose(r, region, off, err);
	if (err)
		return gmem_resolve_failed(r, region, off, err);
	err = install_run(r, region, from, to, zero);
	if (err == -ESRCH)
		return gmem_resolve_gone(r, region);
	return gmem_resolve_expected(err) ? err : gmem_resolve_failed(r, region, off, err);
}

/* ---- huge pages: all of one is brought in before any of it is mapped */

static int bring_in_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base)
{
	uint64_t end = base + region->file->page_size, off = base, from, to;
	int err = 0;

	while (off < end && !err) {
		bool zero;

		if (!gmem_resolve_absent(region, off)) {
			off += GMEM_PAGE_SIZE;
			continue;
		}
		if (gmem_word_locked(gmem_state_word(&region->file->state, off >> GMEM_PAGE_SHIFT),
				     gmem_file_generation(region->file)))
			return -EBUSY;
		from = off;
		to = gmem_min_u64(end, off + (uint64_t)r->max_pages * GMEM_PAGE_SIZE);
		zero = gmem_resolve_known_zero(r, region, off);
		absent_run(r, region, off, zero, &from, &to);
		err = bring_in(r, region, off, from, to, zero);
	}
	return err;
}

/* -EAGAIN: it is not all there (any more). */
static int map_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base)
{
	int err;

	if (!gmem_resolve_lock_file(r, region->file))
		return -EAGAIN;
	switch (gmem_file_unit(region->file, base)) {
	case GMEM_UNIT_IN_PLACE:
		err = gmem_resolve_map(r, region, base, region->file->page_size);
		break;
	case GMEM_UNIT_LOST:
		err = gmem_resolve_mark_poisoned(r, region, base);
		break;
	default:
		err = -EAGAIN;
	}
	gmem_rwlock_unlock_shared(&region->file->invalidate_lock);
	if (err == -ESRCH)
		return gmem_resolve_gone(r, region);
	return gmem_resolve_expected(err) ? err : gmem_resolve_failed(r, region, base, err);
}

static int resolve_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base)
{
	int err = 0;

	if (gmem_file_anon(region->file))
		return gmem_copy_unit(r, region, base);
	/* Too much for the reader, who has others to read. */
	if (r->nowait && gmem_file_unit(region->file, base) != GMEM_UNIT_IN_PLACE)
		return -EAGAIN;
	if (!r->nowait)
		err = bring_in_unit(r, region, base);
	if (!err && !r->unmapped)
		err = map_unit(r, region, base);
	return err == -ENOENT ? -EAGAIN : err;
}

/* One huge page of the fill. Nothing is mapped of one that was there, or is known to be zero. */
static int64_t fill_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base)
{
	uint64_t end = base + region->file->page_size, left = 0;
	int err;

	for (uint64_t off = base; off < end; off += GMEM_PAGE_SIZE) {
		if (!gmem_resolve_absent(region, off))
			continue;
		if (!r->replay && gmem_resolve_known_zero(r, region, off) &&
		    gmem_state_zero(&region->file->state, off >> GMEM_PAGE_SHIFT))
			gmem_pager_count(&r->pager->c.zero_pages, 1);
		else
			left++;
	}
	err = left ? resolve_unit(r, region, base) : 0;
	return err ? err : (int64_t)((end - base) >> GMEM_PAGE_SHIFT);
}

int gmem_resolve_fault(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off)
{
	uint64_t from = off, to;
	unsigned int slot;
	uint32_t window;
	bool zero;
	int err;

	if (atomic_load_explicit(&region->gone, memory_order_relaxed))
		return -ESRCH;
	if (region->file->page_size > GMEM_PAGE_SIZE) {
		from = gmem_file_unit_off(region->file, off);
		to = from + region->file->page_size;
		r->touched = (struct gmem_touched){ from, to, (uint32_t)((to - off) >> GMEM_PAGE_SHIFT) };
		return resolve_unit(r, region, from);
	}
	window = gmem_around_window(region, off >> GMEM_PAGE_SHIFT, &slot);
	to = gmem_min_u64(off + (uint64_t)window * GMEM_PAGE_SIZE, region->off + region->len);
	if (!gmem_resolve_absent(region, off)) {
		err = map_in_place(r, region, off, window);
	} else if (gmem_word_locked(gmem_state_word(&region->file->state, off >> GMEM_PAGE_SHIFT),
				    gmem_file_generation(region->file))) {
		return -EBUSY;
	} else {
		zero = gmem_resolve_known_zero(r, region, off);
		if (!zero)
			grow(r, region, off, &from, &to);
		absent_run(r, region, off, zero, &from, &to);
		err = bring_in(r, region, off, from, to, zero);
	}
	if (!err) {
		gmem_around_done(region, slot, to >> GMEM_PAGE_SHIFT, window);
		r->touched = (struct gmem_touched){ from, to, window };
	}
	return err == -ENOENT ? -EAGAIN : err;
}

/*
 * A source that is far away is told what is wanted before it is read, so that all of it is on its way at once, and what
 * is zero is known. 1: it is at hand now. 0: the source needs no such thing.
 */
static int prefetch(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, uint64_t len)
{
	int err = gmem_source_prefetch(region->source, source_off(region, off), len, true);

	return err < 0 ? gmem_resolve_failed(r, region, off, err) : err;
}

int64_t gmem_resolve_fill(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, uint64_t len)
{
	uint64_t end = off + len, at = off, from, to;
	bool told = false;
	int err;

	if (atomic_load_explicit(&region->gone, memory_order_relaxed))
		return -ESRCH;
	if (region->file->page_size > GMEM_PAGE_SIZE) {
		err = gmem_file_unit(region->file, off) == GMEM_UNIT_IN_PLACE ?
			      0 :
			      prefetch(r, region, off, region->file->page_size);
		return err < 0 ? err : fill_unit(r, region, off);
	}
	/* Zero pages need no memory until somebody touches them. */
	for (; at < end; at += GMEM_PAGE_SIZE) {
		if (!gmem_resolve_absent(region, at))
			continue;
		if (!told && !r->replay) {
			uint64_t step = gmem_min_u64(end - at, (uint64_t)r->max_pages * GMEM_PAGE_SIZE);

			err = prefetch(r, region, at, step);
			if (err < 0)
				return err;
			if (err)
				end = at + step;
			told = true;
		}
		if (r->replay || !gmem_resolve_known_zero(r, region, at) ||
		    !gmem_state_zero(&region->file->state, at >> GMEM_PAGE_SHIFT))
			break;
		gmem_pager_count(&r->pager->c.zero_pages, 1);
	}
	if (at > off || at == end)
		return (int64_t)((at - off) >> GMEM_PAGE_SHIFT);
	from = at;
	to = gmem_min_u64(end, at + (uint64_t)r->max_pages * GMEM_PAGE_SIZE);
	/* A zero page that a dead server had locked is written out; it is the only kind that gets here. */
	absent_run(r, region, at, gmem_resolve_known_zero(r, region, at), &from, &to);
	err = bring_in(r, region, at, from, to, gmem_resolve_known_zero(r, region, at));
	if (err)
		return err;
	return (int64_t)((to - off) >> GMEM_PAGE_SHIFT);
}
