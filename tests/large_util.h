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

/*
 * A view of two large pages, at an address at which they could be mapped as such: mappings go where there is room, the
 * highest place first, so a hole of just that size in a large reserve is where it goes.
 */
static inline struct gmem_view *aligned_view(struct gmem_file *file)
{
	const size_t len = 2 * LARGE, room = 2 * len;

	for (int tries = 0; tries < 20; tries++) {
		char *reserve = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		char *at = (char *)(((uintptr_t)reserve + LARGE - 1) & ~(uintptr_t)(LARGE - 1));
		struct gmem_view *view;

		CHECK(reserve != MAP_FAILED);
		CHECK_EQ(munmap(at, len), 0);
		view = view_of(file, 0, 2 * LARGE_PAGES, PROT_READ | PROT_WRITE);
		/* Kept, so that the next attempt does not find a place that is not aligned there. */
		if ((uintptr_t)gmem_view_addr(view) % LARGE == 0)
			return view;
		gmem_view_unmap(view);
	}
	SKIP("thp", "no aligned address for a view");
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
