/* SPDX-License-Identifier: MIT */
/*
 * What the server has said is zero, a bit a page, for spans of the export that were asked for as a whole when one of
 * their pages was first wanted. A hole that is not said to be zero is not: its bytes are read. An answer that does not
 * come costs one wait a while, and pages that are read although they are zero; nothing else.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/range.h"
#include "source/nbd.h"

#define SPAN_PAGES (GMEM_NBD_SPAN >> GMEM_PAGE_SHIFT)
/* Commands a span may take: a server that tells less at a time is not worth asking. */
#define MOST_COMMANDS 64u
/* Some servers take long to find out. A toucher waits for it no longer than this, and then nobody asks for a while. */
#define LONGEST_MS 2000u
#define FIRST_PAUSE_MS 10000u
#define LAST_PAUSE_MS 3600000u

struct span {
	uint64_t zero[SPAN_PAGES / 64];
};

struct gmem_nbd_status {
	uint64_t size;
	_Atomic uint64_t again_ns; /* an answer failed: none is asked for before then */
	_Atomic uint32_t pause_ms; /* twice as long each time that it did not come */
	size_t nspans;
	struct slot {
		struct span *_Atomic span; /* the store's release pairs with the load's acquire; never changes then */
		atomic_bool asking;
	} slots[];
};

int gmem_nbd_status_new(uint64_t size, struct gmem_nbd_status **ret)
{
	size_t n = (size_t)(size / GMEM_NBD_SPAN + 1);
	struct gmem_nbd_status *s = NULL;

	if (n <= (SIZE_MAX - sizeof(*s)) / sizeof(s->slots[0]))
		s = calloc(1, sizeof(*s) + n * sizeof(s->slots[0]));
	if (!s)
		return gmem_err(-ENOMEM, "NBD: no memory for an export of %llu bytes", (unsigned long long)size);
	s->size = size;
	s->nspans = n;
	*ret = s;
	return 0;
}

void gmem_nbd_status_free(struct gmem_nbd_status *status)
{
	if (!status)
		return;
	for (size_t i = 0; i < status->nspans; i++)
		free(atomic_load_explicit(&status->slots[i].span, memory_order_relaxed));
	free(status);
}

/* A reply being read: all before `at` is told, the last `run` bytes of it zero. */
struct reading {
	struct span *span;
	uint64_t from, at, end, run;
};

static void on_extent(void *opaque, uint64_t len, bool zero)
{
	struct reading *r = opaque;
	uint64_t first, last;

	/* The last extent of a reply may go on past what was asked for. */
	len = gmem_min_u64(len, r->end - r->at);
	first = r->at - r->run;
	r->at += len;
	r->run = zero ? r->run + len : 0;
	if (!zero)
		return;
	/* Pages that are zero from end to end, in one extent or several. Those before are set again. */
	last = (r->at - r->from) >> GMEM_PAGE_SHIFT;
	first = (first - r->from + GMEM_PAGE_SIZE - 1) >> GMEM_PAGE_SHIFT;
	for (uint64_t page = gmem_max_u64(first, (r->at - len - r->from) >> GMEM_PAGE_SHIFT); page < last; page++)
		r->span->zero[page / 64] |= UINT64_C(1) << page % 64;
}

/* Asks for all of a span. */
static int ask(struct gmem_nbd_pool *pool, struct reading *r)
{
	uint64_t until = gmem_now_ns() + gmem_min_u64(pool->timeout_ms, LONGEST_MS) * 1000000;
	struct gmem_nbd_conn *conn;
	bool lost = false;
	int err = gmem_nbd_borrow(pool, until, &conn);

	if (err < 0)
		return err;
	for (unsigned int i = 0; i < MOST_COMMANDS && r->at < r->end && err == 0; i++) {
		uint64_t was = r->at;

		err = gmem_nbd_block_status(conn, r->at, r->end - r->at, until, on_extent, r, &lost);
		if (err == 0 && r->at == was)
			err = gmem_err(-EREMOTEIO, "NBD: block status: an empty answer");
	}
	if (lost)
		gmem_nbd_give_up(pool, conn);
	else
		gmem_nbd_give_back(pool, conn);
	return err;
}

/* A server that is away, or fails, is as quick as ever when it is back. */
static void rest(struct gmem_nbd_status *status, int err)
{
	uint32_t pause = atomic_load_explicit(&status->pause_ms, memory_order_relaxed), next = 0;

	if (err == -ETIMEDOUT)
		next = pause ? (uint32_t)gmem_min_u64(pause * UINT64_C(2), LAST_PAUSE_MS) : FIRST_PAUSE_MS;
	atomic_store_explicit(&status->pause_ms, next, memory_order_relaxed);
	if (err < 0)
		atomic_store_explicit(&status->again_ns,
				      gmem_now_ns() + gmem_max_u64(next, FIRST_PAUSE_MS / 10) * 1000000,
				      memory_order_relaxed);
}

static struct span *load(struct gmem_nbd_status *status, struct gmem_nbd_pool *pool, uint64_t i)
{
	struct slot *slot = &status->slots[i];
	struct reading r = { .from = i * GMEM_NBD_SPAN };
	int err;

	/* Two that want the same do not wait for each other: the second reads what may be zero. */
	if (gmem_now_ns() < atomic_load_explicit(&status->again_ns, memory_order_relaxed) ||
	    atomic_exchange_explicit(&slot->asking, true, memory_order_acq_rel))
		return NULL;
	r.span = atomic_load_explicit(&slot->span, memory_order_acquire);
	if (!r.span) {
		r.at = r.from;
		r.end = gmem_min_u64(r.from + GMEM_NBD_SPAN, status->size);
		r.span = calloc(1, sizeof(*r.span));
		err = r.span ? ask(pool, &r) : -ENOMEM;
		rest(status, err);
		if (err < 0) {
			free(r.span);
			r.span = NULL;
		} else {
			atomic_store_explicit(&slot->span, r.span, memory_order_release);
		}
	}
	atomic_store_explicit(&slot->asking, false, memory_order_release);
	return r.span;
}

bool gmem_nbd_is_zero(struct gmem_nbd_status *status, struct gmem_nbd_pool *pool, uint64_t off, uint64_t len,
		      bool nowait)
{
	if (!gmem_range_inside(off, len, status->size))
		return false;
	for (uint64_t end = off + len; off < end; off += GMEM_PAGE_SIZE) {
		struct slot *slot = &status->slots[off / GMEM_NBD_SPAN];
		struct span *span = atomic_load_explicit(&slot->span, memory_order_acquire);
		uint64_t page = off % GMEM_NBD_SPAN >> GMEM_PAGE_SHIFT;

		if (!span && !nowait)
			span = load(status, pool, off / GMEM_NBD_SPAN);
		if (!span || !(span->zero[page / 64] & UINT64_C(1) << page % 64))
			return false;
	}
	return true;
}
