/* SPDX-License-Identifier: MIT */
/* What a pager serves: ranges of processes' address spaces, each with its file, its source and its descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/pager.h"
#include "file/anon.h"
#include "sys/uffd.h"

static int check_region(const struct gmem_region *region)
{
	int err;

	if (!gmem_opts_valid(region, region->size, sizeof(*region)))
		return gmem_err(-EINVAL, "gmem_pager_add_region: size %zu: expected %zu", region->size,
				sizeof(*region));
	if (!region->file || !region->source || region->uffd < 0)
		return gmem_err(-EINVAL, "gmem_pager_add_region: file, source and uffd are needed");
	if (!gmem_page_aligned(region->hva) || !gmem_page_aligned(region->source_off) ||
	    region->hva + region->len < region->hva || region->source_off + region->len < region->source_off)
		return gmem_err(-EINVAL, "gmem_pager_add_region: hva 0x%llx, source_off 0x%llx: not aligned, or wraps",
				(unsigned long long)region->hva, (unsigned long long)region->source_off);
	err = gmem_file_check_range(region->file, "gmem_pager_add_region", region->off, region->len);
	if (!err)
		err = gmem_file_check_units(region->file, "gmem_pager_add_region", region->off, region->len);
	if (!err && (region->hva & (region->file->page_size - 1)))
		err = gmem_err(-EINVAL, "gmem_pager_add_region: hva 0x%llx: not a multiple of the file's pages of %llu",
			       (unsigned long long)region->hva, (unsigned long long)region->file->page_size);
	return err;
}

/*
 * Is it the descriptor of that region? A number says nothing once the caller has closed it, and every userfault
 * descriptor has an inode of its own; on kernels where they share the anonymous one the number must do, so it must
 * stay open as long as its regions are added to.
 */
static bool same_uffd(const struct gmem_pager_region *old, const struct gmem_pager_region *new,
		      const struct stat *shared)
{
	if (old->uffd_dev != new->uffd_dev || old->uffd_ino != new->uffd_ino)
		return false;
	return shared->st_dev != new->uffd_dev || shared->st_ino != new->uffd_ino ||
	       old->caller_uffd == new->caller_uffd;
}

static bool inside(const struct gmem_pager_region *a, const struct gmem_pager_region *b)
{
	return a->hva >= b->hva && a->hva + a->len <= b->hva + b->len;
}

/* Mapped a second time in part, as it was: either serves it. */
static bool same_bytes(const struct gmem_pager_region *a, const struct gmem_pager_region *b)
{
	return a->file == b->file && a->source == b->source && a->off - a->hva == b->off - b->hva &&
	       a->source_off - a->hva == b->source_off - b->hva;
}

static bool overlaps(const struct gmem_pager_region *a, const struct gmem_pager_region *b)
{
	return gmem_range_overlaps(a->hva, a->len, b->hva, b->len);
}

/*
 * Does a region go beside those of its descriptor that are there? Caller holds pager->m; `n` of them, those that come
 * with this one included.
 */
static int check_beside(struct gmem_pager *pager, uint32_t n, const struct gmem_pager_region *new)
{
	for (uint32_t i = 0; i < n; i++) {
		const struct gmem_pager_region *old = pager->regions[i];

		if (old->uffd != new->uffd)
			continue;
		if (!atomic_load(&old->gone) && overlaps(old, new) && !inside(old, new) && !same_bytes(old, new))
			return gmem_err(-EEXIST, "gmem_pager_add_region: hva 0x%llx: overlaps region %u",
					(unsigned long long)new->hva, i);
		/* The messages of one descriptor are journaled in one place. */
		if ((gmem_file_anon(old->file) || gmem_file_anon(new->file)) && old->file != new->file)
			return gmem_err(-EINVAL, "gmem_pager_add_region: one descriptor for two files, of which one is "
						 "another process's memory");
	}
	return 0;
}

/* Our copy of the descriptor, shared by its regions. Caller holds pager->m. *ret_known: it was there already. */
static int dup_uffd(struct gmem_pager *pager, struct gmem_pager_region *new, bool *ret_known)
{
	uint32_t n = atomic_load(&pager->nregions);
	struct stat st, shared;
	int fd;

	if (fstat(new->caller_uffd, &st) || fstat(pager->epoll, &shared))
		return gmem_err_sys(-errno, "gmem_pager_add_region: uffd %d", new->caller_uffd);
	new->uffd_dev = st.st_dev;
	new->uffd_ino = st.st_ino;
	for (uint32_t i = 0; i < n; i++) {
		if (!same_uffd(pager->regions[i], new, &shared))
			continue;
		*ret_known = true;
		return pager->regions[i]->uffd;
	}
	fd = fcntl(new->caller_uffd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return gmem_err_sys(-errno, "gmem_pager_add_region: uffd %d", new->caller_uffd);
	/* A descriptor that blocks is never ready to poll(2), and would hold the reader up. */
	if (fcntl(fd, F_SETFL, O_NONBLOCK)) {
		int err = gmem_err_sys(-errno, "gmem_pager_add_region: uffd %d", new->caller_uffd);

		close(fd);
		return err;
	}
	*ret_known = false;
	return fd;
}

void gmem_region_free(struct gmem_pager_region *region)
{
	if (!region)
		return;
	if (region->pidfd >= 0)
		close(region->pidfd);
	gmem_source_unref(region->source);
	if (region->file)
		gmem_file_put(region->file);
	free(region->supply);
	free(region);
}

static int new_region(struct gmem_pager *pager, const struct gmem_region *region, struct gmem_view *view,
		      struct gmem_pager_region **ret)
{
	struct gmem_pager_region *new;
	int err = check_region(region);

	if (err)
		return err;
	if (!region->file->ops->can_userfault(region->file, region->off, region->len))
		return gmem_err(-EINVAL, "gmem_pager_add_region: this file takes no userfaults");
	new = calloc(1, sizeof(*new));
	if (!new)
		return gmem_err_sys(-ENOMEM, "gmem_pager_add_region");
	*new = (struct gmem_pager_region){
		.pager = pager,
		.supply = calloc(1, sizeof(*new->supply)),
		.view = view,
		.hva = region->hva,
		.off = region->off,
		.len = region->len,
		.source_off = region->source_off,
		.caller_uffd = region->uffd,
		.uffd = -1,
		.pidfd = -1,
	};
	gmem_file_get(region->file);
	new->file = region->file;
	new->source = gmem_source_ref(region->source);
	err = new->supply ? 0 : gmem_err_sys(-ENOMEM, "gmem_pager_add_region");
	if (!err && region->pidfd > 0) {
		new->pidfd = fcntl(region->pidfd, F_DUPFD_CLOEXEC, 0);
		if (new->pidfd < 0)
			err = gmem_err_sys(-errno, "gmem_pager_add_region: pidfd %d", region->pidfd);
	}
	if (err) {
		gmem_region_free(new);
		return err;
	}
	*new->supply = (struct gmem_supply){
		.off = region->off,
		.len = region->len,
		.bring_in = gmem_pager_bring_in,
		.opaque = new,
	};
	*ret = new;
	return 0;
}

/* What a server that was killed had read and may not have applied. */
static void replay_journal(struct gmem_pager_region *region)
{
	const struct uffd_msg *msgs = (const struct uffd_msg *)region->file->state.header->journal;

	for (size_t i = 0; gmem_file_anon(region->file) && i < GMEM_STATE_JOURNAL_LEN / sizeof(*msgs); i++)
		if (msgs[i].event == UFFD_EVENT_REMOVE)
			gmem_region_removed(region, msgs[i].arg.remove.start, msgs[i].arg.remove.end);
}

/*
 * The regions are known before the descriptor is read: a removal that was read and met no region would be lost. Caller
 * holds pager->m.
 */
static int enlist(struct gmem_pager *pager, struct gmem_pager_region **new, uint32_t n, bool known)
{
	uint32_t first = atomic_load(&pager->nregions);
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = new[0]->uffd };

	/* An address has one mapping: what was there before is not any more. */
	for (uint32_t i = 0; i < first; i++)
		for (uint32_t k = 0; k < n; k++)
			if (pager->regions[i]->uffd == new[k]->uffd && inside(pager->regions[i], new[k]))
				atomic_store(&pager->regions[i]->gone, true);
	for (uint32_t k = 0; k < n; k++)
		replay_journal(new[k]);
	/* Pairs with the acquire in the reader's find(). */
	atomic_store_explicit(&pager->nregions, first + n, memory_order_release);
	if (known || !epoll_ctl(pager->epoll, EPOLL_CTL_ADD, new[0]->uffd, &ev))
		return 0;
	atomic_store(&pager->nregions, first);
	return gmem_err_sys(-errno, "gmem_pager_add_region: epoll");
}

/* Caller holds pager->m. */
static int place(struct gmem_pager *pager, struct gmem_pager_region **new, uint32_t n)
{
	uint32_t first = atomic_load(&pager->nregions);
	bool known = false;
	int uffd, err = 0;

	if (first + n > GMEM_PAGER_MAX_REGIONS)
		return gmem_err(-ENOSPC, "gmem_pager_add_region: %u regions are the most", GMEM_PAGER_MAX_REGIONS);
	uffd = dup_uffd(pager, new[0], &known);
	if (uffd < 0)
		return uffd;
	for (uint32_t k = 0; k < n && !err; k++) {
		new[k]->uffd = uffd;
		new[k]->uffd_dev = new[0]->uffd_dev;
		new[k]->uffd_ino = new[0]->uffd_ino;
		new[k]->number = first + k;
		err = check_beside(pager, first + k, new[k]);
		pager->regions[first + k] = new[k];
	}
	if (!err)
		err = enlist(pager, new, n, known);
	if (err && !known)
		close(uffd);
	return err;
}

int gmem_pager_add(struct gmem_pager *pager, const struct gmem_region *regions, uint32_t n, struct gmem_view *view)
{
	struct gmem_pager_region **new;
	int err = 0;

	if (!n || n > GMEM_PAGER_MAX_REGIONS)
		return gmem_err(-EINVAL, "gmem_pager_add_regions: %u regions", n);
	new = calloc(n, sizeof(struct gmem_pager_region *));
	if (!new)
		return gmem_err_sys(-ENOMEM, "gmem_pager_add_region");
	for (uint32_t k = 0; k < n && !err; k++)
		err = regions[k].uffd == regions[0].uffd ?
			      new_region(pager, &regions[k], view, &new[k]) :
			      gmem_err(-EINVAL, "gmem_pager_add_regions: more than one descriptor");
	pthread_mutex_lock(&pager->m);
	if (!err)
		err = place(pager, new, n);
	pthread_mutex_unlock(&pager->m);
	for (uint32_t k = 0; k < n && err; k++)
		gmem_region_free(new[k]);
	for (uint32_t k = 0; k < n && !err; k++) {
		/* Only now that nothing can fail: guests may ask at once. */
		gmem_file_supply(new[k]->file, new[k]->supply);
		/*
		 * Faults read before the region was known, by us or by a server that died, are not told again unless
		 * their touchers wake.
		 */
		gmem_sys_uffd_wake(new[k]->uffd, new[k]->hva, new[k]->len);
	}
	if (!err)
		err = (int)new[0]->number;
	free(new);
	return err;
}

int gmem_pager_add_region(struct gmem_pager *pager, const struct gmem_region *region)
{
	return gmem_pager_add(pager, region, 1, NULL);
}

int gmem_pager_add_regions(struct gmem_pager *pager, const struct gmem_region *regions, unsigned int n)
{
	return gmem_pager_add(pager, regions, n, NULL);
}

/* ---- what the reader asks */

struct gmem_file *gmem_pager_anon(struct gmem_pager *pager, int uffd)
{
	uint32_t n = atomic_load_explicit(&pager->nregions, memory_order_acquire);

	for (uint32_t i = 0; i < n; i++)
		if (pager->regions[i]->uffd == uffd)
			return gmem_file_anon(pager->regions[i]->file) ? pager->regions[i]->file : NULL;
	return NULL;
}

void gmem_region_removed(struct gmem_pager_region *region, uint64_t start, uint64_t end)
{
	uint64_t from = gmem_max_u64(start, region->hva), to = gmem_min_u64(end, region->hva + region->len);

	for (uint64_t hva = from; hva < to; hva += GMEM_PAGE_SIZE)
		gmem_state_remove(&region->file->state, (region->off + hva - region->hva) >> GMEM_PAGE_SHIFT);
}
