/* SPDX-License-Identifier: MIT */
/* The last step of a userfault: pages that are in place become the toucher's, and one whose bytes are lost its end. */
#include <errno.h>

#include "base/range.h"
#include "fault/pager.h"
#include "sys/uffd.h"

int gmem_resolve_mark_poisoned(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off)
{
	uint64_t unit = region->file->page_size, done;
	uint64_t hva = region->hva + (gmem_file_unit_off(region->file, off) - region->off);
	int err = gmem_sys_uffd_poison(region->uffd, hva, unit, true, &done);

	switch (err) {
	case -EEXIST:
		/*
		 * Marked meanwhile; a toucher that came before the marker, and queued after its wake-up, still
		 * sleeps.
		 */
	case -ENOENT:
		/* Unmapped: its toucher meets what is there now. */
		gmem_sys_uffd_wake(region->uffd, hva, unit);
		return 0;
	case 0:
		return 0;
	case -ESRCH:
		return -ESRCH;
	case -EINVAL:
		/* No markers in this kernel: better a toucher that waits for ever than one that reads wrong bytes. */
		return 0;
	default:
		return -EAGAIN;
	}
}

/* Where the pages end that are on the side of the one at `off`. */
static uint64_t side_end(const struct gmem_pager_region *region, uint64_t off, uint64_t end)
{
	return gmem_state_side_end(&region->file->state, off >> GMEM_PAGE_SHIFT, end >> GMEM_PAGE_SHIFT)
	       << GMEM_PAGE_SHIFT;
}

int gmem_resolve_map(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, uint64_t len)
{
	uint64_t end = off + len, most = len, unit = region->file->page_size, backed = UINT64_MAX;

	while (off < end) {
		uint64_t hva = region->hva + (off - region->off), done, to = side_end(region, off, end);
		int err;

		if (gmem_file_private(region->file, off)) {
			gmem_sys_uffd_wake(region->uffd, hva, to - off);
			off = to;
			continue;
		}
		err = gmem_sys_uffd_continue(region->uffd, hva, gmem_min_u64(to - off, most), &done);

		off += done;
		switch (err) {
		case 0:
			break;
		case -EEXIST:
			/* Mapped meanwhile; a toucher that came before the mapping may still sleep. */
			gmem_pager_count(&r->pager->c.retries, 1);
			gmem_sys_uffd_wake(region->uffd, hva + done, unit);
			off += unit;
			break;
		case -EFAULT:
			/* In place, and no memory: zero, because it was known to be or because it was dropped since. */
			if (backed == off) /* punched again at once, or another file is mapped there by now */
				return -EAGAIN;
			backed = off;
			gmem_pager_count(&r->pager->c.zero_pages, 1);
			err = gmem_file_back(region->file, off, to - off);
			if (err)
				return err;
			break;
		case -EAGAIN:
			gmem_pager_count(&r->pager->c.retries, 1);
			if (done)
				break;
			return -EAGAIN;
		case -EIO: {
			/* The kernel lost the page to a memory error. */
			int marked;

			for (uint64_t at = off; at < off + unit; at += GMEM_PAGE_SIZE)
				gmem_state_fail(&region->file->state, at >> GMEM_PAGE_SHIFT);
			marked = gmem_resolve_mark_poisoned(r, region, off);
			if (marked)
				return marked;
			off += unit;
			break;
		}
		case -ENOENT:
			/*
			 * A border inside the run, where the program has split its mapping (mprotect, madvise): page
			 * by page. One page: it was unmapped, and its toucher must wake to meet what is there now.
			 */
			if (most > unit) {
				most = unit;
			} else {
				gmem_sys_uffd_wake(region->uffd, hva, unit);
				off += unit;
			}
			break;
		default:
			return err;
		}
	}
	return 0;
}
