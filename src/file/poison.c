/* SPDX-License-Identifier: MIT */
/*
 * Memory that fails: a page whose bytes are gone, and everybody who must not read others in their place.
 *
 * Views are marked first, while their pages still show what they showed; then the page's word says so, then the memory
 * goes. Marks survive the punch. A page is healed by being punched again: its word goes last but for the views, so that
 * one who dies in between leaves it poisoned.
 */
#include <errno.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"

/* Pages of 4 KiB that a view maps, and that fail, together: 512 of a huge page. */
static uint64_t unit_pages(const struct gmem_file *file)
{
	return file->page_size >> GMEM_PAGE_SHIFT;
}

static bool unit_lost(const struct gmem_file *file, uint64_t page)
{
	uint64_t end = page + unit_pages(file);

	return gmem_state_next_poisoned(&file->state, page, end) < end;
}

/* What is mapped of the page may go: it is not a mark. */
static bool fresh(const struct gmem_file *file, uint64_t page)
{
	return !gmem_state_private(&file->state, page) && !unit_lost(file, page);
}

static int mark_run(struct gmem_file *file, uint64_t off, uint64_t len, bool is_fresh)
{
	int ret = 0;

	for (struct gmem_view *view = file->views; view; view = view->next) {
		uint64_t at = off, n = len;
		int err = gmem_view_part(view, &at, &n) ? gmem_view_mark_lost(view, at, n, is_fresh) : 0;

		if (!ret)
			ret = err;
	}
	return ret;
}

/* All that can be marked is. */
static int mark_views(struct gmem_file *file, uint64_t page, uint64_t end)
{
	uint64_t unit = unit_pages(file);
	int ret = 0;

	for (uint64_t to; file->views && page < end; page = to) {
		bool is_fresh = fresh(file, page);
		int err;

		for (to = page + unit; to < end && fresh(file, to) == is_fresh;)
			to += unit;
		err = mark_run(file, page << GMEM_PAGE_SHIFT, (to - page) << GMEM_PAGE_SHIFT, is_fresh);
		if (!ret)
			ret = err;
	}
	return ret;
}

int gmem_view_mark_all_lost(struct gmem_view *view)
{
	const struct gmem_state *state = &view->file->state;
	uint64_t page = view->off >> GMEM_PAGE_SHIFT, end, unit = unit_pages(view->file);
	int err = 0;

	end = gmem_min_u64((view->off + view->len) >> GMEM_PAGE_SHIFT, state->npages);
	while (!err && (page = gmem_state_next_poisoned(state, page, end)) < end) {
		uint64_t first = page & ~(unit - 1);

		for (page = first; page < end && unit_lost(view->file, page);)
			page += unit;
		err = gmem_view_mark_lost(view, first << GMEM_PAGE_SHIFT, (page - first) << GMEM_PAGE_SHIFT, false);
	}
	return err;
}

int gmem_file_poison_locked(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t first, end, mask = file->page_size - 1;
	int err, punched;

	/* A huge page fails as a whole. */
	len = ((off + len + mask) & ~mask) - (off & ~mask);
	off &= ~mask;
	first = off >> GMEM_PAGE_SHIFT;
	end = (off + len) >> GMEM_PAGE_SHIFT;
	gmem_lockcheck_assert_held(GMEM_LOCK_INVALIDATE, &file->invalidate_lock);
	gmem_file_invalidate_begin(file, off, len, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE);
	err = mark_views(file, first, end);
	for (uint64_t page = first; page < end; page++)
		gmem_state_fail(&file->state, page);
	punched = file->ops->punch(file, off, len);
	gmem_file_invalidate_end(file, off, len);
	if (punched && !err)
		err = gmem_err_sys(punched, "dropping 0x%llx bytes at 0x%llx", (unsigned long long)len,
				   (unsigned long long)off);
	return err;
}

int gmem_file_poison(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = gmem_file_check_range(file, "gmem_file_poison", off, len);

	if (err)
		return err;
	if (!gmem_file_ours(file))
		return gmem_err(-EIO, "gmem_file_poison: this object is a copy that came with fork(2)");
	gmem_rwlock_lock(&file->invalidate_lock);
	err = gmem_file_poison_locked(file, off, len);
	gmem_rwlock_unlock(&file->invalidate_lock);
	return err ? gmem_err_prefix(err, "gmem_file_poison") : 0;
}

/*
 * Lets the host touch pages that are zero by now. Private ones stay marked, but where touching those is an event. A
 * view that cannot be unmarked keeps its SIGBUS. In a forked child a view that came with the object is not there.
 */
static void let_in(struct gmem_file *file, uint64_t page, uint64_t end)
{
	bool private = gmem_state_private(&file->state, page) && file->engine == GMEM_ENGINE_USER;

	for (struct gmem_view *view = file->views; view; view = view->next) {
		uint64_t off = page << GMEM_PAGE_SHIFT, len = (end - page) << GMEM_PAGE_SHIFT;

		if (view->pid != getpid() || (private && !view->private_events))
			continue;
		if (gmem_view_part(view, &off, &len))
			(void)gmem_view_unmark(view, off, len);
	}
}

/* The same, of what has no lost page left. */
static void let_in_units(struct gmem_file *file, uint64_t page, uint64_t end)
{
	uint64_t unit = unit_pages(file);

	if (unit == 1) {
		let_in(file, page, end);
		return;
	}
	for (page &= ~(unit - 1); page < end; page += unit)
		if (!unit_lost(file, page))
			let_in(file, page, page + unit);
}

void gmem_file_heal_locked(struct gmem_file *file, uint64_t off, uint64_t len)
{
	const struct gmem_state *state = &file->state;
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;

	while ((page = gmem_state_next_poisoned(state, page, end)) < end) {
		uint64_t first = page, side_end = gmem_state_side_end(state, page, end);

		for (; page < side_end && gmem_state_poisoned(state, page); page++)
			gmem_state_remove(&file->state, page);
		let_in_units(file, first, page);
	}
}
