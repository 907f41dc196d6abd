/* SPDX-License-Identifier: MIT */
/*
 * Replay: the pages of a working set are brought in ahead of the guest.
 *
 * In the recorded order, but for batches, inside which neighbours come together: a batch is as much as takes a
 * millisecond or less, and the order within is worth nothing to the guest, where a read for each page would cost.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/pace.h"
#include "fault/trace.h"
#include "file/anon.h"
#include "source/source.h"

#define BATCH_LEN (2u << 20)
#define MAX_PIECES 1024u
#define NOT_NOW_MAX 16u /* so many times in a row the source said "not now": the next time it is asked is later */

struct piece {
	struct gmem_pager_region *region;
	uint64_t off, len; /* in the file */
};

struct batch {
	struct piece pieces[MAX_PIECES];
	uint32_t n;
	uint64_t len;
};

struct replay {
	struct gmem_workset *ws;
	struct gmem_parts parts;
	struct gmem_resolver r;
	struct gmem_pace pace;
	struct batch batch;
	uint64_t entry; /* the next that is not in the batch */
	uint64_t at; /* bytes of it that are */
	uint64_t total, done; /* bytes */
	uint32_t refused; /* by the source, in a row */
};

/* ---- a batch is gathered */

static void put(struct batch *b, struct gmem_pager_region *region, uint64_t off, uint64_t len)
{
	struct piece *last = b->n ? &b->pieces[b->n - 1] : NULL;

	b->len += len;
	if (last && last->region == region && last->off + last->len == off)
		last->len += len;
	else
		b->pieces[b->n++] = (struct piece){ region, off, len };
}

/* What is absent of [off, off + len) of a region's file; of huge pages, all of one. Returns where it stopped: full. */
static uint64_t put_absent(struct batch *b, struct gmem_pager_region *region, uint64_t off, uint64_t len)
{
	uint64_t end = off + len, unit = region->file->page_size, at = off;

	while (at < end && b->n < MAX_PIECES && b->len < BATCH_LEN) {
		uint64_t base = gmem_file_unit_off(region->file, at), next = base + unit;

		if (gmem_word_absent(gmem_state_word(&region->file->state, at >> GMEM_PAGE_SHIFT)))
			put(b, region, base, unit);
		else if (unit > GMEM_PAGE_SIZE)
			next = at + GMEM_PAGE_SIZE;
		at = next;
	}
	return gmem_min_u64(at, end);
}

/*
 * Bytes [from, from + len) of a part, where its regions have them. Returns how many from the first on were dealt with:
 * fewer than `len` where the batch is full.
 */
static uint64_t put_part(struct replay *re, uint16_t part, uint64_t from, uint64_t len)
{
	uint64_t done = len;

	for (uint32_t i = 0; i < re->parts.nregions; i++) {
		struct gmem_pager_region *region = re->parts.regions[i];
		uint64_t a = gmem_max_u64(from, region->source_off);
		uint64_t b = gmem_min_u64(from + len, region->source_off + region->len), stop;

		if (re->parts.part[i] != part || a >= b || atomic_load(&region->gone))
			continue;
		stop = put_absent(&re->batch, region, region->off + (a - region->source_off), b - a);
		stop = stop - region->off + region->source_off;
		if (stop < b)
			done = gmem_min_u64(done, stop - from);
	}
	return done;
}

/* Entries are the working set's own, which nobody changes while it is replayed. */
static void gather(struct replay *re)
{
	const struct gmem_workset *ws = re->ws;

	re->batch.n = 0;
	re->batch.len = 0;
	while (re->entry < ws->n && re->batch.n < MAX_PIECES && re->batch.len < BATCH_LEN) {
		const struct gmem_workset_run *run = &ws->runs[re->entry];
		uint64_t from = (run->page << GMEM_PAGE_SHIFT) + re->at;
		uint64_t len = ((uint64_t)run->npages << GMEM_PAGE_SHIFT) - re->at;
		uint64_t n = put_part(re, run->part, from, len);

		re->done += n;
		re->at += n;
		if (n < len)
			return;
		re->at = 0;
		re->entry++;
	}
}

static int by_place(const void *a, const void *b)
{
	const struct piece *x = a, *y = b;

	if (x->region != y->region)
		return x->region->number < y->region->number ? -1 : 1;
	return x->off < y->off ? -1 : x->off > y->off;
}

/* Sorts, and makes one of pieces that touch or overlap. */
static void join(struct batch *b)
{
	uint32_t n = 0;

	qsort(b->pieces, b->n, sizeof(b->pieces[0]), by_place);
	for (uint32_t i = 0; i < b->n; i++) {
		struct piece *p = &b->pieces[i], *last = n ? &b->pieces[n - 1] : NULL;

		if (last && last->region == p->region && p->off <= last->off + last->len)
			last->len = gmem_max_u64(last->off + last->len, p->off + p->len) - last->off;
		else
			b->pieces[n++] = *p;
	}
	b->n = n;
}

/* ---- and brought in */

/* What could not be brought in now is left to the faults and the fill. */
static void refused(struct replay *re)
{
	const struct timespec pause = { .tv_nsec = 10000000 };

	if (++re->refused >= NOT_NOW_MAX)
		nanosleep(&pause, NULL);
}

static void bring_in(struct replay *re, const struct piece *p)
{
	uint64_t at = p->off, end = p->off + p->len, unit = p->region->file->page_size;

	while (at < end && !atomic_load(&re->r.pager->stopping)) {
		uint64_t len = gmem_pace_step(&re->pace);
		int64_t n = gmem_resolve_fill(&re->r, p->region, at, gmem_min_u64(len, end - at));

		gmem_pace_step_done(&re->pace, n > 0 ? (uint64_t)n : 0);
		if (n > 0) {
			at += (uint64_t)n << GMEM_PAGE_SHIFT;
			re->refused = 0;
			continue;
		}
		if (n == -ESRCH)
			return;
		/* Somebody is at that page; or all that is asked for at once is refused. */
		if (n == -EBUSY || n == -EAGAIN) {
			at += unit;
			continue;
		}
		refused(re);
		return;
	}
}

/* A source that is far away is asked for all of it before the first is waited for. */
static void ask_ahead(const struct batch *b)
{
	for (uint32_t i = 0; i < b->n; i++) {
		const struct piece *p = &b->pieces[i];
		uint64_t off = p->region->source_off + (p->off - p->region->off);

		/* What fails here fails when it is read. */
		(void)gmem_source_prefetch(p->region->source, off, p->len, false);
	}
}

static void bring_in_batch(struct replay *re)
{
	ask_ahead(&re->batch);
	for (uint32_t i = 0; i < re->batch.n; i++)
		bring_in(re, &re->batch.pieces[i]);
}

static int replay_all(struct replay *re, gmem_progress_fn progress, void *opaque)
{
	struct gmem_workset *ws = re->ws;

	while (re->entry < ws->n) {
		uint64_t first = re->entry, now;
		int err;

		if (atomic_load(&re->r.pager->stopping))
			return gmem_err(-ECANCELED, "gmem_pager_replay: the pager is being freed");
		gather(re);
		join(&re->batch);
		bring_in_batch(re);
		now = gmem_now_ns();
		pthread_mutex_lock(&ws->m);
		for (uint64_t i = first; i < re->entry; i++)
			gmem_measure_in_place(ws, i, now);
		pthread_mutex_unlock(&ws->m);
		err = progress ? progress(opaque, re->done, re->total) : 0;
		if (err)
			return err;
	}
	return 0;
}

/* ---- the call */

static bool is_set(const uint8_t identity[GMEM_WORKSET_IDENTITY_LEN])
{
	for (uint32_t i = 0; i < GMEM_WORKSET_IDENTITY_LEN; i++)
		if (identity[i])
			return true;
	return false;
}

/* Is it of this snapshot? */
static int check(const struct gmem_workset *ws, const struct gmem_parts *parts, const struct gmem_replay_opts *opts)
{
	if (opts && is_set(opts->identity) && is_set(ws->h.identity) &&
	    memcmp(opts->identity, ws->h.identity, sizeof(opts->identity)))
		return gmem_err(-ESTALE, "%s: a working set of another snapshot", ws->name);
	if (!ws->by_hand && ws->h.parts != parts->n)
		return gmem_err(-ESTALE, "%s: a working set of %u parts, this memory has %u", ws->name, ws->h.parts,
				parts->n);
	for (uint32_t i = 0; i < parts->n && !ws->by_hand; i++)
		if (ws->h.part_len[i] != parts->len[i])
			return gmem_err(-ESTALE, "%s: part %u has 0x%llx bytes, that of this memory 0x%llx", ws->name,
					i, (unsigned long long)ws->h.part_len[i], (unsigned long long)parts->len[i]);
	return 0;
}

/* Bytes that are copied to where they are mapped have no other place to be put in. */
static bool can_observe(const struct gmem_parts *parts)
{
	for (uint32_t i = 0; i < parts->nregions; i++)
		if (gmem_file_anon(parts->regions[i]->file))
			return false;
	return true;
}

static int begin(struct replay *re, struct gmem_pager *pager, const struct gmem_replay_opts *opts)
{
	bool observe = opts && (opts->flags & GMEM_REPLAY_OBSERVE) && can_observe(&re->parts);
	struct gmem_workset *ws = re->ws;
	int err = check(ws, &re->parts, opts);

	if (err)
		return err;
	if (ws->measurer)
		(void)gmem_workset_stop(ws);
	err = gmem_resolver_init(&re->r, pager, GMEM_REPLAY_MAX_PAGES);
	if (err)
		return err;
	re->r.fill = true;
	re->r.replay = true;
	re->r.unmapped = observe;
	gmem_pace_init(&re->pace, pager, GMEM_REPLAY_MAX_PAGES, true);
	re->r.pace = &re->pace;
	pthread_mutex_lock(&ws->m);
	err = gmem_measure_begin(ws, observe);
	if (!err)
		ws->run->began_ns = gmem_now_ns();
	for (uint64_t i = 0; i < ws->n; i++)
		re->total += (uint64_t)ws->runs[i].npages << GMEM_PAGE_SHIFT;
	pthread_mutex_unlock(&ws->m);
	if (!err)
		err = gmem_trace_measure(pager, ws, &re->parts);
	if (err)
		gmem_resolver_destroy(&re->r);
	return err ? gmem_err_sys(err, "gmem_pager_replay") : 0;
}

static bool all_gone(const struct gmem_parts *parts)
{
	for (uint32_t i = 0; i < parts->nregions; i++)
		if (!atomic_load(&parts->regions[i]->gone))
			return false;
	return true;
}

static int64_t replay(struct replay *re, struct gmem_pager *pager, const struct gmem_replay_opts *opts,
		      gmem_progress_fn progress, void *opaque)
{
	uint64_t had = atomic_load(&pager->c.replay_pages), pages;
	struct gmem_workset *ws = re->ws;
	int err = begin(re, pager, opts);

	if (err)
		return err;
	err = replay_all(re, progress, opaque);
	gmem_resolver_destroy(&re->r);
	pages = atomic_load(&pager->c.replay_pages) - had;
	pthread_mutex_lock(&ws->m);
	ws->run->replay_ns = gmem_now_ns() - ws->run->began_ns;
	ws->run->pages = pages;
	ws->run->done = true;
	ws->h.runs++;
	pthread_mutex_unlock(&ws->m);
	if (!err && all_gone(&re->parts))
		err = gmem_err(-ESRCH, "gmem_pager_replay: the process whose memory it is has ended");
	return err ? err : (int64_t)pages;
}

static int check_call(const struct gmem_workset *ws, const struct gmem_replay_opts *opts)
{
	if (opts && !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_pager_replay: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (opts && (opts->flags & ~GMEM_REPLAY_OBSERVE))
		return gmem_err(-EINVAL, "gmem_pager_replay: flags 0x%x: unknown", opts->flags);
	if (ws->recorder)
		return gmem_err(-EBUSY, "gmem_pager_replay: %s: it is being recorded into", ws->name);
	return 0;
}

int64_t gmem_pager_replay(struct gmem_pager *pager, struct gmem_workset *ws, const struct gmem_replay_opts *opts,
			  gmem_progress_fn progress, void *opaque)
{
	struct replay *re;
	int64_t n = check_call(ws, opts);

	if (n)
		return n;
	re = calloc(1, sizeof(*re));
	if (!re)
		return gmem_err_sys(-ENOMEM, "gmem_pager_replay");
	re->ws = ws;
	n = gmem_parts_init(&re->parts, "gmem_pager_replay", pager, opts ? opts->regions : NULL,
			    opts ? opts->nregions : 0);
	if (n)
		goto out_free;
	if (atomic_exchange(&pager->replaying, true)) {
		n = gmem_err(-EBUSY, "gmem_pager_replay: another working set is being replayed");
		goto out_parts;
	}
	/* gmem_pager_free() waits for it. */
	atomic_fetch_add(&pager->fills, 1);
	n = replay(re, pager, opts, progress, opaque);
	atomic_store(&pager->replaying, false);
	atomic_fetch_sub(&pager->fills, 1);

out_parts:
	gmem_parts_destroy(&re->parts);
out_free:
	free(re);
	return n;
}
