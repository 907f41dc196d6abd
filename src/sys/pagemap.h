/* SPDX-License-Identifier: MIT */
/*
 * Which pages have an entry in this process's page tables. Enters: a descriptor of /proc/self/pagemap, and addresses.
 * Leaves: runs of pages, in the order of their addresses. A walk owns nothing, and asks for no memory. What comes or
 * goes during a walk is told or not.
 */
#ifndef GMEM_SYS_PAGEMAP_H
#define GMEM_SYS_PAGEMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys/uapi.h"

#define GMEM_PAGEMAP_ENTRIES 512u
#define GMEM_PAGEMAP_REGIONS 64u

struct gmem_sys_run {
	uint64_t hva, end; /* half-open */
	bool present; /* else something stands in the entries: a marker, a page that is being moved */
};

struct gmem_sys_pagemap {
	int fd;
	bool entries; /* no PAGEMAP_SCAN here: they are read one by one */
	uint64_t at, end; /* what is not looked at yet */
	size_t pos, filled;
	union {
		struct gmem_page_region region[GMEM_PAGEMAP_REGIONS];
		uint64_t entry[GMEM_PAGEMAP_ENTRIES];
	};
};

/* -ENOENT (no /proc), -EACCES, -EMFILE. The caller closes it. */
int gmem_sys_pagemap_open(void);
/* Begins a walk over [hva, hva + len), which is whole pages. */
void gmem_sys_pagemap_begin(struct gmem_sys_pagemap *map, int fd, uint64_t hva, uint64_t len);
/* The next run of pages that have an entry; pages in a row may come as several. -ENOENT: none; other errors. */
int gmem_sys_pagemap_next(struct gmem_sys_pagemap *map, struct gmem_sys_run *ret);

#endif
