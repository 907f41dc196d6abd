/* SPDX-License-Identifier: MIT */
#include "fault/pace.h"

#include <time.h>

#include "base/range.h"

#define STEP_NS 50000u
#define LEAST_PAGES 16u

/*
 * A toucher waits: let it have the processor, the source and the memory first. Not for ever, or one that cannot be
 * served stops the work behind.
 */
static void give_way(struct gmem_pager *pager)
{
	const struct timespec pause = { .tv_nsec = 20000 };

	for (int i = 0; i < 100 && atomic_load_explicit(&pager->pending, memory_order_relaxed); i++)
		nanosleep(&pause, NULL);
}

void gmem_pace_init(struct gmem_pace *pace, uint32_t most)
{
	*pace = (struct gmem_pace){ .pages = LEAST_PAGES, .most = most };
}

uint64_t gmem_pace_begin(struct gmem_pace *pace, struct gmem_pager *pager)
{
	give_way(pager);
	pace->begun_ns = gmem_now_ns();
	return (uint64_t)pace->pages << GMEM_PAGE_SHIFT;
}

/* One that was over at once had nothing to do, and says nothing. */
void gmem_pace_end(struct gmem_pace *pace, uint64_t npages)
{
	uint64_t ns = gmem_now_ns() - pace->begun_ns;

	if (ns > 2 * STEP_NS)
		pace->pages = pace->pages / 2 > LEAST_PAGES ? pace->pages / 2 : LEAST_PAGES;
	else if (ns < STEP_NS && ns > STEP_NS / 8 && npages >= pace->pages)
		pace->pages = 2 * pace->pages < pace->most ? 2 * pace->pages : pace->most;
}
