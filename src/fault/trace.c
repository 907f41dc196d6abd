/* SPDX-License-Identifier: MIT */
#include "fault/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/err.h"
#include "base/range.h"

#define RING_SHIFT 15
#define RING (1u << RING_SHIFT)
#define PERIOD_NS 5000000u /* the ring takes what comes meanwhile, at six million faults a second */
#define FLUSH_ENTRIES 256u
#define FLUSH_NS 100000000u

/*
 * One place of the ring. `turn` is 2 * lap while it is free for that lap, 2 * lap + 1 once it is full: whoever has
 * moved `head` over it owns it in between.
 */
struct slot {
	_Atomic uint64_t turn;
	uint64_t ns;
	uint64_t page; /* in the source */
	uint16_t region, before, after, window;
};

/* The same, out of the ring. */
struct touch {
	uint64_t ns, page;
	uint16_t region, before, after, window;
};

struct target {
	struct gmem_workset *record, *measure;
	uint16_t record_part, measure_part;
};

struct gmem_tracer {
	struct gmem_pager *pager;
	struct slot *ring;
	_Atomic uint64_t head;
	_Atomic uint64_t dropped;
	_Atomic uint32_t active; /* targets that are set */

	pthread_mutex_t m; /* guards what follows, and the taking out of the ring */
	pthread_cond_t wake;
	uint64_t tail;
	struct touch *held; /* out of the ring, not handed on yet; RING of them */
	uint32_t nheld;
	bool stop;
	struct target targets[GMEM_PAGER_MAX_REGIONS];
	pthread_t thread;
};

void gmem_trace_push(struct gmem_tracer *t, const struct gmem_pager_region *region, uint64_t off,
		     const struct gmem_touched *touched, uint64_t ns)
{
	uint64_t at = atomic_load_explicit(&t->head, memory_order_relaxed);
	struct slot *slot;

	if (!atomic_load_explicit(&t->active, memory_order_relaxed))
		return;
	for (;;) {
		uint64_t free_turn = 2 * (at >> RING_SHIFT), turn;

		slot = &t->ring[at % RING];
		/* Pairs with the release of who took it out a lap ago. */
		turn = atomic_load_explicit(&slot->turn, memory_order_acquire);
		if (turn < free_turn) {
			atomic_fetch_add_explicit(&t->dropped, 1, memory_order_relaxed);
			return;
		}
		if (turn > free_turn)
			at = atomic_load_explicit(&t->head, memory_order_relaxed);
		else if (atomic_compare_exchange_weak_explicit(&t->head, &at, at + 1, memory_order_relaxed,
							       memory_order_relaxed))
			break;
	}
	slot->ns = ns;
	slot->page = (region->source_off + (off - region->off)) >> GMEM_PAGE_SHIFT;
	slot->region = (uint16_t)region->number;
	slot->before = (uint16_t)((off - touched->from) >> GMEM_PAGE_SHIFT);
	slot->after = (uint16_t)((touched->to - off) >> GMEM_PAGE_SHIFT);
	slot->window = (uint16_t)(touched->window < slot->after ? touched->window : slot->after);
	/* Pairs with the acquire in take(). */
	atomic_store_explicit(&slot->turn, 2 * (at >> RING_SHIFT) + 1, memory_order_release);
}

/* ---- out of the ring; m held for all of these */

static bool take(struct gmem_tracer *t, struct touch *ret)
{
	struct slot *slot = &t->ring[t->tail % RING];
	uint64_t lap = t->tail >> RING_SHIFT;

	if (atomic_load_explicit(&slot->turn, memory_order_acquire) != 2 * lap + 1)
		return false;
	*ret = (struct touch){ slot->ns, slot->page, slot->region, slot->before, slot->after, slot->window };
	/* Pairs with the acquire of who fills it next. */
	atomic_store_explicit(&slot->turn, 2 * (lap + 1), memory_order_release);
	t->tail++;
	return true;
}

static void hand_on(struct gmem_tracer *t, const struct touch *touch)
{
	const struct target *target = &t->targets[touch->region];
	struct gmem_workset *ws = target->record;

	if (ws) {
		pthread_mutex_lock(&ws->m);
		gmem_workset_touch(ws, target->record_part, touch->page - touch->before,
				   (uint64_t)touch->before + touch->after,
				   touch->ns > ws->began_ns ? touch->ns - ws->began_ns : 0, 1);
		pthread_mutex_unlock(&ws->m);
	}
	ws = target->measure;
	if (ws) {
		pthread_mutex_lock(&ws->m);
		gmem_measure_touch(ws, target->measure_part, touch->page, touch->window ? touch->window : 1, touch->ns);
		pthread_mutex_unlock(&ws->m);
	}
}

static int by_time(const void *a, const void *b)
{
	const struct touch *x = a, *y = b;

	return x->ns < y->ns ? -1 : x->ns > y->ns;
}

/*
 * Touches come as they were served, and who has served one and wakes its toucher may lose the processor to it before
 * it tells: so they are held for a period, and handed on in the order in which their faults were read. `all`: no more
 * come.
 */
static void hand_on_held(struct gmem_tracer *t, bool all)
{
	uint64_t now = gmem_now_ns();
	uint32_t n = 0;

	qsort(t->held, t->nheld, sizeof(*t->held), by_time);
	while (n < t->nheld && (all || t->nheld - n > RING / 2 || now - t->held[n].ns > PERIOD_NS))
		hand_on(t, &t->held[n++]);
	memmove(t->held, t->held + n, (t->nheld - n) * sizeof(*t->held));
	t->nheld -= n;
}

static void count_dropped(struct gmem_tracer *t)
{
	uint64_t dropped = atomic_exchange(&t->dropped, 0);
	struct gmem_workset *last = NULL;

	for (uint32_t i = 0; dropped && i < GMEM_PAGER_MAX_REGIONS; i++) {
		struct gmem_workset *ws = t->targets[i].record;

		if (!ws || ws == last)
			continue;
		pthread_mutex_lock(&ws->m);
		ws->h.lost += dropped;
		pthread_mutex_unlock(&ws->m);
		last = ws;
	}
}

static void drain(struct gmem_tracer *t, bool all)
{
	do {
		while (t->nheld < RING && take(t, &t->held[t->nheld]))
			t->nheld++;
		hand_on_held(t, all);
	} while (all && t->nheld);
	count_dropped(t);
}

static void flush_due(struct gmem_tracer *t)
{
	uint64_t now = gmem_now_ns();

	for (uint32_t i = 0; i < GMEM_PAGER_MAX_REGIONS; i++) {
		struct gmem_workset *ws = t->targets[i].record;

		if (!ws)
			continue;
		pthread_mutex_lock(&ws->m);
		if (ws->n - ws->flushed >= FLUSH_ENTRIES ||
		    (ws->n > ws->flushed && now - ws->began_ns > ws->oldest_ns + FLUSH_NS))
			gmem_workset_flush(ws);
		pthread_mutex_unlock(&ws->m);
	}
}

static void *tracer_main(void *arg)
{
	struct gmem_tracer *t = arg;

	pthread_mutex_lock(&t->m);
	while (!t->stop) {
		if (atomic_load(&t->active))
			gmem_cond_wait_for(&t->wake, &t->m, PERIOD_NS);
		else
			pthread_cond_wait(&t->wake, &t->m);
		drain(t, false);
		flush_due(t);
	}
	pthread_mutex_unlock(&t->m);
	return NULL;
}

/* ---- the tracer of a pager: made when it is first needed, and there until the pager goes */

static void destroy(struct gmem_tracer *t)
{
	pthread_cond_destroy(&t->wake);
	pthread_mutex_destroy(&t->m);
	free(t->ring);
	free(t->held);
	free(t);
}

static int make(struct gmem_pager *pager, struct gmem_tracer **ret)
{
	struct gmem_tracer *t = calloc(1, sizeof(*t));
	int err;

	if (!t)
		return -ENOMEM;
	t->pager = pager;
	pthread_mutex_init(&t->m, NULL);
	gmem_cond_init(&t->wake);
	t->ring = calloc(RING, sizeof(*t->ring));
	t->held = calloc(RING, sizeof(*t->held));
	if (!t->ring || !t->held) {
		destroy(t);
		return -ENOMEM;
	}
	err = pthread_create(&t->thread, NULL, tracer_main, t);
	if (err) {
		destroy(t);
		return -err;
	}
	*ret = t;
	return 0;
}

static int tracer_of(struct gmem_pager *pager, struct gmem_tracer **ret)
{
	int err = 0;

	pthread_mutex_lock(&pager->m);
	*ret = atomic_load(&pager->tracer);
	if (!*ret)
		err = make(pager, ret);
	if (!err)
		atomic_store_explicit(&pager->tracer, *ret, memory_order_release);
	pthread_mutex_unlock(&pager->m);
	return err;
}

/* ---- beginning and ending */

int gmem_trace_measure(struct gmem_pager *pager, struct gmem_workset *ws, const struct gmem_parts *parts)
{
	struct gmem_tracer *t;
	int err = tracer_of(pager, &t);

	if (err)
		return err;
	pthread_mutex_lock(&t->m);
	for (uint32_t i = 0; i < parts->nregions && !err; i++)
		if (t->targets[parts->regions[i]->number].measure)
			err = -EBUSY;
	for (uint32_t i = 0; i < parts->nregions && !err; i++) {
		struct target *target = &t->targets[parts->regions[i]->number];

		target->measure = ws;
		target->measure_part = parts->part[i];
		atomic_fetch_add(&t->active, 1);
	}
	if (!err) {
		ws->measurer = t;
		pthread_cond_signal(&t->wake);
	}
	pthread_mutex_unlock(&t->m);
	return err;
}

static int record(struct gmem_tracer *t, struct gmem_workset *ws, const struct gmem_parts *parts)
{
	int err;

	for (uint32_t i = 0; i < parts->nregions; i++)
		if (t->targets[parts->regions[i]->number].record)
			return gmem_err(-EBUSY, "gmem_pager_record: region %u is being recorded",
					parts->regions[i]->number);
	pthread_mutex_lock(&ws->m);
	err = gmem_workset_set_parts(ws, parts->len, parts->n);
	if (err)
		err = gmem_err_sys(err, "gmem_pager_record");
	else if (ws->fd >= 0)
		err = gmem_workset_write_header(ws, GMEM_WORKSET_OPEN);
	ws->began_ns = gmem_now_ns();
	if (!err)
		ws->recorder = t;
	pthread_mutex_unlock(&ws->m);
	for (uint32_t i = 0; i < parts->nregions && !err; i++) {
		struct target *target = &t->targets[parts->regions[i]->number];

		target->record = ws;
		target->record_part = parts->part[i];
		atomic_fetch_add(&t->active, 1);
	}
	return err;
}

int gmem_pager_record(struct gmem_pager *pager, struct gmem_workset *ws, const unsigned int *regions, size_t nregions)
{
	struct gmem_parts parts;
	struct gmem_tracer *t;
	int err;

	if (ws->recorder)
		return gmem_err(-EBUSY, "gmem_pager_record: %s: it is being recorded into", ws->name);
	if (ws->n || ws->by_hand || ws->h.parts)
		return gmem_err(-EINVAL, "gmem_pager_record: %s: it is not empty", ws->name);
	err = gmem_parts_init(&parts, "gmem_pager_record", pager, regions, nregions);
	if (err)
		return err;
	err = tracer_of(pager, &t);
	if (err) {
		err = gmem_err_sys(err, "gmem_pager_record");
	} else {
		pthread_mutex_lock(&t->m);
		err = record(t, ws, &parts);
		pthread_cond_signal(&t->wake);
		pthread_mutex_unlock(&t->m);
	}
	gmem_parts_destroy(&parts);
	return err;
}

/* m held. */
static void end_recording(struct gmem_tracer *t, struct gmem_workset *ws)
{
	for (uint32_t i = 0; i < GMEM_PAGER_MAX_REGIONS; i++) {
		if (t->targets[i].record != ws)
			continue;
		t->targets[i].record = NULL;
		atomic_fetch_sub(&t->active, 1);
	}
	pthread_mutex_lock(&ws->m);
	gmem_workset_flush(ws);
	if (ws->fd >= 0) {
		int err = ws->write_error ? ws->write_error : gmem_workset_write_header(ws, ws->n);

		if (!err && fdatasync(ws->fd))
			err = -errno;
		ws->write_error = err;
	}
	ws->recorder = NULL;
	pthread_mutex_unlock(&ws->m);
}

static void end_measuring(struct gmem_tracer *t, struct gmem_workset *ws)
{
	for (uint32_t i = 0; i < GMEM_PAGER_MAX_REGIONS; i++) {
		if (t->targets[i].measure != ws)
			continue;
		t->targets[i].measure = NULL;
		atomic_fetch_sub(&t->active, 1);
	}
	pthread_mutex_lock(&ws->m);
	gmem_measure_sum(ws);
	ws->measurer = NULL;
	pthread_mutex_unlock(&ws->m);
}

/* Faults are told after their touchers have gone on: those that were served have been told when none is pending. */
static void wait_for_faults(struct gmem_pager *pager)
{
	for (int i = 0; i < 2000 && atomic_load(&pager->pending); i++)
		nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
}

int gmem_workset_stop(struct gmem_workset *ws)
{
	struct gmem_tracer *t = ws->recorder ? ws->recorder : ws->measurer;

	if (!t)
		return 0;
	wait_for_faults(t->pager);
	if (ws->recorder) {
		pthread_mutex_lock(&t->m);
		drain(t, true);
		end_recording(t, ws);
		pthread_mutex_unlock(&t->m);
	}
	t = ws->measurer;
	if (t) {
		pthread_mutex_lock(&t->m);
		drain(t, true);
		end_measuring(t, ws);
		pthread_mutex_unlock(&t->m);
	}
	return ws->write_error ? gmem_err_sys(ws->write_error, "%s", ws->name) : 0;
}

void gmem_trace_end(struct gmem_pager *pager)
{
	struct gmem_tracer *t = atomic_load(&pager->tracer);

	if (!t)
		return;
	pthread_mutex_lock(&t->m);
	t->stop = true;
	pthread_cond_signal(&t->wake);
	pthread_mutex_unlock(&t->m);
	pthread_join(t->thread, NULL);
	pthread_mutex_lock(&t->m);
	drain(t, true);
	for (uint32_t i = 0; i < GMEM_PAGER_MAX_REGIONS; i++) {
		if (t->targets[i].record)
			end_recording(t, t->targets[i].record);
		if (t->targets[i].measure)
			end_measuring(t, t->targets[i].measure);
	}
	pthread_mutex_unlock(&t->m);
	atomic_store(&pager->tracer, NULL);
	destroy(t);
}
