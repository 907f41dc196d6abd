/* SPDX-License-Identifier: MIT */
/*
 * Keeping the host out of private pages: what a view shows where a page is private.
 *
 * A marker a page (UFFDIO_POISON, Linux 6.6): SIGBUS on touch, EFAULT in system calls; it splits no mapping, survives
 * a punch and goes with MADV_DONTNEED. One mapping takes one userfault descriptor, so the markers of a view go
 * through the descriptor that serves it, or through one of its own, registered in a mode that raises no event. A kernel
 * without markers, or a process without userfaultfd, gets an empty file mapped over the pages, which is SIGBUS too.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"
#include "sys/call.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

/*
 * A thread that touches a page all the time comes between its zapping and its marking; six times in a row were the most
 * that was seen.
 */
#define MAX_RACES 100000

int gmem_view_open_uffd(struct gmem_view *view)
{
	const uint64_t features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
				  UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
				  UFFD_FEATURE_POISON;
	bool user_mode_only = false;
	int fd;

	if (view->uffd >= 0)
		return 0;
	/* Markers work through a user-mode-only one as well. */
	fd = gmem_sys_uffd_open(features, &user_mode_only);
	if (fd < 0)
		return fd;
	view->uffd = fd;
	view->user_mode_only = user_mode_only;
	return 0;
}

/*
 * Registered for markers alone: write-protect mode raises no event as long as nothing is protected. -EOPNOTSUPP: this
 * is no way to keep the host out here.
 */
static int register_plain(struct gmem_view *view)
{
	int err = gmem_view_open_uffd(view);

	if (!err) {
		err = gmem_sys_uffd_register(view->uffd, (uint64_t)(uintptr_t)view->addr, view->len, GMEM_SYS_UFFD_WP);
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

static int map_over(const struct gmem_view *view, uint64_t off, uint64_t len, int fd, uint64_t fd_off)
{
	char *at = gmem_view_at(view, off);

	if (mmap(at, len, view->prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)fd_off) == MAP_FAILED ||
	    madvise(at, len, MADV_DONTFORK))
		return gmem_err_sys(-errno, "view at %p: mapping %llu bytes", view->addr, (unsigned long long)len);
	return 0;
}

static int mark_by_mapping(const struct gmem_view *view, uint64_t off, uint64_t len)
{
	int fd = gmem_memfd_create("gmem-empty", 0);
	int err;

	if (fd < 0)
		return gmem_err_sys(fd, "view at %p: an empty file", view->addr);
	err = map_over(view, off, len, fd, 0);
	close(fd);
	return err;
}

static int mark_by_marker(struct gmem_view *view, uint64_t off, uint64_t len)
{
	uint64_t end = off + len, most = len, registered = off, done;
	unsigned int races = 0;

	while (off < end) {
		uint64_t hva = (uint64_t)(uintptr_t)gmem_view_at(view, off), n = gmem_min_u64(end - off, most);
		int err = gmem_sys_uffd_poison(view->uffd, hva, n, &done);

		off += done;
		if (done)
			races = 0;
		if (err && err != -ENOENT && ++races > MAX_RACES)
			return err;
		switch (err) {
		case 0:
			most = gmem_min_u64(2 * n, len);
			break;
		case -EEXIST:
			/* Touched since it was zapped. */
			err = gmem_sys_zap(gmem_view_at(view, off), GMEM_PAGE_SIZE);
			if (err)
				return err;
			break;
		case -EAGAIN:
			/* The address space is changing. */
			sched_yield();
			break;
		case -ENOENT:
			/* A border inside, where the program has split its mapping (mlock, mprotect, mbind). */
			if (n > GMEM_PAGE_SIZE) {
				most = gmem_page_round_down(n / 2);
				break;
			}
			if (off < registered)
				return err;
			/* A pager has let go of it. What it still serves has this mode, and loses none. */
			err = gmem_sys_uffd_register(view->uffd, hva, end - off, GMEM_SYS_UFFD_WP);
			if (err)
				return err;
			registered = end;
			most = end - off;
			break;
		default:
			return err;
		}
	}
	return 0;
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

int gmem_view_mark(struct gmem_view *view, uint64_t off, uint64_t len)
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
	if (view->by_mapping)
		return mark_by_mapping(view, off, len);
	err = gmem_sys_zap(gmem_view_at(view, off), len);
	if (!err && !view->private_events) {
		err = mark_by_marker(view, off, len);
		/* A kernel before 6.6. */
		if (err == -EINVAL && view->use == GMEM_VIEW_PLAIN) {
			view->by_mapping = true;
			return mark_by_mapping(view, off, len);
		}
		if (err == -EINVAL)
			return gmem_err(-EOPNOTSUPP, "view at %p: it is served, and this kernel has no page markers",
					view->addr);
	}
	return err ? gmem_err_sys(err, "view at %p: marking %llu bytes at 0x%llx", view->addr, (unsigned long long)len,
				  (unsigned long long)off) :
		     0;
}

/*
 * Private pages that were in place when their pager let go of the view stayed registered, or they would have been
 * without their markers for a moment. Their touchers would wait for the pager.
 */
static void forget_registration(struct gmem_view *view, uint64_t off, uint64_t len)
{
	for (uint64_t end = off + len, to; off < end; off = to) {
		bool present = view->file->ops->present(view->file, off);

		for (to = off + GMEM_PAGE_SIZE; to < end; to += GMEM_PAGE_SIZE)
			if (view->file->ops->present(view->file, to) != present)
				break;
		if (present)
			gmem_sys_uffd_unregister(view->uffd, (uint64_t)(uintptr_t)gmem_view_at(view, off), to - off);
	}
}

int gmem_view_unmark(struct gmem_view *view, uint64_t off, uint64_t len)
{
	int err;

	/* Never marked, and a zap would take its pages for given up. */
	if (view->use == GMEM_VIEW_BALLOONED || view->file->engine == GMEM_ENGINE_KERNEL)
		return 0;
	if (view->by_mapping)
		return map_over(view, off, len, view->file->fd, off);
	if (view->let_go)
		forget_registration(view, off, len);
	err = gmem_sys_zap(gmem_view_at(view, off), len);
	return err ? gmem_err_sys(err, "view at %p: unmarking %llu bytes at 0x%llx", view->addr,
				  (unsigned long long)len, (unsigned long long)off) :
		     0;
}

int gmem_view_mark_private(struct gmem_view *view)
{
	const struct gmem_state *state = &view->file->state;
	uint64_t page = view->off >> GMEM_PAGE_SHIFT, end = (view->off + view->len) >> GMEM_PAGE_SHIFT;
	int err = 0;

	while (page < end && !err && gmem_state_sole(state)) {
		uint64_t next = gmem_state_side_end(state, page, end);

		if (gmem_state_private(state, page))
			err = gmem_view_mark(view, page << GMEM_PAGE_SHIFT, (next - page) << GMEM_PAGE_SHIFT);
		page = next;
	}
	return err;
}
