/* SPDX-License-Identifier: MIT */
/* What is seen of a replay: when each entry was in place, when it was wanted, and what was wanted and is in none. */
#include <errno.h>
#include <stdlib.h>

#include "base/range.h"
#include "fault/workset.h"

/* qsort(3) has no pointer for its caller. */
struct place {
	uint32_t part, entry;
	uint64_t page;
};

static int by_place(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->part != y->part)
		return x->part < y->part ? -1 : 1;
	return x->page < y->page ? -1 : x->page > y->page;
}

static int sort_entries(const struct gmem_workset *ws, uint32_t *ret)
{
	struct place *places = calloc(ws->n ? ws->n : 1, sizeof(*places));

	if (!places)
		return -ENOMEM;
	for (uint64_t i = 0; i < ws->n; i++)
		places[i] = (struct place){ ws->runs[i].part, (uint32_t)i, ws->runs[i].page };
	qsort(places, ws->n, sizeof(*places), by_place);
	for (uint64_t i = 0; i < ws->n; i++)
		ret[i] = places[i].entry;
	free(places);
	return 0;
}

int gmem_measure_begin(struct gmem_workset *ws, bool observed)
{
	struct gmem_replay_run *run = calloc(1, sizeof(*run));
	uint64_t room = ws->n ? ws->n : 1;
	int err = -ENOMEM;

	if (!run)
		return err;
	run->in_place = malloc(room * sizeof(*run->in_place));
	run->touched = malloc(room * sizeof(*run->touched));
	run->by_place = malloc(room * sizeof(*run->by_place));
	if (!run->in_place || !run->touched || !run->by_place)
		goto out_free;
	for (uint32_t i = 0; i < ws->h.parts; i++)
		if (gmem_pageset_init(&run->seen[i], ws->h.part_len[i] >> GMEM_PAGE_SHIFT))
			goto out_free;
	err = sort_entries(ws, run->by_place);
	if (err)
		goto out_free;
	for (uint64_t i = 0; i < ws->n; i++)
		run->in_place[i] = run->touched[i] = GMEM_WORKSET_NEVER;
	run->n = ws->n;
	run->observed = observed;
	gmem_replay_run_free(ws->run);
	ws->run = run;
	return 0;

out_free:
	gmem_replay_run_free(run);
	return err;
}

/* The first entry, in order of place, that ends after that page. */
static uint64_t first_after(const struct gmem_workset *ws, uint32_t part, uint64_t page)
{
	uint64_t low = 0, high = ws->run->n;

	while (low < high) {
		uint64_t mid = low + (high - low) / 2;
		const struct gmem_workset_run *r = &ws->runs[ws->run->by_place[mid]];

		if (r->part < part || (r->part == part && r->page + r->npages <= page))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Pages that are in no entry, each once. */
static void miss(struct gmem_replay_run *run, uint32_t part, uint64_t page, uint64_t end)
{
	uint64_t to;

	while (page < end) {
		uint64_t from = gmem_pageset_add(&run->seen[part], page, end, &to);

		run->missed += to - from;
		page = to;
	}
}

void gmem_measure_touch(struct gmem_workset *ws, uint32_t part, uint64_t page, uint64_t npages, uint64_t now_ns)
{
	struct gmem_replay_run *run = ws->run;
	uint64_t end = page + npages;

	if (!run || part >= ws->h.parts)
		return;
	for (uint64_t i = first_after(ws, part, page); page < end; i++) {
		uint32_t entry = i < run->n ? run->by_place[i] : 0;
		const struct gmem_workset_run *r = &ws->runs[entry];

		if (i >= run->n || r->part != part || r->page >= end) {
			miss(run, part, page, end);
			return;
		}
		if (r->page > page)
			miss(run, part, page, r->page);
		/* What came before the replay is not its business; nor is a second touch. */
		if (run->touched[entry] == GMEM_WORKSET_NEVER)
			run->touched[entry] = now_ns > run->began_ns ? now_ns - run->began_ns : 0;
		page = r->page + r->npages;
	}
}

void gmem_measure_in_place(struct gmem_workset *ws, uint64_t entry, uint64_t now_ns)
{
	if (ws->run->in_place[entry] == GMEM_WORKSET_NEVER)
		ws->run->in_place[entry] = now_ns - ws->run->began_ns;
}

uint64_t gmem_measure_wanted(const struct gmem_workset *ws, uint64_t entry)
{
	const struct gmem_replay_run *run = ws->run;

	if (run->touched[entry] != GMEM_WORKSET_NEVER || run->observed)
		return run->touched[entry];
	/* It was mapped, so its touch cannot be seen: as it was recorded, but no earlier than it would have been. */
	if (run->in_place[entry] == GMEM_WORKSET_NEVER)
		return GMEM_WORKSET_NEVER;
	return gmem_max_u64(ws->runs[entry].ns, run->in_place[entry]);
}

void gmem_measure_sum(struct gmem_workset *ws)
{
	const struct gmem_replay_run *run = ws->run;

	if (!run || !run->done)
		return;
	ws->h.hits = ws->h.late = ws->h.unused = 0;
	for (uint64_t i = 0; i < run->n; i++) {
		uint64_t wanted = gmem_measure_wanted(ws, i);

		if (wanted == GMEM_WORKSET_NEVER)
			ws->h.unused++;
		else if (run->in_place[i] <= wanted)
			ws->h.hits++;
		else
			ws->h.late++;
	}
	ws->h.missed = run->missed;
	ws->h.observed = run->observed;
	ws->h.replay_ns = run->replay_ns;
	ws->h.replayed_pages = run->pages;
}
