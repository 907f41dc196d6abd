/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/anon.h"
#include "file/place.h"
#include "file/protect.h"
#include "sys/hugepages.h"
#include "sys/uffd.h"

uint64_t gmem_view_uffd_features(const struct gmem_view *view)
{
	const uint64_t features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
				  UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
				  UFFD_FEATURE_POISON;
	const uint64_t huge = UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS;

	return view->file->page_size > GMEM_PAGE_SIZE ? features | huge : features;
}

int gmem_view_open_uffd(struct gmem_view *view)
{
	bool user_mode_only = false;
	int fd;

	if (view->uffd >= 0)
		return 0;
	/* Markers work through a user-mode-only one as well. */
	fd = gmem_sys_uffd_open(gmem_view_uffd_features(view), &user_mode_only);
	if (fd < 0)
		return fd;
	view->uffd = fd;
	view->user_mode_only = user_mode_only;
	return 0;
}

/* From here on conversions know it; what is private or poisoned already is marked before anybody has the address. */
static int enlist(struct gmem_view *view)
{
	struct gmem_file *file = view->file;
	int err = gmem_file_open_maps(file);

	if (err)
		return gmem_err_sys(err, "gmem_view_map: /proc/self/maps");
	err = gmem_view_mark_private(view);
	if (!err)
		err = gmem_view_mark_all_lost(view);
	if (err)
		return gmem_err_prefix(err, "gmem_view_map");
	err = gmem_peer_publish(view);
	if (err)
		return gmem_err_prefix(err, "gmem_view_map");
	view->next = file->views;
	file->views = view;
	return 0;
}

/*
 * With huge pages by advice, a place where one of the file can be mapped as one; else, or if it is taken before it is
 * used, wherever the kernel likes. Huge pages proper the kernel places itself.
 */
static void *place_for(const struct gmem_file *file, uint64_t off, uint64_t len)
{
	const uint64_t mask = GMEM_HUGE_SIZE - 1;
	char *p;

	if (!(file->flags & GMEM_FILE_THP) || len < GMEM_HUGE_SIZE)
		return NULL;
	p = mmap(NULL, len + GMEM_HUGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	munmap(p, len + GMEM_HUGE_SIZE);
	return p + ((off - (uint64_t)(uintptr_t)p) & mask);
}

/* With the lock: who looks for mappings that are no views (foreign.c) finds none that is about to be one. */
static int map_locked(struct gmem_view *view)
{
	struct gmem_file *file = view->file;
	bool never = file->flags & GMEM_FILE_NO_MMAP;
	uint64_t len = view->len;
	int err;

	view->addr = mmap(place_for(file, view->off, len), len, never ? PROT_NONE : view->prot,
			  MAP_SHARED | MAP_NORESERVE, file->fd, (off_t)view->off);
	if (view->addr == MAP_FAILED && (!never || errno != ENODEV))
		return gmem_err_sys(-errno, "gmem_view_map: %llu bytes at 0x%llx", (unsigned long long)len,
				    (unsigned long long)view->off);
	/* The last thing the kernel asks, of a guest_memfd too. */
	if (never)
		err = gmem_err(-ENODEV, "gmem_view_map: this file is never mapped (GMEM_FILE_NO_MMAP)");
	else if (madvise(view->addr, len, MADV_DONTFORK))
		err = gmem_err_sys(-errno, "gmem_view_map: MADV_DONTFORK");
	else
		err = enlist(view);
	if (!err)
		gmem_file_advise(file, view->addr, len);
	if (err && view->addr != MAP_FAILED)
		munmap(view->addr, len);
	return err;
}

static void forget(struct gmem_view *view)
{
	gmem_view_drop_protection(view);
	if (view->uffd < 0)
		return;
	gmem_state_forget_region(&view->file->state, (uint64_t)(uintptr_t)view->addr, view->uffd);
	close(view->uffd);
}

/* What mmap(2) says of offset, length and address space it is left to say. */
static int check_map(struct gmem_file *file, uint64_t off, uint64_t len, int prot)
{
	int err;

	if (!len || !gmem_page_aligned(off) || !gmem_page_aligned(len))
		return gmem_err(-EINVAL, "gmem_view_map: off 0x%llx, len 0x%llx: not multiples of %u, or empty",
				(unsigned long long)off, (unsigned long long)len, GMEM_PAGE_SIZE);
	err = gmem_file_check_units(file, "gmem_view_map", off, len);
	if (!err)
		err = gmem_file_check_bytes(file, "gmem_view_map");
	if (err)
		return err;
	if (prot & ~(PROT_READ | PROT_WRITE))
		return gmem_err(-EINVAL, "gmem_view_map: prot 0x%x: only PROT_READ and PROT_WRITE", (unsigned int)prot);
	/* Who converts pages knows nothing of the views of a forked child. */
	if (!gmem_file_ours(file) && gmem_state_claim(&file->state, GMEM_USE_CHILD))
		return gmem_err(-EBUSY, "gmem_view_map: this memory has, or had, private pages: a forked child gets no "
					"view of it");
	return 0;
}

int gmem_view_map(struct gmem_file *file, uint64_t off, uint64_t len, int prot, struct gmem_view **ret)
{
	struct gmem_view *view;
	int err = check_map(file, off, len, prot);

	if (err)
		return err;
	view = calloc(1, sizeof(*view));
	if (!view)
		return gmem_err_sys(-ENOMEM, "gmem_view_map");
	*view = (struct gmem_view){ .off = off, .len = len, .file = file, .prot = prot, .uffd = -1, .pid = getpid() };
	gmem_rwlock_lock(&file->invalidate_lock);
	err = map_locked(view);
	gmem_rwlock_unlock(&file->invalidate_lock);
	if (err) {
		forget(view);
		free(view);
		return err;
	}
	gmem_file_get(file);
	*ret = view;
	return 0;
}

/*
 * In a forked child, of a view it did not inherit: something else may be at its address, and the lock that guards the
 * list may be held by a thread the child has not got. So the copy stays in the list, of no use to anybody.
 */
static void let_go_of_copy(struct gmem_view *view)
{
	if (view->uffd >= 0)
		close(view->uffd);
	view->uffd = -1;
	gmem_file_put(view->file);
}

/* Nothing is mapped here. Its touchers wait for whoever serves them next: in its process it stays registered. */
static void let_go_of_foreign(struct gmem_view *view)
{
	gmem_view_drop_protection(view);
	close(view->uffd);
	gmem_file_put(view->file);
	free(view);
}

void gmem_view_unmap(struct gmem_view *view)
{
	struct gmem_view **at;

	if (!view)
		return;
	if (view->unmapping)
		view->unmapping(view->server, view);
	if (view->foreign) {
		let_go_of_foreign(view);
		return;
	}
	if (view->pid != getpid()) {
		let_go_of_copy(view);
		return;
	}
	gmem_rwlock_lock(&view->file->invalidate_lock);
	/* While it is in the list, which says whether there are later ones at its address. */
	gmem_view_unmap_pieces(view, view->off, view->len);
	at = &view->file->views;
	while (*at != view)
		at = &(*at)->next;
	*at = view->next;
	gmem_peer_withdraw(view);
	gmem_rwlock_unlock(&view->file->invalidate_lock);
	forget(view);
	gmem_file_put(view->file);
	free(view);
}

void *gmem_view_addr(const struct gmem_view *view)
{
	return view->addr;
}

uint64_t gmem_view_len(const struct gmem_view *view)
{
	return view->len;
}
