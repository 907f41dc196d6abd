/* SPDX-License-Identifier: MIT */
/*
 * Conversion between shared and private, in place.
 *
 * All or nothing, under the invalidate lock, exclusive. To private: a page that is pinned ends it; views are marked, so
 * that the host can touch the pages no more; then the shared side of every second stage is zapped, and only then is the
 * state stored. To shared: the private side is zapped, the host let in, the state stored. Pages on the right side
 * already are left alone, absent pages convert like any others.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/range.h"
#include "file/anon.h"
#include "file/place.h"

#define REHOME_LEN (2ull << 20) /* a large page of shared memory: given up whole, or not at all */

/* The next run of [*page, end) that is not on that side; false: none. */
static bool next_run(const struct gmem_file *file, uint64_t *page, uint64_t end, bool private, uint64_t *run_end)
{
	if (*page < end && gmem_state_private(&file->state, *page) == private)
		*page = gmem_state_side_end(&file->state, *page, end);
	if (*page >= end)
		return false;
	*run_end = gmem_state_side_end(&file->state, *page, end);
	return true;
}

typedef int (*each_view_fn)(struct gmem_view *view, uint64_t off, uint64_t len);

/* Calls fn for each piece of a view that shows a run of [first, end) not on that side. Stops at an error. */
static int each_piece(struct gmem_file *file, uint64_t first, uint64_t end, bool private, each_view_fn fn)
{
	uint64_t run_end;

	for (uint64_t page = first; next_run(file, &page, end, private, &run_end); page = run_end) {
		for (struct gmem_view *view = file->views; view; view = view->next) {
			uint64_t off = page << GMEM_PAGE_SHIFT, len = (run_end - page) << GMEM_PAGE_SHIFT;
			int err = gmem_view_part(view, &off, &len) ? fn(view, off, len) : 0;

			if (err)
				return err;
		}
	}
	return 0;
}

/* The first page of the runs that are to change which somebody holds; UINT64_MAX: none. */
static uint64_t first_pin(struct gmem_file *file, uint64_t first, uint64_t end)
{
	uint64_t run_end;

	for (uint64_t page = first; next_run(file, &page, end, true, &run_end); page = run_end) {
		uint64_t pin = gmem_file_first_pin(file, page << GMEM_PAGE_SHIFT, (run_end - page) << GMEM_PAGE_SHIFT);

		if (pin != UINT64_MAX)
			return pin;
	}
	return UINT64_MAX;
}

/* Calls fn for what is not poisoned of a piece, and lost_fn, if there is one, for what is. */
static int by_loss(struct gmem_view *view, uint64_t off, uint64_t len, each_view_fn fn, each_view_fn lost_fn)
{
	const struct gmem_state *state = &view->file->state;
	uint64_t unit = gmem_file_unit_pages(view->file);
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;
	int err = 0;

	for (uint64_t to; page < end && !err; page = to) {
		each_view_fn f = fn;

		/* A huge page of which a part is lost is, to a view. */
		to = gmem_state_next_poisoned(state, page, end) & ~(unit - 1);
		if (to <= page) {
			f = lost_fn;
			for (to = page; to < end && gmem_file_unit_lost(view->file, to);)
				to += unit;
		}
		err = f ? f(view, page << GMEM_PAGE_SHIFT, (to - page) << GMEM_PAGE_SHIFT) : 0;
	}
	return err;
}

/* The host may touch the piece again, but not read a zero where a page was lost. */
static int let_in(struct gmem_view *view, uint64_t off, uint64_t len)
{
	return by_loss(view, off, len, gmem_view_unmark, NULL);
}

/* The host may not touch the piece; the marks of lost pages stay meanwhile. */
static int keep_out(struct gmem_view *view, uint64_t off, uint64_t len)
{
	return by_loss(view, off, len, gmem_view_mark, gmem_view_mark_rest);
}

/* As let_in(), where the error is another one. */
static int let_in_or_go_on(struct gmem_view *view, uint64_t off, uint64_t len)
{
	(void)let_in(view, off, len);
	return 0;
}

/* Views are marked, and no second stage has the page. */
static void lose(struct gmem_file *file, uint64_t off)
{
	gmem_state_lose(&file->state, off >> GMEM_PAGE_SHIFT);
	(void)file->ops->punch(file, off, GMEM_PAGE_SIZE);
}

/* What cannot be written, at a second attempt that is one page at a time, is lost. Half a page is no page. */
static int put_back(struct gmem_file *file, const char *buf, uint64_t n, uint64_t off)
{
	int err = file->ops->write(file, off, buf, n), ret = 0;

	for (uint64_t at = 0; err && at < n; at += GMEM_PAGE_SIZE) {
		int one = file->ops->write(file, off + at, buf + at, GMEM_PAGE_SIZE);

		if (!one)
			continue;
		lose(file, off + at);
		ret = gmem_err_sys(one, "gmem_file_set_attributes: no memory to move the page at 0x%llx to: it is lost",
				   (unsigned long long)(off + at));
	}
	return ret;
}

/*
 * Gives the pages new memory with the same bytes. Who holds a reference to the old memory that the library cannot see
 * (a system call in flight, a pipe) is left with that, which nobody uses any more.
 */
static int rehome(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t *ret_error_off)
{
	uint64_t end = off + len, most = REHOME_LEN;
	char *buf = malloc(gmem_min_u64(len, REHOME_LEN));
	int err = buf ? 0 : gmem_err_sys(-ENOMEM, "gmem_file_set_attributes");

	while (!err && off < end) {
		int64_t data = file->ops->next_data(file, off);
		uint64_t n;

		if (data < 0 || (uint64_t)data >= end)
			break;
		off = gmem_page_round_down((uint64_t)data);
		n = gmem_min_u64(gmem_min_u64(end, (off | (REHOME_LEN - 1)) + 1) - off, most);
		data = file->ops->next_hole(file, off);
		if (data > (int64_t)off)
			n = gmem_min_u64(n, (uint64_t)data - off);
		err = file->ops->read(file, off, buf, n);
		/* Which page is it? That one is lost, whichever side it is on. */
		if (err == -EHWPOISON) {
			if (n == GMEM_PAGE_SIZE) {
				lose(file, off);
				off += n;
			}
			most = GMEM_PAGE_SIZE;
			err = 0;
			continue;
		}
		if (!err)
			err = file->ops->punch(file, off, n);
		if (err) {
			gmem_err_sys(err, "gmem_file_set_attributes: moving the page at 0x%llx",
				     (unsigned long long)off);
		} else {
			/*
			 * Part of a large page that has a reference is zeroed in place, and the reference would see
			 * what is written next.
			 */
			bool kept = gmem_file_has_memory(file, off, n);

			err = put_back(file, buf, n, off);
			if (!err && kept)
				err = gmem_err(-EAGAIN,
					       "gmem_file_set_attributes: the memory at 0x%llx is part of a large page "
					       "that somebody holds: it cannot be moved",
					       (unsigned long long)off);
		}
		if (!err)
			off += n;
	}
	if (err)
		*ret_error_off = off;
	free(buf);
	return err;
}

static int refuse_pinned(struct gmem_file *file, uint64_t first, uint64_t end, uint64_t *ret_error_off)
{
	uint64_t pin = first_pin(file, first, end);

	if (pin == UINT64_MAX)
		return 0;
	*ret_error_off = pin;
	return gmem_err(-EAGAIN, "gmem_file_set_attributes: page at 0x%llx is pinned", (unsigned long long)pin);
}

/* ---- one object's part of a round */

int gmem_convert_check_pins(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t *ret_error_off)
{
	return refuse_pinned(file, off >> GMEM_PAGE_SHIFT, (off + len) >> GMEM_PAGE_SHIFT, ret_error_off);
}

/* A part of a view that the program has moved, and unmapped as if it were there, is where nobody can mark it. */
static int refuse_strayed(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = file->torn ? gmem_file_strayed(file, NULL, off, len) : 0;

	if (!err)
		return 0;
	return gmem_err(
		err > 0 ? -EOPNOTSUPP : err,
		"gmem_file_set_attributes: the program has moved a part of a view that is gone to an address of "
		"its own: 0x%llx to 0x%llx cannot be kept from being touched there",
		(unsigned long long)off, (unsigned long long)(off + len));
}

int gmem_convert_mark(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t first = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;
	int err = refuse_strayed(file, off, len);

	if (err)
		return err;
	err = each_piece(file, first, end, true, keep_out);
	/* A piece that cannot be unmarked stays SIGBUS: a page too few for the host, never one too many. */
	if (err)
		(void)each_piece(file, first, end, true, let_in_or_go_on);
	return err;
}

/* Where the touch of a private page is an event, one that was healed has a mark too many. */
static int let_events_in(struct gmem_view *view, uint64_t off, uint64_t len)
{
	return view->private_events ? let_in(view, off, len) : 0;
}

int gmem_convert_let_in(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t first = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;
	int err = each_piece(file, first, end, true, let_in), lost;

	if (!atomic_load(&file->state.header->lost))
		return err;
	if (!err)
		err = each_piece(file, first, end, false, let_events_in);
	/* Of an object that comes late: the others have been marked. */
	lost = gmem_file_mark_lost(file, off, len);
	return err ? err : lost;
}

/* ---- the owner's conversion */

static int to_private(struct gmem_file *file, uint64_t first, uint64_t end, uint64_t *ret_error_off)
{
	uint64_t off = first << GMEM_PAGE_SHIFT, len = (end - first) << GMEM_PAGE_SHIFT, run_end;
	int err;

	/* Before any view is marked, or a thread that uses a pinned page would meet the mark: nobody pins meanwhile. */
	err = refuse_pinned(file, first, end, ret_error_off);
	if (err)
		return err;
	*ret_error_off = off;
	err = gmem_round_hold(file, off, len, ret_error_off);
	if (err)
		goto out_release;
	err = gmem_convert_mark(file, off, len);
	if (err)
		goto out_release;
	err = gmem_round_mark(file, off, len, ret_error_off);
	if (err)
		goto out_let_in;
	err = gmem_file_invalidate_begin(file, off, len,
					 GMEM_SIDE_SHARED | GMEM_SIDE_MAY_FAIL |
						 (file->flags & GMEM_FILE_STRICT ? GMEM_SIDE_BAR : 0));
	if (err)
		gmem_err_prefix(err, "gmem_file_set_attributes");
	if (file->flags & GMEM_FILE_STRICT)
		for (uint64_t page = first; !err && next_run(file, &page, end, true, &run_end); page = run_end)
			err = rehome(file, page << GMEM_PAGE_SHIFT, (run_end - page) << GMEM_PAGE_SHIFT, ret_error_off);
	if (!err)
		gmem_state_set_side(&file->state, first, end, true);
	gmem_file_invalidate_end(file, off, len);
	if (!err) {
		gmem_round_release(file, off, len, false);
		return 0;
	}

out_let_in:
	(void)each_piece(file, first, end, true, let_in_or_go_on);
out_release:
	gmem_round_release(file, off, len, true);
	return err;
}

/*
 * The host is let in first, because that may fail, and no guest uses the pages meanwhile. Then it is kept out again; it
 * may have seen what the guest wanted it to see.
 */
static int to_shared(struct gmem_file *file, uint64_t first, uint64_t end, uint64_t *ret_error_off)
{
	uint64_t off = first << GMEM_PAGE_SHIFT, len = (end - first) << GMEM_PAGE_SHIFT;
	int err;

	gmem_round_hold_shared(file, off, len);
	gmem_file_invalidate_begin(file, off, len, GMEM_SIDE_PRIVATE);
	err = each_piece(file, first, end, false, let_in);
	if (err)
		*ret_error_off = off;
	/* Never private and within reach: pages that cannot be marked again are shared, in spite of the error. */
	if (!err || each_piece(file, first, end, false, keep_out))
		gmem_state_set_side(&file->state, first, end, false);
	gmem_file_invalidate_end(file, off, len);
	/* Peers let their hosts in now: who is late, or cannot, keeps a page too many from its own. */
	gmem_round_release(file, off, len, true);
	return err;
}

/* The kernel does it all but for what only the objects know: pins, and what they are at. */
static int by_the_kernel(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes,
			 uint64_t *ret_error_off)
{
	bool private = attributes & GMEM_ATTRIBUTE_PRIVATE;
	int err = private ? gmem_convert_check_pins(file, off, len, ret_error_off) : 0;

	if (err)
		return err;
	if (private)
		err = gmem_round_hold(file, off, len, ret_error_off);
	else
		gmem_round_hold_shared(file, off, len);
	if (!err)
		err = gmem_guest_memfd_convert(file, off, len, attributes, ret_error_off);
	gmem_round_release(file, off, len, true);
	return err;
}

/* The order of the kernel's own checks (KVM_SET_MEMORY_ATTRIBUTES2); all of them are -EINVAL. */
static int check(const struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes)
{
	const char *what = attributes & ~GMEM_ATTRIBUTE_PRIVATE		      ? "unknown attributes" :
			   !len || off + len < off			      ? "empty, or wraps" :
			   !gmem_page_aligned(off) || !gmem_page_aligned(len) ? "not page-aligned" :
			   (off | len) & (file->page_size - 1)	   ? "not multiples of the file's huge pages of 2 MiB" :
			   !gmem_range_inside(off, len, file->len) ? "past the end" :
								     NULL;

	return !what ? 0 :
		       gmem_err(-EINVAL, "gmem_file_set_attributes: off 0x%llx, len 0x%llx, attributes 0x%llx: %s",
				(unsigned long long)off, (unsigned long long)len, (unsigned long long)attributes, what);
}

static int convert_locked(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes,
			  uint64_t *ret_error_off)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT, run_end;
	bool private = attributes & GMEM_ATTRIBUTE_PRIVATE;
	int err = gmem_round_enter(file, "gmem_file_set_attributes");

	if (err)
		return err;
	if (file->engine == GMEM_ENGINE_KERNEL)
		err = by_the_kernel(file, off, len, attributes, ret_error_off);
	/* Narrowed to what changes. */
	else if (next_run(file, &page, end, private, &run_end))
		err = private ? to_private(file, page, end, ret_error_off) : to_shared(file, page, end, ret_error_off);
	gmem_round_leave(file);
	return err;
}

int gmem_file_set_attributes(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes,
			     uint64_t *ret_error_off)
{
	bool private = attributes & GMEM_ATTRIBUTE_PRIVATE;
	uint64_t at = off;
	int err = check(file, off, len, attributes);

	if (!err)
		err = gmem_file_check_bytes(file, "gmem_file_set_attributes");
	if (err)
		return err;
	if (!gmem_file_ours(file))
		return gmem_err(-EIO, "gmem_file_set_attributes: this object is a copy that came with fork(2)");
	if (file->opened)
		return gmem_err(-EPERM, "gmem_file_set_attributes: this object was opened from descriptors: the one "
					"that made the memory converts it");
	if (private && gmem_state_claim(&file->state, GMEM_USE_PRIVATE))
		return gmem_err(-EBUSY,
				"gmem_file_set_attributes: this memory is, or was, behind a keeper, or in a view of a "
				"forked child: the host could not be kept out");
	gmem_rwlock_lock(&file->invalidate_lock);
	err = convert_locked(file, off, len, attributes, &at);
	gmem_rwlock_unlock(&file->invalidate_lock);
	if (err && ret_error_off)
		*ret_error_off = at;
	return err;
}

int gmem_file_attributes(const struct gmem_file *file, uint64_t off, uint64_t *ret_attributes, uint64_t *ret_len)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT, end;
	bool private;

	if (!gmem_page_aligned(off))
		return gmem_err(-EINVAL, "gmem_file_attributes: off 0x%llx: not page-aligned", (unsigned long long)off);
	if (off >= file->len)
		return gmem_err(-ERANGE, "gmem_file_attributes: off 0x%llx: past the end (0x%llx)",
				(unsigned long long)off, (unsigned long long)file->len);
	/* A conversion may run meanwhile: what is told was true of one moment at least of the page itself. */
	do {
		private = gmem_state_private(&file->state, page);
		end = gmem_state_side_end(&file->state, page, file->state.npages);
	} while (end == page || private != gmem_state_private(&file->state, page));
	if (ret_attributes)
		*ret_attributes = private ? GMEM_ATTRIBUTE_PRIVATE : 0;
	if (ret_len)
		*ret_len = (end - page) << GMEM_PAGE_SHIFT;
	return 0;
}
