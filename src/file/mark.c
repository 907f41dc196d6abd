/* SPDX-License-Identifier: MIT */
/*
 * Keeping the host out of private pages: what a view shows where a page is private.
 *
 * A marker a page (UFFDIO_POISON, Linux 6.6): SIGBUS on touch, EFAULT in system calls; it splits no mapping, survives a
 * punch and goes with MADV_DONTNEED. One mapping takes one userfault descriptor, so the markers of a view go through
 * the descriptor that serves it, or through one of its own, registered in a mode that raises no event. A kernel without
 * markers, or a process without userfaultfd, gets an empty file mapped over the pages, which is SIGBUS too.
 *
 * The place is the program's too, see place.c: MADV_DONTNEED there would take the bytes of what it has mapped over it.
 * So markers come first. UFFDIO_POISON looks at the mapping before it looks at a page (mfill_atomic()): one that lies
 * within one registered mapping is marked, or answers -EEXIST of a page that was touched, and anything else is -ENOENT.
 * Then somebody looks what is there. The kernel does not ask whose registration it is: memory that the program has
 * registered with a userfault descriptor of its own, over a part of a view, is not told from the view's.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"
#include "file/place.h"
#include "file/protect.h"
#include "sys/call.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

/*
 * A thread that touches a page all the time comes between its zapping and its marking; six times in a row were the most
 * that was seen.
 */
#define MAX_RACES 100000

static uint64_t hva_of(const struct gmem_view *view, uint64_t off)
{
	return (uint64_t)(uintptr_t)gmem_view_at(view, off);
}

typedef int (*each_piece_fn)(struct gmem_view *view, const struct gmem_piece *piece);

/* Calls fn for each piece of the range that is the view's. `*gap` and `*gap_end` are put around those that are not. */
static int each_piece(struct gmem_view *view, uint64_t off, uint64_t len, each_piece_fn fn, uint64_t *gap,
		      uint64_t *gap_end)
{
	struct gmem_pieces pieces;
	struct gmem_piece piece;
	int err = gmem_pieces_begin(&pieces, view, off, len), got = 0;

	if (err)
		gmem_err_sys(err, "view at %p: /proc/self/maps", view->addr);
	while (!err && (got = gmem_pieces_next(&pieces, &piece)) > 0) {
		if (piece.kind != GMEM_PIECE_OTHER) {
			err = fn(view, &piece);
			continue;
		}
		*gap = gmem_min_u64(*gap, piece.off);
		*gap_end = gmem_max_u64(*gap_end, piece.off + piece.len);
	}
	gmem_pieces_end(&pieces);
	return err ? err : got < 0 ? gmem_err_sys(got, "view at %p: /proc/self/maps", view->addr) : 0;
}

/* The same, where what is missing does not matter. */
static int each_own_piece(struct gmem_view *view, uint64_t off, uint64_t len, each_piece_fn fn)
{
	uint64_t gap = UINT64_MAX, gap_end = 0;

	return each_piece(view, off, len, fn, &gap, &gap_end);
}

/* The same, where it does: a part that the program has moved away shows its pages all the same. */
static int each_piece_or_err(struct gmem_view *view, uint64_t off, uint64_t len, each_piece_fn fn)
{
	uint64_t gap = UINT64_MAX, gap_end = 0;
	int err = each_piece(view, off, len, fn, &gap, &gap_end);

	if (err || gap >= gap_end)
		return err;
	err = gmem_file_strayed(view->file, view, gap, gap_end - gap);
	if (err > 0)
		return gmem_err(-EOPNOTSUPP,
				"view at %p: something of 0x%llx to 0x%llx of the file is mapped elsewhere, and not by "
				"gmem: it cannot be kept from being touched there",
				view->addr, (unsigned long long)gap, (unsigned long long)gap_end);
	return err ? gmem_err_sys(err, "view at %p: /proc/self/maps", view->addr) : 0;
}

/* ---- markers */

/* Without text. */
static int register_piece(struct gmem_view *view, const struct gmem_piece *piece)
{
	return gmem_sys_uffd_register(view->uffd, hva_of(view, piece->off), piece->len, GMEM_SYS_UFFD_WP);
}

/*
 * Registered for markers alone: write-protect mode raises no event as long as nothing is protected. -EOPNOTSUPP: this
 * is no way to keep the host out here.
 */
static int register_plain(struct gmem_view *view)
{
	int err = gmem_view_open_uffd(view);

	if (!err) {
		err = each_own_piece(view, view->off, view->len, register_piece);
		if (err) {
			close(view->uffd);
			view->uffd = -1;
		}
	}
	switch (err) {
	case 0:
	/* It may well do later. */
	case -EMFILE:
	case -ENFILE:
	case -ENOMEM:
	/* A descriptor of the program's has it: somebody serves it, and would serve nothing that is mapped over it. */
	case -EBUSY:
		return err;
	default:
		return -EOPNOTSUPP;
	}
}

/* How this view is to be marked, if that is not known yet. */
static int choose_way(struct gmem_view *view)
{
	int err = view->uffd < 0 && !view->by_mapping ? register_plain(view) : 0;

	if (err == -EBUSY)
		return gmem_err(-EOPNOTSUPP,
				"view at %p: the program has registered it with a userfault descriptor of its own",
				view->addr);
	if (err == -EOPNOTSUPP) {
		view->by_mapping = true;
		return 0;
	}
	return err ? gmem_err_sys(err, "view at %p: userfaultfd", view->addr) : 0;
}

/*
 * Marks from *off on, without text, and moves *off. -ENOENT: some of the rest is not one registered mapping; nothing of
 * that was harmed. -EINVAL: a kernel before 6.6. `keep`: what is there stays, a page as well as a marker.
 */
static int put_markers(const struct gmem_view *view, uint64_t *off, uint64_t end, bool keep)
{
	unsigned int races = 0;
	bool zapped = false, wake = view->use != GMEM_VIEW_PLAIN; /* nobody waits in one that nobody serves */
	uint64_t done;

	while (*off < end) {
		int err = gmem_sys_uffd_poison(view->uffd, hva_of(view, *off), end - *off, wake, &done);

		*off += done;
		if (!err)
			break;
		if (done)
			races = 0;
		if (err != -ENOENT && ++races > MAX_RACES)
			return err;
		switch (err) {
		/* In a large page that is mapped. */
		case -EFAULT:
		case -EEXIST:
			if (keep) {
				*off += GMEM_PAGE_SIZE;
				break;
			}
			/* Touched, and with it most likely others: once. Or touched since: that page. */
			gmem_view_lift_protection(view, *off, zapped ? view->file->page_size : end - *off);
			err = gmem_sys_zap(gmem_view_at(view, *off), zapped ? view->file->page_size : end - *off);
			if (err)
				return err;
			zapped = true;
			break;
		case -EAGAIN:
			/* The address space is changing. */
			sched_yield();
			break;
		default:
			return err;
		}
	}
	return 0;
}

/* With text; -EINVAL has none, and is the caller's to understand. */
static int marking(const struct gmem_view *view, uint64_t off, uint64_t end, int err)
{
	return err && err != -EINVAL ? gmem_err_sys(err, "view at %p: marking 0x%llx to 0x%llx", view->addr,
						    (unsigned long long)off, (unsigned long long)end) :
				       err;
}

/* A mapping of the view's, or a part of one: it may have lost its registration, with a pager's end or by mremap(2). */
static int mark_piece_or_keep(struct gmem_view *view, const struct gmem_piece *piece, bool keep)
{
	uint64_t off = piece->off, end = piece->off + piece->len;
	int err = put_markers(view, &off, end, keep);

	if (err == -ENOENT) {
		/* What is still served has this mode, and loses none. */
		err = gmem_sys_uffd_register(view->uffd, hva_of(view, off), end - off, GMEM_SYS_UFFD_WP);
		/* A new mapping of the program's would be inherited. */
		if (!err && madvise(gmem_view_at(view, off), end - off, MADV_DONTFORK))
			err = -errno;
		if (!err)
			err = put_markers(view, &off, end, keep);
	}
	/* Several mappings all the same, where nobody can look. */
	if (err == -ENOENT && end - off > view->file->page_size) {
		struct gmem_piece half = { .off = off, .len = gmem_file_unit_off(view->file, (end - off) / 2) };

		err = mark_piece_or_keep(view, &half, keep);
		if (err)
			return err;
		half.off += half.len;
		half.len = end - half.off;
		return mark_piece_or_keep(view, &half, keep);
	}
	return marking(view, off, end, err);
}

static int mark_piece(struct gmem_view *view, const struct gmem_piece *piece)
{
	return mark_piece_or_keep(view, piece, false);
}

static int mark_kept_piece(struct gmem_view *view, const struct gmem_piece *piece)
{
	return mark_piece_or_keep(view, piece, true);
}

static int zap_piece(struct gmem_view *view, const struct gmem_piece *piece)
{
	int err = gmem_sys_zap(gmem_view_at(view, piece->off), piece->len);

	return err ? gmem_err_sys(err, "view at %p: zapping %llu bytes at 0x%llx", view->addr,
				  (unsigned long long)piece->len, (unsigned long long)piece->off) :
		     0;
}

static int mark_by_marker(struct gmem_view *view, uint64_t off, uint64_t len, bool keep)
{
	uint64_t end = off + len;
	int err = put_markers(view, &off, end, keep);

	/* A border inside, where the program has split its mapping (mlock, mprotect, mbind), or has made another. */
	if (err == -ENOENT)
		return each_piece_or_err(view, off, end - off, keep ? mark_kept_piece : mark_piece);
	return marking(view, off, end, err);
}

/* ---- the empty file */

static int open_empty(struct gmem_file *file)
{
	struct stat st;
	int fd;

	if (file->empty_fd >= 0)
		return 0;
	fd = gmem_memfd_create("gmem-empty", 0);
	if (fd < 0)
		return fd;
	if (fstat(fd, &st)) {
		int err = -errno;

		close(fd);
		return err;
	}
	file->empty_dev = st.st_dev;
	file->empty_ino = st.st_ino;
	file->empty_fd = fd;
	return 0;
}

/* With the protection that is there: the program may have changed it. */
static int map_over(const struct gmem_view *view, const struct gmem_piece *piece, int fd)
{
	char *at = gmem_view_at(view, piece->off);

	if (mmap(at, piece->len, piece->prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)piece->off) ==
		    MAP_FAILED ||
	    madvise(at, piece->len, MADV_DONTFORK))
		return gmem_err_sys(-errno, "view at %p: mapping %llu bytes", view->addr,
				    (unsigned long long)piece->len);
	return 0;
}

static int map_empty(struct gmem_view *view, const struct gmem_piece *piece)
{
	return piece->kind == GMEM_PIECE_FILE ? map_over(view, piece, view->file->empty_fd) : 0;
}

static int map_file(struct gmem_view *view, const struct gmem_piece *piece)
{
	if (piece->kind == GMEM_PIECE_EMPTY)
		return map_over(view, piece, view->file->fd);
	/* Of the time before the kernel said that it has no markers. */
	return view->uffd >= 0 ? zap_piece(view, piece) : 0;
}

static int mark_by_mapping(struct gmem_view *view, uint64_t off, uint64_t len)
{
	int err = open_empty(view->file);

	if (err)
		return gmem_err_sys(err, "view at %p: an empty file", view->addr);
	return each_piece_or_err(view, off, len, map_empty);
}

/* ---- what a view shows */

/* By the way that was chosen. -EINVAL without text: it is served, and this kernel has no page markers. */
static int mark(struct gmem_view *view, uint64_t off, uint64_t len, bool keep)
{
	int err;

	if (view->by_mapping)
		return mark_by_mapping(view, off, len);
	err = mark_by_marker(view, off, len, keep);
	/* A kernel before 6.6. */
	if (err == -EINVAL && view->use == GMEM_VIEW_PLAIN) {
		view->by_mapping = true;
		return mark_by_mapping(view, off, len);
	}
	return err;
}

static int keep_out(struct gmem_view *view, uint64_t off, uint64_t len, bool keep)
{
	int err;

	/* The kernel keeps the host out by itself. */
	if (view->file->engine == GMEM_ENGINE_KERNEL)
		return 0;
	if (view->use == GMEM_VIEW_BALLOONED)
		return gmem_err(-EOPNOTSUPP,
				"view at %p: its pager takes a page whose translation goes for one that the "
				"guest gave up (GMEM_PAGER_REMOVE_DISCARDS)",
				view->addr);
	err = choose_way(view);
	if (err)
		return err;
	if (view->private_events && !keep)
		return each_piece_or_err(view, off, len, zap_piece);
	err = mark(view, off, len, keep);
	return err == -EINVAL ? gmem_err(-EOPNOTSUPP, "view at %p: it is served, and this kernel has no page markers",
					 view->addr) :
				err;
}

int gmem_view_mark(struct gmem_view *view, uint64_t off, uint64_t len)
{
	return keep_out(view, off, len, false);
}

int gmem_view_mark_rest(struct gmem_view *view, uint64_t off, uint64_t len)
{
	return keep_out(view, off, len, true);
}

int gmem_view_mark_lost(struct gmem_view *view, uint64_t off, uint64_t len, bool fresh)
{
	int err;

	if (view->use == GMEM_VIEW_BALLOONED)
		return 0;
	/* A guest_memfd takes no userfaultfd, and has no way to be told that a page is bad. */
	if (view->file->engine == GMEM_ENGINE_KERNEL)
		view->by_mapping = true;
	err = choose_way(view);
	if (!err)
		err = mark(view, off, len, !fresh);
	/* Served, and no markers: its touchers wait, as at a page that its server lost. */
	return err == -EINVAL ? 0 : err;
}

static int unregister_piece(struct gmem_view *view, const struct gmem_piece *piece)
{
	int err = zap_piece(view, piece);

	return err ? err : gmem_sys_uffd_unregister(view->uffd, hva_of(view, piece->off), piece->len);
}

void gmem_view_unmark_lost(struct gmem_view *view)
{
	if (view->use != GMEM_VIEW_PLAIN || gmem_state_used(&view->file->state, GMEM_USE_PRIVATE))
		return;
	if (view->by_mapping && !each_own_piece(view, view->off, view->len, map_file))
		view->by_mapping = false;
	if (view->uffd < 0 || each_own_piece(view, view->off, view->len, unregister_piece))
		return;
	close(view->uffd);
	view->uffd = -1;
}

/*
 * Private pages that were in place when their pager let go of the view stayed registered, or they would have been
 * without their markers for a moment. Their touchers would wait for the pager.
 */
static void forget_registration(struct gmem_view *view, uint64_t off, uint64_t len)
{
	const struct gmem_file *file = view->file;

	for (uint64_t end = off + len, to; off < end; off = to) {
		bool present = gmem_file_unit(file, off) == GMEM_UNIT_IN_PLACE;

		for (to = off + file->page_size; to < end; to += file->page_size)
			if ((gmem_file_unit(file, to) == GMEM_UNIT_IN_PLACE) != present)
				break;
		if (present)
			gmem_sys_uffd_unregister(view->uffd, hva_of(view, off), to - off);
	}
}

/* As forget_registration() and zap_piece(). */
static int forget_piece(struct gmem_view *view, const struct gmem_piece *piece)
{
	forget_registration(view, piece->off, piece->len);
	return zap_piece(view, piece);
}

/*
 * One page of a plain view goes in at once: UFFDIO_CONTINUE takes the marker's place, of shared memory only
 * (mfill_atomic()), and its next touch is no fault. Not for one without memory, and not worth it for many.
 */
static bool continue_page(const struct gmem_view *view, uint64_t off)
{
	uint64_t done;
	int err = gmem_sys_uffd_continue(view->uffd, hva_of(view, off), view->file->page_size, &done);

	return !err || err == -EEXIST;
}

/*
 * Is all that is mapped in the range registered? Pages that are not marked must not be for a moment: somebody may have
 * them pinned.
 */
static bool surely_own(const struct gmem_view *view, uint64_t off, uint64_t len)
{
	return !gmem_sys_uffd_unprotect(view->uffd, hva_of(view, off), len);
}

static int unmark(struct gmem_view *view, uint64_t off, uint64_t len)
{
	/* Never marked, and a zap would take its pages for given up. */
	if (view->use == GMEM_VIEW_BALLOONED || (view->file->engine == GMEM_ENGINE_KERNEL && !view->by_mapping))
		return 0;
	if (view->by_mapping)
		return each_own_piece(view, off, len, map_file);
	/* Nor was this. */
	if (view->uffd < 0)
		return 0;
	if (view->let_go)
		return each_own_piece(view, off, len, forget_piece);
	if (view->private_events)
		return each_own_piece(view, off, len, zap_piece);
	if (view->use == GMEM_VIEW_PLAIN && len == view->file->page_size && continue_page(view, off))
		return 0;
	if (surely_own(view, off, len) && !gmem_sys_zap(gmem_view_at(view, off), len))
		return 0;
	return each_own_piece(view, off, len, zap_piece);
}

int gmem_view_unmark(struct gmem_view *view, uint64_t off, uint64_t len)
{
	int err = unmark(view, off, len);

	/* A write that comes first is not told where minor faults are not. */
	gmem_view_protect_again(view, off, len);
	return err;
}

int gmem_view_mark_private(struct gmem_view *view)
{
	const struct gmem_state *state = &view->file->state;
	uint64_t page = view->off >> GMEM_PAGE_SHIFT, end;
	int err = 0;

	end = gmem_min_u64((view->off + view->len) >> GMEM_PAGE_SHIFT, state->npages);
	while (page < end && !err && gmem_state_used(state, GMEM_USE_PRIVATE)) {
		uint64_t next = gmem_state_side_end(state, page, end);

		if (gmem_state_private(state, page))
			err = gmem_view_mark(view, page << GMEM_PAGE_SHIFT, (next - page) << GMEM_PAGE_SHIFT);
		page = next;
	}
	return err;
}
