/* SPDX-License-Identifier: MIT */
/*
 * A little memory of each kind that guests live in, to try things on.
 * Enters: a kind. Leaves: a mapping nobody has touched. Owned by the caller of gmem_scratch_map(); one thread, no lock.
 */
#ifndef GMEM_SYS_SCRATCH_H
#define GMEM_SYS_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

enum gmem_scratch_kind {
	GMEM_SCRATCH_ANON,
	GMEM_SCRATCH_SHMEM,
	GMEM_SCRATCH_HUGETLB,
	GMEM_SCRATCH_GMEM,
	GMEM_SCRATCH_KINDS
};

struct gmem_scratch {
	char *addr; /* NULL: nothing is mapped */
	size_t page, len; /* bytes of a page of this kind, and of the mapping: at least one page */
	int fd; /* the file behind it, or -1 */
	int vm; /* the VM a guest_memfd belongs to, or -1 */
};

/*
 * Maps `npages` pages, read-write. guest_memfd: with the flags MMAP and INIT_SHARED. Hugetlb: of the default size,
 * nothing reserved: it maps where no huge page is free, and must not be touched.
 * -errno of the step that failed. gmem_scratch_unmap() may be called either way.
 */
int gmem_scratch_map(struct gmem_scratch *scratch, enum gmem_scratch_kind kind, size_t npages);
void gmem_scratch_unmap(struct gmem_scratch *scratch);

/* Bytes of the default huge page, 0 where there is none. */
size_t gmem_scratch_huge_page(void);

#endif
