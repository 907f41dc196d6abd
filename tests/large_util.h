/* SPDX-License-Identifier: MIT */
/* Memory that the kernel is told to make large pages of. Included after tap.h. */
#ifndef GMEM_TESTS_LARGE_UTIL_H
#define GMEM_TESTS_LARGE_UTIL_H

#include "convert_util.h"

#define LARGE (2ull << 20)
#define LARGE_PAGES (LARGE / P)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* A view of two large pages, at an address at which they could be mapped as such. */
static inline struct gmem_view *aligned_view(struct gmem_file *file)
{
	struct gmem_view *view = view_of(file, 0, 2 * LARGE_PAGES, PROT_READ | PROT_WRITE);

	for (int tries = 0; (uintptr_t)gmem_view_addr(view) % LARGE; tries++) {
		size_t over = (uintptr_t)gmem_view_addr(view) % LARGE;

		if (tries == 20)
			SKIP("thp", "no aligned address for a view");
		gmem_view_unmap(view);
		/* Mappings grow downwards: the next one comes to lie below this. */
		CHECK(mmap(NULL, over, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
		view = view_of(file, 0, 2 * LARGE_PAGES, PROT_READ | PROT_WRITE);
	}
	return view;
}

/* By way of a mapping that is not the view. */
static inline void collapse(struct gmem_file *file)
{
	for (int tries = 0; madvise(gmem_file_window(file), 2 * LARGE, MADV_COLLAPSE); tries++) {
		/* EBUSY, EAGAIN: a page is in somebody's hands for a moment. */
		if (tries == 20)
			SKIP("thp", "MADV_COLLAPSE of a memory file: %s", strerror(errno));
		usleep(1000);
	}
}

#endif
