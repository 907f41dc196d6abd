/* SPDX-License-Identifier: MIT */
/*
 * Memory policy of huge pages. hugetlbfs keeps none by range of the file, as shared memory does: mbind(2) sets the
 * mapping's. So a page that is brought in by system call is brought in under the policy of a view that shows it.
 */
#include <linux/mempolicy.h>

#include "file/hugetlb.h"
#include "sys/call.h"
#include "sys/memfd.h"

#define MASK_BITS 1024ul /* at least what the kernel has, or it tells nothing */
#define MASK_WORDS (MASK_BITS / (8 * sizeof(unsigned long)))

struct policy {
	int mode;
	unsigned long mask[MASK_WORDS];
};

/* The first that is not the default of a view that shows the page. */
static bool find(const struct gmem_file *file, uint64_t off, struct policy *ret)
{
	if (!gmem_file_ours(file))
		return false;
	for (const struct gmem_view *view = file->views; view; view = view->next)
		if (off >= view->off && off - view->off < view->len &&
		    !gmem_sys_get_mempolicy(&ret->mode, ret->mask, MASK_BITS, gmem_view_at(view, off), MPOL_F_ADDR) &&
		    ret->mode != MPOL_DEFAULT)
			return true;
	return false;
}

/* One huge page, under the thread's policy if no view has one, or it cannot be set. */
static int allocate_unit(const struct gmem_file *file, uint64_t off)
{
	struct policy wanted = { 0 }, own = { 0 };
	bool set = find(file, off, &wanted) && !gmem_sys_get_mempolicy(&own.mode, own.mask, MASK_BITS, NULL, 0) &&
		   !gmem_sys_set_mempolicy(wanted.mode, wanted.mask, MASK_BITS);
	int err = gmem_memfd_allocate(file->fd, off, file->page_size);

	if (set)
		(void)gmem_sys_set_mempolicy(own.mode, own.mask, MASK_BITS);
	return err;
}

int gmem_hugetlb_allocate(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = 0;

	for (uint64_t at = gmem_file_unit_off(file, off); at < off + len && !err; at += file->page_size)
		err = allocate_unit(file, at);
	return err;
}
