/* SPDX-License-Identifier: MIT */
/*
 * Pages that come while the guest still runs at the source. The bulk connection's thread alone writes to a store, and
 * stops for good when it hears STOPPED: from then on the same memory may be the guest's.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "link/migrate/incoming_impl.h"

#define PULL_SLOTS 48u

static int write_all(int fd, const uint8_t *bytes, size_t len, off_t off)
{
	while (len) {
		ssize_t n = pwrite(fd, bytes, len, off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		bytes += n;
		off += n;
		len -= (size_t)n;
	}
	return 0;
}

int gmem_store_read(const struct gmem_incoming_region *r, uint64_t off, void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(r->store_fd, (char *)buf + done, len - done, (off_t)(r->store_base + off + done));

		if (n < 0 && errno == EINTR)
			continue;
		/* A store that has become shorter: it is fetched again. */
		if (n <= 0)
			return gmem_err(-EAGAIN, "migration: the store of region \"%s\" cannot be read", r->r.name);
		done += (size_t)n;
	}
	return 0;
}

/* A run of equal bits of `mask` from page `i` on, below `n`: its length. */
static uint32_t run_of(uint64_t mask, uint32_t i, uint32_t n)
{
	uint32_t k = i + 1;

	while (k < n && (mask >> k & 1) == (mask >> i & 1))
		k++;
	return k - i;
}

static uint64_t run_mask(uint32_t i, uint32_t n)
{
	return gmem_wire_mask(n) << i;
}

/* The pages are no longer in the store, or it is known that they are still. Bits of `mask`. */
static uint64_t punch(const struct gmem_incoming_region *r, uint64_t chunk, uint64_t mask)
{
	uint64_t gone = 0;

	for (uint32_t i = 0, n; i < 64; i += n) {
		n = run_of(mask, i, 64);
		if (mask >> i & 1 &&
		    !fallocate(r->store_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       (off_t)(r->store_base + (chunk << GMEM_CHUNK_SHIFT) + ((uint64_t)i << GMEM_PAGE_SHIFT)),
			       (off_t)n << GMEM_PAGE_SHIFT))
			gone |= run_mask(i, n);
	}
	return gone;
}

void gmem_store_pages(struct gmem_incoming *in, const struct gmem_wire_pages *g)
{
	uint32_t first = (uint32_t)(g->off >> GMEM_PAGE_SHIFT) % GMEM_WIRE_MAX_PAGES;
	struct gmem_incoming_region *r = &in->regions[g->region];
	uint64_t chunk = g->off >> GMEM_CHUNK_SHIFT, stored = 0, failed = 0, zero = g->zero << first, stale, gone;
	struct gmem_chunk *c = &r->chunks[chunk];
	const uint8_t *bytes = g->bytes;

	if (r->store_fd < 0 || r->store_failed)
		return;
	for (uint32_t i = 0, n; i < g->npages; i += n) {
		n = run_of(g->zero, i, g->npages);
		if (g->zero >> i & 1)
			continue;
		if (write_all(r->store_fd, bytes, (size_t)n << GMEM_PAGE_SHIFT,
			      (off_t)(r->store_base + g->off + ((uint64_t)i << GMEM_PAGE_SHIFT))) < 0)
			failed |= run_mask(first + i, n);
		else
			stored |= run_mask(first + i, n);
		bytes += (size_t)n << GMEM_PAGE_SHIFT;
	}
	/* Only this thread changes these masks before STOPPED. */
	stale = (c->stale | c->stored) & zero;
	gone = stale ? punch(r, chunk, stale) : 0;
	pthread_mutex_lock(&in->m);
	c->stored = (c->stored | stored) & ~(zero | failed);
	c->stale = (c->stale & ~stored & ~gone) | failed | (stale & ~gone);
	c->zero = (c->zero | (zero & ~c->stale)) & ~(stored | failed);
	in->stats.stored_pages += (uint64_t)__builtin_popcountll(stored | zero);
	/* No room, as a rule. What is lacking is fetched later. */
	if (failed || (stale & ~gone))
		r->store_failed = true;
	pthread_mutex_unlock(&in->m);
}

/* With `m` held. */
static void drop_page(struct gmem_incoming *in, struct gmem_incoming_region *r, uint64_t page)
{
	struct gmem_chunk *c = &r->chunks[page / 64];
	uint64_t bit = UINT64_C(1) << page % 64;

	if (c->stored & bit)
		c->stale |= bit;
	c->stored &= ~bit;
	c->zero &= ~bit;
	in->dirtied = true;
}

int gmem_store_dirty(struct gmem_incoming *in, const struct gmem_wire_msg *msg)
{
	uint64_t page = msg->dirty.off >> GMEM_PAGE_SHIFT;
	struct gmem_incoming_region *r;
	int err = 0;

	pthread_mutex_lock(&in->m);
	r = &in->regions[msg->dirty.region];
	if (msg->dirty.region >= in->nregions ||
	    !gmem_range_inside(msg->dirty.off, msg->dirty.npages << GMEM_PAGE_SHIFT, r->r.len))
		err = gmem_err(-EPROTO, "migration: the source sent a bitmap of pages that there are not");
	for (uint64_t i = 0; !err && r->chunks && i < msg->dirty.npages; i++) {
		if (!msg->dirty.bitmap[i / 8])
			i |= 7;
		else if (msg->dirty.bitmap[i / 8] >> i % 8 & 1)
			drop_page(in, r, page + i);
	}
	pthread_mutex_unlock(&in->m);
	return err;
}

/* Bytes that are not true must not be seen: the store may be the guest's memory, where a page known to be zero is not
 * written before it is used. */
void gmem_store_finish(struct gmem_incoming *in)
{
	for (size_t i = 0; i < in->nregions; i++) {
		struct gmem_incoming_region *r = &in->regions[i];

		for (uint64_t k = 0; r->store_fd >= 0 && k < r->nchunks; k++) {
			struct gmem_chunk *c = &r->chunks[k];
			uint64_t gone = c->stale ? punch(r, k, c->stale) : 0;

			if (!c->stale)
				continue;
			pthread_mutex_lock(&in->m);
			c->stale &= ~gone;
			pthread_mutex_unlock(&in->m);
		}
	}
	pthread_mutex_lock(&in->m);
	in->final = true;
	in->pulling = false;
	pthread_cond_broadcast(&in->arrived);
	for (struct gmem_request *q = in->requests; q; q = q->next)
		pthread_cond_signal(q->wake);
	pthread_mutex_unlock(&in->m);
}

static uint64_t lacks(const struct gmem_incoming_region *r, uint64_t chunk)
{
	const struct gmem_chunk *c = &r->chunks[chunk];

	if (c->slot)
		return 0;
	return gmem_wire_mask(gmem_chunk_npages(r, chunk)) & ~(c->stored | c->zero);
}

/* With `m` held: the next chunk of which something is lacking, from where the pull is. */
static bool next_lacking(struct gmem_incoming *in, uint64_t *need)
{
	for (; in->pull_region < in->nregions; in->pull_region++, in->pull_chunk = 0) {
		const struct gmem_incoming_region *r = &in->regions[in->pull_region];

		if (r->store_fd < 0 || r->store_failed)
			continue;
		for (; in->pull_chunk < r->nchunks; in->pull_chunk++) {
			*need = lacks(r, in->pull_chunk);
			if (*need)
				return true;
		}
	}
	return false;
}

/* The bulk connection has room: asks for the next chunk, or says that a round is done. */
int64_t gmem_store_pull(struct gmem_incoming *in, uint8_t *frame)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_ROUND_DONE };
	bool asks = false, done = false;
	uint64_t need;

	if (gmem_phases_now(&in->p) != GMEM_MIGRATE_PREPARED)
		return 0;
	pthread_mutex_lock(&in->m);
	if (in->pulling && in->used_slots < PULL_SLOTS && in->used_slots < in->nslots) {
		asks = next_lacking(in, &need);
		/* Round again for what was called dirty behind us, when all that was asked has come. */
		if (!asks && in->dirtied && !in->used_slots) {
			in->dirtied = false;
			in->pull_region = 0;
			in->pull_chunk = 0;
			asks = next_lacking(in, &need);
		}
		done = !asks && !in->used_slots && in->round_heard > in->round_told;
	}
	if (asks) {
		gmem_slot_take(in, in->pull_region, in->pull_chunk);
		msg = gmem_chunk_ask(in, in->pull_region, in->pull_chunk, need);
	}
	if (done) {
		msg.round = (uint64_t)in->round_heard;
		in->round_told = in->round_heard;
	}
	pthread_mutex_unlock(&in->m);
	if (asks)
		return (int64_t)gmem_wire_encode(frame, &msg);
	if (done)
		return gmem_link_post(in->p.link, &msg, SIZE_MAX);
	return 0;
}
