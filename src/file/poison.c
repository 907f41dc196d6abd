/* SPDX-License-Identifier: MIT */
/*
 * Memory that fails: a page whose bytes are gone, and everybody who must not read others in their place.
 *
 * Views are marked first, those of peers too (peer.h), while their pages still show what they showed; then the page's
 * word says so, then the memory goes. Marks survive the punch, but for those of huge pages, which are made again. A
 * page is healed by being punched again: its word goes last but for the views, so that one who dies in between leaves
 * it poisoned.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/anon.h"

/* The first of several errors, with its text. */
struct first_error {
	int err;
	char text[512];
};

static void note(struct first_error *first, int err)
{
	if (!err || first->err)
		return;
	first->err = err;
	snprintf(first->text, sizeof(first->text), "%s", gmem_last_error());
}

static int tell(const struct first_error *first)
{
	return first->err ? gmem_err(first->err, "%s", first->text) : 0;
}

static bool lost_before(const struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;

	return gmem_state_next_poisoned(&file->state, page, end) < end;
}

/* What is mapped of the page may go: it is not a mark. */
static bool fresh(const struct gmem_file *file, uint64_t page)
{
	return !gmem_state_private(&file->state, page) && !gmem_file_unit_lost(file, page);
}

static void mark_run(struct gmem_file *file, uint64_t page, uint64_t end, bool is_fresh, struct first_error *first)
{
	for (struct gmem_view *view = file->views; view; view = view->next) {
		uint64_t off = page << GMEM_PAGE_SHIFT, len = (end - page) << GMEM_PAGE_SHIFT;

		if (gmem_view_part(view, &off, &len))
			note(first, gmem_view_mark_lost(view, off, len, is_fresh));
	}
}

int gmem_file_mark_failing(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT, unit = gmem_file_unit_pages(file);
	struct first_error first = { .err = 0 };

	for (uint64_t to; file->views && page < end; page = to) {
		bool is_fresh = fresh(file, page);

		for (to = page + unit; to < end && fresh(file, to) == is_fresh;)
			to += unit;
		mark_run(file, page, to, is_fresh, &first);
	}
	return tell(&first);
}

/* Of pages of the view. */
static int mark_lost(struct gmem_view *view, uint64_t off, uint64_t len)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT,
		 unit = gmem_file_unit_pages(view->file);
	int err = 0;

	while (!err && (page = gmem_state_next_poisoned(&view->file->state, page, end)) < end) {
		uint64_t first = page & ~(unit - 1);

		for (page = first; page < end && gmem_file_unit_lost(view->file, page);)
			page += unit;
		/* Of a huge page the marks went with the memory, and somebody may have touched it since. */
		err = gmem_view_mark_lost(view, first << GMEM_PAGE_SHIFT, (page - first) << GMEM_PAGE_SHIFT, unit > 1);
	}
	return err;
}

int gmem_file_mark_lost(struct gmem_file *file, uint64_t off, uint64_t len)
{
	struct first_error first = { .err = 0 };

	for (struct gmem_view *view = file->views; view; view = view->next) {
		uint64_t at = off, n = len;

		if (gmem_view_part(view, &at, &n))
			note(&first, mark_lost(view, at, n));
	}
	return tell(&first);
}

int gmem_view_mark_all_lost(struct gmem_view *view)
{
	uint64_t off = 0, len = view->file->len;

	return gmem_view_part(view, &off, &len) ? mark_lost(view, off, len) : 0;
}

/* The words, then the memory. Views are marked, as far as they can be. */
static void drop(struct gmem_file *file, uint64_t off, uint64_t len, struct first_error *first)
{
	int err;

	gmem_file_invalidate_begin(file, off, len, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE | GMEM_SIDE_BAR);
	for (uint64_t page = off >> GMEM_PAGE_SHIFT; page < (off + len) >> GMEM_PAGE_SHIFT; page++)
		gmem_state_fail(&file->state, page);
	err = file->ops->punch(file, off, len);
	gmem_file_invalidate_end(file, off, len);
	if (err)
		note(first, gmem_err_sys(err, "gmem_file_poison: dropping 0x%llx bytes at 0x%llx",
					 (unsigned long long)len, (unsigned long long)off));
}

static int named(int err)
{
	return err ? gmem_err_prefix(err, "gmem_file_poison") : 0;
}

int gmem_file_poison_locked(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t mask = file->page_size - 1;
	struct first_error first = { .err = 0 };
	bool again, entered;
	int err;

	gmem_lockcheck_assert_held(GMEM_LOCK_INVALIDATE, &file->invalidate_lock);
	/* A huge page fails as a whole. */
	len = ((off + len + mask) & ~mask) - (off & ~mask);
	off &= ~mask;
	again = mask >= GMEM_PAGE_SIZE || lost_before(file, off, len);
	err = gmem_round_enter(file, "gmem_file_poison");
	entered = !err;
	note(&first, entered ? gmem_round_poison(file, off, len) : err);
	note(&first, named(gmem_file_mark_failing(file, off, len)));
	drop(file, off, len, &first);
	/* A zero that a view showed, because it could not be marked before, has gone with the memory. */
	if (again)
		note(&first, named(gmem_file_mark_lost(file, off, len)));
	if (entered) {
		gmem_round_release(file, off, len, false);
		gmem_round_leave(file);
	}
	return tell(&first);
}

int gmem_file_poison(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = gmem_file_check_range(file, "gmem_file_poison", off, len);

	if (!err)
		err = gmem_file_check_bytes(file, "gmem_file_poison");
	if (err)
		return err;
	if (!gmem_file_ours(file))
		return gmem_err(-EIO, "gmem_file_poison: this object is a copy that came with fork(2)");
	if (file->opened)
		return gmem_err(-EPERM, "gmem_file_poison: this object was opened from descriptors: the one that made "
					"the memory poisons its pages");
	gmem_rwlock_lock(&file->invalidate_lock);
	err = gmem_file_poison_locked(file, off, len);
	gmem_rwlock_unlock(&file->invalidate_lock);
	return err;
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
	uint64_t unit = gmem_file_unit_pages(file);

	if (unit == 1) {
		let_in(file, page, end);
		return;
	}
	for (page &= ~(unit - 1); page < end; page += unit)
		if (!gmem_file_unit_lost(file, page))
			let_in(file, page, page + unit);
}

/* The same for views of peers, if the object is who they listen to. Who cannot be reached keeps its SIGBUS. */
static void let_peers_in(struct gmem_file *file, uint64_t page, uint64_t end)
{
	const uint64_t mask = file->page_size - 1;
	uint64_t off = (page << GMEM_PAGE_SHIFT) & ~mask, len = (((end << GMEM_PAGE_SHIFT) + mask) & ~mask) - off;

	if (file->opened || !gmem_file_ours(file) || gmem_round_enter(file, "gmem_file_punch"))
		return;
	gmem_round_release(file, off, len, true);
	gmem_round_leave(file);
}

void gmem_file_heal_locked(struct gmem_file *file, uint64_t off, uint64_t len)
{
	const struct gmem_state *state = &file->state;
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT, from = end, to = end;

	while ((page = gmem_state_next_poisoned(state, page, end)) < end) {
		uint64_t first = page, side_end = gmem_state_side_end(state, page, end);

		for (; page < side_end && gmem_state_poisoned(state, page); page++)
			gmem_state_remove(&file->state, page);
		let_in_units(file, first, page);
		from = gmem_min_u64(from, first);
		to = page;
	}
	if (from < end)
		let_peers_in(file, from, to);
}
