/* SPDX-License-Identifier: MIT */
/* Fault-around: touchers that go on in sequence are told apart, and get more with each fault. */
#include "fault/resolve.h"

uint32_t gmem_around_window(struct gmem_pager_region *region, uint64_t page, unsigned int *slot)
{
	for (unsigned int i = 0; i < GMEM_STREAMS; i++) {
		uint64_t s = atomic_load_explicit(&region->streams[i], memory_order_relaxed);

		if (s && s >> 8 == page) {
			uint32_t pages = 2u << (s & 0xff);

			*slot = i;
			return pages < GMEM_DEMAND_MAX_PAGES ? pages : GMEM_DEMAND_MAX_PAGES;
		}
	}
	*slot = atomic_fetch_add_explicit(&region->next_stream, 1, memory_order_relaxed) % GMEM_STREAMS;
	return 1;
}

void gmem_around_done(struct gmem_pager_region *region, unsigned int slot, uint64_t next_page, uint32_t window)
{
	uint64_t log2 = 31u - (unsigned int)__builtin_clz(window);

	atomic_store_explicit(&region->streams[slot], next_page << 8 | log2, memory_order_relaxed);
}
