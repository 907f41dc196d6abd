/* SPDX-License-Identifier: MIT */
/*
 * Where a working set is to end: gmem-workset(5) has the formula, in the same names.
 *
 * If entries [0, k) are replayed and the background fill follows, an entry i < k costs its guest a fault where it was
 * wanted before it was in place; an entry i >= k where the fill, which begins when the k entries are in place, gets to
 * it too late. An entry that was never wanted costs no fault, but the time that those after it wait. Without a fill
 * what was brought in for nobody is work for nothing, and costs what it took.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/workset.h"

#define DEFAULT_FAULT_NS 20000u

struct cutting {
	const struct gmem_workset *ws;
	uint64_t fill_bytes_per_s, fault_ns;
	uint64_t part_base[GMEM_WORKSET_MAX_PARTS]; /* bytes the fill has to do before a part */
	uint64_t *ready; /* T(k): when the first k entries are in place. n + 1 of them */
	double *change; /* of the cost in ns, from k - 1 to k; n + 2 of them */
};

/* When the fill has an entry in place, counted from its beginning. */
static double fill_ns(const struct cutting *c, const struct gmem_workset_run *run)
{
	uint64_t bytes = c->part_base[run->part] + ((run->page + run->npages) << GMEM_PAGE_SHIFT);

	return (double)bytes * 1e9 / (double)c->fill_bytes_per_s;
}

/* The first k <= i with T(k) + fill > wanted, i + 1 if there is none: from there to i the fill comes too late. */
static uint64_t first_late(const struct cutting *c, uint64_t i, uint64_t wanted)
{
	double fill = c->fill_bytes_per_s ? fill_ns(c, &c->ws->runs[i]) : 0;
	uint64_t low = 0, high = i + 1;

	if (!c->fill_bytes_per_s)
		return 0;
	while (low < high) {
		uint64_t mid = low + (high - low) / 2;

		if ((double)c->ready[mid] + fill > (double)wanted)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

static void add_entry(struct cutting *c, uint64_t i)
{
	const struct gmem_workset_run *run = &c->ws->runs[i];
	uint64_t wanted = gmem_measure_wanted(c->ws, i), late;
	double cost = (double)run->touches * (double)c->fault_ns;

	if (wanted == GMEM_WORKSET_NEVER) {
		/* What a page took, in the mean. */
		if (!c->fill_bytes_per_s && c->ws->run->pages)
			c->change[i + 1] += run->npages * (double)c->ws->run->replay_ns / (double)c->ws->run->pages;
		return;
	}
	/* Not replayed, k in [late, i]; replayed, k > i. */
	late = first_late(c, i, wanted);
	if (late <= i) {
		c->change[late] += cost;
		c->change[i + 1] -= cost;
	}
	if (wanted < c->ws->run->in_place[i])
		c->change[i + 1] += cost;
}

static uint64_t in_ns(double cost)
{
	return cost < 1 ? 0 : cost > 1e18 ? (uint64_t)1e18 : (uint64_t)cost;
}

static void find_least(const struct cutting *c, struct gmem_workset_cut *cut)
{
	double cost = 0, least = 0;

	for (uint64_t k = 0; k <= c->ws->n; k++) {
		cost += c->change[k];
		if (k && cost >= least)
			continue;
		least = cost;
		cut->ret_keep = k;
	}
	cut->ret_cost_ns = in_ns(least);
	cut->ret_cost_whole_ns = in_ns(cost);
}

static int find(struct gmem_workset *ws, struct gmem_workset_cut *cut)
{
	struct cutting c = { .ws = ws, .fill_bytes_per_s = cut->fill_bytes_per_s };
	uint64_t base = 0;

	c.fault_ns = cut->fault_ns ? cut->fault_ns : DEFAULT_FAULT_NS;
	c.ready = calloc(ws->n + 1, sizeof(*c.ready));
	c.change = calloc(ws->n + 2, sizeof(*c.change));
	if (!c.ready || !c.change) {
		free(c.ready);
		free(c.change);
		return gmem_err_sys(-ENOMEM, "gmem_workset_cut");
	}
	for (uint32_t i = 0; i < ws->h.parts; i++) {
		c.part_base[i] = base;
		base += ws->h.part_len[i];
	}
	for (uint64_t i = 0; i < ws->n; i++) {
		uint64_t in_place = ws->run->in_place[i];

		/* Where it was stopped, what was not replayed is never in place: nothing is known beyond. */
		c.ready[i + 1] = gmem_max_u64(c.ready[i], in_place == GMEM_WORKSET_NEVER ? 0 : in_place);
	}
	for (uint64_t i = 0; i < ws->n; i++)
		add_entry(&c, i);
	find_least(&c, cut);
	free(c.ready);
	free(c.change);
	return 0;
}

/* What was measured is of the entries there were. */
static void keep(struct gmem_workset *ws, uint64_t n)
{
	gmem_measure_sum(ws);
	ws->h.cut_from = ws->n;
	ws->n = n;
	ws->flushed = n;
	gmem_replay_run_free(ws->run);
	ws->run = NULL;
}

int gmem_workset_cut(struct gmem_workset *ws, struct gmem_workset_cut *cut)
{
	int err;

	if (!gmem_opts_valid(cut, cut->size, sizeof(*cut)))
		return gmem_err(-EINVAL, "gmem_workset_cut: size %zu: expected %zu", cut->size, sizeof(*cut));
	if (cut->fault_ns > 1000000000u)
		return gmem_err(-EINVAL, "gmem_workset_cut: a fault of %llu ns: at most a second",
				(unsigned long long)cut->fault_ns);
	if (ws->measurer || ws->recorder)
		return gmem_err(-EBUSY, "gmem_workset_cut: %s: gmem_workset_stop() comes first", ws->name);
	if (!ws->run || !ws->run->done)
		return gmem_err(-ENODATA, "gmem_workset_cut: %s: no replay of it was measured", ws->name);
	pthread_mutex_lock(&ws->m);
	err = find(ws, cut);
	if (!err && !cut->dry && cut->ret_keep < ws->n)
		keep(ws, cut->ret_keep);
	pthread_mutex_unlock(&ws->m);
	return err;
}
