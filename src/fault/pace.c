/* SPDX-License-Identifier: MIT */
#include "fault/pace.h"

#include <sched.h>
#include <time.h>

#include "base/clock.h"
#include "base/range.h"

/* A step that takes less is worth doubling, one that takes more is halved: a slow link is not held up for longer. */
#define STEP_MIN_NS 2000000u
#define STEP_MAX_NS 8000000u
#define STEP_PAGES 64u
/* A read that long is not interrupted where a fault wants the processor; so none is, of what is at hand. */
#define STEP_BUSY_PAGES 16u
#define AT_HAND_NS 1000u /* a page */
/* A slice: as long as it may keep a toucher waiting, where there are touchers; else so that it costs little. */
#define SLICE_BUSY_NS 12000u
#define SLICE_QUIET_NS 100000u
#define SLICE_PAGES 4u
#define YIELDS 50
#define QUIET_NS 20000000u /* without a fault, until it is quiet */

/* Lets others run, for a while if that was in vain several times. */
static void pause_for(int tries)
{
	const struct timespec pause = { .tv_nsec = 20000 };

	if (tries < YIELDS)
		sched_yield();
	else
		nanosleep(&pause, NULL);
}

/*
 * A toucher waits: let it have the processor, the source and the memory first. Not for ever, or one that cannot be
 * served stops the work behind.
 */
static void give_way(const struct gmem_pace *pace)
{
	const struct gmem_pager_counters *c = &pace->pager->c;
	uint64_t served = atomic_load_explicit(&c->latency_count, memory_order_relaxed);
	uint64_t pending = atomic_load_explicit(&pace->pager->pending, memory_order_relaxed);

	for (int i = 0; i < YIELDS + 100 && atomic_load_explicit(&pace->pager->pending, memory_order_relaxed); i++) {
		if (pace->replay && atomic_load_explicit(&c->latency_count, memory_order_relaxed) - served >= pending)
			return;
		pause_for(i);
	}
}

static bool quiet(struct gmem_pace *pace, uint64_t now)
{
	const struct gmem_pager_counters *c = &pace->pager->c;
	uint64_t faults = atomic_load_explicit(&c->missing, memory_order_relaxed) +
			  atomic_load_explicit(&c->minor, memory_order_relaxed);

	if (faults != pace->faults) {
		pace->faults = faults;
		pace->fault_ns = now;
	}
	return now - pace->fault_ns > QUIET_NS;
}

void gmem_pace_init(struct gmem_pace *pace, struct gmem_pager *pager, uint32_t most, bool replay)
{
	*pace = (struct gmem_pace){
		.pager = pager,
		.replay = replay,
		.pages = STEP_PAGES,
		.most = most,
		.page_ns = SLICE_BUSY_NS / SLICE_PAGES,
	};
}

uint64_t gmem_pace_step(struct gmem_pace *pace)
{
	bool busy;

	give_way(pace);
	pace->step_ns = gmem_now_ns();
	pace->in_slices_ns = 0;
	busy = !quiet(pace, pace->step_ns);
	return (uint64_t)(busy && pace->at_hand ? STEP_BUSY_PAGES : pace->pages) << GMEM_PAGE_SHIFT;
}

void gmem_pace_step_done(struct gmem_pace *pace, uint64_t npages)
{
	uint64_t ns = gmem_now_ns() - pace->step_ns;

	/* Without a slice there was nothing to read. */
	if (pace->in_slices_ns && npages)
		pace->at_hand = (ns - pace->in_slices_ns) / npages < AT_HAND_NS;
	if (ns > STEP_MAX_NS && pace->pages > STEP_PAGES)
		pace->pages /= 2;
	else if (ns < STEP_MIN_NS && npages >= pace->pages && pace->pages < pace->most)
		pace->pages *= 2;
}

uint64_t gmem_pace_slice(struct gmem_pace *pace)
{
	uint64_t ns, pages;

	give_way(pace);
	pace->slice_ns = gmem_now_ns();
	ns = quiet(pace, pace->slice_ns) ? SLICE_QUIET_NS : SLICE_BUSY_NS;
	pages = ns / (pace->page_ns ? pace->page_ns : 1);
	return gmem_max_u64(pages, SLICE_PAGES) << GMEM_PAGE_SHIFT;
}

void gmem_pace_slice_done(struct gmem_pace *pace, uint64_t npages)
{
	uint64_t ns = gmem_now_ns() - pace->slice_ns;

	pace->in_slices_ns += ns;
	ns /= npages ? npages : 1;
	/* One that was interrupted for long says little of the next. */
	pace->page_ns =
		(uint32_t)((7 * (uint64_t)pace->page_ns + gmem_min_u64(ns, 4 * (uint64_t)pace->page_ns + 100)) / 8);
}
