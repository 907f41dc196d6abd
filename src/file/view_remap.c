/* SPDX-License-Identifier: MIT */
/*
 * Views that are split, grow, shrink and move.
 *
 * A view that grows or moves is mapped anew and not moved by mremap(2). Of a moved mapping the kernel carries the
 * markers along (move_ptes()) and drops the registration (mremap_userfaultfd_prep(): UFFD_FEATURE_EVENT_REMAP was not
 * asked for), so that it could be marked no more until it is registered again, and in between khugepaged may drop its
 * page tables, markers and all (retract_page_tables() spares registered mappings). A mapping that grows keeps both, but
 * what is new of it can be touched before it can be marked. So the new mapping is made without any access, marked, and
 * only then opened (mprotect(2)); until all that has been done the old one is what it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"
#include "file/place.h"
#include "sys/uapi.h"
#include "sys/uffd.h"

static int check(const struct gmem_view *view, const char *who)
{
	if (view->pid != getpid())
		return gmem_err(-EIO, "%s: this view is a copy that came with fork(2)", who);
	return 0;
}

/* Invalidate lock held. */
static int check_plain(const struct gmem_view *view, const char *who)
{
	if (view->use != GMEM_VIEW_PLAIN)
		return gmem_err(-EBUSY, "%s: a pager, a keeper or a gmem_uffd serves this view, and knows it as it is",
				who);
	return 0;
}

int gmem_view_split(struct gmem_view *view, uint64_t len, struct gmem_view **ret)
{
	struct gmem_rwlock *lock = &view->file->invalidate_lock;
	struct gmem_view *rest;
	int err = check(view, "gmem_view_split");

	if (err)
		return err;
	if (!len || (len & (view->file->page_size - 1)) || len >= view->len)
		return gmem_err(-EINVAL, "gmem_view_split: len 0x%llx: not a multiple of %llu between 0 and 0x%llx",
				(unsigned long long)len, (unsigned long long)view->file->page_size,
				(unsigned long long)view->len);
	rest = malloc(sizeof(*rest));
	if (!rest)
		return gmem_err_sys(-ENOMEM, "gmem_view_split");
	gmem_rwlock_lock(lock);
	err = check_plain(view, "gmem_view_split");
	if (err)
		goto out_unlock;
	*rest = *view;
	rest->addr = gmem_view_at(view, view->off + len);
	rest->off += len;
	rest->len -= len;
	/* Copies of one userfault descriptor: a registration ends with its mapping, or with the last of them. */
	if (view->uffd >= 0) {
		rest->uffd = fcntl(view->uffd, F_DUPFD_CLOEXEC, 0);
		if (rest->uffd < 0) {
			err = gmem_err_sys(-errno, "gmem_view_split");
			goto out_unlock;
		}
	}
	err = gmem_peer_publish(rest);
	if (err) {
		gmem_err_prefix(err, "gmem_view_split");
		goto out_close;
	}
	gmem_file_get(view->file);
	view->len = len;
	view->next = rest;
	gmem_peer_moved(view, view->addr);
	gmem_rwlock_unlock(lock);
	*ret = rest;
	return 0;

out_close:
	if (rest->uffd >= 0)
		close(rest->uffd);
out_unlock:
	gmem_rwlock_unlock(lock);
	free(rest);
	return err;
}

/*
 * The new mapping, which nobody can touch yet: marks what is private or poisoned, and registers it with the descriptor
 * that the view has. It may open one.
 */
static int prepare(struct gmem_view *view)
{
	int err = 0;

	if (madvise(view->addr, view->len, MADV_DONTFORK))
		return gmem_err_sys(-errno, "MADV_DONTFORK");
	if (view->uffd >= 0 && !view->by_mapping)
		err = gmem_sys_uffd_register(view->uffd, (uint64_t)(uintptr_t)view->addr, view->len, GMEM_SYS_UFFD_WP);
	if (err)
		return gmem_err_sys(err, "view at %p: userfaultfd", view->addr);
	err = gmem_view_mark_private(view);
	return err ? err : gmem_view_mark_all_lost(view);
}

/*
 * Maps `new`, which is a copy of a view but for address and length, and opens it when it is marked. `flags` says of its
 * address what mmap(2) is to make of it.
 */
static int map_new(struct gmem_view *new, int flags)
{
	void *hint = new->addr;
	int uffd = new->uffd, err;

	new->addr =
		mmap(hint, new->len, PROT_NONE, MAP_SHARED | MAP_NORESERVE | flags, new->file->fd, (off_t) new->off);
	if (new->addr == MAP_FAILED)
		return gmem_err_sys(-errno, "gmem_view_remap: %llu bytes", (unsigned long long)new->len);
	/* A kernel before 4.17 takes MAP_FIXED_NOREPLACE for a wish. */
	err = flags && new->addr != hint ? gmem_err_sys(-EEXIST, "gmem_view_remap") : prepare(new);
	if (!err && mprotect(new->addr, new->len, new->prot))
		err = gmem_err_sys(-errno, "gmem_view_remap: mprotect");
	if (!err)
		return 0;
	munmap(new->addr, new->len);
	if (new->uffd != uffd &&new->uffd >= 0)
		close(new->uffd);
	return err;
}

/* What the new mapping, or the new part of it, has found out about how the view is to be marked. */
static void take_over(struct gmem_view *view, const struct gmem_view *new)
{
	view->uffd = new->uffd;
	view->user_mode_only = new->user_mode_only;
	view->by_mapping = new->by_mapping;
}

/* The first of the list is who was mapped last, and has the address where another was. */
static void put_first(struct gmem_view *view)
{
	struct gmem_view **at = &view->file->views;

	while (*at != view)
		at = &(*at)->next;
	*at = view->next;
	view->next = view->file->views;
	view->file->views = view;
}

static int grow(struct gmem_view *view, uint64_t new_len)
{
	struct gmem_view tail = *view;
	int err;

	tail.addr = gmem_view_at(view, view->off + view->len);
	tail.off += view->len;
	tail.len = new_len - view->len;
	err = map_new(&tail, MAP_FIXED_NOREPLACE);
	if (err)
		return err;
	take_over(view, &tail);
	view->len = new_len;
	put_first(view);
	return 0;
}

static int move(struct gmem_view *view, uint64_t new_len, void *addr)
{
	struct gmem_view new = *view;
	int err;

	new.addr = addr;
	new.len = new_len;
	err = map_new(&new, addr ? MAP_FIXED : 0);
	if (err)
		return err;
	gmem_view_unmap_pieces(view, view->off, view->len);
	take_over(view, &new);
	view->addr = new.addr;
	view->len = new_len;
	put_first(view);
	return 0;
}

static void shrink(struct gmem_view *view, uint64_t new_len)
{
	uint64_t old_len = view->len;

	/* What is cut off is looked for as a part of no view. */
	view->len = new_len;
	gmem_view_unmap_pieces(view, view->off + new_len, old_len - new_len);
}

/* Invalidate lock held, exclusive. */
static int remap(struct gmem_view *view, uint64_t new_len, void *addr)
{
	bool stays = !addr || addr == view->addr;
	int err = check_plain(view, "gmem_view_remap");

	if (err)
		return err;
	if (stays && new_len <= view->len) {
		if (new_len < view->len)
			shrink(view, new_len);
		return 0;
	}
	/* What the program has moved away is missed only as long as there is a hole. */
	err = gmem_view_check_whole(view);
	if (err == -EFAULT)
		return gmem_err(err,
				"gmem_view_remap: the program has unmapped a part of the view at %p, or mapped "
				"something over it",
				view->addr);
	if (err)
		return gmem_err_sys(err, "gmem_view_remap: /proc/self/maps");
	if (!stays)
		return move(view, new_len, addr);
	err = grow(view, new_len);
	if (err == -EEXIST)
		err = addr ? gmem_err(-ENOMEM, "gmem_view_remap: no room for 0x%llx bytes at %p",
				      (unsigned long long)new_len, addr) :
			     move(view, new_len, NULL);
	return err;
}

static int check_place(const struct gmem_view *view, uint64_t new_len, uint64_t hva)
{
	uint64_t old = (uint64_t)(uintptr_t)view->addr;

	if (!new_len || (new_len & (view->file->page_size - 1)))
		return gmem_err(-EINVAL, "gmem_view_remap: len 0x%llx: not a multiple of %llu above 0",
				(unsigned long long)new_len, (unsigned long long)view->file->page_size);
	if (!hva || hva == old)
		return 0;
	if ((hva & (view->file->page_size - 1)) || hva + new_len < hva)
		return gmem_err(-EINVAL, "gmem_view_remap: addr 0x%llx: not a multiple of %llu, or wraps",
				(unsigned long long)hva, (unsigned long long)view->file->page_size);
	if (gmem_range_overlaps(hva, new_len, old, view->len))
		return gmem_err(-EINVAL, "gmem_view_remap: addr 0x%llx: overlaps where the view is",
				(unsigned long long)hva);
	return 0;
}

int gmem_view_remap(struct gmem_view *view, uint64_t new_len, void *addr)
{
	int err = check(view, "gmem_view_remap");
	void *from;

	if (!err)
		err = check_place(view, new_len, (uint64_t)(uintptr_t)addr);
	if (err)
		return err;
	gmem_rwlock_lock(&view->file->invalidate_lock);
	from = view->addr;
	err = remap(view, new_len, addr);
	if (!err)
		gmem_peer_moved(view, from);
	gmem_rwlock_unlock(&view->file->invalidate_lock);
	return err;
}
